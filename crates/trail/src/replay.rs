//! Reading somebody else's trail again and again, on a map of one's own: from
//! where the last reading ended, without its keys and without writing to it.
//!
//! What was read is kept as the trail's writer keeps it (`map/mod.rs`), in the
//! folder that [`Layout::with_map`] names. It is as good as the reader's own
//! disk: blocks before its newest commit are not read again.

use crate::disk;
use crate::hold::Holds;
use crate::index::Index;
use crate::layout::Layout;
use crate::map::{self, Commit, DiskMap, DiskPages, MapError, OsFolder, Store};
use crate::read::{self, Follow, Place, ReadError, Start, View};
use crate::write::{COMMIT_LINES, PROGRESS_LINES, commit_map};
use pitser_evidence::Code;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::line::{Line, Op};
use pitser_ksi::time::Second;

/// What is kept in another form is read again: it lacks marks of findings.
const FORM: &str = "replay 2";

/// Follows a replay.
pub trait Watch {
    /// So many lines of the trail are read.
    fn lines(&mut self, lines: u64);

    /// Seals of the blocks before this one are not to be judged again, if their blocks
    /// are not read again. One that comes later is, wherever its block is.
    fn judged(&self) -> u64 {
        0
    }

    /// When the last of those blocks was sealed: those that follow were not before.
    fn judged_at(&self) -> Option<Second> {
        None
    }

    /// The mapping from tables to patients that block `block` was closed under.
    fn mapping(&mut self, block: u64, mapping: Digest) {
        let _ = (block, mapping);
    }

    /// Line `seq` says that capture was interrupted, or weakened.
    fn hole(&mut self, seq: u64) {
        let _ = seq;
    }

    /// The seal of a block, consistent in itself and with the block.
    ///
    /// # Errors
    /// What else is wrong with it: the replay ends.
    fn seal(&mut self, leaf: &LogLeaf, seal: &[u8]) -> Result<(), String>;
}

/// What a replay came to.
#[derive(Debug)]
pub struct Replayed {
    /// The trail as of the last block that was asked for, or its end.
    pub view: View<DiskPages<OsFolder>>,
    /// How many blocks were known from earlier replays, and not read again.
    pub known: u64,
}

/// Reads the first `blocks` blocks of a trail, and keeps what was read if there
/// are so many. Asking for fewer than were kept reads all of them again.
///
/// # Errors
/// [`ReadError`]. After [`ReadError::Damaged`] and [`ReadError::Map`] the trail
/// may only differ from what was kept: [`forget`] that, and replay again.
pub fn replay(layout: &Layout, blocks: u64, watch: &mut dyn Watch) -> Result<Replayed, ReadError> {
    disk::private_dir(&layout.map())?;
    let folder = OsFolder::new(layout.map());
    let opened = Store::open(folder.clone())?;
    let goes_on = |commit: &Commit| commit.blocks <= blocks && commit.gathered_as == FORM;
    let (start, store) = match opened.filter(|(_, _, commit)| goes_on(commit)) {
        Some((tree, store, commit)) => (go_on(layout, &folder, tree, commit)?, store),
        None => begin(&folder)?,
    };
    let commit = start.commit.as_ref().map(|(commit, _)| commit);
    let known = commit.map_or(0, |commit| commit.blocks);
    let genesis = commit.map(|commit| commit.genesis.0.clone());
    let mut keeping = Keeping {
        layout,
        watch,
        store,
        committed: commit.map_or(0, |commit| commit.next_seq),
        genesis: genesis.unwrap_or_default(),
        last_line: None,
        ends_at: None,
    };
    let mut view = read::read_on(layout, Some(blocks), start, &mut keeping, false)?;
    // With fewer, lines after the last block were read too.
    if view.log().size() == blocks
        && let Some((segment, offset)) = keeping.ends_at
    {
        keeping.commit(&mut view, segment, offset)?;
    }
    Ok(Replayed { view, known })
}

/// Removes what earlier replays kept.
///
/// # Errors
/// [`MapError::Disk`].
pub fn forget(layout: &Layout) -> Result<(), MapError> {
    disk::private_dir(&layout.map())?;
    map::discard(&OsFolder::new(layout.map()))
}

