//! Where a service is and who asks: `ksi+tcp://user:key@host:port`.
//!
//! | scheme                    | how PDUs travel                     | port, if none is given |
//! |---------------------------|-------------------------------------|------------------------|
//! | `ksi+tcp`                 | one after the other on a connection | 3332                   |
//! | `ksi+http`, `http`, `ksi` | one a POST                          | 80                     |
//! | `ksi+https`, `https`      | one a POST, under TLS               | 443                    |
//! | `file`                    | answers are in a file already       |                        |
//!
//! User and key may be percent-encoded, and must be where they hold one of
//! `: @ / ? # %` or a byte that is no printable ASCII. So must paths of files
//! that hold a `%`. An IPv6 address stands in brackets.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::http::uri::PathAndQuery;
use zeroize::Zeroizing;

/// The shared secret of a user. `Debug` hides it; reading takes [`Key::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// A key of these bytes (the UTF-8 bytes of the secret, as services use it).
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How PDUs travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// PDUs one after the other on a TCP connection that stays open.
    Tcp,
    /// One POST for each PDU.
    Http,
    /// One POST for each PDU, under TLS.
    Https,
    /// Nothing is sent: the answers are in a file.
    File,
}

/// A service, and the user and key to talk to it with.
///
/// `Display` and `Debug` show neither the key nor, in `Display`, the user or
/// what follows a `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    transport: Transport,
    place: Place,
    user: String,
    key: Key,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Net {
        host: String,
        port: u16,
        /// Path and query, if the address has them.
        path: Option<String>,
    },
    File(PathBuf),
}

impl Endpoint {
    /// Reads `scheme://[user:key@]host[:port][/path]` or `file://[user:key@]path`.
    ///
    /// # Errors
    /// [`EndpointError`] says which part is wrong; it never repeats the key.
    pub fn parse(uri: &str) -> Result<Self, EndpointError> {
        if let Some(rest) = strip_file_scheme(uri) {
            return Self::parse_file(rest);
        }
        let (scheme, rest) = uri.split_once("://").ok_or(EndpointError::Scheme(None))?;
        let transport = transport(scheme)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (credentials, address) = split_credentials(authority);
        if credentials.is_none() && tail.contains('@') && address.contains(':') {
            return Err(EndpointError::BareSlash);
        }
        let (user, key) = read_credentials(credentials)?;
        let (host, port) = read_address(address)?;
        let port = port.unwrap_or(match transport {
            Transport::Tcp => 3332,
            Transport::Https => 443,
            _ => 80,
        });
        let path = read_path(tail)?;
        Ok(Self {
            transport,
            place: Place::Net { host, port, path },
            user,
            key,
        })
    }

    fn parse_file(rest: &str) -> Result<Self, EndpointError> {
        // `file:answers.tlv` and `file://answers.tlv` are relative paths.
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (authority, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (credentials, path) = match split_credentials(authority) {
            (Some(credentials), _) => (Some(credentials), &rest[credentials.len() + 1..]),
            (None, _) => (None, rest),
        };
        let (user, key) = read_credentials(credentials)?;
        let path = decode(path).ok_or(EndpointError::BadPath)?;
        let path = String::from_utf8(path).map_err(|_| EndpointError::BadPath)?;
        if path.is_empty() {
            return Err(EndpointError::NoPath);
        }
        Ok(Self {
            transport: Transport::File,
            place: Place::File(path.into()),
            user,
            key,
        })
    }

    /// The same service for another user, as options beside the URI demand.
    #[must_use]
    pub fn with_credentials(mut self, user: impl Into<String>, key: Key) -> Self {
        self.user = user.into();
        self.key = key;
        self
    }

    /// How PDUs travel.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Host name or address, without brackets; empty for a file.
    pub fn host(&self) -> &str {
        match &self.place {
            Place::Net { host, .. } => host,
            Place::File(_) => "",
        }
    }

    /// Path and query for HTTP, if the address has them.
    pub fn path(&self) -> Option<&str> {
        match &self.place {
            Place::Net { path, .. } => path.as_deref(),
            Place::File(_) => None,
        }
    }

    /// The file with the answers.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::Net { .. } => None,
            Place::File(path) => Some(path),
        }
    }

    /// Login id; empty if none was given.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The user's secret; empty if none was given.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// `host:port`, with brackets where IPv6 needs them; or the file's path.
    pub fn address(&self) -> String {
        match &self.place {
            Place::Net { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Net { host, port, .. } => format!("{host}:{port}"),
            Place::File(path) => path.display().to_string(),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(uri: &str) -> Result<Self, EndpointError> {
        Self::parse(uri)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Tcp => "ksi+tcp",
            Transport::Http => "http",
            Transport::Https => "https",
            Transport::File => "file",
        };
        // A query may hold a token.
        let path = self.path().and_then(|path| path.split('?').next());
        write!(f, "{scheme}://{}{}", self.address(), path.unwrap_or(""))
    }
}

/// Which part of a service address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Missing or unknown scheme.
    #[error(
        "{}; use ksi+tcp://, http://, https://, ksi+http://, ksi+https:// or file://",
        match .0 {
            Some(scheme) => format!("this program does not speak {scheme}://"),
            None => "the address has no scheme".to_owned(),
        }
    )]
    Scheme(Option<String>),
    /// PDUs on a TCP connection carry no files.
    #[error(
        "a publications file comes over http://, https:// or from file://, not over ksi+tcp://"
    )]
    NoFiles,
    /// No host.
    #[error("the address names no host")]
    NoHost,
    /// A `file` address without a path.
    #[error("the address names no file: write file:///path/of/it")]
    NoPath,
    /// The port is no number in 1..=65535.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// `[` without `]`.
    #[error("the brackets around the IPv6 address do not match")]
    BadBrackets,
    /// What stands in brackets is no IPv6 address.
    #[error("what stands in brackets is no IPv6 address such as [2001:db8::1]")]
    BadIpv6,
    /// An IPv6 address without brackets.
    #[error("the host has several colons: an IPv6 address stands in brackets, as in [::1]:3332")]
    BareIpv6,
    /// A user without a key.
    #[error("the address has a user but no key; write user:key@host")]
    NoKey,
    /// A key without a user.
    #[error("the address has a key but no user; write user:key@host")]
    NoUser,
    /// `%` not followed by two hex digits, or no UTF-8.
    #[error("the user has a bad percent-encoding; write % itself as %25")]
    BadUser,
    /// `%` not followed by two hex digits.
    #[error("the key has a bad percent-encoding; write % itself as %25")]
    BadKey,
    /// A `/`, `?` or `#` before the `@`.
    #[error("the user or key holds a bare / ? or #; write them as %2F, %3F and %23")]
    BareSlash,
    /// A space or control character in the host.
    #[error("the host has a character that does not belong there")]
    BadHost,
    /// A space, control character or bad percent-encoding in the path.
    #[error("the path has a character that does not belong there; write a space as %20")]
    BadPath,
    /// Too few or too many services.
    #[error("{0} services are named; it must be one to three")]
    Count(usize),
    /// The same service more than once.
    #[error("{0} is named twice; every service must be another one")]
    Twice(String),
}

