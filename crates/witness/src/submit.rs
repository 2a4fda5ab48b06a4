//! A log's side of the exchange: getting its heads cosigned.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use pitser_tlog::checkpoint::Checkpoint;
use pitser_tlog::error::DecodeError;
use pitser_tlog::merkle::{Nodes, consistency_proof};
use pitser_tlog::note::{Note, SignatureLine, VerifierKey};
use pitser_tlog::witness_protocol::{AddCheckpoint, Refusal};
use thiserror::Error;

/// Something that answers `add-checkpoint`: a witness in this process, or one
/// behind a socket. May block, for a bounded time; call it off the runtime's
/// threads.
pub trait Cosign: Send + Sync {
    /// Answers the body of a request (c2sp.org/tlog-witness).
    ///
    /// # Errors
    /// [`Refusal`]: why nothing was cosigned, and whose move is next.
    fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal>;
}

impl<W: Cosign + ?Sized> Cosign for Arc<W> {
    fn add_checkpoint(&self, body: &[u8]) -> Result<Vec<SignatureLine>, Refusal> {
        (**self).add_checkpoint(body)
    }
}

/// A witness as one log knows it, and the way to it.
pub struct Peer {
    name: String,
    exchange: Exchange,
    witness: Box<dyn Cosign>,
}

impl Peer {
    /// A witness and the key that its cosignatures must verify under.
    ///
    /// What it holds need not be remembered: it is asked for with the first head.
    pub fn new(witness: Box<dyn Cosign>, key: VerifierKey) -> Self {
        Self {
            name: key.name().to_owned(),
            exchange: Exchange::new(key),
            witness,
        }
    }

    /// The same witness, called by another name than its key's.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// What the witness is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The witness's key.
    pub fn key(&self) -> &VerifierKey {
        self.exchange.key()
    }

    /// What is known of the witness, and the way to it: for those who cannot
    /// wait for an answer.
    pub fn into_parts(self) -> (Exchange, Box<dyn Cosign>) {
        (self.exchange, self.witness)
    }

    /// Gets `head` cosigned, proving consistency from `nodes`; waits for the
    /// answer.
    ///
    /// The cosignature has been verified; add it to the note.
    ///
    /// # Errors
    /// [`SubmitError`]. [`Forked`](SubmitError::Forked) and
    /// [`Ahead`](SubmitError::Ahead) contradict the log itself.
    pub fn cosign<N>(&mut self, nodes: &N, head: &Note) -> Result<SignatureLine, SubmitError>
    where
        N: Nodes + ?Sized,
        N::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut question = self.exchange.ask(nodes, head)?;
        loop {
            let answer = self.witness.add_checkpoint(question.body());
            match self.exchange.hear(nodes, question, answer)? {
                Heard::Cosigned(line) => return Ok(line),
                Heard::Corrected(again) => question = again,
            }
        }
    }
}

/// What one log knows of a witness. Carries no bytes: ask, bring the question
/// to the witness, and have the answer heard, one at a time.
#[derive(Debug)]
pub struct Exchange {
    key: VerifierKey,
    /// The size that the witness is believed to hold for this log; it corrects us.
    held_size: u64,
}

/// One request to a witness.
#[derive(Debug)]
pub struct Question {
    request: AddCheckpoint,
    /// Leaves of the head.
    size: u64,
    body: Vec<u8>,
    /// It already is the witness's own correction.
    is_corrected: bool,
}

impl Question {
    /// The body of the request.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Leaves of the head that is to be cosigned.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// What an answer comes to.
#[derive(Debug)]
pub enum Heard {
    /// The cosignature, verified.
    Cosigned(SignatureLine),
    /// The witness holds another size than was believed: ask this instead. It
    /// comes at most once for each head.
    Corrected(Question),
}

impl Exchange {
    /// A witness that is not known to hold anything, and its key.
    pub fn new(key: VerifierKey) -> Self {
        Self { key, held_size: 0 }
    }

