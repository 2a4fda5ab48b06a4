//! What is asked, checked and answered; the transports only carry bytes.
//!
//! | asked for              | answered                                           |
//! |------------------------|----------------------------------------------------|
//! | signature              | when its round is closed and durable               |
//! | calendar chain         | at once                                            |
//! | configuration, receipt | at once, or beside the signature asked for with it |
//! | anything wrong         | at once, with a status code (spec service §5)      |

mod answer;
mod desk;
pub(crate) mod http;
mod lobby;
mod monitor;
mod past;
pub(crate) mod tcp;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitser_ksi::pdu::{
    AggregationAck, AggregatorConfig, ErrorPayload, ExtendRequestPayload, ExtendResponsePayload,
    Status,
};
use tokio::sync::watch;

pub(crate) use answer::{Answered, Caller, Tail, Ticket, Trees};
use past::Bounds;
pub(crate) use past::{Own, Parent, ParentError, Past};

use crate::clock::{Clock, Micros};
use crate::config::{Config, Limits};
use crate::metrics::{Metrics, Reason};
use crate::round::{Closed, Refused, Request, Rounds};
pub(crate) use crate::users::Member;
use crate::users::{Directory, UserError};
pub use http::tls::TlsError;

/// A round of the service's requests.
pub(crate) type ClosedRound = Closed<Ticket, Caller>;

pub(crate) struct Service {
    pub(crate) limits: Limits,
    pub(crate) users: Directory,
    pub(crate) metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    pub(crate) past: Past,
    /// Locked to put requests in or take rounds out; released before any await.
    intake: Mutex<Intake>,
}

/// Why requests came into no round.
struct NotTaken {
    status: Status,
    counted: Reason,
    reason: String,
}

enum Intake {
    Open(Rounds<Ticket, Caller>),
    /// Another node signs; why this one does not.
    #[cfg_attr(
        not(feature = "cluster"),
        expect(dead_code, reason = "a node alone signs")
    )]
    Following(String),
    /// Nothing is signed any more, for this reason.
    Closed(String),
}

impl Service {
    pub(crate) fn new(
        config: &Config,
        clock: Arc<dyn Clock>,
        rounds: Rounds<Ticket, Caller>,
        past: Past,
    ) -> Result<Self, UserError> {
        Ok(Self {
            limits: config.limits.clone(),
            users: Directory::new(&config.users)?,
            metrics: Arc::default(),
            clock,
            past,
            intake: Mutex::new(Intake::Open(rounds)),
        })
    }

    /// The time by which what has been read had arrived.
    pub(crate) fn now(&self) -> Micros {
        self.clock.now()
    }

    /// Puts requests into the round of their arrival. Those that are not taken
    /// stay in `requests`.
    fn accept(
        &self,
        caller: Caller,
        arrived_at: Micros,
        requests: &mut Vec<Request<Ticket>>,
    ) -> Result<(), NotTaken> {
        let refused = |status, counted, reason: &str| {
            Err(NotTaken {
                status,
                counted,
                reason: reason.to_owned(),
            })
        };
        match &mut *self.intake() {
            // The time as of now: no round is closed meanwhile.
            Intake::Open(rounds) => match rounds.accept(caller, arrived_at, self.now(), requests) {
                Ok(_) if requests.is_empty() => Ok(()),
                Ok(_) => refused(
                    Status::TOO_MANY_REQUESTS,
                    Reason::RoundFull,
                    "this round is full",
                ),
                Err(Refused::ClockBehind) => refused(
                    Status::INTERNAL_ERROR,
                    Reason::NotSigning,
                    "CLK-01: the clock is behind",
                ),
            },
            Intake::Following(reason) => {
                refused(Status::UPSTREAM_ERROR, Reason::NotSigning, reason)
            }
            Intake::Closed(reason) => refused(Status::INTERNAL_ERROR, Reason::NotSigning, reason),
        }
    }

