//! Signatures spoilt one element at a time: what a reader must refuse, what it
//! must take as it comes, and that it names the place.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::read;
use common::tree::{Body, Node};
use pitser_ksi::error::{DecodeError, DecodeErrorKind};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publication::{AuthenticationRecord, PublicationData, PublicationRecord};
use pitser_ksi::signature::Signature;
use pitser_ksi::tlv::{Element, Flags, Tag, Writer};

/// Between them they have every element that a signature may have.
fn originals() -> Vec<(String, Node)> {
    let names = [
        "tlv/ok-sig-2014-04-30.1.ksig",
        "tlv/ok-sig-2014-04-30.1-extended.ksig",
        "tlv/ok-legacy-sig-2014-06-extended.gtts.ksig",
        "tlv/ok-sig-2014-08-01.1.ksig",
        "tlv/ok-sig-2017-04-21.1-input-hash-level-5.ksig",
        "test_pack/valid-signatures/signature-optional-additions-in-cal-auth-rec-cert-rep-uri.ksig",
    ];
    let mut originals: Vec<_> = names
        .map(|name| (name.to_owned(), Node::read(&read(name))))
        .into();
    let mut more = originals[0].1.clone();
    more.children().push(aggregation_authentication());
    originals.push(("with an aggregation authentication record".to_owned(), more));
    for (name, original) in &originals {
        assert_eq!(judge(original), Ok(None), "{name}");
    }
    originals
}

/// A record that nobody uses yet (spec §3.7).
fn aggregation_authentication() -> Node {
    let mut writer = Writer::new();
    writer.nested(0x0800, |w| {
        w.nested(0x0804, |w| {
            w.integer(0x02, 1_400_000_000)
                .integer(0x03, 3)
                .integer(0x03, 5)
                .element(0x05, &[&[1][..], &[7; 32]].concat())
                .nested(0x0b, |w| {
                    w.string(0x01, "1.2.840.113549.1.1.11")
                        .element(0x02, &[1; 256])
                        .element(0x03, &[1, 2, 3, 4])
                        .string(0x04, "http://certificates.example/")
                })
        })
    });
    Node::read(&writer.finish().unwrap()).children().remove(0)
}

/// The code of the internal policy for what was accepted; it must come out again.
fn judge(tree: &Node) -> Result<Option<String>, DecodeError> {
    let bytes = tree.write();
    let signature = Signature::decode(&bytes)?;
    assert_eq!(signature.encode(), bytes);
    let verdict = verify(&signature, &Context::new(Policy::Internal));
    Ok(verdict.code().map(|code| code.to_string()))
}

fn refusal(tree: &Node) -> Option<DecodeErrorKind> {
    judge(tree).err().map(|error| error.kind)
}

/// Each place of each signature, with a copy to spoil.
fn everywhere(mut spoil: impl FnMut(&str, &[Tag], Node, &[usize])) {
    for (name, original) in originals() {
        for (place, tags) in original.places() {
            let about = format!("{tags:x?} {place:?} of {name}");
            spoil(&about, &tags, original.clone(), &place);
        }
    }
}

/// Their bytes are hashed, however they are written.
fn is_hashed(tags: &[Tag]) -> bool {
    matches!(tags, [0x0800, 0x0801, _, 0x04, _])
}

const IGNORABLE: Flags = Flags {
    noncritical: true,
    forward: false,
};

#[test]
fn unknown_critical_elements_are_refused_in_every_container() {
    let mut containers = 0;
    everywhere(|about, _, tree, place| {
        for (tag, flags) in [
            (0x1d, Flags::NONE),
            (0x1d, Flags::FORWARD),
            (0x1abc, Flags::NONE),
        ] {
            let mut spoilt = tree.clone();
            let Body::Children(children) = &mut spoilt.at(place).body else {
                return;
            };
            let unknown = Node {
                flags,
                ..Node::value(tag, b"?")
            };
            children.push(unknown.clone());
            let error = judge(&spoilt).unwrap_err();
            assert_eq!(error.kind, DecodeErrorKind::UnknownCritical(tag), "{about}");
            assert!(
                spoilt.write()[error.at..].starts_with(&unknown.write()),
                "{about}"
            );
            containers += 1;
        }
    });
    assert!(containers > 100, "{containers}");
}

