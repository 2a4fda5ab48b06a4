//! Every way that we know to turn the engine against capture, and what the
//! catalogue then says.

use super::harness::Server;
use super::name;
use pitser_capture::postgres::install::{Request, Wanted, check, install, tables, uninstall};
use pitser_capture::postgres::{Connection, Fingerprint, Name, PgSource, Place, slot};
use pitser_capture::{Captured, Shape, Source};
use std::ops::ControlFlow;

/// A server on which some tables are guarded.
struct World {
    server: Server,
    sql: Connection,
    /// The guardian's session.
    guardian: Connection,
}

impl World {
    fn new(schema: &str, names: &[&str]) -> Option<Self> {
        let server = Server::start(&[], &[])?;
        let mut sql = server.sql();
        run(&mut sql, schema);
        guard(&mut sql, names);
        slot::create(&mut server.replication(), &name()).unwrap();
        let guardian = server.sql();
        Some(Self {
            server,
            sql,
            guardian,
        })
    }

    fn take(&mut self) -> Fingerprint {
        Fingerprint::take(&mut self.guardian, &name(), &name()).unwrap()
    }

    /// What is found after these statements: each code, and how its text begins.
    #[track_caller]
    fn check(&mut self, statements: &str, expected: &[&str]) {
        let before = self.take();
        run(&mut self.sql, statements);
        let drifts = before.compare(&self.take());
        let shown: Vec<String> = drifts
            .iter()
            .map(|drift| {
                let text = drift.text.split(':').next().unwrap();
                format!("{} {text}", drift.code)
            })
            .collect();
        let alike = shown.len() == expected.len()
            && shown
                .iter()
                .zip(expected)
                .all(|(shown, expected)| shown.starts_with(expected));
        assert!(alike, "{statements}: {shown:#?}");
        let named =
            |text: &str| text.contains("table public.") || text.contains("partition public.");
        for drift in &drifts {
            let says = drift
                .table
                .as_ref()
                .is_some_and(|table| drift.text.contains(table.as_str()));
            assert_eq!(says, named(&drift.text), "{drift:?}");
        }
    }
}

fn run(sql: &mut Connection, statements: &str) {
    sql.query(statements)
        .unwrap_or_else(|error| panic!("{statements}: {error}"));
}

fn guard(sql: &mut Connection, names: &[&str]) {
    let found = tables(sql).unwrap().into_iter();
    let wanted: Vec<Wanted> = found
        .filter(|found| names.contains(&found.table.as_str()))
        .map(|found| Wanted {
            found,
            columns: None,
            full: false,
        })
        .collect();
    let request = Request {
        publication: &name(),
        slot: &name(),
        tables: &wanted,
        full: false,
        attribution: true,
    };
    install(sql, &request).unwrap();
}

const VISIT: &str = "CREATE TYPE mood AS ENUM ('well', 'ill');
    CREATE TABLE visit(id int PRIMARY KEY, note text, n int, mood mood, big text);
    CREATE TABLE other(id int PRIMARY KEY); INSERT INTO visit VALUES (1, 'a', 1, 'ill')";

const UNSEEN: &str = "CAP-03 table public.visit was out of the publication, or published otherwise, and is in it as before";
const FLIPPED: &str = "CAP-03 publication pitser was changed, and looks as before";

#[test]
fn ordinary_work_and_upkeep_are_nothing() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    for work in [
        "SELECT 1",
        "INSERT INTO visit SELECT n, repeat('x', 3000) FROM generate_series(2, 2000) n",
        "ANALYZE",
        "UPDATE visit SET note = 'b'; DELETE FROM visit WHERE id > 10",
        "VACUUM",
        "VACUUM (FREEZE, ANALYZE)",
        "VACUUM FULL pg_class; VACUUM FULL pg_publication_rel; VACUUM FULL pg_attribute; VACUUM FULL pg_trigger",
        "REINDEX TABLE visit",
        "REINDEX TABLE CONCURRENTLY visit",
        "CREATE INDEX ON visit(note); CREATE INDEX ON other(id)",
        "CREATE TABLE more(id int PRIMARY KEY, visit int REFERENCES other); TRUNCATE other, more; DROP TABLE more",
        "ALTER TABLE other ADD note text; CREATE ROLE clerk LOGIN; ALTER ROLE clerk SET search_path = other",
        "CHECKPOINT; SELECT pg_switch_wal()",
        "COMMENT ON TABLE visit IS 'of a patient'",
    ] {
        for statement in work.split("; ") {
            world.check(statement, &[]);
        }
    }
    let before = world.take();
    world.server.crash_and_restart();
    world.guardian = world.server.sql();
    assert_eq!(before.compare(&world.take()), []);
    assert_eq!(
        serde_json::from_str::<Fingerprint>(&serde_json::to_string(&before).unwrap()).unwrap(),
        before
    );
}

