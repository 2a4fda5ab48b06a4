//! Blocks, their seals, and heads that witnesses cosign.

use super::{Ended, LATENCIES, POSITION, RECENT, SECOND_US, Session, Worker};
use crate::sealer::{Outcome, Wanted};
use crate::status::BlockStatus;
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use pitser_monitor::Finding;
use pitser_trail::TrailError;
use pitser_witness::SubmitError as CosignError;

impl Session {
    pub(super) fn close(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let began = (worker.parts.clock)();
        let at = self.now(worker);
        let reason = "Block closed due to time limit.";
        let block = self
            .trail
            .close_block(at, &self.position.to_string(), self.mapping, reason)?;
        self.closed_at = (worker.parts.clock)();
        self.waiting
            .push_back((block.block, std::mem::take(&mut self.open_times)));
        self.recent.push_front(BlockStatus {
            block: block.block,
            lines: block.count,
            sealed_at: None,
        });
        self.recent.truncate(RECENT);
        if let Some(seals) = &worker.seals {
            // The sealer ends only with the guardian.
            let _ = seals.send(Wanted {
                block: block.block,
                root: block.root,
                level: block.level,
            });
        }
        // The checkpoint line holds the position: from here on it survives.
        self.kept = self.position;
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
        while let Some((_, times)) = self.waiting.pop_front_if(|(number, _)| *number <= block) {
            self.latencies
                .extend(times.iter().map(|at| now.saturating_sub(*at) / 1000));
        }
        let surplus = self.latencies.len().saturating_sub(LATENCIES);
        self.latencies.drain(..surplus);
        let sealed_at = pitser_evidence::seal::time(signature).map(|t| t.to_string());
        if let Some(recent) = self.recent.iter_mut().find(|b| b.block == block) {
            recent.sealed_at.clone_from(&sealed_at);
        }
        worker.publish.send_modify(|s| s.sealed_up_to = sealed_at);
    }

    pub(super) fn overdue(&mut self, worker: &Worker, block: u64) -> Result<(), Ended> {
        let waited = (worker.parts.clock)().saturating_sub(self.closed_at) / SECOND_US;
        let oldest = self.trail.unsealed().next().map(|b| b.block);
        if oldest == Some(block) && waited >= worker.parts.tuning.seal_alarm_s {
            let text = format!(
                "block {block} and those after it are unsealed: the authority does not answer"
            );
            self.finding(worker, Finding::general(Code::Unsealed, text))?;
            self.trail.commit()?;
        }
        Ok(())
    }

    /// Answers those who wait for everything to be sealed and cosigned.
    pub(super) fn settled(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let sealed = self
            .trail
            .unsealed()
            .next()
            .map_or(self.trail.blocks(), |b| b.block);
        let (ready, waiting) = std::mem::take(&mut self.settling)
            .into_iter()
            .partition(|(blocks, _)| *blocks <= sealed);
        self.settling = waiting;
        let ready: Vec<_> = ready;
        if ready.is_empty() {
            return Ok(());
        }
        let cosigned = self.cosign(worker)?;
        for (_, reply) in ready {
            let _ = reply.send(cosigned.clone());
        }
        Ok(())
    }

    /// Signs the head and has it cosigned; keeps it if the quorum is reached.
    pub(super) fn cosign(&mut self, worker: &mut Worker) -> Result<Result<u64, String>, Ended> {
        let size = self.trail.blocks();
        if size == 0 || size == self.head_size {
            return Ok(Ok(size));
        }
        let mut note = self.trail.sign_head();
        let mut cosigned = 0;
        let mut refusals = Vec::new();
        let mut findings = Vec::new();
        for peer in &mut worker.parts.witnesses {
            let name = peer.key().name().to_owned();
            match peer.cosign(self.trail.log(), &note) {
                Ok(line) => cosigned += usize::from(note.add(line).is_ok()),
                Err(error) => {
                    match &error {
                        CosignError::Forked { .. } => {
                            findings.push((Code::TrailForked, name.clone(), error.to_string()))
                        }
                        CosignError::Ahead { .. } => {
                            findings.push((Code::TrailShort, name.clone(), error.to_string()))
                        }
                        _ => {}
                    }
                    refusals.push(format!("{name}: {error}"));
                }
            }
        }
        for (code, name, text) in findings {
            self.finding(
                worker,
                Finding::general(code, format!("witness {name}: {text}")),
            )?;
        }
        self.trail.commit()?;
        let quorum = worker.parts.tuning.witness_quorum;
        if cosigned < quorum {
            let text = format!(
                "{cosigned} of {quorum} required witnesses cosigned ({})",
                refusals.join("; ")
            );
            tracing::warn!("{text}");
            return Ok(Err(text));
        }
        self.trail.store_head(&note)?;
        let now = (worker.parts.clock)();
        self.head_size = size;
        if cosigned > 0 {
            worker.publish.send_modify(|s| {
                s.witnessed = size;
                s.witnessed_at = Some(Second(now / SECOND_US).to_string());
            });
        }
        Ok(Ok(size))
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
        match self.source.ack(upto) {
            Ok(()) => self.ack_due = None,
            Err(error) if error.is_busy() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Makes the position durable although no line tells of it: nothing of
    /// ours happened up to there.
    pub(super) fn keep_position(&mut self) -> Result<(), Ended> {
        if self.position > self.kept {
            self.write_position()?;
        }
        self.ack_due = Some(self.kept);
        Ok(())
    }

    pub(super) fn write_position(&mut self) -> Result<(), Ended> {
        let path = self.trail.layout().dir().join(POSITION);
        let text = format!("{}\n", self.position);
        pitser_trail::disk::replace(&path, text.as_bytes()).map_err(TrailError::from)?;
        self.kept = self.position;
        Ok(())
    }
}
