//! Every wrong answer is refused, in words: of a service that has the real key
//! and lies, and of one that is none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    Act, KEY, NEWEST, SIGNED_AT, Server, answer, document, extending, honest, impatient, refusing,
    says, signature, signing,
};
use pitser_client::{Bounds, Client, ClientError, Endpoint, Options};
use pitser_ksi::chain::{CalendarChain, Side};
use pitser_ksi::hash::{Algorithm, Imprint};
use pitser_ksi::pdu::{
    AggregationResponse, AggregationResponsePayload, ErrorPayload, ExtendResult, Header,
    SignResult, Status,
};
use pitser_ksi::publication::PublicationData;
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::tlv::Writer;

const SCHEMES: [&str; 2] = ["ksi+tcp", "http"];

async fn served(
    scheme: &str,
    behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static,
) -> Server {
    match scheme {
        "http" => Server::http(200, behave).await,
        _ => Server::tcp(behave).await,
    }
}

#[tokio::test]
async fn right_answers_are_taken() {
    for scheme in SCHEMES {
        let server = served(scheme, honest).await;
        let client = server.client(scheme);
        for level in [0, 7] {
            let signed = client.sign(document(1), level).await.unwrap();
            assert_eq!(
                (signed.input(), signed.input_level_max()),
                (document(1), level)
            );
        }
        let signed = client.sign(document(1), 0).await.unwrap();
        let extended = client.extend(&signed, None, None).await.unwrap();
        assert_eq!(extended.calendar().unwrap().publication_time, NEWEST);
        assert_eq!(client.config().await.unwrap(), common::aggregator_config());
        assert_eq!(
            client.extender_config().await.unwrap(),
            common::extender_config()
        );
        let one_connection = server.accepted() == 1;
        assert!(one_connection, "{scheme}");
    }
}

/// The signature in a result, changed.
fn with_signature(
    change: impl Fn(Signature) -> Signature + Send + Sync + 'static,
) -> impl Fn(&mut SignResult) + Send + Sync + 'static {
    move |result| {
        let signature = Signature::from_result(&result.signature, 0).unwrap();
        result.signature = change(signature).children().to_vec();
    }
}

fn with_calendar(
    change: impl Fn(&mut CalendarChain) + Send + Sync + 'static,
) -> impl Fn(&mut SignResult) + Send + Sync + 'static {
    with_signature(move |signature| {
        let mut calendar = signature.calendar().unwrap().clone();
        change(&mut calendar);
        Signature::new(signature.aggregation_chains(), Some(&calendar), None).unwrap()
    })
}

#[tokio::test]
async fn no_wrong_signature_is_taken() {
    type Change = Box<dyn Fn(&mut SignResult) + Send + Sync>;
    let cases: Vec<(&str, Change)> = vec![
        (
            "GEN-01",
            Box::new(|r| r.signature = signature(document(2), 0)),
        ),
        (
            "GEN-04",
            Box::new(|r| {
                let other = pitser_ksi::hash::hash(Algorithm::Sha512, &[b"a"]);
                r.signature = signature(other, 0);
            }),
        ),
        ("INT-03", Box::new(with_calendar(|c| c.input = document(9)))),
        (
            "INT-04",
            Box::new(with_calendar(|c| {
                c.aggregation_time = Some(SIGNED_AT.plus(1))
            })),
        ),
        ("INT-05", Box::new(with_calendar(|c| _ = c.links.pop()))),
        (
            "INT-02",
            Box::new(with_signature(|s| {
                let mut chain = s.aggregation_chains()[0].clone();
                let mut upper = chain.clone();
                upper.aggregation_time = upper.aggregation_time.plus(1);
                chain.index.push(3);
                Signature::new(&[chain, upper], None, None).unwrap()
            })),
        ),
        (
            "INT-10",
            Box::new(with_signature(|s| {
                let mut chain = s.aggregation_chains()[0].clone();
                chain.index = vec![2];
                Signature::new(&[chain], s.calendar(), None).unwrap()
            })),
        ),
        (
            "INT-01",
            Box::new(with_signature(|s| {
                let mut chain = s.aggregation_chains()[0].clone();
                let upper = chain.clone();
                chain.index.push(3);
                Signature::new(&[chain, upper], None, None).unwrap()
            })),
        ),
        (
            "INT-09",
            Box::new(with_signature(|s| {
                let data = PublicationData {
                    time: SIGNED_AT,
                    imprint: document(3),
                };
                let record = Anchor::Publication(data.into());
                Signature::new(s.aggregation_chains(), s.calendar(), Some(&record)).unwrap()
            })),
        ),
        ("malformed", Box::new(|r| r.signature.clear())),
        ("malformed", Box::new(|r| r.signature.truncate(20))),
        (
            "malformed",
            Box::new(|r| {
                // An unknown critical element.
                let mut writer = Writer::new();
                writer.raw(&r.signature).element(0x0fff, b"x");
                r.signature = writer.finish().unwrap();
            }),
        ),
    ];
    for (code, change) in cases {
        let server = Server::tcp(signing(change)).await;
        let error = server
            .client("ksi+tcp")
            .sign(document(1), 0)
            .await
            .unwrap_err();
        says(
            &error,
            &[code, &server.address.to_string(), "nothing of it was taken"],
        );
    }
}

