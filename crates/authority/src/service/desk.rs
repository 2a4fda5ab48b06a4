//! One peer's messages: read, authenticated, and put into the round together.

use std::sync::Arc;

use pitser_ksi::error::DecodeError;
use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregationResponsePayload, ErrorPayload,
    ExtendRequest, ExtendResponsePayload, Header, Payload, Received, SignRequest, SignResult,
    Status, UsualRequest, Version,
};
use pitser_ksi::tlv::Header as TlvHeader;

use super::answer::{Caller, Outlet, Place, Ticket};
use super::{Member, Service, invalid};
use crate::clock::Micros;
use crate::metrics::{Metrics, Reason};
use crate::round::Request;

/// Takes the messages of one peer. What is to be signed is held back until
/// [`Desk::flush`]: many requests cost one visit to the round.
pub(crate) struct Desk<'s> {
    service: &'s Service,
    outlet: Outlet,
    /// Whose requests are held back.
    member: Option<Arc<Member>>,
    held: Vec<Request<Ticket>>,
}

/// Who asked what else, and how to answer: in the algorithm of the request.
struct ReplyTo {
    member: Arc<Member>,
    header: Header,
    algorithm: Algorithm,
    place: Place,
}

impl ReplyTo {
    fn send<P: Payload>(self, payloads: Vec<P>) {
        let (member, header) = (self.member, self.header);
        self.place
            .send_payloads(&member, header, self.algorithm, payloads);
    }
}

impl<'s> Desk<'s> {
    pub(super) fn new(service: &'s Service, outlet: Outlet) -> Self {
        Self {
            service,
            outlet,
            member: None,
            held: Vec::new(),
        }
    }

    /// Whether one more message could be answered at once, whatever it is, and
    /// those that are held back, too.
    pub(super) fn has_place(&self) -> bool {
        self.outlet.places() > self.held.len()
    }

    /// Waits for what [`Desk::has_place`] asks. Nothing may be held back.
    pub(super) async fn wait_for_place(&self) {
        self.outlet.wait_for_place().await;
    }

    /// Takes one message that had arrived at `arrived_at`. There must be a place.
    pub(super) fn take(&mut self, frame: &[u8], arrived_at: Micros) {
        if let Some(usual) = UsualRequest::read(frame) {
            return self.take_usual(&usual, arrived_at);
        }
        let Some(place) = self.outlet.place() else {
            return tracing::error!("a message was read that there is no place to answer");
        };
        match TlvHeader::read(frame).map(|header| header.tag) {
            Some(0x0220 | 0x0200) => self.aggregate(frame, place, arrived_at),
            Some(0x0320 | 0x0300) => self.extend(frame, place),
            _ => self.refuse_as_garbage(place),
        }
    }

    /// Answers bytes that are no message.
    pub(super) fn refuse_garbage(&self) {
        if let Some(place) = self.outlet.place() {
            self.refuse_as_garbage(place);
        }
    }

    fn refuse_as_garbage(&self, place: Place) {
        let metrics = &self.service.metrics;
        metrics.not_signed(Status::REQUEST_INVALID, Reason::Malformed);
        place.refuse_stranger(
            Status::REQUEST_INVALID,
            "this is not a message of the protocol",
            AggregationResponsePayload::Error,
        );
    }

    /// Puts what is held back into the round of `arrived_at`.
    pub(super) fn flush(&mut self, arrived_at: Micros) {
        let Some(member) = self.member.take().filter(|_| !self.held.is_empty()) else {
            return;
        };
        let caller = Caller {
            member: Arc::clone(&member),
            outlet: self.outlet.clone(),
        };
        let refused = self.service.accept(caller, arrived_at, &mut self.held);
        if let Err(not_taken) = refused {
            for request in std::mem::take(&mut self.held) {
                member.give_back();
                let (status, counted) = (not_taken.status, not_taken.counted);
                self.refuse(&member, request.ticket, status, counted, &not_taken.reason);
            }
        }
    }

    fn take_usual(&mut self, usual: &UsualRequest<'_>, arrived_at: Micros) {
        let found = self.service.users.get(usual.login_id);
        let known = found.as_deref().unwrap_or(self.service.users.stranger());
        let genuine = usual.verify_mac(&known.mac_key);
        match found.filter(|_| genuine && usual.mac_algorithm().is_trusted()) {
            Some(member) => {
                let ticket = Ticket {
                    request_id: usual.request_id,
                    instance_id: usual.instance_id,
                    message_id: usual.message_id,
                    algorithm: usual.mac_algorithm(),
                    beside: None,
                };
                let request = Request {
                    input: usual.input,
                    level: usual.level,
                    ticket,
                };
                self.hold(&member, request, arrived_at);
            }
            None => self.refuse_stranger(),
        }
    }

