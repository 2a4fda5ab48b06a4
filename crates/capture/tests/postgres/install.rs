//! What `guard init` does to a real database, and what it leaves behind.

use std::ops::ControlFlow;

use super::harness::Server;
use super::{boundary, name, says, show, story, transactions};
use pitser_capture::postgres::install::{
    self, Found, Plan, Request, Wanted, check, identity, plan, plan_removal, uninstall,
};
use pitser_capture::postgres::{Connection, Name, PgError, Snapshot, Stream, slot};
use pitser_capture::{Captured, Change};

/// A server with a schema, and the superuser's session.
struct World {
    server: Server,
    sql: Connection,
}

impl World {
    fn new(schema: &str) -> Option<Self> {
        let server = Server::start(&[], &[])?;
        let mut sql = server.sql();
        run(&mut sql, schema);
        Some(Self { server, sql })
    }

    fn run(&mut self, statement: &str) {
        run(&mut self.sql, statement);
    }

    fn wanted(&mut self, names: &[&str]) -> Vec<Wanted> {
        wanted(&mut self.sql, names)
    }

    fn install(&mut self, names: &[&str]) -> Plan {
        let tables = self.wanted(names);
        install::install(&mut self.sql, &request(&tables)).unwrap()
    }

    /// Installs, and writes down from now on what the log says.
    fn listen(&mut self, names: &[&str]) {
        self.install(names);
        self.run("SELECT pg_create_logical_replication_slot('test', 'test_decoding')");
    }

