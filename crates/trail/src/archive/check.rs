//! Whether a segment is whole by itself, before its only copy here goes away.

use pitser_evidence::seal::{self, SealKeys};
use pitser_ksi::logsig::{BlockReader, Lines, Seal, verify_block};

/// Recomputes every block of a closed segment from its lines: each goes on from the one
/// before and is sealed with its own root, and nothing is left over. What goes before
/// the segment, and the map, are the whole trail's reader's to check.
///
/// # Errors
/// What is wrong.
pub(super) fn whole(lines: &[u8], signatures: &[u8]) -> Result<(), String> {
    let mut left = Lines::new(lines);
    let mut last_leaf = None;
    for block in BlockReader::new(signatures).map_err(|e| e.to_string())? {
        let block = block.map_err(|e| e.to_string())?;
        if last_leaf.is_some_and(|leaf| leaf != block.header.previous_leaf) {
            return Err("a block does not continue the one before it".into());
        }
        let report = verify_block(&block, &mut left).map_err(|e| e.to_string())?;
        if !report.is_intact() {
            return Err("a line is not what was sealed".into());
        }
        let Seal::Signature(signature) = &block.seal.seal else {
            return Err("a block is not sealed".into());
        };
        if let seal::Seal::Broken(text) =
            seal::check(signature, report.root, report.level, &SealKeys::none())
        {
            return Err(text);
        }
        last_leaf = Some(report.last_leaf);
    }
    match (last_leaf, left.next()) {
        (None, _) => Err("it has no block".into()),
        (_, Some(_)) => Err("it goes on after its last block".into()),
        _ => Ok(()),
    }
}
