//! KSI-compatible formats and rules: hash chains, signatures, publications,
//! service messages, log signatures and verification policies.
//!
//! In scope: decoding, building, encoding and verifying, on bytes and values
//! handed in by the caller. [`signature::Signature`] is the object most callers
//! start from, [`policy::verify`] the judgement they want.
//! Elsewhere: sockets (`client`), rounds and the calendar database
//! (`authority`), trail lines and rows (`evidence`, `trail`).
//!
//! This crate performs no I/O and reads no clock, environment or source of
//! randomness: files arrive as bytes, instants as [`time::Second`], random
//! seeds as arguments. It builds for `wasm32-unknown-unknown`.
//!
//! Three promises hold for every byte string given to a decoder: it never
//! panics, it allocates no more than a small multiple of the input, and what it
//! accepts it writes back byte for byte, unknown elements included.
//!
//! Tampering is a value ([`policy::Verdict`]); `Err` is kept for bytes that are
//! not the object they should be ([`error::DecodeError`], with the position).
//!
//! ```
//! use pitser_ksi::{Signature, hash, policy::{Context, Policy, Verdict, verify}};
//! # let ksig = include_bytes!("../../../testdata/ksi/tlv/ok-sig-2014-04-30.1.ksig");
//!
//! let signature = Signature::decode(ksig)?;
//! let mut context = Context::new(Policy::Internal);
//! context.document = Some(hash::hash(signature.input().algorithm(), &[b"LAPTOP"]));
//! assert!(matches!(verify(&signature, &context), Verdict::Intact { .. }));
//!
//! context.document = Some(hash::hash(signature.input().algorithm(), &[b"laptop"]));
//! let Verdict::Broken { code, step } = verify(&signature, &context) else { unreachable!() };
//! assert_eq!(code.to_string(), "GEN-01");
//! assert_eq!(step.to_string(), "document: hash is what was signed");
//! # Ok::<(), pitser_ksi::DecodeError>(())
//! ```

pub mod block_signer;
pub mod calendar_entry;
pub mod chain;
pub mod error;
pub mod hash;
pub mod logsig;
pub mod pdu;
pub mod pki;
pub mod policy;
pub mod publication;
pub mod publications_file;
pub mod signature;
pub mod time;
pub mod tlv;
pub mod tree;

pub use error::{DecodeError, DecodeErrorKind};
pub use hash::{Algorithm, Imprint};
pub use signature::Signature;
pub use time::Second;
