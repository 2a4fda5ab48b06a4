//! The transaction under way: what of it is not in the trail yet, and what may
//! be wrong with it.
//!
//! What a change means, a later one of its transaction may say, however long the
//! transaction is; so nothing is said to be wrong with it before its end. Kept
//! until then is one doubt for each table and kind of doubt.

use super::queue::Waiting;
use super::{Ended, Session};
use crate::actors::{Doubt, Witness};
use pitser_capture::Position;
use pitser_capture::event::{Change, Op as Changed};
use pitser_evidence::line::{Line, Op};
use pitser_monitor::{Finding, Found};
use pitser_trail::PatientId;
use serde::{Deserialize, Serialize};

/// Changes that are looked at together before they are written: who wrote the
/// first of them, a later one may say.
const CHANGES: usize = 1000;
/// The same, in bytes of their values.
const BYTES: usize = 8 << 20;

/// The transaction whose changes are coming.
#[derive(Default)]
pub(super) struct Transaction {
    /// Its number, once a change of it was told.
    tx: Option<u64>,
    /// Its changes that are not in the trail yet.
    changes: Vec<Change>,
    /// How large their values are.
    bytes: usize,
    /// What its changes say together.
    pub(super) witness: Witness,
    /// What may be wrong with it.
    suspects: Vec<Suspect>,
    /// What stood in the trail when guarding began.
    written: Written,
}

/// Something that may be wrong with a transaction, told once for each table.
struct Suspect {
    doubt: Doubt,
    /// The first change's.
    finding: Finding,
    patient: Option<PatientId>,
    /// The line that it is about, until that has its number.
    about: Option<Waiting>,
    rows: u64,
}

impl Transaction {
    /// None yet, or one of which the trail has these lines.
    pub(super) fn after(written: Written) -> Self {
        Self {
            written,
            ..Self::default()
        }
    }

    /// Whether a change of transaction `tx` can be of this one.
    pub(super) fn is(&self, tx: u64) -> bool {
        self.tx.is_none_or(|open| open == tx)
    }

    /// Whether nothing of a transaction was told yet.
    pub(super) fn is_empty(&self) -> bool {
        self.tx.is_none()
    }

    /// A change of transaction `tx` is told.
    pub(super) fn begin(&mut self, tx: u64) {
        self.tx = Some(tx);
    }

    /// Keeps a change; `true` if no more should be kept before some are written.
    pub(super) fn keep(&mut self, change: Change) -> bool {
        self.bytes += change.size();
        // The two halves of a changed key stay together.
        let is_halved = change.op == Changed::Delete;
        self.changes.push(change);
        let are_more_than =
            |times: usize| self.changes.len() >= times * CHANGES || self.bytes >= times * BYTES;
        are_more_than(if is_halved { 2 } else { 1 })
    }

    /// The changes that were kept, to be written.
    pub(super) fn take(&mut self) -> Vec<Change> {
        self.bytes = 0;
        std::mem::take(&mut self.changes)
    }

    /// Whether the same may be wrong with an earlier change of this table: one
    /// more counts with it then.
    pub(super) fn is_doubted(&mut self, table: &str, doubt: &Doubt) -> bool {
        let is_same = |known: &&mut Suspect| {
            known.finding.table.as_deref() == Some(table) && known.doubt.is_like(doubt)
        };
        let known = self.suspects.iter_mut().find(is_same);
        known.map(|known| known.rows += 1).is_some()
    }

    /// Notes what may be wrong with a change, the first of its kind.
    pub(super) fn suspect(&mut self, doubt: Doubt, finding: Finding, patient: Option<PatientId>) {
        self.suspects.push(Suspect {
            doubt,
            finding,
            patient,
            about: None,
            rows: 1,
        });
    }

    /// The same, about a line that waits.
    pub(super) fn suspect_waiting(
        &mut self,
        doubt: Doubt,
        finding: Finding,
        patient: Option<PatientId>,
        about: Waiting,
    ) {
        self.suspect(doubt, finding, patient);
        if let Some(suspect) = self.suspects.last_mut() {
            suspect.about = Some(about);
        }
    }

