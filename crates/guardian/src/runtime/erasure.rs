//! Approvers ask the thread that owns the trail.

use super::session::NOT_ALL_TAKEN;
use super::{Ended, Session, Worker};
use crate::approver::Refused;
use crate::erasure::{Answer, Ask, Asked, answer};
use crate::status::SourceState;
use pitser_trail::hold::Hold;
use tokio::sync::oneshot;

impl Session {
    /// Answers an approver. After an erasure the session ends: whatever it knew of
    /// the patient is forgotten with it.
    pub(super) fn erasure(
        &mut self,
        worker: &mut Worker,
        asked: &Asked,
        reply: oneshot::Sender<Result<Answer, Refused>>,
    ) -> Result<(), Ended> {
        // What was committed before comes before: rows that were deleted for this
        // erasure must not bring the patient back.
        let is_all_taken = self.capture_all(worker)?;
        if !is_all_taken && matches!(asked.ask, Ask::Confirm { .. }) {
            let _ = reply.send(Err(Refused::Unavailable(NOT_ALL_TAKEN.into())));
            return Ok(());
        }
        // It is written past the queue, which is empty by now.
        self.make_room(worker, 1)?;
        let (now, pos) = (self.now(worker), self.position.to_string());
        let approvers = &worker.parts.tuning.approvers;
        let (answer, failed) = answer(&mut self.trail, approvers, asked, now, &pos);
        let is_erased = matches!(answer, Ok(Answer::Erased(_)));
        if let Ok(Answer::Erased(erased)) = &answer {
            tracing::warn!(source = %worker.parts.source.name, line = erased.seq, "a patient was erased");
            // Whoever has the answer can wait until the next session guards.
            let publish = &worker.publish;
            publish.send_modify(|status| status.state = SourceState::Starting);
        }
        if let Ok(Answer::Hold(Hold { line: Some(of), .. })) = &answer {
            tracing::info!(source = %worker.parts.source.name, of, "a legal hold was set or lifted");
            self.events += 1;
            self.show(worker);
        }
        let _ = reply.send(answer);
        match failed {
            Some(error) => Err(error.into()),
            None if is_erased => Err(Ended::Erased),
            None => Ok(()),
        }
    }
}
