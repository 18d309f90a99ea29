//! MIG instances, by a driver that is a file, and what is refused about them. The simulated GPU's own
//! NVML is asked in `tests/cut`.

use std::fs;
use std::path::Path;

use gpuzone_core::{GpuUuid, MemoryBytes, MigProfile};
use gpuzone_hw::actions::{ActionError, Devices, Recovery};
use gpuzone_hw::{
    ComputeInstance, GpuInstance, MigError, MigKind, MigLayout, MigPlace, MigPlacement, MigStep,
};

use super::kernel::{Fault, Kernel, Node};

const FILE: &str = "instances";
/// In the file: the GPU is not in MIG mode.
const OFF: &str = "off";
/// In the file: the driver takes steps and does nothing.
const LAZY: &str = "lazy";

pub(crate) fn gpu() -> GpuUuid {
    GpuUuid::from_bytes([3; 16])
}

pub(crate) fn profile(text: &str) -> MigProfile {
    text.parse().unwrap()
}

/// As an H100 has them.
fn kinds() -> Vec<MigKind> {
    let kind = |id, name: &str, slices, size: u32, starts: &[u32]| MigKind {
        id,
        name: name.to_owned(),
        slices,
        memory: MemoryBytes::gib(10 * u64::from(size)),
        most: 7,
        placements: starts.iter().map(|start| MigPlacement { start: *start, size }).collect(),
    };
    vec![
        kind(19, "1g.10gb", 1, 1, &[0, 1, 2, 3, 4, 5, 6]),
        kind(20, "1g.10gb+me", 1, 1, &[0, 1, 2, 3, 4, 5, 6]),
        kind(9, "3g.40gb", 3, 4, &[0, 4]),
    ]
}

fn words(sys: &Path) -> Vec<Vec<u32>> {
    let text = fs::read_to_string(sys.join(FILE)).unwrap_or_default();
    let lines = text.lines().filter(|line| ![OFF, LAZY].contains(line));
    lines.map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect()).collect()
}

fn has(sys: &Path, word: &str) -> bool {
    fs::read_to_string(sys.join(FILE)).unwrap_or_default().lines().any(|line| line == word)
}

fn put(sys: &Path, lines: &[Vec<u32>]) {
    let line = |words: &Vec<u32>| words.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    fs::write(sys.join(FILE), lines.iter().map(|words| line(words) + "\n").collect::<String>())
        .unwrap();
}

/// What is there: number, kind, start, size, compute slices (0 for none), and a user's number.
pub(crate) fn layout(sys: &Path) -> MigLayout {
    let instance = |words: Vec<u32>| {
        let [number, kind, start, size, compute, user] = words[..] else { panic!("six words") };
        let slices = kinds().iter().find(|of| of.id == kind).unwrap().slices;
        let uuid = Some(GpuUuid::mig_from_bytes([u8::try_from(number).unwrap(); 16]));
        let one = ComputeInstance { number: 0, slices: compute, uuid };
        GpuInstance {
            number,
            kind,
            placement: MigPlacement { start, size },
            slices,
            computes: if compute > 0 { vec![one] } else { Vec::new() },
            users: if user > 0 { vec![user] } else { Vec::new() },
        }
    };
    let instances = words(sys).into_iter().map(instance).collect();
    MigLayout { enabled: !has(sys, OFF), kinds: kinds(), instances }
}

