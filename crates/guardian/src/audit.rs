//! The auditor's replay: somebody else reads the whole trail, recomputes
//! everything, and signs what came out (docs/spec/34-audit.md).

use pitser_evidence::audit::Statement;
use pitser_evidence::finding::Code;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::verify_quorum;
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_trail::{Damage, Layout, ReadError, read};

/// What an auditor knows of a trail beforehand, on his own.
#[derive(Debug, Clone)]
pub struct Known {
    /// Name of the trail.
    pub origin: String,
    /// Hash of its genesis line.
    pub genesis: pitser_evidence::codec::Digest,
    /// Witnesses whom he trusts.
    pub witnesses: Vec<VerifierKey>,
    /// How many of them must have cosigned the head.
    pub quorum: usize,
}

/// Why an auditor does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The trail cannot be read, or is not what it says.
    #[error(transparent)]
    Trail(#[from] ReadError),
    /// The trail is not the one that the auditor knows, or its head is not witnessed.
    #[error("{code} {text}")]
    Contradiction {
        /// What is wrong.
        code: Code,
        /// In words.
        text: String,
    },
}

/// Replays the trail in `layout` up to the cosigned `head`, and signs the
/// log's and the map's roots if both follow from the lines.
///
/// Needs none of the trail's secret keys.
///
/// # Errors
/// [`AuditError`]: nothing is signed.
pub fn replay(
    layout: &Layout,
    head: &Note,
    known: &Known,
    key: &SigningKey,
    now: Second,
) -> Result<Note, AuditError> {
    let contradiction = |code, text: String| AuditError::Contradiction { code, text };
    let head_size = pitser_tlog::checkpoint::Checkpoint::parse(head.text())
        .map_err(|e| contradiction(Code::TrailForked, format!("the head is unreadable: {e}")))?
        .size();
    let view = read(layout, Some(head_size), |_, _| {})?;
    if view.genesis_hash != known.genesis {
        return Err(contradiction(
            Code::TrailForked,
            format!("the trail begins with {}", view.genesis_hash),
        ));
    }
    let genesis = view.state.genesis().cloned();
    let log_key: Option<VerifierKey> = genesis.and_then(|g| g.log_key.parse().ok());
    let Some(log_key) = log_key.filter(|k| k.name() == known.origin) else {
        return Err(contradiction(
            Code::TrailForked,
            "the genesis line names another trail".into(),
        ));
    };
    let quorum = verify_quorum(head, &log_key, &known.witnesses, known.quorum)
        .map_err(|e| contradiction(Code::TrailForked, format!("the head does not count: {e}")))?;
    let checkpoint = quorum.checkpoint;
    if view.log.size() < checkpoint.size() {
        let text = format!(
            "it has {} blocks, witnesses have seen {}",
            view.log.size(),
            checkpoint.size()
        );
        return Err(contradiction(Code::TrailShort, text));
    }
    if view.log.root() != *checkpoint.root() {
        return Err(contradiction(
            Code::TrailForked,
            "the log's root is not the cosigned one".into(),
        ));
    }
    let Some(last) = view.blocks.last() else {
        return Err(ReadError::Damaged(Damage {
            code: Code::BlockMissing,
            path: layout.segments(),
            line: None,
            text: "there is no block".into(),
        })
        .into());
    };
    let statement = Statement {
        origin: known.origin.clone(),
        genesis: view.genesis_hash,
        block: last.leaf.block,
        size: checkpoint.size(),
        log_root: view.log.root(),
        map_root: last.leaf.map,
        made_at: now,
    };
    Note::sign(&statement.text(), key).map_err(|e| {
        contradiction(
            Code::TrailForked,
            format!("the statement cannot be signed: {e}"),
        )
    })
}
