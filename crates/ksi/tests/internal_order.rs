//! Every rule of the internal policy, broken alone and beside every later one:
//! the code is that of the first rule broken (spec §6).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::calendar::Calendar;
use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Metadata, Sibling, Side, shape};
use pitser_ksi::hash::{Algorithm, Imprint, hash};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publication::{
    AuthenticationRecord, PublicationData, PublicationRecord, SignatureData,
};
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Writer;

const SHA1_ENDS: Second = Second(1_467_331_200);

/// All that a signature says, consistent until somebody meddles with it.
#[derive(Clone)]
struct Parts {
    document: Imprint,
    level: u8,
    record: Option<Rfc3161>,
    chains: Vec<AggregationChain>,
    calendar: Option<CalendarChain>,
    anchor: Option<PublicationData>,
    published: bool,
}

/// A time stamp of the older service (spec §3.8).
#[derive(Clone)]
struct Rfc3161 {
    time: Second,
    index: Vec<u64>,
    input: Imprint,
    prefix: Vec<u8>,
    tst: Algorithm,
    attributes: Algorithm,
}

/// Which algorithms are used where.
#[derive(Clone, Copy)]
struct Choice {
    time: Second,
    document: Algorithm,
    record: Option<(Algorithm, Algorithm)>,
    leaf: Algorithm,
    chain: Algorithm,
    calendar: Algorithm,
}

const SOUND: Choice = Choice {
    time: SHA1_ENDS,
    document: Algorithm::Sha256,
    record: Some((Algorithm::Sha512, Algorithm::Sha384)),
    leaf: Algorithm::Sha256,
    chain: Algorithm::Sha256,
    calendar: Algorithm::Sha256,
};

impl Parts {
    fn new(choice: Choice) -> Self {
        let document = hash(choice.document, &[b"document"]);
        let mut leaf = document;
        let record = choice.record.map(|(tst, attributes)| Rfc3161 {
            time: choice.time,
            index: Vec::new(),
            input: document,
            prefix: b"prefix".to_vec(),
            tst,
            attributes,
        });
        if let Some(record) = &record {
            leaf = record.output(choice.leaf);
        }
        let metadata = Metadata {
            client_id: "anon".into(),
            ..Metadata::default()
        };
        let lower = chain(choice, vec![], leaf, Sibling::Metadata(metadata.encode()));
        let (root, level) = lower.output(0).unwrap();
        let sibling = Sibling::Imprint(hash(Algorithm::Sha512, &[b"neighbour"]));
        let mut upper = chain(choice, vec![], root, sibling);
        upper.links.push(upper.links[1].clone());
        let root = upper.output(level).unwrap().0;
        let mut chains = vec![lower, upper];
        let shapes = [&chains[1], &chains[0]].map(|chain| shape(&chain.links).unwrap());
        chains[0].index = shapes.to_vec();
        chains[1].index = shapes[..1].to_vec();
        let record = record.map(|record| Rfc3161 {
            index: shapes.to_vec(),
            ..record
        });
        let calendar = Calendar {
            at: choice.time,
            leaf: root,
            algorithm: choice.calendar,
        };
        let calendar = calendar.chain(choice.time, choice.time.plus(100));
        let anchor = PublicationData {
            time: calendar.publication_time,
            imprint: calendar.output(),
        };
        Self {
            document,
            level: 0,
            record,
            chains,
            calendar: Some(calendar),
            anchor: Some(anchor),
            published: false,
        }
    }

    /// The same, with a publication in place of the key.
    fn published(mut self) -> Self {
        self.published = true;
        self
    }

    fn signature(&self) -> Signature {
        let anchor = self.anchor.map(|data| {
            let signature = SignatureData {
                oid: "1.2.840.113549.1.1.11".into(),
                value: vec![1; 256],
                certificate_id: vec![1; 4],
                repository: None,
            };
            if self.published {
                Anchor::Publication(PublicationRecord::from(data))
            } else {
                Anchor::Authentication(AuthenticationRecord::new(data, signature))
            }
        });
        let plain = Signature::new(&self.chains, self.calendar.as_ref(), anchor.as_ref()).unwrap();
        let mut children = Writer::new();
        children.raw(plain.children());
        if let Some(record) = &self.record {
            record.write(&mut children);
        }
        Signature::from_result(&children.finish().unwrap(), 0).unwrap()
    }

    fn code(&self) -> String {
        let context = Context {
            document: Some(self.document),
            level: self.level,
            ..Context::new(Policy::Internal)
        };
        verify(&self.signature(), &context)
            .code()
            .map_or("ok".to_owned(), |code| code.to_string())
    }
}

