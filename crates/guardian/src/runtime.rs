//! The thread that owns a source and its trail.

use crate::Clock;
use crate::config::{Source, Tuning};
use crate::init::{self, InitError};
use crate::patients::Patients;
use crate::sealer::{self, Outcome, Wanted};
use crate::status::{BlockStatus, FindingStatus, Latency, SourceState, Status};
use crate::translate::{self, Resolved, text_key};
use pitser_capture::event::{Captured, Change};
use pitser_capture::fhir::{self, FhirError};
use pitser_capture::sqlite::{Drift, Fingerprint, SqliteError, SqliteSource};
use pitser_client::Client;
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{LineNonce, commit_row};
use pitser_evidence::line::{Ddl, Finding as LineFinding, Gap, Line, Op, Patient, Timestamp};
use pitser_ksi::time::Second;
use pitser_monitor::{Expected, Finding, Incidents, Look, ScanTable, Touched, key_cells};
use pitser_trail::{Body, Draft, PatientId, Trail, TrailError};
use pitser_witness::{Peer, SubmitError as CosignError};
use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often the database is asked whether anything was committed.
const POLL: Duration = Duration::from_millis(20);
/// Outbox rows taken at a time.
const BATCH: usize = 200;
/// Rows of a baseline written before they are made durable.
const BASELINE_CHUNK: usize = 500;
/// Lines after which a block is closed without waiting for the second's end.
const BLOCK_LINES: usize = pitser_trail::MAX_BLOCK_LINES - 1000;
/// Latencies and blocks remembered for the status.
const LATENCIES: usize = 10_000;
const RECENT: usize = 20;
const SECOND_US: u64 = 1_000_000;

/// Everything a guardian is made of.
pub struct Parts {
    /// What to guard.
    pub source: Source,
    /// How.
    pub tuning: Tuning,
    /// Who seals; without one, blocks stay unsealed.
    pub client: Option<Client>,
    /// Who cosigns heads.
    pub witnesses: Vec<Peer>,
    /// The time.
    pub clock: Clock,
}

/// Why a guardian did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The source is not prepared, or its configuration does not fit it.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The database.
    #[error(transparent)]
    Database(#[from] SqliteError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// The thread could not be made.
    #[error("no thread for the guardian: {0}")]
    Thread(std::io::Error),
}

/// Why an audit event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is none: sending it again will not help.
    #[error(transparent)]
    Refused(#[from] FhirError),
    /// It is not durable: send it again later.
    #[error("the trail cannot take it now: {0}")]
    Unavailable(String),
}

/// What became of a submitted event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its opaque id in the trail.
    pub id: String,
    /// The same bytes had been taken before.
    pub known: bool,
    /// Lines written for it.
    pub lines: usize,
    /// Where it breaks the IHE profile.
    pub profile_violations: Vec<String>,
}

/// The outcome of one full scan.
#[derive(Debug, Clone)]
pub struct ScanSummary {
    /// Rows compared.
    pub rows: u64,
    /// What is wrong now.
    pub findings: Vec<FindingStatus>,
}

enum Command {
    Submit { raw: Vec<u8>, reply: oneshot::Sender<Result<Receipt, SubmitError>> },
    Scan { reply: oneshot::Sender<Result<ScanSummary, String>> },
    Settle { reply: oneshot::Sender<Result<u64, String>> },
    Seal(Outcome),
    /// A pass wants to know what the trail expects of these records.
    Expect { pass: u64, table: String, records: Vec<Bytes32>, reply: Sender<Vec<Expected>> },
    /// A pass has ended.
    Looked { pass: u64, seen: Result<Option<Look>, SqliteError> },
    Stop { reply: oneshot::Sender<()> },
}

/// Starts guardians.
pub struct Guardian;

impl Guardian {
    /// Opens source and trail, and starts the thread that owns them. The
    /// database must have been prepared by [`init::install`].
    ///
    /// Must be called inside a tokio runtime, which carries the requests for seals.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(parts: Parts) -> Result<Handle, StartError> {
        let (commands, inbox) = channel();
        let (publish, status) = watch::channel(Status {
            name: parts.source.name.clone(),
            origin: parts.tuning.origin(&parts.source),
            ..Status::default()
        });
        let seals = parts.client.clone().map(|client| {
            let (wanted, requests) = mpsc::unbounded_channel();
            let back = commands.clone();
            tokio::spawn(sealer::run(client, requests, move |outcome| {
                // The guardian is gone only when the process ends.
                let _ = back.send(Command::Seal(outcome));
            }));
            wanted
        });
        let mut worker = Worker { parts, commands: commands.clone(), pass: 0, seals, inbox, publish, delayed: None, uncosigned: None, unscanned: None };
        let session = Session::open(&mut worker)?;
        std::thread::Builder::new()
            .name(format!("guard-{}", worker.parts.source.name))
            .spawn(move || worker.run(session))
            .map_err(StartError::Thread)?;
        Ok(Handle { commands, status })
    }
}

/// A running guardian, for everything outside its thread.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    status: watch::Receiver<Status>,
}

impl Handle {
    /// How things stand.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Completes with the first status that `wanted` accepts; `None` if the
    /// guardian stops before.
    pub async fn wait_for(&self, wanted: impl FnMut(&Status) -> bool) -> Option<Status> {
        self.status.clone().wait_for(wanted).await.ok().map(|s| s.clone())
    }

