//! Sealed contents on disk: files that only grow, and an index from line to place.
//!
//! ```text
//! 000000.dat   "PITSERV1" ‖ records     a new one is begun once it is longer than 1 GiB
//! record       length:4 ‖ seq:8 ‖ compartment:8 ‖ sealed        length is that of all behind it
//! index        "PITSERX1" ‖ reached:8 ‖ lines:8 ‖ a place for each line, from seq 0
//! place        file number:3 ‖ offset:5, big-endian; zero where a line has no content
//! ```
//! Lines come in order, and so do records. The index is derived: everything before
//! `reached` is durable in it, of so many `lines`; what comes later is read again from
//! the files when the store is opened.

use crate::behind::{Behind, Flight, Spot};
use crate::disk::{self, At, DiskError};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"PITSERV1";
const INDEX_MAGIC: &[u8; 8] = b"PITSERX1";
const INDEX_HEAD: u64 = 24;
/// Length, seq and compartment in front of what is sealed.
const HEAD: usize = 20;
/// Longest record after its length, in bytes: a raw message or a row with large
/// values may be long, but PostgreSQL's limit for one value is 1 GiB.
const LONGEST: u32 = 1 << 31;
/// A file is closed beyond this.
const FILE_BYTES: u64 = 1 << 30;
/// The index is made durable after so many bytes of records.
const INDEX_EVERY: u64 = 16 << 20;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: u32,
    offset: u64,
}

impl Place {
    fn encode(self) -> [u8; 8] {
        (u64::from(self.file) << 40 | self.offset).to_be_bytes()
    }

    fn decode(bytes: [u8; 8]) -> Option<Self> {
        let value = u64::from_be_bytes(bytes);
        let file = u32::try_from(value >> 40).ok()?;
        let offset = value & ((1 << 40) - 1);
        (offset != 0).then_some(Self { file, offset })
    }
}

/// One record: who may open it, and what is sealed.
pub(super) struct Record {
    pub(super) compartment: u64,
    pub(super) sealed: Vec<u8>,
}

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file is not what was written.
    #[error("{}: damaged at byte {offset}. The vault cannot be rebuilt: restore it from its backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
}

/// The files of one vault.
#[derive(Debug)]
pub(super) struct Contents {
    folder: PathBuf,
    /// The newest file; records are appended to it.
    file: File,
    number: u32,
    /// Its length without what waits.
    len: u64,
    /// Its limit, in bytes.
    limit: u64,
    index: File,
    /// Records since the last commit.
    waiting: Vec<u8>,
    /// Their lines, and where they begin in `waiting`.
    places: VecDeque<(u64, usize)>,
    /// Records on their way to the disk, before those that wait.
    flying: Option<Flying>,
    /// Earlier files, opened as they are needed.
    earlier: Vec<Option<File>>,
    /// Bytes of records that the durable index does not know of.
    unindexed: u64,
}

#[derive(Debug)]
struct Flying {
    flight: Flight,
    places: VecDeque<(u64, usize)>,
}

impl Contents {
    /// Opens the files for their one writer, and brings the index up to date.
    pub(super) fn open(folder: &Path) -> Result<Self, ContentsError> {
        disk::private_dir(folder)?;
        let numbers = numbers(folder)?;
        let number = numbers.last().copied().unwrap_or(0);
        let (file, len) = open_file(folder, number)?;
        let path = folder.join("index");
        let index = writable(&path)?;
        let mut contents = Self {
            folder: folder.to_owned(),
            file,
            number,
            len,
            limit: FILE_BYTES,
            index,
            waiting: Vec::new(),
            places: VecDeque::new(),
            flying: None,
            earlier: Vec::new(),
            unindexed: 0,
        };
        contents.catch_up()?;
        Ok(contents)
    }

    /// Opens the files to read beside their writer.
    pub(super) fn open_read_only(folder: &Path) -> Result<Self, ContentsError> {
        let number = numbers(folder)?.last().copied().unwrap_or(0);
        let path = file_path(folder, number);
        let file = File::open(&path).at(&path, "cannot open")?;
        let path = folder.join("index");
        let index = File::open(&path).at(&path, "cannot open")?;
        Ok(Self {
            folder: folder.to_owned(),
            len: file.metadata().at(&path, "cannot look at")?.len(),
            file,
            number,
            limit: FILE_BYTES,
            index,
            waiting: Vec::new(),
            places: VecDeque::new(),
            flying: None,
            earlier: Vec::new(),
            unindexed: 0,
        })
    }

