//! Buckets of leaves under a binary tree of hashes.
//!
//! A bucket holds the leaves whose map keys begin with the same bits, its
//! prefix; above [`Limits::entries`] it is split in two. Above the buckets
//! stands one node for each prefix, 40 bytes: its hash, and where its children
//! or its bucket are. What is hashed in a bucket is hashed again when the
//! bucket changes, many buckets at a time; the nodes above only along changed
//! paths.
//!
//! Changed buckets are gathered in a buffer and written when it is full, or by
//! [`Tree::spill`]. Besides leaves, buckets hold *marks*: digests that were
//! noted, and that the map's root knows nothing of.

use super::entry::{
    self, Entry, FIRST_PSEUDONYM, MANY, Malformed, PatientNumber, Subject, UNKNOWN,
};
use super::hashing::{self, Hashing, TOGETHER};
use super::nodes::{Bucket, Extent, Link, Nodes, Places, Prefix, ROOT};
use super::{Leaves, Storage, Whose};
use crate::codec::Bytes32;
use crate::line::Patient;
use crate::map::{EMPTY, Leaf, MapKey, OtherLeaf, Path, bit, patient_map_key, record_map_key};
use crate::state::Record;
use std::collections::HashMap;
use std::fmt;

/// Keeps the bytes of buckets, and the pseudonyms that records refer to by number.
pub trait Pages {
    /// Why bytes cannot be read or kept.
    type Error: std::error::Error;

    /// Shows the bytes at an extent to `look`.
    ///
    /// # Errors
    /// If they cannot be read, or are not those that were written.
    fn read<R>(&self, at: Extent, look: impl FnOnce(&[u8]) -> R) -> Result<R, Self::Error>;

    /// Keeps the bytes of a bucket.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn write(&mut self, bytes: &[u8]) -> Result<Extent, Self::Error>;

    /// The bytes at `at` are not needed any more.
    fn release(&mut self, at: Extent);

    /// A pseudonym that was kept.
    ///
    /// # Errors
    /// If it cannot be read, or is not the one that was kept.
    fn pseudonym(&self, index: u32) -> Result<Bytes32, Self::Error>;

    /// Keeps a pseudonym, and numbers it: 0, 1, and so on.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn push_pseudonym(&mut self, pseudonym: &Bytes32) -> Result<u32, Self::Error>;

    /// The error that stands for bytes which are no bucket.
    fn malformed(&self, malformed: Malformed) -> Self::Error;
}

/// Sizes that trade memory for work.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of a bucket; with one more it is split.
    pub entries: usize,
    /// Bytes of changed buckets in memory.
    pub buffered: usize,
}

/// What a tree is, besides its buckets: kept by whoever keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names of tables, by the numbers that entries call them.
    pub tables: Vec<String>,
    /// Leaves of patients, the pseudo-patients among them.
    pub patients: u64,
    /// All leaves.
    pub leaves: u64,
}

/// The leaves of a map, in buckets.
pub struct Tree<P> {
    pages: P,
    nodes: Nodes,
    buffer: Vec<Slot>,
    buffered: usize,
    limits: Limits,
    hashing: Hashing,
    counts: Counts,
    table_numbers: HashMap<String, u32>,
    /// The patient whose number was last asked for.
    recent: Option<(Patient, PatientNumber)>,
    places: Places,
    /// An entry on its way into a bucket.
    scratch: Vec<u8>,
    /// Memory of buckets that were buffered, to be used again.
    spare: Vec<Vec<u8>>,
    /// Buckets that were written since [`Tree::forget_changed`], some perhaps
    /// more than once.
    changed: Vec<(u32, Prefix)>,
}

/// A changed bucket.
struct Slot {
    node: u32,
    prefix: Prefix,
    bytes: Vec<u8>,
    entries: usize,
    is_hashed: bool,
}

impl<P> fmt::Debug for Tree<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree of {} leaves", self.counts.leaves)
    }
}

