//! Preparing an SQLite database.

use super::{Beginning, InitError, Plan, begin, check_identity, check_rules, is_new, no_tables};
use crate::collected::Collected;
use crate::config::{Source, Tuning, is_wanted};
use pitser_capture::Source as Database;
use pitser_capture::sqlite::{SqliteSource, TableSpec, installed_names, table_names};
use pitser_evidence::line::Timestamp;
use pitser_trail::{Trail, TrailError};

pub(super) fn plan(source: &Source) -> Result<Plan, InitError> {
    let database = open(source)?;
    check_rules(source, database.shapes())?;
    Ok(Plan {
        statements: database.plan_install(&[0; 16])?,
        tables: database.tables().map(str::to_owned).collect(),
        uncovered: uncovered(source, &database)?,
        ..Plan::default()
    })
}

/// `now` is in microseconds since 1970.
pub(super) fn install(source: &Source, tuning: &Tuning, now: u64) -> Result<Plan, InitError> {
    let mut database = open(source)?;
    let patients = check_rules(source, database.shapes())?;
    let mut system = [0; 16];
    getrandom::getrandom(&mut system).map_err(|e| InitError::Random(e.to_string()))?;
    let statements = database.install(&system)?;
    let uncovered = uncovered(source, &database)?;
    let identity = database.identity()?;
    let new_trail = is_new(source, tuning);
    let trail = if new_trail {
        let beginning = Beginning {
            at: Timestamp::from_micros(now).map_err(TrailError::from)?,
            identity,
            position: database.newest()?,
            uncovered: uncovered.clone(),
        };
        begin(source, tuning, database.shapes(), &patients, beginning)?
    } else {
        let (trail, _, _) = Trail::open::<Collected>(tuning.layout(source))?;
        check_identity(&identity, trail.genesis(), source)?;
        trail
    };
    Ok(Plan {
        statements,
        tables: database.tables().map(str::to_owned).collect(),
        uncovered,
        new_trail,
        genesis: Some(trail.genesis_hash().to_string()),
        ..Plan::default()
    })
}

pub(super) fn uninstall(source: &Source, dry_run: bool) -> Result<Vec<String>, InitError> {
    let mut database = open(source)?;
    Ok(match dry_run {
        true => database.plan_uninstall()?,
        false => database.uninstall()?,
    })
}

pub(super) fn open_guarded(source: &Source) -> Result<Box<dyn Database>, InitError> {
    // Others are for `guard init`: nobody has triggers there, and some cannot have any.
    let installed = installed_names(&source.url)?;
    let mut names = table_names(&source.url)?;
    names.retain(|name| installed.contains(name) && is_wanted(source, name));
    let tables: Vec<TableSpec> = names.iter().map(TableSpec::new).collect();
    if tables.is_empty() {
        return Err(InitError::NotInitialised(source.name.clone()));
    }
    let database = SqliteSource::open(&source.url, &tables)?;
    if !database.is_installed()? {
        return Err(InitError::NotInitialised(source.name.clone()));
    }
    if database
        .plan_install(&[0; 16])
        .is_ok_and(|plan| !plan.is_empty())
    {
        tracing::warn!(
            source = source.name,
            "the triggers in the database are not those that this version installs: run `pitser guard init` again"
        );
    }
    Ok(Box::new(database))
}

/// Opens the database of a source with the tables that its patterns name.
fn open(source: &Source) -> Result<SqliteSource, InitError> {
    let names = table_names(&source.url)?;
    let wanted = names.iter().filter(|name| is_wanted(source, name));
    let tables: Vec<TableSpec> = wanted.map(TableSpec::new).collect();
    if tables.is_empty() {
        return Err(no_tables(source, names.iter().map(String::as_str)));
    }
    Ok(SqliteSource::open(&source.url, &tables)?)
}

/// Tables of the database that are not guarded, and what SQLite capture never sees.
fn uncovered(source: &Source, database: &SqliteSource) -> Result<Vec<String>, InitError> {
    let guarded: Vec<&str> = database.tables().collect();
    let mut uncovered: Vec<String> = table_names(&source.url)?
        .into_iter()
        .filter(|name| !guarded.contains(&name.as_str()) && !name.starts_with("pitser_"))
        .map(|name| format!("table {name}"))
        .collect();
    uncovered.push("reads that no application reports".into());
    Ok(uncovered)
}
