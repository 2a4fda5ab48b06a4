//! Rounds: what arrives in `(t - 1, t]` becomes one tree, whose root is second
//! `t` of the calendar.
//!
//! Pure: no socket, no timer. The service puts requests in and takes closed
//! rounds out; both say what time it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use pitser_ksi::chain::{AggregationChain, Metadata, shape};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::time::Second;
use pitser_ksi::tree::{Tree, TreeBuilder, TreeFull};

use crate::clock::Micros;

/// Something to be signed. `T` is the caller's: where the answer goes.
#[derive(Debug)]
pub struct Request<T> {
    /// Login id of who asks; it becomes the client id of the metadata link.
    pub user: Arc<str>,
    /// What is to be signed.
    pub input: Imprint,
    /// The height of the requester's own tree, whose root `input` is.
    pub level: u8,
    /// When it arrived.
    pub arrived_at: Micros,
    /// Handed back with the answer.
    pub ticket: T,
}

/// Rounds that still accept requests, or wait to be closed.
///
/// A request belongs to the second in which it arrives, even when the round
/// before it is closed late: no signature is ever dated before its request.
#[derive(Debug)]
pub struct Rounds<T> {
    waiting: BTreeMap<Second, Vec<Request<T>>>,
    /// Nothing at or before this second is accepted any more.
    closed: Second,
    /// Requests that one round takes.
    capacity: usize,
}

/// A round that accepts no more.
#[derive(Debug)]
pub struct Closed<T> {
    /// The second that it becomes.
    pub second: Second,
    /// What arrived in it, in order of arrival; never empty.
    pub requests: Vec<Request<T>>,
}

impl<T> Closed<T> {
    /// Builds the round's tree: a leaf for each request, at its level, below a
    /// metadata link that names the user, `machine_id`, the number of the request
    /// in the round and its time of arrival. O(requests) hashes.
    ///
    /// # Errors
    /// The round itself, with [`TreeFull`], if the tree would be too high.
    pub fn seal(self, machine_id: &str) -> Result<Sealed<T>, (Self, TreeFull)> {
        let mut tree = TreeBuilder::new(Algorithm::Sha256);
        for (number, request) in self.requests.iter().enumerate() {
            let metadata = Metadata {
                client_id: request.user.to_string(),
                machine_id: Some(machine_id.to_owned()),
                sequence: Some(number as u64),
                request_time_us: Some(request.arrived_at.0),
            };
            let pushed = tree.push_with_metadata(request.input, request.level, metadata.encode());
            if let Err(full) = pushed {
                return Err((self, full));
            }
        }
        match tree.finish() {
            Some(tree) => Ok(Sealed {
                second: self.second,
                tree: Arc::new(tree),
                first: 0,
                requests: self.requests,
            }),
            None => Err((self, TreeFull)),
        }
    }
}

/// A round whose root is known, or a part of one.
#[derive(Debug)]
pub struct Sealed<T> {
    second: Second,
    tree: Arc<Tree>,
    /// The number of the first of `requests` within the round.
    first: usize,
    requests: Vec<Request<T>>,
}

impl<T> Sealed<T> {
    /// What the calendar is to hold for this second.
    pub fn root(&self) -> Imprint {
        self.tree.root()
    }

    /// Requests in this part of the round.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Never: a round without requests is not sealed.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The same in parts of `size` requests, to be answered side by side.
    pub fn split(mut self, size: usize) -> Vec<Self> {
        let mut parts = Vec::new();
        while self.requests.len() > size {
            let rest = self.requests.split_off(size);
            let requests = std::mem::replace(&mut self.requests, rest);
            parts.push(Self {
                tree: Arc::clone(&self.tree),
                requests,
                ..self
            });
            self.first += size;
        }
        parts.push(self);
        parts
    }

    /// Each request with its chain to the root, in order of arrival. The chain's
    /// levels count from the request's level (spec service §3.9).
    pub fn into_answers(self) -> impl Iterator<Item = (Request<T>, AggregationChain)> {
        let (second, tree) = (self.second, self.tree);
        let numbered = (self.first..).zip(self.requests);
        numbered.map(move |(number, request)| {
            let links = tree.links(number);
            let shape = shape(&links).expect("a tree is at most as high as a shape is long");
            let chain = AggregationChain {
                aggregation_time: second,
                index: vec![shape],
                input_data: None,
                input: request.input,
                algorithm: tree.algorithm(),
                links,
            };
            (request, chain)
        })
    }

    /// The requests, to be refused.
    pub fn into_requests(self) -> Vec<Request<T>> {
        self.requests
    }
}

/// Why a request was not accepted. Holds the request's ticket.
#[derive(Debug)]
pub enum Refused<T> {
    /// The round has all the requests it takes; the next second's is empty.
    RoundFull(T),
    /// The clock shows a time well before the newest round: it has gone back.
    ClockBehind(T),
}