pub(crate) fn cut(sys: &Path, step: &MigStep) -> Result<(), MigError> {
    if has(sys, LAZY) {
        return Ok(());
    }
    let refused = |reason: &str| Err(MigError::Refused { step: *step, reason: reason.to_owned() });
    let MigPlace { kind, at, .. } = *step.place();
    let mut lines = words(sys);
    let overlaps = |line: &Vec<u32>| at.overlaps(MigPlacement { start: line[2], size: line[3] });
    let here = lines.iter().position(|line| line[1..4] == [kind, at.start, at.size]);
    match (step, here) {
        (MigStep::MakeInstance(_), _) if lines.iter().any(overlaps) => {
            return refused("no room");
        }
        (MigStep::MakeInstance(_), _) => {
            let number = (1..).find(|n| lines.iter().all(|line| line[0] != *n)).unwrap();
            lines.push(vec![number, kind, at.start, at.size, 0, 0]);
        }
        (_, None) => return refused("it is not there"),
        (MigStep::MakeCompute(_), Some(here)) => {
            lines[here][4] = kinds().iter().find(|of| of.id == kind).unwrap().slices;
        }
        (MigStep::EndCompute(_) | MigStep::EndInstance(_), Some(here)) if lines[here][5] > 0 => {
            return refused("in use");
        }
        (MigStep::EndInstance(_), Some(here)) if lines[here][4] > 0 => return refused("in use"),
        (MigStep::EndCompute(_), Some(here)) => lines[here][4] = 0,
        (MigStep::EndInstance(_), Some(here)) => drop(lines.remove(here)),
    }
    put(sys, &lines);
    Ok(())
}

fn open(node: &Node, fault: Fault) -> (Devices<Kernel>, Vec<Recovery>) {
    node.open(|| node.kernel(fault))
}

fn says<T: std::fmt::Debug>(answer: Result<T, ActionError>, parts: &[&str]) {
    let said = answer.unwrap_err().to_string();
    assert!(parts.iter().all(|part| said.contains(part)), "{said} lacks one of {parts:?}");
}

#[test]
fn an_instance_is_made_at_its_place_once_and_ended_by_its_owner() {
    let node = Node::new();
    let (mut devices, _) = open(&node, Fault::None);
    let made = devices.make_instance(gpu(), &profile("3g.40gb"), 4, "acme").unwrap();
    assert_eq!((made.number, made.placement), (1, MigPlacement { start: 4, size: 4 }));
    assert!(made.is_whole() && made.computes[0].uuid.is_some());
    let kept = devices.kept().len();
    let again = devices.make_instance(gpu(), &profile("3g.40gb"), 4, "acme").unwrap();
    assert_eq!((again, devices.kept().len()), (made.clone(), kept));
    // `+` and `.` are the same name.
    let media = devices.make_instance(gpu(), &profile("1g.10gb+me"), 0, "acme").unwrap();
    assert_eq!((media.kind, media.number), (20, 2));
    drop(devices);
    // The next process knows whose they are.
    let (mut devices, recovered) = open(&node, Fault::None);
    assert_eq!(recovered, []);
    assert_eq!(devices.instance_owner(gpu(), made.placement).as_deref(), Some("acme"));
    says(devices.end_instance(gpu(), 4, "other"), &["memory slices 4-7", "made for acme"]);
    devices.end_instance(gpu(), 4, "acme").unwrap();
    devices.end_instance(gpu(), 4, "acme").unwrap();
    devices.end_instance(gpu(), 0, "acme").unwrap();
    assert_eq!((words(&node.sys()), devices.kept().len()), (vec![], 0));
}

#[test]
fn what_a_reset_of_the_gpu_took_away_is_made_again() {
    let node = Node::new();
    let (mut devices, _) = open(&node, Fault::None);
    let mut make = || devices.make_instance(gpu(), &profile("3g.40gb"), 4, "acme").unwrap();
    let made = make();
    put(&node.sys(), &[]);
    assert_eq!((make(), words(&node.sys()).len()), (made.clone(), 1));
    // Half of it.
    let mut lines = words(&node.sys());
    lines[0][4] = 0;
    put(&node.sys(), &lines);
    assert_eq!(make(), made);
    assert_eq!(devices.kept().len(), 1);
}

