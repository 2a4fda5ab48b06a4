//! The publications file, which etcd hands to every node.

use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use pitser_ksi::time::Second;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::error::ClusterError;
use super::etcd::PATIENCE;
use super::node::{Node, first_of};
use crate::handover::HandedIn;
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

    /// What the file `bytes` adds, if it may follow, and the revision of the one that it
    /// follows.
    pub(super) async fn examine(
        &self,
        bytes: Vec<u8>,
        now: Second,
    ) -> Result<(HandedIn, i64), ClusterError> {
        let shared = self.clone();
        on_disk(move || {
            let revision = *shared
                .revision
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Ok((shared.publications.examine(&bytes, now)?, revision))
        })
        .await
    }

    /// Takes over the file of `revision`, unless it is known.
    ///
    /// # Errors
    /// A file that is not signed as this authority's are, that lacks a publication of this
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

impl Node {
    /// Hands a file that was made elsewhere to all nodes; this one need not lead, as
    /// what counts is the file's own signature.
    pub(super) async fn hand_in(
        &self,
        bytes: Vec<u8>,
        now: Second,
    ) -> Result<HandedIn, ClusterError> {
        let (handed_in, follows) = self.publications.examine(bytes.clone(), now).await?;
        if handed_in.is_new {
            let revision = self.replace_publications(&bytes, follows, None).await?;
            let revision = revision.ok_or(PublicationsError::Overtaken)?;
            self.publications.adopt(bytes, revision).await?;
        }
        Ok(handed_in)
    }

    /// Puts a file in the place of the one of revision `follows`, unless `also` does
    /// not hold; the revision since which it stands there, if it does.
    pub(super) async fn replace_publications(
        &self,
        bytes: &[u8],
        follows: i64,
        also: Option<Compare>,
    ) -> Result<Option<i64>, ClusterError> {
        let key = self.keys.publications();
        let mut when = vec![Compare::mod_revision(
            key.as_str(),
            CompareOp::Equal,
            follows,
        )];
        when.extend(also);
        let txn = Txn::new()
            .when(when)
            .and_then([TxnOp::put(key.as_str(), bytes, None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let answer = self.etcd.txn(txn, Instant::now() + PATIENCE).await?;
        if answer.succeeded() {
            return Ok(Some(answer.header().map_or(0, |header| header.revision())));
        }
        // It may be an earlier copy of this transaction that was there first.
        let found = answer.op_responses().into_iter().find_map(first_of);
        let same = found.filter(|pair| pair.value() == bytes);
        Ok(same.map(|pair| pair.mod_revision()))
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublicationsError> + Send + 'static,
) -> Result<T, ClusterError> {
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|_| ClusterError::Interrupted)??)
}