    /// What the log says since the last time, one transaction a line.
    fn heard(&mut self) -> Vec<String> {
        let rows = self
            .sql
            .query(
                "SELECT data FROM pg_logical_slot_get_changes('test', NULL, NULL, 'include-xids', '0')",
            )
            .unwrap();
        let mut lines: Vec<String> = Vec::new();
        for line in column(&rows) {
            match (line.as_str(), lines.last_mut()) {
                ("BEGIN", _) => lines.push(String::new()),
                ("COMMIT", _) => {}
                (_, Some(last)) => {
                    let message = line.split_once("content:").map(|(_, said)| said);
                    let change = line.strip_prefix("table public.").unwrap_or(&line);
                    *last += &format!("[{}]", message.unwrap_or(change));
                }
                other => panic!("{other:?}"),
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

fn run(sql: &mut Connection, statement: &str) {
    sql.query(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

pub(crate) fn wanted(sql: &mut Connection, names: &[&str]) -> Vec<Wanted> {
    let found = install::tables(sql).unwrap();
    let one = |name: &&str| Wanted {
        found: found
            .iter()
            .find(|found| found.name == format!("public.{name}"))
            .unwrap_or_else(|| panic!("{name} in {found:?}"))
            .clone(),
        columns: None,
        full: false,
    };
    names.iter().map(one).collect()
}

pub(crate) fn request<'a>(tables: &'a [Wanted]) -> Request<'a> {
    static NAME: std::sync::LazyLock<Name> = std::sync::LazyLock::new(name);
    Request {
        publication: &NAME,
        slot: &NAME,
        tables,
        full: false,
        attribution: true,
    }
}

pub(crate) fn column(rows: &[Vec<pitser_capture::postgres::Field>]) -> Vec<String> {
    let text = |row: &Vec<pitser_capture::postgres::Field>| {
        String::from_utf8(row[0].as_ref().unwrap().to_vec()).unwrap()
    };
    rows.iter().map(text).collect()
}

fn as_clerk(server: &Server) -> Connection {
    Connection::open_application(&server.config_of("clerk", "hunter")).unwrap()
}

/// Everything that installing may touch, as text.
fn state(sql: &mut Connection) -> Vec<String> {
    let rows = sql
        .query(
            "SELECT concat_ws(' ', 'class', oid::regclass, relreplident,
                (SELECT indexrelid::regclass FROM pg_index WHERE indrelid = c.oid AND indisreplident))
              FROM pg_class c WHERE relkind IN ('r', 'p') AND oid >= 16384
             UNION ALL SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
               WHERE NOT tgisinternal
             UNION ALL SELECT concat_ws(' ', 'function', oid::regprocedure) FROM pg_proc WHERE oid >= 16384
             UNION ALL SELECT concat_ws(' ', 'emit', has_function_privilege('public', oid, 'EXECUTE'))
               FROM pg_proc WHERE proname = 'pg_logical_emit_message'
             UNION ALL SELECT concat_ws(' ', 'schema', nspname) FROM pg_namespace WHERE oid >= 16384
             UNION ALL SELECT concat_ws(' ', 'publication', pubname) FROM pg_publication
             UNION ALL SELECT concat_ws(' ', 'slot', slot_name) FROM pg_replication_slots
             ORDER BY 1",
        )
        .unwrap();
    column(&rows)
}

const VISIT: &str = "CREATE ROLE clerk LOGIN PASSWORD 'hunter';
    CREATE TABLE visit(id int PRIMARY KEY, note text);
    GRANT ALL ON visit TO clerk";

#[test]
fn tables_are_found_with_what_matters_for_capture() {
    let Some(mut world) = World::new(
        "CREATE SCHEMA \"a.b\"; CREATE SCHEMA pitser; CREATE TABLE pitser.mine(id int PRIMARY KEY);
         CREATE TABLE \"a.b\".\"Odd \"\"one\"(n int, ward text, twice int GENERATED ALWAYS AS (n * 2) STORED,
           PRIMARY KEY (ward) INCLUDE (n));
         CREATE TABLE pair(b int, a int, c int, PRIMARY KEY (a, b));
         CREATE TABLE chosen(id int PRIMARY KEY, code int NOT NULL UNIQUE);
         ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code_key;
         CREATE TABLE silent(id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
         CREATE TABLE whole(id int); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE UNLOGGED TABLE scratch(id int); CREATE TEMP TABLE passing(id int);
         CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_2026 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO lab SELECT n, '2026-02-03' FROM generate_series(1, 1000) n; ANALYZE lab_2026;
         CREATE TABLE bare(); CREATE VIEW seen AS TABLE pair; CREATE MATERIALIZED VIEW kept AS TABLE pair",
    ) else {
        return;
    };
    let shown = |found: &Found| {
        let flag = |set: bool, name| if set { name } else { "" };
        format!(
            "{} [{}] ({}) {}{}{}{} {}",
            found.name,
            found.key.join(","),
            found.columns.join(","),
            flag(found.partitioned, "partitioned "),
            flag(found.unlogged, "unlogged "),
            flag(found.full, "full "),
            flag(found.toastable, "toastable "),
            found.rows_estimate
        )
    };
    let found: Vec<String> = install::tables(&mut world.sql)
        .unwrap()
        .iter()
        .map(shown)
        .collect();
    assert_eq!(
        found,
        [
            "\"a.b\".\"Odd \"\"one\" [ward] (n,ward) toastable  0",
            "public.bare [] ()  0",
            "public.chosen [code] (id,code)  0",
            "public.lab [id,at] (id,at) partitioned  1000",
            "public.pair [b,a] (b,a,c)  0",
            "public.scratch [] (id) unlogged  0",
            "public.silent [] (id)  0",
            "public.whole [] (id) full  0",
        ]
    );
}

#[test]
fn about_how_many_rows_a_table_has_is_what_the_server_counted() {
    let Some(mut world) = World::new(
        "CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE old PARTITION OF lab FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
         CREATE TABLE new PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO lab SELECT n, '2025-02-03' FROM generate_series(1, 1000) n;
         INSERT INTO lab SELECT n, '2026-02-03' FROM generate_series(1, 200) n;
         CREATE TABLE \"it's\"(id int PRIMARY KEY);
         INSERT INTO \"it's\" VALUES (1), (2); ANALYZE;
         CREATE TABLE uncounted(id int PRIMARY KEY); INSERT INTO uncounted VALUES (1)",
    ) else {
        return;
    };
    world.run(&format!(
        "CREATE PUBLICATION {} FOR TABLE lab, \"it's\", uncounted WITH (publish_via_partition_root = true)",
        name()
    ));
    let mut snapshot = Snapshot::open(&world.server.config()).unwrap();
    let tables = snapshot.tables(&name()).unwrap();
    let about: Vec<_> = tables
        .iter()
        .map(|table| (table.name.as_str(), snapshot.about(table).unwrap()))
        .collect();
    let counted = [
        ("public.it's", 2),
        ("public.lab", 1200),
        ("public.uncounted", 0),
    ];
    assert_eq!(about, counted);
}

#[test]
fn each_transaction_says_once_who_is_acting() {
    let Some(mut world) = World::new(VISIT) else {
        return;
    };
    world.listen(&["visit"]);
    let mut clerk = as_clerk(&world.server);
    run(&mut clerk, "SET application_name = 'ward \"7\"'");
    let mut act = |statements: &str| run(&mut clerk, statements);
    act(
        "BEGIN; INSERT INTO visit VALUES (1, 'a'); UPDATE visit SET note = 'b'; DELETE FROM visit; COMMIT",
    );
    act("INSERT INTO visit VALUES (2, 'a')");
    let plain = r#"{"role" : "clerk", "app" : "ward \"7\"", "client" : "127.0.0.1", "person" : null, "purpose" : null}"#;
    assert_eq!(
        world.heard(),
        [
            format!(
                "[{plain}][visit: INSERT: id[integer]:1 note[text]:'a'][visit: UPDATE: id[integer]:1 note[text]:'b'][visit: DELETE: id[integer]:1]"
            ),
            format!("[{plain}][visit: INSERT: id[integer]:2 note[text]:'a']"),
        ]
    );

    // The rollback that undoes the message undoes the note that it was said.
    act("BEGIN; SAVEPOINT s; DELETE FROM visit; ROLLBACK TO s; TRUNCATE visit;
         SAVEPOINT s; INSERT INTO visit VALUES (1); ROLLBACK TO s; INSERT INTO visit VALUES (3); COMMIT");
    act(
        "DO $$ BEGIN BEGIN INSERT INTO visit VALUES (4); RAISE division_by_zero;
         EXCEPTION WHEN division_by_zero THEN END; INSERT INTO visit VALUES (5); END $$",
    );
    act("BEGIN; INSERT INTO visit VALUES (6); ROLLBACK");
    assert_eq!(
        world.heard(),
        [
            format!(
                "[{plain}][visit: TRUNCATE: (no-flags)][visit: INSERT: id[integer]:3 note[text]:null]"
            ),
            format!("[{plain}][visit: INSERT: id[integer]:5 note[text]:null]"),
        ]
    );

    // A person for one transaction, for the session, and for none.
    act(
        "BEGIN; SET LOCAL pitser.actor = 'EE1'; SET LOCAL pitser.purpose = 'TREAT'; DELETE FROM visit; COMMIT",
    );
    act("SET pitser.actor = 'EE2'; INSERT INTO visit VALUES (7)");
    act("BEGIN; SET LOCAL pitser.actor = ''; INSERT INTO visit VALUES (8); COMMIT");
    let said = world.heard();
    let person = |said: &str| {
        let (_, rest) = said.split_once("\"person\" : ").unwrap();
        rest.split_once('}').unwrap().0.to_owned()
    };
    let people: Vec<String> = said.iter().map(|said| person(said)).collect();
    assert_eq!(
        people,
        [
            r#""EE1", "purpose" : "TREAT""#,
            r#""EE2", "purpose" : null"#,
            r#"null, "purpose" : null"#
        ]
    );
}

#[test]
fn the_message_is_the_sessions_and_cannot_be_bent() {
    let Some(mut world) = World::new(&format!(
        "{VISIT}; CREATE ROLE \"O'Neil \"\"x\"\"\" LOGIN PASSWORD 'hunter'; GRANT clerk TO \"O'Neil \"\"x\"\"\";
         CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
         CREATE FUNCTION evil.host(inet) RETURNS text LANGUAGE sql AS 'SELECT ''10.0.0.1''';
         CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS 'SELECT ''forged'''"
    )) else {
        return;
    };
    world.listen(&["visit"]);
    let mut odd = Connection::open(&world.server.config_of("O'Neil%20%22x%22", "hunter")).unwrap();
    run(
        &mut odd,
        "SET ROLE clerk; SET search_path = evil, pg_catalog, public; SET standard_conforming_strings = off",
    );
    run(
        &mut odd,
        r"SET pitser.actor = E'\\''\x01'; INSERT INTO visit VALUES (1)",
    );
    run(
        &mut odd,
        "SELECT set_config('pitser.actor', repeat(E'\\x01', 100000), false); INSERT INTO visit VALUES (2)",
    );
    let said = world.heard();
    assert!(
        said[0].starts_with(r#"[{"role" : "O'Neil \"x\"", "app" : "pitser", "client" : "127.0.0.1", "person" : "\\'\u0001", "#),
        "{said:?}"
    );
    assert!(said[1].len() < 16_384, "{}", said[1].len());

    // Who says himself that all is said is silent: his change is unattributed.
    run(
        &mut odd,
        "BEGIN; SELECT set_config('pitser.said', pg_current_xact_id()::text, true); INSERT INTO visit VALUES (3); COMMIT",
    );
    assert_eq!(
        world.heard(),
        ["[visit: INSERT: id[integer]:3 note[text]:null]"]
    );

    // Nobody can speak in our name, or use our function elsewhere.
    let forged = odd.query("SELECT pg_catalog.pg_logical_emit_message(true, 'pitser', '{}')");
    assert!(
        matches!(forged, Err(PgError::Permission { .. })),
        "{forged:?}"
    );
    let called = odd.query("SELECT pitser.attribute()");
    assert!(
        matches!(called, Err(PgError::Permission { .. })),
        "{called:?}"
    );
}

#[test]
fn every_way_to_change_a_row_is_attributed() {
    let Some(mut world) = World::new(&format!(
        "{VISIT}; CREATE TABLE ward(id int PRIMARY KEY);
         CREATE TABLE bed(id int PRIMARY KEY, ward int REFERENCES ward ON DELETE CASCADE);
         INSERT INTO ward VALUES (1); INSERT INTO bed VALUES (1, 1);
         CREATE TABLE base(id int); CREATE TABLE derived(PRIMARY KEY (id)) INHERITS (base); INSERT INTO derived VALUES (1);
         CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_2026 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
         CREATE TABLE lab_2026_1 PARTITION OF lab_2026 FOR VALUES IN (1)"
    )) else {
        return;
    };
    world.listen(&["visit", "bed", "derived", "lab"]);
    let since_15 = world.server.since_15();
    let mut attributed = |statement: &str| {
        world.run(statement);
        let said = world.heard();
        assert_eq!(said.len(), 1, "{statement}: {said:?}");
        // `ward` itself is not guarded.
        let (before, _) = said[0]
            .split_once("[{\"role\" : \"postgres\"")
            .unwrap_or_else(|| panic!("{statement}: {said:?}"));
        assert!(
            before
                .replace("[ward: DELETE: id[integer]:1]", "")
                .is_empty(),
            "{statement}: {said:?}"
        );
        assert_eq!(
            said[0].matches("\"role\"").count(),
            1,
            "{statement}: {said:?}"
        );
    };
    attributed("DELETE FROM ward");
    attributed("UPDATE base SET id = 2");
    attributed("INSERT INTO lab VALUES (1, '2026-02-03')");
    attributed("UPDATE lab_2026 SET at = '2026-02-04'");
    attributed("DELETE FROM lab_2026_1");
    attributed("COPY visit FROM PROGRAM 'printf \"7\\tx\\n\"'");
    if since_15 {
        attributed(
            "MERGE INTO visit USING (VALUES (7)) v(id) ON visit.id = v.id WHEN MATCHED THEN DELETE",
        );
    }
    attributed("WITH new AS (INSERT INTO visit VALUES (8) RETURNING 1) SELECT FROM new");
    attributed(
        "SET session_replication_role = replica; UPDATE visit SET note = 'y'; SET session_replication_role = origin",
    );
    attributed("TRUNCATE ward CASCADE");
}

#[test]
fn installing_twice_does_nothing_and_removing_leaves_nothing() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY, note text); CREATE TABLE heap(id int);
         CREATE TABLE chosen(id int PRIMARY KEY, code int NOT NULL UNIQUE);
         ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code_key;
         CREATE TABLE silent(id int PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
         CREATE TABLE whole(id int); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE \"o'd\"\"d\\\"(id int PRIMARY KEY);
         CREATE TABLE lookup(id int PRIMARY KEY, name text, secret text);
         CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_2026 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         CREATE UNLOGGED TABLE scratch(id int); CREATE TABLE left_alone(id int); SELECT lo_create(0)",
    ) else {
        return;
    };
    let before = state(&mut world.sql);
    let names = [
        "visit",
        "heap",
        "chosen",
        "silent",
        "whole",
        "\"o'd\"\"d\\\"",
        "lookup",
        "lab",
        "scratch",
    ];
    let mut tables = world.wanted(&names);
    tables[1].full = true;
    let lists_columns = world.server.since_15();
    if lists_columns {
        tables[6].columns = Some(vec!["id".to_owned(), "name".to_owned()]);
    }
    let full = Request {
        full: true,
        ..request(&tables)
    };
    let planned = plan(&mut world.sql, &full).unwrap();
    assert_eq!(state(&mut world.sql), before, "a plan changes nothing");
    assert_eq!(install::install(&mut world.sql, &full).unwrap(), planned);
    assert!(planned.statements.iter().all(|it| !it.ends_with(';')));
    let mut uncovered = vec![
        "table public.left_alone",
        "table public.lookup: columns secret",
        "table public.scratch: it is unlogged",
        "large objects (the database has some)",
        "reads that no application reports",
        "schema changes as they happen: no event trigger is installed",
    ];
    if !lists_columns {
        uncovered.remove(1);
    }
    assert_eq!(planned.uncovered, uncovered);
    let again = plan(&mut world.sql, &full).unwrap();
    assert_eq!(again.statements, [""; 0]);
    assert_eq!(again.uncovered, planned.uncovered);

    let identities = world
        .sql
        .query(
            "SELECT concat_ws(' ', relname, relreplident) FROM pg_class
             WHERE relkind IN ('r', 'p') AND oid >= 16384 AND relreplident <> 'd' ORDER BY 1",
        )
        .unwrap();
    let mut full_ones = vec![
        "chosen f",
        "heap f",
        "lab f",
        "lab_2026 f",
        "lookup f",
        "o'd\"d\\ f",
        "silent f",
        "visit f",
        "whole f",
    ];
    if lists_columns {
        full_ones.remove(4);
        let columns = world
            .sql
            .query("SELECT attnames::text FROM pg_publication_tables WHERE tablename = 'lookup'")
            .unwrap();
        assert_eq!(column(&columns), ["{id,name}"]);
    }
    assert_eq!(column(&identities), full_ones);

    // What somebody broke is mended, and nothing else is touched.
    let emitter = world.server.emitter("bytea");
    world.run(&format!(
        "ALTER TABLE visit DISABLE TRIGGER pitser_attribution; DROP TRIGGER pitser_attribution ON heap;
         GRANT EXECUTE ON FUNCTION {emitter} TO PUBLIC;
         ALTER PUBLICATION pitser SET (publish = 'insert'); ALTER PUBLICATION pitser DROP TABLE visit;
         ALTER FUNCTION pitser.attribute() RESET search_path;
         DROP TRIGGER pitser_attribution ON silent;
         CREATE TRIGGER pitser_attribution BEFORE INSERT ON silent EXECUTE FUNCTION pitser.attribute();
         ALTER TABLE silent ENABLE ALWAYS TRIGGER pitser_attribution",
    ));
    let mended = install::install(&mut world.sql, &full).unwrap().statements;
    let firsts: Vec<String> = mended
        .iter()
        .map(|it| it.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        firsts,
        [
            "CREATE OR REPLACE",
            "REVOKE ALL ON",
            "CREATE OR REPLACE",
            "ALTER TABLE ONLY",
            "CREATE OR REPLACE",
            "ALTER TABLE ONLY",
            "ALTER TABLE ONLY",
            "INSERT INTO pitser.installed(kind,",
            "REVOKE EXECUTE ON",
            "ALTER PUBLICATION \"pitser\"",
            "ALTER PUBLICATION \"pitser\"",
        ],
        "{mended:#?}"
    );
    assert_eq!(plan(&mut world.sql, &full).unwrap().statements, [""; 0]);

    // Fewer tables: what is no longer guarded is as it was.
    let fewer = Request {
        tables: &tables[6..],
        ..full
    };
    install::install(&mut world.sql, &fewer).unwrap();
    assert_eq!(plan(&mut world.sql, &fewer).unwrap().statements, [""; 0]);
    let now = state(&mut world.sql);
    for line in before
        .iter()
        .filter(|line| line.starts_with("class") && !line.contains("lab"))
        .filter(|line| lists_columns || !line.contains("lookup"))
    {
        assert!(now.contains(line), "{line} in {now:?}");
    }

    slot::create(&mut world.server.replication(), &name()).unwrap();
    let planned = plan_removal(&mut world.sql, &name(), &name()).unwrap();
    assert!(
        planned[0].contains("pg_drop_replication_slot('pitser')"),
        "{planned:?}"
    );
    // The replication session may still be on its way out.
    let done = loop {
        match uninstall(&mut world.sql, &name(), &name()) {
            Err(PgError::SlotBusy { .. }) => {}
            outcome => break outcome.unwrap(),
        }
    };
    assert_eq!(done, planned);
    assert_eq!(state(&mut world.sql), before);
    assert_eq!(
        uninstall(&mut world.sql, &name(), &name()).unwrap(),
        [""; 0]
    );
}

#[test]
fn removal_works_when_parts_are_missing() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE gone(id int PRIMARY KEY);
         CREATE TABLE chosen(id int PRIMARY KEY, code int NOT NULL UNIQUE);
         ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code_key",
    ) else {
        return;
    };
    let names = ["visit", "gone", "chosen"];
    for breakage in [
        "DROP PUBLICATION pitser",
        "DROP TRIGGER pitser_attribution ON visit",
        "DROP TABLE pitser.installed",
        "DROP FUNCTION pitser.attribute() CASCADE",
        "DROP SCHEMA pitser CASCADE",
        "CREATE TABLE pitser.theirs(id int)",
        "ALTER TABLE chosen DROP code",
        "DROP TABLE gone",
    ] {
        let there = |name: &&str| *name != "gone" || breakage != "DROP TABLE gone";
        let names: Vec<&str> = names.iter().copied().filter(there).collect();
        let tables = world.wanted(&names);
        let full = Request {
            full: true,
            ..request(&tables)
        };
        install::install(&mut world.sql, &full).unwrap();
        world.run(breakage);
        uninstall(&mut world.sql, &name(), &name())
            .unwrap_or_else(|error| panic!("{breakage}: {error}"));
        let left = state(&mut world.sql);
        let ours = |line: &&String| line.contains("pitser") && !line.contains("theirs");
        let ours: Vec<&String> = left.iter().filter(ours).collect();
        match breakage {
            "CREATE TABLE pitser.theirs(id int)" => {
                assert_eq!(ours, ["schema pitser"]);
                world.run("DROP SCHEMA pitser CASCADE");
            }
            _ => assert!(ours.is_empty(), "{breakage}: {ours:?}"),
        }
    }
}

#[test]
fn two_guardians_share_what_is_installed() {
    let Some(mut world) =
        World::new("CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE bed(id int PRIMARY KEY)")
    else {
        return;
    };
    let before = state(&mut world.sql);
    let second = Name::new("second").unwrap();
    let (ours, theirs) = (world.wanted(&["visit"]), world.wanted(&["visit", "bed"]));
    let ours = request(&ours);
    let theirs = Request {
        publication: &second,
        slot: &second,
        full: true,
        attribution: true,
        tables: &theirs,
    };
    for _ in 0..2 {
        install::install(&mut world.sql, &ours).unwrap();
        install::install(&mut world.sql, &theirs).unwrap();
    }
    assert_eq!(plan(&mut world.sql, &ours).unwrap().statements, [""; 0]);
    assert_eq!(plan(&mut world.sql, &theirs).unwrap().statements, [""; 0]);

    uninstall(&mut world.sql, &second, &second).unwrap();
    assert_eq!(plan(&mut world.sql, &ours).unwrap().statements, [""; 0]);
    let triggers = world
        .sql
        .query("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'pitser_attribution'")
        .unwrap();
    assert_eq!(column(&triggers), ["visit"]);
    uninstall(&mut world.sql, &name(), &name()).unwrap();
    assert_eq!(state(&mut world.sql), before);
}

#[test]
fn without_attribution_there_is_no_trigger_but_another_guardians() {
    let Some(mut world) =
        World::new("CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE bed(id int PRIMARY KEY)")
    else {
        return;
    };
    let before = state(&mut world.sql);
    let second = Name::new("second").unwrap();
    let (ours, theirs) = (world.wanted(&["visit", "bed"]), world.wanted(&["bed"]));
    let on = request(&ours);
    let off = Request {
        attribution: false,
        ..on
    };
    let theirs = Request {
        publication: &second,
        slot: &second,
        ..request(&theirs)
    };
    let triggers = |world: &mut World| {
        let rows = world
            .sql
            .query(
                "SELECT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
            )
            .unwrap();
        column(&rows)
    };
    let functions = |world: &mut World| {
        let asked = "SELECT proname FROM pg_proc WHERE pronamespace = 'pitser'::regnamespace";
        column(&world.sql.query(asked).unwrap())
    };
    let install = |world: &mut World, request: &Request<'_>| {
        let done = install::install(&mut world.sql, request).unwrap();
        assert_eq!(plan(&mut world.sql, request).unwrap().statements, [""; 0]);
        done
    };
    let untold = "who makes changes: attribution is off".to_owned();

