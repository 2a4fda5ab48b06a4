//! What a round, a verification and a request cost: `cargo bench -p pitser-ksi`.
//! `node` is the floor: everything else is so many nodes.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use divan::{AllocProfiler, Bencher, black_box, counter::ItemsCount};
use pitser_ksi::{
    Algorithm, Imprint, Signature,
    chain::{AggregationChain, Metadata, shape},
    hash::{hash, node},
    pdu::{
        AggregationRequest, AggregationRequestPayload, AggregationResponse,
        AggregationResponsePayload, Header, Pdu, SignRequest, SignResult, Status,
    },
    policy::{Context, Policy, verify},
    tlv::Writer,
    tree::{Tree, TreeBuilder},
};

/// Allocations are told beside the times.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const ROUND: usize = 150_000;

fn leaf() -> Imprint {
    hash(Algorithm::Sha256, &[b"leaf"])
}

/// One tree node of two imprints.
#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512, Algorithm::Sha3_256])]
fn tree_node(algorithm: Algorithm) -> Imprint {
    let leaf = black_box(leaf_of(algorithm));
    node(algorithm, leaf.as_bytes(), leaf.as_bytes(), 1)
}

fn leaf_of(algorithm: Algorithm) -> Imprint {
    Imprint::zero(algorithm)
}

/// A round of 150,000 requests: two nodes each.
#[divan::bench(sample_count = 10)]
fn build_round(bencher: Bencher<'_, '_>) {
    let metadata = metadata();
    bencher
        .counter(ItemsCount::new(ROUND))
        .bench(|| round(&metadata));
}

/// All answers of such a round.
#[divan::bench(sample_count = 10)]
fn links_of_a_round(bencher: Bencher<'_, '_>) {
    let tree = round(&metadata());
    bencher.counter(ItemsCount::new(ROUND)).bench(|| {
        for leaf in 0..ROUND {
            black_box(tree.links(leaf));
        }
    });
}

fn metadata() -> Vec<u8> {
    let client_id = "hospital-7".to_owned();
    Metadata {
        client_id,
        sequence: Some(1),
        ..Metadata::default()
    }
    .encode()
}

fn round(metadata: &[u8]) -> Tree {
    let (leaf, mut builder) = (leaf(), TreeBuilder::new(Algorithm::Sha256));
    for _ in 0..ROUND {
        builder.push_with_metadata(leaf, 0, metadata).unwrap();
    }
    builder.finish().unwrap()
}

const SIGNATURE: &[u8] =
    include_bytes!("../../../../testdata/ksi/tlv/ok-sig-2014-04-30.1-extended.ksig");

#[divan::bench]
fn decode_signature() -> Signature {
    Signature::decode(black_box(SIGNATURE)).unwrap()
}

#[divan::bench]
fn verify_signature(bencher: Bencher<'_, '_>) {
    let signature = Signature::decode(SIGNATURE).unwrap();
    let context = Context::new(Policy::Internal);
    bencher.bench_local(|| verify(black_box(&signature), &context));
}

/// What a verifier does with each signature of 2 KB.
#[divan::bench]
fn decode_and_verify_signature() {
    let signature = Signature::decode(black_box(SIGNATURE)).unwrap();
    black_box(verify(&signature, &Context::new(Policy::Internal)));
}

/// What a gateway does with each request before it enters the round.
#[divan::bench]
fn accept_request(bencher: Bencher<'_, '_>) {
    let sign = SignRequest {
        request_id: 7,
        input: leaf(),
        level: 0,
    };
    let request: AggregationRequest = Pdu::new(
        Header::new("hospital-7"),
        AggregationRequestPayload::Sign(sign),
    );
    let bytes = request.encode(b"secret", Algorithm::Sha256).unwrap();
    bencher.bench(|| {
        let received = AggregationRequest::decode(black_box(&bytes)).unwrap();
        assert!(received.verify_mac(b"secret"));
        received
    });
}

/// What a gateway does for each request once its round is closed and signed above.
#[divan::bench]
fn write_answer(bencher: Bencher<'_, '_>) {
    let tree = round(&metadata());
    let above = Signature::decode(SIGNATURE).unwrap();
    bencher.bench_local(|| {
        let links = tree.links(black_box(77_777));
        let chain = AggregationChain {
            aggregation_time: above.aggregation_time(),
            index: vec![11, shape(&links).unwrap()],
            input_data: None,
            input: leaf(),
            algorithm: Algorithm::Sha256,
            links,
        };
        let mut signature = Writer::new();
        chain.write(&mut signature);
        let result = SignResult {
            request_id: 7,
            status: Status::OK,
            message: None,
            signature: signature.raw(above.children()).clone().finish().unwrap(),
        };
        let answer: AggregationResponse = Pdu::new(
            Header::new("hospital-7"),
            AggregationResponsePayload::Result(result),
        );
        answer.encode(b"secret", Algorithm::Sha256).unwrap()
    });
}
