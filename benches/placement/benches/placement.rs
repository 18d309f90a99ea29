//! `OPENB_DIR=... cargo bench -p gpuzone-bench-placement`: see `docs/placement.md`.
#![allow(clippy::print_stdout, clippy::tests_outside_test_module, reason = "it prints a table")]

use std::path::PathBuf;
use std::time::Instant;

use gpuzone_bench_placement::{
    Baseline, Bins, Cell, Class, Openb, Series, frequent, paired, unusable,
};
use gpuzone_core::engine::{NodeRoom, Policy};
use gpuzone_replay::{Setting, Ties, Trace, replay};

const SEEDS: [u64; 10] = [42, 43, 44, 45, 46, 47, 48, 49, 50, 51];

/// Published means at 100 % and 130 %, ties by node rank: github.com/hkust-adsl/
/// kubernetes-scheduler-simulator, Apache-2.0.
const PUBLISHED: [(&str, f64, f64); 4] = [
    ("Random", 86.30, 87.47),
    ("FirstFit", 94.35, 94.54),
    ("BestFit", 92.86, 93.08),
    ("FGD", 95.23, 95.39),
];

#[derive(Clone, Copy)]
enum Who {
    Known(Baseline),
    Ours(Policy, bool),
}

struct Line {
    name: String,
    mode: &'static str,
    who: Who,
    ties: Ties,
}

fn lines() -> Vec<Line> {
    let known = |baseline: Baseline, mode, ties| Line {
        name: baseline.name().to_owned(),
        mode,
        who: Who::Known(baseline),
        ties,
    };
    let ours = |name: &str, mode, policy, oracle, ties| Line {
        name: name.to_owned(),
        mode,
        who: Who::Ours(policy, oracle),
        ties,
    };
    let ranks = "C, ranks";
    vec![
        known(Baseline::Random, "C", Ties::Coin),
        known(Baseline::FirstFit, "R", Ties::First),
        known(Baseline::BestFit, "R", Ties::First),
        known(Baseline::BestFit, "C", Ties::Coin),
        known(Baseline::Fgd, "R", Ties::First),
        known(Baseline::Fgd, "C", Ties::Coin),
        ours("pack", ranks, Policy::Pack, false, Ties::Ranks),
        ours("spread", ranks, Policy::Spread, false, Ties::Ranks),
        ours("fragmentation", "R", Policy::Fragmentation, false, Ties::First),
        ours("fragmentation", "C", Policy::Fragmentation, false, Ties::Coin),
        ours("fragmentation", ranks, Policy::Fragmentation, false, Ties::Ranks),
        ours("fragmentation, oracle mix", ranks, Policy::Fragmentation, true, Ties::Ranks),
    ]
}

fn main() -> anyhow::Result<()> {
    let Some(folder) = std::env::var_os("OPENB_DIR").map(PathBuf::from) else {
        println!("skipped: OPENB_DIR does not name the folder of the trace openb");
        return Ok(());
    };
    let openb = Openb::read(&folder)?;
    let mix = frequent(&openb.needs);
    println!(
        "{} nodes, {} pods, {} classes",
        openb.trace.nodes.len(),
        openb.needs.len(),
        mix.len()
    );
    println!(
        "| scheduler | ties | at 100 % | sd | at 130 % | sd | published | against FGD (R) | frag | first drop | dropped part/one/several | p50 | p99 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut fgd = None;
    // `ONLY='FGD R'` prints one line; the comparison needs FGD's before it.
    let wanted = |line: &&Line| format!("{} {}", line.name, line.mode).contains(&only);
    for line in lines().iter().filter(wanted) {
        let bins = all_seeds(&openb, &mix, line)?;
        if line.name == "FGD" && line.mode == "R" {
            fgd = Some(bins.clone());
        }
        print_line(line, &bins, fgd.as_deref().filter(|_| line.mode != "R" || line.name != "FGD"));
    }
    Ok(())
}

/// Two seeds at once.
fn all_seeds(openb: &Openb, mix: &[Class], line: &Line) -> anyhow::Result<Vec<Bins>> {
    let half = |seeds: &[u64]| -> anyhow::Result<Vec<Bins>> {
        seeds.iter().map(|seed| one_seed(openb, mix, line, *seed)).collect()
    };
    let (first, second) = SEEDS.split_at(SEEDS.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| half(second));
        let mut bins = half(first)?;
        bins.extend(other.join().map_err(|_| anyhow::anyhow!("a seed's thread ended"))??);
        Ok(bins)
    })
}

fn one_seed(openb: &Openb, mix: &[Class], line: &Line, seed: u64) -> anyhow::Result<Bins> {
    let arrivals = openb.arrivals(seed)?;
    let in_order = |at: &usize| openb.trace.nodes.get(*at).cloned();
    let nodes: Vec<NodeRoom> = arrivals.nodes.iter().filter_map(in_order).collect();
    Ok(match line.who {
        Who::Known(baseline) => {
            known(openb, mix, &nodes, &arrivals.pods, (baseline, line.ties, seed))
        }
        Who::Ours(policy, oracle) => {
            let trace = Trace { nodes, pods: openb.trace.pods.clone() };
            let setting = Setting { policy, ties: line.ties, seed, oracle };
            ours(openb, mix, &trace, &arrivals.pods, &setting)
        }
    })
}

