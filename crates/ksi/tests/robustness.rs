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
use std::time::{Duration, Instant};

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
    const LINES: usize = 1_000_000;
    let block = {
        let mut builder = builder();
        (0..LINES).for_each(|_| builder.record_line(b""));
        builder.metarecord("far", &"x".repeat(65_000)).unwrap();
        builder.close().unwrap()
    };
    let file = file(&block, &block.unsigned(None).unwrap());
    let log = vec![b'\n'; LINES];
    let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
    let report = within(Duration::from_secs(10), || {
        verify_block(&block, &mut Lines::new(&log)).unwrap()
    });
    assert_eq!(report.faults, [] as [Fault; 0]);
}

/// For each line taken out, all metarecords before it were counted: 40 000 of
/// both took five seconds, ten times as many nine minutes.
#[test]
fn lines_among_many_metarecords_are_taken_out_at_once() {
    const EACH: usize = 100_000;
    let block = {
        let mut builder = builder();
        for _ in 0..EACH {
            builder.metarecord("", "").unwrap();
            builder.record_line(b"");
        }
        builder.close().unwrap()
    };
    let file = file(&block, &block.signed(&signature_of(block.root)).unwrap());
    let log = vec![b'\n'; EACH];
    let block = BlockReader::new(&file).unwrap().next().unwrap().unwrap();
    let taken = within(Duration::from_secs(30), || {
        extract(&block, &mut Lines::new(&log), |_| true)
    });
    let taken = taken.unwrap().unwrap();
    assert_eq!((taken.lines.len(), taken.block.records.len()), (EACH, EACH));
}

/// The seal that comes next was decoded for each block before its own: 60 KB for
/// each 120 bytes.
#[test]
fn a_seal_that_waits_is_decoded_once() {
    const BLOCKS: usize = 100_000;
    let block = {
        let mut builder = builder();
        builder.record_line(b"");
        builder.close().unwrap()
    };
    let unsigned = [&block.bytes[..], &block.unsigned(None).unwrap()].concat();
    let blocks = [Format::Blocks.magic(), &unsigned.repeat(BLOCKS)[..]].concat();
    let long = {
        let signature = Signature::decode(&signature_of(Imprint::zero(SHA256))).unwrap();
        let mut writer = Writer::new();
        writer.nested(Signature::TAG, |w| {
            w.raw(signature.children()).each(0..20_000, |w, _| {
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
    let joined = within(Duration::from_secs(10), || integrate(&blocks, &seals));
    let at = Format::Seals.magic().len();
    assert_eq!(joined, Err(IntegrationError::StraySeal { at }));
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

/// What took far longer before, on any machine, and takes far less now.
#[track_caller]
fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    assert!(took < limit, "took {took:?}");
    done
}
