//! Reading a whole trail and recomputing everything in it: lines, blocks,
//! interlinks, seals, log and map. Safe beside the running writer.
//!
//! The reader trusts nothing that it can recompute. The first thing that does
//! not follow ends the reading as [`Damage`], which names it.

use crate::archive::{self, ArchiveError};
use crate::disk::{At, DiskError, SECTOR};
use crate::index::{BlockEntry, Index};
use crate::layout::Layout;
use crate::log::Log;
use crate::map::{Commit, MapError};
use crate::marks;
use crate::named::NamedSeals;
use crate::write::MAX_BLOCK_LINES;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;
use pitser_evidence::line::{Checkpoint, Line, MAX_LINE, Op, SealRef};
use pitser_evidence::seal::{self, SealKeys};
use pitser_evidence::state::{ApplyError, Standing, State};
use pitser_evidence::store::{Memory, Pages, Tree};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{self, Block, BlockReader, Format, SealReader};
use pitser_ksi::time::Second;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A trail as recomputed from its files; the map's leaves are in `P`.
#[derive(Debug)]
pub struct View<P = Memory> {
    /// Hash of the genesis line.
    pub genesis_hash: Digest,
    /// Everything that follows from the lines read.
    pub state: State<Tree<P>>,
    /// The blocks that were read, by number. Empty if the reading went on from
    /// a commit of the map: then they are found by the index.
    pub blocks: Vec<BlockInfo>,
    /// Where lines and blocks are, and the log of the blocks.
    pub index: Index,
    /// The blocks without a seal, and the newest seal: among those that were read.
    pub seals: Seals,
    /// When the newest sealed block was sealed.
    pub sealed_at: Option<Second>,
    /// Hashes of the lines after the last block.
    pub tail: Vec<Imprint>,
    /// The last leaf of the last block, which the next one continues.
    pub last_leaf: Imprint,
    /// Number of the last segment read.
    pub segment: u32,
    /// What of the last segment's files is whole.
    pub whole: WholeBytes,
}

impl<P> View<P> {
    /// The log of the blocks read.
    pub fn log(&self) -> &Log {
        self.index.log()
    }
}

/// What is sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seals {
    /// Entries of the blocks that wait for a seal, oldest first.
    pub waiting: VecDeque<LogLeaf>,
    /// The newest seal.
    pub last: Option<SealRef>,
    /// Closed segments whose seals are not all there, and up to which byte of their
    /// file of seals those that are there are whole.
    pub closing: Vec<(u32, u64)>,
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

/// One block's signature, as its segment's files have it.
#[derive(Debug, Clone)]
pub(crate) struct SealedBlock {
    /// Bytes of the LOGSIG12 block.
    pub(crate) logsig: Vec<u8>,
    /// The signature, once it has come.
    pub(crate) seal: Option<Vec<u8>>,
}

/// The signatures of a segment's blocks, in order; not compared with its lines.
pub(crate) fn signatures(layout: &Layout, number: u32) -> Result<Vec<SealedBlock>, ReadError> {
    each_block(layout, number, |block, seal| SealedBlock {
        logsig: block.bytes.to_vec(),
        seal: seal.map(<[u8]>::to_vec),
    })
}

/// Hashes of the seals of a segment's blocks, in order.
pub(crate) fn seal_hashes(layout: &Layout, number: u32) -> Result<Vec<Option<Digest>>, ReadError> {
    each_block(layout, number, |_, seal| {
        seal.map(|seal| Digest::of(&[seal]))
    })
}

fn each_block<T>(
    layout: &Layout,
    number: u32,
    take: impl Fn(&Block<'_>, Option<&[u8]>) -> T,
) -> Result<Vec<T>, ReadError> {
    let segment = Segment::load_signature(layout, number)?;
    let unreadable = |e: pitser_ksi::DecodeError| {
        damage(
            Code::LineAltered,
            &segment.signature_path,
            None,
            e.to_string(),
        )
    };
    let mut stream = Blocks::new(&segment.blocks, segment.seals.as_deref()).map_err(unreadable)?;
    let mut blocks = Vec::new();
    while let Some((block, seal)) = stream.next().map_err(unreadable)? {
        blocks.push(take(&block, seal));
    }
    Ok(blocks)
}

/// What of an open segment's blocks is whole.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WholeBlocks {
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Their lines.
    pub(crate) lines: u64,
}

