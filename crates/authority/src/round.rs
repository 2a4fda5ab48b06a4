//! Rounds: what arrives in `(t - 1, t]` becomes one tree, whose root is second
//! `t` of the calendar.
//!
//! Pure: no socket, no timer. The service puts requests in, as many at a time as
//! it read together, and takes closed rounds out; both say what time it is.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pitser_ksi::chain::{Link, Metadata};
use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use pitser_ksi::tree::{Tree, TreeBuilder, TreeFull};

use crate::clock::Micros;

/// Something to be signed.
#[derive(Debug)]
pub struct Request<T> {
    /// What is to be signed.
    pub input: Imprint,
    /// The height of the requester's own tree, whose root `input` is.
    pub level: u8,
    /// The caller's: what the answer has to repeat.
    pub ticket: T,
}

/// Who asks, and so where the answers go.
pub trait Asker {
    /// The login id; it becomes the client id of the metadata link.
    fn client_id(&self) -> &str;
}

impl Asker for Arc<str> {
    fn client_id(&self) -> &str {
        self
    }
}

/// Requests of one asker that arrived together.
#[derive(Debug)]
pub struct Batch<S> {
    /// Who asks.
    pub by: S,
    /// When they had arrived.
    pub arrived_at: Micros,
    /// Their numbers within the round.
    pub numbers: Range<u32>,
}

/// Rounds that still accept requests, or wait to be closed.
///
/// A request belongs to the second in which it arrives, even when the round
/// before it is closed late: no signature is ever dated before its request.
#[derive(Debug)]
pub struct Rounds<T, S> {
    waiting: BTreeMap<Second, Open<T, S>>,
    /// Nothing at or before this second is accepted any more.
    closed: Second,
    /// Requests that one round takes.
    capacity: usize,
}

#[derive(Debug)]
struct Open<T, S> {
    requests: Vec<Request<T>>,
    batches: Vec<Batch<S>>,
}

impl<T, S> Default for Open<T, S> {
    fn default() -> Self {
        Self {
            requests: Vec::new(),
            batches: Vec::new(),
        }
    }
}

/// A round that accepts no more.
#[derive(Debug)]
pub struct Closed<T, S> {
    /// The second that it becomes.
    pub second: Second,
    /// What arrived in it, in order of arrival; never empty.
    pub requests: Vec<Request<T>>,
    /// Who asked for what; together all requests, in their order.
    pub batches: Vec<Batch<S>>,
}

impl<T, S: Asker> Closed<T, S> {
    /// Builds the round's tree in the memory of `tree`, which is empty: a leaf for
    /// each request, at its level, below a metadata link that names the user,
    /// `machine_id`, the number of the request in the round and its time of
    /// arrival. O(requests) hashes.
    ///
    /// # Errors
    /// [`TreeFull`] if the tree would be too high.
    pub fn tree(&self, mut tree: TreeBuilder, machine_id: &str) -> Result<Tree, TreeFull> {
        let mut metadata = Metadata {
            machine_id: Some(machine_id.to_owned()),
            ..Metadata::default()
        };
        let mut encoded = Vec::new();
        tree.reserve(self.requests.len(), 1);
        for batch in &self.batches {
            metadata.client_id.clear();
            metadata.client_id.push_str(batch.by.client_id());
            metadata.request_time_us = Some(batch.arrived_at.0);
            for number in batch.numbers.clone() {
                let request = &self.requests[number as usize];
                metadata.sequence = Some(number.into());
                encoded.clear();
                metadata.encode_onto(&mut encoded);
                tree.push_with_metadata(request.input, request.level, &encoded)?;
            }
        }
        tree.finish().ok_or(TreeFull)
    }
}

/// Why requests were not accepted; they are all still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The clock shows a time well before the newest round: it has gone back.
    ClockBehind,
}

