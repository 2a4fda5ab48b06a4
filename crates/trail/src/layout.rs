//! Where the files of one trail are.
//!
//! ```text
//! keys.json                                      secret seeds and table keys, mode 0600
//! vault.key                                      master key of the vault, mode 0600
//! vault.db                                       patients' keys, identifiers, row images
//! lock                                           held by the one writer
//! trail/000000.jsonl                             lines of segment 0
//! trail/000000.jsonl.logsig.parts/blocks.dat     its blocks, while signatures are pending
//! trail/000000.jsonl.logsig.parts/block-signatures.dat
//! trail/000000.jsonl.logsig                      both, once the segment is closed
//! map/                                           the map's leaves and the index, derived (map/mod.rs)
//! head.note  audit.note  publications.bin        newest cosigned head, audit, publications
//! ```

use std::path::{Path, PathBuf};

/// The directory of one trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(PathBuf);

impl Layout {
    /// The trail under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Secret keys.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys.json")
    }

    /// The vault's master key.
    pub fn vault_key(&self) -> PathBuf {
        self.0.join("vault.key")
    }

    /// The vault.
    pub fn vault(&self) -> PathBuf {
        self.0.join("vault.db")
    }

    /// The writer's lock.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The newest cosigned head.
    pub fn head(&self) -> PathBuf {
        self.0.join("head.note")
    }

    /// The newest auditor's statement.
    pub fn audit(&self) -> PathBuf {
        self.0.join("audit.note")
    }

    /// The newest publications file.
    pub fn publications(&self) -> PathBuf {
        self.0.join("publications.bin")
    }

    /// The map's store: derived from the segments.
    pub fn map(&self) -> PathBuf {
        self.0.join("map")
    }

    /// The folder of segments.
    pub fn segments(&self) -> PathBuf {
        self.0.join("trail")
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
