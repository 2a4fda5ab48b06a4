//! One receiver's task: finds what is due, sends it, remembers it.

use super::message::Kind;
use super::pace::Health;
use super::plan::{Choice, Event, Memory, Sight, due};
use super::post::{Post, PostError};
use super::{Surroundings, second};
use crate::status::Status;
use hyper::StatusCode;
use pitser_trail::disk::DiskError;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Going on.
    Deliver,
    /// Stopping: end when nothing is due.
    Finish,
    /// End now.
    Halt,
}

/// What an attempt failed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// What was sent, as a rule.
    Message,
    /// It may have been that.
    Any,
    /// There was no connection: nothing was sent.
    Connection,
}

impl Fault {
    fn of_answer(status: StatusCode) -> Self {
        let is_of_time = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        match status.is_client_error() && !is_of_time.contains(&status) {
            true => Self::Message,
            false => Self::Any,
        }
    }

    fn of(error: &PostError) -> Self {
        match error.is_before_sending() {
            true => Self::Connection,
            false => Self::Any,
        }
    }
}

/// So many times a message is refused, or sent in vain however that may be, before every
/// other attempt leaves out what others chose: whoever names things in a database could
/// hold up all that comes after.
const REFUSALS: u32 = 3;
const FAILURES: u32 = 8;

/// How one message has fared.
#[derive(Default)]
struct Tries {
    refusals: u32,
    failures: u32,
    /// The next attempt leaves out what others chose.
    is_bare: bool,
}

impl Tries {
    fn failed(&mut self, fault: Fault) {
        if fault == Fault::Connection {
            return;
        }
        self.refusals = self
            .refusals
            .saturating_add(u32::from(fault == Fault::Message));
        self.failures = self.failures.saturating_add(1);
        let is_doubtful = self.refusals >= REFUSALS || self.failures >= FAILURES;
        self.is_bare = is_doubtful && !self.is_bare;
    }
}

/// How one receiver is doing.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) endpoint: String,
    pub(super) trouble: Option<String>,
    /// Of each source.
    pub(super) counts: Vec<Counts>,
}

/// Since the start of the process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) delivered: u64,
    pub(super) failed: u64,
    pub(super) waiting: u64,
}

/// What a runner is made of.
pub(super) struct Parts {
    pub(super) index: usize,
    pub(super) endpoint: String,
    pub(super) post: Post,
    pub(super) choice: Choice,
    pub(super) keys: bool,
    pub(super) file: PathBuf,
    pub(super) sources: Vec<watch::Receiver<Status>>,
    pub(super) around: Surroundings,
    pub(super) changes: watch::Receiver<()>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) reports: watch::Sender<Vec<Report>>,
}

pub(super) struct Runner {
    parts: Parts,
    memory: Memory,
    sources: Vec<Source>,
    health: Health,
    store: Store,
}

/// One watched source.
struct Source {
    status: watch::Receiver<Status>,
    sight: Sight,
    is_seen: bool,
    /// When its status counts as settled although nothing new came.
    settled_at: Option<Instant>,
}

impl Source {
    fn new(status: watch::Receiver<Status>) -> Self {
        Self {
            status,
            sight: Sight::default(),
            is_seen: false,
            settled_at: None,
        }
    }

    /// Takes what is shown now, if there is more to learn from it.
    fn observe(&mut self, memory: &mut Memory) {
        // An error says that the guardian is gone; what it said last stays.
        let is_new = !self.is_seen || self.status.has_changed().unwrap_or(false);
        let is_settled = self.settled_at.is_some_and(|at| at <= Instant::now());
        if !is_new && !is_settled {
            return;
        }
        let status = self.status.borrow_and_update();
        self.sight.observe(&status);
        memory.tidy(&status);
        self.is_seen = true;
        self.settled_at = self.sight.is_fresh().then(|| Instant::now() + SETTLE);
    }
}

/// What became of a message.
enum Outcome {
    Delivered,
    /// The receiver wants no more.
    Gone,
}

impl Runner {
    pub(super) fn new(parts: Parts) -> Self {
        let (store, memory) = Store::open(parts.file.clone(), parts.endpoint.clone());
        Self {
            memory,
            sources: parts.sources.iter().cloned().map(Source::new).collect(),
            health: Health::default(),
            store,
            parts,
        }
    }

    /// Runs until the process stops, or the receiver wants no more.
    pub(super) async fn run(mut self) {
        let mut phase = self.parts.phase.clone();
        tokio::select! {
            () = self.deliver_all() => {}
            // An error means that nobody is left who could want more.
            _ = phase.wait_for(|phase| *phase == Phase::Halt) => {}
        }
        self.store.keep(&self.memory).await;
    }

