//! A standby that kept the slot, too, takes over (PostgreSQL 17).

use std::cell::RefCell;

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::world::World;

#[test]
fn the_slot_is_there_after_a_failover() {
    let Some(mut world) = World::new("clinic") else {
        return;
    };
    if world.server.version() < 17 {
        eprintln!("skipped: no failover slots before PostgreSQL 17");
        return;
    }
    world.psql(
        "postgres",
        "CREATE TABLE visit (id int PRIMARY KEY, note text)",
    );
    world.configure("scan_every_s = 0", "tables = [\"public.visit\"]\n");
    world.run("guard init").exits(0).says("1 tables guarded");
    let mut psql = world.server.client("psql", "postgres");
    psql.args(["-d", "dbname=clinic replication=database", "-c"]);
    psql.arg("ALTER_REPLICATION_SLOT pitser_hospital (FAILOVER true)");
    let kept = psql.output().unwrap();
    assert!(kept.status.success(), "{kept:?}");
    world.psql(
        "postgres",
        "SELECT pg_create_physical_replication_slot('standby', true)",
    );
    let mut standby = world.server.standby(&[
        "primary_slot_name = 'standby'",
        "hot_standby_feedback = on",
        "sync_replication_slots = on",
    ]);
    // From here on we are told only what the standby has.
    world.psql(
        "postgres",
        "ALTER SYSTEM SET synchronized_standby_slots = 'standby'",
    );
    world.psql("postgres", "SELECT pg_reload_conf()");
    world.guard();
    world.psql(
        "postgres",
        "INSERT INTO visit VALUES (1, 'before'), (2, 'before')",
    );
    world.settle();
    // The standby takes over the slot once it is no further than itself.
    let copied = "SELECT 1 FROM pg_replication_slots \
                  WHERE slot_name = 'pitser_hospital' AND synced AND NOT temporary";
    let asking = RefCell::new(standby.sql());
    world.eventually("copied the slot", |world| {
        world.psql("postgres", "SELECT pg_log_standby_snapshot()");
        !asking.borrow_mut().query(copied).unwrap().is_empty()
    });
    drop(asking);

    world.server.stop();
    standby.take_over(&world.server);
    std::mem::swap(&mut world.server, &mut standby);
    // It is another timeline, which is told; nothing is missing.
    world.finding("CAP-02", "");
    world.status_when("guards again", |s| s["state"] == "guarding");
    world.psql("postgres", "INSERT INTO visit VALUES (3, 'after')");
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    let told = |op| world.lines().iter().filter(|line| line.op == op).count();
    assert_eq!((told(Op::Create), told(Op::Gap)), (3, 0));
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
