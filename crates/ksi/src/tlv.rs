//! TLV elements (spec tlv §1). Lengths are in bytes, integers big-endian.
//!
//! ```text
//! | long:1 = 0 | noncritical:1 | forward:1 | tag:5  | length:8  | value |   short, 2 byte header
//! | long:1 = 1 | noncritical:1 | forward:1 | tag:13 | length:16 | value |   long, 4 byte header
//! ```
//!
//! Readers take either form for any tag. Writers use the short form whenever
//! tag ≤ 1F and length ≤ 255. `noncritical` lets a reader that does not know
//! the tag go on; `forward` is carried along without meaning to us.
//!
//! | value   | coding                                                          |
//! |---------|-----------------------------------------------------------------|
//! | integer | minimal big-endian, ≤ 8 bytes; zero is the empty value          |
//! | string  | UTF-8, ended by one 00 byte that counts in the length           |
//! | imprint | algorithm id, then the digest ([`Imprint`])                     |

use crate::{
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{Algorithm, Imprint},
    time::Second,
};

/// An element's type, 0..=1FFF; its meaning depends on the container.
pub type Tag = u16;

/// The longest element, header included, in bytes.
pub const MAX: usize = MAX_VALUE + LONG_HEADER;

/// The longest value of an element, in bytes.
pub const MAX_VALUE: usize = 0xffff;

/// One element, borrowed from the buffer it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// Its type.
    pub tag: Tag,
    /// A reader that does not know `tag` may ignore the element.
    pub noncritical: bool,
    /// To be carried along when ignored.
    pub forward: bool,
    /// The value, without header.
    pub value: &'a [u8],
    /// The element as it was written, header included.
    pub raw: &'a [u8],
    /// Position of its first header byte in the outermost buffer.
    pub at: usize,
}

impl<'a> Element<'a> {
    /// Reads the one element that makes up all of `bytes`.
    ///
    /// # Errors
    /// [`DecodeErrorKind::TooLong`] beyond [`MAX`] bytes, `Truncated`, or
    /// `TrailingBytes` after the element.
    pub fn single(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX {
            return Err(DecodeError::new(DecodeErrorKind::TooLong { max: MAX }, 0));
        }
        let mut reader = Reader::new(bytes);
        let element = reader.element()?;
        reader.end()?;
        Ok(element)
    }

    /// Reads the one element that makes up all of `bytes` and must be a `tag`.
    ///
    /// # Errors
    /// As [`Element::single`], and `UnexpectedTag`.
    pub fn expect(bytes: &'a [u8], tag: Tag) -> Result<Self, DecodeError> {
        let element = Self::single(bytes)?;
        if element.tag == tag {
            Ok(element)
        } else {
            Err(element.error(DecodeErrorKind::UnexpectedTag {
                expected: tag,
                found: element.tag,
            }))
        }
    }

