//! The publications file, which etcd hands to every node.

use std::sync::{Arc, Mutex, PoisonError};

use pitser_ksi::pki::{Constraint, PkiError, TrustAnchors};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::time::Second;
use tokio::task::spawn_blocking;

use super::error::ClusterError;
use crate::identity::Identity;
use crate::publications::{Draft, Publications, PublicationsError};

/// This node's publications file, and which revision of etcd it is.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    publications: Arc<Publications>,
    /// etcd's revision of what was adopted last. Locked while a file is adopted.
    revision: Arc<Mutex<i64>>,
}

impl Shared {
    pub(super) fn new(publications: Arc<Publications>) -> Self {
        Self {
            publications,
            revision: Arc::default(),
        }
    }

    /// The file that is to follow, and the revision of the one that it follows.
    pub(super) async fn draft(&self, now: Second) -> Result<(Draft, i64), ClusterError> {
        let shared = self.clone();
        on_disk(move || {
            let revision = *shared
                .revision
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Ok((shared.publications.draft(now)?, revision))
        })
        .await
    }

    /// Takes over the file of `revision`, unless it is known.
    ///
    /// # Errors
    /// A file that this authority did not sign, that lacks a publication of this
    /// node's, or that its calendar contradicts.
    pub(super) async fn adopt(&self, bytes: Vec<u8>, revision: i64) -> Result<(), ClusterError> {
        let shared = self.clone();
        on_disk(move || {
            let mut known = shared
                .revision
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if revision > *known {
                shared.publications.adopt(&bytes)?;
                *known = revision;
            }
            Ok(())
        })
        .await
    }
}

/// Whether `file` is signed with this authority's key, as of when it was made.
pub(crate) fn verify(file: &PublicationsFile, identity: &Identity) -> Result<(), PkiError> {
    let anchors = TrustAnchors::from_pem(&identity.certificate_pem)?;
    let constraint: Constraint = identity.constraint.parse()?;
    file.verify(&anchors, &[constraint], file.created_at())
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublicationsError> + Send + 'static,
) -> Result<T, ClusterError> {
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|_| ClusterError::Interrupted)??)
}
