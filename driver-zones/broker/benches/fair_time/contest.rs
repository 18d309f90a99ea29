//! Tenants that are greedy at once: what each gets, and what all get together.

use std::time::Duration;

use gpuzone_wire::turn::Priority;

use crate::figures::{least, median, most, note, row};
use crate::tenant::{Kernel, Tenant, Work};
use crate::zone::{Lease, Zone};

/// A greedy tenant: its share, its kernels, launches between two waits.
#[derive(Clone, Copy)]
struct Greedy(u32, Kernel, u32);

/// What a tenant did in a time: how long the GPU was busy for it, and its launches, per second.
#[derive(Clone, Copy, Default)]
struct Did {
    busy: f64,
    launches: f64,
}

/// What each did, when all are greedy at once.
fn contest(zone: &mut Zone, window: Duration, tenants: &[Greedy]) -> Vec<Did> {
    let begin = |zone: &mut Zone, Greedy(share, kernel, _): &Greedy| {
        let lease = zone.lease(*share, Priority::Batch);
        let tenant = zone.tenant(&lease, *kernel);
        (lease, tenant)
    };
    let running: Vec<(Lease, Tenant)> = tenants.iter().map(|one| begin(zone, one)).collect();
    measure(zone, window, running, &tenants.iter().map(|one| one.2).collect::<Vec<_>>())
}

fn measure(
    zone: &mut Zone,
    window: Duration,
    mut running: Vec<(Lease, Tenant)>,
    ahead: &[u32],
) -> Vec<Did> {
    let margin = Duration::from_millis(300);
    for ((_, tenant), ahead) in running.iter_mut().zip(ahead) {
        tenant.go(Work::greedy(window + margin * 3, *ahead));
    }
    let counters = |zone: &mut Zone| -> Vec<(u64, u64)> {
        let of = |lease: &Lease, zone: &mut Zone| zone.status(lease).counters;
        let all = running.iter().map(|(lease, _)| of(lease, zone));
        all.map(|counters| (counters.busy_nanoseconds, counters.launches)).collect()
    };
    std::thread::sleep(margin);
    let before = counters(zone);
    std::thread::sleep(window);
    let after = counters(zone);
    running.iter_mut().for_each(|(_, tenant)| drop(tenant.seen()));
    for (lease, tenant) in running {
        drop(tenant);
        zone.end(&lease);
    }
    let seconds = window.as_secs_f64();
    let did = |(a, b): (&(u64, u64), &(u64, u64))| Did {
        busy: (b.0 - a.0) as f64 / 1e9 / seconds,
        launches: (b.1 - a.1) as f64 / seconds,
    };
    before.iter().zip(&after).map(did).collect()
}

/// The tenants with kernels whose size is settled, so that alone and together they do the same.
fn settled(zone: &mut Zone, tenants: &[Greedy]) -> Vec<Greedy> {
    let settle = |Greedy(share, kernel, ahead): &Greedy| {
        let kernel = match *kernel {
            Kernel::Holds(_) | Kernel::Sums(_) => *kernel,
            Kernel::Computes(_) => {
                let lease = zone.lease(*share, Priority::Batch);
                let numbers = zone.tenant(&lease, *kernel).numbers;
                zone.end(&lease);
                Kernel::Sums(numbers)
            }
        };
        Greedy(*share, kernel, *ahead)
    };
    tenants.iter().map(settle).collect()
}

