//! Log signatures against published vectors, against themselves, and against
//! whoever flips a bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use pitser_ksi::{
    error::{DecodeError, DecodeErrorKind},
    hash::{Algorithm, Imprint},
    logsig::{
        Block, BlockBuilder, BlockReader, BlockReport, BlockTree, BuildError, ClosedBlock, Excerpt,
        ExtractError, Fault, Format, IntegrationError, Lines, MAX_FAULTS, Outline, RecordChain,
        RecordFault, Seal, SealReader, StoredHashes, decode_state, encode_state, extract,
        integrate, read_block, record_signature, signed_root, verify_block,
        verify_signature_of_block,
    },
    policy::{self, Code, Context, Policy},
    signature::{HangError, Signature},
    tlv::Element,
};
use proptest::{collection::vec, prelude::*};
use std::{fs, path::PathBuf};

// Published vectors.

/// Block, and what does not fit in it.
type Expected = &'static [(usize, Fault)];

const FITS: Expected = &[];

/// Every log with its signature, what is expected, and why.
const LOGS: &[(&str, usize, Expected, &str)] = &[
    (
        "interlink/ok-testlog-interlink-1",
        1,
        FITS,
        "record hashes, no tree hashes",
    ),
    (
        "interlink/ok-testlog-interlink-2",
        1,
        FITS,
        "goes on from the last leaf of -1",
    ),
    (
        "interlink/ok-testlog-interlink-resigned-1",
        1,
        FITS,
        "-1, signed again later",
    ),
    (
        "interlink/ok-testlog-interlink-same-sig-time-1",
        1,
        FITS,
        "-1, signed in the same second as -2",
    ),
    (
        "interlink/ok-testlog-interlink-same-sig-time-2",
        1,
        FITS,
        "-2, signed in the same second as -1",
    ),
    (
        "interlink/testlog-interlink-first-rec-time-changed-2",
        1,
        &[(0, Fault::Line { line: 0, record: 0 })],
        "time of the first line changed; the stored hashes are still what was signed",
    ),
    (
        "interlink/testlog-interlink-n-1-rec-time-changed-1",
        1,
        &[(
            0,
            Fault::Line {
                line: 10,
                record: 10,
            },
        )],
        "time of the last line but one changed",
    ),
    (
        "logs_and_signatures/extended",
        4,
        FITS,
        "SHA-512, tree hashes without the final merge",
    ),
    (
        "logs_and_signatures/signed",
        4,
        FITS,
        "the same before extending; last block is one metarecord",
    ),
    (
        "logs_and_signatures/log_repaired",
        30,
        FITS,
        "some blocks signed later than those after them",
    ),
    (
        "logs_and_signatures/large-line-skipping",
        2,
        &[(0, Fault::Line { line: 0, record: 0 })],
        "CR LF ends, lines over 1024 bytes; the first line has one digit too many",
    ),
    (
        "logs_and_signatures/totally-unsigned",
        1,
        FITS,
        "no stored hashes; root in an unsigned marker",
    ),
];

#[test]
fn published_logs() {
    for &(name, blocks, expected, why) in LOGS {
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        let reports = verify(&log, &file);
        let faults: Vec<_> = reports
            .iter()
            .enumerate()
            .flat_map(|(block, report)| report.faults.iter().map(move |&fault| (block, fault)))
            .collect();
        assert_eq!(faults, expected, "{name}: {why}");
        assert_eq!(reports.len(), blocks, "{name}: {why}");
    }
}

#[test]
fn every_published_file_is_in_the_table() {
    let mut files: Vec<String> = ["interlink", "logs_and_signatures"]
        .iter()
        .flat_map(|folder| fs::read_dir(testdata(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "logsig")
        })
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut table: Vec<&str> = LOGS
        .iter()
        .map(|(name, ..)| name.split_once('/').unwrap().1)
        .collect();
    table.sort_unstable();
    assert_eq!(files, table);
}

#[test]
fn published_logs_link_up() {
    for name in [
        "logs_and_signatures/signed",
        "logs_and_signatures/log_repaired",
    ] {
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        let reports = verify(&log, &file);
        for (report, next) in reports.iter().zip(blocks(&file).iter().skip(1)) {
            assert!(
                report.is_followed_by(next),
                "{name}: block at byte {}",
                next.at
            );
        }
    }
    let [first, second] = ["ok-testlog-interlink-1", "ok-testlog-interlink-2"].map(|name| {
        (
            read(&format!("interlink/{name}")),
            read(&format!("interlink/{name}.logsig")),
        )
    });
    assert!(verify(&first.0, &first.1)[0].is_followed_by(&blocks(&second.1)[0]));
    assert!(!verify(&second.0, &second.1)[0].is_followed_by(&blocks(&first.1)[0]));
}

/// The original of large-line-skipping is not published, but its second block
/// names the last leaf of the first; the stored hashes lead there.
#[test]
fn a_changed_line_breaks_no_link_if_its_hash_is_stored() {
    let name = "logs_and_signatures/large-line-skipping";
    let (log, file) = (read(name), read(&format!("{name}.logsig")));
    assert!(verify(&log, &file)[0].is_followed_by(&blocks(&file)[1]));
}