    /// Appends a record: `seal` is given the buffer to append to.
    pub(super) fn put(&mut self, seq: u64, compartment: u64, seal: impl FnOnce(&mut Vec<u8>)) {
        let start = self.waiting.len();
        self.waiting.extend([0; 4]);
        self.waiting.extend(seq.to_be_bytes());
        self.waiting.extend(compartment.to_be_bytes());
        seal(&mut self.waiting);
        let length = self.waiting.len() - start - 4;
        let length = u32::try_from(length).expect("engines cap a value at 1 GiB");
        self.waiting[start..start + 4].copy_from_slice(&length.to_be_bytes());
        self.places.push_back((seq, start));
    }

    /// Bytes of records that the next [`Contents::commit`] writes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Makes all records durable.
    pub(super) fn commit(&mut self) -> Result<(), ContentsError> {
        self.land()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = self.writable()?;
        let written = self.file.write_all_at(&self.waiting, self.len);
        written.at(&path, "cannot write")?;
        self.file.sync_data().at(&path, "cannot make durable")?;
        let places = std::mem::take(&mut self.places);
        self.written(places, self.waiting.len())?;
        self.waiting = spare(std::mem::take(&mut self.waiting));
        Ok(())
    }

    /// Makes all records durable on the thread that is given: they are once they have
    /// landed.
    pub(super) fn commit_behind(&mut self, behind: &Behind) -> Result<(), ContentsError> {
        let spare = self.land()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = self.writable()?;
        let bytes = std::mem::replace(&mut self.waiting, spare);
        self.flying = Some(Flying {
            flight: behind.send((&self.file, &path), Spot::At(self.len), bytes)?,
            places: std::mem::take(&mut self.places),
        });
        Ok(())
    }

    /// Waits until those on their way are durable; gives memory to be used again.
    pub(super) fn land(&mut self) -> Result<Vec<u8>, ContentsError> {
        let Some(Flying { flight, places }) = self.flying.take() else {
            return Ok(Vec::new());
        };
        let length = flight.bytes().len();
        let landed = flight.land()?;
        self.written(places, length)?;
        Ok(spare(landed))
    }

    /// The path of the file to append to, a new one if the newest is full.
    fn writable(&mut self) -> Result<PathBuf, ContentsError> {
        if self.len >= self.limit {
            let (file, len) = open_file(&self.folder, self.number + 1)?;
            self.write_index()?;
            (self.file, self.len) = (file, len);
            self.number += 1;
        }
        Ok(file_path(&self.folder, self.number))
    }

    /// Notes that so many bytes, with these records, are durable.
    fn written(
        &mut self,
        places: VecDeque<(u64, usize)>,
        length: usize,
    ) -> Result<(), ContentsError> {
        self.index_written(&places)?;
        self.len += length as u64;
        self.unindexed += length as u64;
        if self.unindexed >= INDEX_EVERY {
            self.write_index()?;
        }
        Ok(())
    }

    /// The record of line `seq`, if it has one.
    pub(super) fn get(&mut self, seq: u64) -> Result<Option<Record>, ContentsError> {
        let flying = self.flying.as_ref();
        let flying = flying.map(|flying| (&flying.places, flying.flight.bytes()));
        for (places, bytes) in flying.into_iter().chain([(&self.places, &*self.waiting)]) {
            if let Ok(at) = places.binary_search_by_key(&seq, |(seq, _)| *seq) {
                let (_, start) = places[at];
                let end = places.get(at + 1).map_or(bytes.len(), |(_, next)| *next);
                return Ok(Some(record(&bytes[start + 4..end])));
            }
        }
        let Some(place) = self.place(seq)? else {
            return Ok(None);
        };
        let body = self.read(place, seq)?;
        Ok(Some(record(&body)))
    }

