//! What goes over the wire: a real socket, requests written by hand, and a
//! guardian that records what it is given.

#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and not their helpers"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pitser_capture::fhir::{self, MAX_EVENT};
use pitser_evidence::Code;
use pitser_guardian::acceptance;
use pitser_guardian::approver::{Day, Power, Refused, Token};
use pitser_guardian::audit::Desk;
use pitser_guardian::erasure::{self, Asked};
use pitser_guardian::{FindingStatus, ScanSummary, SourceState, Status, SubmitError};
use pitser_web::{Guarded, Server, ServerHandle, Taken, WebError};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

const EVENT: &str = include_str!("../../../testdata/balp/ex-auditBasicReadServer.json");

// --- the guardian ------------------------------------------------------------

/// Takes events as a guardian does, and keeps them in memory.
#[derive(Clone)]
struct Recorder {
    status: watch::Receiver<Status>,
    events: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Events that are taken before it becomes unavailable.
    room: usize,
    at_one_step: Option<Duration>,
}

/// Which of the tokens that mean something here this one is.
fn spelled(token: &Token) -> &'static str {
    let known = ["known", "busy", "bound", "powerless", "expired"];
    let is_it = |it: &&str| Token::new(it).hash() == token.hash();
    known.into_iter().find(is_it).unwrap_or_default()
}

impl Guarded for Recorder {
    fn at_one_step(&self) -> Option<Duration> {
        self.at_one_step
    }

    fn desk(&self) -> Option<Arc<Desk>> {
        None
    }

    fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    async fn submit(&self, raw: Vec<u8>) -> Result<Taken, SubmitError> {
        let event = fhir::parse_audit_event(&raw)?;
        let mut events = self.events.lock().unwrap();
        let place = events.iter().position(|known| *known == raw);
        if place.is_none() && events.len() == self.room {
            return Err(SubmitError::Unavailable("disk full".into()));
        }
        let id = place.unwrap_or(events.len());
        if place.is_none() {
            events.push(raw);
        }
        Ok(Taken {
            id: id.to_string(),
            known: place.is_some(),
            lines: 1,
            profile_violations: event.profile_violations,
        })
    }

    async fn erasure(&self, asked: Asked) -> Result<erasure::Answer, Refused> {
        match spelled(&asked.token) {
            "known" => Ok(erasure::Answer::Holds(Vec::new())),
            "busy" => Err(Refused::Unavailable("disk full".into())),
            "bound" => Err(Refused::Rule("a hold stands".into())),
            _ => Err(Refused::Unknown),
        }
    }

    async fn accept_of(&self, asked: acceptance::AskedOf) -> Result<acceptance::Portion, Refused> {
        match spelled(&asked.token) {
            "known" => Ok(acceptance::Portion {
                by: "Mari Maasikas".into(),
                found: vec![acceptance::Counted {
                    code: Code::Unattributed,
                    table: asked.of.table,
                    count: 2,
                    first: asked.of.from,
                    last: asked.of.until,
                }],
                left: Vec::new(),
                lines: asked.reason.map(|_| (20, 21)),
                next: None,
            }),
            _ => Err(Refused::Unknown),
        }
    }

    async fn accept(&self, asked: acceptance::Asked) -> Result<acceptance::Answer, Refused> {
        let line = |finding: &u64| acceptance::Line {
            finding: *finding,
            line: 9,
        };
        match spelled(&asked.token) {
            "known" => Ok(acceptance::Answer {
                accepted: asked.findings.iter().map(line).collect(),
                by: "Mari Maasikas".into(),
            }),
            "powerless" => Err(Refused::Powerless {
                name: "Jaan Tamm".into(),
                power: Power::Accept,
            }),
            "expired" => Err(Refused::Expired {
                name: "Jaan Tamm".into(),
                until: Day::try_from("2026-01-31".to_owned()).unwrap(),
            }),
            _ => Err(Refused::Unknown),
        }
    }

    async fn scan(&self) -> Result<ScanSummary, String> {
        let status = self.status.borrow().clone();
        match status.trouble {
            Some(trouble) => Err(trouble),
            None => Ok(ScanSummary {
                rows: status.rows_verified,
                findings: status.findings,
                more: 0,
                unread: vec![],
            }),
        }
    }
}

fn status(name: &str) -> Status {
    Status {
        name: name.into(),
        origin: format!("hospital/{name}"),
        state: SourceState::Guarding,
        rows_verified: 2734,
        verified_up_to: Some("2026-03-14T09:26:53Z".into()),
        ..Status::default()
    }
}

