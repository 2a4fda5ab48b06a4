//! The certificate that HTTPS shows; it can be exchanged while connections go on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::operations::Https;

pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    /// What the next handshake goes by.
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub(crate) fn load(files: &Https) -> Result<Self, TlsError> {
        let config = read(&files.certificate, &files.key)?;
        Ok(Self {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            config: RwLock::new(config),
        })
    }

    /// Reads both files again; if they cannot be used, the old ones stay.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let config = read(&self.certificate, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = {
            let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&config)
        };
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| TlsError::unreadable(certificate, &e))?;
    if certificates.is_empty() {
        return Err(TlsError::File {
            path: certificate.to_owned(),
            reason: "it holds no certificate".to_owned(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| TlsError::unreadable(key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, private)
        });
    let mut config = config.map_err(|source| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Why there is no HTTPS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// One of the files cannot be read.
    #[error("{}: {reason}; HTTPS needs a certificate chain and its key, in PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its content.
        reason: String,
    },
    /// They do not belong together, or are of a kind that is not supported.
    #[error(
        "{} and {} cannot be used for HTTPS: {source}",
        certificate.display(),
        key.display()
    )]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

impl TlsError {
    fn unreadable(path: &Path, error: &rustls::pki_types::pem::Error) -> Self {
        use rustls::pki_types::pem::Error;
        Self::File {
            path: path.to_owned(),
            reason: match error {
                Error::Io(e) => e.to_string(),
                Error::NoItemsFound => "it holds no such thing in PEM".to_owned(),
                // Its text could show a part of the file.
                _ => "it is malformed".to_owned(),
            },
        }
    }
}
