//! Preparing a database for guarding, and taking everything out again.

mod postgres;
mod sqlite;

use crate::Clock;
use crate::actors::{ActorError, Actors};
use crate::collected::Collected;
use crate::config::{Kind, Source, Tuning};
use crate::patients::{PathError, Patients};
use crate::runtime::StartError;
use pitser_capture::postgres::{Name, PgError};
use pitser_capture::sqlite::SqliteError;
use pitser_capture::{Identity, Position, Shape, Source as Database, SourceError};
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Genesis, Timestamp};
use pitser_trail::{GenesisDraft, Layout, TableDraft, Trail, TrailError, read};

/// Why a source cannot be prepared or opened.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The database.
    #[error(transparent)]
    Database(#[from] SourceError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// A patient path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A rule about actors.
    #[error(transparent)]
    Actor(#[from] ActorError),
    /// A table that a rule looks at.
    #[error(
        "source {name}: there is no table {table}, at which source.actor or source.application.log looks"
    )]
    NoSuchTable {
        /// The source.
        name: String,
        /// The table.
        table: String,
    },
    /// A slot without a trail.
    #[error(
        "replication slot {0} is there already, but no trail that began with it. If another guardian reads it, give this \
         source another one (slot = \"...\"); if not, drop it: SELECT pg_drop_replication_slot('{0}')"
    )]
    StaleSlot(Name),
    /// The trail does not say how far it is.
    #[error("source {0}: the trail names no position that this version can read")]
    NoPosition(String),
    /// Writing the baseline.
    #[error("the baseline is not complete: {0}. `pitser guard run` goes on with it")]
    Baseline(Box<StartError>),
    /// No table fits the patterns.
    #[error("source {name}: no table of its database fits tables = {patterns:?}; it has {there}")]
    NoTables {
        /// The source.
        name: String,
        /// The configured patterns.
        patterns: Vec<String>,
        /// The first tables that the database has, for the eye.
        there: String,
    },
    /// Not prepared yet.
    #[error(
        "source {0} is not prepared: run `pitser guard init` first (with --dry-run it only prints what it would do)"
    )]
    NotInitialised(String),
    /// The trail belongs to another database.
    #[error(
        "CAP-02 source {name}: the trail is that of database {expected}, this one is {found}. If it is the same one after \
         a major upgrade, or on another host, say so by system = {found:?} in its [[source]]: the trail goes on, and \
         tells of it (docs/upgrades.md). If the wrong one is configured, correct its url. If it was replaced by a new \
         one, that needs a new trail: another source name"
    )]
    OtherDatabase {
        /// The source.
        name: String,
        /// What the genesis line or the configuration says.
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
    /// What could not be done, and who can.
    pub notes: Vec<String>,
    /// What is not covered; it is sealed with the genesis.
    pub uncovered: Vec<String>,
    /// Rows that were written as the baseline.
    pub rows: u64,
    /// True if the trail has to be begun.
    pub new_trail: bool,
    /// Hash of the genesis line, once there is a trail.
    pub genesis: Option<String>,
}

impl From<SqliteError> for InitError {
    fn from(error: SqliteError) -> Self {
        Self::Database(error.into())
    }
}

impl From<PgError> for InitError {
    fn from(error: PgError) -> Self {
        Self::Database(error.into())
    }
}

impl InitError {
    /// Whether it is the configuration that does not fit.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Path(_)
            | Self::Actor(_)
            | Self::NoSuchTable { .. }
            | Self::NoTables { .. }
            | Self::NotInitialised(_)
            | Self::OtherDatabase { .. } => true,
            Self::Database(SourceError::Postgres(error)) => error.is_configuration(),
            _ => false,
        }
    }

    /// Whether trying again later, with nothing changed by anybody, may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Database(SourceError::Postgres(error)) if error.is_passing())
    }
}

/// How far the baseline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows that are written.
    pub rows: u64,
    /// About how many there are, by the database's own statistics, where it has any.
    pub about: Option<u64>,
}

/// What [`install`] would do.
///
/// # Errors
/// [`InitError`].
pub fn plan(source: &Source, tuning: &Tuning) -> Result<Plan, InitError> {
    let plan = match source.kind {
        Kind::Sqlite => sqlite::plan(source)?,
        Kind::Postgres => postgres::plan(source, tuning)?,
    };
    Ok(Plan {
        new_trail: is_new(source, tuning),
        ..plan
    })
}

