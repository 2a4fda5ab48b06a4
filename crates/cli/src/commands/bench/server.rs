//! A server of our own, in a process of its own, for as long as it is measured.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::outcome::Failure;

/// One of our commands that serves until this value goes.
pub(super) struct Server {
    child: Child,
    facts: serde_json::Value,
    out: Option<Lines<BufReader<ChildStdout>>>,
}

impl Server {
    /// Starts `command` in `folder`; returns when it has said the first line, which
    /// is about itself.
    pub(super) fn start(folder: &Path, command: &str) -> Result<Self, Failure> {
        let mut server = Self::spawn(ourselves(folder, command)?.stdout(Stdio::piped()))?;
        let greeting = server.out.as_mut().and_then(Iterator::next).transpose();
        let greeting = greeting.map_err(Failure::service)?.unwrap_or_default();
        server.facts = serde_json::from_str(&greeting)
            .map_err(|e| Failure::Service(format!("pitser {command} did not start: {e}")))?;
        Ok(server)
    }

    /// Starts `command` as it is, which says nothing that we need.
    pub(super) fn spawn(command: &mut Command) -> Result<Self, Failure> {
        let mut child = command.spawn().map_err(Failure::service)?;
        let out = child.stdout.take();
        Ok(Self {
            child,
            facts: serde_json::Value::Null,
            out: out.map(|out| BufReader::new(out).lines()),
        })
    }

    /// What it told about itself when it started.
    pub(super) fn text(&self, name: &str) -> &str {
        self.facts[name].as_str().unwrap_or_default()
    }

    /// Processor time it has used, of all its threads.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        let stat = self.read_proc("stat")?;
        // The name, in brackets, may hold anything; utime and stime are the 12th and
        // 13th field behind it, in hundredths of a second.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// The most memory it had resident so far, in bytes.
    pub(super) fn peak_memory(&self) -> Result<u64, Failure> {
        let status = self.read_proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.unwrap_or_default() * 1024)
    }

    /// Sends it a signal, by its name.
    pub(super) fn signal(&self, name: &str) -> Result<(), Failure> {
        let number = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &number]).status();
        match sent.map_err(Failure::service)?.success() {
            true => Ok(()),
            false => Err(Failure::Service(format!("process {number} has ended"))),
        }
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn read_proc(&self, file: &str) -> Result<String, Failure> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(&path)
            .map_err(|e| Failure::Service(format!("cannot read {path}: {e}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `pitser dev`, until this value goes.
pub(super) struct Authority {
    server: Server,
    /// Requests signed in each second, as the server tells; by second.
    rounds: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Authority {
    /// Starts one with its data in `folder`, and with more `options`.
    pub(super) fn start(folder: &Path, options: &str) -> Result<Self, Failure> {
        let command = "dev --json --listen 127.0.0.1:0 --http 127.0.0.1:0 --publish-every 0";
        let mut server = Server::start(folder, &format!("{command}{options}"))?;
        let rounds = Arc::default();
        let (out, told) = (server.out.take(), Arc::clone(&rounds));
        thread::spawn(move || out.map(|lines| listen(lines, &told)));
        Ok(Self { server, rounds })
    }

    /// What it told about itself when it started.
    pub(super) fn text(&self, name: &str) -> &str {
        self.server.text(name)
    }

    /// Where to sign, with credentials.
    pub(super) fn service(&self) -> String {
        format!("ksi+tcp://anon:anon@{}", self.text("tcp"))
    }

    /// The options that make its signatures verify.
    pub(super) fn trust(&self) -> String {
        format!(
            "-P {} --trust {} --constraint {}",
            self.text("publications"),
            self.text("certificate"),
            self.text("constraint")
        )
    }

    /// Requests that it says it signed in `second`.
    pub(super) fn signed_in(&self, second: pitser_ksi::time::Second) -> u64 {
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.get(&second.to_string()).copied().unwrap_or_default()
    }

    /// Its process.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }
}

/// Takes what the server says, so that it never waits for us.
fn listen(lines: Lines<BufReader<ChildStdout>>, rounds: &Mutex<BTreeMap<String, u64>>) {
    for line in lines.map_while(Result::ok) {
        let Ok(facts) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        if let (Some(second), Some(requests)) =
            (facts["second"].as_str(), facts["requests"].as_u64())
        {
            let mut rounds = rounds.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.insert(second.to_owned(), requests);
        }
    }
}

/// One of our commands; words are split at spaces.
pub(super) fn ourselves(folder: &Path, command: &str) -> Result<Command, Failure> {
    let program = std::env::current_exe().map_err(Failure::service)?;
    let mut ours = Command::new(program);
    ours.args(command.split(' '))
        .current_dir(folder)
        .env("TMPDIR", folder)
        .stdin(Stdio::null());
    Ok(ours)
}
