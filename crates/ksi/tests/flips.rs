//! Flip any bit of a proof and it is noticed, or the bit is exempt, for a reason
//! that is written here (see [`exempt_bits`]).
//!
//! Signatures are judged under each policy that can tell something: the stronger
//! the policy, the fewer bits are exempt.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{own_publications, read};
use pitser_ksi::logsig::{
    BlockReader, Excerpt, Format, Lines, Seal, verify_block, verify_signature_of_block,
};
use pitser_ksi::pki::TrustAnchors;
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_ksi::tlv::{Element, Reader, Tag};

const MID_2024: Second = Second(1_717_200_000);

/// Bits that may be flipped unnoticed.
#[derive(Default)]
struct Exempt {
    /// They have no meaning where they stand.
    idle: BTreeSet<usize>,
    /// They say something that nobody vouches for. Some flips make it malformed.
    unproved: BTreeSet<usize>,
}

impl Exempt {
    fn are(&self, unnoticed: &BTreeSet<usize>, about: &str) {
        let noticed = self.idle.difference(unnoticed).collect::<Vec<_>>();
        assert!(noticed.is_empty(), "{about}: {noticed:?} have a meaning");
        let exempt = self.idle.union(&self.unproved).copied().collect();
        let missed = unnoticed.difference(&exempt).collect::<Vec<_>>();
        assert!(missed.is_empty(), "{about}: {missed:?} went unnoticed");
    }
}

/// Bits of `signature` that `policy` rightly does not look at.
fn exempt_bits(signature: &[u8], policy: Policy) -> Exempt {
    let mut exempt = Exempt::default();
    walk(Reader::new(signature), &[], policy, &mut exempt);
    exempt
}

fn walk(elements: Reader<'_>, above: &[Tag], policy: Policy, exempt: &mut Exempt) {
    for element in elements.map(Result::unwrap) {
        let path = [above, &[element.tag]].concat();
        let by_key = policy == Policy::Key;
        match path.as_slice() {
            // The key signs the publication data with its headers.
            [0x0800, 0x0805, 0x10, ..] if by_key => continue,
            // The two flags say what to do with an unknown tag; these are known.
            _ => exempt.idle.extend([element.at * 8 + 1, element.at * 8 + 2]),
        }
        match path.as_slice() {
            // Where a certificate can be had is told, not proved.
            [0x0800, 0x0805, 0x0b, 0x04] => exempt.unproved.extend(value_bits(&element)),
            // Whose key it is, is for the key policy.
            [0x0800, 0x0805, 0x0b] if !by_key => exempt.unproved.extend(value_bits(&element)),
            // Where a publication was printed is told, not proved.
            [0x0800, 0x0803, 0x09 | 0x0a] => exempt.unproved.extend(value_bits(&element)),
            [0x0800]
            | [0x0800, 0x0801 | 0x0802 | 0x0803 | 0x0805 | 0x0806]
            | [0x0800, 0x0801, 0x07 | 0x08]
            | [0x0800, 0x0803 | 0x0805, 0x10]
            | [0x0800, 0x0805, 0x0b] => walk(element.children(), &path, policy, exempt),
            _ => {}
        }
    }
}

fn value_bits(element: &Element<'_>) -> impl Iterator<Item = usize> {
    element.value_at() * 8..(element.at + element.raw.len()) * 8
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 0x80 >> (bit % 8);
    flipped
}

/// Bits whose flipping leaves `is_intact` true.
fn unnoticed(bytes: &[u8], is_intact: impl Fn(&[u8]) -> bool) -> BTreeSet<usize> {
    assert!(is_intact(bytes));
    let bits = 0..bytes.len() * 8;
    bits.filter(|bit| is_intact(&flip(bytes, *bit))).collect()
}

