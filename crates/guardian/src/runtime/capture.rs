//! What happened, in the order in which the source tells it.

use super::{BATCH, COMMIT_US, Ended, POSITION, Receipt, SECOND_US, Session, SubmitError, Worker};
use crate::actors::Judged;
use crate::config::MANY_PATIENTS_MAX;
use crate::patients::Owner;
use crate::translate::{self, About, CLOCKS_DIFFER_US, Message, Resolved, Whose, text_key};
use pitser_capture::event::{Captured, Change, Op as Changed, Row};
use pitser_capture::fhir::{self, Patient as FhirPatient};
use pitser_capture::{Cell, Key, Position, Shape};
use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::line::{Gap, Op, Patient, Timestamp};
use pitser_monitor::{Expected, Finding, Kind, Sealed, Versions, expected, key_cells, key_of};
use pitser_trail::{Body, Draft, TrailError};
use std::collections::HashSet;
use std::sync::Arc;

/// What the keys of tables were when that was asked last.
pub(super) struct AskedKeys {
    /// In this second, so often.
    second: u64,
    times: u32,
    /// As they were noticed, and as they are.
    known: Vec<Shape>,
    shapes: Vec<Shape>,
}

/// Of a table, columns of the key under which the trail has its rows, and of the one that
/// they have.
struct OtherKeys {
    former: Vec<String>,
    now: Vec<String>,
    /// There was no other one between the two.
    is_first: bool,
}

/// What was wrong with a row that was changed.
const NOT_THE_SEALED: &str = "the row that was changed was not the one that was sealed";
const NEVER_SEALED: &str = "the row that was changed was never sealed";

/// How often that is asked in a second: whoever changes rows that were never sealed may do
/// it very often.
const ASKED: u32 = 8;

/// Of so many rows that have equals it is remembered how many there are.
const COPIES: usize = 1 << 16;
/// Lines of one truncation that are one event.
const TRUNCATED: usize = 500;

/// Changes in a row that cannot be read, for one reason.
pub(super) struct Unread {
    /// The table, if that can be read.
    table: Option<String>,
    why: &'static str,
    /// The last of them.
    upto: Position,
    changes: u64,
}

impl Unread {
    fn new(table: Option<String>, why: &'static str, pos: Position) -> Self {
        Self {
            table,
            why,
            upto: pos,
            changes: 1,
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.table, self.why) == (&other.table, other.why)
    }
}

impl Session {
    /// Takes the next batch of what was committed; `true` if the source may have
    /// had more to tell at once. It is durable soon: the source comes again with what
    /// it was not acknowledged.
    pub(super) fn capture(&mut self, worker: &mut Worker) -> Result<bool, Ended> {
        let mut steps = std::mem::take(&mut self.begun);
        if steps.is_empty() {
            steps = match self.source.poll(self.position, BATCH) {
                Err(error) if error.is_busy() => return Ok(false),
                other => other?,
            };
            if !steps.is_empty() || !self.source.is_stream() {
                self.end_outage(worker)?;
            }
        }
        let full = steps.len() >= BATCH;
        self.more = !steps.is_empty();
        self.unshown |= self.more;
        for step in steps {
            self.step(worker, step)?;
        }
        self.flush(worker)?;
        // A pass over the rows reads lines from the disk.
        let is_due = (worker.parts.clock)() >= self.next.commit || self.scanning.is_some();
        if is_due && !full {
            self.commit(worker)?;
        }
        Ok(full)
    }

    /// Makes what was taken durable, and shows it. Nothing is acknowledged by this,
    /// so that it need not be done for each batch: the server that is guarded waits for
    /// the same disk.
    pub(super) fn commit(&mut self, worker: &Worker) -> Result<(), Ended> {
        if std::mem::take(&mut self.unshown) {
            self.trail.commit()?;
            self.next.commit = (worker.parts.clock)() + COMMIT_US;
            self.show(worker);
        }
        Ok(())
    }

