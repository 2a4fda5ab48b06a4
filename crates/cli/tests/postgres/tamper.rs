//! What is changed past capture is found by looking at the rows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use pitser_evidence::line::Op;
use serde_json::{Value, json};

use crate::hospital::{SOURCE, stamp};
use crate::world::{PATIENCE, World, lsn, signal};

/// Changes rows so that the stream tells nothing of it: the table leaves the
/// publication and comes back in one transaction.
pub(crate) fn unseen(world: &World, table: &str, sql: &str) {
    world.psql(
        "postgres",
        &format!(
            "BEGIN; ALTER TABLE {table} DISABLE TRIGGER ALL; ALTER PUBLICATION pitser_hospital DROP TABLE ONLY {table}; \
             {sql}; ALTER PUBLICATION pitser_hospital ADD TABLE ONLY {table}; \
             ALTER TABLE {table} ENABLE TRIGGER ALL, ENABLE ALWAYS TRIGGER pitser_attribution; COMMIT"
        ),
    );
}

fn codes(findings: &[Value]) -> Vec<(&str, &str, &str)> {
    findings
        .iter()
        .map(|f| {
            let text = |name: &str| f[name].as_str().unwrap_or_default();
            (text("code"), text("table"), text("key"))
        })
        .collect()
}

#[test]
fn rows_changed_added_and_removed_past_capture() {
    let Some(world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    assert_eq!(world.scan(), Vec::<Value>::new());
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 10; INSERT INTO visit VALUES (99, 1, 'forged')",
    );
    unseen(&world, "result", "DELETE FROM result WHERE id = 200");
    let mut found = world.scan();
    found.sort_by_key(|f| f["code"].as_str().unwrap().to_owned());
    assert_eq!(
        codes(&found),
        [
            ("ROW-01", "public.visit", "10"),
            ("ROW-02", "public.result", "200"),
            ("ROW-03", "public.visit", "99")
        ]
    );
    assert_eq!(found[0]["columns"], json!(["note"]));
    // Put right again, by the same way, it is found no more; it stays on record.
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'cough' WHERE id = 10; DELETE FROM visit WHERE id = 99",
    );
    assert_eq!(codes(&world.scan()), [("ROW-02", "public.result", "200")]);
    world.run("history public.visit 10").exits(1).says("ROW-01");
}

