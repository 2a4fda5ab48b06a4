//! The vectors in `testdata/pitser`: every byte that an independent verifier
//! has to get right. The normal test recomputes them; after a change of a
//! format, `cargo test -p pitser-evidence --test vectors -- --ignored` writes
//! them anew.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use data_encoding::HEXLOWER;
use pitser_evidence::anchors::Anchors;
use pitser_evidence::audit::Statement;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::commit::{
    Key, LineNonce, column_leaf, commit_person, commit_raw, commit_row, commit_table_key,
    patient_alpha, record_key,
};
use pitser_evidence::line::{
    Acceptance, Actor, Binding, Erasure, Line, Op, Patient, Prev, RULES, Release,
};
use pitser_evidence::map::{
    Leaf, LeafKind, MapKey, Path, RowRef, SparseMap, patient_map_key, record_map_key,
};
use pitser_evidence::vrf::SecretKey;
use pitser_evidence::{Evidence, verify, verify_since};
use pitser_ksi::time::Second;
use pitser_tlog::merkle::leaf_hash;
use pitser_tlog::note::Note;
use serde_json::{Value, json};
use std::path::PathBuf;
use world::{AUDITED, JUDGED, ORIGIN, SEALED, World, auditor, outcome};

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../testdata/pitser", name]
        .iter()
        .collect()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// Each file with its content.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut world = World::new();
    let mut partial = World::with_strangers();
    let lines: Vec<u8> = world
        .lines
        .iter()
        .flat_map(|l| [l.encode(), b"\n".to_vec()].concat())
        .collect();
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();
    vec![
        ("accept.jsonl", [accept().encode(), b"\n".to_vec()].concat()),
        (
            "anchors-partial.toml",
            partial.anchors().to_toml().into_bytes(),
        ),
        ("anchors.toml", world.anchors().to_toml().into_bytes()),
        ("blocks.json", pretty(blocks(&world))),
        ("commitments.json", pretty(commitments())),
        ("erase.jsonl", [erase().encode(), b"\n".to_vec()].concat()),
        ("evidence-partial.json", partial.partial("pt-1", 2).encode()),
        ("evidence-pt-1.json", world.evidence("pt-1").encode()),
        ("evidence-pt-3.json", world.evidence("pt-3").encode()),
        ("genesis.jsonl", genesis(&world)),
        ("hold.jsonl", hold()),
        ("map.json", pretty(map(&mut world))),
        ("texts.json", pretty(texts(&mut world))),
        ("trail.jsonl", lines),
    ]
}

