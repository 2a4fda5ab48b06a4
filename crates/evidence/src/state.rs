//! The deterministic function that carries the map along the trail:
//! `root(n) = apply(root(n-1), lines of block n)` (docs/spec/33-map.md).
//!
//! Guardian, auditor and exporter run this same code; each line either follows
//! from all lines before it or is refused.

use crate::codec::{Bytes32, Digest};
use crate::line::{Genesis, Line, Op, Patient, Prev};
use crate::map::{Leaf, LeafKind, Path, RowRef, patient_map_key, record_map_key};
use crate::marks;
use crate::store::{Leaves, Memory, Storage, Tree, Whose};
use std::sync::Arc;

/// Everything that follows from the lines of a trail. The leaves are in `S`;
/// in memory, unless another storage is named.
#[derive(Debug)]
pub struct State<S = Tree<Memory>> {
    at: Standing,
    storage: S,
}

/// Where a replay stands, besides the leaves: with them, all that the next line
/// is checked against.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// The genesis body, once line 0 has been applied.
    pub genesis: Option<Arc<Genesis>>,
    /// The `seq` of the line that comes next.
    pub next_seq: u64,
    /// The event that the next line must continue.
    pub open_event: Option<u64>,
    /// The records that move in the open event, and the lists that say so: rule 15.
    pub moving: Vec<Moving>,
}

/// A `relink` line of the open event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// The record's table.
    pub table: String,
    /// The record.
    pub key: Bytes32,
    /// In whose list it says that the record moves.
    pub patient: Patient,
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

/// Why a line was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<E> {
    /// It does not follow from the lines before it.
    #[error(transparent)]
    Line(#[from] StateError),
    /// The leaves cannot be read or kept.
    #[error("the map cannot be read or kept: {0}")]
    Storage(E),
}

impl From<ApplyError<std::convert::Infallible>> for StateError {
    fn from(error: ApplyError<std::convert::Infallible>) -> Self {
        match error {
            ApplyError::Line(error) => error,
            ApplyError::Storage(never) => match never {},
        }
    }
}

/// The leaves that a line is about, as they stand before it: [`State::before`].
#[derive(Debug, Clone, Copy)]
pub struct Before {
    seq: u64,
    leaves: Leaves,
}

impl Before {
    /// What the line's `prev` must be.
    pub fn prev(&self) -> Option<Prev> {
        self.leaves.record.as_ref().map(pointer)
    }

    /// What the line's `patient_prev` must be.
    pub fn patient_prev(&self) -> Option<Prev> {
        self.leaves.patient.as_ref().map(pointer)
    }
}