    /// All lines that waited are written; `first` is the number of the first.
    pub(super) fn are_written(&mut self, first: u64) {
        for suspect in &mut self.suspects {
            if let Some(about) = suspect.about.take() {
                suspect.finding.about = Some(about.seq(first));
            }
        }
    }

    /// Whether something is wrong with it after all, by what its changes say together.
    pub(super) fn is_wrong(&mut self) -> bool {
        let witness = &self.witness;
        self.suspects
            .retain(|suspect| suspect.doubt.stands(witness).is_some());
        !self.suspects.is_empty()
    }

    /// Ends the transaction: what is wrong with it after all.
    pub(super) fn end(&mut self) -> Vec<Found> {
        let mut wrong: Vec<Suspect> = Vec::new();
        for mut suspect in self.suspects.drain(..) {
            let Some(why) = suspect.doubt.stands(&self.witness) else {
                continue;
            };
            suspect.finding.text = why.to_owned();
            let is_same = |known: &&mut Suspect| {
                (known.finding.code, &known.finding.table)
                    == (suspect.finding.code, &suspect.finding.table)
            };
            match wrong.iter_mut().find(is_same) {
                Some(known) => known.rows += suspect.rows,
                None => wrong.push(suspect),
            }
        }
        self.written = Written::default();
        self.tx = None;
        let told = wrong.into_iter().map(|mut suspect| {
            if suspect.rows > 1 {
                suspect.finding.text += &format!(
                    " (and {} more rows of this table in its transaction)",
                    suspect.rows - 1
                );
            }
            (suspect.finding, suspect.patient)
        });
        told.collect()
    }
}

/// Different lists of columns that are remembered of one transaction, and runs of changes:
/// whoever has each row change other columns than the one before makes a run of each.
const LISTS: usize = 32;
const RUNS: usize = 1 << 14;

/// The lines that the trail has of the transaction at its end. Its end may not
/// have been reached: its changes come again then, and what may be wrong with
/// those that have their lines follows from both.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    /// What its lines have in common: where its commit record begins or, in an outbox, its
    /// number.
    of: u64,
    /// Lists of changed columns that its lines have.
    lists: Vec<Vec<String>>,
    /// In their order.
    runs: Vec<Run>,
    first: u64,
    /// What there are too many runs for: it is looked up in the trail.
    #[serde(default)]
    rest: Option<Rest>,
}

/// Changes of the transaction that are in no run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rest {
    /// The first one's place in the transaction.
    place: u32,
    /// A line before which none is that is still looked for.
    line: u64,
}

/// Changes that follow one another in the transaction, and so do their lines: of millions
/// that one statement makes there is a run for each block, as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// The first one's place in the transaction.
    place: u32,
    changes: u32,
    /// The first one's line, counted from the transaction's first.
    line: u32,
    /// Lines from one change to the next.
    step: u32,
    /// Which list of columns the lines have.
    list: u32,
}

impl Run {
    /// Whether the change at this place, with this line and list, is the next one; it is
    /// one of them then.
    fn takes(&mut self, place: u32, line: u32, list: u32) -> bool {
        let step = match self.changes {
            1 => line.saturating_sub(self.line),
            _ => self.step,
        };
        let next = self.line_at(self.changes, step);
        let is_next = place == self.end() && Some(line) == next && list == self.list;
        if is_next {
            self.changes += 1;
            self.step = step;
        }
        is_next
    }

    /// The place behind it.
    fn end(&self) -> u32 {
        self.place.saturating_add(self.changes)
    }

    fn line_at(&self, nth: u32, step: u32) -> Option<u32> {
        self.line.checked_add(nth.checked_mul(step)?)
    }
}

impl Written {
    /// Notes a line; those of transactions before it are forgotten.
    pub(crate) fn note(&mut self, line: &Line, pos: Position) {
        let Some((of, place)) = place_of(line, pos) else {
            return;
        };
        if self.of != of {
            self.of = of;
            self.first = line.seq;
            self.lists.clear();
            self.runs.clear();
            self.rest = None;
        }
        let columns = line.columns.as_deref().unwrap_or_default();
        if let Ok(line) = u32::try_from(line.seq - self.first) {
            self.change(place, line, columns);
        }
    }

