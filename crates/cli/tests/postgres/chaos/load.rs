//! What clients do meanwhile, and what they know of it.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use pitser_capture::postgres::{Config, Connection};
use pitser_evidence::line::Op;

use crate::rollback::Model;
use crate::world::PATIENCE;

pub(crate) const CLIENTS: u64 = 3;

/// A transaction's last statements: its place among all that are committed, and that
/// it was.
fn ending(client: u64, number: u64) -> String {
    format!(
        "UPDATE ticket SET n = n + 1; INSERT INTO done SELECT {client}, {number}, n FROM ticket"
    )
}

/// Tables of all clients, and those of the endings.
pub(crate) fn tables() -> String {
    let mut sql = String::from(
        "CREATE TABLE ticket (id int PRIMARY KEY, n bigint); INSERT INTO ticket VALUES (1, 0);
         CREATE TABLE done (client int, number int, ticket bigint, PRIMARY KEY (client, number));
         CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE orphan (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);",
    );
    for client in 0..CLIENTS {
        sql += &format!("CREATE TABLE entry_{client} (id int PRIMARY KEY, mark text, pad text);");
    }
    // One of each kind.
    sql + "ALTER TABLE entry_1 REPLICA IDENTITY FULL"
}

/// What the clients share with who lets them.
#[derive(Default)]
struct State {
    /// Transactions that may be begun, and those that came to an end.
    allowed: u64,
    begun: u64,
    ended: u64,
    over: bool,
    /// The server is not there.
    down: bool,
}

/// Lets clients go on, and knows how far they are.
#[derive(Clone, Default)]
pub(crate) struct Pace(Arc<(Mutex<State>, Condvar)>);

impl Pace {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Waits for it; `false` after a long time.
    fn wait(&self, until: impl Fn(&State) -> bool) -> bool {
        let state = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(state, PATIENCE, |s| !until(s));
        !waited.unwrap().1.timed_out()
    }

    pub(crate) fn allow(&self, more: u64) {
        self.change(|state| state.allowed += more);
    }

    pub(crate) fn down(&self, down: bool) {
        self.change(|state| state.down = down);
    }

    pub(crate) fn over(&self) {
        self.change(|state| state.over = true);
    }

    /// How many came to an end.
    pub(crate) fn ended(&self) -> u64 {
        self.0.0.lock().unwrap().ended
    }

    /// Waits until so many came to an end.
    pub(crate) fn until(&self, ended: u64) {
        assert!(self.wait(|state| state.ended >= ended), "clients hang");
    }

    /// Takes leave to begin one; `false` if no more are to come.
    fn begin(&self) -> bool {
        let ready = |state: &State| state.over || (state.begun < state.allowed && !state.down);
        assert!(self.wait(ready), "nobody lets clients go on");
        let mut state = self.0.0.lock().unwrap();
        if state.over {
            return false;
        }
        state.begun += 1;
        true
    }
}

/// One client, and what it has committed: by number, since some were not.
pub(crate) struct Client {
    config: Config,
    sql: Option<Connection>,
    pub(crate) model: Model,
    pub(crate) client: u64,
    /// Numbers of [`Model::committed`].
    pub(crate) numbers: Vec<u64>,
    /// Truncations among them.
    pub(crate) truncations: usize,
    /// How often the answer to a COMMIT was lost, and it was done.
    pub(crate) unknown: (u64, u64),
}

/// The server went away.
struct Gone;

pub(crate) fn start(config: &Config, seed: u64, pace: &Pace) -> Vec<JoinHandle<Client>> {
    let start = |number: u64| {
        let mut client = Client {
            config: config.clone(),
            sql: None,
            model: Model::new(number, seed.wrapping_mul(0x9e37_79b9)),
            client: number,
            numbers: Vec::new(),
            truncations: 0,
            unknown: (0, 0),
        };
        let pace = pace.clone();
        std::thread::spawn(move || {
            let mut number = 0;
            while pace.begin() {
                number += 1;
                client.transaction(number, &pace);
                pace.change(|state| state.ended += 1);
            }
            client
        })
    };
    (0..CLIENTS).map(start).collect()
}

impl Client {
    fn connect(&mut self, pace: &Pace) -> &mut Connection {
        let began = std::time::Instant::now();
        while self.sql.is_none() {
            assert!(pace.wait(|state| !state.down), "no server");
            // It may go away again at once.
            self.sql = Connection::open_application(&self.config).ok();
            assert!(began.elapsed() < PATIENCE, "no connection");
        }
        self.sql.as_mut().unwrap()
    }