/// Where the engine does not send the row that a change replaces, nobody can compare it any
/// more: what was found before stays known.
#[test]
fn a_row_that_was_found_altered_cannot_be_laundered_by_a_change() {
    let Some(world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let forge = |table: &str, column: &str, to: &str, id: u32| {
        let sql = format!("UPDATE {table} SET {column} = {to} WHERE id = {id}");
        unseen(&world, table, &sql);
    };
    forge("visit", "note", "'forged'", 10);
    forge("visit", "note", "'forged'", 20);
    forge("result", "value", "1", 100);
    assert_eq!(world.scan().len(), 3);
    // Put right past capture as well, it is as it was sealed.
    forge("visit", "note", "'fever'", 20);
    assert_eq!(world.scan().len(), 2);
    let stamp = stamp(2);
    for change in [
        format!("UPDATE visit SET {stamp} WHERE id IN (10, 20)"),
        "DELETE FROM result WHERE id = 100".to_owned(),
    ] {
        world.psql_as("ehr", "ehr", &change);
    }
    world.finding("ROW-04", "public.visit");
    world.finding("ROW-04", "public.result");
    let expected = [
        ("ROW-04", "public.result", "100"),
        ("ROW-04", "public.visit", "10"),
    ];
    assert_eq!(world.scan(), Vec::<Value>::new());
    let status = world.status_when("tells it", |_| true);
    let found = status["findings"].as_array().unwrap().iter();
    let found = found.filter(|f| f["open"] == true && f["code"].as_str() >= Some("ROW"));
    let mut found: Vec<Value> = found.cloned().collect();
    found.sort_by_key(|f| f["table"].as_str().unwrap().to_owned());
    assert_eq!(codes(&found), expected);
}

/// Nobody has looked at the rows of a table that nobody guards any more.
#[test]
fn what_is_wrong_with_a_table_stays_wrong_while_it_is_not_guarded() {
    let Some(world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 10; INSERT INTO visit VALUES (99, 1, 'forged')",
    );
    assert_eq!(world.scan().len(), 2);
    let publication = "ALTER PUBLICATION pitser_hospital";
    world.psql("postgres", &format!("{publication} DROP TABLE visit"));
    world.status_when("tells it", |s| s["findings"].to_string().contains("CAP-03"));
    let of_rows = |found: &[Value]| {
        let mut found: Vec<String> = found
            .iter()
            .filter(|f| f["table"] == "public.visit" && !f["key"].is_null())
            .map(|f| format!("{} {}", f["code"], f["key"]))
            .collect();
        found.sort();
        found
    };
    let before = [r#""ROW-01" "10""#, r#""ROW-03" "99""#];
    assert_eq!(of_rows(&world.scan()), before);
    world.psql("postgres", &format!("{publication} ADD TABLE visit"));
    world.settle();
    let lines = world.lines().len();
    assert_eq!(of_rows(&world.scan()), before);
    let again = world.lines().into_iter().skip(lines);
    let mut again = again.filter_map(|line| line.finding);
    assert!(again.all(|found| !found.code.as_str().starts_with("ROW-")));
    // Once its rows were deleted, there is nothing left that could be wrong.
    world.psql_as(
        "ehr",
        "ehr",
        "DELETE FROM result; DELETE FROM visit; DROP TABLE visit CASCADE",
    );
    world.eventually("closes them", |world| of_rows(&world.scan()).is_empty());
}

#[test]
fn a_row_without_a_key_that_came_past_capture_is_told_by_its_next_change() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE log (who text, what text); INSERT INTO log VALUES ('a', 'x'), ('a', 'x'), ('b', NULL)",
    );
    let tables = "tables = [\"public.log\"]\nkeyless = \"full\"\n";
    world.configure("scan_every_s = 0", tables);
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    assert_eq!(world.scan(), Vec::<Value>::new());
    // As anybody may.
    world.psql(
        "postgres",
        "UPDATE log SET what = 'y' WHERE who = 'b'; UPDATE log SET what = 'z' WHERE who = 'a'; \
         DELETE FROM log WHERE what = 'z'; INSERT INTO log VALUES ('a', 'x')",
    );
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.psql("postgres", "ALTER TABLE log ADD n int");
    world.finding("CAP-05", "public.log");
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.psql("postgres", "UPDATE log SET n = 1");
    assert_eq!(world.scan(), Vec::<Value>::new());
    unseen(&world, "log", "INSERT INTO log VALUES ('eve', 'forged', 7)");
    world.psql(
        "postgres",
        "UPDATE log SET what = 'as if it were old' WHERE who = 'eve'",
    );
    world.finding("ROW-04", "public.log");
    assert_eq!(world.scan(), Vec::<Value>::new());
}

