//! Several leases compute, and something is killed at a random moment: whose it is not does not
//! notice, what was held comes back, and the books balance.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::{Finished, HarnessError, Lease, Node, Options, Process, Role, Running, processes};

/// Leases in a round, each a tenant of its own.
const LEASES: usize = 4;
const GPUS: [&str; 2] = ["4Gi", "4Gi"];
const MEMORY: u64 = 1 << 30;
/// Everything is waited for this long, on whatever machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The program of the first lease.
    Program,
    /// `gpu-zone run` of the first lease.
    Holder,
    /// The worker of the first lease.
    Worker,
    /// The driver zone's broker.
    Broker,
    /// The agent; another is started after a while.
    Agent,
}

const VICTIMS: [Victim; 5] =
    [Victim::Program, Victim::Holder, Victim::Worker, Victim::Broker, Victim::Agent];

/// What went wrong in a round.
#[derive(Debug, thiserror::Error)]
#[error("round {round} ({victim:?} killed after {after:?}): {what}")]
pub struct Failed {
    /// Which round, from 0.
    pub round: u32,
    /// What was killed.
    pub victim: Victim,
    /// How long after all leases computed.
    pub after: Duration,
    /// What was not as it should be.
    pub what: String,
}

/// Why rounds ended early.
#[derive(Debug, thiserror::Error)]
pub enum KillsError {
    /// Something was not as it should be.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// The harness could not go on.
    #[error(transparent)]
    Harness(#[from] HarnessError),
}

/// What the rounds did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds.
    pub rounds: u32,
    /// Processes that were there to be killed.
    pub killed: u32,
    /// Programs that went on to their end and were right.
    pub survived: u32,
    /// Their kernel launches, each counted once by the ledger.
    pub launches: u64,
}

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A round as it was drawn.
struct Plan {
    round: u32,
    victim: Victim,
    after: Duration,
    /// How long there is no agent.
    without: Duration,
}

impl Plan {
    fn failed(&self, what: impl Into<String>) -> KillsError {
        let Self { round, victim, after, without: _ } = *self;
        Failed { round, victim, after, what: what.into() }.into()
    }

    fn expect(&self, holds: bool, what: impl FnOnce() -> String) -> Result<(), KillsError> {
        if holds { Ok(()) } else { Err(self.failed(what())) }
    }

    fn tenant(&self, slot: usize) -> String {
        format!("t{}-{slot}", self.round)
    }
}

/// Plays `rounds` rounds on a node of its own; `told` hears of each.
///
/// # Errors
/// When something is not as it should be; the seed makes the same rounds again.
pub fn play(rounds: u32, seed: u64, mut told: impl FnMut(&Tally)) -> Result<Tally, KillsError> {
    let gpus = GPUS.map(str::to_owned).to_vec();
    let mut node = Node::start(&Options { gpus, ..Options::default() })?;
    // A generator of this kind needs bits to begin with.
    let mut random = Random(seed | 1 << 63);
    let mut tally = Tally::default();
    for round in 0..rounds {
        // Each kind in its turn, so that few rounds have all of them.
        let victim = VICTIMS[round as usize % VICTIMS.len()];
        let (after, without) = (random.below(1_100), random.below(300));
        let (after, without) = (Duration::from_millis(after), Duration::from_millis(without));
        play_one(&mut node, &Plan { round, victim, after, without }, &mut tally)?;
        tally.rounds += 1;
        told(&tally);
    }
    end(node, &tally)?;
    Ok(tally)
}

fn play_one(node: &mut Node, plan: &Plan, tally: &mut Tally) -> Result<(), KillsError> {
    let mut running = Vec::new();
    for slot in 0..LEASES {
        let seconds = format!("{:.1}", 0.6 + 0.1 * f64::from(u8::try_from(slot).unwrap_or(0)));
        let work = ["loop", "-n", "32", "--seconds", &seconds];
        running.push(node.spawn(&plan.tenant(slot), "1Gi", "20", &work)?);
    }
    for program in &mut running {
        program.wait_for("loop: running", LIMIT)?;
    }
    let leases = node.leases()?;
    let first = leases.iter().find(|lease| lease.tenant() == plan.tenant(0));
    std::thread::sleep(plan.after);
    tally.killed += u32::try_from(kill(node, plan, first, &running[0])?).unwrap_or(0);
    let ended = running.into_iter().map(|program| program.finish(LIMIT));
    let ended = ended.collect::<Result<Vec<Finished>, _>>()?;
    node.until("the leases' end", LIMIT, |node| Ok(node.leases()?.is_empty()))?;
    nothing_is_held(node, plan)?;
    for (slot, program) in ended.iter().enumerate() {
        tally.launches += balanced(node, plan, slot, program)?;
        tally.survived += u32::from(program.code() == Some(0));
    }
    Ok(())
}