fn chain(choice: Choice, index: Vec<u64>, input: Imprint, sibling: Sibling) -> AggregationChain {
    let link = |side, correction, sibling| Link {
        side,
        correction,
        sibling,
    };
    let other = Sibling::Imprint(hash(choice.chain, &[b"other"]));
    AggregationChain {
        aggregation_time: choice.time,
        index,
        input_data: None,
        input,
        algorithm: choice.chain,
        links: vec![link(Side::Right, 0, sibling), link(Side::Left, 3, other)],
    }
}

impl Rfc3161 {
    fn output(&self, algorithm: Algorithm) -> Imprint {
        let tst = hash(self.tst, &[&self.prefix, self.input.digest(), b"suffix"]);
        let attributes = hash(self.attributes, &[b"before", tst.digest(), b"after"]);
        hash(algorithm, &[attributes.as_bytes()])
    }

    fn write(&self, writer: &mut Writer) {
        writer.nested(0x0806, |w| {
            w.integer(0x02, self.time.0)
                .each(&self.index, |w, index| _ = w.integer(0x03, *index))
                .imprint(0x05, &self.input)
                .element(0x10, &self.prefix)
                .element(0x11, b"suffix")
                .integer(0x12, self.tst.id().into())
                .element(0x13, b"before")
                .element(0x14, b"after")
                .integer(0x15, self.attributes.id().into())
        });
    }
}

fn other(algorithm: Algorithm) -> Imprint {
    hash(algorithm, &[b"something else"])
}

/// Breaks a rule; the rules before it still hold.
type Fault = (&'static str, fn(&mut Parts));

/// In the order of the rules.
const FAULTS: [Fault; 20] = [
    ("GEN-04", |p| p.document = other(Algorithm::Sha512)),
    ("GEN-01", |p| p.document = other(p.document.algorithm())),
    ("GEN-03", |p| p.level = 9),
    ("INT-13", |p| {
        p.document = hash(Algorithm::Sha1, &[b"an old document"]);
        match &mut p.record {
            Some(record) => record.input = p.document,
            None => p.chains[0].input = p.document,
        }
    }),
    ("INT-14", |p| {
        record(p, |record| record.attributes = Algorithm::Sha1)
    }),
    ("INT-14", |p| {
        record(p, |record| record.tst = Algorithm::Sha1)
    }),
    ("INT-17", |p| record_and_leaf(p, other(Algorithm::Sha1))),
    ("INT-01", |p| record(p, |record| record.prefix.push(0))),
    ("INT-11", |p| {
        let Sibling::Metadata(metadata) = &mut p.chains[0].links[0].sibling else {
            panic!("metadata")
        };
        metadata[2] = 2;
    }),
    ("INT-15", |p| p.chains[1].algorithm = Algorithm::Sha1),
    ("INT-12", |p| p.chains[1].index[0] += 1),
    ("INT-02", |p| {
        p.chains[1].aggregation_time = p.chains[1].aggregation_time.plus(1)
    }),
    ("INT-01", |p| p.chains[1].input = other(Algorithm::Sha256)),
    ("INT-10", |p| {
        p.chains[0].index[1] += 1;
        record(p, |record| record.index[1] += 1);
    }),
    ("INT-03", |p| {
        calendar(p, |chain| chain.input = other(Algorithm::Sha256))
    }),
    ("INT-04", |p| {
        calendar(p, |chain| {
            chain.aggregation_time = Some(chain.time().plus(1))
        });
    }),
    ("INT-05", |p| {
        calendar(p, |chain| {
            let again = chain.links[0];
            chain.links.push(again);
        });
    }),
    // The shape of the next second, no less sound than its own.
    ("INT-05", |p| {
        calendar(p, |chain| chain.links[0].0 = Side::Right)
    }),
    ("INT-08 INT-09", |p| {
        anchor(p, |data| data.imprint = other(Algorithm::Sha256))
    }),
    ("INT-06 INT-07", |p| {
        anchor(p, |data| data.time = data.time.plus(1))
    }),
];

fn record(parts: &mut Parts, meddle: impl FnOnce(&mut Rfc3161)) {
    if let Some(record) = &mut parts.record {
        meddle(record);
    }
}

/// Only with a record is the leaf's algorithm no document's.
fn record_and_leaf(parts: &mut Parts, leaf: Imprint) {
    if parts.record.is_some() {
        parts.chains[0].input = leaf;
    }
}

fn calendar(parts: &mut Parts, meddle: impl FnOnce(&mut CalendarChain)) {
    meddle(parts.calendar.as_mut().unwrap());
}

fn anchor(parts: &mut Parts, meddle: impl FnOnce(&mut PublicationData)) {
    meddle(parts.anchor.as_mut().unwrap());
}

/// Of "INT-08 INT-09" the code that this kind of anchor gets.
fn code(fault: &Fault, published: bool) -> &'static str {
    match fault.0.split_once(' ') {
        None => fault.0,
        Some((authentication, publication)) => {
            if published {
                publication
            } else {
                authentication
            }
        }
    }
}