    /// Holds back what may be signed, and refuses what may not.
    fn hold(&mut self, member: &Arc<Member>, request: Request<Ticket>, arrived_at: Micros) {
        let admitted = member.admit(request.level, request.input.algorithm(), arrived_at);
        if let Err(denied) = admitted {
            let (status, counted) = (denied.status(), denied.reason());
            return self.refuse(member, request.ticket, status, counted, &denied.to_string());
        }
        if !self
            .member
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, member))
        {
            self.flush(arrived_at);
            self.member = Some(Arc::clone(member));
        }
        self.held.push(request);
    }

    fn refuse(
        &self,
        member: &Member,
        ticket: Ticket,
        status: Status,
        counted: Reason,
        reason: &str,
    ) {
        self.service.metrics.not_signed(status, counted);
        let Some(place) = self.outlet.place() else {
            return tracing::error!("a request was read that there is no place to refuse");
        };
        let result = SignResult::failure(ticket.request_id, status, reason);
        let mut payloads = vec![AggregationResponsePayload::Result(result)];
        payloads.extend(ticket.beside.into_iter().flatten());
        let header = Header {
            login_id: member.login.to_string(),
            instance_id: ticket.instance_id,
            message_id: ticket.message_id,
        };
        place.send_payloads(member, header, ticket.algorithm, payloads);
    }

    fn refuse_stranger(&self) {
        if let Some(place) = self.outlet.place() {
            let (status, reason) = STRANGER;
            self.service
                .metrics
                .not_signed(status, Reason::Authentication);
            place.refuse_stranger(status, reason, AggregationResponsePayload::Error);
        }
    }

    fn aggregate(&mut self, frame: &[u8], place: Place, arrived_at: Micros) {
        let received = AggregationRequest::decode(frame);
        let error = AggregationResponsePayload::Error;
        let refused = Metrics::not_signed;
        let Some((payloads, reply_to)) = self.authenticate(received, place, error, refused) else {
            return;
        };
        let (mut sign, mut beside) = (Vec::new(), Vec::new());
        for payload in payloads {
            match payload {
                AggregationRequestPayload::Sign(request) => sign.push(request),
                AggregationRequestPayload::Config => {
                    let config = self.service.aggregator_config(&reply_to.member);
                    beside.push(AggregationResponsePayload::Config(config));
                }
                AggregationRequestPayload::Ack { request_time_us } => {
                    let ack = self.service.acknowledge(request_time_us, arrived_at);
                    beside.push(AggregationResponsePayload::Ack(ack));
                }
            }
        }
        match sign.as_slice() {
            [] => reply_to.send(beside),
            [request] => self.sign(request, beside, reply_to, arrived_at),
            _ => {
                let metrics = &self.service.metrics;
                metrics.not_signed(Status::PAYLOAD_INVALID, Reason::TooMuch);
                let reason = "one message may ask for one signature";
                reply_to.send(vec![error(invalid(reason))]);
            }
        }
    }

    fn sign(
        &mut self,
        request: &SignRequest,
        beside: Vec<AggregationResponsePayload>,
        reply_to: ReplyTo,
        arrived_at: Micros,
    ) {
        let ReplyTo {
            member,
            header,
            algorithm,
            // Free again: the signature is encoded where it is written.
            place: _,
        } = reply_to;
        let ticket = Ticket {
            request_id: request.request_id,
            instance_id: header.instance_id,
            message_id: header.message_id,
            algorithm,
            beside: Some(beside)
                .filter(|beside| !beside.is_empty())
                .map(Vec::into_boxed_slice),
        };
        let request = Request {
            input: request.input,
            level: request.level,
            ticket,
        };
        self.hold(&member, request, arrived_at);
    }

    fn extend(&self, frame: &[u8], place: Place) {
        let received = ExtendRequest::decode(frame);
        let error = ExtendResponsePayload::Error;
        let refused = Metrics::not_extended;
        let Some((payloads, reply_to)) = self.authenticate(received, place, error, refused) else {
            return;
        };
        let answering = self.service.extension(payloads);
        tokio::spawn(async move { reply_to.send(answering.await) });
    }

    /// Finds out who sent a message and whether it is genuine. If it is not, it
    /// has been answered.
    fn authenticate<P, R: Payload>(
        &self,
        received: Result<Received<P>, DecodeError>,
        place: Place,
        error: impl FnOnce(ErrorPayload) -> R,
        refused: impl FnOnce(&Metrics, Status, Reason),
    ) -> Option<(Vec<P>, ReplyTo)> {
        let stranger = |place: Place, status, reason: &str| {
            let counted = match status {
                Status::AUTHENTICATION_FAILED => Reason::Authentication,
                _ => Reason::Malformed,
            };
            refused(&self.service.metrics, status, counted);
            place.refuse_stranger(status, reason, error);
            None
        };
        let received = match received {
            Ok(received) => received,
            Err(e) => return stranger(place, Status::REQUEST_INVALID, &e.to_string()),
        };
        if received.version != Version::V2 {
            let reason = "version 1 of the protocol is not spoken here; use version 2";
            return stranger(place, Status::REQUEST_INVALID, reason);
        }
        let member = self.service.users.get(received.login_id());
        let known = member.as_deref().unwrap_or(self.service.users.stranger());
        let key = known.key.expose();
        let genuine = received.verify_mac(key);
        let algorithm = received
            .mac_algorithm()
            .filter(|algorithm| algorithm.is_trusted());
        match (member, received.pdu.header, algorithm) {
            (Some(member), Some(header), Some(algorithm)) if genuine => {
                let reply_to = ReplyTo {
                    member,
                    header,
                    algorithm,
                    place,
                };
                Some((received.pdu.payloads, reply_to))
            }
            _ => {
                let (status, reason) = STRANGER;
                stranger(place, status, reason)
            }
        }
    }
}

/// What somebody unknown hears, and somebody with a wrong key.
const STRANGER: (Status, &str) = (Status::AUTHENTICATION_FAILED, "unknown user or wrong key");
