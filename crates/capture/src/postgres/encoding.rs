//! In which encoding the server hands out the values of rows.
//!
//! A database may hold bytes that stand for no character: it is in `SQL_ASCII`, where
//! anything goes, or in an encoding that leaves some bytes undefined. A server that is
//! to convert such a value refuses the whole transaction, for ever. So nobody asks it to:
//!
//! | database | the server sends | we |
//! |---|---|---|
//! | `UTF8` | it as it is | take it |
//! | `SQL_ASCII` | it as it is | take it |
//! | a byte for each character | it as it is | convert it as the server would, by its own table |
//! | another | it in UTF-8 | take it |

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::slot::text;
use super::wire::RAW;
use super::{Connection, PgError, cell};
use crate::event::Cell;

/// How values come, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// In UTF-8, or so that the server has to see to it.
    Sent,
    /// As bytes, which mean nothing.
    Bytes,
    /// As bytes, of which each is a character.
    Characters(Arc<Characters>),
}

/// The upper half of an encoding, in UTF-8; what is not defined is empty.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Characters([Box<str>; HALF]);

const HALF: usize = 128;

/// Encodings in which each byte is a character, by PostgreSQL's names.
const SINGLE: [&str; 27] = [
    "LATIN1",
    "LATIN2",
    "LATIN3",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "WIN1250",
    "WIN1251",
    "WIN1252",
    "WIN1253",
    "WIN1254",
    "WIN1255",
    "WIN1256",
    "WIN1257",
    "WIN1258",
    "WIN866",
    "WIN874",
    "KOI8R",
    "KOI8U",
    "ISO_8859_5",
    "ISO_8859_6",
    "ISO_8859_7",
    "ISO_8859_8",
];

impl Encoding {
    /// Asks the server.
    ///
    /// # Errors
    /// Those of a query.
    pub(super) fn ask(sql: &mut Connection) -> Result<Self, PgError> {
        let rows = sql.query("SELECT pg_catalog.getdatabaseencoding()")?;
        let name = rows.first().and_then(|row| text(row.first()?));
        Ok(match name {
            Some("SQL_ASCII") => Self::Bytes,
            Some(name) if SINGLE.contains(&name) => match Characters::ask(sql, name) {
                Ok(characters) => Self::Characters(Arc::new(characters)),
                Err(error) if error.is_passing() => return Err(error),
                // Nobody here may use plpgsql.
                Err(_) => Self::Sent,
            },
            _ => Self::Sent,
        })
    }

    /// What makes a session send values so; nothing where it does.
    pub(super) fn setting(&self) -> Option<String> {
        match self {
            Self::Sent => None,
            Self::Bytes | Self::Characters(_) => Some(format!("SET client_encoding = {RAW}")),
        }
    }

    /// What is sent for a name. One that is no text is none of ours.
    pub(super) fn name<'a>(&self, sent: &'a [u8]) -> Option<Cow<'a, str>> {
        match self {
            Self::Characters(table) if !sent.is_ascii() => table.text(sent).map(Cow::Owned),
            _ => std::str::from_utf8(sent).ok().map(Cow::Borrowed),
        }
    }

    /// The values of a row, of which null is `None`.
    pub(super) fn cells<'a>(&self, sent: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<Cell> {
        match self {
            Self::Characters(table) => sent.map(|value| table.cell(value)).collect(),
            Self::Sent | Self::Bytes => sent.map(cell).collect(),
        }
    }
}

impl Characters {
    /// What each byte is, by the server's own table. Errors are caught there: otherwise
    /// each undefined byte would be one in its log.
    fn ask(sql: &mut Connection, encoding: &str) -> Result<Self, PgError> {
        let rows = sql.query(&format!(
            "DO $$ DECLARE found text := ''; BEGIN \
               FOR byte IN 128..255 LOOP BEGIN \
                 found := found || pg_catalog.encode(pg_catalog.convert( \
                   pg_catalog.set_byte('\\x00'::pg_catalog.bytea, 0, byte), '{encoding}', 'UTF8'), 'hex'); \
                 EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN NULL; END; \
                 found := found || ','; \
               END LOOP; \
               PERFORM pg_catalog.set_config('pitser.characters', found, true); END $$; \
             SELECT pg_catalog.current_setting('pitser.characters')"
        ))?;
        let told = rows.first().and_then(|row| text(row.first()?));
        told.and_then(Self::read)
            .ok_or(PgError::Protocol("an encoding that cannot be read"))
    }

    /// Reads hexadecimal UTF-8, a comma behind each.
    fn read(told: &str) -> Option<Self> {
        let one = |hex: &str| {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?;
            Some(String::from_utf8(bytes).ok()?.into_boxed_str())
        };
        let all = told.strip_suffix(',')?.split(',').map(one);
        let all: Vec<Box<str>> = all.collect::<Option<_>>()?;
        all.try_into().ok().map(Self)
    }

    /// In UTF-8, if each byte is a character.
    fn text(&self, bytes: &[u8]) -> Option<String> {
        let mut text = String::with_capacity(bytes.len() + bytes.len() / 4);
        for byte in bytes {
            match usize::from(*byte).checked_sub(HALF) {
                None => text.push(char::from(*byte)),
                Some(place) => match &*self.0[place] {
                    "" => return None,
                    character => text.push_str(character),
                },
            }
        }
        Some(text)
    }

    /// What is no text stands as its bytes, under a letter of its own: it cannot be
    /// mistaken for a text that reads so in UTF-8.
    fn cell(&self, value: Option<&[u8]>) -> Cell {
        match value {
            Some(bytes) if !bytes.is_ascii() => match self.text(bytes) {
                Some(text) => cell(Some(text.as_bytes())),
                None => Cell::lettered(b'b', bytes),
            },
            ascii => cell(ascii),
        }
    }
}

impl fmt::Debug for Characters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let defined = self.0.iter().filter(|it| !it.is_empty());
        write!(f, "Characters({} defined)", defined.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the upper half only `õ` is defined, as byte F5.
    fn characters() -> Characters {
        let told = (128..256).map(|byte| if byte == 0xF5 { "c3b5," } else { "," });
        Characters::read(&told.collect::<String>()).unwrap()
    }

    #[test]
    fn what_is_no_text_is_its_bytes() {
        let characters = characters();
        let shown = |bytes: &[u8]| characters.cell(Some(bytes)).expose().unwrap().to_vec();
        assert_eq!(shown(b"plain"), b"tplain");
        assert_eq!(shown(b"J\xF5e"), "tJõe".as_bytes());
        // In UTF-8 these bytes are a text.
        assert_eq!(shown("ä".as_bytes()), [b"b", "ä".as_bytes()].concat());
        assert_eq!(characters.cell(None), Cell::NULL);
        let encoding = Encoding::Characters(Arc::new(characters));
        assert_eq!(encoding.name(b"t\xF5").as_deref(), Some("tõ"));
        assert_eq!(encoding.name(b"t\x81"), None);
    }

    #[test]
    fn a_table_of_another_length_is_none() {
        for told in ["", ",", "c3b5,", "c3,,", &",".repeat(127), &",".repeat(129)] {
            assert_eq!(Characters::read(told), None, "{told:?}");
        }
    }
}
