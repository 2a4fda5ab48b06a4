//! Several nodes in front of real members of etcd, which are killed, paused and cut
//! off from each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "modules of one test program")]

mod ceremony;
mod fleet;
mod history;
mod machines;
mod node;
mod operation;
#[path = "../common/port.rs"]
mod port;
mod proxy;
mod run;
#[cfg(feature = "s3")]
#[allow(dead_code, reason = "each test program uses its part")]
#[path = "../../../client/tests/common/s3.rs"]
mod s3;
