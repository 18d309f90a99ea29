//! What an honest tenant gets done before, during and after each attack of a hostile one.
//!
//! The simulated GPU computes on the host's processors, so whoever uses those slows it down,
//! hostile or not. Two things tell that from a fault of ours: the hostile tenant's program, its
//! worker and whoever reads its output are kept on one processor and the honest one's on another,
//! and each attack is compared with what an honest tenant in its place would leave ([`table`]).

mod pace;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gpuzone_testkit::hostile::{Attack, Made, Manner, host_has_zones, keep_on, neighbour};
use gpuzone_testkit::{Artifacts, Node, Options, Role, Running};

use pace::{Pace, Span};
use table::Row;

const LIMIT: Duration = Duration::from_secs(120);
const CONFIGURATION: &str = "[tenants.default]\n[fair_time]\nwatchdog_milliseconds = 1000\n";

/// What is to be measured.
pub(crate) struct Wanted {
    pub(crate) long: bool,
    pub(crate) only: Option<String>,
    pub(crate) together: bool,
}

struct Field {
    node: Node,
    neighbour: Running,
    worker: Option<u32>,
    /// The hostile tenant's processor.
    processor: Option<usize>,
}

pub(crate) fn hostile(wanted: &Wanted) -> anyhow::Result<()> {
    Artifacts::build()?;
    let mut field = Field::new(wanted.together)?;
    let zones = host_has_zones()?;
    let is_wanted = |attack: &Attack| {
        let named = wanted.only.as_ref().is_none_or(|only| attack.name.starts_with(only));
        (named || attack.name == "spin") && (zones || !attack.zone)
    };
    let attacks = Attack::all()?;
    let mut rows = Vec::new();
    for attack in attacks.into_iter().filter(is_wanted) {
        eprintln!("{}: {}", attack.name, attack.about);
        rows.push(field.measure(attack, wanted.long)?);
    }
    let Field { mut node, neighbour, .. } = field;
    let finished = neighbour.finish(LIMIT)?.ok().context("the neighbour was hurt")?;
    table::print(&rows, wanted.together);
    say(finished.stdout.lines().last().unwrap_or_default());
    node.stop_agent()?;
    let left = node.leftovers();
    ensure!(left.is_empty(), "left over: {}", left.join(", "));
    node.remove()?;
    Ok(())
}

impl Field {
    fn new(together: bool) -> anyhow::Result<Self> {
        let options = Options { gpus: vec!["2Gi".into()], configuration: CONFIGURATION.into() };
        let node = Node::start(&options)?;
        let apart = !together && std::thread::available_parallelism()?.get() > 1;
        if apart {
            keep_on(0, None)?;
        }
        let neighbour = neighbour(&node, LIMIT)?;
        let worker = node.leases()?.first().and_then(gpuzone_testkit::Lease::worker);
        if apart {
            keep_on(0, worker)?;
            // What is started from here on is the hostile tenant's, and this program, which reads
            // what that one prints.
            keep_on(1, None)?;
        }
        Ok(Self { node, neighbour, worker, processor: apart.then_some(1) })
    }

    fn measure(&mut self, attack: Attack, long: bool) -> anyhow::Result<Row> {
        let (calm, seconds) = (1.5, if long { 10.0 } else { 1.5 });
        let calm = Duration::from_secs_f64(calm);
        let before = self.calm(calm)?;
        let processor = self.processor;
        let manner = Manner { seconds, long, limit: LIMIT, neighbour: self.worker, processor };
        let begin = pace::now()?;
        let made = attack.make(&self.node, &manner)?;
        self.node
            .until("the attacker's lease's end", LIMIT, |node| Ok(node.leases()?.len() == 1))?;
        let whole = Span { from: begin, to: pace::now()? };
        let workers = self.node.processes().into_iter().filter(|one| one.role == Role::Worker);
        ensure!(workers.count() == 1, "{}: a worker was left", attack.name);
        let after = self.calm(calm)?;
        ensure!(self.neighbour.runs()?, "{}: {}", attack.name, self.neighbour.stderr());
        let pace = self.pace();
        // An attack that did not come to its end is told by how it ended.
        let during = Span::told(&made.finished.stdout).unwrap_or(whole);
        let (during, around) = (pace.within(during), pace.within(whole));
        Ok(Row { attack, before, during, around, after, end: ending(&made) })
    }

    /// Launches a second over some time in which nothing else is done.
    fn calm(&self, time: Duration) -> anyhow::Result<f64> {
        let from = pace::now()?;
        std::thread::sleep(time);
        let span = Span { from, to: pace::now()? };
        let end = Instant::now() + LIMIT;
        loop {
            let pace = self.pace();
            if pace.reaches(span.to) {
                return Ok(pace.within(span));
            }
            let said = self.neighbour.stderr();
            ensure!(Instant::now() < end, "the neighbour says nothing: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pace(&self) -> Pace {
        Pace::told(&self.neighbour.stdout())
    }
}

/// How an attack ended, in a few words.
fn ending(made: &Made) -> String {
    let line = made.finished.stdout.lines().last().unwrap_or_default();
    let end = line.split_once(": ended, ").map_or("", |(_, end)| end);
    let end = match made.finished.code() {
        Some(0) => end.to_owned(),
        _ => format!("{}: {}", made.finished.status, made.finished.stderr.trim()),
    };
    end.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[expect(clippy::print_stdout, reason = "a task's output")]
fn say(line: &str) {
    println!("{line}");
}
