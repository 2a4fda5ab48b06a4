//! Commits of the map's store: made, found again, and cleaned up after.

use super::beside::ReadPages;
use super::folder::{Folder, Grows};
use super::pages::{DiskPages, PATIENTS, leaves_name, place};
use super::{Damage, LIMITS, MapError};
use crate::disk::At;
use crate::hold::Holds;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::store::{Bucket, Counts, Extent, Pages, Prefix, Storage, Tree};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::io;

const MAGIC: &[u8] = b"pitser map 1\r\n\x1a\n";
/// Buckets in one frame of a directory.
const FRAME_BUCKETS: usize = if cfg!(test) { 16 } else { 1 << 14 };
const BUCKET: usize = 8 + 1 + 8 + 32;
/// Bytes of journal before the directory is written anew, at least.
const JOURNAL_MIN: u64 = if cfg!(test) { 6 << 10 } else { 4 << 20 };
/// Replaced buckets are left where they are while they take less than this
/// part of the others, and while they are few.
const WASTE_PART: u64 = 2;
const WASTE_MIN: u64 = if cfg!(test) { 8 << 10 } else { 4 << 20 };
/// Files that are cut to what a commit says, and gone on with.
const SIDE: [&str; 4] = [PATIENTS, super::BLOCKS, super::LINES, super::LOG];
/// Bytes that are kept for readers of earlier commits, at most a half of the rest.
const RETIRED_MIN: u64 = 64 << 20;

/// Up to where the map is durable, and what else is needed to go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Number of blocks whose lines are in the map.
    pub blocks: u64,
    /// `seq` of the line that comes next.
    pub next_seq: u64,
    /// The segment where that line is, or will be, unless it begins another one.
    pub segment: u32,
    /// Where in the segment, in bytes.
    pub offset: u64,
    /// Hash of the line before it, the checkpoint of the last of these blocks.
    pub last_line: Digest,
    /// Root of the map.
    pub root: Bytes32,
    /// The genesis line.
    pub genesis: Blob,
    /// What the trail's owner gathered from the lines so far, and its form.
    pub gathered: Blob,
    /// Form of `gathered`.
    pub gathered_as: String,
    /// The holds that stand; those of a trail that has none say nothing.
    #[serde(default, skip_serializing_if = "Holds::is_empty")]
    pub holds: Holds,
}

/// The commit as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    commit: Commit,
    tables: Vec<String>,
    patients: u64,
    leaves: u64,
    pseudonyms: u32,
    buckets: u64,
}

/// What writes commits beside a tree.
#[derive(Debug)]
pub struct Store<F: Folder> {
    /// That of the newest commit.
    generation: u32,
    next_generation: u32,
    /// `None`: the next commit begins a new generation.
    journal: Option<Journal<F::File>>,
    /// Blocks of the newest commit.
    committed: Option<u64>,
    /// Files that no commit from that of so many blocks on needs.
    retired: VecDeque<Retired>,
    /// Blocks under the newest cosigned head.
    covered: u64,
}

#[derive(Debug)]
struct Journal<T> {
    file: T,
    len: u64,
    /// With more bytes, a new generation is begun.
    len_max: u64,
}

#[derive(Debug)]
struct Retired {
    blocks: u64,
    bytes: u64,
    name: String,
}

/// A map that was opened to go on, what writes its commits, and the newest one.
pub type Opened<F> = (Tree<DiskPages<F>>, Store<F>, Commit);

/// A map that was read, and its commit.
pub(crate) type Restored<P> = (Tree<P>, Commit);

/// What a commit says, before the tree is built.
struct Found<F: Folder> {
    pages: DiskPages<F>,
    written: Written<F::File>,
    generation: u32,
}

impl<F: Folder> Store<F> {
    /// Begins without leaves, in place of whatever is there.
    ///
    /// # Errors
    /// [`MapError::Disk`].
    pub fn begin(folder: F) -> Result<(Tree<DiskPages<F>>, Self), MapError> {
        discard(&folder)?;
        let store = Self {
            generation: 0,
            next_generation: 1,
            journal: None,
            committed: None,
            retired: VecDeque::new(),
            covered: 0,
        };
        Ok((Tree::new(DiskPages::new(folder, 0), LIMITS), store))
    }

