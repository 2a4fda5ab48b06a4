//! Publications files: published ones, our own, and tampered ones.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{key, outcome, read, text};
use pitser_ksi::error::DecodeErrorKind;
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::pki::{
    Constraint, RsaSigner, Subject, TrustAnchors, Validity, certificate_id, self_signed,
};
use pitser_ksi::publication::{PublicationData, PublicationRecord};
use pitser_ksi::publications_file::{BuildError, Contents, MAGIC, MAX_LEN, PublicationsFile};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Writer;
use proptest::prelude::*;

const MID_2024: Second = Second(1_717_200_000);
const PACK: &str = "test_pack/policy-verification-signatures/resources";

/// Every published file, and what its verification gives at some time for
/// somebody who trusts `anchor`.
#[test]
fn published_files() {
    let [now, later, y2015, y2017] = [MID_2024.0, 1_800_000_000, 1_446_300_000, 1_500_000_000];
    let pack = |name| format!("{PACK}/{name}");
    let own = |name| format!("publications/{name}");
    let deprecated = "publications-file-for-deprecated-algorithm-in-calendar-chain.bin";
    let test_signer = pack("cert-file-for-deprecated-algorithm-in-calendar-chain.pem");
    let public_ca = own("globalsign-intermediate.pem");
    let nocerts_signer = own("nocerts-signer.pem");
    let mock = "crt/mock.crt".to_owned();
    let root = "crt/CA_root.crt.der".to_owned();

    // File, certificates and publications in it, anchor, time, outcome.
    let (file, odd) = (
        own("ksi-publications.bin"),
        own("ksi-publications.invalid-cert.validity.bin"),
    );
    check(&file, (10, 21), &mock, now, "ok");
    check(&file, (10, 21), &mock, y2017, "NotValid");
    check(&file, (10, 21), &root, now, "Untrusted");
    check(&odd, (16, 34), &test_signer, now, "ok");
    check(&own(deprecated), (2, 4), &test_signer, now, "ok");
    check(&pack(deprecated), (2, 4), &test_signer, now, "ok");
    check(&pack(deprecated), (2, 4), &test_signer, later, "NotValid");

    let (nocerts, resigned) = (
        own("publications-nocerts.bin"),
        pack("publications-file-resigned.bin"),
    );
    check(&nocerts, (0, 3), &nocerts_signer, y2015, "ok");
    check(&nocerts, (0, 3), &nocerts_signer, now, "NotValid");
    check(&resigned, (4, 116), &test_signer, now, "ok");
    check(&resigned, (4, 116), &mock, now, "Untrusted");

    // The production signer is an end entity below a public authority.
    let (production, unsigned) = (
        pack("publications-file.bin"),
        own("publications-contains-not-critical-unknown-element.bin"),
    );
    check(&production, (4, 116), &public_ca, now, "ok");
    check(&production, (4, 116), &public_ca, later, "NotValid");
    check(&production, (4, 116), &mock, now, "Untrusted");
    check(&unsigned, (0, 0), &mock, now, "Malformed");
}

