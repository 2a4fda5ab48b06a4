//! The bytes' way to the server: TCP or a unix socket, in clear or under TLS.
//!
//! ```text
//! we:      length:32 = 8 ‖ code:32 = 80877103
//! server:  'S', and TLS follows; or 'N', and the session goes on in clear
//! ```
//!
//! In scope: asking for TLS, whose certificate is believed, what binds a
//! password exchange to it. Elsewhere: what is said inside (`wire`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct,
    RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc5912 as oid;
use x509_cert::der::{Decode, Reader, SliceReader, TagMode, TagNumber};
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier};

use super::config::{Roots, read, read_private};
use super::{Config, Connection, PgError, SslMode};

/// An open way to the server.
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Secured>),
}

/// What ties a password exchange to the TLS session below it, so that nobody
/// can relay a login (RFC 5929, `tls-server-end-point`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// There is no TLS.
    Clear,
    /// There is.
    Tls {
        /// The hash of the server's certificate. The signature of that may name none, as
        /// Ed25519's does not.
        hash: Option<Vec<u8>>,
        /// The certificate was verified, or nothing was asked for: a login that is not
        /// bound is none that anybody else relays, or nobody minds.
        is_tolerated: bool,
    },
}

impl Transport {
    /// Opens the way that the URL asks for, by then.
    ///
    /// # Errors
    /// [`PgError::Unreachable`], [`PgError::File`], [`PgError::NoTls`],
    /// [`PgError::Certificate`], [`PgError::Tls`], [`PgError::Lost`].
    pub(super) fn open(config: &Config, until: Instant) -> Result<(Self, Binding), PgError> {
        if let Some(directory) = config.socket() {
            let path = directory.join(format!(".s.PGSQL.{}", config.port));
            let socket =
                UnixStream::connect(path).map_err(|error| unreachable(config, error.kind()))?;
            socket.set_write_timeout(Some(Connection::PATIENCE))?;
            return Ok((Self::Unix(socket), Binding::Clear));
        }
        let mode = config.ssl_mode();
        if mode == SslMode::Disable {
            return Ok((Self::Tcp(connect(config)?), Binding::Clear));
        }
        // Our own files are in order before anybody hears of us.
        let name = server_name(config, mode)?;
        let settings = settings(config, mode)?;
        let mut socket = connect(config)?;
        if !offers_tls(&mut socket)? {
            return match mode {
                SslMode::Prefer => Ok((Self::Tcp(socket), Binding::Clear)),
                _ => Err(PgError::NoTls {
                    host: config.host.clone(),
                    mode,
                }),
            };
        }
        let secured = Secured::begin(socket, settings, name, until)
            .map_err(|error| refused(&error, &config.host))?;
        let certificate = secured.session.peer_certificates().and_then(<[_]>::first);
        let binding = Binding::Tls {
            hash: certificate.and_then(|certificate| end_point(certificate)),
            is_tolerated: mode != SslMode::Require,
        };
        Ok((Self::Tls(Box::new(secured)), binding))
    }

    /// Sends all of this.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.write_all(bytes),
            Self::Unix(socket) => socket.write_all(bytes),
            Self::Tls(secured) => secured.send(bytes),
        }
    }

    /// What has come, at least a byte; 0 at the end. [`ErrorKind::WouldBlock`]
    /// once the timeout has passed: nothing is lost then, a half-received TLS
    /// record included.
    pub(super) fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(into),
            Self::Unix(socket) => socket.read(into),
            Self::Tls(secured) => secured.receive(into),
        }
    }

    /// How long [`Transport::receive`] waits; for ever if `None`.
    pub(super) fn set_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(wait),
            Self::Unix(socket) => socket.set_read_timeout(wait),
            Self::Tls(secured) => secured.socket.set_read_timeout(wait),
        }
    }
}

/// A socket and the TLS session on it.
pub(super) struct Secured {
    socket: TcpStream,
    /// Keeps what was received of a record, and what was not yet sent of one.
    session: ClientConnection,
}

