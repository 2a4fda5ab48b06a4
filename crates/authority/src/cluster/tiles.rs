//! Old seconds, on an object store that all nodes share.
//!
//! A tile is the leaves of [`TILE_SECONDS`] neighbouring seconds, 33 bytes each,
//! from a multiple of that number on; seconds before the genesis have the zero
//! leaf. It is written once and never changed: `seconds/000432981.tile`.

use std::path::Path;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use pitser_ksi::hash::Imprint;
use sha2::{Digest, Sha256};

use super::keys::{ROOT, decode_root};

/// Seconds of a tile, a little more than an hour; 135,168 bytes.
pub const TILE_SECONDS: u64 = 4096;

const TILE_BYTES: usize = TILE_SECONDS as usize * ROOT;

/// Where tiles are kept.
#[derive(Debug, Clone)]
pub(super) struct Tiles {
    store: Arc<dyn ObjectStore>,
    url: String,
}

impl Tiles {
    /// Opens `file:///folder`, which must exist.
    pub(super) fn open(url: &str) -> Result<Self, TileError> {
        let folder = url
            .strip_prefix("file://")
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| TileError::Url {
                url: url.to_owned(),
            })?;
        let store = LocalFileSystem::new_with_prefix(Path::new(folder)).map_err(|source| {
            TileError::Store {
                action: "open",
                url: url.to_owned(),
                source,
            }
        })?;
        Ok(Self {
            // A tile is durable before its seconds leave etcd.
            store: Arc::new(store.with_fsync(true)),
            url: url.to_owned(),
        })
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
        let created = self
            .store
            .put_opts(
                &location(index),
                PutPayload::from(bytes),
                PutOptions::from(PutMode::Create),
            )
            .await;
        match created {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(source) => return Err(self.failed("write to", source)),
        }
        self.get(index, &digest).await?;
        Ok(digest)
    }

    /// The leaves of a tile, whose digest etcd knows.
    pub(super) async fn get(
        &self,
        index: u64,
        digest: &TileDigest,
    ) -> Result<Vec<Imprint>, TileError> {
        let found = self
            .store
            .get(&location(index))
            .await
            .map_err(|source| self.failed("read from", source))?;
        if found.meta.size != TILE_BYTES as u64 {
            return Err(self.damaged(index));
        }
        let bytes = found
            .bytes()
            .await
            .map_err(|source| self.failed("read from", source))?;
        if digest_of(&bytes) != *digest {
            return Err(self.damaged(index));
        }
        bytes
            .chunks(ROOT)
            .map(|leaf| decode_root(leaf).ok_or_else(|| self.damaged(index)))
            .collect()
    }

    fn failed(&self, action: &'static str, source: object_store::Error) -> TileError {
        TileError::Store {
            action,
            url: self.url.clone(),
            source,
        }
    }

    fn damaged(&self, index: u64) -> TileError {
        TileError::Damaged {
            tile: location(index).to_string(),
            url: self.url.clone(),
        }
    }
}

/// SHA-256 of a tile's bytes.
pub(super) type TileDigest = [u8; 32];

/// Why a tile cannot be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// An address that this program cannot use.
    #[error("object store {url:?} is no file:///folder; name a folder that all nodes share")]
    Url {
        /// What is configured.
        url: String,
    },
    /// The store refused.
    #[error("cannot {action} object store {url}: {source}; is the folder there and writable?")]
    Store {
        /// What was tried, as a verb.
        action: &'static str,
        /// The store.
        url: String,
        /// Its answer.
        source: object_store::Error,
    },
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

fn location(index: u64) -> Location {
    Location::from(format!("seconds/{index:09}.tile"))
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
        Tiles::open(&format!("file://{}", folder.path().display())).unwrap()
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

    #[test]
    fn says_which_addresses_it_takes() {
        for url in ["s3://bucket", "/folder", "file://folder"] {
            assert!(matches!(Tiles::open(url), Err(TileError::Url { .. })));
        }
    }
}
