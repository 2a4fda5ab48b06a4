//! Tables that come, change and go while they are guarded.

use std::panic::AssertUnwindSafe;

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::long::bytes;
use crate::tamper::unseen;
use crate::world::{World, signal};

const SOURCE: &str = r#"
tables  = ["public.*"]
exclude = ["public.scratch*"]
replica_identity = "full"
"#;

fn world() -> Option<World> {
    let mut world = World::new("clinic")?;
    world.psql(
        "postgres",
        "CREATE TABLE visit (id int PRIMARY KEY, n int, note text);
         INSERT INTO visit SELECT n, 1000 + n, 'note ' || n FROM generate_series(1, 50) n",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    Some(world)
}

/// A scan that is under way while the rows of a new table are written got no answer, and
/// ended unheard: no scan was begun any more.
#[test]
fn a_table_that_is_new_while_rows_are_compared() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "CREATE TABLE later (id int PRIMARY KEY, note text);
         INSERT INTO later SELECT n, 'before' FROM generate_series(1, 100000) n",
    );
    world.finding("CAP-03", "public.later");
    // A scan that has begun: it waits for a lock, and then for whoever stopped its server.
    let mut locker = world.talk("postgres");
    locker.says("BEGIN; LOCK TABLE visit");
    world.pid_that("holds it", "relation = 'visit'::regclass AND granted");
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| world.scan());
        let waits = "relation = 'visit'::regclass AND NOT granted";
        let reads = world.pid_that("reads the table", waits);
        signal("-STOP", &reads);
        drop(locker);
        let status = std::panic::catch_unwind(AssertUnwindSafe(|| {
            world.run("guard init").exits(0).says("2 tables guarded");
            world.status_when("writes rows", |s| s["state"] == "baseline")
        }));
        signal("-CONT", &reads);
        status.unwrap();
        assert_eq!(scan.join().unwrap(), Vec::<Value>::new());
    });
    let status = world.status_when("guards", |s| s["state"] == "guarding");
    assert_eq!(status["rows_verified"], 100_050, "both tables");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A table that is stored anew shows no row to a snapshot from before.
