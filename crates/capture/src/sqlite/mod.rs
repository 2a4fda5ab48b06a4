//! A guarded SQLite database (docs/spec/60-sqlite-capture.md).
//!
//! Triggers write every change of a guarded table into an outbox, inside the
//! transaction that makes the change: what is rolled back leaves no trace, and
//! what is committed cannot be missing. The application says who is acting by
//! writing to two views, first and last in its transaction:
//!
//! ```sql
//! BEGIN;
//! INSERT INTO pitser_begin(actor, app, purpose) VALUES ('EE38001085718', 'ward', 'TREAT');
//! UPDATE observation SET value = 7.1 WHERE id = 4711;
//! INSERT INTO pitser_end DEFAULT VALUES;
//! COMMIT;
//! ```
//!
//! A change outside such a bracket is captured all the same, unattributed.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("ward.db");
//! # let app = rusqlite::Connection::open(&path)?;
//! # app.execute_batch("CREATE TABLE observation(id INTEGER PRIMARY KEY, value REAL)")?;
//! use pitser_capture::sqlite::{SqliteSource, TableSpec};
//! use pitser_capture::{Captured, Op, Position};
//!
//! let mut source = SqliteSource::open(&path, &[TableSpec::new("observation")])?;
//! source.install(&[7; 16])?;
//!
//! app.execute_batch("INSERT INTO observation VALUES (4711, 6.8)")?;
//!
//! for step in source.poll(0, 100)? {
//!     if let Captured::Change(change) = step {
//!         assert_eq!((change.pos, change.op), (Position::Outbox(1), Op::Create));
//!         assert!(change.actor.is_none(), "ACT-01");
//!     }
//! }
//! source.ack(1)?; // once it is durable in the trail
//! # Ok(())
//! # }
//! ```
//!
//! In scope: what is installed, reading the outbox, reading rows again, noticing
//! that capture was weakened. Elsewhere: what to do about it.

mod fingerprint;
mod install;
mod outbox;
mod repair;
mod snapshot;
mod source;
mod table;
mod value;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use thiserror::Error;

use crate::event::{Captured, Key, Row};
use crate::source::Shape;
pub use fingerprint::{Drift, Fingerprint, How};
pub use outbox::{Pending, Was};
pub use snapshot::Snapshot;
use table::Table;
pub use value::{expose_literal, integer, text};

/// A table to guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name; letter case does not matter, as in SQLite.
    pub name: String,
}

impl TableSpec {
    /// The table of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

/// Names of a database's ordinary tables, sorted: no views, no virtual tables
/// and their shadows, nothing of SQLite's or ours. Some may be refused still.
///
/// # Errors
/// Those of [`SqliteError`] that name the file.
pub fn table_names(path: impl AsRef<Path>) -> Result<Vec<String>, SqliteError> {
    let db = connect(
        path.as_ref(),
        OpenFlags::SQLITE_OPEN_READ_ONLY,
        SqliteSource::BUSY,
    )?;
    names(&db)
}

/// Names of the tables for which capture was installed at any time, as the schema spelled
/// them then; empty if it is not installed.
///
/// # Errors
/// Those of [`SqliteError`] that name the file.
pub fn installed_names(path: impl AsRef<Path>) -> Result<Vec<String>, SqliteError> {
    let db = connect(
        path.as_ref(),
        OpenFlags::SQLITE_OPEN_READ_ONLY,
        SqliteSource::BUSY,
    )?;
    if !db.table_exists(None, "pitser_shape")? {
        return Ok(Vec::new());
    }
    let mut query = db.prepare("SELECT DISTINCT tbl FROM pitser_shape")?;
    let names = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(names)
}

fn names(db: &Connection) -> Result<Vec<String>, SqliteError> {
    let mut query = db.prepare(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' \
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'pitser\\_%' ESCAPE '\\' ORDER BY name",
    )?;
    let names = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(names)
}

/// A guarded SQLite database: the guardian's one connection that may write.
#[derive(Debug)]
pub struct SqliteSource {
    path: PathBuf,
    /// Device and inode of the file that is open.
    file: (u64, u64),
    tables: Vec<Table>,
    shapes: Vec<Shape>,
    db: Connection,
    busy: Duration,
    /// Everything up to here was deleted from the outbox by [`SqliteSource::ack`].
    acked: u64,
    /// The file's version when a poll last came back empty.
    polled: Option<i64>,
    /// How far it was read as any [`Source`](crate::Source) is.
    reading: Option<source::Reading>,
}

impl SqliteSource {
    /// How long to wait for another connection's lock, unless told otherwise.
    pub const BUSY: Duration = Duration::from_secs(5);

