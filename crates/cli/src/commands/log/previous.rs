//! The leaf that a log goes on from.

use std::path::Path;

use pitser_ksi::hash::Imprint;
use pitser_ksi::logsig::{BlockReport, BlockVerifier, Lines, STATE_MAGIC, decode_state};

use super::beside;
use super::stream::{Blocks, LogLines, OwnedBlock};
use crate::files;
use crate::outcome::Failure;

/// The leaf that `from` stands for: an imprint, a state file, or the log before,
/// beside which lies its log signature.
pub(super) fn leaf(from: &str) -> Result<Imprint, Failure> {
    let path = Path::new(from);
    if !path.exists()
        && let Ok(imprint) = from.parse()
    {
        return Ok(imprint);
    }
    match of_state(path)? {
        Some(leaf) => Ok(leaf),
        None => of_log(path),
    }
}

/// The leaf in a state file; `None` if it is something else.
fn of_state(path: &Path) -> Result<Option<Imprint>, Failure> {
    if !files::starts_with(path, STATE_MAGIC)? {
        return Ok(None);
    }
    decode_state(&files::read(path)?)
        .map(Some)
        .map_err(|e| Failure::Input(format!("{}: not a sound state file: {e}", path.display())))
}

/// The leaf in a state file, or `None` if there is no such file yet.
pub(super) fn state(path: &Path) -> Result<Option<Imprint>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    of_state(path)?.map(Some).ok_or_else(|| {
        Failure::Input(format!(
            "{}: not a state file: it does not start with KSISTAT10",
            path.display()
        ))
    })
}

fn of_log(path: &Path) -> Result<Imprint, Failure> {
    let signature = beside(path);
    let mut blocks = Blocks::open(&signature)?;
    let mut log = LogLines::open(path)?;
    let mut last = None;
    while let Some(block) = blocks.next()? {
        if let Some(before) = last.replace(block) {
            skip(&before, &mut log)?;
        }
    }
    let last =
        last.ok_or_else(|| Failure::Input(format!("{}: no block is in it", signature.display())))?;
    Ok(check(&last, &mut log, path)?.last_leaf)
}

/// Steps over the lines of a block that has been signed.
pub(super) fn skip(block: &OwnedBlock, log: &mut LogLines<'_>) -> Result<(), Failure> {
    log.skip(block.get().line_count()).map(drop)
}

/// Recomputes the newest block of `path` from its lines: only they lead to the leaf
/// that the next one goes on from.
pub(super) fn check(
    block: &OwnedBlock,
    log: &mut LogLines<'_>,
    path: &Path,
) -> Result<BlockReport, Failure> {
    let block = block.get();
    let mut verifier = BlockVerifier::new(&block);
    loop {
        let left = verifier.lines_left();
        let fed = log.step(left, |piece| verifier.lines(&mut Lines::new(piece)))?;
        if fed.is_none() {
            break;
        }
    }
    let report = verifier
        .finish()
        .map_err(|e| super::malformed(&beside(path), e))?;
    if report.is_intact() {
        return Ok(report);
    }
    Err(Failure::Tampered(format!(
        "TRL-01 {}: the lines of its last block are not what was signed, so nothing can go on from \
         them. Keep the files as they are; pitser log verify says more",
        path.display()
    )))
}