    fn change(&mut self, place: u32, line: u32, columns: &[String]) {
        // The first of several lines of an event stands for it. Positions rise: those that
        // are left out are of changes that could not be read.
        if self.rest.is_some() || self.runs.last().is_some_and(|run| place < run.end()) {
            return;
        }
        let known = self.lists.iter().rposition(|list| list == columns);
        let list = known.unwrap_or(self.lists.len());
        let as_number = u32::try_from(list).unwrap_or(u32::MAX);
        let last = self.runs.last_mut();
        if last.is_some_and(|run| run.takes(place, line, as_number)) {
            return;
        }
        if list >= LISTS || self.runs.len() >= RUNS {
            let line = self.first + u64::from(line);
            self.rest = Some(Rest { place, line });
            return;
        }
        if known.is_none() {
            self.lists.push(columns.to_vec());
        }
        self.runs.push(Run {
            place,
            changes: 1,
            line,
            step: 0,
            list: as_number,
        });
    }

    /// Where to look in the trail for the line of a change of transaction `tx` that is in
    /// no run, and its place.
    fn rest(&mut self, pos: Position, tx: u64) -> Option<(&mut Rest, u32)> {
        let (_, place) = place(pos, tx).filter(|(of, _)| *of == self.of)?;
        let rest = self.rest.as_mut().filter(|rest| rest.place <= place)?;
        Some((rest, place))
    }

    /// The line of a change of transaction `tx`, and the columns that it says were changed.
    fn line(&self, pos: Position, tx: u64) -> Option<(u64, &[String])> {
        let (_, place) = place(pos, tx).filter(|(of, _)| *of == self.of)?;
        let behind = self.runs.partition_point(|run| run.place <= place);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        let nth = (place - run.place < run.changes).then_some(place - run.place)?;
        let line = run.line_at(nth, run.step)?;
        let columns = self.lists.get(usize::try_from(run.list).ok()?)?;
        Some((self.first + u64::from(line), columns))
    }
}

/// The same of a change that has this line.
fn place_of(line: &Line, pos: Position) -> Option<(u64, u32)> {
    let is_change = matches!(line.op, Op::Create | Op::Update | Op::Delete);
    line.tx.filter(|_| is_change).and_then(|tx| place(pos, tx))
}

/// What tells transaction `tx` from others, and the place in it of the change at `pos`.
fn place(pos: Position, tx: u64) -> Option<(u64, u32)> {
    let (of, place) = match pos {
        // Numbered from 1.
        Position::Log { lsn, nth } => (lsn, nth.checked_sub(1)?),
        // The number is the position of the begin row, or of the only change.
        Position::Outbox(id) => (tx, id.checked_sub(tx)?),
    };
    Some((of, u32::try_from(place).ok()?))
}

impl Session {
    /// Whether what stands there is in the trail already: a transaction of which that has
    /// a part is told anew, so that what is wrong with that part can be told at its end.
    pub(super) fn is_written(&self, pos: Position) -> bool {
        pos <= self.position
    }

    /// The line of a change that has one already, and the columns that it says were changed.
    fn written_line(&mut self, change: &Change) -> Result<Option<(u64, Vec<String>)>, Ended> {
        let written = &mut self.open.written;
        let of_it = written.of;
        let Some((rest, wanted)) = written.rest(change.pos, change.tx) else {
            let found = written.line(change.pos, change.tx);
            return Ok(found.map(|(seq, columns)| (seq, columns.to_vec())));
        };
        // Changes are told in their order, which is that of their lines.
        while let Some(line) = self.trail.line(rest.line)? {
            let pos = line.pos.parse().ok();
            if let Some((of, at)) = pos.and_then(|pos| place_of(&line, pos))
                && (of != of_it || at >= wanted)
            {
                let is_it = of == of_it && at == wanted;
                let columns = line.columns.map_or(Vec::new(), |columns| columns.to_vec());
                return Ok(is_it.then_some((line.seq, columns)));
            }
            rest.line += 1;
        }
        Ok(None)
    }

