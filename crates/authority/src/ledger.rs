//! Where the roots of seconds are made durable: here, or by a cluster.

use std::sync::{Mutex, PoisonError};

use pitser_ksi::hash::Imprint;
use pitser_ksi::time::Second;
use tokio::sync::watch;

use crate::calendar::{Calendar, CalendarReader};
use crate::engine::Stopped;

/// Takes the seconds of an engine, one after the other.
pub(crate) trait Ledger: Send + Sync {
    /// Writes the root of second `at`; once `Ok`, it survives power loss, and
    /// [`Ledger::reader`] has it and every second before it.
    ///
    /// Seconds between the newest one and `at` become zero leaves. Blocks.
    ///
    /// # Errors
    /// [`Stopped::Superseded`] if others write now; anything else is a fault.
    fn append(&self, at: Second, root: Imprint) -> Result<(), Stopped>;

    /// The calendar that the seconds become part of.
    fn reader(&self) -> CalendarReader;
}

/// A calendar of one's own.
impl Ledger for Mutex<Calendar> {
    fn append(&self, at: Second, root: Imprint) -> Result<(), Stopped> {
        // The calendar refuses to go on after a failed write by itself, so a panic
        // while it was locked hides nothing.
        let mut calendar = self.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(calendar.append(at, root)?)
    }

    fn reader(&self) -> CalendarReader {
        let calendar = self.lock().unwrap_or_else(PoisonError::into_inner);
        calendar.reader()
    }
}

/// How long an engine may write.
pub(crate) struct Tenure(Option<watch::Receiver<bool>>);

impl Tenure {
    /// Nobody else writes.
    pub(crate) fn unlimited() -> Self {
        Self(None)
    }

    /// Until `over` turns true, or is dropped.
    #[cfg(feature = "cluster")]
    pub(crate) fn until(over: watch::Receiver<bool>) -> Self {
        Self(Some(over))
    }

    /// Completes when somebody else may write.
    pub(crate) async fn over(&mut self) {
        match &mut self.0 {
            Some(over) => _ = over.wait_for(|over| *over).await,
            None => std::future::pending().await,
        }
    }
}
