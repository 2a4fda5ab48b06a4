//! Many documents under one signature (spec §3.9): the client builds a tree of its
//! own, has the root signed, and cuts a signature for each leaf out of it.
//!
//! ```text
//! x := document                                          at its level
//! x := H( metadata ‖ x ‖ level+1 )                       with metadata
//! x := H( mask ‖ x ‖ level+1 ),  mask = H( previous x ‖ IV )     with masks
//! ```
//!
//! and the x of all documents are the leaves of a [`crate::tree`]. Both siblings
//! stand on the left. A mask keeps whoever holds the signature of one document from
//! guessing its neighbours, as in log signatures.

use crate::{
    chain::{Link, Metadata, Sibling, Side},
    hash::{Algorithm, Imprint, hash, node},
    signature::{HangError, Signature},
    tree::{Tree, TreeBuilder, TreeFull},
};

/// Collects documents for one signature.
///
/// ```
/// use pitser_ksi::{Algorithm, block_signer::BlockSigner, chain::climb, hash::hash};
/// let documents = ["a", "b", "c"].map(|text| hash(Algorithm::Sha256, &[text.as_bytes()]));
/// let mut signer = BlockSigner::new(Algorithm::Sha256);
/// for document in documents {
///     signer.push(document, 0, None)?;
/// }
/// let block = signer.finish().expect("there are documents");
/// // Have block.root() signed at block.level(), then: block.signature_of(2, &signature)
/// assert_eq!(
///     climb(Algorithm::Sha256, documents[2], 0, &block.links(2)),
///     Ok((block.root(), block.level()))
/// );
/// # Ok::<(), pitser_ksi::tree::TreeFull>(())
/// ```
#[derive(Clone, Debug)]
pub struct BlockSigner {
    algorithm: Algorithm,
    tree: TreeBuilder,
    masking: Option<Masking>,
    documents: Vec<Document>,
}

#[derive(Clone, Debug)]
struct Masking {
    iv: Vec<u8>,
    previous: Imprint,
}

#[derive(Clone, Debug)]
struct Document {
    hash: Imprint,
    level: u8,
    /// What is joined with the document before the tree begins, each on its left.
    own: Vec<Sibling>,
}

impl BlockSigner {
    /// Without masks, of any height.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self::with_max_level(algorithm, crate::tree::MAX_LEVEL)
    }

    /// Without masks; the root's level is at most `max_level`, which the aggregator's
    /// configuration tells.
    #[must_use]
    pub fn with_max_level(algorithm: Algorithm, max_level: u8) -> Self {
        Self {
            algorithm,
            tree: TreeBuilder::with_max_level(algorithm, max_level),
            masking: None,
            documents: Vec::new(),
        }
    }

    /// From here on each document gets a mask, made from `iv`, which is random and as
    /// long as a digest, and the one before it; `previous` stands before the first:
    /// [`Imprint::zero`], or [`BlockSigner::last_masked`] of the block before.
    #[must_use]
    pub fn masking(mut self, iv: &[u8], previous: Imprint) -> Self {
        self.masking = Some(Masking {
            iv: iv.to_vec(),
            previous,
        });
        self
    }

    /// Appends a document and returns its number, counted from 0. `level` is 0 unless
    /// `document` is itself the root of a tree.
    ///
    /// # Errors
    /// [`TreeFull`] if the root would pass the highest level. Nothing is changed then.
    pub fn push(
        &mut self,
        document: Imprint,
        level: u8,
        metadata: Option<&Metadata>,
    ) -> Result<usize, TreeFull> {
        let (mut leaf, mut leaf_level) = (document, level);
        let mut own = Vec::new();
        if let Some(metadata) = metadata {
            let value = metadata.encode();
            leaf_level = leaf_level.checked_add(1).ok_or(TreeFull)?;
            leaf = node(self.algorithm, &value, leaf.as_bytes(), leaf_level);
            own.push(Sibling::Metadata(value));
        }
        if let Some(Masking { iv, previous }) = &self.masking {
            let mask = hash(self.algorithm, &[previous.as_bytes(), iv]);
            leaf_level = leaf_level.checked_add(1).ok_or(TreeFull)?;
            leaf = node(self.algorithm, mask.as_bytes(), leaf.as_bytes(), leaf_level);
            own.push(Sibling::Imprint(mask));
        }
        let number = self.tree.push(leaf, leaf_level)?;
        if let Some(masking) = &mut self.masking {
            masking.previous = leaf;
        }
        self.documents.push(Document {
            hash: document,
            level,
            own,
        });
        Ok(number)
    }

    /// The number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there is no document yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// What the next block's masks go on from; `None` without masks.
    #[must_use]
    pub fn last_masked(&self) -> Option<Imprint> {
        self.masking.as_ref().map(|masking| masking.previous)
    }

    /// Closes the tree. `None` without documents.
    #[must_use]
    pub fn finish(self) -> Option<SignableBlock> {
        Some(SignableBlock {
            tree: self.tree.finish()?,
            documents: self.documents,
        })
    }
}

