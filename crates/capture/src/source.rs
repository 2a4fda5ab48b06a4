//! What a guardian asks of a database, whatever engine it is.
//!
//! A source tells what happened in one order of its own ([`Source::poll`]),
//! forgets it when told that it is durable elsewhere ([`Source::ack`]), shows
//! its rows as of one moment ([`Snapshot`]), and what capture relies on
//! ([`Source::fingerprint`]).

use std::ops::{ControlFlow, Range};

use thiserror::Error;

use crate::event::{Captured, Key, Position, Row};
use crate::postgres::PgError;
use crate::sqlite::SqliteError;

/// A guarded table: its columns, and those of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name, as in [`crate::Change::table`].
    pub name: String,
    /// Its stored columns, in the table's order.
    pub columns: Vec<String>,
    /// What the engine knows each of them by, whatever it is called; empty where it has
    /// names alone.
    pub numbers: Vec<u32>,
    /// The columns that identify a row, in key order.
    pub key: Vec<String>,
    /// The whole row is its key, and rows may be equal: then they are told
    /// apart by a number ([`Key::copy`]).
    pub keyless: bool,
}

impl Shape {
    /// What this table calls the column that `was`, an earlier shape of it, called so;
    /// `None` if it is gone, or the engine has names alone.
    pub fn name_of<'a>(&'a self, column: &str, was: &Self) -> Option<&'a str> {
        let place = was.columns.iter().position(|name| name == column)?;
        let number = was.numbers.get(place)?;
        let place = self.numbers.iter().position(|it| it == number)?;
        self.columns.get(place).map(String::as_str)
    }
}

/// Which database this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Engine and the name that it was given when it came to be.
    pub system: String,
    /// Its timeline; 1 where the engine has none.
    pub timeline: u32,
}

/// A guarded database: the guardian's one connection that may write.
pub trait Source: Send {
    /// The guarded tables.
    fn shapes(&self) -> &[Shape];

