//! How fairly GPU time is shared, and what that costs, measured on a simulated GPU with the real
//! broker, workers and tenants' processes: `cargo bench -p gpuzone-broker --bench fair_time`.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]
#![allow(clippy::cast_possible_truncation, reason = "figures for people")]

mod tenant;
mod zone;

use std::time::Duration;

use gpuzone_wire::turn::Priority;

use tenant::{Seen, Tenant, Work};
use zone::{Lease, Zone};

const MICROSECOND: Duration = Duration::from_micros(1);
const WINDOW: Duration = Duration::from_secs(5);

/// A greedy tenant: its share, its kernels' length in µs, launches between two waits.
#[derive(Clone, Copy)]
struct Greedy(u32, u32, u32);

fn row(what: &str, measured: &str, wanted: &str, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("{what:<58} {measured:>24}   {wanted:<16} {verdict}");
}

/// Busy time and launches of each tenant in the window, when all are greedy at once.
fn contest(zone: &mut Zone, tenants: &[Greedy]) -> Vec<(u64, u64)> {
    let mut running: Vec<(Lease, Tenant)> = Vec::new();
    for Greedy(share, kernel, _) in tenants {
        let lease = zone.lease(*share, Priority::Batch);
        let tenant = zone.tenant(&lease, MICROSECOND * *kernel);
        running.push((lease, tenant));
    }
    let margin = Duration::from_millis(300);
    for ((_, tenant), Greedy(_, _, ahead)) in running.iter_mut().zip(tenants) {
        tenant.go(Work::greedy(WINDOW + margin * 3, *ahead));
    }
    let counters = |zone: &mut Zone| -> Vec<(u64, u64)> {
        let of = |lease: &Lease, zone: &mut Zone| zone.status(lease).counters;
        let all = running.iter().map(|(lease, _)| of(lease, zone));
        all.map(|counters| (counters.busy_nanoseconds, counters.launches)).collect()
    };
    std::thread::sleep(margin);
    let before = counters(zone);
    std::thread::sleep(WINDOW);
    let after = counters(zone);
    running.iter_mut().for_each(|(_, tenant)| drop(tenant.seen()));
    for (lease, tenant) in running {
        drop(tenant);
        zone.end(&lease);
    }
    let difference = |(a, b): (&(u64, u64), &(u64, u64))| (b.0 - a.0, b.1 - a.1);
    before.iter().zip(&after).map(difference).collect()
}

fn percents(measured: &[(u64, u64)]) -> Vec<f64> {
    let total: u64 = measured.iter().map(|(busy, _)| busy).sum();
    measured.iter().map(|(busy, _)| *busy as f64 * 100.0 / total as f64).collect()
}

fn shares(zone: &mut Zone, what: &str, tenants: &[Greedy]) {
    let alone: Vec<(u64, u64)> = tenants.iter().map(|one| contest(zone, &[*one])[0]).collect();
    let together = contest(zone, tenants);
    let got = percents(&together);
    let off = got.iter().zip(tenants).map(|(got, t)| (got - f64::from(t.0)).abs());
    let off = off.fold(0.0, f64::max);
    let list: Vec<String> = got.iter().map(|share| format!("{share:.1}")).collect();
    row(&format!("{what}: shares, %"), &list.join(" / "), "within 2 points", off <= 2.0);
    // What each got of what it does alone, added up.
    let rates = together
        .iter()
        .zip(&alone)
        .map(|((_, launches), (_, alone))| *launches as f64 / *alone as f64);
    let total: f64 = rates.sum();
    row(
        &format!("{what}: throughput of one alone"),
        &format!("{total:.3}"),
        ">= 0.95",
        total >= 0.95,
    );
    // The simulated kernels run on the processors that all processes share, so their number says
    // as much of those; the time in which one was running does not.
    let busy: u64 = together.iter().map(|(busy, _)| busy).sum();
    let most = alone.iter().map(|(busy, _)| *busy).max().unwrap_or(1);
    let kept = busy as f64 / most as f64;
    println!("{:<58} {kept:>24.3}", format!("{what}: time with a kernel running, of one alone"));
}

