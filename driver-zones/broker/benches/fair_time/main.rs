//! How fairly GPU time is shared, and what that costs, measured on a simulated GPU with the real
//! broker, workers and tenants' processes: `cargo bench -p gpuzone-broker --bench fair_time`.
//!
//! Words after `--` choose what is measured: `shares`, `jain`, `newcomer`, `latency`, `cap`,
//! `computing`. `FAIR_TIME_ROUNDS` says how often, `RUST_LOG` what the broker says meanwhile, and
//! `FAIR_TIME_PROGRAMS` names a folder with programs that are built already.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]

mod contest;
mod figures;
mod keeper;
mod latency;
mod newcomer;
mod tenant;
mod zone;

use zone::Zone;

fn main() {
    if tenant::be_one_if_told() || keeper::be_one_if_told() {
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("measures for minutes: run it with cargo bench");
        return;
    }
    let chosen: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let is_on = |name: &str| chosen.is_empty() || chosen.iter().any(|word| *word == name);
    let rounds = std::env::var("FAIR_TIME_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let mut zone = Zone::new();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!("simulated GPU, {processors} processors, quantum 4 ms, medians of {rounds} rounds\n");
    if is_on("shares") {
        contest::shares(&mut zone, rounds);
    }
    if is_on("jain") {
        contest::jain(&mut zone, rounds);
    }
    if is_on("newcomer") {
        newcomer::coming_and_going(&mut zone);
    }
    if is_on("latency") {
        latency::latency(&mut zone);
    }
    if is_on("cap") {
        contest::cap(&mut zone, rounds);
    }
    if is_on("computing") {
        contest::computing(&mut zone);
    }
}
