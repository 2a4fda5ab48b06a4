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
pub(crate) mod tcp;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationAck, AggregatorConfig, ErrorPayload, ExtendQuery, ExtendRequestPayload,
    ExtendResponsePayload, ExtendResult, ExtenderConfig, Status,
};
use pitser_ksi::time::Second;
use tokio::sync::watch;

pub(crate) use answer::{Answered, Caller, Tail, Ticket, Trees};

use crate::calendar::{CalendarError, CalendarReader};
use crate::clock::{Clock, Micros};
use crate::config::{Config, Limits};
use crate::log::Site;
use crate::metrics::{Metrics, Reason};
use crate::publications::Publisher;
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
    /// The calendar's log over HTTP.
    log: Site,
    clock: Arc<dyn Clock>,
    calendar: CalendarReader,
    publisher: Publisher,
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
        calendar: CalendarReader,
        publisher: Publisher,
        log: Site,
    ) -> Result<Self, UserError> {
        Ok(Self {
            limits: config.limits.clone(),
            users: Directory::new(&config.users)?,
            metrics: Arc::default(),
            log,
            clock,
            calendar,
            publisher,
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
            Intake::Open(rounds) => match rounds.accept(caller, arrived_at, requests) {
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

    /// What answers a message to the extender; it may wait for the disk.
    fn extension(
        &self,
        payloads: Vec<ExtendRequestPayload>,
    ) -> impl FnOnce() -> Vec<ExtendResponsePayload> + Send + 'static {
        let (calendar, now) = (self.calendar.clone(), self.clock.now().ended());
        let max_requests = self.limits.requests_per_round as u64;
        let metrics = Arc::clone(&self.metrics);
        move || {
            if payloads.len() > MAX_EXTENSIONS {
                metrics.not_extended(Status::PAYLOAD_INVALID, Reason::TooMuch);
                let reason = "too many requests in one message";
                return vec![ExtendResponsePayload::Error(invalid(reason))];
            }
            let answer = |payload| match payload {
                ExtendRequestPayload::Extend(query) => {
                    let found = look_up(&calendar, &query, now);
                    metrics.extended(found.status);
                    ExtendResponsePayload::Result(found)
                }
                ExtendRequestPayload::Config => ExtendResponsePayload::Config(ExtenderConfig {
                    max_requests: Some(max_requests),
                    parents: Vec::new(),
                    calendar_first: Some(calendar.genesis()),
                    calendar_last: calendar.head(),
                }),
            };
            payloads.into_iter().map(answer).collect()
        }
    }

    fn aggregator_config(&self, user: &Member) -> AggregatorConfig {
        AggregatorConfig {
            max_level: Some(user.max_level.into()),
            algorithm: Some(Algorithm::Sha256),
            period_ms: Some(1000),
            max_requests: Some(self.limits.requests_per_round as u64),
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

    /// Requests that wait for their round.
    pub(crate) fn waiting(&self) -> usize {
        match &*self.intake() {
            Intake::Open(rounds) => rounds.waiting(),
            Intake::Following(_) | Intake::Closed(_) => 0,
        }
    }

    /// Signs what belongs to the seconds after `closed`.
    #[cfg(feature = "cluster")]
    pub(crate) fn open(&self, closed: Second) {
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

    /// The newest publications file.
    pub(crate) fn publications_file(&self) -> Arc<[u8]> {
        self.publisher.publications.file()
    }

    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look_up(calendar: &CalendarReader, query: &ExtendQuery, now: Second) -> ExtendResult {
    let head = calendar.head();
    let found = match query.publication_time.or(head) {
        Some(to) => calendar.chain(query.aggregation_time, to),
        None => Err(CalendarError::Beyond {
            at: query.aggregation_time,
            head,
        }),
    };
    match found {
        Ok(chain) => ExtendResult {
            request_id: query.request_id,
            status: Status::OK,
            message: None,
            calendar_last: head,
            calendar: Some(chain),
        },
        Err(e) => ExtendResult {
            calendar_last: head,
            ..ExtendResult::failure(query.request_id, status_of(&e, now), e.to_string())
        },
    }
}

fn status_of(error: &CalendarError, now: Second) -> Status {
    match error {
        CalendarError::Backwards { .. } => Status::TIME_RANGE_INVALID,
        CalendarError::BeforeGenesis { .. } => Status::TIME_TOO_OLD,
        CalendarError::Beyond { at, .. } if *at > now => Status::TIME_IN_FUTURE,
        CalendarError::Beyond { .. } => Status::TIME_TOO_NEW,
        CalendarError::Corrupt { .. } => Status::DATABASE_CORRUPT,
        _ => Status::INTERNAL_ERROR,
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