fn jain(zone: &mut Zone) {
    let got = contest(
        zone,
        &[Greedy(25, 500, 32), Greedy(25, 2_000, 8), Greedy(25, 6_000, 4), Greedy(25, 1_000, 16)],
    );
    let got: Vec<f64> = got.iter().map(|(busy, _)| *busy as f64).collect();
    let (sum, squares) = (got.iter().sum::<f64>(), got.iter().map(|x| x * x).sum::<f64>());
    let index = sum * sum / (got.len() as f64 * squares);
    row("four equal shares: Jain's index", &format!("{index:.4}"), ">= 0.99", index >= 0.99);
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn percentile(values: &mut [u64], part: f64) -> u64 {
    values.sort_unstable();
    let at = (values.len() as f64 * part).ceil() as usize;
    values[at.clamp(1, values.len()) - 1]
}

/// One is greedy all the time, another comes and goes.
fn coming_and_going(zone: &mut Zone) {
    const ROUNDS: u32 = 15;
    let leases = [zone.lease(50, Priority::Batch), zone.lease(50, Priority::Batch)];
    let kernel = Duration::from_micros(500);
    let mut tenants = [zone.tenant(&leases[0], kernel), zone.tenant(&leases[1], kernel)];
    tenants[1].go(Work::greedy(Duration::from_secs(1), 1));
    let alone = tenants[1].seen();
    let each = (alone.end - alone.begin) / alone.waits.len() as u64;
    let (burst, pause) = (Duration::from_millis(300), Duration::from_millis(100));
    tenants[0].go(Work::greedy((burst + pause) * (ROUNDS + 2), 1));
    let mut bursts: Vec<Seen> = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::sleep(pause);
        tenants[1].go(Work::greedy(burst, 1));
        bursts.push(tenants[1].seen());
    }
    let steady = tenants[0].seen();
    let mut taken: Vec<u64> = Vec::new();
    let mut newcomers: Vec<u64> = Vec::new();
    for burst in &bursts {
        let next = steady.waits.iter().find(|(_, end)| *end > burst.end);
        taken.extend(next.map(|(_, end)| end - burst.end));
        let early = burst.begin + 100_000_000;
        let done = burst.waits.iter().filter(|(_, end)| *end <= early).count() as u64;
        newcomers.push(done * each / 1_000_000);
    }
    let worst = percentile(&mut taken, 1.0);
    let measured = format!("{:.2} ms at most", milliseconds(worst));
    row(
        "an idle tenant's time: next kernel of another is done in",
        &measured,
        "<= 10 ms",
        worst <= 10_000_000,
    );
    let (least, median) =
        (newcomers.iter().min().copied().unwrap_or(0), percentile(&mut newcomers.clone(), 0.5));
    row(
        "a newcomer of 50 %: of its first 100 ms it has, %",
        &format!("{median} (least {least})"),
        "48 and more",
        least >= 48,
    );
    leases.iter().for_each(|lease| zone.end(lease));
}

/// Short kernels now and then, beside two that are greedy.
fn latency(zone: &mut Zone, priority: Priority) -> (u64, u64, usize) {
    let batch = [zone.lease(40, Priority::Batch), zone.lease(40, Priority::Batch)];
    let mut greedy =
        [zone.tenant(&batch[0], MICROSECOND * 1_000), zone.tenant(&batch[1], MICROSECOND * 2_000)];
    let lease = zone.lease(20, priority);
    let mut tenant = zone.tenant(&lease, MICROSECOND * 200);
    greedy.iter_mut().for_each(|greedy| greedy.go(Work::greedy(WINDOW + MICROSECOND * 500_000, 8)));
    std::thread::sleep(MICROSECOND * 200_000);
    tenant.go(Work { time: WINDOW, ahead: 1, pause: MICROSECOND * 5_000 });
    let mut waits: Vec<u64> = tenant.seen().waits.iter().map(|(from, to)| to - from).collect();
    greedy.iter_mut().for_each(|greedy| drop(greedy.seen()));
    batch.iter().chain([&lease]).for_each(|lease| zone.end(lease));
    (percentile(&mut waits, 0.5), percentile(&mut waits, 0.99), waits.len())
}

fn main() {
    if tenant::be_one_if_told() {
        return;
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("measures for minutes: run it with cargo bench");
        return;
    }
    let mut zone = Zone::new();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!("simulated GPU, {processors} processors, quantum 4 ms\n");
    let mixed = [Greedy(50, 300, 64), Greedy(30, 2_000, 16), Greedy(20, 8_000, 8)];
    shares(&mut zone, "50/30/20, kernels of 0.3/2/8 ms", &mixed);
    jain(&mut zone);
    coming_and_going(&mut zone);
    let (half, most, count) = latency(&mut zone, Priority::LatencyCritical);
    let measured = format!("{:.2} / {:.2} ms", milliseconds(half), milliseconds(most));
    // A kernel of the others, as much again that is ahead of it, and its own.
    row(
        &format!("latency-critical beside two greedy, p50/p99 of {count}"),
        &measured,
        "p99 <= 6 ms",
        most <= 6_000_000,
    );
    let (half, most, count) = latency(&mut zone, Priority::Batch);
    println!(
        "{:<58} {:>24}",
        format!("the same as batch work, p50/p99 of {count}"),
        format!("{:.2} / {:.2} ms", milliseconds(half), milliseconds(most))
    );
}
