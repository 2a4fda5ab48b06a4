//! Evidence from PostgreSQL that convinces an outsider: witness, auditor, anchors.

use std::fs;

use crate::hospital::{SOURCE, stamp};
use crate::sqlite::{init, witness, word_after};
use crate::world::World;

const EXPORT: &str = "evidence export --patient 1 -o one.json --force";
const VERIFY: &str = "verify one.json --anchors anchors.toml --json";

#[test]
fn evidence_is_intact_under_an_anchored_auditor() {
    let guard = "witness_every_s = 1\nscan_every_s = 0";
    let Some(mut world) = World::hospital(guard, SOURCE) else {
        return;
    };
    world.stop_guardian();
    let dir = world.dir.path().to_owned();
    let witness_key = init(&dir);
    let (_witness, url) = witness(&dir);
    let config = fs::read_to_string(dir.join("pitser.toml")).unwrap();
    let peer =
        format!("[[witness]]\nname = \"notary\"\nurl = \"{url}\"\nkey = \"{witness_key}\"\n");
    fs::write(dir.join("pitser.toml"), config + "\n" + &peer).unwrap();
    let layout = world.layout();
    let (genesis, _) = pitser_trail::read::genesis(&layout).unwrap();
    let genesis = genesis.genesis.unwrap();
    let add = format!("witness add-log --dir w {}", genesis.log_key);
    world.run(&add).exits(0);
    world.guard();
    let blocks = world.status_when("told", |_| true)["blocks"].as_u64();
    world.psql_as(
        "ehr",
        "ehr",
        &format!(
            "UPDATE patient SET allergies = 'penicillin', {} WHERE id = 1",
            stamp(2)
        ),
    );
    world.settle();
    let status = world.status_when("is cosigned", |s| {
        s["unsealed"] == 0 && s["witnessed"].as_u64() > blocks && s["witnessed"] == s["blocks"]
    });
    let sealed = status["sealed_up_to"].as_str().unwrap().to_owned();
    world.stop_guardian();
    world.dev.published(&sealed);

    let key = word_after(
        &world
            .run("audit init --dir a --name auditor.example")
            .exits(0),
        "key",
    );
    let anchors = world.anchors(&witness_key);
    fs::write(dir.join("anchors.toml"), &anchors).unwrap();
    world.run(EXPORT).exits(0);
    world.run(VERIFY).exits(2);
    let follow = format!(
        "audit follow {} --anchors anchors.toml --dir a -o s.note -P {}",
        layout.dir().display(),
        world.dev.publications
    );
    world.run(&follow).exits(0).says("signed now");
    world
        .run(&format!("audit give s.note --key {key}"))
        .exits(0);
    world.run(EXPORT).exits(0);
    world.run(VERIFY).exits(2);
    let trusting = format!("{anchors}[[auditor]]\nkey = \"{key}\"\n");
    fs::write(dir.join("anchors.toml"), trusting).unwrap();
    world.run(VERIFY).exits(0).says("\"intact\"");

    // The same over HTTP, where rows are opened: of a result, whose patient is found
    // through its visit, and of those that these tables have.
    let config = fs::read_to_string(dir.join("pitser.toml")).unwrap();
    let auditor = format!("[[auditor]]\nname = \"chamber\"\nkey = \"{key}\"\n");
    fs::write(dir.join("pitser.toml"), config.clone() + &auditor).unwrap();
    let listen = config
        .lines()
        .find_map(|line| line.strip_prefix("listen = \""))
        .unwrap();
    world.guard();
    world.psql_as("ehr", "ehr", "UPDATE result SET value = 6.9 WHERE id = 100");
    world.settle();
    let before = status["witnessed"].as_u64();
    world.status_when("is cosigned", |s| {
        s["witnessed"].as_u64() > before && s["witnessed"] == s["blocks"]
    });
    let follow = format!(
        "audit follow http://{}/ --anchors anchors.toml --dir a --sample 64 --json -P {}",
        listen.trim_end_matches('"'),
        world.dev.publications
    );
    let said = world.run(&follow).exits(0).json();
    assert_eq!(said["given"], true, "{said}");
    let sampled = said["sampled"].as_array().unwrap().len();
    assert!(sampled >= 8, "{said}");
    assert_eq!(
        said["sample_agreed"].as_u64(),
        Some(sampled as u64),
        "{said}"
    );
    world.stop_guardian();
    world.run(EXPORT).exits(0);
    world.run(VERIFY).exits(0).says("\"intact\"");

    // What no row can show accuses nobody: a table that was given another key, a row that
    // is changed after the one that leads to its patient is gone, and one that was found
    // through a row which its own transaction changed later.
    world.guard();
    world.psql(
        "postgres",
        "SET session_replication_role = replica;
         DELETE FROM visit WHERE id = 20;
         UPDATE result SET value = 7.2 WHERE id = 200;
         BEGIN;
         INSERT INTO result VALUES (300, 10, 5.0, 2, now());
         UPDATE visit SET patient = 2 WHERE id = 10;
         COMMIT;
         ALTER TABLE result DROP CONSTRAINT result_pkey, ADD PRIMARY KEY (value);
         UPDATE result SET create_uid = 1 WHERE value = 7.2",
    );
    world.settle();
    let before = world.status_when("told", |_| true)["blocks"].as_u64();
    world.psql_as(
        "ehr",
        "ehr",
        "UPDATE result SET create_uid = 1 WHERE id = 300",
    );
    world.settle();
    world.status_when("is cosigned", |s| {
        s["witnessed"].as_u64() > before && s["witnessed"] == s["blocks"]
    });
    let again = follow.replace(" --json", " --sample-every 0");
    let said = world.run(&again).exits(0);
    said.says("another key").says("is not shown");
    world.stop_guardian();
}
