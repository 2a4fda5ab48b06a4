//! The guarded tables as of one moment, read from the file.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags};

use super::outbox::{self, Pending, Was};
use super::table::{Table, member};
use super::{SqliteError, connect, find, quote, value};
use crate::event::{Cell, Key, Row};

/// One moment of the database on a read-only connection of its own: no page
/// that was cached earlier can hide what the file holds now.
///
/// While it lives, a database that is not in WAL mode cannot commit: be quick,
/// or switch the database to WAL.
#[derive(Debug)]
pub struct Snapshot {
    db: Connection,
    tables: Vec<Table>,
    position: u64,
    at: String,
}

impl Snapshot {
    pub(super) fn open(
        path: &Path,
        tables: Vec<Table>,
        busy: Duration,
    ) -> Result<Self, SqliteError> {
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, busy)?;
        db.execute_batch("BEGIN")?;
        if !db.table_exists(None, "pitser_outbox")? {
            return Err(SqliteError::NotInstalled);
        }
        let position = outbox::position(&db)?;
        let at = db.query_row(
            "SELECT strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            db,
            tables,
            position,
            at,
        })
    }

    /// Changes up to and including this position are in the rows.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The engine's time when the snapshot was taken: RFC 3339, UTC, exactly
    /// six fractional digits.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// Whether the transaction is still there, after a table could not be read.
    pub fn goes_on(&self) -> bool {
        !self.db.is_autocommit()
    }

    /// Every row of a table, as it is at [`Snapshot::position`], in chunks of
    /// up to `chunk` rows, in no particular order, until `each` breaks.
    ///
    /// Reads the table's own pages, never a covering index instead.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`]; [`SqliteError::Damaged`], naming the table.
    pub fn scan(
        &self,
        table: &str,
        chunk: usize,
        mut each: impl FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
    ) -> Result<(), SqliteError> {
        let table = find(&self.tables, table)?;
        let chunk = chunk.max(1);
        let mut rows = Vec::new();
        let finished = self.each_row(table, |key, row| {
            rows.push((key, row));
            if rows.len() == chunk {
                each(std::mem::take(&mut rows))
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if finished.is_continue() && !rows.is_empty() {
            let _ = each(rows);
        }
        Ok(())
    }

    /// As [`Snapshot::scan`], with every record as it was at the earlier
    /// position `after`: what a baseline shows, and what a map that has seen
    /// all changes up to `after` must agree with.
    ///
    /// # Errors
    /// As [`Snapshot::scan`]. If the outbox no longer tells what happened since
    /// `after`, returns `Ok(false)`: poll, handle the gap, scan again.
    pub fn scan_at(
        &self,
        after: u64,
        table: &str,
        chunk: usize,
        mut each: impl FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
    ) -> Result<bool, SqliteError> {
        let name = &find(&self.tables, table)?.name;
        let pending = self.pending(after)?;
        if !pending.is_complete() {
            return Ok(false);
        }
        let mut met = HashSet::new();
        let mut broke = false;
        self.scan(name, chunk, |rows| {
            let rows = rows
                .into_iter()
                .filter_map(|(key, row)| match pending.was(name, &key) {
                    None => Some((key, row)),
                    Some(Was::Absent) => None,
                    Some(Was::Row(was)) => {
                        met.insert(key.clone());
                        Some((key, was.clone()))
                    }
                });
            let flow = each(rows.collect());
            broke = flow.is_break();
            flow
        })?;
        let gone: Vec<(Key, Row)> = pending
            .of_table(name)
            .filter_map(|(key, was)| match was {
                Was::Row(row) if !met.contains(key) => Some((key.clone(), row.clone())),
                _ => None,
            })
            .collect();
        if !broke && !gone.is_empty() {
            let _ = each(gone);
        }
        Ok(true)
    }

    /// What the records were that changed after position `after`.
    ///
    /// # Errors
    /// [`SqliteError::Damaged`].
    pub fn pending(&self, after: u64) -> Result<Pending, SqliteError> {
        outbox::pending(&self.db, after, self.position)
    }

    /// One record, `None` if there is none.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`]; [`SqliteError::KeyLength`];
    /// [`SqliteError::Damaged`], naming the table.
    pub fn read_row(&self, table: &str, key: &Key) -> Result<Option<Row>, SqliteError> {
        let table = find(&self.tables, table)?;
        check_key_length(table, key.cells().len())?;
        let matches: Vec<String> = table
            .key_names()
            .iter()
            .enumerate()
            .map(|(n, name)| format!("{} IS ?{}", member("t", name), n + 1))
            .collect();
        let sql = format!(
            "SELECT {} FROM {} AS t WHERE {}",
            table.row_sql("t"),
            quote(&table.name),
            matches.join(" AND ")
        );
        let mut found = None;
        let _ = self.query(
            table,
            &sql,
            rusqlite::params_from_iter(key.cells().iter().map(Bound)),
            |candidate, row| {
                // `IS` compares by the column's collation; a key is its bytes.
                if candidate == *key {
                    found = Some(row);
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(found)
    }

    fn each_row(
        &self,
        table: &Table,
        each: impl FnMut(Key, Row) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SqliteError> {
        let sql = format!(
            "SELECT {} FROM {} AS t NOT INDEXED",
            table.row_sql("t"),
            quote(&table.name)
        );
        self.query(table, &sql, [], each)
    }

    fn query(
        &self,
        table: &Table,
        sql: &str,
        params: impl rusqlite::Params,
        mut each: impl FnMut(Key, Row) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SqliteError> {
        let damaged = |error: rusqlite::Error| SqliteError::from(error).reading(&table.name);
        let mut query = self.db.prepare(sql).map_err(damaged)?;
        let mut rows = query.query(params).map_err(damaged)?;
        while let Some(row) = rows.next().map_err(damaged)? {
            let cells = row
                .get_ref(0)
                .map_err(damaged)?
                .as_str()
                .ok()
                .and_then(|transit| value::decode(transit, table.columns.len()))
                .expect("the statement is ours, and prints what decode reads");
            let key = Key::new(table.key.iter().map(|&at| cells[at].clone()).collect());
            let row = Row {
                columns: table.columns.clone(),
                cells,
            };
            if each(key, row).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

pub(super) fn check_key_length(table: &Table, given: usize) -> Result<(), SqliteError> {
    let wanted = table.key.len();
    if wanted == given {
        return Ok(());
    }
    Err(SqliteError::KeyLength {
        table: table.name.clone(),
        wanted,
        given,
    })
}

/// Whether all pages of a table can be read. Rows that break a `CHECK` or
/// `NOT NULL` are the application's affair, not damage.
pub(super) fn quick_check(db: &Connection, table: &str) -> Result<(), SqliteError> {
    let damaged = |detail: String| SqliteError::Damaged {
        what: format!("table {table:?}"),
        detail,
    };
    let mut query = db.prepare("SELECT * FROM pragma_quick_check(?1)")?;
    let mut rows = query.query([table])?;
    loop {
        match rows.next() {
            Ok(None) => return Ok(()),
            Ok(Some(row)) => {
                let finding: String = row.get(0)?;
                if finding != "ok" && !is_constraint(&finding) {
                    return Err(damaged(finding));
                }
            }
            Err(error) => return Err(SqliteError::from(error).reading(table)),
        }
    }
}

fn is_constraint(finding: &str) -> bool {
    finding.contains("CHECK constraint failed in")
        || finding.starts_with("NULL value in")
        || finding.contains(" value in ")
}

/// A cell as a statement's parameter.
struct Bound<'a>(&'a Cell);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number = |digits: &[u8]| std::str::from_utf8(digits).ok().map(str::to_owned);
        Ok(ToSqlOutput::Borrowed(match self.0.expose() {
            Some([b't', text @ ..]) => ValueRef::Text(text),
            Some([b'b', blob @ ..]) => ValueRef::Blob(blob),
            Some([b'i', digits @ ..]) => number(digits)
                .and_then(|n| n.parse().ok())
                .map_or(ValueRef::Null, ValueRef::Integer),
            Some([b'r', digits @ ..]) => number(digits)
                .and_then(|n| n.parse().ok())
                .map_or(ValueRef::Null, ValueRef::Real),
            _ => ValueRef::Null,
        }))
    }
}
