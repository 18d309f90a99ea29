//! Every refusal says what would have to change.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this file is a test crate"
)]

use std::collections::BTreeSet;

use gpuzone_core::{
    Cause, ClusterQuota, ClusterTerms, ComputeCapability, ComputeShare, Counted, Demand, Exposure,
    Gpu, GpuBacking, GpuCount, GpuHealth, GpuUuid, Grant, HealthTerms, Holdings, Inventory,
    InventoryError, Lease, LeaseEvent, LeaseId, LeaseState, Limits, MemoryBytes, MigInstance,
    NodeState, PciAddress, Placement, Priority, Request, ReserveError, Signal, TenantQuota,
    TimeTerms, Timestamp, Under, ZoneId, admit, mig_share,
};

fn gpu(index: u8, gib: u64) -> Gpu {
    Gpu {
        uuid: GpuUuid::from_bytes([index; 16]),
        index: u32::from(index),
        name: if index == 0 { "H200".into() } else { "L4".into() },
        pci: PciAddress::new(0, index, 0, 0).unwrap(),
        memory: MemoryBytes::gib(gib),
        compute_capability: ComputeCapability { major: 9, minor: 0 },
        numa_node: Some(0),
        nvlink_peers: BTreeSet::new(),
        mig_capable: false,
        backing: GpuBacking::Physical,
    }
}

fn node() -> NodeState {
    NodeState::new(Inventory::new(vec![gpu(1, 24), gpu(0, 16)]).unwrap())
}

fn ask(gpus: u32, memory: Option<&str>, share: Option<u32>) -> Request {
    Request {
        tenant: "acme".parse().unwrap(),
        gpus: GpuCount::new(gpus).unwrap(),
        memory: memory.map(|text| text.parse().unwrap()),
        share: share.map(|percent| ComputeShare::new(percent).unwrap()),
        exposure: Exposure::Mediated,
        time: Default::default(),
        model: None,
    }
}

fn lease(node: &mut NodeState, number: u128, request: &Request) -> LeaseId {
    let placement = node.place(request).unwrap();
    let demand = Demand { tenant: request.tenant.clone(), placement, time: request.time };
    let admission = admit(Some(&TenantQuota::default()), Holdings::default(), demand).unwrap();
    let id = LeaseId::from_uuid(uuid::Uuid::from_u128(number));
    let zone = ZoneId::from_uuid(uuid::Uuid::from_u128(number));
    node.reserve(id, zone, admission).unwrap();
    id
}

fn refusal(node: &NodeState, request: &Request) -> String {
    node.place(request).unwrap_err().to_string()
}

#[test]
fn placement_refusals_are_sentences() {
    let mut node = node();
    assert_eq!(
        refusal(&node, &ask(1, Some("32Gi"), None)),
        "needs 32Gi on one GPU: the largest of 2 has 24Gi"
    );
    assert_eq!(
        refusal(&node, &ask(2, Some("20Gi"), None)),
        "needs 2 GPUs: this node has 1 that match"
    );
    assert!(refusal(&node, &ask(1, Some("0"), None)).contains("0 bytes"));
    let other = Request { model: Some("A100".into()), ..ask(1, None, None) };
    assert_eq!(refusal(&node, &other), "no GPU of this node is a 'A100'; it has: H200, L4");
    assert!(refusal(&NodeState::default(), &ask(1, None, None)).contains("no GPU"));

    lease(&mut node, 1, &ask(1, Some("20Gi"), Some(10)));
    let full = refusal(&node, &ask(1, Some("18Gi"), None));
    assert!(full.contains("only 0 of 1") && full.contains("4Gi and 90% free"), "{full}");
}

#[test]
fn best_fit_keeps_room_for_the_large() {
    let mut node = node();
    let small = lease(&mut node, 1, &ask(1, Some("8Gi"), None));
    let placed = node.lease(small).unwrap().placement.grants()[0];
    assert_eq!((placed.gpu, placed.share.percent()), (GpuUuid::from_bytes([0; 16]), 50));
    assert!(node.place(&ask(1, Some("24Gi"), None)).is_ok());
}