    /// The elements nested in the value.
    #[must_use]
    pub fn children(&self) -> Reader<'a> {
        Reader::at(self.value, self.value_at())
    }

    /// Position of the first byte of the value.
    #[must_use]
    pub fn value_at(&self) -> usize {
        self.at + self.raw.len() - self.value.len()
    }

    /// Whether the header has the 4 byte form.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.raw.len() - self.value.len() == LONG_HEADER
    }

    /// The marks on the header, to write the element anew.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags {
            noncritical: self.noncritical,
            forward: self.forward,
        }
    }

    /// The value as an integer.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Integer`] unless minimal and at most 8 bytes long.
    pub fn integer(&self) -> Result<u64, DecodeError> {
        if self.value.len() > 8 || self.value.first() == Some(&0) {
            return Err(self.error(DecodeErrorKind::Integer));
        }
        Ok(self
            .value
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// The value as an integer of at most 255, as levels and their corrections are.
    ///
    /// # Errors
    /// `Integer`, or [`DecodeErrorKind::Range`] beyond 255.
    pub fn byte(&self) -> Result<u8, DecodeError> {
        u8::try_from(self.integer()?).map_err(|_| self.error(DecodeErrorKind::Range))
    }

    /// The value as an instant.
    ///
    /// # Errors
    /// As [`Element::integer`].
    pub fn second(&self) -> Result<Second, DecodeError> {
        self.integer().map(Second)
    }

    /// The value as text, without the zero byte that ends it.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Text`] unless UTF-8 with one zero byte, at the end.
    pub fn string(&self) -> Result<&'a str, DecodeError> {
        match self.value.split_last() {
            Some((0, text)) if !text.contains(&0) => {
                str::from_utf8(text).map_err(|_| self.error(DecodeErrorKind::Text))
            }
            _ => Err(self.error(DecodeErrorKind::Text)),
        }
    }

    /// The value as text that is not empty.
    ///
    /// # Errors
    /// As [`Element::string`], and `Text` for the empty string.
    pub fn non_empty_string(&self) -> Result<&'a str, DecodeError> {
        match self.string()? {
            "" => Err(self.error(DecodeErrorKind::Text)),
            text => Ok(text),
        }
    }

    /// The value as an imprint.
    ///
    /// # Errors
    /// `Algorithm` if it is not supported, [`DecodeErrorKind::Imprint`] if the
    /// length does not fit it.
    pub fn imprint(&self) -> Result<Imprint, DecodeError> {
        Imprint::from_bytes(self.value).map_err(|kind| self.error(kind))
    }

    /// The value as the number of a hash algorithm.
    ///
    /// # Errors
    /// `Integer`, or [`DecodeErrorKind::Algorithm`] if it is not supported.
    pub fn algorithm(&self) -> Result<Algorithm, DecodeError> {
        let id = self.byte()?;
        Algorithm::from_id(id).ok_or_else(|| self.error(DecodeErrorKind::Algorithm(id)))
    }

    /// Passes over an element whose tag the caller does not know.
    ///
    /// # Errors
    /// [`DecodeErrorKind::UnknownCritical`] unless it is marked `noncritical`.
    pub fn ignore(&self) -> Result<(), DecodeError> {
        if self.noncritical {
            Ok(())
        } else {
            Err(self.error(DecodeErrorKind::UnknownCritical(self.tag)))
        }
    }

    /// Puts `value` into `slot`, which must still be empty.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Repeated`] if the slot is taken.
    pub fn fill<T>(&self, slot: &mut Option<T>, value: T) -> Result<(), DecodeError> {
        if slot.replace(value).is_some() {
            return Err(self.error(DecodeErrorKind::Repeated(self.tag)));
        }
        Ok(())
    }

    /// What was put into the slot of the mandatory child `tag`.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Missing`], at this element, if nothing was.
    pub fn require<T>(&self, slot: Option<T>, tag: Tag) -> Result<T, DecodeError> {
        slot.ok_or_else(|| self.error(DecodeErrorKind::Missing(tag)))
    }

    /// An error of `kind` at this element.
    #[must_use]
    pub fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError::new(kind, self.at)
    }
}

/// Iterates over the elements of a buffer; ends after the first error.
///
/// ```
/// use pitser_ksi::tlv::Reader;
/// let elements = Reader::new(b"\x01\x02hi\x02\x00").collect::<Result<Vec<_>, _>>().unwrap();
/// assert_eq!((elements[0].value, elements[1].at), (b"hi".as_slice(), 4));
/// ```
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, whose first byte is position 0.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::at(bytes, 0)
    }

    /// Reads `bytes`, whose first byte is position `at` of the outermost buffer.
    #[must_use]
    pub fn at(bytes: &'a [u8], at: usize) -> Self {
        Self { rest: bytes, at }
    }

    /// Position of the next element.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The bytes not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next element, which must be there.
    ///
    /// # Errors
    /// [`DecodeErrorKind::Truncated`] if header or value is incomplete.
    pub fn element(&mut self) -> Result<Element<'a>, DecodeError> {
        let truncated = DecodeError::new(DecodeErrorKind::Truncated, self.at);
        let header = Header::read(self.rest).ok_or(truncated)?;
        let (raw, rest) = self
            .rest
            .split_at_checked(header.len + header.value_len)
            .ok_or(truncated)?;
        let element = Element {
            tag: header.tag,
            noncritical: header.flags & NONCRITICAL != 0,
            forward: header.flags & FORWARD != 0,
            value: &raw[header.len..],
            raw,
            at: self.at,
        };
        self.at += raw.len();
        self.rest = rest;
        Ok(element)
    }

    /// Asserts that nothing is left.
    ///
    /// # Errors
    /// [`DecodeErrorKind::TrailingBytes`] otherwise.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::new(DecodeErrorKind::TrailingBytes, self.at))
        }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Element<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let element = self.element();
        if element.is_err() {
            self.rest = &[];
        }
        Some(element)
    }
}