    let done = install(&mut world, &off);
    assert!(done.uncovered.contains(&untold), "{done:?}");
    assert_eq!(triggers(&mut world), [""; 0]);
    assert_eq!(functions(&mut world), [""; 0]);

    // Somebody else's triggers are not ours to take away.
    install(&mut world, &theirs);
    install(&mut world, &off);
    assert_eq!(triggers(&mut world), ["bed"]);

    let done = install(&mut world, &on);
    assert!(!done.uncovered.contains(&untold), "{done:?}");
    assert_eq!(triggers(&mut world), ["bed", "visit"]);
    install(&mut world, &off);
    assert_eq!(triggers(&mut world), ["bed"]);
    uninstall(&mut world.sql, &second, &second).unwrap();
    assert_eq!(triggers(&mut world), [""; 0]);
    assert_eq!(functions(&mut world), [""; 0]);
    assert_eq!(plan(&mut world.sql, &off).unwrap().statements, [""; 0]);

    // Nothing is left, whichever way it stands.
    install(&mut world, &on);
    install(&mut world, &off);
    uninstall(&mut world.sql, &name(), &name()).unwrap();
    assert_eq!(state(&mut world.sql), before);
}

#[test]
fn what_cannot_be_guarded_is_refused_before_anything_is_changed() {
    let Some(mut world) = World::new(&format!(
        "{VISIT}; CREATE TABLE heap(id int); CREATE TABLE silent(id int PRIMARY KEY);
         ALTER TABLE silent REPLICA IDENTITY NOTHING;
         CREATE TABLE late(id int PRIMARY KEY DEFERRABLE);
         CREATE TABLE lab(id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE lab_2026 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         ALTER TABLE lab_2026 REPLICA IDENTITY NOTHING;
         CREATE TABLE lookup(id int PRIMARY KEY, name text, twice int GENERATED ALWAYS AS (id * 2) STORED);
         CREATE TABLE twice(id int, more int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, more));
         CREATE TABLE ward(id int PRIMARY KEY, name text) PARTITION BY LIST (id);
         CREATE TABLE ward_1 PARTITION OF ward FOR VALUES IN (1); ALTER TABLE ward_1 REPLICA IDENTITY FULL;
         CREATE ROLE sister LOGIN REPLICATION PASSWORD 'hunter'; CREATE ROLE \"the owner\";
         ALTER TABLE visit OWNER TO \"the owner\""
    )) else {
        return;
    };
    let before = state(&mut world.sql);
    let refused = |world: &mut World, tables: &[Wanted], words: &[&str]| {
        says(
            install::install(&mut world.sql, &request(tables)),
            false,
            words,
        );
        assert_eq!(state(&mut world.sql), before);
    };
    let keyless = world.wanted(&["visit", "heap", "silent", "late", "lab"]);
    refused(
        &mut world,
        &keyless,
        &[
            "public.heap, public.lab_2026, public.late, public.silent",
            "primary key",
            "keyless = \"full\"",
        ],
    );
    let lists_columns = world.server.since_15();
    let listing = |words: [&'static str; 2]| match lists_columns {
        true => words,
        false => ["some of its columns", "PostgreSQL 15"],
    };
    let mut lookup = world.wanted(&["lookup"]);
    for (columns, words) in [
        (vec!["name"], ["\"id\"", "key"]),
        (vec!["id", "nume"], ["no column", "\"nume\""]),
        (vec!["id", "twice"], ["no column", "\"twice\""]),
    ] {
        lookup[0].columns = Some(columns.into_iter().map(str::to_owned).collect());
        refused(&mut world, &lookup, &listing(words));
    }
    lookup[0].columns = Some(vec!["id".to_owned()]);
    lookup[0].full = true;
    refused(
        &mut world,
        &lookup,
        &listing(["public.lookup", "all columns"]),
    );
    let mut ward = world.wanted(&["ward"]);
    ward[0].columns = Some(vec!["id".to_owned()]);
    refused(
        &mut world,
        &ward,
        &listing(["public.ward_1", "all columns"]),
    );
    // From 18 on the application's updates would be.
    if world.server.version() >= 18 {
        let mut computed = world.wanted(&["lookup"]);
        computed[0].full = true;
        let words = [
            "public.lookup",
            "generated columns",
            "REPLICA IDENTITY FULL",
        ];
        refused(&mut world, &computed, &words);
    }
    let twice = world.wanted(&["twice"]);
    refused(&mut world, &twice, &["public.twice", "generated"]);
    refused(&mut world, &[], &["no table to guard"]);
    let mut gone = world.wanted(&["visit"]);
    gone[0].found.table = "vanished".to_owned();
    refused(&mut world, &gone, &["there is no table"]);

    let mut sister = Connection::open(&world.server.config_of("sister", "hunter")).unwrap();
    let visit = world.wanted(&["visit"]);
    let words = [
        "\"sister\" does not own public.visit",
        "GRANT \"the owner\" TO \"sister\"",
    ];
    says(
        install::install(&mut sister, &request(&visit)),
        false,
        &words,
    );
    world.run("GRANT \"the owner\" TO sister");
    let words = [
        "may create nothing",
        "GRANT CREATE ON DATABASE \"postgres\" TO \"sister\"",
    ];
    says(
        install::install(&mut sister, &request(&visit)),
        false,
        &words,
    );
    assert_eq!(state(&mut world.sql), before);

    // Whoever owns the schema could take everything away again.
    world.run("CREATE SCHEMA pitser AUTHORIZATION sister");
    says(
        plan(&mut world.sql, &request(&visit)),
        false,
        &["schema pitser", "\"sister\""],
    );
    says(
        uninstall(&mut world.sql, &name(), &name()),
        false,
        &["schema pitser"],
    );
}