#[test]
fn a_heap_page_edited_while_the_server_was_stopped() {
    let Some(world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.psql("postgres", "CHECKPOINT");
    let path = world.psql("postgres", "SELECT pg_relation_filepath('result')");
    let file = world.server.data().join(path.trim());
    world.server.stop();
    // 7.1 as numeric: the header says one digit after the point, then 7, then 1000.
    let mut page = std::fs::read(&file).unwrap();
    let digits = [7_u16, 1000].map(|digits| match cfg!(target_endian = "big") {
        true => digits.to_be_bytes(),
        false => digits.to_le_bytes(),
    });
    let digits = digits.concat();
    let at = page.windows(4).position(|w| w == digits).unwrap();
    page[at] = 9;
    std::fs::write(&file, page).unwrap();
    world.server.start_again();
    world.status_when("guards again", |s| s["state"] == "guarding");
    assert_eq!(
        world.psql("postgres", "SELECT value FROM result WHERE id = 200"),
        "9.1\n"
    );
    let found = world.scan();
    assert_eq!(codes(&found), [("ROW-01", "public.result", "200")]);
    assert_eq!(found[0]["columns"], json!(["value"]));
    world
        .run("guard status")
        .exits(1)
        .says("ROW-01 public.result 200 [value]");
}

#[test]
fn truncation_is_told_for_each_row() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.psql("ehr", "TRUNCATE visit CASCADE");
    world.finding("CAP-04", "public.visit");
    world.finding("CAP-04", "public.result");
    world.finding("ACT-02", "public.visit");
    assert_eq!(world.scan(), Vec::<Value>::new());
    let said = world.run("history public.result 200 --json");
    assert_eq!(
        said.json()["lines"].as_array().unwrap().last().unwrap()["line"]["op"],
        "delete"
    );
    world.psql("ehr", "INSERT INTO visit VALUES (20, 2, 'again', 2, now())");
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn a_slot_that_is_gone_or_was_moved() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.stop_guardian();
    world.psql("postgres", "UPDATE visit SET note = 'hidden' WHERE id = 10");
    world.psql(
        "postgres",
        "SELECT pg_replication_slot_advance('pitser_hospital', pg_current_wal_lsn())",
    );
    world.guard();
    let moved = world.finding("CAP-01", "");
    assert!(
        moved["text"].as_str().unwrap().contains("was moved"),
        "{moved}"
    );
    let row = world.finding("ROW-01", "public.visit");
    assert_eq!(
        (&row["key"], &row["columns"]),
        (&"10".into(), &json!(["note"]))
    );
    world.stop_guardian();

    world.psql(
        "postgres",
        "SELECT pg_drop_replication_slot('pitser_hospital')",
    );
    world.psql("postgres", "DELETE FROM result WHERE id = 200");
    world.guard();
    let gone = world.status_when("finds the missing slot", |s| {
        s["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["text"].as_str().unwrap().contains("was missing"))
    });
    assert_eq!(gone["state"], "guarding");
    assert_eq!(world.finding("ROW-02", "public.result")["key"], "200");
    // From there on it goes on as ever.
    world.psql("eve", "UPDATE patient SET allergies = 'x' WHERE id = 2");
    world.finding("ACT-02", "public.patient");
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let gaps = world
        .lines()
        .into_iter()
        .filter_map(|line| line.gap)
        .count();
    assert_eq!(gaps, 2);
}

/// The files of a server as they once were.
struct OldCopy(PathBuf);

impl OldCopy {
    /// Of the server as it is; guarding goes on afterwards.
    fn of(world: &mut World) -> Self {
        world.stop_guardian();
        world.server.stop();
        let copy = Self(world.dir.path().join("copy"));
        copied(&world.server.data(), &copy.0);
        world.server.start_again();
        world.guard();
        copy
    }

    /// Puts it in the place of what the server has now.
    fn put_back(&self, world: &mut World) {
        world.server.stop();
        let data = world.server.data();
        std::fs::remove_dir_all(&data).unwrap();
        copied(&self.0, &data);
        world.server.start_again();
    }
}

/// Copies a stopped server's files.
fn copied(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.unwrap().success());
}

