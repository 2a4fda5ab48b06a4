//! A hospital's database, an authority, and a guardian between them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pitser_capture::postgres::Config;
use pitser_evidence::line::Line;
use pitser_tlog::VerifierKey;
use pitser_trail::{Keys, Layout, Vault};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::port::free_address;
use crate::common::{Dev, Said, pitser, run};
use crate::harness::Server;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that a guarded database is made of; it ends with this value.
pub(crate) struct World {
    guardian: Option<Guardian>,
    pub(crate) server: Server,
    pub(crate) dev: Dev,
    pub(crate) database: &'static str,
    pub(crate) dir: TempDir,
    listen: u16,
}

impl World {
    /// A server with an empty database of this name, and an authority; `None`
    /// where there is no PostgreSQL.
    pub(crate) fn new(database: &'static str) -> Option<Self> {
        Self::with(database, &[])
    }

    /// As [`World::new`], with these settings of the server.
    pub(crate) fn with(database: &'static str, settings: &[&str]) -> Option<Self> {
        Self::made(database, settings, "")
    }

    /// As [`World::new`], in this encoding.
    pub(crate) fn encoded(database: &'static str, encoding: &str) -> Option<Self> {
        let options =
            format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        Self::made(database, &[], &options)
    }

    fn made(database: &'static str, settings: &[&str], options: &str) -> Option<Self> {
        let server = Server::start(settings, &[])?;
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            guardian: None,
            dev: Dev::start(dir.path(), 1),
            server,
            database,
            listen: free_address().port(),
            dir,
        };
        world.psql_in(
            "postgres",
            "postgres",
            &format!("CREATE DATABASE {database} {options}"),
        );
        Some(world)
    }

    /// The superuser's access to the database.
    pub(crate) fn config(&self) -> Config {
        Config::parse(&self.server.url(self.database)).unwrap()
    }

    /// Waits for something that nobody tells of.
    pub(crate) fn eventually(&self, what: &str, there: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !there(self) {
            assert!(began.elapsed() < PATIENCE, "never {what}");
        }
    }

    /// Writes the configuration, with `source` after what all sources have.
    pub(crate) fn configure(&self, guard: &str, source: &str) {
        // Without column lists, what rules look up has to be guarded whole.
        let source = match self.server.since_15() {
            true => source.to_owned(),
            false => source.replace("\"public.staff\", \"public.journal\"", ""),
        };
        let text = format!(
            "[authority]\naggregator = \"{}\"\npublications = \"{}\"\n\
             [guard]\ndata = \"guard\"\nlisten = \"127.0.0.1:{}\"\norganisation = \"test.example\"\n{guard}\n\
             [[source]]\nname = \"hospital\"\nkind = \"postgres\"\nurl = \"{}\"\n{source}\n",
            self.dev.service,
            self.dev.publications,
            self.listen,
            self.server.url(self.database),
        );
        fs::write(self.dir.path().join("pitser.toml"), text).unwrap();
    }

    /// Runs `pitser ARGS` beside the configuration.
    pub(crate) fn run(&self, args: &str) -> Said {
        run(self.dir.path(), args)
    }

    /// Starts the guardian and waits until it guards.
    pub(crate) fn guard(&mut self) {
        self.guard_with(&[]);
    }

    /// The same with these variables in its environment.
    pub(crate) fn guard_with(&mut self, variables: &[(&str, &str)]) {
        self.guardian = Some(Guardian::start(self.dir.path(), variables));
        self.status_when("guards", |source| source["state"] == "guarding");
    }

    /// Starts the guardian without waiting until it guards.
    pub(crate) fn guard_starting(&mut self) {
        self.guardian = Some(Guardian::start(self.dir.path(), &[]));
    }

    /// The most memory that the guardian had resident so far, in bytes.
    pub(crate) fn guardian_peak(&self) -> u64 {
        let pid = self.guardian.as_ref().unwrap().0.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.unwrap().trim().strip_suffix(" kB").unwrap();
        kilobytes.parse::<u64>().unwrap() << 10
    }

    /// As a power cut would, for the guardian alone.
    pub(crate) fn kill_guardian(&mut self) {
        self.guardian.take().unwrap().kill();
    }

    /// Asks the guardian to stop: everything committed is sealed then.
    pub(crate) fn stop_guardian(&mut self) {
        self.guardian.take().unwrap().stop();
    }

    /// The source's status, once it is as wanted: the running guardian tells of
    /// each change.
    pub(crate) fn status_when(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        status_when(self.dir.path(), self.listen, what, wanted)
    }

    /// Waits for an open finding of this code about this table.
    pub(crate) fn finding(&self, code: &str, table: &str) -> Value {
        let of = |source: &Value| -> Option<Value> {
            let all = source["findings"].as_array()?.iter();
            let mut of = all.filter(|f| f["code"] == code && f["open"] == true);
            of.find(|f| table.is_empty() || f["table"] == table)
                .cloned()
        };
        let status = self.status_when(&format!("finds {code} {table}"), |s| of(s).is_some());
        of(&status).unwrap()
    }

    /// Waits until everything that was committed by now stands in the trail.
    pub(crate) fn settle(&self) {
        let newest = self.psql("postgres", "SELECT pg_current_wal_insert_lsn()");
        // Something that is committed after it, so that the log is flushed.
        self.psql(
            "postgres",
            "SELECT pg_logical_emit_message(true, 'test', '')",
        );
        self.status_when("caught up", |s| {
            lsn(s["position"].as_str().unwrap()) >= lsn(newest.trim())
        });
    }

    /// One full scan; the findings that are open after it. Of tables that cannot be read
    /// there is nothing new in it.
    pub(crate) fn scan(&self) -> Vec<Value> {
        let said = self.run("guard scan --json");
        assert!(said.code < 2 || said.code == 4, "{said:?}");
        let report = said.json();
        let is_partial = report["sources"][0]["unread"][0].is_object();
        assert_eq!(said.code == 4, is_partial && said.code != 1, "{said:?}");
        report["sources"][0]["findings"].as_array().unwrap().clone()
    }

    /// The server's process whose entry in `pg_locks` is so.
    #[track_caller]
    pub(crate) fn pid_that(&self, does: &str, has: &str) -> String {
        let began = Instant::now();
        loop {
            let found = self.psql("postgres", &format!("SELECT pid FROM pg_locks WHERE {has}"));
            if let Ok(pid) = found.trim().parse::<u32>() {
                return pid.to_string();
            }
            assert!(began.elapsed() < PATIENCE, "nobody {does}");
        }
    }

    /// Findings about rows that are open after a scan, in order: `code table key`.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let text = |f: &Value, name: &str| f[name].as_str().unwrap_or_default().to_owned();
        let shown = |f: &Value| {
            let (code, table, key) = (text(f, "code"), text(f, "table"), text(f, "key"));
            format!("{code} {table} {key}")
        };
        let mut wrong: Vec<String> = self.scan().iter().map(shown).collect();
        wrong.sort_unstable();
        wrong
    }

    /// Runs SQL in the hospital's database; what it prints.
    #[track_caller]
    pub(crate) fn psql(&self, role: &str, sql: &str) -> String {
        self.psql_in(self.database, role, sql)
    }

    #[track_caller]
    fn psql_in(&self, database: &str, role: &str, sql: &str) -> String {
        let output = self.psql_output(database, role, "psql", sql);
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A session that goes on until it is dropped, for what holds something.
    pub(crate) fn talk(&self, role: &str) -> Talk {
        let mut client = self.server.client("psql", role);
        let client = client.args(["-qAtX", "-d", self.database]);
        let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
        let words = client.stdin.take();
        Talk { client, words }
    }

    /// The same, as this program.
    #[track_caller]
    pub(crate) fn psql_as(&self, program: &str, role: &str, sql: &str) -> String {
        let output = self.psql_output(self.database, role, program, sql);
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn psql_output(&self, database: &str, role: &str, program: &str, sql: &str) -> Output {
        self.server
            .client("psql", role)
            .env("PGAPPNAME", program)
            .env("PGCLIENTENCODING", "UTF8")
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql])
            .output()
            .unwrap()
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(self.dir.path().join("guard/hospital"))
    }

    /// What an auditor of this trail begins with: the authority, and one witness.
    pub(crate) fn anchors(&self, witness_key: &VerifierKey) -> String {
        let (genesis, hash) = pitser_trail::read::genesis(&self.layout()).unwrap();
        let trust: Vec<&str> = self.dev.trust.split(' ').collect();
        format!(
            "version = 1\nwitness_quorum = 1\n\
             [[trail]]\norigin = \"{}\"\ngenesis = \"{hash}\"\n\
             [[authority]]\ncertificate = \"\"\"\n{}\"\"\"\nconstraints = [\"{}\"]\n\
             [[witness]]\nkey = \"{witness_key}\"\n",
            genesis.genesis.unwrap().origin,
            fs::read_to_string(trust[3]).unwrap(),
            trust[5],
        )
    }

    /// Every line of the trail, recomputed from its files.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let view = pitser_trail::read(&self.layout(), None, |line, _| lines.push(line.clone()));
        view.unwrap();
        lines
    }

    /// The vault, to look into what lines commit to.
    pub(crate) fn vault(&self) -> Vault {
        let keys = Keys::open(&self.layout()).unwrap();
        Vault::open_read_only(&self.layout().vault(), keys.master()).unwrap()
    }
}

