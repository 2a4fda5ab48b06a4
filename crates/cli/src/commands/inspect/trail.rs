//! Trail lines, evidence, anchors, signed notes. Values that evidence discloses
//! are left to `verify --show`, which judges before it shows.

use pitser_evidence::audit::Statement;
use pitser_evidence::block::LogLeaf;
use pitser_evidence::{Anchors, Evidence, Line};
use pitser_ksi::pki::Certificate;
use pitser_ksi::signature::Signature;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::{Note, SignatureLine};

use super::ksi::certificate;
use super::{text, utf8};
use crate::tree::{Map, Tree, hex};

/// One trail line.
pub(crate) fn line(line: &Line) -> Map {
    let prev = |prev: &pitser_evidence::line::Prev| prev.seq;
    Map::new()
        .with("seq", line.seq)
        .with("at", line.at.to_string())
        .with("op", line.op.as_str())
        .with("source", &line.source)
        .with("position", &line.pos)
        .maybe("event", Some(line.event).filter(|event| *event != line.seq))
        .maybe("transaction", line.tx)
        .maybe("table", line.table.as_ref())
        .maybe("key", line.key.map(|key| key.to_string()))
        .maybe("patient", line.patient.map(|patient| patient.to_string()))
        .maybe(
            "columns",
            line.columns.as_ref().map(|columns| columns.join(", ")),
        )
        .maybe("purpose", line.purpose.as_ref())
        .maybe("previous_of_record", line.prev.as_ref().map(prev))
        .maybe("previous_of_patient", line.patient_prev.as_ref().map(prev))
        .maybe(
            "actor",
            line.actor.as_ref().map(|actor| {
                Map::new()
                    .maybe("application", actor.app.as_ref())
                    .maybe("role", actor.role.as_ref())
                    .maybe("client", actor.client.as_ref())
                    .maybe(
                        "person",
                        actor.person.map(|person| format!("committed, {person}")),
                    )
                    .with("binding", format!("{:?}", actor.binding))
            }),
        )
        .maybe(
            "accepts_finding_of_line",
            line.accept.as_ref().map(|accept| accept.finding.seq),
        )
        .maybe(
            "lifts_hold_of_line",
            line.release.as_ref().map(|release| release.hold.seq),
        )
        .maybe(
            "erase",
            line.erase.as_ref().map(|erase| {
                let [first, second] = &erase.deciders;
                Map::new()
                    .with("basis", &erase.basis)
                    .with("deciders", format!("committed, {first}, {second}"))
            }),
        )
        .maybe(
            "genesis",
            line.genesis.as_ref().map(|genesis| {
                let tables = genesis.tables.iter().map(|table| {
                    Map::new()
                        .with("name", &table.name)
                        .with("columns", table.columns.join(", "))
                        .with("key", table.key.join(", "))
                        .with("patient", &table.patient)
                });
                Map::new()
                    .with("origin", &genesis.origin)
                    .with("log_key", &genesis.log_key)
                    .with("predecessor", &genesis.predecessor)
                    .with("system", &genesis.system)
                    .list("tables", tables)
                    .list("uncovered", &genesis.uncovered)
            }),
        )
        .maybe(
            "checkpoint",
            line.checkpoint.as_ref().map(|checkpoint| {
                Map::new()
                    .with("block", checkpoint.block)
                    .with("lines", checkpoint.count)
                    .with("map", checkpoint.map.to_string())
                    .maybe(
                        "newest_seal_of_block",
                        checkpoint.seal.map(|seal| seal.block),
                    )
            }),
        )
        .maybe(
            "finding",
            line.finding.as_ref().map(|finding| {
                Map::new()
                    .with("code", finding.code.as_str())
                    .with("text", &finding.text)
                    .maybe("about", finding.about)
            }),
        )
        .maybe(
            "gap",
            line.gap
                .as_ref()
                .map(|gap| format!("{} to {}", gap.from, gap.to)),
        )
}

/// The lines of a trail, each with the hash that is sealed.
pub(super) fn lines(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let mut lines = Vec::new();
    let mut at = 0;
    for bytes in bytes.split_inclusive(|byte| *byte == b'\n') {
        let content = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let read = Line::decode(content)
            .map_err(|e| format!("line {}, which starts at byte {at}: {e}", lines.len() + 1))?;
        lines.push(line(&read).with("hash", Line::hash(content).to_string()));
        at += bytes.len();
    }
    Ok(head.with("count", lines.len()).list("lines", lines))
}

