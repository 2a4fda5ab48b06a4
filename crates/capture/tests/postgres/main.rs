//! Capture from a real PostgreSQL 15, started and stopped by the test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fingerprint;
mod harness;
mod install;
#[path = "../../../authority/tests/common/port.rs"]
mod port;
mod tls;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::thread::JoinHandle;
use std::time::Duration;

use harness::Server;
use pitser_capture::postgres::install::{Request, install as set_up, unguarded};
use pitser_capture::postgres::slot::{self, State};
use pitser_capture::postgres::{
    Connection, Fingerprint, Lsn, Name, PgError, PgSource, Place, Snapshot, Stream,
};
use pitser_capture::{
    Binding, Captured, Cell, Change, Key, Op, Position, Row, Source as _, SourceError,
};

const WAIT: Duration = Duration::from_millis(200);
/// Silences of `WAIT` in a row before a test gives up.
const PATIENCE: usize = 150;

fn name() -> Name {
    Name::new("pitser").unwrap()
}

/// A server with this schema, of which these tables are published, and a slot.
struct World {
    server: Server,
    sql: Connection,
    start: Position,
}

impl World {
    fn new(schema: &str, tables: &[&str]) -> Option<Self> {
        let server = Server::start(&[], &[])?;
        let mut sql = server.sql();
        sql.query(schema).unwrap();
        publish(&mut sql, tables);
        let mut replication = server.replication();
        let made = slot::create(&mut replication, &name()).unwrap();
        let start = boundary(made.consistent_point());
        Some(Self { server, sql, start })
    }

