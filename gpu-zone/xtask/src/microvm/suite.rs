//! `cargo xtask microvm-suite`: a driver zone in a microVM, from end to end, under emulation.
//!
//! Not a part of the test suite: it needs QEMU and a kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gpuzone_testkit::{Lease, Node, Options, Role, Running};
use serde_json::Value;

use super::image::{self, Contents, For};

/// Of anything in an emulated machine on a busy host.
pub(super) const LIMIT: Duration = Duration::from_secs(180);
const GPU: &str = "1Gi";

/// What the suite is run with.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
    /// Its modules, in order.
    pub(crate) modules: Vec<PathBuf>,
    /// QEMU.
    pub(crate) qemu: PathBuf,
    /// What makes its processors.
    pub(crate) accelerator: String,
}

/// Runs it.
///
/// # Errors
/// With what did not hold.
pub(crate) fn run(repository: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    if !wanted.qemu.exists() {
        say("SKIPPED", &format!("{} is not there", wanted.qemu.display()));
        return Ok(());
    }
    let output = repository.join("target/guest-image/zone.cpio");
    image::build(
        repository,
        &Contents {
            what: For::Driver,
            output: output.clone(),
            driver: None,
            modules: wanted.modules.clone(),
        },
    )?;
    let mut node = node(wanted, &output)?;
    let done = all(&mut node);
    if done.is_err() {
        for log in ["broker.log", "machine/driver-zone-vm.hypervisor.log"] {
            let text = std::fs::read_to_string(node.run_dir().join("driver-zone").join(log));
            eprintln!("== {log}\n{}", text.unwrap_or_default());
        }
        eprintln!("== agent\n{}", node.agent_log());
    }
    done
}

/// Its image is in its own folder, so that what was left of it would be found.
pub(super) fn node(wanted: &Wanted, image: &Path) -> anyhow::Result<Node> {
    let configuration = format!(
        "[usage]\nflush_seconds = 0.2\n[tenants.default]\n[zone.microvm]\nkernel = {:?}\nimage = \"zone.cpio\"\nqemu = {:?}\naccelerator = {:?}\nmemory = \"384Mi\"\nwindows = 8\n",
        std::path::absolute(&wanted.kernel)?,
        wanted.qemu,
        wanted.accelerator,
    );
    let node = Node::prepare(&Options { gpus: vec![GPU.into()], configuration })?;
    std::fs::copy(image, node.folder().join("zone.cpio")).context("cannot copy the image")?;
    Ok(node)
}

fn all(node: &mut Node) -> anyhow::Result<()> {
    timed("the zone starts", || Ok(node.start_agent_within(LIMIT)?))?;
    timed("two tenants compute at once", || two_tenants(node))?;
    timed("limits hold", || limits(node))?;
    timed("NVML tells of the lease", || looks(node))?;
    timed("nothing of the driver is open on the host", || only_inside(node))?;
    timed("the machine is killed", || machine_killed(node))?;
    timed("the agent is killed", || agent_killed(node))?;
    timed("the relay is killed", || relay_killed(node))?;
    timed("the zone ends", || ends(node))
}

#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(super) fn say(word: &str, text: &str) {
    println!("{word:<10} {text}");
}

pub(super) fn timed<T>(what: &str, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    let done = act().with_context(|| what.to_owned())?;
    say("ok", &format!("{what} ({:.1} s)", began.elapsed().as_secs_f64()));
    Ok(done)
}

fn good(running: Running) -> anyhow::Result<()> {
    let finished = running.finish(LIMIT)?;
    ensure!(finished.code() == Some(0), "{}", finished.text());
    Ok(())
}

fn two_tenants(node: &Node) -> anyhow::Result<()> {
    let acme = node.spawn("acme", "256Mi", "50", &["matmul"])?;
    let globex = node.spawn("globex", "256Mi", "50", &["softmax"])?;
    good(acme)?;
    good(globex)
}

fn limits(node: &Node) -> anyhow::Result<()> {
    let hog = node.spawn("acme", "192Mi", "50", &["hog", "--expect", "192Mi", "--rounds", "2"])?;
    good(hog)
}

fn looks(node: &Node) -> anyhow::Result<()> {
    let finished = node.run("acme", "128Mi", "50", &["smi", "--memory", "16Mi"])?;
    sees_its_lease(&finished.stdout, 128 << 20)
}