    /// Opens an existing database and checks that these tables can be guarded.
    /// Changes nothing and creates nothing.
    ///
    /// Reads the guarded tables once in full (`PRAGMA quick_check`).
    ///
    /// # Errors
    /// Those of [`SqliteError`] that name the file or a table.
    pub fn open(path: impl AsRef<Path>, tables: &[TableSpec]) -> Result<Self, SqliteError> {
        Self::open_within(path, tables, Self::BUSY)
    }

    /// As [`SqliteSource::open`], waiting up to `busy` for a lock, now and later.
    ///
    /// # Errors
    /// As [`SqliteSource::open`].
    pub fn open_within(
        path: impl AsRef<Path>,
        tables: &[TableSpec],
        busy: Duration,
    ) -> Result<Self, SqliteError> {
        let path = path.as_ref();
        let file = file_of(path)?;
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, busy)?;
        // What is acknowledged may hold patient data: overwrite it.
        db.pragma_update(None, "secure_delete", true)?;
        let mut source = Self {
            path: path.to_owned(),
            file: file.unwrap_or_default(),
            tables: Vec::new(),
            shapes: Vec::new(),
            db,
            busy,
            acked: 0,
            polled: None,
            reading: None,
        };
        source.check_encoding()?;
        for spec in tables {
            let table = Table::inspect(&source.db, spec)?;
            snapshot::quick_check(&source.db, &table.name)?;
            source.tables.push(table);
        }
        if source.is_installed()? {
            snapshot::quick_check(&source.db, "pitser_outbox")?;
        }
        source.shapes = source::shapes(&source)?;
        Ok(source)
    }

    fn check_encoding(&self) -> Result<(), SqliteError> {
        let found: String = self
            .db
            .pragma_query_value(None, "encoding", |row| row.get(0))?;
        if found == "UTF-8" {
            Ok(())
        } else {
            Err(SqliteError::Encoding { found })
        }
    }

    /// The statements that [`SqliteSource::install`] would run now, in order;
    /// empty once everything is in place.
    ///
    /// # Errors
    /// [`SqliteError::Foreign`] if an object of ours is not as we make it.
    pub fn plan_install(&self, system: &[u8; 16]) -> Result<Vec<String>, SqliteError> {
        install::plan(
            &self.db,
            &self.tables,
            &data_encoding::HEXLOWER.encode(system),
        )
    }

    /// Installs or repairs capture in one transaction, and returns the
    /// statements that it ran. `system` names this database from now on: 16
    /// random bytes, ignored if it has a name already.
    ///
    /// # Errors
    /// As [`SqliteSource::plan_install`]; nothing is changed then.
    pub fn install(&mut self, system: &[u8; 16]) -> Result<Vec<String>, SqliteError> {
        let system = data_encoding::HEXLOWER.encode(system);
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let plan = install::plan(&tx, &self.tables, &system)?;
        run(&tx, &plan)?;
        tx.commit()?;
        Ok(plan)
    }

    /// The statements that [`SqliteSource::uninstall`] would run now.
    ///
    /// # Errors
    /// [`SqliteError::Sqlite`].
    pub fn plan_uninstall(&self) -> Result<Vec<String>, SqliteError> {
        install::plan_removal(&self.db)
    }

