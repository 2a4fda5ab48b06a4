//! The vault: what lines commit to, encrypted, in a folder of its own.
//!
//! ```text
//! keys.db      compartment  number | id (pseudonym or "table:NAME") | key wrapped under the
//!                           master key | the patient's identifier, sealed under the key
//!              shape        number | column names
//! contents/    for each line: key cells, row or its marks, person, raw message, sealed
//!              under its compartment's key (see `contents.rs`, `pack.rs`)
//! ```
//! Sealing is XChaCha20-Poly1305 with a random 24-byte nonce in front; the
//! compartment's number or id and the line's number are authenticated with it.
//! Destroying a compartment's key closes all its contents and commitments for ever.
//!
//! The vault and its keys are primary data: they cannot be rebuilt from the
//! trail, and are made durable before the lines that need them.

mod aead;
mod contents;
mod pack;

use crate::disk::{self, DiskError};
use crate::draft::Row;
use crate::recent::Recent;
use aead::NONCE_LEN;
use contents::{Contents, ContentsError};
use pitser_evidence::commit::{Key, LineNonce, commit_row};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The clear content behind one line's commitments.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Canonical values of the record's key columns.
    pub key: Option<Vec<Vec<u8>>>,
    /// The person behind the actor.
    pub person: Option<String>,
    /// The raw message.
    pub raw: Option<Vec<u8>>,
    /// In place of the row, where no images are kept.
    pub marks: Option<Marks>,
    /// The row.
    pub row: Option<Row>,
}

/// For each column of a row, the first [`MARK_LEN`] bytes of its leaf, which show
/// whether it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Column names in the table's order, shared by all rows of one shape.
    pub names: Arc<[String]>,
    /// One for each name.
    pub marks: Vec<Mark>,
}

/// The beginning of a column's leaf.
pub type Mark = [u8; MARK_LEN];

/// Bytes of a column's leaf that are kept as its mark.
pub const MARK_LEN: usize = 8;

/// The marks of a row's columns, in their order.
pub fn row_marks<'a>(
    nonce: &LineNonce,
    columns: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Vec<Mark> {
    let (leaves, _) = commit_row(nonce, columns);
    leaves.iter().map(mark).collect()
}

/// The mark of a column's leaf.
pub(crate) fn mark(leaf: &[u8; 32]) -> Mark {
    *leaf.first_chunk().expect("a leaf is longer than a mark")
}

impl Content {
    /// True if a line has nothing to keep.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Names of the row's columns, or of those that it has marks of.
    pub fn names(&self) -> Option<&Arc<[String]>> {
        let of_row = self.row.as_ref().map(|row| &row.names);
        of_row.or_else(|| self.marks.as_ref().map(|marks| &marks.names))
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
    /// Contents cannot be written or read.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// A key or content does not open: the master key is another, or the
    /// vault was altered.
    #[error("{}: an entry does not open with this master key: the key is another, or the vault was altered. Restore both from the same backup", .0.display())]
    Sealed(PathBuf),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] crate::keys::KeyError),
}

impl From<DiskError> for VaultError {
    fn from(error: DiskError) -> Self {
        Self::Contents(error.into())
    }
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

impl VaultError {
    /// True if the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Store { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Contents(ContentsError::Disk(error)) => error.is_full(),
            _ => false,
        }
    }
}

/// Whose contents are under one key: a patient, or a table.
#[derive(Clone)]
pub struct Compartment {
    number: u64,
    key: Key,
}

impl Compartment {
    /// The key that its contents, and the nonces of its lines, are under.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl fmt::Debug for Compartment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compartment({})", self.number)
    }
}

/// An open vault.
pub struct Vault {
    /// The file of keys.
    path: PathBuf,
    db: Connection,
    master: Key,
    contents: Contents,
    /// Compartments by id.
    known: Recent<String, Compartment, REMEMBERED>,
    /// Keys by number.
    keys: Recent<u64, Key, REMEMBERED>,
    /// Identifiers by their compartment's id.
    identifiers: Recent<String, Arc<str>, REMEMBERED>,
    /// Column names by the number of their shape.
    shapes: HashMap<u64, Arc<[String]>>,
    /// Numbers of the shapes that were kept lately.
    numbered: VecDeque<(Arc<[String]>, u64)>,
    nonces: Nonces,
    in_transaction: bool,
}

/// Keys that stay in memory.
const REMEMBERED: usize = 1 << 16;
/// Shapes whose numbers are found by where their names are in memory.
const SHAPES: usize = 64;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS compartment (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        wrapped BLOB NOT NULL, identifier BLOB
    );
    CREATE TABLE IF NOT EXISTS shape (number INTEGER PRIMARY KEY, names BLOB NOT NULL UNIQUE);";