    /// Runs a statement that succeeds if there is a server.
    fn run(&mut self, statement: &str) -> Result<(), Gone> {
        let sql = self.sql.as_mut().ok_or(Gone)?;
        let Err(error) = sql.query(statement) else {
            return Ok(());
        };
        let alive = sql.query("SELECT 1").is_ok()
            || sql.query("ROLLBACK").is_ok() && sql.query("SELECT 1").is_ok();
        assert!(!alive, "{statement}: {error}");
        self.sql = None;
        Err(Gone)
    }

    fn transaction(&mut self, number: u64, pace: &Pace) {
        let saved = self.model.save();
        let before = self.truncations;
        self.connect(pace);
        let kept = match self.attempt(number) {
            Ok(kept) => kept,
            Err(None) => false,
            // The answer to a COMMIT was lost: the database knows.
            Err(Some(Gone)) => {
                let client = self.client;
                let asked =
                    format!("SELECT 1 FROM done WHERE (client, number) = ({client}, {number})");
                let known = loop {
                    if let Ok(rows) = self.connect(pace).query(&asked) {
                        break !rows.is_empty();
                    }
                    self.sql = None;
                };
                self.unknown.0 += 1;
                self.unknown.1 += u64::from(known);
                known
            }
        };
        if kept {
            let steps = std::mem::take(&mut self.model.steps);
            self.model.committed.push(steps);
            self.numbers.push(number);
        } else {
            self.model.undo(saved);
            self.truncations = before;
        }
    }

    /// Whether it was committed; an error if that is not known, `None` within it if
    /// it was not.
    fn attempt(&mut self, number: u64) -> Result<bool, Option<Gone>> {
        let lost = |_: Gone| None;
        self.run("BEGIN").map_err(lost)?;
        self.body(0).map_err(lost)?;
        let end = self.model.choices.below(10);
        self.run(&ending(self.client, number)).map_err(lost)?;
        match end {
            0 => self.run("ROLLBACK").map(|()| false).map_err(lost),
            1 => {
                // Its constraint is looked at when it is committed, and fails.
                self.run("INSERT INTO orphan VALUES (-1)").map_err(lost)?;
                let sql = self.sql.as_mut().ok_or(None)?;
                assert!(sql.query("COMMIT").is_err());
                Ok(false)
            }
            _ => self.run("COMMIT").map(|()| true).map_err(Some),
        }
    }

    /// Some statements, with savepoints that are kept or rolled back.
    fn body(&mut self, depth: u64) -> Result<(), Gone> {
        for _ in 0..=self.model.choices.below(3) {
            match self.model.choices.below(12) {
                0..=1 if depth < 3 => self.savepoint(depth)?,
                2 => {
                    let block = self.model.caught(0);
                    self.run(&format!("DO $$ {block} $$"))?;
                }
                3 => self.copy()?,
                4 => self.truncate()?,
                _ => {
                    let statement = self.model.statement();
                    self.run(&statement)?;
                }
            }
        }
        Ok(())
    }

    fn savepoint(&mut self, depth: u64) -> Result<(), Gone> {
        self.run(&format!("SAVEPOINT s{depth}"))?;
        let (saved, before) = (self.model.save(), self.truncations);
        self.body(depth + 1)?;
        if self.model.choices.below(2) == 0 {
            return self.run(&format!("RELEASE s{depth}"));
        }
        self.run(&format!("ROLLBACK TO s{depth}"))?;
        self.model.undo(saved);
        self.truncations = before;
        Ok(())
    }

    fn copy(&mut self) -> Result<(), Gone> {
        let (table, mark) = (self.model.table(), self.model.mark());
        let mut lines = Vec::new();
        for _ in 0..=self.model.choices.below(20) {
            let id = self.model.new_id();
            self.model.rows.insert(id, mark.clone());
            self.model.steps.push((Op::Create, id, Some(mark.clone())));
            lines.push(id.to_string());
        }
        let (first, last) = (&lines[0], &lines[lines.len() - 1]);
        self.run(&format!(
            "COPY {table} (id, mark) FROM PROGRAM 'seq {first} {last} | sed s/$/,{mark}/' (FORMAT csv)"
        ))
    }

    fn truncate(&mut self) -> Result<(), Gone> {
        for (id, _) in std::mem::take(&mut self.model.rows) {
            self.model.steps.push((Op::Delete, id, None));
        }
        self.truncations += 1;
        let table = self.model.table();
        self.run(&format!("TRUNCATE {table}"))
    }
}
