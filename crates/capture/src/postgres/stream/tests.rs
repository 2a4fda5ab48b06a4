//! Messages recorded from PostgreSQL 15, through the assembler.

use proptest::prelude::*;

use super::*;
use crate::event::Cell;
use crate::postgres::pgoutput::tests::recorded;

const NOTE: u32 = 0x400a;

fn assembler() -> Assembler {
    let key = Primary {
        columns: vec!["id".to_owned()],
        is_partitioned: false,
    };
    let keys = HashMap::from([(NOTE, key)]);
    Assembler::new(keys, (5 << 32) + 700, Encoding::Sent)
}

/// What these messages tell.
fn told(messages: &[Vec<u8>]) -> Vec<Captured> {
    let mut assembler = assembler();
    for message in messages {
        assembler.take(pgoutput::decode(message).unwrap()).unwrap();
    }
    assembler.told.into()
}

fn changes(steps: &[Captured]) -> Vec<&Change> {
    let mut changes = Vec::new();
    for step in steps {
        if let Captured::Change(change) = step {
            changes.push(change);
        }
    }
    changes
}

#[test]
fn a_transaction_in_order() {
    let steps = told(&recorded()[..9]);
    let ops: Vec<Op> = changes(&steps).iter().map(|change| change.op).collect();
    assert_eq!(
        ops,
        [Op::Create, Op::Update, Op::Delete, Op::Create, Op::Delete]
    );
    let pos = boundary(Lsn(0x0153_b6f8));
    assert_eq!(steps.last(), Some(&Captured::Mark { pos }));
    for (nth, change) in (1..).zip(changes(&steps)) {
        let lsn = 0x0153_b6c8;
        assert_eq!(change.pos, Position::Log { lsn, nth });
        assert_eq!(change.table, "public.ward");
        assert_eq!(change.tx, (5 << 32) + 731);
        assert_eq!(change.at, "2026-11-23T05:48:06.472422Z");
        let actor = change.actor.as_ref().unwrap();
        assert_eq!(actor.person.as_ref().unwrap().expose(), "EE1");
        assert_eq!(actor.binding, Binding::C);
    }
}

#[test]
fn the_whole_old_row_and_its_key() {
    let steps = told(&recorded()[9..17]);
    let changes = changes(&steps);
    let row = |change: &Change| {
        let row = change.old.as_ref().unwrap();
        row.get("body")
            .unwrap()
            .expose_text()
            .unwrap()
            .as_bytes()
            .to_vec()
    };
    assert_eq!(row(changes[1]), b"x");
    assert_eq!(row(changes[2]), b"y");
    for change in &changes {
        assert_eq!(
            change.key,
            Key::new(vec![Cell::new(*b"t7")]),
            "the primary key, not the row"
        );
        assert_eq!((&change.actor, &change.purpose), (&None, &None));
    }
}

/// What is not in the log of a partition is null in its old row; of a table without
/// partitions all of it is.
#[test]
fn an_old_row_of_nulls_may_be_a_key_where_there_are_partitions() {
    let told = |is_partitioned, key: &'static [u8], old: Old<'static>| {
        let relation = Relation {
            id: NOTE,
            schema: "public".to_owned(),
            table: "note".to_owned(),
            full: true,
            columns: ["id", "body"].map(str::to_owned).into(),
            key: vec![0, 1],
        };
        let primary = Primary {
            columns: vec!["id".to_owned()],
            is_partitioned,
        };
        let table = Table::of(relation, Some(&primary), Encoding::Sent);
        let new = vec![Value::Text(key), Value::Unchanged];
        let events = table.updated(Some(&old), &new);
        let shown = events.iter().map(|event| match event {
            Event::Change {
                op, old, unsent, ..
            } => {
                format!("{op:?} {} {unsent:?}", old.is_some())
            }
            Event::Unreadable { .. } => "unreadable".to_owned(),
        });
        shown.collect::<Vec<_>>()
    };
    let id = Value::Text(b"7");
    let of_nulls = || Old::Row(vec![id, Value::Null]);
    assert_eq!(told(false, b"7", of_nulls()), ["Update true []"]);
    assert_eq!(told(true, b"7", of_nulls()), ["Update false [1]"]);
    assert_eq!(
        told(true, b"8", of_nulls()),
        ["Delete false []", "Create false [1]"]
    );
    let body = Value::Text(b"x");
    let row = || Old::Row(vec![id, body]);
    assert_eq!(told(true, b"7", row()), ["Update true []"]);
    let without_key = || Old::Row(vec![Value::Null, body]);
    assert_eq!(told(true, b"7", without_key()), ["unreadable"]);
}

#[test]
fn a_value_that_was_not_sent_is_said_to_be_missing() {
    let steps = told(&recorded()[17..21]);
    let change = changes(&steps)[0];
    let row = change.new.as_ref().unwrap();
    assert!(!change.unsent.is_empty());
    for place in &change.unsent {
        assert!(row.cells[*place].is_null());
    }
}

