//! Hash chains: the path from a leaf to the root of a tree (spec §3.1, §3.2).
//!
//! ```text
//! 0801 aggregation chain              0802 calendar chain
//!   02 time       aggregation time      01 time     publication time
//!   03 integer    chain index, 1..n     02 time     aggregation time, 0..1
//!   04 octets     input data, 0..1      05 imprint  input: root of the last aggregation chain
//!   05 imprint    input                 07 imprint  left link,  07 and 08 together 1..n,
//!   06 integer    algorithm             08 imprint  right link  from the leaf upwards
//!   07 / 08       left / right link
//!     01 integer    level correction, 0..1
//!     02 imprint  | 03 legacy id | 04 metadata    the sibling
//! ```
//!
//! One aggregation step, starting from the input at some level:
//!
//! ```text
//! level := level + correction + 1                         at most 255
//! left link:   hash := H( hash ‖ sibling ‖ level )
//! right link:  hash := H( sibling ‖ hash ‖ level )
//! ```
//!
//! Calendar steps have no levels: the last byte is always FF, and a parent takes
//! the algorithm of its right child.

mod abreast;

pub(crate) use abreast::{Climber, climb_abreast};

use crate::{
    error::{DecodeError, DecodeErrorKind},
    hash::{self, Algorithm, Imprint},
    time::Second,
    tlv::{Element, Flags, Tag, Writer},
};
use thiserror::Error;

/// The side of the tree on which the *running* hash stands in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The running hash is the left child, the sibling the right one (tag 07).
    Left,
    /// The running hash is the right child, the sibling the left one (tag 08).
    Right,
}

impl Side {
    fn tag(self) -> Tag {
        match self {
            Side::Left => LEFT_LINK,
            Side::Right => RIGHT_LINK,
        }
    }

    fn of(tag: Tag) -> Option<Side> {
        match tag {
            LEFT_LINK => Some(Side::Left),
            RIGHT_LINK => Some(Side::Right),
            _ => None,
        }
    }

    fn arrange<'a>(self, running: &'a [u8], sibling: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        match self {
            Side::Left => (running, sibling),
            Side::Right => (sibling, running),
        }
    }
}

/// One step of an aggregation chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where the running hash stands.
    pub side: Side,
    /// By how much more than 1 the level rises.
    pub correction: u8,
    /// What the running hash is hashed with.
    pub sibling: Sibling,
}

impl Link {
    fn decode(element: &Element<'_>, side: Side) -> Result<Link, DecodeError> {
        let (mut correction, mut sibling) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                0x01 => child.fill(&mut correction, child.byte()?)?,
                0x02 => {
                    Self::fill_sibling(&child, &mut sibling, Sibling::Imprint(child.imprint()?))?
                }
                0x03 => Self::fill_sibling(&child, &mut sibling, legacy_id(&child)?)?,
                0x04 => {
                    MetadataFields::read(&child)?;
                    Self::fill_sibling(
                        &child,
                        &mut sibling,
                        Sibling::Metadata(child.value.into()),
                    )?;
                }
                _ => child.ignore()?,
            }
        }
        let sibling = element.require(sibling, 0x02)?;
        Ok(Link {
            side,
            correction: correction.unwrap_or(0),
            sibling,
        })
    }

    /// A link has one sibling, whatever its kind.
    fn fill_sibling(
        child: &Element<'_>,
        slot: &mut Option<Sibling>,
        sibling: Sibling,
    ) -> Result<(), DecodeError> {
        match slot.replace(sibling) {
            None => Ok(()),
            Some(_) => Err(child.error(DecodeErrorKind::Conflict(child.tag))),
        }
    }

    /// Appends the link.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(self.side.tag(), |w| {
            if self.correction > 0 {
                w.integer(0x01, self.correction.into());
            }
            w.element(self.sibling.tag(), self.sibling.as_bytes())
        });
    }
}

/// The other child of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sibling {
    /// A hash (tag 02).
    Imprint(Imprint),
    /// A client name of the older protocol (tag 03): `03 00 length`, up to 25
    /// bytes of text, zeros up to 29 bytes.
    LegacyId([u8; LEGACY_ID_LEN]),
    /// Who asked, and when (tag 04): the encoded value, see [`Metadata`].
    Metadata(Vec<u8>),
}

