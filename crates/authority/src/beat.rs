//! Waiting for seconds to end, by a clock that is not simply believed (`CLK-01`).

use std::sync::Arc;
use std::time::Duration;

use pitser_ksi::time::Second;
use tokio::time::Instant;

use crate::clock::{Clock, Micros};
use crate::pace::{ClockFault, Pace};

/// Wakes a round loop after each second's end.
pub(crate) struct Beat {
    clock: Arc<dyn Clock>,
    pace: Pace,
    /// How long after a second's end its round is closed.
    grace: Duration,
    /// By a stopwatch: what is late because the loop was busy is no jump.
    woke_at: Instant,
}

/// Why a wait has ended.
pub(crate) enum Woken<T> {
    /// The second is over; this is what the clock shows.
    Ended(Micros),
    /// Not yet: wait again.
    Early,
    /// Something else came first.
    Interrupted(T),
}

impl Beat {
    /// Begins with a `pace` that was started at `started_at`: what has taken time since is
    /// no jump of the clock.
    pub(crate) fn start(
        clock: Arc<dyn Clock>,
        pace: Pace,
        grace: Duration,
        started_at: Instant,
    ) -> Self {
        Self {
            clock,
            pace,
            grace,
            woke_at: started_at,
        }
    }

    /// Begins anew with a calendar whose newest second is `head`; returns what the
    /// clock shows.
    ///
    /// # Errors
    /// [`ClockFault`]; nothing has changed.
    #[cfg(feature = "cluster")]
    pub(crate) fn restart(
        &mut self,
        head: Second,
        max_jump: Duration,
        max_outage_s: u64,
    ) -> Result<Micros, ClockFault> {
        let now = self.clock.now();
        self.pace = Pace::start(now, head, max_jump, max_outage_s)?;
        self.woke_at = Instant::now();
        Ok(now)
    }

    /// Waits until the second after `closed` has ended, unless `interruption` comes first.
    ///
    /// # Errors
    /// [`ClockFault`], before the wait as well as after it.
    pub(crate) async fn wait<T>(
        &mut self,
        closed: Second,
        interruption: impl Future<Output = T>,
    ) -> Result<Woken<T>, ClockFault> {
        self.pace.falls_asleep(self.clock.now())?;
        let due = Micros::boundary(closed.plus(1)).plus(self.grace);
        tokio::select! {
            () = self.clock.wait_until(due) => {}
            interrupted = interruption => return Ok(Woken::Interrupted(interrupted)),
        }
        let now = self.clock.now();
        self.pace.woke(due, self.woke_at.elapsed(), now)?;
        self.woke_at = Instant::now();
        Ok(match now < due {
            true => Woken::Early,
            false => Woken::Ended(now),
        })
    }
}