    fn run(&mut self, sql: &str) {
        self.sql
            .query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn source(&self) -> PgSource {
        let place = Place {
            config: self.server.config(),
            publication: name(),
            slot: name(),
            attribution: false,
        };
        PgSource::open(&place).unwrap()
    }

    fn stream(&self, from: Position) -> Stream {
        Stream::start(self.server.replication(), &name(), &name(), from).unwrap()
    }
}

/// Publishes tables of schema `public`, without anything else of ours.
fn publish(sql: &mut Connection, tables: &[&str]) {
    let quoted: Vec<String> = tables.iter().map(|table| format!("\"{table}\"")).collect();
    let tables = quoted.join(", ");
    sql.query(&format!("CREATE PUBLICATION {} FOR TABLE {tables}", name()))
        .unwrap();
}

/// Everything before this place has been told.
fn boundary(at: Lsn) -> Position {
    Position::Log { lsn: at.0, nth: 0 }
}

fn durable_lsn(position: Position) -> Lsn {
    match position {
        Position::Log { lsn, .. } => Lsn(lsn),
        Position::Outbox(_) => panic!("{position:?}"),
    }
}

/// Reads whole transactions, and where to go on after each.
fn transactions(stream: &mut Stream, count: usize) -> Vec<(Vec<Captured>, Position)> {
    let (mut done, mut open, mut quiet) = (Vec::new(), Vec::new(), 0);
    while done.len() < count {
        match stream.next(WAIT).unwrap() {
            Some(Captured::Mark { pos }) => {
                // Without events before it, it tells how far the log was read.
                if !open.is_empty() {
                    done.push((std::mem::take(&mut open), pos));
                }
            }
            Some(event) => open.push(event),
            None => {
                quiet += 1;
                assert!(
                    quiet < PATIENCE,
                    "{} of {count} transactions came",
                    done.len()
                );
            }
        }
    }
    done
}

/// The changes of the next transactions.
fn changes(stream: &mut Stream, count: usize) -> Vec<Change> {
    let steps = transactions(stream, count);
    steps
        .into_iter()
        .flat_map(|(events, _)| events)
        .map(|captured| match captured {
            Captured::Change(change) => change,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn shown(row: Option<&Row>) -> String {
    row.map_or_else(
        || "-".to_owned(),
        |row| row.cells.iter().map(show).collect::<Vec<_>>().join(","),
    )
}

fn show(cell: &Cell) -> String {
    match cell.is_null() {
        true => "null".to_owned(),
        false => cell.expose_text().unwrap().to_owned(),
    }
}

/// `op key old -> new` lines.
fn story(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let key: Vec<String> = change.key.cells().iter().map(show).collect();
        let (old, new) = (shown(change.old.as_ref()), shown(change.new.as_ref()));
        format!("{:?} {} {old} -> {new}", change.op, key.join("/"))
    };
    changes.iter().map(line).collect()
}

#[test]
fn values_are_printed_alike_whatever_role_and_database_have_set() {
    let columns = [
        ("bool", "true", "t"),
        ("int8", "-9223372036854775808", "-9223372036854775808"),
        ("numeric", "1.50", "1.50"),
        ("float8", "0.1::float8 + 0.2::float8", "0.30000000000000004"),
        ("float8", "'NaN'", "NaN"),
        ("float4", "'-0'", "-0"),
        ("text", "E'J\u{f5}e\\n,'", "Jõe\n,"),
        ("char(4)", "'ab'", "ab  "),
        ("bytea", "'\\x00ff'", "\\x00ff"),
        ("date", "'2026-03-14'", "2026-03-14"),
        (
            "timestamptz",
            "'2026-03-14 09:26:53.5+02'",
            "2026-03-14 07:26:53.5+00",
        ),
        ("timestamp", "'infinity'", "infinity"),
        ("interval", "'1 month -2 days 3:04:05'", "P1M-2DT3H4M5S"),
        ("money", "1234.5", "$1,234.50"),
        ("jsonb", "'{\"b\":1,\"a\":2}'", "{\"a\": 2, \"b\": 1}"),
        ("int[]", "'{1,NULL}'", "{1,NULL}"),
        (
            "uuid",
            "'6E5D3C2B-0000-0000-0000-0123456789AB'",
            "6e5d3c2b-0000-0000-0000-0123456789ab",
        ),
        ("inet", "'10.0.0.7'", "10.0.0.7"),
        ("xml", "'<a/>x'", "<a/>x"),
        ("mood", "'ok'", "ok"),
        ("text", "NULL", "null"),
    ];
    let list = |part: fn(usize, &(&str, &str, &str)) -> String| {
        let parts: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(n, column)| part(n, column))
            .collect();
        parts.join(", ")
    };
    let types = list(|n, (kind, _, _)| format!("c{n} {kind}"));
    let values = list(|_, (_, value, _)| (*value).to_owned());
    let schema = format!(
        "CREATE TYPE mood AS ENUM ('ok');
         CREATE TABLE observation(id int PRIMARY KEY, {types},
                                  twice int GENERATED ALWAYS AS (id * 2) STORED)"
    );
    let Some(mut world) = World::new(&schema, &["observation"]) else {
        return;
    };
    world.run(
        "ALTER ROLE postgres SET datestyle = 'German';
         ALTER ROLE postgres SET intervalstyle = 'postgres_verbose';
         ALTER DATABASE postgres SET timezone = 'Europe/Tallinn';
         ALTER DATABASE postgres SET extra_float_digits = -5;
         ALTER ROLE postgres SET bytea_output = 'escape';
         ALTER ROLE postgres SET xmloption = 'document';
         ALTER ROLE postgres SET client_encoding = 'LATIN1'",
    );
    world.run(&format!("INSERT INTO observation VALUES (1, {values})"));
    let mut stream = world.stream(world.start);
    let found = changes(&mut stream, 1);
    let row = found[0].new.as_ref().unwrap();
    assert_eq!(
        row.columns.len(),
        1 + columns.len(),
        "generated columns are left out"
    );
    for (cell, (kind, _, canonical)) in row.cells[1..].iter().zip(columns) {
        assert_eq!(show(cell), canonical, "{kind}");
    }
    // A query in a session of ours prints the same bytes: a scan can compare.
    let queried = world.server.sql().query("TABLE observation").unwrap();
    for (field, cell) in queried[0].iter().zip(&row.cells) {
        assert_eq!(field.as_deref(), cell.expose_text().map(str::as_bytes));
    }
}

/// Whatever role or database have set: questions may be far apart, a baseline is long.
#[test]
fn no_limit_of_the_roles_ends_a_session() {
    let Some(world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    let mut sql = world.server.sql();
    let limits = "SELECT name FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')";
    let limits = sql.query(limits).unwrap();
    assert!(!limits.is_empty());
    let limits = limits.iter().map(|row| row[0].clone().unwrap());
    for limit in limits.map(|name| String::from_utf8(name.to_vec()).unwrap()) {
        let set = format!("ALTER ROLE postgres SET {limit} = '1h'");
        sql.query(&set).unwrap();
        for mut session in [world.server.sql(), world.server.replication()] {
            let shown = session.query(&format!("SHOW {limit}")).unwrap();
            assert_eq!(shown[0][0].as_deref(), Some(&b"0"[..]), "{limit}");
        }
    }
}

#[test]
fn changes_in_commit_order_with_keys_savepoints_and_truncation() {
    let schema = "CREATE TABLE visit(ward text, n int, note text, PRIMARY KEY (n, ward));
                  CREATE TABLE image(id int PRIMARY KEY, big text, n int);
                  ALTER TABLE image ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
                  CREATE TABLE log(at int, what text);
                  ALTER TABLE log REPLICA IDENTITY FULL;
                  CREATE TABLE unguarded(id int PRIMARY KEY)";
    let Some(mut world) = World::new(schema, &["visit", "image", "log"]) else {
        return;
    };
    let mut stream = world.stream(world.start);

    world.run("INSERT INTO visit VALUES ('a', 1, 'x'), ('a', 2, NULL)");
    world.run("UPDATE visit SET note = 'y' WHERE n = 1");
    world.run("UPDATE visit SET n = 3 WHERE n = 1");
    world.run("DELETE FROM visit WHERE n = 2");
    let found = changes(&mut stream, 4);
    assert_eq!(
        story(&found),
        [
            "Create a/1 - -> a,1,x",
            "Create a/2 - -> a,2,null",
            "Update a/1 - -> a,1,y",
            "Delete a/1 - -> -",
            "Create a/3 - -> a,3,y",
            "Delete a/2 - -> -",
        ]
    );
    assert!(
        found
            .iter()
            .all(|change| change.actor.is_none() && change.table == "public.visit")
    );
    assert!(found.is_sorted_by(|one, next| one.pos < next.pos));
    let nth = found.iter().map(|change| match change.pos {
        Position::Log { nth, .. } => nth,
        Position::Outbox(_) => 0,
    });
    assert_eq!(nth.collect::<Vec<_>>(), [1, 2, 1, 1, 2, 1]);
    let tx: Vec<u64> = found.iter().map(|change| change.tx - found[0].tx).collect();
    assert_eq!(tx, [0, 0, 1, 2, 2, 3]);

    // What is rolled back never was; a transaction of nothing else says nothing.
    world.run(
        "BEGIN; INSERT INTO visit VALUES ('b', 1, 'kept'); SAVEPOINT s;
         INSERT INTO visit VALUES ('b', 2, 'gone'); DELETE FROM visit; ROLLBACK TO s;
         INSERT INTO visit VALUES ('b', 3, 'kept'); COMMIT",
    );
    world.run("BEGIN; INSERT INTO visit VALUES ('c', 1, 'gone'); ROLLBACK");
    world.run("INSERT INTO unguarded VALUES (1)");
    world.run("BEGIN; SAVEPOINT s; INSERT INTO visit VALUES ('c', 2, 'kept'); RELEASE s; COMMIT");
    assert_eq!(
        story(&changes(&mut stream, 2)),
        [
            "Create b/1 - -> b,1,kept",
            "Create b/3 - -> b,3,kept",
            "Create c/2 - -> c,2,kept",
        ]
    );

    // A large value that an update leaves alone comes out of the old row.
    world.run("INSERT INTO image VALUES (1, repeat('z', 4000), 1)");
    world.run("UPDATE image SET n = 2");
    let found = changes(&mut stream, 2);
    let row = found[1].new.as_ref().unwrap();
    assert_eq!(show(row.get("big").unwrap()).len(), 4000);
    assert_eq!(show(&found[1].key.cells()[0]), "1");
    assert_eq!(show(found[1].old.as_ref().unwrap().get("n").unwrap()), "1");

    // Without a primary key the whole row is the key.
    world.run("INSERT INTO log VALUES (1, 'in')");
    world.run("UPDATE log SET what = 'out'");
    assert_eq!(
        story(&changes(&mut stream, 2)),
        [
            "Create 1/in - -> 1,in",
            "Delete 1/in 1,in -> -",
            "Create 1/out - -> 1,out",
        ]
    );

    world.run("TRUNCATE visit, image");
    let emptied = changes(&mut stream, 1);
    assert_eq!(story(&emptied), ["Truncate  - -> -", "Truncate  - -> -"]);
    assert_eq!(emptied[1].table, "public.image");

    // New columns show from the change after them.
    world.run("ALTER TABLE visit ADD room text DEFAULT 'r'; ALTER TABLE visit DROP note");
    world.run("INSERT INTO visit VALUES ('d', 1)");
    let found = changes(&mut stream, 1);
    assert_eq!(
        &*found[0].new.as_ref().unwrap().columns,
        ["ward", "n", "room"]
    );
}

#[test]
fn logical_messages_say_who_is_acting() {
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    let say = |prefix: &str, said: &str| {
        format!("PERFORM pg_logical_emit_message(true, '{prefix}', '{said}')")
    };
    let mut act = |statements: &[&str]| {
        world.run(&format!("DO $$ BEGIN {}; END $$", statements.join("; ")));
    };
    let ours = say(
        "pitser",
        r#"{"person":"EE38001085718","app":"ward","client":"10.0.0.7","purpose":"TREAT"}"#,
    );
    let other = say("pitser", r#"{"person":"EE1"}"#);
    let foreign = say("other", "not even JSON");
    let now = "PERFORM pg_logical_emit_message(false, 'pitser', '{}')";
    act(&[
        &ours,
        "INSERT INTO visit VALUES (1)",
        &foreign,
        &ours,
        "INSERT INTO visit VALUES (2)",
    ]);
    act(&[now, "INSERT INTO visit VALUES (3)"]);
    act(&[
        &ours,
        "INSERT INTO visit VALUES (4)",
        &other,
        "INSERT INTO visit VALUES (5)",
    ]);

    let mut stream = world.stream(world.start);
    let found = changes(&mut stream, 3);
    let actor = found[0].actor.as_ref().unwrap();
    assert_eq!(actor.person.as_ref().unwrap().expose(), "EE38001085718");
    assert_eq!(actor.app.as_deref(), Some("ward"));
    assert_eq!(actor.client.as_deref(), Some("10.0.0.7"));
    assert_eq!(actor.binding, Binding::C);
    assert_eq!(found[0].purpose.as_deref(), Some("TREAT"));
    assert_eq!(found[1].actor, found[0].actor);
    let attributed: Vec<bool> = found.iter().map(|change| change.actor.is_some()).collect();
    assert_eq!(attributed, [true, true, false, true, false]);
}

#[test]
fn each_change_exactly_once_across_restarts() {
    let schema = "CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE other(id int)";
    let Some(mut world) = World::new(schema, &["visit"]) else {
        return;
    };
    let insert =
        |world: &mut World, id: u32| world.run(&format!("INSERT INTO visit VALUES ({id})"));
    let mut stream = world.stream(world.start);
    for id in 1..=3 {
        insert(&mut world, id);
    }
    let seen = transactions(&mut stream, 3);
    // Two are durable; the third came, but the guardian died before it wrote.
    let durable = seen[1].1;
    stream.ack(durable).unwrap();

    world.server.crash_and_restart();
    let error = loop {
        match stream.next(WAIT) {
            Ok(step) => assert!(!matches!(step, Some(Captured::Change(_))), "{step:?}"),
            Err(error) => break error,
        }
    };
    assert!(error.is_passing(), "{error}");
    drop(stream);

    world.sql = world.server.sql();
    insert(&mut world, 4);
    let mut stream = world.stream(durable);
    let again = transactions(&mut stream, 2);
    assert_eq!(again[0], seen[2], "the same events at the same positions");
    let Captured::Change(fourth) = &again[1].0[0] else {
        panic!("{again:?}");
    };
    assert_eq!(show(&fourth.key.cells()[0]), "4");
    assert!(matches!(fourth.pos, Position::Log { nth: 1, .. }));
    let durable = again[1].1;
    stream.ack(durable).unwrap();

    // What is not ours moves the place to go on from, so that log can go.
    world.run("INSERT INTO other SELECT generate_series(1, 10)");
    let idle = loop {
        match stream.next(WAIT).unwrap() {
            Some(Captured::Mark { pos }) if pos > durable => break pos,
            Some(Captured::Mark { .. }) | None => {}
            other => panic!("{other:?}"),
        }
    };
    stream.ack(idle).unwrap();
    drop(stream);

    world.server.restart();
    world.sql = world.server.sql();
    insert(&mut world, 5);
    let mut stream = world.stream(idle);
    let fifth = changes(&mut stream, 1);
    assert_eq!(story(&fifth), ["Create 5 - -> 5"]);
    assert!(fifth[0].pos > idle);
}

#[test]
fn nothing_is_acknowledged_before_it_was_handed_out() {
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    world.run("INSERT INTO visit VALUES (1)");
    let mut stream = world.stream(world.start);
    let ahead = Position::Log {
        lsn: durable_lsn(world.start).0 + (1 << 30),
        nth: 0,
    };
    assert!(matches!(stream.ack(ahead), Err(PgError::AckAhead { .. })));
    let (_, end) = transactions(&mut stream, 1).remove(0);
    stream.ack(end).unwrap();
}

#[test]
fn a_slot_that_is_missing_moved_or_busy_is_noticed() {
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    let durable = durable_lsn(world.start);
    let sound = State::Sound { confirmed: durable };
    assert_eq!(
        slot::state(&mut world.sql, &name(), durable).unwrap(),
        sound
    );

    let stream = world.stream(world.start);
    let busy = Stream::start(world.server.replication(), &name(), &name(), world.start);
    let busy = busy.unwrap_err();
    assert!(
        busy.is_passing() && busy.to_string().contains("second guardian"),
        "{busy}"
    );
    drop(stream);

    let mut replication = world.server.replication();
    let twice = slot::create(&mut replication, &name()).unwrap_err();
    assert!(matches!(twice, PgError::SlotExists { .. }), "{twice}");

    world.run("INSERT INTO visit VALUES (1)");
    // The server lets a slot go a moment after its reader.
    let advance = "SELECT pg_replication_slot_advance('pitser', pg_current_wal_lsn())";
    while world.sql.query(advance).is_err() {}
    assert!(matches!(
        slot::state(&mut world.sql, &name(), durable).unwrap(),
        State::Moved { confirmed } if confirmed > durable
    ));
    let moved = Stream::start(world.server.replication(), &name(), &name(), world.start);
    assert!(matches!(moved.unwrap_err(), PgError::SlotMoved { .. }));

    slot::drop(&mut world.sql, &name()).unwrap();
    slot::drop(&mut world.sql, &name()).unwrap();
    assert_eq!(
        slot::state(&mut world.sql, &name(), durable).unwrap(),
        State::Missing
    );
    let gone = Stream::start(world.server.replication(), &name(), &name(), world.start);
    assert!(matches!(
        gone.unwrap_err(),
        PgError::SlotGone {
            what: "missing",
            ..
        }
    ));
}

/// Nor does it keep the others from being read as of the same moment, also by two sessions.
/// It takes a minute, as long as is waited for.
#[test]
fn a_table_that_is_locked_does_not_keep_a_reader_for_ever() {
    let schema = "CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE note(id int PRIMARY KEY, t text); \
                  INSERT INTO note SELECT n, repeat('x', 900) FROM generate_series(1, 12000) n";
    let Some(mut world) = World::new(schema, &["visit", "note"]) else {
        return;
    };
    let mut moment = world.source().snapshot().unwrap()().unwrap();
    world.run("BEGIN; LOCK TABLE visit IN ACCESS EXCLUSIVE MODE");
    let mut each = |_| ControlFlow::Continue(());
    let error = moment.scan("public.visit", 10, &mut each).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("table public.visit is locked"), "{told}");
    let error: Result<PgError, _> = match error {
        SourceError::Postgres(error) => Ok(error),
        other => Err(other),
    };
    assert!(error.unwrap().is_passing());
    assert!(moment.goes_on());
    let mut other = world.server.sql();
    let later = "UPDATE note SET t = 'later'; INSERT INTO note VALUES (0, 'later')";
    other.query(later).unwrap();
    let (mut rows, mut lengths) = (0, BTreeSet::new());
    let mut each = |read: Vec<(Key, Row)>| {
        rows += read.len();
        lengths.extend(
            read.iter()
                .map(|(_, row)| row.cells[1].expose().unwrap().len()),
        );
        ControlFlow::Continue(())
    };
    moment.scan("public.note", 1000, &mut each).unwrap();
    assert_eq!((rows, lengths), (12000, BTreeSet::from([901])));
}

/// By a lock on a catalogue its administrator stops whoever begins, between the question
/// how the slot stands and the command that takes it. Of a slot that was moved then the
/// server says nothing, and leaves out what lies between.
#[test]
fn a_slot_that_is_moved_while_we_begin_is_noticed() {
    // A session that is beginning does nothing yet.
    const WAITS: &str = "SELECT coalesce((SELECT a.query FROM pg_stat_activity a WHERE a.pid = l.pid), '') \
        FROM pg_locks l WHERE NOT l.granted AND l.relation = 'pg_index'::regclass AND l.mode ";
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    let (mut source, after) = (world.source(), world.start);
    world.run("INSERT INTO visit VALUES (1)");
    let lock = |session: &mut Connection| {
        let lock = "BEGIN; LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE";
        session.query(lock).unwrap();
    };
    let [mut holder, mut other] = [(); 2].map(|()| {
        let mut session = world.server.sql();
        // It may need what is locked.
        session.query(&format!("{WAITS} = 'any'")).unwrap();
        session
    });
    lock(&mut holder);
    let poll = move || {
        let told = loop {
            match source.poll(after, 10) {
                Err(error) if error.is_busy() || error.is_taken() => {}
                told => break told.unwrap(),
            }
        };
        (source, told)
    };
    let begun = std::thread::spawn(poll);
    loop {
        let waiting = holder
            .query(&format!("{WAITS} <> 'AccessExclusiveLock'"))
            .unwrap();
        assert!(!begun.is_finished(), "it never waits where it should");
        if waiting.is_empty() {
            continue;
        }
        if install::column(&waiting)
            .iter()
            .any(|query| query.contains("i.indrelid"))
        {
            break;
        }
        // One step on: whoever locks next stands in the queue behind it.
        let next = std::thread::spawn(move || {
            lock(&mut other);
            other
        });
        let queued = format!("{WAITS} = 'AccessExclusiveLock'");
        while holder.query(&queued).unwrap().is_empty() {}
        holder.query("COMMIT").unwrap();
        other = std::mem::replace(&mut holder, next.join().unwrap());
    }
    holder
        .query("SELECT pg_replication_slot_advance('pitser', pg_current_wal_lsn())")
        .unwrap();
    holder.query("COMMIT").unwrap();
    let (_source, told) = begun.join().unwrap();
    assert!(matches!(told[..], [Captured::Gap { .. }]), "{told:?}");
}

#[test]
fn a_publication_made_after_its_slot_is_named() {
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    world.run("DROP PUBLICATION pitser");
    world.run("INSERT INTO visit VALUES (1)");
    world.run("CREATE PUBLICATION pitser FOR TABLE visit; INSERT INTO visit VALUES (2)");
    let mut stream = world.stream(world.start);
    let first = loop {
        match stream.next(WAIT) {
            Ok(Some(Captured::Change(change))) => break Ok(change),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    // From 18 on the server goes on without it: that it was away is in the fingerprint.
    match first {
        Ok(change) if world.server.version() >= 18 => {
            assert_eq!(story(&[change]), ["Create 2 - -> 2"])
        }
        Err(PgError::NoPublication { .. }) if world.server.version() < 18 => {}
        other => panic!("{other:?}"),
    }
}

/// The error says this, and does not say the password.
#[track_caller]
fn says<T: std::fmt::Debug>(outcome: Result<T, PgError>, passing: bool, words: &[&str]) {
    let error = outcome.unwrap_err();
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message}");
    }
    assert!(
        !message.contains("p@ss") && !message.contains("hunter"),
        "{message}"
    );
    assert_eq!(error.is_passing(), passing, "{message}");
}

#[test]
fn refusals_say_what_to_do() {
    let settings = ["max_replication_slots = 1"];
    let hba = [
        "host all weak 127.0.0.1/32 md5",
        "host all plain 127.0.0.1/32 password",
        "host all nobody 127.0.0.1/32 reject",
    ];
    let Some(server) = Server::start(&settings, &hba) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(
        "CREATE ROLE clerk LOGIN PASSWORD 'hunter'; CREATE ROLE plain LOGIN PASSWORD 'hunter';
         CREATE ROLE nobody LOGIN PASSWORD 'hunter'; SET password_encryption = 'md5';
         CREATE ROLE weak LOGIN PASSWORD 'hunter'; CREATE TABLE visit(id int PRIMARY KEY)",
    )
    .unwrap();
    let open = |user: &str, password: &str| Connection::open(&server.config_of(user, password));
    says(
        open("postgres", "hunter3"),
        false,
        &["refused the password", "postgres"],
    );
    says(
        open("stranger", "hunter"),
        false,
        &["refused the password", "stranger"],
    );
    says(open("clerk", ""), false, &["password"]);
    says(open("weak", "hunter"), false, &["MD5", "scram-sha-256"]);
    says(
        open("plain", "hunter"),
        false,
        &["in clear", "scram-sha-256"],
    );
    says(open("nobody", "hunter"), false, &["pg_hba.conf"]);

    let clerk = server.config_of("clerk", "hunter");
    let mut theirs = Connection::open_application(&clerk).unwrap();
    says(
        Connection::open_replication(&clerk),
        false,
        &["ALTER ROLE \"clerk\" REPLICATION"],
    );
    says(
        theirs.query("TABLE visit"),
        false,
        &["visit", "GRANT SELECT", "\"clerk\""],
    );
    // A refused question leaves the session in order.
    assert_eq!(
        theirs.query("SELECT 7").unwrap()[0][0].as_deref(),
        Some(&b"7"[..])
    );

    let (first, second) = (Name::new("first").unwrap(), Name::new("second").unwrap());
    slot::create(&mut server.replication(), &first).unwrap();
    let full = slot::create(&mut server.replication(), &second).map(drop);
    says(full, false, &["max_replication_slots"]);

    let config = server.config();
    server.stop();
    says(sql.query("SELECT 1"), true, &["no connections now"]);
    says(
        Connection::open(&config),
        true,
        &["127.0.0.1", "is it running"],
    );
}

#[test]
fn a_log_that_holds_too_little_is_named_with_its_two_lines() {
    let Some(server) = Server::start(&["wal_level = replica"], &[]) else {
        return;
    };
    let outcome = slot::create(&mut server.replication(), &name()).map(drop);
    let lines = [
        "is replica",
        "\nwal_level = logical\n",
        "max_replication_slots = 10",
    ];
    says(outcome, false, &lines);
}

#[test]
fn rows_of_the_exported_snapshot_and_the_stream_meet() {
    let schema = "CREATE TABLE visit(n int, ward text, late text, PRIMARY KEY (ward) INCLUDE (n));
                  ALTER TABLE visit REPLICA IDENTITY FULL, DROP late, ADD late int DEFAULT 7;
                  CREATE TABLE \"Odd.Näme\"(\"a b\" int PRIMARY KEY, c int GENERATED ALWAYS AS (1) STORED);
                  CREATE TABLE heap(a int);
                  INSERT INTO visit SELECT n, 'w' || n FROM generate_series(1, 5) n;
                  INSERT INTO \"Odd.Näme\" VALUES (1)";
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(schema).unwrap();
    publish(&mut sql, &["visit", "Odd.Näme", "heap"]);
    let mut replication = server.replication();
    let made = slot::create(&mut replication, &name()).unwrap();
    sql.query("INSERT INTO visit VALUES (6, 'w6'); INSERT INTO \"Odd.Näme\" VALUES (2)")
        .unwrap();

    let mut snapshot = Snapshot::open_exported(&server.config(), made.snapshot()).unwrap();
    let tables = snapshot.tables(&name()).unwrap();
    let (mut baseline, mut chunks) = (Vec::new(), Vec::new());
    for table in [&tables[0], &tables[2]] {
        let collect = |rows: Vec<(Key, Row)>| {
            chunks.push(rows.len());
            baseline.extend(
                rows.into_iter()
                    .map(|(key, row)| (table.name.clone(), key, row)),
            );
            ControlFlow::Continue(())
        };
        snapshot.scan(table, 2, collect).unwrap();
    }
    assert_eq!(chunks, [1, 2, 2, 1]);
    assert_eq!(
        (baseline[0].0.as_str(), show(&baseline[0].1.cells()[0])),
        ("public.\"Odd.Näme\"", "1".to_owned())
    );
    assert_eq!(shown(Some(&baseline[1].2)), "1,w1,7");
    let keyless = snapshot.scan(&tables[1], 2, |_| ControlFlow::Continue(()));
    says(keyless, false, &["public.heap", "REPLICA IDENTITY FULL"]);

    let start = boundary(made.consistent_point());
    let mut stream = Stream::start(replication, &name(), &name(), start).unwrap();
    let found = changes(&mut stream, 1);
    let lines = ["Create w6 - -> 6,w6,7", "Create 2 - -> 2"];
    assert_eq!(story(&found), lines);
    // The same shape and the same key from both, so that one continues the other.
    for (change, (table, key, row)) in found.iter().zip([&baseline[1], &baseline[0]]) {
        assert_eq!(
            (&change.table, change.key.cells().len()),
            (table, key.cells().len())
        );
        assert_eq!(change.new.as_ref().unwrap().columns, row.columns);
    }
}

#[test]
fn rows_that_a_policy_hides_are_not_left_out_in_silence() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    server
        .sql()
        .query(
            "CREATE ROLE clerk LOGIN PASSWORD 'hunter'; CREATE TABLE visit(id int PRIMARY KEY);
             INSERT INTO visit VALUES (1); ALTER TABLE visit ENABLE ROW LEVEL SECURITY;
             GRANT SELECT ON visit TO clerk; CREATE PUBLICATION pitser FOR TABLE visit",
        )
        .unwrap();
    let mut snapshot = Snapshot::open(&server.config_of("clerk", "hunter")).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let hidden = snapshot.scan(&table, 10, |rows| panic!("{} rows", rows.len()));
    assert!(
        matches!(hidden, Err(PgError::Permission { .. })),
        "{hidden:?}"
    );
}

#[test]
fn no_question_of_ours_is_compiled() {
    let Some(mut world) = World::new("CREATE TABLE visit(id int PRIMARY KEY)", &["visit"]) else {
        return;
    };
    world.run(
        "ALTER DATABASE postgres SET jit = on; ALTER DATABASE postgres SET jit_above_cost = 0",
    );
    let config = world.server.config();
    for mut session in [
        Connection::open(&config).unwrap(),
        world.server.replication(),
    ] {
        let shown = session.query("SHOW jit").unwrap();
        assert_eq!(install::column(&shown), ["off"]);
    }
}

/// An index that holds all columns would answer for a heap that was edited on disk.
#[test]
fn rows_are_read_from_the_heap_and_from_no_index() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY, note text); INSERT INTO visit VALUES (1, 'cough');
         CREATE INDEX ON visit(id, note)",
        &["visit"],
    ) else {
        return;
    };
    world.run("VACUUM visit");
    for set in [
        "enable_seqscan = off",
        "enable_tidscan = off",
        "enable_indexonlyscan = on",
        "seq_page_cost = 1e100",
        "cpu_tuple_cost = 1e100",
    ] {
        world.run(&format!("ALTER DATABASE postgres SET {set}"));
    }
    world.run("CHECKPOINT");
    let path = world.sql.query("SELECT pg_relation_filepath('visit')");
    let path = install::column(&path.unwrap()).remove(0);
    let file = world.server.data().join(path);
    world.server.stop();
    let mut page = std::fs::read(&file).unwrap();
    let at = page.windows(5).position(|it| it == b"cough").unwrap();
    page[at] = b'd';
    std::fs::write(&file, page).unwrap();
    world.server.start_again();
    let asked = world.server.sql().query("SELECT note, id FROM visit");
    assert_eq!(install::column(&asked.unwrap()), ["cough"], "the premise");
    let mut snapshot = Snapshot::open(&world.server.config()).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let mut rows = Vec::new();
    let each = |chunk| {
        rows.extend(chunk);
        ControlFlow::Continue(())
    };
    snapshot.scan(&table, 10, each).unwrap();
    assert_eq!(shown(Some(&rows[0].1)), "1,dough");
}

