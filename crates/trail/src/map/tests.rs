//! The store against the map's definition, whatever happens to the disk.
//! `PITSER_MAP_SEEDS=100` runs more histories than the few of every day.

use super::sim::{Fault, Random, SimFolder};
use super::*;
use crate::hold::Holds;
use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::line::Patient;
use pitser_evidence::map::{
    Leaf, LeafKind, MapKey, RowRef, SparseMap, patient_map_key, record_map_key,
};
use pitser_evidence::store::{Storage, Whose};
use std::collections::BTreeMap;

type SimTree = Tree<DiskPages<SimFolder>>;

const COMMITS: u64 = 12;
const TABLES: [&str; 2] = ["observation", "public.patient"];

/// One change of a leaf.
#[derive(Debug, Clone, Copy)]
struct Change {
    table: usize,
    key: u64,
    patient: u64,
    seq: u64,
}

/// What is put into the map between two commits; it follows from the seed.
fn changes(seed: u64, commit: u64) -> Vec<Change> {
    let mut random = Random(seed ^ commit << 32);
    let count = random.below(60);
    (0..count)
        .map(|n| Change {
            table: random.below(2) as usize,
            key: random.below(150),
            patient: random.below(40),
            seq: commit * 1000 + n,
        })
        .collect()
}

fn bytes32(n: u64) -> Bytes32 {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Bytes32(bytes)
}

fn patient(n: u64) -> Patient {
    match n {
        0 => Patient::Many,
        1 => Patient::Unknown,
        n => Patient::Pseudonym(bytes32(n)),
    }
}

fn leaf(kind: LeafKind, seq: u64) -> Leaf {
    Leaf {
        count: seq + 1,
        last_seq: seq,
        last_hash: Digest::of(&[&seq.to_be_bytes()]),
        row: (kind == LeafKind::Record && !seq.is_multiple_of(4)).then(|| RowRef {
            row: Digest::of(&[b"row", &seq.to_be_bytes()]),
            timeline: 1,
            seq,
        }),
        kind,
    }
}

/// The map as it should be, after each commit.
#[derive(Default)]
struct Model {
    leaves: BTreeMap<MapKey, Leaf>,
    at: Vec<BTreeMap<MapKey, Leaf>>,
    roots: Vec<[u8; 32]>,
}

impl Model {
    fn of(seed: u64) -> Self {
        let mut model = Self::default();
        let mut map = SparseMap::new();
        for commit in 0..COMMITS {
            for change in changes(seed, commit) {
                let (patient, record) = (
                    (
                        patient_map_key(&patient(change.patient)),
                        leaf(LeafKind::Patient, change.seq),
                    ),
                    (
                        record_map_key(TABLES[change.table], &bytes32(change.key)),
                        leaf(LeafKind::Record, change.seq),
                    ),
                );
                for (key, leaf) in [patient, record] {
                    map.insert(&key, &leaf.encode());
                    model.leaves.insert(key, leaf);
                }
            }
            model.at.push(model.leaves.clone());
            model.roots.push(map.root());
        }
        model
    }
}

fn apply(tree: &mut SimTree, change: Change) -> Result<(), MapError> {
    let whose = patient(change.patient);
    tree.put_patient(&whose, &leaf(LeafKind::Patient, change.seq), change.seq % 3)?;
    let record = leaf(LeafKind::Record, change.seq);
    let key = bytes32(change.key);
    tree.put_record(
        TABLES[change.table],
        &key,
        &record,
        Whose::Committed(Some(whose)),
    )
}

fn commit_at(blocks: u64) -> Commit {
    Commit {
        blocks,
        next_seq: blocks * 1000,
        segment: 0,
        offset: blocks,
        last_line: Digest::of(&[&blocks.to_be_bytes()]),
        root: Bytes32([0; 32]),
        genesis: Blob(b"genesis".to_vec()),
        gathered: Blob(blocks.to_be_bytes().to_vec()),
        gathered_as: "test".into(),
        holds: Holds::default(),
    }
}

/// Runs a history from its commit `from` on. `Err` with the number of commits
/// that were made before something failed.
fn run(
    tree: &mut SimTree,
    store: &mut Store<SimFolder>,
    seed: u64,
    from: u64,
) -> Result<(), (u64, MapError)> {
    for commit in from..COMMITS {
        let failed = |error| (commit, error);
        for change in changes(seed, commit) {
            apply(tree, change).map_err(failed)?;
        }
        store.commit(tree, commit_at(commit + 1)).map_err(failed)?;
        store.covers(tree, commit / 2);
    }
    Ok(())
}

