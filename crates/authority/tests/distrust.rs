//! The client behind a proxy that knows the key and changes the answers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{GENESIS, World, document};
use pitser_client::{Client, ClientError, Endpoint, Options};
use pitser_ksi::Algorithm;
use pitser_ksi::chain::Side;
use pitser_ksi::pdu::{
    AggregationResponse, AggregationResponsePayload, ExtendResponse, ExtendResponsePayload,
    ExtendResult, SignResult, frame_len,
};
use pitser_ksi::signature::Signature;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

/// What the proxy makes of an answer; an empty one closes the connection.
type Change = Arc<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;

/// A client that talks to the authority through `change`.
async fn through(world: &World, change: Change) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(proxy(listener, world.authority.tcp_address(), change));
    let endpoint = Endpoint::parse(&format!("ksi+tcp://anon:anon@{address}")).unwrap();
    let answer_timeout = Duration::from_millis(500);
    Client::new(
        endpoint,
        Options {
            answer_timeout,
            ..Options::default()
        },
    )
}

async fn proxy(listener: TcpListener, authority: SocketAddr, change: Change) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let change = Arc::clone(&change);
        tokio::spawn(async move {
            let (mut requests, mut to_client) = client.into_split();
            let (mut answers, mut to_authority) =
                TcpStream::connect(authority).await.unwrap().into_split();
            let copying = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut requests, &mut to_authority).await;
            });
            while let Some(answer) = read_pdu(&mut answers).await {
                let changed = change(answer);
                if changed.is_empty() || to_client.write_all(&changed).await.is_err() {
                    break;
                }
            }
            copying.abort();
        });
    }
}

async fn read_pdu(read: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    read.read_exact(&mut frame).await.ok()?;
    frame.resize(frame_len(&frame).unwrap().unwrap(), 0);
    read.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

/// Changes a signing result, and authenticates it again with `key`.
fn result(key: &'static [u8], change: impl Fn(&mut SignResult) + Send + Sync + 'static) -> Change {
    Arc::new(move |bytes| {
        let mut pdu = AggregationResponse::decode(&bytes).unwrap().pdu;
        if let AggregationResponsePayload::Result(result) = &mut pdu.payloads[0] {
            change(result);
        }
        pdu.encode(key, Algorithm::Sha256).unwrap()
    })
}

/// Changes the outcome of extending, and authenticates it again.
fn extension(change: impl Fn(&mut ExtendResult) + Send + Sync + 'static) -> Change {
    Arc::new(move |bytes| {
        let Ok(received) = ExtendResponse::decode(&bytes) else {
            return bytes;
        };
        let mut pdu = received.pdu;
        if let ExtendResponsePayload::Result(result) = &mut pdu.payloads[0] {
            change(result);
        }
        pdu.encode(b"anon", Algorithm::Sha256).unwrap()
    })
}

async fn signing_fails(change: Change) -> ClientError {
    let world = World::new().await;
    let client = through(&world, change).await;
    world.run(client.sign(document(1), 1)).await.unwrap_err()
}

fn check_unfit(error: &ClientError, reason: &str) {
    assert!(matches!(error, ClientError::Unfit { .. }), "{error:?}");
    assert!(error.to_string().contains(reason), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_answer_is_believed() {
    let world = World::new().await;
    let client = through(&world, result(b"anon", |_| ())).await;
    world.run(client.sign(document(1), 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_made_with_another_key_is_not() {
    let error = signing_fails(result(b"other", |_| ())).await;
    assert!(
        matches!(error, ClientError::Unauthenticated { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_changed_bit_of_an_answer_is_noticed() {
    let world = World::new().await;
    let bit = Arc::new(AtomicUsize::new(0));
    let current = Arc::clone(&bit);
    let client = through(
        &world,
        Arc::new(move |mut bytes| {
            // Not the frame's own length: the client would only wait.
            let bit = 32 + current.load(Ordering::Relaxed) % (bytes.len() * 8 - 32);
            bytes[bit / 8] ^= 0x80 >> (bit % 8);
            bytes
        }),
    )
    .await;
    for step in 0..64 {
        bit.store(step * 193, Ordering::Relaxed);
        world.run(client.sign(document(1), 1)).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_request_is_not_taken() {
    let error = signing_fails(result(b"anon", |result| result.request_id += 1)).await;
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signature_of_another_document_is_not_taken() {
    let world = World::new().await;
    let other = world.run(world.tcp().sign(document(2), 0)).await.unwrap();
    let other = other.children().to_vec();
    let client = through(
        &world,
        result(b"anon", move |r| r.signature = other.clone()),
    )
    .await;
    let error = world.run(client.sign(document(1), 0)).await.unwrap_err();
    check_unfit(&error, "GEN-01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_contradicts_itself_is_not_taken() {
    let error = signing_fails(result(b"anon", |result| {
        let signature = Signature::from_result(&result.signature, 0).unwrap();
        let mut chain = signature.aggregation_chains()[0].clone();
        chain.aggregation_time = chain.aggregation_time.plus(1);
        let changed = Signature::new(&[chain], signature.calendar(), signature.anchor()).unwrap();
        result.signature = changed.children().to_vec();
    }))
    .await;
    check_unfit(&error, "INT-");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_signature_is_malformed() {
    let error = signing_fails(result(b"anon", |result| result.signature.truncate(0))).await;
    assert!(matches!(error, ClientError::Malformed { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_made_again() {
    let world = World::new().await;
    let broken = AtomicUsize::new(0);
    let client = through(
        &world,
        Arc::new(move |bytes| {
            if broken.fetch_add(1, Ordering::Relaxed) == 0 {
                Vec::new()
            } else {
                bytes
            }
        }),
    )
    .await;
    world.run(client.sign(document(1), 0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["ksi+tcp", "http"] {
        let endpoint = Endpoint::parse(&format!("{scheme}://anon:anon@{address}")).unwrap();
        let error = Client::connect(endpoint).await.unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
        assert!(error.is_temporary());
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

async fn extending_fails(change: Change) -> ClientError {
    let world = World::new().await;
    world.ticks(3).await;
    let client = through(&world, change).await;
    let signature = world.run(world.tcp().sign(document(1), 0)).await.unwrap();
    world.ticks(5).await;
    let to = signature.aggregation_time().plus(4);
    client.extend(&signature, Some(to), None).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_to_another_second_is_not_taken() {
    let error = extending_fails(extension(|result| {
        result.calendar.as_mut().unwrap().publication_time.0 += 1;
    }))
    .await;
    check_unfit(&error, "another second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_another_second_is_not_taken() {
    let error = extending_fails(extension(|result| {
        result.calendar.as_mut().unwrap().aggregation_time = Some(GENESIS);
    }))
    .await;
    check_unfit(&error, "another second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_another_shape_is_not_taken() {
    let error = extending_fails(extension(|result| {
        result.calendar.as_mut().unwrap().links.pop();
    }))
    .await;
    check_unfit(&error, "INT-05");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_with_another_past_is_not_taken() {
    let error = extending_fails(extension(|result| {
        let links = &mut result.calendar.as_mut().unwrap().links;
        let right = links
            .iter_mut()
            .find(|(side, _)| *side == Side::Right)
            .unwrap();
        right.1 = document(99);
    }))
    .await;
    assert!(matches!(error, ClientError::Unfit { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_chain_is_not_taken() {
    let error = extending_fails(extension(|result| result.calendar = None)).await;
    check_unfit(&error, "missing");
}
