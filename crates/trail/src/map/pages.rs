//! Buckets in files that only grow, and pseudonyms by number.
//!
//! ```text
//! leaves-NNNNNN   crc:4 ‖ bytes of a bucket, one after the other, up to 32 MiB
//! patients        pseudonym:32 ‖ crc:4, by number
//! extent          file:21 bits ‖ offset:26 bits ‖ length of the bytes:14 bits
//! ```
//! A bucket that changes is written anew, at the end of the newest file. Files
//! that hold little but what was replaced are emptied by moving the rest.

use super::folder::{Folder, Grows};
use super::{Damage, MapError};
use crate::disk::At;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::store::{Extent, Malformed, Pages};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

/// Files are not begun anew before they have this length, in bytes.
pub(super) const FILE_MAX: u64 = if cfg!(test) { 8 << 10 } else { 32 << 20 };
/// Bytes that are gathered before they are written.
const GATHERED: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Buckets that were read last are kept, about 0.6 KiB each.
const CACHED: usize = 8192;
/// Pseudonyms that were asked for last are kept.
const REMEMBERED: usize = 1 << 14;

const OFFSET_BITS: u32 = 26;
const LENGTH_BITS: u32 = 14;
const CRC: usize = 4;
const PSEUDONYM: usize = 32 + CRC;

/// Buckets and pseudonyms in a folder.
#[derive(Debug)]
pub struct DiskPages<F: Folder> {
    pub(super) folder: F,
    pub(super) files: BTreeMap<u32, Leaves<F::File>>,
    /// The file that is written, if there is one: the last of `files`.
    writing: Option<u32>,
    /// Its bytes that are not in it yet.
    gathered: Vec<u8>,
    /// Files whose bytes are not durable.
    unsynced: Vec<u32>,
    /// Files whose names are not durable.
    is_named: bool,
    next_file: u32,
    pseudonyms: Pseudonyms<F::File>,
    cache: RefCell<Vec<(u64, Vec<u8>)>>,
    /// By number; empty until the first is asked for.
    remembered: RefCell<Vec<Option<(u32, Bytes32)>>>,
    is_damaged: Cell<bool>,
}

/// One file of buckets.
#[derive(Debug)]
pub(super) struct Leaves<T> {
    pub(super) file: T,
    /// Bytes, those not yet written included.
    pub(super) len: u64,
    /// Bytes of buckets that still count.
    pub(super) live: u64,
}

#[derive(Debug)]
struct Pseudonyms<T> {
    file: Option<T>,
    /// How many are in the file.
    written: u32,
    gathered: Vec<u8>,
}

/// The parts of an extent.
pub(super) fn place(extent: Extent) -> (u32, u64, usize) {
    let bits = extent.get();
    let length = bits & ((1 << LENGTH_BITS) - 1);
    let offset = bits >> LENGTH_BITS & ((1 << OFFSET_BITS) - 1);
    let file = bits >> (LENGTH_BITS + OFFSET_BITS);
    (file as u32, offset, length as usize)
}

fn extent(file: u32, offset: u64, length: usize) -> Option<Extent> {
    let length = u64::try_from(length).ok()?;
    if length >= 1 << LENGTH_BITS || offset >= 1 << OFFSET_BITS {
        return None;
    }
    let bits = u64::from(file) << (LENGTH_BITS + OFFSET_BITS) | offset << LENGTH_BITS | length;
    Extent::new(bits)
}

/// Bytes that a bucket takes in its file.
fn taken(length: usize) -> u64 {
    (CRC + length) as u64
}

pub(super) fn leaves_name(number: u32) -> String {
    format!("leaves-{number:06}")
}

pub(super) const PATIENTS: &str = "patients";

impl<F: Folder> DiskPages<F> {
    /// Without buckets; files are numbered from `next_file` on.
    pub(super) fn new(folder: F, next_file: u32) -> Self {
        Self {
            folder,
            files: BTreeMap::new(),
            writing: None,
            gathered: Vec::new(),
            unsynced: Vec::new(),
            is_named: true,
            next_file,
            pseudonyms: Pseudonyms {
                file: None,
                written: 0,
                gathered: Vec::new(),
            },
            cache: RefCell::new(Vec::new()),
            remembered: RefCell::new(Vec::new()),
            is_damaged: Cell::new(false),
        }
    }

    /// Counts a bucket that is there already.
    ///
    /// # Errors
    /// If its file is not there, or is too short.
    pub(super) fn adopt(&mut self, extent: Extent) -> Result<(), MapError> {
        let (number, offset, length) = place(extent);
        let leaves = match self.files.get_mut(&number) {
            Some(leaves) => leaves,
            None => {
                let name = leaves_name(number);
                let file = self.folder.open(&name);
                let file = file.at(&self.folder.path().join(&name), "cannot open")?;
                let file = file.ok_or_else(|| self.damage(&name, Damage::Missing))?;
                let len = file.length();
                let len = len.at(&self.folder.path().join(&name), "cannot look at")?;
                let leaves = Leaves { file, len, live: 0 };
                self.files.entry(number).or_insert(leaves)
            }
        };
        if offset + taken(length) > leaves.len {
            return Err(self.damage(&leaves_name(number), Damage::Short));
        }
        leaves.live += taken(length);
        Ok(())
    }

