//! One to three services at a time: the first good answer counts, and nobody is
//! held up, or cut off, by another.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use common::{
    Act, KEY, Server, answer, document, honest, impatient, refusing, says, signature, signing,
};
use pitser_client::{Client, ClientError, Endpoint, EndpointError, Options, publications_file};
use pitser_ksi::hash::Algorithm;
use pitser_ksi::pdu::{
    AggregationResponse, AggregationResponsePayload, AggregatorConfig, Header, SignResult, Status,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::task::block_in_place;

/// An address where nobody listens.
async fn nobody(scheme: &str) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Endpoint::parse(&format!("{scheme}://anon:anon@{address}")).unwrap()
}

fn of(endpoints: impl IntoIterator<Item = Endpoint>) -> Client {
    Client::of(endpoints, &Options::default()).unwrap()
}

#[tokio::test]
async fn neither_a_liar_nor_a_silent_nor_a_dead_service_counts() {
    let liar = Server::tcp(signing(|r| r.signature = signature(document(2), 0))).await;
    let silent = Server::http(200, |_, _| Act::Nothing).await;
    for scheme in ["ksi+tcp", "http"] {
        let good = match scheme {
            "http" => Server::http(200, honest).await,
            _ => Server::tcp(honest).await,
        };
        for others in [
            [liar.endpoint("ksi+tcp"), silent.endpoint("http")],
            [nobody("ksi+tcp").await, nobody("http").await],
        ] {
            let client = of(others.into_iter().chain([good.endpoint(scheme)]));
            for _ in 0..5 {
                let signed = client.sign(document(1), 3).await.unwrap();
                assert_eq!(signed.input(), document(1));
            }
            client
                .extend_calendar(common::SIGNED_AT, None)
                .await
                .unwrap();
        }
    }
}

/// Honest for so many requests, then refuses all.
fn honest_for(requests: usize) -> impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static {
    move |number, frame| match number < requests {
        true => honest(number, frame),
        false => refusing(0x0105, "")(number, frame),
    }
}

/// As [`honest_for`], but for those requests waits until the other has heard them
/// too: what nobody waits for any more is not sent.
fn after_the_other(
    other: Receiver<()>,
    requests: usize,
) -> impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static {
    let (other, act) = (Mutex::new(other), honest_for(requests));
    move |number, frame| {
        if number < requests {
            block_in_place(|| other.lock().unwrap().recv().unwrap());
        }
        act(number, frame)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_not_waited_for_keeps_its_connection() {
    let (heard, was_heard) = channel();
    let quick = Server::tcp(after_the_other(was_heard, 3)).await;
    let slow = Server::tcp(move |number, frame| match number < 3 {
        true => {
            heard.send(()).unwrap();
            Act::Nothing
        }
        false => honest(number, frame),
    })
    .await;
    let client = of([slow.endpoint("ksi+tcp"), quick.endpoint("ksi+tcp")]);
    for number in 0..4 {
        client.sign(document(number), 0).await.unwrap();
        slow.until_heard(number as usize + 1).await;
    }
    assert_eq!((slow.accepted(), slow.ended()), (1, 0));
}

/// Over HTTP a connection is of use again only after the late answer was read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answer_that_comes_late_does_not_cost_the_connection() {
    const LATE: usize = 8;
    let (heard, was_heard) = channel();
    let quick = Server::tcp(after_the_other(was_heard, LATE)).await;
    let (go_on, may_go_on) = channel();
    let may_go_on = Mutex::new(may_go_on);
    let slow = Server::http(200, move |number, frame| {
        if number < LATE {
            heard.send(()).unwrap();
            block_in_place(|| may_go_on.lock().unwrap().recv().unwrap());
        }
        honest(number, frame)
    })
    .await;
    let client = of([slow.endpoint("http"), quick.endpoint("ksi+tcp")]);
    for number in 0..=LATE {
        client.sign(document(1), 0).await.unwrap();
        slow.until_heard(number + 1).await;
        go_on.send(()).unwrap();
    }
    assert_eq!(slow.ended(), 0);
}

#[tokio::test]
async fn all_failures_are_told_and_the_most_telling_first() {
    let refuses = Server::tcp(refusing(0x0102, "who?")).await;
    let silent = Server::tcp(|_, _| Act::Nothing).await;
    let endpoints = [
        nobody("ksi+tcp").await,
        silent.endpoint("ksi+tcp"),
        refuses.endpoint("ksi+tcp"),
    ];
    let client = Client::of(endpoints, &impatient(400)).unwrap();
    let error = client.sign(document(1), 0).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ClientError::All(_)) && error.is_temporary());
    let start = format!(
        "none of 3 services gave a good answer: the service at {} refused to sign (status 0x0102, \"who?\"); \
         check name and HMAC key of user \"anon\"; the service at {} did not answer within 400 ms; cannot connect",
        refuses.address, silent.address
    );
    assert!(text.starts_with(&start), "{text}");
}

