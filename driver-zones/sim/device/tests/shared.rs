//! Several processes on one simulated node. A test that needs a second process runs this
//! binary again with `GPUZONE_TEST_CHILD` set.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gpuzone_core::MemoryBytes;
use gpuzone_sim_device::{AllocateError, Config, GRANULE, SimulatedNode, StateError};
use proptest::prelude::*;

const CHILD: &str = "GPUZONE_TEST_CHILD";

fn config(folder: &Path, memory: &str) -> Config {
    let text = format!(
        "state_dir = \"{}\"\n[[gpu]]\nname = \"Simulated T\"\nmemory = \"{memory}\"\n",
        folder.display()
    );
    Config::parse(Path::new("test"), &text).unwrap()
}

fn node(folder: &Path, memory: &str) -> SimulatedNode {
    SimulatedNode::open(config(folder, memory)).unwrap()
}

fn used(node: &SimulatedNode) -> u64 {
    node.gpus()[0].memory_use().unwrap().used.get()
}

/// A second process that allocates, writes, is busy, says so, and waits to be killed.
struct Holder(Child);

impl Holder {
    fn start(folder: &Path, memory: &str, bytes: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--nocapture"])
            .env(CHILD, format!("{}|{memory}|{bytes}", folder.display()))
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("child is ready")), "the child failed");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn child_process() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let parts: Vec<&str> = order.split('|').collect();
    let node = node(Path::new(parts[0]), parts[1]);
    let attachment = node.gpus()[0].attach().unwrap();
    attachment.add_context().unwrap();
    let range = attachment.allocate(parts[2].parse().unwrap()).unwrap();
    let host = attachment.map().host(range.address, 1).unwrap();
    // SAFETY: the byte is mapped and belongs to this process alone.
    unsafe { host.write(0xA5) };
    let _busy = attachment.busy();
    println!("child is ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn memory_is_shared_and_runs_out_across_processes_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), "1Mi");
    let holder = Holder::start(folder.path(), "1Mi", 600 << 10);
    assert_eq!(used(&node), 600 << 10);

    let own = node.gpus()[0].attach().unwrap();
    assert!(matches!(own.allocate((424 << 10) + 1), Err(AllocateError::OutOfMemory { .. })));
    let range = own.allocate(424 << 10).unwrap();
    assert!(matches!(own.allocate(1), Err(AllocateError::OutOfMemory { .. })));

    let processes = node.gpus()[0].processes().unwrap();
    let of_child = processes.iter().find(|p| p.pid == holder.0.id()).unwrap();
    assert_eq!((of_child.used.get(), of_child.contexts), (600 << 10, 1));
    assert_eq!(processes.len(), 2);
    assert!(own.free(range.address).unwrap());
    assert!(!own.free(range.address).unwrap(), "freed twice");
    assert!(!own.free(range.address - (600 << 10)).unwrap(), "that is the child's");
}

#[test]
fn a_killed_process_gives_everything_back_but_leaves_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), "1Mi");
    let holder = Holder::start(folder.path(), "1Mi", 1 << 20);
    assert_eq!(used(&node), 1 << 20);
    drop(holder);
    assert_eq!(used(&node), 0);
    assert_eq!(node.gpus()[0].processes().unwrap(), []);

    let own = node.gpus()[0].attach().unwrap();
    let range = own.allocate(1 << 20).unwrap();
    let host = own.map().host(range.address, 1).unwrap();
    // SAFETY: the byte is mapped and belongs to this process alone.
    assert_eq!(unsafe { host.read() }, 0xA5, "nothing clears memory but writes");
}

#[test]
fn utilisation_counts_what_every_process_does() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), "1Mi");
    let gpu = &node.gpus()[0];
    assert_eq!(gpu.utilization_percent().unwrap(), 0);
    let holder = Holder::start(folder.path(), "1Mi", 512);
    std::thread::sleep(std::time::Duration::from_millis(120));
    assert!(gpu.utilization_percent().unwrap() >= 10);
    let process = gpu.processes().unwrap()[0];
    assert!(process.busy_ns >= 100_000_000, "{process:?}");
    assert!(process.utilization_percent >= 10, "{process:?}");
    drop(holder);

    let own = gpu.attach().unwrap();
    drop(own.busy());
    let first = gpu.processes().unwrap()[0].busy_ns;
    drop(own.busy());
    assert!(gpu.processes().unwrap()[0].busy_ns >= first, "it never goes back");
}

