//! Legal holds: while one stands, the patient is not erased (docs/erasure.md).
//!
//! A hold is a line of the trail, and so is its end; who and why are committed to, and
//! kept in the vault as what any line commits to. That it stands follows from the lines
//! (docs/spec/30-trail.md §3, rule 17), whatever became of the vault. In trails that were
//! begun before that rule a hold is a note in the vault and nothing else.

use crate::draft::{Body, Draft, DraftActor, PatientId};
use crate::erasure::{ErasureError, check_text, reveals};
use crate::vault::VaultError;
use crate::write::{Trail, TrailError};
use pitser_evidence::codec::Digest;
use pitser_evidence::line::{Line, Op, Patient, Prev, Release, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The first rule that puts holds into the trail.
const RULE: u8 = 17;

/// Kind of the notes that holds are in trails without that rule.
const NOTE: &str = "hold";

/// A legal hold: as long as it stands, the patient is not erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Why.
    pub reason: String,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// The line that sets it; `None` if it is not on record, but a note in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

/// Whose hold is lifted, and which one.
#[derive(Debug, Clone, Copy)]
pub struct Lifted<'a> {
    /// The patient's identifier.
    pub patient: &'a str,
    /// The hold's line; need not be said where one hold stands.
    pub line: Option<u64>,
    /// Why. A hold that is not on record needs no reason, and keeps none.
    pub reason: Option<&'a str>,
}

/// The holds that stand by the lines so far, each by its line. They follow from the lines
/// like [`State::holds`](pitser_evidence::state::State::holds), which counts them and has
/// the last word; the map's commits carry them along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds(BTreeMap<u64, Standing>);

/// What its line says of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    patient: Patient,
    at: Timestamp,
    hash: Digest,
}