#[test]
fn a_table_that_left_the_publication_for_a_moment() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    world.check(
        "BEGIN; ALTER PUBLICATION pitser DROP TABLE visit; UPDATE visit SET note = 'forged';
         ALTER PUBLICATION pitser ADD TABLE ONLY visit; COMMIT",
        &[UNSEEN],
    );
    world.check(
        "BEGIN; ALTER PUBLICATION pitser SET (publish = 'insert'); UPDATE visit SET note = 'forged';
         ALTER PUBLICATION pitser SET (publish = 'insert, update, delete, truncate'); COMMIT",
        &[FLIPPED],
    );
    if world.server.since_15() {
        world.check(
            "BEGIN; ALTER PUBLICATION pitser SET TABLE visit WHERE (id > 5); UPDATE visit SET note = 'forged';
             ALTER PUBLICATION pitser SET TABLE visit; COMMIT",
            &[UNSEEN],
        );
    }
    world.check(
        "BEGIN; ALTER PUBLICATION pitser DROP TABLE visit; ALTER TABLE visit SET UNLOGGED;
         UPDATE visit SET note = 'forged'; ALTER TABLE visit SET LOGGED;
         ALTER PUBLICATION pitser ADD TABLE visit; COMMIT",
        &[UNSEEN],
    );
    world.check(
        "BEGIN; DROP PUBLICATION pitser; UPDATE visit SET note = 'forged'; CREATE PUBLICATION pitser FOR TABLE visit
         WITH (publish_via_partition_root = true); COMMIT",
        &[FLIPPED, UNSEEN],
    );
    world.check(
        "ALTER PUBLICATION pitser SET (publish = 'insert')",
        &["CAP-03 publication pitser was changed (update t -> f, delete t -> f, truncate t -> f)"],
    );
    if world.server.since_15() {
        world.check(
            "ALTER PUBLICATION pitser SET TABLE visit (id, note), other",
            &[
                "CAP-05 table public.other was added to the publication",
                "CAP-03 table public.visit is published otherwise (columns all -> 1,2)",
            ],
        );
    } else {
        let added = "CAP-05 table public.other was added to the publication";
        world.check("ALTER PUBLICATION pitser ADD TABLE other", &[added]);
    }
    world.check(
        "ALTER PUBLICATION pitser DROP TABLE visit",
        &["CAP-03 table public.visit is no longer in the publication"],
    );
    world.check(
        "DROP PUBLICATION pitser",
        &[
            "CAP-03 publication pitser was dropped",
            "CAP-03 table public.other is no longer in the publication",
        ],
    );
}

#[test]
fn a_table_that_was_rewritten() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    let rewritten = " table public.visit was rewritten or emptied";
    let altered = "CAP-05 a column of table public.visit was altered, and looks as before";
    world.check(
        "ALTER TABLE visit ALTER note TYPE text USING note || 'forged'",
        &[altered],
    );
    world.check("VACUUM FULL visit", &[rewritten]);
    world.check("CLUSTER visit USING visit_pkey", &[rewritten]);
    world.check("TRUNCATE visit", &[rewritten]);
    world.check("INSERT INTO visit VALUES (1, 'a', 1, 'ill')", &[]);
    world.check(
        "ALTER TABLE visit ALTER n TYPE bigint, ADD late int DEFAULT 7, ALTER mood SET NOT NULL, DROP big",
        &["CAP-05 columns of table public.visit were changed (n integer -> bigint, mood has another constraint or \
           collation, big text dropped, late integer added)"],
    );
    // Two columns that change names change every row, and no row is written.
    world.check(
        "BEGIN; ALTER TABLE visit RENAME note TO x; ALTER TABLE visit RENAME mood TO note;
         ALTER TABLE visit RENAME x TO mood; COMMIT",
        &["CAP-05 columns of table public.visit were changed (note is now called mood, mood is now called note)"],
    );
    world.check(
        "ALTER TYPE mood RENAME VALUE 'ill' TO 'fine'",
        &["CAP-05 the labels of type public.mood were changed"],
    );
    // What a new column shows in old rows is in the catalogue alone.
    world.check(
        "SET allow_system_table_mods = on; UPDATE pg_attribute SET atthasmissing = false WHERE attname = 'late';
         SET allow_system_table_mods = off",
        &[altered],
    );
    world.check(
        "SET allow_system_table_mods = on; UPDATE pg_class SET relfilenode = (relfilenode::bigint + 1)::oid WHERE relname = 'visit';
         SET allow_system_table_mods = off",
        &[rewritten],
    );
}