#[test]
fn truncation_is_told_for_each_table() {
    let described = [
        &recorded()[21..22],
        &recorded()[3..4],
        &recorded()[10..11],
        &recorded()[22..],
    ]
    .concat();
    let steps = told(&described);
    let tables: Vec<(&str, Op)> = changes(&steps)
        .iter()
        .map(|c| (c.table.as_str(), c.op))
        .collect();
    assert_eq!(
        tables,
        [("public.ward", Op::Truncate), ("public.note", Op::Truncate)]
    );
}

/// A server could name one table as often as a message is long.
#[test]
fn a_truncation_names_no_more_tables_than_were_described() {
    let truncation = |ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let count = u32::try_from(ids.len() / 4).unwrap().to_be_bytes();
        [b"T", &count[..], b"\0", &ids].concat()
    };
    let take = |ids: &[u32]| {
        let mut assembler = assembler();
        for message in [&recorded()[21], &recorded()[10], &truncation(ids)] {
            assembler.take(pgoutput::decode(message)?)?;
        }
        Ok(assembler.told.len())
    };
    assert_eq!(take(&[NOTE]), Ok(1));
    let shape = Err(fault(DecodeErrorKind::Shape));
    assert_eq!(take(&[NOTE, NOTE]), shape);
    assert_eq!(take(&[1]), shape);
}

#[test]
fn contradicting_claims_count_for_nothing() {
    let mut claims = Vec::new();
    for said in [
        &br#"{"person":"A"}"#[..],
        br#"{"person":"A"}"#,
        br#"{"person":"B"}"#,
        br#"{"person":"A"}"#,
    ] {
        let mut assembler = assembler();
        assembler.begin(Lsn(1), 0, 1).unwrap();
        claims.push(said);
        for said in &claims {
            assembler.claim(said).unwrap();
        }
        let (actor, _) = assembler.open.unwrap().claim.attribute();
        assert_eq!(actor.is_some(), claims.len() < 3, "{}", claims.len());
    }
}

#[test]
fn a_claim_that_cannot_be_read_counts_for_nothing() {
    for said in [
        "",
        "x",
        "[]",
        r#"{"person":1}"#,
        r#"{"person":"A","person":"B"}"#,
        &"9".repeat(LONGEST_CLAIM + 1),
    ] {
        let mut assembler = assembler();
        assembler.begin(Lsn(1), 0, 1).unwrap();
        assembler.claim(said.as_bytes()).unwrap();
        assert_eq!(
            assembler.open.unwrap().claim.attribute(),
            (None, None),
            "{said:.20}"
        );
    }
}

#[test]
fn claims_bind_as_firmly_as_what_they_say() {
    #[track_caller]
    fn check(said: &str, binding: Binding) {
        let mut assembler = assembler();
        assembler.begin(Lsn(1), 0, 1).unwrap();
        assembler.claim(said.as_bytes()).unwrap();
        let (actor, _) = assembler.open.unwrap().claim.attribute();
        assert_eq!(actor.unwrap().binding, binding, "{said}");
    }
    check(r#"{"person":"EE1","role":"nurse"}"#, Binding::C);
    check(r#"{"role":"nurse"}"#, Binding::D);
    check(r#"{"app":"ward"}"#, Binding::D);
    check(r#"{"client":"10.0.0.7"}"#, Binding::E);
    check("{}", Binding::E);
}

#[test]
fn messages_out_of_order_are_refused() {
    let recorded = recorded();
    for lines in [&[4][..], &[8], &[0, 0], &[0, 12], &[0, 4], &[1]] {
        let mut assembler = assembler();
        let outcome = lines.iter().try_for_each(|line: &usize| {
            assembler.take(pgoutput::decode(&recorded[*line]).unwrap())
        });
        assert!(outcome.is_err(), "{lines:?}");
    }
}

#[test]
fn transaction_numbers_get_their_epoch() {
    #[track_caller]
    fn check(near: u64, xid: u32, wide: u64) {
        assert_eq!(widen(near, xid), wide);
    }
    check(700, 731, 731);
    check(731, 700, 700);
    check((1 << 32) + 5, u32::MAX, u64::from(u32::MAX));
    check((2 << 32) - 5, 7, (2 << 32) + 7);
    check(5, u32::MAX, u64::from(u32::MAX));
}

#[test]
fn a_time_that_cannot_be_written_is_the_farthest_that_can() {
    assert_eq!(instant(0), "2000-01-01T00:00:00.000000Z");
    assert_eq!(instant(i64::MAX), "9999-12-31T23:59:59.999999Z");
    assert_eq!(instant(i64::MIN), "0001-01-01T00:00:00.000000Z");
}

proptest! {
    #[test]
    fn any_order_of_messages_is_told_or_refused(lines in proptest::collection::vec(0..24_usize, 0..60)) {
        let recorded = recorded();
        let mut assembler = assembler();
        for line in lines {
            if assembler.take(pgoutput::decode(&recorded[line]).unwrap()).is_err() {
                break;
            }
        }
        let mut last = (Lsn(0), 0);
        for step in assembler.told {
            if let Some(Position::Log { lsn, nth: nth @ 1.. }) = step.reached() {
                let follows = if Lsn(lsn) == last.0 { last.1 + 1 } else { 1 };
                // The same transaction may have been recorded twice.
                prop_assert!(nth == follows || nth == 1);
                last = (Lsn(lsn), nth);
            }
        }
    }
}
