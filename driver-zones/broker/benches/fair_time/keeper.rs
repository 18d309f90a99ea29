//! Starts the broker and sees to it that nothing stays behind, however the benchmark ends: it is
//! the one that orphans go to, and it ends them all when nobody holds its standard input any more.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions};

const ROLE: &str = "FAIR_TIME_BROKER";
const DIRECTORY: &str = "FAIR_TIME_DIRECTORY";

/// A broker with a keeper around it, for files in `dir`.
pub(crate) fn start(broker: &Path, config: &Path, dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .arg("--config")
        .arg(config)
        .env(ROLE, broker)
        .env(DIRECTORY, dir)
        .stdin(Stdio::piped())
        // What the terminal sends goes to the benchmark; its end is what counts here.
        .process_group(0)
        .spawn()
        .expect("a keeper")
}

/// Is a keeper, if this process was started as one.
pub(crate) fn be_one_if_told() -> bool {
    let Some(broker) = std::env::var_os(ROLE).map(PathBuf::from) else { return false };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("a subreaper");
    let mut command = Command::new(broker);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::null());
    command.env_remove(ROLE).env_remove(DIRECTORY);
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "error");
    }
    let mut broker = command.spawn().expect("a broker");
    let mut rest = Vec::new();
    let _ = std::io::stdin().lock().read_to_end(&mut rest);
    end_all();
    // With all the others; this only says so.
    let _ = broker.wait();
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let _ = std::fs::remove_dir_all(dir);
    }
    true
}

/// Ends all children until there are none: those of a child that ended become ours.
fn end_all() {
    loop {
        for child in children() {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        if rustix::process::wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}

fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |process: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name, in brackets, may hold anything.
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        rest.nth(1) == Some(&own)
    };
    let pid =
        |process: std::fs::DirEntry| Pid::from_raw(process.file_name().to_str()?.parse().ok()?);
    processes.filter(is_child).filter_map(pid).collect()
}
