//! From the bytes of a message to answers that may be believed.

use pitser_ksi::DecodeError;
use pitser_ksi::pdu::{
    AggregationResponse, AggregationResponsePayload, AggregatorConfig, ErrorPayload,
    ExtendResponse, ExtendResponsePayload, ExtendResult, ExtenderConfig, Received, SignResult,
    Status,
};
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

impl Answer {
    pub(crate) fn question(&self) -> Question {
        match self {
            Self::Sign(result) => Question::Sign(result.request_id),
            Self::Extend(result) => Question::Extend(result.request_id),
            Self::AggregatorConfig(_) => Question::AggregatorConfig,
            Self::ExtenderConfig(_) => Question::ExtenderConfig,
        }
    }
}

/// Why a whole message, or a whole connection, gives no answers.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection broke.
    Lost(String),
    /// The service refused without saying which request.
    Refused {
        status: Status,
        message: String,
    },
    /// Not made with our key.
    Unauthenticated,
    Malformed(DecodeError),
}

/// Decodes and authenticates one message.
pub(crate) fn read(bytes: &[u8], key: &[u8]) -> Result<Vec<Answer>, Fault> {
    match Header::read(bytes).map(|header| header.tag) {
        Some(EXTENDER | EXTENDER_V1) => {
            let received = ExtendResponse::decode(bytes).map_err(Fault::Malformed)?;
            let error = received
                .pdu
                .payloads
                .iter()
                .find_map(|payload| match payload {
                    ExtendResponsePayload::Error(error) => Some(error.clone()),
                    _ => None,
                });
            check(&received, error, key)?;
            Ok(received
                .pdu
                .payloads
                .into_iter()
                .filter_map(from_extender)
                .collect())
        }
        _ => {
            let received = AggregationResponse::decode(bytes).map_err(Fault::Malformed)?;
            let error = received
                .pdu
                .payloads
                .iter()
                .find_map(|payload| match payload {
                    AggregationResponsePayload::Error(error) => Some(error.clone()),
                    _ => None,
                });
            check(&received, error, key)?;
            Ok(received
                .pdu
                .payloads
                .into_iter()
                .filter_map(from_aggregator)
                .collect())
        }
    }
}

/// A message with an error says nothing else; without one it must be genuine.
///
/// An error needs no MAC: somebody between could as well cut the connection.
fn check<P>(received: &Received<P>, error: Option<ErrorPayload>, key: &[u8]) -> Result<(), Fault> {
    if let Some(error) = error {
        let message = error.message.unwrap_or_default();
        return Err(Fault::Refused {
            status: error.status,
            message,
        });
    }
    if received.verify_mac(key) {
        Ok(())
    } else {
        Err(Fault::Unauthenticated)
    }
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