fn check(file: &str, lengths: (usize, usize), anchor: &str, at: u64, expected: &str) {
    let bytes = read(file);
    let decoded = PublicationsFile::decode(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert_eq!(decoded.encode(), bytes, "{file}");
    let (certificates, publications) = (decoded.certificates(), decoded.publications());
    assert_eq!((certificates.len(), publications.len()), lengths, "{file}");
    for record in certificates {
        assert_eq!(record.id, certificate_id(&record.der), "{file}");
        assert_eq!(
            decoded.certificate(&record.id),
            Some(&record.der[..]),
            "{file}"
        );
    }
    let mut anchors = TrustAnchors::new();
    anchors.add_pem_or_der(&read(anchor)).unwrap();
    let publisher = ["email=publications@guardtime.com".parse().unwrap()];
    let verdict = decoded.verify(&anchors, &publisher, Second(at));
    assert_eq!(outcome(verdict), expected, "{file}");
}

#[test]
fn finds_publications() {
    let file = PublicationsFile::decode(&read("publications/ksi-publications.bin")).unwrap();
    let times: Vec<_> = file
        .publications()
        .iter()
        .map(|record| record.data.time)
        .collect();
    let (first, second, last) = (times[0], times[1], times[times.len() - 1]);
    let time = |found: Option<&PublicationRecord>| found.map(|record| record.data.time);
    assert_eq!(time(file.nearest(Second(0))), Some(first));
    assert_eq!(time(file.nearest(first)), Some(first));
    assert_eq!(time(file.nearest(first.plus(1))), Some(second));
    assert_eq!(time(file.nearest(last)), Some(last));
    assert_eq!(time(file.nearest(last.plus(1))), None);
    assert_eq!(time(file.at_time(second)), Some(second));
    assert_eq!(time(file.at_time(second.plus(1))), None);
    assert_eq!(time(file.latest()), Some(last));
    assert_eq!(file.certificate(&[0, 0, 0, 0]), None);
}

/// A file of our own and what it takes to verify it.
struct Own {
    file: PublicationsFile,
    anchors: TrustAnchors,
    constraints: Vec<Constraint>,
}

impl Own {
    fn new() -> Self {
        let (certificate, signer) = publisher();
        let file = PublicationsFile::build(&contents(&certificate), &certificate, &signer).unwrap();
        Self {
            file,
            anchors: TrustAnchors::from_der(&certificate).unwrap(),
            constraints: vec![Constraint::email("publications@example.org")],
        }
    }

    fn verify(&self, file: &PublicationsFile) -> String {
        outcome(file.verify(&self.anchors, &self.constraints, MID_2024))
    }
}

fn publisher() -> (Vec<u8>, RsaSigner) {
    let signer = key("throw-away-rsa2048");
    let subject = Subject {
        email: "publications@example.org".into(),
        ..Subject::default()
    };
    let validity = Validity {
        from: Second(1_700_000_000),
        until: Second(1_800_000_000),
    };
    (
        self_signed(&subject, validity, &[1], &signer).unwrap(),
        signer,
    )
}

fn contents(certificate: &[u8]) -> Contents {
    Contents {
        created_at: MID_2024,
        repository: Some("http://localhost/publications".into()),
        certificates: vec![certificate.to_vec()],
        publications: [30, 10, 20].into_iter().map(publication).collect(),
    }
}

fn publication(time: u64) -> PublicationRecord {
    let imprint = Imprint::new(Algorithm::Sha256, &[time as u8; 32]).unwrap();
    PublicationRecord {
        references: vec![format!("Daily, page {time}")],
        ..PublicationData {
            time: Second(time),
            imprint,
        }
        .into()
    }
}

#[test]
fn what_we_build_verifies() {
    let own = Own::new();
    assert_eq!(own.verify(&own.file), "ok");
    let read = PublicationsFile::decode(own.file.encode()).unwrap();
    assert_eq!(read, own.file);
    assert_eq!(
        (read.created_at(), read.repository()),
        (MID_2024, Some("http://localhost/publications"))
    );
    assert_eq!(read.publications(), [10, 20, 30].map(publication));
    assert!(read.certificate(&read.certificates()[0].id).is_some());
}

#[test]
fn wants_another_publisher() {
    let mut own = Own::new();
    own.constraints = vec![Constraint::email("other@example.org")];
    assert_eq!(own.verify(&own.file), "Constraint");
    own.constraints.clear();
    assert_eq!(own.verify(&own.file), "NoConstraint");
}

/// Every byte counts: the file does not decode, or it does not verify.
#[test]
fn notices_every_changed_byte() {
    let own = Own::new();
    let bytes = own.file.encode();
    let mut unnoticed = Vec::new();
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 0x11;
        if PublicationsFile::decode(&changed).is_ok_and(|file| own.verify(&file) == "ok") {
            unnoticed.push(at);
        }
    }
    assert_eq!(unnoticed, [0; 0], "of {} bytes", bytes.len());
}

