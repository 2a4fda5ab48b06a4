//! One full pass over the guarded tables.

use crate::finding::{Finding, key_cells, key_of};
use pitser_capture::sqlite::{SqliteError, SqliteSource};
use pitser_capture::{Key, Row};
use pitser_evidence::Code;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::{Key as SecretKey, LineNonce, commit_row};
use pitser_evidence::line::Patient;
use pitser_evidence::map::RowRef;
use pitser_evidence::state::Record;
use pitser_trail::vault::VaultError;
use pitser_trail::{Content, Trail};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Rows that are compared between two looks at the vault's cache.
const CHUNK: usize = 512;

/// What one pass saw.
#[derive(Debug, Default)]
pub struct ScanReport {
    /// Rows compared.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// False if the outbox had a hole and the pass must be repeated.
    pub complete: bool,
}

/// Why a pass could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The database cannot be read.
    #[error(transparent)]
    Database(#[from] SqliteError),
    /// The vault cannot be read.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Compares every live row with its sealed commitment, on fresh connections.
///
/// `position` is the source's position up to which the trail has taken all
/// changes; later ones are undone in the comparison by their first old images.
///
/// # Errors
/// [`ScanError`]; a damaged database file is one, and names the table.
pub fn scan(source: &SqliteSource, trail: &mut Trail, position: u64) -> Result<ScanReport, ScanError> {
    let snapshot = source.snapshot()?;
    let mut report = ScanReport { complete: true, ..ScanReport::default() };
    let tables: Vec<String> = source.tables().map(str::to_owned).collect();
    for table in &tables {
        let mut pass = TablePass { trail, table, met: HashSet::new(), report: &mut report, failed: None };
        let complete = snapshot.scan_at(position, table, CHUNK, |rows| pass.rows(rows))?;
        let TablePass { met, failed, .. } = pass;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if !complete {
            report.complete = false;
            return Ok(report);
        }
        missing(trail, table, &met, &mut report)?;
    }
    Ok(report)
}

struct TablePass<'a> {
    trail: &'a mut Trail,
    table: &'a str,
    met: HashSet<Bytes32>,
    report: &'a mut ScanReport,
    failed: Option<VaultError>,
}

impl TablePass<'_> {
    fn rows(&mut self, rows: Vec<(Key, Row)>) -> ControlFlow<()> {
        for (key, row) in rows {
            match self.row(key, &row) {
                Ok(finding) => self.report.findings.extend(finding),
                Err(error) => {
                    self.failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn row(&mut self, key: Key, row: &Row) -> Result<Option<Finding>, VaultError> {
        self.report.rows += 1;
        let record = self.trail.record_key(Some(self.table), &key_cells(&key));
        self.met.insert(record);
        let known = self.trail.state().record(self.table, &record).copied();
        let finding = |code, columns, about, text: &str| {
            Some(Finding {
                code,
                table: Some(self.table.to_owned()),
                key: Some(key.clone()),
                record: Some(record),
                columns,
                about,
                text: text.to_owned(),
            })
        };
        let Some((known, sealed)) = known.and_then(|k| k.leaf.row.map(|row| (k, row))) else {
            return Ok(finding(Code::RowUnknown, Vec::new(), None, "the row was never sealed"));
        };
        let Some(secret) = self.trail.vault().key(&compartment(&known, self.table))? else {
            // The patient's key was destroyed: nothing can be compared any more.
            return Ok(None);
        };
        let nonce = nonce(self.trail, &secret, &sealed);
        if commit_row(&nonce, cells(row)).1 == sealed.row {
            return Ok(None);
        }
        let content = self.trail.vault().get(sealed.seq)?.map(|(_, content)| content);
        let columns = differing(content.as_ref(), row);
        Ok(finding(Code::RowDiffers, columns, Some(sealed.seq), "the row differs from its sealed version"))
    }
}

/// Records that the trail has a row for and the pass did not meet.
fn missing(trail: &mut Trail, table: &str, met: &HashSet<Bytes32>, report: &mut ScanReport) -> Result<(), VaultError> {
    let gone: Vec<_> = trail
        .state()
        .records(table)
        .filter(|(record, _)| !met.contains(*record))
        .filter_map(|(record, known)| Some((*record, known.leaf.row?)))
        .collect();
    for (record, sealed) in gone {
        let content = trail.vault().get(sealed.seq)?.map(|(_, content)| content);
        report.findings.push(Finding {
            code: Code::RowMissing,
            table: Some(table.to_owned()),
            key: content.and_then(|c| c.key).map(|cells| key_of(cells.into_iter().map(|c| c.0))),
            record: Some(record),
            columns: Vec::new(),
            about: Some(sealed.seq),
            text: "the row is missing from the database".into(),
        });
    }
    Ok(())
}

fn compartment(record: &Record, table: &str) -> String {
    match record.row_patient {
        Some(patient @ Patient::Pseudonym(_)) => patient.to_string(),
        Some(pseudo) => pseudo.to_string(),
        None => format!("table:{table}"),
    }
}

fn nonce(trail: &Trail, secret: &SecretKey, sealed: &RowRef) -> LineNonce {
    LineNonce::new(secret, &trail.genesis().origin, sealed.timeline, sealed.seq)
}

fn cells(row: &Row) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    row.iter().map(|(name, cell)| (name, cell.expose()))
}

/// Names of the columns whose sealed values differ from the live ones, and of
/// those that only one side has.
pub fn differing(sealed: Option<&Content>, live: &Row) -> Vec<String> {
    let Some(sealed) = sealed.and_then(|c| c.row.as_ref()) else { return Vec::new() };
    let same = |name: &str, value: Option<&[u8]>| {
        sealed.iter().any(|(n, v)| n == name && v.as_ref().map(|v| v.0.as_slice()) == value)
    };
    let changed = cells(live).filter(|(name, value)| !same(name, *value)).map(|(name, _)| name.to_owned());
    let dropped = sealed.iter().filter(|(name, _)| live.get(name).is_none()).map(|(name, _)| name.clone());
    changed.chain(dropped).collect()
}
