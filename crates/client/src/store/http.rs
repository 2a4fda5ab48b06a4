//! HTTP/1.1 to one server, for `object_store`, which signs the requests.
//!
//! Own code, so that a store is reached as every other service is: the same TLS and
//! authorities, no proxy from the environment, no redirect, and of an error no more
//! than its status and code. Stores repeat the request in their errors, and with it
//! the session token.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::http::uri::Authority;
use hyper::http::{HeaderMap, HeaderValue};
use hyper::{Response, StatusCode, Uri, header};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use tokio::time::{Instant, timeout};

use super::error::Trouble;
use crate::answer::Fault;
use crate::http::{MAX_IDLE, USER_AGENT, start};
use crate::tcp;
use crate::tls::{Roots, Tls};

/// The server, and the connections to it that are free at the moment.
#[derive(Debug, Clone)]
pub(super) struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// As it stands in addresses.
    authority: Authority,
    /// The same without the port that goes without saying.
    host: HeaderValue,
    /// `host:port`.
    address: String,
    /// For HTTPS alone.
    tls: Option<Tls>,
    /// Locked to take or put back one connection.
    idle: Mutex<Vec<(Instant, Connection)>>,
}

type Connection = SendRequest<HttpRequestBody>;

impl Server {
    /// `None` if `authority` is not `host` or `host:port`.
    pub(super) fn new(is_secure: bool, authority: &str, roots: Roots) -> Option<Self> {
        let authority: Authority = authority.parse().ok()?;
        let usual = if is_secure { 443 } else { 80 };
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str() == authority.host() => usual,
            None => return None,
        };
        let host = match port == usual {
            true => authority.host(),
            false => authority.as_str(),
        };
        let host = HeaderValue::from_str(&host.to_ascii_lowercase()).ok()?;
        let bare = authority.host().trim_matches(['[', ']']).to_owned();
        Some(Self(Arc::new(Shared {
            address: format!("{}:{port}", authority.host()),
            tls: is_secure.then(|| Tls::new(&bare, roots)),
            authority,
            host,
            idle: Mutex::default(),
        })))
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.0.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.0.authority)
    }

    /// Whether it is on this machine, where nobody else reads along.
    pub(super) fn is_here(&self) -> bool {
        let host = self.0.authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost")
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl HttpConnector for Server {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Server {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.0.call(request).await
    }
}

impl Shared {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let target = request.uri().path_and_query().cloned();
        *request.uri_mut() = target.map_or_else(Uri::default, Uri::from);
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // As it was signed.
        headers.insert(header::HOST, self.host.clone());
        let mut connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = connection.send_request(request).await;
        let response = response.map_err(|e| lost(&e))?;
        // Ready again once the answer is read; dropped with it if nobody reads it.
        self.give_back(connection);
        judge(response).await
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        let opened = match timeout(CONNECT, self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        opened.map_err(|fault| HttpError::new(HttpErrorKind::Connect, explain(fault)))
    }

    async fn open(&self) -> Result<Connection, Fault> {
        let stream = tcp::connect(&self.address, CONNECT).await?;
        let mut connection = match &self.tls {
            None => start(stream).await,
            Some(tls) => start(tls.secure(stream).await?).await,
        }?;
        let ready = connection.ready().await;
        ready.map_err(|e| Fault::Lost(e.to_string()))?;
        Ok(connection)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, connection)| !connection.is_closed() && since.elapsed() < STALE);
        let ready = idle.iter().position(|(_, it)| it.is_ready())?;
        Some(idle.swap_remove(ready).1)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), connection));
        }
    }
}

/// Success goes on as it is. Of an error remain its status, for those that
/// `object_store` acts upon, and its code.
async fn judge(response: Response<Incoming>) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    if status.is_success() {
        return Ok(bounded(response));
    }
    let (mut parts, body) = response.into_parts();
    let code = match Limited::new(body, MAX_ERROR).collect().await {
        Ok(body) => code(&body.to_bytes()).unwrap_or_default(),
        Err(_) => String::new(),
    };
    let is_acted_upon = match status {
        StatusCode::NOT_FOUND => code != "NoSuchBucket",
        StatusCode::NOT_MODIFIED
        | StatusCode::PRECONDITION_FAILED
        | StatusCode::CONFLICT
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::NOT_IMPLEMENTED => false,
        _ => status.is_server_error(),
    };
    if is_acted_upon {
        parts.headers.clear();
        let body = Full::from(Bytes::from(code)).map_err(|e| match e {});
        return Ok(Response::from_parts(parts, HttpResponseBody::new(body)));
    }
    Err(HttpError::new(
        HttpErrorKind::Unknown,
        refused(status, &code),
    ))
}