#[test]
fn a_table_that_is_rewritten_while_others_are_compared_is_not_empty() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE admission (id int PRIMARY KEY, note text);
         CREATE TABLE ward (id int PRIMARY KEY, n int);
         CREATE TABLE visit (id int PRIMARY KEY, n int);
         INSERT INTO visit SELECT n, 1000 + n FROM generate_series(1, 50) n;
         INSERT INTO ward SELECT n, n FROM generate_series(1, 50) n",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0).says("3 tables guarded");
    world.guard();
    let mut locker = world.talk("postgres");
    locker.says("BEGIN; LOCK TABLE admission");
    world.pid_that("holds it", "relation = 'admission'::regclass AND granted");
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| world.run("guard scan --json"));
        world.pid_that(
            "visits the first table",
            "relation = 'admission'::regclass AND NOT granted",
        );
        world.psql(
            "postgres",
            "ALTER TABLE visit ALTER n TYPE bigint; TRUNCATE ward",
        );
        drop(locker);
        let report = scan.join().unwrap().json();
        let scanned = &report["sources"][0];
        assert_eq!(scanned["findings"], serde_json::json!([]), "{report}");
        // Of the other one the trail knows that it is empty.
        let unread = scanned["unread"].as_array().unwrap();
        let [visit] = &unread[..] else {
            panic!("{report}");
        };
        assert_eq!(visit["table"], "public.visit");
        assert!(
            visit["why"].as_str().unwrap().contains("was rewritten"),
            "{report}"
        );
    });
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// The same while the rows of others are written down.
#[test]
fn a_table_that_is_rewritten_before_its_baseline_gets_one() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "CREATE TABLE later (id int PRIMARY KEY, note text);
         INSERT INTO later SELECT n, 'before' FROM generate_series(1, 100000) n;
         CREATE TABLE latest (id int PRIMARY KEY, n int);
         INSERT INTO latest SELECT n, n FROM generate_series(1, 50) n",
    );
    world.run("guard init").exits(0).says("3 tables guarded");
    let writes = |s: &Value| {
        s["baseline"]["rows"]
            .as_u64()
            .is_some_and(|rows| rows < 100_000)
    };
    world.status_when("writes rows", writes);
    world.psql("postgres", "ALTER TABLE latest ALTER n TYPE bigint");
    world.status_when("guards", |s| s["state"] == "guarding");
    assert_eq!(world.wrong(), Vec::<String>::new());
    let said = world.run("history public.latest 1 --json").exits(0).json();
    assert_eq!(said["lines"][0]["line"]["op"], "baseline");
    let status = world.status_when("has compared all", |s| s["rows_verified"] == 100_100);
    assert_eq!(status["unread"], serde_json::json!([]));
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Until the commit two rows may have one key: what is told of them is told of whole rows.
#[test]
fn a_key_that_is_checked_at_the_commit_names_no_row() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE queue (id int PRIMARY KEY DEFERRABLE, note text);
         INSERT INTO queue VALUES (1, 'a'), (2, 'b'), (3, 'c')",
    );
    world.configure("scan_every_s = 0", SOURCE);
    world.run("guard init").exits(0);
    world.guard();
    world.psql("postgres", "UPDATE queue SET id = id + 1");
    world.psql(
        "postgres",
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE queue SET id = 7 - id; COMMIT",
    );
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    assert_eq!(texts(&world, "ROW-01"), "");
    // It comes to be one, and the rows go on under it.
    world.psql(
        "postgres",
        "ALTER TABLE queue DROP CONSTRAINT queue_pkey, ADD PRIMARY KEY (id)",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.eventually("carries all", |world| world.wrong() == Vec::<String>::new());
    world.psql("postgres", "UPDATE queue SET note = note || '!'");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

fn texts(world: &World, code: &str) -> String {
    let status = world.status_when("says", |_| true);
    let findings = status["findings"].as_array().unwrap().iter();
    let of = findings.filter(|f| f["code"] == code);
    let texts: Vec<&str> = of.map(|f| f["text"].as_str().unwrap()).collect();
    texts.join("\n")
}

#[test]
fn a_table_that_is_made_and_dropped_while_guarding() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "CREATE TABLE scratch_1 (id int PRIMARY KEY);
         CREATE TABLE later (id int PRIMARY KEY, note text);
         INSERT INTO later VALUES (1, 'before'), (2, 'before')",
    );
    let told = world.finding("CAP-03", "public.later");
    assert!(
        told["text"]
            .as_str()
            .unwrap()
            .contains("`pitser guard init`"),
        "{told}"
    );
    assert!(!texts(&world, "CAP-03").contains("scratch"));

    world
        .run("guard init")
        .exits(0)
        .says("2 tables guarded")
        .says("A guardian is running on this trail");
    world.psql(
        "postgres",
        "INSERT INTO later VALUES (3, 'after'); DELETE FROM later WHERE id = 2",
    );
    world.finding("CAP-05", "public.later");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    let said = world.run("history public.later 1 --json").exits(0).json();
    assert_eq!(said["lines"][0]["line"]["op"], "baseline");
    // From now on it is looked at like any other.
    unseen(
        &world,
        "later",
        "UPDATE later SET note = 'forged' WHERE id = 1",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.later 1"]);

    world.psql("postgres", "DROP TABLE later");
    // Nobody has looked at row 1 since.
    let gone = ["ROW-01 public.later 1", "ROW-02 public.later "];
    assert_eq!(world.wrong(), gone);
    assert!(texts(&world, "ROW-02").contains("what became of its 2 rows"));
    // Nor is it forgotten.
    world.kill_guardian();
    world.guard();
    assert_eq!(world.wrong(), gone);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn columns_that_come_change_and_go_between_changes_of_rows() {
    let Some(mut world) = world() else { return };
    // From 18 on a table with all columns as its identity takes no updates with this one.
    let (add, added) = match world.server.version() < 18 {
        true => (
            ", ADD twice int GENERATED ALWAYS AS (id * 2) STORED",
            ", twice integer",
        ),
        false => ("", ""),
    };
    world.psql(
        "postgres",
        &format!(
            "BEGIN;
         INSERT INTO visit VALUES (101, 1, 'two columns');
         ALTER TABLE visit ADD COLUMN born date DEFAULT '2000-01-01'{add};
         INSERT INTO visit VALUES (102, 1, 'three');
         UPDATE visit SET n = n + 1 WHERE id <= 2;
         ALTER TABLE visit DROP COLUMN note;
         INSERT INTO visit VALUES (103, 1, '2001-01-01');
         ALTER TABLE visit RENAME born TO birth;
         UPDATE visit SET birth = '2002-02-02' WHERE id = 102;
         COMMIT"
        ),
    );
    world.psql(
        "postgres",
        "INSERT INTO visit VALUES (104, 1); UPDATE visit SET n = 9 WHERE id IN (3, 101)",
    );
    world.finding("CAP-05", "public.visit");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    let said = texts(&world, "CAP-05");
    for part in [
        "note text dropped",
        "birth date added",
        &format!(
            "Before: (id integer, n integer, note text); now: (id integer, n integer, birth date{added})"
        ),
    ] {
        assert!(said.contains(part), "{said}");
    }
    // Each row is written anew, and prints as before.
    world.psql("postgres", "ALTER TABLE visit ALTER n TYPE bigint");
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("n integer -> bigint")
    });
    assert_eq!(world.wrong(), Vec::<String>::new());
    // A value that was changed with the type is not.
    world.psql(
        "postgres",
        "ALTER TABLE visit ALTER n TYPE bigint USING n + CASE id WHEN 7 THEN 1 ELSE 0 END",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.visit 7"]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Gives the table another key, between and beside changes of rows, one of which
/// was made past capture.
fn rekeyed(identity: &str) {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        &format!("ALTER TABLE visit REPLICA IDENTITY {identity}"),
    );
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9",
    );
    world.psql("postgres", "UPDATE visit SET note = 'before' WHERE id = 5");
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n)",
    );
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'at once' WHERE n = 1007; INSERT INTO visit VALUES (8, 2000, 'like another')",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.settle();
    // What was sealed goes on; what was forged is found under both keys.
    let forged = ["ROW-02 public.visit 9", "ROW-03 public.visit 1009"];
    assert_eq!(world.wrong(), forged);
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'after' WHERE n = 1006; DELETE FROM visit WHERE n = 1005",
    );
    world.settle();
    assert_eq!(world.wrong(), forged);
    let ops = |world: &World, key: u32| {
        let said = world
            .run(&format!("history public.visit {key} --json"))
            .json();
        let lines = said["lines"].as_array().unwrap().iter();
        let ops = lines.map(|e| e["line"]["op"].as_str().unwrap().to_owned());
        ops.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ops(&world, 1006), "baseline update");
    assert_eq!(ops(&world, 1007), "update");
    assert_eq!(ops(&world, 5), "baseline update delete");
    assert_eq!(ops(&world, 7), "baseline delete");
    world.kill_guardian();
    world.guard();
    assert_eq!(world.wrong(), forged);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn another_primary_key() {
    rekeyed("DEFAULT");
}

