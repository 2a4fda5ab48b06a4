//! A witness's memory in one SQLite file.
//!
//! ```text
//! head(origin, size, root, cosigned_at, note)              newest cosigned head
//! fork(origin, size, held, refused, refused_at)            first fork of a log
//! log(origin, key, genesis_at, tolerance_s)                what is watched
//! ```
//!
//! Version 1 had no `log` and no index over `cosigned_at`; it is brought up to
//! date when it is opened.
//!
//! The write-ahead log is synced at each commit (`synchronous=FULL`), so that
//! a committed head survives power loss. Writers take the lock before they
//! read, so that comparing and replacing are one step.

use std::path::Path;
use std::time::Duration;

use pitser_tlog::note::VerifierKey;
use rusqlite::{
    CachedStatement, Connection, OptionalExtension, Row, TransactionBehavior, named_params,
};

use crate::witness::{Log, Pace};

use super::{Fork, Head, Store, StoreError, check_advance};

/// A store that survives power loss, for one or several processes of a host.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
}

impl SqliteStore {
    /// Opens the file at `path`, creating it if there is none.
    ///
    /// # Errors
    /// [`StoreError::UnknownFormat`] for a file of another kind or a newer
    /// version, [`StoreError::Failed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_as(path.as_ref(), true)
    }

    /// Opens the memory of a witness that has cosigned: a file that has nothing in it, as
    /// a copy that was cut off leaves one, is no memory of that.
    ///
    /// # Errors
    /// [`StoreError::Empty`], and those of [`SqliteStore::open`].
    pub fn open_known(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_as(path.as_ref(), false)
    }

    fn open_as(path: &Path, may_begin: bool) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        prepare(&mut connection, may_begin)?;
        // Its log may be in the system's memory alone, and stay there, after it could not
        // be made durable: from here on the file itself has what was cosigned.
        connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))?;
        // The library does not tell that the log's name could not be made durable.
        pitser_disk::sync_folder_of(path).map_err(StoreError::failed)?;
        Ok(Self { connection })
    }
}

impl Store for SqliteStore {
    fn head(&self, origin: &str) -> Result<Option<Head>, StoreError> {
        read_head(&self.connection, origin)
    }

    fn advance(
        &mut self,
        origin: &str,
        expected: Option<&Head>,
        new: &Head,
    ) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let stored = read_head(&transaction, origin)?;
        let latest_at = read_latest_at(&transaction)?;
        check_advance(stored.as_ref(), expected, latest_at, new)?;
        transaction
            .prepare_cached(PUT_HEAD)?
            .execute(named_params! {
                ":origin": origin,
                ":size": integer(new.size)?,
                ":root": new.root,
                ":cosigned_at": integer(new.cosigned_at)?,
                ":note": new.note,
            })?;
        Ok(transaction.commit()?)
    }

    fn keep_fork(&mut self, fork: Fork) -> Result<(), StoreError> {
        self.connection.execute(
            PUT_FORK,
            named_params! {
                ":origin": fork.origin,
                ":size": integer(fork.size)?,
                ":held": fork.held,
                ":refused": fork.refused,
                ":refused_at": integer(fork.refused_at)?,
            },
        )?;
        Ok(())
    }

    fn forks(&self) -> Result<Vec<Fork>, StoreError> {
        let statement = self.connection.prepare_cached(GET_FORKS)?;
        all(statement, &[], fork_from)
    }

    fn latest_at(&self) -> Result<Option<u64>, StoreError> {
        read_latest_at(&self.connection)
    }

    fn log(&self, origin: &str) -> Result<Option<Log>, StoreError> {
        let statement = self.connection.prepare_cached(GET_LOG)?;
        Ok(all(statement, &[origin], log_from)?.pop())
    }

    fn logs(&self) -> Result<Vec<Log>, StoreError> {
        let statement = self.connection.prepare_cached(GET_LOGS)?;
        all(statement, &[], log_from)
    }

    fn put_log(&mut self, log: &Log) -> Result<(), StoreError> {
        let pace = log.pace;
        self.connection.execute(
            PUT_LOG,
            named_params! {
                ":origin": log.origin,
                ":key": log.key.to_string(),
                ":genesis_at": pace.map(|pace| integer(pace.genesis_at)).transpose()?,
                ":tolerance_s": pace.map(|pace| integer(pace.tolerance_s)).transpose()?,
            },
        )?;
        Ok(())
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => Self::UnknownFormat,
            _ => Self::failed(error),
        }
    }
}

