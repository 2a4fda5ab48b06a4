//! A store for tests and demonstrations: gone when its last handle is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::witness::Log;

use super::{Fork, Head, Store, StoreError, check_advance};

/// Keeps the promise of [`Store`] as long as the process lives. Clones share
/// one memory, as two processes share a file.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    heads: BTreeMap<String, Head>,
    forks: BTreeMap<String, Fork>,
    logs: BTreeMap<String, Log>,
}

impl Memory {
    fn latest_at(&self) -> Option<u64> {
        self.heads.values().map(|head| head.cosigned_at).max()
    }
}

impl MemoryStore {
    /// A store that remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Each change is a single insertion: a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn head(&self, origin: &str) -> Result<Option<Head>, StoreError> {
        Ok(self.lock().heads.get(origin).cloned())
    }

    fn advance(
        &mut self,
        origin: &str,
        expected: Option<&Head>,
        new: &Head,
    ) -> Result<(), StoreError> {
        let mut memory = self.lock();
        check_advance(memory.heads.get(origin), expected, memory.latest_at(), new)?;
        memory.heads.insert(origin.to_owned(), new.clone());
        Ok(())
    }

    fn keep_fork(&mut self, fork: Fork) -> Result<(), StoreError> {
        let mut memory = self.lock();
        memory.forks.entry(fork.origin.clone()).or_insert(fork);
        Ok(())
    }

    fn forks(&self) -> Result<Vec<Fork>, StoreError> {
        Ok(self.lock().forks.values().cloned().collect())
    }

    fn latest_at(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.lock().latest_at())
    }

    fn log(&self, origin: &str) -> Result<Option<Log>, StoreError> {
        Ok(self.lock().logs.get(origin).cloned())
    }

    fn logs(&self) -> Result<Vec<Log>, StoreError> {
        Ok(self.lock().logs.values().cloned().collect())
    }

    fn put_log(&mut self, log: &Log) -> Result<(), StoreError> {
        let mut memory = self.lock();
        memory.logs.insert(log.origin.clone(), log.clone());
        Ok(())
    }
}
