//! Published messages are accepted or refused as their names say, and lead to
//! signatures that hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pitser_ksi::{
    Algorithm, DecodeError, Signature,
    chain::CalendarChain,
    pdu::{
        AggregationRequest, AggregationResponse, AggregationResponsePayload, ExtendRequest,
        ExtendResponse, ExtendResponsePayload, Payload, Pdu, Received, SignResult, Version,
        frame_len,
    },
    policy::{Code, Context, Policy, verify},
};
use std::{fmt::Debug, fs, path::Path};

const KEY: &[u8] = b"anon";

/// What comes of a file of one or more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Well formed, with the right MAC, or an error that needs none.
    Accepted,
    /// Not well formed.
    Malformed,
    /// The MAC is wrong.
    Forged,
    /// The signature inside contradicts itself, whatever the level of the request.
    Contradictory,
}

fn fate(bytes: &[u8]) -> Fate {
    let fates = messages(bytes).map(|message| fate_of_message(message).unwrap_or(Fate::Malformed));
    fates
        .into_iter()
        .find(|fate| *fate != Fate::Accepted)
        .unwrap_or(Fate::Accepted)
}

/// The messages of a stream, by their frames.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = frame_len(bytes).unwrap()?;
        let (message, rest) = bytes.split_at(length);
        bytes = rest;
        Some(message)
    })
}

fn fate_of_message(bytes: &[u8]) -> Result<Fate, DecodeError> {
    match bytes[..2] {
        [0x82, 0x20] => AggregationRequest::decode(bytes).map(|received| authentic(&received)),
        [0x82, _] => {
            let received = AggregationResponse::decode(bytes)?;
            let contradicts = |result: &&SignResult| level_of(result).is_none();
            Ok(match results(&received.pdu).find(contradicts) {
                Some(_) => Fate::Contradictory,
                None => authentic(&received),
            })
        }
        [0x83, 0x20] => ExtendRequest::decode(bytes).map(|received| authentic(&received)),
        _ => ExtendResponse::decode(bytes).map(|received| authentic(&received)),
    }
}

fn authentic<P: Payload + PartialEq + Debug>(received: &Received<P>) -> Fate {
    let rewritten = received.pdu.encode(KEY, Algorithm::Sha512).unwrap();
    assert_eq!(Pdu::<P>::decode(&rewritten).unwrap().pdu, received.pdu);
    assert!(!received.verify_mac(b"anom"));
    match received.mac_algorithm() {
        Some(_) if !received.verify_mac(KEY) => Fate::Forged,
        _ => Fate::Accepted,
    }
}

fn results(response: &AggregationResponse) -> impl Iterator<Item = &SignResult> {
    response
        .payloads
        .iter()
        .filter_map(|payload| match payload {
            AggregationResponsePayload::Result(result) if !result.signature.is_empty() => {
                Some(result)
            }
            _ => None,
        })
}

/// The level of the request, which the answer does not tell, but must fit.
fn level_of(result: &SignResult) -> Option<u8> {
    let context = Context::new(Policy::Internal);
    (0..=20).find(|level| {
        Signature::from_result(&result.signature, *level)
            .is_ok_and(|signature| verify(&signature, &context).is_intact())
    })
}