/// The status of the guardian that runs in `dir`, once it is as wanted.
pub(crate) fn status_when(
    dir: &Path,
    listen: u16,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let mut stream = TcpStream::connect(("127.0.0.1", listen)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let began = Instant::now();
    let mut last = String::new();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let status: Value = serde_json::from_str(data).unwrap();
        if wanted(&status) {
            return status;
        }
        last = line;
        if began.elapsed() > PATIENCE {
            break;
        }
    }
    let log = fs::read_to_string(dir.join("guard.log")).unwrap();
    panic!("never {what}: {last}\n{log}");
}

/// A guardian process that is certain to end with the test.
/// Somebody who talks to the server.
pub(crate) struct Talk {
    client: Child,
    words: Option<ChildStdin>,
}

impl Talk {
    /// Sends a statement, and does not wait for what comes of it.
    pub(crate) fn says(&mut self, sql: &str) {
        let words = self.words.as_mut().unwrap();
        writeln!(words, "{sql};").unwrap();
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.words.take());
        // It ends with what it was told last.
        let _ = self.client.wait();
    }
}

struct Guardian(Child);

impl Guardian {
    fn start(dir: &Path, variables: &[(&str, &str)]) -> Self {
        let log = fs::File::create(dir.join("guard.log")).unwrap();
        let mut child = pitser(dir)
            .args(["guard", "run"])
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let this = Self(child);
        let log = || fs::read_to_string(dir.join("guard.log")).unwrap();
        assert!(line.starts_with("guarding"), "{line}{}", log());
        this
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn stop(mut self) {
        signal("-TERM", &self.0.id().to_string());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to processes, as `kill` takes both.
pub(crate) fn signal(name: &str, processes: &str) {
    let processes = processes.split_whitespace();
    let sent = Command::new("kill").arg(name).args(processes).status();
    assert!(sent.unwrap().success());
}

/// A position's place in the log.
pub(crate) fn lsn(position: &str) -> u64 {
    let (high, low) = position.split_once('/').unwrap();
    let low = low.split(':').next().unwrap();
    let half = |digits| u64::from_str_radix(digits, 16).unwrap();
    half(high) << 32 | half(low)
}

/// A column's value without its type letter, from what the vault keeps.
pub(crate) fn value(row: &pitser_trail::Row, column: &str) -> String {
    let (_, value) = row.iter().find(|(name, _)| *name == column).unwrap();
    let bytes = value.map_or(&b""[..], |value| &value[1..]);
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A database program's file, if this machine has it.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(path);
    beside.exists().then_some(beside)
}
