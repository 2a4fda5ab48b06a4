//! No bytes make a decoder panic, and what it accepts it writes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pitser_ksi::{
    Imprint, Signature,
    chain::Metadata,
    pdu::{
        AggregationRequestPayload, AggregationResponsePayload, ExtendRequestPayload,
        ExtendResponsePayload, Payload, Pdu, frame_len,
    },
    policy::{Context, Policy, verify},
    publication::PublicationData,
    tlv::Reader,
};
use proptest::prelude::*;
use std::{fs, path::Path};

fn read(name: &str) -> Vec<u8> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/ksi");
    fs::read(testdata.join(name)).unwrap()
}

/// The bytes of one of `names`, damaged here and there, and sometimes cut.
fn damaged(names: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (prop::sample::select(names), damage, cut).prop_map(|(name, damage, cut)| {
        let mut bytes = read(name);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

fn decode_signature(bytes: &[u8]) {
    if let Ok(signature) = Signature::decode(bytes) {
        assert_eq!(signature.encode(), bytes);
        let _ = verify(&signature, &Context::new(Policy::Internal));
        let _ = signature.identities().count();
    }
}

fn decode_message<P: Payload>(bytes: &[u8]) {
    if let Ok(received) = Pdu::<P>::decode(bytes) {
        assert_eq!(frame_len(bytes), Ok(Some(bytes.len())));
        let _ = received.verify_mac(b"anon");
    }
}

fn decode_messages(bytes: &[u8]) {
    decode_message::<AggregationRequestPayload>(bytes);
    decode_message::<AggregationResponsePayload>(bytes);
    decode_message::<ExtendRequestPayload>(bytes);
    decode_message::<ExtendResponsePayload>(bytes);
}

const SIGNATURES: &[&str] = &[
    "tlv/ok-sig-2014-04-30.1-extended.ksig",
    "tlv/ok-legacy-sig-2014-06.gtts.ksig",
    "tlv/ok-sig-2017-04-21.1-input-hash-level-5.ksig",
];

const MESSAGES: &[&str] = &[
    "pdu/aggr_request.tlv",
    "pdu/extend_request.tlv",
    "pdu/aggr_error_pdu.tlv",
    "pdu/ok-sig-2014-07-01.1-aggr_response-with-conf-and-ack.tlv",
    "pdu/ok-sig-2014-04-30.1-extend_response-with-conf.tlv",
    "tlv/ok-sig-2014-04-30.1-extend_response-pduv1.tlv",
];

proptest! {
    #[test]
    fn damaged_signatures(bytes in damaged(SIGNATURES)) {
        decode_signature(&bytes);
    }

    #[test]
    fn damaged_messages(bytes in damaged(MESSAGES)) {
        decode_messages(&bytes);
    }

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_messages(&bytes);
        decode_signature(&bytes);
        let _ = frame_len(&bytes);
        let _ = Imprint::from_bytes(&bytes);
        let _ = Metadata::decode(&bytes);
        let _ = Metadata::is_unambiguous(&bytes);
        let _ = Reader::new(&bytes).count();
    }

    #[test]
    fn arbitrary_text(text in ".{0,200}") {
        let _ = PublicationData::from_code(&text);
        let _ = text.parse::<Imprint>();
    }

    #[test]
    fn metadata_reads_as_written(
        client_id in "[^\0]{0,40}",
        machine_id in prop::option::of("[^\0]{0,40}"),
        sequence: Option<u64>,
        request_time_us: Option<u64>,
    ) {
        let metadata = Metadata { client_id, machine_id, sequence, request_time_us };
        let encoded = metadata.encode();
        prop_assert!(Metadata::is_unambiguous(&encoded));
        prop_assert_eq!(Metadata::decode(&encoded), Ok(metadata));
    }
}

#[test]
fn every_truncation_is_refused() {
    for name in SIGNATURES {
        let bytes = read(name);
        for length in 0..bytes.len() {
            assert!(
                Signature::decode(&bytes[..length]).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}
