//! One full pass over the guarded tables, in two halves.
//!
//! [`look`] runs on a thread of its own: it reads a snapshot, hashes every row
//! and keeps what does not match. [`Suspects::judge`] and [`Look::judge`] run where the
//! trail is: they drop what changed while the pass was under way (each such change was
//! compared with its seal when it was captured) and name what is left.
//!
//! Whoever can change one row can change all of a table. So rows that do not match are
//! judged while others are still read: no more of them are in memory than [`SUSPECTS`],
//! and of what was not met no more than [`ABSENT`] for a table of any usual size.
//!
//! A table that cannot be read does not keep the others from being judged: all are of
//! the one moment that the snapshot shows, whichever of them are read.

use crate::absent::Absent;
use crate::columns::{Columns, Versions};
use crate::finding::{Finding, key_cells, key_of};
use crate::met::Met;
use pitser_capture::source::Rows;
use pitser_capture::{Key, Position, Row, Snapshot, SourceError, Unseen};
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{Key as SecretKey, LineNonce, record_key};
use pitser_evidence::line::Patient;
use pitser_trail::vault::VaultError;
use pitser_trail::{Content, PatientId, Trail, TrailError, row_marks};
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Rows for which expectations are asked at a time.
const CHUNK: usize = 2048;
/// Rows that do not match, until they are judged.
const SUSPECTS: usize = 2048;
/// Bytes of their values: a row may be a document.
const SUSPECTS_BYTES: usize = 4 << 20;
/// Records of a table that were not met, and that are named together: 40 bytes for each.
/// All records are looked at once for so many of them.
const ABSENT: usize = 1 << 19;

/// A table and the key that makes its records' opaque names.
#[derive(Debug, Clone)]
pub struct ScanTable {
    /// Name.
    pub name: String,
    /// HMAC key.
    pub key: SecretKey,
    /// Its rows may be equal ([`pitser_capture::Shape::keyless`]).
    pub keyless: bool,
    /// What its columns were called.
    pub columns: Versions,
}

/// What the trail expects of a live row.
#[derive(Debug, Clone)]
pub enum Expected {
    /// Nothing: it was never sealed, or is sealed as deleted.
    Unknown,
    /// Its key was destroyed: nothing can be compared any more.
    Erased,
    /// This commitment under this nonce.
    Row {
        /// Opens the commitment.
        nonce: LineNonce,
        /// The commitment.
        row: Digest,
    },
}

/// Whoever has the trail, as a pass on a thread of its own asks him. `None` if he wants
/// no more of it.
pub trait Judge {
    /// What the trail expects of these records of one table, in their order.
    fn expected(&mut self, table: &str, records: &[Bytes32]) -> Option<Vec<Expected>>;

    /// Judges rows that do not match, before others are read.
    fn judge(&mut self, suspects: Suspects) -> Option<()>;
}

/// Something that is wrong, and whose record it is about where the trail does not know.
pub type Found = (Finding, Option<PatientId>);

/// Rows of one snapshot that were not as expected: some of them.
#[derive(Debug)]
pub struct Suspects {
    /// What is to be in the trail before they are judged.
    pub position: Position,
    unseen: Unseen,
    rows: VecDeque<Suspect>,
    bytes: usize,
}

/// A row that is not as expected.
#[derive(Debug)]
struct Suspect {
    table: Arc<str>,
    key: Key,
    record: Bytes32,
    row: Row,
}

/// What a pass saw.
#[derive(Debug)]
pub struct Look {
    /// The source's position that the rows are of.
    pub position: Position,
    /// Rows compared.
    pub rows: u64,
    /// Tables that could not be read to their end, and why. What was read of them is
    /// judged; of what was not, nothing is said. Complete when all is judged.
    pub unread: Vec<(String, SourceError)>,
    /// Those that were not judged before.
    suspects: Suspects,
    /// What was not met, of tables that were read to their end.
    absent: VecDeque<Absent>,
}

