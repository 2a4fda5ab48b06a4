//! The guarded tables as of one moment.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::encoding::Encoding;
use super::error::quote;
use super::slot::text;
use super::version::Version;
use super::wire::{CONVERTED, Field};
use super::{Config, Connection, Name, PgError, install, spelled};
use crate::event::{Cell, Key, Row, is_instant};
use crate::source::Unseen;

/// A published table, as the stream tells of it: same name, columns and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `schema.table`, spelled as in [`crate::Change::table`].
    pub name: String,
    /// Its columns, without generated ones, in order.
    pub columns: Arc<[String]>,
    /// What the catalogue knows each of them by, whatever it is called.
    pub numbers: Vec<u32>,
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

/// One moment of the database, in a session and transaction of its own; large
/// tables are read by a second one beside it.
///
/// While it lives, the server keeps row versions that it could clean up.
#[derive(Debug)]
pub struct Snapshot {
    sql: Connection,
    /// How it sends values.
    encoding: Encoding,
    /// Where the second one connects to.
    config: Config,
    second: Second,
    goes_on: bool,
}

/// The session that helps to read.
#[derive(Debug)]
enum Second {
    /// No table was large yet.
    Unneeded,
    There(Box<Connection>),
    /// The server did not let it in: one reads as well, only slower.
    Refused,
}

/// Pages of a table that are read as one part, of 8 kB each as a rule.
const PART_PAGES: u64 = 1024;

/// Chunks of rows that wait for who reads them.
const AHEAD: usize = 2;

/// Bytes of a chunk of rows, about: rows may be documents.
const CHUNK_BYTES: usize = 4 << 20;

/// How long the server may look for the next rows: between them may be much that is free,
/// and one that is frozen, or gone, does not hold whoever reads for ever.
const SILENCE: Duration = Duration::from_secs(600);

/// No index is asked instead of the heap, whatever the database has set: an index answers
/// for a heap that somebody edited on disk. Parts of a table are not each read as a whole.
const FROM_HEAP: &str = "SET enable_indexscan = off; SET enable_indexonlyscan = off; \
     SET enable_bitmapscan = off; SET enable_seqscan = on; SET enable_tidscan = on";

/// The condition for all of a table. It holds for each row, and no index has a `ctid`: none
/// can answer for the heap, however dear the database's settings make that.
const EACH_ROW: &str = " WHERE ctid >= '(0,0)'";