/// The stream marks old rows by the root's identity, and has what the partition's logged.
#[test]
fn a_partition_that_logs_less_than_its_root_says() {
    let Some(mut world) = World::new(
        "CREATE TABLE lab(id int, part int, note text, big text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
         CREATE TABLE lab_1 PARTITION OF lab FOR VALUES IN (1);
         ALTER TABLE lab REPLICA IDENTITY FULL; ALTER TABLE lab_1 ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE whole PARTITION OF lab FOR VALUES IN (2); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE bed(id int NOT NULL, code int NOT NULL, part int, PRIMARY KEY (id, part),
           UNIQUE (code, part)) PARTITION BY LIST (part);
         CREATE TABLE bed_1 PARTITION OF bed FOR VALUES IN (1);
         ALTER TABLE bed REPLICA IDENTITY USING INDEX bed_code_part_key;
         ALTER TABLE bed_1 REPLICA IDENTITY DEFAULT",
        &["lab", "bed"],
    ) else {
        return;
    };
    world.run("ALTER PUBLICATION pitser SET (publish_via_partition_root = true)");
    for change in [
        "INSERT INTO lab VALUES (1, 1, 'a', repeat('x', 9000)), (2, 2, 'b', NULL), (3, 2, NULL, NULL)",
        "UPDATE lab SET id = 9 WHERE id = 1",
        "DELETE FROM lab",
        "INSERT INTO bed VALUES (1, 5, 1)",
        "UPDATE bed SET id = 2",
        "DELETE FROM bed",
    ] {
        world.run(change);
    }
    let mut stream = world.stream(world.start);
    let all: Vec<Captured> = transactions(&mut stream, 6)
        .into_iter()
        .flat_map(|(events, _)| events)
        .collect();
    let told: Vec<String> = all
        .iter()
        .map(|event| match event {
            Captured::Change(change) => {
                let unsent = &change.unsent;
                story(std::slice::from_ref(change))
                    .remove(0)
                    .replace(&"x".repeat(9000), "x")
                    + &format!(" {unsent:?}").replace(" []", "")
            }
            Captured::Unreadable { table, .. } => format!("Unreadable {table:?}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "Create 1/1 - -> 1,1,a,x",
            "Create 2/2 - -> 2,2,b,null",
            "Create 3/2 - -> 3,2,null,null",
            "Delete 1/1 - -> -",
            "Create 9/1 - -> 9,1,a,null [3]",
            "Delete 9/1 - -> -",
            "Delete 2/2 2,2,b,null -> -",
            // All that could be missing is null in it: taken for its key alone.
            "Delete 3/2 - -> -",
            "Create 5/1 - -> 1,5,1",
            "Unreadable Some(\"public.bed\")",
            "Unreadable Some(\"public.bed\")",
        ]
    );
}

/// Bytes that are no character of the database's encoding may be part of a name.
#[test]
fn a_name_that_is_no_text_ends_nothing() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    for (database, encoding, bytes, read) in [
        ("baltic", "WIN1257", "f581", "õ\u{FFFD}81"),
        ("japan", "EUC_JP", "c6fcfdfe", "日\u{FFFD}fd\u{FFFD}fe"),
        ("bytes", "SQL_ASCII", "c3b5ff", "õ\u{FFFD}ff"),
    ] {
        let create = format!(
            "CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
        );
        server.sql().query(&create).unwrap();
        let mut config = server.config();
        config.database = database.to_owned();
        let mut sql = Connection::open_application(&config).unwrap();
        let mut run = |statement: &str| {
            let statement = statement.replace('@', "%1$I").replace('\'', "''");
            let named = format!(
                "DO $$ BEGIN EXECUTE format('{statement}', convert_from('\\x{bytes}', '{encoding}')); END $$"
            );
            sql.query(&named)
                .unwrap_or_else(|error| panic!("{named}: {error}"));
        };
        run("CREATE TABLE visit(id int PRIMARY KEY, note text)");
        run("CREATE TABLE @(@ int PRIMARY KEY)");
        // With such a table beside it.
        let mut guarding = Connection::open(&config).unwrap();
        let guarded = install::wanted(&mut guarding, &["visit"]);
        let request = Request {
            slot: &Name::new(database).unwrap(),
            ..install::request(&guarded)
        };
        set_up(&mut guarding, &request).unwrap();
        let mut replication = Connection::open_replication(&config).unwrap();
        let made = slot::create(&mut replication, request.slot).unwrap();
        let start = boundary(made.consistent_point());
        drop(made);
        run("ALTER TABLE visit RENAME note TO @");
        run("INSERT INTO visit VALUES (1, 'a')");

        let mut asking = Connection::open(&config).unwrap();
        let others = unguarded(&mut asking, &name());
        assert_eq!(others.unwrap(), [format!("public.{read}")]);
        let mut snapshot = Snapshot::open(&config).unwrap();
        let tables = snapshot.tables(&name()).unwrap();
        assert_eq!(*tables[0].columns, ["id".to_owned(), read.to_owned()]);
        drop(snapshot);
        let take = |sql: &mut Connection| Fingerprint::take(sql, &name(), request.slot).unwrap();
        let before = take(&mut asking);
        let place = Place {
            config: config.clone(),
            publication: name(),
            slot: request.slot.clone(),
            attribution: true,
        };
        let mut source = PgSource::open(&place).unwrap();
        let mut told = Vec::new();
        while !told.iter().any(|step| matches!(step, Captured::Change(_))) {
            told.extend(source.poll(start, 10).unwrap());
        }
        run("ALTER TABLE visit RENAME @ TO note");
        run("INSERT INTO visit VALUES (2, 'b')");
        while told
            .iter()
            .filter(|step| matches!(step, Captured::Change(_)))
            .count()
            < 2
        {
            told.extend(source.poll(start, 10).unwrap());
        }
        let named: Vec<String> = told
            .iter()
            .filter_map(|step| match step {
                Captured::Change(change) => Some(change.new.as_ref().unwrap().columns[1].clone()),
                _ => None,
            })
            .collect();
        assert_eq!(named, [read, "note"]);
        let drifts = before.compare(&take(&mut asking));
        assert!(
            drifts[0]
                .text
                .contains(&format!("{read} is now called note")),
            "{drifts:?}"
        );
    }
}

