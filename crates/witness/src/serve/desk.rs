//! What is asked and answered; nothing of the transport.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use pitser_tlog::witness_protocol::{ADD_CHECKPOINT, MAX_REQUEST_BYTES, Refusal};

use super::page::{self, Survey};
use super::{Limits, Peer, Place};
use crate::limit::Limiter;
use crate::store::{Store, StoreError};
use crate::witness::Witness;

type Answer = Response<Full<Bytes>>;

/// The witness, and what stands before it.
pub(super) struct Desk<S, C> {
    /// Locked for one request, in the order of their coming; the store is used
    /// on a thread that may block.
    witness: Arc<tokio::sync::Mutex<Witness<S>>>,
    /// Those that have the witness or wait for it.
    waiting: AtomicUsize,
    /// What was surveyed last, and when. Locked until there is a new one, so that those who
    /// ask meanwhile share it, and only one of them waits for the witness.
    surveyed: Arc<tokio::sync::Mutex<Option<(Survey, Instant)>>>,
    limits: Limits,
    clock: Arc<C>,
    /// Locked to count one request.
    peers: Mutex<Limiter<Peer>>,
    /// Requests for cosignatures by the status of their answer; locked to count one.
    answered: Mutex<BTreeMap<u16, u64>>,
}

impl<S, C> Desk<S, C>
where
    S: Store + Send + 'static,
    C: Fn() -> u64 + Send + Sync + 'static,
{
    pub(super) fn new(witness: Witness<S>, limits: Limits, clock: C) -> Self {
        Self {
            witness: Arc::new(tokio::sync::Mutex::new(witness)),
            waiting: AtomicUsize::new(0),
            surveyed: Arc::default(),
            peers: Mutex::new(Limiter::new(limits.of_peer, PEERS)),
            limits,
            clock: Arc::new(clock),
            answered: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        place: Arc<Place>,
    ) -> Result<Answer, Infallible> {
        let is_head = request.method() == Method::HEAD;
        let mut answer = self.route(request, &place).await;
        let headers = answer.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if place.is_wanted() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if is_head {
            *answer.body_mut() = Full::default();
        }
        Ok(answer)
    }

    async fn route(&self, request: Request<Incoming>, place: &Place) -> Answer {
        let asks = request.uri().path() == ADD_CHECKPOINT;
        if !self.may_ask(place.peer) {
            return self.counted(asks, refused(&Refusal::TooManyRequests));
        }
        match (request.method(), request.uri().path()) {
            (&Method::POST, ADD_CHECKPOINT) => {
                let answer = self.add_checkpoint(request.into_body()).await;
                self.counted(true, answer)
            }
            (&Method::GET | &Method::HEAD, "/health") => self.health().await,
            (&Method::GET | &Method::HEAD, "/metrics") => {
                let (answered, connections) = (self.answered(), place.connections());
                let text = |survey: &Survey| survey.metrics(&answered, connections);
                let kind = "text/plain; version=0.0.4";
                self.survey(|survey| plain(StatusCode::OK, text(survey), kind))
                    .await
            }
            (&Method::GET | &Method::HEAD, "/") => {
                self.survey(|survey| {
                    plain(StatusCode::OK, survey.page(), "text/html; charset=utf-8")
                })
                .await
            }
            (_, ADD_CHECKPOINT) => not_allowed("POST"),
            (_, "/" | "/health" | "/metrics") => not_allowed("GET, HEAD"),
            _ => text(StatusCode::NOT_FOUND, "nothing is here; ask / what is\n"),
        }
    }

    async fn add_checkpoint(&self, body: Incoming) -> Answer {
        if body.size_hint().lower() > MAX_REQUEST_BYTES as u64 {
            return closing(too_long());
        }
        let body = Limited::new(body, MAX_REQUEST_BYTES).collect();
        let body = match tokio::time::timeout(self.limits.body, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return closing(too_long()),
            Ok(Err(_)) => {
                return closing(text(StatusCode::BAD_REQUEST, "the body does not end\n"));
            }
            Err(_) => {
                return closing(text(StatusCode::REQUEST_TIMEOUT, "the body is too slow\n"));
            }
        };
        let clock = Arc::clone(&self.clock);
        // Read with the witness in hand, so that times are in the order of requests.
        let cosign = move |witness: &mut Witness<S>| witness.add_checkpoint(&body, clock());
        match self.with_witness(cosign).await {
            Some(Ok(line)) => text(StatusCode::OK, line.to_string()),
            Some(Err(refusal)) => {
                tracing::debug!(%refusal, "not cosigned");
                refused(&refusal)
            }
            None => busy(),
        }
    }

    async fn health(&self) -> Answer {
        let clock = Arc::clone(&self.clock);
        let look = move |witness: &mut Witness<S>| witness.clock_behind_s(clock());
        match self.with_witness(look).await {
            Some(Ok(None)) => text(StatusCode::OK, "ok\n"),
            Some(Ok(Some(behind_s))) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "CLK-01 the clock is {behind_s} s behind the newest cosignature: nothing is cosigned\n"
                ),
            ),
            Some(Err(error)) => unreadable(&error),
            None => busy(),
        }
    }

    async fn survey(&self, answer: impl FnOnce(&Survey) -> Answer) -> Answer {
        let mut kept = Arc::clone(&self.surveyed).lock_owned().await;
        let is_new = |(_, at): &&(_, Instant)| at.elapsed() < self.limits.survey;
        if let Some((survey, _)) = kept.as_ref().filter(is_new) {
            return answer(survey);
        }
        let clock = Arc::clone(&self.clock);
        // Kept where it is made, also if whoever asked has gone.
        let look = move |witness: &mut Witness<S>| {
            let survey = page::survey(witness, clock())?;
            *kept = Some((survey, Instant::now()));
            Ok(kept)
        };
        match self.with_witness(look).await {
            Some(Ok(kept)) => match kept.as_ref() {
                Some((survey, _)) => answer(survey),
                None => busy(),
            },
            Some(Err(error)) => unreadable(&error),
            None => busy(),
        }
    }

    /// What `act` gives; `None` if too many wait already, or if it panicked.
    async fn with_witness<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Witness<S>) -> T + Send + 'static,
    ) -> Option<T> {
        let _turn = Turn::take(&self.waiting)?;
        let mut witness = Arc::clone(&self.witness).lock_owned().await;
        let acted = tokio::task::spawn_blocking(move || act(&mut witness));
        acted.await.ok()
    }

    fn may_ask(&self, peer: Peer) -> bool {
        let now = (self.clock)();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.allow(&peer, now)
    }

    fn counted(&self, asks: bool, answer: Answer) -> Answer {
        if asks {
            let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            *answered.entry(answer.status().as_u16()).or_default() += 1;
        }
        answer
    }

    fn answered(&self) -> BTreeMap<u16, u64> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.clone()
    }
}