impl Secured {
    /// The handshake. The socket has a timeout for each answer.
    fn begin(
        socket: TcpStream,
        settings: ClientConfig,
        name: ServerName<'static>,
        until: Instant,
    ) -> io::Result<Self> {
        let session = ClientConnection::new(Arc::new(settings), name).map_err(invalid)?;
        let mut secured = Self { socket, session };
        secured.flush()?;
        while secured.session.is_handshaking() {
            if Instant::now() >= until {
                return Err(ErrorKind::TimedOut.into());
            }
            match secured.advance() {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(secured)
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.session.writer().write(bytes)?;
            bytes = &bytes[taken..];
            match self.flush() {
                Ok(()) => {}
                // A server that refuses our certificate says so, and goes away
                // while we already speak: its word is worth more.
                Err(error) if is_gone(error.kind()) => {
                    return Err(self.advance().err().unwrap_or(error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.session.reader().read(into) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
        self.advance()?;
        match self.session.reader().read(into) {
            // Part of a record: whether to wait for the rest is for who asks to say.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(ErrorKind::Interrupted.into())
            }
            done => done,
        }
    }

    /// Takes in what has come, waiting for it, and answers it where TLS itself
    /// must; how many bytes came.
    fn advance(&mut self) -> io::Result<usize> {
        let count = self.session.read_tls(&mut self.socket)?;
        let outcome = self.session.process_new_packets();
        // An alert to the server, if there is one to send.
        let flushed = self.flush();
        outcome.map_err(invalid)?;
        flushed?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn connect(config: &Config) -> Result<TcpStream, PgError> {
    let addresses = (config.host.as_str(), config.port)
        .to_socket_addrs()
        .map_err(|_| unreachable(config, ErrorKind::NotFound))?;
    let mut kind = ErrorKind::NotFound;
    for address in addresses {
        match TcpStream::connect_timeout(&address, config.patience()) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_write_timeout(Some(Connection::PATIENCE))?;
                socket.set_read_timeout(Some(config.patience()))?;
                return Ok(socket);
            }
            Err(error) => kind = error.kind(),
        }
    }
    Err(unreachable(config, kind))
}

fn unreachable(config: &Config, kind: ErrorKind) -> PgError {
    PgError::Unreachable {
        host: config.host.clone(),
        port: config.port,
        kind,
    }
}

/// Asks for TLS. The answer is one byte: a server says no more before it has
/// heard from us, so that more was put in by somebody else (CVE-2021-23222).
/// What comes later is TLS, or fails as such.
fn offers_tls(socket: &mut TcpStream) -> Result<bool, PgError> {
    let mut question = BytesMut::new();
    frontend::ssl_request(&mut question);
    socket.write_all(&question)?;
    let mut answer = [0; 2];
    let count = loop {
        match socket.read(&mut answer) {
            Ok(0) => return Err(PgError::Lost(ErrorKind::UnexpectedEof)),
            Ok(count) => break count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    };
    match (answer[0], count) {
        (b'S', 1) => Ok(true),
        (b'N', 1) => Ok(false),
        (b'S' | b'N', _) => Err(PgError::Protocol("bytes in clear where TLS begins")),
        // Its words are not repeated: anybody on the way may have put them there.
        (b'E', _) => Err(PgError::NotNow {
            message: "it answered the question for TLS with an error".to_owned(),
        }),
        _ => Err(PgError::Protocol("no answer to the question for TLS")),
    }
}

/// The host as certificates have it.
fn server_name(config: &Config, mode: SslMode) -> Result<ServerName<'static>, PgError> {
    match ServerName::try_from(config.host.clone()) {
        Ok(name) => Ok(name),
        Err(_) if mode == SslMode::VerifyFull => Err(PgError::Certificate {
            host: config.host.clone(),
            problem: "cannot have this host in it, which is neither a DNS name nor an address",
        }),
        // Nobody looks at it, and an address is not sent.
        Err(_) => Ok(ServerName::from(std::net::IpAddr::V4(
            Ipv4Addr::UNSPECIFIED,
        ))),
    }
}

fn settings(config: &Config, mode: SslMode) -> Result<ClientConfig, PgError> {
    let provider = ring::default_provider();
    let verifier = Verifier {
        algorithms: provider.signature_verification_algorithms,
        trusted: match mode {
            SslMode::VerifyCa | SslMode::VerifyFull => Some(Trusted::read(config.roots())?),
            _ => None,
        },
        names: mode == SslMode::VerifyFull,
    };
    let failed = |error: rustls::Error| PgError::Tls {
        problem: error.to_string(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut settings = match config.client() {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", &read("sslcert", certificate)?)?;
            let key =
                PrivateKeyDer::from_pem_slice(&read_private("sslkey", key)?).map_err(|_| {
                    unusable("sslkey", "holds no private key in PEM without a password")
                })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        unusable("sslkey", "is not the key of the certificate of sslcert")
                    }
                    _ => unusable("sslkey", "holds a key of a kind that cannot be used"),
                })?
        }
    };
    settings.alpn_protocols = vec![b"postgresql".to_vec()];
    settings.resumption = Resumption::disabled();
    Ok(settings)
}

fn unusable(option: &'static str, problem: &str) -> PgError {
    PgError::File {
        option,
        problem: problem.to_owned(),
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(option: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PgError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| unusable(option, "holds no certificate in PEM"))
}

/// Where systems keep the authorities that they trust, in one PEM file.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Arch, Gentoo
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",   // older of these
    "/etc/ssl/ca-bundle.pem",             // SUSE
    "/etc/ssl/cert.pem",                  // Alpine, macOS, OpenBSD
    "/usr/local/share/certs/ca-root-nss.crt", // FreeBSD
];

/// The certificates that vouch for others.
#[derive(Debug)]
struct Trusted {
    anchors: RootCertStore,
    /// The same, byte by byte. A server that shows one of them is its owner,
    /// authority or not: so a self-signed certificate works as its own root.
    pinned: Vec<CertificateDer<'static>>,
}

impl Trusted {
    fn read(roots: &Roots) -> Result<Self, PgError> {
        let (pem, pinning) = match roots {
            Roots::File(path) => (read("sslrootcert", path)?, true),
            Roots::System => {
                let bundle = BUNDLES
                    .into_iter()
                    .find_map(|path| read("sslrootcert", path.as_ref()).ok());
                let none = "is none that this machine has: write sslrootcert=PATH, a PEM file with \
                            the certificate of the server's authority";
                (bundle.ok_or_else(|| unusable("sslrootcert", none))?, false)
            }
        };
        let found = certificates("sslrootcert", &pem)?;
        let mut anchors = RootCertStore::empty();
        let (usable, _) = anchors.add_parsable_certificates(found.iter().cloned());
        if usable == 0 {
            return Err(unusable(
                "sslrootcert",
                "holds no certificate that can be read",
            ));
        }
        let pinned = if pinning { found } else { Vec::new() };
        Ok(Self { anchors, pinned })
    }
}

/// Decides whether a server's certificate will do.
#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// Nobody if any certificate will do.
    trusted: Option<Trusted>,
    /// Whether the host must be in it.
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(certificate)?;
        if trusted.pinned.contains(certificate) {
            in_its_time(certificate, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trusted.anchors,
                intermediates,
                now,
                self.algorithms.all,
            )
            .map_err(|error| issuer_unknown(error, certificate))?;
        }
        if self.names {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether `now` is within the certificate's time.
fn in_its_time(certificate: &[u8], now: UnixTime) -> Result<(), rustls::Error> {
    let certificate =
        Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = certificate.tbs_certificate.validity;
    let now_s = now.as_secs();
    if now_s < validity.not_before.to_unix_duration().as_secs() {
        Err(CertificateError::NotValidYet.into())
    } else if now_s > validity.not_after.to_unix_duration().as_secs() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(())
    }
}

/// What it comes to that nobody vouches for a certificate: its issuer has the
/// name of one of ours and another key; or it is self-signed, for which it may be
/// refused as an authority's.
fn issuer_unknown(error: rustls::Error, certificate: &[u8]) -> rustls::Error {
    let self_issued = || {
        Certificate::from_der(certificate).is_ok_and(|certificate| {
            certificate.tbs_certificate.issuer == certificate.tbs_certificate.subject
        })
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
            CertificateError::UnknownIssuer.into()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(_)) if self_issued() => {
            CertificateError::UnknownIssuer.into()
        }
        error => error,
    }
}

/// The certificate's hash, by the hash of its own signature, but SHA-256 for
/// MD5 and SHA-1 (RFC 5929 §4.1); `None` if that signature names none.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = Certificate::from_der(certificate).ok()?.signature_algorithm;
    let named = match algorithm.oid {
        oid::ID_RSASSA_PSS => pss_hash(&algorithm)?,
        other => other,
    };
    match named {
        oid::MD_5_WITH_RSA_ENCRYPTION
        | oid::SHA_1_WITH_RSA_ENCRYPTION
        | oid::DSA_WITH_SHA_1
        | ECDSA_WITH_SHA_1
        | oid::ID_SHA_1
        | oid::SHA_256_WITH_RSA_ENCRYPTION
        | oid::ECDSA_WITH_SHA_256
        | oid::DSA_WITH_SHA_256
        | oid::ID_SHA_256 => Some(Sha256::digest(certificate).to_vec()),
        oid::SHA_224_WITH_RSA_ENCRYPTION
        | oid::ECDSA_WITH_SHA_224
        | oid::DSA_WITH_SHA_224
        | oid::ID_SHA_224 => Some(Sha224::digest(certificate).to_vec()),
        oid::SHA_384_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_384 | oid::ID_SHA_384 => {
            Some(Sha384::digest(certificate).to_vec())
        }
        oid::SHA_512_WITH_RSA_ENCRYPTION | oid::ECDSA_WITH_SHA_512 | oid::ID_SHA_512 => {
            Some(Sha512::digest(certificate).to_vec())
        }
        _ => None,
    }
}

const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

/// The hash in the parameters of an RSASSA-PSS signature; SHA-1 if left out.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let parameters = algorithm.parameters.as_ref()?.value();
    let hash: Option<AlgorithmIdentifierOwned> = SliceReader::new(parameters)
        .ok()?
        .context_specific(TagNumber::N0, TagMode::Explicit)
        .ok()?;
    Some(hash.map_or(oid::ID_SHA_1, |hash| hash.oid))
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn is_gone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Why a session ended.
pub(super) fn lost(error: &io::Error) -> PgError {
    use AlertDescription as Alert;
    match (tls_error(error), error.kind()) {
        (
            Some(rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::DecryptError
                | Alert::AccessDenied),
            )),
            _,
        ) => PgError::Tls {
            problem: format!("it does not accept our certificate of sslcert ({alert:?})"),
        },
        (Some(error), _) => PgError::Tls {
            problem: error.to_string(),
        },
        (None, ErrorKind::WouldBlock) => PgError::Lost(ErrorKind::TimedOut),
        (None, kind) => PgError::Lost(kind),
    }
}

