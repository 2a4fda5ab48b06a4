//! Publishing: the calendar's root at one second, for the world to see.
//!
//! `publications.bin` holds every publication there ever was. It is replaced as
//! a whole and durably, so a reader has the old file or the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use pitser_ksi::error::DecodeError;
use pitser_ksi::pki::PkiError;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::{BuildError, Contents, PublicationsFile};
use pitser_ksi::time::Second;

use crate::calendar::{CalendarError, CalendarReader};
use crate::durable::write_durably;
use crate::identity::Identity;

const FILE: &str = "publications.bin";

/// A publication that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The second and the calendar's root there.
    pub data: PublicationData,
    /// The same as a publication code, to be printed.
    pub code: String,
    /// False if this second was published before.
    pub is_new: bool,
}

/// A publications file that is to follow the newest one.
#[cfg(feature = "cluster")]
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) published: Published,
    /// None if that second was published before.
    pub(crate) file: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Publications {
    path: PathBuf,
    calendar: CalendarReader,
    identity: Arc<Identity>,
    /// Held while a file is made and stored: publications come one by one.
    newest: Mutex<PublicationsFile>,
    /// What `newest` says, for those who only want to read.
    shown: RwLock<Shown>,
}

#[derive(Debug)]
struct Shown {
    bytes: Arc<[u8]>,
    publications: usize,
    latest: Option<PublicationData>,
}

impl From<&PublicationsFile> for Shown {
    fn from(file: &PublicationsFile) -> Self {
        Self {
            bytes: file.encode().into(),
            publications: file.publications().len(),
            latest: file.latest().map(|record| record.data),
        }
    }
}

impl Publications {
    /// Writes a file with the certificate and no publications.
    pub(crate) fn create(
        dir: &Path,
        identity: &Identity,
        now: Second,
    ) -> Result<(), PublicationsError> {
        let contents = Contents {
            created_at: now,
            certificates: vec![identity.certificate.der().to_vec()],
            ..Contents::default()
        };
        store(&dir.join(FILE), &build(&contents, identity)?)
    }

    /// Reads the file, whatever the calendar says.
    pub(crate) fn read(dir: &Path) -> Result<PublicationsFile, PublicationsError> {
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        PublicationsFile::decode(&bytes)
            .map_err(|source| PublicationsError::Malformed { path, source })
    }

    /// Reads the file, and refuses one that the calendar contradicts.
    pub(crate) fn open(
        dir: &Path,
        calendar: CalendarReader,
        identity: Arc<Identity>,
    ) -> Result<Self, PublicationsError> {
        let publications = Self::load(dir, calendar, identity)?;
        if let Some(latest) = publications.lock().latest() {
            agree(&publications.calendar, &latest.data)?;
        }
        Ok(publications)
    }

