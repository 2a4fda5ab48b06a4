//! A guarded PostgreSQL database (docs/spec/62-postgres-capture.md).
//!
//! The server's own write-ahead log says what happened: logical replication
//! hands out the changes of committed transactions, in commit order, and keeps
//! them until they are acknowledged. What is rolled back never arrives.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pitser_capture::postgres::install::{self, Request, Wanted};
//! use pitser_capture::postgres::{Config, Connection, Name, Snapshot, Stream, slot};
//! use pitser_capture::{Captured, Position};
//! use std::ops::ControlFlow;
//! use std::time::Duration;
//!
//! let config = Config::parse("postgres://pitser:secret@db.example:5432/hospital")?;
//! let (publication, name) = (Name::new("pitser")?, Name::new("pitser")?);
//!
//! // Once: the publication first, then the slot.
//! let mut sql = Connection::open(&config)?;
//! install::check(&mut sql, &name)?;
//! let guard = |found| Wanted { found, columns: None, full: false };
//! let tables: Vec<Wanted> = install::tables(&mut sql)?.into_iter().map(guard).collect();
//! let request = Request { publication: &publication, slot: &name, tables: &tables, full: false, attribution: true };
//! install::install(&mut sql, &request)?;
//! let mut replication = Connection::open_replication(&config)?;
//! let made = slot::create(&mut replication, &name)?;
//! let start = Position::Log { lsn: made.consistent_point().0, nth: 0 };
//! let mut baseline = Snapshot::open_exported(&config, made.snapshot())?;
//! for table in baseline.tables(&publication)? {
//!     baseline.scan(&table, 1000, |rows| { /* into the trail */ ControlFlow::Continue(()) })?;
//! }
//!
//! // Always:
//! let mut stream = Stream::start(replication, &name, &publication, start)?;
//! loop {
//!     match stream.next(Duration::from_secs(1))? {
//!         // Once everything up to `pos`, and `pos` itself, is on disk:
//!         Some(Captured::Mark { pos }) => stream.ack(pos)?,
//!         Some(event) => { /* into the trail */ }
//!         None => {}
//!     }
//! }
//! # }
//! ```
//!
//! In scope: the wire protocol and TLS, decoding `pgoutput`, slots and
//! publications, turning transactions into events, what is
//! [installed](install) in the database, how that was weakened. Elsewhere: who
//! is whose patient, when to retry.

mod config;
mod encoding;
mod error;
mod fingerprint;
pub mod install;
pub mod pgoutput;
mod questions;
mod reader;
pub mod slot;
mod snapshot;
mod source;
mod stream;
mod tls;
mod version;
mod wire;
mod word;

use std::fmt;
use std::str::FromStr;

use crate::event::Cell;
use error::quote;

pub use config::{Config, SslMode};
pub use error::PgError;
pub use fingerprint::Fingerprint;
pub use snapshot::{Snapshot, Table};
pub use source::{Moment, PgSource, Place};
pub use stream::Stream;
pub use wire::{Connection, Field};

/// A place in the write-ahead log, in bytes from its beginning.
///
/// Written as PostgreSQL does: two hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = PgError;

    fn from_str(text: &str) -> Result<Self, PgError> {
        let half = |part: &str| {
            let digits =
                (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(part, 16).ok().filter(|_| digits)
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or(PgError::Protocol(
                "a log position that is not two hexadecimal numbers",
            ))
    }
}

/// A slot's or publication's name: 1 to 63 of `a-z`, `0-9` and `_`, a letter
/// first, so that it needs no quoting anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Checks the name.
    ///
    /// # Errors
    /// [`PgError::Name`].
    pub fn new(name: impl Into<String>) -> Result<Self, PgError> {
        let name = name.into();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if name.len() <= 63
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(plain)
        {
            Ok(Self(name))
        } else {
            Err(PgError::Name { name })
        }
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value in canonical form: `t` and the server's text (spec 62 §7).
fn cell(text: Option<&[u8]>) -> Cell {
    text.map_or(Cell::NULL, |text| Cell::lettered(b't', text))
}

/// `schema.table`, each part quoted only where a dot or quote would mislead.
fn spelled(schema: &str, table: &str) -> String {
    let part = |name: &str| match name.contains(['.', '"']) {
        true => quote(name),
        false => name.to_owned(),
    };
    format!("{}.{}", part(schema), part(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_stay_unambiguous() {
        assert_eq!(spelled("public", "Patient õ"), "public.Patient õ");
        assert_eq!(spelled("a.b", "c\"d"), "\"a.b\".\"c\"\"d\"");
    }

    #[test]
    fn positions_are_written_as_postgresql_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/G",
            "+1/1",
            "123456789/0",
            "1/2/3",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_need_no_quoting() {
        assert!(Name::new("pitser_2").is_ok());
        for wrong in ["", "2", "_a", "A", "a-b", "a'b", "õ", &"a".repeat(64)] {
            assert!(Name::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
