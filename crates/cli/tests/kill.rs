//! The guardian is killed again and again while an application writes. What
//! the application committed must stand in the trail exactly once, in the
//! order of its commits, and the trail must verify.
//!
//! `SEED=17 cargo test -p pitser --test kill` replays a failure's choices.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::port::free_address;
use common::{Choices, first_line};
use pitser_evidence::line::Op;
use pitser_trail::{Layout, read};
use rusqlite::Connection;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const KILLS: usize = 10;
const PITSER: &str = env!("CARGO_BIN_EXE_pitser");

/// A guardian process that is certain to end with the test.
struct Guardian(Child);

impl Guardian {
    fn start(config: &Path) -> Self {
        let run = ["guard", "run", "--config"];
        let command = &mut Command::new(PITSER);
        Self(
            command
                .args(run)
                .arg(config)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Waits for the line that says that it guards.
    fn ready(&mut self) {
        let line = first_line(&mut self.0);
        assert!(line.starts_with("guarding"), "{line}");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Asks it to stop: it takes what was committed and waits for the seal.
    fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the application committed: per record, the versions in their order.
type Committed = HashMap<i64, Vec<i64>>;

/// Creates and changes rows, in transactions of which some roll back. Each
/// row's `version` counts its changes, and is what the trail must repeat.
fn application(path: &Path, seed: u64, committed: &AtomicU64, stop: &AtomicBool) -> Committed {
    let mut choices = Choices(seed | 1);
    let mut db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    let mut model: Committed = HashMap::new();
    let mut next = 1000;
    while !stop.load(Ordering::Relaxed) {
        let (attributed, keep) = (choices.below(10) > 0, choices.below(8) > 0);
        let tx = db.transaction().unwrap();
        if attributed {
            tx.execute(
                "INSERT INTO pitser_begin (actor, app) VALUES ('dr-1', 'ehr')",
                [],
            )
            .unwrap();
        }
        let mut changed = Vec::new();
        for _ in 0..=choices.below(4) {
            if choices.below(3) == 0 || model.is_empty() {
                next += 1;
                tx.execute("INSERT INTO entry VALUES (?1, 'pt-1', 1)", [next])
                    .unwrap();
                changed.push((next, 1));
            } else {
                let mut ids: Vec<_> = model.keys().copied().collect();
                ids.sort_unstable();
                let id = ids[usize::try_from(choices.below(ids.len() as u64)).unwrap()];
                tx.execute("UPDATE entry SET version = version + 1 WHERE id = ?1", [id])
                    .unwrap();
                let version = tx
                    .query_row("SELECT version FROM entry WHERE id = ?1", [id], |r| {
                        r.get(0)
                    })
                    .unwrap();
                changed.push((id, version));
            }
        }
        if attributed {
            tx.execute("INSERT INTO pitser_end DEFAULT VALUES", [])
                .unwrap();
        }
        if keep {
            tx.commit().unwrap();
            for (id, version) in changed {
                model.entry(id).or_default().push(version);
                committed.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            tx.rollback().unwrap();
        }
    }
    model
}

/// What a process had in memory when it crashed, keys and patients' data, is in no file.
#[test]
fn a_crash_writes_no_core() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = |program: &[&str]| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
        shell.args(program).current_dir(dir.path());
        let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
        first_line(&mut child);
        let pid = child.id().to_string();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-ABRT", &pid]).status().unwrap().success());
        child.wait().unwrap()
    };
    if !crashed(&["sh", "-c", "echo; exec sleep 60"]).core_dumped() {
        eprintln!("skipped: no process leaves a core here");
        return;
    }
    let service = ["dev", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let ended = crashed(&[&[PITSER][..], &service].concat());
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
}

#[test]
fn killed_ten_times_it_loses_and_repeats_nothing() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("hospital.db");
    let schema = "PRAGMA journal_mode=WAL; CREATE TABLE entry (id INTEGER PRIMARY KEY, patient TEXT, version INTEGER);
                  INSERT INTO entry VALUES (1, 'pt-1', 0), (2, 'pt-2', 0);";
    Connection::open(&database)
        .unwrap()
        .execute_batch(schema)
        .unwrap();
    let config = dir.path().join("pitser.toml");
    std::fs::write(
        &config,
        "[authority]\naggregator = \"embedded\"\n[guard]\ndata = \"guard\"\nlisten = \"127.0.0.1:0\"\n\
         [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\
         [source.patient]\nentry = \"patient\"\n",
    )
    .unwrap();
    assert_eq!(pitser(&["guard", "init", "--config"], &config).0, Some(0));

    let (committed, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = {
        let (path, committed, stop) = (database.clone(), Arc::clone(&committed), Arc::clone(&stop));
        std::thread::spawn(move || application(&path, seed, &committed, &stop))
    };
    let mut choices = Choices(seed.rotate_left(17) | 1);
    for _ in 0..KILLS {
        let mut guardian = Guardian::start(&config);
        // Sometimes while it recovers, mostly in the middle of its work.
        if choices.below(4) > 0 {
            guardian.ready();
        }
        let until = committed.load(Ordering::Relaxed) + choices.below(400);
        while committed.load(Ordering::Relaxed) < until {
            std::thread::yield_now();
        }
        guardian.kill();
    }
    stop.store(true, Ordering::Relaxed);
    let model = writer.join().unwrap();
    let mut guardian = Guardian::start(&config);
    guardian.ready();
    guardian.stop();

    let layout = Layout::new(dir.path().join("guard/h"));
    assert_eq!(told_of(&layout), unattributed(&layout), "SEED={seed}");
    let lines = changes(&layout);
    let total: usize = model.values().map(Vec::len).sum();
    assert!(total > 100, "too little happened: {total} changes");
    assert_eq!(
        lines.values().map(Vec::len).sum::<usize>(),
        total,
        "SEED={seed}"
    );
    assert_eq!(lines, model, "SEED={seed}");
    let (verified, told) = pitser(&["trail", "verify", "--config"], &config);
    let told = String::from_utf8_lossy(&told);
    assert_eq!(verified, Some(0), "SEED={seed} {told}");
    nothing_was_found(&config, seed);
}

/// Lines of changes that nobody is named for.
fn unattributed(layout: &Layout) -> Vec<u64> {
    let mut lines = Vec::new();
    let is_change = |op| matches!(op, Op::Create | Op::Update | Op::Delete);
    read(layout, None, |line, _| {
        if is_change(line.op) && line.actor.is_none() {
            lines.push(line.seq);
        }
    })
    .unwrap();
    lines
}

/// Lines that a finding says nobody is named for.
fn told_of(layout: &Layout) -> Vec<u64> {
    let mut about = Vec::new();
    read(layout, None, |line, _| {
        let finding = line.finding.as_ref();
        about.extend(finding.and_then(|finding| finding.about));
    })
    .unwrap();
    about
}

/// Per record, the versions that the trail tells, in its order.
fn changes(layout: &Layout) -> Committed {
    let keys = pitser_trail::Keys::open(layout).unwrap();
    let mut vault = pitser_trail::Vault::open_read_only(&layout.vault(), keys.master()).unwrap();
    let mut lines = Vec::new();
    read(layout, None, |line, _| lines.push(line.clone())).unwrap();
    let (mut told, mut last_pos) = (Committed::new(), 0);
    for line in lines
        .iter()
        .filter(|l| matches!(l.op, Op::Create | Op::Update | Op::Delete))
    {
        let pos: u64 = line.pos.parse().unwrap();
        assert!(pos > last_pos, "line {} is out of order", line.seq);
        last_pos = pos;
        let row = vault.get(line.seq).unwrap().unwrap().1.row.unwrap();
        let number = |name: &str| {
            let (_, cell) = row.iter().find(|(n, _)| *n == name).unwrap();
            String::from_utf8(cell.unwrap().to_vec())
                .unwrap()
                .strip_prefix('i')
                .unwrap()
                .parse::<i64>()
                .unwrap()
        };
        told.entry(number("id"))
            .or_default()
            .push(number("version"));
    }
    told
}

/// A guardian that goes on finds each live row as it was sealed, and no gap:
/// nothing but the changes that the application made without naming anybody.
fn nothing_was_found(config: &Path, seed: u64) {
    let text = std::fs::read_to_string(config).unwrap();
    let free = free_address();
    std::fs::write(config, text.replace("127.0.0.1:0", &free.to_string())).unwrap();
    let mut guardian = Guardian::start(config);
    guardian.ready();
    assert_eq!(
        pitser(&["guard", "scan", "--config"], config).0,
        Some(0),
        "SEED={seed}"
    );
    let (_, status) = pitser(&["guard", "status", "--json", "--config"], config);
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    let findings = status["sources"][0]["findings"].as_array().unwrap();
    let unexpected: Vec<_> = findings.iter().filter(|f| f["code"] != "ACT-01").collect();
    assert!(unexpected.is_empty(), "SEED={seed} {unexpected:#?}");
    guardian.stop();
}

fn pitser(args: &[&str], config: &Path) -> (Option<i32>, Vec<u8>) {
    let output = Command::new(PITSER)
        .args(args)
        .arg(config)
        .output()
        .unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), output.stdout)
}