impl State {
    /// Before the genesis line, in memory.
    pub fn new() -> Self {
        Self::resume(Standing::default(), Tree::default())
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Storage> State<S> {
    /// Where an earlier replay stood, with the leaves it left.
    pub fn resume(at: Standing, storage: S) -> Self {
        Self { at, storage }
    }

    /// Where the replay stands.
    pub fn standing(&self) -> &Standing {
        &self.at
    }

    /// Where the replay stands, to be put elsewhere.
    pub fn standing_mut(&mut self) -> &mut Standing {
        &mut self.at
    }

    /// The leaves.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The leaves; what is put there past [`State::apply`] is not what follows
    /// from the lines.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// The genesis body, once line 0 has been applied.
    pub fn genesis(&self) -> Option<&Arc<Genesis>> {
        self.at.genesis.as_ref()
    }

    /// The `seq` of the line that comes next.
    pub fn next_seq(&self) -> u64 {
        self.at.next_seq
    }

    /// Carries the state over `line`, whose bytes hash to `hash`
    /// (docs/spec/33-map.md §4). What comes out depends on the state and the
    /// line alone, whatever the storage.
    ///
    /// # Errors
    /// [`ApplyError::Line`] if the line cannot follow; the state is then
    /// unchanged. After [`ApplyError::Storage`] it is of no use any more.
    pub fn apply(&mut self, line: &Line, hash: Digest) -> Result<(), ApplyError<S::Error>> {
        let before = self.before(line).map_err(ApplyError::Storage)?;
        self.apply_to(before, line, hash)
    }

    /// Does as [`State::apply`], for whoever wrote the line by what
    /// [`State::before`] had said of it, and needs not look it up again.
    ///
    /// # Errors
    /// Those of [`State::apply`].
    pub fn apply_to(
        &mut self,
        before: Before,
        line: &Line,
        hash: Digest,
    ) -> Result<(), ApplyError<S::Error>> {
        self.follows(line, &before)?;
        let what = self.breaks(line, &before).map_err(ApplyError::Storage)?;
        if let Some(what) = what {
            let seq = line.seq;
            return Err(StateError { seq, what }.into());
        }
        self.carry(line, hash, before).map_err(ApplyError::Storage)
    }

    /// What the leaves say of the record and the patient that the next line is
    /// about; its pointers, which follow from that, are not looked at.
    ///
    /// # Errors
    /// What the storage says.
    pub fn before(&self, line: &Line) -> Result<Before, S::Error> {
        let record = line.table.as_deref().zip(line.key.as_ref());
        Ok(Before {
            seq: self.at.next_seq,
            leaves: self.storage.leaves(record, line.patient.as_ref())?,
        })
    }

    fn follows(&self, line: &Line, before: &Before) -> Result<(), StateError> {
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
            line.seq == self.at.next_seq && before.seq == line.seq,
            "its seq does not continue the trail",
        )?;
        rule(
            line.event == self.at.open_event.unwrap_or(line.seq),
            "it is not of the event that it says",
        )?;
        if line.table.is_some() && line.key.is_some() {
            rule(
                line.prev == before.prev(),
                "its prev is not the record's last line",
            )?;
            let has_row = before.leaves.record.is_some_and(|leaf| leaf.row.is_some());
            rule(
                line.op != Op::Baseline || !has_row,
                "it gives a known record a new baseline",
            )?;
        }
        if line.patient.is_some() {
            rule(
                line.patient_prev == before.patient_prev(),
                "its patient_prev is not the patient's last line",
            )?;
        }
        Ok(())
    }

    /// What is wrong with a line by more than its own leaves.
    fn breaks(&self, line: &Line, before: &Before) -> Result<Option<&'static str>, S::Error> {
        if let Some(accept) = &line.accept {
            let finding = self.finding_mark(accept.finding, line);
            if !self.storage.is_marked(&finding)? {
                return Ok(Some(match self.keeps_rule(16) {
                    true => {
                        "it accepts a line that is no finding of this trail, or not in the lists of that finding"
                    }
                    false => "it accepts a line that is no finding of this trail",
                }));
            }
            let accepted = marks::accepted(accept.finding.seq);
            if self.storage.is_marked(&accepted)? {
                return Ok(Some("it accepts a finding that was accepted before"));
            }
        }
        let what = self.breaks_a_hold(line, before)?;
        if what.is_some() {
            return Ok(what);
        }
        let is_listed = self.is_listed(line, before)?;
        Ok((!is_listed).then_some("it does not name the patient whose record it is about"))
    }

