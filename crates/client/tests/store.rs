//! Objects in a folder and in a store that speaks S3: written once, read back, and
//! what is said when it does not work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(feature = "s3")]
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "common/s3.rs"]
mod s3;

use hyper::body::Bytes;
use pitser_client::store::{Put, S3Options, Store, StoreError};
use tempfile::TempDir;

fn open(folder: &TempDir) -> Store {
    let url = format!("file://{}", folder.path().display());
    Store::open(&url, &S3Options::default()).unwrap()
}

/// What every store must do.
async fn conforms(store: &Store) {
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
    let missing = store.get("a/b.tile", 3).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing:?}");
    assert_eq!(
        store.put("a/b.tile", one.clone()).await.unwrap(),
        Put::Created
    );
    assert_eq!(
        store.put("a/b.tile", two.clone()).await.unwrap(),
        Put::Present
    );
    assert_eq!(store.get("a/b.tile", 3).await.unwrap(), one);
    let long = store.get("a/b.tile", 2).await.unwrap_err();
    assert!(matches!(long, StoreError::TooLong { .. }), "{long:?}");
    // Nothing at all, and more than one buffer.
    for (name, size) in [("a/empty", 0), ("a/long", 3 << 20)] {
        let bytes = Bytes::from(vec![7; size]);
        store.put(name, bytes.clone()).await.unwrap();
        assert_eq!(store.get(name, size).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_folder_conforms() {
    let folder = TempDir::new().unwrap();
    conforms(&open(&folder)).await;
}

#[tokio::test]
async fn of_many_that_write_to_a_folder_at_once_one_does() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let all: Vec<_> = (0..8u8)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.put("a/race", Bytes::from(vec![i; 9])).await })
        })
        .collect();
    let mut created = 0;
    for put in all {
        created += usize::from(put.await.unwrap().unwrap() == Put::Created);
    }
    assert_eq!(created, 1);
    assert_eq!(store.get("a/race", 9).await.unwrap().len(), 9);
}

/// A name without a file: what stands there cannot be made durable, and is not said to be.
#[tokio::test]
async fn what_is_there_already_is_made_durable_before_it_is_said_to_be_there() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    std::fs::create_dir(folder.path().join("a")).unwrap();
    std::os::unix::fs::symlink("nothing", folder.path().join("a/b.tile")).unwrap();
    let put = store.put("a/b.tile", Bytes::from_static(b"one")).await;
    assert!(matches!(put, Err(StoreError::Failed { .. })), "{put:?}");
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = Store::open("file:///nowhere/at/all", &S3Options::default()).unwrap_err();
    assert!(
        error.to_string().contains("file:///nowhere/at/all"),
        "{error}"
    );
}

