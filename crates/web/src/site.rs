//! What all requests share: the guarded sources, and limits.

use std::net::SocketAddr;
use std::sync::Arc;

use pitser_guardian::Status;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::{Guarded, WebError, check_names};

/// Live streams at a time.
const STREAMS: usize = 64;
/// Bundles read and answered at a time; each may take 16 MiB.
const BUNDLES: usize = 4;

pub(crate) struct Site<G> {
    sources: Vec<Source<G>>,
    address: SocketAddr,
    /// Told whenever the status of any source changes.
    changes: watch::Sender<()>,
    stop: watch::Receiver<bool>,
    streams: Arc<Semaphore>,
    bundles: Arc<Semaphore>,
}

/// One guarded source.
pub(crate) struct Source<G> {
    pub(crate) name: String,
    pub(crate) guardian: G,
    status: watch::Receiver<Status>,
    /// Held while a scan that was asked for here is running.
    pub(crate) scanning: Arc<Mutex<()>>,
}

impl<G: Guarded> Site<G> {
    pub(crate) fn new(
        address: SocketAddr,
        guardians: Vec<G>,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, WebError> {
        let sources: Vec<_> = guardians.into_iter().map(Source::new).collect();
        check_names(sources.iter().map(|source| source.name.as_str()))?;
        Ok(Self {
            sources,
            address,
            changes: watch::Sender::new(()),
            stop,
            streams: Arc::new(Semaphore::new(STREAMS)),
            bundles: Arc::new(Semaphore::new(BUNDLES)),
        })
    }

    /// Only this machine can reach us.
    pub(crate) fn is_local(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// The source of that name; without one, the first.
    pub(crate) fn source(&self, name: Option<&str>) -> Option<&Source<G>> {
        match name {
            None => self.sources.first(),
            Some(name) => self.sources.iter().find(|source| source.name == name),
        }
    }

    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.sources.iter().map(Source::status).collect()
    }

    /// A receiver that is told when any status changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Passes changes of each source on to [`Self::changes`], until dropped.
    pub(crate) fn relay_changes(&self) -> JoinSet<()> {
        let mut relays = JoinSet::new();
        for source in &self.sources {
            let (mut status, changes) = (source.status.clone(), self.changes.clone());
            relays.spawn(async move {
                while status.changed().await.is_ok() {
                    changes.send_replace(());
                }
                changes.send_replace(());
            });
        }
        relays
    }

    /// Turns true, or closes, when the server stops.
    pub(crate) fn stop(&self) -> watch::Receiver<bool> {
        self.stop.clone()
    }

    /// A place among the live streams, if one is free.
    pub(crate) fn stream_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }

    /// A place among the Bundles in work, if one is free.
    pub(crate) fn bundle_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bundles).try_acquire_owned().ok()
    }
}

impl<G: Guarded> Source<G> {
    fn new(guardian: G) -> Self {
        let status = guardian.watch();
        let name = status.borrow().name.clone();
        Self {
            name,
            guardian,
            status,
            scanning: Arc::default(),
        }
    }

    /// How it stands.
    pub(crate) fn status(&self) -> Status {
        Status::seen(&self.status, self.guardian.at_one_step())
    }
}

/// Completes when `stop` turns true, or can no longer do so.
pub(crate) async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