impl core::iter::FusedIterator for Reader<'_> {}

/// A decoded element header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The element's type.
    pub tag: Tag,
    /// Length of the header, in bytes: 2 or 4.
    pub len: usize,
    /// Length of the value that follows, in bytes.
    pub value_len: usize,
    flags: u8,
}

impl Header {
    /// The header at the start of `bytes`, or `None` if more bytes are needed.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Header> {
        let &first = bytes.first()?;
        let (tag_high, flags) = (first & TAG_BITS, first & (NONCRITICAL | FORWARD));
        if first & LONG == 0 {
            let value_len = usize::from(*bytes.get(1)?);
            return Some(Header {
                tag: tag_high.into(),
                len: SHORT_HEADER,
                value_len,
                flags,
            });
        }
        let &[_, tag_low, len_high, len_low] = bytes.first_chunk()?;
        Some(Header {
            tag: u16::from_be_bytes([tag_high, tag_low]),
            len: LONG_HEADER,
            value_len: u16::from_be_bytes([len_high, len_low]).into(),
            flags,
        })
    }
}

/// Marks of an element being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A reader that does not know the tag may ignore the element.
    pub noncritical: bool,
    /// To be carried along when ignored.
    pub forward: bool,
}

impl Flags {
    /// Neither flag.
    pub const NONE: Flags = Flags {
        noncritical: false,
        forward: false,
    };
    /// `forward` only.
    pub const FORWARD: Flags = Flags {
        noncritical: false,
        forward: true,
    };
    /// Both flags.
    pub const BOTH: Flags = Flags {
        noncritical: true,
        forward: true,
    };

    fn bits(self) -> u8 {
        let bit = |set, mask| if set { mask } else { 0 };
        bit(self.noncritical, NONCRITICAL) | bit(self.forward, FORWARD)
    }
}