    fn step(&mut self, worker: &Worker, step: Captured) -> Result<(), Ended> {
        if !matches!(step, Captured::Unreadable { .. }) {
            self.end_unread(worker)?;
        }
        match step {
            Captured::Change(change) => return self.take(worker, change),
            Captured::Mark { pos } => {
                self.end_transaction(worker)?;
                // That of a transaction that is told anew may be behind.
                self.position = self.position.max(pos);
            }
            Captured::Gap { after, upto, what } => {
                self.end_transaction(worker)?;
                let finding = Finding::general(Code::CaptureGap, what);
                self.gap(worker, (after, upto), None, Some(finding))?;
            }
            Captured::Rewound { expected, found } => {
                self.end_transaction(worker)?;
                let text = "the database counts its changes from an earlier position: it was rewound or replaced";
                let finding = Finding::general(Code::DatabaseRewound, text);
                self.gap(worker, (expected, found), None, Some(finding))?;
            }
            Captured::Unreadable { pos, .. } if self.is_written(pos) => {}
            Captured::Unreadable { pos, table, why } => {
                self.write_open(worker)?;
                self.unreadable(worker, Unread::new(table, why, pos))?;
            }
            Captured::Renamed { table, was } => {
                // What was changed past capture meanwhile, a look at the rows tells.
                self.scan_due = true;
                let text = format!(
                    "table {table} was called {was} when rows of it were changed: lines have the name that it had when they \
                     were read"
                );
                let finding = Finding {
                    table: Some(table),
                    ..Finding::general(Code::SchemaChanged, text)
                };
                self.finding(worker, finding)?;
            }
            other => {
                let name = &worker.parts.source.name;
                tracing::warn!(source = %name, step = ?other, "a step of a kind that this version does not know");
            }
        }
        Ok(())
    }

    /// Keeps a change until its transaction has said more about it.
    fn take(&mut self, worker: &Worker, change: Change) -> Result<(), Ended> {
        if !self.open.is(change.tx) {
            self.end_transaction(worker)?;
        }
        let is_written = self.is_written(change.pos);
        if self.open.is_empty() && !is_written {
            self.compare_clocks(worker, &change)?;
        }
        self.open.begin(change.tx);
        if is_written {
            return self.recall(&change);
        }
        if self.open.keep(change) {
            self.write_open(worker)?;
        }
        Ok(())
    }

    /// Commits come in their order: one that says to be far older than those before it, or
    /// yet to come, was dated by somebody, or a clock was set. Told once, until it is so
    /// no longer.
    fn compare_clocks(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let at: Option<Timestamp> = change.at.parse().ok();
        let at = at.map_or(0, |at| at.micros());
        let now = (worker.parts.clock)();
        let is_ahead = at > now + CLOCKS_DIFFER_US;
        let is_behind = self
            .committed_at
            .is_some_and(|before| at + CLOCKS_DIFFER_US < before);
        let why = match (is_ahead, is_behind) {
            (true, _) if !self.is_ahead => {
                "is yet to come, by this machine's clock: its line has ours"
            }
            (_, true) => "is long before that of the transaction before it",
            _ => "",
        };
        self.is_ahead = is_ahead;
        if !is_ahead {
            self.committed_at = Some(at);
        }
        if why.is_empty() {
            return Ok(());
        }
        let text = format!(
            "transaction {} says that it was committed at {}, which {why}: its session has set that time, or a \
             clock was set",
            change.tx, change.at
        );
        let finding = Finding {
            table: Some(change.table.clone()),
            ..Finding::general(Code::ClockDisagrees, text)
        };
        self.event_findings(worker, Vec::new(), self.position, [finding])?;
        Ok(())
    }

    /// Writes what is left of the transaction, and what is wrong with it.
    fn end_transaction(&mut self, worker: &Worker) -> Result<(), Ended> {
        self.write_open(worker)?;
        if self.open.is_wrong() {
            // What a finding is about has its number once it is written.
            self.flush(worker)?;
        }
        for (finding, patient) in self.open.end() {
            self.finding_of(worker, finding, patient)?;
        }
        Ok(())
    }

    /// Writes the changes that were kept, by what they say together. The last of them
    /// wait for those of the next transactions, if any were told already.
    fn write_open(&mut self, worker: &Worker) -> Result<(), Ended> {
        let changes = self.open.take();
        for change in &changes {
            let changed = match self.actors.compares(change) {
                true => self.changed(worker, change)?,
                false => None,
            };
            let changed = changed.as_deref();
            self.actors.witness(&mut self.open.witness, change, changed);
        }
        self.learn_targets(&changes);
        let mut left = None;
        let mut changes = changes.into_iter().peekable();
        while let Some(mut change) = changes.next() {
            let pos = change.pos;
            if change.keyless {
                self.flush(worker)?;
                self.number(&mut change)?;
            }
            let record = self.record_of(&change);
            if self.queue.is_about(&record) {
                self.flush(worker)?;
            }
            // A row under a new key, without the large values that it took along.
            let is_half = changes.peek().is_some_and(|next| moves(&change, next));
            let leaving = match is_half {
                true => self.sealed(&change.table, &record)?,
                false => None,
            };
            match change.op {
                Changed::Truncate => {
                    self.flush(worker)?;
                    self.copies.clear();
                    self.truncate(worker, &change)?;
                }
                _ => self.change(worker, change, record, left.take())?,
            }
            left = leaving;
            self.position = pos;
        }
        Ok(())
    }

