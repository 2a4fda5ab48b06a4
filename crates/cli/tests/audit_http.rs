//! `pitser audit follow URL`: an auditor follows a running guardian and has rows opened.
//! Who is not named hears nothing; who lies is not signed for.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;
#[path = "common/hospital.rs"]
mod hospital;
#[path = "common/tls.rs"]
mod tls;

use common::copy_folder::copy_folder;
use common::{Process, Said, pitser};
use data_encoding::{BASE64, HEXLOWER};
use hospital::{Hospital, ORIGIN, witness_in, witnessed, word_after};
use pitser_evidence::audit::Statement;
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Line, Op};
use pitser_tlog::note::{Note, SigningKey};
use pitser_trail::export::Exporter;
use pitser_trail::{Draft, Layout, PatientId, Row, Trail};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const EXPORT: &str = "evidence export --patient pt-1 -o e.pitser --force --json";
const VERIFY: &str = "verify e.pitser --anchors anchors.toml --json";

/// A hospital and an auditor whom its guardian knows.
struct Audit {
    hospital: Hospital,
}

impl Audit {
    fn new() -> Self {
        Self::with("", "")
    }

    /// With more lines in the configuration: of `[guard]`, and of the auditor.
    fn with(guard: &str, auditor: &str) -> Self {
        let hospital = Hospital::new();
        hospital.anchors();
        let audit = Self { hospital };
        let said = audit.run("audit init --dir a --name auditor.example/auditor");
        let key = word_after(&said.exits(0), "key");
        audit.configure(|config| {
            let quick = "witness_every_s = 1";
            config.replace(quick, &format!("{quick}\n{guard}"))
                + &format!("[[auditor]]\nname = \"chamber\"\nkey = \"{key}\"\n{auditor}\n")
        });
        let anchors = audit.path("anchors.toml");
        let text = fs::read_to_string(&anchors).unwrap();
        fs::write(anchors, format!("{text}\n[[auditor]]\nkey = \"{key}\"\n")).unwrap();
        audit
    }