    /// Removes every object of ours in one transaction, unread outbox rows
    /// included, and returns the statements that it ran.
    ///
    /// # Errors
    /// [`SqliteError::Sqlite`]; nothing is changed then.
    pub fn uninstall(&mut self) -> Result<Vec<String>, SqliteError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let plan = install::plan_removal(&tx)?;
        run(&tx, &plan)?;
        tx.commit()?;
        self.acked = 0;
        Ok(plan)
    }

    /// Whether the outbox is there. Whether capture is complete and unchanged
    /// is for [`SqliteSource::fingerprint`] to say.
    ///
    /// # Errors
    /// [`SqliteError::Sqlite`].
    pub fn is_installed(&self) -> Result<bool, SqliteError> {
        Ok(self.db.table_exists(None, "pitser_outbox")?)
    }

    /// The name given to this database at installation: 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`SqliteError::Sqlite`].
    pub fn system(&self) -> Result<Option<String>, SqliteError> {
        install::system(&self.db)
    }

    /// Guarded tables, spelled as the schema spells them.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(|table| table.name.as_str())
    }

    /// Names of a guarded table's stored columns, in table order.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`].
    pub fn columns(&self, table: &str) -> Result<&[String], SqliteError> {
        Ok(&self.table(table)?.columns)
    }

    /// Names of a guarded table's key columns, in key order.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`].
    pub fn key_columns(&self, table: &str) -> Result<Vec<String>, SqliteError> {
        Ok(self.table(table)?.key_names())
    }

    /// The key that a person means by these words, one per key column.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`], [`SqliteError::KeyLength`].
    pub fn key(&self, table: &str, words: &[&str]) -> Result<Key, SqliteError> {
        let table = self.table(table)?;
        snapshot::check_key_length(table, words.len())?;
        Ok(Key::new(
            words
                .iter()
                .enumerate()
                .map(|(at, word)| table.key_cell(at, word))
                .collect(),
        ))
    }

    fn table(&self, name: &str) -> Result<&Table, SqliteError> {
        find(&self.tables, name)
    }

    /// Another number whenever another connection has committed: while it
    /// stands still, there is nothing to poll. Cheap enough to ask ten times a
    /// second.
    ///
    /// # Errors
    /// [`SqliteError::Locked`], [`SqliteError::Sqlite`].
    pub fn data_version(&self) -> Result<i64, SqliteError> {
        Ok(self
            .db
            .pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// The highest position ever given; 0 before the first.
    ///
    /// # Errors
    /// [`SqliteError::NotInstalled`], [`SqliteError::Locked`], [`SqliteError::Damaged`].
    pub fn position(&self) -> Result<u64, SqliteError> {
        self.installed()?;
        outbox::position(&self.db)
    }

    /// What was committed after position `after`, in order, `max` outbox rows
    /// at most; continue after the last step's [`Captured::reached`].
    ///
    /// Asks nothing of earlier calls: a transaction may be cut anywhere by
    /// `max`, and its rest is attributed just the same after a restart.
    ///
    /// # Errors
    /// [`SqliteError::NotInstalled`], [`SqliteError::Locked`], [`SqliteError::Damaged`].
    /// Missing, rewound or forged rows are no errors but steps.
    pub fn poll(&mut self, after: u64, max: usize) -> Result<Vec<Captured>, SqliteError> {
        self.installed()?;
        let tx = self.db.transaction()?;
        outbox::read(&tx, after, self.acked, max)
    }

    /// Where to begin to read, if what is durable elsewhere ends with `after`: before the
    /// transaction that this is in, or is the last change of, unless it was acknowledged.
    ///
    /// # Errors
    /// As [`SqliteSource::poll`].
    pub fn beginning(&mut self, after: u64) -> Result<u64, SqliteError> {
        self.installed()?;
        let tx = self.db.transaction()?;
        outbox::beginning(&tx, after)
    }

    /// Deletes what is durable elsewhere, up to and including `upto`, unless
    /// somebody else is writing at this moment. Of a transaction that goes on behind it,
    /// all is kept.
    ///
    /// # Errors
    /// [`SqliteError::AckAhead`], [`SqliteError::NotInstalled`], [`SqliteError::Locked`].
    pub fn ack(&mut self, upto: u64) -> Result<(), SqliteError> {
        self.installed()?;
        // Emptying the outbox can wait; the application's writes cannot.
        self.db.busy_timeout(Duration::ZERO)?;
        let deleted = self.delete_acked(upto);
        self.db.busy_timeout(self.busy)?;
        self.acked = self.acked.max(deleted?);
        Ok(())
    }

    fn delete_acked(&mut self, upto: u64) -> Result<u64, SqliteError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let deleted = outbox::delete(&tx, upto)?;
        for table in &self.tables {
            // Nobody else is inside a statement while we hold the write lock.
            install::clear_notes(&tx, table)?;
        }
        tx.commit()?;
        Ok(deleted)
    }

    /// Whether another file has its name now, or none: this one is read on, and nobody
    /// else writes to it.
    ///
    /// # Errors
    /// [`SqliteError::CannotOpen`].
    pub fn is_replaced(&self) -> Result<bool, SqliteError> {
        Ok(file_of(&self.path)? != Some(self.file))
    }

    /// Names of the tables that are not guarded, some of which cannot be.
    ///
    /// # Errors
    /// [`SqliteError::Locked`], [`SqliteError::Damaged`].
    pub fn unguarded(&self) -> Result<Vec<String>, SqliteError> {
        let mut names = names(&self.db)?;
        names.retain(|name| self.tables.iter().all(|table| table.name != *name));
        Ok(names)
    }

    fn installed(&self) -> Result<(), SqliteError> {
        if self.is_installed()? {
            Ok(())
        } else {
            Err(SqliteError::NotInstalled)
        }
    }

    /// What the touched records were before the changes in `after + 1 ..= upto`.
    ///
    /// # Errors
    /// As [`SqliteSource::poll`].
    pub fn pending(&mut self, after: u64, upto: u64) -> Result<Pending, SqliteError> {
        self.installed()?;
        let tx = self.db.transaction()?;
        outbox::pending(&tx, after, upto)
    }

    /// All guarded tables as of one moment, read from the file anew.
    ///
    /// # Errors
    /// [`SqliteError::NotInstalled`], [`SqliteError::Locked`], [`SqliteError::Damaged`].
    pub fn snapshot(&self) -> Result<Snapshot, SqliteError> {
        // A read by a connection that may write first rolls back what a
        // crashed application left half done; a read-only one may not.
        self.installed()?;
        Snapshot::open(&self.path, self.tables.clone(), self.busy)
    }

    /// One table on a snapshot of its own: every row goes to `each`, in chunks
    /// of up to `chunk` rows. Returns the snapshot's position.
    ///
    /// # Errors
    /// As [`Snapshot::scan`].
    pub fn scan(
        &self,
        table: &str,
        chunk: usize,
        each: impl FnMut(Vec<(Key, Row)>) -> ControlFlow<()>,
    ) -> Result<u64, SqliteError> {
        let snapshot = self.snapshot()?;
        snapshot.scan(table, chunk, each)?;
        Ok(snapshot.position())
    }

    /// One record as the file holds it now, read anew; `None` if there is none.
    ///
    /// # Errors
    /// As [`Snapshot::read_row`].
    pub fn read_row(&self, table: &str, key: &Key) -> Result<Option<Row>, SqliteError> {
        self.snapshot()?.read_row(table, key)
    }

    /// The statement that turns the `live` version of a record into the
    /// `sealed` one, `None` if there is nothing to do. It shows the sealed
    /// values: print it for the operator, keep it out of logs.
    ///
    /// # Errors
    /// [`SqliteError::NotGuarded`], [`SqliteError::KeyLength`].
    pub fn expose_repair(
        &self,
        table: &str,
        key: &Key,
        sealed: Option<&Row>,
        live: Option<&Row>,
    ) -> Result<Option<String>, SqliteError> {
        repair::statement(self.table(table)?, key, sealed, live)
    }

    /// Everything that capture relies on, to be compared with an earlier one.
    ///
    /// # Errors
    /// [`SqliteError::Locked`], [`SqliteError::Damaged`].
    pub fn fingerprint(&self) -> Result<Fingerprint, SqliteError> {
        Fingerprint::take(&self.db, &self.tables)
    }
}