#[tokio::test]
async fn one_to_three_different_ones() {
    let at = |port: u16| Endpoint::parse(&format!("ksi+tcp://a:b@127.0.0.1:{port}")).unwrap();
    let refused = |ports: &[u16]| {
        Client::of(ports.iter().map(|&port| at(port)), &Options::default()).unwrap_err()
    };
    assert_eq!(refused(&[]), EndpointError::Count(0));
    assert_eq!(refused(&[1, 2, 3, 4]), EndpointError::Count(4));
    assert!(matches!(refused(&[1, 2, 1]), EndpointError::Twice(_)));
}

#[tokio::test]
async fn a_silent_service_gathers_nothing() {
    let quick = Server::tcp(honest).await;
    // Reads nothing at all: requests to it stay in the sockets, then in a short queue.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck = listener.local_addr().unwrap();
    let stuck = Endpoint::parse(&format!("ksi+tcp://anon:anon@{stuck}")).unwrap();
    let client = of([stuck, quick.endpoint("ksi+tcp")]);
    let mut signing = JoinSet::new();
    for number in 0..2000 {
        let client = client.clone();
        signing.spawn(async move { client.sign(document(number), 0).await });
        if number % 100 == 0 {
            while let Some(signed) = signing.join_next().await {
                signed.unwrap().unwrap();
            }
        }
    }
    for signed in signing.join_all().await {
        signed.unwrap();
    }
    assert_eq!(quick.accepted(), 1);
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let server = Server::tcp(|_, frame| Act::Gather(50, answer(frame, |_| (), |_| ()))).await;
    let client = server.client("ksi+tcp");
    let mut signing = JoinSet::new();
    for number in 0..50 {
        let client = client.clone();
        signing.spawn(async move {
            let signed = client
                .sign(document(number), (number % 5) as u8)
                .await
                .unwrap();
            assert_eq!(signed.input(), document(number));
        });
    }
    signing.join_all().await;
    assert_eq!(server.accepted(), 1);
}