    /// Opens the newest commit, to go on from there. `None` if there is none.
    ///
    /// # Errors
    /// [`MapError::Damaged`] if the store is not what was written.
    pub fn open(folder: F) -> Result<Option<Opened<F>>, MapError> {
        let names = names(&folder)?;
        let last = |prefix| numbers(&names, prefix).last().copied();
        let next_file = last("leaves-").map_or(0, |last| last + 1);
        let newest = last("directory-").max(last("journal-")).unwrap_or(0);
        let Some(found) = find(folder, u64::MAX, next_file)? else {
            return Ok(None);
        };
        let generation = found.generation;
        let count = found.written.record.pseudonyms;
        let (mut tree, commit) = restore(found, |pages| pages, |pages| Some(pages))?;
        let pages = tree.pages_mut();
        pages.adopt_pseudonyms(count, true)?;
        let mut store = Self {
            generation,
            next_generation: newest + 1,
            journal: None,
            committed: Some(commit.blocks),
            retired: VecDeque::new(),
            covered: 0,
        };
        store.retire_unknown(pages, &names, commit.blocks);
        Ok(Some((tree, store, commit)))
    }

    /// Blocks of the newest commit.
    pub fn committed(&self) -> Option<u64> {
        self.committed
    }

    /// Makes the map as it stands durable; once `Ok`, it survives power loss.
    /// `commit`'s root is filled in.
    ///
    /// # Errors
    /// [`MapError`]. Store and tree are of no use then: what is durable is
    /// found by [`Store::open`].
    pub fn commit(
        &mut self,
        tree: &mut Tree<DiskPages<F>>,
        mut commit: Commit,
    ) -> Result<(), MapError> {
        tree.spill()?;
        clean(tree)?;
        commit.root = Bytes32(tree.root()?);
        tree.pages_mut().sync()?;
        let blocks = commit.blocks;
        let buckets = tree.changed().count();
        let record = Record {
            commit,
            tables: tree.counts().tables.clone(),
            patients: tree.counts().patients,
            leaves: tree.counts().leaves,
            pseudonyms: tree.pages().pseudonym_count(),
            buckets: buckets as u64,
        };
        let path = tree
            .pages()
            .folder
            .path()
            .join(journal_name(self.generation));
        match &mut self.journal {
            Some(journal) if journal.len <= journal.len_max => {
                let mut bytes = Vec::new();
                frame(&mut bytes, |bytes| {
                    head(bytes, &record);
                    bytes.reserve_exact(buckets * BUCKET);
                    tree.changed().for_each(|bucket| write(bytes, &bucket));
                });
                journal.file.append(&bytes).at(&path, "cannot write")?;
                journal.file.sync().at(&path, "cannot make durable")?;
                journal.len += bytes.len() as u64;
            }
            _ => self.next_generation(tree, record)?,
        }
        tree.forget_changed();
        self.committed = Some(blocks);
        self.retire_empty(tree.pages_mut(), blocks);
        self.tidy(tree.pages_mut());
        Ok(())
    }

    /// The newest cosigned head covers `blocks` blocks: evidence will not be
    /// made as of an earlier one.
    pub fn covers(&mut self, tree: &mut Tree<DiskPages<F>>, blocks: u64) {
        self.covered = self.covered.max(blocks);
        self.tidy(tree.pages_mut());
    }

    /// Bytes of all files, those included that are kept for readers only.
    pub fn disk_bytes(&self, tree: &Tree<DiskPages<F>>) -> u64 {
        let leaves = tree.pages().files.values().map(|leaves| leaves.len);
        let retired = self.retired.iter().map(|retired| retired.bytes);
        let patients = 36 * u64::from(tree.pages().pseudonym_count());
        let journal = self.journal.as_ref();
        // The directory is as long as its journal may become, or shorter.
        let directory = journal.map_or(0, |journal| journal.len + journal.len_max);
        leaves.chain(retired).sum::<u64>() + patients + directory
    }

