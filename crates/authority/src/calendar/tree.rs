//! The shape of the calendar tree and walks through it (spec calendar §2).
//!
//! Leaves are the seconds `0..=head`; 1970 is leaf 0. A tree over more than one
//! leaf splits at the highest power of two below its number of leaves: the left
//! part is perfect, the right part is split again. So every left part is a
//! *perfect node*, named by its level (2^level leaves) and its index at that
//! level, and never changes once its last second has passed.
//!
//! Nothing here reads a file: perfect nodes come from a [`Nodes`].

use pitser_ksi::chain::Side;
use pitser_ksi::hash::{self, Imprint};

/// The level byte of every calendar step.
pub(super) const CALENDAR_LEVEL: u8 = 0xff;

/// Where perfect nodes come from.
pub(super) trait Nodes {
    /// Why a node could not be had.
    type Error;

    /// The root of leaves `index << level .. (index + 1) << level`.
    fn node(&self, level: u8, index: u64) -> Result<Imprint, Self::Error>;
}

/// `H(left ‖ right ‖ FF)`, with the algorithm of the right child.
pub(super) fn parent(left: &Imprint, right: &Imprint) -> Imprint {
    hash::node(
        right.algorithm(),
        left.as_bytes(),
        right.as_bytes(),
        CALENDAR_LEVEL,
    )
}

/// Folds a row of `2^n` neighbouring nodes into the one above them.
pub(super) fn fold(mut row: Vec<Imprint>) -> Imprint {
    debug_assert!(row.len().is_power_of_two());
    while row.len() > 1 {
        row = row
            .chunks_exact(2)
            .map(|pair| parent(&pair[0], &pair[1]))
            .collect();
    }
    row[0]
}

/// The root of the tree over leaves `lo .. lo + count`.
///
/// `lo` is a multiple of the highest power of two in `count`, as it is for the
/// whole tree (`lo` = 0) and for every right part of it. O(log count) nodes.
pub(super) fn root<N: Nodes>(nodes: &N, lo: u64, count: u64) -> Result<Imprint, N::Error> {
    debug_assert!(count > 0);
    let mut rest = count;
    let mut hash = None;
    // Perfect parts have the sizes of the bits of `count`, the largest leftmost.
    // From the right: each joins what was built so far as its left neighbour.
    while rest > 0 {
        let level = rest.trailing_zeros() as u8;
        rest &= rest - 1;
        let left = nodes.node(level, (lo + rest) >> level)?;
        hash = Some(match hash {
            None => left,
            Some(right) => parent(&left, &right),
        });
    }
    Ok(hash.expect("count is at least one, so at least one part was read"))
}

/// The links from leaf `at` up to the root of leaves `0..=head`.
///
/// O(log head) nodes.
pub(super) fn links<N: Nodes>(
    nodes: &N,
    at: u64,
    head: u64,
) -> Result<Vec<(Side, Imprint)>, N::Error> {
    debug_assert!(at <= head);
    let (mut lo, mut count) = (0, head + 1);
    let mut links = Vec::new();
    while count > 1 {
        let split = left_size(count);
        if at - lo < split {
            let right = root(nodes, lo + split, count - split)?;
            links.push((Side::Left, right));
            count = split;
        } else {
            let level = split.trailing_zeros() as u8;
            links.push((Side::Right, nodes.node(level, lo >> level)?));
            lo += split;
            count -= split;
        }
    }
    links.reverse();
    Ok(links)
}

/// The highest power of two below `count`, which is at least 2.
fn left_size(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The tree as the specification words it: recursive, leaf by leaf.
#[cfg(test)]
pub(super) fn naive(leaves: &[Imprint]) -> Imprint {
    if let [leaf] = leaves {
        return *leaf;
    }
    let r = leaves.len() as u64 - 1;
    let highest = (0..64)
        .rev()
        .map(|bit| 1u64 << bit)
        .find(|&power| power <= r);
    let (left, right) = leaves.split_at(highest.unwrap() as usize);
    parent(&naive(left), &naive(right))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use pitser_ksi::hash::Algorithm;

    use super::*;

    struct Leaves(Vec<Imprint>);

    impl Nodes for Leaves {
        type Error = Infallible;

        fn node(&self, level: u8, index: u64) -> Result<Imprint, Infallible> {
            let size = 1usize << level;
            let first = index as usize * size;
            Ok(fold(self.0[first..first + size].to_vec()))
        }
    }

    fn leaves(count: u64) -> Leaves {
        Leaves(
            (0..count)
                .map(|i| hash::hash(Algorithm::Sha256, &[&i.to_be_bytes()]))
                .collect(),
        )
    }

    #[test]
    fn roots_equal_the_recursive_definition() {
        let all = leaves(130);
        for count in 1..=130 {
            let Ok(root) = root(&all, 0, count);
            assert_eq!(root, naive(&all.0[..count as usize]), "{count} leaves");
        }
    }

    #[test]
    fn links_lead_from_every_leaf_to_the_root() {
        let all = leaves(70);
        for head in 0..70 {
            let Ok(expected) = root(&all, 0, head + 1);
            for at in 0..=head {
                let Ok(links) = links(&all, at, head);
                let found =
                    links
                        .iter()
                        .fold(all.0[at as usize], |hash, (side, sibling)| match side {
                            Side::Left => parent(&hash, sibling),
                            Side::Right => parent(sibling, &hash),
                        });
                assert_eq!(found, expected, "second {at} of 0..={head}");
            }
        }
    }

    #[test]
    fn a_parent_takes_the_algorithm_of_its_right_child() {
        let left = hash::hash(Algorithm::Sha256, &[b"left"]);
        let right = hash::hash(Algorithm::Sha512, &[b"right"]);
        assert_eq!(parent(&left, &right).algorithm(), Algorithm::Sha512);
        assert_eq!(parent(&right, &left).algorithm(), Algorithm::Sha256);
    }
}
