//! A word that is kept in the database and beside the trail: an old copy of the
//! database does not have the newest one, however far its log has gone since.
//!
//! It is a row of `pitser.installed`. A role that may not write there has none.

use super::install::ask;
use super::slot::text;
use super::{Connection, Name, PgError};
use crate::source::Word;

/// The word that the database has.
pub(super) fn read(sql: &mut Connection, publication: &Name) -> Result<Word, PgError> {
    let asked = ask(
        sql,
        &format!(
            "SELECT before FROM pitser.installed WHERE kind = 'word' AND object = '{publication}'"
        ),
    );
    let rows = match asked {
        Err(error) if is_forbidden(&error) => return Ok(Word::Forbidden),
        other => other?,
    };
    let word = rows.first().and_then(|row| text(row.first()?));
    Ok(word.map_or(Word::Absent, |word| Word::Is(word.to_owned())))
}

/// Puts another one in its place; `false` if this role may not. No standby is
/// waited for.
pub(super) fn write(sql: &mut Connection, publication: &Name, word: &str) -> Result<bool, PgError> {
    let word = word.replace('\'', "''");
    let asked = ask(
        sql,
        &format!(
            "SET LOCAL synchronous_commit = local; \
             INSERT INTO pitser.installed(kind, object, before) VALUES ('word', '{publication}', '{word}') \
             ON CONFLICT (kind, object) DO UPDATE SET before = excluded.before"
        ),
    );
    match asked {
        Err(error) if is_forbidden(&error) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Whether the role lacks a right, all transactions are read-only, or our schema
/// is gone, which is noticed elsewhere.
fn is_forbidden(error: &PgError) -> bool {
    match error {
        PgError::Permission { .. } => true,
        PgError::Server { code, .. } => matches!(code.as_str(), "25006" | "42P01" | "3F000"),
        _ => false,
    }
}
