//! What is asked, checked and answered; the transports only carry bytes.
//!
//! | asked for              | answered                                           |
//! |------------------------|----------------------------------------------------|
//! | signature              | when its round is closed and durable               |
//! | calendar chain         | at once                                            |
//! | configuration, receipt | at once, or beside the signature asked for with it |
//! | anything wrong         | at once, with a status code (spec service §5)      |

pub(crate) mod http;
mod lobby;
mod monitor;
pub(crate) mod tcp;
mod ticket;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitser_ksi::pdu::{
    AggregationAck, AggregationRequest, AggregationRequestPayload, AggregationResponsePayload,
    AggregatorConfig, ErrorPayload, ExtendQuery, ExtendRequest, ExtendRequestPayload,
    ExtendResponsePayload, ExtendResult, ExtenderConfig, Payload, Received, SignRequest, Status,
    Version,
};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Header as TlvHeader;
use tokio::sync::{mpsc, watch};

use crate::calendar::{CalendarError, CalendarReader};
use crate::clock::{Clock, Micros};
use crate::config::{Config, Limits};
use crate::metrics::{Metrics, Reason};
use crate::publications::Publications;
use crate::round::{Closed, Refused, Request, Rounds};
pub(crate) use crate::users::Member;
use crate::users::{Directory, UserError};
pub use http::tls::TlsError;
use ticket::ReplyTo;
pub(crate) use ticket::Ticket;

/// The place kept for one answer. Dropping it unanswered frees it.
pub(crate) type Slot = mpsc::OwnedPermit<Vec<u8>>;

pub(crate) struct Service {
    pub(crate) limits: Limits,
    pub(crate) users: Directory,
    pub(crate) metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    calendar: CalendarReader,
    publications: Arc<Publications>,
    /// Locked to put requests in or take rounds out; released before any await.
    intake: Mutex<Intake>,
}

enum Intake {
    Open(Rounds<Ticket>),
    /// Nothing is signed any more, for this reason.
    Closed(String),
}

impl Service {
    pub(crate) fn new(
        config: &Config,
        clock: Arc<dyn Clock>,
        rounds: Rounds<Ticket>,
        calendar: CalendarReader,
        publications: Arc<Publications>,
    ) -> Result<Self, UserError> {
        Ok(Self {
            limits: config.limits.clone(),
            users: Directory::new(&config.users)?,
            metrics: Arc::default(),
            clock,
            calendar,
            publications,
            intake: Mutex::new(Intake::Open(rounds)),
        })
    }

    /// Answers one message, now or when its round closes.
    pub(crate) fn handle(&self, frame: &[u8], slot: Slot) {
        self.metrics.received(frame.len());
        match TlvHeader::read(frame).map(|header| header.tag) {
            Some(0x0220 | 0x0200) => self.aggregate(frame, slot),
            Some(0x0320 | 0x0300) => self.extend(frame, slot),
            _ => self.refuse_garbage(slot),
        }
    }

    /// Answers bytes that are no message.
    pub(crate) fn refuse_garbage(&self, slot: Slot) {
        self.metrics
            .not_signed(Status::REQUEST_INVALID, Reason::Malformed);
        ticket::refuse_garbage(slot);
    }

    fn aggregate(&self, frame: &[u8], slot: Slot) {
        let arrived_at = self.clock.now();
        let received = AggregationRequest::decode(frame);
        let error = AggregationResponsePayload::Error;
        let refused = Metrics::not_signed;
        let Some((payloads, reply_to)) = self.authenticate(received, slot, error, refused) else {
            return;
        };
        let (mut sign, mut beside) = (Vec::new(), Vec::new());
        for payload in payloads {
            match payload {
                AggregationRequestPayload::Sign(request) => sign.push(request),
                AggregationRequestPayload::Config => {
                    let config = self.aggregator_config(&reply_to.user);
                    beside.push(AggregationResponsePayload::Config(config));
                }
                AggregationRequestPayload::Ack { request_time_us } => {
                    let ack = self.acknowledge(request_time_us, arrived_at);
                    beside.push(AggregationResponsePayload::Ack(ack));
                }
            }
        }
        match sign.as_slice() {
            [] => reply_to.send(beside),
            [request] => self.sign(request, beside, arrived_at, reply_to),
            _ => {
                self.metrics
                    .not_signed(Status::PAYLOAD_INVALID, Reason::TooMuch);
                let reason = "one message may ask for one signature";
                reply_to.send(vec![error(invalid(reason))]);
            }
        }
    }

