//! What an operator sees and decides: users' bounds, monitors, commands, HTTPS; and
//! peers who want more than their share of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{GENESIS, World, config, document, init};
use pitser_authority::{
    Allowance, Authority, Clock, Config, Https, Limits, ManualClock, Micros, Operations, Second,
    User,
};
use pitser_client::{Client, ClientError, Endpoint, Options, Roots};
use pitser_ksi::hash::{Algorithm, hash};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// An authority with everything that operators can turn on.
async fn operated(change: impl FnOnce(&mut Config, &Path)) -> World {
    let dir = TempDir::new().unwrap();
    init(&dir);
    certificate(dir.path());
    let clock = Arc::new(ManualClock::new(Micros::boundary(GENESIS)));
    let any_port = "127.0.0.1:0".parse().unwrap();
    let mut config = config(&dir);
    config.operations = Operations {
        https: Some(Https {
            address: any_port,
            certificate: dir.path().join("tls.pem"),
            key: dir.path().join("tls-key.pem"),
        }),
        monitor: Some(any_port),
        admin: Some(dir.path().join("admin.sock")),
        spent: Some(dir.path().join("spent")),
    };
    change(&mut config, dir.path());
    let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
    World {
        dir,
        clock,
        authority,
    }
}

/// A new self-signed certificate for `localhost`.
fn certificate(dir: &Path) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = |kind: &str, der: &[u8]| {
        let text = data_encoding::BASE64.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    };
    std::fs::write(dir.join("tls.pem"), pem("CERTIFICATE", cert.der())).unwrap();
    let key = pem("PRIVATE KEY", &signing_key.serialize_der());
    std::fs::write(dir.join("tls-key.pem"), key).unwrap();
}

/// A client over HTTPS that trusts what is in `tls.pem` now.
fn over_https(world: &World) -> Client {
    let port = world.authority.https_address().unwrap().port();
    let endpoint = Endpoint::parse(&format!("https://anon:anon@localhost:{port}/sign")).unwrap();
    let options = Options {
        roots: Roots::read(&world.dir.path().join("tls.pem")).unwrap(),
        ..Options::default()
    };
    Client::new(endpoint, options)
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    talk(stream, &format!("GET {path} HTTP/1.0\r\n\r\n")).await
}

async fn metric(world: &World, line: &str) -> u64 {
    let text = get(world.authority.monitor_address().unwrap(), "/metrics").await;
    let found = text.lines().find_map(|one| one.strip_prefix(line));
    found
        .unwrap_or_else(|| panic!("no {line} in {text}"))
        .trim()
        .parse()
        .unwrap()
}

