//! Instants, in the calendar's resolution.

use core::fmt;

/// Seconds since 1970-01-01T00:00:00Z, leap seconds not counted; the calendar's
/// resolution. Displays as RFC 3339 in UTC.
///
/// ```
/// use pitser_ksi::Second;
/// assert_eq!(Second(1_467_331_200).to_string(), "2016-07-01T00:00:00Z");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Second(pub u64);

impl Second {
    /// The seconds from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Second) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// `self` moved forward by `seconds`, at most to the end of the range.
    #[must_use]
    pub fn plus(self, seconds: u64) -> Second {
        Second(self.0.saturating_add(seconds))
    }

    /// Year, month (1 to 12) and day (1 to 31) in UTC.
    #[must_use]
    pub fn date(self) -> (u64, u64, u64) {
        civil(self.0 / SECONDS_PER_DAY)
    }
}

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second_of_day = self.0 % SECONDS_PER_DAY;
        let (year, month, day) = self.date();
        let (hour, minute, second) = (
            second_of_day / 3600,
            second_of_day / 60 % 60,
            second_of_day % 60,
        );
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
///
/// Years are counted from 1 March, so that the leap day comes last, in eras of
/// 400 years, which all have the same number of days.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_march_0000 = days + DAYS_FROM_MARCH_0000;
    let (era, day_of_era) = (
        since_march_0000 / DAYS_PER_ERA,
        since_march_0000 % DAYS_PER_ERA,
    );
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

const SECONDS_PER_DAY: u64 = 86_400;
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_FROM_MARCH_0000: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(second: u64, shown: &str) {
        assert_eq!(Second(second).to_string(), shown);
    }

    #[test]
    fn shows_the_epoch() {
        check(0, "1970-01-01T00:00:00Z");
    }

    #[test]
    fn shows_leap_days() {
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(4_107_542_399, "2100-02-28T23:59:59Z");
    }

    #[test]
    fn shows_time_of_day() {
        check(1_773_480_413, "2026-03-14T09:26:53Z");
    }

    #[test]
    fn shows_the_last_second() {
        check(u64::MAX, "584554051223-11-09T07:00:15Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Second(5).since(Second(7)), 0);
        assert_eq!(Second(7).since(Second(5)), 2);
        assert_eq!(Second(u64::MAX).plus(1), Second(u64::MAX));
    }
}
