//! A command that is run after each publication: to tell a newspaper, a notary, a
//! mailing list.
//!
//! At least once for each publication, in their order, without holding up anything.
//! `announced` in the data folder has the newest second that a run succeeded for, so
//! that a run that a crash has prevented is made up for at the next start.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pitser_disk::{Access, replace};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::Publicity;
use super::sheet::root;
use crate::publications::PublicationsError;
use crate::running::RoundReport;
use crate::service::Service;
use crate::service::stopping;
use crate::signer::printable;

/// A command that is run after each publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// How long it may take before it is stopped and counts as failed.
    pub timeout: Duration,
}

impl Hook {
    /// That program, which has a minute.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// How the hook is doing, for those who ask.
#[derive(Debug)]
pub(crate) struct HookState(Mutex<Facts>);

#[derive(Debug, Clone, Default)]
struct Facts {
    announced: Second,
    owed: usize,
    succeeded: u64,
    failed: u64,
    trouble: Option<String>,
}

impl HookState {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `/status` tells.
    pub(crate) fn status(&self) -> Value {
        let facts = self.lock();
        let announced = (facts.announced.0 > 0).then(|| facts.announced.to_string());
        json!({
            "announced": announced,
            "owed": facts.owed,
            "succeeded": facts.succeeded,
            "failed": facts.failed,
            "trouble": facts.trouble,
        })
    }

    /// Runs that succeeded, runs that failed, publications that wait for one.
    pub(crate) fn counts(&self) -> (u64, u64, usize) {
        let facts = self.lock();
        (facts.succeeded, facts.failed, facts.owed)
    }
}

/// What was announced, as it stands on disk.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    pub(crate) state: Arc<HookState>,
}

impl Announced {
    /// Reads it. Where there is none, what has been published so far is nobody's
    /// concern: the first hook of an old authority is not run for years of them.
    pub(crate) fn open(dir: &Path, newest: Option<Second>) -> Result<Self, PublicationsError> {
        let path = dir.join(FILE);
        let failed = |action, source| PublicationsError::Io {
            action,
            path: path.clone(),
            source,
        };
        let announced = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Second).map_err(|_| {
                let advice = "it is no number; write the second of the newest publication that was \
                              announced, or remove it if all were";
                failed("read", io::Error::new(ErrorKind::InvalidData, advice))
            })?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let announced = newest.unwrap_or_default();
                write(&path, announced).map_err(|e| failed("write", e))?;
                announced
            }
            Err(e) => return Err(failed("read", e)),
        };
        let facts = Facts {
            announced,
            ..Facts::default()
        };
        Ok(Self {
            path,
            state: Arc::new(HookState(Mutex::new(facts))),
        })
    }
}

fn write(path: &Path, announced: Second) -> io::Result<()> {
    replace(
        path,
        format!("{}\n", announced.0).as_bytes(),
        Access::Everybody,
    )
}

/// Runs the hook while rounds go by, and ends with them.
pub(crate) struct Herald {
    pub(crate) hook: Hook,
    pub(crate) announced: Announced,
    pub(crate) publicity: Arc<Publicity>,
    /// The data folder.
    pub(crate) dir: PathBuf,
    pub(crate) rounds: watch::Receiver<RoundReport>,
    pub(crate) stop: watch::Receiver<bool>,
    /// In a cluster: the node that leads is the one that tells.
    pub(crate) cluster_of: Option<Arc<Service>>,
}

impl Herald {
    pub(crate) async fn run(mut self) {
        let (mut failures, mut retry_at) = (0, Second(0));
        loop {
            let now = self.rounds.borrow_and_update().second;
            let leads = self
                .cluster_of
                .as_ref()
                .is_none_or(|node| node.is_signing());
            if !leads {
                self.leave_to_the_leader();
            }
            while let Some((data, facts)) = self.next().filter(|_| leads && now >= retry_at) {
                let mut stop = self.stop.clone();
                let outcome = tokio::select! {
                    outcome = self.announce(&data, &facts) => outcome,
                    // The run is stopped; it is made up for at the next start.
                    () = stopping(&mut stop) => return,
                };
                match outcome {
                    Ok(()) => failures = 0,
                    Err(fault) => {
                        let wait_s = 1 << failures.min(LONGEST_WAIT_LOG2);
                        (failures, retry_at) = (failures + 1, now.plus(wait_s));
                        self.failed(&data, &fault, wait_s);
                    }
                }
            }
            tokio::select! {
                changed = self.rounds.changed() => if changed.is_err() { return },
                () = stopping(&mut self.stop) => return,
            }
        }
    }

    /// All publications but the newest are somebody else's concern: whether the
    /// leader came to tell of that one cannot be known if it goes.
    fn leave_to_the_leader(&self) {
        let Some(file) = self.publicity.file() else {
            return;
        };
        let told = file.publications().iter().rev().nth(1);
        let Some(told) = told.map(|record| record.data.time) else {
            return;
        };
        let mut state = self.announced.state.lock();
        if state.announced < told && write(&self.announced.path, told).is_ok() {
            state.announced = told;
        }
    }