/// Kills the victim, if it is still there; how many processes that were.
fn kill(
    node: &mut Node,
    plan: &Plan,
    lease: Option<&Lease>,
    first: &Running,
) -> Result<usize, HarnessError> {
    let pids =
        |pids: Vec<u32>| pids.into_iter().filter(|pid| processes::send(*pid, Signal::KILL)).count();
    Ok(match plan.victim {
        Victim::Program => {
            // What belongs to the lease has its slot in its environment.
            let named = lease.map(|lease| Process::of(Path::new(lease.id()))).unwrap_or_default();
            let programs = named.into_iter().filter(|process| process.role == Role::Program);
            pids(programs.map(|process| process.pid).collect())
        }
        Victim::Holder => pids(vec![first.pid()]),
        Victim::Worker => pids(lease.and_then(Lease::worker).into_iter().collect()),
        Victim::Broker => node.kill(Role::Broker),
        Victim::Agent => {
            node.kill_agent()?;
            std::thread::sleep(plan.without);
            node.start_agent()?;
            1
        }
    })
}

/// All memory of all GPUs is free again, in the agent's books and on the devices.
fn nothing_is_held(node: &Node, plan: &Plan) -> Result<(), KillsError> {
    let free = |gpu: &Value| {
        gpu["free_memory_bytes"] == gpu["memory_bytes"]
            && gpu["free_share_percent"] == 100
            && gpu["used_memory_bytes"] == 0
            && gpu["leases"] == 0
    };
    let mut seen = Value::Null;
    let came_back = node.until("all memory", LIMIT, |node| {
        seen = node.json(&["gpus"])?;
        Ok(seen["gpus"].as_array().is_some_and(|gpus| gpus.iter().all(free)))
    });
    came_back.map_err(|_| plan.failed(format!("memory did not come back: {seen}")))?;
    let healthy = |gpu: &Value| gpu["health"] == "healthy";
    let all_are = seen["gpus"].as_array().is_some_and(|gpus| gpus.iter().all(healthy));
    plan.expect(all_are, || format!("a GPU is out of service: {seen}"))
}

/// What a tenant's program did and what the ledger has of it; its launches, if it lived.
fn balanced(node: &Node, plan: &Plan, slot: usize, program: &Finished) -> Result<u64, KillsError> {
    let own = slot == 0 && !matches!(plan.victim, Victim::Broker | Victim::Agent);
    let lived = program.code() == Some(0);
    plan.expect(lived || own, || format!("somebody else's kill was noticed: {}", program.text()))?;
    let tenant = plan.tenant(slot);
    let report = node.json(&["report", "--by", "lease", "--tenant", &tenant])?;
    let rows = report["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    plan.expect(rows.len() == 1, || format!("one lease, one row: {report}"))?;
    let row = &rows[0];
    let lasted = u128::from(row["lease_nanoseconds"].as_u64().unwrap_or(0));
    let reserved = row["reserved_byte_seconds"].as_u64().map(u128::from);
    let billed = reserved == Some(u128::from(MEMORY) * lasted / 1_000_000_000);
    plan.expect(billed && lasted > 0 && row["end"].is_string(), || format!("the bill: {row}"))?;
    let counted = row["launches"].as_u64().unwrap_or(u64::MAX);
    if !lived {
        return Ok(0);
    }
    let done = program.number("iterations")?;
    plan.expect(counted == done, || format!("{done} launches, {counted} counted"))?;
    Ok(done)
}

/// Nothing is wrong with the node afterwards, and nothing of it is left.
fn end(mut node: Node, tally: &Tally) -> Result<(), KillsError> {
    let whole = ["hog", "--step", "512Mi", "--expect", GPUS[0]];
    node.run("last", GPUS[0], "100", &whole)?.ok()?;
    node.command(["audit", "verify"])?.ok()?;
    let report = node.json(&["report"])?;
    let total = report["total"]["launches"].as_u64().unwrap_or(0);
    let nothing = Plan {
        round: tally.rounds,
        victim: Victim::Agent,
        after: Duration::ZERO,
        without: Duration::ZERO,
    };
    // Those that were killed had launched some, too.
    nothing.expect(total >= tally.launches, || format!("{total} of {}", tally.launches))?;
    node.stop_agent()?;
    let left = node.leftovers();
    nothing.expect(left.is_empty(), || format!("left behind: {left:?}"))?;
    Ok(node.remove()?)
}
