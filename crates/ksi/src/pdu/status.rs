//! Status codes of aggregators and extenders (spec §5).

use core::fmt;

/// Outcome of a request. Codes 0104 to 0107 mean one thing from an aggregator
/// and another from an extender. Displays as "status 0x0104".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u64);

impl Status {
    /// Done.
    pub const OK: Status = Status(0);
    /// The request is malformed.
    pub const REQUEST_INVALID: Status = Status(0x0101);
    /// Unknown user or wrong MAC.
    pub const AUTHENTICATION_FAILED: Status = Status(0x0102);
    /// The payload is malformed.
    pub const PAYLOAD_INVALID: Status = Status(0x0103);
    /// Aggregator: the level is too high.
    pub const REQUEST_TOO_LARGE: Status = Status(0x0104);
    /// Extender: the publication time is before the aggregation time.
    pub const TIME_RANGE_INVALID: Status = Status(0x0104);
    /// Aggregator: the user has used up its quota.
    pub const OVER_QUOTA: Status = Status(0x0105);
    /// Extender: the time is before the calendar's first second.
    pub const TIME_TOO_OLD: Status = Status(0x0105);
    /// Aggregator: too many requests in this round.
    pub const TOO_MANY_REQUESTS: Status = Status(0x0106);
    /// Extender: the time is after the calendar's last second.
    pub const TIME_TOO_NEW: Status = Status(0x0106);
    /// Aggregator: the input is too long.
    pub const INPUT_TOO_LONG: Status = Status(0x0107);
    /// Extender: the time lies in the future.
    pub const TIME_IN_FUTURE: Status = Status(0x0107);
    /// The service failed.
    pub const INTERNAL_ERROR: Status = Status(0x0200);
    /// Extender: it has no calendar.
    pub const DATABASE_MISSING: Status = Status(0x0201);
    /// Extender: its calendar is damaged.
    pub const DATABASE_CORRUPT: Status = Status(0x0202);
    /// A service above failed.
    pub const UPSTREAM_ERROR: Status = Status(0x0300);
    /// A service above did not answer in time.
    pub const UPSTREAM_TIMEOUT: Status = Status(0x0301);

    /// Whether the request was fulfilled.
    #[must_use]
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }

    /// What an aggregator means by it.
    #[must_use]
    pub fn aggregator_meaning(self) -> &'static str {
        match self {
            Self::REQUEST_TOO_LARGE => "the level is too high",
            Self::OVER_QUOTA => "the quota is used up",
            Self::TOO_MANY_REQUESTS => "too many requests",
            Self::INPUT_TOO_LONG => "the input is too long",
            _ => self.common_meaning(),
        }
    }

    /// What an extender means by it.
    #[must_use]
    pub fn extender_meaning(self) -> &'static str {
        match self {
            Self::TIME_RANGE_INVALID => "the publication time is before the aggregation time",
            Self::TIME_TOO_OLD => "the time is before the calendar's first second",
            Self::TIME_TOO_NEW => "the time is after the calendar's last second",
            Self::TIME_IN_FUTURE => "the time lies in the future",
            Self::DATABASE_MISSING => "the calendar is missing",
            Self::DATABASE_CORRUPT => "the calendar is damaged",
            _ => self.common_meaning(),
        }
    }

    fn common_meaning(self) -> &'static str {
        match self {
            Self::OK => "done",
            Self::REQUEST_INVALID => "the request is malformed",
            Self::AUTHENTICATION_FAILED => "authentication failed",
            Self::PAYLOAD_INVALID => "the payload is malformed",
            Self::INTERNAL_ERROR => "the service failed",
            Self::UPSTREAM_ERROR => "a service above failed",
            Self::UPSTREAM_TIMEOUT => "a service above did not answer in time",
            _ => "unknown status",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:#06x}", self.0)
    }
}
