//! The single writer of a trail.

mod append;
mod erase;

use crate::behind::{Behind, Flight};
use crate::disk::{self, AppendFile, At, DiskError, Lock};
use crate::draft::PatientId;
use crate::gather::{Gather, Gathers};
use crate::hold::Holds;
use crate::index::{BlockEntry, Index};
use crate::keys::{KeyError, Keys, random};
use crate::layout::Layout;
use crate::log::Log;
use crate::map::{Commit, DiskMap, DiskPages, MapError, OsFolder, Store};
use crate::marks;
use crate::read::{self, Damage, Follow, Place, ReadError, View, part_magics};
use crate::replay;
use crate::vault::{Vault, VaultError};
use pitser_evidence::Code;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::commit::{Key, LineNonce, Rows, commit_table_key, record_key};
use pitser_evidence::line::{
    Checkpoint, Genesis, Line, MAX_LINE, Op, Patient, RULES, SealRef, TableGenesis, Timestamp,
};
use pitser_evidence::marks::accepted;
use pitser_evidence::seal;
use pitser_evidence::state::{ApplyError, Before, State, StateError};
use pitser_evidence::store::Storage;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::logsig::{self, BLOCK_CLOSE_REASON, BlockBuilder, StoredHashes};
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint as Head;
use pitser_tlog::note::Note;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Lines in a block before it must be closed: 2^15 - 1 lines and the close
/// metarecord make a tree that is signed at level 16.
pub const MAX_BLOCK_LINES: usize = (1 << 15) - 2;

/// The compartment of the people who decided erasures.
const ERASURES: &str = "*erasures";
/// The compartment of what is said about holds.
const HOLDS: &str = "*holds";

/// What fixes a new trail.
#[derive(Debug, Clone)]
pub struct GenesisDraft {
    /// When.
    pub at: Timestamp,
    /// The database's identity.
    pub system: String,
    /// Its timeline.
    pub timeline: u32,
    /// Its position.
    pub pos: String,
    /// The configured name of the source.
    pub source: String,
    /// Guarded tables; their key commitments are filled in here.
    pub tables: Vec<TableDraft>,
    /// What is not covered.
    pub uncovered: Vec<String>,
}

/// A guarded table of a new trail.
#[derive(Debug, Clone)]
pub struct TableDraft {
    /// Name.
    pub name: String,
    /// Columns in the table's order.
    pub columns: Vec<String>,
    /// Columns of the primary key.
    pub key: Vec<String>,
    /// How a row's patient is found, or `none`.
    pub patient: String,
}

/// A closed block: what is to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// Block number.
    pub block: u64,
    /// `seq` of its first line.
    pub first_seq: u64,
    /// Number of lines.
    pub count: u64,
    /// Root to be signed.
    pub root: Imprint,
    /// Level at which it is signed.
    pub level: u8,
}

/// What opening a trail found and mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of an unfinished line, block or seal that were cut off.
    pub cut_bytes: u64,
    /// Lines of an unfinished event that were cut off.
    pub cut_event: bool,
    /// A block whose lines were there, but whose signature block was not.
    pub rebuilt_block: bool,
    /// A patient whose line of erasure was there, and whose key was too.
    pub finished_erasure: bool,
}

/// A commit of the map is made after so many lines, which is about what is
/// replayed when the trail is opened again.
pub(crate) const COMMIT_LINES: u64 = 250_000;
/// And after so many microseconds of the checkpoints' own time, so that those
/// who read beside the writer have little to replay.
const COMMIT_US: u64 = 10_000_000;
/// Progress is told each so many lines.
pub(crate) const PROGRESS_LINES: u64 = 4096;

/// Why the trail cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// A file cannot be written or read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The vault cannot be written or read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The trail on disk cannot be read to its end.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A line does not follow from those before it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The map's store cannot be written or read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A line breaks a rule of the format.
    #[error("a line cannot be written: {0}")]
    Line(#[from] pitser_evidence::codec::CodecError),
    /// Another process writes this trail.
    #[error("{}: another pitser writes this trail. Stop it first", .0.display())]
    Locked(std::path::PathBuf),
    /// A trail is already there.
    #[error("{}: there is a trail here already; its genesis stays as it is", .0.display())]
    Exists(std::path::PathBuf),
    /// An earlier write failed: the trail must be opened again.
    #[error("an earlier write to the trail failed; it has to be opened again")]
    Poisoned,
    /// More lines than a block may have: nothing of them was written. The block has to be
    /// closed first.
    #[error(
        "{lines} more lines do not fit the open block, which has {open}: at most {MAX_BLOCK_LINES} make one"
    )]
    BlockFull {
        /// Lines that the block has.
        open: usize,
        /// Lines that were to be added.
        lines: usize,
    },
    /// A seal for a block that is not the next to be sealed.
    #[error("seal of block {got}, while block {expected} waits for one")]
    SealOrder {
        /// The block that waits.
        expected: u64,
        /// The block that the seal is for.
        got: u64,
    },
    /// The trail's first line would be too long: it names all tables and their columns.
    #[error(
        "{tables} tables, with {columns} columns, are too many for one trail: its first line, which names them all, would \
         have {bytes} bytes of {MAX_LINE}. Guard fewer tables, or some of them as a source of their own"
    )]
    Wide {
        /// Tables.
        tables: usize,
        /// Their columns.
        columns: usize,
        /// Of the line.
        bytes: usize,
    },
    /// The folder has keys of another trail, and no trail.
    #[error(
        "{}: these keys are of a trail named {found}, and the one to be made is {wanted}. If none was ever begun with them \
         (`guard init` failed, and was corrected since), remove them and `vault.key`; else give the trail the name that it had",
        path.display()
    )]
    OthersKeys {
        /// The keys.
        path: std::path::PathBuf,
        /// Whose they are.
        found: String,
        /// The new trail's name.
        wanted: String,
    },
    /// A block's signature would not fit its format.
    #[error("block {0} cannot be written as a log signature")]
    Block(u64),
}

