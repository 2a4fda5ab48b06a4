//! The thread that keeps the log: follows the calendar, signs its newest second,
//! has that cosigned.
//!
//! It is told of each second after the second is durable, and by nobody waited
//! for. When it is behind it coalesces: every second gets its entry, the newest
//! one its checkpoint. Each witness is asked on a thread of its own; a new head is
//! not put before them until the old one has its quorum, or all have answered, so
//! that witnesses of different pace still meet on one head.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use pitser_disk::replace_unsynced;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
use pitser_tlog::merkle;
use pitser_tlog::note::{Note, SignatureLine, SigningKey, VerifierKey};
use pitser_witness::{Answer, Asker, Ballot, Peer, SubmitError};
use tokio::sync::watch;

use super::files::{Files, Follower};
use super::key::open_key;
use super::{LogConfig, LogError, LogStatus, LogWitnessStatus, io_error};
use crate::calendar::CalendarReader;

/// What there is to see of the log. Replaced as a whole, so that its parts agree.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) status: LogStatus,
    /// The newest checkpoint, with the cosignatures that it has.
    pub(super) checkpoint: Option<Arc<Head>>,
    /// The newest one that a quorum has cosigned.
    pub(super) witnessed: Option<Arc<Head>>,
}

/// A signed checkpoint.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) size: u64,
    pub(super) note: Note,
}

/// What the keeper is opened with.
pub(crate) struct Setup<'a> {
    /// The data folder.
    pub(crate) dir: &'a Path,
    pub(crate) calendar: CalendarReader,
    pub(crate) config: &'a LogConfig,
}

/// The log before its thread runs.
pub(crate) struct Keeper {
    follower: Follower,
    key: SigningKey,
    witnesses: Vec<VerifierKey>,
    cosigners: Vec<Cosigner>,
    quorum: usize,
    /// Checkpoints from before the start, until the log is found to lead to them.
    known: Vec<Checkpoint>,
    /// Nothing is signed any more: the calendar contradicts what was.
    is_halted: bool,
    /// The head that the witnesses are asked about.
    ballot: Option<Ballot>,
    view: watch::Sender<View>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    /// Set to leave a long catching up.
    is_stopping: Arc<AtomicBool>,
}

/// A witness, and what is shown of it.
struct Cosigner {
    asker: Asker,
    shown: LogWitnessStatus,
}

enum Event {
    /// The calendar has a new second.
    Grown,
    Answered {
        witness: usize,
        answer: Answer,
    },
    Stop,
}

/// Tells the keeper that the calendar has grown. Never blocks.
#[derive(Debug, Clone)]
pub(crate) struct Bell(Sender<Event>);

impl Bell {
    pub(crate) fn ring(&self) {
        // Without a keeper nobody needs to know.
        let _ = self.0.send(Event::Grown);
    }
}