/// Appends elements to a buffer. A value that does not fit is remembered and
/// reported once, by [`Writer::finish`].
///
/// ```
/// use pitser_ksi::tlv::Writer;
/// let mut writer = Writer::new();
/// writer.nested(0x0800, |w| w.integer(1, 7).string(2, "hi"));
/// assert_eq!(writer.finish().unwrap(), b"\x88\x00\x00\x08\x01\x01\x07\x02\x03hi\x00");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    overflow: Option<EncodeError>,
}

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on behind `out`, in its memory.
    #[must_use]
    pub fn behind(out: Vec<u8>) -> Self {
        Self {
            out,
            overflow: None,
        }
    }

    /// An element without flags.
    pub fn element(&mut self, tag: Tag, value: &[u8]) -> &mut Self {
        self.flagged(tag, Flags::NONE, value)
    }

    /// An element with `flags`.
    pub fn flagged(&mut self, tag: Tag, flags: Flags, value: &[u8]) -> &mut Self {
        let header = match HeaderBytes::new(tag, flags, value.len()) {
            Ok(header) => header,
            Err(overflow) => return self.overflowed(overflow),
        };
        self.out.extend(header.as_slice());
        self.out.extend(value);
        self
    }

    /// An element whose value is what `write` appends.
    pub fn nested(
        &mut self,
        tag: Tag,
        write: impl FnOnce(&mut Writer) -> &mut Writer,
    ) -> &mut Self {
        self.nested_flagged(tag, Flags::NONE, write)
    }

    /// As [`Writer::nested`], with `flags`.
    pub fn nested_flagged(
        &mut self,
        tag: Tag,
        flags: Flags,
        write: impl FnOnce(&mut Writer) -> &mut Writer,
    ) -> &mut Self {
        let start = self.out.len();
        let room = [0; LONG_HEADER];
        self.out.extend(room);
        write(self);
        let value_start = start + room.len();
        let header = match HeaderBytes::new(tag, flags, self.out.len() - value_start) {
            Ok(header) => header,
            Err(overflow) => {
                self.out.truncate(start);
                return self.overflowed(overflow);
            }
        };
        // Most headers are short: the value moves down over the room left for a long one.
        let header = header.as_slice();
        self.out[start..][..header.len()].copy_from_slice(header);
        self.out.drain(start + header.len()..value_start);
        self
    }

    /// An integer; zero is written as the empty value.
    pub fn integer(&mut self, tag: Tag, value: u64) -> &mut Self {
        self.integer_flagged(tag, Flags::NONE, value)
    }

    /// As [`Writer::integer`], with `flags`.
    pub fn integer_flagged(&mut self, tag: Tag, flags: Flags, value: u64) -> &mut Self {
        let leading_zeros = value.leading_zeros() as usize / 8;
        self.flagged(tag, flags, &value.to_be_bytes()[leading_zeros..])
    }

    /// An integer, or nothing for `None`.
    pub fn optional_integer(&mut self, tag: Tag, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.integer(tag, value),
            None => self,
        }
    }

    /// A text, to which the ending zero byte is added. Zero bytes inside the
    /// text, which the format cannot express, are left out.
    pub fn string(&mut self, tag: Tag, text: &str) -> &mut Self {
        self.string_flagged(tag, Flags::NONE, text)
    }

    /// As [`Writer::string`], with `flags`.
    pub fn string_flagged(&mut self, tag: Tag, flags: Flags, text: &str) -> &mut Self {
        self.nested_flagged(tag, flags, |w| {
            w.out
                .extend(text.bytes().filter(|&byte| byte != 0).chain([0]));
            w
        })
    }

    /// An imprint.
    pub fn imprint(&mut self, tag: Tag, imprint: &Imprint) -> &mut Self {
        self.element(tag, imprint.as_bytes())
    }

    /// Bytes that already are elements.
    pub fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        self.out.extend(encoded);
        self
    }

    /// Applies `write` for each of `items`.
    pub fn each<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Writer, T),
    ) -> &mut Self {
        for item in items {
            write(self, item);
        }
        self
    }

    /// What was written.
    ///
    /// # Errors
    /// The first element whose value would have exceeded [`MAX_VALUE`] bytes.
    pub fn finish(self) -> Result<Vec<u8>, EncodeError> {
        match self.overflow {
            Some(overflow) => Err(overflow),
            None => Ok(self.out),
        }
    }

    /// As [`Writer::finish`], into `out`, also where the outcome is an error:
    /// for a buffer that is used again.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn hand_back(self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        *out = self.out;
        self.overflow.map_or(Ok(()), Err)
    }

    fn overflowed(&mut self, overflow: EncodeError) -> &mut Self {
        self.overflow.get_or_insert(overflow);
        self
    }
}

/// An encoded element header.
struct HeaderBytes {
    bytes: [u8; LONG_HEADER],
    len: usize,
}