    fn configure(&self, change: impl FnOnce(String) -> String) {
        let path = self.path("pitser.toml");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(path, change(config)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.hospital.dir.path().join(name)
    }

    fn run(&self, args: &str) -> Said {
        self.hospital.run(args)
    }

    fn follow_at(&self, address: &str, dir: &str) -> String {
        let publications = &self.hospital.dev.publications;
        format!(
            "audit follow http://{address} --anchors anchors.toml --dir {dir} --json -P {publications}"
        )
    }

    fn follow(&self) -> String {
        self.follow_at(&self.hospital.listen, "a")
    }

    /// Changes a row, and waits until that is sealed and cosigned.
    fn goes_on(&mut self, note: &str) {
        let blocks = self.hospital.status(witnessed(1))["blocks"].as_u64();
        self.hospital.change(note);
        let is_sealed = |status: &Value| status["unsealed"] == 0;
        let status = self
            .hospital
            .status(|status| witnessed(blocks.unwrap() + 1)(status) && is_sealed(status));
        let sealed = status["sealed_up_to"].as_str().unwrap().to_owned();
        self.hospital.dev.published(&sealed);
    }

    /// Names of the steps of the evidence's judgement that wait.
    fn waiting(&self, code: i32) -> Vec<String> {
        self.run(EXPORT).exits(0);
        let report = self.run(VERIFY).exits(code).json();
        let steps = report["steps"].as_array().unwrap().iter();
        let waiting = steps.filter(|step| step["state"] == "waiting");
        waiting
            .map(|step| step["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn statements(&self) -> Vec<u8> {
        fs::read(self.path("a/statements")).unwrap()
    }

    /// Another auditor's folder with the same key and none of the copies.
    fn afresh(&self, dir: &str) {
        let to = self.path(dir);
        fs::create_dir_all(to.join("trails")).unwrap();
        fs::copy(self.path("a/key"), to.join("key")).unwrap();
        fs::write(to.join("statements"), "").unwrap();
    }

    fn trail(&self, name: &str) -> PathBuf {
        let trail = self.path("a/trails").join(&self.hospital.genesis);
        trail.join(name)
    }
}

#[test]
fn evidence_becomes_intact_without_anybody_carrying_files() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    assert_eq!(audit.waiting(2), ["audit"]);
    audit.run("guard scan").exits(0);

    let follow = audit.follow();
    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["verdict"], "intact");
    assert!(said["sample_live"].as_u64() > Some(0), "{said}");
    assert_eq!(said["sample_live_wrong"].as_array().unwrap().len(), 0);
    assert_eq!(said["signed"], true);
    assert_eq!(said["given"], true);
    assert!(said["seals_keyed"].as_u64().unwrap() > 0, "{said}");
    let sampled = said["sampled"].as_array().unwrap();
    assert!(!sampled.is_empty(), "{said}");
    assert_eq!(said["sample_agreed"], sampled.len());
    assert_eq!(said["sample_refused"].as_array().unwrap().len(), 0);
    assert_eq!(audit.waiting(0), [""; 0]);

    // With nothing new, nothing is signed, fetched or sampled again.
    let again = audit.run(&follow).exits(0).json();
    if again["block"] == said["block"] {
        assert_eq!(again["signed"], false);
        assert_eq!(again["replayed_blocks"], 0);
    }
    assert_eq!(again["sampled"], Value::Null);
    audit.goes_on("c");
    let more = audit.run(&follow).exits(0).json();
    assert_eq!(more["signed"], true);
    let (before, now) = (again["block"].as_u64(), more["block"].as_u64());
    assert_eq!(
        more["replayed_blocks"].as_u64(),
        Some(now.unwrap() - before.unwrap())
    );
    // From the genesis on: fetched again, too.
    let anew = audit.run(&format!("{follow} --anew")).exits(0).json();
    assert!(anew["replayed_blocks"].as_u64().unwrap() > now.unwrap());
    assert!(!audit.trail("copy.new").exists());
    // What the guardian has found wrong with a live row it says of the row's line, too.
    audit.hospital.change_unseen("d");
    audit.run("guard scan").exits(1);
    audit.hospital.status(witnessed(now.unwrap() + 2));
    let again = format!("{follow} --sample-every 0");
    let said = audit.run(&again).exits(0).json();
    assert_eq!(said["sample_live"], 0, "{said}");
    assert!(
        !said["sample_live_wrong"].as_array().unwrap().is_empty(),
        "{said}"
    );
    guardian.stop();
    assert_eq!(audit.waiting(0), [""; 0]);
}

/// Lines come while he waits for them; both sides are killed, and go on.
#[test]
fn he_follows_as_lines_come_and_resumes_after_both_were_killed() {
    let mut audit = Audit::with("segment_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let follow = format!("{} --every 20", audit.follow());
    let begin = |audit: &Audit| {
        let mut child = pitser(audit.hospital.dir.path())
            .args(follow.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        (Process(child), said)
    };
    let (auditor, mut said) = begin(&audit);
    let next = |said: &mut std::io::Lines<BufReader<_>>| -> u64 {
        let said: Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
        assert_eq!(said["verdict"], "intact", "{said}");
        assert_eq!(said["given"], true, "{said}");
        said["block"].as_u64().unwrap()
    };
    let first = next(&mut said);
    audit.goes_on("c");
    let mut second = next(&mut said);
    while second == first {
        second = next(&mut said);
    }
    auditor.kill();
    audit.goes_on("d");
    let (auditor, mut said) = begin(&audit);
    let mut third = next(&mut said);
    while third <= second {
        third = next(&mut said);
    }
    guardian.kill();
    let guardian = audit.hospital.guard();
    audit.goes_on("e");
    let mut fourth = next(&mut said);
    while fourth <= third {
        fourth = next(&mut said);
    }
    // Asked to end in the middle of a wait, he does.
    auditor.stop();
    guardian.stop();
    let text = fs::read_to_string(audit.path("a/statements")).unwrap();
    let sizes: Vec<u64> = text.lines().map(size_of).collect();
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    assert_eq!(audit.waiting(0), [""; 0]);
}

/// Killed at any moment, with lines coming meanwhile, he goes on with his copy.
#[test]
fn a_killed_auditor_goes_on_with_his_copy() {
    let mut audit = Audit::with("segment_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    for moment in 0..25 {
        audit.hospital.change(&format!("c{moment}"));
        let child = pitser(audit.hospital.dir.path())
            .args(audit.follow().split(' '))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment * 6));
        Process(child).kill();
    }
    audit.goes_on("d");
    let said = audit.run(&audit.follow()).exits(0).json();
    assert_eq!(said["given"], true);
    guardian.stop();
    let text = fs::read_to_string(audit.path("a/statements")).unwrap();
    let sizes: Vec<u64> = text.lines().map(size_of).collect();
    assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    assert!(
        !audit.trail("copy.new").exists(),
        "nothing had to be fetched again"
    );
}

fn size_of(line: &str) -> u64 {
    let entry: Value = serde_json::from_str(line).unwrap();
    let size = entry["note"].as_str().unwrap().lines().nth(4).unwrap();
    size.split_once(' ').unwrap().0.parse().unwrap()
}

/// One request by hand: status and body.
fn ask(listen: &str, method: &str, target: &str, authorization: &str) -> (String, String) {
    ask_with(listen, method, target, authorization, "")
}

fn ask_with(
    listen: &str,
    method: &str,
    target: &str,
    authorization: &str,
    body: &str,
) -> (String, String) {
    let mut stream = TcpStream::connect(listen).unwrap();
    let authorization = match authorization {
        "" => String::new(),
        header => format!("Authorization: {header}\r\n"),
    };
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {listen}\r\n{authorization}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Whoever is not named hears the same, whatever he asks and however he signs.
#[test]
fn strangers_hear_nothing() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let listen = audit.hospital.listen.clone();
    let proxy = Proxy::start(&listen, |_, answer| answer);
    audit.run(&audit.follow_at(&proxy.address, "a")).exits(0);
    // What the auditor signed, sent once more, as who listens on the way could.
    let heard = proxy.requests();
    let state = heard
        .iter()
        .find(|request| request.starts_with("GET /audit/ehr/state"));
    let state = state.unwrap();
    let authorization = state
        .lines()
        .find_map(|line| line.strip_prefix("authorization: "))
        .unwrap();
    let target = state.split(' ').nth(1).unwrap();
    let mut bodies = Vec::new();
    for (method, target, authorization) in [
        ("GET", target, authorization),
        ("GET", "/audit/ehr/publications", authorization),
        ("GET", "/audit/ehr/state", ""),
        ("GET", "/audit/other/state", ""),
        ("GET", "/audit/ehr/segments/0/lines?from=0", "Bearer x"),
        (
            "GET",
            "/audit/ehr/segments/0/lines?from=0",
            "Pitser-Audit 1 00 AA==",
        ),
        ("GET", "/audit/ehr/nothing", ""),
        ("POST", "/audit/ehr/sample", ""),
        ("POST", "/audit/ehr/statement", ""),
        ("POST", "/audit/ehr/state", authorization),
    ] {
        let (status, body) = ask(&listen, method, target, authorization);
        assert_eq!(status, "HTTP/1.1 401 Unauthorized", "{method} {target}");
        let mut body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["now_ms"].take().is_u64());
        bodies.push(body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");

    // An auditor whom the configuration does not have.
    audit
        .run("audit init --dir b --name other.example/auditor")
        .exits(0);
    audit
        .run(&audit.follow_at(&listen, "b"))
        .exits(4)
        .says("[[auditor]]");
    // He may have the key elsewhere.
    fs::rename(audit.path("b/key"), audit.path("b.key")).unwrap();
    audit
        .run(&format!("{} --key b.key", audit.follow_at(&listen, "b")))
        .exits(4);
    fs::copy(audit.path("a/key"), audit.path("a.key")).unwrap();
    audit
        .run(&format!("{} --key a.key", audit.follow_at(&listen, "b")))
        .exits(0);
    guardian.stop();
}

type Change = dyn Fn(&str, Vec<u8>) -> Vec<u8> + Send + Sync;

/// Stands between auditor and guardian, and may change what the guardian answers. Each
/// connection carries one request.
struct Proxy {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// `change` is told the target, and what was answered from the first byte on.
    fn start(
        guardian: &str,
        change: impl Fn(&str, Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (guardian, change, kept) = (
            guardian.to_owned(),
            Arc::new(change) as Arc<Change>,
            Arc::clone(&requests),
        );
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (guardian, change, kept) =
                    (guardian.clone(), Arc::clone(&change), Arc::clone(&kept));
                // A client that goes away in the middle is no concern of this one.
                std::thread::spawn(move || carry(client.ok()?, &guardian, &*change, &kept));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn carry(
    mut client: TcpStream,
    guardian: &str,
    change: &Change,
    kept: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let head = String::from_utf8(request.clone()).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).ok()?;
    // As where it stands below a path of its own.
    let head = head.replacen(" /pitser/", " /", 1);
    kept.lock().unwrap().push(head.clone());
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let mut upstream = TcpStream::connect(guardian).ok()?;
    let host = head
        .lines()
        .find(|line| line.starts_with("host: "))
        .unwrap();
    let head = head.replace(host, &format!("host: {guardian}\r\nconnection: close"));
    upstream.write_all(head.as_bytes()).ok()?;
    upstream.write_all(&body).ok()?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).ok()?;
    client.write_all(&change(&target, answer)).ok()?;
    client.shutdown(Shutdown::Write).ok()
}

/// An answer with another body.
fn with_body(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn body_of(answer: &[u8]) -> Vec<u8> {
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    answer[at + 4..].to_vec()
}

/// Whatever stands at the address, nothing else than the trail is ever signed.
#[test]
fn whatever_a_liar_answers_is_not_signed() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let listen = audit.hospital.listen.clone();
    // An honest look, so that there is something to go on from.
    audit.run(&audit.follow()).exits(0);
    audit.goes_on("c");
    let before = audit.statements();
    let altered = |part: &'static str| {
        move |target: &str, answer: Vec<u8>| {
            let mut body = body_of(&answer);
            if !target.contains(part) || body.len() < 60 {
                return answer;
            }
            let at = body.len() - 40;
            body[at] ^= 1;
            with_body("200 OK", &body)
        }
    };
    let state = |change: fn(&mut Value)| {
        move |target: &str, answer: Vec<u8>| {
            if !target.contains("/state") {
                return answer;
            }
            let mut state: Value = serde_json::from_slice(&body_of(&answer)).unwrap();
            change(&mut state);
            with_body("200 OK", state.to_string().as_bytes())
        }
    };
    let follow = |change: Box<Change>| {
        let proxy = Proxy::start(&listen, change);
        audit.run(&audit.follow_at(&proxy.address, "a"))
    };
    // A trail that is not what was sealed.
    for part in ["/lines", "/blocks"] {
        let said = follow(Box::new(altered(part))).exits(1).json();
        assert_eq!(said["verdict"], "broken", "{part}: {said}");
        assert_eq!(said["signed"], false, "{part}: {said}");
    }
    // A head that nobody cosigned, or none.
    follow(Box::new(state(|state| state["head"] = Value::Null)))
        .exits(2)
        .says("no cosigned head");
    follow(Box::new(state(|state| {
        let head = state["head"].as_str().unwrap();
        let own: Vec<&str> = head.split_inclusive('\n').take(5).collect();
        state["head"] = own.concat().into();
    })))
    .exits(2)
    .says("0 of 1 required witnesses");
    // Segments that are not there, longer than they are, or longer than anything.
    follow(Box::new(state(|state| {
        state["segments"] = Value::Array(Vec::new())
    })))
    .exits(4)
    .says("no segment of its trail");
    follow(Box::new(state(|state| {
        state["segments"][0]["lines"] = (100 << 20).into();
    })))
    .exits(4)
    .says("not as long as it says");
    follow(Box::new(state(|state| {
        state["segments"][0]["lines"] = u64::MAX.into();
    })))
    .exits(4)
    .says("does not answer as a guardian does");
    // No guardian, or one that fails.
    follow(Box::new(|_: &str, _| b"SSH-2.0-x\r\n".to_vec())).exits(4);
    follow(Box::new(|_: &str, _| Vec::new())).exits(4);
    follow(Box::new(|_: &str, _| with_body("200 OK", b"<html>")))
        .exits(4)
        .says("cannot be read");
    follow(Box::new(|_: &str, _| {
        with_body("500 Oops", b"{\"error\": \"a\\u0007b\"}")
    }))
    .exits(4)
    .says("HTTP 500: ab");
    let endless = |_: &str, _: Vec<u8>| {
        let mut body = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n".to_vec();
        body.resize(8 << 20, b'x');
        body
    };
    follow(Box::new(endless)).exits(4).says("is longer than");
    assert_eq!(audit.statements(), before);
    guardian.stop();
    // A dead one.
    audit.run(&audit.follow()).exits(4);
    assert_eq!(audit.statements(), before);
    // All of that was no reason to doubt the trail itself.
    let guardian = audit.hospital.guard();
    let said = audit.run(&audit.follow()).exits(0).json();
    assert_eq!(said["signed"], true);
    guardian.stop();
}

/// A guardian that takes the request and says nothing is waited for, but not for ever.
#[test]
fn a_silent_guardian_is_given_up() {
    let audit = Audit::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (keep, kept): (_, Receiver<TcpStream>) = channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            keep.send(client).unwrap();
        }
    });
    audit
        .run(&audit.follow_at(&address, "a"))
        .exits(4)
        .says("did not answer within");
    drop(kept);
}