#[tokio::test]
async fn a_signature_at_another_level_is_not_taken() {
    let server = Server::tcp(signing(|r| r.signature = signature(document(1), 0))).await;
    let error = server
        .client("ksi+tcp")
        .sign(document(1), 3)
        .await
        .unwrap_err();
    // The level goes into the first hash, so another root comes out.
    says(&error, &["INT-03"]);
}

async fn extended(
    behave: impl Fn(usize, &[u8]) -> Act + Send + Sync + 'static,
) -> Result<Signature, ClientError> {
    let server = Server::tcp(behave).await;
    let signed = Signature::from_result(&signature(document(1), 0), 0).unwrap();
    server
        .client("ksi+tcp")
        .extend(&signed, Some(SIGNED_AT.plus(1000)), None)
        .await
}

fn in_chain(
    change: impl Fn(&mut CalendarChain) + Send + Sync + 'static,
) -> impl Fn(&mut ExtendResult) + Send + Sync + 'static {
    move |result| change(result.calendar.as_mut().unwrap())
}

#[tokio::test]
async fn no_wrong_chain_is_taken() {
    type Change = Box<dyn Fn(&mut ExtendResult) + Send + Sync>;
    let right = |chain: &mut CalendarChain, imprint: Imprint| {
        let mut right = chain
            .links
            .iter_mut()
            .filter(|(side, _)| *side == Side::Right);
        right.next().unwrap().1 = imprint;
    };
    let cases: Vec<(&str, Change)> = vec![
        ("calendar chain is missing", Box::new(|r| r.calendar = None)),
        (
            "leads to another second",
            Box::new(in_chain(|c| c.publication_time.0 += 1)),
        ),
        (
            "starts at another second",
            Box::new(in_chain(|c| c.aggregation_time = None)),
        ),
        (
            "starts at another second",
            Box::new(in_chain(|c| c.aggregation_time = Some(NEWEST))),
        ),
        ("INT-05", Box::new(in_chain(|c| _ = c.links.pop()))),
        ("INT-05", Box::new(in_chain(|c| c.links[0].0 = Side::Left))),
        (
            "another input",
            Box::new(in_chain(|c| c.input = document(9))),
        ),
        (
            "another history",
            Box::new(in_chain(move |c| right(c, document(9)))),
        ),
        (
            "another history",
            Box::new(in_chain(move |c| {
                right(c, Imprint::zero(Algorithm::Sha512))
            })),
        ),
    ];
    for (reason, change) in cases {
        let error = extended(extending(change)).await.unwrap_err();
        says(&error, &[reason, "does not fit the request"]);
    }
    extended(honest).await.unwrap();
    // Left links may differ: they are the seconds that came later.
    let left = |c: &mut CalendarChain| {
        let mut left = c.links.iter_mut().filter(|(side, _)| *side == Side::Left);
        left.next().unwrap().1 = document(9);
    };
    extended(extending(in_chain(left))).await.unwrap();
}

