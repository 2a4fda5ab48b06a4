//! From drafts to lines: what each commits to goes into the vault, and the
//! commitments and pseudonyms into the line.
//!
//! The rows of many events are committed to together, which takes a fraction of the
//! time: all nonces are known before the first line is written, since they depend on
//! the lines' numbers alone.

use super::{ERASURES, Trail, TrailError};
use crate::draft::{Body, Draft, DraftActor, PatientId};
use crate::vault::{Compartment, Content, Marks, mark};
use pitser_evidence::commit::{Committed, LineNonce, commit_person, commit_raw};
use pitser_evidence::line::{Actor, Line, Op};
use std::sync::Arc;

/// A line that lacks what follows from the lines before it, and from its row.
struct Prepared {
    line: Line,
    content: Content,
    /// Whether the vault keeps the row itself.
    image: bool,
    /// Whose key the content is under, and the line's nonce; `None` if it has none.
    opened: Option<(Compartment, LineNonce)>,
}

impl Trail {
    /// Adds the lines of one event and gives the `seq` of the first.
    ///
    /// They are durable, all or none, once [`Trail::commit`] returns.
    ///
    /// # Errors
    /// Any error poisons the trail.
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
        let first = self.state.next_seq();
        self.checked(|trail| {
            trail.commit_map()?;
            let mut prepared = Vec::with_capacity(events.len());
            let mut seq = first;
            for event in events {
                let (begin, end) = (seq, seq + event.len() as u64);
                for draft in event {
                    let more = seq + 1 < end;
                    prepared.push(trail.prepare(draft, seq, begin, more)?);
                    seq += 1;
                }
            }
            let mut rows = trail.commit_rows(&prepared).into_iter();
            for line in prepared {
                let row = line.content.row.is_some().then(|| rows.next()).flatten();
                trail.finish(line, row)?;
            }
            Ok(first)
        })
    }

    fn prepare(
        &mut self,
        mut draft: Draft,
        seq: u64,
        event: u64,
        more: bool,
    ) -> Result<Prepared, TrailError> {
        let mut line = Line::new(draft.op, seq, draft.at, draft.source, draft.pos);
        line.event = event;
        line.more = more.then_some(true);
        line.tx = draft.tx;
        line.table = draft.table;
        line.purpose = draft.purpose;
        line.columns = draft.columns;
        line.patient = draft.patient.as_ref().map(|p| self.patient(p));
        let record = |cells| self.record_key(line.table.as_deref(), cells);
        line.key = draft.record.or_else(|| draft.key.as_deref().map(record));
        let mut deciders = None;
        match draft.body {
            Body::None => {}
            Body::Finding(finding) => line.finding = Some(finding),
            Body::Gap(gap) => line.gap = Some(gap),
            Body::Ddl(ddl) => line.ddl = Some(ddl),
            Body::Accept(accept) => line.accept = Some(accept),
            Body::Erase {
                basis,
                deciders: names,
            } => {
                line.erase = Some(self.erasure(basis, &names, seq)?);
                deciders = Some(names);
            }
        }
        let person = draft.actor.as_mut().and_then(|actor| actor.person.take());
        line.actor = draft.actor.map(actor_of);
        let content = Content {
            key: draft.key,
            person,
            raw: draft.raw,
            marks: None,
            row: draft.row,
            deciders,
        };
        let mut opened = None;
        if !content.is_empty() {
            let compartment = self.compartment(draft.patient.as_ref(), &line)?;
            let nonce = self.nonce(compartment.key(), seq);
            opened = Some((compartment, nonce));
        }
        Ok(Prepared {
            line,
            content,
            image: draft.image,
            opened,
        })
    }

    /// Whose key a line's content is under: its patient's, or its table's. Who decided
    /// an erasure must be known when the patient's own is gone.
    fn compartment(
        &mut self,
        patient: Option<&PatientId>,
        line: &Line,
    ) -> Result<Compartment, TrailError> {
        let (id, identifier) = match (line.patient, patient) {
            _ if line.op == Op::Erase => (ERASURES.to_owned(), None),
            (Some(pseudonym), Some(PatientId::Id(id))) => {
                (pseudonym.to_string(), Some(id.as_str()))
            }
            (Some(pseudo), _) => (pseudo.to_string(), None),
            (None, _) => {
                let table = line.table.as_deref().unwrap_or_default();
                (format!("table:{table}"), None)
            }
        };
        Ok(self.vault.compartment_or_new(&id, identifier, line.seq)?)
    }

    /// Commitments to the rows of these lines, of those that have one.
    fn commit_rows(&mut self, lines: &[Prepared]) -> Vec<Committed> {
        for Prepared {
            content, opened, ..
        } in lines
        {
            if let (Some(row), Some((_, nonce))) = (&content.row, opened) {
                self.rows.push(nonce, row.iter());
            }
        }
        self.rows.drain()
    }

    fn finish(&mut self, prepared: Prepared, row: Option<Committed>) -> Result<(), TrailError> {
        let Prepared {
            mut line,
            mut content,
            image,
            opened,
        } = prepared;
        if let Some((compartment, nonce)) = opened {
            if let Some(row) = row {
                line.row = Some(row.row);
                content.keep_row(image, &row.leaves);
            }
            if let (Some(actor), Some(person)) = (&mut line.actor, &content.person) {
                actor.person = Some(commit_person(&nonce.person(), person));
            }
            let raw = content.raw.as_ref();
            line.raw = raw.map(|raw| commit_raw(&nonce.raw(), raw));
            self.vault.put(line.seq, &compartment, &content)?;
        }
        let before = self.state.before(&line)?;
        line.prev = before.prev();
        line.patient_prev = before.patient_prev();
        self.push_after(before, &line)
    }
}

impl Content {
    /// Without an image only the marks of the row's columns are kept.
    fn keep_row(&mut self, image: bool, leaves: &[[u8; 32]]) {
        let row = match image {
            true => return,
            false => self.row.take(),
        };
        self.marks = row.map(|row| Marks {
            names: Arc::clone(&row.names),
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
