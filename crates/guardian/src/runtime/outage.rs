//! Times in which nothing is captured: the database cannot be reached, say, or lets us in
//! no more.
//!
//! Most pass before anybody has to know. One that lasts is a finding, which is shown at
//! once, and stands in the trail, with its beginning and its end, when it is over: once
//! the database hands something over again, be it changes or rows. A session that was
//! opened and ends before that has not ended it.

use super::{Ended, SECOND_US, Session, StartError, Worker};
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
    /// Notes that guarding ended, or could not begin, for this reason.
    pub(super) fn note_outage(&mut self, error: &StartError) {
        // Another guardian watches.
        if error.is_taken() || (self.stood_by && self.outage.is_none()) {
            return;
        }
        // What failed may have waited for the database first.
        let since = self.pulse.began().unwrap_or_else(|| (self.parts.clock)());
        self.outage.get_or_insert_with(|| Outage {
            since,
            why: error.words(),
        });
    }

    /// The outage, if there is one and it has lasted for too long by `now`.
    fn long_outage(&self, now: u64) -> Option<&Outage> {
        let alarm_us = self.parts.tuning.unwatched_alarm_s * SECOND_US;
        let outage = self.outage.as_ref()?;
        (now.saturating_sub(outage.since) >= alarm_us).then_some(outage)
    }

    /// What is to be shown if nothing is captured for too long.
    pub(super) fn unwatched(&self) -> Option<FindingStatus> {
        let outage = self.long_outage((self.parts.clock)())?;
        Some(FindingStatus {
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
    /// The database has handed something over, which is not written yet: has the trail say
    /// from when to when nothing was captured, if that was long.
    pub(super) fn end_outage(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        if worker.outage.is_none() {
            return Ok(());
        }
        let now = (worker.parts.clock)();
        let text = worker.long_outage(now).map(|outage| {
            format!(
                "nothing was captured from {} to {}, and nobody watched the database: {}. What it kept of what was \
                 committed meanwhile is told from here on",
                outage.began(),
                Second(now / SECOND_US),
                outage.why
            )
        });
        if let Some(text) = text {
            let finding = Finding::general(Code::CaptureWeakened, text);
            self.event_findings(worker, Vec::new(), self.position, [finding])?;
            self.trail.commit()?;
            // What was changed past capture meanwhile, a look at the rows tells.
            self.scan_due = true;
        }
        worker.outage = None;
        self.show(worker);
        Ok(())
    }
}