    /// Reads anew which tables are guarded; `true` if they, their columns or keys
    /// are others than before.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn refresh(&mut self) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// Names of the tables that are not guarded, and could be.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn unguarded(&mut self) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    /// Why nothing is told any more, where that is so: the database under the configured
    /// name is another one than is followed here, or gone.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn replaced(&self) -> Result<Option<SourceError>, SourceError> {
        Ok(None)
    }

    /// Up to where the source has forgotten what it told, for
    /// [`Source::has_forgotten`]; `None` where it keeps that itself.
    fn forgotten(&self) -> Option<Position> {
        None
    }

    /// Says what [`Source::forgotten`] was before the start: what stands up to there
    /// nevertheless came by an old copy, or a counter that was turned back.
    fn has_forgotten(&mut self, _upto: Position) {}

    /// Makes sure that nobody else is capturing from here, as far as can be seen:
    /// only [`Source::poll`] keeps others out.
    ///
    /// # Errors
    /// [`SourceError::is_taken`], or the database cannot be asked.
    fn free(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// The word that the database keeps for us ([`Source::set_word`]).
    ///
    /// # Errors
    /// The database cannot be asked.
    fn word(&mut self) -> Result<Word, SourceError> {
        Ok(Word::Forbidden)
    }

    /// Has the database keep another word for us: an old copy of it, restored,
    /// does not know it. `false` if it must not.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn set_word(&mut self, _word: &str) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// The number of the next transaction, where they are numbered as they begin: above
    /// those of all that was told, unless this is an older copy of the database.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn next_transaction(&mut self) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }

    /// How the database keeps what was not taken yet: what is wrong with it, and
    /// how many bytes that is, where it says so.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn backlog(&mut self) -> Result<Backlog, SourceError> {
        Ok(Backlog::default())
    }

    /// Whether the engine hands changes over as a stream: it forgets at once what is
    /// acknowledged, and wants to hear from us each second. Otherwise changes
    /// lie in the database, and acknowledging is a write there.
    fn is_stream(&self) -> bool;

    /// Which database this is.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn identity(&mut self) -> Result<Identity, SourceError>;

    /// The key that a person means by these words, one per key column.
    ///
    /// # Errors
    /// A table that is not guarded, or another number of words than key columns.
    fn key(&self, table: &str, words: &[&str]) -> Result<Key, SourceError>;

    /// What was committed after `after`, in order, about `max` steps at most, and
    /// fewer if their rows are large.
    /// Empty if nothing is there yet: does not wait for more than an instant.
    ///
    /// `after` is what is durable; it matters when reading begins, later calls go on where
    /// the last one ended. A transaction that it is in is told anew, from its beginning; so
    /// is one that ends there, unless it was acknowledged. That one has ended, a
    /// [`Captured::Mark`] says, or a change of another one.
    ///
    /// # Errors
    /// The database cannot be asked; [`SourceError::is_busy`]: try again soon.
    /// Missing, rewound or forged changes are no errors but steps.
    fn poll(&mut self, after: Position, max: usize) -> Result<Vec<Captured>, SourceError>;

    /// Leaves out the transaction that was committed there and cannot be told
    /// ([`SourceError::unsendable`]), and tells of a [`Captured::Gap`] instead, for which
    /// this is why, when reading begins.
    fn leave_out(&mut self, _commit: Position, _why: String) {}

    /// A position that covers everything committed by now. [`Source::poll`]
    /// reaches it soon, whatever else happens.
    ///
    /// # Errors
    /// The database cannot be asked.
    fn newest(&mut self) -> Result<Position, SourceError>;

    /// Lets the database forget what is durable elsewhere, up to and including
    /// `upto`, and tells it that we are still here. Repeating it is cheap. A transaction
    /// that was not told to its end is not forgotten.
    ///
    /// # Errors
    /// [`SourceError::is_busy`]: it can wait, try again.
    fn ack(&mut self, upto: Position) -> Result<(), SourceError>;

    /// Prepares a snapshot of the present moment, to be opened on any thread.
    ///
    /// # Errors
    /// As [`Source::poll`].
    fn snapshot(&mut self) -> Result<OpenSnapshot, SourceError>;

    /// Everything that capture relies on, as canonical JSON without row data.
    ///
    /// # Errors
    /// As [`Source::poll`].
    fn fingerprint(&mut self) -> Result<Vec<u8>, SourceError>;

    /// The tables that were guarded when a fingerprint of this source was taken, if it
    /// says so.
    fn shapes_in(&self, _fingerprint: &[u8]) -> Option<Vec<Shape>> {
        None
    }

    /// How two fingerprints of this source differ. One that cannot be read
    /// differs.
    fn drifts(&self, before: &[u8], now: &[u8]) -> Vec<Drift>;
}

/// What a database says when it is asked for our word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Its role may not read it, or it keeps none.
    Forbidden,
    /// There is none.
    Absent,
    /// This one.
    Is(String),
}

/// What a database keeps for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of log that are kept, at least.
    pub kept_bytes: Option<u64>,
    /// It is about to keep no more; in one sentence that says what to do.
    pub danger: Option<String>,
}

/// Opens a snapshot, on the thread that will read it.
pub type OpenSnapshot = Box<dyn FnOnce() -> Result<Box<dyn Snapshot>, SourceError> + Send>;

/// Some rows of a table, with their keys.
pub type Rows = Vec<(Key, Row)>;

/// All guarded tables as of one moment.
pub trait Snapshot {
    /// Every change that the rows show stands at or before this position.
    fn position(&self) -> Position;

    /// The engine's time when the snapshot was taken: RFC 3339, UTC, exactly
    /// six fractional digits.
    fn at(&self) -> &str;

    /// Every row of a table, in chunks of up to `chunk` rows, in no particular
    /// order, until `each` breaks.
    ///
    /// # Errors
    /// The table cannot be read to its end; [`SourceError::is_damage`] if a page
    /// is not as the engine wrote it. [`Snapshot::goes_on`] then says whether others can.
    fn scan(
        &mut self,
        table: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<(), SourceError>;

    /// Whether the same moment can still be read, after a table of it could not.
    fn goes_on(&self) -> bool;

    /// Why rows that a table had at this moment may not have been shown when it was read; by
    /// default they all are.
    ///
    /// # Errors
    /// The engine cannot be asked.
    fn hidden(&mut self, table: &str) -> Result<Option<SourceError>, SourceError> {
        let _ = table;
        Ok(None)
    }

    /// About how many rows a table has, where the engine keeps such a number: for people
    /// who wait.
    ///
    /// # Errors
    /// The engine cannot be asked.
    fn about(&mut self, table: &str) -> Result<Option<u64>, SourceError> {
        let _ = table;
        Ok(None)
    }

    /// Transactions that the rows do not show, although [`Source::poll`] may have
    /// told of them already.
    fn unseen(&self) -> Unseen {
        Unseen::default()
    }

    /// The rows as they were earlier, where the engine keeps enough for that.
    fn past(&mut self) -> Option<&mut dyn Past> {
        None
    }
}

/// Transactions that had begun and that a snapshot does not show, by their numbers.
/// None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// All of these.
    newest: Range<u64>,
    /// Earlier ones that were under way.
    running: Vec<u64>,
}