impl Holds {
    /// Takes the next line.
    pub(crate) fn line(&mut self, line: &Line) {
        if let (Op::Hold, Some(patient)) = (line.op, line.patient) {
            let (at, hash) = (line.at, Line::hash(&line.encode()));
            self.0.insert(line.seq, Standing { patient, at, hash });
        }
        if let Some(release) = &line.release {
            self.0.remove(&release.hold.seq);
        }
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Trail {
    /// Whether holds are lines of this trail.
    pub fn records_holds(&self) -> bool {
        self.state().keeps_rule(RULE)
    }

    /// Keeps a patient from being erased until the hold is lifted; durable on return. The
    /// patient need not have occurred yet, and may have other holds. `pos` is the source's
    /// position so far.
    ///
    /// # Errors
    /// [`ErasureError::Text`], [`ErasureError::Revealing`]; with [`ErasureError::Trail`],
    /// the trail is poisoned.
    pub fn add_hold(
        &mut self,
        identifier: &str,
        reason: &str,
        by: &str,
        (now, pos): (Timestamp, &str),
    ) -> Result<Hold, ErasureError> {
        check_text(reason)?;
        let mut hold = Hold {
            reason: reason.to_owned(),
            by: by.to_owned(),
            at: now,
            line: None,
        };
        let patient = self.keys().pseudonym(identifier).to_string();
        if !self.records_holds() {
            let note = serde_json::to_vec(&hold).expect("texts alone");
            self.vault().set_note(NOTE, &patient, Some(&note))?;
            return Ok(hold);
        }
        // It opens also when the patient was erased.
        if reveals(identifier, reason) {
            return Err(ErasureError::Revealing);
        }
        // Whoever lists the holds wants to know of whom.
        let seq = self.state().next_seq();
        self.vault()
            .compartment_or_new(&patient, Some(identifier), seq)?;
        hold.line = Some(self.decide(identifier, None, reason, by, (now, pos))?);
        Ok(hold)
    }

    /// Lifts a patient's hold, and gives what it was; durable on return.
    ///
    /// # Errors
    /// [`ErasureError::NoHold`], [`ErasureError::Holds`], and those of [`Trail::add_hold`].
    pub fn remove_hold(
        &mut self,
        lifted: Lifted<'_>,
        by: &str,
        when: (Timestamp, &str),
    ) -> Result<Hold, ErasureError> {
        let patient = self.keys().pseudonym(lifted.patient);
        let mut standing = self.holds_of(&patient)?;
        if lifted.line.is_some() {
            standing.retain(|hold| hold.line == lifted.line);
        }
        let hold = match standing.len() {
            0 => return Err(ErasureError::NoHold),
            1 => standing.remove(0),
            _ => return Err(ErasureError::Holds(standing)),
        };
        let Some(line) = hold.line else {
            self.vault().set_note(NOTE, &patient.to_string(), None)?;
            return Ok(hold);
        };
        let reason = lifted.reason.unwrap_or_default();
        check_text(reason)?;
        if reveals(lifted.patient, reason) {
            return Err(ErasureError::Revealing);
        }
        let hash = self.holds.0.get(&line).map(|standing| standing.hash);
        let hold_line = Prev {
            hash: hash.ok_or(ErasureError::NoHold)?,
            seq: line,
        };
        self.decide(lifted.patient, Some(hold_line), reason, by, when)?;
        Ok(hold)
    }

    /// Writes the line of a hold, or of the end of one.
    fn decide(
        &mut self,
        identifier: &str,
        ends: Option<Prev>,
        reason: &str,
        by: &str,
        (at, pos): (Timestamp, &str),
    ) -> Result<u64, TrailError> {
        let actor = DraftActor::approver(by);
        let op = ends.map_or(Op::Hold, |_| Op::Release);
        let seq = self.append(vec![Draft {
            patient: Some(PatientId::Id(identifier.to_owned())),
            actor: Some(actor),
            raw: Some(reason.as_bytes().into()),
            body: ends.map(|hold| Box::new(Body::Release(Release { hold }))),
            ..Draft::new(op, at, "guardian", pos)
        }])?;
        self.commit()?;
        Ok(seq)
    }

    /// All holds, by the patient's identifier, or the pseudonym where the vault does
    /// not know that.
    ///
    /// # Errors
    /// The vault cannot be read.
    pub fn holds(&mut self) -> Result<Vec<(String, Hold)>, ErasureError> {
        let mut holds = Vec::new();
        for (seq, standing) in self.holds.0.clone() {
            let hold = self.opened(seq, standing.at)?;
            holds.push((standing.patient.to_string(), hold));
        }
        for (patient, note) in self.vault().notes(NOTE)? {
            holds.push((patient, noted(&note)));
        }
        for (patient, _) in &mut holds {
            if let Some(identifier) = self.vault().identifier(patient)? {
                *patient = identifier.to_string();
            }
        }
        Ok(holds)
    }

    /// A patient's holds, the oldest first.
    ///
    /// # Errors
    /// The trail or its vault cannot be read.
    pub(crate) fn holds_of(&mut self, patient: &Patient) -> Result<Vec<Hold>, TrailError> {
        let of_patient =
            |(seq, it): (&u64, &Standing)| (it.patient == *patient).then_some((*seq, it.at));
        let on_record: Vec<_> = self.holds.0.iter().filter_map(of_patient).collect();
        let mut holds = Vec::with_capacity(on_record.len());
        for (seq, at) in on_record {
            holds.push(self.opened(seq, at)?);
        }
        // What stands in the vault alone keeps the patient too.
        let id = patient.to_string();
        let notes = self.vault().notes(NOTE)?.into_iter();
        holds.extend(
            notes
                .filter(|(of, _)| *of == id)
                .map(|(_, note)| noted(&note)),
        );
        Ok(holds)
    }

    /// A patient's holds as far as they speak against an erasure. The lines have the last
    /// word: while one stands by them, there is one here.
    ///
    /// # Errors
    /// The trail or its vault cannot be read.
    pub(crate) fn holds_against(&mut self, patient: &Patient) -> Result<Vec<Hold>, TrailError> {
        let mut holds = self.holds_of(patient)?;
        if holds.is_empty() && self.state().holds(patient)? > 0 {
            holds.push(unreadable());
        }
        Ok(holds)
    }

    /// The hold of line `seq`, as far as the vault opens it.
    fn opened(&mut self, seq: u64, at: Timestamp) -> Result<Hold, VaultError> {
        let content = self.vault().get(seq)?.map(|(_, content)| content);
        let closed = || CLOSED.to_owned();
        let (by, raw) = content.map_or((None, None), |it| (it.person, it.raw));
        let reason = raw.map(|raw| String::from_utf8_lossy(&raw).into_owned());
        Ok(Hold {
            reason: reason.unwrap_or_else(closed),
            by: by.unwrap_or_else(closed),
            at,
            line: Some(seq),
        })
    }
}

/// What a note in the vault says. One that cannot be read still holds.
fn noted(note: &[u8]) -> Hold {
    serde_json::from_slice(note).unwrap_or_else(|_| unreadable())
}

fn unreadable() -> Hold {
    Hold {
        reason: "it cannot be read".into(),
        by: "another version of Pitser".into(),
        at: Timestamp::from_micros(0).expect("1970 is a year"),
        line: None,
    }
}

/// In place of what the vault does not open any more.
const CLOSED: &str = "not known, the vault has lost it";
