//! Reading a whole trail and recomputing everything in it: lines, blocks,
//! interlinks, seals, log and map. Safe beside the running writer.
//!
//! The reader trusts nothing that it can recompute. The first thing that does
//! not follow ends the reading as [`Damage`], which names it.

use crate::archive::{self, ArchiveError};
use crate::disk::{At, DiskError};
use crate::layout::Layout;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;
use pitser_evidence::line::{Checkpoint, Line, MAX_LINE, Op};
use pitser_evidence::seal::{self, SealKeys};
use pitser_evidence::state::State;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{self, Block, BlockReader, Format, SealReader};
use pitser_ksi::time::Second;
use pitser_tlog::merkle::{LogTree, leaf_hash};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A trail as recomputed from its files.
#[derive(Debug)]
pub struct View {
    /// Hash of the genesis line.
    pub genesis_hash: Digest,
    /// Everything that follows from the lines read.
    pub state: State,
    /// The log of the blocks read.
    pub log: LogTree,
    /// The blocks, by number.
    pub blocks: Vec<BlockInfo>,
    /// Where each line is, by `seq`.
    pub places: Vec<Place>,
    /// Hashes of the lines after the last block.
    pub tail: Vec<Imprint>,
    /// The last leaf of the last block, which the next one continues.
    pub last_leaf: Imprint,
    /// Number of the last segment read.
    pub segment: u32,
    /// What of the last segment's files is whole.
    pub whole: WholeBytes,
}

/// Lengths, in bytes, up to which an open segment's files hold whole items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WholeBytes {
    /// Whole lines.
    pub lines: u64,
    /// Whole blocks.
    pub blocks: u64,
    /// Whole seals.
    pub seals: u64,
    /// Where the last line's event begins, if more lines of it should follow.
    pub unfinished_event: Option<u64>,
    /// Tail lines up to and with a checkpoint whose block was not written.
    pub unwritten_block: Option<usize>,
}

/// One block.
#[derive(Debug, Clone)]
pub struct BlockInfo {
    /// Its entry in the log.
    pub leaf: LogLeaf,
    /// Its body of the checkpoint line.
    pub checkpoint: Checkpoint,
    /// Bytes of the LOGSIG12 block.
    pub logsig: Vec<u8>,
    /// The signature, once it has come.
    pub seal: Option<Vec<u8>>,
    /// When it was sealed.
    pub sealed_at: Option<Second>,
}

/// Where a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Segment number.
    pub segment: u32,
    /// Length without the line feed.
    pub len: u32,
    /// Byte offset in the segment.
    pub offset: u64,
}

/// The first thing in a trail that does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {}{}: {text}", path.display(), line.map(|l| format!(" line {l}")).unwrap_or_default())]
pub struct Damage {
    /// What kind of damage.
    pub code: Code,
    /// The file.
    pub path: PathBuf,
    /// The line, by its `seq`.
    pub line: Option<u64>,
    /// What was found.
    pub text: String,
}

/// Why a trail could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file cannot be read: nothing is known about the trail.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is no trail.
    #[error("{}: there is no trail here. Run `pitser guard init` first, or name the right folder", .0.display())]
    Nothing(PathBuf),
    /// The trail was altered.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// An archived segment cannot be fetched: nothing is known about the trail.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A segment is in an archive that the caller has not named.
    #[error(
        "{}: this segment is in an archive; name the configuration whose [archive] says which",
        .0.display()
    )]
    Elsewhere(PathBuf),
}

/// Reads the trail, or its first `until` blocks, and shows each line to `visit`.
///
/// # Errors
/// [`ReadError`].
pub fn read(
    layout: &Layout,
    until: Option<u64>,
    mut visit: impl FnMut(&Line, Place),
) -> Result<View, ReadError> {
    let numbers = match layout.segment_numbers() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.at(&layout.segments(), "cannot list")?,
    };
    if numbers.is_empty() {
        return Err(ReadError::Nothing(layout.dir().to_owned()));
    }
    let mut reader = Reader::new(layout, until, &mut visit);
    for (expected, number) in (0u32..).zip(&numbers) {
        if *number != expected {
            let path = layout.segment(expected);
            return Err(damage(Code::BlockMissing, &path, None, "this segment is missing").into());
        }
        reader.segment(expected, expected as usize + 1 == numbers.len())?;
        if reader.done() {
            break;
        }
    }
    reader.finish()
}

