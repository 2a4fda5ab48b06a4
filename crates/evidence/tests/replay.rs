//! The deterministic replay: guardian, exporter and auditor accept exactly one
//! continuation of each trail, and get the same map from it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Line, Op, Patient};
use pitser_evidence::map::{patient_map_key, record_map_key};
use pitser_evidence::state::{State, StateError};
use world::World;

/// Applies all lines; the rule that ends it, or the map's root.
fn replay(lines: &[Line]) -> Result<[u8; 32], &'static str> {
    let mut state = State::new();
    for line in lines {
        line.check().map_err(|_| "format")?;
        state
            .apply(line, Line::hash(&line.encode()))
            .map_err(|e| StateError::from(e).what)?;
    }
    Ok(state.root().unwrap())
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Vec<Line>), expected: &str) {
    let mut lines = World::new().lines;
    change(&mut lines);
    assert_eq!(replay(&lines), Err(expected));
}

fn at(lines: &[Line], op: Op) -> usize {
    lines.iter().position(|l| l.op == op).unwrap()
}

#[test]
fn two_replays_agree_with_each_blocks_entry() {
    let world = World::new();
    let mut state = State::new();
    for block in &world.blocks {
        let leaf = &block.leaf;
        let lines = &world.lines[leaf.first_seq as usize..(leaf.first_seq + leaf.count) as usize];
        for line in lines {
            state.apply(line, Line::hash(&line.encode())).unwrap();
        }
        assert_eq!(leaf.map.0.digest(), state.root().unwrap());
    }
    assert_eq!(replay(&world.lines), Ok(state.root().unwrap()));
}

#[test]
fn what_the_map_holds_is_what_the_lines_say() {
    let mut world = World::new();
    let mari = world.pseudonym("pt-1");
    let lines: Vec<_> = world
        .lines
        .iter()
        .filter(|l| l.patient == Some(mari))
        .collect();
    let leaf = world.state.patient(&mari).unwrap().unwrap();
    assert_eq!(
        (leaf.count, leaf.last_seq),
        (lines.len() as u64, lines.last().unwrap().seq)
    );
    let root = world.state.root().unwrap();
    let path = world.state.prove_patient(&mari).unwrap();
    assert!(path.shows(&root, &patient_map_key(&mari), Some(&leaf.encode())));

    let deleted = &world.lines[at(&world.lines, Op::Delete)];
    let (table, key) = (deleted.table.clone().unwrap(), deleted.key.unwrap());
    let leaf = world.state.record(&table, &key).unwrap().unwrap().leaf;
    assert_eq!(
        (leaf.count, leaf.row),
        (3, None),
        "baseline, finding, delete"
    );
    let path = world.state.prove_record(&table, &key).unwrap();
    assert!(path.shows(&root, &record_map_key(&table, &key), Some(&leaf.encode())));
}

#[test]
fn nothing_is_left_out_or_put_elsewhere() {
    let seq = "its seq does not continue the trail";
    refused(|l| drop(l.remove(3)), seq);
    refused(|l| l.swap(2, 3), seq);
    refused(|l| l.insert(3, l[3].clone()), seq);
    refused(|l| drop(l.remove(0)), seq);
}

#[test]
fn every_line_points_to_the_one_before() {
    let record = "its prev is not the record's last line";
    refused(
        |l| {
            let i = at(l, Op::Update);
            l[i].prev = None
        },
        record,
    );
    refused(
        |l| {
            let i = at(l, Op::Update);
            l[i].prev.as_mut().unwrap().hash = Digest::of(&[b"another"])
        },
        record,
    );
    refused(
        |l| {
            let i = at(l, Op::Create);
            l[i].prev = l[i - 1].prev
        },
        record,
    );
    let patient = "its patient_prev is not the patient's last line";
    refused(
        |l| {
            let i = at(l, Op::Update);
            l[i].patient_prev = None
        },
        patient,
    );
    refused(
        |l| {
            let i = at(l, Op::Read);
            l[i].patient = Some(Patient::Many)
        },
        patient,
    );
}

#[test]
fn a_changed_line_breaks_the_next_of_its_list() {
    let patient = "its patient_prev is not the patient's last line";
    refused(|l| l[1].at = world::instant(0), patient);
    refused(|l| l[3].at = world::instant(0), patient);
}

#[test]
fn a_known_record_gets_no_new_baseline() {
    refused(
        |l| {
            let i = at(l, Op::Update);
            l[i].op = Op::Baseline;
        },
        "it gives a known record a new baseline",
    );
}

#[test]
fn events_are_whole() {
    let event = "it is not of the event that it says";
    let relink = |l: &[Line]| at(l, Op::Relink);
    // The second line of an event says that it is the first of its own.
    refused(
        |l| {
            let i = relink(l) + 1;
            l[i].event = l[i].seq
        },
        event,
    );
    // The first line says that the event is over.
    refused(
        |l| {
            let i = relink(l);
            l[i].more = None
        },
        event,
    );
    // A line joins an event that is over.
    refused(
        |l| {
            let i = at(l, Op::Create);
            l[i].event = l[i - 1].event
        },
        event,
    );
    // The last line says that more follows.
    refused(
        |l| {
            let i = relink(l) + 2;
            l[i].more = Some(true)
        },
        event,
    );
}
