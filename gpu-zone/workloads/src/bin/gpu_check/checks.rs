//! The checks, each a line that says what was seen.

use std::process::Child;

use anyhow::{Context, ensure};
use gpuzone_core::MemoryBytes;
use gpuzone_workloads::compare::{rows, table};
use serde_json::{Map, Value, json};

use crate::node::{Node, end};
use crate::{Arguments, Driver};

/// Programs that check their own results, and say a sum of them.
const CORPUS: [&[&str]; 6] = [
    &["vector-add", "-n", "1000000"],
    &["saxpy", "-n", "1000000"],
    &["matmul", "-n", "192"],
    &["softmax", "--rows", "256", "--columns", "1000"],
    &["reduce", "-n", "1000000"],
    &["histogram", "-n", "1000000"],
];

/// Does all checks; whether all were passed. Goals that are missed are shown, and fail nothing.
#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn all(node: &Node, arguments: &Arguments) -> anyhow::Result<bool> {
    println!("{}", about(node, arguments)?);
    let memory = arguments.memory();
    let checks: [(&str, &dyn Fn() -> anyhow::Result<String>); 5] = [
        ("the corpus, direct and mediated", &|| corpus(node, memory)),
        ("what NVML shows in a lease", &|| shown(node, memory)),
        ("the memory limit", &|| limit(node, memory)),
        ("memory of the tenant before", &|| residue(node, arguments)),
        ("an illegal access beside another lease", &|| contained(node, memory)),
    ];
    let mut passed = true;
    for (name, check) in checks {
        match check() {
            Ok(seen) => println!("ok      {name}: {seen}"),
            Err(error) => {
                println!("FAILED  {name}: {error:#}");
                passed = false;
            }
        }
    }
    println!("\n{}", figures(node, arguments)?);
    Ok(passed)
}

fn about(node: &Node, arguments: &Arguments) -> anyhow::Result<String> {
    let listed = node.command(&["gpus", "--format", "json"])?.ok()?;
    let listed: Value = serde_json::from_str(&listed)?;
    let names = listed["gpus"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|gpu| gpu["name"].as_str()).collect();
    let lease = node.mediated("check", &shown_memory(arguments.memory()), &["smi"])?;
    let smi: Value = serde_json::from_str(&end(lease)?.ok().context("no lease can be had")?)?;
    let kind = match arguments.driver {
        Driver::Nvidia => "NVIDIA's driver",
        Driver::Simulated => "SIMULATED GPUs, which show nothing of a real one; driver",
    };
    let trial = if arguments.quick { "; a quick trial, whose figures say nothing" } else { "" };
    Ok(format!("{} on {kind} {}{trial}\n", names.join(", "), smi["driver"]))
}

fn shown_memory(memory: MemoryBytes) -> String {
    format!("{}Mi", memory.get() >> 20)
}

/// What a program says that is the same whenever and wherever it runs.
fn lasting(said: &str) -> String {
    said.split_whitespace().filter(|word| !word.starts_with("ms=")).collect::<Vec<_>>().join(" ")
}

fn corpus(node: &Node, memory: MemoryBytes) -> anyhow::Result<String> {
    for words in CORPUS {
        let direct = end(node.direct(words)?)?.ok();
        let direct = direct.with_context(|| format!("{} on the driver itself", words[0]))?;
        let mediated = end(node.mediated("check", &shown_memory(memory), words)?)?.ok();
        let mediated = mediated.with_context(|| format!("{} in a lease", words[0]))?;
        let (direct, mediated) = (lasting(&direct), lasting(&mediated));
        ensure!(direct == mediated, "direct it said '{direct}', and mediated '{mediated}'");
    }
    Ok(format!("{} programs say the same", CORPUS.len()))
}

fn shown(node: &Node, memory: MemoryBytes) -> anyhow::Result<String> {
    let lease = node.mediated("check", &shown_memory(memory), &["smi", "--memory", "64Mi"])?;
    let listing: Value = serde_json::from_str(&end(lease)?.ok()?)?;
    let gpu = &listing["gpus"][0];
    ensure!(gpu["total"] == memory.get(), "the lease's memory is not the total: {gpu}");
    let processes = gpu["processes"].as_array().map_or(0, Vec::len);
    ensure!(processes == 1, "{processes} processes are listed: {gpu}");
    ensure!(gpu["set_persistent"]["error"].is_string(), "a setting was changed: {gpu}");
    Ok(format!("{} MiB in all, {} in use by itself", memory.get() >> 20, gpu["used"]))
}

