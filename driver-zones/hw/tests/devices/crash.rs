//! A process that dies between any two writes, and the next one.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use gpuzone_core::devices::ResetPolicy;
use gpuzone_hw::actions::{ActionError, Devices, Recovery};
use uuid::Uuid;

use super::instances::{gpu, profile};
use super::kernel::{CARD, Death, Fault, GPU, Kernel, Killed, Node, PARENT, VGPU, address};

type Act = fn(&mut Devices<Kernel>) -> Result<(), ActionError>;

/// What can be done, after what, and how many writes it takes.
const ACTS: &[(&str, &[Act], Act, usize)] = &[
    ("bind", &[], bind, 6),
    ("release", &[bind], release, 6),
    ("functions", &[], functions, 2),
    ("no functions", &[functions], no_functions, 2),
    ("mdev", &[], mdev, 1),
    ("no mdev", &[mdev], no_mdev, 1),
    ("vgpu", &[], vgpu, 1),
    ("no vgpu", &[vgpu], no_vgpu, 1),
    ("instance", &[], instance, 2),
    ("instance beside another", &[other_instance], instance, 2),
    ("no instance", &[other_instance, instance], no_instance, 2),
    ("reset", &[], reset, 3),
];

fn bind(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.bind(address(GPU), &BTreeSet::new()).map(drop)
}
fn release(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.release(address(GPU))
}
fn functions(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.set_functions(address(CARD), 4)
}
fn no_functions(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.set_functions(address(CARD), 0)
}
fn mdev(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.create_mdev(&address(PARENT).into(), "i915-GVTg_V5_4", Uuid::from_u128(7), "acme")
}
fn no_mdev(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.remove_mdev(Uuid::from_u128(7))
}
fn vgpu(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.create_vgpu(address(VGPU), 1147, "acme")
}
fn no_vgpu(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.free_vgpu(address(VGPU), "acme")
}
fn instance(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.make_instance(gpu(), &profile("3g.40gb"), 4, "acme").map(drop)
}
fn other_instance(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.make_instance(gpu(), &profile("1g.10gb"), 0, "acme").map(drop)
}
fn no_instance(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.end_instance(gpu(), 4, "acme")
}
fn reset(devices: &mut Devices<Kernel>) -> Result<(), ActionError> {
    devices.reset(address(GPU), &ResetPolicy::default()).map(drop)
}

fn open(node: &Node, fault: Fault) -> (Devices<Kernel>, Vec<Recovery>) {
    node.open(|| node.kernel(fault))
}

/// A node on which `first` was done.
fn prepared(first: &[Act]) -> Node {
    let node = Node::new();
    let (mut devices, _) = open(&node, Fault::None);
    first.iter().for_each(|act| act(&mut devices).unwrap());
    node
}

/// The next process finds a node as it was before or as it was to be, and can go on.
fn check_next(node: &Node, name: &str, act: Act, before: &[String], after: &[String], at: &str) {
    let (mut devices, recovered) = open(node, Fault::None);
    let stuck = recovered.iter().any(|now| matches!(now, Recovery::Stuck(_)));
    assert!(!stuck, "{name} {at}: {recovered:?}");
    let now = node.state();
    assert!(now == before || now == after, "{name} {at}: {now:#?}");
    let ends_as_before = name == "reset";
    match act(&mut devices) {
        // Done already, so there is nothing left to give back.
        Err(ActionError::NotOurs(_)) => assert_eq!(now, after, "{name} {at}"),
        done => done.unwrap(),
    }
    assert_eq!(node.state(), if ends_as_before { before } else { after }, "{name} {at}");
    let (again, recovered) = {
        drop(devices);
        open(node, Fault::None)
    };
    assert_eq!((recovered, node.state() == after), (Vec::new(), true), "{name} {at}");
    drop(again);
}

fn end_state(first: &[Act], act: Act, name: &str, writes: usize) -> (Vec<String>, Vec<String>) {
    let node = prepared(first);
    let before = node.state();
    let (mut devices, _) = open(&node, Fault::None);
    act(&mut devices).unwrap();
    let after = node.state();
    // One more would not be reached.
    let unreached = prepared(first);
    let (mut devices, _) = open(&unreached, Fault::Refuse(writes));
    act(&mut devices).unwrap();
    let last = prepared(first);
    let (mut devices, _) = open(&last, Fault::Refuse(writes - 1));
    let refused = act(&mut devices).is_err() || name == "reset";
    assert!(refused, "{name} takes fewer than {writes} writes");
    (before, after)
}

