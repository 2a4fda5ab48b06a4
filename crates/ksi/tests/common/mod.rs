//! What several test binaries need. Each uses a part of it.
#![allow(dead_code, reason = "every test binary compiles its own copy")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub(crate) mod calendar;
pub(crate) mod tree;

use std::path::{Path, PathBuf};

use pitser_ksi::pki::{PkiError, RsaSigner, Subject, TrustAnchors, Validity, self_signed};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::{Contents, PublicationsFile};
use pitser_ksi::time::Second;

pub(crate) fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/ksi")
        .join(path)
}

pub(crate) fn read(path: &str) -> Vec<u8> {
    std::fs::read(testdata(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn text(path: &str) -> String {
    String::from_utf8(read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A key of `testdata/ksi/keys`.
pub(crate) fn key(name: &str) -> RsaSigner {
    RsaSigner::from_pkcs8_pem(&text(&format!("keys/{name}.pem"))).unwrap()
}

/// "ok", or the name of the error's variant: what most of these tests compare.
pub(crate) fn outcome(result: Result<(), PkiError>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => {
            let debug = format!("{error:?}");
            debug
                .split(['(', ' ', '{'])
                .next()
                .unwrap_or_default()
                .to_owned()
        }
    }
}

/// A small publications file, whose certificate is valid up to `until`, and whoever
/// vouches for it.
pub(crate) fn own_publications(
    publication: PublicationData,
    until: Second,
) -> (PublicationsFile, TrustAnchors) {
    let signer = key("throw-away-rsa2048");
    let subject = Subject {
        email: "publications@example.org".into(),
        ..Subject::default()
    };
    let validity = Validity {
        from: Second(0),
        until,
    };
    let certificate = self_signed(&subject, validity, &[1], &signer).unwrap();
    let contents = Contents {
        repository: Some("http://localhost/publications".into()),
        certificates: vec![certificate.clone()],
        publications: vec![publication.into()],
        ..Contents::default()
    };
    let file = PublicationsFile::build(&contents, &certificate, &signer).unwrap();
    (file, TrustAnchors::from_der(&certificate).unwrap())
}
