//! What reading hostile audit events takes of memory, by an allocator that counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use peak_alloc::PeakAlloc;
use pitser_capture::fhir::{MAX_EVENT, parse_audit_event};
use std::sync::Mutex;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Held by each test: what is counted is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

/// The largest event in which `element` stands between the brackets of `list` as often as it can.
fn crowded(list: &str, element: impl Fn(usize) -> String) -> Vec<u8> {
    let head = r#"{"resourceType":"AuditEvent","type":{"code":"rest"},"action":"R","recorded":"2026-03-14T09:26:53Z",
        "source":{"observer":{"display":"ehr"}},"agent":[{"requestor":true}"#;
    let (open, close) = list.split_once("..").unwrap();
    let mut event = format!("{head}{open}");
    for at in 0.. {
        let element = element(at);
        if event.len() + element.len() + close.len() + 2 > MAX_EVENT {
            break;
        }
        event.push_str(&element);
        event.push(',');
    }
    event.pop();
    event.push_str(close);
    event.into_bytes()
}

#[test]
fn an_event_takes_a_small_multiple_of_its_bytes() {
    let _alone = ALONE.lock().unwrap();
    let same = |text: &'static str| move |_: usize| text.to_owned();
    for (what, event) in [
        ("objects", crowded(r#"],"x":[..]}"#, same(r#"{"":0}"#))),
        ("lists", crowded(r#"],"x":[..]}"#, same("[]"))),
        ("numbers", crowded(r#"],"x":[..]}"#, same("0"))),
        ("commas", crowded(r#"],"x":".."}"#, same(",,"))),
        ("members", crowded("],..}", |at| format!(r#""{at:x}":0"#))),
        ("agents", crowded(",..]}", same(r#"{"requestor":true}"#))),
        (
            "entities",
            crowded(r#"],"entity":[..]}"#, same(r#"{"name":""}"#)),
        ),
        (
            "records",
            crowded(
                r#"],"entity":[..]}"#,
                same(r#"{"what":{"reference":"A/1"}}"#),
            ),
        ),
        (
            "patients",
            crowded(r#"],"entity":[..]}"#, |at| {
                format!(r#"{{"what":{{"reference":"Patient/{at:x}"}}}}"#)
            }),
        ),
        (
            "purposes",
            crowded(r#"],"purposeOfEvent":[{"coding":[..]}]}"#, |at| {
                format!(r#"{{"code":"{at:x}"}}"#)
            }),
        ),
    ] {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let read = parse_audit_event(&event);
        let peak = MEMORY.peak_usage().saturating_sub(before);
        eprintln!("{what}: {} times {} bytes", peak / event.len(), event.len());
        assert!(peak < 16 * event.len(), "{what}: {peak} bytes");
        drop(read);
    }
}