impl Sibling {
    /// The bytes that are hashed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Sibling::Imprint(imprint) => imprint.as_bytes(),
            Sibling::LegacyId(id) => id,
            Sibling::Metadata(encoded) => encoded,
        }
    }

    /// The name of the client, if the sibling carries one.
    #[must_use]
    pub fn client_id(&self) -> Option<String> {
        match self {
            Sibling::Imprint(_) => None,
            Sibling::LegacyId(id) => {
                let text = id[3..].get(..id[2].into())?;
                Some(String::from_utf8_lossy(text).into_owned())
            }
            Sibling::Metadata(encoded) => Metadata::decode(encoded).ok().map(|m| m.client_id),
        }
    }

    fn tag(&self) -> Tag {
        match self {
            Sibling::Imprint(_) => 0x02,
            Sibling::LegacyId(_) => 0x03,
            Sibling::Metadata(_) => 0x04,
        }
    }
}

fn legacy_id(element: &Element<'_>) -> Result<Sibling, DecodeError> {
    let malformed = || element.error(DecodeErrorKind::LegacyId);
    let id: [u8; LEGACY_ID_LEN] = element.value.try_into().map_err(|_| malformed())?;
    let padding = match id {
        [3, 0, length, ..] if usize::from(length) <= LEGACY_ID_TEXT_LEN => {
            &id[3 + usize::from(length)..]
        }
        _ => return Err(malformed()),
    };
    if padding.iter().any(|&byte| byte != 0) {
        return Err(malformed());
    }
    Ok(Sibling::LegacyId(id))
}

/// Who asked a server for a signature, and when; one link of the chain holds it
/// (spec §3.1).
///
/// Written with all flags set, and padded to an even length: imprints have odd
/// lengths, so metadata can never pass for one.
///
/// ```text
/// 1E 01 | 01 01   padding, first, TLV8        02 string   machine id, 0..1
/// 01 string       client id                   03 integer  sequence number, 0..1
///                                             04 integer  request time, µs since 1970, 0..1
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The client's login, or the name of the aggregator.
    pub client_id: String,
    /// The machine that aggregated.
    pub machine_id: Option<String>,
    /// Number of the request within its round.
    pub sequence: Option<u64>,
    /// When the request arrived, in microseconds since 1970.
    pub request_time_us: Option<u64>,
}

impl Metadata {
    /// The value of the link's metadata element, for [`Sibling::Metadata`].
    /// Texts are cut to 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        self.encode_onto(&mut value);
        value
    }

    /// As [`Metadata::encode`], appended to `out`: nothing is allocated where
    /// there is room.
    pub fn encode_onto(&self, out: &mut Vec<u8>) {
        let from = out.len();
        let mut fields = Writer::behind(std::mem::take(out));
        fields.raw(&LONG_PADDING);
        fields.string_flagged(CLIENT_ID, Flags::BOTH, cut(&self.client_id));
        if let Some(machine_id) = &self.machine_id {
            fields.string_flagged(MACHINE_ID, Flags::BOTH, cut(machine_id));
        }
        if let Some(sequence) = self.sequence {
            fields.integer_flagged(SEQUENCE, Flags::BOTH, sequence);
        }
        if let Some(request_time_us) = self.request_time_us {
            fields.integer_flagged(REQUEST_TIME, Flags::BOTH, request_time_us);
        }
        *out = fields.finish().expect("texts were cut, integers are short");
        if (out.len() - from) % 2 == 1 {
            out.remove(from);
            out[from..][..SHORT_PADDING.len()].copy_from_slice(&SHORT_PADDING);
        }
    }

    /// Reads the value of a metadata element.
    ///
    /// # Errors
    /// A field is malformed, repeated or unknown, or the client id is missing.
    /// Whether the padding can be trusted is for [`Metadata::is_unambiguous`].
    pub fn decode(value: &[u8]) -> Result<Metadata, DecodeError> {
        let fields = MetadataFields::read(&Element {
            tag: METADATA,
            noncritical: false,
            forward: false,
            value,
            raw: value,
            at: 0,
        })?;
        Ok(Metadata {
            client_id: fields.client_id.to_owned(),
            machine_id: fields.machine_id.map(str::to_owned),
            sequence: fields.sequence,
            request_time_us: fields.request_time_us,
        })
    }

    /// Whether an encoded value can be nothing but metadata: well padded or,
    /// from servers that did not pad yet, not shaped like an imprint (INT-11).
    #[must_use]
    pub fn is_unambiguous(value: &[u8]) -> bool {
        let mut children = crate::tlv::Reader::new(value);
        let Ok(first) = children.element() else {
            return false;
        };
        let later_padding = children.any(|child| child.is_ok_and(|child| child.tag == PADDING));
        if later_padding {
            return false;
        }
        if first.tag != PADDING {
            return Imprint::from_bytes(value).is_err();
        }
        !first.is_long()
            && first.noncritical
            && first.forward
            && matches!(first.value, [1] | [1, 1])
            && value.len().is_multiple_of(2)
    }
}

