//! A small service with the real key, which answers as a test wants it to: right,
//! wrong, late, in pieces or not at all. Its signatures are whole ones, made from
//! a calendar in which every other second is empty.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses a part of this"
)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pitser_client::{Client, ClientError, Endpoint, Options};
use pitser_ksi::chain::{self, AggregationChain, CalendarChain, Link, Metadata, Sibling, Side};
use pitser_ksi::hash::hash;
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregationResponse, AggregationResponsePayload,
    AggregatorConfig, ExtendRequest, ExtendRequestPayload, ExtendResponse, ExtendResponsePayload,
    ExtendResult, ExtenderConfig, Header, SignResult, Status, frame_len,
};
use pitser_ksi::tlv::Writer;
use pitser_ksi::{Algorithm, Imprint, Second};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub const KEY: &[u8] = b"anon";
/// The second of every signature: 2026-03-14T09:26:53Z.
pub const SIGNED_AT: Second = Second(1_773_480_413);
/// The calendar's newest second.
pub const NEWEST: Second = Second(1_773_484_000);

pub fn document(number: u64) -> Imprint {
    hash(Algorithm::Sha256, &[&number.to_be_bytes()])
}

/// What the service does with a request.
pub enum Act {
    Say(Vec<u8>),
    /// Says it and closes.
    SayAndClose(Vec<u8>),
    Nothing,
    Close,
    /// Keeps it until so many are there, then answers the last one first.
    Gather(usize, Vec<u8>),
}

type Behaviour = Arc<dyn Fn(usize, &[u8]) -> Act + Send + Sync>;

/// A running service.
pub struct Server {
    pub address: SocketAddr,
    /// Connections that were accepted.
    pub accepted: Arc<AtomicUsize>,
    /// Connections that are over.
    pub ended: Arc<AtomicUsize>,
    /// Requests that were read.
    pub heard: watch::Receiver<usize>,
}

impl Server {
    /// Takes PDUs on TCP. `behave` hears the number of the request, from 0, and its bytes.
    pub async fn tcp(behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static) -> Self {
        Self::start(behave, |stream, behave, count| {
            tokio::spawn(serve_tcp(stream, behave, count))
        })
        .await
    }

    /// Takes PDUs by POST, and answers with this status.
    pub async fn http(
        status: u16,
        behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::start(behave, move |stream, behave, count| {
            tokio::spawn(serve_http(stream, status, behave, count))
        })
        .await
    }

