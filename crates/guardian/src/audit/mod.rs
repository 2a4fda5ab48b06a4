//! The auditor's replay: somebody else reads the whole trail, recomputes
//! everything, and signs what came out (docs/spec/34-audit.md).
//!
//! [`Auditor`] is one who goes on with it: his folder has his key, what he has
//! signed, and the map as he replayed it; the trail is in a folder, or a guardian
//! serves it ([`Site`]), at its [`Desk`]. [`replay`] does it once, in memory.

mod copy;
mod desk;
mod folder;
mod follow;
mod open;
mod remote;
mod request;
mod sampling;
mod take;

pub use desk::{Answer, BODY, Desk, Request};
pub use folder::{Auditor, Signed};
pub use follow::{Audited, Doubt, Judge, Places, SealCounts};
pub use remote::{Given, Look, RemoteError, Site, Step};
pub use request::Admitted;
pub use sampling::{Sampled, Sampling};
pub use take::{NotTaken, Proper};

use pitser_evidence::audit::Statement;
use pitser_evidence::codec::Digest;
use pitser_evidence::finding::Code;
use pitser_evidence::store::Pages;
use pitser_ksi::time::Second;
use pitser_tlog::checkpoint::{Checkpoint, QuorumError, verify_quorum};
use pitser_tlog::note::{Note, SigningKey, VerifierKey};
use pitser_trail::disk::DiskError;
use pitser_trail::map::MapError;
use pitser_trail::{Layout, ReadError, View, read};
use std::path::PathBuf;

/// What an auditor knows of a trail beforehand, on his own.
#[derive(Debug, Clone)]
pub struct Known {
    /// Name of the trail.
    pub origin: String,
    /// Hash of its genesis line.
    pub genesis: Digest,
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
    /// The trail is not the one that the auditor knows, or not what was cosigned or signed.
    #[error("{code} {text}")]
    Contradiction {
        /// What is wrong.
        code: Code,
        /// In words.
        text: String,
    },
    /// Nothing is wrong, and something is missing.
    #[error("{0}")]
    Waiting(Doubt),
    /// A file of the auditor's cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guardian that serves the trail cannot be asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What he keeps of the trail cannot be removed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The auditor's folder is not as it must be.
    #[error("{}: {what}", path.display())]
    Folder {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
}

impl AuditError {
    /// What is shown to be wrong with the trail, if anything is.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Contradiction { code, .. } => Some(*code),
            Self::Trail(ReadError::Damaged(damage)) => Some(damage.code),
            _ => None,
        }
    }

    /// Whether it may come of a copy that is not as the trail is.
    fn is_of_copy(&self) -> bool {
        match self {
            Self::Trail(error) => matches!(
                error,
                ReadError::Damaged(_) | ReadError::Map(_) | ReadError::Nothing(_)
            ),
            Self::Contradiction { code, .. } => {
                matches!(
                    code,
                    Code::TrailShort | Code::TrailForked | Code::BlockMissing
                )
            }
            _ => false,
        }
    }
}

fn contradiction(code: Code, text: impl Into<String>) -> AuditError {
    AuditError::Contradiction {
        code,
        text: text.into(),
    }
}

/// Replays the trail in `layout` up to the cosigned `head`, and signs the
/// log's and the map's roots if both follow from the lines.
///
/// Needs none of the trail's secret keys. Everything is done anew, in memory.
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
    let size = Checkpoint::parse(head.text())
        .map_err(|e| contradiction(Code::TrailForked, format!("the head is unreadable: {e}")))?
        .size();
    let view = read(layout, Some(size), |_, _| {})?;
    let log_key = log_key(&view, known)?;
    let head = cosigned(head, &log_key, known)?;
    sign(&statement(&view, &head, known, now)?, key)
}

/// The key of a trail that begins as it is known to.
fn log_key<P: Pages>(view: &View<P>, known: &Known) -> Result<VerifierKey, AuditError> {
    if view.genesis_hash != known.genesis {
        let text = format!("the trail begins with {}", view.genesis_hash);
        return Err(contradiction(Code::TrailForked, text));
    }
    let genesis = view.state.genesis();
    named_key(genesis.map(|genesis| genesis.log_key.as_str()), known)
}

/// The log key of a genesis line, if it is of the trail that is known.
fn named_key(log_key: Option<&str>, known: &Known) -> Result<VerifierKey, AuditError> {
    let log_key: Option<VerifierKey> = log_key.and_then(|key| key.parse().ok());
    let named = log_key.filter(|key| key.name() == known.origin);
    named.ok_or_else(|| {
        contradiction(
            Code::TrailForked,
            "the genesis line names another trail's key",
        )
    })
}

/// A head that the trail signed and a quorum cosigned.
fn cosigned(head: &Note, log_key: &VerifierKey, known: &Known) -> Result<Checkpoint, AuditError> {
    if known.quorum == 0 {
        return Err(AuditError::Waiting(Doubt::NoQuorum));
    }
    let head = match verify_quorum(head, log_key, &known.witnesses, known.quorum) {
        Ok(quorum) => quorum.checkpoint,
        Err(QuorumError::TooFew { found, required }) => {
            return Err(AuditError::Waiting(Doubt::TooFew { found, required }));
        }
        Err(e) => {
            let text = format!("the head does not count: {e}");
            return Err(contradiction(Code::TrailForked, text));
        }
    };
    match head.size() {
        0 => Err(AuditError::Waiting(Doubt::NoHead)),
        _ => Ok(head),
    }
}

/// What is to be said of a replay up to `head`, if it came to what was cosigned.
fn statement<P: Pages>(
    view: &View<P>,
    head: &Checkpoint,
    known: &Known,
    now: Second,
) -> Result<Statement, AuditError> {
    if view.log().size() < head.size() {
        let text = format!(
            "it has {} blocks, witnesses have seen {}",
            view.log().size(),
            head.size()
        );
        return Err(contradiction(Code::TrailShort, text));
    }
    if view.log().root() != *head.root() {
        let text = "the log's root is not the cosigned one";
        return Err(contradiction(Code::TrailForked, text));
    }
    let last = view.index.block(head.size() - 1, &known.origin);
    let last = last
        .map_err(ReadError::from)?
        .ok_or_else(|| contradiction(Code::BlockMissing, "there is no block"))?;
    Ok(Statement {
        origin: known.origin.clone(),
        genesis: view.genesis_hash,
        block: last.leaf.block,
        size: head.size(),
        log_root: view.log().root(),
        map_root: last.leaf.map,
        made_at: now,
    })
}

fn sign(statement: &Statement, key: &SigningKey) -> Result<Note, AuditError> {
    Note::sign(&statement.text(), key).map_err(|e| {
        contradiction(
            Code::TrailForked,
            format!("the statement cannot be signed: {e}"),
        )
    })
}
