//! For tests of locks. A lock lasts as long as its file is open, and that is so in each child that another
//! test starts meanwhile, too, until the child runs its program.

use std::time::{Duration, Instant};

/// What comes of it, once something does.
pub(crate) fn at_last<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < end, "nothing came of it within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}