/// Rows of a table's first chunk, before their size is known.
const FIRST_CHUNK: usize = 50;

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
        let mut sql = Connection::open(config)?.silent_for(SILENCE);
        // Row security must refuse, not leave rows out. Rows are read as fast as
        // they are worked on: no limit of the role's may end that. But whoever locks a
        // table does not keep all others from being read for as long.
        sql.query(
            "SET row_security = off; SET statement_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '60s'",
        )?;
        sql.query(FROM_HEAP)?;
        let encoding = Encoding::ask(&mut sql)?;
        // A question that is refused would be the snapshot's end.
        sql.set_names(encoding.clone());
        sql.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        Ok(Self {
            sql,
            encoding,
            config: config.clone(),
            second: Second::Unneeded,
            goes_on: true,
        })
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

    /// Transactions that had begun by now and that this snapshot does not show. A commit
    /// is in the log, and may be told, before others see it; it can wait there for a
    /// standby for any length of time.
    ///
    /// # Errors
    /// Those of a query.
    pub fn unseen(&mut self) -> Result<Unseen, PgError> {
        unseen_by(&mut self.sql)
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
        let listed = match Version::ask(sql)?.has_column_lists() {
            true => "AND a.attname = ANY (p.attnames)",
            false => "",
        };
        let question = format!(
            "SELECT n.nspname, c.relname, a.attname, \
               coalesce(a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), c.relreplident = 'f'), \
               c.relkind = 'p', i.indexrelid IS NULL AND c.relreplident = 'f', a.attnum \
             FROM pg_catalog.pg_publication_tables p \
             JOIN pg_catalog.pg_namespace n ON n.nspname = p.schemaname \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
               AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' {listed} \
             LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND CASE c.relreplident \
               WHEN 'd' THEN i.indisprimary AND i.indimmediate \
               WHEN 'i' THEN i.indisreplident \
               WHEN 'f' THEN i.indisprimary AND i.indimmediate ELSE false END \
             WHERE p.pubname = '{publication}' ORDER BY 1, 2, a.attnum"
        );
        let rows = Encoding::names(sql, &question)?;
        grouped(&rows).ok_or(PgError::Protocol("a catalogue that cannot be read"))
    }

    /// Whether the same moment can still be read, after a table of it could not.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// Every row of a table with its key, in chunks of up to `chunk` rows (fewer
    /// where they are large), in no particular order, until `each` breaks.
    ///
    /// # Errors
    /// [`PgError::NoKey`], [`PgError::Permission`], and [`PgError::Server`]
    /// for a damaged page or a policy that would hide rows. Other tables can be read
    /// all the same, while the snapshot [goes on](Snapshot::goes_on).
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
        // How large it is cannot be asked while others lock it, either. The moment is
        // shared between two savepoints: within one, PostgreSQL exports none.
        let pages = self.attempt(|snapshot| snapshot.pages(table))?;
        let in_parts = pages > PART_PAGES && self.second()?;
        let scanned = self.attempt(|snapshot| match &mut snapshot.second {
            Second::There(second) if in_parts => {
                let readers = [&mut snapshot.sql, second];
                scan_in_parts(readers, &snapshot.encoding, table, pages, chunk, &mut each)
            }
            _ => {
                let sql = &mut snapshot.sql;
                read(sql, &snapshot.encoding, table, EACH_ROW, chunk, &mut each).map(drop)
            }
        });
        match scanned {
            Err(PgError::Permission { message, .. }) => Err(self.unreadable(table, message)?),
            other => other,
        }
    }

    /// Reads what may not be readable, in a way that leaves the transaction, and so the
    /// snapshot, usable if it is not.
    fn attempt<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        self.both("SAVEPOINT pitser")?;
        let read = read(self);
        let ended = self.both(match read {
            Ok(_) => "RELEASE SAVEPOINT pitser",
            Err(_) => "ROLLBACK TO SAVEPOINT pitser; RELEASE SAVEPOINT pitser",
        });
        read.and_then(|read| ended.map(|()| read))
    }

    /// Runs a command in both sessions. What fails in the first is the snapshot's end;
    /// the second can be done without.
    fn both(&mut self, command: &str) -> Result<(), PgError> {
        if let Second::There(second) = &mut self.second
            && second.query(command).is_err()
        {
            self.second = Second::Refused;
        }
        let ran = self.sql.query(command);
        self.goes_on = ran.is_ok();
        ran.map(drop)
    }

    /// How many pages the longest part of a table has; 0 if it is stored in
    /// another way, so that it can be read only as a whole.
    fn pages(&mut self, table: &Table) -> Result<u64, PgError> {
        self.of_parts(
            table,
            "CASE WHEN bool_and(c.relkind = 'p' OR (c.relkind = 'r' AND a.amname = 'heap')) \
             THEN max(pg_relation_size(c.oid)) / current_setting('block_size')::bigint ELSE 0 END",
        )
    }

    /// About how many rows a table has, its partitions' together: what the server last
    /// counted, 0 if it never did.
    ///
    /// # Errors
    /// Those of a query.
    pub fn about(&mut self, table: &Table) -> Result<u64, PgError> {
        self.of_parts(
            table,
            "coalesce(sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind <> 'p'), 0)::bigint",
        )
    }

    /// Whether a table that was read, or a partition of it, was stored anew after the snapshot
    /// was taken and before it was read: by `ALTER TABLE`, which then shows no row to older
    /// snapshots, by `TRUNCATE`, or by `VACUUM FULL`, which shows all.
    ///
    /// # Errors
    /// Those of a query.
    pub fn is_rewritten(&mut self, table: &Table) -> Result<bool, PgError> {
        // Rows of the catalogue are as the snapshot sees them, the function's answer is of now;
        // whoever has read a table keeps others from storing it anew.
        let rewritten = self.of_parts(
            table,
            "count(*) FILTER (WHERE c.relfilenode <> 0 \
               AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid))",
        )?;
        Ok(rewritten > 0)
    }

    /// A number about a table and its partitions, which are `c` in `what`, and their
    /// access methods `a`.
    fn of_parts(&mut self, table: &Table, what: &str) -> Result<u64, PgError> {
        let [schema, name] = &table.parts;
        let rows = self.sql.query(&format!(
            "SELECT {what} \
             FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace \
             JOIN pg_class c ON c.oid = r.oid OR c.oid IN (SELECT p.relid FROM pg_partition_tree(r.oid) p \
               WHERE r.relkind = 'p') \
             LEFT JOIN pg_am a ON a.oid = c.relam \
             WHERE n.nspname = {} AND r.relname = {}",
            install::literal(schema),
            install::literal(name)
        ))?;
        let number = rows.first().and_then(|row| text(row.first()?));
        Ok(number.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    /// Has a second session see the same moment; `false` if there can be none.
    fn second(&mut self) -> Result<bool, PgError> {
        if matches!(self.second, Second::Unneeded) {
            let rows = self.sql.query("SELECT pg_catalog.pg_export_snapshot()")?;
            let name = rows.first().and_then(|row| text(row.first()?));
            let name = name.ok_or(PgError::Protocol("a snapshot without a name"))?;
            self.second = match Self::open_exported(&self.config, name) {
                Ok(second) => Second::There(Box::new(second.sql)),
                Err(_) => Second::Refused,
            };
        }
        Ok(matches!(self.second, Second::There(_)))
    }

    /// The error that says which right to a table is missing.
    fn unreadable(&mut self, table: &Table, message: String) -> Result<PgError, PgError> {
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
    fn keyed(&self, fields: &[Field], encoding: &Encoding) -> Option<(Key, Row)> {
        let cells = encoding.cells(fields.iter().map(|field| field.as_deref()));
        let key: Option<Vec<Cell>> = self.key.iter().map(|at| cells.get(*at).cloned()).collect();
        let row = Row {
            columns: Arc::clone(&self.columns),
            cells,
        };
        Some((Key::new(key?), row)).filter(|(_, row)| row.cells.len() == self.columns.len())
    }
}

/// Reads a table by its pages, on a thread for each session. `each` is called on
/// the caller's own.
fn scan_in_parts(
    readers: [&mut Connection; 2],
    encoding: &Encoding,
    table: &Table,
    pages: u64,
    chunk: usize,
    each: &mut dyn FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
) -> Result<(), PgError> {
    let next = &AtomicU64::new(0);
    let (give, take) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        for sql in readers {
            let give = give.clone();
            scope.spawn(move || {
                let mut hand = |rows| match give.send(Ok(rows)) {
                    Ok(()) => ControlFlow::Continue(()),
                    // Nobody wants any more.
                    Err(_) => ControlFlow::Break(()),
                };
                loop {
                    let first = next.fetch_add(PART_PAGES, Ordering::Relaxed);
                    if first >= pages {
                        return;
                    }
                    match read(sql, encoding, table, &part(first, pages), chunk, &mut hand) {
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => return,
                        Err(error) => return drop(give.send(Err(error))),
                    }
                }
            });
        }
        drop(give);
        for rows in take {
            if each(rows?).is_break() {
                break;
            }
        }
        Ok(())
    })
}

