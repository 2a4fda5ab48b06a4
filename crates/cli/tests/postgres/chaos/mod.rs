//! Release gate: guardian, PostgreSQL and authority are killed at chance moments
//! while clients write. Each change that was committed stands in the trail once, in
//! the order of the commits, and nothing else does; every block is sealed in the end,
//! each seal verifies, and the trail is intact.
//!
//! In every third run the guardian's disk also loses what was not made durable
//! (`common/disk.rs`), and the guardian dies at named calls of the system. A witness watches
//! all of them: a trail that lost what it had published would be found out.
//!
//! `CHAOS_SEED=17 CHAOS_RUNS=500 cargo test -p pitser --test postgres chaos` makes the
//! runs 17 to 516, each of which follows from its number alone.

#[path = "../../common/disk.rs"]
mod disk;
mod load;
mod watched;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pitser_capture::postgres::Config;
use pitser_evidence::Code;
use pitser_evidence::line::{Line, Op};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_trail::{Keys, Layout, Vault, View};
use tempfile::TempDir;

use crate::common::Choices;
use crate::common::port::free_address;
use crate::common::{Process, Said, found_authority, pitser, run, start_authority};
use crate::harness::Server;
use crate::rollback::Step;
use crate::sqlite::{init, witness, word_after};
use crate::world::{PATIENCE, lsn, status_when, value};
use disk::{Disk, Fault, Lost};
use load::{Client, Pace};

/// Nothing of the server's disk is lost here; and so little memory that nearly every
/// transaction of more than one statement spills.
const SETTINGS: [&str; 3] = [
    "fsync = off",
    "logical_decoding_work_mem = '64kB'",
    "max_replication_slots = 20",
];
const RUNS: u64 = 30;
/// Runs that are made beside each other, each on grounds of its own.
const AT_ONCE: u64 = 3;

/// What is the same for all runs: server, authority and witness, which are processes.
struct Grounds {
    server: Server,
    dir: TempDir,
    authority: Option<Process>,
    address: String,
    key: String,
    _witness: Process,
    witness: String,
}

impl Grounds {
    fn new() -> Option<Self> {
        let server = Server::start(&SETTINGS, &[])?;
        let dir = tempfile::tempdir().unwrap();
        let (address, key) = found_authority(dir.path());
        let verifier = init(dir.path());
        let (process, url) = witness(dir.path());
        Some(Self {
            authority: Some(start_authority(dir.path())),
            _witness: process,
            witness: format!(
                "[[witness]]\nname = \"notary\"\nurl = \"{url}\"\nkey = \"{verifier}\"\n"
            ),
            server,
            dir,
            address,
            key,
        })
    }

    fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = self.server.client("psql", "postgres");
        psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A guardian's process, perhaps below one that watches it.
struct Guardian {
    child: Child,
    is_watched: bool,
}

impl Guardian {
    fn start(mut command: Command, dir: &Path, is_watched: bool) -> Self {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(dir.join("guard.log"));
        command.stdout(Stdio::null()).stderr(log.unwrap());
        Self {
            child: command.spawn().unwrap(),
            is_watched,
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends it a signal, unless it has ended, and waits for its end; whether it ended
    /// as it should.
    fn end(&mut self, signal: &str) -> bool {
        if self.is_watched {
            return disk::end(&mut self.child, signal);
        }
        // It may have ended meanwhile.
        let mut kill = Command::new("kill");
        kill.args([signal, &self.child.id().to_string()]);
        let _ = kill.stderr(Stdio::null()).status();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.end("-KILL");
    }
}

/// One run.
struct Run<'a> {
    grounds: &'a mut Grounds,
    seed: u64,
    choices: Choices,
    dir: PathBuf,
    database: String,
    listen: u16,
    guardian: Option<Guardian>,
    /// The guardian's disk, if it loses what was not made durable.
    disk: Option<Disk>,
    loses: bool,
    /// The guardian dies by itself, at some call.
    is_doomed: bool,
    told: Told,
}

/// What happened in a run.
#[derive(Debug, Default)]
struct Told {
    starts: u32,
    guardian: u32,
    server: u32,
    authority: u32,
    cuts: u32,
    lost: u32,
    deaths: u32,
}

/// Whether guardians are refused an `fsync` each, in all runs and in place of deaths.
fn refuses() -> bool {
    std::env::var_os("CHAOS_REFUSE").is_some()
}

/// Calls before which the guardian may die, and about how often it makes them. The first
/// two may also fail, once.
const DEATHS: [(&str, u64); 8] = [
    ("fdatasync", 30),
    ("fsync", 12),
    ("write", 40),
    ("rename", 6),
    ("pwrite64", 40),
    ("ftruncate", 5),
    ("unlink", 2),
    ("mkdir", 4),
];

/// Files, and a folder, that the guardian is killed just after it has written them.
const WRITTEN: [&str; 6] = [
    "blocks.dat",
    "block-signatures.dat",
    "head.note",
    "position",
    "map",
    "keys.db-wal",
];

/// While a moment is waited for, so many more transactions are made, one after each
/// [`EASY`].
const MOST: u64 = 80;
const EASY: Duration = Duration::from_millis(12);

/// What is waited for before something is killed.
enum Moment {
    /// The guardian dies at a call.
    Death,
    Transactions(u64),
    /// Bytes of lines.
    Lines(u64),
    /// Files of this name are not as they were.
    Written(Vec<(PathBuf, u64, std::time::SystemTime)>, &'static str),
}

/// All files below a folder that may be changing.
fn found(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let below = |path: PathBuf| match path.is_dir() {
        true => found(&path),
        false => vec![path],
    };
    paths.flat_map(below).collect()
}

fn is_below(path: &Path, folder: &str) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with(folder))
}

impl<'a> Run<'a> {
    fn new(grounds: &'a mut Grounds, seed: u64, loses: bool) -> Self {
        let dir = grounds.dir.path().join(format!("run-{seed}"));
        let database = format!("run_{seed}");
        grounds.psql("postgres", &format!("CREATE DATABASE {database}"));
        grounds.psql(&database, &load::tables());
        fs::create_dir(&dir).unwrap();
        let run = Self {
            choices: Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            listen: free_address().port(),
            guardian: None,
            disk: None,
            is_doomed: false,
            told: Told::default(),
            grounds,
            seed,
            dir,
            database,
            loses,
        };
        let text = format!(
            "[authority]\naggregator = \"ksi+tcp://hospital:{}@{}\"\n\
             [guard]\ndata = \"guard\"\nlisten = \"127.0.0.1:{}\"\norganisation = \"run{seed}.example\"\n\
             scan_every_s = 0\nwitness_every_s = 1\nsegment_s = 1\n\
             [[source]]\nname = \"hospital\"\nkind = \"postgres\"\nurl = \"{}\"\n\
             tables = [\"public.entry_*\", \"public.ticket\", \"public.done\"]\n{}",
            run.grounds.key,
            run.grounds.address,
            run.listen,
            run.grounds.server.url(&run.database),
            run.grounds.witness,
        );
        fs::write(run.dir.join("pitser.toml"), text).unwrap();
        let said = run.run("guard init").exits(0).says("5 tables guarded");
        let log = word_after(&said, "log key");
        let folder = run.grounds.dir.path();
        crate::common::run(folder, &format!("witness add-log --dir w {log}")).exits(0);
        run
    }

    fn run(&self, args: &str) -> Said {
        run(&self.dir, args)
    }

    fn layout(&self) -> Layout {
        Layout::new(self.dir.join("guard/hospital"))
    }

    /// What the guardian that runs, or ran last, asked of the system.
    fn log(&self) -> PathBuf {
        self.dir.join(format!("calls-{}", self.told.starts))
    }

    /// Starts the guardian, which may be bound to die at some call.
    fn guard(&mut self, may_die: bool) {
        let guardian = match self.loses {
            false => {
                let mut command = pitser(&self.dir);
                command.args(["guard", "run"]);
                Guardian::start(command, &self.dir, false)
            }
            true => {
                self.told.starts += 1;
                self.disk = Some(Disk::of(&self.dir.join("guard"), &self.dir));
                let refuses = refuses();
                let fault = (may_die && (refuses || self.choices.below(3) > 0)).then_some(refuses);
                self.is_doomed = fault == Some(false);
                let fault = fault.map(|refuses| match refuses {
                    true => (Fault::Refusal, &DEATHS[..2]),
                    false => (Fault::Death, &DEATHS[..]),
                });
                let fault = fault.map(|(fault, calls)| {
                    let (call, times) = calls[self.below(calls.len() as u64)];
                    (fault, call, 1 + self.choices.below(times))
                });
                let mut command = disk::watched(&self.log(), fault, &self.dir);
                command.args(["guard", "run"]);
                Guardian::start(command, &self.dir, true)
            }
        };
        self.guardian = Some(guardian);
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.choices.below(limit)).unwrap()
    }

