//! A witness behind a socket: `POST <prefix>/add-checkpoint` over HTTP/1.1.
//!
//! The connection is kept between requests. Everything has a limit: the time
//! of a request, connecting included, and the bytes of an answer. What comes
//! back is believed only after [`Exchange`](crate::Exchange) has verified it;
//! whoever stands between can make a witness silent, and no more.
//!
//! TLS is not here yet. It belongs into [`open`], the one place that knows
//! what an exchange of bytes runs over.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use pitser_tlog::note::SignatureLine;
use pitser_tlog::witness_protocol::{
    ADD_CHECKPOINT, MAX_ANSWER_BYTES, Refusal, SIZE_CONTENT_TYPE, parse_answer,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::submit::Cosign;

/// A witness that answers over HTTP.
///
/// One request at a time; others wait. Blocks: call it off a runtime's threads.
pub struct HttpWitness {
    prefix: Prefix,
    time_limit: Duration,
    /// Locked for one request.
    line: Mutex<Line>,
}

/// A submission prefix: `http://host[:port][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// `host:port`.
    address: String,
    /// Begins with a slash, ends with none; may be empty.
    path: String,
}

/// A connection, and what moves its bytes.
#[derive(Default)]
struct Line {
    runtime: Option<Runtime>,
    idle: Option<SendRequest<Full<Bytes>>>,
}

impl HttpWitness {
    /// A witness at `prefix`; nothing is connected yet.
    pub fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            time_limit: TIME_LIMIT,
            line: Mutex::default(),
        }
    }

    /// The same witness, which must answer within `time_limit`.
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Self { time_limit, ..self }
    }

    async fn exchange(
        &self,
        idle: &mut Option<SendRequest<Full<Bytes>>>,
        body: &[u8],
    ) -> Result<Vec<SignatureLine>, Refusal> {
        let body = Bytes::copy_from_slice(body);
        // A kept connection may have been closed by now. Asking twice does no
        // harm: the witness would answer the same.
        let kept = match idle.take().filter(|kept| !kept.is_closed()) {
            Some(kept) => self.post(kept, body.clone()).await.ok(),
            None => None,
        };
        let (connection, response) = match kept {
            Some(answered) => answered,
            None => self.post(self.connect().await?, body).await?,
        };
        let status = response.status().as_u16();
        let is_size = response.headers().get(header::CONTENT_TYPE);
        let is_size = is_size.is_some_and(|kind| kind == SIZE_CONTENT_TYPE);
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let answer = answer.collect().await.map_err(|error| lost(&error))?;
        *idle = Some(connection);
        if status == 409 && !is_size {
            // Another witness may say so when its root is another one.
            return Err(lost(&"it refused the head without saying which it holds"));
        }
        let body = answer.to_bytes();
        parse_answer(status, &body).map_err(|refusal| in_its_words(refusal, &body))
    }

    async fn post(
        &self,
        mut connection: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<hyper::body::Incoming>), Refusal> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{ADD_CHECKPOINT}", self.prefix.path))
            .header(header::HOST, &self.prefix.address)
            .header(header::USER_AGENT, "pitser")
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(Full::from(body))
            .map_err(|error| lost(&error))?;
        connection.ready().await.map_err(|error| lost(&error))?;
        let response = connection.send_request(request).await;
        Ok((connection, response.map_err(|error| lost(&error))?))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Refusal> {
        let stream = open(&self.prefix.address).await;
        let stream = TokioIo::new(stream.map_err(|error| lost(&error))?);
        let (sender, connection) = http1::handshake(stream)
            .await
            .map_err(|error| lost(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a witness ended");
            }
        });
        Ok(sender)
    }
}

impl Cosign for HttpWitness {
    fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let Line { runtime, idle } = &mut *line;
        let runtime = match runtime {
            Some(runtime) => runtime,
            None => {
                let made = Builder::new_current_thread().enable_all().build();
                runtime.insert(made.map_err(|error| lost(&error))?)
            }
        };
        let limited = async {
            let exchange = self.exchange(idle, body);
            tokio::time::timeout(self.time_limit, exchange).await
        };
        match runtime.block_on(limited) {
            Ok(answer) => answer,
            Err(_) => Err(lost(&format!("no answer within {:?}", self.time_limit))),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Without waiting, since it may happen on another runtime's thread.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for HttpWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpWitness")
            .field("prefix", &self.prefix)
            .field("time_limit", &self.time_limit)
            .finish_non_exhaustive()
    }
}