/// The stream tells of a partition's rows by the key that the root has, and the log has them
/// by the partition's.
#[test]
fn a_partition_with_another_replica_identity_than_its_root() {
    let Some(mut world) = World::new(
        "CREATE TABLE bed(id int, at int, code int NOT NULL, PRIMARY KEY (id, at), UNIQUE (code, at))
           PARTITION BY LIST (at);
         CREATE TABLE bed_1 PARTITION OF bed FOR VALUES IN (1);
         CREATE TABLE bed_2 PARTITION OF bed DEFAULT PARTITION BY LIST (at);
         CREATE TABLE bed_3 PARTITION OF bed_2 FOR VALUES IN (3);
         ALTER TABLE bed_3 REPLICA IDENTITY USING INDEX bed_3_code_at_key",
    ) else {
        return;
    };
    let tables = world.wanted(&["bed"]);
    let refused = |world: &mut World, name: &str| {
        let asked = plan(&mut world.sql, &request(&tables));
        says(
            asked,
            false,
            &[name, "public.bed", "(at, code)", "(at, id)"],
        );
    };
    refused(&mut world, "public.bed_3");
    world.run("ALTER TABLE bed_3 REPLICA IDENTITY FULL");
    plan(&mut world.sql, &request(&tables)).unwrap();
    world.run("ALTER TABLE bed REPLICA IDENTITY USING INDEX bed_code_at_key");
    let tables = world.wanted(&["bed"]);
    let asked = plan(&mut world.sql, &request(&tables));
    says(asked, false, &["public.bed_1", "(at, id)", "(at, code)"]);
    world.run("ALTER TABLE bed_1 REPLICA IDENTITY USING INDEX bed_1_code_at_key");
    plan(&mut world.sql, &request(&tables)).unwrap();
    // Under one that says all, partitions are to say all too.
    world.run("ALTER TABLE bed REPLICA IDENTITY FULL");
    let tables = world.wanted(&["bed"]);
    let full = plan(&mut world.sql, &request(&tables)).unwrap().statements;
    let full: Vec<&String> = full
        .iter()
        .filter(|it| it.contains("IDENTITY FULL"))
        .collect();
    assert_eq!(full.len(), 2, "bed_1 and bed_2: {full:?}");
}

