//! What is on its way to those who asked.
//!
//! A signature is encoded when its socket has room for it, not when its round
//! closes: until then a round is one tree and a short record for each request,
//! shared by all whose answers stand in it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pitser_ksi::chain::{AggregationChain, Link, shape};
use pitser_ksi::error::EncodeError;
use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationResponsePayload, ErrorPayload, Header, Payload, Pdu, SignResult, SignatureAnswer,
    Status,
};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Writer;
use pitser_ksi::tree::{Tree, TreeBuilder};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Member;
use crate::round::{Asker, Closed, Request, links_into};

/// What the answer to a request has to repeat, and how it is authenticated.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(super) request_id: u64,
    pub(super) instance_id: Option<u64>,
    pub(super) message_id: Option<u64>,
    pub(super) algorithm: Algorithm,
    /// What else was asked in the same message, already answered.
    pub(super) beside: Option<Box<[AggregationResponsePayload]>>,
}

impl Ticket {
    fn header(&self, login: &str) -> Header {
        Header {
            login_id: login.to_owned(),
            instance_id: self.instance_id,
            message_id: self.message_id,
        }
    }
}

/// A user, and where the answers to their requests go.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(super) member: Arc<Member>,
    pub(super) outlet: Outlet,
}

impl Asker for Caller {
    fn client_id(&self) -> &str {
        &self.member.login
    }
}

/// What all signatures of a round share: which second it became, and what stands
/// in them behind the round's own chain.
pub(crate) struct Tail {
    pub(crate) second: Second,
    /// The chain index of the chains above the round's; empty at the top.
    pub(crate) index: Vec<u64>,
    /// Chains above, calendar chain and authentication, encoded.
    pub(crate) bytes: Vec<u8>,
}

/// A round that is over, one way or the other.
pub(crate) struct Answered {
    requests: Vec<Request<Ticket>>,
    outcome: Outcome,
    at: Instant,
}

enum Outcome {
    Signed(Box<Signed>),
    Refused { status: Status, reason: String },
}

struct Signed {
    /// Taken out when the last answer is gone.
    tree: Option<Tree>,
    tail: Tail,
    trees: Arc<Trees>,
}

impl Drop for Signed {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.take() {
            self.trees.put_back(tree);
        }
    }
}

impl Answered {
    /// Hands every request of `round` its signature.
    pub(crate) fn sign(round: Closed<Ticket, Caller>, tree: Tree, tail: Tail, trees: &Arc<Trees>) {
        let signed = Signed {
            tree: Some(tree),
            tail,
            trees: Arc::clone(trees),
        };
        Self::distribute(round, Outcome::Signed(Box::new(signed)));
    }

    /// Tells everybody in `round` that there is no signature, and why.
    pub(crate) fn refuse(round: Closed<Ticket, Caller>, status: Status, reason: &str) {
        let reason = reason.to_owned();
        Self::distribute(round, Outcome::Refused { status, reason });
    }

    fn distribute(round: Closed<Ticket, Caller>, outcome: Outcome) {
        let answered = Arc::new(Self {
            requests: round.requests,
            outcome,
            at: Instant::now(),
        });
        for batch in round.batches {
            let Caller { member, outlet } = batch.by;
            if matches!(answered.outcome, Outcome::Refused { .. }) {
                member.forgive(batch.numbers.len() as u64);
            }
            outlet.send(Reply::Portion(Portion {
                round: Arc::clone(&answered),
                member,
                numbers: batch.numbers,
            }));
        }
    }

    fn write(
        &self,
        number: u32,
        member: &Member,
        links: &mut Vec<Link>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let request = &self.requests[number as usize];
        let ticket = &request.ticket;
        match &self.outcome {
            Outcome::Signed(signed) => signed.write(number, request, member, links, out),
            Outcome::Refused { status, reason } => {
                let result = SignResult::failure(ticket.request_id, *status, reason);
                write_result(ticket, result, member, out)
            }
        }
    }
}

