//! The binary tree above the buckets, and where in it those stand that were looked up
//! lately.

use super::entry::{Entry, Subject};
use crate::map::{EMPTY, MapKey, bit};
use std::cell::{RefCell, RefMut};

/// Where a bucket's bytes are: up to 61 bits that [`Pages`](super::Pages) give a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(u64);

impl Extent {
    /// Of a bucket without bytes; [`Pages`](super::Pages) never hear of it.
    pub const NONE: Self = Self(LOW);

    /// `None` if `bits` are more than 61, or those of [`Extent::NONE`].
    pub fn new(bits: u64) -> Option<Self> {
        (bits < LOW).then_some(Self(bits))
    }

    /// The bits.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The bits with which the map keys of a bucket begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Prefix {
    /// The bits, from the most significant down; zero beyond `depth`.
    pub bits: u64,
    /// How many they are, at most [`Prefix::DEEPEST`].
    pub depth: u8,
}

impl Prefix {
    /// Buckets that stand here are not split, however many leaves they hold:
    /// keys are hashes, and do not get so far together.
    pub const DEEPEST: u8 = 64;

    /// The first `depth` bits of a key.
    pub(super) fn of(key: &MapKey, depth: u8) -> Self {
        let (first, _) = key.split_first_chunk().expect("a key has 32 bytes");
        let all = u64::from_be_bytes(*first);
        let beyond = u64::MAX.checked_shr(depth.into()).unwrap_or(0);
        Self {
            bits: all & !beyond,
            depth,
        }
    }

    pub(super) fn child(self, side: usize) -> Self {
        let bit = if side == 1 { 1 << (63 - self.depth) } else { 0 };
        Self {
            bits: self.bits | bit,
            depth: self.depth + 1,
        }
    }

    /// How many bits two prefixes begin with alike.
    fn shared(self, other: Self) -> u8 {
        let alike = (self.bits ^ other.bits).leading_zeros();
        u8::try_from(alike).map_or(0, |alike| alike.min(self.depth).min(other.depth))
    }

    pub(super) fn side(self, depth: u8) -> usize {
        usize::from(self.bits >> (63 - depth) & 1 == 1)
    }
}

/// A bucket as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The bits that its keys begin with.
    pub prefix: Prefix,
    /// Where its bytes are.
    pub extent: Extent,
    /// The root of the subtree that it is.
    pub hash: [u8; 32],
    /// Whether it holds exactly one leaf.
    pub single: bool,
}

pub(super) const ROOT: u32 = 0;
/// Bits of a link below its kind.
const LOW: u64 = (1 << 61) - 1;
const SINGLE: u64 = 1 << 61;
const KIND: u64 = 0b11 << 62;
const INNER: u64 = 0b00 << 62;
const DIRTY: u64 = 0b01 << 62;
const KEPT: u64 = 0b10 << 62;
const BUFFERED: u64 = 0b11 << 62;

/// A node without its hash. Kind in bits 62 and 63; whether there is a single leaf in
/// 61; below, the left child (the right one follows it), the extent, or the place in
/// the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Inner { left: u32, dirty: bool },
    Kept(Extent),
    Buffered(u32),
}

impl Node {
    const EMPTY: Self = Self(KEPT | LOW);

    pub(super) fn link(&self) -> Link {
        let low = self.0 & LOW;
        match self.0 & KIND {
            KEPT => Link::Kept(Extent(low)),
            BUFFERED => Link::Buffered(low as u32),
            kind => Link::Inner {
                left: low as u32,
                dirty: kind == DIRTY,
            },
        }
    }

    pub(super) fn set(&mut self, link: Link) {
        let bits = match link {
            Link::Inner { left, dirty: false } => INNER | u64::from(left),
            Link::Inner { left, dirty: true } => DIRTY | u64::from(left),
            Link::Kept(extent) => KEPT | extent.0,
            Link::Buffered(slot) => BUFFERED | u64::from(slot),
        };
        self.0 = bits | self.0 & SINGLE;
    }

    /// Its hash is right now, and an inner node clean.
    fn hashed(&mut self, single: bool) {
        self.0 = self.0 & !SINGLE | if single { SINGLE } else { 0 };
        if self.0 & KIND == DIRTY {
            self.0 &= !KIND;
        }
    }

    pub(super) fn is_single(&self) -> bool {
        self.0 & SINGLE != 0
    }
}

/// Where those stand that were looked up lately: a line's record and patient are
/// looked up several times, and hashing the key and going down from the root cost
/// more than everything else. A node is never taken away, so that what is
/// remembered may be too high in the tree, but never wrong.
pub(super) struct Places(RefCell<Vec<Place>>);

/// A node on the way to the bucket of a subject, and what was there.
pub(super) struct Place {
    subject: Option<Subject>,
    key: MapKey,
    pub(super) node: u32,
    depth: u8,
    /// The entry, or that there is none; `None` while nobody has looked.
    pub(super) known: Option<Option<Entry>>,
}