impl<T> Rounds<T> {
    /// Rounds after second `closed`, of at most `capacity` requests each.
    pub fn after(closed: Second, capacity: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            closed,
            capacity,
        }
    }

    /// Puts a request into the round of the second it arrived in, or into the
    /// next one if that round has just been closed.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn accept(&mut self, request: Request<T>) -> Result<Second, Refused<T>> {
        let arrived_in = request.arrived_at.round();
        if self.closed.since(arrived_in) > 1 {
            return Err(Refused::ClockBehind(request.ticket));
        }
        let second = arrived_in.max(self.closed.plus(1));
        let round = self.waiting.entry(second).or_default();
        if round.len() >= self.capacity {
            return Err(Refused::RoundFull(request.ticket));
        }
        round.push(request);
        Ok(second)
    }

    /// Closes the rounds of all seconds that have ended at `now`, oldest first.
    /// Seconds without requests are closed without a trace.
    pub fn close(&mut self, now: Micros) -> Vec<Closed<T>> {
        self.closed = self.closed.max(now.ended());
        let open = self.waiting.split_off(&self.closed.plus(1));
        std::mem::replace(&mut self.waiting, open)
            .into_iter()
            .map(|(second, requests)| Closed { second, requests })
            .collect()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    /// Gives up what waits, so that it can be answered with an error.
    pub fn abandon(&mut self) -> Vec<Request<T>> {
        std::mem::take(&mut self.waiting)
            .into_values()
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use pitser_ksi::hash::hash;

    use super::*;

    fn request(number: u64, level: u8, arrived_us: u64) -> Request<u64> {
        Request {
            user: "anon".into(),
            input: hash(Algorithm::Sha256, &[&number.to_be_bytes()]),
            level,
            arrived_at: Micros(arrived_us),
            ticket: number,
        }
    }

    fn tickets(rounds: Vec<Closed<u64>>) -> Vec<(u64, Vec<u64>)> {
        let tickets = |round: Closed<u64>| round.requests.iter().map(|r| r.ticket).collect();
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
            rounds.accept(request(number, 0, arrived)).unwrap();
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
        assert_eq!(rounds.accept(request(1, 0, 9_000_000)).unwrap(), Second(10));
        rounds.close(Micros(11_000_000));
        assert_eq!(
            rounds.accept(request(2, 0, 10_500_000)).unwrap(),
            Second(12)
        );
        assert_eq!(
            rounds.accept(request(3, 0, 11_000_001)).unwrap(),
            Second(12)
        );
    }

    #[test]
    fn a_clock_that_went_back_is_not_signed_by() {
        let mut rounds = Rounds::after(Second(9), 10);
        assert!(matches!(
            rounds.accept(request(1, 0, 7_000_000)),
            Err(Refused::ClockBehind(1))
        ));
    }

    #[test]
    fn a_full_round_refuses_and_the_next_one_is_empty() {
        let mut rounds = Rounds::after(Second(0), 2);
        for number in 1..=2 {
            rounds.accept(request(number, 0, 5)).unwrap();
        }
        assert!(matches!(
            rounds.accept(request(3, 0, 5)),
            Err(Refused::RoundFull(3))
        ));
        assert_eq!(rounds.accept(request(4, 0, 1_000_001)).unwrap(), Second(2));
    }

    #[test]
    fn every_chain_leads_to_the_root() {
        for count in [1, 2, 3, 7, 64, 100] {
            let mut rounds = Rounds::after(Second(0), 1000);
            for number in 0..count {
                rounds
                    .accept(request(number, (number % 6) as u8, number + 1))
                    .unwrap();
            }
            let closed = rounds.close(Micros(1_000_000)).remove(0);
            let sealed = closed.seal("m").unwrap();
            let root = sealed.root();
            let parts = sealed.split(30);
            let mut answers = parts.into_iter().flat_map(Sealed::into_answers);
            for number in 0..count {
                let (request, chain) = answers.next().unwrap();
                assert_eq!(request.ticket, number);
                assert_eq!(chain.input, request.input);
                assert_eq!(
                    chain.output(request.level).unwrap().0,
                    root,
                    "{number} of {count}"
                );
                assert_eq!(chain.index, [shape(&chain.links).unwrap()]);
                assert_eq!(chain.links[0].sibling.client_id().as_deref(), Some("anon"));
            }
            assert!(answers.next().is_none());
        }
    }

    #[test]
    fn a_tree_that_would_be_too_high_gives_the_round_back() {
        let mut rounds = Rounds::after(Second(0), 10);
        rounds.accept(request(1, 255, 5)).unwrap();
        let (round, TreeFull) = rounds
            .close(Micros(1_000_000))
            .remove(0)
            .seal("m")
            .unwrap_err();
        assert_eq!(round.requests.len(), 1);
    }
}