/// Records that changed while a pass was under way, by table: eight bytes of each, since a
/// pass over a large table is long. Of two that have these in common, and one of which
/// changed, the other is left to the next pass.
#[derive(Debug, Default)]
pub struct Touched {
    records: HashMap<String, HashSet<u64>>,
    /// Lines before this one are of a database that the present one is an older copy of: what
    /// their transactions did is shown, or lost, and their numbers may be another's by now.
    rewound: u64,
}

impl Touched {
    /// None yet. The database was found to be an older copy of itself at this line; 0 if it
    /// never was.
    pub fn since(rewound: u64) -> Self {
        Self {
            rewound,
            ..Self::default()
        }
    }

    /// Notes a change.
    pub fn insert(&mut self, table: &str, record: &Bytes32) {
        let record = short(record);
        match self.records.get_mut(table) {
            Some(records) => {
                records.insert(record);
            }
            None => {
                let records = HashSet::from([record]);
                self.records.insert(table.to_owned(), records);
            }
        }
    }

    fn contains(&self, table: &str, record: &Bytes32) -> bool {
        self.records
            .get(table)
            .is_some_and(|records| records.contains(&short(record)))
    }
}

/// Reads and hashes every row of `tables`.
///
/// # Errors
/// The database cannot be read, or a table is not guarded any more. `Ok(None)` if the
/// judge wants no more of it.
pub fn look(
    snapshot: &mut dyn Snapshot,
    tables: &[ScanTable],
    judge: &mut impl Judge,
) -> Result<Option<Look>, SourceError> {
    let position = snapshot.position();
    let mut look = Look {
        position,
        rows: 0,
        unread: Vec::new(),
        suspects: Suspects::new(position, snapshot.unseen()),
        absent: VecDeque::new(),
    };
    for table in tables {
        let mut pass = TablePass::new(table, &mut look, judge);
        let read = snapshot.scan(&table.name, CHUNK, &mut |rows| match pass.take(rows) {
            Some(()) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        });
        let TablePass { met, gave_up, .. } = pass;
        if gave_up {
            return Ok(None);
        }
        match read {
            Ok(()) => {
                let hidden = snapshot.hidden(&table.name)?;
                let absent = Absent::new(table.name.clone(), met.all(), hidden, ABSENT);
                look.absent.push_back(absent);
            }
            Err(error) if error.is_not_guarded() || !snapshot.goes_on() => return Err(error),
            Err(error) => look.unread.push((table.name.clone(), error)),
        }
    }
    Ok(Some(look))
}

/// A pass over the rows of one table.
struct TablePass<'a, J> {
    table: &'a ScanTable,
    name: Arc<str>,
    look: &'a mut Look,
    judge: &'a mut J,
    met: Met,
    copies: Copies,
    gave_up: bool,
}

impl<'a, J: Judge> TablePass<'a, J> {
    fn new(table: &'a ScanTable, look: &'a mut Look, judge: &'a mut J) -> Self {
        Self {
            table,
            name: table.name.as_str().into(),
            look,
            judge,
            met: Met::new(),
            copies: Copies::default(),
            gave_up: false,
        }
    }

    /// Compares some rows; `None` if the judge wants no more of it.
    fn take(&mut self, mut rows: Rows) -> Option<()> {
        self.gave_up = true;
        let keys = rows.iter_mut().map(|(key, _)| key);
        let records: Vec<Bytes32> = keys.map(|key| self.number(key)).collect();
        let expected = self.judge.expected(&self.table.name, &records)?;
        self.look.rows += rows.len() as u64;
        records.iter().for_each(|record| self.met.insert(record));
        for (((key, row), record), expected) in rows.into_iter().zip(records).zip(expected) {
            if fits(&row, &expected, &self.table.columns) {
                continue;
            }
            let suspects = &mut self.look.suspects;
            suspects.push(Suspect {
                table: Arc::clone(&self.name),
                key,
                record,
                row,
            });
            if suspects.is_full() {
                self.judge.judge(suspects.take())?;
            }
        }
        self.gave_up = false;
        Some(())
    }

