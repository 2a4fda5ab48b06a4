//! Preparing a database for guarding, and taking everything out again.

use crate::config::{Kind, Source, Tuning, matches};
use crate::patients::{PathError, Patients, Shape};
use pitser_capture::sqlite::{SqliteError, SqliteSource, TableSpec};
use pitser_evidence::line::Timestamp;
use pitser_trail::{GenesisDraft, TableDraft, Trail, TrailError};

/// Why a source cannot be prepared or opened.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The database.
    #[error(transparent)]
    Database(#[from] SqliteError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// A patient path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No table fits the patterns.
    #[error("source {name}: no table of {url} fits tables = {patterns:?}")]
    NoTables {
        /// The source.
        name: String,
        /// Its database.
        url: String,
        /// The configured patterns.
        patterns: Vec<String>,
    },
    /// Not prepared yet.
    #[error(
        "source {0} is not prepared: run `pitser guard init` first (with --dry-run it only prints what it would do)"
    )]
    NotInitialised(String),
    /// The trail belongs to another database.
    #[error(
        "CAP-02 the trail was begun for database {expected}, this one is {found}: it was replaced, or the wrong file \
         is configured. A new database needs a new trail (another source name)"
    )]
    OtherDatabase {
        /// What the genesis line says.
        expected: String,
        /// What the database says.
        found: String,
    },
    /// No random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(String),
}

/// What preparing a source did, or would do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Statements for the database, in order.
    pub statements: Vec<String>,
    /// Tables that will be guarded.
    pub tables: Vec<String>,
    /// True if the trail has to be begun.
    pub new_trail: bool,
    /// Hash of the genesis line, once there is a trail.
    pub genesis: Option<String>,
}

/// Opens the database of a source with the tables that its patterns name.
///
/// # Errors
/// [`InitError`] names the file, the table or the pattern.
pub fn open_source(source: &Source) -> Result<SqliteSource, InitError> {
    let Kind::Sqlite = source.kind;
    let all = pitser_capture::sqlite::table_names(&source.url)?;
    let tables: Vec<TableSpec> = all
        .iter()
        .filter(|name| source.tables.iter().any(|p| matches(p, name)))
        .filter(|name| !source.exclude.iter().any(|p| matches(p, name)))
        .map(TableSpec::new)
        .collect();
    if tables.is_empty() {
        return Err(InitError::NoTables {
            name: source.name.clone(),
            url: source.url.clone(),
            patterns: source.tables.clone(),
        });
    }
    Ok(SqliteSource::open(&source.url, &tables)?)
}

/// What [`install`] would do.
///
/// # Errors
/// [`InitError`].
pub fn plan(source: &Source, tuning: &Tuning) -> Result<Plan, InitError> {
    let database = open_source(source)?;
    Patients::new(source, &shapes(&database)?)?;
    Ok(Plan {
        statements: database.plan_install(&[0; 16])?,
        tables: database.tables().map(str::to_owned).collect(),
        new_trail: !tuning.layout(source).segment(0).exists(),
        genesis: None,
    })
}

/// Installs capture and begins the trail; whatever is there already stays.
///
/// `now` is in microseconds since 1970.
///
/// # Errors
/// [`InitError`].
pub fn install(source: &Source, tuning: &Tuning, now: u64) -> Result<Plan, InitError> {
    let mut database = open_source(source)?;
    let patients = Patients::new(source, &shapes(&database)?)?;
    let mut system = [0; 16];
    getrandom::getrandom(&mut system).map_err(|e| InitError::Random(e.to_string()))?;
    let statements = database.install(&system)?;
    let layout = tuning.layout(source);
    let new_trail = !layout.segment(0).exists();
    let trail = if new_trail {
        let draft = genesis(source, &database, &patients, now)?;
        pitser_trail::disk::private_dir(layout.dir()).map_err(TrailError::from)?;
        Trail::create(layout, &tuning.origin(source), &draft)?
    } else {
        let (trail, (), _) = Trail::open(layout, |(), _| {})?;
        check_identity(&database, &trail)?;
        trail
    };
    Ok(Plan {
        statements,
        tables: database.tables().map(str::to_owned).collect(),
        new_trail,
        genesis: Some(trail.genesis_hash().to_string()),
    })
}

/// Takes everything of ours out of the database. The trail stays.
///
/// # Errors
/// [`InitError`].
pub fn uninstall(source: &Source, dry_run: bool) -> Result<Vec<String>, InitError> {
    let mut database = open_source(source)?;
    if dry_run {
        Ok(database.plan_uninstall()?)
    } else {
        Ok(database.uninstall()?)
    }
}

fn genesis(
    source: &Source,
    database: &SqliteSource,
    patients: &Patients,
    now: u64,
) -> Result<GenesisDraft, InitError> {
    let mut tables = Vec::new();
    for Shape { name, columns, key } in shapes(database)? {
        let patient = patients.text(&name);
        tables.push(TableDraft {
            name,
            columns,
            key,
            patient,
        });
    }
    Ok(GenesisDraft {
        at: Timestamp::from_micros(now).map_err(TrailError::from)?,
        system: identity(database)?,
        timeline: 1,
        pos: database.position()?.to_string(),
        source: source.name.clone(),
        tables,
        uncovered: uncovered(source, database)?,
    })
}

/// Tables of the database that are not guarded, and what SQLite capture never sees.
fn uncovered(source: &Source, database: &SqliteSource) -> Result<Vec<String>, InitError> {
    let guarded: Vec<&str> = database.tables().collect();
    let mut uncovered: Vec<String> = pitser_capture::sqlite::table_names(&source.url)?
        .into_iter()
        .filter(|name| !guarded.contains(&name.as_str()) && !name.starts_with("pitser_"))
        .map(|name| format!("table {name}"))
        .collect();
    uncovered.push("reads that no application reports".into());
    Ok(uncovered)
}

/// The shape of each guarded table.
pub(crate) fn shapes(database: &SqliteSource) -> Result<Vec<Shape>, SqliteError> {
    database
        .tables()
        .map(|table| {
            Ok(Shape {
                name: table.to_owned(),
                columns: database.columns(table)?.to_vec(),
                key: database.key_columns(table)?,
            })
        })
        .collect()
}

/// The database must be the one that the trail was begun for.
pub(crate) fn check_identity(database: &SqliteSource, trail: &Trail) -> Result<(), InitError> {
    let expected = trail.genesis().system.clone();
    let found = identity(database)?;
    if expected == found {
        Ok(())
    } else {
        Err(InitError::OtherDatabase { expected, found })
    }
}

/// The database's identity as genesis lines name it: engine and system id.
fn identity(database: &SqliteSource) -> Result<String, SqliteError> {
    Ok(format!("sqlite:{}", database.system()?.unwrap_or_default()))
}
