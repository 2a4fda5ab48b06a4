//! What a fuzzer runs; the binaries only name a target each.

#[path = "../../../ksi/fuzz/src/memory.rs"]
pub mod memory;
pub mod targets;
