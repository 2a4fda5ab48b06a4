//! The operator's side of a sample: opens the rows that an auditor asks for
//! (docs/spec/34-audit.md §7). Of a row's columns those of the key and the one that
//! names the patient are shown, and no other value.

use std::collections::HashMap;

use pitser_evidence::codec::{Blob, Bytes32};
use pitser_evidence::commit::{LineNonce, column_leaf};
use pitser_evidence::file::OpenColumn;
use pitser_evidence::line::{Genesis, Line, Patient};
use pitser_evidence::sample::{Live, OpenedRow, Shown, ShownRow, Via};
use pitser_monitor::{key_of, show_key};
use pitser_trail::export::{ExportError, Exporter};
use pitser_trail::{Layout, Row};

use crate::status::Status;

/// Steps from a row to the one that names its patient.
const STEPS: usize = 16;

/// What an auditor is shown, and by whom.
pub(super) struct Opener<'a> {
    exporter: Exporter,
    genesis: Genesis,
    status: &'a Status,
    table_keys: bool,
    /// Paths to the patient, by table.
    mapping: HashMap<String, String>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(
        layout: Layout,
        status: &'a Status,
        table_keys: bool,
    ) -> Result<Self, ExportError> {
        let exporter = Exporter::open(layout)?;
        let genesis = exporter.genesis().cloned().ok_or(ExportError::NoHead)?;
        let rows = status
            .mapping
            .lines()
            .filter_map(|row| row.split_once('\t'));
        let mapping = rows.map(|(table, path)| (table.to_owned(), path.to_owned()));
        Ok(Self {
            mapping: mapping.collect(),
            exporter,
            genesis,
            status,
            table_keys,
        })
    }

    pub(super) fn rows(&mut self, rows: &[u64]) -> Result<Shown, ExportError> {
        let rows = rows.iter().map(|seq| self.row(*seq));
        Ok(Shown {
            rows: rows.collect::<Result<_, _>>()?,
        })
    }

    fn row(&mut self, seq: u64) -> Result<ShownRow, ExportError> {
        let refused = |why: &str| Ok(ShownRow::Refused { why: why.into() });
        if seq >= self.exporter.lines_read() {
            return refused("there is no such line");
        }
        let (line, opened) = self.exporter.opened(seq)?;
        let Some(table) = line.table.clone().filter(|_| line.row.is_some()) else {
            return refused("the line commits to no row");
        };
        let Some((nonce, content)) = opened else {
            let patient = line.patient.unwrap_or(Patient::Unknown);
            return match self.exporter.erased_by(&patient, seq)? {
                Some(line) => Ok(ShownRow::Erased { line }),
                None => refused("the vault has lost what the line commits to"),
            };
        };
        let mut shown = OpenedRow {
            mapping: Some(self.status.mapping.clone()),
            ..OpenedRow::default()
        };
        if let Some(patient) = line.patient {
            shown.patient = self.exporter.subject(&patient)?;
        }
        if let Some(cells) = content.key.filter(|_| !self.is_whole_key(&table)) {
            shown.live = self.live(&line, &table, &cells)?;
            shown.key = Some(cells.into_iter().map(Blob).collect());
            if self.table_keys {
                let key = self.exporter.keys().table(&table);
                shown.table_key = Some(Bytes32(*key.expose()));
            }
        }
        if let Some(row) = &content.row {
            shown.columns = Some(self.columns(&table, &nonce, row));
            shown.via = self.via(&table, row, seq)?;
        }
        Ok(ShownRow::Opened(Box::new(shown)))
    }

    /// Whether the key is the whole row: then it is not shown, for it has every value.
    fn is_whole_key(&self, table: &str) -> bool {
        let mut tables = self.genesis.tables.iter();
        let table = tables.find(|known| known.name == table);
        table.is_some_and(|table| table.key.len() >= table.columns.len() && table.key.len() > 1)
    }

    /// The row's columns: open are those of the key, and the one that leads to the patient.
    fn columns(&self, table: &str, nonce: &LineNonce, row: &Row) -> Vec<OpenColumn> {
        let mut tables = self.genesis.tables.iter();
        let key = tables.find(|known| known.name == table);
        let key: &[String] = match key.filter(|_| !self.is_whole_key(table)) {
            Some(table) => &table.key,
            None => &[],
        };
        let (patient, _) = self.path(table).unwrap_or_default();
        let column = |(name, value): (&str, Option<&[u8]>)| {
            let secret = nonce.column(name);
            match name == patient || key.iter().any(|column| column == name) {
                true => OpenColumn::open(name, secret, value),
                false => OpenColumn {
                    bytes: None,
                    hidden: Some(Bytes32(column_leaf(&secret, name, value))),
                    name: name.to_owned(),
                    nonce: None,
                    value: None,
                },
            }
        };
        row.iter().map(column).collect()
    }

    /// The column of a table that leads to the patient, and the table that it leads to.
    fn path(&self, table: &str) -> Option<(&str, Option<&str>)> {
        let path = self.mapping.get(table)?;
        Some(match path.split_once(" -> ") {
            Some((column, target)) => (column, Some(target)),
            None => (path.as_str(), None),
        })
    }

    /// The rows through which the patient of `row` was found.
    fn via(&mut self, table: &str, row: &Row, seq: u64) -> Result<Vec<Via>, ExportError> {
        let mut via = Vec::new();
        let mut next = self.target(table, row);
        while let Some((table, cell)) = next.take().filter(|_| via.len() < STEPS) {
            let Some(line) = self.exporter.row_line(&table, &[cell], seq)? else {
                break;
            };
            let (_, opened) = self.exporter.opened(line)?;
            let Some((nonce, row)) =
                opened.and_then(|(nonce, content)| Some((nonce, content.row?)))
            else {
                break;
            };
            let columns = self.columns(&table, &nonce, &row);
            via.push(Via { columns, line });
            next = self.target(&table, &row);
        }
        Ok(via)
    }

    /// The table, and the key in it, that a row's patient is found through.
    fn target(&self, table: &str, row: &Row) -> Option<(String, Vec<u8>)> {
        let (column, target) = self.path(table)?;
        let target = target?;
        let mut values = row.iter();
        let (_, value) = values.find(|(name, _)| *name == column)?;
        Some((target.to_owned(), value?.to_vec()))
    }

    /// What the last pass over the live rows said of the record.
    fn live(
        &self,
        line: &Line,
        table: &str,
        cells: &[Vec<u8>],
    ) -> Result<Option<Live>, ExportError> {
        let newest = self.exporter.row_line(table, cells, u64::MAX)?;
        let key = show_key(&key_of(cells.to_vec()));
        let findings = self.status.findings.iter();
        let wrong = findings.filter(|finding| {
            let is_here = finding.table.as_deref() == Some(table)
                && finding.key.as_deref() == Some(key.as_str());
            is_here && finding.open && finding.code.starts_with("ROW-")
        });
        Ok(Some(Live {
            compared_at: self.status.verified_up_to.clone(),
            is_newest: newest == Some(line.seq),
            wrong: wrong.map(|finding| finding.code.to_string()).collect(),
        }))
    }
}