    /// A receiver that is told of each change.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Takes one FHIR `AuditEvent`; completes when it is durable in the trail.
    ///
    /// # Errors
    /// [`SubmitError`] says whether sending it again makes sense.
    pub async fn submit(&self, raw: Vec<u8>) -> Result<Receipt, SubmitError> {
        let stopped = || SubmitError::Unavailable("the guardian has stopped".into());
        self.ask(|reply| Command::Submit { raw, reply }).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Compares all live rows with the trail now.
    ///
    /// # Errors
    /// A sentence that says what could not be read.
    pub async fn scan(&self) -> Result<ScanSummary, String> {
        self.ask(|reply| Command::Scan { reply }).await.unwrap_or_else(|| Err("the guardian has stopped".into()))
    }

    /// Takes everything committed so far, and completes when it is sealed and
    /// its head cosigned. Gives the number of blocks under that head.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub async fn settle(&self) -> Result<u64, String> {
        self.ask(|reply| Command::Settle { reply }).await.unwrap_or_else(|| Err("the guardian has stopped".into()))
    }

    /// Takes what was committed so far, closes the open block and stops.
    pub async fn stop(&self) {
        let _ = self.ask(|reply| Command::Stop { reply }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).ok()?;
        answer.await.ok()
    }
}

/// What outlives a session: the thread's own things.
struct Worker {
    parts: Parts,
    /// For threads that report back.
    commands: Sender<Command>,
    /// Number of the newest pass over the live rows.
    pass: u64,
    seals: Option<mpsc::UnboundedSender<Wanted>>,
    inbox: Receiver<Command>,
    publish: watch::Sender<Status>,
    /// Why the oldest unsealed block still waits.
    delayed: Option<String>,
    /// Why the newest head is not cosigned.
    uncosigned: Option<String>,
    /// Why the last pass over the live rows came to nothing.
    unscanned: Option<String>,
}