#[test]
fn a_transaction_that_is_larger_than_any_buffer() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY, body text)",
        &["visit"],
    ) else {
        return;
    };
    world.run("SET logical_decoding_work_mem = '64kB'");
    world.run("INSERT INTO visit SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n");
    let mut stream = world.stream(world.start);
    let found = changes(&mut stream, 1);
    let keys: Vec<String> = found
        .iter()
        .map(|change| show(&change.key.cells()[0]))
        .collect();
    let expected: Vec<String> = (1..=20000).map(|n| n.to_string()).collect();
    assert_eq!(keys, expected);
}

/// Statements of a busy client, each a transaction; some are rolled back in part.
fn statement(random: &mut u64) -> String {
    let mut below = |limit: u64| {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % limit
    };
    let (id, other, value) = (below(20), below(20), below(1000));
    match below(6) {
        0 | 1 => format!(
            "INSERT INTO visit VALUES ({id}, '{value}') ON CONFLICT (id) DO UPDATE SET note = excluded.note"
        ),
        2 => format!("UPDATE visit SET note = note || '{value}' WHERE id = {id}"),
        3 => format!(
            "UPDATE visit SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM visit WHERE id = {other})"
        ),
        4 => format!("DELETE FROM visit WHERE id = {id}"),
        _ => format!(
            "BEGIN; SAVEPOINT s; DELETE FROM visit; ROLLBACK TO s; UPDATE visit SET note = '{value}' WHERE id = {other}; COMMIT"
        ),
    }
}

