//! Passes over the live rows, on threads of their own.

use super::failed::words;
use super::{Command, Ended, Pass, SECOND_US, ScanSummary, Session, StartError, Worker};
use crate::status::{FindingStatus, UnreadStatus};
use pitser_capture::{Position, Row, SourceError};
use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::map::Leaf;
use pitser_ksi::time::Second;
use pitser_monitor::{
    Expected, Finding, Judge, Look, OF_LIVE_ROWS, ScanTable, Suspects, Touched, look,
};
use std::collections::HashSet;
use std::sync::mpsc::{Sender, channel};

/// Findings that are written of what a pass saw in all, before other things are done: some
/// tenths of a second.
const JUDGED: usize = 2048;

/// Passes that fail in a row before that is a finding, however long they take.
const FAILED: u32 = 3;

/// Passes fail one after the other.
pub(super) struct Failing {
    /// Since then, in microseconds since 1970.
    since: u64,
    times: u32,
    is_told: bool,
}

/// What a pass asks of the guardian's own thread.
struct AtTrail<'a> {
    pass: u64,
    commands: &'a Sender<Command>,
}

impl AtTrail<'_> {
    /// `None` if the guardian does not wait for this pass any more.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = channel();
        self.commands.send(command(reply)).ok()?;
        answer.recv().ok()
    }
}

impl Judge for AtTrail<'_> {
    fn expected(&mut self, table: &str, records: &[Bytes32]) -> Option<Vec<Expected>> {
        self.ask(|reply| Command::Expect {
            pass: self.pass,
            table: table.to_owned(),
            records: records.to_vec(),
            reply,
        })
    }

    fn judge(&mut self, suspects: Suspects) -> Option<()> {
        self.ask(|reply| Command::Suspects {
            pass: self.pass,
            suspects,
            reply,
        })
    }
}

impl Session {
    /// Whether the trail has everything that was committed when a pass became due.
    /// What it has not heard of would be looked at in vain: there may be millions of
    /// changes after a guardian was away.
    pub(super) fn has_caught_up(&mut self) -> Result<bool, Ended> {
        let after = match self.scan_after {
            Some(after) => after,
            None => match self.source.newest() {
                Err(error) if error.is_busy() => return Ok(false),
                newest => *self.scan_after.insert(newest?),
            },
        };
        let has = self.position >= after;
        self.scan_after.take_if(|_| has);
        Ok(has)
    }

    /// The newest line that says that the database is an older copy of itself; 0 if none does.
    fn rewound_at(&self) -> u64 {
        let findings = self.incidents.kept().into_iter();
        let rewound = findings.filter(|it| it.finding.code == Code::DatabaseRewound);
        rewound.map(|it| it.line).max().unwrap_or(0)
    }

    /// Sends a pass over the live rows on its way, on a thread of its own.
    pub(super) fn start_scan(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let open = match self.source.snapshot() {
            Err(error) if error.is_busy() => {
                self.scan_due = true;
                return Ok(());
            }
            other => other?,
        };
        worker.pass += 1;
        let pass = worker.pass;
        // Rows that have no line yet are not unknown ones.
        let shapes = || {
            let shapes = self.source.shapes().iter();
            shapes.filter(|shape| self.live.contains(&shape.name))
        };
        let incomparable = shapes().filter_map(|shape| {
            let why = match self.aside.contains(&shape.name) {
                true => "its rows cannot be read",
                false if shape.key.is_empty() => {
                    "nothing tells its rows apart: give it a key again"
                }
                false => return None,
            };
            let (table, why) = (shape.name.clone(), why.to_owned());
            Some(UnreadStatus { table, why })
        });
        let incomparable: Vec<UnreadStatus> = incomparable.collect();
        let tables: Vec<ScanTable> = shapes()
            .filter(|shape| incomparable.iter().all(|other| other.table != shape.name))
            .map(|shape| ScanTable {
                key: self.trail.keys().table(&shape.name),
                keyless: shape.keyless,
                columns: self.columns.of(&shape.name).clone(),
                name: shape.name.clone(),
            })
            .collect();
        let scanned = tables.iter().map(|table| table.name.clone()).collect();
        let commands = worker.commands.clone();
        let look = move || {
            let mut judge = AtTrail {
                pass,
                commands: &commands,
            };
            let seen = open().and_then(|mut snapshot| look(&mut *snapshot, &tables, &mut judge));
            // Without a guardian nobody is waiting.
            let _ = commands.send(Command::Looked { pass, seen });
        };
        // Before the snapshot is taken: what changes from now on is not judged.
        self.incidents.begin_scan();
        let replies = std::mem::take(&mut self.scan_replies);
        self.scanning = Some(Pass {
            number: pass,
            begun_at: self.trail.state().next_seq(),
            scanned,
            touched: Touched::since(self.rewound_at()),
            replies,
            incomparable,
            suspects: None,
            seen: None,
        });
        std::thread::Builder::new()
            .name(format!("scan-{}", worker.parts.source.name))
            .spawn(look)
            .map_err(StartError::Thread)?;
        Ok(())
    }