/// Documents whose common root is to be signed.
#[derive(Clone, Debug)]
pub struct SignableBlock {
    tree: Tree,
    documents: Vec<Document>,
}

impl SignableBlock {
    /// What is to be signed.
    #[must_use]
    pub fn root(&self) -> Imprint {
        self.tree.root()
    }

    /// The level at which it is to be signed.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.tree.level()
    }

    /// The number of documents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there is no document; never true for a block from
    /// [`BlockSigner::finish`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The links from a document to the root, from level 0: the first one's
    /// correction includes the level of the document. None if it is the root.
    ///
    /// # Panics
    /// If there is no such document.
    #[must_use]
    pub fn links(&self, number: usize) -> Vec<Link> {
        let document = &self.documents[number];
        let own = document.own.iter().map(|sibling| Link {
            side: Side::Right,
            correction: 0,
            sibling: sibling.clone(),
        });
        let mut links: Vec<_> = own.chain(self.tree.links(number)).collect();
        if let Some(first) = links.first_mut() {
            // Levels in a tree stay below 64.
            first.correction += document.level;
        }
        links
    }

    /// The signature of one document, cut out of `signature`, which is of the root.
    ///
    /// # Errors
    /// [`HangError`] if `signature` is of another root, or of a lower level.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn signature_of(
        &self,
        number: usize,
        signature: &Signature,
    ) -> Result<Signature, HangError> {
        let links = self.links(number);
        if !links.is_empty() {
            return signature.hang(self.tree.algorithm(), self.documents[number].hash, links);
        }
        if signature.input() != self.root() {
            return Err(HangError::Root);
        }
        Ok(signature.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::climb;

    const SHA256: Algorithm = Algorithm::Sha256;

    fn document(number: u64) -> Imprint {
        hash(SHA256, &[&number.to_be_bytes()])
    }

    fn metadata(number: u64) -> Option<Metadata> {
        (number % 3 != 1).then(|| Metadata {
            client_id: format!("client {number}"),
            ..Metadata::default()
        })
    }

    #[test]
    fn every_document_leads_to_the_root() {
        for masks in [false, true] {
            for count in 1..40 {
                let mut signer = BlockSigner::new(SHA256);
                if masks {
                    signer = signer.masking(&[7; 32], Imprint::zero(SHA256));
                }
                for number in 0..count {
                    let level = (number % 5) as u8;
                    let pushed = signer.push(document(number), level, metadata(number).as_ref());
                    assert_eq!(pushed, Ok(number as usize));
                }
                let block = signer.finish().unwrap();
                for number in 0..count {
                    assert_eq!(
                        climb(SHA256, document(number), 0, &block.links(number as usize)),
                        Ok((block.root(), block.level())),
                        "{number} of {count}, masks {masks}"
                    );
                }
            }
        }
    }

    /// Spelt out: metadata first, the mask above it, and each mask from the masked
    /// document before.
    #[test]
    fn masks_go_on_from_document_to_document() {
        let iv = [9; 32];
        let mut signer = BlockSigner::new(SHA256).masking(&iv, Imprint::zero(SHA256));
        let described = metadata(0).unwrap();
        signer.push(document(0), 0, Some(&described)).unwrap();
        signer.push(document(1), 0, None).unwrap();

        let zero = Imprint::zero(SHA256);
        let x = node(SHA256, &described.encode(), document(0).as_bytes(), 1);
        let mask = hash(SHA256, &[zero.as_bytes(), &iv]);
        let first = node(SHA256, mask.as_bytes(), x.as_bytes(), 2);
        let mask = hash(SHA256, &[first.as_bytes(), &iv]);
        let second = node(SHA256, mask.as_bytes(), document(1).as_bytes(), 1);
        assert_eq!(signer.last_masked(), Some(second));
        let root = node(SHA256, first.as_bytes(), second.as_bytes(), 3);
        let block = signer.finish().unwrap();
        assert_eq!((block.root(), block.level()), (root, 3));
    }

    #[test]
    fn a_full_block_refuses_and_stays_sound() {
        let mut signer = BlockSigner::with_max_level(SHA256, 2).masking(&[1; 32], document(9));
        for number in 0..2 {
            signer.push(document(number), 0, None).unwrap();
        }
        let before = signer.last_masked();
        assert_eq!(signer.push(document(2), 0, None), Err(TreeFull));
        assert_eq!((signer.len(), signer.last_masked()), (2, before));
        assert_eq!(signer.finish().unwrap().level(), 2);
        assert!(BlockSigner::new(SHA256).finish().is_none());
    }
}