#[test]
fn a_role_that_is_no_superuser_says_what_it_could_not_close() {
    let Some(mut world) = World::new(&format!(
        "{VISIT}; CREATE ROLE sister LOGIN REPLICATION PASSWORD 'hunter'; ALTER TABLE visit OWNER TO sister;
         GRANT CREATE ON DATABASE postgres TO sister"
    )) else {
        return;
    };
    let before = state(&mut world.sql);
    let mut sister = Connection::open(&world.server.config_of("sister", "hunter")).unwrap();
    let tables = wanted(&mut sister, &["visit"]);
    let open = "logical messages with our prefix by any login".to_owned();

    // Revoked by somebody, and not granted to us: every write would fail.
    let emitter = world.server.emitter("text");
    let revoke = format!("EXECUTE ON FUNCTION {emitter} ");
    world.run(&format!("REVOKE {revoke} FROM PUBLIC"));
    let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.{emitter} TO \"sister\"");
    says(
        install::install(&mut sister, &request(&tables)),
        false,
        &["would fail", &grant],
    );
    world.run(&format!("GRANT {revoke} TO PUBLIC"));

    let plan = install::install(&mut sister, &request(&tables)).unwrap();
    assert!(plan.uncovered.contains(&open));
    let note = plan
        .notes
        .iter()
        .find(|note| note.contains("REVOKE"))
        .unwrap();
    let (_, statements) = note.split_once("\"postgres\": ").unwrap();
    world.run(statements);
    let plan = install::plan(&mut sister, &request(&tables)).unwrap();
    assert_eq!(plan.statements, [""; 0]);
    assert!(!plan.uncovered.contains(&open), "{:?}", plan.uncovered);

    world.run("SELECT pg_create_logical_replication_slot('test', 'test_decoding')");
    run(&mut as_clerk(&world.server), "INSERT INTO visit VALUES (1)");
    assert!(world.heard()[0].starts_with("[{\"role\" : \"clerk\""));
    world.run("SELECT pg_drop_replication_slot('test')");

    uninstall(&mut sister, &name(), &name()).unwrap();
    let left: Vec<String> = state(&mut world.sql);
    let but_emit = |state: &[String]| -> Vec<String> {
        state
            .iter()
            .filter(|line| !line.starts_with("emit"))
            .cloned()
            .collect()
    };
    assert_eq!(but_emit(&left), but_emit(&before));
}

