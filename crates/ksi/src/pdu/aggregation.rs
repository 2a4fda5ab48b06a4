//! What clients and aggregators tell each other (spec §5).
//!
//! ```text
//! request   02 sign    01 integer request id, 02 imprint, 03 integer level 0..1
//!           04 configuration, empty
//!           05 ack     01 time µs
//! response  02 result  01 integer request id, 04 integer status, 05 string message 0..1,
//!                      then the children of a signature
//!           04 config  01 level, 02 algorithm, 03 period ms, 04 requests, 10 string parent 0..n
//!           05 ack     01 to 06, see `AggregationAck`
//! ```

use super::{
    ACK, AGGREGATION_V1, CONFIG, ERROR, ErrorPayload, MAX_PARENTS, PAYLOAD, Status, Version,
    optional_string, sealed,
};
use crate::{
    chain::push,
    error::DecodeError,
    hash::{Algorithm, Imprint},
    tlv::{Element, Tag, Writer},
};

/// What a client asks an aggregator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AggregationRequestPayload {
    /// Sign something.
    Sign(SignRequest),
    /// Tell your configuration.
    Config,
    /// Acknowledge this message, sent at the given time in µs since 1970.
    Ack {
        /// When the client sent it, in microseconds since 1970.
        request_time_us: u64,
    },
}

impl sealed::Codec for AggregationRequestPayload {
    const TAG: Tag = 0x0220;
    const TAG_V1: Tag = AGGREGATION_V1;

    fn read(element: &Element<'_>, version: Version) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match (version, element.tag) {
            (Version::V2, PAYLOAD) | (Version::V1, 0x0201) => {
                Self::Sign(SignRequest::decode(element)?)
            }
            (Version::V2, CONFIG) => Self::Config,
            (Version::V2, ACK) => {
                let mut time = None;
                for child in element.children() {
                    let child = child?;
                    match child.tag {
                        0x01 => child.fill(&mut time, child.integer()?)?,
                        _ => child.ignore()?,
                    }
                }
                Self::Ack {
                    request_time_us: element.require(time, 0x01)?,
                }
            }
            _ => return Ok(None),
        }))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Sign(request) => request.write(writer),
            Self::Config => _ = writer.element(CONFIG, &[]),
            Self::Ack { request_time_us } => {
                writer.nested(ACK, |w| w.integer(0x01, *request_time_us));
            }
        }
    }

    fn is_error(&self) -> bool {
        false
    }
}

/// The wish to have something signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignRequest {
    /// Echoed by the answer.
    pub request_id: u64,
    /// What to sign: a document, or the root of a local tree.
    pub input: Imprint,
    /// The level of that root; 0 for a document.
    pub level: u8,
}

impl SignRequest {
    pub(super) fn decode(element: &Element<'_>) -> Result<SignRequest, DecodeError> {
        let (mut request_id, mut input, mut level) = (None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut request_id, child.integer()?)?,
                0x02 => child.fill(&mut input, child.imprint()?)?,
                0x03 => child.fill(&mut level, child.byte()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(SignRequest {
            request_id: element.require(request_id, 0x01)?,
            input: element.require(input, 0x02)?,
            level: level.unwrap_or(0),
        })
    }

    fn write(&self, writer: &mut Writer) {
        let level = Some(self.level.into()).filter(|level| *level > 0);
        writer.nested(PAYLOAD, |w| {
            w.integer(0x01, self.request_id)
                .imprint(0x02, &self.input)
                .optional_integer(0x03, level)
        });
    }
}

/// What an aggregator answers, or says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AggregationResponsePayload {
    /// The outcome of one request.
    Result(SignResult),
    /// The whole message could not be dealt with.
    Error(ErrorPayload),
    /// The aggregator's configuration.
    Config(AggregatorConfig),
    /// The acknowledgement asked for.
    Ack(AggregationAck),
}

impl sealed::Codec for AggregationResponsePayload {
    const TAG: Tag = 0x0221;
    const TAG_V1: Tag = AGGREGATION_V1;

    fn read(element: &Element<'_>, version: Version) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match (version, element.tag) {
            (Version::V2, PAYLOAD) | (Version::V1, 0x0202) => {
                Self::Result(SignResult::decode(element)?)
            }
            (Version::V2, ERROR) | (Version::V1, 0x0203) => {
                Self::Error(ErrorPayload::decode(element)?)
            }
            (Version::V2, CONFIG) => Self::Config(AggregatorConfig::decode(element)?),
            (Version::V2, ACK) => Self::Ack(AggregationAck::decode(element)?),
            _ => return Ok(None),
        }))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Result(result) => result.write(writer),
            Self::Error(error) => error.write(writer),
            Self::Config(config) => config.write(writer),
            Self::Ack(ack) => ack.write(writer),
        }
    }

    fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

