//! The operator's side of a sample: opens the rows that an auditor asks for
//! (docs/spec/34-audit.md §7). Of a row's columns those of the key and the one that
//! names the patient are shown, and no other value.

use std::collections::{BTreeSet, HashMap};

use pitser_evidence::codec::{Blob, Bytes32};
use pitser_evidence::commit::{LineNonce, column_leaf};
use pitser_evidence::file::OpenColumn;
use pitser_evidence::line::{Genesis, Line, Patient};
use pitser_evidence::sample::{Live, OpenedRow, Shown, ShownRow, Via};
use pitser_monitor::{OF_LIVE_ROWS, key_of, show_key};
use pitser_trail::export::{ExportError, Exporter};
use pitser_trail::{Layout, Row};

use crate::patients::identifier;
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
        // Rows may have become their own keys since, or be of a table that came later.
        let columns = content.names().map(|names| names.len());
        let is_shown =
            |cells: &Vec<_>| !self.is_whole_key(&table) && !is_whole(cells.len(), columns);
        if let Some(cells) = content.key.filter(is_shown) {
            shown.live = self.live(&line, &table, &cells)?;
            let row = content.row.as_ref();
            shown.key_columns = row.and_then(|row| self.key_columns(&table, &cells, row));
            shown.key = Some(cells.into_iter().map(Blob).collect());
            if self.table_keys {
                let key = self.exporter.keys().table(&table);
                shown.table_key = Some(Bytes32(*key.expose()));
            }
        }
        if let Some(row) = &content.row {
            let key = self.key(&table, shown.key_columns.as_deref());
            shown.columns = Some(self.columns(&table, key, &nonce, row));
            let named = shown.patient.as_ref().map(|patient| patient.id.as_str());
            shown.via = self.via(&table, row, &line, named)?;
        }
        Ok(ShownRow::Opened(Box::new(shown)))
    }

    /// Whether the key is the whole row: then it is not shown, for it has every value.
    fn is_whole_key(&self, table: &str) -> bool {
        let mut tables = self.genesis.tables.iter();
        let table = tables.find(|known| known.name == table);
        table.is_some_and(|table| table.key.len() >= table.columns.len() && table.key.len() > 1)
    }

    /// The columns of a table's key that may be shown: those given, or those of the genesis.
    fn key<'k>(&'k self, table: &str, given: Option<&'k [String]>) -> &'k [String] {
        let mut tables = self.genesis.tables.iter();
        let known = tables.find(|known| known.name == table);
        let first = known.filter(|_| !self.is_whole_key(table));
        given.unwrap_or_else(|| first.map_or(&[], |table| table.key.as_slice()))
    }

    /// The columns of `row` that hold its key, if they are not those that the genesis
    /// names, and the row has them.
    fn key_columns(&self, table: &str, cells: &[Vec<u8>], row: &Row) -> Option<Vec<String>> {
        let first = self.key(table, None);
        let value = |wanted: &str| {
            let mut columns = row.iter();
            let (_, value) = columns.find(|(name, _)| *name == wanted)?;
            Some(value.unwrap_or_default())
        };
        let holds = |(name, cell): (&String, &Vec<u8>)| value(name) == Some(cell.as_slice());
        if first.len() == cells.len() && first.iter().zip(cells).all(holds) {
            return None;
        }
        let mut left: Vec<_> = row.iter().collect();
        let columns = cells.iter().map(|cell| {
            let is_it = |(_, value): &(&str, Option<&[u8]>)| value.unwrap_or_default() == cell;
            let at = left.iter().position(is_it)?;
            Some(left.remove(at).0.to_owned())
        });
        columns.collect()
    }

    /// The row's columns: open are those of the key, and the one that leads to the patient.
    fn columns(
        &self,
        table: &str,
        key: &[String],
        nonce: &LineNonce,
        row: &Row,
    ) -> Vec<OpenColumn> {
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

    /// The rows through which `named`, the patient of a line's `row`, was found: as they
    /// were at the line, or at the end of its transaction.
    fn via(
        &mut self,
        table: &str,
        row: &Row,
        line: &Line,
        named: Option<&str>,
    ) -> Result<Vec<Via>, ExportError> {
        let is_before = |other: &Line| other.seq <= line.seq;
        let is_of_same = |other: &Line| other.tx.is_some() && other.tx == line.tx;
        let at_end = |other: &Line| is_before(other) || is_of_same(other);
        let (via, found) = self.way(table, row, &at_end)?;
        match found.as_deref() == named {
            true => Ok(via),
            false => Ok(self.way(table, row, &is_before)?.0),
        }
    }

    /// The rows on the way from `row` to its patient by the lines that count, and whom
    /// they lead to.
    fn way(
        &mut self,
        table: &str,
        row: &Row,
        counts: &dyn Fn(&Line) -> bool,
    ) -> Result<(Vec<Via>, Option<String>), ExportError> {
        let mut via = Vec::new();
        let mut found = self.named(table, row);
        let mut next = self.target(table, row);
        while let Some((table, cell)) = next.take().filter(|_| via.len() < STEPS) {
            let cells = [cell];
            let Some(line) = self.exporter.standing_row_line(&table, &cells, counts)? else {
                break;
            };
            let (_, opened) = self.exporter.opened(line)?;
            let Some((nonce, row)) =
                opened.and_then(|(nonce, content)| Some((nonce, content.row?)))
            else {
                break;
            };
            let key_columns = self.key_columns(&table, &cells, &row);
            let key = self.key(&table, key_columns.as_deref());
            let columns = self.columns(&table, key, &nonce, &row);
            via.push(Via {
                columns,
                key_columns,
                line,
            });
            found = self.named(&table, &row);
            next = self.target(&table, &row);
        }
        Ok((via, found))
    }

    /// The patient whom a row names itself.
    fn named(&self, table: &str, row: &Row) -> Option<String> {
        let (column, None) = self.path(table)? else {
            return None;
        };
        let mut values = row.iter();
        let (_, value) = values.find(|(name, _)| *name == column)?;
        identifier(value?)
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
        // Of a record that is gone there is no live row.
        let newest = self.exporter.standing_row_line(table, cells, |_| true)?;
        let key = show_key(&key_of(cells.to_vec()));
        let findings = self.status.findings.iter();
        let wrong = findings.filter(|finding| {
            let is_here = finding.table.as_deref() == Some(table)
                && finding.key.as_deref() == Some(key.as_str());
            is_here
                && finding.open
                && OF_LIVE_ROWS
                    .iter()
                    .any(|code| code.as_str() == finding.code)
        });
        let mut wrong: BTreeSet<String> = wrong.map(|finding| finding.code.to_string()).collect();
        // Those that are only counted are known by their lines.
        let counted = &self.status.counted_rows;
        for code in OF_LIVE_ROWS {
            let is_it = |line: &Line| {
                let body = line.finding.as_ref();
                body.is_some_and(|body| body.code == code) && counted.contains(line.seq)
            };
            let known = !counted.is_empty() && !wrong.contains(code.as_str());
            if known && self.exporter.record_line(table, cells, is_it)?.is_some() {
                wrong.insert(code.to_string());
            }
        }
        // Not what came since the pass began, nor what it could not read.
        let compared_at = self.status.verified_up_to.as_ref().filter(|_| {
            let is_unread = self
                .status
                .unread
                .iter()
                .any(|unread| unread.table == table);
            line.seq < self.status.compared_before && !is_unread
        });
        Ok(Some(Live {
            compared_at: compared_at.cloned(),
            is_newest: newest == Some(line.seq),
            wrong: wrong.into_iter().collect(),
        }))
    }
}

