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
//! | a byte, or some, for each character | it as it is | convert it as the server would, by its own table |
//!
//! Where the server does not let its table be asked for, it sends values in UTF-8.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use super::slot::text;
use super::wire::{CONVERTED, Field, RAW};
use super::{Connection, PgError, cell};
use crate::event::Cell;

/// How values come, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// In UTF-8, or so that the server has to see to it.
    Sent,
    /// As bytes, which mean nothing.
    Bytes,
    /// As bytes, of which one or some are a character.
    Characters(Arc<Characters>),
}

/// The characters of an encoding beyond ASCII.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Characters {
    /// By all bytes of a character but the last; by that then, in UTF-8. What is not
    /// defined is empty. No character's bytes begin another's.
    rows: HashMap<Box<[u8]>, Box<[Box<str>]>>,
    /// The last byte of the first in each row.
    first: u8,
}

/// Which bytes may be characters of an encoding.
struct Form {
    /// All but the last one.
    rows: Vec<Box<[u8]>>,
    last: RangeInclusive<u8>,
}

impl Form {
    /// That of an encoding, by PostgreSQL's name; `None` where it is not known.
    fn of(encoding: &str) -> Option<Self> {
        if SINGLE.contains(&encoding) {
            return Some(Self {
                rows: vec![Box::default()],
                last: 0x80..=0xFF,
            });
        }
        // What stands before the two bytes of a character, and before the one.
        let (two, one): (&[&[u8]], &[u8]) = match encoding {
            "EUC_JP" | "EUC_JIS_2004" => (&[&[], &[0x8F]], &[0x8E]),
            "EUC_CN" | "EUC_KR" => (&[&[]], &[]),
            "EUC_TW" => (PLANES, &[]),
            _ => return None,
        };
        let of_two = |before: &&[u8]| {
            let before = before.to_vec();
            GRAPHIC.map(move |byte| [&before[..], &[byte]].concat().into())
        };
        let one = one.iter().map(|byte| Box::from([*byte]));
        Some(Self {
            rows: two.iter().flat_map(of_two).chain(one).collect(),
            last: GRAPHIC,
        })
    }
}

/// What stands before the digits of a byte of a name that is no character.
const NO_TEXT: char = char::REPLACEMENT_CHARACTER;
/// Bytes of characters in encodings of several bytes.
const GRAPHIC: RangeInclusive<u8> = 0xA1..=0xFE;
/// What stands before the two bytes of a character in `EUC_TW`.
const PLANES: &[&[u8]] = &[
    &[],
    &[0x8E, 0xA1],
    &[0x8E, 0xA2],
    &[0x8E, 0xA3],
    &[0x8E, 0xA4],
    &[0x8E, 0xA5],
    &[0x8E, 0xA6],
    &[0x8E, 0xA7],
];
/// Bytes of a character at most.
const LONGEST: usize = 4;

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
            Some(name) => match Form::of(name).map(|form| Characters::ask(sql, name, form)) {
                Some(Ok(characters)) => Self::Characters(Arc::new(characters)),
                Some(Err(error)) if error.is_passing() => return Err(error),
                // Nobody here may use plpgsql.
                Some(Err(_)) | None => Self::Sent,
            },
            None => Self::Sent,
        })
    }

    /// What makes a session send values so; nothing where it does.
    pub(super) fn setting(&self) -> Option<String> {
        match self {
            Self::Sent => None,
            Self::Bytes | Self::Characters(_) => Some(format!("SET client_encoding = {RAW}")),
        }
    }

    /// What is sent for a name, in which a byte that is no character stands as [`NO_TEXT`]
    /// and two hexadecimal digits. No two names read alike: where names are any bytes, those
    /// of that character stand so, too, and no encoding but UTF-8, where all are text, has it.
    pub(super) fn name<'a>(&self, sent: &'a [u8]) -> Cow<'a, str> {
        match self {
            _ if sent.is_ascii() => String::from_utf8_lossy(sent),
            Self::Characters(table) => Cow::Owned(table.name(sent)),
            Self::Sent | Self::Bytes => match std::str::from_utf8(sent) {
                Ok(text) if *self == Self::Sent || !text.contains(NO_TEXT) => Cow::Borrowed(text),
                _ => Cow::Owned(escaped(sent)),
            },
        }
    }

    /// Runs a question about names, of which one that is no text keeps no other from being
    /// told: where the server cannot convert it, it is asked for the bytes from then on.
    ///
    /// # Errors
    /// Those of a query.
    pub(super) fn names(sql: &mut Connection, question: &str) -> Result<Vec<Vec<Field>>, PgError> {
        if let Some(encoding) = sql.names() {
            return encoding.raw(sql, question);
        }
        match sql.query(question) {
            Err(PgError::Server { code, .. }) if matches!(code.as_str(), "22021" | "22P05") => {
                let encoding = Self::ask(sql)?;
                let answer = encoding.raw(sql, question);
                sql.set_names(encoding);
                answer
            }
            answer => answer,
        }
    }

    fn raw(&self, sql: &mut Connection, question: &str) -> Result<Vec<Vec<Field>>, PgError> {
        let Some(setting) = self.setting() else {
            return sql.query(question);
        };
        let mut rows = sql.query(&format!("{setting}; {question}; {CONVERTED}"))?;
        for field in rows.iter_mut().flatten().flatten() {
            if !field.is_ascii() {
                *field = Bytes::from(self.name(field).into_owned());
            }
        }
        Ok(rows)
    }

    /// The values of a row, of which null is `None`.
    pub(super) fn cells<'a>(&self, sent: impl Iterator<Item = Option<&'a [u8]>>) -> Vec<Cell> {
        match self {
            Self::Characters(table) => sent.map(|value| table.cell(value)).collect(),
            Self::Sent | Self::Bytes => sent.map(cell).collect(),
        }
    }
}

