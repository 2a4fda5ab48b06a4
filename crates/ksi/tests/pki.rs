//! Detached PKCS#7 signatures: ours, OpenSSL's, and ones that must be refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::Command;

use common::{key, outcome, read, text};
use pitser_ksi::pki::rand_core::{self, CryptoRng, RngCore};
use pitser_ksi::pki::{
    Certificate, Constraint, PkiError, RsaSigner, SHA256_WITH_RSA, Signer, Subject, TrustAnchors,
    Validity, certificate_id, self_signed, sign_detached, verify_detached, verify_rsa,
};
use pitser_ksi::time::Second;
use proptest::prelude::*;

const FROM: Second = Second(1_700_000_000);
const AT: Second = Second(1_800_000_000);
const UNTIL: Second = Second(1_900_000_000);
const CONTENT: &[u8] = b"what is signed\n";

fn subject() -> Subject {
    Subject {
        country: "EE".into(),
        organization: "Näidis OÜ".into(),
        common_name: "Publications, \"quoted\" + more".into(),
        email: "publications@example.org".into(),
    }
}

fn certificate(signer: &RsaSigner) -> Vec<u8> {
    let validity = Validity {
        from: FROM,
        until: UNTIL,
    };
    self_signed(&subject(), validity, &[0x8f, 1, 2, 3], signer).unwrap()
}

fn constraint(text: &str) -> Constraint {
    text.parse().unwrap()
}

/// Everything a verification takes, right by default; each test spoils one thing.
struct Case {
    content: Vec<u8>,
    pkcs7: Vec<u8>,
    anchors: TrustAnchors,
    constraints: Vec<Constraint>,
    at: Second,
}

impl Case {
    fn new() -> Self {
        let signer = key("throw-away-rsa2048");
        let certificate = certificate(&signer);
        Self {
            content: CONTENT.to_vec(),
            pkcs7: sign_detached(CONTENT, &certificate, &signer).unwrap(),
            anchors: TrustAnchors::from_der(&certificate).unwrap(),
            constraints: vec![constraint("email=publications@example.org")],
            at: AT,
        }
    }

    fn verify(&self) -> Result<(), PkiError> {
        verify_detached(
            &self.content,
            &self.pkcs7,
            &self.anchors,
            &self.constraints,
            self.at,
        )
    }
}

#[test]
fn what_we_sign_verifies() {
    let mut case = Case::new();
    assert_eq!(outcome(case.verify()), "ok");
    for text in [
        "C=EE",
        "O=Näidis OÜ",
        "CN=Publications, \"quoted\" + more",
        "1.2.840.113549.1.9.1=publications@example.org",
    ] {
        case.constraints.push(constraint(text));
    }
    assert_eq!(outcome(case.verify()), "ok");
    for at in [FROM, UNTIL] {
        case.at = at;
        assert_eq!(outcome(case.verify()), "ok", "{at}");
    }
    assert_eq!(
        Case::new().pkcs7,
        case.pkcs7,
        "equal input gives equal bytes"
    );
}

fn check(spoil: impl FnOnce(&mut Case), expected: &str) {
    let mut case = Case::new();
    spoil(&mut case);
    assert_eq!(outcome(case.verify()), expected);
}

#[test]
fn refuses_other_content() {
    check(|case| case.content[0] ^= 1, "Digest");
    check(|case| case.content.push(0), "Digest");
    check(|case| case.content.clear(), "Digest");
}

#[test]
fn refuses_other_signers() {
    check(|case| case.constraints.clear(), "NoConstraint");
    check(
        |case| case.constraints.push(constraint("email=x@example.org")),
        "Constraint",
    );
    check(
        |case| {
            case.constraints
                .push(constraint("email=publications@example.or"))
        },
        "Constraint",
    );
    check(
        |case| case.constraints.push(constraint("2.5.4.97=1")),
        "Constraint",
    );
    check(|case| case.anchors = TrustAnchors::new(), "Untrusted");
    let other = certificate(&key("throw-away-rsa2048-other"));
    check(
        |case| case.anchors = TrustAnchors::from_der(&other).unwrap(),
        "Untrusted",
    );
}

