//! The thread that owns a source and its trail.

mod accept;
mod baseline;
mod blocks;
mod capture;
mod columns;
mod erasure;
mod failed;
mod findings;
mod fleet;
mod heads;
mod intake;
mod logged;
mod outage;
mod pulse;
mod queue;
mod rekey;
mod rules;
mod scan;
mod session;
mod show;
mod tables;
mod transaction;
mod word;

use crate::Clock;
use crate::acceptance;
use crate::actors::Actors;
use crate::approver::Refused;
use crate::audit::Desk;
use crate::collected::Collected;
use crate::config::{Source, Tuning};
use crate::erasure::{Answer, Asked};
use crate::fleet::{Reporter, Sent, Told, registered};
use crate::init::InitError;
use crate::patients::Patients;
use crate::sealer::{self, Outcome, Wanted};
use crate::status::{
    BaselineStatus, BlockStatus, FindingStatus, FleetStatus, SourceState, Status, UnreadStatus,
};
pub(crate) use word::FILE as WORD;

use capture::Unread;
use failed::Failed;
use heads::{Cosigner, Heads};
use intake::Intake;
use logged::Logged;
use outage::Outage;
use pitser_capture::fhir::FhirError;
use pitser_capture::{Captured, Position, Snapshot, Source as Database, SourceError};
use pitser_client::Client;
use pitser_client::fleet::Fleet;
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_monitor::{Columns, Expected, Incidents, Lines, Look, Suspects, Touched};
use pitser_tlog::note::SignatureLine;
use pitser_tlog::witness_protocol::Refusal;
use pitser_trail::keys::KeyError;
use pitser_trail::{Trail, TrailError};
use pitser_witness::Peer;
use pulse::Pulse;
pub(crate) use queue::BLOCK_LINES;
use queue::Queue;
use rekey::Rekeyed;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use transaction::Transaction;
pub(crate) use transaction::Written;

/// How often the database is asked whether anything was committed.
const POLL: Duration = Duration::from_millis(20);
/// Steps taken from the source at a time.
const BATCH: usize = 128;
/// Between two times that lines are made durable, unless somebody waits for them, in
/// microseconds.
const COMMIT_US: u64 = 100_000;
/// The file that holds a position which no line tells of.
const POSITION: &str = "position";
/// Up to where the source has forgotten what it told ([`pitser_capture::Source::forgotten`]).
const FORGOTTEN: &str = "forgotten";
/// Rows of a baseline that are read and written together.
const BASELINE_CHUNK: usize = 1000;
/// Latencies and blocks remembered for the status.
const LATENCIES: usize = 10_000;
const RECENT: usize = 20;
const SECOND_US: u64 = 1_000_000;
/// Between two attempts to guard: at first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether another guardian has ended.
const STANDBY_WAIT: Duration = Duration::from_secs(1);
/// After guarding for so long, the next failure is a new one.
const STEADY_US: u64 = 30 * SECOND_US;

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
    /// Where the trail is registered and its heads are sent.
    pub fleet: Option<Fleet>,
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
    Database(#[from] SourceError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// A standby's copy is not what was witnessed.
    #[error(
        "nothing is written, for the guardian before this one wrote more than this copy of the trail has: {0}. \
         Bring the copy up to date and start again"
    )]
    Behind(String),
    /// The thread could not be made.
    #[error("no thread for the guardian: {0}")]
    Thread(std::io::Error),
}

impl StartError {
    /// Whether another guardian is capturing.
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Init(InitError::Database(error)) | Self::Database(error) => error.is_taken(),
            _ => false,
        }
    }

    /// Whether trying again later, with nothing changed by anybody, may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Init(error) => error.is_passing(),
            Self::Database(SourceError::Postgres(error)) => error.is_passing(),
            _ => false,
        }
    }

    /// Whether the configuration cannot be followed as it is written. What somebody may have
    /// done to a database or a trail since they were prepared is none of its faults.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Init(InitError::NotInitialised(_) | InitError::OtherDatabase { .. }) => false,
            Self::Init(InitError::Trail(error)) | Self::Trail(error) => matches!(
                error,
                TrailError::Keys(KeyError::NoKeeper | KeyError::Absent(_))
            ),
            Self::Init(error) => error.is_configuration(),
            Self::Database(SourceError::Postgres(error)) => error.is_configuration(),
            _ => false,
        }
    }
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
    /// What is wrong now with rows: of each code and table, the newest.
    pub findings: Vec<FindingStatus>,
    /// How much more is wrong with them.
    pub more: u64,
    /// Tables that could not be read to their end.
    pub unread: Vec<UnreadStatus>,
}