/// Installs capture and begins the trail; whatever is there already stays.
/// `progress` is told how far the baseline is.
///
/// # Errors
/// [`InitError`].
pub fn install(
    source: &Source,
    tuning: &Tuning,
    clock: &Clock,
    progress: &mut dyn FnMut(Progress),
) -> Result<Plan, InitError> {
    match source.kind {
        Kind::Sqlite => sqlite::install(source, tuning, clock()),
        Kind::Postgres => postgres::install(source, tuning, clock, progress),
    }
}

/// Takes everything of ours out of the database. The trail stays.
///
/// # Errors
/// [`InitError`].
pub fn uninstall(source: &Source, dry_run: bool) -> Result<Vec<String>, InitError> {
    match source.kind {
        Kind::Sqlite => sqlite::uninstall(source, dry_run),
        Kind::Postgres => postgres::uninstall(source, dry_run),
    }
}

/// Opens a database that [`install`] prepared.
pub(crate) fn open_guarded(source: &Source) -> Result<Box<dyn Database>, InitError> {
    match source.kind {
        Kind::Sqlite => sqlite::open_guarded(source),
        Kind::Postgres => postgres::open_guarded(source),
    }
}

/// The database must be the one that the trail was begun for, or the one that the
/// configuration says it has become: then the fingerprint is another one, which the trail
/// tells of (`CAP-02`).
pub(crate) fn check_identity(
    found: &Identity,
    genesis: &Genesis,
    source: &Source,
) -> Result<(), InitError> {
    let expected = source.system.as_ref().unwrap_or(&genesis.system);
    if *expected == found.system {
        Ok(())
    } else {
        Err(InitError::OtherDatabase {
            name: source.name.clone(),
            expected: expected.clone(),
            found: found.system.clone(),
        })
    }
}

/// A trail that was begun before: held until the end, unless a running guardian
/// holds it.
struct Begun {
    genesis: Genesis,
    hash: Digest,
    held: Option<Trail>,
}

impl Begun {
    fn open(layout: Layout) -> Result<Self, InitError> {
        match Trail::open::<Collected>(layout.clone()) {
            Ok((trail, _, _)) => Ok(Self {
                genesis: trail.genesis().clone(),
                hash: trail.genesis_hash(),
                held: Some(trail),
            }),
            Err(TrailError::Locked(path)) => {
                let (line, hash) = read::genesis(&layout).map_err(TrailError::from)?;
                Ok(Self {
                    genesis: *line.genesis.ok_or(TrailError::Locked(path))?,
                    hash,
                    held: None,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// From now on the database need not know the word that it knew.
    fn forget_word(&self) {
        if let Some(trail) = &self.held {
            // There may be none.
            let _ = std::fs::remove_file(trail.layout().dir().join(crate::runtime::WORD));
        }
    }
}

fn is_new(source: &Source, tuning: &Tuning) -> bool {
    !tuning.layout(source).has_trail()
}

fn no_tables<'a>(source: &Source, there: impl Iterator<Item = &'a str>) -> InitError {
    const SHOWN: usize = 5;
    let mut there: Vec<&str> = there.collect();
    let more = there.len().saturating_sub(SHOWN);
    there.truncate(SHOWN);
    InitError::NoTables {
        name: source.name.clone(),
        patterns: source.tables.clone(),
        there: match (there.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (false, 0) => there.join(", "),
            (false, more) => format!("{}, and {more} more", there.join(", ")),
        },
    }
}

/// Refuses paths and rules that do not fit the tables, before anything is done.
fn check_rules(source: &Source, shapes: &[Shape]) -> Result<Patients, InitError> {
    Actors::new(source, shapes)?;
    Ok(Patients::new(source, shapes)?)
}

/// Where and when a trail begins, and what is known not to be covered.
struct Beginning {
    at: Timestamp,
    identity: Identity,
    position: Position,
    uncovered: Vec<String>,
}

/// Begins the trail of a source that is prepared.
fn begin(
    source: &Source,
    tuning: &Tuning,
    shapes: &[Shape],
    patients: &Patients,
    beginning: Beginning,
) -> Result<Trail, InitError> {
    let table = |shape: &Shape| TableDraft {
        name: shape.name.clone(),
        columns: shape.columns.clone(),
        key: shape.key.clone(),
        patient: patients.text(&shape.name),
    };
    let draft = GenesisDraft {
        at: beginning.at,
        system: beginning.identity.system,
        timeline: beginning.identity.timeline,
        pos: beginning.position.to_string(),
        source: source.name.clone(),
        tables: shapes.iter().map(table).collect(),
        uncovered: beginning.uncovered,
    };
    let layout = tuning.layout(source);
    pitser_trail::disk::private_dir(layout.dir()).map_err(TrailError::from)?;
    let origin = tuning.origin(source);
    Ok(Trail::create_gathering::<Collected>(
        layout, &origin, &draft,
    )?)
}
