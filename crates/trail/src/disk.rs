//! The few things that files must do here: append and be durable, be replaced
//! whole or not at all, and keep secrets from other users of the machine.

use crate::behind::{Behind, Flight, Spot};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
        if len < magic.len() as u64 {
            this.truncate(0)?;
            this.append(magic)?;
            sync_dir(path)?;
        }
        Ok(this)
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

/// Replaces `path` by `bytes`, wholly or not at all, durably.
///
/// # Errors
/// [`DiskError`]; the old content is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .at(&temporary, "cannot create")?;
    file.write_all(bytes).at(&temporary, "cannot write")?;
    file.sync_all().at(&temporary, "cannot make durable")?;
    std::fs::rename(&temporary, path).at(path, "cannot replace")?;
    sync_dir(path)
}

/// Writes what a file has from byte `from` on once more, and makes it durable.
///
/// What a process reads may be in the system's memory alone, and stay there: once
/// making it durable has failed, the system takes it for written, and does nothing the
/// next time that it is asked to.
///
/// # Errors
/// [`DiskError`].
pub(crate) fn write_again(path: &Path, from: u64) -> Result<(), DiskError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.at(path, "cannot open")?;
    let len = file.metadata().at(path, "cannot look at")?.len();
    let mut bytes = vec![0; 1 << 20];
    let mut at = from;
    while at < len {
        let part = bytes
            .len()
            .min(usize::try_from(len - at).unwrap_or(usize::MAX));
        let part = &mut bytes[..part];
        file.read_exact_at(part, at).at(path, "cannot read")?;
        file.write_all_at(part, at).at(path, "cannot write")?;
        at += part.len() as u64;
    }
    file.sync_data().at(path, "cannot make durable")
}

/// Overwrites a small file, and removes it, durably. What the disk itself keeps of
/// replaced blocks stays.
///
/// # Errors
/// [`DiskError`].
pub fn destroy(path: &Path) -> Result<(), DiskError> {
    let file = OpenOptions::new().write(true).open(path);
    let mut file = file.at(path, "cannot open")?;
    let len = file.metadata().at(path, "cannot look at")?.len();
    io::copy(&mut io::repeat(0).take(len), &mut file).at(path, "cannot overwrite")?;
    file.sync_all().at(path, "cannot make durable")?;
    std::fs::remove_file(path).at(path, "cannot remove")?;
    sync_dir(path)
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// [`DiskError`].
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    let named = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = named.unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|d| d.sync_all())
        .at(dir, "cannot make durable")
}

/// The lock that a file stands for, until it is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it to a child of another thread, until that runs
        // its own program. What fails here, closing does.
        let _ = self.0.unlock();
    }
}

/// Takes the lock that `path` stands for; `None` if somebody else has it.
///
/// # Errors
/// [`DiskError`].
pub fn lock(path: &Path) -> Result<Option<Lock>, DiskError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .at(path, "cannot open")?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e).at(path, "cannot lock"),
    }
}

/// Creates a folder that only its owner may enter.
///
/// # Errors
/// [`DiskError`].
pub fn private_dir(path: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at(path, "cannot create")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_dropped_is_free_though_a_child_still_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap().unwrap();
        // What a child has between fork and exec.
        let _of_a_child = held.0.try_clone().unwrap();
        assert!(lock(&path).unwrap().is_none(), "held");
        drop(held);
        assert!(lock(&path).unwrap().is_some(), "free");
    }

    #[test]
    fn what_is_written_again_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for from in [0, 1, 1 << 20, 2_999_999, 3_000_000, 4_000_000] {
            write_again(&path, from).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "from {from}");
        }
    }
}
