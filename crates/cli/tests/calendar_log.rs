//! The calendar's log over real processes: an authority that is killed at any
//! moment, and a notary who saw what it said before.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use common::{Dev, first_line, pitser, run};
use pitser_ksi::calendar_entry::CalendarEntry;
use pitser_tlog::merkle::leaf_hash;
use pitser_tlog::note::VerifierKey;
use pitser_tlog::proof::LogProof;
use serde_json::Value;

/// A notary's process, which ends with this value.
struct Notary {
    child: Child,
    url: String,
    key: VerifierKey,
}

impl Notary {
    fn start(dir: &Path) -> Self {
        let said = run(dir, "witness init --dir w --name notary.example/w").exits(0);
        let key = |word: &&str| word.starts_with("notary.example/w+");
        let key = said.out.split_whitespace().find(key).unwrap();
        let key = key.parse().unwrap();
        let args = "witness run --dir w --listen 127.0.0.1:0 --json";
        let mut child = pitser(dir)
            .args(args.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let facts: Value = serde_json::from_str(&first_line(&mut child)).unwrap();
        let url = format!("http://{}", facts["address"].as_str().unwrap());
        Self { child, url, key }
    }
}

impl Drop for Notary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn authority(dir: &Path, notary: &Notary) -> Dev {
    let (url, key) = (&notary.url, &notary.key);
    let more = format!(" --dir a --origin authority.example/calendar --witness {url} {key}");
    Dev::start_with(dir, 0, &more)
}

/// The proof of a second, once the notary has seen it.
fn proof(dev: &Dev, second: u64) -> LogProof {
    let address = dev.fact("http");
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /log/proof/{second}?wait=25 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    LogProof::parse(&answer[end + 4..]).unwrap()
}

#[test]
fn what_a_notary_saw_survives_every_kill_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let notary = Notary::start(dir);
    let mut dev = authority(dir, &notary);
    let key: VerifierKey = dev.fact("calendar_log_key").parse().unwrap();
    let genesis = dev.fact("calendar_genesis").to_owned();
    let add = format!("witness add-log --dir w {key} --calendar-genesis {genesis}");
    run(dir, &add).exits(0);
    // The second of entry 0 is the first one that is proved; then every next one.
    let first = {
        let format = std::fs::read_to_string(dir.join("a/calendar/format")).unwrap();
        let line = format
            .lines()
            .find_map(|line| line.strip_prefix("genesis "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let mut seen: Vec<CalendarEntry> = Vec::new();
    for round in 0..5u64 {
        let newest = seen.last().map_or(first, |entry| entry.time().0 + 1);
        for second in newest..=newest + round % 2 {
            let found = proof(&dev, second);
            let leaf = leaf_hash(found.extra());
            found
                .verify(leaf, &key, std::slice::from_ref(&notary.key), 1)
                .unwrap();
            let entry = CalendarEntry::decode(found.extra()).unwrap();
            assert_eq!(entry.time().0, second);
            seen.push(entry);
        }
        // In the middle of whatever it does: entries, checkpoint, an answer.
        dev.kill();
        match round {
            // What was written since the last sync may be gone, or nonsense.
            1 => std::fs::write(dir.join("a/calendar-log/level-0"), [0xee; 40]).unwrap(),
            2 => std::fs::write(dir.join("a/calendar-log/witnessed"), "torn").unwrap(),
            3 => std::fs::remove_file(dir.join("a/calendar-log/level-0")).unwrap(),
            _ => {}
        }
        dev = authority(dir, &notary);
        assert_eq!(dev.fact("calendar_log_key"), key.to_string());
        for entry in &seen {
            let again = proof(&dev, entry.time().0);
            let leaf = leaf_hash(&entry.encode());
            again
                .verify(leaf, &key, std::slice::from_ref(&notary.key), 1)
                .unwrap();
        }
    }
    run(dir, "witness list --dir w")
        .exits(0)
        .says("authority.example/calendar");
}