    /// Whether rows of this table, as they are now, may be equal.
    pub(super) fn is_keyless(&self, table: &str) -> bool {
        let mut shapes = self.source.shapes().iter();
        shapes.any(|shape| shape.keyless && shape.name == table)
    }

    /// Tells equal rows apart: a new one takes the first number that is free, a
    /// deleted one the last that is not.
    fn number(&mut self, change: &mut Change) -> Result<(), TrailError> {
        let record_of = |session: &Self, nth: u64| {
            let key = key_cells(&change.key.copy(nth));
            session.trail.record_key(Some(&change.table), &key)
        };
        let first = record_of(self, 1);
        let there = match self.copies.get(&first) {
            Some(there) => *there,
            None => {
                let mut there = 0;
                loop {
                    let record = record_of(self, there + 1);
                    let known = self.trail.state().record_leaf(&change.table, &record)?;
                    if known.is_none_or(|leaf| leaf.row.is_none()) {
                        break there;
                    }
                    there += 1;
                }
            }
        };
        let (nth, left) = match change.op {
            Changed::Create | Changed::Baseline => (there + 1, there + 1),
            Changed::Delete => (there.max(1), there.saturating_sub(1)),
            Changed::Update | Changed::Truncate => (there.max(1), there),
        };
        if self.copies.len() >= COPIES {
            self.copies.clear();
        }
        self.copies.insert(first, left);
        change.key = change.key.copy(nth);
        Ok(())
    }

    /// Writes one change. `left` is the version that the same row had under the
    /// key that it was just deleted from.
    fn change(
        &mut self,
        worker: &Worker,
        mut change: Change,
        record: Bytes32,
        left: Option<Sealed>,
    ) -> Result<(), Ended> {
        let replaced = self.compare_old(worker, &change, &record)?;
        let sealed = match change.op {
            // The row that an update replaces, where the engine does not send it.
            Changed::Update if change.old.is_none() || !change.unsent.is_empty() => {
                self.sealed(&change.table, &record)?
            }
            _ => None,
        };
        let replaced = match replaced {
            None if change.op == Changed::Create => {
                self.compare_absent(worker, &change, &record)?
            }
            // Nearly always there is a sealed row, and nothing was found in the table.
            None if is_of_row(change.op)
                && change.old.is_none()
                && (sealed.is_none() || self.incidents.has_open(&altered_in(&change))) =>
            {
                self.compare_known(worker, &change, &record)?
            }
            replaced => replaced,
        };
        let known = sealed.as_ref().or(left.as_ref());
        if let Some(known) = known.filter(|_| !change.unsent.is_empty()) {
            self.learn_columns(&change, known)?;
        }
        let columns = self.columns.of(&change.table);
        if !fill_in(&mut change, known, columns) {
            // Its number was counted.
            self.copies.clear();
            let why = "a large value that the update left alone was not sent, and its sealed version is not known: set REPLICA IDENTITY FULL";
            let unread = Unread::new(Some(change.table), why, change.pos);
            self.unreadable(worker, unread)?;
            return self.end_unread(worker);
        }
        let changed = changed_from(&change, sealed.as_ref(), columns);
        let judged = self
            .actors
            .judge(&change, changed.as_deref(), &self.open.witness);
        let Judged { actor, doubt } = judged;
        let all = || {
            let row = change.new.as_ref().or(change.old.as_ref());
            row.map_or_else(Default::default, |row| Arc::clone(&row.columns))
        };
        let about = About {
            whose: self.whose(&change, &record)?,
            actor,
            columns: changed.map_or_else(all, Into::into),
            image: self.keeps_image(worker, &change.table),
        };
        self.learn(&change.table, &change.key, change.new.as_ref());
        let suspect = match doubt {
            Some(doubt) if !self.open.is_doubted(&change.table, &doubt) => {
                let finding = Finding {
                    table: Some(change.table.clone()),
                    record: Some(record),
                    key: Some(change.key.clone()),
                    columns: about.columns.to_vec(),
                    ..Finding::general(doubt.code, String::new())
                };
                Some((doubt, finding))
            }
            _ => None,
        };
        let (table, pos) = (change.table.clone(), change.pos);
        let drafts = translate::change(change, &worker.parts.source.name, about, self.now(worker));
        let Some(line) = drafts.last() else {
            return Ok(());
        };
        let committed_at = Some(line.at.micros());
        if let Some(finding) = replaced {
            let patient = line.patient.clone();
            let line = self.event_replaced(worker, drafts, pos, (finding, patient.clone()))?;
            if let Some((doubt, finding)) = suspect {
                let about = Some(line);
                self.open
                    .suspect(doubt, Finding { about, ..finding }, patient);
            }
            return Ok(());
        }
        let patient = suspect.as_ref().and(line.patient.clone());
        let line = self.queue(worker, drafts, &table, record, committed_at)?;
        // What may be wrong with the change; it is told when its transaction ends.
        if let Some((doubt, finding)) = suspect {
            self.open.suspect_waiting(doubt, finding, patient, line);
        }
        Ok(())
    }

