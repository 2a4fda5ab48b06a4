//! Runs the fuzz targets without a fuzzer; see `fuzz/README.md`.

#[path = "../fuzz/src/memory.rs"]
#[expect(unreachable_pub, reason = "the fuzzer's crate shows it")]
mod memory;
#[macro_use]
#[path = "../fuzz/src/replay.rs"]
mod replay;
#[path = "../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzzer's crate shows them")]
mod targets;

replay! {
    tlv, signature, chains, text, publications_file, pki, aggregation, extension,
    log_signature, proof, parts,
}
