//! Blocks and their seals.

use super::{Ended, FORGOTTEN, LATENCIES, POSITION, RECENT, SECOND_US, Session, Waiting, Worker};
use crate::sealer::{Outcome, Wanted};
use crate::status::BlockStatus;
use pitser_evidence::Code;
use pitser_monitor::Finding;
use pitser_trail::TrailError;

/// Blocks that wait of which it is kept when their lines were committed.
const TIMED: usize = 64;
/// How long an authority may take to start, in seconds.
const STARTING_S: u64 = 60;

impl Session {
    pub(super) fn close(&mut self, worker: &Worker) -> Result<(), Ended> {
        let began = (worker.parts.clock)();
        let at = self.now(worker);
        let (written, reason) = (self.written(), "Block closed due to time limit.");
        let block = self
            .trail
            .close_block(at, &written.to_string(), self.mapping, reason)?;
        self.closed_at = (worker.parts.clock)();
        let times = std::mem::take(&mut self.open_times);
        let every = times.len() / LATENCIES + 1;
        self.waiting.push_back(Waiting {
            block: block.block,
            since: self.closed_at,
            times: times.into_iter().step_by(every).collect(),
        });
        // The authority may be away for days.
        let kept = self.waiting.len().saturating_sub(TIMED);
        if let Some(oldest) = kept.checked_sub(1).and_then(|at| self.waiting.get_mut(at)) {
            oldest.times = Vec::new();
        }
        self.recent.push_front(BlockStatus {
            block: block.block,
            lines: block.count,
            sealed_at: None,
        });
        self.recent.truncate(RECENT);
        if let Some(seals) = &worker.seals {
            // The sealer ends only with the guardian.
            let _ = seals.send(Wanted::of(&self.trail, &block));
        }
        // The checkpoint line holds the position: from here on it survives.
        self.kept = written;
        self.ack_due = Some(self.kept);
        let took = (worker.parts.clock)().saturating_sub(began);
        self.closing_us = took.max(self.closing_us - self.closing_us / 8);
        self.show(worker);
        Ok(())
    }

    pub(super) fn seal(&mut self, worker: &mut Worker, outcome: Outcome) -> Result<(), Ended> {
        match outcome {
            Outcome::Delayed { block, why } => {
                tracing::warn!(block, "unsealed: {why}");
                worker.delayed = Some(why);
                self.overdue(worker, block)?;
            }
            Outcome::Sealed { block, signature } => {
                match self.trail.add_seal(block, &signature) {
                    // An answer to a request of an earlier session.
                    Err(TrailError::SealOrder { .. }) => return Ok(()),
                    other => other?,
                }
                worker.delayed = None;
                self.note_seal(worker, block, &signature);
            }
        }
        // Whoever waits for the seal sees it.
        self.show(worker);
        self.settled(worker)
    }

    fn note_seal(&mut self, worker: &Worker, block: u64, signature: &[u8]) {
        let now = (worker.parts.clock)();
        while let Some(sealed) = self.waiting.pop_front_if(|it| it.block <= block) {
            let took = sealed.times.iter().map(|at| now.saturating_sub(*at) / 1000);
            self.latencies.extend(took);
        }
        let surplus = self.latencies.len().saturating_sub(LATENCIES);
        self.latencies.drain(..surplus);
        let sealed_at = pitser_evidence::seal::time(signature).map(|t| t.to_string());
        if let Some(recent) = self.recent.iter_mut().find(|b| b.block == block) {
            recent.sealed_at = sealed_at;
        }
    }