impl Vault {
    /// Opens or creates the vault in `folder` for its one writer.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(folder: &Path, master: &Key) -> Result<Self, VaultError> {
        disk::private_dir(folder)?;
        let contents = Contents::open(&folder.join("contents"))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let vault = Self::connect(folder, contents, master, flags)?;
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
    pub fn open_read_only(folder: &Path, master: &Key) -> Result<Self, VaultError> {
        let contents = Contents::open_read_only(&folder.join("contents"))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::connect(folder, contents, master, flags)
    }

    fn connect(
        folder: &Path,
        contents: Contents,
        master: &Key,
        flags: OpenFlags,
    ) -> Result<Self, VaultError> {
        let path = folder.join("keys.db");
        let failed = |source| VaultError::Store {
            path: path.clone(),
            source,
        };
        let db = Connection::open_with_flags(&path, flags).map_err(failed)?;
        db.busy_timeout(std::time::Duration::from_secs(10))
            .map_err(failed)?;
        Ok(Self {
            path,
            db,
            master: master.clone(),
            contents,
            known: Recent::default(),
            keys: Recent::default(),
            identifiers: Recent::default(),
            shapes: HashMap::new(),
            numbered: VecDeque::new(),
            nonces: Nonces::default(),
            in_transaction: false,
        })
    }

