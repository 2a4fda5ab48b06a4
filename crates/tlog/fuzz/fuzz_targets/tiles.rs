#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pitser_tlog_fuzz::targets::tiles(bytes));
