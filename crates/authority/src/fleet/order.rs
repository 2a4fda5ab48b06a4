//! One log of several nodes: they have one key, so they must agree on what it says.
//!
//! Registrations are numbered, and somebody outside says which one is number n. A node
//! judges a registration by those that it has, brings what follows from it as the next
//! one, takes what the others brought meanwhile, and judges again. Whatever it signs
//! begins what the others sign.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::Notify;

use super::{Fleet, FleetError};

/// Who decides the order of registrations when several nodes are one authority. Every
/// call blocks, and says in words why it failed.
pub(crate) trait Order: Send + Sync {
    /// Events from number `from` on, in order; not always all, and none if there are
    /// none.
    fn since(&self, from: u64) -> Result<Vec<Value>, String>;

    /// Makes `event` number `at`, unless there is one, or the one before it is not
    /// `after`; whether it is number `at` now. Kept by all once this is `Ok`.
    fn append(&self, at: u64, after: Option<&Value>, event: &Value) -> Result<bool, String>;
}

/// The order, as far as this node is in touch with whoever decides it.
#[derive(Default)]
pub(super) struct Shared {
    /// Locked for as long as it is asked, and before [`Fleet::inner`], never while
    /// that is locked. `None`: not in touch.
    order: Mutex<Option<Arc<dyn Order>>>,
    /// There may be something to take from it, or it is to be asked again.
    bell: Notify,
}

/// The right to ask: one registration of a node at a time, so that it competes with
/// other nodes alone.
pub(super) type Turn<'a> = MutexGuard<'a, Option<Arc<dyn Order>>>;

impl Shared {
    pub(super) fn turn(&self) -> Turn<'_> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `event` as number `at`, and takes whatever was brought by then. Whether
    /// it is this one that is number `at`, the ledger says afterwards.
    pub(super) fn propose(
        &self,
        fleet: &Fleet,
        turn: &mut Turn<'_>,
        (at, after): (u64, Option<&Value>),
        event: &Value,
    ) -> Result<bool, FleetError> {
        let Some(order) = turn.clone() else {
            return Err(away("this node is not in touch with it"));
        };
        let is_taken = order.append(at, after, event).map_err(away);
        let outcome = is_taken.and_then(|is_taken| {
            fleet.catch_up(&*order)?;
            Ok(is_taken)
        });
        if outcome.is_err() {
            // Others who wait for their turn do not wait for this too.
            **turn = None;
            self.bell.notify_one();
        }
        outcome
    }
}

impl Fleet {
    /// Takes what is not here yet, and signs it.
    fn catch_up(&self, order: &dyn Order) -> Result<(), FleetError> {
        loop {
            let (count, newest) = {
                let inner = self.inner();
                (inner.events, inner.newest.clone())
            };
            // The newest one that is here comes again, for comparison.
            let known = count.saturating_sub(1);
            let mut events = order.since(known).map_err(away)?.into_iter();
            if let Some(ours) = newest {
                match events.next() {
                    Some(theirs) if theirs == ours => {}
                    Some(_) => return Err(self.apart(known)),
                    None => return Err(away("it lacks registrations that this node has")),
                }
            }
            if events.len() == 0 {
                return Ok(());
            }
            let mut inner = self.inner();
            for event in events {
                self.keep(&mut inner, &event)?;
            }
            self.sign(&mut inner)?;
        }
    }

    fn apart(&self, number: u64) -> FleetError {
        FleetError::Apart {
            dir: self.dir.clone(),
            number,
        }
    }
}

#[cfg(feature = "cluster")]
impl Fleet {
    /// Says that there may be something to take.
    pub(crate) fn ring(&self) {
        if let Some(shared) = &self.shared {
            shared.bell.notify_one();
        }
    }

    /// Until [`Fleet::ring`] was called since this returned last, or a registration
    /// failed.
    pub(crate) async fn rung(&self) {
        match &self.shared {
            Some(shared) => shared.bell.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Takes what other nodes brought; before that, the first time and after a failure,
    /// sees that all nodes have one log. After an error this node registers nothing.
    /// Blocks.
    ///
    /// # Errors
    /// [`FleetError`]; [`FleetError::passes`] says whether another attempt may help.
    pub(crate) fn follow(&self, order: &Arc<dyn Order>) -> Result<(), FleetError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let mut turn = shared.turn();
        let outcome = match turn.take() {
            Some(_) => self.catch_up(&**order),
            None => self.join(&**order),
        };
        if outcome.is_ok() {
            *turn = Some(Arc::clone(order));
        }
        outcome
    }

    /// Registers nothing from now on. Blocks.
    pub(crate) fn leave(&self) {
        if let Some(shared) = &self.shared {
            *shared.turn() = None;
        }
    }

    /// Compares all that is here, brings what the others lack, and takes the rest.
    fn join(&self, order: &dyn Order) -> Result<(), FleetError> {
        let ours = self.inner().registrations.events()?;
        let mut common = 0;
        while common < ours.len() {
            let theirs = order.since(common as u64).map_err(away)?;
            if theirs.is_empty() {
                break;
            }
            for (ours, theirs) in ours[common..].iter().zip(&theirs) {
                if ours != theirs {
                    return Err(self.apart(common as u64));
                }
                common += 1;
            }
        }
        // Those of a founder, or of a node whose etcd was restored from an old snapshot.
        for (at, event) in ours.iter().enumerate().skip(common) {
            let after = at.checked_sub(1).map(|before| &ours[before]);
            if !order.append(at as u64, after, event).map_err(away)? {
                return Err(away("another node registers just now"));
            }
        }
        self.catch_up(order)
    }
}

impl FleetError {
    /// Whether nothing is wrong with either log, and another attempt may help.
    #[cfg(feature = "cluster")]
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Io { .. })
    }
}

pub(super) fn away(reason: impl Into<String>) -> FleetError {
    FleetError::Away {
        reason: reason.into(),
    }
}

/// How often other nodes may come first.
pub(super) const ATTEMPTS: usize = 16;