    /// The record of a key, which says which of equal rows it is from then on.
    fn number(&mut self, key: &mut Key) -> Bytes32 {
        let record = record_of(self.table, key);
        if !self.table.keyless {
            return record;
        }
        *key = key.copy(self.copies.next(&record));
        record_of(self.table, key)
    }
}

/// How often equal rows were met: of most there is one, and of those nine bytes are kept.
#[derive(Debug, Default)]
struct Copies {
    /// By the first byte.
    once: HashMap<u8, HashSet<u64>>,
    /// Those that were met again.
    more: HashMap<Bytes32, u64>,
}

impl Copies {
    /// Which of equal rows the next one is, from 1.
    fn next(&mut self, record: &Bytes32) -> u64 {
        if let Some(nth) = self.more.get_mut(record) {
            *nth += 1;
            return *nth;
        }
        let once = self.once.entry(record.0[0]).or_default();
        if once.insert(short(record)) {
            return 1;
        }
        self.more.insert(*record, 2);
        2
    }
}

/// Eight bytes of a record's key, behind the first.
fn short(record: &Bytes32) -> u64 {
    let (_, rest) = record.0.split_first().expect("32 bytes are more than one");
    let (short, _) = rest.split_first_chunk().expect("31 bytes are more than 8");
    u64::from_be_bytes(*short)
}

fn record_of(table: &ScanTable, key: &Key) -> Bytes32 {
    record_key(&table.key, key_cells(key).iter().map(Vec::as_slice))
}

fn fits(row: &Row, expected: &Expected, columns: &Versions) -> bool {
    match expected {
        Expected::Unknown => false,
        Expected::Erased => true,
        Expected::Row { nonce, row: sealed } => columns.open(nonce, sealed, row),
    }
}

/// What the trail expects of a record's live row.
///
/// # Errors
/// The vault cannot be read.
pub fn expected(trail: &mut Trail, table: &str, record: &Bytes32) -> Result<Expected, TrailError> {
    let known = trail.state().record(table, record)?;
    let Some((known, sealed)) = known.and_then(|k| k.leaf.row.map(|row| (k, row))) else {
        return Ok(Expected::Unknown);
    };
    let compartment = match known.row_patient {
        Some(patient) => Patient::to_string(&patient),
        None => format!("table:{table}"),
    };
    Ok(match trail.vault().key(&compartment, sealed.seq)? {
        Some(key) => Expected::Row {
            nonce: LineNonce::new(&key, &trail.genesis().origin, sealed.timeline, sealed.seq),
            row: sealed.row,
        },
        None => Expected::Erased,
    })
}

/// The version of a record that was sealed last, as far as the vault opens it.
#[derive(Debug)]
pub struct Sealed {
    /// Its line.
    pub seq: u64,
    /// What the line commits to.
    pub content: Content,
    nonce: LineNonce,
}

impl Sealed {
    /// The sealed version of a record; `None` if it has none, or it was erased.
    ///
    /// # Errors
    /// The vault cannot be read.
    pub fn of(
        trail: &mut Trail,
        table: &str,
        record: &Bytes32,
    ) -> Result<Option<Self>, TrailError> {
        let known = trail.state().record_leaf(table, record)?;
        let Some(row) = known.and_then(|leaf| leaf.row) else {
            return Ok(None);
        };
        let found = trail.vault().get(row.seq)?;
        Ok(found.map(|(key, content)| Self {
            seq: row.seq,
            nonce: trail.nonce(&key, row.seq),
            content,
        }))
    }

