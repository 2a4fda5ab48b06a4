//! A throw-away PostgreSQL 15 on a free loopback port.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pitser_capture::postgres::{Config, Connection};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The superuser's password; with characters that a URL must escape.
const PASSWORD: &str = "p@ss/w:rd õ";

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
            eprintln!("skipped: no PostgreSQL 15 in {BIN}, and apt-get cannot install it");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("pitser-pg-")
            .tempdir()
            .unwrap();
        let owner = owner(dir.path());
        chown(dir.path(), Some(owner.uid), Some(owner.gid)).unwrap();
        let port = free_port();
        let server = Self { dir, port, owner };
        for (name, contents) in files {
            server.write(name, contents);
        }
        server.initialise(settings, hba);
        server.pg_ctl(&["start"]);
        Some(server)
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
        let mut command = Command::new(Path::new(BIN).join(program));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", role)
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null());
        command
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
        Connection::open(&self.config()).unwrap()
    }

    pub(crate) fn replication(&self) -> Connection {
        Connection::open_replication(&self.config()).unwrap()
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
        let path = data.join("postgresql.conf");
        let theirs = fs::read_to_string(&path).unwrap();
        fs::write(&path, theirs + &ours).unwrap();
        let path = data.join("pg_hba.conf");
        let theirs = fs::read_to_string(&path).unwrap();
        fs::write(&path, hba.join("\n") + "\n" + &theirs).unwrap();
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
        let mut command = Command::new(Path::new(BIN).join(name));
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

fn installed() -> bool {
    let there = || Path::new(BIN).join("initdb").exists();
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

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
