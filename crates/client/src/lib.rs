//! Asks a KSI-compatible service for signatures, calendar chains, its
//! configuration and its publications file.
//!
//! In scope: addresses ([`Endpoint`]), one pipelined TCP connection or HTTP,
//! time limits, reconnecting, and every check that a client owes its user before
//! it believes an answer (spec service §5).
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
mod endpoint;
mod error;
mod http;
mod tcp;

pub use client::{BlockingExtender, Client, Options, publications_file};
pub use endpoint::{Endpoint, EndpointError, Key, Transport};
pub use error::{Asked, ClientError};
