//! What ends a session again and again, and will not pass by itself.
//!
//! One transaction that the server cannot send, however often it is asked, is passed over:
//! a gap, and the scan says what it changed. For whatever else keeps a source from being
//! captured there is a finding, so that nobody has to read the log to learn of it.

use super::{Ended, InitError, Session, StartError, Worker};
use pitser_capture::postgres::PgError;
use pitser_capture::{Position, SourceError};
use pitser_evidence::Code;
use pitser_monitor::Finding;

/// What guarding failed for, and how often in a row.
pub(super) struct Failed {
    /// In words without a value.
    text: String,
    /// The one transaction that cannot be told.
    transaction: Option<Position>,
    times: u32,
    is_told: bool,
}

/// Times in a row that something fails in the same way before it is believed that it
/// always will.
const CERTAIN: u32 = 3;

impl Session {
    /// Looks at what a session ended for. Unless `is_new`, it failed soon after it began.
    pub(super) fn weigh(&mut self, worker: &mut Worker, ended: &Ended, is_new: bool) {
        let Ended::Failed(failed @ StartError::Database(error)) = ended else {
            return;
        };
        if failed.is_passing() || error.is_busy() {
            return;
        }
        let (text, transaction) = (words(error), error.unsendable());
        // Before one transaction there may be much to be told.
        let is_again = transaction.is_some() || !is_new;
        let before = worker.failed.take();
        let mut failed = match before.filter(|it| is_again && it.text == text) {
            Some(before) => before,
            None => Failed {
                text,
                transaction,
                times: 0,
                is_told: false,
            },
        };
        failed.times = failed.times.saturating_add(1);
        if failed.times >= CERTAIN && failed.transaction.is_none() && !failed.is_told {
            match self.tell_failed(worker, &failed.text) {
                Ok(()) => failed.is_told = true,
                Err(_) => {
                    let source = &worker.parts.source.name;
                    tracing::error!(source, "that it fails cannot be written into the trail");
                }
            }
        }
        worker.failed = Some(failed);
    }

    fn tell_failed(&mut self, worker: &Worker, text: &str) -> Result<(), Ended> {
        let text = format!(
            "nothing is captured any more, and the database keeps what is changed meanwhile: {text}. It goes on by \
             itself once that is mended"
        );
        let finding = Finding {
            about: self.trail.state().next_seq().checked_sub(1),
            ..Finding::general(Code::CaptureWeakened, text)
        };
        self.finding(worker, finding)?;
        self.trail.commit()?;
        self.show(worker);
        Ok(())
    }

    /// Has the source pass over a transaction that kept earlier sessions from going on.
    pub(super) fn pass_over(&mut self, worker: &Worker) {
        if let Some(failed) = &worker.failed
            && failed.times >= CERTAIN
            && let Some(commit) = failed.transaction
        {
            let why = format!(
                "a transaction is missing, and was passed over after {} attempts: {}. What was committed after it is \
                 told. The scan says which rows it changed",
                failed.times, failed.text
            );
            self.source.leave_out(commit, why);
        }
    }
}

impl StartError {
    /// What it is, for logs and whoever asks: without the server's words where these may hold
    /// a value.
    pub fn words(&self) -> String {
        match self {
            Self::Database(error) | Self::Init(InitError::Database(error)) => words(error),
            other => other.to_string(),
        }
    }
}

/// What went wrong, without the server's words where these may hold a value.
pub(super) fn words(error: &SourceError) -> String {
    match error {
        SourceError::Postgres(PgError::Server { code, .. }) if code.starts_with("22") => {
            format!("PostgreSQL cannot say what it was asked for (SQLSTATE {code}): see its log")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Kind, Source, Tuning};
    use crate::runtime::Parts;
    use std::sync::Arc;

    fn refused(code: &str) -> SourceError {
        PgError::Server {
            code: code.to_owned(),
            message: "invalid input syntax for type date: \"Jane Doe\"".to_owned(),
        }
        .into()
    }

    #[test]
    fn a_value_that_the_server_repeats_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let parts = || Parts {
            source: Source::new("h", Kind::Postgres, "postgres://127.0.0.1:1/h", &["*"]),
            tuning: Tuning::new("test.example", dir.path()),
            client: None,
            witnesses: Vec::new(),
            fleet: None,
            clock: Arc::new(|| 1),
        };
        let errors: [fn(SourceError) -> StartError; 2] =
            [StartError::Database, |error| InitError::from(error).into()];
        for error in errors {
            let (mut worker, handle) = Worker::new(parts(), |_, _| None).unwrap();
            let told = |worker: &mut Worker, code| {
                worker.interrupted(&error(refused(code)));
                handle.status().trouble.unwrap()
            };
            let trouble = told(&mut worker, "22007");
            let why = Ended::Failed(error(refused("22007"))).why();
            for text in [trouble, why] {
                assert!(text.contains("22007") && !text.contains("Jane"), "{text}");
            }
            let trouble = told(&mut worker, "XX000");
            assert!(trouble.contains("invalid input syntax"), "{trouble}");
        }
    }
}
