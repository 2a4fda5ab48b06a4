//! Findings reach receivers: each that opens, and each that closes, is POSTed
//! as one JSON object (spec 63).
//!
//! In scope: which messages follow from what guardians show and from what was
//! told before (`plan`), their bytes (`message`), when to try again (`pace`),
//! HTTP (`post`), one task for each receiver (`runner`).
//! Elsewhere: what is wrong (`monitor`), who configures it (`cli`).
//!
//! **Invariants.** A guardian never waits for a receiver: what is due is
//! derived from its [`Status`], and nothing is queued. A message counts as told
//! only after the receiver's 2xx, and is remembered durably, so that it is told
//! at least once. Keys of records are sent only to receivers that ask for them;
//! values never. Secrets and tokens in addresses reach neither logs nor errors.

mod message;
mod pace;
mod plan;
mod post;
mod runner;

pub use message::{Secret, SecretError};
pub use pace::Pace;
pub use post::{AlertError, Url, UrlError};

use crate::Clock;
use crate::status::{AlertStatus, Status};
use message::{digest_of, id_of, test_body};
use pitser_ksi::time::Second;
use plan::Choice;
use post::Post;
use runner::{Counts, Phase, Report, Runner};
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// One receiver.
#[derive(Debug, Clone)]
pub struct Alert {
    /// Where messages go.
    pub url: Url,
    /// Signs them.
    pub secret: Option<Secret>,
    /// Patterns of the codes that it wants to hear; `*` stands for any characters.
    pub codes: Vec<String>,
    /// Send the key of the record, in clear.
    pub keys: bool,
    /// PEM file of the authorities that may vouch for the receiver, instead of the machine's.
    pub ca: Option<PathBuf>,
}