    fn next_generation(
        &mut self,
        tree: &mut Tree<DiskPages<F>>,
        mut record: Record,
    ) -> Result<(), MapError> {
        let (old, number) = (self.generation, self.next_generation);
        let (directory, journal) = (directory_name(number), journal_name(number));
        let folder = &tree.pages().folder;
        let (path, journal_path) = (folder.path().join(&directory), folder.path().join(&journal));
        let mut file = folder.create("new").at(&path, "cannot create")?;
        record.buckets = 0;
        tree.buckets(|_| record.buckets += 1);
        let mut bytes = MAGIC.to_vec();
        frame(&mut bytes, |bytes| head(bytes, &record));
        let mut len = 0;
        let mut failed = None;
        let mut part = Vec::with_capacity(FRAME_BUCKETS);
        let mut write_part = |part: &mut Vec<Bucket>, bytes: &mut Vec<u8>| {
            frame(bytes, |bytes| part.iter().for_each(|b| write(bytes, b)));
            len += bytes.len() as u64;
            failed = failed.take().or(file.append(bytes).err());
            bytes.clear();
            part.clear();
        };
        tree.buckets(|bucket| {
            part.push(*bucket);
            if part.len() == FRAME_BUCKETS {
                write_part(&mut part, &mut bytes);
            }
        });
        write_part(&mut part, &mut bytes);
        failed.map_or(Ok(()), Err).at(&path, "cannot write")?;
        file.sync().at(&path, "cannot make durable")?;
        let mut begun = folder.create(&journal).at(&journal_path, "cannot create")?;
        begun.append(MAGIC).at(&journal_path, "cannot write")?;
        begun.sync().at(&journal_path, "cannot make durable")?;
        folder
            .rename("new", &directory)
            .at(&path, "cannot replace")?;
        tree.pages_mut().sync_names()?;
        let blocks = record.commit.blocks;
        let journal_bytes = self.journal.take().map_or(0, |journal| journal.len);
        if self.committed.is_some() {
            self.retire(blocks, 0, directory_name(old));
            self.retire(blocks, journal_bytes, journal_name(old));
        }
        (self.generation, self.next_generation) = (number, number + 1);
        self.journal = Some(Journal {
            file: begun,
            len: MAGIC.len() as u64,
            len_max: JOURNAL_MIN.max(len / 2),
        });
        Ok(())
    }

    /// After opening: files that the newest commit does not need.
    fn retire_unknown(&mut self, pages: &DiskPages<F>, names: &[String], blocks: u64) {
        let mut needed: BTreeSet<String> = pages.files.keys().map(|n| leaves_name(*n)).collect();
        needed.extend(SIDE.map(str::to_owned));
        needed.insert(directory_name(self.generation));
        needed.insert(journal_name(self.generation));
        for name in names.iter().filter(|name| !needed.contains(*name)) {
            self.retire(blocks, 0, name.clone());
        }
    }

    fn retire_empty(&mut self, pages: &mut DiskPages<F>, blocks: u64) {
        let writing = pages.writing();
        let empty: Vec<u32> = pages
            .files
            .iter()
            .filter(|(number, leaves)| leaves.live == 0 && Some(**number) != writing)
            .map(|(number, _)| *number)
            .collect();
        for number in empty {
            if let Some(leaves) = pages.files.remove(&number) {
                self.retire(blocks, leaves.len, leaves_name(number));
            }
        }
    }

    fn retire(&mut self, blocks: u64, bytes: u64, name: String) {
        let retired = Retired {
            blocks,
            bytes,
            name,
        };
        self.retired.push_back(retired);
    }

    /// Removes retired files that no reader needs, and the oldest of too many.
    /// What cannot be removed is left: the next start tries again.
    fn tidy(&mut self, pages: &mut DiskPages<F>) {
        let kept: u64 = pages.files.values().map(|leaves| leaves.len).sum();
        let mut waiting: u64 = self.retired.iter().map(|retired| retired.bytes).sum();
        while let Some(oldest) = self.retired.front() {
            let is_much = waiting > RETIRED_MIN.max(kept / 2);
            if oldest.blocks > self.covered && !is_much {
                break;
            }
            if let Err(error) = pages.folder.remove(&oldest.name) {
                tracing::warn!(file = %oldest.name, %error, "a file that the map does not need cannot be removed");
            }
            waiting -= oldest.bytes;
            self.retired.pop_front();
        }
    }
}

