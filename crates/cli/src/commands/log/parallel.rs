//! Checking the blocks of a log on all processors.
//!
//! ```text
//! reader ── block, then its lines by the piece ──> one of the workers ── report ──> reader, in order
//! ```
//!
//! A header states the leaf that its block goes on from, so that no block waits
//! for the one before. All queues are short: a slow worker makes the reader wait.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use pitser_ksi::DecodeError;
use pitser_ksi::logsig::{BlockReport, BlockVerifier, Lines};

use super::stream::{Blocks, LogLines, OwnedBlock};
use crate::outcome::Failure;

/// A block, and what its lines amount to.
pub(super) type Checked = (OwnedBlock, Result<BlockReport, DecodeError>);

/// Checks all `blocks` against `lines`; `see` gets the reports in order.
pub(super) fn check(
    blocks: &mut Blocks<'_>,
    lines: &mut LogLines<'_>,
    mut see: impl FnMut(Checked) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (tasks, queue) = sync_channel(workers);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        // Moved in: the workers end when no task can come any more.
        let tasks = tasks;
        for _ in 0..workers {
            scope.spawn(|| work(&queue));
        }
        let mut reports = VecDeque::new();
        while let Some(block) = blocks.next()? {
            reports.push_back(hand_out(block, lines, &tasks)?);
            if reports.len() > 2 * workers {
                see(next(&mut reports)?)?;
            }
        }
        while !reports.is_empty() {
            see(next(&mut reports)?)?;
        }
        Ok(())
    })
}

struct Task {
    block: OwnedBlock,
    /// Some lines at a time, with their line ends.
    pieces: Receiver<Vec<u8>>,
    report: SyncSender<Checked>,
}

fn hand_out(
    block: OwnedBlock,
    lines: &mut LogLines<'_>,
    tasks: &SyncSender<Task>,
) -> Result<Receiver<Checked>, Failure> {
    let mut left = block.get().line_count();
    let (send, pieces) = sync_channel(PIECES_AHEAD);
    let (report, reported) = sync_channel(1);
    let task = Task {
        block,
        pieces,
        report,
    };
    tasks.send(task).map_err(|_| worker_gone())?;
    while let Some((count, piece)) = lines.take(left)? {
        send.send(piece).map_err(|_| worker_gone())?;
        left -= count;
    }
    Ok(reported)
}

fn next(reports: &mut VecDeque<Receiver<Checked>>) -> Result<Checked, Failure> {
    let report = reports.pop_front().and_then(|report| report.recv().ok());
    report.ok_or_else(worker_gone)
}

fn work(queue: &Mutex<Receiver<Task>>) {
    loop {
        // The lock is held while waiting, not while working.
        let task = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        let mut verifier = BlockVerifier::new(&task.block.get());
        for piece in task.pieces {
            verifier.lines(&mut Lines::new(&piece));
        }
        let report = verifier.finish();
        // Nobody listens any more if the reader met an error.
        let _ = task.report.send((task.block, report));
    }
}

/// Only if a worker panicked, which then ends the program.
fn worker_gone() -> Failure {
    Failure::Service("a thread ended before its work".to_owned())
}

/// Pieces of 256 KiB at most that wait for their worker: two blocks of usual size.
const PIECES_AHEAD: usize = 16;
