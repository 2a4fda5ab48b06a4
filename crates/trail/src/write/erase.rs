//! Erasure: a line that says so, then the key's end.

use super::{ERASURES, Trail, TrailError};
use crate::disk::{self, DiskError};
use crate::draft::{Body, Draft, PatientId};
use crate::erasure;
use crate::vault::VaultError;
use pitser_evidence::commit::commit_person;
use pitser_evidence::line::{Erasure, Line, Op, Patient, Timestamp};
use std::collections::HashSet;

impl Trail {
    /// The body of line `seq`, which erases.
    pub(super) fn erasure(
        &mut self,
        basis: String,
        [first, second]: &[String; 2],
        seq: u64,
    ) -> Result<Erasure, VaultError> {
        let compartment = self.vault.compartment_or_new(ERASURES, None, seq)?;
        let nonce = self.nonce(compartment.key(), seq);
        Ok(Erasure {
            basis,
            deciders: [
                commit_person(&nonce.decider(0), first),
                commit_person(&nonce.decider(1), second),
            ],
        })
    }

    /// Destroys what can be opened or confirmed about a patient: first a line that
    /// says so, durably, then the key. Gives the line's `seq`. The decision is
    /// [`Trail::confirm_erasure`]'s.
    ///
    /// # Errors
    /// Any error poisons the trail. Where the line is durable, opening the trail
    /// again finishes the erasure.
    pub(crate) fn erase(
        &mut self,
        identifier: &str,
        basis: String,
        deciders: [String; 2],
        (at, pos): (Timestamp, &str),
    ) -> Result<u64, TrailError> {
        let patient = self.keys.pseudonym(identifier);
        let seq = self.state.next_seq();
        self.intend_erasure(patient, seq)?;
        self.append(vec![Draft {
            patient: Some(PatientId::Id(identifier.to_owned())),
            body: Some(Box::new(Body::Erase { basis, deciders })),
            ..Draft::new(Op::Erase, at, "guardian", pos)
        }])?;
        self.commit()?;
        self.checked(
            |trail| match trail.vault.erase(&patient.to_string(), seq)? {
                true => Ok(()),
                false => Err(VaultError::Younger(trail.layout.vault()).into()),
            },
        )?;
        self.keys.forget(identifier);
        Ok(seq)
    }

    /// Notes beside the trail that line `seq` is to erase a patient. Without that line
    /// the note means nothing.
    fn intend_erasure(&self, patient: Patient, seq: u64) -> Result<(), DiskError> {
        // One that cannot be read would be replaced, and everybody in it forgotten.
        let noted = erasure::notes(&self.layout)?;
        let text = format!("{noted}{seq} {patient}\n");
        disk::replace(&self.layout.erasures(), text.as_bytes())
    }

    /// Erases whom a durable line says to be erased and the vault still knows: a crash
    /// came between, or an older copy of the vault was put back. `true` if there was one.
    pub(super) fn finish_erasures(&mut self) -> Result<bool, TrailError> {
        let notes = erasure::notes(&self.layout)?;
        let mut has_finished = false;
        let mut void = HashSet::new();
        for (seq, patient) in erasure::noted(&notes) {
            // Nearly always it is done, and the line may be in an archive.
            if !self.vault.is_older(patient, seq)? {
                continue;
            }
            // A crash came before the line was durable. Another one will have its number.
            if seq >= self.state.next_seq() {
                void.insert((seq, patient));
                continue;
            }
            let line = self.line(seq)?;
            let is_so = |line: Line| {
                line.op == Op::Erase && line.patient.is_some_and(|p| p.to_string() == patient)
            };
            if line.is_some_and(is_so) {
                has_finished |= self.vault.erase(patient, seq)?;
            }
        }
        if !void.is_empty() {
            let left = erasure::noted(&notes).filter(|note| !void.contains(note));
            let left: String = left
                .map(|(seq, patient)| format!("{seq} {patient}\n"))
                .collect();
            disk::replace(&self.layout.erasures(), left.as_bytes())?;
        }
        Ok(has_finished)
    }
}
