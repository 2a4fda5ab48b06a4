//! Transactions that are longer than what is looked at together.
//!
//! `LONG_ROWS=5000000 cargo test -p pitser --test postgres memory -- --nocapture`
//! measures a large one.

use std::time::Instant;

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::hospital::{SOURCE, stamp};
use crate::world::{World, lsn};

/// Rows of one long transaction.
const ROWS: usize = 20_000;

/// A hospital whose application leaves its mark: by a row's stamp, or its log.
fn hospital() -> Option<World> {
    let source = format!(
        "{SOURCE}\"public.journal\" = \"create_uid -> public.staff.login\"\n[source.application]\nroles = [\"ehr\"]\nlog = \"public.journal\"\n"
    );
    World::hospital("scan_every_s = 0", &source)
}

/// Of all lines of the trail.
pub(crate) fn bytes(world: &World) -> u64 {
    let files = std::fs::read_dir(world.layout().segments()).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let lines = files.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
    lines.map(|path| path.metadata().unwrap().len()).sum()
}

/// Kills the guardian when it has written a part of the transaction, starts it
/// again, and gives the findings when all of it is there.
fn killed_within(world: &mut World, transaction: &str) -> Vec<Value> {
    let before = bytes(world);
    world.psql_as("ehr", "ehr", transaction);
    // Some thousand lines of it.
    world.eventually("writes", |world| bytes(world) > before + 2_000_000);
    world.kill_guardian();
    let written = world.lines();
    let last = written.iter().filter_map(|line| line.tx).next_back();
    let part = written.iter().filter(|line| line.tx == last);
    assert!(part.count() < ROWS, "killed too late");
    world.guard();
    world.settle();
    let status = world.status_when("guards", |_| true);
    status["findings"].as_array().unwrap().clone()
}

#[test]
fn killed_within_a_long_transaction_that_was_logged_first_or_last() {
    let Some(mut world) = hospital() else { return };
    let entry = "INSERT INTO journal (create_uid, what) VALUES (2, 'x')";
    let rows = |from: usize| {
        let to = from + ROWS - 1;
        format!("INSERT INTO visit SELECT n, 1, 'x' FROM generate_series({from}, {to}) n")
    };
    let named = format!("UPDATE patient SET {} WHERE id = 1", stamp(2));
    let first = format!("BEGIN; {entry}; {named}; {}; COMMIT", rows(100_000));
    assert_eq!(killed_within(&mut world, &first), Vec::<Value>::new());
    let last = format!("BEGIN; {}; {named}; {entry}; COMMIT", rows(200_000));
    assert_eq!(killed_within(&mut world, &last), Vec::<Value>::new());

    // Nothing speaks for it: one finding, about the first row, that counts all.
    let silent = format!("BEGIN; {}; COMMIT", rows(300_000));
    let found = killed_within(&mut world, &silent);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (&found[0]["code"], &found[0]["key"]),
        (&"ACT-02".into(), &"300000".into())
    );
    let text = found[0]["text"].as_str().unwrap();
    assert!(text.contains(&format!("(and {} more", ROWS - 1)), "{text}");
    // And it is not told again.
    world.kill_guardian();
    world.guard();
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    let status = world.status_when("guards", |_| true);
    assert_eq!(status["findings"].as_array().unwrap().len(), 1);

    // Each row changes other columns than the one before: the same is found as of somebody
    // who is not killed.
    let changes = |from: usize| {
        let by = |bit: usize, column: &str, to: &str| {
            format!("{column} = CASE WHEN id & {bit} > 0 THEN {to} ELSE {column} END")
        };
        let set = [
            by(1, "note", "note || 'y'"),
            by(2, "create_uid", "7"),
            by(4, "create_date", "now()"),
            by(8, "write_date", "now()"),
            by(16, "patient", "2"),
            by(32, "write_uid", "2"),
        ];
        let (set, to) = (set.join(", "), from + ROWS);
        format!("BEGIN; UPDATE visit SET {set} WHERE id >= {from} AND id < {to}; COMMIT")
    };
    let told = |findings: &[Value], known: usize| {
        let new = findings.iter().rev().take(findings.len() - known);
        new.map(|found| (found["code"].clone(), found["text"].clone()))
            .collect::<Vec<_>>()
    };
    world.psql_as("ehr", "ehr", &changes(100_000));
    world.settle();
    let status = world.status_when("guards", |_| true);
    let findings = status["findings"].as_array().unwrap();
    let whole = told(findings, 1);
    let found = killed_within(&mut world, &changes(200_000));
    assert_eq!(told(&found, findings.len()), whole);
    let text = whole[0].1.as_str().unwrap();
    assert!(text.contains(&format!("(and {} more", ROWS - 1)), "{text}");
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let mut places: Vec<String> = world
        .lines()
        .into_iter()
        .filter(|line| line.op == Op::Create && line.table.as_deref() == Some("public.visit"))
        .map(|line| line.pos)
        .collect();
    let all = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!((all, places.len()), (3 * ROWS, 3 * ROWS), "each once");
}

#[test]
fn a_large_transaction_takes_no_more_memory_than_a_small_one() {
    let rows = std::env::var("LONG_ROWS").ok().and_then(|s| s.parse().ok());
    let rows: u64 = rows.unwrap_or(200_000);
    // Each change leaves a dead row behind, which all later ones pass.
    let records = (rows / 50).clamp(10_000, 100_000);
    let Some(mut world) = World::with("clinic", &["logical_decoding_work_mem = '1MB'"]) else {
        return;
    };
    world.psql(
        "postgres",
        &format!(
            "CREATE TABLE entry (id int PRIMARY KEY, n int, note text);
             INSERT INTO entry SELECT n, 0, repeat('x', 250) FROM generate_series(1, {records}) n"
        ),
    );
    world.configure("scan_every_s = 0", "tables = [\"public.entry\"]\n");
    world.run("guard init").exits(0);
    world.guard();
    let updated = |world: &World, rows: u64| {
        let began = Instant::now();
        let times = rows / records;
        world.psql(
            "postgres",
            &format!(
                "DO $$ BEGIN FOR i IN 1..{times} LOOP UPDATE entry SET n = i; END LOOP; END $$"
            ),
        );
        let committed = began.elapsed();
        let newest = lsn(world.psql("postgres", "SELECT pg_current_wal_lsn()").trim());
        let is_sealed = || {
            let status = world.run("guard status --json").json();
            let source = &status["sources"][0];
            lsn(source["position"].as_str().unwrap()) >= newest && source["unsealed"] == 0
        };
        while !is_sealed() {}
        (
            committed,
            began.elapsed() - committed,
            world.guardian_peak(),
        )
    };
    let (_, _, small) = updated(&world, 2 * records);
    let (committed, sealed, large) = updated(&world, rows);
    let spilled = "SELECT pg_size_pretty(spill_bytes) FROM pg_stat_replication_slots";
    println!(
        "{rows} changes: {committed:.1?} to commit, {sealed:.1?} from commit to seal, server spilled {}, guardian's peak {} MB, before {} MB",
        world.psql("postgres", spilled).trim(),
        large >> 20,
        small >> 20,
    );
    // The rows of some batches and of a block, however many there are in all.
    let most = 96 << 20;
    assert!(large < small + most, "{small} -> {large}");
    world.stop_guardian();
    world.run("trail verify").exits(0);
}
