//! Signatures: from a document to a second of the calendar (spec §3).
//!
//! ```text
//! 0800 signature, children in any order
//!   0801  aggregation chain               1..n   `chain`
//!   0802  calendar chain                  0..1   `chain`
//!   0803  publication record              0..1   `publication`, needs 0802, excludes 0805
//!   0804  aggregation authentication      0..1   carried along, never verified
//!   0805  calendar authentication record  0..1   `publication`, needs 0802
//!   0806  RFC 3161 compatibility record   0..1
//! 0806 RFC 3161 record
//!   02 time       aggregation time        10 / 11  tstInfo prefix, suffix
//!   03 integer    chain index, 1..n       12       tstInfo algorithm
//!   04 octets     input data, 0..1        13 / 14  signedAttr prefix, suffix
//!   05 imprint    the document            15       signedAttr algorithm
//! ```
//!
//! A signature keeps the bytes it was read from and edits those, so whatever it
//! does not understand, and may ignore, survives.

use crate::{
    chain::{self, AggregationChain, CalendarChain, Climber, LevelOverflow, Link, push, shape},
    error::{DecodeError, DecodeErrorKind, EncodeError},
    hash::{self, Algorithm, Imprint},
    publication::{AuthenticationRecord, PublicationData, PublicationRecord, SignatureData},
    time::Second,
    tlv::{self, Element, Reader, Tag, Writer},
};
use thiserror::Error;

/// A decoded signature: well formed, not yet verified (see [`crate::policy`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    raw: Vec<u8>,
    /// Bottom first; levels are known to stay within 255 from level 0 on.
    chains: Vec<AggregationChain>,
    calendar: Option<CalendarChain>,
    anchor: Option<Anchor>,
    rfc3161: Option<Rfc3161Record>,
}

/// Where the chains of a signature lead.
pub(crate) struct Roots {
    /// The output of each aggregation chain from its own input, bottom first.
    pub(crate) aggregation: Vec<Imprint>,
    /// The output of the calendar chain.
    pub(crate) calendar: Option<Imprint>,
}

/// What vouches for the root of the calendar chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The key of the service (tag 0805).
    Authentication(AuthenticationRecord),
    /// The world, which has seen it published (tag 0803).
    Publication(PublicationRecord),
}

impl Signature {
    /// The container's tag.
    pub const TAG: Tag = 0x0800;

    /// Reads a `.ksig` file: one element 0800, nothing else, at most
    /// [`tlv::MAX`] bytes.
    ///
    /// # Errors
    /// Malformed, unknown, missing, repeated or contradicting elements, or
    /// levels that pass 255.
    pub fn decode(bytes: &[u8]) -> Result<Signature, DecodeError> {
        Self::from_element(&Element::expect(bytes, Self::TAG)?)
    }

    /// Reads a signature nested in something else.
    ///
    /// # Errors
    /// As [`Signature::decode`], and `UnexpectedTag`.
    pub fn from_element(element: &Element<'_>) -> Result<Signature, DecodeError> {
        if element.tag != Self::TAG {
            let kind = DecodeErrorKind::UnexpectedTag {
                expected: Self::TAG,
                found: element.tag,
            };
            return Err(element.error(kind));
        }
        let mut chains = Vec::new();
        let (mut calendar, mut authentication, mut publication) = (None, None, None);
        let (mut rfc3161, mut aggregation_authentication) = (None, None);
        for child in element.children() {
            let child = child?;
            match child.tag {
                AggregationChain::TAG => {
                    let chain = AggregationChain::decode(&child)?;
                    push(&child, &mut chains, chain::MAX_LINKS, chain)?;
                }
                CalendarChain::TAG => child.fill(&mut calendar, CalendarChain::decode(&child)?)?,
                PublicationRecord::TAG => {
                    child.fill(&mut publication, PublicationRecord::decode(&child)?)?;
                }
                AGGREGATION_AUTHENTICATION => {
                    check_aggregation_authentication(&child)?;
                    child.fill(&mut aggregation_authentication, ())?;
                }
                AuthenticationRecord::TAG => {
                    child.fill(&mut authentication, AuthenticationRecord::decode(&child)?)?;
                }
                Rfc3161Record::TAG => child.fill(&mut rfc3161, Rfc3161Record::decode(&child)?)?,
                _ => child.ignore()?,
            }
        }
        element.require(chains.first(), AggregationChain::TAG)?;
        chains.sort_by_key(|chain| core::cmp::Reverse(chain.index.len()));
        levels(&chains).map_err(|_| element.error(DecodeErrorKind::Range))?;
        let anchor = anchor(element, calendar.is_some(), authentication, publication)?;
        Ok(Signature {
            raw: element.raw.to_vec(),
            chains,
            calendar,
            anchor,
            rfc3161,
        })
    }

