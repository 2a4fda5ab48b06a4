//! The calendar: one leaf for every second, for ever (spec calendar).
//!
//! | file       | content                                                          |
//! |------------|------------------------------------------------------------------|
//! | `format`   | three lines of text: version, genesis second, algorithm          |
//! | `level-00` | 33 bytes a second from the genesis on: algorithm id ‖ digest     |
//! | `level-04` | 33 bytes for each complete node over 16 seconds, from the node   |
//! |            | that holds the genesis on                                        |
//! | `level-08` | the same over 256 seconds; and so on in steps of 4 to `level-32` |
//!
//! `level-00` is the truth; the other files only save hashing and are made again
//! from it when they fall behind. Seconds before the genesis and seconds without
//! requests have the zero leaf, `01` ‖ 32 zero bytes.
//!
//! A second is written once. [`Calendar`] is the one writer; any number of
//! [`CalendarReader`]s look on, and see a second when it is durable.

mod audit;
mod files;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitser_disk::Lock;
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::time::Second;

use files::Files;
pub use walk::Walk;

/// The leaf of a second without requests: `01` ‖ 32 zero bytes.
pub fn zero_leaf() -> Imprint {
    Imprint::zero(Algorithm::Sha256)
}

/// The calendar's only writer. It holds a lock on its folder.
#[derive(Debug)]
pub struct Calendar {
    files: Arc<Files>,
    /// Set when a write failed: what is on disk is not known until it is opened again.
    poisoned: bool,
    /// Readers outlive the writer, and hold up no other one.
    _lock: Lock,
}

/// Looks things up in a calendar. Cheap to clone, safe beside the writer.
#[derive(Debug, Clone)]
pub struct CalendarReader {
    files: Arc<Files>,
}

/// What [`CalendarReader::audit`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Seconds that were read.
    pub seconds: u64,
    /// Seconds among them that had requests.
    pub sealed_seconds: u64,
    /// Stored nodes that were computed again.
    pub nodes: u64,
    /// The first thing that is wrong, in words, if any.
    pub fault: Option<String>,
}

impl Calendar {
    /// Makes an empty calendar in `dir`, whose first second will be `genesis`.
    ///
    /// # Errors
    /// [`CalendarError::Exists`] if there is one already;
    /// [`CalendarError::OutOfRange`] if `genesis` is beyond [`Calendar::LAST`].
    pub fn create(dir: &Path, genesis: Second) -> Result<(), CalendarError> {
        if genesis > Self::LAST {
            return Err(CalendarError::OutOfRange { at: genesis });
        }
        Files::create(dir, genesis)
    }

    /// Opens the calendar in `dir`, after a crash as well as after a clean end.
    ///
    /// A torn last entry was never acknowledged and is cut off; node files that
    /// are behind are completed. Takes time in proportion to what is missing.
    ///
    /// # Errors
    /// [`CalendarError::InUse`] while another process has it open;
    /// [`CalendarError::Corrupt`] if an acknowledged entry is damaged.
    pub fn open(dir: &Path) -> Result<Self, CalendarError> {
        let (files, lock) = Files::open(dir)?;
        Ok(Self {
            files: Arc::new(files),
            poisoned: false,
            _lock: lock,
        })
    }

    /// A view of this calendar for other tasks.
    pub fn reader(&self) -> CalendarReader {
        CalendarReader {
            files: Arc::clone(&self.files),
        }
    }

    /// The first second that may have requests.
    pub fn genesis(&self) -> Second {
        self.files.genesis()
    }

    /// The newest second, if there is any.
    pub fn head(&self) -> Option<Second> {
        self.files.head()
    }

    /// Writes the root of second `at`; once `Ok`, it survives power loss.
    ///
    /// Seconds between the head and `at` become zero leaves. Writing a second
    /// again with the same root changes nothing.
    ///
    /// # Errors
    /// [`CalendarError::WriteOnce`] if `at` already has another root: nothing was
    /// written. After [`CalendarError::Io`] it is not known what was written, and
    /// every later call fails with [`CalendarError::Poisoned`]: open it again.
    pub fn append(&mut self, at: Second, root: Imprint) -> Result<(), CalendarError> {
        if self.poisoned {
            return Err(CalendarError::Poisoned);
        }
        if root.algorithm() != Algorithm::Sha256 {
            return Err(CalendarError::Algorithm {
                found: root.algorithm(),
            });
        }
        if at > Self::LAST {
            return Err(CalendarError::OutOfRange { at });
        }
        if at < self.genesis() {
            return Err(CalendarError::BeforeGenesis {
                at,
                genesis: self.genesis(),
            });
        }
        if let Some(head) = self.head().filter(|head| at <= *head) {
            return if self.files.leaf(at)? == root {
                Ok(())
            } else {
                Err(CalendarError::WriteOnce { at, head })
            };
        }
        self.files
            .append(at, root)
            .inspect_err(|_| self.poisoned = true)
    }

    /// Writes the leaves of the seconds that follow the head, or the genesis and
    /// those after it; once `Ok`, they survive power loss. Far faster than one
    /// [`Self::append`] each, for a calendar that follows another one.
    ///
    /// A power loss in the middle may leave a hole among them, which
    /// [`Self::open`] reports as [`CalendarError::Corrupt`].
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn extend(&mut self, leaves: &[Imprint]) -> Result<(), CalendarError> {
        if self.poisoned {
            return Err(CalendarError::Poisoned);
        }
        if let Some(other) = leaves.iter().find(|l| l.algorithm() != Algorithm::Sha256) {
            return Err(CalendarError::Algorithm {
                found: other.algorithm(),
            });
        }
        let first = self.head().map_or(self.genesis(), |head| head.plus(1));
        let last = first.plus(leaves.len() as u64);
        if last > Self::LAST {
            return Err(CalendarError::OutOfRange { at: last });
        }
        self.files
            .extend(leaves)
            .inspect_err(|_| self.poisoned = true)
    }

