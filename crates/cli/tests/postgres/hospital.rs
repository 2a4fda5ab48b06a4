//! A hospital system as many are: a table of users, columns that say who wrote
//! a row, a log of its own, one database role for everybody.

use std::fs;

use pitser_capture::postgres::{Config, Connection};
use pitser_evidence::line::{Binding, Line, Op, Patient};
use serde_json::Value;

use crate::common::copy_folder::copy_folder;
use crate::world::World;

/// Owned by the application's role `ehr`. `eve` may write too; so may the superuser.
pub(crate) const SCHEMA: &str = "
    CREATE ROLE ehr LOGIN PASSWORD 'p@ss/w:rd õ';
    CREATE ROLE eve LOGIN PASSWORD 'p@ss/w:rd õ';
    GRANT CREATE, USAGE ON SCHEMA public TO ehr;
    SET ROLE ehr;
    CREATE TABLE staff (id int PRIMARY KEY, login text NOT NULL, password text,
        create_uid int, create_date timestamptz, write_uid int, write_date timestamptz);
    CREATE TABLE patient (id int PRIMARY KEY, name text, allergies text, letter text,
        create_uid int, create_date timestamptz, write_uid int, write_date timestamptz);
    CREATE TABLE visit (id int PRIMARY KEY, patient int REFERENCES patient, note text,
        create_uid int, create_date timestamptz, write_uid int, write_date timestamptz);
    CREATE TABLE result (id int PRIMARY KEY, visit int REFERENCES visit ON DELETE CASCADE, value numeric,
        create_uid int, create_date timestamptz, write_uid int, write_date timestamptz);
    CREATE TABLE journal (id serial PRIMARY KEY, create_uid int, what text);
    CREATE TABLE visit_history (id int, note text);
    INSERT INTO staff VALUES (1, 'admin', 'x', 1, now()), (2, 'dr.tamm', 'secret-hash', 1, now());
    INSERT INTO patient VALUES (1, 'Jüri Õun', 'none', repeat('long ', 2000), 1, now()), (2, 'Mari Maasikas', 'latex', '', 1, now());
    INSERT INTO visit VALUES (10, 1, 'cough', 2, now()), (20, 2, 'fever', 2, now());
    INSERT INTO result VALUES (100, 10, 6.80, 2, now()), (200, 20, 7.1, 2, now());
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO eve;
    RESET ROLE;";

pub(crate) const SOURCE: &str = r#"
tables  = ["public.*"]
exclude = ["public.*_history", "public.staff", "public.journal"]
[source.patient]
"public.patient" = "id"
"public.visit"   = "patient -> public.patient.id"
"public.result"  = "visit -> public.visit.id"
[source.actor]
"*" = "write_uid -> public.staff.login"
"#;

/// What a named person does through the application.
pub(crate) fn stamp(person: u32) -> String {
    format!("write_uid = {person}, write_date = clock_timestamp()")
}

impl World {
    /// A guarded hospital.
    pub(crate) fn hospital(guard: &str, source: &str) -> Option<Self> {
        let mut world = Self::new("clinic")?;
        world.psql("postgres", SCHEMA);
        world.configure(guard, source);
        world.run("guard init").exits(0).says("tables guarded");
        world.guard();
        Some(world)
    }

    /// The last line about a record, in the trail and with its person.
    fn last(&self, table: &str, key: &str) -> (Line, Value) {
        let said = self.run(&format!("history {table} {key} --json"));
        let lines = said.json()["lines"].take();
        let mut lines = lines.as_array().unwrap().iter();
        let last = lines.rfind(|e| e["line"]["op"] != "finding");
        let last = last.unwrap().clone();
        let bytes = serde_json::to_vec(&last["line"]).unwrap();
        (Line::decode(&bytes).unwrap(), last["person"].clone())
    }
}