    /// A signature made of parts, each known to be well formed.
    ///
    /// # Errors
    /// No chain, an anchor without calendar chain, levels that pass 255, or
    /// more than [`tlv::MAX`] bytes.
    pub fn new(
        chains: &[AggregationChain],
        calendar: Option<&CalendarChain>,
        anchor: Option<&Anchor>,
    ) -> Result<Signature, DecodeError> {
        let mut children = Writer::new();
        children.each(chains, |w, chain| chain.write(w));
        if let Some(calendar) = calendar {
            calendar.write(&mut children);
        }
        match anchor {
            Some(Anchor::Authentication(record)) => record.write(&mut children),
            Some(Anchor::Publication(record)) => {
                record.write(&mut children, PublicationRecord::TAG)
            }
            None => {}
        }
        Self::assemble(children)
    }

    /// The signature that a service's answer holds: the children of its result
    /// payload, taken over verbatim but for the fields of the answer itself.
    ///
    /// `level` is the level of the request. The service computes as if the input
    /// were at that level, yet does not say so; this adds it to the first link.
    ///
    /// # Errors
    /// As [`Signature::decode`]; positions are those in the assembled signature.
    pub fn from_result(children: &[u8], level: u8) -> Result<Signature, DecodeError> {
        let mut kept = Writer::new();
        for child in Reader::new(children) {
            let child = child?;
            if !RESULT_FIELDS.contains(&child.tag) {
                kept.raw(child.raw);
            }
        }
        let signature = Self::assemble(kept)?;
        if level == 0 {
            return Ok(signature);
        }
        let correction = signature.chains[0].links[0].correction.checked_add(level);
        let correction = correction.ok_or(DecodeError::new(DecodeErrorKind::Range, 0))?;
        signature.edit(|child, w| signature.copy_correcting(child, w, correction))
    }