enum Command {
    Submit {
        raw: Vec<u8>,
        reply: oneshot::Sender<Result<Receipt, SubmitError>>,
        /// Others wait for it with their senders.
        place: OwnedSemaphorePermit,
    },
    Scan {
        reply: oneshot::Sender<Result<ScanSummary, String>>,
    },
    Settle {
        reply: oneshot::Sender<Result<u64, String>>,
    },
    /// An approver asks, or decides.
    Erasure {
        asked: Asked,
        reply: oneshot::Sender<Result<Answer, Refused>>,
    },
    /// An approver answers for findings.
    Accept {
        asked: acceptance::Asked,
        reply: oneshot::Sender<Result<acceptance::Answer, Refused>>,
    },
    AcceptOf {
        asked: acceptance::AskedOf,
        reply: oneshot::Sender<Result<acceptance::Portion, Refused>>,
    },
    Seal(Outcome),
    /// A witness has answered.
    Cosigned {
        witness: usize,
        answer: Result<Vec<SignatureLine>, Refusal>,
    },
    /// The authority's fleet has said something.
    Fleet(Told),
    /// Somebody outside knows something against the trail.
    Accused(Code, String),
    /// A pass wants to know what the trail expects of these records.
    Expect {
        pass: u64,
        table: String,
        records: Vec<Bytes32>,
        reply: Sender<Vec<Expected>>,
    },
    /// A pass met rows that are not as expected, and reads on when they are judged.
    Suspects {
        pass: u64,
        suspects: Suspects,
        reply: Sender<()>,
    },
    /// A pass has ended.
    Looked {
        pass: u64,
        seen: Result<Option<Look>, SourceError>,
    },
    Stop {
        /// How long to wait for the seal of the last block.
        patience: Duration,
        reply: oneshot::Sender<()>,
    },
}

/// Starts guardians.
pub struct Guardian;

impl Guardian {
    /// Opens source and trail, and starts the thread that owns them. The
    /// database must have been prepared by [`crate::init::install`].
    ///
    /// Must be called inside a tokio runtime, which carries the requests for seals.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(parts: Parts) -> Result<Handle, StartError> {
        Self::open(parts).map_err(Unopened::into_error)
    }

    /// The same, for one of several: if it cannot guard now, the others can, and it can be
    /// had to try again until it does.
    ///
    /// # Errors
    /// [`Unopened`]; nothing guards yet.
    pub fn open(parts: Parts) -> Result<Handle, Unopened> {
        let seals = |client: Option<Client>, commands: &Sender<Command>| {
            client.map(|client| {
                let (wanted, requests) = mpsc::unbounded_channel();
                let back = commands.clone();
                let ask = move |wanted| sealer::ask(client.clone(), wanted);
                tokio::spawn(sealer::run(ask, requests, move |outcome| {
                    // The guardian is gone only when the process ends.
                    let _ = back.send(Command::Seal(outcome));
                }));
                wanted
            })
        };
        let alone = |error| Unopened { error, rest: None };
        let (mut worker, handle) = Worker::new(parts, seals).map_err(alone)?;
        worker.join_fleet();
        match Session::open(&mut worker) {
            Ok(session) => worker.spawn(Some(session)).map_err(alone)?,
            // A server that is starting too: the thread tries again.
            Err(error) if error.is_passing() => {
                worker.interrupted(&error);
                worker.spawn(None).map_err(alone)?;
            }
            Err(error) => {
                let rest = Some(Box::new((worker, handle)));
                return Err(Unopened { error, rest });
            }
        }
        Ok(handle)
    }

    /// Writes the rows of a snapshot into a trail that was just begun, and
    /// returns when they are durable; nothing is sealed yet. `progress` is told
    /// how many rows were written.
    ///
    /// # Errors
    /// [`StartError`]; what is durable then stays, and a running guardian goes on.
    pub fn baseline(
        parts: Parts,
        snapshot: &mut dyn Snapshot,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StartError> {
        let (mut worker, _handle) = Worker::new(parts, |_, _| None)?;
        let mut session = Session::open(&mut worker)?;
        let begun = session.begin(&mut worker);
        match begun.and_then(|()| session.baseline_of(&mut worker, snapshot, progress)) {
            Ok(()) | Err(Ended::Stopped(_) | Ended::Erased) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
        }
    }
}