    /// All rows of a table are gone at once: a line for each, since each stands
    /// in the list of its own patient.
    fn truncate(&mut self, worker: &Worker, change: &Change) -> Result<(), Ended> {
        let Judged { actor, doubt } = self.actors.judge(change, None, &self.open.witness);
        let records = self.trail.state().records(&change.table, |record, leaf| {
            leaf.row.is_some().then_some(*record)
        });
        let gone: Vec<Bytes32> = records.map_err(TrailError::from)?;
        let mut first = None;
        let (most, last) = gone.split_at(gone.len().saturating_sub(1) / TRUNCATED * TRUNCATED);
        for part in most.chunks(TRUNCATED) {
            // Until its last line is durable, the truncation is to come again.
            let drafts = self.truncated_rows(worker, change, part, actor.clone(), self.position)?;
            if !drafts.is_empty() {
                let line = self.append(worker, drafts)?;
                first.get_or_insert(line);
            }
        }
        self.open_times.push((worker.parts.clock)());
        // Nor can one of the last lines be durable without what they mean.
        let drafts = self.truncated_rows(worker, change, last, actor, change.pos)?;
        let text = format!("the table was truncated: {} rows are gone", gone.len());
        let of_table = |code, text, about| Finding {
            table: Some(change.table.clone()),
            about,
            ..Finding::general(code, text)
        };
        let finding = of_table(Code::Truncated, text, first);
        let line = self.event_findings(worker, drafts, change.pos, [finding])?;
        if let Some(doubt) = doubt
            && !self.open.is_doubted(&change.table, &doubt)
        {
            let finding = of_table(doubt.code, String::new(), first.or(Some(line)));
            self.open.suspect(doubt, finding, None);
        }
        Ok(())
    }

    fn truncated_rows(
        &mut self,
        worker: &Worker,
        change: &Change,
        records: &[Bytes32],
        actor: Option<pitser_capture::Actor>,
        pos: Position,
    ) -> Result<Vec<Draft>, Ended> {
        let mut drafts = Vec::new();
        for record in records {
            drafts.extend(self.truncated_row(worker, change, record, actor.clone(), pos)?);
        }
        Ok(drafts)
    }

    /// The line of one row of a truncated table; none if its key was destroyed.
    fn truncated_row(
        &mut self,
        worker: &Worker,
        change: &Change,
        record: &Bytes32,
        actor: Option<pitser_capture::Actor>,
        pos: Position,
    ) -> Result<Option<Draft>, Ended> {
        let sealed = Sealed::of(&mut self.trail, &change.table, record)?;
        let Some(key) = sealed.and_then(|sealed| sealed.content.key) else {
            return Ok(None);
        };
        let before = self.known_patient(&change.table, record)?;
        let gone = Change {
            pos,
            op: Changed::Delete,
            key: key_of(key),
            ..change.clone()
        };
        let about = About {
            whose: Whose {
                before,
                after: None,
            },
            actor,
            columns: Arc::default(),
            image: true,
        };
        let drafts = translate::change(gone, &worker.parts.source.name, about, self.now(worker));
        Ok(drafts.into_iter().next_back())
    }

    /// Whether the vault keeps the rows of this table.
    pub(super) fn keeps_image(&self, worker: &Worker, table: &str) -> bool {
        worker.parts.source.vault || self.actors.is_lookup(table)
    }

    /// Remembers what other rows will be looked up by.
    pub(super) fn learn(&mut self, table: &str, key: &Key, row: Option<&Row>) {
        self.learn_owner(table, key, row);
        if let (Some(value), Some(row)) = (translate::key_value(key), row) {
            self.actors.learn_row(table, value, row);
        }
    }

    /// Remembers whose a row is that others point at.
    fn learn_owner(&mut self, table: &str, key: &Key, row: Option<&Row>) {
        if self.patients.is_target(table)
            && let Some(value) = translate::key_value(key)
        {
            // Whose a row is that still leads to one that is gone, nobody can tell.
            match row.map(|row| self.patients.of(table, row)) {
                Some(owner) => self.patients.learn(table, value, owner),
                None => self.patients.forget(table, value),
            }
        }
    }

    /// Remembers whose rows are that others of these changes may point at: a row may come
    /// before the one that says whose it is, and a line keeps what held at the commit.
    fn learn_targets(&mut self, changes: &[Change]) {
        let says_whose = |change: &&Change| {
            self.patients.is_target(&change.table)
                && change.new.is_some()
                && change.unsent.is_empty()
        };
        let mut found: Vec<&Change> = changes.iter().filter(says_whose).collect();
        // Of one row the last version counts.
        found.sort_by_key(|change| self.patients.steps(&change.table));
        for change in found {
            self.learn_owner(&change.table, &change.key, change.new.as_ref());
        }
    }

