//! From the bytes of a message to answers that may be believed.

use std::io;
use std::sync::Arc;

use pitser_ksi::DecodeError;
use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationResponsePayload, AggregatorConfig, ErrorPayload, ExtendResponsePayload,
    ExtendResult, ExtenderConfig, Payload, Pdu, SignResult, Status, Version,
};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Header;

/// One answer. Its status is still to be looked at.
#[derive(Debug)]
pub(crate) enum Answer {
    Sign(SignResult),
    Extend(ExtendResult),
    AggregatorConfig(AggregatorConfig),
    ExtenderConfig(ExtenderConfig),
}

/// Which answer somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    Sign(u64),
    Extend(u64),
    AggregatorConfig,
    ExtenderConfig,
}

impl Question {
    /// Whether it goes to an extender.
    pub(crate) fn is_for_extender(self) -> bool {
        matches!(self, Self::Extend(_) | Self::ExtenderConfig)
    }

    /// Whether both ask for the same, of whatever request.
    pub(crate) fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl Answer {
    pub(crate) fn question(&self) -> Question {
        match self {
            Self::Sign(result) => Question::Sign(result.request_id),
            Self::Extend(result) => Question::Extend(result.request_id),
            Self::AggregatorConfig(_) => Question::AggregatorConfig,
            Self::ExtenderConfig(_) => Question::ExtenderConfig,
        }
    }

    /// The answer, unless its status says that there is none.
    pub(crate) fn accepted(self) -> Result<Self, Fault> {
        let (status, message, calendar_last) = match &self {
            Self::Sign(result) => (result.status, &result.message, None),
            Self::Extend(result) => (result.status, &result.message, result.calendar_last),
            Self::AggregatorConfig(_) | Self::ExtenderConfig(_) => return Ok(self),
        };
        if status.is_ok() {
            return Ok(self);
        }
        Err(Fault::Refused {
            status,
            message: message.clone().unwrap_or_default(),
            calendar_last,
        })
    }
}

/// Why there is no answer, for one request or for a whole connection.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nobody answers at the address.
    Unreachable(Arc<io::Error>),
    /// No secure connection comes about.
    Tls {
        problem: String,
        advice: &'static str,
    },
    /// The connection broke.
    Lost(String),
    /// There was a connection, and no answer in time.
    TimedOut,
    /// The service refused, perhaps without saying which request.
    Refused {
        status: Status,
        message: String,
        /// The extender's newest second, if it says so.
        calendar_last: Option<Second>,
    },
    /// Not made with our key.
    Unauthenticated,
    /// Something else is there; what, and how to ask it.
    Foreign(&'static str),
    Malformed(DecodeError),
    /// Authentic, and not to be taken.
    Unfit(String),
    /// An HTTP error, and no message.
    Http(u16),
    /// The file with the answers cannot be read.
    Read(Arc<io::Error>),
}

impl Fault {
    /// Nobody answers within the time for that.
    pub(crate) fn unreachable(error: io::Error) -> Self {
        Self::Unreachable(Arc::new(error))
    }
}

/// Decodes and authenticates one message.
pub(crate) fn read(bytes: &[u8], key: &[u8]) -> Result<Vec<Answer>, Fault> {
    match Header::read(bytes).map(|header| header.tag) {
        Some(EXTENDER | EXTENDER_V1) => {
            let payloads = payloads(bytes, key, |payload| match payload {
                ExtendResponsePayload::Error(error) => Some(error),
                _ => None,
            })?;
            Ok(payloads.into_iter().filter_map(from_extender).collect())
        }
        _ => {
            let payloads = payloads(bytes, key, |payload| match payload {
                AggregationResponsePayload::Error(error) => Some(error),
                _ => None,
            })?;
            Ok(payloads.into_iter().filter_map(from_aggregator).collect())
        }
    }
}

/// What an authentic message says.
///
/// Version 1 is not believed: its MAC leaves out the outer header, and nobody
/// asked in it. A message with an error says nothing else, and needs no MAC:
/// somebody between could as well cut the connection.
fn payloads<P: Payload>(
    bytes: &[u8],
    key: &[u8],
    error: impl Fn(&P) -> Option<&ErrorPayload>,
) -> Result<Vec<P>, Fault> {
    let received = Pdu::<P>::decode(bytes).map_err(Fault::Malformed)?;
    if received.version == Version::V1 {
        return Err(Fault::Foreign(
            "it answers in version 1 of the protocol; its operator must turn on version 2",
        ));
    }
    if let Some(error) = received.pdu.payloads.iter().find_map(error) {
        return Err(Fault::Refused {
            status: error.status,
            message: error.message.clone().unwrap_or_default(),
            calendar_last: None,
        });
    }
    if !received.verify_mac(key) {
        return Err(Fault::Unauthenticated);
    }
    match received.mac_algorithm().filter(|a| !a.is_trusted()) {
        Some(weak) => Err(Fault::Unfit(weak_mac(weak))),
        None => Ok(received.pdu.payloads),
    }
}

fn weak_mac(algorithm: Algorithm) -> String {
    format!("it is authenticated with {algorithm}, which is no longer to be relied on")
}

fn from_aggregator(payload: AggregationResponsePayload) -> Option<Answer> {
    match payload {
        AggregationResponsePayload::Result(result) => Some(Answer::Sign(result)),
        AggregationResponsePayload::Config(config) => Some(Answer::AggregatorConfig(config)),
        AggregationResponsePayload::Error(_) | AggregationResponsePayload::Ack(_) => None,
    }
}

fn from_extender(payload: ExtendResponsePayload) -> Option<Answer> {
    match payload {
        ExtendResponsePayload::Result(result) => Some(Answer::Extend(result)),
        ExtendResponsePayload::Config(config) => Some(Answer::ExtenderConfig(config)),
        ExtendResponsePayload::Error(_) => None,
    }
}

/// Outer tags of extender messages, in both versions of the protocol.
const EXTENDER: u16 = 0x0321;
const EXTENDER_V1: u16 = 0x0300;
