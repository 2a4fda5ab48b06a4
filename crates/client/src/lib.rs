//! Asks a KSI-compatible service for signatures, calendar chains, its
//! configuration, its publications file and proofs from its calendar's log.
//!
//! Guardians also register their trails there, and send their heads ([`fleet`]); auditors
//! ask guardians ([`site`]). What is kept for long goes to an object store (`store`, behind the feature of that name).
//!
//! In scope: addresses ([`Endpoint`]), pipelined TCP, HTTP, HTTPS, answers from
//! a file, up to three services of which the first good answer counts, time
//! limits, reconnecting, and every check that a client owes its user before it
//! believes an answer (spec service §5, docs/spec/11-service.md).
//! Elsewhere: formats, chains and policies (`ksi`), the service (`authority`),
//! deciding whom to trust (the caller).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use pitser_client::{Client, Endpoint};
//! use pitser_ksi::{Algorithm, hash::hash};
//! let endpoint = Endpoint::parse("ksi+tcp://anon:anon@127.0.0.1:3332")?;
//! let client = Client::connect(endpoint).await?;
//! let signature = client.sign(hash(Algorithm::Sha256, &[b"a document"]), 0).await?;
//! let extended = client.extend(&signature, None, None).await?;
//! # Ok(()) }
//! ```

mod answer;
mod client;
mod configuration;
mod endpoint;
mod error;
mod file;
pub mod fleet;
mod http;
mod options;
mod pace;
mod publications;
mod race;
mod service;
pub mod site;
#[cfg(feature = "store")]
pub mod store;
mod tcp;
mod tls;

pub use client::{BlockingExtender, Client};
pub use endpoint::{Endpoint, EndpointError, Key, Transport};
pub use error::{Asked, Bounds, ClientError};
pub use options::Options;
pub use publications::{MAX_PROOF_LEN, calendar_proof, publications_file};
pub use tls::{Roots, RootsError};
