//! What is written is read: every kind of object, made of anything that its
//! types allow.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::calendar::Calendar;
use common::key;
use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Metadata, Sibling, Side, shape};
use pitser_ksi::error::DecodeErrorKind;
use pitser_ksi::hash::{Algorithm, Imprint, hash};
use pitser_ksi::pdu::{
    AggregationAck, AggregationRequestPayload, AggregationResponsePayload, AggregatorConfig,
    ErrorPayload, ExtendQuery, ExtendRequestPayload, ExtendResponsePayload, ExtendResult,
    ExtenderConfig, Header, Payload, Pdu, SignRequest, SignResult, Status, frame_len,
};
use pitser_ksi::pki::{Subject, TrustAnchors, Validity, self_signed};
use pitser_ksi::policy::{Context, Policy, verify};
use pitser_ksi::publication::{
    AuthenticationRecord, PublicationData, PublicationRecord, SignatureData,
};
use pitser_ksi::publications_file::{Contents, PublicationsFile};
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;
use pitser_ksi::tree::TreeBuilder;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    prop::sample::select(&Algorithm::ALL[..])
}

fn any_imprint() -> impl Strategy<Value = Imprint> {
    (any_algorithm(), any::<u64>())
        .prop_map(|(algorithm, seed)| hash(algorithm, &[&seed.to_be_bytes()]))
}

fn any_second() -> impl Strategy<Value = Second> {
    prop_oneof![Just(0), Just(255), Just(256), Just(u64::MAX), any::<u64>()].prop_map(Second)
}

fn any_side() -> impl Strategy<Value = Side> {
    prop::sample::select(&[Side::Left, Side::Right][..])
}

/// Without zero bytes, which no text of the format can have.
fn any_text() -> impl Strategy<Value = String> {
    "[^\0]{1,40}"
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let numbers = (any::<Option<u64>>(), any::<Option<u64>>());
    (any_text(), option::of(any_text()), numbers).prop_map(
        |(client_id, machine_id, (sequence, request_time_us))| Metadata {
            client_id,
            machine_id,
            sequence,
            request_time_us,
        },
    )
}

fn any_sibling() -> impl Strategy<Value = Sibling> {
    let legacy_id = "[a-z]{0,25}".prop_map(|name| {
        let mut id = [0; 29];
        id[0] = 3;
        id[2] = name.len() as u8;
        id[3..][..name.len()].copy_from_slice(name.as_bytes());
        Sibling::LegacyId(id)
    });
    prop_oneof![
        any_imprint().prop_map(Sibling::Imprint),
        any_metadata().prop_map(|metadata| Sibling::Metadata(metadata.encode())),
        legacy_id,
    ]
}

fn any_links() -> impl Strategy<Value = Vec<Link>> {
    let link = (any_side(), 0..4u8, any_sibling()).prop_map(|(side, correction, sibling)| Link {
        side,
        correction,
        sibling,
    });
    vec(link, 1..8)
}

fn any_chain() -> impl Strategy<Value = AggregationChain> {
    let index = vec(any::<u64>(), 1..5);
    let input = (option::of(vec(any::<u8>(), 0..50)), any_imprint());
    (any_second(), index, input, any_algorithm(), any_links()).prop_map(
        |(aggregation_time, index, (input_data, input), algorithm, links)| AggregationChain {
            aggregation_time,
            index,
            input_data,
            input,
            algorithm,
            links,
        },
    )
}

fn any_calendar() -> impl Strategy<Value = CalendarChain> {
    let links = vec((any_side(), any_imprint()), 1..40);
    (any_second(), any_second(), any_imprint(), links).prop_map(
        |(publication_time, aggregation_time, input, links)| CalendarChain {
            publication_time,
            aggregation_time: Some(aggregation_time),
            input,
            links,
        },
    )
}

fn any_publication() -> impl Strategy<Value = PublicationData> {
    (any_second(), any_imprint()).prop_map(|(time, imprint)| PublicationData { time, imprint })
}

fn any_record() -> impl Strategy<Value = PublicationRecord> {
    let texts = (vec(any_text(), 0..3), vec(any_text(), 0..3));
    (any_publication(), texts).prop_map(|(data, (references, repositories))| PublicationRecord {
        data,
        references,
        repositories,
    })
}

