//! When a failed delivery is tried again, and when somebody is told of it. Pure:
//! time and chance are arguments.

use std::time::Duration;

/// How patient deliveries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// One attempt, from connecting to the end of the answer, takes no longer.
    pub attempt: Duration,
    /// About how long it takes from the first failure to the second attempt.
    pub retry_min: Duration,
    /// No wait is longer.
    pub retry_max: Duration,
    /// How long a stopping process still tries to deliver what waits.
    pub last: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
            last: Duration::from_secs(5),
        }
    }
}

impl Pace {
    /// How long to wait after that many failures in a row: at most
    /// `retry_min · 2^(failures-1)`, at least half of it, by `chance`.
    pub(crate) fn back_off(&self, failures: u32, chance: u64) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let ceiling = self.retry_min.saturating_mul(doubled).min(self.retry_max);
        let half = ceiling / 2;
        half + half.mul_f64(chance as f64 / u64::MAX as f64)
    }
}

/// How an endpoint has answered lately.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failing_since_us: Option<u64>,
    warned_at_us: Option<u64>,
}

impl Health {
    /// Notes a failure; `true` if it is time to log one.
    pub(crate) fn failed(&mut self, now_us: u64) -> bool {
        self.failing_since_us.get_or_insert(now_us);
        let due = self
            .warned_at_us
            .is_none_or(|at| now_us.saturating_sub(at) >= WARN_EVERY_US);
        if due {
            self.warned_at_us = Some(now_us);
        }
        due
    }

    /// Notes a delivery.
    pub(crate) fn delivered(&mut self) {
        self.failing_since_us = None;
    }

    /// True if nothing has been delivered for a while although it was tried.
    pub(crate) fn is_trouble(&self, now_us: u64) -> bool {
        self.failing_since_us
            .is_some_and(|since| now_us.saturating_sub(since) >= TROUBLE_US)
    }
}

/// Failing for so long, in microseconds, shows in the status.
const TROUBLE_US: u64 = 60_000_000;
/// Failures are logged no more often, in microseconds.
const WARN_EVERY_US: u64 = 300_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn waits(failures: u32, chance: u64, expected_ms: u64) {
        let wait = Pace::default().back_off(failures, chance);
        assert_eq!(wait, Duration::from_millis(expected_ms));
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        waits(1, u64::MAX, 1_000);
        waits(2, u64::MAX, 2_000);
        waits(9, u64::MAX, 256_000);
        waits(10, u64::MAX, 300_000);
        waits(u32::MAX, u64::MAX, 300_000);
    }

    #[test]
    fn chance_shortens_a_wait_by_half_at_most() {
        waits(3, 0, 2_000);
        waits(3, u64::MAX / 2, 3_000);
        waits(u32::MAX, 0, 150_000);
    }

    #[test]
    fn a_long_failure_is_logged_at_once_and_then_each_five_minutes() {
        let mut health = Health::default();
        let logged = (0..700).filter(|s| health.failed(s * 1_000_000));
        assert_eq!(logged.collect::<Vec<_>>(), [0, 300, 600]);
    }

    #[test]
    fn an_endpoint_that_comes_and_goes_does_not_flood_the_log() {
        let mut health = Health::default();
        assert!(health.failed(0));
        health.delivered();
        assert!(!health.failed(1_000_000));
    }

    #[test]
    fn trouble_begins_after_a_minute_and_ends_with_a_delivery() {
        let mut health = Health::default();
        health.failed(5_000_000);
        assert!(!health.is_trouble(64_999_999));
        assert!(health.is_trouble(65_000_000));
        health.delivered();
        assert!(!health.is_trouble(99_000_000));
    }
}