    /// Whose record a change is about: by the trail before, by the row after.
    fn whose(&mut self, change: &Change, record: &Bytes32) -> Result<Whose, TrailError> {
        let row = change.new.as_ref().or(change.old.as_ref());
        let after = row.map_or(Owner::Nobody, |row| self.patients.of(&change.table, row));
        let pseudonym = match &after {
            Owner::Patient(id) => Some(self.trail.keys().pseudonym(id)),
            Owner::Pseudonym(pseudonym) => Some(Patient::Pseudonym(*pseudonym)),
            Owner::Nobody | Owner::Unknown => None,
        };
        let known = match pseudonym {
            Some(patient) => self.trail.state().is_of(&change.table, record, &patient)?,
            None => Some(false),
        };
        let before = match known {
            // Nearly always.
            Some(true) => after.clone().list(),
            None => None,
            Some(false) => self.known_patient(&change.table, record)?,
        };
        let after = after.list();
        Ok(Whose { before, after })
    }

    fn record_of(&self, change: &Change) -> Bytes32 {
        self.trail
            .record_key(Some(&change.table), &key_cells(&change.key))
    }

    /// The version of a record that was sealed before a change.
    fn sealed(&mut self, table: &str, record: &Bytes32) -> Result<Option<Sealed>, TrailError> {
        Sealed::of(&mut self.trail, table, record)
    }

    /// The columns that an update changed, where that is known.
    fn changed(&mut self, worker: &Worker, change: &Change) -> Result<Option<Vec<String>>, Ended> {
        let sealed = match change.old {
            Some(_) => None,
            None => {
                let record = self.record_of(change);
                if self.queue.is_about(&record) {
                    self.flush(worker)?;
                }
                self.sealed(&change.table, &record)?
            }
        };
        let columns = self.columns.of(&change.table);
        Ok(changed_from(change, sealed.as_ref(), columns))
    }

    /// The row that a change replaces must be the one that was sealed last: what was done
    /// past the engine cannot be hidden by a later change.
    fn compare_old(
        &mut self,
        worker: &Worker,
        change: &Change,
        record: &Bytes32,
    ) -> Result<Option<Finding>, Ended> {
        let Some(old) = &change.old else {
            return Ok(None);
        };
        let (nonce, row) = match expected(&mut self.trail, &change.table, record)? {
            Expected::Row { nonce, row } => (nonce, row),
            Expected::Erased => return Ok(None),
            Expected::Unknown => return self.never_sealed(worker, change, record),
        };
        if self.columns.of(&change.table).open(&nonce, &row, old) {
            return Ok(None);
        }
        let sealed = self.sealed(&change.table, record)?;
        let columns = match &sealed {
            None => Vec::new(),
            Some(sealed) => match sealed.altered(old, self.columns.of(&change.table)) {
                None => return Ok(None),
                Some(columns) => columns,
            },
        };
        // The record may be that of another row.
        if !change.keyless && has_null(change) {
            return Ok(None);
        }
        if !change.keyless
            && let Some(keys) = self.other_keys(worker, change)?
        {
            return self.compare_former(change, record, &keys);
        }
        let finding = replaced(change, record, NOT_THE_SEALED);
        Ok(Some(Finding { columns, ..finding }))
    }

    /// The same of a table of which the trail has the rows under other keys: a row that is
    /// sealed under neither, though its former key can be told, is not one of them. Keys of as
    /// many columns may name each other's records, and of one that was there for a moment
    /// nothing is known.
    fn compare_former(
        &mut self,
        change: &Change,
        record: &Bytes32,
        keys: &OtherKeys,
    ) -> Result<Option<Finding>, Ended> {
        if !keys.is_first || keys.former.len() == keys.now.len() {
            return Ok(None);
        }
        let cell = |column: &String| match &change.old {
            Some(old) => old.get(column).cloned(),
            // Columns that are in no key may just have been changed.
            None => {
                let at = keys.now.iter().position(|it| it == column)?;
                change.key.cells().get(at).cloned()
            }
        };
        let former = keys.former.iter().map(cell).collect::<Option<Vec<_>>>();
        let is_known = |cells: &Vec<Cell>| cells.iter().all(|cell| cell.expose().is_some());
        let Some(former) = former.filter(is_known) else {
            return Ok(None);
        };
        let former = Key::new(former);
        let was = self.record_under(&change.table, &former);
        let text = match (expected(&mut self.trail, &change.table, &was)?, &change.old) {
            (Expected::Unknown, _) => NEVER_SEALED,
            (Expected::Row { .. }, Some(old))
                if !self.is_sealed_as(&change.table, &former, old)? =>
            {
                NOT_THE_SEALED
            }
            (Expected::Row { .. } | Expected::Erased, _) => return Ok(None),
        };
        Ok(Some(replaced(change, record, text)))
    }

