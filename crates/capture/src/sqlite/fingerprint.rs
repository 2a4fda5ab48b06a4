//! What capture relies on in the schema, and how it was weakened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::table::Table;
use super::{SqliteError, install};

/// The schema as far as capture relies on it. Holds no row data; serialise it
/// to seal it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SQLite's count of schema changes. `VACUUM` raises it too.
    pub schema_version: i64,
    /// The name given to the database at installation.
    pub system: Option<String>,
    /// The guarded tables, spelled as the schema spells them.
    pub guarded: BTreeSet<String>,
    /// Our objects, the guarded tables, and every index and trigger on either:
    /// type and name to SQL, exactly as the schema keeps it.
    pub objects: BTreeMap<String, String>,
    /// The column lists that outbox rows refer to.
    pub shapes: Vec<String>,
}

impl Fingerprint {
    pub(super) fn take(db: &Connection, tables: &[Table]) -> Result<Self, SqliteError> {
        let guarded: BTreeSet<String> = tables.iter().map(|table| table.name.clone()).collect();
        let moment = db.unchecked_transaction()?;
        Ok(Self {
            schema_version: moment.pragma_query_value(None, "schema_version", |row| row.get(0))?,
            system: install::system(&moment)?,
            objects: objects(&moment, &guarded)?,
            shapes: shapes(&moment)?,
            guarded,
        })
    }

    /// How `now` differs from this earlier fingerprint, in a stable order.
    pub fn compare(&self, now: &Self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        if self.system != now.system {
            drifts.push(Drift::OtherDatabase);
        }
        let names: BTreeSet<&String> = self.objects.keys().chain(now.objects.keys()).collect();
        for name in names {
            drifts.extend(self.compare_object(name, now));
        }
        if !now.shapes.starts_with(&self.shapes) {
            drifts.push(Drift::Weakened {
                object: "rows of table pitser_shape".to_owned(),
                how: How::Changed,
            });
        }
        if drifts.is_empty() && self.schema_version != now.schema_version {
            drifts.push(Drift::Touched {
                from: self.schema_version,
                to: now.schema_version,
            });
        }
        drifts
    }

    fn compare_object(&self, name: &str, now: &Self) -> Option<Drift> {
        let how = match (self.objects.get(name), now.objects.get(name)) {
            (Some(was), Some(is)) if was == is => return None,
            (Some(_), Some(_)) => How::Changed,
            (Some(_), None) => How::Dropped,
            (None, _) => How::Added,
        };
        let ours = [self, now].iter().any(|side| side.names_ours(name));
        let object = name.to_owned();
        Some(if ours {
            Drift::Weakened { object, how }
        } else {
            Drift::Schema { object, how }
        })
    }

    /// Whether the object is one of ours, or works on one of ours: a trigger
    /// on the outbox could drop what the others write.
    fn names_ours(&self, object: &str) -> bool {
        self.objects
            .get(object)
            .is_some_and(|sql| sql.to_ascii_lowercase().contains("pitser_"))
    }
}

/// One difference between two fingerprints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Drift {
    /// An object that capture is made of was dropped, changed or added.
    Weakened {
        /// Type and name.
        object: String,
        /// What became of it.
        how: How,
    },
    /// A guarded table, or an index or trigger on it, is another one now.
    Schema {
        /// Type and name.
        object: String,
        /// What became of it.
        how: How,
    },
    /// The schema was changed, yet looks as before: another table's DDL, a
    /// `VACUUM`, or a trigger dropped and put back. Only a scan can tell.
    Touched {
        /// The schema version before.
        from: i64,
        /// The schema version now.
        to: i64,
    },
    /// The file is another database, or capture was installed anew.
    OtherDatabase,
}

/// What became of an object of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It is gone.
    Dropped,
    /// Its SQL is another.
    Changed,
    /// It was not there before.
    Added,
}

impl Drift {
    /// The finding that this difference is.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Weakened { .. } | Self::Touched { .. } => "CAP-03",
            Self::Schema { .. } => "CAP-05",
            Self::OtherDatabase => "CAP-02",
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weakened { object, how } => write!(f, "capture weakened: {object} {how}"),
            Self::Schema { object, how } => write!(f, "schema changed: {object} {how}"),
            Self::Touched { from, to } => {
                write!(
                    f,
                    "schema version went from {from} to {to}, yet every object is as before"
                )
            }
            Self::OtherDatabase => f.write_str("another database, or capture was installed anew"),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "dropped",
            Self::Changed => "changed",
            Self::Added => "added",
        })
    }
}

fn objects(
    db: &Connection,
    guarded: &BTreeSet<String>,
) -> Result<BTreeMap<String, String>, SqliteError> {
    let mut query = db.prepare(
        "SELECT type || ' ' || name, tbl_name, coalesce(sql, ''), \
         instr(lower(name || ' ' || tbl_name || ' ' || coalesce(sql, '')), 'pitser_') > 0 FROM sqlite_schema",
    )?;
    let mut rows = query.query([])?;
    let mut objects = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (table, ours): (String, bool) = (row.get(1)?, row.get(3)?);
        // A trigger keeps the table's name as its own statement spelled it.
        if ours || guarded.iter().any(|it| it.eq_ignore_ascii_case(&table)) {
            objects.insert(row.get(0)?, row.get(2)?);
        }
    }
    Ok(objects)
}

fn shapes(db: &Connection) -> Result<Vec<String>, SqliteError> {
    if !db.table_exists(None, "pitser_shape")? {
        return Ok(Vec::new());
    }
    let mut query = db.prepare(
        "SELECT id || ' ' || tbl || ' ' || columns || ' ' || key FROM pitser_shape ORDER BY id",
    )?;
    let shapes = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(shapes)
}
