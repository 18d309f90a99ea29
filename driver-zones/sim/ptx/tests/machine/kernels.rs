//! Each of our kernels, as nvcc compiled it, against the CPU.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Numbers, Run, TestMemory};
    use gpuzone_sim_ptx::{Fault, Module};

    const VECTOR_ADD: &str = include_str!("../../../kernels/ptx/vector_add.ptx");
    const SAXPY: &str = include_str!("../../../kernels/ptx/saxpy.ptx");
    const MATMUL: &str = include_str!("../../../kernels/ptx/matmul_tiled.ptx");
    const REDUCE: &str = include_str!("../../../kernels/ptx/reduce.ptx");
    const SOFTMAX: &str = include_str!("../../../kernels/ptx/softmax.ptx");
    const HISTOGRAM: &str = include_str!("../../../kernels/ptx/histogram.ptx");
    const FAULTS: &str = include_str!("../../../kernels/ptx/faults.ptx");

    #[test]
    fn vector_add_is_exact() {
        for n in [1_u32, 31, 257, 10_007] {
            let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(1));
            let (a, b) = (numbers.floats(n as usize), numbers.floats(n as usize));
            let (out, da) = (memory.add_floats(&vec![0.0; n as usize]), memory.add_floats(&a));
            let db = memory.add_floats(&b);
            let args = [Arg::U64(out), Arg::U64(da), Arg::U64(db), Arg::U32(n)];
            let run = Run { grid: (n.div_ceil(96), 1), block: (96, 1), ..Run::default() };
            run.go(VECTOR_ADD, "vector_add", &args, &memory).expect("no fault");
            let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(memory.floats(out), expected);
        }
    }

    #[test]
    fn saxpy_is_exact() {
        let n = 4099_u32;
        let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(2));
        let (x, y) = (numbers.floats(n as usize), numbers.floats(n as usize));
        let (dy, dx) = (memory.add_floats(&y), memory.add_floats(&x));
        let args = [Arg::U64(dy), Arg::U64(dx), Arg::F32(0.3), Arg::U32(n)];
        let run = Run { grid: (n.div_ceil(128), 1), block: (128, 1), ..Run::default() };
        run.go(SAXPY, "saxpy", &args, &memory).expect("no fault");
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.3_f32.mul_add(*x, *y)).collect();
        assert_eq!(memory.floats(dy), expected);
    }

    #[test]
    fn matrix_product_is_exact_for_odd_sizes() {
        for (m, n, k) in [(1_u32, 1_u32, 1_u32), (17, 33, 5), (40, 31, 70)] {
            let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(3));
            let (a, b) = (numbers.floats((m * k) as usize), numbers.floats((k * n) as usize));
            let c = memory.add_floats(&vec![f32::NAN; (m * n) as usize]);
            let (da, db) = (memory.add_floats(&a), memory.add_floats(&b));
            let args =
                [Arg::U64(c), Arg::U64(da), Arg::U64(db), Arg::U32(m), Arg::U32(n), Arg::U32(k)];
            let run =
                Run { grid: (n.div_ceil(16), m.div_ceil(16)), block: (16, 16), ..Run::default() };
            run.go(MATMUL, "matmul_tiled", &args, &memory).expect("no fault");
            let got = memory.floats(c);
            for row in 0..m {
                for col in 0..n {
                    let (pairs, mut sum) = (0..k, 0.0_f32);
                    for i in pairs {
                        sum = a[(row * k + i) as usize].mul_add(b[(i * n + col) as usize], sum);
                    }
                    assert_eq!(got[(row * n + col) as usize], sum, "row {row}, column {col}");
                }
            }
        }
    }

    #[test]
    fn reduction_sums() {
        for (n, block, grid) in [(1_u32, 32, 1), (1000, 256, 3), (70_001, 1024, 2)] {
            let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(4));
            let input = numbers.floats(n as usize);
            let (out, data) = (memory.add_floats(&[0.0]), memory.add_floats(&input));
            let args = [Arg::U64(out), Arg::U64(data), Arg::U32(n)];
            let run = Run { grid: (grid, 1), block: (block, 1), ..Run::default() };
            run.go(REDUCE, "reduce", &args, &memory).expect("no fault");
            let exact: f64 = input.iter().map(|value| f64::from(*value)).sum();
            let got = f64::from(memory.floats(out)[0]);
            assert!((got - exact).abs() < 1e-2, "{got} is not {exact}");
        }
    }

    #[test]
    fn softmax_is_close() {
        for (rows, columns, block) in [(1_u32, 1_u32, 1_u32), (5, 77, 64), (3, 1000, 256)] {
            let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(5));
            let count = (rows * columns) as usize;
            let input: Vec<f32> = numbers.floats(count).iter().map(|value| value * 20.0).collect();
            let (out, data) = (memory.add_floats(&vec![0.0; count]), memory.add_floats(&input));
            let args = [Arg::U64(out), Arg::U64(data), Arg::U32(columns)];
            let run =
                Run { grid: (rows, 1), block: (block, 1), shared: block * 4, ..Run::default() };
            run.go(SOFTMAX, "softmax", &args, &memory).expect("no fault");
            let got = memory.floats(out);
            for (row, got) in input.chunks(columns as usize).zip(got.chunks(columns as usize)) {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f64> =
                    row.iter().map(|value| f64::from(value - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for (power, got) in powers.iter().zip(got) {
                    let exact = power / sum;
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error <= 1e-5 * exact + 1e-37, "{got} is not {exact}");
                }
            }
        }
    }

    #[test]
    fn histogram_counts() {
        let n = 50_021_u32;
        let (mut memory, mut numbers) = (TestMemory::default(), Numbers::new(6));
        let data: Vec<u8> = (0..n).map(|_| numbers.word().to_le_bytes()[3]).collect();
        let (counts, input) = (memory.add_words(&[0; 256]), memory.add(&data));
        let args = [Arg::U64(counts), Arg::U64(input), Arg::U32(n)];
        let run = Run { grid: (6, 1), block: (160, 1), ..Run::default() };
        run.go(HISTOGRAM, "histogram", &args, &memory).expect("no fault");
        let mut expected = vec![0; 256];
        data.iter().for_each(|byte| expected[usize::from(*byte)] += 1);
        assert_eq!(memory.words(counts), expected);
    }

    #[test]
    fn fill_and_checksum_agree() {
        let n = 3001_u64;
        let mut memory = TestMemory::default();
        let (words, sum) = (memory.add_words(&vec![0; 3001]), memory.add(&[0; 8]));
        let run = Run { grid: (3, 1), block: (64, 1), ..Run::default() };
        let args = [Arg::U64(words), Arg::U32(0xabcd_1234), Arg::U64(n)];
        run.go(FAULTS, "fill", &args, &memory).expect("no fault");
        assert!(memory.words(words).iter().all(|word| *word == 0xabcd_1234));
        let args = [Arg::U64(sum), Arg::U64(words), Arg::U64(n)];
        run.go(FAULTS, "read_checksum", &args, &memory).expect("no fault");
        let expected = (1..=n).fold(0_u64, |all, i| all.wrapping_add(0xabcd_1234 * i));
        assert_eq!(memory.bytes_mut(sum), expected.to_le_bytes());
    }

    #[test]
    fn spin_computes_its_recurrence() {
        let mut memory = TestMemory::default();
        let out = memory.add_words(&[0; 32]);
        let args = [Arg::U64(out), Arg::U64(1003)];
        Run::default().go(FAULTS, "spin", &args, &memory).expect("no fault");
        let expected: Vec<u32> = (1..=32_u32)
            .map(|first| {
                (0..1003).fold(first, |state, _| {
                    state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
                })
            })
            .collect();
        assert_eq!(memory.words(out), expected);
    }

    #[test]
    fn a_stray_write_is_a_fault_with_its_address() {
        let mut memory = TestMemory::default();
        let base = memory.add_words(&[7; 16]);
        let distance = 1_u64 << 30;
        let args = [Arg::U64(base), Arg::U64(distance)];
        let fault = Run::default().go(FAULTS, "write_out_of_bounds", &args, &memory);
        let address = base + distance;
        assert_eq!(fault, Err(Fault::IllegalAddress { address, bytes: 4, write: true }));
        assert_eq!(memory.words(base), [7; 16]);
        let args = [Arg::U64(base), Arg::U64(64)];
        let fault = Run::default().go(FAULTS, "write_out_of_bounds", &args, &memory);
        let address = base + 64;
        assert_eq!(fault, Err(Fault::IllegalAddress { address, bytes: 4, write: true }));
        let args = [Arg::U64(base), Arg::U64(2)];
        let fault = Run::default().go(FAULTS, "write_out_of_bounds", &args, &memory);
        assert_eq!(fault, Err(Fault::MisalignedAddress { address: base + 2, bytes: 4 }));
        memory.protect(base);
        let args = [Arg::U64(base), Arg::U64(0)];
        let fault = Run::default().go(FAULTS, "write_out_of_bounds", &args, &memory);
        assert_eq!(fault, Err(Fault::IllegalAddress { address: base, bytes: 4, write: true }));
    }

    #[test]
    fn a_read_past_the_end_is_a_fault_in_the_fast_path_too() {
        let mut memory = TestMemory::default();
        let (out, a) = (memory.add_floats(&[0.0; 64]), memory.add_floats(&[1.0; 50]));
        let args = [Arg::U64(out), Arg::U64(a), Arg::U64(a), Arg::U32(64)];
        let run = Run { block: (64, 1), ..Run::default() };
        let fault = run.go(VECTOR_ADD, "vector_add", &args, &memory);
        assert_eq!(fault, Err(Fault::IllegalAddress { address: a + 200, bytes: 4, write: false }));
    }

    #[test]
    fn kernels_describe_themselves() {
        let module = Module::parse(MATMUL).expect("nvcc's PTX");
        assert_eq!(module.target_compute_capability(), (7, 5));
        let kernel = module.kernel("matmul_tiled").expect("it is there");
        assert_eq!(kernel.static_shared_bytes(), 2048);
        let layout: Vec<_> = kernel.params().iter().map(|p| (p.offset, p.size)).collect();
        assert_eq!(layout, [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4)]);
        assert_eq!(kernel.max_threads_per_block(), 1024);
        let names: Vec<_> = Module::parse(FAULTS)
            .expect("nvcc's PTX")
            .kernels()
            .map(|k| k.name().to_owned())
            .collect();
        assert_eq!(names, ["write_out_of_bounds", "spin", "fill", "read_checksum"]);
    }
}