#[test]
fn refuses_other_times() {
    check(|case| case.at = Second(FROM.0 - 1), "NotValid");
    check(|case| case.at = Second(UNTIL.0 + 1), "NotValid");
}

/// Whoever reads it need not look up a validity.
#[test]
fn an_expired_certificate_tells_since_when_and_what_to_do() {
    let told = |at| {
        let case = Case { at, ..Case::new() };
        let subject = case.anchors.certificates()[0].subject();
        let told = case.verify().unwrap_err().to_string();
        told.replace(&subject, "X")
    };
    assert_eq!(
        told(Second(UNTIL.0 + 1)),
        "the certificate of X expired at 2030-03-17T17:46:40Z, and 2030-03-17T17:46:41Z is later: \
         get what was signed with a newer certificate, or judge as of a time before it expired"
    );
    assert_eq!(
        told(Second(FROM.0 - 1)),
        "the certificate of X is valid from 2023-11-14T22:13:20Z on, and 2023-11-14T22:13:19Z is \
         earlier: look at the clock, or judge as of a later time"
    );
}

#[test]
fn refuses_what_is_no_signature() {
    check(|case| case.pkcs7.clear(), "Malformed");
    check(|case| case.pkcs7.push(0), "Malformed");
    check(|case| case.pkcs7.truncate(100), "Malformed");
    check(|case| case.pkcs7 = vec![0x30; 70_000], "TooLarge");
    check(|case| case.pkcs7 = [0x30, 0x80].repeat(30_000), "Malformed");
}

/// Every bit of the signature counts, but for those that carry no meaning.
#[test]
fn notices_every_flipped_bit() {
    let case = Case::new();
    let mut unnoticed = Vec::new();
    for bit in 0..case.pkcs7.len() * 8 {
        let mut flipped = case.pkcs7.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let verdict = verify_detached(CONTENT, &flipped, &case.anchors, &case.constraints, case.at);
        if verdict.is_ok() {
            unnoticed.push(bit);
        }
    }
    // SignedData version 1 becomes 3 or 5, which other writers use.
    let version = 25 * 8;
    assert_eq!(
        unnoticed,
        [version + 1, version + 2],
        "of {} bytes",
        case.pkcs7.len()
    );
}

/// Java writers use the indefinite form throughout.
#[test]
fn reads_ber() {
    check(|case| case.pkcs7 = indefinite(&case.pkcs7), "ok");
}

/// `der` with the indefinite length in every constructed element.
fn indefinite(der: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = der;
    while let [tag, first, ..] = rest {
        let (header, len) = match first {
            0x81 => (3, usize::from(rest[2])),
            0x82 => (4, usize::from(rest[2]) << 8 | usize::from(rest[3])),
            short => (2, usize::from(*short)),
        };
        let (element, after) = rest.split_at(header + len);
        if tag & 0x20 == 0 {
            out.extend(element);
        } else {
            out.extend([*tag, 0x80]);
            out.extend(indefinite(&element[header..]));
            out.extend([0, 0]);
        }
        rest = after;
    }
    out
}

#[test]
fn the_certificate_must_fit_the_key() {
    let signer = key("throw-away-rsa2048");
    let other = certificate(&key("throw-away-rsa2048-other"));
    let result = sign_detached(CONTENT, &other, &signer).map(drop);
    assert_eq!(outcome(result), "KeyMismatch");
}