/// In the files of the running guardian, or a copy of them put in their place.
#[test]
fn a_line_that_was_altered_at_the_site_is_found() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    audit.run(&audit.follow()).exits(0);
    let path = audit.path("guard/ehr/trail/000000.jsonl");
    let honest = fs::read(&path).unwrap();
    let mut lines = honest.clone();
    let second = lines.iter().position(|b| *b == b'\n').unwrap() + 1;
    let at = lines[second..]
        .windows(6)
        .position(|w| w == b"\"at\":\"")
        .unwrap();
    let digit = &mut lines[second + at + 9];
    *digit = if *digit == b'1' { b'2' } else { b'1' };
    overwrite(&path, &lines);
    audit.afresh("b");
    let said = audit
        .run(&audit.follow_at(&audit.hospital.listen, "b"))
        .exits(1)
        .json();
    assert_eq!(said["code"], "TRL-01");
    let anew = format!("{} --anew", audit.follow());
    assert_eq!(audit.run(&anew).exits(1).json()["code"], "TRL-01");
    // The copy from before is kept beside what is served now.
    let copy = fs::read(audit.trail("copy/trail/000000.jsonl")).unwrap();
    assert!(honest.starts_with(&copy));
    assert!(audit.trail("copy.new/trail/000000.jsonl").exists());
    // A copy that rots with the auditor is no reason to accuse anybody.
    overwrite(&path, &honest);
    audit.goes_on("c");
    let copied = audit.trail("copy/trail/000000.jsonl");
    let mut rotten = copy.clone();
    let last = rotten.len() - 30;
    rotten[last] ^= 1;
    fs::write(&copied, &rotten).unwrap();
    fs::remove_dir_all(audit.trail("map")).unwrap();
    audit.run(&audit.follow()).exits(0);
    guardian.stop();
}

