//! `gpu-zone-guest`: process 1 of a microVM that is a zone. See the modules.
#![forbid(unsafe_code)]

mod bells;
mod broker;
mod host;
mod machine;
mod port;
mod session;
mod window;
mod workload;

use std::process::ExitCode;

use gpuzone_wire::{workload_link, zone_link};

/// Among the kernel's words: there is no zone to be.
const BARE: &str = "gpuzone.mode=bare";

/// A process 1 that ends takes its kernel with it, and the host sees the machine go: that is the
/// report where nothing else can be said any more.
fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == workload::start::FLAG) {
        return workload::start::become_program();
    }
    if std::process::id() != 1 {
        eprintln!("gpu-zone-guest is the first process of a microVM and nothing else");
        return ExitCode::from(2);
    }
    if let Err(error) = machine::prepare() {
        eprintln!("gpu-zone-guest: {error}");
        return ExitCode::FAILURE;
    }
    let words = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mode = |wanted: &str| words.split_whitespace().any(|word| word == wanted);
    if mode(workload_link::MODE) {
        return workload::run();
    }
    if mode(BARE) {
        // For whoever measures a kernel's start alone.
        eprintln!("gpu-zone-guest: up");
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
    machine::keep_little();
    let port = match port::Port::find(zone_link::PORT) {
        Ok(port) => port,
        Err(error) => {
            eprintln!("gpu-zone-guest: no way to the host: {error}");
            return ExitCode::FAILURE;
        }
    };
    let broker = broker::Broker::default();
    host::serve_in_the_background(port, broker.clone());
    broker.reap_for_ever()
}