/// What an evidence file is about.
pub(super) fn evidence(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let evidence = Evidence::decode(bytes).map_err(text)?;
    let blocks = evidence.blocks.iter().map(|proof| {
        let facts = Map::new().with("block", proof.block);
        let facts = match LogLeaf::decode(&proof.leaf.0) {
            Ok(leaf) => facts
                .with("first_line", leaf.first_seq)
                .with("lines", leaf.count),
            Err(error) => facts.with("unreadable", error.to_string()),
        };
        match proof.seal.as_ref().map(|seal| Signature::decode(&seal.0)) {
            None => facts.with("seal", "none yet"),
            Some(Err(error)) => facts.with("unreadable_seal", error.to_string()),
            Some(Ok(seal)) => facts.with("sealed_at", seal.aggregation_time()).maybe(
                "published",
                seal.publication().map(|record| record.data.time),
            ),
        }
    });
    let lines = evidence
        .lines
        .iter()
        .map(|proof| line(&proof.line).with("block", proof.block));
    Ok(head
        .with("format", &evidence.format)
        .with("origin", &evidence.origin)
        .with(
            "genesis",
            Line::hash(&evidence.genesis.encode()).to_string(),
        )
        .with("head", note_facts(Map::new(), &evidence.head)?)
        .maybe(
            "audit",
            evidence
                .audit
                .as_ref()
                .map(|audit| note_facts(Map::new(), audit))
                .transpose()?,
        )
        .list("blocks", blocks)
        .list("lines", lines))
}

/// What a verifier trusts.
pub(super) fn anchors(head: Map, bytes: &[u8]) -> Result<Map, String> {
    let anchors = Anchors::from_toml(utf8(bytes)?)?;
    let key = |anchor: &pitser_evidence::anchors::KeyAnchor| {
        Map::new()
            .with("key", anchor.key.to_string())
            .maybe("valid_from", anchor.valid_from)
            .maybe("valid_until", anchor.valid_until)
    };
    let trails = anchors.trails.iter().map(|trail| {
        Map::new()
            .with("origin", &trail.origin)
            .with("genesis", trail.genesis.to_string())
    });
    let publications = anchors.publications.iter().map(|publication| {
        Map::new()
            .with("time", publication.code.time)
            .with("code", publication.code.to_code())
    });
    let authorities = anchors.authorities.iter().map(|authority| {
        let certificates = match Certificate::many_from_pem(&authority.certificate) {
            Ok(certificates) => certificates.iter().map(certificate).collect(),
            Err(error) => vec![Map::new().with("unreadable", error.to_string())],
        };
        Map::new()
            .list("certificates", certificates)
            .list("constraints", &authority.constraints)
    });
    Ok(head
        .list("trails", trails)
        .list("publications", publications)
        .list("authorities", authorities)
        .with("witness_quorum", anchors.witness_quorum)
        .list("witnesses", anchors.witnesses.iter().map(key))
        .list("auditors", anchors.auditors.iter().map(key)))
}

/// A signed note: a checkpoint, an auditor's statement, or any text.
pub(super) fn note(head: Map, bytes: &[u8]) -> Result<Map, String> {
    note_facts(head, utf8(bytes)?)
}

fn note_facts(head: Map, note: &str) -> Result<Map, String> {
    let note = Note::parse(note.as_bytes()).map_err(text)?;
    let head = if let Ok(statement) = Statement::parse(note.text()) {
        head.with("says", "auditor's statement")
            .with("origin", statement.origin)
            .with("block", statement.block)
            .with("size", statement.size)
            .with("map", statement.map_root.to_string())
            .with("made_at", statement.made_at)
    } else if let Ok(checkpoint) = Checkpoint::parse(note.text()) {
        head.with("says", "checkpoint")
            .with("origin", checkpoint.origin())
            .with("size", checkpoint.size())
            .with("root", hex(checkpoint.root()))
            .maybe(
                "extensions",
                Some(checkpoint.extensions().join(", ")).filter(|text| !text.is_empty()),
            )
    } else {
        head.with("says", "text").list("text", note.text().lines())
    };
    Ok(head.list("signatures", note.signatures().iter().map(signature_line)))
}

fn signature_line(line: &SignatureLine) -> Tree {
    let facts = Map::new()
        .with("name", line.name())
        .with("key_id", hex(line.key_id().as_bytes()));
    // A cosignature begins with its time (c2sp.org/tlog-cosignature).
    let time = line
        .signature()
        .split_first_chunk()
        .filter(|(_, rest)| rest.len() == 64);
    Tree::Map(facts.maybe(
        "cosigned_at",
        time.map(|(time, _)| Second(u64::from_be_bytes(*time))),
    ))
}