/// To read on from `commit`, if the segments hold the line that it ends with.
pub(crate) fn go_on(
    layout: &Layout,
    folder: &OsFolder,
    tree: DiskMap,
    commit: Commit,
) -> Result<Start<DiskPages<OsFolder>>, ReadError> {
    let index = Index::open(folder, commit.blocks, commit.next_seq, true)?;
    let commit = read::ends_with(layout, &index, commit)?;
    Ok(Start {
        tree,
        index,
        commit: Some(commit),
    })
}

/// To read from the genesis on, in place of whatever is in `folder`.
pub(crate) fn begin(
    folder: &OsFolder,
) -> Result<(Start<DiskPages<OsFolder>>, Store<OsFolder>), ReadError> {
    let (tree, store) = Store::begin(folder.clone())?;
    let start = Start {
        tree,
        index: Index::begin(folder)?,
        commit: None,
    };
    Ok((start, store))
}

/// Makes commits while the trail is read.
struct Keeping<'a> {
    layout: &'a Layout,
    watch: &'a mut dyn Watch,
    store: Store<OsFolder>,
    /// Line after the newest commit.
    committed: u64,
    /// The genesis line's bytes.
    genesis: Vec<u8>,
    last_line: Option<Digest>,
    /// Segment and offset after the last block.
    ends_at: Option<(u32, u64)>,
}

impl Keeping<'_> {
    fn commit(
        &mut self,
        view: &mut View<DiskPages<OsFolder>>,
        segment: u32,
        offset: u64,
    ) -> Result<(), ReadError> {
        let Some(last_line) = self.last_line else {
            return Ok(());
        };
        let commit = Commit {
            blocks: view.index.blocks(),
            next_seq: view.state.next_seq(),
            segment,
            offset,
            last_line,
            root: Bytes32([0; 32]),
            genesis: Blob(self.genesis.clone()),
            gathered: Blob(Vec::new()),
            gathered_as: FORM.to_owned(),
            // Whoever reads somebody else's trail has no use for a list of them.
            holds: Holds::default(),
        };
        self.committed = commit.next_seq;
        let blocks = commit.blocks;
        commit_map(
            self.layout,
            &mut view.state,
            &mut view.index,
            &mut self.store,
            commit,
        )?;
        // Nobody reads beside a replay: what the commit does without can go.
        self.store.covers(view.state.storage_mut(), blocks);
        Ok(())
    }
}

impl Follow<DiskPages<OsFolder>> for Keeping<'_> {
    fn line(&mut self, line: &Line, _: Place) {
        match line.op {
            Op::Genesis => self.genesis = line.encode(),
            // A block ends with one, and commits are made there.
            Op::Checkpoint => self.last_line = Some(Line::hash(&line.encode())),
            _ => {}
        }
        if let Some(checkpoint) = &line.checkpoint {
            self.watch.mapping(checkpoint.block, checkpoint.mapping);
        }
        let code = line.finding.as_ref().map(|finding| finding.code);
        let is_hole = matches!(
            code,
            Some(Code::CaptureGap | Code::DatabaseRewound | Code::CaptureWeakened)
        );
        if is_hole || line.op == Op::Gap {
            self.watch.hole(line.seq);
        }
        if line.seq.is_multiple_of(PROGRESS_LINES) {
            self.watch.lines(line.seq);
        }
    }

    fn block(
        &mut self,
        view: &mut View<DiskPages<OsFolder>>,
        segment: u32,
        offset: u64,
    ) -> Result<(), ReadError> {
        self.ends_at = Some((segment, offset));
        if view.state.next_seq() - self.committed < 3 * COMMIT_LINES {
            return Ok(());
        }
        self.commit(view, segment, offset)
    }

    fn judged(&self) -> Option<u64> {
        Some(self.watch.judged())
    }

    fn judged_at(&self) -> Option<Second> {
        self.watch.judged_at()
    }

    fn seal(&mut self, leaf: &LogLeaf, seal: &[u8]) -> Result<(), String> {
        self.watch.seal(leaf, seal)
    }
}