/// 0105 over quota, 0106 too many requests, 0107 input too long (spec service §5).
#[tokio::test(flavor = "multi_thread")]
async fn bounds_of_users_are_told_by_their_status() {
    let bounded = |login: &str, allowance| User {
        allowance,
        ..User::new(login, "k")
    };
    let world = operated(|config, _| {
        config.users.push(bounded(
            "quota",
            Allowance {
                per_day: Some(2),
                ..Allowance::default()
            },
        ));
        config.users.push(bounded(
            "rate",
            Allowance {
                rate: Some(1),
                ..Allowance::default()
            },
        ));
        config.users.push(bounded(
            "short",
            Allowance {
                algorithms: vec![Algorithm::Sha256],
                ..Allowance::default()
            },
        ));
    })
    .await;
    let refused = |error: ClientError| match error {
        ClientError::Refused { status, .. } => status,
        other => panic!("{other}"),
    };
    let quota = world.tcp_as("quota", "k");
    for number in 0..2 {
        world.run(quota.sign(document(number), 0)).await.unwrap();
    }
    let error = quota.sign(document(3), 0).await.unwrap_err();
    assert!(error.to_string().contains("day's 2 signatures"), "{error}");
    assert_eq!(refused(error), 0x0105);

    let rate = world.tcp_as("rate", "k");
    let first = rate.sign(document(1), 0);
    let second = async {
        world.until_waiting(1).await;
        let refused = refused(rate.sign(document(2), 0).await.unwrap_err());
        world.tick().await;
        refused
    };
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    assert_eq!(second, 0x0106);

    let long = hash(Algorithm::Sha512, &[b"x"]);
    let short = world.tcp_as("short", "k");
    assert_eq!(refused(short.sign(long, 0).await.unwrap_err()), 0x0107);
    assert_eq!(
        metric(&world, r#"pitser_authority_refused_total{reason="quota"}"#).await,
        1
    );
    // The client tries again by itself, as the status invites it to.
    let by_rate = metric(&world, r#"pitser_authority_refused_total{reason="rate"}"#).await;
    assert!(by_rate >= 1);
    assert_eq!(metric(&world, "pitser_authority_signatures_total").await, 3);
    let of_quota = r#"pitser_authority_user_requests_total{login="quota"}"#;
    assert_eq!(metric(&world, of_quota).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_forget_what_was_spent() {
    let limited = |config: &mut Config| {
        config.users = vec![User {
            allowance: Allowance {
                per_day: Some(1),
                ..Allowance::default()
            },
            ..User::new("anon", "anon")
        }];
    };
    let world = operated(|config, _| limited(config)).await;
    world.run(world.tcp().sign(document(1), 0)).await.unwrap();
    let World {
        dir,
        clock,
        authority,
    } = world;
    authority.shutdown().await.unwrap();
    let mut config = config(&dir);
    limited(&mut config);
    config.max_clock_jump = Duration::from_secs(86_400);
    config.operations.spent = Some(dir.path().join("spent"));
    let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
    let world = World {
        dir,
        clock,
        authority,
    };
    let error = world.tcp().sign(document(2), 0).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: 0x0105, .. }),
        "{error}"
    );
    // The next day.
    let midnight = Second((GENESIS.0 / 86_400 + 1) * 86_400);
    world.clock.set(Micros::boundary(midnight));
    let mut rounds = world.authority.rounds();
    rounds
        .wait_for(|round| round.second >= midnight)
        .await
        .unwrap();
    world.run(world.tcp().sign(document(2), 0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_change_while_connections_go_on() {
    let world = operated(|_, _| ()).await;
    let (old, new) = (world.tcp(), world.tcp_as("new", "k"));
    let signing = tokio::spawn({
        let old = old.clone();
        async move { old.sign(document(1), 0).await }
    });
    world.until_waiting(1).await;
    world
        .authority
        .replace_users(&[User::new("new", "k")])
        .unwrap();
    // What was accepted is answered, and authenticated with the key that asked.
    world.tick().await;
    signing.await.unwrap().unwrap();
    world.run(new.sign(document(2), 0)).await.unwrap();
    let error = old.sign(document(3), 0).await.unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: 0x0102, .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn https_signs_and_its_certificate_is_exchanged() {
    let world = operated(|_, _| ()).await;
    let first = over_https(&world);
    let signature = world.run(first.sign(document(1), 0)).await.unwrap();
    first.extend(&signature, None, None).await.unwrap();

    certificate(world.dir.path());
    let second = over_https(&world);
    assert!(
        second.sign(document(2), 0).await.is_err(),
        "it is not read again by itself"
    );
    world.authority.reload_tls().unwrap();
    world.run(second.sign(document(2), 0)).await.unwrap();

    // A file that cannot be used changes nothing, and is not shown.
    std::fs::write(world.dir.path().join("tls-key.pem"), "SECRET").unwrap();
    let error = world.authority.reload_tls().unwrap_err().to_string();
    assert!(
        error.contains("tls-key.pem") && !error.contains("SECRET"),
        "{error}"
    );
    world
        .run(over_https(&world).sign(document(3), 0))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_finish_a_handshake_harm_nobody() {
    let world = operated(|_, _| ()).await;
    let address = world.authority.https_address().unwrap();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage
        .write_all(b"GET /health HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = garbage.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP"), "{rest:?}");
    world
        .run(over_https(&world).sign(document(1), 0))
        .await
        .unwrap();
    assert_eq!(
        metric(&world, r#"pitser_authority_refused_total{reason="tls"}"#).await,
        1
    );
    // They do not hold up the end either.
    let World {
        authority, clock, ..
    } = world;
    let (stopped, ()) = tokio::join!(authority.shutdown(), async {
        clock.advance(Duration::from_secs(1));
    });
    stopped.unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_of_each_listener() {
    let world = operated(|config, _| {
        config.limits = Limits {
            connections: 1000,
            connections_of_peer: 20,
            ..Limits::default()
        };
    })
    .await;
    let authority = &world.authority;
    for address in [
        authority.tcp_address(),
        authority.http_address().unwrap(),
        authority.https_address().unwrap(),
    ] {
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        // The listener accepts in order: what comes after these is over the share.
        for _ in 0..30 {
            let mut more = TcpStream::connect(address).await.unwrap();
            let end = more.read(&mut [0]).await;
            assert!(matches!(end, Ok(0) | Err(_)), "{address}: {end:?}");
        }
        held.clear();
    }
    let refused = r#"pitser_authority_refused_total{reason="peer_connections"}"#;
    assert_eq!(metric(&world, refused).await, 90);
    // All are gone; the places are free again.
    world.run(world.tcp().sign(document(1), 0)).await.unwrap();
    world.run(world.http().sign(document(2), 0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_wait_without_harm() {
    let world = operated(|config, _| {
        config.limits = Limits {
            connections: 2_100,
            connections_of_peer: 2_050,
            ..Limits::default()
        };
    })
    .await;
    let address = world.authority.tcp_address();
    let mut silent = Vec::new();
    for _ in 0..2_000 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    world.run(world.tcp().sign(document(1), 0)).await.unwrap();
    let open = metric(&world, r#"pitser_authority_connections{transport="tcp"}"#).await;
    assert!(open >= 2_000, "{open}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_counted_and_not_named() {
    let world = operated(|_, _| ()).await;
    for number in 0..50 {
        let stranger = world.tcp_as(&format!("mallory{number}"), "guess");
        stranger.sign(document(number), 0).await.unwrap_err();
    }
    let text = get(world.authority.monitor_address().unwrap(), "/metrics").await;
    assert!(text.contains(r#"pitser_authority_refused_total{reason="authentication"} 50"#));
    assert!(
        text.contains(
            r#"pitser_authority_requests_total{service="aggregator",status="0x0102"} 50"#
        )
    );
    assert!(!text.contains("mallory"), "{text}");
    assert!(text.contains(r#"{login="anon"}"#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_see_what_the_public_does_not() {
    let world = operated(|_, _| ()).await;
    let http = world.authority.http_address().unwrap();
    let monitor = world.authority.monitor_address().unwrap();
    let not_ready = get(http, "/ready").await;
    assert!(not_ready.starts_with("HTTP/1.0 503"), "{not_ready}");
    world.tick().await;
    for address in [http, monitor] {
        for path in ["/ready", "/health", "/publications.bin"] {
            let page = get(address, path).await;
            assert!(page.starts_with("HTTP/1.0 200"), "{path}: {page}");
        }
    }
    for path in ["/metrics", "/status"] {
        let page = get(http, path).await;
        assert!(page.starts_with("HTTP/1.0 403"), "{path}: {page}");
        assert!(!page.contains("anon"), "{page}");
        let page = get(monitor, path).await;
        assert!(page.starts_with("HTTP/1.0 200"), "{path}: {page}");
    }
    let absent = get(http, "/other").await;
    assert!(absent.starts_with("HTTP/1.0 404"), "{absent}");
    let put = TcpStream::connect(http).await.unwrap();
    let put = talk(put, "PUT / HTTP/1.0\r\ncontent-length: 0\r\n\r\n").await;
    assert!(put.starts_with("HTTP/1.0 405"), "{put}");

    // The clock goes on, rounds do not: first late, then stopped.
    let status = get(monitor, "/status").await;
    assert!(status.contains(r#""ready":true"#), "{status}");
    world.clock.set(Micros(world.clock.now().0 + 3_600_000_000));
    world.authority.stopped().await.unwrap_err();
    let status = get(monitor, "/status").await;
    assert!(
        status.contains(r#""healthy":false"#) && status.contains("CLK-01"),
        "{status}"
    );
    assert!(get(http, "/ready").await.starts_with("HTTP/1.0 503"));
    assert_eq!(metric(&world, "pitser_authority_signing").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_admin_socket_obeys() {
    let world = operated(|_, _| ()).await;
    world.tick().await;
    let request = "POST /publish HTTP/1.0\r\ncontent-length: 0\r\n\r\n";
    for address in [
        world.authority.http_address().unwrap(),
        world.authority.monitor_address().unwrap(),
    ] {
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = talk(stream, request).await;
        assert!(!answer.contains("\"code\""), "{answer}");
    }
    assert!(world.verified_publications().publications().is_empty());

    let path = world.dir.path().join("admin.sock");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let published = talk(UnixStream::connect(&path).await.unwrap(), request).await;
    assert!(published.contains(r#""new":true"#), "{published}");
    assert_eq!(world.verified_publications().publications().len(), 1);
    let again = talk(UnixStream::connect(&path).await.unwrap(), request).await;
    assert!(again.contains(r#""new":false"#), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_socket_takes_no_other_files_place() {
    let dir = TempDir::new().unwrap();
    init(&dir);
    let path = dir.path().join("admin.sock");
    std::fs::write(&path, "precious").unwrap();
    let mut config = config(&dir);
    config.operations.admin = Some(path.clone());
    let clock = ManualClock::new(Micros::boundary(GENESIS));
    let error = Authority::start(config, clock).await.unwrap_err();
    assert!(error.to_string().contains("admin socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
