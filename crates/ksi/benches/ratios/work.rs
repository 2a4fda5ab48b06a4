//! What is compared.

use std::hint::black_box;

use pitser_ksi::{
    Algorithm, Imprint, Signature,
    chain::Metadata,
    hash::{Batch, Kernel, hash},
    logsig::{BlockBuilder, BlockReader, Lines, encode_unsigned, verify_block},
    policy::{Context, Policy, verify},
    tree::{Tree, TreeBuilder},
};
use sha2::{Digest, Sha256};

/// Both sides of it do the same `count` things.
pub(super) struct Comparison {
    pub(super) kernel: String,
    pub(super) what: String,
    pub(super) count: usize,
    pub(super) plain: Box<dyn FnMut()>,
    pub(super) ours: Box<dyn FnMut()>,
}

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = Vec::new();
    for kernel in Kernel::all() {
        all.extend(by(kernel));
    }
    all.extend(SIGNATURES.map(signature));
    all.push(log_lines());
    all
}

fn by(kernel: Kernel) -> Vec<Comparison> {
    let small = [512, 4_096].map(|leaves| tree(kernel, leaves, false));
    let large = [65_536, 1_000_000]
        .into_iter()
        .flat_map(|leaves| [false, true].map(|recycled| tree(kernel, leaves, recycled)));
    let others = [
        round(kernel, 65_536),
        nodes_in_a_batch(kernel),
        lines_in_a_batch(kernel),
    ];
    small.into_iter().chain(large).chain(others).collect()
}

/// Few enough that most rounds are over before another process takes the processor.
const COUNT: usize = 1 << 12;

/// Messages that are hashed together in a batch.
const PIECE: usize = 512;

fn leaf() -> Imprint {
    hash(Algorithm::Sha256, &[b"leaf"])
}

/// `count` nodes, one after the other: both children and the level side by side, and
/// the digest of that.
fn plain_nodes(count: usize) -> Box<dyn FnMut()> {
    let leaf = leaf();
    Box::new(move || {
        for _ in 0..count {
            let child = black_box(&leaf).as_bytes();
            let mut message = [1; 67];
            message[..33].copy_from_slice(child);
            message[33..66].copy_from_slice(child);
            black_box(Sha256::digest(message));
        }
    })
}

fn plain(message: Vec<u8>, count: usize) -> Box<dyn FnMut()> {
    Box::new(move || (0..count).for_each(|_| _ = black_box(Sha256::digest(black_box(&message)))))
}

fn nodes_in_a_batch(kernel: Kernel) -> Comparison {
    let (leaf, mut batch) = (leaf(), Batch::with_kernel(Algorithm::Sha256, kernel));
    let ours = move || {
        for _ in 0..COUNT / PIECE {
            for _ in 0..PIECE {
                let leaf = black_box(leaf);
                batch.push_node(leaf.as_bytes(), leaf.as_bytes(), 1);
            }
            batch.drain().for_each(|node| _ = black_box(node));
        }
    };
    Comparison {
        kernel: kernel.to_string(),
        what: "nodes in a batch".to_owned(),
        count: COUNT,
        plain: plain_nodes(COUNT),
        ours: Box::new(ours),
    }
}

fn lines_in_a_batch(kernel: Kernel) -> Comparison {
    let line = [b'x'; 124];
    let mut batch = Batch::with_kernel(Algorithm::Sha256, kernel);
    let ours = move || {
        for _ in 0..COUNT / PIECE {
            (0..PIECE).for_each(|_| batch.push(&[&black_box(line)]));
            batch.drain().for_each(|record| _ = black_box(record));
        }
    };
    Comparison {
        kernel: kernel.to_string(),
        what: "lines of 124 bytes in a batch".to_owned(),
        count: COUNT,
        plain: plain(line.into(), COUNT),
        ours: Box::new(ours),
    }
}