#[test]
fn published_blocks_are_written_again_byte_for_byte() {
    let mut written = 0;
    for &(name, _, expected, _) in LOGS
        .iter()
        .filter(|(_, _, expected, _)| expected.is_empty())
    {
        assert_eq!(expected, FITS);
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        let mut lines = Lines::new(&log);
        for block in blocks(&file) {
            let closed = rebuild(&block, &mut lines);
            let theirs = block.unsealed_bytes();
            // Their SHA-512 logs lack the final merge, which ours appends.
            assert!(
                closed.bytes.starts_with(theirs),
                "{name}: block at byte {}",
                block.at
            );
            let extra = closed.bytes.len() - theirs.len();
            let merges = closed.count.count_ones() as usize - 1;
            assert!(
                extra == 0 || extra == merges * (4 + 65),
                "{name}: {extra} bytes more"
            );
            let seal = match block.seal.seal {
                Seal::Signature(signature) => closed.signed(signature),
                Seal::Unsigned { error, .. } => closed.unsigned(error),
                Seal::Rfc3161(_) => panic!("{name}: no such vector"),
            };
            assert_eq!(seal.unwrap(), block.seal.bytes, "{name}");
            written += 1;
        }
        assert_eq!(lines.next(), None, "{name}");
    }
    assert_eq!(written, 44);
}

#[test]
fn published_seals_are_of_their_roots() {
    let context = Context::new(Policy::Internal);
    for &(name, ..) in LOGS
        .iter()
        .filter(|(_, _, expected, _)| expected.is_empty())
    {
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        for (block, report) in blocks(&file).iter().zip(verify(&log, &file)) {
            let Seal::Signature(signature) = block.seal.seal else {
                continue;
            };
            let signature = Signature::decode(signature).unwrap();
            let verify = |root, level| verify_signature_of_block(&signature, root, level, &context);
            let level = Format::LogSignature.signing_level(block.seal.count);
            assert_eq!(level, report.level);
            assert!(verify(report.root, level).is_intact(), "{name}");
            assert_eq!(
                verify(report.last_leaf, level).code(),
                differs(&report),
                "{name}"
            );
            assert_eq!(
                verify(report.root, level + 1).code(),
                Some(Code::Gen03),
                "{name}"
            );
        }
    }
}

/// In a block of one record the last leaf is the root.
fn differs(report: &BlockReport) -> Option<Code> {
    (report.last_leaf != report.root).then_some(Code::Gen01)
}

#[test]
fn published_integrity_proofs() {
    for (name, blocks, records) in [("excerpt/log-ok", 2, 4), ("excerpt/diff-client-id", 2, 2)] {
        let lines = read(&format!("{name}.excerpt"));
        let file = read(&format!("{name}.excerpt.logsig"));
        let excerpt = Excerpt::decode(&file).unwrap();
        assert_eq!(excerpt.check(Lines::new(&lines)), Ok(vec![]), "{name}");
        assert_eq!(excerpt.encode().unwrap(), file, "{name}");
        assert_eq!(excerpt.blocks.len(), blocks, "{name}");
        assert_eq!(
            excerpt
                .blocks
                .iter()
                .map(|b| b.records.len())
                .sum::<usize>(),
            records,
            "{name}"
        );
    }
}

/// log-ok was extracted from log_repaired, whose signatures were extended in
/// between: we take out the very same paths.
#[test]
fn published_excerpts_are_taken_out_again() {
    let log = read("logs_and_signatures/log_repaired");
    let file = read("logs_and_signatures/log_repaired.logsig");
    let text = read("excerpt/log-ok.excerpt");
    let theirs = Excerpt::decode(&read("excerpt/log-ok.excerpt.logsig")).unwrap();

    let mut lines = Lines::new(&log);
    let (mut taken, mut records) = (Vec::new(), Vec::new());
    let wanted: [&[u64]; 2] = [&[0, 2], &[0, 1]];
    for (block, wanted) in blocks(&file).iter().zip(wanted) {
        let ours = extract(block, &mut lines, |number| wanted.contains(number))
            .unwrap()
            .unwrap();
        taken.extend(ours.lines);
        records.extend(ours.block.records);
    }
    assert_eq!(taken, Lines::new(&text).collect::<Vec<_>>());
    assert_eq!(
        records,
        theirs
            .blocks
            .into_iter()
            .flat_map(|block| block.records)
            .collect::<Vec<_>>()
    );
}

#[test]
fn an_excerpt_of_every_line_holds() {
    let name = "interlink/ok-testlog-interlink-1";
    let (log, file) = (read(name), read(&format!("{name}.logsig")));
    let ours = extract(&blocks(&file)[0], &mut Lines::new(&log), |_| true)
        .unwrap()
        .unwrap();
    let excerpt = Excerpt {
        blocks: vec![ours.block],
        is_legacy: false,
    };
    let decoded = Excerpt::decode(&excerpt.encode().unwrap()).unwrap();
    assert_eq!(decoded.check(ours.lines), Ok(vec![]));
    assert_eq!(decoded.signing_level(&decoded.blocks[0]), 5);
}

