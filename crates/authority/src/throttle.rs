//! Log lines that somebody else could make many of: one in a while, with the number
//! of those that were left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Throttle {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said_at: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            state: Mutex::default(),
        }
    }

    /// Whether to say it at `now`; if so, how often it was not said since.
    pub(crate) fn say(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said_at.is_some_and(|at| now - at < self.every) {
            state.left_out += 1;
            return None;
        }
        state.said_at = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_one_in_a_while_and_counts_the_others() {
        let throttle = Throttle::new(Duration::from_secs(10));
        let start = Instant::now();
        let said: Vec<_> = (0..25)
            .filter_map(|second| throttle.say(start + Duration::from_secs(second)))
            .collect();
        assert_eq!(said, [0, 9, 9]);
    }
}
