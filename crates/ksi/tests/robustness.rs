//! What the fuzz targets (`corpus.rs`) cannot see: what is written is read, no
//! prefix passes for the whole, and no input keeps a reader busy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::read;
use pitser_ksi::{
    Algorithm, Imprint, Signature,
    chain::Metadata,
    logsig::{
        BlockBuilder, BlockReader, ClosedBlock, Fault, Format, IntegrationError, Lines, extract,
        integrate, verify_block,
    },
    tlv::{Flags, Writer},
};
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

const SHA256: Algorithm = Algorithm::Sha256;

proptest! {
    #[test]
    fn metadata_reads_as_written(
        client_id in "[^\0]{0,40}",
        machine_id in prop::option::of("[^\0]{0,40}"),
        sequence: Option<u64>,
        request_time_us: Option<u64>,
    ) {
        let metadata = Metadata { client_id, machine_id, sequence, request_time_us };
        let encoded = metadata.encode();
        prop_assert!(Metadata::is_unambiguous(&encoded));
        prop_assert_eq!(Metadata::decode(&encoded), Ok(metadata));
    }
}

#[test]
fn every_truncation_is_refused() {
    for name in [
        "tlv/ok-sig-2014-04-30.1-extended.ksig",
        "tlv/ok-legacy-sig-2014-06.gtts.ksig",
        "tlv/ok-sig-2017-04-21.1-input-hash-level-5.ksig",
    ] {
        let bytes = read(name);
        for length in 0..bytes.len() {
            assert!(
                Signature::decode(&bytes[..length]).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}

/// A long metarecord at the end of a block was read anew for every line before
/// it: of a log of empty lines, a megabyte took ten seconds, 64 KB per byte.
#[test]
fn a_metarecord_far_away_is_read_once() {
    const LINES: usize = 100_000;
    let log = vec![b'\n'; LINES];
    let cost = |length: usize| {
        let block = {
            let mut builder = builder();
            (0..LINES).for_each(|_| builder.record_line(b""));
            builder.metarecord("far", &"x".repeat(length)).unwrap();
            builder.close().unwrap()
        };
        let file = file(&block, &block.unsigned(None).unwrap());
        let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
        cost_of(|| {
            let report = verify_block(&block, &mut Lines::new(&log)).unwrap();
            assert_eq!(report.faults, [] as [Fault; 0]);
        })
    };
    assert_factor(cost(65), cost(65_000), 4.0);
}

/// For each line taken out, all metarecords before it were counted: 40 000 of
/// both took five seconds, ten times as many nine minutes.
#[test]
fn lines_among_many_metarecords_are_taken_out_at_once() {
    let cost = |each: usize| {
        let block = {
            let mut builder = builder();
            for _ in 0..each {
                builder.metarecord("", "").unwrap();
                builder.record_line(b"");
            }
            builder.close().unwrap()
        };
        let file = file(&block, &block.signed(&signature_of(block.root)).unwrap());
        let log = vec![b'\n'; each];
        let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
        cost_of(|| {
            let taken = extract(&block, &mut Lines::new(&log), |_| true);
            let taken = taken.unwrap().unwrap();
            assert_eq!((taken.lines.len(), taken.block.records.len()), (each, each));
        })
    };
    // Eight times as many are eight times as dear, or 64 times if each looks at all.
    assert_factor(cost(5_000), cost(40_000), 24.0);
}

/// The seal that comes next was decoded for each block before its own: 60 KB for
/// each 120 bytes.
#[test]
fn a_seal_that_waits_is_decoded_once() {
    const BLOCKS: usize = 10_000;
    let block = {
        let mut builder = builder();
        builder.record_line(b"");
        builder.close().unwrap()
    };
    let unsigned = [&block.bytes[..], &block.unsigned(None).unwrap()].concat();
    let blocks = [Format::Blocks.magic(), &unsigned.repeat(BLOCKS)[..]].concat();
    let cost = |elements: usize| {
        let long = {
            let signature = Signature::decode(&signature_of(Imprint::zero(SHA256))).unwrap();
            let mut writer = Writer::new();
            writer.nested(Signature::TAG, |w| {
                w.raw(signature.children()).each(0..elements, |w, _| {
                    let flags = Flags {
                        noncritical: true,
                        forward: false,
                    };
                    w.flagged(0x1f, flags, b"");
                })
            });
            writer.finish().unwrap()
        };
        let seals = [Format::Seals.magic(), &block.signed(&long).unwrap()[..]].concat();
        let at = Format::Seals.magic().len();
        cost_of(|| {
            let joined = integrate(&blocks, &seals);
            assert_eq!(joined, Err(IntegrationError::StraySeal { at }));
        })
    };
    assert_factor(cost(0), cost(20_000), 4.0);
}

fn builder() -> BlockBuilder {
    BlockBuilder::new(SHA256, &[7; 32], Imprint::zero(SHA256)).unwrap()
}

fn file(block: &ClosedBlock, seal: &[u8]) -> Vec<u8> {
    [Format::LogSignature.magic(), &block.bytes[..], seal].concat()
}

/// A signature that is well formed and signs `root`, by its own word.
fn signature_of(root: Imprint) -> Vec<u8> {
    let published = Signature::decode(&read("tlv/ok-sig-2014-04-30.1.ksig")).unwrap();
    let mut chains = published.aggregation_chains().to_vec();
    chains[0].input = root;
    let forged = Signature::new(&chains, published.calendar(), published.anchor());
    forged.unwrap().encode()
}

/// The processor time that `work` takes, in seconds: the least of three runs. What
/// else the machine does hardly shows in it.
fn cost_of(work: impl Fn()) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
    };
    let run = |_| {
        let began = now();
        work();
        now() - began
    };
    (0..3).map(run).fold(f64::INFINITY, f64::min)
}

/// The larger case costs at most `factor` times the smaller one.
#[track_caller]
fn assert_factor(small: f64, large: f64, factor: f64) {
    assert!(
        large <= factor * small,
        "{:.1} times as dear, at most {factor}: {small:.3} s and {large:.3} s",
        large / small
    );
}
