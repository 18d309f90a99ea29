//! Short kernels now and then, beside two tenants that are greedy.

use std::time::Duration;

use gpuzone_wire::turn::Priority;

use crate::figures::{most, note, percentile, row};
use crate::tenant::{Kernel, Work};
use crate::zone::Zone;

const WINDOW: Duration = Duration::from_secs(6);
/// Its kernels' length, in microseconds.
const OWN: u64 = 200;
/// The longest kernel of the others.
const LONGEST: u64 = 2_000;

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
    tenant.go(Work { time: WINDOW, ahead: 1, pause: Duration::from_millis(5) });
    let waits = tenant.seen().waits.iter().map(|(from, to)| (to - from) as f64 / 1e6).collect();
    greedy.iter_mut().for_each(|greedy| drop(greedy.seen()));
    batch.iter().chain([&lease]).for_each(|lease| zone.end(lease));
    waits
}

pub(crate) fn latency(zone: &mut Zone) {
    let show = |waits: &[f64]| {
        let (half, high) = (percentile(waits, 0.5), percentile(waits, 0.99));
        format!("{half:.2} / {high:.2} ms (most {:.2})", most(waits))
    };
    let urgent = waits(zone, Priority::LatencyCritical);
    let what =
        format!("latency-critical, kernels of 1 and 2 ms beside it: p50 / p99 of {}", urgent.len());
    row(&what, &show(&urgent), "p99 <= 6 ms", percentile(&urgent, 0.99) <= 6.0);
    // The kernel under way, its own, and what it takes to change.
    let bound = (LONGEST + OWN) as f64 / 1e3 + 1.0;
    row(
        "  the same: the longest kernel + its own + 1 ms",
        &format!("p99 {:.2} ms", percentile(&urgent, 0.99)),
        &format!("<= {bound:.1} ms"),
        percentile(&urgent, 0.99) <= bound,
    );
    note("  the same as batch work", &show(&waits(zone, Priority::Batch)));
}
