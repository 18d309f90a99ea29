//! What an honest tenant gets done before, during and after each attack of a hostile one.
//!
//! The simulated GPU computes on the host's processors, so whoever uses those slows it down,
//! hostile or not. Two things tell that from a fault of ours: the hostile tenant's program and
//! worker are kept on one processor and the honest one's on another, and each attack is compared
//! with an honest tenant that takes as much of what is everybody's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gpuzone_testkit::hostile::{Attack, Manner, host_has_zones, keep_on, neighbour};
use gpuzone_testkit::{Artifacts, Node, Options, Role, Running};

const LIMIT: Duration = Duration::from_secs(120);
const CONFIGURATION: &str = "[tenants.default]\n[fair_time]\nwatchdog_milliseconds = 1000\n";
/// How much of what it got done alone a neighbour is to get done.
const ENOUGH: f64 = 0.9;

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

struct Row {
    attack: Attack,
    before: f64,
    during: f64,
    after: f64,
    end: String,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.during / self.before
    }
}

pub(crate) fn hostile(wanted: &Wanted) -> anyhow::Result<()> {
    Artifacts::build()?;
    let mut field = Field::new(wanted.together)?;
    let zones = host_has_zones()?;
    let is_wanted = |attack: &Attack| {
        let named = wanted.only.as_ref().is_none_or(|only| attack.name.starts_with(only));
        (named || ["spin", "work"].contains(&attack.name.as_str())) && (zones || !attack.zone)
    };
    let attacks = Attack::all()?;
    let mut rows = Vec::new();
    for attack in attacks.into_iter().filter(is_wanted) {
        eprintln!("{}: {}", attack.name, attack.about);
        rows.push(field.measure(attack, wanted.long)?);
    }
    let Field { mut node, neighbour, .. } = field;
    let finished = neighbour.finish(LIMIT)?.ok().context("the neighbour was hurt")?;
    print_table(&rows, wanted);
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
            // What is started from here on is the hostile tenant's, and this program.
            keep_on(1, None)?;
        }
        Ok(Self { node, neighbour, worker, processor: apart.then_some(1) })
    }

    fn measure(&mut self, attack: Attack, long: bool) -> anyhow::Result<Row> {
        let (calm, seconds) = if long { (30, 10.0) } else { (10, 1.5) };
        let before = self.calm(calm)?;
        let from = self.windows().len();
        let processor = self.processor;
        let manner = Manner { seconds, long, limit: LIMIT, neighbour: self.worker, processor };
        let made = attack.make(&self.node, &manner)?;
        let during = self.rate(from);
        self.node
            .until("the attacker's lease's end", LIMIT, |node| Ok(node.leases()?.len() == 1))?;
        let workers = self.node.processes().into_iter().filter(|one| one.role == Role::Worker);
        ensure!(workers.count() == 1, "{}: a worker was left", attack.name);
        let after = self.calm(calm)?;
        ensure!(self.neighbour.runs()?, "{}: {}", attack.name, self.neighbour.stderr());
        let line = made.finished.stdout.lines().last().unwrap_or_default();
        let end = line.split_once(": ended, ").map_or("", |(_, end)| end);
        let end = match made.finished.code() {
            Some(0) => end.to_owned(),
            _ => format!("{}: {}", made.finished.status, made.finished.stderr.trim()),
        };
        let end = end.chars().filter(|c| !c.is_control()).take(120).collect();
        Ok(Row { attack, before, during, after, end })
    }

    /// Launches a second over some windows in which nothing else is done.
    fn calm(&self, windows: usize) -> anyhow::Result<f64> {
        let from = self.windows().len();
        let wanted = from + 1 + windows;
        let end = Instant::now() + LIMIT;
        while self.windows().len() < wanted {
            ensure!(
                Instant::now() < end,
                "the neighbour says nothing: {}",
                self.neighbour.stderr()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(self.rate(from))
    }

    /// Launches a second, of each window.
    fn windows(&self) -> Vec<f64> {
        let text = self.neighbour.stdout();
        let lines = text.lines().filter(|line| line.starts_with("meter: window="));
        let number = |line: &str, key: &str| -> Option<f64> {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
        };
        let rate =
            |line: &str| Some(number(line, "launches")? / number(line, "microseconds")? * 1e6);
        lines.filter_map(rate).collect()
    }

    /// The median since a window.
    fn rate(&self, from: usize) -> f64 {
        let mut windows = self.windows().split_off(from);
        windows.sort_by(f64::total_cmp);
        windows.get(windows.len() / 2).copied().unwrap_or(0.0)
    }
}

fn print_table(rows: &[Row], wanted: &Wanted) {
    let ratios: BTreeMap<&str, f64> =
        rows.iter().map(|row| (row.attack.name.as_str(), row.ratio())).collect();
    let apart = if wanted.together { "sharing all processors" } else { "on processors apart" };
    say(&format!(
        "\nLaunches a second of the neighbour, median of 100 ms; the two tenants {apart}.\n\n\
         | attack | before | during | after | during / before | like | of that | within 10 % | it ended |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    ));
    for row in rows {
        let Row { attack, before, during, after, end } = row;
        let ratio = row.ratio();
        let like = ratios.get(attack.like.as_str()).copied().unwrap_or(1.0);
        let verdict = if ratio >= ENOUGH {
            "met"
        } else if ratio >= ENOUGH * like {
            "no more than an honest one"
        } else {
            "missed"
        };
        say(&format!(
            "| {} | {before:.0} | {during:.0} | {after:.0} | {ratio:.2} | {} {like:.2} | {:.2} | {verdict} | {end} |",
            attack.name,
            attack.like,
            ratio / like
        ));
    }
    say("");
}

#[expect(clippy::print_stdout, reason = "a task's output")]
fn say(line: &str) {
    println!("{line}");
}