impl<P: Pages + Default> Default for Tree<P> {
    fn default() -> Self {
        Self::new(P::default(), Limits::MEMORY)
    }
}

impl Limits {
    /// For buckets that stay in memory anyway.
    pub const MEMORY: Self = Self {
        entries: 16,
        buffered: 4 << 20,
    };
}

impl<P: Pages> Tree<P> {
    /// A tree without leaves.
    pub fn new(pages: P, limits: Limits) -> Self {
        Self {
            pages,
            nodes: Nodes::new(),
            buffer: Vec::new(),
            buffered: 0,
            limits,
            hashing: Hashing::new(),
            counts: Counts::default(),
            table_numbers: HashMap::new(),
            recent: None,
            places: Places::new(),
            scratch: Vec::new(),
            spare: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// The tree of these buckets, which `pages` have; of two with the same
    /// prefix the later one counts, and one that was split meanwhile does not.
    pub fn restore(
        pages: P,
        limits: Limits,
        counts: Counts,
        buckets: impl IntoIterator<Item = Bucket>,
    ) -> Self {
        let mut tree = Self::new(pages, limits);
        let numbers = counts.tables.iter().cloned().zip(0..);
        tree.table_numbers = numbers.collect();
        tree.counts = counts;
        tree.nodes.place(buckets);
        tree
    }

    /// What is there besides the buckets.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Where the buckets are kept.
    pub fn pages(&self) -> &P {
        &self.pages
    }

    /// Where the buckets are kept.
    pub fn pages_mut(&mut self) -> &mut P {
        &mut self.pages
    }

    /// Hashes and writes all changed buckets.
    ///
    /// # Errors
    /// What the pages say. Nothing is lost then; it may be tried again.
    pub fn spill(&mut self) -> Result<(), P::Error> {
        self.hash_buckets()?;
        while let Some(slot) = self.buffer.last() {
            let extent = match slot.bytes.is_empty() {
                true => Extent::NONE,
                false => self.pages.write(&slot.bytes)?,
            };
            let mut slot = self.buffer.pop().expect("just looked at");
            self.buffered -= slot.bytes.capacity();
            self.nodes.at_mut(slot.node).set(Link::Kept(extent));
            self.changed.push((slot.node, slot.prefix));
            // Splitting makes more of them than are ever needed at a time.
            if self.spare.len() < self.limits.buffered / SPARE_PART {
                slot.bytes.clear();
                self.spare.push(slot.bytes);
            }
        }
        Ok(())
    }

    /// The buckets that were written or moved since [`Tree::forget_changed`], in the order
    /// of prefixes. Complete after [`Tree::spill`].
    pub fn changed(&mut self) -> impl Iterator<Item = Bucket> {
        self.changed.sort_unstable_by_key(|(_, prefix)| *prefix);
        self.changed.dedup_by_key(|(_, prefix)| *prefix);
        let tree = &*self;
        let bucket = |(node, prefix): &(u32, Prefix)| tree.bucket(*node, *prefix);
        tree.changed.iter().filter_map(bucket)
    }

    /// No bucket counts as changed any more.
    pub fn forget_changed(&mut self) {
        self.changed = Vec::new();
    }

    /// Shows every bucket that is kept to `visit`, in the order of prefixes.
    /// All are, after [`Tree::spill`].
    pub fn buckets(&self, mut visit: impl FnMut(&Bucket)) {
        self.nodes.walk(|node, prefix| {
            if let Some(bucket) = self.bucket(node, prefix) {
                visit(&bucket);
            }
        });
    }

    /// Writes the buckets whose extents `leaving` names somewhere else.
    ///
    /// # Errors
    /// What the pages say.
    pub fn relocate(&mut self, leaving: impl Fn(Extent) -> bool) -> Result<(), P::Error> {
        let mut found = Vec::new();
        self.nodes.walk(|node, prefix| {
            if let Link::Kept(extent) = self.nodes.at(node).link()
                && extent != Extent::NONE
                && leaving(extent)
            {
                found.push((node, prefix, extent));
            }
        });
        for (node, prefix, extent) in found {
            let bytes = self.pages.read(extent, <[u8]>::to_vec)?;
            let moved = self.pages.write(&bytes)?;
            self.nodes.at_mut(node).set(Link::Kept(moved));
            self.pages.release(extent);
            self.changed.push((node, prefix));
        }
        Ok(())
    }

    fn bucket(&self, node: u32, prefix: Prefix) -> Option<Bucket> {
        let at = self.nodes.at(node);
        match at.link() {
            Link::Kept(extent) => Some(Bucket {
                prefix,
                extent,
                hash: *self.nodes.hash(node),
                single: at.is_single(),
            }),
            Link::Inner { .. } | Link::Buffered(_) => None,
        }
    }

    /// What is there about a subject, whose key in the map is `key()`.
    fn find(
        &self,
        subject: &Subject,
        key: impl FnOnce() -> MapKey,
    ) -> Result<Option<Entry>, P::Error> {
        let mut place = self.places.place(subject, key);
        if let Some(known) = place.known {
            return Ok(known);
        }
        self.nodes.descend(&mut place);
        let look = |bytes: &[u8]| entry::find(bytes, subject);
        let found = self.look(place.node, look)?;
        let found = found.map_err(|malformed| self.pages.malformed(malformed))?;
        let entry = found.map(|(_, entry)| entry);
        place.known = Some(entry);
        Ok(entry)
    }

    /// Shows the bytes of the bucket at `node` to `look`.
    fn look<R>(&self, node: u32, look: impl FnOnce(&[u8]) -> R) -> Result<R, P::Error> {
        match self.nodes.at(node).link() {
            Link::Buffered(slot) => Ok(look(&self.buffer[slot as usize].bytes)),
            Link::Kept(extent) if extent != Extent::NONE => self.pages.read(extent, look),
            Link::Kept(_) | Link::Inner { .. } => Ok(look(&[])),
        }
    }

    /// Puts the entry that `make` makes of the one that is there in its place.
    /// Gives whether it is the first.
    fn put(
        &mut self,
        subject: &Subject,
        key: impl FnOnce() -> MapKey,
        make: impl FnOnce(&mut P, Option<&Entry>) -> Result<Entry, P::Error>,
    ) -> Result<bool, P::Error> {
        let mut place = self.places.place(subject, key);
        self.nodes.descend(&mut place);
        let (node, prefix) = (place.node, place.prefix());
        drop(place);
        let index = self.buffer_bucket(node, prefix)?;
        let slot = &mut self.buffer[index];
        let found = entry::find(&slot.bytes, subject);
        let found = found.map_err(|e| self.pages.malformed(e))?;
        let made = make(&mut self.pages, found.as_ref().map(|(_, entry)| entry))?;
        self.places.learn(subject, made);
        let before = slot.bytes.capacity();
        let is_first = found.is_none();
        match found {
            Some((span, _)) => {
                self.scratch.clear();
                made.write(&mut self.scratch);
                match span.len() == self.scratch.len() {
                    true => slot.bytes[span].copy_from_slice(&self.scratch),
                    false => drop(slot.bytes.splice(span, self.scratch.iter().copied())),
                }
            }
            None => {
                made.write(&mut slot.bytes);
                slot.entries += 1;
            }
        }
        // While it waits to be hashed, so do the nodes above it.
        if std::mem::take(&mut slot.is_hashed) {
            self.nodes.mark(prefix);
        }
        self.buffered = self.buffered + slot.bytes.capacity() - before;
        self.split(index)?;
        if self.buffered > self.limits.buffered {
            self.spill()?;
        }
        Ok(is_first)
    }

    /// Brings a bucket into the buffer, if it is not there yet.
    fn buffer_bucket(&mut self, node: u32, prefix: Prefix) -> Result<usize, P::Error> {
        let extent = match self.nodes.at(node).link() {
            Link::Buffered(slot) => return Ok(slot as usize),
            Link::Kept(extent) => extent,
            Link::Inner { .. } => Extent::NONE,
        };
        let mut bytes = self.spare.pop().unwrap_or_default();
        if extent != Extent::NONE {
            self.pages.read(extent, |there| {
                bytes.reserve(there.len() + ROOM);
                bytes.extend_from_slice(there);
            })?;
        }
        let entries = entry::spans(&bytes).count();
        let slot = Slot {
            node,
            prefix,
            bytes,
            entries,
            is_hashed: true,
        };
        if extent != Extent::NONE {
            self.pages.release(extent);
        }
        Ok(self.buffer_slot(slot))
    }

    fn buffer_slot(&mut self, slot: Slot) -> usize {
        let index = self.buffer.len();
        let link = Link::Buffered(u32::try_from(index).expect("the buffer's bytes are bounded"));
        self.nodes.at_mut(slot.node).set(link);
        self.buffered += slot.bytes.capacity();
        self.buffer.push(slot);
        index
    }

    /// Splits a buffered bucket until no part holds too many entries.
    fn split(&mut self, index: usize) -> Result<(), P::Error> {
        let slot = &self.buffer[index];
        if slot.entries <= self.limits.entries || slot.prefix.depth == Prefix::DEEPEST {
            return Ok(());
        }
        let (node, prefix) = (slot.node, slot.prefix);
        let parts = self.parts(slot).map_err(|e| self.pages.malformed(e))?;
        let left = self.nodes.split(node);
        let slots: Vec<_> = parts
            .into_iter()
            .zip([left, left + 1])
            .enumerate()
            .map(|(side, ((bytes, entries), node))| Slot {
                node,
                prefix: prefix.child(side),
                bytes,
                entries,
                is_hashed: false,
            })
            .collect();
        let [low, high] =
            <[Slot; 2]>::try_from(slots).unwrap_or_else(|_| unreachable!("a bucket has two parts"));
        self.nodes.at_mut(left).set(Link::Buffered(
            u32::try_from(index).expect("an index of the buffer"),
        ));
        self.buffered += low.bytes.capacity();
        let whole = std::mem::replace(&mut self.buffer[index], low);
        self.buffered -= whole.bytes.capacity();
        let high = self.buffer_slot(high);
        self.split(index)?;
        self.split(high)
    }

    /// The entries of a bucket by the bit at its depth, and how many they are.
    fn parts(&self, slot: &Slot) -> Result<[(Vec<u8>, usize); 2], Malformed> {
        let mut parts = [(Vec::new(), 0), (Vec::new(), 0)];
        for (span, entry) in entry::spans(&slot.bytes).zip(entry::entries(&slot.bytes)) {
            let key = match entry? {
                Entry::Record { table, key, .. } => {
                    let table = self.counts.tables.get(table as usize).ok_or(Malformed)?;
                    record_map_key(table, &key)
                }
                Entry::Patient { patient, .. } => patient_map_key(&patient),
                Entry::Mark(mark) => mark.0,
            };
            let (bytes, entries) = &mut parts[bit(&key, usize::from(slot.prefix.depth))];
            bytes.extend_from_slice(span?);
            *entries += 1;
        }
        Ok(parts)
    }

    /// Brings the hashes of changed buckets up to date.
    fn hash_buckets(&mut self) -> Result<(), P::Error> {
        let waiting: Vec<usize> = (0..self.buffer.len())
            .filter(|slot| !self.buffer[*slot].is_hashed)
            .collect();
        for together in waiting.chunks(TOGETHER) {
            let of_slot = |slot: &usize| {
                let slot = &self.buffer[*slot];
                (slot.bytes.as_slice(), usize::from(slot.prefix.depth))
            };
            let buckets: Vec<_> = together.iter().map(of_slot).collect();
            let roots = self.hashing.roots(&buckets, &self.counts.tables);
            let roots = roots.map_err(|e| self.pages.malformed(e))?;
            for (slot, (hash, single)) in together.iter().zip(roots) {
                let slot = &mut self.buffer[*slot];
                slot.is_hashed = true;
                self.nodes.set_hash(slot.node, hash, single);
            }
        }
        Ok(())
    }

    /// Brings the hashes above the buckets up to date, one part of the tree after the
    /// other, since all of it is more than the processor's caches hold.
    fn hash_nodes(&mut self) {
        let (top, parts) = self.nodes.dirty(ROOT, PART_DEPTH);
        for part in parts {
            let (levels, _) = self.nodes.dirty(part, usize::MAX);
            self.hash_levels(levels);
        }
        self.hash_levels(top);
    }

    fn hash_levels(&mut self, levels: Vec<Vec<u32>>) {
        for level in levels.into_iter().rev() {
            let mut hashed = Vec::new();
            for node in level {
                match self.nodes.without_hashing(node) {
                    Some((hash, single)) => self.nodes.set_hash(node, hash, single),
                    None => hashed.push(node),
                }
            }
            let nodes = &self.nodes;
            let pairs = hashed.iter().map(|node| nodes.children(*node));
            let hashes: Vec<_> = self.hashing.inner(pairs).collect();
            for (node, hash) in hashed.into_iter().zip(hashes) {
                self.nodes.set_hash(node, hash, false);
            }
        }
    }

    /// The number of a patient who has a leaf.
    fn number(&mut self, patient: Option<Patient>) -> Result<PatientNumber, P::Error> {
        let Some(patient) = patient else { return Ok(0) };
        if let Some((recent, number)) = self.recent
            && recent == patient
        {
            return Ok(number);
        }
        match self.find(&Subject::Patient(patient), || patient_map_key(&patient))? {
            Some(Entry::Patient { number, .. }) => {
                self.recent = Some((patient, number));
                Ok(number)
            }
            _ => Err(self.pages.malformed(Malformed)),
        }
    }

    fn patient_of(&self, number: PatientNumber) -> Result<Option<Patient>, P::Error> {
        Ok(match number {
            0 => None,
            MANY => Some(Patient::Many),
            UNKNOWN => Some(Patient::Unknown),
            _ => Some(Patient::Pseudonym(
                self.pages.pseudonym(number - FIRST_PSEUDONYM)?,
            )),
        })
    }

    fn table(&mut self, name: &str) -> u32 {
        if let Some(number) = self.table_numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.counts.tables.len()).expect("fewer than 2^32 tables");
        self.counts.tables.push(name.to_owned());
        self.table_numbers.insert(name.to_owned(), number);
        number
    }

    /// Shows all entries to `visit`, in no order.
    fn each(&self, mut visit: impl FnMut(Entry)) -> Result<(), P::Error> {
        let mut nodes = Vec::new();
        self.nodes.walk(|node, _| nodes.push(node));
        for node in nodes {
            // Copied, so that whoever visits may look elsewhere in the tree.
            let bytes = self.look(node, <[u8]>::to_vec)?;
            for entry in entry::entries(&bytes) {
                visit(entry.map_err(|malformed| self.pages.malformed(malformed))?);
            }
        }
        Ok(())
    }

    fn find_record(&self, table: &str, key: &Bytes32) -> Result<Option<Entry>, P::Error> {
        let Some(&number) = self.table_numbers.get(table) else {
            return Ok(None);
        };
        let subject = Subject::Record {
            table: number,
            key: *key,
        };
        self.find(&subject, || record_map_key(table, key))
    }

    /// The leaf that is all there is below `node`.
    fn single_leaf(&mut self, mut node: u32) -> Result<Option<hashing::Placed>, P::Error> {
        while let Link::Inner { left, .. } = self.nodes.at(node).link() {
            node = left + u32::from(*self.nodes.hash(left) == EMPTY);
        }
        let leaves = self.placed(node)?;
        Ok(leaves.first().copied())
    }

    fn placed(&mut self, node: u32) -> Result<Vec<hashing::Placed>, P::Error> {
        let bytes = self.look(node, <[u8]>::to_vec)?;
        let placed = self
            .hashing
            .place(std::iter::once(bytes.as_slice()), &self.counts.tables);
        let (leaves, _) = placed.map_err(|e| self.pages.malformed(e))?;
        Ok(leaves)
    }
}

impl<P: Pages> Storage for Tree<P> {
    type Error = P::Error;

