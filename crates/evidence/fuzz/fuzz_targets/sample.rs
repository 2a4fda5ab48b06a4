#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pitser_evidence_fuzz::targets::sample(bytes));
