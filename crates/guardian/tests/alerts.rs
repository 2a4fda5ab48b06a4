//! Findings reach receivers that are slow, dead, hostile or secured: real
//! sockets and real files, with a status that the test writes itself.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use pitser_guardian::alert::{Alert, Alerts, Pace, Secret, Surroundings, Url};
use pitser_guardian::{FindingStatus, SourceState, Status};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

const NOW_US: u64 = 1_773_480_413_000_000;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Something has gone wrong if a test waits so long.
const LIMIT: Duration = Duration::from_secs(30);

/// A folder, a clock, and one source whose status the test sets.
struct World {
    dir: tempfile::TempDir,
    now_us: Arc<AtomicU64>,
    status: watch::Sender<Status>,
    pace: Pace,
}

impl World {
    fn new() -> Self {
        let (status, _) = watch::channel(Status {
            name: "h".into(),
            origin: "test.example/h".into(),
            genesis: "abc".into(),
            state: SourceState::Guarding,
            is_opened: true,
            ..Status::default()
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            now_us: Arc::new(AtomicU64::new(NOW_US)),
            status,
            pace: Pace {
                retry_min: Duration::from_millis(1),
                retry_max: Duration::from_millis(4),
                ..Pace::default()
            },
        }
    }

    fn shows(&self, findings: impl IntoIterator<Item = FindingStatus>) {
        self.status
            .send_modify(|s| s.findings = findings.into_iter().collect());
    }

    fn start(&self, alerts: &[Alert]) -> Alerts {
        let now_us = Arc::clone(&self.now_us);
        let around = Surroundings {
            data: self.dir.path().to_owned(),
            clock: Arc::new(move || now_us.load(Ordering::Relaxed)),
            pace: self.pace,
        };
        Alerts::start(alerts, &[self.status.subscribe()], &around).unwrap()
    }

    /// Completes when the status, deliveries included, is as `wanted`.
    async fn wait_for(&self, alerts: &Alerts, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut status = alerts.watch(self.status.subscribe());
        let seen = tokio::time::timeout(LIMIT, status.wait_for(wanted)).await;
        seen.expect("in time").unwrap().clone()
    }
}

fn finding(line: u64) -> FindingStatus {
    FindingStatus {
        code: "ROW-01".into(),
        table: Some("patient".into()),
        key: Some("38001085718".into()),
        columns: vec!["name".into()],
        at: "2026-03-14T09:26:53Z".into(),
        found_at_us: NOW_US,
        text: "a live row differs from its sealed version".into(),
        open: true,
        line: Some(line),
        accepted: None,
    }
}

fn closed(line: u64) -> FindingStatus {
    FindingStatus {
        open: false,
        ..finding(line)
    }
}

/// What a receiver was sent.
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// `+7` for an opening of line 7, `-7` for its closing.
    fn short(&self) -> String {
        let json = self.json();
        let sign = match json["type"].as_str().unwrap() {
            "finding.opened" => '+',
            "finding.closed" => '-',
            other => panic!("{other}"),
        };
        format!("{sign}{}", json["data"]["line"])
    }
}

/// No answer at all.
const CUT_OFF: u16 = 0;

