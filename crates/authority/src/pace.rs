//! Whether the clock can be believed (`CLK-01`). Pure.

use std::time::Duration;

use pitser_ksi::time::Second;

use crate::clock::Micros;

/// Watches the clock from one wake-up to the next.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The latest instant the clock ever showed.
    seen: Micros,
    max_jump: Duration,
    max_outage_s: u64,
}

impl Pace {
    /// Begins at `now`, with a calendar whose newest second is `head`.
    pub(crate) fn start(
        now: Micros,
        head: Second,
        max_jump: Duration,
        max_outage_s: u64,
    ) -> Result<Self, ClockFault> {
        if now.ended() < head {
            return Err(ClockFault::BehindHead { now, head });
        }
        let pace = Self {
            seen: now,
            max_jump,
            max_outage_s,
        };
        pace.check_outage(head, now)?;
        Ok(pace)
    }

    /// The loop is about to sleep: a clock that went back would let it oversleep.
    pub(crate) fn falls_asleep(&self, now: Micros) -> Result<(), ClockFault> {
        if self.seen.since(now) > self.max_jump {
            return Err(ClockFault::WentBack {
                from: self.seen,
                to: now,
            });
        }
        Ok(())
    }

    /// The loop slept until `due` and it is now `now`; `elapsed` is how long, by a
    /// stopwatch, it is since it woke before.
    ///
    /// What is late because the loop was busy does not count as a jump.
    pub(crate) fn woke(
        &mut self,
        due: Micros,
        elapsed: Duration,
        now: Micros,
    ) -> Result<(), ClockFault> {
        self.falls_asleep(now)?;
        let expected = due.max(self.seen.plus(elapsed));
        if now.since(expected) > self.max_jump {
            return Err(ClockFault::Jumped {
                from: expected,
                to: now,
            });
        }
        self.check_outage(self.seen.ended(), now)?;
        self.seen = self.seen.max(now);
        Ok(())
    }

    fn check_outage(&self, head: Second, now: Micros) -> Result<(), ClockFault> {
        if now.ended().since(head) > self.max_outage_s {
            return Err(ClockFault::Outage {
                head,
                now,
                max_outage_s: self.max_outage_s,
            });
        }
        Ok(())
    }
}

/// `CLK-01`: the clock contradicts itself or the calendar; nothing is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClockFault {
    /// At the start: the calendar is ahead.
    #[error(
        "CLK-01: the clock shows {now}, but the calendar is at {head} already; \
         set the clock right and start again"
    )]
    BehindHead {
        /// What the clock shows.
        now: Micros,
        /// The calendar's newest second, or the one before its genesis.
        head: Second,
    },
    /// While running: backwards.
    #[error("CLK-01: the clock went back from {from} to {to}; set it right and start again")]
    WentBack {
        /// The latest instant it showed.
        from: Micros,
        /// What it shows now.
        to: Micros,
    },
    /// While running: forwards.
    #[error(
        "CLK-01: the clock jumped from {from} to {to}; if {to} is right (the machine slept), \
         start again, otherwise set it right first"
    )]
    Jumped {
        /// What it should show.
        from: Micros,
        /// What it shows.
        to: Micros,
    },
    /// More seconds would be filled with zero leaves than the operator allows.
    #[error(
        "CLK-01: the clock shows {now}, more than {max_outage_s} s after the calendar's newest \
         second {head}; if the clock is right, raise max_outage_s"
    )]
    Outage {
        /// The calendar's newest second.
        head: Second,
        /// What the clock shows.
        now: Micros,
        /// The configured limit, in seconds.
        max_outage_s: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Micros {
        Micros(seconds * 1_000_000)
    }

    fn pace() -> Pace {
        Pace::start(s(100), Second(100), Duration::from_secs(5), 60).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn goes_on_while_the_clock_is_steady() {
        let mut pace = pace();
        for t in 101..200 {
            assert_eq!(pace.woke(s(t), SECOND, s(t).plus(SECOND / 1000)), Ok(()));
        }
    }

    #[test]
    fn a_busy_loop_is_no_jump() {
        assert_eq!(pace().woke(s(101), SECOND * 20, s(120)), Ok(()));
    }

    #[test]
    fn a_jump_while_the_loop_is_busy_is_one() {
        let fault = pace().woke(s(101), SECOND * 3, s(120));
        assert_eq!(
            fault,
            Err(ClockFault::Jumped {
                from: s(103),
                to: s(120)
            })
        );
    }

    #[test]
    fn small_steps_are_forgiven() {
        let mut pace = pace();
        assert_eq!(pace.woke(s(101), SECOND, s(106)), Ok(()));
        assert_eq!(pace.woke(s(107), SECOND, s(101)), Ok(()));
    }

    #[test]
    fn a_jump_stops() {
        let fault = pace().woke(s(101), SECOND, s(107));
        assert_eq!(
            fault,
            Err(ClockFault::Jumped {
                from: s(101),
                to: s(107)
            })
        );
    }

    #[test]
    fn going_back_stops_even_in_small_steps() {
        let mut pace = pace();
        assert_eq!(pace.woke(s(101), SECOND, s(97)), Ok(()));
        let fault = pace.woke(s(101), SECOND, s(94));
        assert_eq!(
            fault,
            Err(ClockFault::WentBack {
                from: s(100),
                to: s(94)
            })
        );
    }

    #[test]
    fn going_back_is_noticed_before_it_makes_the_loop_oversleep() {
        let fault = pace().falls_asleep(s(94));
        assert_eq!(
            fault,
            Err(ClockFault::WentBack {
                from: s(100),
                to: s(94)
            })
        );
    }

    #[test]
    fn a_calendar_ahead_of_the_clock_is_not_started() {
        let started = Pace::start(s(100), Second(101), Duration::ZERO, 60);
        assert!(matches!(started, Err(ClockFault::BehindHead { .. })));
    }

    #[test]
    fn neither_the_start_nor_a_busy_loop_hides_an_outage() {
        let started = Pace::start(s(1000), Second(100), Duration::ZERO, 60);
        assert!(matches!(started, Err(ClockFault::Outage { .. })));
        let woke = pace().woke(s(101), SECOND * 900, s(1000));
        assert!(matches!(woke, Err(ClockFault::Outage { .. })));
    }
}