/// Opens the folder and wants the map of one of the commits that may be there.
fn recovers(
    folder: SimFolder,
    model: &Model,
    made: u64,
    context: &str,
) -> (SimTree, Store<SimFolder>, u64) {
    let opened = Store::open(folder.clone());
    let opened = opened.unwrap_or_else(|e| panic!("{context}: {e}"));
    let Some((mut tree, store, commit)) = opened else {
        assert_eq!(made, 0, "{context}: a commit is gone");
        let (tree, store) = Store::begin(folder).unwrap();
        return (tree, store, 0);
    };
    assert!(
        commit.blocks == made || commit.blocks == made + 1,
        "{context}: commit {} after {made}",
        commit.blocks
    );
    assert_eq!(commit.gathered.0, commit.blocks.to_be_bytes());
    is_map(&mut tree, model, commit.blocks, context).unwrap();
    (tree, store, commit.blocks)
}

/// Whether all leaves are those of a commit.
fn is_map<P: pitser_evidence::store::Pages<Error = MapError>>(
    tree: &mut Tree<P>,
    model: &Model,
    blocks: u64,
    context: &str,
) -> Result<(), MapError> {
    let at = blocks as usize - 1;
    assert_eq!(tree.root()?, model.roots[at], "{context}");
    let mut leaves = BTreeMap::new();
    for table in TABLES {
        tree.records(table, &mut |key, leaf| {
            leaves.insert(record_map_key(table, key), *leaf);
        })?;
        for key in 0..150 {
            let record = tree.record(table, &bytes32(key))?;
            let expected = model.at[at].get(&record_map_key(table, &bytes32(key)));
            assert_eq!(record.map(|r| r.leaf).as_ref(), expected, "{context}");
            assert_eq!(
                record.map(|r| r.patient == r.row_patient),
                record.map(|_| true)
            );
        }
    }
    for n in 0..40 {
        if let Some(leaf) = tree.patient_leaf(&patient(n))? {
            leaves.insert(patient_map_key(&patient(n)), leaf);
        }
    }
    assert_eq!(leaves, model.at[at], "{context}");
    Ok(())
}

fn seeds(usually: u64) -> u64 {
    #[allow(
        clippy::disallowed_methods,
        reason = "how long a test runs is its caller's to say"
    )]
    let wanted = std::env::var("PITSER_MAP_SEEDS");
    wanted.ok().and_then(|n| n.parse().ok()).unwrap_or(usually)
}

/// Lets operation after operation fail, and goes on after each.
fn every_operation_fails(fault: Fault, seed: u64) {
    let model = Model::of(seed);
    let folder = SimFolder::new(seed);
    let (mut tree, mut store) = Store::begin(folder.clone()).unwrap();
    run(&mut tree, &mut store, seed, 0).unwrap();
    let operations = folder.operations();
    assert!(operations > 100, "a history that does something");
    for operation in 1..=operations {
        let context = format!("seed {seed}, {fault:?} at operation {operation} of {operations}");
        let folder = SimFolder::new(seed ^ operation << 16);
        folder.fail(operation, fault);
        let begun = Store::begin(folder.clone());
        let made = match begun {
            Ok((mut tree, mut store)) => match run(&mut tree, &mut store, seed, 0) {
                Ok(()) => COMMITS,
                Err((made, MapError::Disk(_))) => made,
                Err((_, error)) => panic!("{context}: {error}"),
            },
            Err(MapError::Disk(_)) => 0,
            Err(error) => panic!("{context}: {error}"),
        };
        let after = match fault {
            Fault::PowerLoss => folder.after_power_loss(),
            Fault::Full => folder.repaired(),
        };
        let (mut tree, mut store, from) = recovers(after.clone(), &model, made, &context);
        if let Err((_, error)) = run(&mut tree, &mut store, seed, from) {
            panic!("{context}: {error}");
        }
        drop((tree, store));
        let (_, _, last) = recovers(after, &model, COMMITS, &context);
        assert_eq!(last, COMMITS, "{context}");
    }
}

#[test]
fn power_may_go_at_any_operation() {
    for seed in 0..seeds(4) {
        every_operation_fails(Fault::PowerLoss, seed);
    }
}

#[test]
fn the_disk_may_be_full_at_any_operation() {
    for seed in 100..100 + seeds(2) {
        every_operation_fails(Fault::Full, seed);
    }
}

/// A second loss of power strikes while what the first left is put in order.
#[test]
fn power_may_go_twice() {
    for seed in 200..200 + seeds(20) {
        let model = Model::of(seed);
        let mut random = Random(seed);
        let mut folder = SimFolder::new(seed);
        let (mut made, mut from) = (0, 0);
        let mut opened = Store::begin(folder.clone()).ok();
        for round in 0..40 {
            folder.fail(folder.operations() + 1 + random.below(80), Fault::PowerLoss);
            if let Some((mut tree, mut store)) = opened.take() {
                made = match run(&mut tree, &mut store, seed, from) {
                    Ok(()) => COMMITS,
                    Err((made, _)) => made,
                };
            }
            folder = folder.after_power_loss();
            let context = format!("seed {seed}, round {round}");
            if random.below(2) == 0 {
                folder.fail(1 + random.below(6), Fault::PowerLoss);
                // Whether it opens is of no matter; what is there stays.
                drop(Store::open(folder.clone()));
                folder = folder.after_power_loss();
            }
            let (tree, store, at) = recovers(folder.clone(), &model, made, &context);
            (opened, from, made) = (Some((tree, store)), at, at);
        }
        assert!(from > 0, "seed {seed}: it never got anywhere");
    }
}