#[test]
fn openssl_signatures() {
    let anchors = TrustAnchors::from_pem(&text("pki/anchors.pem"));
    let anchors = anchors.unwrap();
    let constraints = [constraint("email=publications@example.org")];
    for (file, expected) in [
        ("ok-chain", "ok"),
        ("ok-anchor-in-signature", "ok"),
        ("ok-sha1", "ok"),
        ("ok-sha384", "ok"),
        ("ok-sha512", "ok"),
        ("ok-key-id", "ok"),
        ("ok-smime", "ok"),
        ("nok-missing-intermediate", "Untrusted"),
        ("nok-path-length", "Untrusted"),
        ("nok-issuer-not-ca", "Untrusted"),
        ("nok-issuer-key-usage", "Untrusted"),
        ("nok-critical-extension", "Untrusted"),
        ("nok-issuer-expired", "NotValid"),
        ("nok-issuer-namesake", "Untrusted"),
        ("nok-signer-key-usage", "Untrusted"),
        // What a signer of publications files is for is told by constraints alone.
        ("ok-extended-key-usage", "ok"),
        ("ok-other-attributes", "ok"),
        ("ok-version-1-anchor", "ok"),
        ("nok-version-1-intermediate", "Untrusted"),
        ("nok-anchor-not-ca", "Untrusted"),
        ("nok-loop", "Untrusted"),
        ("nok-two-signers", "SignerCount"),
        ("nok-no-certificate", "SignerMissing"),
        ("nok-attached", "Malformed"),
        ("nok-attached-ber", "Malformed"),
        ("nok-no-attributes", "SignedAttribute"),
        ("nok-pss", "Algorithm"),
        ("nok-md5", "Algorithm"),
        ("nok-sha224", "Algorithm"),
        ("nok-ecdsa", "Algorithm"),
        ("nok-two-emails", "Constraint"),
    ] {
        let pkcs7 = read(&format!("pki/{file}.p7"));
        let got = verify_detached(CONTENT, &pkcs7, &anchors, &constraints, AT);
        let shown = got.as_ref().map_err(ToString::to_string).err();
        assert_eq!(outcome(got), expected, "{file}: {shown:?}");
    }
}

#[test]
fn other_implementations_read_ours() {
    use cms::cert::x509::der::{Decode, Encode};
    let case = Case::new();
    let info = cms::content_info::ContentInfo::from_der(&case.pkcs7).unwrap();
    assert_eq!(info.to_der().unwrap(), case.pkcs7);
    let signed: cms::signed_data::SignedData = info.content.decode_as().unwrap();
    assert_eq!(signed.signer_infos.0.len(), 1);
    assert_eq!(signed.to_der().unwrap(), info.content.to_der().unwrap());
    let certificate = case.anchors.certificates()[0].der();
    let parsed = x509_cert::Certificate::from_der(certificate).unwrap();
    assert_eq!(parsed.to_der().unwrap(), certificate);
}

/// Skipped where there is no `openssl` command.
#[test]
fn openssl_verifies_ours() {
    if Command::new("openssl").arg("version").output().is_err() {
        return;
    }
    let case = Case::new();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    };
    file("signature.p7", &case.pkcs7);
    file("content", &case.content);
    file("certificate.der", case.anchors.certificates()[0].der());
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&dir)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
    };
    openssl(&[
        "x509",
        "-inform",
        "DER",
        "-in",
        "certificate.der",
        "-out",
        "certificate.pem",
    ]);
    openssl(&[
        "verify",
        "-x509_strict",
        "-CAfile",
        "certificate.pem",
        "certificate.pem",
    ]);
    for command in ["cms", "smime"] {
        let inputs = [
            "-in",
            "signature.p7",
            "-content",
            "content",
            "-CAfile",
            "certificate.pem",
        ];
        let options = ["-verify", "-binary", "-inform", "DER", "-out", "verified"];
        openssl(&[&[command], &options[..], &inputs[..]].concat());
    }
}

