//! When to connect next: at once, then after pauses that double.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The pauses of one service, shared by all who want to connect to it.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    not_before: Option<Instant>,
}

impl Pace {
    /// Completes when it is time to connect.
    pub(crate) async fn turn(&self) {
        let not_before = self.lock().not_before;
        if let Some(not_before) = not_before {
            sleep_until(not_before).await;
        }
    }

    /// A connection could not be made, or broke as soon as it was made.
    pub(crate) fn failed(&self) {
        let mut state = self.lock();
        state.not_before = Some(Instant::now() + jittered(pause_after(state.failures)));
        state.failures = state.failures.saturating_add(1);
    }

    /// A connection ended soon, after it had been of use.
    pub(crate) fn hold(&self) {
        *self.lock() = State {
            failures: 0,
            not_before: Some(Instant::now() + FIRST_PAUSE),
        };
    }

    /// A connection was of use.
    pub(crate) fn succeeded(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE)
}

/// Between half of `pause` and all of it, so that many clients do not come back
/// at one moment.
pub(crate) fn jittered(pause: Duration) -> Duration {
    // Seeded anew by the standard library each time; nothing secret hangs on it.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 1024
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        assert_eq!(pause_after(0), FIRST_PAUSE);
        assert_eq!(pause_after(3), FIRST_PAUSE * 8);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn a_success_ends_them() {
        let pace = Pace::default();
        pace.failed();
        assert!(pace.lock().not_before.is_some());
        pace.succeeded();
        assert!(pace.lock().not_before.is_none());
    }

    #[test]
    fn jitter_takes_at_most_half() {
        let pause = Duration::from_millis(100);
        for _ in 0..100 {
            assert!((pause / 2..=pause).contains(&jittered(pause)));
        }
    }
}