/// Why a handshake failed.
fn refused(error: &io::Error, host: &str) -> PgError {
    use CertificateError as Bad;
    let Some(rustls::Error::InvalidCertificate(bad)) = tls_error(error) else {
        return lost(error);
    };
    let problem = match bad {
        Bad::UnknownIssuer => {
            "was issued by nobody that we trust: add sslrootcert=PATH to the database URL, a PEM \
             file with the certificate of its authority (its own, if it is self-signed)"
        }
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
            "is not for this host: write the host as the certificate's subjectAltName has it (a \
             common name is not looked at) or, if its authority serves this database alone, add \
             sslmode=verify-ca to the database URL"
        }
        Bad::Expired | Bad::ExpiredContext { .. } => {
            "has expired: give the server a new one, or set this machine's clock"
        }
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "is not valid yet: set this machine's clock"
        }
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            "is not one for servers (extended key usage)"
        }
        Bad::BadSignature => "has a signature that does not hold",
        Bad::UnsupportedSignatureAlgorithmContext { .. }
        | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "or its authority's has a signature of a kind that is not trusted, as SHA-1"
        }
        _ => {
            "cannot be used: it must be an X.509 certificate of version 3 with a subjectAltName, \
             and no authority's"
        }
    };
    PgError::Certificate {
        host: host.to_owned(),
        problem,
    }
}

