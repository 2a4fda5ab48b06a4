//! The map on disk: `map/` in a trail's folder.
//!
//! ```text
//! leaves-NNNNNN     buckets of leaves; these files only grow (pages.rs)
//! patients          pseudonyms, by the numbers that records call them
//! blocks, lines     where blocks and lines are (index.rs of this crate)
//! log               nodes of the log of the blocks (log.rs of this crate)
//! directory-NNNNNN  where each bucket is, as of one commit
//! journal-NNNNNN    what changed since, commit after commit
//!
//! directory   "pitser map 1\r\n\x1a\n" ‖ frame of a commit ‖ frames of buckets
//! journal     the same magic ‖ for each commit: frame of it and of its buckets
//! frame       length:4 ‖ crc:4 ‖ bytes
//! commit      length:4 ‖ JSON (`Commit`) ‖ buckets
//! bucket      prefix:8 ‖ depth:1 ‖ single:1 bit, 0:2, extent:61 ‖ root:32
//! ```
//! The map is derived: the segments are the truth. It is durable *as of a
//! commit*, which is made when a block is closed, and says up to which line;
//! whatever came after is replayed. A commit is there when its last frame is:
//! everything it refers to was durable before, and nothing that an earlier one
//! refers to is overwritten. What no commit needs any more is removed once the
//! commit that did without it is under the newest cosigned head, since evidence
//! is made as of that head, beside the writer.
//!
//! What is read is checked: buckets and frames by CRC, and the whole directory
//! by the map's root, which follows from the roots of the buckets. A store that
//! is not what it says is made anew from the segments.

mod beside;
mod commit;
mod folder;
mod pages;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use beside::ReadPages;
pub use commit::{Commit, Opened, Store};
pub(crate) use commit::{discard, newest, read};
pub use folder::{Folder, Grows, OsFolder};
pub use pages::DiskPages;

use crate::disk::DiskError;
use crate::read::ReadError;
use pitser_evidence::store::{Limits, Tree};
use std::path::PathBuf;

pub(crate) const BLOCKS: &str = "blocks";
pub(crate) const LINES: &str = "lines";
pub(crate) const LOG: &str = "log";

/// The map in a folder of the operating system's.
pub type DiskMap = Tree<DiskPages<OsFolder>>;

/// Eight leaves are some 900 bytes: little to hash again for one of them, and 80 bytes
/// of memory for five or six on the average. 32 MiB hold about 40,000 changed buckets.
/// Tests run through all of it with few leaves.
pub const LIMITS: Limits = match cfg!(test) {
    false => Limits {
        entries: 8,
        buffered: 32 << 20,
    },
    true => Limits {
        entries: 3,
        buffered: 6000,
    },
};

/// Reads the store beside its writer, which may just have removed what a commit needs: then
/// there is another one.
///
/// # Errors
/// Those of `read`, [`MapError::Damaged`] once it has been so a few times.
pub(crate) fn beside_writer<T>(read: impl Fn() -> Result<T, ReadError>) -> Result<T, ReadError> {
    let mut tried = 1;
    loop {
        match read() {
            Err(ReadError::Map(error @ MapError::Damaged { .. })) if tried < ATTEMPTS => {
                tracing::debug!(%error, "the map's commit cannot be used");
                tried += 1;
            }
            done => return done,
        }
    }
}

/// Of a reader who loses races with the writer.
const ATTEMPTS: u32 = 3;

/// Why the map's store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It is not what was written: it has to be made anew.
    #[error("{}: {damage}. The map is made anew from the segments at the next start, or by `pitser trail rebuild`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A segment that it refers to cannot be read.
    #[error(transparent)]
    Segment(Box<ReadError>),
}

impl From<ReadError> for MapError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Map(error) => error,
            ReadError::Disk(error) => Self::Disk(error),
            other => Self::Segment(Box::new(other)),
        }
    }
}

impl From<std::convert::Infallible> for MapError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

/// What is wrong with a file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It ends too early.
    #[error("it is shorter than it was")]
    Short,
    /// A checksum or a root does not fit.
    #[error("it is not what was written")]
    Altered,
    /// It is not the map of the segments as they are.
    #[error("the segments do not go on from it")]
    Unfounded,
    /// Numbers have run out.
    #[error("it has been written too often")]
    Full,
}