    async fn deliver_all(&mut self) {
        loop {
            // Before looking, so that what changes meanwhile is looked at again.
            let stopping = *self.parts.phase.borrow_and_update() != Phase::Deliver;
            self.parts.changes.borrow_and_update();
            let batch = self.look(BATCH);
            if batch.is_empty() {
                self.store.keep(&self.memory).await;
                if stopping {
                    return;
                }
                let settled_at = self.sources.iter().filter_map(|s| s.settled_at).min();
                let settled_at = settled_at.unwrap_or_else(Instant::now);
                let is_settling = self.sources.iter().any(|s| s.settled_at.is_some());
                tokio::select! {
                    Ok(()) = self.parts.changes.changed() => {}
                    ended = self.parts.phase.changed() => if ended.is_err() { return },
                    () = sleep_until(settled_at), if is_settling => {}
                }
                continue;
            }
            for event in batch {
                match self.deliver(&event).await {
                    Outcome::Delivered => self.store.keep_sometimes(&self.memory).await,
                    Outcome::Gone => return,
                }
            }
        }
    }

    /// What is due now, of each source at most `limit`; counts all of it.
    fn look(&mut self, limit: usize) -> Vec<Event> {
        let now = second((self.parts.around.clock)());
        let mut events = Vec::new();
        let mut waiting = Vec::new();
        for (index, source) in self.sources.iter_mut().enumerate() {
            source.observe(&mut self.memory);
            let status = source.status.borrow();
            let about = (index, &*status, &source.sight);
            let due = due(&self.memory, about, &self.parts.choice, now, limit);
            waiting.push(due.count);
            events.extend(due.events);
        }
        self.report(|report| {
            let mut is_news = false;
            for (counts, waiting) in report.counts.iter_mut().zip(waiting) {
                is_news |= std::mem::replace(&mut counts.waiting, waiting) != waiting;
            }
            is_news
        });
        events
    }

    /// Sends one message until the receiver takes it.
    async fn deliver(&mut self, event: &Event) -> Outcome {
        let body = event.body(self.parts.keys);
        let (mut tries, mut failures) = (Tries::default(), 0);
        loop {
            let now = second((self.parts.around.clock)());
            let body = match tries.is_bare {
                true => event.bare_body(),
                false => body.clone(),
            };
            let (fault, why) = match self.parts.post.send(&event.id, now, body).await {
                Ok(status) if status.is_success() => {
                    self.delivered(event);
                    return Outcome::Delivered;
                }
                Ok(StatusCode::GONE) => {
                    self.gone();
                    return Outcome::Gone;
                }
                Ok(status) => (Fault::of_answer(status), format!("it answered {status}")),
                Err(error) => (Fault::of(&error), error.to_string()),
            };
            tries.failed(fault);
            failures += 1;
            self.failed(event, &why);
            let wait = self.parts.around.pace.back_off(failures, chance());
            self.rest(wait).await;
        }
    }

    fn delivered(&mut self, event: &Event) {
        self.memory.tell(event);
        self.health.delivered();
        self.report(|report| {
            report.trouble = None;
            let counts = &mut report.counts[event.source];
            counts.delivered += 1;
            counts.waiting = counts.waiting.saturating_sub(1);
            true
        });
        let kind = match event.kind {
            Kind::Opened => "opened",
            Kind::Closed => "closed",
            Kind::Accepted => "accepted",
            Kind::More => "more",
            Kind::NoMore => "no more",
        };
        tracing::debug!(endpoint = %self.parts.endpoint, id = %event.id, kind, "alert delivered");
    }

    fn failed(&mut self, event: &Event, why: &str) {
        let now_us = (self.parts.around.clock)();
        if self.health.failed(now_us) {
            tracing::warn!(endpoint = %self.parts.endpoint, "alerts are not delivered: {why}. They are tried again until they are");
        }
        let trouble = self.health.is_trouble(now_us).then(|| why.to_owned());
        self.report(|report| {
            report.trouble = trouble;
            report.counts[event.source].failed += 1;
            true
        });
    }

    fn gone(&mut self) {
        let why = "it answered 410 Gone: nothing more is sent to it until the next start";
        tracing::warn!(endpoint = %self.parts.endpoint, "alerts have ended: {why}. Take it out of the configuration, or correct its address");
        self.report(|report| {
            report.trouble = Some(why.into());
            true
        });
    }

    /// Waits before the next attempt, and keeps the count of what waits up to
    /// date. A stopping process has no patience.
    async fn rest(&mut self, wait: Duration) {
        self.store.keep(&self.memory).await;
        let stopping = *self.parts.phase.borrow_and_update() != Phase::Deliver;
        let wait = match stopping {
            true => wait.min(HASTE),
            false => wait,
        };
        let until = Instant::now() + wait;
        loop {
            self.look(0);
            let pause = until.min(Instant::now() + COUNT_EVERY);
            tokio::select! {
                () = sleep_until(pause) => if pause == until { return },
                _ = self.parts.phase.changed() => return,
            }
        }
    }

