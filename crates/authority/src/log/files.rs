//! The log's files, and how they follow the calendar.
//!
//! | file        | content                                                       |
//! |-------------|---------------------------------------------------------------|
//! | `state`     | how far the files below can be relied on after a crash        |
//! | `level-0`   | 32 bytes for each entry: its leaf hash                        |
//! | `level-1`   | 32 bytes for each 256 entries; and so on up to `level-4`      |
//!
//! These are the levels of hash tiles: a tile, full or partial, is one stretch of
//! one file, and ten years are 10.1 GB in five files. As files of their own they
//! would be 2.5 million inodes, each partial tile of the last minutes written
//! again and again. Entries are not stored: they are read from the calendar.
//!
//! Nothing here is synced before anybody is answered. Every [`SYNC_EVERY`]
//! entries the files are synced and `state` is replaced, durably; a crash takes
//! what came after, and it is computed again from the calendar.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use pitser_disk::{Access, replace, write_again};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_ksi::time::Second;
use pitser_tlog::merkle::{self, Frontier, Hash, Nodes, OutOfRange, leaf_hash, node_hash};
use pitser_tlog::tiles::{Content, FULL_WIDTH, Tile, encode_bundle};

use super::{LogError, io_error};
use crate::calendar::{CalendarReader, Walk};

/// The log as anybody may read it. Shared by the keeper and the site.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    calendar: CalendarReader,
    levels: Vec<File>,
    /// Entries whose hashes are written. Raised by the follower alone, after the
    /// nodes above them were written.
    size: AtomicU64,
}

/// Brings the files up to the calendar; the only one that writes them.
#[derive(Debug)]
pub(super) struct Follower {
    files: Arc<Files>,
    origin: String,
    /// What is needed to go on; `None` after a failure, and read again.
    edge: Option<Edge>,
    /// Entries that `state` vouches for.
    synced: u64,
    /// Making those after them durable failed: the system takes some for written.
    is_unsure: bool,
}

#[derive(Debug)]
struct Edge {
    walk: Walk,
    frontier: Frontier,
}

impl Files {
    /// The calendar's first second, which entry 0 is about.
    pub(super) fn genesis(&self) -> Second {
        self.calendar.genesis()
    }

    /// Entries that are in the log.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Entries that the log ought to have: one for each second of the calendar.
    pub(super) fn due(&self) -> u64 {
        let head = self.calendar.head();
        head.map_or(0, |head| head.since(self.genesis()) + 1)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry of `at`; the calendar must have it.
    pub(super) fn entry(&self, at: Second) -> Result<CalendarEntry, LogError> {
        let entries = self.calendar.walk(at)?.take(1)?;
        entries.first().copied().ok_or(LogError::OutOfRange)
    }

    /// The file of a tile, or `None` if the log does not have it.
    pub(super) fn tile(&self, tile: Tile) -> Result<Option<Vec<u8>>, LogError> {
        let there = Tile::at_size(tile.content(), tile.index(), self.size());
        if there.is_none_or(|there| there.width() < tile.width()) {
            return Ok(None);
        }
        let first = tile.index() * u64::from(FULL_WIDTH);
        match tile.content() {
            Content::Hashes(level) => {
                let mut bytes = vec![0; usize::from(tile.width()) * HASH as usize];
                self.read(level, first, &mut bytes)?;
                Ok(Some(bytes))
            }
            Content::Entries => {
                let mut walk = self.calendar.walk(self.genesis().plus(first))?;
                let entries = walk.take(tile.width().into())?;
                let entries: Vec<_> = entries.iter().map(CalendarEntry::encode).collect();
                let bundle = encode_bundle(entries.iter().map(<[u8; _]>::as_slice));
                Ok(Some(bundle.map_err(|_| LogError::OutOfRange)?))
            }
        }
    }

    fn read(&self, level: u8, first: u64, bytes: &mut [u8]) -> Result<(), LogError> {
        let file = self.levels.get(usize::from(level)).ok_or(OutOfRange)?;
        file.read_exact_at(bytes, first * HASH)
            .map_err(io_error("read", &self.path(level)))
    }

    fn write(&self, level: u8, first: u64, bytes: &[u8]) -> Result<(), LogError> {
        self.levels[usize::from(level)]
            .write_all_at(bytes, first * HASH)
            .map_err(io_error("write", &self.path(level)))
    }

    fn path(&self, level: u8) -> PathBuf {
        self.dir.join(file_name(level))
    }
}

/// Complete nodes of the tree over the entries that are written. A node between
/// two stored levels is folded from at most 128 neighbours.
impl Nodes for Files {
    type Error = LogError;

