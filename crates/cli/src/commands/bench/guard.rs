//! How fast a guardian takes what a PostgreSQL server hands out, what an event costs
//! it in processor time, disk and memory, and how soon a commit is sealed.
//!
//! The server is anybody's, with a database that may be written to. In each round it
//! gets the same kind of changes while the guardian is stopped in its tracks; then
//! `pg_recvlogical -f /dev/null` takes them from a copy of the guardian's slot, which
//! is the floor, and after it the guardian goes on. A guardian counts as done when
//! everything is sealed. All of it shares one machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pitser_capture::Position;
use pitser_capture::postgres::{Config as Database, Connection, Field};
use serde_json::Value;

use super::server::{Authority, Server, ourselves};
use super::{median, rounded};
use crate::commands::guard;
use crate::config::Config;
use crate::files::Folder;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{Form, Progress};
use crate::service;
use crate::tree::Map;

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database: postgres://USER:PASSWORD@HOST/DATABASE. A table is made in it, and dropped afterwards
    #[arg(env = "PITSER_BENCH_DATABASE", hide_env_values = true)]
    url: String,
    /// Changes in each round: six inserts, three updates and a delete in ten
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    changes: u64,
    /// Changes in a transaction
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..))]
    transaction: u64,
    /// Rounds; their median is told
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Changes a second when the time to the seal is measured; 0: it is not
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    paced: u64,
    /// How long that is kept up
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// Rows that are there when guarding begins; how fast they are sealed is measured against psql, which copies
    /// them to /dev/null
    #[arg(long, value_name = "ROWS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100_000_000))]
    backfill: u64,
    /// psql [default: the one beside pg_recvlogical]
    #[arg(long, value_name = "FILE")]
    psql: Option<PathBuf>,
    /// Keep no images of rows in the vault
    #[arg(long)]
    no_vault: bool,
    /// pg_recvlogical [default: the one on the PATH, or of the newest Debian package]
    #[arg(long, value_name = "FILE")]
    pg_recvlogical: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let folder = Folder::temporary()?;
    let mut bench = Bench::prepare(args, &folder.path)?;
    let measured = bench.measure();
    // The first failure is the one to tell.
    let removed = bench.remove();
    let facts = measured?;
    removed?;
    args.form.show(&facts)?;
    Ok(Exit::Intact)
}

struct Bench<'b> {
    args: &'b Args,
    folder: &'b Path,
    sql: Connection,
    config: Config,
    recvlogical: OsString,
    /// Seals for as long as this value lives.
    _authority: Authority,
    guardian: Option<Server>,
}

/// What one round came to, in events a second, and the guardian's processor time for one, in microseconds.
struct Round {
    floor: f64,
    ours: f64,
    cpu_us: f64,
}

impl<'b> Bench<'b> {
    fn prepare(args: &'b Args, folder: &'b Path) -> Result<Self, Failure> {
        let database = Database::parse(&args.url).map_err(Failure::input)?;
        let mut sql = Connection::open_application(&database).map_err(Failure::service)?;
        let level = ask(&mut sql, "SHOW wal_level")?;
        if level != "logical" {
            return Err(Failure::Input(format!(
                "the server has wal_level = {level}: ALTER SYSTEM SET wal_level = logical, and restart it"
            )));
        }
        let there = ask(
            &mut sql,
            "SELECT to_regclass('public.pitser_bench') IS NOT NULL",
        )?;
        if there == "t" {
            return Err(Failure::Input(
                "there is a table public.pitser_bench already, perhaps of a bench that was killed: \
                 `pitser guard uninstall`, or drop it with publication and slot pitser_bench"
                    .into(),
            ));
        }
        let authority = Authority::start(folder, "")?;
        let path = folder.join("pitser.toml");
        fs::write(&path, configuration(args, &authority)).map_err(Failure::service)?;
        query(&mut sql, &TABLE.replace("{row}", ROW))?;
        // A guardian that is stopped in its tracks must not lose its connection.
        let name = sql.database().replace('"', "\"\"");
        query(
            &mut sql,
            &format!("ALTER DATABASE \"{name}\" SET wal_sender_timeout = 0"),
        )?;
        let recvlogical = args
            .pg_recvlogical
            .clone()
            .map_or_else(recvlogical, Into::into);
        Ok(Self {
            args,
            folder,
            sql,
            config: Config::read(&path)?,
            recvlogical,
            _authority: authority,
            guardian: None,
        })
    }

