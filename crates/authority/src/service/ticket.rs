//! What is remembered of a message until it is answered.

use std::sync::Arc;

use pitser_ksi::chain::AggregationChain;
use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationResponsePayload, ErrorPayload, Header, Payload, Pdu, SignResult, Status,
};
use pitser_ksi::tlv::Writer;

use super::{Member, Slot};

/// Who asked, and how to answer: in the algorithm of the request.
pub(super) struct ReplyTo {
    pub(super) user: Arc<Member>,
    pub(super) header: Header,
    pub(super) algorithm: Algorithm,
    pub(super) slot: Slot,
}

impl ReplyTo {
    /// Authenticates and sends one message.
    pub(super) fn send<P: Payload>(self, payloads: Vec<P>) {
        let pdu = Pdu {
            header: Some(self.header),
            payloads,
        };
        match pdu.encode(self.user.key.expose(), self.algorithm) {
            Ok(bytes) => _ = self.slot.send(bytes),
            // The place is freed unanswered: the client times out.
            Err(e) => tracing::error!(error = %e, "an answer could not be encoded"),
        }
    }
}

/// A request that waits for its round.
pub(crate) struct Ticket {
    pub(super) reply_to: ReplyTo,
    pub(super) request_id: u64,
    /// What else was asked in the same message, already answered.
    pub(super) beside: Vec<AggregationResponsePayload>,
}

impl Ticket {
    /// Answers with a signature: this request's chain, then the part that all
    /// requests of the round share.
    pub(crate) fn sign(self, chain: &AggregationChain, calendar_part: &[u8]) {
        let mut signature = Writer::new();
        chain.write(&mut signature);
        signature.raw(calendar_part);
        let request_id = self.request_id;
        let result = match signature.finish() {
            Ok(signature) => SignResult {
                request_id,
                status: Status::OK,
                message: None,
                signature,
            },
            Err(e) => SignResult::failure(request_id, Status::INTERNAL_ERROR, e.to_string()),
        };
        self.answer(result);
    }

    /// Answers that there is no signature, and why.
    pub(crate) fn refuse(self, status: Status, reason: &str) {
        let result = SignResult::failure(self.request_id, status, reason);
        self.answer(result);
    }

    fn answer(self, result: SignResult) {
        let mut payloads = vec![AggregationResponsePayload::Result(result)];
        payloads.extend(self.beside);
        self.reply_to.send(payloads);
    }
}

/// Says that a message was not understood, to somebody unknown: without MAC.
pub(super) fn refuse_stranger<P: Payload>(
    slot: Slot,
    status: Status,
    reason: &str,
    error: impl FnOnce(ErrorPayload) -> P,
) {
    let payload = ErrorPayload {
        status,
        message: Some(reason.to_owned()),
    };
    let pdu = Pdu {
        header: None,
        payloads: vec![error(payload)],
    };
    match pdu.encode_unauthenticated() {
        Ok(bytes) => _ = slot.send(bytes),
        Err(e) => tracing::error!(error = %e, "an answer could not be encoded"),
    }
}

/// As [`refuse_stranger`], when not even the kind of message is known.
pub(super) fn refuse_garbage(slot: Slot) {
    refuse_stranger(
        slot,
        Status::REQUEST_INVALID,
        "this is not a message of the protocol",
        AggregationResponsePayload::Error,
    );
}
