//! What the database has for us: guarded tables that come, change and go, and log
//! that it keeps.

use super::rules::Rules;
use super::{Ended, Session, Worker};
use crate::config;
use pitser_evidence::Code;
use pitser_evidence::codec::Digest;
use pitser_evidence::map::Leaf;
use pitser_monitor::Finding;
use pitser_trail::TrailError;

impl Session {
    /// Goes by the tables as they are now: those that are guarded since get the
    /// lines of the rows that were there.
    pub(super) fn reshape(&mut self, worker: &Worker) -> Result<(), Ended> {
        self.untold.clear();
        self.aside.clear();
        let rules = Rules::of(&worker.parts.source, self.source.shapes());
        let mapping = rules.patients.mapping();
        self.mapping = Digest::of(&[mapping.as_bytes()]);
        worker.publish.send_modify(|s| s.mapping = mapping);
        self.patients = rules.patients;
        self.actors = rules.actors;
        self.unfit = rules.unfit;
        self.learn_owners()?;
        self.unbaselined = self.lacking();
        self.tell_unfit(worker)
    }

    /// Tables whose rows that were there lack their lines, and can be told apart.
    pub(super) fn lacking(&self) -> Vec<String> {
        let shapes = self.source.shapes();
        let can_follow = |table: &str| {
            shapes
                .iter()
                .any(|it| it.name == table && !it.key.is_empty())
        };
        let mut tables = self.baseline_order();
        tables.retain(|table| {
            !self.live.contains(table) && !self.aside.contains(table) && can_follow(table)
        });
        tables
    }

    /// Tables that the configuration names and nobody guards: they were made, or
    /// named, after `guard init`.
    pub(super) fn notice_unguarded(&mut self, worker: &Worker) -> Result<(), Ended> {
        let source = &worker.parts.source;
        let mut tables = self.source.unguarded()?;
        tables.retain(|table| config::is_wanted(source, table));
        // One that is made again is told again.
        self.unguarded.retain(|known| tables.contains(known));
        for table in tables {
            if self.unguarded.contains(&table) {
                continue;
            }
            let text = format!(
                "table {table} fits the configured patterns and is not guarded: nobody captures its changes. Run \
                 `pitser guard init`, or name it under exclude"
            );
            let finding = Finding {
                table: Some(table.clone()),
                ..Finding::general(Code::CaptureWeakened, text)
            };
            self.finding(worker, finding)?;
            self.unguarded.insert(table);
            self.trail.commit()?;
            self.show(worker);
        }
        Ok(())
    }

    /// Shows what the database keeps for us, and notices when it is about to drop
    /// that.
    pub(super) fn notice_backlog(&mut self, worker: &Worker) -> Result<(), Ended> {
        let backlog = self.source.backlog()?;
        worker
            .publish
            .send_modify(|s| s.log_kept_bytes = backlog.kept_bytes);
        let was_in_danger = std::mem::replace(&mut self.is_in_danger, backlog.danger.is_some());
        if let Some(danger) = backlog.danger.filter(|_| !was_in_danger) {
            let finding = Finding {
                about: self.trail.state().next_seq().checked_sub(1),
                ..Finding::general(Code::CaptureWeakened, danger)
            };
            self.finding(worker, finding)?;
            self.trail.commit()?;
            self.show(worker);
        }
        Ok(())
    }

    /// Records of tables that are not guarded any more: dropped, renamed, or taken
    /// out of the publication. Nothing says what became of them.
    pub(super) fn out_of_reach(&self) -> Result<Vec<Finding>, TrailError> {
        let shapes = self.source.shapes();
        let is_guarded = |table: &&String| shapes.iter().any(|shape| shape.name == **table);
        let mut gone: Vec<&String> = self.live.iter().filter(|t| !is_guarded(t)).collect();
        gone.sort_unstable();
        let mut findings = Vec::new();
        for table in gone {
            let is_left = |_: &_, leaf: &Leaf| leaf.row.is_some().then_some(());
            let left = self.trail.state().records(table, is_left)?.len();
            let text = format!(
                "table {table} is not guarded any more (dropped, renamed, or taken out of the publication), and \
                 nothing says what became of its {left} rows"
            );
            findings.extend((left > 0).then(|| Finding {
                table: Some(table.clone()),
                ..Finding::general(Code::RowMissing, text)
            }));
        }
        Ok(findings)
    }
}
