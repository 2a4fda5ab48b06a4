//! Where the authority's time comes from: the caller.
//!
//! This crate never reads the machine's clock. A [`Clock`] says what time it is
//! and wakes the round loop at a boundary; `cli` gives one that reads the
//! machine, tests and simulations a [`ManualClock`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pitser_ksi::time::Second;
use tokio::sync::watch;

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// The last instant of second `t`, which is its boundary: a round accepts
    /// what arrives in `(t - 1, t]`.
    pub fn boundary(t: Second) -> Self {
        Self(t.0.saturating_mul(MICROS_PER_SECOND))
    }

    /// The second that has ended, or ends at this very instant.
    pub fn ended(self) -> Second {
        Second(self.0 / MICROS_PER_SECOND)
    }

    /// The second that a request arriving now belongs to.
    pub fn round(self) -> Second {
        Second(self.0.div_ceil(MICROS_PER_SECOND))
    }

    /// This instant moved forward.
    pub fn plus(self, by: Duration) -> Self {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// How long it is from `earlier` to here; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.ended().to_string();
        let micros = self.0 % MICROS_PER_SECOND;
        write!(f, "{}.{micros:06}Z", shown.trim_end_matches('Z'))
    }
}

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// What time it is. It may go back or jump; the authority notices.
    fn now(&self) -> Micros;

    /// Completes when `now()` may have reached `at`; waking early is harmless.
    ///
    /// The default sleeps on the runtime's timer for the difference.
    fn wait_until(&self, at: Micros) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // A timer counts milliseconds; one more saves a second, shorter sleep.
        let wait = at.since(self.now()) + Duration::from_millis(1);
        Box::pin(tokio::time::sleep(wait))
    }
}

/// Any function that tells the time is a clock.
impl<F: Fn() -> Micros + Send + Sync + 'static> Clock for F {
    fn now(&self) -> Micros {
        self()
    }
}

/// A clock may be shared with whoever moves it.
impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Micros {
        (**self).now()
    }

    fn wait_until(&self, at: Micros) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        (**self).wait_until(at)
    }
}

/// A clock that stands still until it is moved, for tests and simulations.
#[derive(Debug)]
pub struct ManualClock(watch::Sender<Micros>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Micros) -> Self {
        Self(watch::Sender::new(now))
    }

    /// Moves the clock, in either direction, and wakes whoever waits.
    pub fn set(&self, now: Micros) {
        self.0.send_replace(now);
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now = now.plus(by));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        *self.0.borrow()
    }

    fn wait_until(&self, at: Micros) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let start = self.now();
        let mut changes = self.0.subscribe();
        // Going back is a reason to wake as well: the authority must notice.
        Box::pin(async move {
            let _ = changes.wait_for(|now| *now >= at || *now < start).await;
        })
    }
}

const MICROS_PER_SECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_what_arrives_up_to_its_boundary() {
        for (now, round, ended) in [
            (4_000_000, 4, 4),
            (4_000_001, 5, 4),
            (4_999_999, 5, 4),
            (5_000_000, 5, 5),
        ] {
            assert_eq!(Micros(now).round(), Second(round), "{now}");
            assert_eq!(Micros(now).ended(), Second(ended), "{now}");
        }
    }

    #[test]
    fn shows_microseconds() {
        assert_eq!(Micros(1_500_042).to_string(), "1970-01-01T00:00:01.500042Z");
    }

    #[tokio::test]
    async fn a_manual_clock_wakes_at_the_boundary_and_when_it_goes_back() {
        let clock = ManualClock::new(Micros(10));
        clock.wait_until(Micros(10)).await;
        let (moved, ()) = tokio::join!(clock.wait_until(Micros(20)), async {
            clock.advance(Duration::from_micros(10));
        });
        let () = moved;
        let ((), ()) = tokio::join!(clock.wait_until(Micros(50)), async {
            clock.set(Micros(3));
        });
        assert_eq!(clock.now(), Micros(3));
    }
}
