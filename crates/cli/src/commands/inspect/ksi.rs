//! Signatures, publications, service messages, certificates.

use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Metadata, Sibling, Side};
use pitser_ksi::pdu::{
    AggregationRequest, AggregationRequestPayload, AggregationResponse, AggregationResponsePayload,
    ExtendRequest, ExtendRequestPayload, ExtendResponse, ExtendResponsePayload, Received, Version,
};
use pitser_ksi::pki::Certificate;
use pitser_ksi::publication::{PublicationData, PublicationRecord};
use pitser_ksi::publications_file::PublicationsFile;
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;
use pitser_ksi::tlv::Tag;

use super::{text, utf8};
use crate::tree::{Map, Tree, hex};

/// A signature, its chains from the document upwards.
pub(super) fn signature(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let signature = Signature::decode(bytes).map_err(text)?;
    Ok(signature_facts(head, &signature))
}

fn signature_facts(head: Map, signature: &Signature) -> Map {
    let mut level = 0;
    let chains = signature
        .aggregation_chains()
        .iter()
        .zip(signature.outputs())
        .map(|(chain, output)| {
            let facts = aggregation(chain, level).with("output", output);
            // Decoding has checked that levels stay within 255.
            level = chain.output_level(level).unwrap_or(u8::MAX);
            facts.with("output_level", level)
        });
    let chains: Vec<_> = chains.collect();
    head.with("signed_at", signature.aggregation_time())
        .with("input", signature.input())
        .with("input_level_max", signature.input_level_max())
        .list("identities", signature.identities())
        .maybe(
            "rfc3161",
            signature.rfc3161().map(|record| {
                Map::new()
                    .with("time", record.aggregation_time)
                    .with("input", record.input)
                    .with("tst_algorithm", record.tst_algorithm.name())
                    .with("attribute_algorithm", record.attr_algorithm.name())
            }),
        )
        .list("aggregation_chains", chains)
        .maybe("calendar_chain", signature.calendar().map(calendar))
        .maybe("anchor", signature.anchor().map(anchor))
}

fn aggregation(chain: &AggregationChain, level: u8) -> Map {
    let mut level = level;
    let links = chain.links.iter().map(|link| {
        level = level.saturating_add(link.correction).saturating_add(1);
        Tree::Line(sibling(link, level))
    });
    let links: Vec<_> = links.collect();
    Map::new()
        .with("time", chain.aggregation_time)
        .with(
            "index",
            chain
                .index
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        )
        .with("algorithm", chain.algorithm.name())
        .maybe("input_data", chain.input_data.as_deref().map(hex))
        .with("input", chain.input)
        .list("links", links)
}

/// One step: where the running hash stands, the level reached, and the other child.
fn sibling(link: &Link, level: u8) -> Map {
    let facts = Map::new()
        .with("side", side(link.side))
        .with("level", level);
    match &link.sibling {
        Sibling::Imprint(imprint) => facts.with("sibling", imprint),
        Sibling::LegacyId(_) => facts.with("client", link.sibling.client_id().unwrap_or_default()),
        Sibling::Metadata(encoded) => match Metadata::decode(encoded) {
            Ok(metadata) => facts
                .with("client", metadata.client_id)
                .maybe("machine", metadata.machine_id)
                .maybe("sequence", metadata.sequence)
                .maybe("requested_at", metadata.request_time_us.map(micros)),
            Err(_) => facts.with("metadata", hex(encoded)),
        },
    }
}

fn calendar(chain: &CalendarChain) -> Map {
    let links = chain.links.iter().map(|(place, sibling)| {
        Tree::Line(
            Map::new()
                .with("side", side(*place))
                .with("sibling", sibling),
        )
    });
    Map::new()
        .with("time", chain.time())
        .with(
            "time_by_shape",
            chain
                .time_from_shape()
                .map_or("none".to_owned(), |at| at.to_string()),
        )
        .with("publication_time", chain.publication_time)
        .with("input", chain.input)
        .with("root", chain.output())
        .list("links", links)
}