/// With constraints that are deferred, or none, rows may come in any order.
#[test]
fn a_row_that_comes_before_its_patient_is_on_the_patients_list() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.psql(
        "postgres",
        "SET session_replication_role = replica;
         BEGIN;
         INSERT INTO result VALUES (300, 30, 5.0, 2, now());
         INSERT INTO visit VALUES (30, 3, 'cough', 2, now());
         INSERT INTO patient VALUES (3, 'Tiiu Kask', 'none', '', 2, now());
         INSERT INTO result VALUES (301, 30, 5.1, 2, now());
         COMMIT;
         BEGIN;
         INSERT INTO result VALUES (302, 31, 5.2, 2, now());
         INSERT INTO visit VALUES (31, 1, 'not hers', 2, now());
         UPDATE visit SET patient = 3 WHERE id = 31;
         COMMIT",
    );
    world.settle();
    let said = world.run("history --patient 3 --json").json();
    let lines = said["lines"].as_array().unwrap().iter();
    let mut tables: Vec<String> = lines
        .filter(|entry| entry["line"]["op"] == "create")
        .map(|entry| entry["line"]["table"].as_str().unwrap().to_owned())
        .collect();
    tables.sort_unstable();
    let results = ["public.result"; 3];
    let others = ["public.patient", "public.visit"];
    assert_eq!(tables, [&others[..1], &results[..], &others[1..]].concat());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// A hospital whose vault was put back from a backup: it knows neither patient 3 nor her
/// visits 30 and 31.
fn with_an_earlier_vault() -> Option<World> {
    let mut world = World::hospital("scan_every_s = 0", SOURCE)?;
    world.stop_guardian();
    let (vault, old) = (world.layout().vault(), world.dir.path().join("old"));
    copy_folder(&vault, &old);
    world.guard();
    world.psql(
        "postgres",
        "INSERT INTO patient VALUES (3, 'Tiiu Kask', 'none', '', 2, now());
         INSERT INTO visit VALUES (30, 3, 'cough', 2, now()), (31, 3, 'fever', 2, now())",
    );
    world.settle();
    world.stop_guardian();
    fs::remove_dir_all(&vault).unwrap();
    copy_folder(&old, &vault);
    world.guard();
    Some(world)
}

/// Whose a row is that leads to one which the vault has lost, the trail says by pseudonym.
#[test]
fn a_row_that_leads_to_one_that_the_vault_lost_is_on_the_patients_list() {
    let Some(mut world) = with_an_earlier_vault() else {
        return;
    };
    world.psql(
        "postgres",
        "INSERT INTO result VALUES (300, 30, 5.0, 2, now());
         UPDATE visit SET note = 'high fever' WHERE id = 31;
         UPDATE patient SET allergies = 'latex' WHERE id = 3;
         INSERT INTO result VALUES (301, 31, 5.1, 2, now());
         UPDATE visit SET note = 'cured' WHERE id = 30;
         UPDATE visit SET patient = NULL WHERE id = 31;
         UPDATE result SET value = 5.2 WHERE id = 301",
    );
    world.settle();
    world.stop_guardian();
    let lines = world.lines();
    let tiiu = lines.iter().rfind(|line| line.op == Op::Create);
    let tiiu = tiiu.unwrap().patient;
    assert!(matches!(tiiu, Some(Patient::Pseudonym(_))));
    let since = lines
        .iter()
        .rposition(|line| line.row.is_some() && line.op == Op::Baseline);
    let since = lines[since.unwrap()..].iter();
    let told: Vec<_> = since
        .filter(|line| line.table.is_some() && line.tx.is_some())
        .map(|line| (line.op, line.patient))
        .collect();
    let expected = [
        // Before the vault was put back.
        (Op::Create, tiiu),
        (Op::Create, tiiu),
        (Op::Create, tiiu),
        (Op::Create, tiiu),
        (Op::Update, tiiu),
        (Op::Update, tiiu),
        (Op::Create, tiiu),
        (Op::Update, tiiu),
        // The way ends: nobody's.
        (Op::Relink, tiiu),
        (Op::Update, None),
        (Op::Relink, tiiu),
        (Op::Update, None),
    ];
    assert_eq!(told, expected);
    world.run("trail verify").exits(0);
}

