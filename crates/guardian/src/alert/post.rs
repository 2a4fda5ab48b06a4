//! POSTs one message: HTTP/1.1, over TLS if the address says so.
//!
//! One connection a message: findings are rare. No proxy, no redirect, no
//! cookie. Whatever the receiver answers, at most [`ANSWER_MAX`] bytes of its
//! head and as many of its body are taken, and dropped.

use super::message::Secret;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use pitser_ksi::time::Second;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// Where messages go: `http://` or `https://`.
///
/// Path and query may hold a token, so `Debug` and `Display` leave them out.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
}

/// Why a text is no address to send to. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("the address does not begin with http:// or https://")]
    Scheme,
    /// A user or password, which would be seen by everybody who sees the address.
    #[error("the address holds a user or a password: use `secret` instead")]
    User,
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// Not an address for another reason.
    #[error("the address is not a URL")]
    Other,
}

impl Url {
    /// Reads `http[s]://host[:port][/path][?query]`.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(UrlError::Scheme),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(UrlError::User);
        }
        let uri: Uri = text.parse().map_err(|_| UrlError::Other)?;
        let host = uri
            .host()
            .filter(|h| !h.is_empty())
            .ok_or(UrlError::Other)?;
        let default = if is_tls { 443 } else { 80 };
        let port = match authority.strip_prefix(host) {
            Some("") => default,
            Some(port) => match port.strip_prefix(':').map(str::parse) {
                Some(Ok(port)) if port > 0 => port,
                _ => return Err(UrlError::Port),
            },
            None => return Err(UrlError::Other),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            is_tls,
            host: host.to_ascii_lowercase(),
            port,
            path: path.to_owned(),
        })
    }

    /// `host`, with the port unless it is the usual one.
    fn authority(&self) -> String {
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// All of it, to tell addresses apart.
    pub(crate) fn expose(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    fn server_name(&self) -> Result<ServerName<'static>, InvalidDnsNameError> {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(bare.to_owned())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self}/..)")
    }
}

/// Why nothing can be sent to an address at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlertError {
    /// The file of authorities cannot be read.
    #[error("{}: cannot read certificates: {source}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate that can be used.
    #[error("{}: holds no certificate of an authority", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// This machine has no such file where others have it.
    #[error(
        "{url}: this machine has no file of certificate authorities where others have it; name one with `ca`"
    )]
    NoBundle {
        /// The address that needs one.
        url: Url,
    },
    /// The host can have no certificate.
    #[error("{url}: no certificate can be made out to this host")]
    Host {
        /// The address.
        url: Url,
    },
    /// The TLS library cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why one message was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("it cannot be connected to: {0}")]
    Connect(std::io::Error),
    #[error("no secure connection: {0}")]
    Tls(std::io::Error),
    #[error("the connection was lost: {0}")]
    Lost(#[from] hyper::Error),
    #[error("no connection within {} s", .0.as_secs_f32())]
    Unconnected(Duration),
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("the request cannot be built: {0}")]
    Request(#[from] hyper::http::Error),
}

impl PostError {
    /// Whether nothing of the message was sent.
    pub(crate) fn is_before_sending(&self) -> bool {
        match self {
            Self::Unconnected(_) | Self::Connect(_) | Self::Tls(_) | Self::Request(_) => true,
            Self::TimedOut(_) | Self::Lost(_) => false,
        }
    }
}

/// One receiver that can be sent to.
pub(crate) struct Post {
    url: Url,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    secret: Option<Secret>,
    attempt: Duration,
}

impl Post {
    /// Reads the authorities if the address needs them.
    pub(crate) fn new(
        url: Url,
        secret: Option<Secret>,
        ca: Option<&Path>,
        attempt: Duration,
    ) -> Result<Self, AlertError> {
        let tls = match url.is_tls {
            false => None,
            true => {
                let name = url.server_name();
                let name = name.map_err(|_| AlertError::Host { url: url.clone() })?;
                let roots = match ca.or_else(usual_bundle) {
                    Some(path) => authorities(path)?,
                    None => return Err(AlertError::NoBundle { url }),
                };
                Some((connector(roots)?, name))
            }
        };
        Ok(Self {
            url,
            tls,
            secret,
            attempt,
        })
    }

