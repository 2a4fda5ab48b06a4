//! What batches, trees and log verification gain over one `sha2` after the other,
//! as ratios from the same run. Rounds alternate between the two, so that a busy
//! machine slows both alike, and the median of their ratios is told. Rates are
//! per second and core.

use divan::black_box;
use pitser_ksi::{
    Algorithm, Imprint,
    hash::{Batch, hash},
    logsig::{BlockBuilder, BlockReader, Lines, encode_unsigned, verify_block},
    tree::TreeBuilder,
};
use sha2::{Digest, Sha256};
use std::time::Instant;

/// Prints a line for each comparison.
pub(super) fn print() {
    for (name, plain, ours) in comparisons() {
        compare(name, &*plain, &*ours);
    }
}

type Comparison = (&'static str, Box<dyn Fn()>, Box<dyn Fn()>);

/// Few enough that most rounds are over before another process takes the processor.
const NODES: usize = 1 << 12;

fn comparisons() -> Vec<Comparison> {
    let leaf = hash(Algorithm::Sha256, &[b"leaf"]);
    let line = [b'x'; 124];
    let plain_nodes = move || {
        for _ in 0..NODES {
            let leaf = black_box(leaf);
            let mut hasher = Sha256::new();
            hasher.update(leaf.as_bytes());
            hasher.update(leaf.as_bytes());
            hasher.update([1]);
            black_box(hasher.finalize());
        }
    };
    let plain_lines = move || {
        (0..NODES).for_each(|_| _ = black_box(Sha256::digest(black_box(line))));
    };
    let nodes = move || {
        let mut batch = Batch::new(Algorithm::Sha256);
        for _ in 0..NODES / 512 {
            for _ in 0..512 {
                let leaf = black_box(leaf);
                batch.push_node(leaf.as_bytes(), leaf.as_bytes(), 1);
            }
            batch.drain().for_each(|node| _ = black_box(node));
        }
    };
    // A tree over n + 1 leaves has n nodes to be hashed.
    let trees_of = move |nodes: usize| {
        move || {
            for _ in 0..NODES / nodes {
                let mut tree = TreeBuilder::new(Algorithm::Sha256);
                (0..=nodes).for_each(|_| _ = tree.push(black_box(leaf), 0).unwrap());
                black_box(tree.finish());
            }
        }
    };
    let lines = move || {
        let mut batch = Batch::new(Algorithm::Sha256);
        for _ in 0..NODES / 512 {
            (0..512).for_each(|_| batch.push(&[&black_box(line)]));
            batch.drain().for_each(|record| _ = black_box(record));
        }
    };
    let (log, file) = signed_log();
    let block = move || {
        let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
        let report = verify_block(&block, &mut Lines::new(&log)).unwrap();
        assert!(report.is_intact());
    };
    let (small, large) = (trees_of(NODES / 8), trees_of(NODES));
    vec![
        ("nodes in a batch", Box::new(plain_nodes), Box::new(nodes)),
        (
            "nodes of 512 leaf trees",
            Box::new(plain_nodes),
            Box::new(small),
        ),
        (
            "nodes of a large tree",
            Box::new(plain_nodes),
            Box::new(large),
        ),
        ("lines in a batch", Box::new(plain_lines), Box::new(lines)),
        ("log lines verified", Box::new(plain_lines), Box::new(block)),
    ]
}

/// A block of [`NODES`] lines of 124 bytes, without stored hashes.
fn signed_log() -> (Vec<u8>, Vec<u8>) {
    let first = Imprint::zero(Algorithm::Sha256);
    let mut block = BlockBuilder::new(Algorithm::Sha256, &[7; 32], first).unwrap();
    let mut log = Vec::new();
    for number in 0..NODES {
        let line = format!("{number:0124}");
        block.record_line(line.as_bytes());
        log.extend([line.as_bytes(), b"\n"].concat());
    }
    let closed = block.close().unwrap();
    let seal = encode_unsigned(closed.count, &closed.root, None).unwrap();
    (log, [b"LOGSIG12".as_slice(), &closed.bytes, &seal].concat())
}

fn compare(name: &str, plain: &dyn Fn(), ours: &dyn Fn()) {
    const ROUNDS: usize = 501;
    let seconds = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| (seconds(plain), seconds(ours)))
        .collect();
    let median = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let million = |seconds| NODES as f64 / seconds / 1e6;
    println!(
        "{name:24} {:4.2} times sha2 ({:5.2} M/s, sha2 {:5.2} M/s)",
        median(|(plain, ours)| plain / ours),
        million(median(|(_, ours)| *ours)),
        million(median(|(plain, _)| *plain)),
    );
}
