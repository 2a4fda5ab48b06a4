//! The authority's fleet: the trail is registered there, and its heads are sent
//! (docs/spec/52-fleet.md).
//!
//! A task of its own talks to the authority, about the newest head alone; capture,
//! sealing and witnesses never wait for it. What the authority holds against the trail
//! comes back as a command and becomes a finding.

use crate::Clock;
use pitser_client::fleet::{Fleet, FleetError, NoRegistration, Registration, system_id};
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use pitser_tlog::note::Note;
use pitser_tlog::proof::LogProof;
use pitser_trail::disk::{self, DiskError};
use pitser_trail::keys::KeyError;
use pitser_trail::{Keys, Layout, ReadError};
use std::time::Duration;
use tokio::sync::watch;

/// The file beside the trail that proves its entry in the fleet's log.
pub const PROOF: &str = "fleet.proof";

/// Why a trail is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The trail's keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// Its first line cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its first line is none of a trail.
    #[error("the first line of the trail is no genesis line: {0}")]
    Line(String),
    /// The proof cannot be kept.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The authority.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

impl From<NoRegistration> for RegisterError {
    fn from(error: NoRegistration) -> Self {
        Self::Line(error.to_string())
    }
}

/// What is registered of a trail, signed by its key.
///
/// # Errors
/// [`RegisterError`].
pub fn registration(layout: &Layout) -> Result<Note, RegisterError> {
    let (line, hash) = pitser_trail::read::genesis(layout)?;
    let genesis = line.genesis.as_deref();
    let genesis = genesis.ok_or_else(|| RegisterError::Line("it has no genesis".into()))?;
    let keys = Keys::open(layout)?;
    let registration = Registration {
        key: keys.log().verifier(),
        genesis: hash.0,
        system: system_id(&genesis.system),
        begun_at: Second(line.at.micros() / 1_000_000),
    };
    let note = registration.sign(keys.log());
    note.map_err(|error| RegisterError::Line(error.to_string()))
}

/// Registers a trail and keeps the proof beside it; its place in the fleet's log.
/// Repeating it is harmless.
///
/// # Errors
/// [`RegisterError`].
pub async fn register(layout: &Layout, fleet: &Fleet, clock: &Clock) -> Result<u64, RegisterError> {
    let proof = fleet.register(&registration(layout)?, clock()).await?;
    disk::replace(&layout.dir().join(PROOF), proof.to_string().as_bytes())?;
    Ok(proof.index())
}

/// The place in the fleet's log that was kept beside a trail.
pub(crate) fn registered(layout: &Layout) -> Option<u64> {
    let bytes = std::fs::read(layout.dir().join(PROOF)).ok()?;
    Some(LogProof::parse(&bytes).ok()?.index())
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Told {
    Registered(u64),
    /// A head of so many blocks was taken.
    Taken(u64),
    /// Nothing is taken now, for this reason; it is tried again.
    Trouble(String),
    /// The authority knows something against the trail.
    Against(Code, String),
}

/// A head, and its blocks.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) note: Note,
    pub(crate) size: u64,
}

/// Tells the fleet of one trail.
pub(crate) struct Reporter<F> {
    pub(crate) fleet: Fleet,
    pub(crate) layout: Layout,
    pub(crate) clock: Clock,
    /// The newest head.
    pub(crate) heads: watch::Receiver<Option<Sent>>,
    pub(crate) tell: F,
}

impl<F: Fn(Told)> Reporter<F> {
    /// Runs until the guardian drops its end of `heads`, or another trail is
    /// registered in this one's place.
    pub(crate) async fn run(mut self) {
        let mut wait = RETRY_MIN;
        let mut is_registered = registered(&self.layout).is_some();
        // Of what is there at the start too.
        self.heads.mark_changed();
        loop {
            let done = match is_registered {
                false => self.register().await,
                true => self.send().await,
            };
            match done {
                Ok(()) if !is_registered => is_registered = true,
                Ok(()) => {
                    wait = RETRY_MIN;
                    if self.heads.changed().await.is_err() {
                        return;
                    }
                }
                Err(Some(FleetError::Unknown)) => is_registered = false,
                Err(Some(_)) => return,
                Err(None) => {
                    let gone = async { while self.heads.changed().await.is_ok() {} };
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = gone => return,
                    }
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// `Err(None)`: it may be tried again.
    async fn register(&self) -> Result<(), Option<FleetError>> {
        match register(&self.layout, &self.fleet, &self.clock).await {
            Ok(place) => {
                (self.tell)(Told::Registered(place));
                Ok(())
            }
            Err(RegisterError::Fleet(error @ FleetError::Taken(_))) => {
                (self.tell)(Told::Against(Code::TrailForked, error.to_string()));
                Err(Some(error))
            }
            Err(error) => {
                (self.tell)(Told::Trouble(format!("not registered: {error}")));
                Err(None)
            }
        }
    }

    async fn send(&mut self) -> Result<(), Option<FleetError>> {
        let Some(head) = self.heads.borrow_and_update().clone() else {
            return Ok(());
        };
        match self.fleet.head(&head.note, (self.clock)()).await {
            Ok(()) => (self.tell)(Told::Taken(head.size)),
            Err(error @ FleetError::Forked(_)) => {
                (self.tell)(Told::Against(Code::TrailForked, error.to_string()));
            }
            Err(error @ FleetError::Shrunk(_)) => {
                (self.tell)(Told::Against(Code::TrailShort, error.to_string()));
            }
            Err(error @ FleetError::Unknown) => return Err(Some(error)),
            Err(error) => {
                (self.tell)(Told::Trouble(error.to_string()));
                return Err(None);
            }
        }
        Ok(())
    }
}

const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