impl From<ApplyError<MapError>> for TrailError {
    fn from(error: ApplyError<MapError>) -> Self {
        match error {
            ApplyError::Line(error) => error.into(),
            ApplyError::Storage(error) => error.into(),
        }
    }
}

impl TrailError {
    /// True if the map's store has to be made anew.
    fn damages_map(&self) -> bool {
        matches!(
            self,
            Self::Map(MapError::Damaged { .. })
                | Self::Read(ReadError::Map(MapError::Damaged { .. }))
        )
    }

    /// True if the disk is full: worth trying again later.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Disk(e)
            | Self::Map(MapError::Disk(e))
            | Self::Read(ReadError::Disk(e) | ReadError::Map(MapError::Disk(e))) => e.is_full(),
            Self::Vault(e) => e.is_full(),
            _ => false,
        }
    }
}

/// An open trail. After an error it is poisoned: drop it and open it again,
/// which recovers whatever is durable.
#[derive(Debug)]
pub struct Trail {
    layout: Layout,
    keys: Keys,
    vault: Vault,
    rows: Rows,
    state: State<DiskMap>,
    store: Store<OsFolder>,
    index: Index,
    gathered: Box<dyn Gathers>,
    pub(crate) holds: Holds,
    /// The genesis line's bytes.
    genesis_line: Vec<u8>,
    genesis_hash: Digest,
    /// Line after the map's newest commit, unless none is to be made; when it
    /// was made, or could have been, in microseconds of checkpoints' time.
    committed: (Option<u64>, Option<u64>),
    /// A commit that is to be made before the next line: its block's last line
    /// and the time. Not with the block itself, whose seal would wait for it.
    commit_due: Option<(Digest, u64)>,
    files: SegmentFiles,
    limits: SegmentLimits,
    /// When the open segment's first block was closed; `None` before that.
    segment_began: Option<Timestamp>,
    commit_lines: u64,
    /// Encoded lines that are not on disk yet.
    buffer: Vec<u8>,
    /// Lines before those, on their way to the disk, and the first one after them.
    flight: Option<(Flight, u64)>,
    /// The first line that is not known to be durable.
    undurable: u64,
    behind: Behind,
    /// Record hashes of the lines in the open block.
    open: Vec<Imprint>,
    last_leaf: Imprint,
    unsealed: VecDeque<BlockSummary>,
    /// Segments whose parts still wait for seals: number and end block.
    closing: VecDeque<(u32, u64, AppendFile)>,
    last_seal: Option<SealRef>,
    /// When that was made.
    sealed_at: Option<Second>,
    head: Option<Digest>,
    poisoned: bool,
    /// Held until all else is dropped: nothing is written afterwards.
    _lock: Lock,
}

/// When the open segment is closed and the next one begun, at the end of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLimits {
    /// It has so many bytes of lines.
    pub bytes: u64,
    /// Its first block was closed so many seconds ago. (Lines may tell of older things:
    /// a source that is caught up with.)
    pub age_s: u64,
}

impl Default for SegmentLimits {
    /// 64 MiB or a day.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            age_s: 24 * 60 * 60,
        }
    }
}

/// The open segment.
#[derive(Debug)]
struct SegmentFiles {
    number: u32,
    lines: AppendFile,
    blocks: AppendFile,
    seals: AppendFile,
}

impl SegmentFiles {
    fn open(layout: &Layout, number: u32) -> Result<Self, DiskError> {
        let (blocks_magic, seals_magic) = part_magics();
        disk::private_dir(&layout.parts(number))?;
        let files = Self {
            number,
            lines: AppendFile::open(&layout.segment(number), b"")?,
            blocks: AppendFile::open(&layout.blocks(number), blocks_magic)?,
            seals: AppendFile::open(&layout.seals(number), seals_magic)?,
        };
        // The names of the lines and of the folder of parts.
        disk::sync_dir(&layout.segment(number))?;
        Ok(files)
    }

    /// Writes all again that may not be on the disk, and makes it durable; lines before
    /// `known`, a segment and an offset there, are.
    fn write_again(&self, layout: &Layout, known: (u32, u64)) -> Result<(), DiskError> {
        let (segment, offset) = known;
        let lines_from = if segment == self.number { offset } else { 0 };
        disk::write_again(&layout.segment(self.number), lines_from)?;
        disk::write_again(&layout.blocks(self.number), 0)?;
        disk::write_again(&layout.seals(self.number), 0)
    }
}

/// After an orderly end there is nothing to replay; what was damaged is not
/// opened again.
impl Drop for Trail {
    fn drop(&mut self) {
        self.commit_lines = 0;
        // While the lock is held; an error leaves lines that are not durable.
        let _ = self.land();
        if !self.poisoned
            && self.is_durable()
            && let Err(error) = self.commit_map()
        {
            tracing::warn!(%error, "the map could not be made durable; the next start replays more");
        }
        if self.state.storage().pages().is_damaged() || self.index.is_damaged() {
            tracing::warn!("the map is made anew from the segments at the next start");
            forget_map(&self.layout);
        }
    }
}

impl Trail {
    /// Begins a new trail with its genesis line; the line is durable on return.
    ///
    /// # Errors
    /// [`TrailError::Exists`] if there is one, and whatever keeps it from
    /// being written.
    pub fn create(layout: Layout, origin: &str, draft: &GenesisDraft) -> Result<Self, TrailError> {
        Self::create_gathering::<()>(layout, origin, draft)
    }