    fn record_leaf(&self, table: &str, key: &Bytes32) -> Result<Option<Leaf>, P::Error> {
        Ok(match self.find_record(table, key)? {
            Some(Entry::Record { leaf, .. }) => Some(leaf),
            _ => None,
        })
    }

    fn leaves(
        &self,
        record: Option<(&str, &Bytes32)>,
        patient: Option<&Patient>,
    ) -> Result<Leaves, P::Error> {
        let record = match record {
            Some((table, key)) => self.find_record(table, key)?,
            None => None,
        };
        let patient = match patient {
            Some(patient) => self.find(&Subject::Patient(*patient), || patient_map_key(patient))?,
            None => None,
        };
        let (record, whose) = match record {
            Some(Entry::Record { leaf, patient, .. }) => (Some(leaf), Some(patient)),
            _ => (None, None),
        };
        let (patient, holds, number) = match patient {
            Some(Entry::Patient {
                leaf,
                holds,
                number,
                ..
            }) => (Some(leaf), holds, Some(number)),
            _ => (None, 0, None),
        };
        Ok(Leaves {
            record,
            patient,
            holds,
            is_patients: whose.is_some() && whose == number,
        })
    }

    fn record(&self, table: &str, key: &Bytes32) -> Result<Option<Record>, P::Error> {
        Ok(match self.find_record(table, key)? {
            Some(Entry::Record {
                leaf,
                patient,
                row_patient,
                ..
            }) => Some(Record {
                leaf,
                patient: self.patient_of(patient)?,
                row_patient: self.patient_of(row_patient)?,
            }),
            _ => None,
        })
    }

