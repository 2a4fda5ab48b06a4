//! HTTP/1.1 as far as the services use it: POST one PDU, GET one file.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::ClientError;

/// A server, and the connections to it that are free at the moment.
#[derive(Debug)]
pub(crate) struct HttpService {
    /// `host:port`.
    address: String,
    connect_timeout: Duration,
    answer_timeout: Duration,
    /// Locked to take or put back one connection.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl HttpService {
    pub(crate) fn new(
        address: String,
        connect_timeout: Duration,
        answer_timeout: Duration,
    ) -> Self {
        Self {
            address,
            connect_timeout,
            answer_timeout,
            idle: Mutex::default(),
        }
    }

    /// Sends `pdu` and reads the answer, at most `max` bytes.
    pub(crate) async fn post(
        &self,
        path: &str,
        pdu: Vec<u8>,
        max: usize,
    ) -> Result<Answer, ClientError> {
        let request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/ksi-request")
            .body(Full::from(pdu));
        self.send(request.map_err(|e| self.lost(&e))?, max).await
    }

    /// Reads what is at `path`, at most `max` bytes.
    pub(crate) async fn get(&self, path: &str, max: usize) -> Result<Answer, ClientError> {
        let request = self.request(Method::GET, path).body(Full::default());
        self.send(request.map_err(|e| self.lost(&e))?, max).await
    }

    /// Connects once, to find out whether anybody listens.
    pub(crate) async fn probe(&self) -> Result<(), ClientError> {
        let connection = self.connect().await?;
        self.give_back(connection);
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.address)
            .header(header::USER_AGENT, "pitser")
    }

    async fn send(&self, request: Request<Full<Bytes>>, max: usize) -> Result<Answer, ClientError> {
        match timeout(self.answer_timeout, self.exchange(request, max)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut {
                service: self.address.clone(),
                waited: self.answer_timeout,
            }),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        max: usize,
    ) -> Result<Answer, ClientError> {
        let mut connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.ready().await.map_err(|e| self.lost(&e))?;
        let response = connection
            .send_request(request)
            .await
            .map_err(|e| self.lost(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), max).collect().await;
        let body = body.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
            Some(_) => ClientError::Unfit {
                service: self.address.clone(),
                reason: format!("it is longer than {max} bytes"),
            },
            None => self.lost(&e),
        })?;
        self.give_back(connection);
        Ok(Answer {
            status,
            body: body.to_bytes(),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = connect(&self.address, self.connect_timeout).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.lost(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "HTTP connection ended");
            }
        });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    fn give_back(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    fn lost(&self, reason: &dyn ToString) -> ClientError {
        ClientError::Lost {
            service: self.address.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Opens a TCP connection without delay for small writes.
pub(crate) async fn connect(address: &str, limit: Duration) -> Result<TcpStream, ClientError> {
    let refused = |source| ClientError::Connect {
        service: address.to_owned(),
        source,
    };
    let stream = match timeout(limit, TcpStream::connect(address)).await {
        Ok(stream) => stream.map_err(refused)?,
        Err(_) => return Err(refused(io::ErrorKind::TimedOut.into())),
    };
    stream.set_nodelay(true).map_err(refused)?;
    Ok(stream)
}

/// Free connections that are kept.
const MAX_IDLE: usize = 16;
