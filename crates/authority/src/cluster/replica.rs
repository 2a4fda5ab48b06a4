//! A node's own calendar, which follows the chain of seconds in etcd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::error::ClusterError;
use super::keys::Entry;
use crate::calendar::{Calendar, CalendarReader, zero_leaf};

/// The calendar of this node. Clones are the same calendar.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    /// Locked for one append.
    calendar: Arc<Mutex<Calendar>>,
    reader: CalendarReader,
    /// The newest durable second, or the one before the genesis.
    head: watch::Sender<Second>,
}

/// What an entry meant to a replica that did not refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is durable here now, or was before.
    Whole,
    /// Entries before it are missing here.
    Gap,
}

impl Replica {
    pub(super) fn new(calendar: Arc<Mutex<Calendar>>) -> Self {
        let reader = lock(&calendar).reader();
        let head = head_of(&reader);
        Self {
            calendar,
            reader,
            head: watch::Sender::new(head),
        }
    }

    pub(super) fn reader(&self) -> &CalendarReader {
        &self.reader
    }

    /// The newest durable second, or the one before the genesis.
    pub(super) fn head(&self) -> Second {
        *self.head.borrow()
    }

    pub(super) fn heads(&self) -> watch::Receiver<Second> {
        self.head.subscribe()
    }

    /// Takes over one entry.
    ///
    /// # Errors
    /// [`ClusterError::Contradiction`] if this calendar says something else.
    pub(super) async fn apply(&self, entry: Entry) -> Result<Applied, ClusterError> {
        self.write(move |calendar| {
            let head = head_of(&calendar.reader());
            if entry.at <= head {
                agree(&calendar.reader(), entry.at, entry.root)?;
                return Ok(Applied::Whole);
            }
            if entry.previous > head {
                return Ok(Applied::Gap);
            }
            if entry.previous < head {
                let ours = calendar.reader().leaf(head)?;
                return Err(ClusterError::contradiction(head, ours, zero_leaf()));
            }
            calendar.append(entry.at, entry.root)?;
            Ok(Applied::Whole)
        })
        .await
    }

    /// Takes over the leaves of the seconds that follow the head.
    pub(super) async fn extend(&self, leaves: Vec<Imprint>) -> Result<(), ClusterError> {
        self.write(move |calendar| Ok(calendar.extend(&leaves)?))
            .await
    }

    /// Takes over the seconds up to `reached`: those that are listed, zero leaves
    /// between them. The one at `from`, where it is here already, must be the same.
    pub(super) async fn follow(
        &self,
        from: Second,
        seconds: Vec<(Second, Imprint)>,
        reached: Second,
    ) -> Result<(), ClusterError> {
        self.write(move |calendar| {
            let head = head_of(&calendar.reader());
            if from == head && seconds.first().is_none_or(|(at, _)| *at != from) {
                agree(&calendar.reader(), from, zero_leaf())?;
            }
            let mut run = Vec::new();
            let mut next = head.plus(1);
            for (at, root) in seconds {
                if at > reached {
                    break;
                }
                if at < next {
                    agree(&calendar.reader(), at, root)?;
                    continue;
                }
                if at.since(next) > LONG_GAP {
                    calendar.extend(&std::mem::take(&mut run))?;
                    calendar.append(at, root)?;
                } else {
                    run.resize(run.len() + at.since(next) as usize, zero_leaf());
                    run.push(root);
                }
                next = at.plus(1);
            }
            calendar.extend(&run)?;
            if reached >= next {
                calendar.append(reached, zero_leaf())?;
            }
            Ok(())
        })
        .await
    }

    /// Fails unless `root` is what this calendar has at `at`, which it has reached.
    pub(super) async fn agrees(&self, at: Second, root: Imprint) -> Result<(), ClusterError> {
        let reader = self.reader.clone();
        on_disk(move || agree(&reader, at, root)).await
    }

    /// The leaves of neighbouring seconds that this calendar has reached; those
    /// before the genesis are zero.
    pub(super) async fn leaves(
        &self,
        first: Second,
        count: u64,
    ) -> Result<Vec<Imprint>, ClusterError> {
        let reader = self.reader.clone();
        on_disk(move || {
            (first.0..first.0 + count)
                .map(|at| match Second(at) {
                    at if at < reader.genesis() => Ok(zero_leaf()),
                    at => Ok(reader.leaf(at)?),
                })
                .collect()
        })
        .await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Calendar) -> Result<T, ClusterError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        let calendar = Arc::clone(&self.calendar);
        let done = on_disk(move || work(&mut lock(&calendar))).await;
        // Two writers may end in either order; the head only grows.
        let head = head_of(&self.reader);
        self.head.send_if_modified(|newest| {
            let grows = head > *newest;
            *newest = head.max(*newest);
            grows
        });
        done
    }
}

fn agree(reader: &CalendarReader, at: Second, theirs: Imprint) -> Result<(), ClusterError> {
    if at < reader.genesis() {
        return Ok(());
    }
    let ours = reader.leaf(at)?;
    if ours == theirs {
        Ok(())
    } else {
        Err(ClusterError::contradiction(at, ours, theirs))
    }
}

/// The newest second, or the one before the genesis.
pub(super) fn head_of(reader: &CalendarReader) -> Second {
    let before = Second(reader.genesis().0.saturating_sub(1));
    reader.head().unwrap_or(before)
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClusterError> + Send + 'static,
) -> Result<T, ClusterError> {
    spawn_blocking(work)
        .await
        .map_err(|_| ClusterError::Interrupted)?
}

/// The calendar refuses to go on after a failed write by itself, so a panic
/// while it was locked hides nothing.
fn lock(calendar: &Mutex<Calendar>) -> MutexGuard<'_, Calendar> {
    calendar.lock().unwrap_or_else(PoisonError::into_inner)
}

/// More seconds without requests are not held in memory.
const LONG_GAP: u64 = 4096;
