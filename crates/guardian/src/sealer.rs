//! Has closed blocks sealed: requests go out at once, several in flight, and
//! signatures come back in the order of the blocks. While the service is
//! down, each request is tried again until it succeeds.
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
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Requests that wait for an answer at the same time.
const IN_FLIGHT: usize = 256;
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);

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
    let mut in_flight: VecDeque<InFlight> = VecDeque::new();
    let mut newest = None;
    loop {
        let full = in_flight.len() >= IN_FLIGHT;
        tokio::select! {
            next = wanted.recv(), if !full => match next {
                Some(next) => {
                    newest = newest.max(next.kept_at);
                    in_flight.push_back(begin(next));
                }
                None => break,
            },
            signed = first(&mut in_flight), if !in_flight.is_empty() => {
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
                    Err(_) => {}
                }
            }
        }
    }
    for InFlight { task, .. } in in_flight {
        task.abort();
    }
}

const TOO_EARLY: &str = "it was sealed before the block that it continues, and is sealed again. \
    If that goes on, the authority's clock was set back";

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
}
