//! Somebody answers for findings: a line of the trail for each, then they are open no
//! more.

use super::{Ended, Session, StartError, Worker};
use crate::acceptance::{Answer, Asked, Line as Done};
use crate::approver::{Power, Refused, who};
use pitser_evidence::line::{Acceptance, Binding, Line, Op, Patient, Prev};
use pitser_monitor::{Accepted, NotAccepted};
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
            self.incidents.may_accept(*finding).map_err(refused)?;
        }
        Ok(by)
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
            let draft = self.acceptance_of(worker, *finding, by, &asked.reason)?;
            let at = draft.at.micros();
            let line = self.append(vec![draft])?;
            let accepted = Accepted {
                line,
                at,
                by: Some(by.to_owned()),
                reason: Some(asked.reason.clone()),
            };
            self.incidents.accept(*finding, accepted);
            tracing::info!(source = %worker.parts.source.name, finding, line, "a finding was accepted");
            done.push(Done {
                finding: *finding,
                line,
            });
        }
        self.trail.commit()?;
        Ok(done)
    }

    /// The line that accepts a finding stands in the same lists as the finding's.
    fn acceptance_of(
        &mut self,
        worker: &Worker,
        seq: u64,
        by: &str,
        reason: &str,
    ) -> Result<Draft, Ended> {
        let missing = || {
            StartError::from(TrailError::from(pitser_trail::ReadError::Nothing(
                self.trail.layout().segments(),
            )))
        };
        let line = self.trail.line(seq)?.ok_or_else(missing)?;
        let body = Acceptance {
            finding: Prev {
                hash: Line::hash(&line.encode()),
                seq,
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
            table: line.table,
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
fn patient_id(
    trail: &mut Trail,
    patient: Option<Patient>,
) -> Result<Option<PatientId>, TrailError> {
    Ok(match patient {
        None => None,
        Some(Patient::Many) => Some(PatientId::Many),
        Some(Patient::Unknown) => Some(PatientId::Unknown),
        Some(pseudonym @ Patient::Pseudonym(_)) => {
            let identifier = trail.vault().identifier(&pseudonym.to_string())?;
            identifier.map(|identifier| PatientId::Id(identifier.to_string()))
        }
    })
}

/// What a line of the trail says of who answers for which finding; who and why as far
/// as the vault still opens it.
pub(super) fn accepted(
    trail: &mut Trail,
    line: &Line,
) -> Result<Option<(u64, Accepted)>, TrailError> {
    let Some(accept) = &line.accept else {
        return Ok(None);
    };
    let content = trail.vault().get(line.seq)?.map(|(_, content)| content);
    let (by, reason) = content.map_or((None, None), |it| (it.person, it.raw));
    let accepted = Accepted {
        line: line.seq,
        at: line.at.micros(),
        by,
        reason: reason.and_then(|text| String::from_utf8(text).ok()),
    };
    Ok(Some((accept.finding.seq, accepted)))
}
