//! Objects that are written once and kept for long: in a folder, or in a store that
//! speaks S3.
//!
//! In scope: addresses (`file:///folder`, `s3://bucket/prefix`), credentials, writing
//! an object unless it is there, reading one back, limits of time and size, errors
//! that say what to do.
//! Elsewhere: what the objects are, and the digests that vouch for them (the caller).
//!
//! No object is ever changed or deleted by this program. A store is not believed: it
//! may lie, forget or hang, and costs its caller no more than [`Store::with_patience`]
//! and the size that the caller allows.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

mod error;
#[cfg(feature = "s3")]
mod http;
mod s3;

pub use error::StoreError;
pub use s3::{S3Credentials, S3Options};

/// An object store, or the part of one under a prefix. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The same, if it is a folder.
    folder: Option<Arc<LocalFileSystem>>,
    /// What stands before every name, without a slash at its end.
    prefix: String,
    /// As it was configured; holds no secret.
    url: Arc<str>,
    patience: Duration,
}

/// What became of an object that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now, as it was given.
    Created,
    /// There was one of that name, which was left as it is.
    Present,
}

impl Store {
    /// A folder (`file:///folder`, which must exist) or a bucket (`s3://bucket/prefix`,
    /// reached as `s3` says). Nothing is sent yet.
    ///
    /// # Errors
    /// [`StoreError::Url`] or [`StoreError::S3`] if it cannot be used as it is written,
    /// [`StoreError::NotBuilt`] for S3 without the feature, [`StoreError::Failed`] if the
    /// folder is not there.
    pub fn open(url: &str, s3: &S3Options) -> Result<Self, StoreError> {
        let mut folder = None;
        let (objects, prefix) = match url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => {
                let objects: Arc<dyn ObjectStore> = folder.insert(open_folder(path, url)?).clone();
                (objects, String::new())
            }
            Some(("s3", place)) => s3::open(place, url, s3)?,
            _ => return Err(StoreError::url(url)),
        };
        Ok(Self {
            objects,
            folder,
            prefix,
            url: url.into(),
            patience: PATIENCE,
        })
    }

    /// Waits so long for the store, and a second more for each MiB that is moved, all
    /// attempts together.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The address, as configured.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Writes an object, unless there is one of that name; durable once it returns.
    /// `name` is a path of plain names, with slashes.
    ///
    /// After an error it may be there all the same. Whoever needs to know reads it.
    ///
    /// # Errors
    /// [`StoreError::Failed`] and [`StoreError::TimedOut`].
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<Put, StoreError> {
        let size = bytes.len();
        let (location, options) = (self.location(name), PutOptions::from(PutMode::Create));
        let put = self
            .objects
            .put_opts(&location, PutPayload::from(bytes), options);
        let put = match self.within("write to", name, size, put).await? {
            Ok(_) => Put::Created,
            Err(object_store::Error::AlreadyExists { .. }) => Put::Present,
            Err(e) => return Err(self.failed("write to", name, &e)),
        };
        let settled = self.settle(&location, put);
        let settled = self.within("write to", name, size, settled).await?;
        settled.map_err(|e| self.failed("write to", name, &e))?;
        Ok(put)
    }

    /// Makes durable what somebody else may have left in a folder when he was killed: the
    /// object that was there already, and the folders that it is in. A new object is
    /// durable, and its name, but not the folders that were found there.
    async fn settle(&self, location: &Location, put: Put) -> object_store::Result<()> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let location = location.clone();
        let settle = move || {
            let path = folder.path_to_filesystem(&location)?;
            let synced = || {
                if put == Put::Present {
                    File::open(&path)?.sync_all()?;
                }
                let folders = location.parts().count();
                let mut folders = path.ancestors().skip(1).take(folders);
                folders.try_for_each(|folder| File::open(folder)?.sync_all())
            };
            synced().map_err(|source: io::Error| object_store::Error::Generic {
                store: "folder",
                source: Box::new(source),
            })
        };
        spawn_blocking(settle).await?
    }

    /// Reads an object of at most `max` bytes.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::TooLong`], [`StoreError::Failed`] and
    /// [`StoreError::TimedOut`].
    pub async fn get(&self, name: &str, max: usize) -> Result<Bytes, StoreError> {
        let read = async {
            let found = self.objects.get(&self.location(name)).await?;
            // No store sends more than it announced.
            match found.meta.size > max as u64 {
                true => Ok(None),
                false => found.bytes().await.map(Some),
            }
        };
        match self.within("read from", name, max, read).await? {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(StoreError::TooLong {
                object: name.to_owned(),
                store: self.url.to_string(),
                max,
            }),
            Err(object_store::Error::NotFound { .. }) => Err(StoreError::Missing {
                object: name.to_owned(),
                store: self.url.to_string(),
            }),
            Err(e) => Err(self.failed("read from", name, &e)),
        }
    }

    async fn within<T>(
        &self,
        action: &'static str,
        name: &str,
        size: usize,
        work: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let limit = self.patience + Duration::from_secs(size as u64 >> 20);
        timeout(limit, work)
            .await
            .map_err(|_| StoreError::TimedOut {
                action,
                object: name.to_owned(),
                store: self.url.to_string(),
                waited: limit,
            })
    }

    fn location(&self, name: &str) -> Location {
        match self.prefix.as_str() {
            "" => Location::from(name),
            prefix => Location::from(format!("{prefix}/{name}")),
        }
    }

    fn failed(&self, action: &'static str, name: &str, source: &object_store::Error) -> StoreError {
        StoreError::failed(action, name, &self.url, source)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

fn open_folder(path: &str, url: &str) -> Result<Arc<LocalFileSystem>, StoreError> {
    let folder = LocalFileSystem::new_with_prefix(Path::new(path))
        .map_err(|e| StoreError::failed("open", "", url, &e))?;
    Ok(Arc::new(folder.with_fsync(true)))
}

/// How long a store may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(30);