    /// The oldest publication that was not announced, and what is told of it.
    fn next(&self) -> Option<(PublicationData, Value)> {
        let file = self.publicity.file()?;
        let mut state = self.announced.state.lock();
        let since = state.announced.plus(1);
        let owed = file.publications().iter();
        state.owed = owed.filter(|record| record.data.time >= since).count();
        let data = file.nearest(since)?.data;
        Some((data, self.facts(&data, &file)))
    }

    fn facts(&self, data: &PublicationData, file: &PublicationsFile) -> Value {
        json!({
            "event": "publication",
            "second": data.time.0,
            "time": data.time.to_string(),
            "code": data.to_code(),
            "root": root(data),
            "constraint": self.publicity.issuer.constraint,
            "certificate_sha256": self.publicity.issuer.fingerprint,
            "file": self.dir.join("publications.bin").display().to_string(),
            "publications": file.publications().len(),
        })
    }

    async fn announce(&self, data: &PublicationData, facts: &Value) -> Result<(), Fault> {
        run(&self.hook, facts).await?;
        let (path, at) = (self.announced.path.clone(), data.time);
        tokio::task::spawn_blocking(move || write(&path, at))
            .await
            .map_err(|_| Fault::Forgotten(ErrorKind::Interrupted.into()))?
            .map_err(Fault::Forgotten)?;
        let mut state = self.announced.state.lock();
        state.announced = at;
        state.owed = state.owed.saturating_sub(1);
        state.succeeded += 1;
        state.trouble = None;
        tracing::info!(second = %at, "the hook was told of a publication");
        Ok(())
    }

    fn failed(&self, data: &PublicationData, fault: &Fault, wait_s: u64) {
        let second = data.time;
        tracing::error!(%second, error = %fault, wait_s, "the hook failed; it is tried again");
        let mut state = self.announced.state.lock();
        state.failed += 1;
        state.trouble = Some(format!("publication of {second}: {fault}"));
    }
}

/// Runs the command once. Dropping the future stops it.
async fn run(hook: &Hook, facts: &Value) -> Result<(), Fault> {
    let mut child = start(hook, facts)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let told = format!("{facts}\n");
    let tell = async move {
        if let Some(mut stdin) = stdin {
            // Who does not want to know need not listen.
            let _ = stdin.write_all(told.as_bytes()).await;
        }
    };
    let all = async {
        let (status, (), out, err) = tokio::join!(child.wait(), tell, heard(stdout), heard(stderr));
        log("stdout", &out);
        log("stderr", &err);
        status
    };
    let timeout = hook.timeout;
    let status = tokio::time::timeout(timeout, all)
        .await
        .map_err(|_| Fault::Slow { timeout })?
        .map_err(Fault::NotWaited)?;
    match status.success() {
        true => Ok(()),
        false => Err(Fault::Failed(status.to_string())),
    }
}

fn start(hook: &Hook, facts: &Value) -> Result<Child, Fault> {
    let (program, arguments) = hook.command.split_first().ok_or(Fault::NoProgram)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // The service's own business with its supervisor.
    for name in [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "CREDENTIALS_DIRECTORY",
    ] {
        command.env_remove(name);
    }
    for name in ["second", "time", "code", "root", "constraint", "file"] {
        let value = match &facts[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        command.env(format!("PITSER_PUBLICATION_{}", name.to_uppercase()), value);
    }
    command.spawn().map_err(|source| Fault::NotStarted {
        program: program.clone(),
        source,
    })
}

/// The first part of what a program says; the rest is read and dropped, so that
/// the program is not held up.
async fn heard(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut said = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream)
            .take(MAX_SAID_BYTES)
            .read_to_end(&mut said)
            .await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    said
}

fn log(stream: &'static str, said: &[u8]) {
    for line in said.split(|byte| *byte == b'\n').take(MAX_LINES) {
        if !line.is_empty() {
            tracing::info!(stream, line = printable(line), "the hook says");
        }
    }
}

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the hook's command is empty; name a program")]
    NoProgram,
    #[error("the hook {program} cannot be started: {source}")]
    NotStarted { program: String, source: io::Error },
    #[error("the hook did not end within {} s and was stopped", timeout.as_secs_f32())]
    Slow { timeout: Duration },
    #[error("the hook ended with {0}; the log has what it said")]
    Failed(String),
    #[error("the hook's end was missed: {0}")]
    NotWaited(io::Error),
    #[error("the hook succeeded, but that could not be stored, so it is run again: {0}")]
    Forgotten(io::Error),
}

const FILE: &str = "announced";
/// After 1, 2, 4 and so on, up to 256 seconds it is tried again.
const LONGEST_WAIT_LOG2: u32 = 8;
const MAX_SAID_BYTES: u64 = 16 << 10;
const MAX_LINES: usize = 64;
