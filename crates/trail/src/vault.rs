//! The vault: what lines commit to, encrypted, in an SQLite file.
//!
//! ```text
//! compartment  id (pseudonym or "table:NAME") | key wrapped under the master key
//!              | the patient's identifier, sealed under the compartment's key
//! content      seq | compartment | key cells, row or its marks, person, raw message, sealed
//! ```
//! Sealing is XChaCha20-Poly1305 with a random 24-byte nonce in front; the
//! compartment's id and the line's number are authenticated with it. Destroying
//! a compartment's key closes all its contents and commitments for ever.
//!
//! The vault and its keys are primary data: they cannot be rebuilt from the
//! trail, and are made durable before the lines that need them.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use pitser_evidence::codec::Blob;
use pitser_evidence::commit::{Key, LineNonce, commit_row};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The clear content behind one line's commitments.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Canonical values of the record's key columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<Blob>>,
    /// The person behind the actor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// The raw message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Blob>,
    /// In place of the row, where no images are kept: for each column, the
    /// first [`MARK_LEN`] bytes of its leaf, which show whether it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks: Option<Vec<(String, Blob)>>,
    /// The row: column names and canonical values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<Vec<(String, Option<Blob>)>>,
}

/// Bytes of a column's leaf that are kept as its mark.
pub const MARK_LEN: usize = 8;

/// The marks of a row's columns, in their order.
pub fn row_marks<'a>(
    nonce: &LineNonce,
    columns: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Vec<Vec<u8>> {
    let (leaves, _) = commit_row(nonce, columns);
    leaves
        .iter()
        .map(|leaf| leaf[..MARK_LEN].to_vec())
        .collect()
}

impl Content {
    /// True if a line has nothing to keep.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content(private)")
    }
}

/// Why the vault cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// SQLite reports a failure.
    #[error("{}: {source}{}", path.display(), hint(source))]
    Store {
        /// The vault's file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A key or content does not open: the master key is another, or the
    /// vault was altered.
    #[error("{}: an entry does not open with this master key: the key is another, or the vault was altered. Restore both from the same backup", .0.display())]
    Sealed(PathBuf),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] crate::keys::KeyError),
}

fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            ". Free some space: nothing is lost, capture waits and goes on by itself"
        }
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            ". The vault is damaged: restore it from its backup"
        }
        _ => "",
    }
}