    /// Opens the pseudonyms, of which there are `count`: to go on writing, or
    /// to read.
    ///
    /// # Errors
    /// If they cannot be opened, or are fewer.
    pub(super) fn adopt_pseudonyms(&mut self, count: u32, write: bool) -> Result<(), MapError> {
        let path = self.folder.path().join(PATIENTS);
        let len = u64::from(count) * PSEUDONYM as u64;
        let file = match write {
            true => match self.folder.reopen(PATIENTS, len) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.damage(PATIENTS, Damage::Short));
                }
                opened => Some(opened.at(&path, "cannot open")?),
            },
            false if count == 0 => None,
            false => {
                let file = self.folder.open(PATIENTS).at(&path, "cannot open")?;
                let file = file.ok_or_else(|| self.damage(PATIENTS, Damage::Missing))?;
                if file.length().at(&path, "cannot look at")? < len {
                    return Err(self.damage(PATIENTS, Damage::Short));
                }
                Some(file)
            }
        };
        self.is_named &= !write;
        self.pseudonyms.file = file;
        self.pseudonyms.written = count;
        Ok(())
    }

    /// Number of pseudonyms.
    pub(super) fn pseudonym_count(&self) -> u32 {
        let gathered = self.pseudonyms.gathered.len() / PSEUDONYM;
        self.pseudonyms.written + u32::try_from(gathered).unwrap_or(u32::MAX)
    }

    /// Makes everything that was written durable, and the files' names.
    ///
    /// # Errors
    /// [`MapError::Disk`].
    pub(super) fn sync(&mut self) -> Result<(), MapError> {
        self.write_gathered()?;
        self.write_pseudonyms()?;
        for number in std::mem::take(&mut self.unsynced) {
            if let Some(leaves) = self.files.get(&number) {
                let path = self.folder.path().join(leaves_name(number));
                leaves.file.sync().at(&path, "cannot make durable")?;
            }
        }
        if let Some(file) = &self.pseudonyms.file {
            let path = self.folder.path().join(PATIENTS);
            file.sync().at(&path, "cannot make durable")?;
        }
        if !self.is_named {
            self.sync_names()?;
        }
        Ok(())
    }

    pub(super) fn sync_names(&mut self) -> Result<(), MapError> {
        let synced = self.folder.sync();
        synced.at(self.folder.path(), "cannot make durable")?;
        self.is_named = true;
        Ok(())
    }

    /// The file that is being written is not cleaned.
    pub(super) fn writing(&self) -> Option<u32> {
        self.writing
    }

    /// Whether something was read that is not what was written.
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged.get()
    }

    pub(super) fn damage(&self, name: &str, damage: Damage) -> MapError {
        self.is_damaged.set(true);
        MapError::Damaged {
            path: self.folder.path().join(name),
            damage,
        }
    }

    fn write_gathered(&mut self) -> Result<(), MapError> {
        if let Some(number) = self.writing
            && let Some(leaves) = self.files.get_mut(&number)
            && !self.gathered.is_empty()
        {
            let path = self.folder.path().join(leaves_name(number));
            let written = leaves.file.append(&self.gathered);
            written.at(&path, "cannot write")?;
            self.gathered.clear();
        }
        Ok(())
    }

    fn write_pseudonyms(&mut self) -> Result<(), MapError> {
        let Pseudonyms {
            file,
            written,
            gathered,
        } = &mut self.pseudonyms;
        if gathered.is_empty() {
            return Ok(());
        }
        let path = self.folder.path().join(PATIENTS);
        if file.is_none() {
            let new = self.folder.reopen(PATIENTS, 0);
            *file = Some(new.at(&path, "cannot create")?);
            self.is_named = false;
        }
        if let Some(file) = file {
            file.append(gathered).at(&path, "cannot write")?;
        }
        *written += u32::try_from(gathered.len() / PSEUDONYM).unwrap_or(u32::MAX);
        gathered.clear();
        Ok(())
    }

    fn begin_file(&mut self) -> Result<u32, MapError> {
        self.write_gathered()?;
        let number = self.next_file;
        let name = leaves_name(number);
        let path = self.folder.path().join(&name);
        let file = self.folder.create(&name).at(&path, "cannot create")?;
        let leaves = Leaves {
            file,
            len: 0,
            live: 0,
        };
        self.files.insert(number, leaves);
        self.unsynced.push(number);
        self.writing = Some(number);
        self.next_file += 1;
        self.is_named = false;
        Ok(number)
    }

    /// Reads a bucket's bytes, and checks that they are those that were written.
    fn fetch(&self, at: Extent, bytes: &mut Vec<u8>) -> Result<(), MapError> {
        let (number, offset, length) = place(at);
        let name = || leaves_name(number);
        let leaves = self.files.get(&number);
        let leaves = leaves.ok_or_else(|| self.damage(&name(), Damage::Missing))?;
        bytes.resize(CRC + length, 0);
        // Where the bytes begin that are not in the file yet.
        let in_file = match self.writing == Some(number) {
            true => leaves.len - self.gathered.len() as u64,
            false => leaves.len,
        };
        if let Some(start) = offset.checked_sub(in_file) {
            let start = start as usize;
            let there = self.gathered.get(start..start + CRC + length);
            bytes.copy_from_slice(there.ok_or_else(|| self.damage(&name(), Damage::Short))?);
        } else {
            match leaves.file.read_at(bytes, offset) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.damage(&name(), Damage::Short));
                }
                read => read.at(&self.folder.path().join(name()), "cannot read")?,
            }
        }
        let (crc, body) = bytes.split_at(CRC);
        if crc != checksum(at, body) {
            return Err(self.damage(&name(), Damage::Altered));
        }
        bytes.drain(..CRC);
        Ok(())
    }

    /// Reads a pseudonym, and checks that it is the one that was written.
    fn read_pseudonym(&self, index: u32) -> Result<Bytes32, MapError> {
        let mut bytes = [0; PSEUDONYM];
        let at = PSEUDONYM as u64 * u64::from(index);
        match (
            &self.pseudonyms.file,
            index.checked_sub(self.pseudonyms.written),
        ) {
            (Some(file), None) => {
                let read = file.read_at(&mut bytes, at);
                read.at(&self.folder.path().join(PATIENTS), "cannot read")?;
            }
            (_, Some(index)) => {
                let mut there = self.pseudonyms.gathered.chunks_exact(PSEUDONYM);
                let there = there.nth(index as usize);
                let there = there.ok_or_else(|| self.damage(PATIENTS, Damage::Short))?;
                bytes.copy_from_slice(there);
            }
            (None, None) => return Err(self.damage(PATIENTS, Damage::Missing)),
        }
        let (pseudonym, crc) = bytes.split_at(32);
        if crc != crc32fast::hash(pseudonym).to_be_bytes() {
            return Err(self.damage(PATIENTS, Damage::Altered));
        }
        let mut out = [0; 32];
        out.copy_from_slice(pseudonym);
        Ok(Bytes32(out))
    }
}