    /// What answers a message to the extender.
    fn extension(
        &self,
        payloads: Vec<ExtendRequestPayload>,
    ) -> impl Future<Output = Vec<ExtendResponsePayload>> + Send + 'static {
        let too_many = payloads.len() > MAX_EXTENSIONS;
        if too_many {
            self.metrics
                .not_extended(Status::PAYLOAD_INVALID, Reason::TooMuch);
        }
        let bounds = Bounds {
            now: self.clock.now().ended(),
            max_requests: self.limits.requests_per_round as u64,
        };
        let metrics = Arc::clone(&self.metrics);
        let payloads = if too_many { Vec::new() } else { payloads };
        let counted = move |status| metrics.extended(status);
        let answers = self.past.extension(payloads, bounds, counted);
        async move {
            if too_many {
                let reason = "too many requests in one message";
                return vec![ExtendResponsePayload::Error(invalid(reason))];
            }
            answers.await
        }
    }

    fn aggregator_config(&self, user: &Member) -> AggregatorConfig {
        AggregatorConfig {
            max_level: Some(user.max_level.into()),
            algorithm: Some(user.algorithm()),
            period_ms: Some(1000),
            max_requests: Some(user.most_requests(self.limits.requests_per_round)),
            parents: Vec::new(),
        }
    }

    fn acknowledge(&self, request_time_us: u64, arrived_at: Micros) -> AggregationAck {
        AggregationAck {
            request_time_us,
            receipt_time_us: arrived_at.0,
            ack_time_us: self.clock.now().0,
            delay_ms: 0,
            period_ms: 1000,
            drift_ms: 0,
        }
    }

    /// Takes the rounds that have ended at `now`.
    pub(crate) fn close_rounds(&self, now: Micros) -> Vec<ClosedRound> {
        match &mut *self.intake() {
            Intake::Open(rounds) => rounds.close(now),
            Intake::Following(_) | Intake::Closed(_) => Vec::new(),
        }
    }

    /// Whether requests are taken.
    pub(crate) fn is_signing(&self) -> bool {
        matches!(&*self.intake(), Intake::Open(_))
    }

    /// Requests that wait for their round.
    pub(crate) fn waiting(&self) -> usize {
        match &*self.intake() {
            Intake::Open(rounds) => rounds.waiting(),
            Intake::Following(_) | Intake::Closed(_) => 0,
        }
    }

    /// Signs what belongs to the seconds after `closed`.
    #[cfg(feature = "cluster")]
    pub(crate) fn open(&self, closed: pitser_ksi::time::Second) {
        let rounds = Rounds::after(closed, self.limits.requests_per_round);
        *self.intake() = Intake::Open(rounds);
    }

    /// Signs nothing for the time being; hands back what waits, to be refused.
    #[cfg(feature = "cluster")]
    pub(crate) fn follow(&self, reason: String) -> Vec<ClosedRound> {
        self.stop_signing(Intake::Following(reason))
    }

    /// Signs nothing more; hands back what waits, to be refused.
    pub(crate) fn close(&self, reason: String) -> Vec<ClosedRound> {
        self.stop_signing(Intake::Closed(reason))
    }

    fn stop_signing(&self, closed: Intake) -> Vec<ClosedRound> {
        let abandoned = match std::mem::replace(&mut *self.intake(), closed) {
            Intake::Open(mut rounds) => rounds.abandon(),
            Intake::Following(_) | Intake::Closed(_) => Vec::new(),
        };
        let requests = abandoned.iter().map(|round| round.requests.len()).sum();
        self.metrics.lost(requests);
        abandoned
    }

    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(reason: &str) -> ErrorPayload {
    ErrorPayload {
        status: Status::PAYLOAD_INVALID,
        message: Some(reason.to_owned()),
    }
}

/// Completes when `stop` turns true, or can no longer do so.
pub(crate) async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Calendar chains asked for in one message; the answer must fit in one.
const MAX_EXTENSIONS: usize = 32;
