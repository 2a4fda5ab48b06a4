//! Every way that we know to change a row while the stream tells nothing of it,
//! against a running guardian; and upkeep that looks like one.

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::hospital::{SOURCE, stamp};
use crate::world::World;

const OUT: &str = "ALTER PUBLICATION pitser_hospital DROP TABLE ONLY trick";
const IN: &str = "ALTER PUBLICATION pitser_hospital ADD TABLE ONLY trick";

fn world() -> Option<World> {
    let mut world = World::new("clinic")?;
    world.psql(
        "postgres",
        "CREATE ROLE eve LOGIN PASSWORD 'p@ss/w:rd õ';
         CREATE TABLE trick (id int PRIMARY KEY, note text, n int);
         INSERT INTO trick SELECT n, 'note ' || n, n FROM generate_series(1, 20) n;
         CREATE TABLE lab (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_1 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO lab VALUES (1, '2026-02-03', 'first'), (2, '2026-02-03', 'second')",
    );
    world.configure("scan_every_s = 0", "tables = [\"public.*\"]\n");
    world.run("guard init").exits(0).says("2 tables guarded");
    world.guard();
    Some(world)
}

/// How many findings of this code there are.
fn count(world: &World, code: &str) -> usize {
    let status = world.status_when("says", |_| true);
    let findings = status["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["code"] == code).count()
}

#[test]
fn no_trick_goes_unnoticed() {
    let Some(mut world) = world() else { return };
    let forge = |id: u32| format!("UPDATE trick SET note = 'forged' WHERE id = {id}");
    let all = "insert, update, delete, truncate";
    let mut tricks = vec![
        ("CAP-03", 1, format!("{OUT}; {}; {IN}", forge(1))),
        (
            "CAP-03",
            2,
            format!(
                "ALTER PUBLICATION pitser_hospital SET (publish = 'insert'); {};
                 ALTER PUBLICATION pitser_hospital SET (publish = '{all}')",
                forge(2)
            ),
        ),
        (
            "CAP-05",
            3,
            "ALTER TABLE trick ALTER note TYPE text USING CASE id WHEN 3 THEN 'forged' ELSE note END".to_owned(),
        ),
        (
            "CAP-03",
            4,
            format!("{OUT}; ALTER TABLE trick SET UNLOGGED; {}; ALTER TABLE trick SET LOGGED; {IN}", forge(4)),
        ),
        (
            "CAP-03",
            5,
            format!("{OUT}; ALTER TABLE trick RENAME TO t; ALTER TABLE t RENAME TO trick; {}; {IN}", forge(5)),
        ),
        (
            "CAP-03",
            6,
            format!(
                "ALTER PUBLICATION pitser_hospital SET TABLE ONLY trick WHERE (id > 100), lab; {};
                 ALTER PUBLICATION pitser_hospital SET TABLE ONLY trick, lab",
                forge(6)
            ),
        ),
    ];
    if !world.server.since_15() {
        tricks.pop();
    }
    let mut forged = Vec::new();
    for (code, id, trick) in tricks {
        let before = count(&world, code);
        world.psql("postgres", &format!("BEGIN; {trick}; COMMIT"));
        forged.push(format!("ROW-01 public.trick {id}"));
        world.status_when("notices", |s| {
            let findings = s["findings"].as_array().unwrap().iter();
            findings.filter(|f| f["code"] == code).count() > before
        });
        assert_eq!(world.wrong(), forged, "{trick}");
    }

    // The table's file is another one: no finding by itself, but looked at at once.
    world.psql(
        "postgres",
        "SET allow_system_table_mods = on;
         CREATE TABLE forgery (LIKE trick); ALTER TABLE forgery SET (autovacuum_enabled = off);
         INSERT INTO forgery SELECT id, CASE id WHEN 7 THEN 'forged' ELSE note END, n FROM trick;
         CHECKPOINT;
         UPDATE pg_class c SET relfilenode = f.relfilenode FROM pg_class f WHERE c.relname = 'trick' AND f.relname = 'forgery'",
    );
    let seventh = |f: &Value| f["code"] == "ROW-01" && f["key"] == "7";
    world.status_when("finds the seventh", |s| {
        s["findings"].as_array().unwrap().iter().any(seventh)
    });

    // A partition that is away for a moment.
    world.psql(
        "postgres",
        "BEGIN; ALTER TABLE lab DETACH PARTITION lab_1; UPDATE lab_1 SET note = 'forged' WHERE id = 2;
         ALTER TABLE lab ATTACH PARTITION lab_1 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01'); COMMIT",
    );
    world.status_when("finds the partition's row", |s| {
        let of_lab = |f: &Value| f["code"] == "ROW-01" && f["table"] == "public.lab";
        s["findings"].as_array().unwrap().iter().any(of_lab)
    });
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A finding that names more than a line can hold does not end the capture: what comes
/// meanwhile is found.
#[test]
fn more_than_fits_into_a_finding_is_cut() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         DO $$ BEGIN FOR n IN 1..12000 LOOP
           EXECUTE format('CREATE TRIGGER %s AFTER DELETE ON visit EXECUTE FUNCTION nothing()',
             rpad('trigger_' || n || '_', 63, 'x'));
         END LOOP; END $$",
    );
    world.status_when("cuts the text", |s| {
        let mut findings = s["findings"].as_array().unwrap().iter();
        findings.any(|finding| finding["text"].as_str().unwrap().ends_with("bytes more"))
    });
    world.psql(
        "postgres",
        "CREATE ROLE passing SUPERUSER; DROP ROLE passing; CREATE ROLE staying SUPERUSER",
    );
    world.status_when("finds the superuser", |s| {
        let findings = s["findings"].as_array().unwrap().iter();
        findings
            .filter(|finding| finding["code"] == "CAP-03")
            .any(|finding| finding["text"].as_str().unwrap().contains("staying"))
    });
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Whoever may replay another server's log gives transactions any time: none of them ends
/// the capture, and none is believed in silence.
#[test]
fn a_transaction_that_is_dated_by_its_session_is_noticed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let change = |value: &str| format!("UPDATE visit SET note = '{value}' WHERE id = 10");
    let dated = |at: &str, value: &str| {
        world.psql(
            "postgres",
            &format!(
                "SELECT pg_replication_origin_session_setup('elsewhere');
                 BEGIN; SELECT pg_replication_origin_xact_setup('0/1', '{at}'); {}; COMMIT",
                change(value)
            ),
        );
    };
    world.psql(
        "postgres",
        "SELECT pg_replication_origin_create('elsewhere')",
    );
    world.psql("postgres", &change("first"));
    dated("2019-05-05", "backdated");
    world.psql("postgres", &change("in between"));
    dated("infinity", "for ever");
    dated("2999-01-01", "still to come");
    dated("-infinity", "always");
    world.psql("postgres", &change("last"));
    world.settle();
    let status = world.run("guard status --json").exits(1).json();
    let findings = status["sources"][0]["findings"].as_array().unwrap().iter();
    let told: Vec<&str> = findings
        .filter(|finding| finding["code"] == "CLK-01")
        .map(|finding| finding["text"].as_str().unwrap())
        .collect();
    let says = [
        "at 2019-05-05T00:00:00.000000Z, which is long before",
        "at 9999-12-31T23:59:59.999999Z, which is yet to come",
        "at 0001-01-01T00:00:00.000000Z, which is long before",
    ];
    assert_eq!(told.len(), says.len(), "{told:?}");
    for (told, says) in told.iter().zip(says) {
        assert!(told.contains(says), "{told}");
    }
    let history = world.run("history public.visit 10 --json").json();
    let lines = history["lines"].as_array().unwrap().iter();
    let changes = lines.filter(|entry| entry["line"]["op"] == "update");
    let years: Vec<String> = changes
        .map(|entry| entry["line"]["at"].as_str().unwrap()[..4].to_owned())
        .collect();
    let this = years.last().unwrap();
    assert_eq!(years.len(), 7);
    for (at, year) in years.iter().enumerate() {
        assert!(year == this || at == 1 && year == "2019", "{years:?}");
    }
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Under another name the rows are whose they were.
#[test]
fn a_table_that_is_renamed_for_the_time_of_a_change_is_known_by_its_number() {
    let Some(world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let changes = [
        (
            "other",
            "ALTER TABLE result RENAME TO other",
            "other",
            "ALTER TABLE other RENAME TO result",
        ),
        (
            "hidden.result",
            "CREATE SCHEMA hidden; ALTER TABLE result SET SCHEMA hidden",
            "hidden.result",
            "ALTER TABLE hidden.result SET SCHEMA public",
        ),
    ];
    for (n, (was, away, name, back)) in changes.into_iter().enumerate() {
        let change = format!(
            "UPDATE {name} SET value = 9.{n}, {} WHERE id = 100",
            stamp(2)
        );
        world.psql(
            "postgres",
            &format!("BEGIN; {away}; {change}; {back}; COMMIT"),
        );
        world.settle();
        let status = world.status_when("says", |_| true);
        let told = status["findings"].as_array().unwrap().iter().any(|f| {
            let text = f["text"].as_str().unwrap();
            f["code"] == "CAP-05" && f["table"] == "public.result" && text.contains(was)
        });
        // A server that does not describe the table anew has not told of another schema.
        assert!(told || was != "other", "{status}");
        let said = world.run("history --patient 1 --json").json();
        let lines = said["lines"].as_array().unwrap().iter();
        let updates = lines.filter(|entry| entry["line"]["op"] == "update");
        assert_eq!(updates.count(), n + 1, "{was}: {said}");
    }
    let tables = world.lines().into_iter().filter_map(|line| line.table);
    assert!(
        tables
            .into_iter()
            .all(|table| !table.contains("other") && !table.contains("hidden"))
    );
    let wrong = world.scan();
    let rows = wrong
        .iter()
        .filter(|f| f["code"].as_str().unwrap().starts_with("ROW"));
    assert_eq!(rows.count(), 0, "{wrong:?}");
}

#[test]
fn a_publication_that_was_gone_for_a_while() {
    let Some(mut world) = world() else { return };
    world.psql("postgres", "DROP PUBLICATION pitser_hospital");
    world.psql("postgres", "UPDATE trick SET note = 'forged' WHERE id = 1");
    // Until 17 the server refuses to go on; from 18 on it leaves out what it cannot judge.
    if world.server.version() < 18 {
        world.status_when("is in trouble", |s| s["state"] == "database-unavailable");
    } else {
        world.finding("CAP-03", "public.trick");
    }
    world.run("guard init").exits(0);
    // The second where somebody looked while it was gone: from 18 on always, before only if
    // that was due before the server refused.
    let back = [
        "table public.trick was out of the publication",
        "table public.trick was added to the publication",
    ];
    world.status_when("guards it again", |s| {
        let findings = s["findings"].to_string();
        s["state"] == "guarding" && back.iter().any(|text| findings.contains(text))
    });
    world.psql("postgres", "UPDATE trick SET note = 'seen' WHERE id = 2");
    world.settle();
    world.scan();
    let open = world.run("guard status");
    open.exits(1).says("ROW-01 public.trick 1");
    let gaps = world
        .lines()
        .iter()
        .filter(|line| line.op == Op::Gap)
        .count();
    assert_eq!(gaps, usize::from(world.server.version() < 18));
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn nobody_speaks_in_our_name() {
    let Some(world) = world() else { return };
    world.psql("postgres", "GRANT SELECT, UPDATE ON trick TO eve");
    let forged = r#"SELECT pg_logical_emit_message(true, 'pitser', '{"person":"dr.tamm","role":"postgres"}')"#;
    let message = "UPDATE trick SET note = 'as somebody else' WHERE id = 1";
    let said = world
        .server
        .client("psql", "eve")
        .args(["-qAtX", "-d", world.database, "-c", forged])
        .output()
        .unwrap();
    let refusal = String::from_utf8(said.stderr).unwrap();
    assert!(refusal.contains("permission denied"), "{refusal}");

    // Even if she is let: that she is shows, and two voices are nobody's word.
    world.psql(
        "postgres",
        &format!(
            "GRANT EXECUTE ON FUNCTION {} TO eve",
            world.server.emitter("text")
        ),
    );
    let told = world.finding("CAP-03", "");
    assert!(
        told["text"].as_str().unwrap().contains("eve may call"),
        "{told}"
    );
    world.psql("eve", &format!("BEGIN; {forged}; {message}; COMMIT"));
    assert_eq!(world.finding("ACT-01", "public.trick")["key"], "1");
}

#[test]
fn upkeep_is_no_alarm() {
    let Some(mut world) = world() else { return };
    for upkeep in [
        "VACUUM FULL trick",
        "CLUSTER trick USING trick_pkey",
        "REINDEX TABLE trick",
        "VACUUM (FREEZE, ANALYZE)",
        "ALTER TABLE trick SET (fillfactor = 50)",
        "CREATE INDEX ON trick (note)",
        "GRANT SELECT ON trick TO eve",
        "CHECKPOINT",
    ] {
        world.psql("postgres", upkeep);
    }
    assert_eq!(world.scan(), Vec::<Value>::new());
    let status = world.status_when("guards", |_| true);
    assert_eq!(status["findings"], Value::Array(Vec::new()));
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn rows_change_in_every_way_that_there_is() {
    let Some(mut world) = world() else { return };
    world.psql(
        "postgres",
        "CREATE TABLE parent (id serial PRIMARY KEY, note text);
         CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
         CREATE TABLE visit (id int PRIMARY KEY, trick int REFERENCES trick ON DELETE CASCADE ON UPDATE CASCADE, letter text);
         ALTER TABLE visit ALTER letter SET STORAGE EXTERNAL",
    );
    world.run("guard init").exits(0).says("5 tables guarded");
    world.status_when("guards them", |s| {
        s["findings"]
            .to_string()
            .contains("table public.visit was added")
    });
    world.settle();
    for statements in [
        "COPY (SELECT 1) TO STDOUT; INSERT INTO trick VALUES (1, 'x', 1) ON CONFLICT (id) DO UPDATE SET note = excluded.note",
        "MERGE INTO trick t USING generate_series(19, 22) s(id) ON t.id = s.id
         WHEN MATCHED AND s.id = 19 THEN DELETE WHEN MATCHED THEN UPDATE SET note = 'merged'
         WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new', 0)",
        "WITH gone AS (DELETE FROM trick WHERE id = 21 RETURNING *) INSERT INTO trick SELECT 121, note, n FROM gone",
        "INSERT INTO visit SELECT n, n, repeat('long ', 2000) FROM generate_series(2, 4) n",
        // Keys that move, by cascade, with a large value that is not sent.
        "UPDATE trick SET id = 202 WHERE id = 2; DELETE FROM trick WHERE id = 3; UPDATE visit SET id = 14 WHERE id = 4",
        "UPDATE visit SET letter = NULL WHERE id = 14; UPDATE visit SET letter = repeat('other ', 2000) WHERE id = 14",
        "INSERT INTO child VALUES (100, 'below'); UPDATE parent SET note = 'by the parent'; UPDATE ONLY parent SET note = 'alone'",
        "INSERT INTO parent (note) SELECT 'x' FROM generate_series(1, 5); DELETE FROM parent WHERE id IN (1, 100)",
        // Between partitions, and past the root.
        "CREATE TABLE lab_2 PARTITION OF lab FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); UPDATE lab SET at = '2027-02-03' WHERE id = 1",
        "INSERT INTO lab_2 VALUES (3, '2027-05-05', 'direct'); UPDATE lab_1 SET note = 'direct' WHERE id = 2",
        "SET session_replication_role = replica; DELETE FROM lab WHERE id = 3",
        "BEGIN; SAVEPOINT s; TRUNCATE trick CASCADE; ROLLBACK TO s; COMMIT",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM trick WHERE id = 5 FOR UPDATE; FETCH c; UPDATE trick SET note = 'here' WHERE CURRENT OF c; COMMIT",
    ] {
        if statements.starts_with("MERGE") && !world.server.since_15() {
            continue;
        }
        world.psql("postgres", statements);
        assert_eq!(world.scan(), Vec::<Value>::new(), "{statements}");
    }
    let rows = "1\\tcopied\\t1\\n";
    let piped = format!(
        "CREATE TABLE copied (LIKE trick INCLUDING ALL); COPY copied FROM PROGRAM 'printf \"{rows}\"'; INSERT INTO trick SELECT 301, note, n FROM copied; DROP TABLE copied"
    );
    world.psql("postgres", &piped);
    world.psql(
        "postgres",
        "COPY lab FROM PROGRAM 'printf \"7\\t2026-07-07\\tcopied\\n8\\t2027-07-07\\tcopied\\n\"'",
    );
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.psql(
        "postgres",
        "TRUNCATE parent, trick RESTART IDENTITY CASCADE",
    );
    for table in ["trick", "visit", "parent", "child"] {
        world.finding("CAP-04", &format!("public.{table}"));
    }
    world.psql(
        "postgres",
        "INSERT INTO parent (note) VALUES ('again the first')",
    );
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// Whoever may make tables would have as many findings, and as many alerts, as he likes.
#[test]
fn many_tables_that_nobody_guards_are_one_finding() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql("postgres", "CREATE TABLE visit (id int PRIMARY KEY)");
    world.configure("scan_every_s = 0", "tables = [\"public.*\"]\n");
    world.run("guard init").exits(0).says("1 tables guarded");
    world.guard();
    let unguarded = |status: &serde_json::Value| {
        let findings = status["findings"].as_array().unwrap();
        let unguarded = findings.iter().filter(|it| {
            let text = it["text"].as_str().unwrap();
            text.contains("not guarded")
        });
        unguarded.cloned().collect::<Vec<_>>()
    };
    world.psql("postgres", "CREATE TABLE one (id int PRIMARY KEY)");
    world.finding("CAP-03", "public.one");
    world.psql(
        "postgres",
        "DO $$ BEGIN FOR n IN 1..500 LOOP EXECUTE 'CREATE TABLE t' || n || ' (id int)'; END LOOP; END $$",
    );
    let all = world.finding("CAP-03", "*");
    let text = all["text"].as_str().unwrap();
    assert!(
        text.starts_with("501 tables fit the configured patterns"),
        "{text}"
    );
    // Nothing more after a start, and as they go.
    world.kill_guardian();
    world.guard();
    world.psql("postgres", "DROP TABLE t1, t2; CREATE TABLE other (id int)");
    world.settle();
    world.psql(
        "postgres",
        "DO $$ BEGIN FOR n IN 3..500 LOOP EXECUTE 'DROP TABLE t' || n; END LOOP; END $$",
    );
    let status = world.status_when("only two are left", |status| unguarded(status).len() == 3);
    let tables: Vec<_> = unguarded(&status)
        .iter()
        .map(|it| it["table"].clone())
        .collect();
    assert_eq!(tables, ["public.one", "*", "public.other"]);
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
