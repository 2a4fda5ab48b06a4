//! What files must do for everybody here: be replaced whole or not at all, be there after a
//! power cut once that was said, be locked, and keep secrets from other users of the machine.
//!
//! In scope: files by their paths. Elsewhere: formats, recovery, and files that grow
//! (`trail` and `authority` have their own). Errors are the system's: only the caller
//! knows what was to be done with the file, and what to do now.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, fchown,
};
use std::path::{Path, PathBuf};

/// Who may read a file, from its first moment on. Its owner alone may write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever the user's `umask` lets.
    Everybody,
    /// Its owner, for a secret.
    Owner,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Everybody => 0o644,
            Self::Owner => 0o600,
        }
    }
}

/// Replaces `path`, durably: it has all of `bytes` afterwards or, after an error or a power
/// cut, all that it had. It keeps its owner, should root replace it.
///
/// # Errors
/// The system's. If the last step failed, the new bytes can be seen, and may not survive.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let (beside, mut file) = begin_beside(path, access)?;
    // Root may replace what the service's user is to read.
    if let Ok(replaced) = fs::metadata(path)
        && replaced.uid() != file.metadata()?.uid()
    {
        fchown(&file, Some(replaced.uid()), Some(replaced.gid()))?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder_of(path)
}

/// Creates `path` with all of `bytes`, durably, and never in another file's place.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if it is there, and what the system says.
pub fn create(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let (beside, mut file) = begin_beside(path, access)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    give_new_name(&beside, path)?;
    sync_folder_of(path)
}

/// Gives the file at `beside` the name `path`, which nothing is to have yet. `beside` is
/// gone afterwards.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if something has it, and what the system says.
pub fn give_new_name(beside: &Path, path: &Path) -> io::Result<()> {
    // Unlike a new name, a second one never takes another file's place.
    let named = match fs::hard_link(beside, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            // A file system without second names: whoever comes in between is replaced.
            match path.symlink_metadata() {
                Err(_) => return fs::rename(beside, path),
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            }
        }
        named => named,
    };
    fs::remove_file(beside)?;
    named
}

/// Replaces `path` without waiting for the disk: for what can be made again. After a power
/// cut it may be the old one, or damaged.
///
/// # Errors
/// The system's.
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (beside, mut file) = begin_beside(path, Access::Everybody)?;
    file.write_all(bytes)?;
    fs::rename(beside, path)
}

/// A file that is to have the name `path` later.
fn begin_beside(path: &Path, access: Access) -> io::Result<(PathBuf, File)> {
    // Nobody else gives a file such a name: a path may be one that a user chose.
    let beside = path.with_added_extension("new~");
    // What a crash left was never used, and may have other permissions.
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(access.mode());
    let file = options.open(&beside)?;
    Ok((beside, file))
}

/// Writes what a file has from byte `from` on once more, and makes it durable.
///
/// What a process reads may be in the system's memory alone, and stay there: once
/// making it durable has failed, the system takes it for written, and does nothing the
/// next time that it is asked to.
///
/// # Errors
/// The system's.
pub fn write_again(file: &File, from: u64) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut bytes = vec![0; AGAIN_BYTES.min(usize_of(len.saturating_sub(from)))];
    let mut at = from;
    while at < len {
        let part = bytes.len().min(usize_of(len - at));
        let part = &mut bytes[..part];
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    file.sync_data()
}

/// So many bytes are written again at a time.
const AGAIN_BYTES: usize = 1 << 20;

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Overwrites a small file, and removes it, durably. What the disk itself keeps of
/// replaced blocks stays.
///
/// # Errors
/// The system's.
pub fn destroy(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let len = file.metadata()?.len();
    io::copy(&mut io::Read::take(io::repeat(0), len), &mut file)?;
    file.sync_all()?;
    fs::remove_file(path)?;
    sync_folder_of(path)
}

/// Makes the name `path` durable, or that it is gone.
///
/// # Errors
/// The system's.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder that a path names a file in: a bare name stands in the current one.
pub fn folder_of(path: &Path) -> &Path {
    let named = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// Creates a folder that only its owner may enter, and those above it that are not there.
///
/// # Errors
/// The system's.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The lock that a file stands for, until it is dropped. Only processes that ask for it
/// heed it.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock; `None` if somebody else has it.
    ///
    /// # Errors
    /// The system's.
    pub fn take(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it to a child of another thread, until that runs
        // its own program. What fails here, closing does.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_what_a_crash_left_beside_it_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        // Of a crash: readable by all.
        fs::write(dir.path().join("secret.key.new~"), "half").unwrap();
        for bytes in ["first", "second, longer", "x"] {
            replace(&path, bytes.as_bytes(), Access::Owner).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
            assert_eq!(mode(&path), 0o600);
        }
        replace(&path, b"known to all", Access::Everybody).unwrap();
        assert_eq!(mode(&path) & 0o133, 0);
        replace_unsynced(&path, b"made again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "made again");
        assert_eq!(names(&dir), ["secret.key"]);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace(&path, b"kept", Access::Everybody).unwrap();
        // What cannot be removed is in the way.
        fs::create_dir(dir.path().join("state.new~")).unwrap();
        replace(&path, b"lost", Access::Everybody).unwrap_err();
        create(&path, b"lost", Access::Everybody).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[test]
    fn what_is_there_is_never_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness.key");
        fs::write(dir.path().join("witness.key.new~"), "half").unwrap();
        create(&path, b"first", Access::Owner).unwrap();
        let again = create(&path, b"second", Access::Owner).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(names(&dir), ["witness.key"]);
    }

    #[test]
    fn without_second_names_a_file_is_created_all_the_same() {
        // Any file system: a folder has none either.
        let dir = tempfile::tempdir().unwrap();
        let (beside, path) = (dir.path().join("beside"), dir.path().join("path"));
        fs::create_dir(&beside).unwrap();
        give_new_name(&beside, &path).unwrap();
        assert_eq!(names(&dir), ["path"]);
    }

    #[test]
    fn what_is_written_again_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&path).unwrap();
        for from in [0, 1, 1 << 20, 2_999_999, 3_000_000, 4_000_000] {
            write_again(&file, from).unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "from {from}");
        }
    }

    #[test]
    fn what_is_destroyed_is_overwritten_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "secret").unwrap();
        // Another name of the same bytes.
        let other = dir.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        destroy(&path).unwrap();
        assert_eq!(fs::read(&other).unwrap(), [0; 6]);
        assert_eq!(names(&dir), ["other"]);
    }

    #[test]
    fn a_bare_name_stands_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("name")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/name")), Path::new("a"));
        assert_eq!(folder_of(Path::new("/name")), Path::new("/"));
        sync_folder_of(Path::new("name")).unwrap();
    }

    #[test]
    fn a_lock_that_was_dropped_is_free_though_a_child_still_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open = || File::create(&path).unwrap();
        let held = Lock::take(open()).unwrap().unwrap();
        // What a child has between fork and exec.
        let _of_a_child = held.0.try_clone().unwrap();
        assert!(Lock::take(open()).unwrap().is_none(), "held");
        drop(held);
        assert!(Lock::take(open()).unwrap().is_some(), "free");
    }
}