    fn is_of(
        &self,
        table: &str,
        key: &Bytes32,
        patient: &Patient,
    ) -> Result<Option<bool>, P::Error> {
        let Some(Entry::Record { patient: whose, .. }) = self.find_record(table, key)? else {
            return Ok(None);
        };
        let of_patient = Subject::Patient(*patient);
        let found = self.find(&of_patient, || patient_map_key(patient))?;
        let is_known = |entry| matches!(entry, Entry::Patient { number, .. } if number == whose);
        Ok(Some(found.is_some_and(is_known)))
    }

    fn put_record(
        &mut self,
        table: &str,
        key: &Bytes32,
        leaf: &Leaf,
        whose: Whose,
    ) -> Result<(), P::Error> {
        let new = match whose {
            Whose::First(patient) => Some((self.number(patient)?, 0)),
            Whose::Committed(patient) => {
                let number = self.number(patient)?;
                Some((number, number))
            }
            Whose::Unchanged => None,
        };
        let number = self.table(table);
        let subject = Subject::Record {
            table: number,
            key: *key,
        };
        let make = |_: &mut P, before: Option<&Entry>| {
            let kept = match before {
                Some(Entry::Record {
                    patient,
                    row_patient,
                    ..
                }) => (*patient, *row_patient),
                _ => (0, 0),
            };
            let (patient, row_patient) = new.unwrap_or(kept);
            Ok(Entry::Record {
                table: number,
                key: *key,
                leaf: *leaf,
                patient,
                row_patient,
            })
        };
        let is_first = self.put(&subject, || record_map_key(table, key), make)?;
        self.counts.leaves += u64::from(is_first);
        Ok(())
    }