    fn measure(&mut self) -> Result<Map, Failure> {
        let backfill = match self.args.backfill {
            0 => None,
            rows => Some(self.backfill(rows)?),
        };
        if backfill.is_none() {
            self.begin()?;
        }
        self.wait(|status| status["verified_up_to"].is_string())?;
        let mut progress = Progress::new("rounds");
        let mut rounds = Vec::new();
        for number in 0..self.args.rounds {
            progress.set(u64::from(number));
            rounds.push(self.round(number)?);
        }
        progress.finish();
        let latency = match self.args.paced {
            0 => None,
            rate => Some(self.pace(rate)?),
        };
        let status = self.status()?;
        if !status["findings"].as_array().is_some_and(Vec::is_empty) {
            return Err(Failure::Tampered(format!(
                "the guardian found something, so it is not the bench that is wrong: {}",
                status["findings"]
            )));
        }
        let rss = self.guardian()?.peak_memory()? / 1_000_000;
        self.stop()?;
        self.pitser("trail verify pitser-data/bench")?;
        let events = status["events"].as_f64().unwrap_or_default();
        let disk = Disk::of(&self.folder.join("pitser-data/bench"))?;
        let of = |bytes: u64| rounded(bytes as f64 / events);
        let pick = |what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
        Ok(Map::new()
            .with("changes_per_s", pick(|r| r.ours) as u64)
            .with("pg_recvlogical_per_s", pick(|r| r.floor) as u64)
            .with("of_pg_recvlogical", rounded(pick(|r| r.ours / r.floor)))
            .with("cpu_us_per_event", rounded(pick(|r| r.cpu_us)))
            .with("bytes_per_event", of(disk.other))
            .with("line_bytes", of(disk.lines))
            .with("vault_bytes", of(disk.vault))
            .with("log_hash_bytes", of(disk.hashes))
            .with("rss_mb", rss)
            .maybe("commit_to_seal_ms", latency)
            .maybe("backfill", backfill)
            .with("events", events as u64)
            .with("rounds", self.args.rounds)
            .with("vault", !self.args.no_vault))
    }

    /// Prepares the database, and starts to guard it.
    fn begin(&mut self) -> Result<(), Failure> {
        self.pitser("guard init --config pitser.toml")?;
        let mut command = ourselves(self.folder, "guard run --config pitser.toml")?;
        let log = fs::File::create(self.folder.join("guard.log")).map_err(Failure::service)?;
        command.stdout(Stdio::null()).stderr(log);
        self.guardian = Some(Server::spawn(&mut command)?);
        Ok(())
    }

    /// How long it takes until so many rows that are there are sealed, from the first
    /// step of `guard init`; and psql to copy them to /dev/null.
    fn backfill(&mut self, rows: u64) -> Result<Map, Failure> {
        // Behind all that the rounds insert.
        query(
            &mut self.sql,
            &format!(
                "INSERT INTO public.pitser_bench SELECT 1000000000000 + n, {ROW} FROM generate_series(1, {rows}) n"
            ),
        )?;
        query(&mut self.sql, "VACUUM ANALYZE public.pitser_bench")?;
        query(&mut self.sql, "CHECKPOINT")?;
        let copied = self.copy()?.as_secs_f64();
        let began = Instant::now();
        self.begin()?;
        let durable = began.elapsed().as_secs_f64();
        self.wait(|status| {
            status["state"] == "guarding" && status["blocks"] != 0 && status["unsealed"] == 0
        })?;
        let sealed = began.elapsed().as_secs_f64();
        let a_second = |seconds: f64| (rows as f64 / seconds) as u64;
        Ok(Map::new()
            .with("rows", rows)
            .with("rows_per_s", a_second(sealed))
            .with("copy_rows_per_s", a_second(copied))
            .with("of_copy", rounded(copied / sealed))
            .with("durable_s", rounded(durable))
            .with("sealed_s", rounded(sealed)))
    }

