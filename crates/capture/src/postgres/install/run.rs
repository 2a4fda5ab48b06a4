//! One transaction that alters tables others are working on.

use super::{PREAMBLE, Plan};
use crate::postgres::error::Doing;
use crate::postgres::{Connection, PgError};

use super::catalogue::Relation;

/// A plan with the locks that it needs.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) plan: Plan,
    locks: Vec<Lock>,
}

/// A table and the strongest lock that is taken on it.
struct Lock {
    oid: u32,
    sql: String,
    name: String,
    mode: Mode,
}

/// Whom a lock keeps out, fewest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Maintenance,
    Writers,
    Everybody,
}

impl Draft {
    pub(super) fn run(&mut self, statement: impl Into<String>) {
        self.plan.statements.push(statement.into());
    }

    pub(super) fn lock(&mut self, relation: &Relation, mode: Mode) {
        match self.locks.iter_mut().find(|lock| lock.oid == relation.oid) {
            Some(lock) => lock.mode = lock.mode.max(mode),
            None => self.locks.push(Lock {
                oid: relation.oid,
                sql: relation.sql(),
                name: relation.name(),
                mode,
            }),
        }
    }
}

/// Runs what `decide` plans in one transaction.
pub(super) fn in_one_transaction(
    sql: &mut Connection,
    decide: impl Fn(&mut Connection) -> Result<Draft, PgError>,
) -> Result<Plan, PgError> {
    let draft = decide(sql)?;
    if draft.plan.statements.is_empty() {
        return Ok(draft.plan);
    }
    let mut awaited = 0;
    for _ in 0..ATTEMPTS {
        match attempt(sql, &draft.locks, awaited, &decide) {
            Ok(plan) => return Ok(plan),
            Err(Failure::Busy(lock)) => awaited = lock,
            Err(Failure::Error(error)) => return Err(error),
        }
    }
    Err(locked(&draft.locks, awaited))
}

/// Times that another busy table is waited for before we give up.
const ATTEMPTS: u32 = 20;

enum Failure {
    /// This lock was not to be had at once.
    Busy(usize),
    Error(PgError),
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Self {
        Self::Error(error)
    }
}

fn attempt(
    sql: &mut Connection,
    locks: &[Lock],
    awaited: usize,
    decide: &impl Fn(&mut Connection) -> Result<Draft, PgError>,
) -> Result<Plan, Failure> {
    let outcome = within(sql, locks, awaited, decide);
    if outcome.is_err() {
        // If this fails too, the session is gone, and the transaction with it.
        let _ = sql.query("ROLLBACK");
    }
    outcome
}

fn within(
    sql: &mut Connection,
    locks: &[Lock],
    awaited: usize,
    decide: &impl Fn(&mut Connection) -> Result<Draft, PgError>,
) -> Result<Plan, Failure> {
    sql.query(&format!("BEGIN; {}", PREAMBLE.join("; ")))?;
    // Whoever holds nothing while it waits is in no deadlock.
    if let Some(lock) = locks.get(awaited) {
        take(sql, lock, "").map_err(|error| match is_lock(&error) {
            true => locked(locks, awaited),
            false => error,
        })?;
    }
    for (place, lock) in locks.iter().enumerate() {
        if place != awaited {
            take(sql, lock, " NOWAIT").map_err(|error| match is_lock(&error) {
                true => Failure::Busy(place),
                false => Failure::Error(error),
            })?;
        }
    }
    // Again, now that nobody can change the tables under us.
    let plan = decide(sql)?.plan;
    let (user, database) = (sql.user().to_owned(), sql.database().to_owned());
    let doing = Doing::Publishing {
        user: &user,
        database: &database,
    };
    // At once: the locks are held no longer than they have to be.
    sql.query_doing(&plan.statements.join("; "), doing)?;
    sql.query("COMMIT")?;
    Ok(plan)
}

fn take(sql: &mut Connection, lock: &Lock, wait: &str) -> Result<(), PgError> {
    let mode = match lock.mode {
        Mode::Maintenance => "SHARE UPDATE EXCLUSIVE",
        Mode::Writers => "SHARE ROW EXCLUSIVE",
        Mode::Everybody => "ACCESS EXCLUSIVE",
    };
    let statement = format!("LOCK TABLE ONLY {} IN {mode} MODE{wait}", lock.sql);
    sql.query(&statement).map(|_| ())
}

fn is_lock(error: &PgError) -> bool {
    matches!(error, PgError::LockTimeout)
}

fn locked(locks: &[Lock], place: usize) -> PgError {
    PgError::Locked {
        table: locks
            .get(place)
            .map(|lock| lock.name.clone())
            .unwrap_or_default(),
    }
}
