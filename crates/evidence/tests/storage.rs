//! The storage of leaves against the map's definition: whatever is put, split,
//! spilled, moved and restored, root and proofs are those of `SparseMap`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::Patient;
use pitser_evidence::map::{
    Leaf, LeafKind, MapKey, RowRef, SparseMap, patient_map_key, record_map_key,
};
use pitser_evidence::store::{Limits, Memory, Storage, Tree, Whose};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Op {
    Record(u8, u8, Option<u8>, bool),
    Patient(u8),
    Mark(u8),
    Spill,
    Move,
    Restore,
    Root,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0u8..3, 0u8..40, prop::option::of(0u8..12), any::<bool>())
            .prop_map(|(table, key, patient, row)| Op::Record(table, key, patient, row)),
        4 => (0u8..12).prop_map(Op::Patient),
        3 => any::<u8>().prop_map(Op::Mark),
        2 => Just(Op::Spill),
        1 => Just(Op::Move),
        1 => Just(Op::Restore),
        2 => Just(Op::Root),
    ];
    prop::collection::vec(op, 0..120)
}

fn patient(n: u8) -> Patient {
    match n {
        0 => Patient::Many,
        1 => Patient::Unknown,
        n => Patient::Pseudonym(Bytes32([n; 32])),
    }
}

const TABLES: [&str; 3] = ["a", "b", "public.c"];

fn record(n: u8) -> Bytes32 {
    Bytes32([n; 32])
}

/// A record's leaf, whose it is, and whose its row is.
type Known = (Leaf, Option<Patient>, Option<Patient>);

#[derive(Default)]
struct Model {
    map: SparseMap,
    values: BTreeMap<MapKey, Vec<u8>>,
    records: BTreeMap<(u8, u8), Known>,
    patients: BTreeMap<u8, Leaf>,
    holds: BTreeMap<u8, u64>,
    marks: Vec<u8>,
}

impl Model {
    fn put(&mut self, key: MapKey, leaf: &Leaf) {
        self.map.insert(&key, &leaf.encode());
        self.values.insert(key, leaf.encode());
    }
}

fn leaf(kind: LeafKind, before: Option<&Leaf>, seq: u64, row: bool) -> Leaf {
    Leaf {
        count: before.map_or(0, |leaf| leaf.count) + 1,
        last_seq: seq,
        last_hash: Digest::of(&[&seq.to_be_bytes()]),
        row: row.then(|| RowRef {
            row: Digest::of(&[b"row", &seq.to_be_bytes()]),
            timeline: 1,
            seq,
        }),
        kind,
    }
}

fn run(limits: Limits, ops: &[Op]) {
    let mut tree = Tree::new(Memory::default(), limits);
    let mut model = Model::default();
    for (seq, op) in (1000..).zip(ops) {
        perform(&mut tree, &mut model, op, seq, limits);
    }
    agree(&mut tree, &mut model);
}

fn put_patient(tree: &mut Tree<Memory>, model: &mut Model, n: u8, seq: u64) {
    let leaf = leaf(LeafKind::Patient, model.patients.get(&n), seq, false);
    let holds = seq % 3;
    tree.put_patient(&patient(n), &leaf, holds).unwrap();
    model.holds.insert(n, holds);
    model.put(patient_map_key(&patient(n)), &leaf);
    model.patients.insert(n, leaf);
}