    /// Sends one message and gives the status of the answer.
    pub(crate) async fn send(
        &self,
        id: &str,
        now: Second,
        body: Vec<u8>,
    ) -> Result<StatusCode, PostError> {
        let request = self.request(id, now, body)?;
        let until = Instant::now() + self.attempt;
        let late = |_| PostError::Unconnected(self.attempt);
        let address = format!("{}:{}", self.url.host, self.url.port);
        let stream = timeout_at(until, TcpStream::connect(address)).await;
        let stream = stream.map_err(late)?.map_err(PostError::Connect)?;
        // Only a delay is lost if the system does not know the option.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => exchange(stream, request, until).await,
            Some((connector, name)) => {
                let secured = timeout_at(until, connector.connect(name.clone(), stream)).await;
                let secured = secured.map_err(late)?.map_err(PostError::Tls)?;
                exchange(secured, request, until).await
            }
        }
        .ok_or(PostError::TimedOut(self.attempt))?
    }

    fn request(
        &self,
        id: &str,
        now: Second,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let signature = self.secret.as_ref().map(|s| s.sign(id, now, &body));
        let mut request = Request::post(self.url.path.as_str())
            .header(header::HOST, self.url.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .header("webhook-id", id)
            .header("webhook-timestamp", now.0);
        if let Some(signature) = signature {
            request = request.header("webhook-signature", signature);
        }
        request.body(Full::from(body))
    }
}

/// The status of the answer; `None` if there was none until `until`.
async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    until: Instant,
) -> Option<Result<StatusCode, PostError>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Dropped, and with it the connection, when this function ends.
    let mut connections = JoinSet::new();
    let answer = async {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(ANSWER_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        connections.spawn(connection);
        sender.send_request(request).await
    };
    let answer: Response<_> = match timeout_at(until, answer).await.ok()? {
        Ok(answer) => answer,
        Err(error) => return Some(Err(error.into())),
    };
    let status = answer.status();
    // The status has decided; a receiver that is still talking is heard out
    // for a while, so that it does not see its answer refused.
    let _ = timeout_at(until, dropped(answer.into_body())).await;
    Some(Ok(status))
}

async fn dropped<B>(body: B)
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(Limited::new(body, ANSWER_MAX));
    while let Some(Ok(_)) = body.frame().await {}
}

fn connector(roots: RootCertStore) -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn authorities(path: &Path) -> Result<RootCertStore, AlertError> {
    let unreadable = |source| AlertError::Authorities {
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        found.push(certificate.map_err(unreadable)?);
    }
    let mut roots = RootCertStore::empty();
    // A bundle may hold some that this library does not read.
    let (added, _) = roots.add_parsable_certificates(found);
    match added {
        0 => Err(AlertError::NoAuthority {
            path: path.to_owned(),
        }),
        _ => Ok(roots),
    }
}

fn usual_bundle<'a>() -> Option<&'a Path> {
    BUNDLES.iter().map(Path::new).find(|path| path.exists())
}

/// Where systems keep the authorities that they trust.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Bytes of an answer's head, and of its body, that are taken.
const ANSWER_MAX: usize = 64 << 10;
const USER_AGENT: &str = concat!("pitser/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, expose: &str, shown: &str) {
        let url = Url::parse(text).unwrap();
        assert_eq!(
            (url.expose(), url.to_string()),
            (expose.into(), shown.into())
        );
    }

    #[test]
    fn addresses() {
        reads(
            "https://a.example/b?c=d",
            "https://a.example/b?c=d",
            "https://a.example",
        );
        reads(
            "HTTP://A.example:80",
            "http://a.example/",
            "http://a.example",
        );
        reads("http://[::1]:9/x#y", "http://[::1]:9/x", "http://[::1]:9");
        reads(
            "https://1.2.3.4:80",
            "https://1.2.3.4:80/",
            "https://1.2.3.4:80",
        );
        assert_eq!(
            Url::parse("https://[::1]/")
                .unwrap()
                .server_name()
                .unwrap()
                .to_str(),
            "::1"
        );
    }

    #[track_caller]
    fn refused(text: &str, expected: UrlError) {
        assert_eq!(Url::parse(text), Err(expected), "{text}");
    }

    #[test]
    fn no_addresses() {
        refused("ftp://a.example", UrlError::Scheme);
        refused("a.example/b", UrlError::Scheme);
        refused("https://user:pw@a.example/", UrlError::User);
        refused("https://token@a.example/", UrlError::User);
        refused("https://a.example:0/", UrlError::Port);
        refused("https://a.example:65536/", UrlError::Port);
        refused("https://a.example:/", UrlError::Port);
        refused("https:///b", UrlError::Other);
        refused("https://a b/", UrlError::Other);
        refused("https://a.example/\r\nx: y", UrlError::Other);
    }

    #[test]
    fn a_token_in_an_address_is_not_shown() {
        let url = Url::parse("https://hooks.example/services/T0KEN?k=T0KEN").unwrap();
        let shown = format!("{url} {url:?}");
        assert!(!shown.contains("T0KEN"), "{shown}");
    }
}
