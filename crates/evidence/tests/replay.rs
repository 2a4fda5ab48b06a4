//! The deterministic replay: guardian, exporter and auditor accept exactly one
//! continuation of each trail, and get the same map from it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod world;

use pitser_evidence::codec::Digest;
use pitser_evidence::line::{
    Acceptance, Actor, Binding, Erasure, Line, Op, Patient, Prev, RULES, Release,
};
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

/// The lines as an operator rewrites them who holds all keys: numbered anew, and each
/// pointing to those before it. `rules` are those of the genesis.
fn rewritten(
    rules: Option<u8>,
    change: impl FnOnce(&mut Vec<Line>),
) -> Result<[u8; 32], &'static str> {
    let mut lines = World::new().lines;
    change(&mut lines);
    let mut genesis = lines[0].genesis.take().unwrap();
    genesis.rules = rules;
    let (at, pos) = (lines[0].at, lines[0].pos.clone());
    lines[0] = Line::genesis(*genesis, at, "ehr", pos);
    let mut state = State::new();
    let mut hashes = Vec::new();
    for (seq, mut line) in (0..).zip(lines) {
        line.seq = seq;
        line.event = state.standing().open_event.unwrap_or(seq);
        if let Some(accept) = &mut line.accept {
            accept.finding.hash = hashes[usize::try_from(accept.finding.seq).unwrap()];
        }
        if let Some(release) = &mut line.release
            && let Some(hash) = hashes.get(usize::try_from(release.hold.seq).unwrap())
        {
            release.hold.hash = *hash;
        }
        let before = state.before(&line).unwrap();
        (line.prev, line.patient_prev) = (before.prev(), before.patient_prev());
        let hash = Line::hash(&line.encode());
        hashes.push(hash);
        state
            .apply(&line, hash)
            .map_err(|e| StateError::from(e).what)?;
    }
    Ok(state.root().unwrap())
}

/// A trail with this change keeps all rules but the last one.
#[track_caller]
fn unlisted(change: impl Fn(&mut Vec<Line>)) {
    let what = "it does not name the patient whose record it is about";
    assert_eq!(rewritten(Some(RULES), &change), Err(what));
    assert!(rewritten(None, &change).is_ok(), "a trail of before");
}

#[track_caller]
fn listed(change: impl Fn(&mut Vec<Line>)) {
    assert_eq!(
        rewritten(Some(RULES), &change),
        rewritten(None, &change),
        "the map does not depend on the rules"
    );
    assert!(rewritten(Some(RULES), &change).is_ok());
}

/// What comes right after the last line about pt-2's deleted record 21.
fn then(lines: &mut Vec<Line>, change: impl FnOnce(&mut Line)) {
    let deleted = at(lines, Op::Delete);
    let after = lines.len() - 1;
    let mut line = lines[deleted].clone();
    change(&mut line);
    lines.insert(after, line);
}

fn erasure(of: Option<Patient>, at: &Line) -> Line {
    let mut line = Line::new(Op::Erase, 0, at.at, "guardian", "841");
    line.patient = of;
    line.erase = Some(Box::new(Erasure {
        basis: "GDPR Art. 17(1)(b)".into(),
        deciders: [Digest::of(&[b"one"]), Digest::of(&[b"two"])],
    }));
    line
}

#[test]
fn what_is_about_a_patients_record_stands_in_that_patients_list() {
    listed(|_| {});
    let others = World::new().pseudonym("pt-3");
    for op in [Op::Update, Op::Read, Op::Finding, Op::Delete] {
        for other in [
            None,
            Some(Patient::Many),
            Some(Patient::Unknown),
            Some(others),
        ] {
            unlisted(|l| {
                let i = at(l, op);
                l[i].patient = other;
            });
        }
    }
    // Also when its row is gone.
    listed(|l| then(l, |line| line.op = Op::Read));
    unlisted(|l| {
        then(l, |line| {
            line.op = Op::Read;
            line.patient = None;
        })
    });
}

