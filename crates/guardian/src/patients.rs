//! Whose record a row is: along the configured path, from the guardian's own
//! in-order state, never by asking the live database.

use crate::config::Source;
use pitser_capture::{Row, Shape};
use pitser_evidence::codec::Bytes32;
use pitser_evidence::commit::{Key as SecretKey, record_key};
use pitser_trail::PatientId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How the patient of a table's rows is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    /// A column holds the patient's identifier.
    Column(String),
    /// A column holds the key of a row in another table, whose patient it is.
    Through { column: String, table: String },
    /// Rows of this table have no patient.
    None,
}

/// Whose a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It has no patient.
    Nobody,
    /// The patient's, by the identifier that the database has for them.
    Patient(String),
    /// The same, by the pseudonym that the trail has: the vault lost the identifier.
    Pseudonym(Bytes32),
    /// That cannot be told: the path does not fit the table, or leads to a row that is not
    /// there, or of which nobody knows any more whose it was.
    Unknown,
}

impl Owner {
    /// The list that lines about the row belong to.
    pub(crate) fn list(self) -> Option<PatientId> {
        match self {
            Self::Nobody => None,
            Self::Patient(id) => Some(PatientId::Id(id)),
            Self::Pseudonym(pseudonym) => Some(PatientId::Pseudonym(pseudonym)),
            Self::Unknown => Some(PatientId::Unknown),
        }
    }
}

/// A path that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("source.patient.\"{table}\" = \"{path}\": {why}")]
pub struct PathError {
    /// The table whose rows' patients are found by it.
    pub(crate) table: String,
    path: String,
    why: String,
}

/// The paths of all guarded tables, and which record belongs to whom.
#[derive(Debug, Default)]
pub(crate) struct Patients {
    paths: BTreeMap<String, Path>,
    /// Tables whose path leads to a table that cannot be looked up in.
    lost: BTreeSet<String>,
    /// Whose the records are that other tables point at, by table and key value.
    owners: HashMap<String, HashMap<Vec<u8>, Owner>>,
    /// The same of records that the vault does not open: what their key is, nobody knows,
    /// but a key that leads to one makes its name.
    closed: HashMap<String, Closed>,
}

/// Records of a table by the names that the trail has for them.
#[derive(Debug)]
struct Closed {
    /// Makes those names.
    key: SecretKey,
    owners: HashMap<Bytes32, Owner>,
}

impl Patients {
    /// Reads the configured paths for `tables`.
    pub(crate) fn new(source: &Source, tables: &[Shape]) -> Result<Self, PathError> {
        match Self::fitting(source, tables) {
            (this, wrong) if wrong.is_empty() => Ok(this),
            (_, mut wrong) => Err(wrong.swap_remove(0)),
        }
    }

    /// The same as far as the paths fit the tables, and those that do not.
    pub(crate) fn fitting(source: &Source, tables: &[Shape]) -> (Self, Vec<PathError>) {
        let mut this = Self::default();
        let mut errors = Vec::new();
        for shape in tables {
            let table = &shape.name;
            let Some(text) = source.patient.get(table) else {
                this.paths.insert(table.clone(), Path::None);
                continue;
            };
            let mut wrong = |why: String| {
                errors.push(PathError {
                    table: table.clone(),
                    path: text.clone(),
                    why,
                });
            };
            let (column, target) = match text.split_once("->") {
                None => (text.trim(), None),
                Some((column, target)) => (column.trim(), Some(target.trim())),
            };
            if !shape.columns.iter().any(|known| known == column) {
                wrong(format!("table {table} has no column {column}"));
            }
            let column = column.to_owned();
            let path = match target.map(|target| target.rsplit_once('.')) {
                None => Path::Column(column),
                Some(None) => {
                    wrong("after -> comes table.column".into());
                    this.lost.insert(table.clone());
                    Path::Through {
                        column,
                        table: target.unwrap_or_default().to_owned(),
                    }
                }
                Some(Some((target, key))) => {
                    match tables.iter().find(|shape| shape.name == target) {
                        Some(shape) if shape.key == [key.to_owned()] => {
                            this.owners.entry(target.to_owned()).or_default();
                        }
                        known => {
                            wrong(match known {
                                None => format!("table {target} is not guarded"),
                                Some(_) => {
                                    format!("{key} is not the whole primary key of {target}")
                                }
                            });
                            this.lost.insert(table.clone());
                        }
                    }
                    Path::Through {
                        column,
                        table: target.to_owned(),
                    }
                }
            };
            this.paths.insert(table.clone(), path);
        }
        let unknown = source.patient.iter();
        for (table, path) in unknown.filter(|(table, _)| !this.paths.contains_key(*table)) {
            errors.push(PathError {
                table: table.clone(),
                path: path.clone(),
                why: unknown_table(table, tables),
            });
        }
        (this, errors)
    }