    fn node(&self, level: u8, index: u64) -> Result<Hash, LogError> {
        let (stored, above) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        let count = 1usize << above;
        let mut bytes = vec![0; count * HASH as usize];
        let first = index.checked_shl(above.into()).ok_or(OutOfRange)?;
        self.read(stored, first, &mut bytes)?;
        let (hashes, _) = bytes.as_chunks();
        Ok(fold(hashes.to_vec()))
    }
}

impl Follower {
    /// Opens the log of `calendar` in `dir`, and finds out how much of it can be
    /// relied on; what is missing comes with [`Follower::grow`].
    ///
    /// # Errors
    /// [`LogError::Contradicted`] if the log knows seconds that the calendar does
    /// not have, or has otherwise; [`LogError::OtherOrigin`]; [`LogError::Io`].
    pub(super) fn open(
        dir: &Path,
        calendar: CalendarReader,
        origin: &str,
    ) -> Result<Self, LogError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let levels = (0..LEVELS)
            .map(|level| {
                let path = dir.join(file_name(level));
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                options.open(&path).map_err(io_error("open", &path))
            })
            .collect::<Result<_, _>>()?;
        let files = Files {
            dir: dir.to_owned(),
            calendar,
            levels,
            size: AtomicU64::new(0),
        };
        let synced = relied_on(&files, origin)?;
        files.size.store(synced, Ordering::Release);
        Ok(Self {
            files: Arc::new(files),
            origin: origin.to_owned(),
            edge: None,
            synced,
            is_unsure: false,
        })
    }

    pub(super) fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// Appends the entries of the next seconds, at most [`CHUNK`] of them;
    /// returns how many. The calendar holds them durably.
    ///
    /// # Errors
    /// [`LogError`]; the log is as it was, and it may be tried again.
    pub(super) fn grow(&mut self) -> Result<u64, LogError> {
        let mut edge = match self.edge.take() {
            Some(edge) => edge,
            None => self.edge()?,
        };
        let entries = edge.walk.take(CHUNK)?;
        let mut leaves = Vec::with_capacity(entries.len() * HASH as usize);
        for entry in &entries {
            let leaf = leaf_hash(&entry.encode());
            leaves.extend_from_slice(&leaf);
            edge.frontier.push(leaf);
        }
        let old = self.files.size();
        let new = old + entries.len() as u64;
        self.files.write(0, old, &leaves)?;
        self.complete(old, new)?;
        self.files.size.store(new, Ordering::Release);
        // Only now: a failure leaves it to be read again from the files.
        self.edge = Some(edge);
        let is_behind = new < self.files.due();
        let pace = if is_behind { SYNC_BEHIND } else { SYNC_EVERY };
        if new - self.synced >= pace {
            self.sync()?;
        }
        Ok(new - old)
    }

    /// The root over all entries.
    pub(super) fn root(&self) -> Result<Hash, LogError> {
        match &self.edge {
            Some(edge) => Ok(edge.frontier.root()),
            None => merkle::root(&*self.files, self.files.size()),
        }
    }

    /// Makes the files durable up to here, and says so in `state`.
    ///
    /// # Errors
    /// [`LogError::Io`]; `state` is as it was.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        let size = self.files.size();
        if size == self.synced {
            return Ok(());
        }
        let root = self.root()?;
        let again = std::mem::replace(&mut self.is_unsure, true);
        for (level, file) in (0..).zip(&self.files.levels) {
            let first = self.synced >> (u32::from(level) * u32::from(TILE_HEIGHT));
            let durable = match again {
                true => write_again(file, first * HASH),
                false => file.sync_data(),
            };
            durable.map_err(io_error("sync", &self.files.path(level)))?;
        }
        self.is_unsure = false;
        let state = State {
            origin: self.origin.clone(),
            genesis: self.files.genesis(),
            size,
            root,
        };
        let path = self.files.dir.join(STATE);
        replace(&path, state.to_string().as_bytes(), Access::Everybody)
            .map_err(io_error("write", &path))?;
        self.synced = size;
        Ok(())
    }

    fn edge(&self) -> Result<Edge, LogError> {
        let size = self.files.size();
        let mut nodes = Vec::new();
        let mut before = 0u64;
        for level in (0..64u8).rev().filter(|level| size >> level & 1 == 1) {
            nodes.push(self.files.node(level, before >> level)?);
            before += 1 << level;
        }
        Ok(Edge {
            walk: self.files.calendar.walk(self.files.genesis().plus(size))?,
            frontier: Frontier::from_parts(size, nodes)?,
        })
    }

    /// Writes the nodes that became complete between two sizes.
    fn complete(&self, old: u64, new: u64) -> Result<(), LogError> {
        for level in 1..LEVELS {
            let width = u32::from(level * TILE_HEIGHT);
            for index in old >> width..new >> width {
                let node = self.files.children(level, index)?;
                self.files.write(level, index, &node)?;
            }
        }
        Ok(())
    }
}