    /// Names of the columns whose sealed values differ from the live ones, and
    /// of those that only one side has. By the row's image, or by the marks
    /// that the vault keeps in its place. `columns` says what the live ones were called.
    pub fn differing(&self, live: &Row, columns: &Versions) -> Vec<String> {
        let Content { row, marks, .. } = &self.content;
        match (row, marks) {
            (Some(row), _) => {
                let called = columns.called(&row.names, &live.columns);
                let values = cells(live).map(|(_, value)| value);
                let sealed = row.iter().map(|(_, value)| value);
                differing(&row.names, sealed, &live.columns, values, called.as_deref())
            }
            (None, Some(sealed)) => {
                let called = columns.called(&sealed.names, &live.columns);
                // A mark is of the name too.
                let called_at = |at| called.as_ref().and_then(|called| *called.get(at)?);
                let cells = cells(live).enumerate();
                let cells = cells.map(|(at, (name, value))| (called_at(at).unwrap_or(name), value));
                let marks = row_marks(&self.nonce, cells);
                let (names, sealed) = (&sealed.names, sealed.marks.iter());
                differing(
                    names,
                    sealed,
                    &live.columns,
                    marks.iter(),
                    called.as_deref(),
                )
            }
            (None, None) => Vec::new(),
        }
    }

    /// Names of the columns in which a row that does not open the commitment
    /// was altered. `None` if it differs only by columns that one side alone
    /// has: the table's columns were changed, which is a finding of its own.
    pub fn altered(&self, live: &Row, columns: &Versions) -> Option<Vec<String>> {
        let differing = self.differing(live, columns);
        let sealed = self.content.names().map_or(&[][..], |names| names);
        let called = columns.called(sealed, &live.columns);
        let of_both = |name: &String| match &called {
            None => true,
            Some(called) => {
                let mut live = live.columns.iter().zip(called);
                live.any(|(live, called)| live == name && called.is_some())
            }
        };
        (differing.is_empty() || differing.iter().any(of_both)).then_some(differing)
    }
}

/// Names whose values differ, in the order of the live side; then the names that only the
/// sealed side has. `called` says which sealed column each live one is, if they differ.
fn differing<V: PartialEq>(
    names: &[String],
    sealed: impl Iterator<Item = V>,
    live: &[String],
    values: impl Iterator<Item = V>,
    called: Option<&[Option<&str>]>,
) -> Vec<String> {
    let Some(called) = called else {
        let pairs = names.iter().zip(sealed.zip(values));
        let differ = pairs.filter(|(_, (sealed, live))| sealed != live);
        return differ.map(|(name, _)| name.clone()).collect();
    };
    let mut sealed: Vec<_> = names.iter().zip(sealed).collect();
    let mut differing = Vec::new();
    for ((name, called), value) in live.iter().zip(called).zip(values) {
        let place = |called| sealed.iter().position(|(sealed, _)| *sealed == called);
        let at = called.and_then(place);
        if at.map(|at| sealed.remove(at).1) != Some(value) {
            differing.push(name.clone());
        }
    }
    differing.extend(sealed.into_iter().map(|(name, _)| name.clone()));
    differing
}