    /// The encoding: exactly what was decoded, unknown elements included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.raw.clone()
    }

    /// As [`Signature::encode`], without a copy.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The encoded children, as the result payload of a service carries them.
    #[must_use]
    pub fn children(&self) -> &[u8] {
        self.element().value
    }

    /// The aggregation chains, from the document upwards; at least one.
    #[must_use]
    pub fn aggregation_chains(&self) -> &[AggregationChain] {
        &self.chains
    }

    /// The calendar chain.
    #[must_use]
    pub fn calendar(&self) -> Option<&CalendarChain> {
        self.calendar.as_ref()
    }

    /// What vouches for the calendar's root.
    #[must_use]
    pub fn anchor(&self) -> Option<&Anchor> {
        self.anchor.as_ref()
    }

    /// The publication, once the signature is extended to one.
    #[must_use]
    pub fn publication(&self) -> Option<&PublicationRecord> {
        match &self.anchor {
            Some(Anchor::Publication(record)) => Some(record),
            _ => None,
        }
    }

    /// The service's own signature on the calendar, as long as no publication
    /// has taken over.
    #[must_use]
    pub fn authentication(&self) -> Option<&AuthenticationRecord> {
        match &self.anchor {
            Some(Anchor::Authentication(record)) => Some(record),
            _ => None,
        }
    }

    /// How a time stamp of the older RFC 3161 service leads into this signature.
    #[must_use]
    pub fn rfc3161(&self) -> Option<&Rfc3161Record> {
        self.rfc3161.as_ref()
    }

    /// What was signed: the imprint of the document.
    #[must_use]
    pub fn input(&self) -> Imprint {
        self.rfc3161
            .as_ref()
            .map_or(self.chains[0].input, |record| record.input)
    }

    /// The highest level at which the document may stand: as much as the first
    /// step rises beyond 1, nothing under an RFC 3161 record.
    #[must_use]
    pub fn input_level_max(&self) -> u8 {
        if self.rfc3161.is_some() {
            0
        } else {
            self.chains[0].links[0].correction
        }
    }

    /// The second in which it was signed.
    #[must_use]
    pub fn aggregation_time(&self) -> Second {
        self.chains[0].aggregation_time
    }

    /// The output of each aggregation chain from its own input, bottom first.
    pub fn outputs(&self) -> impl Iterator<Item = Imprint> {
        self.chains.iter().scan(0, |level, chain| {
            let (output, reached) = chain.output(*level).expect("decoding checked the levels");
            *level = reached;
            Some(output)
        })
    }

    /// The root of the topmost aggregation chain: what the calendar holds.
    #[must_use]
    pub fn aggregation_output(&self) -> Imprint {
        self.outputs()
            .last()
            .expect("a signature has at least one chain")
    }

    /// What [`Signature::outputs`] and [`CalendarChain::output`] give, all at once and
    /// in less time.
    pub(crate) fn roots(&self) -> Roots {
        let calendar = self.calendar.iter().map(Climber::of_calendar);
        let mut climbers = Vec::with_capacity(self.chains.len() + calendar.len());
        let mut level = 0;
        for chain in &self.chains {
            climbers.push(Climber::of_aggregation(chain, level));
            level = chain
                .output_level(level)
                .expect("decoding checked the levels");
        }
        climbers.extend(calendar);
        chain::climb_abreast(&mut climbers);
        let mut roots = climbers.iter().map(Climber::reached);
        Roots {
            aggregation: roots.by_ref().take(self.chains.len()).collect(),
            calendar: roots.next(),
        }
    }

    /// The names of those who passed the request on, from the document upwards:
    /// usually the client's login first.
    pub fn identities(&self) -> impl Iterator<Item = String> {
        let links = self.chains.iter().flat_map(|chain| &chain.links);
        links.filter_map(|link| link.sibling.client_id())
    }

    /// The same signature leading to another root of the calendar, vouched for
    /// by `publication`, or by nothing yet.
    ///
    /// # Errors
    /// [`ExtensionError`] if `calendar` does not fit the signature, or
    /// `publication` does not fit `calendar`.
    pub fn extend_with(
        &self,
        calendar: &CalendarChain,
        publication: Option<&PublicationRecord>,
    ) -> Result<Signature, ExtensionError> {
        self.check_fit(calendar)?;
        let root = PublicationData {
            time: calendar.publication_time,
            imprint: calendar.output(),
        };
        if publication.is_some_and(|record| record.data != root) {
            return Err(ExtensionError::Publication);
        }
        let mut children = Writer::new();
        for child in self.element_children() {
            match child.tag {
                CalendarChain::TAG => calendar.write(&mut children),
                PublicationRecord::TAG | AuthenticationRecord::TAG => {}
                _ => _ = children.raw(child.raw),
            }
        }
        if self.calendar.is_none() {
            calendar.write(&mut children);
        }
        if let Some(publication) = publication {
            publication.write(&mut children, PublicationRecord::TAG);
        }
        Self::assemble(children).map_err(ExtensionError::Encoding)
    }

    /// The signature of a leaf of a local tree whose root this signature signs:
    /// the chain from `input`, at level 0, becomes the lowest one.
    ///
    /// # Errors
    /// [`HangError`] if the links do not lead from `input` to the signed root, or
    /// only at a higher level than was requested.
    pub fn hang(
        &self,
        algorithm: Algorithm,
        input: Imprint,
        links: Vec<Link>,
    ) -> Result<Signature, HangError> {
        let (root, level) = chain::climb(algorithm, input, 0, &links)?;
        if self.rfc3161.is_some() || root != self.chains[0].input {
            return Err(HangError::Root);
        }
        let above = self.above(level)?;
        let own_shape = shape(&links)
            .filter(|_| !links.is_empty())
            .ok_or(HangError::Length)?;
        let lowest = AggregationChain {
            aggregation_time: self.aggregation_time(),
            index: self.chains[0]
                .index
                .iter()
                .copied()
                .chain([own_shape])
                .collect(),
            input_data: None,
            input,
            algorithm,
            links,
        };
        let mut children = Writer::new();
        lowest.write(&mut children);
        children.raw(&above);
        Self::assemble(children).map_err(HangError::Encoding)
    }

    /// What stands in the signature of any leaf of a tree behind the leaf's own
    /// chain, if this signature signs that tree's root at `level`: for an
    /// aggregator below another one, which puts many chains below one signature.
    /// The chain index of each begins with that of [`Self::aggregation_chains`]' first.
    ///
    /// # Errors
    /// [`HangError::Level`] if a lower level was requested, [`HangError::Root`] if
    /// the signature was converted from another kind and has no chain to go on.
    pub fn above(&self, level: u8) -> Result<Vec<u8>, HangError> {
        if self.rfc3161.is_some() {
            return Err(HangError::Root);
        }
        let correction = self.input_level_max().checked_sub(level);
        let correction = correction.ok_or(HangError::Level)?;
        let mut children = Writer::new();
        for child in self.element_children() {
            self.copy_correcting(&child, &mut children, correction);
        }
        let too_long = DecodeError::new(DecodeErrorKind::TooLong { max: tlv::MAX }, 0);
        children.finish().map_err(|_| HangError::Encoding(too_long))
    }

    /// The calendar chain of another root must start where this signature's
    /// aggregation ends, and tell the same history.
    fn check_fit(&self, calendar: &CalendarChain) -> Result<(), ExtensionError> {
        if calendar.time() != self.aggregation_time() {
            return Err(ExtensionError::Time);
        }
        if calendar.input != self.aggregation_output() {
            return Err(ExtensionError::Input);
        }
        match &self.calendar {
            Some(old) if !old.is_compatible_with(calendar) => Err(ExtensionError::History),
            _ => Ok(()),
        }
    }

    /// Copies `child`; if it is the lowest chain, its first link gets `correction`.
    fn copy_correcting(&self, child: &Element<'_>, writer: &mut Writer, correction: u8) {
        if !self.is_lowest_chain(child) {
            writer.raw(child.raw);
            return;
        }
        writer.nested_flagged(child.tag, child.flags(), |w| {
            let mut first = true;
            w.each(child.children().flatten(), |w, part| {
                if first && matches!(part.tag, 0x07 | 0x08) {
                    first = false;
                    copy_link_correcting(&part, w, correction);
                } else {
                    w.raw(part.raw);
                }
            })
        });
    }

    fn is_lowest_chain(&self, child: &Element<'_>) -> bool {
        child.tag == AggregationChain::TAG
            && AggregationChain::decode(child).is_ok_and(|chain| chain == self.chains[0])
    }

    /// The signature whose children `write` makes out of this one's.
    fn edit(&self, mut write: impl FnMut(&Element<'_>, &mut Writer)) -> Result<Self, DecodeError> {
        let mut children = Writer::new();
        for child in self.element_children() {
            write(&child, &mut children);
        }
        Self::assemble(children)
    }

    /// Puts the container around `children` and reads the result, which checks
    /// everything that decoding checks.
    fn assemble(children: Writer) -> Result<Signature, DecodeError> {
        let too_long =
            |_: EncodeError| DecodeError::new(DecodeErrorKind::TooLong { max: tlv::MAX }, 0);
        let children = children.finish().map_err(too_long)?;
        let mut whole = Writer::new();
        whole.element(Self::TAG, &children);
        Self::decode(&whole.finish().map_err(too_long)?)
    }

    fn element(&self) -> Element<'_> {
        Element::single(&self.raw).expect("decoding read these bytes")
    }

    fn element_children(&self) -> impl Iterator<Item = Element<'_>> {
        self.element()
            .children()
            .map(|child| child.expect("decoding read these bytes"))
    }
}

