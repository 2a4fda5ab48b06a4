//! Somebody answers for findings: a line of the trail for each, then they are open no
//! more.

use super::findings::finding_in_clear;
use super::{Ended, Session, Worker};
use crate::acceptance::{Answer, Asked, AskedOf, Line as Done, MAX_FINDINGS, Portion, Tally};
use crate::approver::{Power, Refused, Token, who};
use crate::collected::{Collected, finding_of};
use pitser_evidence::line::{Acceptance, Line, Op, Patient, Prev};
use pitser_monitor::{Accepted, NotAccepted, can_accept};
use pitser_trail::draft::DraftActor;
use pitser_trail::{Body, Draft, PatientId, Trail, TrailError};
use tokio::sync::oneshot;

impl Session {
    /// Answers an approver. Either all findings are accepted that he names, or none,
    /// unless the trail fails in between.
    pub(super) fn accept(
        &mut self,
        worker: &mut Worker,
        asked: &Asked,
        reply: Reply<Answer>,
    ) -> Result<(), Ended> {
        let outcome = self.accept_named(worker, asked);
        told(outcome, reply)
    }

    /// The same for a portion of what he chose, or says what he would accept.
    pub(super) fn accept_of(
        &mut self,
        worker: &mut Worker,
        asked: &AskedOf,
        reply: Reply<Portion>,
    ) -> Result<(), Ended> {
        let outcome = self.accept_portion(worker, asked);
        told(outcome, reply)
    }

    fn accept_named(&mut self, worker: &mut Worker, asked: &Asked) -> Result<Answer, NotDone> {
        let by = self.approver(worker, &asked.token)?;
        asked.check().map_err(Refused::Rule)?;
        for finding in &asked.findings {
            let refused = |why: NotAccepted| Refused::Rule(format!("line {finding}: {why}"));
            let may = match self.incidents.may_accept(*finding) {
                Some(may) => may,
                None => self.may_accept_counted(*finding).map_err(unreadable)?,
            };
            may.map_err(refused)?;
        }
        // The findings' own lines are read again.
        self.trail.commit().map_err(Ended::from)?;
        let mut lines = Vec::with_capacity(asked.findings.len());
        for finding in &asked.findings {
            lines.push(self.line(*finding).map_err(Ended::from)?);
        }
        let accepted = self.write_acceptances(worker, &lines, &by, &asked.reason)?;
        Ok(Answer { accepted, by })
    }

    /// Looks at some lines of a choice, and accepts what he may.
    fn accept_portion(&mut self, worker: &mut Worker, asked: &AskedOf) -> Result<Portion, NotDone> {
        let by = self.approver(worker, &asked.token)?;
        asked.check().map_err(Refused::Rule)?;
        let mut portion = Portion {
            by,
            found: Vec::new(),
            left: Vec::new(),
            lines: None,
            next: None,
        };
        let of = &asked.of;
        let Some((first, last)) = self.incidents.open_between(|kind| of.has_kind(kind)) else {
            return Ok(portion);
        };
        let (from, until) = (of.from.max(first), of.until.min(last));
        if from > until {
            return Ok(portion);
        }
        self.trail.commit().map_err(Ended::from)?;
        let most = (until - from).saturating_add(1).min(LOOKED_AT);
        let (lines, mut next) = self.trail.findings(from, most).map_err(unreadable)?;
        let (mut found, mut left) = (Tally::default(), Tally::default());
        let mut wanted = Vec::new();
        for line in lines {
            let kind = finding_of(&line).map(|finding| finding.kind());
            let Some(kind) = kind.filter(|it| of.has_kind(it) && of.has_time(line.at)) else {
                continue;
            };
            // Of a finding that is not kept, only an acceptance ends what can be accepted.
            let may = match self.incidents.may_accept(line.seq) {
                Some(may) => may,
                None if self.trail.is_accepted(line.seq).map_err(unreadable)? => continue,
                None => can_accept(kind.0),
            };
            match may {
                Ok(()) if asked.reason.is_some() && wanted.len() == MAX_FINDINGS => {
                    next = line.seq;
                    break;
                }
                Ok(()) => {
                    found.add(kind, line.seq);
                    wanted.push(line);
                }
                Err(NotAccepted::RowDiffers | NotAccepted::Trail) => left.add(kind, line.seq),
                Err(NotAccepted::Before(_) | NotAccepted::Closed | NotAccepted::NoFinding) => {}
            }
        }
        if let Some(reason) = asked.reason.as_ref().filter(|_| !wanted.is_empty()) {
            let done = self.write_acceptances(worker, &wanted, &portion.by, reason)?;
            let line = |done: Option<&Done>| done.map(|done| done.line);
            portion.lines = line(done.first()).zip(line(done.last()));
        }
        portion.found = found.into_counted();
        portion.left = left.into_counted();
        portion.next = Some(next).filter(|next| *next <= until);
        Ok(portion)
    }

