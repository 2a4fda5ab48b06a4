//! What can go wrong, whose fault it is, and what to do next.
//!
//! Every text has two parts: what happened, which names the service, and what
//! to do. What a service says is quoted and cut, so that it can do no harm on a
//! terminal.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use pitser_ksi::error::{DecodeError, EncodeError};
use pitser_ksi::time::Second;

use crate::endpoint::EndpointError;
use crate::tls::RootsError;

/// Why a signature could not be had. The text names the service and the next step.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is not one we can use; nothing was sent.
    Endpoint(EndpointError),
    /// The file of authorities cannot be used; nothing was sent.
    Roots(RootsError),
    /// The request cannot be written, e.g. a user name that is too long.
    Request(EncodeError),
    /// Nobody answers at that address.
    Connect {
        /// The service.
        service: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// No secure connection comes about.
    Tls {
        /// The service.
        service: String,
        /// What is wrong, such as "its certificate has expired".
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The connection broke before the answer came.
    Lost {
        /// The service.
        service: String,
        /// What was seen.
        reason: String,
    },
    /// No answer in time.
    TimedOut {
        /// The service.
        service: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The service answered, and refused.
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
        /// What the service's configuration says about the matter.
        bounds: Option<Bounds>,
    },
    /// The answer carries no valid authentication code of ours.
    Unauthenticated {
        /// The service.
        service: String,
        /// Login id of the request.
        user: String,
    },
    /// Something else than such a service is there.
    Foreign {
        /// The service.
        service: String,
        /// What it seems to be, and how to ask it.
        hint: &'static str,
    },
    /// The answer is not what the protocol allows: the service's fault.
    Malformed {
        /// The service.
        service: String,
        /// Where and what.
        source: DecodeError,
    },
    /// The answer is well formed and authentic, and wrong: the service's fault.
    Unfit {
        /// The service.
        service: String,
        /// What does not fit, with the rule's code where there is one.
        reason: String,
    },
    /// The service, or a proxy before it, answered with an HTTP error.
    Http {
        /// The service.
        service: String,
        /// The HTTP status.
        status: u16,
    },
    /// A file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The signature cannot be extended to that second.
    Backwards {
        /// When it was signed.
        signed_at: Second,
        /// Where it was to be extended to.
        to: Second,
    },
    /// A publication is of another second than the signature is to be extended to.
    Elsewhere {
        /// Where it was to be extended to.
        to: Second,
        /// The publication's second.
        published: Second,
    },
    /// The signature that was to be extended is broken already; nothing was sent.
    Broken {
        /// The rule that it breaks, such as `INT-03`, and what was found.
        reason: String,
    },
    /// None of several services gave a good answer: what each said, the most
    /// telling first.
    All(Vec<ClientError>),
}

/// What a service's configuration says about a request that it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bounds {
    /// The extender's calendar.
    Calendar {
        /// The oldest second in it.
        first: Option<Second>,
        /// The newest second in it.
        last: Option<Second>,
    },
    /// The highest level that the aggregator takes.
    MaxLevel(u64),
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
    /// To register a trail, or to take its head.
    Fleet,
    /// A publications file.
    Publications,
    /// A proof from the calendar's log.
    CalendarProof,
    /// A guardian, by its auditor.
    Audit,
}