/// An open vault.
pub struct Vault {
    path: PathBuf,
    db: Connection,
    master: XChaCha20Poly1305,
    keys: HashMap<String, Key>,
    in_transaction: bool,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS compartment (
        id TEXT PRIMARY KEY, wrapped BLOB NOT NULL, identifier BLOB
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS content (
        seq INTEGER PRIMARY KEY, compartment TEXT NOT NULL, sealed BLOB NOT NULL
    );";

impl Vault {
    /// Opens or creates the vault for its one writer.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(path: &Path, master: &Key) -> Result<Self, VaultError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let vault = Self::connect(path, master, flags)?;
        let setup = format!("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {SCHEMA}");
        vault
            .db
            .execute_batch(&setup)
            .map_err(|e| vault.failed(e))?;
        Ok(vault)
    }

    /// Opens the vault to read beside its writer.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open_read_only(path: &Path, master: &Key) -> Result<Self, VaultError> {
        Self::connect(
            path,
            master,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
    }

    fn connect(path: &Path, master: &Key, flags: OpenFlags) -> Result<Self, VaultError> {
        let failed = |source| VaultError::Store {
            path: path.to_owned(),
            source,
        };
        let db = Connection::open_with_flags(path, flags).map_err(failed)?;
        db.busy_timeout(std::time::Duration::from_secs(10))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            db,
            master: XChaCha20Poly1305::new(master.expose().into()),
            keys: HashMap::new(),
            in_transaction: false,
        })
    }

    /// The key of a compartment, if it was made and not destroyed.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn key(&mut self, compartment: &str) -> Result<Option<Key>, VaultError> {
        if let Some(key) = self.keys.get(compartment) {
            return Ok(Some(key.clone()));
        }
        let wrapped: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT wrapped FROM compartment WHERE id = ?1")
            .and_then(|mut q| q.query_row([compartment], |row| row.get(0)).optional())
            .map_err(|e| self.failed(e))?;
        let Some(wrapped) = wrapped else {
            return Ok(None);
        };
        let key = self.unseal(&self.master, compartment.as_bytes(), &wrapped)?;
        let key = Key::new(
            key.try_into()
                .map_err(|_| VaultError::Sealed(self.path.clone()))?,
        );
        self.keys.insert(compartment.to_owned(), key.clone());
        Ok(Some(key))
    }

    /// The key of a compartment, made now if there is none, with the
    /// identifier that it stands for.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn key_or_new(
        &mut self,
        compartment: &str,
        identifier: Option<&str>,
    ) -> Result<Key, VaultError> {
        if let Some(key) = self.key(compartment)? {
            return Ok(key);
        }
        let key = Key::new(crate::keys::random()?);
        let wrapped = seal(&self.master, compartment.as_bytes(), key.expose())?;
        let cipher = XChaCha20Poly1305::new(key.expose().into());
        let identifier = match identifier {
            Some(id) => Some(seal(&cipher, compartment.as_bytes(), id.as_bytes())?),
            None => None,
        };
        self.begin()?;
        self.db
            .prepare_cached("INSERT INTO compartment (id, wrapped, identifier) VALUES (?1, ?2, ?3)")
            .and_then(|mut q| q.execute(params![compartment, wrapped, identifier]))
            .map_err(|e| self.failed(e))?;
        self.keys.insert(compartment.to_owned(), key.clone());
        Ok(key)
    }

    /// The identifier that a compartment stands for.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn identifier(&mut self, compartment: &str) -> Result<Option<String>, VaultError> {
        let Some(key) = self.key(compartment)? else {
            return Ok(None);
        };
        let sealed: Option<Vec<u8>> = self
            .db
            .query_row(
                "SELECT identifier FROM compartment WHERE id = ?1",
                [compartment],
                |row| row.get(0),
            )
            .map_err(|e| self.failed(e))?;
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        let clear = self.unseal(
            &XChaCha20Poly1305::new(key.expose().into()),
            compartment.as_bytes(),
            &sealed,
        )?;
        String::from_utf8(clear)
            .map(Some)
            .map_err(|_| VaultError::Sealed(self.path.clone()))
    }

    /// Keeps the content of line `seq`; durable at the next [`Vault::commit`].
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn put(
        &mut self,
        seq: u64,
        compartment: &str,
        key: &Key,
        content: &Content,
    ) -> Result<(), VaultError> {
        let clear = serde_json::to_vec(content).expect("strings and lists");
        let sealed = seal(
            &XChaCha20Poly1305::new(key.expose().into()),
            &label(seq, compartment),
            &clear,
        )?;
        self.begin()?;
        self.db
            .prepare_cached("INSERT INTO content (seq, compartment, sealed) VALUES (?1, ?2, ?3)")
            .and_then(|mut q| q.execute(params![seq, compartment, sealed]))
            .map_err(|e| self.failed(e))?;
        Ok(())
    }

    /// The content of line `seq`, with its compartment; `None` if it has none
    /// or its key was destroyed.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn get(&mut self, seq: u64) -> Result<Option<(Key, Content)>, VaultError> {
        let found: Option<(String, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT compartment, sealed FROM content WHERE seq = ?1")
            .and_then(|mut q| {
                q.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(|e| self.failed(e))?;
        let Some((compartment, sealed)) = found else {
            return Ok(None);
        };
        let Some(key) = self.key(&compartment)? else {
            return Ok(None);
        };
        let cipher = XChaCha20Poly1305::new(key.expose().into());
        let clear = self.unseal(&cipher, &label(seq, &compartment), &sealed)?;
        let content =
            serde_json::from_slice(&clear).map_err(|_| VaultError::Sealed(self.path.clone()))?;
        Ok(Some((key, content)))
    }

    /// Makes everything kept so far durable.
    ///
    /// # Errors
    /// [`VaultError`]; nothing since the last commit may be relied on.
    pub fn commit(&mut self) -> Result<(), VaultError> {
        if self.in_transaction {
            self.db
                .execute_batch("COMMIT")
                .map_err(|e| self.failed(e))?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Forgets contents of lines that never became durable.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn discard_from(&mut self, seq: u64) -> Result<usize, VaultError> {
        self.db
            .execute("DELETE FROM content WHERE seq >= ?1", [seq])
            .map_err(|e| self.failed(e))
    }

    fn begin(&mut self) -> Result<(), VaultError> {
        if !self.in_transaction {
            self.db
                .execute_batch("BEGIN IMMEDIATE")
                .map_err(|e| self.failed(e))?;
            self.in_transaction = true;
        }
        Ok(())
    }

    fn unseal(
        &self,
        cipher: &XChaCha20Poly1305,
        label: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let wrong = || VaultError::Sealed(self.path.clone());
        let (nonce, body) = sealed.split_at_checked(24).ok_or_else(wrong)?;
        let payload = Payload {
            msg: body,
            aad: label,
        };
        cipher
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| wrong())
    }

    fn failed(&self, source: rusqlite::Error) -> VaultError {
        VaultError::Store {
            path: self.path.clone(),
            source,
        }
    }
}

impl VaultError {
    /// True if the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store { source, .. }
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

fn label(seq: u64, compartment: &str) -> Vec<u8> {
    [&seq.to_be_bytes(), compartment.as_bytes()].concat()
}

fn seal(cipher: &XChaCha20Poly1305, label: &[u8], clear: &[u8]) -> Result<Vec<u8>, VaultError> {
    let nonce: [u8; 24] = crate::keys::random()?;
    let body = cipher
        .encrypt(
            XNonce::from_slice(&nonce),
            Payload {
                msg: clear,
                aad: label,
            },
        )
        .expect("contents are far below the cipher's limit");
    Ok([&nonce[..], &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content {
            key: Some(vec![Blob(b"tobs-1".to_vec())]),
            row: Some(vec![
                ("value".into(), Some(Blob(b"r1.5".to_vec()))),
                ("note".into(), None),
            ]),
            ..Content::default()
        }
    }

    #[test]
    fn keeps_opens_and_discards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.db");
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(&path, &master).unwrap();
        let key = vault.key_or_new("abc", Some("pt-1")).unwrap();
        vault.put(7, "abc", &key, &content()).unwrap();
        vault.put(8, "abc", &key, &content()).unwrap();
        vault.commit().unwrap();
        drop(vault);

        let mut vault = Vault::open(&path, &master).unwrap();
        assert_eq!(vault.get(7).unwrap().unwrap().1, content());
        assert_eq!(vault.identifier("abc").unwrap().as_deref(), Some("pt-1"));
        assert_eq!(vault.discard_from(8).unwrap(), 1);
        assert!(vault.get(8).unwrap().is_none());
        assert!(vault.key("another").unwrap().is_none());
    }

    #[test]
    fn another_master_key_or_a_moved_entry_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.db");
        let mut vault = Vault::open(&path, &Key::new([1; 32])).unwrap();
        let key = vault.key_or_new("abc", None).unwrap();
        vault.put(7, "abc", &key, &content()).unwrap();
        vault.commit().unwrap();
        vault.db.execute("UPDATE content SET seq = 9", []).unwrap();
        assert!(matches!(vault.get(9), Err(VaultError::Sealed(_))));
        let mut other = Vault::open(&path, &Key::new([2; 32])).unwrap();
        assert!(matches!(other.key("abc"), Err(VaultError::Sealed(_))));
    }

    #[test]
    fn nothing_private_stands_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vault.db");
        let mut vault = Vault::open(&path, &Key::new([1; 32])).unwrap();
        let key = vault.key_or_new("abc", Some("pt-SECRET")).unwrap();
        let secret = Content {
            person: Some("Dr SECRET".into()),
            ..Content::default()
        };
        vault.put(1, "abc", &key, &secret).unwrap();
        vault.commit().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(6).any(|w| w == b"SECRET"));
        }
    }
}