/// Flips every bit of a signature that is known to be intact.
fn signature(name: &str, policy: Policy, context: &Context<'_>) {
    let bytes = read(&format!("tlv/{name}.ksig"));
    let document = Some(Signature::decode(&bytes).unwrap().input());
    let context = Context {
        policy,
        document,
        ..*context
    };
    let unnoticed = unnoticed(&bytes, |bytes| {
        Signature::decode(bytes).is_ok_and(|signature| {
            assert_eq!(signature.encode(), bytes, "a bit is lost");
            verify(&signature, &context).is_intact()
        })
    });
    let about = format!("{name} {policy:?}");
    exempt_bits(&bytes, policy).are(&unnoticed, &about);
}

fn internal(name: &str) {
    signature(name, Policy::Internal, &Context::default());
}

#[test]
fn under_an_authentication_record() {
    internal("ok-sig-2014-04-30.1");
}

#[test]
fn under_a_publication() {
    internal("ok-sig-2014-04-30.1-extended");
}

#[test]
fn below_an_rfc3161_record() {
    internal("ok-legacy-sig-2014-06.gtts");
}

#[test]
fn in_a_local_chain_with_metadata() {
    internal("ok-sig-2017-04-21.1-input-hash-level-5");
}

#[test]
fn in_a_signature_with_legacy_ids() {
    internal("ok-sig-2014-08-01.1");
}

#[test]
fn under_a_key() {
    let file = publications();
    let context = Context {
        publications: Some(&file),
        ..Context::default()
    };
    signature("ok-sig-2014-04-30.1", Policy::Key, &context);
}

#[test]
fn under_a_publication_of_the_publications_file() {
    let name = "ok-sig-2014-04-30.1-extended";
    let (file, _) = own_publications(published(name), MID_2024);
    let context = Context {
        publications: Some(&file),
        ..Context::default()
    };
    signature(name, Policy::PublicationsFile, &context);
    signature(name, Policy::General, &context);
}

#[test]
fn under_a_publication_that_the_verifier_brings() {
    for name in [
        "ok-sig-2014-04-30.1-extended",
        "ok-legacy-sig-2014-06-extended.gtts",
    ] {
        let context = Context {
            user_publication: Some(published(name)),
            ..Context::default()
        };
        signature(name, Policy::UserPublication, &context);
    }
}

/// The publications file that covers the vectors of 2014, verified.
fn publications() -> PublicationsFile {
    let file = PublicationsFile::decode(&read("publications/ksi-publications.bin")).unwrap();
    let mut anchors = TrustAnchors::new();
    anchors.add_pem_or_der(&read("crt/mock.crt")).unwrap();
    let publisher = ["email=publications@guardtime.com".parse().unwrap()];
    file.verify(&anchors, &publisher, MID_2024).unwrap();
    file
}

fn published(name: &str) -> PublicationData {
    let signature = Signature::decode(&read(&format!("tlv/{name}.ksig"))).unwrap();
    signature.publication().unwrap().data
}

#[test]
fn in_a_publications_file() {
    let (file, anchors) = own_publications(published("ok-sig-2014-04-30.1-extended"), MID_2024);
    let publisher = ["email=publications@example.org".parse().unwrap()];
    let unnoticed = unnoticed(file.encode(), |bytes| {
        PublicationsFile::decode(bytes)
            .is_ok_and(|file| file.verify(&anchors, &publisher, MID_2024).is_ok())
    });
    let mut reader = Reader::at(&file.encode()[8..], 8);
    let last = std::iter::from_fn(|| reader.next()).last();
    let pkcs7 = last.unwrap().unwrap();
    // SignedData version 1 becomes 3 or 5, which other writers use.
    let version = (pkcs7.value_at() + 25) * 8;
    let flags = [pkcs7.at * 8 + 1, pkcs7.at * 8 + 2];
    let exempt = BTreeSet::from([flags[0], flags[1], version + 5, version + 6]);
    assert_eq!(unnoticed, exempt);
}