#[test]
fn an_old_copy_of_the_servers_files_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let copy = OldCopy::of(&mut world);
    world.psql("eve", "UPDATE visit SET note = 'the truth' WHERE id = 10");
    world.finding("ACT-02", "public.visit");
    world.psql(
        "postgres",
        "CREATE TABLE filler AS SELECT generate_series(1, 100000)",
    );
    world.settle();
    world.stop_guardian();
    copy.put_back(&mut world);
    world.psql("eve", "UPDATE result SET value = 1 WHERE id = 100");
    world.guard();
    world.finding("CAP-02", "");
    // What was lost is named, and what happened since is taken.
    assert_eq!(world.finding("ROW-01", "public.visit")["key"], "10");
    assert_eq!(world.finding("ACT-02", "public.result")["key"], "100");
    world.psql("eve", "UPDATE result SET value = 2 WHERE id = 200");
    world.settle();
    assert_eq!(world.scan().len(), 1, "the lost note alone");
    world.kill_guardian();
    world.guard();
    assert_eq!(world.scan().len(), 1);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn an_old_copy_that_went_on_past_the_trail_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let copy = OldCopy::of(&mut world);
    world.psql("eve", "UPDATE visit SET note = 'the truth' WHERE id = 10");
    world.finding("ACT-02", "public.visit");
    world.settle();
    world.stop_guardian();
    let reached = world.psql("postgres", "SELECT pg_current_wal_lsn()");
    copy.put_back(&mut world);
    // What the copy does meanwhile is told to nobody.
    world.psql("eve", "UPDATE result SET value = 1 WHERE id = 200");
    let now = |world: &World| lsn(world.psql("postgres", "SELECT pg_current_wal_lsn()").trim());
    while now(&world) <= lsn(reached.trim()) {
        world.psql("postgres", "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT generate_series(1, 10000)");
    }
    world.guard();
    let rewound = world.finding("CAP-02", "");
    let text = rewound["text"].as_str().unwrap();
    assert!(text.contains("older copy of itself"), "{text}");
    assert_eq!(world.finding("ROW-01", "public.visit")["key"], "10");
    assert_eq!(world.finding("ROW-01", "public.result")["key"], "200");
    // It is told once, and a sound restart tells nothing.
    world.kill_guardian();
    world.server.crash_and_restart();
    world.guard();
    world.settle();
    let status = world.status_when("guards", |_| true);
    let rewound = |f: &&Value| f["code"] == "CAP-02";
    assert_eq!(
        status["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(rewound)
            .count(),
        1
    );
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// By the numbers of its transactions: whoever may write into the database may write
/// the word there too.
#[test]
fn an_old_copy_that_was_given_the_newest_word_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let copy = OldCopy::of(&mut world);
    for _ in 0..20 {
        world.psql("postgres", "SELECT pg_current_xact_id()");
    }
    world.psql("eve", "UPDATE visit SET note = 'the truth' WHERE id = 10");
    world.finding("ACT-02", "public.visit");
    world.settle();
    world.stop_guardian();
    let reached = world.psql("postgres", "SELECT pg_current_wal_lsn()");
    let word = "FROM pitser.installed WHERE kind = 'word'";
    let word = world.psql("postgres", &format!("SELECT before {word}"));
    copy.put_back(&mut world);
    let word = format!(
        "UPDATE pitser.installed SET before = '{}' WHERE kind = 'word'",
        word.trim()
    );
    world.psql("postgres", &word);
    // The log goes on, and hardly any transaction is counted.
    let message = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))";
    let now = |world: &World| lsn(world.psql("postgres", "SELECT pg_current_wal_lsn()").trim());
    while now(&world) <= lsn(reached.trim()) {
        world.psql("postgres", message);
    }
    world.guard();
    let rewound = world.finding("CAP-02", "");
    let text = rewound["text"].as_str().unwrap();
    assert!(text.contains("older copy of itself"), "{text}");
    // The change that the copy lacks is of a transaction that it has not come to yet.
    assert_eq!(world.finding("ROW-01", "public.visit")["key"], "10");
    // Told once, though the numbers are still lower than they were.
    world.stop_guardian();
    world.guard();
    world.psql("eve", "UPDATE result SET value = 1 WHERE id = 100");
    world.finding("ACT-02", "public.result");
    let findings = world.status_when("guards", |_| true)["findings"].clone();
    let rewound = |f: &&Value| f["code"] == "CAP-02";
    let rewound = findings.as_array().unwrap().iter().filter(rewound);
    assert_eq!(rewound.count(), 1);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// That nobody watches a database is a finding while it is so, and on record afterwards.
#[test]
fn a_database_that_nobody_watches() {
    let guard = "scan_every_s = 0\nunwatched_alarm_s = 0";
    let Some(mut world) = World::hospital(guard, SOURCE) else {
        return;
    };
    let told = |s: &Value, start: &str| {
        let all = s["findings"].as_array().unwrap().iter();
        let mut found = all.filter(|f| f["text"].as_str().unwrap().starts_with(start));
        let first = found.next().cloned();
        assert!(found.next().is_none(), "once only: {s}");
        first
    };
    let since = "nothing is captured since";
    world.server.stop();
    let status = world.status_when("says so", |s| told(s, since).is_some());
    let found = told(&status, since).unwrap();
    assert_eq!(
        (&found["code"], &found["open"], &found["line"]),
        (&json!("CAP-03"), &json!(true), &Value::Null)
    );
    assert_eq!(status["state"], "database-unavailable");
    world.run("guard status").exits(1).says(since);
    world.server.start_again();
    let from = "nothing was captured from";
    let status = world.status_when("goes on", |s| told(s, from).is_some());
    assert_eq!(told(&status, since), None);
    let found = told(&status, from).unwrap();
    let text = found["text"].as_str().unwrap();
    assert!(text.contains("nobody watched the database: "), "{text}");
    world.settle();
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let lines = world.lines();
    let line = &lines[usize::try_from(found["line"].as_u64().unwrap()).unwrap()];
    assert_eq!(line.op, Op::Finding);
}

/// A receiver of alerts that takes all: where it is, and what it was told.
fn receiver() -> (SocketAddr, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
            }
            let mut lines = head.lines();
            let length = lines.find_map(|it| it.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let taken = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            reader.get_mut().write_all(taken).unwrap();
            // The test may have what it wanted.
            let _ = sender.send(serde_json::from_slice(&body).unwrap());
        }
    });
    (address, told)
}

