//! The files of a calendar, and their recovery. Layout in the parent module.
//!
//! What a crash can leave behind, and what `open` does about it:
//!
//! | left behind                                  | done                          |
//! |----------------------------------------------|-------------------------------|
//! | part of an entry at the end of a file        | cut to whole entries          |
//! | zero bytes where unacknowledged entries were | cut where they begin          |
//! | entries in the system's memory alone, since  | written again before they     |
//! | making them durable failed                   | count                         |
//! | node files behind, ahead or torn             | their tail is computed again  |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pitser_disk::{Access, Lock, replace, write_again};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::time::Second;

use super::tree::{self, Nodes};
use super::{CalendarError, zero_leaf};

/// Bytes of one SHA-256 imprint.
pub(super) const ENTRY: u64 = 33;
/// A stored node has 2^4 stored children.
pub(super) const STEP: u8 = 4;
const FANOUT: u64 = 1 << STEP;
/// The highest stored level; one node of it covers 136 years.
const TOP: u8 = 32;
/// Levels of the tree that can occur: [`super::Calendar::LAST`] has 36 bits.
const LEVELS: usize = 37;
/// Entries written between two syncs while a gap is filled. A crash can leave no
/// more than this many entries, and the nodes above them, in an unknown state.
const CHUNK: u64 = 4096;

const FORMAT: &str = "format";
const VERSION: &str = "pitser calendar 1";

#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    genesis: Second,
    /// `level-00`, `level-04`, ... `level-32`.
    levels: Vec<File>,
    /// Durable entries of `level-00`. Raised by the writer alone, after the nodes
    /// above them were written; so whatever a reader may ask for is there.
    seconds: AtomicU64,
    /// Roots of perfect trees of zero leaves, by level.
    zeros: [Imprint; LEVELS],
}

