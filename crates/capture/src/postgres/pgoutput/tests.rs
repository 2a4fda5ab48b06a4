//! Bytes recorded from PostgreSQL 15.

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;

/// As the server sent them, one message a line.
pub(crate) const RECORDED: &[&str] = &[
    "42000000000153b6c8000303e9e81ae6e6000002db",
    "4d01000000000153b4c870697473657200000000107b22706572736f6e223a22454531227d",
    "59000040017075626c6963006d6f6f6400",
    "52000040037075626c69630077617264006400030169640000000017ffffffff006e616d650000000019ffffffff006d0000004001ffffffff",
    "49000040034e000374000000013174000000044ac3b5656e",
    "55000040034e00037400000001317400000001626e",
    "55000040034b00037400000001316e6e4e00037400000001327400000001626e",
    "44000040034b00037400000001326e6e",
    "4300000000000153b6c8000000000153b6f8000303e9e81ae6e6",
    "42000000000153b7d8000303e9e81afe5e000002dc",
    "520000400a7075626c6963006e6f7465006600020169640000000017ffffffff01626f64790000000019ffffffff",
    "490000400a4e0002740000000137740000000178",
    "4300000000000153b7d8000000000153b808000303e9e81afe5e",
    "42000000000153b8a8000303e9e81b0de0000002dd",
    "550000400a4f00027400000001377400000001784e0002740000000137740000000179",
    "440000400a4f0002740000000137740000000179",
    "4300000000000153b8a8000000000153b8d8000303e9e81b0de0",
    "42000000000153c7d0000303e9e81b2c66000002df",
    "52000040117075626c6963006c6162006400030169640000000017ffffffff006269670000000019ffffffff006e0000000017ffffffff",
    "55000040114e000374000000013175740000000132",
    "4300000000000153c7d0000000000153c800000303e9e81b2c66",
    "42000000000153dee0000303e9e81b79b9000002e0",
    "540000000200000040030000400a",
    "4300000000000153dee0000000000153e198000303e9e81b79b9",
];

pub(crate) fn recorded() -> Vec<Vec<u8>> {
    let bytes = |line: &&str| HEXLOWER.decode(line.as_bytes()).unwrap();
    RECORDED.iter().map(bytes).collect()
}

#[track_caller]
fn check(line: usize, expected: &Message<'_>) {
    assert_eq!(decode(&recorded()[line]).as_ref(), Ok(expected));
}

const WARD: u32 = 0x4003;
const NOTE: u32 = 0x400a;

#[test]
fn bounds_of_a_transaction() {
    let commit = Lsn(0x0153_b6c8);
    check(
        0,
        &Message::Begin {
            commit,
            time: 0x0003_03e9_e81a_e6e6,
            xid: 731,
        },
    );
    let end = Lsn(0x0153_b6f8);
    check(8, &Message::Commit { commit, end });
}

#[test]
fn a_logical_message() {
    check(
        1,
        &Message::Logical {
            transactional: true,
            prefix: "pitser",
            content: Payload(br#"{"person":"EE1"}"#),
        },
    );
}

#[test]
fn a_type_says_nothing() {
    check(2, &Message::Type);
}

#[test]
fn tables() {
    let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    check(
        3,
        &Message::Relation(Relation {
            id: WARD,
            schema: "public".to_owned(),
            table: "ward".to_owned(),
            full: false,
            columns: columns(&["id", "name", "m"]),
            key: vec![0],
        }),
    );
    check(
        10,
        &Message::Relation(Relation {
            id: NOTE,
            schema: "public".to_owned(),
            table: "note".to_owned(),
            full: true,
            columns: columns(&["id", "body"]),
            key: vec![0, 1],
        }),
    );
}

#[test]
fn rows() {
    use Value::{Null, Text, Unchanged};
    let (relation, id) = (WARD, Text(b"1"));
    let new = vec![id, Text("Jõe".as_bytes()), Null];
    check(4, &Message::Insert { relation, new });
    let new = vec![id, Text(b"b"), Null];
    check(
        5,
        &Message::Update {
            relation,
            old: None,
            new,
        },
    );
    let old = Some(Old::Key(vec![id, Null, Null]));
    let new = vec![Text(b"2"), Text(b"b"), Null];
    check(6, &Message::Update { relation, old, new });
    let old = Old::Key(vec![Text(b"2"), Null, Null]);
    check(7, &Message::Delete { relation, old });

    let relation = NOTE;
    let old = Some(Old::Row(vec![Text(b"7"), Text(b"x")]));
    let new = vec![Text(b"7"), Text(b"y")];
    check(14, &Message::Update { relation, old, new });
    let new = vec![id, Unchanged, Text(b"2")];
    check(
        19,
        &Message::Update {
            relation: 0x4011,
            old: None,
            new,
        },
    );
    check(
        22,
        &Message::Truncate {
            relations: vec![WARD, NOTE],
        },
    );
}

#[test]
fn every_cut_and_every_surplus_is_noticed() {
    for bytes in recorded() {
        for length in 0..bytes.len() {
            let error = decode(&bytes[..length]).unwrap_err();
            assert!(error.at <= length, "{error}");
        }
        let longer = [&bytes[..], b"\0"].concat();
        let at = bytes.len();
        assert_eq!(decode(&longer), Err(fail(DecodeErrorKind::Trailing, at)));
    }
}

#[test]
fn errors_say_what_and_where() {
    let said = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert_eq!(said(b"x"), "unknown message 'x' at byte 0");
    assert_eq!(said(b"I\0\0\0\x01X"), "unknown mark 'X' at byte 5");
    assert_eq!(said(b"I\0\0\0\x01N\0\x01b"), "unknown mark 'b' at byte 8");
    assert_eq!(said(b"I\0\0\0\x01N\xFF\xFF"), "too many columns at byte 6");
    assert_eq!(said(b"T\0\x10\0\0\0"), "unexpected end at byte 6");
    assert_eq!(said(b"T\0\x10\0\x01\0"), "too many tables at byte 1");
}

#[test]
fn debug_output_holds_no_value() {
    for bytes in recorded() {
        let shown = format!("{:?}", decode(&bytes).unwrap());
        assert!(!shown.contains("EE1") && !shown.contains("Jõe"), "{shown}");
    }
}

proptest! {
    #[test]
    fn garbage_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = decode(&bytes) {
            prop_assert!(error.at <= bytes.len());
        }
    }

    #[test]
    fn damaged_messages_are_read_or_refused(
        line in 0..RECORDED.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = recorded().swap_remove(line);
        for (place, byte) in damage {
            *place.get_mut(&mut bytes) = byte;
        }
        if let Err(error) = decode(&bytes) {
            prop_assert!(error.at <= bytes.len());
        }
    }
}

/// PostgreSQL 18.4 sent one, unasked, for a part of a transaction that was rolled back.
#[test]
fn an_abort_that_nobody_asked_for() {
    let abort = b"A\0\0\x02\xe0\0\0\x02\xe1";
    assert_eq!(decode(abort), Ok(Message::StreamAbort));
    assert!(decode(&abort[..8]).is_err());
    assert!(decode(&[abort.as_slice(), b"x"].concat()).is_err());
}