#[test]
fn attribution_is_not_switched_off_unnoticed() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    let off = |mut fingerprint: Fingerprint| {
        fingerprint.note_unattributed(&name());
        fingerprint
    };
    let codes = |was: &Fingerprint, now: &Fingerprint| -> Vec<_> {
        let drifts = was.compare(now).into_iter();
        drifts.map(|drift| (drift.code, drift.table)).collect()
    };
    let on = world.take();
    // By the guardian's configuration alone, the triggers still there.
    assert_eq!(codes(&on, &off(on.clone())), [("CAP-03", None)]);
    // By `guard init`, and nothing else with it.
    let remove = "DROP TRIGGER pitser_attribution ON visit; DROP FUNCTION pitser.attribute()";
    run(&mut world.sql, remove);
    let without = world.take();
    assert_eq!(codes(&on, &off(without.clone())), [("CAP-03", None)]);
    assert_eq!(codes(&off(without), &on), [("CAP-05", None)]);
    // Under its cover something else is told all the same.
    run(&mut world.sql, "ALTER PUBLICATION pitser DROP TABLE visit");
    let now = off(world.take());
    let table = Some("public.visit".to_owned());
    assert_eq!(codes(&on, &now), [("CAP-03", None), ("CAP-03", table)]);
    // While it is off, our own objects are watched as ever.
    run(
        &mut world.sql,
        "CREATE FUNCTION pitser.attribute() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    );
    assert_eq!(codes(&now, &off(world.take())), [("CAP-03", None)]);
}

#[test]
fn what_capture_is_made_of() {
    let Some(mut world) = World::new(&format!("{VISIT}; CREATE ROLE clerk LOGIN"), &["visit"])
    else {
        return;
    };
    let emit = &world.server.emitter("text");
    let trigger =
        |how: &str| format!("CAP-03 trigger pitser_attribution on table public.visit was {how}");
    let mut check = |statements: &str, expected: &str| world.check(statements, &[expected]);
    let again = trigger("changed, and looks as before");
    let definition =
        "CREATE TRIGGER pitser_attribution BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON visit
        FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION pitser.attribute();
        ALTER TABLE visit ENABLE ALWAYS TRIGGER pitser_attribution";
    check(
        "BEGIN; ALTER TABLE visit DISABLE TRIGGER pitser_attribution; UPDATE visit SET n = 2;
         ALTER TABLE visit ENABLE ALWAYS TRIGGER pitser_attribution; COMMIT",
        &again,
    );
    check(
        &format!("DROP TRIGGER pitser_attribution ON visit; {definition}"),
        &again,
    );
    check(
        "ALTER TABLE visit DISABLE TRIGGER ALL",
        &trigger("changed (enabled A -> D)"),
    );
    check(
        "ALTER TABLE visit ENABLE TRIGGER ALL",
        &trigger("changed (enabled D -> O)"),
    );
    check(
        "DROP TRIGGER pitser_attribution ON visit",
        &trigger("dropped"),
    );
    check(definition, &trigger("added"));

    check(
        "BEGIN; ALTER FUNCTION pitser.attribute() SECURITY INVOKER; UPDATE visit SET n = 3;
         ALTER FUNCTION pitser.attribute() SECURITY DEFINER; COMMIT",
        "CAP-03 function pitser.attribute() was changed, and looks as before",
    );
    check(
        "ALTER FUNCTION pitser.attribute() OWNER TO clerk; ALTER FUNCTION pitser.attribute() OWNER TO postgres",
        "CAP-03 function pitser.attribute() was changed, and looks as before",
    );
    check(
        "CREATE FUNCTION pitser.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CAP-03 function pitser.more() was added",
    );
    check(
        "GRANT CREATE ON SCHEMA pitser TO clerk",
        "CAP-03 schema pitser was changed (granted 10",
    );
    check(
        &format!("GRANT EXECUTE ON FUNCTION {emit} TO clerk"),
        &format!("CAP-03 clerk may call {emit} now, and write messages in our name"),
    );
    check(
        &format!("REVOKE EXECUTE ON FUNCTION {emit} FROM clerk"),
        &format!(" fewer roles than before may call {emit}"),
    );
    check(
        &format!(
            "GRANT EXECUTE ON FUNCTION {emit} TO PUBLIC; REVOKE EXECUTE ON FUNCTION {emit} FROM PUBLIC"
        ),
        &format!("CAP-03 somebody may have been allowed to call {emit} for a while"),
    );
    let identity = "CAP-03 table public.visit is no longer captured as before (identity";
    check(
        "ALTER TABLE visit REPLICA IDENTITY FULL",
        &format!("{identity} d -> f)"),
    );
    check(
        "ALTER TABLE visit REPLICA IDENTITY NOTHING",
        &format!("{identity} f -> n)"),
    );
    check(
        "ALTER TABLE visit REPLICA IDENTITY DEFAULT",
        &format!("{identity} n -> d)"),
    );
    check(
        "ALTER TABLE visit REPLICA IDENTITY NOTHING; ALTER TABLE visit REPLICA IDENTITY DEFAULT",
        " table public.visit was altered, and looks as before",
    );
    check(
        "ALTER TABLE visit DROP CONSTRAINT visit_pkey",
        "CAP-03 table public.visit has no key any more",
    );
    check(
        "ALTER TABLE visit ADD PRIMARY KEY (id)",
        "CAP-05 table public.visit has another key",
    );
    check(
        "SELECT pg_drop_replication_slot('pitser')",
        "CAP-03 slot pitser was dropped",
    );
    check(
        "SELECT pg_create_logical_replication_slot('pitser', 'test_decoding')",
        " slot pitser was made",
    );
    check(
        "SELECT pg_drop_replication_slot('pitser'); SELECT pg_create_logical_replication_slot('pitser', 'pgoutput')",
        "CAP-03 slot pitser was changed (plugin test_decoding -> pgoutput)",
    );
}