impl Suspects {
    fn new(position: Position, unseen: Unseen) -> Self {
        Self {
            position,
            unseen,
            rows: VecDeque::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, suspect: Suspect) {
        self.bytes += suspect.row.size();
        self.rows.push_back(suspect);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= SUSPECTS || self.bytes >= SUSPECTS_BYTES
    }

    fn take(&mut self) -> Self {
        let none = Self::new(self.position, self.unseen.clone());
        std::mem::replace(self, none)
    }

    /// The next row that is wrong, once the trail has reached their position; `None` after
    /// the last. With a row that was never sealed comes the patient whom it names itself,
    /// by `whose`: the trail does not know that. Lines that are not durable are not known.
    ///
    /// # Errors
    /// Vault or trail cannot be read.
    pub fn judge(
        &mut self,
        trail: &mut Trail,
        touched: &Touched,
        columns: &Columns,
        whose: impl Fn(&str, &Row) -> Option<PatientId>,
    ) -> Result<Option<Found>, TrailError> {
        while let Some(suspect) = self.rows.pop_front() {
            if touched.contains(&suspect.table, &suspect.record)
                || is_unseen(
                    trail,
                    &self.unseen,
                    touched,
                    &suspect.table,
                    &suspect.record,
                )?
            {
                continue;
            }
            let patient = whose(&suspect.table, &suspect.row);
            if let Some(finding) = differs(trail, suspect, columns)? {
                let patient = patient.filter(|_| finding.code == Code::RowUnknown);
                return Ok(Some((finding, patient)));
            }
        }
        Ok(None)
    }
}

impl Look {
    /// The next thing that is wrong and was not judged before, by a pass whose position the
    /// trail has reached by now; otherwise as [`Suspects::judge`].
    ///
    /// # Errors
    /// Vault or trail cannot be read.
    pub fn judge(
        &mut self,
        trail: &mut Trail,
        touched: &Touched,
        columns: &Columns,
        whose: impl Fn(&str, &Row) -> Option<PatientId>,
    ) -> Result<Option<Found>, TrailError> {
        if let Some(found) = self.suspects.judge(trail, touched, columns, whose)? {
            return Ok(Some(found));
        }
        while let Some(absent) = self.absent.front_mut() {
            let table = absent.table().to_owned();
            let each = |visit: &mut dyn FnMut(&Bytes32, u64)| {
                let shown = trail.state().records(&table, |record, leaf| {
                    let seq = leaf.row?.seq;
                    if !touched.contains(&table, record) {
                        visit(record, seq);
                    }
                    None::<()>
                });
                shown.map(drop)
            };
            let Some((record, seq)) = absent.next(each)? else {
                self.absent.pop_front();
                continue;
            };
            // Others may have changed since they were looked for.
            if touched.contains(&table, &record)
                || is_unseen(trail, &self.suspects.unseen, touched, &table, &record)?
            {
                continue;
            }
            if !absent.is_hidden() {
                return Ok(Some((is_missing(trail, &table, record, seq)?, None)));
            }
            // It may be there. Had the table been truncated, a line would say so.
            let why = self.absent.pop_front().and_then(Absent::hidden);
            self.unread.extend(why.map(|why| (table, why)));
        }
        Ok(None)
    }
}

/// Whether the record's newest change is of a transaction that the snapshot did
/// not show yet, although the source had told of it.
fn is_unseen(
    trail: &Trail,
    unseen: &Unseen,
    touched: &Touched,
    table: &str,
    record: &Bytes32,
) -> Result<bool, TrailError> {
    if unseen.is_none() {
        return Ok(false);
    }
    let known = trail.state().record_leaf(table, record)?;
    let mut seq = known.map(|leaf| leaf.last_seq);
    while let Some(line) = seq.map(|seq| trail.line(seq)).transpose()?.flatten() {
        if let Some(tx) = line.tx {
            return Ok(line.seq >= touched.rewound && unseen.contains(tx));
        }
        // A read, or a finding.
        seq = line.prev.map(|prev| prev.seq);
    }
    Ok(false)
}

/// `None` if only the table's columns are others.
fn differs(
    trail: &mut Trail,
    suspect: Suspect,
    columns: &Columns,
) -> Result<Option<Finding>, TrailError> {
    let known = trail.state().record_leaf(&suspect.table, &suspect.record)?;
    let about = known.and_then(|leaf| leaf.row).map(|row| row.seq);
    let (code, columns, text) = match about {
        None => (Code::RowUnknown, Vec::new(), "the row was never sealed"),
        Some(_) => {
            let columns = match Sealed::of(trail, &suspect.table, &suspect.record)? {
                None => Vec::new(),
                Some(sealed) => match sealed.altered(&suspect.row, columns.of(&suspect.table)) {
                    None => return Ok(None),
                    Some(columns) => columns,
                },
            };
            (
                Code::RowDiffers,
                columns,
                "the row differs from its sealed version",
            )
        }
    };
    Ok(Some(Finding {
        code,
        table: Some(suspect.table.to_string()),
        key: Some(suspect.key),
        record: Some(suspect.record),
        columns,
        about,
        text: text.to_owned(),
    }))
}

fn is_missing(
    trail: &mut Trail,
    table: &str,
    record: Bytes32,
    seq: u64,
) -> Result<Finding, VaultError> {
    let content = trail.vault().get(seq)?.map(|(_, content)| content);
    Ok(Finding {
        code: Code::RowMissing,
        table: Some(table.to_owned()),
        key: content.and_then(|c| c.key).map(key_of),
        record: Some(record),
        columns: Vec::new(),
        about: Some(seq),
        text: "the row is missing from the database".into(),
    })
}

fn cells(row: &Row) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    row.iter().map(|(name, cell)| (name, cell.expose()))
}

