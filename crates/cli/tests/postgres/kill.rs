//! Guardian and server are killed again and again while clients write. Every
//! committed change must stand in the trail exactly once, in commit order.
//!
//! `SEED=17 cargo test -p pitser --test postgres kill` replays a failure's choices.

use std::collections::HashMap;
use std::process::Stdio;

use pitser_evidence::line::Op;
use serde_json::Value;

use crate::common::Choices;
use crate::world::{World, lsn, value};

const GUARDIAN_KILLS: u64 = 10;
const SERVER_KILLS: u64 = 3;

const SOURCE: &str = "tables = [\"public.pgbench_*\"]\nkeyless = \"full\"\n";

/// A transaction as the trail tells it: the change of its branch's balance, and
/// the amount in its history row.
#[derive(Default)]
struct Told {
    amount: Option<i64>,
    balance: Option<i64>,
    lines: u32,
}

#[test]
fn killed_again_and_again_nothing_is_lost_or_told_twice() {
    let mut choices = Choices::seeded();
    let Some(mut world) = World::new("bank") else {
        return;
    };
    pgbench(&world, &["-i", "-q", "-s", "1"]);
    world.configure("scan_every_s = 3", SOURCE);
    world.run("guard init").exits(0).says("4 tables guarded");
    world.guard();

    let mut counted = 0;
    let mut guardian_kills = 0;
    for server_kill in 0..=SERVER_KILLS {
        let mut clients = world
            .server
            .client("pgbench", "postgres")
            // It is stopped, or dies with the server.
            .args(["-n", "-c", "4", "-T", "3600", "-P", "1", "bank"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let kills = (GUARDIAN_KILLS - guardian_kills).div_ceil(SERVER_KILLS + 1 - server_kill);
        for _ in 0..kills {
            // Dies at any moment: while it starts, catches up, seals or scans.
            let more = counted + 1 + choices.below(400);
            while history(&world) < more {}
            counted = history(&world);
            world.kill_guardian();
            guardian_kills += 1;
            match choices.below(2) {
                0 => world.guard(),
                _ => world.guard_starting(),
            }
        }
        let more = counted + 200 + choices.below(400);
        while history(&world) < more {}
        if server_kill < SERVER_KILLS {
            world.server.crash_and_restart();
            clients.wait().unwrap();
        } else {
            clients.kill().unwrap();
            clients.wait().unwrap();
            // Transactions of killed clients end one way or the other.
            let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
            while world.psql("postgres", busy).trim() != "0" {}
        }
        counted = history(&world);
    }
    assert_eq!(guardian_kills, GUARDIAN_KILLS);
    // The test's own count: a run with a known number of transactions.
    let before = history(&world);
    pgbench(&world, &["-n", "-c", "4", "-t", "250"]);
    assert_eq!(history(&world), before + 1000);

    world.status_when("guards", |s| s["state"] == "guarding");
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    let status = world.run("guard status --json").exits(0).json();
    assert_eq!(
        status["sources"][0]["findings"],
        Value::Array(Vec::new()),
        "no false finding"
    );
    world.stop_guardian();
    world.run("trail verify").exits(0);
    check(&world, before + 1000);
}

/// Compares the trail with the tables: each transaction once, in an order in
/// which every balance follows from the one before.
fn check(world: &World, transactions: u64) {
    let mut vault = world.vault();
    let mut told: Vec<(u64, Told)> = Vec::new();
    let mut last = (0, 0);
    let mut per_table: HashMap<String, u64> = HashMap::new();
    for line in world.lines() {
        assert_ne!(line.op, Op::Gap);
        if !matches!(line.op, Op::Create | Op::Update | Op::Delete) {
            continue;
        }
        let (_, nth) = line.pos.split_once(':').unwrap();
        let place = (lsn(&line.pos), nth.parse::<u64>().unwrap());
        assert!(
            place > last,
            "line {} at {} is out of order",
            line.seq,
            line.pos
        );
        last = place;
        let tx = line.tx.unwrap();
        if told.last().is_none_or(|(before, _)| *before != tx) {
            told.push((tx, Told::default()));
        }
        let (_, of) = told.last_mut().unwrap();
        of.lines += 1;
        let table = line.table.clone().unwrap();
        let (_, content) = vault.get(line.seq).unwrap().unwrap();
        let row = content.row.unwrap();
        match table.as_str() {
            "public.pgbench_history" => of.amount = Some(value(&row, "delta").parse().unwrap()),
            "public.pgbench_branches" => {
                of.balance = Some(value(&row, "bbalance").parse().unwrap())
            }
            _ => {}
        }
        *per_table.entry(table).or_default() += 1;
    }
    let mut balance = 0;
    let mut seen = std::collections::HashSet::new();
    for (tx, of) in &told {
        assert!(seen.insert(tx), "transaction {tx} is told in two places");
        assert_eq!(of.lines, 4, "transaction {tx}");
        balance += of.amount.unwrap();
        assert_eq!(of.balance, Some(balance), "after transaction {tx}");
    }
    assert_eq!(told.len() as u64, transactions);
    for table in ["accounts", "tellers", "branches", "history"] {
        assert_eq!(
            per_table[&format!("public.pgbench_{table}")],
            transactions,
            "{table}"
        );
    }
    let live = world.psql("postgres", "SELECT bbalance FROM pgbench_branches");
    assert_eq!(live.trim(), balance.to_string());
}

/// Transactions that were committed: each leaves one row.
fn history(world: &World) -> u64 {
    let count = world.psql("postgres", "SELECT count(*) FROM pgbench_history");
    count.trim().parse().unwrap()
}

pub(crate) fn pgbench(world: &World, args: &[&str]) {
    let output = world
        .server
        .client("pgbench", "postgres")
        .args(args)
        .arg("bank")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn killed_in_its_baseline_init_is_finished_by_run() {
    const ROWS: usize = 60_000;
    let Some(mut world) = World::new("bank") else {
        return;
    };
    world.psql(
        "postgres",
        &format!("CREATE TABLE entry (id int PRIMARY KEY, note text); INSERT INTO entry SELECT n, 'x' FROM generate_series(1, {ROWS}) n"),
    );
    world.configure("scan_every_s = 0", "tables = [\"public.entry\"]\n");
    let mut init = crate::common::pitser(world.dir.path())
        .args(["guard", "init"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Not yet all rows: a line is longer than a hundred bytes.
    let segment = world.layout().segment(0);
    let some = 100 * ROWS as u64;
    while std::fs::metadata(&segment).map_or(0, |file| file.len()) < some {
        assert!(init.try_wait().unwrap().is_none(), "too fast to be killed");
    }
    init.kill().unwrap();
    init.wait().unwrap();
    world.psql("postgres", "UPDATE entry SET note = 'y' WHERE id % 1000 = 0; DELETE FROM entry WHERE id % 1000 = 1; INSERT INTO entry VALUES (0, 'new')");
    world.guard();
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let mut ops: HashMap<Op, HashMap<_, usize>> = HashMap::new();
    for line in world.lines() {
        if let Some(key) = line.key {
            *ops.entry(line.op).or_default().entry(key).or_default() += 1;
        }
    }
    for (op, records) in &ops {
        assert!(records.values().all(|times| *times == 1), "{op:?} twice");
    }
    let count = |op| ops[&op].len();
    assert_eq!(
        (count(Op::Update), count(Op::Delete), count(Op::Create)),
        (60, 60, 1)
    );
    // Rows that were changed before their baseline need none.
    let known = |key| ops[&Op::Baseline].contains_key(key);
    let late = ops[&Op::Update].keys().filter(|key| !known(*key)).count();
    let gone = ops[&Op::Delete].keys().filter(|key| !known(*key)).count();
    assert_eq!(count(Op::Baseline) + late + gone, ROWS);
    assert!(
        late > 0 && late < 60,
        "{late}: killed too early or too late"
    );
}

/// Rows of a hospital's archive: a table of many pages, so that it is read in
/// parts by two sessions, partitions, and rows that are equal.
const ARCHIVE: &str = "
    CREATE TABLE entry (id int PRIMARY KEY, note text);
    INSERT INTO entry SELECT n, repeat('x', 400) FROM generate_series(1, 40000) n;
    CREATE TABLE lab (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE lab_1 PARTITION OF lab FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE lab_2 PARTITION OF lab FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    INSERT INTO lab SELECT n, date '2026-01-01' + n % 300, repeat('y', 700) FROM generate_series(1, 15000) n;
    CREATE TABLE heap (note text);
    INSERT INTO heap SELECT 'n ' || n % 100 FROM generate_series(1, 5000) n;
    ANALYZE";

#[test]
fn killed_anywhere_in_its_baseline_it_goes_on_and_writes_no_row_twice() {
    const ROWS: u64 = 60_000;
    const KILLS: u64 = 5;
    let mut choices = Choices::seeded();
    let Some(mut world) = World::new("bank") else {
        return;
    };
    world.psql("postgres", ARCHIVE);
    let tables = "tables = [\"public.*\"]\nkeyless = \"full\"\n";
    world.configure("scan_every_s = 0", tables);
    let segment = world.layout().segment(0);
    let length = || std::fs::metadata(&segment).map_or(0, |file| file.len());
    let mut init = crate::common::pitser(world.dir.path())
        .args(["guard", "init"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A line is some four hundred bytes long, and all rows have one in the end: each kill
    // comes after a few thousand more rows, the last ones perhaps too late.
    let mut more = || length() + 400 * (1 + choices.below(2 * ROWS / KILLS));
    let until = more();
    while length() < until && init.try_wait().unwrap().is_none() {}
    init.kill().unwrap();
    init.wait().unwrap();
    let is_complete = |world: &World| world.lines().iter().any(|line| line.op == Op::Live);
    let mut unfinished = u64::from(!is_complete(&world));
    for _ in 1..KILLS {
        let until = more();
        world.guard_starting();
        while length() < until && !is_complete(&world) {}
        world.kill_guardian();
        unfinished += u64::from(!is_complete(&world));
    }
    assert!(unfinished > 0, "every kill came too late");
    world.guard();
    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    world.stop_guardian();
    world.run("trail verify").exits(0);
    let mut keys = std::collections::HashSet::new();
    for line in world.lines() {
        if line.op == Op::Baseline {
            assert!(keys.insert((line.table, line.key)), "line {}", line.seq);
        }
    }
    assert_eq!(keys.len() as u64, ROWS);
}