#[test]
fn another_primary_key_under_full_identity() {
    rekeyed("FULL");
}

/// Lines of history of a record: their operations.
fn ops(world: &World, table: &str, key: &str) -> String {
    let said = world.run(&format!("history {table} {key} --json")).json();
    let lines = said["lines"].as_array().unwrap().iter();
    let ops = lines.map(|e| e["line"]["op"].as_str().unwrap().to_owned());
    ops.collect::<Vec<_>>().join(" ")
}

/// The same while nobody guards: what was done before and after that is still to be told.
fn rekeyed_while_away(identity: &str) {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        &format!("ALTER TABLE visit REPLICA IDENTITY {identity}"),
    );
    world.settle();
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    world.kill_guardian();
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'before' WHERE id = 5; DELETE FROM visit WHERE id = 6",
    );
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n)",
    );
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'at once' WHERE n = 1007; DELETE FROM visit WHERE n = 1008;
         INSERT INTO visit VALUES (8, 2000, 'like another')",
    );
    unseen(&world, "visit", "DELETE FROM visit WHERE n = 1010");
    world.guard();
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.settle();
    // What was sealed goes on; what was done past capture is found.
    let found = world.wrong();
    let forged = [
        "ROW-02 public.visit 10",
        "ROW-02 public.visit 9",
        "ROW-03 public.visit 1009",
    ];
    assert_eq!(found, forged);
    assert_eq!(ops(&world, "public.visit", "1004"), "baseline");
    assert_eq!(ops(&world, "public.visit", "4"), "baseline delete");
    // Deleted under the new key, and so under the old one.
    assert_eq!(ops(&world, "public.visit", "8"), "baseline delete");
    world.kill_guardian();
    world.guard();
    let found = world.wrong();
    assert_eq!(found, forged);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn another_primary_key_while_nobody_guards() {
    rekeyed_while_away("DEFAULT");
}