impl Place {
    /// Of a subject that nothing is known of.
    fn root(subject: Option<Subject>, key: MapKey) -> Self {
        Self {
            subject,
            key,
            node: ROOT,
            depth: 0,
            known: None,
        }
    }

    /// The node's.
    pub(super) fn prefix(&self) -> Prefix {
        Prefix::of(&self.key, self.depth)
    }

    /// The first bits of the key.
    fn bits(&self) -> u64 {
        Prefix::of(&self.key, Prefix::DEEPEST).bits
    }
}

impl Places {
    /// As many are remembered: records and patients of some hundred lines, which
    /// are written together. A power of two.
    const LEN: usize = 2048;

    pub(super) fn new() -> Self {
        let none = || Place::root(None, EMPTY);
        let places = std::iter::repeat_with(none).take(Self::LEN);
        Self(RefCell::new(places.collect()))
    }

    /// What is remembered of a subject, or the root.
    pub(super) fn place(
        &self,
        subject: &Subject,
        key: impl FnOnce() -> MapKey,
    ) -> RefMut<'_, Place> {
        let index = Self::index(subject);
        let mut place = RefMut::map(self.0.borrow_mut(), |places| &mut places[index]);
        if place.subject.as_ref() != Some(subject) {
            *place = Place::root(Some(*subject), key());
        }
        place
    }

    /// Notes what stands where a subject was looked up last.
    pub(super) fn learn(&self, subject: &Subject, entry: Entry) {
        let mut places = self.0.borrow_mut();
        let place = &mut places[Self::index(subject)];
        if place.subject.as_ref() == Some(subject) {
            place.known = Some(Some(entry));
        }
    }

    fn index(subject: &Subject) -> usize {
        // What subjects are told apart by is a digest.
        usize::from(u16::from_be_bytes(subject.first_bytes())) % Self::LEN
    }
}

/// All nodes, in pieces, so that growing copies none of them. Their hashes stand apart:
/// whoever goes down the tree needs none, and meets more nodes in the processor's caches.
#[derive(Debug)]
pub(super) struct Nodes {
    pieces: Vec<Piece>,
    len: u32,
    landings: RefCell<Landings>,
}

/// The nodes below the first bits of all keys: whoever goes down begins there, and meets
/// few nodes that the processor's caches do not hold.
#[derive(Debug)]
struct Landings {
    /// By those bits; [`ROOT`] where nobody went down yet.
    nodes: Vec<u32>,
    /// How many bits.
    depth: u8,
}

impl Landings {
    /// From a landing it is about three steps to a bucket: among so many nodes there is
    /// one landing, of four bytes.
    const SPREAD: u32 = 8;

    fn new(depth: u8) -> Self {
        Self {
            nodes: vec![ROOT; 1 << depth],
            depth,
        }
    }

    /// The landing of the keys that begin with `bits`, in a tree of so many nodes, and
    /// its depth.
    fn at(&mut self, bits: u64, nodes: u32) -> (&mut u32, u8) {
        let depth = (nodes / Self::SPREAD).max(1).ilog2();
        if depth > u32::from(self.depth) {
            *self = Self::new(depth as u8);
        }
        let index = bits.checked_shr(64 - u32::from(self.depth));
        (&mut self.nodes[index.unwrap_or(0) as usize], self.depth)
    }
}

#[derive(Debug)]
struct Piece {
    nodes: Vec<Node>,
    hashes: Vec<[u8; 32]>,
}

const PIECE: u32 = 1 << 14;

impl Nodes {
    pub(super) fn new() -> Self {
        let mut nodes = Self {
            pieces: Vec::new(),
            len: 0,
            landings: RefCell::new(Landings::new(0)),
        };
        nodes.push(Node::EMPTY);
        nodes
    }

