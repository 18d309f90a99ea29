//! How fast the machine is on two kernels that bound most programs, one that
//! streams memory and one that computes in shared memory, on one host thread and
//! on two; beside the same loops compiled for the host, which is the most that a
//! compiler of PTX could give.
#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

#[path = "../tests/machine/common.rs"]
mod common;

use std::hint::black_box;

use common::{Arg, Run, TestMemory};
use criterion::{Criterion, criterion_group, criterion_main};

fn saxpy(criterion: &mut Criterion) {
    let n = 1_u32 << 20;
    let mut memory = TestMemory::default();
    let (y, x) = (memory.add_floats(&vec![1.0; 1 << 20]), memory.add_floats(&vec![2.0; 1 << 20]));
    let source = include_str!("../../kernels/ptx/saxpy.ptx");
    for threads in [1, 2] {
        criterion.bench_function(
            &format!("saxpy of 1 Mi elements, {threads} threads"),
            |bencher| {
                bencher.iter(|| {
                    let args = [Arg::U64(y), Arg::U64(x), Arg::F32(0.5), Arg::U32(n)];
                    let run =
                        Run { grid: (n / 256, 1), block: (256, 1), threads, ..Run::default() };
                    run.go(source, "saxpy", &args, &memory)
                });
            },
        );
    }
    let (mut y, x) = (vec![1.0_f32; 1 << 20], vec![2.0_f32; 1 << 20]);
    criterion.bench_function("saxpy of 1 Mi elements, compiled for the host", |bencher| {
        bencher.iter(|| {
            for (y, x) in black_box(&mut y).iter_mut().zip(black_box(&x)) {
                *y += 0.5 * x;
            }
        });
    });
}

fn matmul(criterion: &mut Criterion) {
    const N: usize = 512;
    let n = 512_u32;
    let mut memory = TestMemory::default();
    let matrix = vec![0.5; N * N];
    let (a, b) = (memory.add_floats(&matrix), memory.add_floats(&matrix));
    let c = memory.add_floats(&matrix);
    let source = include_str!("../../kernels/ptx/matmul_tiled.ptx");
    for threads in [1, 2] {
        criterion.bench_function(&format!("512 by 512 matrices, {threads} threads"), |bencher| {
            bencher.iter(|| {
                let args =
                    [Arg::U64(c), Arg::U64(a), Arg::U64(b), Arg::U32(n), Arg::U32(n), Arg::U32(n)];
                let grid = (n / 16, n / 16);
                let run = Run { grid, block: (16, 16), threads, ..Run::default() };
                run.go(source, "matmul_tiled", &args, &memory)
            });
        });
    }
    let mut product = vec![0.0_f32; N * N];
    criterion.bench_function("512 by 512 matrices, compiled for the host", |bencher| {
        bencher.iter(|| {
            let (a, b) = (black_box(&matrix), black_box(&matrix));
            product.fill(0.0);
            for row in 0..N {
                for k in 0..N {
                    let factor = a[row * N + k];
                    let sums = &mut product[row * N..][..N];
                    for (sum, b) in sums.iter_mut().zip(&b[k * N..][..N]) {
                        *sum += factor * b;
                    }
                }
            }
            black_box(&mut product);
        });
    });
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(10);
    targets = saxpy, matmul
}
criterion_main!(kernels);
