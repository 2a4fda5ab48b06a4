//! A throw-away PostgreSQL on a free loopback port: Debian's 15, or the one whose
//! programs are in the folder that `PITSER_TEST_POSTGRES` names
//! (`scripts/postgres-versions.sh` fetches some).

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pitser_capture::postgres::{Config, Connection, Field};
use tempfile::TempDir;

use crate::port::free_address;

/// Where Debian's programs are; its clients serve for servers that come without.
const DEBIAN: &str = "/usr/lib/postgresql/15/bin";

/// The folder of the server's programs, if it is not Debian's.
const CHOSEN: &str = "PITSER_TEST_POSTGRES";

/// The superuser's password; with characters that a URL must escape.
const PASSWORD: &str = "p@ss/w:rd õ";

/// All that is in schemas which are not the system's, one object a row.
const OBJECTS: &str = "
    WITH space AS (SELECT * FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
    kept AS (SELECT c.* FROM pg_class c JOIN space s ON s.oid = c.relnamespace)
    SELECT concat_ws(' ', 'schema', nspname, nspowner, nspacl) FROM space
    UNION ALL SELECT concat_ws(' ', 'relation', oid::regclass, relkind, relpersistence, relreplident,
      relowner, relacl, relrowsecurity, reloptions) FROM kept
    UNION ALL SELECT concat_ws(' ', 'column', a.attrelid::regclass, a.attnum, a.attname,
      format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
      FROM kept c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    UNION ALL SELECT concat_ws(' ', 'index', pg_get_indexdef(indexrelid), indisreplident)
      FROM pg_index i JOIN kept c ON c.oid = i.indrelid
    UNION ALL SELECT concat_ws(' ', 'constraint', conname, pg_get_constraintdef(k.oid))
      FROM pg_constraint k JOIN space s ON s.oid = k.connamespace
    UNION ALL SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), tgenabled)
      FROM pg_trigger t JOIN kept c ON c.oid = t.tgrelid
    UNION ALL SELECT concat_ws(' ', 'function', f.oid::regprocedure, prosrc, prosecdef, proacl, proconfig)
      FROM pg_proc f JOIN space s ON s.oid = f.pronamespace
    UNION ALL SELECT concat_ws(' ', 'policy', c.oid::regclass, polname, polcmd)
      FROM pg_policy p JOIN kept c ON c.oid = p.polrelid
    UNION ALL SELECT concat_ws(' ', 'publication', to_jsonb(p)) FROM pg_publication p
    UNION ALL SELECT concat_ws(' ', 'event trigger', evtname) FROM pg_event_trigger
    ORDER BY 1";

/// A server of our own, stopped when dropped, also by a test that fails.
pub(crate) struct Server {
    dir: TempDir,
    port: u16,
    owner: Owner,
}

