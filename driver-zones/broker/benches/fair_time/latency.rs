//! Short kernels now and then, beside two tenants that are greedy.

use std::time::{Duration, Instant};

use gpuzone_wire::turn::Priority;

use crate::figures::{most, note, percentile, row};
use crate::tenant::{Kernel, Work};
use crate::zone::Zone;

const WINDOW: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(5);
/// Its kernels' length, in microseconds.
const OWN: u64 = 200;
/// The longest kernel of the others.
const LONGEST: u64 = 2_000;

/// How late a thread of this machine wakes that sleeps for a millisecond, in milliseconds.
fn lateness(time: Duration) -> Vec<f64> {
    let begin = Instant::now();
    let mut late = Vec::new();
    while begin.elapsed() < time {
        let (asked, from) = (Duration::from_millis(1), Instant::now());
        std::thread::sleep(asked);
        late.push((from.elapsed() - asked).as_secs_f64() * 1e3);
    }
    late
}

/// How long each wait for a kernel is, in milliseconds, for one that is alone.
fn alone(zone: &mut Zone, kernel: u64, pause: Duration) -> Vec<f64> {
    let lease = zone.lease(20, Priority::Batch);
    let mut tenant = zone.tenant(&lease, Kernel::Holds(kernel));
    tenant.go(Work { time: WINDOW / 2, ahead: 1, pause });
    let waits = tenant.seen().waits.iter().map(|(from, to)| (to - from) as f64 / 1e6).collect();
    zone.end(&lease);
    waits
}

/// How long each wait for a kernel was, in milliseconds.
fn waits(zone: &mut Zone, priority: Priority) -> Vec<f64> {
    let batch = [zone.lease(40, Priority::Batch), zone.lease(40, Priority::Batch)];
    let lease = zone.lease(20, priority);
    let mut greedy = [
        zone.tenant(&batch[0], Kernel::Holds(1_000)),
        zone.tenant(&batch[1], Kernel::Holds(LONGEST)),
    ];
    let mut tenant = zone.tenant(&lease, Kernel::Holds(OWN));
    let margin = Duration::from_millis(500);
    greedy.iter_mut().for_each(|greedy| greedy.go(Work::greedy(WINDOW + margin, 8)));
    std::thread::sleep(margin / 2);
    tenant.go(Work { time: WINDOW, ahead: 1, pause: PAUSE });
    let waits = tenant.seen().waits.iter().map(|(from, to)| (to - from) as f64 / 1e6).collect();
    greedy.iter_mut().for_each(|greedy| drop(greedy.seen()));
    batch.iter().chain([&lease]).for_each(|lease| zone.end(lease));
    waits
}

pub(crate) fn latency(zone: &mut Zone) {
    let clock = std::thread::spawn(|| lateness(WINDOW / 2));
    let own = alone(zone, OWN, PAUSE);
    let idle = clock.join().expect("a clock");
    let longest = alone(zone, LONGEST, Duration::ZERO);
    let show = |waits: &[f64]| {
        let (half, high) = (percentile(waits, 0.5), percentile(waits, 0.99));
        format!("{half:.2} / {high:.2} ms (most {:.2})", most(waits))
    };
    let clock = std::thread::spawn(|| lateness(WINDOW));
    let urgent = waits(zone, Priority::LatencyCritical);
    let busy = clock.join().expect("a clock");
    let what =
        format!("latency-critical, kernels of 1 and 2 ms beside it: p50 / p99 of {}", urgent.len());
    row(&what, &show(&urgent), "p99 <= 6 ms", percentile(&urgent, 0.99) <= 6.0);
    // The kernel under way, all that it takes alone, and the change from one to the other.
    let change = 4.0 * percentile(&busy, 0.99);
    let bound = percentile(&longest, 0.99) + percentile(&own, 0.99) + change;
    row(
        "  bound: the kernel under way + the same alone + 4 wake-ups",
        &format!("p99 {:.2} ms", percentile(&urgent, 0.99)),
        &format!("<= {bound:.2} ms"),
        percentile(&urgent, 0.99) <= bound,
    );
    note("  the same alone", &show(&own));
    note("  the kernel of 2 ms alone", &show(&longest));
    note("  the same as batch work", &show(&waits(zone, Priority::Batch)));
    note("  the machine: a thread wakes late by, idle", &show(&idle));
    note("  the machine: a thread wakes late by, meanwhile", &show(&busy));
}