/// Device and inode of a file, if it is there.
fn file_of(path: &Path) -> Result<Option<(u64, u64)>, SqliteError> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(data) => Ok(Some((data.dev(), data.ino()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(_) => Err(SqliteError::CannotOpen {
            path: path.to_owned(),
        }),
    }
}

/// Why a database could not be looked at. A changed row, a gap or a dropped
/// trigger is no error: those are answers.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// There is no such file. None is created.
    #[error("no such file: {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be opened: a directory, or no permission.
    #[error("cannot open {}: is it a readable and writable file?", path.display())]
    CannotOpen {
        /// The file.
        path: PathBuf,
    },
    /// Another file has the name of the one that was guarded, or none.
    #[error("{} was replaced by another file, or removed, while it was guarded", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else, or encrypted.
    #[error("not an SQLite database, or an encrypted one")]
    NotADatabase,
    /// A page cannot be read as SQLite wrote it.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// The table that was being read, or `the database`.
        what: String,
        /// SQLite's own words.
        detail: String,
    },
    /// Another connection held its lock longer than the time allowed.
    #[error("the database is locked by another connection; it was not released in time")]
    Locked,
    /// The database stores text as UTF-16.
    #[error(
        "the database stores text as {found}; only UTF-8 can be guarded (dump and load it into a new file)"
    )]
    Encoding {
        /// SQLite's name of the encoding.
        found: String,
    },
    /// The table does not exist.
    #[error("no table {table:?} in this database")]
    NoSuchTable {
        /// The name that was asked for.
        table: String,
    },
    /// SQLite allows no row triggers here.
    #[error("{table:?} is {what}: only ordinary tables can be guarded")]
    NotATable {
        /// The name that was asked for.
        table: String,
        /// What it is.
        what: &'static str,
    },
    /// The name belongs to SQLite or to us.
    #[error("{table:?} is an internal table: it cannot be guarded")]
    Reserved {
        /// The name that was asked for.
        table: String,
    },
    /// Rows without a key cannot be told apart over time.
    #[error(
        "table {table:?} has no primary key, so its rows cannot be followed; create it anew with one \
         (CREATE TABLE ... PRIMARY KEY, INSERT INTO ... SELECT, then rename)"
    )]
    NoPrimaryKey {
        /// The table.
        table: String,
    },
    /// `REPLACE` could delete rows through this index without any trigger noticing.
    #[error(
        "table {table:?} has a unique index {index:?} on expressions only, through which REPLACE can \
         delete rows unseen; index a stored generated column instead"
    )]
    UniqueExpression {
        /// The table.
        table: String,
        /// The index.
        index: String,
    },
    /// The outbox is not there.
    #[error("capture is not installed in this database")]
    NotInstalled,
    /// An object with a name of ours that holds data is not as we make it.
    #[error("{object:?} was not made by this version of pitser: uninstall first")]
    Foreign {
        /// The object.
        object: String,
    },
    /// The source was opened without this table.
    #[error("table {table:?} is not guarded")]
    NotGuarded {
        /// The name that was asked for.
        table: String,
    },
    /// The key has another number of columns.
    #[error("the key of {table:?} has {wanted} columns, not {given}")]
    KeyLength {
        /// The table.
        table: String,
        /// Columns of the table's key.
        wanted: usize,
        /// Cells given.
        given: usize,
    },
    /// Nobody has seen that position yet.
    #[error("cannot acknowledge position {upto}: only {position} was reached")]
    AckAhead {
        /// What was to be acknowledged.
        upto: u64,
        /// The highest position given so far.
        position: u64,
    },
    /// Anything else that SQLite refused.
    #[error("SQLite: {0}")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged {
                what: "the database".to_owned(),
                detail: error.to_string(),
            },
            _ => Self::Sqlite(error),
        }
    }
}