impl Files {
    /// A stored node, computed from the 256 below it.
    fn children(&self, level: u8, index: u64) -> Result<Hash, LogError> {
        let mut bytes = vec![0; usize::from(FULL_WIDTH) * HASH as usize];
        self.read(level - 1, index * u64::from(FULL_WIDTH), &mut bytes)?;
        let (hashes, _) = bytes.as_chunks();
        Ok(fold(hashes.to_vec()))
    }
}

/// How many entries of the files can be relied on: those that `state` vouches
/// for, if its root is theirs; otherwise none.
fn relied_on(files: &Files, origin: &str) -> Result<u64, LogError> {
    let path = files.dir.join(STATE);
    let state = match fs::read_to_string(&path) {
        Ok(text) => State::parse(&text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(io_error("read", &path)(e)),
    };
    let Some(state) = state.filter(|state| state.genesis == files.genesis()) else {
        tracing::warn!(path = %path.display(), "no state of this log: it is computed again");
        return Ok(0);
    };
    if state.origin != origin {
        return Err(LogError::OtherOrigin {
            dir: files.dir.clone(),
            found: state.origin,
            configured: origin.to_owned(),
        });
    }
    let contradicted = LogError::Contradicted {
        dir: files.dir.clone(),
        size: state.size,
    };
    let Some(last) = state.size.checked_sub(1) else {
        return Ok(0);
    };
    if state.size > files.due() {
        return Err(contradicted);
    }
    match merkle::root(files, state.size) {
        Ok(root) if root == state.root => {}
        Ok(_) | Err(LogError::Io { .. }) => {
            tracing::warn!(dir = %files.dir.display(), "the log's files are damaged: it is computed again");
            return Ok(0);
        }
        Err(e) => return Err(e),
    }
    // An entry holds the calendar's root, hence says everything about the past.
    let entry = files.entry(files.genesis().plus(last))?;
    match files.node(0, last)? == leaf_hash(&entry.encode()) {
        true => Ok(state.size),
        false => Err(contradicted),
    }
}

/// What the file `state` says.
struct State {
    origin: String,
    genesis: Second,
    size: u64,
    root: Hash,
}

impl State {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != VERSION {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let origin = field("origin")?.to_owned();
        let genesis = Second(field("genesis")?.parse().ok()?);
        let size = field("size")?.parse().ok()?;
        let root = HEXLOWER.decode(field("root")?.as_bytes()).ok()?;
        let state = Self {
            origin,
            genesis,
            size,
            root: root.try_into().ok()?,
        };
        (state.to_string() == text).then_some(state)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let root = HEXLOWER.encode(&self.root);
        write!(
            f,
            "{VERSION}\norigin {}\ngenesis {}\nsize {}\nroot {root}\n",
            self.origin, self.genesis.0, self.size
        )
    }
}

/// The root over a power of two of neighbours.
fn fold(mut row: Vec<Hash>) -> Hash {
    while row.len() > 1 {
        let (pairs, _) = row.as_chunks();
        row = pairs.iter().map(|[l, r]| node_hash(l, r)).collect();
    }
    row[0]
}

fn file_name(level: u8) -> String {
    format!("level-{level}")
}

const STATE: &str = "state";
const VERSION: &str = "pitser calendar log 1";

/// Bytes of a hash.
const HASH: u64 = 32;

/// Tree levels between two files.
const TILE_HEIGHT: u8 = 8;

/// Files: a calendar has at most 2^36 seconds, fewer than 256^5.
const LEVELS: u8 = 5;

/// Entries appended in one go.
pub(super) const CHUNK: u64 = 4096;

/// Entries after which the files are synced, about an hour.
const SYNC_EVERY: u64 = 4096;

/// The same while there is much to catch up with.
const SYNC_BEHIND: u64 = 1 << 20;