/// What `gpuzone-workload smi` has to show: a GPU as large as the lease, and itself among the processes.
pub(super) fn sees_its_lease(said: &str, bytes: u64) -> anyhow::Result<()> {
    let line = said.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    let seen: Value = serde_json::from_str(line).with_context(|| format!("no listing: {said}"))?;
    let gpu = &seen["gpus"][0];
    ensure!(gpu["total"].as_u64() == Some(bytes), "another size: {seen}");
    let processes = gpu["processes"].as_array().into_iter().flatten();
    let own = processes.filter(|process| process["pid"] == seen["pid"] && !seen["pid"].is_null());
    ensure!(own.count() == 1, "it does not see itself: {seen}");
    Ok(())
}

/// No process of the host's has the simulated driver's CUDA library mapped.
fn only_inside(node: &Node) -> anyhow::Result<()> {
    let computing = looping(node, "acme", "3")?;
    let mut mapped = Vec::new();
    for process in node.processes() {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid));
        if maps.unwrap_or_default().contains("libgpuzone_sim_cuda") {
            mapped.push(process.pid);
        }
    }
    ensure!(mapped.is_empty(), "processes {mapped:?} have the driver mapped");
    good(computing)
}

fn looping(node: &Node, tenant: &str, seconds: &str) -> anyhow::Result<Running> {
    let mut running = node.spawn(tenant, "128Mi", "50", &["loop", "--seconds", seconds])?;
    running.wait_for("loop: running", LIMIT)?;
    Ok(running)
}

/// The process that stands for the microVM, as its owner wrote it down.
fn machine(node: &Node) -> anyhow::Result<u32> {
    let path = node.run_dir().join("driver-zone/zones/driver-zone-vm.zone");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let record: Value = serde_json::from_slice(&text)?;
    let pid = record["process"]["pid"].as_u64().context("no process is written down")?;
    Ok(u32::try_from(pid)?)
}

pub(super) fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("no process")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// The program sees that its GPU is lost; the next one of the same lease works, in a new machine.
fn machine_killed(node: &Node) -> anyhow::Result<()> {
    let before = machine(node)?;
    let program = node.artifacts().file("gpuzone-workload")?.display().to_string();
    // The second program may come before the new machine serves; it is told so, and tries again.
    let script = format!(
        "'{program}' loop --seconds 60; echo first=$?; for i in $(seq 20); do '{program}' matmul && exit 0; sleep 1; done; exit 1"
    );
    let lease = ["run", "--tenant", "acme", "--memory", "128Mi", "--share", "50", "--"];
    let command = lease.into_iter().chain(["bash", "-c", &script]);
    let mut acme = Running::start(node.cli(command)?)?;
    acme.wait_for("loop: running", LIMIT)?;
    kill(before)?;
    let acme = acme.finish(LIMIT)?;
    ensure!(acme.code() == Some(0), "{}", acme.text());
    ensure!(acme.number("first")? == 1, "{}", acme.text());
    ensure!(machine(node)? != before, "it is the same machine");
    let log = node.state_dir().join("audit.log");
    node.until("the worker's end in the audit log", LIMIT, |_| {
        Ok(std::fs::read_to_string(&log).is_ok_and(|log| log.contains("microVM ended")))
    })?;
    Ok(())
}

pub(super) fn only_lease(node: &Node) -> anyhow::Result<Lease> {
    node.leases()?.into_iter().next().context("there is no lease")
}

fn agent_killed(node: &mut Node) -> anyhow::Result<()> {
    let (before, computing) = (machine(node)?, looping(node, "acme", "6")?);
    let lease = only_lease(node)?;
    node.kill_agent()?;
    node.start_agent_within(LIMIT)?;
    ensure!(machine(node)? == before, "it is another machine");
    ensure!(only_lease(node)?.id() == lease.id(), "it is another lease");
    good(computing)
}

/// Sessions end with whoever carries them; the machine, its workers and their leases stay.
fn relay_killed(node: &Node) -> anyhow::Result<()> {
    let before = machine(node)?;
    ensure!(node.kill(Role::Broker) >= 1, "there is no relay");
    node.until("a new relay", LIMIT, |node| {
        Ok(node.run("globex", "128Mi", "50", &["vector-add"])?.status.success())
    })?;
    ensure!(machine(node)? == before, "it is another machine");
    Ok(())
}

fn ends(node: &mut Node) -> anyhow::Result<()> {
    let pid = machine(node)?;
    node.stop_agent()?;
    // Of one that is dead and not yet taken from the kernel, nothing is to be read here.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    ensure!(command.is_empty(), "QEMU is left");
    // The kernel ends a killed zone's inner processes right after the outer one.
    Ok(node.until("nothing to be left", LIMIT, |node| Ok(node.leftovers().is_empty()))?)
}
