//! Computing a whole calendar again, on all cores.
//!
//! The lowest levels are nearly all of the work: a job is 4096 seconds, read once,
//! hashed level by level with as many messages at a time as the processor takes, and
//! compared with the stored nodes of levels 4, 8 and 12. What is above, a 4096th of
//! it, is compared node by node with its children, which were compared before.
//!
//! Seconds after the last complete node of level 4 are covered by no node: only a
//! publication's root says whether they are right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use pitser_ksi::hash::{Algorithm, Batch, Imprint};

use super::files::{ENTRY, Files, STEP};
use super::tree::CALENDAR_LEVEL;
use super::{Audit, CalendarError, zero_leaf};

/// Seconds of a job, as a level.
const JOB_LEVEL: u8 = 12;

/// What a job, or one node above, came to.
struct Done {
    sealed: u64,
    nodes: u64,
    bytes: u64,
}

pub(super) fn run(
    files: &Files,
    mut progress: impl FnMut(u64, u64),
) -> Result<Audit, CalendarError> {
    let seconds = files.seconds();
    let total = Files::stored_levels()
        .map(|level| files.node_count(level, seconds) * ENTRY)
        .sum();
    let mut audit = Audit {
        seconds,
        sealed_seconds: 0,
        nodes: 0,
        fault: None,
    };
    let mut done = 0;
    let mut count = |audit: &mut Audit, it: Done| {
        audit.sealed_seconds += it.sealed;
        audit.nodes += it.nodes;
        done += it.bytes;
        progress(done, total);
    };
    let below = Below::new(files, seconds);
    if let Some(fault) = below.run(|it| count(&mut audit, it))? {
        audit.fault = Some(fault.to_string());
        return Ok(audit);
    }
    for level in Files::stored_levels().filter(|level| *level > JOB_LEVEL) {
        for position in 0..files.node_count(level, seconds) {
            match files.check_node(level, position) {
                Ok(()) => count(
                    &mut audit,
                    Done {
                        sealed: 0,
                        nodes: 1,
                        bytes: ENTRY,
                    },
                ),
                Err(e @ CalendarError::Corrupt { .. }) => {
                    audit.fault = Some(e.to_string());
                    return Ok(audit);
                }
                Err(e) => return Err(e),
            }
        }
    }
    Ok(audit)
}

/// The levels up to [`JOB_LEVEL`].
struct Below<'a> {
    files: &'a Files,
    /// The first second that is not looked at.
    end: u64,
    /// The next job that nobody does yet, by its number since 1970.
    next: AtomicU64,
    /// Jobs from here on are not worth doing: an earlier one failed, or there are none.
    stop: AtomicU64,
}

impl<'a> Below<'a> {
    fn new(files: &'a Files, seconds: u64) -> Self {
        let (first, end) = (files.genesis().0, files.genesis().0 + seconds);
        Self {
            files,
            end,
            next: AtomicU64::new(first >> JOB_LEVEL),
            stop: AtomicU64::new(end.div_ceil(1 << JOB_LEVEL)),
        }
    }

    /// Does all jobs; `count` hears of each. What is wrong first, in the order of
    /// time, is handed back.
    fn run(&self, mut count: impl FnMut(Done)) -> Result<Option<CalendarError>, CalendarError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (report, reports) = mpsc::channel();
        let mut first: Option<(u64, CalendarError)> = None;
        thread::scope(|scope| {
            for _ in 0..cores {
                let report = report.clone();
                scope.spawn(move || self.work(&report));
            }
            drop(report);
            for (job, outcome) in reports {
                match outcome {
                    Ok(done) => count(done),
                    Err(e) if first.as_ref().is_none_or(|(at, _)| job < *at) => {
                        first = Some((job, e));
                    }
                    Err(_) => {}
                }
            }
        });
        match first.map(|(_, e)| e) {
            None => Ok(None),
            Some(e @ CalendarError::Corrupt { .. }) => Ok(Some(e)),
            Some(e) => Err(e),
        }
    }

    fn work(&self, report: &mpsc::Sender<(u64, Result<Done, CalendarError>)>) {
        let mut bench = Bench {
            batch: Batch::new(Algorithm::Sha256),
            row: Vec::new(),
        };
        loop {
            let job = self.next.fetch_add(1, Ordering::Relaxed);
            if job >= self.stop.load(Ordering::Relaxed) {
                return;
            }
            let outcome = self.check(job, &mut bench);
            if outcome.is_err() {
                self.stop.fetch_min(job, Ordering::Relaxed);
            }
            // The receiver lives as long as the scope.
            let _ = report.send((job, outcome));
        }
    }

    /// Checks the seconds `job << 12 .. (job + 1) << 12`, as far as there are any.
    fn check(&self, job: u64, bench: &mut Bench) -> Result<Done, CalendarError> {
        let start = job << JOB_LEVEL;
        let count = (self.end - start).min(1 << JOB_LEVEL);
        let zero = zero_leaf();
        bench.row = self.files.row(0, start, count)?;
        let sealed = bench.row.iter().filter(|leaf| **leaf != zero).count() as u64;
        let before = self.files.genesis().0.saturating_sub(start);
        let mut done = Done {
            sealed,
            nodes: 0,
            bytes: (count - before) * ENTRY,
        };
        for level in 1..=JOB_LEVEL {
            bench.rise();
            if level.is_multiple_of(STEP) {
                self.compare(level, start >> level, &bench.row, &mut done)?;
            }
        }
        Ok(done)
    }

    /// Compares computed nodes of one level with the stored ones.
    fn compare(
        &self,
        level: u8,
        index: u64,
        computed: &[Imprint],
        done: &mut Done,
    ) -> Result<(), CalendarError> {
        let first = self.files.genesis().0 >> level;
        let stored = self.files.row(level, index, computed.len() as u64)?;
        for (at, (stored, computed)) in (index..).zip(stored.iter().zip(computed)) {
            if at < first {
                continue;
            }
            if stored != computed {
                return Err(self.files.corrupt(level, at - first));
            }
            done.nodes += 1;
            done.bytes += ENTRY;
        }
        Ok(())
    }
}

/// What one thread works with, kept from job to job.
struct Bench {
    batch: Batch,
    /// Neighbouring nodes, from the first of the job on.
    row: Vec<Imprint>,
}

impl Bench {
    /// Replaces the row by the complete nodes above it.
    fn rise(&mut self) {
        for pair in self.row.chunks_exact(2) {
            let (left, right) = (pair[0].as_bytes(), pair[1].as_bytes());
            self.batch.push_node(left, right, CALENDAR_LEVEL);
        }
        self.row.clear();
        self.row.extend(self.batch.drain());
    }
}
