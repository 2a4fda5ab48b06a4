//! The timestamping service: signs what it is asked to within a second, keeps the
//! calendar, extends signatures to later seconds, and publishes.
//!
//! In scope: aggregation rounds ([`round`]), the calendar on disk ([`calendar`])
//! and its log, which witnesses cosign ([`LogConfig`]), the service protocol over TCP and HTTP, the signing key, the publications file.
//! Elsewhere: formats and hash chains (`ksi`), asking for signatures (`client`),
//! configuration files and the machine's clock (`cli`), rows and trails (never
//! heard of here).
//!
//! Time is an argument: a [`Clock`] says what time it is and wakes the rounds.
//! Nothing is answered before its second is on stable storage, no second is
//! written twice, and a clock that contradicts itself or the calendar stops the
//! rounds (`CLK-01`).
//!
//! ```text
//! data folder
//!   calendar/          one leaf a second (docs/spec/20-calendar.md)
//!   calendar-log/      the same as a transparency log (docs/spec/51-calendar-log.md)
//!   log-key            Ed25519 seed that signs checkpoints of both logs, mode 0600
//!   fleet/             registered trails and their heads (docs/spec/52-fleet.md)
//!   publications.bin   the publications file
//!   signing-key.pem    RSA key, mode 0600, unless a program signs ([`SignerCommand`])
//!   certificate.pem    its certificate: what verifiers trust
//!   announced          the newest publication that the hook was told of ([`publicity`])
//!   constraint         what verifiers demand of the certificate's subject
//!   publications-*     certificate and constraint of a publications key that is kept
//!                      elsewhere, if it is ([`ceremony`])
//! ```
//!
//! ```no_run
//! # async fn example(clock: impl pitser_authority::Clock) -> Result<(), Box<dyn std::error::Error>> {
//! use pitser_authority::{Authority, Config, Second, Subject, User};
//! let subject = Subject { email: "publications@example.org".into(), ..Subject::default() };
//! Authority::init("data".as_ref(), Second(1_773_480_413), &subject)?;
//! let config = Config::new("data").with_user(User::new("anon", "anon"));
//! let authority = Authority::start(config, clock).await?;
//! println!("ksi+tcp://anon:anon@{}", authority.tcp_address());
//! authority.shutdown().await?;
//! # Ok(()) }
//! ```

mod aggregator;
mod aside;
mod authority;
mod beat;
pub mod calendar;
pub mod ceremony;
mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
mod config;
mod engine;
mod fleet;
mod handover;
mod identity;
mod ledger;
mod listeners;
mod log;
mod metrics;
mod operations;
mod pace;
mod publications;
pub mod publicity;
pub mod round;
mod running;
mod service;
mod signatory;
mod signer;
mod throttle;
pub mod users;

pub use aggregator::{Aggregator, AggregatorHandle};
pub use authority::{Authority, AuthorityError, AuthorityHandle, Examined};
pub use clock::{Clock, ManualClock, Micros};
pub use config::{Config, Limits, MAX_LEVEL, Secret, User};
pub use engine::Stopped;
pub use fleet::{FleetConfig, FleetError};
pub use handover::{HandedIn, Refusal};
pub use identity::{Brought, BroughtKey, IdentityError};
pub use log::{LogConfig, LogError, LogStatus, LogWitness, LogWitnessStatus};
pub use metrics::Metrics;
pub use operations::{Https, Operations};
pub use pace::ClockFault;
pub use pitser_ksi::pki::Subject;
pub use pitser_ksi::time::Second;
pub use publications::{Due, PublicationsError, Published};
pub use running::{RoundReport, Running};
pub use service::TlsError;
pub use signatory::Pinned;
pub use signer::SignerCommand;
pub use users::{Allowance, UserError};
