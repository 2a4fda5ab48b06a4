//! One full pass over the guarded tables, in two halves.
//!
//! [`look`] runs on a thread of its own: it reads a snapshot, hashes every row
//! and keeps what does not match. [`judge`] runs where the trail is: it drops
//! what changed while the pass was under way (each such change was compared
//! with its seal when it was captured) and names what is left.

use crate::finding::{Finding, key_cells, key_of};
use pitser_capture::sqlite::{Snapshot, SqliteError};
use pitser_capture::{Key, Row};
use pitser_evidence::Code;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{Key as SecretKey, LineNonce, commit_row, record_key};
use pitser_evidence::line::Patient;
use pitser_trail::vault::VaultError;
use pitser_trail::{Content, Trail};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

/// Rows for which expectations are asked at a time.
const CHUNK: usize = 256;

/// A table and the key that makes its records' opaque names.
#[derive(Debug, Clone)]
pub struct ScanTable {
    /// Name.
    pub name: String,
    /// HMAC key.
    pub key: SecretKey,
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
    pub position: u64,
    /// Rows compared.
    pub rows: u64,
    suspects: Vec<Suspect>,
    met: HashMap<String, HashSet<Bytes32>>,
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
/// The database cannot be read; a damaged file is one, and names the table.
/// `Ok(None)` if `expect` gave up.
pub fn look(
    snapshot: &Snapshot,
    tables: &[ScanTable],
    mut expect: impl FnMut(&str, &[Bytes32]) -> Option<Vec<Expected>>,
) -> Result<Option<Look>, SqliteError> {
    let mut look = Look {
        position: snapshot.position(),
        rows: 0,
        suspects: Vec::new(),
        met: HashMap::new(),
    };
    for table in tables {
        let mut gave_up = false;
        let met = look.met.entry(table.name.clone()).or_default();
        let (rows, suspects) = (&mut look.rows, &mut look.suspects);
        snapshot.scan(&table.name, CHUNK, |chunk| {
            let records: Vec<Bytes32> =
                chunk.iter().map(|(key, _)| record_of(table, key)).collect();
            let Some(expected) = expect(&table.name, &records) else {
                gave_up = true;
                return ControlFlow::Break(());
            };
            *rows += chunk.len() as u64;
            met.extend(&records);
            for (((key, row), record), expected) in chunk.into_iter().zip(records).zip(expected) {
                if !fits(&row, &expected) {
                    suspects.push(Suspect {
                        table: table.name.clone(),
                        key,
                        record,
                        row,
                    });
                }
            }
            ControlFlow::Continue(())
        })?;
        if gave_up {
            return Ok(None);
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
pub fn expected(trail: &mut Trail, table: &str, record: &Bytes32) -> Result<Expected, VaultError> {
    let known = trail.state().record(table, record).copied();
    let Some((known, sealed)) = known.and_then(|k| k.leaf.row.map(|row| (k, row))) else {
        return Ok(Expected::Unknown);
    };
    let compartment = match known.row_patient {
        Some(patient) => Patient::to_string(&patient),
        None => format!("table:{table}"),
    };
    Ok(match trail.vault().key(&compartment)? {
        Some(key) => Expected::Row {
            nonce: LineNonce::new(&key, &trail.genesis().origin, sealed.timeline, sealed.seq),
            row: sealed.row,
        },
        None => Expected::Erased,
    })
}

/// What is wrong, by a pass whose position the trail has reached by now.
///
/// # Errors
/// The vault cannot be read.
pub fn judge(look: Look, trail: &mut Trail, touched: &Touched) -> Result<Vec<Finding>, VaultError> {
    let mut findings = Vec::new();
    for suspect in look.suspects {
        if touched.contains(&suspect.table, &suspect.record) {
            continue;
        }
        findings.push(differs(trail, suspect)?);
    }
    for (table, met) in &look.met {
        missing(trail, table, met, touched, &mut findings)?;
    }
    Ok(findings)
}

fn differs(trail: &mut Trail, suspect: Suspect) -> Result<Finding, VaultError> {
    let sealed = trail
        .state()
        .record(&suspect.table, &suspect.record)
        .and_then(|r| r.leaf.row);
    let (code, columns, text) = match sealed {
        None => (Code::RowUnknown, Vec::new(), "the row was never sealed"),
        Some(sealed) => {
            let content = trail.vault().get(sealed.seq)?.map(|(_, content)| content);
            let columns = differing(content.as_ref(), &suspect.row);
            (
                Code::RowDiffers,
                columns,
                "the row differs from its sealed version",
            )
        }
    };
    Ok(Finding {
        code,
        table: Some(suspect.table),
        key: Some(suspect.key),
        record: Some(suspect.record),
        columns,
        about: sealed.map(|s| s.seq),
        text: text.to_owned(),
    })
}

/// Records that the trail has a row for and the pass did not meet.
fn missing(
    trail: &mut Trail,
    table: &str,
    met: &HashSet<Bytes32>,
    touched: &Touched,
    findings: &mut Vec<Finding>,
) -> Result<(), VaultError> {
    let gone: Vec<_> = trail
        .state()
        .records(table)
        .filter(|(record, _)| !met.contains(*record) && !touched.contains(table, record))
        .filter_map(|(record, known)| Some((*record, known.leaf.row?)))
        .collect();
    for (record, sealed) in gone {
        let content = trail.vault().get(sealed.seq)?.map(|(_, content)| content);
        findings.push(Finding {
            code: Code::RowMissing,
            table: Some(table.to_owned()),
            key: content
                .and_then(|c| c.key)
                .map(|cells| key_of(cells.into_iter().map(|c| c.0))),
            record: Some(record),
            columns: Vec::new(),
            about: Some(sealed.seq),
            text: "the row is missing from the database".into(),
        });
    }
    Ok(())
}

fn cells(row: &Row) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    row.iter().map(|(name, cell)| (name, cell.expose()))
}

/// Names of the columns whose sealed values differ from the live ones, and of
/// those that only one side has.
pub fn differing(sealed: Option<&Content>, live: &Row) -> Vec<String> {
    let Some(sealed) = sealed.and_then(|c| c.row.as_ref()) else {
        return Vec::new();
    };
    let same = |name: &str, value: Option<&[u8]>| {
        sealed
            .iter()
            .any(|(n, v)| n == name && v.as_ref().map(|v| v.0.as_slice()) == value)
    };
    let changed = cells(live)
        .filter(|(name, value)| !same(name, *value))
        .map(|(name, _)| name.to_owned());
    let dropped = sealed
        .iter()
        .filter(|(name, _)| live.get(name).is_none())
        .map(|(name, _)| name.clone());
    changed.chain(dropped).collect()
}
