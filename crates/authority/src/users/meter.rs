//! What is left of a rate and of quotas. Pure.

use pitser_ksi::time::Second;

use super::{Allowance, Denied};
use crate::clock::Micros;

/// What a user has spent. The default has spent nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Days since 1970 of `in_day`.
    pub(crate) day: u64,
    pub(crate) in_day: u64,
    /// Months since the year 0 of `in_month`.
    pub(crate) month: u64,
    pub(crate) in_month: u64,
    /// Millionths of a request that are missing in the bucket of the rate.
    missing: u64,
    /// When `missing` was true.
    filled_at: Option<Micros>,
}

impl Spent {
    /// So much, by quotas alone.
    pub(crate) fn of_quotas(day: u64, in_day: u64, month: u64, in_month: u64) -> Self {
        Self {
            day,
            in_day,
            month,
            in_month,
            ..Self::default()
        }
    }

    /// Spends one signature, or nothing.
    pub(super) fn take(&mut self, allowance: &Allowance, now: Micros) -> Result<(), Denied> {
        self.turn(now);
        if let Some(most) = allowance.per_month.filter(|most| self.in_month >= *most) {
            return Err(Denied::Month(most));
        }
        if let Some(most) = allowance.per_day.filter(|most| self.in_day >= *most) {
            return Err(Denied::Day(most));
        }
        if let Some(rate) = allowance.rate {
            self.take_of_rate(rate, now)?;
        }
        self.in_day += 1;
        self.in_month += 1;
        Ok(())
    }

    /// Takes back one `take`.
    pub(super) fn give_back(&mut self) {
        self.in_day = self.in_day.saturating_sub(1);
        self.in_month = self.in_month.saturating_sub(1);
        self.missing = self.missing.saturating_sub(WHOLE);
    }

    /// Takes `requests` out of the quotas again, which got no signature. Of the rate they
    /// stay: whoever asks again at once is as many.
    pub(super) fn forgive(&mut self, requests: u64) {
        self.in_day = self.in_day.saturating_sub(requests);
        self.in_month = self.in_month.saturating_sub(requests);
    }

    /// Begins a new day or month. A clock that was set back begins none; if it had been days
    /// ahead, what was spent counts for today, or nothing would be had until then.
    fn turn(&mut self, now: Micros) {
        let day = now.0 / MICROS_PER_DAY;
        if day <= self.day && self.day - day <= 1 {
            return;
        }
        let (year, month, _) = Second(day * 86_400).date();
        let month = year * 12 + month - 1;
        if day < self.day {
            (self.day, self.month) = (day, month);
            return;
        }
        if month > self.month {
            (self.month, self.in_month) = (month, 0);
        }
        (self.day, self.in_day) = (day, 0);
    }

    fn take_of_rate(&mut self, rate: u32, now: Micros) -> Result<(), Denied> {
        let since = now.since(self.filled_at.unwrap_or(now)).as_micros();
        let filled = u64::try_from(since)
            .unwrap_or(u64::MAX)
            .saturating_mul(rate.into());
        self.missing = self.missing.saturating_sub(filled);
        // Also when the clock was set back: what it said before is no excuse.
        self.filled_at = Some(now);
        let room = u64::from(rate) * WHOLE;
        if self.missing + WHOLE > room {
            return Err(Denied::Rate(rate));
        }
        self.missing += WHOLE;
        Ok(())
    }
}

/// One request, in the units of [`Spent::missing`].
const WHOLE: u64 = 1_000_000;
const MICROS_PER_DAY: u64 = 86_400 * 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-14T09:26:53Z.
    const T: u64 = 1_773_480_413_000_000;

    fn taken(spent: &mut Spent, allowance: &Allowance, tries: usize, now: u64) -> usize {
        let now = Micros(now);
        (0..tries)
            .filter(|_| spent.take(allowance, now).is_ok())
            .count()
    }

    #[test]
    fn a_seconds_worth_at_once_then_the_rate() {
        let allowance = Allowance {
            rate: Some(4),
            ..Allowance::default()
        };
        let mut spent = Spent::default();
        for (after_us, expected) in [
            (0, 4),
            (249_999, 0),
            (250_000, 1),
            (1_250_000, 4),
            (90_000_000, 4),
            // The clock is set back: nothing is given, nothing is blocked for long.
            (50_000_000, 0),
            (50_500_000, 2),
        ] {
            let found = taken(&mut spent, &allowance, 10, T + after_us);
            assert_eq!(found, expected, "after {after_us} µs");
        }
    }

    #[test]
    fn quotas_begin_anew_at_midnight_and_on_the_first() {
        let allowance = Allowance {
            per_day: Some(3),
            per_month: Some(7),
            ..Allowance::default()
        };
        let mut spent = Spent::default();
        let day = |n: u64| T + n * MICROS_PER_DAY;
        assert_eq!(taken(&mut spent, &allowance, 5, day(0)), 3);
        assert_eq!(spent.take(&allowance, Micros(day(0))), Err(Denied::Day(3)));
        assert_eq!(taken(&mut spent, &allowance, 5, day(1)), 3);
        assert_eq!(taken(&mut spent, &allowance, 5, day(2)), 1);
        let refused = spent.take(&allowance, Micros(day(3)));
        assert_eq!(refused, Err(Denied::Month(7)));
        // A day back is no new day.
        assert_eq!(taken(&mut spent, &allowance, 5, day(1)), 0);
        assert_eq!(taken(&mut spent, &allowance, 5, day(17)), 0, "31 March");
        assert_eq!(taken(&mut spent, &allowance, 5, day(18)), 3, "1 April");
    }

    /// A clock that was years ahead for a moment takes nobody's quota for years.
    #[test]
    fn a_clock_that_was_far_ahead_is_forgotten_by_the_next_midnight() {
        let allowance = Allowance {
            per_day: Some(3),
            per_month: Some(5),
            ..Allowance::default()
        };
        let mut spent = Spent::default();
        let day = |n: u64| T + n * MICROS_PER_DAY;
        assert_eq!(taken(&mut spent, &allowance, 2, day(0)), 2);
        assert_eq!(taken(&mut spent, &allowance, 5, day(1100)), 3);
        // Nothing is given back by it.
        assert_eq!(taken(&mut spent, &allowance, 5, day(0)), 0);
        assert_eq!(taken(&mut spent, &allowance, 5, day(1)), 2);
        assert_eq!(taken(&mut spent, &allowance, 5, day(2)), 0, "the month");
        assert_eq!(taken(&mut spent, &allowance, 5, day(18)), 3, "1 April");
    }

    #[test]
    fn what_was_refused_costs_nothing() {
        let allowance = Allowance {
            rate: Some(1),
            per_day: Some(10),
            ..Allowance::default()
        };
        let mut spent = Spent::default();
        assert_eq!(taken(&mut spent, &allowance, 5, T), 1);
        assert_eq!(spent.in_day, 1);
        spent.give_back();
        assert_eq!(spent.in_day, 0);
        assert_eq!(taken(&mut spent, &allowance, 5, T), 1);
    }
}
