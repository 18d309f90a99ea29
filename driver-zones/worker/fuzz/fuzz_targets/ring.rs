//! `cargo +nightly fuzz run ring` in `driver-zones/worker`: bytes in a session's request ring.
#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;

use gpuzone_worker::fuzz;
use gpuzone_worker::session::Lease;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static LEASE: OnceCell<Arc<Lease>> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| {
    LEASE.with(|lease| {
        let lease = lease.get_or_init(|| fuzz::lease().expect("a lease"));
        // Its last byte says how often the driver refuses something, as well.
        let refuse_each = input.last().map_or(0, |byte| usize::from(byte & 63));
        fuzz::ring(lease, input, refuse_each);
    });
});
