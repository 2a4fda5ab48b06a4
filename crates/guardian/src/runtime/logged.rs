//! How findings stand in the program's own log: each, as long as they are few. Whoever
//! may log in can cause one with each change; all are in the trail, and counted in the
//! status.

use super::SECOND_US;
use pitser_monitor::Kind;
use std::collections::HashMap;

/// So many of one code and table are told one by one in a [`Logged::STRETCH_US`].
const EACH: u64 = 20;

/// What the log was told lately.
#[derive(Debug, Default)]
pub(super) struct Logged {
    /// When the stretch under way ends, in microseconds since 1970.
    until: u64,
    /// How many there were in it.
    told: HashMap<Kind, u64>,
}

impl Logged {
    /// Microseconds.
    const STRETCH_US: u64 = 60 * SECOND_US;

    /// Whether one more of this kind is told by itself; it is counted otherwise.
    pub(super) fn tells(&mut self, kind: Kind, now: u64) -> bool {
        if self.told.is_empty() {
            self.until = now + Self::STRETCH_US;
        }
        let count = self.told.entry(kind).or_default();
        *count += 1;
        *count <= EACH
    }

    /// How many were only counted in the stretch that is over now, in the order of kinds.
    pub(super) fn over(&mut self, now: u64) -> Vec<(Kind, u64)> {
        if now < self.until {
            return Vec::new();
        }
        let counted = |(kind, count): (Kind, u64)| {
            let more = count.saturating_sub(EACH);
            (more > 0).then_some((kind, more))
        };
        let mut more: Vec<_> = self.told.drain().filter_map(counted).collect();
        more.sort();
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::Code;

    #[test]
    fn the_first_of_a_kind_are_told_and_the_others_counted() {
        let mut logged = Logged::default();
        let entry = || (Code::Unattributed, Some("entry".to_owned()));
        let told = (0..1000).filter(|n| logged.tells(entry(), *n));
        assert_eq!(told.count(), 20);
        assert!(logged.tells((Code::RowDiffers, None), 1000));
        assert_eq!(logged.over(Logged::STRETCH_US - 1), []);
        assert_eq!(logged.over(Logged::STRETCH_US), [(entry(), 980)]);
        // Of what follows, the first are told again.
        assert!(logged.tells(entry(), Logged::STRETCH_US + 5));
        assert_eq!(logged.over(2 * Logged::STRETCH_US + 4), []);
        assert_eq!(logged.over(2 * Logged::STRETCH_US + 5), []);
    }
}