/// A name that is to be in UTF-8.
fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                NO_TEXT => escape(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes()),
                character => text.push(character),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push(NO_TEXT);
        text.push_str(&data_encoding::HEXLOWER.encode(&[*byte]));
    }
}

impl Characters {
    /// What the characters are, by the server's own table. Errors are caught there:
    /// otherwise each undefined one would be one in its log.
    fn ask(sql: &mut Connection, encoding: &str, form: Form) -> Result<Self, PgError> {
        let hex = |row: &[u8]| format!("'{}'", data_encoding::HEXLOWER.encode(row));
        let rows: Vec<String> = form.rows.iter().map(|row| hex(row)).collect();
        let told = sql.query(&format!(
            "DO $$ DECLARE found text := ''; of_row text; head text; BEGIN \
               FOREACH head IN ARRAY ARRAY[{}] LOOP \
                 of_row := ''; \
                 FOR byte IN {}..{} LOOP BEGIN \
                   of_row := of_row || pg_catalog.encode(pg_catalog.convert(pg_catalog.decode( \
                     head || pg_catalog.to_hex(byte), 'hex'), '{encoding}', 'UTF8'), 'hex'); \
                   EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN NULL; END; \
                   of_row := of_row || ','; \
                 END LOOP; \
                 found := found || of_row; \
               END LOOP; \
               PERFORM pg_catalog.set_config('pitser.characters', found, true); END $$; \
             SELECT pg_catalog.current_setting('pitser.characters')",
            rows.join(","),
            form.last.start(),
            form.last.end(),
        ))?;
        let told = told.first().and_then(|row| text(row.first()?));
        told.and_then(|told| Self::read(form, told))
            .ok_or(PgError::Protocol("an encoding that cannot be read"))
    }

    /// Reads hexadecimal UTF-8, a comma behind each.
    fn read(form: Form, told: &str) -> Option<Self> {
        let one = |hex: &str| {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?;
            Some(String::from_utf8(bytes).ok()?.into_boxed_str())
        };
        let mut all = told.strip_suffix(',')?.split(',').map(one);
        let mut rows = HashMap::with_capacity(form.rows.len());
        for row in form.rows {
            let of_row = all.by_ref().take(form.last.len());
            let of_row: Box<[Box<str>]> = of_row.collect::<Option<_>>()?;
            if of_row.len() < form.last.len() {
                return None;
            }
            rows.insert(row, of_row);
        }
        let first = *form.last.start();
        all.next().is_none().then_some(Self { rows, first })
    }