/// A link with another correction, everything else kept.
fn copy_link_correcting(link: &Element<'_>, writer: &mut Writer, correction: u8) {
    writer.nested_flagged(link.tag, link.flags(), |w| {
        w.integer(LEVEL_CORRECTION, correction.into());
        let others = link
            .children()
            .flatten()
            .filter(|part| part.tag != LEVEL_CORRECTION);
        w.each(others, |w, part| _ = w.raw(part.raw))
    });
}

/// The level that the chains reach from level 0.
fn levels(chains: &[AggregationChain]) -> Result<u8, LevelOverflow> {
    chains
        .iter()
        .try_fold(0, |level, chain| chain.output_level(level))
}

/// At most one anchor, and none without a calendar chain.
fn anchor(
    element: &Element<'_>,
    has_calendar: bool,
    authentication: Option<AuthenticationRecord>,
    publication: Option<PublicationRecord>,
) -> Result<Option<Anchor>, DecodeError> {
    let conflict = |tag| Err(element.error(DecodeErrorKind::Conflict(tag)));
    match (authentication, publication) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => conflict(PublicationRecord::TAG),
        (Some(_), None) if !has_calendar => conflict(AuthenticationRecord::TAG),
        (None, Some(_)) if !has_calendar => conflict(PublicationRecord::TAG),
        (Some(record), None) => Ok(Some(Anchor::Authentication(record))),
        (None, Some(record)) => Ok(Some(Anchor::Publication(record))),
    }
}

