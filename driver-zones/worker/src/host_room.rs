//! Host memory that a lease's tenants have their worker hold: images of modules that are loaded or
//! on their way (a driver keeps what it makes of an image, which is larger), and memory that both
//! sides share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gpuzone_cuda_abi::CuResult;

/// Room for one kind of it, over all sessions of a lease.
#[derive(Debug)]
pub struct HostRoom {
    most: u64,
    held: AtomicU64,
}

impl HostRoom {
    /// Room for `most` bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { most, held: AtomicU64::new(0) })
    }

    /// Bytes of it that are held.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<HostRoom>,
    bytes: u64,
}

impl Held {
    pub(crate) fn none(room: &Arc<HostRoom>) -> Self {
        Self { room: Arc::clone(room), bytes: 0 }
    }

    /// Holds `bytes` more.
    ///
    /// # Errors
    /// [`CuResult::OUT_OF_MEMORY`] when there is no room; as much is held as before.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), CuResult> {
        let most = self.room.most;
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= most);
        let grown = self.room.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        grown.map_err(|_| CuResult::OUT_OF_MEMORY)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Holds up to `bytes` more, as many as there is room for; answers how many.
    pub(crate) fn grow_up_to(&mut self, bytes: u64) -> u64 {
        let (most, mut grown) = (self.room.most, 0);
        let more = |held: u64| {
            grown = bytes.min(most.saturating_sub(held));
            held.checked_add(grown)
        };
        let _ = self.room.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        self.bytes += grown;
        grown
    }

    /// Holds as many fewer as `other` holds more.
    pub(crate) fn hand_to(&mut self, other: &mut Self) {
        other.bytes += std::mem::take(&mut self.bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sessions_share_the_room_and_give_back_what_they_held() {
        let room = HostRoom::new(10);
        let (mut one, mut other) = (Held::none(&room), Held::none(&room));
        one.grow(4).unwrap();
        other.grow(6).unwrap();
        assert_eq!(one.grow(1), Err(CuResult::OUT_OF_MEMORY));
        assert_eq!(one.grow(u64::MAX), Err(CuResult::OUT_OF_MEMORY));
        drop(other);
        one.grow(5).unwrap();
        let mut more = Held::none(&room);
        assert_eq!((more.grow_up_to(3), more.grow_up_to(3)), (1, 0));
        more.hand_to(&mut one);
        drop(more);
        assert_eq!(room.held(), 10);
        drop(one);
        assert_eq!(room.held(), 0);
    }
}