impl Worker {
    fn run(mut self, session: Session) {
        let mut session = Some(session);
        let mut wait = Duration::from_millis(200);
        loop {
            let ended = match session.take() {
                Some(mut open) => open.run(&mut self),
                None => match Session::open(&mut self) {
                    Ok(open) => {
                        wait = Duration::from_millis(200);
                        session = Some(open);
                        continue;
                    }
                    Err(error) => Ended::Failed(error),
                },
            };
            match ended {
                Ended::Stopped => {
                    self.publish.send_modify(|s| s.state = SourceState::Stopped);
                    return;
                }
                Ended::Failed(error) => {
                    tracing::error!(source = %self.parts.source.name, error = %error, "guarding is interrupted");
                    self.show_trouble(&error);
                    if self.idle(wait) {
                        return;
                    }
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    fn show_trouble(&self, error: &StartError) {
        let state = match error {
            StartError::Database(_) | StartError::Init(_) | StartError::Thread(_) => SourceState::DatabaseUnavailable,
            StartError::Trail(TrailError::Read(pitser_trail::ReadError::Damaged(_))) => SourceState::Damaged,
            StartError::Trail(_) => SourceState::TrailUnavailable,
        };
        self.publish.send_modify(|s| {
            s.state = state;
            s.trouble = Some(error.to_string());
        });
    }

    /// Waits before the next attempt, refusing what cannot be done meanwhile;
    /// `true` if told to stop.
    fn idle(&self, wait: Duration) -> bool {
        let trouble = || self.publish.borrow().trouble.clone().unwrap_or_default();
        let until = std::time::Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Command::Submit { reply, .. }) => drop(reply.send(Err(SubmitError::Unavailable(trouble())))),
                Ok(Command::Scan { reply }) => drop(reply.send(Err(trouble()))),
                Ok(Command::Settle { reply }) => drop(reply.send(Err(trouble()))),
                Ok(Command::Seal(_) | Command::Expect { .. } | Command::Looked { .. }) => {}
                Ok(Command::Stop { reply }) => {
                    let _ = reply.send(());
                    return true;
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

enum Ended {
    Stopped,
    Failed(StartError),
}

impl<E: Into<StartError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What every line of the trail is asked for when it is opened.
#[derive(Default)]
struct Collected {
    position: u64,
    genesis_position: u64,
    live: bool,
    events: u64,
    messages: HashSet<String>,
    findings: Vec<Line>,
    fingerprint: Option<Digest>,
}

impl Collected {
    fn line(&mut self, line: &Line) {
        let pos = line.pos.parse::<u64>().ok();
        match line.op {
            Op::Read => {
                self.messages.insert(line.pos.clone());
            }
            Op::Genesis => self.genesis_position = pos.unwrap_or(0),
            Op::Live => self.live = true,
            Op::Finding => self.findings.push(line.clone()),
            Op::Ddl => self.fingerprint = line.ddl.as_ref().map(|d| d.after),
            _ => {}
        }
        if let (false, Some(pos)) = (line.op == Op::Read, pos) {
            self.position = self.position.max(pos);
        }
        self.events += u64::from(!matches!(line.op, Op::Checkpoint | Op::Genesis | Op::Live));
    }
}

/// One stretch of guarding between two failures.
struct Session {
    source: SqliteSource,
    trail: Trail,
    patients: Patients,
    mapping: Digest,
    fingerprint: Fingerprint,
    incidents: Incidents,
    messages: HashSet<String>,
    /// Everything up to here is in the trail, though perhaps not durable.
    position: u64,
    genesis_position: u64,
    live: bool,
    events: u64,
    data_version: i64,
    /// The last poll gave something: there may be more.
    more: bool,
    /// When lines of the blocks that wait for a seal were committed, per block.
    waiting: VecDeque<(u64, Vec<u64>)>,
    open_times: Vec<u64>,
    latencies: VecDeque<u64>,
    recent: VecDeque<BlockStatus>,
    settling: Vec<(u64, oneshot::Sender<Result<u64, String>>)>,
    closed_at: u64,
    /// How long closing a block took lately, in microseconds.
    closing_us: u64,
    /// The outbox can be emptied up to here.
    ack_due: Option<u64>,
    scan_due: bool,
    scanning: Option<Pass>,
    /// Who waits for the pass after the one under way.
    scan_replies: Vec<ScanReply>,
    next: Due,
}

type ScanReply = oneshot::Sender<Result<ScanSummary, String>>;

/// A pass over the live rows that is under way on its own thread.
struct Pass {
    number: u64,
    touched: Touched,
    replies: Vec<ScanReply>,
    /// What it saw, while the trail has not reached its position yet.
    seen: Option<Look>,
}

/// When regular work is due, in microseconds since 1970.
struct Due {
    close: u64,
    scan: u64,
    fingerprint: u64,
    cosign: u64,
}

impl Session {
    fn open(worker: &mut Worker) -> Result<Self, StartError> {
        let parts = &worker.parts;
        let source = init::open_source(&parts.source)?;
        if !source.is_installed()? {
            return Err(InitError::NotInitialised(parts.source.name.clone()).into());
        }
        let layout = parts.tuning.layout(&parts.source);
        let (mut trail, collected, recovery) = Trail::open(layout, Collected::line)?;
        if recovery != pitser_trail::Recovery::default() {
            tracing::warn!(source = %parts.source.name, ?recovery, "the trail's end was mended after a crash");
        }
        trail.set_segment_bytes_max(parts.tuning.segment_bytes_max);
        init::check_identity(&source, &trail)?;
        let patients = Patients::new(&parts.source, &init::shapes(&source)?).map_err(InitError::from)?;
        let now = (parts.clock)();
        let mut session = Self {
            mapping: Digest::of(&[patients.mapping().as_bytes()]),
            fingerprint: source.fingerprint()?,
            data_version: i64::MIN,
            more: false,
            incidents: incidents(&mut trail, &collected.findings)?,
            messages: collected.messages,
            position: collected.position,
            genesis_position: collected.genesis_position,
            live: collected.live,
            events: collected.events,
            waiting: VecDeque::new(),
            open_times: Vec::new(),
            latencies: VecDeque::new(),
            recent: VecDeque::new(),
            settling: Vec::new(),
            closed_at: now,
            closing_us: 0,
            ack_due: None,
            scan_due: collected.live,
            scanning: None,
            scan_replies: Vec::new(),
            next: Due { close: 0, scan: 0, fingerprint: now + SECOND_US, cosign: now },
            source,
            trail,
            patients,
        };
        session.next.close = session.close_time(&worker.parts.tuning, now);
        session.next.scan = session.scan_time(&worker.parts.tuning, now);
        session.learn_owners()?;
        session.compare_fingerprint(&worker.parts, collected.fingerprint)?;
        for block in session.trail.unsealed() {
            let wanted = Wanted { block: block.block, root: block.root, level: block.level };
            session.waiting.push_back((block.block, Vec::new()));
            worker.seals.as_ref().map(|seals| seals.send(wanted));
        }
        session.show(worker);
        Ok(session)
    }

    /// Records that other tables find their patients through, from the vault.
    fn learn_owners(&mut self) -> Result<(), StartError> {
        let targets: Vec<String> =
            self.source.tables().filter(|t| self.patients.is_target(t)).map(str::to_owned).collect();
        for table in targets {
            let known: Vec<_> =
                self.trail.state().records(&table).filter_map(|(_, r)| Some((r.leaf.row?.seq, r.row_patient))).collect();
            for (seq, patient) in known {
                let content = self.trail.vault().get(seq).map_err(TrailError::from)?.map(|(_, c)| c);
                let owner = match patient {
                    Some(p @ Patient::Pseudonym(_)) => {
                        self.trail.vault().identifier(&p.to_string()).map_err(TrailError::from)?
                    }
                    _ => None,
                };
                if let Some([cell]) = content.and_then(|c| c.key).as_deref() {
                    self.patients.learn(&table, &cell.0, owner);
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, worker: &mut Worker) -> Ended {
        if let Err(ended) = self.baseline(worker) {
            return ended;
        }
        loop {
            if let Err(ended) = self.turn(worker) {
                return ended;
            }
        }
    }

    /// Waits for the next thing to do, and does it.
    fn turn(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let now = (worker.parts.clock)();
        let due = self.next.close.saturating_sub(now);
        let wait = if self.more { Duration::ZERO } else { POLL.min(Duration::from_micros(due)) };
        match worker.inbox.recv_timeout(wait) {
            Ok(command) => {
                self.command(worker, command)?;
                while let Ok(more) = worker.inbox.try_recv() {
                    self.command(worker, more)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Ended::Stopped),
        }
        self.capture(worker)?;
        self.regular(worker)
    }

    /// Takes everything that was committed so far, however much it is.
    fn capture_all(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        self.capture(worker)?;
        while self.more {
            self.capture(worker)?;
            self.regular(worker)?;
        }
        Ok(())
    }

    fn regular(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let tuning = worker.parts.tuning.clone();
        let now = (worker.parts.clock)();
        if now >= self.next.fingerprint {
            self.next.fingerprint = now + SECOND_US;
            let parts = &worker.parts;
            self.compare_fingerprint(parts, None)?;
        }
        if self.scanning.is_none() && (self.scan_due || now >= self.next.scan || !self.scan_replies.is_empty()) {
            self.scan_due = false;
            self.next.scan = self.scan_time(&tuning, now);
            self.start_scan(worker)?;
        }
        self.finish_scan(worker)?;
        self.acknowledge()?;
        let full = self.trail.open_lines() >= BLOCK_LINES;
        if full || now >= self.next.close {
            self.next.close = self.close_time(&tuning, now);
            let idle = now.saturating_sub(self.closed_at) >= tuning.heartbeat_s.saturating_mul(SECOND_US);
            if self.trail.open_lines() > 0 || idle {
                self.close(worker)?;
            }
        }
        if now >= self.next.cosign {
            self.next.cosign = now + tuning.cosign_every_s.max(1) * SECOND_US;
            worker.uncosigned = self.cosign(worker)?.err();
        }
        Ok(())
    }

    /// The next instant just before a second ends.
    ///
    /// Early enough for the block to reach the authority in this second, by
    /// how long closing took lately.
    fn close_time(&self, tuning: &Tuning, now: u64) -> u64 {
        let before = (tuning.close_before_ms * 1000).max(self.closing_us * 2).min(SECOND_US / 2);
        (now + before) / SECOND_US * SECOND_US + SECOND_US - before
    }

    fn scan_time(&self, tuning: &Tuning, now: u64) -> u64 {
        match tuning.scan_every_s {
            0 => u64::MAX,
            every => now + every * SECOND_US,
        }
    }

    fn command(&mut self, worker: &mut Worker, command: Command) -> Result<(), Ended> {
        match command {
            Command::Submit { raw, reply } => {
                // What was committed before the event was sent comes before it.
                self.capture_all(worker)?;
                let taken = self.submit(worker, &raw);
                let (answer, failed) = match taken {
                    Ok(answer) => (answer, None),
                    Err(error) => (Err(SubmitError::Unavailable(error.to_string())), Some(error)),
                };
                let _ = reply.send(answer);
                failed.map_or(Ok(()), |error| Err(error.into()))
            }
            Command::Scan { reply } => {
                self.scan_replies.push(reply);
                Ok(())
            }
            Command::Expect { pass, table, records, reply } => {
                if self.scanning.as_ref().is_some_and(|p| p.number == pass) {
                    let mut expected = Vec::with_capacity(records.len());
                    for record in &records {
                        expected.push(pitser_monitor::expected(&mut self.trail, &table, record).map_err(TrailError::from)?);
                    }
                    // A pass that was given up does not wait for the answer.
                    let _ = reply.send(expected);
                }
                Ok(())
            }
            Command::Looked { pass, seen } => {
                if self.scanning.as_ref().is_some_and(|p| p.number == pass) {
                    self.looked(worker, seen);
                }
                Ok(())
            }
            Command::Settle { reply } => {
                self.capture_all(worker)?;
                if self.trail.open_lines() > 0 {
                    self.close(worker)?;
                }
                self.settling.push((self.trail.blocks(), reply));
                self.settled(worker)
            }
            Command::Seal(outcome) => self.seal(worker, outcome),
            Command::Stop { reply } => {
                let stopped = self.capture_all(worker).and_then(|()| match self.trail.open_lines() {
                    0 => Ok(()),
                    _ => self.close(worker),
                });
                let _ = reply.send(());
                stopped.and(Err(Ended::Stopped))
            }
        }
    }

    // --- what happened -----------------------------------------------------

    /// Takes the next batch of what was committed, and makes it durable.
    fn capture(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let version = match self.source.data_version() {
            Err(SqliteError::Locked { .. }) => return Ok(()),
            other => other?,
        };
        if version == self.data_version && !self.more {
            return Ok(());
        }
        let steps = match self.source.poll(self.position, BATCH) {
            Err(SqliteError::Locked { .. }) => return Ok(()),
            other => other?,
        };
        self.data_version = version;
        self.more = !steps.is_empty();
        for step in steps {
            self.step(worker, step)?;
        }
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }

    fn step(&mut self, worker: &Worker, step: Captured) -> Result<(), Ended> {
        let reached = step.reached();
        let name = &worker.parts.source.name;
        match step {
            Captured::Change(change) => self.change(worker, &change)?,
            Captured::Mark { .. } => {}
            Captured::Gap { expected, found } => {
                self.gap(worker, expected.saturating_sub(1), found)?;
                let text = format!("{} changes are missing from the outbox", found.saturating_sub(expected));
                self.finding(worker, Finding::general(Code::CaptureGap, text))?;
            }
            Captured::Rewound { expected, found } => {
                self.gap(worker, expected, found)?;
                let text = "the database counts its changes from an earlier position: it was rewound or replaced";
                self.finding(worker, Finding::general(Code::DatabaseRewound, text))?;
                self.position = found.saturating_sub(1);
            }
            Captured::Unreadable { pos, why } => {
                self.gap(worker, pos.saturating_sub(1), pos)?;
                self.finding(worker, Finding::general(Code::CaptureGap, format!("an outbox row is unreadable: {why}")))?;
            }
            other => tracing::warn!(source = %name, step = ?other, "a step of a kind that this version does not know"),
        }
        if let Some(reached) = reached {
            self.position = reached;
        }
        Ok(())
    }

    fn change(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let source = &worker.parts.source.name;
        self.compare_old(worker, change)?;
        let drafts = translate::change(change, source, &self.patients);
        if self.patients.is_target(&change.table) {
            if let Some(key) = translate::key_value(&change.key) {
                let owner = change.new.as_ref().and_then(|row| self.patients.of(&change.table, row));
                self.patients.learn(&change.table, key, owner);
            }
        }
        let Some(line) = drafts.last().cloned() else { return Ok(()) };
        let seq = self.append(drafts)?;
        self.open_times.push(line.at.micros());
        if change.actor.is_none() {
            let about = self.trail.state().next_seq() - 1;
            let finding = Finding {
                code: Code::Unattributed,
                table: Some(change.table.clone()),
                record: Some(self.trail.record_key(Some(&change.table), &key_cells(&change.key))),
                key: Some(change.key.clone()),
                columns: line.columns.unwrap_or_default(),
                about: Some(about),
                text: format!("{} without an attributed actor", line.op.as_str()),
            };
            self.finding_of(worker, finding, line.patient)?;
        }
        tracing::debug!(seq, table = %change.table, op = line.op.as_str(), "captured");
        Ok(())
    }

    /// The row that a change replaces must be the one that was sealed last:
    /// an edit past the triggers cannot be hidden by a later update.
    fn compare_old(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let Some(old) = &change.old else { return Ok(()) };
        let record = self.trail.record_key(Some(&change.table), &key_cells(&change.key));
        let Some(known) = self.trail.state().record(&change.table, &record).copied() else { return Ok(()) };
        let Some(sealed) = known.leaf.row else { return Ok(()) };
        let compartment = known.row_patient.map_or_else(|| format!("table:{}", change.table), |p| p.to_string());
        let Some(key) = self.trail.vault().key(&compartment).map_err(TrailError::from)? else { return Ok(()) };
        let nonce = LineNonce::new(&key, &self.trail.genesis().origin, sealed.timeline, sealed.seq);
        let cells = old.iter().map(|(name, cell)| (name, cell.expose()));
        if commit_row(&nonce, cells).1 == sealed.row {
            return Ok(());
        }
        let content = self.trail.vault().get(sealed.seq).map_err(TrailError::from)?.map(|(_, c)| c);
        let finding = Finding {
            code: Code::RowDiffers,
            table: Some(change.table.clone()),
            record: Some(record),
            key: Some(change.key.clone()),
            columns: pitser_monitor::differing(content.as_ref(), old),
            about: Some(sealed.seq),
            text: "the row that was changed was not the one that was sealed".into(),
        };
        self.finding(worker, finding)
    }

    fn gap(&mut self, worker: &Worker, from: u64, to: u64) -> Result<(), Ended> {
        let at = self.now(worker);
        let draft = Draft {
            body: Body::Gap(Gap { from: from.to_string(), to: to.to_string() }),
            ..Draft::new(Op::Gap, at, &worker.parts.source.name, &to.saturating_sub(1).max(from).to_string())
        };
        self.scan_due = true;
        self.append(vec![draft])?;
        Ok(())
    }

    fn append(&mut self, drafts: Vec<Draft>) -> Result<u64, Ended> {
        self.events += drafts.len() as u64;
        if let Some(pass) = &mut self.scanning {
            for draft in drafts.iter().filter(|d| d.op.needs_key()) {
                if let (Some(table), Some(key)) = (&draft.table, &draft.key) {
                    pass.touched.insert(table, self.trail.record_key(Some(table), key));
                }
            }
        }
        Ok(self.trail.append(drafts)?)
    }

    fn submit(&mut self, worker: &mut Worker, raw: &[u8]) -> Result<Result<Receipt, SubmitError>, TrailError> {
        let event = match fhir::parse_audit_event(raw) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.into())),
        };
        let source = format!("{}/fhir", worker.parts.source.name);
        let id = self.trail.keys().message_id(&source, raw).to_string();
        let receipt = |known, lines| Receipt { id: id.clone(), known, lines, profile_violations: event.profile_violations.clone() };
        if self.messages.contains(&id) {
            return Ok(Ok(receipt(true, 0)));
        }
        let mut records = Vec::new();
        for resource in &event.data {
            records.push(self.resolve(worker, &resource.kind, &resource.id)?);
        }
        let drafts = translate::audit_event(&event, raw, &id, &source, worker.parts.tuning.many_patients, records);
        let lines = drafts.len();
        self.events += lines as u64;
        self.trail.append(drafts)?;
        self.trail.commit()?;
        self.messages.insert(id.clone());
        self.open_times.push((worker.parts.clock)());
        self.show(worker);
        Ok(Ok(receipt(false, lines)))
    }

    /// What the guardian knows of a resource that an audit event names.
    fn resolve(&mut self, worker: &Worker, kind: &str, id: &str) -> Result<Resolved, TrailError> {
        let guarded = worker.parts.source.resources.get(kind);
        let table = guarded.cloned().unwrap_or_else(|| kind.to_owned());
        let key = match guarded.and_then(|t| self.source.key(t, &[id]).ok()) {
            Some(key) => key_cells(&key),
            None => text_key(id),
        };
        let record = self.trail.record_key(Some(&table), &key);
        let patient = self.trail.state().record(&table, &record).and_then(|r| r.patient);
        let patient = match patient {
            Some(p @ Patient::Pseudonym(_)) => self.trail.vault().identifier(&p.to_string())?.map(PatientId::Id),
            _ => None,
        };
        Ok(Resolved { table, key, patient })
    }

    // --- baseline ----------------------------------------------------------

    /// Writes the rows that were there at the genesis. After a crash it goes
    /// on where it was: later changes are undone by their first old images.
    fn baseline(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        if self.live {
            return Ok(());
        }
        worker.publish.send_modify(|s| s.state = SourceState::Baseline);
        let snapshot = self.source.snapshot()?;
        let at: Timestamp = snapshot.at().parse().unwrap_or_else(|_| self.now(worker));
        for table in self.patients.order() {
            let mut failed = None;
            let from = self.genesis_position;
            let complete = snapshot.scan_at(from, &table, BASELINE_CHUNK, |rows| {
                match self.baseline_rows(worker, &table, rows, &at) {
                    Ok(()) => std::ops::ControlFlow::Continue(()),
                    Err(ended) => {
                        failed = Some(ended);
                        std::ops::ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(ended) = failed {
                return Err(ended);
            }
            if !complete {
                let text = "changes since the genesis are missing from the outbox: the baseline is incomplete";
                self.finding(worker, Finding::general(Code::CaptureGap, text))?;
            }
        }
        drop(snapshot);
        let live = Draft::new(Op::Live, self.now(worker), &worker.parts.source.name, &self.genesis_position.to_string());
        self.append(vec![live])?;
        self.live = true;
        self.close(worker)
    }

    fn baseline_rows(
        &mut self,
        worker: &mut Worker,
        table: &str,
        rows: Vec<(pitser_capture::Key, pitser_capture::Row)>,
        at: &Timestamp,
    ) -> Result<(), Ended> {
        let name = worker.parts.source.name.clone();
        for (key, row) in rows {
            if self.patients.is_target(table)
                && let Some(value) = translate::key_value(&key)
            {
                let owner = self.patients.of(table, &row);
                self.patients.learn(table, value, owner);
            }
            let record = self.trail.record_key(Some(table), &key_cells(&key));
            if self.trail.state().record(table, &record).is_some_and(|r| r.leaf.row.is_some()) {
                continue;
            }
            let draft = translate::baseline(table, &key, &row, at, self.genesis_position, &name, &self.patients);
            self.append(vec![draft])?;
        }
        self.trail.commit()?;
        if self.trail.open_lines() >= BLOCK_LINES {
            self.close(worker)?;
        }
        self.show(worker);
        Ok(())
    }

    // --- what is wrong -----------------------------------------------------

    fn finding(&mut self, worker: &Worker, finding: Finding) -> Result<(), Ended> {
        self.finding_of(worker, finding, None)
    }

    /// Notes a finding, and writes it into the trail if it is new.
    fn finding_of(&mut self, worker: &Worker, finding: Finding, patient: Option<PatientId>) -> Result<(), Ended> {
        let found_at = (worker.parts.clock)();
        if !self.incidents.note(finding.clone(), found_at) {
            return Ok(());
        }
        tracing::warn!(code = %finding.code, table = ?finding.table, columns = ?finding.columns, "{}", finding.text);
        let draft = Draft {
            table: finding.table.clone(),
            key: finding.key.as_ref().map(key_cells),
            patient: match patient {
                Some(patient) => Some(patient),
                None => self.patient_of(&finding)?,
            },
            columns: (!finding.columns.is_empty()).then(|| finding.columns.clone()),
            body: Body::Finding(LineFinding { about: finding.about, code: finding.code, text: finding.text.clone() }),
            ..Draft::new(Op::Finding, self.now(worker), "guardian", &self.position.to_string())
        };
        let seq = self.append(vec![draft])?;
        self.incidents.written(&finding, seq);
        self.open_times.push(found_at);
        Ok(())
    }

    fn patient_of(&mut self, finding: &Finding) -> Result<Option<PatientId>, TrailError> {
        let (Some(table), Some(record)) = (&finding.table, &finding.record) else { return Ok(None) };
        match self.trail.state().record(table, record).and_then(|r| r.patient) {
            Some(p @ Patient::Pseudonym(_)) => Ok(self.trail.vault().identifier(&p.to_string())?.map(PatientId::Id)),
            _ => Ok(None),
        }
    }

    /// Sends a pass over the live rows on its way, on a thread of its own.
    fn start_scan(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let snapshot = match self.source.snapshot() {
            Err(SqliteError::Locked { .. }) => {
                self.scan_due = true;
                return Ok(());
            }
            other => other?,
        };
        worker.pass += 1;
        let pass = worker.pass;
        let tables: Vec<ScanTable> = self
            .source
            .tables()
            .map(|name| ScanTable { name: name.to_owned(), key: self.trail.keys().table(name) })
            .collect();
        let commands = worker.commands.clone();
        let look = move || {
            let seen = pitser_monitor::look(&snapshot, &tables, |table, records| {
                let (reply, answer) = channel();
                let ask = Command::Expect { pass, table: table.to_owned(), records: records.to_vec(), reply };
                commands.send(ask).ok()?;
                answer.recv().ok()
            });
            // Without a guardian nobody is waiting.
            let _ = commands.send(Command::Looked { pass, seen });
        };
        std::thread::Builder::new()
            .name(format!("scan-{}", worker.parts.source.name))
            .spawn(look)
            .map_err(StartError::Thread)?;
        let replies = std::mem::take(&mut self.scan_replies);
        self.scanning = Some(Pass { number: pass, touched: Touched::default(), replies, seen: None });
        Ok(())
    }

    fn looked(&mut self, worker: &mut Worker, seen: Result<Option<Look>, SqliteError>) {
        let trouble = match seen {
            Ok(Some(look)) => {
                if let Some(pass) = &mut self.scanning {
                    pass.seen = Some(look);
                }
                return;
            }
            Ok(None) => "the scan was given up".to_owned(),
            Err(error @ SqliteError::Damaged { .. }) => {
                format!("{error}. The database file itself is damaged: restore the table from a backup and scan again")
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(error = %trouble, "scan failed");
        worker.unscanned = Some(trouble.clone());
        self.show(worker);
        for reply in self.scanning.take().into_iter().flat_map(|pass| pass.replies) {
            let _ = reply.send(Err(trouble.clone()));
        }
    }

    /// Judges a pass once everything that it can have seen is in the trail.
    fn finish_scan(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let reached = self.position;
        let complete = |pass: &mut Pass| pass.seen.as_ref().is_some_and(|look| look.position <= reached);
        let Some(mut pass) = self.scanning.take_if(complete) else { return Ok(()) };
        let Some(look) = pass.seen.take() else { return Ok(()) };
        let rows = look.rows;
        let findings = pitser_monitor::judge(look, &mut self.trail, &pass.touched).map_err(TrailError::from)?;
        for finding in &findings {
            self.finding(worker, finding.clone())?;
        }
        self.trail.commit()?;
        self.incidents.settle(&findings);
        worker.unscanned = None;
        let now = (worker.parts.clock)();
        worker.publish.send_modify(|s| {
            s.verified_up_to = Some(Second(now / SECOND_US).to_string());
            s.rows_verified = rows;
        });
        self.show(worker);
        let codes = [Code::RowDiffers, Code::RowMissing, Code::RowUnknown].map(Code::as_str);
        let open: Vec<_> = self.findings().into_iter().filter(|f| f.open && codes.contains(&f.code.as_str())).collect();
        for reply in pass.replies {
            let _ = reply.send(Ok(ScanSummary { rows, findings: open.clone() }));
        }
        Ok(())
    }

    /// Empties the outbox up to where the last checkpoint line reaches, when
    /// there is nothing better to do and nobody else is writing.
    fn acknowledge(&mut self) -> Result<(), Ended> {
        if self.more {
            return Ok(());
        }
        let Some(upto) = self.ack_due else { return Ok(()) };
        match self.source.ack(upto) {
            Ok(()) => self.ack_due = None,
            Err(SqliteError::Locked { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Notices when capture was weakened, or the schema changed. `sealed` is
    /// what the trail says the fingerprint was, after a restart.
    fn compare_fingerprint(&mut self, parts: &Parts, sealed: Option<Digest>) -> Result<(), StartError> {
        let now = self.source.fingerprint()?;
        let hash = fingerprint_hash(&now);
        let path = self.trail.layout().dir().join("fingerprint.json");
        let before = match sealed {
            Some(sealed) if sealed == hash => return Ok(()),
            Some(sealed) => {
                let kept = std::fs::read(&path).ok().filter(|bytes| Digest::of(&[bytes]) == sealed);
                if let Some(kept) = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                    self.fingerprint = kept;
                }
                Some(sealed)
            }
            None if path.exists() && fingerprint_hash(&self.fingerprint) == hash => return Ok(()),
            None if path.exists() => Some(fingerprint_hash(&self.fingerprint)),
            None => None,
        };
        let drifts = if before.is_some() { self.fingerprint.compare(&now) } else { Vec::new() };
        let at = Timestamp::from_micros((parts.clock)()).map_err(TrailError::from)?;
        let mut drafts = vec![Draft {
            body: Body::Ddl(Ddl { after: hash, before }),
            ..Draft::new(Op::Ddl, at.clone(), &parts.source.name, &self.position.to_string())
        }];
        self.scan_due |= !drifts.is_empty();
        // An untouched-looking schema with a new version: another table's DDL,
        // or a trigger dropped and put back. Only the rows can tell.
        for drift in drifts.iter().filter(|drift| !matches!(drift, Drift::Touched { .. })) {
            let finding = Finding::general(drift_code(drift), drift.to_string());
            if self.incidents.note(finding.clone(), (parts.clock)()) {
                tracing::warn!(code = %finding.code, "{}", finding.text);
                drafts.push(Draft {
                    body: Body::Finding(LineFinding { about: None, code: finding.code, text: finding.text }),
                    ..Draft::new(Op::Finding, at.clone(), "guardian", &self.position.to_string())
                });
            }
        }
        self.events += drafts.len() as u64;
        for draft in drafts {
            self.trail.append(vec![draft])?;
        }
        self.trail.commit()?;
        let json = fingerprint_bytes(&now);
        pitser_trail::disk::replace(&path, &json).map_err(TrailError::from)?;
        self.fingerprint = now;
        Ok(())
    }

    // --- blocks, seals, heads ----------------------------------------------

    fn close(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let began = (worker.parts.clock)();
        let at = self.now(worker);
        let reason = "Block closed due to time limit.";
        let block = self.trail.close_block(at, &self.position.to_string(), self.mapping, reason)?;
        self.closed_at = (worker.parts.clock)();
        self.waiting.push_back((block.block, std::mem::take(&mut self.open_times)));
        self.recent.push_front(BlockStatus { block: block.block, lines: block.count, sealed_at: None });
        self.recent.truncate(RECENT);
        if let Some(seals) = &worker.seals {
            // The sealer ends only with the guardian.
            let _ = seals.send(Wanted { block: block.block, root: block.root, level: block.level });
        }
        // The checkpoint line holds the position: from here on it survives.
        self.ack_due = Some(self.position);
        let took = (worker.parts.clock)().saturating_sub(began);
        self.closing_us = took.max(self.closing_us - self.closing_us / 8);
        self.show(worker);
        Ok(())
    }

    fn seal(&mut self, worker: &mut Worker, outcome: Outcome) -> Result<(), Ended> {
        match outcome {
            Outcome::Delayed { block, why } => {
                tracing::warn!(block, "unsealed: {why}");
                worker.delayed = Some(why);
                self.overdue(worker, block)?;
            }
            Outcome::Sealed { block, signature } => {
                match self.trail.add_seal(block, &signature) {
                    // An answer to a request of an earlier session.
                    Err(TrailError::SealOrder { .. }) => return Ok(()),
                    other => other?,
                }
                worker.delayed = None;
                self.sealed(worker, block, &signature);
                self.settled(worker)?;
            }
        }
        self.show(worker);
        Ok(())
    }

    fn sealed(&mut self, worker: &Worker, block: u64, signature: &[u8]) {
        let now = (worker.parts.clock)();
        while let Some((_, times)) = self.waiting.pop_front_if(|(number, _)| *number <= block) {
            self.latencies.extend(times.iter().map(|at| now.saturating_sub(*at) / 1000));
        }
        let surplus = self.latencies.len().saturating_sub(LATENCIES);
        self.latencies.drain(..surplus);
        let sealed_at = pitser_evidence::seal::time(signature).map(|t| t.to_string());
        if let Some(recent) = self.recent.iter_mut().find(|b| b.block == block) {
            recent.sealed_at.clone_from(&sealed_at);
        }
        worker.publish.send_modify(|s| s.sealed_up_to = sealed_at);
    }

    fn overdue(&mut self, worker: &Worker, block: u64) -> Result<(), Ended> {
        let waited = (worker.parts.clock)().saturating_sub(self.closed_at) / SECOND_US;
        let oldest = self.trail.unsealed().next().map(|b| b.block);
        if oldest == Some(block) && waited >= worker.parts.tuning.seal_alarm_s {
            let text = format!("block {block} and those after it are unsealed: the authority does not answer");
            self.finding(worker, Finding::general(Code::Unsealed, text))?;
        }
        Ok(())
    }

    /// Answers those who wait for everything to be sealed and cosigned.
    fn settled(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let sealed = self.trail.unsealed().next().map_or(self.trail.blocks(), |b| b.block);
        let (ready, waiting) = std::mem::take(&mut self.settling).into_iter().partition(|(blocks, _)| *blocks <= sealed);
        self.settling = waiting;
        let ready: Vec<_> = ready;
        if ready.is_empty() {
            return Ok(());
        }
        let cosigned = self.cosign(worker)?;
        for (_, reply) in ready {
            let _ = reply.send(cosigned.clone());
        }
        Ok(())
    }

    /// Signs the head and has it cosigned; keeps it if the quorum is reached.
    fn cosign(&mut self, worker: &mut Worker) -> Result<Result<u64, String>, Ended> {
        let size = self.trail.blocks();
        let done = worker.publish.borrow().witnessed;
        if size == 0 || size == done {
            return Ok(Ok(size));
        }
        let mut note = self.trail.sign_head();
        let mut cosigned = 0;
        let mut refusals = Vec::new();
        let mut findings = Vec::new();
        for peer in &mut worker.parts.witnesses {
            let name = peer.key().name().to_owned();
            match peer.cosign(self.trail.log(), &note) {
                Ok(line) => cosigned += usize::from(note.add(line).is_ok()),
                Err(error) => {
                    match &error {
                        CosignError::Forked { .. } => findings.push((Code::TrailForked, name.clone(), error.to_string())),
                        CosignError::Ahead { .. } => findings.push((Code::TrailShort, name.clone(), error.to_string())),
                        _ => {}
                    }
                    refusals.push(format!("{name}: {error}"));
                }
            }
        }
        for (code, name, text) in findings {
            self.finding(worker, Finding::general(code, format!("witness {name}: {text}")))?;
        }
        let quorum = worker.parts.tuning.witness_quorum;
        if cosigned < quorum {
            let text = format!("{cosigned} of {quorum} required witnesses cosigned ({})", refusals.join("; "));
            tracing::warn!("{text}");
            return Ok(Err(text));
        }
        self.trail.store_head(&note)?;
        let now = (worker.parts.clock)();
        worker.publish.send_modify(|s| {
            s.witnessed = size;
            s.witnessed_at = Some(Second(now / SECOND_US).to_string());
        });
        Ok(Ok(size))
    }

    // --- what is shown -----------------------------------------------------

    fn show(&self, worker: &Worker) {
        let unsealed = self.trail.unsealed().count() as u64;
        let delayed = worker.delayed.as_ref().filter(|_| unsealed > 0);
        let trouble = delayed.or(worker.unscanned.as_ref()).or(worker.uncosigned.as_ref()).cloned();
        worker.publish.send_modify(|s| {
            s.state = if self.live { SourceState::Guarding } else { SourceState::Baseline };
            s.trouble = trouble;
            s.position = self.position.to_string();
            s.events = self.events;
            s.lines = self.trail.state().next_seq();
            s.blocks = self.trail.blocks();
            s.unsealed = unsealed;
            s.patients = self.trail.state().patients() as u64;
            s.genesis = self.trail.genesis_hash().to_string();
            s.seal_latency_ms = latency(&self.latencies);
            s.recent = self.recent.iter().cloned().collect();
            s.findings = self.findings();
        });
    }

    fn findings(&self) -> Vec<FindingStatus> {
        self.incidents
            .all()
            .into_iter()
            .map(|incident| FindingStatus {
                code: incident.finding.code.to_string(),
                table: incident.finding.table.clone(),
                key: incident.finding.key.as_ref().map(pitser_monitor::show_key),
                columns: incident.finding.columns.clone(),
                at: Second(incident.found_at / SECOND_US).to_string(),
                found_at_us: incident.found_at,
                text: incident.finding.text.clone(),
                open: incident.open,
                line: incident.line,
            })
            .collect()
    }

    fn now(&self, worker: &Worker) -> Timestamp {
        Timestamp::from_micros((worker.parts.clock)()).expect("the clock shows a year before 10000")
    }
}

/// Incidents that the trail already tells of, with keys from the vault.
fn incidents(trail: &mut Trail, lines: &[Line]) -> Result<Incidents, StartError> {
    let mut incidents = Incidents::default();
    for line in lines {
        let Some(body) = &line.finding else { continue };
        let content = trail.vault().get(line.seq).map_err(TrailError::from)?.map(|(_, c)| c);
        let finding = Finding {
            code: body.code,
            table: line.table.clone(),
            key: content.and_then(|c| c.key).map(|cells| pitser_monitor::key_of(cells.into_iter().map(|c| c.0))),
            record: line.key,
            columns: line.columns.clone().unwrap_or_default(),
            about: body.about,
            text: body.text.clone(),
        };
        incidents.note(finding.clone(), line.at.micros());
        incidents.written(&finding, line.seq);
    }
    Ok(incidents)
}

fn latency(samples: &VecDeque<u64>) -> Option<Latency> {
    let mut sorted: Vec<u64> = samples.iter().copied().collect();
    sorted.sort_unstable();
    let at = |per_cent: usize| sorted.get((sorted.len().saturating_sub(1)) * per_cent / 100).copied();
    Some(Latency { p50: at(50)?, p99: at(99)? })
}

fn fingerprint_bytes(fingerprint: &Fingerprint) -> Vec<u8> {
    serde_json::to_vec(fingerprint).expect("strings and lists")
}

fn fingerprint_hash(fingerprint: &Fingerprint) -> Digest {
    Digest::of(&[&fingerprint_bytes(fingerprint)])
}

fn drift_code(drift: &Drift) -> Code {
    match drift.code() {
        "CAP-02" => Code::DatabaseRewound,
        "CAP-05" => Code::SchemaChanged,
        _ => Code::CaptureWeakened,
    }
}
