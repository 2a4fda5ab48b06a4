//! Roots and proofs against published roots, the RFC's own definition and the
//! `tlog_tiles` crate; and every way to tamper with a small proof.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use data_encoding::HEXLOWER;
use pitser_tlog::merkle::{
    EMPTY_ROOT, Frontier, Hash, LogTree, OutOfRange, ProofError, leaf_hash, node_hash,
    root_from_inclusion, verify_consistency, verify_inclusion,
};
use proptest::prelude::*;
use tlog_tiles::tlog;

/// Sizes up to here are checked exhaustively.
const SMALL: u64 = 40;

#[test]
fn certificate_transparency_roots() {
    let leaves = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = LogTree::new();
    assert_eq!(tree.root(), EMPTY_ROOT);
    for (leaf, root) in leaves.iter().zip(roots) {
        tree.push(leaf_hash(&HEXLOWER.decode(leaf.as_bytes()).unwrap()));
        assert_eq!(
            HEXLOWER.encode(&tree.root()),
            root,
            "{} leaves",
            tree.size()
        );
    }
}

#[test]
fn roots_follow_the_definition() {
    let leaves = leaves(300);
    let tree: LogTree = leaves.iter().copied().collect();
    let mut frontier = Frontier::new();
    for size in 0..=leaves.len() {
        let root = by_definition(&leaves[..size]);
        assert_eq!(tree.root_at(size as u64), Ok(root), "{size} leaves");
        assert_eq!(frontier.root(), root, "{size} leaves");
        assert_eq!(tree.frontier_at(size as u64).as_ref(), Ok(&frontier));
        let restored = Frontier::from_parts(frontier.size(), frontier.nodes().to_vec());
        assert_eq!(restored.as_ref(), Ok(&frontier));
        if let Some(&leaf) = leaves.get(size) {
            assert_eq!(frontier.push(leaf), size as u64);
        }
    }
}

#[test]
fn proofs_equal_those_of_tlog_tiles() {
    let oracle = Oracle::new(SMALL);
    let tree = tree(SMALL);
    for size in 1..=SMALL {
        let root = tree.root_at(size).unwrap();
        assert_eq!(root, tlog::tree_hash(size, &oracle).unwrap().0);
        for index in 0..size {
            let proof = tree.inclusion_proof(index, size).unwrap();
            let expected = tlog::prove_record(size, index, &oracle).unwrap();
            assert_eq!(proof, plain(&expected), "leaf {index} of {size}");
            let leaf = tree.leaf(index).unwrap();
            assert_eq!(verify_inclusion(leaf, index, size, &proof, &root), Ok(()));
        }
        for old in 1..=size {
            let proof = tree.consistency_proof(old, size).unwrap();
            let expected = tlog::prove_tree(size, old, &oracle).unwrap();
            assert_eq!(proof, plain(&expected), "from {old} to {size}");
            let old_root = tree.root_at(old).unwrap();
            let verdict = verify_consistency(old, &old_root, size, &root, &proof);
            assert_eq!(verdict, Ok(()), "from {old} to {size}");
        }
    }
}

#[test]
fn every_bit_of_an_inclusion_proof_counts() {
    for size in 1..=12 {
        let tree = tree(size);
        let root = tree.root();
        for index in 0..size {
            let leaf = tree.leaf(index).unwrap();
            let proof = tree.inclusion_proof(index, size).unwrap();
            let refused = |leaf, index, proof: &[Hash], root: &Hash| {
                assert!(verify_inclusion(leaf, index, size, proof, root).is_err());
            };
            for bit in 0..256 {
                refused(flip(leaf, bit), index, &proof, &root);
                refused(leaf, index, &proof, &flip(root, bit));
                for at in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[at] = flip(altered[at], bit);
                    refused(leaf, index, &altered, &root);
                }
            }
            for altered in resized(&proof) {
                refused(leaf, index, &altered, &root);
            }
            for other in (0..size + 3).filter(|&other| other != index) {
                refused(leaf, other, &proof, &root);
            }
        }
    }
}

#[test]
fn every_bit_of_a_consistency_proof_counts() {
    for size in 1..=12 {
        let tree = tree(size);
        let root = tree.root();
        for old in 1..=size {
            let old_root = tree.root_at(old).unwrap();
            let proof = tree.consistency_proof(old, size).unwrap();
            let refused = |old_root: &Hash, proof: &[Hash], root: &Hash| {
                assert!(verify_consistency(old, old_root, size, root, proof).is_err());
            };
            for bit in 0..256 {
                refused(&flip(old_root, bit), &proof, &root);
                refused(&old_root, &proof, &flip(root, bit));
                for at in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[at] = flip(altered[at], bit);
                    refused(&old_root, &altered, &root);
                }
            }
            for altered in resized(&proof) {
                refused(&old_root, &altered, &root);
            }
        }
    }
}

#[test]
fn the_empty_tree_is_a_prefix_of_every_tree() {
    let root = tree(5).root();
    assert_eq!(verify_consistency(0, &EMPTY_ROOT, 5, &root, &[]), Ok(()));
    let check = |old_root, new_size, new_root, proof: &[Hash], expected| {
        let verdict = verify_consistency(0, old_root, new_size, new_root, proof);
        assert_eq!(verdict, Err(expected));
    };
    check(&root, 5, &root, &[], ProofError::RootMismatch);
    check(&EMPTY_ROOT, 5, &root, &[root], ProofError::WrongLength);
    check(&EMPTY_ROOT, 0, &root, &[], ProofError::RootMismatch);
}