/// Reads the bytes of one line, without its line feed.
///
/// # Errors
/// [`ReadError`].
pub fn read_line(layout: &Layout, place: Place) -> Result<Vec<u8>, ReadError> {
    use std::os::unix::fs::FileExt;
    let path = layout.segment(place.segment);
    let file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(lines) = archive::lines(layout, place.segment)? {
                let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
                let line = lines.get(start..).and_then(|l| l.get(..place.len as usize));
                let gone = || damage(Code::TrailShort, &path, None, "it is shorter than it was");
                return Ok(line.ok_or_else(gone)?.to_vec());
            }
            return Err(e).at(&path, "cannot open").map_err(Into::into);
        }
        other => other.at(&path, "cannot open")?,
    };
    let mut bytes = vec![0; place.len as usize];
    file.read_exact_at(&mut bytes, place.offset)
        .at(&path, "cannot read")?;
    Ok(bytes)
}

/// The genesis line and its hash.
///
/// # Errors
/// [`ReadError`].
pub fn genesis(layout: &Layout) -> Result<(Line, Digest), ReadError> {
    let path = layout.segment(0);
    let segment = match std::fs::File::open(&path) {
        Ok(file) => {
            let mut start = Vec::new();
            let mut file = std::io::Read::take(file, MAX_LINE as u64 + 1);
            std::io::Read::read_to_end(&mut file, &mut start).at(&path, "cannot read")?;
            Arc::new(start)
        }
        Err(e) => archive::lines(layout, 0)?
            .ok_or(e)
            .at(&path, "cannot open")?,
    };
    let bytes = segment.split(|&b| b == b'\n').next().unwrap_or_default();
    let wrong = |text: String| damage(Code::LineAltered, &path, Some(0), text);
    let line = Line::decode(bytes).map_err(|e| wrong(e.to_string()))?;
    if line.op != Op::Genesis {
        return Err(wrong("it is no genesis".into()).into());
    }
    Ok((line, Line::hash(bytes)))
}

fn damage(code: Code, path: &Path, line: Option<u64>, text: impl Into<String>) -> Damage {
    Damage {
        code,
        path: path.to_owned(),
        line,
        text: text.into(),
    }
}

struct Reader<'a, V> {
    layout: &'a Layout,
    until: Option<u64>,
    visit: &'a mut V,
    view: View,
    genesis_hash: Option<Digest>,
}

/// One segment's files in memory.
struct Segment {
    number: u32,
    path: PathBuf,
    signature_path: PathBuf,
    lines: Arc<Vec<u8>>,
    blocks: Arc<Vec<u8>>,
    seals: Option<Vec<u8>>,
    at: usize,
}

impl<'a, V: FnMut(&Line, Place)> Reader<'a, V> {
    fn new(layout: &'a Layout, until: Option<u64>, visit: &'a mut V) -> Self {
        let zero = Imprint::zero(Algorithm::Sha256);
        let view = View {
            genesis_hash: Digest(zero),
            state: State::new(),
            log: LogTree::new(),
            blocks: Vec::new(),
            places: Vec::new(),
            tail: Vec::new(),
            last_leaf: zero,
            segment: 0,
            whole: WholeBytes::default(),
        };
        Self {
            layout,
            until,
            visit,
            view,
            genesis_hash: None,
        }
    }

    fn done(&self) -> bool {
        self.until
            .is_some_and(|n| self.view.blocks.len() as u64 >= n)
    }

    fn finish(self) -> Result<View, ReadError> {
        match self.genesis_hash {
            Some(genesis_hash) => Ok(View {
                genesis_hash,
                ..self.view
            }),
            None => Err(ReadError::Nothing(self.layout.dir().to_owned())),
        }
    }