/// The record that once was to vouch for an aggregation root has no use yet, but
/// a form: time, chain index, root, signature.
fn check_aggregation_authentication(element: &Element<'_>) -> Result<(), DecodeError> {
    let (mut time, mut index, mut root, mut signature) = (None, None, None, None);
    for child in element.children() {
        let child = child?;
        match child.tag {
            0x02 => child.fill(&mut time, child.second()?)?,
            0x03 => index = Some(child.integer()?),
            0x05 => child.fill(&mut root, child.imprint()?)?,
            SignatureData::TAG => child.fill(&mut signature, SignatureData::decode(&child)?)?,
            _ => child.ignore()?,
        }
    }
    element.require(time, 0x02)?;
    element.require(index, 0x03)?;
    element.require(root, 0x05)?;
    element.require(signature, SignatureData::TAG).map(drop)
}

/// A calendar chain, or a publication, does not fit a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExtensionError {
    /// The chain starts from another second.
    #[error("the calendar chain is of another second")]
    Time,
    /// The chain starts from another root than the signature's aggregation.
    #[error("the calendar chain has another input")]
    Input,
    /// The chain contradicts the one it would replace about earlier seconds.
    #[error("the calendar chain tells another history")]
    History,
    /// The publication is not the root of the chain.
    #[error("the publication is not the root of the calendar chain")]
    Publication,
    /// The new signature would be too long.
    #[error("extended signature: {0}")]
    Encoding(DecodeError),
}

/// A local chain does not fit below a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HangError {
    /// The chain leads to another root than the signature signs.
    #[error("the local chain does not lead to the signed root")]
    Root,
    /// The chain is higher than the level that was requested.
    #[error("the local chain is higher than the signed level")]
    Level,
    /// The chain has no link, or more than its index can describe.
    #[error("a local chain has 1 to 63 links")]
    Length,
    /// The levels of the local chain pass 255.
    #[error("local chain: {0}")]
    Overflow(#[from] LevelOverflow),
    /// The new signature would be malformed or too long.
    #[error("signature with a local chain: {0}")]
    Encoding(DecodeError),
}

/// Leads from a document to the input of the lowest chain the way an RFC 3161
/// time stamp did (tag 0806).
///
/// ```text
/// a := digest of tst_algorithm( tst_prefix ‖ digest(input) ‖ tst_suffix )
/// b := digest of attr_algorithm( attr_prefix ‖ a ‖ attr_suffix )
/// output := H( imprint(b) )
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rfc3161Record {
    /// Equal to that of the chains.
    pub aggregation_time: Second,
    /// Equal to that of the lowest chain.
    pub index: Vec<u64>,
    /// The document.
    pub input: Imprint,
    /// What stands before the digest in the TSTInfo structure.
    pub tst_prefix: Vec<u8>,
    /// What stands after it.
    pub tst_suffix: Vec<u8>,
    /// Hashes the TSTInfo structure.
    pub tst_algorithm: Algorithm,
    /// What stands before that digest in the signed attributes.
    pub attr_prefix: Vec<u8>,
    /// What stands after it.
    pub attr_suffix: Vec<u8>,
    /// Hashes the signed attributes.
    pub attr_algorithm: Algorithm,
}

impl Rfc3161Record {
    /// The container's tag.
    pub const TAG: Tag = 0x0806;