/// A turn at the witness, given back when it is dropped.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        let turn = Self(waiting);
        // One that comes too late gives its own back at once.
        (waiting.fetch_add(1, Ordering::Relaxed) < WAITING).then_some(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refused(refusal: &Refusal) -> Answer {
    let status = StatusCode::from_u16(refusal.status());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = plain(status, refusal.body(), refusal.content_type());
    if matches!(
        refusal,
        Refusal::TooManyRequests | Refusal::Unavailable { .. }
    ) {
        let headers = answer.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn busy() -> Answer {
    refused(&Refusal::Unavailable {
        reason: "too many requests wait".to_owned(),
    })
}

fn unreadable(error: &StoreError) -> Answer {
    tracing::error!(%error, "the store does not answer");
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        "the witness cannot read its store: nothing is cosigned\n",
    )
}

fn too_long() -> Answer {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a request has at most {MAX_REQUEST_BYTES} bytes\n"),
    )
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{methods} only\n"));
    let headers = answer.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

/// What is left of the request will not be read.
fn closing(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    plain(status, body, "text/plain; charset=utf-8")
}

fn plain(status: StatusCode, body: impl Into<Bytes>, kind: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// On every answer.
const HEADERS: [(header::HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Addresses that are counted apart.
const PEERS: usize = 4096;

/// Requests that may wait for the store at a time.
const WAITING: usize = 256;
