//! Clients write for a long time while the rows are looked at all the time: not
//! one false finding.
//!
//! `SOAK_S=600 cargo test -p pitser --test postgres -- --ignored soak` takes ten
//! minutes; without `SOAK_S`, a few seconds.

use serde_json::Value;

use crate::kill::pgbench;
use crate::world::World;

#[test]
#[ignore = "takes as long as SOAK_S says; CI runs it apart"]
fn soak() {
    let seconds = std::env::var("SOAK_S").unwrap_or_else(|_| "10".into());
    let Some(mut world) = World::new("bank") else {
        return;
    };
    pgbench(&world, &["-i", "-q", "-s", "1"]);
    world.configure(
        "scan_every_s = 5",
        "tables = [\"public.pgbench_*\"]\nkeyless = \"full\"\n",
    );
    world.run("guard init").exits(0);
    world.guard();
    let rate = std::env::var("SOAK_TPS").unwrap_or_else(|_| "200".into());
    pgbench(&world, &["-n", "-c", "4", "-T", &seconds, "-R", &rate]);
    world.settle();
    let status = world.run("guard status --json").exits(0).json();
    let source = &status["sources"][0];
    assert_eq!(source["findings"], Value::Array(Vec::new()));
    assert!(source["verified_up_to"].is_string(), "{source}");
    println!(
        "{} events in {} blocks, seals {}",
        source["events"], source["blocks"], source["seal_latency_ms"]
    );
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
}

/// `BACKFILL_ROWS=10000000 cargo test -p pitser --test postgres -- --ignored backfill --nocapture`
#[test]
#[ignore = "measures; takes as long as BACKFILL_ROWS says"]
fn backfill() {
    let rows = std::env::var("BACKFILL_ROWS").unwrap_or_else(|_| "100000".into());
    let Some(world) = World::new("bank") else {
        return;
    };
    world.psql(
        "postgres",
        &format!(
            "CREATE TABLE entry (id int PRIMARY KEY, a int, b int, c text, d text, e timestamptz, f numeric, g text, h int, i text);
             INSERT INTO entry SELECT n, n, n, md5(n::text), md5(n::text), now(), n, repeat('x', 150), n, 'y' FROM generate_series(1, {rows}) n"
        ),
    );
    world.configure("scan_every_s = 0", "tables = [\"public.entry\"]\n");
    let began = std::time::Instant::now();
    world
        .run("guard init")
        .exits(0)
        .says(&format!("baseline {rows} rows"));
    println!("{rows} rows in {:.1?}", began.elapsed());
    world.run("trail verify").exits(2);
}
