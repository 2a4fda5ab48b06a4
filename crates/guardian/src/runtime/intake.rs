//! Audit events on their way to the guardian's thread.

use super::{Command, Receipt, SubmitError};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::{Semaphore, oneshot};

/// Events that the thread has before it, at most. It may be busy with a baseline for hours,
/// each may be a megabyte, and whoever sent it may have gone.
const PLACES: usize = 32;

/// Takes events, and has them wait with their senders if there are many.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    places: Arc<Semaphore>,
    commands: Sender<Command>,
}

impl Intake {
    pub(super) fn new(commands: Sender<Command>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            commands,
        }
    }

    /// What became of an event; `None` if the thread has stopped.
    pub(super) async fn submit(&self, raw: Vec<u8>) -> Option<Result<Receipt, SubmitError>> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit { raw, reply, place };
        self.commands.send(command).ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::sync::mpsc::channel;
    use std::task::Poll;

    #[tokio::test]
    async fn who_goes_leaves_no_more_events_than_there_are_places() {
        let (commands, inbox) = channel();
        let intake = Intake::new(commands);
        let has_to_wait = async || {
            let mut sent = pin!(intake.submit(vec![]));
            poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx).is_pending())).await
        };
        for _ in 0..2 * PLACES {
            assert!(has_to_wait().await);
        }
        let left: Vec<_> = inbox.try_iter().collect();
        assert_eq!(left.len(), PLACES);
        assert!(
            left.iter().all(
                |command| matches!(command, Command::Submit { reply, .. } if reply.is_closed())
            )
        );
        // Once the thread has looked at them there is room again.
        drop(left);
        assert!(has_to_wait().await);
        assert_eq!(inbox.try_iter().count(), 1);
    }
}
