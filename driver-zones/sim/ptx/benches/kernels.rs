//! How fast the machine is on two kernels that bound most programs: one that
//! streams memory, one that computes in shared memory.
#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

#[path = "../tests/machine/common.rs"]
mod common;

use common::{Arg, Run, TestMemory};
use criterion::{Criterion, criterion_group, criterion_main};

fn saxpy(criterion: &mut Criterion) {
    let n = 1_u32 << 20;
    let mut memory = TestMemory::default();
    let (y, x) = (memory.add_floats(&vec![1.0; 1 << 20]), memory.add_floats(&vec![2.0; 1 << 20]));
    let source = include_str!("../../kernels/ptx/saxpy.ptx");
    criterion.bench_function("saxpy of 1 Mi elements", |bencher| {
        bencher.iter(|| {
            let args = [Arg::U64(y), Arg::U64(x), Arg::F32(0.5), Arg::U32(n)];
            let run = Run { grid: (n / 256, 1), block: (256, 1), ..Run::default() };
            run.go(source, "saxpy", &args, &memory)
        });
    });
}

fn matmul(criterion: &mut Criterion) {
    let n = 512_u32;
    let mut memory = TestMemory::default();
    let matrix = vec![0.5; 512 * 512];
    let (a, b) = (memory.add_floats(&matrix), memory.add_floats(&matrix));
    let c = memory.add_floats(&matrix);
    let source = include_str!("../../kernels/ptx/matmul_tiled.ptx");
    criterion.bench_function("product of 512 by 512 matrices", |bencher| {
        bencher.iter(|| {
            let args =
                [Arg::U64(c), Arg::U64(a), Arg::U64(b), Arg::U32(n), Arg::U32(n), Arg::U32(n)];
            let run = Run { grid: (n / 16, n / 16), block: (16, 16), ..Run::default() };
            run.go(source, "matmul_tiled", &args, &memory)
        });
    });
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(10);
    targets = saxpy, matmul
}
criterion_main!(kernels);
