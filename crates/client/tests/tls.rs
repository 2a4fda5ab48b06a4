//! Services over HTTPS: whom the client believes, and what it says of others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Act, Server, answer, document, honest, impatient, says};
use pitser_client::{Client, ClientError, Endpoint, Options, Roots, publications_file};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use x509_cert::der::pem::{LineEnding, encode_string};

/// Who issues certificates for services.
struct Issuer {
    certified: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Issuer {
    fn new() -> Self {
        Self::named("Ward authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            certified: CertifiedIssuer::self_signed(params, key).unwrap(),
            dir: TempDir::new().unwrap(),
        }
    }

    /// The file with its certificate.
    fn file(&self) -> PathBuf {
        self.written("ca.pem", &pem(self.certified.der()))
    }

    fn written(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A server with a certificate for these names, changed.
    fn server(&self, names: &[&str], change: impl Fn(&mut CertificateParams)) -> TlsAcceptor {
        let (params, key) = params(names, change);
        let certificate = params.signed_by(&key, &self.certified).unwrap();
        acceptor(certificate.der().clone(), &key, rustls::DEFAULT_VERSIONS)
    }
}

fn params(names: &[&str], change: impl Fn(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
    let names = names
        .iter()
        .map(|&name| name.to_owned())
        .collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut params);
    (params, KeyPair::generate().unwrap())
}

fn pem(der: &[u8]) -> String {
    encode_string("CERTIFICATE", LineEnding::LF, der).unwrap()
}

fn acceptor(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn trusting(file: &Path) -> Options {
    Options {
        roots: Roots::read(file).unwrap(),
        ..impatient(5000)
    }
}

fn client(server: &Server, host: &str, options: Options) -> Client {
    let port = server.address.port();
    let uri = format!("ksi+https://anon:anon@{host}:{port}");
    Client::new(Endpoint::parse(&uri).unwrap(), options)
}

#[tokio::test]
async fn signs_and_extends_and_fetches() {
    let issuer = Issuer::new();
    let acceptor = issuer.server(&["localhost", "127.0.0.1"], |_| ());
    let server = Server::https(acceptor.clone(), honest).await;
    let options = trusting(&issuer.file());
    for host in ["localhost", "127.0.0.1"] {
        let client = client(&server, host, options.clone());
        let signed = client.sign(document(1), 0).await.unwrap();
        client.extend(&signed, None, None).await.unwrap();
        client.config().await.unwrap();
    }
    assert_eq!(server.accepted(), 2, "one connection for each client");

    let files = Server::https(acceptor, |_, _| Act::Say(b"KSIPUBLF".to_vec())).await;
    let uri = format!("https://localhost:{}/p.bin", files.address.port());
    let fetched = publications_file(&uri, &options).await.unwrap();
    assert_eq!(fetched, b"KSIPUBLF");
    let error = publications_file(&uri, &Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn an_old_server_will_do_if_it_speaks_tls_1_2() {
    let issuer = Issuer::new();
    let (params, key) = params(&["localhost"], |_| ());
    let certificate = params.signed_by(&key, &issuer.certified).unwrap();
    let acceptor = acceptor(certificate.der().clone(), &key, &[&rustls::version::TLS12]);
    let server = Server::https(acceptor, honest).await;
    let client = client(&server, "localhost", trusting(&issuer.file()));
    client.sign(document(1), 0).await.unwrap();
}

#[tokio::test]
async fn a_certificate_may_be_its_own_authority_if_it_is_pinned() {
    let issuer = Issuer::new();
    // As `openssl req -x509` makes them: an authority's, which is no server's.
    let as_openssl = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages.clear();
    };
    let (own, key) = params(&["localhost"], as_openssl);
    let certificate = own.self_signed(&key).unwrap();
    let pinned = issuer.written("own.pem", &pem(certificate.der()));
    let tls = acceptor(certificate.der().clone(), &key, rustls::DEFAULT_VERSIONS);
    let server = Server::https(tls, honest).await;
    let signed = client(&server, "localhost", trusting(&pinned))
        .sign(document(1), 0)
        .await;
    signed.unwrap();
    // Pinned, and still neither for another host nor for ever.
    let error = client(&server, "127.0.0.1", trusting(&pinned))
        .sign(document(1), 0)
        .await;
    says(&error.unwrap_err(), &["not for \"127.0.0.1\""]);
    let (old, key) = params(&["localhost"], |params| {
        as_openssl(params);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let certificate = old.self_signed(&key).unwrap();
    let pinned = issuer.written("old.pem", &pem(certificate.der()));
    let tls = acceptor(certificate.der().clone(), &key, rustls::DEFAULT_VERSIONS);
    let server = Server::https(tls, honest).await;
    let error = client(&server, "localhost", trusting(&pinned))
        .sign(document(1), 0)
        .await;
    says(&error.unwrap_err(), &["has expired"]);
    // Not pinned: it is told that pinning would do.
    let (own, key) = params(&["localhost"], as_openssl);
    let certificate = own.self_signed(&key).unwrap();
    let tls = acceptor(certificate.der().clone(), &key, rustls::DEFAULT_VERSIONS);
    let server = Server::https(tls, honest).await;
    let error = client(&server, "localhost", trusting(&issuer.file()))
        .sign(document(1), 0)
        .await;
    says(&error.unwrap_err(), &["--tls-ca"]);
}

#[tokio::test]
async fn a_service_that_is_pinned_vouches_for_no_other() {
    let issuer = Issuer::new();
    let (own, key) = params(&["localhost"], |_| ());
    let pinned = CertifiedIssuer::self_signed(own, key).unwrap();
    let alone = issuer.written("own.pem", &pem(pinned.der()));
    let unreadable = pem(b"no certificate");
    let both = [pem(pinned.der()), unreadable, pem(issuer.certified.der())].concat();
    let with_authority = issuer.written("both.pem", &both);
    let (other, key) = params(&["localhost"], |_| ());
    let issued = other.signed_by(&key, &pinned).unwrap();
    for file in [alone, with_authority] {
        let own = acceptor(pinned.der().clone(), pinned.key(), rustls::DEFAULT_VERSIONS);
        let server = Server::https(own, honest).await;
        let signed = client(&server, "localhost", trusting(&file))
            .sign(document(1), 0)
            .await;
        signed.unwrap();
        let other = acceptor(issued.der().clone(), &key, rustls::DEFAULT_VERSIONS);
        let server = Server::https(other, honest).await;
        let error = client(&server, "localhost", trusting(&file))
            .sign(document(1), 0)
            .await;
        says(&error.unwrap_err(), &["by nobody that is trusted here"]);
    }
}

/// What is said of a server whose certificate is changed like this.
async fn refused(names: &[&str], change: impl Fn(&mut CertificateParams)) -> ClientError {
    let issuer = Issuer::new();
    let server = Server::https(issuer.server(names, change), honest).await;
    let client = client(&server, "localhost", trusting(&issuer.file()));
    let error = client.sign(document(1), 0).await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error:?}");
    assert_eq!(server.accepted(), 1, "what is wrong stays wrong");
    error
}

#[tokio::test]
async fn each_fault_of_a_certificate_is_told_with_what_to_do() {
    let error = refused(&["other.example", "10.0.0.1"], |_| ()).await;
    says(
        &error,
        &[
            "not for \"localhost\", but for ",
            "other.example",
            "subjectAltName",
        ],
    );
    let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    says(
        &refused(&["localhost"], expired).await,
        &["has expired", "renew it", "clock"],
    );
    let future = |params: &mut CertificateParams| params.not_before = date_time_ymd(2200, 1, 1);
    says(
        &refused(&["localhost"], future).await,
        &["not valid yet", "clock"],
    );
    let client_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    says(
        &refused(&["localhost"], client_only).await,
        &["not one for servers"],
    );
    let authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    says(
        &refused(&["localhost"], authority).await,
        &["is an authority's", "--tls-ca"],
    );
}

#[tokio::test]
async fn an_unknown_issuer_is_told_with_the_option() {
    let (issuer, stranger) = (Issuer::new(), Issuer::named("Stranger"));
    let server = Server::https(stranger.server(&["localhost"], |_| ()), honest).await;
    for options in [trusting(&issuer.file()), impatient(5000)] {
        let error = client(&server, "localhost", options)
            .sign(document(1), 0)
            .await
            .unwrap_err();
        says(
            &error,
            &[
                "no secure connection to the service at localhost:",
                "issued by nobody that is trusted here",
                "--tls-ca, or `ca` in the configuration",
            ],
        );
        assert!(!error.is_temporary());
    }
    // An authority that was made anew under its old name.
    let server = Server::https(Issuer::new().server(&["localhost"], |_| ()), honest).await;
    let error = client(&server, "localhost", trusting(&issuer.file()))
        .sign(document(1), 0)
        .await;
    says(
        &error.unwrap_err(),
        &["but not its signature", "new key", "--tls-ca"],
    );
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told() {
    let http = Server::http(200, honest).await;
    // It answers the handshake in its own words.
    let raw = Server::tcp(|_, frame| Act::Say(answer(frame, |_| (), |_| ()))).await;
    let words = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = words.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = words.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let endpoint = Endpoint::parse(&format!("https://anon:anon@{address}")).unwrap();
    let error = Client::new(endpoint, impatient(5000))
        .sign(document(1), 0)
        .await;
    says(
        &error.unwrap_err(),
        &["does not speak TLS there", "http://"],
    );
    let error = client(&raw, "127.0.0.1", impatient(5000))
        .sign(document(1), 0)
        .await;
    says(
        &error.unwrap_err(),
        &["ended during the handshake", "speak TLS at this port"],
    );
    // One that waits for a request that never comes.
    let error = client(&http, "127.0.0.1", impatient(300))
        .sign(document(1), 0)
        .await;
    says(
        &error.unwrap_err(),
        &["no connection to the service at 127.0.0.1:", "in time"],
    );
}

#[test]
fn a_file_without_certificates_is_none() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ca.pem");
    let error = Roots::read(&path).unwrap_err().to_string();
    assert!(error.contains("ca.pem: No such file"), "{error}");
    for text in [
        "",
        "no PEM",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Roots::read(&path).unwrap_err().to_string();
        assert!(error.contains("holds no certificate in PEM"), "{error}");
    }
}