    /// The last second that the layout can hold, in the year 4147.
    pub const LAST: Second = Second((1 << 36) - 1);
}

impl CalendarReader {
    /// Looks at the calendar in `dir` as it stands now, without a lock: beside the
    /// process that writes it, or when there is none. It does not grow.
    ///
    /// # Errors
    /// [`CalendarError::Corrupt`] if a file of nodes is shorter than a writer, or a
    /// crash, would leave it.
    pub fn open_beside(dir: &Path) -> Result<Self, CalendarError> {
        Ok(Self {
            files: Arc::new(Files::open_beside(dir)?),
        })
    }

    /// The first second that may have requests.
    pub fn genesis(&self) -> Second {
        self.files.genesis()
    }

    /// The newest durable second, if there is any.
    pub fn head(&self) -> Option<Second> {
        self.files.head()
    }

    /// The root of the aggregation tree of second `at`, or the zero leaf.
    ///
    /// # Errors
    /// [`CalendarError::Beyond`] if `at` is not written yet.
    pub fn leaf(&self, at: Second) -> Result<Imprint, CalendarError> {
        self.written(at)?;
        self.files.leaf(at)
    }

    /// The root of the calendar as it stood when second `head` was its newest.
    ///
    /// # Errors
    /// [`CalendarError::Beyond`], [`CalendarError::BeforeGenesis`].
    pub fn root_at(&self, head: Second) -> Result<Imprint, CalendarError> {
        self.covered(head)?;
        tree::root(&*self.files, 0, head.0 + 1)
    }

    /// The chain from second `at` to [`Self::root_at`]`(head)`. O(log head) reads.
    ///
    /// # Errors
    /// [`CalendarError::Beyond`], [`CalendarError::BeforeGenesis`];
    /// [`CalendarError::Backwards`] if `at` is after `head`.
    pub fn chain(&self, at: Second, head: Second) -> Result<CalendarChain, CalendarError> {
        self.covered(head)?;
        self.covered(at)?;
        if at > head {
            return Err(CalendarError::Backwards { at, head });
        }
        Ok(CalendarChain {
            publication_time: head,
            aggregation_time: Some(at),
            input: self.files.leaf(at)?,
            links: tree::links(&*self.files, at.0, head.0)?,
        })
    }

    /// Reads every entry and computes every stored node again, on all cores.
    ///
    /// `progress` hears of (bytes done, bytes in all) after every 4096 seconds.
    ///
    /// # Errors
    /// Only if a file cannot be read; damage is reported in [`Audit::fault`].
    pub fn audit(&self, progress: impl FnMut(u64, u64)) -> Result<Audit, CalendarError> {
        audit::run(&self.files, progress)
    }

    fn written(&self, at: Second) -> Result<(), CalendarError> {
        match self.head() {
            Some(head) if at <= head => Ok(()),
            head => Err(CalendarError::Beyond { at, head }),
        }
    }

    fn covered(&self, at: Second) -> Result<(), CalendarError> {
        if at < self.genesis() {
            return Err(CalendarError::BeforeGenesis {
                at,
                genesis: self.genesis(),
            });
        }
        self.written(at)
    }
}

/// Why the calendar could not answer or write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalendarError {
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
    /// `create` found a calendar.
    #[error("{} already holds a calendar; choose another folder, or keep this one", dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
    },
    /// `open` found no calendar, or one of a version this program does not know.
    #[error("{} holds no calendar this program can read ({reason}); run init first", dir.display())]
    NotACalendar {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with its `format` file.
        reason: String,
    },
    /// Another process has it open.
    #[error("the calendar in {} is in use by another process; stop that one first", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// An acknowledged entry is damaged. Restore the file from a copy.
    #[error("{} is damaged at byte {at}; restore it from a copy and run the audit", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Position of the damaged entry, in bytes.
        at: u64,
    },
    /// That second is written, with another root, and no second is written twice.
    #[error(
        "CLK-01: second {at} is already in the calendar, whose head is {head}; is the clock behind?"
    )]
    WriteOnce {
        /// The second asked for.
        at: Second,
        /// The newest second.
        head: Second,
    },
    /// No signature can be older than the calendar.
    #[error("{at} is before the calendar's first second, {genesis}")]
    BeforeGenesis {
        /// The second asked for.
        at: Second,
        /// The first one there is.
        genesis: Second,
    },
    /// That second is not written yet.
    #[error("{at} is not in the calendar yet")]
    Beyond {
        /// The second asked for.
        at: Second,
        /// The newest one there is.
        head: Option<Second>,
    },
    /// A chain leads forward in time only.
    #[error("no chain leads back from {at} to {head}")]
    Backwards {
        /// Where the chain would start.
        at: Second,
        /// Where it would end.
        head: Second,
    },
    /// Beyond [`Calendar::LAST`].
    #[error("{at} is beyond the last second a calendar can hold")]
    OutOfRange {
        /// The second asked for.
        at: Second,
    },
    /// Entries are SHA-256 imprints.
    #[error("calendar entries are SHA-256 imprints, not {}", found.name())]
    Algorithm {
        /// What was offered.
        found: Algorithm,
    },
    /// An earlier write failed.
    #[error("an earlier write to the calendar failed; restart to find out what was stored")]
    Poisoned,
}