fn ours(openb: &Openb, mix: &[Class], trace: &Trace, order: &[usize], setting: &Setting) -> Bins {
    let mut bins = Bins::default();
    let capacity = trace.capacity() as f64;
    let mut lost: Vec<f64> = trace.nodes.iter().map(|node| unusable(&node.into(), mix)).collect();
    let mut total: f64 = lost.iter().sum();
    let mut start = Instant::now();
    replay(trace, setting, order.iter().copied(), |board, now| {
        let took = start.elapsed().as_nanos();
        bins.nanoseconds.push(u64::try_from(took).unwrap_or(u64::MAX));
        let requested = now.arrived as f64 / capacity;
        if let Some(at) = now.node
            && let (Some(room), Some(lost)) = (board.nodes().get(at), lost.get_mut(at))
        {
            total -= *lost;
            *lost = unusable(&room.into(), mix);
            total += *lost;
        } else if let Some(need) = openb.needs.get(now.pod).filter(|need| need.gpus > 0) {
            bins.drop(requested, need.gpus, need.milli);
        }
        bins.add(requested, now.placed as f64 / capacity, total / capacity);
        start = Instant::now();
    });
    bins
}

fn known(
    openb: &Openb,
    mix: &[Class],
    nodes: &[NodeRoom],
    order: &[usize],
    (baseline, ties, seed): (Baseline, Ties, u64),
) -> Bins {
    let mut bins = Bins::default();
    let mut cells: Vec<Cell> = nodes.iter().map(Cell::from).collect();
    let capacity: f64 = cells.iter().map(|cell| cell.gpus.len() as f64 * 1000.0).sum();
    let mut lost: f64 = cells.iter().map(|cell| unusable(cell, mix)).sum();
    let mut coin = fastrand::Rng::with_seed(seed);
    let (mut arrived, mut placed) = (0, 0);
    for need in order.iter().filter_map(|pod| openb.needs.get(*pod)) {
        let start = Instant::now();
        let mut best: Option<(f64, usize, Vec<usize>, u32)> = None;
        for (at, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.fits(need)) {
            let (score, gpus) = baseline.score(cell, need, mix);
            let equals = match &best {
                Some((other, ..)) if score < *other => continue,
                Some((other, _, _, equals)) if score == *other => equals + 1,
                Some(_) | None => 1,
            };
            // Each of the equals is as likely to be the last to win.
            let wins = equals == 1 || (ties != Ties::First && coin.u32(..equals) == 0);
            best = match best {
                Some((score, at, gpus, _)) if !wins => Some((score, at, gpus, equals)),
                Some(_) | None => Some((score, at, gpus, equals)),
            };
        }
        let took = start.elapsed().as_nanos();
        bins.nanoseconds.push(u64::try_from(took).unwrap_or(u64::MAX));
        let asked = need.gpus as f64 * need.milli as f64;
        arrived += need.gpus * usize::try_from(need.milli).unwrap_or(0);
        let requested = arrived as f64 / capacity;
        match best.and_then(|(_, at, gpus, _)| Some((cells.get_mut(at)?, gpus))) {
            Some((cell, gpus)) => {
                lost -= unusable(cell, mix);
                *cell = cell.less(need, &gpus);
                lost += unusable(cell, mix);
                placed += need.gpus * usize::try_from(need.milli).unwrap_or(0);
            }
            None if asked > 0.0 => bins.drop(requested, need.gpus, need.milli),
            None => {}
        }
        bins.add(requested, placed as f64 / capacity, lost / capacity);
    }
    bins
}

fn print_line(line: &Line, bins: &[Bins], fgd: Option<&[Bins]>) {
    let at = |bins: &[Bins], bin| Series(bins.iter().map(|seed| seed.at(bin).0).collect());
    let mean = |of: &dyn Fn(&Bins) -> f64| Series(bins.iter().map(of).collect()).mean();
    let (full, over) = (at(bins, 100), at(bins, 130));
    let known = PUBLISHED
        .iter()
        .find(|(name, ..)| *name == line.name && (line.mode == "R" || *name == "Random"));
    let published = known.map_or("".to_owned(), |(_, a, b)| format!("{a:.2} / {b:.2}"));
    let against = fgd.map_or("".to_owned(), |fgd| {
        let difference = |bin| {
            let (mean, half) = paired(&at(bins, bin), &at(fgd, bin));
            format!("{mean:+.3} ± {half:.3}")
        };
        format!("{} / {}", difference(100), difference(130))
    });
    println!(
        "| {} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {published} | {against} | {:.2} | {:.1} | {:.0}/{:.0}/{:.0} | {:.0} µs | {:.0} µs |",
        line.name,
        line.mode,
        full.mean(),
        full.deviation(),
        over.mean(),
        over.deviation(),
        mean(&|seed| seed.at(100).1),
        mean(&|seed| seed.first_drop.unwrap_or(f64::NAN)),
        mean(&|seed| f64::from(seed.dropped[0])),
        mean(&|seed| f64::from(seed.dropped[1])),
        mean(&|seed| f64::from(seed.dropped[2])),
        mean(&|seed| seed.microseconds(0.5)),
        mean(&|seed| seed.microseconds(0.99)),
    );
}