#[cfg(test)]
#[path = "../tests/common/table.rs"]
mod a_table;

#[cfg(test)]
mod tests {
    use super::a_table::Table;
    use super::*;

    /// A table of so many rows, each with a value of so many bytes.
    fn table(rows: u64, bytes: usize) -> impl Snapshot {
        let value = move |_| vec![b'x'; bytes];
        Table { rows, value }
    }

    #[test]
    fn equal_rows_are_numbered_from_one() {
        let record =
            |number: u64| record_key(&SecretKey::new([1; 32]), [&number.to_be_bytes()[..]]);
        let mut copies = Copies::default();
        for nth in 1..=3 {
            for number in 0..2000 {
                assert_eq!(copies.next(&record(number)), nth);
            }
        }
    }

    /// Expects no row at all, and wants no more after so many that it judged.
    struct Unknown {
        most: usize,
        judged: usize,
        largest: (usize, usize),
    }

    impl Judge for Unknown {
        fn expected(&mut self, _: &str, records: &[Bytes32]) -> Option<Vec<Expected>> {
            Some(vec![Expected::Unknown; records.len()])
        }

        fn judge(&mut self, suspects: Suspects) -> Option<()> {
            assert_eq!(suspects.position, Position::Outbox(7));
            self.judged += suspects.rows.len();
            let (rows, bytes) = self.largest;
            self.largest = (rows.max(suspects.rows.len()), bytes.max(suspects.bytes));
            (self.judged <= self.most).then_some(())
        }
    }

    fn look_at(mut table: impl Snapshot, most: usize) -> (Option<Look>, Unknown) {
        let tables = [ScanTable {
            name: "entry".into(),
            key: SecretKey::new([1; 32]),
            keyless: false,
            columns: Versions::default(),
        }];
        let mut judge = Unknown {
            most,
            judged: 0,
            largest: (0, 0),
        };
        let look = look(&mut table, &tables, &mut judge).unwrap();
        (look, judge)
    }

    /// Whoever can change one row can change all: no more are in memory for that.
    #[test]
    fn rows_that_do_not_match_are_judged_before_too_many_are_in_memory() {
        let rows = 20 * SUSPECTS as u64 + 5;
        let (look, judge) = look_at(table(rows, 10), usize::MAX);
        let look = look.unwrap();
        assert_eq!(look.rows, rows);
        assert_eq!(judge.judged, 20 * SUSPECTS);
        assert_eq!(judge.largest.0, SUSPECTS);
        assert_eq!(look.suspects.rows.len(), 5, "those that are left");
    }

    #[test]
    fn few_large_rows_are_too_many() {
        let bytes = SUSPECTS_BYTES / 4;
        let (look, judge) = look_at(table(42, bytes), usize::MAX);
        assert_eq!(judge.largest, (4, SUSPECTS_BYTES));
        assert_eq!(judge.judged, 40);
        assert_eq!(look.unwrap().suspects.bytes, 2 * bytes);
    }

    #[test]
    fn a_pass_of_which_nobody_wants_more_ends() {
        let rows = 20 * SUSPECTS as u64;
        let (look, judge) = look_at(table(rows, 10), SUSPECTS);
        assert!(look.is_none());
        assert_eq!(judge.judged, 2 * SUSPECTS);
    }
}
