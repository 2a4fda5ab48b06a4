//! Transparency logs after the C2SP specifications: hash, sign, cosign, prove.
//!
//! In scope: RFC 6962 trees and their proofs ([`merkle`]), signed notes
//! ([`note`]), checkpoints and witness quorums ([`checkpoint`]), the bodies of
//! the witness protocol ([`witness_protocol`]), self-contained proofs
//! ([`proof`]) and static tiles ([`tiles`]).
//! Elsewhere: what a witness remembers (`witness`), what a trail's leaves mean
//! (`evidence`), where tiles are stored (`trail`, `authority`), sockets.
//! This crate performs no I/O, reads no clock and draws no random bytes.
//!
//! A parser accepts only the bytes that its writer produces: what parses is
//! written back unchanged. Lengths are capped before anything is allocated.
//!
//! ```
//! use pitser_tlog::checkpoint::{Checkpoint, verify_quorum};
//! use pitser_tlog::merkle::{LogTree, leaf_hash};
//! use pitser_tlog::note::{CosigningKey, SigningKey};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let log = SigningKey::from_seed("hospital.example/ehr", &[1; 32])?;
//! let witness = CosigningKey::from_seed("witness.example/w1", &[2; 32])?;
//!
//! let mut tree = LogTree::new();
//! tree.push(leaf_hash(b"block 0"));
//! let mut head = Checkpoint::new(log.name(), tree.size(), tree.root())?.sign(&log)?;
//! head.add(witness.cosign(head.text(), 1_735_689_600))?;
//!
//! let quorum = verify_quorum(&head, &log.verifier(), &[witness.verifier()], 1)?;
//! assert_eq!(quorum.cosigned_at, 1_735_689_600);
//! # Ok(())
//! # }
//! ```

pub mod checkpoint;
pub mod error;
pub mod merkle;
pub mod note;
pub mod proof;
mod text;
pub mod tiles;
pub mod witness_protocol;

pub use checkpoint::{Checkpoint, Quorum, QuorumError, verify_quorum};
pub use error::{DecodeError, DecodeErrorKind};
pub use merkle::{Frontier, Hash, LogTree};
pub use note::{CosigningKey, KeyId, Note, SignatureLine, SigningKey, VerifierKey};
pub use proof::LogProof;