/// Shares over rounds, and what all got together of what each gets alone.
fn compare(zone: &mut Zone, what: &str, tenants: &[Greedy], rounds: usize, promised: bool) {
    let tenants = &settled(zone, tenants)[..];
    let (mut off, mut total, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    let mut shares: Vec<Vec<f64>> = vec![Vec::new(); tenants.len()];
    let mut did = String::new();
    for _ in 0..rounds {
        let short = Duration::from_millis(1_500);
        let alone: Vec<Did> = tenants.iter().map(|one| contest(zone, short, &[*one])[0]).collect();
        let together = contest(zone, Duration::from_secs(5), tenants);
        let sum: f64 = together.iter().map(|did| did.busy).sum();
        let got: Vec<f64> = together.iter().map(|did| did.busy * 100.0 / sum).collect();
        off.push(most(
            &got.iter()
                .zip(tenants)
                .map(|(got, t)| (got - f64::from(t.0)).abs())
                .collect::<Vec<_>>(),
        ));
        shares.iter_mut().zip(&got).for_each(|(all, one)| all.push(*one));
        let rates = together.iter().zip(&alone).map(|(all, one)| all.launches / one.launches);
        total.push(rates.sum());
        let pairs = together.iter().zip(&alone);
        let pairs: Vec<String> =
            pairs.map(|(all, one)| format!("{:.1} of {:.1}", all.launches, one.launches)).collect();
        did = pairs.join(", ");
        busy.push(sum / most(&alone.iter().map(|did| did.busy).collect::<Vec<_>>()));
    }
    let list: Vec<String> = shares.iter().map(|all| format!("{:.1}", median(all))).collect();
    let measured = format!("{} (off by {:.1} at most)", list.join(" / "), most(&off));
    let throughput = format!("{:.3} (least {:.3})", median(&total), least(&total));
    let used = format!("{:.3} (least {:.3})", median(&busy), least(&busy));
    if promised {
        row(&format!("{what}: shares, %"), &measured, "within 2 points", median(&off) <= 2.0);
        row("  throughput, of one alone", &throughput, ">= 0.95", median(&total) >= 0.95);
    } else {
        note(&format!("{what}: shares, %"), &measured);
        note("  throughput, of one alone", &throughput);
    }
    note("  time with a kernel running, of one alone", &used);
    note("  kernels a second, of what each does alone, in the last round", &did);
}

fn mixed(kernel: fn(u64) -> Kernel, ahead: [u32; 3]) -> [Greedy; 3] {
    let of = |share, length, ahead| Greedy(share, kernel(length), ahead);
    [of(50, 300, ahead[0]), of(30, 2_000, ahead[1]), of(20, 8_000, ahead[2])]
}

pub(crate) fn shares(zone: &mut Zone, rounds: usize) {
    let queued = mixed(Kernel::Holds, [64, 16, 8]);
    compare(zone, "50/30/20, kernels of 0.3/2/8 ms, queued", &queued, rounds, true);
    let waited = mixed(Kernel::Holds, [1, 1, 1]);
    compare(zone, "50/30/20, the same, each waited for", &waited, rounds, true);
}

/// The simulated GPU computes on the processors that all processes of this share.
pub(crate) fn computing(zone: &mut Zone) {
    let queued = mixed(Kernel::Computes, [64, 16, 8]);
    compare(zone, "kernels that need a processor, queued", &queued, 1, false);
    let waited = mixed(Kernel::Computes, [1, 1, 1]);
    compare(zone, "the same, each waited for", &waited, 1, false);
}

pub(crate) fn jain(zone: &mut Zone, rounds: usize) {
    let of = |length, ahead| Greedy(25, Kernel::Holds(length), ahead);
    let tenants = [of(500, 32), of(2_000, 8), of(6_000, 4), of(1_000, 1)];
    let mut indices = Vec::new();
    for _ in 0..rounds {
        let got = contest(zone, Duration::from_secs(3), &tenants);
        let sum: f64 = got.iter().map(|did| did.busy).sum();
        let squares: f64 = got.iter().map(|did| did.busy * did.busy).sum();
        indices.push(sum * sum / (got.len() as f64 * squares));
    }
    let measured = format!("{:.4} (least {:.4})", median(&indices), least(&indices));
    row("four equal shares: Jain's index", &measured, ">= 0.99", median(&indices) >= 0.99);
}

pub(crate) fn cap(zone: &mut Zone, rounds: usize) {
    for (what, ahead) in [("queued", 16), ("each waited for", 1)] {
        let mut parts = Vec::new();
        for _ in 0..rounds {
            let lease = zone.capped(20, Priority::Batch, Some(30));
            let tenant = zone.tenant(&lease, Kernel::Holds(1_000));
            let window = Duration::from_secs(2);
            let did = measure(zone, window, vec![(lease, tenant)], &[ahead]);
            parts.push(did.first().map_or(0.0, |did| did.busy * 100.0));
        }
        let off = most(&parts.iter().map(|part| (part - 30.0).abs()).collect::<Vec<_>>());
        row(
            &format!("a cap of 30 %, alone, kernels of 1 ms {what}: time, %"),
            &format!("{:.1} (off by {off:.1} at most)", median(&parts)),
            "30 +- 2",
            off <= 2.0,
        );
    }
}
