//! The fleet: trails that guardians have registered, and how long they are
//! (docs/spec/52-fleet.md). No line, row or patient is ever heard of here.
//!
//! | part      | does                                                            |
//! |-----------|-----------------------------------------------------------------|
//! | `ledger`  | what is known, and what follows from what comes in; pure         |
//! | `journal` | files of events that survive a crash                             |
//! | `order`   | which registration comes next, if there are several nodes       |
//! | `cosign`  | a thread that brings the log's checkpoints to the witnesses      |
//! | `show`    | the list, as JSON and as a page                                  |
//! | `site`    | all of it over HTTP                                              |
//!
//! ```text
//! fleet/registrations   who registered what, in the order of the log's entries
//! fleet/heads           heads, and what contradicts them; rewritten when it grows
//! fleet/checkpoint      the log's newest checkpoint
//! fleet/witnessed       the newest one that a quorum has cosigned
//! ```
//!
//! Unlike the calendar's log, this one is no function of anything else: its entries
//! are what is kept, and an entry and its checkpoint are durable before anybody is
//! answered. It is small, so that tree and entries stand in memory.

mod cosign;
mod journal;
mod ledger;
mod order;
mod show;
mod site;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use data_encoding::HEXLOWER;
use pitser_client::fleet::{Judgement, Registration};
use pitser_disk::{Access, replace, replace_unsynced};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_tlog::proof::LogProof;
use serde_json::Value;

use crate::clock::Micros;
use crate::config::Config;
use crate::log::{LogError, open_key};
use cosign::Cosigner;
use journal::{Care, Journal};
use ledger::{Bounds, Heading, Ledger, NotTaken, Registering};
#[cfg(feature = "cluster")]
pub(crate) use order::Order;
use order::{ATTEMPTS, Shared, away};
pub(crate) use show::Counts;
pub(crate) use site::{get, post};

/// What an operator decides about the fleet.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Trails that one user may register.
    pub origins_per_user: usize,
    /// A trail of which nothing was heard for so many seconds counts as silent. A
    /// guardian sends a head at least once a minute.
    pub silent_s: u64,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            origins_per_user: 64,
            silent_s: 900,
        }
    }
}

