//! What a guardian shows of itself.

use super::{SECOND_US, Session, Worker};
use crate::status::{AcceptedStatus, FindingStatus, Latency, MoreStatus, SourceState, Status};
use pitser_evidence::line::Timestamp;
use pitser_ksi::time::Second;
use std::collections::VecDeque;
use std::sync::Arc;

impl Session {
    pub(super) fn show(&self, worker: &Worker) {
        self.show_with(worker, |_| {});
    }

    /// Shows how things stand, and `more` in the same moment.
    pub(super) fn show_with(&self, worker: &Worker, more: impl FnOnce(&mut Status)) {
        let unsealed = self.trail.unsealed().count() as u64;
        let delayed = worker.delayed.as_ref().filter(|_| unsealed > 0);
        let seal_delayed = delayed.is_some();
        let trouble = delayed
            .or(worker.unscanned.as_ref())
            .or(worker.uncosigned.as_ref())
            .cloned();
        let unwatched = worker.unwatched();
        worker.publish.send_modify(|s| {
            // Until then it stands as it did: what kept the session before from guarding may
            // keep this one.
            if self.has_begun {
                s.state = match self.unbaselined.is_empty() {
                    true => SourceState::Guarding,
                    false => SourceState::Baseline,
                };
                s.trouble = trouble;
            }
            s.baseline.clone_from(&self.baselined);
            // What is not durable yet is not shown.
            if self.trail.is_durable() {
                s.position = self.written().to_string();
                s.events = self.events;
                s.lines = self.trail.state().next_seq();
                s.patients = self.trail.state().patients();
                s.findings = self.findings();
                s.more_findings = self.more_findings();
                s.counted_rows = Arc::clone(&self.counted_rows);
            } else {
                s.findings.retain(|finding| finding.line.is_some());
            }
            s.blocks = self.trail.blocks();
            s.unsealed = unsealed;
            s.seal_delayed = seal_delayed;
            s.sealed_up_to = self.trail.sealed_at().map(|at| at.to_string());
            s.genesis = self.trail.genesis_hash().to_string();
            s.is_opened = true;
            s.seal_latency_ms = latency(&self.latencies);
            s.recent = self.recent.iter().cloned().collect();
            s.findings.extend(unwatched);
            s.witnesses = worker.cosigners.iter().map(|c| c.shown.clone()).collect();
            more(s);
        });
    }

    pub(super) fn findings(&self) -> Vec<FindingStatus> {
        self.incidents
            .kept()
            .into_iter()
            .map(|incident| FindingStatus {
                code: incident.finding.code.to_string(),
                table: incident.finding.table.clone(),
                key: incident.finding.key.as_ref().map(pitser_monitor::show_key),
                columns: incident.finding.columns.clone(),
                at: Second(incident.found_at / SECOND_US).to_string(),
                found_at_us: incident.found_at,
                text: incident.finding.text.clone(),
                open: incident.open,
                line: Some(incident.line),
                accepted: incident.accepted.as_ref().map(|accepted| AcceptedStatus {
                    line: accepted.line,
                    at: Second(accepted.at / SECOND_US).to_string(),
                    by: accepted.by.clone(),
                    reason: accepted.reason.clone(),
                }),
            })
            .collect()
    }

    fn more_findings(&self) -> Vec<MoreStatus> {
        let more = self.incidents.more();
        let shown = more.map(|((code, table), more)| MoreStatus {
            code: code.to_string(),
            table: table.clone(),
            open: more.open,
            earlier: more.earlier,
            first_line: (more.open > 0).then_some(more.first),
            last_line: (more.open > 0).then_some(more.last),
        });
        shown.collect()
    }

    pub(super) fn now(&self, worker: &Worker) -> Timestamp {
        Timestamp::from_micros((worker.parts.clock)()).expect("the clock shows a year before 10000")
    }
}

fn latency(samples: &VecDeque<u64>) -> Option<Latency> {
    let mut sorted: Vec<u64> = samples.iter().copied().collect();
    sorted.sort_unstable();
    let at = |per_cent: usize| {
        sorted
            .get((sorted.len().saturating_sub(1)) * per_cent / 100)
            .copied()
    };
    Some(Latency {
        p50: at(50)?,
        p99: at(99)?,
    })
}