#[test]
fn a_log_cannot_shrink() {
    let tree = tree(5);
    let (three, five) = (tree.root_at(3).unwrap(), tree.root());
    let proof = tree.consistency_proof(3, 5).unwrap();
    let verdict = verify_consistency(5, &five, 3, &three, &proof);
    assert_eq!(verdict, Err(ProofError::OutOfRange));
}

#[test]
fn nothing_is_proved_outside_the_tree() {
    let tree = tree(5);
    assert_eq!(tree.root_at(6), Err(OutOfRange));
    assert_eq!(tree.inclusion_proof(5, 5), Err(OutOfRange));
    assert_eq!(tree.inclusion_proof(0, 6), Err(OutOfRange));
    assert_eq!(tree.consistency_proof(4, 3), Err(OutOfRange));
    assert_eq!(tree.consistency_proof(0, 6), Err(OutOfRange));
    assert_eq!(tree.consistency_proof(6, 6), Err(OutOfRange));
    assert_eq!(tree.leaf(5), None);
    assert_eq!(Frontier::from_parts(3, vec![EMPTY_ROOT]), Err(OutOfRange));
    assert_eq!(LogTree::new().inclusion_proof(0, 0), Err(OutOfRange));
}

/// Sizes that no real tree has are refused or computed, never a panic.
#[test]
fn the_largest_numbers_are_harmless() {
    let hash = leaf_hash(b"x");
    let long = vec![hash; 64];
    for size in [u64::MAX, 1 << 63, (1 << 63) + 1, i64::MAX as u64] {
        for index in [0, 1, size / 2, size - 1] {
            for length in [0, 1, 63, 64] {
                let verdict = verify_inclusion(hash, index, size, &long[..length], &hash);
                assert!(verdict.is_err());
            }
        }
        for old in [1, 2, 3, size / 2, size - 1] {
            for length in [0, 1, 63, 64] {
                let verdict = verify_consistency(old, &hash, size, &hash, &long[..length]);
                assert!(verdict.is_err());
            }
        }
    }
}

proptest! {
    #[test]
    fn larger_trees_prove_every_leaf(size in 1u64..3000, pick: u64, bit in 0usize..256) {
        let tree = tree(size);
        let index = pick % size;
        let leaf = tree.leaf(index).unwrap();
        let proof = tree.inclusion_proof(index, size).unwrap();
        prop_assert_eq!(root_from_inclusion(leaf, index, size, &proof), Ok(tree.root()));
        let altered = flip(leaf, bit);
        let verdict = verify_inclusion(altered, index, size, &proof, &tree.root());
        prop_assert_eq!(verdict, Err(ProofError::RootMismatch));
    }

    #[test]
    fn a_rewritten_past_is_never_consistent(size in 2u64..600, old in 1u64.., leaf in 0u64..) {
        let old = 1 + old % (size - 1);
        let honest = tree(size);
        let mut leaves = leaves(size as usize);
        leaves[(leaf % old) as usize] = leaf_hash(b"rewritten");
        let forged: LogTree = leaves.into_iter().collect();
        let old_root = honest.root_at(old).unwrap();
        let proof = forged.consistency_proof(old, size).unwrap();
        prop_assert!(verify_consistency(old, &old_root, size, &forged.root(), &proof).is_err());
    }
}

fn leaves(count: usize) -> Vec<Hash> {
    (0..count).map(|i| leaf_hash(&entry(i as u64))).collect()
}

fn tree(size: u64) -> LogTree {
    leaves(size as usize).into_iter().collect()
}

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

/// RFC 6962 §2.1, word for word.
fn by_definition(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            node_hash(&by_definition(left), &by_definition(right))
        }
    }
}

fn flip(mut hash: Hash, bit: usize) -> Hash {
    hash[bit / 8] ^= 1 << (bit % 8);
    hash
}

/// Every proof that differs by a dropped, added or swapped hash.
fn resized(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all = Vec::new();
    for at in 0..proof.len() {
        let mut shorter = proof.to_vec();
        shorter.remove(at);
        all.push(shorter);
        let mut longer = proof.to_vec();
        longer.insert(at, proof[at]);
        all.push(longer);
    }
    for at in 1..proof.len() {
        let mut swapped = proof.to_vec();
        swapped.swap(at - 1, at);
        all.push(swapped);
    }
    let mut longer = proof.to_vec();
    longer.push(EMPTY_ROOT);
    all.push(longer);
    all
}

fn plain(hashes: &[tlog::Hash]) -> Vec<Hash> {
    hashes.iter().map(|hash| hash.0).collect()
}

/// The tree of the same entries as `tlog_tiles` stores it.
struct Oracle(Vec<tlog::Hash>);

impl Oracle {
    fn new(size: u64) -> Self {
        let mut stored = Self(Vec::new());
        for index in 0..size {
            let hashes = tlog::stored_hashes(index, &entry(index), &stored).unwrap();
            stored.0.extend(hashes);
        }
        stored
    }
}

impl tlog::HashReader for Oracle {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        Ok(indexes.iter().map(|&i| self.0[i as usize]).collect())
    }
}
