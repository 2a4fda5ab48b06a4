//! What clients and extenders tell each other (spec §5).
//!
//! ```text
//! request   02 extend  01 integer request id, 02 time from, 03 time to 0..1
//!           04 configuration, empty
//! response  02 result  01 integer request id, 04 integer status, 05 string message 0..1,
//!                      12 time newest second 0..1, 0802 calendar chain 0..1
//!           04 config  04 requests, 10 string parent 0..n, 11 time first, 12 time last
//! ```

use super::{
    ACK, CONFIG, ERROR, EXTENSION_V1, ErrorPayload, MAX_PARENTS, PAYLOAD, Status, Version,
    optional_string, sealed,
};
use crate::{
    chain::{CalendarChain, push},
    error::DecodeError,
    time::Second,
    tlv::{Element, Tag, Writer},
};

/// What a client asks an extender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtendRequestPayload {
    /// Give a calendar chain.
    Extend(ExtendQuery),
    /// Tell your configuration.
    Config,
}

impl sealed::Codec for ExtendRequestPayload {
    const TAG: Tag = 0x0320;
    const TAG_V1: Tag = EXTENSION_V1;

    fn read(element: &Element<'_>, version: Version) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match (version, element.tag) {
            (Version::V2, PAYLOAD) | (Version::V1, 0x0301) => {
                Self::Extend(ExtendQuery::decode(element)?)
            }
            (Version::V2, CONFIG) => Self::Config,
            _ => return Ok(None),
        }))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Extend(query) => query.write(writer),
            Self::Config => _ = writer.element(CONFIG, &[]),
        }
    }

    fn is_error(&self) -> bool {
        false
    }
}

/// The wish for the calendar chain from one second to the root of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendQuery {
    /// Echoed by the answer.
    pub request_id: u64,
    /// The second of the leaf.
    pub aggregation_time: Second,
    /// The second of the root; `None` for the newest there is.
    pub publication_time: Option<Second>,
}

impl ExtendQuery {
    fn decode(element: &Element<'_>) -> Result<ExtendQuery, DecodeError> {
        let (mut request_id, mut aggregation_time, mut publication_time) = (None, None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut request_id, child.integer()?)?,
                0x02 => child.fill(&mut aggregation_time, child.second()?)?,
                0x03 => child.fill(&mut publication_time, child.second()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(ExtendQuery {
            request_id: element.require(request_id, 0x01)?,
            aggregation_time: element.require(aggregation_time, 0x02)?,
            publication_time,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(PAYLOAD, |w| {
            w.integer(0x01, self.request_id)
                .integer(0x02, self.aggregation_time.0)
                .optional_integer(0x03, self.publication_time.map(|time| time.0))
        });
    }
}

/// What an extender answers, or says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtendResponsePayload {
    /// The outcome of one request.
    Result(ExtendResult),
    /// The whole message could not be dealt with.
    Error(ErrorPayload),
    /// The extender's configuration.
    Config(ExtenderConfig),
}

impl sealed::Codec for ExtendResponsePayload {
    const TAG: Tag = 0x0321;
    const TAG_V1: Tag = EXTENSION_V1;
    /// An acknowledgement, as aggregators send it, stands in a published answer.
    const PASSED_OVER: &'static [Tag] = &[ACK];

    fn read(element: &Element<'_>, version: Version) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match (version, element.tag) {
            (Version::V2, PAYLOAD) | (Version::V1, 0x0302) => {
                Self::Result(ExtendResult::decode(element)?)
            }
            (Version::V2, ERROR) | (Version::V1, 0x0303) => {
                Self::Error(ErrorPayload::decode(element)?)
            }
            (Version::V2, CONFIG) => Self::Config(ExtenderConfig::decode(element)?),
            _ => return Ok(None),
        }))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Result(result) => result.write(writer),
            Self::Error(error) => error.write(writer),
            Self::Config(config) => config.write(writer),
        }
    }

    fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

/// The outcome of one [`ExtendQuery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendResult {
    /// That of the request.
    pub request_id: u64,
    /// [`Status::OK`], or why there is no chain.
    pub status: Status,
    /// The status in words.
    pub message: Option<String>,
    /// The newest second in the extender's calendar.
    pub calendar_last: Option<Second>,
    /// The chain; `None` unless the status is OK.
    pub calendar: Option<CalendarChain>,
}

impl ExtendResult {
    /// The answer that a request failed.
    #[must_use]
    pub fn failure(request_id: u64, status: Status, message: impl Into<String>) -> Self {
        let message = Some(message.into());
        Self {
            request_id,
            status,
            message,
            calendar_last: None,
            calendar: None,
        }
    }

    fn decode(element: &Element<'_>) -> Result<ExtendResult, DecodeError> {
        let (mut request_id, mut status, mut message) = (None, None, None);
        let (mut calendar_last, mut calendar) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut request_id, child.integer()?)?,
                0x04 => child.fill(&mut status, Status(child.integer()?))?,
                0x05 => child.fill(&mut message, child.string()?.into())?,
                // Version 1 uses the former tag.
                0x10 | 0x12 => child.fill(&mut calendar_last, child.second()?)?,
                CalendarChain::TAG => child.fill(&mut calendar, CalendarChain::decode(&child)?)?,
                _ => child.ignore()?,
            }
        }
        Ok(ExtendResult {
            request_id: element.require(request_id, 0x01)?,
            status: status.unwrap_or(Status::OK),
            message,
            calendar_last,
            calendar,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(PAYLOAD, |w| {
            w.integer(0x01, self.request_id)
                .integer(0x04, self.status.0);
            optional_string(w, 0x05, self.message.as_deref());
            w.optional_integer(0x12, self.calendar_last.map(|time| time.0));
            if let Some(calendar) = &self.calendar {
                calendar.write(w);
            }
            w
        });
    }
}

/// How an extender wants to be used. Absent values leave the choice to the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtenderConfig {
    /// Requests accepted per second.
    pub max_requests: Option<u64>,
    /// Addresses of the extenders above.
    pub parents: Vec<String>,
    /// The oldest second in the calendar.
    pub calendar_first: Option<Second>,
    /// The newest second in the calendar.
    pub calendar_last: Option<Second>,
}

impl ExtenderConfig {
    fn decode(element: &Element<'_>) -> Result<ExtenderConfig, DecodeError> {
        let (mut max_requests, mut calendar_first, mut calendar_last) = (None, None, None);
        let mut parents = Vec::new();
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x04 => child.fill(&mut max_requests, child.integer()?)?,
                0x10 => push(&child, &mut parents, MAX_PARENTS, child.string()?.into())?,
                0x11 => child.fill(&mut calendar_first, child.second()?)?,
                0x12 => child.fill(&mut calendar_last, child.second()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(ExtenderConfig {
            max_requests,
            parents,
            calendar_first,
            calendar_last,
        })
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(CONFIG, |w| {
            w.optional_integer(0x04, self.max_requests)
                .each(&self.parents, |w, parent| _ = w.string(0x10, parent))
                .optional_integer(0x11, self.calendar_first.map(|time| time.0))
                .optional_integer(0x12, self.calendar_last.map(|time| time.0))
        });
    }
}
