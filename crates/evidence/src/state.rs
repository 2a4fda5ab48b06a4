//! The deterministic function that carries the map along the trail:
//! `root(n) = apply(root(n-1), lines of block n)` (docs/spec/33-map.md).
//!
//! Guardian, auditor and exporter run this same code; each line either follows
//! from all lines before it or is refused.

use crate::codec::{Bytes32, Digest};
use crate::line::{Genesis, Line, Op, Patient, Prev};
use crate::map::{Leaf, LeafKind, Path, RowRef, SparseMap, patient_map_key, record_map_key};
use std::collections::HashMap;
use std::sync::Arc;

/// Everything that follows from the lines of a trail.
#[derive(Debug, Default)]
pub struct State {
    genesis: Option<Arc<Genesis>>,
    next_seq: u64,
    /// The event that the next line must continue.
    open_event: Option<u64>,
    map: SparseMap,
    tables: HashMap<String, HashMap<Bytes32, Record>>,
    patients: HashMap<Patient, Leaf>,
}

/// What is known of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its leaf in the map.
    pub leaf: Leaf,
    /// Whose it is now.
    pub patient: Option<Patient>,
    /// Whose it was when its row was last committed: names the opening key.
    pub row_patient: Option<Patient>,
}

/// A line that does not follow from the lines before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {seq}: {what}")]
pub struct StateError {
    /// The line.
    pub seq: u64,
    /// The rule that it breaks.
    pub what: &'static str,
}

impl State {
    /// Before the genesis line.
    pub fn new() -> Self {
        Self::default()
    }

    /// The genesis body, once line 0 has been applied.
    pub fn genesis(&self) -> Option<&Arc<Genesis>> {
        self.genesis.as_ref()
    }

    /// The `seq` of the line that comes next.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Carries the state over `line`, whose bytes hash to `hash`.
    ///
    /// # Errors
    /// [`StateError`] if the line cannot follow; the state is then unchanged.
    pub fn apply(&mut self, line: &Line, hash: Digest) -> Result<(), StateError> {
        self.follows(line)?;
        if let Some(genesis) = &line.genesis {
            self.genesis = Some(Arc::new((**genesis).clone()));
        }
        if let (Some(table), Some(key)) = (&line.table, &line.key) {
            self.apply_record(line, table, key, hash);
        }
        if let Some(patient) = line.patient {
            let leaf = self
                .patients
                .entry(patient)
                .or_insert(new_leaf(LeafKind::Patient, hash));
            advance(leaf, line.seq, hash);
            self.map.insert(&patient_map_key(&patient), &leaf.encode());
        }
        self.open_event = line.more.map(|_| line.event);
        self.next_seq += 1;
        Ok(())
    }

    fn follows(&self, line: &Line) -> Result<(), StateError> {
        let rule = |ok: bool, what: &'static str| {
            if ok {
                Ok(())
            } else {
                Err(StateError {
                    seq: line.seq,
                    what,
                })
            }
        };
        rule(
            line.seq == self.next_seq,
            "its seq does not continue the trail",
        )?;
        rule(
            line.event == self.open_event.unwrap_or(line.seq),
            "it is not of the event that it says",
        )?;
        if let (Some(table), Some(key)) = (&line.table, &line.key) {
            rule(
                line.prev == self.prev(table, key),
                "its prev is not the record's last line",
            )?;
            let baselined_again = line.op == Op::Baseline
                && self
                    .record(table, key)
                    .is_some_and(|r| r.leaf.row.is_some());
            rule(!baselined_again, "it gives a known record a new baseline")?;
        }
        if let Some(patient) = &line.patient {
            rule(
                line.patient_prev == self.patient_prev(patient),
                "its patient_prev is not the patient's last line",
            )?;
        }
        Ok(())
    }

    fn apply_record(&mut self, line: &Line, table: &str, key: &Bytes32, hash: Digest) {
        let timeline = self.genesis.as_ref().map_or(1, |g| g.timeline);
        if !self.tables.contains_key(table) {
            self.tables.insert(table.to_owned(), HashMap::new());
        }
        let record = self
            .tables
            .get_mut(table)
            .expect("inserted above")
            .entry(*key)
            .or_insert(Record {
                leaf: new_leaf(LeafKind::Record, hash),
                patient: line.patient,
                row_patient: None,
            });
        advance(&mut record.leaf, line.seq, hash);
        if let Some(row) = line.row {
            record.leaf.row = Some(RowRef {
                row,
                timeline,
                seq: line.seq,
            });
            record.patient = line.patient;
            record.row_patient = line.patient;
        } else if line.op == Op::Delete {
            record.leaf.row = None;
        }
        self.map
            .insert(&record_map_key(table, key), &record.leaf.encode());
    }

    /// The record under `key`, if any line was about it.
    pub fn record(&self, table: &str, key: &Bytes32) -> Option<&Record> {
        self.tables.get(table)?.get(key)
    }

    /// All records of a table, in no order.
    pub fn records<'a>(
        &'a self,
        table: &str,
    ) -> impl Iterator<Item = (&'a Bytes32, &'a Record)> + use<'a> {
        self.tables.get(table).into_iter().flatten()
    }

    /// The leaf of a patient's list, if any line was about the patient.
    pub fn patient(&self, patient: &Patient) -> Option<&Leaf> {
        self.patients.get(patient)
    }

    /// Number of patients, the two pseudo-patients included where they occur.
    pub fn patients(&self) -> usize {
        self.patients.len()
    }

    /// What `prev` of the record's next line must be.
    pub fn prev(&self, table: &str, key: &Bytes32) -> Option<Prev> {
        self.record(table, key).map(|r| pointer(&r.leaf))
    }

    /// What `patient_prev` of the patient's next line must be.
    pub fn patient_prev(&self, patient: &Patient) -> Option<Prev> {
        self.patient(patient).map(pointer)
    }

    /// The map's root over all lines so far.
    pub fn root(&mut self) -> [u8; 32] {
        self.map.root()
    }

    /// The path of a patient's leaf, or of its absence.
    pub fn prove_patient(&mut self, patient: &Patient) -> Path {
        self.map.prove(&patient_map_key(patient))
    }

    /// The path of a record's leaf, or of its absence.
    pub fn prove_record(&mut self, table: &str, key: &Bytes32) -> Path {
        self.map.prove(&record_map_key(table, key))
    }
}

fn new_leaf(kind: LeafKind, hash: Digest) -> Leaf {
    Leaf {
        count: 0,
        last_seq: 0,
        last_hash: hash,
        row: None,
        kind,
    }
}

fn advance(leaf: &mut Leaf, seq: u64, hash: Digest) {
    leaf.count += 1;
    leaf.last_seq = seq;
    leaf.last_hash = hash;
}

fn pointer(leaf: &Leaf) -> Prev {
    Prev {
        hash: leaf.last_hash,
        seq: leaf.last_seq,
    }
}
