//! Peers that send anything but what they should.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{GENESIS, World, config, document, init};
use pitser_authority::{Authority, Clock, Config, Limits, ManualClock, Micros};
use pitser_ksi::Algorithm;
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregationResponse, AggregationResponsePayload,
    ExtendQuery, ExtendRequest, ExtendRequestPayload, ExtendResponse, Header, Pdu, SignRequest,
    frame_len,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

async fn with_limits(limits: Limits) -> World {
    let dir = TempDir::new().unwrap();
    init(&dir);
    let clock = Arc::new(ManualClock::new(Micros::boundary(GENESIS)));
    let config = Config {
        limits,
        ..config(&dir)
    };
    let authority = Authority::start(config, Arc::clone(&clock)).await.unwrap();
    World {
        dir,
        clock,
        authority,
    }
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.authority.tcp_address())
        .await
        .unwrap()
}

async fn read_pdu(stream: &mut TcpStream) -> Vec<u8> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await.unwrap();
    frame.resize(frame_len(&frame).unwrap().unwrap(), 0);
    stream.read_exact(&mut frame[4..]).await.unwrap();
    frame
}

/// Reads one answer from the aggregator, which carries no valid MAC if `genuine`
/// is false.
async fn read_answer(stream: &mut TcpStream) -> AggregationResponsePayload {
    let bytes = read_pdu(stream).await;
    AggregationResponse::decode(&bytes)
        .unwrap()
        .pdu
        .payloads
        .remove(0)
}

fn sign(request_id: u64) -> AggregationRequestPayload {
    let input = document(request_id);
    AggregationRequestPayload::Sign(SignRequest {
        request_id,
        input,
        level: 0,
    })
}

fn message(payloads: Vec<AggregationRequestPayload>) -> Vec<u8> {
    let pdu: AggregationRequest = Pdu {
        header: Some(Header::new("anon")),
        payloads,
    };
    pdu.encode(b"anon", Algorithm::Sha256).unwrap()
}

fn extend(request_id: u64) -> Vec<u8> {
    let query = ExtendQuery {
        request_id,
        aggregation_time: GENESIS.plus(1),
        publication_time: None,
    };
    let pdu = ExtendRequest::new(Header::new("anon"), ExtendRequestPayload::Extend(query));
    pdu.encode(b"anon", Algorithm::Sha512).unwrap()
}

