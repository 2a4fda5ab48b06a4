//! The admin socket: a unix socket on which the operator's commands are obeyed.
//!
//! Whoever may write into the data folder could do worse than publish, so the file
//! system decides: the socket belongs to the service's user and only that user, and
//! root, can connect; the kernel says who the peer is, and it is checked again.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::converse;
use super::pages::Audience;
use crate::metrics::Transport;
use crate::service::{Service, stopping};

/// A listener, and the user that may connect besides root.
pub(crate) struct Admin {
    listener: UnixListener,
    owner: u32,
}

impl Admin {
    /// Takes the place of a socket that an earlier run has left. The caller holds
    /// the calendar's lock, so no other run is using it.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(left) if left.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let owner = fs::metadata(path)?.uid();
        Ok(Self { listener, owner })
    }

    /// Serves connections until `stop` turns true, then until all are answered.
    pub(crate) async fn serve(self, service: Arc<Service>, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stopping(&mut stop) => break,
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) if self.may_enter(&stream) => {
                    let (service, stop) = (Arc::clone(&service), stop.clone());
                    connections.spawn(async move {
                        service.metrics.opened(Transport::Admin);
                        converse(stream, Audience::Owner, Arc::clone(&service), stop).await;
                        service.metrics.closed(Transport::Admin);
                    });
                }
                Ok(_) => tracing::warn!("the admin socket is for the service's user alone"),
                Err(e) => {
                    tracing::debug!(error = %e, "cannot accept on the admin socket");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }

    fn may_enter(&self, stream: &UnixStream) -> bool {
        stream
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == self.owner || peer.uid() == 0)
    }
}

/// More commands at a time wait.
const CONNECTIONS: usize = 8;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
