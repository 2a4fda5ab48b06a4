//! Where blocks and lines are in the segments, without reading those.
//!
//! ```text
//! lines    segment:24 bits ‖ offset:40 bits, of every 64th line from line 0 on
//! blocks   first seq:8 ‖ count:8 ‖ segment:4 ‖ level:1 ‖ root ‖ map ‖ last leaf ‖ crc:4
//!          hashes: length:1 ‖ imprint, zeros up to 65 bytes
//! ```
//! Both are derived, and durable with the map's commits (`map/`). What is
//! found by them is checked where it is used: a line says its own `seq`. The log of the
//! blocks stands beside them (`log.rs`).

use crate::archive;
use crate::disk::At;
use crate::layout::Layout;
use crate::log::Log;
use crate::map::{BLOCKS, Damage, LINES, MapError, OsFolder};
use crate::records::Records;
use memchr::memmem;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::Line;
use pitser_ksi::hash::Imprint;
use pitser_tlog::merkle::leaf_hash;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One line of so many has its place noted.
const STRIDE: u64 = 64;
const PLACE: u64 = 8;
const HASH: usize = 1 + Imprint::MAX_LEN;
const ENTRY: usize = 8 + 8 + 4 + 1 + 3 * HASH + 4;

/// Places of lines and blocks, from the genesis on, and the log of the blocks.
#[derive(Debug, Default)]
pub struct Index {
    lines: Records,
    blocks: Records,
    log: Log,
}

/// A block's entry in the log, and where its lines are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// The entry, without the origin, which is the genesis line's.
    pub leaf: LogLeaf,
    /// The segment.
    pub segment: u32,
    /// The last leaf of its hash tree, which the next block continues.
    pub last_leaf: Imprint,
}

impl Index {
    /// That of a commit over `blocks` blocks, before line `next_seq`: to go on
    /// writing, or to read.
    ///
    /// # Errors
    /// [`MapError`] if it is not there.
    pub(crate) fn open(
        folder: &OsFolder,
        blocks: u64,
        next_seq: u64,
        write: bool,
    ) -> Result<Self, MapError> {
        let lines = next_seq.div_ceil(STRIDE) * PLACE;
        Ok(Self {
            lines: Records::open(folder, LINES, lines, write)?,
            blocks: Records::open(folder, BLOCKS, blocks * ENTRY as u64, write)?,
            log: Log::open(folder, blocks, write)?,
        })
    }

    /// One that is written to new files.
    pub(crate) fn begin(folder: &OsFolder) -> Result<Self, MapError> {
        Self::open(folder, 0, 0, true)
    }

    /// Makes it durable.
    pub(crate) fn sync(&mut self, folder: &OsFolder) -> Result<(), MapError> {
        self.lines.sync(folder, LINES)?;
        self.blocks.sync(folder, BLOCKS)?;
        self.log.sync(folder)
    }

    /// Notes where the next line, `seq`, is.
    pub(crate) fn push_line(&mut self, seq: u64, segment: u32, offset: u64) {
        if seq.is_multiple_of(STRIDE) {
            let place = u64::from(segment) << 40 | offset;
            self.lines.push(&place.to_be_bytes());
        }
    }

    /// Notes a block, whose lines were noted, and adds its entry to the log.
    pub(crate) fn push_block(&mut self, entry: &BlockEntry) {
        let mut out = Vec::with_capacity(ENTRY);
        out.extend(entry.leaf.first_seq.to_be_bytes());
        out.extend(entry.leaf.count.to_be_bytes());
        out.extend(entry.segment.to_be_bytes());
        out.push(entry.leaf.level);
        for hash in [entry.leaf.root.0, entry.leaf.map.0, entry.last_leaf] {
            let mut padded = [0; HASH];
            let bytes = hash.as_bytes();
            padded[0] = u8::try_from(bytes.len()).expect("an imprint has at most 65 bytes");
            padded[1..=bytes.len()].copy_from_slice(bytes);
            out.extend(padded);
        }
        out.extend(crc32fast::hash(&out).to_be_bytes());
        self.blocks.push(&out);
        self.log.push(leaf_hash(&entry.leaf.encode()));
    }

