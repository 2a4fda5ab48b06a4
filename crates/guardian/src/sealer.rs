//! Has closed blocks sealed: requests go out at once, several in flight, and
//! signatures come back in the order of the blocks. While the service is
//! down, each request is tried again until it succeeds. A block that is asked for again is
//! not signed twice.
//!
//! A block whose request failed may be sealed seconds after the one that continues it.
//! No seal may be older than that of the block before (SEAL-02): whatever was sealed too
//! early is sealed again. What was sealed before a restart counts as well: another service
//! may answer now, whose clock is behind.

use pitser_client::{Client, ClientError};
use pitser_evidence::seal;
use pitser_ksi::Second;
use pitser_ksi::hash::Imprint;
use pitser_trail::{BlockSummary, Trail};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Requests that wait for an answer at the same time.
const IN_FLIGHT: usize = 256;
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Before a request is made again that broke off by a fault of ours.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// A block that wants a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) block: u64,
    pub(crate) root: Imprint,
    pub(crate) level: u8,
    /// When the newest seal that was kept by then was made.
    pub(crate) kept_at: Option<Second>,
}

impl Wanted {
    /// A seal for a block of this trail.
    pub(crate) fn of(trail: &Trail, block: &BlockSummary) -> Self {
        Self {
            block: block.block,
            root: block.root,
            level: block.level,
            kept_at: trail.sealed_at(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.block, self.root, self.level) == (other.block, other.root, other.level)
    }
}

/// What comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The signature of a block.
    Sealed { block: u64, signature: Vec<u8> },
    /// A request failed and is tried again.
    Delayed { block: u64, why: String },
}

/// A signature, and when it was made.
pub(crate) struct Seal {
    signature: Vec<u8>,
    at: Option<Second>,
}

/// Asks the service for a block's signature, once.
pub(crate) async fn ask(client: Client, wanted: Wanted) -> Result<Seal, String> {
    match client.sign(wanted.root, wanted.level).await {
        Ok(signature) => {
            let signature = signature.encode();
            let at = seal::time(&signature);
            Ok(Seal { signature, at })
        }
        Err(error) => Err(reason(&error)),
    }
}

/// Runs until the guardian drops its end of `wanted`. `ask` asks for one signature, once.
pub(crate) async fn run<A: Future<Output = Result<Seal, String>> + Send + 'static>(
    ask: impl Fn(Wanted) -> A + Clone + Send + Sync + 'static,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
    report: impl Fn(Outcome) + Clone + Send + Sync + 'static,
) {
    let begin = |wanted: Wanted| {
        let task = tokio::spawn(sign(ask.clone(), wanted, report.clone()));
        InFlight { wanted, task }
    };
    let mut requests = Requests::default();
    let mut newest = None;
    loop {
        requests.fill(begin);
        tokio::select! {
            // What is wanted again is known to be so before it is answered.
            biased;
            next = wanted.recv() => match next {
                Some(next) => {
                    newest = newest.max(next.kept_at);
                    requests.add(next);
                }
                None => break,
            },
            signed = first(&mut requests.in_flight), if !requests.in_flight.is_empty() => {
                let in_flight = &mut requests.in_flight;
                let Some(InFlight { wanted, .. }) = in_flight.pop_front() else { continue };
                let block = wanted.block;
                match signed {
                    Ok(seal) if seal.at < newest => {
                        report(Outcome::Delayed { block, why: TOO_EARLY.to_owned() });
                        in_flight.push_front(begin(wanted));
                        // Those that have theirs already got them before this one.
                        for later in in_flight.iter_mut().skip(1) {
                            if later.task.is_finished() {
                                *later = begin(later.wanted);
                            }
                        }
                    }
                    Ok(Seal { signature, at }) => {
                        newest = at;
                        report(Outcome::Sealed { block, signature });
                    }
                    Err(error) => {
                        tracing::error!(block, %error, "a request for a seal broke off");
                        report(Outcome::Delayed { block, why: BROKE_OFF.to_owned() });
                        let (ask, report) = (ask.clone(), report.clone());
                        let task = tokio::spawn(async move {
                            tokio::time::sleep(AFTER_FAULT).await;
                            sign(ask, wanted, report).await
                        });
                        in_flight.push_front(InFlight { wanted, task });
                    }
                }
            }
        }
    }
    for InFlight { task, .. } in requests.in_flight {
        task.abort();
    }
}

