//! Publications: calendar roots that the world has seen (spec §3.3 to §3.7, §4).
//!
//! ```text
//! 10 publication data              0B signature data
//!   02 time     publication time     01 string   signature type, an OID
//!   04 imprint  calendar root        02 octets   signature value
//!                                    03 octets   certificate id
//! 0803 / 0703 publication record     04 string   certificate repository, 0..1
//!   10          publication data
//!   09 string   reference, 0..n    0805 calendar authentication record
//!   0A string   repository, 0..n     10          publication data, forward flag set
//!                                    0B          signature over the element 10
//!
//! publication code: time:8 | imprint | CRC-32:4, in base32, groups of six letters
//! ```

use crate::{
    chain::push,
    error::DecodeError,
    hash::Imprint,
    time::Second,
    tlv::{Element, Flags, Tag, Writer},
};
use data_encoding::BASE32_NOPAD;
use thiserror::Error;

/// The root of the calendar at one second.
///
/// ```
/// use pitser_ksi::{Imprint, Second, Algorithm, publication::PublicationData};
/// let data = PublicationData {
///     time: Second(1_400_112_000),
///     imprint: Imprint::zero(Algorithm::Sha256),
/// };
/// assert!(data.to_code().starts_with("AAAAAA-CTOQBY-"));
/// assert_eq!(PublicationData::from_code(&data.to_code()), Ok(data));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublicationData {
    /// The last second that the root covers.
    pub time: Second,
    /// The root.
    pub imprint: Imprint,
}

impl PublicationData {
    /// The element's tag.
    pub const TAG: Tag = 0x10;

    /// The publication code, as newspapers print it: 72 letters for SHA-256,
    /// besides the dashes.
    #[must_use]
    pub fn to_code(&self) -> String {
        let mut bytes = self.time.0.to_be_bytes().to_vec();
        bytes.extend(self.imprint.as_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        let letters = BASE32_NOPAD.encode(&bytes);
        letters
            .chars()
            .enumerate()
            .flat_map(|(i, letter)| {
                (i > 0 && i % CODE_GROUP == 0)
                    .then_some('-')
                    .into_iter()
                    .chain([letter])
            })
            .collect()
    }

    /// Reads a publication code. Letter case, dashes and white space do not
    /// matter; `=` ends the code.
    ///
    /// # Errors
    /// Not base32, too short or too long, wrong checksum, or not an imprint.
    pub fn from_code(code: &str) -> Result<PublicationData, CodeError> {
        let letters: Vec<u8> = code
            .bytes()
            .take_while(|&byte| byte != b'=')
            .filter(|byte| *byte != b'-' && !byte.is_ascii_whitespace())
            .map(|byte| byte.to_ascii_uppercase())
            .take(MAX_CODE_LETTERS + 1)
            .collect();
        if letters.len() > MAX_CODE_LETTERS {
            return Err(CodeError::Length);
        }
        let bytes = BASE32_NOPAD
            .decode(&letters)
            .map_err(|_| CodeError::Letters)?;
        let (content, checksum) = bytes.split_last_chunk().ok_or(CodeError::Length)?;
        if crc32fast::hash(content).to_be_bytes() != *checksum {
            return Err(CodeError::Checksum);
        }
        let (time, imprint) = content.split_first_chunk().ok_or(CodeError::Length)?;
        let imprint = Imprint::from_bytes(imprint).map_err(|_| CodeError::Imprint)?;
        Ok(PublicationData {
            time: Second(u64::from_be_bytes(*time)),
            imprint,
        })
    }

    /// Reads publication data.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown.
    pub fn decode(element: &Element<'_>) -> Result<PublicationData, DecodeError> {
        let (mut time, mut imprint) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x02 => child.fill(&mut time, child.second()?)?,
                0x04 => child.fill(&mut imprint, child.imprint()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(PublicationData {
            time: element.require(time, 0x02)?,
            imprint: element.require(imprint, 0x04)?,
        })
    }

    /// Appends publication data, with `flags` on its header.
    pub fn write(&self, writer: &mut Writer, flags: Flags) {
        writer.nested_flagged(Self::TAG, flags, |w| {
            w.integer(0x02, self.time.0).imprint(0x04, &self.imprint)
        });
    }
}

/// A text is not a publication code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodeError {
    /// A letter that base32 does not use, or a number of letters it cannot have.
    #[error("not a publication code: a letter is missing, or not of A to Z and 2 to 7")]
    Letters,
    /// Too short for a time and a checksum, or too long for any hash.
    #[error("not a publication code: too short or too long")]
    Length,
    /// A letter is wrong.
    #[error("publication code with a typing error: the checksum differs")]
    Checksum,
    /// The checksum is right, but the hash inside is not one we know.
    #[error("publication code with an unsupported hash")]
    Imprint,
}

/// A publication and where it was printed: `0803` in a signature, `0703` in a
/// publications file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationRecord {
    /// What was published.
    pub data: PublicationData,
    /// Where to look it up, such as "Financial Times, ISSN: 0307-1766, 2014-05-16".
    pub references: Vec<String>,
    /// Addresses at which publications are kept.
    pub repositories: Vec<String>,
}