/// As much as the limit less what the context takes, and never more.
fn limit(node: &Node, memory: MemoryBytes) -> anyhow::Result<String> {
    let said = end(node.mediated("check", &shown_memory(memory), &["hog"])?)?.ok()?;
    let word = said.split_whitespace().find_map(|word| word.strip_prefix("got_bytes="));
    let got: u64 = word.context("it did not say how much it got")?.parse()?;
    ensure!(got <= memory.get(), "{got} bytes were given out of {}", memory.get());
    ensure!(got >= memory.get() / 2, "only {got} bytes were given out of {}", memory.get());
    Ok(format!("{got} bytes of {}", memory.get()))
}

fn residue(node: &Node, arguments: &Arguments) -> anyhow::Result<String> {
    let much = shown_memory(arguments.memory());
    let filled = format!("{}Mi", (arguments.memory().get() >> 20) * 3 / 4);
    let rounds = if arguments.quick { 1 } else { 3 };
    let hold = ["hold", "--memory", &filled, "--seconds", "0.1"];
    for round in 0..rounds {
        end(node.mediated("before", &much, &hold)?)?.ok()?;
        let seen = end(node.mediated("after", &much, &["leak-check"])?)?.ok();
        seen.with_context(|| format!("round {round}"))?;
    }
    Ok(format!("{filled} of a pattern left no byte, {rounds} time(s)"))
}

fn contained(node: &Node, memory: MemoryBytes) -> anyhow::Result<String> {
    let much = shown_memory(memory);
    let neighbour = node.mediated("honest", &much, &["loop", "--seconds", "4"])?;
    let mut crashes = 0;
    for _ in 0..3 {
        let crash = end(node.mediated("faulty", &much, &["crash"])?)?;
        ensure!(crash.code == Some(42), "the access was not refused: {crash:?}");
        crashes += 1;
    }
    let said = end(neighbour)?.ok().context("the neighbour noticed")?;
    end(node.mediated("faulty", &much, &["matmul"])?)?.ok().context("the next lease")?;
    Ok(format!("{crashes} of them; the neighbour: {}", said.lines().last().unwrap_or("?")))
}

fn figures(node: &Node, arguments: &Arguments) -> anyhow::Result<String> {
    let sizes = if arguments.quick { vec!["64"] } else { vec!["256", "1024", "4096"] };
    let sizes = match arguments.driver {
        Driver::Nvidia => sizes,
        // An interpreter on a processor.
        Driver::Simulated => vec!["64", "128"],
    };
    let mut words = vec!["figures"];
    sizes.iter().for_each(|size| words.extend(["--matmul", size]));
    if arguments.quick {
        words.extend(["--launches", "2000", "--calls", "400", "--rounds", "1", "--copy", "1Mi"]);
    } else if arguments.driver == Driver::Nvidia {
        // They are short, and the first ones are not like the others.
        words.extend(["--rounds", "51"]);
    }
    let (mut direct, mut mediated) = (Vec::new(), Vec::new());
    // In turns, for a machine is not the same from one minute to the next.
    for _ in 0..if arguments.quick { 1 } else { 3 } {
        direct.push(measured(node.direct(&words)?)?);
        let memory = shown_memory(arguments.memory());
        mediated.push(measured(node.mediated("check", &memory, &words)?)?);
    }
    let (direct, mediated) = (medians(&direct), medians(&mediated));
    let same = direct["workload_checksum"] == mediated["workload_checksum"];
    ensure!(same, "the workload's results differ: {direct} {mediated}");
    Ok(table(&rows(&direct, &mediated)))
}

fn measured(program: Child) -> anyhow::Result<Value> {
    serde_json::from_str(&end(program)?.ok()?).context("no figures")
}

/// Of each figure the median of all times that it was measured.
fn medians(times: &[Value]) -> Value {
    let names = times.first().and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let median = |name: &String| {
        let mut values: Vec<f64> = times.iter().filter_map(|all| all[name].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        (name.clone(), json!(values.get(values.len() / 2)))
    };
    names.map(median).collect()
}