    fn push(&mut self, node: Node) -> u32 {
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Piece {
                nodes: Vec::with_capacity(PIECE as usize),
                hashes: Vec::with_capacity(PIECE as usize),
            });
        }
        let piece = self.pieces.last_mut().expect("one was just pushed");
        piece.nodes.push(node);
        piece.hashes.push(EMPTY);
        self.len = self.len.checked_add(1).expect("fewer than 2^32 nodes");
        self.len - 1
    }

    pub(super) fn at(&self, node: u32) -> &Node {
        &self.pieces[(node / PIECE) as usize].nodes[(node % PIECE) as usize]
    }

    pub(super) fn at_mut(&mut self, node: u32) -> &mut Node {
        &mut self.pieces[(node / PIECE) as usize].nodes[(node % PIECE) as usize]
    }

    pub(super) fn hash(&self, node: u32) -> &[u8; 32] {
        &self.pieces[(node / PIECE) as usize].hashes[(node % PIECE) as usize]
    }

    /// Sets the hash of a node; an inner one is clean then.
    pub(super) fn set_hash(&mut self, node: u32, hash: [u8; 32], single: bool) {
        self.pieces[(node / PIECE) as usize].hashes[(node % PIECE) as usize] = hash;
        self.at_mut(node).hashed(single);
    }

    /// Gives `node` two children without leaves; the left one is returned.
    pub(super) fn split(&mut self, node: u32) -> u32 {
        let left = self.push(Node::EMPTY);
        self.push(Node::EMPTY);
        self.at_mut(node).set(Link::Inner { left, dirty: true });
        left
    }

    /// Goes on down to the bucket where a key belongs.
    pub(super) fn descend(&self, place: &mut Place) {
        let mut landings = self.landings.borrow_mut();
        let (landing, depth) = landings.at(place.bits(), self.len);
        if place.depth < depth && *landing != ROOT {
            (place.node, place.depth) = (*landing, depth);
        }
        while let Link::Inner { left, .. } = self.at(place.node).link() {
            let side = bit(&place.key, usize::from(place.depth));
            place.node = left + u32::from(side == 1);
            place.depth += 1;
            if place.depth == depth {
                *landing = place.node;
            }
        }
    }

    /// The hashes above a bucket will not be right any more.
    pub(super) fn mark(&mut self, bucket: Prefix) {
        let mut node = ROOT;
        for depth in 0..bucket.depth {
            let Link::Inner { left, .. } = self.at(node).link() else {
                return;
            };
            self.at_mut(node).set(Link::Inner { left, dirty: true });
            node = left + u32::from(bucket.side(depth) == 1);
        }
    }

    /// Puts buckets where their prefixes say; of two in the same place the later one,
    /// and none where there are others below. In the order of their prefixes each is
    /// put in a step or two, and neighbours lie side by side.
    pub(super) fn place(&mut self, buckets: impl IntoIterator<Item = Bucket>) {
        // From the root down to where the last one went.
        let (mut path, mut last) = (vec![ROOT], Prefix::default());
        for bucket in buckets {
            let prefix = Prefix {
                depth: bucket.prefix.depth.min(Prefix::DEEPEST),
                ..bucket.prefix
            };
            let shared = last.shared(prefix);
            path.truncate(usize::from(shared) + 1);
            let mut node = *path.last().expect("the root is never cut off");
            for depth in shared..prefix.depth {
                let left = match self.at(node).link() {
                    Link::Inner { left, .. } => {
                        self.at_mut(node).set(Link::Inner { left, dirty: true });
                        left
                    }
                    Link::Kept(_) | Link::Buffered(_) => self.split(node),
                };
                node = left + u32::from(prefix.side(depth) == 1);
                path.push(node);
            }
            if let Link::Kept(_) = self.at(node).link() {
                self.at_mut(node).set(Link::Kept(bucket.extent));
                self.set_hash(node, bucket.hash, bucket.single);
            }
            last = prefix;
        }
    }

    /// Shows all nodes that have no children to `visit`, in the order of prefixes.
    pub(super) fn walk(&self, mut visit: impl FnMut(u32, Prefix)) {
        let mut waiting = vec![(ROOT, Prefix::default())];
        while let Some((node, prefix)) = waiting.pop() {
            match self.at(node).link() {
                Link::Inner { left, .. } => {
                    waiting.push((left + 1, prefix.child(1)));
                    waiting.push((left, prefix.child(0)));
                }
                Link::Kept(_) | Link::Buffered(_) => visit(node, prefix),
            }
        }
    }

    /// Inner nodes whose hashes are not right, from `root` down so many levels, by
    /// depth; and those that come next.
    pub(super) fn dirty(&self, root: u32, levels: usize) -> (Vec<Vec<u32>>, Vec<u32>) {
        let is_dirty =
            |node: &u32| matches!(self.at(*node).link(), Link::Inner { dirty: true, .. });
        let children = |node: &u32| match self.at(*node).link() {
            Link::Inner { left, .. } => [left, left + 1],
            Link::Kept(_) | Link::Buffered(_) => [ROOT, ROOT],
        };
        let mut found = Vec::new();
        let mut level: Vec<u32> = Some(root).filter(is_dirty).into_iter().collect();
        while !level.is_empty() && found.len() < levels {
            let below = level.iter().flat_map(children).filter(is_dirty).collect();
            found.push(std::mem::replace(&mut level, below));
        }
        (found, level)
    }

    pub(super) fn children(&self, node: u32) -> (&[u8; 32], &[u8; 32]) {
        match self.at(node).link() {
            Link::Inner { left, .. } => (self.hash(left), self.hash(left + 1)),
            Link::Kept(_) | Link::Buffered(_) => (&EMPTY, &EMPTY),
        }
    }

    /// Hash of an inner node below which there are fewer than two leaves.
    pub(super) fn without_hashing(&self, node: u32) -> Option<([u8; 32], bool)> {
        let Link::Inner { left, .. } = self.at(node).link() else {
            return None;
        };
        let is_single = |node| self.at(node).is_single();
        let [low, high] = [*self.hash(left), *self.hash(left + 1)];
        match (low == EMPTY, high == EMPTY) {
            (true, true) => Some((EMPTY, false)),
            (true, false) if is_single(left + 1) => Some((high, true)),
            (false, true) if is_single(left) => Some((low, true)),
            _ => None,
        }
    }
}