/// Whom the server runs as: it refuses to run as root.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Server {
    /// Starts a server with these settings over ours, and these lines first in
    /// `pg_hba.conf`; `None`, said loudly, if there is no PostgreSQL here and
    /// none can be installed.
    pub(crate) fn start(settings: &[&str], hba: &[&str]) -> Option<Self> {
        Self::start_with(settings, hba, &[])
    }

    /// As [`Server::start`], with these files (names and contents) beside the
    /// server's data.
    pub(crate) fn start_with(
        settings: &[&str],
        hba: &[&str],
        files: &[(&str, &str)],
    ) -> Option<Self> {
        if !installed() {
            eprintln!("skipped: no PostgreSQL 15 in {DEBIAN}, and apt-get cannot install it");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("pitser-pg-")
            .tempdir()
            .unwrap();
        let owner = owner(dir.path());
        chown(dir.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        let port = free_address().port();
        let server = Self { dir, port, owner };
        for (name, contents) in files {
            server.write(name, contents);
        }
        server.initialise(settings, hba);
        server.pg_ctl(&["start"]);
        Some(server)
    }

    /// A standby on a copy of this server's files, which follows it with these settings;
    /// this server is stopped for a moment.
    pub(crate) fn standby(&self, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("pitser-pg-")
            .tempdir()
            .unwrap();
        let owner = self.owner;
        chown(dir.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        let port = free_address().port();
        let standby = Self { dir, port, owner };
        self.stop();
        run(Command::new("cp")
            .arg("-a")
            .args([self.data(), standby.data()]));
        self.start_again();
        // A base backup has none either.
        for slot in fs::read_dir(standby.data().join("pg_replslot")).unwrap() {
            fs::remove_dir_all(slot.unwrap().path()).unwrap();
        }
        let primary = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port
        );
        standby.set(&format!(
            "port = {port}\nunix_socket_directories = '{}'\n\
             primary_conninfo = '{primary} password=''{PASSWORD}'''\n{}\n",
            standby.dir().display(),
            settings.join("\n")
        ));
        standby.write("data/standby.signal", "");
        standby.pg_ctl(&["start"]);
        standby
    }

    /// This standby becomes the server that answers where the other one did, which has
    /// stopped.
    pub(crate) fn take_over(&mut self, from: &Self) {
        self.stop();
        self.port = from.port;
        self.set(&format!("port = {}\n", self.port));
        self.pg_ctl(&["start"]);
        self.pg_ctl(&["promote"]);
    }

    /// Adds to the settings.
    fn set(&self, settings: &str) {
        let path = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, before + settings).unwrap();
    }

    /// Stops the server as a power cut would, and starts it again.
    pub(crate) fn crash_and_restart(&self) {
        self.pg_ctl(&["restart", "-m", "immediate"]);
    }

    /// Kills the server and all its processes at once, which cannot do anything about
    /// it; what they had written to files is there.
    pub(crate) fn kill(&self) {
        let written = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let postmaster: u32 = written.lines().next().unwrap().parse().unwrap();
        let mut all = vec![postmaster.to_string()];
        // It makes no more of them meanwhile.
        signal("-STOP", &all);
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        all.extend(children.unwrap().split_whitespace().map(str::to_owned));
        signal("-KILL", &all);
        for process in &all {
            while is_running(process) {
                std::thread::yield_now();
            }
        }
        // By these a new one would take its number for that of a server: nobody may have
        // waited for it, or it may be another process's.
        let socket = format!(".s.PGSQL.{}.lock", self.port);
        for lock in [self.data().join("postmaster.pid"), self.dir().join(socket)] {
            fs::remove_file(lock).unwrap();
        }
    }

    /// Stops the server in an orderly way, and starts it again.
    pub(crate) fn restart(&self) {
        self.pg_ctl(&["restart", "-m", "fast"]);
    }

    pub(crate) fn stop(&self) {
        self.pg_ctl(&["stop", "-m", "fast"]);
    }

    /// The superuser's access.
    pub(crate) fn config(&self) -> Config {
        self.config_of("postgres", "p%40ss%2Fw%3Ard%20%C3%B5")
    }

    /// Somebody's access, with the password as a URL has it.
    pub(crate) fn config_of(&self, user: &str, password: &str) -> Config {
        self.config_with(&format!("{user}:{password}"), "")
    }

    /// Somebody's access, `user:password` or `user`, with options of a URL.
    /// Their paths are meant from [`Server::dir`].
    pub(crate) fn config_with(&self, who: &str, options: &str) -> Config {
        let port = self.port;
        let url = format!("postgres://{who}@127.0.0.1:{port}/postgres?{options}");
        Config::parse_in(&url, self.dir()).unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's unix socket is, and the files beside its data.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file in [`Server::dir`] that the server alone may read.
    pub(crate) fn write(&self, name: &str, contents: &str) {
        let path = self.dir().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(self.owner.uid), Some(self.owner.gid)).unwrap();
    }

    /// The superuser's URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        let port = self.port;
        format!("postgres://postgres:p%40ss%2Fw%3Ard%20%C3%B5@127.0.0.1:{port}/{database}")
    }

    /// One of PostgreSQL's own programs, connected as this role; the password
    /// of all roles is the superuser's.
    pub(crate) fn client(&self, program: &str, role: &str) -> Command {
        let beside = bin().join(program);
        let mut command = Command::new(match beside.exists() {
            true => beside,
            false => Path::new(DEBIAN).join(program),
        });
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", role)
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null());
        command
    }

    /// A database without its rows, as `pg_dump` writes it. One that is older than the
    /// server refuses; then, said loudly, what the catalogue says of everybody's objects.
    pub(crate) fn schema(&self, database: &str) -> String {
        let mut dump = self.client("pg_dump", "postgres");
        let dump = dump.args(["--schema-only", database]).output().unwrap();
        if dump.status.success() {
            let dump = String::from_utf8(dump.stdout).unwrap();
            // Two lines hold a random word, so that no restore can be misled.
            let lines = dump
                .lines()
                .filter(|l| !l.starts_with("\\restrict ") && !l.starts_with("\\unrestrict "));
            return lines.map(|line| format!("{line}\n")).collect();
        }
        let refusal = String::from_utf8_lossy(&dump.stderr);
        let version = self.version();
        assert!(
            version > 15 && refusal.contains("server version mismatch"),
            "{refusal}"
        );
        eprintln!("skipped: pg_dump cannot read PostgreSQL {version}; the catalogue is compared");
        let mut sql = Connection::open(&Config::parse(&self.url(database)).unwrap()).unwrap();
        let rows = sql.query(OBJECTS).unwrap();
        assert!(!rows.is_empty());
        let text = |row: &Vec<Field>| String::from_utf8(row[0].as_ref().unwrap().to_vec()).unwrap();
        rows.iter().map(|row| text(row) + "\n").collect()
    }

    /// Starts a server that was stopped, or whose postmaster was killed: its children
    /// may hold its memory for a moment more, and until then it refuses to start.
    pub(crate) fn start_again(&self) {
        for _ in 0..100 {
            let before = self.log().len();
            if self.control(&["start"]).status().unwrap().success() {
                return;
            }
            let log = self.log();
            assert!(log[before..].contains("is still in use"), "start: {log}");
        }
        panic!("its children do not end: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn sql(&self) -> Connection {
        Connection::open_application(&self.config()).unwrap()
    }

    pub(crate) fn replication(&self) -> Connection {
        Connection::open_replication(&self.config()).unwrap()
    }

    /// The server's major version, as in `15`.
    pub(crate) fn version(&self) -> u32 {
        let version = fs::read_to_string(self.data().join("PG_VERSION")).unwrap();
        version.trim().parse().unwrap()
    }

    /// Whether it is 15 or newer: with column lists and row filters in publications, and `MERGE`.
    pub(crate) fn since_15(&self) -> bool {
        self.version() >= 15
    }

    /// The function that writes a logical message with this content, `text` or `bytea`.
    pub(crate) fn emitter(&self, content: &str) -> String {
        let flush = if self.version() >= 17 {
            ", boolean"
        } else {
            ""
        };
        format!("pg_logical_emit_message(boolean, text, {content}{flush})")
    }

    /// The folder of the server's files.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn initialise(&self, settings: &[&str], hba: &[&str]) {
        let (password, data) = (self.dir.path().join("password"), self.data());
        fs::write(&password, PASSWORD).unwrap();
        let mut initdb = self.command("initdb");
        initdb
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ])
            .args(["--locale=C.UTF-8", "--no-sync"])
            .args(self.without_checksums())
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data);
        run(&mut initdb);
        let sockets = self.dir().display();
        let ours = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{sockets}'\n\
             wal_level = logical\nfsync = on\nmax_wal_senders = 5\n{}\n",
            self.port,
            settings.join("\n")
        );
        self.set(&ours);
        let path = data.join("pg_hba.conf");
        let theirs = fs::read_to_string(&path).unwrap();
        fs::write(&path, hba.join("\n") + "\n" + &theirs).unwrap();
    }

    /// As it was the default before 18: tests edit pages, and whoever does that with
    /// intent mends the checksum, too.
    fn without_checksums(&self) -> Option<&'static str> {
        let version = self
            .command("initdb")
            .arg("--version")
            .stdout(Stdio::piped())
            .output();
        let version = String::from_utf8(version.unwrap().stdout).unwrap();
        let major = version
            .rsplit(' ')
            .next()
            .and_then(|number| number.split('.').next());
        (major.unwrap().parse::<u32>().unwrap() >= 18).then_some("--no-data-checksums")
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let started = self.control(arguments).status().unwrap();
        let log = self.log();
        assert!(started.success(), "{arguments:?}: {started}\n{log}");
    }

    fn control(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("pg_ctl");
        command
            .args(arguments)
            .arg("-w")
            .arg("-D")
            .arg(self.data())
            .arg("-l")
            .arg(self.dir.path().join("log"));
        command
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(bin().join(name));
        command
            .uid(self.owner.uid)
            .gid(self.owner.gid)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By the process number that the server itself wrote down.
        // That there is none left is no failure: a test may have stopped it.
        let mut stop = self.control(&["stop", "-m", "immediate"]);
        let _ = stop.stderr(Stdio::null()).status();
    }
}

