//! Messages between client and service (spec §5).
//!
//! ```text
//!                         request   response        children, in this order
//! aggregator, version 2   0220      0221            01 header | payloads | 1F MAC
//! extender,   version 2   0320      0321            01 header | payloads | 1F MAC
//! aggregator, version 1   0200      0200            01 header | 0201 / 0202 / 0203 | 1F MAC
//! extender,   version 1   0300      0300            01 header | 0301 / 0302 / 0303 | 1F MAC
//!
//! header    01 string login id, 02 integer instance id 0..1, 03 integer message id 0..1
//! payloads  02 sign or extend, 03 error, 04 configuration, 05 acknowledgement
//! ```
//!
//! The MAC is an HMAC, as an imprint, over the whole message up to and including
//! the MAC's algorithm id; version 1 covers header and payload only. An error
//! that is the only payload may come without header and MAC. A result without
//! status counts as done, as some servers leave it out; what it then holds must
//! stand verification as ever. Version 2 is read and written, version 1 only read.

mod aggregation;
mod extension;
mod status;
mod usual;

pub use aggregation::{
    AggregationAck, AggregationRequestPayload, AggregationResponsePayload, AggregatorConfig,
    SignRequest, SignResult,
};
pub use extension::{
    ExtendQuery, ExtendRequestPayload, ExtendResponsePayload, ExtendResult, ExtenderConfig,
};
pub use status::Status;
pub use usual::{SignatureAnswer, UsualRequest};

use crate::{
    chain::push,
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{self, Algorithm, Imprint},
    tlv::{Element, Header as TlvHeader, Tag, Writer},
};

/// A message of either direction; see the four aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu<P> {
    /// Who talks. Absent only in an unauthenticated error.
    pub header: Option<Header>,
    /// What is said, at least one.
    pub payloads: Vec<P>,
}

/// Client to aggregator.
pub type AggregationRequest = Pdu<AggregationRequestPayload>;
/// Aggregator to client.
pub type AggregationResponse = Pdu<AggregationResponsePayload>;
/// Client to extender.
pub type ExtendRequest = Pdu<ExtendRequestPayload>;
/// Extender to client.
pub type ExtendResponse = Pdu<ExtendResponsePayload>;

impl<P: Payload> Pdu<P> {
    /// A message with one payload.
    #[must_use]
    pub fn new(header: Header, payload: P) -> Self {
        Self {
            header: Some(header),
            payloads: vec![payload],
        }
    }

    /// Writes the message in version 2, with a MAC by `key`.
    ///
    /// # Errors
    /// The message would exceed [`crate::tlv::MAX`] bytes.
    pub fn encode(&self, key: &[u8], algorithm: Algorithm) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        writer.nested(P::TAG, |w| {
            self.write_children(w);
            w.imprint(MAC, &Imprint::zero(algorithm))
        });
        let mut bytes = writer.finish()?;
        let digest_at = bytes.len() - algorithm.digest_len();
        let (covered, digest) = bytes.split_at_mut(digest_at);
        digest.copy_from_slice(hash::hmac(algorithm, key, &[covered]).digest());
        Ok(bytes)
    }

    /// Writes the message in version 2 without MAC, as an error to somebody
    /// unknown must be. Other payloads are refused by every reader.
    ///
    /// # Errors
    /// The message would exceed [`crate::tlv::MAX`] bytes.
    pub fn encode_unauthenticated(&self) -> Result<Vec<u8>, EncodeError> {
        let mut writer = Writer::new();
        writer.nested(P::TAG, |w| self.write_children(w));
        writer.finish()
    }

    /// Reads a message of either version. Its MAC is still to be checked.
    ///
    /// # Errors
    /// Malformed, unknown, missing, repeated or misplaced elements, a missing
    /// MAC, more than [`crate::tlv::MAX`] bytes or 1024 payloads.
    pub fn decode(bytes: &[u8]) -> Result<Received<P>, DecodeError> {
        let outer = Element::single(bytes)?;
        let version = match outer.tag {
            tag if tag == P::TAG => Version::V2,
            tag if tag == P::TAG_V1 => Version::V1,
            found => {
                let kind = DecodeErrorKind::UnexpectedTag {
                    expected: P::TAG,
                    found,
                };
                return Err(outer.error(kind));
            }
        };
        let (mut header, mut payloads, mut mac) = (None, Vec::new(), None);
        let mut covered_v1 = Vec::new();
        for child in outer.children() {
            let child = child?;
            if mac.is_some() {
                return Err(child.error(DecodeErrorKind::Misplaced(child.tag)));
            }
            match child.tag {
                HEADER if child.at == outer.value_at() => header = Some(Header::decode(&child)?),
                HEADER => return Err(child.error(DecodeErrorKind::Misplaced(HEADER))),
                MAC => mac = Some(child.imprint()?),
                _ => match P::read(&child, version)? {
                    Some(payload) => push(&child, &mut payloads, MAX_PAYLOADS, payload)?,
                    None if P::PASSED_OVER.contains(&child.tag) => {}
                    None => child.ignore()?,
                },
            }
            if version == Version::V1 && child.tag != MAC {
                covered_v1.extend(child.raw);
            }
        }
        outer.require(payloads.first(), PAYLOAD)?;
        if !payloads.iter().all(P::is_error) {
            outer.require(header.as_ref(), HEADER)?;
            outer.require(mac, MAC)?;
        }
        let covered = match (version, mac) {
            (Version::V1, _) => covered_v1,
            (Version::V2, Some(mac)) => bytes[..bytes.len() - mac.digest().len()].to_vec(),
            (Version::V2, None) => Vec::new(),
        };
        Ok(Received {
            pdu: Pdu { header, payloads },
            version,
            mac,
            covered,
        })
    }

    fn write_children<'w>(&self, writer: &'w mut Writer) -> &'w mut Writer {
        if let Some(header) = &self.header {
            header.write(writer);
        }
        writer.each(&self.payloads, |w, payload| payload.write(w))
    }
}

