//! Kernels that call, share, print and stop, against the CPU; and those on halves.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Loaded, Numbers, Run, row, values};
    use crate::oracle::{BRAIN, Format, HALF};
    use gpuzone_sim_ptx::{Fault, PrintBuffer};

    fn bytes<const N: usize, T: Copy>(list: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        list.iter().flat_map(|value| to(*value)).collect()
    }

    fn collatz(start: u32) -> i32 {
        let (mut n, mut steps) = (start, 0);
        while n != 1 && steps < 1000 {
            n = if n % 2 == 1 { n.wrapping_mul(3).wrapping_add(1) } else { n / 2 };
            steps += 1;
        }
        steps
    }

    #[test]
    fn functions_take_and_give_structures() {
        let mut gpu = Loaded::new("calls");
        let mut numbers = Numbers::new(1);
        let input: Vec<i32> = (0..101).map(|_| numbers.word().cast_signed() >> 12).collect();
        let data = gpu.memory.add(&bytes(&input, i32::to_le_bytes));
        let out = gpu.memory.add(&[0; 8 * 101]);
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(101)];
        gpu.run("call_functions", &row(2, 64), &args).expect("no fault");
        let split = |(low, high): (i32, i64), by: i32| {
            (low % by + collatz(low.cast_unsigned() | 1), high / i64::from(by))
        };
        let expected: Vec<i64> = input
            .iter()
            .map(|value| {
                let mut pair = (*value, 1000 * i64::from(*value));
                if value % 3 != 0 {
                    pair = split(pair, 7);
                }
                let (low, high) = split(pair, 3);
                i64::from(low) + high
            })
            .collect();
        assert_eq!(values(gpu.memory.bytes_mut(out), i64::from_le_bytes), expected);
    }

    #[test]
    fn pointers_and_virtual_functions_are_called() {
        let mut gpu = Loaded::new("calls");
        let mut numbers = Numbers::new(2);
        let n = 77_u32;
        let (a, b) = (numbers.floats(n as usize), numbers.floats(n as usize));
        let which: Vec<u8> = (0..n).map(|_| numbers.word().to_le_bytes()[0]).collect();
        let (da, db) = (gpu.memory.add_floats(&a), gpu.memory.add_floats(&b));
        let (out, dw) = (gpu.memory.add_floats(&a), gpu.memory.add(&which));
        let args = [out, da, db, dw].map(Arg::U64).into_iter().chain([Arg::U32(n)]);
        gpu.run("call_pointers", &row(3, 32), &args.collect::<Vec<_>>()).expect("no fault");
        let expected = a.iter().zip(&b).zip(which).map(|((a, b), which)| match which & 3 {
            0 => a + b,
            1 => a - b,
            2 => a * b,
            _ => a.mul_add(*a, b * b).sqrt(),
        });
        assert_eq!(gpu.memory.floats(out), expected.collect::<Vec<_>>());
        let args = [Arg::U64(out), Arg::U64(da), Arg::U32(n)];
        gpu.run("call_virtual", &row(3, 32), &args).expect("no fault");
        let areas = a.iter().enumerate().map(|(i, size)| match i % 2 {
            0 => size * size,
            _ => 3.0 * size * size,
        });
        assert_eq!(gpu.memory.floats(out), areas.collect::<Vec<_>>());
    }

    /// What the stack machine of `calls.cu` leaves for one thread.
    fn interpreted(program: &[u8], i: i32) -> i32 {
        let (mut stack, mut top, mut at) = ([0_i32; 16], 0, 0);
        stack[0] = i;
        while at < program.len() {
            let here = i32::try_from(at).expect("short");
            let slot = &mut stack[top];
            match program[at] % 12 {
                0 => {
                    top = (top + 1).min(15);
                    stack[top] = here;
                }
                1 => *slot = slot.wrapping_add(3),
                2 => *slot = slot.wrapping_mul(-5),
                3 | 4 if top == 0 => {}
                3 => {
                    top -= 1;
                    stack[top] = stack[top].wrapping_add(stack[top + 1]);
                }
                4 => {
                    top -= 1;
                    stack[top] ^= stack[top + 1];
                }
                5 => *slot >>= 1,
                6 => *slot = !*slot,
                7 => at += usize::from(*slot & 1 == 1),
                8 => *slot = slot.wrapping_sub(i * i),
                9 => stack[top] = stack[0].wrapping_add(i),
                10 => *slot <<= 2,
                _ => {
                    let place = usize::try_from(i + here).expect("positive") % (top + 1);
                    stack[place] = stack[place].wrapping_add(1);
                }
            }
            at += 1;
        }
        stack[..=top].iter().fold(0_i32, |sum, value| sum.wrapping_mul(31).wrapping_add(*value))
    }

    #[test]
    fn a_stack_machine_jumps_through_its_table() {
        let mut gpu = Loaded::new("calls");
        let mut numbers = Numbers::new(3);
        for length in [1_usize, 30, 200] {
            let program: Vec<u8> = (0..length).map(|_| numbers.word().to_le_bytes()[2]).collect();
            let (out, code) = (gpu.memory.add_words(&[0; 64]), gpu.memory.add(&program));
            let count = u32::try_from(length).expect("short");
            let args = [Arg::U64(out), Arg::U64(code), Arg::U32(count)];
            gpu.run("interpret", &row(1, 64), &args).expect("no fault");
            let expected: Vec<u32> =
                (0..64).map(|i| interpreted(&program, i).cast_unsigned()).collect();
            assert_eq!(gpu.memory.words(out), expected);
        }
    }

    #[test]
    fn structures_are_arguments() {
        let mut gpu = Loaded::new("structs");
        let mut numbers = Numbers::new(4);
        let n = 100_usize;
        let mut particles = Vec::new();
        for _ in 0..n {
            particles.extend(bytes(&numbers.floats(6), f32::to_le_bytes));
            let charge = i16::try_from(numbers.below(7)).expect("small") - 3;
            particles.extend([u8::from(numbers.below(4) != 0), 0]);
            particles.extend(charge.to_le_bytes());
            particles.extend([0; 4]);
            particles.extend(f64::from(numbers.float()).to_le_bytes());
        }
        let (step, gravity, bounds) = (0.25_f32, [0.5_f32, -1.0, 2.0], [-1_i32, 0, 1, 2]);
        let count = 93_u32;
        let mut settings = [step.to_le_bytes(), count.to_le_bytes()].concat();
        settings.extend(bytes(&gravity, f32::to_le_bytes));
        settings.extend(bytes(&bounds, i32::to_le_bytes));
        let (data, left) = (gpu.memory.add(&particles), gpu.memory.add_words(&[0]));
        let args = [Arg::U64(data), Arg::Bytes(settings), Arg::U64(left)];
        gpu.run("move_particles", &row(2, 64), &args).expect("no fault");

        let mut leaves = 0;
        for (index, p) in particles.chunks_mut(40).enumerate().take(count as usize) {
            if p[24] == 0 {
                continue;
            }
            let numbers: Vec<f32> = values(&p[..24], f32::from_le_bytes);
            let charge = i16::from_le_bytes([p[26], p[27]]);
            let velocity = [0, 1, 2]
                .map(|axis| (gravity[axis] * step).mul_add(f32::from(charge), numbers[3 + axis]));
            let position = [0, 1, 2].map(|axis| step.mul_add(velocity[axis], numbers[axis]));
            let side = usize::from(charge & 1 == 1);
            let bound = |at: usize| f32::from(i16::try_from(bounds[at]).expect("small"));
            if position[0] < bound(side) || position[0] > bound(2 + side) {
                leaves += 1;
                continue;
            }
            let moved = [position, velocity].concat();
            p[..24].copy_from_slice(&bytes(&moved, f32::to_le_bytes));
            let mass = f64::from_le_bytes(p[32..].try_into().expect("eight"));
            p[32..].copy_from_slice(&(mass * 0.5).to_le_bytes());
            assert!(index < 93);
        }
        assert_eq!(gpu.memory.words(left), [leaves]);
        assert_eq!(gpu.memory.bytes_mut(data), particles);
        assert!(leaves > 5 && leaves < 80, "{leaves} leave: the test tests one side only");
    }

    #[test]
    fn a_needle_is_found() {
        let mut gpu = Loaded::new("structs");
        let mut numbers = Numbers::new(5);
        let text: Vec<u8> =
            (0..1500).map(|_| b'a' + u8::try_from(numbers.below(2)).expect("two")).collect();
        for needle in [&b"a"[..], b"abba", b"bababab"] {
            let (found, data) = (gpu.memory.add(&[9; 1500]), gpu.memory.add(&text));
            let dn = gpu.memory.add(needle);
            let length = u32::try_from(needle.len()).expect("short");
            let args =
                [Arg::U64(found), Arg::U64(data), Arg::U32(1500), Arg::U64(dn), Arg::U32(length)];
            gpu.run("string_search", &row(12, 128), &args).expect("no fault");
            let expected: Vec<u8> =
                (0..1500).map(|at| u8::from(text[at..].starts_with(needle))).collect();
            assert_eq!(gpu.memory.bytes_mut(found), expected);
        }
    }

    #[test]
    fn the_last_block_sums_all_parts() {
        let mut gpu = Loaded::new("tree");
        let mut numbers = Numbers::new(6);
        // Sums of numbers of few bits are exact in any order.
        let input: Vec<f64> = (0..5003).map(|_| f64::from(numbers.float()) * 1024.0).collect();
        for (blocks, threads) in [(1_u32, 64), (7, 128), (7, 128)] {
            let data = gpu.memory.add(&bytes(&input, f64::to_le_bytes));
            let (out, parts) = (gpu.memory.add(&[0; 8]), gpu.memory.add(&[0; 8 * 7]));
            let run = Run { shared: 8 * threads, ..row(blocks, threads) };
            let args = [Arg::U64(out), Arg::U64(parts), Arg::U64(data), Arg::U32(5003)];
            gpu.run("sum_double", &run, &args).expect("no fault");
            let sum: f64 = input.iter().sum();
            assert_eq!(values(gpu.memory.bytes_mut(out), f64::from_le_bytes), [sum]);
        }
    }

    #[test]
    fn threads_climb_a_tree_together() {
        let mut gpu = Loaded::new("tree");
        let leaves = 256_u32;
        let words = Numbers::new(7).words(leaves as usize);
        let nodes = gpu.memory.add_words(&[vec![0; leaves as usize], words.clone()].concat());
        let visits = gpu.memory.add_words(&vec![0; leaves as usize]);
        let args = [Arg::U64(nodes), Arg::U64(visits), Arg::U32(leaves)];
        gpu.run("max_tree", &row(3, 96), &args).expect("no fault");
        assert_eq!(Some(&gpu.memory.words(nodes)[1]), words.iter().max());
    }

    #[test]
    fn kernels_print_and_assert() {
        let mut gpu = Loaded::new("print");
        let name = gpu.memory.add(b"the grid\0");
        let prints = PrintBuffer::new(1 << 12);
        let run = Run { prints: &prints, threads: 1, ..row(2, 40) };
        let args =
            [Arg::U64(name), Arg::U32(u32::MAX - 40), Arg::Bytes(3.25_f64.to_le_bytes().to_vec())];
        gpu.run("greet", &run, &args).expect("no fault");
        let line = |block: u32, letter: char| {
            format!("block {block} of the grid:   -41|ffffffd7|0003.250|{letter}|1099511627776|%\n")
        };
        let (text, lost) = prints.take();
        assert_eq!(String::from_utf8_lossy(&text), line(0, 'A') + &line(1, 'B'));
        assert_eq!(lost, 0);

        let data = gpu.memory.add_words(&[1, 2, 300, 4]);
        let args = |limit| [Arg::U64(data), Arg::U32(limit)];
        gpu.run("check", &row(1, 4), &args(301)).expect("no fault");
        let Err(Fault::Assert(text)) = gpu.run("check", &row(1, 4), &args(300)) else {
            panic!("no assertion failed");
        };
        let place =
            "block: [0,0,0], thread: [2,0,0] Assertion `values[threadIdx.x] < limit` failed.";
        assert!(text.starts_with("print.cu:") && text.ends_with(place), "{text}");
    }

    /// Random bits of numbers whose exponents lie within `spread` of one.
    fn numbers_of(format: Format, spread: u32, seed: u64, count: usize) -> Vec<u16> {
        let mut numbers = Numbers::new(seed);
        let bias = (1 << (format.exponent - 1)) - 1;
        let mut one = || {
            let exponent = bias - spread + numbers.below(2 * spread + 1);
            let sign = numbers.word() & 0x8000;
            let bits =
                sign | exponent << format.fraction | numbers.word() & ((1 << format.fraction) - 1);
            u16::try_from(bits).expect("16 bits")
        };
        (0..count).map(|_| one()).collect()
    }

    #[test]
    fn brain_floats_are_fused_and_paired() {
        let mut gpu = Loaded::new("bfloat");
        let n = 600_u32;
        let lists = [1, 2].map(|seed| numbers_of(BRAIN, 6, seed, n as usize));
        let [x, y] = &lists;
        let [dx, dy] = lists.each_ref().map(|list| gpu.memory.add(&bytes(list, u16::to_le_bytes)));
        let alpha = 0x3fc3_u16;
        let args =
            [Arg::U64(dy), Arg::U64(dx), Arg::Bytes(alpha.to_le_bytes().to_vec()), Arg::U32(n)];
        gpu.run("axpy_bf16", &row(5, 128), &args).expect("no fault");
        let fixed = |bits: u16, scale| BRAIN.fixed(bits.into(), scale);
        let expected = x.iter().zip(y).map(|(x, y)| {
            let exact = fixed(*x, 20) * fixed(alpha, 20) + (fixed(*y, 20) << 20);
            u16::try_from(BRAIN_NARROW.nearest(exact, 40)).expect("16 bits")
        });
        let got = values(gpu.memory.bytes_mut(dy), u16::from_le_bytes);
        assert_eq!(got, expected.collect::<Vec<_>>());

        let dy = gpu.memory.add(&bytes(y, u16::to_le_bytes));
        let out = gpu.memory.add(&vec![0; 2 * n as usize]);
        let args = [Arg::U64(out), Arg::U64(dx), Arg::U64(dy), Arg::U32(n / 2)];
        gpu.run("pairs_bf16", &row(3, 128), &args).expect("no fault");
        let expected = x.iter().zip(y).map(|(x, y)| {
            let sum = BRAIN_NARROW.nearest(fixed(*x, 20) + fixed(*y, 20), 20);
            let exact = BRAIN.fixed(sum, 20) * fixed(*x, 20);
            // Two that cancel out are +0, and its product has the other factor's sign.
            let zero = if exact == 0 { x & 0x8000 } else { 0 };
            zero | u16::try_from(BRAIN_NARROW.nearest(exact, 40)).expect("16 bits")
        });
        let got = values(gpu.memory.bytes_mut(out), u16::from_le_bytes);
        assert_eq!(got, expected.collect::<Vec<_>>());
    }

    const BRAIN_NARROW: Search = Search(BRAIN);

    /// `nearest` of a format whose largest numbers do not fit 128 bits: searched among
    /// those around one.
    struct Search(Format);

    impl Search {
        fn nearest(&self, exact: i128, scale: i32) -> u64 {
            // The bits of 2^-25 and 2^25.
            let bits = |exponent: u64| exponent << self.0.fraction;
            let range = bits(127 - 25)..bits(127 + 25);
            let all: Vec<u64> = std::iter::once(0).chain(range).collect();
            let value = |bits: &u64| self.0.fixed(*bits, scale.max(33));
            let exact = exact << (scale.max(33) - scale);
            let place = all.partition_point(|bits| value(bits) <= exact.abs());
            let (below, above) = (all[place - 1], all[place]);
            let twice = value(&below) + value(&above);
            let chosen = match (2 * exact.abs()).cmp(&twice) {
                std::cmp::Ordering::Less => below,
                std::cmp::Ordering::Greater => above,
                std::cmp::Ordering::Equal => {
                    if below & 1 == 0 {
                        below
                    } else {
                        above
                    }
                }
            };
            if exact < 0 { self.0.sign() | chosen } else { chosen }
        }
    }

    #[test]
    fn halves_are_multiplied_and_chosen() {
        let mut gpu = Loaded::new("half");
        let fixed = |bits: u16| HALF.fixed(bits.into(), 24);
        let rounded = |exact: i128, scale| HALF.nearest(exact, scale);
        let (rows, pairs) = (5_u32, 70_u32);
        let a = numbers_of(HALF, 4, 3, (rows * 2 * pairs) as usize);
        let x = numbers_of(HALF, 4, 4, 2 * pairs as usize);
        let (da, dx) = (
            gpu.memory.add(&bytes(&a, u16::to_le_bytes)),
            gpu.memory.add(&bytes(&x, u16::to_le_bytes)),
        );
        let y = gpu.memory.add_floats(&[0.0; 5]);
        let args = [Arg::U64(y), Arg::U64(da), Arg::U64(dx), Arg::U32(pairs)];
        gpu.run("gemv_half", &row(rows, 32), &args).expect("no fault");
        for (got, row) in gpu.memory.floats(y).iter().zip(a.chunks(2 * pairs as usize)) {
            let sum: i128 = row
                .iter()
                .zip(&x)
                .map(|(a, x)| {
                    let exact = fixed(*a) * fixed(*x);
                    let product = HALF.fixed(rounded(exact, 48), 48);
                    let rest = HALF.fixed(rounded(exact - product, 48), 48);
                    HALF.fixed(rounded(exact + rest, 48), 48)
                })
                .sum();
            #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
            let sum = sum as f64 / 2.0_f64.powi(48);
            assert!((f64::from(*got) - sum).abs() < 1e-2, "{got} is not {sum}");
        }

        let n = 900_u32;
        let lists = [5, 6, 7].map(|seed| numbers_of(HALF, 7, seed, n as usize));
        let [a, b, c] = &lists;
        let [da, db, dc] =
            lists.each_ref().map(|list| gpu.memory.add(&bytes(list, u16::to_le_bytes)));
        let out = gpu.memory.add(&vec![1; 2 * n as usize]);
        let args = [out, da, db, dc].map(Arg::U64).into_iter().chain([Arg::U32(n)]);
        gpu.run("half_select", &row(8, 128), &args.collect::<Vec<_>>()).expect("no fault");
        let got = values(gpu.memory.bytes_mut(out), u16::from_le_bytes);
        for (i, got) in got.iter().enumerate() {
            let [a, b, c] = [a[i], b[i], c[i]].map(fixed);
            let sum = rounded(a + b, 24);
            let fused = rounded((a << 24) - b * c, 48);
            let larger = if HALF.fixed(sum, 48) > HALF.fixed(fused, 48) { sum } else { fused };
            assert_eq!(u64::from(*got), if a < b { larger } else { 0 }, "element {i}");
        }
    }

    #[test]
    fn every_atomic_operation() {
        let mut gpu = Loaded::new("atomics");
        let threads = 200_u32;
        let mut numbers = Numbers::new(8);
        let input: Vec<u32> = (0..threads).map(|_| numbers.below(10_000)).collect();
        // The structure's fields in order: offset, size, first value, last value.
        let mut start = vec![0_u8; 136];
        let mut put =
            |offset: usize, bytes: &[u8]| start[offset..][..bytes.len()].copy_from_slice(bytes);
        put(4, &u32::MAX.to_le_bytes());
        put(12, &u32::MAX.to_le_bytes());
        put(36, &i32::MAX.to_le_bytes());
        put(40, &i32::MIN.to_le_bytes());
        put(64, &u64::MAX.to_le_bytes());
        put(80, &u64::MAX.to_le_bytes());
        put(104, &3_u64.to_le_bytes());
        put(112, &i64::MAX.to_le_bytes());
        let (global, shared) = (gpu.memory.add(&start), gpu.memory.add(&[0; 136]));
        let (data, first) = (gpu.memory.add_words(&input), gpu.memory.add(&start));
        let args = [global, shared, data, first].map(Arg::U64);
        gpu.run("all_atomics", &row(1, threads), &args).expect("no fault");
        let got = gpu.memory.bytes_mut(global)[..130].to_vec();
        assert_eq!(gpu.memory.bytes_mut(shared)[..130], got);

        let word = |at: usize| u32::from_le_bytes(got[at..at + 4].try_into().expect("four"));
        let wide = |at: usize| u64::from_le_bytes(got[at..at + 8].try_into().expect("eight"));
        let all = |first: u32, f: fn(u32, u32) -> u32| input.iter().copied().fold(first, f);
        let wides: Vec<u64> = input
            .iter()
            .map(|v| u64::from(*v) << 32 | u64::from(v.wrapping_mul(2_654_435_761)))
            .collect();
        let many = |first: u64, f: fn(u64, u64) -> u64| wides.iter().copied().fold(first, f);
        let fields = [
            ("add", word(0), all(0, |a, b| a + b) - threads),
            ("min", word(4), all(u32::MAX, u32::min)),
            ("max", word(8), all(0, u32::max)),
            ("and", word(12), all(u32::MAX, |a, b| a & (b | 0xff00))),
            ("or", word(16), all(0, |a, b| a | b)),
            ("xor", word(20), all(0, |a, b| a ^ b)),
            ("inc", word(24), threads % 42),
            ("dec", word(28), (42 - threads % 42) % 42),
            ("cas", word(32), all(0, |a, b| a + b % 7)),
            ("signed min", word(36), all(u32::MAX, u32::min).wrapping_sub(5000)),
            ("signed max", word(40), all(0, u32::max).wrapping_sub(5000)),
            ("float add", word(44), f32::to_bits(small(all(0, |a, b| a + (b & 63))))),
        ];
        for (name, got, expected) in fields {
            assert_eq!(got, expected, "{name}");
        }
        let total = f64::from(input.iter().sum::<u32>());
        let wide_fields = [
            ("double add", wide(48), total.to_bits()),
            ("wide add", wide(56), many(0, u64::wrapping_add)),
            ("wide min", wide(64), many(u64::MAX, u64::min)),
            ("wide max", wide(72), many(0, u64::max)),
            ("wide and", wide(80), many(u64::MAX, |a, b| a & (b | 0xff00_00ff))),
            ("wide or", wide(88), many(0, |a, b| a | b)),
            ("wide xor", wide(96), many(0, |a, b| a ^ b)),
            ("wide cas", wide(104), (0..threads).fold(3, |sum: u64, _| sum.wrapping_mul(2))),
            ("wide signed min", wide(112), many(i64::MAX.cast_unsigned(), u64::min)),
        ];
        for (name, got, expected) in wide_fields {
            assert_eq!(got, expected, "{name}");
        }
        // 200 times 1 and a half in halves, a quarter and 1 in brain floats: all exact.
        assert_eq!(word(120), 0x5640_5a40, "halves");
        assert_eq!(word(124), 0x4348_4248, "brain floats");
        assert_eq!(got[128..130], 600_u16.to_le_bytes(), "16-bit cas");
    }

    fn small(value: u32) -> f32 {
        f32::from(u16::try_from(value).expect("small"))
    }
}