    fn kill_guardian(&mut self) {
        let mut guardian = self.guardian.take().unwrap();
        self.told.deaths += u32::from(guardian.has_ended());
        guardian.end("-KILL");
        self.told.guardian += 1;
        let Some(mut disk) = self.disk.take() else {
            return;
        };
        disk.replay(&self.log());
        disk.check();
        let lost = disk.cut_power(&mut self.choices);
        self.told.cuts += 1;
        self.told.lost += u32::from(lost != Lost::default());
    }

    /// Kills some of the three at once, or one after the other, and starts them again
    /// in some order.
    fn fault(&mut self, pace: &Pace) {
        let guardian_has_died = self.guardian.as_mut().unwrap().has_ended();
        let mut victims = match self.choices.below(12) {
            0..=4 => vec![Victim::Guardian],
            5 => vec![Victim::Server],
            6 => vec![Victim::Authority],
            7 => vec![Victim::Guardian, Victim::Server],
            8 => vec![Victim::Guardian, Victim::Authority],
            9 => vec![Victim::Server, Victim::Authority],
            _ => vec![Victim::Guardian, Victim::Server, Victim::Authority],
        };
        if guardian_has_died && !victims.contains(&Victim::Guardian) {
            victims.push(Victim::Guardian);
        }
        self.shuffle(&mut victims);
        for victim in &victims {
            match victim {
                Victim::Guardian => self.kill_guardian(),
                Victim::Server => {
                    pace.down(true);
                    self.grounds.server.kill();
                    self.told.server += 1;
                }
                Victim::Authority => {
                    self.grounds.authority.take().unwrap().kill();
                    self.told.authority += 1;
                }
            }
        }
        self.shuffle(&mut victims);
        for victim in &victims {
            match victim {
                Victim::Guardian => self.guard(true),
                Victim::Server => {
                    self.grounds.server.start_again();
                    pace.down(false);
                }
                Victim::Authority => {
                    self.grounds.authority = Some(start_authority(self.grounds.dir.path()));
                }
            }
        }
    }

    fn shuffle(&mut self, victims: &mut [Victim]) {
        for at in (1..victims.len()).rev() {
            victims.swap(at, self.below(at as u64 + 1));
        }
    }

    /// Waits for a chance moment of the clients' work, or of the guardian's; beside it
    /// clients go on at an easy pace. Gives how many more transactions they may make.
    fn moment(&mut self, pace: &Pace, allowed: u64) -> u64 {
        let ended = pace.ended();
        let what = match self.is_doomed {
            true => Moment::Death,
            false => match self.choices.below(3) {
                0 => Moment::Transactions(ended + self.choices.below(allowed)),
                1 => Moment::Lines(self.bytes() + self.choices.below(200_000)),
                _ => {
                    let file = WRITTEN[self.below(WRITTEN.len() as u64)];
                    Moment::Written(self.written(file), file)
                }
            },
        };
        let is_there = |run: &mut Self| match &what {
            _ if run.guardian.as_mut().unwrap().has_ended() => true,
            Moment::Death => false,
            Moment::Transactions(count) => pace.ended() >= *count,
            Moment::Lines(bytes) => run.bytes() >= *bytes,
            Moment::Written(before, file) => run.written(file) != *before,
        };
        let mut more = 0;
        let mut began = Instant::now();
        while !is_there(self) && more < MOST {
            if began.elapsed() > EASY {
                began = Instant::now();
                more += 1;
                pace.allow(1);
            }
            std::thread::yield_now();
        }
        more
    }