fn recorder(status: Status, room: usize) -> (Recorder, watch::Sender<Status>) {
    let (publish, receiver) = watch::channel(status);
    let recorder = Recorder {
        status: receiver,
        events: Arc::default(),
        room,
        at_one_step: None,
    };
    (recorder, publish)
}

/// A server on loopback, and what is behind it.
struct Served {
    server: ServerHandle,
    guardians: Vec<Recorder>,
    publish: Vec<watch::Sender<Status>>,
}

fn serve(guardians: Vec<(Recorder, watch::Sender<Status>)>) -> Served {
    let (guardians, publish): (Vec<_>, Vec<_>) = guardians.into_iter().unzip();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(listen, guardians.clone()).unwrap();
    Served {
        server,
        guardians,
        publish,
    }
}

fn one() -> Served {
    serve(vec![recorder(status("ehr"), usize::MAX)])
}

// --- the client --------------------------------------------------------------

struct Answer {
    code: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Served {
    async fn send(&self, request: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        let has_host = headers.iter().any(|h| h.starts_with("Host:"));
        let mut head = format!("{request} HTTP/1.1\r\nConnection: close\r\n");
        if !has_host {
            head += "Host: localhost\r\n";
        }
        if request.starts_with("POST") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for header in headers {
            head += &format!("{header}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).await.unwrap();
        // The server may refuse a body before it has come.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        parse(&String::from_utf8(answer).unwrap())
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), &[], b"").await
    }

    async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        let kind = ["Content-Type: application/fhir+json"];
        self.send(&format!("POST {path}"), &kind, body.as_ref())
            .await
    }

    fn events(&self, source: usize) -> Vec<Vec<u8>> {
        self.guardians[source].events.lock().unwrap().clone()
    }
}

fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let code = lines.next().and_then(|l| l.split(' ').nth(1)).unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer {
        code: code.parse().unwrap(),
        headers,
        body: body.to_owned(),
    }
}

