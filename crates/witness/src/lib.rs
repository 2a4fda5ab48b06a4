//! Cosigns the heads of calendars and trails; remembers what it saw.
//!
//! In scope: the decision to cosign ([`Witness`]), the memory that makes it
//! worth something ([`Store`]), the service that offers it ([`Server`]), a
//! log's side of the exchange ([`Peer`]), over a socket as well ([`HttpWitness`]),
//! and with many witnesses at a time ([`Asker`], [`Ballot`]).
//! Elsewhere: the wire format and its proofs (`tlog`), what a leaf means
//! (`evidence`).
//! This crate reads no clock: time is an argument, or a closure given once to
//! [`ClockedWitness`] and [`Server`].
//!
//! A witness states one thing: at this time, this was the largest head of that
//! log that it had seen, and it extends all heads it had cosigned before. It
//! never sees a row, a line or a leaf.
//!
//! **Invariant:** a cosignature leaves only after the head it covers is on disk.
//! **Invariant:** for one origin and key, cosigned heads form one growing tree,
//! and times never go back, across restarts and across processes that share a
//! store. A copy of the store restored from a backup breaks this; a witness
//! whose store is lost must take a new key.
//!
//! ```
//! use pitser_tlog::{Checkpoint, CosigningKey, LogTree, SigningKey, merkle::leaf_hash};
//! use pitser_witness::{ClockedWitness, Log, MemoryStore, Peer, Witness};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let log = SigningKey::from_seed("hospital.example/ehr", &[1; 32])?;
//! let key = CosigningKey::from_seed("witness.example/w1", &[2; 32])?;
//! let verifier = key.verifier();
//!
//! let mut witness = Witness::new(key, MemoryStore::new());
//! witness.add_log(&Log::new(log.verifier()))?;
//! let clock = || 1_735_689_600;
//! let mut peer = Peer::new(Box::new(ClockedWitness::new(witness, clock)), verifier);
//!
//! let tree: LogTree = [leaf_hash(b"block 0")].into_iter().collect();
//! let mut head = Checkpoint::new(log.name(), tree.size(), tree.root())?.sign(&log)?;
//! let line = peer.cosign(&tree, &head)?;
//! head.add(line)?;
//! assert_eq!(head.cosigned_at(peer.key())?, 1_735_689_600);
//! # Ok(())
//! # }
//! ```

mod ask;
mod limit;
mod remote;
mod serve;
pub mod store;
mod submit;
mod witness;

pub use ask::{Answer, Asker, Ballot};
pub use limit::Rate;
pub use remote::{HttpWitness, Prefix, PrefixError};
pub use serve::{Limits, ServeError, Server, ServerHandle};
pub use store::{Fork, Head, MemoryStore, SqliteStore, Store, StoreError};
pub use submit::{Cosign, Exchange, Heard, Peer, Question, SubmitError};
pub use witness::{ClockedWitness, Log, Pace, Witness};