/// Over the bytes that are there, while the writer has the file open.
fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

impl Audit {
    /// The operator writes one more line about the only record, while no guardian runs:
    /// whatever `change` makes of the newest one. If that is about another patient, a
    /// `relink` says so, or nobody would follow the trail any more.
    fn forges(&self, change: impl FnOnce(&mut Draft)) {
        self.forges_under(None, change);
    }

    /// The same, in a block that is closed under another mapping from tables to patients.
    fn forges_under(&self, mapping: Option<Digest>, change: impl FnOnce(&mut Draft)) {
        let layout = Layout::new(self.path("guard/ehr"));
        let (line, row, key) = {
            let mut exporter = Exporter::open(layout.clone()).unwrap();
            let newest = (0..exporter.lines_read()).rev().find_map(|seq| {
                let (line, opened) = exporter.opened(seq).unwrap();
                Some((line, opened?.1)).filter(|(line, _)| line.row.is_some())
            });
            let (line, content) = newest.unwrap();
            (line, content.row.unwrap(), content.key.unwrap())
        };
        let (mut trail, (), _) = Trail::open::<()>(layout).unwrap();
        let newest = trail.line(trail.state().next_seq() - 1).unwrap().unwrap();
        let mut draft = Draft {
            table: line.table.clone(),
            key: Some(key),
            patient: Some(PatientId::Id("pt-1".into())),
            row: Some(row),
            ..Draft::new(Op::Update, newest.at, &line.source, newest.pos.clone())
        };
        let owner = draft.patient.clone();
        change(&mut draft);
        let moves = draft.patient != owner;
        let relink = moves.then(|| Draft {
            op: Op::Relink,
            patient: owner,
            row: None,
            ..draft.clone()
        });
        let event: Vec<Draft> = relink.into_iter().chain([draft]).collect();
        block_of(&mut trail, event, mapping);
    }
}

/// Writes a block of one event, at the newest line's time and position.
fn block_of(trail: &mut Trail, event: Vec<Draft>, mapping: Option<Digest>) {
    let newest = trail.line(trail.state().next_seq() - 1).unwrap().unwrap();
    trail.append(event).unwrap();
    trail.commit().unwrap();
    let mapping = mapping.unwrap_or_else(|| newest_mapping(trail));
    trail
        .close_block(newest.at, &newest.pos, mapping, "forged")
        .unwrap();
}