/// Sets the durability of every commit, and creates or checks the tables.
fn prepare(connection: &mut Connection, may_begin: bool) -> Result<(), StoreError> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::failed("no write-ahead log on this file system"));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = transaction.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, version, tables) {
        (0, 0, 0) if !may_begin => return Err(StoreError::Empty),
        (0, 0, 0) => {
            transaction.execute_batch(SCHEMA_1)?;
            transaction.execute_batch(SCHEMA_2)?;
        }
        (APPLICATION_ID, 1, _) => transaction.execute_batch(SCHEMA_2)?,
        (APPLICATION_ID, VERSION, _) => {}
        _ => return Err(StoreError::UnknownFormat),
    }
    // The first write makes the log.
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// All rows of a query.
fn all<T>(
    mut statement: CachedStatement<'_>,
    parameters: &[&str],
    one: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut rows = statement.query(rusqlite::params_from_iter(parameters))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(one(row)?);
    }
    Ok(found)
}

fn read_latest_at(connection: &Connection) -> Result<Option<u64>, StoreError> {
    let mut statement = connection.prepare_cached(LATEST_AT)?;
    let latest_at = statement.query_row([], |row| row.get::<_, Option<i64>>(0))?;
    latest_at.map(natural).transpose()
}

fn read_head(connection: &Connection, origin: &str) -> Result<Option<Head>, StoreError> {
    let row = connection
        .prepare_cached(GET_HEAD)?
        .query_row([origin], |row| {
            let (size, cosigned_at) = (row.get("size")?, row.get("cosigned_at")?);
            Ok((size, row.get("root")?, cosigned_at, row.get("note")?))
        })
        .optional()?;
    row.map(|(size, root, cosigned_at, note)| {
        Ok(Head {
            size: natural(size)?,
            root,
            cosigned_at: natural(cosigned_at)?,
            note,
        })
    })
    .transpose()
}

fn fork_from(row: &Row<'_>) -> Result<Fork, StoreError> {
    Ok(Fork {
        origin: row.get("origin")?,
        size: natural(row.get("size")?)?,
        held: row.get("held")?,
        refused: row.get("refused")?,
        refused_at: natural(row.get("refused_at")?)?,
    })
}

fn log_from(row: &Row<'_>) -> Result<Log, StoreError> {
    let key: String = row.get("key")?;
    let key: VerifierKey = key.parse().map_err(StoreError::failed)?;
    let number = |name| -> Result<Option<u64>, StoreError> {
        let number: Option<i64> = row.get(name)?;
        number.map(natural).transpose()
    };
    let pace = match (number("genesis_at")?, number("tolerance_s")?) {
        (Some(genesis_at), Some(tolerance_s)) => Some(Pace {
            genesis_at,
            tolerance_s,
        }),
        _ => None,
    };
    Ok(Log {
        origin: row.get("origin")?,
        key,
        pace,
    })
}

/// SQLite integers are signed.
fn integer(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(StoreError::failed)
}

fn natural(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(StoreError::failed)
}

/// How long another process's commit is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// "PitW", so that a file of another kind is not written over.
const APPLICATION_ID: i64 = 0x5069_7457;
const VERSION: i64 = 2;