#[test]
fn a_record_leaves_no_list_without_a_word() {
    // Lines 19 to 21: record 12 goes from pt-1 to pt-2.
    listed(|l| {
        let to = at(l, Op::Relink) + 1;
        l.remove(to);
    });
    unlisted(|l| {
        let from = at(l, Op::Relink);
        l.remove(from);
    });
    // Whoever is named nowhere else, as if the row had no patient.
    let nobody = |l: &mut Vec<Line>| {
        let from = at(l, Op::Relink);
        l[from + 2].patient = None;
        l.remove(from + 1);
    };
    listed(nobody);
    unlisted(|l| {
        nobody(l);
        let from = at(l, Op::Relink);
        l.remove(from);
    });
    // The word is about another record, or of another table.
    unlisted(|l| {
        let from = at(l, Op::Relink);
        l[from].key = l[at(l, Op::Update)].key;
    });
    unlisted(|l| {
        let from = at(l, Op::Relink);
        l[from].table = Some("patient".into());
    });
    // It was of another event.
    unlisted(|l| {
        let from = at(l, Op::Relink);
        l[from].more = None;
    });
    // It says that the record moves, and a line that commits to no row names nobody.
    unlisted(|l| {
        let from = at(l, Op::Relink);
        l[from + 2].op = Op::Delete;
        l[from + 2].row = None;
    });
}

#[test]
fn a_key_that_is_free_may_become_anybodys() {
    let juri = World::new().pseudonym("pt-2");
    let again = |l: &mut Vec<Line>, patient| {
        then(l, |line| {
            line.op = Op::Create;
            line.row = Some(Digest::of(&[b"row"]));
            line.patient = patient;
        });
    };
    for patient in [None, Some(World::new().pseudonym("pt-3")), Some(juri)] {
        listed(|l| again(l, patient));
    }
    // From then on it is.
    let others = Some(World::new().pseudonym("pt-3"));
    unlisted(|l| {
        again(l, others);
        then(l, |line| line.patient = Some(juri));
    });
    listed(|l| {
        again(l, None);
        then(l, |line| line.patient = Some(juri));
    });
}

#[test]
fn of_an_erased_patient_nobody_knows_the_name_until_it_comes_again() {
    let (mari, juri) = {
        let world = World::new();
        (world.pseudonym("pt-1"), world.pseudonym("pt-2"))
    };
    let erased = |l: &mut Vec<Line>, of| {
        let at = at(l, Op::Delete);
        l.insert(at, erasure(Some(of), &l[at]));
    };
    let delete = |l: &mut Vec<Line>, patient| {
        let i = at(l, Op::Delete);
        l[i].patient = patient;
    };
    for patient in [None, Some(Patient::Unknown), Some(juri)] {
        listed(|l| {
            erased(l, juri);
            delete(l, patient);
        });
    }
    unlisted(|l| {
        erased(l, mari);
        delete(l, None);
    });
    // A line about the patient came since.
    unlisted(|l| {
        erased(l, juri);
        let i = at(l, Op::Delete);
        let mut read = l[at(l, Op::Finding)].clone();
        (read.op, read.finding) = (Op::Read, None);
        l.insert(i, read);
        delete(l, None);
    });
}

/// What accepts line `seq`, in the lists of that line.
fn acceptance(l: &[Line], seq: usize) -> Line {
    let mut line = l[seq].clone();
    (line.op, line.finding) = (Op::Accept, None);
    line.accept = Some(Box::new(Acceptance {
        finding: Prev {
            hash: Digest::of(&[b"that of the line"]),
            seq: l[seq].seq,
        },
    }));
    line
}

const NO_FINDING: &str = "it accepts a line that is no finding of this trail";
const ELSEWHERE: &str =
    "it accepts a line that is no finding of this trail, or not in the lists of that finding";

#[test]
fn a_finding_is_accepted_once_and_by_its_hash() {
    let accept = |l: &mut Vec<Line>, seq: usize| {
        let (line, last) = (acceptance(l, seq), l.len() - 1);
        l.insert(last, line);
    };
    let found = at(&World::new().lines, Op::Finding);
    listed(|l| accept(l, found));
    for (rules, none) in [
        (None, NO_FINDING),
        (Some(15), NO_FINDING),
        (Some(RULES), ELSEWHERE),
    ] {
        let twice = |l: &mut Vec<Line>| (0..2).for_each(|_| accept(l, found));
        let before = Err("it accepts a finding that was accepted before");
        assert_eq!(rewritten(rules, twice), before);
        for other in [at(&World::new().lines, Op::Read), found + 1] {
            assert_eq!(rewritten(rules, |l| accept(l, other)), Err(none));
        }
    }
    let mut state = State::new();
    let mut lines = World::new().lines;
    accept(&mut lines, found);
    let i = at(&lines, Op::Accept);
    for line in &lines[..i] {
        state.apply(line, Line::hash(&line.encode())).unwrap();
    }
    // The right number, with another hash.
    let mut line = lines[i].clone();
    line.seq = state.next_seq();
    line.event = line.seq;
    let before = state.before(&line).unwrap();
    (line.prev, line.patient_prev) = (before.prev(), before.patient_prev());
    let refused = state.apply(&line, Line::hash(&line.encode()));
    let what = refused.map_err(|e| StateError::from(e).what);
    assert_eq!(what, Err(NO_FINDING));
}