/// The first published block, with other stored hashes under its own signature.
fn restored(stored: StoredHashes) -> (Vec<u8>, Vec<u8>) {
    let name = "interlink/ok-testlog-interlink-1";
    let (log, file) = (read(name), read(&format!("{name}.logsig")));
    let block = blocks(&file)[0];
    let Seal::Signature(signature) = block.seal.seal else {
        panic!("unsigned")
    };
    let closed = rebuild_storing(stored, &block, &mut Lines::new(&log));
    let seal = closed.signed(signature).unwrap();
    let file = [&Format::LogSignature.magic()[..], &closed.bytes, &seal].concat();
    (log, file)
}

#[test]
fn stored_hashes_are_not_computed_again() {
    let take = |log: &[u8], file: &[u8], line: u64| {
        extract(&blocks(file)[0], &mut Lines::new(log), |&number| {
            number == line
        })
        .map(|taken| taken.unwrap().block)
    };
    let (log, plain) = restored(STORED[0]);
    let lines = Lines::new(&log).count() as u64;
    for stored in STORED {
        let (_, file) = restored(stored);
        for line in 0..lines {
            assert_eq!(take(&log, &file, line), take(&log, &plain, line));
        }
        // The first line is altered: what was stored still proves the last one.
        let proof = take(&flip(&log, 0), &file, lines - 1);
        assert_eq!(proof.is_ok(), stored != STORED[0], "{stored:?}");
        let proof = take(&flip(&log, 0), &file, 0);
        assert_eq!(proof, Err(ExtractError::Altered), "{stored:?}");
    }
}

#[test]
fn altered_stored_hashes_do_not_hinder_extraction() {
    let (log, plain) = restored(STORED[0]);
    let (_, stored) = restored(STORED[3]);
    let take = |file: &[u8], line: u64| {
        extract(&blocks(file)[0], &mut Lines::new(&log), |&number| {
            number == line
        })
        .map(|taken| taken.unwrap().block)
    };
    let mut altered = 0;
    for at in 0..stored.len() - 4 {
        // The head of a stored imprint of SHA-256, and its digest behind.
        if matches!(stored[at..at + 5], [0x89, 2 | 3, 0, 33, 1]) {
            let file = flip(&stored, 8 * (at + 20));
            assert_eq!(take(&file, 3), take(&plain, 3), "byte {at}");
            altered += 1;
        }
    }
    assert!(altered > 20, "{altered}");
}

#[test]
fn nothing_is_taken_out_of_what_was_not_signed() {
    let take = |log: &[u8], name: &str| {
        let file = read(&format!("{name}.logsig"));
        extract(&blocks(&file)[0], &mut Lines::new(log), |&number| {
            number == 0
        })
        .map(|_| ())
    };
    let name = "interlink/ok-testlog-interlink-1";
    assert_eq!(take(&read(name), name), Ok(()));
    assert_eq!(take(&read(name)[1..], name), Err(ExtractError::Altered));
    assert_eq!(take(b"too short\n", name), Err(ExtractError::Altered));
    let name = "logs_and_signatures/totally-unsigned";
    assert_eq!(take(&read(name), name), Err(ExtractError::Unsigned));
    let (log, file) = (read(name), read(&format!("{name}.logsig")));
    assert_eq!(
        extract(&blocks(&file)[0], &mut Lines::new(&log), |_| false),
        Ok(None)
    );
}

#[test]
fn a_block_takes_no_more_than_it_may_hold() {
    let mut builder =
        BlockBuilder::new(Algorithm::Sha256, &FIRST, Imprint::zero(Algorithm::Sha256)).unwrap();
    let mut lines = (0..2000).map(|_| &b"line"[..]);
    assert_eq!(builder.record_lines(&mut lines, 1025), 1025);
    assert_eq!(builder.record_lines(&mut lines, 1025), 0);
    assert_eq!(lines.count(), 975);
}

#[test]
fn states_read_as_written() {
    for algorithm in Algorithm::ALL {
        let leaf = pitser_ksi::hash::hash(algorithm, &[b"leaf"]);
        let file = encode_state(&leaf);
        assert_eq!(file.len(), 11 + algorithm.digest_len());
        assert_eq!(decode_state(&file), Ok(leaf));
        for length in 0..file.len() {
            assert!(decode_state(&file[..length]).is_err(), "{length}");
        }
        assert_eq!(
            decode_state(&[&file[..], b"x"].concat()),
            Err(DecodeError::new(DecodeErrorKind::TrailingBytes, file.len()))
        );
        // Magic, algorithm and length are fixed; a digest can be anything.
        for bit in 0..11 * 8 {
            assert_ne!(decode_state(&flip(&file, bit)), Ok(leaf), "{bit}");
        }
    }
    // As rsyslog lays it out: magic, algorithm id, digest length, digest.
    let theirs = [&b"KSISTAT10\x01\x20"[..], &[0xab; 32]].concat();
    let leaf = Imprint::new(Algorithm::Sha256, &[0xab; 32]).unwrap();
    assert_eq!(decode_state(&theirs), Ok(leaf));
}

