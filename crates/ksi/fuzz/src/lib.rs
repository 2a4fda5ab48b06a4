//! What a fuzzer runs; the binaries only name a target each.

pub mod memory;
pub mod targets;
