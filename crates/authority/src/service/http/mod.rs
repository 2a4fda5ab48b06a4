//! HTTP and HTTPS: PDUs as POST on any path, and what the authority shows by GET.
//!
//! | request                 | answer                                                |
//! |-------------------------|-------------------------------------------------------|
//! | POST any path, one PDU  | one PDU, `application/ksi-response`                   |
//! | GET `/publications.bin` | the publications file                                 |
//! | GET `/publications…`    | feed and sheets ([`crate::publicity`])                |
//! | GET `/log/…`            | the calendar's log ([`crate::log`])                   |
//! | `/fleet…`               | trails that guardians register ([`crate::fleet`])     |
//! | GET `/health`           | 200, or 503 when rounds have ended; one line of text  |
//! | GET `/ready`            | 200 while it signs and the newest round is recent     |
//! | GET `/metrics`          | Prometheus text; for operators alone                  |
//! | GET `/status`           | one JSON object; for operators alone                  |
//! | POST `/publish`         | publishes now; on the admin socket alone              |
//! | POST `/publications.bin` | takes a file that was made elsewhere; there alone too |
//!
//! [`pages`] answers, [`watched`] cuts connections that do not get on, [`tls`] holds
//! the certificate, [`admin`] is the unix socket.

pub(crate) mod admin;
mod pages;
pub(crate) mod reply;
pub(crate) mod tls;
mod watched;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lobby::{Guest, Lobby};
use super::{Service, stopping};
use crate::metrics::{Reason, Transport};
use pages::Audience;
use tls::Tls;
use watched::Watched;

/// What a listener is for.
#[derive(Clone)]
pub(crate) enum Door {
    Http,
    Https(Arc<Tls>),
    /// For monitors, on a network of the operator's.
    Monitor,
}

impl Door {
    fn transport(&self) -> Transport {
        match self {
            Self::Http => Transport::Http,
            Self::Https(_) => Transport::Https,
            Self::Monitor => Transport::Monitor,
        }
    }

    fn audience(&self) -> Audience {
        match self {
            Self::Http | Self::Https(_) => Audience::Public,
            Self::Monitor => Audience::Operator,
        }
    }
}

/// Serves connections until `stop` turns true, then until all are answered.
pub(crate) async fn serve(
    listener: TcpListener,
    door: Door,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    let metrics = Arc::clone(&service.metrics);
    let lobby = Lobby::new(&service.limits, metrics, door.transport());
    let mut connections = JoinSet::new();
    loop {
        let (stream, guest) = tokio::select! {
            () = stopping(&mut stop) => break,
            next = lobby.next(&listener) => next,
            Some(_) = connections.join_next() => continue,
        };
        let (door, service, stop) = (door.clone(), Arc::clone(&service), stop.clone());
        connections.spawn(receive(stream, guest, door, service, stop));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn receive(
    stream: TcpStream,
    guest: Guest,
    door: Door,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    // What it costs not to have it is a little time.
    let _ = stream.set_nodelay(true);
    match &door {
        Door::Http | Door::Monitor => converse(stream, door.audience(), service, stop).await,
        Door::Https(tls) => {
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                // Nothing was asked yet.
                () = stopping(&mut stop) => return,
            };
            match shaken {
                Ok(Ok(stream)) => converse(stream, door.audience(), service, stop).await,
                failed => {
                    service.metrics.refused(Reason::Tls);
                    let reason = match failed {
                        Ok(Err(e)) => e.to_string(),
                        _ => "the handshake took too long".to_owned(),
                    };
                    tracing::debug!(reason, "no secure connection");
                }
            }
        }
    }
    drop(guest);
}

/// Answers the requests of one connection.
async fn converse<S>(
    stream: S,
    audience: Audience,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let idle = service.limits.idle;
    let answer = service_fn(|request| pages::answer(&service, audience, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Watched::new(stream, idle)), answer);
    let mut connection = pin!(connection);
    tokio::select! {
        done = connection.as_mut() => {
            if let Err(e) = done {
                tracing::debug!(error = %e, "connection ended");
            }
            return;
        }
        () = stopping(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(LAST_ANSWERS, connection).await;
}

/// A TLS handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const HEAD_BYTES: usize = 16 << 10;
/// How long, at the end, a peer may take for the answer to what it has asked.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
