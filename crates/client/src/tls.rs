//! Who may vouch for an HTTPS service, and what is wrong when nobody does.
//!
//! In scope: the authorities that are believed, certificates that are their own
//! authority, the words for each failure.
//! Elsewhere: what is said inside (`http`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::{self, Decode};
use x509_cert::ext::pkix::BasicConstraints;

use crate::answer::Fault;

/// The authorities that may vouch for HTTPS services.
#[derive(Clone, Default)]
pub struct Roots(Option<Arc<Pinned>>);

/// Certificates that the caller has chosen.
struct Pinned {
    /// Those of authorities, by their own word (`cA`): others vouch for nobody else.
    anchors: RootCertStore,
    /// All of them, byte by byte. A server that shows one of them is its owner,
    /// authority or not: so a self-signed certificate works as its own root.
    certificates: Vec<CertificateDer<'static>>,
}

/// Why a file names no authorities.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It holds no certificate.
    #[error("{} holds no certificate in PEM that can be used", path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

impl Roots {
    /// Those that this machine trusts, or that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// Those of a PEM file alone; also certificates of services themselves, which
    /// are then believed to be theirs.
    ///
    /// # Errors
    /// [`RootsError`].
    pub fn read(path: &Path) -> Result<Self, RootsError> {
        let pem = std::fs::read(path).map_err(|source| RootsError::Read {
            path: path.to_owned(),
            source,
        })?;
        let none = || RootsError::None {
            path: path.to_owned(),
        };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = found.map_err(|_| none())?;
        let mut anchors = RootCertStore::empty();
        let mut can_be_read = false;
        for certificate in &certificates {
            // Bundles have one or the other that nobody can read.
            if let Ok(is_authority) = is_authority(certificate) {
                can_be_read = true;
                let authority = is_authority.then(|| certificate.clone());
                anchors.add_parsable_certificates(authority);
            }
        }
        if !can_be_read {
            return Err(none());
        }
        Ok(Self(Some(Arc::new(Pinned {
            anchors,
            certificates,
        }))))
    }

    /// Reads the machine's authorities where they are asked for.
    fn connector(&self) -> Result<TlsConnector, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let mut config = match &self.0 {
            None => builder
                .with_root_certificates(system()?)
                .with_no_client_auth(),
            Some(pinned) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Verifier::new(pinned, &provider)?))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Roots(system)"),
            Some(pinned) => write!(f, "Roots({} of a file)", pinned.certificates.len()),
        }
    }
}

fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err("this machine has no certificate authorities".to_owned()),
        _ => Ok(roots),
    }
}

/// How to make connections to one host secure.
#[derive(Debug)]
pub(crate) struct Tls {
    host: String,
    roots: Roots,
    connector: OnceCell<Connector>,
}

struct Connector(TlsConnector);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector(..)")
    }
}

impl Tls {
    pub(crate) fn new(host: &str, roots: Roots) -> Self {
        Self {
            host: host.to_owned(),
            roots,
            connector: OnceCell::new(),
        }
    }

    /// The handshake. Whoever waits for it sets the limit.
    pub(crate) async fn secure(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Fault> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| Fault::Tls {
            problem: "no certificate can be made out to this host".to_owned(),
            advice: "write its name in the DNS, or its address",
        })?;
        let roots = self.roots.clone();
        let make = || async move {
            // The machine's authorities are some hundred files.
            let made = tokio::task::spawn_blocking(move || roots.connector()).await;
            let made = made.unwrap_or_else(|e| Err(e.to_string()));
            made.map(Connector)
        };
        let connector = self.connector.get_or_try_init(make).await;
        let Connector(connector) = connector.map_err(|problem| Fault::Tls {
            problem,
            advice: "name a file with the service's authority: --tls-ca, or `ca` in the configuration",
        })?;
        let secured = connector.connect(name, stream).await;
        secured.map_err(|e| explain(&e, &self.host))
    }
}