impl PublicationRecord {
    /// The tag in a signature.
    pub const TAG: Tag = 0x0803;

    /// Reads a record, whatever its own tag.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown; more than 1024 texts.
    pub fn decode(element: &Element<'_>) -> Result<PublicationRecord, DecodeError> {
        let mut data = None;
        let (mut references, mut repositories) = (Vec::new(), Vec::new());
        for child in element.children() {
            let child = child?;
            match child.tag {
                PublicationData::TAG => child.fill(&mut data, PublicationData::decode(&child)?)?,
                0x09 => push(&child, &mut references, MAX_TEXTS, text(&child)?)?,
                0x0a => push(&child, &mut repositories, MAX_TEXTS, text(&child)?)?,
                _ => child.ignore()?,
            }
        }
        let data = element.require(data, PublicationData::TAG)?;
        Ok(PublicationRecord {
            data,
            references,
            repositories,
        })
    }

    /// Appends the record as an element `tag`. Empty texts are left out.
    pub fn write(&self, writer: &mut Writer, tag: Tag) {
        writer.nested(tag, |w| {
            self.data.write(w, Flags::NONE);
            w.each(&self.references, |w, text| write_text(w, 0x09, text))
                .each(&self.repositories, |w, text| write_text(w, 0x0a, text))
        });
    }
}

impl From<PublicationData> for PublicationRecord {
    fn from(data: PublicationData) -> Self {
        PublicationRecord {
            data,
            references: Vec::new(),
            repositories: Vec::new(),
        }
    }
}

/// A signature by a key whose certificate stands in the publications file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureData {
    /// The signature algorithm as a dotted OID; `1.2.840.113549.1.1.11` is RSA
    /// with SHA-256.
    pub oid: String,
    /// The signature.
    pub value: Vec<u8>,
    /// Which certificate: the CRC-32 of its DER, big-endian, 4 bytes.
    pub certificate_id: Vec<u8>,
    /// Where to find the certificate.
    pub repository: Option<String>,
}

impl SignatureData {
    /// The element's tag.
    pub const TAG: Tag = 0x0b;

    /// Reads signature data.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown.
    pub fn decode(element: &Element<'_>) -> Result<SignatureData, DecodeError> {
        let (mut oid, mut value, mut certificate_id, mut repository) = (None, None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut oid, text(&child)?)?,
                0x02 => child.fill(&mut value, child.value.into())?,
                0x03 => child.fill(&mut certificate_id, child.value.into())?,
                0x04 => child.fill(&mut repository, text(&child)?)?,
                _ => child.ignore()?,
            }
        }
        Ok(SignatureData {
            oid: element.require(oid, 0x01)?,
            value: element.require(value, 0x02)?,
            certificate_id: element.require(certificate_id, 0x03)?,
            repository,
        })
    }

    /// Appends signature data. An empty repository is left out.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(Self::TAG, |w| {
            w.string(0x01, &self.oid)
                .element(0x02, &self.value)
                .element(0x03, &self.certificate_id)
                .each(&self.repository, |w, text| write_text(w, 0x04, text))
        });
    }
}

/// The calendar's root, signed by the service's key: proof until a publication
/// takes over (tag 0805).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationRecord {
    data: PublicationData,
    signature: SignatureData,
    /// The element 10 as it was encoded, which is what the signature covers.
    signed: Vec<u8>,
}

impl AuthenticationRecord {
    /// The record's tag.
    pub const TAG: Tag = 0x0805;

    /// The bytes to be signed for `data`: the element 10 with its header, the
    /// forward flag set.
    #[must_use]
    pub fn message(data: &PublicationData) -> Vec<u8> {
        let mut writer = Writer::new();
        data.write(&mut writer, Flags::FORWARD);
        writer.finish().expect("a time and an imprint are short")
    }

    /// A record that says `data`, with a signature over [`AuthenticationRecord::message`].
    #[must_use]
    pub fn new(data: PublicationData, signature: SignatureData) -> Self {
        Self {
            data,
            signature,
            signed: Self::message(&data),
        }
    }

    /// The calendar's root and its second.
    #[must_use]
    pub fn data(&self) -> &PublicationData {
        &self.data
    }