#[test]
fn the_older_format_is_signed_at_level_zero() {
    let name = "interlink/ok-testlog-interlink-1";
    let mut file = read(&format!("{name}.logsig"));
    file[..8].copy_from_slice(Format::LogSignature11.magic());
    let reader = BlockReader::new(&file).unwrap();
    assert_eq!(reader.format().signing_level(13), 0);
    assert!(is_intact(&read(name), &file));

    let mut proof = read("excerpt/log-ok.excerpt.logsig");
    let excerpt = Excerpt::decode(&proof).unwrap();
    assert_eq!(excerpt.signing_level(&excerpt.blocks[0]), 3);
    proof[..8].copy_from_slice(Format::Proof11.magic());
    let excerpt = Excerpt::decode(&proof).unwrap();
    assert_eq!(excerpt.signing_level(&excerpt.blocks[0]), 0);
    assert_eq!(excerpt.encode().unwrap(), proof);
}

#[test]
fn a_block_is_read_once_it_is_whole() {
    let file = read("logs_and_signatures/totally-unsigned.logsig");
    let block = &file[8..];
    for length in 0..block.len() {
        assert!(
            read_block(&block[..length], 8).unwrap().is_none(),
            "{length} bytes"
        );
        let error = BlockReader::new(&file[..8 + length])
            .unwrap()
            .next()
            .map(Result::unwrap_err);
        let truncated = DecodeError::new(DecodeErrorKind::Truncated, 8 + length);
        assert_eq!(error, (length > 0).then_some(truncated), "{length} bytes");
    }
    let more = [block, b"\x89"].concat();
    assert_eq!(read_block(&more, 8).unwrap().unwrap().bytes, block);
}

// Our own blocks.

const FIRST: [u8; 32] = [0x5a; 32];

fn block(lines: &[&[u8]], stored: StoredHashes) -> ClosedBlock {
    let previous = Imprint::zero(Algorithm::Sha256);
    let mut block = BlockBuilder::storing(stored, Algorithm::Sha256, &FIRST, previous).unwrap();
    for line in lines {
        block.record_line(line);
    }
    block.metarecord("com.example.reason", "a test").unwrap();
    block.close().unwrap()
}

fn unsigned_file(closed: &ClosedBlock) -> Vec<u8> {
    [
        &Format::LogSignature.magic()[..],
        &closed.bytes,
        &closed.unsigned(None).unwrap(),
    ]
    .concat()
}

const STORED: [StoredHashes; 4] = [
    StoredHashes {
        records: false,
        tree: false,
    },
    StoredHashes {
        records: true,
        tree: false,
    },
    StoredHashes {
        records: false,
        tree: true,
    },
    StoredHashes {
        records: true,
        tree: true,
    },
];

#[test]
fn an_altered_line_is_named() {
    for stored in STORED {
        let file = unsigned_file(&block(&[b"a", b"b", b"c"], stored));
        let report = &verify(b"a\nB\nc\n", &file)[0];
        assert!(!report.is_intact());
        let named = (stored.records || stored.tree).then_some(1);
        assert_eq!(report.first_wrong_line(), named, "{stored:?}");
    }
}

#[test]
fn all_altered_lines_are_named_and_the_others_proven() {
    let file = unsigned_file(&block(&[b"a", b"b", b"c"], STORED[1]));
    let report = &verify(b"A\nb\nC\n", &file)[0];
    let wrong = [
        Fault::Line { line: 0, record: 0 },
        Fault::Line { line: 2, record: 2 },
    ];
    assert_eq!(report.faults, wrong);
}

#[test]
fn the_verdict_on_the_root_outlives_a_flood_of_altered_lines() {
    let lines = vec![&b"a"[..]; MAX_FAULTS + 10];
    let mut closed = block(&lines, STORED[1]);
    let report = |closed: &ClosedBlock| {
        let log = b"b\n".repeat(lines.len());
        verify(&log, &unsigned_file(closed)).remove(0)
    };
    assert_eq!(report(&closed).faults.len(), MAX_FAULTS);
    assert!(!report(&closed).faults.contains(&Fault::Root));
    closed.root = closed.last_leaf;
    assert_eq!(report(&closed).faults.last(), Some(&Fault::Root));
}

#[test]
fn what_cannot_be_built() {
    let first = Imprint::zero(Algorithm::Sha256);
    let short = BlockBuilder::new(Algorithm::Sha256, &[0; 31], first);
    assert_eq!(
        short.err(),
        Some(BuildError::IvLength {
            expected: 32,
            found: 31
        })
    );
    let mut builder = BlockBuilder::new(Algorithm::Sha256, &FIRST, first).unwrap();
    assert!(matches!(
        builder.record(Imprint::zero(Algorithm::Sha512)),
        Err(BuildError::Algorithm { .. })
    ));
    let overlong = "x".repeat(1 << 16);
    assert!(matches!(
        builder.metarecord("key", &overlong),
        Err(BuildError::TooLong(_))
    ));
    assert_eq!(builder.count(), 0, "what is refused leaves no trace");
    assert_eq!(builder.close(), Err(BuildError::Empty));
}