impl Signed {
    fn write(
        &self,
        number: u32,
        request: &Request<Ticket>,
        member: &Member,
        links: &mut Vec<Link>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let (ticket, tail) = (&request.ticket, &self.tail);
        let tree = self
            .tree
            .as_ref()
            .expect("it is taken out at the end alone");
        links_into(tree, number, links);
        if ticket.beside.is_some() {
            let result = signature_beside(request, tree, tail, links)?;
            return write_result(ticket, result, member, out);
        }
        let answer = SignatureAnswer {
            login_id: &member.login,
            instance_id: ticket.instance_id,
            message_id: ticket.message_id,
            request_id: ticket.request_id,
            input: request.input,
            aggregation_time: tail.second,
            index: &tail.index,
            algorithm: tree.algorithm(),
            tail: &tail.bytes,
        };
        answer.write(out, links, &member.mac_key, ticket.algorithm)
    }
}

/// The signature as a payload among others.
fn signature_beside(
    request: &Request<Ticket>,
    tree: &Tree,
    tail: &Tail,
    links: &[Link],
) -> Result<SignResult, EncodeError> {
    let shape = shape(links).expect("a tree is at most as high as a shape is long");
    let chain = AggregationChain {
        aggregation_time: tail.second,
        index: tail.index.iter().copied().chain([shape]).collect(),
        input_data: None,
        input: request.input,
        algorithm: tree.algorithm(),
        links: links.to_vec(),
    };
    let mut signature = Writer::new();
    chain.write(&mut signature);
    signature.raw(&tail.bytes);
    Ok(SignResult {
        request_id: request.ticket.request_id,
        status: Status::OK,
        message: None,
        signature: signature.finish()?,
    })
}

fn write_result(
    ticket: &Ticket,
    result: SignResult,
    member: &Member,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut payloads = vec![AggregationResponsePayload::Result(result)];
    payloads.extend(ticket.beside.iter().flatten().cloned());
    let pdu = Pdu {
        header: Some(ticket.header(&member.login)),
        payloads,
    };
    out.extend(pdu.encode(member.key.expose(), ticket.algorithm)?);
    Ok(())
}

/// Memory of trees that nobody needs any more, for the next rounds: touching new
/// memory takes longer than hashing into it.
#[derive(Debug, Default)]
pub(crate) struct Trees(Mutex<Vec<TreeBuilder>>);

impl Trees {
    pub(crate) fn take(&self) -> TreeBuilder {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare
            .pop()
            .unwrap_or_else(|| TreeBuilder::new(Algorithm::Sha256))
    }

    fn put_back(&self, tree: Tree) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_TREES {
            spare.push(tree.recycle());
        }
    }
}

/// One answer, or several of one round.
pub(crate) enum Reply {
    Message(Message),
    Portion(Portion),
}

/// An encoded answer; empty if it could not be encoded.
pub(crate) struct Message {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

/// Answers of one round that go the same way.
pub(crate) struct Portion {
    round: Arc<Answered>,
    member: Arc<Member>,
    /// Those not written yet.
    numbers: Range<u32>,
}

/// Where the answers to one connection's requests are put. Never waits: what may
/// be under way is bounded by who reads requests.
#[derive(Clone)]
pub(crate) struct Outlet {
    replies: UnboundedSender<Reply>,
    /// Places for encoded answers, which are not shared with anybody.
    places: Arc<Semaphore>,
}

/// A place kept for one encoded answer.
pub(crate) struct Place {
    outlet: Outlet,
    permit: OwnedSemaphorePermit,
}

impl Outlet {
    /// An outlet with that many places for encoded answers, and its other end,
    /// which is to take each answer within so long.
    pub(super) fn new(places: usize, taken_within: Duration) -> (Self, Replies) {
        let (replies, queue) = unbounded_channel();
        let places = Arc::new(Semaphore::new(places));
        let outlet = Self { replies, places };
        let replies = Replies {
            queue,
            portion: None,
            links: Vec::new(),
            taken_within,
        };
        (outlet, replies)
    }