#[test]
fn a_whole_gpu_is_whole() {
    let mut node = node();
    lease(&mut node, 1, &ask(2, None, Some(10)));
    assert!(node.place(&ask(1, Some("1"), Some(1))).is_err());
}

#[test]
fn only_whose_quota_says_so_is_latency_critical() {
    let node = node();
    let placement = node.place(&ask(1, Some("8Gi"), Some(50))).unwrap();
    let say = |priority, latency_critical| {
        let time = TimeTerms { priority, cap: None };
        let tenant = "acme".parse().unwrap();
        let demand = Demand { tenant, placement: placement.clone(), time };
        let quota = TenantQuota { latency_critical, ..Default::default() };
        admit(Some(&quota), Holdings::default(), demand).map_err(|refusal| refusal.to_string())
    };
    assert!(say(Priority::Batch, false).is_ok() && say(Priority::LatencyCritical, true).is_ok());
    let refusal = say(Priority::LatencyCritical, false).unwrap_err();
    assert!(refusal.contains("latency_critical = true under [tenants.acme]"), "{refusal}");
}

#[test]
fn a_share_that_was_not_asked_for_is_within_the_cap() {
    let node = node();
    let share = |memory: Option<&str>, share, cap| {
        let cap = ComputeShare::new(cap).ok();
        let time = TimeTerms { priority: Priority::Batch, cap };
        let request = Request { time, ..ask(1, memory, share) };
        node.place(&request).unwrap().share_percent()
    };
    assert_eq!(share(None, None, 30), 30);
    assert_eq!(share(Some("8Gi"), Some(20), 30), 20);
    let free = share(Some("8Gi"), None, 100);
    assert_eq!(share(Some("8Gi"), None, free - 1), free - 1);
}

#[test]
fn quota_refusals_name_limit_held_and_asked() {
    let node = node();
    let placement = node.place(&ask(1, Some("8Gi"), Some(50))).unwrap();
    let demand = || Demand {
        tenant: "acme".parse().unwrap(),
        placement: placement.clone(),
        time: Default::default(),
    };
    let say =
        |quota: TenantQuota, held| admit(Some(&quota), held, demand()).unwrap_err().to_string();
    let held = Holdings { memory: MemoryBytes::gib(4), share: 60, gpus: 1, leases: 1 };
    assert_eq!(
        say(TenantQuota { memory: Some(MemoryBytes::gib(10)), ..Default::default() }, held),
        "quota of tenant 'acme': memory 4Gi held + 8Gi asked is more than the 10Gi granted; \
         ask for less, end a lease, or an operator grants more in [tenants.acme] or [tenants.default] \
         of the agent's configuration"
    );
    assert!(
        say(TenantQuota { share: Some(100), ..Default::default() }, held)
            .contains("share (%) 60 held + 50 asked")
    );
    assert!(say(TenantQuota { gpus: Some(1), ..Default::default() }, held).contains("GPUs 1 held"));
    assert!(
        say(TenantQuota { leases: Some(1), ..Default::default() }, held).contains("leases 1 held")
    );
    assert!(admit(None, held, demand()).unwrap_err().to_string().contains("[tenants.acme]"));
    let exact = TenantQuota {
        memory: Some(MemoryBytes::gib(12)),
        share: Some(110),
        gpus: Some(2),
        leases: Some(2),
        latency_critical: false,
    };
    assert!(admit(Some(&exact), held, demand()).is_ok());
    let overflow =
        Holdings { memory: MemoryBytes::MAX, share: u32::MAX, gpus: u32::MAX, leases: u32::MAX };
    assert!(admit(Some(&exact), overflow, demand()).is_err());
}