#[test]
fn roles_and_settings() {
    let Some(mut world) = World::new(
        &format!(
            "{VISIT}; CREATE ROLE clerk LOGIN; CREATE ROLE sister LOGIN; CREATE ROLE \"doctor Õ\""
        ),
        &["visit"],
    ) else {
        return;
    };
    let mut check = |statements: &str, expected: &str| world.check(statements, &[expected]);
    check(
        "ALTER ROLE clerk SUPERUSER",
        "CAP-03 role clerk is a superuser, and may become a superuser, or write files and run programs as the server now",
    );
    check(
        "ALTER ROLE clerk NOSUPERUSER",
        " role clerk may do less than before",
    );
    check(
        "ALTER ROLE clerk REPLICATION",
        "CAP-03 role clerk may replicate, and so drop or advance slots now",
    );
    let member = "may become a superuser, or write files and run programs as the server now";
    check(
        "GRANT postgres TO \"doctor Õ\"",
        &format!("CAP-03 role doctor Õ {member}"),
    );
    check(
        "GRANT \"doctor Õ\" TO sister",
        &format!("CAP-03 role sister {member}"),
    );
    check(
        "GRANT pg_execute_server_program TO clerk",
        &format!("CAP-03 role clerk {member}"),
    );
    check(
        "ALTER DATABASE postgres SET session_replication_role = replica",
        "CAP-03 sessions (database postgres) now start with session_replication_role=replica",
    );
    check(
        "ALTER ROLE clerk IN DATABASE postgres SET pitser.actor = 'EE38001085718'",
        "CAP-03 sessions (database postgres role clerk) now start with pitser.actor",
    );
    check(
        "ALTER DATABASE postgres RESET session_replication_role",
        " sessions (database postgres) no longer start with session_replication_role=replica",
    );
    let sealed = serde_json::to_string(&world.take()).unwrap();
    assert!(
        !sealed.contains("EE38001085718"),
        "a person is sealed in clear"
    );
    let before = world.take();
    run(
        &mut world.sql,
        "ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'",
    );
    run(&mut world.sql, "SELECT pg_reload_conf()");
    // A session hears of it when the postmaster has told it.
    let drifts = loop {
        match before.compare(&world.take()) {
            none if none.is_empty() => {}
            drifts => break drifts,
        }
    };
    assert_eq!((drifts.len(), drifts[0].code), (1, "CAP-03"), "{drifts:?}");
    assert!(
        drifts[0]
            .text
            .starts_with("setting max_slot_wal_keep_size went from -1 to 64MB")
    );
}