    /// Forgets the records of line `seq` and all later ones.
    pub(super) fn discard_from(&mut self, seq: u64) -> Result<(), ContentsError> {
        let path = self.folder.join("index");
        let length = self.index.metadata().at(&path, "cannot look at")?.len();
        let (mut at, end) = (INDEX_HEAD + 8 * seq, length);
        let mut first = None;
        while at < end && first.is_none() {
            first = self.place_at(at)?;
            at += 8;
        }
        if let Some(first) = first {
            // What comes to stand in the place of these records begins elsewhere: an
            // index that says they are known must not outlive them.
            self.index.sync_data().at(&path, "cannot make durable")?;
            self.write_head(first, seq)?;
            self.index.sync_data().at(&path, "cannot make durable")?;
            for number in (first.file + 1..=self.number).rev() {
                let path = file_path(&self.folder, number);
                std::fs::remove_file(&path).at(&path, "cannot remove")?;
                disk::sync_dir(&path)?;
            }
            (self.file, _) = open_file(&self.folder, first.file)?;
            self.number = first.file;
            let path = file_path(&self.folder, first.file);
            self.file
                .set_len(first.offset)
                .at(&path, "cannot shorten")?;
            self.file.sync_all().at(&path, "cannot make durable")?;
            self.len = first.offset;
            self.earlier.truncate(first.file as usize);
        }
        if length > INDEX_HEAD + 8 * seq {
            self.index
                .set_len(INDEX_HEAD + 8 * seq)
                .at(&path, "cannot shorten")?;
            self.write_index()?;
        }
        Ok(())
    }

    /// Reads the records that the durable index does not know of.
    fn catch_up(&mut self) -> Result<(), ContentsError> {
        let (mut place, mut next_seq) = self.reached()?;
        let last = self.number;
        for number in place.file..=last {
            let path = file_path(&self.folder, number);
            // Before its records are counted on. Of a file that was closed, all are durable.
            if number == last {
                disk::write_again(&path, place.offset)?;
            }
            let file = File::open(&path).at(&path, "cannot open")?;
            let length = file.metadata().at(&path, "cannot look at")?.len();
            while let Some((seq, next)) = self.header(&file, place, length, next_seq)? {
                next_seq = seq + 1;
                self.index
                    .write_all_at(&place.encode(), INDEX_HEAD + 8 * seq)
                    .at(&path, "cannot write the index of")?;
                place.offset = next;
            }
            if place.offset < length {
                if number < last {
                    return Err(damaged(&path, place.offset));
                }
                // The end of a write that was never reported as done.
                self.file
                    .set_len(place.offset)
                    .at(&path, "cannot shorten")?;
                self.file.sync_all().at(&path, "cannot make durable")?;
                self.len = place.offset;
            }
            if number < last {
                place = Place {
                    file: number + 1,
                    offset: MAGIC.len() as u64,
                };
            }
        }
        // Places of records that were lost, and which others will stand in.
        let path = self.folder.join("index");
        let known = INDEX_HEAD + 8 * next_seq;
        if self.index.metadata().at(&path, "cannot look at")?.len() > known {
            self.index.set_len(known).at(&path, "cannot shorten")?;
        }
        self.write_index()
    }

    /// The line of the record at `place`, which is `least` or a later one, and where the
    /// next record is; `None` at the end, or where the file ends before the record does.
    fn header(
        &self,
        file: &File,
        place: Place,
        length: u64,
        least: u64,
    ) -> Result<Option<(u64, u64)>, ContentsError> {
        let path = file_path(&self.folder, place.file);
        let left = length.saturating_sub(place.offset);
        if left < HEAD as u64 {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, place.offset)
            .at(&path, "cannot read")?;
        let (body, seq) = (be32(&head), be64(&head[4..]));
        // A block that was allocated and never written.
        if body == 0 && place.file == self.number {
            return Ok(None);
        }
        if !(16..=LONGEST).contains(&body) || seq > u64::MAX / 16 || seq < least {
            // Or one of which a part was written.
            if place.file == self.number
                && is_torn(file, place.offset, length).at(&path, "cannot read")?
            {
                return Ok(None);
            }
            return Err(damaged(&path, place.offset));
        }
        let next = place.offset + 4 + u64::from(body);
        Ok((next <= length).then_some((seq, next)))
    }

    /// Up to where the index is durable, and of how many lines.
    fn reached(&mut self) -> Result<(Place, u64), ContentsError> {
        let path = self.folder.join("index");
        let length = self.index.metadata().at(&path, "cannot look at")?.len();
        let mut head = [0; INDEX_HEAD as usize];
        if length >= INDEX_HEAD {
            self.index
                .read_exact_at(&mut head, 0)
                .at(&path, "cannot read")?;
        }
        let lines = be64(&head[16..]);
        let place = Place::decode(head[8..16].try_into().expect("eight bytes"));
        if head.starts_with(INDEX_MAGIC)
            && (length - INDEX_HEAD) / 8 >= lines
            && let Some(place) = place
            && place.file <= self.number
            && place.offset <= file_len(&self.folder, place.file)?
        {
            return Ok((place, lines));
        }
        self.index.set_len(0).at(&path, "cannot shorten")?;
        let first = Place {
            file: 0,
            offset: MAGIC.len() as u64,
        };
        Ok((first, 0))
    }

