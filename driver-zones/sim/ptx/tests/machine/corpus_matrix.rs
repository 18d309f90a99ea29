//! Kernels over matrices and images, against the CPU.

#[cfg(test)]
mod tests {
    use crate::common::{Arg, Loaded, Numbers, Run, row, values};

    fn close(got: f32, expected: f64, tolerance: f64) {
        let error = (f64::from(got) - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "{got} is not {expected}");
    }

    /// Blocks of `block` that cover `width` by `height`.
    fn cover(width: u32, height: u32, block: (u32, u32)) -> Run<'static> {
        let grid = (width.div_ceil(block.0), height.div_ceil(block.1));
        Run { grid, block, ..Run::default() }
    }

    #[test]
    fn heat_spreads() {
        let mut gpu = Loaded::new("grid");
        for (width, height) in [(1_u32, 1_u32), (3, 3), (37, 21)] {
            let input = Numbers::new(1).floats((width * height) as usize);
            let (out, data) = (gpu.memory.add_floats(&input), gpu.memory.add_floats(&input));
            let args = [Arg::U64(out), Arg::U64(data), Arg::U32(width), Arg::U32(height)];
            gpu.run("stencil", &cover(width, height, (16, 4)), &args).expect("no fault");
            let at = |x: u32, y: u32| input[(y * width + x) as usize];
            let got = gpu.memory.floats(out);
            for (index, got) in got.iter().enumerate() {
                let index = u32::try_from(index).expect("small");
                let (x, y) = (index % width, index / width);
                let edge = x == 0 || y == 0 || x == width - 1 || y == height - 1;
                let expected = if edge {
                    at(x, y)
                } else {
                    let sum = at(x, y) + at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1);
                    0.2 * sum
                };
                assert_eq!(*got, expected, "at {x}, {y}");
            }
        }
    }

    #[test]
    fn matrices_are_transposed_with_and_without_padding() {
        let mut gpu = Loaded::new("grid");
        let mut numbers = Numbers::new(8);
        for (rows, columns) in [(1_u32, 1_u32), (33, 70), (64, 32)] {
            let count = rows * columns;
            let words = numbers.words(count as usize);
            let moved = |i: u32| words[(i % rows * columns + i / rows) as usize];
            let (out, data) = (gpu.memory.add_words(&words), gpu.memory.add_words(&words));
            let run = Run {
                grid: (columns.div_ceil(32), rows.div_ceil(32)),
                block: (32, 8),
                ..Run::default()
            };
            let args =
                |out, data| [Arg::U64(out), Arg::U64(data), Arg::U32(rows), Arg::U32(columns)];
            gpu.run("transpose", &run, &args(out, data)).expect("no fault");
            assert_eq!(gpu.memory.words(out), (0..count).map(moved).collect::<Vec<_>>());
            // Both halves count.
            let widened = |word: u32| u64::from(word) << 32 | u64::from(!word);
            let wide: Vec<u8> = words.iter().flat_map(|w| widened(*w).to_le_bytes()).collect();
            let (out, data) = (gpu.memory.add(&wide), gpu.memory.add(&wide));
            gpu.run("transpose_padded", &run, &args(out, data)).expect("no fault");
            let expected: Vec<u64> = (0..count).map(|i| widened(moved(i))).collect();
            assert_eq!(values(gpu.memory.bytes_mut(out), u64::from_le_bytes), expected);
        }
    }

    #[test]
    fn mandelbrot_counts_rounds() {
        let mut gpu = Loaded::new("grid");
        let (width, height, limit) = (61_u32, 43_u32, 60_u32);
        let scale = 3.0 / 64.0_f32;
        let out = gpu.memory.add(&vec![0; (2 * width * height) as usize]);
        let args =
            [Arg::U64(out), Arg::U32(width), Arg::U32(height), Arg::F32(scale), Arg::U32(limit)];
        gpu.run("mandelbrot", &cover(width, height, (8, 8)), &args).expect("no fault");
        let got = values(gpu.memory.bytes_mut(out), u16::from_le_bytes);
        for (index, got) in (0_u16..).zip(got) {
            let (x, y) = (index % 61, index / 61);
            // These are the products that nvcc chose to fuse with sums.
            let (cr, ci) = (f32::from(x).mul_add(scale, -2.0), f32::from(y).mul_add(scale, -1.2));
            let (mut zr, mut zi, mut rounds) = (0.0_f32, 0.0_f32, 0);
            while rounds < limit && zr * zr + zi * zi <= 4.0 {
                let next = cr + (zr * zr - zi * zi);
                zi = (zr + zr).mul_add(zi, ci);
                zr = next;
                rounds += 1;
            }
            assert_eq!(u32::from(got), rounds, "at {x}, {y}");
        }
    }

    #[test]
    fn images_are_blurred_with_a_constant_window() {
        const WEIGHTS: [u32; 5] = [1, 4, 6, 4, 1];
        let mut gpu = Loaded::new("grid");
        let (width, height) = (45_i32, 30_i32);
        let mut numbers = Numbers::new(2);
        let image: Vec<u8> = (0..width * height).map(|_| numbers.word().to_le_bytes()[1]).collect();
        let (out, data) = (gpu.memory.add(&image), gpu.memory.add(&image));
        let (w, h) = (width.cast_unsigned(), height.cast_unsigned());
        let args = [Arg::U64(out), Arg::U64(data), Arg::U32(w), Arg::U32(h)];
        gpu.run("convolution", &cover(w, h, (32, 4)), &args).expect("no fault");
        let got = gpu.memory.bytes_mut(out).to_vec();
        for (index, got) in (0_i32..).zip(got) {
            let (x, y) = (index % width, index / width);
            let mut sum = 0;
            for (dy, wy) in (-2..=2).zip(WEIGHTS) {
                for (dx, wx) in (-2..=2).zip(WEIGHTS) {
                    let (fx, fy) = (x + dx, y + dy);
                    if (0..width).contains(&fx) && (0..height).contains(&fy) {
                        let at = usize::try_from(fy * width + fx).expect("inside");
                        sum += wx * wy * u32::from(image[at]);
                    }
                }
            }
            let expected = (f64::from(sum) / 256.0).round_ties_even();
            assert_eq!(f64::from(got), expected, "at {x}, {y}");
        }
    }

    #[test]
    fn rows_are_normalised() {
        let mut gpu = Loaded::new("norm");
        let mut numbers = Numbers::new(3);
        for (rows, columns, block) in [(1_u32, 1_u32, 32_u32), (4, 77, 64), (3, 300, 256)] {
            let input = numbers.floats((rows * columns) as usize);
            let (gain, bias) = (numbers.floats(columns as usize), numbers.floats(columns as usize));
            let out = gpu.memory.add_floats(&input);
            let data = gpu.memory.add_floats(&input);
            let (dg, db) = (gpu.memory.add_floats(&gain), gpu.memory.add_floats(&bias));
            let args = [
                Arg::U64(out),
                Arg::U64(data),
                Arg::U64(dg),
                Arg::U64(db),
                Arg::U32(columns),
                Arg::F32(1e-5),
            ];
            gpu.run("layer_norm", &row(rows, block), &args).expect("no fault");
            let got = gpu.memory.floats(out);
            for (input, got) in input.chunks(columns as usize).zip(got.chunks(columns as usize)) {
                let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
                let mean = exact.iter().sum::<f64>() / f64::from(columns);
                let squares = exact.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
                let scale = 1.0 / (squares / f64::from(columns) + 1e-5).sqrt();
                for (i, got) in got.iter().enumerate() {
                    let value = (exact[i] - mean) * scale * f64::from(gain[i]) + f64::from(bias[i]);
                    close(*got, value, 1e-4);
                }
            }
        }
    }

    fn softmax(row: &[f64]) -> Vec<f64> {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = row.iter().map(|value| (value - most).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }

    #[test]
    fn softmax_in_one_pass() {
        let mut gpu = Loaded::new("norm");
        for (rows, columns) in [(1_u32, 1_u32), (3, 40), (2, 501)] {
            let input = Numbers::new(4).floats((rows * columns) as usize);
            let input: Vec<f32> = input.iter().map(|value| value * 20.0).collect();
            let (out, data) = (gpu.memory.add_floats(&input), gpu.memory.add_floats(&input));
            let args = [Arg::U64(out), Arg::U64(data), Arg::U32(columns)];
            gpu.run("softmax_online", &row(rows, 32), &args).expect("no fault");
            let got = gpu.memory.floats(out);
            for (input, got) in input.chunks(columns as usize).zip(got.chunks(columns as usize)) {
                let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
                for (got, expected) in got.iter().zip(softmax(&exact)) {
                    close(*got, expected, 1e-5);
                }
            }
        }
    }

    #[test]
    fn one_head_attends() {
        const WIDTH: usize = 64;
        let mut gpu = Loaded::new("attention");
        for length in [1_u32, 70] {
            let count = length as usize * WIDTH;
            let mut numbers = Numbers::new(5);
            let [q, k, v] = [(); 3].map(|()| numbers.floats(count));
            let [dq, dk, dv] = [&q, &k, &v].map(|list| gpu.memory.add_floats(list));
            let out = gpu.memory.add_floats(&vec![0.0; count]);
            let run = Run { shared: 4 * length, ..row(length, 64) };
            let args = [out, dq, dk, dv].map(Arg::U64).into_iter().chain([Arg::U32(length)]);
            gpu.run("attention", &run, &args.collect::<Vec<_>>()).expect("no fault");
            let got = gpu.memory.floats(out);
            for (query, got) in got.chunks(WIDTH).enumerate() {
                let dot = |key: usize| {
                    let pairs = (0..WIDTH).map(|i| (q[query * WIDTH + i], k[key * WIDTH + i]));
                    pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() / 8.0
                };
                let weights = softmax(&(0..=query).map(dot).collect::<Vec<_>>());
                for (i, got) in got.iter().enumerate() {
                    let parts = weights.iter().enumerate();
                    let sum: f64 = parts.map(|(key, w)| w * f64::from(v[key * WIDTH + i])).sum();
                    close(*got, sum, 1e-4);
                }
            }
        }
    }

    #[test]
    fn sparse_rows_are_multiplied() {
        let mut gpu = Loaded::new("sparse");
        let mut numbers = Numbers::new(6);
        let rows = 53_u32;
        let (mut starts, mut columns) = (vec![0], Vec::new());
        for row in 0..rows {
            // Some rows are empty, some longer than a warp.
            columns.extend((0..row % 7 * 11).map(|_| numbers.below(100)));
            starts.push(u32::try_from(columns.len()).expect("few"));
        }
        let (entries, x) = (numbers.floats(columns.len()), numbers.floats(100));
        let y = gpu.memory.add_floats(&vec![9.0; rows as usize]);
        let (ds, dc) = (gpu.memory.add_words(&starts), gpu.memory.add_words(&columns));
        let (dv, dx) = (gpu.memory.add_floats(&entries), gpu.memory.add_floats(&x));
        let args = [y, ds, dc, dv, dx].map(Arg::U64).into_iter().chain([Arg::U32(rows)]);
        gpu.run("spmv", &row(rows.div_ceil(4), 128), &args.collect::<Vec<_>>()).expect("no fault");
        for (row, got) in gpu.memory.floats(y).iter().enumerate() {
            let range = starts[row] as usize..starts[row + 1] as usize;
            let sum: f64 =
                range.map(|i| f64::from(entries[i]) * f64::from(x[columns[i] as usize])).sum();
            close(*got, sum, 1e-5);
        }
    }

    #[test]
    fn points_find_their_centres() {
        let mut gpu = Loaded::new("sparse");
        let mut numbers = Numbers::new(7);
        let (n, k) = (500_u32, 7_u32);
        let (points, centres) = (numbers.floats(3 * n as usize), numbers.floats(3 * k as usize));
        let nearest = gpu.memory.add_words(&vec![99; n as usize]);
        let sums = gpu.memory.add(&vec![0; 24 * k as usize]);
        let counts = gpu.memory.add_words(&vec![0; k as usize]);
        let (dp, dc) = (gpu.memory.add_floats(&points), gpu.memory.add_floats(&centres));
        let args = [nearest, sums, counts, dp, dc].map(Arg::U64);
        let args: Vec<_> = args.into_iter().chain([Arg::U32(n), Arg::U32(k)]).collect();
        gpu.run("kmeans_step", &row(n.div_ceil(64), 64), &args).expect("no fault");
        let (mut expected, mut totals, mut count) =
            (Vec::new(), vec![0.0; 3 * k as usize], vec![0; k as usize]);
        for point in points.chunks(3) {
            let (mut least, mut best) = (3.0e38_f32, 0);
            for (index, centre) in centres.chunks(3).enumerate() {
                let [dx, dy, dz] = [0, 1, 2].map(|i| point[i] - centre[i]);
                let distance = dz.mul_add(dz, dx.mul_add(dx, dy * dy));
                if distance < least {
                    (least, best) = (distance, index);
                }
            }
            expected.push(u32::try_from(best).expect("few"));
            count[best] += 1;
            (0..3).for_each(|i| totals[3 * best + i] += f64::from(point[i]));
        }
        assert_eq!(gpu.memory.words(nearest), expected);
        assert_eq!(gpu.memory.words(counts), count);
        assert_eq!(values(gpu.memory.bytes_mut(sums), f64::from_le_bytes), totals);
    }
}
