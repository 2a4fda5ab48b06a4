//! A stream that is read and decoded on a thread of its own, so that the server's
//! messages are taken in while what they say is written.
//!
//! Bounded: a few batches are ahead of whoever takes them, then the thread waits,
//! and so does the server. The thread ends, and the slot is free, when the
//! [`Reader`] is dropped.

use std::io::ErrorKind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PgError, Stream};
use crate::event::{Captured, Position};

/// Steps in a batch: few enough to be in the processor's caches still when they are
/// taken.
const STEPS: usize = 128;
/// The same, in bytes of their values: rows may be large.
const BYTES: usize = 4 << 20;
/// Batches that wait for their taker.
const AHEAD: usize = 8;
/// How long is waited for a batch, and for something to acknowledge.
const INSTANT: Duration = Duration::from_millis(1);
/// Between two batches that are far from full: no transaction of the server wakes us by
/// itself, which is on the same machine as a rule.
const PACE: Duration = Duration::from_millis(10);
/// How long the server is waited for before we look whether we are to say or do
/// something.
const IDLE: Duration = Duration::from_millis(20);

type Batch = Result<Vec<Captured>, PgError>;

/// A stream on its thread.
#[derive(Debug)]
pub(super) struct Reader {
    batches: Option<Receiver<Batch>>,
    /// What is durable elsewhere.
    acks: Option<Sender<Position>>,
    thread: Option<JoinHandle<()>>,
    /// Why nothing comes any more, if something came just before.
    ended: Option<PgError>,
}

impl Reader {
    /// Begins to read.
    ///
    /// # Errors
    /// [`PgError::Lost`] if the machine has no thread for it.
    pub(super) fn start(stream: Stream) -> Result<Self, PgError> {
        let (batch, batches) = sync_channel(AHEAD);
        let (ack, acks) = channel();
        let read = move || read(stream, &batch, &acks);
        let thread = std::thread::Builder::new().name("pitser-stream".into());
        Ok(Self {
            batches: Some(batches),
            acks: Some(ack),
            thread: Some(thread.spawn(read)?),
            ended: None,
        })
    }

    /// Adds what came next to `steps`, until they are `max` or so; nothing if
    /// nothing comes within an instant.
    ///
    /// # Errors
    /// Those of [`Stream::next`] and [`Stream::ack`]; [`PgError::Lost`] ever after.
    pub(super) fn take(&mut self, steps: &mut Vec<Captured>, max: usize) -> Result<(), PgError> {
        const OVER: PgError = PgError::Lost(ErrorKind::NotConnected);
        if let Some(error) = self.ended.take() {
            return Err(error);
        }
        let batches = self.batches.as_ref().ok_or(OVER)?;
        let mut wait = INSTANT;
        while steps.len() < max {
            match batches.recv_timeout(wait) {
                Ok(Ok(batch)) if steps.is_empty() => *steps = batch,
                Ok(Ok(batch)) => steps.extend(batch),
                Ok(Err(error)) if steps.is_empty() => return Err(error),
                Ok(Err(error)) => {
                    self.ended = Some(error);
                    break;
                }
                Err(RecvTimeoutError::Disconnected) if steps.is_empty() => return Err(OVER),
                Err(_) => break,
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// As [`Stream::ack`], which will be done soon; its error is the next batch's.
    ///
    /// # Errors
    /// [`PgError::Lost`] once the stream has ended.
    pub(super) fn ack(&mut self, upto: Position) -> Result<(), PgError> {
        let sent = self.acks.as_ref().map(|acks| acks.send(upto));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(PgError::Lost(ErrorKind::NotConnected)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Without its taker the thread ends; the slot is free once it has.
        self.batches = None;
        self.acks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads until somebody is gone, or reading fails.
fn read(mut stream: Stream, batches: &SyncSender<Batch>, acks: &Receiver<Position>) {
    let mut is_keeping_up = false;
    loop {
        let waited = match is_keeping_up {
            true => pause(&mut stream, acks),
            false => Ok(()),
        };
        let read = waited.map_err(|error| (Vec::new(), error));
        let batch = match read.and_then(|()| batch(&mut stream, acks)) {
            Ok(None) => return,
            Ok(Some(batch)) => {
                is_keeping_up = batch.len() < STEPS / 2;
                Ok(batch)
            }
            Err((read, error)) => {
                // What was read before it failed is as good as ever.
                let _ = batches.send(Ok(read));
                Err(error)
            }
        };
        let is_over = batch.is_err();
        if batches.send(batch).is_err() || is_over {
            return;
        }
    }
}

/// Lets the server say more, and acknowledges what is to be meanwhile.
fn pause(stream: &mut Stream, acks: &Receiver<Position>) -> Result<(), PgError> {
    match acks.recv_timeout(PACE) {
        Ok(upto) => acknowledge(stream, acks, upto),
        // That nobody is there any more is noticed by whoever hands over.
        Err(_) => Ok(()),
    }
}

/// The next batch, which is never empty; `None` once nobody is there to take it. An
/// error comes with what was read before it.
fn batch(
    stream: &mut Stream,
    acks: &Receiver<Position>,
) -> Result<Option<Vec<Captured>>, (Vec<Captured>, PgError)> {
    let (mut steps, mut bytes) = (Vec::new(), 0);
    let mut wait = IDLE;
    while steps.len() < STEPS && bytes < BYTES {
        match stream.next(wait) {
            Ok(Some(step)) => {
                if let Captured::Change(change) = &step {
                    bytes += change.size();
                }
                steps.push(step);
                wait = Duration::ZERO;
            }
            Ok(None) if !steps.is_empty() => break,
            // Nothing was said, or we were asked for what only an ack can answer.
            Ok(None) => match acks.recv_timeout(INSTANT) {
                Ok(upto) => acknowledge(stream, acks, upto).map_err(|e| (Vec::new(), e))?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            },
            Err(error) => return Err((steps, error)),
        }
    }
    if let Ok(upto) = acks.try_recv()
        && let Err(error) = acknowledge(stream, acks, upto)
    {
        return Err((steps, error));
    }
    Ok(Some(steps))
}

/// Acknowledges the last of what waits to be.
fn acknowledge(
    stream: &mut Stream,
    acks: &Receiver<Position>,
    first: Position,
) -> Result<(), PgError> {
    stream.ack(acks.try_iter().last().unwrap_or(first))
}