fn read(name: &str) -> Vec<u8> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ksi");
    fs::read(testdata.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ksi/pdu");
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What the name of a file says; `ok-sig-…` is the name of the signature asked for.
fn promised(name: &str) -> Fate {
    match name {
        // An unknown element nobody may ignore.
        _ if name.contains("-critical-") && !name.contains("non-critical") => Fate::Malformed,
        _ if name.contains("-not-first") || name.contains("-not-last") => Fate::Malformed,
        "tlv_missing_tag.tlv" | "tlv_unknown_tag.tlv" => Fate::Malformed,
        // For an older reader: the login id is no string, zero is not minimal.
        "ok-sig-2014-07-01.1-aggr_response_ordered.tlv" => Fate::Malformed,
        "nok_aggr_response-invalid-aggr-chain.tlv" => Fate::Contradictory,
        _ if name.starts_with("nok_") => Fate::Malformed,
        // One good answer among altered ones, from which the client must choose.
        _ if name.contains("-multiple-responses") || name.contains("-duplicate-response") => {
            Fate::Contradictory
        }
        // The others are well formed, but belong to another request.
        _ => Fate::Accepted,
    }
}

#[test]
fn names_of_messages_tell_their_fate() {
    let names = names();
    assert_eq!(names.len(), 106);
    for name in names {
        assert_eq!(
            fate(&read(&format!("pdu/{name}"))),
            promised(&name),
            "{name}"
        );
    }
}

#[test]
fn version_1_is_read() {
    for (name, level) in [
        ("tlv/ok-sig-2014-07-01.1-aggr_response-pduv1.tlv", 0),
        ("tlv/ok-sig-2016-05-09.1-lvl4.ksig", 4),
        ("tlv/ok-sig-2016-05-09.2-lvl5.ksig", 5),
    ] {
        let received = AggregationResponse::decode(&read(name)).unwrap();
        assert_eq!(received.version, Version::V1);
        assert!(
            received.verify_mac(KEY) && !received.verify_mac(b"anom"),
            "{name}"
        );
        let result = results(&received.pdu).next().unwrap();
        assert_eq!(level_of(result), Some(level), "{name}");
    }
    let name = "tlv/ok-sig-2014-04-30.1-extend_response-pduv1.tlv";
    let received = ExtendResponse::decode(&read(name)).unwrap();
    assert!(received.version == Version::V1 && received.verify_mac(KEY));
}

#[test]
fn several_messages_share_a_stream() {
    let name = "pdu/ok-sig-2014-07-01.1-aggr-response-multiple-responses.tlv";
    let bytes = read(name);
    let ids = messages(&bytes).map(|message| {
        let received = AggregationResponse::decode(message).unwrap();
        results(&received.pdu).next().unwrap().request_id
    });
    assert_eq!(ids.collect::<Vec<_>>(), [0x32, 0x01, 0x22]);
}

#[test]
fn an_answer_becomes_the_published_signature() {
    let answer = read("pdu/ok-sig-2014-07-01.1-aggr_response.tlv");
    let received = AggregationResponse::decode(&answer).unwrap();
    let result = results(&received.pdu).next().unwrap();
    let signature = Signature::from_result(&result.signature, 0).unwrap();
    let published = Signature::decode(&read("tlv/ok-sig-2014-07-01.1.ksig")).unwrap();
    assert_eq!(signature.input(), published.input());
    assert_eq!(
        signature.aggregation_output(),
        published.aggregation_output()
    );
}

#[test]
fn a_level_raises_the_first_link_only() {
    let received = AggregationResponse::decode(&read("tlv/ok-sig-2016-05-09.1-lvl4.ksig")).unwrap();
    let result = results(&received.pdu).next().unwrap();
    let plain = Signature::from_result(&result.signature, 0).unwrap();
    let raised = Signature::from_result(&result.signature, 4).unwrap();
    let corrections = |signature: &Signature| -> Vec<u8> {
        let chains = signature.aggregation_chains().iter();
        chains
            .flat_map(|chain| chain.links.iter().map(|link| link.correction))
            .collect()
    };
    let mut expected = corrections(&plain);
    expected[0] += 4;
    assert_eq!(corrections(&raised), expected);
    let verdict = |level| {
        verify(
            &raised,
            &Context {
                level,
                ..Context::new(Policy::Internal)
            },
        )
        .code()
    };
    assert_eq!((verdict(4), verdict(5)), (None, Some(Code::Gen03)));
}

fn extended_chain() -> CalendarChain {
    let answer = read("pdu/ok-sig-2014-04-30.1-extend_response.tlv");
    let payloads = ExtendResponse::decode(&answer).unwrap().pdu.payloads;
    let result = payloads.into_iter().find_map(|payload| match payload {
        ExtendResponsePayload::Result(result) => Some(result),
        _ => None,
    });
    result.unwrap().calendar.unwrap()
}

#[test]
fn an_extended_signature_equals_the_published_one() {
    let signature = Signature::decode(&read("tlv/ok-sig-2014-04-30.1.ksig")).unwrap();
    let extended = signature.extend_with(&extended_chain(), None).unwrap();
    assert_eq!(
        extended.encode(),
        read("tlv/ok-sig-2014-04-30.1-extended_1400112000.ksig")
    );
    assert!(verify(&extended, &Context::new(Policy::Internal)).is_intact());
}