/// A guardian that dies now and then: what it has is what is durable.
struct Guardian {
    rows: BTreeMap<Key, Row>,
    reached: Position,
    steps: u32,
}

impl Guardian {
    /// Takes up to `count` steps; whether the last record of all was among them.
    fn read(&mut self, stream: &mut Stream, count: usize) -> bool {
        for _ in 0..count {
            match stream.next(WAIT).unwrap() {
                Some(Captured::Change(change)) => {
                    if self.apply(change) {
                        return true;
                    }
                }
                Some(Captured::Mark { pos }) => {
                    assert!(pos > self.reached);
                    self.reached = pos;
                }
                None => {}
                other => panic!("{other:?}"),
            }
            self.steps += 1;
            if self.steps.is_multiple_of(3) {
                stream.ack(self.reached).unwrap();
            }
        }
        false
    }

    fn apply(&mut self, change: Change) -> bool {
        let places = (self.reached, change.pos);
        let (
            Position::Log { lsn, nth },
            Position::Log {
                lsn: now,
                nth: next,
            },
        ) = places
        else {
            panic!("{places:?}");
        };
        let follows = if now == lsn { nth + 1 } else { 1 };
        assert!(
            now >= lsn && next == follows,
            "told twice or left out: {places:?}"
        );
        self.reached = change.pos;
        let last = show(&change.key.cells()[0]) == "-1";
        let known = self.rows.contains_key(&change.key);
        assert_eq!(
            known,
            change.op != Op::Create,
            "{:?} at {}",
            change.op,
            change.pos
        );
        match change.new {
            Some(row) => self.rows.insert(change.key, row),
            None => self.rows.remove(&change.key),
        };
        last
    }
}