/// Whoever is shown a finding is shown who answered for it, in a trail that promises it.
#[test]
fn a_finding_is_accepted_in_the_lists_that_it_stands_in() {
    let (mari, erased) = {
        let world = World::new();
        (world.pseudonym("pt-1"), world.pseudonym("pt-2"))
    };
    let changes: [&dyn Fn(&mut Line); 8] = [
        &|line| line.patient = None,
        &|line| line.patient = Some(mari),
        &|line| line.patient = Some(Patient::Many),
        &|line| line.patient = Some(Patient::Unknown),
        &|line| line.key = None,
        &|line| line.key = World::new().lines[3].key,
        &|line| line.table = Some("patient".into()),
        &|line| (line.table, line.key) = (None, None),
    ];
    for change in changes {
        let moved = |l: &mut Vec<Line>| {
            let mut line = acceptance(l, at(l, Op::Finding));
            change(&mut line);
            let last = l.len() - 1;
            l.insert(last, line);
        };
        assert_eq!(rewritten(Some(RULES), moved), Err(ELSEWHERE));
        for rules in [None, Some(15)] {
            assert!(rewritten(rules, moved).is_ok(), "a trail of before");
        }
    }
    // A finding that is in no list of a patient, or about no record, stays so.
    let bare: [&dyn Fn(&mut Line); 3] = [
        &|line| line.key = None,
        &|line| (line.key, line.patient) = (None, None),
        &|line| (line.table, line.key, line.patient) = (None, None, None),
    ];
    for bare in bare {
        let accepted = |l: &mut Vec<Line>, change: &dyn Fn(&mut Line)| {
            let found = at(l, Op::Finding);
            bare(&mut l[found]);
            let (mut line, last) = (acceptance(l, found), l.len() - 1);
            change(&mut line);
            l.insert(last, line);
        };
        listed(|l| accepted(l, &|_| {}));
        for other in [mari, Patient::Unknown] {
            let moved = |l: &mut Vec<Line>| accepted(l, &|line| line.patient = Some(other));
            assert_eq!(rewritten(Some(RULES), moved), Err(ELSEWHERE));
        }
    }
    // The patient's name is told for all that, and nobody knows the identifier.
    let after_erasure = |times: usize, patient| {
        move |l: &mut Vec<Line>| {
            let i = at(l, Op::Delete);
            let found = at(l, Op::Finding);
            l[i].patient = patient;
            for found in (found..).take(times) {
                l.insert(i, acceptance(l, found));
            }
            l.insert(i, erasure(Some(erased), &l[i]));
        }
    };
    // Another finding, in place of the line after the first.
    let two = |times, patient| {
        move |l: &mut Vec<Line>| {
            let found = at(l, Op::Finding);
            l[found + 1] = l[found].clone();
            l[found + 1].seq += 1;
            after_erasure(times, patient)(l);
        }
    };
    for times in 0..=2 {
        for patient in [None, Some(mari), Some(erased)] {
            assert!(rewritten(Some(RULES), two(times, patient)).is_ok());
        }
        let before = rewritten(Some(15), two(times, None));
        assert_eq!(before.is_ok(), times == 0, "as that rule was read before");
    }
}

/// A hold of this patient; with the line that it is in, its end.
fn hold(of: Patient, ends: Option<usize>, l: &[Line]) -> Line {
    let op = ends.map_or(Op::Hold, |_| Op::Release);
    let mut line = Line::new(op, 0, l[0].at, "guardian", "841");
    line.patient = Some(of);
    line.actor = Some(Actor {
        app: None,
        binding: Binding::B,
        client: None,
        person: Some(Digest::of(&[b"person"])),
        role: None,
    });
    line.raw = Some(Digest::of(&[b"why"]));
    line.release = ends.map(|seq| {
        let (hash, seq) = (Digest::of(&[b"that of the line"]), seq as u64);
        Box::new(Release {
            hold: Prev { hash, seq },
        })
    });
    line
}