    /// Makes the index durable, and says so in it.
    fn write_index(&mut self) -> Result<(), ContentsError> {
        let path = self.folder.join("index");
        self.index.sync_data().at(&path, "cannot make durable")?;
        let length = self.index.metadata().at(&path, "cannot look at")?.len();
        let lines = length.saturating_sub(INDEX_HEAD) / 8;
        let reached = Place {
            file: self.number,
            offset: self.len,
        };
        self.write_head(reached, lines)?;
        self.unindexed = 0;
        Ok(())
    }

    /// Says that everything before `reached` is durable in the index, of so many lines.
    fn write_head(&self, reached: Place, lines: u64) -> Result<(), DiskError> {
        let path = self.folder.join("index");
        let head = [&INDEX_MAGIC[..], &reached.encode(), &lines.to_be_bytes()].concat();
        self.index.write_all_at(&head, 0).at(&path, "cannot write")
    }

    /// Puts the places of what was just written into the index.
    fn index_written(&self, places: &VecDeque<(u64, usize)>) -> Result<(), ContentsError> {
        let path = self.folder.join("index");
        let (Some((first, _)), Some((last, _))) = (places.front(), places.back()) else {
            return Ok(());
        };
        let mut run = vec![0; (last - first + 1) as usize * 8];
        for (seq, start) in places {
            let place = Place {
                file: self.number,
                offset: self.len + *start as u64,
            };
            let at = (seq - first) as usize * 8;
            run[at..at + 8].copy_from_slice(&place.encode());
        }
        self.index
            .write_all_at(&run, INDEX_HEAD + 8 * first)
            .at(&path, "cannot write")?;
        Ok(())
    }

    fn place(&self, seq: u64) -> Result<Option<Place>, ContentsError> {
        self.place_at(seq.saturating_mul(8).saturating_add(INDEX_HEAD))
    }

    fn place_at(&self, at: u64) -> Result<Option<Place>, ContentsError> {
        let mut place = [0; 8];
        match self.index.read_exact_at(&mut place, at) {
            Ok(()) => Ok(Place::decode(place)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e).at(&self.folder.join("index"), "cannot read")?,
        }
    }

    /// What stands behind the length of the record of line `seq`.
    fn read(&mut self, place: Place, seq: u64) -> Result<Vec<u8>, ContentsError> {
        let path = file_path(&self.folder, place.file);
        let file = self.file_of(place.file)?;
        let length = file.metadata().at(&path, "cannot look at")?.len();
        let mut head = [0; HEAD];
        let left = length.saturating_sub(place.offset);
        if left < HEAD as u64 {
            return Err(damaged(&path, place.offset));
        }
        file.read_exact_at(&mut head, place.offset)
            .at(&path, "cannot read")?;
        let body = u64::from(be32(&head));
        if be64(&head[4..]) != seq || body < 16 || body + 4 > left {
            return Err(damaged(&path, place.offset));
        }
        let mut bytes = vec![0; body as usize];
        file.read_exact_at(&mut bytes, place.offset + 4)
            .at(&path, "cannot read")?;
        Ok(bytes)
    }

    fn file_of(&mut self, number: u32) -> Result<&File, ContentsError> {
        if number == self.number {
            return Ok(&self.file);
        }
        let at = number as usize;
        if self.earlier.len() <= at {
            self.earlier.resize_with(at + 1, || None);
        }
        let slot = &mut self.earlier[at];
        if slot.is_none() {
            let path = file_path(&self.folder, number);
            *slot = Some(File::open(&path).at(&path, "cannot open")?);
        }
        Ok(slot.as_ref().expect("just opened"))
    }
}