    /// Reads the file of a node, whose calendar may have to catch up first.
    pub(crate) fn load(
        dir: &Path,
        calendar: CalendarReader,
        identity: Arc<Identity>,
    ) -> Result<Self, PublicationsError> {
        let file = Self::read(dir)?;
        Ok(Self {
            path: dir.join(FILE),
            calendar,
            identity,
            shown: RwLock::new(Shown::from(&file)),
            newest: Mutex::new(file),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PublicationsFile> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn file(&self) -> Arc<[u8]> {
        Arc::clone(&self.shown().bytes)
    }

    /// How many publications there are, and the newest.
    pub(crate) fn summary(&self) -> (usize, Option<PublicationData>) {
        let shown = self.shown();
        (shown.publications, shown.latest)
    }

    fn shown(&self) -> RwLockReadGuard<'_, Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the calendar's newest second. Blocks on the disk.
    pub(crate) fn publish(&self, now: Second) -> Result<Published, PublicationsError> {
        let mut newest = self.lock();
        let (published, file) = self.next(&newest, now)?;
        if let Some(file) = file {
            self.replace(&mut newest, file)?;
            tracing::info!(second = %published.data.time, code = published.code, "published");
        }
        Ok(published)
    }

    /// What publishing the calendar's newest second would make, without storing it.
    #[cfg(feature = "cluster")]
    pub(crate) fn draft(&self, now: Second) -> Result<Draft, PublicationsError> {
        let newest = self.lock();
        let (published, file) = self.next(&newest, now)?;
        Ok(Draft {
            published,
            file: file.map(|file| file.encode().to_vec()),
        })
    }

    /// Takes over a file that another node made with the same key. Blocks on the disk.
    #[cfg(feature = "cluster")]
    pub(crate) fn adopt(&self, bytes: &[u8]) -> Result<(), PublicationsError> {
        let mut newest = self.lock();
        let file =
            PublicationsFile::decode(bytes).map_err(|source| PublicationsError::Malformed {
                path: self.path.clone(),
                source,
            })?;
        crate::cluster::verify_publications(&file, &self.identity)?;
        for ours in newest.publications() {
            let theirs = file.at_time(ours.data.time);
            if theirs.is_none_or(|theirs| theirs.data != ours.data) {
                return Err(PublicationsError::Lost {
                    published: ours.data.time,
                });
            }
        }
        if let Some(latest) = file.latest() {
            agree(&self.calendar, &latest.data)?;
        }
        if newest.encode() == bytes {
            return Ok(());
        }
        self.replace(&mut newest, file)
    }

    /// Stores and shows another file.
    fn replace(
        &self,
        newest: &mut PublicationsFile,
        file: PublicationsFile,
    ) -> Result<(), PublicationsError> {
        store(&self.path, &file)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Shown::from(&file);
        *newest = file;
        Ok(())
    }

    /// The file that follows `newest`, or none if the calendar's newest second is
    /// published already.
    fn next(
        &self,
        newest: &PublicationsFile,
        now: Second,
    ) -> Result<(Published, Option<PublicationsFile>), PublicationsError> {
        let head = self.calendar.head().ok_or(PublicationsError::Empty)?;
        let data = PublicationData {
            time: head,
            imprint: self.calendar.root_at(head)?,
        };
        let published = Published {
            data,
            code: data.to_code(),
            is_new: true,
        };
        if newest.at_time(head).is_some() {
            let again = Published {
                is_new: false,
                ..published
            };
            return Ok((again, None));
        }
        let file = build(&self.with(newest, data, now), &self.identity)?;
        Ok((published, Some(file)))
    }

    /// What the next file says: all that `file` says, and one publication more.
    fn with(&self, file: &PublicationsFile, data: PublicationData, now: Second) -> Contents {
        let mut certificates: Vec<Vec<u8>> = file
            .certificates()
            .iter()
            .map(|record| record.der.clone())
            .collect();
        let own = self.identity.certificate.der();
        if !certificates.iter().any(|der| der == own) {
            certificates.push(own.to_vec());
        }
        let mut publications = file.publications().to_vec();
        publications.push(data.into());
        Contents {
            created_at: now,
            repository: file.repository().map(str::to_owned),
            certificates,
            publications,
        }
    }
}

/// Publishes, alone or for a cluster.
#[derive(Clone)]
pub(crate) struct Publisher {
    pub(crate) publications: Arc<Publications>,
    #[cfg(feature = "cluster")]
    pub(crate) cluster: Option<Arc<crate::cluster::Cluster>>,
}

impl Publisher {
    /// The bytes of the newest file.
    pub(crate) fn file(&self) -> Arc<[u8]> {
        self.publications.file()
    }

    /// How many publications there are, and the newest.
    pub(crate) fn summary(&self) -> (usize, Option<PublicationData>) {
        self.publications.summary()
    }

    /// Publishes the calendar's newest second. Blocks on the disk, or on etcd.
    pub(crate) fn publish(&self, now: Second) -> Result<Published, PublicationsError> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &self.cluster {
            let published = tokio::runtime::Handle::current().block_on(cluster.publish(now));
            return published.map_err(|e| PublicationsError::Cluster(Box::new(e)));
        }
        self.publications.publish(now)
    }
}

/// Why there is no new publication, or none at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublicationsError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The stored file cannot be read.
    #[error("{} is damaged ({source}); restore it from a copy", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: DecodeError,
    },
    /// The new file cannot be made.
    #[error("cannot make the publications file: {0}")]
    Build(#[from] BuildError),
    /// The calendar could not be read.
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    /// What the world was shown is not what the calendar says.
    #[error(
        "the calendar does not lead to its own publication of {published}: it was restored \
         from an old copy, or altered; do not sign with it, restore a newer one"
    )]
    Contradiction {
        /// The second of the publication.
        published: Second,
    },
    /// Another node of the cluster publishes.
    #[error("this node does not lead the cluster; publish at the one that does")]
    NotLeading,
    /// The cluster did not take the new file.
    #[cfg(feature = "cluster")]
    #[error(transparent)]
    Cluster(Box<crate::cluster::ClusterError>),
    /// The cluster's file lacks what this node has published.
    #[error(
        "the cluster's publications file lacks or contradicts this node's publication of \
         {published}: etcd was restored from an old snapshot, or the file was altered"
    )]
    Lost {
        /// The second of the publication.
        published: Second,
    },
    /// Not signed by this authority.
    #[error("the cluster's publications file is not signed with this authority's key: {0}")]
    Unsigned(#[from] PkiError),
    /// There is no second to publish yet.
    #[error("the calendar has no second yet; publish after the first round")]
    Empty,
    /// The runtime ended.
    #[error("publishing was interrupted by the end of the program")]
    Interrupted,
}

fn agree(calendar: &CalendarReader, data: &PublicationData) -> Result<(), PublicationsError> {
    match calendar.root_at(data.time) {
        Ok(root) if root == data.imprint => Ok(()),
        Ok(_) | Err(CalendarError::Beyond { .. } | CalendarError::BeforeGenesis { .. }) => {
            Err(PublicationsError::Contradiction {
                published: data.time,
            })
        }
        Err(e) => Err(e.into()),
    }
}

fn build(contents: &Contents, identity: &Identity) -> Result<PublicationsFile, BuildError> {
    PublicationsFile::build(contents, identity.certificate.der(), &identity.signer)
}

fn store(path: &Path, file: &PublicationsFile) -> Result<(), PublicationsError> {
    write_durably(path, file.encode()).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublicationsError {
    let path = path.to_owned();
    move |source| PublicationsError::Io {
        action,
        path,
        source,
    }
}