#[tokio::test]
async fn a_publication_of_another_calendar_is_not_put_in() {
    let server = Server::tcp(honest).await;
    let signed = Signature::from_result(&signature(document(1), 0), 0).unwrap();
    let data = PublicationData {
        time: SIGNED_AT.plus(9),
        imprint: document(5),
    };
    let client = server.client("ksi+tcp");
    let error = client
        .extend(&signed, None, Some(&data.into()))
        .await
        .unwrap_err();
    says(&error, &["the publication is not the root"]);
    let error = client
        .extend(&signed, Some(SIGNED_AT), Some(&data.into()))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Elsewhere { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_signature_is_not_blamed_on_the_service() {
    let server = Server::tcp(honest).await;
    let signed = Signature::from_result(&signature(document(1), 0), 0).unwrap();
    let mut chain = signed.aggregation_chains()[0].clone();
    chain.index = vec![2];
    let broken = Signature::new(&[chain], signed.calendar(), None).unwrap();
    let error = server
        .client("ksi+tcp")
        .extend(&broken, None, None)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("INT-10") && text.contains("cannot be extended"),
        "{text}"
    );
    assert_eq!(server.accepted(), 0);
}

/// What comes of bytes that a service says to every request.
async fn said(
    scheme: &str,
    bytes: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> ClientError {
    let server = served(scheme, move |_, frame| Act::SayAndClose(bytes(frame))).await;
    let client = Client::new(server.endpoint(scheme), impatient(3000));
    client.sign(document(1), 0).await.unwrap_err()
}

fn error_payload(status: u64) -> AggregationResponsePayload {
    AggregationResponsePayload::Error(ErrorPayload {
        status: Status(status),
        message: Some("no".into()),
    })
}

#[tokio::test]
async fn who_made_an_answer_is_told() {
    for scheme in SCHEMES {
        let other_key = |frame: &[u8]| {
            let right = AggregationResponse::decode(&answer(frame, |_| (), |_| ())).unwrap();
            right.pdu.encode(b"other", Algorithm::Sha256).unwrap()
        };
        let error = said(scheme, other_key).await;
        assert!(
            matches!(error, ClientError::Unauthenticated { .. }),
            "{error}"
        );
        says(
            &error,
            &[
                "not authenticated with the key of user \"anon\"",
                "check the key",
            ],
        );

        let weak = |frame: &[u8]| {
            let right = AggregationResponse::decode(&answer(frame, |_| (), |_| ())).unwrap();
            right.pdu.encode(KEY, Algorithm::Sha1).unwrap()
        };
        says(&said(scheme, weak).await, &["SHA-1", "no longer"]);

        let nothing = |_: &[u8]| {
            let pdu = AggregationResponse {
                header: Some(Header::new("anon")),
                payloads: vec![error_payload(0x0102)],
            };
            pdu.encode_unauthenticated().unwrap()
        };
        let error = said(scheme, nothing).await;
        says(
            &error,
            &[
                "0x0102",
                "\"no\"",
                "check name and HMAC key of user \"anon\"",
            ],
        );

        let without_mac = |frame: &[u8]| {
            let right = AggregationResponse::decode(&answer(frame, |_| (), |_| ())).unwrap();
            right.pdu.encode_unauthenticated().unwrap()
        };
        let error = said(scheme, without_mac).await;
        assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    }
}

#[tokio::test]
async fn version_1_is_not_believed() {
    // 0200 { 01 { 01 "anon" }, 0203 { 04 0101 } }, as an old service refuses.
    let old = b"\x82\x00\x00\x11\x01\x07\x01\x05anon\x00\x82\x03\x00\x04\x04\x02\x01\x01";
    for scheme in SCHEMES {
        let error = said(scheme, |_| old.to_vec()).await;
        says(&error, &["version 1 of the protocol", "version 2"]);
    }
}

#[tokio::test]
async fn what_is_no_service_is_named() {
    let http = |_: &[u8]| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    says(
        &said("ksi+tcp", http).await,
        &["speaks HTTP", "write http://"],
    );
    let tls = |_: &[u8]| b"\x15\x03\x01\x00\x02\x02\x46".to_vec();
    says(
        &said("ksi+tcp", tls).await,
        &["speaks TLS", "write https://"],
    );
    let page = |_: &[u8]| b"\n <!doctype html><p>Welcome".to_vec();
    says(&said("http", page).await, &["web page", "right path"]);
    says(&said("http", |_| Vec::new()).await, &["malformed"]);
    let long = |_: &[u8]| vec![b'x'; 70_000];
    says(&said("http", long).await, &["longer than 65539 bytes"]);

    // A service for PDUs on TCP, asked over HTTP.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"\x82\x21\x00\x04\x83\x00\x00\x00").await;
        }
    });
    let endpoint = Endpoint::parse(&format!("http://anon:anon@{address}")).unwrap();
    let client = Client::new(endpoint, Options::default());
    says(
        &client.sign(document(1), 0).await.unwrap_err(),
        &["not HTTP", "ksi+tcp://"],
    );
}