#[test]
fn the_vectors_are_as_published() {
    for (name, content) in files() {
        let published = std::fs::read(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        if name.ends_with("s.json") || name == "map.json" {
            // Objects, in whatever order of members.
            let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
            assert_eq!(parse(&published), parse(&content), "{name}");
        } else {
            assert_eq!(
                String::from_utf8(published),
                String::from_utf8(content),
                "{name}"
            );
        }
    }
}

#[test]
#[ignore = "writes the published files"]
fn write_the_vectors() {
    for (name, content) in files() {
        std::fs::write(path(name), content).unwrap();
    }
}

#[test]
fn the_published_files_are_found_intact() {
    let anchors =
        Anchors::from_toml(&std::fs::read_to_string(path("anchors.toml")).unwrap()).unwrap();
    for name in ["evidence-pt-1.json", "evidence-pt-3.json"] {
        let evidence = Evidence::decode(&std::fs::read(path(name)).unwrap()).unwrap();
        assert_eq!(
            outcome(&verify(&evidence, Some(&anchors), JUDGED)),
            "intact",
            "{name}"
        );
    }
}

#[test]
fn the_published_file_that_leaves_lines_out_is_intact_for_whoever_can_do_without() {
    let anchors = std::fs::read_to_string(path("anchors-partial.toml")).unwrap();
    let anchors = Anchors::from_toml(&anchors).unwrap();
    let bytes = std::fs::read(path("evidence-partial.json")).unwrap();
    let evidence = Evidence::decode(&bytes).unwrap();
    let whole = verify(&evidence, Some(&anchors), JUDGED);
    assert_eq!(outcome(&whole), "unconfirmed at complete");
    let since = |at| verify_since(&evidence, Some(&anchors), JUDGED, Second(at));
    assert_eq!(outcome(&since(SEALED[1])), "intact");
    assert_eq!(outcome(&since(SEALED[1] - 1)), "unconfirmed at complete");
}

/// Genesis lines of version 4: that of the trail, with rules.
fn genesis(world: &World) -> Vec<u8> {
    let old = &world.lines[0];
    let with = |rules| {
        let mut genesis = *old.genesis.clone().unwrap();
        genesis.rules = Some(rules);
        let line = Line::genesis(genesis, old.at, &old.source, &old.pos);
        [line.encode(), b"\n".to_vec()].concat()
    };
    (15..=RULES).flat_map(with).collect()
}

/// A line of version 3, as if it followed the first fifteen of a trail.
fn accept() -> Line {
    let nonce = LineNonce::new(&Key::new([0x33; 32]), ORIGIN, 1, 15);
    let at = "2026-03-14T09:26:53.589793Z".parse().unwrap();
    let mut line = Line::new(Op::Accept, 15, at, "guardian", "841");
    line.accept = Some(Box::new(Acceptance {
        finding: Prev {
            hash: Digest::of(&[b"finding"]),
            seq: 13,
        },
    }));
    line.actor = Some(Actor {
        app: None,
        binding: Binding::B,
        client: None,
        person: Some(commit_person(&nonce.person(), "Mari Maasikas")),
        role: None,
    });
    line.raw = Some(commit_raw(&nonce.raw(), "the nightly import".as_bytes()));
    line
}

/// Two lines of version 5, as if they followed the first sixteen of a trail.
fn hold() -> Vec<u8> {
    let decided = |op, seq, by: &str, why: &str| {
        let nonce = LineNonce::new(&Key::new([0x33; 32]), ORIGIN, 1, seq);
        let mut line = Line {
            v: 5,
            op,
            ..accept()
        };
        (line.accept, line.seq, line.event) = (None, seq, seq);
        line.patient = Some(Patient::Pseudonym(Bytes32([0x44; 32])));
        line.actor.as_mut().unwrap().person = Some(commit_person(&nonce.person(), by));
        line.raw = Some(commit_raw(&nonce.raw(), why.as_bytes()));
        line
    };
    let hold = decided(Op::Hold, 16, "Mari Maasikas", "court case 2-26-117");
    let before = Prev {
        hash: Line::hash(&hold.encode()),
        seq: hold.seq,
    };
    let mut release = decided(Op::Release, 17, "Jaan Tamm", "2-26-117 is closed");
    release.release = Some(Box::new(Release { hold: before }));
    release.patient_prev = Some(before);
    [hold, release]
        .iter()
        .inspect(|line| line.check().unwrap())
        .flat_map(|line| [line.encode(), b"\n".to_vec()].concat())
        .collect()
}

/// A line of version 2, as if it followed the first fourteen of a trail.
fn erase() -> Line {
    let nonce = LineNonce::new(&Key::new([0x33; 32]), ORIGIN, 1, 14);
    let at = "2026-03-14T09:26:53.589793Z".parse().unwrap();
    let mut line = Line::new(Op::Erase, 14, at, "guardian", "841");
    line.patient = Some(Patient::Pseudonym(Bytes32([0x44; 32])));
    line.erase = Some(Box::new(Erasure {
        basis: "GDPR art. 17(1)(d)".into(),
        deciders: [
            commit_person(&nonce.decider(0), "Mari Maasikas"),
            commit_person(&nonce.decider(1), "Jaan Tamm"),
        ],
    }));
    line
}

fn commitments() -> Value {
    let (key, timeline, seq) = ([0x11; 32], 1u32, 12u64);
    let nonce = LineNonce::new(&Key::new(key), ORIGIN, timeline, seq);
    let bare_nonce = Key::new(key).derive(&[
        b"pitser/v1/line\0",
        ORIGIN.as_bytes(),
        b"\0",
        &timeline.to_be_bytes(),
        &seq.to_be_bytes(),
    ]);
    let row: [(&str, Option<&[u8]>); 4] = [
        ("id", Some(b"11")),
        ("status", None),
        ("note", Some(b"")),
        ("väärtus", Some("36,6 °C".as_bytes())),
    ];
    let rows = (0..=row.len()).map(|n| {
        let (leaves, root) = commit_row(&nonce, row[..n].iter().copied());
        let columns = row[..n].iter().zip(&leaves).map(|((name, value), leaf)| {
            let nonce = nonce.column(name);
            assert_eq!(*leaf, column_leaf(&nonce, name, *value));
            json!({ "name": name, "value": value.map(hex), "nonce": nonce, "leaf": hex(leaf) })
        });
        json!({ "columns": columns.collect::<Vec<_>>(), "row": root })
    });
    let table_key = [0x22; 32];
    let cells: [&[u8]; 2] = [b"11", "õ".as_bytes()];
    let (person, raw) = ("EE38001085718", br#"{"resourceType":"AuditEvent"}"#);
    json!({
        "line_nonce": { "key": hex(key), "origin": ORIGIN, "timeline": timeline, "seq": seq, "nonce": hex(bare_nonce) },
        "rows": rows.collect::<Vec<_>>(),
        "person": { "value": person, "nonce": nonce.person(), "commitment": commit_person(&nonce.person(), person) },
        "raw": { "value": hex(raw), "nonce": nonce.raw(), "commitment": commit_raw(&nonce.raw(), raw) },
        "record_key": {
            "table_key": hex(table_key),
            "cells": cells.map(hex),
            "key": record_key(&Key::new(table_key), cells),
        },
        "table_key": {
            "table": "observation",
            "key": hex(table_key),
            "commitment": commit_table_key("observation", &Key::new(table_key)),
        },
        "pseudonyms": [pseudonym("pt-1"), pseudonym("38001085718"), pseudonym("")],
    })
}

fn pseudonym(id: &str) -> Value {
    let seed = [2; 32];
    let key = SecretKey::from_seed(&seed);
    let alpha = patient_alpha(ORIGIN, id);
    let (pseudonym, proof) = key.prove(&alpha);
    json!({
        "seed": hex(seed),
        "public_key": hex(key.public().0),
        "origin": ORIGIN,
        "id": id,
        "alpha": hex(&alpha),
        "proof": hex(proof),
        "pseudonym": hex(pseudonym),
    })
}

fn map(world: &mut World) -> Value {
    let row = RowRef {
        row: Digest::of(&[b"row"]),
        timeline: 1,
        seq: 9,
    };
    let leaf = |kind, row| Leaf {
        count: 3,
        last_seq: 11,
        last_hash: Digest::of(&[b"line"]),
        row,
        kind,
    };
    let leaves = [
        leaf(LeafKind::Patient, None),
        leaf(LeafKind::Record, Some(row)),
        leaf(LeafKind::Record, None),
    ];
    let leaves = leaves.map(|leaf| {
        json!({
            "kind": if leaf.kind == LeafKind::Patient { "patient" } else { "record" },
            "count": leaf.count,
            "last_seq": leaf.last_seq,
            "last_hash": leaf.last_hash,
            "row": leaf.row.map(|r| json!({ "row": r.row, "timeline": r.timeline, "seq": r.seq })),
            "bytes": hex(leaf.encode()),
        })
    });
    let record = Bytes32([0x33; 32]);
    let patients = [
        Patient::Pseudonym(Bytes32([0x44; 32])),
        Patient::Many,
        Patient::Unknown,
    ];
    let patient_keys =
        patients.map(|p| json!({ "patient": p.to_string(), "map_key": hex(patient_map_key(&p)) }));
    let key = |first: u8, second: u8| {
        let mut key = [0; 32];
        (key[0], key[1]) = (first, second);
        key
    };
    // Neighbours that part at bits 1 and 9.
    let (low, next, high, deep) = (key(0x00, 0), key(0x40, 0), key(0x80, 0), key(0x80, 0x40));
    let sets: [&[MapKey]; 5] = [
        &[],
        &[low],
        &[low, high],
        &[low, next, high],
        &[low, high, deep],
    ];
    let asked = [low, next, high, deep, key(0xff, 0xff)];
    json!({
        "record_key": { "table": "observation", "key": record, "map_key": hex(record_map_key("observation", &record)) },
        "patient_keys": patient_keys,
        "leaves": leaves,
        "sets": sets.map(|set| set_of(set, &asked)),
        "trail": {
            "what": "the map over all lines of trail.jsonl",
            "root": hex(world.state.root().unwrap()),
            "pt-1": world.map_entry(&world.pseudonym("pt-1")),
            "pt-3": world.map_entry(&world.pseudonym("pt-3")),
        },
    })
}

/// A map of these keys, each with its own first two bytes as value.
fn set_of(keys: &[MapKey], asked: &[MapKey]) -> Value {
    let value = |key: &MapKey| vec![key[0], key[1]];
    let mut map = SparseMap::new();
    keys.iter().for_each(|key| map.insert(key, &value(key)));
    let root = map.root();
    let proofs = asked.iter().map(|key| {
        let found = keys.contains(key).then(|| value(key));
        let path: Path = map.prove(key);
        assert!(path.shows(&root, key, found.as_deref()));
        json!({ "key": hex(key), "value": found.map(hex), "path": path })
    });
    let proofs: Vec<_> = proofs.collect();
    let leaves = keys
        .iter()
        .map(|key| json!({ "key": hex(key), "value": hex(value(key)) }));
    json!({ "leaves": leaves.collect::<Vec<_>>(), "root": hex(root), "proofs": proofs })
}

fn blocks(world: &World) -> Value {
    let calendar = world.calendar();
    let blocks = world.blocks.iter().zip(SEALED).map(|(block, at)| {
        let LogLeaf {
            origin,
            block: number,
            first_seq,
            count,
            root,
            level,
            map,
        } = &block.leaf;
        let entry = block.leaf.encode();
        json!({
            "origin": origin,
            "block": number,
            "first_seq": first_seq,
            "count": count,
            "iv": hex(block.iv),
            "previous_leaf": hex(block.previous_leaf.as_bytes()),
            "root": root,
            "level": level,
            "map": map,
            "entry": hex(&entry),
            "entry_hash": hex(leaf_hash(&entry)),
            "sealed_at": at,
            "seal": hex(calendar.published(at, world::PUBLISHED)),
        })
    });
    let line_hashes = world.lines.iter().map(|l| Line::hash(&l.encode()));
    json!({
        "blocks": blocks.collect::<Vec<_>>(),
        "line_hashes": line_hashes.collect::<Vec<_>>(),
        "log_root": hex(world.log.root()),
    })
}

fn texts(world: &mut World) -> Value {
    let statement = Statement {
        origin: ORIGIN.into(),
        genesis: world.genesis_hash(),
        block: 2,
        size: 3,
        log_root: world.log.root(),
        map_root: world.blocks[2].leaf.map,
        made_at: Second(AUDITED),
    };
    let note = Note::sign(&statement.text(), &auditor()).unwrap();
    let evidence = world.evidence("pt-1");
    json!({
        "audit": {
            "text": statement.text(),
            "note": note.to_string(),
            "key": auditor().verifier().to_string(),
        },
        "evidence": {
            "file": "evidence-pt-1.json",
            "signed_text": evidence.signed_text(),
            "signature": evidence.signature,
            "key": world.log_key.verifier().to_string(),
        },
        "head": evidence.head,
    })
}