#[test]
fn zeroing_whole_pages_costs_no_memory_and_reads_as_zero() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), "64Mi");
    let own = node.gpus()[0].attach().unwrap();
    let range = own.allocate(32 << 20).unwrap();
    let len = usize::try_from(range.bytes).unwrap();
    let host = own.map().host(range.address, range.bytes).unwrap();
    // SAFETY: the range is mapped and belongs to this process alone.
    unsafe { host.write_bytes(7, len) };
    assert!(own.map().punch(range.address, range.bytes));
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(folder.path().join("gpu-0.memory")).unwrap().blocks()
    };
    assert!(blocks() < 100, "{} blocks are left", blocks());
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(host, len) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(!own.map().punch(range.address, 64 << 20 | 1), "not whole pages");
    assert!(!own.map().punch(range.address, 128 << 20), "beyond the end");
}

#[test]
fn a_file_that_is_not_ours_or_is_damaged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("gpu-0.state");
    std::fs::write(&state, b"something else entirely").unwrap();
    let error = SimulatedNode::open(config(folder.path(), "1Mi")).err().unwrap();
    assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("gpu-0.state"), "{error}");

    std::fs::remove_file(&state).unwrap();
    let good = node(folder.path(), "1Mi");
    let own = good.gpus()[0].attach().unwrap();
    own.allocate(512).unwrap();
    let mut bytes = std::fs::read(&state).unwrap();
    bytes[(256 << 10) + 8..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&state, &bytes).unwrap();
    let fresh = SimulatedNode::open(config(folder.path(), "1Mi")).unwrap();
    let error = fresh.gpus()[0].memory_use().unwrap_err();
    assert!(error.to_string().contains("out of bounds"), "{error}");
}

#[test]
fn another_size_of_memory_waits_until_nobody_uses_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let old = node(folder.path(), "1Mi");
    let own = old.gpus()[0].attach().unwrap();
    let error = SimulatedNode::open(config(folder.path(), "2Mi")).err().unwrap();
    assert!(error.to_string().contains("made for a GPU of 1Mi"), "{error}");
    drop(own);
    let new = node(folder.path(), "2Mi");
    let range = new.gpus()[0].attach().unwrap().allocate(2 << 20).unwrap();
    assert_eq!(range.bytes, 2 << 20);
}

#[test]
fn the_host_is_asked_before_it_is_overrun() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path(), "1Ti");
    let own = node.gpus()[0].attach().unwrap();
    let error = own.allocate(1 << 40).unwrap_err();
    assert!(matches!(error, AllocateError::HostFull { .. }), "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { process: bool, bytes: u64 },
    Free { process: bool, which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<bool>(), 0u64..(24 << 10))
            .prop_map(|(process, bytes)| Step::Allocate { process, bytes }),
        (any::<bool>(), 0usize..20).prop_map(|(process, which)| Step::Free { process, which }),
    ]
}