#[test]
fn what_only_newer_servers_have() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    if world.server.version() >= 17 {
        let mut altered = |to: &str| {
            let before = world.take();
            let alter = format!("ALTER_REPLICATION_SLOT pitser (FAILOVER {to})");
            world.server.replication().query(&alter).unwrap();
            let mut drifts = before.compare(&world.take());
            let drift = drifts.remove(0);
            assert!(drifts.is_empty(), "{drifts:?}");
            format!("{} {}", drift.code, drift.text)
        };
        assert_eq!(altered("true"), " slot pitser is kept by standbys too now");
        let lost = altered("false");
        assert!(
            lost.starts_with("CAP-03 slot pitser was changed (failover t -> f)"),
            "{lost}"
        );
    }
    if world.server.version() >= 18 {
        world.check(
            "ALTER PUBLICATION pitser SET (publish_generated_columns = stored)",
            &["CAP-03 publication pitser was changed (generated n -> s)"],
        );
        // Put back by whoever runs guard init.
        guard(&mut world.sql, &["visit"]);
        let rows = world
            .sql
            .query("SELECT 1 FROM pg_publication WHERE pubgencols = 'n'");
        assert_eq!(rows.unwrap().len(), 1);
    }
}

#[test]
fn what_others_do_to_a_guarded_table() {
    let Some(mut world) = World::new(
        &format!(
            "{VISIT}; CREATE ROLE clerk LOGIN; CREATE SCHEMA archive;
             CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        ),
        &["visit"],
    ) else {
        return;
    };
    let mut check = |statements: &str, expected: &[&str]| world.check(statements, expected);
    check(
        "CREATE TRIGGER swallow BEFORE INSERT ON visit FOR EACH ROW EXECUTE FUNCTION nothing()",
        &["CAP-05 trigger swallow on table public.visit was added"],
    );
    check(
        "DROP TRIGGER swallow ON visit",
        &["CAP-05 trigger swallow on table public.visit was dropped"],
    );
    check(
        "CREATE RULE divert AS ON DELETE TO visit DO INSTEAD NOTHING",
        &[
            "CAP-05 rule divert on table public.visit was added",
            "CAP-05 table public.visit was altered (rules f -> t)",
        ],
    );
    check(
        "DROP RULE divert ON visit; CREATE RULE divert AS ON INSERT TO visit DO INSTEAD NOTHING",
        &["CAP-05 rule divert on table public.visit was changed (event"],
    );
    check(
        "ALTER TABLE visit ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON visit USING (id > 5)",
        &[
            "CAP-05 policy own on table public.visit was added",
            "CAP-05 table public.visit was altered (row_security f -> t)",
        ],
    );
    check(
        "ALTER POLICY own ON visit USING (true)",
        &["CAP-05 policy own on table public.visit was changed, and looks as before"],
    );
    check(
        "ALTER TABLE visit OWNER TO clerk",
        &["CAP-05 table public.visit was altered (owner"],
    );
    check(
        "GRANT SELECT ON visit TO clerk",
        &[" table public.visit was altered, and looks as before"],
    );
    check(
        "ALTER TABLE visit RENAME TO stay; DROP TRIGGER pitser_attribution ON stay",
        &[
            "CAP-05 table public.visit is now called public.stay",
            "CAP-03 trigger pitser_attribution on table public.stay was dropped",
        ],
    );
    check(
        "ALTER TABLE stay SET SCHEMA archive",
        &["CAP-05 table public.stay is now called archive.stay"],
    );
}

#[test]
fn partitions_that_come_and_go() {
    let Some(mut world) = World::new(
        "CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_1 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO lab VALUES (1, '2026-02-03')",
        &["lab"],
    ) else {
        return;
    };
    let bounds = "FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')";
    world.check(
        &format!(
            "BEGIN; ALTER TABLE lab DETACH PARTITION lab_1; UPDATE lab_1 SET at = '2026-02-04';
                  ALTER TABLE lab ATTACH PARTITION lab_1 {bounds}; COMMIT"
        ),
        &[
            "CAP-05 a column of table public.lab_1 was altered, and looks as before",
            "CAP-03 partition public.lab_1 was detached and attached again",
        ],
    );
    world.check(
        "CREATE TABLE lab_2 PARTITION OF lab FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
        &["CAP-05 partition public.lab_2 was added"],
    );
    world.check(
        "TRUNCATE lab_1",
        &[" table public.lab_1 was rewritten or emptied"],
    );
    world.check(
        "ALTER TABLE lab DETACH PARTITION lab_1",
        &["CAP-03 partition public.lab_1 was dropped or detached"],
    );
    world.check("DROP TRIGGER IF EXISTS pitser_attribution ON lab_2", &[]);
}

