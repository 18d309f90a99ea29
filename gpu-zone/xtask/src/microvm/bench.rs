//! `cargo xtask microvm-bench`: what a driver zone in a microVM takes, beside a bare boot of the
//! same kernel in the same run.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gpuzone_image::cpio::Archive;
use gpuzone_testkit::{Node, Role};

use super::image::{self, Contents, For};
use super::kernel;
use super::suite::{self, Wanted};
use super::window;

const BOOTS: usize = 3;
/// What the bare guest says once it runs a program.
const WORD: &str = "gpu-zone-guest: up";
/// How long nothing is asked of a zone that is to be at rest. Its kernel has given back by then what it keeps per
/// processor (`decay_pcp_high`).
const REST: Duration = Duration::from_secs(30);
/// What the relay says how much of its memory a guest uses.
const USED: &str = "guest_used_mib=";
/// The memory that is the guest's.
const GUEST_MEMORY: &str = "memory-backend-memfd";

/// Measures, and says so many zones on this machine, too.
///
/// # Errors
/// When something does not start.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn bench(repository: &Path, wanted: &Wanted, zones: usize) -> anyhow::Result<()> {
    let image = repository.join("target/guest-image/zone.cpio");
    let modules = wanted.modules.clone();
    image::build(
        repository,
        &Contents { what: For::Driver, output: image.clone(), driver: None, modules },
    )?;
    let bare = bare_image(repository)?;
    let unpacked = repository.join("target/guest-image/vmlinux");
    kernel::unpack(&wanted.kernel, &unpacked)?;
    let packed = wanted;
    let wanted = &Wanted { kernel: unpacked, ..packed.clone() };
    let (mut boots, mut of_packed, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    let mut at_rest = 0;
    for boot in 1..=BOOTS {
        of_packed.push(bare_boot(packed, &bare)?);
        boots.push(bare_boot(wanted, &bare)?);
        let mut node = suite::node(wanted, &image)?;
        node.start_agent_within(suite::LIMIT)?;
        ours.push(Zone::of(&node)?);
        if boot == BOOTS {
            at_rest = used_at_rest(&node)?;
        }
        node.stop_agent()?;
    }
    boots.sort();
    of_packed.sort();
    ours.sort_by_key(|zone| zone.boot);
    let (boot, of_packed, zone) = (boots[BOOTS / 2], of_packed[BOOTS / 2], &ours[BOOTS / 2]);
    let ratio = |bare: Duration| zone.boot.as_secs_f64() / bare.as_secs_f64();
    println!(
        "bare boot to its first program    {:.2} s, of the kernel as it was packed {:.2} s (medians of {BOOTS})",
        boot.as_secs_f64(),
        of_packed.as_secs_f64()
    );
    println!(
        "our start to broker-ready         {:.2} s, {:.2} times that, {:.2} times the packed one's",
        zone.boot.as_secs_f64(),
        ratio(boot),
        ratio(of_packed)
    );
    println!(
        "guest memory used at idle         {at_rest} MiB by the guest's count, {} MiB as it began to serve; of its memory the host has {:.0} MiB, all that was touched since its start",
        zone.guest_used >> 20,
        mib(zone.qemu.guests)
    );
    println!(
        "QEMU beside the guest's memory    {:.1} MiB private, {:.1} MiB in proportion; of the private, {:.1} MiB are files that are mapped and could be dropped, {:.1} MiB emulated code, {:.1} MiB the rest",
        mib(zone.qemu.private()),
        mib(zone.qemu.proportional),
        mib(zone.qemu.clean),
        mib(zone.qemu.code),
        mib(zone.qemu.dirty - zone.qemu.code)
    );
    println!(
        "our processes beside QEMU         {:.1} MiB private, {:.1} MiB in proportion",
        mib(zone.own.private()),
        mib(zone.own.proportional)
    );
    for line in window::measure(repository, wanted)? {
        println!("{line}");
    }
    many(wanted, &image, zones)
}