/// What an exchange of bytes runs over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens the way to `address`.
async fn open(address: &str) -> std::io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// A refusal that the protocol has no word for, with the witness's own sentence.
fn in_its_words(refusal: Refusal, body: &[u8]) -> Refusal {
    let Refusal::Unavailable { reason } = refusal else {
        return refusal;
    };
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let words: String = line
        .iter()
        .filter(|b| is_plain(b))
        .take(MAX_WORDS)
        .map(|b| char::from(*b))
        .collect();
    let reason = match words.is_empty() {
        true => reason,
        false => format!("{reason}, {words:?}"),
    };
    Refusal::Unavailable { reason }
}

fn lost(reason: &dyn ToString) -> Refusal {
    Refusal::Unavailable {
        reason: reason.to_string(),
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(url: &str) -> Result<Self, PrefixError> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(PrefixError::Tls),
            _ => return Err(PrefixError::Scheme),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(PrefixError::User);
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
        if !rest.bytes().all(plain) {
            return Err(PrefixError::Malformed);
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port: u16 = port.parse().map_err(|_| PrefixError::Malformed)?;
                (host, port)
            }
            _ => (authority, 80),
        };
        let is_v6 = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !is_v6) {
            return Err(PrefixError::Malformed);
        }
        Ok(Self {
            address: format!("{host}:{port}"),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// Why an address is no submission prefix. Never repeats it: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PrefixError {
    /// Not `http://`.
    #[error("a witness's address begins with http://")]
    Scheme,
    /// `https://`.
    #[error("witnesses are reached over plain http:// so far; what they sign needs no secrecy")]
    Tls,
    /// A user or password.
    #[error("a witness's address has no user and no password")]
    User,
    /// Something else.
    #[error("not an address of the form http://host:port/path")]
    Malformed,
}

/// Characters of a witness's sentence that are repeated.
const MAX_WORDS: usize = 120;

/// How long a witness may take for one answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: Result<&str, PrefixError>) {
        let prefix = url.parse::<Prefix>().map(|prefix| prefix.to_string());
        assert_eq!(prefix, expected.map(str::to_owned), "{url}");
    }

    #[test]
    fn a_refusal_outside_the_protocol_is_told_in_the_witnesses_words() {
        let told = |body: &[u8]| match parse_answer(503, body) {
            Err(refusal) => in_its_words(refusal, body).to_string(),
            Ok(_) => unreachable!("503 is no cosignature"),
        };
        assert_eq!(
            told(b"too fast\nand more\n"),
            "witness unavailable: status 503, \"too fast\""
        );
        assert_eq!(
            told(b"\x1b[2J\xff\n"),
            "witness unavailable: status 503, \"[2J\""
        );
        assert_eq!(told(b""), "witness unavailable: status 503");
        assert!(told(&[b'x'; 9_000]).len() < 200);
        let other = in_its_words(Refusal::NotSigned, b"whatever");
        assert_eq!(other, Refusal::NotSigned);
    }

    #[test]
    fn prefixes() {
        check("http://w.example", Ok("http://w.example:80"));
        check("http://w.example:7080/", Ok("http://w.example:7080"));
        check("http://w.example/a/b/", Ok("http://w.example:80/a/b"));
        check("http://[::1]:7080", Ok("http://[::1]:7080"));
        check("http://[::1]", Ok("http://[::1]:80"));
        check("w.example", Err(PrefixError::Scheme));
        check("ftp://w.example", Err(PrefixError::Scheme));
        check("https://w.example", Err(PrefixError::Tls));
        check("http://u:p@w.example", Err(PrefixError::User));
        check("http://", Err(PrefixError::Malformed));
        check("http://:80", Err(PrefixError::Malformed));
        check("http://::1", Err(PrefixError::Malformed));
        check("http://w.example:port", Err(PrefixError::Malformed));
        check("http://w.example/a b", Err(PrefixError::Malformed));
        check("http://w.example/a\r\nX: y", Err(PrefixError::Malformed));
        check("http://w.example?q", Err(PrefixError::Malformed));
    }
}