fn anchor(anchor: &Anchor) -> Map {
    match anchor {
        Anchor::Publication(record) => publication(record),
        Anchor::Authentication(record) => {
            let signature = record.signature();
            Map::new()
                .with("time", record.data().time)
                .with("root", record.data().imprint)
                .with("signed_with", &signature.oid)
                .with("certificate", hex(&signature.certificate_id))
                .maybe("repository", signature.repository.as_ref())
        }
    }
}

fn publication(record: &PublicationRecord) -> Map {
    let strings = |texts: &[String]| {
        let list: Vec<_> = texts.iter().map(Tree::from).collect();
        (!list.is_empty()).then_some(Tree::List(list))
    };
    code_facts(Map::new(), &record.data)
        .maybe("references", strings(&record.references))
        .maybe("repositories", strings(&record.repositories))
}

fn code_facts(head: Map, data: &PublicationData) -> Map {
    head.with("time", data.time)
        .with("root", data.imprint)
        .with("code", data.to_code())
}

/// A publication code, with the time and root it stands for.
pub(super) fn publication_code(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let data = PublicationData::from_code(utf8(bytes)?).map_err(text)?;
    Ok(code_facts(head, &data))
}

/// A publications file.
pub(super) fn publications(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let file = PublicationsFile::decode(bytes).map_err(text)?;
    let certificates = file.certificates().iter().map(|record| {
        let facts = Map::new().with("id", hex(&record.id));
        match Certificate::from_der(&record.der) {
            Ok(certificate) => certificate_facts(facts, &certificate),
            Err(error) => facts.with("unreadable", error.to_string()),
        }
    });
    Ok(head
        .with("created_at", file.created_at())
        .maybe("repository", file.repository())
        .list("certificates", certificates)
        .list("publications", file.publications().iter().map(publication)))
}

/// Certificates, PEM or DER.
pub(super) fn certificates(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let certificates = match std::str::from_utf8(bytes) {
        Ok(pem) => Certificate::many_from_pem(pem),
        Err(_) => Certificate::from_der(bytes).map(|one| vec![one]),
    };
    Ok(head.list(
        "certificates",
        certificates.map_err(text)?.iter().map(certificate),
    ))
}

/// What a certificate says of its subject.
pub(super) fn certificate(certificate: &Certificate) -> Map {
    certificate_facts(Map::new().with("id", hex(&certificate.id())), certificate)
}

fn certificate_facts(head: Map, certificate: &Certificate) -> Map {
    head.with("subject", certificate.subject())
        .with("valid_from", certificate.valid_from())
        .with("valid_until", certificate.valid_until())
        .with("usable_key", certificate.has_supported_key())
}

/// A message of the service protocol, in either version and direction.
pub(super) fn message(head: Map, tag: Tag, bytes: &[u8]) -> Result<Map, String> {
    match tag {
        0x0220 => aggregation_request(head, bytes),
        0x0221 => aggregation_response(head, bytes),
        0x0320 => extend_request(head, bytes),
        0x0321 => extend_response(head, bytes),
        // Version 1 has one tag for both directions.
        0x0200 => {
            aggregation_response(head.clone(), bytes).or_else(|_| aggregation_request(head, bytes))
        }
        _ => extend_response(head.clone(), bytes).or_else(|_| extend_request(head, bytes)),
    }
}

fn aggregation_request(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let received = AggregationRequest::decode(bytes).map_err(text)?;
    let payloads = received.pdu.payloads.iter().map(|payload| match payload {
        AggregationRequestPayload::Sign(request) => Map::new()
            .with("asks", "sign")
            .with("request", request.request_id)
            .with("input", request.input)
            .with("level", request.level),
        AggregationRequestPayload::Config => Map::new().with("asks", "configuration"),
        AggregationRequestPayload::Ack { request_time_us } => Map::new()
            .with("asks", "acknowledgement")
            .with("at", micros(*request_time_us)),
    });
    Ok(envelope(head.with("direction", "to an aggregator"), &received).list("payloads", payloads))
}

