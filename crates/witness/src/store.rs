//! What a witness remembers, and the promise on which cosignatures rest.

mod memory;
mod sqlite;

use std::error::Error;

use pitser_tlog::merkle::Hash;
use thiserror::Error;

use crate::witness::Log;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// The newest head that a witness cosigned for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root over these leaves.
    pub root: Hash,
    /// When it was last cosigned, in Unix seconds.
    pub cosigned_at: u64,
    /// The checkpoint as the log signed it.
    pub note: String,
}

/// Two heads of one size that a log signed: proof that it has forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The log.
    pub origin: String,
    /// Number of leaves of both heads.
    pub size: u64,
    /// The checkpoint that was cosigned.
    pub held: String,
    /// The checkpoint that was refused.
    pub refused: String,
    /// When it was refused, in Unix seconds.
    pub refused_at: u64,
}

impl Fork {
    /// The fork that `new` shows, if it has the size of `held` and another root.
    pub(crate) fn between(origin: &str, held: Option<&Head>, new: &Head) -> Option<Self> {
        let held = held.filter(|held| held.size == new.size && held.root != new.root)?;
        Some(Self {
            origin: origin.to_owned(),
            size: held.size,
            held: held.note.clone(),
            refused: new.note.clone(),
            refused_at: new.cosigned_at,
        })
    }
}

/// A witness's memory. Every implementation passes the suite in `tests/store.rs`.
///
/// All processes that cosign with one key must share one store.
pub trait Store {
    /// The head last stored for `origin`.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn head(&self, origin: &str) -> Result<Option<Head>, StoreError>;

    /// Replaces the head of `origin`; once `Ok`, it survives power loss.
    ///
    /// Comparing and replacing are one step, so that two requests, or two
    /// processes, can never cosign a fork. After an `Err` the old head or the
    /// new one may be in place, never anything else.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] unless the stored head still has the size and
    /// root of `expected`. [`StoreError::ClockWentBack`] if the head of any log
    /// was cosigned later than `new`. [`StoreError::Failed`].
    fn advance(
        &mut self,
        origin: &str,
        expected: Option<&Head>,
        new: &Head,
    ) -> Result<(), StoreError>;

    /// Keeps the proof of a fork, as durably as a head; the first one of each
    /// log, so that a forked log cannot fill the disk.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn keep_fork(&mut self, fork: Fork) -> Result<(), StoreError>;

    /// The forks kept so far, by origin.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn forks(&self) -> Result<Vec<Fork>, StoreError>;

    /// When the head of any log was last cosigned, in Unix seconds.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn latest_at(&self) -> Result<Option<u64>, StoreError>;

    /// The watched log of that origin.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn log(&self, origin: &str) -> Result<Option<Log>, StoreError>;

    /// All watched logs, by origin.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn logs(&self) -> Result<Vec<Log>, StoreError>;

    /// Watches `log`, from now on and durably; what was known of its origin's
    /// key and pace is replaced, its head is not.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn put_log(&mut self, log: &Log) -> Result<(), StoreError>;
}

/// Why a head was not stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another request was faster.
    #[error("the stored head has {size} leaves")]
    Conflict {
        /// Leaves of the head that is stored now; 0 if there is none.
        size: u64,
    },
    /// The clock shows less than the newest cosignature; set it right.
    #[error("the clock is behind the newest cosignature")]
    ClockWentBack,
    /// The file is not a witness's store, or that of a newer version.
    #[error("not a witness store that this version can read")]
    UnknownFormat,
    /// The file has nothing in it.
    #[error("it is empty")]
    Empty,
    /// The store did not work. Whether the head was stored is not known.
    #[error("store: {0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// Wraps what a backend reports.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

/// The rules of [`Store::advance`], for stores that hold both heads in hand.
///
/// `latest_at` is when anything was last cosigned.
fn check_advance(
    stored: Option<&Head>,
    expected: Option<&Head>,
    latest_at: Option<u64>,
    new: &Head,
) -> Result<(), StoreError> {
    let tree = |head: &Head| (head.size, head.root);
    if stored.map(tree) != expected.map(tree) {
        let size = stored.map_or(0, |head| head.size);
        return Err(StoreError::Conflict { size });
    }
    if latest_at.is_some_and(|at| at > new.cosigned_at) {
        Err(StoreError::ClockWentBack)
    } else {
        Ok(())
    }
}