#[test]
fn a_partition_of_which_nothing_is_logged_or_too_little() {
    let Some(mut world) = World::new(
        "CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_0 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         CREATE TABLE free(id int, at int) PARTITION BY LIST (at); ALTER TABLE free REPLICA IDENTITY FULL;
         CREATE TABLE free_0 PARTITION OF free FOR VALUES IN (0);
         CREATE TABLE bed(id int, at int, code int NOT NULL, PRIMARY KEY (id, at), UNIQUE (code, at))
           PARTITION BY LIST (at);
         CREATE TABLE bed_0 PARTITION OF bed FOR VALUES IN (0);
         CREATE FOREIGN DATA WRAPPER none; CREATE SERVER elsewhere FOREIGN DATA WRAPPER none",
        &["lab", "free", "bed"],
    ) else {
        return;
    };
    let year = "FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')";
    world.check(
        &format!("CREATE UNLOGGED TABLE lab_1 PARTITION OF lab {year}"),
        &["CAP-03 partition public.lab_1 was added, and is unlogged"],
    );
    world.check(
        "CREATE FOREIGN TABLE free_1 PARTITION OF free FOR VALUES IN (1) SERVER elsewhere",
        &["CAP-03 partition public.free_1 was added, and is a foreign table"],
    );
    let less = "CAP-03 partition public.free_2 was added, and its replica identity says less than that of public.free";
    world.check(
        "CREATE TABLE free_2 PARTITION OF free FOR VALUES IN (2)",
        &[less],
    );
    world.check(
        "BEGIN; CREATE TABLE free_3 PARTITION OF free FOR VALUES IN (3) PARTITION BY LIST (id);
         CREATE TABLE free_4 PARTITION OF free_3 DEFAULT; ALTER TABLE free_4 REPLICA IDENTITY FULL; COMMIT",
        &[
            "CAP-05 partition public.free_3 was added",
            "CAP-05 partition public.free_4 was added",
        ],
    );
    world.check(
        "BEGIN; CREATE TABLE bed_1 PARTITION OF bed FOR VALUES IN (1);
         ALTER TABLE bed_1 REPLICA IDENTITY USING INDEX bed_1_code_at_key; COMMIT",
        &["CAP-03 partition public.bed_1 was added, and its replica identity says less than that of public.bed"],
    );
    world.check(
        "BEGIN; CREATE TABLE bed_2 PARTITION OF bed FOR VALUES IN (2);
         ALTER TABLE bed_2 REPLICA IDENTITY USING INDEX bed_2_pkey; COMMIT",
        &["CAP-05 partition public.bed_2 was added"],
    );
}

#[test]
fn a_key_that_was_another_for_a_moment() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY, code int NOT NULL UNIQUE); INSERT INTO visit VALUES (1, 1);
         CREATE TABLE bed(id int NOT NULL, code int NOT NULL); CREATE UNIQUE INDEX one ON bed(id);
         CREATE UNIQUE INDEX two ON bed(code); ALTER TABLE bed REPLICA IDENTITY USING INDEX one",
        &["visit", "bed"],
    ) else {
        return;
    };
    world.check(
        "BEGIN; ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (code); UPDATE visit SET code = 2;
         ALTER TABLE visit DROP CONSTRAINT visit_pkey, ADD PRIMARY KEY (id); COMMIT",
        &["CAP-05 table public.visit had no key or another one for a while, and has its key again"],
    );
    let touched = " the index that is the key of table public.bed was altered or made anew";
    world.check(
        "BEGIN; ALTER TABLE bed REPLICA IDENTITY USING INDEX two; UPDATE bed SET id = 2;
         ALTER TABLE bed REPLICA IDENTITY USING INDEX one; COMMIT",
        &[touched],
    );
    world.check(
        "BEGIN; DROP INDEX one; CREATE UNIQUE INDEX one ON bed(id);
         ALTER TABLE bed REPLICA IDENTITY USING INDEX one; COMMIT",
        &[touched],
    );
    world.check("REINDEX TABLE CONCURRENTLY bed", &[touched]);
    world.check("ALTER TABLE visit CLUSTER ON visit_pkey", &[]);
    world.check("REINDEX TABLE CONCURRENTLY visit", &[]);
}