    /// The same of a change that came without the row that it replaces: what can be said is
    /// that there was one, and whether it had been found to be another than the one that was
    /// sealed, which nobody could find any more.
    fn compare_known(
        &mut self,
        worker: &Worker,
        change: &Change,
        record: &Bytes32,
    ) -> Result<Option<Finding>, Ended> {
        let leaf = self.trail.state().record_leaf(&change.table, record);
        let leaf = leaf.map_err(TrailError::from)?;
        let Some((leaf, row)) = leaf.and_then(|leaf| Some((leaf, leaf.row?))) else {
            return self.never_sealed(worker, change, record);
        };
        // Nearly always.
        if leaf.last_seq == row.seq
            || !self.is_found_altered(change, record)?
            || self.other_keys(worker, change)?.is_some()
        {
            return Ok(None);
        }
        let text = "the row that was changed had been found not to be the one that was sealed";
        Ok(Some(replaced(change, record, text)))
    }

    /// Whether a finding says that a row is not as it was sealed, and no scan has found it
    /// mended since.
    fn is_found_altered(&self, change: &Change, record: &Bytes32) -> Result<bool, TrailError> {
        for line in self.trail.record_lines(&change.table, record)? {
            let line = line?;
            let code = line.finding.as_ref().map(|finding| finding.code);
            match line.op {
                Op::Finding if code == Some(Code::RowDiffers) => {
                    return Ok(self.incidents.is_open(&altered_in(change), line.seq));
                }
                Op::Finding | Op::Accept | Op::Read => {}
                _ => break,
            }
        }
        Ok(false)
    }

    /// Whether a sealed row stands where a change is.
    fn stands(&self, change: &Change, record: &Bytes32) -> Result<bool, TrailError> {
        let leaf = self.trail.state().record_leaf(&change.table, record)?;
        Ok(leaf.is_some_and(|leaf| leaf.row.is_some()))
    }

    /// A row that comes to be takes the place of none: one that was sealed and stands there
    /// must have been removed past the engine.
    fn compare_absent(
        &mut self,
        worker: &Worker,
        change: &Change,
        record: &Bytes32,
    ) -> Result<Option<Finding>, Ended> {
        if !self.stands(change, record)?
            || !self.are_all_sealed(change)
            || self.other_keys(worker, change)?.is_some()
        {
            return Ok(None);
        }
        let Expected::Row { nonce, row } = expected(&mut self.trail, &change.table, record)? else {
            return Ok(None);
        };
        let columns = self.columns.of(&change.table);
        // An old copy tells again what it was when it was made.
        let is_same = |new: &Row| columns.open(&nonce, &row, new);
        if change.new.as_ref().is_some_and(is_same) {
            return Ok(None);
        }
        let text = "a row was created in the place of a sealed one, which nothing has removed";
        Ok(Some(replaced(change, record, text)))
    }

    /// What it means that a row was changed of which there is no sealed version.
    fn never_sealed(
        &mut self,
        worker: &Worker,
        change: &Change,
        record: &Bytes32,
    ) -> Result<Option<Finding>, Ended> {
        if !is_of_row(change.op) || !self.are_all_sealed(change) {
            return Ok(None);
        }
        match self.other_keys(worker, change)? {
            Some(keys) => self.compare_former(change, record, &keys),
            None => Ok(Some(replaced(change, record, NEVER_SEALED))),
        }
    }

    /// Whether each row of the table that a change is of has a sealed version, as the only
    /// one of its key.
    fn are_all_sealed(&self, change: &Change) -> bool {
        self.live.contains(&change.table) && (change.keyless || !has_null(change))
    }