    /// The same, and gathers what whoever opens it later wants to know.
    ///
    /// # Errors
    /// Those of [`Trail::create`].
    pub fn create_gathering<T: Gather>(
        layout: Layout,
        origin: &str,
        draft: &GenesisDraft,
    ) -> Result<Self, TrailError> {
        if layout.has_trail() {
            return Err(TrailError::Exists(layout.dir().to_owned()));
        }
        if layout.before().exists() {
            return Err(ReadError::nothing(&layout).into());
        }
        disk::private_dir(&layout.segments())?;
        let tables: Vec<String> = draft.tables.iter().map(|t| t.name.clone()).collect();
        let keys = if layout.keys().exists() {
            Keys::open(&layout)?
        } else {
            Keys::create(&layout, origin, &tables)?
        };
        if keys.origin() != origin {
            return Err(TrailError::OthersKeys {
                path: layout.keys(),
                found: keys.origin().to_owned(),
                wanted: origin.to_owned(),
            });
        }
        let genesis = Genesis {
            log_key: keys.log().verifier().to_string(),
            origin: origin.to_owned(),
            predecessor: "none".into(),
            rules: Some(RULES),
            salt: Bytes32(random()?),
            system: draft.system.clone(),
            tables: tables_of(&keys, &draft.tables),
            timeline: draft.timeline,
            uncovered: draft.uncovered.clone(),
            vrf_key: Bytes32(keys.vrf_public().0),
        };
        let line = Line::genesis(genesis, draft.at, &draft.source, &draft.pos);
        line.check()?;
        let mut bytes = line.encode();
        if bytes.len() > MAX_LINE {
            return Err(TrailError::Wide {
                tables: draft.tables.len(),
                columns: draft.tables.iter().map(|it| it.columns.len()).sum(),
                bytes: bytes.len(),
            });
        }
        bytes.push(b'\n');
        disk::replace(&layout.segment(0), &bytes)?;
        let (trail, _, _) = Self::open::<T>(layout)?;
        Ok(trail)
    }

    /// Opens a trail for writing: takes its lock, cuts off what a crash left
    /// unfinished, and gives what `T` gathers from every line.
    ///
    /// Everything that came after the map's newest commit is recomputed, and
    /// the line that the commit ends with is compared. The whole trail is
    /// recomputed by [`crate::read()`], and here if there is no such commit.
    ///
    /// # Errors
    /// [`TrailError`]; a damaged trail is not opened.
    pub fn open<T: Gather>(layout: Layout) -> Result<(Self, T, Recovery), TrailError> {
        if !layout.has_trail() {
            return Err(ReadError::nothing(&layout).into());
        }
        let lock = take_lock(&layout)?;
        Self::open_locked(layout, lock, &mut |_| {})
    }

    /// Makes everything anew that is derived from the segments, the map and the
    /// index, and opens the trail. `progress` is told the number of lines that
    /// were read, now and then.
    ///
    /// # Errors
    /// Those of [`Trail::open`].
    pub fn rebuild<T: Gather>(
        layout: Layout,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Self, T, Recovery), TrailError> {
        if !layout.has_trail() {
            return Err(ReadError::nothing(&layout).into());
        }
        let lock = take_lock(&layout)?;
        let aside = Aside::put(layout.map())?;
        let (mut trail, gathered, recovery) = Self::open_locked(layout, lock, progress)?;
        trail.commit_what_was_read()?;
        aside.discard()?;
        Ok((trail, gathered, recovery))
    }

    /// Makes the map durable now, if the trail's last line ends a block. After a crash
    /// it may not: then there is what was committed while it was read.
    fn commit_what_was_read(&mut self) -> Result<(), TrailError> {
        let last = self.state.next_seq().checked_sub(1);
        let Some(last) = last.filter(|_| self.open.is_empty()) else {
            return Ok(());
        };
        if let Some(line) = self.line(last)? {
            self.commit_due = Some((Line::hash(&line.encode()), line.at.micros()));
            let lines = std::mem::take(&mut self.commit_lines);
            self.commit_map()?;
            self.commit_lines = lines;
        }
        Ok(())
    }

    fn open_locked<T: Gather>(
        layout: Layout,
        lock: Lock,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Self, T, Recovery), TrailError> {
        let keys = Keys::open(&layout)?;
        let mut vault = Vault::open(&layout.vault(), keys.master())?;
        let mut recovery = Recovery::default();
        let (recovered, files) = recover::<T>(&layout, &mut recovery, progress)?;
        let Recovered {
            view,
            store,
            gathered,
            kept,
            holds,
            committed,
            known,
            genesis_line,
        } = recovered;
        let head = std::fs::read(layout.head()).ok();
        let covered = head
            .as_deref()
            .and_then(|note| covered_by(&Note::parse(note).ok()?, &keys));
        let covered = covered.unwrap_or(0);
        reaches(&layout, view.log().size(), covered)?;
        // Nobody saw a head over what is missing: it never became durable.
        vault.discard_from(view.state.next_seq())?;
        // What a crash left in the system's memory counts from now on.
        files.write_again(&layout, known)?;
        let summary = |leaf: &LogLeaf| BlockSummary {
            block: leaf.block,
            first_seq: leaf.first_seq,
            count: leaf.count,
            root: leaf.root.0,
            level: leaf.level,
        };
        let mut trail = Self {
            keys,
            vault,
            rows: Rows::default(),
            genesis_line,
            genesis_hash: view.genesis_hash,
            files,
            limits: SegmentLimits::default(),
            segment_began: None,
            commit_lines: COMMIT_LINES,
            buffer: Vec::new(),
            flight: None,
            undurable: view.state.next_seq(),
            behind: Behind::start(layout.dir())?,
            open: view.tail,
            last_leaf: view.last_leaf,
            state: view.state,
            store,
            index: view.index,
            gathered: kept,
            holds,
            committed: (committed, None),
            commit_due: None,
            unsealed: view.seals.waiting.iter().map(summary).collect(),
            closing: VecDeque::new(),
            last_seal: view.seals.last,
            sealed_at: view.sealed_at,
            head: head.as_ref().map(|note| Digest::of(&[note])),
            poisoned: false,
            _lock: lock,
            layout,
        };
        trail.store.covers(trail.state.storage_mut(), covered);
        trail.reopen_closing(&view.seals.closing)?;
        let first = trail.index.first_of(trail.files.number)?;
        if let Some(block) = trail.index.block(first, "")? {
            let checkpoint = block.leaf.first_seq + block.leaf.count - 1;
            trail.segment_began = trail.line(checkpoint)?.map(|line| line.at);
        }
        recovery.finished_erasure = trail.finish_erasures()?;
        Ok((trail, gathered, recovery))
    }

