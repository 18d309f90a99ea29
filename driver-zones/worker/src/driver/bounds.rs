//! The largest launches that a GPU takes.

use gpuzone_cuda_abi::DeviceAttribute as A;

/// Bounds of a launch, by the GPU's attributes. What is beyond them the driver refuses whatever
/// the kernel is; so may we, before it costs anybody a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchBounds {
    grid: [u32; 3],
    block: [u32; 3],
    threads: u32,
    shared: u32,
}

impl LaunchBounds {
    /// Those that a GPU's attributes tell. One that they do not is for the driver to know.
    pub fn of(attributes: &[(i32, i32)]) -> Self {
        let bound = |attribute: A| {
            let found = attributes.iter().find(|(number, _)| *number == attribute.0);
            found.and_then(|(_, value)| u32::try_from(*value).ok()).unwrap_or(u32::MAX)
        };
        Self {
            grid: [A::MAX_GRID_DIM_X, A::MAX_GRID_DIM_Y, A::MAX_GRID_DIM_Z].map(bound),
            block: [A::MAX_BLOCK_DIM_X, A::MAX_BLOCK_DIM_Y, A::MAX_BLOCK_DIM_Z].map(bound),
            threads: bound(A::MAX_THREADS_PER_BLOCK),
            shared: bound(A::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        }
    }

    /// Whether a launch of this size may be one.
    pub fn allow(&self, grid: [u32; 3], block: [u32; 3], shared: u32) -> bool {
        let within = |size: [u32; 3], most: [u32; 3]| {
            size.into_iter().zip(most).all(|(size, most)| (1..=most).contains(&size))
        };
        let threads = block.into_iter().try_fold(1_u32, u32::checked_mul);
        within(grid, self.grid)
            && within(block, self.block)
            && threads.is_some_and(|threads| threads <= self.threads)
            && shared <= self.shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_kernel_can_be_launched_with_is_seen() {
        let numbers = [
            (A::MAX_GRID_DIM_X, i32::MAX),
            (A::MAX_GRID_DIM_Y, 65_535),
            (A::MAX_GRID_DIM_Z, 65_535),
            (A::MAX_BLOCK_DIM_X, 1024),
            (A::MAX_BLOCK_DIM_Y, 1024),
            (A::MAX_BLOCK_DIM_Z, 64),
            (A::MAX_THREADS_PER_BLOCK, 1024),
            (A::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 232_448),
        ];
        let bounds = LaunchBounds::of(&numbers.map(|(attribute, value)| (attribute.0, value)));
        assert!(bounds.allow([1, 1, 1], [1024, 1, 1], 0));
        assert!(bounds.allow([i32::MAX as u32, 65_535, 1], [16, 8, 8], 232_448));
        for (grid, block, shared) in [
            ([0, 1, 1], [1, 1, 1], 0),
            ([1, 65_536, 1], [1, 1, 1], 0),
            ([1, 1, 1], [1, 0, 1], 0),
            ([1, 1, 1], [1, 1, 65], 0),
            ([1, 1, 1], [1024, 2, 1], 0),
            ([1, 1, 1], [1024, 1024, 64], 0),
            ([1, 1, 1], [1, 1, 1], 232_449),
        ] {
            assert!(!bounds.allow(grid, block, shared), "{grid:?} {block:?} {shared}");
        }
        // Who tells nothing refuses nothing but what is no size.
        let unknown = LaunchBounds::of(&[]);
        assert!(unknown.allow([u32::MAX; 3], [u32::MAX, 1, 1], u32::MAX));
        assert!(!unknown.allow([0; 3], [1; 3], 0));
    }
}
