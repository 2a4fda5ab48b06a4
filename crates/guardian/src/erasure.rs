//! Who may have a patient erased, and what they ask (docs/erasure.md, spec 61 §4.5).
//!
//! Two tokens are two people, as far as each keeps his own to himself. The same
//! questions are answered by a running guardian and, while none runs, on the trail's
//! folder.

use crate::approver::{Approver, Power, Refused, Token, who};
use crate::collected::Collected;
use pitser_evidence::line::Timestamp;
use pitser_trail::erasure::{Erased, ErasureError, Plan, Request};
use pitser_trail::hold::{Hold, Lifted};
use pitser_trail::{Layout, Trail, TrailError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What an approver asks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Shows who asks.
    pub token: Token,
    /// What.
    pub ask: Ask,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked(private)")
    }
}

/// A question, or a decision. Patients are named as in the database.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// What erasing a patient would destroy.
    Plan {
        /// Whom.
        patient: String,
    },
    /// Erase, once another person has confirmed.
    Request {
        /// Whom.
        patient: String,
        /// The legal basis; stands in the trail in clear.
        basis: String,
    },
    /// What waits under a code.
    Show {
        /// As [`Answer::Requested`] had it.
        code: String,
    },
    /// Erase what another person requested.
    Confirm {
        /// As [`Answer::Requested`] had it.
        code: String,
    },
    /// Nobody erases this patient.
    AddHold {
        /// Whom.
        patient: String,
        /// Why.
        reason: String,
    },
    /// A hold stands no more.
    RemoveHold {
        /// Whose.
        patient: String,
        /// Set by which line; need not be said of the only one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
        /// Why; of a hold that is on record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// All holds.
    Holds {},
}

/// What came of it.
#[derive(Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Plan`].
    Plan(Plan),
    /// To [`Ask::Request`].
    Requested {
        /// What the other person confirms.
        code: String,
        /// What was asked for.
        request: Request,
        /// What it would destroy.
        plan: Plan,
    },
    /// To [`Ask::Show`].
    Waiting {
        /// The patient's identifier.
        identifier: String,
        /// What was asked for.
        request: Request,
        /// What it would destroy.
        plan: Plan,
    },
    /// To [`Ask::Confirm`]: it is done.
    Erased(Erased),
    /// To [`Ask::AddHold`] and [`Ask::RemoveHold`]: the hold that now stands, or stood.
    Hold(Hold),
    /// To [`Ask::Holds`]: with the patients.
    Holds(Vec<(String, Hold)>),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer(private)")
    }
}

/// Answers on a trail that no guardian has open.
///
/// # Errors
/// The trail cannot be opened.
pub fn answer_alone(
    layout: Layout,
    approvers: &[Approver],
    asked: &Asked,
    now: Timestamp,
) -> Result<Result<Answer, Refused>, TrailError> {
    let (mut trail, collected, _) = Trail::open::<Collected>(layout)?;
    let position = collected.position.or(collected.genesis_position);
    let pos = position.map(|position| position.to_string());
    let (answer, _) = answer(&mut trail, approvers, asked, now, &pos.unwrap_or_default());
    Ok(answer)
}

/// Answers on a trail. `pos` is the source's position so far. The second is why the
/// trail must be opened again, if it must.
///
/// # Errors
/// [`Refused`].
pub fn answer(
    trail: &mut Trail,
    approvers: &[Approver],
    asked: &Asked,
    now: Timestamp,
    pos: &str,
) -> (Result<Answer, Refused>, Option<TrailError>) {
    let by = match who(approvers, &asked.token, Power::Erase, now) {
        Ok(by) => by,
        Err(refused) => return (Err(refused), None),
    };
    match decide(trail, &asked.ask, by, now, pos) {
        Ok(answer) => (Ok(answer), None),
        Err(ErasureError::Trail(error)) => {
            let refused = Refused::Unavailable(error.to_string());
            (Err(refused), Some(error))
        }
        Err(rule) => (Err(Refused::Rule(rule.to_string())), None),
    }
}

fn decide(
    trail: &mut Trail,
    ask: &Ask,
    by: &str,
    now: Timestamp,
    pos: &str,
) -> Result<Answer, ErasureError> {
    Ok(match ask {
        Ask::Plan { patient } => Answer::Plan(trail.plan_erasure(patient)?),
        Ask::Request { patient, basis } => {
            let (code, request) = trail.request_erasure(patient, basis, by, now)?;
            Answer::Requested {
                code,
                request,
                plan: trail.plan_erasure(patient)?,
            }
        }
        Ask::Show { code } => {
            let (request, identifier) = trail.requested_erasure(code, now)?;
            Answer::Waiting {
                plan: trail.plan_erasure(&identifier)?,
                identifier,
                request,
            }
        }
        Ask::Confirm { code } => Answer::Erased(trail.confirm_erasure(code, by, now, pos)?),
        Ask::AddHold { patient, reason } => {
            Answer::Hold(trail.add_hold(patient, reason, by, (now, pos))?)
        }
        Ask::RemoveHold {
            patient,
            line,
            reason,
        } => {
            let lifted = Lifted {
                patient,
                line: *line,
                reason: reason.as_deref(),
            };
            Answer::Hold(trail.remove_hold(lifted, by, (now, pos))?)
        }
        Ask::Holds {} => Answer::Holds(trail.holds()?),
    })
}
