//! What reading a hostile evidence file takes of memory, by an allocator that counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use peak_alloc::PeakAlloc;
use pitser_evidence::Evidence;
use pitser_evidence::file::{LineProof, MAX_ELEMENTS, MAX_PROOFS, OpenColumn};
use std::sync::Mutex;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by each test: what is counted is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

/// An evidence file of the vectors, with `count` times `element` put after `before`.
fn stuffed(before: &str, element: &str, count: usize) -> Vec<u8> {
    let good = include_str!("../../../testdata/pitser/evidence-pt-1.json");
    let at = good.find(before).unwrap() + before.len();
    let (head, tail) = good.split_at(at);
    let many = format!("{element},").repeat(count);
    [head, &many, tail].concat().into_bytes()
}

/// Why such a file is refused, and how many bytes that took.
fn refused(bytes: &[u8]) -> (String, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let refused = Evidence::decode(bytes).unwrap_err();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    (refused.to_string(), peak)
}

/// Whatever a file says: no more than this is kept of its lists, in bytes.
const KEPT_MAX: usize = 1 << 30;

#[test]
fn what_says_nothing_a_million_times_is_refused_before_anything_is_kept_of_it() {
    let _alone = ALONE.lock().unwrap();
    let line = r#"{"block":0,"chain":"","line":{"at":"1970-01-01T00:00:13.250000Z","event":1,"op":"read","pos":"1","seq":1,"source":"ehr","v":1}}"#;
    let block = r#"{"block":0,"leaf":"","path":[]}"#;
    for (before, element, most) in [
        (r#""open":{"columns":["#, r#"{"name":""}"#, MAX_ELEMENTS),
        (r#""columns":["#, r#""""#, MAX_ELEMENTS),
        (r#""lines":["#, line, MAX_PROOFS),
        (r#""blocks":["#, block, MAX_PROOFS),
    ] {
        let bytes = stuffed(before, element, most);
        let (why, peak) = refused(&bytes);
        assert!(why.contains("are read at most"), "{element}: {why}");
        assert!(peak < 4096, "{peak} bytes for {element}");
    }
    assert!(MAX_PROOFS * size_of::<LineProof>() <= KEPT_MAX);
    assert!(MAX_ELEMENTS * size_of::<OpenColumn>() <= KEPT_MAX);
}

/// What is read is compared with what would be written without writing that down.
#[test]
fn of_what_is_read_there_is_one_copy() {
    let _alone = ALONE.lock().unwrap();
    let text = "x".repeat(8 << 20);
    let bytes = stuffed(
        r#""open":{"columns":["#,
        &format!(r#"{{"name":"{text}"}}"#),
        1,
    );
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let evidence = Evidence::decode(&bytes).unwrap();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(peak < bytes.len() + bytes.len() / 2, "{peak} bytes");
    drop(evidence);
}