impl<T, S> Rounds<T, S> {
    /// Rounds after second `closed`, of at most `capacity` requests each.
    pub fn after(closed: Second, capacity: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            closed,
            capacity: capacity.min(u32::MAX as usize),
        }
    }

    /// Puts requests into the round of the second they arrived in, or into the
    /// next one if that round has been closed by `now`. Those that the round has no
    /// room for stay in `requests`.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn accept(
        &mut self,
        by: S,
        arrived_at: Micros,
        now: Micros,
        requests: &mut Vec<Request<T>>,
    ) -> Result<Second, Refused> {
        // Not by when they arrived: whoever took them may have been held up since.
        if self.closed.since(now.round()) > 1 {
            return Err(Refused::ClockBehind);
        }
        let second = arrived_at.round().max(self.closed.plus(1));
        let round = self.waiting.entry(second).or_default();
        let first = round.requests.len();
        let count = requests.len().min(self.capacity - first);
        if count > 0 {
            round.requests.extend(requests.drain(..count));
            round.batches.push(Batch {
                by,
                arrived_at,
                numbers: first as u32..(first + count) as u32,
            });
        }
        Ok(second)
    }

    /// Closes the rounds of all seconds that have ended at `now`, oldest first.
    /// Seconds without requests are closed without a trace.
    pub fn close(&mut self, now: Micros) -> Vec<Closed<T, S>> {
        self.closed = self.closed.max(now.ended());
        let open = self.waiting.split_off(&self.closed.plus(1));
        Self::closed(std::mem::replace(&mut self.waiting, open))
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
            .values()
            .map(|round| round.requests.len())
            .sum()
    }

    /// Gives up what waits, so that it can be answered with an error.
    pub fn abandon(&mut self) -> Vec<Closed<T, S>> {
        Self::closed(std::mem::take(&mut self.waiting))
    }

    fn closed(rounds: BTreeMap<Second, Open<T, S>>) -> Vec<Closed<T, S>> {
        let close = |(second, round): (_, Open<T, S>)| Closed {
            second,
            requests: round.requests,
            batches: round.batches,
        };
        let rounds = rounds.into_iter();
        rounds
            .filter(|(_, round)| !round.requests.is_empty())
            .map(close)
            .collect()
    }
}

/// The links from request `number` of a round to its root, in `links`, whose
/// memory is used again.
///
/// # Panics
/// If the round has no such request.
pub fn links_into(tree: &Tree, number: u32, links: &mut Vec<Link>) {
    links.clear();
    links.extend(tree.path(number as usize));
}

#[cfg(test)]
mod tests {
    use pitser_ksi::chain::climb;
    use pitser_ksi::hash::{Algorithm, hash};

    use super::*;

    fn anon() -> Arc<str> {
        "anon".into()
    }

    fn request(number: u64, level: u8) -> Request<u64> {
        Request {
            input: hash(Algorithm::Sha256, &[&number.to_be_bytes()]),
            level,
            ticket: number,
        }
    }

    fn accept(
        rounds: &mut Rounds<u64, Arc<str>>,
        number: u64,
        arrived_us: u64,
    ) -> Result<Second, Refused> {
        let mut requests = vec![request(number, 0)];
        let at = Micros(arrived_us);
        let accepted = rounds.accept(anon(), at, at, &mut requests);
        assert_eq!(requests.is_empty(), accepted.is_ok());
        accepted
    }

    fn tickets(rounds: Vec<Closed<u64, Arc<str>>>) -> Vec<(u64, Vec<u64>)> {
        let tickets = |round: Closed<u64, _>| round.requests.iter().map(|r| r.ticket).collect();
        rounds
            .into_iter()
            .map(|round| (round.second.0, tickets(round)))
            .collect()
    }

    #[test]
    fn a_late_close_keeps_each_request_in_its_own_second() {
        let mut rounds = Rounds::after(Second(9), 10);
        for (number, arrived) in [
            (1, 9_000_001),
            (2, 10_000_000),
            (3, 10_000_001),
            (4, 12_500_000),
        ] {
            accept(&mut rounds, number, arrived).unwrap();
        }
        assert_eq!(
            tickets(rounds.close(Micros(12_400_000))),
            [(10, vec![1, 2]), (11, vec![3])]
        );
        assert_eq!(rounds.waiting(), 1);
        assert_eq!(tickets(rounds.close(Micros(13_000_000))), [(13, vec![4])]);
        assert_eq!(tickets(rounds.close(Micros(14_000_000))), []);
    }