/// The root is still the sealed one: the log is as it was signed.
#[test]
fn an_altered_stored_hash_blames_no_line() {
    let closed = block(&[b"a", b"b", b"c"], STORED[2]);
    let mut file = unsigned_file(&closed);
    let leaf_of_b = find(&file, &[0x89, 0x03]) + 37;
    file[leaf_of_b + 10] ^= 1;
    let report = &verify(b"a\nb\nc\n", &file)[0];
    let fault = Fault::TreeHash {
        record: 1,
        line: Some(1),
    };
    assert_eq!(
        (&report.faults[..], report.first_wrong_line()),
        (&[fault][..], None)
    );
}

#[test]
fn a_missing_line_is_named() {
    for stored in STORED {
        let file = unsigned_file(&block(&[b"a", b"b", b"c"], stored));
        let report = &verify(b"a\nb\n", &file)[0];
        assert_eq!(report.first_wrong_line(), Some(2), "{stored:?}");
    }
}

#[test]
fn removed_inserted_and_swapped_lines_are_noticed() {
    for stored in STORED {
        let file = unsigned_file(&block(&[b"a", b"b", b"c"], stored));
        for log in [
            &b"a\nc\n"[..],
            b"a\nb\nb\nc\n",
            b"b\na\nc\n",
            b"\na\nb\n",
            b"",
        ] {
            assert!(!verify(log, &file)[0].is_intact(), "{stored:?} {log:?}");
        }
        assert!(
            verify(b"a\r\nb\rc", &file)[0].is_intact(),
            "line ends are not hashed"
        );
    }
}

/// The error text of an unsigned marker is exempt: nothing vouches for it, so
/// none is written here. A signature has its own checks.
#[test]
fn any_flipped_bit_of_a_block_is_noticed() {
    let log = b"one\ntwo\n\nfour\nfive\nsix\n";
    let lines: Vec<&[u8]> = Lines::new(log).collect();
    for stored in STORED {
        let file = unsigned_file(&block(&lines, stored));
        assert!(is_intact(log, &file));
        for bit in 0..file.len() * 8 {
            assert!(
                !is_intact(log, &flip(&file, bit)),
                "{stored:?}: bit {bit} went unnoticed"
            );
        }
        for bit in 0..log.len() * 8 {
            // CR for LF is the same line end.
            let changed = flip(log, bit);
            let same_lines = Lines::new(&changed).eq(Lines::new(log));
            assert_eq!(
                is_intact(&changed, &file),
                same_lines,
                "{stored:?}: bit {bit} of the log"
            );
        }
    }
}

#[test]
fn any_flipped_bit_of_an_integrity_proof_is_noticed() {
    let lines = read("excerpt/diff-client-id.excerpt");
    let file = read("excerpt/diff-client-id.excerpt.logsig");
    let signature = Excerpt::decode(&file).unwrap().blocks[0].signature.len();
    // 0905 with the 0800 is what the policies of signatures are about.
    let paths = 8 + 4 + signature;
    let second = paths + find(&file[paths..], &[0x89, 0x05]);
    for bit in paths * 8..second * 8 {
        let intact = Excerpt::decode(&flip(&file, bit))
            .and_then(|excerpt| excerpt.check(Lines::new(&lines)))
            .is_ok_and(|faults| faults.is_empty());
        assert!(!intact, "bit {bit} went unnoticed");
    }
}

#[test]
fn excerpts_have_exactly_their_lines() {
    let file = read("excerpt/log-ok.excerpt.logsig");
    let text = read("excerpt/log-ok.excerpt");
    let excerpt = Excerpt::decode(&file).unwrap();
    let lines: Vec<&[u8]> = Lines::new(&text).collect();
    let check = |lines: &[&[u8]]| excerpt.check(lines.iter().copied()).unwrap();
    assert_eq!(check(&lines), []);
    assert_eq!(check(&lines[..3]), [RecordFault::LineMissing { line: 3 }]);
    assert_eq!(
        check(&[&lines[..], &[b"more"]].concat()),
        [RecordFault::LineUnproven { line: 4 }]
    );
    let swapped = [lines[0], lines[2], lines[1], lines[3]];
    assert_eq!(
        check(&swapped),
        [RecordFault::Line { line: 1 }, RecordFault::Line { line: 2 }]
    );
}

/// Whoever has an excerpt has the paths of its lines, and can put them together anew.
#[test]
fn lines_of_an_excerpt_are_there_once_and_in_order() {
    let file = read("excerpt/log-ok.excerpt.logsig");
    let text = read("excerpt/log-ok.excerpt");
    let excerpt = Excerpt::decode(&file).unwrap();
    let lines: Vec<&[u8]> = Lines::new(&text).collect();
    let first = excerpt.blocks[0].records.len();
    assert!(first > 1 && excerpt.blocks.len() > 1);
    let check = |excerpt: &Excerpt, lines: &[&[u8]]| {
        let again = Excerpt::decode(&excerpt.encode().unwrap()).unwrap();
        again.check(lines.iter().copied()).unwrap()
    };
    let mut swapped = excerpt.clone();
    swapped.blocks[0].records.swap(0, 1);
    let mut order = lines.clone();
    order.swap(0, 1);
    let found = check(&swapped, &order);
    assert_eq!(
        found[0],
        RecordFault::Order {
            block: 0,
            record: 1
        }
    );
    let mut twice = excerpt.clone();
    let record = twice.blocks[0].records[0].clone();
    twice.blocks[0].records.insert(1, record);
    let more = [&lines[..1], &lines].concat();
    assert_eq!(
        check(&twice, &more),
        [RecordFault::Order {
            block: 0,
            record: 1
        }]
    );
    let mut again = excerpt.clone();
    again.blocks.push(excerpt.blocks[0].clone());
    let more = [&lines[..], &lines[..first]].concat();
    let block = excerpt.blocks.len();
    assert_eq!(check(&again, &more), [RecordFault::Repeated { block }]);
}

