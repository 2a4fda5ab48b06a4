//! A witness's memory in one SQLite file.
//!
//! ```text
//! head(origin, size, root, cosigned_at, note)              newest cosigned head
//! fork(origin, size, held, refused, refused_at)            first fork of a log
//! ```
//!
//! The write-ahead log is synced at each commit (`synchronous=FULL`), so that
//! a committed head survives power loss. Writers take the lock before they
//! read, so that comparing and replacing are one step.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, named_params};

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
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        prepare(&mut connection)?;
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
        let latest_at = transaction.query_row(LATEST_AT, [], |row| row.get::<_, Option<i64>>(0))?;
        let latest_at = latest_at.map(natural).transpose()?;
        check_advance(stored.as_ref(), expected, latest_at, new)?;
        transaction.execute(
            PUT_HEAD,
            named_params! {
                ":origin": origin,
                ":size": integer(new.size)?,
                ":root": new.root,
                ":cosigned_at": integer(new.cosigned_at)?,
                ":note": new.note,
            },
        )?;
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
        let mut statement = self.connection.prepare(GET_FORKS)?;
        let mut rows = statement.query([])?;
        let mut forks = Vec::new();
        while let Some(row) = rows.next()? {
            forks.push(fork_from(row)?);
        }
        Ok(forks)
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
fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
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
        (0, 0, 0) => transaction.execute_batch(SCHEMA)?,
        (APPLICATION_ID, VERSION, _) => {}
        _ => return Err(StoreError::UnknownFormat),
    }
    Ok(transaction.commit()?)
}

fn read_head(connection: &Connection, origin: &str) -> Result<Option<Head>, StoreError> {
    let row = connection
        .query_row(GET_HEAD, [origin], |row| {
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
const VERSION: i64 = 1;

const SCHEMA: &str = "
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
    PRAGMA user_version = 1;
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

#[cfg(test)]
mod tests {
    use super::*;

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