#[test]
fn another_primary_key_under_full_identity_while_nobody_guards() {
    rekeyed_while_away("FULL");
}

/// Rows that nobody can tell apart: PostgreSQL refuses to change them, and new ones are a
/// hole in the account of that table alone.
#[test]
fn a_primary_key_that_is_dropped() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "CREATE TABLE ward (id int PRIMARY KEY, name text)",
    );
    world.run("guard init").exits(0).says("2 tables guarded");
    world.finding("CAP-05", "public.ward");
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    world.psql(
        "postgres",
        "ALTER TABLE visit REPLICA IDENTITY DEFAULT, DROP CONSTRAINT visit_pkey",
    );
    world.psql(
        "postgres",
        "INSERT INTO visit SELECT n, 3000 + n, 'untold' FROM generate_series(101, 103) n;
         INSERT INTO ward VALUES (1, 'A')",
    );
    let told = world.finding("CAP-03", "public.visit");
    assert!(told["text"].to_string().contains("has no key any more"));
    let told = world.finding("CAP-01", "public.visit");
    let text = told["text"].as_str().unwrap();
    assert!(
        text.starts_with("3 changes of table public.visit cannot be read"),
        "{text}"
    );
    world.settle();
    // All else is guarded and compared.
    world.psql("postgres", "UPDATE ward SET name = 'B'");
    world.settle();
    assert_eq!(ops(&world, "public.ward", "1"), "create update");
    // Nobody looks at the other one, whose row is as wrong as it was.
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    let status = world.status_when("is not compared", |s| s["unread"][0].is_object());
    assert_eq!(status["unread"][0]["table"], "public.visit");
    unseen(&world, "ward", "UPDATE ward SET name = 'forged'");
    let forged = ["ROW-01 public.visit 9", "ROW-01 public.ward 1"];
    assert_eq!(world.wrong(), forged);
    world.kill_guardian();
    world.guard();
    assert_eq!(world.wrong(), forged);
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'note 9' WHERE id = 9",
    );
    world.psql("postgres", "INSERT INTO visit VALUES (104, 3104, 'untold')");
    world.settle();
    // It is one hole for each transaction.
    world.stop_guardian();
    let gaps: Vec<_> = world
        .lines()
        .into_iter()
        .filter(|l| l.op == Op::Gap)
        .collect();
    assert_eq!(gaps.len(), 2);
    assert!(
        gaps.iter()
            .all(|gap| gap.table.as_deref() == Some("public.visit"))
    );
    // With a key, another one even, it goes on where it was.
    world.psql("postgres", "ALTER TABLE visit ADD PRIMARY KEY (n)");
    world.guard();
    let found = world.wrong();
    let untold = [
        "ROW-01 public.ward 1",
        "ROW-03 public.visit 3101",
        "ROW-03 public.visit 3102",
        "ROW-03 public.visit 3103",
        "ROW-03 public.visit 3104",
    ];
    assert_eq!(found, untold);
    world.psql("postgres", "UPDATE visit SET note = 'after' WHERE n = 1007");
    world.settle();
    assert_eq!(ops(&world, "public.visit", "1007"), "baseline update");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Under full identity the whole row is the key then, and equal rows are counted.
