//! Where the files of one trail are.
//!
//! ```text
//! keys.json                                      secret seeds and table keys, mode 0600
//! vault.key                                      master key of the vault, mode 0600, unless it is elsewhere
//! vault.key.wrapped                              in its place: the same, which only a keeper opens (master.rs)
//! vault/                                         patients' keys, identifiers, row images
//! erasures                                       for each line that erases: its seq and the pseudonym
//! lock                                           held by the one writer
//! trail/000000.jsonl                             lines of segment 0
//! trail/000000.jsonl.logsig.parts/blocks.dat     its blocks, while signatures are pending
//! trail/000000.jsonl.logsig.parts/block-signatures.dat
//! trail/000000.jsonl.logsig                      both, once the segment is closed
//! trail/000000.jsonl.archived                    in place of both, once it is in an archive
//! archive-cache/  archive.lock                   what was fetched; held by who archives
//! map/                                           the map's leaves and the index, derived (map/mod.rs)
//! outlines/000000                                where a closed segment's seals are, its blocks' trees, derived (signatures.rs)
//! head.note  publications.bin                    newest cosigned head, publications
//! audit.note  audited.note                       newest auditor's statement, and the cosigned head that it is about
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::archive::{Archive, Shelf};
use crate::master::Keeper;

/// A vault's master key that somebody else keeps in a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub enum VaultKey {
    /// The file.
    File(PathBuf),
    /// This process cannot have it, and why, for people. Whatever does without it goes on.
    Absent(String),
}

impl From<PathBuf> for VaultKey {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// The directory of one trail, and where its archived segments are.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    /// Where the map is, if somebody else than the trail's owner keeps it.
    map: Option<PathBuf>,
    shelf: Option<Arc<Shelf>>,
    foreign_key: Option<VaultKey>,
    keeper: Option<Arc<dyn Keeper>>,
}

impl Layout {
    /// The trail under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            map: None,
            shelf: None,
            foreign_key: None,
            keeper: None,
        }
    }

    /// A trail under another folder, with the same archive and the same who keeps the
    /// master key.
    pub(crate) fn elsewhere(&self, dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            map: None,
            ..self.clone()
        }
    }

    /// The same, with the vault's master key elsewhere: the trail reads and never writes it.
    #[must_use]
    pub fn with_vault_key(self, key: VaultKey) -> Self {
        Self {
            foreign_key: Some(key),
            ..self
        }
    }

    /// The same, with the vault's master key wrapped by `keeper`.
    #[must_use]
    pub fn with_keeper(self, keeper: Arc<dyn Keeper>) -> Self {
        Self {
            keeper: Some(keeper),
            ..self
        }
    }

    /// The same trail with the map in `map`: for who reads the trail's folder and
    /// writes nothing there.
    #[must_use]
    pub fn with_map(self, map: impl Into<PathBuf>) -> Self {
        Self {
            map: Some(map.into()),
            ..self
        }
    }

    /// The same trail with its archive, of which at most `cache_bytes_max` bytes are kept
    /// here once they were fetched.
    #[must_use]
    pub fn with_archive(self, archive: Arc<dyn Archive>, cache_bytes_max: u64) -> Self {
        let cache = self.dir.join("archive-cache");
        self.with_archive_cached(archive, cache, cache_bytes_max)
    }

    /// The same, with what was fetched in `cache`: for who writes nothing to the
    /// trail's folder.
    #[must_use]
    pub fn with_archive_cached(
        self,
        archive: Arc<dyn Archive>,
        cache: PathBuf,
        cache_bytes_max: u64,
    ) -> Self {
        Self {
            shelf: Some(Arc::new(Shelf::new(archive, cache, cache_bytes_max))),
            ..self
        }
    }

    pub(crate) fn shelf(&self) -> Option<&Shelf> {
        self.shelf.as_deref()
    }

    pub(crate) fn keeper(&self) -> Option<&dyn Keeper> {
        self.keeper.as_deref()
    }

    /// The vault's master key, if it is somebody else's to keep in a file.
    pub(crate) fn foreign_key(&self) -> Option<&VaultKey> {
        self.foreign_key.as_ref()
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a trail.
    pub fn has_trail(&self) -> bool {
        self.segment(0).exists() || self.receipt(0).exists()
    }

    /// Secret keys.
    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys.json")
    }

    /// The vault's master key, if nobody else keeps it.
    pub fn vault_key(&self) -> PathBuf {
        self.dir.join("vault.key")
    }

    /// The vault's master key, as its keeper wrapped it.
    pub fn wrapped_key(&self) -> PathBuf {
        self.dir.join("vault.key.wrapped")
    }

    /// The vault.
    pub fn vault(&self) -> PathBuf {
        self.dir.join("vault")
    }

    /// Which lines erase whom, by pseudonym.
    pub fn erasures(&self) -> PathBuf {
        self.dir.join("erasures")
    }

    /// The segments of the copy before, while those of the next one take their place.
    pub(crate) fn before(&self) -> PathBuf {
        self.dir.join("trail.before")
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

    /// The cosigned head that the newest auditor's statement is about.
    pub fn audited(&self) -> PathBuf {
        self.dir.join("audited.note")
    }

    /// The newest publications file.
    pub fn publications(&self) -> PathBuf {
        self.dir.join("publications.bin")
    }

    /// The map's store: derived from the segments.
    pub fn map(&self) -> PathBuf {
        let own = || self.dir.join("map");
        self.map.clone().unwrap_or_else(own)
    }

    /// Where the seals of closed segment `number` are, and its blocks' trees: derived
    /// from its log signature.
    pub(crate) fn outlines(&self, number: u32) -> PathBuf {
        self.dir.join("outlines").join(format!("{number:06}"))
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

    /// What stands in place of segment `number` once it is archived.
    pub fn receipt(&self, number: u32) -> PathBuf {
        self.segments().join(format!("{number:06}.jsonl.archived"))
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

    /// Numbers of the segments, archived ones too, ascending.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn segment_numbers(&self) -> std::io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(self.segments())? {
            let name = entry?.file_name();
            if let Some(number) = name
                .to_str()
                .map(|n| n.strip_suffix(".archived").unwrap_or(n))
                .and_then(|n| n.strip_suffix(".jsonl"))
                .and_then(|n| n.parse().ok())
            {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        // Between the receipt and the removal of the lines there are both.
        numbers.dedup();
        Ok(numbers)
    }
}
