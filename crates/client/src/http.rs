//! HTTP/1.1 as far as the services use it: POST one PDU, GET one file; over TLS
//! if the address says so. No redirect, no proxy, no cookie.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::Fault;
use crate::endpoint::{Endpoint, Transport};
use crate::options::Options;
use crate::pace::Pace;
use crate::tcp;
use crate::tls::Tls;

/// A server, and the connections to it that are free at the moment.
#[derive(Debug)]
pub(crate) struct HttpService {
    /// `host:port`.
    address: String,
    /// For HTTPS alone.
    tls: Option<Tls>,
    connect_timeout: Duration,
    pace: Pace,
    /// Exchanges that may be under way.
    places: Arc<Semaphore>,
    /// Locked to take or put back one connection.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl HttpService {
    pub(crate) fn new(endpoint: &Endpoint, options: &Options) -> Self {
        let is_secure = endpoint.transport() == Transport::Https;
        Self {
            address: endpoint.address(),
            tls: is_secure.then(|| Tls::new(endpoint.host(), options.roots.clone())),
            connect_timeout: options.connect_timeout,
            pace: Pace::default(),
            places: Arc::new(Semaphore::new(MAX_EXCHANGES)),
            idle: Mutex::default(),
        }
    }

    /// Sends `pdu` and reads the answer, at most `max` bytes.
    pub(crate) async fn post(
        self: &Arc<Self>,
        path: &str,
        pdu: Bytes,
        max: usize,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/ksi-request")
            .body(Full::from(pdu));
        self.send(request, max, deadline).await
    }

    /// Sends a signed note in somebody's name, and reads the answer.
    pub(crate) async fn post_note(
        self: &Arc<Self>,
        path: &str,
        authorization: &str,
        note: Bytes,
        max: usize,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(header::AUTHORIZATION, authorization)
            .body(Full::from(note));
        self.send(request, max, deadline).await
    }

    /// Reads what is at `path`, at most `max` bytes.
    pub(crate) async fn get(
        self: &Arc<Self>,
        path: &str,
        max: usize,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let request = self.request(Method::GET, path).body(Full::default());
        self.send(request, max, deadline).await
    }

    /// The same in somebody's name.
    pub(crate) async fn get_as(
        self: &Arc<Self>,
        path: &str,
        authorization: &str,
        max: usize,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let request = self
            .request(Method::GET, path)
            .header(header::AUTHORIZATION, authorization)
            .body(Full::default());
        self.send(request, max, deadline).await
    }

    /// Connects once, to find out whether anybody listens.
    pub(crate) async fn probe(&self) -> Result<(), Fault> {
        let connection = self.connect().await?;
        self.give_back(connection);
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.address)
            .header(header::USER_AGENT, USER_AGENT)
    }

    /// One exchange. It goes on to its end if its caller does not wait any more:
    /// otherwise the connection could not be used again.
    async fn send(
        self: &Arc<Self>,
        request: hyper::http::Result<Request<Full<Bytes>>>,
        max: usize,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let request = request.map_err(|e| Fault::Lost(e.to_string()))?;
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Fault::TimedOut);
        };
        let (asker, answer) = oneshot::channel();
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = service.exchange(request, max, deadline, &asker).await;
            drop(place);
            let _ = asker.send(outcome);
        });
        answer
            .await
            .unwrap_or_else(|_| Err(Fault::Lost("the exchange was given up".to_owned())))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        max: usize,
        deadline: Instant,
        asker: &oneshot::Sender<Result<Answer, Fault>>,
    ) -> Result<Answer, Fault> {
        let idle = self.take_idle();
        let is_reused = idle.is_some();
        let mut connection = match idle {
            Some(connection) => connection,
            None => match timeout_at(deadline, self.connect()).await {
                Ok(connected) => connected?,
                Err(_) => return Err(Fault::unreachable(io::ErrorKind::TimedOut.into())),
            },
        };
        if asker.is_closed() {
            self.give_back(connection);
            return Err(Fault::TimedOut);
        }
        let talked = timeout_at(deadline, talk(&mut connection, request, max)).await;
        match talked.unwrap_or(Err(Fault::TimedOut)) {
            Ok(answer) => {
                self.give_back(connection);
                Ok(answer)
            }
            Err(fault) => {
                match fault {
                    // The server may have closed the others of that age as well.
                    Fault::Lost(_) | Fault::TimedOut if is_reused => self.lock_idle().clear(),
                    Fault::Lost(_) => self.pace.failed(),
                    _ => {}
                }
                Err(fault)
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        self.pace.turn().await;
        let connected = match timeout(self.connect_timeout, self.open()).await {
            Ok(connected) => connected,
            Err(_) => Err(Fault::unreachable(io::ErrorKind::TimedOut.into())),
        };
        match &connected {
            Ok(_) => self.pace.succeeded(),
            Err(_) => self.pace.failed(),
        }
        connected
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let stream = tcp::connect(&self.address, self.connect_timeout).await?;
        match &self.tls {
            None => start(stream).await,
            Some(tls) => start(tls.secure(stream).await?).await,
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.lock_idle();
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn give_back(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.lock_idle();
        if !connection.is_closed() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to speak HTTP. The connection ends with its handle.
pub(crate) async fn start<S, B>(stream: S) -> Result<SendRequest<B>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| lost(&e))?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "HTTP connection ended");
        }
    });
    Ok(sender)
}

async fn talk(
    connection: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    max: usize,
) -> Result<Answer, Fault> {
    connection.ready().await.map_err(|e| lost(&e))?;
    let response = connection.send_request(request).await;
    read(response.map_err(|e| lost(&e))?, max).await
}

async fn read(response: Response<Incoming>, max: usize) -> Result<Answer, Fault> {
    let status = response.status();
    match Limited::new(response.into_body(), max).collect().await {
        Ok(body) => Ok(Answer {
            status,
            body: body.to_bytes(),
        }),
        Err(e) if !e.is::<LengthLimitError>() => Err(Fault::Lost(e.to_string())),
        Err(_) if !status.is_success() => Err(Fault::Http(status.as_u16())),
        Err(_) => Err(Fault::Unfit(format!("it is longer than {max} bytes"))),
    }
}

fn lost(error: &hyper::Error) -> Fault {
    if error.is_parse() {
        return Fault::Foreign(
            "its answer is not HTTP; write https:// if it speaks TLS, ksi+tcp:// if it takes PDUs on TCP",
        );
    }
    Fault::Lost(match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

/// Requests under way at a time; more wait. A signature takes up to a second by
/// design, so this is about as many signatures a second.
const MAX_EXCHANGES: usize = 256;
/// Free connections that are kept.
pub(crate) const MAX_IDLE: usize = 16;
/// Bytes of the head of an answer.
const MAX_HEAD: usize = 64 << 10;
pub(crate) const USER_AGENT: &str = concat!("pitser/", env!("CARGO_PKG_VERSION"));