/// A guardian whose source or trail could not be opened.
pub struct Unopened {
    error: StartError,
    /// Nothing if it could not even be made.
    rest: Option<Box<(Worker, Handle)>>,
}

impl Unopened {
    /// Why.
    pub fn error(&self) -> &StartError {
        &self.error
    }

    /// Why, for whoever leaves it at that.
    pub fn into_error(self) -> StartError {
        self.error
    }

    /// Starts its thread all the same, which shows why nothing is guarded, and tries again
    /// as after a failure later on.
    ///
    /// # Errors
    /// [`StartError`], if there can be no thread; nothing is left running.
    pub fn try_again(self) -> Result<Handle, StartError> {
        let Some(rest) = self.rest else {
            return Err(self.error);
        };
        let (mut worker, handle) = *rest;
        worker.interrupted(&self.error);
        worker.spawn(None)?;
        Ok(handle)
    }
}

/// A running guardian, for everything outside its thread.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    intake: Intake,
    status: watch::Receiver<Status>,
    desk: Arc<Desk>,
    pulse: Pulse,
}

impl Handle {
    /// How long the guardian's thread has been at its newest step; `None` while that may
    /// take any time, since a trail is opened, say. Half a minute is usual if the database
    /// does not answer, and more than two are not.
    pub fn at_one_step(&self) -> Option<Duration> {
        self.pulse.age()
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        Status::seen(&self.status, self.at_one_step())
    }

    /// Completes with the first status that `wanted` accepts; `None` if the
    /// guardian stops before.
    pub async fn wait_for(&self, wanted: impl FnMut(&Status) -> bool) -> Option<Status> {
        self.status
            .clone()
            .wait_for(wanted)
            .await
            .ok()
            .map(|s| s.clone())
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
        let taken = self.intake.submit(raw).await;
        taken.unwrap_or_else(|| Err(stopped()))
    }

    /// Compares all live rows with the trail now.
    ///
    /// # Errors
    /// A sentence that says what could not be read.
    pub async fn scan(&self) -> Result<ScanSummary, String> {
        self.ask(|reply| Command::Scan { reply })
            .await
            .unwrap_or_else(|| Err("the guardian has stopped".into()))
    }

