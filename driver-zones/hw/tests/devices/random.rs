//! Anything in any order, with processes that die anywhere on the way.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use gpuzone_core::devices::ResetPolicy;
use gpuzone_hw::actions::{Devices, Recovery};
use proptest::prelude::*;
use uuid::Uuid;

use super::instances::{gpu, profile};
use super::kernel::{CARD, Fault, GPU, Kernel, Killed, Node, PARENT, VGPU, address};

#[derive(Clone, Copy, Debug)]
enum Act {
    Bind(usize),
    Release(usize),
    Functions(u32),
    Mdev(u8, bool),
    Vgpu(u32),
    Instance(&'static str, u32, bool),
    Reset,
}

/// What can be bound, the first virtual function among it.
const BINDABLE: [&str; 4] = [GPU, CARD, VGPU, "0000:5e:10.0"];

/// MIG instances, of which some share slices.
const INSTANCES: [(&str, u32); 4] =
    [("1g.10gb", 0), ("1g.10gb+me", 5), ("3g.40gb", 0), ("3g.40gb", 4)];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..BINDABLE.len()).prop_map(Act::Bind),
        (0..BINDABLE.len()).prop_map(Act::Release),
        prop::sample::select(vec![0, 1, 4, 5]).prop_map(Act::Functions),
        (0u8..3, any::<bool>()).prop_map(|(which, make)| Act::Mdev(which, make)),
        prop::sample::select(vec![0, 1147, 1148]).prop_map(Act::Vgpu),
        (prop::sample::select(INSTANCES.to_vec()), any::<bool>())
            .prop_map(|((kind, start), make)| Act::Instance(kind, start, make)),
        Just(Act::Reset),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => (0usize..7).prop_map(Fault::Refuse),
        2 => (0usize..7).prop_map(Fault::DieBefore),
        2 => (0usize..7).prop_map(Fault::DieAfter),
    ]
}

fn perform(devices: &mut Devices<Kernel>, act: Act) -> Result<(), String> {
    let done = match act {
        Act::Bind(which) => devices.bind(address(BINDABLE[which]), &BTreeSet::new()).map(drop),
        Act::Release(which) => devices.release(address(BINDABLE[which])),
        Act::Functions(count) => devices.set_functions(address(CARD), count),
        Act::Mdev(which, true) => {
            let uuid = Uuid::from_u128(which.into());
            devices.create_mdev(&address(PARENT).into(), "i915-GVTg_V5_4", uuid, "acme")
        }
        Act::Mdev(which, false) => devices.remove_mdev(Uuid::from_u128(which.into())),
        Act::Vgpu(0) => devices.free_vgpu(address(VGPU), "acme"),
        Act::Vgpu(kind) => devices.create_vgpu(address(VGPU), kind, "acme"),
        Act::Instance(kind, start, true) => {
            devices.make_instance(gpu(), &profile(kind), start, kind).map(drop)
        }
        Act::Instance(kind, start, false) => devices.end_instance(gpu(), start, kind),
        Act::Reset => devices.reset(address(GPU), &ResetPolicy::default()).map(drop),
    };
    done.map_err(|error| error.to_string())
}

fn open(node: &Node, fault: Fault) -> (Devices<Kernel>, Vec<Recovery>) {
    node.open(|| node.kernel(fault))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_step_is_whole_or_nothing_and_all_can_be_given_back(
        steps in prop::collection::vec((act(), fault()), 1..14)
    ) {
        let node = Node::new();
        let origin = node.state();
        for (act, fault) in steps {
            let before = node.state();
            // What the act would come to, on a copy of nothing but the model's own kernel.
            let (mut devices, recovered) = open(&node, fault);
            prop_assert_eq!(recovered, []);
            let ended = catch_unwind(AssertUnwindSafe(|| perform(&mut devices, act)));
            let whole = match ended {
                Ok(Ok(())) => None,
                // Refused, or failed: as it was.
                Ok(Err(_)) => Some(before.clone()),
                Err(why) => {
                    prop_assert!(why.is::<Killed>());
                    None
                }
            };
            drop(devices);
            let (mut devices, recovered) = open(&node, Fault::None);
            for now in &recovered {
                prop_assert!(!matches!(now, Recovery::Stuck(_)), "{:?}", now);
            }
            if let Some(expected) = whole {
                prop_assert_eq!(&node.state(), &expected);
            }
            // The kept actions explain all that is not as it was in the beginning.
            let half = half_bound(&node);
            prop_assert!(half.is_empty(), "{:?} after {:?} {:?}", half, act, fault);
            if devices.kept().is_empty() {
                prop_assert_eq!(&node.state(), &origin);
            }
            let _ = &mut devices;
        }
        give_all_back(&node);
        prop_assert_eq!(node.state(), origin);
    }
}

/// Functions that are on nothing though a driver is theirs, or on another than the only one that
/// may have them.
fn half_bound(node: &Node) -> Vec<String> {
    let functions = node.places().sysfs.functions().unwrap();
    let half = functions.iter().filter(|function| match &function.driver_override {
        Some(only) => function.driver.as_ref() != Some(only),
        None => function.driver.is_none() && function.physical.is_none(),
    });
    half.map(|function| format!("{} on {:?}", function.address, function.driver)).collect()
}

fn give_all_back(node: &Node) {
    let (mut devices, _) = open(node, Fault::None);
    for which in [3, 0, 1, 2] {
        let _ = devices.release(address(BINDABLE[which]));
        if which == 3 {
            let _ = devices.set_functions(address(CARD), 0);
        }
    }
    for uuid in 0..3 {
        devices.remove_mdev(Uuid::from_u128(uuid)).unwrap();
    }
    devices.free_vgpu(address(VGPU), "acme").unwrap();
    for (kind, start) in INSTANCES {
        let _ = devices.end_instance(gpu(), start, kind);
    }
    assert!(devices.kept().is_empty(), "{:?}", devices.kept());
}