#[test]
fn an_address_that_is_none_is_refused_without_what_may_be_a_password() {
    for url in [
        "/folder",
        "file://folder",
        "s3://",
        "s3://b",
        "s3://bucket/../x",
        "gs://bucket",
    ] {
        let error = Store::open(url, &S3Options::default()).unwrap_err();
        assert!(error.to_string().contains(url), "{error}");
    }
    for url in [
        "s3://AKIA:hush@bucket/x",
        "s3://bucket/x?secret=hush",
        "http://u:hush@host",
    ] {
        let error = Store::open(url, &S3Options::default()).unwrap_err();
        assert!(matches!(error, StoreError::Url { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
}

#[cfg(not(feature = "s3"))]
#[test]
fn without_the_feature_s3_is_said_to_be_missing() {
    let error = Store::open("s3://bucket/x", &S3Options::default()).unwrap_err();
    assert!(error.to_string().contains("--features s3"), "{error}");
}

#[cfg(feature = "s3")]
mod over_s3 {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use pitser_client::Roots;
    use pitser_client::store::S3Credentials;
    use rcgen::CertifiedKey;
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;
    use x509_cert::der::pem::{LineEnding, encode_string};

    use super::s3::{KEY_ID, S3Server, SECRET};
    use super::*;

    fn options(address: &str, secret: &str) -> S3Options {
        S3Options {
            endpoint: Some(format!("http://{address}")),
            credentials: Some(S3Credentials::new(KEY_ID, secret, None)),
            ..S3Options::default()
        }
    }

    fn open(address: &str, secret: &str) -> Store {
        Store::open("s3://bucket/of/tests/", &options(address, secret)).unwrap()
    }

    #[tokio::test]
    async fn a_server_that_checks_signatures_conforms() {
        let Some(server) = S3Server::start() else {
            return;
        };
        conforms(&open(server.address(), SECRET)).await;
        assert_eq!(fs::read(server.file("of/tests/a/b.tile")).unwrap(), b"one");
    }

    fn pem(certificate: &rcgen::Certificate) -> String {
        encode_string("CERTIFICATE", LineEnding::LF, certificate.der()).unwrap()
    }

    #[tokio::test]
    async fn over_tls_whoever_vouches_must_be_known() {
        let Some(server) = S3Server::start() else {
            return;
        };
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = server.address().to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&target).await.unwrap();
                if let Ok(mut near) = acceptor.accept(near).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            }
        });

        let folder = TempDir::new().unwrap();
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, pem(&cert)).unwrap();
        let mut options = S3Options {
            endpoint: Some(format!("https://localhost:{port}")),
            roots: Roots::read(&ca).unwrap(),
            ..options("", SECRET)
        };
        conforms(&Store::open("s3://bucket/tls", &options).unwrap()).await;
        let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&ca, pem(&stranger.cert)).unwrap();
        options.roots = Roots::read(&ca).unwrap();
        let store = Store::open("s3://bucket/tls", &options).unwrap();
        let error = store.get("a/b.tile", 3).await.unwrap_err();
        assert!(
            error.to_string().contains("somebody stands between"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_wrong_key_is_refused() {
        let Some(server) = S3Server::start() else {
            return;
        };
        let wrong = open(server.address(), "hush, not the one");
        for error in [
            wrong.put("x", Bytes::from_static(b"x")).await.unwrap_err(),
            wrong.get("x", 1).await.unwrap_err(),
        ] {
            let text = format!("{error} {error:?}");
            assert!(text.contains("SignatureDoesNotMatch"), "{text}");
            assert!(text.contains("is the secret access key right"), "{text}");
            assert!(!text.contains("hush") && !text.contains(KEY_ID), "{text}");
        }
        assert!(!server.file("of").exists());
    }

    /// Whether an answer's bytes are all there.
    fn is_whole(answer: &[u8]) -> bool {
        let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return false;
        };
        let field = |name| head.lines().find_map(|line| line.strip_prefix(name));
        match field("content-length:") {
            Some(length) => body.len() >= length.trim().parse().unwrap(),
            None => field("transfer-encoding:").is_none() || body.ends_with("0\r\n\r\n"),
        }
    }

    /// Carries bytes to a server until it has answered once, and cuts the line.
    async fn one_answer(mut near: TcpStream, mut far: TcpStream) {
        let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let mut answer = Vec::new();
        loop {
            tokio::select! {
                read = near.read(&mut asked) => match read {
                    Ok(length @ 1..) => far.write_all(&asked[..length]).await.unwrap(),
                    _ => return,
                },
                read = far.read(&mut answered) => {
                    let read = &answered[..read.unwrap()];
                    near.write_all(read).await.unwrap();
                    answer.extend_from_slice(read);
                    // In parts, or all at once.
                    if read.is_empty() || is_whole(&answer) {
                        break;
                    }
                }
            }
        }
        // What is still coming is read, or the answer would be taken back with the line.
        near.shutdown().await.unwrap();
        while near.read(&mut asked).await.is_ok_and(|length| length > 0) {}
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_made_anew() {
        let Some(server) = S3Server::start() else {
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = server.address().to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                one_answer(near, TcpStream::connect(&target).await.unwrap()).await;
            }
        });
        let store = open(&address, SECRET);
        for i in 0..5 {
            let name = format!("cut/{i}");
            store.put(&name, Bytes::from_static(b"x")).await.unwrap();
            assert_eq!(store.get(&name, 1).await.unwrap(), Bytes::from_static(b"x"));
        }
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = open(&address, SECRET).get("x", 1).await.unwrap_err();
        assert!(
            error.passes() && error.to_string().contains("nobody answers"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_store_that_hangs_costs_no_more_than_was_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let store = open(&address, SECRET).with_patience(Duration::from_millis(200));
        // It takes connections, and says nothing.
        for error in [
            store.get("x", 1).await.unwrap_err(),
            store.put("x", Bytes::from_static(b"x")).await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::TimedOut { .. }), "{error:?}");
        }
    }

    /// Answers every request with `answer`.
    async fn liar(answer: &'static [u8]) -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 64 << 10];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        open(&address, SECRET)
    }

    #[tokio::test]
    async fn what_a_store_says_in_an_error_is_not_repeated() {
        let store = liar(
            b"HTTP/1.1 403 Forbidden\r\ncontent-length: 90\r\n\r\n<Error><Code>AccessDenied</Code>\
              <StringToSign>x-amz-security-token:hush</StringToSign></Error>",
        )
        .await;
        let error = store.get("x", 1).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(
            text.contains("AccessDenied") && !text.contains("hush"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_bucket_that_is_not_there_is_no_missing_object() {
        let store = liar(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 39\r\n\r\n\
              <Error><Code>NoSuchBucket</Code></Error>",
        )
        .await;
        let error = store.get("x", 1).await.unwrap_err();
        assert!(error.to_string().contains("make the bucket"), "{error}");
        let store = liar(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 37\r\n\r\n\
              <Error><Code>NoSuchKey</Code></Error>",
        )
        .await;
        let error = store.get("x", 1).await.unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_store_that_sends_more_than_it_announced_is_cut() {
        let store = liar(
            b"HTTP/1.1 200 OK\r\netag: \"1\"\r\nlast-modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
              content-length: 4\r\n\r\nfourfive",
        )
        .await;
        assert_eq!(
            store.get("x", 4).await.unwrap(),
            Bytes::from_static(b"four")
        );
        let store = liar(
            b"HTTP/1.1 200 OK\r\netag: \"1\"\r\nlast-modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
              content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n8\r\nfourfive\r\n0\r\n\r\n",
        )
        .await;
        assert!(store.get("x", 4).await.is_err());
    }

    #[test]
    fn plain_http_is_for_this_machine_unless_allowed() {
        let mut options = options("s3.example.org", SECRET);
        let error = Store::open("s3://bucket", &options).unwrap_err();
        assert!(error.to_string().contains("allow_http"), "{error}");
        options.allow_http = true;
        Store::open("s3://bucket", &options).unwrap();
        for here in ["localhost:1", "127.0.0.1:1", "[::1]:1"] {
            open(here, SECRET);
        }
    }

    #[test]
    fn what_cannot_be_reached_is_refused_before_it_is_tried() {
        let refused = |change: &dyn Fn(&mut S3Options)| {
            let mut options = options("127.0.0.1:1", SECRET);
            change(&mut options);
            Store::open("s3://bucket", &options)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&|it| it.credentials = None).contains("AWS_ACCESS_KEY_ID"));
        assert!(refused(&|it| it.region = Some("a b".into())).contains("no region"));
        let endpoint = |text: &str| refused(&|it| it.endpoint = Some(text.to_owned()));
        for text in [
            "s3.example.org",
            "ftp://host",
            "https://host/path",
            "https://",
        ] {
            assert!(endpoint(text).contains("endpoint"), "{text}");
        }
        let shown = endpoint("https://user:hush@host");
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[tokio::test]
    async fn nothing_shows_a_secret() {
        let options = options("127.0.0.1:1", "hush");
        let store = Store::open("s3://bucket", &options).unwrap();
        let shown = format!("{options:?} {store:?} {}", store.url());
        assert!(!shown.contains("hush"), "{shown}");
    }
}