#[test]
fn a_quota_of_the_cluster_holds_for_what_the_node_sees_of_it() {
    let node = node();
    let placement = node.place(&ask(1, Some("8Gi"), Some(50))).unwrap();
    let limits = |gib, groups| Limits {
        memory: Some(MemoryBytes::gib(gib)),
        groups: Some(groups),
        ..Limits::default()
    };
    let under =
        |group: &str, quota: &str| Under { group: group.into(), quotas: [quota.to_owned()].into() };
    let held = [under("a", "q"), under("b", "q"), under("c", "other")];
    let say = |quota: ClusterQuota, group: &str, exposure| {
        let demand = Demand {
            tenant: "acme".parse().unwrap(),
            placement: placement.clone(),
            time: Default::default(),
        };
        let admission = admit(Some(&TenantQuota::default()), Holdings::default(), demand).unwrap();
        let counted =
            |under| Counted { placement: &placement, exposure: Exposure::Mediated, under };
        let held: Vec<Counted<'_>> = held.iter().map(counted).collect();
        let quotas = vec![ClusterQuota { name: "q".into(), ..quota }];
        let terms = ClusterTerms { group: group.into(), quotas };
        let within = admission.within(&terms, exposure, &held, node.inventory());
        within.err().map(|refusal| refusal.to_string())
    };
    let of = |limits| ClusterQuota { limits, ..Default::default() };
    let here = Exposure::Mediated;
    assert_eq!(say(of(limits(24, 3)), "d", here), None);
    assert_eq!(
        say(of(limits(23, 3)), "d", here).unwrap(),
        "quota 'q' of the cluster: memory 16Gi held on this node + 8Gi asked is more than the 23Gi granted; \
         ask for less, end a pod that it counts, or an administrator grants more in the GpuQuota 'q'"
    );
    assert!(say(of(limits(24, 2)), "d", here).unwrap().contains("pods 2 held"));
    assert_eq!(say(of(limits(24, 2)), "b", here), None, "a pod's second container is no new pod");
    let per_group = |gib| ClusterQuota { per_group: limits(gib, 1), ..Default::default() };
    assert_eq!(say(per_group(8), "d", here), None);
    assert!(say(per_group(8), "a", here).unwrap().contains("for one pod: memory 8Gi held"));
    let model = |name: &str| ClusterQuota {
        models: vec![(name.into(), limits(16, 9))],
        ..Default::default()
    };
    assert!(say(model("H200"), "d", here).unwrap().contains("for 'H200'"));
    assert_eq!(say(model("L4"), "d", here), None);
    let exposed = ClusterQuota {
        exposures: vec![(Exposure::Passthrough, limits(0, 9))],
        ..Default::default()
    };
    assert_eq!(say(exposed.clone(), "d", here), None);
    assert!(say(exposed, "d", Exposure::Passthrough).unwrap().contains("for passthrough"));
}

#[test]
fn a_journal_cannot_bring_back_more_than_there_is() {
    let mut node = node();
    let id = lease(&mut node, 1, &ask(1, Some("24Gi"), None));
    let taken: Lease = node.lease(id).unwrap().clone();
    assert_eq!(
        node.restore(taken.clone(), Exposure::Mediated).unwrap_err(),
        ReserveError::DuplicateLease(id)
    );
    let other = LeaseId::from_uuid(uuid::Uuid::from_u128(2));
    let twice = Lease { id: other, ..taken.clone() };
    assert!(matches!(node.restore(twice, Exposure::Mediated), Err(ReserveError::Taken { .. })));
    let mut empty = NodeState::default();
    assert!(matches!(empty.restore(taken, Exposure::Mediated), Err(ReserveError::UnknownGpu(_))));
    for event in [LeaseEvent::Drain, LeaseEvent::Drained, LeaseEvent::Scrubbed] {
        node.apply(id, event).unwrap();
    }
    assert_eq!(node.leases().count(), 0);
    assert!(
        node.apply(id, LeaseEvent::Drain).unwrap_err().to_string().contains("there is no lease-")
    );
}

#[test]
fn a_listing_that_cannot_be_is_refused() {
    assert_eq!(
        Inventory::new(vec![gpu(1, 8), gpu(1, 8)]).unwrap_err(),
        InventoryError::DuplicateUuid(GpuUuid::from_bytes([1; 16]))
    );
    assert!(matches!(Inventory::new(vec![gpu(1, 0)]), Err(InventoryError::NoMemory(_))));
}

