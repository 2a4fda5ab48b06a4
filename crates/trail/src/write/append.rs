//! From drafts to lines: what each commits to goes into the vault, and the
//! commitments and pseudonyms into the line.
//!
//! The rows of many events are committed to together, which takes a fraction of the
//! time: all nonces are known before the first line is written, since they depend on
//! the lines' numbers alone.

use super::{ERASURES, HOLDS, MAX_BLOCK_LINES, Trail, TrailError};
use crate::draft::{Body, Draft, DraftActor, PatientId};
use crate::vault::{Compartment, Content, Marks, mark};
use pitser_evidence::commit::{Committed, LineNonce, commit_person, commit_raw};
use pitser_evidence::line::{Actor, Finding, Line, Op, Patient};

/// What a draft is committed to under. It depends on its line's number, and not on
/// the lines before it.
struct Under {
    patient: Option<Patient>,
    /// Whose key its content is under, and the line's nonce; `None` if it has none.
    opened: Option<(Compartment, LineNonce)>,
}

impl Trail {
    /// Adds the lines of one event and gives the `seq` of the first.
    ///
    /// They are durable, all or none, once [`Trail::commit`] returns.
    ///
    /// # Errors
    /// [`TrailError::BlockFull`]; any other error poisons the trail.
    pub fn append(&mut self, event: Vec<Draft>) -> Result<u64, TrailError> {
        self.append_all(vec![event])
    }

    /// Adds the lines of several events, in their order, and gives the `seq` of the
    /// first. Faster than one after the other.
    ///
    /// # Errors
    /// Those of [`Trail::append`].
    pub fn append_all(&mut self, events: Vec<Vec<Draft>>) -> Result<u64, TrailError> {
        self.usable()?;
        // No reader takes a block that has more.
        let (open, lines) = (self.open_lines(), events.iter().map(Vec::len).sum());
        if open + lines > MAX_BLOCK_LINES {
            return Err(TrailError::BlockFull { open, lines });
        }
        let first = self.state.next_seq();
        self.checked(|trail| {
            trail.commit_map()?;
            let mut unders = Vec::with_capacity(events.len());
            for (seq, draft) in (first..).zip(events.iter().flatten()) {
                unders.push(trail.under(draft, seq)?);
            }
            let mut rows = trail.rows.drain().into_iter();
            let mut lines = (first..).zip(unders);
            for event in events {
                let count = event.len() as u64;
                let mut begin = None;
                for (draft, (seq, under)) in event.into_iter().zip(lines.by_ref()) {
                    let event = *begin.get_or_insert(seq);
                    let more = seq + 1 < event + count;
                    let row = draft.row.is_some().then(|| rows.next()).flatten();
                    trail.write(draft, (seq, event, more), under, row)?;
                }
            }
            Ok(first)
        })
    }

    /// Finds out what a draft is committed to under, and has its row committed to.
    fn under(&mut self, draft: &Draft, seq: u64) -> Result<Under, TrailError> {
        let patient = draft.patient.as_ref().map(|patient| self.patient(patient));
        let person = draft.actor.as_ref().and_then(|actor| actor.person.as_ref());
        let has_content = draft.key.is_some()
            || draft.row.is_some()
            || draft.raw.is_some()
            || person.is_some()
            || matches!(draft.body.as_deref(), Some(Body::Erase { .. }));
        let mut opened = None;
        if has_content {
            let compartment = self.compartment(draft, patient, seq)?;
            let nonce = self.nonce(compartment.key(), seq);
            if let Some(row) = &draft.row {
                self.rows.push(&nonce, row.iter());
            }
            opened = Some((compartment, nonce));
        }
        Ok(Under { patient, opened })
    }