    /// Where auditors are answered, also while the trail cannot be written.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Takes everything committed so far, and completes when it is sealed and
    /// its head cosigned. Gives the number of blocks under that head.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub async fn settle(&self) -> Result<u64, String> {
        self.ask(|reply| Command::Settle { reply })
            .await
            .unwrap_or_else(|| Err("the guardian has stopped".into()))
    }

    /// Answers an approver; an erasure is done, and its line durable, when it is
    /// answered.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn erasure(&self, asked: Asked) -> Result<Answer, Refused> {
        let stopped = || Refused::Unavailable("the guardian has stopped".into());
        self.ask(|reply| Command::Erasure { asked, reply })
            .await
            .unwrap_or_else(|| Err(stopped()))
    }

    /// Has an approver answer for findings; the lines that say so are durable when it
    /// is answered.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn accept(&self, asked: acceptance::Asked) -> Result<acceptance::Answer, Refused> {
        let stopped = || Refused::Unavailable("the guardian has stopped".into());
        self.ask(|reply| Command::Accept { asked, reply })
            .await
            .unwrap_or_else(|| Err(stopped()))
    }

    /// Has an approver answer for a portion of the open findings that he chose, or says
    /// what that would be.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn accept_of(
        &self,
        asked: acceptance::AskedOf,
    ) -> Result<acceptance::Portion, Refused> {
        let stopped = || Refused::Unavailable("the guardian has stopped".into());
        self.ask(|reply| Command::AcceptOf { asked, reply })
            .await
            .unwrap_or_else(|| Err(stopped()))
    }

    /// Takes what was committed so far, closes the open block and stops.
    pub async fn stop(&self) {
        self.stop_sealed(Duration::ZERO).await;
    }

    /// As [`Handle::stop`], waiting for the seal of the last block and its
    /// witnesses for up to `patience`. What is not sealed by then is asked for
    /// at the next start.
    pub async fn stop_sealed(&self, patience: Duration) {
        let _ = self.ask(|reply| Command::Stop { patience, reply }).await;
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
    /// Who cosigns heads.
    cosigners: Vec<Cosigner>,
    /// Where the newest head goes, if there is a fleet.
    fleet: Option<watch::Sender<Option<Sent>>>,
    /// What is known outside against the trail, until it is a finding.
    against: BTreeMap<Code, String>,
    inbox: Receiver<Command>,
    publish: watch::Sender<Status>,
    /// Why the oldest unsealed block still waits.
    delayed: Option<String>,
    /// Why the newest head is not cosigned.
    uncosigned: Option<String>,
    /// Why the last pass over the live rows came to nothing, or did not see all tables.
    unscanned: Option<String>,
    /// No pass has come to its end lately.
    failing: Option<scan::Failing>,
    /// Another guardian was capturing: what it wrote may not be in this copy.
    stood_by: bool,
    /// What guarding failed for last.
    failed: Option<Failed>,
    /// Nothing is captured at all.
    outage: Option<Outage>,
    pulse: Pulse,
}

impl Worker {
    fn new(
        mut parts: Parts,
        seals: impl FnOnce(Option<Client>, &Sender<Command>) -> Option<mpsc::UnboundedSender<Wanted>>,
    ) -> Result<(Self, Handle), StartError> {
        let (commands, inbox) = channel();
        let (publish, status) = watch::channel(Status {
            name: parts.source.name.clone(),
            origin: parts.tuning.origin(&parts.source),
            ..Status::default()
        });
        let accused = commands.clone();
        let accuse = move |code, text| {
            // The guardian is gone only when the process ends.
            let _ = accused.send(Command::Accused(code, text));
        };
        let desk = Arc::new(Desk::new(
            &parts.source.name,
            &parts.tuning.origin(&parts.source),
            parts.tuning.layout(&parts.source),
            parts.tuning.auditors.clone(),
            parts.clock.clone(),
            status.clone(),
            Box::new(accuse),
        ));
        let seals = seals(parts.client.take(), &commands);
        let witnesses = std::mem::take(&mut parts.witnesses).into_iter().enumerate();
        let cosigners = witnesses
            .map(|(number, peer)| Cosigner::start(peer, number, commands.clone()))
            .collect::<Result<_, _>>()?;
        let pulse = Pulse::new(parts.clock.clone());
        let worker = Self {
            parts,
            commands: commands.clone(),
            pass: 0,
            seals,
            cosigners,
            fleet: None,
            against: BTreeMap::new(),
            inbox,
            publish,
            delayed: None,
            uncosigned: None,
            unscanned: None,
            failing: None,
            stood_by: false,
            failed: None,
            outage: None,
            pulse,
        };
        let handle = Handle {
            intake: Intake::new(commands.clone()),
            commands,
            status,
            desk,
            pulse: worker.pulse.clone(),
        };
        Ok((worker, handle))
    }