    /// The key of a compartment, if it was made and not destroyed.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn key(&mut self, id: &str) -> Result<Option<Key>, VaultError> {
        Ok(self.compartment(id)?.map(|found| found.key))
    }

    fn compartment(&mut self, id: &str) -> Result<Option<Compartment>, VaultError> {
        if let Some(known) = self.known.get(id) {
            return Ok(Some(known));
        }
        let found: Option<(u64, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT number, wrapped FROM compartment WHERE id = ?1")
            .and_then(|mut q| {
                q.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(|e| self.failed(e))?;
        let Some((number, wrapped)) = found else {
            return Ok(None);
        };
        let found = Compartment {
            number,
            key: self.unwrap(id, wrapped)?,
        };
        self.known.insert(id.to_owned(), found.clone());
        Ok(Some(found))
    }

    /// A compartment, made now if there is none, with the identifier that it
    /// stands for.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn compartment_or_new(
        &mut self,
        id: &str,
        identifier: Option<&str>,
    ) -> Result<Compartment, VaultError> {
        if let Some(found) = self.compartment(id)? {
            return Ok(found);
        }
        let key = Key::new(crate::keys::random()?);
        let wrapped = seal(&self.master, self.nonces.next()?, id, key.expose());
        let identifier = match identifier {
            Some(text) => Some(seal(&key, self.nonces.next()?, id, text.as_bytes())),
            None => None,
        };
        self.begin()?;
        let number = self
            .db
            .prepare_cached("INSERT INTO compartment (id, wrapped, identifier) VALUES (?1, ?2, ?3)")
            .and_then(|mut q| q.insert(params![id, wrapped, identifier]))
            .map_err(|e| self.failed(e))?;
        let made = Compartment {
            number: number.cast_unsigned(),
            key,
        };
        self.known.insert(id.to_owned(), made.clone());
        Ok(made)
    }

    /// The identifier that a compartment stands for.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn identifier(&mut self, id: &str) -> Result<Option<Arc<str>>, VaultError> {
        if let Some(known) = self.identifiers.get(id) {
            return Ok(Some(known));
        }
        let Some(key) = self.key(id)? else {
            return Ok(None);
        };
        let sealed: Option<Vec<u8>> = self
            .db
            .query_row(
                "SELECT identifier FROM compartment WHERE id = ?1",
                [id],
                |row| row.get(0),
            )
            .map_err(|e| self.failed(e))?;
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        let clear = self.unseal(&key, id.as_bytes(), sealed)?;
        let identifier: Arc<str> = String::from_utf8(clear)
            .map_err(|_| VaultError::Sealed(self.path.clone()))?
            .into();
        self.identifiers
            .insert(id.to_owned(), Arc::clone(&identifier));
        Ok(Some(identifier))
    }

    /// Keeps the content of line `seq`, which is beyond all earlier ones; durable
    /// at the next [`Vault::commit`].
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn put(
        &mut self,
        seq: u64,
        compartment: &Compartment,
        content: &Content,
    ) -> Result<(), VaultError> {
        let shape = match content.names() {
            Some(names) => self.shape_of(names)?,
            None => 0,
        };
        let nonce = self.nonces.next()?;
        let label = label(seq, compartment.number);
        self.contents.put(seq, compartment.number, |out| {
            out.extend(nonce);
            let start = out.len();
            pack::pack(content, shape, out);
            let tag = aead::seal(&compartment.key, &nonce, &label, &mut out[start..]);
            out.extend(tag);
        });
        Ok(())
    }

    /// The content of line `seq`, with its compartment's key; `None` if it has none
    /// or its key was destroyed.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn get(&mut self, seq: u64) -> Result<Option<(Key, Content)>, VaultError> {
        let Some(record) = self.contents.get(seq)? else {
            return Ok(None);
        };
        let Some(key) = self.key_of(record.compartment)? else {
            return Ok(None);
        };
        let clear = self.unseal(&key, &label(seq, record.compartment), record.sealed)?;
        let content = pack::unpack(&clear, |shape| self.names_of(shape));
        let content = content.ok_or_else(|| VaultError::Sealed(self.path.clone()))?;
        Ok(Some((key, content)))
    }

    /// The key of a compartment by its number.
    fn key_of(&mut self, number: u64) -> Result<Option<Key>, VaultError> {
        if let Some(key) = self.keys.get(&number) {
            return Ok(Some(key));
        }
        let found: Option<(String, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT id, wrapped FROM compartment WHERE number = ?1")
            .and_then(|mut q| {
                q.query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(|e| self.failed(e))?;
        let Some((id, wrapped)) = found else {
            return Ok(None);
        };
        let key = self.unwrap(&id, wrapped)?;
        self.keys.insert(number, key.clone());
        Ok(Some(key))
    }

    /// The number of a list of column names, given to it now if it has none.
    fn shape_of(&mut self, names: &Arc<[String]>) -> Result<u64, VaultError> {
        let known = self
            .numbered
            .iter()
            .find(|(known, _)| Arc::ptr_eq(known, names));
        if let Some((_, number)) = known {
            return Ok(*number);
        }
        let packed = pack::pack_names(names);
        let found = self
            .db
            .prepare_cached("SELECT number FROM shape WHERE names = ?1")
            .and_then(|mut q| q.query_row([&packed], |row| row.get(0)).optional())
            .map_err(|e| self.failed(e))?;
        let number = match found {
            Some(number) => number,
            None => {
                self.begin()?;
                self.db
                    .prepare_cached("INSERT INTO shape (names) VALUES (?1)")
                    .and_then(|mut q| q.insert([&packed]))
                    .map_err(|e| self.failed(e))?
                    .cast_unsigned()
            }
        };
        if self.numbered.len() == SHAPES {
            self.numbered.pop_front();
        }
        self.numbered.push_back((Arc::clone(names), number));
        Ok(number)
    }

    /// The column names of a shape; `None` if they cannot be had.
    fn names_of(&mut self, shape: u64) -> Option<Arc<[String]>> {
        if let Some(names) = self.shapes.get(&shape) {
            return Some(Arc::clone(names));
        }
        let packed: Vec<u8> = self
            .db
            .prepare_cached("SELECT names FROM shape WHERE number = ?1")
            .and_then(|mut q| q.query_row([shape], |row| row.get(0)))
            .ok()?;
        let names: Arc<[String]> = pack::unpack_names(&packed)?.into();
        self.shapes.insert(shape, Arc::clone(&names));
        Some(names)
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
        Ok(self.contents.commit()?)
    }

    /// Forgets contents of lines that never became durable.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn discard_from(&mut self, seq: u64) -> Result<(), VaultError> {
        Ok(self.contents.discard_from(seq)?)
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

    fn unwrap(&self, id: &str, wrapped: Vec<u8>) -> Result<Key, VaultError> {
        let key = self.unseal(&self.master, id.as_bytes(), wrapped)?;
        let key = key.try_into();
        key.map(Key::new)
            .map_err(|_| VaultError::Sealed(self.path.clone()))
    }

    /// Opens what has its nonce in front.
    fn unseal(&self, key: &Key, label: &[u8], mut sealed: Vec<u8>) -> Result<Vec<u8>, VaultError> {
        let nonce = sealed.first_chunk().copied();
        let clear = nonce.and_then(|nonce| {
            sealed.drain(..NONCE_LEN);
            aead::open(key, &nonce, label, sealed)
        });
        clear.ok_or_else(|| VaultError::Sealed(self.path.clone()))
    }

    fn failed(&self, source: rusqlite::Error) -> VaultError {
        VaultError::Store {
            path: self.path.clone(),
            source,
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

/// A key or an identifier, sealed, with its nonce in front.
fn seal(key: &Key, nonce: [u8; NONCE_LEN], id: &str, clear: &[u8]) -> Vec<u8> {
    let mut sealed = [&nonce[..], clear].concat();
    let tag = aead::seal(key, &nonce, id.as_bytes(), &mut sealed[NONCE_LEN..]);
    sealed.extend(tag);
    sealed
}

/// What is authenticated with a line's content.
fn label(seq: u64, compartment: u64) -> [u8; 16] {
    let mut label = [0; 16];
    label[..8].copy_from_slice(&seq.to_be_bytes());
    label[8..].copy_from_slice(&compartment.to_be_bytes());
    label
}

/// Random nonces; the system is asked for many at a time. They are not secret.
struct Nonces {
    bytes: [u8; NONCE_LEN * 128],
    used: usize,
}

impl Default for Nonces {
    fn default() -> Self {
        Self {
            bytes: [0; NONCE_LEN * 128],
            used: NONCE_LEN * 128,
        }
    }
}

impl Nonces {
    fn next(&mut self) -> Result<[u8; NONCE_LEN], VaultError> {
        if self.used == self.bytes.len() {
            self.bytes = crate::keys::random()?;
            self.used = 0;
        }
        let nonce = &self.bytes[self.used..self.used + NONCE_LEN];
        self.used += NONCE_LEN;
        Ok(nonce.try_into().expect("24 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content {
            key: Some(vec![b"tobs-1".to_vec()]),
            row: Some(Row {
                names: ["value".to_owned(), "note".to_owned()].into(),
                values: vec![Some(b"r1.5"[..].into()), None],
            }),
            ..Content::default()
        }
    }

    #[test]
    fn keeps_opens_and_discards() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let abc = vault.compartment_or_new("abc", Some("pt-1")).unwrap();
        vault.put(7, &abc, &content()).unwrap();
        assert_eq!(vault.get(7).unwrap().unwrap().1, content());
        vault.put(8, &abc, &content()).unwrap();
        vault.commit().unwrap();
        drop(vault);

        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let mut reader = Vault::open_read_only(dir.path(), &master).unwrap();
        for vault in [&mut vault, &mut reader] {
            assert_eq!(vault.get(7).unwrap().unwrap().1, content());
            assert_eq!(vault.identifier("abc").unwrap().as_deref(), Some("pt-1"));
            assert!(vault.key("another").unwrap().is_none());
        }
        vault.discard_from(8).unwrap();
        assert!(vault.get(8).unwrap().is_none());
        assert_eq!(vault.get(7).unwrap().unwrap().1, content());
    }

    #[test]
    fn a_key_that_was_never_durable_is_not_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let abc = vault.compartment_or_new("abc", Some("pt-1")).unwrap();
        vault.put(7, &abc, &content()).unwrap();
        drop(vault);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        assert!(vault.key("abc").unwrap().is_none());
        assert!(vault.get(7).unwrap().is_none());
    }

    #[test]
    fn another_master_key_or_a_moved_entry_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let abc = vault.compartment_or_new("abc", None).unwrap();
        let other = vault.compartment_or_new("other", None).unwrap();
        vault.put(7, &abc, &content()).unwrap();
        vault.commit().unwrap();
        let path = dir.path().join("contents/000000.dat");
        let good = std::fs::read(&path).unwrap();
        // The compartment, the nonce, and what is sealed.
        for at in [27, 40, good.len() - 1] {
            let mut wrong = good.clone();
            wrong[at] ^= (abc.number ^ other.number) as u8;
            std::fs::write(&path, &wrong).unwrap();
            assert!(matches!(vault.get(7), Err(VaultError::Sealed(_))), "{at}");
        }
        let mut other = Vault::open(dir.path(), &Key::new([2; 32])).unwrap();
        assert!(matches!(other.key("abc"), Err(VaultError::Sealed(_))));
    }

    #[test]
    fn nothing_private_stands_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path(), &Key::new([1; 32])).unwrap();
        let abc = vault.compartment_or_new("abc", Some("pt-SECRET")).unwrap();
        let secret = Content {
            person: Some("Dr SECRET".into()),
            ..Content::default()
        };
        vault.put(1, &abc, &secret).unwrap();
        vault.commit().unwrap();
        for folder in [dir.path().to_owned(), dir.path().join("contents")] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let bytes = std::fs::read(path).unwrap();
                    assert!(!bytes.windows(6).any(|w| w == b"SECRET"));
                }
            }
        }
    }
}