/// [`Metadata`] where it was read.
struct MetadataFields<'a> {
    client_id: &'a str,
    machine_id: Option<&'a str>,
    sequence: Option<u64>,
    request_time_us: Option<u64>,
}

impl<'a> MetadataFields<'a> {
    fn read(element: &Element<'a>) -> Result<Self, DecodeError> {
        let (mut client_id, mut machine_id) = (None, None);
        let (mut sequence, mut request_time_us) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                // Judged by `is_unambiguous`: a wrong padding is tampering, not a format error.
                PADDING => {}
                CLIENT_ID => child.fill(&mut client_id, child.string()?)?,
                MACHINE_ID => child.fill(&mut machine_id, child.string()?)?,
                SEQUENCE => child.fill(&mut sequence, child.integer()?)?,
                REQUEST_TIME => child.fill(&mut request_time_us, child.integer()?)?,
                _ => child.ignore()?,
            }
        }
        Ok(Self {
            client_id: element.require(client_id, CLIENT_ID)?,
            machine_id,
            sequence,
            request_time_us,
        })
    }
}

/// The longest start of `text` that has at most [`MAX_TEXT_LEN`] bytes.
fn cut(text: &str) -> &str {
    let fits = |end: &usize| *end <= MAX_TEXT_LEN;
    let ends = text
        .char_indices()
        .map(|(start, letter)| start + letter.len_utf8());
    &text[..ends.take_while(fits).last().unwrap_or(0)]
}

/// A hash chain inside one aggregator, in one second (tag 0801).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregationChain {
    /// The second of the round; equal in all chains of a signature.
    pub aggregation_time: Second,
    /// The shapes of the chains from the topmost down to this one, at least
    /// one. The last is this chain's own, see [`shape`].
    pub index: Vec<u64>,
    /// What the input is the hash of, if the server chose to say so.
    pub input_data: Option<Vec<u8>>,
    /// The leaf.
    pub input: Imprint,
    /// The algorithm of every step.
    pub algorithm: Algorithm,
    /// The steps from the leaf upwards, at least one.
    pub links: Vec<Link>,
}

impl AggregationChain {
    /// The container's tag.
    pub const TAG: Tag = 0x0801;

    /// The root reached from the input at `level`, and its level.
    ///
    /// # Errors
    /// [`LevelOverflow`] if the level would pass 255.
    pub fn output(&self, level: u8) -> Result<(Imprint, u8), LevelOverflow> {
        climb(self.algorithm, self.input, level, &self.links)
    }

    /// The level of the root if the input is at `level`. Hashes nothing.
    ///
    /// # Errors
    /// [`LevelOverflow`] if the level would pass 255.
    pub fn output_level(&self, level: u8) -> Result<u8, LevelOverflow> {
        self.links
            .iter()
            .enumerate()
            .try_fold(level, |level, (i, link)| rise(level, link, i))
    }

