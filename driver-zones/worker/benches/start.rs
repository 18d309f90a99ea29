//! How long a worker takes from its start to the first call that it answers, on the simulated
//! driver.
//!
//! `cargo bench -p gpuzone-worker --bench start`

#![allow(
    clippy::print_stdout,
    dead_code,
    reason = "a benchmark, which takes parts of the tests' harness"
)]

use std::time::{Duration, Instant};

use gpuzone_wire::client::Client;
use gpuzone_wire::hello::{self, Hello, SOCKET, Welcome};
use gpuzone_wire::ring::{Payload, Region, Spin};
use gpuzone_wire::spec::{self, ContextCreate, ContextId};

#[path = "../tests/mediated/harness.rs"]
mod harness;

const ROUNDS: usize = 40;

/// Greets the worker and makes a context, as a program's first call does.
fn first_call(slot: &std::path::Path) {
    let socket = hello::connect(&slot.join(SOCKET), harness::PATIENCE).expect("connected");
    let hello =
        Hello { version: spec::VERSION, pid: std::process::id(), window: None, apart: false };
    hello::send(&socket, &hello, None).expect("sent");
    let (welcome, file) = hello::receive::<Welcome>(&socket).expect("a welcome");
    let Welcome::Accepted { sizes, .. } = welcome else { panic!("{welcome:?}") };
    let region = Region::open(file.expect("the rings"), sizes).expect("mapped");
    let mut client = Client::new(region, socket, Spin::default());
    let create = ContextCreate { context: ContextId(1), device: 0, flags: 0 };
    client.call(ContextId(0), &create, Payload::NONE).expect("answered");
}

fn main() {
    let mut lease = harness::Lease::start(64 << 20);
    let mut times: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..ROUNDS {
        lease.kill_worker();
        let began = Instant::now();
        lease.start_worker();
        let ready = began.elapsed();
        first_call(lease.slot());
        times.push((ready, began.elapsed()));
    }
    let middle = |mut times: Vec<Duration>| {
        times.sort();
        (times[ROUNDS / 2], times[ROUNDS - 1])
    };
    let ready = middle(times.iter().map(|(ready, _)| *ready).collect());
    let first = middle(times.iter().map(|(_, first)| *first).collect());
    println!("a worker is ready after {:.1?} (at most {:.1?})", ready.0, ready.1);
    println!(
        "its first call is answered after {:.1?} (at most {:.1?}); wanted: 30 ms",
        first.0, first.1
    );
}