/// A message as it came, its MAC not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received<P> {
    /// The message. Believe nothing of it before [`Received::verify_mac`], but
    /// the login id to look up the key by.
    pub pdu: Pdu<P>,
    /// The protocol version it came in.
    pub version: Version,
    mac: Option<Imprint>,
    /// What the MAC covers.
    covered: Vec<u8>,
}

impl<P> Received<P> {
    /// Whether the message carries the MAC that `key` makes. Takes the same time
    /// wherever a wrong MAC differs.
    #[must_use]
    pub fn verify_mac(&self, key: &[u8]) -> bool {
        self.mac
            .is_some_and(|mac| hash::hmac(mac.algorithm(), key, &[&self.covered]).ct_eq(&mac))
    }

    /// The algorithm of the MAC, in which an answer should be authenticated;
    /// `None` if there is no MAC.
    #[must_use]
    pub fn mac_algorithm(&self) -> Option<Algorithm> {
        self.mac.map(|mac| mac.algorithm())
    }

    /// The login id of the header; empty without header.
    #[must_use]
    pub fn login_id(&self) -> &str {
        self.pdu
            .header
            .as_ref()
            .map_or("", |header| &header.login_id)
    }
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Deprecated: one outer tag for both directions.
    V1,
    /// The usual one.
    V2,
}

/// How many bytes the message at the start of a TCP stream has, from its first
/// bytes; `None` if four bytes are not there yet. At most [`crate::tlv::MAX`].
///
/// # Errors
/// The stream does not start with a message of any kind.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, DecodeError> {
    let malformed = DecodeError::new(DecodeErrorKind::Malformed("message"), 0);
    if bytes.first().is_some_and(|&first| first & 0x80 == 0) {
        return Err(malformed);
    }
    let Some(header) = TlvHeader::read(bytes) else {
        return Ok(None);
    };
    if OUTER_TAGS.contains(&header.tag) {
        Ok(Some(header.len + header.value_len))
    } else {
        Err(malformed)
    }
}

/// Who sends, and which of its messages this is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The user, whose key authenticates the message.
    pub login_id: String,
    /// Tells apart the runs of one client.
    pub instance_id: Option<u64>,
    /// Counts the messages of one run.
    pub message_id: Option<u64>,
}

impl Header {
    /// A header with a login id only.
    #[must_use]
    pub fn new(login_id: impl Into<String>) -> Self {
        Self {
            login_id: login_id.into(),
            ..Self::default()
        }
    }