impl Files {
    pub(super) fn create(dir: &Path, genesis: Second) -> Result<(), CalendarError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let entries = dir.join(file_name(0));
        match File::create_new(&entries) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                return Err(CalendarError::Exists {
                    dir: dir.to_owned(),
                });
            }
            Err(e) => return Err(io_error("create", &entries)(e)),
        }
        for level in stored_levels().skip(1) {
            let nodes = dir.join(file_name(level));
            File::create(&nodes).map_err(io_error("create", &nodes))?;
        }
        let text = format!("{VERSION}\ngenesis {}\nalgorithm SHA-256\n", genesis.0);
        replace(&dir.join(FORMAT), text.as_bytes(), Access::Everybody)
            .map_err(io_error("write", &dir.join(FORMAT)))
    }

    /// Opens the files for their only writer, which is who has the lock.
    pub(super) fn open(dir: &Path) -> Result<(Self, Lock), CalendarError> {
        let genesis = read_format(dir)?;
        let lock = lock(dir)?;
        let levels = stored_levels()
            .map(|level| {
                let path = dir.join(file_name(level));
                let mut options = OpenOptions::new();
                // Nodes can be made again; entries cannot.
                options.read(true).write(true).create(level > 0);
                options.open(&path).map_err(io_error("open", &path))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut files = Self {
            dir: dir.to_owned(),
            genesis,
            levels,
            seconds: AtomicU64::new(0),
            zeros: zero_nodes(),
        };
        files.recover()?;
        Ok((files, lock))
    }

    /// Opens the files to read what is there, beside the process that writes, if any.
    ///
    /// What a writer has not finished yet is not seen: as many seconds are there as
    /// all complete nodes are there for.
    pub(super) fn open_beside(dir: &Path) -> Result<Self, CalendarError> {
        let genesis = read_format(dir)?;
        let levels = stored_levels()
            .map(|level| {
                let path = dir.join(file_name(level));
                File::open(&path).map_err(io_error("open", &path))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let files = Self {
            dir: dir.to_owned(),
            genesis,
            levels,
            seconds: AtomicU64::new(0),
            zeros: zero_nodes(),
        };
        // Entries first: nodes that are counted later are there for them, or soon.
        let entries = files.whole_entries(0)?;
        let mut seconds = entries;
        for level in stored_levels().skip(1) {
            let nodes = files.whole_entries(level)?;
            if nodes < files.node_count(level, seconds) {
                let next = ((genesis.0 >> level) + nodes + 1) << level;
                seconds = next - 1 - genesis.0;
            }
        }
        // A writer is behind by one write at most. Whoever shortened a file of nodes
        // would hide seconds from the audit.
        if entries - seconds > CHUNK + FANOUT {
            let behind = stored_levels().skip(1).find(|level| {
                files.whole_entries(*level).unwrap_or(0) < files.node_count(*level, entries)
            });
            let level = behind.unwrap_or(STEP);
            return Err(files.corrupt(level, files.whole_entries(level)?));
        }
        files.seconds.store(seconds, Ordering::Release);
        Ok(files)
    }

    pub(super) fn seconds(&self) -> u64 {
        self.seconds.load(Ordering::Acquire)
    }

    pub(super) fn stored_levels() -> impl Iterator<Item = u8> {
        stored_levels()
    }

    pub(super) fn genesis(&self) -> Second {
        self.genesis
    }

    pub(super) fn head(&self) -> Option<Second> {
        match self.seconds.load(Ordering::Acquire) {
            0 => None,
            seconds => Some(Second(self.genesis.0 + seconds - 1)),
        }
    }

    /// The leaf of `at`, which must not be after the head.
    pub(super) fn leaf(&self, at: Second) -> Result<Imprint, CalendarError> {
        self.node(0, at.0)
    }

    /// Writes zero leaves up to `at`, then `root`. The caller checked the order.
    pub(super) fn append(&self, at: Second, root: Imprint) -> Result<(), CalendarError> {
        let mut written = self.seconds.load(Ordering::Acquire);
        let target = at.0 - self.genesis.0;
        // The gap is made durable before the root, so that after a crash only a
        // run of zero leaves, or one last entry, can be in doubt.
        while written < target {
            let count = (target - written).min(CHUNK);
            self.write_entries(written, zero_leaf().as_bytes().repeat(count as usize))?;
            written += count;
        }
        self.write_entries(written, root.as_bytes().to_vec())
    }

    /// Writes `leaves` behind the head.
    pub(super) fn extend(&self, leaves: &[Imprint]) -> Result<(), CalendarError> {
        for chunk in leaves.chunks(CHUNK as usize) {
            let written = self.seconds.load(Ordering::Acquire);
            let bytes = chunk.iter().flat_map(|leaf| leaf.as_bytes()).copied();
            self.write_entries(written, bytes.collect())?;
        }
        Ok(())
    }

    /// Writes whole entries behind the first `written`, and the nodes they complete.
    fn write_entries(&self, written: u64, bytes: Vec<u8>) -> Result<(), CalendarError> {
        let seconds = written + bytes.len() as u64 / ENTRY;
        self.write(0, written, &bytes)?;
        self.complete_nodes(seconds, |level| self.node_count(level, written))?;
        self.seconds.store(seconds, Ordering::Release);
        Ok(())
    }

    /// Brings every node file to what `seconds` entries demand; `have` says how
    /// many nodes of a level can be relied on.
    fn complete_nodes(&self, seconds: u64, have: impl Fn(u8) -> u64) -> Result<(), CalendarError> {
        for level in stored_levels().skip(1) {
            let first = self.genesis.0 >> level;
            let (mut have, want) = (have(level), self.node_count(level, seconds));
            while have < want {
                let count = (want - have).min(CHUNK);
                let mut bytes = Vec::with_capacity((count * ENTRY) as usize);
                for index in first + have..first + have + count {
                    let children = self.row(level - STEP, index << STEP, FANOUT)?;
                    bytes.extend_from_slice(tree::fold(children).as_bytes());
                }
                self.write(level, have, &bytes)?;
                have += count;
            }
        }
        Ok(())
    }

    /// Nodes of a stored level that are complete when `seconds` entries are there.
    pub(super) fn node_count(&self, level: u8, seconds: u64) -> u64 {
        ((self.genesis.0 + seconds) >> level) - (self.genesis.0 >> level)
    }

    /// `count` neighbouring nodes of a stored level, all of them complete.
    pub(super) fn row(
        &self,
        level: u8,
        index: u64,
        count: u64,
    ) -> Result<Vec<Imprint>, CalendarError> {
        let first = self.genesis.0 >> level;
        let before = first.saturating_sub(index).min(count);
        let mut row = vec![self.zeros[usize::from(level)]; before as usize];
        if before < count {
            let at = index + before - first;
            let mut bytes = vec![0; ((count - before) * ENTRY) as usize];
            self.file(level)
                .read_exact_at(&mut bytes, at * ENTRY)
                .map_err(|e| self.io_error("read", level, e))?;
            for (i, entry) in bytes.chunks_exact(ENTRY as usize).enumerate() {
                row.push(self.entry(level, at + i as u64, entry)?);
            }
        }
        Ok(row)
    }

    fn entry(&self, level: u8, position: u64, bytes: &[u8]) -> Result<Imprint, CalendarError> {
        if !is_entry(bytes) {
            return Err(self.corrupt(level, position));
        }
        Imprint::from_bytes(bytes).map_err(|_| self.corrupt(level, position))
    }

    /// Writes and syncs one file.
    fn write(&self, level: u8, position: u64, bytes: &[u8]) -> Result<(), CalendarError> {
        let file = self.file(level);
        file.write_all_at(bytes, position * ENTRY)
            .and_then(|()| file.sync_data())
            .map_err(|e| self.io_error("write", level, e))
    }

    fn recover(&mut self) -> Result<(), CalendarError> {
        let seconds = self.recover_entries()?;
        // The tail of every node file is made again: it may be torn.
        let mut stored = Vec::new();
        for level in stored_levels() {
            stored.push(self.whole_entries(level)?);
        }
        let trusted = |level: u8| {
            stored[usize::from(level / STEP)]
                .min(self.node_count(level, seconds))
                .saturating_sub((CHUNK >> level) + 1)
        };
        for level in stored_levels().skip(1) {
            self.truncate(level, trusted(level))?;
        }
        self.complete_nodes(seconds, trusted)?;
        self.seconds.store(seconds, Ordering::Release);
        Ok(())
    }

    /// Cuts off what a crash left of unacknowledged entries; counts the others.
    fn recover_entries(&self) -> Result<u64, CalendarError> {
        let stored = self.whole_entries(0)?;
        let from = stored.saturating_sub(CHUNK);
        let mut bytes = vec![0; ((stored - from) * ENTRY) as usize];
        self.file(0)
            .read_exact_at(&mut bytes, from * ENTRY)
            .map_err(|e| self.io_error("read", 0, e))?;
        let entries: Vec<&[u8]> = bytes.chunks_exact(ENTRY as usize).collect();
        let good = entries.iter().take_while(|entry| is_entry(entry)).count();
        let zero = zero_leaf();
        // A crash leaves holes among zero leaves only. Anything else behind a bad
        // entry was acknowledged: that is damage, and not ours to cut.
        if entries[good..]
            .iter()
            .any(|entry| is_entry(entry) && *entry != zero.as_bytes())
        {
            return Err(self.corrupt(0, from + good as u64));
        }
        let seconds = from + good as u64;
        self.truncate(0, seconds)?;
        write_again(self.file(0), from * ENTRY).map_err(|e| self.io_error("write", 0, e))?;
        Ok(seconds)
    }

    fn whole_entries(&self, level: u8) -> Result<u64, CalendarError> {
        let metadata = self
            .file(level)
            .metadata()
            .map_err(|e| self.io_error("look at", level, e))?;
        Ok(metadata.len() / ENTRY)
    }

    fn truncate(&self, level: u8, entries: u64) -> Result<(), CalendarError> {
        let (file, len) = (self.file(level), entries * ENTRY);
        let cut = || match file.metadata()?.len() {
            found if found == len => Ok(()),
            _ => file.set_len(len).and_then(|()| file.sync_all()),
        };
        cut().map_err(|e| self.io_error("truncate", level, e))
    }

    /// Compares a stored node with the one that its stored children give.
    pub(super) fn check_node(&self, level: u8, position: u64) -> Result<(), CalendarError> {
        let index = (self.genesis.0 >> level) + position;
        let children = self.row(level - STEP, index << STEP, FANOUT)?;
        match self.row(level, index, 1)?.as_slice() {
            [stored] if *stored == tree::fold(children) => Ok(()),
            _ => Err(self.corrupt(level, position)),
        }
    }

    fn file(&self, level: u8) -> &File {
        &self.levels[usize::from(level / STEP)]
    }

    fn path(&self, level: u8) -> PathBuf {
        self.dir.join(file_name(level))
    }

    fn io_error(&self, action: &'static str, level: u8, source: io::Error) -> CalendarError {
        CalendarError::Io {
            action,
            path: self.path(level),
            source,
        }
    }

    pub(super) fn corrupt(&self, level: u8, position: u64) -> CalendarError {
        CalendarError::Corrupt {
            path: self.path(level),
            at: position * ENTRY,
        }
    }
}

impl Nodes for Files {
    type Error = CalendarError;

    fn node(&self, level: u8, index: u64) -> Result<Imprint, CalendarError> {
        if (index + 1) << level <= self.genesis.0 {
            return Ok(self.zeros[usize::from(level)]);
        }
        let stored = (level - level % STEP).min(TOP);
        let above = level - stored;
        Ok(tree::fold(self.row(stored, index << above, 1 << above)?))
    }
}

fn stored_levels() -> impl Iterator<Item = u8> {
    (0..=TOP).step_by(usize::from(STEP))
}

fn file_name(level: u8) -> String {
    format!("level-{level:02}")
}

fn is_entry(bytes: &[u8]) -> bool {
    bytes.first() == Some(&Algorithm::Sha256.id())
}

fn zero_nodes() -> [Imprint; LEVELS] {
    let mut zeros = [zero_leaf(); LEVELS];
    for level in 1..LEVELS {
        zeros[level] = tree::parent(&zeros[level - 1], &zeros[level - 1]);
    }
    zeros
}

fn read_format(dir: &Path) -> Result<Second, CalendarError> {
    let path = dir.join(FORMAT);
    let not = |reason: &str| CalendarError::NotACalendar {
        dir: dir.to_owned(),
        reason: reason.to_owned(),
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(not("no file named format")),
        Err(e) => return Err(io_error("read", &path)(e)),
    };
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Err(not("another version"));
    }
    let genesis = lines
        .next()
        .and_then(|line| line.strip_prefix("genesis "))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| not("no genesis second"))?;
    if lines.next() != Some("algorithm SHA-256") || Second(genesis) > super::Calendar::LAST {
        return Err(not("another algorithm or genesis"));
    }
    Ok(Second(genesis))
}

/// Takes the lock on a calendar's format file.
fn lock(dir: &Path) -> Result<Lock, CalendarError> {
    let path = dir.join(FORMAT);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    let lock = Lock::take(file).map_err(io_error("lock", &path))?;
    lock.ok_or_else(|| CalendarError::InUse {
        dir: dir.to_owned(),
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CalendarError {
    let path = path.to_owned();
    move |source| CalendarError::Io {
        action,
        path,
        source,
    }
}
