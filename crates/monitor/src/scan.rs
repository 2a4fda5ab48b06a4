//! One full pass over the guarded tables, in two halves.
//!
//! [`look`] runs on a thread of its own: it reads a snapshot, hashes every row
//! and keeps what does not match. [`Look::judge`] runs where the trail is: it drops
//! what changed while the pass was under way (each such change was compared
//! with its seal when it was captured) and names what is left.
//!
//! A table that cannot be read does not keep the others from being judged: all are of
//! the one moment that the snapshot shows, whichever of them are read.

use crate::finding::{Finding, key_cells, key_of};
use crate::met::{AllMet, Met};
use pitser_capture::{Key, Position, Row, Snapshot, SourceError, Unseen};
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{Key as SecretKey, LineNonce, commit_row, record_key};
use pitser_evidence::line::Patient;
use pitser_trail::vault::VaultError;
use pitser_trail::{Content, PatientId, Trail, TrailError, row_marks};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;

/// Rows for which expectations are asked at a time.
const CHUNK: usize = 2048;

/// A table and the key that makes its records' opaque names.
#[derive(Debug, Clone)]
pub struct ScanTable {
    /// Name.
    pub name: String,
    /// HMAC key.
    pub key: SecretKey,
    /// Its rows may be equal ([`pitser_capture::Shape::keyless`]).
    pub keyless: bool,
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

/// A row that is not as expected.
#[derive(Debug)]
struct Suspect {
    table: String,
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
    /// judged; of what was not, nothing is said.
    pub unread: Vec<(String, SourceError)>,
    unseen: Unseen,
    suspects: VecDeque<Suspect>,
    /// Records that were met, of tables that were read to their end.
    met: BTreeMap<String, AllMet>,
    /// Of the table that is judged: records that were not met, and their lines.
    missing: Vec<(String, Bytes32, u64)>,
}

/// Records that changed while a pass was under way, by table.
#[derive(Debug, Default)]
pub struct Touched(HashMap<String, HashSet<Bytes32>>);

impl Touched {
    /// Notes a change.
    pub fn insert(&mut self, table: &str, record: Bytes32) {
        match self.0.get_mut(table) {
            Some(records) => {
                records.insert(record);
            }
            None => {
                self.0.insert(table.to_owned(), HashSet::from([record]));
            }
        }
    }

