//! What the versions of PostgreSQL have of that which capture asks for.
//!
//! | from | new |
//! |---|---|
//! | 14 | `CREATE OR REPLACE TRIGGER`, messages in `pgoutput`: without these, nothing goes |
//! | 15 | column lists, row filters and whole schemas in publications |
//! | 16 | each membership says whether rights are inherited by it |
//! | 17 | slots that standbys keep too (`failover`), a limit for transactions (`transaction_timeout`) |
//! | 18 | publications that send generated columns; without, a table that has some and `REPLICA IDENTITY FULL` takes no updates |
//!
//! All else is asked for in words that each of them takes.

use std::fmt;

use super::slot::text;
use super::{Connection, PgError};

/// A server's version, as `server_version_num` has it: `150006`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32);

impl Version {
    /// What [`Version::read`] reads, as a column of a query.
    pub(super) const COLUMN: &str = "current_setting('server_version_num')";

    /// The major version that can be guarded and is the oldest.
    const OLDEST: u32 = 14;
    /// The newest that the tests were run against (docs/spec/62-postgres-capture.md §1).
    const NEWEST: u32 = 18;

    /// Asks the server.
    ///
    /// # Errors
    /// [`PgError::Version`] for one that is too old to be guarded.
    pub(super) fn ask(sql: &mut Connection) -> Result<Self, PgError> {
        let rows = sql.query("SHOW server_version_num")?;
        let found = rows.first().and_then(|row| text(row.first()?));
        Self::read(found.unwrap_or_default())
    }

    /// Reads what the server said.
    ///
    /// # Errors
    /// [`PgError::Version`] for one that is too old to be guarded.
    pub(super) fn read(text: &str) -> Result<Self, PgError> {
        let number = text.parse();
        let version = Self(number.map_err(|_| PgError::Protocol("a server without a version"))?);
        match version.has(Self::OLDEST) {
            true => Ok(version),
            false => Err(PgError::Version {
                found: version.to_string(),
            }),
        }
    }

    /// Publications may name columns, rows and whole schemas.
    pub(super) fn has_column_lists(self) -> bool {
        self.has(15)
    }

    /// Whether a member has the rights of its role follows from how that was granted;
    /// before, from the member's own `INHERIT`.
    pub(super) fn grants_inherit(self) -> bool {
        self.has(16)
    }

    /// Slots may be kept by standbys too.
    pub(super) fn has_failover_slots(self) -> bool {
        self.has(17)
    }

    /// Publications may send generated columns.
    pub(super) fn sends_generated_columns(self) -> bool {
        self.has(18)
    }

    /// What to say of a version that nobody has tried.
    pub(super) fn untested(self) -> Option<String> {
        self.has(Self::NEWEST + 1).then(|| {
            format!(
                "this is PostgreSQL {self}, which this pitser was not tested with ({} is the newest that it was): \
                 see whether there is a newer pitser",
                Self::NEWEST
            )
        })
    }

    fn has(self, major: u32) -> bool {
        self.0 / 10_000 >= major
    }
}

impl fmt::Display for Version {
    /// As people write it: `15.6`, before 10 `9.6.24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            100_000.. => write!(f, "{}.{}", self.0 / 10_000, self.0 % 10_000),
            older => write!(
                f,
                "{}.{}.{}",
                older / 10_000,
                older / 100 % 100,
                older % 100
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_is_refused_and_what_is_too_new_is_told() {
        for (number, found) in [("90624", "9.6.24"), ("130023", "13.23")] {
            let refused = Version::read(number).unwrap_err().to_string();
            let wanted = format!("this is PostgreSQL {found}; 14 is the oldest");
            assert!(refused.starts_with(&wanted), "{refused}");
        }
        for tested in ["140000", "140023", "150018", "180004"] {
            assert_eq!(Version::read(tested).unwrap().untested(), None, "{tested}");
        }
        let told = Version::read("190001").unwrap().untested().unwrap();
        assert!(told.starts_with("this is PostgreSQL 19.1,"), "{told}");
        assert!(Version::read("").is_err() && Version::read("15.6").is_err());
    }

    #[test]
    fn a_beta_has_what_its_version_has() {
        let beta = Version::read("180000").unwrap();
        assert!(beta.sends_generated_columns() && beta.has_failover_slots());
        let old = Version::read("149999").unwrap();
        assert!(!old.has_column_lists() && !old.has_failover_slots());
    }
}
