//! The little ASN.1 that PKCS#7 needs: a strict DER reader that keeps raw
//! bytes, a writer, and a capped BER to DER normaliser.
//!
//! ```text
//! | class:2 | constructed:1 | number:5 | length: 1..=5 | value |
//! length:  0x00..=0x7f  itself
//!          0x81..=0x84  that many big-endian bytes follow
//!          0x80         indefinite (BER only): until the element 00 00
//! ```
//! Tag numbers above 30 never occur in X.509 and PKCS#7 and are refused.

use super::PkiError;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: u8 = 0x05;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]`, constructed or EXPLICIT.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// `[0]` IMPLICIT of a primitive type.
pub(super) const CONTEXT_0_PRIMITIVE: u8 = 0x80;
/// `[1]`, constructed or EXPLICIT.
pub(super) const CONTEXT_1: u8 = 0xa1;

/// Longest object that is read, in bytes: the value of one TLV of the KSI formats.
pub(super) const MAX_LEN: usize = 65_535;

const CONSTRUCTED: u8 = 0x20;
const MAX_DEPTH: usize = 32;
const MAX_SET: usize = 64;

/// One element, borrowed from the DER it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    pub(super) tag: u8,
    pub(super) value: &'a [u8],
    /// Header and value, as encoded.
    pub(super) raw: &'a [u8],
}

impl<'a> Node<'a> {
    /// The elements inside this one.
    pub(super) fn children(self) -> Reader<'a> {
        Reader::new(self.value)
    }
}

/// Reads consecutive DER elements.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(der: &'a [u8]) -> Self {
        Self { rest: der }
    }

    /// The only element of `der`, which must have `tag`.
    pub(super) fn single(der: &'a [u8], tag: u8, what: &'static str) -> Result<Node<'a>, PkiError> {
        let mut reader = Self::new(der);
        let node = reader.expect(tag, what)?;
        reader.finish(what)?;
        Ok(node)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element, which must be there and have `tag`.
    pub(super) fn expect(&mut self, tag: u8, what: &'static str) -> Result<Node<'a>, PkiError> {
        match self.next(what)? {
            node if node.tag == tag => Ok(node),
            _ => Err(PkiError::Malformed(what)),
        }
    }

    /// The next element if it has `tag`.
    pub(super) fn optional(
        &mut self,
        tag: u8,
        what: &'static str,
    ) -> Result<Option<Node<'a>>, PkiError> {
        if self.rest.first() == Some(&tag) {
            self.next(what).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The next element, whatever it is.
    pub(super) fn next(&mut self, what: &'static str) -> Result<Node<'a>, PkiError> {
        let header = Header::read(self.rest).ok_or(PkiError::Malformed(what))?;
        let len = header
            .len
            .filter(|_| header.minimal)
            .ok_or(PkiError::Malformed(what))?;
        let end = header
            .size
            .checked_add(len)
            .ok_or(PkiError::Malformed(what))?;
        let (raw, rest) = self
            .rest
            .split_at_checked(end)
            .ok_or(PkiError::Malformed(what))?;
        self.rest = rest;
        Ok(Node {
            tag: header.tag,
            value: &raw[header.size..],
            raw,
        })
    }

    /// Refuses trailing bytes.
    pub(super) fn finish(&self, what: &'static str) -> Result<(), PkiError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(PkiError::Malformed(what))
        }
    }
}

/// An element's header.
struct Header {
    tag: u8,
    /// Bytes of the header itself.
    size: usize,
    /// Bytes of the value; `None` for the indefinite form.
    len: Option<usize>,
    /// Whether the length is written as DER demands.
    minimal: bool,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&tag, &first) = (bytes.first()?, bytes.get(1)?);
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (size, len) = match first {
            0x00..=0x7f => (2, Some(usize::from(first))),
            0x80 => (2, None),
            0x81..=0x84 => {
                let size = 2 + usize::from(first & 0x0f);
                let big_endian = bytes.get(2..size)?;
                (
                    size,
                    Some(
                        big_endian
                            .iter()
                            .fold(0, |len, &b| len << 8 | usize::from(b)),
                    ),
                )
            }
            _ => return None,
        };
        let minimal = len.is_some_and(|len| length_octets(len) + 1 == size);
        Some(Self {
            tag,
            size,
            len,
            minimal,
        })
    }
}

/// How many bytes DER spends on the length `len`.
fn length_octets(len: usize) -> usize {
    match len {
        0..=0x7f => 1,
        0x80..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xff_ffff => 4,
        _ => 5,
    }
}

/// Encodes one element whose value is `parts` put together.
///
/// Values longer than 2^32 - 1 bytes cannot occur: everything written here is
/// made of parts that were themselves capped.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let octets = length_octets(len);
    let mut out = Vec::with_capacity(1 + octets + len);
    out.push(tag);
    match octets {
        1 => out.push(len as u8),
        _ => {
            out.push(0x80 | (octets - 1) as u8);
            out.extend((0..octets - 1).rev().map(|i| (len >> (8 * i)) as u8));
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// Rewrites BER as DER as far as publications files need it: indefinite and
/// over-long lengths become minimal, constructed octet strings become primitive.
///
/// What is DER already comes out unchanged. The output is never longer than
/// the input.
///
/// # Errors
/// [`PkiError::TooLarge`] above 65 535 bytes, [`PkiError::Malformed`] for
/// anything that is not exactly one BER element, nested at most 32 deep.
pub(super) fn normalise(ber: &[u8]) -> Result<Vec<u8>, PkiError> {
    const WHAT: &str = "BER encoding";
    if ber.len() > MAX_LEN {
        return Err(PkiError::TooLarge("PKCS#7 signature"));
    }
    let mut der = Vec::with_capacity(ber.len());
    let rest = normalise_one(ber, &mut der, MAX_DEPTH).ok_or(PkiError::Malformed(WHAT))?;
    if rest.is_empty() {
        Ok(der)
    } else {
        Err(PkiError::Malformed(WHAT))
    }
}

/// Appends the first element of `ber` to `out` as DER; returns what follows it.
fn normalise_one<'a>(ber: &'a [u8], out: &mut Vec<u8>, depth: usize) -> Option<&'a [u8]> {
    let depth = depth.checked_sub(1)?;
    let header = Header::read(ber)?;
    let body = &ber[header.size..];
    if header.tag & CONSTRUCTED == 0 {
        let (value, rest) = body.split_at_checked(header.len?)?;
        out.extend(element(header.tag, &[value]));
        return Some(rest);
    }
    let mut value = Vec::new();
    let rest = match header.len {
        Some(len) => {
            let (mut inside, rest) = body.split_at_checked(len)?;
            while !inside.is_empty() {
                inside = normalise_one(inside, &mut value, depth)?;
            }
            rest
        }
        None => {
            let mut inside = body;
            loop {
                match inside {
                    [0, 0, rest @ ..] => break rest,
                    _ => inside = normalise_one(inside, &mut value, depth)?,
                }
            }
        }
    };
    if header.tag == OCTET_STRING | CONSTRUCTED {
        out.extend(element(OCTET_STRING, &[&join_octet_strings(&value)?]));
    } else {
        out.extend(element(header.tag, &[&value]));
    }
    Some(rest)
}

/// Whether `der` is whole elements, one after the other, and what is inside the
/// constructed ones too, at most 32 deep, no set larger than 64.
///
/// To be asked before the `der` crate reads foreign bytes: it takes the memory
/// for a value, up to 256 MB, before it looks whether the value is there, and
/// sorts sets by insertion, for seconds.
pub(super) fn is_sound(der: &[u8]) -> bool {
    fn is_sound_within(der: &[u8], depth: usize, mut members_left: usize) -> bool {
        let mut reader = Reader::new(der);
        while !reader.is_empty() {
            let Ok(node) = reader.next("DER encoding") else {
                return false;
            };
            let Some(left) = members_left.checked_sub(1) else {
                return false;
            };
            members_left = left;
            let max = if node.tag == SET { MAX_SET } else { MAX_LEN };
            let is_leaf = node.tag & CONSTRUCTED == 0;
            if !is_leaf && (depth == 0 || !is_sound_within(node.value, depth - 1, max)) {
                return false;
            }
        }
        true
    }
    is_sound_within(der, MAX_DEPTH, MAX_LEN)
}

/// The contents of consecutive octet strings, put together.
fn join_octet_strings(der: &[u8]) -> Option<Vec<u8>> {
    let mut segments = Reader::new(der);
    let mut joined = Vec::with_capacity(der.len());
    while !segments.is_empty() {
        joined.extend_from_slice(segments.expect(OCTET_STRING, "octet string").ok()?.value);
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    fn check(ber: &str, der: Option<&str>) {
        let got = normalise(&hex(ber))
            .ok()
            .map(|bytes| HEXLOWER.encode(&bytes));
        assert_eq!(got.as_deref(), der, "{ber}");
    }

    #[test]
    fn every_length_is_looked_at() {
        let whole = |der: &str| is_sound(&hex(der));
        assert!(whole("") && whole("0401aa") && whole("300530030401aa0500"));
        assert!(!whole("0402aa") && !whole("300530030402aa") && !whole("30050484ffffff"));
        // What a primitive element holds is nobody's business here.
        assert!(whole("04050484ffffff"));
        let nested = |depth| (0..depth).fold(Vec::new(), |der, _| element(SEQUENCE, &[&der]));
        assert!(is_sound(&nested(MAX_DEPTH)) && !is_sound(&nested(MAX_DEPTH + 2)));
        let members = |tag, count| is_sound(&element(tag, &[&[NULL, 0].repeat(count)]));
        assert!(members(SET, MAX_SET) && !members(SET, MAX_SET + 1));
        assert!(members(SEQUENCE, MAX_SET + 1));
    }

    #[test]
    fn normalises() {
        check("0401aa", Some("0401aa"));
        check("30030401aa", Some("30030401aa"));
        check("30800401aa0000", Some("30030401aa"));
        check("308030800401aa00000000", Some("300530030401aa"));
        check("3081030401aa", Some("30030401aa"));
        check("2480040101040202030000", Some("0403010203"));
        check("240724030401010401ff", None);
        check("240824030401010401ff", Some("040201ff"));
        check("2480020101" /* an integer among the segments */, None);
        check("24800201010000", None);
        check("a080020105" /* no end */, None);
        check(
            "048001000000", /* primitive with indefinite length */
            None,
        );
        check("30030401aa00", None);
        check("3000", Some("3000"));
        check("", None);
        check("1f810100", None);
        check("3085000000000100", None);
    }

    #[test]
    fn refuses_deep_nesting_and_long_input() {
        let nested = |depth: usize| [[0x30, 0x80].repeat(depth), vec![0; 2 * depth]].concat();
        assert!(normalise(&nested(MAX_DEPTH)).is_ok());
        assert!(normalise(&nested(MAX_DEPTH + 1)).is_err());
        assert!(normalise(&nested(MAX_LEN / 4)).is_err());
        assert!(matches!(
            normalise(&vec![0; MAX_LEN + 1]),
            Err(PkiError::TooLarge(_))
        ));
    }

    #[test]
    fn writes_minimal_lengths_and_reads_them_back() {
        for len in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let value = vec![7; len];
            let der = element(OCTET_STRING, &[&value]);
            let node = Reader::single(&der, OCTET_STRING, "test").unwrap();
            assert_eq!((node.value, node.raw), (&value[..], &der[..]), "{len}");
        }
    }

    #[test]
    fn reader_refuses_what_is_not_der() {
        for (bytes, why) in [
            ("30800000", "indefinite"),
            ("048101aa", "over-long length"),
            ("0402aa", "short value"),
            ("04", "no length"),
            ("0401aaff", "trailing byte"),
        ] {
            assert!(
                Reader::single(&hex(bytes), hex(bytes)[0], "test").is_err(),
                "{why}"
            );
        }
    }

    /// Bytes that often are elements, nested and of either length form.
    fn element_like() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => prop::sample::select(vec![0, 1, 2, 4, 0x24, 0x30, 0x80, 0x81, 0x82, 0xa0]),
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..64)
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(bytes in element_like()) {
            if let Ok(der) = normalise(&bytes) {
                prop_assert!(der.len() <= bytes.len());
                prop_assert_eq!(normalise(&der).ok(), Some(der));
            }
        }
    }
}