fn perform(tree: &mut Tree<Memory>, model: &mut Model, op: &Op, seq: u64, limits: Limits) {
    match *op {
        Op::Record(table, key, whose, row) => {
            if let Some(n) = whose {
                put_patient(tree, model, n, seq);
            }
            let whose = whose.map(patient);
            let before = model.records.get(&(table, key)).copied();
            let leaf = leaf(LeafKind::Record, before.as_ref().map(|b| &b.0), seq, row);
            let (how, patients) = match (row, before) {
                (true, _) => (Whose::Committed(whose), (whose, whose)),
                (false, None) => (Whose::First(whose), (whose, None)),
                (false, Some((_, patient, row))) => (Whose::Unchanged, (patient, row)),
            };
            let name = TABLES[usize::from(table)];
            tree.put_record(name, &record(key), &leaf, how).unwrap();
            model.put(record_map_key(name, &record(key)), &leaf);
            let (patient, row_patient) = patients;
            model
                .records
                .insert((table, key), (leaf, patient, row_patient));
        }
        Op::Patient(n) => put_patient(tree, model, n, seq),
        Op::Mark(n) => {
            tree.mark(&Bytes32(Digest::of(&[&[n]]).0.digest().try_into().unwrap()))
                .unwrap();
            model.marks.push(n);
        }
        Op::Spill => tree.spill().unwrap(),
        Op::Move => tree.relocate(|extent| extent.get() % 2 == 0).unwrap(),
        Op::Restore => {
            tree.spill().unwrap();
            let mut buckets = Vec::new();
            tree.buckets(|bucket| buckets.push(*bucket));
            let counts = tree.counts().clone();
            let pages = std::mem::take(tree.pages_mut());
            *tree = Tree::restore(pages, limits, counts, buckets);
        }
        Op::Root => assert_eq!(tree.root().unwrap(), model.map.root()),
    }
}

fn agree(tree: &mut Tree<Memory>, model: &mut Model) {
    let root = model.map.root();
    assert_eq!(tree.root().unwrap(), root);
    assert_eq!(tree.counts().leaves, model.map.len());
    assert_eq!(tree.patients(), model.patients.len() as u64);
    for (table, name) in (0..).zip(TABLES) {
        let mut shown = BTreeMap::new();
        let mut visit = |key: &Bytes32, leaf: &Leaf| {
            shown.insert(key.0[0], *leaf);
        };
        tree.records(name, &mut visit).unwrap();
        let of_table = model.records.range((table, 0)..=(table, u8::MAX));
        let expected: BTreeMap<_, _> = of_table
            .map(|((_, key), (leaf, ..))| (*key, *leaf))
            .collect();
        assert_eq!(shown, expected);
        for key in 0..41 {
            let known = tree.record(name, &record(key)).unwrap();
            let known = known.map(|r| (r.leaf, r.patient, r.row_patient));
            assert_eq!(known, model.records.get(&(table, key)).copied());
            proves(tree, model, &root, &record_map_key(name, &record(key)));
        }
    }
    for n in 0..13 {
        let known = tree.patient_leaf(&patient(n)).unwrap();
        assert_eq!(known, model.patients.get(&n).copied());
        let holds = tree.leaves(None, Some(&patient(n))).unwrap().holds;
        assert_eq!(holds, model.holds.get(&n).copied().unwrap_or(0));
        proves(tree, model, &root, &patient_map_key(&patient(n)));
    }
    for n in 0..=u8::MAX {
        let mark = Bytes32(Digest::of(&[&[n]]).0.digest().try_into().unwrap());
        assert_eq!(tree.is_marked(&mark).unwrap(), model.marks.contains(&n));
    }
}

fn proves(tree: &mut Tree<Memory>, model: &mut Model, root: &[u8; 32], key: &MapKey) {
    let path = tree.prove(key).unwrap();
    let value = model.values.get(key);
    assert_eq!(path, model.map.prove(key));
    assert!(path.shows(root, key, value.map(Vec::as_slice)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_tree_of_buckets_is_the_map(ops in ops(), entries in 1usize..5, buffered in 0usize..3000) {
        run(Limits { entries, buffered }, &ops);
    }
}

#[test]
fn a_tree_grows_to_many_buckets() {
    let ops: Vec<_> = (0..3000u64)
        .map(|n| {
            Op::Record(
                (n % 3) as u8,
                (n * 7 % 251) as u8,
                Some((n % 200) as u8),
                n % 5 != 0,
            )
        })
        .collect();
    run(Limits::MEMORY, &ops);
    run(
        Limits {
            entries: 2,
            buffered: 4000,
        },
        &ops,
    );
}