fn any_anchor() -> impl Strategy<Value = Anchor> {
    let signature = (
        any_text(),
        vec(any::<u8>(), 0..300),
        vec(any::<u8>(), 0..8),
        option::of(any_text()),
    )
        .prop_map(|(oid, value, certificate_id, repository)| SignatureData {
            oid,
            value,
            certificate_id,
            repository,
        });
    let authentication = (any_publication(), signature)
        .prop_map(|(data, signature)| AuthenticationRecord::new(data, signature));
    prop_oneof![
        authentication.prop_map(Anchor::Authentication),
        any_record().prop_map(Anchor::Publication),
    ]
}

proptest! {
    /// They contradict themselves, which is no matter of format.
    #[test]
    fn signatures(
        chains in vec(any_chain(), 1..4),
        calendar in option::of((any_calendar(), option::of(any_anchor()))),
    ) {
        let (calendar, anchor) = match calendar {
            None => (None, None),
            Some((calendar, anchor)) => (Some(calendar), anchor),
        };
        let signature = Signature::new(&chains, calendar.as_ref(), anchor.as_ref()).unwrap();
        let again = Signature::decode(signature.as_bytes()).unwrap();
        prop_assert_eq!(&again, &signature);
        let mut sorted = chains;
        sorted.sort_by_key(|chain| std::cmp::Reverse(chain.index.len()));
        prop_assert_eq!(again.aggregation_chains(), sorted);
        prop_assert_eq!(again.calendar(), calendar.as_ref());
        prop_assert_eq!(again.anchor(), anchor.as_ref());
        let result = Signature::from_result(signature.children(), 0);
        prop_assert_eq!(result.as_ref(), Ok(&signature));
        if let Ok(raised) = Signature::from_result(signature.children(), 7) {
            prop_assert_eq!(raised.input_level_max(), signature.input_level_max() + 7);
            let too_far = Signature::from_result(raised.children(), 255);
            prop_assert_eq!(too_far.unwrap_err().kind, DecodeErrorKind::Range);
            let links = |signature: &Signature| signature.aggregation_chains()[0].links[1..].to_vec();
            prop_assert_eq!(links(&raised), links(&signature));
            prop_assert_eq!(&raised.aggregation_chains()[1..], &signature.aggregation_chains()[1..]);
        }
    }

    /// From a local tree over a service's round to a publication: whatever is
    /// made of a sound signature is sound.
    #[test]
    fn signatures_of_a_local_tree(
        leaves in vec((any_imprint(), option::of(any_metadata())), 1..9),
        algorithm in any_algorithm().prop_filter("current", |algorithm| algorithm.is_trusted()),
        above in any_links(),
        at in 1_500_000_000..4_000_000_000u64,
        later in 0..1_000_000u64,
    ) {
        prop_assume!(leaves.iter().all(|(leaf, _)| leaf.algorithm().is_trusted()));
        prop_assume!(leaves.len() > 1 || leaves[0].1.is_some());
        let at = Second(at);
        let mut local = TreeBuilder::new(algorithm);
        for (leaf, metadata) in &leaves {
            match metadata {
                Some(metadata) => local.push_with_metadata(*leaf, 0, metadata.encode()).unwrap(),
                None => local.push(*leaf, 0).unwrap(),
            };
        }
        let local = local.finish().unwrap();
        let chain = AggregationChain {
            aggregation_time: at,
            index: vec![shape(&above).unwrap()],
            input_data: None,
            input: local.root(),
            algorithm,
            links: above,
        };
        // The service computes as if the input were at that level, and does not say so.
        let (root, _) = chain.output(local.level()).unwrap();
        let calendar = Calendar { at, leaf: root, algorithm };
        let answer = Signature::new(&[chain], Some(&calendar.chain(at, at)), None).unwrap();
        let signature = Signature::from_result(answer.children(), local.level()).unwrap();
        let published = at.plus(later);
        let record = PublicationRecord::from(calendar.publication(published));
        let code = |signature: &Signature, document, level| {
            let context = Context {
                document: Some(document),
                level,
                user_publication: Some(record.data),
                ..Context::new(Policy::UserPublication)
            };
            verify(signature, &context).code()
        };
        for (index, (leaf, metadata)) in leaves.iter().enumerate() {
            let hung = signature.hang(algorithm, *leaf, local.links(index)).unwrap();
            let extended = hung
                .extend_with(&calendar.chain(at, published), Some(&record))
                .unwrap();
            prop_assert_eq!(code(&extended, *leaf, 0), None);
            let named = extended.identities().next();
            if let Some(metadata) = metadata {
                prop_assert_eq!(named.as_ref(), Some(&metadata.client_id));
            }
            prop_assert_eq!(&Signature::decode(extended.as_bytes()).unwrap(), &extended);
        }
        let whole = signature.extend_with(&calendar.chain(at, published), Some(&record)).unwrap();
        prop_assert_eq!(code(&whole, local.root(), local.level()), None);
    }

    #[test]
    fn publication_codes(data in any_publication()) {
        prop_assert_eq!(PublicationData::from_code(&data.to_code()), Ok(data));
    }

    #[test]
    fn aggregation_messages(
        header in any_header(),
        request in vec(any_aggregation_request(), 1..4),
        response in vec(any_aggregation_response(), 1..4),
        mac in any_algorithm(),
    ) {
        message(&header, request, mac);
        message(&header, response, mac);
    }

    #[test]
    fn extension_messages(
        header in any_header(),
        request in vec(any_extend_request(), 1..4),
        response in vec(any_extend_response(), 1..4),
        mac in any_algorithm(),
    ) {
        message(&header, request, mac);
        message(&header, response, mac);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn publications_files(
        created_at in any_second(),
        repository in option::of(any_text()),
        records in vec(any_record(), 0..5),
    ) {
        let signer = key("throw-away-rsa2048");
        let subject = Subject { email: "a@example.org".into(), ..Subject::default() };
        let validity = Validity { from: Second(0), until: Second(1_000_000_000) };
        let certificate = self_signed(&subject, validity, &[1], &signer).unwrap();
        let mut publications = records;
        publications.sort_by_key(|record| record.data.time);
        publications.dedup_by_key(|record| record.data.time);
        let contents = Contents {
            created_at,
            repository: repository.clone(),
            certificates: vec![certificate.clone()],
            publications: publications.clone(),
        };
        let file = PublicationsFile::build(&contents, &certificate, &signer).unwrap();
        let again = PublicationsFile::decode(file.encode()).unwrap();
        prop_assert_eq!(&again, &file);
        prop_assert_eq!(again.created_at(), created_at);
        prop_assert_eq!(again.repository(), repository.as_deref());
        prop_assert_eq!(again.publications(), publications);
        prop_assert_eq!(&again.certificates()[0].der, &certificate);
        let anchors = TrustAnchors::from_der(&certificate).unwrap();
        let publisher = ["email=a@example.org".parse().unwrap()];
        prop_assert!(again.verify(&anchors, &publisher, Second(500_000_000)).is_ok());
    }
}

/// A text that says nothing is left out rather than written and not read.
#[test]
fn empty_texts_are_left_out() {
    let data = PublicationData {
        time: Second(1),
        imprint: Imprint::zero(Algorithm::Sha256),
    };
    let record = PublicationRecord {
        data,
        references: vec![String::new(), "a".into(), "\0".into()],
        repositories: vec![String::new()],
    };
    let calendar = Calendar {
        at: Second(1),
        leaf: data.imprint,
        algorithm: Algorithm::Sha256,
    };
    let chain = AggregationChain {
        aggregation_time: Second(1),
        index: vec![3],
        input_data: Some(Vec::new()),
        input: data.imprint,
        algorithm: Algorithm::Sha256,
        links: vec![Link {
            side: Side::Left,
            correction: 0,
            sibling: Sibling::Imprint(data.imprint),
        }],
    };
    let calendar = calendar.chain(Second(1), Second(1));
    let anchor = Anchor::Publication(record);
    let signature = Signature::new(&[chain], Some(&calendar), Some(&anchor)).unwrap();
    let read = signature.publication().unwrap();
    assert_eq!(read.references, ["a"]);
    assert_eq!(read.repositories, [""; 0]);
}

fn message<P: Payload + Clone + PartialEq + std::fmt::Debug>(
    header: &Header,
    payloads: Vec<P>,
    mac: Algorithm,
) {
    let pdu = Pdu {
        header: Some(header.clone()),
        payloads,
    };
    let bytes = pdu.encode(b"secret", mac).unwrap();
    assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
    let received = Pdu::<P>::decode(&bytes).unwrap();
    assert!(received.verify_mac(b"secret") && !received.verify_mac(b"another"));
    assert_eq!(received.mac_algorithm(), Some(mac));
    assert_eq!(received.login_id(), header.login_id);
    assert_eq!(received.pdu, pdu);
}

fn any_header() -> impl Strategy<Value = Header> {
    let ids = (any::<Option<u64>>(), any::<Option<u64>>());
    ("[^\0]{0,40}", ids).prop_map(|(login_id, (instance_id, message_id))| Header {
        login_id,
        instance_id,
        message_id,
    })
}

fn any_status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(0), Just(0x101), any::<u64>()].prop_map(Status)
}

