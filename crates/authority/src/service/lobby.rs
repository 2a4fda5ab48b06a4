//! Who is let in: so many connections at a time, and so many of one peer.
//!
//! When all places are taken, newcomers wait in the operating system's queue. A peer
//! that has its share is closed at once, so that nobody can take the places of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::Limits;
use crate::metrics::{Metrics, Reason, Transport};
use crate::throttle::Throttle;

pub(crate) struct Lobby {
    places: Arc<Semaphore>,
    of_peer: usize,
    /// Locked to count one connection.
    by_peer: Mutex<HashMap<Peer, usize>>,
    metrics: Arc<Metrics>,
    transport: Transport,
    failures: Throttle,
}

/// The place of one connection, given back when it is dropped.
pub(crate) struct Guest {
    peer: Peer,
    lobby: Arc<Lobby>,
    _place: OwnedSemaphorePermit,
}

impl Lobby {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>, transport: Transport) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(limits.connections)),
            of_peer: limits.connections_of_peer,
            by_peer: Mutex::default(),
            metrics,
            transport,
            failures: Throttle::new(SAY_EVERY),
        })
    }

    /// Waits for a free place, then for a peer that may have it. An error of one
    /// peer, or a lack of file descriptors, is waited out.
    pub(crate) async fn next(self: &Arc<Self>, listener: &TcpListener) -> (TcpStream, Guest) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                // Nobody closes the semaphore.
                std::future::pending::<()>().await;
                continue;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(guest) = self.admit(address.ip(), place) {
                        return (stream, guest);
                    }
                    self.metrics.refused(Reason::PeerConnections);
                }
                Err(e) => {
                    if let Some(left_out) = self.failures.say(Instant::now()) {
                        tracing::warn!(
                            error = %e, left_out, transport = self.transport.name(),
                            "cannot accept a connection"
                        );
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, address: IpAddr, place: OwnedSemaphorePermit) -> Option<Guest> {
        let peer = Peer::of(address);
        let mut by_peer = self.by_peer();
        let taken = by_peer.entry(peer).or_default();
        if *taken >= self.of_peer.max(1) {
            return None;
        }
        *taken += 1;
        self.metrics.opened(self.transport);
        Some(Guest {
            peer,
            lobby: Arc::clone(self),
            _place: place,
        })
    }

    fn by_peer(&self) -> MutexGuard<'_, HashMap<Peer, usize>> {
        self.by_peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut by_peer = self.lobby.by_peer();
        if let Some(taken) = by_peer.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                by_peer.remove(&self.peer);
            }
        }
        self.lobby.metrics.closed(self.lobby.transport);
    }
}

/// Who is counted as one: an IPv4 address, or the network of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Peer {
    V4([u8; 4]),
    /// A /64: what one subscriber has.
    V6([u8; 8]),
}

impl Peer {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_networks() {
        let peer = |address: &str| Peer::of(address.parse().unwrap());
        assert_eq!(peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
    }

    #[test]
    fn one_peer_has_its_share_and_gives_it_back() {
        let limits = Limits {
            connections: 5,
            connections_of_peer: 2,
            ..Limits::default()
        };
        let lobby = Lobby::new(&limits, Arc::default(), Transport::Tcp);
        let enter = |address: &str| {
            let place = Arc::clone(&lobby.places).try_acquire_owned().ok()?;
            lobby.admit(address.parse().unwrap(), place)
        };
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        assert_eq!(lobby.places.available_permits(), 4);
    }
}