    /// Segments are closed once they are longer or older than this.
    pub fn set_segment_limits(&mut self, limits: SegmentLimits) {
        self.limits = limits;
    }

    /// A commit of the map is made with the block that has this many lines
    /// since the last one; 0: with every block.
    pub fn set_map_commit_lines(&mut self, lines: u64) {
        self.commit_lines = lines;
    }

    /// The secret keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The vault.
    pub fn vault(&mut self) -> &mut Vault {
        &mut self.vault
    }

    /// Everything that follows from the lines so far.
    pub fn state(&self) -> &State<DiskMap> {
        &self.state
    }

    /// Whether a line of op `read` has this position: its message was taken.
    ///
    /// # Errors
    /// [`TrailError::Map`].
    pub fn has_message(&self, pos: &str) -> Result<bool, TrailError> {
        Ok(self.state.storage().is_marked(&marks::message(pos))?)
    }

    /// The lines about a record, the newest first.
    ///
    /// # Errors
    /// [`TrailError`], also by the iterator, which ends then.
    pub fn record_lines(
        &self,
        table: &str,
        record: &Bytes32,
    ) -> Result<impl Iterator<Item = Result<Line, TrailError>>, TrailError> {
        let leaf = self.state.record_leaf(table, record)?;
        let mut next = leaf.map(|leaf| leaf.last_seq);
        Ok(std::iter::from_fn(move || {
            let line = self.line(next.take()?).transpose()?;
            if let Ok(line) = &line {
                next = line.prev.map(|prev| prev.seq);
            }
            Some(line)
        }))
    }

    /// Whether somebody answers for the finding of line `seq`.
    ///
    /// # Errors
    /// [`TrailError::Map`].
    pub fn is_accepted(&self, seq: u64) -> Result<bool, TrailError> {
        Ok(self.state.storage().is_marked(&accepted(seq))?)
    }

    /// What was gathered so far and goes into the next commit, for its owner, who may
    /// know more than the lines say one by one. `None` if it is something else.
    pub fn gathered_mut<T: Gather>(&mut self) -> Option<&mut T> {
        self.gathered.any().downcast_mut()
    }

    /// Bytes that the map and the index take on disk.
    pub fn map_bytes(&self) -> u64 {
        self.store.disk_bytes(self.state.storage())
    }

    /// Hash of the genesis line.
    pub fn genesis_hash(&self) -> Digest {
        self.genesis_hash
    }

    /// The genesis body.
    pub fn genesis(&self) -> &Genesis {
        self.state
            .genesis()
            .expect("an open trail has its genesis line")
    }

