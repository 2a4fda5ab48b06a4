//! What happened in a source, in the source's own order; and its rows, read again.
//!
//! In scope: [`event`], what every source reports; [`sqlite`], a guarded SQLite
//! database; [`fhir`], audit events that applications send.
//! Elsewhere: trail lines and commitments (`evidence`), what is done about a
//! finding (`monitor`), who calls `poll` and when (`guardian`), sockets (`web`).
//! This crate reads no clock and opens no connection to another machine; the
//! times that it reports are the guarded engine's.
//!
//! Column values, keys and persons are readable through `expose` alone: they
//! stand in no `Debug` output and in no error message.

pub mod event;
pub mod fhir;
pub mod postgres;
pub mod sqlite;

pub use event::{Actor, Binding, Captured, Cell, Change, Key, Op, Person, Row};
