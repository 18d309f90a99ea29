//! `cargo bench -p gpuzone-bench-placement --bench decision`: how long the engine takes to look at
//! 1,000 nodes for one pod, when nothing is known of them and when only one has changed.
#![allow(clippy::print_stdout, clippy::tests_outside_test_module, reason = "it prints a table")]

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context;
use gpuzone_core::engine::{
    Amount, Board, Demand, GpuKind, GpuRoom, HostDemand, HostRoom, MemoryAsk, Mix, ModelTable,
    NodeRoom, PodDemand, Policy, ShareMilli, WorkloadMix, fit, place,
};
use gpuzone_core::{Exposure, GpuCount, MemoryBytes};

const NODES: usize = 1000;
const ROUNDS: usize = 41;

fn pod(cpu_milli: u64, gpus: u32, milli: u16) -> anyhow::Result<PodDemand> {
    let host = HostDemand { cpu_milli, memory: MemoryBytes::gib(4) };
    let memory = MemoryAsk::Bytes(MemoryBytes::mib(u64::from(milli)));
    let part = Amount::Part { memory, share: ShareMilli::new(milli) };
    let amount = if milli == 1000 { Amount::Whole } else { part };
    Ok(PodDemand { host, containers: vec![Demand::new(GpuCount::new(gpus)?, amount)] })
}

/// 1,000 nodes of eight GPUs, each GPU empty, full or with a part free, as a coin of one seed falls.
fn cluster(coin: &mut fastrand::Rng, empty: bool) -> anyhow::Result<Vec<NodeRoom>> {
    let model = ModelTable::default().class_of("G2")?;
    let (memory, exposure) = (MemoryBytes::mib(1000), Exposure::Mediated);
    let kind = GpuKind { memory, model, exposure, healthy: true, numa: None, nvlink: None };
    let mut node = || {
        let gpus = (0..8).map(|_| {
            let milli = match coin.u16(..4) {
                _ if empty => 1000,
                0 => 0,
                1 => 1000,
                _ => coin.u16(1..1000),
            };
            let share = ShareMilli::new(milli).unwrap_or(ShareMilli::NONE);
            GpuRoom::with_free(kind, MemoryBytes::mib(u64::from(milli)), share)
        });
        let gpus = gpus.collect();
        let cpu_milli = if empty { 96_000 } else { coin.u64(8_000..96_000) };
        NodeRoom::new(HostRoom { cpu_milli, memory: MemoryBytes::gib(512) }, gpus)
    };
    (0..NODES).map(|_| node().context("a node")).collect()
}

/// A mix of 90 kinds of pods.
fn mix(coin: &mut fastrand::Rng, nodes: &[NodeRoom]) -> anyhow::Result<Mix> {
    let mut learned = WorkloadMix::default();
    for _ in 0..90 {
        let milli = if coin.bool() { 1000 } else { coin.u16(5..100) * 10 };
        let gpus = if milli == 1000 { 1 << coin.u32(..4) } else { 1 };
        let pod = pod(coin.u64(1..32) * 1000, gpus, milli)?;
        (0..coin.u32(1..20)).for_each(|_| learned.observe(&pod));
    }
    Ok(learned.renew(nodes.iter()))
}

/// The median of some rounds, in microseconds.
fn median(mut round: impl FnMut()) -> f64 {
    let mut took: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos()
        })
        .collect();
    took.sort_unstable();
    took.get(ROUNDS / 2).map_or(f64::NAN, |median| *median as f64 / 1000.0)
}

fn main() -> anyhow::Result<()> {
    println!("{NODES} nodes of 8 GPUs, one pod; median of {ROUNDS} in µs\n");
    println!(
        "| cluster | pod | `fit` | `place`, pack | `place`, fragmentation | board, cold | board, one node changed |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut coin = fastrand::Rng::with_seed(7);
    for (name, empty) in [("in use, each node different", false), ("empty", true)] {
        let nodes = cluster(&mut coin, empty)?;
        let mix = mix(&mut coin, &nodes)?;
        for (title, pod) in [
            ("1 GPU, 470 ‰", pod(6000, 1, 470)?),
            ("1 GPU, whole", pod(6000, 1, 1000)?),
            ("8 GPUs, whole", pod(6000, 8, 1000)?),
        ] {
            let placing = |policy: Policy| {
                median(|| {
                    for node in &nodes {
                        let _ = black_box(place(policy, &mix, node, &pod));
                    }
                })
            };
            let fits = median(|| {
                for node in &nodes {
                    let _ = black_box(fit(node, &pod));
                }
            });
            let mut board = Board::new(Policy::Fragmentation, nodes.clone());
            let cold = median(|| {
                board.set_mix(mix.clone());
                black_box(board.verdicts(&pod).filter(Result::is_ok).count());
            });
            let warm = median(|| {
                let node = board.nodes().first().cloned().unwrap_or_default();
                board.set_node(0, node);
                black_box(board.verdicts(&pod).filter(Result::is_ok).count());
            });
            let (pack, default) = (placing(Policy::Pack), placing(Policy::Fragmentation));
            println!(
                "| {name} | {title} | {fits:.0} | {pack:.0} | {default:.0} | {cold:.0} | {warm:.0} |"
            );
        }
    }
    Ok(())
}
