//! The decision: which heads a witness cosigns.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::merkle::{EMPTY_ROOT, verify_consistency};
use pitser_tlog::note::{CosigningKey, Note, SignatureLine, VerifierKey};
use pitser_tlog::witness_protocol::{AddCheckpoint, Refusal};

use crate::limit::{Limiter, Rate};
use crate::store::{Fork, Head, Store, StoreError};
use crate::submit::Cosign;

/// A log that a witness watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// First line of its checkpoints.
    pub origin: String,
    /// The key that signs them.
    pub key: VerifierKey,
    /// For a log that gets one entry a second, as a calendar does.
    pub pace: Option<Pace>,
}

impl Log {
    /// A log whose origin is its key's name, growing at any pace.
    pub fn new(key: VerifierKey) -> Self {
        Self {
            origin: key.name().to_owned(),
            key,
            pace: None,
        }
    }

    /// The same log, declared to get one entry a second.
    pub fn with_pace(self, pace: Pace) -> Self {
        Self {
            pace: Some(pace),
            ..self
        }
    }
}

/// One entry a second since a genesis: the size of such a log is a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The second of entry 0, in Unix seconds.
    pub genesis_at: u64,
    /// By how much the log's clock may be ahead of the witness's.
    pub tolerance_s: u64,
}

impl Pace {
    /// The largest size the log can honestly have at `now`, in Unix seconds.
    ///
    /// The entry of second `t` may be there as soon as `t` has begun.
    pub fn max_size(&self, now: u64) -> u64 {
        let latest = now.saturating_add(self.tolerance_s).saturating_add(1);
        latest.saturating_sub(self.genesis_at)
    }
}

/// Cosigns heads of the logs it was told to watch.
pub struct Witness<S> {
    key: CosigningKey,
    store: S,
    clock_tolerance_s: u64,
    /// How often each log is answered: about heads that are new, and about those that are
    /// sent once more.
    limiter: Option<Limiter<(String, bool)>>,
    /// The clock was behind when it was last looked at: told once, not each time.
    was_behind: bool,
}

impl<S: Store> Witness<S> {
    /// A witness of the logs that stand in `store`.
    ///
    /// What it cosigned before under this key must be in `store`.
    pub fn new(key: CosigningKey, store: S) -> Self {
        Self {
            key,
            store,
            clock_tolerance_s: 0,
            limiter: None,
            was_behind: false,
        }
    }

    /// The same witness, whose clock may be set back by so many seconds.
    ///
    /// Within them it goes on stating the time of its newest cosignature, which
    /// is late rather than early; beyond them it refuses (`CLK-01`).
    pub fn with_clock_tolerance(self, clock_tolerance_s: u64) -> Self {
        Self {
            clock_tolerance_s,
            ..self
        }
    }

    /// The same witness, which cosigns heads of a log that go on from the one that it holds
    /// no more often than this, and that one once more as often.
    pub fn with_rate(self, rate: Rate) -> Self {
        Self {
            // As many names as there are watched logs: only they get here.
            limiter: Some(Limiter::new(rate, usize::MAX)),
            ..self
        }
    }

    /// Watches a log from now on, or with another key or pace than before.
    ///
    /// What was cosigned for its origin stays binding.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn add_log(&mut self, log: &Log) -> Result<(), StoreError> {
        self.store.put_log(log)
    }

    /// The witness's public key.
    pub fn verifier(&self) -> VerifierKey {
        self.key.verifier()
    }

    /// What the witness remembers.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// By how many seconds `now` is behind the newest cosignature, if that is
    /// more than is tolerated: nothing is cosigned then.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn clock_behind_s(&self, now: u64) -> Result<Option<u64>, StoreError> {
        let latest_at = self.store.latest_at()?.unwrap_or(0);
        let behind_s = latest_at.saturating_sub(now);
        Ok((behind_s > self.clock_tolerance_s).then_some(behind_s))
    }

    /// Answers the body of an `add-checkpoint` request at `now`, in Unix seconds.
    ///
    /// The new head is durable before this returns. If the process dies in
    /// between, the log asks again and gets a cosignature on the same head.
    ///
    /// # Errors
    /// [`Refusal`]: why nothing was cosigned, and whose move is next.
    pub fn add_checkpoint(&mut self, body: &[u8], now: u64) -> Result<SignatureLine, Refusal> {
        let request = AddCheckpoint::parse(body)?;
        let (log, new) = authenticate(&self.store, &request)?;
        let held = self.store.head(&log.origin).map_err(refusal)?;
        let mut head = Head {
            size: new.size(),
            root: *new.root(),
            cosigned_at: now,
            note: as_signed_by(&request.head, &log.key),
        };
        if let Some(fork) = Fork::between(&log.origin, held.as_ref(), &head) {
            return Err(remember_fork(&mut self.store, fork));
        }
        check_extends(&request, held.as_ref(), &head)?;
        // Heads are public: whoever sends older ones, or the newest once more, takes nothing
        // from the log's share.
        let is_repeat = held.as_ref().is_some_and(|held| held.size == head.size);
        if let Some(limiter) = &mut self.limiter
            && !limiter.allow(&(log.origin.clone(), is_repeat), now)
        {
            return Err(Refusal::TooManyRequests);
        }
        if log.pace.is_some_and(|pace| head.size > pace.max_size(now)) {
            return Err(Refusal::AheadOfTime);
        }
        head.cosigned_at = self.time_to_state(now)?;
        // Made before and given away after: what cannot be cosigned is not remembered as if it was.
        let line = self
            .key
            .cosign_head(request.head.text(), head.cosigned_at)?;
        self.store
            .advance(&log.origin, held.as_ref(), &head)
            .map_err(refusal)?;
        Ok(line)
    }

    /// The time of a cosignature at `now`: never before one that was stated.
    fn time_to_state(&mut self, now: u64) -> Result<u64, Refusal> {
        let latest_at = self.store.latest_at().map_err(refusal)?.unwrap_or(0);
        let behind_s = latest_at.saturating_sub(now);
        let is_behind = behind_s > self.clock_tolerance_s;
        if is_behind && !self.was_behind {
            tracing::error!(
                behind_s,
                "CLK-01: the clock is behind the newest cosignature; nothing is cosigned until it is set right"
            );
        }
        if self.was_behind && !is_behind {
            tracing::warn!("the clock is right again");
        }
        self.was_behind = is_behind;
        match is_behind {
            true => Err(Refusal::Unavailable {
                reason: StoreError::ClockWentBack.to_string(),
            }),
            false => Ok(now.max(latest_at)),
        }
    }
}

