//! An auditor's folder.
//!
//! ```text
//! key                    the secret note key, mode 0600
//! statements             every statement that was signed and the head it is about,
//!                        a JSON object a line; this file only grows
//! lock                   held by the one process that signs
//! trails/<genesis>/map   what was replayed of the trail (pitser_trail::replay)
//! trails/<genesis>/seals          blocks whose seals were judged, from the first on, and the
//!                                 second of the last of them
//! trails/<genesis>/refused.note   the head that was last refused
//! trails/<genesis>/copy           the trail, if a guardian serves it (`copy.rs`)
//! trails/<genesis>/copy.new       the same, fetched again because the copy was in doubt
//! trails/<genesis>/given          blocks of the newest statement that the guardian took
//! trails/<genesis>/samples        what came of each sample of rows, a JSON object a line
//! trails/<genesis>/wrong.json     an opened row that its line is not about
//! ```
//! A statement is durable in `statements` before anybody gets it. A crash before that
//! leaves part of a line, which is cut off: what was never given to anybody was never
//! said. A crash after it: the next run finds it there, and gives it.

use super::AuditError;
use pitser_disk::Access;
use pitser_evidence::audit::Statement;
use pitser_evidence::codec::Digest;
use pitser_ksi::time::Second;
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_trail::disk::{self, AppendFile, At, Lock};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// More than any statement with its head is long (`HEAD_MAX`), line feeds written as two letters.
const LINE_MAX: u64 = 1 << 20;

/// One who replays trails and signs what came out, with his key and his memory.
#[derive(Debug)]
pub struct Auditor {
    dir: PathBuf,
    pub(super) key: SigningKey,
    /// The newest statement about each trail, by its genesis; `None` until it is read,
    /// and after it could not be written.
    memory: Option<HashMap<String, Signed>>,
    /// Held until the auditor is dropped.
    _lock: Lock,
}

/// A statement that was signed, and the cosigned head that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub statement: Statement,
    /// It, signed: what evidence needs.
    pub note: String,
    /// The head.
    pub head: String,
}

/// A line of `statements`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    head: String,
    note: String,
}

/// Which seals were judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Those of so many blocks, from the first on.
    pub(super) blocks: u64,
    /// When the last of them was sealed: no block after it was before.
    pub(super) at: Second,
}

impl Auditor {
    /// Makes an auditor in `dir`, with a key of `name` from 32 random bytes.
    ///
    /// # Errors
    /// [`AuditError::Folder`] if there is one already, or the name is none for a key.
    pub fn create(
        dir: &Path,
        name: &str,
        seed: &Zeroizing<[u8; 32]>,
    ) -> Result<VerifierKey, AuditError> {
        let key_path = dir.join("key");
        let key = SigningKey::from_seed(name, seed).map_err(|e| AuditError::Folder {
            path: key_path.clone(),
            what: format!("{name:?} is no name for a key: {e}"),
        })?;
        let statements = dir.join("statements");
        let has_said = fs::metadata(&statements).is_ok_and(|file| file.len() > 0);
        for (path, is_taken) in [(&key_path, key_path.exists()), (&statements, has_said)] {
            if is_taken {
                return Err(AuditError::Folder {
                    path: path.clone(),
                    what: "is there already. A key belongs to one memory for life: choose another \
                           folder for another auditor"
                        .into(),
                });
            }
        }
        disk::private_dir(&dir.join("trails"))?;
        // The memory first: a key without one is never used.
        AppendFile::open(&statements, b"")?;
        disk::sync_dir(&statements)?;
        let secret = Zeroizing::new(format!("{}\n", *key.expose()));
        pitser_disk::create(&key_path, secret.as_bytes(), Access::Owner)
            .at(&key_path, "cannot create")?;
        Ok(key.verifier())
    }