/// Which of an open segment's `blocks` are whole: the writer may be at the last one.
pub(crate) fn whole_blocks(
    layout: &Layout,
    number: u32,
    blocks: &[u8],
) -> Result<WholeBlocks, ReadError> {
    let unreadable = |e: pitser_ksi::DecodeError| {
        damage(
            Code::LineAltered,
            &layout.blocks(number),
            None,
            e.to_string(),
        )
    };
    // None of them has its seal; that is asked for later.
    let mut stream = Blocks::new(blocks, Some(part_magics().1)).map_err(unreadable)?;
    let mut whole = WholeBlocks::default();
    while let Some((block, _)) = stream.next().map_err(unreadable)? {
        whole.lines += block.line_count();
    }
    whole.bytes = stream.blocks_at as u64;
    Ok(whole)
}

/// Up to which byte the seals of an open segment are whole, of these blocks.
pub(crate) fn whole_seals(
    layout: &Layout,
    number: u32,
    (blocks, seals): (&[u8], &[u8]),
) -> Result<u64, ReadError> {
    let unreadable = |e: pitser_ksi::DecodeError| {
        damage(
            Code::LineAltered,
            &layout.seals(number),
            None,
            e.to_string(),
        )
    };
    let mut stream = Blocks::new(blocks, Some(seals)).map_err(unreadable)?;
    while stream.next().map_err(unreadable)?.is_some() {}
    Ok(stream.seals_at as u64)
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
    /// A copy whose segments were about to take the place of those before.
    #[error(
        "{}: `pitser trail copy` was cut off while it wrote this copy: run it once more, or give the folder \
         `trail.before` its name `trail` back", .0.display()
    )]
    CutOff(PathBuf),
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
    /// The map's store cannot be read or kept.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl ReadError {
    /// That there is no trail, or why there seems to be none.
    pub(crate) fn nothing(layout: &Layout) -> Self {
        let dir = layout.dir().to_owned();
        match layout.before().exists() {
            true => Self::CutOff(dir),
            false => Self::Nothing(dir),
        }
    }
}

/// Follows the reading of a trail.
pub(crate) trait Follow<P> {
    /// A line was applied.
    fn line(&mut self, line: &Line, place: Place);

    /// A block was, and nothing after it; the next line is at `segment` and `offset`.
    fn block(&mut self, view: &mut View<P>, segment: u32, offset: u64) -> Result<(), ReadError>;

    /// The first block whose seal is still to be judged, though its lines may be known;
    /// `None`: seals of known blocks are read where segments are open.
    fn judged(&self) -> Option<u64> {
        None
    }

    /// When the last block before that one was sealed, as far as it is remembered.
    fn judged_at(&self) -> Option<Second> {
        None
    }

    /// Whether anybody wants to know what the seals of known blocks are. If not, only
    /// what comes after those is read.
    fn wants_known_seals(&self) -> bool {
        true
    }