    /// Hears again what a change says that has its line already.
    pub(super) fn recall(&mut self, change: &Change) -> Result<(), Ended> {
        let Some((seq, columns)) = self.written_line(change)? else {
            return Ok(());
        };
        let changed = (change.op == Changed::Update).then_some(&columns[..]);
        let actors = &self.actors;
        actors.witness(&mut self.open.witness, change, changed);
        let judged = actors.judge(change, changed, &self.open.witness);
        let Some(doubt) = judged.doubt else {
            return Ok(());
        };
        if self.open.is_doubted(&change.table, &doubt) {
            return Ok(());
        }
        let is_row = change.op != Changed::Truncate;
        let line = self.trail.line(seq)?;
        let finding = Finding {
            code: doubt.code,
            table: Some(change.table.clone()),
            record: line.and_then(|line| line.key).filter(|_| is_row),
            key: is_row.then(|| change.key.clone()),
            columns: if is_row { columns } else { Vec::new() },
            about: Some(seq),
            text: String::new(),
        };
        // Whose it is, the trail knows.
        self.open.suspect(doubt, finding, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lsn: u64, nth: u64) -> Position {
        Position::Log { lsn, nth }
    }

    #[test]
    fn millions_of_changes_are_a_few_runs() {
        let mut written = Written {
            of: 9,
            ..Written::default()
        };
        // Two lines each, and another one now and then: a block's last.
        let line = |place: u32| 2 * place + place / 30_000;
        for place in 0..1_000_000 {
            written.change(place, line(place), &["n".to_owned()]);
        }
        assert_eq!(written.runs.len(), 34);
        for place in [0, 1, 29_999, 30_000, 999_999] {
            let found = written.line(log(9, u64::from(place) + 1), 0).unwrap();
            assert_eq!(found, (u64::from(line(place)), &["n".to_owned()][..]));
        }
        assert_eq!(written.line(log(9, 1_000_001), 0), None);
        assert_eq!(written.line(log(8, 1), 0), None);
    }

    /// Whoever has each row change other columns than the one before.
    #[test]
    fn what_is_remembered_of_a_transaction_has_an_end() {
        let name = |n: u32| vec![format!("c{n}")];
        for (lists, runs, from) in [(100, 32, 32), (2, RUNS, RUNS as u32)] {
            let mut written = Written {
                of: 9,
                first: 7,
                ..Written::default()
            };
            for place in 0..100_000 {
                written.change(place, place, &name(place % lists));
            }
            assert_eq!(written.runs.len(), runs);
            assert!(written.lists.len() <= LISTS);
            let place = from - 1;
            assert!(written.rest(log(9, place.into()), 0).is_none());
            let found = written.line(log(9, u64::from(place) + 1), 0).unwrap();
            assert_eq!(found, (7 + u64::from(place), &name(place % lists)[..]));
            let (rest, place) = written.rest(log(9, u64::from(from) + 1), 0).unwrap();
            assert_eq!((rest.line, place), (7 + u64::from(from), from));
            assert!(written.rest(log(8, 99_999), 0).is_none());
        }
    }

    /// Against a list with a place for each change.
    #[test]
    fn a_run_has_the_lines_of_its_changes_and_no_others() {
        for seed in 0..200_u64 {
            let mut random = seed;
            let mut next = move |below: u64| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (random >> 33) % below
            };
            let (mut written, mut all) = (Written::default(), Vec::new());
            let mut line = 0;
            for place in 0..300 {
                // One that could not be read, one of several lines, or one of other columns.
                let columns = vec![format!("c{}", next(20) / 18)];
                if next(10) == 0 {
                    all.push(None);
                    continue;
                }
                written.change(place, line, &columns);
                written.change(place, line + 1, &[]);
                all.push(Some((u64::from(line), columns)));
                line += 1 + u32::from(next(10) == 0);
            }
            for (nth, expected) in (1..).zip(&all) {
                let found = written.line(log(0, nth), 0);
                let found = found.map(|(line, columns)| (line, columns.to_vec()));
                assert_eq!(found, *expected, "seed {seed}, change {nth}");
            }
        }
    }
}