    /// How long all files of this name are.
    fn written(&self, name: &str) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
        let of_file = |path: PathBuf| {
            let about = path.metadata().ok()?;
            Some((path, about.len(), about.modified().unwrap()))
        };
        let all = found(&self.dir.join("guard")).into_iter();
        let named = all.filter(|path| path.ends_with(name) || is_below(path, name));
        named.filter_map(of_file).collect()
    }

    /// Of all lines.
    fn bytes(&self) -> u64 {
        let files = fs::read_dir(self.layout().segments()).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let lines = files.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
        lines
            .map(|path| path.metadata().map_or(0, |file| file.len()))
            .sum()
    }

    /// Lets clients write while all else dies again and again; what they know then.
    fn faults(&mut self) -> Vec<Client> {
        let config = Config::parse(&self.grounds.server.url(&self.database)).unwrap();
        let pace = Pace::default();
        let clients = load::start(&config, self.seed, &pace);
        self.guard(true);
        let mut allowed = 0;
        for _ in 0..2 + self.choices.below(3) {
            let more = 6 + self.choices.below(12);
            allowed += more;
            pace.allow(more);
            allowed += self.moment(&pace, more);
            self.fault(&pace);
        }
        pace.until(allowed);
        pace.over();
        clients.into_iter().map(|it| it.join().unwrap()).collect()
    }

    /// Lets the guardian take everything, and have it sealed and cosigned.
    fn settle(&mut self) {
        if self.loses {
            self.kill_guardian();
            self.guard(false);
        }
        let newest = self
            .grounds
            .psql(&self.database, "SELECT pg_current_wal_insert_lsn()");
        // Something that is committed after it, so that the log is flushed.
        let message = "SELECT pg_logical_emit_message(true, 'test', '')";
        self.grounds.psql(&self.database, message);
        for _ in 0..3 {
            self.listening();
            status_when(&self.dir, self.listen, "caught up", |s| {
                let position = s["position"].as_str().filter(|text| !text.is_empty());
                position.is_some_and(|it| lsn(it) >= lsn(newest.trim())) && s["unsealed"] == 0
            });
            let mut guardian = self.guardian.take().unwrap();
            assert!(guardian.end("-TERM"), "it ends in an orderly way");
            // It waits ten seconds for its last seal, no longer.
            if self
                .view()
                .1
                .blocks
                .iter()
                .all(|block| block.seal.is_some())
            {
                break;
            }
            self.guard(false);
        }
        if let Some(mut disk) = self.disk.take() {
            disk.replay(&self.log());
            disk.check();
            // A machine that is switched off after an orderly end loses nothing.
            disk.cut_power(&mut self.choices);
        }
    }

    fn listening(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.listen)).is_err() {
            assert!(began.elapsed() < PATIENCE, "never listens");
            assert!(
                !self.guardian.as_mut().unwrap().has_ended(),
                "ended by itself"
            );
            std::thread::yield_now();
        }
    }

    fn view(&self) -> (Vec<Line>, View) {
        let mut lines = Vec::new();
        let view = pitser_trail::read(&self.layout(), None, |line, _| lines.push(line.clone()));
        (lines, view.unwrap())
    }

    fn check(&self, clients: &[Client]) {
        self.run("trail verify").exits(0);
        let (lines, view) = self.view();
        self.check_seals(&view);
        let transactions = self.transactions(&lines);
        let mut next: HashMap<u64, usize> = HashMap::new();
        for (nth, told) in transactions.iter().enumerate() {
            let client = &clients[usize::try_from(told.client).unwrap()];
            let at = next.entry(told.client).or_default();
            let known = (client.numbers.get(*at), client.model.committed.get(*at));
            *at += 1;
            let what = format!("transaction {} of client {}", told.number, told.client);
            assert_eq!(known.0, Some(&told.number), "{what}: another one was next");
            assert_eq!(told.ticket, nth as u64 + 1, "{what}: out of order");
            assert_eq!(sorted(&told.steps), sorted(known.1.unwrap()), "{what}");
        }
        for client in clients {
            let told = next.get(&client.client).copied().unwrap_or(0);
            assert_eq!(told, client.numbers.len(), "client {}", client.client);
        }
        let mut found: BTreeMap<Code, usize> = BTreeMap::new();
        for finding in lines.iter().filter_map(|line| line.finding.as_ref()) {
            *found.entry(finding.code).or_default() += 1;
        }
        let truncations: usize = clients.iter().map(|client| client.truncations).sum();
        let expected = (truncations > 0).then_some((Code::Truncated, truncations));
        assert_eq!(found, expected.into_iter().collect(), "findings");
        assert!(lines.iter().all(|line| line.op != Op::Gap));
    }

    /// Every block has a seal of the authority's.
    fn check_seals(&self, view: &View) {
        assert!(view.tail.is_empty(), "lines without a block");
        let file = self.grounds.dir.path().join("auth/data/publications.bin");
        let publications = PublicationsFile::decode(&fs::read(file).unwrap()).unwrap();
        for block in &view.blocks {
            let seal = block.seal.as_ref().expect("every block is sealed");
            let context = Context {
                document: Some(block.leaf.root.0),
                level: block.leaf.level,
                publications: Some(&publications),
                ..Context::new(Policy::Key)
            };
            let verdict = verify(&Signature::decode(seal).unwrap(), &context);
            assert!(verdict.is_intact(), "block {}", block.leaf.block);
        }
    }

    /// The transactions as the trail tells them.
    fn transactions(&self, lines: &[Line]) -> Vec<Transaction> {
        let keys = Keys::open(&self.layout()).unwrap();
        // As its writer: the power may have been cut after the guardian's end.
        let mut vault = Vault::open(&self.layout().vault(), keys.master()).unwrap();
        let (mut told, mut open, mut ended) = (Vec::new(), Transaction::default(), HashSet::new());
        let mut last = (0, 0);
        for line in lines {
            let Some(tx) = line.tx.filter(|_| line.op != Op::Finding) else {
                continue;
            };
            if open.tx != tx {
                assert!(
                    ended.insert(open.tx),
                    "transaction {} in two places",
                    open.tx
                );
                told.push(std::mem::replace(
                    &mut open,
                    Transaction {
                        tx,
                        ..Default::default()
                    },
                ));
            }
            let nth = line.pos.split_once(':').map_or("0", |(_, nth)| nth);
            let place = (lsn(&line.pos), nth.parse::<u64>().unwrap());
            // Rows of one truncation stand in one place, or just before it.
            let is_after = place > last || line.op == Op::Delete && place == last;
            assert!(
                is_after,
                "line {} at {} is out of order",
                line.seq, line.pos
            );
            last = place;
            let (_, content) = vault.get(line.seq).unwrap().unwrap();
            let row = |column| content.row.as_ref().map(|row| value(row, column));
            let number = |column| row(column).unwrap().parse::<u64>().unwrap();
            match line.table.as_deref().unwrap() {
                "public.ticket" => open.ticket = number("n"),
                "public.done" => {
                    assert_eq!(open.ticket, number("ticket"));
                    (open.client, open.number) = (number("client"), number("number"));
                }
                _ => {
                    let key = String::from_utf8(content.key.as_ref().unwrap()[0][1..].to_vec());
                    let key = key.unwrap().parse().expect("no row that was refused");
                    open.steps.push((line.op, key, row("mark")));
                }
            }
        }
        told.push(open);
        told.into_iter().filter(|it| it.tx != 0).collect()
    }

    /// Nothing of the run is left in the server.
    fn clear(&self) {
        let slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{}' AND active_pid IS NULL",
            self.database
        );
        let began = Instant::now();
        while self.grounds.psql("postgres", &slot).is_empty() {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the slot is held"
            );
        }
        self.grounds.psql(
            "postgres",
            &format!("DROP DATABASE {} WITH (FORCE)", self.database),
        );
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, dir) = (self.seed, self.dir.display());
            eprintln!("{:?}; what is left is in {dir}", self.told);
            eprintln!(
                "again: CHAOS_SEED={seed} CHAOS_RUNS=1 cargo test -p pitser --test postgres chaos"
            );
            self.grounds.dir.disable_cleanup(true);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Guardian,
    Server,
    Authority,
}