    /// The auditor in `dir`, with his key in `key` if it is not there.
    ///
    /// # Errors
    /// [`AuditError::Folder`] if there is none, or another process is this auditor.
    pub fn open(dir: &Path, key: Option<&Path>) -> Result<Self, AuditError> {
        let path = key.map_or_else(|| dir.join("key"), Path::to_owned);
        let wrong = |path: &Path, what: String| AuditError::Folder {
            path: path.to_owned(),
            what,
        };
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && key.is_none() => {
                let what = format!(
                    "there is no auditor here. Make one with `pitser audit init --dir {} --name NAME`",
                    dir.display()
                );
                return Err(wrong(&path, what));
            }
            text => Zeroizing::new(text.at(&path, "cannot read")?),
        };
        // Whatever is wrong with it, it is not shown.
        let key = SigningKey::parse(text.trim_end())
            .map_err(|_| wrong(&path, "this is no auditor's key".into()))?;
        let statements = dir.join("statements");
        if !statements.exists() {
            let what = "it is gone. Without its memory this key must not sign again: make a new auditor \
                        in another folder, and tell those who trust this one";
            return Err(wrong(&statements, what.into()));
        }
        let lock_path = dir.join("lock");
        let Some(lock) = disk::lock(&lock_path)? else {
            let what = "another pitser is this auditor. Stop it first";
            return Err(wrong(&lock_path, what.into()));
        };
        Ok(Self {
            dir: dir.to_owned(),
            key,
            memory: None,
            _lock: lock,
        })
    }

    /// The key that verifiers put into their anchors.
    pub fn verifier(&self) -> VerifierKey {
        self.key.verifier()
    }

    /// Where the map of the trail that begins with `genesis` is.
    pub(super) fn map(&self, genesis: &Digest) -> PathBuf {
        self.trail(genesis).join("map")
    }

    pub(super) fn trail(&self, genesis: &Digest) -> PathBuf {
        self.dir.join("trails").join(genesis.to_string())
    }

    fn statements(&self) -> PathBuf {
        self.dir.join("statements")
    }

    /// The newest statement about the trail, if one was signed.
    ///
    /// # Errors
    /// [`AuditError::Folder`] if what is there is not what this key signed.
    pub fn newest(&mut self, genesis: &Digest) -> Result<Option<&Signed>, AuditError> {
        if self.memory.is_none() {
            self.memory = Some(self.recall()?);
        }
        Ok(self
            .memory
            .as_ref()
            .and_then(|memory| memory.get(&genesis.to_string())))
    }

    /// The last statement about another trail of the same name, if one was signed: a
    /// trail was begun anew under its name.
    ///
    /// # Errors
    /// Those of [`Auditor::newest`].
    pub(super) fn namesake(
        &mut self,
        origin: &str,
        genesis: &Digest,
    ) -> Result<Option<Statement>, AuditError> {
        self.newest(genesis)?;
        let signed = self.memory.iter().flat_map(HashMap::values);
        let others = signed.map(|signed| &signed.statement);
        let others = others.filter(|of| of.origin == origin && of.genesis != *genesis);
        Ok(others.max_by_key(|of| of.made_at).cloned())
    }

    /// Reads what was signed, and cuts off the part of a line that a crash or a full
    /// disk left.
    fn recall(&self) -> Result<HashMap<String, Signed>, AuditError> {
        let mut memory = HashMap::new();
        let (mut whole, mut last, mut number) = (0, 0, 0u64);
        self.each_line(|line| {
            if line.ends_with(b"\n") {
                last = whole;
                whole += line.len() as u64;
                number += 1;
                let signed = self.read(line, number)?;
                memory.insert(signed.statement.genesis.to_string(), signed);
            }
            Ok(())
        })?;
        let path = self.statements();
        let mut file = AppendFile::open(&path, b"")?;
        if file.len() > whole {
            file.truncate(whole)?;
        }
        // What a crash, or a failure to make it durable, left in the system's memory alone
        // counts from now on.
        disk::write_again(&path, last)?;
        Ok(memory)
    }

    fn read(&self, line: &[u8], number: u64) -> Result<Signed, AuditError> {
        let read = || {
            let entry: Entry = serde_json::from_slice(line).ok()?;
            let note = Note::parse(entry.note.as_bytes()).ok()?;
            note.verify(&self.verifier()).ok()?;
            Some(Signed {
                statement: Statement::parse(note.text()).ok()?,
                note: entry.note,
                head: entry.head,
            })
        };
        read().ok_or_else(|| AuditError::Folder {
            path: self.statements(),
            what: format!(
                "line {number} is not what this auditor signed. Restore the file from its backup: \
                 without it the key must not sign"
            ),
        })
    }

    fn each_line(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let path = self.statements();
        let file = File::open(&path).at(&path, "cannot open")?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut part = (&mut reader).take(LINE_MAX);
            let len = part.read_until(b'\n', &mut line).at(&path, "cannot read")?;
            if len == 0 {
                return Ok(());
            }
            take(&line)?;
        }
    }

    /// Makes a statement durable. Nobody may have it before.
    pub(super) fn remember(&mut self, signed: &Signed) -> Result<(), AuditError> {
        let entry = Entry {
            head: signed.head.clone(),
            note: signed.note.clone(),
        };
        let mut line = serde_json::to_vec(&entry).expect("two strings have a JSON form");
        line.push(b'\n');
        // If it fails, the file is read again: nobody knows what is in it.
        let memory = self.memory.take();
        AppendFile::open(&self.statements(), b"")?.append(&line)?;
        self.memory = memory.map(|mut memory| {
            memory.insert(signed.statement.genesis.to_string(), signed.clone());
            memory
        });
        Ok(())
    }

    /// Up to which block the seals were judged in earlier looks: from the first on, if
    /// nothing says so.
    pub(super) fn judged(&self, genesis: &Digest) -> Judged {
        let text = fs::read_to_string(self.trail(genesis).join("seals")).unwrap_or_default();
        let judged = text.split_once(' ').and_then(|(blocks, at)| {
            Some(Judged {
                blocks: blocks.parse().ok()?,
                at: Second(at.parse().ok()?),
            })
        });
        judged.unwrap_or_default()
    }

    /// Notes that, once they were judged.
    pub(super) fn note_judged(&self, genesis: &Digest, judged: Judged) -> Result<(), AuditError> {
        if self.judged(genesis) != judged {
            let path = self.trail(genesis).join("seals");
            let Judged { blocks, at } = judged;
            disk::replace(&path, format!("{blocks} {}", at.0).as_bytes())?;
        }
        Ok(())
    }

    /// Keeps the head that was refused: with a statement, it may show a fork to others.
    pub(super) fn keep_refused(&self, genesis: &Digest, head: &Note) -> Result<(), AuditError> {
        disk::private_dir(&self.trail(genesis))?;
        let path = self.trail(genesis).join("refused.note");
        disk::replace(&path, head.to_string().as_bytes())?;
        Ok(())
    }
}
