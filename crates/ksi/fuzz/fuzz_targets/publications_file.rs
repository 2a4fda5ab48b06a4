#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pitser_ksi_fuzz::targets::publications_file(bytes));
