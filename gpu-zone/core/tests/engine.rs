//! What holds for the placement engine whatever is asked of it.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

use gpuzone_core::engine::{
    Amount, Board, Demand, GpuKind, GpuRoom, HostDemand, HostRoom, MemoryAsk, ModelTable, NodeRoom,
    PodDemand, Policy, ShareMilli, WorkloadMix, fit, place,
};
use gpuzone_core::{Exposure, GpuCount, MemoryBytes};
use proptest::prelude::*;

fn node(cpu_milli: u64, free: &[u16]) -> NodeRoom {
    let model = ModelTable::default().class_of("G2").unwrap();
    let (memory, exposure) = (MemoryBytes::mib(1000), Exposure::Mediated);
    let kind = GpuKind { memory, model, exposure, healthy: true, numa: None, nvlink: None };
    let gpu = |milli: &u16| {
        let share = ShareMilli::new(*milli).unwrap();
        GpuRoom::with_free(kind, MemoryBytes::mib(u64::from(*milli)), share)
    };
    let host = HostRoom { cpu_milli, memory: MemoryBytes::gib(512) };
    NodeRoom::new(host, free.iter().map(gpu).collect()).unwrap()
}

fn demand((gpus, milli): (u32, u16)) -> Demand {
    let memory = MemoryAsk::Bytes(MemoryBytes::mib(u64::from(milli)));
    let part = Amount::Part { memory, share: ShareMilli::new(milli) };
    let amount = if milli == 1000 { Amount::Whole } else { part };
    Demand::new(GpuCount::new(gpus).unwrap(), amount)
}

fn pod(cpu_milli: u64, containers: &[(u32, u16)]) -> PodDemand {
    let host = HostDemand { cpu_milli, memory: MemoryBytes::gib(1) };
    PodDemand { host, containers: containers.iter().copied().map(demand).collect() }
}

/// Every way to serve the containers one after another; slow, and surely complete.
fn some_way(free: &[u16], containers: &[(u32, u16)]) -> bool {
    let Some(((gpus, milli), rest)) = containers.split_first() else { return true };
    (0u32..1 << free.len()).filter(|set| set.count_ones() == *gpus).any(|set| {
        let mut left = free.to_vec();
        let mut taken = (0..free.len()).filter(|at| set >> at & 1 == 1);
        let fits = taken.all(|at| match left[at].checked_sub(*milli) {
            Some(rest) => {
                left[at] = rest;
                true
            }
            None => false,
        });
        fits && some_way(&left, rest)
    })
}

fn milli() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1000u16), 1u16..1000, Just(500u16), Just(470u16), Just(810u16)]
}

proptest! {
    #[test]
    fn what_fits_is_placed_by_every_policy_and_takes_exactly_that(
        free in proptest::collection::vec(0u16..=1000, 1..5),
        containers in proptest::collection::vec((1u32..3, milli()), 0..4),
        cpu in 0u64..3,
    ) {
        let node = node(1, &free);
        let pod = pod(cpu, &containers);
        let possible = cpu <= 1 && some_way(&free, &containers);
        prop_assert_eq!(fit(&node, &pod).is_ok(), possible);
        let mut learned = WorkloadMix::default();
        learned.observe(&pod);
        let mix = learned.renew(std::iter::once(&node));
        for policy in Policy::ALL {
            let placed = place(policy, &mix, &node, &pod);
            prop_assert_eq!(placed.is_ok(), possible);
            let Ok(placed) = placed else { continue };
            prop_assert!(placed.score.get().is_finite());
            let mut after = node.clone();
            after.take(&placed.choice).unwrap();
            let sum = |node: &NodeRoom| node.gpus().iter().map(|gpu| u32::from(gpu.free_milli())).sum::<u32>();
            let asked: u32 = containers.iter().map(|(gpus, milli)| gpus * u32::from(*milli)).sum();
            prop_assert_eq!(sum(&node) - sum(&after), asked);
            for given in placed.choice.containers() {
                let mut gpus: Vec<usize> = given.iter().map(|given| given.gpu).collect();
                gpus.dedup();
                prop_assert_eq!(gpus.len(), given.len());
            }
            after.give_back(&placed.choice);
            prop_assert_eq!(&after, &node);
        }
    }
}

/// A synthetic trace: the same numbers in every run, and sizes that openb has.
fn arrivals() -> Vec<PodDemand> {
    let kinds: [(u64, (u32, u16)); 8] = [
        (3000, (1, 810)),
        (12_000, (1, 470)),
        (4000, (1, 320)),
        (12_000, (1, 650)),
        (4000, (1, 160)),
        (11_000, (1, 1000)),
        (18_000, (1, 1000)),
        (64_000, (8, 1000)),
    ];
    let weights = [18, 14, 8, 6, 3, 60, 8, 1];
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    let of = |mut at: u64| {
        let mut which = 0;
        while at >= weights[which] {
            at -= weights[which];
            which += 1;
        }
        pod(kinds[which].0, &[kinds[which].1])
    };
    (0..700).map(|_| of(next() % weights.iter().sum::<u64>())).collect()
}

/// Thousandths of GPUs that are in use after all have arrived.
fn allocated(policy: Policy) -> u32 {
    let cluster: Vec<NodeRoom> = (0..60)
        .map(|n| if n % 3 == 0 { node(104_000, &[1000; 2]) } else { node(96_000, &[1000; 8]) })
        .collect();
    let mut board = Board::new(policy, cluster);
    let mut learned = WorkloadMix::default();
    for pod in arrivals() {
        learned.observe(&pod);
        if learned.is_due() {
            let mix = learned.renew(board.nodes().iter());
            board.set_mix(mix);
        }
        let fits = board.nodes().iter().any(|node| fit(node, &pod).is_ok());
        let scored = board.verdicts(&pod).enumerate();
        let best = scored.filter_map(|(at, verdict)| Some((verdict.ok()?, at))).max();
        assert_eq!(best.is_some(), fits, "what fits anywhere is placed");
        if let Some((_, at)) = best {
            board.place(at, &pod).unwrap();
        }
    }
    let gpus = board.nodes().iter().flat_map(NodeRoom::gpus);
    gpus.map(|gpu| 1000 - u32::from(gpu.free_milli())).sum()
}

#[test]
fn the_default_allocates_more_of_a_full_cluster_than_packing_or_spreading() {
    let [pack, spread, default] = [Policy::Pack, Policy::Spread, Policy::default()].map(allocated);
    assert!(default >= pack, "{default} against {pack}");
    assert!(pack > spread, "{pack} against {spread}");
}
