//! What the map costs with ten million leaves: on disk, in memory, and node by
//! node as its definition has it.
//!
//! ```text
//! cargo bench -p pitser-trail --bench map              ten million leaves, all three
//! cargo bench -p pitser-trail --bench map -- 1000000   as many
//! ```
//! Each storage is filled and asked in a process of its own, so that the memory
//! is its own. One leaf in eleven is a patient's. Filled as by blocks of 30,000
//! lines, a commit after each 100,000; then five rounds of 100,000 updates of
//! random leaves, half of records and half of patients, up to the new root. On
//! disk also: a commit after each round, opening again, proofs. The folder is
//! below the system's temporary one; its pages stay in the system's cache.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot be set up has failed; it prints its figures"
)]

use pitser_evidence::codec::{Blob, Bytes32, Digest};
use pitser_evidence::line::Patient;
use pitser_evidence::map::{Leaf, LeafKind, RowRef, SparseMap, patient_map_key, record_map_key};
use pitser_evidence::store::{Limits, Memory, Storage, Tree, Whose};
use pitser_trail::hold::Holds;
use pitser_trail::map::{Commit, DiskMap, OsFolder, Store};
use std::time::{Duration, Instant};

const TABLE: &str = "public.observation";
const ROUNDS: u64 = 5;
const UPDATES: u64 = 100_000;
const BLOCK: u64 = 30_000;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    match args.as_slice() {
        [] => all(10_000_000),
        [leaves] => all(leaves.parse().unwrap()),
        [name, leaves] => one(name, leaves.parse().unwrap()),
        _ => println!("usage: map [LEAVES]"),
    }
}

fn all(leaves: u64) {
    println!("{leaves} leaves");
    for name in ["disk", "memory", "nodes"] {
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(
            this.args([name, &leaves.to_string()])
                .status()
                .unwrap()
                .success()
        );
    }
}

fn one(name: &str, leaves: u64) {
    match name {
        "disk" => disk(leaves),
        "memory" => {
            let mut tree = Tree::<Memory>::new(Memory::default(), Limits::MEMORY);
            report(
                name,
                leaves,
                |from, to| fill(&mut tree, leaves, from, to),
                None,
            );
            println!("  {}", updates(&mut tree, leaves, |_, _| {}));
            println!("  resident {} MB", resident_mb());
        }
        _ => nodes(leaves),
    }
}

fn disk(leaves: u64) {
    let folder = tempfile::tempdir().unwrap();
    let os = || OsFolder::new(folder.path().to_owned());
    let (mut tree, mut store) = Store::begin(os()).unwrap();
    let mut blocks = 0;
    let mut commit = |tree: &mut DiskMap, store: &mut Store<OsFolder>| {
        blocks += 1;
        store.commit(tree, commit_at(blocks)).unwrap();
        store.covers(tree, blocks);
    };
    report(
        "disk",
        leaves,
        |from, to| {
            fill(&mut tree, leaves, from, to);
            if to / UPDATES > from / UPDATES {
                commit(&mut tree, &mut store);
            }
        },
        Some(folder.path()),
    );
    commit(&mut tree, &mut store);
    let mut committing = Vec::new();
    let told = updates(&mut tree, leaves, |tree, round| {
        let begun = Instant::now();
        blocks = 1_000_000 + round;
        store.commit(tree, commit_at(blocks)).unwrap();
        store.covers(tree, blocks);
        committing.push(begun.elapsed());
    });
    println!("  {told}");
    println!("  commit after them {}", median(&mut committing));
    println!(
        "  resident {} MB; disk {:.1} bytes a leaf",
        resident_mb(),
        bytes(folder.path()) as f64 / leaves as f64
    );
    let root = tree.root().unwrap();
    drop((tree, store));
    let begun = Instant::now();
    let (mut tree, _, _) = Store::open(os()).unwrap().unwrap();
    assert_eq!(tree.root().unwrap(), root);
    println!("  open {} ms", begun.elapsed().as_millis());
    let mut proving = Vec::new();
    for n in 0..1000 {
        let patient = patient(n * 7919 % patients(leaves));
        let begun = Instant::now();
        let leaf = tree.patient_leaf(&patient).unwrap().unwrap();
        let path = tree.prove(&patient_map_key(&patient)).unwrap();
        proving.push(begun.elapsed());
        assert!(path.shows(&root, &patient_map_key(&patient), Some(&leaf.encode())));
    }
    println!("  leaf and path {}", median(&mut proving));
}

/// Node by node, only the tree of hashes: whoever keeps it needs the leaves besides.
fn nodes(leaves: u64) {
    let mut map = SparseMap::new();
    report(
        "nodes",
        leaves,
        |from, to| {
            for n in from..to {
                let (key, leaf) = match n % 11 {
                    0 => (
                        patient_map_key(&patient(n / 11)),
                        leaf(LeafKind::Patient, n),
                    ),
                    _ => (record_map_key(TABLE, &record(n)), leaf(LeafKind::Record, n)),
                };
                map.insert(&key, &leaf.encode());
            }
            map.root();
        },
        None,
    );
    let mut random = 1;
    let (mut taken, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (begun, cpu_before) = (Instant::now(), cpu_us());
        for n in 0..UPDATES {
            let seq = leaves + round * UPDATES + n;
            let (key, leaf) = match n % 2 {
                0 => {
                    let patient = patient(next(&mut random) % patients(leaves));
                    (patient_map_key(&patient), leaf(LeafKind::Patient, seq))
                }
                _ => {
                    let record = record(a_record(&mut random, leaves));
                    (record_map_key(TABLE, &record), leaf(LeafKind::Record, seq))
                }
            };
            map.insert(&key, &leaf.encode());
        }
        map.root();
        taken.push(begun.elapsed());
        cpu.push(Duration::from_micros(cpu_us() - cpu_before));
    }
    println!(
        "  100,000 updates and the root {}; CPU {}",
        median(&mut taken),
        median(&mut cpu)
    );
    println!(
        "  resident {} MB, without the leaves themselves",
        resident_mb()
    );
}

