//! The round loop of a node: waits until it leads, and leads until it must not.

use std::sync::Arc;

use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::Status;
use pitser_ksi::time::Second;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::error::AppendError;
use super::node::{Cluster, Role, Term};
use crate::calendar::{CalendarError, CalendarReader};
use crate::engine::{Engine, Stopped, refuse_all};
use crate::ledger::{Ledger, Tenure};
use crate::pace::ClockFault;
use crate::service::stopping;

/// The seconds of one term.
struct TermLedger {
    cluster: Arc<Cluster>,
    term: Term,
    runtime: Handle,
}

impl Ledger for TermLedger {
    fn append(&self, at: Second, root: Imprint) -> Result<(), Stopped> {
        let written = self
            .runtime
            .block_on(self.cluster.append(self.term, at, root));
        written.map_err(|e| match e {
            AppendError::NotLeading | AppendError::Unknown { .. } => {
                Stopped::Superseded(e.to_string())
            }
            AppendError::WriteOnce { at, head } => CalendarError::WriteOnce { at, head }.into(),
            AppendError::Cluster(e) => Arc::new(e).into(),
        })
    }

    fn reader(&self) -> CalendarReader {
        self.cluster.reader()
    }
}

/// What an engine needs to take turns.
pub(crate) struct Turns {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) max_clock_jump: std::time::Duration,
    pub(crate) max_outage_s: u64,
}

impl Engine {
    /// Runs until told to stop, or until this node can take part no more.
    pub(crate) async fn take_turns(&mut self, turns: &Turns) -> Result<(), Stopped> {
        let cluster = &turns.cluster;
        let outcome = loop {
            let term = match self.until_leading(cluster).await {
                Ok(Some(term)) => term,
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
            };
            let ended = match self.begin(turns, term) {
                Ok(()) => self.rounds().await,
                Err(e) => Err(e.into()),
            };
            self.follow("this node has just lost the lead; ask the others");
            match ended {
                Err(Stopped::Superseded(_)) => {}
                // The others were ahead; this node waits for its clock to get there.
                Err(Stopped::Clock(ClockFault::BehindHead { .. })) => cluster.resign().await,
                Ok(()) => break Ok(()),
                Err(fault) => break Err(fault),
            }
        };
        // Or it would be elected again before it is gone.
        let reason = match &outcome {
            Ok(()) => "it is stopping".to_owned(),
            Err(fault) => fault.to_string(),
        };
        cluster.bar(reason).await;
        outcome
    }

    /// Refuses requests until this node leads. `None`: it is to stop.
    async fn until_leading(&mut self, cluster: &Cluster) -> Result<Option<Term>, Stopped> {
        let (mut role, mut heads) = (cluster.role(), cluster.heads());
        loop {
            let now = role.borrow_and_update().clone();
            match now {
                Role::Leading(term) => return Ok(Some(term)),
                Role::Failed(e) => return Err(e.into()),
                Role::Following {
                    leader: Some(leader),
                } => self.follow(&format!(
                    "node {leader:?} of this authority signs now; ask it, or all nodes at once"
                )),
                Role::Following { leader: None } => {
                    self.follow("no node of this authority leads at the moment; try again");
                }
            }
            tokio::select! {
                () = stopping(&mut self.stop) => return Ok(None),
                _ = role.changed() => {}
                _ = heads.changed() => {
                    let head = *heads.borrow_and_update();
                    self.press.bell.ring();
                    self.report(head, 0);
                }
            }
        }
    }

    fn begin(&mut self, turns: &Turns, term: Term) -> Result<(), ClockFault> {
        let cluster = &turns.cluster;
        let (max_jump, max_outage_s) = (turns.max_clock_jump, turns.max_outage_s);
        let now = self.beat.restart(term.head, max_jump, max_outage_s)?;
        self.closed = now.ended();
        self.press.ledger = Arc::new(TermLedger {
            cluster: Arc::clone(cluster),
            term,
            runtime: Handle::current(),
        });
        self.tenure = Tenure::until(end_of(cluster, term));
        // What the leader before this one did not come to publish is due now.
        let (_, published) = self.publisher.publications.summary();
        let since = published.map_or(self.closed, |data| data.time);
        self.publish_at = self.publisher.schedule.after(since);
        self.service.open(self.closed);
        Ok(())
    }

    fn follow(&self, reason: &str) {
        let waiting = self.service.follow(reason.to_owned());
        refuse_all(waiting, Status::UPSTREAM_ERROR, reason);
    }
}

/// Turns true when `term` is over.
fn end_of(cluster: &Cluster, term: Term) -> watch::Receiver<bool> {
    let mut role = cluster.role();
    let (over, is_over) = watch::channel(false);
    tokio::spawn(async move {
        let other = |role: &Role| !matches!(role, Role::Leading(now) if *now == term);
        tokio::select! {
            _ = role.wait_for(other) => { over.send_replace(true); }
            () = over.closed() => {}
        }
    });
    is_over
}