fn status_of(payload: &AggregationResponsePayload) -> u64 {
    match payload {
        AggregationResponsePayload::Error(error) => error.status.0,
        AggregationResponsePayload::Result(result) => result.status.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_cut_off() {
    let world = World::new().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4],
        &[0xff; 4],
        b"\x82\x21\x00\x00\x00",
    ] {
        let mut stream = connect(&world).await;
        stream.write_all(garbage).await.unwrap();
        assert_eq!(
            status_of(&read_answer(&mut stream).await),
            0x0101,
            "{garbage:?}"
        );
        if garbage[0] != 0x82 {
            // The end, or a reset because of what was not read.
            assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        }
    }
    world.run(world.tcp().sign(document(1), 0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cut_short_harms_nobody() {
    let world = World::new().await;
    let whole = message(vec![sign(1)]);
    for cut in 0..whole.len() {
        let mut stream = connect(&world).await;
        stream.write_all(&whole[..cut]).await.unwrap();
        drop(stream);
    }
    world.run(world.tcp().sign(document(1), 0)).await.unwrap();
    assert_eq!(world.authority.waiting(), 0);
}

/// Exempt bits: none. Every bit of a message is framed or authenticated.
#[tokio::test(flavor = "multi_thread")]
async fn no_message_with_a_changed_bit_is_signed() {
    let world = World::new().await;
    let whole = message(vec![sign(1)]);
    // A changed length would only make the server wait for more.
    let framing = 16..32;
    for bit in (0..whole.len() * 8).filter(|bit| !framing.contains(bit)) {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 0x80 >> (bit % 8);
        let mut stream = connect(&world).await;
        stream.write_all(&changed).await.unwrap();
        let status = status_of_any(&read_pdu(&mut stream).await);
        assert!(
            matches!(status, 0x0101 | 0x0102),
            "bit {bit}: {status:#06x}"
        );
    }
    assert_eq!(world.authority.waiting(), 0);
}

fn status_of_any(bytes: &[u8]) -> u64 {
    if let Ok(received) = ExtendResponse::decode(bytes) {
        return match &received.pdu.payloads[0] {
            pitser_ksi::pdu::ExtendResponsePayload::Error(error) => error.status.0,
            other => panic!("{other:?}"),
        };
    }
    status_of(&AggregationResponse::decode(bytes).unwrap().pdu.payloads[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_as_they_are_ready() {
    let world = World::new().await;
    world.ticks(2).await;
    let mut stream = connect(&world).await;
    let config = AggregationRequestPayload::Config;
    let ack = AggregationRequestPayload::Ack { request_time_us: 7 };
    let mut bytes = message(vec![sign(1), config.clone()]);
    bytes.extend(message(vec![config, ack]));
    bytes.extend(extend(3));
    stream.write_all(&bytes).await.unwrap();

    let first = AggregationResponse::decode(&read_pdu(&mut stream).await).unwrap();
    assert!(first.verify_mac(b"anon"));
    assert!(matches!(
        first.pdu.payloads[..],
        [
            AggregationResponsePayload::Config(_),
            AggregationResponsePayload::Ack(_)
        ]
    ));
    // In the algorithm of the request.
    let second = ExtendResponse::decode(&read_pdu(&mut stream).await).unwrap();
    assert_eq!(second.mac_algorithm(), Some(Algorithm::Sha512));
    assert!(second.verify_mac(b"anon"));

    world.tick().await;
    let third = AggregationResponse::decode(&read_pdu(&mut stream).await).unwrap();
    let [
        AggregationResponsePayload::Result(result),
        AggregationResponsePayload::Config(_),
    ] = &third.pdu.payloads[..]
    else {
        panic!("{third:?}");
    };
    assert_eq!((result.request_id, result.status.0), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_asks_for_one_signature() {
    let world = World::new().await;
    let mut stream = connect(&world).await;
    stream
        .write_all(&message(vec![sign(1), sign(2)]))
        .await
        .unwrap();
    assert_eq!(status_of(&read_answer(&mut stream).await), 0x0103);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_much_waits_for_answers() {
    let world = with_limits(Limits {
        pipeline: 2,
        ..Limits::default()
    })
    .await;
    let mut stream = connect(&world).await;
    for request_id in 1..=3 {
        stream
            .write_all(&message(vec![sign(request_id)]))
            .await
            .unwrap();
    }
    world.until_waiting(2).await;
    world.tick().await;
    for _ in 0..2 {
        assert_eq!(status_of(&read_answer(&mut stream).await), 0);
    }
    // Only now was there room for the third.
    world.until_waiting(1).await;
    world.tick().await;
    assert_eq!(status_of(&read_answer(&mut stream).await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_round_sends_the_others_to_the_next() {
    let world = with_limits(Limits {
        requests_per_round: 2,
        ..Limits::default()
    })
    .await;
    let mut stream = connect(&world).await;
    for request_id in 1..=3 {
        stream
            .write_all(&message(vec![sign(request_id)]))
            .await
            .unwrap();
    }
    assert_eq!(status_of(&read_answer(&mut stream).await), 0x0106);
    world.tick().await;
    for _ in 0..2 {
        assert_eq!(status_of(&read_answer(&mut stream).await), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_allowed_wait_their_turn() {
    let world = with_limits(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let config = message(vec![AggregationRequestPayload::Config]);
    let mut first = connect(&world).await;
    first.write_all(&config).await.unwrap();
    read_answer(&mut first).await;

    let mut second = connect(&world).await;
    second.write_all(&config).await.unwrap();
    let unanswered = tokio::time::timeout(Duration::from_millis(50), read_pdu(&mut second)).await;
    assert!(unanswered.is_err());
    drop(first);
    read_answer(&mut second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed() {
    let world = with_limits(Limits {
        idle: Duration::from_millis(20),
        ..Limits::default()
    })
    .await;
    for address in [
        world.authority.tcp_address(),
        world.authority.http_address().unwrap(),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[0x82]).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest));
        closed.await.expect("the connection stays open").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_shows_health_and_refuses_what_is_too_long() {
    let world = World::new().await;
    world.tick().await;
    let head = world.authority.head().unwrap();
    let health = http(&world, b"GET /health HTTP/1.0\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.0 200"), "{health}");
    assert!(
        health.ends_with(&format!("ok, newest second {head}\n")),
        "{health}"
    );

    let long = http(&world, b"POST / HTTP/1.0\r\nContent-Length: 70000\r\n\r\n").await;
    assert!(long.starts_with("HTTP/1.0 413"), "{long}");

    world.clock.set(Micros(world.clock.now().0 + 3_600_000_000));
    world.authority.stopped().await.unwrap_err();
    let health = http(&world, b"GET /health HTTP/1.0\r\n\r\n").await;
    assert!(health.starts_with("HTTP/1.0 503"), "{health}");
    assert!(health.contains("CLK-01"), "{health}");
}

/// A byte now and then keeps no connection: the whole request has its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_trickles_in_is_cut_off() {
    let world = with_limits(Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    let endless = [&[0x82, 0x20, 0xff, 0xff][..], &[0; 1000]].concat();
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n";
    let body = [&head[..], b"\r\n", &[0x82; 1000]].concat();
    let endless_head = [&head[..], &b"x: y\r\n".repeat(1000)].concat();
    let (tcp, http) = (
        world.authority.tcp_address(),
        world.authority.http_address().unwrap(),
    );
    for (address, at_once, bytes) in [
        (tcp, 4, &endless),
        (http, 0, &endless_head),
        (http, head.len() + 2, &body),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (at_once, slowly) = bytes.split_at(at_once);
        stream.write_all(at_once).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut every = tokio::time::interval(Duration::from_millis(20));
        let trickle = async {
            for byte in slowly.iter().cycle() {
                every.tick().await;
                if write.write_all(&[*byte]).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut rest = Vec::new();
        let closed = async {
            // The end, or a reset because of what was not read.
            let _ = read.read_to_end(&mut rest).await;
        };
        let outcome = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! { () = trickle => {} () = closed => {} }
        });
        outcome.await.expect("the connection stays open");
    }
}

async fn http(world: &World, request: &[u8]) -> String {
    let address = world.authority.http_address().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// 24 MB of answers: more than sockets hold.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answers_is_cut_off_and_others_do_not_wait() {
    const MANY: usize = 20_000;
    let world = with_limits(Limits {
        taken_within: Duration::from_millis(300),
        ..Limits::default()
    })
    .await;
    let mut greedy = connect(&world).await;
    let requests: Vec<u8> = (1..=MANY as u64)
        .flat_map(|request_id| message(vec![sign(request_id)]))
        .collect();
    greedy.write_all(&requests).await.unwrap();
    world.until_waiting(MANY).await;
    world.tick().await;
    let signed = world.run(world.tcp().sign(document(1), 0)).await;
    assert_eq!(signed.unwrap().input(), document(1));

    greedy.ready(Interest::ERROR).await.unwrap();
    let mut answers = Vec::new();
    // Whether what lies in our own socket can still be read is the system's affair.
    let _ = greedy.read_to_end(&mut answers).await;
    assert!(answers.len() < MANY * 1000, "{} bytes", answers.len());
}