impl SqliteError {
    /// Says which table was being read when damage showed.
    fn reading(self, table: &str) -> Self {
        match self {
            Self::Damaged { detail, .. } => Self::Damaged {
                what: format!("table {table:?}"),
                detail,
            },
            other => other,
        }
    }
}

/// Opens what exists; SQLite itself would create a missing file.
fn connect(path: &Path, mode: OpenFlags, busy: Duration) -> Result<Connection, SqliteError> {
    if !path.exists() {
        return Err(SqliteError::Missing {
            path: path.to_owned(),
        });
    }
    let opening = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => SqliteError::CannotOpen {
            path: path.to_owned(),
        },
        _ => error.into(),
    };
    let db = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(opening)?;
    db.busy_timeout(busy)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "mmap_size", 0)?;
    // The first real read: shows whether this is a database at all.
    db.pragma_query_value(None, "schema_version", |_| Ok(()))
        .map_err(opening)?;
    Ok(db)
}

fn find<'a>(tables: &'a [Table], name: &str) -> Result<&'a Table, SqliteError> {
    tables
        .iter()
        .find(|table| table.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| SqliteError::NotGuarded {
            table: name.to_owned(),
        })
}

fn run(db: &Connection, plan: &[String]) -> Result<(), SqliteError> {
    plan.iter()
        .try_for_each(|statement| Ok(db.execute_batch(statement)?))
}

/// An identifier as SQL takes it, whatever characters it has.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests;
