//! Old seconds, on an object store that all nodes share.
//!
//! A tile is the leaves of [`TILE_SECONDS`] neighbouring seconds, 33 bytes each,
//! from a multiple of that number on; seconds before the genesis have the zero
//! leaf. It is written once and never changed: `seconds/000432981.tile`.

use pitser_client::store::{S3Options, Store, StoreError};
use pitser_ksi::hash::Imprint;
use sha2::{Digest, Sha256};

use super::keys::{ROOT, decode_root};

/// Seconds of a tile, a little more than an hour; 135,168 bytes.
pub const TILE_SECONDS: u64 = 4096;

const TILE_BYTES: usize = TILE_SECONDS as usize * ROOT;

/// Where tiles are kept.
#[derive(Debug, Clone)]
pub(super) struct Tiles(Store);

impl Tiles {
    /// Opens the store at `url`, without asking it anything yet.
    pub(super) fn open(url: &str, s3: &S3Options) -> Result<Self, TileError> {
        Ok(Self(Store::open(url, s3)?))
    }

    /// Stores a tile unless it is there, and reads it back. Returns its digest.
    pub(super) async fn put(
        &self,
        index: u64,
        leaves: &[Imprint],
    ) -> Result<TileDigest, TileError> {
        let bytes: Vec<u8> = leaves
            .iter()
            .flat_map(|leaf| leaf.as_bytes())
            .copied()
            .collect();
        if bytes.len() != TILE_BYTES {
            return Err(self.damaged(index));
        }
        let digest = digest_of(&bytes);
        // One that is there already must be the same, as the next line sees.
        self.0.put(&name_of(index), bytes.into()).await?;
        self.get(index, &digest).await?;
        Ok(digest)
    }

    /// The leaves of a tile, whose digest etcd knows.
    pub(super) async fn get(
        &self,
        index: u64,
        digest: &TileDigest,
    ) -> Result<Vec<Imprint>, TileError> {
        let bytes = match self.0.get(&name_of(index), TILE_BYTES).await {
            Err(StoreError::TooLong { .. }) => return Err(self.damaged(index)),
            other => other?,
        };
        if digest_of(&bytes) != *digest {
            return Err(self.damaged(index));
        }
        bytes
            .chunks(ROOT)
            .map(|leaf| decode_root(leaf).ok_or_else(|| self.damaged(index)))
            .collect()
    }

    fn damaged(&self, index: u64) -> TileError {
        TileError::Damaged {
            tile: name_of(index),
            url: self.0.url().to_owned(),
        }
    }
}

/// SHA-256 of a tile's bytes.
pub(super) type TileDigest = [u8; 32];

/// Why a tile cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// The store cannot be used, or has not got the tile.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tile is not what left etcd.
    #[error(
        "tile {tile} in object store {url} is not what the cluster wrote there; restore it from a \
         copy, or start this node with a copy of another node's calendar folder"
    )]
    Damaged {
        /// The object.
        tile: String,
        /// The store.
        url: String,
    },
}

fn name_of(index: u64) -> String {
    format!("seconds/{index:09}.tile")
}

fn digest_of(bytes: &[u8]) -> TileDigest {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use pitser_ksi::hash::{Algorithm, hash};
    use tempfile::TempDir;

    use super::*;

    fn leaves(salt: u64) -> Vec<Imprint> {
        (0..TILE_SECONDS)
            .map(|i| hash(Algorithm::Sha256, &[&(salt ^ i).to_be_bytes()]))
            .collect()
    }

    fn open(folder: &TempDir) -> Tiles {
        let url = format!("file://{}", folder.path().display());
        Tiles::open(&url, &S3Options::default()).unwrap()
    }

    #[tokio::test]
    async fn a_tile_is_written_once() {
        let folder = TempDir::new().unwrap();
        let tiles = open(&folder);
        let digest = tiles.put(7, &leaves(1)).await.unwrap();
        assert_eq!(tiles.put(7, &leaves(1)).await.unwrap(), digest);
        assert_eq!(tiles.get(7, &digest).await.unwrap(), leaves(1));
        let other = tiles.put(7, &leaves(2)).await;
        assert!(matches!(other, Err(TileError::Damaged { .. })), "{other:?}");
        assert_eq!(tiles.get(7, &digest).await.unwrap(), leaves(1));
    }

    #[tokio::test]
    async fn a_damaged_tile_is_not_believed() {
        let folder = TempDir::new().unwrap();
        let tiles = open(&folder);
        let digest = tiles.put(7, &leaves(1)).await.unwrap();
        let path = folder.path().join("seconds/000000007.tile");
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[4000] ^= 1;
        for bytes in [&flipped[..], &good[1..], &[]] {
            std::fs::write(&path, bytes).unwrap();
            let got = tiles.get(7, &digest).await;
            assert!(matches!(got, Err(TileError::Damaged { .. })), "{got:?}");
        }
    }
}