    fn contains(&self, table: &str, record: &Bytes32) -> bool {
        self.0
            .get(table)
            .is_some_and(|records| records.contains(record))
    }
}

/// Reads and hashes every row of `tables`. `expect` is asked for chunks of
/// records of one table; it answers in their order, or `None` to give up.
///
/// # Errors
/// The database cannot be read, or a table is not guarded any more. `Ok(None)` if `expect`
/// gave up.
pub fn look(
    snapshot: &mut dyn Snapshot,
    tables: &[ScanTable],
    mut expect: impl FnMut(&str, &[Bytes32]) -> Option<Vec<Expected>>,
) -> Result<Option<Look>, SourceError> {
    let mut look = Look {
        position: snapshot.position(),
        rows: 0,
        unread: Vec::new(),
        unseen: snapshot.unseen(),
        suspects: VecDeque::new(),
        met: BTreeMap::new(),
        missing: Vec::new(),
    };
    for table in tables {
        let mut gave_up = false;
        let mut met = Met::new();
        let (rows, suspects) = (&mut look.rows, &mut look.suspects);
        let mut copies: HashMap<Bytes32, u64> = HashMap::new();
        let read = snapshot.scan(&table.name, CHUNK, &mut |mut chunk| {
            let number = |(key, _): &mut (Key, Row)| {
                let record = record_of(table, key);
                if !table.keyless {
                    return record;
                }
                let nth = copies.entry(record).or_default();
                *nth += 1;
                *key = key.copy(*nth);
                record_of(table, key)
            };
            let records: Vec<Bytes32> = chunk.iter_mut().map(number).collect();
            let Some(expected) = expect(&table.name, &records) else {
                gave_up = true;
                return ControlFlow::Break(());
            };
            *rows += chunk.len() as u64;
            records.iter().for_each(|record| met.insert(record));
            for (((key, row), record), expected) in chunk.into_iter().zip(records).zip(expected) {
                if !fits(&row, &expected) {
                    suspects.push_back(Suspect {
                        table: table.name.clone(),
                        key,
                        record,
                        row,
                    });
                }
            }
            ControlFlow::Continue(())
        });
        if gave_up {
            return Ok(None);
        }
        match read {
            Ok(()) => drop(look.met.insert(table.name.clone(), met.all())),
            Err(error) if error.is_not_guarded() || !snapshot.goes_on() => return Err(error),
            Err(error) => look.unread.push((table.name.clone(), error)),
        }
    }
    Ok(Some(look))
}

fn record_of(table: &ScanTable, key: &Key) -> Bytes32 {
    record_key(&table.key, key_cells(key).iter().map(Vec::as_slice))
}

fn fits(row: &Row, expected: &Expected) -> bool {
    match expected {
        Expected::Unknown => false,
        Expected::Erased => true,
        Expected::Row { nonce, row: sealed } => commit_row(nonce, cells(row)).1 == *sealed,
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
    /// that the vault keeps in its place.
    pub fn differing(&self, live: &Row) -> Vec<String> {
        let Content { row, marks, .. } = &self.content;
        match (row, marks) {
            (Some(row), _) => differing(
                &row.names,
                row.iter().map(|(_, v)| v),
                live,
                cells(live).map(|(_, v)| v),
            ),
            (None, Some(sealed)) => {
                let live_marks = row_marks(&self.nonce, cells(live));
                differing(&sealed.names, sealed.marks.iter(), live, live_marks.iter())
            }
            (None, None) => Vec::new(),
        }
    }

    /// Names of the columns in which a row that does not open the commitment
    /// was altered. `None` if it differs only by columns that one side alone
    /// has: the table's columns were changed, which is a finding of its own.
    pub fn altered(&self, live: &Row) -> Option<Vec<String>> {
        let differing = self.differing(live);
        let of_both = |name: &String| self.has(name) && live.get(name).is_some();
        (differing.is_empty() || differing.iter().any(of_both)).then_some(differing)
    }

    fn has(&self, column: &str) -> bool {
        let names = self.content.names();
        names.is_some_and(|names| names.iter().any(|name| name == column))
    }
}

/// Names whose values differ, in the order of the live side; then the names
/// that only the sealed side has.
fn differing<V: PartialEq>(
    names: &[String],
    sealed: impl Iterator<Item = V>,
    live: &Row,
    values: impl Iterator<Item = V>,
) -> Vec<String> {
    if *names == *live.columns {
        let pairs = names.iter().zip(sealed.zip(values));
        let differ = pairs.filter(|(_, (sealed, live))| sealed != live);
        return differ.map(|(name, _)| name.clone()).collect();
    }
    let mut sealed: Vec<_> = names.iter().zip(sealed).collect();
    let mut differing = Vec::new();
    for (name, value) in live.columns.iter().zip(values) {
        let at = sealed.iter().position(|(sealed, _)| *sealed == name);
        if at.map(|at| sealed.remove(at).1) != Some(value) {
            differing.push(name.clone());
        }
    }
    differing.extend(sealed.into_iter().map(|(name, _)| name.clone()));
    differing
}

impl Look {
    /// The next thing that is wrong, by a pass whose position the trail has reached by
    /// now; `None` after the last. With a row that was never sealed comes the patient whom
    /// it names itself, by `whose`: the trail does not know that.
    ///
    /// # Errors
    /// Vault or trail cannot be read.
    pub fn judge(
        &mut self,
        trail: &mut Trail,
        touched: &Touched,
        whose: impl Fn(&str, &Row) -> Option<PatientId>,
    ) -> Result<Option<(Finding, Option<PatientId>)>, TrailError> {
        while let Some(suspect) = self.suspects.pop_front() {
            if touched.contains(&suspect.table, &suspect.record)
                || is_unseen(trail, &self.unseen, &suspect.table, &suspect.record)?
            {
                continue;
            }
            let patient = whose(&suspect.table, &suspect.row);
            if let Some(finding) = differs(trail, suspect)? {
                let patient = patient.filter(|_| finding.code == Code::RowUnknown);
                return Ok(Some((finding, patient)));
            }
        }
        loop {
            while let Some((table, record, seq)) = self.missing.pop() {
                if !is_unseen(trail, &self.unseen, &table, &record)? {
                    return Ok(Some((is_missing(trail, &table, record, seq)?, None)));
                }
            }
            let Some((table, met)) = self.met.pop_first() else {
                return Ok(None);
            };
            let missing = missing(trail, &table, &met, touched)?;
            let of_table = missing.into_iter().rev();
            self.missing = of_table
                .map(|(record, seq)| (table.clone(), record, seq))
                .collect();
        }
    }
}

/// Whether the record's newest change is of a transaction that the snapshot did
/// not show yet, although the source had told of it.
fn is_unseen(
    trail: &Trail,
    unseen: &Unseen,
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
            return Ok(unseen.contains(tx));
        }
        // A read, or a finding.
        seq = line.prev.map(|prev| prev.seq);
    }
    Ok(false)
}

/// `None` if only the table's columns are others.
fn differs(trail: &mut Trail, suspect: Suspect) -> Result<Option<Finding>, TrailError> {
    let known = trail.state().record_leaf(&suspect.table, &suspect.record)?;
    let about = known.and_then(|leaf| leaf.row).map(|row| row.seq);
    let (code, columns, text) = match about {
        None => (Code::RowUnknown, Vec::new(), "the row was never sealed"),
        Some(_) => {
            let columns = match Sealed::of(trail, &suspect.table, &suspect.record)? {
                None => Vec::new(),
                Some(sealed) => match sealed.altered(&suspect.row) {
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
        table: Some(suspect.table),
        key: Some(suspect.key),
        record: Some(suspect.record),
        columns,
        about,
        text: text.to_owned(),
    }))
}

/// Records that the trail has a row for and the pass did not meet, with the
/// lines of these rows.
fn missing(
    trail: &Trail,
    table: &str,
    met: &AllMet,
    touched: &Touched,
) -> Result<Vec<(Bytes32, u64)>, TrailError> {
    let missing = trail.state().records(table, |record, leaf| {
        let seq = leaf.row?.seq;
        let is_missing = !met.contains(record) && !touched.contains(table, record);
        is_missing.then_some((*record, seq))
    });
    Ok(missing?)
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
