//! Whoever writes lines chooses what digests stand in them. None may make the map lose a
//! line: a patient's list would be proved complete without it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail loudly")]

use pitser_evidence::codec::{Bytes32, Digest};
use pitser_evidence::line::{Genesis, Line, Op, Patient, Prev, Timestamp};
use pitser_evidence::map::{patient_map_key, record_map_key};
use pitser_evidence::state::State;
use pitser_ksi::hash::{Algorithm, Imprint};

const TABLE: &str = "t";
/// Of so many subjects the state remembers where they stand; those with the same first
/// bits take each other's place.
const PLACES: u16 = 2048;
const VICTIM: u16 = 5;

/// A trail's writer, who keeps all rules.
struct Writer {
    state: State,
    seq: u64,
    /// Lines that name the victim.
    named: u64,
}

impl Writer {
    fn line(&self, op: Op) -> Line {
        let at = Timestamp::from_micros(self.seq * 1000).unwrap();
        let mut line = Line::new(op, self.seq, at, "ehr", self.seq.to_string());
        line.event = self.seq;
        line
    }

    fn read(&self, patient: Patient) -> Line {
        let mut line = self.line(Op::Read);
        line.patient = Some(patient);
        line
    }

    fn change(&self, op: Op, key: Bytes32, patient: Patient, row: Option<Digest>) -> Line {
        let mut line = self.line(op);
        line.table = Some(TABLE.into());
        (line.key, line.patient, line.row) = (Some(key), Some(patient), row);
        line
    }

    /// Applies a line as a reader of the trail does.
    fn write(&mut self, mut line: Line) -> Digest {
        let before = self.state.before(&line).unwrap();
        if line.key.is_some() {
            line.prev = before.prev();
        }
        if line.patient.is_some() {
            line.patient_prev = before.patient_prev();
        }
        line.check().unwrap();
        let bytes = line.encode();
        let hash = Line::hash(&bytes);
        self.state
            .apply(&Line::decode(&bytes).unwrap(), hash)
            .unwrap();
        self.named += u64::from(line.patient == Some(patient(VICTIM)));
        self.seq += 1;
        hash
    }
}

fn patient(nth: u16) -> Patient {
    let mut pseudonym = [7; 32];
    pseudonym[..2].copy_from_slice(&nth.to_be_bytes());
    Patient::Pseudonym(Bytes32(pseudonym))
}

fn genesis() -> Genesis {
    Genesis {
        log_key: "x".into(),
        origin: "h.example/e".into(),
        predecessor: "none".into(),
        rules: Some(17),
        salt: Bytes32([1; 32]),
        system: "s".into(),
        tables: vec![],
        // Its digits stand behind a row, and read as one number.
        timeline: u32::MAX,
        uncovered: vec![],
        vrf_key: Bytes32([2; 32]),
    }
}

/// A digest that reads as the entry of a patient whose last line was number `last`.
fn looks_like_an_entry(of: &Patient, last: u64) -> Digest {
    let Patient::Pseudonym(pseudonym) = of else {
        unreachable!("a patient with a pseudonym")
    };
    const LEN: u8 = 69;
    const PATIENT: u8 = 1;
    let (number, count) = (4, 2);
    let mut bytes = vec![LEN, PATIENT];
    bytes.extend(pseudonym.0);
    bytes.extend([number, count, last as u8 | 0x80, (last >> 7) as u8]);
    bytes.resize(64, 0x55);
    Digest(Imprint::new(Algorithm::Sha512, &bytes).unwrap())
}

#[test]
fn a_row_that_looks_like_a_patient_hides_no_line() {
    // The second makes a bucket of what nobody can read.
    for is_readable in [true, false] {
        hide(is_readable);
    }
}

fn hide(is_readable: bool) {
    let victim = patient(VICTIM);
    let place = patient_map_key(&victim);
    // A record that stands in front of the victim in one bucket.
    let mut keys = (0u64..).map(|nth| {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&(0x0700_0000_0000_0000 + nth).to_be_bytes());
        Bytes32(key)
    });
    let key = keys
        .find(|key| record_map_key(TABLE, key)[..2] == place[..2])
        .unwrap();
    let sha = |byte| Digest(Imprint::new(Algorithm::Sha256, &[byte; 32]).unwrap());
    let mut writer = Writer {
        state: State::new(),
        seq: 0,
        named: 0,
    };
    writer.write(Line::genesis(
        genesis(),
        Timestamp::from_micros(0).unwrap(),
        "ehr",
        "0",
    ));
    let unknown = Patient::Unknown;
    writer.write(writer.change(Op::Create, key, unknown, Some(sha(3))));
    writer.write(writer.read(victim));
    writer.write(writer.change(Op::Delete, key, unknown, None));
    for nth in 100..330 {
        writer.write(writer.read(patient(nth)));
    }
    writer.write(writer.change(Op::Create, key, patient(310), Some(sha(4))));
    writer.write(writer.change(Op::Delete, key, patient(310), None));
    // Where the victim stands is forgotten, and looked up anew.
    let other = patient(VICTIM + PLACES);
    writer.write(writer.read(other));
    let before = writer.write(writer.read(victim));
    let last = writer.seq - 1;
    let row = looks_like_an_entry(&victim, last);
    writer.write(writer.change(Op::Create, key, unknown, Some(row)));
    // What is written over the row must read as an entry's end.
    let mut lines = (0u64..).map(|nth| {
        let mut line = writer.read(victim);
        line.purpose = Some(format!("hide {nth}"));
        line
    });
    let fits = |line: &Line| {
        let mut line = line.clone();
        line.patient_prev = Some(Prev {
            hash: before,
            seq: last,
        });
        let hash = Line::hash(&line.encode());
        let [.., a, b, c, d, e, f] = hash.0.digest() else {
            unreachable!("a hash has 32 bytes")
        };
        [a, b, c, d].iter().all(|byte| **byte >= 0x80) && *e <= 0x0f && *f < 0x80
    };
    let hidden = lines.find(|line| fits(line) == is_readable);
    writer.write(hidden.unwrap());
    writer.write(writer.read(other));
    writer.write(writer.read(victim));
    let leaf = writer.state.patient(&victim).unwrap().unwrap();
    assert_eq!(leaf.count, writer.named, "a line is in no list");
    let path = writer.state.prove_patient(&victim).unwrap();
    let root = writer.state.root().unwrap();
    assert!(path.shows(&root, &place, Some(&leaf.encode())));
}
