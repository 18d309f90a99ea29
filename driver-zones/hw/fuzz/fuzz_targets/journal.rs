#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gpuzone_hw::fuzz::journal(bytes));
