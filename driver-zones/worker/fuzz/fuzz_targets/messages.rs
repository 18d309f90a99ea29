//! `cargo +nightly fuzz run messages` in `driver-zones/worker`: greetings, orders, turns.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    gpuzone_wire::untrusted::all(input);
});