/// Whether a key of so many cells is a row of so many columns, with or without its number
/// among equal ones. Of a row of which nothing is known, it may be.
fn is_whole(cells: usize, columns: Option<usize>) -> bool {
    cells > 1 && columns.is_none_or(|columns| cells >= columns.max(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_evidence::Code;
    use pitser_evidence::codec::Digest;
    use pitser_evidence::line::{Finding, Op, Timestamp};
    use pitser_trail::{Body, Draft, GenesisDraft, TableDraft, Trail};
    use std::sync::Arc;

    #[test]
    fn a_key_that_is_the_row_is_told_from_one_that_is_not() {
        for (cells, columns, whole) in [
            (1, Some(1), false),
            (1, Some(3), false),
            (2, Some(3), false),
            (3, Some(3), true),
            // With its number.
            (4, Some(3), true),
            (2, Some(1), true),
            (1, None, false),
            (2, None, true),
        ] {
            assert_eq!(is_whole(cells, columns), whole, "{cells} of {columns:?}");
        }
    }

    /// What an auditor is told of a live row does not depend on whether its finding is one
    /// of those that are listed.
    #[test]
    fn a_row_whose_finding_is_only_counted_is_wrong_too() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let at = Timestamp::from_micros(1_773_480_413_000_000).unwrap();
        let genesis = GenesisDraft {
            at,
            system: "5e55".into(),
            timeline: 1,
            pos: "0".into(),
            source: "ehr".into(),
            tables: vec![TableDraft {
                name: "entry".into(),
                columns: vec!["id".into()],
                key: vec!["id".into()],
                patient: "none".into(),
            }],
            uncovered: vec![],
        };
        let mut trail = Trail::create(layout.clone(), "test.example/h", &genesis).unwrap();
        let key = vec![b"t1".to_vec()];
        let draft = |op| Draft {
            table: Some("entry".into()),
            key: Some(key.clone()),
            ..Draft::new(op, at, "ehr", "1")
        };
        let row = Row {
            names: ["id".to_owned()].into(),
            values: vec![Some(b"t1".as_slice().into())],
        };
        let create = Draft {
            row: Some(row),
            ..draft(Op::Create)
        };
        let seq = trail.append(vec![create]).unwrap();
        let finding = Draft {
            body: Some(Box::new(Body::Finding(Finding {
                about: Some(seq),
                code: Code::RowDiffers,
                text: "the row differs from its sealed version".into(),
            }))),
            ..draft(Op::Finding)
        };
        let told = trail.append(vec![finding]).unwrap();
        trail.close_block(at, "1", Digest::of(&[]), "test").unwrap();
        let line = trail.line(seq).unwrap().unwrap();
        drop(trail);
        for (counted, wrong) in [(told, vec!["ROW-01"]), (told + 1, vec![])] {
            let status = Status {
                counted_rows: Arc::new([counted].into_iter().collect()),
                ..Status::default()
            };
            let opener = Opener::new(layout.clone(), &status, false).unwrap();
            let live = opener.live(&line, "entry", &key).unwrap().unwrap();
            assert_eq!(live.wrong, wrong);
        }
    }
}