#[test]
fn notices_a_removed_publication() {
    let own = Own::new();
    let bytes = own.file.encode();
    let mut writer = Writer::new();
    publication(20).write(&mut writer, 0x0703);
    let record = writer.finish().unwrap();
    let at = bytes
        .windows(record.len())
        .position(|window| window == record)
        .unwrap();
    let shorter = [&bytes[..at], &bytes[at + record.len()..]].concat();
    let shorter = PublicationsFile::decode(&shorter).unwrap();
    assert_eq!(shorter.publications().len(), 2);
    assert_eq!(own.verify(&shorter), "Digest");
}

#[test]
fn refuses_contents_that_contradict_themselves() {
    let (certificate, signer) = publisher();
    let mut twice = contents(&certificate);
    twice.publications.push(publication(20));
    let built = PublicationsFile::build(&twice, &certificate, &signer);
    assert!(matches!(built, Err(BuildError::SameTime(Second(20)))));
    let mut unreadable = contents(&certificate);
    unreadable.certificates.push(vec![1, 2, 3]);
    let built = PublicationsFile::build(&unreadable, &certificate, &signer);
    assert!(matches!(built, Err(BuildError::Pki(_))));
}

/// `elements` after the magic, as hex.
fn decode(elements: &[&str]) -> Result<(), (DecodeErrorKind, usize)> {
    let body = data_encoding::HEXLOWER
        .decode(elements.concat().as_bytes())
        .unwrap();
    let bytes = [&MAGIC[..], &body].concat();
    PublicationsFile::decode(&bytes)
        .map(drop)
        .map_err(|error| (error.kind, error.at))
}

#[test]
fn elements_have_their_order() {
    use DecodeErrorKind::*;
    const HEADER: &str = "87010006010101020107";
    const CERTIFICATE: &str = "870200060101aa0201bb";
    const UNKNOWN: &str = "4200";
    const SIGNATURE: &str = "87040000";
    assert_eq!(decode(&[HEADER, SIGNATURE]), Ok(()));
    assert_eq!(decode(&[HEADER, CERTIFICATE, UNKNOWN, SIGNATURE]), Ok(()));
    assert_eq!(decode(&[]), Err((Truncated, 8)));
    assert_eq!(decode(&[HEADER]), Err((Missing(0x0704), 8)));
    assert_eq!(
        decode(&[HEADER, HEADER, SIGNATURE]),
        Err((Repeated(0x0701), 18))
    );
    assert_eq!(
        decode(&[HEADER, "0200", SIGNATURE]),
        Err((UnknownCritical(2), 18))
    );
    assert_eq!(
        decode(&[HEADER, SIGNATURE, SIGNATURE]),
        Err((TrailingBytes, 22))
    );
    let unexpected = UnexpectedTag {
        expected: 0x0701,
        found: 0x0704,
    };
    assert_eq!(decode(&[SIGNATURE]), Err((unexpected, 8)));
    assert_eq!(decode(&["87010003010101", SIGNATURE]), Err((Missing(2), 8)));
    // Common clients read any version; what they must not ignore is marked critical.
    assert_eq!(decode(&["87010006010102020107", SIGNATURE]), Ok(()));
    assert_eq!(decode(&["87010003020107", SIGNATURE]), Err((Missing(1), 8)));
    const NO_REPOSITORY: &str = "87010009010101020107030100";
    assert_eq!(decode(&[NO_REPOSITORY, SIGNATURE]), Err((Text, 18)));
    assert_eq!(
        decode(&[HEADER, "870200030101aa", SIGNATURE]),
        Err((Missing(2), 18))
    );
}