#[test]
fn the_first_broken_rule_decides() {
    let without_record = Choice {
        record: None,
        ..SOUND
    };
    for sound in [
        Parts::new(SOUND),
        Parts::new(SOUND).published(),
        Parts::new(without_record),
        Parts::new(without_record).published(),
    ] {
        assert_eq!(sound.code(), "ok");
        let only_with_record = |code: &str| matches!(code, "INT-14" | "INT-17");
        for (i, first) in FAULTS.iter().enumerate() {
            let expected = code(first, sound.published);
            let applies = sound.record.is_some()
                || !(only_with_record(expected) || (expected == "INT-01" && i < 8));
            for second in &FAULTS[i..] {
                let mut spoilt = sound.clone();
                second.1(&mut spoilt);
                first.1(&mut spoilt);
                if applies {
                    assert_eq!(spoilt.code(), expected, "before {}", second.0);
                }
            }
        }
    }
}

#[test]
fn a_calendar_chain_of_the_next_second() {
    let mut parts = Parts::new(SOUND);
    calendar(&mut parts, |chain| {
        assert_eq!(chain.links[0].0, Side::Left);
        chain.links[0].0 = Side::Right;
        assert_eq!(chain.time_from_shape(), Some(SHA1_ENDS.plus(1)));
    });
    assert_eq!(parts.code(), "INT-05");
}

#[test]
fn a_record_names_the_chains_time_and_index() {
    let check = |meddle: fn(&mut Rfc3161), expected| {
        let mut parts = Parts::new(SOUND);
        record(&mut parts, meddle);
        assert_eq!(parts.code(), expected);
    };
    check(|record| record.time = record.time.plus(1), "INT-02");
    check(|record| record.index[0] += 1, "INT-12");
    check(|record| _ = record.index.pop(), "INT-12");
    check(|record| record.index.push(3), "INT-12");
    check(|record| record.index.reverse(), "INT-12");
    check(|record| record.input = other(Algorithm::Sha256), "GEN-01");
}

#[test]
fn chain_indexes_continue() {
    let check = |meddle: fn(&mut [AggregationChain]), expected| {
        let mut parts = Parts::new(Choice {
            record: None,
            ..SOUND
        });
        meddle(&mut parts.chains);
        assert_eq!(parts.code(), expected);
    };
    check(|chains| chains[0].index.insert(0, 3), "INT-12");
    check(|chains| _ = chains[0].index.remove(0), "INT-12");
    check(|chains| chains[0].index = vec![2, 2, 2], "INT-12");
    check(|chains| chains[1].index = chains[0].index.clone(), "INT-12");
    check(|chains| chains[1].index[0] += 1, "INT-12");
    check(|chains| chains[1].index.push(3), "INT-12");
    // An index that no chain can have, in both.
    check(
        |chains| {
            chains[0].index[0] = 0;
            chains[1].index[0] = 0;
        },
        "INT-10",
    );
    check(|chains| chains[0].index[1] = u64::MAX, "INT-10");
    // The order on disk means nothing.
    check(|chains| chains.reverse(), "ok");
}