const SCHEMA_1: &str = "
    CREATE TABLE head (
        origin      TEXT    NOT NULL PRIMARY KEY,
        size        INTEGER NOT NULL CHECK (size >= 0),
        root        BLOB    NOT NULL CHECK (length(root) = 32),
        cosigned_at INTEGER NOT NULL CHECK (cosigned_at >= 0),
        note        TEXT    NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE fork (
        origin      TEXT    NOT NULL PRIMARY KEY,
        size        INTEGER NOT NULL CHECK (size >= 0),
        held        TEXT    NOT NULL,
        refused     TEXT    NOT NULL,
        refused_at  INTEGER NOT NULL CHECK (refused_at >= 0)
    ) STRICT, WITHOUT ROWID;
    PRAGMA application_id = 0x50697457;
";

const SCHEMA_2: &str = "
    CREATE INDEX head_cosigned_at ON head (cosigned_at);
    CREATE TABLE log (
        origin      TEXT    NOT NULL PRIMARY KEY,
        key         TEXT    NOT NULL,
        genesis_at  INTEGER CHECK (genesis_at >= 0),
        tolerance_s INTEGER CHECK (tolerance_s >= 0),
        CHECK ((genesis_at IS NULL) = (tolerance_s IS NULL))
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 2;
";

const GET_HEAD: &str = "SELECT size, root, cosigned_at, note FROM head WHERE origin = ?1";

const LATEST_AT: &str = "SELECT max(cosigned_at) FROM head";

const PUT_HEAD: &str = "
    INSERT INTO head (origin, size, root, cosigned_at, note)
    VALUES (:origin, :size, :root, :cosigned_at, :note)
    ON CONFLICT (origin) DO UPDATE SET
        size = excluded.size, root = excluded.root,
        cosigned_at = excluded.cosigned_at, note = excluded.note";

const PUT_FORK: &str = "
    INSERT INTO fork (origin, size, held, refused, refused_at)
    VALUES (:origin, :size, :held, :refused, :refused_at)
    ON CONFLICT (origin) DO NOTHING";

const GET_FORKS: &str = "SELECT origin, size, held, refused, refused_at FROM fork ORDER BY origin";

const GET_LOG: &str = "SELECT origin, key, genesis_at, tolerance_s FROM log WHERE origin = ?1";

const GET_LOGS: &str = "SELECT origin, key, genesis_at, tolerance_s FROM log ORDER BY origin";

const PUT_LOG: &str = "
    INSERT INTO log (origin, key, genesis_at, tolerance_s)
    VALUES (:origin, :key, :genesis_at, :tolerance_s)
    ON CONFLICT (origin) DO UPDATE SET
        key = excluded.key, genesis_at = excluded.genesis_at, tolerance_s = excluded.tolerance_s";

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 cosigned binds as before.
    #[test]
    fn a_store_of_version_1_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("witness.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(SCHEMA_1).unwrap();
        old.execute_batch(
            "PRAGMA user_version = 1; INSERT INTO head VALUES ('a', 7, zeroblob(32), 9, 'note')",
        )
        .unwrap();
        drop(old);
        for _ in 0..2 {
            let store = SqliteStore::open(&path).unwrap();
            assert_eq!(store.head("a").unwrap().map(|head| head.size), Some(7));
            assert_eq!(store.latest_at().unwrap(), Some(9));
            assert_eq!(store.logs().unwrap(), []);
        }
    }

    #[test]
    fn what_a_crash_left_in_the_log_is_in_the_file_once_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut store = SqliteStore::open(path("witness.db")).unwrap();
        let head = Head {
            size: 7,
            root: [7; 32],
            cosigned_at: 9,
            note: "note".to_owned(),
        };
        store.advance("a", None, &head).unwrap();
        // As after a kill: whoever closes a database brings its log into it.
        std::fs::copy(path("witness.db"), path("left.db")).unwrap();
        std::fs::copy(path("witness.db-wal"), path("left.db-wal")).unwrap();
        let opened = SqliteStore::open(path("left.db")).unwrap();
        // And as after a power cut that takes a log which could not be made durable.
        std::fs::copy(path("left.db"), path("cut.db")).unwrap();
        let cut = SqliteStore::open(path("cut.db")).unwrap();
        for store in [&store, &opened, &cut] {
            assert_eq!(store.head("a").unwrap().as_ref(), Some(&head));
        }
    }

    #[test]
    fn every_commit_is_synced() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("witness.db")).unwrap();
        let pragma = |name: &str| {
            let query = format!("PRAGMA {name}");
            let read = |row: &Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            store.connection.query_row(&query, [], read).unwrap()
        };
        const FULL: i64 = 2;
        assert_eq!(pragma("synchronous"), FULL.into());
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
        assert_eq!(pragma("application_id"), APPLICATION_ID.into());
        assert_eq!(pragma("user_version"), VERSION.into());
    }
}
