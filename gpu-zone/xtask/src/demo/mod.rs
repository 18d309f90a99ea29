//! The main job, from end to end, with everything checked that it claims.

mod story;

use std::time::{Duration, Instant};

use anyhow::Context;
use gpuzone_testkit::{Artifacts, Finished, Lease, Node, Options, Running};

use story::Story;

/// What each tenant is granted of the GPU's 16 GiB.
const MEMORY: &str = "4Gi";
const MEMORY_BYTES: u64 = 4 << 30;
const SHARE: &str = "50";
/// How long anything may take before the demo gives up.
const LIMIT: Duration = Duration::from_secs(40);

pub(crate) fn demo() -> anyhow::Result<()> {
    let mut story = Story::default();
    story.chapter("Building");
    Artifacts::build()?;
    let begin = Instant::now();

    story.chapter("A node with one GPU");
    story.tell(
        "A driver zone is where a GPU's driver lives. The agent starts one, with a SIMULATED GPU \
         of 16 GiB: it executes real PTX on the CPU, behind the same libcuda interface as a real \
         one, so every line of gpu-zone that runs here runs on hardware, too.",
    );
    let mut node = Node::prepare(&Options::default())?;
    end_on_ctrl_c(&node)?;
    node.start_agent().context("the agent does not start")?;
    let gpus = node.json(&["gpus"])?;
    story.show("gpu-zone gpus", &node.command(["gpus"])?.ok()?);
    let listed = gpus["gpus"].as_array().map_or(0, Vec::len);
    story.check(
        listed == 1 && gpus["gpus"][0]["backing"] == "simulated",
        "one GPU, and it says that it is simulated",
    );

    side_by_side(&mut story, &node)?;
    too_much_memory(&mut story, &node)?;
    crash(&mut story, &node)?;
    report(&mut story, &node)?;
    leave(&mut story, node)?;

    let seconds = begin.elapsed().as_secs_f64();
    story.check(seconds < 60.0, &format!("all of it in {seconds:.1} s"));
    story.end()
}

/// Ctrl-C ends the node's processes, which do not get it themselves, and then the demo.
fn end_on_ctrl_c(node: &Node) -> anyhow::Result<()> {
    let sweeper = node.sweeper();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("ctrl-c".into()).spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            sweeper.remove();
            eprintln!("\ninterrupted; everything that the demo started has ended");
            std::process::exit(130);
        }
    })?;
    Ok(())
}

fn start(node: &Node, tenant: &str, workload: &[&str]) -> anyhow::Result<Running> {
    Ok(node.spawn(tenant, MEMORY, SHARE, workload)?)
}

/// Ends well, with the result checked: the program itself compares it with the CPU's.
fn right(story: &mut Story, tenant: &str, finished: &Finished) {
    let line = finished.stdout.lines().last().unwrap_or_default();
    story.say(&format!("{tenant}: {line}"));
    if !finished.status.success() {
        story.say(finished.stderr.trim());
    }
    let what = format!("{tenant}'s result is what the CPU computes");
    story.check(finished.status.success() && line.contains(": ok"), &what);
}

fn side_by_side(story: &mut Story, node: &Node) -> anyhow::Result<()> {
    story.chapter("Two tenants on that GPU");
    story.tell(
        "acme and globex each get 4 GiB and half of the GPU's time. Their programs are ordinary \
         CUDA clients that know nothing of gpu-zone: the libcuda.so.1 that they load hands each \
         call to a worker process in the driver zone. No tenant opens the driver, so none can \
         get around its limits.",
    );
    let mut background = Vec::new();
    for tenant in ["acme", "globex"] {
        background.push((tenant, start(node, tenant, &["loop", "--seconds", "2"])?));
    }
    for (_, program) in &mut background {
        program.wait_for("loop: running", LIMIT)?;
    }
    let leases = node.leases()?;
    story.show("gpu-zone ps", &node.command(["ps"])?.ok()?);
    let active: Vec<&Lease> = leases.iter().filter(|lease| lease.state() == "active").collect();
    story.check(active.len() == 2, "two leases are active at the same time");
    let gpus: Vec<Option<u64>> = active.iter().map(|lease| lease.gpu()).collect();
    story.check(gpus == [Some(0), Some(0)], "both are on the same GPU");
    let workers: Vec<Option<u32>> = active.iter().map(|lease| lease.worker()).collect();
    story.check(
        workers.len() == 2 && workers[0].is_some() && workers[0] != workers[1],
        "each has a worker process of its own",
    );
    for (tenant, program) in background {
        right(story, tenant, &program.finish(LIMIT)?);
    }
    for program in ["matmul", "softmax", "reduce"] {
        let started = [
            ("acme", start(node, "acme", &[program])?),
            ("globex", start(node, "globex", &[program])?),
        ];
        for (tenant, running) in started {
            right(story, tenant, &running.finish(LIMIT)?);
        }
    }
    Ok(())
}

