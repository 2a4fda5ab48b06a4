//! `pitser guard` on a real PostgreSQL, as those who run it see it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../capture/tests/postgres/harness.rs"]
mod harness;
#[path = "../common/hospital.rs"]
mod sqlite;

mod audit;
mod chaos;
mod copy;
mod encoding;
mod failover;
mod gnuhealth;
mod holds;
mod hospital;
mod kill;
mod long;
mod rollback;
mod schema;
mod soak;
mod supervised;
mod tamper;
mod tricks;
mod upgrade;
mod world;

use common::port;