#[test]
fn a_state_is_told_with_what_it_cannot_do() {
    let error = LeaseState::Released.after(LeaseEvent::Activate).unwrap_err();
    assert_eq!(error.to_string(), "a lease that is released cannot be activated");
}

#[test]
fn a_gpu_in_quarantine_serves_nobody_new() {
    let mut node = node();
    let [large, small] = [GpuUuid::from_bytes([1; 16]), GpuUuid::from_bytes([0; 16])];
    let held = lease(&mut node, 1, &ask(1, Some("20Gi"), None));
    let late = node.place(&ask(1, Some("4Gi"), None)).unwrap();
    let (now, terms) = (Timestamp::from_nanoseconds(1), HealthTerms::default());
    let mut watch = node.watch(large);
    watch.observe(&Signal::ScrubFailed("its scrub failed".into()), now, &terms);
    watch.observe(&Signal::ScrubFailed("and again".into()), now, &terms);
    node.set_watch(large, watch.clone());
    let (cause, reason) = (Cause::Scrub, "its scrub failed".to_owned());
    assert_eq!(node.health(large), Some(GpuHealth::Quarantined { cause, reason }));
    assert_eq!(node.health(small), Some(GpuHealth::Healthy));
    // What was placed before is not reserved after; a lease that is there goes on.
    let gpu = late.grants()[0].gpu;
    let demand =
        Demand { tenant: "acme".parse().unwrap(), placement: late, time: Default::default() };
    let admission = admit(Some(&TenantQuota::default()), Holdings::default(), demand).unwrap();
    let id = LeaseId::from_uuid(uuid::Uuid::from_u128(2));
    let zone = ZoneId::from_uuid(uuid::Uuid::from_u128(2));
    assert_eq!(gpu, large);
    assert_eq!(node.reserve(id, zone, admission).unwrap_err(), ReserveError::Quarantined(large));
    assert!(node.lease(held).is_some());
    assert_eq!(node.place(&ask(1, Some("4Gi"), None)).unwrap().grants()[0].gpu, small);
    let said = refusal(&node, &ask(1, Some("20Gi"), None));
    assert!(said.starts_with("needs 1 GPU(s): 1 of the 1 that match are suspended"), "{said}");
    let said = refusal(&node, &ask(2, Some("1Gi"), None));
    assert!(said.starts_with("needs 2 GPU(s): 1 of the 2 that match are suspended"), "{said}");
    // A journal brings it back.
    let restored = node.lease(held).unwrap().clone();
    node.apply(held, LeaseEvent::Drain).unwrap();
    node.apply(held, LeaseEvent::Drained).unwrap();
    node.apply(held, LeaseEvent::Scrubbed).unwrap();
    node.restore(restored, Exposure::Mediated).unwrap();
    watch.clear(now);
    node.set_watch(large, watch);
    assert_eq!(node.place(&ask(1, Some("4Gi"), None)).unwrap().grants()[0].gpu, large);
}

const INSTANCE: GpuUuid = GpuUuid::mig_from_bytes([9; 16]);

/// A node whose first GPU is in MIG mode and has two instances.
fn in_mig_mode() -> NodeState {
    let instance = |number| MigInstance {
        uuid: GpuUuid::mig_from_bytes([number; 16]),
        gpu: gpu(0, 16).uuid,
        profile: "1g.2gb".parse().unwrap(),
        memory: MemoryBytes::gib(2),
        share: mig_share(1),
    };
    let gpus = Inventory::new(vec![gpu(1, 24), gpu(0, 16)]).unwrap();
    let mig = BTreeSet::from([gpu(0, 16).uuid]);
    NodeState::new(gpus.partitioned(&mig, vec![instance(8), instance(9)]).unwrap())
}