    /// Where what the trail has of a table stands under other keys than its rows have:
    /// another key was noticed and not carried through, or was not noticed yet. The
    /// catalogue is looked at each second only, and a few times more for this.
    fn other_keys(&mut self, worker: &Worker, change: &Change) -> Result<Option<OtherKeys>, Ended> {
        if let Some(former) = self.rekeyed.get(&change.table) {
            return Ok(Some(OtherKeys {
                former: former.clone(),
                now: self.key_of(&change.table).unwrap_or_default().to_vec(),
                is_first: !self.rekeyed_again.contains(&change.table),
            }));
        }
        let second = (worker.parts.clock)() / SECOND_US;
        let asked = self.asked_keys.take().filter(|it| it.second == second);
        let asked = match asked {
            Some(asked) if asked.times >= ASKED => asked,
            asked => {
                let Some(known) = self.source.shapes_in(&self.fingerprint) else {
                    return Ok(None);
                };
                let now = self.source.fingerprint()?;
                AskedKeys {
                    second,
                    times: asked.map_or(0, |it| it.times) + 1,
                    known,
                    shapes: self.source.shapes_in(&now).unwrap_or_default(),
                }
            }
        };
        let key = |shapes: &'_ [Shape]| {
            let shape = shapes.iter().find(|shape| shape.name == change.table);
            shape.map(|shape| shape.key.clone())
        };
        // A table that left the publication has not got another one.
        let keys = key(&asked.known).zip(key(&asked.shapes));
        let keys = keys.map(|(former, now)| OtherKeys {
            former,
            now,
            is_first: true,
        });
        self.asked_keys = Some(asked);
        Ok(keys.filter(|keys| keys.former != keys.now))
    }

    /// A hole in the source's account, or in that of one table: noted, with the finding that
    /// it is unless that was told, and all rows looked at.
    pub(super) fn gap(
        &mut self,
        worker: &Worker,
        (from, to): (Position, Position),
        table: Option<String>,
        finding: Option<Finding>,
    ) -> Result<(), Ended> {
        // Rows without a key are not compared before they have one.
        self.scan_due |= table.as_ref().is_none_or(|table| self.can_follow(table));
        let draft = Draft {
            table,
            body: Some(Box::new(Body::Gap(Gap {
                from: from.to_string(),
                to: to.to_string(),
            }))),
            ..Draft::new(
                Op::Gap,
                self.now(worker),
                &worker.parts.source.name,
                to.to_string(),
            )
        };
        // Counted from a beginning that is no more.
        self.scan_after = None;
        if to < self.position
            && let Some(pass) = self.scanning.take()
        {
            // It waits for a position that may never come.
            self.scan_replies.extend(pass.replies);
            self.scan_due = true;
        }
        self.event_findings(worker, vec![draft], to, finding)?;
        self.position = to;
        // Whoever starts with the lower number that it may have is not told of this again.
        self.trail.commit()?;
        self.keep_forgotten()?;
        if self.position < self.kept {
            // The old file must not prevail over the line, should we be killed between.
            let _ = std::fs::remove_file(self.trail.layout().dir().join(POSITION));
            self.write_position()?;
        }
        Ok(())
    }

    /// Keeps what cannot be read until something can: it is one hole.
    fn unreadable(&mut self, worker: &Worker, unread: Unread) -> Result<(), Ended> {
        match &mut self.unread {
            Some(open) if open.is_of(&unread) => {
                open.upto = unread.upto;
                open.changes += unread.changes;
                Ok(())
            }
            _ => {
                self.end_unread(worker)?;
                self.unread = Some(unread);
                Ok(())
            }
        }
    }

    /// Notes what could not be read. A table of which nothing can be read is found once.
    fn end_unread(&mut self, worker: &Worker) -> Result<(), Ended> {
        let Some(unread) = self.unread.take() else {
            return Ok(());
        };
        let Unread { table, why, .. } = &unread;
        let is_told = match table {
            Some(table) => !self.can_follow(table) && !self.untold.insert(table.clone()),
            None => false,
        };
        let what = match (&table, unread.changes) {
            (None, 1) => "a change cannot be read".to_owned(),
            (None, count) => format!("{count} changes cannot be read"),
            (Some(table), 1) => format!("a change of table {table} cannot be read"),
            (Some(table), count) => format!("{count} changes of table {table} cannot be read"),
        };
        let finding = Finding {
            table: table.clone(),
            ..Finding::general(Code::CaptureGap, format!("{what}: {why}"))
        };
        let hole = (self.position, unread.upto);
        let finding = Some(finding).filter(|_| !is_told);
        self.gap(worker, hole, unread.table, finding)
    }

    /// Whether a table's rows can be told apart; one that is not known here is not asked
    /// about.
    fn can_follow(&self, table: &str) -> bool {
        let mut shapes = self.source.shapes().iter();
        shapes.all(|shape| shape.name != table || !shape.key.is_empty())
    }

    pub(super) fn submit(
        &mut self,
        worker: &Worker,
        raw: &[u8],
    ) -> Result<Result<Receipt, SubmitError>, Ended> {
        let mut event = match fhir::parse_audit_event(raw) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.into())),
        };
        event.seen_from(&worker.parts.source.fhir_bases);
        let source = format!("{}/fhir", worker.parts.source.name);
        let id = self.trail.keys().message_id(&source, raw).to_string();
        let receipt = |known, lines| Receipt {
            id: id.clone(),
            known,
            lines,
            profile_violations: event.profile_violations.clone(),
        };
        if self.trail.has_message(&id)? {
            return Ok(Ok(receipt(true, 0)));
        }
        let message = Message {
            event: &event,
            raw,
            id: &id,
            source: &source,
            now: self.now(worker),
        };
        let many = worker.parts.tuning.many_patients.min(MANY_PATIENTS_MAX);
        let drafts = match message.is_about_many(many) {
            true => translate::about_many(&message),
            false => {
                let named = event.data.iter();
                let records = named.map(|it| match &it.base {
                    None => self.resolve(worker, &it.kind, &it.id),
                    Some(base) => Ok(translate::elsewhere(base, &it.kind, &it.id)),
                });
                let records = records.collect::<Result<_, _>>()?;
                let known = self.known_among(&event.patients)?;
                translate::audit_event(&message, records, |id| known.contains(id))
            }
        };
        let lines = drafts.len();
        self.append(worker, drafts)?;
        self.trail.commit()?;
        self.open_times.push((worker.parts.clock)());
        self.show(worker);
        Ok(Ok(receipt(false, lines)))
    }

    /// Identifiers of the patients among these of whom the trail has lines.
    fn known_among<'a>(&self, patients: &'a [FhirPatient]) -> Result<HashSet<&'a str>, TrailError> {
        let mut known = HashSet::new();
        for patient in patients {
            if let FhirPatient::Id { id, .. } = patient {
                let pseudonym = self.trail.keys().pseudonym(id);
                if self.trail.state().patient(&pseudonym)?.is_some() {
                    known.insert(id.as_str());
                }
            }
        }
        Ok(known)
    }

    /// What the guardian knows of a resource that an audit event names.
    pub(super) fn resolve(
        &mut self,
        worker: &Worker,
        kind: &str,
        id: &str,
    ) -> Result<Resolved, TrailError> {
        let guarded = worker.parts.source.resources.get(kind);
        let table = guarded.cloned().unwrap_or_else(|| kind.to_owned());
        let key = match guarded.and_then(|t| self.source.key(t, &[id]).ok()) {
            Some(key) => key_cells(&key),
            None => text_key(id),
        };
        let record = self.trail.record_key(Some(&table), &key);
        let patient = self.known_patient(&table, &record)?;
        Ok(Resolved {
            table,
            key,
            patient,
        })
    }
}