/// What nobody asked for beside what somebody did: a configuration that is
/// pushed, and results of other requests.
#[tokio::test]
async fn what_nobody_asked_for_is_passed_over() {
    let behave = |_: usize, frame: &[u8]| {
        let right = AggregationResponse::decode(&answer(frame, |_| (), |_| ())).unwrap();
        let mut payloads = right.pdu.payloads;
        let mut other = SignResult::failure(77_777, Status(0x0105), "for somebody else");
        other.request_id += 1;
        payloads.insert(
            0,
            AggregationResponsePayload::Config(AggregatorConfig::default()),
        );
        payloads.insert(1, AggregationResponsePayload::Result(other));
        let pushed = AggregationResponse::new(Header::new("anon"), payloads[0].clone());
        let whole = AggregationResponse {
            payloads,
            ..right.pdu
        };
        let bytes = |pdu: AggregationResponse| pdu.encode(KEY, Algorithm::Sha512).unwrap();
        Act::Say([bytes(pushed.clone()), bytes(whole), bytes(pushed)].concat())
    };
    let server = Server::tcp(behave).await;
    let client = server.client("ksi+tcp");
    for _ in 0..3 {
        client.sign(document(1), 0).await.unwrap();
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_made_again() {
    for scheme in ["ksi+tcp", "http"] {
        let say = |_: usize, frame: &[u8]| Act::SayAndClose(answer(frame, |_| (), |_| ()));
        let server = match scheme {
            "http" => Server::http(200, say).await,
            _ => Server::tcp(say).await,
        };
        let client = server.client(scheme);
        for _ in 0..3 {
            client.sign(document(1), 0).await.unwrap();
        }
        assert!(server.accepted() >= 3, "{scheme}");
    }
}

/// TCP takes a quarter of an hour to notice that a connection leads nowhere.
#[tokio::test]
async fn a_connection_over_which_nothing_comes_is_left() {
    let server = Server::tcp(|number, frame| match number {
        1 => Act::Nothing,
        _ => honest(number, frame),
    })
    .await;
    let client = Client::new(server.endpoint("ksi+tcp"), impatient(200));
    client.sign(document(1), 0).await.unwrap();
    let error = client.sign(document(1), 0).await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    client.sign(document(1), 0).await.unwrap();
    assert_eq!(server.accepted(), 2);
}

/// Counts how often a service is asked that fails at first.
async fn asked(status: u64, attempts: u32) -> (usize, bool) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let behave = move |number: usize, frame: &[u8]| {
        counted.fetch_add(1, Ordering::Relaxed);
        match number {
            0 => refusing(status, "")(0, frame),
            _ => honest(number, frame),
        }
    };
    let server = Server::tcp(behave).await;
    let options = Options {
        attempts,
        ..Options::default()
    };
    let client = Client::new(server.endpoint("ksi+tcp"), options);
    let signed = client.sign(document(1), 0).await.is_ok();
    (count.load(Ordering::Relaxed), signed)
}

#[tokio::test]
async fn only_what_may_pass_by_itself_is_asked_again() {
    assert_eq!(asked(0x0106, 3).await, (2, true));
    assert_eq!(asked(0x0301, 3).await, (2, true));
    assert_eq!(asked(0x0301, 1).await, (1, false));
    for status in [0x0101, 0x0102, 0x0105, 0x0107, 0x0200] {
        assert_eq!(asked(status, 3).await, (1, false), "{status:#06x}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_so_often_and_no_more() {
    for scheme in ["ksi+tcp", "http"] {
        let server = match scheme {
            "http" => Server::http(200, |_, _| Act::Close).await,
            _ => Server::tcp(|_, _| Act::Close).await,
        };
        let error = server
            .client(scheme)
            .sign(document(1), 0)
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Lost { .. }), "{error}");
        assert_eq!(server.accepted(), 3, "{scheme}");
    }
}

#[tokio::test]
async fn who_never_answers_is_told_apart_from_who_is_not_there() {
    for scheme in ["ksi+tcp", "http"] {
        let server = match scheme {
            "http" => Server::http(200, |_, _| Act::Nothing).await,
            _ => Server::tcp(|_, _| Act::Nothing).await,
        };
        let client = Client::new(server.endpoint(scheme), impatient(200));
        let error = client.sign(document(1), 0).await.unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
        says(&error, &["did not answer within 200 ms"]);
    }
    let error = Client::new(nobody("http").await, impatient(5000))
        .sign(document(1), 0)
        .await;
    says(&error.unwrap_err(), &["cannot connect", "is it running"]);
}

#[tokio::test]
async fn configurations_become_one() {
    let narrow = |_: usize, frame: &[u8]| {
        let right = AggregationResponse::decode(&answer(frame, |_| (), |_| ())).unwrap();
        let config = AggregatorConfig {
            max_level: Some(20),
            period_ms: Some(100),
            algorithm: Some(Algorithm::Sha512),
            ..AggregatorConfig::default()
        };
        let config = AggregationResponsePayload::Config(config);
        let pdu = AggregationResponse {
            payloads: vec![config],
            ..right.pdu
        };
        Act::Say(pdu.encode(KEY, Algorithm::Sha256).unwrap())
    };
    let (one, two) = (Server::tcp(honest).await, Server::http(200, narrow).await);
    let client = of([
        one.endpoint("ksi+tcp"),
        two.endpoint("http"),
        nobody("http").await,
    ]);
    let config = client.config().await.unwrap();
    let expected = AggregatorConfig {
        max_level: Some(20),
        period_ms: Some(100),
        algorithm: Some(Algorithm::Sha512),
        ..AggregatorConfig::default()
    };
    assert_eq!(config, expected);
    let nobodies = of([nobody("http").await, nobody("ksi+tcp").await]);
    assert!(matches!(nobodies.config().await, Err(ClientError::All(_))));
}

#[tokio::test]
async fn answers_may_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b.tlv");
    // Made by a service for somebody else: three documents, one of them refused.
    let mut file = Vec::new();
    for number in 1..=3 {
        let result = match number {
            2 => SignResult::failure(number, Status(0x0105), "no more"),
            _ => SignResult {
                request_id: number,
                status: Status::OK,
                message: None,
                signature: signature(document(number), 0),
            },
        };
        let payload = AggregationResponsePayload::Result(result);
        let pdu = AggregationResponse::new(Header::new("anon"), payload);
        file.extend(pdu.encode(KEY, Algorithm::Sha256).unwrap());
    }
    std::fs::write(&path, &file).unwrap();
    let uri = format!(
        "file://anon:anon@{}",
        path.display().to_string().replace(' ', "%20")
    );
    let client = Client::new(Endpoint::parse(&uri).unwrap(), Options::default());
    for number in [3, 1] {
        let signed = client.sign(document(number), 0).await.unwrap();
        assert_eq!(signed.input(), document(number));
    }
    let error = client.sign(document(2), 0).await.unwrap_err();
    says(&error, &["the file ", "a b.tlv", "GEN-01"]);
    let error = client
        .extend_calendar(common::SIGNED_AT, None)
        .await
        .unwrap_err();
    says(&error, &["holds no answer to such a request"]);

    let other_key = Endpoint::parse(&uri.replace("anon:anon", "anon:other")).unwrap();
    let error = Client::new(other_key, Options::default())
        .sign(document(1), 0)
        .await;
    assert!(matches!(error, Err(ClientError::Unauthenticated { .. })));
    std::fs::write(&path, b"no PDU at all").unwrap();
    let error = client.sign(document(1), 0).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = client.sign(document(1), 0).await.unwrap_err();
    says(&error, &["cannot read", "a b.tlv"]);
}

#[tokio::test]
async fn publications_come_over_http_or_from_a_file() {
    let server = Server::http(200, |_, _| Act::Say(b"KSIPUBLF".to_vec())).await;
    let options = Options::default();
    let uri = format!("http://{}/publications.bin", server.address);
    assert_eq!(
        publications_file(&uri, &options).await.unwrap(),
        b"KSIPUBLF"
    );
    let error = publications_file("ksi+tcp://a", &options)
        .await
        .unwrap_err();
    says(&error, &["http://, https:// or from file://"]);
    let error = publications_file("file:///does/not/exist", &options)
        .await
        .unwrap_err();
    says(&error, &["cannot read /does/not/exist"]);
    let gone = Server::http(404, |_, _| Act::Say(b"<p>gone".to_vec())).await;
    let uri = format!("http://{}/publications.bin", gone.address);
    says(
        &publications_file(&uri, &options).await.unwrap_err(),
        &["HTTP 404", "right path"],
    );
}