fn reserve_mig(
    node: &mut NodeState,
    number: u128,
    gpu: GpuUuid,
    gib: u64,
    percent: u32,
) -> Result<(), ReserveError> {
    let share = ComputeShare::new(percent).unwrap();
    let grant = Grant { gpu, memory: MemoryBytes::gib(gib), share };
    let placement = Placement::of(vec![grant]).unwrap();
    let demand = Demand { tenant: "acme".parse().unwrap(), placement, time: TimeTerms::default() };
    let admission = admit(Some(&TenantQuota::default()), Holdings::default(), demand).unwrap();
    let id = LeaseId::from_uuid(uuid::Uuid::from_u128(number));
    let zone = ZoneId::from_uuid(uuid::Uuid::from_u128(number));
    node.reserve_as(id, zone, Exposure::Mig, admission).map(drop)
}

#[test]
fn a_mig_instance_is_one_leases_and_its_gpu_nobodys() {
    let mut node = in_mig_mode();
    let whole = gpu(0, 16).uuid;
    assert_eq!(node.free_memory(whole), Some(MemoryBytes::gib(4)));
    for (gpu, gib, percent, part) in [
        (whole, 16, 100, "is in MIG mode"),
        (gpu(1, 24).uuid, 24, 100, "is handed over as mediated"),
        (GpuUuid::mig_from_bytes([7; 16]), 2, 14, "is not on this node"),
        (INSTANCE, 1, 14, "handed over whole: 2Gi and 14%"),
        (INSTANCE, 2, 10, "handed over whole"),
    ] {
        let said = reserve_mig(&mut node, 1, gpu, gib, percent).unwrap_err().to_string();
        assert!(said.contains(part), "{said} lacks {part}");
    }
    reserve_mig(&mut node, 1, INSTANCE, 2, 14).unwrap();
    let twice = reserve_mig(&mut node, 2, INSTANCE, 2, 14).unwrap_err();
    assert!(matches!(twice, ReserveError::Taken { .. }), "{twice}");
    assert_eq!(node.free_memory(INSTANCE), Some(MemoryBytes::ZERO));
    assert_eq!(node.free_memory(whole), Some(MemoryBytes::gib(2)));
    // A GPU in MIG mode is not placed mediated, and no mediated lease of old comes back on it.
    let mediated = node.place(&ask(2, Some("1Gi"), None)).unwrap_err().to_string();
    assert!(mediated.contains("this node has 1 that match"), "{mediated}");
    let mut before = NodeState::new(Inventory::new(vec![gpu(0, 16)]).unwrap());
    let id = lease(&mut before, 3, &ask(1, Some("1Gi"), None));
    let old = before.lease(id).unwrap().clone();
    assert!(matches!(node.restore(old, Exposure::Mediated), Err(ReserveError::InMigMode(_))));
}

#[test]
fn what_is_wrong_with_a_gpu_is_wrong_with_its_instances_and_not_the_other_way_round() {
    let (mut node, terms) = (in_mig_mode(), HealthTerms::default());
    let (whole, other) = (gpu(0, 16).uuid, GpuUuid::mig_from_bytes([8; 16]));
    let mut watch = node.watch(INSTANCE);
    watch.observe(&Signal::ScrubFailed("residue".into()), Timestamp::from_nanoseconds(1), &terms);
    node.set_watch(INSTANCE, watch.clone());
    let serves = |node: &NodeState, gpu| node.health(gpu).unwrap().serves();
    assert_eq!(
        (serves(&node, INSTANCE), serves(&node, other), serves(&node, whole)),
        (false, true, true)
    );
    assert!(matches!(
        reserve_mig(&mut node, 1, INSTANCE, 2, 14),
        Err(ReserveError::Quarantined(_))
    ));
    node.set_watch(whole, watch);
    assert!(!serves(&node, other));
    assert!(matches!(reserve_mig(&mut node, 1, other, 2, 14), Err(ReserveError::Quarantined(_))));
}

#[test]
fn a_mig_instance_is_placed_alone() {
    let grant = |gpu| Grant { gpu, memory: MemoryBytes::gib(2), share: mig_share(1) };
    for other in [gpu(1, 24).uuid, GpuUuid::mig_from_bytes([8; 16])] {
        let said = Placement::of(vec![grant(INSTANCE), grant(other)]).unwrap_err().to_string();
        assert!(said.contains("ask for one in each container"), "{said}");
    }
}