    /// Reads a chain.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown; more than
    /// [`MAX_SHAPE_LINKS`] links or 255 indexes.
    pub fn decode(element: &Element<'_>) -> Result<AggregationChain, DecodeError> {
        let (mut time, mut input_data, mut input, mut algorithm) = (None, None, None, None);
        let mut index = room(element, MAX_LINKS, |tag| tag == 0x03);
        let mut links = room(element, MAX_SHAPE_LINKS, is_link);
        for child in element.children() {
            let child = child?;
            match (child.tag, Side::of(child.tag)) {
                (0x02, _) => child.fill(&mut time, child.second()?)?,
                (0x03, _) => push(&child, &mut index, MAX_LINKS, child.integer()?)?,
                (0x04, _) => child.fill(&mut input_data, child.value.to_vec())?,
                (0x05, _) => child.fill(&mut input, child.imprint()?)?,
                (0x06, _) => child.fill(&mut algorithm, child.algorithm()?)?,
                (_, Some(side)) => {
                    push(
                        &child,
                        &mut links,
                        MAX_SHAPE_LINKS,
                        Link::decode(&child, side)?,
                    )?;
                }
                _ => child.ignore()?,
            }
        }
        element.require(index.first(), 0x03)?;
        element.require(links.first(), LEFT_LINK)?;
        Ok(AggregationChain {
            aggregation_time: element.require(time, 0x02)?,
            index,
            input_data,
            input: element.require(input, 0x05)?,
            algorithm: element.require(algorithm, 0x06)?,
            links,
        })
    }

    /// Appends the chain.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(Self::TAG, |w| {
            w.integer(0x02, self.aggregation_time.0);
            w.each(&self.index, |w, &index| _ = w.integer(0x03, index));
            if let Some(input_data) = &self.input_data {
                w.element(0x04, input_data);
            }
            w.imprint(0x05, &self.input)
                .integer(0x06, self.algorithm.id().into())
                .each(&self.links, |w, link| link.write(w))
        });
    }
}

/// The root reached from `input` at `level` over `links`, and its level. O(links),
/// no allocation.
///
/// # Errors
/// [`LevelOverflow`] if the level would pass 255.
pub fn climb(
    algorithm: Algorithm,
    input: Imprint,
    level: u8,
    links: &[Link],
) -> Result<(Imprint, u8), LevelOverflow> {
    let start = (input, level);
    links
        .iter()
        .enumerate()
        .try_fold(start, |(running, level), (i, link)| {
            let level = rise(level, link, i)?;
            let (left, right) = link
                .side
                .arrange(running.as_bytes(), link.sibling.as_bytes());
            Ok((hash::node(algorithm, left, right, level), level))
        })
}

/// The shape of a chain as the number its index ends with: a leading 1, then
/// from the last link to the first a 1 for a left link, a 0 for a right one.
/// `None` beyond [`MAX_SHAPE_LINKS`] links.
#[must_use]
pub fn shape(links: &[Link]) -> Option<u64> {
    (links.len() <= MAX_SHAPE_LINKS).then(|| {
        let bit = |link: &Link| u64::from(link.side == Side::Left);
        links
            .iter()
            .rev()
            .fold(1, |shape, link| shape << 1 | bit(link))
    })
}

/// The levels of a chain would pass 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the level passes 255 at link {link}")]
pub struct LevelOverflow {
    /// The link at which it happens, counted from the leaf.
    pub link: usize,
}

fn rise(level: u8, link: &Link, index: usize) -> Result<u8, LevelOverflow> {
    level
        .checked_add(link.correction)
        .and_then(|level| level.checked_add(1))
        .ok_or(LevelOverflow { link: index })
}

/// The path from one second's leaf to the root of the calendar at a later
/// second (tag 0802).
///
/// The calendar is a hash tree over all seconds from 1970 to the publication
/// time P. A tree over the leaves `lo..=lo+r` splits at the highest power of two
/// not above r, so the shape of the chain tells the leaf's second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalendarChain {
    /// The last second that the root covers.
    pub publication_time: Second,
    /// The second of the leaf; if absent it is the publication time. Written
    /// always: common clients refuse to extend without it.
    pub aggregation_time: Option<Second>,
    /// The leaf: the root of that second's aggregation.
    pub input: Imprint,
    /// Siblings and the side of the running hash, from the leaf upwards.
    pub links: Vec<(Side, Imprint)>,
}

impl CalendarChain {
    /// The container's tag.
    pub const TAG: Tag = 0x0802;

    /// The root of the calendar at the publication time.
    #[must_use]
    pub fn output(&self) -> Imprint {
        Climber::of_calendar(self).climb()
    }

    /// The second the chain claims to start from.
    #[must_use]
    pub fn time(&self) -> Second {
        self.aggregation_time.unwrap_or(self.publication_time)
    }

