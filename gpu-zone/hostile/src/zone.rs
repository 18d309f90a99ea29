//! Attacks at the zone itself and at what is around it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use gpuzone_wire::hello::SOCKET;
use rustix::process::{Pid, Signal, kill_process};

use crate::arena::Arena;
use crate::line::Line;

#[expect(clippy::unnecessary_wraps, reason = "an attack like the others")]
pub(crate) fn calm(arena: &Arena) -> anyhow::Result<String> {
    arena.wait();
    Ok("nothing".to_owned())
}

pub(crate) fn spin(arena: &Arena) -> anyhow::Result<String> {
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while arena.goes_on() {
                    std::hint::spin_loop();
                }
            });
        }
    });
    Ok(format!("threads={threads}"))
}

/// Bounded, for the machine's sake where no control group does it.
pub(crate) fn fork(arena: &Arena) -> anyhow::Result<String> {
    let most = arena.pick(200, 2_000);
    let mut children: Vec<Child> = Vec::new();
    let mut refused = 0_u32;
    while arena.goes_on() {
        if children.len() < most {
            let mut command = Command::new("/proc/self/exe");
            command.arg("sleep").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.spawn() {
                Ok(child) => children.push(child),
                Err(_) => refused += 1,
            }
        } else if let Some(mut child) = children.pop() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    // They are left to the zone's end.
    Ok(format!("alive={} refused={refused}", children.len()))
}

pub(crate) fn files(arena: &Arena) -> anyhow::Result<String> {
    let mut folders: Vec<PathBuf> =
        ["/proc", "/dev", "/sys", "/run", "/tmp", "/"].map(PathBuf::from).into();
    let (mut held, mut opened, mut refused) = (Vec::new(), 0_u64, 0_u64);
    while arena.goes_on() {
        let Some(folder) = folders.pop() else { break };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && folders.len() < 100_000 {
                folders.push(entry.path());
                continue;
            }
            if !kind.is_file() || !arena.goes_on() {
                continue;
            }
            for write in [false, true] {
                match File::options().read(true).write(write).open(entry.path()) {
                    Ok(file) => {
                        opened += 1;
                        held.push(file);
                    }
                    Err(_) => refused += 1,
                }
            }
            if held.len() > 100_000 {
                held.clear();
            }
        }
    }
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
        if held.len() > 200_000 {
            break;
        }
    }
    Ok(format!("opened={opened} refused={refused} held={}", held.len()))
}

pub(crate) fn fill(arena: &Arena) -> anyhow::Result<String> {
    let block = vec![0xA5_u8; 1 << 20];
    let each = arena.pick(64_u64, 1024);
    let mut written = Vec::new();
    for folder in ["/", "/usr", "/etc", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "."] {
        let path = Path::new(folder).join("gpuzone-hostile.fill");
        let mut bytes = 0_u64;
        if let Ok(mut file) = File::create(&path) {
            while bytes < each << 20 && file.write_all(&block).is_ok() {
                bytes += 1 << 20;
            }
            // The working directory is the user's own, so it is left as it was.
            if folder == "." {
                fs::remove_file(&path)?;
            }
        }
        let mut names = 0;
        while names < 2000 && folder != "." {
            if File::create(path.with_extension(names.to_string())).is_err() {
                break;
            }
            names += 1;
        }
        ensure!(
            (bytes == 0 && names == 0) || !["/", "/usr", "/etc"].contains(&folder),
            "{folder} can be written to"
        );
        written.push(format!("{folder}:{}Mi/{names}", bytes >> 20));
    }
    arena.wait();
    Ok(written.join(" "))
}

