//! Kernels whose blocks work together: atomic operations on more than a register, and grids that
//! meet, against the CPU.

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::common::{Arg, Loaded, Numbers, Run, row, values};
    use gpuzone_sim_ptx::Fault;

    #[test]
    fn numbers_of_128_bits_and_vectors_are_added_to_by_all() {
        let mut gpu = Loaded::new("wide");
        let n = 1000_u32;
        let input = Numbers::new(41).words(n as usize);
        let (out, data) = (gpu.memory.add(&[0; 64]), gpu.memory.add_words(&input));
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(n)];
        gpu.run("wide_atomics", &row(9, 128), &args).expect("no fault");
        let bytes = gpu.memory.bytes_mut(out).to_vec();
        let wide = values(&bytes[..32], u64::from_le_bytes);
        let sum = |count: usize| input[..count].iter().copied().map(u64::from).sum::<u64>();
        assert_eq!(wide[..2], [u64::from(n), sum(input.len())]);
        assert!((1..=u64::from(n)).contains(&wide[2]), "somebody's {} of {n}", wide[2]);
        let small = |word: &u32| f32::from(u16::try_from(word & 15).expect("small"));
        let total: f32 = input.iter().map(small).sum();
        let floats = values(&bytes[32..56], f32::from_le_bytes);
        // Small whole numbers and halves: in whatever order, all sums are exact.
        assert_eq!(floats, [total, 1000.0, -total, 500.0, total, 2000.0]);
        let halves = values(&bytes[56..64], u16::from_le_bytes);
        // 500, 1000; brain floats have 8 bits, so theirs are stuck at 64 quarters and 256 ones.
        assert_eq!(halves, [0x5fd0, 0x63d0, 0x4280, 0x4380]);
    }

    fn together(blocks: u32, threads: u32) -> Run<'static> {
        Run { cooperative: true, ..row(blocks, threads) }
    }

    #[test]
    fn the_blocks_of_a_tree_wait_for_each_other() {
        let mut gpu = Loaded::new("cooperative");
        let n = 5000_u32;
        let mut numbers = Numbers::new(42);
        let input: Vec<f64> = (0..n).map(|_| f64::from(numbers.below(1 << 20))).collect();
        let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = gpu.memory.add(&bytes);
        for (blocks, host) in [(1, 1), (2, 1), (13, 1), (32, 2), (7, 3), (40, 64)] {
            let (out, parts) = (gpu.memory.add(&[0; 8]), gpu.memory.add(&[0; 8 * 40]));
            let args = [out, parts, data].map(Arg::U64).into_iter().chain([Arg::U32(n)]);
            let run = Run { shared: 8 * 64, threads: host, ..together(blocks, 64) };
            gpu.run("tree_sum", &run, &args.collect::<Vec<_>>()).expect("no fault");
            let got = values(gpu.memory.bytes_mut(out), f64::from_le_bytes);
            assert_eq!(got, [input.iter().sum::<f64>()], "{blocks} blocks, {host} threads");
        }
    }

    #[test]
    fn grids_meet_again_and_again() {
        let mut gpu = Loaded::new("cooperative");
        let (n, rounds) = (777_u32, 20_u32);
        let mut expected = Numbers::new(43).words(n as usize);
        let ring = gpu.memory.add_words(&expected);
        let args = [Arg::U64(ring), Arg::U32(n), Arg::U32(rounds)];
        gpu.run("ring_steps", &together(13, 64), &args).expect("no fault");
        for _ in 0..rounds {
            let last = expected.len() - 1;
            let sum = |i: usize| {
                let (next, before) = (if i == last { 0 } else { i + 1 }, i.checked_sub(1));
                expected[next].wrapping_add(expected[before.unwrap_or(last)])
            };
            expected = (0..expected.len()).map(sum).collect();
        }
        assert_eq!(gpu.memory.words(ring), expected);
    }

    #[test]
    fn a_grid_that_was_not_launched_so_cannot_meet() {
        let mut gpu = Loaded::new("cooperative");
        let ring = gpu.memory.add_words(&[0; 64]);
        let args = [Arg::U64(ring), Arg::U32(64), Arg::U32(1)];
        assert_eq!(gpu.run("ring_steps", &row(2, 32), &args), Err(Fault::Trap));
    }

    #[test]
    fn blocks_that_wait_for_ever_can_be_cancelled() {
        let mut gpu = Loaded::new("cooperative");
        let ring = gpu.memory.add_words(&[0; 64]);
        let args = [Arg::U64(ring), Arg::U32(64), Arg::U32(u32::MAX)];
        let cancel = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                cancel.store(true, Ordering::Relaxed);
            });
            let run = Run { cancel: &cancel, ..together(8, 32) };
            assert_eq!(gpu.run("ring_steps", &run, &args), Err(Fault::Cancelled));
        });
    }

    #[test]
    fn a_fault_of_one_block_ends_all_that_wait_for_it() {
        let mut gpu = Loaded::new("cooperative");
        let ring = gpu.memory.add_words(&[0; 64]);
        // Of the 256 threads, those of later blocks reach beyond the ring.
        let args = [Arg::U64(ring), Arg::U32(256), Arg::U32(1000)];
        let fault = gpu.run("ring_steps", &together(8, 32), &args);
        assert!(matches!(fault, Err(Fault::IllegalAddress { .. })), "{fault:?}");
    }

    #[test]
    fn blocks_that_take_too_much_at_once_are_refused() {
        let gpu = Loaded::new("cooperative");
        let args = [Arg::U64(0), Arg::U32(0), Arg::U32(0)];
        let fault = gpu.run("ring_steps", &together(1 << 20, 1024), &args);
        assert!(matches!(fault, Err(Fault::InvalidLaunch(_))), "{fault:?}");
    }
}
