//! From the start of a sandbox to the end of `/bin/true` in it, beside the same without a
//! sandbox and beside `runc run`, on this machine: `cargo bench -p gpuzone-zone`.
#![allow(clippy::print_stdout, reason = "a program")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
    for (name, own_pids) in [("sandbox with its own pids", true), ("worker's sandbox", false)] {
        let mut begun = Vec::new();
        let whole = median(|| {
            let launcher = PathBuf::from(env!("CARGO_BIN_EXE_gpu-zone-sandbox"));
            let sandboxed = Sandboxed { launcher, spec: spec(own_pids), launch: launch()? };
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
    match runc() {
        Ok(Some(whole)) => show("runc run, start to exit", whole),
        Ok(None) => println!("skipped: runc run: runc is not installed, or this user is not root"),
        Err(error) => println!("skipped: runc run: {error}"),
    }
    Ok(())
}

fn show(name: &str, time: Duration) {
    println!("{name:<56} median {:>8.2} ms of {RUNS}", time.as_secs_f64() * 1e3);
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
    Ok(Launch {
        program: "/usr/bin/true".into(),
        arguments: Vec::new(),
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

/// The same program with the same files in a container with runc's own default configuration.
fn runc() -> Result<Option<Duration>, Box<dyn Error>> {
    let version = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) || !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    let bundle = tempfile::tempdir()?;
    let spec = Command::new("runc").arg("spec").current_dir(bundle.path()).status()?;
    if !spec.success() {
        return Err("`runc spec` failed".into());
    }
    let path = bundle.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["args"] = serde_json::json!(["/usr/bin/true"]);
    config["process"]["terminal"] = false.into();
    let rootfs = bundle.path().join("rootfs");
    for folder in ["proc", "dev", "sys", "usr"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    for link in ["lib", "lib64"] {
        let host = Path::new("/").join(link);
        if !host.is_symlink() {
            return Err("this host's /lib is no link into /usr, as the comparison needs".into());
        }
        std::os::unix::fs::symlink(std::fs::read_link(host)?, rootfs.join(link))?;
    }
    // Our zones have no such mount either, and not every host can give one.
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
        mounts.push(serde_json::json!({
            "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]
        }));
    }
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    let mut number = 0;
    let whole = median(|| {
        number += 1;
        let mut command = Command::new("runc");
        let name = format!("gpu-zone-bench-{}-{number}", std::process::id());
        command.arg("run").arg("--bundle").arg(bundle.path()).arg(name);
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
    })?;
    Ok(Some(whole))
}
