//! Release gate: what was rolled back is never sealed, whether it was a whole
//! transaction, a savepoint, a block that caught its error or a prepared
//! transaction, and however large it was. Its committed neighbours are all
//! there, once, in their order.
//!
//! Clients do what a seed says, against a model of what they committed.
//! `SEED=17 ROLLBACKS=500 cargo test -p pitser --test postgres rolled_back`
//! replays a failure's choices, with so many transactions for each client.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::thread::JoinHandle;

use pitser_capture::postgres::Connection;
use pitser_evidence::line::Op;
use serde_json::Value;

use crate::common::Choices;
use crate::world::{World, value};

/// So little that nearly every transaction of more than one statement spills.
const SETTINGS: [&str; 2] = [
    "logical_decoding_work_mem = '64kB'",
    "max_prepared_transactions = 10",
];
const CLIENTS: u64 = 3;
/// Rows of a large statement: more than the server's decoder keeps in memory.
pub(crate) const LARGE: u64 = 600;

/// One change of one row: its key and, unless it is gone, what was written.
pub(crate) type Step = (Op, u64, Option<String>);

/// What a client has committed, and what it has under way.
pub(crate) struct Model {
    client: u64,
    pub(crate) choices: Choices,
    pub(crate) rows: BTreeMap<u64, String>,
    /// Of the transaction under way.
    pub(crate) steps: Vec<Step>,
    pub(crate) committed: Vec<Vec<Step>>,
    next_id: u64,
    next_mark: u64,
    /// Marks that only transactions or savepoints wrote that were rolled back.
    undone: u64,
}

/// Where a savepoint was set.
pub(crate) struct Saved {
    rows: BTreeMap<u64, String>,
    steps: usize,
}

impl Model {
    pub(crate) fn new(client: u64, seed: u64) -> Self {
        Self {
            client,
            choices: Choices(seed.wrapping_mul(client + 1) | 1),
            rows: BTreeMap::new(),
            steps: Vec::new(),
            committed: Vec::new(),
            next_id: 1,
            next_mark: 0,
            undone: 0,
        }
    }

    pub(crate) fn table(&self) -> String {
        format!("entry_{}", self.client)
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            rows: self.rows.clone(),
            steps: self.steps.len(),
        }
    }

    pub(crate) fn undo(&mut self, to: Saved) {
        self.undone += (self.steps.len() - to.steps) as u64;
        self.steps.truncate(to.steps);
        self.rows = to.rows;
    }

    pub(crate) fn mark(&mut self) -> String {
        self.next_mark += 1;
        format!("{}-{}", self.client, self.next_mark)
    }

    fn any_row(&mut self) -> Option<u64> {
        let nth = self.choices.below((self.rows.len() as u64).max(1));
        self.rows.keys().nth(nth as usize).copied()
    }

    /// One statement that changes rows.
    pub(crate) fn statement(&mut self) -> String {
        let table = self.table();
        let mark = self.mark();
        match (self.choices.below(8), self.any_row()) {
            (0..=1, Some(id)) => {
                self.rows.insert(id, mark.clone());
                self.steps.push((Op::Update, id, Some(mark.clone())));
                format!("UPDATE {table} SET mark = '{mark}' WHERE id = {id}")
            }
            (2, Some(id)) => {
                self.rows.remove(&id);
                self.steps.push((Op::Delete, id, None));
                format!("DELETE FROM {table} WHERE id = {id}")
            }
            (3, Some(id)) => {
                let to = self.new_id();
                self.rows.remove(&id);
                self.rows.insert(to, mark.clone());
                self.steps.push((Op::Delete, id, None));
                self.steps.push((Op::Create, to, Some(mark.clone())));
                format!("UPDATE {table} SET id = {to}, mark = '{mark}' WHERE id = {id}")
            }
            (4, _) => {
                let (first, last) = (self.next_id, self.next_id + LARGE - 1);
                self.next_id = last + 1;
                for id in first..=last {
                    let mark = format!("{mark}.{id}");
                    self.rows.insert(id, mark.clone());
                    self.steps.push((Op::Create, id, Some(mark)));
                }
                format!(
                    "INSERT INTO {table} SELECT n, '{mark}.' || n, repeat('x', 200) FROM generate_series({first}, {last}) n"
                )
            }
            _ => {
                let id = self.new_id();
                self.rows.insert(id, mark.clone());
                self.steps.push((Op::Create, id, Some(mark.clone())));
                format!("INSERT INTO {table} VALUES ({id}, '{mark}')")
            }
        }
    }

    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A PL/pgSQL block in which an inner one fails after its statements: the
    /// server makes a sub-transaction of it.
    pub(crate) fn caught(&mut self, depth: u64) -> String {
        let before = self.statement();
        let saved = self.save();
        let mut lost = self.statement();
        if depth < 2 && self.choices.below(2) == 0 {
            lost = format!("{lost}; {}", self.caught(depth + 1));
        }
        self.undo(saved);
        let handled = self.statement();
        format!(
            "BEGIN {before}; BEGIN {lost}; RAISE EXCEPTION 'lost'; EXCEPTION WHEN raise_exception THEN {handled}; END; END"
        )
    }
}

