//! The guarded tables as of one moment.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::error::quote;
use super::slot::text;
use super::wire::{Field, NAMES};
use super::{Config, Connection, Name, PgError, cell, install, spelled};
use crate::event::{Cell, Key, Row, is_instant};
use crate::source::Unseen;

/// A published table, as the stream tells of it: same name, columns and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `schema.table`, spelled as in [`crate::Change::table`].
    pub name: String,
    /// Its columns, without generated ones, in order.
    pub columns: Arc<[String]>,
    /// Places in `columns` of those that identify a row, ascending. Empty: its
    /// rows cannot be followed, and PostgreSQL refuses updates and deletes.
    pub key: Vec<usize>,
    /// The whole row is the key, for want of a better one.
    pub keyless: bool,
    /// What a query selects from.
    sql: String,
    /// Its schema and its name, as the catalogue spells them.
    parts: [String; 2],
}

/// One moment of the database, in a session and transaction of its own.
///
/// While it lives, the server keeps row versions that it could clean up.
#[derive(Debug)]
pub struct Snapshot {
    sql: Connection,
}

impl Snapshot {
    /// Opens the snapshot that a new slot exported: baseline rows.
    ///
    /// # Errors
    /// Those of [`Connection::open`], and [`PgError::Server`] for a snapshot
    /// that has ended.
    pub fn open_exported(config: &Config, name: &str) -> Result<Self, PgError> {
        let mut snapshot = Self::open(config)?;
        let name = name.replace('\'', "''");
        snapshot
            .sql
            .query(&format!("SET TRANSACTION SNAPSHOT '{name}'"))?;
        Ok(snapshot)
    }

    /// Opens a snapshot of the present moment.
    ///
    /// # Errors
    /// Those of [`Connection::open`].
    pub fn open(config: &Config) -> Result<Self, PgError> {
        let mut sql = Connection::open(config)?;
        // Row security must refuse, not leave rows out. Rows are read as fast as
        // they are worked on: no limit of the role's may end that.
        sql.query(
            "SET row_security = off; SET statement_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0",
        )?;
        for (name, value) in NAMES {
            sql.query(&format!("SET {name} = {value}"))?;
        }
        sql.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        Ok(Self { sql })
    }