    /// In UTF-8, if it is characters throughout.
    fn text(&self, mut bytes: &[u8]) -> Option<String> {
        let mut text = String::with_capacity(bytes.len() + bytes.len() / 2);
        while let Some((first, rest)) = bytes.split_first() {
            bytes = if first.is_ascii() {
                text.push(char::from(*first));
                rest
            } else {
                let (character, rest) = self.first_of(bytes)?;
                text.push_str(character);
                rest
            };
        }
        Some(text)
    }

    /// In UTF-8, with what is no character spelled out.
    fn name(&self, mut bytes: &[u8]) -> String {
        let mut name = String::with_capacity(bytes.len() * 2);
        while let Some((first, rest)) = bytes.split_first() {
            bytes = match self.first_of(bytes) {
                _ if first.is_ascii() => {
                    name.push(char::from(*first));
                    rest
                }
                Some((character, rest)) => {
                    name.push_str(character);
                    rest
                }
                None => {
                    escape(&mut name, &[*first]);
                    rest
                }
            };
        }
        name
    }

    /// The character that bytes begin with, and those after it.
    fn first_of<'a>(&self, bytes: &'a [u8]) -> Option<(&str, &'a [u8])> {
        for length in 0..LONGEST {
            let (row, rest) = bytes.split_at_checked(length)?;
            let (last, rest) = rest.split_first()?;
            if let Some(row) = self.rows.get(row) {
                let place = last.checked_sub(self.first)?;
                let character = row.get(usize::from(place))?;
                return (!character.is_empty()).then_some((character, rest));
            }
        }
        None
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
        let all = self.rows.values().flatten();
        let defined = all.filter(|it| !it.is_empty());
        write!(f, "Characters({} defined)", defined.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the upper half only `õ` is defined, as byte F5.
    fn characters() -> Characters {
        let told = (128..256).map(|byte| if byte == 0xF5 { "c3b5," } else { "," });
        Characters::read(form("LATIN1"), &told.collect::<String>()).unwrap()
    }

    fn form(encoding: &str) -> Form {
        Form::of(encoding).unwrap()
    }

    /// Of the characters of three forms one each is defined.
    #[test]
    fn characters_of_several_bytes() {
        let form = form("EUC_JP");
        let told = form.rows.iter().flat_map(|row| {
            form.last.clone().map(move |last| match (&**row, last) {
                ([0xC6], 0xFC) => "e697a5,",
                ([0x8E], 0xB1) => "efbdb1,",
                ([0x8F, 0xB0], 0xA1) => "e4b882,",
                _ => ",",
            })
        });
        let told: String = told.collect();
        let characters = Characters::read(form, &told).unwrap();
        let shown = |bytes: &[u8]| characters.cell(Some(bytes)).expose().unwrap().to_vec();
        let all = b"a\xC6\xFCb\x8E\xB1\x8F\xB0\xA1";
        assert_eq!(shown(all), "ta日bｱ丂".as_bytes());
        // Not defined, cut short, no byte of a character.
        for no in [
            &b"\xFD\xFE"[..],
            b"\xC6",
            b"\x8F\xB0",
            b"\xC6a",
            b"\x80\xA1",
            b"\xC6\xFF",
        ] {
            assert_eq!(shown(no), [b"b", no].concat());
        }
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
        assert_eq!(encoding.name(b"t\xF5"), "tõ");
        assert_eq!(encoding.name(b"t\x81\xF5"), "t\u{FFFD}81õ");
    }

    #[test]
    fn no_two_names_read_alike() {
        let name = |bytes: &'static [u8]| Encoding::Bytes.name(bytes).into_owned();
        assert_eq!(name("tõ".as_bytes()), "tõ");
        assert_eq!(name(b"t\x81\xC3\xB5"), "t\u{FFFD}81õ");
        let spelled = "t\u{FFFD}81õ";
        let bytes = "t\u{FFFD}ef\u{FFFD}bf\u{FFFD}bd81õ";
        assert_eq!(name(spelled.as_bytes()), bytes);
        assert_eq!(Encoding::Sent.name(spelled.as_bytes()), spelled);
    }

    #[test]
    fn a_table_of_another_length_is_none() {
        for told in ["", ",", "c3b5,", "c3,,", &",".repeat(127), &",".repeat(129)] {
            assert_eq!(Characters::read(form("LATIN1"), told), None, "{told:?}");
        }
    }
}
