//! Roots of many small subtrees at once, so that the processor's hashing lanes
//! are filled (docs/spec/33-map.md §3).

use super::entry::{Entry, Malformed, entries};
use crate::map::{EMPTY, MAX_DEPTH, MapKey, bit, inner_hash, patient_key_text, record_key_text};
use pitser_ksi::hash::{Algorithm, Batch, Imprint};

/// Buckets are hashed this many at a time.
pub(super) const TOGETHER: usize = 256;

/// A leaf ready to be placed: its key, and its hash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) key: MapKey,
    pub(super) value: [u8; 32],
    pub(super) hash: [u8; 32],
}

/// Hashes subtrees; kept, since it holds on to its memory.
#[derive(Debug)]
pub(super) struct Hashing {
    batch: Batch,
}

/// A node whose children are known before it.
struct Job {
    children: [Child; 2],
    height: usize,
    hash: [u8; 32],
}

#[derive(Clone, Copy)]
enum Child {
    Empty,
    Leaf(usize),
    Job(usize),
}

impl Hashing {
    pub(super) fn new() -> Self {
        Self {
            batch: Batch::new(Algorithm::Sha256),
        }
    }

    /// The root of each bucket, and whether it is a single leaf. A bucket is
    /// given with the depth where it stands.
    pub(super) fn roots(
        &mut self,
        buckets: &[(&[u8], usize)],
        tables: &[String],
    ) -> Result<Vec<([u8; 32], bool)>, Malformed> {
        let (leaves, ends) = self.place(buckets.iter().map(|(bytes, _)| *bytes), tables)?;
        let mut jobs = Vec::new();
        let mut tops = Vec::with_capacity(buckets.len());
        let mut first = 0;
        for ((_, depth), end) in buckets.iter().zip(ends) {
            tops.push(plan(&leaves, first..end, *depth, &mut jobs));
            first = end;
        }
        self.perform(&leaves, &mut jobs);
        Ok(tops
            .into_iter()
            .map(|top| (top.hash(&leaves, &jobs), matches!(top, Child::Leaf(_))))
            .collect())
    }

    /// The leaves of all buckets, each bucket's in the order of their keys, and
    /// where each bucket's end.
    pub(super) fn place<'b>(
        &mut self,
        buckets: impl Iterator<Item = &'b [u8]>,
        tables: &[String],
    ) -> Result<(Vec<Placed>, Vec<usize>), Malformed> {
        let mut ends = Vec::new();
        let mut value = Vec::new();
        let mut count = 0;
        for bucket in buckets {
            for entry in entries(bucket) {
                let leaf = match entry? {
                    Entry::Record {
                        table, key, leaf, ..
                    } => {
                        let table = tables.get(table as usize).ok_or(Malformed)?;
                        self.batch.push(&record_key_text(table, &key));
                        leaf
                    }
                    Entry::Patient { patient, leaf, .. } => {
                        let mut hex = [0; 64];
                        self.batch.push(&patient_key_text(&patient, &mut hex));
                        leaf
                    }
                    Entry::Mark(_) => continue,
                };
                value.clear();
                leaf.encode_to(&mut value);
                self.batch.push(&[&value]);
                count += 1;
            }
            ends.push(count);
        }
        let mut hashes = self.batch.drain();
        let mut leaves = Vec::with_capacity(count);
        while let (Some(key), Some(value)) = (hashes.next(), hashes.next()) {
            leaves.push(Placed {
                key: plain(&key),
                value: plain(&value),
                hash: EMPTY,
            });
        }
        drop(hashes);
        for leaf in &leaves {
            self.batch.push(&[&[0x00], &leaf.key, &leaf.value]);
        }
        for (leaf, hash) in leaves.iter_mut().zip(self.batch.drain()) {
            leaf.hash = plain(&hash);
        }
        let mut first = 0;
        for end in &ends {
            leaves[first..*end].sort_unstable_by_key(|leaf| leaf.key);
            first = *end;
        }
        Ok((leaves, ends))
    }

    /// Inner nodes over pairs of hashes that are both known.
    pub(super) fn inner<'p>(
        &mut self,
        pairs: impl Iterator<Item = (&'p [u8; 32], &'p [u8; 32])>,
    ) -> impl Iterator<Item = [u8; 32]> {
        for (left, right) in pairs {
            self.batch.push(&[&[0x01], left, right]);
        }
        self.batch.drain().map(|hash| plain(&hash))
    }

    fn perform(&mut self, leaves: &[Placed], jobs: &mut [Job]) {
        let mut by_height: Vec<Vec<usize>> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            if by_height.len() <= job.height {
                by_height.resize(job.height + 1, Vec::new());
            }
            by_height[job.height].push(index);
        }
        for level in by_height {
            for &job in &level {
                let [left, right] = jobs[job].children.map(|child| child.hash(leaves, jobs));
                self.batch.push(&[&[0x01], &left, &right]);
            }
            for (job, hash) in level.into_iter().zip(self.batch.drain()) {
                jobs[job].hash = plain(&hash);
            }
        }
    }
}