fn any_error() -> impl Strategy<Value = ErrorPayload> {
    (any_status(), option::of("[^\0]{0,40}"))
        .prop_map(|(status, message)| ErrorPayload { status, message })
}

fn any_aggregation_request() -> impl Strategy<Value = AggregationRequestPayload> {
    let sign = (any::<u64>(), any_imprint(), any::<u8>()).prop_map(|(request_id, input, level)| {
        AggregationRequestPayload::Sign(SignRequest {
            request_id,
            input,
            level,
        })
    });
    prop_oneof![
        sign,
        Just(AggregationRequestPayload::Config),
        any::<u64>().prop_map(|request_time_us| AggregationRequestPayload::Ack { request_time_us }),
    ]
}

fn any_aggregation_response() -> impl Strategy<Value = AggregationResponsePayload> {
    let signature = prop_oneof![
        Just(Vec::new()),
        (any_chain(), any_calendar()).prop_map(|(chain, calendar)| {
            let signature = Signature::new(&[chain], Some(&calendar), None).unwrap();
            signature.children().to_vec()
        }),
    ];
    let result =
        (any::<u64>(), any_error(), signature).prop_map(|(request_id, error, signature)| {
            AggregationResponsePayload::Result(SignResult {
                request_id,
                status: error.status,
                message: error.message,
                signature,
            })
        });
    let numbers = any::<[Option<u64>; 3]>();
    let config = (
        numbers,
        option::of(any_algorithm()),
        vec("[^\0]{0,40}", 0..3),
    )
        .prop_map(
            |([max_level, period_ms, max_requests], algorithm, parents)| {
                AggregationResponsePayload::Config(AggregatorConfig {
                    max_level,
                    algorithm,
                    period_ms,
                    max_requests,
                    parents,
                })
            },
        );
    let ack = any::<[u64; 6]>().prop_map(|numbers| {
        AggregationResponsePayload::Ack(AggregationAck {
            request_time_us: numbers[0],
            receipt_time_us: numbers[1],
            ack_time_us: numbers[2],
            delay_ms: numbers[3],
            period_ms: numbers[4],
            drift_ms: numbers[5],
        })
    });
    let error = any_error().prop_map(AggregationResponsePayload::Error);
    prop_oneof![result, config, ack, error]
}