/// Moves what is left in files that hold little else than replaced buckets.
fn clean<F: Folder>(tree: &mut Tree<DiskPages<F>>) -> Result<(), MapError> {
    let pages = tree.pages();
    let writing = pages.writing();
    let live: u64 = pages.files.values().map(|leaves| leaves.live).sum();
    let mut waste: u64 = pages
        .files
        .values()
        .map(|l| l.len - l.live.min(l.len))
        .sum();
    let mut by_use: Vec<_> = pages
        .files
        .iter()
        .filter(|(number, _)| Some(**number) != writing)
        .map(|(number, leaves)| (leaves.live * 1000 / leaves.len.max(1), *number))
        .collect();
    by_use.sort_unstable();
    let mut leaving = BTreeSet::new();
    for (_, number) in by_use {
        if waste <= WASTE_MIN.max(live / WASTE_PART) {
            break;
        }
        let leaves = &pages.files[&number];
        waste -= (leaves.len - leaves.live).min(waste);
        leaving.insert(number);
    }
    if leaving.is_empty() {
        return Ok(());
    }
    tree.relocate(|extent| leaving.contains(&place(extent).0))
}

/// Opens the newest commit over at most `blocks` blocks, to read beside the
/// writer. `None` if there is none.
///
/// # Errors
/// [`MapError`]; one that is damaged may only have been tidied away meanwhile.
pub(crate) fn read<F: Folder>(
    folder: F,
    blocks: u64,
) -> Result<Option<Restored<ReadPages<F>>>, MapError> {
    let Some(mut found) = find(folder, blocks, 0)? else {
        return Ok(None);
    };
    let count = found.written.record.pseudonyms;
    found.pages.adopt_pseudonyms(count, false)?;
    restore(found, ReadPages::beside, ReadPages::disk_mut).map(Some)
}

/// The newest commit; `None` if there is none.
///
/// # Errors
/// [`MapError`]; one that is damaged may only have been tidied away meanwhile.
pub(crate) fn newest<F: Folder>(folder: F) -> Result<Option<Commit>, MapError> {
    let found = find(folder, u64::MAX, 0)?;
    Ok(found.map(|found| found.written.record.commit))
}

/// Removes the store: it has to be made anew.
///
/// # Errors
/// [`MapError::Disk`].
pub(crate) fn discard<F: Folder>(folder: &F) -> Result<(), MapError> {
    let mut names = names(folder)?;
    // Directories first: without them the rest is nothing.
    names.sort_by_key(|name| !name.starts_with("directory-"));
    for name in &names {
        let path = folder.path().join(name);
        folder.remove(name).at(&path, "cannot remove")?;
        if name.starts_with("directory-") {
            folder.sync().at(&path, "cannot make durable")?;
        }
    }
    Ok(())
}

/// The newest commit over at most `blocks` blocks.
fn find<F: Folder>(folder: F, blocks: u64, next_file: u32) -> Result<Option<Found<F>>, MapError> {
    let names = names(&folder)?;
    let pages = DiskPages::new(folder, next_file);
    for generation in numbers(&names, "directory-").into_iter().rev() {
        if let Some(written) = read_generation(&pages, generation, blocks)? {
            return Ok(Some(Found {
                pages,
                written,
                generation,
            }));
        }
    }
    Ok(None)
}

/// Builds the tree of a commit, and checks that it is the map that it says.
fn restore<F: Folder, P: Pages<Error = MapError>>(
    found: Found<F>,
    wrap: impl FnOnce(DiskPages<F>) -> P,
    disk: impl Fn(&mut P) -> Option<&mut DiskPages<F>>,
) -> Result<Restored<P>, MapError> {
    let Found {
        pages,
        mut written,
        generation,
    } = found;
    let path = pages.folder.path().join(directory_name(generation));
    let record = &written.record;
    let counts = Counts {
        tables: record.tables.clone(),
        patients: record.patients,
        leaves: record.leaves,
    };
    let mut failed = None;
    let buckets = std::iter::from_fn(|| match written.next_part() {
        Ok(part) => part,
        Err(unread) => {
            failed = Some(unread);
            None
        }
    });
    let mut tree = Tree::restore(wrap(pages), LIMITS, counts, buckets.flatten());
    let altered = |path| {
        let damage = Damage::Altered;
        Err(MapError::Damaged { path, damage })
    };
    match failed {
        None => {}
        Some(Unread::Disk(error)) => Err(error).at(&path, "cannot read")?,
        Some(Unread::Altered) => return altered(path),
    }
    let mut extents = Vec::new();
    tree.buckets(|bucket| extents.push(bucket.extent));
    if let Some(pages) = disk(tree.pages_mut()) {
        for extent in extents.into_iter().filter(|e| *e != Extent::NONE) {
            pages.adopt(extent)?;
        }
    }
    let commit = written.record.commit;
    if tree.root()? != commit.root.0 {
        return altered(path);
    }
    Ok((tree, commit))
}