impl HeaderBytes {
    fn new(tag: Tag, flags: Flags, length: usize) -> Result<Self, EncodeError> {
        debug_assert!(tag <= MAX_TAG, "tags have 13 bits");
        let length_bytes = u16::try_from(length).map_err(|_| EncodeError { tag, length })?;
        let [tag_high, tag_low] = (tag & MAX_TAG).to_be_bytes();
        let [length_high, length_low] = length_bytes.to_be_bytes();
        Ok(if tag <= TAG_BITS.into() && length_high == 0 {
            let bytes = [flags.bits() | tag_low, length_low, 0, 0];
            Self {
                bytes,
                len: SHORT_HEADER,
            }
        } else {
            let first = LONG | flags.bits() | tag_high;
            let bytes = [first, tag_low, length_high, length_low];
            Self {
                bytes,
                len: LONG_HEADER,
            }
        })
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const LONG: u8 = 0x80;
const NONCRITICAL: u8 = 0x40;
const FORWARD: u8 = 0x20;
const TAG_BITS: u8 = 0x1f;
const MAX_TAG: Tag = 0x1fff;
const SHORT_HEADER: usize = 2;
const LONG_HEADER: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn integer(bytes: &[u8]) -> Result<u64, DecodeErrorKind> {
        Element::single(bytes)
            .unwrap()
            .integer()
            .map_err(|e| e.kind)
    }

    #[test]
    fn integers_are_minimal() {
        assert_eq!(integer(&[1, 0]), Ok(0));
        assert_eq!(integer(&[1, 1, 7]), Ok(7));
        assert_eq!(
            integer(&[1, 8, 255, 255, 255, 255, 255, 255, 255, 255]),
            Ok(u64::MAX)
        );
        assert_eq!(integer(&[1, 1, 0]), Err(DecodeErrorKind::Integer));
        assert_eq!(integer(&[1, 2, 0, 1]), Err(DecodeErrorKind::Integer));
        assert_eq!(
            integer(&[1, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            Err(DecodeErrorKind::Integer)
        );
    }

    fn string(value: &[u8]) -> Option<String> {
        let mut writer = Writer::new();
        writer.element(1, value);
        let bytes = writer.finish().unwrap();
        Element::single(&bytes)
            .unwrap()
            .string()
            .ok()
            .map(str::to_owned)
    }

    #[test]
    fn strings_end_with_one_zero() {
        assert_eq!(string(b"hi\0").as_deref(), Some("hi"));
        assert_eq!(string(b"\0").as_deref(), Some(""));
        assert_eq!(string(b""), None);
        assert_eq!(string(b"hi"), None);
        assert_eq!(string(b"h\0i\0"), None);
        assert_eq!(string(b"hi\0\0"), None);
        assert_eq!(string(b"\xff\0"), None);
    }

    fn single(bytes: &[u8]) -> Result<Tag, DecodeError> {
        Element::single(bytes).map(|element| element.tag)
    }

    #[test]
    fn both_header_forms_for_any_tag() {
        assert_eq!(single(&[0x02, 0]), Ok(2));
        assert_eq!(single(&[0x80, 2, 0, 0]), Ok(2));
        assert_eq!(single(&[0x9f, 0xff, 0, 1, 9]), Ok(0x1fff));
    }

    #[test]
    fn incomplete_elements_are_refused() {
        let truncated = Err(DecodeError::new(DecodeErrorKind::Truncated, 0));
        for bytes in [&[][..], &[1], &[1, 1], &[0x80, 2, 0], &[0x80, 2, 0, 2, 1]] {
            assert_eq!(single(bytes), truncated, "{bytes:?}");
        }
        assert_eq!(
            single(&[1, 0, 1]),
            Err(DecodeError::new(DecodeErrorKind::TrailingBytes, 2))
        );
    }

    #[test]
    fn positions_are_absolute() {
        let bytes = [0x88, 0, 0, 6, 0x02, 0, 0x03, 2, 0x41, 0];
        let outer = Element::single(&bytes).unwrap();
        let third = outer.children().nth(1).unwrap().unwrap();
        assert_eq!((third.at, third.value_at()), (6, 8));
        assert_eq!(third.children().next().unwrap().unwrap().at, 8);
    }

    #[test]
    fn flags_are_read_and_written() {
        let mut writer = Writer::new();
        writer
            .flagged(0x1e, Flags::BOTH, &[1])
            .nested_flagged(0x10, Flags::FORWARD, |w| w);
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes, [0x7e, 1, 1, 0x30, 0]);
        let elements: Vec<_> = Reader::new(&bytes).map(Result::unwrap).collect();
        assert!(elements[0].noncritical && elements[0].forward);
        assert!(!elements[1].noncritical && elements[1].forward);
    }

    #[test]
    fn long_values_take_the_long_header() {
        let mut writer = Writer::new();
        writer.element(2, &[7; 256]);
        assert_eq!(writer.finish().unwrap()[..5], [0x80, 2, 1, 0, 7]);
    }

    #[test]
    fn overlong_values_are_reported() {
        let mut writer = Writer::new();
        writer
            .nested(9, |w| w.element(2, &[0; MAX_VALUE + 1]))
            .integer(1, 1);
        assert_eq!(
            writer.finish(),
            Err(EncodeError {
                tag: 2,
                length: MAX_VALUE + 1
            })
        );
    }

    #[test]
    fn a_reader_ends_after_an_error() {
        assert_eq!(Reader::new(&[1, 5, 0]).count(), 1);
    }
}
