//! The vault: what lines commit to, encrypted, in a folder of its own.
//!
//! ```text
//! epoch-*.key  the epoch key, wrapped under the master key (see `epoch.rs`)
//! keys.db      compartment  number | id (pseudonym or "table:NAME") | first line under it |
//!                           key wrapped under the epoch key | the patient's identifier,
//!                           sealed under the key
//!              epoch        number of the epoch that all of them are wrapped under
//!              note         kind | id | what is noted, sealed under the master key
//!              shape        number | column names
//! contents/    for each line: key cells, row or its marks, person, raw message, sealed
//!              under its compartment's key (see `contents.rs`, `pack.rs`)
//! ```
//! Sealing is XChaCha20-Poly1305 with a random 24-byte nonce in front; the
//! compartment's number or id and the line's number are authenticated with it.
//! Destroying a compartment's key closes all its contents and commitments for ever:
//! [`Vault::erase`]. Numbers of compartments are never given again, so that contents
//! which nobody can open are never taken for those of a compartment made later.
//!
//! The vault and its keys are primary data: they cannot be rebuilt from the
//! trail, and are made durable before the lines that need them.

mod aead;
mod contents;
mod copy;
mod epoch;
mod pack;

use crate::behind::Behind;
use crate::disk::{self, At as _, DiskError};
use crate::draft::Row;
use crate::recent::Recent;
use aead::NONCE_LEN;
use contents::{Contents, ContentsError};
pub(crate) use copy::{copy, has_older};
use epoch::Epoch;
use pitser_evidence::commit::{Key, LineNonce, commit_row};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};
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
    pub raw: Option<Arc<[u8]>>,
    /// In place of the row, where no images are kept.
    pub marks: Option<Marks>,
    /// The row.
    pub row: Option<Row>,
    /// The two who decided, of an erasure.
    pub deciders: Option<[String; 2]>,
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
    /// The keys and the epoch key are not of the same vault, or not of the same day.
    #[error("{}: this key does not belong to the keys.db beside it. Restore the whole vault folder from one backup", .0.display())]
    Epoch(PathBuf),
    /// What was erased still stands in the write-ahead log, for somebody reads it.
    #[error("{}: what was erased cannot be wiped from its write-ahead log while another program reads it. End that program; it is tried again", .0.display())]
    Read(PathBuf),
    /// The key of somebody who is erased is younger than the line that erases.
    #[error("{}: the key of the patient is not older than the line that says that it is destroyed, and is still there: the vault is of another day than the trail. Restore both from the same backup", .0.display())]
    Younger(PathBuf),
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
    /// The first line under the key: earlier ones were under another, now destroyed.
    since: u64,
    key: Key,
    /// Whether the identifier that it stands for is kept.
    is_named: bool,
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
    folder: PathBuf,
    /// The file of keys.
    path: PathBuf,
    db: Connection,
    master: Key,
    epoch: Epoch,
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
    /// What came last, if it has a message.
    message: Option<Message>,
    nonces: Nonces,
    in_transaction: bool,
}

/// A message, which all lines of one event share.
struct Message {
    raw: Arc<[u8]>,
    /// By the number of a compartment, the first line in it.
    lines: HashMap<u64, u64>,
}

