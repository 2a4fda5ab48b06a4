//! A content as bytes, before it is sealed.
//!
//! ```text
//! content  01 ‖ fields:1 ‖ each field that is there, in this order
//! key      cells ‖ each cell: length ‖ bytes                     fields bit 0
//! person   length ‖ bytes                                       bit 1
//! raw      length ‖ bytes                                       bit 2
//! marks    shape ‖ each column's mark:8                         bit 3
//! row      shape ‖ each column: 00 for NULL, or length + 1 ‖ bytes   bit 4
//! deciders two times length ‖ bytes                             bit 5
//! raw of   in place of raw: the line whose content has it       bit 6
//! ```
//! Numbers are LEB128, of at most ten bytes. A *shape* is a list of column names,
//! which the vault numbers and keeps once.

use super::{Content, MARK_LEN, Marks};
use crate::draft::Row;
use std::sync::Arc;

const VERSION: u8 = 1;
const KEY: u8 = 1;
const PERSON: u8 = 1 << 1;
const RAW: u8 = 1 << 2;
const MARKS: u8 = 1 << 3;
const ROW: u8 = 1 << 4;
const DECIDERS: u8 = 1 << 5;
const RAW_OF: u8 = 1 << 6;

/// Appends a content whose columns are those of `shape`; with `raw_of`, its message is
/// that of the line.
pub(super) fn pack(content: &Content, shape: u64, raw_of: Option<u64>, out: &mut Vec<u8>) {
    let Content {
        key,
        person,
        raw,
        marks,
        row,
        deciders,
    } = content;
    let raw = raw.as_ref().filter(|_| raw_of.is_none());
    let field = |is_there: bool, bit: u8| if is_there { bit } else { 0 };
    let fields = field(key.is_some(), KEY)
        | field(person.is_some(), PERSON)
        | field(raw.is_some(), RAW)
        | field(marks.is_some(), MARKS)
        | field(row.is_some(), ROW)
        | field(deciders.is_some(), DECIDERS)
        | field(raw_of.is_some(), RAW_OF);
    out.extend([VERSION, fields]);
    if let Some(cells) = key {
        number(cells.len() as u64, out);
        for cell in cells {
            bytes(cell, out);
        }
    }
    if let Some(person) = person {
        bytes(person.as_bytes(), out);
    }
    if let Some(raw) = raw {
        bytes(raw, out);
    }
    if let Some(Marks { marks, .. }) = marks {
        number(shape, out);
        out.extend_from_slice(marks.as_flattened());
    }
    if let Some(Row { values, .. }) = row {
        number(shape, out);
        for value in values {
            match value {
                None => out.push(0),
                Some(value) => {
                    number(value.len() as u64 + 1, out);
                    out.extend_from_slice(value);
                }
            }
        }
    }
    for name in deciders.iter().flatten() {
        bytes(name.as_bytes(), out);
    }
    if let Some(line) = raw_of {
        number(line, out);
    }
}

/// Reads a content, and the line that has its message if it has none itself; `names_of`
/// gives the names of a shape. `None` if these are not the bytes of one.
pub(super) fn unpack(
    packed: &[u8],
    mut names_of: impl FnMut(u64) -> Option<Arc<[String]>>,
) -> Option<(Content, Option<u64>)> {
    let [VERSION, fields, rest @ ..] = packed else {
        return None;
    };
    let mut reader = Reader(rest);
    let has = |bit: u8| fields & bit != 0;
    let mut content = Content::default();
    if has(KEY) {
        let cells = reader.number()?;
        let cells = (0..cells).map(|_| Some(reader.bytes()?.to_vec()));
        content.key = Some(cells.collect::<Option<_>>()?);
    }
    if has(PERSON) {
        content.person = Some(String::from_utf8(reader.bytes()?.to_vec()).ok()?);
    }
    if has(RAW) {
        content.raw = Some(reader.bytes()?.into());
    }
    if has(MARKS) {
        let names = names_of(reader.number()?)?;
        let marks = names
            .iter()
            .map(|_| reader.take(MARK_LEN as u64)?.try_into().ok());
        let marks = marks.collect::<Option<_>>()?;
        content.marks = Some(Marks { names, marks });
    }
    if has(ROW) {
        let names = names_of(reader.number()?)?;
        let value = |_| match reader.number()? {
            0 => Some(None),
            more => Some(Some(reader.take(more - 1)?.into())),
        };
        let values = names.iter().map(value).collect::<Option<_>>()?;
        content.row = Some(Row { names, values });
    }
    if has(DECIDERS) {
        let mut name = || String::from_utf8(reader.bytes()?.to_vec()).ok();
        content.deciders = Some([name()?, name()?]);
    }
    let raw_of = match has(RAW_OF) {
        true => Some(reader.number()?),
        false => None,
    };
    reader.0.is_empty().then_some((content, raw_of))
}

/// Column names as bytes: each with its length in front.
pub(super) fn pack_names(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        bytes(name.as_bytes(), &mut out);
    }
    out
}

/// Reads column names.
pub(super) fn unpack_names(packed: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader(packed);
    let mut names = Vec::new();
    while !reader.0.is_empty() {
        names.push(String::from_utf8(reader.bytes()?.to_vec()).ok()?);
    }
    Some(names)
}

fn bytes(value: &[u8], out: &mut Vec<u8>) {
    number(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'p>(&'p [u8]);

impl<'p> Reader<'p> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'p [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'p [u8]> {
        let length = self.number()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::Value;

    fn names() -> Arc<[String]> {
        ["a".to_owned(), "b".to_owned()].into()
    }

    fn contents() -> Vec<Content> {
        vec![
            Content::default(),
            Content {
                key: Some(vec![vec![7; 3], vec![], vec![7; 200]]),
                person: Some("Dr Tamm".into()),
                raw: Some([7; 70_000].into()),
                row: Some(Row {
                    names: names(),
                    values: vec![Some(Value::default()), None],
                }),
                ..Content::default()
            },
            Content {
                deciders: Some(["Mari Maasikas".into(), "Jaan Tamm".into()]),
                ..Content::default()
            },
            Content {
                marks: Some(Marks {
                    names: names(),
                    marks: vec![[7; 8], [0; 8]],
                }),
                ..Content::default()
            },
            Content {
                person: Some("Dr Tamm".into()),
                ..Content::default()
            },
        ]
    }

    #[test]
    fn contents_read_back_and_no_part_of_one_does() {
        let of = |shape: u64| (shape == 300).then(names);
        let of_lines = [None, None, None, None, Some(1 << 40)];
        for (content, raw_of) in contents().into_iter().zip(of_lines) {
            let mut packed = Vec::new();
            pack(&content, 300, raw_of, &mut packed);
            assert!(unpack(&packed, of) == Some((content, raw_of)));
            for cut in 0..packed.len().min(1000) {
                assert!(unpack(&packed[..cut], of).is_none());
            }
            packed.push(0);
            assert!(unpack(&packed, of).is_none());
        }
    }

    #[test]
    fn names_read_back() {
        let names = ["id", "", "väärtus"].map(str::to_owned);
        let packed = pack_names(&names);
        assert_eq!(unpack_names(&packed).unwrap(), names);
        assert_eq!(unpack_names(&packed[..packed.len() - 1]), None);
        assert_eq!(unpack_names(&[]).unwrap(), Vec::<String>::new());
    }
}