    /// Where the files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.log().size()
    }

    /// Number of lines in the open block.
    pub fn open_lines(&self) -> usize {
        self.open.len()
    }

    /// The nonce that opens line `seq` under `key`.
    pub fn nonce(&self, key: &Key, seq: u64) -> LineNonce {
        LineNonce::new(key, &self.genesis().origin, self.genesis().timeline, seq)
    }

    /// The pseudonym of a patient.
    pub fn patient(&self, patient: &PatientId) -> Patient {
        match patient {
            PatientId::Id(id) => self.keys.pseudonym(id),
            PatientId::Pseudonym(pseudonym) | PatientId::Erased(pseudonym) => {
                Patient::Pseudonym(*pseudonym)
            }
            PatientId::Many => Patient::Many,
            PatientId::Unknown => Patient::Unknown,
        }
    }

    /// The opaque key of a record.
    pub fn record_key(&self, table: Option<&str>, cells: &[Vec<u8>]) -> Bytes32 {
        record_key(
            &self.keys.table(table.unwrap_or_default()),
            cells.iter().map(Vec::as_slice),
        )
    }

    fn push(&mut self, line: &Line) -> Result<(), TrailError> {
        let before = self.state.before(line)?;
        self.push_after(before, line)
    }

    /// Adds a line to which the leaves stand as `before` says.
    fn push_after(&mut self, before: Before, line: &Line) -> Result<(), TrailError> {
        line.check()?;
        let bytes = line.encode();
        if bytes.len() > MAX_LINE {
            return Err(pitser_evidence::codec::CodecError::Rule(format!(
                "longer than {MAX_LINE} bytes"
            ))
            .into());
        }
        let hash = Line::hash(&bytes);
        self.state.apply_to(before, line, hash)?;
        marks::follow(&mut self.state, line)?;
        self.gathered.line(line);
        self.holds.line(line);
        self.open.push(hash.0);
        let offset = self.files.lines.len() + self.buffer.len() as u64;
        self.index.push_line(line.seq, self.files.number, offset);
        self.buffer.extend_from_slice(&bytes);
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Bytes of lines that the next [`Trail::commit`] makes durable.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether all lines so far are known to be durable.
    pub fn is_durable(&self) -> bool {
        self.undurable == self.state.next_seq()
    }

    /// Makes all lines so far durable: first the vault, then the segment.
    ///
    /// # Errors
    /// Any error poisons the trail; nothing since the last commit may then be
    /// acknowledged to its source.
    pub fn commit(&mut self) -> Result<(), TrailError> {
        self.usable()?;
        self.checked(|trail| {
            trail.land()?;
            if !trail.buffer.is_empty() {
                trail.vault.commit()?;
                trail.files.lines.append(&trail.buffer)?;
                trail.buffer.clear();
                trail.undurable = trail.state.next_seq();
            }
            Ok(())
        })
    }

    /// Has all lines so far made durable while whoever asks goes on: none of them may be
    /// acknowledged to its source before [`Trail::commit`] returns. At most one such
    /// commit is under way; another one waits for it.
    ///
    /// # Errors
    /// Any error poisons the trail.
    pub fn commit_behind(&mut self) -> Result<(), TrailError> {
        self.usable()?;
        self.checked(|trail| {
            let spare = trail.land()?;
            if !trail.buffer.is_empty() {
                trail.vault.commit_behind(&trail.behind)?;
                let lines = std::mem::replace(&mut trail.buffer, spare);
                let flight = trail.files.lines.append_behind(&trail.behind, lines)?;
                trail.flight = Some((flight, trail.state.next_seq()));
            }
            Ok(())
        })
    }

    /// Waits until lines on their way are durable; gives memory to be used again.
    fn land(&mut self) -> Result<Vec<u8>, TrailError> {
        let Some((flight, end)) = self.flight.take() else {
            return Ok(Vec::new());
        };
        self.vault.land()?;
        let spare = flight.land()?;
        self.undurable = end;
        Ok(spare)
    }

    /// Ends the open block with a checkpoint line and makes it durable.
    ///
    /// `pos` is the source's position that the block covers, `mapping` the
    /// hash of the table-to-patient mapping.
    ///
    /// # Errors
    /// Any error poisons the trail.
    pub fn close_block(
        &mut self,
        at: Timestamp,
        pos: &str,
        mapping: Digest,
        reason: &str,
    ) -> Result<BlockSummary, TrailError> {
        self.usable()?;
        self.checked(|trail| {
            trail.commit_map()?;
            let block = trail.blocks();
            let at_us = at.micros();
            let line = trail.checkpoint_line(at, pos, mapping, block)?;
            trail.push(&line)?;
            let last_line = *trail.open.last().expect("just pushed");
            trail.commit()?;
            let summary = trail.write_block(block, reason)?;
            trail.segment_began.get_or_insert(at);
            if trail.segment_is_due(at) {
                trail.next_segment()?;
            }
            trail.commit_due = Some((Digest(last_line), at_us));
            Ok(summary)
        })
    }

    /// Makes the map durable as of the newest block, after which nothing was
    /// written yet, if enough came since it last was.
    fn commit_map(&mut self) -> Result<(), TrailError> {
        let due = self.commit_due.take();
        let (Some((last_line, at_us)), Some(committed)) = (due, self.committed.0) else {
            return Ok(());
        };
        let lines = self.state.next_seq() - committed;
        let since = self.committed.1.get_or_insert(at_us);
        // The clock may have been set back.
        *since = at_us.min(*since);
        let waited_us = at_us - *since;
        if lines < self.commit_lines && waited_us < COMMIT_US {
            return Ok(());
        }
        let commit = Commit {
            blocks: self.blocks(),
            next_seq: self.state.next_seq(),
            segment: self.files.number,
            offset: self.files.lines.len(),
            last_line,
            root: Bytes32([0; 32]),
            genesis: Blob(self.genesis_line.clone()),
            gathered: Blob(self.gathered.save()),
            gathered_as: self.gathered.form().to_owned(),
            holds: self.holds.clone(),
        };
        commit_map(
            &self.layout,
            &mut self.state,
            &mut self.index,
            &mut self.store,
            commit,
        )?;
        self.committed = (Some(self.state.next_seq()), Some(at_us));
        Ok(())
    }

    fn checkpoint_line(
        &mut self,
        at: Timestamp,
        pos: &str,
        mapping: Digest,
        block: u64,
    ) -> Result<Line, TrailError> {
        let seq = self.state.next_seq();
        let root = Imprint::new(Algorithm::Sha256, &self.state.root()?)
            .expect("the map's hash is SHA-256");
        let count = self.open.len() as u64 + 1;
        let genesis = self.genesis();
        let body = Checkpoint {
            block,
            count,
            first: seq + 1 - count,
            head: self.head,
            map: Digest(root),
            map_seq: seq - 1,
            mapping,
            origin: genesis.origin.clone(),
            pos: pos.to_owned(),
            seal: self.last_seal,
            system: genesis.system.clone(),
            timeline: genesis.timeline,
        };
        let mut line = Line::new(Op::Checkpoint, seq, at, "guardian", pos);
        line.checkpoint = Some(Box::new(body));
        Ok(line)
    }

    fn write_block(&mut self, block: u64, reason: &str) -> Result<BlockSummary, TrailError> {
        let first_seq = self.state.next_seq() - self.open.len() as u64;
        let closed = build_block(&self.open, self.last_leaf, reason)
            .map_err(|()| TrailError::Block(block))?;
        self.files.blocks.append(&closed.bytes)?;
        let map = Imprint::new(Algorithm::Sha256, &self.state.root()?)
            .expect("the map's hash is SHA-256");
        let leaf = LogLeaf {
            origin: self.genesis().origin.clone(),
            block,
            first_seq,
            count: self.open.len() as u64,
            root: Digest(closed.root),
            level: closed.level,
            map: Digest(map),
        };
        self.last_leaf = closed.last_leaf;
        self.index.push_block(&BlockEntry {
            leaf: leaf.clone(),
            segment: self.files.number,
            last_leaf: closed.last_leaf,
        });
        self.open.clear();
        let summary = BlockSummary {
            block,
            first_seq,
            count: leaf.count,
            root: closed.root,
            level: closed.level,
        };
        self.unsealed.push_back(summary.clone());
        Ok(summary)
    }

    /// Blocks that wait for their seal, oldest first.
    pub fn unsealed(&self) -> impl Iterator<Item = &BlockSummary> {
        self.unsealed.iter()
    }

    /// When the newest seal was made, if there is one: none that follows may be older.
    pub fn sealed_at(&self) -> Option<Second> {
        self.sealed_at
    }

    /// Keeps the signature of the block that has waited longest, durably.
    ///
    /// # Errors
    /// [`TrailError::SealOrder`] leaves the trail as it is; others poison it.
    pub fn add_seal(&mut self, block: u64, signature: &[u8]) -> Result<(), TrailError> {
        self.usable()?;
        let expected = self.unsealed.front().map_or(self.blocks(), |b| b.block);
        let Some(summary) = self.unsealed.front().filter(|b| b.block == block) else {
            return Err(TrailError::SealOrder {
                expected,
                got: block,
            });
        };
        // One more record than lines: the metarecord that closes the block.
        let bytes = logsig::encode_signed(summary.count + 1, signature)
            .map_err(|_| TrailError::Block(block))?;
        self.checked(|trail| {
            match trail.closing.front_mut() {
                Some((_, _, seals)) => seals.append(&bytes)?,
                None => trail.files.seals.append(&bytes)?,
            }
            trail.unsealed.pop_front();
            trail.last_seal = Some(SealRef {
                block,
                hash: Digest::of(&[signature]),
            });
            trail.sealed_at = seal::time(signature).or(trail.sealed_at);
            if trail
                .closing
                .front()
                .is_some_and(|(_, end, _)| block + 1 == *end)
            {
                let (number, _, _) = trail.closing.pop_front().expect("just looked at");
                finish_segment(&trail.layout, number)?;
            }
            Ok(())
        })
    }

    /// The head over all blocks so far, signed by the trail's key.
    pub fn sign_head(&self) -> Note {
        let head = Head::new(&self.genesis().origin, self.log().size(), self.log().root())
            .expect("the origin was a key name at genesis");
        head.sign(self.keys.log()).expect("a head is a short note")
    }

    /// The log, for proofs.
    pub fn log(&self) -> &Log {
        self.index.log()
    }

    /// Keeps a cosigned head; later checkpoint lines refer to it.
    ///
    /// # Errors
    /// [`TrailError::Disk`].
    pub fn store_head(&mut self, note: &Note) -> Result<(), TrailError> {
        let bytes = note.to_string();
        disk::replace(&self.layout.head(), bytes.as_bytes())?;
        self.head = Some(Digest::of(&[bytes.as_bytes()]));
        if let Some(blocks) = covered_by(note, &self.keys) {
            self.store.covers(self.state.storage_mut(), blocks);
        }
        Ok(())
    }

    /// The head that was kept last, and the blocks under it; `None` if there is none, or it is
    /// not ours.
    pub fn kept_head(&self) -> Option<(Note, u64)> {
        let note = Note::parse(&std::fs::read(self.layout.head()).ok()?).ok()?;
        let blocks = covered_by(&note, &self.keys)?;
        Some((note, blocks))
    }

    /// Reads line `seq`, if it is durable.
    ///
    /// # Errors
    /// [`TrailError::Disk`] or [`TrailError::Line`].
    pub fn line(&self, seq: u64) -> Result<Option<Line>, TrailError> {
        if seq >= self.undurable {
            return Ok(None);
        }
        let line = self.index.line(&self.layout, seq)?;
        Ok(line.map(|bytes| Line::decode(&bytes)).transpose()?)
    }

    /// The findings among the next `most` lines from `seq` on that are durable, in their
    /// order, and the line after these. Much faster than to ask for each line.
    ///
    /// # Errors
    /// Those of [`Trail::line`].
    pub fn findings(&self, seq: u64, most: u64) -> Result<(Vec<Line>, u64), TrailError> {
        let count = self.undurable.saturating_sub(seq).min(most);
        if count == 0 {
            return Ok((Vec::new(), seq));
        }
        let found = self.index.findings(&self.layout, seq, count)?;
        Ok((found, seq + count))
    }

    fn segment_is_due(&self, now: Timestamp) -> bool {
        let age_us = self
            .segment_began
            .as_ref()
            .map_or(0, |began| now.micros().saturating_sub(began.micros()));
        self.files.lines.len() >= self.limits.bytes || age_us / 1_000_000 >= self.limits.age_s
    }

    fn next_segment(&mut self) -> Result<(), TrailError> {
        let number = self.files.number + 1;
        let files = SegmentFiles::open(&self.layout, number)?;
        let old = std::mem::replace(&mut self.files, files);
        self.segment_began = None;
        let end = self.blocks();
        if self.unsealed.is_empty() {
            finish_segment(&self.layout, old.number)?;
        } else {
            self.closing.push_back((old.number, end, old.seals));
        }
        Ok(())
    }

    /// After opening: earlier segments that still have parts, of which seals are whole up
    /// to some byte.
    fn reopen_closing(&mut self, whole: &[(u32, u64)]) -> Result<(), TrailError> {
        let first_waiting = self.unsealed.front().map(|b| b.block);
        for number in 0..self.files.number {
            if self.layout.logsig(number).exists() || self.layout.receipt(number).exists() {
                remove_parts(&self.layout, number)?;
                continue;
            }
            let end = self.index.first_of(number + 1)?;
            if first_waiting.is_some_and(|first| first < end) {
                let mut seals = AppendFile::open(&self.layout.seals(number), part_magics().1)?;
                let whole = whole.iter().find(|(of, _)| *of == number);
                // A crash may have ended the last one's write.
                if let Some((_, whole)) = whole
                    && (part_magics().1.len() as u64..seals.len()).contains(whole)
                {
                    seals.truncate(*whole)?;
                }
                disk::write_again(&self.layout.seals(number), 0)?;
                self.closing.push_back((number, end, seals));
            } else {
                finish_segment(&self.layout, number)?;
            }
        }
        Ok(())
    }

    fn usable(&self) -> Result<(), TrailError> {
        if self.poisoned {
            Err(TrailError::Poisoned)
        } else {
            Ok(())
        }
    }

    fn checked<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TrailError>,
    ) -> Result<T, TrailError> {
        let result = work(self);
        self.poisoned |= result.is_err();
        result
    }
}

