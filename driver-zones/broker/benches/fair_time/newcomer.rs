//! One is greedy all the time, another comes and goes.

use std::time::Duration;

use gpuzone_wire::turn::Priority;

use crate::figures::{least, median, most, row};
use crate::tenant::{Kernel, Seen, Work};
use crate::zone::Zone;

const ROUNDS: u32 = 25;
const EARLY: u64 = 100_000_000;

fn done(seen: &Seen, from: u64, to: u64) -> f64 {
    seen.waits.iter().filter(|(_, end)| (from..=to).contains(end)).count() as f64
}

pub(crate) fn coming_and_going(zone: &mut Zone) {
    let leases = [zone.lease(50, Priority::Batch), zone.lease(50, Priority::Batch)];
    let kernel = Kernel::Holds(500);
    let mut tenants = [zone.tenant(&leases[0], kernel), zone.tenant(&leases[1], kernel)];
    let (burst, pause) = (Duration::from_millis(150), Duration::from_millis(100));
    tenants[0].go(Work::greedy((burst + pause) * (ROUNDS + 2), 1));
    let mut bursts: Vec<Seen> = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::sleep(pause);
        tenants[1].go(Work::greedy(burst, 1));
        bursts.push(tenants[1].seen());
    }
    let steady = tenants[0].seen();
    let (mut taken, mut parts, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for burst in &bursts {
        let next = steady.waits.iter().find(|(_, end)| *end > burst.end);
        taken.extend(next.map(|(_, end)| (end - burst.end) as f64 / 1e6));
        let (from, to) = (burst.begin, burst.begin + EARLY);
        let (own, other) = (done(burst, from, to), done(&steady, from, to));
        parts.push(own * 100.0 / (own + other).max(1.0));
        first.extend(burst.waits.first().map(|(from, to)| (to - from) as f64 / 1e6));
    }
    row(
        "an idle tenant's time: another's next kernel is done in",
        &format!("{:.2} ms (most {:.2})", median(&taken), most(&taken)),
        "<= 10 ms",
        most(&taken) <= 10.0,
    );
    row(
        "a newcomer of 50 %: part of the time used in its first 100 ms",
        &format!("{:.1} % (least {:.1})", median(&parts), least(&parts)),
        ">= 48 %",
        median(&parts) >= 48.0,
    );
    row(
        "  its first kernel of 0.5 ms is done in",
        &format!("{:.2} ms (most {:.2})", median(&first), most(&first)),
        "<= 100 ms",
        most(&first) <= 100.0,
    );
    leases.iter().for_each(|lease| zone.end(lease));
}