#[test]
fn unknown_noncritical_elements_are_kept_in_every_container() {
    everywhere(|about, tags, tree, place| {
        for tag in [0x1d, 0x1abc] {
            for first in [true, false] {
                let mut tree = tree.clone();
                let Body::Children(children) = &mut tree.at(place).body else {
                    return;
                };
                let unknown = Node {
                    flags: IGNORABLE,
                    ..Node::value(tag, &[0x82, 0, 7])
                };
                let index = if first { 0 } else { children.len() };
                children.insert(index, unknown);
                let code = judge(&tree).unwrap_or_else(|e| panic!("{about}: {e}"));
                let hashed = matches!(tags, [0x0800, 0x0801, _, 0x04]);
                assert_eq!(code.is_some(), hashed, "{about}: {code:?}");
            }
        }
    });
}

/// What a container cannot do without; of several, one must be left.
const MANDATORY: [(&[Tag], &[Tag]); 12] = [
    (&[0x0800], &[0x0801]),
    (&[0x0800, 0x0801], &[0x02, 0x03, 0x05, 0x06]),
    (&[0x0800, 0x0801, 0x07], &[0x02, 0x03, 0x04]),
    (&[0x0800, 0x0801, 0x08], &[0x02, 0x03, 0x04]),
    (&[0x0800, 0x0801, 0x07, 0x04], &[0x01]),
    (&[0x0800, 0x0802], &[0x01, 0x05]),
    (&[0x0800, 0x0803], &[0x10]),
    (&[0x0800, 0x0803, 0x10], &[0x02, 0x04]),
    (&[0x0800, 0x0804], &[0x02, 0x03, 0x05, 0x0b]),
    (&[0x0800, 0x0805], &[0x10, 0x0b]),
    (&[0x0800, 0x0805, 0x0b], &[0x01, 0x02, 0x03]),
    (
        &[0x0800, 0x0806],
        &[0x02, 0x03, 0x05, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15],
    ),
];

#[test]
fn mandatory_elements_are_missed() {
    let mut missed = 0;
    everywhere(|about, tags, mut tree, place| {
        let Some((_, mandatory)) = MANDATORY.iter().find(|(path, _)| *path == tags) else {
            return;
        };
        for tag in *mandatory {
            let mut spoilt = tree.clone();
            let before = tree.at(place).children().len();
            spoilt
                .at(place)
                .children()
                .retain(|child| child.tag != *tag);
            if spoilt.at(place).children().len() == before {
                continue;
            }
            let kind = refusal(&spoilt);
            assert!(
                matches!(kind, Some(DecodeErrorKind::Missing(_))),
                "{about} without {tag:#x}: {kind:?}"
            );
            missed += 1;
        }
    });
    assert!(missed > 100, "{missed}");
}

#[test]
fn chains_without_links_are_refused() {
    everywhere(|about, tags, mut tree, place| {
        if !matches!(tags, [0x0800, 0x0801 | 0x0802]) {
            return;
        }
        let children = tree.at(place).children();
        children.retain(|child| !matches!(child.tag, 0x07 | 0x08));
        assert_eq!(
            refusal(&tree),
            Some(DecodeErrorKind::Missing(0x07)),
            "{about}"
        );
    });
}

/// Of which a container may have several.
fn is_list(tags: &[Tag]) -> bool {
    matches!(
        tags,
        [0x0800, 0x0801]
            | [0x0800, 0x0801 | 0x0804 | 0x0806, 0x03]
            | [0x0800, 0x0801 | 0x0802, 0x07 | 0x08]
            | [0x0800, 0x0803, 0x09 | 0x0a]
    )
}

#[test]
fn what_occurs_once_is_refused_twice() {
    let mut repeated = 0;
    everywhere(|about, tags, mut tree, place| {
        let [above @ .., index] = place else {
            return;
        };
        let twice = tree.at(place).clone();
        tree.at(above).children().insert(index + 1, twice);
        if is_list(tags) {
            let kind = refusal(&tree);
            assert!(
                kind.is_none() || kind == Some(DecodeErrorKind::Range),
                "{about}: {kind:?}"
            );
            return;
        }
        // A second padding is for the rule about metadata to judge.
        if matches!(tags, [0x0800, 0x0801, _, 0x04, 0x1e]) {
            assert_eq!(judge(&tree).unwrap().as_deref(), Some("INT-11"), "{about}");
            return;
        }
        let tag = *tags.last().unwrap();
        let kind = refusal(&tree);
        let expected = [
            DecodeErrorKind::Repeated(tag),
            DecodeErrorKind::Conflict(tag),
        ];
        assert!(
            kind.is_some_and(|kind| expected.contains(&kind)),
            "{about}: {kind:?}"
        );
        repeated += 1;
    });
    assert!(repeated > 100, "{repeated}");
}

