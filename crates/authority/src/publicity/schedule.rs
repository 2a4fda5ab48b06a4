//! When to publish.

use pitser_ksi::time::Second;

use crate::config::Config;

/// Seconds at which a publication is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// At multiples of so many seconds since 1970; 0: none.
    pub(crate) every_s: u64,
    /// At 00:00:00 UTC on this day of each month.
    pub(crate) monthly_on: Option<u8>,
}

impl Schedule {
    /// What `config` asks for.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            every_s: config.publish_every_s,
            monthly_on: config.publicity.monthly_on,
        }
    }

    /// The first due second after `at`; none if nothing is ever due.
    pub(crate) fn after(self, at: Second) -> Option<Second> {
        let periodic = match self.every_s {
            0 => None,
            every_s => Some(Second((at.0 / every_s + 1).saturating_mul(every_s))),
        };
        let monthly = self.monthly_on.and_then(|day| month_day_after(at, day));
        match (periodic, monthly) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// The last due second up to `at`, which is one too; none if nothing was due yet.
    pub(crate) fn latest(self, at: Second) -> Option<Second> {
        let periodic =
            at.0.checked_div(self.every_s)
                .map(|n| Second(n * self.every_s));
        let monthly = self.monthly_on.and_then(|day| month_day_until(at, day));
        // None is less than any second.
        periodic.max(monthly)
    }
}

/// The next midnight that begins day `day` of a month.
fn month_day_after(at: Second, day: u8) -> Option<Second> {
    let first = at.0 / DAY_S + 1;
    // A month has at most 31 days; a day that some months lack would be skipped there.
    let midnights =
        (first..first.saturating_add(LONGEST_GAP_DAYS)).map(|n| n.saturating_mul(DAY_S));
    midnights
        .map(Second)
        .find(|midnight| midnight.date().2 == u64::from(day))
}

/// The last midnight up to `at` that begins day `day` of a month.
fn month_day_until(at: Second, day: u8) -> Option<Second> {
    let last = at.0 / DAY_S;
    let midnights = (last.saturating_sub(LONGEST_GAP_DAYS)..=last).map(|n| Second(n * DAY_S));
    midnights
        .rev()
        .find(|midnight| midnight.date().2 == u64::from(day))
}

const DAY_S: u64 = 86_400;
const LONGEST_GAP_DAYS: u64 = 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schedule: Schedule, at: &str, expected: Option<&str>) {
        // 2026-01-14T12:00:00Z and so on, by counting from a known midnight.
        let at = second(at);
        assert_eq!(schedule.after(at), expected.map(second), "{at}");
    }

    fn second(text: &str) -> Second {
        let digits = |range: std::ops::Range<usize>| text[range].parse::<u64>().unwrap();
        let wanted = (digits(0..4), digits(5..7), digits(8..10));
        let day = (19_000..30_000).find(|day| Second(day * DAY_S).date() == wanted);
        let of_day = digits(11..13) * 3600 + digits(14..16) * 60 + digits(17..19);
        Second(day.unwrap() * DAY_S + of_day)
    }

    #[test]
    fn months_have_their_day() {
        let monthly = Schedule {
            every_s: 0,
            monthly_on: Some(15),
        };
        check(monthly, "2026-01-14T12:00:00", Some("2026-01-15T00:00:00"));
        check(monthly, "2026-01-14T23:59:59", Some("2026-01-15T00:00:00"));
        check(monthly, "2026-01-15T00:00:00", Some("2026-02-15T00:00:00"));
        check(monthly, "2027-12-15T00:00:01", Some("2028-01-15T00:00:00"));
        let last = Schedule {
            monthly_on: Some(28),
            ..monthly
        };
        check(last, "2028-01-29T00:00:00", Some("2028-02-28T00:00:00"));
        check(last, "2028-02-28T00:00:00", Some("2028-03-28T00:00:00"));
    }

    #[test]
    fn the_earlier_of_both_is_due() {
        let both = Schedule {
            every_s: 86_400 * 7,
            monthly_on: Some(15),
        };
        // 1970-01-01 was a Thursday, and so is each multiple of a week.
        check(both, "2026-01-09T00:00:00", Some("2026-01-15T00:00:00"));
        check(both, "2026-01-15T00:00:00", Some("2026-01-22T00:00:00"));
        check(both, "2026-02-12T00:00:00", Some("2026-02-15T00:00:00"));
    }

    #[test]
    fn the_latest_is_the_one_that_nothing_follows() {
        let schedules = [(0, Some(15)), (86_400 * 7, Some(15)), (3600, None)];
        for (every_s, monthly_on) in schedules {
            let schedule = Schedule {
                every_s,
                monthly_on,
            };
            for at in [
                "2026-01-14T23:59:59",
                "2026-01-15T00:00:00",
                "2026-03-01T12:00:00",
            ] {
                let at = second(at);
                let latest = schedule.latest(at).unwrap();
                assert!(latest <= at && schedule.after(latest).unwrap() > at);
                assert_eq!(schedule.after(Second(latest.0 - 1)), Some(latest));
            }
        }
    }

    #[test]
    fn nothing_is_due_without_a_schedule_and_the_end_of_time_is_borne() {
        let never = Schedule {
            every_s: 0,
            monthly_on: None,
        };
        assert_eq!(never.after(Second(5)), None);
        assert_eq!(never.latest(Second(5)), None);
        let both = Schedule {
            every_s: 10,
            monthly_on: Some(15),
        };
        assert_eq!(both.after(Second(5)), Some(Second(10)));
    }
}
