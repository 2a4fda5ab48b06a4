//! Publishing: the calendar's root at one second, for the world to see.
//!
//! The authority signs the file itself, or is handed one that was made elsewhere
//! (`signatory.rs`); either way it is shown from here.
//!
//! `publications.bin` holds every publication there ever was. It is replaced as
//! a whole and durably, so a reader has the old file or the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use pitser_disk::{Access, replace};
use pitser_ksi::error::DecodeError;
use pitser_ksi::pki::PkiError;
use pitser_ksi::publication::PublicationData;
use pitser_ksi::publications_file::{BuildError, Contents, PublicationsFile};
use pitser_ksi::time::Second;

use crate::calendar::{CalendarError, CalendarReader};
#[cfg(feature = "cluster")]
use crate::handover::added;
use crate::handover::{Examiner, HandedIn, Refusal};
use crate::identity::{Identity, IdentityError};
use crate::publicity::Schedule;
use crate::signatory::Signatory;

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

/// The publication that is to be made next, by a key that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What to publish: the second that the schedule asked for last, or the newest one
    /// if it asks for nothing.
    pub data: PublicationData,
    /// Since when the schedule waits for a publication; `None`: it does not.
    pub since: Option<Second>,
    /// When it asks for the next one, if ever.
    pub next_at: Option<Second>,
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
    signatory: Signatory,
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
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_elsewhere(dir) => {
                return Err(PublicationsError::NotHandedIn);
            }
            read => read.map_err(io_error("read", &path))?,
        };
        PublicationsFile::decode(&bytes)
            .map_err(|source| PublicationsError::Malformed { path, source })
    }

    /// Stores the first file, or the next one, of an authority that does not run and
    /// whose publications are made elsewhere.
    pub(crate) fn hand_in_stopped(
        dir: &Path,
        examiner: &Examiner<'_>,
        bytes: &[u8],
    ) -> Result<HandedIn, PublicationsError> {
        let newest = match Self::read(dir) {
            Ok(newest) => Some(newest),
            Err(PublicationsError::NotHandedIn) => None,
            Err(e) => return Err(e),
        };
        let (handed_in, file) = examined(examiner, newest.as_ref(), bytes)?;
        if handed_in.is_new {
            store(&dir.join(FILE), &file)?;
        }
        Ok(handed_in)
    }

    /// Reads the file, and refuses one that the calendar contradicts.
    pub(crate) fn open(
        dir: &Path,
        calendar: CalendarReader,
        identity: Arc<Identity>,
        signatory: Signatory,
    ) -> Result<Self, PublicationsError> {
        let publications = Self::load(dir, calendar, identity, signatory)?;
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
        signatory: Signatory,
    ) -> Result<Self, PublicationsError> {
        let file = Self::read(dir)?;
        Ok(Self {
            path: dir.join(FILE),
            calendar,
            identity,
            signatory,
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

    /// Whether files are made elsewhere and handed in.
    pub(crate) fn are_elsewhere(&self) -> bool {
        self.signatory.is_elsewhere
    }

    /// What somebody with the key is to publish next.
    pub(crate) fn due(&self, schedule: Schedule) -> Result<Due, PublicationsError> {
        due(&self.calendar, self.summary().1, schedule)
    }

    fn shown(&self) -> RwLockReadGuard<'_, Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the calendar's newest second. Blocks on the disk.
    pub(crate) fn publish(&self, now: Second) -> Result<Published, PublicationsError> {
        let mut newest = self.lock();
        let (published, file) = self.next(&newest, now)?;
        if let Some(file) = file {
            self.replace(&mut newest, file, &[published.data])?;
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

    /// Whether the file `bytes` would be taken, without storing it.
    #[cfg(feature = "cluster")]
    pub(crate) fn examine(&self, bytes: &[u8], now: Second) -> Result<HandedIn, PublicationsError> {
        let newest = self.lock();
        examined(&self.examiner(now), Some(&newest), bytes).map(|(handed_in, _)| handed_in)
    }

    /// Takes a file that was made elsewhere. Blocks on the disk.
    pub(crate) fn hand_in(&self, bytes: &[u8], now: Second) -> Result<HandedIn, PublicationsError> {
        let mut newest = self.lock();
        let (handed_in, file) = examined(&self.examiner(now), Some(&newest), bytes)?;
        if handed_in.is_new {
            self.replace(&mut newest, file, &handed_in.added)?;
        }
        Ok(handed_in)
    }

    fn examiner(&self, now: Second) -> Examiner<'_> {
        Examiner {
            calendar: &self.calendar,
            own_der: self.identity.certificate.der(),
            signatory: &self.signatory,
            now,
        }
    }

    /// Takes over a file that another node made with the same key, or was handed.
    /// Blocks on the disk.
    #[cfg(feature = "cluster")]
    pub(crate) fn adopt(&self, bytes: &[u8]) -> Result<(), PublicationsError> {
        let mut newest = self.lock();
        // Also one of a key before this one.
        if newest.encode() == bytes {
            return Ok(());
        }
        let file =
            PublicationsFile::decode(bytes).map_err(|source| PublicationsError::Malformed {
                path: self.path.clone(),
                source,
            })?;
        self.signatory
            .verify(&file)
            .map_err(PublicationsError::Unsigned)?;
        let added = added(&newest, &file).map_err(PublicationsError::Lost)?;
        for data in &added {
            agree(&self.calendar, data)?;
        }
        self.replace(&mut newest, file, &added)
    }

    /// Stores and shows another file, which is announced by that.
    fn replace(
        &self,
        newest: &mut PublicationsFile,
        file: PublicationsFile,
        added: &[PublicationData],
    ) -> Result<(), PublicationsError> {
        store(&self.path, &file)?;
        for data in added {
            tracing::info!(second = %data.time, code = data.to_code(), "published");
        }
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
        if self.signatory.is_elsewhere {
            return Err(PublicationsError::Elsewhere);
        }
        // Or an authority whose pinned certificate got lost would sign in that key's place.
        self.signatory
            .verify(newest)
            .map_err(PublicationsError::NotOurs)?;
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
        // It takes the place of one that verifies, and cannot be taken back.
        self.identity
            .check_valid(now)
            .map_err(PublicationsError::NotValid)?;
        if now < newest.created_at() {
            return Err(PublicationsError::Earlier {
                now,
                newest: newest.created_at(),
            });
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
    pub(crate) schedule: Schedule,
    #[cfg(feature = "cluster")]
    pub(crate) cluster: Option<Arc<crate::cluster::Cluster>>,
}

impl Publisher {
    /// The bytes of the newest file.
    pub(crate) fn file(&self) -> Arc<[u8]> {
        self.publications.file()
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

    /// Takes a file that was made elsewhere. Blocks on the disk, or on etcd.
    pub(crate) fn hand_in(&self, bytes: &[u8], now: Second) -> Result<HandedIn, PublicationsError> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &self.cluster {
            let handed_in = cluster.hand_in(bytes.to_vec(), now);
            let handed_in = tokio::runtime::Handle::current().block_on(handed_in);
            return handed_in.map_err(|e| match e {
                crate::cluster::ClusterError::Publications(e) => e,
                e => PublicationsError::Cluster(Box::new(e)),
            });
        }
        self.publications.hand_in(bytes, now)
    }

    /// What the schedule waits for, if publications are made elsewhere.
    pub(crate) fn due(&self) -> Result<Option<Due>, PublicationsError> {
        if !self.publications.are_elsewhere() {
            return Ok(None);
        }
        match self.publications.due(self.schedule) {
            Ok(due) => Ok(Some(due).filter(|due| due.since.is_some())),
            Err(PublicationsError::Empty) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What somebody with the key is to publish after `newest`.
pub(crate) fn due(
    calendar: &CalendarReader,
    newest: Option<PublicationData>,
    schedule: Schedule,
) -> Result<Due, PublicationsError> {
    let head = calendar.head().ok_or(PublicationsError::Empty)?;
    let published = newest.map_or(calendar.genesis(), |data| data.time);
    let since = schedule.after(published).filter(|at| *at <= head);
    // The last that fell due covers those before it.
    let time = since.and(schedule.latest(head)).unwrap_or(head);
    let imprint = calendar.root_at(time)?;
    Ok(Due {
        data: PublicationData { time, imprint },
        since,
        next_at: schedule.after(head),
    })
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
    /// Publications are made elsewhere, and none was handed in yet.
    #[error(
        "there is no publications file yet, and its key is elsewhere. Where that is, `pitser \
         authority compose --first` makes one from this authority's certificate.pem; then hand it \
         in with `pitser authority publish --file FILE`"
    )]
    NotHandedIn,
    /// This authority has no key for publications.
    #[error(
        "the publications key is not here. `pitser authority publish --due` shows the code to \
         carry to where it is, `pitser authority compose` makes the next file there, and `pitser \
         authority publish --file FILE` hands it in"
    )]
    Elsewhere,
    /// The newest file is by another key than this authority's.
    #[error(
        "publications.bin is not signed by this authority: {0}. If the publications key is kept \
         elsewhere, put publications-certificate.pem and publications-constraint back into the \
         data folder (docs/publications.md)"
    )]
    NotOurs(#[source] PkiError),
    /// Nobody would believe a file that is signed now.
    #[error("no publications file is made: {0}")]
    NotValid(#[source] IdentityError),
    /// The clock is behind the newest file.
    #[error(
        "no publications file is made: by this clock it is {now}, and the newest was made at \
         {newest}. Set the clock right"
    )]
    Earlier {
        /// The clock's time.
        now: Second,
        /// When the newest file was made.
        newest: Second,
    },
    /// A file was handed to an authority that makes its own.
    #[error(
        "this authority signs its publications file itself, so none is handed in: `pitser \
         authority publish` makes the next one. docs/publications.md tells how to keep the key \
         elsewhere"
    )]
    OwnKey,
    /// The file that was handed in does not count.
    #[error("the file is not taken: {0}")]
    Refused(#[source] Refusal),
    /// Another file came in between.
    #[error(
        "the cluster has another publications file than this node: it follows it in a moment. Hand \
         yours in again"
    )]
    Overtaken,
    /// Another node of the cluster publishes.
    #[error("this node does not lead the cluster; publish at the one that does")]
    NotLeading,
    /// The cluster did not take the new file.
    #[cfg(feature = "cluster")]
    #[error(transparent)]
    Cluster(Box<crate::cluster::ClusterError>),
    /// The cluster's file lacks what this node has published.
    #[error(
        "the cluster's publications file cannot follow this node's: {0}. Either etcd was restored \
         from an old snapshot, or one of the two was altered"
    )]
    Lost(#[source] Refusal),
    /// Not signed by whom this authority's verifiers trust.
    #[error(
        "the cluster's publications file is not signed by the key that this node expects: {0}. All \
         nodes have the same certificate, and the same pinned one"
    )]
    Unsigned(#[source] PkiError),
    /// There is no second to publish yet.
    #[error("the calendar has no second yet; publish after the first round")]
    Empty,
    /// The runtime ended.
    #[error("publishing was interrupted by the end of the program")]
    Interrupted,
}

fn is_elsewhere(dir: &Path) -> bool {
    Signatory::open(dir).is_ok_and(|signatory| signatory.is_elsewhere)
}

/// Reads what was handed in, and says what it adds to `newest`.
fn examined(
    examiner: &Examiner<'_>,
    newest: Option<&PublicationsFile>,
    bytes: &[u8],
) -> Result<(HandedIn, PublicationsFile), PublicationsError> {
    if !examiner.signatory.is_elsewhere {
        return Err(PublicationsError::OwnKey);
    }
    let file = PublicationsFile::decode(bytes)
        .map_err(|e| PublicationsError::Refused(Refusal::Malformed(e)))?;
    let handed_in = examiner
        .examine(newest, &file)
        .map_err(PublicationsError::Refused)?;
    Ok((handed_in, file))
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
    replace(path, file.encode(), Access::Everybody).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublicationsError {
    let path = path.to_owned();
    move |source| PublicationsError::Io {
        action,
        path,
        source,
    }
}