/// No more is read than was announced: whoever asked has looked at that.
fn bounded(response: Response<Incoming>) -> HttpResponse {
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let max: usize = length.unwrap_or(MAX_ERROR);
    // Of a part, by which a read goes on, what it says to be.
    let max = match response.status() {
        StatusCode::PARTIAL_CONTENT => part(response.headers()).unwrap_or_default().min(max),
        _ => max,
    };
    response.map(|body| {
        HttpResponseBody::new(Limited::new(body, max).map_err(|e| {
            match e.downcast_ref::<hyper::Error>() {
                Some(e) => lost(e),
                None => HttpError::new_boxed(HttpErrorKind::Decode, e),
            }
        }))
    })
}

/// Bytes of the part that an answer says to be: `bytes 10-19/100` are ten.
fn part(headers: &HeaderMap) -> Option<usize> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, _) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

/// What stands in the first `<Code>` of an error, if it is a plain word.
fn code(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (code, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
    let is_word = (1..=64).contains(&code.len()) && code.bytes().all(|c| c.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}

fn refused(status: StatusCode, code: &str) -> Trouble {
    let advice = match code {
        "SignatureDoesNotMatch" => "is the secret access key right, and the region?",
        "InvalidAccessKeyId" => "it does not know this access key: look at the credentials",
        "ExpiredToken" | "InvalidToken" => "give it new temporary credentials",
        "RequestTimeTooSkewed" => "set this machine's clock",
        "AccessDenied" | "AllAccessDisabled" => {
            "let this access key get and put objects under the prefix"
        }
        "NoSuchBucket" => "make the bucket, or look at its name and the endpoint",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => "name the bucket's region",
        "NotImplemented" => {
            "it must take If-None-Match with PutObject, so that nothing is written twice"
        }
        _ if status.is_redirection() => "name the bucket's region, or another endpoint",
        _ => "is the endpoint right, and path_style? Its log may say more",
    };
    let problem = match code {
        "" => format!("it answered {status}"),
        code => format!("it answered {status}, {code}"),
    };
    Trouble { problem, advice }
}

fn explain(fault: Fault) -> Trouble {
    let (problem, advice) = match fault {
        Fault::Tls { problem, advice } => (problem, advice),
        Fault::Unreachable(e) => (
            format!("nobody answers ({e})"),
            "is it up, and is the endpoint right?",
        ),
        other => (
            format!("no connection comes about ({other:?})"),
            "is the endpoint right?",
        ),
    };
    Trouble { problem, advice }
}

fn lost(error: &hyper::Error) -> HttpError {
    let kind = match error {
        // It was closed while it was idle: nothing was done.
        e if e.is_canceled() || e.is_closed() => HttpErrorKind::Request,
        e if e.is_parse() => HttpErrorKind::Decode,
        _ => HttpErrorKind::Interrupted,
    };
    let trouble = Trouble {
        problem: format!("the connection broke ({error})"),
        advice: "does it speak HTTP there, and is it up?",
    };
    HttpError::new(kind, trouble)
}

/// For a connection to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections that lay idle longer are not used: the server is about to close them.
const STALE: Duration = Duration::from_secs(10);
/// Bytes of an error, or of an answer that announces no length.
const MAX_ERROR: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_as_long_as_it_says() {
        for (range, length) in [
            ("bytes 10-19/100", Some(10)),
            ("bytes 0-0/*", Some(1)),
            ("bytes 19-10/100", None),
            ("bytes 0-18446744073709551615/100", None),
            ("bytes */100", None),
            ("10-19/100", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_static(range));
            assert_eq!(part(&headers), length, "{range}");
        }
        assert_eq!(part(&HeaderMap::new()), None);
    }
}
