//! The round loop: wakes at each second's boundary, closes what has ended, makes
//! it durable, then answers. Nothing is answered that is not in the calendar.

use std::sync::Arc;

use pitser_ksi::error::EncodeError;
use pitser_ksi::hash::Imprint;
use pitser_ksi::pdu::Status;
use pitser_ksi::pki::{self, SignError, Signer};
use pitser_ksi::publication::{AuthenticationRecord, PublicationData, SignatureData};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Writer;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::beat::{Beat, Woken};
use crate::calendar::{CalendarError, zero_leaf};
use crate::identity::{Identity, IdentityError};
use crate::ledger::{Ledger, Tenure};
use crate::log::Bell;
use crate::pace::ClockFault;
use crate::publications::Publisher;
use crate::running::RoundReport;
use crate::service::{Answered, ClosedRound, Service, Tail, Trees, stopping};

pub(crate) struct Engine {
    pub(crate) service: Arc<Service>,
    pub(crate) beat: Beat,
    pub(crate) press: Press,
    /// The newest second that is closed.
    pub(crate) closed: Second,
    /// Until when this engine may write.
    pub(crate) tenure: Tenure,
    pub(crate) publisher: Publisher,
    /// When the schedule asks for the next publication, if ever.
    pub(crate) publish_at: Option<Second>,
    pub(crate) reports: watch::Sender<RoundReport>,
    pub(crate) stop: watch::Receiver<bool>,
    /// Not alone: with whom it takes turns.
    #[cfg(feature = "cluster")]
    pub(crate) turns: Option<crate::cluster::Turns>,
}