fn too_much_memory(story: &mut Story, node: &Node) -> anyhow::Result<()> {
    story.chapter("More memory than was granted");
    story.tell(
        "acme now allocates until it is refused. The GPU has 12 GiB more, but acme's lease has \
         not: the worker counts, outside of what the tenant can touch, and says no at the exact \
         byte.",
    );
    let finished = start(node, "acme", &["hog"])?.finish(LIMIT)?;
    story.say(&format!("acme: {}", finished.stdout.trim()));
    let got = finished.number("got_bytes")?;
    story.check(got == MEMORY_BYTES, &format!("refused at exactly {MEMORY_BYTES} bytes"));
    story.check(
        finished.stdout.contains("CUDA_ERROR_OUT_OF_MEMORY"),
        "with the error that CUDA programs expect",
    );
    Ok(())
}

fn crash(story: &mut Story, node: &Node) -> anyhow::Result<()> {
    story.chapter("A crash is the crasher's own");
    story.tell(
        "globex computes. In the middle of it, a kernel of acme writes where it has no memory. \
         On a GPU that is shared in the usual ways, such a fault can end everybody's work.",
    );
    let mut globex = start(node, "globex", &["loop", "--seconds", "3"])?;
    globex.wait_for("loop: running", LIMIT)?;
    let acme = start(node, "acme", &["crash"])?.finish(LIMIT)?;
    story.say(&format!("acme: {}", acme.text().trim()));
    story.check(acme.code() == Some(42), "acme's program gets CUDA_ERROR_ILLEGAL_ADDRESS");
    story.check(globex.runs()?, "globex is still computing");
    let again = start(node, "acme", &["matmul"])?.finish(LIMIT)?;
    story.say("acme's next process has a fresh context and works:");
    right(story, "acme", &again);
    right(story, "globex", &globex.finish(LIMIT)?);
    Ok(())
}

fn report(story: &mut Story, node: &Node) -> anyhow::Result<()> {
    story.chapter("Who used what");
    story.tell(
        "The driver zone measured what each tenant held and used; the ledger has it, for people \
         and for the bill.",
    );
    story.show("gpu-zone report", &node.command(["report"])?.ok()?);
    let report = node.json(&["report"])?;
    let rows = report["rows"].as_array().context("the report has no rows")?;
    let of = |tenant: &str, what: &str| {
        let row = rows.iter().find(|row| row["tenant"] == tenant);
        row.and_then(|row| row[what].as_u64()).unwrap_or(0)
    };
    story.check(rows.len() == 2, "two tenants are billed");
    story.check(report["includes_simulated"] == true, "the report says that the GPU is simulated");
    // Side by side: 1 loop and 3 programs each; then acme's hog, crash and matmul; globex's loop.
    let leases = (of("acme", "leases"), of("globex", "leases"));
    story.check(leases == (7, 5), "each lease is counted once");
    for tenant in ["acme", "globex"] {
        let used = of(tenant, "launches") > 0 && of(tenant, "busy_nanoseconds") > 0;
        let copied = of(tenant, "bytes_to_device") > 0 && of(tenant, "bytes_from_device") > 0;
        story.check(
            used && copied,
            &format!("{tenant}'s launches, GPU time and copies are counted"),
        );
    }
    story.check(of("acme", "refused_allocations") > 0, "acme's refused allocations are counted");
    story.check(of("globex", "refused_allocations") == 0, "globex has none");
    story.check(of("acme", "peak_used_bytes") == MEMORY_BYTES, "acme's peak is its whole lease");
    Ok(())
}

fn leave(story: &mut Story, mut node: Node) -> anyhow::Result<()> {
    story.chapter("Nothing is left behind");
    let ended = node.stop_agent()?;
    let clean = ended.as_ref().is_some_and(|agent| agent.status.success());
    story.check(clean, "the agent ends when it is told to, with exit code 0");
    let leftovers = node.leftovers();
    for leftover in &leftovers {
        story.say(&format!("left: {leftover}"));
    }
    story.check(leftovers.is_empty(), "no process, socket or lease is left");
    let folders = [node.folder().to_owned(), node.simulated_state().to_owned()];
    node.remove()?;
    story.check(folders.iter().all(|folder| !folder.exists()), "and no file");
    Ok(())
}