    /// The signature over [`AuthenticationRecord::signed_bytes`].
    #[must_use]
    pub fn signature(&self) -> &SignatureData {
        &self.signature
    }

    /// What the signature covers, exactly as encoded.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.signed
    }

    /// Reads a record.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown.
    pub fn decode(element: &Element<'_>) -> Result<AuthenticationRecord, DecodeError> {
        let (mut data, mut signature) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                PublicationData::TAG => {
                    child.fill(
                        &mut data,
                        (PublicationData::decode(&child)?, child.raw.to_vec()),
                    )?;
                }
                SignatureData::TAG => child.fill(&mut signature, SignatureData::decode(&child)?)?,
                _ => child.ignore()?,
            }
        }
        let (data, signed) = element.require(data, PublicationData::TAG)?;
        let signature = element.require(signature, SignatureData::TAG)?;
        Ok(AuthenticationRecord {
            data,
            signature,
            signed,
        })
    }

    /// Appends the record.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(Self::TAG, |w| {
            w.raw(&self.signed);
            self.signature.write(w);
            w
        });
    }
}

/// The texts of these records say something: the format knows no empty ones.
fn text(element: &Element<'_>) -> Result<String, DecodeError> {
    element.non_empty_string().map(str::to_owned)
}

/// Appends what [`text`] reads. Zero bytes are left out by [`Writer::string`].
pub(crate) fn write_text(writer: &mut Writer, tag: Tag, text: &str) {
    if text.bytes().any(|byte| byte != 0) {
        writer.string(tag, text);
    }
}

const CODE_GROUP: usize = 6;
/// Letters of a code that holds the longest imprint.
const MAX_CODE_LETTERS: usize = ((8 + Imprint::MAX_LEN + 4) * 8).div_ceil(5);
const MAX_TEXTS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    const CODE: &str =
        "AAAAAA-CTOQBY-AAMJYH-XZPM6T-UO6U6V-2WJMHQ-EJMVXR-JEAGID-2OY7P5-XFFKYI-QIF2LG-YOV7SO";

    fn check(code: &str, expected: Result<u64, CodeError>) {
        assert_eq!(
            PublicationData::from_code(code).map(|data| data.time.0),
            expected,
            "{code}"
        );
    }

    #[test]
    fn reads_a_published_code() {
        check(CODE, Ok(1_400_112_000));
        assert_eq!(PublicationData::from_code(CODE).unwrap().to_code(), CODE);
    }

    #[test]
    fn forgives_how_it_was_typed() {
        check(&CODE.to_lowercase(), Ok(1_400_112_000));
        check(&CODE.replace('-', " "), Ok(1_400_112_000));
        check(&format!("{CODE}======"), Ok(1_400_112_000));
    }

    #[test]
    fn notices_typing_errors() {
        check(&CODE.replace("T-UO6", "T-UO7"), Err(CodeError::Checksum));
        check(&CODE.replace("T-UO6", "T-U06"), Err(CodeError::Letters));
        check(&CODE[..CODE.len() - 1], Err(CodeError::Letters));
        check("", Err(CodeError::Length));
        check(&"A".repeat(1000), Err(CodeError::Length));
    }

    #[test]
    fn every_algorithm_has_a_code() {
        for algorithm in Algorithm::ALL {
            let data = PublicationData {
                time: Second(7),
                imprint: Imprint::zero(algorithm),
            };
            assert_eq!(PublicationData::from_code(&data.to_code()), Ok(data));
        }
    }

    #[test]
    fn records_are_read_as_written() {
        let data = PublicationData::from_code(CODE).unwrap();
        let record = PublicationRecord {
            data,
            references: vec!["Postimees".into(), "Äripäev".into()],
            repositories: vec!["http://publications.example/".into()],
        };
        let signature = SignatureData {
            oid: "1.2.840.113549.1.1.11".into(),
            value: vec![7; 256],
            certificate_id: vec![1, 2, 3, 4],
            repository: Some("http://certificates.example/".into()),
        };
        let authentication = AuthenticationRecord::new(data, signature);
        assert_eq!(authentication.signed_bytes()[0], 0x30);
        let mut writer = Writer::new();
        record.write(&mut writer, PublicationRecord::TAG);
        authentication.write(&mut writer);
        let bytes = writer.finish().unwrap();
        let elements: Vec<_> = crate::tlv::Reader::new(&bytes)
            .map(Result::unwrap)
            .collect();
        assert_eq!(PublicationRecord::decode(&elements[0]), Ok(record));
        assert_eq!(
            AuthenticationRecord::decode(&elements[1]),
            Ok(authentication)
        );
    }
}