/// Copies what the files in `from` have, beside their writer, to those in `to`, which may
/// have an earlier copy of it: files only grow. Gives the number of bytes that were copied.
/// A file that does not go on from the earlier copy is copied whole beside that one, and
/// then takes its place. What is derived is left to be made: the end of the last file may
/// be half a record, and the index is not up to date until the copy was opened.
pub(super) fn copy(from: &Path, to: &Path) -> Result<u64, ContentsError> {
    disk::private_dir(to)?;
    remove_unfinished(to)?;
    let numbers = numbers(from)?;
    if let Some(last) = numbers.last() {
        remove_after(to, *last)?;
    }
    let mut copied = 0;
    for number in numbers {
        let (source, target) = (file_path(from, number), file_path(to, number));
        let input = File::open(&source).at(&source, "cannot open")?;
        let length = input.metadata().at(&source, "cannot look at")?.len();
        let output = writable(&target)?;
        let known = output.metadata().at(&target, "cannot look at")?.len();
        let goes_on =
            known <= length && same_end(&input, &output, known).at(&target, "cannot compare")?;
        if goes_on {
            copy_part((&input, &source), (&output, &target), known..length)?;
            copied += length - known;
            continue;
        }
        // A crash cost the source its end, and others came to stand there.
        let beside = target.with_added_extension(UNFINISHED);
        copy_part((&input, &source), (&writable(&beside)?, &beside), 0..length)?;
        copied += length;
        remove_after(to, number)?;
        remove_index(to)?;
        std::fs::rename(&beside, &target).at(&target, "cannot replace")?;
        disk::sync_dir(&target)?;
    }
    disk::sync_dir(&file_path(to, 0))?;
    Ok(copied)
}

/// Copies these bytes of a file to the same place in another, durably.
fn copy_part(
    (input, source): (&File, &Path),
    (output, target): (&File, &Path),
    bytes: Range<u64>,
) -> Result<(), DiskError> {
    let mut part = vec![0; COPY_BYTES];
    let mut at = bytes.start;
    while at < bytes.end {
        let most = part
            .len()
            .min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX));
        let part = &mut part[..most];
        input.read_exact_at(part, at).at(source, "cannot read")?;
        output.write_all_at(part, at).at(target, "cannot write")?;
        at += most as u64;
    }
    match bytes.is_empty() {
        true => Ok(()),
        false => output.sync_all().at(target, "cannot make durable"),
    }
}

/// What is added to the name of a file that is still being copied.
const UNFINISHED: &str = "new~";

/// Removes what a copy that was cut off has left beside the files.
fn remove_unfinished(folder: &Path) -> Result<(), DiskError> {
    for entry in std::fs::read_dir(folder).at(folder, "cannot list")? {
        let path = entry.at(folder, "cannot list")?.path();
        if path.extension().is_some_and(|end| end == UNFINISHED) {
            std::fs::remove_file(&path).at(&path, "cannot remove")?;
        }
    }
    Ok(())
}

/// Removes the files after that of this number, the last one first: what is left is all
/// that there was up to some record.
fn remove_after(folder: &Path, last: u32) -> Result<(), DiskError> {
    let there = numbers(folder)?;
    for number in there.into_iter().rev().take_while(|number| *number > last) {
        remove_index(folder)?;
        let path = file_path(folder, number);
        std::fs::remove_file(&path).at(&path, "cannot remove")?;
        disk::sync_dir(&path)?;
    }
    Ok(())
}

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Records are sealed under random nonces: where the ends of two files are the same, the
/// rest is.
const END: u64 = 4096;

/// Whether both files have the same before byte `end`, as far as that can be seen there.
fn same_end(one: &File, other: &File, end: u64) -> io::Result<bool> {
    let start = end.saturating_sub(END);
    let read = |file: &File| {
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).map(|()| bytes)
    };
    Ok(read(one)? == read(other)?)
}

/// It says where records are that will stand elsewhere, and must not outlive them.
fn remove_index(folder: &Path) -> Result<(), DiskError> {
    let path = folder.join("index");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .at(&path, "cannot remove")
            .and_then(|()| disk::sync_dir(&path)),
    }
}

fn record(body: &[u8]) -> Record {
    Record {
        compartment: be64(&body[8..]),
        sealed: body[16..].to_vec(),
    }
}