    /// Whether something was read that is not what was written.
    pub(crate) fn is_damaged(&self) -> bool {
        self.lines.is_damaged() || self.blocks.is_damaged() || self.log.is_damaged()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() / ENTRY as u64
    }

    /// The log of the blocks.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The block of a number, with `origin` filled in.
    ///
    /// # Errors
    /// [`MapError`] if it cannot be read.
    pub fn block(&self, block: u64, origin: &str) -> Result<Option<BlockEntry>, MapError> {
        if block >= self.blocks() {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY];
        self.blocks.read(&mut bytes, block * ENTRY as u64)?;
        decode(&bytes, block, origin)
            .map(Some)
            .ok_or_else(|| self.blocks.damaged(Damage::Altered))
    }

    /// The block with line `seq`, if it is in one.
    ///
    /// # Errors
    /// [`MapError`] if the index cannot be read.
    pub fn block_of(&self, seq: u64, origin: &str) -> Result<Option<BlockEntry>, MapError> {
        let after = self.partition(|entry| entry.leaf.first_seq <= seq)?;
        let Some(block) = after.checked_sub(1) else {
            return Ok(None);
        };
        let entry = self.block(block, origin)?;
        Ok(entry.filter(|entry| seq - entry.leaf.first_seq < entry.leaf.count))
    }

    /// Number of the first block whose lines are in `segment` or after it.
    ///
    /// # Errors
    /// [`MapError`] if the index cannot be read.
    pub fn first_of(&self, segment: u32) -> Result<u64, MapError> {
        self.partition(|entry| entry.segment < segment)
    }

    /// The segment in which line `seq` stands, or behind which it does, and that one's
    /// first line. `None` if no block is known before it.
    fn segment_of(&self, layout: &Layout, seq: u64) -> Result<Option<(u32, u64)>, MapError> {
        let after = self.partition(|entry| entry.leaf.first_seq <= seq)?;
        let last = match after.checked_sub(1) {
            Some(last) => self.block(last, "")?,
            None => None,
        };
        let Some(last) = last else {
            return Ok(None);
        };
        // A line of the open block: nothing of its segment is archived.
        let end = last.leaf.first_seq + last.leaf.count;
        if seq >= end && !layout.segment(last.segment).exists() {
            return Ok(Some((last.segment + 1, end)));
        }
        let first = self.block(self.first_of(last.segment)?, "")?;
        Ok(first.map(|first| (last.segment, first.leaf.first_seq)))
    }

