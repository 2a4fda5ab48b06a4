//! Where the files of one trail are.
//!
//! ```text
//! keys.json                                      secret seeds and table keys, mode 0600
//! vault.key                                      master key of the vault, mode 0600, unless it is elsewhere
//! vault/                                         patients' keys, identifiers, row images
//! erasures                                       for each line that erases: its seq and the pseudonym
//! lock                                           held by the one writer
//! trail/000000.jsonl                             lines of segment 0
//! trail/000000.jsonl.logsig.parts/blocks.dat     its blocks, while signatures are pending
//! trail/000000.jsonl.logsig.parts/block-signatures.dat
//! trail/000000.jsonl.logsig                      both, once the segment is closed
//! head.note  audit.note  publications.bin        newest cosigned head, audit, publications
//! ```

use std::path::{Path, PathBuf};

/// The directory of one trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
    vault_key: Option<PathBuf>,
}

impl Layout {
    /// The trail under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            vault_key: None,
        }
    }

    /// The same, with the vault's master key in a file elsewhere, which the trail
    /// reads and never writes.
    #[must_use]
    pub fn with_vault_key(self, path: impl Into<PathBuf>) -> Self {
        Self {
            vault_key: Some(path.into()),
            ..self
        }
    }

    /// Whether the vault's master key is somebody else's to keep.
    pub(crate) fn has_foreign_key(&self) -> bool {
        self.vault_key.is_some()
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Secret keys.
    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys.json")
    }

    /// The vault's master key.
    pub fn vault_key(&self) -> PathBuf {
        match &self.vault_key {
            Some(path) => path.clone(),
            None => self.dir.join("vault.key"),
        }
    }

    /// The vault.
    pub fn vault(&self) -> PathBuf {
        self.dir.join("vault")
    }

    /// Which lines erase whom, by pseudonym.
    pub fn erasures(&self) -> PathBuf {
        self.dir.join("erasures")
    }

    /// The writer's lock.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The newest cosigned head.
    pub fn head(&self) -> PathBuf {
        self.dir.join("head.note")
    }

    /// The newest auditor's statement.
    pub fn audit(&self) -> PathBuf {
        self.dir.join("audit.note")
    }

    /// The newest publications file.
    pub fn publications(&self) -> PathBuf {
        self.dir.join("publications.bin")
    }

    /// The folder of segments.
    pub fn segments(&self) -> PathBuf {
        self.dir.join("trail")
    }

    /// The lines of segment `number`.
    pub fn segment(&self, number: u32) -> PathBuf {
        self.segments().join(format!("{number:06}.jsonl"))
    }

    /// The log signature of a closed segment.
    pub fn logsig(&self, number: u32) -> PathBuf {
        self.segments().join(format!("{number:06}.jsonl.logsig"))
    }

    /// The folder of an open segment's log signature parts.
    pub fn parts(&self, number: u32) -> PathBuf {
        self.segments()
            .join(format!("{number:06}.jsonl.logsig.parts"))
    }

    /// The blocks of an open segment.
    pub fn blocks(&self, number: u32) -> PathBuf {
        self.parts(number).join("blocks.dat")
    }

    /// The seals of an open segment.
    pub fn seals(&self, number: u32) -> PathBuf {
        self.parts(number).join("block-signatures.dat")
    }

    /// Numbers of the segments on disk, ascending.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn segment_numbers(&self) -> std::io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(self.segments())? {
            let name = entry?.file_name();
            if let Some(number) = name
                .to_str()
                .and_then(|n| n.strip_suffix(".jsonl"))
                .and_then(|n| n.parse().ok())
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}