fn tables_of(keys: &Keys, drafts: &[TableDraft]) -> Vec<TableGenesis> {
    let mut tables: Vec<_> = drafts
        .iter()
        .map(|t| TableGenesis {
            columns: t.columns.clone(),
            key: t.key.clone(),
            name: t.name.clone(),
            patient: t.patient.clone(),
            table_key: commit_table_key(&t.name, &keys.table(&t.name)),
        })
        .collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables
}

fn build_block(
    records: &[Imprint],
    previous: Imprint,
    reason: &str,
) -> Result<logsig::ClosedBlock, ()> {
    let iv: [u8; 32] = random().map_err(|_| ())?;
    let stored = StoredHashes {
        records: true,
        tree: false,
    };
    let mut builder =
        BlockBuilder::storing(stored, Algorithm::Sha256, &iv, previous).map_err(|_| ())?;
    for record in records {
        builder.record(*record).map_err(|_| ())?;
    }
    builder
        .metarecord(BLOCK_CLOSE_REASON, reason)
        .map_err(|_| ())?;
    let mut closed = builder.close().map_err(|_| ())?;
    let marker = closed.unsigned(None).map_err(|_| ())?;
    closed.bytes.extend(marker);
    Ok(closed)
}

/// A trail as it was recovered.
struct Recovered<T> {
    view: View<DiskPages<OsFolder>>,
    store: Store<OsFolder>,
    /// For the caller.
    gathered: T,
    /// To go on with; something else than `gathered` if that is not what the
    /// trail's commits keep.
    kept: Box<dyn Gathers>,
    holds: Holds,
    /// Line after the newest commit, unless none is to be made.
    committed: Option<u64>,
    /// Segment and offset before which all was durable when the map was committed last.
    known: (u32, u64),
    /// The genesis line's bytes.
    genesis_line: Vec<u8>,
}