    /// Changes what is shown of this receiver; `change` says whether it did.
    fn report(&self, change: impl FnOnce(&mut Report) -> bool) {
        self.parts
            .reports
            .send_if_modified(|reports| change(&mut reports[self.parts.index]));
    }
}

/// The file, written on a thread that may wait for the disk.
struct Store {
    file: PathBuf,
    endpoint: String,
    /// What the file holds, as far as it is known.
    kept: Option<Memory>,
    kept_at: Instant,
    /// What is being written; still there if whoever waited for it was dropped.
    writing: Option<(Memory, JoinHandle<Result<(), DiskError>>)>,
    is_failing: bool,
}

impl Store {
    /// What is remembered; nothing if there is no file, or none that can be read.
    fn open(file: PathBuf, endpoint: String) -> (Self, Memory) {
        let kept = match std::fs::read(&file) {
            Ok(bytes) => Memory::decode(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Memory::default()),
            Err(error) => Err(error.to_string()),
        };
        let kept = kept.inspect_err(|error| {
            let file = file.display();
            tracing::error!(%endpoint, "{file}: what was alerted is forgotten, and told again: {error}");
        });
        let kept = kept.ok();
        let memory = kept.clone().unwrap_or_default();
        let store = Self {
            file,
            endpoint,
            kept,
            kept_at: Instant::now(),
            writing: None,
            is_failing: false,
        };
        (store, memory)
    }

    /// While much is delivered, a write now and then will do: what a crash
    /// forgets is told once more, under the same id.
    async fn keep_sometimes(&mut self, memory: &Memory) {
        if self.kept_at.elapsed() >= KEEP_EVERY {
            self.keep(memory).await;
        }
    }

    /// Makes `memory` durable, unless it is already.
    async fn keep(&mut self, memory: &Memory) {
        self.finish().await;
        if self.kept.as_ref() == Some(memory) {
            return;
        }
        self.kept_at = Instant::now();
        let (file, bytes) = (self.file.clone(), memory.encode());
        let write = move || pitser_trail::disk::replace(&file, &bytes);
        self.writing = Some((memory.clone(), tokio::task::spawn_blocking(write)));
        self.finish().await;
    }

    async fn finish(&mut self) {
        let Some((_, writing)) = &mut self.writing else {
            return;
        };
        let written = writing.await;
        let memory = self.writing.take().map(|(memory, _)| memory);
        match written {
            Ok(Ok(())) => {
                self.kept = memory;
                self.is_failing = false;
            }
            Ok(Err(error)) => self.warn(&error.to_string()),
            Err(error) => self.warn(&error.to_string()),
        }
    }

    /// Once, until it succeeds: it is tried again with each change.
    fn warn(&mut self, error: &str) {
        if !self.is_failing {
            tracing::warn!(endpoint = %self.endpoint, "what was alerted cannot be remembered, and would be told again after a restart: {error}");
        }
        self.is_failing = true;
    }
}

/// Randomness for waits; without any, the longest one.
fn chance() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::getrandom(&mut bytes) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(_) => u64::MAX,
    }
}

/// A guardian shows the time of a scan this much before its findings, at most.
const SETTLE: Duration = Duration::from_secs(1);
/// Messages found at a time.
const BATCH: usize = 256;
/// A stopping process waits no longer before the next attempt.
const HASTE: Duration = Duration::from_millis(250);
/// While waiting, what is due is counted this often.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// In a long row of deliveries, what was told is written this often.
const KEEP_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the attempts after these faults are bare.
    fn bare(faults: impl IntoIterator<Item = Fault>) -> Vec<bool> {
        let mut tries = Tries::default();
        let after = |fault| {
            tries.failed(fault);
            tries.is_bare
        };
        faults.into_iter().map(after).collect()
    }

    #[test]
    fn every_other_attempt_is_bare_after_some_refusals_or_more_failures() {
        use Fault::{Any, Connection, Message};
        let refused = bare([Message, Message, Message, Message, Message]);
        assert_eq!(refused, [false, false, true, false, true]);
        // Whatever the answers are from then on.
        let mixed = bare([Message, Any, Message, Message, Any, Any, Message]);
        assert_eq!(mixed, [false, false, false, true, false, true, false]);
        let failed = bare([Any; 10]);
        assert_eq!(failed[..7], [false; 7]);
        assert_eq!(failed[7..], [true, false, true]);
        // A receiver that falls over has to come up before it can take the bare one.
        let mut falls = vec![Any; 8];
        falls.extend([Connection, Connection, Any]);
        assert_eq!(bare(falls)[7..], [true, true, true, false]);
        assert_eq!(bare([Connection; 20]), [false; 20]);
    }
}