/// A receiver: an HTTP server that answers as it is told, then 204.
struct Hook {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Hook {
    async fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, answers, None)
    }

    fn serve(listener: TcpListener, answers: &[u16], tls: Option<TlsAcceptor>) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, seen) = mpsc::unbounded_channel();
        let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answers, sender) = (Arc::clone(&answers), sender.clone());
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, answers, sender).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, answers, sender).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn url(&self) -> Url {
        Url::parse(&format!("http://{}/in?t=T0KEN", self.address)).unwrap()
    }

    fn alert(&self) -> Alert {
        Alert::new(self.url())
    }

    async fn next(&mut self) -> Seen {
        let seen = tokio::time::timeout(LIMIT, self.seen.recv()).await;
        seen.expect("in time").unwrap()
    }

    async fn shorts(&mut self, count: usize) -> Vec<String> {
        let mut shorts = Vec::new();
        for _ in 0..count {
            shorts.push(self.next().await.short());
        }
        shorts
    }

    /// After everything that could send has ended.
    fn saw_nothing_else(&mut self) {
        assert!(self.seen.try_recv().is_err());
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answers: Arc<Mutex<VecDeque<u16>>>,
    sender: mpsc::UnboundedSender<Seen>,
) {
    let answer = |request: Request<Incoming>| {
        let (answers, sender) = (Arc::clone(&answers), sender.clone());
        async move {
            assert_eq!(request.method(), "POST");
            let path = request.uri().to_string();
            let headers = request.headers().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let status = answers.lock().unwrap().pop_front().unwrap_or(204);
            // The test may have what it wanted.
            let _ = sender.send(Seen {
                path,
                headers,
                body,
            });
            if status == CUT_OFF {
                return Err(std::io::Error::other("cut off"));
            }
            let response = Response::builder()
                .status(status)
                .header("location", "http://127.0.0.1:1/elsewhere")
                .body(Full::<Bytes>::default())
                .unwrap();
            Ok(response)
        }
    };
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_arrives_signed() {
    let (world, mut hook) = (World::new(), Hook::start(&[]).await);
    let alert = Alert {
        secret: Some(Secret::parse(SECRET).unwrap()),
        ..hook.alert()
    };
    let alerts = world.start(&[alert]);
    world.shows([finding(7)]);
    let seen = hook.next().await;
    assert_eq!(seen.path, "/in?t=T0KEN");
    assert_eq!(seen.header("host"), hook.address.to_string());
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("connection"), "close");
    assert_eq!(
        seen.header("user-agent"),
        concat!("pitser/", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        seen.header("webhook-timestamp"),
        (NOW_US / 1_000_000).to_string()
    );
    let id = seen.header("webhook-id");
    assert!(id.starts_with("msg_") && id.len() == 36, "{id}");
    let signed = [id, ".", seen.header("webhook-timestamp"), "."].concat();
    let mac = hmac_sha256(&[signed.as_bytes(), &seen.body].concat());
    assert_eq!(
        seen.header("webhook-signature"),
        format!("v1,{}", BASE64.encode(&mac))
    );
    let json = seen.json();
    assert_eq!(json["type"], "finding.opened");
    assert_eq!(json["timestamp"], "2026-03-14T09:26:53Z");
    assert_eq!(json["data"]["code"], "ROW-01");
    assert_eq!(json["data"]["origin"], "test.example/h");
    alerts.stop().await;
}

/// RFC 2104 from its text, over the hash alone.
fn hmac_sha256(message: &[u8]) -> [u8; 32] {
    let secret = BASE64.decode(&SECRET.as_bytes()[6..]).unwrap();
    let mut key = [0; 64];
    key[..secret.len()].copy_from_slice(&secret);
    let inner = Sha256::digest([key.map(|b| b ^ 0x36).as_slice(), message].concat());
    Sha256::digest([key.map(|b| b ^ 0x5c).as_slice(), &inner].concat()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_sent_only_to_who_asked_for_them() {
    let (world, mut without, mut with) =
        (World::new(), Hook::start(&[]).await, Hook::start(&[]).await);
    let asking = Alert {
        keys: true,
        ..with.alert()
    };
    let alerts = world.start(&[without.alert(), asking]);
    world.shows([finding(7), closed(8)]);
    for _ in 0..3 {
        let body = String::from_utf8(without.next().await.body.to_vec()).unwrap();
        assert!(
            !body.contains("38001085718") && !body.contains("\"key\""),
            "{body}"
        );
        assert_eq!(with.next().await.json()["data"]["key"], "38001085718");
    }
    alerts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_tried_again_and_redirects_are_not_followed() {
    let (world, mut hook) = (World::new(), Hook::start(&[500, 503, 302, 404, 200]).await);
    world.shows([finding(7), finding(9)]);
    let alerts = world.start(&[hook.alert()]);
    let first = hook.next().await;
    for _ in 0..4 {
        let again = hook.next().await;
        assert_eq!(again.header("webhook-id"), first.header("webhook-id"));
        assert_eq!(again.body, first.body);
    }
    assert_eq!(
        hook.next().await.short(),
        "+9",
        "the order holds over failures"
    );
    let status = world.wait_for(&alerts, |s| s.alerts[0].waiting == 0).await;
    let shown = &status.alerts[0];
    assert_eq!((shown.delivered, shown.failed), (2, 4));
    assert!(!shown.endpoint.contains("T0KEN"), "{}", shown.endpoint);
    alerts.stop().await;
}

/// A filter in front of the receiver, say, does not like a table's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_refused_does_not_hold_up_the_others() {
    let answers = [400, 429, 413, 403, 422, 400, 200];
    let (world, mut hook) = (World::new(), Hook::start(&answers).await);
    world.shows([finding(7), finding(9)]);
    let alerts = world.start(&[Alert {
        keys: true,
        ..hook.alert()
    }]);
    let whole = hook.next().await;
    assert_eq!(whole.json()["data"]["table"], "patient");
    for _ in 0..3 {
        assert_eq!(hook.next().await.body, whole.body);
    }
    for is_bare in [true, false, true] {
        let again = hook.next().await;
        assert_eq!(again.header("webhook-id"), whole.header("webhook-id"));
        let told = again.json();
        assert_eq!(again.body != whole.body, is_bare, "{told}");
        assert_eq!(
            (&told["data"]["code"], &told["data"]["line"]),
            (&"ROW-01".into(), &7.into())
        );
        let sent = String::from_utf8(again.body.to_vec()).unwrap();
        let names = ["patient", "\"name\"", "38001085718"];
        assert!(
            names.iter().all(|name| sent.contains(name) != is_bare),
            "{sent}"
        );
    }
    let next = hook.next().await;
    assert_eq!(
        (next.short(), &next.json()["data"]["table"]),
        ("+9".into(), &"patient".into())
    );
    alerts.stop().await;
}

/// A receiver that falls over a message, or whoever stands before it: the first is held up
/// for a while, and the others with it, but not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_always_fails_does_not_hold_up_the_others() {
    for (answers, bare) in [
        (vec![500, 502, 500, 503, CUT_OFF, 500, 500, 500], vec![8]),
        (vec![CUT_OFF; 8], vec![8]),
        (
            vec![500, 500, 429, 500, 302, 500, 500, 408, 500, 500],
            vec![8, 10],
        ),
        (vec![400, 400, 400, 500, 500], vec![3, 5]),
        (
            vec![400, 400, 400, CUT_OFF, CUT_OFF, 400, 500],
            vec![3, 5, 7],
        ),
    ] {
        let (world, mut hook) = (World::new(), Hook::start(&answers).await);
        world.shows([finding(7), finding(9)]);
        let alerts = world.start(&[hook.alert()]);
        let id = hook.next().await.header("webhook-id").to_owned();
        for nth in 1..=answers.len() {
            let seen = hook.next().await;
            assert_eq!(
                (seen.header("webhook-id"), seen.short()),
                (&*id, "+7".into())
            );
            let is_bare = seen.json()["data"]["table"].is_null();
            assert_eq!(is_bare, bare.contains(&nth), "{nth} of {answers:?}");
        }
        let next = hook.next().await;
        assert_eq!(
            (next.short(), &next.json()["data"]["table"]),
            ("+9".into(), &"patient".into())
        );
        alerts.stop().await;
        hook.saw_nothing_else();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_is_told_when_it_is_up() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    world.shows([finding(7)]);
    let url = Url::parse(&format!("http://{address}/")).unwrap();
    let alerts = world.start(&[Alert::new(url)]);
    world.wait_for(&alerts, |s| s.alerts[0].failed >= 2).await;
    world.shows([closed(7), finding(9)]);
    world.wait_for(&alerts, |s| s.alerts[0].waiting == 3).await;
    let mut hook = Hook::serve(TcpListener::bind(address).await.unwrap(), &[], None);
    assert_eq!(hook.shorts(3).await, ["+7", "-7", "+9"]);
    alerts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_nothing_and_loses_nothing() {
    let (world, mut hook) = (World::new(), Hook::start(&[]).await);
    world.shows([finding(7), finding(8)]);
    let alerts = world.start(&[hook.alert()]);
    assert_eq!(hook.shorts(2).await, ["+7", "+8"]);
    alerts.stop().await;
    world.shows([finding(7), closed(8), finding(9)]);
    let alerts = world.start(&[hook.alert()]);
    assert_eq!(hook.shorts(2).await, ["-8", "+9"]);
    alerts.stop().await;
    world.start(&[hook.alert()]).stop().await;
    hook.saw_nothing_else();
}

/// After a start all findings look open; one that was told as closed is told
/// again once a scan has found it, even if nothing else happens afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_finding_that_is_back_after_a_restart_is_told_again() {
    let (world, mut hook) = (World::new(), Hook::start(&[]).await);
    world.shows([closed(7)]);
    world.start(&[hook.alert()]).stop().await;
    let opened = hook.next().await;
    assert_eq!(
        (opened.short().as_str(), hook.next().await.short().as_str()),
        ("+7", "-7")
    );
    world.shows([finding(7)]);
    let alerts = world.start(&[hook.alert()]);
    world.wait_for(&alerts, |s| s.findings[0].open).await;
    world
        .status
        .send_modify(|s| s.verified_up_to = Some("2026-03-14T09:26:54Z".into()));
    let again = hook.next().await;
    assert_eq!(again.short(), "+7");
    assert_ne!(again.header("webhook-id"), opened.header("webhook-id"));
    alerts.stop().await;
}

/// As after a kill: no stop, no last write. What was told is remembered as
/// soon as nothing more is due.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_durable_without_a_stop() {
    let (world, mut hook) = (World::new(), Hook::start(&[]).await);
    world.shows([finding(7)]);
    let alert = hook.alert();
    let alerts = world.start(std::slice::from_ref(&alert));
    hook.next().await;
    let file = alert.memory(world.dir.path());
    let written = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, written).await.expect("in time");
    drop(alerts);
    world.start(&[alert]).stop().await;
    hook.saw_nothing_else();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_durable_while_the_next_message_fails() {
    let answers = [vec![200], vec![500; 100_000]].concat();
    let (world, mut hook) = (World::new(), Hook::start(&answers).await);
    world.shows([finding(7), finding(8)]);
    let alerts = world.start(&[hook.alert()]);
    world.wait_for(&alerts, |s| s.alerts[0].failed >= 2).await;
    drop(alerts);
    assert_eq!(hook.shorts(3).await, ["+7", "+8", "+8"]);
    let alerts = world.start(&[hook.alert()]);
    world.wait_for(&alerts, |s| s.alerts[0].failed >= 2).await;
    drop(alerts);
    while let Ok(seen) = hook.seen.try_recv() {
        assert_eq!(seen.short(), "+8");
    }
}

/// One that is unreadable costs repetitions, never a finding, and no start.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_memory_is_begun_anew() {
    let (world, mut hook) = (World::new(), Hook::start(&[]).await);
    let alert = hook.alert();
    std::fs::write(alert.memory(world.dir.path()), "{\"format\":").unwrap();
    world.shows([finding(7)]);
    world.start(std::slice::from_ref(&alert)).stop().await;
    assert_eq!(hook.shorts(1).await, ["+7"]);
    world.start(&[alert]).stop().await;
    hook.saw_nothing_else();
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_arrive_in_the_trails_order() {
    let (world, mut hook) = (World::new(), Hook::start(&[500, 500]).await);
    world.shows((0..300).rev().map(finding));
    let alerts = world.start(&[hook.alert()]);
    let mut told = Vec::new();
    while told.len() < 302 {
        told.push(hook.next().await.json()["data"]["line"].as_u64().unwrap());
    }
    told.dedup();
    assert_eq!(told, (0..300).collect::<Vec<_>>());
    alerts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_is_believed() {
    let (world, mut hook) = (World::new(), Hook::start(&[200, 410]).await);
    world.shows([finding(7)]);
    let alerts = world.start(&[hook.alert()]);
    hook.next().await;
    world.shows([finding(7), finding(8)]);
    hook.next().await;
    let status = world.wait_for(&alerts, |s| s.trouble.is_some()).await;
    assert!(status.trouble.unwrap().contains("410 Gone"));
    world.shows([finding(7), finding(8), finding(9)]);
    alerts.stop().await;
    hook.saw_nothing_else();
    // A new start asks again: the operator may have mended it.
    world.start(&[hook.alert()]).stop().await;
    assert_eq!(hook.shorts(2).await, ["+8", "+9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_holds_up_nobody() {
    let mut world = World::new();
    world.pace.attempt = Duration::from_millis(50);
    world.pace.last = Duration::from_millis(50);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", silent.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let mut hook = Hook::start(&[]).await;
    world.shows([finding(7)]);
    let alerts = world.start(&[Alert::new(url), hook.alert()]);
    assert_eq!(hook.shorts(1).await, ["+7"]);
    world.wait_for(&alerts, |s| s.alerts[0].failed >= 2).await;
    world.shows([finding(7), finding(8)]);
    assert_eq!(hook.shorts(1).await, ["+8"]);
    let status = world.wait_for(&alerts, |s| s.findings.len() == 2).await;
    assert_eq!(status.alerts[0].delivered, 0);
    alerts.stop().await;
}

/// Writes `head`, then `filling` for ever; says how many bytes were taken.
async fn flood(head: &'static [u8], filling: &'static [u8]) -> (Url, mpsc::UnboundedReceiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, taken) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            read_request(&mut stream).await;
            let mut count = 0;
            let mut part = head;
            while let Ok(written) = stream.write(part).await {
                count += written as u64;
                part = filling;
            }
            let _ = sender.send(count);
        }
    });
    (Url::parse(&url).unwrap(), taken)
}

async fn read_request(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"}}") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "the request broke off");
        seen.extend_from_slice(&bytes[..read]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_is_cut_and_its_status_believed() {
    let world = World::new();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
    let (url, mut taken) = flood(head, &[b'x'; 65536]).await;
    world.shows([finding(7)]);
    let alerts = world.start(&[Alert::new(url)]);
    world
        .wait_for(&alerts, |s| s.alerts[0].delivered == 1)
        .await;
    let taken = tokio::time::timeout(LIMIT, taken.recv()).await.unwrap();
    // What the kernel holds for a closed socket is a few MiB.
    assert!(taken.unwrap() < 64 << 20, "{taken:?}");
    alerts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_head_is_a_failure() {
    let world = World::new();
    let (url, mut taken) = flood(b"HTTP/1.1 200 OK\r\nx: ", &[b'x'; 65536]).await;
    world.shows([finding(7)]);
    let alerts = world.start(&[Alert::new(url)]);
    let status = world.wait_for(&alerts, |s| s.alerts[0].failed == 1).await;
    assert_eq!(status.alerts[0].delivered, 0);
    let taken = tokio::time::timeout(LIMIT, taken.recv()).await.unwrap();
    assert!(taken.unwrap() < 64 << 20, "{taken:?}");
    // Dropped, not stopped: the receiver would still be tried.
    drop(alerts);
}

/// An authority, and a server for `localhost` that it vouches for.
struct Secured {
    ca: PathBuf,
    acceptor: TlsAcceptor,
}

fn secured(dir: &Path, name: &str) -> Secured {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let path = dir.join(name);
    let text = BASE64.encode(ca.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    std::fs::write(&path, pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    Secured {
        ca: path,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_receiver_that_a_known_authority_vouches_for_is_told() {
    let world = World::new();
    let (ours, theirs) = (
        secured(world.dir.path(), "ours.pem"),
        secured(world.dir.path(), "theirs.pem"),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut hook = Hook::serve(listener, &[], Some(ours.acceptor));
    let alert = |host: &str, ca: &Path| Alert {
        ca: Some(ca.to_owned()),
        ..Alert::new(Url::parse(&format!("https://{host}:{port}/tls")).unwrap())
    };
    let test = async |alert: Alert| alert.test(NOW_US, world.pace).await;

    let error = test(alert("localhost", &theirs.ca)).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let error = test(alert("127.0.0.1", &ours.ca)).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    hook.saw_nothing_else();

    world.shows([finding(7)]);
    let alerts = world.start(&[alert("localhost", &theirs.ca)]);
    world.wait_for(&alerts, |s| s.alerts[0].failed >= 2).await;
    drop(alerts);
    hook.saw_nothing_else();

    let alerts = world.start(&[alert("localhost", &ours.ca)]);
    let seen = hook.next().await;
    assert_eq!((seen.short().as_str(), seen.path.as_str()), ("+7", "/tls"));
    alerts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_authorities_are_refused_at_the_start() {
    let world = World::new();
    let path = world.dir.path().join("empty.pem");
    let alert = Alert {
        ca: Some(path.clone()),
        ..Alert::new(Url::parse("https://a.example/").unwrap())
    };
    let error = alert.test(NOW_US, world.pace).await.unwrap_err();
    assert!(error.contains("cannot read certificates"), "{error}");
    std::fs::write(&path, "").unwrap();
    let error = alert.test(NOW_US, world.pace).await.unwrap_err();
    assert!(error.contains("no certificate"), "{error}");
}

/// The first attempt fails and the next is an hour away: a stop does not wait
/// for it, and does not lose what is due.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_delivers_what_is_due() {
    let (mut world, mut hook) = (World::new(), Hook::start(&[500]).await);
    world.pace.retry_min = Duration::from_secs(3600);
    world.pace.retry_max = Duration::from_secs(3600);
    world.shows([finding(7)]);
    let alerts = world.start(&[hook.alert()]);
    world.wait_for(&alerts, |s| s.alerts[0].failed == 1).await;
    world.shows([finding(7), finding(8)]);
    alerts.stop().await;
    assert_eq!(hook.shorts(3).await, ["+7", "+7", "+8"]);
    world.start(&[hook.alert()]).stop().await;
    hook.saw_nothing_else();
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_for_a_minute_is_trouble_until_it_works() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    world.shows([finding(7)]);
    let url = Url::parse(&format!("http://{address}/T0KEN")).unwrap();
    let alerts = world.start(&[Alert::new(url)]);
    let status = world.wait_for(&alerts, |s| s.alerts[0].failed >= 3).await;
    assert_eq!(status.trouble, None, "no minute has passed");
    world.now_us.fetch_add(60_000_000, Ordering::Relaxed);
    let status = world.wait_for(&alerts, |s| s.trouble.is_some()).await;
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("cannot be connected to"), "{trouble}");
    assert!(!trouble.contains("T0KEN"), "{trouble}");
    let mut hook = Hook::serve(TcpListener::bind(address).await.unwrap(), &[], None);
    assert_eq!(hook.shorts(1).await, ["+7"]);
    world.wait_for(&alerts, |s| s.trouble.is_none()).await;
    alerts.stop().await;
}

/// What the guardian says of itself comes first, and its end is passed on.
#[tokio::test(flavor = "multi_thread")]
async fn the_guardians_own_trouble_and_end_are_passed_on() {
    let (world, hook) = (World::new(), Hook::start(&[410]).await);
    world.shows([finding(7)]);
    let alerts = world.start(&[hook.alert()]);
    world.wait_for(&alerts, |s| s.trouble.is_some()).await;
    let mut watched = alerts.watch(world.status.subscribe());
    world
        .status
        .send_modify(|s| s.trouble = Some("the disk is full".into()));
    world
        .wait_for(&alerts, |s| {
            s.trouble.as_deref() == Some("the disk is full")
        })
        .await;
    world.status.send_modify(|s| s.state = SourceState::Stopped);
    drop(world.status);
    let ended = async { while watched.changed().await.is_ok() {} };
    tokio::time::timeout(LIMIT, ended).await.expect("in time");
    assert_eq!(watched.borrow().state, SourceState::Stopped);
    assert_eq!(watched.borrow().alerts.len(), 1);
    alerts.stop().await;
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let alert = Alert {
        secret: Some(Secret::parse(SECRET).unwrap()),
        ..Alert::new(Url::parse("https://a.example/T0KEN?t=T0KEN").unwrap())
    };
    let shown = format!("{alert:?} {}", alert.label());
    assert!(
        !shown.contains("T0KEN") && !shown.contains(&SECRET[6..]),
        "{shown}"
    );
    let other = Alert::new(Url::parse("https://a.example/other").unwrap());
    assert_ne!(alert.label(), other.label());
    assert_ne!(alert.memory(Path::new("")), other.memory(Path::new("")));
}