impl Unseen {
    /// Those of `newest`, whose end is the number of the next to begin, and those of
    /// `running`. One that has not begun cannot have been told either, unless by a
    /// database of which this is an older copy: that one it lacks.
    pub fn new(newest: Range<u64>, running: Vec<u64>) -> Self {
        Self { newest, running }
    }

    /// Whether the snapshot shows whatever the source has told.
    pub fn is_none(&self) -> bool {
        self.newest.is_empty() && self.running.is_empty()
    }

    /// Whether this transaction is one of them.
    pub fn contains(&self, tx: u64) -> bool {
        self.newest.contains(&tx) || self.running.contains(&tx)
    }

    /// The number of the next transaction.
    pub fn next(&self) -> u64 {
        self.newest.end
    }
}

/// Rows as they were at an earlier position.
pub trait Past {
    /// As [`Snapshot::scan`], as of the earlier position `after`. `Ok(false)`
    /// if the source no longer tells what happened since.
    ///
    /// # Errors
    /// As [`Snapshot::scan`].
    fn scan_at(
        &mut self,
        after: Position,
        table: &str,
        chunk: usize,
        each: &mut dyn FnMut(Rows) -> ControlFlow<()>,
    ) -> Result<bool, SourceError>;
}

/// One difference between two fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The finding that it is: `CAP-02` another database or timeline, `CAP-03`
    /// capture weakened, `CAP-05` the schema changed. Empty: no finding. Rows
    /// may have changed unseen after any of them: a scan tells.
    pub code: &'static str,
    /// The guarded table, spelled as in [`crate::Change::table`].
    pub table: Option<String>,
    /// What happened to which object, and what to do.
    pub text: String,
}

impl Drift {
    /// The difference to a fingerprint that was lost, or cannot be read.
    pub(crate) fn unknown() -> Self {
        Self {
            code: "CAP-03",
            table: None,
            text: "what capture relies on is not as it was sealed, and the fingerprint that could say what changed \
                   is lost: compare triggers and publications with `pitser guard init --dry-run`"
                .to_owned(),
        }
    }
}

/// Why a database could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// An SQLite file.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// A PostgreSQL server.
    #[error(transparent)]
    Postgres(#[from] PgError),
}

impl SourceError {
    /// Somebody else is in the way for a moment: nothing is wrong.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(SqliteError::Locked))
    }

    /// Somebody else is capturing: it can be tried again as soon as they end.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Postgres(PgError::SlotBusy { .. }))
    }

    /// A table was guarded a moment ago, and is not any more.
    pub fn is_not_guarded(&self) -> bool {
        matches!(self, Self::Postgres(PgError::NotGuarded { .. }))
    }

    /// A right is missing, or a row cannot be sent, so that it will not be otherwise until
    /// somebody does something.
    pub fn is_refused(&self) -> bool {
        let Self::Postgres(error) = self else {
            return false;
        };
        matches!(
            error,
            PgError::Permission { .. } | PgError::UnsendableRow { .. }
        )
    }

    /// One transaction cannot be told, whatever is tried; where it was committed.
    pub fn unsendable(&self) -> Option<Position> {
        match self {
            Self::Postgres(PgError::Unsendable { commit, .. }) => Some(Position::Log {
                lsn: commit.0,
                nth: 0,
            }),
            _ => None,
        }
    }

    /// The stored data itself cannot be read as the engine wrote it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(error) => matches!(error, SqliteError::Damaged { .. }),
            // Class XX: internal error, data corrupted, index corrupted.
            Self::Postgres(error) => {
                matches!(error, PgError::Server { code, .. } if code.starts_with("XX"))
            }
        }
    }
}
