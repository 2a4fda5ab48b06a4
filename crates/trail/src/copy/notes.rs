//! The small files beside a trail, and what a copy says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path};

use pitser_ksi::time::Second;
use serde::{Deserialize, Serialize};

use crate::disk::{self, At, DiskError};
use crate::layout::Layout;

/// Those of one moment before the lines were copied.
pub(super) struct Notes(BTreeMap<String, Vec<u8>>);

impl Notes {
    /// All files beside the trail's folders, the secret keys too unless they are to be left
    /// out: heads and statements, and what the guardian keeps for its next start.
    pub(super) fn read(trail: &Layout, without_keys: bool) -> Result<Self, DiskError> {
        let dir = trail.dir();
        let keys = [trail.keys(), trail.vault_key(), trail.wrapped_key()];
        let mut notes = BTreeMap::new();
        for entry in fs::read_dir(dir).at(dir, "cannot list")? {
            let entry = entry.at(dir, "cannot list")?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else { continue };
            let is_ours = LOCKS.contains(&name) || name == RECORD || name.ends_with(".new~");
            let is_key = without_keys && keys.contains(&path);
            // Taken after the vault.
            if is_ours || is_key || path == trail.erasures() {
                continue;
            }
            // Whoever wrote it may have removed it.
            let Ok(found) = fs::metadata(&path) else {
                continue;
            };
            if !found.is_file() {
                continue;
            }
            if found.len() > LONGEST {
                tracing::warn!(file = %path.display(), "a file of this length is none of a trail: it is not copied");
                continue;
            }
            match fs::read(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                read => {
                    notes.insert(name.to_owned(), read.at(&path, "cannot read")?);
                }
            }
        }
        Ok(Self(notes))
    }

    /// Writes them, and removes those of an earlier copy that are there no more.
    pub(super) fn write(self, to: &Layout, record: &mut Record) -> Result<(), DiskError> {
        let earlier: BTreeSet<String> = record.files.drain(..).collect();
        let all = earlier.iter().chain(self.0.keys());
        // Whatever a copy that is killed leaves, the next one knows of.
        record.files = all.filter(|name| is_name(name)).cloned().collect();
        record.write(to.dir())?;
        for name in &record.files {
            if self.0.contains_key(name) {
                continue;
            }
            let path = to.dir().join(name);
            // It may be a key. A link leads elsewhere.
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                disk::destroy(&path)?;
            }
        }
        for (name, bytes) in &self.0 {
            disk::keep(&to.dir().join(name), bytes)?;
        }
        record.files = self.0.into_keys().collect();
        Ok(())
    }
}

/// Whether it is that of a file of the copy itself. Whoever may write into the copy could
/// name any file.
fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(only)), None) if only == name
    )
}

/// Files that stand for locks.
const LOCKS: [&str; 2] = ["lock", "archive.lock"];
/// Nothing that is kept beside a trail is longer.
const LONGEST: u64 = 64 << 20;

/// What is known of the copy that is there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    format: String,
    /// The first block whose seal is still to be judged.
    judged: u64,
    /// When the last block before that one was sealed.
    judged_at: Option<u64>,
    /// Files beside the trail's folders that were copied.
    files: Vec<String>,
}

const RECORD: &str = "copied";
const FORMAT: &str = "pitser-copy/1";

impl Record {
    /// That of the copy in a folder. One that cannot be understood says nothing.
    pub(super) fn read(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join(RECORD);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.at(&path, "cannot read")?,
        };
        let record: Self = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(match record.format == FORMAT {
            true => record,
            false => Self::default(),
        })
    }

    pub(super) fn write(&mut self, dir: &Path) -> Result<(), DiskError> {
        self.format = FORMAT.to_owned();
        let bytes = serde_json::to_vec(self).expect("names and numbers are JSON");
        disk::replace(&dir.join(RECORD), &bytes)
    }

    /// The first block whose seal is still to be judged, and when the last one before it
    /// was sealed.
    pub(super) fn seals(&self) -> (u64, Option<Second>) {
        (self.judged, self.judged_at.map(Second))
    }

    /// Seals of the blocks before `judged` are judged.
    pub(super) fn judged(&mut self, judged: u64, at: Option<Second>) {
        self.judged = judged;
        self.judged_at = at.map(|at| at.0);
    }

    /// Nothing of that is known.
    pub(super) fn judge_again(&mut self) {
        self.judged(0, None);
    }
}
