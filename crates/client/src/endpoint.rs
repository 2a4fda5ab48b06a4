//! Where a service is and who asks: `ksi+tcp://user:key@host:port`.
//!
//! | scheme             | transport                        | port if none is given |
//! |--------------------|----------------------------------|-----------------------|
//! | `ksi+tcp`          | PDUs on one TCP connection       | must be given         |
//! | `ksi+http`, `http`, `ksi` | one PDU a POST            | 80                    |
//!
//! User and key may be percent-encoded, and must be where they hold one of
//! `: @ / ? # %` or a byte that is no printable ASCII.

use std::fmt;
use std::str::FromStr;

/// The shared secret of a user. `Debug` hides it; reading takes [`Key::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key of these bytes (the UTF-8 bytes of the secret, as services use it).
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
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
}

/// A service, and the user and key to talk to it with.
///
/// `Display` and `Debug` show neither the key nor, in `Display`, the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    transport: Transport,
    host: String,
    port: u16,
    /// Path and query of an HTTP endpoint; "/" if none was given.
    path: String,
    user: String,
    key: Key,
}

impl Endpoint {
    /// Reads `scheme://[user:key@]host[:port][/path]`.
    ///
    /// # Errors
    /// [`EndpointError`] says which part is wrong; it never repeats the key.
    pub fn parse(uri: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = uri.split_once("://").ok_or(EndpointError::Scheme(None))?;
        let transport = transport(scheme)?;
        let (authority, path) = split_path(rest);
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority),
        };
        let (user, key) = read_credentials(credentials)?;
        let (host, port) = read_address(address)?;
        let port = match (port, transport) {
            (Some(port), _) => port,
            (None, Transport::Http) => 80,
            (None, Transport::Tcp) => return Err(EndpointError::NoPort),
        };
        Ok(Self {
            transport,
            host,
            port,
            path,
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

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query for HTTP.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Login id; empty if none was given.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The user's secret; empty if none was given.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// `host:port`, with brackets where IPv6 needs them.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
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
        match self.transport {
            Transport::Tcp => write!(f, "ksi+tcp://{}", self.address()),
            Transport::Http => write!(f, "http://{}{}", self.address(), self.path),
        }
    }
}

/// Which part of a service address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Missing or unknown scheme.
    #[error("{}; use ksi+tcp://, ksi+http:// or http://", match .0 {
        Some(scheme) => format!("this program does not speak {scheme}://"),
        None => "the address has no scheme".to_owned(),
    })]
    Scheme(Option<String>),
    /// No host.
    #[error("the address names no host")]
    NoHost,
    /// `ksi+tcp` without a port.
    #[error("a ksi+tcp address needs a port: ksi+tcp://user:key@host:3332")]
    NoPort,
    /// The port is no number in 1..=65535.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// `[` without `]`.
    #[error("the brackets around the IPv6 address do not match")]
    BadBrackets,
    /// A user without a key or the other way round.
    #[error("the address has a user but no key; write user:key@host")]
    NoKey,
    /// `%` not followed by two hex digits, or a user that is not UTF-8.
    #[error("user or key has a bad percent-encoding; write % itself as %25")]
    BadEncoding,
    /// A space or control character in host or path.
    #[error("host or path has a character that does not belong there")]
    BadCharacter,
}

fn transport(scheme: &str) -> Result<Transport, EndpointError> {
    match scheme.to_ascii_lowercase().as_str() {
        "ksi+tcp" => Ok(Transport::Tcp),
        "ksi+http" | "http" | "ksi" => Ok(Transport::Http),
        other => Err(EndpointError::Scheme(Some(other.to_owned()))),
    }
}

fn split_path(rest: &str) -> (&str, String) {
    // A key may hold no bare '/', so the first one ends the authority.
    match rest.find(['/', '?', '#']) {
        None => (rest, "/".to_owned()),
        Some(at) => {
            let (authority, tail) = rest.split_at(at);
            let path = tail.split('#').next().unwrap_or_default();
            let slash = if path.starts_with('/') { "" } else { "/" };
            (authority, format!("{slash}{path}"))
        }
    }
}