#[test]
fn what_a_type_is_made_of() {
    let Some(mut world) = World::new(
        "CREATE TYPE one AS ENUM ('a', 'b'); CREATE DOMAIN in_domain AS one[];
         CREATE TYPE two AS ENUM ('a', 'b'); CREATE TYPE inner_one AS (label two, n int);
         CREATE TYPE outer_one AS (parts inner_one[]);
         CREATE TYPE three AS ENUM ('a', 'b'); CREATE TYPE from_to AS RANGE (subtype = three);
         CREATE TYPE other AS ENUM ('a', 'b'); CREATE TYPE other_one AS (label other);
         CREATE TABLE visit(id int PRIMARY KEY, a in_domain, b outer_one, c from_to);
         CREATE TABLE bed(id int PRIMARY KEY, a other_one)",
        &["visit"],
    ) else {
        return;
    };
    for of in ["one", "two", "three"] {
        let labels = format!("CAP-05 the labels of type public.{of} were changed");
        let rename = format!("ALTER TYPE {of} RENAME VALUE 'b' TO 'c'");
        world.check(&rename, &[&labels]);
    }
    let attributes = "CAP-05 the attributes of type public.inner_one were changed";
    world.check(
        "ALTER TYPE inner_one RENAME ATTRIBUTE n TO m",
        &[attributes],
    );
    world.check(
        "ALTER TYPE inner_one ADD ATTRIBUTE more text",
        &[attributes],
    );
    world.check("ALTER TYPE other RENAME VALUE 'b' TO 'c'", &[]);
    world.check("ALTER TYPE other_one RENAME ATTRIBUTE label TO name", &[]);
}

#[test]
fn tables_that_inherit_from_a_guarded_one() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    let not_guarded = "CAP-03 table public.stay inherits from a guarded table";
    world.check(
        "CREATE TABLE stay () INHERITS (visit)",
        &[
            not_guarded,
            " table public.visit was altered, and looks as before",
        ],
    );
    world.check("INSERT INTO stay SELECT * FROM ONLY visit", &[]);
    world.check(
        "ALTER TABLE stay NO INHERIT visit",
        &[" table public.stay inherits from no guarded table any more"],
    );
    world.check("ALTER TABLE stay INHERIT visit", &[not_guarded]);
    // What it was between is not known.
    world.check(
        "BEGIN; ALTER TABLE stay NO INHERIT visit; ALTER TABLE stay INHERIT visit; COMMIT",
        &[not_guarded],
    );
    world.check(
        "DROP TABLE stay",
        &[" table public.stay inherits from no guarded table any more"],
    );
}

#[test]
fn a_search_path_that_lies_is_not_asked() {
    let Some(mut world) = World::new(
        &format!(
            "{VISIT}; CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
             CREATE FUNCTION evil.never(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false';
             CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.never)"
        ),
        &["visit"],
    ) else {
        return;
    };
    let before = world.take();
    run(
        &mut world.sql,
        "ALTER ROLE postgres SET search_path = evil, pg_catalog; DROP TRIGGER pitser_attribution ON visit",
    );
    world.guardian = world.server.sql();
    let codes: Vec<&str> = before
        .compare(&world.take())
        .iter()
        .map(|drift| drift.code)
        .collect();
    assert_eq!(codes, ["CAP-03"]);
}

/// Functions and operators under all names that the system's have, each of which ends the
/// statement that it is called in.
const TRAPS: &str = r"
    CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
    DO $$
    DECLARE it record;
    BEGIN
        FOR it IN
            SELECT proname, pg_get_function_identity_arguments(oid) args, pg_get_function_result(oid) result
            FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', it.proname,
                    it.args, it.result, format('BEGIN RAISE ''ours ran %s''; END', it.proname));
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
        FOR it IN
            SELECT oprname, oprleft::regtype l, oprright::regtype r, proname FROM pg_operator
            JOIN pg_proc ON pg_proc.oid = oprcode WHERE oprkind = 'b'
        LOOP
            BEGIN
                EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.%I)',
                    it.oprname, it.l, it.r, it.proname);
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
    END $$;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog', current_database());
    END $$";