    fn sign(
        &self,
        request: &SignRequest,
        beside: Vec<AggregationResponsePayload>,
        arrived_at: Micros,
        reply_to: ReplyTo,
    ) {
        let user = Arc::clone(&reply_to.user);
        let ticket = Ticket {
            reply_to,
            request_id: request.request_id,
            beside,
        };
        if let Err(denied) = user.admit(request.level, request.input.algorithm(), arrived_at) {
            self.metrics.not_signed(denied.status(), denied.reason());
            return ticket.refuse(denied.status(), &denied.to_string());
        }
        let request = Request {
            user: Arc::clone(&user.login),
            input: request.input,
            level: request.level,
            arrived_at,
            ticket,
        };
        let (ticket, status, counted, reason) = match &mut *self.intake() {
            Intake::Open(rounds) => match rounds.accept(request) {
                Ok(_) => return,
                Err(Refused::RoundFull(ticket)) => (
                    ticket,
                    Status::TOO_MANY_REQUESTS,
                    Reason::RoundFull,
                    "this round is full".to_owned(),
                ),
                Err(Refused::ClockBehind(ticket)) => (
                    ticket,
                    Status::INTERNAL_ERROR,
                    Reason::NotSigning,
                    "CLK-01: the clock is behind".to_owned(),
                ),
            },
            Intake::Closed(reason) => (
                request.ticket,
                Status::INTERNAL_ERROR,
                Reason::NotSigning,
                reason.clone(),
            ),
        };
        user.give_back();
        self.metrics.not_signed(status, counted);
        ticket.refuse(status, &reason);
    }

    fn extend(&self, frame: &[u8], slot: Slot) {
        let received = ExtendRequest::decode(frame);
        let error = ExtendResponsePayload::Error;
        let refused = Metrics::not_extended;
        let Some((payloads, reply_to)) = self.authenticate(received, slot, error, refused) else {
            return;
        };
        let metrics = Arc::clone(&self.metrics);
        let (calendar, now) = (self.calendar.clone(), self.clock.now().ended());
        let max_requests = self.limits.requests_per_round as u64;
        // The calendar may have to be read from a slow disk.
        tokio::task::spawn_blocking(move || {
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
            if payloads.len() > MAX_EXTENSIONS {
                metrics.not_extended(Status::PAYLOAD_INVALID, Reason::TooMuch);
                reply_to.send(vec![error(invalid("too many requests in one message"))]);
            } else {
                reply_to.send(payloads.into_iter().map(answer).collect());
            }
        });
    }

    /// Finds out who sent a message and whether it is genuine. If it is not, it
    /// has been answered.
    fn authenticate<P, R: Payload>(
        &self,
        received: Result<Received<P>, pitser_ksi::DecodeError>,
        slot: Slot,
        error: impl FnOnce(ErrorPayload) -> R,
        refused: impl FnOnce(&Metrics, Status, Reason),
    ) -> Option<(Vec<P>, ReplyTo)> {
        let stranger = |slot, status, reason: &str| {
            let counted = match status {
                Status::AUTHENTICATION_FAILED => Reason::Authentication,
                _ => Reason::Malformed,
            };
            refused(&self.metrics, status, counted);
            ticket::refuse_stranger(slot, status, reason, error);
            None
        };
        let received = match received {
            Ok(received) => received,
            Err(e) => return stranger(slot, Status::REQUEST_INVALID, &e.to_string()),
        };
        if received.version != Version::V2 {
            let reason = "version 1 of the protocol is not spoken here; use version 2";
            return stranger(slot, Status::REQUEST_INVALID, reason);
        }
        // Somebody unknown costs as much time as a wrong key, and hears the same.
        let user = self.users.get(received.login_id());
        let key = user.as_ref().map_or(&[][..], |user| user.key.expose());
        let genuine = received.verify_mac(key);
        let algorithm = received
            .mac_algorithm()
            .filter(|algorithm| algorithm.is_trusted());
        match (user, received.pdu.header, algorithm) {
            (Some(user), Some(header), Some(algorithm)) if genuine => Some((
                received.pdu.payloads,
                ReplyTo {
                    user,
                    header,
                    algorithm,
                    slot,
                },
            )),
            _ => stranger(
                slot,
                Status::AUTHENTICATION_FAILED,
                "unknown user or wrong key",
            ),
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
    pub(crate) fn close_rounds(&self, now: Micros) -> Vec<Closed<Ticket>> {
        match &mut *self.intake() {
            Intake::Open(rounds) => rounds.close(now),
            Intake::Closed(_) => Vec::new(),
        }
    }

    /// Requests that wait for their round.
    pub(crate) fn waiting(&self) -> usize {
        match &*self.intake() {
            Intake::Open(rounds) => rounds.waiting(),
            Intake::Closed(_) => 0,
        }
    }

    /// Signs nothing more; hands back what waits, to be refused.
    pub(crate) fn close(&self, reason: String) -> Vec<Request<Ticket>> {
        let abandoned = match std::mem::replace(&mut *self.intake(), Intake::Closed(reason)) {
            Intake::Open(mut rounds) => rounds.abandon(),
            Intake::Closed(_) => Vec::new(),
        };
        self.metrics.lost(abandoned.len());
        abandoned
    }

    /// The newest publications file.
    pub(crate) fn publications_file(&self) -> Arc<[u8]> {
        self.publications.file()
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
