//! How often somebody is answered: a bucket of tokens for each.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// So many at once, and so many a second from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second.
    pub per_s: u32,
    /// Requests that may come at once after a while of silence; at least one.
    pub burst: u32,
}

/// Counts requests by who makes them. Those that come when it is full share
/// one bucket.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    rate: Rate,
    /// Names that are counted apart at a time.
    max_keys: usize,
    buckets: HashMap<K, Bucket>,
    rest: Bucket,
    /// When names that have been silent were last forgotten, in Unix seconds.
    swept_at: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    /// When it was last filled, in Unix seconds.
    filled_at: u64,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(crate) fn new(rate: Rate, max_keys: usize) -> Self {
        Self {
            rate,
            max_keys,
            buckets: HashMap::new(),
            rest: Bucket::full(rate, 0),
            swept_at: 0,
        }
    }

    /// Whether one more request by `key` is answered at `now`, in Unix seconds.
    pub(crate) fn allow<Q>(&mut self, key: &Q, now: u64) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(bucket) = self.buckets.get_mut(key) {
            return bucket.take(self.rate, now);
        }
        if self.buckets.len() >= self.max_keys && self.swept_at != now {
            self.swept_at = now;
            let rate = self.rate;
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
        }
        if self.buckets.len() >= self.max_keys {
            return self.rest.take(self.rate, now);
        }
        let mut bucket = Bucket::full(self.rate, now);
        let allowed = bucket.take(self.rate, now);
        self.buckets.insert(key.to_owned(), bucket);
        allowed
    }
}

impl Bucket {
    fn full(rate: Rate, now: u64) -> Self {
        Self {
            tokens: rate.burst.max(1),
            filled_at: now,
        }
    }

    fn take(&mut self, rate: Rate, now: u64) -> bool {
        self.tokens = self.level(rate, now);
        // Also when the clock was set back: what it said before is no excuse.
        self.filled_at = now;
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }

    fn is_full(&self, rate: Rate, now: u64) -> bool {
        self.level(rate, now) >= rate.burst.max(1)
    }

    fn level(&self, rate: Rate, now: u64) -> u32 {
        let seconds = u32::try_from(now.saturating_sub(self.filled_at)).unwrap_or(u32::MAX);
        let filled = self
            .tokens
            .saturating_add(seconds.saturating_mul(rate.per_s));
        filled.min(rate.burst.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_s: 2, burst: 3 };
    const MAX_KEYS: usize = 100;

    /// How many of `tries` requests by `key` are answered at `now`.
    fn answered(limiter: &mut Limiter<u32>, key: u32, tries: usize, now: u64) -> usize {
        (0..tries).filter(|_| limiter.allow(&key, now)).count()
    }

    #[test]
    fn a_burst_then_a_rate() {
        let mut limiter = Limiter::new(RATE, MAX_KEYS);
        for (now, expected) in [(10, 3), (10, 0), (11, 2), (12, 2), (20, 3), (20, 0)] {
            assert_eq!(answered(&mut limiter, 1, 5, now), expected, "at {now}");
        }
    }

    #[test]
    fn one_does_not_use_up_anothers_share() {
        let mut limiter = Limiter::new(RATE, MAX_KEYS);
        assert_eq!(answered(&mut limiter, 1, 100, 10), 3);
        assert_eq!(answered(&mut limiter, 2, 100, 10), 3);
    }

    #[test]
    fn a_clock_that_was_set_back_neither_gives_nor_blocks_for_long() {
        let mut limiter = Limiter::new(RATE, MAX_KEYS);
        assert_eq!(answered(&mut limiter, 1, 5, 1000), 3);
        assert_eq!(answered(&mut limiter, 1, 5, 10), 0);
        assert_eq!(answered(&mut limiter, 1, 5, 11), 2);
    }

    #[test]
    fn names_are_forgotten_and_bounded() {
        let mut limiter = Limiter::new(RATE, MAX_KEYS);
        let crowd = MAX_KEYS as u32 + 100;
        let first = (0..crowd).filter(|key| limiter.allow(key, 10)).count();
        assert_eq!(
            first,
            MAX_KEYS + 3,
            "those beyond the table share one bucket"
        );
        assert_eq!(limiter.buckets.len(), MAX_KEYS);
        // A second later the first crowd is at rest, and makes room.
        assert!(limiter.allow(&crowd, 11));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