    /// The server's time of this snapshot: RFC 3339, UTC, six fractional digits.
    ///
    /// # Errors
    /// Those of a query.
    pub fn at(&mut self) -> Result<String, PgError> {
        let rows = self.sql.query(
            "SELECT pg_catalog.to_char(pg_catalog.transaction_timestamp(), \
             'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        )?;
        rows.first()
            .and_then(|row| text(row.first()?).filter(|at| is_instant(at)))
            .map(str::to_owned)
            .ok_or(PgError::Protocol("a server without a time"))
    }

    /// Transactions that this snapshot does not show: those under way, and later
    /// ones. A commit is in the log, and may be told, before others see it; it
    /// can wait there for a standby for any length of time.
    ///
    /// # Errors
    /// Those of a query.
    pub fn unseen(&mut self) -> Result<Unseen, PgError> {
        let rows = self.sql.query("SELECT pg_catalog.pg_current_snapshot()")?;
        rows.first()
            .and_then(|row| text(row.first()?))
            .and_then(unseen_by)
            .ok_or(PgError::Protocol("a snapshot that cannot be read"))
    }

    /// The tables of a publication, by schema and name.
    ///
    /// # Errors
    /// Those of a query.
    pub fn tables(&mut self, publication: &Name) -> Result<Vec<Table>, PgError> {
        Self::tables_of(&mut self.sql, publication)
    }

    pub(super) fn tables_of(
        sql: &mut Connection,
        publication: &Name,
    ) -> Result<Vec<Table>, PgError> {
        // Column lists came with PostgreSQL 15.
        let version = sql.query("SHOW server_version_num")?;
        let version = version
            .first()
            .and_then(|row| text(row.first()?)?.parse().ok());
        let listed = match version.unwrap_or(0_u32) {
            150_000.. => "AND a.attname = ANY (p.attnames)",
            _ => "",
        };
        let rows = sql.query(&format!(
            "SELECT n.nspname, c.relname, a.attname, \
               coalesce(a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), c.relreplident = 'f'), \
               c.relkind = 'p', i.indexrelid IS NULL AND c.relreplident = 'f' \
             FROM pg_catalog.pg_publication_tables p \
             JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
               AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' {listed} \
             LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND CASE c.relreplident \
               WHEN 'd' THEN i.indisprimary AND i.indimmediate \
               WHEN 'i' THEN i.indisreplident \
               WHEN 'f' THEN i.indisprimary ELSE false END \
             WHERE p.pubname = '{publication}' ORDER BY 1, 2, a.attnum"
        ))?;
        grouped(&rows).ok_or(PgError::Protocol("a catalogue that cannot be read"))
    }

    /// Every row of a table with its key, in chunks of up to `chunk` rows, in
    /// no particular order, until `each` breaks.
    ///
    /// # Errors
    /// [`PgError::NoKey`], [`PgError::Permission`], and [`PgError::Server`]
    /// for a damaged page or a policy that would hide rows.
    pub fn scan(
        &mut self,
        table: &Table,
        chunk: usize,
        mut each: impl FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
    ) -> Result<(), PgError> {
        if table.key.is_empty() {
            let table = table.name.clone();
            return Err(PgError::NoKey { table });
        }
        let columns: Vec<String> = table.columns.iter().map(|name| quote(name)).collect();
        let (columns, name) = (columns.join(", "), &table.sql);
        let declared = self.sql.query(&format!(
            "DECLARE pitser NO SCROLL CURSOR FOR SELECT {columns} FROM {name}"
        ));
        match declared {
            Err(PgError::Permission { message, .. }) => {
                return Err(self.unreadable(table, message)?);
            }
            other => other?,
        };
        let fetch = format!("FETCH FORWARD {} FROM pitser", chunk.max(1));
        loop {
            let rows = self.sql.query(&fetch)?;
            if rows.is_empty() {
                break;
            }
            let rows: Option<Vec<_>> = rows.into_iter().map(|row| table.keyed(row)).collect();
            let rows = rows.ok_or(PgError::Protocol("a row of another shape than its table"))?;
            if each(rows).is_break() {
                break;
            }
        }
        self.sql.query("CLOSE pitser").map(|_| ())
    }

    /// The error that says which right to a table is missing.
    fn unreadable(&mut self, table: &Table, message: String) -> Result<PgError, PgError> {
        // The refusal was the end of the transaction, and so of the snapshot.
        self.sql.query("ROLLBACK")?;
        let [schema, name] = &table.parts;
        let grant = install::missing_right(&mut self.sql, schema, name)?;
        Ok(match grant {
            Some(grant) => PgError::Permission { message, grant },
            None => PgError::Unfit {
                what: format!("{message}; table {} could not be read", table.name),
            },
        })
    }
}

impl Table {
    fn keyed(&self, fields: Vec<Field>) -> Option<(Key, Row)> {
        let cells: Vec<Cell> = fields.iter().map(|field| cell(field.as_deref())).collect();
        let key: Option<Vec<Cell>> = self.key.iter().map(|at| cells.get(*at).cloned()).collect();
        let row = Row {
            columns: Arc::clone(&self.columns),
            cells,
        };
        Some((Key::new(key?), row)).filter(|(_, row)| row.cells.len() == self.columns.len())
    }
}

/// Reads `xmin:xmax:running,running`.
fn unseen_by(snapshot: &str) -> Option<Unseen> {
    let mut parts = snapshot.splitn(3, ':').skip(1);
    let from = parts.next()?.parse().ok()?;
    let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
    let running: Result<Vec<u64>, _> = running.map(str::parse).collect();
    Some(Unseen::new(from, running.ok()?))
}

/// Tables from rows of `(schema, table, column, whether it is of the key,
/// whether the table is partitioned, whether it has no key)`.
fn grouped(rows: &[Vec<Field>]) -> Option<Vec<Table>> {
    let same = |a: &Vec<Field>, b: &Vec<Field>| a.get(..2) == b.get(..2);
    rows.chunk_by(same)
        .map(|columns| {
            let first = columns.first()?;
            let (schema, table) = (text(first.first()?)?, text(first.get(1)?)?);
            let name = |row: &Vec<Field>| text(row.get(2)?).map(str::to_owned);
            let is_key = |row: &Vec<Field>| row.get(3).and_then(text) == Some("t");
            Some(Table {
                name: spelled(schema, table),
                parts: [schema.to_owned(), table.to_owned()],
                columns: columns.iter().map(name).collect::<Option<_>>()?,
                key: (0..columns.len())
                    .filter(|place| is_key(&columns[*place]))
                    .collect(),
                keyless: first.get(5).and_then(text) == Some("t"),
                // The partitions of a partitioned table are its rows; the children
                // of an ordinary one are tables of their own.
                sql: match first.get(4).and_then(text) {
                    Some("t") => format!("{}.{}", quote(schema), quote(table)),
                    _ => format!("ONLY {}.{}", quote(schema), quote(table)),
                },
            })
        })
        .collect()
}