#[test]
fn certificates() {
    let signer = key("throw-away-rsa2048");
    let der = certificate(&signer);
    let parsed = Certificate::from_der(&der).unwrap();
    assert_eq!((parsed.valid_from(), parsed.valid_until()), (FROM, UNTIL));
    assert_eq!(parsed.id(), certificate_id(&der));
    let signature = signer.sign_sha256_rsa(CONTENT).unwrap();
    assert_eq!(signature.len(), 256);
    let verify =
        |oid, message: &[u8], signature: &[u8]| outcome(verify_rsa(&der, oid, message, signature));
    assert_eq!(verify(SHA256_WITH_RSA, CONTENT, &signature), "ok");
    assert_eq!(verify(SHA256_WITH_RSA, b"other", &signature), "Signature");
    assert_eq!(
        verify(SHA256_WITH_RSA, CONTENT, &signature[1..]),
        "Signature"
    );
    assert_eq!(
        verify("1.2.840.113549.1.1.13", CONTENT, &signature),
        "Signature"
    );
    for oid in ["2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2", "", "rsa"] {
        assert_eq!(verify(oid, CONTENT, &signature), "Algorithm", "{oid:?}");
    }
}

/// Found by the fuzzer: a number of an algorithm's identifier was let overflow,
/// which is a panic in a debug build and a second spelling in any other. Each
/// letter took a call's worth of stack besides.
#[test]
fn an_algorithm_has_one_spelling() {
    let signer = key("throw-away-rsa2048");
    let der = certificate(&signer);
    let signature = signer.sign_sha256_rsa(CONTENT).unwrap();
    let zeros = "0".repeat(60_000);
    for oid in [
        "1.2.840.4295080845.1.1.11".to_owned(),
        "1.2.840.113549.01.1.11".to_owned(),
        format!("1.2.840.113549.1.1.{zeros}11"),
        format!("1.2.{zeros}"),
    ] {
        let verified = outcome(verify_rsa(&der, &oid, CONTENT, &signature));
        assert_eq!(verified, "Algorithm", "{}", &oid[..24.min(oid.len())]);
    }
}

/// Found by the fuzzer: the end was sought from the beginning on, and found
/// within it, where both share their dashes. This panicked in every build.
#[test]
fn pem_armour_that_overlaps_is_refused() {
    for pem in [
        "-----BEGIN CERTIFICATE--------END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE----------END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----",
    ] {
        assert_eq!(outcome(Certificate::from_pem(pem).map(drop)), "Malformed");
    }
}

/// A certificate names its signature's algorithm twice, and only once is it signed.
#[test]
fn a_certificate_does_not_contradict_itself_about_its_algorithm() {
    const SHA256_WITH_RSA_DER: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
    let der = certificate(&key("throw-away-rsa2048"));
    let places: Vec<usize> = der
        .windows(SHA256_WITH_RSA_DER.len())
        .enumerate()
        .filter(|(_, window)| *window == SHA256_WITH_RSA_DER)
        .map(|(at, _)| at + SHA256_WITH_RSA_DER.len() - 1)
        .collect();
    assert_eq!(places.len(), 2);
    for at in places {
        let mut other = der.clone();
        other[at] = 12;
        let read = Certificate::from_der(&other).map(drop);
        assert_eq!(outcome(read), "Malformed", "byte {at}");
    }
}

#[test]
fn certificates_after_2049() {
    let signer = key("throw-away-rsa2048");
    let validity = Validity {
        from: FROM,
        until: Second(4_102_444_800),
    };
    let der = self_signed(&subject(), validity, &[1], &signer).unwrap();
    assert_eq!(
        Certificate::from_der(&der).unwrap().valid_until(),
        validity.until
    );
}

#[test]
fn refuses_unsound_certificates() {
    let signer = key("throw-away-rsa2048");
    let make = |subject: &Subject, from, until, serial: &[u8]| {
        let validity = Validity {
            from: Second(from),
            until: Second(until),
        };
        outcome(self_signed(subject, validity, serial, &signer).map(drop))
    };
    assert_eq!(make(&subject(), 1, 2, &[1]), "ok");
    assert_eq!(make(&subject(), 2, 1, &[1]), "Malformed");
    assert_eq!(make(&subject(), 1, u64::MAX, &[1]), "Malformed");
    assert_eq!(make(&subject(), 1, 2, &[]), "Malformed");
    assert_eq!(make(&subject(), 1, 2, &[0]), "Malformed");
    assert_eq!(make(&subject(), 1, 2, &[1; 21]), "Malformed");
    assert_eq!(make(&Subject::default(), 1, 2, &[1]), "Subject");
    assert_eq!(
        make(
            &Subject {
                country: "ee".into(),
                ..subject()
            },
            1,
            2,
            &[1]
        ),
        "Subject"
    );
    assert_eq!(
        make(
            &Subject {
                email: "ä@example.org".into(),
                ..subject()
            },
            1,
            2,
            &[1]
        ),
        "Subject"
    );
    assert_eq!(
        make(
            &Subject {
                common_name: "a\0b".into(),
                ..subject()
            },
            1,
            2,
            &[1]
        ),
        "Subject"
    );
}