    /// How far the trail must have come before what was seen is judged: PostgreSQL shows
    /// a table that was truncated meanwhile as empty to older snapshots too.
    fn judged_at(&mut self, look: &Look) -> Result<Position, SourceError> {
        match self.source.newest() {
            // The outbox has one writer at a time, and shows no later truncation.
            Err(error) if error.is_busy() => Ok(look.position),
            newest => Ok(newest?.max(look.position)),
        }
    }

    /// A pass is begun anew for whoever waits for it, if it is the one under way.
    pub(super) fn scan_anew(&mut self, number: u64) {
        if let Some(pass) = self.scanning.take_if(|pass| pass.number == number) {
            self.scan_replies.extend(pass.replies);
            self.scan_due = true;
        }
    }

    /// The pass under way has ended.
    pub(super) fn looked(
        &mut self,
        worker: &mut Worker,
        pass: u64,
        seen: Result<Option<Look>, SourceError>,
    ) -> Result<(), Ended> {
        let until = |look: Look| Ok((self.judged_at(&look)?, look));
        let seen = seen.and_then(|look| look.map(until).transpose());
        let trouble = match seen {
            Ok(Some((until, look))) => {
                let refused = look.unread.iter().filter(|(_, error)| error.is_refused());
                for (table, error) in refused {
                    // What nobody looks at, somebody may change.
                    let text = format!("rows are not compared any more: {error}");
                    let finding = Finding {
                        table: Some(table.clone()),
                        ..Finding::general(Code::CaptureWeakened, text)
                    };
                    self.finding(worker, finding)?;
                }
                if let Some(pass) = &mut self.scanning {
                    pass.seen = Some((look, until));
                }
                return Ok(());
            }
            Err(error) if error.is_not_guarded() => {
                // Once it is known what became of the table.
                self.scan_anew(pass);
                self.next.fingerprint = 0;
                return Ok(());
            }
            // It got no answer while rows were written.
            Ok(None) => {
                self.scan_anew(pass);
                return Ok(());
            }
            Err(error) => why(&error),
        };
        tracing::warn!(error = %trouble, "scan failed");
        self.cannot_scan(worker, &trouble)?;
        worker.unscanned = Some(trouble.clone());
        self.try_again();
        self.show(worker);
        for reply in self
            .scanning
            .take()
            .into_iter()
            .flat_map(|pass| pass.replies)
        {
            let _ = reply.send(Err(trouble.clone()));
        }
        Ok(())
    }

    /// A pass failed as a whole: it is tried again soon, and if that goes on for as long as
    /// a source may be unwatched, it is a finding. Whoever has each pass fail wants something
    /// not to be looked at.
    fn cannot_scan(&mut self, worker: &mut Worker, trouble: &str) -> Result<(), Ended> {
        let now = (worker.parts.clock)();
        let alarm_us = worker.parts.tuning.unwatched_alarm_s.max(1) * SECOND_US;
        // Some times before it is one.
        self.next.scan = self.next.scan.min(now + alarm_us / 6);
        let failing = worker.failing.get_or_insert(Failing {
            since: now,
            times: 0,
            is_told: false,
        });
        failing.times += 1;
        let lasts = failing.times >= FAILED && now.saturating_sub(failing.since) >= alarm_us;
        if failing.is_told || !lasts {
            return Ok(());
        }
        failing.is_told = true;
        let since = Second(failing.since / SECOND_US);
        let text = format!("rows are not compared any more, since {since}: {trouble}");
        let finding = Finding {
            about: self.trail.state().next_seq().checked_sub(1),
            ..Finding::general(Code::CaptureWeakened, text)
        };
        self.finding(worker, finding)?;
        self.trail.commit()?;
        Ok(())
    }

    /// Judges what a pass has seen by now, and ends it after the last of it.
    pub(super) fn judge_scan(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let Some(mut pass) = self.scanning.take() else {
            return Ok(());
        };
        self.judge_suspects(worker, &mut pass)?;
        match self.judge_look(worker, &mut pass)? {
            Some(look) => self.end_scan(worker, pass, &look),
            None => {
                self.scanning = Some(pass);
                Ok(())
            }
        }
    }

