//! Moving closed segments to an archive. The table of [`super`] says what a crash leaves.

use std::fs;
use std::path::Path;

use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;

use super::shelf::{Shelf, receipt, unpack};
use super::{Archive, ArchiveError, FORMAT, Kept, MAX_RECEIPT, MAX_SIZE, Receipt, check};
use crate::disk::{self, At, DiskError, Lock};
use crate::layout::Layout;
use crate::map::{self, OsFolder};
use crate::read::{self, Damage, ReadError};
use crate::signatures::Signatures;

/// Which segments are moved, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct MoveOptions {
    /// So many of the newest closed segments stay.
    pub keep: usize,
    /// Whether the events are written as Parquet, too; takes the feature of that name.
    pub parquet: bool,
}

/// A segment that is in the archive now, and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Its number.
    pub segment: u32,
    /// Bytes that became free.
    pub freed: u64,
    /// Bytes of its objects.
    pub stored: u64,
}

/// Why a segment could not be moved. What was moved before it stays moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The trail cannot be read, or is damaged: it is not moved then.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be read, written or removed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The archive fails.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An object of that name is there, and is another one.
    #[error(
        "{archive} has an object {object} already, and it is not this segment. Is it another \
         trail's archive? Name another prefix, or look at who writes there"
    )]
    Taken {
        /// The archive.
        archive: String,
        /// The object.
        object: String,
    },
    /// No archive was handed in.
    #[error("no archive is configured: name one under [archive]")]
    NoArchive,
    /// Somebody else moves segments of this trail.
    #[error("{}: another pitser archives this trail; let it end", .0.display())]
    Locked(std::path::PathBuf),
    /// The events cannot be written as Parquet.
    #[error("the events cannot be written as Parquet: {0}")]
    Parquet(String),
}

/// Moves the closed segments of a trail to its archive, oldest first, and tells of each.
/// Those stay that the map's newest commit does not cover: the trail's next opening
/// replays them, and must not need the archive.
/// Safe beside the trail's writer and readers, and to be repeated after a crash.
///
/// # Errors
/// [`MoveError`].
pub fn move_segments(
    layout: &Layout,
    options: MoveOptions,
    mut tell: impl FnMut(Moved),
) -> Result<(), MoveError> {
    if options.parquet && !cfg!(feature = "parquet") {
        let text = "this pitser was built without it; build it with `--features parquet`";
        return Err(MoveError::Parquet(text.into()));
    }
    let shelf = layout.shelf().ok_or(MoveError::NoArchive)?;
    let _lock = lock(layout)?;
    let prefix = prefix(layout)?;
    let numbers = layout.segment_numbers();
    let mut numbers = numbers.at(&layout.segments(), "cannot list")?;
    // The last one is the writer's.
    numbers.pop();
    numbers.retain(|number| layout.segment(*number).exists() || layout.logsig(*number).exists());
    numbers.truncate(numbers.len().saturating_sub(options.keep));
    let needed = replayed_from(layout)?;
    numbers.retain(|number| needed.is_some_and(|needed| *number < needed));
    for number in numbers {
        // A closed segment is the writer's until its last seal has come.
        if layout.parts(number).exists() || !layout.logsig(number).exists() {
            break;
        }
        let mover = Mover {
            layout,
            shelf,
            number,
            prefix: &prefix,
            options,
        };
        tell(mover.run()?);
    }
    Ok(())
}

/// Moves one segment.
struct Mover<'a> {
    layout: &'a Layout,
    shelf: &'a Shelf,
    number: u32,
    prefix: &'a str,
    options: MoveOptions,
}