    fn decode(element: &Element<'_>) -> Result<Header, DecodeError> {
        let (mut login_id, mut instance_id, mut message_id) = (None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut login_id, child.string()?.into())?,
                0x02 => child.fill(&mut instance_id, child.integer()?)?,
                0x03 => child.fill(&mut message_id, child.integer()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(Header {
            login_id: element.require(login_id, 0x01)?,
            instance_id,
            message_id,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(HEADER, |w| {
            w.string(0x01, &self.login_id)
                .optional_integer(0x02, self.instance_id)
                .optional_integer(0x03, self.message_id)
        });
    }
}

/// A kind of payload, which decides the kind of message.
pub trait Payload: Sized + sealed::Codec {}

impl<P: sealed::Codec> Payload for P {}

mod sealed {
    use super::{DecodeError, Element, Tag, Version, Writer};

    /// How payloads of one message kind are read and written.
    pub trait Codec: Sized {
        /// The message's outer tag in version 2.
        const TAG: Tag;
        /// The message's outer tag in version 1.
        const TAG_V1: Tag;
        /// Payloads that have no meaning in this kind of message and yet occur.
        const PASSED_OVER: &'static [Tag] = &[];
        /// `None` if the element is no payload we know.
        fn read(element: &Element<'_>, version: Version) -> Result<Option<Self>, DecodeError>;
        fn write(&self, writer: &mut Writer);
        /// An error may come without header and MAC.
        fn is_error(&self) -> bool;
    }
}

/// A message could not be dealt with at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPayload {
    /// Why.
    pub status: Status,
    /// The status in words.
    pub message: Option<String>,
}

impl ErrorPayload {
    fn decode(element: &Element<'_>) -> Result<ErrorPayload, DecodeError> {
        let (mut status, mut message) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x04 => child.fill(&mut status, Status(child.integer()?))?,
                0x05 => child.fill(&mut message, child.string()?.into())?,
                _ => child.ignore()?,
            }
        }
        Ok(ErrorPayload {
            status: element.require(status, 0x04)?,
            message,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(ERROR, |w| {
            w.integer(0x04, self.status.0);
            optional_string(w, 0x05, self.message.as_deref());
            w
        });
    }
}

fn optional_string(writer: &mut Writer, tag: Tag, text: Option<&str>) {
    if let Some(text) = text {
        writer.string(tag, text);
    }
}

const HEADER: Tag = 0x01;
const PAYLOAD: Tag = 0x02;
const ERROR: Tag = 0x03;
const CONFIG: Tag = 0x04;
const ACK: Tag = 0x05;
const MAC: Tag = 0x1f;
const AGGREGATION_V1: Tag = 0x0200;
const EXTENSION_V1: Tag = 0x0300;
const OUTER_TAGS: [Tag; 6] = [AGGREGATION_V1, 0x0220, 0x0221, EXTENSION_V1, 0x0320, 0x0321];
const MAX_PAYLOADS: usize = 1024;
const MAX_PARENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chain::CalendarChain, time::Second};
    use core::fmt;

    const KEY: &[u8] = b"anon";

    fn check<P: Payload + Clone + PartialEq + fmt::Debug>(payloads: Vec<P>) {
        let header = Header {
            login_id: "anon".into(),
            instance_id: Some(1 << 40),
            message_id: Some(0),
        };
        let pdu = Pdu {
            header: Some(header),
            payloads,
        };
        for algorithm in Algorithm::ALL {
            let bytes = pdu.encode(KEY, algorithm).unwrap();
            assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
            let received = Pdu::<P>::decode(&bytes).unwrap();
            assert_eq!(received.pdu, pdu);
            assert_eq!(received.mac_algorithm(), Some(algorithm));
            assert!(received.verify_mac(KEY) && !received.verify_mac(b"anom"));
        }
        notices_every_flipped_bit(&pdu);
    }

    fn notices_every_flipped_bit<P: Payload>(pdu: &Pdu<P>) {
        let bytes = pdu.encode(KEY, Algorithm::Sha256).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let accepted =
                Pdu::<P>::decode(&flipped).is_ok_and(|received| received.verify_mac(KEY));
            assert!(!accepted, "bit {bit} went unnoticed");
        }
    }

    fn error() -> ErrorPayload {
        ErrorPayload {
            status: Status::AUTHENTICATION_FAILED,
            message: Some("who?".into()),
        }
    }

    #[test]
    fn aggregation_requests() {
        let input = Imprint::zero(Algorithm::Sha512);
        check(vec![
            AggregationRequestPayload::Sign(SignRequest {
                request_id: u64::MAX,
                input,
                level: 0,
            }),
            AggregationRequestPayload::Sign(SignRequest {
                request_id: 0,
                input,
                level: 255,
            }),
            AggregationRequestPayload::Config,
            AggregationRequestPayload::Ack {
                request_time_us: 1_700_000_000_000_000,
            },
        ]);
    }

