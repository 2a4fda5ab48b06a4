//! A source's runtime: takes what happened, writes the trail, has it sealed
//! and cosigned, looks again at the live rows; and the auditor's replay.
//!
//! In scope: one guarded source from its configuration ([`config`]) to its
//! running [`Guardian`]; preparing a database ([`init`]); the independent
//! replay of a whole trail ([`audit`]); the store of archived segments ([`archive`]);
//! telling receivers of findings ([`alert`]) and the authority of the trail ([`fleet`]);
//! people with a token of their own ([`approver`]), who may have a patient erased
//! ([`erasure`]) or answer for a finding ([`acceptance`]).
//! Elsewhere: reading databases (`capture`), files (`trail`), comparing rows
//! (`monitor`), pages and APIs (`web`), clocks (`cli` hands one in).
//!
//! One thread owns the source and the trail; everything else reaches it as a
//! command and waits for the answer.

pub mod acceptance;
mod actors;
pub mod alert;
pub mod approver;
pub mod archive;
pub mod audit;
mod collected;
pub mod config;
pub mod erasure;
pub mod fleet;
pub mod init;
mod patients;
mod rebuild;
mod runtime;
mod sealer;
mod status;
mod translate;

pub use rebuild::{Rebuilt, rebuild};
pub use runtime::{
    Guardian, Handle, Parts, Receipt, ScanSummary, StartError, SubmitError, Unopened,
};
pub use status::{
    AcceptedStatus, AlertStatus, BaselineStatus, BlockStatus, FindingStatus, FleetStatus, Latency,
    MoreStatus, SourceState, Status, UnreadStatus, WitnessStatus,
};

use std::sync::Arc;

/// Tells the time in microseconds since 1970; only the binary has a real one.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