/// The next alert that begins so.
fn alert(told: &Receiver<Value>, text: &str) -> Value {
    let is_it = |told: &Value| told["data"]["text"].as_str().unwrap().starts_with(text);
    loop {
        let told = told.recv_timeout(PATIENCE).unwrap();
        if is_it(&told) {
            return told;
        }
    }
}

/// A guardian that starts while the database is down has not opened its trail yet, and
/// tells of it all the same.
#[test]
fn a_database_that_is_down_when_its_guardian_starts() {
    let (address, alerts) = receiver();
    let guard = format!("scan_every_s = 0\nunwatched_alarm_s = 0\nwebhook = \"http://{address}/\"");
    let Some(mut world) = World::hospital(&guard, SOURCE) else {
        return;
    };
    world.stop_guardian();
    world.server.stop();
    world.guard_starting();
    let told = alert(&alerts, "nothing is captured since");
    assert_eq!(told["type"], "finding.opened");
    assert_eq!(told["data"]["code"], "CAP-03");
    assert_eq!(told["data"]["line"], Value::Null);
    world.server.start_again();
    let told = alert(&alerts, "nothing was captured from");
    assert!(told["data"]["line"].is_u64(), "{told}");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// By its word an old copy of the database is known: whoever takes it away may be about to
/// put one there.
#[test]
fn a_word_that_the_database_takes_no_more_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let read_only = |on: &str| {
        let sql = format!("ALTER DATABASE clinic SET default_transaction_read_only = {on}");
        world.psql(
            "postgres",
            &format!("SET default_transaction_read_only = off; {sql}"),
        );
    };
    let told = |world: &World| {
        let status = world.status_when("guards", |s| s["state"] == "guarding");
        let findings = status["findings"].as_array().unwrap().iter();
        let texts = findings.map(|it| it["text"].as_str().unwrap().to_owned());
        texts.filter(|it| it.contains("takes no new word")).count()
    };
    assert_eq!(told(&world), 0);
    read_only("on");
    for _ in 0..2 {
        world.kill_guardian();
        world.guard();
        assert_eq!(told(&world), 1, "once");
    }
    world.run("guard status").exits(1).says("CAP-03");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Whoever holds a lock that the guardian waits for, holds the guardian: it said that it
/// guarded, and left a session behind with every attempt.
#[test]
fn a_lock_that_blinds_the_guardian_is_noticed() {
    let guard = "scan_every_s = 0\nunwatched_alarm_s = 1";
    let Some(mut world) = World::hospital(guard, SOURCE) else {
        return;
    };
    world.kill_guardian();
    let mut locker = world.talk("postgres");
    locker.says("BEGIN; LOCK TABLE pitser.installed IN SHARE MODE");
    let holds = "SELECT count(*) FROM pg_locks WHERE relation = 'pitser.installed'::regclass AND mode = 'ShareLock'";
    world.eventually("locked", |world| {
        world.psql("postgres", holds).trim() == "1"
    });
    world.guard_starting();
    let status = world.status_when("is blind", |s| s["state"] == "database-unavailable");
    let trouble = status["trouble"].as_str().unwrap();
    assert!(trouble.contains("pg_locks"), "{trouble}");
    // Attempt after attempt: not once does it say that it guards, and an alarm is given.
    let is_told = |s: &Value| {
        assert_ne!(s["state"], "guarding", "{s}");
        let findings = s["findings"].as_array().unwrap().iter();
        findings.into_iter().any(|it| it["code"] == "CAP-03")
    };
    world.status_when("gives an alarm", is_told);
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    let left = world.psql("postgres", waiting);
    assert!(left.trim().parse::<u32>().unwrap() <= 1, "{left}");

    drop(locker);
    world.status_when("guards", |s| s["state"] == "guarding");
    // It is over when the database hands something over, and then on record.
    let on_record = |s: &Value| {
        let mut findings = s["findings"].as_array().unwrap().iter();
        findings.any(|it| {
            it["text"]
                .as_str()
                .unwrap()
                .starts_with("nothing was captured from")
        })
    };
    world.status_when("tells of it", on_record);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn a_frozen_walsender_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let walsender = world.psql("postgres", "SELECT pid FROM pg_stat_replication");
    signal("-STOP", &walsender);
    world.psql(
        "eve",
        "UPDATE visit SET note = 'unseen so far' WHERE id = 10",
    );
    let status = world.status_when("notices", |s| s["state"] == "database-unavailable");
    assert!(status["trouble"].is_string(), "{status}");
    signal("-CONT", &walsender);
    assert_eq!(world.finding("ACT-02", "public.visit")["key"], "10");
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
