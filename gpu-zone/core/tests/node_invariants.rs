//! No sequence of operations gives two leases the same memory or time, or a tenant more than
//! its quota.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this file is a test crate"
)]

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_core::{
    ComputeCapability, ComputeShare, Demand, Exposure, Gpu, GpuBacking, GpuCount, GpuUuid,
    Inventory, Lease, LeaseEvent, LeaseId, LeaseState, MemoryBytes, NodeState, PciAddress, Request,
    TenantId, TenantQuota, ZoneId, admit,
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const GPU_MIB: [u64; 3] = [16_384, 16_384, 24_576];
const TENANTS: [&str; 2] = ["acme", "globex"];

fn inventory() -> Inventory {
    let gpu = |(index, mib): (usize, &u64)| Gpu {
        uuid: gpu_uuid(index),
        index: u32::try_from(index).unwrap(),
        name: "Simulated".into(),
        pci: PciAddress::new(0, u8::try_from(index).unwrap(), 0, 0).unwrap(),
        memory: MemoryBytes::mib(*mib),
        compute_capability: ComputeCapability { major: 9, minor: 0 },
        numa_node: None,
        nvlink_peers: BTreeSet::new(),
        mig_capable: false,
        backing: GpuBacking::Simulated,
    };
    Inventory::new(GPU_MIB.iter().enumerate().map(gpu).collect()).unwrap()
}

fn gpu_uuid(index: usize) -> GpuUuid {
    GpuUuid::from_bytes([u8::try_from(index).unwrap(); 16])
}

fn quota(tenant: &TenantId) -> TenantQuota {
    match tenant.as_str() {
        "acme" => TenantQuota {
            memory: Some(MemoryBytes::gib(20)),
            share: Some(150),
            ..Default::default()
        },
        _ => TenantQuota { gpus: Some(4), leases: Some(3), ..Default::default() },
    }
}

fn id(number: u128) -> LeaseId {
    LeaseId::from_uuid(uuid::Uuid::from_u128(number))
}

fn zone(number: u128) -> ZoneId {
    ZoneId::from_uuid(uuid::Uuid::from_u128(number))
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u128, Request),
    Event(u128, LeaseEvent),
    /// The agent was killed: what the journal recorded is taken back.
    Restart,
}

/// What must hold, kept as simply as it can be: leases by number, and nothing derived.
#[derive(Clone, Debug, Default)]
struct Model {
    leases: BTreeMap<u128, LeaseState>,
    next: u128,
}

fn request() -> impl Strategy<Value = Request> {
    let memory = prop_oneof![Just(None), (0u64..20).prop_map(|gib| Some(MemoryBytes::gib(gib)))];
    let share =
        proptest::option::of((1u32..=100).prop_map(|percent| ComputeShare::new(percent).unwrap()));
    let tenant = proptest::sample::select(&TENANTS[..]);
    (tenant, 1u32..=4, memory, share).prop_map(|(tenant, gpus, memory, share)| Request {
        tenant: tenant.parse().unwrap(),
        gpus: GpuCount::new(gpus).unwrap(),
        memory,
        share,
        exposure: Exposure::Mediated,
        time: Default::default(),
        model: None,
    })
}

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        let next = model.next;
        let reserve = request().prop_map(move |request| Step::Reserve(next, request));
        let event = (0..=next, proptest::sample::select(&LeaseEvent::ALL[..]));
        let event = event.prop_map(|(number, event)| Step::Event(number, event));
        prop_oneof![4 => reserve, 8 => event, 1 => Just(Step::Restart)].boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match step {
            // Whether there is room is the system's business; the model learns it from there.
            Step::Reserve(number, _) => {
                model.leases.insert(*number, LeaseState::Reserved);
                model.next += 1;
            }
            Step::Event(number, event) => {
                if let Some(state) = model.leases.get_mut(number) {
                    *state = state.after(*event).unwrap_or(*state);
                }
            }
            Step::Restart => {}
        }
        model
    }
}

