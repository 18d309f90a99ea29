//! Memory of an idle zone that is not its program's.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_zone::sandbox::Sandboxed;

use crate::runc::Bundle;

/// A program that does nothing, in every way of counting the same.
const IDLE: [&str; 2] = ["/usr/bin/sleep", "1000"];
/// What the kernel has for each process beside its page tables: its stack (four pages on x86_64),
/// and its descriptions of process, descriptors, signals and memory (slabinfo(5) of a 6.x kernel:
/// about 9.5, 0.7, 2 and 1.3 KiB).
const OF_EACH_PROCESS: u64 = 30;

/// KiB.
struct Held {
    processes: usize,
    private: u64,
    proportional: u64,
    tables: u64,
}

pub(crate) fn show_zone(
    runtime: &tokio::runtime::Runtime,
    own_pids: bool,
) -> Result<(), Box<dyn Error>> {
    let launcher = PathBuf::from(env!("CARGO_BIN_EXE_gpu-zone-sandbox"));
    // A worker's policy of system calls would not let this one sleep.
    let spec = crate::spec(own_pids);
    let spec =
        gpuzone_zone::sandbox::Spec { filter: gpuzone_zone::sandbox::Filter::Workload, ..spec };
    let (process, _) = Sandboxed { launcher, spec, launch: crate::launch_of(&IDLE)? }.start()?;
    let held = measure(process.pid());
    let name = if own_pids { "sandbox with its own pids, idle" } else { "worker's sandbox, idle" };
    show(name, &held);
    runtime.block_on(process.end(None))?;
    Ok(())
}

pub(crate) fn show_runc(bundle: &Bundle) -> Result<(), Box<dyn Error>> {
    let mut child = bundle.start(&IDLE)?;
    std::thread::sleep(Duration::from_millis(500));
    show("runc run, idle", &measure(child.id()));
    for pid in family(child.id()).into_iter().filter(|pid| is_idle(*pid)) {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    child.wait()?;
    Ok(())
}

fn show(name: &str, held: &Held) {
    let Held { processes, private, proportional, tables } = held;
    let kernel = tables + OF_EACH_PROCESS * *processes as u64;
    println!(
        "{name:<56} {:>5} KiB in {processes} processes: {private} private ({proportional} with its \
         part of what is shared), about {kernel} in the kernel",
        private + kernel
    );
}

/// What the processes hold that stand around the program.
fn measure(first: u32) -> Held {
    let mut held = Held { processes: 0, private: 0, proportional: 0, tables: 0 };
    for pid in family(first).into_iter().filter(|pid| !is_idle(*pid)) {
        let of = |file: &str, field: &str| -> u64 {
            let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file));
            let text = text.unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(field));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
            number.unwrap_or(0)
        };
        held.processes += 1;
        held.private += of("smaps_rollup", "Private_Dirty:") + of("smaps_rollup", "Private_Clean:");
        held.proportional += of("smaps_rollup", "Pss:");
        held.tables += of("status", "VmPTE:");
    }
    held
}

fn is_idle(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

/// A process and all that descend from it.
fn family(first: u32) -> Vec<u32> {
    let mut found = vec![first];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}