    /// Has a task tell the authority's fleet of this trail. Inside a tokio runtime.
    fn join_fleet(&mut self) {
        let Some(fleet) = self.parts.fleet.take() else {
            return;
        };
        let layout = self.parts.tuning.layout(&self.parts.source);
        let entry = registered(&layout);
        self.publish.send_modify(|status| {
            status.fleet = Some(FleetStatus {
                entry,
                ..FleetStatus::default()
            });
        });
        let (newest, heads) = watch::channel(None);
        let commands = self.commands.clone();
        let reporter = Reporter {
            fleet,
            layout,
            clock: self.parts.clock.clone(),
            heads,
            tell: move |told| {
                // The guardian is gone only when the process ends.
                let _ = commands.send(Command::Fleet(told));
            },
        };
        tokio::spawn(reporter.run());
        self.fleet = Some(newest);
    }

    fn spawn(self, session: Option<Session>) -> Result<(), StartError> {
        std::thread::Builder::new()
            .name(format!("guard-{}", self.parts.source.name))
            .spawn(move || self.run(session))
            .map_err(StartError::Thread)?;
        Ok(())
    }

    fn run(mut self, mut session: Option<Session>) {
        let mut wait = FIRST_WAIT;
        loop {
            let began = (self.parts.clock)();
            let ended = match session.take() {
                Some(mut open) => {
                    let ended = open.run(&mut self);
                    let is_new = (self.parts.clock)().saturating_sub(began) > STEADY_US;
                    open.weigh(&mut self, &ended, is_new);
                    ended
                }
                None => {
                    self.pulse.rest();
                    match Session::open(&mut self) {
                        Ok(open) => {
                            session = Some(open);
                            continue;
                        }
                        Err(error) => Ended::Failed(error),
                    }
                }
            };
            // What fails as soon as it is opened is not opened all the time: the
            // whole trail is read for it.
            if (self.parts.clock)().saturating_sub(began) > STEADY_US {
                wait = FIRST_WAIT;
            }
            match ended {
                // The session is gone: the trail is closed, and its lock free.
                Ended::Stopped(reply) => {
                    self.pulse.rest();
                    self.publish.send_modify(|s| s.state = SourceState::Stopped);
                    let _ = reply.map(|reply| reply.send(()));
                    return;
                }
                Ended::Erased => {}
                Ended::Failed(error) => {
                    self.interrupted(&error);
                    // Whoever stands by is there at once.
                    let now = if error.is_taken() { STANDBY_WAIT } else { wait };
                    if self.idle(now) {
                        self.publish.send_modify(|s| s.state = SourceState::Stopped);
                        return;
                    }
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    fn interrupted(&mut self, error: &StartError) {
        self.note_outage(error);
        self.stood_by |= error.is_taken();
        let words = error.words();
        tracing::error!(source = %self.parts.source.name, error = words, "guarding is interrupted");
        let state = match error {
            StartError::Database(_) | StartError::Init(_) | StartError::Thread(_) => {
                SourceState::DatabaseUnavailable
            }
            StartError::Behind(_)
            | StartError::Trail(TrailError::Read(pitser_trail::ReadError::Damaged(_))) => {
                SourceState::Damaged
            }
            StartError::Trail(_) => SourceState::TrailUnavailable,
        };
        let genesis = self.genesis();
        let unwatched = self.unwatched().filter(|_| !error.is_taken());
        self.publish.send_modify(|s| {
            s.state = state;
            s.trouble = Some(words);
            s.genesis = genesis;
            // It has no line yet: the next session shows those that have.
            s.findings.retain(|finding| finding.line.is_some());
            s.findings.extend(unwatched);
        });
    }

    /// Which trail this is, also before it could be opened: whoever is told of an outage is
    /// told whose it is.
    fn genesis(&self) -> String {
        let shown = self.publish.borrow().genesis.clone();
        if !shown.is_empty() {
            return shown;
        }
        let layout = self.parts.tuning.layout(&self.parts.source);
        match pitser_trail::read::genesis(&layout) {
            Ok((_, hash)) => hash.to_string(),
            Err(_) => shown,
        }
    }

    /// Waits before the next attempt, refusing what cannot be done meanwhile;
    /// `true` if told to stop.
    fn idle(&mut self, wait: Duration) -> bool {
        self.pulse.rest();
        let publish = self.publish.clone();
        let trouble = || publish.borrow().trouble.clone().unwrap_or_default();
        let until = std::time::Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Command::Submit { reply, .. }) => {
                    drop(reply.send(Err(SubmitError::Unavailable(trouble()))))
                }
                Ok(Command::Scan { reply }) => drop(reply.send(Err(trouble()))),
                Ok(Command::Settle { reply }) => drop(reply.send(Err(trouble()))),
                Ok(Command::Erasure { reply, .. }) => {
                    drop(reply.send(Err(Refused::Unavailable(trouble()))))
                }
                Ok(Command::Accept { reply, .. }) => {
                    drop(reply.send(Err(Refused::Unavailable(trouble()))))
                }
                Ok(Command::AcceptOf { reply, .. }) => {
                    drop(reply.send(Err(Refused::Unavailable(trouble()))))
                }
                Ok(Command::Cosigned { witness, .. }) => {
                    if let Some(cosigner) = self.cosigners.get_mut(witness) {
                        cosigner.forget();
                    }
                }
                Ok(Command::Fleet(told)) => self.told(told),
                Ok(Command::Accused(code, text)) => self.accuse(code, text),
                Ok(
                    Command::Seal(_)
                    | Command::Expect { .. }
                    | Command::Suspects { .. }
                    | Command::Looked { .. },
                ) => {}
                Ok(Command::Stop { reply, .. }) => {
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
    /// Somebody who asked for it is told when all is closed.
    Stopped(Option<oneshot::Sender<()>>),
    /// Somebody was erased: what is in memory about him goes with the session, and
    /// the next one knows what is still to be known.
    Erased,
    Failed(StartError),
}

impl Ended {
    /// What to say to somebody who waits for something.
    fn why(&self) -> String {
        match self {
            Self::Failed(error) => error.words(),
            Self::Stopped(_) | Self::Erased => "the guardian has stopped".into(),
        }
    }
}

impl<E: Into<StartError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One stretch of guarding between two failures.
struct Session {
    /// That the database takes no new word any more was told.
    word_refused: bool,
    /// The database was asked all that is asked before anything is captured.
    has_begun: bool,
    source: Box<dyn Database>,
    trail: Trail,
    /// Changes that are written together.
    queue: Queue,
    patients: Patients,
    actors: Actors,
    /// Rules that do not fit the tables any more, by the table that they are about.
    unfit: BTreeMap<Option<String>, String>,
    mapping: Digest,
    fingerprint: Vec<u8>,
    incidents: Incidents,
    logged: Logged,
    /// Lines of findings of rows that are open and only counted, by the last pass.
    counted_rows: Arc<Lines>,
    /// Everything up to here is in the trail, or in the queue.
    position: Position,
    /// The newest position that is durable, in a checkpoint line or its own file.
    kept: Position,
    /// Tables whose rows that were there still lack their line, those first
    /// through which others find patients and people.
    unbaselined: Vec<String>,
    /// The table whose rows are being read.
    reading: Option<String>,
    /// Tables whose rows cannot be read: they lack their line, or their new key.
    aside: HashSet<String>,
    /// How far they were read.
    baselined: Option<BaselineStatus>,
    /// All of them are of a trail that was just begun.
    is_new: bool,
    /// Records that were deleted before their table's baseline was complete.
    gone: HashSet<(String, Bytes32)>,
    /// What the source said when it began to be read.
    begun: Vec<Captured>,
    /// What the trail says that the fingerprint was, until that is compared.
    sealed: Option<Digest>,
    /// The highest number of a transaction that was told before this session, since
    /// something was missing last.
    newest_tx: u64,
    /// Witnesses are asked before anything is written.
    is_consulting: bool,
    /// The database is about to drop what was not taken yet.
    is_in_danger: bool,
    /// Tables whose rows all have their line, or had while they were guarded.
    live: HashSet<String>,
    /// Tables whose records are yet to go on under another key, those included that have
    /// none now.
    rekeyed: Rekeyed,
    /// Those of them that may have had a third one in between.
    rekeyed_again: HashSet<String>,
    /// What the columns of tables were called.
    columns: Columns,
    /// Columns that the catalogue was asked about last.
    asked: Option<columns::Named>,
    /// The keys of all tables, as they were asked for lately.
    asked_keys: Option<capture::AskedKeys>,
    /// Changes that cannot be read, until one can.
    unread: Option<Unread>,
    /// Tables without a key of which a change could not be told, as a finding says.
    untold: HashSet<String>,
    /// Tables that the configuration names and nobody guards, and that were told.
    unguarded: BTreeSet<String>,
    events: u64,
    /// How often rows of tables without a key are there, by the record of the first.
    copies: HashMap<Bytes32, u64>,
    /// The transaction whose changes are coming.
    open: Transaction,
    /// When the one before says that it was committed, in microseconds since 1970; `None`
    /// before the first since the start.
    committed_at: Option<u64>,
    /// What came last says to be yet to come.
    is_ahead: bool,
    /// The last poll gave something: there may be more.
    more: bool,
    /// Something was taken that is not durable, or not shown.
    unshown: bool,
    heads: Heads,
    /// Blocks that wait for their seal, oldest first.
    waiting: VecDeque<Waiting>,
    open_times: Vec<u64>,
    latencies: VecDeque<u64>,
    recent: VecDeque<BlockStatus>,
    settling: Vec<(u64, oneshot::Sender<Result<u64, String>>)>,
    closed_at: u64,
    /// When this session began.
    opened_at: u64,
    /// How long closing a block took lately, in microseconds.
    closing_us: u64,
    /// The source can forget what stands up to here.
    ack_due: Option<Position>,
    /// What is kept of what it has forgotten.
    forgotten: Option<Position>,
    scan_due: bool,
    /// The next pass begins when the trail has come this far.
    scan_after: Option<Position>,
    scanning: Option<Pass>,
    /// Who waits for the pass after the one under way.
    scan_replies: Vec<ScanReply>,
    /// What can wait for the last row of the baseline.
    postponed: Vec<Command>,
    next: Due,
}

type ScanReply = oneshot::Sender<Result<ScanSummary, String>>;

/// A pass over the live rows that is under way on its own thread.
struct Pass {
    number: u64,
    /// The number of the line that came next when it began.
    begun_at: u64,
    /// Tables that it looks at.
    scanned: HashSet<String>,
    touched: Touched,
    replies: Vec<ScanReply>,
    /// Guarded tables that it leaves out. What was wrong with their rows still is.
    incomparable: Vec<UnreadStatus>,
    /// Rows that it waits with until they are judged.
    suspects: Option<(Suspects, Sender<()>)>,
    /// What it saw, while the trail has not come as far as this yet: whatever bears on
    /// what was seen stands before it.
    seen: Option<(Look, Position)>,
}

/// A block that waits for its seal. Times are in microseconds since 1970.
struct Waiting {
    block: u64,
    /// Since it was closed.
    since: u64,
    /// When its lines were committed.
    times: Vec<u64>,
}

/// When regular work is due, in microseconds since 1970.
struct Due {
    /// When it was looked for last.
    seen: u64,
    close: u64,
    scan: u64,
    fingerprint: u64,
    word: u64,
    cosign: u64,
    commit: u64,
    /// How far the rows of a baseline were read is told.
    progress: u64,
    /// Findings that were only counted are looked for.
    more: u64,
}

impl Due {
    /// Looks what is due now. A clock that was set back takes everything with it, or nothing
    /// would be done until it is there again. Gives by how much.
    fn look(&mut self, now: u64) -> u64 {
        let back = self.seen.saturating_sub(now);
        self.seen = now;
        if back > 0 {
            let Self {
                seen: _,
                close,
                scan,
                fingerprint,
                word,
                cosign,
                commit,
                progress,
                more,
            } = self;
            for due in [
                close,
                scan,
                fingerprint,
                word,
                cosign,
                commit,
                progress,
                more,
            ] {
                // What is never due stays so.
                if *due != u64::MAX {
                    *due = due.saturating_sub(back);
                }
            }
        }
        back
    }
}
