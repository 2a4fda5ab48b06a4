//! What is asked, checked and answered; the transports only carry bytes.
//!
//! | asked for              | answered                                           |
//! |------------------------|----------------------------------------------------|
//! | signature              | when its round is closed and durable               |
//! | calendar chain         | at once                                            |
//! | configuration, receipt | at once, or beside the signature asked for with it |
//! | anything wrong         | at once, with a status code (spec service §5)      |

pub(crate) mod http;
pub(crate) mod tcp;
mod ticket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pitser_ksi::hash::Algorithm;
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
use crate::config::{Config, Limits, MAX_LEVEL, Secret, User};
use crate::publications::Publications;
use crate::round::{Closed, Refused, Request, Rounds};
use ticket::ReplyTo;
pub(crate) use ticket::Ticket;

/// The place kept for one answer. Dropping it unanswered frees it.
pub(crate) type Slot = mpsc::OwnedPermit<Vec<u8>>;

pub(crate) struct Service {
    pub(crate) limits: Limits,
    users: HashMap<String, Arc<Member>>,
    clock: Arc<dyn Clock>,
    calendar: CalendarReader,
    publications: Arc<Publications>,
    /// Locked to put requests in or take rounds out; released before any await.
    intake: Mutex<Intake>,
}

/// A user who may ask.
pub(crate) struct Member {
    /// Shared with every request of a round.
    login: Arc<str>,
    key: Secret,
    max_level: u8,
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
            users: check_users(&config.users)?,
            clock,
            calendar,
            publications,
            intake: Mutex::new(Intake::Open(rounds)),
        })
    }

    /// Answers one message, now or when its round closes.
    pub(crate) fn handle(&self, frame: &[u8], slot: Slot) {
        match TlvHeader::read(frame).map(|header| header.tag) {
            Some(0x0220 | 0x0200) => self.aggregate(frame, slot),
            Some(0x0320 | 0x0300) => self.extend(frame, slot),
            _ => self.refuse_garbage(slot),
        }
    }

    /// Answers bytes that are no message.
    pub(crate) fn refuse_garbage(&self, slot: Slot) {
        ticket::refuse_garbage(slot);
    }

    fn aggregate(&self, frame: &[u8], slot: Slot) {
        let arrived_at = self.clock.now();
        let received = AggregationRequest::decode(frame);
        let error = AggregationResponsePayload::Error;
        let Some((payloads, reply_to)) = self.authenticate(received, slot, error) else {
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
        let algorithm = request.input.algorithm();
        if !algorithm.is_trusted() {
            let reason = format!("{algorithm} is no longer secure enough to be signed");
            return ticket.refuse(Status::PAYLOAD_INVALID, &reason);
        }
        if request.level > user.max_level {
            let reason = format!("level {} is above {}", request.level, user.max_level);
            return ticket.refuse(Status::REQUEST_TOO_LARGE, &reason);
        }
        let request = Request {
            user: Arc::clone(&user.login),
            input: request.input,
            level: request.level,
            arrived_at,
            ticket,
        };
        let (ticket, status, reason) = match &mut *self.intake() {
            Intake::Open(rounds) => match rounds.accept(request) {
                Ok(_) => return,
                Err(Refused::RoundFull(ticket)) => (
                    ticket,
                    Status::TOO_MANY_REQUESTS,
                    "this round is full".to_owned(),
                ),
                Err(Refused::ClockBehind(ticket)) => (
                    ticket,
                    Status::INTERNAL_ERROR,
                    "CLK-01: the clock is behind".to_owned(),
                ),
            },
            Intake::Closed(reason) => (request.ticket, Status::INTERNAL_ERROR, reason.clone()),
        };
        ticket.refuse(status, &reason);
    }

    fn extend(&self, frame: &[u8], slot: Slot) {
        let received = ExtendRequest::decode(frame);
        let error = ExtendResponsePayload::Error;
        let Some((payloads, reply_to)) = self.authenticate(received, slot, error) else {
            return;
        };
        let (calendar, now) = (self.calendar.clone(), self.clock.now().ended());
        let max_requests = self.limits.requests_per_round as u64;
        // The calendar may have to be read from a slow disk.
        tokio::task::spawn_blocking(move || {
            let answer = |payload| match payload {
                ExtendRequestPayload::Extend(query) => {
                    ExtendResponsePayload::Result(look_up(&calendar, &query, now))
                }
                ExtendRequestPayload::Config => ExtendResponsePayload::Config(ExtenderConfig {
                    max_requests: Some(max_requests),
                    parents: Vec::new(),
                    calendar_first: Some(calendar.genesis()),
                    calendar_last: calendar.head(),
                }),
            };
            if payloads.len() > MAX_EXTENSIONS {
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
    ) -> Option<(Vec<P>, ReplyTo)> {
        let stranger = |slot, status, reason: &str| {
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
        let user = self.users.get(received.login_id()).map(Arc::clone);
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
        match std::mem::replace(&mut *self.intake(), Intake::Closed(reason)) {
            Intake::Open(mut rounds) => rounds.abandon(),
            Intake::Closed(_) => Vec::new(),
        }
    }

    /// The newest publications file.
    pub(crate) fn publications_file(&self) -> Arc<[u8]> {
        self.publications.file()
    }

    /// One line for a monitor: `Err` if nothing is signed.
    pub(crate) fn health(&self) -> Result<String, String> {
        match &*self.intake() {
            Intake::Open(_) => Ok(match self.calendar.head() {
                Some(head) => format!("ok, newest second {head}\n"),
                None => "ok, no second yet\n".to_owned(),
            }),
            Intake::Closed(reason) => Err(format!("{reason}\n")),
        }
    }

    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the list of users cannot be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A user without a name.
    #[error("a user has an empty login; give every user one")]
    NoLogin,
    /// A user without a key: anybody could pass for them.
    #[error("user {login:?} has an empty key; give every user one")]
    NoKey {
        /// The login.
        login: String,
    },
    /// Two users with one name.
    #[error("user {login:?} is listed twice; remove one")]
    Twice {
        /// The login.
        login: String,
    },
    /// A level no client asks for.
    #[error("user {login:?} has max_level {max_level}, above {MAX_LEVEL}")]
    Level {
        /// The login.
        login: String,
        /// The configured level.
        max_level: u8,
    },
}

fn check_users(users: &[User]) -> Result<HashMap<String, Arc<Member>>, UserError> {
    let mut known = HashMap::new();
    for user in users {
        let login = user.login.clone();
        if login.is_empty() {
            return Err(UserError::NoLogin);
        }
        if user.key.expose().is_empty() {
            return Err(UserError::NoKey { login });
        }
        if user.max_level > MAX_LEVEL {
            return Err(UserError::Level {
                login,
                max_level: user.max_level,
            });
        }
        let member = Member {
            login: login.as_str().into(),
            key: user.key.clone(),
            max_level: user.max_level,
        };
        if known.insert(login.clone(), Arc::new(member)).is_some() {
            return Err(UserError::Twice { login });
        }
    }
    Ok(known)
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
