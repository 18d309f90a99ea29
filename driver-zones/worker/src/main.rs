//! The worker of a lease. See the library's documentation and `gpuzone_wire::handover`.

mod ioctl;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use gpuzone_wire::handover::{EXIT_DRIVER, LISTENER_FD, STATS_FD, WorkerSpec};
use gpuzone_wire::scrub::SCRUB_ARGUMENT;
use gpuzone_wire::stats::StatsWriter;
use gpuzone_wire::turn::TURNS_FD;
use gpuzone_worker::busy::Worked;
use gpuzone_worker::driver::{Driver, devices, show_instances};
use gpuzone_worker::host_room::HostRoom;
use gpuzone_worker::ledger::Ledger;
use gpuzone_worker::nvml::OwnUse;
use gpuzone_worker::prints::Prints;
use gpuzone_worker::session::Lease;
use gpuzone_worker::turns::Turns;
use gpuzone_worker::{harden, scrub, server};

fn main() -> ExitCode {
    let code = match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            if error.is::<DriverUnusable>() { EXIT_DRIVER } else { 1 }
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Marks errors that no new worker will cure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DriverUnusable(String);

fn run() -> anyhow::Result<i32> {
    harden::harden().context("cannot give up privileges")?;
    if std::env::args_os().nth(1).is_some_and(|argument| argument == SCRUB_ARGUMENT) {
        scrub::run()?;
        return Ok(0);
    }
    // SAFETY: the broker hands over these descriptors, and nobody else in this process has
    // touched them.
    let (listener, stats) =
        unsafe { (OwnedFd::from_raw_fd(LISTENER_FD), File::from_raw_fd(STATS_FD)) };
    for descriptor in [&listener, &OwnedFd::from(stats.try_clone().context("no stats file")?)] {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)
            .context("a file descriptor of the broker's is missing")?;
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the orders")?;
    let spec: WorkerSpec = serde_json::from_str(&text).context("the orders are no orders")?;

    let stats = Arc::new(StatsWriter::open(stats)?);
    let unusable = |error: &dyn std::error::Error| DriverUnusable(error.to_string());
    // SAFETY: no thread was started yet, and the driver is opened after it.
    unsafe { show_instances(spec.grants.iter().map(|grant| grant.gpu)) };
    let driver = Driver::open(&spec.driver.cuda_library).map_err(|error| unusable(&error))?;
    let (driver_version, devices) =
        devices(&driver, &spec.grants).map_err(|error| unusable(&error))?;
    let limits = devices.iter().map(|device| device.info.memory).collect();
    let count = devices.len();
    let turns = Turns::new(count);
    if spec.arbitrated {
        // SAFETY: the orders say that the broker handed it over, and nobody else in this process
        // has touched it.
        let listener = unsafe { OwnedFd::from_raw_fd(TURNS_FD) };
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)
            .context("the broker's socket for turns is missing")?;
        turns.listen(listener).context("cannot take turns")?;
    }
    say_ready().context("the broker does not listen")?;
    // From here on it is what kernels print.
    let prints = Prints::of_standard_output(spec.caps.print_bytes)
        .context("cannot read what kernels print")?;
    let lease = Arc::new(Lease {
        driver,
        driver_version,
        devices,
        ledger: Ledger::new(limits, stats.clone()),
        worked: Arc::new(Worked::new(stats.clone(), count)),
        stats,
        own_use: OwnUse::open(&spec.driver.nvml_library),
        images: HostRoom::new(spec.caps.image_bytes),
        pinned: HostRoom::new(spec.caps.pinned_bytes),
        prints,
        caps: spec.caps,
        poisoned: false.into(),
        turns,
        windows: spec.windows,
    });
    Ok(server::run(&lease, &listener)?)
}

/// Tells the broker.
fn say_ready() -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()
}
