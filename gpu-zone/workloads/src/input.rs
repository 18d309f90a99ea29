//! Programs that go on until who started them has seen enough.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set when the standard input ends.
pub(crate) fn ends() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        told.store(true, Ordering::Relaxed);
    });
    over
}
