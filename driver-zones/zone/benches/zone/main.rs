//! What a zone costs, beside the same without one and beside `runc run`, on this machine: from its
//! start to the end of `/usr/bin/true` in it, and the memory of one that is idle.
//! `cargo bench -p gpuzone-zone`.
#![allow(clippy::print_stdout, reason = "a program")]

mod maker;
mod memory;
mod runc;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpuzone_zone::sandbox::{
    Filter, Launch, Limits, Mount, Policy, Root, Sandboxed, Spec, UserRanges,
};

const RUNS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bare = median(|| {
        let process = launch()?.start()?;
        runtime.block_on(process.exited())?;
        Ok(())
    })?;
    show("no sandbox, start to exit", bare);
    let folder = tempfile::tempdir()?;
    for (name, own_pids, record) in [
        ("sandbox with its own pids", true, None),
        ("the same, written down by its launcher", true, Some(folder.path())),
        ("worker's sandbox", false, None),
    ] {
        let mut begun = Vec::new();
        let whole = median(|| {
            let launcher = PathBuf::from(env!("CARGO_BIN_EXE_gpu-zone-sandbox"));
            let spec = Spec { record: record.map(Path::to_owned), ..spec(own_pids) };
            let sandboxed = Sandboxed { launcher, spec, launch: launch()? };
            let start = Instant::now();
            // Returns when the kernel has loaded the program: its first instruction is next.
            let (process, _) = sandboxed.start()?;
            begun.push(start.elapsed());
            runtime.block_on(process.exited())?;
            Ok(())
        })?;
        begun.sort();
        show(&format!("{name}, start to first instruction"), begun[begun.len() / 2]);
        show(&format!("{name}, start to exit"), whole);
    }
    maker::show(&runtime)?;
    match runc::Bundle::make()? {
        Some(bundle) => {
            let whole = median(|| bundle.run("/usr/bin/true").map(drop));
            whole.map_or_else(
                |error| println!("skipped: runc run: {error}"),
                |whole| show("runc run, start to exit", whole),
            );
            memory::show_runc(&bundle)?;
        }
        None => println!("skipped: runc run: runc is not installed, or this user is not root"),
    }
    for own_pids in [true, false] {
        memory::show_zone(&runtime, own_pids)?;
    }
    Ok(())
}

fn show(name: &str, time: Duration) {
    println!("{name:<66} median {:>8.2} ms of {RUNS}", time.as_secs_f64() * 1e3);
}

fn median(mut run: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[RUNS / 2])
}

fn null() -> std::io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

fn launch() -> std::io::Result<Launch> {
    launch_of(&["/usr/bin/true"])
}

fn launch_of(command: &[&str]) -> std::io::Result<Launch> {
    Ok(Launch {
        program: command.iter().take(1).collect(),
        arguments: command.iter().skip(1).map(Into::into).collect(),
        environment: BTreeMap::new(),
        stdin: null()?,
        stdout: null()?,
        stderr: null()?,
        inherit: Vec::new(),
    })
}

fn spec(own_pids: bool) -> Spec {
    let folders = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache"];
    let folders = folders.into_iter().filter(|path| !Path::new(path).is_symlink());
    Spec {
        zone: "bench".to_owned(),
        root: Root::Empty,
        mounts: folders.map(Mount::read_if_there).collect(),
        devices: Vec::new(),
        private: Vec::new(),
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids,
        users: Some(UserRanges::default()),
        record: None,
        filter: if own_pids { Filter::Workload } else { Filter::Worker },
        limits: Limits {
            memory: Some(4 << 30),
            pids: Some(1024),
            cpu: Some(400),
            scratch: Some(1 << 30),
            ..Limits::default()
        },
        policy: Policy::default(),
    }
}