/// The 67 bytes that hash to a leaf are not a line: a path starts at a leaf.
#[test]
fn an_inner_node_is_no_line() {
    let file = read("excerpt/log-ok.excerpt.logsig");
    let chain = Excerpt::decode(&file).unwrap().blocks[0].records[0].clone();
    let (mask, rest) = chain.steps().split_first().unwrap();
    let line = [mask.sibling.as_bytes(), chain.record().as_bytes(), &[1]].concat();
    let leaf = pitser_ksi::hash::hash(Algorithm::Sha512, &[&line]);
    let mut steps = rest.to_vec();
    steps[0].correction += 1;
    assert!(RecordChain::new(leaf, None, steps).is_err());
}

// Signatures of single records.

/// Every record of every published block that is signed: its own signature
/// leads through two chains to where the block's own leads.
#[test]
fn every_published_record_can_be_signed_alone() {
    let mut signed = 0;
    for &(name, _, expected, _) in LOGS {
        if !expected.is_empty() {
            continue;
        }
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        let mut lines = Lines::new(&log);
        for block in blocks(&file) {
            let tree = BlockTree::of_block(&block, &mut lines).unwrap();
            let Seal::Signature(signature) = block.seal.seal else {
                continue;
            };
            let signature = Signature::decode(signature).unwrap();
            for index in 0..block.seal.count {
                let path = tree.chain(index).unwrap();
                let own = record_signature(&signature, &path).unwrap();
                assert_eq!(own.input(), path.record(), "{name}");
                assert_eq!(
                    own.aggregation_output(),
                    signature.aggregation_output(),
                    "{name}"
                );
                let context = Context {
                    document: Some(path.record()),
                    ..Context::new(Policy::Internal)
                };
                assert!(policy::verify(&own, &context).is_intact(), "{name}");
                signed += 1;
            }
        }
    }
    assert_eq!(signed, 174);
}

#[test]
fn a_path_from_elsewhere_makes_no_signature() {
    let file = read("excerpt/log-ok.excerpt.logsig");
    let excerpt = Excerpt::decode(&file).unwrap();
    let signature = Signature::decode(&excerpt.blocks[0].signature).unwrap();
    let path = &excerpt.blocks[1].records[0];
    assert_eq!(record_signature(&signature, path), Err(HangError::Root));
}

// Outlines.

/// Each line's path, from the outline and the lines around it, is that from the whole
/// tree, whatever stands between the lines and however full the last group is.
#[test]
fn an_outline_has_the_paths_of_the_whole_tree() {
    let counts = (1..=70).chain([127, 128, 129, 191, 192, 255, 320, 1000, 1025, 4133]);
    let stores = [(true, false), (false, true), (true, true)];
    for (count, (records, tree)) in counts.zip(stores.into_iter().cycle()) {
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512][count % 2];
        let stored = StoredHashes { records, tree };
        let zero = Imprint::zero(Algorithm::Sha256);
        let mut builder =
            BlockBuilder::storing(stored, algorithm, &vec![7; algorithm.digest_len()], zero)
                .unwrap();
        let mut log = String::new();
        for record in 0..count {
            if record % 37 == 36 || record + 1 == count {
                builder.metarecord("key", &record.to_string()).unwrap();
                continue;
            }
            let line = format!("line at {record}");
            builder.record_line(line.as_bytes());
            log += &line;
            log.push('\n');
        }
        let closed = builder.close().unwrap();
        let bytes = [&closed.bytes[..], &closed.unsigned(None).unwrap()].concat();
        let block = read_block(&bytes, 0).unwrap().unwrap();
        let tree = BlockTree::of_block(&block, &mut Lines::new(log.as_bytes())).unwrap();
        let outline = Outline::of_stored(&block).unwrap();
        let encoded = outline.encode();
        let outline = Outline::decode(&encoded).unwrap();
        assert_eq!(outline.encode(), encoded);
        assert_eq!(outline.root(), Some((closed.root, closed.level)));
        let lines: Vec<&[u8]> = Lines::new(log.as_bytes()).collect();
        for line in 0..block.line_count() {
            let around = outline.lines_around(line).unwrap();
            assert!(around.contains(&line) && around.end - around.start <= 64);
            let texts = &lines[around.start as usize..around.end as usize];
            let path = outline.chain(line, texts.iter().copied());
            assert_eq!(
                path,
                tree.chain(tree.record_of_line(line)),
                "{line} of {count}"
            );
            assert!(path.unwrap().is_of_line(lines[line as usize]));
            assert_eq!(outline.chain(line, texts[1..].iter().copied()), None);
        }
        assert_eq!(outline.lines_around(block.line_count()), None);
        assert_eq!(outline.chain(block.line_count(), lines), None);
        for length in 0..encoded.len() {
            assert!(Outline::decode(&encoded[..length]).is_none(), "{length}");
        }
        assert!(Outline::decode(&[&encoded[..], &[0]].concat()).is_none());
    }
}