    /// The witness's key.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// The request for a cosignature on `head`, proving consistency from `nodes`.
    ///
    /// # Errors
    /// [`SubmitError::NotACheckpoint`], [`SubmitError::Nodes`].
    pub fn ask<N>(&self, nodes: &N, head: &Note) -> Result<Question, SubmitError>
    where
        N: Nodes + ?Sized,
        N::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let size = Checkpoint::parse(head.text())?.size();
        question(nodes, head, self.held_size.min(size), size)
    }

    /// Judges the answer to `question`; `nodes` are those of the same log.
    ///
    /// # Errors
    /// [`SubmitError`]. [`Forked`](SubmitError::Forked) and
    /// [`Ahead`](SubmitError::Ahead) contradict the log itself.
    pub fn hear<N>(
        &mut self,
        nodes: &N,
        asked: Question,
        answer: Result<Vec<SignatureLine>, Refusal>,
    ) -> Result<Heard, SubmitError>
    where
        N: Nodes + ?Sized,
        N::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (head, size) = (&asked.request.head, asked.size);
        match answer.map_err(|refusal| judge(refusal, asked.request.old_size, size)) {
            Ok(lines) => {
                let valid = |line: &SignatureLine| {
                    let said = self.key.verify(head.text(), line);
                    said.is_ok_and(|said| said.at().is_some())
                };
                let line = lines.into_iter().find(valid);
                let line = line.ok_or(SubmitError::NoCosignature)?;
                self.held_size = size;
                Ok(Heard::Cosigned(line))
            }
            // The witness corrects us.
            Err(SubmitError::Refused(Refusal::Conflict { size: held })) if !asked.is_corrected => {
                let again = question(nodes, head, held, size)?;
                Ok(Heard::Corrected(Question {
                    is_corrected: true,
                    ..again
                }))
            }
            Err(error) => Err(error),
        }
    }
}

fn question<N>(nodes: &N, head: &Note, old_size: u64, size: u64) -> Result<Question, SubmitError>
where
    N: Nodes + ?Sized,
    N::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let proof = consistency_proof(nodes, old_size, size);
    let request = AddCheckpoint {
        old_size,
        proof: proof.map_err(|error| SubmitError::Nodes(error.into()))?,
        head: head.clone(),
    };
    Ok(Question {
        body: request.to_string().into_bytes(),
        request,
        size,
        is_corrected: false,
    })
}

/// What a refusal says about a log that proved `size` leaves from `old_size`.
fn judge(refusal: Refusal, old_size: u64, size: u64) -> SubmitError {
    match refusal {
        // Every log continues what is empty: whoever says otherwise is no witness.
        Refusal::Inconsistent if old_size > 0 => SubmitError::Forked { size: old_size },
        // It refuses the very size that it holds: it holds another root.
        Refusal::Conflict { size: held } if held == old_size && held > 0 => {
            SubmitError::Forked { size: held }
        }
        Refusal::Conflict { size: held } if held > size => SubmitError::Ahead { size: held },
        refusal => SubmitError::Refused(refusal),
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

/// Why a head was not cosigned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The log as it is now does not continue the head of `size` leaves that
    /// the witness holds.
    #[error("the log does not continue the {size} leaves that the witness holds")]
    Forked {
        /// Leaves of the head that contradicts the log.
        size: u64,
    },
    /// The witness holds a larger head: the log has been rewound, or a newer
    /// head was submitted by somebody else with its key.
    #[error("the witness already holds {size} leaves")]
    Ahead {
        /// Leaves of the head that the witness holds.
        size: u64,
    },
    /// The witness refused for another reason.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The witness answered without a valid cosignature by its key.
    #[error("no valid cosignature in the answer")]
    NoCosignature,
    /// What was to be cosigned is no checkpoint.
    #[error("not a checkpoint: {0}")]
    NotACheckpoint(#[from] DecodeError),
    /// The log could not read its own nodes.
    #[error("nodes: {0}")]
    Nodes(#[source] Box<dyn Error + Send + Sync>),
}
