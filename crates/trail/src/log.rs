//! The log of a trail's blocks, without all of it in memory: a proof reads the nodes
//! that it needs.
//!
//! ```text
//! log   node:32 ‖ crc:4 (of the node's number:8 ‖ node), in the order in which nodes are
//!       complete: after each leaf, those above it that end with it
//! ```
//! So leaf `e` has number `2e − ones(e)`, and a node the number of its last leaf and its
//! level together. The file is derived from the blocks' entries, and durable with the map's
//! commits, as they are. What is read of it is checked against its CRC alone: heads are
//! compared with witnesses, and proofs with heads.

use crate::map::{Damage, LOG, MapError, OsFolder};
use crate::records::Records;
use pitser_tlog::merkle::{self, Frontier, Hash, Nodes, OutOfRange, node_hash};

const NODE: u64 = 32 + 4;

/// The log of a trail's blocks, 72 bytes a block.
#[derive(Debug, Default)]
pub struct Log {
    /// What the next leaf goes on from.
    edge: Frontier,
    nodes: Records,
}

/// Why the log does not have what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There are fewer blocks.
    #[error("the trail has fewer blocks")]
    OutOfRange,
}

impl From<OutOfRange> for LogError {
    fn from(_: OutOfRange) -> Self {
        Self::OutOfRange
    }
}

impl LogError {
    /// That the log can be read, and has no such block.
    fn none<T>(self) -> Result<Option<T>, MapError> {
        match self {
            Self::Map(error) => Err(error),
            Self::OutOfRange => Ok(None),
        }
    }
}

impl Log {
    /// That of the first `blocks` blocks: to go on, or to read.
    ///
    /// # Errors
    /// [`MapError`] if it is not there.
    pub(crate) fn open(folder: &OsFolder, blocks: u64, write: bool) -> Result<Self, MapError> {
        let nodes = Records::open(folder, LOG, nodes_of(blocks) * NODE, write)?;
        let mut log = Self {
            edge: Frontier::new(),
            nodes,
        };
        log.edge = Frontier::of(&log, blocks).map_err(|error| match error {
            LogError::Map(error) => error,
            LogError::OutOfRange => log.nodes.damaged(Damage::Short),
        })?;
        Ok(log)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// [`MapError::Disk`].
    pub(crate) fn sync(&mut self, folder: &OsFolder) -> Result<(), MapError> {
        self.nodes.sync(folder, LOG)
    }

    /// Adds the entry of the next block.
    pub(crate) fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        self.write(&node);
        let complete = self.edge.size().trailing_ones() as usize;
        for left in self.edge.nodes().to_vec().iter().rev().take(complete) {
            node = node_hash(left, &node);
            self.write(&node);
        }
        self.edge.push(leaf);
    }

    fn write(&mut self, node: &Hash) {
        let crc = checksum(self.nodes.len() / NODE, node);
        self.nodes.push(node);
        self.nodes.push(&crc);
    }

    /// Whether something was read that is not what was written.
    pub(crate) fn is_damaged(&self) -> bool {
        self.nodes.is_damaged()
    }

    /// Number of blocks.
    pub fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The root over all blocks.
    pub fn root(&self) -> Hash {
        self.edge.root()
    }

    /// The root over the first `size` blocks; `None` if there are fewer.
    ///
    /// # Errors
    /// [`MapError`] if it cannot be read.
    pub fn root_at(&self, size: u64) -> Result<Option<Hash>, MapError> {
        merkle::root(self, size).map_or_else(LogError::none, |root| Ok(Some(root)))
    }

    /// Proves that block `block` is among the first `size`; `None` if it is not, or there
    /// are fewer.
    ///
    /// # Errors
    /// [`MapError`] if it cannot be read.
    pub fn inclusion_proof(&self, block: u64, size: u64) -> Result<Option<Vec<Hash>>, MapError> {
        let proof = merkle::inclusion_proof(self, block, size);
        proof.map_or_else(LogError::none, |proof| Ok(Some(proof)))
    }
}

impl Nodes for Log {
    type Error = LogError;

    fn node(&self, level: u8, index: u64) -> Result<Hash, LogError> {
        let end = index.checked_add(1).and_then(|end| {
            let leaves = end.checked_shl(level.into())?;
            (leaves >> level == end).then_some(leaves)
        });
        let number = nodes_of(end.ok_or(OutOfRange)? - 1) + u64::from(level);
        if (number + 1) * NODE > self.nodes.len() {
            return Err(LogError::OutOfRange);
        }
        let mut record = [0; NODE as usize];
        self.nodes.read(&mut record, number * NODE)?;
        let (node, crc) = record.split_at(32);
        let node: Hash = node.try_into().expect("32 bytes");
        match checksum(number, &node) == *crc {
            true => Ok(node),
            false => Err(self.nodes.damaged(Damage::Altered).into()),
        }
    }
}

/// Complete nodes of a tree of so many leaves.
fn nodes_of(leaves: u64) -> u64 {
    2 * leaves - u64::from(leaves.count_ones())
}

fn checksum(number: u64, node: &Hash) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_be_bytes());
    crc.update(node);
    crc.finalize().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_tlog::merkle::{LogTree, consistency_proof, leaf_hash};

    fn leaf(block: u64) -> Hash {
        leaf_hash(&block.to_be_bytes())
    }

    /// As the tree that has all in memory, at each size, from a file and from memory.
    #[test]
    fn proves_what_a_tree_in_memory_proves() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(dir.path().to_owned());
        let (mut log, mut tree) = (Log::open(&folder, 0, true).unwrap(), LogTree::new());
        for size in 0..70 {
            if size % 7 == 3 {
                log.sync(&folder).unwrap();
                log = Log::open(&folder, size, true).unwrap();
                let read = Log::open(&folder, size - 1, false).unwrap();
                assert_eq!(Some(read.root()), log.root_at(size - 1).unwrap());
            }
            assert_eq!((log.size(), log.root()), (size, tree.root()));
            assert_eq!(log.root_at(size + 1).unwrap(), None);
            for old in 0..=size {
                assert_eq!(log.root_at(old).unwrap(), tree.root_at(old).ok());
                let path = log.inclusion_proof(old, size).unwrap();
                assert_eq!(path, tree.inclusion_proof(old, size).ok());
                let proof = consistency_proof(&log, old, size).unwrap();
                assert_eq!(proof, tree.consistency_proof(old, size).unwrap());
            }
            log.push(leaf(size));
            tree.push(leaf(size));
        }
        assert!(!log.is_damaged());
    }

    #[test]
    fn a_node_that_is_another_is_noticed_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(dir.path().to_owned());
        let mut log = Log::open(&folder, 0, true).unwrap();
        (0..8).for_each(|block| log.push(leaf(block)));
        log.sync(&folder).unwrap();
        let path = dir.path().join(LOG);
        let mut bytes = std::fs::read(&path).unwrap();
        // Leaf 1 in the place of leaf 0.
        bytes.copy_within(36..72, 0);
        std::fs::write(&path, bytes).unwrap();
        let log = Log::open(&folder, 8, false).unwrap();
        let root = merkle::root(&(0..8).map(leaf).collect::<LogTree>(), 8);
        assert_eq!(log.root(), root.unwrap(), "which no leaf is read for");
        assert!(!log.is_damaged());
        assert!(matches!(
            log.inclusion_proof(1, 8),
            Err(MapError::Damaged { .. })
        ));
        assert!(log.is_damaged());
        let short = Log::open(&folder, 9, false);
        assert!(matches!(short, Err(MapError::Damaged { .. })));
    }
}
