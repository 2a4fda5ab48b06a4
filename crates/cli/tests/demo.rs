//! The demo as a new user runs it, and its evidence in other hands.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use pitser_evidence::{Anchors, Evidence, Verdict, verify};
use pitser_ksi::time::Second;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn pitser(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pitser"))
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn twice_in_a_row_and_its_evidence_convinces_only_who_brings_anchors() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let output = pitser(dir.path(), &["demo", "--once", "--json"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        told(&json(&output));
    }
    let summary = json(&pitser(dir.path(), &["demo", "--once", "--json"]));
    let path = |member: &str| PathBuf::from(summary["evidence"][member].as_str().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(
        dir.path().join(path("path")),
        elsewhere.path().join("e.json"),
    )
    .unwrap();
    std::fs::copy(
        dir.path().join(path("anchors")),
        elsewhere.path().join("a.toml"),
    )
    .unwrap();
    in_other_hands(elsewhere.path());
    no_byte_is_without_meaning(elsewhere.path());

    let edited = summary["findings"][0]["key"].as_str().unwrap();
    let config = ["--config", "pitser-demo/pitser.toml"];
    let history = pitser(
        dir.path(),
        &[&["history", "observation", edited, "--json"], &config[..]].concat(),
    );
    let lines = json(&history)["lines"].as_array().unwrap().clone();
    assert!(
        lines
            .iter()
            .any(|l| l["line"]["finding"]["code"] == "ROW-01"),
        "{lines:#?}"
    );
    let verified = pitser(dir.path(), &[&["trail", "verify"], &config[..]].concat());
    assert_eq!(
        verified.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
    let inspected = pitser(elsewhere.path(), &["inspect", "e.json"]);
    assert_eq!(inspected.status.code(), Some(0));
}

fn told(summary: &Value) {
    let finding = |n: usize, member: &str| summary["findings"][n][member].clone();
    assert_eq!(
        (finding(0, "code"), finding(0, "table")),
        ("ROW-01".into(), "observation".into())
    );
    assert_eq!(finding(0, "columns"), serde_json::json!(["value"]));
    assert_eq!(
        (finding(1, "code"), finding(1, "table")),
        ("ACT-01".into(), "observation".into())
    );
    assert_eq!(summary["findings"].as_array().unwrap().len(), 2);
    assert_eq!(summary["evidence"]["verdict"], "intact");
    // 3147 baselines, 2552 changes, a line for each read of a record, the findings.
    assert!(summary["events"].as_u64().unwrap() > 5700, "{summary}");
    // At least one for what was there, and one for what happened.
    assert!(summary["blocks"].as_u64().unwrap() >= 2, "{summary}");
    assert!(
        summary["seal_latency_ms"]["p50"].is_u64() && summary["seal_latency_ms"]["p99"].is_u64()
    );
}

fn in_other_hands(dir: &Path) {
    let verdict = |args: &[&str]| {
        let output = pitser(dir, args);
        (output.status.code(), json(&output)["verdict"].clone())
    };
    assert_eq!(
        verdict(&["verify", "e.json", "--anchors", "a.toml", "--json"]),
        (Some(0), "intact".into())
    );
    assert_eq!(
        verdict(&["verify", "e.json", "--json"]),
        (Some(2), "unconfirmed".into())
    );
    let anchors = std::fs::read_to_string(dir.join("a.toml")).unwrap();
    let genesis = anchors.lines().find(|l| l.starts_with("genesis")).unwrap();
    let other = anchors.replace(genesis, &format!("genesis = \"01{}\"", "ab".repeat(32)));
    std::fs::write(dir.join("other.toml"), other).unwrap();
    assert_eq!(
        verdict(&["verify", "e.json", "--anchors", "other.toml", "--json"]),
        (Some(1), "broken".into())
    );
    let evidence = std::fs::read(dir.join("e.json")).unwrap();
    std::fs::write(dir.join("cut.json"), &evidence[..evidence.len() / 2]).unwrap();
    assert_eq!(
        pitser(dir, &["verify", "cut.json", "--anchors", "a.toml"])
            .status
            .code(),
        Some(3)
    );
}

/// A sample of all bytes: beginning, end, and a stride between; other tests
/// flip every bit of a smaller file.
fn no_byte_is_without_meaning(dir: &Path) {
    let bytes = std::fs::read(dir.join("e.json")).unwrap();
    let anchors =
        Anchors::from_toml(&std::fs::read_to_string(dir.join("a.toml")).unwrap()).unwrap();
    let at = now();
    let judged =
        |bytes: &[u8]| Evidence::decode(bytes).map(|e| verify(&e, Some(&anchors), at).verdict);
    assert_eq!(judged(&bytes), Ok(Verdict::Intact));
    let stride = (bytes.len() / 60).max(1);
    let sample = (0..bytes.len())
        .step_by(stride)
        .chain(bytes.len() - 20..bytes.len());
    for index in sample {
        let mut flipped = bytes.clone();
        flipped[index] ^= 1 << (index % 7);
        assert_ne!(
            judged(&flipped),
            Ok(Verdict::Intact),
            "byte {index} went unnoticed"
        );
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test is where the clock comes from"
)]
fn now() -> Second {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Second(since.as_secs())
}

#[test]
fn a_folder_that_no_demo_made_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pitser-demo")).unwrap();
    std::fs::write(dir.path().join("pitser-demo/thesis.txt"), "years of work").unwrap();
    let output = pitser(dir.path(), &["demo", "--once"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--dir"));
    assert!(dir.path().join("pitser-demo/thesis.txt").exists());
}

#[test]
fn a_wished_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = pitser(dir.path(), &["demo", "--once", "--listen", &address]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address));
}