/// What was asked for and not answered yet: each block once, however often the guardian
/// asks, which it does for all that are unsealed whenever it opens the trail again.
///
/// It may have dropped what was reported while the trail was closed. Such a block is none
/// of these any more, is asked for once more, and goes before all that continue it: they
/// are of no use to the guardian without it.
#[derive(Default)]
struct Requests {
    /// In the order of the blocks, at most [`IN_FLIGHT`].
    in_flight: VecDeque<InFlight>,
    /// Those that wait for room.
    queued: BTreeMap<u64, Wanted>,
}

impl Requests {
    fn add(&mut self, wanted: Wanted) {
        let is_same = |it: &InFlight| it.wanted.is_same(&wanted);
        match self.find(wanted.block) {
            Ok(at) if self.in_flight.get(at).is_some_and(is_same) => return,
            // The trail has another one in its place.
            Ok(at) => self.in_flight.remove(at).map(|it| it.task.abort()),
            Err(_) => None,
        };
        self.queued.insert(wanted.block, wanted);
    }

    /// Begins what there is room for; what was begun makes room for what comes before it.
    fn fill(&mut self, begin: impl Fn(Wanted) -> InFlight) {
        while let Some(next) = self.queued.first_entry() {
            let last = self.in_flight.back().map(|it| it.wanted.block);
            let is_full = self.in_flight.len() >= IN_FLIGHT;
            if is_full && last < Some(*next.key()) {
                return;
            }
            let next = next.remove();
            if is_full && let Some(InFlight { wanted, task }) = self.in_flight.pop_back() {
                task.abort();
                self.queued.insert(wanted.block, wanted);
            }
            let (Ok(at) | Err(at)) = self.find(next.block);
            self.in_flight.insert(at, begin(next));
        }
    }

    /// Where a block is in flight, or would be.
    fn find(&self, block: u64) -> Result<usize, usize> {
        self.in_flight
            .binary_search_by_key(&block, |it| it.wanted.block)
    }
}

const TOO_EARLY: &str = "it was sealed before the block that it continues, and is sealed again. \
    If that goes on, the authority's clock was set back";

const BROKE_OFF: &str = "the request broke off by a fault of ours, and is made again";

/// A block whose seal was asked for.
struct InFlight {
    wanted: Wanted,
    task: JoinHandle<Seal>,
}

async fn first(in_flight: &mut VecDeque<InFlight>) -> Result<Seal, tokio::task::JoinError> {
    match in_flight.front_mut() {
        Some(InFlight { task, .. }) => task.await,
        None => std::future::pending().await,
    }
}