/// SHA-1 was good for what was signed until the last second of June 2016.
#[test]
fn sha_1_ends_with_june_2016() {
    let check = |choice: Choice, expected: &str| {
        let at = |time| Parts::new(Choice { time, ..choice });
        assert_eq!(at(Second(SHA1_ENDS.0 - 1)).code(), "ok", "{expected}");
        for time in [SHA1_ENDS, SHA1_ENDS.plus(1), SHA1_ENDS.plus(1 << 30)] {
            assert_eq!(at(time).code(), expected);
            assert_eq!(at(time).published().code(), expected);
        }
    };
    let sha1 = Algorithm::Sha1;
    check(SOUND, "ok");
    check(
        Choice {
            document: sha1,
            ..SOUND
        },
        "INT-13",
    );
    check(
        Choice {
            document: sha1,
            record: None,
            leaf: sha1,
            ..SOUND
        },
        "INT-13",
    );
    let record = |tst, attributes| Choice {
        record: Some((tst, attributes)),
        ..SOUND
    };
    check(record(sha1, Algorithm::Sha256), "INT-14");
    check(record(Algorithm::Sha256, sha1), "INT-14");
    check(
        Choice {
            leaf: sha1,
            ..SOUND
        },
        "INT-17",
    );
    check(
        Choice {
            chain: sha1,
            ..SOUND
        },
        "INT-15",
    );
    // Deprecated is not obsolete, which alone counts inside a signature (INT-16).
    check(
        Choice {
            calendar: sha1,
            ..SOUND
        },
        "ok",
    );
}

/// If chains and calendar chain contradict each other about the time, the calendar
/// decides what was signed too late, before the contradiction is looked at.
#[test]
fn the_calendar_tells_when_the_document_was_signed() {
    let sha1 = |time| {
        Parts::new(Choice {
            time,
            document: Algorithm::Sha1,
            record: None,
            leaf: Algorithm::Sha1,
            ..SOUND
        })
    };
    let mut parts = sha1(Second(SHA1_ENDS.0 - 1));
    calendar(&mut parts, |chain| chain.aggregation_time = Some(SHA1_ENDS));
    assert_eq!(parts.code(), "INT-13");
    let mut parts = sha1(SHA1_ENDS);
    calendar(&mut parts, |chain| {
        chain.aggregation_time = Some(Second(SHA1_ENDS.0 - 1));
    });
    assert_eq!(parts.code(), "INT-04");
}

/// Every algorithm that has no end is good in every place.
#[test]
fn other_algorithms_have_no_end() {
    for algorithm in Algorithm::ALL
        .into_iter()
        .filter(|algorithm| algorithm.is_trusted())
    {
        for record in [None, Some((algorithm, algorithm))] {
            let choice = Choice {
                time: Second(4_000_000_000),
                document: algorithm,
                record,
                leaf: algorithm,
                chain: algorithm,
                calendar: algorithm,
            };
            assert_eq!(Parts::new(choice).code(), "ok", "{algorithm}");
        }
    }
}

/// The first link's correction is the highest level at which a document may stand.
#[test]
fn levels_of_the_document() {
    let at = |level, correction| {
        let mut parts = Parts::new(Choice {
            record: None,
            ..SOUND
        });
        (parts.calendar, parts.anchor) = (None, None);
        parts.chains.truncate(1);
        parts.chains[0].index = vec![shape(&parts.chains[0].links).unwrap()];
        parts.chains[0].links[0].correction = correction;
        parts.level = level;
        parts.code()
    };
    for correction in [0, 1, 100, 250] {
        assert_eq!(at(correction, correction), "ok");
        assert_eq!(at(correction + 1, correction), "GEN-03");
        assert_eq!(at(255, correction), "GEN-03");
    }
    // A time stamp of the older service has no level.
    let mut parts = Parts::new(SOUND);
    parts.level = 1;
    assert_eq!(parts.code(), "GEN-03");
}

/// Without tag 02 a calendar chain starts where it ends.
#[test]
fn a_calendar_chain_without_aggregation_time() {
    let mut parts = Parts::new(SOUND);
    let calendar = parts.calendar.as_mut().unwrap();
    let shape = Calendar {
        at: SHA1_ENDS,
        leaf: calendar.input,
        algorithm: Algorithm::Sha256,
    };
    *calendar = shape.chain(SHA1_ENDS, SHA1_ENDS);
    parts.anchor = Some(shape.publication(SHA1_ENDS));
    assert_eq!(parts.code(), "ok");
    let bytes = parts.signature().encode();
    let time = [&[0x02, 4][..], &SHA1_ENDS.0.to_be_bytes()[4..]].concat();
    let mut tree = common::tree::Node::read(&bytes);
    let chain = tree.children().iter_mut().find(|child| child.tag == 0x0802);
    let children = chain.unwrap().children();
    assert!(children.iter().any(|child| child.write() == time));
    children.retain(|child| child.tag != 0x02);
    let signature = Signature::decode(&tree.write()).unwrap();
    let calendar = signature.calendar().unwrap();
    assert_eq!(
        (calendar.aggregation_time, calendar.time()),
        (None, SHA1_ENDS)
    );
    assert!(verify(&signature, &Context::new(Policy::Internal)).is_intact());
}