/// Whoever owns the database says where names are looked up, in a superuser's sessions too.
#[test]
fn what_the_databases_owner_calls_like_the_systems_functions_is_not_run() {
    let Some(mut world) = World::new(VISIT, &["visit"]) else {
        return;
    };
    run(&mut world.sql, TRAPS);
    for trap in [
        "SELECT current_setting('wal_level')",
        "SELECT 1 FROM pg_class WHERE relname = 'visit'::name",
    ] {
        let error = world.server.sql().query(trap).unwrap_err().to_string();
        assert!(error.contains("ours ran"), "{error}");
    }
    // Whatever installing asks, and guarding.
    let mut sql = Connection::open(&world.server.config()).unwrap();
    guard(&mut sql, &["visit", "other"]);
    check(&mut sql, &Name::new("another").unwrap()).unwrap();
    assert!(slot::exists(&mut sql, &name()).unwrap());
    let place = Place {
        config: world.server.config(),
        publication: name(),
        slot: name(),
        attribution: true,
    };
    let mut source = PgSource::open(&place).unwrap();
    assert_eq!(source.shapes().len(), 2);
    assert!(!source.refresh().unwrap());
    assert_eq!(source.unguarded().unwrap(), Vec::<String>::new());
    source.free().unwrap();
    source.word().unwrap();
    source.next_transaction().unwrap().unwrap();
    source.backlog().unwrap();
    source.identity().unwrap();
    source.fingerprint().unwrap();
    let mut snapshot = source.snapshot().unwrap()().unwrap();
    let mut rows = 0;
    snapshot
        .scan("public.visit", 10, &mut |chunk| {
            rows += chunk.len();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 1);
    assert!(snapshot.hidden("public.visit").unwrap().is_none());
    let after = snapshot.position();
    drop(snapshot);
    run(
        &mut world.sql,
        "INSERT INTO public.visit VALUES (2, 'b', 2, 'well')",
    );
    let newest = source.newest().unwrap();
    let mut told = Vec::new();
    while told.is_empty() {
        told = source.poll(after, 10).unwrap();
        told.retain(|step| matches!(step, Captured::Change(_)));
    }
    source.ack(newest).unwrap();
    drop(source);
    let gone = uninstall(&mut sql, &name(), &name()).unwrap();
    assert!(!gone.is_empty());
}

#[test]
fn another_role_sees_the_same() {
    let Some(mut world) = World::new(
        &format!("{VISIT}; CREATE ROLE clerk LOGIN REPLICATION PASSWORD 'hunter'"),
        &["visit"],
    ) else {
        return;
    };
    let mut clerk =
        Connection::open_application(&world.server.config_of("clerk", "hunter")).unwrap();
    let theirs = Fingerprint::take(&mut clerk, &name(), &name()).unwrap();
    assert_eq!(theirs, world.take());
    // Where the system's identifier is kept from it, replication says it.
    run(
        &mut world.sql,
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    );
    assert!(Fingerprint::take(&mut clerk, &name(), &name()).is_err());
    let mut clerk =
        Connection::open_replication(&world.server.config_of("clerk", "hunter")).unwrap();
    let theirs = Fingerprint::take(&mut clerk, &name(), &name()).unwrap();
    assert_eq!(theirs, world.take());
}

/// What the keys were is told by the fingerprint that was sealed, once they are others.
#[test]
fn the_guarded_tables_are_in_it_as_the_source_has_them() {
    let schema = "
        CREATE TABLE visit(gone int, note text, id int PRIMARY KEY);
        ALTER TABLE visit DROP gone;
        CREATE TABLE two(c int, b int, twice int GENERATED ALWAYS AS (b * 2) STORED, a int,
                         PRIMARY KEY (a, b) INCLUDE (c));
        CREATE TABLE chosen(id int PRIMARY KEY, n int NOT NULL UNIQUE);
        ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_n_key;
        CREATE TABLE \"whole.Õ\"(id int PRIMARY KEY, \"a:b\tc\" text);
        ALTER TABLE \"whole.Õ\" REPLICA IDENTITY FULL;
        CREATE TABLE heap(at int, what text);
        ALTER TABLE heap REPLICA IDENTITY FULL;
        CREATE TABLE part(id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (9);
        CREATE TABLE late(id int PRIMARY KEY);
        CREATE TABLE silent(id int PRIMARY KEY);
        CREATE TABLE bare(id int PRIMARY KEY);
        CREATE TABLE listed(id int PRIMARY KEY, secret text, note text)";
    let names = [
        "visit", "two", "chosen", "whole.Õ", "heap", "part", "late", "silent", "bare",
    ];
    let Some(mut world) = World::new(schema, &names) else {
        return;
    };
    run(
        &mut world.sql,
        "ALTER TABLE late DROP CONSTRAINT late_pkey, ADD PRIMARY KEY (id) DEFERRABLE;
         ALTER TABLE silent REPLICA IDENTITY NOTHING;
         ALTER TABLE bare DROP CONSTRAINT bare_pkey",
    );
    if world.server.since_15() {
        run(
            &mut world.sql,
            "ALTER PUBLICATION pitser ADD TABLE listed (id, note)",
        );
    }
    let place = Place {
        config: world.server.config(),
        publication: name(),
        slot: name(),
        attribution: true,
    };
    let source = PgSource::open(&place).unwrap();
    let by_name = |mut shapes: Vec<Shape>| {
        shapes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        shapes
    };
    let shapes = by_name(source.shapes().to_vec());
    assert_eq!(by_name(world.take().shapes()), shapes);
    let keyed = shapes.iter().filter(|shape| !shape.key.is_empty());
    assert!(keyed.count() >= 6, "{shapes:?}");
}
