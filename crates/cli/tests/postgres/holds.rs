//! A legal hold on a real hospital: what the trail says keeps the patient from being
//! erased, and not what is left of the vault.

use std::fs;
use std::path::Path;

use pitser_evidence::line::Op;

use crate::common::{Said, files, pitser};
use crate::hospital::{SOURCE, stamp};
use crate::sqlite::{init, witness, word_after};
use crate::world::World;

/// As one of the approvers.
fn run_as(dir: &Path, who: &str, args: &[&str]) -> Said {
    let mut command = pitser(dir);
    command.args(args).args(["--token", who]);
    command.output().unwrap().into()
}

/// What is asked for and confirmed; the second answer.
fn erase(dir: &Path, patient: &str) -> Said {
    let ask = [
        "erase",
        "--patient",
        patient,
        "--basis",
        "GDPR art. 17(1)(d)",
        "--json",
    ];
    let asked = run_as(dir, "mari", &ask);
    if asked.code != 0 {
        return asked;
    }
    let code = asked.json()["requested"]["code"]
        .as_str()
        .unwrap()
        .to_owned();
    run_as(dir, "jaan", &["erase", "--confirm", &code])
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

#[test]
fn a_hold_keeps_a_patient_whatever_becomes_of_the_vault() {
    let Some(mut world) = World::hospital("witness_every_s = 1\nscan_every_s = 0", SOURCE) else {
        return;
    };
    world.stop_guardian();
    let dir = world.dir.path().to_owned();
    let witness_key = init(&dir);
    let (_witness, url) = witness(&dir);
    let mut config = fs::read_to_string(dir.join("pitser.toml")).unwrap();
    config +=
        &format!("[[witness]]\nname = \"notary\"\nurl = \"{url}\"\nkey = \"{witness_key}\"\n");
    let (genesis, _) = pitser_trail::read::genesis(&world.layout()).unwrap();
    let genesis = genesis.genesis.unwrap();
    let add = format!("witness add-log --dir w {}", genesis.log_key);
    world.run(&add).exits(0);
    for (file, name) in [("mari", "Mari Maasikas"), ("jaan", "Jaan Tamm")] {
        let mut command = pitser(&dir);
        command.args(["erase", "--new-token", file, "--by", name]);
        config += &Said::from(command.output().unwrap()).exits(0).out;
    }
    fs::write(dir.join("pitser.toml"), config).unwrap();

    // The vault of before the hold is put back afterwards.
    let (vault, before) = (world.layout().vault(), dir.join("vault-before"));
    copy(&vault, &before);
    world.guard();
    let add = [
        "hold",
        "add",
        "--patient",
        "1",
        "--reason",
        "court case 2-26-117",
    ];
    run_as(&dir, "jaan", &add)
        .exits(0)
        .says("by Jaan Tamm (line ");
    erase(&dir, "1").exits(3).says("a legal hold stands");
    world.stop_guardian();
    fs::remove_dir_all(&vault).unwrap();
    copy(&before, &vault);
    erase(&dir, "1").exits(3).says("a legal hold stands");
    world.guard();
    erase(&dir, "1").exits(3).says("a legal hold stands");
    // Who and why went with the vault. That it stands did not.
    run_as(&dir, "mari", &["hold", "list"])
        .exits(0)
        .says("1  hold of")
        .says("lost");
    erase(&dir, "2").exits(0).says("decided by");

    let remove = ["hold", "remove", "--patient", "1"];
    run_as(&dir, "mari", &remove).exits(3).says("say why");
    let remove = [&remove[..], &["--reason", "2-26-117 is closed"]].concat();
    run_as(&dir, "mari", &remove).exits(0).says("lifted hold");
    run_as(&dir, "mari", &remove)
        .exits(3)
        .says("no such legal hold");
    erase(&dir, "1").exits(0).says("decided by");

    // A patient who was erased is held again, and what becomes of the rows is taken.
    let add = [
        "hold",
        "add",
        "--patient",
        "2",
        "--reason",
        "court case 3-27-1",
    ];
    run_as(&dir, "mari", &add).exits(0);
    erase(&dir, "2").exits(3).says("a legal hold stands");
    let change = format!(
        "UPDATE patient SET allergies = 'none', {} WHERE id = 2",
        stamp(2)
    );
    world.psql_as("ehr", "ehr", &change);
    world.psql(
        "postgres",
        "SET session_replication_role = replica; DELETE FROM patient WHERE id IN (1, 2)",
    );
    world.settle();
    let blocks = world.status_when("told", |_| true)["blocks"].as_u64();
    world.psql_as("ehr", "ehr", "UPDATE result SET value = 6.9");
    world.settle();
    world.status_when("is cosigned", |s| {
        s["unsealed"] == 0 && s["witnessed"].as_u64() > blocks && s["witnessed"] == s["blocks"]
    });
    world.stop_guardian();

    world.run("trail verify").exits(0);
    let decided: Vec<_> = world
        .lines()
        .into_iter()
        .filter(|line| line.op.is_about_a_hold() || line.op == Op::Erase)
        .map(|line| line.op)
        .collect();
    let expected = [Op::Hold, Op::Erase, Op::Release, Op::Erase, Op::Hold];
    assert_eq!(decided, expected);
    let said = world.run("history --patient 2 --json").exits(0).json();
    let lines = said["lines"].as_array().unwrap();
    let hold = lines
        .iter()
        .find(|entry| entry["line"]["op"] == "hold")
        .unwrap();
    assert_eq!(
        (&hold["person"], &hold["reason"]),
        (&"Mari Maasikas".into(), &"court case 3-27-1".into())
    );
    world
        .run("history --patient 1")
        .exits(0)
        .says("lifts the hold of line")
        .says("2-26-117 is closed");

    // An auditor replays it all, and a patient's evidence shows it.
    let key = word_after(
        &world
            .run("audit init --dir a --name auditor.example")
            .exits(0),
        "key",
    );
    let anchors = world.anchors(&witness_key) + &format!("[[auditor]]\nkey = \"{key}\"\n");
    fs::write(dir.join("anchors.toml"), &anchors).unwrap();
    let follow = format!(
        "audit follow {} --anchors anchors.toml --dir a -o s.note -P {}",
        world.layout().dir().display(),
        world.dev.publications
    );
    world.run(&follow).exits(0).says("signed now");
    world
        .run(&format!("audit give s.note --key {key}"))
        .exits(0);
    world
        .run("evidence export --patient 2 -o two.json")
        .exits(0);
    let shown = world.run("verify two.json --anchors anchors.toml --show");
    assert_ne!(shown.code, 1, "{shown:?}");
    shown
        .says("keeps the patient from being erased: court case 3-27-1")
        .says("on the basis: GDPR art. 17(1)(d)");
}
