//! What a file is, by its content: names and suffixes say nothing.

use std::fmt;

use pitser_evidence::anchors::Anchors;
use pitser_ksi::logsig::Format;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::signature::Signature;
use pitser_ksi::tlv::{Header, Tag};
use pitser_ksi::{pki::Certificate, publications_file};

/// A kind of file that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `.ksig`: a TLV element 0800.
    Signature,
    /// `KSIPUBLF`.
    PublicationsFile,
    /// `LOGSIG12` and its relatives.
    Log(Format),
    /// A message of the service protocol, by its outer tag.
    Message(Tag),
    /// `pitser-evidence/…`.
    Evidence,
    /// JSON Lines of a trail.
    TrailLines,
    /// What a verifier trusts, TOML.
    Anchors,
    /// A C2SP signed note: checkpoint, cosigned head, auditor's statement.
    Note,
    /// X.509, PEM or DER.
    Certificate,
    /// A publication code as newspapers print it.
    PublicationCode,
}

impl Kind {
    /// The kind whose marks `bytes` bear, sound or not.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(publications_file::MAGIC) {
            return Some(Self::PublicationsFile);
        }
        if let Some(format) = Format::of(bytes) {
            return Some(Self::Log(format));
        }
        match Header::read(bytes).map(|header| header.tag) {
            Some(Signature::TAG) => return Some(Self::Signature),
            Some(tag) if MESSAGES.contains(&tag) => return Some(Self::Message(tag)),
            _ => {}
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::of_text(text),
            Err(_) => Certificate::from_der(bytes)
                .is_ok()
                .then_some(Self::Certificate),
        }
    }

    fn of_text(text: &str) -> Option<Self> {
        // Canonical JSON has its members in order: an evidence file and a trail
        // line can each begin in two ways only, so that what is left of a
        // truncated file is still recognised.
        let begins = |marks: [&str; 2]| marks.iter().any(|mark| text.starts_with(mark));
        if begins(["{\"audit\":", "{\"blocks\":"]) {
            return Some(Self::Evidence);
        }
        if begins(["{\"actor\":", "{\"at\":"]) {
            return Some(Self::TrailLines);
        }
        if text.contains("\n\n\u{2014} ") {
            return Some(Self::Note);
        }
        if PublicationData::from_code(text).is_ok() {
            return Some(Self::PublicationCode);
        }
        // Anchors hold certificates, so they come first.
        if Anchors::from_toml(text).is_ok() {
            return Some(Self::Anchors);
        }
        Certificate::many_from_pem(text)
            .is_ok()
            .then_some(Self::Certificate)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signature => "signature",
            Self::PublicationsFile => "publications file",
            Self::Log(Format::LogSignature | Format::LogSignature11) => "log signature",
            Self::Log(Format::Blocks) => "log signature, blocks",
            Self::Log(Format::Seals) => "log signature, seals",
            Self::Log(Format::Proof | Format::Proof11) => "log integrity proof",
            Self::Message(_) => "service message",
            Self::Evidence => "evidence file",
            Self::TrailLines => "trail lines",
            Self::Anchors => "anchors file",
            Self::Note => "signed note",
            Self::Certificate => "certificate",
            Self::PublicationCode => "publication code",
        })
    }
}

/// For somebody whose file is none of these.
pub(crate) const KNOWN: &str = "signatures (.ksig), publications files, log signatures (LOGSIG12, LOGSIG11, \
     LOG12BLK, LOG12SIG) and their proofs (RECSIG12, RECSIG11), evidence files, trail lines, anchors files, \
     signed notes, service messages, certificates and publication codes";

/// Outer tags of service messages (spec service §5).
const MESSAGES: [Tag; 6] = [0x0200, 0x0220, 0x0221, 0x0300, 0x0320, 0x0321];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], kind: Option<Kind>) {
        assert_eq!(Kind::of(bytes), kind);
    }

    #[test]
    fn marks_decide() {
        check(b"\x88\x00\x00\x10", Some(Kind::Signature));
        check(b"\x82\x21\x00\x10", Some(Kind::Message(0x0221)));
        check(b"KSIPUBLF", Some(Kind::PublicationsFile));
        check(b"LOG12BLK", Some(Kind::Log(Format::Blocks)));
        check(br#"{"blocks":["#, Some(Kind::Evidence));
        check(br#"{"audit":"pits"#, Some(Kind::Evidence));
        check(br#"{"at":"#, Some(Kind::TrailLines));
        check(br#"{"schema_version":1}"#, None);
        check("a/b\n1\n\n\u{2014} a/b AAAA\n".as_bytes(), Some(Kind::Note));
        check(b"version = 1\n", Some(Kind::Anchors));
        let pem = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testdata/ksi/crt/short-timespan.pem"
        ));
        let pem = pem.unwrap();
        check(pem.as_bytes(), Some(Kind::Certificate));
        let anchors = format!(
            "version = 1\n[[authority]]\ncertificate = \"\"\"{pem}\"\"\"\nconstraints = []\n"
        );
        check(anchors.as_bytes(), Some(Kind::Anchors));
        let code =
            "AAAAAA-CTOQBY-AAIAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA-AAAAAA";
        assert!(
            PublicationData::from_code(code).is_err(),
            "the checksum is not right"
        );
        check(code.as_bytes(), None);
        check(b"", None);
        check(b"hello", None);
        check(&[0xff; 40], None);
    }
}
