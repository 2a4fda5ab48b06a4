//! The calendar's log: every second of the calendar is an entry of a C2SP
//! transparency log that witnesses cosign (spec calendar log).
//!
//! | part     | does                                                             |
//! |----------|------------------------------------------------------------------|
//! | `files`  | keeps hashes on disk, follows the calendar, reads nodes and tiles |
//! | `keeper` | a thread: appends, signs, asks witnesses; nobody waits for it     |
//! | `key`    | the Ed25519 key, in a file of its own                            |
//! | `site`   | tiles, checkpoints and proofs over HTTP                          |
//!
//! The log is a function of the calendar: entry `i` is that of second genesis +
//! `i`, so its size is a clock. It is never waited for and never synced before an
//! answer; what a crash takes is computed again. What is signed is only what is
//! durable in the calendar, so no checkpoint is ever taken back.

mod files;
mod keeper;
mod key;
mod site;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pitser_ksi::time::Second;
use pitser_tlog::merkle::OutOfRange;
use pitser_tlog::note::VerifierKey;
use pitser_witness::{Cosign, HttpWitness, Prefix};

use crate::calendar::CalendarError;

pub(crate) use keeper::{Bell, Keeper, KeeperHandle, Setup};
pub(crate) use key::{create_key, open_key};
pub(crate) use site::Site;

/// What an operator decides about the calendar's log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// First line of every checkpoint and the name of the log's key:
    /// `authority.example/calendar`. Chosen once, before witnesses are told: it
    /// never changes.
    pub origin: String,
    /// Who is asked to cosign every checkpoint.
    pub witnesses: Vec<LogWitness>,
    /// How many of them must have cosigned a checkpoint for it to count as
    /// witnessed; 0 if there are none.
    pub quorum: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            origin: "localhost/calendar".to_owned(),
            witnesses: Vec::new(),
            quorum: 0,
        }
    }
}

/// A witness, and the way to it.
#[derive(Clone)]
pub struct LogWitness {
    /// The key that its cosignatures verify under.
    pub key: VerifierKey,
    /// How it is asked; off the runtime's threads, so it may block.
    pub way: Arc<dyn Cosign>,
}

impl LogWitness {
    /// A witness over HTTP; its connection is kept open.
    pub fn http(key: VerifierKey, prefix: Prefix) -> Self {
        Self {
            key,
            way: Arc::new(HttpWitness::new(prefix)),
        }
    }
}

impl fmt::Debug for LogWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWitness")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// How the log is doing; what metrics and status pages show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Entries under the newest signed checkpoint; one a second since the genesis.
    pub size: u64,
    /// Entries under the newest checkpoint that a quorum cosigned. How far that
    /// is behind, in seconds, is [`LogStatus::behind_s`].
    pub witnessed: u64,
    /// By when the quorum had cosigned that one, as the witnesses say.
    pub witnessed_at: Option<Second>,
    /// How many witnesses must cosign; 0: nobody is asked.
    pub quorum: usize,
    /// The witnesses, in the order of the configuration.
    pub witnesses: Vec<LogWitnessStatus>,
    /// Why the log does not grow, if it does not.
    pub trouble: Option<String>,
}

impl LogStatus {
    /// By how many seconds the newest witnessed checkpoint is behind the newest one.
    pub fn behind_s(&self) -> u64 {
        self.size.saturating_sub(self.witnessed)
    }
}

/// One witness, as the log knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogWitnessStatus {
    /// The name of its key.
    pub name: String,
    /// Entries under the newest checkpoint that it cosigned since the start.
    pub size: u64,
    /// When it did, as it says.
    pub cosigned_at: Option<Second>,
    /// Why it did not cosign what it was asked about last.
    pub trouble: Option<String>,
}

/// Why the log cannot be opened, read or brought up to date. Says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
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
    /// The calendar could not be read.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// The key can be read by others.
    #[error("{} can be read by others; chmod 600 it, and consider the key known", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
    },
    /// The key file does not hold a key.
    #[error("{} does not hold a log key; restore it from a copy", path.display())]
    BadKey {
        /// The key file.
        path: PathBuf,
    },
    /// The configuration cannot be right.
    #[error("the calendar's log: {0}")]
    Config(String),
    /// The log was signed under another origin.
    #[error(
        "the log in {} is that of {found}, and {configured} is configured; an origin never changes. If \
         nobody was ever told of it, remove that folder: it is computed again",
        dir.display()
    )]
    OtherOrigin {
        /// The log's folder.
        dir: PathBuf,
        /// What its files say.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// A checkpoint was signed that the calendar contradicts.
    #[error(
        "a checkpoint of {size} entries was signed that this calendar does not lead to: it was restored \
         from an old copy, or altered; restore the newest calendar. If it is lost, remove {} and log-key \
         and choose a new origin: witnesses rightly refuse the old one",
        dir.display()
    )]
    Contradicted {
        /// The log's folder.
        dir: PathBuf,
        /// Entries of the checkpoint.
        size: u64,
    },
    /// More was asked for than there is.
    #[error("outside the log")]
    OutOfRange,
}

impl From<OutOfRange> for LogError {
    fn from(_: OutOfRange) -> Self {
        Self::OutOfRange
    }
}

fn io_error(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        action,
        path,
        source,
    }
}