fn fill<P>(tree: &mut Tree<P>, leaves: u64, from: u64, to: u64)
where
    P: pitser_evidence::store::Pages,
{
    for n in from..to {
        let done = match n % 11 {
            0 => tree.put_patient(&patient(n / 11), &leaf(LeafKind::Patient, n), 0),
            _ => {
                let whose = Whose::Committed(Some(patient(n / 11)));
                tree.put_record(TABLE, &record(n), &leaf(LeafKind::Record, n), whose)
            }
        };
        assert!(done.is_ok(), "of {leaves}");
    }
    assert!(tree.root().is_ok());
}

/// What a line costs: looking up the leaf before, putting the new one.
fn updates<P: pitser_evidence::store::Pages>(
    tree: &mut Tree<P>,
    leaves: u64,
    mut after: impl FnMut(&mut Tree<P>, u64),
) -> String {
    let mut random = 1;
    let (mut taken, mut rooting, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (begun, cpu_before) = (Instant::now(), cpu_us());
        for n in 0..UPDATES {
            let seq = leaves + round * UPDATES + n;
            if n % 2 == 0 {
                let patient = patient(next(&mut random) % patients(leaves));
                assert!(matches!(tree.patient_leaf(&patient), Ok(Some(_))));
                assert!(
                    tree.put_patient(&patient, &leaf(LeafKind::Patient, seq), 0)
                        .is_ok()
                );
            } else {
                let record = record(a_record(&mut random, leaves));
                assert!(matches!(tree.record_leaf(TABLE, &record), Ok(Some(_))));
                let leaf = leaf(LeafKind::Record, seq);
                let put = tree.put_record(TABLE, &record, &leaf, Whose::Unchanged);
                assert!(put.is_ok());
            }
        }
        let rooted = Instant::now();
        assert!(tree.root().is_ok());
        rooting.push(rooted.elapsed());
        taken.push(begun.elapsed());
        cpu.push(Duration::from_micros(cpu_us() - cpu_before));
        after(tree, round);
    }
    format!(
        "100,000 updates and the root {}, of which the root {}; CPU {}",
        median(&mut taken),
        median(&mut rooting),
        median(&mut cpu)
    )
}

fn report(
    name: &str,
    leaves: u64,
    mut fill: impl FnMut(u64, u64),
    folder: Option<&std::path::Path>,
) {
    let (begun, cpu) = (Instant::now(), cpu_us());
    let mut from = 0;
    while from < leaves {
        let to = leaves.min(from + BLOCK);
        fill(from, to);
        from = to;
    }
    let taken = begun.elapsed();
    let cpu = (cpu_us() - cpu) as f64 / leaves as f64;
    println!(
        "{name}\n  filled in {:.1} s, {cpu:.2} us of CPU a leaf, resident {} MB",
        taken.as_secs_f64(),
        resident_mb()
    );
    if let Some(folder) = folder {
        println!(
            "  disk {:.1} bytes a leaf",
            bytes(folder) as f64 / leaves as f64
        );
    }
}

fn patients(leaves: u64) -> u64 {
    leaves.div_ceil(11)
}

fn a_record(random: &mut u64, leaves: u64) -> u64 {
    loop {
        let n = next(random) % leaves;
        if !n.is_multiple_of(11) {
            return n;
        }
    }
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

fn spread(n: u64, kind: u8) -> Bytes32 {
    let digest = Digest::of(&[&[kind], &n.to_be_bytes()]);
    Bytes32(digest.0.digest().try_into().unwrap())
}

fn patient(n: u64) -> Patient {
    Patient::Pseudonym(spread(n, 0))
}

fn record(n: u64) -> Bytes32 {
    spread(n, 1)
}

fn leaf(kind: LeafKind, seq: u64) -> Leaf {
    let digest =
        Digest(pitser_ksi::Imprint::new(pitser_ksi::Algorithm::Sha256, &[seq as u8; 32]).unwrap());
    Leaf {
        count: 1 + seq % 20,
        last_seq: seq,
        last_hash: digest,
        row: (kind == LeafKind::Record).then_some(RowRef {
            row: digest,
            timeline: 1,
            seq,
        }),
        kind,
    }
}

fn commit_at(blocks: u64) -> Commit {
    Commit {
        blocks,
        next_seq: blocks,
        segment: 0,
        offset: 0,
        last_line: Digest::of(&[b"line"]),
        root: Bytes32([0; 32]),
        genesis: Blob(vec![b'g'; 2000]),
        gathered: Blob(Vec::new()),
        gathered_as: String::new(),
        holds: Holds::default(),
    }
}

fn median(taken: &mut [Duration]) -> String {
    taken.sort_unstable();
    let [least, middle, most] = [taken[0], taken[taken.len() / 2], taken[taken.len() - 1]]
        .map(|time| time.as_secs_f64() * 1000.0);
    format!("{middle:.2} ms ({least:.2} to {most:.2})")
}

fn bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

/// Of this process so far, in hundredths of a second's resolution.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |n: usize| fields[n].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10_000
}