#[test]
fn in_a_log_and_its_signature() {
    let log = read_log("interlink/ok-testlog-interlink-1");
    let file = read_log("interlink/ok-testlog-interlink-1.logsig");
    let mut exempt = Exempt::default();
    for block in BlockReader::new(&file).unwrap() {
        let Seal::Signature(signature) = block.unwrap().seal.seal else {
            panic!("unsigned")
        };
        exempt_within(&file, signature, &mut exempt);
    }
    let unnoticed_in_file = unnoticed(&file, |file| log_is_intact(&log, file));
    exempt.are(&unnoticed_in_file, "log signature");
    let same_lines = |other: &[u8]| Lines::new(other).eq(Lines::new(&log));
    let unnoticed_in_log = unnoticed(&log, |log| log_is_intact(log, &file));
    // One kind of line end for another, which is not hashed.
    assert_eq!(unnoticed_in_log, unnoticed(&log, same_lines));
}

/// Whether every line is proven, and the blocks' signatures hold.
fn log_is_intact(log: &[u8], file: &[u8]) -> bool {
    let Ok(reader) = BlockReader::new(file) else {
        return false;
    };
    let (format, mut lines) = (reader.format(), Lines::new(log));
    let blocks = reader.map(|block| {
        let block = block.ok()?;
        let report = verify_block(&block, &mut lines).ok()?;
        let Seal::Signature(signature) = block.seal.seal else {
            return None;
        };
        let signature = Signature::decode(signature).ok()?;
        let level = format.signing_level(block.seal.count);
        let context = Context::new(Policy::Internal);
        let verdict = verify_signature_of_block(&signature, report.root, level, &context);
        (report.is_intact() && verdict.is_intact()).then_some(())
    });
    let blocks: Option<Vec<()>> = blocks.collect();
    format == Format::LogSignature
        && blocks.is_some_and(|blocks| !blocks.is_empty())
        && lines.next().is_none()
}

#[test]
fn in_an_integrity_proof_and_its_lines() {
    let lines = read_log("excerpt/diff-client-id.excerpt");
    let file = read_log("excerpt/diff-client-id.excerpt.logsig");
    let excerpt = Excerpt::decode(&file).unwrap();
    let mut exempt = Exempt::default();
    for block in &excerpt.blocks {
        exempt_within(&file, &block.signature, &mut exempt);
    }
    let unnoticed_in_file = unnoticed(&file, |file| proof_is_intact(&lines, file));
    exempt.are(&unnoticed_in_file, "integrity proof");
    let same_lines = |other: &[u8]| Lines::new(other).eq(Lines::new(&lines));
    let unnoticed_in_lines = unnoticed(&lines, |lines| proof_is_intact(lines, &file));
    assert_eq!(unnoticed_in_lines, unnoticed(&lines, same_lines));
}

fn proof_is_intact(lines: &[u8], file: &[u8]) -> bool {
    let Ok(excerpt) = Excerpt::decode(file) else {
        return false;
    };
    let proven = excerpt
        .check(Lines::new(lines))
        .is_ok_and(|faults| faults.is_empty());
    let signed = excerpt.blocks.iter().all(|block| {
        let level = excerpt.signing_level(block);
        let context = Context {
            level,
            ..Context::new(Policy::Internal)
        };
        Signature::decode(&block.signature)
            .is_ok_and(|signature| verify(&signature, &context).is_intact())
    });
    proven && signed
}

/// Adds the exempt bits of a signature, counted within the file that holds it.
fn exempt_within(file: &[u8], signature: &[u8], exempt: &mut Exempt) {
    let mut windows = file.windows(signature.len());
    let at = windows.position(|window| window == signature).unwrap();
    let within = |bits: BTreeSet<usize>| bits.into_iter().map(move |bit| at * 8 + bit);
    let Exempt { mut idle, unproved } = exempt_bits(signature, Policy::Internal);
    // Log signatures have no flags on elements of their own.
    idle.retain(|bit| *bit >= 8);
    exempt.idle.extend(within(idle));
    exempt.unproved.extend(within(unproved));
}

fn read_log(name: &str) -> Vec<u8> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/logsig");
    std::fs::read(testdata.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