/// What a client does, statement by statement.
struct Client {
    sql: Connection,
    model: Model,
}

impl Client {
    fn run(&mut self, statement: &str) {
        let done = self.sql.query(statement);
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    fn fails(&mut self, statement: &str) {
        assert!(self.sql.query(statement).is_err(), "{statement}");
    }

    fn transaction(&mut self) {
        let saved = self.model.save();
        self.run("BEGIN");
        self.body(0);
        // A transaction that changed nothing says nothing.
        let statement = self.model.statement();
        self.run(&statement);
        let name = format!("{}_{}", self.model.client, self.model.next_mark);
        let kept = match self.model.choices.below(8) {
            0 => {
                self.run("ROLLBACK");
                false
            }
            1 => {
                // Its constraint is looked at when it is committed, and fails.
                self.run("INSERT INTO orphan VALUES (-1)");
                self.fails("COMMIT");
                false
            }
            2 => {
                self.run(&format!("PREPARE TRANSACTION '{name}'"));
                self.run(&format!("ROLLBACK PREPARED '{name}'"));
                false
            }
            3 => {
                self.run(&format!("PREPARE TRANSACTION '{name}'"));
                self.run(&format!("COMMIT PREPARED '{name}'"));
                true
            }
            4 => {
                // Its process ends.
                self.fails("SELECT pg_terminate_backend(pg_backend_pid())");
                false
            }
            _ => {
                self.run("COMMIT");
                true
            }
        };
        match kept {
            true => {
                let steps = std::mem::take(&mut self.model.steps);
                self.model.committed.push(steps);
            }
            false => self.model.undo(saved),
        }
    }

    /// Some statements, with savepoints that are kept, left open or rolled back.
    fn body(&mut self, depth: u64) {
        for _ in 0..=self.model.choices.below(3) {
            match self.model.choices.below(8) {
                0..=2 if depth < 4 => self.savepoint(depth),
                3 => {
                    let block = self.model.caught(0);
                    self.run(&format!("DO $$ {block} $$"));
                }
                4 => self.refused(depth),
                _ => {
                    let statement = self.model.statement();
                    self.run(&statement);
                }
            }
        }
    }

    fn savepoint(&mut self, depth: u64) {
        self.run(&format!("SAVEPOINT s{depth}"));
        let saved = self.model.save();
        self.body(depth + 1);
        match self.model.choices.below(4) {
            0 => self.run(&format!("RELEASE s{depth}")),
            1 => {}
            again => {
                // What shapes the table is undone too, and so is an empty one.
                let table = self.model.table();
                if self.model.choices.below(4) == 0 {
                    self.run(&format!("ALTER TABLE {table} ADD COLUMN late int DEFAULT 7; TRUNCATE {table}; INSERT INTO {table} VALUES (-3, 'undone')"));
                }
                self.run(&format!("ROLLBACK TO s{depth}"));
                self.model.undo(saved);
                // The savepoint is still there, and is used once more.
                if again == 2 {
                    self.body(depth + 1);
                }
            }
        }
    }

    /// The server itself refuses a statement that has changed rows by then.
    fn refused(&mut self, depth: u64) {
        let table = self.model.table();
        self.run(&format!("SAVEPOINT r{depth}"));
        let saved = self.model.save();
        let statement = self.model.statement();
        self.run(&statement);
        self.fails(&format!(
            "INSERT INTO {table} SELECT -n, 'refused', repeat('x', 200) FROM generate_series(10, 400) n UNION ALL VALUES (-10, 'twice', '')"
        ));
        self.run(&format!("ROLLBACK TO r{depth}"));
        self.model.undo(saved);
    }
}

fn clients(world: &World, seed: u64, transactions: u64) -> Vec<JoinHandle<Model>> {
    let config = world.config();
    let client = move |number| {
        let config = config.clone();
        std::thread::spawn(move || {
            let mut model = Model::new(number, seed);
            let mut sql = Connection::open_application(&config).unwrap();
            for _ in 0..transactions {
                let mut client = Client { sql, model };
                client.transaction();
                Client { sql, model } = client;
                if sql.query("SELECT 1").is_err() {
                    sql = Connection::open_application(&config).unwrap();
                }
            }
            model
        })
    };
    (0..CLIENTS).map(client).collect()
}

#[test]
fn what_was_rolled_back_is_never_sealed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let seed = number("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let transactions = number("ROLLBACKS").unwrap_or(25);
    println!("SEED={seed} ROLLBACKS={transactions}");
    let Some(mut world) = World::with("clinic", &SETTINGS) else {
        return;
    };
    world.psql(
        "postgres",
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE orphan (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    );
    for client in 0..CLIENTS {
        let columns = "(id int PRIMARY KEY, mark text, pad text)";
        world.psql(
            "postgres",
            &format!("CREATE TABLE entry_{client} {columns}"),
        );
    }
    world.configure("scan_every_s = 2", "tables = [\"public.entry_*\"]\n");
    world.run("guard init").exits(0).says("3 tables guarded");
    world.guard();
    let clients = clients(&world, seed, transactions);
    // The guardian dies in the middle of it.
    world.status_when("is busy", |s| s["events"].as_u64() > Some(100));
    world.kill_guardian();
    world.guard();
    let models: Vec<Model> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    assert!(models.iter().any(|model| model.undone > LARGE));

    world.settle();
    assert_eq!(world.scan(), Vec::<Value>::new());
    let spilled = "SELECT spill_txns > 0 FROM pg_stat_replication_slots";
    world.eventually("spills", |world| world.psql("postgres", spilled) == "t\n");
    world.status_when("is sealed", |s| s["unsealed"] == 0);
    let status = world.run("guard status --json").exits(0).json();
    assert_eq!(
        status["sources"][0]["findings"],
        Value::Array(Vec::new()),
        "no false finding"
    );
    world.stop_guardian();
    world.run("trail verify").exits(0);
    check(&world, &models);
}

/// The lines of each client's table are what it committed, and nothing else.
fn check(world: &World, models: &[Model]) {
    let mut vault = world.vault();
    let mut told: HashMap<String, Vec<(u64, Vec<Step>)>> = HashMap::new();
    let (mut open, mut ended) = (0, HashSet::new());
    for line in world.lines() {
        let Some(tx) = line.tx else { continue };
        if tx != open {
            assert!(ended.insert(open), "transaction {open} in two places");
            open = tx;
        }
        let (_, content) = vault.get(line.seq).unwrap().unwrap();
        let key = String::from_utf8(content.key.unwrap()[0][1..].to_vec()).unwrap();
        let mark = content.row.map(|row| value(&row, "mark"));
        let step = (
            line.op,
            key.parse().expect("no row of ours that was kept"),
            mark,
        );
        let of_table = told.entry(line.table.unwrap()).or_default();
        match of_table.last_mut() {
            Some((last, steps)) if *last == tx => steps.push(step),
            _ => of_table.push((tx, vec![step])),
        }
    }
    for model in models {
        let table = format!("public.{}", model.table());
        let told: Vec<Vec<Step>> = told
            .remove(&table)
            .unwrap_or_default()
            .into_iter()
            .map(|(_, steps)| steps)
            .collect();
        assert_eq!(told.len(), model.committed.len(), "transactions of {table}");
        for (told, committed) in told.iter().zip(&model.committed) {
            assert_eq!(told, committed, "{table}");
        }
    }
    assert!(told.is_empty(), "{:?}", told.keys());
}