impl Alert {
    /// A receiver of everything, without keys and without a signature.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            secret: None,
            codes: vec!["*".into()],
            keys: false,
            ca: None,
        }
    }

    /// How logs, metrics and the status name it: no path, but a digest of it.
    pub fn label(&self) -> String {
        format!("{}#{}", self.url, &self.digest()[..8])
    }

    /// The file that remembers what it was told.
    pub fn memory(&self, data: &Path) -> PathBuf {
        // No source has such a name: theirs hold no full stop.
        data.join(format!("alert-{}.json", &self.digest()[..16]))
    }

    fn digest(&self) -> String {
        digest_of(&[self.url.expose().as_bytes()])
    }

    /// Sends a message of type `test`, once, and gives the status line of the answer.
    ///
    /// # Errors
    /// A sentence that says why it was not delivered, without path or secret.
    pub async fn test(&self, now_us: u64, pace: Pace) -> Result<String, String> {
        let post = self.post(pace).map_err(|e| e.to_string())?;
        let now = second(now_us);
        let id = id_of(&[b"test", &now_us.to_be_bytes()]);
        match post.send(&id, now, test_body(now)).await {
            Ok(status) if status.is_success() => Ok(status.to_string()),
            Ok(status) => Err(format!("it answered {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn post(&self, pace: Pace) -> Result<Post, AlertError> {
        let (url, secret) = (self.url.clone(), self.secret.clone());
        Post::new(url, secret, self.ca.as_deref(), pace.attempt)
    }
}

/// What deliveries need of their surroundings.
#[derive(Clone)]
pub struct Surroundings {
    /// Folder of the files that remember what was told; it must be there.
    pub data: PathBuf,
    /// The time.
    pub clock: Clock,
    /// How patient to be.
    pub pace: Pace,
}

/// Deliveries under way, one task for each receiver.
#[derive(Debug)]
pub struct Alerts {
    runners: JoinSet<()>,
    relay: JoinHandle<()>,
    phase: watch::Sender<Phase>,
    reports: watch::Sender<Vec<Report>>,
    origins: Vec<String>,
    pace: Pace,
}

impl Alerts {
    /// Begins to tell each of `alerts` what `sources` show. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`AlertError`]; nothing is left running.
    pub fn start(
        alerts: &[Alert],
        sources: &[watch::Receiver<Status>],
        around: &Surroundings,
    ) -> Result<Self, AlertError> {
        let posts: Result<Vec<Post>, AlertError> =
            alerts.iter().map(|a| a.post(around.pace)).collect();
        let (phase, _) = watch::channel(Phase::Deliver);
        let (changes, _) = watch::channel(());
        let report = |alert: &Alert| Report {
            endpoint: alert.label(),
            trouble: None,
            counts: vec![Counts::default(); sources.len()],
        };
        let (reports, _) = watch::channel(alerts.iter().map(report).collect::<Vec<_>>());
        let mut runners = JoinSet::new();
        for (index, (alert, post)) in alerts.iter().zip(posts?).enumerate() {
            let runner = Runner::new(runner::Parts {
                index,
                endpoint: alert.label(),
                post,
                choice: Choice::new(alert.codes.clone()),
                keys: alert.keys,
                file: alert.memory(&around.data),
                sources: sources.to_vec(),
                around: around.clone(),
                changes: changes.subscribe(),
                phase: phase.subscribe(),
                reports: reports.clone(),
            });
            runners.spawn(runner.run());
        }
        Ok(Self {
            runners,
            relay: tokio::spawn(relay(sources.to_vec(), changes)),
            phase,
            reports,
            origins: sources.iter().map(|s| s.borrow().origin.clone()).collect(),
            pace: around.pace,
        })
    }

    /// What a guardian shows, and how its findings are delivered besides.
    /// Ends when the guardian does.
    pub fn watch(&self, mut shown: watch::Receiver<Status>) -> watch::Receiver<Status> {
        if self.reports.borrow().is_empty() {
            return shown;
        }
        let origin = shown.borrow().origin.clone();
        let source = self.origins.iter().position(|o| *o == origin);
        let mut reports = self.reports.subscribe();
        let first = both(&mut shown, &mut reports, source);
        let (publish, receiver) = watch::channel(first);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = shown.changed() => if changed.is_err() { return },
                    // They end before the guardian does if this is dropped.
                    Ok(()) = reports.changed() => {}
                    () = publish.closed() => return,
                }
                publish.send_replace(both(&mut shown, &mut reports, source));
            }
        });
        receiver
    }

    /// Delivers what is due, as long as [`Pace::last`] allows, and ends.
    pub async fn stop(mut self) {
        self.phase.send_replace(Phase::Finish);
        let ended = async { while self.runners.join_next().await.is_some() {} };
        if tokio::time::timeout(self.pace.last, ended).await.is_err() {
            self.phase.send_replace(Phase::Halt);
            while self.runners.join_next().await.is_some() {}
        }
    }
}

impl Drop for Alerts {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

/// Tells `changes` of each change of each source.
async fn relay(sources: Vec<watch::Receiver<Status>>, changes: watch::Sender<()>) {
    let mut relays = JoinSet::new();
    for mut source in sources {
        let changes = changes.clone();
        relays.spawn(async move {
            while source.changed().await.is_ok() {
                changes.send_replace(());
            }
        });
    }
    while relays.join_next().await.is_some() {}
    // Runners wait for changes until they are told to stop.
    changes.closed().await;
}

fn both(
    shown: &mut watch::Receiver<Status>,
    reports: &mut watch::Receiver<Vec<Report>>,
    source: Option<usize>,
) -> Status {
    let mut status = shown.borrow_and_update().clone();
    for report in reports.borrow_and_update().iter() {
        let counts = source.and_then(|source| report.counts.get(source));
        let counts = counts.copied().unwrap_or_default();
        status.alerts.push(AlertStatus {
            endpoint: report.endpoint.clone(),
            delivered: counts.delivered,
            failed: counts.failed,
            waiting: counts.waiting,
            trouble: report.trouble.clone(),
        });
        if let (None, Some(trouble)) = (&status.trouble, &report.trouble) {
            status.trouble = Some(format!("alerts to {}: {trouble}", report.endpoint));
        }
    }
    status
}

fn second(us: u64) -> Second {
    Second(us / 1_000_000)
}