/// Who makes evidence that leaves something out is told what, and what to say to
/// whoever verifies it.
#[test]
fn lines_that_are_left_out_of_a_shared_list_are_told() {
    let mut audit = Audit::with("scan_every_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    guardian.stop();
    let (mut trail, (), _) = Trail::open::<()>(Layout::new(audit.path("guard/ehr"))).unwrap();
    let newest = trail.line(trail.state().next_seq() - 1).unwrap().unwrap();
    let read = Draft {
        patient: Some(PatientId::Unknown),
        ..Draft::new(Op::Read, newest.at, "ehr", newest.pos)
    };
    // The last one that is not asked for stays: it leads to those before it.
    for _ in 0..2 {
        block_of(&mut trail, vec![read.clone()], None);
    }
    drop(trail);
    let guardian = audit.hospital.guard();
    audit.goes_on("c");
    let status = audit.hospital.status(|status| status["unsealed"] == 0);
    let since = format!(
        "--shared-since {}",
        status["sealed_up_to"].as_str().unwrap()
    );

    let export = EXPORT.replace(" --json", "");
    let whole = audit.run(&export).exits(0);
    assert!(!whole.out.contains("NOT IN IT"), "{whole:?}");
    let part = audit.run(&format!("{export} {since}")).exits(0);
    let told = "NOT IN IT: the first 1 line of *unknown";
    assert!(part.out.contains(told), "{part:?}");
    assert!(
        part.out.contains(&format!("ANCHORS.toml {since}")),
        "{part:?}"
    );
    let is_complete = |verify: &str| {
        let report = audit.run(verify).exits(2).json();
        let mut steps = report["steps"].as_array().unwrap().iter();
        let step = steps.find(|step| step["name"] == "complete").unwrap();
        step["state"] == "matches"
    };
    assert!(!is_complete(VERIFY));
    assert!(is_complete(&format!("{VERIFY} {since}")));
    guardian.stop();
}

fn newest_mapping(trail: &Trail) -> Digest {
    let lines = (0..trail.state().next_seq()).rev();
    let mut checkpoints = lines.filter_map(|seq| trail.line(seq).unwrap()?.checkpoint);
    checkpoints.next().unwrap().mapping
}

/// The trail is sealed, cosigned and replayed: nothing but the row itself shows that its
/// line stands in the list of somebody else.
#[test]
fn a_line_about_another_patient_than_its_row_is_found_by_the_sample() {
    let mut audit = Audit::with("scan_every_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    guardian.stop();
    audit.forges(|draft| draft.patient = Some(PatientId::Id("pt-2".into())));
    let guardian = audit.hospital.guard();
    audit.goes_on("c");
    // Without a sample nobody notices.
    audit.afresh("b");
    let blind = format!(
        "{} --sample 0",
        audit.follow_at(&audit.hospital.listen, "b")
    );
    audit.run(&blind).exits(0);

    let said = audit.run(&audit.follow()).exits(1).json();
    assert_eq!(said["code"], "EVD-03", "{said}");
    assert!(said.to_string().contains("about another patient"), "{said}");
    assert!(audit.statements().is_empty());
    // It stays found.
    let said = audit.run(&audit.follow().replace(" --json", "")).exits(1);
    said.says("EVD-03");
    // However the lines come: here from the folder itself.
    let folder = "audit follow guard/ehr --anchors anchors.toml --dir a";
    audit.run(folder).exits(1).says("EVD-03");
    assert!(audit.statements().is_empty());
    let kept = fs::read_to_string(audit.trail("wrong.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let line: Line = serde_json::from_value(kept["line"].clone()).unwrap();
    assert_eq!(line.op, Op::Update);
    // What was shown of it is its key and its patient, and nothing else.
    let columns = kept["shown"]["columns"].as_array().unwrap();
    let open = columns.iter().filter(|column| column["nonce"].is_string());
    let open: Vec<_> = open
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(open, ["id", "patient"]);
    guardian.stop();
}

/// For a while a row's patient is found as the operator likes: the mapping that the site
/// shows fits the block. That it was another one stands in the checkpoints.
#[test]
fn a_mapping_that_was_changed_for_a_while_is_told() {
    let mut audit = Audit::with("scan_every_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let said = audit.run(&audit.follow()).exits(0).json();
    assert_eq!(said["mapping_changes"], 0, "{said}");
    let blocks = said["block"].as_u64().unwrap() + 1;
    guardian.stop();
    audit.forges_under(Some(Digest::of(&[b"entry\tnote\n"])), |_| {});
    let guardian = audit.hospital.guard();
    audit.goes_on("c");
    let follow = format!(
        "{} --sample 0",
        audit.follow_at(&audit.hospital.listen, "a")
    );
    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["mapping_changes"], 2, "{said}");
    let changed: Vec<_> = said["mapping_changed"].as_array().unwrap().to_vec();
    assert!(changed[0].as_u64() >= Some(blocks), "{said}");
    assert_eq!(changed[1].as_u64(), changed[0].as_u64().map(|it| it + 1));
    // Who begins anew is told of it too.
    audit.afresh("b");
    let follow = format!(
        "{} --sample 0",
        audit.follow_at(&audit.hospital.listen, "b")
    );
    let anew = audit.run(&follow).exits(0).json();
    assert_eq!(anew["mapping_changed"], said["mapping_changed"], "{anew}");
    guardian.stop();
}

#[test]
fn a_line_about_another_record_than_its_row_is_found_by_the_sample() {
    let mut audit = Audit::with("scan_every_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    guardian.stop();
    audit.forges(|draft| {
        let Row { names, values } = draft.row.take().unwrap();
        let mut values = values;
        let id = names.iter().position(|name| name == "id").unwrap();
        let mut other = values[id].clone().unwrap().into_vec();
        *other.last_mut().unwrap() = b'7';
        values[id] = Some(other.into());
        draft.row = Some(Row { names, values });
    });
    let guardian = audit.hospital.guard();
    audit.goes_on("c");
    let said = audit.run(&audit.follow()).exits(1).json();
    assert_eq!(said["code"], "EVD-03", "{said}");
    assert!(said.to_string().contains("key is not the row's"), "{said}");
    guardian.stop();
}

/// What the site keeps back is counted, and keeps nobody from signing. If it opens too few
/// rows, nothing is signed until it does.
#[test]
fn what_is_not_opened_is_told() {
    let mut audit = Audit::with("", "table_keys = false\nrows_per_day = 8");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let said = audit.run(&audit.follow()).exits(0).json();
    let sampled = said["sampled"].as_array().unwrap().len();
    assert_eq!(said["sample_agreed"], 0, "{said}");
    assert_eq!(said["sample_partly"].as_array().unwrap().len(), sampled);
    audit.goes_on("c");
    // Once a day, unless asked otherwise.
    let again = format!("{} --sample-every 0", audit.follow());
    let mut said = audit.run(&audit.follow()).exits(0).json();
    assert_eq!(said["sampled"], Value::Null);
    let tolerant = format!("{again} --refusals-at-most 100");
    let mut round = 0;
    while said["sample_refused"].as_array().is_none_or(Vec::is_empty) {
        round += 1;
        audit.goes_on(&format!("d{round}"));
        said = audit.run(&tolerant).exits(0).json();
        assert!(round < 9, "{said}");
    }
    assert_eq!(said["signed"], true);
    audit.goes_on("e");
    let text = |command: &str| command.replace(" --json", "");
    audit.run(&text(&tolerant)).exits(0).says("rows a day");

    audit.goes_on("f");
    let signed = audit.statements();
    let said = audit.run(&again).exits(2).json();
    assert_eq!(said["verdict"], "unconfirmed", "{said}");
    assert_eq!(said["signed"], false);
    assert_eq!(said["refusals_at_most"], 10);
    assert_eq!(said["sample_refused"], said["sampled"], "{said}");
    // It stays so, whether or not another sample is due, and whatever comes.
    audit
        .run(&text(&audit.follow()))
        .exits(2)
        .says("rows a day");
    audit.goes_on("g");
    let waiting = audit.run(&audit.follow()).exits(2).json();
    assert_eq!(waiting["sampled"], said["sampled"]);
    assert_eq!(audit.statements(), signed);
    guardian.stop();
    // The operator opens more of them.
    audit.configure(|config| config.replace("rows_per_day = 8", "rows_per_day = 200"));
    let guardian = audit.hospital.guard();
    let said = audit.run(&again).exits(0).json();
    assert_eq!(said["signed"], true, "{said}");
    assert_eq!(said["sample_refused"].as_array().unwrap().len(), 0);
    let kept = fs::read_to_string(audit.trail("samples")).unwrap();
    assert!(!kept.contains("pt-1"), "no identifier is kept: {kept}");
    // What was new, and refused, was still new then.
    let samples: Vec<Value> = kept
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [.., refused, opened] = &samples[..] else {
        panic!("{kept}");
    };
    assert_ne!(refused["refused"], serde_json::json!([]));
    assert_eq!(opened["refused"], serde_json::json!([]));
    guardian.stop();
}

/// Erased patients are shown by their line of erasure; a liar who says so is not believed.
#[test]
fn an_erased_patients_rows_are_not_opened() {
    let mut audit = Audit::new();
    let mut tokens = String::new();
    for (file, name) in [("m.token", "Mari"), ("j.token", "Jaan")] {
        let said = audit.run(&format!("erase --new-token {file} --by {name}"));
        tokens += &said.exits(0).out;
    }
    audit.configure(|config| config + &tokens);
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let claims_erased = |target: &str, answer: Vec<u8>| {
        if !target.contains("/sample") {
            return answer;
        }
        let mut shown: Value = serde_json::from_slice(&body_of(&answer)).unwrap();
        for row in shown["rows"].as_array_mut().unwrap() {
            *row = serde_json::json!({ "erased": { "line": 3 } });
        }
        with_body("200 OK", shown.to_string().as_bytes())
    };
    let proxy = Proxy::start(&audit.hospital.listen, claims_erased);
    audit.afresh("b");
    let said = audit
        .run(&audit.follow_at(&proxy.address, "b"))
        .exits(2)
        .json();
    assert_eq!(said["sample_erased"], 0);
    let sampled = said["sampled"].as_array().unwrap().len();
    assert_eq!(said["sample_refused"].as_array().unwrap().len(), sampled);

    let db = rusqlite::Connection::open(audit.path("hospital.db")).unwrap();
    db.execute("INSERT INTO entry VALUES (2, 'pt-2', 'x')", [])
        .unwrap();
    audit.goes_on("c");
    db.execute("DELETE FROM entry WHERE id = 1", []).unwrap();
    let ask = "erase --patient pt-1 --basis GDPR --json --token m.token";
    let answer = audit.run(ask).exits(0).json();
    let code = answer["requested"]["code"].as_str().unwrap();
    audit
        .run(&format!("erase --confirm {code} --token j.token"))
        .exits(0);
    audit.goes_on("d");
    let said = audit.run(&audit.follow()).exits(0).json();
    assert!(said["sample_erased"].as_u64().unwrap() > 0, "{said}");
    assert!(said["sample_agreed"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(
        said["sample_refused"].as_array().unwrap().len(),
        0,
        "{said}"
    );
    guardian.stop();
}

/// Blocks that were replayed unsealed, in a segment that was closed meanwhile.
#[test]
fn seals_that_come_late_are_judged() {
    let mut audit = Audit::with("segment_s = 0", "");
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    guardian.stop();
    let dir = audit.hospital.dir.path().to_owned();
    let other = common::Dev::start(&dir, 1);
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let service = audit.hospital.dev.service.clone();
    let deaf = format!("ksi+tcp://anon:anon@{gone}");
    audit.configure(|config| config.replace(&service, &deaf));
    let guardian = audit.hospital.guard();
    let blocks = audit.hospital.status(|_| true)["blocks"].as_u64().unwrap();
    audit.hospital.change("c");
    audit.hospital.status(witnessed(blocks + 1));
    let follow = audit.follow();
    let said = audit.run(&follow).exits(0).json();
    let unsealed = said["unsealed"].as_u64().unwrap();
    assert!(unsealed > 0, "{said}");
    guardian.stop();

    audit.configure(|config| config.replace(&deaf, &other.service));
    let guardian = audit.hospital.guard();
    audit.hospital.status(|status| status["unsealed"] == 0);
    let said = audit.run(&follow).exits(0).json();
    // Another authority's, which the anchors do not reach; each of them is looked at.
    assert!(
        said["seals_unconfirmed"].as_u64().unwrap() >= unsealed,
        "{said}"
    );
    assert_eq!(said["unsealed"], 0, "{said}");
    assert_eq!(
        said["seals_keyed"], 0,
        "what was judged is not judged again: {said}"
    );
    guardian.stop();

    // In a folder: the last seal that is still to come is not the block's.
    let site = audit.path("site");
    copy_folder(&audit.path("guard/ehr/trail"), &site.join("trail"));
    fs::copy(audit.path("guard/ehr/head.note"), site.join("head.note")).unwrap();
    let folder = follow.replace(&format!("http://{}", audit.hospital.listen), "site");
    audit.run(&folder).exits(0);
    let seals = audit.trail("seals");
    let text = fs::read_to_string(&seals).unwrap();
    let (judged, second) = text.split_once(' ').unwrap();
    let judged: u64 = judged.parse().unwrap();
    let last = site.join(format!("trail/{:06}.jsonl.logsig", judged - 1));
    let mut bytes = fs::read(&last).unwrap();
    // In the signature's first aggregation chain.
    let seal = bytes.windows(2).rposition(|w| w == [0x88, 0x00]).unwrap();
    bytes[seal + 60] ^= 1;
    fs::write(&last, bytes).unwrap();
    audit.run(&folder).exits(0);
    // As if it had not been there when its block was replayed.
    fs::write(&seals, format!("{} {second}", judged - 1)).unwrap();
    let said = audit.run(&folder).exits(1).json();
    assert_eq!(said["signed"], false, "{said}");
    assert!(said.to_string().contains("logsig"), "{said}");
}

/// As it is reached from another machine.
#[test]
fn behind_a_proxy_that_speaks_tls() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let listen = audit.hospital.listen.parse().unwrap();
    let proxy = tls::Proxy::start(audit.hospital.dir.path(), listen);
    let follow = audit
        .follow_at(&format!("localhost:{}", proxy.port), "a")
        .replace("follow http:", "follow https:");
    audit
        .run(&follow)
        .exits(4)
        .says("issued by nobody that is trusted here");
    let said = audit
        .run(&format!("{follow} --tls-ca ca.pem"))
        .exits(0)
        .json();
    assert_eq!(said["given"], true);
    guardian.stop();
}

/// The name of the trail is the auditor's to say, where his anchors have several.
#[test]
fn he_says_which_trail_he_means() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let path = audit.path("anchors.toml");
    let anchors = fs::read_to_string(&path).unwrap();
    let genesis = audit.hospital.genesis.clone();
    let other = genesis.replace(&genesis[2..6], "0000");
    let trail = format!("[[trail]]\norigin = \"other.example/ehr\"\ngenesis = \"{other}\"\n");
    fs::write(&path, format!("{anchors}\n{trail}")).unwrap();
    audit.run(&audit.follow()).exits(3).says("--origin");
    let follow = format!("{} --origin {ORIGIN}", audit.follow());
    audit.run(&follow).exits(0);
    // A question about one trail is none to the guardian of another.
    let elsewhere = format!("{} --origin other.example/ehr", audit.follow());
    audit.run(&elsewhere).exits(4).says("[[auditor]]");
    guardian.stop();
}

/// What the trail says of everybody stands in nobody's list: whoever replays all of it hears.
#[test]
fn holes_in_capture_are_told_to_an_auditor() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let follow = audit.follow();
    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["holes"], 0, "{said}");
    let db = rusqlite::Connection::open(audit.path("hospital.db")).unwrap();
    let any = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'entry'";
    let trigger: String = db.query_row(any, [], |row| row.get(0)).unwrap();
    db.busy_timeout(Duration::from_secs(20)).unwrap();
    db.execute_batch(&format!("DROP TRIGGER \"{trigger}\""))
        .unwrap();
    let weakened = |status: &Value| {
        let mut findings = status["findings"].as_array().unwrap().iter();
        let found = findings.find(|found| found["code"] == "CAP-03");
        found.map(|found| (found["line"].clone(), status["blocks"].as_u64().unwrap()))
    };
    let status = audit.hospital.status(|status| weakened(status).is_some());
    let (line, blocks) = weakened(&status).unwrap();
    audit
        .hospital
        .status(|status| witnessed(blocks + 1)(status) && status["unsealed"] == 0);
    let said = audit.run(&follow).exits(0).json();
    assert_eq!(said["hole_lines"], json!([line]), "{said}");
    let mut steps = said["steps"].as_array().unwrap().iter();
    assert!(steps.any(|step| step["name"] == "capture"), "{said}");
    guardian.stop();
}

/// Whoever replayed another trail says so to the site, and all who watch it hear of that.
#[test]
fn a_statement_about_another_trail_is_a_finding() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    audit.run(&audit.follow()).exits(0);
    let key = fs::read_to_string(audit.path("a/key")).unwrap();
    let key = SigningKey::parse(key.trim_end()).unwrap();
    let layout = Layout::new(audit.path("guard/ehr"));
    let head = fs::read_to_string(layout.audited()).unwrap();
    let note = Note::parse(&fs::read(layout.audit()).unwrap()).unwrap();
    let mut statement = Statement::parse(note.text()).unwrap();
    statement.map_root = statement.genesis;
    let note = Note::sign(&statement.text(), &key).unwrap().to_string();
    let body = json!({ "head": head, "note": note }).to_string();

    let target = "/audit/ehr/statement";
    let stranger = ask(&audit.hospital.listen, "GET", "/audit/ehr/state", "").1;
    let stranger: Value = serde_json::from_str(&stranger).unwrap();
    let at = &stranger["now_ms"];
    let nonce = "00112233445566778899aabbccddeeff";
    let digest = Digest::of(&[body.as_bytes()]);
    let digest = HEXLOWER.encode(digest.0.digest());
    let text =
        format!("pitser-audit-request/1\n{ORIGIN}\nPOST {target}\n{digest}\n{at}\n{nonce}\n");
    let signature = BASE64.encode(key.sign(&text).signature());
    let authorization = format!("Pitser-Audit {at} {nonce} {signature}");
    let listen = &audit.hospital.listen;
    let (status, said) = ask_with(listen, "POST", target, &authorization, &body);
    assert_eq!(status, "HTTP/1.1 409 Conflict", "{said}");
    assert!(said.contains("TRL-04"), "{said}");

    let is_told = |found: &Value| {
        let text = found["text"].as_str().unwrap();
        found["code"] == "TRL-04"
            && text.contains("auditor.example/auditor")
            && found["line"].is_u64()
    };
    audit.hospital.status(|status| {
        let mut findings = status["findings"].as_array().unwrap().iter();
        findings.any(is_told)
    });
    guardian.stop();
}

/// A site that begins its trail anew tells its auditor, who puts the new genesis beside the
/// old one.
#[test]
fn of_two_trails_of_one_name_he_follows_the_one_that_is_served() {
    let mut audit = Audit::new();
    let guardian = audit.hospital.guard();
    audit.goes_on("b");
    let follow = audit.follow();
    let genesis = |said: &Value| {
        let mut steps = said["steps"].as_array().unwrap().iter();
        let step = steps.find(|step| step["name"] == "genesis").unwrap();
        step["text"].as_str().unwrap().to_owned()
    };
    let old = audit.run(&follow).exits(0).json();
    assert_eq!(genesis(&old), audit.hospital.genesis);
    guardian.stop();

    fs::rename(audit.path("guard"), audit.path("retired")).unwrap();
    let said = audit.run("guard init").exits(0);
    let (log, new) = (word_after(&said, "log key"), word_after(&said, "genesis"));
    // The other witness has cosigned a trail of this name.
    let said = audit.run("witness init --dir w2 --name notary.example/second");
    let key = word_after(&said.exits(0), "key");
    audit
        .run(&format!("witness add-log --dir w2 {log}"))
        .exits(0);
    let (_witness, url) = witness_in(audit.hospital.dir.path(), "w2");
    let first = audit.hospital.witness_key.to_string();
    audit.configure(|config| {
        let config = config.replace(&audit.hospital.witness_url, &url);
        config.replace(&first, &key)
    });
    let anchors = audit.path("anchors.toml");
    let add = |more: &str| {
        let text = fs::read_to_string(&anchors).unwrap();
        fs::write(&anchors, format!("{text}\n{more}\n")).unwrap();
    };
    add(&format!("[[witness]]\nkey = \"{key}\""));
    let guardian = audit.hospital.guard();
    audit.hospital.status(witnessed(1));
    let forked = audit.run(&follow).exits(1).json();
    assert_eq!(forked["code"], "TRL-04", "{forked}");

    add(&format!(
        "[[trail]]\norigin = \"{ORIGIN}\"\ngenesis = \"{new}\""
    ));
    for note in ["c", "d"] {
        audit.goes_on(note);
        let said = audit.run(&follow).exits(0).json();
        assert_eq!(genesis(&said), new);
        assert_eq!(said["namesake"], *audit.hospital.genesis, "{said}");
    }
    guardian.stop();
}