    /// The second that the shape of the chain proves, or `None` if no leaf of a
    /// calendar up to the publication time has this shape.
    #[must_use]
    pub fn time_from_shape(&self) -> Option<Second> {
        let (mut span, mut time) = (self.publication_time.0, 0);
        for (side, _) in self.links.iter().rev() {
            let left_leaves = 1 << span.checked_ilog2()?;
            match side {
                Side::Left => span = left_leaves - 1,
                Side::Right => {
                    time += left_leaves;
                    span -= left_leaves;
                }
            }
        }
        (span == 0).then_some(Second(time))
    }

    /// Whether one chain may replace the other in a signature: same second,
    /// same input, and the same history, which is what right links hold.
    #[must_use]
    pub fn is_compatible_with(&self, other: &CalendarChain) -> bool {
        self.time() == other.time()
            && self.input == other.input
            && self.siblings(Side::Right).eq(other.siblings(Side::Right))
    }

    /// The siblings of the links of one side, from the leaf upwards.
    pub fn siblings(&self, side: Side) -> impl Iterator<Item = &Imprint> {
        self.links
            .iter()
            .filter(move |(s, _)| *s == side)
            .map(|(_, sibling)| sibling)
    }

    /// Reads a chain.
    ///
    /// # Errors
    /// A field is malformed, missing, repeated or unknown; more than 255 links.
    pub fn decode(element: &Element<'_>) -> Result<CalendarChain, DecodeError> {
        let (mut publication_time, mut aggregation_time, mut input) = (None, None, None);
        let mut links = room(element, MAX_LINKS, is_link);
        for child in element.children() {
            let child = child?;
            match (child.tag, Side::of(child.tag)) {
                (0x01, _) => child.fill(&mut publication_time, child.second()?)?,
                (0x02, _) => child.fill(&mut aggregation_time, child.second()?)?,
                (0x05, _) => child.fill(&mut input, child.imprint()?)?,
                (_, Some(side)) => push(&child, &mut links, MAX_LINKS, (side, child.imprint()?))?,
                _ => child.ignore()?,
            }
        }
        element.require(links.first(), LEFT_LINK)?;
        Ok(CalendarChain {
            publication_time: element.require(publication_time, 0x01)?,
            aggregation_time,
            input: element.require(input, 0x05)?,
            links,
        })
    }

    /// Appends the chain, with its aggregation time in every case.
    pub fn write(&self, writer: &mut Writer) {
        writer.nested(Self::TAG, |w| {
            w.integer(0x01, self.publication_time.0)
                .integer(0x02, self.time().0)
                .imprint(0x05, &self.input)
                .each(&self.links, |w, (side, sibling)| {
                    _ = w.imprint(side.tag(), sibling)
                })
        });
    }
}

/// An empty list with room for as many values as `element` has children of `wanted`
/// tags, at most `max`: nothing is allocated for each.
fn room<T>(element: &Element<'_>, max: usize, wanted: impl Fn(Tag) -> bool) -> Vec<T> {
    let children = element.children().map_while(Result::ok);
    let values = children.filter(|child| wanted(child.tag)).take(max);
    Vec::with_capacity(values.count())
}

fn is_link(tag: Tag) -> bool {
    Side::of(tag).is_some()
}

/// Adds to a list that may hold `max` values.
pub(crate) fn push<T>(
    element: &Element<'_>,
    list: &mut Vec<T>,
    max: usize,
    value: T,
) -> Result<(), DecodeError> {
    if list.len() == max {
        return Err(element.error(DecodeErrorKind::TooMany(element.tag)));
    }
    list.push(value);
    Ok(())
}

/// The longest chain whose shape fits its 64 bit index.
pub const MAX_SHAPE_LINKS: usize = 63;

/// Levels end at 255 and rise with each link.
pub(crate) const MAX_LINKS: usize = 255;

/// Length of a legacy client identifier, in bytes.
pub const LEGACY_ID_LEN: usize = 29;