/// The last commit of a generation over at most `blocks` blocks, and where its buckets are.
fn read_generation<F: Folder>(
    pages: &DiskPages<F>,
    generation: u32,
    blocks: u64,
) -> Result<Option<Written<F::File>>, MapError> {
    let name = directory_name(generation);
    let path = pages.folder.path().join(&name);
    let damaged = || pages.damage(&name, Damage::Altered);
    let directory = frames(pages, &name)?;
    let mut directory = directory.ok_or_else(|| pages.damage(&name, Damage::Missing))?;
    let first = directory.next().at(&path, "cannot read")?;
    let first = first.ok_or_else(damaged)?;
    let (newest, _) = split_head(&first).ok_or_else(damaged)?;
    if newest.commit.blocks > blocks {
        return Ok(None);
    }
    let missing = newest.buckets;
    let mut written = Written {
        record: newest,
        directory: Some(directory.rewound()),
        missing,
        journal: None,
        commits: 0,
    };
    // The end of a journal may be torn; all before it was durable in its order.
    let name = journal_name(generation);
    let Some(mut journal) = frames(pages, &name)? else {
        return Ok(Some(written));
    };
    let path = pages.folder.path().join(&name);
    while let Some(part) = journal.next().at(&path, "cannot read")? {
        let Some((record, changed)) = split_head(&part) else {
            break;
        };
        if record.commit.blocks > blocks {
            break;
        }
        if changed.len() as u64 != record.buckets.saturating_mul(BUCKET as u64) {
            return Err(pages.damage(&name, Damage::Altered));
        }
        written.record = record;
        written.commits += 1;
    }
    written.journal = Some(journal.rewound());
    Ok(Some(written))
}

/// A commit and its buckets, which are read in the order in which they were written, a part
/// at a time: together they take nearly as much memory as the tree that is made of them.
struct Written<T> {
    record: Record,
    /// `None` once it is read.
    directory: Option<Frames<T>>,
    /// Buckets that it still has to have.
    missing: u64,
    journal: Option<Frames<T>>,
    /// How many of the journal's commits count, and are not read yet.
    commits: u64,
}

/// Why buckets cannot be read.
enum Unread {
    Disk(io::Error),
    Altered,
}

impl<T: Grows> Written<T> {
    /// The next part, `None` after the last one.
    fn next_part(&mut self) -> Result<Option<Vec<Bucket>>, Unread> {
        if let Some(directory) = &mut self.directory {
            let is_first = directory.is_at_start();
            if let Some(part) = directory.next().map_err(Unread::Disk)? {
                let part = match is_first {
                    true => split_head(&part).map(|(_, rest)| rest),
                    false => Some(part.as_slice()),
                };
                let buckets = part.and_then(read_buckets).ok_or(Unread::Altered)?;
                let missing = self.missing.checked_sub(buckets.len() as u64);
                self.missing = missing.ok_or(Unread::Altered)?;
                return Ok(Some(buckets));
            }
            if self.missing > 0 {
                return Err(Unread::Altered);
            }
            self.directory = None;
        }
        let Some(commits) = self.commits.checked_sub(1) else {
            return Ok(None);
        };
        self.commits = commits;
        let journal = self.journal.as_mut().ok_or(Unread::Altered)?;
        let part = journal.next().map_err(Unread::Disk)?;
        let part = part.ok_or(Unread::Altered)?;
        let (_, changed) = split_head(&part).ok_or(Unread::Altered)?;
        read_buckets(changed).map(Some).ok_or(Unread::Altered)
    }
}

/// The frames of a file; `None` if it is not there.
fn frames<F: Folder>(
    pages: &DiskPages<F>,
    name: &str,
) -> Result<Option<Frames<F::File>>, MapError> {
    let path = pages.folder.path().join(name);
    let Some(file) = pages.folder.open(name).at(&path, "cannot open")? else {
        return Ok(None);
    };
    Ok(Some(Frames::of(file).at(&path, "cannot read")?))
}

