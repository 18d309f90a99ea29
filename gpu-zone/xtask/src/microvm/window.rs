//! What a call over a window takes, beside a bare word over the same memory: one end on this host, the other in a
//! guest. And both between two threads of the host, and between two of the guest.
//!
//! Under emulation one end is interpreted, so a call over the window cannot be held against one on the host. What can
//! be: a call over the window takes half of what it takes with both ends on the host and half of what it takes with both
//! in the guest, if the window itself adds nothing.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gpuzone_image::cpio::Archive;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::image;
use super::suite::Wanted;

/// As the windows of zones are.
const WINDOW: u64 = 16 << 20;
/// Of the guest's start and all that it measures.
const LIMIT: Duration = Duration::from_secs(150);

/// Nanoseconds to and fro.
#[derive(Clone, Copy, Debug)]
struct Figures {
    bare: f64,
    small: f64,
    launch: f64,
}

impl Figures {
    /// From a line like `host bare=60 small=160 launch=170 ns`.
    fn of(whose: &str, text: &str) -> anyhow::Result<Self> {
        let missing = || format!("no figures of '{whose}' in: {text}");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(whose));
        let line = line.with_context(missing)?;
        let number = |name: &str| -> anyhow::Result<f64> {
            let mut words = line.split_whitespace();
            let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok(found.with_context(missing)?.parse()?)
        };
        Ok(Self { bare: number("bare")?, small: number("small")?, launch: number("launch")? })
    }

    fn say(self, whose: &str) -> String {
        let Self { bare, small, launch } = self;
        format!(
            "{whose:<33} bare word {bare:.0} ns, a call {small:.0} ns ({:.1} times), a launch {launch:.0} ns ({:.1} times)",
            small / bare,
            launch / bare
        )
    }
}

/// Measures, and says what it measured, a line each.
///
/// # Errors
/// When something cannot be built, or the guest does not answer.
pub(super) fn measure(repository: &Path, wanted: &Wanted) -> anyhow::Result<Vec<String>> {
    let what = ["--package", "gpuzone-wire", "--bench", "window"];
    let program = image::static_program(repository, "release", &what)?;
    let here = Command::new(&program).output().context("cannot run the benchmark of windows")?;
    let host = Figures::of("host", &String::from_utf8_lossy(&here.stdout))?;
    let (guest, window) = with_guest(repository, wanted, &program)?;
    let beside = |of: fn(Figures) -> f64| 2.0 * of(window) / (of(host) + of(guest));
    Ok(vec![
        host.say("call between threads of the host"),
        guest.say("the same of the guest"),
        window.say("host and guest, over a window"),
        format!(
            "{:<33} the word {:.2}, a call {:.2}, a launch {:.2} times the mean of the other two",
            "so over a window",
            beside(|figures| figures.bare),
            beside(|figures| figures.small),
            beside(|figures| figures.launch)
        ),
    ])
}

fn with_guest(
    repository: &Path,
    wanted: &Wanted,
    program: &Path,
) -> anyhow::Result<(Figures, Figures)> {
    let memory = memfd_create("window", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, WINDOW)?;
    // Both open it by this name while this process has it.
    let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let mut qemu = super::bench::guest(wanted, &image_with(repository, program)?);
    qemu.args([
        "-object",
        &format!("memory-backend-file,id=window,mem-path={path},size=16M,share=on"),
    ]);
    qemu.args(["-device", "pcie-root-port,id=bridge,chassis=1,pref64-reserve=32M,io-reserve=0"]);
    qemu.args(["-device", "ivshmem-plain,memdev=window,bus=bridge"]);
    let mut qemu = Ended(qemu.stdout(Stdio::piped()).spawn().context("cannot run QEMU")?);
    let mut asking = Command::new(program);
    asking.args(["ask", &path]).stdout(Stdio::piped());
    let mut asking = Ended(asking.spawn().context("cannot run the benchmark of windows")?);
    let asked = asking.text();
    let said = qemu.text();
    let asked =
        asked.with_context(|| format!("the guest said: {}", said.as_deref().unwrap_or("")))?;
    Ok((Figures::of("guest", &said?)?, Figures::of("window", &asked)?))
}

fn image_with(repository: &Path, program: &Path) -> anyhow::Result<PathBuf> {
    let work = repository.join("target/guest-image");
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev"] {
        archive.directory(folder);
    }
    archive.file("/init", image::stripped(program, &work)?, 0o755);
    let path = work.join("window.cpio");
    archive.write(&mut std::fs::File::create(&path)?)?;
    Ok(path)
}

/// A process that ends with this value.
struct Ended(Child);

impl Ended {
    /// All that it says, to its end.
    fn text(&mut self) -> anyhow::Result<String> {
        let began = Instant::now();
        while self.0.try_wait()?.is_none() {
            ensure!(began.elapsed() < LIMIT, "it goes on after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Less than a pipe holds.
        let mut text = String::new();
        self.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_where_they_stand() {
        let text = "[ 0.0] kernel says\r\nguest bare=1200 small=5600 launch=6000 ns\r\n";
        let Figures { bare, small, launch } = Figures::of("guest", text).unwrap();
        assert_eq!((bare, small, launch), (1200.0, 5600.0, 6000.0));
        assert!(Figures::of("window", text).is_err());
        assert!(Figures::of("guest", "guest bare=1 small=2").is_err());
    }
}
