//! Log signatures, their parts and proofs.

use pitser_ksi::logsig::{
    Block, BlockReader, Excerpt, ExcerptBlock, Format, Seal, SealReader, SealRecord,
};
use pitser_ksi::signature::Signature;

use super::text;
use crate::tree::{Map, hex};

/// A file of `format`, block by block.
pub(super) fn describe(head: Map, format: Format, bytes: &[u8]) -> Result<Map, String> {
    let magic = format
        .magic()
        .iter()
        .map(|byte| char::from(*byte))
        .collect::<String>();
    let head = head.with("format", magic);
    match format {
        Format::Seals => {
            let seals: Result<Vec<_>, _> = SealReader::new(bytes).map_err(text)?.collect();
            Ok(head.list(
                "seals",
                seals
                    .map_err(text)?
                    .iter()
                    .map(|record| seal(Map::new(), record)),
            ))
        }
        Format::Proof | Format::Proof11 => {
            let proof = Excerpt::decode(bytes).map_err(text)?;
            Ok(head.list("blocks", proof.blocks.iter().map(proof_block)))
        }
        Format::LogSignature | Format::LogSignature11 | Format::Blocks => {
            let mut first_line = 1;
            let mut blocks = Vec::new();
            for read in BlockReader::new(bytes).map_err(text)? {
                let read = read.map_err(text)?;
                blocks.push(block(&read, first_line));
                first_line += read.line_count();
            }
            Ok(head.with("lines", first_line - 1).list("blocks", blocks))
        }
    }
}

fn block(block: &Block<'_>, first_line: u64) -> Map {
    let metarecords = block.metarecords().map(|record| {
        Map::new()
            .with("leaf", record.index)
            .with("key", record.key)
            .with("value", record.value)
    });
    let metarecords: Vec<_> = metarecords.collect();
    let facts = Map::new()
        .with("at_byte", block.at)
        .with("first_line", first_line)
        .with("lines", block.line_count())
        .with("algorithm", block.header.algorithm.name())
        .with("continues_from", block.header.previous_leaf)
        .with("record_hashes", block.has_record_hashes())
        .with("tree_hashes", block.has_tree_hashes())
        .list("metarecords", metarecords);
    seal(facts, &block.seal)
}

fn seal(head: Map, record: &SealRecord<'_>) -> Map {
    let head = head.with("records", record.count);
    match record.seal {
        Seal::Signature(bytes) => signed(head, bytes),
        Seal::Rfc3161(token) => head.with("rfc3161_token_bytes", token.len()),
        Seal::Unsigned { root, error } => head.with("unsigned_root", root).maybe("error", error),
    }
}

fn signed(head: Map, bytes: &[u8]) -> Map {
    match Signature::decode(bytes) {
        Ok(signature) => head
            .with("signed_at", signature.aggregation_time())
            .with("root", signature.input())
            .list("identities", signature.identities())
            .maybe(
                "published",
                signature.publication().map(|record| record.data.time),
            ),
        Err(error) => head.with("unreadable_signature", error.to_string()),
    }
}

fn proof_block(block: &ExcerptBlock) -> Map {
    let records = block.records.iter().map(|record| {
        Map::new()
            .with("record", record.record())
            .maybe("metarecord", record.metarecord().map(hex))
            .with("steps", record.steps().len())
            .with("leads_to", record.root().0)
    });
    signed(Map::new(), &block.signature).list("records", records)
}