    /// The input of the lowest chain, as an imprint of `algorithm`.
    #[must_use]
    pub fn output(&self, algorithm: Algorithm) -> Imprint {
        let tst_parts = [&self.tst_prefix, self.input.digest(), &self.tst_suffix];
        let tst = hash::hash(self.tst_algorithm, &tst_parts);
        let attr_parts = [&self.attr_prefix, tst.digest(), &self.attr_suffix];
        let attributes = hash::hash(self.attr_algorithm, &attr_parts);
        hash::hash(algorithm, &[attributes.as_bytes()])
    }

    fn decode(element: &Element<'_>) -> Result<Rfc3161Record, DecodeError> {
        let (mut time, mut index, mut input_data, mut input) = (None, Vec::new(), None, None);
        let (mut tst_prefix, mut tst_suffix, mut tst_algorithm) = (None, None, None);
        let (mut attr_prefix, mut attr_suffix, mut attr_algorithm) = (None, None, None);
        for child in element.children() {
            let child = child?;
            let octets = || child.value.to_vec();
            match child.tag {
                0x02 => child.fill(&mut time, child.second()?)?,
                0x03 => push(&child, &mut index, chain::MAX_LINKS, child.integer()?)?,
                0x04 => child.fill(&mut input_data, ())?,
                0x05 => child.fill(&mut input, child.imprint()?)?,
                0x10 => child.fill(&mut tst_prefix, octets())?,
                0x11 => child.fill(&mut tst_suffix, octets())?,
                0x12 => child.fill(&mut tst_algorithm, child.algorithm()?)?,
                0x13 => child.fill(&mut attr_prefix, octets())?,
                0x14 => child.fill(&mut attr_suffix, octets())?,
                0x15 => child.fill(&mut attr_algorithm, child.algorithm()?)?,
                _ => child.ignore()?,
            }
        }
        element.require(index.first(), 0x03)?;
        Ok(Rfc3161Record {
            aggregation_time: element.require(time, 0x02)?,
            index,
            input: element.require(input, 0x05)?,
            tst_prefix: element.require(tst_prefix, 0x10)?,
            tst_suffix: element.require(tst_suffix, 0x11)?,
            tst_algorithm: element.require(tst_algorithm, 0x12)?,
            attr_prefix: element.require(attr_prefix, 0x13)?,
            attr_suffix: element.require(attr_suffix, 0x14)?,
            attr_algorithm: element.require(attr_algorithm, 0x15)?,
        })
    }
}