#[test]
fn what_cannot_be_made_or_ended_says_why() {
    let node = Node::new();
    let sys = node.sys();
    let (mut devices, _) = open(&node, Fault::None);
    let small = profile("1g.10gb");
    let mut make = |what: &str, start| devices.make_instance(gpu(), &profile(what), start, "acme");
    says(make("2g.20gb", 0), &["makes no '2g.20gb'", "1g.10gb, 1g.10gb+me, 3g.40gb"]);
    says(make("3g.40gb", 2), &["cannot begin at memory slice 2", "it can at 0, 4"]);
    make("1g.10gb", 5).unwrap();
    says(make("3g.40gb", 4), &["memory slices 4-7", "GPU instance 1 (1g.10gb)", "for acme"]);
    // An operator's.
    let mut lines = words(&sys);
    lines.push(vec![2, 19, 1, 1, 1, 0]);
    put(&sys, &lines);
    let named = "it was not made by gpu-zone";
    says(devices.make_instance(gpu(), &small, 1, "acme"), &[named, "memory slice 1"]);
    says(devices.end_instance(gpu(), 1, "acme"), &[named]);
    assert_eq!(words(&sys), lines, "it is left as it is");
    // Ours, in use.
    lines[0][5] = 41;
    put(&sys, &lines);
    fs::create_dir_all(node.proc().join("41")).unwrap();
    fs::write(node.proc().join("41/comm"), "train\n").unwrap();
    says(devices.end_instance(gpu(), 5, "acme"), &["process 41 (train)", "MIG-01010101"]);
    // Cut up further by somebody else.
    lines = vec![vec![1, 9, 0, 4, 3, 0]];
    put(&sys, &[]);
    devices.end_instance(gpu(), 5, "acme").unwrap();
    devices.make_instance(gpu(), &profile("3g.40gb"), 0, "acme").unwrap();
    lines[0][4] = 1;
    put(&sys, &lines);
    says(devices.end_instance(gpu(), 0, "acme"), &["1 compute instances that were not made"]);
    assert_eq!(words(&sys), lines);
    fs::write(sys.join(FILE), format!("{OFF}\n")).unwrap();
    says(devices.make_instance(gpu(), &small, 6, "acme"), &["not in MIG mode", "-mig 1"]);
    fs::write(sys.join(FILE), format!("{LAZY}\n")).unwrap();
    let lazy = devices.make_instance(gpu(), &small, 6, "acme");
    says(lazy, &["the driver took it to make the GPU instance", "All is as it was before"]);
}

#[test]
fn what_somebody_else_was_first_to_make_is_not_undone() {
    let node = Node::new();
    let sys = node.sys();
    let (mut devices, _) = open(&node, Fault::None);
    let theirs = vec![vec![1, 19, 3, 1, 1, 0]];
    // Between our look and our call.
    let race = std::cell::Cell::new(Some(theirs.clone()));
    super::kernel::before_cut(move |sys| race.take().iter().for_each(|lines| put(sys, lines)));
    let refused = devices.make_instance(gpu(), &profile("1g.10gb"), 3, "acme");
    says(refused, &["was refused", "All is as it was before"]);
    assert_eq!((words(&sys), devices.kept().len()), (theirs, 0));
}

#[test]
fn what_cannot_be_undone_now_is_undone_by_a_later_process() {
    let node = Node::new();
    let sys = node.sys();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (mut devices, _) = open(&node, Fault::DieAfter(1));
        let _ = devices.make_instance(gpu(), &profile("3g.40gb"), 0, "acme");
    }));
    assert!(died.is_err());
    let mut lines = words(&sys);
    lines[0][5] = 7;
    put(&sys, &lines);
    let (mut devices, recovered) = open(&node, Fault::None);
    assert!(matches!(&recovered[..], [Recovery::Stuck(why)] if why.contains("in use")));
    says(devices.make_instance(gpu(), &profile("1g.10gb"), 6, "x"), &["could not be undone"]);
    drop(devices);
    assert_eq!(words(&sys), lines);
    lines[0][5] = 0;
    put(&sys, &lines);
    let (_, recovered) = open(&node, Fault::None);
    assert_eq!((recovered, words(&sys)), (vec![Recovery::Undone], vec![]));
}