#[test]
fn a_primary_key_that_is_dropped_under_full_identity() {
    let Some(mut world) = world() else { return };
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    world.psql("postgres", "ALTER TABLE visit DROP CONSTRAINT visit_pkey");
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'after' WHERE id = 5; DELETE FROM visit WHERE id = 6;
         INSERT INTO visit SELECT * FROM visit WHERE id = 7;
         INSERT INTO visit SELECT * FROM visit WHERE id = 7",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has no key any more")
    });
    world.settle();
    let forged = ["ROW-02 public.visit 9", "ROW-03 public.visit 9,1009,forged"];
    assert_eq!(world.wrong(), forged);
    // One of the equal rows goes past capture, one that is like others comes.
    unseen(
        &world,
        "visit",
        "DELETE FROM visit WHERE ctid = (SELECT max(ctid) FROM visit WHERE id = 7);
         INSERT INTO visit SELECT * FROM visit WHERE id = 8",
    );
    let found = world.wrong();
    assert_eq!(found.len(), 4, "{found:?}");
    for (found, wanted) in found.iter().zip([
        "ROW-02 public.visit 7,1007,note 7",
        "ROW-02 public.visit 9",
        "ROW-03 public.visit 8,1008,note 8",
        "ROW-03 public.visit 9,1009,forged",
    ]) {
        assert!(found.starts_with(wanted), "{found}");
    }
    unseen(
        &world,
        "visit",
        "INSERT INTO visit SELECT * FROM visit WHERE id = 7 LIMIT 1;
         DELETE FROM visit WHERE ctid = (SELECT max(ctid) FROM visit WHERE id = 8)",
    );
    assert_eq!(world.wrong(), forged);
    // A column that is new is the key now: each of the equal rows goes on.
    world.psql(
        "postgres",
        "ALTER TABLE visit ADD COLUMN nth int GENERATED BY DEFAULT AS IDENTITY (START 5000) PRIMARY KEY",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.settle();
    let found = world.wrong();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], "ROW-02 public.visit 9");
    assert!(found[1].starts_with("ROW-03 public.visit 50"), "{found:?}");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A table of documents: two large columns, which are sent only when they are written.
fn documents() -> Option<World> {
    let mut world = World::new("clinic")?;
    world.psql(
        "postgres",
        "CREATE TABLE doc (id int PRIMARY KEY, n int, body text, extra text);
         ALTER TABLE doc ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL;
         INSERT INTO doc SELECT n, n, repeat('b' || n, 3000), repeat('e' || n, 3000)
           FROM generate_series(1, 20) n",
    );
    world.configure("scan_every_s = 0", "tables = [\"public.*\"]\n");
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    Some(world)
}

#[test]
fn a_large_column_that_is_renamed() {
    let Some(mut world) = documents() else { return };
    // Before the catalogue was looked at, and after.
    world.psql(
        "postgres",
        "BEGIN; ALTER TABLE doc RENAME body TO words;
         UPDATE doc SET n = 100 WHERE id = 1; COMMIT;
         UPDATE doc SET n = 100 WHERE id = 2",
    );
    world.finding("CAP-05", "public.doc");
    world.psql(
        "postgres",
        "UPDATE doc SET n = 100 WHERE id = 3;
         ALTER TABLE doc RENAME words TO letter; ALTER TABLE doc ADD note text",
    );
    world.status_when("says so", |s| s["findings"].to_string().contains("letter"));
    world.stop_guardian();
    world.psql(
        "postgres",
        "UPDATE doc SET n = 100 WHERE id = 4; UPDATE doc SET id = 50, n = 100 WHERE id = 5;
         ALTER TABLE doc RENAME letter TO content;
         UPDATE doc SET n = 101 WHERE id IN (1, 6)",
    );
    world.guard();
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    // Rows that were not written since are compared all the same.
    unseen(
        &world,
        "doc",
        "UPDATE doc SET content = repeat('x', 9000) WHERE id IN (7, 2)",
    );
    assert_eq!(
        world.wrong(),
        ["ROW-01 public.doc 2", "ROW-01 public.doc 7"]
    );
    let found = world.scan();
    let altered: Vec<_> = found.iter().map(|it| it["columns"].clone()).collect();
    // `note` came since, on one side alone.
    let content = serde_json::json!(["content", "note"]);
    assert_eq!(altered, [content.clone(), content]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let gaps = world.lines();
    assert!(gaps.iter().all(|line| line.op != Op::Gap));
}

/// Names that change places: a value that is not sent is its column's all the same.
#[test]
fn large_columns_that_change_names() {
    let Some(mut world) = documents() else { return };
    world.psql(
        "postgres",
        "BEGIN; ALTER TABLE doc RENAME body TO other; ALTER TABLE doc RENAME extra TO body;
         ALTER TABLE doc RENAME other TO extra;
         UPDATE doc SET n = 100 WHERE id <= 3; COMMIT",
    );
    world.finding("CAP-05", "public.doc");
    world.psql(
        "postgres",
        "UPDATE doc SET n = 100 WHERE id BETWEEN 4 AND 18",
    );
    world.settle();
    // What is read under a name in those that were not written is another one's value.
    assert_eq!(
        world.wrong(),
        ["ROW-01 public.doc 19", "ROW-01 public.doc 20"]
    );
    world.psql("postgres", "UPDATE doc SET n = 100 WHERE id > 18");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Its records are the same: nothing is carried anywhere.
#[test]
fn a_key_column_that_is_renamed() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "ALTER TABLE visit RENAME id TO nr; UPDATE visit SET note = 'x' WHERE nr = 5",
    );
    world.finding("CAP-05", "public.visit");
    world.psql("postgres", "UPDATE visit SET note = 'y' WHERE nr = 6");
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    // With another key at last, the old one is found under the name that it has now.
    world.psql(
        "postgres",
        "BEGIN; ALTER TABLE visit RENAME nr TO old;
         ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n); COMMIT",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.settle();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let lines = world.lines();
    let baselines = lines.iter().filter(|line| line.op == Op::Baseline).count();
    assert_eq!(baselines, 100, "fifty at first, fifty under the other key");
}