/// Keys that stay in memory.
const REMEMBERED: usize = 1 << 16;
/// Shapes whose numbers are found by where their names are in memory.
const SHAPES: usize = 64;
/// Contents in memory, in bytes; with more, they are made durable at once.
const WAITING_BYTES: usize = 16 << 20;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS compartment (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        since INTEGER NOT NULL, wrapped BLOB NOT NULL, identifier BLOB
    );
    CREATE TABLE IF NOT EXISTS epoch (number INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS note (
        kind TEXT NOT NULL, id TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (kind, id)
    );
    CREATE TABLE IF NOT EXISTS shape (number INTEGER PRIMARY KEY, names BLOB NOT NULL UNIQUE);";

impl Vault {
    /// Opens or creates the vault in `folder` for its one writer, and wipes what an
    /// erasure that was cut short has left.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(folder: &Path, master: &Key) -> Result<Self, VaultError> {
        disk::private_dir(folder)?;
        let contents = Contents::open(&folder.join("contents"))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let (path, db) = connect(folder, flags)?;
        let setup = format!(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON; {SCHEMA}"
        );
        db.execute_batch(&setup).map_err(|e| store(&path, e))?;
        // Its log may be in the system's memory alone, and stay there, after it could not
        // be made durable: from here on the database has what it says. Somebody who reads
        // beside us may keep a part of it.
        db.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))
            .map_err(|e| store(&path, e))?;
        // A new log is made by the first write. That its name could not be made durable
        // the library does not tell.
        db.execute_batch("PRAGMA user_version = 1")
            .map_err(|e| store(&path, e))?;
        disk::sync_dir(&path)?;
        let mut nonces = Nonces::default();
        let epoch = match epoch_number(&db).map_err(|e| store(&path, e))? {
            Some(number) => Epoch::open(folder, number, master)?,
            None => {
                let first = Epoch::first(folder, master, nonces.next()?)?;
                db.execute_batch("INSERT INTO epoch VALUES (1)")
                    .map_err(|e| store(&path, e))?;
                first
            }
        };
        let mut vault = Self::new(folder, (path, db), contents, master, epoch);
        vault.wipe()?;
        Ok(vault)
    }

    /// Opens the vault to read beside its writer.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open_read_only(folder: &Path, master: &Key) -> Result<Self, VaultError> {
        let contents = Contents::open_read_only(&folder.join("contents"))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let (path, db) = connect(folder, flags)?;
        let mut gone = None;
        let epoch = loop {
            let number = epoch_number(&db).map_err(|e| store(&path, e))?.unwrap_or(1);
            match Epoch::open(folder, number, master) {
                // The writer has erased somebody between the two steps.
                Err(VaultError::Epoch(_)) if gone != Some(number) => gone = Some(number),
                epoch => break epoch?,
            }
        };
        Ok(Self::new(folder, (path, db), contents, master, epoch))
    }

    fn new(
        folder: &Path,
        (path, db): (PathBuf, Connection),
        contents: Contents,
        master: &Key,
        epoch: Epoch,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            path,
            db,
            master: master.clone(),
            epoch,
            contents,
            known: Recent::default(),
            keys: Recent::default(),
            identifiers: Recent::default(),
            shapes: HashMap::new(),
            numbered: VecDeque::new(),
            message: None,
            nonces: Nonces::default(),
            in_transaction: false,
        }
    }

    /// The key that line `seq` of a compartment is under; `None` if there is none, or
    /// it was destroyed since.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn key(&mut self, id: &str, seq: u64) -> Result<Option<Key>, VaultError> {
        let found = self.compartment(id)?.filter(|found| found.since <= seq);
        Ok(found.map(|found| found.key))
    }

    /// Whether there is a key under which more may come.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn has_key(&mut self, id: &str) -> Result<bool, VaultError> {
        Ok(self.compartment(id)?.is_some())
    }

    fn compartment(&mut self, id: &str) -> Result<Option<Compartment>, VaultError> {
        if let Some(known) = self.known.get(id) {
            return Ok(Some(known));
        }
        let found = self.find("id = ?1", &id)?.map(|(_, found)| found);
        if let Some(found) = &found {
            self.known.insert(id.to_owned(), found.clone());
        }
        Ok(found)
    }

    /// A compartment and its id, by what one column of it is.
    fn find(
        &mut self,
        condition: &str,
        value: &dyn ToSql,
    ) -> Result<Option<(String, Compartment)>, VaultError> {
        let query = format!(
            "SELECT id, number, since, wrapped, identifier IS NOT NULL, (SELECT number FROM epoch) FROM compartment \
             WHERE {condition}"
        );
        let mut gone = None;
        loop {
            let found: Option<(String, u64, u64, Vec<u8>, bool, u64)> = self
                .db
                .prepare_cached(&query)
                .and_then(|mut q| q.query_row([value], |row| row.try_into()).optional())
                .map_err(|e| self.failed(e))?;
            let Some((id, number, since, wrapped, is_named, epoch)) = found else {
                return Ok(None);
            };
            if epoch != self.epoch.number {
                // We read, and the writer has erased somebody since.
                match Epoch::open(&self.folder, epoch, &self.master) {
                    Ok(newer) => self.epoch = newer,
                    // It has done so again between the two steps.
                    Err(_) if gone != Some(epoch) => {
                        gone = Some(epoch);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                self.forget();
            }
            let key = self.unwrap(&id, wrapped)?;
            let found = Compartment {
                number,
                since,
                key,
                is_named,
            };
            return Ok(Some((id, found)));
        }
    }

    /// Forgets all that was looked up.
    fn forget(&mut self) {
        self.known = Recent::default();
        self.keys = Recent::default();
        self.identifiers = Recent::default();
    }

    /// The compartment of line `seq`, made now if there is none, with the identifier
    /// that it stands for. One that was made for a pseudonym alone takes the identifier
    /// once somebody has it: without, nobody could be erased.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn compartment_or_new(
        &mut self,
        id: &str,
        identifier: Option<&str>,
        seq: u64,
    ) -> Result<Compartment, VaultError> {
        if let Some(found) = self.compartment(id)? {
            return match identifier.filter(|_| !found.is_named) {
                Some(identifier) => self.name(id, found, identifier),
                None => Ok(found),
            };
        }
        let key = Key::new(crate::keys::random()?);
        let wrapped = seal(&self.epoch.key, self.nonces.next()?, id, key.expose());
        let is_named = identifier.is_some();
        let identifier = match identifier {
            Some(text) => Some(seal(&key, self.nonces.next()?, id, text.as_bytes())),
            None => None,
        };
        self.begin()?;
        let number = self
            .db
            .prepare_cached(
                "INSERT INTO compartment (id, since, wrapped, identifier) VALUES (?1, ?2, ?3, ?4)",
            )
            .and_then(|mut q| q.insert(params![id, seq, wrapped, identifier]))
            .map_err(|e| self.failed(e))?;
        let made = Compartment {
            number: number.cast_unsigned(),
            since: seq,
            key,
            is_named,
        };
        self.known.insert(id.to_owned(), made.clone());
        Ok(made)
    }

    /// Keeps the identifier that a compartment stands for.
    fn name(
        &mut self,
        id: &str,
        unnamed: Compartment,
        identifier: &str,
    ) -> Result<Compartment, VaultError> {
        let sealed = seal(&unnamed.key, self.nonces.next()?, id, identifier.as_bytes());
        self.begin()?;
        self.db
            .execute(
                "UPDATE compartment SET identifier = ?1 WHERE number = ?2",
                params![sealed, unnamed.number],
            )
            .map_err(|e| self.failed(e))?;
        let named = Compartment {
            is_named: true,
            ..unnamed
        };
        self.known.insert(id.to_owned(), named.clone());
        Ok(named)
    }

    /// The identifier that a compartment stands for.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn identifier(&mut self, id: &str) -> Result<Option<Arc<str>>, VaultError> {
        if let Some(known) = self.identifiers.get(id) {
            return Ok(Some(known));
        }
        let Some(Compartment { key, .. }) = self.compartment(id)? else {
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
    /// at the next [`Vault::commit`], or before, when there is much.
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
        let raw_of = self.message_in(compartment.number, content.raw.as_ref(), seq);
        let label = label(seq, compartment.number);
        self.contents.put(seq, compartment.number, |out| {
            out.extend(nonce);
            let start = out.len();
            pack::pack(content, shape, raw_of, out);
            let tag = aead::seal(&compartment.key, &nonce, &label, &mut out[start..]);
            out.extend(tag);
        });
        match self.contents.waiting_bytes() >= WAITING_BYTES {
            true => self.commit(),
            false => Ok(()),
        }
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
        let (mut content, raw_of) = self.unpack(&clear)?;
        if let Some(line) = raw_of {
            content.raw = Some(self.message_of(line, record.compartment, &key)?);
        }
        Ok(Some((key, content)))
    }

    /// The message of a line's content, which has one itself, for a later line of the
    /// compartment.
    fn message_of(
        &mut self,
        seq: u64,
        compartment: u64,
        key: &Key,
    ) -> Result<Arc<[u8]>, VaultError> {
        let record = self.contents.get(seq)?;
        let record = record.filter(|record| record.compartment == compartment);
        let sealed = record.ok_or_else(|| VaultError::Sealed(self.path.clone()))?;
        let clear = self.unseal(key, &label(seq, compartment), sealed.sealed)?;
        let raw = self.unpack(&clear)?.0.raw;
        raw.ok_or_else(|| VaultError::Sealed(self.path.clone()))
    }

    /// A content, and the line whose message is also its own.
    fn unpack(&mut self, clear: &[u8]) -> Result<(Content, Option<u64>), VaultError> {
        let content = pack::unpack(clear, |shape| self.names_of(shape));
        content.ok_or_else(|| VaultError::Sealed(self.path.clone()))
    }

    /// The earlier line of a compartment with the same message, of the lines that came one
    /// after the other with it; from now on it is line `seq` if there is none. So the
    /// message of an event of many records is kept once for each patient, and goes with
    /// the patient's key.
    fn message_in(&mut self, compartment: u64, raw: Option<&Arc<[u8]>>, seq: u64) -> Option<u64> {
        let last = self.message.take();
        let raw = raw?;
        let same = last.filter(|last| Arc::ptr_eq(&last.raw, raw));
        let message = self.message.insert(same.unwrap_or_else(|| Message {
            raw: Arc::clone(raw),
            lines: HashMap::new(),
        }));
        let first = *message.lines.entry(compartment).or_insert(seq);
        (first != seq).then_some(first)
    }

    /// The key of a compartment by its number.
    fn key_of(&mut self, number: u64) -> Result<Option<Key>, VaultError> {
        if let Some(key) = self.keys.get(&number) {
            return Ok(Some(key));
        }
        let Some((_, Compartment { key, .. })) = self.find("number = ?1", &number)? else {
            return Ok(None);
        };
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
        self.commit_keys()?;
        Ok(self.contents.commit()?)
    }

    /// Makes everything kept so far durable, contents on the thread that is given: they
    /// are once they have landed.
    ///
    /// # Errors
    /// Those of [`Vault::commit`].
    pub(crate) fn commit_behind(&mut self, behind: &Behind) -> Result<(), VaultError> {
        self.commit_keys()?;
        Ok(self.contents.commit_behind(behind)?)
    }

    /// Waits until contents on their way are durable.
    ///
    /// # Errors
    /// Those of [`Vault::commit`].
    pub(crate) fn land(&mut self) -> Result<(), VaultError> {
        self.contents.land()?;
        Ok(())
    }

    fn commit_keys(&mut self) -> Result<(), VaultError> {
        if std::mem::take(&mut self.in_transaction) {
            let committed = self.db.execute_batch("COMMIT");
            committed.map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    /// Forgets contents of lines that never became durable, and keys that were made for
    /// them: nothing else is under those, and whoever erased the patient since would take
    /// them for those of somebody who came back.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn discard_from(&mut self, seq: u64) -> Result<(), VaultError> {
        self.db
            .execute("DELETE FROM compartment WHERE since >= ?1", [seq])
            .map_err(|e| self.failed(e))?;
        self.known = Recent::default();
        self.message = None;
        Ok(self.contents.discard_from(seq)?)
    }

    /// Destroys the key and the identifier of a compartment that began before line
    /// `seq`: what they sealed, and what their lines commit to, is closed for ever.
    /// Gives `false` if there is no such compartment.
    ///
    /// A new epoch begins: all other keys are wrapped under its key, and the old one
    /// is destroyed once nothing of what was erased stands in `keys.db` or its
    /// write-ahead log. A crash leaves the vault as it was before, or as it is
    /// afterwards; the next [`Vault::open`] wipes what is left.
    ///
    /// # Errors
    /// [`VaultError`]; the vault must be opened again.
    pub fn erase(&mut self, id: &str, seq: u64) -> Result<bool, VaultError> {
        self.commit()?;
        if !self.is_older(id, seq)? {
            return Ok(false);
        }
        let number = self.epoch.number + 1;
        let next = Epoch::create(&self.folder, number, &self.master, self.nonces.next()?)?;
        self.begin()?;
        self.db
            .execute("DELETE FROM compartment WHERE id = ?1", [id])
            .map_err(|e| self.failed(e))?;
        self.wrap_again(&next.key)?;
        self.db
            .execute("UPDATE epoch SET number = ?1", [number])
            .map_err(|e| self.failed(e))?;
        self.commit()?;
        self.epoch = next;
        self.forget();
        self.wipe()?;
        Ok(true)
    }

    /// Whether there is a key with this name that was made before line `seq`.
    ///
    /// # Errors
    /// [`VaultError`].
    pub(crate) fn is_older(&mut self, id: &str, seq: u64) -> Result<bool, VaultError> {
        Ok(self.compartment(id)?.is_some_and(|found| found.since < seq))
    }

    /// Wraps all keys under that of another epoch, a few at a time in memory.
    fn wrap_again(&mut self, next: &Key) -> Result<(), VaultError> {
        let mut after = 0_u64;
        loop {
            let some: Vec<(u64, String, Vec<u8>)> = self
                .db
                .prepare_cached(
                    "SELECT number, id, wrapped FROM compartment WHERE number > ?1 ORDER BY number LIMIT 1000",
                )
                .and_then(|mut q| q.query_map([after], |row| row.try_into())?.collect())
                .map_err(|e| self.failed(e))?;
            let Some((last, ..)) = some.last() else {
                return Ok(());
            };
            after = *last;
            for (number, id, wrapped) in some {
                let key = self.unwrap(&id, wrapped)?;
                let wrapped = seal(next, self.nonces.next()?, &id, key.expose());
                self.db
                    .prepare_cached("UPDATE compartment SET wrapped = ?2 WHERE number = ?1")
                    .and_then(|mut q| q.execute(params![number, wrapped]))
                    .map_err(|e| self.failed(e))?;
            }
        }
    }

    /// Destroys the keys of all epochs but this one, those of earlier ones after
    /// nothing is left in the write-ahead log, and keys that never took their place.
    fn wipe(&mut self) -> Result<(), VaultError> {
        destroy_unfinished(&self.folder)?;
        let numbers = Epoch::numbers(&self.folder)?;
        if numbers.iter().any(|number| *number < self.epoch.number) {
            let is_busy: bool = self
                .db
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
                .map_err(|e| self.failed(e))?;
            if is_busy {
                return Err(VaultError::Read(self.path.clone()));
            }
        }
        for number in numbers {
            if number != self.epoch.number {
                Epoch::destroy(&self.folder, number)?;
            }
        }
        Ok(())
    }

    /// What is noted of a kind, by id.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn notes(&mut self, kind: &str) -> Result<Vec<(String, Vec<u8>)>, VaultError> {
        let sealed: Vec<(String, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT id, sealed FROM note WHERE kind = ?1 ORDER BY id")
            .and_then(|mut q| q.query_map([kind], |row| row.try_into())?.collect())
            .map_err(|e| self.failed(e))?;
        let open = |(id, sealed): (String, Vec<u8>)| {
            let clear = self.unseal(&self.master, note_label(kind, &id).as_bytes(), sealed)?;
            Ok((id, clear))
        };
        sealed.into_iter().map(open).collect()
    }

    /// Notes something, in place of what was noted under this id; `None` removes it.
    /// Durable on return.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn set_note(
        &mut self,
        kind: &str,
        id: &str,
        note: Option<&[u8]>,
    ) -> Result<(), VaultError> {
        let nonce = self.nonces.next()?;
        self.begin()?;
        let done = match note {
            Some(clear) => {
                let sealed = seal(&self.master, nonce, &note_label(kind, id), clear);
                self.db.execute(
                    "INSERT OR REPLACE INTO note VALUES (?1, ?2, ?3)",
                    params![kind, id, sealed],
                )
            }
            None => self
                .db
                .execute("DELETE FROM note WHERE kind = ?1 AND id = ?2", [kind, id]),
        };
        done.map_err(|e| self.failed(e))?;
        self.commit()
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
        let key = self.unseal(&self.epoch.key, id.as_bytes(), wrapped)?;
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
        store(&self.path, source)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

fn connect(folder: &Path, flags: OpenFlags) -> Result<(PathBuf, Connection), VaultError> {
    let path = folder.join("keys.db");
    let db = Connection::open_with_flags(&path, flags).map_err(|e| store(&path, e))?;
    db.busy_timeout(std::time::Duration::from_secs(10))
        .map_err(|e| store(&path, e))?;
    Ok((path, db))
}

/// Destroys files of keys that were being written when a crash came: none has the name that
/// it was to have.
fn destroy_unfinished(folder: &Path) -> Result<(), DiskError> {
    for entry in std::fs::read_dir(folder).at(folder, "cannot list")? {
        let path = entry.at(folder, "cannot list")?.path();
        if path.extension().is_some_and(|end| end == "new~") {
            disk::destroy(&path)?;
        }
    }
    Ok(())
}

fn store(path: &Path, source: rusqlite::Error) -> VaultError {
    VaultError::Store {
        path: path.to_owned(),
        source,
    }
}

/// The epoch that the keys are wrapped under; `None` in a new vault.
fn epoch_number(db: &Connection) -> rusqlite::Result<Option<u64>> {
    db.query_row("SELECT number FROM epoch", [], |row| row.get(0))
        .optional()
}

fn note_label(kind: &str, id: &str) -> String {
    format!("{kind}\0{id}")
}

/// A key, an identifier or a note, sealed, with its nonce in front.
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
        let abc = vault.compartment_or_new("abc", Some("pt-1"), 7).unwrap();
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
            assert!(vault.key("another", 7).unwrap().is_none());
        }
        vault.discard_from(8).unwrap();
        assert!(vault.get(8).unwrap().is_none());
        assert_eq!(vault.get(7).unwrap().unwrap().1, content());
    }

    #[test]
    fn much_content_does_not_wait_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path(), &Key::new([1; 32])).unwrap();
        let abc = vault.compartment_or_new("abc", Some("pt-1"), 1).unwrap();
        for seq in 1..20 {
            vault.put(seq, &abc, &message(3 << 20)).unwrap();
            assert!(vault.contents.waiting_bytes() < WAITING_BYTES, "{seq}");
        }
        for seq in 1..20 {
            let kept = vault.get(seq).unwrap().unwrap().1;
            assert!(kept == message(3 << 20), "{seq}");
        }
    }

    fn message(length: usize) -> Content {
        Content {
            raw: Some(vec![b'{'; length].into()),
            ..Content::default()
        }
    }

    /// An audit event of many records has a line for each, and each commits to all of it.
    #[test]
    fn a_message_is_kept_once_for_each_patient() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let first = vault.compartment_or_new("abc", Some("pt-1"), 1).unwrap();
        let second = vault.compartment_or_new("def", Some("pt-2"), 2).unwrap();
        let event = message(1000);
        let mut of_both = [&first, &second].into_iter().cycle();
        let mut ends = Vec::new();
        for seq in 1..=200 {
            let of = of_both.next().unwrap();
            vault.put(seq, of, &event).unwrap();
            ends.push(vault.contents.waiting_bytes());
        }
        assert!(*ends.last().unwrap() < 2 * 1000 + 200 * 100);
        // Another event that says the same shares nothing with it.
        vault.put(201, &first, &message(1000)).unwrap();
        vault.put(202, &first, &content()).unwrap();
        assert!(vault.contents.waiting_bytes() > ends.last().unwrap() + 1000);
        // What is forgotten has nothing that a later line could point to.
        vault.commit().unwrap();
        vault.discard_from(200).unwrap();
        for seq in [200, 201] {
            vault.put(seq, &first, &event).unwrap();
        }
        vault.commit().unwrap();

        drop(vault);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        for seq in 1..=201 {
            assert!(vault.get(seq).unwrap().unwrap().1 == event, "{seq}");
        }
        assert!(vault.erase("def", 300).unwrap());
        for seq in 1..=201 {
            let kept = vault.get(seq).unwrap().map(|(_, kept)| kept);
            match seq < 200 && seq % 2 == 0 {
                true => assert!(kept.is_none(), "{seq}"),
                false => assert!(kept == Some(event.clone()), "{seq}"),
            }
        }
    }

    /// A line named the patient by pseudonym alone, before one came that had the identifier.
    #[test]
    fn a_compartment_takes_its_identifier_when_somebody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let unnamed = vault.compartment_or_new("abc", None, 7).unwrap();
        vault.put(7, &unnamed, &content()).unwrap();
        assert!(vault.identifier("abc").unwrap().is_none());
        let named = vault.compartment_or_new("abc", Some("pt-1"), 8).unwrap();
        vault.put(8, &named, &content()).unwrap();
        vault.compartment_or_new("abc", None, 9).unwrap();
        vault.commit().unwrap();
        drop(vault);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        assert_eq!(vault.identifier("abc").unwrap().as_deref(), Some("pt-1"));
        for seq in [7, 8] {
            assert_eq!(vault.get(seq).unwrap().unwrap().1, content());
            assert!(vault.key("abc", seq).unwrap().is_some());
        }
    }

    #[test]
    fn a_key_that_was_never_durable_is_not_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let abc = vault.compartment_or_new("abc", Some("pt-1"), 7).unwrap();
        vault.put(7, &abc, &content()).unwrap();
        drop(vault);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        assert!(vault.key("abc", 7).unwrap().is_none());
        assert!(vault.get(7).unwrap().is_none());
    }

    #[test]
    fn another_master_key_or_a_moved_entry_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let master = Key::new([1; 32]);
        let mut vault = Vault::open(dir.path(), &master).unwrap();
        let abc = vault.compartment_or_new("abc", None, 7).unwrap();
        let other = vault.compartment_or_new("other", None, 7).unwrap();
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
        let other = Vault::open(dir.path(), &Key::new([2; 32]));
        assert!(matches!(other, Err(VaultError::Sealed(_))));
    }

    #[test]
    fn nothing_private_stands_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path(), &Key::new([1; 32])).unwrap();
        let abc = vault
            .compartment_or_new("abc", Some("pt-SECRET"), 1)
            .unwrap();
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

    /// A vault of some patients, each with a line: `pt-N` has line N.
    fn populated(dir: &Path) -> Vault {
        let mut vault = Vault::open(dir, &Key::new([1; 32])).unwrap();
        for seq in 1..=300 {
            let id = format!("pseudonym-{seq:03}");
            let under = vault.compartment_or_new(&id, Some(&format!("pt-{seq}")), seq);
            vault.put(seq, &under.unwrap(), &content()).unwrap();
        }
        vault.commit().unwrap();
        vault
    }

    /// What of `pseudonym-007` stands in `keys.db`: its id, its wrapped key, and its
    /// sealed identifier.
    fn traces(vault: &Vault) -> Vec<Vec<u8>> {
        let query = "SELECT id, wrapped, identifier FROM compartment WHERE id = 'pseudonym-007'";
        let of_row = |row: &rusqlite::Row<'_>| {
            let id: String = row.get(0)?;
            Ok(vec![id.into_bytes(), row.get(1)?, row.get(2)?])
        };
        vault.db.query_row(query, [], of_row).unwrap()
    }

    fn stand(dir: &Path, traces: &[Vec<u8>]) -> bool {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                all.extend(std::fs::read(path).unwrap());
            }
        }
        let stands = |trace: &Vec<u8>| all.windows(trace.len()).any(|part| part == trace);
        traces.iter().any(stands)
    }

    #[track_caller]
    fn is_whole(vault: &mut Vault) {
        assert_eq!(vault.get(7).unwrap().unwrap().1, content());
        let identifier = vault.identifier("pseudonym-007").unwrap();
        assert_eq!(identifier.as_deref(), Some("pt-7"));
        others_are_whole(vault);
    }

    #[track_caller]
    fn is_erased(vault: &mut Vault) {
        assert!(vault.get(7).unwrap().is_none());
        assert!(vault.key("pseudonym-007", 7).unwrap().is_none());
        assert!(vault.identifier("pseudonym-007").unwrap().is_none());
        others_are_whole(vault);
    }

    #[track_caller]
    fn others_are_whole(vault: &mut Vault) {
        for seq in (1..=300).filter(|seq| *seq != 7) {
            assert_eq!(vault.get(seq).unwrap().unwrap().1, content());
            let id = format!("pseudonym-{seq:03}");
            let identifier = vault.identifier(&id).unwrap().unwrap();
            assert_eq!(*identifier, format!("pt-{seq}"));
        }
    }

    fn epochs(dir: &Path) -> Vec<u64> {
        Epoch::numbers(dir).unwrap()
    }

    fn reopened(dir: &Path) -> Vault {
        Vault::open(dir, &Key::new([1; 32])).unwrap()
    }

    #[test]
    fn of_an_erased_patient_nothing_is_left_in_the_files_or_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = populated(dir.path());
        let mut reader = Vault::open_read_only(dir.path(), &Key::new([1; 32])).unwrap();
        is_whole(&mut vault);
        is_whole(&mut reader);
        let before = (
            traces(&vault),
            std::fs::read(dir.path().join("epoch-000001.key")),
        );
        assert!(
            stand(dir.path(), &before.0),
            "the test looks where they are"
        );

        assert!(vault.erase("pseudonym-007", 301).unwrap());
        assert!(
            !vault.erase("pseudonym-007", 301).unwrap(),
            "once is enough"
        );
        is_erased(&mut vault);
        assert!(!stand(dir.path(), &before.0));
        assert!(!stand(dir.path(), &[before.1.unwrap()[8..].to_vec()]));
        assert_eq!(epochs(dir.path()), [2]);
        // A reader that was there before finds the new epoch.
        assert!(reader.key("pseudonym-301", 301).unwrap().is_none());
        let new = vault
            .compartment_or_new("pseudonym-301", None, 301)
            .unwrap();
        vault.commit().unwrap();
        assert!(reader.key("pseudonym-301", 301).unwrap().is_some());
        is_erased(&mut reader);
        is_erased(&mut reopened(dir.path()));
        assert_eq!(new.number, 301);
    }

    #[test]
    fn who_comes_back_has_another_key_for_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = populated(dir.path());
        let old = vault.key("pseudonym-007", 7).unwrap().unwrap();
        vault.erase("pseudonym-007", 301).unwrap();
        let again = vault
            .compartment_or_new("pseudonym-007", Some("pt-7"), 302)
            .unwrap();
        vault.put(302, &again, &content()).unwrap();
        vault.commit().unwrap();
        assert_ne!(old.expose(), again.key().expose());
        for mut vault in [vault, reopened(dir.path())] {
            assert!(
                vault.get(7).unwrap().is_none(),
                "numbers are not given again"
            );
            assert!(vault.key("pseudonym-007", 7).unwrap().is_none());
            assert!(vault.key("pseudonym-007", 302).unwrap().is_some());
            assert_eq!(vault.get(302).unwrap().unwrap().1, content());
            // An erasure that is finished late leaves what came after it.
            assert!(!vault.erase("pseudonym-007", 301).unwrap());
            others_are_whole(&mut vault);
        }
    }

    #[test]
    fn a_key_for_a_line_that_was_cut_off_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = populated(dir.path());
        let known = [("next", "pt-next", 303), ("late", "pt-late", 305)];
        for (name, id, seq) in known {
            vault.compartment_or_new(name, Some(id), seq).unwrap();
        }
        vault.compartment_or_new("before", None, 302).unwrap();
        vault.commit().unwrap();
        vault.discard_from(303).unwrap();
        for (name, _, seq) in known {
            assert!(!vault.has_key(name).unwrap(), "{name}");
            assert_eq!(vault.identifier(name).unwrap(), None);
            // Whoever comes instead has another one, which an erasure finds.
            vault.compartment_or_new(name, Some("pt-new"), seq).unwrap();
            assert!(vault.erase(name, seq + 1).unwrap());
        }
        assert!(vault.has_key("before").unwrap());
    }

    /// Stops an erasure at each of its steps: it has not begun, or it is finished
    /// when the vault is opened again.
    #[test]
    fn an_erasure_that_is_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = populated(dir.path());
        let (traces, nonce) = (traces(&vault), [9; NONCE_LEN]);
        // With the new epoch's file, and no more.
        let next = Epoch::create(dir.path(), 2, &vault.master, nonce).unwrap();
        drop(vault);
        vault = reopened(dir.path());
        is_whole(&mut vault);
        assert_eq!(epochs(dir.path()), [1]);
        // Within the transaction.
        Epoch::create(dir.path(), 2, &vault.master, nonce).unwrap();
        vault.begin().unwrap();
        vault
            .db
            .execute("DELETE FROM compartment WHERE id = 'pseudonym-007'", [])
            .unwrap();
        vault.wrap_again(&next.key).unwrap();
        drop(vault);
        vault = reopened(dir.path());
        is_whole(&mut vault);
        assert_eq!(epochs(dir.path()), [1]);
        // After it: a reader keeps the log from being cut.
        let reading = Connection::open(dir.path().join("keys.db")).unwrap();
        reading
            .execute_batch("BEGIN; SELECT number FROM epoch")
            .unwrap();
        vault.db.busy_timeout(std::time::Duration::ZERO).unwrap();
        let cut = vault.erase("pseudonym-007", 301);
        assert!(matches!(cut, Err(VaultError::Read(_))), "{cut:?}");
        assert!(stand(dir.path(), &traces));
        assert_eq!(epochs(dir.path()), [1, 2]);
        drop(reading);
        std::mem::forget(vault);
        vault = reopened(dir.path());
        is_erased(&mut vault);
        assert!(!stand(dir.path(), &traces));
        assert_eq!(epochs(dir.path()), [2]);
        // With the old epoch's file overwritten, and still there.
        std::fs::write(dir.path().join("epoch-000001.key"), [0; 80]).unwrap();
        drop(vault);
        is_erased(&mut reopened(dir.path()));
        assert_eq!(epochs(dir.path()), [2]);
    }

    #[test]
    fn keys_that_a_crash_kept_from_their_place_are_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, links] = ["from", "to", "links"].map(|name| dir.path().join(name));
        std::fs::create_dir(&links).unwrap();
        let mut vault = populated(&from);
        copy(&from, &to).unwrap();
        let names = ["epoch-000001.key", "epoch-000003.key", "keys.db"];
        let destroyed_by = |folder: &Path, what: &mut dyn FnMut()| {
            let left = names.map(|name| (folder.join(format!("{name}.new~")), links.join(name)));
            for (path, link) in &left {
                std::fs::write(path, "secret").unwrap();
                std::fs::hard_link(path, link).unwrap();
            }
            what();
            for (path, link) in &left {
                assert!(!path.exists(), "{}", path.display());
                assert_eq!(std::fs::read(link).unwrap(), [0; 6], "{}", path.display());
                std::fs::remove_file(link).unwrap();
            }
        };
        destroyed_by(&to, &mut || assert!(copy(&from, &to).unwrap() > 0));
        destroyed_by(&from, &mut || {
            assert!(vault.erase("pseudonym-007", 301).unwrap());
        });
        drop(vault);
        destroyed_by(&from, &mut || is_erased(&mut reopened(&from)));
        copy(&from, &to).unwrap();
        is_erased(&mut reopened(&to));
    }

    #[test]
    fn neither_file_of_keys_opens_anything_without_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = populated(dir.path());
        let (keys, old) = (dir.path().join("keys.db"), dir.path().join("old.db"));
        drop(vault);
        std::fs::copy(&keys, &old).unwrap();
        vault = reopened(dir.path());
        vault.erase("pseudonym-007", 301).unwrap();
        drop(vault);
        // A backup of `keys.db` alone, put back: the epoch of its keys is gone.
        std::fs::rename(old, &keys).unwrap();
        let opened = Vault::open(dir.path(), &Key::new([1; 32]));
        assert!(matches!(opened, Err(VaultError::Epoch(_))), "{opened:?}");
        // It is gone: nothing is begun anew over an epoch that went before.
        std::fs::remove_file(keys).unwrap();
        let opened = Vault::open(dir.path(), &Key::new([1; 32]));
        assert!(matches!(opened, Err(VaultError::Epoch(_))), "{opened:?}");
        assert_eq!(epochs(dir.path()), [2]);
    }

    #[test]
    fn notes_are_sealed_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path(), &Key::new([1; 32])).unwrap();
        vault
            .set_note("hold", "a", Some(b"a SECRET reason"))
            .unwrap();
        vault.set_note("hold", "b", Some(b"old")).unwrap();
        vault.set_note("hold", "b", Some(b"new")).unwrap();
        vault.set_note("request", "a", Some(b"else")).unwrap();
        vault.set_note("hold", "a", None).unwrap();
        let noted = vault.notes("hold").unwrap();
        assert_eq!(noted, [("b".to_owned(), b"new".to_vec())]);
        assert!(!stand(dir.path(), &[b"SECRET".to_vec()]));
        vault
            .db
            .execute("UPDATE note SET id = 'c' WHERE id = 'b'", [])
            .unwrap();
        assert!(matches!(vault.notes("hold"), Err(VaultError::Sealed(_))));
    }
}