fn batch(events: &[&str]) -> String {
    let entries: Vec<_> = events
        .iter()
        .map(|event| {
            format!(r#"{{"resource":{event},"request":{{"method":"POST","url":"AuditEvent"}}}}"#)
        })
        .collect();
    let entries = entries.join(",");
    format!(r#"{{"resourceType":"Bundle","type":"batch","entry":[{entries}]}}"#)
}

// --- audit events ------------------------------------------------------------

#[tokio::test]
async fn an_event_is_taken_once_with_its_exact_bytes() {
    let served = one();
    let new = served.post("/fhir/AuditEvent", EVENT).await;
    assert_eq!((new.code, new.header("location")), (201, "AuditEvent/0"));
    assert_eq!(new.header("content-type"), "application/fhir+json");
    assert_eq!(new.json()["resourceType"], "OperationOutcome");
    assert_eq!(new.json()["issue"][0]["severity"], "information");
    let again = served.post("/fhir/AuditEvent", EVENT).await;
    assert_eq!(
        (again.code, again.header("location")),
        (200, "AuditEvent/0")
    );
    assert_eq!(served.events(0), [EVENT.as_bytes()]);
    let other = served.post("/fhir/AuditEvent", format!("{EVENT} ")).await;
    assert_eq!(
        (other.code, other.header("location")),
        (201, "AuditEvent/1")
    );
}

#[tokio::test]
async fn a_sender_that_wants_nothing_back_gets_nothing() {
    let prefer = ["Prefer: return=minimal"];
    let served = one();
    let answer = served
        .send("POST /fhir/AuditEvent", &prefer, EVENT.as_bytes())
        .await;
    assert_eq!((answer.code, answer.body.as_str()), (201, ""));
    assert_eq!(answer.header("location"), "AuditEvent/0");
}

#[tokio::test]
async fn profile_violations_are_told_and_do_not_refuse() {
    let mut event: Value = serde_json::from_str(EVENT).unwrap();
    event["agent"].as_array_mut().unwrap().truncate(1);
    let answer = one().post("/fhir/AuditEvent", event.to_string()).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let outcome = answer.json();
    let issues = outcome["issue"].as_array().unwrap();
    assert!(issues.len() > 1, "{issues:?}");
    assert!(
        issues
            .iter()
            .all(|issue| issue["severity"] == "information")
    );
}

#[tokio::test]
async fn what_is_no_event_is_refused_with_a_reason() {
    let served = one();
    let no_agent = r#"{"resourceType":"AuditEvent","type":{},"recorded":"2026-03-14T09:26:53Z"}"#;
    let too_large = vec![b' '; MAX_EVENT + 1];
    for (path, body, code, issue) in [
        ("/fhir/AuditEvent", &b"{"[..], 400, "structure"),
        ("/fhir/AuditEvent", b"\xff\xfe", 400, "structure"),
        ("/fhir/AuditEvent", b"", 400, "structure"),
        ("/fhir/AuditEvent", no_agent.as_bytes(), 422, "required"),
        (
            "/fhir/AuditEvent",
            br#"{"resourceType":"Patient"}"#,
            422,
            "value",
        ),
        ("/fhir/AuditEvent", &too_large, 413, "too-long"),
        (
            "/fhir",
            br#"{"resourceType":"Bundle","type":"transaction"}"#,
            422,
            "value",
        ),
        (
            "/fhir/nobody/AuditEvent",
            EVENT.as_bytes(),
            404,
            "not-found",
        ),
    ] {
        let answer = served.post(path, body).await;
        let outcome = answer.json();
        assert_eq!(answer.code, code, "{path} {outcome}");
        assert_eq!(outcome["resourceType"], "OperationOutcome");
        assert_eq!(outcome["issue"][0]["severity"], "error");
        assert_eq!(outcome["issue"][0]["code"], issue, "{path} {outcome}");
    }
    let form = ["Content-Type: text/plain"];
    let answer = served
        .send("POST /fhir/AuditEvent", &form, EVENT.as_bytes())
        .await;
    assert_eq!(answer.code, 415);
    assert!(served.events(0).is_empty());
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_too() {
    let served = one();
    let mut stream = TcpStream::connect(served.server.address()).await.unwrap();
    let head = "POST /fhir/AuditEvent HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    let (mut reads, mut writes) = stream.split();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let endless = async {
        while writes.write_all(chunk.as_bytes()).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = endless => {}
        read = reads.read_exact(&mut answer) => { read.unwrap(); }
    }
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let served = one();
    for path in [
        "/fhir",
        "/fhir/AuditEvent",
        "/api/erasure/ehr",
        "/api/accept/ehr",
    ] {
        let mut stream = TcpStream::connect(served.server.address()).await.unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Time passes as soon as nobody has anything else to do.
        tokio::time::pause();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        tokio::time::resume();
        let answer = parse(&String::from_utf8(answer).unwrap());
        assert_eq!(answer.code, 408, "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_kept_is_to_come_again() {
    let served = serve(vec![recorder(status("ehr"), 0)]);
    let answer = served.post("/fhir/AuditEvent", EVENT).await;
    assert_eq!((answer.code, answer.header("retry-after")), (503, "5"));
    assert_eq!(answer.json()["issue"][0]["code"], "transient");
    assert_eq!(answer.header("location"), "");
}

#[tokio::test]
async fn a_batch_is_answered_entry_by_entry() {
    let served = one();
    let bundle = batch(&[EVENT, r#"{"resourceType":"AuditEvent"}"#, EVENT]);
    let answer = served.post("/fhir", bundle).await;
    assert_eq!(answer.code, 200);
    let bundle = answer.json();
    assert_eq!(
        (&bundle["resourceType"], &bundle["type"]),
        (&json!("Bundle"), &json!("batch-response"))
    );
    let statuses: Vec<_> = (0..3)
        .map(|at| bundle["entry"][at]["response"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        statuses,
        ["201 Created", "422 Unprocessable Entity", "200 OK"]
    );
    assert_eq!(bundle["entry"][0]["response"]["location"], "AuditEvent/0");
    assert_eq!(
        bundle["entry"][1]["response"]["outcome"]["issue"][0]["severity"],
        "error"
    );
    assert_eq!(served.events(0), [EVENT.trim().as_bytes()]);
}

#[tokio::test]
async fn a_batch_that_was_not_wholly_kept_is_to_come_again() {
    let served = serve(vec![recorder(status("ehr"), 1)]);
    let other = EVENT.replacen("\"resourceType\"", " \"resourceType\"", 1);
    let third = format!(" {other}");
    let answer = served.post("/fhir", batch(&[EVENT, &other, &third])).await;
    assert_eq!((answer.code, answer.header("retry-after")), (503, "5"));
    let statuses: Vec<_> = answer.json()["entry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["response"]["status"].as_str().unwrap()[..3].to_owned())
        .collect();
    assert_eq!(statuses, ["201", "503", "503"]);
}

#[tokio::test]
async fn a_batch_may_come_to_the_path_of_events() {
    let served = one();
    assert_eq!(
        served.post("/fhir/AuditEvent", batch(&[EVENT])).await.code,
        200
    );
    assert_eq!(served.post("/fhir", EVENT).await.code, 200);
    assert_eq!(served.events(0).len(), 1);
}

#[tokio::test]
async fn paths_name_the_source() {
    let served = serve(vec![
        recorder(status("ehr"), usize::MAX),
        recorder(status("lab 2"), usize::MAX),
    ]);
    assert_eq!(
        served.post("/fhir/lab%202/AuditEvent", EVENT).await.code,
        201
    );
    assert_eq!(
        served.post("/fhir/lab%202", batch(&[EVENT])).await.code,
        200
    );
    assert_eq!((served.events(0).len(), served.events(1).len()), (0, 1));
    assert_eq!(served.post("/fhir/AuditEvent", EVENT).await.code, 201);
    assert_eq!((served.events(0).len(), served.events(1).len()), (1, 1));
    for path in ["/fhir/metadata", "/fhir/ehr/metadata"] {
        let statement = served.get(path).await.json();
        assert_eq!(statement["fhirVersion"], "4.0.1", "{path}");
    }
}

// --- browsers ----------------------------------------------------------------

#[tokio::test]
async fn foreign_pages_reach_nothing() {
    let served = one();
    for (request, header, code) in [
        ("GET /api/status", "Host: rebound.example.org", 421),
        ("GET /", "Host: rebound.example.org:7070", 421),
        ("POST /fhir/AuditEvent", "Sec-Fetch-Site: cross-site", 403),
        ("POST /api/scan/ehr", "Origin: https://example.org", 403),
        ("GET /api/status", "Host: 127.0.0.1:7070", 200),
    ] {
        let answer = served.send(request, &[header], EVENT.as_bytes()).await;
        assert_eq!(answer.code, code, "{request} {header}");
    }
    assert!(served.events(0).is_empty());
}

#[tokio::test]
async fn every_answer_carries_the_safe_headers() {
    let served = one();
    for path in ["/", "/api/status", "/metrics", "/health", "/nowhere"] {
        let answer = served.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), value, "{path} {name}");
        }
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path} {policy}");
        assert!(!policy.contains("unsafe"), "{path} {policy}");
    }
}

// --- status ------------------------------------------------------------------

#[tokio::test]
async fn the_page_says_it_without_javascript() {
    let served = one();
    let page = served.get("/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.body
            .contains("All 2,734 records are as they were sealed.")
    );
    served.publish[0].send_modify(|status| {
        status.findings.push(FindingStatus {
            code: "ROW-01".into(),
            table: Some("observation".into()),
            key: Some("<script>42".into()),
            columns: vec!["value".into()],
            at: "2026-03-14T09:26:53Z".into(),
            found_at_us: 0,
            text: "differs".into(),
            open: true,
            line: Some(7),
            accepted: None,
        });
    });
    let page = served.get("/").await.body;
    for text in [
        "1 record was changed behind the application’s back.",
        "&lt;script&gt;42",
        "ROW-01",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("<script>42"));
}

#[tokio::test]
async fn status_and_readiness() {
    let served = serve(vec![
        recorder(status("ehr"), usize::MAX),
        recorder(status("lab"), usize::MAX),
    ]);
    assert_eq!(served.get("/health").await.code, 200);
    let ready = served.get("/ready").await;
    assert_eq!(
        (ready.code, ready.json()["ready"].clone()),
        (200, json!(true))
    );
    served.publish[1].send_modify(|s| s.state = SourceState::DatabaseUnavailable);
    let ready = served.get("/ready").await;
    assert_eq!(ready.code, 503);
    let reason = &ready.json()["reasons"][0];
    assert_eq!(
        (&reason["source"], &reason["state"]),
        (&json!("lab"), &json!("database-unavailable"))
    );
    let all = served.get("/api/status").await.json();
    assert_eq!(all["sources"][0]["rows_verified"], 2734);
    assert_eq!(all["sources"][1]["state"], "database-unavailable");
    assert!(all["version"].is_string());
    let metrics = served.get("/metrics").await.body;
    assert!(
        metrics.contains("pitser_guarding{source=\"lab\"} 0\n"),
        "{metrics}"
    );
}

/// What it said last stands there too if it hangs, and looks well.
#[tokio::test]
async fn a_guardian_that_hangs_guards_nothing() {
    for (seconds, code, state) in [(119, 200, "guarding"), (120, 503, "stuck")] {
        let (mut recorder, publish) = recorder(status("ehr"), usize::MAX);
        recorder.at_one_step = Some(Duration::from_secs(seconds));
        let served = serve(vec![(recorder, publish)]);
        assert_eq!(served.get("/ready").await.code, code);
        let shown = served.get("/api/status").await.json();
        assert_eq!(shown["sources"][0]["state"], state);
    }
}

/// A guardian whose thread had died once went on being shown as guarding, since
/// its last status stood. Its end closes the channel: that is what counts.
#[tokio::test]
async fn a_guardian_that_is_gone_guards_nothing() {
    let mut served = one();
    served.publish.clear();
    assert_eq!(served.get("/ready").await.code, 503);
    assert_eq!(
        served.get("/api/status").await.json()["sources"][0]["state"],
        "stopped"
    );
    let page = served.get("/").await.body;
    assert!(page.contains("Nobody is guarding this source."), "{page}");
}

#[tokio::test]
async fn a_scan_is_answered_with_what_it_found() {
    let served = one();
    let answer = served.post("/api/scan/ehr", "").await;
    assert_eq!(answer.code, 200);
    assert_eq!(
        answer.json(),
        json!({ "source": "ehr", "rows": 2734, "findings": [], "more": 0, "unread": [] })
    );
    assert_eq!(served.post("/api/scan/nobody", "").await.code, 404);
    assert_eq!(served.get("/api/scan/ehr").await.code, 405);
    let form = [
        "Accept: text/html,application/xhtml+xml",
        "Sec-Fetch-Site: same-origin",
    ];
    let answer = served.send("POST /api/scan/ehr", &form, b"").await;
    assert_eq!((answer.code, answer.header("location")), (303, "/"));
    served.publish[0].send_modify(|s| s.trouble = Some("no such file".into()));
    let answer = served.post("/api/scan/ehr", "").await;
    assert_eq!(
        (answer.code, answer.json()),
        (503, json!({ "error": "no such file" }))
    );
}

// --- live --------------------------------------------------------------------

/// The next event of a stream, with its data.
async fn next_event(stream: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let mut name = String::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await.unwrap() > 0 {
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.trim().to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            return Some((name, serde_json::from_str(data).unwrap()));
        }
        line.clear();
    }
    None
}

async fn listen(served: &Served, path: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(served.server.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    BufReader::new(stream)
}

#[tokio::test]
async fn changes_are_told_as_they_come() {
    let served = serve(vec![
        recorder(status("ehr"), usize::MAX),
        recorder(status("lab"), usize::MAX),
    ]);
    let mut events = listen(&served, "/api/events").await;
    for name in ["ehr", "lab"] {
        let (event, status) = next_event(&mut events).await.unwrap();
        assert_eq!((event.as_str(), &status["name"]), ("status", &json!(name)));
    }
    // Only the source that changed is told again.
    served.publish[1].send_modify(|status| status.events = 77);
    let (_, status) = next_event(&mut events).await.unwrap();
    assert_eq!(
        (&status["name"], &status["events"]),
        (&json!("lab"), &json!(77))
    );
    // A guardian's end is a change.
    let mut served = served;
    served.publish.remove(0);
    let (_, status) = next_event(&mut events).await.unwrap();
    assert_eq!(
        (&status["name"], &status["state"]),
        (&json!("ehr"), &json!("stopped"))
    );
}

#[tokio::test]
async fn the_page_is_told_what_to_show() {
    let served = one();
    let mut events = listen(&served, "/live").await;
    let (event, page) = next_event(&mut events).await.unwrap();
    assert_eq!(event, "page");
    assert_eq!(page["title"], "Intact · ehr · Pitser");
    served.publish[0].send_modify(|status| status.rows_verified = 2735);
    let (_, page) = next_event(&mut events).await.unwrap();
    assert!(page["main"].as_str().unwrap().contains("All 2,735 records"));
}

#[tokio::test]
async fn stopping_ends_live_streams() {
    let served = one();
    let mut events = listen(&served, "/api/events").await;
    next_event(&mut events).await.unwrap();
    let address = served.server.address();
    let stopped = tokio::time::timeout(Duration::from_secs(4), served.server.stop());
    let (stopped, ended) = tokio::join!(stopped, next_event(&mut events));
    assert_eq!((stopped, ended), (Ok(()), None));
    assert!(TcpStream::connect(address).await.is_err());
}

// --- starting ----------------------------------------------------------------

#[tokio::test]
async fn a_port_in_use_is_named_with_a_way_out() {
    let served = one();
    let address = served.server.address();
    let error = Server::start(address, served.guardians.clone()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("another `listen` address"), "{text}");
}

#[tokio::test]
async fn sources_must_be_told_apart() {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let none = Server::start(listen, Vec::<Recorder>::new());
    assert!(matches!(none, Err(WebError::NoSource)));
    let (guardian, _publish) = recorder(status("ehr"), 0);
    let same = Server::start(listen, vec![guardian.clone(), guardian]);
    assert!(matches!(same, Err(WebError::SameName { name }) if name == "ehr"));
}

#[tokio::test]
async fn approvers_are_answered_by_their_token() {
    let served = one();
    let ask = async |token: &str| {
        let body = format!("{{\"token\":\"{token}\",\"ask\":{{\"holds\":{{}}}}}}");
        served.post("/api/erasure/ehr", body).await
    };
    let answer = ask("known").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "{\"holds\":[]}"));
    for (token, code) in [("T0KEN", 403), ("bound", 409), ("busy", 503)] {
        let answer = ask(token).await;
        assert_eq!(answer.code, code);
        assert!(answer.json()["error"].is_string() && !answer.body.contains("T0KEN"));
    }
    for body in ["", "{}", "{\"token\":\"T0KEN\",\"ask\":{\"nothing\":{}}}"] {
        let answer = served.post("/api/erasure/ehr", body).await;
        assert_eq!(answer.code, 400);
        assert!(!answer.body.contains("T0KEN"));
    }
    let long = served.post("/api/erasure/ehr", vec![b' '; 20_000]).await;
    assert_eq!(long.code, 413);
    assert_eq!(served.post("/api/erasure/other", "{}").await.code, 404);
}

#[tokio::test]
async fn an_approver_answers_for_findings() {
    let served = one();
    let ask = async |token: &str| {
        let body = format!("{{\"token\":\"{token}\",\"findings\":[7],\"reason\":\"why\"}}");
        served.post("/api/accept/ehr", body).await
    };
    let answer = ask("known").await;
    let done = r#"{"accepted":[{"finding":7,"line":9}],"by":"Mari Maasikas"}"#;
    assert_eq!((answer.code, answer.body.as_str()), (200, done));
    for token in ["T0KEN", "powerless", "expired"] {
        let answer = ask(token).await;
        assert_eq!(answer.code, 403);
        assert!(answer.json()["error"].is_string() && !answer.body.contains("T0KEN"));
    }
    let wrong = [
        r#"{"token":"T0KEN"}"#,
        r#"{"token":"T0KEN","findings":[-1],"reason":"why"}"#,
        r#"{"token":"T0KEN","findings":7,"reason":"why"}"#,
        r#"{"token":"T0KEN","findings":[],"reason":"why","ask":{}}"#,
    ];
    for body in wrong {
        let answer = served.post("/api/accept/ehr", body).await;
        assert_eq!(answer.code, 400);
        assert!(!answer.body.contains("T0KEN"));
    }
    let long = served.post("/api/accept/ehr", vec![b' '; 20_000]).await;
    assert_eq!(long.code, 413);
    assert_eq!(served.post("/api/accept/other", "{}").await.code, 404);
    let portion = async |of: &str, why: &str| {
        let body = format!("{{\"token\":\"known\",\"of\":{{{of}}}{why}}}");
        served.post("/api/accept/ehr/portion", body).await
    };
    let answer = portion(r#""from":7,"until":9,"code":"ACT-01""#, "").await;
    let found = r#"{"by":"Mari Maasikas","found":[{"code":"ACT-01","count":2,"first":7,"last":9}],"left":[]}"#;
    assert_eq!(
        (answer.code, answer.json()),
        (200, serde_json::from_str(found).unwrap())
    );
    let answer = portion(r#""from":7,"until":9"#, r#","reason":"why""#).await;
    assert_eq!(answer.json()["lines"], json!([20, 21]));
    for wrong in [r#""from":7"#, r#""from":7,"until":9,"code":"ACT-99""#] {
        assert_eq!(portion(wrong, "").await.code, 400);
    }
}