/// Nothing in a row that is its own key leads to the record that it had with one column
/// more: it goes on all the same, and so does what was wrong.
#[test]
fn a_column_that_is_dropped_from_rows_without_a_key() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE log (a int, b int, c text);
         INSERT INTO log SELECT n, 1000 + n, 'note ' || n FROM generate_series(1, 20) n;
         INSERT INTO log VALUES (1, 1001, 'twin'), (2, 1002, 'note 2')",
    );
    world.configure(
        "scan_every_s = 0",
        "tables = [\"public.*\"]\nkeyless = \"full\"\n",
    );
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    unseen(&world, "log", "UPDATE log SET a = 99 WHERE b = 1009");
    let wrong = |world: &World, wanted: &[&str]| {
        let found = world.wrong();
        let fits = |(found, wanted): (&String, &&str)| found.starts_with(*wanted);
        assert!(
            found.len() == wanted.len() && found.iter().zip(wanted).all(fits),
            "{found:?}"
        );
    };
    wrong(
        &world,
        &[
            "ROW-02 public.log 9,1009,note 9",
            "ROW-03 public.log 99,1009",
        ],
    );
    world.psql(
        "postgres",
        "ALTER TABLE log DROP COLUMN c;
         UPDATE log SET b = 0 WHERE a = 5; DELETE FROM log WHERE a = 6;
         INSERT INTO log VALUES (21, 1021)",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("c text dropped")
    });
    world.settle();
    let forged = [
        "ROW-02 public.log 9,1009,note 9",
        "ROW-03 public.log 99,1009",
    ];
    wrong(&world, &forged);
    unseen(
        &world,
        "log",
        "UPDATE log SET b = 7 WHERE a = 8; INSERT INTO log VALUES (3, 1003);
         DELETE FROM log WHERE ctid = (SELECT max(ctid) FROM log WHERE a = 1)",
    );
    wrong(
        &world,
        &[
            "ROW-02 public.log 1,1001,",
            "ROW-02 public.log 8,1008",
            forged[0],
            "ROW-03 public.log 3,1003,",
            "ROW-03 public.log 8,7",
            forged[1],
        ],
    );
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn keys_that_change_places() {
    let Some(mut world) = world() else { return };
    world.psql("postgres", "UPDATE visit SET n = 51 - id");
    world.settle();
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9",
    );
    assert_eq!(world.wrong(), ["ROW-01 public.visit 9"]);
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n)",
    );
    world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    world.settle();
    // Row 9 is number 42 now, which another row was.
    assert_eq!(world.wrong(), ["ROW-01 public.visit 42"]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A change before anybody knows of the other key is not of the record that it names.
#[test]
fn a_change_at_once_under_keys_that_change_places() {
    let Some(mut world) = world() else { return };
    world.psql("postgres", "UPDATE visit SET n = 51 - id");
    world.settle();
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n);
         UPDATE visit SET note = 'at once' WHERE n = 40",
    );
    let status = world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    assert!(
        !status["findings"].to_string().contains("ROW-04"),
        "{status}"
    );
    world.settle();
    world.scan();
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Nor does another key make a row that came past capture one of those that were sealed.
#[test]
fn a_change_at_once_under_another_key_launders_nothing() {
    let Some(mut world) = world() else { return };
    world.psql("postgres", "ALTER TABLE visit REPLICA IDENTITY FULL");
    world.settle();
    unseen(
        &world,
        "visit",
        "UPDATE visit SET note = 'forged' WHERE id = 9; INSERT INTO visit (id, n, note) VALUES (99, 99, 'forged')",
    );
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (id, n);
         UPDATE visit SET note = 'at once' WHERE id IN (9, 10, 99); UPDATE visit SET note = 'again' WHERE id = 10;
         DELETE FROM visit WHERE id = 11",
    );
    world.finding("ROW-04", "public.visit");
    world.settle();
    let status = world.status_when("says so", |s| {
        s["findings"].to_string().contains("has another key")
    });
    let found = status["findings"].as_array().unwrap().iter();
    let found = found.filter(|f| f["code"] == "ROW-04");
    // By the key that was known when the stream came to it.
    let ids = found.map(|f| f["key"].as_str().unwrap().split(',').next().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), ["9", "99"]);
    world.scan();
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn killed_while_records_go_on_under_another_key() {
    const ROWS: usize = 20_000;
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        &format!(
            "INSERT INTO visit SELECT n, 100000 + n, 'more' FROM generate_series(2001, 2000 + {ROWS}) n"
        ),
    );
    world.settle();
    let before = bytes(&world);
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n)",
    );
    world.eventually("carries", |world| bytes(world) > before + 1_000_000);
    world.kill_guardian();
    assert!(world.layout().dir().join("rekey.json").exists(), "too late");
    world.psql(
        "postgres",
        "UPDATE visit SET note = 'meanwhile' WHERE id = 22000",
    );
    world.guard();
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    assert!(!world.layout().dir().join("rekey.json").exists());
    world.run("trail verify").exits(0);
    let baselines = world
        .lines()
        .iter()
        .filter(|line| line.op == Op::Baseline)
        .count();
    // At first fifty, then all but the one that was changed.
    assert_eq!(baselines, 50 + 50 + ROWS - 1);
}

