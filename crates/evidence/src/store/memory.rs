//! Buckets in memory: for auditors of small trails, and for tests.

use super::{Extent, Malformed, Pages};
use crate::codec::Bytes32;
use std::convert::Infallible;

/// Buckets in memory. Some 130 bytes a leaf, gone with the process.
#[derive(Debug, Default)]
pub struct Memory {
    buckets: Vec<Box<[u8]>>,
    free: Vec<usize>,
    pseudonyms: Vec<Bytes32>,
}

impl Memory {
    fn slot(at: Extent) -> usize {
        usize::try_from(at.get()).expect("an extent of this memory is an index")
    }
}

impl Pages for Memory {
    type Error = Infallible;

    fn read<R>(&self, at: Extent, look: impl FnOnce(&[u8]) -> R) -> Result<R, Infallible> {
        Ok(look(&self.buckets[Self::slot(at)]))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Extent, Infallible> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.buckets.push(Box::default());
            self.buckets.len() - 1
        });
        self.buckets[slot] = bytes.into();
        Ok(Extent::new(slot as u64).expect("memory has fewer than 2^61 buckets"))
    }

    fn release(&mut self, at: Extent) {
        let slot = Self::slot(at);
        self.buckets[slot] = Box::default();
        self.free.push(slot);
    }

    fn pseudonym(&self, index: u32) -> Result<Bytes32, Infallible> {
        Ok(self.pseudonyms[index as usize])
    }

    fn push_pseudonym(&mut self, pseudonym: &Bytes32) -> Result<u32, Infallible> {
        self.pseudonyms.push(*pseudonym);
        Ok(u32::try_from(self.pseudonyms.len() - 1).expect("memory has fewer than 2^32 patients"))
    }

    fn malformed(&self, malformed: Malformed) -> Infallible {
        unreachable!("{malformed}, although nobody else writes to this memory")
    }
}
