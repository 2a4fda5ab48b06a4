//! What files must do here: grow durably, and what [`pitser_disk`] does for everybody,
//! with errors that name the file.

use crate::behind::{Behind, Flight, Spot};
use pitser_disk::Access;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use pitser_disk::Lock;

/// Bytes that a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A failed operation on a file, with its path and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}: {source}{}", path.display(), hint(source))]
pub struct DiskError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    /// True if the disk or the user's quota is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Free some space: nothing is lost, capture waits and goes on by itself"
        }
        io::ErrorKind::PermissionDenied => ". The user that runs pitser must own its data folder",
        _ => "",
    }
}

/// Adds path and attempt to an I/O error.
pub trait At<T> {
    /// Names what was tried on which file.
    ///
    /// # Errors
    /// The given error, if there is one.
    fn at(self, path: &Path, what: &'static str) -> Result<T, DiskError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path, what: &'static str) -> Result<T, DiskError> {
        self.map_err(|source| DiskError {
            path: path.to_owned(),
            what,
            source,
        })
    }
}

/// A file that only grows. Bytes are durable once [`AppendFile::append`] returns.
#[derive(Debug)]
pub struct AppendFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl AppendFile {
    /// Opens `path`, creating it durably with `magic` if it is not there.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: &Path, magic: &[u8]) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o600)
            .open(path)
            .at(path, "cannot open")?;
        let len = file.metadata().at(path, "cannot look at")?.len();
        let mut this = Self {
            path: path.to_owned(),
            file,
            len,
        };
        if len < magic.len() as u64 || this.is_unwritten(magic.len())? {
            this.truncate(0)?;
            this.append(magic)?;
            sync_dir(path)?;
        }
        Ok(this)
    }

    /// Whether it has the length of its magic alone, and zeroes: a power cut came while it
    /// was made.
    fn is_unwritten(&self, magic: usize) -> Result<bool, DiskError> {
        let mut bytes = vec![0; magic];
        if magic == 0 || self.len != magic as u64 {
            return Ok(false);
        }
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.at(&self.path, "cannot read")?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`; once `Ok`, they survive power loss.
    ///
    /// # Errors
    /// [`DiskError`]; the end of the file is then unknown until it is reopened.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(bytes).at(&self.path, "cannot write")?;
        self.file
            .sync_data()
            .at(&self.path, "cannot make durable")?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Appends `bytes` on the thread that is given: durable once they have landed. The
    /// length counts them at once.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn append_behind(
        &mut self,
        behind: &Behind,
        bytes: Vec<u8>,
    ) -> Result<Flight, DiskError> {
        self.len += bytes.len() as u64;
        behind.send((&self.file, &self.path), Spot::End, bytes)
    }

    /// Cuts the file to `len` bytes, durably.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn truncate(&mut self, len: u64) -> Result<(), DiskError> {
        self.file.set_len(len).at(&self.path, "cannot shorten")?;
        self.file.sync_all().at(&self.path, "cannot make durable")?;
        self.len = len;
        Ok(())
    }
}

/// Replaces `path` by `bytes`, wholly or not at all, durably; its owner alone reads it.
///
/// # Errors
/// [`DiskError`]; the old content is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    pitser_disk::replace(path, bytes, Access::Owner).at(path, "cannot replace")
}

/// As [`replace`], but a power cut may bring back what was there before.
///
/// # Errors
/// [`DiskError`].
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    pitser_disk::replace_unsynced(path, bytes).at(path, "cannot replace")
}

/// As [`replace`], but leaves a file alone that has these bytes already: a secret key would
/// leave them behind on the disk each time.
///
/// # Errors
/// [`DiskError`].
pub fn keep(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    match std::fs::read(path) {
        Ok(there) if there == bytes => Ok(()),
        _ => replace(path, bytes),
    }
}

/// Writes what a file has from byte `from` on once more, durably: see
/// [`pitser_disk::write_again`].
///
/// # Errors
/// [`DiskError`].
pub fn write_again(path: &Path, from: u64) -> Result<(), DiskError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.at(path, "cannot open")?;
    pitser_disk::write_again(&file, from).at(path, "cannot write again")
}

/// Overwrites a small file, and removes it, durably. What the disk itself keeps of
/// replaced blocks stays.
///
/// # Errors
/// [`DiskError`].
pub fn destroy(path: &Path) -> Result<(), DiskError> {
    pitser_disk::destroy(path).at(path, "cannot destroy")
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// [`DiskError`].
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    pitser_disk::sync_folder_of(path).at(pitser_disk::folder_of(path), "cannot make durable")
}

/// Takes the lock that `path` stands for; `None` if somebody else has it.
///
/// # Errors
/// [`DiskError`].
pub fn lock(path: &Path) -> Result<Option<Lock>, DiskError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(path).at(path, "cannot open")?;
    Lock::take(file).at(path, "cannot lock")
}

/// Creates a folder that only its owner may enter.
///
/// # Errors
/// [`DiskError`].
pub fn private_dir(path: &Path) -> Result<(), DiskError> {
    pitser_disk::private_folder(path).at(path, "cannot create")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_being_made_when_the_power_went_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blocks.dat");
        for left in ["", "MAG", "\0\0\0", "\0\0\0\0\0\0\0\0"] {
            std::fs::write(&path, left).unwrap();
            let mut file = AppendFile::open(&path, b"MAGIC 01").unwrap();
            file.append(b"x").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"MAGIC 01x", "{left:?}");
        }
        // Anything else is for its reader to judge.
        for left in ["\0\0\0\0\0\0\0\0\0", "MAGIC 02", "\0\0\0\0\0\0\0x"] {
            std::fs::write(&path, left).unwrap();
            AppendFile::open(&path, b"MAGIC 01").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), left.as_bytes());
        }
    }
}
