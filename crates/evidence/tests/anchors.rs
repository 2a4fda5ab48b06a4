//! The anchors file: what people write into it, and what is refused with a
//! sentence that they can act on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::anchors::{Anchors, AuthorityAnchor, CalendarLogAnchor, KeyAnchor};
use pitser_ksi::time::Second;
use pitser_tlog::note::SigningKey;
use world::authority::{CONSTRAINT, certificate_pem};
use world::{World, auditor, witnesses};

fn full() -> Anchors {
    let mut anchors = World::new().anchors();
    anchors.authorities.push(AuthorityAnchor {
        certificate: certificate_pem(),
        constraints: vec![CONSTRAINT.into()],
    });
    anchors.witnesses[0].valid_from = Some(Second(1_735_689_600));
    anchors.auditors[0].valid_until = Some(Second(1_767_225_600));
    anchors.calendar_log = Some(CalendarLogAnchor {
        genesis: Second(1_773_480_413),
        ..world::calendar_log::anchor()
    });
    anchors
}

#[test]
fn what_is_written_is_read() {
    let text = full().to_toml();
    assert!(
        text.contains("valid_from = \"2025-01-01T00:00:00Z\""),
        "{text}"
    );
    assert_eq!(Anchors::from_toml(&text), Ok(full()));
    assert!(
        text.contains("[calendar_log]\nkey = \"authority.example/calendar+")
            && text.contains("genesis = \"2026-03-14T09:26:53Z\"\nquorum = 2\n")
            && text.contains("[[calendar_log.witness]]\nkey = \"notary.example/0+"),
        "{text}"
    );
    let none = Anchors::from_toml("version = 1").unwrap();
    assert_eq!(none.calendar_log, None);
    assert_eq!(
        (none.witness_quorum, none.trails.len(), none.witnesses.len()),
        (0, 0, 0)
    );
}

#[track_caller]
fn refused(from: &str, to: &str, part: &str) {
    let text = full().to_toml();
    assert!(text.contains(from), "{text}");
    let error = Anchors::from_toml(&text.replacen(from, to, 1)).unwrap_err();
    assert!(error.contains(part), "{error}");
}

#[test]
fn mistakes_about_the_calendars_log_are_explained() {
    refused("\nquorum = 2", "\nquorum = 0", "at least 1");
    refused("\nquorum = 2", "\nquorum = 4", "3 witnesses are listed");
    refused("\nquorum = 2", "", "quorum");
    refused("\nquorum = 2", "\nquorum = 2\norigin = \"x\"", "origin");
    refused(
        "2026-03-14T09:26:53Z",
        "1969-03-14T09:26:53Z",
        "before 1970",
    );
    let keys = full().calendar_log.unwrap();
    let (log, witness) = (keys.key.to_string(), keys.witnesses[0].key.to_string());
    refused(&log, &witness, "no log signs with");
    refused(&witness, &log, "no witness signs with");
    refused(
        &log[..40],
        "authority.example/calendar+00000000+AAAA",
        "verifier key",
    );
}

#[test]
fn mistakes_are_explained() {
    refused("version = 1", "version = 2", "version 2 is not 1");
    refused("version = 1", "", "version");
    refused("version = 1", "version = 1\nquorum = 1", "quorum");
    refused(
        "witness_quorum = 2",
        "witness_quorum = 3",
        "only 2 witnesses",
    );
    refused("genesis = \"01", "genesis = \"ff", "not an imprint");
    refused("code = \"AAAAAA", "code = \"AAAAAB", "publication code");
    refused("2025-01-01T00:00:00Z", "2025-01-01", "instant");
    refused(
        "2025-01-01T00:00:00Z",
        "1925-01-01T00:00:00Z",
        "before 1970",
    );
    let auditor = auditor().verifier().to_string();
    let witness = witnesses()[1].verifier().to_string();
    refused(&auditor, "auditor.example", "verifier key");
    refused(&auditor, &witness, "no auditor signs with");
    refused(&witness, &auditor, "no witness signs with");
}

#[test]
fn a_key_is_not_valid_backwards() {
    let mut anchors = full();
    anchors.auditors[0].valid_from = anchors.auditors[0].valid_until;
    assert!(
        Anchors::from_toml(&anchors.to_toml())
            .unwrap_err()
            .contains("is not before")
    );
}

#[test]
fn a_key_counts_from_its_first_to_before_its_last_second() {
    let key = SigningKey::from_seed("a", &[1; 32]).unwrap().verifier();
    let open = KeyAnchor::new(key);
    let closed = KeyAnchor {
        valid_from: Some(Second(5)),
        valid_until: Some(Second(7)),
        ..open.clone()
    };
    let covered = |anchor: &KeyAnchor| {
        (0..10)
            .filter(|&s| anchor.covers(Second(s)))
            .collect::<Vec<_>>()
    };
    assert_eq!(covered(&open).len(), 10);
    assert_eq!(covered(&closed), [5, 6]);
}
