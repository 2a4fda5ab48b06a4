//! PDUs as POST on any path, and what the authority shows by GET.
//!
//! | request                 | answer                                             |
//! |-------------------------|----------------------------------------------------|
//! | POST any path, one PDU  | one PDU, `application/ksi-response`                |
//! | GET `/publications.bin` | the publications file                              |
//! | GET `/health`           | 200, or 503 when it does not sign; one line of text |

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use pitser_ksi::tlv;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep};

use super::answer::Outlet;
use super::desk::Desk;
use super::{Service, stopping};

/// Serves connections until `stop` turns true, then until all are answered.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    let listener = Bounded {
        listener,
        places: Arc::new(Semaphore::new(service.limits.connections)),
        idle: service.limits.idle,
    };
    let pdus = post(answer_pdu);
    let routes = Router::new()
        .route("/publications.bin", get(publications).merge(pdus.clone()))
        .route("/health", get(health).merge(pdus.clone()))
        .fallback_service(pdus.with_state(Arc::clone(&service)))
        .with_state(service);
    let served = axum::serve(listener, routes)
        .with_graceful_shutdown(async move { stopping(&mut stop).await })
        .await;
    if let Err(e) = served {
        tracing::error!(error = %e, "the HTTP listener failed");
    }
}

async fn answer_pdu(State(service): State<Arc<Service>>, body: Body) -> Response {
    if body.size_hint().lower() > tlv::MAX as u64 {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let (outlet, mut replies) = Outlet::new(1);
    // Gone with this block: when the answer was taken there can be no other.
    let status = {
        let mut desk = Desk::new(&service, outlet);
        let idle = service.limits.idle;
        match tokio::time::timeout(idle, to_bytes(body, tlv::MAX)).await {
            Ok(Ok(frame)) => {
                let arrived_at = service.now();
                desk.take(&frame, arrived_at);
                desk.flush(arrived_at);
                StatusCode::OK
            }
            Ok(Err(_)) => {
                desk.refuse_garbage();
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
        }
    };
    let mut answer = Vec::new();
    match replies.fill(&mut answer, 1).await {
        Ok(1..) if !answer.is_empty() => (
            status,
            [(header::CONTENT_TYPE, "application/ksi-response")],
            answer,
        )
            .into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn publications(State(service): State<Arc<Service>>) -> Response {
    let file = service.publications_file();
    (
        [(header::CONTENT_TYPE, "application/octet-stream")],
        Vec::from(&*file),
    )
        .into_response()
}

async fn health(State(service): State<Arc<Service>>) -> Response {
    match service.health() {
        Ok(text) => (StatusCode::OK, text).into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

/// A listener that accepts so many connections at a time and cuts idle ones.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle: Duration,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            // axum's own accept waits out the errors of single peers.
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            let connection = Connection {
                stream,
                idle: self.idle,
                timer: Box::pin(sleep(self.idle)),
                _place: place,
            };
            return (connection, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when no byte could be read or written for `idle`.
struct Connection {
    stream: TcpStream,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Starts the time anew after progress; otherwise fails when it is over.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.idle);
            return outcome;
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watch(cx, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