/// What it does not know of patients who came since, the trail does: their lists go on.
#[test]
fn a_vault_that_was_put_back_costs_no_list_a_line() {
    let Some(mut world) = with_an_earlier_vault() else {
        return;
    };
    // Of a deleted row the server tells the key alone.
    world.psql(
        "postgres",
        "DELETE FROM visit WHERE id = 30; UPDATE visit SET patient = 1 WHERE id = 31",
    );
    world.settle();
    world.stop_guardian();
    let lines = world.lines();
    let of_visits = lines
        .iter()
        .filter(|line| line.table.as_deref() == Some("public.visit"));
    let of = |op: Op| of_visits.clone().filter(move |line| line.op == op);
    let created: Vec<_> = of(Op::Create).map(|line| line.patient).collect();
    assert!(created[0].is_some() && created[0] == created[1]);
    assert_eq!(of(Op::Delete).next().unwrap().patient, created[0]);
    assert_eq!(of(Op::Relink).next().unwrap().patient, created[0]);
    world.run("trail verify").exits(0);
}

#[test]
fn everybody_is_told_apart() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let columns = |line: &Line| line.columns.clone().unwrap().join(",");
    let actor = |line: &Line| line.actor.clone().unwrap();

    // The application, as a named person.
    let by_tamm = stamp(2);
    world.psql_as(
        "ehr",
        "ehr",
        &format!("UPDATE patient SET allergies = 'penicillin', {by_tamm} WHERE id = 1"),
    );
    world.psql_as(
        "ehr",
        "ehr",
        "INSERT INTO visit VALUES (11, 1, 'check', 2, now())",
    );
    world.psql_as("ehr", "ehr", &format!("BEGIN; UPDATE visit SET note = 'x', {by_tamm} WHERE id = 10; DELETE FROM result WHERE id = 100; COMMIT"));
    // A person whom the application names to the database.
    world.psql_as("ehr", "ehr", "BEGIN; SET LOCAL pitser.actor = 'EE38001085718'; SET LOCAL pitser.purpose = 'TREAT'; UPDATE visit SET note = 'better' WHERE id = 20; COMMIT");
    world.settle();
    let (line, person) = world.last("public.patient", "1");
    assert_eq!(
        (person, columns(&line)),
        ("dr.tamm".into(), "allergies,write_uid,write_date".into())
    );
    let by = actor(&line);
    assert_eq!(
        (by.binding, by.role.as_deref(), by.app.as_deref()),
        (Binding::C, Some("ehr"), Some("ehr"))
    );
    assert_eq!(by.client.as_deref(), Some("127.0.0.1"));
    let (line, person) = world.last("public.visit", "11");
    assert_eq!(
        (line.op, person, actor(&line).binding),
        (Op::Create, "dr.tamm".into(), Binding::C)
    );
    let (line, person) = world.last("public.result", "100");
    assert_eq!(
        (line.op, person, actor(&line).binding),
        (Op::Delete, "dr.tamm".into(), Binding::C)
    );
    let (line, person) = world.last("public.visit", "20");
    assert_eq!(
        (person, columns(&line)),
        ("EE38001085718".into(), "note".into())
    );
    assert_eq!(
        (line.purpose.as_deref(), actor(&line).binding),
        (Some("TREAT"), Binding::C)
    );
    let status = world.run("guard status --json").exits(0).json();
    assert_eq!(status["sources"][0]["findings"], Value::Array(Vec::new()));

    // A stranger with a login.
    world.psql("eve", "UPDATE patient SET allergies = 'none' WHERE id = 1");
    let finding = world.finding("ACT-02", "public.patient");
    assert_eq!(
        (&finding["key"], &finding["columns"]),
        (&"1".into(), &serde_json::json!(["allergies"]))
    );
    let (line, person) = world.last("public.patient", "1");
    assert_eq!((person, columns(&line)), (Value::Null, "allergies".into()));
    let by = actor(&line);
    assert_eq!(
        (by.binding, by.role.as_deref(), by.app.as_deref()),
        (Binding::D, Some("eve"), Some("psql"))
    );
    // Nobody is deleted in silence either, and a cascade is told in whole.
    world.psql("eve", "DELETE FROM visit WHERE id = 20");
    assert_eq!(world.finding("ACT-02", "public.result")["key"], "200");
    world.finding("ACT-02", "public.visit");

    // Replicas' mode does not silence the trigger; disabling it does, and shows.
    world.psql(
        "postgres",
        "SET session_replication_role = replica; UPDATE patient SET allergies = 'a' WHERE id = 2",
    );
    let on_mari = |f: &&Value| f["table"] == "public.patient" && f["key"] == "2";
    world.status_when("finds the superuser", |s| {
        s["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| on_mari(&f) && f["code"] == "ACT-02")
    });
    let (line, _) = world.last("public.patient", "2");
    assert_eq!(
        (actor(&line).binding, actor(&line).role.as_deref()),
        (Binding::D, Some("postgres"))
    );
    world.psql("postgres", "ALTER TABLE patient DISABLE TRIGGER ALL; UPDATE patient SET allergies = 'b' WHERE id = 2; ALTER TABLE patient ENABLE TRIGGER ALL, ENABLE ALWAYS TRIGGER pitser_attribution");
    let finding = world.finding("ACT-01", "public.patient");
    assert_eq!(
        (&finding["key"], &finding["columns"]),
        (&"2".into(), &serde_json::json!(["allergies"]))
    );
    let (line, person) = world.last("public.patient", "2");
    assert_eq!((line.actor, person), (None, Value::Null));
    world.run("history patient 2").exits(1).says("ACT-01");
    world
        .run("guard status")
        .exits(1)
        .says("ACT-01 public.patient 2 [allergies]");

    // Large values that an update left alone are not lost.
    let vault = world
        .vault()
        .get(world.last("public.patient", "1").0.seq)
        .unwrap();
    let row = vault.unwrap().1.row.unwrap();
    assert_eq!(crate::world::value(&row, "letter"), "long ".repeat(2000));

    // What stands in the trail matches the tables; nothing in it is in clear.
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    for file in crate::common::files(&world.dir.path().join("guard")) {
        let bytes = std::fs::read(&file).unwrap();
        for secret in [
            "penicillin",
            "dr.tamm",
            "EE38001085718",
            "Maasikas",
            "secret-hash",
        ] {
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{secret} in {}", file.display());
        }
    }
    assert!(world.lines().iter().all(|line| line.op != Op::Gap));
}