#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
fn many(wanted: &Wanted, image: &Path, zones: usize) -> anyhow::Result<()> {
    if zones == 0 {
        return Ok(());
    }
    let (began, mut nodes) = (Instant::now(), Vec::new());
    for n in 0..zones {
        let mut node = suite::node(wanted, image)?;
        node.start_agent_within(suite::LIMIT).with_context(|| format!("zone {n}"))?;
        nodes.push(node);
    }
    let took = began.elapsed().as_secs_f64();
    let finished = nodes[zones - 1].run("acme", "64Mi", "50", &["vector-add"])?;
    ensure!(finished.status.success(), "in the last one: {}", finished.text());
    let available = memory_available()?;
    println!(
        "zones at once                     {zones}, one after the other in {took:.0} s; {} MiB left",
        available >> 20
    );
    for mut node in nodes {
        node.stop_agent()?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

struct Zone {
    boot: Duration,
    guest_used: u64,
    qemu: Memory,
    own: Memory,
}

impl Zone {
    fn of(node: &Node) -> anyhow::Result<Self> {
        let log = node.run_dir().join("driver-zone/broker.log");
        let log = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let number = |name: &str| -> anyhow::Result<u64> {
            let rest = log.split_once(name).with_context(|| format!("no {name} in {log}"))?.1;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Ok(digits.parse()?)
        };
        let (mut qemu, mut own) = (Memory::default(), Memory::default());
        for process in node.processes() {
            let memory = Memory::of(process.pid)?;
            match process.role {
                Role::Program if process.command.contains("guest=driver-zone") => qemu.add(&memory),
                Role::Sandbox | Role::Broker | Role::Maker | Role::BrokersJanitor => {
                    own.add(&memory)
                }
                Role::Agent | Role::Cli | Role::Worker | Role::Program => {}
            }
        }
        ensure!(qemu.proportional > 0, "QEMU was not found among the node's processes");
        let boot = Duration::from_millis(number("milliseconds=")?);
        Ok(Self { boot, guest_used: number(USED)? << 20, qemu, own })
    }
}

/// MiB, as the guest says to the next relay when nothing was asked of it for a while.
fn used_at_rest(node: &Node) -> anyhow::Result<u64> {
    std::thread::sleep(REST);
    ensure!(node.kill(Role::Broker) >= 1, "there is no relay");
    let log = node.run_dir().join("driver-zone/broker.log");
    let mut used = 0;
    node.until("a relay that takes the machine over", suite::LIMIT, |_| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let said = text.lines().rfind(|line| line.contains("adopted=true"));
        let digits = said.and_then(|line| line.split_once(USED)).map_or("", |(_, digits)| digits);
        used = digits.split(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        Ok(used > 0)
    })?;
    Ok(used)
}

/// Bytes of the host's memory that is not the guest's.
#[derive(Debug, Default)]
struct Memory {
    proportional: u64,
    /// Private pages of files, which the host has on its disk.
    clean: u64,
    /// All other private ones.
    dirty: u64,
    /// Of these, code that was made as it ran: an emulator's.
    code: u64,
    /// And of the guest's, so much was touched once.
    guests: u64,
}

impl Memory {
    fn private(&self) -> u64 {
        self.clean + self.dirty
    }

    fn add(&mut self, other: &Self) {
        self.dirty += other.dirty;
        self.proportional += other.proportional;
        self.clean += other.clean;
        self.code += other.code;
        self.guests += other.guests;
    }

    fn of(pid: u32) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let (mut memory, mut guests, mut ram, mut code) = (Self::default(), false, false, false);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (name, value) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            if !name.ends_with(':') {
                ram = line.contains(GUEST_MEMORY);
                guests = ram || line.contains("gpu-zone-window");
                code = value.starts_with("rwx");
                continue;
            }
            let bytes = value.parse::<u64>().unwrap_or_default() << 10;
            match name {
                "Pss:" if !guests => memory.proportional += bytes,
                "Rss:" if ram => memory.guests += bytes,
                "Private_Clean:" if !guests => memory.clean += bytes,
                "Private_Dirty:" if !guests => {
                    memory.dirty += bytes;
                    memory.code += if code { bytes } else { 0 };
                }
                _ => {}
            }
        }
        Ok(memory)
    }
}

fn memory_available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no MemAvailable")?;
    Ok(number.parse::<u64>()? << 10)
}

/// The guest's first process and nothing else.
fn bare_image(repository: &Path) -> anyhow::Result<PathBuf> {
    let work = repository.join("target/guest-image");
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "run", "tmp", "newroot"] {
        archive.directory(folder);
    }
    archive.file("/init", work.join("stripped/gpu-zone-guest"), 0o755);
    let path = work.join("bare.cpio");
    archive.write(&mut std::fs::File::create(&path)?)?;
    Ok(path)
}

/// QEMU with that image, by hand.
pub(super) fn guest(wanted: &Wanted, image: &Path) -> Command {
    let accelerator = if wanted.accelerator == "kvm" { "kvm" } else { "tcg" };
    let cpu = if accelerator == "kvm" { "host" } else { "max" };
    let mut qemu = Command::new(&wanted.qemu);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", &format!("q35,accel={accelerator}"), "-cpu", cpu])
        .args(["-smp", "2", "-m", "384M", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&wanted.kernel)
        .arg("-initrd")
        .arg(image)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init gpuzone.mode=bare",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    qemu
}

/// From QEMU's start to the first program's first word.
fn bare_boot(wanted: &Wanted, image: &Path) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut qemu =
        guest(wanted, image).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
    let output = qemu.stdout.take().context("no output")?;
    let mut took = None;
    for line in BufReader::new(output).split(b'\n') {
        if String::from_utf8_lossy(&line?).contains(WORD) {
            took = Some(began.elapsed());
            break;
        }
    }
    qemu.kill()?;
    qemu.wait()?;
    took.context("the bare guest ended without a word")
}
