//! What the authority's fleet and auditors say about the trail.

use super::{Ended, Session, Worker};
use crate::fleet::{Sent, Told};
use crate::status::FleetStatus;
use pitser_evidence::Code;
use pitser_ksi::time::Second;
use pitser_monitor::Finding;
use pitser_tlog::note::Note;

impl Worker {
    /// Sends a head, unless there is no fleet; waits for nobody.
    pub(super) fn report(&self, note: &Note, size: u64) {
        if let Some(heads) = &self.fleet {
            let note = note.clone();
            heads.send_replace(Some(Sent { note, size }));
        }
    }

    /// Shows what was told; what is a finding waits until the trail is open.
    pub(super) fn told(&mut self, told: Told) {
        let now = Second((self.parts.clock)() / super::SECOND_US);
        let change = |fleet: &mut FleetStatus| match &told {
            Told::Registered(place) => {
                fleet.entry = Some(*place);
                fleet.trouble = None;
            }
            Told::Taken(size) => {
                fleet.size = *size;
                fleet.sent_at = Some(now.to_string());
                fleet.trouble = None;
            }
            Told::Trouble(trouble) | Told::Against(_, trouble) => {
                fleet.trouble = Some(trouble.clone());
            }
        };
        self.publish
            .send_modify(|status| change(status.fleet.get_or_insert_default()));
        if let Told::Against(code, text) = told {
            self.accuse(code, text);
        }
    }

    /// Remembers what somebody outside knows against the trail, until the trail can be
    /// written; of one code once, however often it is said.
    pub(super) fn accuse(&mut self, code: Code, text: String) {
        self.against.entry(code).or_insert(text);
    }
}

impl Session {
    /// Makes findings of what is known outside against the trail.
    pub(super) fn accused(&mut self, worker: &mut Worker) -> Result<(), Ended> {
        let against = std::mem::take(&mut worker.against);
        if against.is_empty() {
            return Ok(());
        }
        for (code, text) in against {
            self.finding(worker, Finding::general(code, text))?;
        }
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }
}