#[test]
fn rules_about_the_application() {
    let source = format!(
        "{SOURCE}\"public.journal\" = \"create_uid -> public.staff.login\"\n[source.application]\nroles = [\"ehr\"]\nnames = [\"ehr*\"]\nlog = \"public.journal\"\n"
    );
    let Some(world) = World::hospital("scan_every_s = 0", &source) else {
        return;
    };
    let logged = |sql: &str| {
        format!("BEGIN; {sql}; INSERT INTO journal (create_uid, what) VALUES (2, 'x'); COMMIT")
    };
    // Even a statement without a stamp, if the application's log tells of it.
    world.psql_as(
        "ehr 5.1",
        "ehr",
        &logged("UPDATE visit SET note = 'moved' WHERE id = 10"),
    );
    world.settle();
    let (line, person) = world.last("public.visit", "10");
    assert_eq!(
        (person, line.actor.unwrap().binding),
        ("dr.tamm".into(), Binding::C)
    );
    let open = |w: &World| {
        w.run("guard status --json").json()["sources"][0]["findings"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(open(&world), 0);

    // Without an entry in the log; under another name; as another role, who
    // stamps and logs as the application would.
    world.psql_as(
        "ehr",
        "ehr",
        &format!("UPDATE visit SET note = 'a', {} WHERE id = 10", stamp(2)),
    );
    world.finding("ACT-02", "public.visit");
    world.psql_as(
        "psql",
        "ehr",
        &logged(&format!(
            "UPDATE patient SET allergies = 'a', {} WHERE id = 1",
            stamp(2)
        )),
    );
    world.finding("ACT-02", "public.patient");
    world.psql("eve", "SELECT 1");
    world.psql("postgres", "GRANT USAGE ON SEQUENCE journal_id_seq TO eve");
    world.psql_as(
        "ehr",
        "eve",
        &logged(&format!(
            "SET LOCAL pitser.actor = 'admin'; UPDATE result SET value = 1, {} WHERE id = 200",
            stamp(2)
        )),
    );
    let finding = world.finding("ACT-02", "public.result");
    assert!(
        finding["text"].as_str().unwrap().contains("eve"),
        "{finding}"
    );
    let (line, person) = world.last("public.result", "200");
    assert_eq!(
        (person, line.actor.unwrap().binding),
        (Value::Null, Binding::D)
    );
}

#[test]
fn one_patients_evidence_says_nothing_about_another() {
    let Some(mut world) = World::hospital("witness_every_s = 1", SOURCE) else {
        return;
    };
    world.psql_as(
        "ehr",
        "ehr",
        &format!(
            "UPDATE patient SET allergies = 'penicillin', {} WHERE id = 1",
            stamp(2)
        ),
    );
    world.psql(
        "eve",
        "UPDATE patient SET allergies = 'pollen' WHERE id = 2",
    );
    world.finding("ACT-02", "public.patient");
    world.settle();
    let status = world.status_when("is sealed", |s| {
        s["unsealed"] == 0 && s["blocks"].as_u64() > Some(1)
    });
    world
        .dev
        .published(status["sealed_up_to"].as_str().unwrap());
    world.stop_guardian();
    world
        .run("evidence export --patient 1 -o one.json")
        .exits(0);
    let evidence = std::fs::read_to_string(world.dir.path().join("one.json")).unwrap();
    for secret in ["pollen", "Maasikas", "latex", "fever"] {
        assert!(!evidence.contains(secret), "{secret}");
    }
    // Nobody but the operator vouches for completeness here: no tampering is
    // shown, and nothing more is claimed.
    let said = world.run("verify one.json --json").exits(2).json();
    assert_eq!(said["verdict"], "unconfirmed", "{said}");
    let mut bytes = evidence.into_bytes();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(world.dir.path().join("bad.json"), bytes).unwrap();
    let bad = world.run("verify bad.json --json");
    assert!(matches!(bad.code, 1 | 3), "{bad:?}");
}

#[test]
fn without_images_columns_are_named_all_the_same() {
    let source = format!("vault = false\n{SOURCE}");
    let Some(world) = World::hospital("scan_every_s = 0", &source) else {
        return;
    };
    world.psql_as(
        "ehr",
        "ehr",
        &format!(
            "UPDATE patient SET allergies = 'penicillin', {} WHERE id = 1",
            stamp(2)
        ),
    );
    world.settle();
    let (line, person) = world.last("public.patient", "1");
    assert_eq!(person, "dr.tamm");
    assert_eq!(
        line.columns.unwrap().join(","),
        "allergies,write_uid,write_date"
    );
    let (_, content) = world.vault().get(line.seq).unwrap().unwrap();
    assert!(content.row.is_none() && content.marks.unwrap().marks.len() == 8);
    assert_eq!(world.scan(), Vec::<Value>::new());
    crate::tamper::unseen(
        &world,
        "patient",
        "UPDATE patient SET allergies = 'none' WHERE id = 1",
    );
    let found = world.scan();
    assert_eq!(
        (found.len(), &found[0]["code"]),
        (1, &"ROW-01".into()),
        "{found:?}"
    );
    assert_eq!(found[0]["columns"], serde_json::json!(["allergies"]));
}

#[test]
fn a_table_that_is_guarded_later_gets_its_baseline() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.psql("postgres", "INSERT INTO visit_history VALUES (1, 'old'); ALTER TABLE visit_history ADD PRIMARY KEY (id)");
    world.stop_guardian();
    let all = SOURCE.replace("\"public.*_history\", ", "");
    world.configure("scan_every_s = 0", &all);
    let guarded = match world.server.since_15() {
        true => "5 tables guarded",
        false => "6 tables guarded",
    };
    world.run("guard init").exits(0).says(guarded);
    world.psql("postgres", "INSERT INTO visit_history VALUES (2, 'new'); DELETE FROM visit_history WHERE id = 2; INSERT INTO visit_history VALUES (3, 'new')");
    world.guard();
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    let ops = |world: &World, id: u32| {
        let said = world
            .run(&format!("history public.visit_history {id} --json"))
            .json();
        let lines = said["lines"].as_array().unwrap().iter();
        lines
            .map(|e| e["line"]["op"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ops(&world, 1), ["baseline"]);
    assert!(ops(&world, 2).contains(&"delete".to_owned()));
    assert!(ops(&world, 3).contains(&"create".to_owned()));
    // And no second time.
    world.kill_guardian();
    world.guard();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    assert_eq!(ops(&world, 1), ["baseline"]);
}

#[test]
fn equal_rows_of_a_table_without_a_key() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql("postgres", "CREATE TABLE log (at int, what text); INSERT INTO log VALUES (1, 'in'), (1, 'in'), (2, 'x')");
    world.configure(
        "scan_every_s = 0",
        "tables = [\"public.log\"]\nkeyless = \"full\"\n",
    );
    world.run("guard init").exits(0);
    world.guard();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.psql("postgres", "INSERT INTO log VALUES (1, 'in'); DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE at = 1)");
    world.psql(
        "postgres",
        "UPDATE log SET what = 'in', at = 1 WHERE at = 2",
    );
    world.settle();
    assert_eq!(
        world.psql("postgres", "SELECT count(*) FROM log WHERE at = 1"),
        "3\n"
    );
    assert_eq!(world.scan(), Vec::<Value>::new());
    // Each is numbered without counting all that are there.
    world.psql(
        "postgres",
        "INSERT INTO log SELECT 7, 'same' FROM generate_series(1, 20000)",
    );
    world.psql(
        "postgres",
        "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE at = 7 LIMIT 15000);
         INSERT INTO log VALUES (7, 'same')",
    );
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.psql("postgres", "DELETE FROM log WHERE at = 7");
    world.settle();
    crate::tamper::unseen(
        &world,
        "log",
        "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)",
    );
    let found = world.scan();
    assert_eq!(
        (found.len(), &found[0]["code"]),
        (1, &"ROW-02".into()),
        "{found:?}"
    );
    world.kill_guardian();
    world.psql("postgres", "DELETE FROM log");
    world.guard();
    world.settle();
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

#[test]
fn several_databases_have_one_guardian() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    let table =
        "CREATE TABLE entry (id int PRIMARY KEY, note text); INSERT INTO entry VALUES (1, 'a')";
    world.psql("postgres", table);
    world.psql("postgres", "CREATE DATABASE other");
    let other = world.server.url("other");
    let in_other = |sql: &str| {
        Connection::open_application(&Config::parse(&other).unwrap())
            .unwrap()
            .query(sql)
            .unwrap()
    };
    in_other(table);
    let sources = format!(
        "tables = [\"public.entry\"]\n[[source]]\nname = \"other\"\nkind = \"postgres\"\nurl = \"{other}\"\ntables = [\"public.entry\"]"
    );
    world.configure("scan_every_s = 0", &sources);
    let said = world.run("guard init").exits(0);
    assert_eq!(said.out.matches("1 tables guarded").count(), 2, "{said:?}");
    world.guard();
    world.psql(
        "postgres",
        "UPDATE entry SET note = 'b'; INSERT INTO entry VALUES (2, 'b')",
    );
    in_other("DELETE FROM entry");
    world.settle();
    let others = || {
        let status = world.run("guard status --json").json();
        status["sources"][1].clone()
    };
    world.eventually("takes the other's", |_| {
        others()["events"].as_u64() > Some(2)
    });
    let scanned = world.run("guard scan --json").exits(0).json();
    let rows: Vec<_> = [0, 1].map(|n| scanned["sources"][n]["rows"].clone()).into();
    assert_eq!(rows, [2, 0]);
    world.stop_guardian();
    world.run("trail verify --source hospital").exits(0);
    world.run("trail verify --source other").exits(0);
    let ops = |name: &str| {
        let layout = pitser_trail::Layout::new(world.dir.path().join("guard").join(name));
        let mut ops = Vec::new();
        pitser_trail::read(&layout, None, |line, _| {
            ops.extend(line.table.as_ref().map(|_| line.op));
        })
        .unwrap();
        ops
    };
    assert_eq!(ops("hospital"), [Op::Baseline, Op::Update, Op::Create]);
    assert_eq!(ops("other"), [Op::Baseline, Op::Delete]);
}

/// A column that leads to the patient is somebody's to rename. What it says no more is not
/// claimed, and not passed over in silence; all else goes on, also after a restart.
#[test]
fn a_column_that_leads_to_the_patient_is_renamed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    let whose = |world: &World, table: &str, key: &str| world.last(table, key).0.patient;
    let unknown = Some(Patient::Unknown);
    let first = whose(&world, "public.visit", "10");
    assert!(matches!(first, Some(Patient::Pseudonym(_))));
    world.psql(
        "postgres",
        "ALTER TABLE visit RENAME patient TO pat;
         INSERT INTO visit VALUES (30, 1, 'new', 2, now());
         INSERT INTO result VALUES (300, 30, 5.0, 2, now()), (101, 10, 5.1, 2, now());
         UPDATE visit SET note = 'other' WHERE id = 20",
    );
    let told = world.finding("CAP-05", "public.visit");
    let status = world.status_when("says what to do", |s| {
        s["findings"].to_string().contains("has no column patient")
    });
    let of_visit = status["findings"].as_array().unwrap().iter();
    let texts: Vec<&str> = of_visit.map(|f| f["text"].as_str().unwrap()).collect();
    let text = texts.iter().find(|it| it.contains("has no column patient"));
    assert!(
        text.unwrap().contains("start the guardian again"),
        "{told} {texts:?}"
    );
    world.settle();
    assert_eq!(whose(&world, "public.visit", "30"), unknown);
    assert_eq!(whose(&world, "public.result", "300"), unknown);
    // Of a visit that was there before, the trail knows whose it is.
    assert_eq!(whose(&world, "public.result", "101"), first);
    // It has left its patient's list, and stands there once more for that.
    assert_eq!(whose(&world, "public.visit", "20"), unknown);
    let said = world.run("history --patient 2 --json").json();
    let lines = said["lines"].as_array().unwrap().iter();
    let ops: Vec<&str> = lines
        .filter(|entry| entry["line"]["table"] == "public.visit")
        .map(|entry| entry["line"]["op"].as_str().unwrap())
        .collect();
    assert_eq!(ops, ["baseline", "relink"]);

    world.kill_guardian();
    world.psql(
        "postgres",
        "ALTER TABLE result DROP COLUMN visit; INSERT INTO result VALUES (301, 5.2, 2, now());
         UPDATE patient SET allergies = 'pollen', write_uid = 2, write_date = clock_timestamp() WHERE id = 1",
    );
    world.guard();
    world.finding("CAP-05", "public.result");
    world.settle();
    assert_eq!(whose(&world, "public.result", "301"), unknown);
    assert_eq!(whose(&world, "public.patient", "1"), first);
    assert_eq!(world.scan(), Vec::<Value>::new());
    let said = world.run("guard status");
    assert_eq!(said.code, 1, "{said:?}");

    // Once the column is back, rows are the patient's again; also those that find
    // their patient through one that was written meanwhile.
    world.psql(
        "postgres",
        "ALTER TABLE visit RENAME pat TO patient; ALTER TABLE result ADD COLUMN visit int",
    );
    world.status_when("has the column again", |s| {
        s["findings"].to_string().contains("visit integer added")
    });
    world.psql(
        "postgres",
        "INSERT INTO result VALUES (302, 5.3, 2, now(), NULL, NULL, 30);
         UPDATE visit SET note = 'again' WHERE id = 30",
    );
    world.settle();
    assert_eq!(whose(&world, "public.result", "302"), first);
    assert_eq!(whose(&world, "public.visit", "30"), first);
    world.stop_guardian();
    world.run("trail verify").exits(0);

    // What was never so is the configuration's fault.
    world.configure(
        "scan_every_s = 0",
        &SOURCE.replace("\"patient -> ", "\"pateint -> "),
    );
    world
        .run("guard run")
        .exits(3)
        .says("public.visit has no column pateint");
}

#[test]
fn a_table_that_leads_to_the_patient_is_renamed() {
    let Some(mut world) = World::hospital("scan_every_s = 0", SOURCE) else {
        return;
    };
    world.kill_guardian();
    world.psql(
        "postgres",
        "ALTER TABLE visit RENAME TO stay;
         INSERT INTO result VALUES (101, 10, 5.1, 2, now());
         UPDATE patient SET allergies = 'pollen', write_uid = 2, write_date = clock_timestamp() WHERE id = 1",
    );
    world.guard();
    let said = |part: &str| {
        world.status_when(part, |s| s["findings"].to_string().contains(part));
    };
    said("public.visit is not guarded");
    said("under another name now have no patient");
    world.settle();
    let whose = |table: &str, key: &str| world.last(table, key).0.patient;
    assert_eq!(whose("public.result", "101"), Some(Patient::Unknown));
    assert!(matches!(
        whose("public.patient", "1"),
        Some(Patient::Pseudonym(_))
    ));
    world.psql("postgres", "ALTER TABLE stay RENAME TO visit");
    world.status_when("has its name again", |s| {
        s["findings"]
            .to_string()
            .contains("is now called public.visit")
    });
    world.psql("postgres", "UPDATE result SET value = 5.2 WHERE id = 101");
    world.settle();
    assert_eq!(whose("public.result", "101"), whose("public.patient", "1"));
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// PostgreSQL compares by value, Pitser by text: who cannot be found is nobody's loss but
/// stands in `*unknown`, where somebody looks.
#[test]
fn a_key_that_is_written_otherwise_leads_to_nobody_known() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE person (code char(10) PRIMARY KEY, name text);
         CREATE TABLE entry (id int PRIMARY KEY, who varchar(10) REFERENCES person);
         INSERT INTO person VALUES ('A1', 'Mari'); INSERT INTO entry VALUES (1, 'A1'), (2, NULL)",
    );
    world.configure(
        "scan_every_s = 0",
        "tables = [\"public.*\"]\n[source.patient]\n\"public.person\" = \"name\"\n\
         \"public.entry\" = \"who -> public.person.code\"\n",
    );
    world.run("guard init").exits(0).says("2 tables guarded");
    world.guard();
    world.psql("postgres", "INSERT INTO entry VALUES (3, 'A1')");
    world.settle();
    let whose = |key: &str| world.last("public.entry", key).0.patient;
    assert_eq!(whose("1"), Some(Patient::Unknown));
    assert_eq!(whose("2"), None);
    assert_eq!(whose("3"), Some(Patient::Unknown));
    assert_eq!(world.wrong(), Vec::<String>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