/// A tree over n leaves has n - 1 nodes to be hashed. Its memory is new, or that of
/// the one before.
fn tree(kernel: Kernel, leaves: usize, recycled: bool) -> Comparison {
    let repeats = COUNT.div_ceil(leaves);
    let imprints: Vec<_> = (0..PIECE)
        .map(|i| hash(Algorithm::Sha256, &[&i.to_be_bytes()]))
        .collect();
    let mut kept: Option<Tree> = None;
    let ours = move || {
        for _ in 0..repeats {
            let last = kept.take().filter(|_| recycled);
            let tree = last.map_or_else(|| TreeBuilder::new(Algorithm::Sha256), Tree::recycle);
            let mut tree = tree.with_kernel(kernel);
            for leaf in black_box(&imprints).iter().cycle().take(leaves) {
                _ = tree.push(*leaf, 0).unwrap();
            }
            kept = Some(black_box(tree.finish().unwrap()));
        }
    };
    let memory = if recycled {
        ", memory of the one before"
    } else {
        ""
    };
    let count = repeats * (leaves - 1);
    Comparison {
        kernel: kernel.to_string(),
        what: format!("tree of {leaves} leaves{memory}"),
        count,
        plain: plain_nodes(count),
        ours: Box::new(ours),
    }
}

/// A round of requests, each below its metadata: 2 n - 1 nodes.
fn round(kernel: Kernel, requests: usize) -> Comparison {
    let (leaf, metadata) = (leaf(), metadata());
    let ours = move || {
        let mut tree = TreeBuilder::new(Algorithm::Sha256).with_kernel(kernel);
        for _ in 0..requests {
            _ = tree
                .push_with_metadata(black_box(leaf), 0, &metadata)
                .unwrap();
        }
        black_box(tree.finish());
    };
    let count = 2 * requests - 1;
    Comparison {
        kernel: kernel.to_string(),
        what: format!("round of {requests} requests"),
        count,
        plain: plain_nodes(count),
        ours: Box::new(ours),
    }
}

fn metadata() -> Vec<u8> {
    Metadata {
        client_id: "hospital-7".to_owned(),
        sequence: Some(1),
        ..Metadata::default()
    }
    .encode()
}

/// A block of lines of 124 bytes, without stored hashes.
fn log_lines() -> Comparison {
    let first = Imprint::zero(Algorithm::Sha256);
    let mut block = BlockBuilder::new(Algorithm::Sha256, &[7; 32], first).unwrap();
    let mut log = Vec::new();
    for number in 0..COUNT {
        let line = format!("{number:0124}");
        block.record_line(line.as_bytes());
        log.extend([line.as_bytes(), b"\n"].concat());
    }
    let closed = block.close().unwrap();
    let seal = encode_unsigned(closed.count, &closed.root, None).unwrap();
    let file = [b"LOGSIG12".as_slice(), &closed.bytes, &seal].concat();
    let ours = move || {
        let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
        let report = verify_block(&block, &mut Lines::new(&log)).unwrap();
        assert!(report.is_intact());
    };
    Comparison {
        kernel: Kernel::best().to_string(),
        what: "log lines of 124 bytes verified".to_owned(),
        count: COUNT,
        plain: plain(vec![b'x'; 124], COUNT),
        ours: Box::new(ours),
    }
}

/// By what vouches for them: a key, and a publication.
const SIGNATURES: [&[u8]; 2] = [
    include_bytes!("../../../../testdata/ksi/tlv/ok-sig-2014-04-30.1.ksig"),
    include_bytes!("../../../../testdata/ksi/tlv/ok-sig-2014-04-30.1-extended.ksig"),
];

/// Decoded and verified internally. Plain is what hashing alone takes: a node for each
/// link.
fn signature(bytes: &'static [u8]) -> Comparison {
    const REPEATS: usize = 64;
    let decoded = Signature::decode(bytes).unwrap();
    let chains = decoded.aggregation_chains().iter();
    let links = chains.map(|chain| chain.links.len()).sum::<usize>()
        + decoded.calendar().unwrap().links.len();
    let ours = move || {
        for _ in 0..REPEATS {
            let signature = Signature::decode(black_box(bytes)).unwrap();
            assert!(verify(&signature, &Context::new(Policy::Internal)).is_intact());
        }
    };
    Comparison {
        kernel: Kernel::best().to_string(),
        what: format!("signatures of {} bytes, {links} links", bytes.len()),
        count: REPEATS,
        plain: plain_nodes(REPEATS * links),
        ours: Box::new(ours),
    }
}