    /// How long psql takes to copy the table to /dev/null.
    fn copy(&self) -> Result<Duration, Failure> {
        let beside = Path::new(&self.recvlogical).with_file_name("psql");
        let psql = self.args.psql.clone().unwrap_or(beside);
        let began = Instant::now();
        let copied = Command::new(&psql)
            .args([
                "--no-psqlrc",
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                "--output=/dev/null",
            ])
            .arg("--command=COPY public.pitser_bench TO STDOUT")
            .arg(format!("--dbname={}", self.args.url))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| {
                let psql = psql.display();
                Failure::Input(format!("cannot run {psql}: {e}; name it with --psql"))
            })?;
        match copied.status.success() {
            true => Ok(began.elapsed()),
            false => Err(Failure::Service(format!(
                "psql failed: {}",
                String::from_utf8_lossy(&copied.stderr).trim()
            ))),
        }
    }

    /// The same changes, for the one and then for the other.
    fn round(&mut self, number: u32) -> Result<Round, Failure> {
        self.guardian()?.signal("STOP")?;
        let made = self.changes(number);
        let floor = made.and_then(|()| self.floor());
        self.guardian()?.signal("CONT")?;
        let floor = self.args.changes as f64 / floor?.as_secs_f64();
        let target = self.end_of_log()?;
        let (before, began) = (self.guardian()?.cpu()?, Instant::now());
        self.wait_for(target)?;
        let took = began.elapsed();
        let spent = self.guardian()?.cpu()?.saturating_sub(before);
        Ok(Round {
            floor,
            ours: self.args.changes as f64 / took.as_secs_f64(),
            cpu_us: spent.as_secs_f64() * 1e6 / self.args.changes as f64,
        })
    }

    fn changes(&mut self, number: u32) -> Result<(), Failure> {
        let Args {
            changes,
            transaction,
            ..
        } = self.args;
        let first = u64::from(number) * changes;
        query(
            &mut self.sql,
            &format!("CALL pitser_bench({first}, {changes}, {transaction})"),
        )
    }

    /// How long the server takes to hand everything to somebody who throws it away.
    fn floor(&mut self) -> Result<Duration, Failure> {
        query(
            &mut self.sql,
            "SELECT pg_copy_logical_replication_slot('pitser_bench', 'pitser_bench_floor')",
        )?;
        let end = ask(&mut self.sql, "SELECT pg_current_wal_insert_lsn()")?;
        let began = Instant::now();
        let taken = Command::new(&self.recvlogical)
            .args([
                "--slot=pitser_bench_floor",
                "--start",
                "--no-loop",
                "--file=/dev/null",
            ])
            .args(["--option=proto_version=1", "--option=messages=true"])
            .arg("--option=publication_names=pitser_bench")
            .arg(format!("--endpos={end}"))
            .arg(format!("--dbname={}", self.args.url))
            .stdin(Stdio::null())
            .output();
        let took = began.elapsed();
        query(
            &mut self.sql,
            "SELECT pg_drop_replication_slot('pitser_bench_floor')",
        )?;
        let taken = taken.map_err(|e| {
            let program = self.recvlogical.display();
            Failure::Input(format!(
                "cannot run {program}: {e}; name it with --pg-recvlogical"
            ))
        })?;
        match taken.status.success() {
            true => Ok(took),
            false => Err(Failure::Service(format!(
                "pg_recvlogical failed: {}",
                String::from_utf8_lossy(&taken.stderr).trim()
            ))),
        }
    }

    /// Milliseconds from commit to seal while changes come evenly, fifty in a transaction.
    fn pace(&mut self, rate: u64) -> Result<Map, Failure> {
        let first = u64::from(self.args.rounds) * self.args.changes;
        let (mut done, began) = (0, Instant::now());
        let all = rate * self.args.seconds;
        while done < all {
            let due = began + Duration::from_micros(done * 1_000_000 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let call = format!("CALL pitser_bench({}, {PACED}, {PACED})", first + done);
            query(&mut self.sql, &call)?;
            done += PACED;
        }
        let kept = done as f64 / began.elapsed().as_secs_f64();
        let target = self.end_of_log()?;
        self.wait_for(target)?;
        let told = self.status()?["seal_latency_ms"].clone();
        Ok(Map::new()
            .with("p50", told["p50"].as_u64().unwrap_or_default())
            .with("p99", told["p99"].as_u64().unwrap_or_default())
            .with("changes_per_s", kept as u64))
    }

    fn end_of_log(&mut self) -> Result<Position, Failure> {
        ask(&mut self.sql, "SELECT pg_current_wal_insert_lsn()")?
            .parse()
            .map_err(Failure::service)
    }

    fn guardian(&self) -> Result<&Server, Failure> {
        self.guardian
            .as_ref()
            .ok_or_else(|| Failure::Service("the guardian is not running".into()))
    }

    fn status(&self) -> Result<Value, Failure> {
        let mut told = service::block_on(guard::ask(&self.config, "GET", "/api/status"))?;
        Ok(told["sources"][0].take())
    }

    /// Until the guardian's status is as `wanted`.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<(), Failure> {
        loop {
            if self.status().is_ok_and(|status| wanted(&status)) {
                return Ok(());
            }
            if !self.guardian.as_mut().is_some_and(Server::runs) {
                let log = fs::read_to_string(self.folder.join("guard.log")).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or_default();
                return Err(Failure::Service(format!("the guardian has ended: {last}")));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Until everything up to `target` is sealed.
    fn wait_for(&mut self, target: Position) -> Result<(), Failure> {
        self.wait(|status| {
            let position = status["position"].as_str().map(str::parse);
            status["unsealed"] == 0
                && position.is_some_and(|position| position.is_ok_and(|p: Position| p >= target))
        })
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut guardian) = self.guardian.take() else {
            return Ok(());
        };
        guardian.signal("TERM")?;
        while guardian.runs() {
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    fn pitser(&self, command: &str) -> Result<(), Failure> {
        let done = ourselves(self.folder, command)?
            .output()
            .map_err(Failure::service)?;
        match done.status.success() {
            true => Ok(()),
            // A verdict stands in its output, whatever else is wrong beside it.
            false => Err(Failure::Service(format!(
                "pitser {command}: {}{}",
                String::from_utf8_lossy(&done.stdout).trim(),
                String::from_utf8_lossy(&done.stderr).trim()
            ))),
        }
    }

    /// Leaves the database as it was.
    fn remove(&mut self) -> Result<(), Failure> {
        self.guardian = None;
        self.pitser("guard uninstall --config pitser.toml")?;
        query(
            &mut self.sql,
            "DROP TABLE public.pitser_bench; DROP PROCEDURE public.pitser_bench",
        )?;
        let name = self.sql.database().replace('"', "\"\"");
        query(
            &mut self.sql,
            &format!("ALTER DATABASE \"{name}\" RESET wal_sender_timeout"),
        )
    }
}

/// All but the key of row `n`.
const ROW: &str = "'pt-' || n % 10000, 'LOINC ' || n % 997, n % 1000 / 7.0, 'mmol/L',
    '2026-03-14 09:26:53.589793+00'::timestamptz + n * interval '1 ms', n % 40,
    md5(n::text)::uuid, repeat('within the usual range; ', 4), n % 2 = 0";

/// Ten columns, about 250 bytes of text in all.
const TABLE: &str = "
    CREATE TABLE public.pitser_bench (
        id bigint PRIMARY KEY, patient text NOT NULL, code text NOT NULL, value numeric NOT NULL,
        unit text NOT NULL, taken timestamptz NOT NULL, ward integer NOT NULL, device uuid NOT NULL,
        note text NOT NULL, checked boolean NOT NULL
    );
    CREATE PROCEDURE public.pitser_bench(first bigint, changes bigint, per_transaction bigint)
    LANGUAGE plpgsql AS $$
    DECLARE
        tenth bigint := per_transaction / 10;
    BEGIN
        FOR at IN first .. first + changes - 1 BY tenth * 10 LOOP
            INSERT INTO public.pitser_bench
                SELECT n, {row}
                FROM generate_series(at, at + 6 * tenth - 1) n;
            UPDATE public.pitser_bench SET value = value + 1, checked = NOT checked
                WHERE id >= at AND id < at + 3 * tenth;
            DELETE FROM public.pitser_bench WHERE id >= at + 5 * tenth AND id < at + 6 * tenth;
            COMMIT;
        END LOOP;
    END $$;";

/// Changes in a transaction when the time to the seal is measured.
const PACED: u64 = 50;

/// Between two looks at what others do.
const GLANCE: Duration = Duration::from_millis(50);

fn configuration(args: &Args, authority: &Authority) -> String {
    let text = |text: &str| Value::String(text.into()).to_string();
    format!(
        "[authority]\naggregator = {}\n\
         [guard]\norganisation = \"bench.example\"\ndata = \"pitser-data\"\nlisten = \"127.0.0.1:{}\"\n\
         scan_every_s = 0\n\
         [[source]]\nname = \"bench\"\nkind = \"postgres\"\nurl = {}\ntables = [\"public.pitser_bench\"]\n\
         vault = {}\n[source.patient]\n\"public.pitser_bench\" = \"patient\"\n",
        text(&authority.service()),
        free_port(),
        text(&args.url),
        !args.no_vault
    )
}

/// A port that is free now.
fn free_port() -> u16 {
    let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
    bound.map_or(7070, |address| address.port())
}

/// Debian keeps it out of the PATH.
fn recvlogical() -> OsString {
    let versions = (14..=30).rev();
    let packaged = versions
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin/pg_recvlogical")))
        .find(|path| path.exists());
    packaged.map_or_else(|| "pg_recvlogical".into(), PathBuf::into_os_string)
}

fn query(sql: &mut Connection, text: &str) -> Result<(), Failure> {
    sql.query(text).map(drop).map_err(Failure::service)
}

/// The one value that the server answers.
fn ask(sql: &mut Connection, text: &str) -> Result<String, Failure> {
    let rows = sql.query(text).map_err(Failure::service)?;
    let field: Option<&Field> = rows.first().and_then(|row| row.first());
    let value = field.and_then(Option::as_deref).unwrap_or_default();
    Ok(String::from_utf8_lossy(value).into_owned())
}

/// Bytes of a trail's folder by what they are for.
#[derive(Default)]
struct Disk {
    lines: u64,
    /// Log signatures: the stored hash of each line, and its block's frame.
    hashes: u64,
    vault: u64,
    other: u64,
}

impl Disk {
    fn of(folder: &Path) -> Result<Self, Failure> {
        let mut disk = Self::default();
        disk.add(folder).map_err(Failure::service)?;
        Ok(disk)
    }

    fn add(&mut self, folder: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let (name, of) = (name.to_string_lossy(), folder.to_string_lossy());
            let length = entry.metadata()?.len();
            match () {
                () if path.is_dir() => self.add(&path)?,
                () if name.starts_with("vault") || of.contains("/vault") => self.vault += length,
                () if name.ends_with(".jsonl") => self.lines += length,
                () if name.ends_with(".logsig") || name == "blocks.dat" => self.hashes += length,
                () => self.other += length,
            }
        }
        Ok(())
    }
}