    fn records(&self, table: &str, visit: &mut dyn FnMut(&Bytes32, &Leaf)) -> Result<(), P::Error> {
        let Some(&number) = self.table_numbers.get(table) else {
            return Ok(());
        };
        self.each(|entry| {
            if let Entry::Record {
                table, key, leaf, ..
            } = entry
                && table == number
            {
                visit(&key, &leaf);
            }
        })
    }

    fn rows_of(&self, patient: &Patient) -> Result<u64, P::Error> {
        let found = self.find(&Subject::Patient(*patient), || patient_map_key(patient))?;
        let Some(Entry::Patient { number, .. }) = found else {
            return Ok(0);
        };
        let mut rows = 0;
        self.each(|entry| {
            if let Entry::Record { leaf, patient, .. } = entry
                && patient == number
            {
                rows += u64::from(leaf.row.is_some());
            }
        })?;
        Ok(rows)
    }

    fn patient_leaf(&self, patient: &Patient) -> Result<Option<Leaf>, P::Error> {
        let found = self.find(&Subject::Patient(*patient), || patient_map_key(patient))?;
        Ok(match found {
            Some(Entry::Patient { leaf, .. }) => Some(leaf),
            _ => None,
        })
    }

    fn put_patient(&mut self, patient: &Patient, leaf: &Leaf, holds: u64) -> Result<(), P::Error> {
        let mut number = 0;
        let make = |pages: &mut P, before: Option<&Entry>| {
            number = match (before, patient) {
                (Some(Entry::Patient { number, .. }), _) => *number,
                (_, Patient::Many) => MANY,
                (_, Patient::Unknown) => UNKNOWN,
                (_, Patient::Pseudonym(pseudonym)) => {
                    let index = pages.push_pseudonym(pseudonym)?;
                    let number = index.checked_add(FIRST_PSEUDONYM);
                    number.ok_or_else(|| pages.malformed(Malformed))?
                }
            };
            Ok(Entry::Patient {
                patient: *patient,
                number,
                leaf: *leaf,
                holds,
            })
        };
        let subject = Subject::Patient(*patient);
        let is_first = self.put(&subject, || patient_map_key(patient), make)?;
        self.counts.patients += u64::from(is_first);
        self.counts.leaves += u64::from(is_first);
        self.recent = Some((*patient, number));
        Ok(())
    }

