//! What the mediated path costs, against the simulated driver itself in the same run.
//!
//! `cargo bench -p gpuzone-workloads --bench figures [-- calls|worker|leases|PART OF A NAME]`: what is
//! no such word is part of the names of the figures that are wanted, like `parked` or `pageable`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark of the project")]

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, SystemTime};

use gpuzone_testkit::{Node, Options, Running};
use gpuzone_workloads::compare::{median, rows, table};
use serde_json::Value;

/// Whatever is free, for everyone.
const OPEN: &str = "[tenants.default]\n";
const LIMIT: Duration = Duration::from_secs(120);
/// Runs of each kind, one after the other in turns.
const TURNS: usize = 3;
const MANY: usize = 32;
const WINDOW: Duration = Duration::from_secs(8);

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let is_chosen = |part: &str| chosen.is_empty() || chosen.iter().any(|word| word == part);
    // Fair time's own default: nothing is tuned for this.
    let node = start(OPEN);
    let parts = ["calls", "worker", "leases"];
    let only: Vec<String> =
        chosen.iter().filter(|word| !parts.contains(&word.as_str())).cloned().collect();
    if is_chosen("calls") || !only.is_empty() {
        calls(&node, &only);
    }
    if is_chosen("worker") {
        idle_worker(&node);
    }
    if is_chosen("leases") {
        println!("turns of 4 ms, as they are by themselves:");
        leases(&node);
    }
    node.remove().unwrap();
    for milliseconds in [8, 16].into_iter().filter(|_| is_chosen("leases")) {
        let turns = format!("[fair_time]\nquantum_microseconds = {milliseconds}000\n");
        let node = start(&format!("{OPEN}{turns}"));
        println!("turns of {milliseconds} ms (quantum_microseconds):");
        leases(&node);
        node.remove().unwrap();
    }
}

fn start(configuration: &str) -> Node {
    let configuration = configuration.to_owned();
    Node::start(&Options { gpus: vec!["8Gi".into()], configuration }).unwrap()
}

/// Runs `figures` on the simulated library itself, on a node of its own.
fn direct(node: &Node) -> Command {
    let folder = node.folder().join("direct");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        let library = node.artifacts().file("libgpuzone_sim_cuda.so").unwrap();
        symlink(library, folder.join("libcuda.so.1")).unwrap();
        symlink(library, folder.join("libcuda.so")).unwrap();
        let state = node.simulated_state().join("direct");
        let gpu = "[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"8Gi\"\n";
        let config = format!("state_dir = {state:?}\n{gpu}");
        std::fs::write(folder.join("simulated.toml"), config).unwrap();
    }
    let mut command = Command::new(node.artifacts().file("gpuzone-workload").unwrap());
    command.env("LD_LIBRARY_PATH", &folder).env("GPUZONE_KERNELS", node.artifacts().kernels());
    command.env("GPUZONE_SIM_CONFIG", folder.join("simulated.toml"));
    command
}

fn mediated(node: &Node) -> Command {
    let lease = ["run", "--tenant", "acme", "--memory", "4Gi", "--share", "100", "--"];
    let mut command = node.cli(lease).unwrap();
    command.arg(node.artifacts().file("gpuzone-workload").unwrap());
    command
}

fn measured(mut command: Command, only: &[String]) -> Value {
    command.args(["figures", "--matmul", "128", "--matmul", "256"]);
    command.args(only.iter().flat_map(|word| ["--only", word]));
    Running::start(command).unwrap().finish(LIMIT).unwrap().ok().unwrap().json().unwrap()
}

fn calls(node: &Node, only: &[String]) {
    let (mut own, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        own.push(measured(direct(node), only));
        ours.push(measured(mediated(node), only));
    }
    let (own, ours) = (median(&own), median(&ours));
    let mut rows = rows(&own, &ours);
    rows.retain(|row| only.is_empty() || row.mediated.is_some());
    println!("{}", table(&rows));
    println!(
        "bare ping-pong: {} ns spinning, {} ns by other lines each time; {} ns by futex, {} ns on a processor each",
        ours["bare_spin_ns"],
        ours["bare_lines_ns"],
        ours["bare_futex_ns"],
        ours["bare_futex_apart_ns"]
    );
    println!(
        "two threads with plain copies into a window and out of it: {} GB/s",
        ours["bare_staged_gb_s"]
    );
    assert_eq!(own["workload_checksum"], ours["workload_checksum"], "the same work");
}

