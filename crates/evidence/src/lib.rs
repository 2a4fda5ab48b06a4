//! What outsiders read and check: trail lines, row commitments, blocks, the
//! map, audit statements, anchors, evidence files and their verdicts.
//!
//! In scope: the formats of `docs/spec/30-trail.md` to `35-evidence.md`, the
//! deterministic function that carries the map from block to block, and the
//! verification of an evidence file against a verifier's own anchors.
//! Elsewhere: time-stamps (`ksi`), logs and cosignatures (`tlog`), files on
//! disk and keys at rest (`trail`), databases (`capture`).
//!
//! This crate does no I/O, reads no clock and draws no random numbers.

pub mod anchors;
pub mod apart;
pub mod audit;
pub mod block;
pub mod calendar_log;
pub mod codec;
pub mod commit;
pub mod file;
pub mod finding;
pub mod line;
pub mod map;
pub mod marks;
pub mod sample;
pub mod seal;
pub mod state;
pub mod store;
mod verify;
pub mod vrf;

pub use anchors::Anchors;
pub use file::Evidence;
pub use finding::Code;
pub use line::Line;
pub use verify::{LeftOut, Report, Step, StepState, Verdict, verify, verify_since};