/// Why the fleet cannot be opened, or does not take something. Says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The log's key cannot be used.
    #[error(transparent)]
    Key(#[from] LogError),
    /// A file was altered.
    #[error("line {line} of {} is damaged; restore the file from a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
    },
    /// The log was signed under another name.
    #[error(
        "the fleet's log in {} is that of {found}, and {configured} is configured; an origin never changes: \
         set log.origin as it was",
        dir.display()
    )]
    OtherOrigin {
        /// The folder.
        dir: PathBuf,
        /// What its checkpoint says.
        found: String,
        /// What follows from the configuration.
        configured: String,
    },
    /// A checkpoint was signed that the entries do not lead to.
    #[error(
        "a checkpoint of {size} registrations was signed that {} does not lead to: it was restored from an \
         old copy, or altered; restore the newest one",
        dir.display()
    )]
    Contradicted {
        /// The folder.
        dir: PathBuf,
        /// Entries of the checkpoint.
        size: u64,
    },
    /// Several nodes are one authority, and this one cannot ask what comes next.
    #[error(
        "registrations go through etcd, and {reason}; ask another node of this authority, or again later"
    )]
    Away {
        /// Why not.
        reason: String,
    },
    /// Two logs were begun under one key.
    #[error(
        "event {number} of {}/registrations is another one in etcd: this node's fleet log and that of the \
         other nodes are two, so it registers nothing. Keep both, and see which one your witnesses cosigned. \
         If it is not this node's, stop it, and replace {0} by a copy of another node's",
        dir.display()
    )]
    Apart {
        /// The folder.
        dir: PathBuf,
        /// The event, counted from 0.
        number: u64,
    },
    /// What etcd holds cannot follow what is here.
    #[error(
        "event {number} of the fleet in etcd means nothing after those before it: somebody else wrote there, or \
         a newer version did. This node registers nothing; update it, or restore etcd from a snapshot"
    )]
    Unfit {
        /// The event, counted from 0.
        number: u64,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FleetError {
    let path = path.to_owned();
    move |source| FleetError::Io {
        action,
        path,
        source,
    }
}

/// Everything about the fleet; shared by connections.
pub(crate) struct Fleet {
    dir: PathBuf,
    config: FleetConfig,
    key: SigningKey,
    /// The authority's own: for its log, and for the heads of trails.
    witnesses: Vec<VerifierKey>,
    quorum: usize,
    /// `None`: no other node registers trails with this key.
    shared: Option<Shared>,
    /// Locked for one request, which may wait for the disk: off the runtime, but for
    /// what monitors count.
    inner: Mutex<Inner>,
    /// Tells the thread that asks witnesses.
    bell: Sender<()>,
}

struct Inner {
    ledger: Ledger,
    registrations: Journal,
    /// How many events `registrations` has; those of trails that moved are no entries.
    events: u64,
    /// The last one of them.
    newest: Option<Value>,
    heads: Journal,
    /// Bytes of `heads` when it was rewritten last.
    compact: u64,
    tree: LogTree,
    checkpoint: Option<Signed>,
    witnessed: Option<Signed>,
    /// What witnesses said against the newest checkpoint.
    troubles: Vec<String>,
    /// Why this node registers nothing, if there are others.
    away: Option<String>,
}

/// A signed checkpoint of the log.
#[derive(Debug, Clone)]
struct Signed {
    size: u64,
    note: Note,
}

/// What a registration came to.
#[derive(Debug)]
enum Registered {
    Proof(LogProof),
    /// Another trail has the origin.
    Taken(String),
    TooMany(&'static str),
}

/// What a head came to.
#[derive(Debug)]
enum Heard {
    Taken,
    Contradicts(String),
    Refused(NotTaken),
}

/// Name of the fleet's log: beside that of the calendar's.
fn origin_beside(calendar: &str) -> String {
    let host = calendar.rsplit_once('/').map_or(calendar, |(host, _)| host);
    format!("{host}/fleet")
}

impl Fleet {
    /// Opens the fleet in the data folder, and begins to ask the witnesses of the log.
    ///
    /// # Errors
    /// [`FleetError`].
    pub(crate) fn open(config: &Config) -> Result<Arc<Self>, FleetError> {
        let (dir, log) = (config.dir.join(FOLDER), &config.log);
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let key = open_key(&config.dir, &origin_beside(&log.origin))?;
        let witnesses: Vec<_> = log.witnesses.iter().map(|one| one.key.clone()).collect();
        let inner = Inner::open(&dir, &key, &witnesses)?;
        let (bell, grown) = channel();
        let mut fleet = Self {
            dir,
            config: config.fleet.clone(),
            key,
            witnesses,
            quorum: log.quorum,
            shared: config.is_clustered().then(Shared::default),
            inner: Mutex::new(inner),
            bell,
        };
        fleet.remember_witnessed()?;
        {
            let mut inner = fleet.inner();
            fleet.sign(&mut inner)?;
        }
        let fleet = Arc::new(fleet);
        if !log.witnesses.is_empty() {
            let cosigner = Cosigner {
                fleet: Arc::downgrade(&fleet),
                grown,
                peers: Cosigner::peers(&log.witnesses),
            };
            thread::Builder::new()
                .name("fleet-log".to_owned())
                .spawn(move || cosigner.run())
                .map_err(io_error(
                    "start the thread that has witnesses cosign",
                    &fleet.dir,
                ))?;
        }
        Ok(fleet)
    }

    /// The key of the fleet's log; its name is the log's origin.
    pub(crate) fn key(&self) -> VerifierKey {
        self.key.verifier()
    }

    /// Registers a trail for `user`. Blocks on the disk, and on etcd if other nodes
    /// register trails too.
    fn register(
        &self,
        registration: &Registration,
        note: &Note,
        user: &str,
        now: Second,
        is_user: &dyn Fn(&str) -> bool,
    ) -> Result<Registered, FleetError> {
        let bounds = Bounds {
            origins_per_user: self.config.origins_per_user,
            is_user,
        };
        let mut turn = None;
        for _ in 0..ATTEMPTS {
            let mut inner = self.inner();
            let judged = inner
                .ledger
                .register(registration, note, user, now, &bounds);
            let event = match judged {
                Registering::TooMany(reason) => return Ok(Registered::TooMany(reason)),
                Registering::Known(judgement, place) => {
                    // Also after a failure: nobody is told of an entry without a checkpoint.
                    self.sign(&mut inner)?;
                    return Ok(match judgement {
                        Judgement::Registered => Registered::Proof(self.prove(&inner, place)?),
                        Judgement::Refused => {
                            Registered::Taken(taken(&inner.ledger, registration, place))
                        }
                    });
                }
                Registering::New(event) => event,
            };
            let Some(shared) = &self.shared else {
                self.keep(&mut inner, &event)?;
                tell(&event, registration, user);
                continue;
            };
            let (at, after) = (inner.events, inner.newest.clone());
            drop(inner);
            let Some(turn) = &mut turn else {
                // Others of this node had theirs meanwhile: judge again.
                turn = Some(shared.turn());
                continue;
            };
            if shared.propose(self, turn, (at, after.as_ref()), &event)? {
                tell(&event, registration, user);
            }
        }
        Err(away("other nodes came first again and again"))
    }

    /// Takes a head that `user` sends. Blocks on the disk.
    fn head(
        &self,
        sent: (&Checkpoint, &Note),
        user: &str,
        sent_us: u64,
        now: Second,
    ) -> Result<Heard, FleetError> {
        let mut inner = self.inner();
        let origin = sent.0.origin();
        let judged = inner.ledger.head(sent, user, sent_us, now, &self.witnesses);
        match judged {
            Heading::Refused(reason) => Ok(Heard::Refused(reason)),
            Heading::Taken(event) => {
                // What a power cut takes of heads, the next ones bring back.
                inner.heads.append(&event, false)?;
                let _ = inner.ledger.apply(&event, &self.witnesses);
                self.compact(&mut inner);
                Ok(Heard::Taken)
            }
            Heading::Contradicts { word, held, event } => {
                if let Some(event) = event {
                    inner.heads.append(&event, true)?;
                    let _ = inner.ledger.apply(&event, &self.witnesses);
                    tracing::error!(
                        origin,
                        user,
                        word,
                        "a trail contradicts its own head: both are kept"
                    );
                }
                let size = sent.0.size();
                Ok(Heard::Contradicts(match word {
                    "forked" => format!("forked: another head of {size} blocks was sent before"),
                    _ => format!(
                        "shrunk: this head has {size} blocks, one of {held} was sent before"
                    ),
                }))
            }
        }
    }

    /// Makes an event about a registration durable, then true.
    fn keep(&self, inner: &mut Inner, event: &Value) -> Result<(), FleetError> {
        // A file with an event that means nothing is not opened again.
        if !inner.ledger.accepts(event) {
            return Err(FleetError::Unfit {
                number: inner.events,
            });
        }
        inner.registrations.append(event, true)?;
        inner.events += 1;
        inner.newest = Some(event.clone());
        let _ = inner.ledger.apply(event, &self.witnesses);
        inner.grow();
        Ok(())
    }

    /// Rewrites the file of heads when most of it is history. A failure leaves it.
    fn compact(&self, inner: &mut Inner) {
        if inner.heads.len() < inner.compact.saturating_mul(2) + COMPACT_BYTES {
            return;
        }
        let events: Vec<_> = inner.ledger.heads().collect();
        if let Err(error) = inner.heads.replace(events.into_iter()) {
            tracing::warn!(%error, "the file of heads is not rewritten: it goes on growing");
        }
        inner.compact = inner.heads.len();
    }

    /// Signs a checkpoint of all entries, unless there is one.
    fn sign(&self, inner: &mut Inner) -> Result<(), FleetError> {
        let size = inner.tree.size();
        if inner.checkpoint.as_ref().map_or(0, |signed| signed.size) == size {
            return Ok(());
        }
        let checkpoint = Checkpoint::new(self.key.name(), size, inner.tree.root());
        let note = checkpoint.and_then(|checkpoint| checkpoint.sign(&self.key));
        let note =
            note.map_err(|e| LogError::Config(format!("no checkpoint of the fleet: {e}")))?;
        let path = self.dir.join(CHECKPOINT);
        replace(&path, note.to_string().as_bytes(), Access::Everybody)
            .map_err(io_error("write", &path))?;
        inner.checkpoint = Some(Signed { size, note });
        // Without a thread nobody is asked.
        let _ = self.bell.send(());
        Ok(())
    }

    /// Proves entry `place` under the newest checkpoint.
    fn prove(&self, inner: &Inner, place: u64) -> Result<LogProof, FleetError> {
        let newest = inner.checkpoint.as_ref();
        let cosigned = inner.witnessed.as_ref();
        let head = cosigned
            .filter(|signed| Some(signed.size) == newest.map(|newest| newest.size))
            .or(newest);
        let proof = head.and_then(|head| {
            let path = inner.tree.inclusion_proof(place, head.size).ok()?;
            let entry = inner.ledger.entries().get(usize::try_from(place).ok()?)?;
            let proof = LogProof::new(place, path, head.note.clone()).ok()?;
            proof.with_extra(entry.clone()).ok()
        });
        proof.ok_or(FleetError::Contradicted {
            dir: self.dir.clone(),
            size: place + 1,
        })
    }

    /// The log and its newest checkpoint, for the witnesses.
    fn newest(&self) -> Option<(LogTree, Note)> {
        let inner = self.inner();
        let signed = inner.checkpoint.as_ref()?;
        Some((inner.tree.clone(), signed.note.clone()))
    }

    /// What the witnesses said to a checkpoint.
    fn cosigned(&self, size: u64, note: Note, by: usize, troubles: Vec<String>) {
        let mut inner = self.inner();
        if inner.troubles != troubles {
            for trouble in &troubles {
                tracing::warn!("the fleet's log is not cosigned: {trouble}");
            }
        }
        inner.troubles = troubles;
        if by == 0 || by < self.quorum {
            return;
        }
        let path = self.dir.join(WITNESSED);
        if let Err(error) = replace_unsynced(&path, note.to_string().as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "the witnessed checkpoint is not kept for the next start");
        }
        inner.witnessed = Some(Signed { size, note });
    }

    /// Reads what was witnessed before the start.
    fn remember_witnessed(&mut self) -> Result<(), FleetError> {
        let read = read_note(&self.dir.join(WITNESSED))?;
        let key = self.key.verifier();
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.witnessed = read.and_then(|note| {
            let checkpoint = Checkpoint::open(&note, key.name(), &key).ok()?;
            let size = checkpoint.size();
            (inner.tree.root_at(size).ok()? == *checkpoint.root()).then_some(Signed { size, note })
        });
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn open(dir: &Path, key: &SigningKey, witnesses: &[VerifierKey]) -> Result<Self, FleetError> {
        let mut ledger = Ledger::default();
        let mut open = |name: &str, care: Care| {
            let path = dir.join(name);
            let (journal, events) = Journal::open(&path, care)?;
            for (at, event) in events.iter().enumerate() {
                if ledger.apply(event, witnesses).is_none() && care == Care::Strict {
                    let line = at + 1;
                    return Err(FleetError::Damaged { path, line });
                }
            }
            Ok((journal, events))
        };
        let (registrations, mut events) = open(REGISTRATIONS, Care::Strict)?;
        let (heads, _) = open("heads", Care::Lenient)?;
        let mut inner = Self {
            compact: heads.len(),
            ledger,
            registrations,
            events: events.len() as u64,
            newest: events.pop(),
            heads,
            tree: LogTree::new(),
            checkpoint: None,
            witnessed: None,
            troubles: Vec::new(),
            away: None,
        };
        inner.grow();
        if let Some(note) = read_note(&dir.join(CHECKPOINT))? {
            inner.checkpoint = Some(inner.lead_to(note, dir, key)?);
        }
        Ok(inner)
    }

    /// The entries must lead to what was signed.
    fn lead_to(&self, note: Note, dir: &Path, key: &SigningKey) -> Result<Signed, FleetError> {
        let contradicted = |size| FleetError::Contradicted {
            dir: dir.to_owned(),
            size,
        };
        let Ok(checkpoint) = Checkpoint::parse(note.text()) else {
            return Err(FleetError::Damaged {
                path: dir.join(CHECKPOINT),
                line: 1,
            });
        };
        if checkpoint.origin() != key.name() {
            return Err(FleetError::OtherOrigin {
                dir: dir.to_owned(),
                found: checkpoint.origin().to_owned(),
                configured: key.name().to_owned(),
            });
        }
        let size = checkpoint.size();
        match self.tree.root_at(size) {
            Ok(root) if root == *checkpoint.root() => Ok(Signed { size, note }),
            _ => Err(contradicted(size)),
        }
    }

    /// Brings the tree up to the entries.
    fn grow(&mut self) {
        let from = usize::try_from(self.tree.size()).unwrap_or(usize::MAX);
        for entry in self.ledger.entries().iter().skip(from) {
            self.tree.push(leaf_hash(entry));
        }
    }
}

/// All events about registrations in the data folder `data`, in their order.
///
/// # Errors
/// [`FleetError`].
#[cfg(feature = "cluster")]
pub(crate) fn registrations(data: &Path) -> Result<Vec<Value>, FleetError> {
    let path = data.join(FOLDER).join(REGISTRATIONS);
    match path.exists() {
        true => Ok(Journal::open(&path, Care::Strict)?.1),
        false => Ok(Vec::new()),
    }
}

/// A note that is replaced as a whole, if there is one.
fn read_note(path: &Path) -> Result<Option<Note>, FleetError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Note::parse(&bytes).ok()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path)(e)),
    }
}

