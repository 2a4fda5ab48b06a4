//! The entry that a calendar's log has for a second (docs/spec/51-calendar-log.md §1).
//!
//! ```text
//! 01                    version
//! time        8 bytes   the second t, seconds since 1970-01-01T00:00:00Z
//! round       imprint   the leaf of second t: its round's root, or the zero leaf
//! calendar    imprint   the root of the calendar whose newest second is t
//! ```
//!
//! Imprints are SHA-256, as everything in a calendar of ours: 75 bytes in all.
//! The format is ours; it stands here because it says nothing but what a
//! [`CalendarChain`] says, and is computed from any chain that starts in `t`.

use crate::chain::{CalendarChain, Side};
use crate::error::{DecodeError, DecodeErrorKind as Kind};
use crate::hash::{self, Algorithm, Imprint};
use crate::time::Second;

/// What a calendar's log says of one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalendarEntry {
    time: Second,
    round: Imprint,
    calendar: Imprint,
}

impl CalendarEntry {
    /// Length of an entry, in bytes.
    pub const LEN: usize = 9 + 2 * IMPRINT;

    /// The entry of second `time`, whose leaf is `round` and whose calendar
    /// root, with `time` as the newest second, is `calendar`; `None` unless both
    /// are SHA-256.
    #[must_use]
    pub fn new(time: Second, round: Imprint, calendar: Imprint) -> Option<Self> {
        let fits = |imprint: Imprint| imprint.algorithm() == Algorithm::Sha256;
        (fits(round) && fits(calendar)).then_some(Self {
            time,
            round,
            calendar,
        })
    }

    /// The entry that the log must have for the second in which `chain` starts,
    /// to whatever later second it leads.
    ///
    /// Extending a chain changes left links only. Its right links are the perfect
    /// nodes to the left of its second, and folded onto the leaf they are the
    /// root that the calendar had in that very second. `None` if the shape of the
    /// chain does not prove its second, or an imprint is not SHA-256.
    #[must_use]
    pub fn of_chain(chain: &CalendarChain) -> Option<Self> {
        if chain.time_from_shape() != Some(chain.time()) {
            return None;
        }
        let join = |right: Imprint, left: &Imprint| {
            let algorithm = right.algorithm();
            hash::node(algorithm, left.as_bytes(), right.as_bytes(), CALENDAR_LEVEL)
        };
        let root = chain.siblings(Side::Right).fold(chain.input, join);
        Self::new(chain.time(), chain.input, root)
    }

    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.time.0.to_be_bytes());
        bytes[9..9 + IMPRINT].copy_from_slice(self.round.as_bytes());
        bytes[9 + IMPRINT..].copy_from_slice(self.calendar.as_bytes());
        bytes
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// Anything that [`CalendarEntry::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() != Self::LEN {
            let kind = match bytes.len() < Self::LEN {
                true => Kind::Truncated,
                false => Kind::TrailingBytes,
            };
            return Err(DecodeError::new(kind, bytes.len().min(Self::LEN)));
        }
        if bytes[0] != VERSION {
            return Err(DecodeError::new(Kind::Malformed("entry of version 1"), 0));
        }
        let time = bytes[1..9]
            .iter()
            .fold(0, |time, byte| time << 8 | u64::from(*byte));
        let read = |at: usize| match Imprint::from_bytes(&bytes[at..at + IMPRINT]) {
            Ok(imprint) if imprint.algorithm() == Algorithm::Sha256 => Ok(imprint),
            Ok(other) => Err(DecodeError::new(
                Kind::Algorithm(other.algorithm().id()),
                at,
            )),
            Err(kind) => Err(DecodeError::new(kind, at)),
        };
        Ok(Self {
            time: Second(time),
            round: read(9)?,
            calendar: read(9 + IMPRINT)?,
        })
    }

    /// The second that the entry is about.
    #[must_use]
    pub fn time(&self) -> Second {
        self.time
    }

    /// The root of that second's round; the zero leaf if nothing was asked for.
    #[must_use]
    pub fn round(&self) -> Imprint {
        self.round
    }

    /// The root of the calendar when that second was its newest.
    #[must_use]
    pub fn calendar(&self) -> Imprint {
        self.calendar
    }
}

const VERSION: u8 = 1;

/// Bytes of a SHA-256 imprint.
const IMPRINT: usize = 33;

/// The level byte of every calendar step (docs/spec/20-calendar.md §2).
const CALENDAR_LEVEL: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(second: u64) -> Imprint {
        hash::hash(Algorithm::Sha256, &[&second.to_be_bytes()])
    }

    /// The root of leaves `lo..=lo + r`, as the chapter words it.
    fn naive(lo: u64, r: u64) -> Imprint {
        let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) else {
            return leaf(lo);
        };
        let left = naive(lo, left_leaves - 1);
        let right = naive(lo + left_leaves, r - left_leaves);
        hash::node(Algorithm::Sha256, left.as_bytes(), right.as_bytes(), 0xff)
    }

    fn chain(from: u64, to: u64) -> CalendarChain {
        let (mut lo, mut r, mut links) = (0, to, Vec::new());
        while let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) {
            if from < lo + left_leaves {
                links.push((Side::Left, naive(lo + left_leaves, r - left_leaves)));
                r = left_leaves - 1;
            } else {
                links.push((Side::Right, naive(lo, left_leaves - 1)));
                lo += left_leaves;
                r -= left_leaves;
            }
        }
        links.reverse();
        CalendarChain {
            publication_time: Second(to),
            aggregation_time: Some(Second(from)),
            input: leaf(from),
            links,
        }
    }

    #[test]
    fn any_chain_of_a_second_tells_its_entry() {
        for to in 0..70 {
            for from in 0..=to {
                let entry = CalendarEntry::of_chain(&chain(from, to)).unwrap();
                assert_eq!(entry.time(), Second(from));
                assert_eq!(entry.round(), leaf(from));
                assert_eq!(entry.calendar(), naive(0, from), "{from} of {to}");
            }
        }
    }

    #[test]
    fn a_chain_that_claims_another_second_has_no_entry() {
        let mut claimed = chain(5, 12);
        claimed.aggregation_time = Some(Second(6));
        assert_eq!(CalendarEntry::of_chain(&claimed), None);
    }

    #[test]
    fn only_what_is_written_is_read() {
        let entry = CalendarEntry::of_chain(&chain(5, 12)).unwrap();
        let bytes = entry.encode();
        assert_eq!(bytes.len(), 75);
        assert_eq!(CalendarEntry::decode(&bytes), Ok(entry));
        for length in 0..bytes.len() {
            assert!(CalendarEntry::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(CalendarEntry::decode(&[&bytes[..], &[0]].concat()).is_err());
        for (at, value) in [(0, 0), (0, 2), (9, 0), (9, 5), (9, 8), (42, 2)] {
            let mut altered = bytes;
            altered[at] = value;
            assert!(CalendarEntry::decode(&altered).is_err(), "byte {at}");
        }
        let short = hash::hash(Algorithm::Sha512, &[b"another algorithm"]);
        assert_eq!(CalendarEntry::new(Second(1), short, leaf(1)), None);
    }
}