/// A history that has ended well, in a folder of its own, without files that
/// only readers of earlier commits need.
fn finished(seed: u64) -> (SimFolder, Model) {
    let folder = SimFolder::new(seed);
    let (mut tree, mut store) = Store::begin(folder.clone()).unwrap();
    run(&mut tree, &mut store, seed, 0).unwrap();
    store.covers(&mut tree, COMMITS);
    (folder, Model::of(seed))
}

/// Damage is noticed when a file is opened or read, or it does not matter.
fn damaged(seed: u64, change: impl Fn(&mut Vec<u8>, &mut Random)) {
    let (folder, model) = finished(seed);
    let mut random = Random(seed);
    let (mut noticed, mut harmless) = (0, 0);
    for name in folder.names().unwrap() {
        for _ in 0..30 {
            let folder = folder.repaired();
            if folder.len(&name) == 0 {
                continue;
            }
            folder.damage(&name, |bytes| change(bytes, &mut random));
            let read = Store::open(folder).and_then(|opened| match opened {
                // Not damaged beyond the commit before.
                Some((mut tree, _, commit)) => is_map(&mut tree, &model, commit.blocks, &name),
                None => Ok(()),
            });
            match read {
                Ok(()) => harmless += 1,
                Err(MapError::Damaged { .. }) => noticed += 1,
                Err(error) => panic!("seed {seed}, {name}: {error}"),
            }
        }
    }
    // What was replaced is still in the files, and does not matter.
    assert!(
        2 * noticed > harmless,
        "{noticed} noticed, {harmless} harmless"
    );
}

#[test]
fn a_flipped_bit_is_noticed() {
    for seed in 300..300 + seeds(4) {
        damaged(seed, |bytes, random| {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        });
    }
}

#[test]
fn a_truncated_file_is_noticed() {
    for seed in 400..400 + seeds(4) {
        damaged(seed, |bytes, random| {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        });
    }
}

#[test]
fn a_page_of_zeros_is_noticed() {
    for seed in 500..500 + seeds(4) {
        damaged(seed, |bytes, random| {
            let at = random.below(bytes.len() as u64) as usize;
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill(0);
            // Never a page that was zero before.
            bytes[at] = 0xa5;
        });
    }
}

#[test]
fn readers_find_the_newest_commit_under_the_head() {
    for seed in 600..600 + seeds(10) {
        let model = Model::of(seed);
        let folder = SimFolder::new(seed);
        let mut random = Random(seed);
        let (mut tree, mut store) = Store::begin(folder.clone()).unwrap();
        let mut covered = 0;
        for commit in 0..COMMITS {
            for change in changes(seed, commit) {
                apply(&mut tree, change).unwrap();
            }
            store.commit(&mut tree, commit_at(commit + 1)).unwrap();
            let context = format!("seed {seed}, commit {commit}, head {covered}");
            // An earlier reader's tree goes on being what it was.
            let found = commit::read(folder.clone(), covered).unwrap();
            match found {
                Some((mut tree, at)) => {
                    assert_eq!(at.blocks, covered, "{context}");
                    is_map(&mut tree, &model, covered, &context).unwrap();
                    let next = tree.put_patient(&patient(9), &leaf(LeafKind::Patient, 9), 0);
                    next.unwrap();
                    tree.spill().unwrap();
                    assert!(tree.patient_leaf(&patient(9)).unwrap().is_some());
                }
                None => assert_eq!(covered, 0, "{context}"),
            }
            if random.below(3) == 0 {
                covered = commit + 1;
                store.covers(&mut tree, covered);
            }
        }
    }
}

#[test]
fn what_is_replaced_does_not_pile_up() {
    let seed = 700;
    let folder = SimFolder::new(seed);
    let (mut tree, mut store) = Store::begin(folder.clone()).unwrap();
    for commit in 0..200 {
        for change in changes(seed, commit % COMMITS) {
            apply(&mut tree, change).unwrap();
        }
        store.commit(&mut tree, commit_at(commit + 1)).unwrap();
        store.covers(&mut tree, commit + 1);
    }
    let on_disk: u64 = folder
        .names()
        .unwrap()
        .iter()
        .map(|name| folder.len(name))
        .sum();
    let leaves = tree.counts().leaves;
    assert!(
        on_disk < 400 * leaves + 60_000,
        "{on_disk} bytes for {leaves} leaves"
    );
}