async fn sign<A: Future<Output = Result<Seal, String>>>(
    ask: impl Fn(Wanted) -> A,
    wanted: Wanted,
    report: impl Fn(Outcome),
) -> Seal {
    let mut wait = RETRY_MIN;
    loop {
        match ask(wanted).await {
            Ok(seal) => return seal,
            Err(why) => report(Outcome::Delayed {
                block: wanted.block,
                why,
            }),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

fn reason(error: &ClientError) -> String {
    format!("{error}. Blocks are kept and sealed in order when the authority answers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_ksi::hash::Algorithm;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::oneshot;

    fn of(block: u64, kept_at: Option<Second>) -> Wanted {
        Wanted {
            block,
            root: Imprint::zero(Algorithm::Sha256),
            level: 0,
            kept_at,
        }
    }

    fn seal(second: u64) -> Seal {
        Seal {
            signature: vec![second as u8],
            at: Some(Second(second)),
        }
    }

    #[tokio::test]
    async fn a_seal_that_is_older_than_one_before_the_restart_is_asked_for_again() {
        let (report, mut told) = mpsc::unbounded_channel();
        let (want, wanted) = mpsc::unbounded_channel();
        let report = move |outcome| report.send(outcome).unwrap();
        let clock = Arc::new(AtomicU64::new(5));
        let behind = Arc::clone(&clock);
        let ask = move |_| {
            let second = behind.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(seal(second)))
        };
        let running = tokio::spawn(run(ask, wanted, report));
        want.send(of(0, Some(Second(7)))).unwrap();
        let mut outcomes = Vec::new();
        while !matches!(outcomes.last(), Some(Outcome::Sealed { .. })) {
            outcomes.push(told.recv().await.unwrap());
        }
        let early = || Outcome::Delayed {
            block: 0,
            why: TOO_EARLY.to_owned(),
        };
        let sealed = Outcome::Sealed {
            block: 0,
            signature: vec![7],
        };
        assert_eq!(outcomes, [early(), early(), sealed]);
        drop(want);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_seal_that_is_older_than_the_one_before_is_asked_for_again() {
        let (asked, mut requests) = mpsc::unbounded_channel();
        let ask = move |wanted: Wanted| {
            let (answer, answered) = oneshot::channel();
            asked.send((wanted.block, answer)).unwrap();
            async { answered.await.unwrap() }
        };
        let (report, mut told) = mpsc::unbounded_channel();
        let (want, wanted) = mpsc::unbounded_channel();
        let report = move |outcome| report.send(outcome).unwrap();
        let running = tokio::spawn(run(ask, wanted, report));
        for block in 0..4 {
            want.send(of(block, None)).unwrap();
        }
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(requests.recv().await.unwrap());
        }
        // The first was asked for once more, after the next two had been sealed.
        for (block, second) in [(1, 5), (2, 6), (0, 7), (3, 8)] {
            let at = waiting.iter().position(|(of, _)| *of == block).unwrap();
            let (_, answer) = waiting.swap_remove(at);
            assert!(answer.send(Ok(seal(second))).is_ok());
        }
        let again = tokio::spawn(async move {
            let mut again = Vec::new();
            while let Some((block, answer)) = requests.recv().await {
                again.push(block);
                let _ = answer.send(Ok(seal(8)));
            }
            again
        });
        let mut sealed = Vec::new();
        while sealed.len() < 4 {
            match told.recv().await.unwrap() {
                Outcome::Sealed { block, signature } => sealed.push((block, signature[0])),
                Outcome::Delayed { block, .. } => assert!([1, 2].contains(&block)),
            }
        }
        assert_eq!(sealed, [(0, 7), (1, 8), (2, 8), (3, 8)]);
        drop(want);
        running.await.unwrap();
        let mut again = again.await.unwrap();
        // Those that had theirs when the second was found too early.
        again.retain(|block| *block != 3);
        again.sort_unstable();
        assert_eq!(again, [1, 2]);
    }

    /// Requests as they are made, to be answered in any order.
    type Asked = mpsc::UnboundedReceiver<(u64, oneshot::Sender<Result<Seal, String>>)>;

    /// A sealer: where blocks are wanted, what it asks, and what it reports.
    fn start() -> (
        mpsc::UnboundedSender<Wanted>,
        Asked,
        mpsc::UnboundedReceiver<Outcome>,
        JoinHandle<()>,
    ) {
        let (asked, requests) = mpsc::unbounded_channel();
        let ask = move |wanted: Wanted| {
            let (answer, answered) = oneshot::channel();
            asked.send((wanted.block, answer)).unwrap();
            async { answered.await.unwrap() }
        };
        let (report, told) = mpsc::unbounded_channel();
        let (want, wanted) = mpsc::unbounded_channel();
        let report = move |outcome| report.send(outcome).unwrap();
        (want, requests, told, tokio::spawn(run(ask, wanted, report)))
    }

    /// Something has gone wrong if a test waits so long.
    const LIMIT: Duration = Duration::from_secs(30);

    async fn next<T>(from: &mut mpsc::UnboundedReceiver<T>) -> T {
        let next = tokio::time::timeout(LIMIT, from.recv()).await;
        next.expect("in time").unwrap()
    }

    async fn ended(running: JoinHandle<()>) {
        tokio::time::timeout(LIMIT, running)
            .await
            .expect("in time")
            .unwrap();
    }

    fn sealed(block: u64, second: u64) -> Outcome {
        Outcome::Sealed {
            block,
            signature: vec![second as u8],
        }
    }

    /// A guardian that opens its trail again and again wants all that is unsealed each time.
    #[tokio::test]
    async fn a_block_that_is_wanted_again_is_asked_for_once() {
        let (want, mut requests, mut told, running) = start();
        let blocks = IN_FLIGHT as u64 + 3;
        for _ in 0..5 {
            for block in 0..blocks {
                want.send(of(block, None)).unwrap();
            }
        }
        for block in 0..blocks {
            let (asked, answer) = next(&mut requests).await;
            assert_eq!(asked, block);
            assert!(answer.send(Ok(seal(7))).is_ok());
            assert_eq!(next(&mut told).await, sealed(block, 7));
        }
        drop(want);
        ended(running).await;
        assert!(requests.recv().await.is_none(), "nothing was asked twice");
        assert!(told.recv().await.is_none());
    }

    /// What was reported while the trail was closed is lost: the guardian wants that block
    /// again, and can do nothing with the next one before.
    #[tokio::test]
    async fn a_seal_that_the_guardian_lost_comes_before_those_that_continue_it() {
        let (want, mut requests, mut told, running) = start();
        let blocks = IN_FLIGHT as u64 + 1;
        for block in 0..blocks {
            want.send(of(block, None)).unwrap();
        }
        let (_, answer) = next(&mut requests).await;
        assert!(answer.send(Ok(seal(7))).is_ok());
        // The guardian is idle.
        assert_eq!(next(&mut told).await, sealed(0, 7));
        // As many as there can be, and the first once more.
        let mut waiting = Vec::new();
        while waiting.len() < IN_FLIGHT {
            waiting.push(next(&mut requests).await);
        }
        for block in 0..blocks {
            want.send(of(block, None)).unwrap();
        }
        let (block, again) = next(&mut requests).await;
        assert_eq!(block, 0);
        for (_, answer) in waiting.drain(..IN_FLIGHT - 1) {
            assert!(answer.send(Ok(seal(8))).is_ok());
        }
        assert!(again.send(Ok(seal(8))).is_ok());
        for block in 0..IN_FLIGHT as u64 {
            assert_eq!(next(&mut told).await, sealed(block, 8));
        }
        // The last one had made room.
        let (block, answer) = next(&mut requests).await;
        assert_eq!(block, blocks - 1);
        assert!(answer.send(Ok(seal(9))).is_ok());
        assert_eq!(next(&mut told).await, sealed(blocks - 1, 9));
        drop(want);
        ended(running).await;
    }

    #[tokio::test]
    async fn a_request_that_breaks_off_is_made_again() {
        let (report, mut told) = mpsc::unbounded_channel();
        let (want, wanted) = mpsc::unbounded_channel();
        let report = move |outcome| report.send(outcome).unwrap();
        let times = Arc::new(AtomicU64::new(0));
        let ask = move |_| {
            let times = times.fetch_add(1, Ordering::Relaxed);
            async move {
                assert_ne!(times, 0, "the first one breaks off");
                Ok(seal(7))
            }
        };
        let running = tokio::spawn(run(ask, wanted, report));
        want.send(of(0, None)).unwrap();
        let broken = Outcome::Delayed {
            block: 0,
            why: BROKE_OFF.to_owned(),
        };
        assert_eq!(next(&mut told).await, broken);
        assert_eq!(next(&mut told).await, sealed(0, 7));
        drop(want);
        ended(running).await;
    }
}
