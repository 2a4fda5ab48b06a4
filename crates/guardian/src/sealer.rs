//! Has closed blocks sealed: requests go out at once, several in flight, and
//! signatures come back in the order of the blocks. While the service is
//! down, each request is tried again until it succeeds.

use pitser_client::{Client, ClientError};
use pitser_ksi::hash::Imprint;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Requests that wait for an answer at the same time.
const IN_FLIGHT: usize = 256;
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A block that wants a seal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) block: u64,
    pub(crate) root: Imprint,
    pub(crate) level: u8,
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The signature of a block.
    Sealed { block: u64, signature: Vec<u8> },
    /// A request failed and is tried again.
    Delayed { block: u64, why: String },
}

/// Runs until the guardian drops its end of `wanted`.
pub(crate) async fn run(
    client: Client,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
    report: impl Fn(Outcome) + Clone + Send + Sync + 'static,
) {
    let mut in_flight: VecDeque<(u64, JoinHandle<Vec<u8>>)> = VecDeque::new();
    loop {
        let full = in_flight.len() >= IN_FLIGHT;
        tokio::select! {
            next = wanted.recv(), if !full => match next {
                Some(next) => {
                    let task = sign(client.clone(), next, report.clone());
                    in_flight.push_back((next.block, tokio::spawn(task)));
                }
                None => break,
            },
            signed = first(&mut in_flight), if !in_flight.is_empty() => {
                let Some((block, _)) = in_flight.pop_front() else { continue };
                if let Ok(signature) = signed {
                    report(Outcome::Sealed { block, signature });
                }
            }
        }
    }
    for (_, task) in in_flight {
        task.abort();
    }
}

async fn first(
    in_flight: &mut VecDeque<(u64, JoinHandle<Vec<u8>>)>,
) -> Result<Vec<u8>, tokio::task::JoinError> {
    match in_flight.front_mut() {
        Some((_, task)) => task.await,
        None => std::future::pending().await,
    }
}

async fn sign(client: Client, wanted: Wanted, report: impl Fn(Outcome)) -> Vec<u8> {
    let mut wait = RETRY_MIN;
    loop {
        match client.sign(wanted.root, wanted.level).await {
            Ok(signature) => return signature.encode(),
            Err(error) => report(Outcome::Delayed {
                block: wanted.block,
                why: reason(&error),
            }),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

fn reason(error: &ClientError) -> String {
    format!("{error}. Blocks are kept and sealed in order when the authority answers")
}
