//! Verification that asks a live extender: one that the test starts, honest or
//! not. The pack's rows that need one are judged here; `cli_ksi.rs` has the others.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../ksi/tests/common/calendar.rs"]
mod calendar;
mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use calendar::Calendar;
use common::{Said, pitser, testdata};
use pitser_ksi::chain::CalendarChain;
use pitser_ksi::hash::{Algorithm, hash};
use pitser_ksi::pdu::{
    ErrorPayload, ExtendQuery, ExtendRequest, ExtendRequestPayload, ExtendResponsePayload,
    ExtendResult, Header, Pdu, Status, frame_len,
};
use pitser_ksi::pki::{RsaSigner, Subject, Validity, self_signed};
use pitser_ksi::publications_file::{Contents, PublicationsFile};
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;

/// What the extender says to a request.
type Answer = dyn Fn(ExtendQuery) -> ExtendResponsePayload + Send;

/// The address of an extender that answers so, until the test ends.
fn start(answer: Box<Answer>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(&mut stream.unwrap(), &answer);
        }
    });
    format!("ksi+tcp://anon:anon@{address}")
}

fn serve(stream: &mut TcpStream, answer: &Answer) {
    let mut request = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|count| count == 1) {
        request.push(byte[0]);
        if frame_len(&request).unwrap() != Some(request.len()) {
            continue;
        }
        let received = ExtendRequest::decode(&request).unwrap();
        assert!(received.verify_mac(b"anon"));
        let [ExtendRequestPayload::Extend(query)] = received.pdu.payloads[..] else {
            panic!("one request to extend: {received:?}");
        };
        let said = Pdu::new(Header::new("extender"), answer(query));
        let said = said.encode(b"anon", Algorithm::Sha256).unwrap();
        stream.write_all(&said).unwrap();
        request.clear();
    }
}

fn result(query: ExtendQuery, calendar: CalendarChain) -> ExtendResponsePayload {
    ExtendResponsePayload::Result(ExtendResult {
        request_id: query.request_id,
        status: Status::OK,
        message: None,
        calendar_last: None,
        calendar: Some(calendar),
    })
}

/// An extender of the calendar in which `signature` was sealed, as far as the
/// signature tells it; `meddle` changes its answers.
fn around(signature: &Signature, meddle: fn(&mut CalendarChain)) -> String {
    let (calendar, own) = (Calendar::around(signature), signature.calendar().cloned());
    start(Box::new(move |query| {
        let to = query.publication_time.unwrap_or(calendar.head());
        let own = own.clone().filter(|chain| chain.publication_time == to);
        let mut chain = own.unwrap_or_else(|| calendar.chain(query.aggregation_time, to));
        meddle(&mut chain);
        result(query, chain)
    }))
}

fn signature(path: &str) -> Signature {
    Signature::decode(&fs::read(testdata(path)).unwrap()).unwrap()
}

fn verify(dir: &Path, file: &str, options: &str) -> Said {
    let command = [
        &["verify", file, "--json"][..],
        &options.split(' ').collect::<Vec<_>>(),
    ];
    pitser(dir).args(command.concat()).output().unwrap().into()
}

fn check(said: &Said, code: i32, told: Option<&str>) {
    assert_eq!(said.code, code, "{said:?}");
    assert_eq!(said.json()["code"].as_str(), told, "{said:?}");
}

const PACK: &str = "ksi/test_pack";
const WITHOUT_CALENDAR: &str =
    "valid-signatures/rfc3161-signature-only-rfc3161-and-aggregation-chains.ksig";
const WITHOUT_ANCHOR: &str = "valid-signatures/signature-one-aggregation-chain-and-chc.ksig";
const OTHER_CORE: &str = "policy-verification-signatures/policy-verification-signature-other-core-signature-with-extended-calendar-PUB-03.ksig";

#[test]
fn rows_of_the_pack_that_an_extender_confirms() {
    let dir = tempfile::tempdir().unwrap();
    for name in [WITHOUT_CALENDAR, WITHOUT_ANCHOR] {
        let path = format!("{PACK}/{name}");
        let extender = around(&signature(&path), |_| {});
        let options = format!("--policy calendar -X {extender}");
        let said = verify(dir.path(), testdata(&path).to_str().unwrap(), &options);
        check(&said, 0, None);
    }
}

/// The extender's calendar has something else in that second, and is published.
#[test]
fn the_row_of_the_pack_that_an_extender_contradicts() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{PACK}/{OTHER_CORE}");
    let calendar = Calendar::contradicting(&signature(&path));
    let trust = publish(dir.path(), &calendar);
    let extender = start(Box::new(move |query| {
        let to = query.publication_time.unwrap();
        result(query, calendar.chain(query.aggregation_time, to))
    }));
    let options = format!("--policy publications-file -X {extender} {trust}");
    let said = verify(dir.path(), testdata(&path).to_str().unwrap(), &options);
    check(&said, 1, Some("PUB-03"));
}