/// Believes what the pinned authorities vouch for, and what is pinned itself.
#[derive(Debug)]
struct Verifier {
    /// Where there are any.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    certificates: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(pinned: &Pinned, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let authorities = match pinned.anchors.is_empty() {
            true => None,
            false => {
                let (roots, provider) = (Arc::new(pinned.anchors.clone()), Arc::clone(provider));
                let built = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                Some(built.map_err(|e| e.to_string())?)
            }
        };
        Ok(Self {
            authorities,
            certificates: pinned.certificates.clone(),
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.certificates.contains(certificate) {
            return match &self.authorities {
                Some(authorities) => {
                    authorities.verify_server_cert(certificate, intermediates, name, ocsp, now)
                }
                None => Err(CertificateError::UnknownIssuer.into()),
            };
        }
        in_its_time(certificate, now)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate says of itself that it may issue others.
fn is_authority(certificate: &[u8]) -> Result<bool, der::Error> {
    let certificate = Certificate::from_der(certificate)?;
    let basic = certificate.tbs_certificate.get::<BasicConstraints>()?;
    Ok(basic.is_some_and(|(_, basic)| basic.ca))
}

fn in_its_time(certificate: &[u8], now: UnixTime) -> Result<(), CertificateError> {
    let certificate =
        Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = certificate.tbs_certificate.validity;
    let now_s = now.as_secs();
    if now_s < validity.not_before.to_unix_duration().as_secs() {
        Err(CertificateError::NotValidYet)
    } else if now_s > validity.not_after.to_unix_duration().as_secs() {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}

/// Why a handshake failed, and what to do.
fn explain(error: &io::Error, host: &str) -> Fault {
    let cause = error.get_ref().and_then(|e| e.downcast_ref());
    let (problem, advice) = match cause {
        Some(rustls::Error::InvalidCertificate(bad)) => certificate(bad, host),
        Some(rustls::Error::AlertReceived(alert)) => refused(*alert),
        Some(rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. }) => (
            "it does not speak TLS there".to_owned(),
            "write http:// or ksi+tcp:// if that is meant, or the port where it speaks TLS",
        ),
        Some(rustls::Error::PeerIncompatible(_)) => old(),
        Some(other) => (other.to_string(), "its log may say more"),
        None => (
            format!("the connection ended during the handshake ({error})"),
            "does it speak TLS at this port?",
        ),
    };
    Fault::Tls { problem, advice }
}

fn certificate(bad: &CertificateError, host: &str) -> (String, &'static str) {
    use CertificateError as Bad;
    let (problem, advice) = match bad {
        Bad::UnknownIssuer => (
            "its certificate was issued by nobody that is trusted here",
            "if you know its authority, name the file of that certificate (the service's own, if \
             self-signed): --tls-ca, or `ca` in the configuration",
        ),
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
            let names = match bad {
                Bad::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                    let names: Vec<_> =
                        presented.iter().take(3).map(|n| format!("{n:?}")).collect();
                    format!(", but for {}", names.join(", "))
                }
                _ => String::new(),
            };
            return (
                format!("its certificate is not for {host:?}{names}"),
                "write the host as the certificate's subjectAltName has it (a common name is not \
                 looked at), or have it issued for this host",
            );
        }
        Bad::Expired | Bad::ExpiredContext { .. } => (
            "its certificate has expired",
            "its operator must renew it, unless this machine's clock is wrong",
        ),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => (
            "its certificate is not valid yet",
            "set this machine's clock",
        ),
        Bad::Other(_) if is_ca(bad) => (
            "its certificate is an authority's",
            "name the file of this very certificate with --tls-ca, or `ca` in the configuration, or \
             have one issued for a server",
        ),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => (
            "its certificate is not one for servers (extended key usage)",
            "its operator must have another issued",
        ),
        Bad::BadSignature => (
            "its certificate bears the name of an authority that is trusted here, but not its signature",
            "if that authority has a new key, name the file of its new certificate: --tls-ca, or `ca` \
             in the configuration; if not, somebody stands between",
        ),
        Bad::Revoked => ("its certificate is revoked", "ask its operator"),
        Bad::UnsupportedSignatureAlgorithmContext { .. }
        | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => (
            "its certificate, or its authority's, has a signature of a kind that is not trusted, as SHA-1",
            "its operator must have another issued",
        ),
        _ => (
            "its certificate cannot be used",
            "it must be an X.509 certificate of version 3 with a subjectAltName",
        ),
    };
    (problem.to_owned(), advice)
}

/// An authority's certificate is no server's, unless it is pinned.
fn is_ca(bad: &CertificateError) -> bool {
    matches!(bad, CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity"))
}

/// The server ended the handshake.
fn refused(alert: AlertDescription) -> (String, &'static str) {
    match alert {
        AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => old(),
        AlertDescription::CertificateRequired | AlertDescription::BadCertificate => (
            "it wants a certificate of ours".to_owned(),
            "such logins are not supported; put a proxy between that has one",
        ),
        AlertDescription::UnrecognisedName => (
            "it knows no such host".to_owned(),
            "write the host as its certificate has it",
        ),
        other => (
            format!("it ended the handshake ({other:?})"),
            "its log says why",
        ),
    }
}

fn old() -> (String, &'static str) {
    (
        "it has no version or cipher of TLS in common with this program".to_owned(),
        "it must speak TLS 1.2 or 1.3",
    )
}
