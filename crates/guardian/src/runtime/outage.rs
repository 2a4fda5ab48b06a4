//! Times in which nothing is captured: the database cannot be reached, say, or lets us in
//! no more.
//!
//! Most pass before anybody has to know. One that lasts is a finding, which is shown at
//! once and stands in the trail, with its beginning and its end, as soon as that can be
//! written: a session opens both database and trail.

use super::failed::words;
use super::{Ended, InitError, SECOND_US, Session, StartError, Worker};
use crate::status::FindingStatus;
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use pitser_monitor::Finding;

/// A time in which nothing is captured.
pub(super) struct Outage {
    /// When it began, in microseconds since 1970.
    since: u64,
    /// What it began with, in words without a value.
    why: String,
}

impl Outage {
    fn began(&self) -> Second {
        Second(self.since / SECOND_US)
    }
}

impl Worker {
    /// Notes that guarding ended, or could not begin, for this reason. Gives what is to be
    /// shown if that has lasted for too long.
    pub(super) fn unwatched(&mut self, error: &StartError) -> Option<FindingStatus> {
        // Another guardian watches.
        if error.is_taken() || (self.stood_by && self.outage.is_none()) {
            return None;
        }
        let now = (self.parts.clock)();
        let outage = self.outage.get_or_insert_with(|| Outage {
            since: now,
            why: why(error),
        });
        let alarm_us = self.parts.tuning.unwatched_alarm_s * SECOND_US;
        (now.saturating_sub(outage.since) >= alarm_us).then(|| FindingStatus {
            code: Code::CaptureWeakened.to_string(),
            table: None,
            key: None,
            columns: Vec::new(),
            at: outage.began().to_string(),
            found_at_us: outage.since,
            text: format!(
                "nothing is captured since {}, and nobody watches the database: {}. It goes on by itself once that \
                 is mended",
                outage.began(),
                outage.why
            ),
            open: true,
            line: None,
            accepted: None,
        })
    }
}

impl Session {
    /// Has the trail say from when to when nothing was captured, if that was long.
    pub(super) fn end_outage(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let Some(outage) = &worker.outage else {
            return Ok(());
        };
        let now = (worker.parts.clock)();
        let alarm_us = worker.parts.tuning.unwatched_alarm_s * SECOND_US;
        if now.saturating_sub(outage.since) >= alarm_us {
            let text = format!(
                "nothing was captured from {} to {}, and nobody watched the database: {}. What it kept of what was \
                 committed meanwhile is told from here on",
                outage.began(),
                Second(now / SECOND_US),
                outage.why
            );
            let finding = Finding {
                about: Some(self.trail.state().next_seq()),
                ..Finding::general(Code::CaptureWeakened, text)
            };
            self.finding(worker, finding)?;
            self.trail.commit()?;
            // What was changed past capture meanwhile, a look at the rows tells.
            self.scan_due = true;
        }
        worker.outage = None;
        Ok(())
    }
}

fn why(error: &StartError) -> String {
    match error {
        StartError::Database(error) | StartError::Init(InitError::Database(error)) => words(error),
        other => other.to_string(),
    }
}