const LEGACY_ID_TEXT_LEN: usize = 25;
const MAX_TEXT_LEN: usize = 4096;
const LEFT_LINK: Tag = 0x07;
const RIGHT_LINK: Tag = 0x08;
const METADATA: Tag = 0x04;
const CLIENT_ID: Tag = 0x01;
const MACHINE_ID: Tag = 0x02;
const SEQUENCE: Tag = 0x03;
const REQUEST_TIME: Tag = 0x04;
const PADDING: Tag = 0x1e;
/// The padding element, with both flags, that makes an odd length even.
const SHORT_PADDING: [u8; 3] = [0x7e, 1, 1];
/// The same where the length is even already.
const LONG_PADDING: [u8; 4] = [0x7e, 2, 1, 1];
const CALENDAR_LEVEL: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlv::Reader;

    fn imprint(text: &str) -> Imprint {
        hash::hash(Algorithm::Sha256, &[text.as_bytes()])
    }

    fn link(side: Side, correction: u8) -> Link {
        Link {
            side,
            correction,
            sibling: Sibling::Imprint(imprint("sibling")),
        }
    }

    fn links(sides: &str) -> Vec<Link> {
        sides
            .chars()
            .map(|c| link(if c == 'L' { Side::Left } else { Side::Right }, 0))
            .collect()
    }

    #[test]
    fn shapes_of_the_specification() {
        for (sides, expected) in [("LLL", 15), ("L", 3), ("R", 2), ("LRL", 13), ("", 1)] {
            assert_eq!(shape(&links(sides)), Some(expected), "{sides}");
        }
        assert_eq!(shape(&links(&"L".repeat(63))), Some(u64::MAX));
        assert_eq!(shape(&links(&"L".repeat(64))), None);
    }

    #[test]
    fn a_step_hashes_left_right_level() {
        let (input, sibling) = (imprint("input"), imprint("sibling"));
        let both = [link(Side::Left, 4), link(Side::Right, 0)];
        let first = hash::hash(
            Algorithm::Sha256,
            &[input.as_bytes(), sibling.as_bytes(), &[7]],
        );
        let second = hash::hash(
            Algorithm::Sha512,
            &[sibling.as_bytes(), first.as_bytes(), &[8]],
        );
        assert_eq!(
            climb(Algorithm::Sha256, input, 2, &both[..1]),
            Ok((first, 7))
        );
        assert_eq!(
            climb(Algorithm::Sha512, first, 7, &both[1..]),
            Ok((second, 8))
        );
    }

    #[test]
    fn levels_end_at_255() {
        let both = [link(Side::Left, 200), link(Side::Left, 53)];
        let climb = |level| climb(Algorithm::Sha256, imprint("input"), level, &both);
        assert_eq!(climb(0).map(|(_, level)| level), Ok(255));
        assert_eq!(climb(1), Err(LevelOverflow { link: 1 }));
        assert_eq!(climb(55), Err(LevelOverflow { link: 0 }));
    }

    /// The chain of second `at` in a calendar up to `end`, built by the rule of
    /// the tree rather than by the reader's inversion of it.
    fn calendar(at: u64, end: u64) -> CalendarChain {
        let (mut low, mut span, mut sides) = (0, end, Vec::new());
        while span > 0 {
            let left = 1 << span.ilog2();
            if at < low + left {
                sides.push(Side::Left);
                span = left - 1;
            } else {
                sides.push(Side::Right);
                low += left;
                span -= left;
            }
        }
        let links = sides
            .into_iter()
            .rev()
            .map(|side| (side, imprint("s")))
            .collect();
        CalendarChain {
            publication_time: Second(end),
            aggregation_time: Some(Second(at)),
            input: imprint("input"),
            links,
        }
    }

    #[test]
    fn a_calendar_chain_tells_its_second() {
        for end in 1..70 {
            for at in 0..=end {
                assert_eq!(
                    calendar(at, end).time_from_shape(),
                    Some(Second(at)),
                    "{at} of {end}"
                );
            }
        }
        let mut chain = calendar(1_400_000_000, 1_400_112_000);
        assert_eq!(chain.time_from_shape(), Some(Second(1_400_000_000)));
        chain.links.push((Side::Right, imprint("s")));
        assert_eq!(chain.time_from_shape(), None);
    }

    #[test]
    fn extreme_calendar_times_do_not_overflow() {
        for at in [0, 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(calendar(at, u64::MAX).time_from_shape(), Some(Second(at)));
        }
    }

    #[test]
    fn a_parent_takes_the_algorithm_of_its_right_child() {
        let wide = hash::hash(Algorithm::Sha512, &[]);
        let mut chain = calendar(1, 1);
        chain.links = vec![
            (Side::Right, wide),
            (Side::Left, wide),
            (Side::Right, imprint("s")),
        ];
        assert_eq!(chain.output().algorithm(), Algorithm::Sha512);
        chain.links.truncate(1);
        assert_eq!(chain.output().algorithm(), Algorithm::Sha256);
    }

    #[test]
    fn chains_are_compatible_if_history_agrees() {
        let old = calendar(1000, 1010);
        let new = calendar(1000, 5000);
        assert!(old.is_compatible_with(&new));
        assert!(!old.is_compatible_with(&calendar(1001, 5000)));
        let mut other = new.clone();
        let right = other
            .links
            .iter_mut()
            .find(|(side, _)| *side == Side::Right)
            .unwrap();
        right.1 = imprint("rewritten");
        assert!(!old.is_compatible_with(&other));
    }

    #[test]
    fn chains_are_read_as_written() {
        let metadata = Metadata {
            client_id: "anon".into(),
            ..Metadata::default()
        };
        let mut links = links("LRL");
        links[1].correction = 7;
        links[0].sibling = Sibling::Metadata(metadata.encode());
        let aggregation = AggregationChain {
            aggregation_time: Second(1000),
            index: vec![3, 13],
            input_data: Some(vec![1, 2]),
            input: imprint("input"),
            algorithm: Algorithm::Sha3_512,
            links,
        };
        let mut writer = Writer::new();
        aggregation.write(&mut writer);
        calendar(1000, 2000).write(&mut writer);
        let bytes = writer.finish().unwrap();
        let elements: Vec<_> = Reader::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(AggregationChain::decode(&elements[0]), Ok(aggregation));
        assert_eq!(
            CalendarChain::decode(&elements[1]),
            Ok(calendar(1000, 2000))
        );
    }

    #[test]
    fn metadata_is_even_padded_and_unambiguous() {
        for name in ["", "a", "ab", &"õ".repeat(5000)] {
            for sequence in [None, Some(0), Some(300)] {
                let metadata = Metadata {
                    client_id: name.into(),
                    machine_id: Some("m".into()),
                    sequence,
                    request_time_us: Some(1),
                };
                let encoded = metadata.encode();
                assert!(Metadata::is_unambiguous(&encoded));
                assert_eq!(encoded.len() % 2, 0);
                assert_eq!(encoded[0], 0x7e);
                let decoded = Metadata::decode(&encoded).unwrap();
                assert_eq!(decoded.sequence, sequence);
                assert!(name.starts_with(&decoded.client_id));
            }
        }
    }

    #[test]
    fn suspicious_padding_is_noticed() {
        let unambiguous = [&[0x61, 2, b'a', 0][..], &[0x7e, 2, 1, 1, 0x61, 2, b'a', 0]];
        let ambiguous = [
            &[0x7e, 1, 1, 0x61, 2, b'a', 0][..],         // odd
            &[0x3e, 2, 1, 1, 0x61, 2, b'a', 0],          // critical
            &[0x5e, 2, 1, 1, 0x61, 2, b'a', 0],          // not forward
            &[0xe0, 0x1e, 0, 2, 1, 1, 0x61, 2, b'a', 0], // long header
            &[0x7e, 2, 1, 2, 0x61, 2, b'a', 0],          // wrong value
            &[0x7e, 0, 0x61, 2, b'a', 0],                // no value
            &[0x61, 2, b'a', 0, 0x7e, 2, 1, 1],          // not first
            &[0x7e, 1, 1, 0x7e, 1, 1, 0x61, 2, b'a', 0], // twice
            &[],
        ];
        for value in unambiguous {
            assert!(Metadata::is_unambiguous(value), "{value:x?}");
        }
        for value in ambiguous {
            assert!(!Metadata::is_unambiguous(value), "{value:x?}");
        }
        let mut like_sha256 = vec![0x01, 31];
        like_sha256.extend([b'a'; 30]);
        like_sha256.push(0);
        assert!(!Metadata::is_unambiguous(&like_sha256));
    }
}