/// Two lines a row, and a block that has others already.
#[test]
fn more_records_go_on_under_another_key_than_a_block_has_lines() {
    let Some(mut world) = world() else { return };
    let insert = |from: u32, to: u32| {
        format!(
            "INSERT INTO visit SELECT n, 100000 + n, 'more' FROM generate_series({from}, {to}) n"
        )
    };
    world.psql("postgres", &insert(2001, 18_000));
    world.settle();
    world.stop_guardian();
    world.psql("postgres", &insert(18_001, 19_200));
    world.psql(
        "postgres",
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (n)",
    );
    world.guard();
    world.finding("CAP-05", "public.visit");
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    // It was full once, or this shows nothing.
    let lines = world.lines();
    let blocks = lines.split_inclusive(|line| line.op == Op::Checkpoint);
    let largest = blocks.map(<[_]>::len).max().unwrap();
    assert!(largest > 31_000, "{largest} lines");
}

#[test]
fn a_table_under_another_name() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "ALTER TABLE visit RENAME TO stay; UPDATE stay SET note = 'x' WHERE id = 7",
    );
    world.finding("CAP-05", "public.stay");
    world.settle();
    // Its rows have their lines under the new name, and those under the old one
    // are not forgotten.
    assert_eq!(world.wrong(), ["ROW-02 public.visit "]);
    unseen(
        &world,
        "stay",
        "UPDATE stay SET note = 'forged' WHERE id = 8",
    );
    assert_eq!(
        world.wrong(),
        ["ROW-01 public.stay 8", "ROW-02 public.visit "]
    );
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