    /// Says so if the block that has waited longest, about which the authority was just
    /// asked in vain, has waited too long. An authority that starts along with the guardian
    /// has some time for it.
    pub(super) fn overdue(&mut self, worker: &Worker, block: u64) -> Result<(), Ended> {
        let now = (worker.parts.clock)();
        let oldest = self.waiting.front().filter(|oldest| oldest.block == block);
        let waits = |since: u64, most_s: u64| now.saturating_sub(since) / SECOND_US >= most_s;
        let alarm_s = worker.parts.tuning.seal_alarm_s;
        let is_overdue = oldest.is_some_and(|oldest| waits(oldest.since, alarm_s));
        if is_overdue && waits(self.opened_at, alarm_s.min(STARTING_S)) {
            let text = format!(
                "block {block} and those after it are unsealed: the authority does not answer"
            );
            // The same as long as this block waits.
            let unsealed = self.trail.unsealed().next();
            let finding = Finding {
                about: unsealed.map(|block| block.first_seq),
                ..Finding::general(Code::Unsealed, text)
            };
            self.finding(worker, finding)?;
            self.trail.commit()?;
        }
        Ok(())
    }

    /// Looks what is due now. A clock that was set back takes with it what is measured by it.
    pub(super) fn look_at_clock(&mut self, now: u64) {
        let back = self.next.look(now);
        if back > 0 {
            self.closed_at = self.closed_at.saturating_sub(back);
            self.opened_at = self.opened_at.saturating_sub(back);
            for waiting in &mut self.waiting {
                waiting.since = waiting.since.saturating_sub(back);
            }
        }
    }

    /// Has the head cosigned for those who wait for that, once everything under
    /// it is sealed.
    pub(super) fn settled(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let sealed = self
            .trail
            .unsealed()
            .next()
            .map_or(self.trail.blocks(), |b| b.block);
        let ready = self
            .settling
            .extract_if(.., |(blocks, _)| *blocks <= sealed);
        let ready: Vec<_> = ready.collect();
        if ready.is_empty() {
            return Ok(());
        }
        for (blocks, reply) in ready {
            self.when_cosigned(blocks, reply);
        }
        self.cosign(worker)
    }

    /// Lets the source forget what is durable here, and tells it each second
    /// that we are still here. An outbox is emptied when there is nothing
    /// better to do and nobody else is writing.
    pub(super) fn acknowledge(&mut self) -> Result<(), Ended> {
        if self.more && !self.source.is_stream() {
            return Ok(());
        }
        let Some(upto) = self.ack_due else {
            return Ok(());
        };
        // What is wrong with the transactions up to there may stand behind the position.
        self.trail.commit()?;
        match self.source.ack(upto) {
            Ok(()) => self.ack_due = None,
            Err(error) if error.is_busy() => {}
            Err(error) => return Err(error.into()),
        }
        self.keep_forgotten()
    }

    /// Keeps for the next start what the source has forgotten. An older word of it does no
    /// harm.
    pub(super) fn keep_forgotten(&mut self) -> Result<(), Ended> {
        let forgotten = self.source.forgotten();
        if let Some(upto) = forgotten
            && self.forgotten != forgotten
        {
            let path = self.trail.layout().dir().join(FORGOTTEN);
            let text = format!("{upto}\n");
            // An older copy of the database counts from lower down: that has to last.
            match forgotten < self.forgotten {
                true => pitser_trail::disk::replace(&path, text.as_bytes()),
                false => pitser_trail::disk::replace_unsynced(&path, text.as_bytes()),
            }
            .map_err(TrailError::from)?;
            self.forgotten = forgotten;
        }
        Ok(())
    }

    /// Makes the position durable although no line tells of it: nothing of
    /// ours happened up to there.
    pub(super) fn keep_position(&mut self) -> Result<(), Ended> {
        if self.written() > self.kept {
            self.write_position()?;
        }
        self.ack_due = Some(self.kept);
        Ok(())
    }

    pub(super) fn write_position(&mut self) -> Result<(), Ended> {
        // It must not be ahead of the lines.
        self.trail.commit()?;
        let path = self.trail.layout().dir().join(POSITION);
        let written = self.written();
        let text = format!("{written}\n");
        pitser_trail::disk::replace(&path, text.as_bytes()).map_err(TrailError::from)?;
        self.kept = written;
        Ok(())
    }
}