    fn segment(&mut self, number: u32, last: bool) -> Result<(), ReadError> {
        let mut segment = Segment::load(self.layout, number)?;
        self.view.segment = number;
        self.view.whole = WholeBytes::default();
        self.blocks(&mut segment)?;
        if self.done() {
            return Ok(());
        }
        self.tail(&mut segment)?;
        if !last && !self.view.tail.is_empty() {
            let text = "it goes on after its last block, although another segment follows";
            return Err(damage(Code::BlockMissing, &segment.signature_path, None, text).into());
        }
        Ok(())
    }

    fn blocks(&mut self, segment: &mut Segment) -> Result<(), ReadError> {
        let signature_path = segment.signature_path.clone();
        let unreadable = |e: pitser_ksi::DecodeError| {
            damage(Code::LineAltered, &signature_path, None, e.to_string())
        };
        let blocks = std::mem::take(&mut segment.blocks);
        let seals = segment.seals.take();
        let mut stream = Blocks::new(&blocks, seals.as_deref()).map_err(unreadable)?;
        while !self.done() {
            let Some((block, seal)) = stream.next().map_err(unreadable)? else {
                break;
            };
            self.block(segment, &block, seal)?;
        }
        if !self.done() && stream.seals_left().map_err(unreadable)? {
            let text = "it has a seal without a block";
            return Err(damage(Code::BlockMissing, &signature_path, None, text).into());
        }
        self.view.whole.blocks = stream.blocks_at as u64;
        self.view.whole.seals = stream.seals_at as u64;
        Ok(())
    }

    fn block(
        &mut self,
        segment: &mut Segment,
        block: &Block<'_>,
        seal: Option<&[u8]>,
    ) -> Result<(), Damage> {
        let number = self.view.blocks.len() as u64;
        let first = self.view.state.next_seq();
        if block.header.previous_leaf != self.view.last_leaf {
            let text = format!("block {number} does not continue the block before it");
            return Err(damage(
                Code::BlockMissing,
                &segment.signature_path,
                None,
                text,
            ));
        }
        let mut lines = Vec::new();
        for _ in 0..block.line_count() {
            let Some(line) = segment.next_line() else {
                let text = format!("it ends before the end of block {number}: lines were cut off");
                return Err(damage(Code::TrailShort, &segment.path, None, text));
            };
            lines.push(line);
        }
        let mut bytes = lines.iter().map(|place| segment.bytes(*place));
        let report = logsig::verify_block(block, &mut bytes).map_err(|e| {
            damage(
                Code::LineAltered,
                &segment.signature_path,
                None,
                e.to_string(),
            )
        })?;
        if !report.is_intact() {
            let line = report.first_wrong_line().map(|l| first + l);
            let text = format!("it is not what was sealed in block {number}");
            return Err(damage(Code::LineAltered, &segment.path, line, text));
        }
        let mut checkpoint = None;
        for (index, place) in lines.iter().enumerate() {
            let is_last = index + 1 == lines.len();
            let root = if is_last {
                Some(self.view.state.root())
            } else {
                None
            };
            let line = self.line(segment, *place)?;
            if let (true, Some(root)) = (is_last, root) {
                checkpoint = Some(self.checkpoint(segment, line, number, first, root)?);
            }
        }
        let Some(checkpoint) = checkpoint else {
            let text = format!("block {number} has no line");
            return Err(damage(
                Code::LineAltered,
                &segment.signature_path,
                None,
                text,
            ));
        };
        let (sealed, sealed_at) = self.seal(segment, number, seal, report.root, report.level)?;
        let before = self.view.blocks.last().and_then(|block| block.sealed_at);
        if sealed_at.is_some() && sealed_at < before {
            let text = format!("block {number} was sealed before the block it continues");
            return Err(damage(
                Code::SealInvalid,
                &segment.signature_path,
                None,
                text,
            ));
        }
        let leaf = LogLeaf {
            origin: checkpoint.origin.clone(),
            block: number,
            first_seq: first,
            count: checkpoint.count,
            root: Digest(report.root),
            level: report.level,
            map: checkpoint.map,
        };
        self.view.log.push(leaf_hash(&leaf.encode()));
        self.view.last_leaf = report.last_leaf;
        self.view.blocks.push(BlockInfo {
            leaf,
            checkpoint,
            logsig: block.bytes.to_vec(),
            seal: sealed,
            sealed_at,
        });
        Ok(())
    }