    /// The seal of a block, consistent in itself and with the block; says what
    /// else is wrong with it. Not called twice for a block in one reading.
    fn seal(&mut self, _leaf: &LogLeaf, _seal: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Shows lines to a function.
struct Visit<V>(V);

impl<P, V: FnMut(&Line, Place)> Follow<P> for Visit<V> {
    fn line(&mut self, line: &Line, place: Place) {
        (self.0)(line, place);
    }

    fn block(&mut self, _: &mut View<P>, _: u32, _: u64) -> Result<(), ReadError> {
        Ok(())
    }
}

/// Follows nothing, and asks for a seal when it is wanted.
pub(crate) struct Unseen;

impl<P> Follow<P> for Unseen {
    fn wants_known_seals(&self) -> bool {
        false
    }

    fn line(&mut self, _: &Line, _: Place) {}

    fn block(&mut self, _: &mut View<P>, _: u32, _: u64) -> Result<(), ReadError> {
        Ok(())
    }
}

/// Where the reading of a trail begins: before the genesis line, or where a
/// commit of the map ends, with the checkpoint that is its last line.
pub(crate) struct Start<P> {
    pub(crate) tree: Tree<P>,
    pub(crate) index: Index,
    pub(crate) commit: Option<(Commit, Checkpoint)>,
}

impl<P: Pages + Default> Start<P> {
    fn beginning() -> Self {
        Self {
            tree: Tree::default(),
            index: Index::default(),
            commit: None,
        }
    }
}

/// Reads the trail, or its first `until` blocks, and shows each line to `visit`.
///
/// # Errors
/// [`ReadError`].
pub fn read(
    layout: &Layout,
    until: Option<u64>,
    visit: impl FnMut(&Line, Place),
) -> Result<View, ReadError> {
    read_on(layout, until, Start::beginning(), &mut Visit(visit), true)
}

/// Reads all of the trail and keeps none of its blocks, of which there may be more than
/// fit into memory: those without a seal are in [`View::seals`].
///
/// # Errors
/// [`ReadError`].
pub fn check(layout: &Layout) -> Result<View, ReadError> {
    let mut visit = Visit(|_: &Line, _| {});
    read_on(layout, None, Start::beginning(), &mut visit, false)
}

/// Reads on from `from`, and keeps the blocks if that is asked for.
pub(crate) fn read_on<P: Pages<Error: Into<MapError>>>(
    layout: &Layout,
    until: Option<u64>,
    from: Start<P>,
    follow: &mut impl Follow<P>,
    keep_blocks: bool,
) -> Result<View<P>, ReadError> {
    let numbers = match layout.segment_numbers() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.at(&layout.segments(), "cannot list")?,
    };
    if numbers.is_empty() {
        return Err(ReadError::nothing(layout));
    }
    let mut reader = Reader::new(layout, until, from, follow)?;
    reader.keep_blocks = keep_blocks;
    let first = reader.first_segment(&numbers)?;
    for (expected, number) in (0u32..).zip(&numbers) {
        if *number != expected {
            let path = layout.segment(expected);
            return Err(damage(Code::BlockMissing, &path, None, "this segment is missing").into());
        }
        if expected < first {
            continue;
        }
        reader.segment(expected, expected as usize + 1 == numbers.len())?;
        if reader.done() {
            break;
        }
    }
    reader.finish(first)
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

struct Reader<'a, P, V> {
    layout: &'a Layout,
    until: Option<u64>,
    follow: &'a mut V,
    view: View<P>,
    genesis_hash: Option<Digest>,
    keep_blocks: bool,
    /// Number of the next block.
    next_block: u64,
    /// Blocks before this one are in the map already.
    resumed: u64,
    /// Where the first line that is not in the map stands: segment and offset.
    resumed_at: (u32, u64),
    named: NamedSeals,
}

/// One segment's files in memory.
struct Segment {
    number: u32,
    path: PathBuf,
    signature_path: PathBuf,
    /// The lines from byte `from` on.
    lines: Arc<Vec<u8>>,
    from: u64,
    blocks: Arc<Vec<u8>>,
    seals: Option<Vec<u8>>,
    /// Where in `lines` the next one begins.
    at: usize,
}

impl<'a, P, V> Reader<'a, P, V>
where
    P: Pages<Error: Into<MapError>>,
    V: Follow<P>,
{
    fn new(
        layout: &'a Layout,
        until: Option<u64>,
        from: Start<P>,
        follow: &'a mut V,
    ) -> Result<Self, ReadError> {
        let zero = Imprint::zero(Algorithm::Sha256);
        let Start {
            tree,
            index,
            commit,
        } = from;
        let view = View {
            genesis_hash: Digest(zero),
            state: State::resume(Standing::default(), tree),
            blocks: Vec::new(),
            index,
            seals: Seals::default(),
            sealed_at: None,
            tail: Vec::new(),
            last_leaf: zero,
            segment: 0,
            whole: WholeBytes::default(),
        };
        let mut reader = Self {
            layout,
            until,
            follow,
            genesis_hash: None,
            keep_blocks: false,
            next_block: 0,
            resumed: 0,
            resumed_at: (0, 0),
            named: NamedSeals::default(),
            view,
        };
        if let Some((commit, last)) = commit {
            reader.resume(&commit)?;
            reader.named.goes_on(last.seal);
        }
        Ok(reader)
    }

    /// Stands where `commit` does.
    fn resume(&mut self, commit: &Commit) -> Result<(), ReadError> {
        let genesis = Line::decode(&commit.genesis.0).ok();
        let genesis = genesis.and_then(|line| line.genesis);
        let Some(genesis) = genesis else {
            return Err(unfounded(self.layout).into());
        };
        let view = &mut self.view;
        view.genesis_hash = Line::hash(&commit.genesis.0);
        if let Some(last) = commit.blocks.checked_sub(1) {
            let last = view.index.block(last, &genesis.origin)?;
            let last = last.ok_or_else(|| unfounded(self.layout))?;
            view.last_leaf = last.last_leaf;
            view.segment = last.segment;
        }
        *view.state.standing_mut() = Standing {
            genesis: Some(std::sync::Arc::new(*genesis)),
            next_seq: commit.next_seq,
            ..Standing::default()
        };
        self.genesis_hash = Some(view.genesis_hash);
        self.resumed = commit.blocks;
        self.resumed_at = (commit.segment, commit.offset);
        Ok(())
    }

    /// The first segment that has to be looked at: from it on, blocks may be
    /// unsealed, or not in the map. Beyond all of them if nothing is to be read.
    fn first_segment(&mut self, numbers: &[u32]) -> Result<u32, ReadError> {
        if self.resumed == 0 {
            return Ok(0);
        }
        let mut first = self.resumed_at.0;
        if !self.follow.wants_known_seals() {
            if self.until.is_some_and(|until| until <= self.resumed) {
                self.next_block = self.resumed;
                return Ok(u32::MAX);
            }
        } else {
            let open = |number: &&u32| self.layout.parts(**number).exists();
            let open = numbers.iter().find(open).copied();
            first = first.min(open.unwrap_or(u32::MAX));
        }
        if let Some(unjudged) = self.follow.judged().filter(|block| *block < self.resumed) {
            // Its segment may have been closed since, with the seals that it waited for.
            let block = self.view.index.block(unjudged, "")?;
            first = first.min(block.map_or(0, |block| block.segment));
        }
        self.next_block = self.view.index.first_of(first)?;
        Ok(first)
    }

    fn done(&self) -> bool {
        self.until.is_some_and(|n| self.next_block >= n)
    }

    fn finish(mut self, first: u32) -> Result<View<P>, ReadError> {
        let Some(genesis_hash) = self.genesis_hash else {
            return Err(ReadError::Nothing(self.layout.dir().to_owned()));
        };
        if self.next_block < self.resumed {
            return Err(unfounded(self.layout).into());
        }
        if self.view.seals.last.is_none()
            && self.follow.wants_known_seals()
            && let Some(before) = first.checked_sub(1)
        {
            let last = self.last_seal(before)?;
            (self.view.seals.last, self.view.sealed_at) = last.unzip();
        }
        Ok(View {
            genesis_hash,
            ..self.view
        })
    }

    /// The seal of the last block of a segment that is all sealed.
    fn last_seal(&self, number: u32) -> Result<Option<(SealRef, Second)>, ReadError> {
        let block = self.view.index.first_of(number + 1)?.checked_sub(1);
        let last = signatures(self.layout, number)?.pop();
        let Some((block, seal)) = block.zip(last.and_then(|last| last.seal)) else {
            return Ok(None);
        };
        let hash = Digest::of(&[&seal]);
        Ok(seal::time(&seal).map(|at| (SealRef { block, hash }, at)))
    }

    fn segment(&mut self, number: u32, last: bool) -> Result<(), ReadError> {
        let mut segment = match self.resumed_at {
            (first, _) if number < first => Segment::load_signature(self.layout, number)?,
            (first, offset) if number == first => Segment::load(self.layout, number, offset)?,
            _ => Segment::load(self.layout, number, 0)?,
        };
        self.view.segment = number;
        self.view.whole = WholeBytes::default();
        self.named.segment(number, self.next_block);
        self.blocks(&mut segment)?;
        if self.done() || number < self.resumed_at.0 {
            return Ok(());
        }
        self.tail(&mut segment)?;
        if self.next_block >= self.resumed && !last && !self.view.tail.is_empty() {
            let text = "it goes on after its last block, although another segment follows";
            return Err(damage(Code::BlockMissing, &segment.signature_path, None, text).into());
        }
        Ok(())
    }

    /// A block whose lines are in the map; its seal may have come since.
    fn known_block(&mut self, segment: &Segment, seal: Option<&[u8]>) -> Result<(), ReadError> {
        if !self.follow.wants_known_seals() {
            self.next_block += 1;
            return Ok(());
        }
        let origin = self.view.state.genesis().map(|g| g.origin.clone());
        let origin = origin.unwrap_or_default();
        let known = self.view.index.block(self.next_block, &origin)?;
        let known = known.ok_or_else(|| unfounded(self.layout))?;
        let leaf = known.leaf;
        if let Some(seal) = seal.filter(|_| Some(leaf.block) < self.follow.judged()) {
            self.view.seals.last = Some(SealRef {
                block: leaf.block,
                hash: Digest::of(&[seal]),
            });
            self.next_block += 1;
            return Ok(());
        }
        let (sealed, sealed_at) = self.seal(segment, leaf.block, seal, leaf.root.0, leaf.level)?;
        self.sealed(segment, &leaf, sealed.as_deref(), sealed_at)?;
        self.next_block += 1;
        Ok(())
    }

    /// Notes whether a block is sealed.
    fn sealed(
        &mut self,
        segment: &Segment,
        leaf: &LogLeaf,
        seal: Option<&[u8]>,
        sealed_at: Option<Second>,
    ) -> Result<(), Damage> {
        if self.follow.judged() <= Some(leaf.block) {
            self.view.sealed_at = self.view.sealed_at.max(self.follow.judged_at());
        }
        if sealed_at.is_some() && sealed_at < self.view.sealed_at {
            let text = format!(
                "block {} was sealed before the block it continues",
                leaf.block
            );
            return Err(damage(
                Code::SealInvalid,
                &segment.signature_path,
                None,
                text,
            ));
        }
        self.view.sealed_at = sealed_at.or(self.view.sealed_at);
        match seal {
            Some(seal) => {
                let judged = self.follow.seal(leaf, seal);
                judged.map_err(|text| {
                    let text = format!("seal of block {}: {text}", leaf.block);
                    damage(Code::SealInvalid, &segment.signature_path, None, text)
                })?;
                self.view.seals.last = Some(SealRef {
                    block: leaf.block,
                    hash: Digest::of(&[seal]),
                });
            }
            None => self.view.seals.waiting.push_back(leaf.clone()),
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
            let (block_at, seal_at) = (stream.blocks_at, stream.seals_at);
            let Some((block, seal)) = stream.next().map_err(unreadable)? else {
                break;
            };
            let block_number = self.next_block;
            if block_number < self.resumed {
                self.known_block(segment, seal)?;
            } else {
                let line_at = segment.at;
                match self.block(segment, &block, seal) {
                    // Its lines are durable: it is built again of them.
                    Err(ReadError::Damaged(_)) if stream.is_torn(block_at, seal) => {
                        segment.at = line_at;
                        (stream.blocks_at, stream.seals_at) = (block_at, seal_at);
                        break;
                    }
                    block => block?,
                }
                let (number, offset) = (segment.number, segment.offset());
                self.follow.block(&mut self.view, number, offset)?;
            }
            self.named.block(block_number, seal);
        }
        if !self.done() && stream.seals_left().map_err(unreadable)? {
            let text = "it has a seal without a block";
            return Err(damage(Code::BlockMissing, &signature_path, None, text).into());
        }
        self.view.whole.blocks = stream.blocks_at as u64;
        self.view.whole.seals = stream.seals_at as u64;
        if seals.is_some() {
            let whole = (segment.number, self.view.whole.seals);
            self.view.seals.closing.push(whole);
        }
        Ok(())
    }

    fn block(
        &mut self,
        segment: &mut Segment,
        block: &Block<'_>,
        seal: Option<&[u8]>,
    ) -> Result<(), ReadError> {
        let number = self.next_block;
        let first = self.view.state.next_seq();
        if block.header.previous_leaf != self.view.last_leaf {
            let text = format!("block {number} does not continue the block before it");
            return Err(damage(Code::BlockMissing, &segment.signature_path, None, text).into());
        }
        // Before anything is kept of its lines.
        if block.line_count() > MOST_LINES {
            let text = format!(
                "block {number} has {} lines: {MOST_LINES} make a block at most",
                block.line_count()
            );
            return Err(damage(Code::LineAltered, &segment.signature_path, None, text).into());
        }
        let mut lines = Vec::new();
        for _ in 0..block.line_count() {
            let Some(line) = segment.next_line() else {
                let text = format!("it ends before the end of block {number}: lines were cut off");
                return Err(damage(Code::TrailShort, &segment.path, None, text).into());
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
            return Err(damage(Code::LineAltered, &segment.path, line, text).into());
        }
        let mut checkpoint = None;
        for (index, place) in lines.iter().enumerate() {
            let is_last = index + 1 == lines.len();
            let root = if is_last {
                Some(self.view.state.root().map_err(Into::<MapError>::into)?)
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
            return Err(damage(Code::LineAltered, &segment.signature_path, None, text).into());
        };
        let (sealed, sealed_at) = self.seal(segment, number, seal, report.root, report.level)?;
        let leaf = LogLeaf {
            origin: checkpoint.origin.clone(),
            block: number,
            first_seq: first,
            count: checkpoint.count,
            root: Digest(report.root),
            level: report.level,
            map: checkpoint.map,
        };
        self.sealed(segment, &leaf, sealed.as_deref(), sealed_at)?;
        self.view.last_leaf = report.last_leaf;
        self.view.index.push_block(&BlockEntry {
            leaf: leaf.clone(),
            segment: segment.number,
            last_leaf: report.last_leaf,
        });
        self.next_block += 1;
        if self.keep_blocks {
            self.view.blocks.push(BlockInfo {
                leaf,
                checkpoint,
                logsig: block.bytes.to_vec(),
                seal: sealed,
                sealed_at,
            });
        }
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
        &mut self,
        segment: &Segment,
        line: Line,
        number: u64,
        first: u64,
        root: [u8; 32],
    ) -> Result<Checkpoint, ReadError> {
        let seq = line.seq;
        let wrong =
            |text: &str| ReadError::from(damage(Code::LineAltered, &segment.path, Some(seq), text));
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
        let wants_seals = self.follow.wants_known_seals();
        let shelf = wants_seals.then_some((self.layout, &self.view.index));
        match self.named.check(number, body.seal, shelf)? {
            Some(found) => Err(damage(found.code, &segment.path, Some(seq), found.text).into()),
            None => Ok(*body),
        }
    }

    /// Applies the line at `place`.
    fn line(&mut self, segment: &Segment, place: Place) -> Result<Line, ReadError> {
        let seq = self.view.state.next_seq();
        let bytes = segment.bytes(place);
        let altered = |text: String| damage(Code::LineAltered, &segment.path, Some(seq), text);
        let line = Line::decode(bytes).map_err(|e| altered(e.to_string()))?;
        let hash = Line::hash(bytes);
        let applied = self.view.state.apply(&line, hash);
        let marked = |()| marks::follow(&mut self.view.state, &line).map_err(ApplyError::Storage);
        match applied.and_then(marked) {
            Ok(()) => {}
            Err(ApplyError::Line(e)) => return Err(altered(e.what.into()).into()),
            Err(ApplyError::Storage(e)) => return Err(Into::<MapError>::into(e).into()),
        }
        self.genesis_hash.get_or_insert(hash);
        self.view.index.push_line(seq, place.segment, place.offset);
        self.follow.line(&line, place);
        Ok(line)
    }

    fn tail(&mut self, segment: &mut Segment) -> Result<(), ReadError> {
        let mut event_at = None;
        self.view.tail.clear();
        let mut end = segment.offset();
        while let Some(place) = segment.next_line() {
            let line = match self.line(segment, place) {
                // Nothing of it was durable, nor what stands behind it.
                Err(ReadError::Damaged(_)) if segment.is_torn(place) => break,
                line => line?,
            };
            end = segment.offset();
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
        self.view.whole.lines = end;
        Ok(())
    }
}

/// The commit, and the checkpoint that it ends with, if the segments hold that line.
pub(crate) fn ends_with(
    layout: &Layout,
    index: &Index,
    commit: Commit,
) -> Result<(Commit, Checkpoint), MapError> {
    let last = match commit.next_seq.checked_sub(1) {
        Some(last) => index.line(layout, last)?,
        None => None,
    };
    let line = last.filter(|bytes| Line::hash(bytes) == commit.last_line);
    let line = line.and_then(|bytes| Line::decode(&bytes).ok());
    let last = line.and_then(|line| line.checkpoint);
    match last.filter(|last| last.map.0.digest() == commit.root.0) {
        Some(last) => Ok((commit, *last)),
        None => Err(unfounded(layout)),
    }
}

/// A commit of the map is not of this trail, or no longer.
fn unfounded(layout: &Layout) -> MapError {
    MapError::Damaged {
        path: layout.map(),
        damage: crate::map::Damage::Unfounded,
    }
}

/// Whether the end of a file that only grows, from byte `from` on, may be that of a write
/// that a power cut ended: the file has its new length, and sectors that were not
/// written are zeroes. It is asked only where the bytes are not what should be there.
fn is_torn(file: &[u8], from: usize) -> bool {
    unwritten(file, from).next().is_some()
}

/// Lengths of the sectors' parts behind `from` that are all zeroes.
fn unwritten(file: &[u8], from: usize) -> impl Iterator<Item = usize> {
    let first = from / SECTOR * SECTOR;
    (first..file.len()).step_by(SECTOR).filter_map(move |at| {
        let part = &file[at.max(from)..(at + SECTOR).min(file.len())];
        part.iter().all(|byte| *byte == 0).then_some(part.len())
    })
}

/// So many zeroes in a row are in no signature.
const NO_CHANCE: usize = 16;
/// Lines of a block (chapter 32), its checkpoint's among them.
const MOST_LINES: u64 = MAX_BLOCK_LINES as u64 + 1;

impl Segment {
    /// Reads seals, then blocks, then lines: the writer goes the other way, so
    /// each is complete for the one read before it.
    fn load(layout: &Layout, number: u32, from: u64) -> Result<Self, ReadError> {
        use std::io::{Read, Seek, SeekFrom};
        let mut this = Self::load_signature(layout, number)?;
        let mut file = match std::fs::File::open(layout.segment(number)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let lines = archive::lines(layout, number)?;
                this.lines = lines.ok_or(e).at(&this.path, "cannot open")?;
                this.at = usize::try_from(from).unwrap_or(usize::MAX);
                if this.at > this.lines.len() {
                    return Err(unfounded(layout).into());
                }
                return Ok(this);
            }
            file => file.at(&this.path, "cannot open")?,
        };
        let mut lines = Vec::new();
        file.seek(SeekFrom::Start(from))
            .and_then(|_| file.read_to_end(&mut lines))
            .at(&this.path, "cannot read")?;
        this.lines = Arc::new(lines);
        this.from = from;
        Ok(this)
    }

    /// Without the lines.
    fn load_signature(layout: &Layout, number: u32) -> Result<Self, ReadError> {
        let mut this = Self {
            number,
            path: layout.segment(number),
            signature_path: layout.logsig(number),
            lines: Arc::default(),
            from: 0,
            blocks: Arc::default(),
            seals: None,
            at: 0,
        };
        match std::fs::read(&this.signature_path) {
            Ok(blocks) => this.blocks = Arc::new(blocks),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some(blocks) = archive::signatures(layout, number)? {
                    this.blocks = blocks;
                    this.path = layout.receipt(number);
                    this.signature_path = layout.receipt(number);
                    return Ok(this);
                }
                this.seals = Some(read_or_empty(&layout.seals(number))?);
                this.blocks = Arc::new(read_or_empty(&layout.blocks(number))?);
                // Its parts are removed one after the other once it is there.
                if this.signature_path.exists() {
                    return Self::load_signature(layout, number);
                }
                this.signature_path = layout.blocks(number);
            }
            Err(e) => {
                return Err(e)
                    .at(&this.signature_path, "cannot read")
                    .map_err(Into::into);
            }
        }
        Ok(this)
    }

    fn next_line(&mut self) -> Option<Place> {
        let len = self.lines[self.at..].iter().position(|&b| b == b'\n')?;
        let place = Place {
            segment: self.number,
            len: u32::try_from(len).ok()?,
            offset: self.offset(),
        };
        self.at += len + 1;
        Some(place)
    }

    /// Whether the file's end, from this line on, was never written.
    fn is_torn(&self, from: Place) -> bool {
        // Sectors are those of the file.
        let shift = usize::try_from(self.from % SECTOR as u64).unwrap_or(0);
        let start = usize::try_from(from.offset - self.from).unwrap_or(usize::MAX);
        let end = &self.lines[start..];
        let sector = (start + shift) % SECTOR;
        let padded = [&[1; SECTOR][..sector], end].concat();
        is_torn(&padded, sector)
    }

    /// Where in the segment the next line begins.
    fn offset(&self) -> u64 {
        self.from + self.at as u64
    }

    fn bytes(&self, place: Place) -> &[u8] {
        let start = usize::try_from(place.offset - self.from).unwrap_or(usize::MAX);
        &self.lines[start..start + place.len as usize]
    }
}

/// Blocks with their seals, from either one file or two parts.
struct Blocks<'a> {
    blocks: &'a [u8],
    /// The bytes of the seals, if they are a file of their own.
    sealed: &'a [u8],
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
        let sealed = seals;
        let seals = seals.filter(started).map(SealReader::new).transpose()?;
        Ok(Self {
            blocks: if blocks_at == 0 { &[] } else { blocks },
            sealed: sealed.unwrap_or_default(),
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
        let block = logsig::read_block(&self.blocks[self.blocks_at..], self.blocks_at);
        let block = match block {
            Err(_) if self.is_open() && is_torn(self.blocks, self.blocks_at) => None,
            block => block?,
        };
        let Some(block) = block else {
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
            // Whether a seal is whole, only the authority's key could tell.
            Some(Ok(record))
                if record.at + record.bytes.len() == self.sealed.len()
                    && unwritten(self.sealed, record.at).any(|len| len >= NO_CHANCE) =>
            {
                Ok(None)
            }
            Some(Ok(record)) => {
                self.seals_at = record.at + record.bytes.len();
                Ok(signature(&record.seal))
            }
            // An unfinished last seal is the writer's, or a crash's.
            Some(Err(e)) if e.kind == pitser_ksi::DecodeErrorKind::Truncated => Ok(None),
            Some(Err(_)) if is_torn(self.sealed, self.seals_at) => Ok(None),
            Some(Err(e)) => Err(e),
            None => Ok(None),
        }
    }

    /// Whether seals come later, into a file of their own.
    fn is_open(&self) -> bool {
        !self.sealed.is_empty()
    }

    /// Whether the block at `at`, which was just read, is the end of a write that a power
    /// cut ended. What has a seal was durable before.
    fn is_torn(&self, at: usize, seal: Option<&[u8]>) -> bool {
        let is_last = self.blocks_at == self.blocks.len();
        self.is_open() && seal.is_none() && is_last && is_torn(self.blocks, at)
    }

    fn seals_left(&mut self) -> Result<bool, pitser_ksi::DecodeError> {
        Ok(self.next_seal()?.is_some())
    }
}

/// The signature in a seal, if it is one.
pub(crate) fn signature<'a>(seal: &logsig::Seal<'a>) -> Option<&'a [u8]> {
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