const AGGREGATION_AUTHENTICATION: Tag = 0x0804;
const LEVEL_CORRECTION: Tag = 0x01;
/// Request id, status, message, configuration and acknowledgement of an answer.
const RESULT_FIELDS: [Tag; 5] = [0x01, 0x04, 0x05, 0x10, 0x11];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::{Metadata, Sibling, Side},
        policy::{Code, Context, Policy, verify},
        publication::SignatureData,
        tree::TreeBuilder,
    };

    const SHA256: Algorithm = Algorithm::Sha256;
    const NOW: Second = Second(1000);

    fn imprint(text: &str) -> Imprint {
        hash::hash(SHA256, &[text.as_bytes()])
    }

    /// The calendar chain of second 1000 in a calendar that ends with it: as many
    /// right links as the number has bits set.
    fn calendar(input: Imprint) -> CalendarChain {
        CalendarChain {
            publication_time: NOW,
            aggregation_time: Some(NOW),
            input,
            links: vec![(Side::Right, Imprint::zero(SHA256)); 6],
        }
    }

    /// The same second seen from the next one, 1001.
    fn next_calendar(input: Imprint) -> CalendarChain {
        let mut links = calendar(input).links;
        links.insert(0, (Side::Left, imprint("second 1001")));
        CalendarChain {
            publication_time: Second(1001),
            links,
            ..calendar(input)
        }
    }

    fn root(calendar: &CalendarChain) -> PublicationData {
        PublicationData {
            time: calendar.publication_time,
            imprint: calendar.output(),
        }
    }

    /// What a service does: one round, one second, one signature.
    fn serve(input: Imprint, level: u8) -> Signature {
        let metadata = Metadata {
            client_id: "anon".into(),
            ..Metadata::default()
        };
        let mut round = TreeBuilder::new(SHA256);
        round
            .push_with_metadata(input, level, metadata.encode())
            .unwrap();
        round.push(imprint("somebody else"), 3).unwrap();
        let round = round.finish().unwrap();
        let links = round.links(0);
        let chain = AggregationChain {
            aggregation_time: NOW,
            index: vec![shape(&links).unwrap()],
            input_data: None,
            input,
            algorithm: SHA256,
            links,
        };
        let calendar = calendar(round.root());
        let signature = SignatureData {
            oid: "1.2.840.113549.1.1.11".into(),
            value: vec![1; 256],
            certificate_id: vec![0; 4],
            repository: None,
        };
        let record = AuthenticationRecord::new(root(&calendar), signature);
        Signature::new(
            &[chain],
            Some(&calendar),
            Some(&Anchor::Authentication(record)),
        )
        .unwrap()
    }

    fn code(signature: &Signature, document: Imprint, level: u8) -> Option<Code> {
        let document = Some(document);
        verify(
            signature,
            &Context {
                document,
                level,
                ..Context::new(Policy::Internal)
            },
        )
        .code()
    }

    #[test]
    fn a_document_is_signed() {
        let signature = Signature::from_result(serve(imprint("a"), 0).children(), 0).unwrap();
        assert_eq!(code(&signature, imprint("a"), 0), None);
        assert_eq!(code(&signature, imprint("b"), 0), Some(Code::Gen01));
        assert_eq!(code(&signature, imprint("a"), 1), Some(Code::Gen03));
        assert_eq!(signature.identities().collect::<Vec<_>>(), ["anon"]);
        assert_eq!(signature.aggregation_time(), NOW);
    }

    #[test]
    fn fields_of_the_answer_are_left_out() {
        let signature = serve(imprint("a"), 0);
        let mut result = Writer::new();
        result
            .integer(0x01, 7)
            .integer(0x04, 0)
            .string(0x05, "ok")
            .raw(signature.children());
        let result = result.finish().unwrap();
        assert_eq!(Signature::from_result(&result, 0), Ok(signature));
    }

    #[test]
    fn a_local_tree_is_signed_once_for_all_leaves() {
        let documents: Vec<Imprint> = (0..5).map(|i| imprint(&format!("document {i}"))).collect();
        let mut local = TreeBuilder::new(SHA256);
        documents
            .iter()
            .for_each(|document| _ = local.push(*document, 0).unwrap());
        let local = local.finish().unwrap();
        let answer = serve(local.root(), local.level());
        let signature = Signature::from_result(answer.children(), local.level()).unwrap();
        assert_eq!(code(&signature, local.root(), 3), None);
        for (leaf, document) in documents.iter().enumerate() {
            let hung = signature
                .hang(SHA256, *document, local.links(leaf))
                .unwrap();
            assert_eq!(code(&hung, *document, 0), None);
            assert_eq!(hung.aggregation_chains().len(), 2);
            assert_eq!(hung.aggregation_output(), signature.aggregation_output());
        }
    }

    #[test]
    fn a_chain_that_does_not_fit_is_not_hung() {
        let link = Link {
            side: Side::Left,
            correction: 0,
            sibling: Sibling::Imprint(imprint("neighbour")),
        };
        let (local_root, _) =
            chain::climb(SHA256, imprint("a"), 0, std::slice::from_ref(&link)).unwrap();
        let children = serve(local_root, 1);
        let signature = Signature::from_result(children.children(), 1).unwrap();
        let hang = |signature: &Signature, document, links| signature.hang(SHA256, document, links);
        assert!(hang(&signature, imprint("a"), vec![link.clone()]).is_ok());
        assert_eq!(
            hang(&signature, imprint("b"), vec![link.clone()]),
            Err(HangError::Root)
        );
        assert_eq!(
            hang(&signature, local_root, Vec::new()),
            Err(HangError::Length)
        );
        let flat = Signature::from_result(children.children(), 0).unwrap();
        assert_eq!(hang(&flat, imprint("a"), vec![link]), Err(HangError::Level));
    }

    #[test]
    fn extension_replaces_the_anchor() {
        let signature = serve(imprint("a"), 0);
        let calendar = next_calendar(signature.aggregation_output());
        let record = PublicationRecord::from(root(&calendar));
        let extended = signature.extend_with(&calendar, Some(&record)).unwrap();
        assert_eq!(extended.publication(), Some(&record));
        assert_eq!(extended.authentication(), None);
        assert_eq!(code(&extended, imprint("a"), 0), None);
        let bare = signature.extend_with(&calendar, None).unwrap();
        assert_eq!((bare.anchor(), bare.calendar()), (None, Some(&calendar)));
    }

    #[test]
    fn extension_refuses_what_does_not_fit() {
        let signature = serve(imprint("a"), 0);
        let good = next_calendar(signature.aggregation_output());
        let check = |calendar: &CalendarChain, error| {
            assert_eq!(signature.extend_with(calendar, None), Err(error));
        };
        let time = Some(Second(999));
        check(
            &CalendarChain {
                aggregation_time: time,
                ..good.clone()
            },
            ExtensionError::Time,
        );
        check(
            &CalendarChain {
                input: imprint("b"),
                ..good.clone()
            },
            ExtensionError::Input,
        );
        let mut rewritten = good.clone();
        rewritten.links[3].1 = imprint("another past");
        check(&rewritten, ExtensionError::History);
        let record = PublicationRecord::from(root(&rewritten));
        let extended = signature.extend_with(&good, Some(&record));
        assert_eq!(extended, Err(ExtensionError::Publication));
    }

    #[test]
    fn unknown_elements_survive_every_edit() {
        let mut children = Writer::new();
        let ignorable = tlv::Flags {
            noncritical: true,
            forward: false,
        };
        children.flagged(0x1234, ignorable, b"from the future");
        let unknown = children.clone().finish().unwrap();
        let answer = serve(imprint("a"), 2);
        let children = children.raw(answer.children()).clone().finish().unwrap();
        let signature = Signature::from_result(&children, 2).unwrap();
        let calendar = next_calendar(signature.aggregation_output());
        for edited in [&signature, &signature.extend_with(&calendar, None).unwrap()] {
            assert!(edited.children().starts_with(&unknown));
        }
    }

    fn refused(children: &[u8]) -> DecodeErrorKind {
        Signature::from_result(children, 0).unwrap_err().kind
    }

    #[test]
    fn structure_is_checked() {
        let signature = serve(imprint("a"), 0);
        let parts: Vec<&[u8]> = signature
            .element_children()
            .map(|child| child.raw)
            .collect();
        let [chain, calendar, authentication] = parts[..] else {
            panic!("three parts")
        };
        let mut publication = Writer::new();
        let record = PublicationRecord::from(root(signature.calendar().unwrap()));
        record.write(&mut publication, PublicationRecord::TAG);
        let publication = publication.finish().unwrap();

        assert_eq!(refused(calendar), DecodeErrorKind::Missing(0x0801));
        assert_eq!(
            refused(&[chain, authentication].concat()),
            DecodeErrorKind::Conflict(0x0805)
        );
        assert_eq!(
            refused(&[chain, &publication].concat()),
            DecodeErrorKind::Conflict(0x0803)
        );
        let both = [chain, calendar, authentication, &publication].concat();
        assert_eq!(refused(&both), DecodeErrorKind::Conflict(0x0803));
        let twice = [chain, calendar, calendar].concat();
        assert_eq!(refused(&twice), DecodeErrorKind::Repeated(0x0802));
        let unknown = [chain, &[0x88, 0x07, 0, 0]].concat();
        assert_eq!(refused(&unknown), DecodeErrorKind::UnknownCritical(0x0807));
    }

    #[test]
    fn levels_stay_in_range() {
        let answer = serve(imprint("a"), 0);
        let raised = |level| Signature::from_result(answer.children(), level);
        let top = 255 - answer.aggregation_chains()[0].output_level(0).unwrap();
        assert!(raised(top).is_ok());
        assert_eq!(raised(top + 1).unwrap_err().kind, DecodeErrorKind::Range);
        assert_eq!(raised(255).unwrap_err().kind, DecodeErrorKind::Range);
    }

    #[test]
    fn errors_tell_the_position() {
        let mut bytes = serve(imprint("a"), 0).encode();
        let position = bytes
            .windows(2)
            .position(|pair| pair == [0x06, 0x01])
            .unwrap();
        bytes[position + 2] = 3;
        let error = Signature::decode(&bytes).unwrap_err();
        assert_eq!(error.at, position);
        let text = format!("unsupported hash algorithm 0x03 at byte {position}");
        assert_eq!(error.to_string(), text);
    }
}