    #[test]
    fn a_closed_second_takes_nothing_more() {
        let mut rounds = Rounds::after(Second(9), 10);
        assert_eq!(accept(&mut rounds, 1, 9_000_000), Ok(Second(10)));
        rounds.close(Micros(11_000_000));
        assert_eq!(accept(&mut rounds, 2, 10_500_000), Ok(Second(12)));
        assert_eq!(accept(&mut rounds, 3, 11_000_001), Ok(Second(12)));
    }

    #[test]
    fn a_clock_that_went_back_is_not_signed_by() {
        let mut rounds = Rounds::after(Second(9), 10);
        assert_eq!(accept(&mut rounds, 1, 7_000_000), Err(Refused::ClockBehind));
    }

    #[test]
    fn who_was_held_up_for_seconds_is_in_the_next_round() {
        let mut rounds = Rounds::after(Second(9), 10);
        rounds.close(Micros(20_000_000));
        let (arrived, now) = (Micros(9_500_000), Micros(20_300_000));
        let mut requests = vec![request(1, 0)];
        let second = rounds.accept(anon(), arrived, now, &mut requests);
        assert_eq!(second, Ok(Second(21)));
    }

    #[test]
    fn a_full_round_takes_a_part_and_the_next_one_is_empty() {
        let mut rounds = Rounds::after(Second(0), 3);
        accept(&mut rounds, 1, 5).unwrap();
        let mut more: Vec<_> = (2..=5).map(|number| request(number, 0)).collect();
        rounds
            .accept(anon(), Micros(6), Micros(6), &mut more)
            .unwrap();
        let left =
            |requests: &[Request<u64>]| requests.iter().map(|r| r.ticket).collect::<Vec<_>>();
        assert_eq!(left(&more), [4, 5]);
        rounds
            .accept(anon(), Micros(7), Micros(7), &mut more)
            .unwrap();
        assert_eq!(left(&more), [4, 5]);
        assert_eq!(accept(&mut rounds, 6, 1_000_001), Ok(Second(2)));
        let closed = rounds.close(Micros(2_000_000));
        let batches = |round: &Closed<u64, _>| -> Vec<Range<u32>> {
            round.batches.iter().map(|b| b.numbers.clone()).collect()
        };
        assert_eq!(batches(&closed[0]), [0..1, 1..3]);
        assert_eq!(tickets(closed), [(1, vec![1, 2, 3]), (2, vec![6])]);
    }

    #[test]
    fn every_chain_leads_to_the_root() {
        let mut builder = TreeBuilder::new(Algorithm::Sha256);
        for count in [1, 2, 3, 7, 64, 100] {
            let mut rounds = Rounds::after(Second(0), 1000);
            for first in (0..count).step_by(3) {
                let numbers = first..count.min(first + 3);
                let mut requests = numbers
                    .map(|number| request(number, (number % 6) as u8))
                    .collect();
                rounds
                    .accept(anon(), Micros(first + 1), Micros(first + 1), &mut requests)
                    .unwrap();
            }
            let round = rounds.close(Micros(1_000_000)).remove(0);
            let tree = round.tree(builder, "m").unwrap();
            let mut links = Vec::new();
            for (number, request) in (0..).zip(&round.requests) {
                links_into(&tree, number, &mut links);
                let top = climb(Algorithm::Sha256, request.input, request.level, &links);
                assert_eq!(top, Ok((tree.root(), tree.level())), "{number} of {count}");
                let metadata = Metadata::decode(links[0].sibling.as_bytes()).unwrap();
                assert_eq!(metadata.client_id, "anon");
                assert_eq!(metadata.sequence, Some(number.into()));
                assert_eq!(
                    metadata.request_time_us,
                    Some(u64::from(number / 3 * 3 + 1))
                );
            }
            builder = tree.recycle();
        }
    }

    #[test]
    fn a_tree_that_would_be_too_high_is_not_built() {
        let mut rounds = Rounds::after(Second(0), 10);
        let mut requests = vec![request(1, 255)];
        rounds
            .accept(anon(), Micros(5), Micros(5), &mut requests)
            .unwrap();
        let round = rounds.close(Micros(1_000_000)).remove(0);
        let tree = TreeBuilder::new(Algorithm::Sha256);
        assert_eq!(round.tree(tree, "m").unwrap_err(), TreeFull);
        assert_eq!(round.requests.len(), 1);
    }
}
