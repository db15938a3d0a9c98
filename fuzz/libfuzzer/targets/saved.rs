#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| podlane_fuzz::run("saved", bytes));