impl Child {
    fn hash(self, leaves: &[Placed], jobs: &[Job]) -> [u8; 32] {
        match self {
            Self::Empty => EMPTY,
            Self::Leaf(leaf) => leaves[leaf].hash,
            Self::Job(job) => jobs[job].hash,
        }
    }
}

/// Notes what is to be hashed for the subtree at `depth` over sorted leaves.
fn plan(
    leaves: &[Placed],
    range: std::ops::Range<usize>,
    depth: usize,
    jobs: &mut Vec<Job>,
) -> Child {
    match range.len() {
        0 => Child::Empty,
        1 => Child::Leaf(range.start),
        _ => {
            let split = split(leaves, &range, depth);
            let children = [range.start..split, split..range.end]
                .map(|side| plan(leaves, side, depth + 1, jobs));
            let height = |child: &Child| match child {
                Child::Job(job) => jobs[*job].height + 1,
                _ => 0,
            };
            let height = height(&children[0]).max(height(&children[1]));
            jobs.push(Job {
                children,
                height,
                hash: EMPTY,
            });
            Child::Job(jobs.len() - 1)
        }
    }
}

fn split(leaves: &[Placed], range: &std::ops::Range<usize>, depth: usize) -> usize {
    assert!(depth < MAX_DEPTH, "two keys differ within 256 bits");
    range.start + leaves[range.clone()].partition_point(|leaf| bit(&leaf.key, depth) == 0)
}

/// Siblings on the way from `depth` down to where `key` ends among sorted
/// leaves, and the leaf that stands there.
pub(super) fn descend(
    leaves: &[Placed],
    key: &MapKey,
    depth: usize,
    siblings: &mut Vec<[u8; 32]>,
) -> Option<Placed> {
    let mut range = 0..leaves.len();
    let mut depth = depth;
    while range.len() > 1 {
        let at = split(leaves, &range, depth);
        let (here, other) = match bit(key, depth) {
            0 => (range.start..at, at..range.end),
            _ => (at..range.end, range.start..at),
        };
        depth += 1;
        siblings.push(subtree(&leaves[other], depth));
        range = here;
    }
    leaves.get(range).and_then(<[Placed]>::first).copied()
}

fn subtree(leaves: &[Placed], depth: usize) -> [u8; 32] {
    match leaves {
        [] => EMPTY,
        [leaf] => leaf.hash,
        _ => {
            let at = split(leaves, &(0..leaves.len()), depth);
            inner_hash(
                &subtree(&leaves[..at], depth + 1),
                &subtree(&leaves[at..], depth + 1),
            )
        }
    }
}

fn plain(imprint: &Imprint) -> [u8; 32] {
    imprint
        .digest()
        .try_into()
        .expect("SHA-256 digests are 32 bytes")
}