/// The running keeper. Dropping it stops it without waiting.
#[derive(Debug)]
pub(crate) struct KeeperHandle {
    key: VerifierKey,
    view: watch::Receiver<View>,
    events: Sender<Event>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl KeeperHandle {
    pub(crate) fn key(&self) -> &VerifierKey {
        &self.key
    }

    pub(crate) fn status(&self) -> LogStatus {
        self.view.borrow().status.clone()
    }

    /// Waits until `wanted` holds of the log; what it looked like then.
    pub(crate) async fn until(&self, mut wanted: impl FnMut(&LogStatus) -> bool) -> LogStatus {
        let mut view = self.view.clone();
        match view.wait_for(|view| wanted(&view.status)).await {
            Ok(view) => view.status.clone(),
            Err(_) => self.status(),
        }
    }

    /// Appends and signs what the calendar has by now, unless that takes long,
    /// and ends the thread. Witnesses are not waited for. Blocks.
    pub(crate) fn stop(mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was told when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for KeeperHandle {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let _ = self.events.send(Event::Stop);
    }
}

impl Keeper {
    /// Opens the log, and makes sure that nothing it signed is contradicted as
    /// far as that can be told at once.
    ///
    /// # Errors
    /// [`LogError`].
    pub(crate) fn open(setup: Setup<'_>) -> Result<Self, LogError> {
        let config = setup.config;
        let key = open_key(setup.dir, &config.origin)?;
        check(config, &key.verifier())?;
        let dir = setup.dir.join(FOLDER);
        let follower = Follower::open(&dir, setup.calendar, &config.origin)?;
        let (events, inbox) = channel();
        let cosigners = start_cosigners(config, &events)?;
        let mut keeper = Self {
            follower,
            witnesses: config.witnesses.iter().map(|w| w.key.clone()).collect(),
            cosigners,
            quorum: config.quorum,
            key,
            known: Vec::new(),
            is_halted: false,
            ballot: None,
            view: watch::Sender::default(),
            events,
            inbox,
            is_stopping: Arc::default(),
        };
        keeper.remember()?;
        keeper.show();
        Ok(keeper)
    }

    pub(crate) fn bell(&self) -> Bell {
        Bell(self.events.clone())
    }

    pub(super) fn files(&self) -> &Arc<Files> {
        self.follower.files()
    }

    pub(super) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Lets the thread run.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(self) -> Result<KeeperHandle, LogError> {
        let (key, view) = (self.key.verifier(), self.view());
        let (events, is_stopping) = (self.events.clone(), Arc::clone(&self.is_stopping));
        let dir = self.files().dir().to_owned();
        let thread = thread::Builder::new().name("calendar-log".to_owned());
        let thread = thread
            .spawn(move || self.run())
            .map_err(io_error("start the thread that keeps", &dir))?;
        Ok(KeeperHandle {
            key,
            view,
            events,
            is_stopping,
            thread: Some(thread),
        })
    }

    fn run(mut self) {
        self.follow();
        while let Ok(event) = self.inbox.recv() {
            let (mut has_grown, mut is_over) = (false, false);
            let mut next = Some(event);
            while let Some(event) = next {
                match event {
                    Event::Grown => has_grown = true,
                    Event::Answered { witness, answer } => self.heard(witness, answer),
                    Event::Stop => is_over = true,
                }
                next = self.inbox.try_recv().ok();
            }
            if has_grown || is_over {
                self.follow();
            }
            if is_over {
                if let Err(error) = self.follower.sync() {
                    tracing::warn!(%error, "the log's files were not synced: they are computed again");
                }
                return;
            }
            self.canvass();
            self.show();
        }
    }

    /// Reads the checkpoints that were signed before, if they are ours.
    fn remember(&mut self) -> Result<(), LogError> {
        let (newest, witnessed) = (self.read(CHECKPOINT)?, self.read(WITNESSED)?);
        for note in [&newest, &witnessed].into_iter().flatten() {
            let opened = Checkpoint::open(note, self.key.name(), &self.key.verifier());
            let Ok(checkpoint) = opened else { continue };
            if checkpoint.size() > self.files().due() {
                return Err(self.contradicted(checkpoint.size()));
            }
            self.known.push(checkpoint);
        }
        self.check_known()?;
        // What counted as witnessed does so only for those who are trusted now.
        let witnessed = witnessed.and_then(|note| {
            let key = self.key.verifier();
            let quorum = verify_quorum(&note, &key, &self.witnesses, self.quorum).ok()?;
            let head = Head {
                size: quorum.checkpoint.size(),
                note,
            };
            Some((Arc::new(head), quorum.cosigned_at))
        });
        if let Some((head, at)) = witnessed {
            self.view.send_modify(|view| {
                view.status.witnessed = head.size;
                view.status.witnessed_at = Some(Second(at));
                view.witnessed = Some(head);
            });
        }
        Ok(())
    }

    /// A note in the folder. One that a crash has torn is as good as none.
    fn read(&self, name: &str) -> Result<Option<Note>, LogError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Note::parse(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    /// Brings the log up to the calendar and signs its newest second. What fails
    /// is tried again with the next second.
    fn follow(&mut self) {
        let outcome = match self.is_halted {
            true => return,
            false => self.catch_up().and_then(|()| self.sign()),
        };
        let trouble = outcome.as_ref().err().map(LogError::to_string);
        if trouble.is_some() && self.view.borrow().status.trouble != trouble {
            let error = trouble.as_deref().unwrap_or_default();
            tracing::error!(error, "the calendar's log does not grow");
        }
        self.is_halted = matches!(outcome, Err(LogError::Contradicted { .. }));
        self.view.send_modify(|view| view.status.trouble = trouble);
        self.canvass();
        self.show();
    }

    fn catch_up(&mut self) -> Result<(), LogError> {
        let mut told = self.files().size();
        // The seconds of an hour are appended in one go, also when it must stop.
        while self.follower.grow()? > 0 && !self.is_stopping.load(Ordering::Relaxed) {
            let (size, due) = (self.files().size(), self.files().due());
            if size - told >= TELL_EVERY {
                tracing::info!(size, due, "the log catches up with the calendar");
                told = size;
            }
        }
        Ok(())
    }

    /// Signs a checkpoint of everything, if the log is complete.
    fn sign(&mut self) -> Result<(), LogError> {
        let size = self.files().size();
        let newest = self.view.borrow().checkpoint.clone();
        if size == 0 || size < self.files().due() || newest.is_some_and(|head| head.size == size) {
            return Ok(());
        }
        self.check_known()?;
        let note = Checkpoint::new(self.key.name(), size, self.follower.root()?)
            .and_then(|checkpoint| checkpoint.sign(&self.key))
            .map_err(|e| LogError::Config(format!("no checkpoint of this origin: {e}")))?;
        // Written before anybody sees it: should the calendar be exchanged for an
        // older one, we are the first to notice.
        let path = self.path(CHECKPOINT);
        replace_unsynced(&path, note.to_string().as_bytes()).map_err(io_error("write", &path))?;
        let head = Arc::new(Head { size, note });
        self.view.send_modify(|view| {
            view.status.size = size;
            view.checkpoint = Some(head);
        });
        Ok(())
    }

    /// What was signed before the start must be what the log leads to, as far as
    /// the log is there.
    fn check_known(&mut self) -> Result<(), LogError> {
        let files = Arc::clone(self.files());
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|known: &Checkpoint| known.size() <= files.size());
        self.known = later;
        for known in now {
            if merkle::root(&*files, known.size())? != *known.root() {
                return Err(self.contradicted(known.size()));
            }
        }
        Ok(())
    }

    fn contradicted(&self, size: u64) -> LogError {
        LogError::Contradicted {
            dir: self.files().dir().to_owned(),
            size,
        }
    }

    /// Puts the newest checkpoint before the witnesses, unless they are still
    /// asked about another one.
    fn canvass(&mut self) {
        let newest = self.view.borrow().checkpoint.clone();
        let Some(newest) = newest.filter(|_| !self.cosigners.is_empty()) else {
            return;
        };
        let is_open = |ballot: &Ballot| ballot.size() == newest.size || !ballot.is_decided();
        if self.ballot.as_ref().is_some_and(is_open) {
            return;
        }
        let witnesses = self.cosigners.len();
        let note = newest.note.clone();
        self.ballot = Some(Ballot::new(note, newest.size, witnesses, self.quorum));
        for witness in 0..witnesses {
            // One that is still busy with an older head is asked when it is back.
            if !self.cosigners[witness].asker.is_busy() {
                self.ask(witness);
            }
        }
    }

    fn ask(&mut self, witness: usize) {
        let files = Arc::clone(self.files());
        let Some(ballot) = &self.ballot else { return };
        let asked = self.cosigners[witness].asker.ask(&*files, ballot.note());
        if let Err(error) = asked {
            let size = ballot.size();
            self.judged(witness, size, Err(error));
        }
    }

    /// An answer of a witness.
    fn heard(&mut self, witness: usize, answer: Answer) {
        let files = Arc::clone(self.files());
        let Some((size, line)) = self.cosigners[witness].asker.hear(&*files, answer) else {
            return;
        };
        self.judged(witness, size, line);
        if self.ballot.as_ref().is_some_and(|b| b.awaits(witness)) {
            self.ask(witness);
        }
    }

    fn judged(&mut self, witness: usize, size: u64, line: Result<SignatureLine, SubmitError>) {
        let newest_at = self.files().genesis().plus(size.saturating_sub(1));
        let cosigner = &mut self.cosigners[witness];
        let ballot = self.ballot.as_mut().filter(|ballot| ballot.size() == size);
        let (key, shown) = (cosigner.asker.key(), &mut cosigner.shown);
        let refusal = match line {
            Ok(line) => match stated_at(key, &line) {
                Some(at) if at.plus(BEHIND_S) >= newest_at => {
                    *shown = LogWitnessStatus {
                        name: std::mem::take(&mut shown.name),
                        size,
                        cosigned_at: Some(at),
                        trouble: None,
                    };
                    if let Some(ballot) = ballot {
                        ballot.cosigned(witness, key, line);
                    }
                    return self.keep_witnessed();
                }
                at => format!(
                    "it states {}, long before the head's newest second {newest_at}: its clock is wrong",
                    at.unwrap_or_default()
                ),
            },
            Err(error) => error.to_string(),
        };
        if shown.trouble.as_ref() != Some(&refusal) {
            tracing::warn!(witness = shown.name, "not cosigned: {refusal}");
        }
        if let Some(ballot) = ballot {
            ballot.refused(witness, format!("{}: {refusal}", shown.name));
        }
        shown.trouble = Some(refusal);
    }

    /// Keeps the head that witnesses are asked about, once enough have cosigned.
    fn keep_witnessed(&mut self) {
        let Some(ballot) = self.ballot.as_ref().filter(|b| b.is_cosigned()) else {
            return;
        };
        let path = self.path(WITNESSED);
        if let Err(error) = replace_unsynced(&path, ballot.note().to_string().as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "the witnessed checkpoint is not kept for the next start");
        }
        let head = Arc::new(Head {
            size: ballot.size(),
            note: ballot.note().clone(),
        });
        let at = ballot.cosigned_at().map(Second);
        let witnesses = self.shown();
        self.view.send_modify(|view| {
            view.status.witnesses = witnesses;
            view.status.witnessed = head.size;
            view.status.witnessed_at = at;
            view.witnessed = Some(head);
        });
    }

    /// Shows the witnesses as they are now.
    fn show(&self) {
        let witnesses = self.shown();
        self.view.send_if_modified(|view| {
            let is_new = view.status.witnesses != witnesses || view.status.quorum != self.quorum;
            view.status.witnesses = witnesses;
            view.status.quorum = self.quorum;
            is_new
        });
    }

    fn shown(&self) -> Vec<LogWitnessStatus> {
        self.cosigners.iter().map(|c| c.shown.clone()).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files().dir().join(name)
    }
}

fn start_cosigners(config: &LogConfig, events: &Sender<Event>) -> Result<Vec<Cosigner>, LogError> {
    let start = |(number, witness): (usize, &super::LogWitness)| {
        let events = events.clone();
        let answered = move |answer| {
            let answer = Event::Answered {
                witness: number,
                answer,
            };
            events.send(answer).is_ok()
        };
        let peer = Peer::new(Box::new(Arc::clone(&witness.way)), witness.key.clone());
        let asker = Asker::start(peer, &format!("log-witness-{number}"), answered)
            .map_err(|e| LogError::Config(format!("no thread to ask a witness: {e}")))?;
        let shown = LogWitnessStatus {
            name: witness.key.name().to_owned(),
            ..LogWitnessStatus::default()
        };
        Ok(Cosigner { asker, shown })
    };
    config.witnesses.iter().enumerate().map(start).collect()
}

/// Refuses a choice of witnesses that cannot mean anything.
fn check(config: &LogConfig, own: &VerifierKey) -> Result<(), LogError> {
    let no = |text: String| Err(LogError::Config(text));
    let mut keys = vec![own.public_key()];
    for witness in &config.witnesses {
        let name = witness.key.name();
        if !witness.key.algorithm().cosigns() {
            return no(format!("{name}: this key signs, a witness's key cosigns"));
        }
        if keys.contains(&witness.key.public_key()) {
            return no(format!("{name}: this key is there twice, or the log's own"));
        }
        keys.push(witness.key.public_key());
    }
    match (config.quorum, config.witnesses.len()) {
        (0, 0) => Ok(()),
        (0, n) => no(format!("say how many of the {n} witnesses must cosign")),
        (k, n) if k > n => no(format!("{k} witnesses must cosign, and there are {n}")),
        _ => Ok(()),
    }
}

/// The time in a cosignature that has been verified.
fn stated_at(key: &VerifierKey, line: &SignatureLine) -> Option<Second> {
    let stated = key.made(line).then(|| line.signature().first_chunk());
    stated.flatten().map(|at| Second(u64::from_be_bytes(*at)))
}

/// The log's folder inside the data folder.
const FOLDER: &str = "calendar-log";
const CHECKPOINT: &str = "checkpoint";
const WITNESSED: &str = "witnessed";

/// A witness's clock may be behind the calendar by so many seconds.
const BEHIND_S: u64 = 60;

/// Entries after which a long catching up says how far it is.
const TELL_EVERY: u64 = 1 << 22;