#[test]
fn a_link_has_one_sibling() {
    everywhere(|about, tags, mut tree, place| {
        if !matches!(tags, [0x0800, 0x0801, 0x07 | 0x08]) {
            return;
        }
        let children = tree.at(place).children();
        let tag = if children.iter().any(|child| child.tag == 0x02) {
            children.push(Node::value(
                0x03,
                &[&[3, 0, 1, b'a'][..], &[0; 25]].concat(),
            ));
            0x03
        } else {
            children.push(Node::value(0x02, &[&[1][..], &[7; 32]].concat()));
            0x02
        };
        assert_eq!(
            refusal(&tree),
            Some(DecodeErrorKind::Conflict(tag)),
            "{about}"
        );
    });
}

#[test]
fn long_headers_are_read_everywhere() {
    everywhere(|about, tags, mut tree, place| {
        let element = tree.at(place);
        if std::mem::replace(&mut element.long, true) {
            return;
        }
        let code = judge(&tree).unwrap_or_else(|e| panic!("{about}: {e}"));
        match tags {
            [.., 0x04, 0x1e] => assert_eq!(code.as_deref(), Some("INT-11"), "{about}"),
            _ => assert_eq!(code.is_some(), is_hashed(tags), "{about}: {code:?}"),
        }
    });
}

/// They say what to do with an unknown element; these are known.
#[test]
fn flags_on_known_elements_change_nothing() {
    let flags = [false, true].map(|noncritical| {
        [false, true].map(|forward| Flags {
            noncritical,
            forward,
        })
    });
    everywhere(|about, tags, mut tree, place| {
        for flags in flags.concat() {
            let before = std::mem::replace(&mut tree.at(place).flags, flags);
            if before == flags {
                continue;
            }
            let code = judge(&tree).unwrap_or_else(|e| panic!("{about}: {e}"));
            match tags {
                [.., 0x04, 0x1e] => assert_eq!(code.as_deref(), Some("INT-11"), "{about}"),
                _ => assert_eq!(code.is_some(), is_hashed(tags), "{about}: {code:?}"),
            }
            tree.at(place).flags = before;
        }
    });
}

