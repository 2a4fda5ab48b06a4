//! Whether a guardian's thread gets on. What it publishes itself cannot tell: if it hangs,
//! the newest of it stands, and looks well.

use crate::Clock;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When a thread began its newest step, for those outside of it.
#[derive(Clone)]
pub(super) struct Pulse {
    /// Microseconds since 1970; [`RESTING`] while nobody is to wait for the next.
    began: Arc<AtomicU64>,
    clock: Clock,
}

const RESTING: u64 = 0;

impl Pulse {
    /// Of a thread that has not begun.
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            began: Arc::new(AtomicU64::new(RESTING)),
            clock,
        }
    }

    /// A step begins. None is long: what waits for somebody gives up within half a minute.
    pub(super) fn beat(&self, now: u64) {
        self.began.store(now, Ordering::Relaxed);
    }

    /// What follows may take any time: a trail is opened, say, or the next attempt is
    /// waited for.
    pub(super) fn rest(&self) {
        self.began.store(RESTING, Ordering::Relaxed);
    }

    /// When the newest step began; `None` while it rests.
    pub(super) fn began(&self) -> Option<u64> {
        Some(self.began.load(Ordering::Relaxed)).filter(|began| *began != RESTING)
    }

    /// How long the newest step has been under way.
    pub(super) fn age(&self) -> Option<Duration> {
        let age = |began| Duration::from_micros((self.clock)().saturating_sub(began));
        self.began().map(age)
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pulse").field(&self.began()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_as_old_as_its_beginning_and_a_rest_has_no_age() {
        let now = Arc::new(AtomicU64::new(5));
        let at = now.clone();
        let pulse = Pulse::new(Arc::new(move || at.load(Ordering::Relaxed)));
        let seen = pulse.clone();
        assert_eq!(seen.age(), None);
        pulse.beat(3_000_000);
        now.store(10_000_000, Ordering::Relaxed);
        assert_eq!(seen.age(), Some(Duration::from_secs(7)));
        // A clock that was put back.
        now.store(1, Ordering::Relaxed);
        assert_eq!(seen.age(), Some(Duration::ZERO));
        pulse.rest();
        assert_eq!(seen.age(), None);
    }
}
