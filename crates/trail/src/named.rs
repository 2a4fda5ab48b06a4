//! The seals that checkpoints name (docs/spec/32-blocks.md §1): each is the one that an
//! earlier block has, and none stands before the one that was named last.

use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;
use pitser_evidence::line::SealRef;

use crate::index::Index;
use crate::layout::Layout;
use crate::read::{ReadError, seal_hashes};

/// The seals that a reader knows, and the newest that was named.
#[derive(Debug, Default)]
pub(crate) struct NamedSeals {
    /// What the checkpoint before named.
    last: Option<SealRef>,
    /// Those of the segment that is read, so far.
    read: Seals,
    /// Those of the earlier segment that was asked for last.
    earlier: Option<Seals>,
}

/// Hashes of a segment's seals, from its first block on; `None` of a block without one.
#[derive(Debug, Default)]
struct Seals {
    segment: u32,
    first: u64,
    hashes: Vec<Option<Digest>>,
}

/// What is wrong with a seal that is named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misnamed {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl NamedSeals {
    /// Goes on after a checkpoint that named `last`.
    pub(crate) fn goes_on(&mut self, last: Option<SealRef>) {
        self.last = last;
    }

    /// A segment is read from its first block on.
    pub(crate) fn segment(&mut self, segment: u32, first: u64) {
        let read = Seals {
            segment,
            first,
            hashes: Vec::new(),
        };
        self.earlier = Some(std::mem::replace(&mut self.read, read));
    }

    /// A block of that segment was read, with its seal.
    pub(crate) fn block(&mut self, block: u64, seal: Option<&[u8]>) {
        let hash = seal.map(|seal| Digest::of(&[seal]));
        // What was looked for again is known already.
        if block == self.read.first + self.read.hashes.len() as u64 {
            self.read.hashes.push(hash);
        }
    }

    /// What is wrong with the `seal` that the checkpoint of `block` names, which comes
    /// next. Seals that were not read are fetched if there is a `shelf` to do so.
    ///
    /// # Errors
    /// [`ReadError`] if they cannot be read.
    pub(crate) fn check(
        &mut self,
        block: u64,
        seal: Option<SealRef>,
        shelf: Option<(&Layout, &Index)>,
    ) -> Result<Option<Misnamed>, ReadError> {
        let altered = |text: &str| {
            let (code, text) = (Code::LineAltered, text.to_owned());
            Ok(Some(Misnamed { code, text }))
        };
        if seal == self.last {
            return Ok(None);
        }
        let Some(seal) = seal else {
            return altered("it names no seal, and the checkpoint before it does");
        };
        if seal.block >= block {
            return altered("it names the seal of a block that is not before it");
        }
        if self.last.is_some_and(|last| seal.block < last.block) {
            return altered("it names the seal of a block before that of the last one named");
        }
        let named = seal.block;
        let hash = match (self.known(named), shelf) {
            (Some(hash), _) => Some(hash),
            (None, Some((layout, index))) => self.fetch(layout, index, named)?,
            // Nobody asks what it is.
            (None, None) => Some(seal.hash),
        };
        let (code, text) = match hash {
            Some(hash) if hash == seal.hash => {
                self.last = Some(seal);
                return Ok(None);
            }
            Some(_) => (
                Code::SealInvalid,
                format!("the seal of block {named} is not the one that it names"),
            ),
            None => (
                Code::BlockMissing,
                format!("the seal of block {named}, which it names, is not there"),
            ),
        };
        Ok(Some(Misnamed { code, text }))
    }

    fn known(&self, block: u64) -> Option<Digest> {
        let kept = [Some(&self.read), self.earlier.as_ref()];
        kept.into_iter().flatten().find_map(|seals| seals.of(block))
    }

    /// Reads the seals of the segment that has `block`. Also if they were read: beside
    /// their writer, that was before the lines that name them. A seal is durable before
    /// any line does.
    fn fetch(
        &mut self,
        layout: &Layout,
        index: &Index,
        block: u64,
    ) -> Result<Option<Digest>, ReadError> {
        let Some(entry) = index.block(block, "")? else {
            return Ok(None);
        };
        let seals = Seals {
            segment: entry.segment,
            first: index.first_of(entry.segment)?,
            hashes: seal_hashes(layout, entry.segment)?,
        };
        let hash = seals.of(block);
        match seals.segment == self.read.segment {
            true => self.read = seals,
            false => self.earlier = Some(seals),
        }
        Ok(hash)
    }
}

impl Seals {
    fn of(&self, block: u64) -> Option<Digest> {
        let at = usize::try_from(block.checked_sub(self.first)?).ok()?;
        *self.hashes.get(at)?
    }
}