/// The condition for the part that begins with page `first`. Nothing that the
/// snapshot shows is behind the last page, whatever was added since.
fn part(first: u64, pages: u64) -> String {
    let end = first + PART_PAGES;
    match end < pages {
        true => format!(" WHERE ctid >= '({first},0)' AND ctid < '({end},0)'"),
        false => format!(" WHERE ctid >= '({first},0)'"),
    }
}

/// Reads the rows of a table for which a condition holds, in chunks, until
/// `each` breaks.
fn read(
    sql: &mut Connection,
    encoding: &Encoding,
    table: &Table,
    condition: &str,
    chunk: usize,
    each: &mut dyn FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, PgError> {
    let columns: Vec<String> = table.columns.iter().map(|name| quote(name)).collect();
    let (columns, name) = (columns.join(", "), &table.sql);
    // Names are converted still, what is fetched no more.
    let setting = encoding.setting().unwrap_or_default();
    sql.query(&format!(
        "DECLARE pitser NO SCROLL CURSOR FOR SELECT {columns} FROM {name}{condition}; {setting}"
    ))?;
    let mut count = chunk.clamp(1, FIRST_CHUNK);
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() {
        let rows = sql.query_at_most(&format!("FETCH FORWARD {count} FROM pitser"), count)?;
        if rows.is_empty() {
            break;
        }
        let cells = rows.iter().flatten().flatten();
        let bytes: usize = cells.map(|cell| cell.len()).sum();
        count = (CHUNK_BYTES / (bytes / rows.len()).max(1)).clamp(1, chunk.max(1));
        let rows: Option<Vec<_>> = rows
            .into_iter()
            .map(|row| table.keyed(&row, encoding))
            .collect();
        let rows = rows.ok_or(PgError::Protocol("a row of another shape than its table"))?;
        flow = each(rows);
    }
    sql.query(&format!("CLOSE pitser; {CONVERTED}"))?;
    Ok(flow)
}

/// What the session's snapshot does not show; a session without one takes one for this.
pub(super) fn unseen_by(sql: &mut Connection) -> Result<Unseen, PgError> {
    // How many transactions came after number 3, the first: counted to the next, without
    // taking its number, modulo 2^32. The snapshot's own end may be earlier: a
    // transaction that has ended last may not show yet.
    let rows =
        sql.query("SELECT pg_catalog.pg_current_snapshot(), pg_catalog.age('3'::pg_catalog.xid)")?;
    let read = |row: &Vec<Field>| {
        let age = text(row.get(1)?)?.parse().ok()?;
        unseen_of(text(row.first()?)?, age)
    };
    let unseen = rows.first().and_then(read);
    unseen.ok_or(PgError::Protocol("a snapshot that cannot be read"))
}

/// Reads `xmin:xmax:running,running`, and how far the next number is from 3.
fn unseen_of(snapshot: &str, age: i32) -> Option<Unseen> {
    let mut parts = snapshot.splitn(3, ':').skip(1);
    let from: u64 = parts.next()?.parse().ok()?;
    let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
    let running: Result<Vec<u64>, _> = running.map(str::parse).collect();
    let next = age.cast_unsigned().wrapping_add(3);
    // Without its epoch, and a little later.
    let ahead = next.wrapping_sub(from as u32);
    Some(Unseen::new(from..from + u64::from(ahead), running.ok()?))
}

/// Tables from rows of `(schema, table, column, whether it is of the key,
/// whether the table is partitioned, whether it has no key, the column's number)`.
fn grouped(rows: &[Vec<Field>]) -> Option<Vec<Table>> {
    let same = |a: &Vec<Field>, b: &Vec<Field>| a.get(..2) == b.get(..2);
    rows.chunk_by(same)
        .map(|columns| {
            let first = columns.first()?;
            let (schema, table) = (text(first.first()?)?, text(first.get(1)?)?);
            let name = |row: &Vec<Field>| text(row.get(2)?).map(str::to_owned);
            let number = |row: &Vec<Field>| text(row.get(6)?)?.parse().ok();
            let is_key = |row: &Vec<Field>| row.get(3).and_then(text) == Some("t");
            Some(Table {
                name: spelled(schema, table),
                parts: [schema.to_owned(), table.to_owned()],
                columns: columns.iter().map(name).collect::<Option<_>>()?,
                numbers: columns.iter().map(number).collect::<Option<_>>()?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_begun_is_not_unseen() {
        let unseen = unseen_of("90:100:90,95", 100).unwrap();
        assert_eq!(unseen.next(), 103);
        for (tx, is_unseen) in [(90, true), (91, false), (95, true), (99, false)] {
            assert_eq!(unseen.contains(tx), is_unseen, "{tx}");
        }
        assert!(unseen.contains(100) && unseen.contains(102) && !unseen.contains(103));
        assert!(unseen_of("100:100:", 97).unwrap().is_none());
    }

    #[test]
    fn numbers_go_on_over_the_end_of_an_epoch() {
        let last = (7 << 32) + u64::from(u32::MAX);
        let unseen = unseen_of(&format!("{last}:{last}:"), 2).unwrap();
        assert_eq!(unseen.next(), (8 << 32) + 5);
        assert!(unseen.contains(last) && !unseen.contains(last - 1));
        // Beyond the middle of an epoch the age is negative.
        let middle = (7 << 32) + (1 << 31) + 10;
        let unseen = unseen_of(&format!("{middle}:{middle}:"), i32::MIN + 9).unwrap();
        assert_eq!(unseen.next(), middle + 2);
    }
}