pub(crate) fn socket(arena: &Arena) -> anyhow::Result<String> {
    let slot = &arena.slot;
    let socket = slot.join(SOCKET);
    let above = slot.parent().context("a slot lies in a folder")?;
    let aside = above.join("aside");
    let temporary = Path::new("/tmp/cuda.sock");
    let mut open = Vec::new();
    let mut tried = |what: &'static str, done: std::io::Result<()>| {
        if done.is_ok() {
            open.push(what);
        }
    };
    tried("rename the socket", fs::rename(&socket, slot.join("other.sock")));
    tried("move the socket", fs::rename(&socket, temporary));
    tried("link the socket", fs::hard_link(&socket, slot.join("link.sock")));
    tried("remove the socket", fs::remove_file(&socket));
    tried("write to the socket", File::create(&socket).map(drop));
    tried("make a file", File::create(slot.join("new.sock")).map(drop));
    tried("make a folder", fs::create_dir(slot.join("folder")));
    tried("make a link", std::os::unix::fs::symlink("/etc", slot.join("new.sock")));
    tried("change the socket's mode", change_mode(&socket, 0o777));
    tried("change the slot's mode", change_mode(slot, 0o777));
    tried("rename the slot", fs::rename(slot, &aside));
    tried("remove the slot", fs::remove_dir(slot));
    tried("remove all of the slot", fs::remove_dir_all(slot));
    tried("make a slot beside it", fs::create_dir(above.join("other")));
    tried("bind beside it", std::os::unix::net::UnixListener::bind(slot.join("x")).map(drop));
    ensure!(open.is_empty(), "the zone lets its program: {}", open.join(", "));
    let others = fs::read_dir(above).map(|entries| entries.flatten().count()).unwrap_or(0);
    ensure!(others <= 1, "{others} slots are seen where one is this program's");
    arena.wait();
    Line::try_open(slot).context("the slot does not serve any more")?;
    Ok("all refused".to_owned())
}

fn change_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

pub(crate) fn agent(arena: &Arena) -> anyhow::Result<String> {
    let mut reached = Vec::new();
    let mut candidates: Vec<PathBuf> = Vec::new();
    let told = ["GPUZONE_RUN_DIR", "GPUZONE_STATE_DIR"].map(std::env::var_os);
    let run = arena.slot.ancestors().skip(1).take(4).map(PathBuf::from);
    let roots = told.into_iter().flatten().map(PathBuf::from).chain(run);
    for root in roots.chain(["/run", "/tmp", "/var/run"].map(PathBuf::from)) {
        for name in ["agent.sock", "broker.sock", "control.sock", "turns.sock", "zone/control.sock"]
        {
            candidates.push(root.join(name));
        }
        find_sockets(&root, 4, &mut candidates);
    }
    candidates.retain(|path| !path.starts_with(&arena.slot));
    candidates.sort();
    candidates.dedup();
    for path in &candidates {
        if UnixStream::connect(path).is_ok() {
            reached.push(path.display().to_string());
        }
    }
    ensure!(reached.is_empty(), "reached {}", reached.join(", "));
    for abstracted in unix_names() {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&abstracted)?;
        if UnixStream::connect_addr(&address).is_ok() {
            bail!("reached the abstract socket '{abstracted}'");
        }
    }
    signal_all()?;
    arena.wait();
    Ok(format!("sockets={} reached=0", candidates.len()))
}

fn find_sockets(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    use std::os::unix::fs::FileTypeExt;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_socket() {
            found.push(entry.path());
        } else if kind.is_dir() && depth > 0 {
            find_sockets(&entry.path(), depth - 1, found);
        }
    }
}

/// Abstract sockets that are seen; those of one's own network have names that begin with '@'.
fn unix_names() -> Vec<String> {
    let listed = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.filter_map(|name| name.strip_prefix('@')).map(str::to_owned).collect()
}

/// Kills whatever there is to be killed but itself.
fn signal_all() -> anyhow::Result<()> {
    let init = fs::read_to_string("/proc/1/cmdline").unwrap_or_default();
    if !init.contains("gpu-zone-sandbox") {
        // No zone of its own: these would be the machine's processes.
        return Ok(());
    }
    let own = rustix::process::getpid();
    for pid in 2..40_000 {
        let pid = Pid::from_raw(pid).filter(|pid| *pid != own);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // The zone's process 1 is not killed from within.
    let init = Pid::from_raw(1).context("there is a process 1")?;
    let _ = kill_process(init, Signal::KILL);
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

pub(crate) fn output(arena: &Arena) -> anyhow::Result<String> {
    let line = "\x1b]0;owned\x07\x1b[2J\x1b[31mgpu-zone: all is well\r\n\u{202e}".repeat(2000);
    let (mut out, mut error) = (std::io::stdout().lock(), std::io::stderr().lock());
    let mut bytes = 0_u64;
    while arena.goes_on() || bytes < 1 << 20 {
        out.write_all(line.as_bytes())?;
        error.write_all(line.as_bytes())?;
        bytes += 2 * line.len() as u64;
    }
    writeln!(out)?;
    Ok(format!("bytes={bytes}"))
}