#[cfg(test)]
#[path = "../../tests/postgres/authority.rs"]
#[allow(dead_code, reason = "the tests of the whole use the rest")]
mod authority;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread::JoinHandle;

    use rustls::{ServerConfig, ServerConnection};

    use super::authority::{Authority, Issued, Life, Signing};
    use super::*;
    use crate::postgres::error::Doing;
    use crate::postgres::wire::Streamed;

    /// A server that does this with its first client; and the URL to it.
    fn served<T: Send + 'static>(
        options: &str,
        serve: impl FnOnce(TcpStream) -> T + Send + 'static,
    ) -> (Config, JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        let url = format!("postgres://a:hunter@127.0.0.1:{port}/d?{options}");
        (Config::parse(&url).unwrap(), server)
    }

    /// Hears the question for TLS, and gives this answer.
    fn answer(socket: &mut TcpStream, answer: &[u8]) {
        let mut question = [0; 8];
        socket.read_exact(&mut question).unwrap();
        assert_eq!(question, *b"\0\0\0\x08\x04\xD2\x16\x2F");
        socket.write_all(answer).unwrap();
    }

    /// Until the client has gone.
    fn drain(mut socket: TcpStream) {
        while socket.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    }

    /// The server's side of a session.
    struct Served {
        socket: TcpStream,
        session: ServerConnection,
    }

    impl Served {
        fn accept(mut socket: TcpStream, issued: Issued) -> Self {
            answer(&mut socket, b"S");
            let key = PrivateKeyDer::try_from(issued.key).unwrap();
            let provider = Arc::new(ring::default_provider());
            let settings = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![issued.certificate.into()], key)
                .unwrap();
            let session = ServerConnection::new(Arc::new(settings)).unwrap();
            Self { socket, session }
        }

        fn stream(&mut self) -> rustls::Stream<'_, ServerConnection, TcpStream> {
            rustls::Stream::new(&mut self.session, &mut self.socket)
        }

        /// Lets the client in, whoever it is.
        fn let_in(&mut self) {
            let mut length = [0; 4];
            self.stream().read_exact(&mut length).unwrap();
            let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
            self.stream().read_exact(&mut startup).unwrap();
            let said = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
            self.stream().write_all(said).unwrap();
        }

        /// What these bytes are on the wire.
        fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
            let mut sealed = Vec::new();
            self.session.writer().write_all(bytes).unwrap();
            while self.session.wants_write() {
                self.session.write_tls(&mut sealed).unwrap();
            }
            sealed
        }
    }

    fn issued() -> Issued {
        Issued::self_signed(&["127.0.0.1"], Life::Now)
    }

    fn next(connection: &mut Connection, wait: Duration) -> Result<Option<u64>, PgError> {
        let doing = Doing::Streaming {
            slot: "s",
            publication: "p",
        };
        Ok(match connection.streamed(wait, doing)? {
            Streamed::Keepalive { end, .. } => Some(end.0),
            Streamed::Quiet => None,
            Streamed::Data { .. } => panic!("there is no data"),
        })
    }

    /// A keepalive, in `CopyData`.
    fn keepalive(end: u64) -> Vec<u8> {
        let body = [&b"k"[..], &end.to_be_bytes(), &[0; 9]].concat();
        [&b"d\0\0\0\x16"[..], &body].concat()
    }

    #[test]
    fn half_a_record_is_kept_until_the_rest_comes() {
        let (sent, halves) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (config, server) = served("sslmode=require", move |socket| {
            let mut served = Served::accept(socket, issued());
            served.let_in();
            for end in 1.. {
                let sealed = served.seal(&keepalive(end));
                // Within the record's header, its content and its last byte.
                let cut = match end {
                    1 => 1,
                    2 => 5,
                    3 => 20,
                    4 => sealed.len() - 1,
                    _ => return drain(served.socket),
                };
                served.socket.write_all(&sealed[..cut]).unwrap();
                sent.send(()).unwrap();
                may_go_on.recv().unwrap();
                served.socket.write_all(&sealed[cut..]).unwrap();
            }
        });
        let mut connection = Connection::open(&config).unwrap();
        for end in 1..=4 {
            halves.recv().unwrap();
            for _ in 0..2 {
                let nothing = next(&mut connection, Duration::from_millis(1)).unwrap();
                assert_eq!(nothing, None, "half a record says nothing");
            }
            go_on.send(()).unwrap();
            let whole = next(&mut connection, Connection::PATIENCE).unwrap();
            assert_eq!(whole, Some(end));
        }
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn many_messages_in_few_records_and_one_message_in_many() {
        const COUNT: u64 = 5000;
        let (config, server) = served("sslmode=require", |socket| {
            let mut served = Served::accept(socket, issued());
            served.let_in();
            let said: Vec<u8> = (1..=COUNT).flat_map(keepalive).collect();
            served.stream().write_all(&said).unwrap();
            // A query as long as many records; then the farewell.
            let mut heard = vec![0; 5 + (1 << 20) + 1];
            served.stream().read_exact(&mut heard).unwrap();
            assert_eq!((heard[0], heard[4 + (1 << 20)]), (b'Q', b'x'));
            served.stream().write_all(b"Z\0\0\0\x05I").unwrap();
            drain(served.socket);
        });
        let mut connection = Connection::open(&config).unwrap();
        for end in 1..=COUNT {
            let told = next(&mut connection, Connection::PATIENCE).unwrap();
            assert_eq!(told, Some(end));
        }
        connection.query(&"x".repeat(1 << 20)).unwrap();
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn an_end_is_an_end_whether_announced_or_not() {
        for announced in [true, false] {
            let (config, server) = served("sslmode=require", move |socket| {
                let mut served = Served::accept(socket, issued());
                served.let_in();
                if announced {
                    served.session.send_close_notify();
                    let sealed = served.seal(b"");
                    served.socket.write_all(&sealed).unwrap();
                }
                served.socket.shutdown(std::net::Shutdown::Write).unwrap();
                drain(served.socket);
            });
            let mut connection = Connection::open(&config).unwrap();
            let end = next(&mut connection, Connection::PATIENCE).unwrap_err();
            assert!(
                matches!(end, PgError::Lost(ErrorKind::UnexpectedEof)),
                "{end}"
            );
            drop(connection);
            server.join().unwrap();
        }
    }

    #[test]
    fn what_is_changed_on_the_way_ends_the_session() {
        let (opened, is_open) = mpsc::channel();
        let (config, server) = served("sslmode=require", move |socket| {
            let mut served = Served::accept(socket, issued());
            served.let_in();
            is_open.recv().unwrap();
            let mut sealed = served.seal(&keepalive(1));
            *sealed.last_mut().unwrap() ^= 1;
            served.socket.write_all(&sealed).unwrap();
            drain(served.socket);
        });
        let mut connection = Connection::open(&config).unwrap();
        opened.send(()).unwrap();
        let end = next(&mut connection, Connection::PATIENCE).unwrap_err();
        assert!(matches!(end, PgError::Tls { .. }), "{end}");
        drop(connection);
        server.join().unwrap();
    }

    /// What comes of a server that answers the question for TLS like this.
    fn answered(options: &str, said: &'static [u8]) -> PgError {
        let (config, server) = served(options, |mut socket| {
            answer(&mut socket, said);
            drain(socket);
        });
        let error = Connection::open(&config).unwrap_err();
        server.join().unwrap();
        error
    }

    /// CVE-2021-23222: what somebody puts between the server's yes and the
    /// handshake was once taken for the first words of the protected session.
    #[test]
    fn nothing_said_in_clear_counts_as_said_under_tls() {
        const LET_IN: &[u8] = b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        for options in ["sslmode=prefer", "sslmode=require"] {
            let error = answered(options, LET_IN);
            assert!(matches!(error, PgError::Protocol(_)), "{error}");
        }
        // Later, in answer to our first words: that is no handshake.
        let (config, server) = served("sslmode=prefer", |mut socket| {
            answer(&mut socket, b"S");
            socket.read_exact(&mut [0; 1]).unwrap();
            socket.write_all(&LET_IN[1..]).unwrap();
            drain(socket);
        });
        let error = Connection::open(&config).unwrap_err();
        assert!(matches!(error, PgError::Tls { .. }), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn a_server_answers_yes_or_no() {
        let error = answered("sslmode=require", b"N");
        assert!(matches!(error, PgError::NoTls { .. }), "{error}");
        for wrong in [&b"H"[..], b"\0", b"NN"] {
            let error = answered("sslmode=prefer", wrong);
            assert!(matches!(error, PgError::Protocol(_)), "{error}");
        }
        let error = answered("sslmode=prefer", b"Esorry");
        assert!(
            error.is_passing() && !error.to_string().contains("sorry"),
            "{error}"
        );
    }

    #[test]
    fn a_server_that_falls_silent_is_given_up() {
        for said in [&b""[..], b"S"] {
            let error = answered("sslmode=require&connect_timeout=1", said);
            assert!(
                matches!(error, PgError::Lost(ErrorKind::TimedOut)),
                "{error}"
            );
        }
    }

    #[test]
    fn certificates_are_hashed_as_they_are_signed() {
        let issued = |signing| {
            let authority = Authority::new("Ward", signing);
            authority.issue(&["db.example"], Life::Now).certificate
        };
        let certificate = issued(Signing::P256);
        assert_eq!(
            end_point(&certificate).unwrap(),
            Sha256::digest(&certificate)[..]
        );
        let certificate = issued(Signing::P384);
        assert_eq!(
            end_point(&certificate).unwrap(),
            Sha384::digest(&certificate)[..]
        );
        assert_eq!(end_point(&issued(Signing::Ed25519)), None);
        assert_eq!(end_point(b""), None);
        assert_eq!(end_point(&certificate[..certificate.len() - 1]), None);
    }

    #[test]
    fn pss_signatures_name_their_hash_inside() {
        let hash = |der: &[u8]| {
            let algorithm = AlgorithmIdentifierOwned::from_der(der).unwrap();
            assert_eq!(algorithm.oid, oid::ID_RSASSA_PSS);
            pss_hash(&algorithm)
        };
        // id-RSASSA-PSS, [0] sha512, [1] mgf1 with sha512, [2] 64
        let sha512 = b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\
            \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\
            \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
            \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\
            \xa2\x03\x02\x01\x40";
        assert_eq!(hash(sha512), Some(oid::ID_SHA_512));
        let by_default = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x00";
        assert_eq!(hash(by_default), Some(oid::ID_SHA_1));
        let none = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
        assert_eq!(hash(none), None);
    }

    #[test]
    fn hosts_that_no_certificate_can_name() {
        let named = |url: &str, mode| server_name(&Config::parse(url).unwrap(), mode);
        assert!(named("postgres://a@db_1", SslMode::VerifyFull).is_ok());
        assert!(named("postgres://a@[::1]", SslMode::VerifyFull).is_ok());
        let odd = "postgres://a@not%20a%20name?sslmode=verify-full";
        assert!(matches!(
            named(odd, SslMode::VerifyFull),
            Err(PgError::Certificate { .. })
        ));
        assert!(named(odd, SslMode::Require).is_ok());
    }
}
