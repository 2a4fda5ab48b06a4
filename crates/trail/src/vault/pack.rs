//! A content as bytes, before it is sealed.
//!
//! ```text
//! content  01 ‖ fields:1 ‖ each field that is there, in this order
//! key      cells ‖ each cell: length ‖ bytes                     fields bit 0
//! person   length ‖ bytes                                       bit 1
//! raw      length ‖ bytes                                       bit 2
//! marks    shape ‖ each column's mark: length ‖ bytes           bit 3
//! row      shape ‖ each column: 00 for NULL, or length + 1 ‖ bytes   bit 4
//! ```
//! Numbers are LEB128, of at most ten bytes. A *shape* is a list of column names,
//! which the vault numbers and keeps once.

use super::Content;
use pitser_evidence::codec::Blob;
use std::sync::Arc;

const VERSION: u8 = 1;
const KEY: u8 = 1;
const PERSON: u8 = 1 << 1;
const RAW: u8 = 1 << 2;
const MARKS: u8 = 1 << 3;
const ROW: u8 = 1 << 4;

/// The column names of a content's row or marks.
pub(super) fn names(content: &Content) -> Option<Vec<&str>> {
    let of_row = || {
        Some(
            content
                .row
                .as_ref()?
                .iter()
                .map(|(name, _)| &**name)
                .collect(),
        )
    };
    let of_marks = || {
        Some(
            content
                .marks
                .as_ref()?
                .iter()
                .map(|(name, _)| &**name)
                .collect(),
        )
    };
    of_row().or_else(of_marks)
}

/// Appends a content whose columns are those of `shape`.
pub(super) fn pack(content: &Content, shape: u64, out: &mut Vec<u8>) {
    let Content {
        key,
        person,
        raw,
        marks,
        row,
    } = content;
    let field = |is_there: bool, bit: u8| if is_there { bit } else { 0 };
    let fields = field(key.is_some(), KEY)
        | field(person.is_some(), PERSON)
        | field(raw.is_some(), RAW)
        | field(marks.is_some(), MARKS)
        | field(row.is_some(), ROW);
    out.extend([VERSION, fields]);
    if let Some(cells) = key {
        number(cells.len() as u64, out);
        for cell in cells {
            bytes(&cell.0, out);
        }
    }
    if let Some(person) = person {
        bytes(person.as_bytes(), out);
    }
    if let Some(raw) = raw {
        bytes(&raw.0, out);
    }
    if let Some(marks) = marks {
        number(shape, out);
        for (_, mark) in marks {
            bytes(&mark.0, out);
        }
    }
    if let Some(row) = row {
        number(shape, out);
        for (_, value) in row {
            match value {
                None => out.push(0),
                Some(value) => {
                    number(value.0.len() as u64 + 1, out);
                    out.extend_from_slice(&value.0);
                }
            }
        }
    }
}

/// Reads a content; `names_of` gives the names of a shape. `None` if these are
/// not the bytes of one.
pub(super) fn unpack(
    packed: &[u8],
    mut names_of: impl FnMut(u64) -> Option<Arc<[String]>>,
) -> Option<Content> {
    let [VERSION, fields, rest @ ..] = packed else {
        return None;
    };
    let mut reader = Reader(rest);
    let has = |bit: u8| fields & bit != 0;
    let mut content = Content::default();
    if has(KEY) {
        let cells = reader.number()?;
        let cells = (0..cells).map(|_| reader.blob());
        content.key = Some(cells.collect::<Option<_>>()?);
    }
    if has(PERSON) {
        content.person = Some(String::from_utf8(reader.bytes()?.to_vec()).ok()?);
    }
    if has(RAW) {
        content.raw = Some(reader.blob()?);
    }
    if has(MARKS) {
        let names = names_of(reader.number()?)?;
        let marks = names
            .iter()
            .map(|name| Some((name.clone(), reader.blob()?)));
        content.marks = Some(marks.collect::<Option<_>>()?);
    }
    if has(ROW) {
        let names = names_of(reader.number()?)?;
        let row = names.iter().map(|name| {
            let value = match reader.number()? {
                0 => None,
                more => Some(Blob(reader.take(more - 1)?.to_vec())),
            };
            Some((name.clone(), value))
        });
        content.row = Some(row.collect::<Option<_>>()?);
    }
    reader.0.is_empty().then_some(content)
}

/// Column names as bytes: each with its length in front.
pub(super) fn pack_names<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<u8> {
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

    fn blob(&mut self) -> Option<Blob> {
        Some(Blob(self.bytes()?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Vec<Content> {
        let blob = |length: usize| Blob(vec![7; length]);
        vec![
            Content::default(),
            Content {
                key: Some(vec![blob(3), blob(0), blob(200)]),
                person: Some("Dr Tamm".into()),
                raw: Some(blob(70_000)),
                row: Some(vec![("a".into(), Some(blob(0))), ("b".into(), None)]),
                ..Content::default()
            },
            Content {
                marks: Some(vec![("a".into(), blob(8)), ("b".into(), blob(8))]),
                ..Content::default()
            },
        ]
    }

    #[test]
    fn contents_read_back_and_no_part_of_one_does() {
        let names: Arc<[String]> = ["a".to_owned(), "b".to_owned()].into();
        let of = |shape: u64| (shape == 300).then(|| names.clone());
        for content in contents() {
            let mut packed = Vec::new();
            pack(&content, 300, &mut packed);
            assert!(unpack(&packed, of) == Some(content));
            for cut in 0..packed.len().min(1000) {
                assert!(unpack(&packed[..cut], of).is_none());
            }
            packed.push(0);
            assert!(unpack(&packed, of).is_none());
        }
    }

    #[test]
    fn names_read_back() {
        let names = ["id", "", "väärtus"];
        let packed = pack_names(names);
        assert_eq!(unpack_names(&packed).unwrap(), names);
        assert_eq!(unpack_names(&packed[..packed.len() - 1]), None);
        assert_eq!(unpack_names(&[]).unwrap(), Vec::<String>::new());
    }
}