impl ClientError {
    /// Whether the same request may succeed later, without anybody changing it.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::Refused { asked, status, .. } => match (asked, status) {
                (Asked::Sign, 0x0105 | 0x0106) => true,
                (Asked::Extend, 0x0106) => true,
                _ => matches!(status, 0x0200 | 0x0300 | 0x0301),
            },
            Self::Http { status, .. } => matches!(status, 502..=504),
            Self::All(errors) => errors.iter().any(Self::is_temporary),
            _ => false,
        }
    }

    /// Whether asking again at once, or a moment later, is safe and of use.
    ///
    /// Asking twice does no harm: at worst there are two signatures. It is of use
    /// where the next connection, the next round or the next upstream may do
    /// better. It is not where somebody has to act first: a quota, a key, a
    /// service's own fault, a calendar that has to grow.
    pub(crate) fn is_worth_repeating(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Lost { .. } => true,
            Self::Refused {
                asked: Asked::Sign,
                status: 0x0106,
                ..
            } => true,
            Self::Refused { status, .. } => matches!(status, 0x0300 | 0x0301),
            Self::Http { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// One error for what several services said.
    pub(crate) fn all(mut errors: Vec<Self>) -> Self {
        errors.sort_by_key(Self::rank);
        match (errors.pop(), errors.is_empty()) {
            (Some(only), true) => only,
            (Some(last), false) => {
                errors.push(last);
                Self::All(errors)
            }
            (None, _) => Self::Endpoint(EndpointError::Count(0)),
        }
    }

    /// What tells most comes first: an answer, then a failed conversation, then none.
    fn rank(&self) -> u8 {
        match self {
            Self::Refused { .. } => 0,
            Self::Unauthenticated { .. } | Self::Unfit { .. } => 1,
            Self::Malformed { .. } | Self::Foreign { .. } | Self::Tls { .. } => 2,
            Self::Http { .. } => 3,
            Self::TimedOut { .. } => 5,
            Self::Lost { .. } => 6,
            Self::Connect { .. } => 7,
            _ => 4,
        }
    }

    /// What happened, without what to do.
    fn fact(&self) -> String {
        match self {
            Self::Endpoint(error) => error.to_string(),
            Self::Roots(error) => error.to_string(),
            Self::Request(error) => format!("the request cannot be encoded: {error}"),
            Self::Connect { service, source } => match source.kind() {
                io::ErrorKind::TimedOut => format!("no connection to {service} came about in time"),
                _ => format!("cannot connect to {service}: {source}"),
            },
            Self::Tls {
                service, problem, ..
            } => format!("no secure connection to {service}: {problem}"),
            Self::Lost { service, reason } => {
                format!("{service} closed the connection before it answered: {reason}")
            }
            Self::TimedOut { service, waited } => {
                format!("{service} did not answer within {} ms", waited.as_millis())
            }
            Self::Refused {
                service,
                asked,
                status,
                message,
                ..
            } => format!(
                "{service} refused to {asked} (status 0x{status:04x}{})",
                quoted(message)
            ),
            Self::Unauthenticated { service, user } => {
                format!(
                    "an answer from {service} is not authenticated with the key of user {user:?}"
                )
            }
            Self::Foreign { service, hint } => {
                format!("{service} cannot be asked like this: {hint}")
            }
            Self::Malformed { service, source } => {
                format!("an answer from {service} is malformed: {source}")
            }
            Self::Unfit { service, reason } => {
                format!("an answer from {service} does not fit the request: {reason}")
            }
            Self::Http { service, status } => format!("{service} answered HTTP {status}"),
            Self::Read { path, source } => format!("cannot read {}: {source}", path.display()),
            Self::Backwards { signed_at, to } => {
                format!("a signature of {signed_at} cannot be extended to {to}, which is earlier")
            }
            Self::Elsewhere { to, published } => format!(
                "the publication is that of {published}, and the signature is to be extended to {to}"
            ),
            Self::Broken { reason } => format!("{reason}: the signature contradicts itself"),
            Self::All(errors) => format!("none of {} services gave a good answer", errors.len()),
        }
    }

    /// What to do, where that is not clear from what happened.
    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Connect { .. } => "is it running, and is this its address?".into(),
            Self::Tls { advice, .. } => (*advice).into(),
            Self::Lost { .. } => "trying again may help".into(),
            Self::TimedOut { .. } => "it may be overloaded or stopped".into(),
            Self::Refused {
                asked,
                status,
                user,
                bounds,
                ..
            } => advice(*asked, *status, user, *bounds),
            Self::Unauthenticated { .. } => {
                "check the key; if it is right, somebody stands between".into()
            }
            Self::Malformed { .. } | Self::Unfit { .. } => {
                "nothing of it was taken; whoever runs it should know".into()
            }
            Self::Http { status, .. } => match status {
                300..=399 => "write the address that it redirects to".into(),
                401 | 403 => "it wants another login than the user of the address".into(),
                404 | 405 => "is this the right path?".into(),
                413 => "a proxy before it takes no request of this size".into(),
                429 => "ask less often".into(),
                502..=504 => "the service behind this proxy does not answer; try later".into(),
                _ => "its log says why".into(),
            },
            Self::Broken { .. } => "it cannot be extended".into(),
            _ => return None,
        })
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fact())?;
        if let Self::All(errors) = self {
            for (index, error) in errors.iter().enumerate() {
                let separator = if index == 0 { ": " } else { "; " };
                // What to do is said once, for what tells most.
                match index {
                    0 => write!(f, "{separator}{error}")?,
                    _ => write!(f, "{separator}{}", error.fact())?,
                }
            }
        }
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // Their texts stand in ours.
        None
    }
}

