//! Buckets of a commit, and of what a reader replays after it: on disk the
//! ones, which belong to the writer, in memory the others.

use super::MapError;
use super::folder::Folder;
use super::pages::DiskPages;
use pitser_evidence::codec::Bytes32;
use pitser_evidence::store::{Extent, Malformed, Memory, Pages};

/// Set in extents that are of memory. Files are numbered below it: 2^20 of
/// them are 32 TiB.
const OF_MEMORY: u64 = 1 << 60;

/// Buckets to read, beside the writer or without any store.
#[derive(Debug)]
pub struct ReadPages<F: Folder> {
    disk: Option<DiskPages<F>>,
    memory: Memory,
}

impl<F: Folder> Default for ReadPages<F> {
    fn default() -> Self {
        Self {
            disk: None,
            memory: Memory::default(),
        }
    }
}

impl<F: Folder> ReadPages<F> {
    pub(super) fn beside(disk: DiskPages<F>) -> Self {
        Self {
            disk: Some(disk),
            memory: Memory::default(),
        }
    }

    pub(super) fn disk_mut(&mut self) -> Option<&mut DiskPages<F>> {
        self.disk.as_mut()
    }

    /// Number of pseudonyms that are on disk.
    fn on_disk(&self) -> u32 {
        self.disk.as_ref().map_or(0, DiskPages::pseudonym_count)
    }
}

impl<F: Folder> Pages for ReadPages<F> {
    type Error = MapError;

    fn read<R>(&self, at: Extent, look: impl FnOnce(&[u8]) -> R) -> Result<R, MapError> {
        let of_memory = Extent::new(at.get() & !OF_MEMORY);
        match (&self.disk, of_memory) {
            (_, Some(of_memory)) if of_memory != at => Ok(self.memory.read(of_memory, look)?),
            (Some(disk), _) => disk.read(at, look),
            (None, _) => Err(self.malformed(Malformed)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Extent, MapError> {
        let at = self.memory.write(bytes)?;
        Extent::new(at.get() | OF_MEMORY).ok_or_else(|| self.malformed(Malformed))
    }

    fn release(&mut self, at: Extent) {
        // What is on disk is the writer's.
        if let Some(of_memory) = Extent::new(at.get() & !OF_MEMORY)
            && of_memory != at
        {
            self.memory.release(of_memory);
        }
    }

    fn pseudonym(&self, index: u32) -> Result<Bytes32, MapError> {
        match (&self.disk, index.checked_sub(self.on_disk())) {
            (Some(disk), None) => disk.pseudonym(index),
            (_, Some(index)) => Ok(self.memory.pseudonym(index)?),
            (None, None) => Err(self.malformed(Malformed)),
        }
    }

    fn push_pseudonym(&mut self, pseudonym: &Bytes32) -> Result<u32, MapError> {
        let index = self.memory.push_pseudonym(pseudonym)?;
        let index = index.checked_add(self.on_disk());
        index.ok_or_else(|| self.malformed(Malformed))
    }

    fn malformed(&self, malformed: Malformed) -> MapError {
        match &self.disk {
            Some(disk) => disk.malformed(malformed),
            None => MapError::Damaged {
                path: std::path::PathBuf::new(),
                damage: super::Damage::Altered,
            },
        }
    }
}