    #[test]
    fn aggregation_responses() {
        let signature = vec![0x88, 0x01, 0, 1, 7];
        check(vec![
            AggregationResponsePayload::Result(SignResult {
                request_id: 1,
                status: Status::OK,
                message: None,
                signature,
            }),
            AggregationResponsePayload::Result(SignResult::failure(2, Status::OVER_QUOTA, "no")),
            AggregationResponsePayload::Config(AggregatorConfig {
                max_level: Some(20),
                algorithm: Some(Algorithm::Sha256),
                period_ms: Some(1000),
                max_requests: Some(0),
                parents: vec!["ksi+tcp://parent.example:3332".into()],
            }),
            AggregationResponsePayload::Ack(AggregationAck {
                delay_ms: 7,
                ..Default::default()
            }),
            AggregationResponsePayload::Error(error()),
        ]);
    }

    #[test]
    fn extend_requests() {
        let head = ExtendQuery {
            request_id: 1,
            aggregation_time: Second(1000),
            publication_time: None,
        };
        let exact = ExtendQuery {
            publication_time: Some(Second(2000)),
            ..head
        };
        check(vec![
            ExtendRequestPayload::Extend(head),
            ExtendRequestPayload::Extend(exact),
            ExtendRequestPayload::Config,
        ]);
    }

    #[test]
    fn extend_responses() {
        let calendar = CalendarChain {
            publication_time: Second(1),
            aggregation_time: Some(Second(0)),
            input: Imprint::zero(Algorithm::Sha256),
            links: vec![(crate::chain::Side::Left, Imprint::zero(Algorithm::Sha512))],
        };
        check(vec![
            ExtendResponsePayload::Result(ExtendResult {
                request_id: 1,
                status: Status::OK,
                message: Some("done".into()),
                calendar_last: Some(Second(9)),
                calendar: Some(calendar),
            }),
            ExtendResponsePayload::Result(ExtendResult::failure(2, Status::TIME_TOO_NEW, "wait")),
            ExtendResponsePayload::Config(ExtenderConfig {
                max_requests: Some(5),
                parents: vec!["http://extender.example".into()],
                calendar_first: Some(Second(1)),
                calendar_last: Some(Second(2)),
            }),
            ExtendResponsePayload::Error(error()),
        ]);
    }

    #[test]
    fn only_an_error_may_lack_header_and_mac() {
        let bare = AggregationResponse {
            header: None,
            payloads: vec![AggregationResponsePayload::Error(error())],
        };
        let bytes = bare.encode_unauthenticated().unwrap();
        let received = AggregationResponse::decode(&bytes).unwrap();
        assert_eq!(
            (&received.pdu, received.mac_algorithm(), received.login_id()),
            (&bare, None, "")
        );
        assert!(!received.verify_mac(KEY) && !received.verify_mac(b""));

        let request = AggregationRequest {
            header: None,
            payloads: vec![AggregationRequestPayload::Config],
        };
        let refused = |bytes: &[u8]| AggregationRequest::decode(bytes).unwrap_err().kind;
        let bytes = request.encode_unauthenticated().unwrap();
        assert_eq!(refused(&bytes), DecodeErrorKind::Missing(HEADER));
        let request = AggregationRequest {
            header: Some(Header::new("anon")),
            ..request
        };
        let bytes = request.encode_unauthenticated().unwrap();
        assert_eq!(refused(&bytes), DecodeErrorKind::Missing(MAC));
    }

    #[test]
    fn frames_are_recognised_by_their_header() {
        assert_eq!(frame_len(&[]), Ok(None));
        assert_eq!(frame_len(&[0x82, 0x20, 1]), Ok(None));
        assert_eq!(frame_len(&[0x82, 0x20, 1, 2]), Ok(Some(4 + 0x102)));
        for garbage in [&b"G"[..], b"POST", &[0x88, 0, 0, 0], &[0x82, 0x22, 0, 0]] {
            assert!(frame_len(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn statuses_speak_for_their_service() {
        assert_ne!(
            Status::OVER_QUOTA.aggregator_meaning(),
            Status::TIME_TOO_OLD.extender_meaning()
        );
        assert_eq!(Status::UPSTREAM_TIMEOUT.to_string(), "status 0x0301");
        assert_eq!(Status(0x7777).extender_meaning(), "unknown status");
    }
}