impl From<EndpointError> for ClientError {
    fn from(error: EndpointError) -> Self {
        Self::Endpoint(error)
    }
}

impl From<RootsError> for ClientError {
    fn from(error: RootsError) -> Self {
        Self::Roots(error)
    }
}

impl From<EncodeError> for ClientError {
    fn from(error: EncodeError) -> Self {
        Self::Request(error)
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sign => "sign",
            Self::Extend => "extend",
            Self::Configuration => "show its configuration",
            Self::CalendarProof => "prove a second",
            Self::Publications => "show its publications",
            Self::Fleet => "take part in its fleet",
            Self::Audit => "show its trail",
        })
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calendar { first, last } => {
                f.write_str("its calendar reaches")?;
                if let Some(first) = first {
                    write!(f, " from {first}")?;
                }
                if let Some(last) = last {
                    write!(f, " to {last}")?;
                }
                Ok(())
            }
            Self::MaxLevel(level) => write!(f, "the highest it takes is {level}"),
        }
    }
}

/// A service's words: no control characters, nothing that reorders text, and
/// not more than fits a few lines.
pub(crate) fn quoted(message: &str) -> String {
    if message.is_empty() {
        return String::new();
    }
    match message.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!(", {:?} and so on", &message[..end]),
        None => format!(", {message:?}"),
    }
}

/// What the caller can do about a status code.
fn advice(asked: Asked, status: u64, user: &str, bounds: Option<Bounds>) -> String {
    let text = match (status, asked) {
        (0x0102, _) => return format!("check name and HMAC key of user {user:?}"),
        (0x0101 | 0x0103, _) => {
            "the request was not accepted as it is; is this service's software current?"
        }
        (0x0104, Asked::Extend) => "a signature can only be extended forwards",
        (0x0104, _) => "sign at a lower level",
        (0x0105, Asked::Extend) => {
            "the signature is older than this calendar; ask the extender of the service that signed it"
        }
        (0x0105, _) => {
            return format!(
                "the quota of user {user:?} is used up; wait until it is renewed, or have it raised"
            );
        }
        (0x0106, Asked::Extend) => "the calendar does not reach that far yet; try later",
        (0x0106, _) => "too many requests at a time; try again a second later, or send fewer",
        (0x0107, Asked::Extend) => "that time is in the future; is this machine's clock right?",
        (0x0107, _) => "the input is too long; sign its hash by a shorter algorithm",
        (0x0201 | 0x0202, Asked::Extend) => {
            "the service's calendar is missing or damaged; tell its operator, and ask another"
        }
        (0x0200..=0x02ff, _) => "the service has a fault; its log says which",
        (0x0300..=0x03ff, _) => "a service behind it does not answer; try later",
        _ => "an unknown code; see the service's manual",
    };
    match bounds {
        Some(bounds) => format!("{text}; {bounds}"),
        None => text.to_owned(),
    }
}