/// Gathers while the trail is read, and makes commits on the way.
struct Gathering<'a, T> {
    layout: &'a Layout,
    progress: &'a mut dyn FnMut(u64),
    store: Store<OsFolder>,
    gathered: T,
    holds: Holds,
    last_line: Option<Digest>,
    /// Line after the newest commit, unless none is to be made.
    committed: Option<u64>,
    genesis: Vec<u8>,
}

impl<T: Gather> Follow<DiskPages<OsFolder>> for Gathering<'_, T> {
    fn line(&mut self, line: &Line, _: Place) {
        let bytes = line.encode();
        self.gathered.line(line);
        self.holds.line(line);
        self.last_line = Some(Line::hash(&bytes));
        if line.seq == 0 {
            self.genesis = bytes;
        }
        if line.seq.is_multiple_of(PROGRESS_LINES) {
            (self.progress)(line.seq);
        }
    }

    fn block(
        &mut self,
        view: &mut View<DiskPages<OsFolder>>,
        segment: u32,
        offset: u64,
    ) -> Result<(), ReadError> {
        let next_seq = view.state.next_seq();
        let (Some(last_line), Some(committed)) = (self.last_line, self.committed) else {
            return Ok(());
        };
        if next_seq - committed < 3 * COMMIT_LINES {
            return Ok(());
        }
        let commit = Commit {
            blocks: view.index.blocks(),
            next_seq,
            segment,
            offset,
            last_line,
            root: Bytes32([0; 32]),
            genesis: Blob(self.genesis.clone()),
            gathered: Blob(self.gathered.save()),
            gathered_as: T::FORM.to_owned(),
            holds: self.holds.clone(),
        };
        commit_map(
            self.layout,
            &mut view.state,
            &mut view.index,
            &mut self.store,
            commit,
        )?;
        self.committed = Some(next_seq);
        Ok(())
    }
}

pub(crate) fn commit_map(
    layout: &Layout,
    state: &mut State<DiskMap>,
    index: &mut Index,
    store: &mut Store<OsFolder>,
    commit: Commit,
) -> Result<(), MapError> {
    index.sync(&OsFolder::new(layout.map()))?;
    store.commit(state.storage_mut(), commit)
}

/// Blocks that a head of this trail covers.
fn covered_by(note: &Note, keys: &Keys) -> Option<u64> {
    let head = Head::open(note, keys.origin(), &keys.log().verifier());
    head.ok().map(|head| head.size())
}

/// Whether the trail has what its kept head covers: a block is durable before a head is
/// signed over it, so that no crash leaves less.
fn reaches(layout: &Layout, blocks: u64, covered: u64) -> Result<(), ReadError> {
    if blocks >= covered {
        return Ok(());
    }
    Err(ReadError::Damaged(Damage {
        code: Code::TrailShort,
        path: layout.head(),
        line: None,
        text: format!(
            "it is over {covered} blocks, and the trail has {blocks}: its segments are older than the rest of \
             its folder, or were cut. Put the newer ones back; nothing was written or removed"
        ),
    }))
}

/// Brings the last segment's files to a whole number of items.
fn recover<T: Gather>(
    layout: &Layout,
    recovery: &mut Recovery,
    progress: &mut dyn FnMut(u64),
) -> Result<(Recovered<T>, SegmentFiles), TrailError> {
    let numbers = layout
        .segment_numbers()
        .map_err(|_| ReadError::Nothing(layout.dir().to_owned()))?;
    // A copy that was made while its last segment was closed ends with that: what comes next
    // stands in another one, or its blocks would take the place of those that are there.
    let last = match numbers.last() {
        None => 0,
        Some(last) if layout.logsig(*last).exists() || layout.receipt(*last).exists() => last + 1,
        Some(last) => *last,
    };
    loop {
        let mut files = SegmentFiles::open(layout, last)?;
        let recovered = read_on_from_map::<T>(layout, progress)?;
        let view = &recovered.view;
        let whole = view.whole;
        let (blocks_magic, seals_magic) = part_magics();
        let lengths = [
            (&mut files.lines, whole.lines),
            (
                &mut files.blocks,
                whole.blocks.max(blocks_magic.len() as u64),
            ),
            (&mut files.seals, whole.seals.max(seals_magic.len() as u64)),
        ];
        for (file, whole) in lengths {
            if file.len() > whole {
                recovery.cut_bytes += file.len() - whole;
                file.truncate(whole)?;
            }
        }
        if let Some(start) = whole.unfinished_event {
            recovery.cut_event = true;
            files.lines.truncate(start)?;
        } else if let Some(lines) = whole.unwritten_block {
            recovery.rebuilt_block = true;
            let closed = build_block(
                &view.tail[..lines],
                view.last_leaf,
                "Block closed after a restart.",
            )
            .map_err(|()| TrailError::Block(view.log().size()))?;
            // No block before its lines, of which the system's memory may have more than
            // the disk.
            files.write_again(layout, recovered.known)?;
            files.blocks.append(&closed.bytes)?;
        } else {
            return Ok((recovered, files));
        }
    }
}

