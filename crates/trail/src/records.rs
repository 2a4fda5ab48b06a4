//! A file of records of one length each, which only grows: part of what is durable with
//! the map's commits (`map/`).

use crate::disk::At;
use crate::map::{Damage, Folder, Grows, MapError, OsFolder};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// Bytes in a file, and those that are not in it yet.
#[derive(Debug, Default)]
pub(crate) struct Records {
    file: Option<File>,
    path: PathBuf,
    written: u64,
    gathered: Vec<u8>,
    is_damaged: Cell<bool>,
}

impl Records {
    /// The first `len` bytes of a file: to go on after them, or to read.
    ///
    /// # Errors
    /// [`MapError`] if they are not there.
    pub(crate) fn open(
        folder: &OsFolder,
        name: &str,
        len: u64,
        write: bool,
    ) -> Result<Self, MapError> {
        let path = folder.path().join(name);
        let mut this = Self {
            file: None,
            path,
            written: len,
            gathered: Vec::new(),
            is_damaged: Cell::new(false),
        };
        let opened = match write {
            true => folder.reopen(name, len).map(Some),
            false => folder.open(name),
        };
        this.file = match opened {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(this.damaged(Damage::Short));
            }
            opened => opened.at(&this.path, "cannot open")?,
        };
        match &this.file {
            Some(file) if file.length().at(&this.path, "cannot look at")? < len => {
                Err(this.damaged(Damage::Short))
            }
            None if len > 0 => Err(this.damaged(Damage::Missing)),
            _ => Ok(this),
        }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    /// Adds bytes, which [`Records::sync`] writes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Fills `bytes` from `at` on.
    ///
    /// # Errors
    /// [`MapError`] if they are not there, or cannot be read.
    pub(crate) fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), MapError> {
        if let Some(start) = at.checked_sub(self.written) {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            let there = self.gathered.get(start..).unwrap_or_default();
            let there = there.get(..bytes.len());
            bytes.copy_from_slice(there.ok_or_else(|| self.damaged(Damage::Short))?);
            return Ok(());
        }
        let file = self.file.as_ref();
        let file = file.ok_or_else(|| self.damaged(Damage::Missing))?;
        Ok(file
            .read_exact_at(bytes, at)
            .at(&self.path, "cannot read")?)
    }

    /// Makes what was added durable.
    ///
    /// # Errors
    /// [`MapError::Disk`].
    pub(crate) fn sync(&mut self, folder: &OsFolder, name: &str) -> Result<(), MapError> {
        if self.file.is_none() {
            let opened = folder.reopen(name, self.written);
            self.file = Some(opened.at(&self.path, "cannot open")?);
        }
        if let Some(file) = &mut self.file {
            file.append(&self.gathered).at(&self.path, "cannot write")?;
            file.sync_data().at(&self.path, "cannot make durable")?;
        }
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// Whether something was read that is not what was written.
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged.get()
    }

    /// That what was read is not what was written.
    pub(crate) fn damaged(&self, damage: Damage) -> MapError {
        self.is_damaged.set(true);
        MapError::Damaged {
            path: self.path.clone(),
            damage,
        }
    }
}
