//! Whose record a row is: along the configured path, from the guardian's own
//! in-order state, never by asking the live database.

use crate::config::Source;
use pitser_capture::{Cell, Row, Shape};
use std::collections::{BTreeMap, HashMap};

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

/// A path that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("source.patient.\"{table}\" = \"{path}\": {why}")]
pub struct PathError {
    table: String,
    path: String,
    why: String,
}

/// The paths of all guarded tables, and which record belongs to whom.
#[derive(Debug, Default)]
pub(crate) struct Patients {
    paths: BTreeMap<String, Path>,
    /// Identifiers of the records that other tables point at: table and key
    /// value to the patient's identifier.
    owners: HashMap<String, HashMap<Vec<u8>, Option<String>>>,
}

impl Patients {
    /// Reads the configured paths for `tables`.
    pub(crate) fn new(source: &Source, tables: &[Shape]) -> Result<Self, PathError> {
        let mut this = Self::default();
        for Shape {
            name: table,
            columns,
            ..
        } in tables
        {
            let Some(text) = source.patient.get(table) else {
                this.paths.insert(table.clone(), Path::None);
                continue;
            };
            let wrong = |why: String| PathError {
                table: table.clone(),
                path: text.clone(),
                why,
            };
            let column_of = |column: &str| match columns.iter().any(|c| c == column) {
                true => Ok(column.to_owned()),
                false => Err(wrong(format!("table {table} has no column {column}"))),
            };
            let path = match text.split_once("->") {
                None => Path::Column(column_of(text.trim())?),
                Some((column, target)) => {
                    let column = column_of(column.trim())?;
                    let (target, key) = target
                        .trim()
                        .rsplit_once('.')
                        .ok_or_else(|| wrong("after -> comes table.column".into()))?;
                    let Some(shape) = tables.iter().find(|shape| shape.name == target) else {
                        return Err(wrong(format!("table {target} is not guarded")));
                    };
                    if shape.key != [key.to_owned()] {
                        return Err(wrong(format!(
                            "{key} is not the whole primary key of {target}"
                        )));
                    }
                    this.owners.entry(target.to_owned()).or_default();
                    Path::Through {
                        column,
                        table: target.to_owned(),
                    }
                }
            };
            this.paths.insert(table.clone(), path);
        }
        if let Some(unknown) = source.patient.keys().find(|t| !this.paths.contains_key(*t)) {
            let path = source.patient[unknown].clone();
            return Err(PathError {
                table: unknown.clone(),
                path,
                why: unknown_table(unknown, tables),
            });
        }
        Ok(this)
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

    /// The patient of a row.
    pub(crate) fn of(&self, table: &str, row: &Row) -> Option<String> {
        match self.paths.get(table)? {
            Path::None => None,
            Path::Column(column) => identifier(row.get(column)?),
            Path::Through { column, table } => {
                let value = row.get(column)?.expose()?;
                self.owners.get(table)?.get(value)?.clone()
            }
        }
    }

    /// True if other tables find their patients through this one, so that
    /// [`Patients::learn`] must be told of its rows.
    pub(crate) fn is_target(&self, table: &str) -> bool {
        self.owners.contains_key(table)
    }

    /// Remembers whose record `key` of `table` is.
    pub(crate) fn learn(&mut self, table: &str, key: &[u8], patient: Option<String>) {
        if let Some(owners) = self.owners.get_mut(table) {
            owners.insert(key.to_vec(), patient);
        }
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

/// A cell's value as a patient identifier: its text without the type letter.
pub(crate) fn identifier(cell: &Cell) -> Option<String> {
    let bytes = cell.expose()?;
    let text = std::str::from_utf8(bytes.get(1..)?).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}