/// Resident memory of a worker that nobody is connected to, by what is mapped.
fn idle_worker(node: &Node) {
    let idle = ["run", "--tenant", "acme", "--memory", "1Gi", "--share", "10", "--", "sleep", "60"];
    let running = Running::start(node.cli(idle).unwrap()).unwrap();
    node.until("a worker", LIMIT, |node| Ok(node.leases()?.iter().any(|l| l.worker().is_some())))
        .unwrap();
    let worker = node.leases().unwrap()[0].worker().unwrap();
    let smaps = std::fs::read_to_string(format!("/proc/{worker}/smaps")).unwrap();
    let driver = |path: &str| path.contains("libgpuzone_sim") || path.contains("/gz-");
    let (mut path, mut own, mut of_driver) = (String::new(), 0_u64, 0_u64);
    for line in smaps.lines() {
        if let Some(resident) = line.strip_prefix("Rss:") {
            let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
            *(if driver(&path) { &mut of_driver } else { &mut own }) += kib;
        } else if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            path = line.split_whitespace().nth(5).unwrap_or("").to_owned();
        }
    }
    let shown = |kib: u64| f64::from(u32::try_from(kib).unwrap()) / 1024.0;
    println!(
        "idle worker: {:.1} MiB resident (at most 8), and {:.1} MiB of the simulated driver's",
        shown(own),
        shown(of_driver)
    );
    drop(running);
    ended(node);
}

/// Waits until no lease is left, nor its scrub: what is killed ends after whoever killed it. One
/// that stays for ever would be a fault, and ends the benchmark.
fn ended(node: &Node) {
    node.until("the leases' end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
}

/// Launches a second of each of so many leases, at the same time.
fn throughput(node: &Node, leases: usize) -> Vec<f64> {
    let start = |lease: usize| {
        let tenant = format!("tenant{lease}");
        let share = if leases == 1 { "100" } else { "3" };
        node.spawn(&tenant, "128Mi", share, &["meter", "--every", "250"]).unwrap()
    };
    let mut running: Vec<Running> = (0..leases).map(start).collect();
    for lease in &mut running {
        lease.wait_for("meter: window=1", LIMIT).unwrap();
    }
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
    let (from, to) = (now(), now() + WINDOW.as_micros());
    std::thread::sleep(WINDOW + Duration::from_secs(1));
    let number = |line: &str, key: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
        value.parse::<u128>().ok()
    };
    let of_lease = |lease: Running| {
        let text = lease.finish(LIMIT).unwrap().ok().unwrap().stdout;
        let windows = text
            .lines()
            .filter(|line| number(line, "at=").is_some_and(|at| (from..to).contains(&at)));
        let (mut launches, mut time) = (0, 0);
        for line in windows {
            launches += number(line, "launches=").unwrap();
            time += number(line, "microseconds=").unwrap();
        }
        let count = |value: u128| f64::from(u32::try_from(value).unwrap());
        // One that had no turn in all that time has no window, and counts as nothing.
        if time == 0 { 0.0 } else { count(launches) / count(time) * 1e6 }
    };
    let found = running.into_iter().map(of_lease).collect();
    ended(node);
    found
}

fn leases(node: &Node) {
    let alone: f64 = throughput(node, 1).iter().sum();
    let many = throughput(node, MANY);
    let total: f64 = many.iter().sum();
    let least = many.iter().copied().fold(f64::INFINITY, f64::min);
    let most = many.iter().copied().fold(0.0, f64::max);
    println!("one lease: {alone:.0} launches/s");
    println!(
        "{MANY} leases: {total:.0} launches/s, {:.2} of one (at least 0.9); {least:.0} to {most:.0} each",
        total / alone
    );
}
