//! What capture relies on in the catalogue, and how it was weakened
//! (docs/spec/62-postgres-capture.md §11).
//!
//! Each row of the catalogue that matters is one entry: *facts*, which say how
//! it is, and a *stamp*, which changes whenever it is written, whatever is
//! written. A table that was out of the publication for one transaction has
//! its old facts and a new stamp.

mod drift;
mod query;
mod shapes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::install::{UNREADABLE, ask, flag, string};
use super::slot::text;
use super::version::Version;
use super::wire::Field;
use super::{Connection, Name, PgError, spelled};

use crate::source::{Drift, Shape};

/// The catalogue as far as capture relies on it, at one moment.
///
/// Kind, name and part of an object, separated by tabs, to its facts and,
/// after the last tab, its stamp. Holds names, numbers and hashes, no row
/// data; serialise it to seal it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    /// Takes it, in one query with one snapshot; another query before it asks
    /// for the server's version.
    ///
    /// # Errors
    /// [`PgError::Permission`] where `pg_control_system` was revoked and this is
    /// no connection for replication; otherwise those of a query.
    pub fn take(sql: &mut Connection, publication: &Name, slot: &Name) -> Result<Self, PgError> {
        let rows = ask(
            sql,
            &format!(
                "SELECT {}, has_function_privilege('pg_control_system()', 'EXECUTE')",
                Version::COLUMN
            ),
        )?;
        let row = rows.first().ok_or(UNREADABLE)?;
        let (version, permitted) = (Version::read(&string(row, 0)?)?, flag(row, 1));
        let mut entries = Vec::new();
        if !permitted {
            let system = super::install::system_identifier(sql)?.cast_signed();
            entries.push(("system\tidentifier".to_owned(), format!("{system}\t")));
        }
        let query = query::query(version, permitted, publication, slot);
        for row in ask(sql, &query)? {
            entries.push(entry(&row)?);
        }
        Ok(Self::of(entries))
    }

    /// Notes what is not in the catalogue: that nobody is to say who acts, by the
    /// guardian's own configuration. Whoever changes that is noticed too.
    pub fn note_unattributed(&mut self, publication: &Name) {
        let key = format!("{}\t{publication}", drift::ATTRIBUTION);
        self.0.insert(key, "off\t".to_owned());
    }

    /// How `now` differs from this earlier fingerprint, in a stable order.
    pub fn compare(&self, now: &Self) -> Vec<Drift> {
        drift::compare(&self.0, &now.0)
    }

    /// The tables that were guarded then, as [`Source::shapes`] has them.
    ///
    /// [`Source::shapes`]: crate::Source::shapes
    pub fn shapes(&self) -> Vec<Shape> {
        shapes::shapes(&self.0)
    }

    /// Two objects whose names were chosen to read alike are both kept.
    fn of(mut entries: Vec<(String, String)>) -> Self {
        entries.sort_unstable();
        let mut kept: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in entries {
            let place = kept.entry(key).or_default();
            if !place.is_empty() {
                place.insert(0, '\n');
            }
            place.insert_str(0, &value);
        }
        Self(kept)
    }
}

/// `(kind, schema, name, part, facts, stamp)`, of which schema and part may be null.
fn entry(row: &[Field]) -> Result<(String, String), PgError> {
    let (kind, name) = (string(row, 0)?, string(row, 2)?);
    let name = match row.get(1).and_then(text) {
        Some(schema) => spelled(schema, &name),
        None => name,
    };
    let part = row.get(3).and_then(text).map(|part| format!("\t{part}"));
    let key = format!("{kind}\t{name}{}", part.unwrap_or_default());
    Ok((key, format!("{}\t{}", string(row, 4)?, string(row, 5)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_read_alike_hide_nothing() {
        let of = |values: [&str; 2]| {
            Fingerprint::of(
                values
                    .map(|value| ("k\tn".to_owned(), value.to_owned()))
                    .into(),
            )
        };
        assert_eq!(of(["a\t1", "b\t2"]), of(["b\t2", "a\t1"]));
        assert_ne!(of(["a\t1", "b\t2"]), of(["a\t1", "b\t3"]));
        assert_ne!(of(["a\t1", "b\t2"]), of(["a\t3", "b\t2"]));
    }
}