fn strip_file_scheme(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_at_checked(5)?;
    scheme.eq_ignore_ascii_case("file:").then_some(rest)
}

fn transport(scheme: &str) -> Result<Transport, EndpointError> {
    match scheme.to_ascii_lowercase().as_str() {
        "ksi+tcp" => Ok(Transport::Tcp),
        "ksi+http" | "http" | "ksi" => Ok(Transport::Http),
        "ksi+https" | "https" => Ok(Transport::Https),
        other => {
            // What is no scheme may be a key that lost its place: it is not repeated.
            let is_scheme = other
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            Err(EndpointError::Scheme(is_scheme.then(|| other.to_owned())))
        }
    }
}

/// A key may hold a bare `@`: the last one ends it.
fn split_credentials(authority: &str) -> (Option<&str>, &str) {
    match authority.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, authority),
    }
}

fn read_credentials(text: Option<&str>) -> Result<(String, Key), EndpointError> {
    let Some(text) = text else {
        return Ok((String::new(), Key::new([])));
    };
    let (user, key) = text.split_once(':').ok_or(EndpointError::NoKey)?;
    if user.is_empty() {
        return Err(EndpointError::NoUser);
    }
    let user = decode(user).and_then(|user| String::from_utf8(user).ok());
    let key = decode(key).ok_or(EndpointError::BadKey)?;
    Ok((user.ok_or(EndpointError::BadUser)?, Key::new(key)))
}

/// Resolves percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(bytes.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        decoded.push(digit()? << 4 | digit()?);
    }
    Some(decoded)
}

fn read_address(text: &str) -> Result<(String, Option<u16>), EndpointError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or(EndpointError::BadBrackets)?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(EndpointError::BadIpv6);
            }
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if tail.is_empty() => (host, None),
                None => return Err(EndpointError::BadBrackets),
            }
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(EndpointError::BareIpv6),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(EndpointError::NoHost);
    }
    if !host.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(EndpointError::BadHost);
    }
    let port = match port {
        None => None,
        Some(digits) => match digits.parse() {
            Ok(0) | Err(_) => return Err(EndpointError::BadPort),
            Ok(port) => Some(port),
        },
    };
    Ok((host.to_owned(), port))
}