/// Options that trust a publications file about `calendar`.
fn publish(dir: &Path, calendar: &Calendar) -> String {
    let pem = fs::read_to_string(testdata("ksi/keys/throw-away-rsa2048.pem")).unwrap();
    let signer = RsaSigner::from_pkcs8_pem(&pem).unwrap();
    let subject = Subject {
        email: "publications@example.org".into(),
        ..Subject::default()
    };
    let validity = Validity {
        from: Second(0),
        until: Second(4_000_000_000),
    };
    let certificate = self_signed(&subject, validity, &[1], &signer).unwrap();
    let contents = Contents {
        publications: vec![calendar.publication(calendar.head()).into()],
        ..Contents::default()
    };
    let file = PublicationsFile::build(&contents, &certificate, &signer).unwrap();
    fs::write(dir.join("publications.bin"), file.encode()).unwrap();
    fs::write(dir.join("certificate.der"), certificate).unwrap();
    let constraint = "email=publications@example.org";
    format!("-P publications.bin --trust certificate.der --constraint {constraint}")
}

/// What an extender says about other seconds contradicts the signature or the
/// publication: it has not failed, and the verdict has the code of the rule.
#[test]
fn an_extender_that_answers_for_another_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{PACK}/{WITHOUT_ANCHOR}");
    let (signature, file) = (signature(&path), testdata(&path));
    let file = file.to_str().unwrap();
    let calendar = Calendar::around(&signature);
    let publication = calendar.publication(calendar.head()).to_code();
    let check = |meddle: fn(&mut CalendarChain), options: &str, told: Option<&str>| {
        let extender = around(&signature, meddle);
        let said = verify(dir.path(), file, &format!("{options} -X {extender}"));
        judged(&said, told);
    };
    let by_calendar = "--policy calendar";
    check(|_| {}, by_calendar, None);
    check(
        |chain| chain.aggregation_time = Some(chain.time().plus(1)),
        by_calendar,
        Some("CAL-03"),
    );
    check(|chain| chain.input = other(), by_calendar, Some("CAL-02"));
    check(
        |chain| chain.links[0].1 = other(),
        by_calendar,
        Some("CAL-04"),
    );
    let by_publication = format!("--publication {publication}");
    check(|_| {}, &by_publication, None);
    check(
        |chain| chain.publication_time = chain.publication_time.plus(1),
        &by_publication,
        Some("PUB-02"),
    );
    check(
        |chain| chain.aggregation_time = Some(chain.time().plus(1)),
        &by_publication,
        Some("PUB-02"),
    );
    check(
        |chain| chain.links[0].1 = other(),
        &by_publication,
        Some("PUB-01"),
    );
}

fn judged(said: &Said, told: Option<&str>) {
    check(said, i32::from(told.is_some()), told);
}

fn other() -> pitser_ksi::hash::Imprint {
    hash(Algorithm::Sha256, &[b"something else"])
}

/// A reply that was kept is judged like one that was just given.
#[test]
fn a_kept_reply_for_another_second() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{PACK}/{WITHOUT_ANCHOR}");
    let signature = signature(&path);
    let calendar = Calendar::around(&signature);
    let published = calendar.publication(calendar.head());
    let query = ExtendQuery {
        request_id: 1,
        aggregation_time: signature.aggregation_time(),
        publication_time: Some(published.time),
    };
    let check = |meddle: fn(&mut CalendarChain), told| {
        let mut chain = calendar.chain(query.aggregation_time, published.time);
        meddle(&mut chain);
        let reply = Pdu::new(Header::new("extender"), result(query, chain));
        let reply = reply.encode(b"anon", Algorithm::Sha256).unwrap();
        fs::write(dir.path().join("reply.tlv"), reply).unwrap();
        let options = format!(
            "--publication {} --extender-reply reply.tlv",
            published.to_code()
        );
        judged(
            &verify(dir.path(), testdata(&path).to_str().unwrap(), &options),
            told,
        );
    };
    check(|_| {}, None);
    check(
        |chain| chain.publication_time = chain.publication_time.plus(1),
        Some("PUB-02"),
    );
    check(|chain| chain.links[0].1 = other(), Some("PUB-01"));
}

#[test]
fn an_extender_that_fails_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{PACK}/{WITHOUT_ANCHOR}");
    let check = |answer: Box<Answer>, says: &str| {
        let options = format!("--policy calendar -X {}", start(answer));
        let said = verify(dir.path(), testdata(&path).to_str().unwrap(), &options);
        check(&said, 2, Some("GEN-02"));
        assert!(said.out.contains(says), "no {says:?} in {said:?}");
    };
    check(
        Box::new(|query| {
            let failure = ExtendResult::failure(query.request_id, Status(0x0105), "too old");
            ExtendResponsePayload::Result(failure)
        }),
        "too old",
    );
    check(
        Box::new(|_| {
            ExtendResponsePayload::Error(ErrorPayload {
                status: Status(0x0200),
                message: Some("out of order".into()),
            })
        }),
        "out of order",
    );
    check(
        Box::new(|query| {
            ExtendResponsePayload::Result(ExtendResult {
                request_id: query.request_id,
                status: Status::OK,
                message: None,
                calendar_last: None,
                calendar: None,
            })
        }),
        "the calendar chain is missing",
    );
}
