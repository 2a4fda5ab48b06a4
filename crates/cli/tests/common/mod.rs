//! Running the built binary as a user or a script does.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

#[path = "../../../trail/tests/common/copy_folder.rs"]
pub(crate) mod copy_folder;
#[path = "../../../authority/tests/common/port.rs"]
pub(crate) mod port;
#[path = "../../../guardian/tests/end_to_end/triggers.rs"]
pub(crate) mod triggers;

use port::free_address;

/// `pitser`, in `dir`, with nothing of our environment that it looks at. What a
/// killed one leaves behind goes away with `dir`.
pub(crate) fn pitser(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pitser"));
    command.current_dir(dir).env("TMPDIR", dir);
    for name in [
        "PITSER_USER",
        "PITSER_KEY",
        "PITSER_TLS_CA",
        "PITSER_LOG",
        "PITSER_LOG_FORMAT",
        "PITSER_AUTHORITY",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ] {
        command.env_remove(name);
    }
    command
}

/// A small generator of choices: the seed tells them all.
pub(crate) struct Choices(pub(crate) u64);

impl Choices {
    /// By the environment's `SEED`, or by chance; says which.
    pub(crate) fn seeded() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a finished run said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it ended by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    /// Asserts the exit code, and that errors are told in our form. Tampering that is
    /// met on the way (1) may be told as an error too.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        let told = self.err.starts_with("pitser: ");
        assert!(code == 1 || told == (code > 2), "{self:?}");
        self
    }

    /// Asserts that output or error output has `part`.
    #[track_caller]
    pub(crate) fn says(self, part: &str) -> Self {
        assert!(
            self.out.contains(part) || self.err.contains(part),
            "no {part:?} in {self:?}"
        );
        self
    }

    /// The one JSON object on the standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Runs `pitser ARGS`; words are split at spaces.
#[track_caller]
pub(crate) fn run(dir: &Path, args: &str) -> Said {
    pitser(dir).args(args.split(' ')).output().unwrap().into()
}

/// The first line that a process says on its standard output, which is piped. Nothing
/// more may be read from it then.
pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// A process that is certain to end with the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Starts it, and returns the first line that it says.
    pub(crate) fn start(dir: &Path, args: &str) -> (Self, String) {
        let mut child = pitser(dir)
            .args(args.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        (Self(child), line)
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The configuration of an authority as its operator runs it.
pub(crate) const AUTHORITY: &str = "auth/authority.toml";

/// Makes an authority in `dir`; where it will listen, also after it was killed, and the
/// key of user `hospital`.
pub(crate) fn found_authority(dir: &Path) -> (String, String) {
    let email = "publications@example.org";
    run(dir, &format!("authority init --dir auth --email {email}")).exits(0);
    let address = free_address().to_string();
    let config = fs::read_to_string(dir.join(AUTHORITY)).unwrap();
    let config = config
        .replace("127.0.0.1:3332", &address)
        .replace("127.0.0.1:8080", &free_address().to_string())
        .replace("monitor = \"127.0.0.1:7090\"", "");
    fs::write(dir.join(AUTHORITY), config).unwrap();
    let added = format!("authority user add hospital --config {AUTHORITY} --json");
    let added = run(dir, &added).exits(0).json();
    (address, added["key"].as_str().unwrap().to_owned())
}

/// Starts it; returns when it listens.
pub(crate) fn start_authority(dir: &Path) -> Process {
    let run = format!("authority run --json --config {AUTHORITY}");
    let (authority, line) = Process::start(dir, &run);
    let facts: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(facts["event"], "listening");
    authority
}

/// An authority on free ports, which ends with this value.
pub(crate) struct Dev {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Address with the usual credentials.
    pub(crate) service: String,
    pub(crate) tcp: String,
    pub(crate) publications: String,
    /// Options that trust its publications file.
    pub(crate) trust: String,
    /// What it said when it began to listen.
    pub(crate) facts: Value,
}

impl Dev {
    /// Publishes every `seconds`.
    pub(crate) fn start(dir: &Path, seconds: u64) -> Self {
        Self::start_with(dir, seconds, "")
    }

    /// The same, with more arguments, each after a space.
    pub(crate) fn start_with(dir: &Path, seconds: u64, more: &str) -> Self {
        let args = format!(
            "dev --json --listen 127.0.0.1:0 --http 127.0.0.1:0 --publish-every {seconds}{more}"
        );
        let mut child = pitser(dir)
            .args(args.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let facts = next_event(&mut lines);
        assert_eq!(facts["event"], "listening");
        let text = |name: &str| facts[name].as_str().unwrap().to_owned();
        let (tcp, publications) = (text("tcp"), text("publications"));
        Self {
            child,
            lines,
            service: format!("ksi+tcp://anon:anon@{tcp}"),
            tcp,
            trust: format!(
                "-P {publications} --trust {} --constraint {}",
                text("certificate"),
                text("constraint")
            ),
            publications,
            facts,
        }
    }

    /// A fact that it said when it began to listen.
    pub(crate) fn fact(&self, name: &str) -> &str {
        self.facts[name].as_str().unwrap()
    }

    /// Kills it at once, as a power cut does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until a second not before `at` is published; returns its code.
    pub(crate) fn published(&mut self, at: &str) -> String {
        loop {
            let event = next_event(&mut self.lines);
            // All instants have one spelling, and sort like their text.
            if event["event"] == "published" && event["second"].as_str().unwrap() >= at {
                return event["code"].as_str().unwrap().to_owned();
            }
        }
    }

    /// Asks it to end, as a service manager does; returns its last words.
    pub(crate) fn stop(mut self) -> (Option<i32>, Value) {
        let killed = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(killed.success());
        let mut last = Value::Null;
        for line in self.lines.by_ref() {
            last = serde_json::from_str(&line.unwrap()).unwrap();
        }
        (self.child.wait().unwrap().code(), last)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn next_event(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = lines.next().expect("it runs").unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// The folder of published vectors.
pub(crate) fn testdata(area: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata")
        .join(area)
}

/// All files below `path`.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        entries
            .flat_map(|entry| files(&entry.unwrap().path()))
            .collect()
    } else {
        vec![path.to_owned()]
    }
}