    fn seal(
        &self,
        segment: &Segment,
        number: u64,
        seal: Option<&[u8]>,
        root: Imprint,
        level: u8,
    ) -> Result<(Option<Vec<u8>>, Option<Second>), Damage> {
        let Some(bytes) = seal else {
            return Ok((None, None));
        };
        let invalid = |text: String| {
            damage(
                Code::SealInvalid,
                &segment.signature_path,
                None,
                format!("seal of block {number}: {text}"),
            )
        };
        match seal::check(bytes, root, level, &SealKeys::none()) {
            seal::Seal::Broken(text) => Err(invalid(text)),
            _ => {
                let at = seal::time(bytes).ok_or_else(|| invalid("it has no time".into()))?;
                Ok((Some(bytes.to_vec()), Some(at)))
            }
        }
    }

    fn checkpoint(
        &self,
        segment: &Segment,
        line: Line,
        number: u64,
        first: u64,
        root: [u8; 32],
    ) -> Result<Checkpoint, Damage> {
        let seq = line.seq;
        let wrong = |text: &str| damage(Code::LineAltered, &segment.path, Some(seq), text);
        let body = line
            .checkpoint
            .ok_or_else(|| wrong("it ends its block, and is no checkpoint"))?;
        let origin = self.view.state.genesis().map(|g| g.origin.as_str());
        if body.block != number
            || body.first != first
            || body.count != seq + 1 - first
            || Some(body.origin.as_str()) != origin
        {
            return Err(wrong("its checkpoint is that of another block"));
        }
        if Imprint::new(Algorithm::Sha256, &root) != Some(body.map.0) || body.map_seq + 1 != seq {
            return Err(wrong("the map's root does not follow from the lines"));
        }
        Ok(*body)
    }

    /// Applies the line at `place`.
    fn line(&mut self, segment: &Segment, place: Place) -> Result<Line, Damage> {
        let seq = self.view.state.next_seq();
        let bytes = segment.bytes(place);
        let altered = |text: String| damage(Code::LineAltered, &segment.path, Some(seq), text);
        let line = Line::decode(bytes).map_err(|e| altered(e.to_string()))?;
        let hash = Line::hash(bytes);
        self.view
            .state
            .apply(&line, hash)
            .map_err(|e| altered(e.what.into()))?;
        self.genesis_hash.get_or_insert(hash);
        self.view.places.push(place);
        (self.visit)(&line, place);
        Ok(line)
    }

    fn tail(&mut self, segment: &mut Segment) -> Result<(), Damage> {
        let mut event_at = None;
        self.view.tail.clear();
        while let Some(place) = segment.next_line() {
            let line = self.line(segment, place)?;
            self.view.tail.push(pitser_ksi::hash::hash(
                Algorithm::Sha256,
                &[segment.bytes(place)],
            ));
            if line.event == line.seq {
                event_at = Some(place.offset);
            }
            self.view.whole.unfinished_event = event_at.filter(|_| line.more.is_some());
            if line.op == Op::Checkpoint && self.view.whole.unwritten_block.is_none() {
                self.view.whole.unwritten_block = Some(self.view.tail.len());
            }
        }
        self.view.whole.lines = segment.at as u64;
        Ok(())
    }
}

