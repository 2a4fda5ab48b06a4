//! What can go wrong, whose fault it is, and what to do next.

use std::fmt;
use std::io;
use std::time::Duration;

use pitser_ksi::error::{DecodeError, EncodeError};
use pitser_ksi::time::Second;

use crate::endpoint::EndpointError;

/// Why a signature could not be had. The text names the service and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is not one we can use; nothing was sent.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The request cannot be written, e.g. a user name that is too long.
    #[error("the request cannot be encoded: {0}")]
    Request(#[from] EncodeError),
    /// Nobody answers at that address.
    #[error("cannot connect to {service}: {source}; is it running, and is this its address?")]
    Connect {
        /// The service.
        service: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The connection broke before the answer came.
    #[error("{service} closed the connection before it answered: {reason}; trying again may help")]
    Lost {
        /// The service.
        service: String,
        /// What was seen.
        reason: String,
    },
    /// No answer in time.
    #[error("{service} did not answer within {} ms; it may be overloaded or stopped", waited.as_millis())]
    TimedOut {
        /// The service.
        service: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The service answered, and refused.
    #[error(
        "{service} refused to {asked} (status 0x{status:04x}{}): {}",
        quoted(message), advice(*asked, *status, user)
    )]
    Refused {
        /// The service.
        service: String,
        /// What it was asked to do.
        asked: Asked,
        /// Status code (spec service §5).
        status: u64,
        /// What the service says about it.
        message: String,
        /// Login id of the request.
        user: String,
    },
    /// The answer carries no valid authentication code of ours.
    #[error(
        "an answer from {service} is not authenticated with the key of user {user}; \
         check the key, or somebody stands between"
    )]
    Unauthenticated {
        /// The service.
        service: String,
        /// Login id of the request.
        user: String,
    },
    /// The answer is not what the protocol allows: the service's fault.
    #[error("{service} sent a malformed answer: {source}")]
    Malformed {
        /// The service.
        service: String,
        /// Where and what.
        source: DecodeError,
    },
    /// The answer is well formed and authentic, and wrong: the service's fault.
    #[error("{service} sent an answer that does not fit the request: {reason}")]
    Unfit {
        /// The service.
        service: String,
        /// What does not fit, with the rule's code where there is one.
        reason: String,
    },
    /// The service's publications or file answered with an HTTP error.
    #[error("{service} answered HTTP {status}; is this the right path?")]
    Http {
        /// The service.
        service: String,
        /// The HTTP status.
        status: u16,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The signature cannot be extended to that second.
    #[error("a signature of {signed_at} cannot be extended to {to}, which is earlier")]
    Backwards {
        /// When it was signed.
        signed_at: Second,
        /// Where it was to be extended to.
        to: Second,
    },
}

impl ClientError {
    /// Whether the same request may succeed later, without anybody changing it.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::Refused {
                asked: Asked::Sign,
                status: 0x0105 | 0x0106,
                ..
            } => true,
            Self::Refused { status, .. } => matches!(status, 0x0200 | 0x0300 | 0x0301),
            _ => false,
        }
    }
}

/// What a service was asked to do: a status code means different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A signature, of an aggregator.
    Sign,
    /// A calendar chain, of an extender.
    Extend,
    /// Its configuration.
    Configuration,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sign => "sign",
            Self::Extend => "extend",
            Self::Configuration => "show its configuration",
        })
    }
}

fn quoted(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(", {message:?}")
    }
}

/// What the caller can do about a status code.
fn advice(asked: Asked, status: u64, user: &str) -> String {
    let text = match (status, asked) {
        (0x0102, _) => return format!("check name and HMAC key of user {user:?}"),
        (0x0101 | 0x0103, _) => "the request was not accepted as it is",
        (0x0104, Asked::Extend) => "a signature can only be extended forwards",
        (0x0104, _) => "sign at a lower level",
        (0x0105, Asked::Extend) => "the signature is older than this calendar; ask its own service",
        (0x0105, _) => "the quota is used up; try later or ask for more",
        (0x0106, Asked::Extend) => "the calendar does not reach that far yet; try later",
        (0x0106, _) => "too many requests; try again a second later",
        (0x0107, Asked::Extend) => "that time is in the future",
        (0x0107, _) => "the input is too long",
        (0x0200..=0x02ff, _) => "the service has a fault; its log says which",
        (0x0300..=0x03ff, _) => "a service behind it does not answer; try later",
        _ => "an unknown code; see the service's manual",
    };
    text.to_owned()
}