    /// Judges rows that the pass waits with, once everything that they can show is in the
    /// trail.
    fn judge_suspects(&mut self, worker: &mut Worker, pass: &mut Pass) -> Result<(), Ended> {
        let reached = self.position;
        let known = |(suspects, _): &mut (Suspects, _)| suspects.position <= reached;
        let Some((mut suspects, judged)) = pass.suspects.take_if(known) else {
            return Ok(());
        };
        // Lines are read from the disk.
        self.trail.commit()?;
        loop {
            let patients = &self.patients;
            let whose = |table: &str, row: &Row| patients.of(table, row).list();
            let (trail, columns) = (&mut self.trail, &self.columns);
            let Some((finding, patient)) = suspects.judge(trail, &pass.touched, columns, whose)?
            else {
                break;
            };
            self.finding_of(worker, finding, patient)?;
        }
        self.trail.commit()?;
        self.show(worker);
        // A pass that was given up does not wait.
        let _ = judged.send(());
        Ok(())
    }

    /// Judges some of what a pass saw in all, once everything that it can have seen is in
    /// the trail. Gives it after the last.
    fn judge_look(&mut self, worker: &mut Worker, pass: &mut Pass) -> Result<Option<Look>, Ended> {
        let reached = self.position;
        let Some((mut look, until)) = pass.seen.take_if(|(_, until)| *until <= reached) else {
            return Ok(None);
        };
        self.trail.commit()?;
        for _ in 0..JUDGED {
            let patients = &self.patients;
            let whose = |table: &str, row: &Row| patients.of(table, row).list();
            let (trail, columns) = (&mut self.trail, &self.columns);
            let Some((finding, patient)) = look.judge(trail, &pass.touched, columns, whose)? else {
                return Ok(Some(look));
            };
            self.finding_of(worker, finding, patient)?;
        }
        // The rest after what is committed meanwhile.
        pass.seen = Some((look, until));
        Ok(None)
    }

    /// All that a pass saw is judged.
    fn end_scan(&mut self, worker: &mut Worker, pass: Pass, look: &Look) -> Result<(), Ended> {
        for finding in self.out_of_reach()? {
            self.finding(worker, finding)?;
        }
        self.trail.commit()?;
        let mut unread = pass.incomparable;
        unread.extend(look.unread.iter().map(|(table, error)| UnreadStatus {
            table: table.clone(),
            why: why(error),
        }));
        self.settle(&pass.scanned, &unread)?;
        self.try_again();
        worker.failing = None;
        let troubles = unread.iter().map(|unread| {
            let UnreadStatus { table, why } = unread;
            format!("rows of {table} are not compared: {why}")
        });
        worker.unscanned = troubles.reduce(|all, one| format!("{all}. {one}"));
        if let Some(trouble) = &worker.unscanned {
            tracing::warn!(error = %trouble, "not all tables were scanned");
        }
        let (now, rows) = ((worker.parts.clock)(), look.rows);
        self.show_with(worker, |s| {
            if unread.is_empty() {
                s.verified_up_to = Some(Second(now / SECOND_US).to_string());
                s.rows_verified = rows;
                s.compared_before = pass.begun_at;
            }
            s.unread.clone_from(&unread);
        });
        let is_row = |f: &FindingStatus| OF_LIVE_ROWS.iter().any(|code| code.as_str() == f.code);
        let open = self.findings().into_iter().filter(|f| f.open && is_row(f));
        let findings: Vec<_> = open.collect();
        let summary = ScanSummary {
            rows,
            more: self.incidents.open(&OF_LIVE_ROWS) - findings.len() as u64,
            findings,
            unread,
        };
        for reply in pass.replies {
            let _ = reply.send(Ok(summary.clone()));
        }
        Ok(())
    }

    /// Closes what a pass no longer found, of the tables that it looked at and could read.
    fn settle(&mut self, scanned: &HashSet<String>, unread: &[UnreadStatus]) -> Result<(), Ended> {
        // Of a table that is no more, and of which nothing sealed is left, nothing can be.
        let is_over = |table: &str| {
            let is_left = |_: &_, leaf: &Leaf| leaf.row.is_some().then_some(());
            let is_guarded = self.source.shapes().iter().any(|shape| shape.name == table);
            let left = self.trail.state().records(table, is_left);
            !is_guarded && left.is_ok_and(|left| left.is_empty())
        };
        let is_judged = |table: &str| {
            is_over(table)
                || (scanned.contains(table) && unread.iter().all(|unread| unread.table != table))
        };
        for seq in self.incidents.settle(is_judged) {
            match self.open_finding(seq) {
                Ok(Some((finding, found_at))) => self.incidents.show(finding, found_at, seq),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(line = seq, %error, "a finding is only counted: its line cannot be read");
                    break;
                }
            }
        }
        self.counted_rows = self.incidents.counted_rows().into();
        Ok(())
    }
}

/// Why rows cannot be read, and what to do about it.
fn why(error: &SourceError) -> String {
    match error.is_damage() {
        true => format!(
            "{error}. The database's files are damaged: restore the table from a backup and scan again"
        ),
        false => words(error),
    }
}