#[test]
fn an_outline_takes_stored_hashes() {
    let mut outlined = 0;
    for &(name, ..) in LOGS
        .iter()
        .filter(|(_, _, expected, _)| expected.is_empty())
    {
        let (log, file) = (read(name), read(&format!("{name}.logsig")));
        let mut lines = Lines::new(&log);
        for block in blocks(&file) {
            let tree = BlockTree::of_block(&block, &mut lines).unwrap();
            let outline = Outline::of_stored(&block);
            let is_stored = block.has_record_hashes() || block.has_tree_hashes();
            assert_eq!(outline.is_some(), is_stored, "{name}");
            if let Some(outline) = outline {
                assert_eq!(outline.root(), tree.root(), "{name}");
                outlined += 1;
            }
        }
    }
    assert_eq!(outlined, 43);
}

// Parts.

#[test]
fn parts_are_joined_in_order() {
    let name = "logs_and_signatures/signed";
    let whole = read(&format!("{name}.logsig"));
    let [blocks_part, seals_part] = parts(&whole, |_| true);
    let joined = integrate(&blocks_part, &seals_part).unwrap();
    assert_eq!((joined.signed, joined.unsigned), (4, 0));
    assert_eq!(joined.bytes, whole);
}

#[test]
fn blocks_whose_seal_is_missing_stay_unsigned() {
    let name = "logs_and_signatures/signed";
    let (log, whole) = (read(name), read(&format!("{name}.logsig")));
    for missing in 0..4 {
        let [blocks_part, seals_part] = parts(&whole, |block| block != missing);
        let joined = integrate(&blocks_part, &seals_part).unwrap();
        assert_eq!((joined.signed, joined.unsigned), (3, 1));
        assert!(is_intact(&log, &joined.bytes));
        let unsigned = blocks(&joined.bytes)
            .iter()
            .position(|block| matches!(block.seal.seal, Seal::Unsigned { .. }));
        assert_eq!(unsigned, Some(missing));
    }
}

#[test]
fn a_seal_of_no_block_is_refused() {
    let whole = read("logs_and_signatures/signed.logsig");
    let [_, seals_part] = parts(&whole, |_| true);
    let [other_blocks, other_seals] =
        parts(&read("interlink/ok-testlog-interlink-1.logsig"), |_| true);
    assert_eq!(
        integrate(&other_blocks, &seals_part),
        Err(IntegrationError::StraySeal { at: 8 })
    );
    let twice = [&other_seals[..], &other_seals[8..]].concat();
    assert_eq!(
        integrate(&other_blocks, &twice),
        Err(IntegrationError::StraySeal {
            at: other_seals.len()
        })
    );
    assert_eq!(SealReader::new(&twice).unwrap().count(), 2);
}

// Round trips.

/// What a block is made of: lines, and `None` for a metarecord.
type Records = Vec<Option<Vec<u8>>>;

fn any_records() -> impl Strategy<Value = Records> {
    let line = vec(
        any::<u8>().prop_filter("no line end", |b| !b"\r\n".contains(b)),
        0..40,
    );
    vec(prop::option::weighted(0.9, line), 1..70)
}

fn any_stored() -> impl Strategy<Value = StoredHashes> {
    any::<(bool, bool)>().prop_map(|(records, tree)| StoredHashes { records, tree })
}

proptest! {
    #[test]
    fn what_is_built_verifies(
        contents in vec(any_records(), 1..4),
        stored in any_stored(),
        algorithm in prop::sample::select(&[Algorithm::Sha256, Algorithm::Sha512][..]),
    ) {
        let mut file = Format::LogSignature.magic().to_vec();
        let mut log = Vec::new();
        let mut last_leaf = Imprint::zero(algorithm);
        for (number, records) in contents.iter().enumerate() {
            let iv = vec![number as u8; algorithm.digest_len()];
            let mut builder = BlockBuilder::storing(stored, algorithm, &iv, last_leaf).unwrap();
            let mut tree = BlockTree::new(algorithm, &iv, last_leaf);
            for record in records {
                match record {
                    Some(line) => {
                        builder.record_line(line);
                        tree.record_line(line);
                        log.extend(line);
                        log.push(b'\n');
                    }
                    None => {
                        builder.metarecord("key", "value").unwrap();
                        tree.metarecord("key", "value").unwrap();
                    }
                }
            }
            let closed = builder.close().unwrap();
            prop_assert_eq!(&by_the_piece(stored, algorithm, &iv, last_leaf, records), &closed);
            prop_assert_eq!(tree.root(), Some((closed.root, closed.level)));
            for index in 0..closed.count {
                let chain = tree.chain(index).unwrap();
                prop_assert_eq!(chain.root(), (closed.root, closed.level));
                let encoded = chain.encode().unwrap();
                let element = Element::single(&encoded).unwrap();
                prop_assert_eq!(RecordChain::decode(&element), Ok(chain));
            }
            prop_assert_eq!(tree.chain(closed.count), None);
            let lines = (0..).zip(records).filter(|(_, record)| record.is_some());
            for (line, (index, _)) in (0..).zip(lines) {
                prop_assert_eq!(tree.record_of_line(line), index);
            }
            file.extend(&closed.bytes);
            file.extend(closed.unsigned(Some("no network")).unwrap());
            last_leaf = closed.last_leaf;
        }
        let reports = verify(&log, &file);
        prop_assert!(reports.iter().all(BlockReport::is_intact));
        for (report, next) in reports.iter().zip(blocks(&file).iter().skip(1)) {
            prop_assert!(report.is_followed_by(next));
        }
        prop_assert_eq!(reports.last().unwrap().last_leaf, last_leaf);
    }

    #[test]
    fn hostile_bytes_do_not_panic(
        cuts in vec((0usize..100_000, any::<u8>()), 1..8),
        length in 0usize..12_000,
    ) {
        for name in ["logs_and_signatures/signed.logsig", "excerpt/log-ok.excerpt.logsig"] {
            let mut file = read(name);
            file.truncate(length.max(8));
            for &(at, byte) in &cuts {
                let at = at % file.len();
                file[at] = byte;
            }
            let log = read("logs_and_signatures/signed");
            let _ = is_intact(&log, &file);
            if let Ok(excerpt) = Excerpt::decode(&file) {
                let _ = excerpt.check(Lines::new(&log));
                prop_assert_eq!(Excerpt::decode(&excerpt.encode().unwrap()), Ok(excerpt));
            }
        }
    }
}