    /// Rule 17: holds are lifted one by one, and whom one keeps is not erased.
    fn breaks_a_hold(
        &self,
        line: &Line,
        before: &Before,
    ) -> Result<Option<&'static str>, S::Error> {
        if line.op.is_about_a_hold() && !self.keeps_rule(17) {
            return Ok(Some("its trail was begun before there were such lines"));
        }
        if line.op == Op::Erase && before.leaves.holds > 0 {
            return Ok(Some("it erases a patient of whom a hold stands"));
        }
        if let (Some(release), Some(patient)) = (&line.release, &line.patient) {
            let hold = marks::hold(release.hold, patient);
            if !self.storage.is_marked(&hold)? {
                return Ok(Some("it releases a line that is no hold of this patient"));
            }
            if self.storage.is_marked(&marks::released(release.hold.seq))? {
                return Ok(Some("it releases a hold that was released before"));
            }
        }
        Ok(None)
    }

    /// How many holds of a patient stand. While one does, nobody erases the patient.
    ///
    /// # Errors
    /// What the storage says.
    pub fn holds(&self, patient: &Patient) -> Result<u64, S::Error> {
        Ok(self.storage.leaves(None, Some(patient))?.holds)
    }

    /// Whether the trail's genesis promises a rule of docs/spec/30-trail.md §3 that
    /// earlier trails did not keep.
    pub fn keeps_rule(&self, rule: u8) -> bool {
        let rules = self.at.genesis.as_ref().and_then(|genesis| genesis.rules);
        rules.is_some_and(|last| last >= rule)
    }

    /// The mark of a finding, for the line that it is or that accepts it. By rule 16 both
    /// stand in the same lists.
    fn finding_mark(&self, finding: Prev, line: &Line) -> Bytes32 {
        match self.keeps_rule(16) {
            true => marks::finding_beside(finding, line),
            false => marks::finding(finding),
        }
    }

    /// Rule 15: a line about a patient's record stands in that patient's list.
    fn is_listed(&self, line: &Line, before: &Before) -> Result<bool, S::Error> {
        let leaf = before.leaves.record.filter(|_| !before.leaves.is_patients);
        let (Some(table), Some(key), Some(leaf)) = (&line.table, &line.key, leaf) else {
            return Ok(true);
        };
        let is_bound = match line.op {
            // In whichever list it has to stand: the lines after it are bound.
            Op::Relink => false,
            // Where the finding stands: rule 16.
            Op::Accept => false,
            // Of a row that is gone, or never was, another may take the key.
            op if op.commits_row() => leaf.row.is_some(),
            _ => true,
        };
        if !self.keeps_rule(15) || !is_bound {
            return Ok(true);
        }
        let record = self.storage.record(table, key)?;
        let Some(owner @ Patient::Pseudonym(_)) = record.and_then(|record| record.patient) else {
            return Ok(true);
        };
        let leaves = |it: &Moving| (&it.table, &it.key, it.patient) == (table, key, owner);
        if line.row.is_some() && self.at.moving.iter().any(leaves) {
            return Ok(true);
        }
        self.is_erased(&owner)
    }

    /// Whether the patient was erased, and nothing came since but what accepts a finding of
    /// before: nobody knows the identifier.
    ///
    /// # Errors
    /// What the storage says.
    pub fn is_erased(&self, patient: &Patient) -> Result<bool, S::Error> {
        self.ends_erased(self.storage.patient_leaf(patient)?)
    }

    /// Whether a patient is erased whose list this is.
    fn ends_erased(&self, list: Option<Leaf>) -> Result<bool, S::Error> {
        match list {
            Some(list) => self.storage.is_marked(&marks::erased(list.last_seq)),
            None => Ok(false),
        }
    }

    fn carry(&mut self, line: &Line, hash: Digest, before: Before) -> Result<(), S::Error> {
        if let Some(genesis) = &line.genesis {
            self.at.genesis = Some(Arc::new((**genesis).clone()));
        }
        // The patient first: a record refers to one that is known.
        if let Some(patient) = &line.patient {
            let leaf = before
                .leaves
                .patient
                .unwrap_or(new_leaf(LeafKind::Patient, hash));
            let leaf = advanced(leaf, line.seq, hash);
            let holds = match line.op {
                Op::Hold => before.leaves.holds + 1,
                Op::Release => before.leaves.holds.saturating_sub(1),
                _ => before.leaves.holds,
            };
            self.storage.put_patient(patient, &leaf, holds)?;
        }
        if let (Some(table), Some(key)) = (&line.table, &line.key) {
            let timeline = self.at.genesis.as_ref().map_or(1, |g| g.timeline);
            let (leaf, whose) = record_after(before.leaves.record, line, hash, timeline);
            self.storage.put_record(table, key, &leaf, whose)?;
            if let (Op::Relink, Some(patient)) = (line.op, line.patient) {
                let (table, key) = (table.clone(), *key);
                self.at.moving.push(Moving {
                    table,
                    key,
                    patient,
                });
            }
        }
        let seq = line.seq;
        match line.op {
            Op::Finding => {
                let finding = self.finding_mark(Prev { hash, seq }, line);
                self.storage.mark(&finding)?;
            }
            Op::Erase => self.storage.mark(&marks::erased(seq))?,
            Op::Hold => {
                if let Some(patient) = &line.patient {
                    let hold = marks::hold(Prev { hash, seq }, patient);
                    self.storage.mark(&hold)?;
                }
            }
            _ => {}
        }
        if let Some(release) = &line.release {
            self.storage.mark(&marks::released(release.hold.seq))?;
        }
        if let Some(accept) = &line.accept {
            self.storage.mark(&marks::accepted(accept.finding.seq))?;
            // Whoever was erased stays so: the finding's line told the name.
            if self.keeps_rule(16) && self.ends_erased(before.leaves.patient)? {
                self.storage.mark(&marks::erased(seq))?;
            }
        }
        if line.more.is_none() {
            self.at.moving.clear();
        }
        self.at.open_event = line.more.map(|_| line.event);
        self.at.next_seq += 1;
        Ok(())
    }

    /// The record under `key`, if any line was about it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn record(&self, table: &str, key: &Bytes32) -> Result<Option<Record>, S::Error> {
        self.storage.record(table, key)
    }

    /// Whether the record under `key` is this patient's; `None` if no line was about it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn is_of(
        &self,
        table: &str,
        key: &Bytes32,
        patient: &Patient,
    ) -> Result<Option<bool>, S::Error> {
        self.storage.is_of(table, key, patient)
    }

    /// The leaf of the record under `key`, if any line was about it.
    ///
    /// # Errors
    /// What the storage says.
    pub fn record_leaf(&self, table: &str, key: &Bytes32) -> Result<Option<Leaf>, S::Error> {
        self.storage.record_leaf(table, key)
    }

    /// The records of a table that `keep` makes something of, in no order.
    ///
    /// # Errors
    /// What the storage says.
    pub fn records<T>(
        &self,
        table: &str,
        mut keep: impl FnMut(&Bytes32, &Leaf) -> Option<T>,
    ) -> Result<Vec<T>, S::Error> {
        let mut kept = Vec::new();
        self.storage
            .records(table, &mut |key, leaf| kept.extend(keep(key, leaf)))?;
        Ok(kept)
    }

    /// The leaf of a patient's list, if any line was about the patient.
    ///
    /// # Errors
    /// What the storage says.
    pub fn patient(&self, patient: &Patient) -> Result<Option<Leaf>, S::Error> {
        self.storage.patient_leaf(patient)
    }

    /// Number of patients, the two pseudo-patients included where they occur.
    pub fn patients(&self) -> u64 {
        self.storage.patients()
    }

    /// The map's root over all lines so far.
    ///
    /// # Errors
    /// What the storage says.
    pub fn root(&mut self) -> Result<[u8; 32], S::Error> {
        self.storage.root()
    }

    /// The path of a patient's leaf, or of its absence.
    ///
    /// # Errors
    /// What the storage says.
    pub fn prove_patient(&mut self, patient: &Patient) -> Result<Path, S::Error> {
        self.storage.prove(&patient_map_key(patient))
    }

    /// The path of a record's leaf, or of its absence.
    ///
    /// # Errors
    /// What the storage says.
    pub fn prove_record(&mut self, table: &str, key: &Bytes32) -> Result<Path, S::Error> {
        self.storage.prove(&record_map_key(table, key))
    }
}

/// A record's leaf after a line about it, and how the line bears on whose it is.
fn record_after(before: Option<Leaf>, line: &Line, hash: Digest, timeline: u32) -> (Leaf, Whose) {
    let leaf = before.unwrap_or(new_leaf(LeafKind::Record, hash));
    let mut leaf = advanced(leaf, line.seq, hash);
    let mut whose = match before {
        Some(_) => Whose::Unchanged,
        None => Whose::First(line.patient),
    };
    if let Some(row) = line.row {
        leaf.row = Some(RowRef {
            row,
            timeline,
            seq: line.seq,
        });
        whose = Whose::Committed(line.patient);
    } else if line.op == Op::Delete {
        leaf.row = None;
    }
    (leaf, whose)
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

fn advanced(leaf: Leaf, seq: u64, hash: Digest) -> Leaf {
    Leaf {
        count: leaf.count + 1,
        last_seq: seq,
        last_hash: hash,
        ..leaf
    }
}

fn pointer(leaf: &Leaf) -> Prev {
    Prev {
        hash: leaf.last_hash,
        seq: leaf.last_seq,
    }
}