    /// The same under TLS.
    pub async fn https(
        acceptor: tokio_rustls::TlsAcceptor,
        behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::start(behave, move |stream, behave, count| {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_http(stream, 200, behave, count).await;
                }
            })
        })
        .await
    }

    async fn start(
        behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static,
        serve: impl Fn(
            tokio::net::TcpStream,
            Behaviour,
            Arc<watch::Sender<usize>>,
        ) -> tokio::task::JoinHandle<()>
        + Send
        + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, heard) = watch::channel(0);
        let (count, behave): (_, Behaviour) = (Arc::new(count), Arc::new(behave));
        let ended = Arc::new(AtomicUsize::new(0));
        tokio::spawn({
            let (accepted, ended) = (Arc::clone(&accepted), Arc::clone(&ended));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    accepted.fetch_add(1, Ordering::Relaxed);
                    let serving = serve(stream, Arc::clone(&behave), Arc::clone(&count));
                    let ended = Arc::clone(&ended);
                    tokio::spawn(async move {
                        let _ = serving.await;
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        });
        Self {
            address,
            accepted,
            ended,
            heard,
        }
    }

    pub fn endpoint(&self, scheme: &str) -> Endpoint {
        Endpoint::parse(&format!("{scheme}://anon:anon@{}", self.address)).unwrap()
    }

    pub fn client(&self, scheme: &str) -> Client {
        Client::new(self.endpoint(scheme), Options::default())
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Until so many requests were read.
    pub async fn until_heard(&self, requests: usize) {
        let mut heard = self.heard.clone();
        heard.wait_for(|heard| *heard >= requests).await.unwrap();
    }
}

async fn serve_tcp(
    mut stream: tokio::net::TcpStream,
    behave: Behaviour,
    count: Arc<watch::Sender<usize>>,
) {
    let mut gathered = Vec::new();
    while let Some(frame) = read_pdu(&mut stream).await {
        let mut number = 0;
        count.send_modify(|count| {
            number = *count;
            *count += 1;
        });
        let (said, ends) = match behave(number, &frame) {
            Act::Say(answer) => (answer, false),
            Act::SayAndClose(answer) => (answer, true),
            Act::Nothing => continue,
            Act::Close => return,
            Act::Gather(until, answer) => {
                gathered.push(answer);
                if gathered.len() < until {
                    continue;
                }
                (gathered.drain(..).rev().flatten().collect(), false)
            }
        };
        if stream.write_all(&said).await.is_err() || ends {
            return;
        }
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    status: u16,
    behave: Behaviour,
    count: Arc<watch::Sender<usize>>,
) {
    while let Some(body) = read_post(&mut stream).await {
        let mut number = 0;
        count.send_modify(|count| {
            number = *count;
            *count += 1;
        });
        let (said, ends) = match behave(number, &body) {
            Act::Say(answer) => (answer, false),
            Act::SayAndClose(answer) => (answer, true),
            Act::Gather(..) | Act::Nothing => std::future::pending().await,
            Act::Close => return,
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
            said.len()
        );
        let whole = [head.as_bytes(), &said].concat();
        if stream.write_all(&whole).await.is_err() || stream.flush().await.is_err() || ends {
            return;
        }
    }
}

async fn read_pdu<S: AsyncRead + Unpin>(read: &mut S) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    read.read_exact(&mut frame).await.ok()?;
    frame.resize(frame_len(&frame).ok()??, 0);
    read.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

/// The body of a request.
async fn read_post<S: AsyncRead + Unpin>(read: &mut S) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head
        .split("\r\n")
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    read.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Everything as it should be.
pub fn honest(_: usize, frame: &[u8]) -> Act {
    Act::Say(answer(frame, |_| (), |_| ()))
}

/// Changes what is said about a signature, and authenticates it.
pub fn signing(
    change: impl Fn(&mut SignResult) + Send + Sync + 'static,
) -> impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static {
    move |_, frame| Act::Say(answer(frame, &change, |_| ()))
}

/// Changes what is said about a chain, and authenticates it.
pub fn extending(
    change: impl Fn(&mut ExtendResult) + Send + Sync + 'static,
) -> impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static {
    move |_, frame| Act::Say(answer(frame, |_| (), &change))
}

/// Refuses to sign, or to extend; configurations are told.
pub fn refusing(
    status: u64,
    message: &'static str,
) -> impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static {
    move |_, frame| {
        let refuse_sign =
            |r: &mut SignResult| *r = SignResult::failure(r.request_id, Status(status), message);
        let refuse_extend = |r: &mut ExtendResult| {
            *r = ExtendResult::failure(r.request_id, Status(status), message)
        };
        Act::Say(answer(frame, refuse_sign, refuse_extend))
    }
}

/// The answer to any request, changed before it is authenticated.
pub fn answer(
    frame: &[u8],
    change_result: impl Fn(&mut SignResult),
    change_chain: impl Fn(&mut ExtendResult),
) -> Vec<u8> {
    let header = Header::new("anon");
    if let Ok(request) = AggregationRequest::decode(frame) {
        assert!(request.verify_mac(KEY));
        let payload = match &request.pdu.payloads[0] {
            AggregationRequestPayload::Sign(sign) => {
                let mut result = SignResult {
                    request_id: sign.request_id,
                    status: Status::OK,
                    message: None,
                    signature: signature(sign.input, sign.level),
                };
                change_result(&mut result);
                AggregationResponsePayload::Result(result)
            }
            _ => AggregationResponsePayload::Config(aggregator_config()),
        };
        return AggregationResponse::new(header, payload)
            .encode(KEY, Algorithm::Sha256)
            .unwrap();
    }
    let request = ExtendRequest::decode(frame).unwrap();
    assert!(request.verify_mac(KEY));
    let payload = match &request.pdu.payloads[0] {
        ExtendRequestPayload::Extend(query) => {
            let to = query.publication_time.unwrap_or(NEWEST);
            let mut result = ExtendResult {
                request_id: query.request_id,
                status: Status::OK,
                message: None,
                calendar_last: Some(NEWEST),
                calendar: Some(calendar(root(document(1), 0), query.aggregation_time, to)),
            };
            change_chain(&mut result);
            ExtendResponsePayload::Result(result)
        }
        ExtendRequestPayload::Config => ExtendResponsePayload::Config(extender_config()),
    };
    ExtendResponse::new(header, payload)
        .encode(KEY, Algorithm::Sha256)
        .unwrap()
}

pub fn aggregator_config() -> AggregatorConfig {
    AggregatorConfig {
        max_level: Some(7),
        period_ms: Some(1000),
        ..AggregatorConfig::default()
    }
}

pub fn extender_config() -> ExtenderConfig {
    ExtenderConfig {
        calendar_first: Some(SIGNED_AT),
        calendar_last: Some(NEWEST),
        ..ExtenderConfig::default()
    }
}

fn links() -> Vec<Link> {
    let metadata = Metadata {
        client_id: "anon".into(),
        ..Metadata::default()
    };
    vec![Link {
        side: Side::Left,
        correction: 0,
        sibling: Sibling::Metadata(metadata.encode()),
    }]
}

fn root(input: Imprint, level: u8) -> Imprint {
    chain::climb(Algorithm::Sha256, input, level, &links())
        .unwrap()
        .0
}

/// The children of a signature.
pub fn signature(input: Imprint, level: u8) -> Vec<u8> {
    let aggregation = AggregationChain {
        aggregation_time: SIGNED_AT,
        index: vec![chain::shape(&links()).unwrap()],
        input_data: None,
        input,
        algorithm: Algorithm::Sha256,
        links: links(),
    };
    let mut writer = Writer::new();
    aggregation.write(&mut writer);
    calendar(root(input, level), SIGNED_AT, SIGNED_AT).write(&mut writer);
    writer.finish().unwrap()
}

/// From the leaf `input` at `from` to the root at `to`.
fn calendar(input: Imprint, from: Second, to: Second) -> CalendarChain {
    let (mut links, mut span, mut time) = (Vec::new(), to.0, from.0);
    while let Some(bit) = span.checked_ilog2() {
        let left_leaves = 1 << bit;
        let (side, rest) = match time < left_leaves {
            true => (Side::Left, left_leaves - 1),
            false => {
                time -= left_leaves;
                (Side::Right, span - left_leaves)
            }
        };
        links.push((side, Imprint::zero(Algorithm::Sha256)));
        span = rest;
    }
    links.reverse();
    CalendarChain {
        publication_time: to,
        aggregation_time: Some(from),
        input,
        links,
    }
}

/// Options with which nothing is waited for long.
pub fn impatient(ms: u64) -> Options {
    Options {
        answer_timeout: Duration::from_millis(ms),
        ..Options::default()
    }
}

/// Asserts that all these are said.
#[track_caller]
pub fn says(error: &ClientError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}