impl Segment {
    /// Reads seals, then blocks, then lines: the writer goes the other way, so
    /// each is complete for the one read before it.
    fn load(layout: &Layout, number: u32) -> Result<Self, ReadError> {
        let path = layout.segment(number);
        let closed = layout.logsig(number);
        let (signature_path, blocks, seals) = match std::fs::read(&closed) {
            Ok(blocks) => (closed, Arc::new(blocks), None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some((lines, blocks)) = archive::segment(layout, number)? {
                    return Ok(Self {
                        number,
                        path: layout.receipt(number),
                        signature_path: layout.receipt(number),
                        lines,
                        blocks,
                        seals: None,
                        at: 0,
                    });
                }
                let seals = read_or_empty(&layout.seals(number))?;
                let blocks = read_or_empty(&layout.blocks(number))?;
                if blocks.is_empty() && closed.exists() {
                    return Self::load(layout, number);
                }
                (layout.blocks(number), Arc::new(blocks), Some(seals))
            }
            Err(e) => return Err(e).at(&closed, "cannot read").map_err(Into::into),
        };
        let lines = match std::fs::read(&path) {
            // Archived since.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let lines = archive::lines(layout, number)?;
                lines.ok_or(e).at(&path, "cannot read")?
            }
            other => Arc::new(other.at(&path, "cannot read")?),
        };
        Ok(Self {
            number,
            path,
            signature_path,
            lines,
            blocks,
            seals,
            at: 0,
        })
    }

    fn next_line(&mut self) -> Option<Place> {
        let len = self.lines[self.at..].iter().position(|&b| b == b'\n')?;
        let place = Place {
            segment: self.number,
            len: u32::try_from(len).ok()?,
            offset: self.at as u64,
        };
        self.at += len + 1;
        Some(place)
    }

    fn bytes(&self, place: Place) -> &[u8] {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        &self.lines[start..start + place.len as usize]
    }
}

/// Blocks with their seals, from either one file or two parts.
struct Blocks<'a> {
    blocks: &'a [u8],
    seals: Option<SealReader<'a>>,
    blocks_at: usize,
    seals_at: usize,
}

impl<'a> Blocks<'a> {
    fn new(blocks: &'a [u8], seals: Option<&'a [u8]>) -> Result<Self, pitser_ksi::DecodeError> {
        let blocks_at = if blocks.len() < logsig::MAGIC_LEN {
            0
        } else {
            BlockReader::new(blocks)?;
            logsig::MAGIC_LEN
        };
        let started = |s: &&[u8]| s.len() >= logsig::MAGIC_LEN;
        let seals_at = seals.filter(started).map_or(0, |_| logsig::MAGIC_LEN);
        let seals = seals.filter(started).map(SealReader::new).transpose()?;
        Ok(Self {
            blocks: if blocks_at == 0 { &[] } else { blocks },
            seals,
            blocks_at,
            seals_at,
        })
    }

    #[allow(clippy::type_complexity)]
    fn next(&mut self) -> Result<Option<(Block<'a>, Option<&'a [u8]>)>, pitser_ksi::DecodeError> {
        if self.blocks_at >= self.blocks.len() {
            return Ok(None);
        }
        let Some(block) = logsig::read_block(&self.blocks[self.blocks_at..], self.blocks_at)?
        else {
            return Ok(None);
        };
        self.blocks_at += block.bytes.len();
        let seal = match self.next_seal()? {
            Some(seal) => Some(seal),
            None => signature(&block.seal.seal),
        };
        Ok(Some((block, seal)))
    }

    fn next_seal(&mut self) -> Result<Option<&'a [u8]>, pitser_ksi::DecodeError> {
        let Some(seals) = &mut self.seals else {
            return Ok(None);
        };
        match seals.next() {
            Some(Ok(record)) => {
                self.seals_at = record.at + record.bytes.len();
                Ok(signature(&record.seal))
            }
            // An unfinished last seal is the writer's, or a crash's.
            Some(Err(e)) if e.kind == pitser_ksi::DecodeErrorKind::Truncated => Ok(None),
            Some(Err(e)) => Err(e),
            None => Ok(None),
        }
    }

    fn seals_left(&mut self) -> Result<bool, pitser_ksi::DecodeError> {
        Ok(self.next_seal()?.is_some())
    }
}

fn signature<'a>(seal: &logsig::Seal<'a>) -> Option<&'a [u8]> {
    match seal {
        logsig::Seal::Signature(bytes) => Some(bytes),
        _ => None,
    }
}

fn read_or_empty(path: &Path) -> Result<Vec<u8>, DiskError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.at(path, "cannot read"),
    }
}

/// The magic of an open segment's blocks and of its seals.
pub(crate) fn part_magics() -> (&'static [u8], &'static [u8]) {
    (Format::Blocks.magic(), Format::Seals.magic())
}