/// Reads the trail on from the map's newest commit; all of it, if there is
/// none, or the trail does not go on from it.
fn read_on_from_map<T: Gather>(
    layout: &Layout,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered<T>, TrailError> {
    match try_read_on::<T>(layout, progress) {
        Err(error) if error.damages_map() => {
            tracing::warn!(%error, "the map is made anew from the segments");
            forget_map(layout);
            try_read_on::<T>(layout, progress)
        }
        read => read,
    }
}

/// Removes a store that is not to be believed.
fn forget_map(layout: &Layout) {
    if let Err(error) = crate::map::discard(&OsFolder::new(layout.map())) {
        tracing::warn!(%error, "the damaged map cannot be removed");
    }
}

fn try_read_on<T: Gather>(
    layout: &Layout,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered<T>, TrailError> {
    disk::private_dir(&layout.map())?;
    let folder = OsFolder::new(layout.map());
    let opened = Store::open(folder.clone())?;
    let known = opened.and_then(|(tree, store, commit)| {
        let gathered = match commit.gathered_as == T::FORM {
            true => T::load(&commit.gathered.0),
            // Nothing is wanted, so nothing is missed.
            false if T::FORM.is_empty() => T::load(&[]),
            false => None,
        };
        Some((tree, store, commit, gathered?))
    });
    let (start, store, gathered, commit) = match known {
        Some((tree, store, commit, gathered)) => {
            let start = replay::go_on(layout, &folder, tree, commit.clone())?;
            (start, store, gathered, Some(commit))
        }
        None => {
            let (start, store) = replay::begin(&folder)?;
            (start, store, T::default(), None)
        }
    };
    let known = commit.as_ref().map_or((0, 0), |c| (c.segment, c.offset));
    let kept_as = commit.as_ref().map(|c| c.gathered_as.as_str());
    let keeps = kept_as.is_none_or(|form| form == T::FORM);
    let mut gathering = Gathering {
        layout,
        progress,
        store,
        gathered,
        holds: commit
            .as_ref()
            .map_or_else(Holds::default, |c| c.holds.clone()),
        last_line: None,
        committed: keeps.then(|| commit.as_ref().map_or(0, |commit| commit.next_seq)),
        genesis: commit.map(|commit| commit.genesis.0).unwrap_or_default(),
    };
    let view = read::read_on(layout, None, start, &mut gathering, false)?;
    let Gathering {
        store,
        gathered,
        holds,
        committed,
        genesis: genesis_line,
        ..
    } = gathering;
    let kept = T::load(&gathered.save()).unwrap_or_default();
    Ok(Recovered {
        view,
        store,
        gathered,
        kept: Box::new(kept),
        holds,
        committed,
        known,
        genesis_line,
    })
}

/// Joins a closed segment's parts into its log signature.
fn finish_segment(layout: &Layout, number: u32) -> Result<(), TrailError> {
    let (blocks_path, seals_path) = (layout.blocks(number), layout.seals(number));
    let blocks = std::fs::read(&blocks_path).at(&blocks_path, "cannot read")?;
    let seals = std::fs::read(&seals_path).at(&seals_path, "cannot read")?;
    let integrated = logsig::integrate(&blocks, &seals).map_err(|e| {
        ReadError::Damaged(read::Damage {
            code: pitser_evidence::Code::SealInvalid,
            path: blocks_path.clone(),
            line: None,
            text: e.to_string(),
        })
    })?;
    disk::replace(&layout.logsig(number), &integrated.bytes)?;
    remove_parts(layout, number)?;
    Ok(())
}

/// Removes the parts that a segment's log signature has replaced.
fn remove_parts(layout: &Layout, number: u32) -> Result<(), DiskError> {
    remove_all(&layout.parts(number))
}

/// A map that is there until another one was made; it comes back when that fails.
struct Aside {
    map: PathBuf,
    beside: PathBuf,
    is_discarded: bool,
}

impl Aside {
    fn put(map: PathBuf) -> Result<Self, DiskError> {
        let beside = map.with_added_extension("before");
        remove_all(&beside)?;
        match std::fs::rename(&map, &beside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.at(&map, "cannot rename")?,
        }
        Ok(Self {
            map,
            beside,
            is_discarded: false,
        })
    }

    fn discard(mut self) -> Result<(), DiskError> {
        self.is_discarded = true;
        remove_all(&self.beside)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.is_discarded || !self.beside.exists() {
            return;
        }
        let back = remove_all(&self.map).and_then(|()| {
            let renamed = std::fs::rename(&self.beside, &self.map);
            renamed.at(&self.beside, "cannot rename")
        });
        if let Err(error) = back {
            tracing::warn!(%error, "the map as it was is not put back; the next start makes it anew");
        }
    }
}

fn remove_all(folder: &Path) -> Result<(), DiskError> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at(folder, "cannot remove"),
    }
}

pub(crate) fn take_lock(layout: &Layout) -> Result<Lock, TrailError> {
    let path = layout.lock();
    disk::lock(&path)?.ok_or(TrailError::Locked(path))
}
