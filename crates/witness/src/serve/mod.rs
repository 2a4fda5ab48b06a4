//! A witness as a service: HTTP/1.1, and the limits that keep it answering.
//!
//! | request                | answer                                                 |
//! |------------------------|--------------------------------------------------------|
//! | POST `/add-checkpoint` | c2sp.org/tlog-witness; spec log §5                     |
//! | GET `/health`          | 200, or 503 and a line that begins with a finding code |
//! | GET `/metrics`         | Prometheus text                                        |
//! | GET `/`                | a page for people: the key, the logs                   |
//!
//! Anybody may ask, so everything is bounded: connections in all and of one
//! address, their age, the time of a head and of a body, the bytes of both,
//! requests of an address and of a log, requests that wait for the store.
//! Nothing of a request is logged but the origin of a log that signed it.

mod desk;
mod page;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::limit::Rate;
use crate::store::Store;
use crate::witness::Witness;
use desk::Desk;

/// What one witness's service allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time; one address has at most half of them.
    pub connections: usize,
    /// Requests of one address: of an IPv4 address, of an IPv6 /64.
    pub of_peer: Rate,
    /// How long a connection may be silent, and how long the head of a request
    /// may take.
    pub head: Duration,
    /// How long the body of a request may take.
    pub body: Duration,
    /// The age at which a connection is closed, between two requests.
    pub age: Duration,
    /// How old what `/` and `/metrics` say may be: all logs are read for it, and nothing
    /// is cosigned meanwhile.
    pub survey: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            of_peer: Rate {
                per_s: 100,
                burst: 400,
            },
            head: Duration::from_secs(15),
            body: Duration::from_secs(10),
            age: Duration::from_secs(120),
            survey: Duration::from_secs(1),
        }
    }
}

/// Starts witnesses' services.
pub struct Server;

impl Server {
    /// Listens on `listen` and serves `witness`, whose `clock` tells Unix
    /// seconds. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left running.
    pub async fn start<S, C>(
        listen: SocketAddr,
        witness: Witness<S>,
        limits: Limits,
        clock: C,
    ) -> Result<ServerHandle, ServeError>
    where
        S: Store + Send + 'static,
        C: Fn() -> u64 + Send + Sync + 'static,
    {
        let failed = |source| ServeError { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopping) = watch::channel(false);
        let desk = Arc::new(Desk::new(witness, limits.clone(), clock));
        let served = tokio::spawn(accept(listener, desk, limits, stopping));
        tracing::info!(%address, "witness listens");
        Ok(ServerHandle {
            address,
            stop,
            served,
        })
    }
}

/// A running service. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct ServerHandle {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

impl ServerHandle {
    /// Where it listens; with the real port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests and answers those that have begun, for up to
    /// five seconds.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // It bounds itself; a panic was told when it happened.
        let _ = self.served.await;
    }
}

/// The address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {listen}: {source}")]
pub struct ServeError {
    /// The address asked for.
    pub listen: SocketAddr,
    /// What the operating system says.
    pub source: io::Error,
}

async fn accept<S, C>(
    listener: TcpListener,
    desk: Arc<Desk<S, C>>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) where
    S: Store + Send + 'static,
    C: Fn() -> u64 + Send + Sync + 'static,
{
    let places = Arc::new(Places::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, place) = tokio::select! {
            () = stopping(&mut stop) => break,
            connection = next(&listener, &places) => match connection {
                Some(connection) => connection,
                None => continue,
            },
        };
        let serving = serve(stream, place, Arc::clone(&desk), stop.clone());
        connections.spawn(serving);
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The next connection that gets a place; `None` if it did not.
async fn next(listener: &TcpListener, places: &Arc<Places>) -> Option<(TcpStream, Place)> {
    let free = Arc::clone(&places.free);
    // Nobody closes this semaphore.
    let permit = free.acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            let peer = Peer::of(address.ip());
            let place = places.take(peer, permit)?;
            // What it costs not to have it is a little time.
            let _ = stream.set_nodelay(true);
            Some((stream, place))
        }
        Err(error) => {
            // Of one peer, or too many open files: the next one may do better.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(AFTER_FAILURE).await;
            None
        }
    }
}

async fn serve<S, C>(
    stream: TcpStream,
    place: Place,
    desk: Arc<Desk<S, C>>,
    mut stop: watch::Receiver<bool>,
) where
    S: Store + Send + 'static,
    C: Fn() -> u64 + Send + Sync + 'static,
{
    let place = Arc::new(place);
    let limits = desk.limits();
    let (head, age) = (limits.head, limits.age);
    let service = service_fn(|request| desk.clone().answer(request, Arc::clone(&place)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        done = connection.as_mut() => {
            if let Err(error) = done {
                tracing::debug!(%error, "a connection ended");
            }
            return;
        }
        () = stopping(&mut stop) => {}
        () = tokio::time::sleep(age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWERS, connection).await;
}

/// Completes when `stop` turns true, or can no longer do so.
async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Who is counted as one: an IPv4 address, or the network of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer(u64);

impl Peer {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from_be_bytes(address.octets()))),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

/// Places for connections.
struct Places {
    all: usize,
    free: Arc<Semaphore>,
    /// Locked to count one connection.
    by_peer: Mutex<HashMap<Peer, usize>>,
}

/// The place of one connection, given back when it is dropped.
struct Place {
    peer: Peer,
    places: Arc<Places>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    fn new(all: usize) -> Self {
        Self {
            all,
            free: Arc::new(Semaphore::new(all)),
            by_peer: Mutex::default(),
        }
    }

    /// A place for `peer`, unless it has its share already.
    fn take(self: &Arc<Self>, peer: Peer, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = by_peer.entry(peer).or_default();
        if *taken >= self.all.div_ceil(2) {
            return None;
        }
        *taken += 1;
        Some(Place {
            peer,
            places: Arc::clone(self),
            _permit: permit,
        })
    }
}

impl Place {
    /// So few are left that nobody keeps one between two requests.
    fn is_wanted(&self) -> bool {
        self.places.free.available_permits() < self.places.all.div_ceil(4)
    }

    fn connections(&self) -> usize {
        let by_peer = self.places.by_peer.lock();
        by_peer
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_peer = self
            .places
            .by_peer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = by_peer.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}

/// How long requests that have begun are waited for at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Longest head of a request, in bytes; hyper asks for at least so much.
const HEAD_BYTES: usize = 8192;
const AFTER_FAILURE: Duration = Duration::from_millis(100);

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
    fn one_address_has_half_of_the_places() {
        let places = Arc::new(Places::new(5));
        let take = |peer| {
            let permit = Arc::clone(&places.free).try_acquire_owned().ok()?;
            places.take(Peer(peer), permit)
        };
        let mut taken: Vec<_> = (0..3).map(|_| take(1).unwrap()).collect();
        assert!(take(1).is_none());
        assert!(!taken[0].is_wanted());
        taken.push(take(2).unwrap());
        assert!(taken[0].is_wanted());
        assert_eq!(taken[0].connections(), 4);
        taken.push(take(2).unwrap());
        assert!(take(3).is_none(), "all are taken");
        taken.remove(0);
        assert!(take(1).is_some());
        drop(taken);
        assert!(places.by_peer.lock().unwrap().is_empty());
    }
}