    /// How many blocks at the beginning are `before` something.
    fn partition(&self, before: impl Fn(&BlockEntry) -> bool) -> Result<u64, MapError> {
        let (mut low, mut high) = (0, self.blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.block(middle, "")? {
                Some(entry) if before(&entry) => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The bytes of line `seq`, without its line feed. `None` if it is not on disk.
    ///
    /// # Errors
    /// [`MapError::Damaged`] if another line stands where the index says.
    pub fn line(&self, layout: &Layout, seq: u64) -> Result<Option<Vec<u8>>, MapError> {
        let Some(mut bytes) = self.lines(layout, seq, 1)? else {
            return Ok(None);
        };
        bytes.pop();
        match Line::decode(&bytes).is_ok_and(|line| line.seq == seq) {
            true => Ok(Some(bytes)),
            false => Err(self.lines.damaged(Damage::Altered)),
        }
    }

    /// The findings among `count` lines from `seq` on.
    ///
    /// # Errors
    /// [`MapError::Damaged`] if the lines are not on disk, or others stand there.
    pub(crate) fn findings(
        &self,
        layout: &Layout,
        seq: u64,
        count: u64,
    ) -> Result<Vec<Line>, MapError> {
        let altered = || self.lines.damaged(Damage::Altered);
        let bytes = self.lines(layout, seq, count)?.ok_or_else(altered)?;
        // No text of a line has these bytes: its quotation marks are escaped.
        let finder = memmem::Finder::new(br#""op":"finding""#);
        let mut found = Vec::new();
        for (seq, bytes) in (seq..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            if finder.find(bytes).is_some() {
                let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                let line = Line::decode(line).map_err(|_| altered())?;
                if line.seq != seq {
                    return Err(altered());
                }
                found.push(line);
            }
        }
        Ok(found)
    }

    /// The bytes of `count` lines of one segment from `seq` on, each with its
    /// line feed. `None` if they are not on disk.
    ///
    /// # Errors
    /// [`MapError`] if they cannot be read.
    pub fn lines(
        &self,
        layout: &Layout,
        seq: u64,
        count: u64,
    ) -> Result<Option<Vec<u8>>, MapError> {
        let group = seq / STRIDE;
        if (group + 1) * PLACE > self.lines.len() {
            return Ok(None);
        }
        let mut place = [0; PLACE as usize];
        self.lines.read(&mut place, group * PLACE)?;
        let place = u64::from_be_bytes(place);
        let (mut segment, mut offset) = ((place >> 40) as u32, place & ((1 << 40) - 1));
        let mut skip = seq % STRIDE;
        // Of an archived segment nothing is fetched for lines that stand behind it.
        if !layout.segment(segment).exists()
            && let Some((later, first)) = self.segment_of(layout, seq)?
            && later > segment
        {
            (segment, offset, skip) = (later, 0, seq - first);
        }
        let mut wanted = Wanted {
            skip,
            take: count,
            taken: Vec::new(),
        };
        while wanted.read(layout, segment, offset)? {
            if wanted.take == 0 {
                return Ok(Some(wanted.taken));
            }
            (segment, offset) = (segment + 1, 0);
        }
        Ok(None)
    }
}

/// Lines to be read: after so many others, so many.
struct Wanted {
    skip: u64,
    take: u64,
    taken: Vec<u8>,
}

impl Wanted {
    /// Reads a segment from `offset` on, until there is enough. `false` if
    /// there is no such segment.
    fn read(&mut self, layout: &Layout, segment: u32, offset: u64) -> Result<bool, MapError> {
        let path = layout.segment(segment);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let Some(lines) = archive::lines(layout, segment)? else {
                    return Ok(false);
                };
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                self.take(lines.get(start..).unwrap_or_default());
                return Ok(true);
            }
            file => file.at(&path, "cannot open")?,
        };
        let mut at = offset;
        let mut part = vec![0; 1 << 16];
        loop {
            let read = FileExt::read_at(&file, &mut part, at).at(&path, "cannot read")?;
            at += read as u64;
            if read == 0 || self.take(&part[..read]) {
                return Ok(true);
            }
        }
    }

    /// Takes what is wanted out of the next bytes; `true` if there is enough.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[start..=end];
            start = end + 1;
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.taken.extend_from_slice(line);
            self.take -= 1;
            if self.take == 0 {
                return true;
            }
        }
        if self.skip == 0 {
            self.taken.extend_from_slice(&bytes[start..]);
        }
        false
    }
}

fn decode(bytes: &[u8; ENTRY], block: u64, origin: &str) -> Option<BlockEntry> {
    let (body, crc) = bytes.split_at(ENTRY - 4);
    if crc32fast::hash(body).to_be_bytes() != crc {
        return None;
    }
    let mut rest = body;
    let first_seq = u64::from_be_bytes(take(&mut rest)?);
    let count = u64::from_be_bytes(take(&mut rest)?);
    let segment = u32::from_be_bytes(take(&mut rest)?);
    let [level] = take(&mut rest)?;
    let mut hash = || {
        let padded: [u8; HASH] = take(&mut rest)?;
        let (len, bytes) = padded.split_first()?;
        Imprint::from_bytes(bytes.get(..usize::from(*len))?).ok()
    };
    let (root, map, last_leaf) = (hash()?, hash()?, hash()?);
    Some(BlockEntry {
        leaf: LogLeaf {
            origin: origin.to_owned(),
            block,
            first_seq,
            count,
            root: Digest(root),
            level,
            map: Digest(map),
        },
        segment,
        last_leaf,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