/// The order of links and of chain indexes has a meaning, no other has.
#[test]
fn elements_come_in_any_order() {
    everywhere(|about, tags, mut tree, place| {
        let hashed = matches!(tags, [0x0800, 0x0801, _, 0x04]);
        let Body::Children(children) = &mut tree.at(place).body else {
            return;
        };
        if hashed {
            return;
        }
        let is_link = |node: &Node| tags.len() == 2 && matches!(node.tag, 0x03 | 0x07 | 0x08);
        let (ordered, mut others): (Vec<_>, Vec<_>) = children.drain(..).partition(is_link);
        others.reverse();
        children.extend(ordered);
        children.extend(others);
        assert_eq!(judge(&tree), Ok(None), "{about}");
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    /// An integer of at most 255.
    Byte,
    Algorithm,
    Imprint,
    Text,
    /// That may be empty.
    AnyText,
    LegacyId,
    Octets,
}

fn kind(tags: &[Tag]) -> Option<Kind> {
    Some(match tags {
        [0x0800, 0x0801 | 0x0804 | 0x0806, 0x02 | 0x03] => Kind::Integer,
        [0x0800, 0x0802, 0x01 | 0x02] => Kind::Integer,
        [0x0800, 0x0803 | 0x0805, 0x10, 0x02] => Kind::Integer,
        [0x0800, 0x0801, _, 0x04, 0x03 | 0x04] => Kind::Integer,
        [0x0800, 0x0801, 0x07 | 0x08, 0x01] => Kind::Byte,
        [0x0800, 0x0801, 0x06] | [0x0800, 0x0806, 0x12 | 0x15] => Kind::Algorithm,
        [0x0800, _, 0x05] | [0x0800, 0x0801, _, 0x02] => Kind::Imprint,
        [0x0800, 0x0802, 0x07 | 0x08] => Kind::Imprint,
        [0x0800, 0x0803 | 0x0805, 0x10, 0x04] => Kind::Imprint,
        [0x0800, 0x0803, 0x09 | 0x0a] => Kind::Text,
        [0x0800, 0x0804 | 0x0805, 0x0b, 0x01 | 0x04] => Kind::Text,
        [0x0800, 0x0801, _, 0x04, 0x01 | 0x02] => Kind::AnyText,
        [0x0800, 0x0801, _, 0x03] => Kind::LegacyId,
        [0x0800, 0x0804 | 0x0805, 0x0b, 0x02 | 0x03] => Kind::Octets,
        [0x0800, 0x0806, 0x10 | 0x11 | 0x13 | 0x14] => Kind::Octets,
        [0x0800, 0x0801, _, 0x04, 0x1e] => Kind::Octets,
        _ => return None,
    })
}

/// Values that no reader may take for one of the kind, and why it refuses them.
fn malformed(kind: Kind) -> Vec<(Vec<u8>, DecodeErrorKind)> {
    use DecodeErrorKind as E;
    let sha256 = |len| [&[1][..], &vec![7; len]].concat();
    match kind {
        Kind::Integer => vec![
            (vec![0], E::Integer),
            (vec![0, 1], E::Integer),
            (vec![1; 9], E::Integer),
            (b"some text\0".to_vec(), E::Integer),
            (sha256(32), E::Integer),
        ],
        Kind::Byte => vec![
            (vec![0], E::Integer),
            (vec![1, 0], E::Range),
            (vec![1; 9], E::Integer),
        ],
        Kind::Algorithm => vec![
            (vec![0], E::Integer),
            (vec![3], E::Algorithm(3)),
            (vec![6], E::Algorithm(6)),
            (vec![0x7e], E::Algorithm(0x7e)),
            (vec![1, 1], E::Range),
            (sha256(32), E::Integer),
        ],
        Kind::Imprint => vec![
            (vec![], E::Imprint),
            (vec![1], E::Imprint),
            (sha256(31), E::Imprint),
            (sha256(33), E::Imprint),
            ([&[3][..], &[7; 28]].concat(), E::Algorithm(3)),
            ([&[0x7e][..], &[7; 32]].concat(), E::Algorithm(0x7e)),
            (b"some text\0".to_vec(), E::Algorithm(b's')),
        ],
        Kind::Text => {
            let mut values = malformed(Kind::AnyText);
            values.push((b"\0".to_vec(), E::Text));
            values
        }
        Kind::AnyText => vec![
            (vec![], E::Text),
            (b"abc".to_vec(), E::Text),
            (b"a\0bc\0".to_vec(), E::Text),
            (b"abc\0\0".to_vec(), E::Text),
            (b"\xffbc\0".to_vec(), E::Text),
            (b"\xed\xa0\x80\0".to_vec(), E::Text),
        ],
        Kind::LegacyId => vec![
            (vec![], E::LegacyId),
            (legacy_id(&[3, 0, 4], b"anon")[..28].to_vec(), E::LegacyId),
            (
                [&legacy_id(&[3, 0, 4], b"anon")[..], &[0]].concat(),
                E::LegacyId,
            ),
            (legacy_id(&[4, 0, 4], b"anon"), E::LegacyId),
            (legacy_id(&[3, 1, 4], b"anon"), E::LegacyId),
            (legacy_id(&[3, 0, 3], b"anon"), E::LegacyId),
            (legacy_id(&[3, 0, 26], &[b'a'; 26]), E::LegacyId),
            (legacy_id(&[3, 0, 255], b"anon"), E::LegacyId),
        ],
        Kind::Octets => vec![],
    }
}

fn legacy_id(prefix: &[u8], text: &[u8]) -> Vec<u8> {
    let mut id = [prefix, text].concat();
    id.resize(29, 0);
    id
}

#[test]
fn malformed_values_are_refused() {
    let mut refused = 0;
    everywhere(|about, tags, mut tree, place| {
        if let Body::Children(_) = tree.at(place).body {
            return;
        }
        let kind = kind(tags).unwrap_or_else(|| panic!("{about} is of no kind"));
        for (value, expected) in malformed(kind) {
            tree.at(place).body = Body::Value(value.clone());
            let error = judge(&tree).expect_err(about);
            assert_eq!(error.kind, expected, "{about} {value:x?}");
            let at = tree.write();
            let mut spoilt = tree.clone();
            let spoilt = spoilt.at(place).write();
            assert!(
                at[error.at..].starts_with(&spoilt),
                "{about}: at {}",
                error.at
            );
            refused += 1;
        }
    });
    assert!(refused > 1000, "{refused}");
}

/// The value 0 has no bytes, where a number may be 0.
#[test]
fn zero_is_the_empty_value() {
    everywhere(|about, tags, mut tree, place| {
        if matches!(
            kind(tags),
            Some(Kind::Integer | Kind::Byte | Kind::Algorithm)
        ) {
            tree.at(place).body = Body::Value(Vec::new());
            assert!(judge(&tree).is_ok(), "{about}");
        }
    });
    let (_, mut tree) = originals().remove(0);
    let chain = tree
        .children()
        .iter_mut()
        .find(|child| child.tag == 0x0801)
        .unwrap();
    let link = chain
        .children()
        .iter_mut()
        .find(|child| child.tag == 0x07)
        .unwrap();
    assert!(link.children().iter().all(|child| child.tag != 0x01));
    link.children().insert(0, Node::value(0x01, &[]));
    assert_eq!(judge(&tree), Ok(None));
}

#[test]
fn elements_that_end_too_late_are_refused() {
    for (name, tree) in originals() {
        let bytes = tree.write();
        let trailing = |more: &[u8]| Signature::decode(&[&bytes, more].concat()).map(drop);
        for more in [&[0][..], &[0x41, 0], &bytes] {
            let error = DecodeError::new(DecodeErrorKind::TrailingBytes, bytes.len());
            let expected = if bytes.len() + more.len() > pitser_ksi::tlv::MAX {
                DecodeError::new(
                    DecodeErrorKind::TooLong {
                        max: pitser_ksi::tlv::MAX,
                    },
                    0,
                )
            } else {
                error
            };
            assert_eq!(trailing(more), Err(expected), "{name}");
        }
    }
}

/// A length that reaches further than it should, or not as far.
#[test]
fn wrong_lengths_are_refused() {
    everywhere(|about, _, mut tree, place| {
        let (whole, element) = (tree.write(), tree.at(place).write());
        let start = whole
            .windows(element.len())
            .position(|window| window == element);
        let long = Element::single(&element).unwrap().is_long();
        let length = start.unwrap() + if long { 3 } else { 1 };
        for wrong in [whole[length].wrapping_add(1), whole[length].wrapping_sub(1)] {
            let mut spoilt = whole.clone();
            spoilt[length] = wrong;
            let intact = Signature::decode(&spoilt).is_ok_and(|signature| {
                verify(&signature, &Context::new(Policy::Internal)).is_intact()
            });
            assert!(!intact, "{about}: {wrong:#x}");
        }
    });
}

#[test]
fn an_anchor_needs_a_calendar_chain_and_stands_alone() {
    for (name, tree) in originals() {
        let mut bare = tree.clone();
        bare.children().retain(|child| child.tag != 0x0802);
        let anchor = tree_tags(&tree)
            .into_iter()
            .find(|tag| matches!(tag, 0x0803 | 0x0805));
        let anchor = anchor.unwrap();
        assert_eq!(
            refusal(&bare),
            Some(DecodeErrorKind::Conflict(anchor)),
            "{name}"
        );
        let mut both = tree.clone();
        let other = if anchor == 0x0803 { 0x0805 } else { 0x0803 };
        both.children().push(anchor_of(&tree, other));
        assert_eq!(
            refusal(&both),
            Some(DecodeErrorKind::Conflict(0x0803)),
            "{name}"
        );
    }
}

fn tree_tags(tree: &Node) -> Vec<Tag> {
    let mut tree = tree.clone();
    tree.children().iter().map(|child| child.tag).collect()
}

/// A record of the other kind about the same root.
fn anchor_of(tree: &Node, tag: Tag) -> Node {
    let signature = Signature::decode(&tree.write()).unwrap();
    let chain = signature.calendar().unwrap();
    let data = PublicationData {
        time: chain.publication_time,
        imprint: chain.output(),
    };
    let mut writer = Writer::new();
    writer.nested(0x0800, |w| {
        match tag {
            0x0803 => PublicationRecord::from(data).write(w, tag),
            _ => {
                let signature = pitser_ksi::publication::SignatureData {
                    oid: "1.2.840.113549.1.1.11".into(),
                    value: vec![1],
                    certificate_id: vec![1],
                    repository: None,
                };
                AuthenticationRecord::new(data, signature).write(w);
            }
        }
        w
    });
    Node::read(&writer.finish().unwrap()).children().remove(0)
}

#[test]
fn tags_are_told_as_the_tables_of_the_format_have_them() {
    let told = |kind: DecodeErrorKind| DecodeError::new(kind, 7).to_string();
    assert_eq!(
        told(DecodeErrorKind::Missing(0x05)),
        "missing tag 0x05 at byte 7"
    );
    assert_eq!(
        told(DecodeErrorKind::UnknownCritical(0x0807)),
        "unknown critical tag 0x0807 at byte 7"
    );
    assert_eq!(
        told(DecodeErrorKind::Conflict(0x0803)),
        "tag 0x0803 beside one that excludes it, or without one that it needs at byte 7"
    );
}
