//! Reading archived segments: fetched, compared with the receipt, unpacked; the objects
//! kept in a folder of bounded size, the newest segment in memory.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;

use super::{Archive, ArchiveError, Kept, Receipt};
use crate::disk::{At, DiskError, private_dir};
use crate::read::{Damage, ReadError};

/// An archive as one trail's readers use it.
#[derive(Debug)]
pub(crate) struct Shelf {
    archive: Arc<dyn Archive>,
    /// Where fetched objects are kept.
    cache: PathBuf,
    cache_bytes_max: u64,
    /// The lines that were unpacked last: histories read line by line. Locked to look at
    /// or replace them.
    newest: Mutex<Option<(Digest, Arc<Vec<u8>>)>>,
}

impl Shelf {
    pub(crate) fn new(archive: Arc<dyn Archive>, cache: PathBuf, cache_bytes_max: u64) -> Self {
        Self {
            archive,
            cache,
            cache_bytes_max,
            newest: Mutex::default(),
        }
    }

    pub(super) fn archive(&self) -> &dyn Archive {
        &*self.archive
    }

    /// The file that `kept` stands for, byte for byte; `receipt` is where it was named.
    pub(crate) fn fetch(&self, kept: &Kept, receipt: &Path) -> Result<Arc<Vec<u8>>, ReadError> {
        if let Some((_, bytes)) = self
            .newest()
            .as_ref()
            .filter(|(hash, _)| *hash == kept.hash)
        {
            return Ok(Arc::clone(bytes));
        }
        let stored = match self.cached(kept) {
            Some(stored) => stored,
            None => {
                let stored = self.stored(kept, receipt)?;
                if let Err(e) = self.keep(kept, &stored) {
                    tracing::debug!(error = %e, "what was fetched is not kept");
                }
                stored
            }
        };
        let bytes = unpack(&stored, kept.size).filter(|bytes| Digest::of(&[bytes]) == kept.hash);
        let bytes = Arc::new(bytes.ok_or_else(|| altered(kept, receipt))?);
        *self.newest() = Some((kept.hash, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// The object as it lies in the archive, and as the receipt says.
    pub(super) fn stored(&self, kept: &Kept, receipt: &Path) -> Result<Vec<u8>, ReadError> {
        let max = usize::try_from(kept.stored_size).unwrap_or(usize::MAX);
        match self.archive.get(&kept.object, max) {
            Ok(stored) if Digest::of(&[&stored]) == kept.stored_hash => Ok(stored),
            Ok(_) | Err(ArchiveError::TooLong(_)) => Err(altered(kept, receipt)),
            Err(ArchiveError::Missing(text)) => Err(ReadError::Damaged(Damage {
                code: Code::BlockMissing,
                path: receipt.to_owned(),
                line: None,
                text,
            })),
            Err(e @ ArchiveError::Failed(_)) => Err(ReadError::Archive(e)),
        }
    }

    /// What was fetched before, if it is still what it was.
    fn cached(&self, kept: &Kept) -> Option<Vec<u8>> {
        let path = self.cache_path(kept);
        let file = fs::File::open(&path).ok()?;
        let mut stored = Vec::new();
        file.take(kept.stored_size + 1)
            .read_to_end(&mut stored)
            .ok()?;
        if Digest::of(&[&stored]) == kept.stored_hash {
            return Some(stored);
        }
        let _ = fs::remove_file(&path);
        None
    }

    /// Keeps what was fetched, in place of what was fetched longest ago.
    fn keep(&self, kept: &Kept, stored: &[u8]) -> Result<(), DiskError> {
        if kept.stored_size > self.cache_bytes_max {
            return Ok(());
        }
        private_dir(&self.cache)?;
        self.make_room(kept.stored_size)?;
        let path = self.cache_path(kept);
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&beside, stored).at(&beside, "cannot write")?;
        fs::rename(&beside, &path).at(&path, "cannot replace")
    }

    fn make_room(&self, size: u64) -> Result<(), DiskError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.cache).at(&self.cache, "cannot list")? {
            let path = entry.at(&self.cache, "cannot list")?.path();
            // Another reader may have removed it.
            if let Ok(found) = fs::metadata(&path) {
                files.push((found.modified().ok(), path, found.len()));
            }
        }
        files.sort();
        let mut used: u64 = files.iter().map(|(_, _, len)| len).sum();
        for (_, path, len) in files {
            if used + size <= self.cache_bytes_max {
                break;
            }
            let _ = fs::remove_file(path);
            used -= len;
        }
        Ok(())
    }

    fn cache_path(&self, kept: &Kept) -> PathBuf {
        self.cache.join(format!("{}.zst", kept.stored_hash))
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Option<(Digest, Arc<Vec<u8>>)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A receipt, if the segment has one.
pub(super) fn receipt(path: &Path, number: u32) -> Result<Option<Receipt>, ReadError> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.at(path, "cannot read")?,
    };
    let receipt = Receipt::decode(&bytes, number).map_err(|text| Damage {
        code: Code::LineAltered,
        path: path.to_owned(),
        line: None,
        text,
    })?;
    Ok(Some(receipt))
}

/// At most `size` bytes, whatever the object claims to hold.
pub(super) fn unpack(stored: &[u8], size: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let unpacked = zstd::stream::read::Decoder::with_buffer(stored).ok()?;
    unpacked.take(size + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == size).then_some(bytes)
}

fn altered(kept: &Kept, receipt: &Path) -> ReadError {
    ReadError::Damaged(Damage {
        code: Code::LineAltered,
        path: receipt.to_owned(),
        line: None,
        text: format!("object {} is not what was archived", kept.object),
    })
}