/// Whether several rows may have the key of a changed one: SQLite takes them if that has a
/// null.
fn has_null(change: &Change) -> bool {
    let mut cells = change.key.cells().iter();
    cells.any(|cell| cell.expose().is_none())
}

/// Findings of rows of a change's table that are not as they were sealed.
fn altered_in(change: &Change) -> Kind {
    (Code::RowDiffers, Some(change.table.clone()))
}

/// Whether there was a row before such a change.
fn is_of_row(op: Changed) -> bool {
    matches!(op, Changed::Update | Changed::Delete)
}

/// The finding that a change replaced a row that was not as it was sealed.
fn replaced(change: &Change, record: &Bytes32, text: &str) -> Finding {
    Finding {
        table: Some(change.table.clone()),
        record: Some(*record),
        key: Some(change.key.clone()),
        ..Finding::general(Code::RowReplaced, text)
    }
}

/// Whether two changes in a row may be one of a key, and the second lacks large
/// values that the row kept.
fn moves(change: &Change, next: &Change) -> bool {
    change.op == Changed::Delete
        && next.op == Changed::Create
        && !next.unsent.is_empty()
        && (change.tx, &change.table) == (next.tx, &next.table)
}

/// The columns in which a new row differs from the old one or, where that is not
/// sent, from the sealed one, whether the vault holds its image or its marks;
/// `None` if neither is known.
fn changed_from(
    change: &Change,
    sealed: Option<&Sealed>,
    columns: &Versions,
) -> Option<Vec<String>> {
    let new = change.new.as_ref()?;
    match (&change.old, sealed) {
        (Some(old), _) => Some(translate::changed_columns(old, new)),
        (None, Some(sealed)) => Some(sealed.differing(new, columns)),
        (None, None) => None,
    }
}

/// Fills in the large values that an update left alone and the engine did not
/// send, by what their columns were called then; `false` if they are not known.
fn fill_in(change: &mut Change, sealed: Option<&Sealed>, columns: &Versions) -> bool {
    let Some(new) = &mut change.new else {
        return true;
    };
    for place in std::mem::take(&mut change.unsent) {
        let row = sealed.and_then(|sealed| sealed.content.row.as_ref());
        let known = row.and_then(|row| {
            let name = columns.called_then(&row.names, &new.columns, place)?;
            row.iter().find(|(sealed, _)| *sealed == name)
        });
        match (known, new.cells.get_mut(place)) {
            (Some((_, value)), Some(cell)) => *cell = Cell::from(value),
            _ => return false,
        }
    }
    true
}