fn read_credentials(text: Option<&str>) -> Result<(String, Key), EndpointError> {
    let Some(text) = text else {
        return Ok((String::new(), Key::new([])));
    };
    let (user, key) = text.split_once(':').ok_or(EndpointError::NoKey)?;
    let user = String::from_utf8(decode(user)?).map_err(|_| EndpointError::BadEncoding)?;
    if user.is_empty() {
        return Err(EndpointError::NoKey);
    }
    Ok((user, Key::new(decode(key)?)))
}

fn decode(text: &str) -> Result<Vec<u8>, EndpointError> {
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
        match (digit(), digit()) {
            (Some(high), Some(low)) => decoded.push(high << 4 | low),
            _ => return Err(EndpointError::BadEncoding),
        }
    }
    Ok(decoded)
}

fn read_address(text: &str) -> Result<(String, Option<u16>), EndpointError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or(EndpointError::BadBrackets)?;
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if tail.is_empty() => (host, None),
                None => return Err(EndpointError::BadBrackets),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(EndpointError::NoHost);
    }
    if !host.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(EndpointError::BadCharacter);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, address: &str, path: &str, user: &str, key: &[u8]) {
        let endpoint = Endpoint::parse(uri).unwrap();
        assert_eq!(endpoint.address(), address, "{uri}");
        assert_eq!(endpoint.path(), path, "{uri}");
        assert_eq!(endpoint.user(), user, "{uri}");
        assert_eq!(endpoint.key().expose(), key, "{uri}");
    }

    fn refuse(uri: &str, expected: EndpointError) {
        assert_eq!(Endpoint::parse(uri).unwrap_err(), expected, "{uri}");
    }

    #[test]
    fn reads_tcp() {
        check(
            "ksi+tcp://anon:anon@localhost:3332",
            "localhost:3332",
            "/",
            "anon",
            b"anon",
        );
        check("KSI+TCP://a:@h:1", "h:1", "/", "a", b"");
        check("ksi+tcp://h:1", "h:1", "/", "", b"");
    }

    #[test]
    fn reads_http() {
        let path = "/gt-signingservice";
        check(
            "http://u:k@h:8080/gt-signingservice",
            "h:8080",
            path,
            "u",
            b"k",
        );
        check("ksi+http://u:k@h/a?b=c#d", "h:80", "/a?b=c", "u", b"k");
        check("ksi://u:k@h?b", "h:80", "/?b", "u", b"k");
    }

    #[test]
    fn reads_ipv6() {
        check("ksi+tcp://u:k@[::1]:3332", "[::1]:3332", "/", "u", b"k");
        check("http://[fe80::1]", "[fe80::1]:80", "/", "", b"");
    }

    #[test]
    fn decodes_user_and_key() {
        check(
            "ksi+tcp://a%40b:%2F%3a%25p@ss:w%00@h:1",
            "h:1",
            "/",
            "a@b",
            b"/:%p@ss:w\0",
        );
    }

    #[test]
    fn refuses_with_the_reason() {
        refuse("localhost:3332", EndpointError::Scheme(None));
        refuse("https://h", EndpointError::Scheme(Some("https".to_owned())));
        refuse("ksi+tcp://u:k@h", EndpointError::NoPort);
        refuse("ksi+tcp://u:k@h:0", EndpointError::BadPort);
        refuse("ksi+tcp://u:k@h:70000", EndpointError::BadPort);
        refuse("ksi+tcp://u:k@:1", EndpointError::NoHost);
        refuse("ksi+tcp://u@h:1", EndpointError::NoKey);
        refuse("ksi+tcp://u:%2@h:1", EndpointError::BadEncoding);
        refuse("ksi+tcp://%ff:k@h:1", EndpointError::BadEncoding);
        refuse("ksi+tcp://u:k@[::1:1", EndpointError::BadBrackets);
        refuse("http://a b/", EndpointError::BadCharacter);
    }

    #[test]
    fn never_shows_the_key() {
        let endpoint = Endpoint::parse("ksi+tcp://anon:hunter2@h:1").unwrap();
        assert!(!format!("{endpoint:?}{endpoint}").contains("hunter2"));
    }
}