#[test]
fn a_busy_table_is_named_and_nobody_is_made_a_victim() {
    let Some(mut world) = World::new(&format!("{VISIT}; CREATE TABLE bed(id int PRIMARY KEY)"))
    else {
        return;
    };
    let before = state(&mut world.sql);
    let tables = world.wanted(&["bed", "visit"]);
    let mut busy = world.server.sql();
    run(&mut busy, "BEGIN; INSERT INTO visit VALUES (1)");
    let refused = install::install(&mut world.sql, &request(&tables));
    says(
        refused,
        true,
        &["public.visit", "nothing was changed", "try again"],
    );
    assert_eq!(state(&mut world.sql), before);

    // We have `bed` and want `visit`, they have `visit` and want `bed`: one of
    // the two would be shot. We let go of `bed` before we wait.
    let config = world.server.config();
    let theirs = tables.clone();
    let installing = std::thread::spawn(move || {
        let mut sql = Connection::open(&config).unwrap();
        install::install(&mut sql, &request(&theirs)).map(|_| ())
    });
    let waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'visit'::regclass";
    while world.sql.query(waits).unwrap().is_empty() {
        assert!(!installing.is_finished(), "nobody waits");
    }
    run(&mut busy, "INSERT INTO bed VALUES (1); COMMIT");
    installing.join().unwrap().unwrap();
    assert_eq!(
        plan(&mut world.sql, &request(&tables)).unwrap().statements,
        [""; 0]
    );
}

