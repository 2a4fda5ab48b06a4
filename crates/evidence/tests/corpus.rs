//! Runs the fuzz targets without a fuzzer; see `../ksi/fuzz/README.md`.

#[path = "../../ksi/fuzz/src/memory.rs"]
#[expect(unreachable_pub, reason = "the fuzzer's crate shows it")]
mod memory;
#[macro_use]
#[path = "../../ksi/fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzzer's crate shows them")]
mod targets;

replay! {
    evidence, line, anchors, sample,
}