fn any_extend_request() -> impl Strategy<Value = ExtendRequestPayload> {
    let extend = (any::<u64>(), any_second(), option::of(any_second())).prop_map(
        |(request_id, aggregation_time, publication_time)| {
            ExtendRequestPayload::Extend(ExtendQuery {
                request_id,
                aggregation_time,
                publication_time,
            })
        },
    );
    prop_oneof![extend, Just(ExtendRequestPayload::Config)]
}

fn any_extend_response() -> impl Strategy<Value = ExtendResponsePayload> {
    let times = || option::of(any_second());
    let result = (
        any::<u64>(),
        any_error(),
        times(),
        option::of(any_calendar()),
    )
        .prop_map(|(request_id, error, calendar_last, calendar)| {
            ExtendResponsePayload::Result(ExtendResult {
                request_id,
                status: error.status,
                message: error.message,
                calendar_last,
                calendar,
            })
        });
    let config = (
        any::<Option<u64>>(),
        vec("[^\0]{0,40}", 0..3),
        times(),
        times(),
    )
        .prop_map(|(max_requests, parents, calendar_first, calendar_last)| {
            ExtendResponsePayload::Config(ExtenderConfig {
                max_requests,
                parents,
                calendar_first,
                calendar_last,
            })
        });
    let error = any_error().prop_map(ExtendResponsePayload::Error);
    prop_oneof![result, config, error]
}