fn names<F: Folder>(folder: &F) -> Result<Vec<String>, MapError> {
    Ok(folder.names().at(folder.path(), "cannot list")?)
}

fn numbers(names: &[String], prefix: &str) -> Vec<u32> {
    let number = |name: &String| name.strip_prefix(prefix)?.parse().ok();
    let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn directory_name(generation: u32) -> String {
    format!("directory-{generation:06}")
}

fn journal_name(generation: u32) -> String {
    format!("journal-{generation:06}")
}

fn frame(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 8]);
    write(bytes);
    let len = u32::try_from(bytes.len() - start - 8).expect("a commit is far below 4 GiB");
    let crc = crc32fast::hash(&bytes[start + 8..]);
    bytes[start..start + 4].copy_from_slice(&len.to_be_bytes());
    bytes[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

/// The whole frames of a file, up to the first that is not one.
struct Frames<T> {
    file: T,
    at: u64,
    /// The file's, in bytes.
    len: u64,
}

const START: u64 = MAGIC.len() as u64;

impl<T: Grows> Frames<T> {
    /// None, if the file does not begin as it should.
    fn of(file: T) -> io::Result<Self> {
        let len = file.length()?;
        let mut magic = [0; MAGIC.len()];
        if len >= START {
            file.read_at(&mut magic, 0)?;
        }
        let len = if magic == MAGIC { len } else { START };
        Ok(Self {
            file,
            at: START,
            len,
        })
    }

    fn is_at_start(&self) -> bool {
        self.at == START
    }

    /// The same from the first frame on.
    fn rewound(self) -> Self {
        Self { at: START, ..self }
    }

    /// The next frame's bytes.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        let begin = self.at + head.len() as u64;
        if begin > self.len {
            return Ok(None);
        }
        self.file.read_at(&mut head, self.at)?;
        let [l0, l1, l2, l3, crc @ ..] = head;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        let end = begin + u64::from(len);
        if end > self.len {
            return Ok(None);
        }
        let mut part = vec![0; len as usize];
        self.file.read_at(&mut part, begin)?;
        if crc32fast::hash(&part).to_be_bytes() != crc {
            return Ok(None);
        }
        self.at = end;
        Ok(Some(part))
    }
}

fn head(bytes: &mut Vec<u8>, record: &Record) {
    let json = serde_json::to_vec(record).expect("it has only numbers, text and bytes");
    let len = u32::try_from(json.len()).expect("a line and some numbers");
    bytes.extend(len.to_be_bytes());
    bytes.extend(json);
}

fn split_head(part: &[u8]) -> Option<(Record, &[u8])> {
    let (len, rest) = part.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let (json, rest) = rest.split_at_checked(len)?;
    Some((serde_json::from_slice(json).ok()?, rest))
}

fn write(bytes: &mut Vec<u8>, bucket: &Bucket) {
    bytes.extend(bucket.prefix.bits.to_be_bytes());
    bytes.push(bucket.prefix.depth);
    let extent = bucket.extent.get() | u64::from(bucket.single) << 63;
    bytes.extend(extent.to_be_bytes());
    bytes.extend(bucket.hash);
}

fn read_buckets(bytes: &[u8]) -> Option<Vec<Bucket>> {
    let (whole, []) = bytes.as_chunks::<BUCKET>() else {
        return None;
    };
    let mut buckets = Vec::with_capacity(whole.len());
    for bytes in whole {
        let (bits, rest) = bytes.split_first_chunk::<8>()?;
        let (&depth, rest) = rest.split_first()?;
        let (extent, hash) = rest.split_first_chunk::<8>()?;
        let extent = u64::from_be_bytes(*extent);
        let low = extent & !(1 << 63);
        buckets.push(Bucket {
            prefix: Prefix {
                bits: u64::from_be_bytes(*bits),
                depth: (depth <= Prefix::DEEPEST).then_some(depth)?,
            },
            extent: match Extent::new(low) {
                Some(extent) => extent,
                None => (low == Extent::NONE.get()).then_some(Extent::NONE)?,
            },
            hash: hash.try_into().ok()?,
            single: extent >> 63 == 1,
        });
    }
    Some(buckets)
}