/// Whether a file has a sector from `from` on that is all zeroes: the end of a write that
/// a power cut ended.
fn is_torn(file: &File, from: u64, length: u64) -> io::Result<bool> {
    let mut sector = [0; disk::SECTOR];
    let mut at = from;
    while at < length {
        let next = (at + 1).next_multiple_of(disk::SECTOR as u64).min(length);
        let part = &mut sector[..(next - at) as usize];
        file.read_exact_at(part, at)?;
        if part.iter().all(|byte| *byte == 0) {
            return Ok(true);
        }
        at = next;
    }
    Ok(false)
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn damaged(path: &Path, offset: u64) -> ContentsError {
    ContentsError::Damaged {
        path: path.to_owned(),
        offset,
    }
}

fn file_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:06}.dat"))
}

fn file_len(folder: &Path, number: u32) -> Result<u64, DiskError> {
    let path = file_path(folder, number);
    Ok(std::fs::metadata(&path).at(&path, "cannot look at")?.len())
}

/// Numbers of the files that are there, ascending.
fn numbers(folder: &Path) -> Result<Vec<u32>, DiskError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).at(folder, "cannot list")? {
        let name = entry.at(folder, "cannot list")?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".dat"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Memory to be used again, unless a large value made it larger than others ever need.
fn spare(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.clear();
    bytes.shrink_to(SPARE);
    bytes
}

/// Bytes of memory that are kept to be used again.
const SPARE: usize = 16 << 20;

/// A file of records, made durably if it is not there, and its length.
fn open_file(folder: &Path, number: u32) -> Result<(File, u64), ContentsError> {
    let path = file_path(folder, number);
    let file = writable(&path)?;
    let length = file.metadata().at(&path, "cannot look at")?.len();
    if length >= MAGIC.len() as u64 {
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0).at(&path, "cannot read")?;
        // A power cut came while it was made.
        let is_unwritten = length == MAGIC.len() as u64 && magic == [0; MAGIC.len()];
        match &magic == MAGIC {
            true => return Ok((file, length)),
            false if !is_unwritten => return Err(damaged(&path, 0)),
            false => {}
        }
    }
    file.set_len(0).at(&path, "cannot shorten")?;
    file.write_all_at(MAGIC, 0).at(&path, "cannot write")?;
    file.sync_all().at(&path, "cannot make durable")?;
    disk::sync_dir(&path)?;
    Ok((file, MAGIC.len() as u64))
}