#[test]
fn certificates_come_before_publications() {
    let (certificate, signer) = publisher();
    let file = PublicationsFile::build(&contents(&certificate), &certificate, &signer).unwrap();
    let mut bytes = file.encode().to_vec();
    let certificate_at = bytes
        .windows(2)
        .position(|tag| tag == [0x87, 0x02])
        .unwrap();
    let publication_at = certificate_at
        + 4
        + usize::from(u16::from_be_bytes([
            bytes[certificate_at + 2],
            bytes[certificate_at + 3],
        ]));
    let publication_len = 4 + usize::from(u16::from_be_bytes([
        bytes[publication_at + 2],
        bytes[publication_at + 3],
    ]));
    bytes[certificate_at..publication_at + publication_len].rotate_right(publication_len);
    let error = PublicationsFile::decode(&bytes).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::Misplaced(0x0702));
    assert_eq!(error.at, certificate_at + publication_len);
}

/// A file of `parts`, in their order, with a signature that is none.
fn unsigned(parts: impl FnOnce(&mut Writer)) -> PublicationsFile {
    let mut writer = Writer::new();
    writer
        .raw(MAGIC)
        .nested(0x0701, |w| w.integer(0x01, 1).integer(0x02, 7));
    parts(&mut writer);
    writer.element(0x0704, &[]);
    PublicationsFile::decode(&writer.finish().unwrap()).unwrap()
}

/// Files of others need not be in order; the first of two that claim one second
/// counts, as in common clients.
#[test]
fn publications_are_found_in_any_order() {
    let again = PublicationRecord {
        data: PublicationData {
            imprint: Imprint::zero(Algorithm::Sha512),
            ..publication(20).data
        },
        ..publication(20)
    };
    let file = unsigned(|w| {
        let records = [30, 10, 20].map(publication);
        w.each(&records, |w, record| record.write(w, 0x0703));
        again.write(w, 0x0703);
    });
    let time = |found: Option<&PublicationRecord>| found.map(|record| record.data.time.0);
    assert_eq!(time(file.nearest(Second(0))), Some(10));
    assert_eq!(time(file.nearest(Second(11))), Some(20));
    assert_eq!(time(file.nearest(Second(21))), Some(30));
    assert_eq!(time(file.nearest(Second(31))), None);
    assert_eq!(time(file.latest()), Some(30));
    assert_eq!(file.at_time(Second(20)), Some(&publication(20)));
    assert_eq!(file.nearest(Second(20)), Some(&publication(20)));
}

/// An id is a name: nothing but its bytes is compared.
#[test]
fn certificates_are_found_by_any_id() {
    let ids: [&[u8]; 4] = [b"", b"a", b"four", b"longer than four"];
    let file = unsigned(|w| {
        w.each(ids, |w, id| {
            w.nested(0x0702, |w| {
                w.element(0x01, id).element(0x02, &[id, b"!"].concat())
            });
        });
        w.nested(0x0702, |w| w.element(0x01, b"a").element(0x02, b"hidden"));
    });
    for id in ids {
        assert_eq!(file.certificate(id), Some(&[id, b"!"].concat()[..]));
    }
    for id in [&b"b"[..], b"fou", b"four "] {
        assert_eq!(file.certificate(id), None);
    }
}

#[test]
fn refuses_what_is_no_publications_file() {
    let kind = |bytes: &[u8]| PublicationsFile::decode(bytes).unwrap_err().kind;
    assert_eq!(kind(b""), DecodeErrorKind::Magic);
    assert_eq!(kind(b"LOGSIG12"), DecodeErrorKind::Magic);
    assert_eq!(
        kind(&vec![0; MAX_LEN + 1]),
        DecodeErrorKind::TooLong { max: MAX_LEN }
    );
    assert_eq!(
        kind(text("publications/README.md").as_bytes()),
        DecodeErrorKind::Magic
    );
}

proptest! {
    /// What is read is written back byte for byte, whatever was done to it.
    #[test]
    fn survives_damage(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = read("publications/publications-nocerts.bin");
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(file) = PublicationsFile::decode(&bytes) {
            prop_assert_eq!(file.encode(), bytes);
            let _ = (file.nearest(MID_2024), file.at_time(MID_2024), file.latest());
        }
    }
}