fn aggregation_response(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let received = AggregationResponse::decode(bytes).map_err(text)?;
    let payloads = received.pdu.payloads.iter().map(|payload| match payload {
        AggregationResponsePayload::Result(result) => {
            let facts = Map::new()
                .with("says", "result")
                .with("request", result.request_id)
                .with("status", result.status.to_string())
                .maybe("message", result.message.as_ref());
            if result.signature.is_empty() {
                return facts;
            }
            match Signature::from_result(&result.signature, 0) {
                Ok(signature) => facts.with("signature", signature_facts(Map::new(), &signature)),
                Err(error) => facts.with("unreadable_signature", error.to_string()),
            }
        }
        AggregationResponsePayload::Error(error) => {
            refusal(error.status.to_string(), error.message.as_ref())
        }
        AggregationResponsePayload::Config(config) => Map::new()
            .with("says", "configuration")
            .maybe("max_level", config.max_level)
            .maybe(
                "algorithm",
                config.algorithm.map(|algorithm| algorithm.name()),
            )
            .maybe("period_ms", config.period_ms)
            .maybe("max_requests", config.max_requests)
            .list("parents", &config.parents),
        AggregationResponsePayload::Ack(ack) => Map::new()
            .with("says", "acknowledgement")
            .with("requested_at", micros(ack.request_time_us))
            .with("received_at", micros(ack.receipt_time_us))
            .with("acknowledged_at", micros(ack.ack_time_us))
            .with("delay_ms", ack.delay_ms)
            .with("period_ms", ack.period_ms)
            .with("drift_ms", ack.drift_ms),
    });
    Ok(
        envelope(head.with("direction", "from an aggregator"), &received)
            .list("payloads", payloads),
    )
}

fn extend_request(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let received = ExtendRequest::decode(bytes).map_err(text)?;
    let payloads = received.pdu.payloads.iter().map(|payload| match payload {
        ExtendRequestPayload::Extend(query) => Map::new()
            .with("asks", "extend")
            .with("request", query.request_id)
            .with("from", query.aggregation_time)
            .maybe("to", query.publication_time),
        ExtendRequestPayload::Config => Map::new().with("asks", "configuration"),
    });
    Ok(envelope(head.with("direction", "to an extender"), &received).list("payloads", payloads))
}

fn extend_response(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let received = ExtendResponse::decode(bytes).map_err(text)?;
    let payloads = received.pdu.payloads.iter().map(|payload| match payload {
        ExtendResponsePayload::Result(result) => Map::new()
            .with("says", "result")
            .with("request", result.request_id)
            .with("status", result.status.to_string())
            .maybe("message", result.message.as_ref())
            .maybe("calendar_last", result.calendar_last)
            .maybe("calendar_chain", result.calendar.as_ref().map(calendar)),
        ExtendResponsePayload::Error(error) => {
            refusal(error.status.to_string(), error.message.as_ref())
        }
        ExtendResponsePayload::Config(config) => Map::new()
            .with("says", "configuration")
            .maybe("max_requests", config.max_requests)
            .maybe("calendar_first", config.calendar_first)
            .maybe("calendar_last", config.calendar_last)
            .list("parents", &config.parents),
    });
    Ok(envelope(head.with("direction", "from an extender"), &received).list("payloads", payloads))
}

fn refusal(status: String, message: Option<&String>) -> Map {
    Map::new()
        .with("says", "error")
        .with("status", status)
        .maybe("message", message)
}

fn envelope<P>(head: Map, received: &Received<P>) -> Map {
    let version = match received.version {
        Version::V1 => 1_u64,
        Version::V2 => 2,
    };
    let header = received.pdu.header.as_ref();
    head.with("version", version)
        .maybe("login", header.map(|header| &header.login_id))
        .maybe("instance", header.and_then(|header| header.instance_id))
        .maybe("message", header.and_then(|header| header.message_id))
        .maybe(
            "mac",
            received.mac_algorithm().map(|algorithm| algorithm.name()),
        )
}

/// Microseconds since 1970 as an instant.
fn micros(micros: u64) -> String {
    let second = Second(micros / 1_000_000).to_string();
    format!(
        "{}.{:06}Z",
        second.trim_end_matches('Z'),
        micros % 1_000_000
    )
}

fn side(side: Side) -> &'static str {
    match side {
        Side::Left => "left",
        Side::Right => "right",
    }
}
