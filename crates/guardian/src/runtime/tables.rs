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
use std::collections::BTreeSet;

/// Tables that fit the configured patterns and that nobody guards are told one by one, but
/// no more of them than so many.
const UNGUARDED: usize = 50;

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
        let tables: BTreeSet<String> = tables.into_iter().collect();
        if tables == self.unguarded {
            return Ok(());
        }
        let is_many = |tables: &BTreeSet<String>| tables.len() > UNGUARDED;
        // One that is made again is told again.
        let mut told = std::mem::take(&mut self.unguarded);
        if is_many(&told) && !is_many(&tables) {
            // Those that are left were told together with others.
            told.clear();
        }
        let new: Vec<&String> = tables.difference(&told).collect();
        let advice = "nobody captures what is changed there. Run `pitser guard init`, or name it under exclude";
        let finding = |table: &str, text| Finding {
            table: Some(table.to_owned()),
            ..Finding::general(Code::CaptureWeakened, text)
        };
        match (new.first(), is_many(&tables)) {
            (None, _) => {}
            // Whoever may make tables would have as many findings as he likes.
            (Some(first), true) => {
                let count = tables.len();
                let text = format!(
                    "{count} tables fit the configured patterns and are not guarded, {first} among them: {advice}"
                );
                self.finding(worker, finding("*", text))?;
            }
            (Some(_), false) => {
                for table in new {
                    let text = format!(
                        "table {table} fits the configured patterns and is not guarded: {advice}"
                    );
                    self.finding(worker, finding(table, text))?;
                }
            }
        }
        self.unguarded = tables;
        self.trail.commit()?;
        self.show(worker);
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