fn writable(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .at(path, "cannot open")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(contents: &mut Contents, seq: u64, sealed: &[u8]) {
        contents.put(seq, seq + 1, |out| out.extend_from_slice(sealed));
    }

    fn body(seq: u64) -> Vec<u8> {
        vec![seq as u8; 20 + seq as usize % 50]
    }

    fn filled(folder: &Path, seqs: impl Iterator<Item = u64>) -> Contents {
        let mut contents = Contents::open(folder).unwrap();
        contents.limit = 500;
        for seq in seqs {
            put(&mut contents, seq, &body(seq));
            if seq % 3 == 0 {
                contents.commit().unwrap();
            }
        }
        contents.commit().unwrap();
        contents
    }

    fn check(contents: &mut Contents, until: u64) {
        for seq in 0..until + 5 {
            let found = contents.get(seq).unwrap();
            match seq % 2 == 0 && seq < until {
                false => assert!(found.is_none(), "{seq}"),
                true => {
                    let found = found.unwrap_or_else(|| panic!("{seq} is gone"));
                    assert_eq!((found.compartment, found.sealed), (seq + 1, body(seq)));
                }
            }
        }
    }

    #[test]
    fn records_are_there_before_and_after_commit_and_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut contents = filled(dir.path(), (0..100).step_by(2));
        assert!(contents.number > 2, "several files");
        check(&mut contents, 100);
        put(&mut contents, 100, &body(100));
        check(&mut contents, 101);
        drop(contents);
        check(&mut Contents::open(dir.path()).unwrap(), 100);
        check(&mut Contents::open_read_only(dir.path()).unwrap(), 100);
    }

    #[test]
    fn what_has_no_line_is_forgotten() {
        for from in [0, 1, 37, 99, 100, 500] {
            let dir = tempfile::tempdir().unwrap();
            let mut contents = filled(dir.path(), (0..100).step_by(2));
            contents.discard_from(from).unwrap();
            check(&mut contents, from.min(100));
            for seq in (from.min(100).next_multiple_of(2)..120).step_by(2) {
                put(&mut contents, seq, &body(seq));
            }
            contents.commit().unwrap();
            check(&mut contents, 120);
            drop(contents);
            check(&mut Contents::open(dir.path()).unwrap(), 120);
        }
    }

    #[test]
    fn the_index_is_made_anew_whatever_became_of_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path(), (0..100).step_by(2)));
        let path = dir.path().join("index");
        let good = std::fs::read(&path).unwrap();
        let wrong: [&[u8]; 6] = [
            b"",
            &good[..7],
            &good[..INDEX_HEAD as usize],
            &good[..good.len() - 8],
            &vec![0; good.len()],
            &vec![0xff; good.len()],
        ];
        for bytes in wrong {
            std::fs::write(&path, bytes).unwrap();
            check(&mut Contents::open(dir.path()).unwrap(), 100);
            let places = std::fs::read(&path).unwrap().split_off(INDEX_HEAD as usize);
            assert_eq!(places, good[INDEX_HEAD as usize..]);
        }
    }

    #[test]
    fn places_of_records_that_were_lost_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let contents = filled(dir.path(), (0..100).step_by(2));
        let last = contents.get_place(98);
        let path = file_path(dir.path(), last.file);
        drop(contents);
        // The index outlived a power cut, which the end of the file did not.
        writable(&path).unwrap().set_len(last.offset).unwrap();
        let mut contents = Contents::open(dir.path()).unwrap();
        assert!(contents.get(98).unwrap().is_none());
        contents.discard_from(98).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, last.offset, "nothing is made up");
    }

    #[test]
    fn a_torn_end_is_cut_off_and_damage_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let contents = filled(dir.path(), (0..100).step_by(2));
        let (path, length) = (file_path(dir.path(), contents.number), contents.len);
        let last = contents.get_place(98);
        drop(contents);
        // As after power loss: the index has not heard of the last records.
        let forget = || {
            let index = writable(&dir.path().join("index")).unwrap();
            let reached = Place {
                file: last.file,
                offset: last.offset,
            };
            let head = [reached.encode(), 98_u64.to_be_bytes()].concat();
            index.write_all_at(&head, 8).unwrap();
        };
        for torn in [1, 4, 19, 21] {
            let file = writable(&path).unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(
                &[
                    0, 0, 0, 90, 0, 0, 0, 0, 0, 0, 0, 200, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                ][..torn],
                length,
            )
            .unwrap();
            forget();
            check(&mut Contents::open(dir.path()).unwrap(), 100);
            assert_eq!(file.metadata().unwrap().len(), length);
        }
        // The length was there first, and the sector that has a record's beginning; its
        // line is that of an earlier one then.
        let mut half = vec![0; 2 * disk::SECTOR];
        half[..4].copy_from_slice(&[0, 0, 0, 90]);
        let file = writable(&path).unwrap();
        file.write_all_at(&half, length).unwrap();
        forget();
        check(&mut Contents::open(dir.path()).unwrap(), 100);
        assert_eq!(file.metadata().unwrap().len(), length);
        let file = writable(&path).unwrap();
        file.write_all_at(&[0, 0, 0, 3], last.offset).unwrap();
        forget();
        let found = Contents::open(dir.path()).map(|_| ());
        assert!(
            matches!(found, Err(ContentsError::Damaged { offset, .. }) if offset == last.offset)
        );
    }

    #[test]
    fn a_copy_that_fails_between_two_files_opens() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut contents = filled(&from, (0..100).step_by(2));
        copy(&from, &to).unwrap();
        check(&mut Contents::open(&to).unwrap(), 100);
        // The second file and what comes after it are lost, and others come to stand there.
        let mut seqs = (0..100).step_by(2);
        let cut = seqs.find(|seq| contents.get_place(*seq).file == 1).unwrap();
        contents.discard_from(cut).unwrap();
        for seq in (cut..400).step_by(8) {
            put(&mut contents, seq, b"another");
            contents.commit().unwrap();
        }
        assert!(contents.number > 1, "several files");
        // It opens, and cannot be read.
        let next = file_path(&from, 2);
        std::fs::remove_file(&next).unwrap();
        std::fs::create_dir(&next).unwrap();
        copy(&from, &to).unwrap_err();
        let mut copied = Contents::open(&to).unwrap();
        for seq in (0..cut).step_by(2) {
            let found = copied.get(seq).unwrap().unwrap();
            assert_eq!(found.sealed, body(seq), "{seq}");
        }
    }

    impl Contents {
        fn get_place(&self, seq: u64) -> Place {
            self.place(seq).unwrap().unwrap()
        }
    }
}
