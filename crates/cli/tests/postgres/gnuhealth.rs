//! GNU Health, a hospital system that we did not write and do not change.

use serde_json::{Value, json};

use crate::world::{World, shared};

const SOURCE: &str = r#"
tables  = ["public.gnuhealth_*", "public.party_party"]
exclude = ["public.*_history"]
[source.patient]
"public.gnuhealth_patient"     = "id"
"public.gnuhealth_appointment" = "patient -> public.gnuhealth_patient.id"
[source.actor]
"*" = "write_uid -> public.res_user.login"
"#;

#[test]
fn a_real_hospital_system_is_guarded_unchanged() {
    let Some(dump) = shared("health/gnuhealth/gnuhealth.dump") else {
        eprintln!("skipped: the GNU Health dump is not here");
        return;
    };
    let Some(mut world) = World::new("gnuhealth") else {
        return;
    };
    let restored = world
        .server
        .client("pg_restore", "postgres")
        .args(["--no-owner", "-d", "gnuhealth"])
        .arg(dump)
        .status();
    assert!(restored.unwrap().success());
    world.psql("postgres", "CREATE ROLE gnuhealth LOGIN PASSWORD 'p@ss/w:rd õ'; GRANT ALL ON ALL TABLES IN SCHEMA public TO gnuhealth");
    let before = world.server.schema("gnuhealth");
    // Without column lists, the users are guarded whole.
    let source = match world.server.since_15() {
        true => SOURCE.to_owned(),
        false => SOURCE.replace("party_party\"]", "party_party\", \"public.res_user\"]"),
    };
    world.configure("scan_every_s = 0", &source);
    world
        .run("guard init --dry-run")
        .exits(0)
        .says("CREATE PUBLICATION");
    assert_eq!(
        world.server.schema("gnuhealth"),
        before,
        "a dry run changes nothing"
    );
    world
        .run("guard init")
        .exits(0)
        .says("117 tables guarded")
        .says("baseline");
    world.run("guard init").exits(0).says("0 statements run");
    world.guard();

    // Through the application: one login for everybody, the person in the row.
    world.psql_as("trytond", "gnuhealth", "UPDATE gnuhealth_patient SET critical_info = 'asthma', write_uid = 4, write_date = clock_timestamp() WHERE id = 3");
    world.settle();
    let said = world
        .run("history public.gnuhealth_patient 3 --json")
        .exits(0)
        .json();
    let last = said["lines"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["person"], "demo_doctor");
    assert_eq!(last["line"]["actor"]["binding"], "C");
    assert_eq!(
        last["line"]["columns"],
        json!(["critical_info", "write_date", "write_uid"])
    );

    // Behind its back.
    world.psql(
        "postgres",
        "UPDATE gnuhealth_patient SET critical_info = 'stranger' WHERE id = 4",
    );
    let finding = world.finding("ACT-02", "public.gnuhealth_patient");
    assert_eq!(
        (&finding["key"], &finding["columns"]),
        (&"4".into(), &json!(["critical_info"]))
    );
    assert_eq!(world.scan(), Vec::<Value>::new());

    world.status_when("is sealed", |s| {
        s["unsealed"] == 0 && s["sealed_up_to"].is_string()
    });
    world.stop_guardian();
    world.run("trail verify").exits(0);
    world
        .run("evidence export --patient 3 -o three.json")
        .exits(0);
    world
        .run("verify three.json --json")
        .exits(2)
        .says("unconfirmed");
    let evidence = std::fs::read_to_string(world.dir.path().join("three.json")).unwrap();
    assert!(
        !evidence.contains("TAMPERED") && !evidence.contains("stranger"),
        "the other patient's"
    );

    world.run("guard uninstall").exits(0);
    assert_eq!(
        world.server.schema("gnuhealth"),
        before,
        "everything of ours is gone again"
    );
}
