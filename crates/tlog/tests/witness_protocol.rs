//! Bodies of the witness protocol, in both directions.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use pitser_tlog::error::DecodeErrorKind as Kind;
use pitser_tlog::note::CosigningKey;
use pitser_tlog::witness_protocol::{AddCheckpoint, MAX_REQUEST_BYTES, Refusal, parse_answer};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../../testdata/tlog/add-checkpoint-example.txt");

#[test]
fn reads_the_specifications_example() {
    let request = AddCheckpoint::parse(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(request.old_size, 20_852_014);
    assert_eq!(request.proof.len(), 4);
    assert_eq!(request.head.signatures().len(), 2);
    assert_eq!(request.to_string(), EXAMPLE);
}

#[test]
fn malformed_requests_say_what_and_where() {
    let check = |body: &str, kind: Kind, at: usize| {
        let error = AddCheckpoint::parse(body.as_bytes()).unwrap_err();
        assert_eq!((error.kind, error.at), (kind, at), "{body}");
    };
    check("", Kind::Truncated, 0);
    check("old 1", Kind::Truncated, 5);
    check("old 1\n", Kind::Truncated, 6);
    check("new 1\n\n", Kind::Expected("old <size>"), 0);
    check("old  1\n\n", Kind::BadDecimal, 4);
    check("old 01\n\n", Kind::BadDecimal, 4);
    check("old -1\n\n", Kind::BadDecimal, 4);
    check("old 1\n\n", Kind::NoSignatures, 7);
    check(&EXAMPLE.replace("PlRN", ""), Kind::BadHashLength, 13);
    check(
        &EXAMPLE.replace("PlRN", "Pl\rN"),
        Kind::ControlCharacter,
        15,
    );
    let hash = "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n";
    let too_many = Kind::TooMany {
        what: "proof lines",
        max: 63,
    };
    check(
        &format!("old 1\n{}\n", hash.repeat(64)),
        too_many,
        6 + 63 * 45,
    );
    let too_long = Kind::TooLong {
        max_bytes: MAX_REQUEST_BYTES,
    };
    check(
        &"x".repeat(MAX_REQUEST_BYTES + 1),
        too_long,
        MAX_REQUEST_BYTES,
    );
}

#[test]
fn answers_are_read_as_they_are_written() {
    let check = |refusal: Refusal, expected: Refusal| {
        let read = parse_answer(refusal.status(), refusal.body().as_bytes());
        assert_eq!(read, Err(expected));
    };
    check(Refusal::NotSigned, Refusal::NotSigned);
    check(Refusal::UnknownOrigin, Refusal::UnknownOrigin);
    check(Refusal::Conflict { size: 0 }, Refusal::Conflict { size: 0 });
    check(
        Refusal::Conflict { size: 42 },
        Refusal::Conflict { size: 42 },
    );
    check(Refusal::Inconsistent, Refusal::Inconsistent);
    let unavailable = |reason: &str| Refusal::Unavailable {
        reason: reason.into(),
    };
    check(Refusal::AheadOfTime, unavailable("status 503"));
    check(unavailable("disk full"), unavailable("status 503"));
    assert!(!unavailable("disk full").body().contains("disk"));

    let witness = CosigningKey::from_seed("w", &[1; 32]).unwrap();
    let lines = [witness.cosign("a\n", 1), witness.cosign("a\n", 2)];
    let body = format!("{}{}", lines[0], lines[1]);
    assert_eq!(parse_answer(200, body.as_bytes()), Ok(lines.to_vec()));
}

#[test]
fn answers_outside_the_protocol_are_no_verdict() {
    let check = |status, body: &str| {
        let answer = parse_answer(status, body.as_bytes());
        assert!(
            matches!(answer, Err(Refusal::Unavailable { .. })),
            "{status} {body:?}"
        );
    };
    check(200, "");
    check(200, "<html>");
    check(200, "— w AAAAAAA=");
    check(409, "");
    check(409, "12");
    check(409, "012\n");
    check(409, "12\n13\n");
    check(302, "");
    check(500, "");
}

proptest! {
    #[test]
    fn hostile_requests_never_panic(
        body in "old [0-9]{1,3}\n([A-Za-z0-9+/]{43}=\n){0,3}(\n|a|— a AAAAAAA=\n){0,6}",
    ) {
        if let Ok(request) = AddCheckpoint::parse(body.as_bytes()) {
            prop_assert_eq!(request.to_string(), body);
        }
    }

    #[test]
    fn hostile_answers_never_panic(status: u16, body: Vec<u8>) {
        let _ = parse_answer(status, &body);
    }
}