    /// Whose key a line's content is under: its patient's, or its table's where there is no
    /// patient or one who was erased. Who decided an erasure, or about a hold, must be known
    /// when the patient's own is gone.
    fn compartment(
        &mut self,
        draft: &Draft,
        patient: Option<Patient>,
        seq: u64,
    ) -> Result<Compartment, TrailError> {
        let (id, identifier) = match (patient, &draft.patient) {
            _ if draft.op == Op::Erase => (ERASURES.to_owned(), None),
            _ if draft.op.is_about_a_hold() => (HOLDS.to_owned(), None),
            (Some(pseudonym), Some(PatientId::Id(id))) => {
                (pseudonym.to_string(), Some(id.as_str()))
            }
            (None, _) | (_, Some(PatientId::Erased(_))) => {
                let table = draft.table.as_deref().unwrap_or_default();
                (format!("table:{table}"), None)
            }
            (Some(pseudo), _) => (pseudo.to_string(), None),
        };
        Ok(self.vault.compartment_or_new(&id, identifier, seq)?)
    }

    /// Adds the line of a draft: its number, that of its event's first line, and
    /// whether more of the event is to come.
    fn write(
        &mut self,
        draft: Draft,
        (seq, event, more): (u64, u64, bool),
        Under { patient, opened }: Under,
        row: Option<Committed>,
    ) -> Result<(), TrailError> {
        let mut line = Line::new(draft.op, seq, draft.at, draft.source, draft.pos);
        line.event = event;
        line.more = more.then_some(true);
        line.tx = draft.tx;
        line.table = draft.table;
        line.purpose = draft.purpose;
        line.columns = draft.columns;
        line.patient = patient;
        let record = |cells| self.record_key(line.table.as_deref(), cells);
        line.key = draft.record.or_else(|| draft.key.as_deref().map(record));
        let mut deciders = None;
        match draft.body.map(|body| *body) {
            None => {}
            Some(Body::Finding(finding)) => line.finding = Some(finding.into()),
            Some(Body::EventFinding { code, text }) => {
                let about = Some(event);
                line.finding = Some(Finding { about, code, text }.into());
            }
            Some(Body::Gap(gap)) => line.gap = Some(gap.into()),
            Some(Body::Ddl(ddl)) => line.ddl = Some(ddl.into()),
            Some(Body::Accept(accept)) => line.accept = Some(accept.into()),
            Some(Body::Release(release)) => line.release = Some(release.into()),
            Some(Body::Erase {
                basis,
                deciders: names,
            }) => {
                line.erase = Some(self.erasure(basis, &names, seq)?.into());
                deciders = Some(names);
            }
        }
        line.v = line.version();
        let mut person = None;
        line.actor = draft.actor.map(|mut actor| {
            person = actor.person.take();
            actor_of(actor)
        });
        if let Some((compartment, nonce)) = opened {
            if let (Some(actor), Some(person)) = (&mut line.actor, &person) {
                actor.person = Some(commit_person(&nonce.person(), person));
            }
            let raw = draft.raw.as_ref();
            line.raw = raw.map(|raw| commit_raw(&nonce.raw(), raw));
            line.row = row.as_ref().map(|row| row.row);
            let mut content = Content {
                key: draft.key,
                person,
                raw: draft.raw,
                marks: None,
                row: draft.row,
                deciders,
            };
            if let Some(row) = row.filter(|_| !draft.image) {
                content.keep_marks(&row.leaves);
            }
            self.vault.put(seq, &compartment, &content)?;
        }
        let before = self.state.before(&line)?;
        line.prev = before.prev();
        line.patient_prev = before.patient_prev();
        self.push_after(before, &line)
    }
}

impl Content {
    /// Keeps the marks of the row's columns, and not the row.
    fn keep_marks(&mut self, leaves: &[[u8; 32]]) {
        self.marks = self.row.take().map(|row| Marks {
            names: row.names,
            marks: leaves.iter().map(mark).collect(),
        });
    }
}

fn actor_of(actor: DraftActor) -> Actor {
    Actor {
        app: actor.app,
        binding: actor.binding,
        client: actor.client,
        person: None,
        role: actor.role,
    }
}