/// Logs what somebody should look at.
fn tell(event: &Value, registration: &Registration, user: &str) {
    let origin = registration.origin();
    match event["kind"].as_str() {
        Some("moved") => {
            tracing::info!(
                origin,
                user,
                "a trail of a user who is gone is another's now"
            );
        }
        Some("refused") => tracing::warn!(
            origin,
            user,
            "another trail of a registered origin was refused: somebody began a fresh one"
        ),
        _ => {}
    }
}

/// What is told to whoever brings a second trail.
fn taken(ledger: &Ledger, registration: &Registration, place: u64) -> String {
    let origin = registration.origin();
    let held = ledger.trail(origin).map_or_else(String::new, |held| {
        let genesis = HEXLOWER.encode(held.registration.genesis.as_bytes());
        format!(
            "{origin} has genesis {genesis}, entry {} of {}",
            held.entry, held.registered_at
        )
    });
    format!("taken: {held}; this one is refused, and everybody can see that in entry {place}")
}

/// The fleet's folder inside the data folder.
const FOLDER: &str = "fleet";
const REGISTRATIONS: &str = "registrations";
const CHECKPOINT: &str = "checkpoint";
const WITNESSED: &str = "witnessed";

/// History in the file of heads that is not worth rewriting it for.
const COMPACT_BYTES: u64 = 4 << 20;

/// A guardian's clock and ours differ by no more than this.
const SKEW_S: u64 = 300;

fn is_near(sent_us: u64, now: Micros) -> bool {
    sent_us.abs_diff(now.0) <= SKEW_S * 1_000_000
}