/// Why rounds have ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stopped {
    /// The clock cannot be believed.
    #[error(transparent)]
    Clock(#[from] ClockFault),
    /// The calendar could not be written; what it holds now is not known.
    #[error("{0}; start again to find out what was stored")]
    Calendar(#[from] CalendarError),
    /// Another node of the cluster writes the seconds now, or nobody does.
    #[error("{0}")]
    Superseded(String),
    /// This node can take part in its cluster no more.
    #[cfg(feature = "cluster")]
    #[error("this node left the cluster: {0}")]
    Cluster(#[from] Arc<crate::cluster::ClusterError>),
    /// The runtime ended, or a task failed.
    #[error("rounds were interrupted by the end of the program")]
    Interrupted,
}

impl Stopped {
    /// What clients are told.
    fn status(&self) -> Status {
        match self {
            Self::Superseded(_) => Status::UPSTREAM_ERROR,
            _ => Status::INTERNAL_ERROR,
        }
    }
}

impl Engine {
    /// Runs until told to stop, then closes the last round; or until a fault.
    pub(crate) async fn run(mut self) -> Result<(), Stopped> {
        let outcome = self.all_rounds().await;
        let reason = match &outcome {
            Ok(()) => "the service is shutting down".to_owned(),
            Err(fault) => fault.to_string(),
        };
        // From here on no request is accepted; those that wait are told.
        let waiting = self.service.close(reason.clone());
        refuse_all(waiting, Status::INTERNAL_ERROR, &reason);
        outcome
    }

    async fn all_rounds(&mut self) -> Result<(), Stopped> {
        #[cfg(feature = "cluster")]
        if let Some(turns) = self.turns.take() {
            return self.take_turns(&turns).await;
        }
        self.rounds().await
    }

    /// As long as this engine may write.
    pub(crate) async fn rounds(&mut self) -> Result<(), Stopped> {
        loop {
            let stopped = *self.stop.borrow();
            if stopped && self.service.waiting() == 0 {
                return Ok(());
            }
            let (stop, tenure) = (&mut self.stop, &mut self.tenure);
            let interruption = async {
                tokio::select! {
                    // With nothing to answer there is no boundary to wait for.
                    () = stopping(stop), if !stopped => Ok(()),
                    () = tenure.over() => {
                        Err(Stopped::Superseded("this node leads no more".to_owned()))
                    }
                }
            };
            let now = match self.beat.wait(self.closed, interruption).await? {
                Woken::Ended(now) => now,
                Woken::Early => continue,
                Woken::Interrupted(interrupted) => {
                    interrupted?;
                    continue;
                }
            };
            let mut closed = self.service.close_rounds(now).into_iter();
            while let Some(round) = closed.next() {
                if let Err(e) = self.seal(round).await {
                    refuse_all(closed.collect(), e.status(), &e.to_string());
                    return Err(e);
                }
            }
            self.fill(now.ended()).await?;
            self.publish_if_due().await;
        }
    }

    /// Makes one round durable and answers its requests.
    async fn seal(&mut self, round: ClosedRound) -> Result<(), Stopped> {
        let (second, press) = (round.second, self.press.clone());
        let (asked, begun) = (round.requests.len(), Instant::now());
        let requests = on_disk(move || press.seal(round)).await??;
        self.service.metrics.round(asked, requests, begun.elapsed());
        self.report(second, requests);
        Ok(())
    }

    /// Makes the seconds up to `until` durable that had no requests.
    async fn fill(&mut self, until: Second) -> Result<(), Stopped> {
        if until > self.closed {
            let press = self.press.clone();
            on_disk(move || press.append(until, zero_leaf())).await??;
            self.report(until, 0);
        }
        Ok(())
    }

    pub(crate) fn report(&mut self, second: Second, requests: usize) {
        self.closed = second;
        self.reports.send_replace(RoundReport { second, requests });
    }

    /// Publishes when the schedule asks for it. A failure is logged and tried again
    /// a minute later: signing goes on without publications.
    async fn publish_if_due(&mut self) {
        if self.publish_at.is_none_or(|due| self.closed < due) {
            return;
        }
        if self.publisher.publications.are_elsewhere() {
            self.publish_at = self.ask_for_publication().await;
            return;
        }
        let (publisher, now) = (self.publisher.clone(), self.closed);
        let failed = match on_disk(move || publisher.publish(now)).await {
            Ok(Ok(_)) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        self.publish_at = match failed {
            None => self.publisher.schedule.after(self.closed),
            Some(error) => {
                tracing::error!(error, "publishing failed; it is tried again in a minute");
                Some(self.closed.plus(PUBLISH_AGAIN_S))
            }
        };
    }

    /// Tells the log what is due, where the key is elsewhere; returns when to look
    /// again.
    async fn ask_for_publication(&self) -> Option<Second> {
        let publisher = self.publisher.clone();
        match on_disk(move || publisher.due()).await {
            Ok(Ok(Some(due))) => tracing::warn!(
                second = %due.data.time, code = due.data.to_code(),
                "a publication is due: carry its code to where the publications key is, and hand in \
                 the file that is composed there"
            ),
            Ok(Ok(None)) => {}
            Ok(Err(e)) => tracing::error!(error = %e, "what is due could not be looked up"),
            Err(e) => tracing::error!(error = %e, "what is due could not be looked up"),
        }
        let next = self.publisher.schedule.after(self.closed);
        next.map(|next| next.min(self.closed.plus(ASK_AGAIN_S)))
    }
}

/// Turns closed rounds into answers, off the runtime's threads.
#[derive(Clone)]
pub(crate) struct Press {
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) machine_id: Arc<str>,
    pub(crate) trees: Arc<Trees>,
    pub(crate) bell: Bell,
}

impl Press {
    /// Returns how many requests were signed. Every request has been answered.
    fn seal(&self, round: ClosedRound) -> Result<usize, Stopped> {
        let (second, count) = (round.second, round.requests.len());
        let tree = match round.tree(self.trees.take(), &self.machine_id) {
            Ok(tree) => tree,
            // This round is lost, the calendar is sound: tell its callers, go on.
            Err(full) => {
                tracing::error!(%second, error = %full, "a round could not be built");
                Answered::refuse(round, Status::INTERNAL_ERROR, &full.to_string());
                self.append(second, zero_leaf())?;
                return Ok(0);
            }
        };
        if let Err(e) = self.append(second, tree.root()) {
            Answered::refuse(round, e.status(), &e.to_string());
            return Err(e);
        }
        match self.calendar_part(second) {
            Ok(bytes) => {
                let index = Vec::new();
                let tail = Tail {
                    second,
                    index,
                    bytes,
                };
                Answered::sign(round, tree, tail, &self.trees);
                Ok(count)
            }
            // The root is stored, so the round cannot be done again.
            Err(e) => {
                tracing::error!(%second, error = %e, "a round could not be signed");
                Answered::refuse(round, Status::INTERNAL_ERROR, &e.to_string());
                Ok(0)
            }
        }
    }

    fn append(&self, second: Second, root: Imprint) -> Result<(), Stopped> {
        self.ledger.append(second, root)?;
        self.bell.ring();
        Ok(())
    }

    /// The calendar chain of `second` to itself, and the authentication of its
    /// root: the same for all requests of a round.
    fn calendar_part(&self, second: Second) -> Result<Vec<u8>, PartError> {
        self.identity.check_valid(second)?;
        let chain = self.ledger.reader().chain(second, second)?;
        let data = PublicationData {
            time: second,
            imprint: chain.output(),
        };
        let value = self
            .identity
            .signer
            .sign_sha256_rsa(&AuthenticationRecord::message(&data))?;
        let signature = SignatureData {
            oid: pki::SHA256_WITH_RSA.to_owned(),
            value,
            certificate_id: self.identity.certificate.id().to_vec(),
            repository: None,
        };
        let mut writer = Writer::new();
        chain.write(&mut writer);
        AuthenticationRecord::new(data, signature).write(&mut writer);
        Ok(writer.finish()?)
    }
}

/// Why a root that is in the calendar could not be signed.
#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Calendar(#[from] CalendarError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

pub(crate) fn refuse_all(rounds: Vec<ClosedRound>, status: Status, reason: &str) {
    for round in rounds {
        Answered::refuse(round, status, reason);
    }
}

/// Runs what waits for the disk, or computes long.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Stopped::Interrupted)
}

/// How often the log says that a publication is due.
const ASK_AGAIN_S: u64 = 3600;
/// How long after a publication that failed the next is tried.
const PUBLISH_AGAIN_S: u64 = 60;