/// Path and query, without what follows a `#`.
fn read_path(tail: &str) -> Result<Option<String>, EndpointError> {
    let path = tail.split('#').next().unwrap_or_default();
    if path.is_empty() {
        return Ok(None);
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("{slash}{path}");
    match path.is_ascii() && PathAndQuery::try_from(path.as_str()).is_ok() {
        true => Ok(Some(path)),
        false => Err(EndpointError::BadPath),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, shown: &str, path: Option<&str>, user: &str, key: &[u8]) {
        let endpoint = Endpoint::parse(uri).unwrap();
        assert_eq!(endpoint.to_string(), shown, "{uri}");
        assert_eq!(endpoint.path(), path, "{uri}");
        assert_eq!(endpoint.user(), user, "{uri}");
        assert_eq!(endpoint.key().expose(), key, "{uri}");
    }

    fn refuse(uri: &str, expected: EndpointError) {
        assert_eq!(Endpoint::parse(uri).unwrap_err(), expected, "{uri}");
    }

    #[test]
    fn reads_tcp() {
        let anon = "ksi+tcp://anon:anon@localhost:3332";
        check(anon, "ksi+tcp://localhost:3332", None, "anon", b"anon");
        check("KSI+TCP://a:@h:1", "ksi+tcp://h:1", None, "a", b"");
        check("ksi+tcp://h", "ksi+tcp://h:3332", None, "", b"");
    }

    #[test]
    fn reads_http() {
        let path = Some("/gt-signingservice");
        let uri = "http://u:k@h:8080/gt-signingservice";
        check(uri, "http://h:8080/gt-signingservice", path, "u", b"k");
        let uri = "ksi+http://u:k@h/a?b=c#d";
        check(uri, "http://h:80/a", Some("/a?b=c"), "u", b"k");
        check("ksi://u:k@h?b", "http://h:80/", Some("/?b"), "u", b"k");
        check("ksi://h#d", "http://h:80", None, "", b"");
    }

    #[test]
    fn reads_https() {
        check("https://u:k@h", "https://h:443", None, "u", b"k");
        let uri = "KSI+HTTPS://h:8443/p";
        check(uri, "https://h:8443/p", Some("/p"), "", b"");
    }

    #[test]
    fn reads_ipv6() {
        let uri = "ksi+tcp://u:k@[::1]:3333";
        check(uri, "ksi+tcp://[::1]:3333", None, "u", b"k");
        check("http://[fe80::1]", "http://[fe80::1]:80", None, "", b"");
    }

    #[test]
    fn reads_files() {
        for (uri, path) in [
            ("file:///tmp/a%20b.tlv", "/tmp/a b.tlv"),
            ("file:/tmp/a", "/tmp/a"),
            ("file://a/b", "a/b"),
            ("FILE:a", "a"),
            ("file://u:k@/tmp/a", "/tmp/a"),
            ("file:///tmp/u:k@a", "/tmp/u:k@a"),
        ] {
            let endpoint = Endpoint::parse(uri).unwrap();
            assert_eq!(endpoint.file(), Some(Path::new(path)), "{uri}");
        }
        assert_eq!(Endpoint::parse("file://u:k@/a").unwrap().user(), "u");
    }

    #[test]
    fn decodes_user_and_key() {
        let uri = "ksi+tcp://a%40b:%2F%3a%25p@ss:w%00@h:1";
        check(uri, "ksi+tcp://h:1", None, "a@b", b"/:%p@ss:w\0");
    }

    #[test]
    fn refuses_with_the_reason() {
        refuse("localhost:3332", EndpointError::Scheme(None));
        refuse("ftp://h", EndpointError::Scheme(Some("ftp".to_owned())));
        refuse("u:hunter2@h://x", EndpointError::Scheme(None));
        refuse("ksi+tcp://u:k@h:0", EndpointError::BadPort);
        refuse("ksi+tcp://u:k@h:70000", EndpointError::BadPort);
        refuse("ksi+tcp://u:k@h:", EndpointError::BadPort);
        refuse("ksi+tcp://u:k@:1", EndpointError::NoHost);
        refuse("https:///path", EndpointError::NoHost);
        refuse("ksi+tcp://u@h:1", EndpointError::NoKey);
        refuse("ksi+tcp://:k@h:1", EndpointError::NoUser);
        refuse("ksi+tcp://u:%2@h:1", EndpointError::BadKey);
        refuse("ksi+tcp://%ff:k@h:1", EndpointError::BadUser);
        refuse("ksi+tcp://u:k/1@h:1", EndpointError::BareSlash);
        refuse("ksi+tcp://u:k@[::1:1", EndpointError::BadBrackets);
        refuse("ksi+tcp://u:k@[::1]1", EndpointError::BadBrackets);
        refuse("ksi+tcp://u:k@[h]:1", EndpointError::BadIpv6);
        refuse("ksi+tcp://u:k@::1:3332", EndpointError::BareIpv6);
        refuse("http://a b/", EndpointError::BadHost);
        refuse("http://a/b c", EndpointError::BadPath);
        refuse("http://a/<b>", EndpointError::BadPath);
        refuse("http://a/ö", EndpointError::BadPath);
        refuse("file://", EndpointError::NoPath);
        refuse("file:///a%2", EndpointError::BadPath);
    }

    #[test]
    fn never_shows_the_key() {
        for uri in ["ksi+tcp://anon:hunter2@h:1", "https://h/?token=hunter2"] {
            let endpoint = Endpoint::parse(uri).unwrap();
            assert!(!endpoint.to_string().contains("hunter2"));
        }
        let endpoint = Endpoint::parse("ksi+tcp://anon:hunter2@h:1").unwrap();
        assert!(!format!("{endpoint:?}").contains("hunter2"));
    }
}