const NO_HOLD: &str = "it releases a line that is no hold of this patient";
const RELEASED: &str = "it releases a hold that was released before";
const HELD: &str = "it erases a patient of whom a hold stands";

/// What is done about holds at a trail's end, in this order.
#[derive(Clone, Copy)]
enum Step {
    Hold(Patient),
    /// The end of what the step of this number wrote, or, before those, of an older line.
    Release(Patient, isize),
    Erase(Patient),
}

fn held(rules: Option<u8>, steps: &[Step]) -> Result<[u8; 32], &'static str> {
    rewritten(rules, |l| {
        let first = l.len() - 1;
        for step in steps {
            let line = match *step {
                Step::Hold(of) => hold(of, None, l),
                Step::Release(of, step) => {
                    let seq = first.checked_add_signed(step).unwrap();
                    hold(of, Some(seq), l)
                }
                Step::Erase(of) => erasure(Some(of), &l[0]),
            };
            let last = l.len() - 1;
            l.insert(last, line);
        }
    })
}

#[test]
fn whom_a_hold_keeps_is_not_erased() {
    use Step::{Erase, Hold, Release};
    let world = World::new();
    let (mari, juri) = (world.pseudonym("pt-1"), world.pseudonym("pt-2"));
    let nobody_yet = Patient::Pseudonym(pitser_evidence::codec::Bytes32([0x55; 32]));
    let with = |steps: &[Step]| held(Some(RULES), steps).map(drop);
    for of in [mari, nobody_yet] {
        assert_eq!(with(&[Hold(of)]), Ok(()));
        assert_eq!(with(&[Hold(of), Erase(of)]), Err(HELD));
        assert_eq!(with(&[Hold(of), Release(of, 0), Erase(of)]), Ok(()));
        // Each stands for itself.
        let both = [Hold(of), Hold(of), Release(of, 0), Erase(of)];
        assert_eq!(with(&both), Err(HELD));
        let ended = [
            Hold(of),
            Hold(of),
            Release(of, 1),
            Release(of, 0),
            Erase(of),
        ];
        assert_eq!(with(&ended), Ok(()));
        // It comes again, also after an erasure.
        let again = [Hold(of), Release(of, 0), Erase(of), Hold(of), Erase(of)];
        assert_eq!(with(&again), Err(HELD));
    }
    // Others' holds keep nobody.
    assert_eq!(with(&[Hold(mari), Erase(juri)]), Ok(()));
    // What is lifted is a hold of the same patient, and stands.
    assert_eq!(with(&[Hold(mari), Release(juri, 0)]), Err(NO_HOLD));
    let twice = [Hold(mari), Hold(mari), Release(mari, 0), Release(mari, 0)];
    assert_eq!(with(&twice), Err(RELEASED));
    let of_release = [Hold(mari), Release(mari, 0), Release(mari, 1)];
    assert_eq!(with(&of_release), Err(NO_HOLD));
    for back in 1..=3 {
        assert_eq!(with(&[Hold(mari), Release(mari, -back)]), Err(NO_HOLD));
    }
}

#[test]
fn a_hold_is_lifted_by_its_hash() {
    let lines = World::new().lines;
    let mari = World::new().pseudonym("pt-1");
    let mut state = State::new();
    let mut genesis = lines[0].clone();
    genesis.genesis.as_mut().unwrap().rules = Some(RULES);
    genesis.v = genesis.version();
    state
        .apply(&genesis, Line::hash(&genesis.encode()))
        .unwrap();
    for (seq, ends) in [(1, None), (2, Some(1))] {
        let mut line = hold(mari, ends, &lines);
        (line.seq, line.event) = (seq, seq);
        line.patient_prev = state.before(&line).unwrap().patient_prev();
        line.check().unwrap();
        let refused = state.apply(&line, Line::hash(&line.encode()));
        let what = refused.map_err(|e| StateError::from(e).what);
        assert_eq!(what, ends.map_or(Ok(()), |_| Err(NO_HOLD)));
        assert_eq!(state.holds(&mari), Ok(1));
    }
}

#[test]
fn trails_of_before_have_no_holds() {
    let mari = World::new().pseudonym("pt-1");
    for rules in [None, Some(15), Some(16)] {
        let what = "its trail was begun before there were such lines";
        assert_eq!(held(rules, &[Step::Hold(mari)]), Err(what));
        assert_eq!(held(rules, &[Step::Release(mari, 0)]), Err(what));
        assert!(held(rules, &[Step::Erase(mari)]).is_ok());
    }
}