// Helpers.

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/logsig")
        .join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(testdata(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn blocks(file: &[u8]) -> Vec<Block<'_>> {
    BlockReader::new(file)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

fn verify(log: &[u8], file: &[u8]) -> Vec<BlockReport> {
    let mut lines = Lines::new(log);
    blocks(file)
        .iter()
        .map(|block| verify_block(block, &mut lines).unwrap())
        .collect()
}

/// Whether a whole log and its signature agree, links between blocks included.
fn is_intact(log: &[u8], file: &[u8]) -> bool {
    let Ok(reader) = BlockReader::new(file) else {
        return false;
    };
    let mut lines = Lines::new(log);
    let mut before: Option<BlockReport> = None;
    let mut blocks = 0;
    for block in reader {
        let Ok(block) = block else { return false };
        let linked = match &before {
            Some(before) => before.is_followed_by(&block),
            None => true,
        };
        let Ok(report) = verify_block(&block, &mut lines) else {
            return false;
        };
        if !linked || !report.is_intact() {
            return false;
        }
        before = Some(report);
        blocks += 1;
    }
    blocks > 0 && lines.next().is_none()
}

/// The same block, its lines added many at a time.
fn by_the_piece(
    stored: StoredHashes,
    algorithm: Algorithm,
    iv: &[u8],
    last_leaf: Imprint,
    records: &Records,
) -> ClosedBlock {
    let mut builder = BlockBuilder::storing(stored, algorithm, iv, last_leaf).unwrap();
    for piece in records.split_inclusive(Option::is_none) {
        let mut lines = piece.iter().flatten().map(Vec::as_slice);
        let left = lines.clone().count() as u64;
        assert_eq!(builder.record_lines(&mut lines, u64::MAX), left);
        if piece.last() == Some(&None) {
            builder.metarecord("key", "value").unwrap();
        }
    }
    builder.close().unwrap()
}

fn rebuild(block: &Block<'_>, lines: &mut Lines<'_>) -> ClosedBlock {
    let stored = StoredHashes {
        records: block.has_record_hashes(),
        tree: block.has_tree_hashes(),
    };
    rebuild_storing(stored, block, lines)
}

fn rebuild_storing(stored: StoredHashes, block: &Block<'_>, lines: &mut Lines<'_>) -> ClosedBlock {
    let header = &block.header;
    let mut builder =
        BlockBuilder::storing(stored, header.algorithm, header.iv, header.previous_leaf).unwrap();
    let mut metarecords = block.metarecords().peekable();
    while builder.count() < block.seal.count {
        match metarecords.next_if(|metarecord| metarecord.index == builder.count()) {
            Some(metarecord) => builder
                .metarecord(metarecord.key, metarecord.value)
                .unwrap(),
            None => builder.record_line(lines.next().unwrap()),
        }
    }
    builder.close().unwrap()
}

/// Takes a log signature apart as asynchronous signing does; the seals of the
/// blocks that `keep` declines are not there yet.
fn parts(whole: &[u8], keep: impl Fn(usize) -> bool) -> [Vec<u8>; 2] {
    let mut parts = [Format::Blocks, Format::Seals].map(|format| format.magic().to_vec());
    for (index, block) in blocks(whole).iter().enumerate() {
        let Seal::Signature(signature) = block.seal.seal else {
            panic!("unsigned")
        };
        let root = signed_root(signature).unwrap();
        let marker =
            pitser_ksi::logsig::encode_unsigned(block.seal.count, &root, Some("pending")).unwrap();
        parts[0].extend(block.unsealed_bytes());
        parts[0].extend(marker);
        if keep(index) {
            parts[1].extend(block.seal.bytes);
        }
    }
    parts
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap()
}
