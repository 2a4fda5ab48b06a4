//! Backups of a trail while its guardian guards a database that is written: each is whole,
//! and a guardian goes on with it.

use std::fs;
use std::process::Stdio;

use crate::kill::pgbench;
use crate::world::World;

const SOURCE: &str = "tables = [\"public.pgbench_*\"]\nkeyless = \"full\"\n";

#[test]
fn a_trail_is_copied_again_and_again_while_a_guardian_writes_it() {
    let Some(mut world) = World::new("bank") else {
        return;
    };
    pgbench(&world, &["-i", "-q", "-s", "1"]);
    world.configure("", SOURCE);
    world.run("guard init").exits(0).says("4 tables guarded");
    world.guard();
    let mut clients = world
        .server
        .client("pgbench", "postgres")
        // It is stopped.
        .args(["-n", "-c", "2", "-T", "3600", "-R", "200", "bank"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut lines, mut blocks) = (0, 0);
    for number in 0..6 {
        let fresh = format!("copy-{number}");
        for target in ["copy", &fresh] {
            let said = world.run(&format!("trail copy {target} --json")).exits(0);
            let told = said.json();
            // 0, or 2 while the newest blocks wait for their seals.
            let verified = world.run(&format!("trail verify {target} --json"));
            assert!([0, 2].contains(&verified.code), "{verified:?}");
            assert_eq!(verified.json()["blocks"], told["blocks"]);
            assert_eq!(verified.json()["lines"], told["lines"]);
        }
        let told = world.run("trail copy copy --json").exits(0).json();
        assert!(told["lines"].as_u64().unwrap() > lines, "clients write");
        lines = told["lines"].as_u64().unwrap();
        blocks = told["blocks"].as_u64().unwrap();
    }
    world.run("trail rebuild copy-5").exits(0);
    clients.kill().unwrap();
    clients.wait().unwrap();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
    while world.psql("postgres", busy).trim() != "0" {}
    world.settle();
    world.stop_guardian();

    // The last copy takes the trail's place, as it would after a disk was lost: all that
    // was captured came to it.
    let text = world.run("trail copy copy").exits(0);
    text.says("the secret keys are in it");
    let dir = world.dir.path();
    fs::rename(dir.join("guard/hospital"), dir.join("lost")).unwrap();
    fs::rename(dir.join("copy"), dir.join("guard/hospital")).unwrap();
    world.run("trail verify").exits(0);
    world.guard();
    assert_eq!(world.scan(), Vec::<serde_json::Value>::new());
    pgbench(&world, &["-n", "-c", "2", "-t", "50"]);
    world.settle();
    assert_eq!(world.scan(), Vec::<serde_json::Value>::new());
    world.stop_guardian();
    let told = world.run("trail verify --json").exits(0).json();
    assert!(told["blocks"].as_u64().unwrap() > blocks);
}
