//! A copy of a vault, made beside its writer. It may be ahead of a trail that was copied
//! before: what has no line is forgotten when that is opened.

use super::contents::Contents;
use super::epoch::Epoch;
use super::{VaultError, connect, destroy_unfinished, epoch_number, store};
use crate::disk::{self, At, DiskError};
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Copies the vault in `from` to `to`, which may have an earlier copy of it. Gives the
/// number of bytes that were copied.
///
/// # Errors
/// [`VaultError`]; what is in `to` is then a vault still, of that moment or an earlier one.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<u64, VaultError> {
    disk::private_dir(to)?;
    let contents = to.join("contents");
    let mut bytes = super::contents::copy(&from.join("contents"), &contents)?;
    // Indexes what was added, and sees that it is whole.
    drop(Contents::open(&contents)?);
    bytes += copy_keys(from, to)?;
    Ok(bytes)
}

/// Whether the vault in `folder` has a key with this name that was made before line `seq`.
///
/// # Errors
/// [`VaultError`].
pub(crate) fn has_older(folder: &Path, id: &str, seq: u64) -> Result<bool, VaultError> {
    let (path, db) = connect(folder, READ)?;
    let query = "SELECT EXISTS (SELECT 1 FROM compartment WHERE id = ?1 AND since < ?2)";
    let found = db.query_row(query, rusqlite::params![id, seq], |row| row.get(0));
    found.map_err(|e| store(&path, e))
}

const READ: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// The keys as of one moment, and the key of the epoch that they are under.
fn copy_keys(from: &Path, to: &Path) -> Result<u64, VaultError> {
    destroy_unfinished(to)?;
    let beside = to.join("keys.db.new~");
    let mut tried = 1;
    let (epoch, key) = loop {
        snapshot(from, &beside)?;
        let (path, db) = open(&beside)?;
        let number = epoch_number(&db).map_err(|e| store(&path, e))?.unwrap_or(1);
        match Epoch::stored(from, number) {
            // Somebody was erased between the two steps.
            Err(VaultError::Epoch(_)) if tried < ATTEMPTS => tried += 1,
            key => break (number, key?),
        }
    };
    Epoch::store(to, epoch, &key)?;
    let path = to.join("keys.db");
    // Of whoever wrote to the copy before: they do not belong to these keys.
    for name in ["keys.db-wal", "keys.db-shm", "keys.db-journal"] {
        remove(&to.join(name))?;
    }
    let length = fs::metadata(&beside).at(&beside, "cannot look at")?.len();
    fs::rename(&beside, &path).at(&path, "cannot replace")?;
    disk::sync_dir(&path)?;
    // Nobody opens what was erased by what an earlier copy had.
    for number in Epoch::numbers(to)? {
        if number != epoch {
            Epoch::destroy(to, number)?;
        }
    }
    Ok(length + key.len() as u64)
}

/// Of a copier who loses races with erasures.
const ATTEMPTS: u32 = 3;

fn snapshot(from: &Path, to: &Path) -> Result<(), VaultError> {
    remove(to)?;
    // Its owner alone reads it, from the first byte on.
    let mut options = OpenOptions::new();
    options.create_new(true).write(true).mode(0o600);
    let file = options.open(to).at(to, "cannot create")?;
    let (path, db) = connect(from, READ)?;
    let name = to.to_str().ok_or_else(|| DiskError {
        path: to.to_owned(),
        what: "cannot write",
        source: io::Error::other("its name is no text"),
    })?;
    db.execute("VACUUM INTO ?1", [name])
        .map_err(|e| store(&path, e))?;
    Ok(file.sync_all().at(to, "cannot make durable")?)
}

fn open(path: &Path) -> Result<(std::path::PathBuf, Connection), VaultError> {
    let db = Connection::open_with_flags(path, READ).map_err(|e| store(path, e))?;
    Ok((path.to_owned(), db))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at(path, "cannot remove"),
    }
}