    fn patients(&self) -> u64 {
        self.counts.patients
    }

    fn mark(&mut self, mark: &Bytes32) -> Result<(), P::Error> {
        let made = |_: &mut P, _: Option<&Entry>| Ok(Entry::Mark(*mark));
        self.put(&Subject::Mark(*mark), || mark.0, made).map(drop)
    }

    fn is_marked(&self, mark: &Bytes32) -> Result<bool, P::Error> {
        let found = self.find(&Subject::Mark(*mark), || mark.0)?;
        Ok(found.is_some())
    }

    fn root(&mut self) -> Result<[u8; 32], P::Error> {
        self.hash_buckets()?;
        self.hash_nodes();
        Ok(*self.nodes.hash(ROOT))
    }

    fn prove(&mut self, key: &MapKey) -> Result<Path, P::Error> {
        self.root()?;
        let mut siblings = Vec::new();
        let (mut node, mut depth) = (ROOT, 0);
        let there = loop {
            let at = self.nodes.at(node);
            match at.link() {
                _ if *self.nodes.hash(node) == EMPTY => break None,
                _ if at.is_single() => break self.single_leaf(node)?,
                Link::Inner { left, .. } => {
                    let side = u32::from(bit(key, depth) == 1);
                    siblings.push(*self.nodes.hash(left + 1 - side));
                    node = left + side;
                    depth += 1;
                }
                Link::Kept(_) | Link::Buffered(_) => {
                    let leaves = self.placed(node)?;
                    break hashing::descend(&leaves, key, depth, &mut siblings);
                }
            }
        };
        let other = there.filter(|leaf| leaf.key != *key).map(|leaf| OtherLeaf {
            key: Bytes32(leaf.key),
            value: Bytes32(leaf.value),
        });
        Ok(Path {
            other,
            siblings: siblings.into_iter().map(Bytes32).collect(),
        })
    }
}

/// So deep a tree is hashed in parts.
const PART_DEPTH: usize = 6;
/// One buffer is kept to be used again for so many bytes that may be buffered.
const SPARE_PART: usize = 8192;
/// For one more entry, in bytes.
const ROOM: usize = 128;
