//! Kernels over rows of numbers, against the CPU: sums, sorts, bits, halves.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Loaded, Numbers, Run, row, values};

    #[test]
    fn blocks_scan() {
        let mut gpu = Loaded::new("scan");
        let mut numbers = Numbers::new(1);
        for (n, threads) in [(1_u32, 1), (7, 4), (517, 64), (1000, 512)] {
            let words: Vec<u32> = (0..n).map(|_| numbers.below(1000)).collect();
            let data = gpu.memory.add_words(&words);
            let run = Run { shared: 8 * threads, ..row(n.div_ceil(2 * threads), threads) };
            gpu.run("scan_block", &run, &[Arg::U64(data), Arg::U32(n)]).expect("no fault");
            let expected: Vec<u32> = words
                .chunks(2 * threads as usize)
                .flat_map(|block| {
                    block.iter().scan(0, |sum, word| {
                        *sum += word;
                        Some(*sum)
                    })
                })
                .collect();
            assert_eq!(gpu.memory.words(data), expected, "{n} words");
        }
    }

    #[test]
    fn warps_scan_wide_numbers() {
        let mut gpu = Loaded::new("scan");
        let mut numbers = Numbers::new(2);
        for (n, threads) in [(5_u32, 32), (700, 96), (2000, 1024)] {
            let wide: Vec<i64> = (0..n).map(|_| numbers.wide().cast_signed() >> 16).collect();
            let data =
                gpu.memory.add(&wide.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            let run = row(n.div_ceil(threads), threads);
            gpu.run("scan_warps", &run, &[Arg::U64(data), Arg::U32(n)]).expect("no fault");
            let mut expected = Vec::new();
            for block in wide.chunks(threads as usize) {
                let mut sum = 0;
                expected.extend(block.iter().map(|value| {
                    sum += value;
                    sum
                }));
            }
            assert_eq!(values(gpu.memory.bytes_mut(data), i64::from_le_bytes), expected);
        }
    }

    #[test]
    fn blocks_sort() {
        let mut gpu = Loaded::new("sort");
        let mut numbers = Numbers::new(3);
        for (blocks, threads) in [(1_u32, 1_u32), (3, 32), (2, 256)] {
            let keys = numbers.words((blocks * 2 * threads) as usize);
            let data = gpu.memory.add_words(&keys);
            let run = Run { shared: 8 * threads, ..row(blocks, threads) };
            gpu.run("sort_bitonic", &run, &[Arg::U64(data)]).expect("no fault");
            let mut expected: Vec<i32> = keys.iter().map(|key| key.cast_signed()).collect();
            expected.chunks_mut(2 * threads as usize).for_each(<[i32]>::sort_unstable);
            let got: Vec<i32> =
                gpu.memory.words(data).iter().map(|key| key.cast_signed()).collect();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn passes_of_a_radix_sort_are_stable() {
        let mut gpu = Loaded::new("sort");
        let mut numbers = Numbers::new(4);
        for n in [1_u32, 100, 256] {
            let keys = numbers.words(n as usize);
            let mut buffers = [gpu.memory.add_words(&keys), gpu.memory.add_words(&keys)];
            for shift in (0..32).step_by(4) {
                let [from, to] = buffers;
                let args = [Arg::U64(to), Arg::U64(from), Arg::U32(n), Arg::U32(shift)];
                gpu.run("radix_pass", &row(1, 256), &args).expect("no fault");
                buffers.swap(0, 1);
            }
            let mut expected = keys;
            expected.sort_unstable();
            assert_eq!(gpu.memory.words(buffers[0]), expected);
        }
    }

    #[test]
    fn ballots_compact() {
        let mut gpu = Loaded::new("sort");
        let words = Numbers::new(5).words(777);
        let data = gpu.memory.add_words(&words);
        let (out, count) = (gpu.memory.add_words(&[0; 777]), gpu.memory.add_words(&[0]));
        let args = [Arg::U64(out), Arg::U64(count), Arg::U64(data), Arg::U32(777)];
        gpu.run("compact_odd", &row(7, 128), &args).expect("no fault");
        let mut expected: Vec<u32> =
            words.into_iter().filter(|word| word.count_ones() % 2 == 1).collect();
        let mut got = gpu.memory.words(out);
        got.truncate(gpu.memory.words(count)[0] as usize);
        expected.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, expected);
    }

    #[test]
    fn bits_are_counted_and_moved() {
        let mut gpu = Loaded::new("bits");
        let mut numbers = Numbers::new(6);
        let mut input: Vec<u64> = (0..500).map(|_| numbers.wide() >> numbers.below(64)).collect();
        input.extend([0, 1, u64::MAX, 1 << 63, 1 << 32, 0xffff_ffff]);
        let n = u32::try_from(input.len()).expect("few");
        let data = gpu.memory.add(&input.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let out = gpu.memory.add_words(&vec![0; 8 * input.len()]);
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(n)];
        gpu.run("bit_tricks", &row(n.div_ceil(96), 96), &args).expect("no fault");
        let expected: Vec<u32> = input.iter().flat_map(|value| bit_tricks(*value)).collect();
        assert_eq!(gpu.memory.words(out), expected);
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves are taken")]
    fn bit_tricks(value: u64) -> [u32; 8] {
        let (low, high) = (value as u32, (value >> 32) as u32);
        let (a, b) = (low.cast_signed(), high.cast_signed());
        let ffs = |zeros: u32, width: u32| if zeros == width { 0 } else { zeros + 1 };
        let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
        let permuted = [0, 4, 8, 12].map(|at| bytes[(high >> at & 7) as usize]);
        let joined = u64::from(high) << 32 | u64::from(low);
        let left = ((joined << (high & 31)) >> 32) as u32;
        let right = (joined >> (low & 63).min(32)) as u32;
        let low24 = |value: i32| i64::from(value << 8 >> 8);
        let pairs = || low.to_le_bytes().into_iter().zip(high.to_le_bytes());
        let sums = u32::from_le_bytes(
            pairs().map(|(x, y)| x.wrapping_add(y)).collect::<Vec<_>>().try_into().expect("four"),
        );
        let dot = pairs().fold(5_i32, |sum, (x, y)| {
            sum.wrapping_add(i32::from(x.cast_signed()) * i32::from(y.cast_signed()))
        });
        let mean = |extra: i64| ((i64::from(a) + i64::from(b) + extra) >> 1) as u32;
        [
            value.count_ones() + 100 * low.count_ones(),
            value.leading_zeros() + 100 * low.leading_zeros(),
            ffs(value.trailing_zeros(), 64) + 100 * ffs(low.trailing_zeros(), 32),
            low.reverse_bits() ^ value.reverse_bits() as u32,
            u32::from_le_bytes(permuted),
            left ^ right,
            (7 + a.abs_diff(b))
                .wrapping_add(9_u32.wrapping_add(low.abs_diff(high)))
                .wrapping_add((low24(a) * low24(b)) as u32),
            ((u64::from(low & 0xff_ffff) * u64::from(high & 0xff_ffff)) as u32)
                ^ ((i64::from(a) * i64::from(b)) >> 32) as u32
                ^ sums
                ^ dot.cast_unsigned()
                ^ mean(0)
                ^ mean(1),
        ]
    }

    #[test]
    fn numbers_of_128_and_64_bits() {
        let mut gpu = Loaded::new("bits");
        let mut numbers = Numbers::new(7);
        let n = 401_u32;
        let a: Vec<u64> = (0..n).map(|_| numbers.wide() >> numbers.below(60)).collect();
        let b: Vec<i64> = (0..n)
            .map(|i| if i == 0 { 0 } else { numbers.wide().cast_signed() >> (i % 60) })
            .collect();
        let bytes = |list: &[u64]| list.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let unsigned: Vec<u64> = b.iter().map(|value| value.cast_unsigned()).collect();
        let (da, db) = (gpu.memory.add(&bytes(&a)), gpu.memory.add(&bytes(&unsigned)));
        let out = gpu.memory.add(&vec![0; 32 * n as usize]);
        let args = [Arg::U64(out), Arg::U64(da), Arg::U64(db), Arg::U32(n)];
        gpu.run("wide_arithmetic", &row(n.div_ceil(64), 64), &args).expect("no fault");
        let got = values(gpu.memory.bytes_mut(out), u64::from_le_bytes);
        for (got, (a, b)) in got.chunks(4).zip(a.iter().copied().zip(b)) {
            let (x, y) = (a.cast_signed(), b.cast_unsigned());
            let product = u128::from(a) * u128::from(y) + u128::from(a);
            #[expect(clippy::cast_possible_truncation, reason = "halves are taken")]
            let expected = [
                (product >> 64) as u64,
                product as u64,
                if b == 0 { 7 } else { x.wrapping_div(b).cast_unsigned() ^ (a % y) },
                (a << (y & 63)) ^ (b >> (a & 63)).cast_unsigned() ^ b.max(x).cast_unsigned(),
            ];
            assert_eq!(got, expected, "{a} and {b}");
        }
    }

    #[test]
    fn factors_come_from_a_table() {
        let mut gpu = Loaded::new("bits");
        let mut numbers = Numbers::new(10);
        let any = |_| u16::try_from(numbers.below(65_534) + 2).expect("small");
        let input: Vec<u16> = (0..3000).map(any).collect();
        let data = gpu.memory.add(&input.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let out = gpu.memory.add(&vec![0; 6000]);
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(3000)];
        gpu.run("least_factor", &row(24, 128), &args).expect("no fault");
        let got = values(gpu.memory.bytes_mut(out), u16::from_le_bytes);
        for (i, (got, number)) in got.iter().zip(input).enumerate() {
            let factor = (2..=251.min(number)).find(|factor| number % factor == 0);
            // The other table is of 1, 5 and 9, from its second or first entry on.
            let other = [1, 5, 9][1 - (i & 1) + usize::from(number & 1)];
            assert_eq!(*got, factor.unwrap_or(other), "{number}");
        }
    }

    #[test]
    fn philox_gives_its_known_words() {
        let mut gpu = Loaded::new("random");
        let mut numbers = Numbers::new(11);
        for seed in [0, u64::MAX, numbers.wide(), numbers.wide()] {
            let out = gpu.memory.add_words(&[0; 4 * 50]);
            let args = [Arg::U64(out), Arg::U64(seed), Arg::U32(50)];
            gpu.run("philox", &row(2, 32), &args).expect("no fault");
            let expected: Vec<u32> = (0..50).flat_map(|i| philox([i, 0, 0, 0], seed)).collect();
            assert_eq!(gpu.memory.words(out), expected, "{seed:#x}");
        }
        // The generator's authors give this for a counter and key of zeros.
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves are taken")]
    fn philox(counter: [u32; 4], seed: u64) -> [u32; 4] {
        let (mut c, mut key) = (counter, [seed as u32, (seed >> 32) as u32]);
        for _ in 0..10 {
            let first = 0xD251_1F53_u64 * u64::from(c[0]);
            let second = 0xCD9E_8D57_u64 * u64::from(c[2]);
            c = [
                (second >> 32) as u32 ^ c[1] ^ key[0],
                second as u32,
                (first >> 32) as u32 ^ c[3] ^ key[1],
                first as u32,
            ];
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    #[test]
    fn normal_numbers_are_close() {
        let mut gpu = Loaded::new("random");
        let words = Numbers::new(8).words(2 * 333);
        let data = gpu.memory.add_words(&words);
        let out = gpu.memory.add_floats(&[0.0; 2 * 333]);
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(333)];
        gpu.run("normal_pairs", &row(11, 32), &args).expect("no fault");
        for (got, words) in gpu.memory.floats(out).chunks(2).zip(words.chunks(2)) {
            let u = (f64::from(words[0]) + 1.0) * 2.328_306_4e-10;
            let (angle, radius) = (f64::from(words[1]) * 1.462_918e-9, (-2.0 * u.ln()).sqrt());
            let expected = [radius * angle.cos(), radius * angle.sin()];
            for (got, expected) in got.iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} is not {expected}");
            }
        }
    }

    #[test]
    fn copies_without_registers_and_sums_of_warps() {
        let mut gpu = Loaded::new("bfloat");
        let words = Numbers::new(9).words(3 * 128);
        let (sum, data) = (gpu.memory.add_words(&[0]), gpu.memory.add_words(&words));
        gpu.run("staged_sum", &row(3, 128), &[Arg::U64(sum), Arg::U64(data)]).expect("no fault");
        let expected = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(*word));
        assert_eq!(gpu.memory.words(sum), [expected]);
    }
}