#[test]
fn published_certificates() {
    let root = Certificate::from_der(&read("crt/CA_root.crt.der")).unwrap();
    assert!(root.is_valid_at(Second(1_500_000_000)) && !root.is_valid_at(AT));
    Certificate::from_pem(&text("crt/mock.crt")).unwrap();
    for file in ["CA_2", "CA_3", "expired", "future", "mock"] {
        let der = read(&format!("crt/{file}.crt.der"));
        assert_eq!(Certificate::from_der(&der).unwrap().der(), der, "{file}");
    }
}

#[test]
fn keys_survive_writing_and_are_not_shown() {
    let signer = key("throw-away-rsa2048");
    let again = RsaSigner::from_pkcs8_der(&signer.to_pkcs8_der().unwrap()).unwrap();
    assert_eq!(again.public_key_der(), signer.public_key_der());
    assert_eq!(
        again.sign_sha256_rsa(b"x").unwrap(),
        signer.sign_sha256_rsa(b"x").unwrap()
    );
    let pem = signer.to_pkcs8_pem().unwrap();
    assert_eq!(pem.as_bytes(), read("keys/throw-away-rsa2048.pem"));
    assert_eq!(format!("{signer:?}"), "RsaSigner(2048 bits)");
    assert_eq!(
        outcome(RsaSigner::from_pkcs8_pem("no key").map(drop)),
        "Key"
    );
}

#[test]
fn keys_are_made_from_the_given_randomness() {
    let signer = RsaSigner::generate(&mut Counter(0), 2048).unwrap();
    let again = RsaSigner::generate(&mut Counter(0), 2048).unwrap();
    assert_eq!(signer.bits(), 2048);
    assert_eq!(signer.public_key_der(), again.public_key_der());
    let der = certificate(&signer);
    let signature = signer.sign_sha256_rsa(CONTENT).unwrap();
    assert_eq!(
        outcome(verify_rsa(&der, SHA256_WITH_RSA, CONTENT, &signature)),
        "ok"
    );
    let too_small = RsaSigner::generate(&mut Counter(0), 1024).map(drop);
    assert_eq!(outcome(too_small), "KeySize");
}

/// A stream that anybody can repeat: SplitMix64.
struct Counter(u64);

impl RngCore for Counter {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        rand_core::impls::fill_bytes_via_next(self, dest);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Counter {}

proptest! {
    /// Damaged in a few places, they are refused or read, never a panic.
    #[test]
    fn survives_damage(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let damaged = |file| {
            let mut bytes = read(file);
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes
        };
        for file in ["crt/CA_3.crt.der", "crt/mock.crt.der"] {
            let bytes = damaged(file);
            if let Ok(certificate) = Certificate::from_der(&bytes) {
                prop_assert_eq!(certificate.der(), bytes);
                let _ = certificate.verify_rsa(SHA256_WITH_RSA, b"", &[0; 256]);
            }
        }
        let anchors = TrustAnchors::from_pem(&text("pki/anchors.pem")).unwrap();
        for file in ["pki/ok-chain.p7", "pki/nok-attached-ber.p7"] {
            let expected = [constraint("email=publications@example.org")];
            let _ = verify_detached(CONTENT, &damaged(file), &anchors, &expected, AT);
        }
    }
}
