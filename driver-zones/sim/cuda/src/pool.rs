//! Pools of device memory. Memory comes and goes with the program's, so a pool has reserved what
//! is used; what a program sets is kept, as a driver's pool would.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::{CuResult, pool_attribute as P};

use crate::Answer;
use crate::abi::Word;
use crate::driver::Gpu;

pub(crate) struct Pool {
    pub(crate) gpu: &'static Gpu,
    /// Most bytes that it may hold; 0 is all there are.
    most: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u64,
    used_high: u64,
    threshold: u64,
    /// Reuse policies that were switched off.
    off: [bool; 3],
}

impl Pool {
    pub(crate) fn new(gpu: &'static Gpu, most: u64) -> Self {
        Self { gpu, most, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, bytes: u64) -> Answer {
        let mut state = self.state();
        let used = state.used.saturating_add(bytes);
        if self.most > 0 && used > self.most {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        state.used = used;
        state.used_high = state.used_high.max(used);
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }

    pub(crate) fn attribute(&self, which: u32) -> Answer<u64> {
        let state = self.state();
        Ok(match which {
            P::REUSE_FOLLOW_EVENT_DEPENDENCIES
            | P::REUSE_ALLOW_OPPORTUNISTIC
            | P::REUSE_ALLOW_INTERNAL_DEPENDENCIES => u64::from(!state.off[which as usize - 1]),
            P::RELEASE_THRESHOLD => state.threshold,
            P::RESERVED_MEM_CURRENT | P::USED_MEM_CURRENT => state.used,
            P::RESERVED_MEM_HIGH | P::USED_MEM_HIGH => state.used_high,
            _ => return Err(CuResult::INVALID_VALUE),
        })
    }

    pub(crate) fn set_attribute(&self, which: u32, value: u64) -> Answer {
        let mut state = self.state();
        match which {
            P::REUSE_FOLLOW_EVENT_DEPENDENCIES
            | P::REUSE_ALLOW_OPPORTUNISTIC
            | P::REUSE_ALLOW_INTERNAL_DEPENDENCIES => state.off[which as usize - 1] = value == 0,
            P::RELEASE_THRESHOLD => state.threshold = value,
            // A mark is set back to what there is.
            P::RESERVED_MEM_HIGH | P::USED_MEM_HIGH if value == 0 => state.used_high = state.used,
            _ => return Err(CuResult::INVALID_VALUE),
        }
        Ok(())
    }
}

type Origins = BTreeMap<u64, (Arc<Pool>, u64)>;

/// Which pool an allocation came from.
static FROM: LazyLock<Mutex<Origins>> = LazyLock::new(Mutex::default);

fn from() -> MutexGuard<'static, Origins> {
    FROM.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn allocated(address: u64, pool: Arc<Pool>, bytes: u64) {
    from().insert(address, (pool, bytes));
}

/// To be called when an allocation is given back, wherever it came from.
pub(crate) fn freed(address: u64) {
    if let Some((pool, bytes)) = from().remove(&address) {
        pool.give_back(bytes);
    }
}

/// A GPU's pools: its own and the one that is used.
#[derive(Default)]
pub(crate) struct GpuPools {
    pub(crate) own: Word,
    pub(crate) current: Word,
}