    /// Free places for encoded answers.
    pub(super) fn places(&self) -> usize {
        self.places.available_permits()
    }

    /// Waits until there is one.
    pub(super) async fn wait_for_place(&self) {
        let _ = self.places.acquire().await;
    }

    /// Keeps a place, if there is one: who reads requests looks first.
    pub(super) fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place {
            outlet: self.clone(),
            permit,
        })
    }

    /// Whoever reads answers may be gone; then nobody misses this one.
    fn send(&self, reply: Reply) {
        let _ = self.replies.send(reply);
    }
}

impl Place {
    pub(super) fn send(self, bytes: Vec<u8>) {
        let message = Message {
            bytes,
            _place: self.permit,
        };
        self.outlet.send(Reply::Message(message));
    }

    /// Sends one message to a user.
    pub(super) fn send_payloads<P: Payload>(
        self,
        member: &Member,
        header: Header,
        algorithm: Algorithm,
        payloads: Vec<P>,
    ) {
        let pdu = Pdu {
            header: Some(header),
            payloads,
        };
        let bytes = pdu.encode(member.key.expose(), algorithm);
        self.send(bytes.unwrap_or_else(unencodable));
    }

    /// Says that a message was not understood, to somebody unknown: without MAC.
    pub(super) fn refuse_stranger<P: Payload>(
        self,
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
        let bytes = pdu.encode_unauthenticated();
        self.send(bytes.unwrap_or_else(unencodable));
    }
}

/// Nothing is sent; the client's time runs out.
fn unencodable(error: EncodeError) -> Vec<u8> {
    tracing::error!(%error, "an answer could not be encoded");
    Vec::new()
}

/// The other end of an [`Outlet`]: answers as bytes, as fast as they are taken.
pub(crate) struct Replies {
    queue: UnboundedReceiver<Reply>,
    portion: Option<Portion>,
    links: Vec<Link>,
    taken_within: Duration,
}

impl Replies {
    /// Whether there are answers that need not be waited for.
    pub(super) fn has_more(&self) -> bool {
        self.portion.is_some() || !self.queue.is_empty()
    }

    /// Waits for answers, then appends whole ones to `out` until it has `full`
    /// bytes or there are no more. Returns how many; 0: there will be none.
    ///
    /// # Errors
    /// [`TooLate`]: who does not take its answers keeps a whole round in memory.
    pub(super) async fn fill(&mut self, out: &mut Vec<u8>, full: usize) -> Result<usize, TooLate> {
        let mut written = 0;
        while out.len() < full {
            if let Some(portion) = &mut self.portion {
                if portion.round.at.elapsed() > self.taken_within {
                    return Err(TooLate);
                }
                written += portion.write(&mut self.links, out, full);
                if portion.numbers.is_empty() {
                    self.portion = None;
                }
                continue;
            }
            let next = if written == 0 {
                self.queue.recv().await
            } else {
                self.queue.try_recv().ok()
            };
            match next {
                None => break,
                Some(Reply::Portion(portion)) => self.portion = Some(portion),
                Some(Reply::Message(message)) => {
                    out.extend(&message.bytes);
                    written += 1;
                }
            }
        }
        Ok(written)
    }
}

/// A peer let its answers lie for too long.
#[derive(Debug)]
pub(super) struct TooLate;

impl Portion {
    /// Writes answers until `out` has `full` bytes; returns how many.
    fn write(&mut self, links: &mut Vec<Link>, out: &mut Vec<u8>, full: usize) -> usize {
        let before = self.numbers.len();
        while out.len() < full {
            let Some(number) = self.numbers.next() else {
                break;
            };
            if let Err(error) = self.round.write(number, &self.member, links, out) {
                unencodable(error);
            }
        }
        before - self.numbers.len()
    }
}

/// One round is built while another one is being answered.
const SPARE_TREES: usize = 2;
