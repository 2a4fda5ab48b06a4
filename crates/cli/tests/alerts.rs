//! A guarded database is tampered with, and a receiver hears of it: the whole
//! way, from the file on disk to the message.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::port::free_address;
use common::{Process, first_line};
use rusqlite::Connection;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Something has gone wrong if a message takes so long.
const LIMIT: Duration = Duration::from_secs(30);

/// A receiver that takes everything.
struct Hook {
    address: SocketAddr,
    seen: Receiver<(String, Value)>,
}

impl Hook {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &sender);
            }
        });
        Self { address, seen }
    }

    fn next(&self) -> (String, Value) {
        self.seen.recv_timeout(LIMIT).unwrap()
    }
}

/// Reads one request: its head and its JSON.
fn answer(stream: TcpStream, sender: &Sender<(String, Value)>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let stream = reader.get_mut();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    // The test may have what it wanted.
    let _ = sender.send((head, serde_json::from_slice(&body).unwrap()));
}

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new(alerts: &str) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let listen = free_address();
        let config = format!(
            "[authority]\naggregator = \"embedded\"\n\
             [guard]\ndata = \"guard\"\nlisten = \"{listen}\"\nscan_every_s = 0\n\
             [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n\
             {alerts}\n"
        );
        std::fs::write(site.path("pitser.toml"), config).unwrap();
        let db = Connection::open(site.path("hospital.db")).unwrap();
        db.execute_batch(
            "CREATE TABLE entry (id INTEGER PRIMARY KEY, note TEXT);
             INSERT INTO entry VALUES (4711, 'pressure 120')",
        )
        .unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes the database file past the engine.
    fn edit(&self, from: &[u8], to: &[u8]) {
        let path = self.path("hospital.db");
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(to, at as u64).unwrap();
    }

    #[track_caller]
    fn says(&self, args: &[&str], code: i32) -> String {
        let output = pitser(self.dir.path(), args).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        text
    }

    fn guard(&self) -> Process {
        let mut child = pitser(self.dir.path(), &["guard", "run"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        assert!(line.starts_with("guarding"), "{line}");
        Process(child)
    }
}

fn pitser(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pitser"));
    command.current_dir(dir).args(args);
    command
}

#[test]
fn tampering_is_told_once_and_its_end_too() {
    let hook = Hook::start();
    let site = Site::new(&format!(
        "[[alert]]\nurl = \"http://{}/in\"\nsecret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"",
        hook.address
    ));
    site.says(&["guard", "init"], 0);
    let guardian = site.guard();
    site.says(&["guard", "scan"], 0);

    site.edit(b"pressure 120", b"pressure 180");
    site.says(&["guard", "scan"], 1);
    let (head, message) = hook.next();
    assert!(head.starts_with("POST /in HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nwebhook-signature: v1,"), "{head}");
    assert_eq!(message["type"], "finding.opened");
    let data = &message["data"];
    assert_eq!(
        (&data["source"], &data["code"]),
        (&"h".into(), &"ROW-01".into())
    );
    assert_eq!(data["columns"], serde_json::json!(["note"]));
    assert!(!message.to_string().contains("4711"), "{message}");
    assert!(!message.to_string().contains("pressure"), "{message}");
    let line = data["line"].as_u64().unwrap();

    site.edit(b"pressure 180", b"pressure 120");
    site.says(&["guard", "scan"], 0);
    let (_, message) = hook.next();
    assert_eq!(message["type"], "finding.closed");
    assert_eq!(message["data"]["line"], line);
    // That it was delivered is noted once the receiver has answered for it.
    let mut told = (0..200).map(|_| site.says(&["guard", "status"], 0));
    assert!(told.any(|said| said.contains("2 delivered, 0 waiting")));
    guardian.stop();

    // While nobody guards: the same row, in the same way.
    site.edit(b"pressure 120", b"pressure 180");
    let guardian = site.guard();
    site.says(&["guard", "scan"], 1);
    let (_, message) = hook.next();
    assert_eq!(message["type"], "finding.opened");
    assert_eq!(message["data"]["line"], line);
    guardian.stop();
    assert!(hook.seen.try_recv().is_err(), "nothing is told twice");
}

#[test]
fn who_answers_for_a_finding_is_told() {
    let hook = Hook::start();
    let alert = format!("[[alert]]\nurl = \"http://{}/in\"\n", hook.address);
    let site = Site::new(&alert);
    let made = ["erase", "--new-token", "t", "--by", "Mari Maasikas"];
    let approver = site.says(&made, 0) + "may = [\"accept\"]\n";
    let path = site.path("pitser.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config + &approver).unwrap();
    site.says(&["guard", "init"], 0);
    let guardian = site.guard();
    let db = Connection::open(site.path("hospital.db")).unwrap();
    db.execute("UPDATE entry SET note = 'pressure 121'", [])
        .unwrap();
    let (_, message) = hook.next();
    assert_eq!(message["type"], "finding.opened");
    assert_eq!(message["data"]["code"], "ACT-01");
    let line = message["data"]["line"].to_string();
    let accept = ["guard", "accept", "--finding", &line, "--token", "t"];
    let reason = ["--reason", "the nightly import"];
    site.says(&[&accept[..], &reason].concat(), 0);
    let (_, message) = hook.next();
    assert_eq!(message["type"], "finding.accepted");
    assert_eq!(message["data"]["line"].to_string(), line);
    assert_eq!(message["data"]["accepted"]["by"], "Mari Maasikas");
    assert!(!message.to_string().contains("nightly"), "{message}");
    guardian.stop();
    let guardian = site.guard();
    site.says(&["guard", "scan"], 0);
    guardian.stop();
    assert!(hook.seen.try_recv().is_err(), "nothing is told twice");
}

#[test]
fn a_test_message_says_what_each_receiver_answered() {
    let site = Site::new("");
    let text = site.says(&["guard", "test-alert"], 3);
    assert!(text.contains("[[alert]]"), "{text}");

    let hook = Hook::start();
    let alert = format!("[[alert]]\nurl = \"http://{}/T0KEN\"\n", hook.address);
    let site = Site::new(&alert);
    let text = site.says(&["guard", "test-alert"], 0);
    assert!(text.contains("200 OK") && !text.contains("T0KEN"), "{text}");
    assert_eq!(hook.next().1["type"], "test");

    let address = free_address();
    let site = Site::new(&format!(
        "{alert}[[alert]]\nurl = \"http://{address}/T0KEN\"\n"
    ));
    let text = site.says(&["guard", "test-alert"], 4);
    assert!(
        text.contains("200 OK") && text.contains("not delivered"),
        "{text}"
    );
    assert!(
        text.contains("1 of 2 receivers") && !text.contains("T0KEN"),
        "{text}"
    );
}