impl<S> fmt::Debug for Witness<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A witness with a clock, to be shared by threads; the guardian of a small
/// deployment holds one in its own process.
pub struct ClockedWitness<S, C> {
    /// Locked for one request: read, compare, store.
    witness: Mutex<Witness<S>>,
    clock: C,
}

impl<S: Store, C: Fn() -> u64> ClockedWitness<S, C> {
    /// `clock` tells Unix seconds.
    pub fn new(witness: Witness<S>, clock: C) -> Self {
        Self {
            witness: Mutex::new(witness),
            clock,
        }
    }
}

impl<S, C> Cosign for ClockedWitness<S, C>
where
    S: Store + Send,
    C: Fn() -> u64 + Send + Sync,
{
    fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
        // A panic elsewhere leaves nothing half done here: the store decides.
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that times are in the order of requests.
        let now = (self.clock)();
        witness.add_checkpoint(body, now).map(|line| vec![line])
    }
}

impl<S, C> fmt::Debug for ClockedWitness<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClockedWitness").finish_non_exhaustive()
    }
}

/// The checkpoint, if a watched log signed it.
fn authenticate(store: &impl Store, request: &AddCheckpoint) -> Result<(Log, Checkpoint), Refusal> {
    let claimed = Checkpoint::parse(request.head.text())?;
    let log = store.log(claimed.origin()).map_err(refusal)?;
    let log = log.ok_or(Refusal::UnknownOrigin)?;
    match request.head.verify(&log.key) {
        Ok(()) => Ok((log, claimed)),
        Err(_) => Err(Refusal::NotSigned),
    }
}

/// The new head must continue the one held (c2sp.org/tlog-witness, add-checkpoint).
fn check_extends(request: &AddCheckpoint, held: Option<&Head>, new: &Head) -> Result<(), Refusal> {
    let (size, root) = held.map_or((0, EMPTY_ROOT), |head| (head.size, head.root));
    if request.old_size > new.size {
        return Err(Refusal::OldSizeTooLarge);
    }
    if request.old_size != size {
        return Err(Refusal::Conflict { size });
    }
    verify_consistency(size, &root, new.size, &new.root, &request.proof)
        .map_err(|_| Refusal::Inconsistent)
}

/// Keeps the proof of a fork. The log is refused whether or not that works.
fn remember_fork(store: &mut impl Store, fork: Fork) -> Refusal {
    let size = fork.size;
    tracing::warn!(
        origin = fork.origin,
        size,
        "log has signed two roots of one size"
    );
    if let Err(error) = store.keep_fork(fork) {
        tracing::error!(%error, "proof of a fork was not stored");
    }
    Refusal::Conflict { size }
}

/// The note with its log's signatures alone: others' lines are not ours to keep.
fn as_signed_by(note: &Note, key: &VerifierKey) -> String {
    let lines = note.signatures().iter().filter(|line| key.made(line));
    let lines: String = lines.map(SignatureLine::to_string).collect();
    format!("{}\n{lines}", note.text())
}

fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Conflict { size } => Refusal::Conflict { size },
        error => {
            tracing::error!(%error, "nothing cosigned");
            Refusal::Unavailable {
                reason: error.to_string(),
            }
        }
    }
}