    /// Who asks, if it is somebody who may answer for findings.
    fn approver(&self, worker: &Worker, token: &Token) -> Result<String, Refused> {
        let approvers = &worker.parts.tuning.approvers;
        who(approvers, token, Power::Accept, self.now(worker)).map(str::to_owned)
    }

    /// Whether a finding may be accepted that is not kept in memory: the trail says.
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
        worker: &mut Worker,
        findings: &[Line],
        by: &str,
        reason: &str,
    ) -> Result<Vec<Done>, Ended> {
        let mut done = Vec::with_capacity(findings.len());
        for of in findings {
            let draft = self.acceptance_of(worker, of, by, reason)?;
            let at = draft.at.micros();
            let line = self.append(worker, vec![draft])?;
            let accepted = Accepted {
                line,
                at,
                by: Some(by.to_owned()),
                reason: Some(reason.to_owned()),
            };
            self.accepted(of, accepted)?;
            done.push(Done {
                finding: of.seq,
                line,
            });
        }
        self.trail.commit()?;
        if let [Done { finding, line }, ..] = done[..] {
            let count = done.len();
            tracing::info!(source = %worker.parts.source.name, finding, line, count, "findings were accepted");
        }
        self.show(worker);
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
        let actor = DraftActor::approver(by);
        Ok(Draft {
            table: line.table.clone(),
            record: line.key,
            patient: patient_beside(&mut self.trail, line.patient)?,
            actor: Some(actor),
            raw: Some(reason.as_bytes().into()),
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

/// Who waits for an answer.
type Reply<T> = oneshot::Sender<Result<T, Refused>>;

/// Why a wish was not done: it was refused, or the session ends over it.
enum NotDone {
    Refused(Refused),
    Ended(Ended),
}

impl From<Refused> for NotDone {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Ended> for NotDone {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// Tells who asked.
fn told<T>(outcome: Result<T, NotDone>, reply: Reply<T>) -> Result<(), Ended> {
    let (answer, ended) = match outcome {
        Ok(answer) => (Ok(answer), Ok(())),
        Err(NotDone::Refused(refused)) => (Err(refused), Ok(())),
        Err(NotDone::Ended(ended)) => (Err(Refused::Unavailable(ended.why())), Err(ended)),
    };
    let _ = reply.send(answer);
    ended
}

/// The trail cannot be read now; nothing was done.
fn unreadable(error: TrailError) -> Refused {
    Refused::Unavailable(error.to_string())
}

/// Lines that are looked at for one request, at most: some milliseconds.
const LOOKED_AT: u64 = 5_000;

/// Whose list a line stands in with one that names this patient. An erased patient is
/// named only by a trail that promises it: in others that would say that he came again.
fn patient_beside(
    trail: &mut Trail,
    patient: Option<Patient>,
) -> Result<Option<PatientId>, TrailError> {
    if let Some(erased @ Patient::Pseudonym(pseudonym)) = patient
        && trail.state().keeps_rule(16)
        && trail.state().is_erased(&erased)?
    {
        return Ok(Some(PatientId::Erased(pseudonym)));
    }
    patient_id(trail, patient)
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
        reason: reason.and_then(|text| String::from_utf8(text.to_vec()).ok()),
    })
}