#[test]
fn what_was_told_adds_up_to_the_table_whoever_dies() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY, note text)",
        &["visit"],
    ) else {
        return;
    };
    let mut guardian = Guardian {
        rows: BTreeMap::new(),
        reached: world.start,
        steps: 0,
    };
    let mut lives = 0;
    let mut live = |guardian: &mut Guardian, world: &World, steps| {
        lives += 1;
        guardian.read(&mut restarted(world, guardian.reached), steps)
    };
    let clients = busy_clients(&world.server, [1, 2, 3]);
    for _ in 0..4 {
        live(&mut guardian, &world, 37);
    }
    // The server dies too, with the clients' transactions open.
    world.server.crash_and_restart();
    for client in clients {
        client.join().unwrap();
    }
    for client in busy_clients(&world.server, [4, 5, 6]) {
        client.join().unwrap();
    }
    world.sql = world.server.sql();
    world.run("INSERT INTO visit VALUES (-1, 'the last')");
    while !live(&mut guardian, &world, 101) {}
    assert!(lives > 5, "{lives} lives are too few to show anything");

    let mut snapshot = Snapshot::open(&world.server.config()).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let mut rows = BTreeMap::new();
    snapshot
        .scan(&table, 7, |chunk| {
            rows.extend(chunk);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(rows.len() > 5);
    assert_eq!(guardian.rows, rows);
}

/// Clients that change rows until they are done or the server goes away.
fn busy_clients(server: &Server, seeds: [u64; 3]) -> [JoinHandle<()>; 3] {
    seeds.map(|seed| {
        let mut sql = server.sql();
        std::thread::spawn(move || {
            let mut random = seed;
            for _ in 0..100 {
                // Two clients may want one key at the same moment.
                match sql.query(&statement(&mut random)) {
                    Err(error) if error.is_passing() => return,
                    Err(_) => drop(sql.query("ROLLBACK")),
                    Ok(_) => {}
                }
            }
        })
    })
}

/// A stream as soon as the server has let go of the one before.
fn restarted(world: &World, from: Position) -> Stream {
    loop {
        match Stream::start(world.server.replication(), &name(), &name(), from) {
            Err(PgError::SlotBusy { .. }) => {}
            outcome => return outcome.unwrap(),
        }
    }
}