/// Of the bytes and of the place where they belong.
fn checksum(at: Extent, bytes: &[u8]) -> [u8; CRC] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&at.get().to_be_bytes());
    crc.update(bytes);
    crc.finalize().to_be_bytes()
}

impl<F: Folder> Pages for DiskPages<F> {
    type Error = MapError;

    fn read<R>(&self, at: Extent, look: impl FnOnce(&[u8]) -> R) -> Result<R, MapError> {
        let mut cache = self.cache.borrow_mut();
        if cache.is_empty() {
            cache.resize_with(CACHED, || (u64::MAX, Vec::new()));
        }
        // Neighbours in a file are about a kilobyte apart.
        let spread = at.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let (kept, bytes) = &mut cache[spread as usize % CACHED];
        if *kept != at.get() {
            *kept = u64::MAX;
            self.fetch(at, bytes)?;
            *kept = at.get();
        }
        Ok(look(bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Extent, MapError> {
        let number = match self.writing {
            Some(number) if self.files[&number].len < FILE_MAX => number,
            _ => self.begin_file()?,
        };
        let offset = self.files[&number].len;
        let at = extent(number, offset, bytes.len());
        let at = at.ok_or_else(|| self.damage(&leaves_name(number), Damage::Full))?;
        self.gathered.extend(checksum(at, bytes));
        self.gathered.extend(bytes);
        if !self.unsynced.contains(&number) {
            self.unsynced.push(number);
        }
        if let Some(leaves) = self.files.get_mut(&number) {
            leaves.len += taken(bytes.len());
            leaves.live += taken(bytes.len());
        }
        if self.gathered.len() >= GATHERED {
            self.write_gathered()?;
        }
        Ok(at)
    }

    fn release(&mut self, at: Extent) {
        let (number, _, length) = place(at);
        if let Some(leaves) = self.files.get_mut(&number) {
            leaves.live = leaves.live.saturating_sub(taken(length));
        }
    }

    fn pseudonym(&self, index: u32) -> Result<Bytes32, MapError> {
        let mut remembered = self.remembered.borrow_mut();
        remembered.resize(REMEMBERED, None);
        match &mut remembered[index as usize % REMEMBERED] {
            Some((known, pseudonym)) if *known == index => Ok(*pseudonym),
            other => {
                let pseudonym = self.read_pseudonym(index)?;
                *other = Some((index, pseudonym));
                Ok(pseudonym)
            }
        }
    }

    fn push_pseudonym(&mut self, pseudonym: &Bytes32) -> Result<u32, MapError> {
        let index = self.pseudonym_count();
        self.pseudonyms.gathered.extend(pseudonym.0);
        let crc = crc32fast::hash(&pseudonym.0).to_be_bytes();
        self.pseudonyms.gathered.extend(crc);
        if self.pseudonyms.gathered.len() >= GATHERED {
            self.write_pseudonyms()?;
        }
        Ok(index)
    }

    fn malformed(&self, _: Malformed) -> MapError {
        self.damage("", Damage::Altered)
    }
}