    /// How a table's patients are found, as text for the genesis line.
    pub(crate) fn text(&self, table: &str) -> String {
        match self.paths.get(table) {
            Some(Path::Column(column)) => column.clone(),
            Some(Path::Through { column, table }) => format!("{column} -> {table}"),
            Some(Path::None) | None => "none".into(),
        }
    }

    /// The whole mapping as text, one table a line: its hash is in checkpoints.
    pub(crate) fn mapping(&self) -> String {
        self.paths
            .keys()
            .map(|table| format!("{table}\t{}\n", self.text(table)))
            .collect()
    }

    /// All tables, each after those that its patients are found through.
    pub(crate) fn order(&self) -> Vec<String> {
        let mut tables: Vec<&String> = self.paths.keys().collect();
        tables.sort_by_key(|table| self.steps(table));
        tables.into_iter().cloned().collect()
    }

    /// Steps from a table to the one that holds the patient's identifier.
    pub(crate) fn steps(&self, table: &str) -> usize {
        self.depth(table, self.paths.len())
    }

    fn depth(&self, table: &str, most: usize) -> usize {
        match self.paths.get(table) {
            Some(Path::Through { table, .. }) if most > 0 => 1 + self.depth(table, most - 1),
            _ => 0,
        }
    }

    /// Whose a row is, by the columns that it has.
    pub(crate) fn of(&self, table: &str, row: &Row) -> Owner {
        let (column, target) = match self.paths.get(table) {
            None | Some(Path::None) => return Owner::Nobody,
            Some(Path::Column(column)) => (column, None),
            Some(Path::Through { column, table }) => (column, Some(table)),
        };
        let Some(cell) = row.get(column) else {
            return Owner::Unknown;
        };
        match (cell.expose(), target) {
            (None, _) => Owner::Nobody,
            (Some([_]), None) => Owner::Nobody,
            (Some(value), None) => identifier(value).map_or(Owner::Unknown, Owner::Patient),
            (Some(_), Some(_)) if self.lost.contains(table) => Owner::Unknown,
            (Some(value), Some(target)) => {
                let known = self.owners.get(target).and_then(|owners| owners.get(value));
                let known = known.or_else(|| self.closed.get(target)?.owner(value));
                // It leads somewhere: to a row that is not there, or whose key is written
                // otherwise (`5` and `5.00`).
                known.cloned().unwrap_or(Owner::Unknown)
            }
        }
    }

    /// True if other tables find their patients through this one, so that
    /// [`Patients::learn`] must be told of its rows.
    pub(crate) fn is_target(&self, table: &str) -> bool {
        self.owners.contains_key(table)
    }

    /// Remembers whose record `key` of `table` is.
    pub(crate) fn learn(&mut self, table: &str, key: &[u8], owner: Owner) {
        if let Some(owners) = self.owners.get_mut(table) {
            owners.insert(key.to_vec(), owner);
        }
    }

    /// Forgets a row that is no more: whose a row is that still leads there, nobody can tell.
    pub(crate) fn forget(&mut self, table: &str, key: &[u8]) {
        if let Some(owners) = self.owners.get_mut(table) {
            owners.remove(key);
        }
        if let Some(closed) = self.closed.get_mut(table) {
            let record = closed.record(key);
            closed.owners.remove(&record);
        }
    }

    /// Remembers whose a `record` of `table` is that the vault does not open. `key` makes
    /// the names of that table's records. What is learnt of a row later prevails.
    pub(crate) fn learn_closed(
        &mut self,
        table: &str,
        key: impl FnOnce() -> SecretKey,
        record: Bytes32,
        owner: Owner,
    ) {
        if self.is_target(table) {
            let closed = self.closed.entry(table.to_owned());
            let closed = closed.or_insert_with(|| Closed {
                key: key(),
                owners: HashMap::new(),
            });
            closed.owners.insert(record, owner);
        }
    }
}

impl Closed {
    fn owner(&self, value: &[u8]) -> Option<&Owner> {
        self.owners.get(&self.record(value))
    }

    fn record(&self, value: &[u8]) -> Bytes32 {
        record_key(&self.key, std::iter::once(value))
    }
}

/// That no guarded table has a name, and which name may be meant.
pub(crate) fn unknown_table(name: &str, tables: &[Shape]) -> String {
    let within = |shape: &&Shape| {
        let (_, table) = shape.name.rsplit_once('.').unwrap_or_default();
        table == name
    };
    match tables.iter().find(within) {
        Some(shape) => format!(
            "no guarded table has this name; did you mean {}?",
            shape.name
        ),
        None => "no guarded table has this name".to_owned(),
    }
}

/// A value as a patient identifier: its text without the type letter.
pub(crate) fn identifier(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value.get(1..)?).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}