/// Characters of a service's message that are repeated.
const MAX_WORDS: usize = 240;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(asked: Asked, status: u64, message: &str, bounds: Option<Bounds>) -> ClientError {
        ClientError::Refused {
            service: "the service at h:1".into(),
            asked,
            status,
            message: message.into(),
            user: "ward".into(),
            bounds,
        }
    }

    #[track_caller]
    fn says(error: &ClientError, expected: &str) {
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let calendar = Bounds::Calendar {
            first: Some(Second(1_773_480_413)),
            last: Some(Second(1_773_480_500)),
        };
        for (asked, status, bounds, does) in [
            (
                Asked::Sign,
                0x0101,
                None,
                "is this service's software current?",
            ),
            (
                Asked::Sign,
                0x0102,
                None,
                "check name and HMAC key of user \"ward\"",
            ),
            (Asked::Sign, 0x0104, None, "sign at a lower level"),
            (
                Asked::Sign,
                0x0104,
                Some(Bounds::MaxLevel(3)),
                "sign at a lower level; the highest it takes is 3",
            ),
            (
                Asked::Sign,
                0x0105,
                None,
                "wait until it is renewed, or have it raised",
            ),
            (
                Asked::Sign,
                0x0106,
                None,
                "try again a second later, or send fewer",
            ),
            (
                Asked::Sign,
                0x0107,
                None,
                "sign its hash by a shorter algorithm",
            ),
            (Asked::Sign, 0x0200, None, "its log says which"),
            (Asked::Sign, 0x0301, None, "try later"),
            (Asked::Sign, 0x0999, None, "see the service's manual"),
            (
                Asked::Extend,
                0x0102,
                None,
                "check name and HMAC key of user \"ward\"",
            ),
            (Asked::Extend, 0x0104, None, "can only be extended forwards"),
            (
                Asked::Extend,
                0x0105,
                Some(calendar),
                "ask the extender of the service that signed it; its calendar reaches \
                 from 2026-03-14T09:26:53Z to 2026-03-14T09:28:20Z",
            ),
            (
                Asked::Extend,
                0x0106,
                Some(Bounds::Calendar {
                    first: None,
                    last: Some(Second(1_773_480_500)),
                }),
                "try later; its calendar reaches to 2026-03-14T09:28:20Z",
            ),
            (
                Asked::Extend,
                0x0107,
                None,
                "is this machine's clock right?",
            ),
            (
                Asked::Extend,
                0x0202,
                None,
                "tell its operator, and ask another",
            ),
        ] {
            let text = refused(asked, status, "", bounds).to_string();
            let start = format!("the service at h:1 refused to {asked} (status 0x{status:04x}); ");
            assert!(text.starts_with(&start) && text.ends_with(does), "{text}");
        }
    }

    #[test]
    fn a_services_words_do_no_harm() {
        let text = refused(Asked::Sign, 0x0200, "a\x1b[2J\nb\u{202e}c", None).to_string();
        assert!(text.contains(r#", "a\u{1b}[2J\nb\u{202e}c")"#), "{text}");
        let text = refused(Asked::Sign, 0x0200, &"ä".repeat(60_000), None).to_string();
        assert!(text.len() < 1000 && text.contains("and so on"), "{text}");
    }

    #[test]
    fn of_several_the_most_telling_comes_first_with_what_to_do() {
        let connect = || ClientError::Connect {
            service: "the service at dead:1".into(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let errors = vec![
            connect(),
            ClientError::TimedOut {
                service: "the service at slow:1".into(),
                waited: Duration::from_secs(10),
            },
            refused(Asked::Sign, 0x0102, "", None),
        ];
        let error = ClientError::all(errors);
        assert!(error.is_temporary());
        says(
            &error,
            "none of 3 services gave a good answer: \
             the service at h:1 refused to sign (status 0x0102); check name and HMAC key of user \"ward\"; \
             the service at slow:1 did not answer within 10000 ms; \
             cannot connect to the service at dead:1: connection refused",
        );
        says(
            &ClientError::all(vec![connect()]),
            "cannot connect to the service at dead:1: connection refused; \
             is it running, and is this its address?",
        );
    }

    #[test]
    fn what_is_asked_again() {
        for (asked, status, again, later) in [
            (Asked::Sign, 0x0106, true, true),
            (Asked::Extend, 0x0106, false, true),
            (Asked::Sign, 0x0105, false, true),
            (Asked::Extend, 0x0105, false, false),
            (Asked::Extend, 0x0301, true, true),
            (Asked::Sign, 0x0200, false, true),
            (Asked::Sign, 0x0102, false, false),
        ] {
            let error = refused(asked, status, "", None);
            let found = (error.is_worth_repeating(), error.is_temporary());
            assert_eq!(found, (again, later), "{error}");
        }
    }
}
