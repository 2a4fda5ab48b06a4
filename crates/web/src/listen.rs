//! A listener that accepts so many connections at a time and cuts those on which nothing
//! moves: a guardian out of file descriptors could not write its trail.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::WebError;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// A connection that is silent for longer is cut. Longer than any request is
/// worked on; live streams send something more often.
const IDLE: Duration = Duration::from_secs(150);

pub(crate) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(crate) fn bind(listen: SocketAddr) -> Result<Self, WebError> {
        let bound = std::net::TcpListener::bind(listen).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let listener = bound.map_err(|source| WebError::Listen { listen, source })?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self { listener, places })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            // Nobody closes this semaphore.
            return std::future::pending().await;
        };
        // axum's own accept waits out the errors of single peers.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, place), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address()
    }
}

/// A connection that fails once no byte could be read or written for [`IDLE`].
pub(crate) struct Connection<S = TcpStream> {
    stream: S,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            timer: Box::pin(sleep(IDLE)),
            _place: place,
        }
    }

    /// Starts the time anew after progress; otherwise fails when it is over.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.timer.as_mut().reset(Instant::now() + IDLE);
            return outcome;
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watch(cx, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use http_body_util::channel::Channel;
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::timeout;

    /// Bytes on their way that nobody has read.
    const UNREAD: usize = 1 << 16;
    /// A live stream says something as often.
    const TICK: Duration = Duration::from_secs(15);

    /// One connection, and no other.
    struct One(Option<Connection<DuplexStream>>);

    impl Listener for One {
        type Io = Connection<DuplexStream>;
        type Addr = ();

        async fn accept(&mut self) -> (Self::Io, ()) {
            match self.0.take() {
                Some(connection) => (connection, ()),
                None => std::future::pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A client, and the one place at the server that it takes.
    fn connected() -> (DuplexStream, Arc<Semaphore>) {
        let (client, stream) = duplex(UNREAD);
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        let long = || async { vec![b'x'; 10 * UNREAD] };
        let routes = Router::new()
            .route("/long", get(long))
            .route("/live", get(|| async { ticking() }));
        let listener = One(Some(Connection::new(stream, place)));
        tokio::spawn(axum::serve(listener, routes).into_future());
        (client, places)
    }

    /// A body that says something again and again.
    fn ticking() -> Body {
        let (mut out, body) = Channel::<Bytes, Infallible>::new(1);
        tokio::spawn(async move {
            while out.send_data(vec![b'.'; UNREAD].into()).await.is_ok() {
                sleep(TICK).await;
            }
        });
        Body::new(body)
    }

    async fn ask(client: &mut DuplexStream, path: &str, times: usize) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let requests = request.repeat(times);
        client.write_all(requests.as_bytes()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_loses_the_place() {
        for (path, times) in [("/long", 1), ("/long", 100), ("/live", 1), ("/live", 100)] {
            let (mut client, places) = connected();
            ask(&mut client, path, times).await;
            let begun = Instant::now();
            let free = timeout(10 * IDLE, places.acquire()).await;
            assert!(free.is_ok(), "{times} of {path}");
            // A stream says something once more before nothing goes through.
            let took = begun.elapsed();
            assert!(IDLE <= took && took <= IDLE + 2 * TICK, "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_stream_that_is_read_goes_on_for_hours() {
        let (mut client, places) = connected();
        ask(&mut client, "/live", 100).await;
        let begun = Instant::now();
        let mut read = 0;
        let mut buffer = vec![0; UNREAD];
        while begun.elapsed() < 100 * IDLE {
            let more = client.read(&mut buffer).await.unwrap();
            assert_ne!(more, 0, "cut after {:?}", begun.elapsed());
            read += more;
        }
        assert!(read > 900 * UNREAD, "{read}");
        assert_eq!(places.available_permits(), 0);
        // And one whose client is gone does not.
        drop(client);
        assert!(timeout(IDLE, places.acquire()).await.is_ok());
    }
}
