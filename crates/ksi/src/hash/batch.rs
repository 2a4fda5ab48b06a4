//! Hashing many short messages, several at a time where the processor can.

use super::{
    Algorithm, Imprint, hash,
    lanes::{Block, IMPRINT_LEN, Kernel, WIDTH, blocks_of, pad},
};
use core::fmt;

/// Messages that are hashed together. What comes out is [`hash`] of each; with
/// SHA-256 it comes out faster, about twice as fast where the processor has
/// AVX-512 and half as fast again where it has the SHA extensions.
///
/// Meant to be kept and filled again: it allocates only to hold more imprints
/// than ever before.
///
/// ```
/// use pitser_ksi::hash::{Algorithm, Batch, hash};
/// let mut batch = Batch::new(Algorithm::Sha256);
/// batch.push(&[b"one"]);
/// batch.push(&[b"t", b"wo"]);
/// let two: Vec<_> = batch.drain().collect();
/// assert_eq!(two, [b"one", b"two"].map(|message| hash(Algorithm::Sha256, &[message])));
/// ```
#[derive(Clone)]
pub struct Batch {
    algorithm: Algorithm,
    /// `None` if another algorithm than SHA-256 is asked for.
    kernel: Option<Kernel>,
    /// Messages of `i + 1` blocks that wait until the lanes are filled.
    groups: [Group; LONGEST],
    /// By the order of the messages; those that wait have a place kept free.
    /// Zero beyond the digest.
    digests: Vec<[u8; LONGEST_DIGEST]>,
}

const LONGEST_DIGEST: usize = Imprint::MAX_LEN - 1;

/// Longer messages, in blocks, are not worth the copy.
const LONGEST: usize = 8;

impl Batch {
    /// A batch without messages.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self::with_kernel(algorithm, Kernel::best())
    }

    /// The same, hashed by `kernel` instead of the fastest one: for comparisons.
    #[must_use]
    pub fn with_kernel(algorithm: Algorithm, kernel: Kernel) -> Self {
        Self {
            algorithm,
            kernel: (algorithm == Algorithm::Sha256).then_some(kernel),
            groups: core::array::from_fn(|i| Group::new(i + 1)),
            digests: Vec::new(),
        }
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Adds the message that is the concatenation of `parts`.
    pub fn push(&mut self, parts: &[&[u8]]) {
        self.push_inline(parts);
    }

    /// Adds an inner node: [`super::node`].
    #[inline]
    pub fn push_node(&mut self, left: &[u8], right: &[u8], level: u8) {
        type Child<'c> = &'c [u8; IMPRINT_LEN];
        // The usual one: with lengths known beforehand it is copied much faster.
        if let (Ok(left), Ok(right)) = (Child::try_from(left), Child::try_from(right)) {
            self.push_inline(&[left, right, &[level]]);
        } else {
            self.push(&[left, right, &[level]]);
        }
    }

    #[inline(always)]
    fn push_inline(&mut self, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum();
        let group = self.groups.get_mut(blocks_of(length) - 1);
        let mut digest = [0; LONGEST_DIGEST];
        if let Some((kernel, group)) = self.kernel.zip(group) {
            group.push(parts, length, self.digests.len());
            self.digests.push(digest);
            if group.is_full() {
                group.flush(kernel, &mut self.digests);
            }
        } else {
            let imprint = hash(self.algorithm, parts);
            digest[..imprint.digest().len()].copy_from_slice(imprint.digest());
            self.digests.push(digest);
        }
    }

    /// Takes out the imprints, in the order of their messages.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = Imprint> {
        if let Some(kernel) = self.kernel {
            for group in &mut self.groups {
                group.flush(kernel, &mut self.digests);
            }
        }
        let algorithm = self.algorithm;
        self.digests
            .drain(..)
            .map(move |digest| Imprint::from_longest(algorithm, &digest))
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("algorithm", &self.algorithm)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// At most [`WIDTH`] messages of equally many blocks.
#[derive(Clone)]
struct Group {
    /// Blocks in a message.
    length: usize,
    /// Empty until the first message comes.
    blocks: Vec<Block>,
    /// Bytes of the message last written there: before an equally long one, the
    /// padding is in place already.
    padded: [usize; WIDTH],
    /// Where the digests go.
    places: [usize; WIDTH],
    count: usize,
}

impl Group {
    fn new(length: usize) -> Self {
        Self {
            length,
            blocks: Vec::new(),
            padded: [usize::MAX; WIDTH],
            places: [0; WIDTH],
            count: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.count == WIDTH
    }

    #[inline(always)]
    fn push(&mut self, parts: &[&[u8]], length: usize, place: usize) {
        if self.blocks.is_empty() {
            self.blocks.resize(WIDTH * self.length, [0; 64]);
        }
        let blocks = &mut self.blocks[self.count * self.length..][..self.length];
        let bytes = blocks.as_flattened_mut();
        let mut end = 0;
        for part in parts {
            bytes[end..][..part.len()].copy_from_slice(part);
            end += part.len();
        }
        if self.padded[self.count] != length {
            self.padded[self.count] = length;
            bytes[length..].fill(0);
            pad(bytes, length);
        }
        self.places[self.count] = place;
        self.count += 1;
    }

    fn flush(&mut self, kernel: Kernel, places: &mut [[u8; LONGEST_DIGEST]]) {
        if self.count == 0 {
            return;
        }
        let mut digests = [[0; 32]; WIDTH];
        let digests = &mut digests[..self.count];
        kernel.digest(
            &self.blocks[..self.count * self.length],
            self.length,
            digests,
        );
        for (digest, &place) in digests.iter().zip(&self.places) {
            places[place][..digest.len()].copy_from_slice(digest);
        }
        self.count = 0;
    }
}

/// The blocks of `message`.
#[cfg(test)]
pub(super) fn padded(message: &[u8]) -> Vec<Block> {
    let mut blocks = vec![[0; 64]; blocks_of(message.len())];
    let bytes = blocks.as_flattened_mut();
    bytes[..message.len()].copy_from_slice(message);
    pad(bytes, message.len());
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_keeps_its_place() {
        for algorithm in Algorithm::ALL {
            let mut batch = Batch::new(algorithm);
            let bytes: Vec<u8> = (0..=255).cycle().take(2000).collect();
            // All lengths are hashed with neighbours of others, and again with
            // what an earlier, shorter or longer message left behind.
            for step in [1, 7, 613] {
                let lengths: Vec<_> = (0..700).map(|i| i * step % 701).collect();
                let parts = |length: usize| [&bytes[..length / 3], &bytes[length / 3..length]];
                for &length in &lengths {
                    batch.push(&parts(length));
                }
                assert_eq!(batch.len(), lengths.len());
                for (imprint, &length) in batch.drain().zip(&lengths) {
                    assert_eq!(imprint, hash(algorithm, &parts(length)), "{length} bytes");
                }
                assert!(batch.is_empty());
            }
        }
    }

    #[test]
    fn nodes_are_nodes() {
        let leaf = Imprint::zero(Algorithm::Sha256);
        let mut batch = Batch::new(Algorithm::Sha256);
        (0..40).for_each(|level| batch.push_node(leaf.as_bytes(), b"right", level));
        for (level, node) in (0..40).zip(batch.drain()) {
            let expected = super::super::node(Algorithm::Sha256, leaf.as_bytes(), b"right", level);
            assert_eq!(node, expected);
        }
    }
}
