//! The operator takes an auditor's statement: evidence has it from then on.

use pitser_evidence::audit::Statement;
use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::note::{Note, VerifierKey};
use pitser_trail::Layout;
use pitser_trail::disk::{self, DiskError};
use pitser_trail::export::{ExportError, Exporter};

/// Why a statement is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It is no statement, or not signed by that auditor.
    #[error("{0}")]
    Statement(String),
    /// The head is not the one that the statement is about.
    #[error(
        "this is not the head of this trail that the statement is about: `pitser audit follow -o` \
         puts it beside the statement"
    )]
    Head,
    /// The auditor has replayed another trail.
    #[error(
        "auditor {auditor} replayed another trail than the one here: its log or map of {blocks} blocks is not ours. \
         Keep both"
    )]
    Forked {
        /// Who.
        auditor: String,
        /// How many blocks he replayed.
        blocks: u64,
    },
    /// The trail cannot be read.
    #[error(transparent)]
    Trail(#[from] ExportError),
    /// The statement cannot be kept.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A statement that is true of the operator's own trail, and its head.
#[derive(Debug)]
pub struct Proper {
    /// What it says.
    pub statement: Statement,
    note: Note,
    head: Note,
}

impl Proper {
    /// Compares a statement by `key`, and the head that it is about, with the trail in
    /// `layout`. Both come as they stand in files.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn new(
        layout: &Layout,
        key: &VerifierKey,
        note: &[u8],
        head: &[u8],
    ) -> Result<Self, NotTaken> {
        let wrong = |what: String| NotTaken::Statement(what);
        let note = Note::parse(note).map_err(|e| wrong(e.to_string()))?;
        let statement = Statement::parse(note.text()).map_err(|e| wrong(e.to_string()))?;
        note.verify(key)
            .map_err(|e| wrong(format!("not signed by {}: {e}", key.name())))?;
        let exporter = Exporter::open(layout.clone())?;
        let log_key = exporter.keys().log().verifier();
        if log_key.public_key() == key.public_key() {
            let what = "this is the trail's own key, which never counts as an auditor's";
            return Err(wrong(what.into()));
        }
        let head = Note::parse(head).map_err(|_| NotTaken::Head)?;
        let checkpoint =
            Checkpoint::open(&head, log_key.name(), &log_key).map_err(|_| NotTaken::Head)?;
        if checkpoint.size() != statement.size || *checkpoint.root() != statement.log_root {
            return Err(NotTaken::Head);
        }
        let stated = (statement.genesis, statement.log_root, statement.map_root);
        if exporter.roots(statement.size)? != Some(stated) {
            return Err(NotTaken::Forked {
                auditor: key.name().to_owned(),
                blocks: statement.size,
            });
        }
        Ok(Self {
            statement,
            note,
            head,
        })
    }

    /// Keeps it durably: evidence has it from now on.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn take(&self, layout: &Layout) -> Result<(), DiskError> {
        // The head first: without it the statement is of no use.
        disk::replace(&layout.audited(), self.head.to_string().as_bytes())?;
        disk::replace(&layout.audit(), self.note.to_string().as_bytes())
    }

    /// Keeps it unless a statement is there, perhaps another auditor's, that covers more.
    pub(super) fn take_if_newest(&self, layout: &Layout) -> Result<(), DiskError> {
        let kept = std::fs::read(layout.audit()).ok();
        let kept = kept.and_then(|kept| Note::parse(&kept).ok());
        let kept = kept.and_then(|note| Statement::parse(note.text()).ok());
        match kept.is_some_and(|kept| kept.size > self.statement.size) {
            true => Ok(()),
            false => self.take(layout),
        }
    }
}
