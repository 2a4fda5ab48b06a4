//! What happened in a source, in the source's own order; and its rows, read again.
//!
//! In scope: [`event`], what every source reports; [`source`], what a guardian
//! asks of any of them; [`postgres`] and [`sqlite`], guarded databases; [`fhir`],
//! audit events that applications send.
//! Elsewhere: trail lines and commitments (`evidence`), what is done about a
//! finding (`monitor`), who calls `poll` and when (`guardian`), sockets (`web`).
//! This crate reads no clock, and opens no connection but to a guarded database;
//! the times that it reports are the engine's.
//!
//! Column values, keys and persons are readable through `expose` alone: they
//! stand in no `Debug` output and in no error message.

pub mod event;
pub mod fhir;
pub mod postgres;
pub mod source;
pub mod sqlite;

pub use event::{
    Actor, Binding, Captured, Cell, Change, Key, NoPosition, Op, Person, Position, Row,
};
pub use source::{Backlog, Drift, Identity, Shape, Snapshot, Source, SourceError, Unseen, Word};