/// Sends all of them a signal; some may have ended by themselves.
fn signal(signal: &str, processes: &[String]) {
    let mut kill = Command::new("kill");
    kill.arg(signal).args(processes).stderr(Stdio::null());
    let _ = kill.status();
}

/// Whether there is a process of this number that has not ended.
fn is_running(process: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat"));
    // Nobody may have waited for it yet: `Z`.
    status.is_ok_and(|status| !status.contains(") Z ") && !status.contains(") X "))
}

/// Where the server's programs are.
fn bin() -> PathBuf {
    std::env::var_os(CHOSEN).map_or_else(|| DEBIAN.into(), PathBuf::from)
}

/// A folder that was asked for and is not there is a failure, not a reason to skip.
fn installed() -> bool {
    let bin = bin();
    let there = || bin.join("initdb").exists();
    let is_chosen = std::env::var_os(CHOSEN).is_some();
    assert!(
        there() || !is_chosen,
        "{CHOSEN}: there is no initdb in {}",
        bin.display()
    );
    there() || {
        // Fails for all but root, which is as it should be.
        let install = ["install", "-y", "--no-install-recommends", "postgresql-15"];
        let _ = Command::new("apt-get")
            .args(install)
            .stdin(Stdio::null())
            .status();
        there()
    }
}

/// The user `postgres` if we are root, otherwise ourselves.
fn owner(ours: &Path) -> Owner {
    let metadata = fs::metadata(ours).unwrap();
    let ourselves = Owner {
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    if ourselves.uid != 0 {
        return ourselves;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("the package makes this user");
    let number = |place: usize| line.split(':').nth(place).unwrap().parse().unwrap();
    Owner {
        uid: number(2),
        gid: number(3),
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