#[test]
fn whoever_dies_anywhere_leaves_nothing_half_done() {
    for (name, first, act, writes) in ACTS {
        let (before, after) = end_state(first, *act, name, *writes);
        for write in 0..*writes {
            for fault in [Fault::DieBefore(write), Fault::DieAfter(write)] {
                let node = prepared(first);
                let (mut devices, _) = open(&node, fault);
                let died = catch_unwind(AssertUnwindSafe(|| act(&mut devices)));
                assert!(died.unwrap_err().is::<Killed>());
                drop(devices);
                // Whoever finds it may die, too, at each of its own writes.
                for again in 0..writes + 2 {
                    let died = catch_unwind(AssertUnwindSafe(|| {
                        open(&node, Fault::DieBefore(again));
                    }));
                    assert!(died.is_ok() || died.is_err_and(|why| why.is::<Killed>()));
                }
                check_next(&node, name, *act, &before, &after, &format!("{fault:?}"));
            }
        }
    }
}

#[test]
fn a_write_that_fails_leaves_all_as_it_was() {
    for (name, first, act, writes) in ACTS {
        let (before, after) = end_state(first, *act, name, *writes);
        for write in 0..*writes {
            let node = prepared(first);
            let (mut devices, _) = open(&node, Fault::Refuse(write));
            // What is only put back in the end is tried twice.
            let twice = *name == "reset" && write == 2;
            match act(&mut devices) {
                Err(error) => {
                    let said = error.to_string();
                    let the_reset = *name == "reset" && write == 1;
                    let as_before = said.contains("All is as it was before");
                    assert!(as_before || the_reset, "{name} at {write}: {said}");
                }
                Ok(()) => assert!(twice, "{name} at {write}"),
            }
            assert_eq!(node.state(), before, "{name} at {write}");
            drop(devices);
            check_next(&node, name, *act, &before, &after, &format!("refused {write}"));
        }
    }
}

/// What the process is told that is to be killed.
const ORDER: &str = "GPUZONE_TEST_DIES";

/// No test by itself: the process that the one below kills.
#[test]
fn a_process_to_be_killed() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let mut words = order.split(' ');
    let mut number = || words.next().unwrap().parse::<usize>().unwrap();
    let (act, write, after) = (number(), number(), number());
    let (sys, proc, journal) = {
        let path = |word: Option<&str>| std::path::PathBuf::from(word.unwrap());
        (path(words.next()), path(words.next()), path(words.next()))
    };
    let node = Node::new();
    let places = gpuzone_hw::actions::Places {
        sysfs: gpuzone_hw::SysfsRoot(sys.clone()),
        proc: gpuzone_hw::ProcRoot(proc),
        ..node.places()
    };
    let fault = if after == 1 { Fault::DieAfter(write) } else { Fault::DieBefore(write) };
    let kernel = Kernel::at(sys, fault, Death::Kill);
    let (mut devices, _) = Devices::open(places, &journal, kernel).unwrap();
    let _ = ACTS[act].2(&mut devices);
    panic!("it should have been killed");
}

#[test]
fn a_killed_process_leaves_nothing_half_done() {
    for (index, (name, first, act, writes)) in ACTS.iter().enumerate() {
        let (before, after) = end_state(first, *act, name, *writes);
        for (write, behind) in (0..*writes).flat_map(|write| [(write, 0), (write, 1)]) {
            let node = prepared(first);
            let order = format!(
                "{index} {write} {behind} {} {} {}",
                node.sys().display(),
                node.proc().display(),
                node.journal().display()
            );
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "crash::a_process_to_be_killed", "--nocapture"]);
            let ended = child.env(ORDER, order).output().unwrap();
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(ended.status.signal(), Some(9), "{name} {write} {behind}: {ended:?}");
            check_next(&node, name, *act, &before, &after, &format!("killed {write} {behind}"));
        }
    }
}