#[derive(Default)]
struct System {
    node: NodeState,
    refused: BTreeSet<u128>,
}

impl StateMachineTest for Machine {
    type SystemUnderTest = System;
    type Reference = Machine;

    fn init_test(_: &Model) -> System {
        System { node: NodeState::new(inventory()), refused: BTreeSet::new() }
    }

    fn apply(mut system: System, _: &Model, step: Step) -> System {
        match step {
            Step::Reserve(number, request) => {
                if !reserve(&mut system.node, number, &request) {
                    system.refused.insert(number);
                }
            }
            Step::Event(number, event) => {
                let before = system.node.lease(id(number)).map(|lease| lease.state);
                let result = system.node.apply(id(number), event);
                assert_eq!(result.ok(), before.and_then(|state| state.after(event).ok()));
            }
            Step::Restart => {
                let journal: Vec<Lease> = system.node.leases().cloned().collect();
                let mut node = NodeState::new(inventory());
                for lease in journal {
                    node.restore(lease, Exposure::Mediated)
                        .expect("what was held together can be held together again");
                }
                system.node = node;
            }
        }
        system
    }

    fn check_invariants(system: &System, model: &Model) {
        gpus_hold_what_they_have(&system.node);
        tenants_stay_within_quota(&system.node);
        for (number, state) in &model.leases {
            let found = system.node.lease(id(*number)).map(|lease| lease.state);
            let expected = (state.holds() && !system.refused.contains(number)).then_some(*state);
            assert_eq!(found, expected, "lease {number}");
        }
    }
}

fn reserve(node: &mut NodeState, number: u128, request: &Request) -> bool {
    let Ok(placement) = node.place(request) else { return false };
    let distinct: BTreeSet<_> = placement.grants().iter().map(|grant| grant.gpu).collect();
    assert_eq!(distinct.len(), request.gpus.get() as usize);
    let held = node.holdings(&request.tenant);
    let demand = Demand { tenant: request.tenant.clone(), placement, time: request.time };
    let Ok(admission) = admit(Some(&quota(&request.tenant)), held, demand) else { return false };
    node.reserve(id(number), zone(number), admission).expect("a fresh placement has room");
    true
}

fn gpus_hold_what_they_have(node: &NodeState) {
    for (index, mib) in GPU_MIB.iter().enumerate() {
        let of_gpu = node.leases().flat_map(|lease| lease.placement.grants());
        let grants: Vec<_> = of_gpu.filter(|grant| grant.gpu == gpu_uuid(index)).collect();
        let memory: u64 = grants.iter().map(|grant| grant.memory.get()).sum();
        let share: u32 = grants.iter().map(|grant| grant.share.percent()).sum();
        assert!(memory <= mib << 20, "GPU {index}: {memory} of {mib} MiB");
        assert!(share <= 100, "GPU {index}: {share} %");
        assert_eq!(node.free_memory(gpu_uuid(index)).unwrap().get(), (mib << 20) - memory);
        assert_eq!(node.free_share(gpu_uuid(index)), Some(100 - share));
    }
}

fn tenants_stay_within_quota(node: &NodeState) {
    for tenant in TENANTS {
        let tenant: TenantId = tenant.parse().unwrap();
        let own: Vec<_> = node.leases().filter(|lease| lease.tenant == tenant).collect();
        let quota = quota(&tenant);
        let memory: u64 = own.iter().map(|lease| lease.placement.memory().get()).sum();
        let share: u32 = own.iter().map(|lease| lease.placement.share_percent()).sum();
        let gpus: usize = own.iter().map(|lease| lease.placement.grants().len()).sum();
        assert!(quota.memory.is_none_or(|limit| memory <= limit.get()));
        assert!(quota.share.is_none_or(|limit| share <= limit));
        assert!(quota.gpus.is_none_or(|limit| gpus <= limit as usize));
        assert!(quota.leases.is_none_or(|limit| own.len() <= limit as usize));
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn leases_never_exceed_a_gpu_or_a_quota(sequential 1..60 => Machine);
}