/// The outcome of one [`SignRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignResult {
    /// That of the request.
    pub request_id: u64,
    /// [`Status::OK`], or why there is no signature.
    pub status: Status,
    /// The status in words.
    pub message: Option<String>,
    /// The children of the signature, encoded; for
    /// [`crate::Signature::from_result`]. Empty unless the status is OK.
    pub signature: Vec<u8>,
}

impl SignResult {
    /// The answer that a request failed.
    #[must_use]
    pub fn failure(request_id: u64, status: Status, message: impl Into<String>) -> Self {
        Self {
            request_id,
            status,
            message: Some(message.into()),
            signature: Vec::new(),
        }
    }

    fn decode(element: &Element<'_>) -> Result<SignResult, DecodeError> {
        let (mut request_id, mut status, mut message) = (None, None, None);
        let mut signature = Vec::new();
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut request_id, child.integer()?)?,
                0x04 => child.fill(&mut status, Status(child.integer()?))?,
                0x05 => child.fill(&mut message, child.string()?.into())?,
                // Version 1 puts configuration and acknowledgement here.
                0x10 | 0x11 => {}
                _ => signature.extend(child.raw),
            }
        }
        Ok(SignResult {
            request_id: element.require(request_id, 0x01)?,
            status: status.unwrap_or(Status::OK),
            message,
            signature,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(PAYLOAD, |w| {
            w.integer(0x01, self.request_id)
                .integer(0x04, self.status.0);
            optional_string(w, 0x05, self.message.as_deref());
            w.raw(&self.signature)
        });
    }
}

/// How an aggregator wants to be used. Absent values leave the choice to the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AggregatorConfig {
    /// The highest level accepted in requests.
    pub max_level: Option<u64>,
    /// The algorithm to hash documents with; `None` also for one not built in.
    pub algorithm: Option<Algorithm>,
    /// Length of a round, in milliseconds.
    pub period_ms: Option<u64>,
    /// Requests accepted per round.
    pub max_requests: Option<u64>,
    /// Addresses of the aggregators above.
    pub parents: Vec<String>,
}

impl AggregatorConfig {
    fn decode(element: &Element<'_>) -> Result<AggregatorConfig, DecodeError> {
        let (mut max_level, mut algorithm, mut period_ms, mut max_requests) =
            (None, None, None, None);
        let mut parents = Vec::new();
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut max_level, child.integer()?)?,
                0x02 => child.fill(&mut algorithm, Algorithm::from_id(child.byte()?))?,
                0x03 => child.fill(&mut period_ms, child.integer()?)?,
                0x04 => child.fill(&mut max_requests, child.integer()?)?,
                0x10 => push(&child, &mut parents, MAX_PARENTS, child.string()?.into())?,
                _ => child.ignore()?,
            }
        }
        let algorithm = algorithm.flatten();
        Ok(AggregatorConfig {
            max_level,
            algorithm,
            period_ms,
            max_requests,
            parents,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(CONFIG, |w| {
            w.optional_integer(0x01, self.max_level)
                .optional_integer(0x02, self.algorithm.map(|algorithm| algorithm.id().into()))
                .optional_integer(0x03, self.period_ms)
                .optional_integer(0x04, self.max_requests)
                .each(&self.parents, |w, parent| _ = w.string(0x10, parent))
        });
    }
}

/// An aggregator's acknowledgement, with what its client needs to set its rounds
/// by. All absolute times in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AggregationAck {
    /// When the client says it asked.
    pub request_time_us: u64,
    /// When the request arrived.
    pub receipt_time_us: u64,
    /// When this acknowledgement left.
    pub ack_time_us: u64,
    /// How much later the client should send, in milliseconds.
    pub delay_ms: u64,
    /// Length of a round, in milliseconds.
    pub period_ms: u64,
    /// How much rounds may shift, in milliseconds.
    pub drift_ms: u64,
}

impl AggregationAck {
    fn decode(element: &Element<'_>) -> Result<AggregationAck, DecodeError> {
        let mut fields = [None; 6];
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01..=0x06 => {
                    child.fill(&mut fields[usize::from(child.tag - 1)], child.integer()?)?;
                }
                _ => child.ignore()?,
            }
        }
        let field = |tag: Tag| element.require(fields[usize::from(tag - 1)], tag);
        Ok(AggregationAck {
            request_time_us: field(0x01)?,
            receipt_time_us: field(0x02)?,
            ack_time_us: field(0x03)?,
            delay_ms: field(0x04)?,
            period_ms: field(0x05)?,
            drift_ms: field(0x06)?,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(ACK, |w| {
            w.integer(0x01, self.request_time_us)
                .integer(0x02, self.receipt_time_us)
                .integer(0x03, self.ack_time_us)
                .integer(0x04, self.delay_ms)
                .integer(0x05, self.period_ms)
                .integer(0x06, self.drift_ms)
        });
    }
}