#[tokio::test]
async fn an_http_status_counts_only_without_a_message() {
    let refuse = |_: usize, frame: &[u8]| refusing(0x0105, "")(0, frame);
    let server = Server::http(400, refuse).await;
    let error = server
        .client("http")
        .sign(document(1), 0)
        .await
        .unwrap_err();
    says(&error, &["0x0105", "quota of user \"anon\""]);
    let server = Server::http(500, honest).await;
    server.client("http").sign(document(1), 0).await.unwrap();
    for (status, does) in [
        (301, "redirects"),
        (401, "another login"),
        (404, "right path"),
        (413, "request of this size"),
        (429, "less often"),
        (500, "its log"),
        (503, "does not answer; try later"),
    ] {
        let server = Server::http(status, |_, _| Act::Say(b"<h1>Sorry".to_vec())).await;
        let client = Client::new(server.endpoint("http"), impatient(1500));
        let error = client.sign(document(1), 0).await.unwrap_err();
        says(&error, &[&format!("HTTP {status}"), does]);
        let huge = Server::http(status, |_, _| Act::Say(vec![b'<'; 70_000])).await;
        let client = Client::new(huge.endpoint("http"), impatient(1500));
        let error = client.sign(document(1), 0).await.unwrap_err();
        says(&error, &[&format!("HTTP {status}")]);
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_what_would_do() {
    let calendar = Bounds::Calendar {
        first: Some(SIGNED_AT),
        last: Some(NEWEST),
    }
    .to_string();
    for scheme in SCHEMES {
        for (status, does) in [
            (0x0101, "software current"),
            (0x0102, "check name and HMAC key of user \"anon\""),
            (0x0104, "sign at a lower level; the highest it takes is 7"),
            (0x0105, "quota of user \"anon\" is used up"),
            (0x0107, "shorter algorithm"),
            (0x0200, "its log"),
        ] {
            let server = served(scheme, refusing(status, "words\x07")).await;
            let error = server
                .client(scheme)
                .sign(document(1), 9)
                .await
                .unwrap_err();
            says(
                &error,
                &[
                    &format!("refused to sign (status {status:#06x}"),
                    r#""words\u{7}""#,
                    does,
                ],
            );
        }
        for (status, does) in [
            (0x0104, "only be extended forwards"),
            (0x0105, "older than this calendar"),
            (0x0106, "does not reach that far yet"),
            (0x0107, "clock"),
            (0x0202, "ask another"),
        ] {
            let server = served(scheme, refusing(status, "")).await;
            let error = server
                .client(scheme)
                .extend_calendar(SIGNED_AT, None)
                .await
                .unwrap_err();
            says(
                &error,
                &[&format!("refused to extend (status {status:#06x})"), does],
            );
            let tells_range = error.to_string().contains(&calendar);
            assert_eq!(tells_range, (0x0105..=0x0107).contains(&status), "{error}");
        }
    }
}
