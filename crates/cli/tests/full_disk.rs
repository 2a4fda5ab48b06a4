//! A disk that is full: the guardian says so, goes on when there is room, and
//! nothing that was committed meanwhile is lost or told twice.
//!
//! The limit is the process's own (`ulimit -f`): a write beyond it fails as it
//! does on a full disk, without a disk having to be filled.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::first_line;
use common::port::free_address;
use rusqlite::Connection;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const PITSER: &str = env!("CARGO_BIN_EXE_pitser");

fn start(config: &Path, limit_kib: Option<u32>) -> Child {
    let limit = limit_kib.map_or(String::new(), |kib| {
        format!("trap '' XFSZ; ulimit -f {kib}; ")
    });
    let script = format!("{limit}exec \"$0\" guard run --config \"$1\"");
    let mut child = Command::new("bash")
        .args(["-c", &script, PITSER])
        .arg(config)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let line = first_line(&mut child);
    assert!(line.starts_with("guarding"), "{line}");
    child
}

fn status(config: &Path) -> Value {
    let args = ["guard", "status", "--json", "--config"];
    let output = Command::new(PITSER)
        .args(args)
        .arg(config)
        .output()
        .unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["sources"][0].clone()
}

/// Asks for the status until it is as wanted.
fn until(config: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        let now = status(config);
        if wanted(&now) {
            return now;
        }
    }
    panic!("{what} did not happen: {}", status(config));
}

#[test]
fn capture_waits_for_room_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = Connection::open(dir.path().join("hospital.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE entry (id INTEGER PRIMARY KEY, note TEXT);",
    )
    .unwrap();
    let free = free_address();
    let config = dir.path().join("pitser.toml");
    std::fs::write(
        &config,
        format!(
            "[authority]\naggregator = \"embedded\"\n[guard]\ndata = \"guard\"\nlisten = \"{free}\"\n\
             [[source]]\nname = \"h\"\nkind = \"sqlite\"\nurl = \"hospital.db\"\ntables = [\"*\"]\n"
        ),
    )
    .unwrap();
    assert!(
        Command::new(PITSER)
            .args(["guard", "init", "--config"])
            .arg(&config)
            .status()
            .unwrap()
            .success()
    );

    let mut guardian = start(&config, Some(600));
    let note = "x".repeat(500);
    let tx = db.transaction().unwrap();
    for id in 0..2000 {
        tx.execute("INSERT INTO entry VALUES (?1, ?2)", (id, &note))
            .unwrap();
    }
    tx.commit().unwrap();
    let full = until(&config, "a full disk", |s| {
        s["state"] == "trail-unavailable"
    });
    assert!(
        full["trouble"].as_str().is_some_and(|t| !t.is_empty()),
        "{full}"
    );
    guardian.kill().unwrap();
    guardian.wait().unwrap();

    let mut guardian = start(&config, None);
    until(&config, "everything captured and sealed", |s| {
        s["position"]
            .as_str()
            .and_then(|p| p.parse().ok())
            .is_some_and(|p: u64| p >= 2000)
            && s["unsealed"] == 0
    });
    let scan = Command::new(PITSER)
        .args(["guard", "scan", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    guardian.kill().unwrap();
    guardian.wait().unwrap();
    assert!(
        String::from_utf8_lossy(&scan.stdout).contains("2000 rows compared"),
        "{scan:?}"
    );
    let mut created = 0;
    let layout = pitser_trail::Layout::new(dir.path().join("guard/h"));
    pitser_trail::read(&layout, None, |line, _| {
        created += u32::from(line.op == pitser_evidence::line::Op::Create)
    })
    .unwrap();
    assert_eq!(created, 2000);
}