/// Its changes would be decoded by a catalogue in which the table was not published yet.
#[test]
fn a_table_that_is_added_without_attribution_waits_for_who_writes_to_it() {
    let Some(mut world) = World::new(
        "CREATE TABLE visit(id int PRIMARY KEY); CREATE TABLE bed(id int PRIMARY KEY);
         CREATE TABLE lab(id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE lab_1 PARTITION OF lab FOR VALUES FROM (0) TO (10)",
    ) else {
        return;
    };
    let (before, after) = (
        world.wanted(&["visit"]),
        world.wanted(&["visit", "bed", "lab"]),
    );
    let off = |tables| Request {
        attribution: false,
        ..request(tables)
    };
    install::install(&mut world.sql, &off(&before)).unwrap();
    let mut replication = world.server.replication();
    let made = slot::create(&mut replication, &name()).unwrap();
    let start = boundary(made.consistent_point());
    drop(made);
    let mut busy = world.server.sql();
    // A partition is written to by its own name, and its root not locked.
    for (table, row) in [("bed", 1), ("lab_1", 2)] {
        run(
            &mut busy,
            &format!("BEGIN; INSERT INTO {table} VALUES ({row}); INSERT INTO visit VALUES ({row})"),
        );
        let refused = install::install(&mut world.sql, &off(&after));
        says(refused, true, &[&format!("public.{table}"), "try again"]);
        run(&mut busy, "COMMIT");
    }
    // Who writes to a table that stays as it was is not waited for.
    run(&mut busy, "BEGIN; INSERT INTO visit VALUES (3)");
    install::install(&mut world.sql, &off(&after)).unwrap();
    run(
        &mut busy,
        "INSERT INTO bed VALUES (3); INSERT INTO lab VALUES (3); COMMIT",
    );
    let mut stream = Stream::start(replication, &name(), &name(), start).unwrap();
    let told: Vec<usize> = transactions(&mut stream, 3)
        .iter()
        .map(|(events, _)| events.len())
        .collect();
    assert_eq!(told, [1, 1, 3]);
}

#[test]
fn the_stream_and_the_baseline_agree_with_what_was_installed() {
    let Some(server) = Server::start(&[], &[]) else {
        return;
    };
    server
        .sql()
        .query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        .unwrap();
    let mut config = server.config();
    config.database = "latin".to_owned();
    let mut sql = Connection::open_application(&config).unwrap();
    run(
        &mut sql,
        "CREATE TABLE visit(id int PRIMARY KEY, note text, secret text); INSERT INTO visit VALUES (1, 'a', 's')",
    );
    let mut tables = wanted(&mut sql, &["visit"]);
    if server.since_15() {
        tables[0].columns = Some(vec!["id".to_owned(), "note".to_owned()]);
    }
    install::install(&mut sql, &request(&tables)).unwrap();
    let mut replication = Connection::open_replication(&config).unwrap();
    let made = slot::create(&mut replication, &name()).unwrap();
    let start = boundary(made.consistent_point());
    drop(made);
    run(
        &mut sql,
        "SET pitser.actor = 'Jõe'; UPDATE visit SET note = 'õ', secret = 't'",
    );
    let mut stream = Stream::start(replication, &name(), &name(), start).unwrap();
    let (events, _) = transactions(&mut stream, 1).remove(0);
    let changes: Vec<Change> = events
        .into_iter()
        .map(|event| match event {
            Captured::Change(change) => change,
            other => panic!("{other:?}"),
        })
        .collect();
    let told = match server.since_15() {
        true => "Update 1 - -> 1,õ",
        false => "Update 1 - -> 1,õ,t",
    };
    assert_eq!(story(&changes), [told]);
    let actor = changes[0].actor.as_ref().unwrap();
    assert_eq!(actor.role.as_deref(), Some("postgres"));
    assert_eq!(actor.person.as_ref().unwrap().expose(), "Jõe");
    let mut snapshot = Snapshot::open(&config).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let mut rows = Vec::new();
    snapshot
        .scan(&table, 10, |chunk| {
            rows.extend(chunk);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(show(&rows[0].1.cells[1]), "õ");
}

#[test]
fn a_server_that_cannot_be_guarded_is_told_apart() {
    let Some(mut world) = World::new("CREATE ROLE clerk LOGIN PASSWORD 'hunter'") else {
        return;
    };
    check(&mut world.sql, &name()).unwrap();
    let words = [
        "\"clerk\" may not replicate",
        "ALTER ROLE \"clerk\" REPLICATION",
    ];
    says(check(&mut as_clerk(&world.server), &name()), false, &words);
    world.run("ALTER ROLE clerk REPLICATION");
    check(&mut as_clerk(&world.server), &name()).unwrap();

    let found = identity(&mut world.sql).unwrap();
    let system = world
        .sql
        .query("SELECT system_identifier FROM pg_control_system()")
        .unwrap();
    assert_eq!(found.system.to_string(), column(&system)[0]);
    assert_eq!(
        (found.timeline, found.database_name.as_str()),
        (1, "postgres")
    );
    assert!(found.version >= 140_000 && found.database > 0, "{found:?}");
    world.run("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    let mut clerk = as_clerk(&world.server);
    says(identity(&mut clerk), false, &["pg_control_system"]);
    let clerk = world.server.config_of("clerk", "hunter");
    let mut replication = Connection::open_replication(&clerk).unwrap();
    assert_eq!(identity(&mut replication).unwrap(), found);

    let Some(server) = Server::start(&["max_replication_slots = 1"], &[]) else {
        return;
    };
    let other = Name::new("other").unwrap();
    slot::create(&mut server.replication(), &name()).unwrap();
    check(&mut server.sql(), &name()).unwrap();
    says(
        check(&mut server.sql(), &other),
        false,
        &["max_replication_slots"],
    );
    is_impatient();
    let Some(server) = Server::start(&["wal_level = replica"], &[]) else {
        return;
    };
    says(
        check(&mut server.sql(), &name()),
        false,
        &["is replica", "wal_level = logical"],
    );
}

/// A server that does not wait for guardians for ever.
fn is_impatient() {
    let patient: &[&str] = &["max_slot_wal_keep_size = 3GB"];
    let idle: &[&str] = &[patient[0], "idle_replication_slot_timeout = 2d"];
    let mut told = Vec::new();
    for settings in [patient, idle] {
        let Some(server) = Server::start(settings, &[]) else {
            return;
        };
        let mut sql = server.sql();
        run(&mut sql, "CREATE TABLE visit(id int PRIMARY KEY)");
        let tables = wanted(&mut sql, &["visit"]);
        told.push(install::plan(&mut sql, &request(&tables)).unwrap().notes);
        if server.version() < 18 {
            break;
        }
    }
    let says = |notes: &[String], words: &str| notes.iter().any(|note| note.contains(words));
    for notes in &told {
        assert!(
            says(notes, "while 3GB of log are written (max_slot"),
            "{notes:?}"
        );
        assert!(says(notes, "is then missing (CAP-01)"), "{notes:?}");
    }
    for (notes, is_idle) in told.iter().zip([false, true]) {
        assert_eq!(says(notes, "away for 2d (idle_"), is_idle, "{notes:?}");
    }
}