/// The longest stretch of the memory at `base` that is in none of `live`.
fn largest_gap<'a>(live: impl Iterator<Item = &'a (u64, u64)>, base: u64, memory: u64) -> u64 {
    let mut live: Vec<(u64, u64)> = live.copied().collect();
    live.push((base + memory, 0));
    live.sort_unstable();
    let mut free_from = base;
    let gaps = live.into_iter().map(|(address, bytes)| {
        let gap = address - free_from;
        free_from = address + bytes;
        gap
    });
    gaps.max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Two users, each with its own copy of the table, as two processes have.
    #[test]
    fn allocations_never_overlap_nor_exceed_the_memory(steps in prop::collection::vec(step(), 1..60)) {
        const MEMORY: u64 = 64 << 10;
        let folder = tempfile::tempdir().unwrap();
        let nodes = [node(folder.path(), "64Ki"), node(folder.path(), "64Ki")];
        let users = nodes.each_ref().map(|node| node.gpus()[0].attach().unwrap());
        let mut live: [Vec<(u64, u64)>; 2] = Default::default();
        let base = users[0].allocate(MEMORY).unwrap().address;
        prop_assert!(users[0].free(base).unwrap());
        for step in steps {
            match step {
                Step::Allocate { process, bytes } => {
                    match users[usize::from(process)].allocate(bytes) {
                        Ok(range) => {
                            prop_assert_eq!(range.bytes, bytes.next_multiple_of(GRANULE));
                            let end = range.address + range.bytes;
                            for (other, len) in live.iter().flatten() {
                                prop_assert!(end <= *other || other + len <= range.address);
                            }
                            live[usize::from(process)].push((range.address, range.bytes));
                        }
                        Err(AllocateError::Zero) => prop_assert_eq!(bytes, 0),
                        Err(AllocateError::OutOfMemory { largest, .. }) => {
                            prop_assert!(bytes.next_multiple_of(GRANULE) > largest.get());
                            let gap = largest_gap(live.iter().flatten(), base, MEMORY);
                            prop_assert_eq!(largest.get(), gap);
                        }
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Step::Free { process, which } => {
                    let own = &mut live[usize::from(process)];
                    if which < own.len() {
                        let (address, _) = own.swap_remove(which);
                        prop_assert!(!users[usize::from(!process)].free(address).unwrap());
                        prop_assert!(users[usize::from(process)].free(address).unwrap());
                    }
                }
            }
            let charged: u64 = live.iter().flatten().map(|(_, bytes)| bytes).sum();
            prop_assert!(charged <= MEMORY);
            for node in &nodes {
                prop_assert_eq!(used(node), charged);
            }
        }
        let [first, second] = users;
        drop(first);
        prop_assert_eq!(used(&nodes[1]), live[1].iter().map(|(_, bytes)| bytes).sum::<u64>());
        drop(second);
        prop_assert_eq!(nodes[0].gpus()[0].memory_use().unwrap().used, MemoryBytes::ZERO);
    }
}

#[test]
fn a_process_sees_what_cuda_would_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let gpu = |extra: &str| format!("[[gpu]]\nname = \"Simulated T\"\nmemory = \"8Mi\"\n{extra}\n");
    let mig = "mig_capable = true\nmig = [{ profile = \"1g.1gb\" }, { profile = \"1g.1gb\" }]";
    let open = |gpus: &[String]| {
        let text = format!("state_dir = \"{}\"\n{}", folder.path().display(), gpus.concat());
        SimulatedNode::open(Config::parse(Path::new("test"), &text).unwrap()).unwrap()
    };
    let node = open(&[gpu(""), gpu(mig), gpu("")]);
    let uuid = |at: usize| node.gpus()[at].config().uuid.to_string();
    let part = |at: usize| node.gpus()[1].instances()[at].config().uuid.to_string();
    let seen = |variable: Option<&str>| -> Vec<String> {
        node.visible(variable).iter().map(|gpu| gpu.config().uuid.to_string()).collect()
    };
    assert_eq!(seen(None), [uuid(0), uuid(2)], "a GPU in MIG mode is none");
    assert_eq!(seen(Some("1, 0")), [uuid(2), uuid(0)]);
    assert_eq!(seen(Some(&part(1))), [part(1)]);
    assert_eq!(seen(Some(&format!("{},{}", part(0), part(1)))), [part(0)], "one instance");
    assert_eq!(seen(Some(&format!("0,{}", part(1)))), [uuid(0)], "nor one beside a GPU");
    assert_eq!(seen(Some(&uuid(2)[..20])), [uuid(2)]);
    for none in ["", "7", "GPU-", &uuid(1), "MIG-00000000-0000-0000-0000-000000000000", "-1"] {
        assert_eq!(seen(Some(none)), Vec::<String>::new(), "{none}");
    }
    assert_eq!(seen(Some("0,0,1")), [uuid(0)]);
    let all_cut = open(&[gpu(mig)]);
    assert_eq!(all_cut.visible(None).len(), 1, "the first instance");
    // Each has memory of its own.
    let (one, other) = (&all_cut.gpus()[0].instances()[0], &all_cut.gpus()[0].instances()[1]);
    let attachment = one.attach().unwrap();
    attachment.allocate(1 << 20).unwrap();
    assert!(matches!(attachment.allocate(1 << 20), Err(AllocateError::OutOfMemory { .. })));
    assert_eq!(other.memory_use().unwrap().used, MemoryBytes::ZERO);
}