impl Mover<'_> {
    fn run(&self) -> Result<Moved, MoveError> {
        let path = self.layout.receipt(self.number);
        let receipt = match receipt(&path, self.number)? {
            Some(receipt) => self.confirm(receipt)?,
            None => {
                let receipt = self.store()?;
                disk::replace(&path, &receipt.encode())?;
                receipt
            }
        };
        // Noted while the log signature is here: proofs need no more of it than a seal then.
        if let Err(error) = Signatures::open(self.layout, self.number) {
            tracing::debug!(%error, "outlines are made when they are asked for");
        }
        let freed = self.remove(&receipt)?;
        let events = receipt.events.as_ref().map_or(0, |kept| kept.stored_size);
        Ok(Moved {
            segment: self.number,
            freed,
            stored: receipt.lines.stored_size + receipt.signatures.stored_size + events,
        })
    }

    /// Makes sure that the archive still has what a receipt of an earlier run says: a
    /// file that is here may be the only one, put back since. What is gone is put again.
    fn confirm(&self, mut receipt: Receipt) -> Result<Receipt, MoveError> {
        let (lines, signatures) = (
            self.layout.segment(self.number),
            self.layout.logsig(self.number),
        );
        let before = receipt.clone();
        for (path, kept) in [
            (lines, &mut receipt.lines),
            (signatures, &mut receipt.signatures),
        ] {
            if !path.exists() {
                self.shelf.stored(kept, &path)?;
                continue;
            }
            let bytes = self.archived(&path, kept)?;
            *kept = self.store_packed(kept.object.clone(), &bytes)?;
        }
        // Packed by another version it may be other bytes.
        if receipt != before {
            disk::replace(&self.layout.receipt(self.number), &receipt.encode())?;
        }
        Ok(receipt)
    }

    /// Puts everything into the archive, and reads it back.
    fn store(&self) -> Result<Receipt, MoveError> {
        let lines = self.read(&self.layout.segment(self.number))?;
        let signatures = self.read(&self.layout.logsig(self.number))?;
        check::whole(&lines, &signatures)
            .map_err(|text| self.damage(&self.layout.logsig(self.number), text))?;
        let name = format!("{:06}.jsonl", self.number);
        let receipt = Receipt {
            archive: self.archive().name(),
            events: self.store_events(&lines)?,
            format: FORMAT.to_owned(),
            lines: self.store_packed(format!("{}/{name}.zst", self.prefix), &lines)?,
            segment: self.number,
            signatures: self
                .store_packed(format!("{}/{name}.logsig.zst", self.prefix), &signatures)?,
        };
        // For whoever has lost this folder. An older one says the same of the same files.
        let object = format!("{}/{name}.archived", self.prefix);
        self.archive().put(&object, receipt.encode())?;
        let beside = self.archive().get(&object, MAX_RECEIPT)?;
        match Receipt::decode(&beside, self.number) {
            Ok(there) if there.lines.hash == receipt.lines.hash => Ok(receipt),
            _ => Err(self.taken(object)),
        }
    }

    /// Puts a file into the archive unless it is there: packed by another version, it
    /// may be other bytes, and is taken as it is.
    fn store_packed(&self, object: String, bytes: &[u8]) -> Result<Kept, MoveError> {
        let packed = zstd::bulk::compress(bytes, LEVEL).map_err(|source| DiskError {
            path: self.layout.segment(self.number),
            what: "cannot compress",
            source,
        })?;
        self.archive().put(&object, packed)?;
        let stored = match self.archive().get(&object, packed_max(bytes.len())) {
            Err(ArchiveError::TooLong(_)) => return Err(self.taken(object)),
            other => other?,
        };
        if unpack(&stored, bytes.len() as u64).as_deref() != Some(bytes) {
            return Err(self.taken(object));
        }
        Ok(Kept {
            hash: Digest::of(&[bytes]),
            object,
            size: bytes.len() as u64,
            stored_hash: Digest::of(&[&stored]),
            stored_size: stored.len() as u64,
        })
    }

    /// Writes the events as Parquet. They follow from the lines: another version's file
    /// that is there already is left as it is.
    fn store_events(&self, lines: &[u8]) -> Result<Option<Kept>, MoveError> {
        if !self.options.parquet {
            return Ok(None);
        }
        let object = format!("{}/{:06}.parquet", self.prefix, self.number);
        let bytes = events(lines)?;
        let max = bytes.len() * 2 + MAX_RECEIPT;
        self.archive().put(&object, bytes)?;
        let stored = self.archive().get(&object, max)?;
        let (hash, size) = (Digest::of(&[&stored]), stored.len() as u64);
        Ok(Some(Kept {
            hash,
            object,
            size,
            stored_hash: hash,
            stored_size: size,
        }))
    }

    /// Removes what the receipt stands for, and says how much that was.
    fn remove(&self, receipt: &Receipt) -> Result<u64, MoveError> {
        let mut freed = 0;
        // Readers ask for the signatures first, and want the lines of the same segment.
        let files = [
            (self.layout.segment(self.number), &receipt.lines),
            (self.layout.logsig(self.number), &receipt.signatures),
        ];
        for (path, kept) in files {
            if !path.exists() {
                continue;
            }
            self.archived(&path, kept)?;
            fs::remove_file(&path).at(&path, "cannot remove")?;
            disk::sync_dir(&path)?;
            freed += kept.size;
        }
        Ok(freed)
    }

    /// A file that is here still, if it is the one that was archived.
    fn archived(&self, path: &Path, kept: &Kept) -> Result<Vec<u8>, MoveError> {
        let bytes = self.read(path)?;
        match Digest::of(&[&bytes]) == kept.hash {
            true => Ok(bytes),
            false => {
                let text = "it is not what was archived, and both are kept";
                Err(self.damage(path, text.into()).into())
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, MoveError> {
        let len = fs::metadata(path).at(path, "cannot look at")?.len();
        if len > MAX_SIZE {
            return Err(self
                .damage(path, format!("it is beyond {MAX_SIZE} bytes"))
                .into());
        }
        Ok(fs::read(path).at(path, "cannot read")?)
    }

    fn archive(&self) -> &dyn Archive {
        self.shelf.archive()
    }

    fn damage(&self, path: &Path, text: String) -> ReadError {
        ReadError::Damaged(Damage {
            code: Code::LineAltered,
            path: path.to_owned(),
            line: None,
            text,
        })
    }

    fn taken(&self, object: String) -> MoveError {
        MoveError::Taken {
            archive: self.archive().name(),
            object,
        }
    }
}

#[cfg(feature = "parquet")]
fn events(lines: &[u8]) -> Result<Vec<u8>, MoveError> {
    let mut bytes = Vec::new();
    let written = super::events::write(lines, &mut bytes);
    written.map_err(|e| MoveError::Parquet(e.to_string()))?;
    Ok(bytes)
}

#[cfg(not(feature = "parquet"))]
fn events(_: &[u8]) -> Result<Vec<u8>, MoveError> {
    Ok(Vec::new())
}

/// Origin and genesis: no two trails share it, whoever shares the archive.
fn prefix(layout: &Layout) -> Result<String, ReadError> {
    let (genesis, hash) = read::genesis(layout)?;
    let origin = genesis.genesis.map_or_else(String::new, |it| it.origin);
    let plain = |c: char| match c {
        '/' | '.' | '-' | '_' => c,
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    let origin: String = origin.chars().map(plain).collect();
    let hash = hash.to_string();
    Ok(format!("{origin}/{}", &hash[2..18]))
}

/// The segment from which on whoever opens the trail reads: it and those after it are
/// to be here. `None` if all are.
fn replayed_from(layout: &Layout) -> Result<Option<u32>, ReadError> {
    let newest = map::beside_writer(|| Ok(map::newest(OsFolder::new(layout.map()))?))?;
    // The last line that the map has is compared with it: it may end the segment before.
    Ok(newest.map(|commit| commit.segment.saturating_sub(u32::from(commit.offset == 0))))
}

fn lock(layout: &Layout) -> Result<Lock, MoveError> {
    let path = layout.dir().join("archive.lock");
    disk::lock(&path)?.ok_or(MoveError::Locked(path))
}

/// What packing makes of `len` bytes at the worst, and any version of it.
fn packed_max(len: usize) -> usize {
    len + len / 100 + (64 << 10)
}

/// Of zstd: hashes do not get smaller by more work.
const LEVEL: i32 = 6;
