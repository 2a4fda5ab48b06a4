//! Somebody answers for findings: a line of the trail for each, then they are open no
//! more.

use super::findings::finding_in_clear;
use super::{Ended, Session, Worker};
use crate::acceptance::{Answer, Asked, Line as Done};
use crate::approver::{Power, Refused, who};
use crate::collected::{Collected, finding_of};
use pitser_evidence::line::{Acceptance, Binding, Line, Op, Patient, Prev};
use pitser_monitor::{Accepted, NotAccepted, can_accept};
use pitser_trail::draft::DraftActor;
use pitser_trail::{Body, Draft, PatientId, Trail, TrailError};
use tokio::sync::oneshot;

impl Session {
    /// Answers an approver. Either all findings are accepted that he names, or none,
    /// unless the trail fails in between.
    pub(super) fn accept(
        &mut self,
        worker: &Worker,
        asked: &Asked,
        reply: oneshot::Sender<Result<Answer, Refused>>,
    ) -> Result<(), Ended> {
        let by = match self.may_accept(worker, asked) {
            Ok(by) => by,
            Err(refused) => {
                let _ = reply.send(Err(refused));
                return Ok(());
            }
        };
        match self.write_acceptances(worker, asked, &by) {
            Ok(accepted) => {
                self.show(worker);
                let _ = reply.send(Ok(Answer { accepted, by }));
                Ok(())
            }
            Err(ended) => {
                let why = match &ended {
                    Ended::Failed(error) => error.to_string(),
                    Ended::Stopped(_) | Ended::Erased => "the guardian has stopped".into(),
                };
                let _ = reply.send(Err(Refused::Unavailable(why)));
                Err(ended)
            }
        }
    }

    /// Who asks, if all that he names may be accepted.
    fn may_accept(&self, worker: &Worker, asked: &Asked) -> Result<String, Refused> {
        let approvers = &worker.parts.tuning.approvers;
        let by = who(approvers, &asked.token, Power::Accept, self.now(worker))?.to_owned();
        asked.check().map_err(Refused::Rule)?;
        for finding in &asked.findings {
            let refused = |why: NotAccepted| Refused::Rule(format!("line {finding}: {why}"));
            let may = match self.incidents.may_accept(*finding) {
                Some(may) => may,
                None => self
                    .may_accept_counted(*finding)
                    .map_err(|error| Refused::Unavailable(error.to_string()))?,
            };
            may.map_err(refused)?;
        }
        Ok(by)
    }

    /// The same of a finding that is not kept in memory: the trail says.
    fn may_accept_counted(&self, seq: u64) -> Result<Result<(), NotAccepted>, TrailError> {
        let line = self.trail.line(seq)?;
        let Some(finding) = line.as_ref().and_then(finding_of) else {
            return Ok(Err(NotAccepted::NoFinding));
        };
        Ok(match self.trail.is_accepted(seq)? {
            true => Err(NotAccepted::Before(None)),
            false => can_accept(finding.code),
        })
    }

    fn write_acceptances(
        &mut self,
        worker: &Worker,
        asked: &Asked,
        by: &str,
    ) -> Result<Vec<Done>, Ended> {
        // The findings' own lines are read again below.
        self.trail.commit()?;
        let mut done = Vec::with_capacity(asked.findings.len());
        for finding in &asked.findings {
            let of = self.line(*finding)?;
            let draft = self.acceptance_of(worker, &of, by, &asked.reason)?;
            let at = draft.at.micros();
            let line = self.append(vec![draft])?;
            let accepted = Accepted {
                line,
                at,
                by: Some(by.to_owned()),
                reason: Some(asked.reason.clone()),
            };
            self.accepted(&of, accepted)?;
            tracing::info!(source = %worker.parts.source.name, finding, line, "a finding was accepted");
            done.push(Done {
                finding: *finding,
                line,
            });
        }
        self.trail.commit()?;
        Ok(done)
    }

    /// A finding is open no more, whether it is kept or only counted.
    fn accepted(&mut self, line: &Line, by: Accepted) -> Result<(), TrailError> {
        if self.incidents.accept(line.seq, &by) {
            return Ok(());
        }
        let Some(finding) = finding_in_clear(&mut self.trail, line)? else {
            return Ok(());
        };
        if let Some(kept) = self.trail.gathered_mut::<Collected>() {
            kept.place(line.seq, &finding.kind());
        }
        let found_at = line.at.micros();
        self.incidents
            .accept_counted(finding, found_at, line.seq, by);
        Ok(())
    }

    fn line(&self, seq: u64) -> Result<Line, TrailError> {
        let missing = || pitser_trail::ReadError::Nothing(self.trail.layout().segments());
        Ok(self.trail.line(seq)?.ok_or_else(missing)?)
    }

    /// The line that accepts a finding stands in the same lists as the finding's.
    fn acceptance_of(
        &mut self,
        worker: &Worker,
        line: &Line,
        by: &str,
        reason: &str,
    ) -> Result<Draft, Ended> {
        let body = Acceptance {
            finding: Prev {
                hash: Line::hash(&line.encode()),
                seq: line.seq,
            },
        };
        let actor = DraftActor {
            app: None,
            binding: Binding::B,
            client: None,
            person: Some(by.to_owned()),
            role: None,
        };
        Ok(Draft {
            table: line.table.clone(),
            record: line.key,
            patient: patient_id(&mut self.trail, line.patient)?,
            actor: Some(actor),
            raw: Some(reason.as_bytes().to_vec()),
            body: Some(Box::new(Body::Accept(body))),
            ..Draft::new(
                Op::Accept,
                self.now(worker),
                "guardian",
                self.position.to_string(),
            )
        })
    }
}

/// Whose list it is; `None` too if the patient was erased since.
pub(super) fn patient_id(
    trail: &mut Trail,
    patient: Option<Patient>,
) -> Result<Option<PatientId>, TrailError> {
    Ok(match patient {
        None => None,
        Some(Patient::Many) => Some(PatientId::Many),
        Some(Patient::Unknown) => Some(PatientId::Unknown),
        Some(pseudonym @ Patient::Pseudonym(digest)) => {
            match trail.vault().identifier(&pseudonym.to_string())? {
                Some(identifier) => Some(PatientId::Id(identifier.to_string())),
                None if trail.state().is_erased(&pseudonym)? => None,
                // A vault may have been put back that does not know of the patient yet.
                None => Some(PatientId::Pseudonym(digest)),
            }
        }
    })
}

/// What a line of the trail that accepts a finding says of who answers for it; who and why
/// as far as the vault still opens it.
pub(super) fn accepted(trail: &mut Trail, line: &Line) -> Result<Accepted, TrailError> {
    let content = trail.vault().get(line.seq)?.map(|(_, content)| content);
    let (by, reason) = content.map_or((None, None), |it| (it.person, it.raw));
    Ok(Accepted {
        line: line.seq,
        at: line.at.micros(),
        by,
        reason: reason.and_then(|text| String::from_utf8(text).ok()),
    })
}