/// A transaction as the trail tells it.
#[derive(Debug, Default)]
struct Transaction {
    tx: u64,
    client: u64,
    number: u64,
    ticket: u64,
    steps: Vec<Step>,
}

/// Rows that are deleted one after the other may be those of one truncation, which
/// have no order.
fn sorted(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    let is_one = |a: &Step, b: &Step| a.0 == Op::Delete && b.0 == Op::Delete;
    for part in steps.chunk_by_mut(is_one) {
        part.sort_unstable_by_key(|step| step.1);
    }
    steps
}

#[test]
fn nothing_is_lost_or_told_twice_whatever_dies() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let first = number("CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let runs = number("CHAOS_RUNS").unwrap_or(RUNS);
    println!("CHAOS_SEED={first} CHAOS_RUNS={runs}");
    let is_watched = disk::is_there();
    if !is_watched {
        eprintln!(
            "skipped: disks that lose writes, for no strace is here that may watch processes"
        );
    }
    // Most of a run is waiting for the end of a second.
    let seeds = Mutex::new(first..first + runs);
    let next = || seeds.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(runs) {
            scope.spawn(|| {
                let Some(mut grounds) = Grounds::new() else {
                    return;
                };
                while let Some(seed) = next() {
                    one(
                        &mut grounds,
                        seed,
                        is_watched && (seed % 3 == 0 || refuses()),
                    );
                }
            });
        }
    });
}

fn one(grounds: &mut Grounds, seed: u64, loses: bool) {
    let began = Instant::now();
    let mut run = Run::new(grounds, seed, loses);
    let clients = run.faults();
    run.settle();
    run.check(&clients);
    run.clear();
    let committed: usize = clients.iter().map(|client| client.numbers.len()).sum();
    let unknown: (u64, u64) = clients.iter().fold((0, 0), |sum, it| {
        (sum.0 + it.unknown.0, sum.1 + it.unknown.1)
    });
    println!(
        "{seed}: {committed} transactions, {} of {} in doubt were done, {:?}, {:.1?}",
        unknown.1,
        unknown.0,
        run.told,
        began.elapsed()
    );
}
