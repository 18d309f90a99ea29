//! Workload zones in microVMs, from end to end: `cargo xtask microvm-suite --workloads`. The driver zone
//! is a sandbox here, so that what is shown is of the workload zones alone.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use gpuzone_testkit::{Finished, Node, Options, Role, Running};

use super::image::{self, Contents, For};
use super::layout;
use super::suite::{LIMIT, Wanted, kill, sees_its_lease, timed};

/// What the programs' root has of the host's, with the libraries that they need.
const TOOLS: [&str; 6] =
    ["/bin/sh", "/usr/bin/cat", "/usr/bin/sleep", "/usr/bin/tail", "/usr/bin/wc", "/usr/bin/head"];
/// `gpuzone-workload` and the folder of the kernels' PTX in the programs' root. Not where they are on the host: that may be
/// below /tmp, which is a program's own in its machine.
const PROGRAM: &str = "/opt/gpu-zone/gpuzone-workload";
const KERNELS: &str = "/opt/gpu-zone/kernels";
const INPUT: usize = 300_000;
/// Processes of one machine that are connected at once, at most.
const WINDOWS: usize = 4;

struct Suite {
    node: Node,
    root: PathBuf,
}

/// Runs them.
///
/// # Errors
/// With what did not hold.
pub(crate) fn run(repository: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    let image = repository.join("target/guest-image/workload.cpio");
    let (what, modules) = (For::Workloads, wanted.modules.clone());
    image::build(repository, &Contents { what, output: image.clone(), driver: None, modules })?;
    let mut suite = Suite::prepare(repository, wanted, &image, "")?;
    let done = suite.all();
    suite.explained(done)?;
    let driver = repository.join("target/guest-image/zone.cpio");
    let (what, modules) = (For::Driver, wanted.modules.clone());
    image::build(repository, &Contents { what, output: driver.clone(), driver: None, modules })?;
    let zone = format!(
        "[zone.microvm]\nkernel = \"vmlinuz\"\nimage = {driver:?}\nqemu = {:?}\naccelerator = {:?}\nmemory = \"384Mi\"\nwindows = {WINDOWS}\n",
        wanted.qemu, wanted.accelerator,
    );
    let mut suite = Suite::prepare(repository, wanted, &image, &zone)?;
    let done = timed("beside a driver zone in a machine of its own", || suite.computes());
    suite.explained(done)?;
    suite.ends()
}

impl Suite {
    /// Kernel and image are in the node's own folder, so that what was left of them would be found.
    fn prepare(
        repository: &Path,
        wanted: &Wanted,
        image: &Path,
        driver_zone: &str,
    ) -> anyhow::Result<Self> {
        let configuration = format!(
            "[usage]\nflush_seconds = 0.2\n[tenants.default]\n[zone.workload_microvm]\nkernel = \"vmlinuz\"\nimage = \"workload.cpio\"\nqemu = {:?}\naccelerator = {:?}\nmemory = \"384Mi\"\nwindows = {WINDOWS}\n{driver_zone}",
            wanted.qemu, wanted.accelerator,
        );
        let mut node = Node::prepare(&Options { gpus: vec!["1Gi".into()], configuration })?;
        std::fs::copy(image, node.folder().join("workload.cpio"))
            .context("cannot copy the image")?;
        std::fs::copy(&wanted.kernel, node.folder().join("vmlinuz")).context("the kernel")?;
        let root = node.folder().join("root");
        let work = repository.join("target/guest-image");
        let program = node.artifacts().file("gpuzone-workload")?.to_owned();
        put(&root, Path::new(PROGRAM), &image::stripped(&program, &work)?)?;
        for tool in TOOLS.map(Path::new) {
            put(&root, tool, tool)?;
        }
        for tool in TOOLS.map(PathBuf::from).into_iter().chain([program]) {
            for library in image::libraries(&tool)? {
                put(&root, &library, &library)?;
            }
        }
        for kernel in std::fs::read_dir(node.artifacts().kernels())? {
            let kernel = kernel?;
            put(&root, &Path::new(KERNELS).join(kernel.file_name()), &kernel.path())?;
        }
        symlink("usr/bin/tail", root.join("link"))?;
        for (name, text) in [("folder", "#!/tmp\n"), ("lost", "#!/no/interpreter\n")] {
            std::fs::write(root.join(name), text)?;
            std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755))?;
        }
        node.start_agent_within(LIMIT)?;
        Ok(Self { node, root })
    }

    /// `gpu-zone`, whose programs find their kernels in the root.
    fn cli<'a>(
        &self,
        words: impl IntoIterator<Item = &'a &'a str>,
    ) -> anyhow::Result<std::process::Command> {
        let mut command = self.node.cli(words)?;
        command.env("GPUZONE_KERNELS", KERNELS);
        Ok(command)
    }

    /// `sh -c SCRIPT` in a machine of its own; `more` are options of `gpu-zone run`.
    fn start(&self, tenant: &str, more: &[&str], script: &str) -> anyhow::Result<Running> {
        Ok(Running::start(self.command(tenant, more, script)?)?)
    }

    fn command(
        &self,
        tenant: &str,
        more: &[&str],
        script: &str,
    ) -> anyhow::Result<std::process::Command> {
        let root = self.root.to_str().context("the root's path")?;
        let kind = ["run", "--zone-kind", "microvm", "--rootfs", root, "--tenant", tenant];
        let lease = ["--memory", "128Mi", "--share", "20"];
        let program = ["--", "/bin/sh", "-c", script];
        let words = kind.iter().chain(&lease).chain(more).chain(&program);
        self.cli(words)
    }

    /// Runs to the end.
    fn output(&self, tenant: &str, more: &[&str], script: &str) -> anyhow::Result<Finished> {
        Ok(self.start(tenant, more, script)?.finish(LIMIT)?)
    }

    /// A program that computes until it is ended.
    fn computing(&self, tenant: &str) -> anyhow::Result<Running> {
        let script = format!("{PROGRAM} loop --seconds 120");
        let mut running = self.start(tenant, &[], &script)?;
        running.wait_for("loop: running", LIMIT)?;
        Ok(running)
    }

    /// Processes whose words have this, but for launchers.
    fn processes(&self, words: &str) -> Vec<u32> {
        let all = self.node.processes().into_iter();
        let fit =
            all.filter(|process| process.role == Role::Program && process.command.contains(words));
        fit.map(|process| process.pid).collect()
    }

    fn nothing_is_left(&self) -> anyhow::Result<()> {
        Ok(self.node.until("zones to be gone", LIMIT, |node| {
            let gone = node.processes().iter().all(|process| {
                let of_drivers = process.command.contains("guest=driver-zone");
                let of_ours = matches!(process.role, Role::Program | Role::Cli)
                    || process.command.contains("gpu-zone-vm");
                of_drivers || !of_ours
            });
            Ok(gone && node.leases()?.is_empty())
        })?)
    }

    fn all(&mut self) -> anyhow::Result<()> {
        timed("a program computes in a machine of its own", || self.computes())?;
        timed("its root is an image by its digest, and NVML tells of its lease", || {
            self.with_an_image()
        })?;
        timed("its processes share it", || self.several())?;
        timed("a hostile guest harms nobody", || self.hostile())?;
        timed("a signal reaches it, and a reader that left", || self.signals())?;
        timed("what cannot be is refused", || self.refusals())?;
        timed("its limits hold", || self.limits())?;
        timed("whoever is killed, nothing is left", || self.kills())?;
        timed("the agent is killed, and the worker", || self.agent_and_worker())?;
        self.ends()
    }

    fn ends(&mut self) -> anyhow::Result<()> {
        self.node.stop_agent()?;
        Ok(self.node.until("nothing to be left", LIMIT, |node| Ok(node.leftovers().is_empty()))?)
    }

    fn explained(&self, done: anyhow::Result<()>) -> anyhow::Result<()> {
        if done.is_err() {
            eprintln!("== agent\n{}", self.node.agent_log());
        }
        done
    }

    /// And its input, output, error and exit code are carried.
    fn computes(&self) -> anyhow::Result<()> {
        let input = self.node.folder().join("input");
        std::fs::write(&input, vec![b'x'; INPUT])?;
        let script = format!(
            "echo bytes=$(wc -c); read version </proc/version; echo \"$version\"; echo links=$(head -c 4 /link | wc -c); {PROGRAM} matmul && head -c 200000 /dev/zero | tail -c 200000 && echo said >&2; exit 3"
        );
        let mut command = self.command("acme", &[], &script)?;
        let output =
            command.stdin(File::open(&input)?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = output.spawn()?.wait_with_output()?;
        let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(out).replace('\0', "");
        ensure!(output.status.code() == Some(3), "{}: {text}{err}", output.status);
        ensure!(
            text.contains(&format!("bytes={INPUT}")) && text.contains("links=4"),
            "{text}{err}"
        );
        ensure!(err.contains("said"), "{text}{err}");
        ensure!(out.iter().filter(|byte| **byte == 0).count() == 200_000, "bytes are missing");
        let own = std::fs::read_to_string("/proc/version")?;
        ensure!(text.contains("Linux version") && !text.contains(own.trim()), "its kernel: {text}");
        self.nothing_is_left()
    }

    /// Of the same files as the folder; and no other image than the one that was named.
    fn with_an_image(&self) -> anyhow::Result<()> {
        let layout = self.node.folder().join("layout");
        let digest = layout::write(&self.root, &layout)?;
        let run = |digest: &str| -> anyhow::Result<Finished> {
            let root = format!("{}@{digest}", layout.display());
            let kind = ["run", "--zone-kind", "microvm", "--rootfs", &root, "--tenant", "acme"];
            let script = format!(
                "echo image=$FROM_IMAGE; {PROGRAM} smi --memory 16Mi; {PROGRAM} vector-add && exit 3"
            );
            let program = ["--memory", "64Mi", "--", "sh", "-c", &script];
            Ok(Running::start(self.cli(kind.iter().chain(&program))?)?.finish(LIMIT)?)
        };
        let finished = run(&digest)?;
        ensure!(finished.code() == Some(3), "{}", finished.text());
        ensure!(finished.text().contains("image=yes"), "{}", finished.text());
        sees_its_lease(&finished.stdout, 64 << 20)?;
        let other = run(&format!("sha256:{}", "0".repeat(64)))?;
        ensure!(other.code() == Some(64), "{}", other.text());
        self.nothing_is_left()
    }

    /// One whose first process writes garbage, messages that are none of its business, and lines without
    /// end, beside a program that computes. Its own zone ends, and nothing else does.
    fn hostile(&self) -> anyhow::Result<()> {
        let mut honest = self.computing("globex")?;
        let image = self.node.folder().join("workload.cpio");
        let kept = self.node.folder().join("kept.cpio");
        std::fs::rename(&image, &kept)?;
        let attacks = [
            ("the microVM", "printf 'nonsense\\n'"),
            ("the microVM", "head -c 2000000 /dev/zero"),
            (
                "the microVM",
                "n=0; while [ $n -lt 600 ]; do n=$((n+1)); printf '{\"to_host\":\"open\",\"session\":%s,\"version\":4294967295}\\n{\"to_host\":\"bell\",\"session\":%s}\\n{\"to_host\":\"close\",\"session\":1}\\n' $n $((n*7)); done; printf '{}\\n'",
            ),
        ];
        for (said, attack) in attacks {
            image::hostile(&self.node.folder().join("attack"), &image, attack)?;
            let finished = self.output("acme", &[], "echo never")?;
            ensure!(finished.code() == Some(70), "{attack}: {}", finished.text());
            ensure!(finished.text().contains(said), "{attack}: {}", finished.text());
            ensure!(!finished.text().contains("never"), "{attack}: {}", finished.text());
            ensure!(honest.runs()?, "another zone ended by {attack}");
        }
        std::fs::rename(&kept, &image)?;
        ensure!(self.node.leases()?.len() == 1, "a lease is left, or lost");
        kill(honest.pid())?;
        honest.finish(LIMIT)?;
        self.nothing_is_left()
    }

    /// One after the other, more of them than windows; and at once.
    fn several(&self) -> anyhow::Result<()> {
        let (one, rounds) = (format!("{PROGRAM} vector-add"), WINDOWS + 2);
        let script = format!(
            "n=0; while [ $n -lt {rounds} ]; do n=$((n+1)); {one} || exit 1; done; {one} & first=$!; {one} & wait $first && wait $! && echo all=7"
        );
        let finished = self.output("acme", &[], &script)?;
        ensure!(finished.code() == Some(0), "{}", finished.text());
        ensure!(finished.number("all")? == 7, "{}", finished.text());
        Ok(())
    }

    /// The codes are a shell's.
    fn refusals(&self) -> anyhow::Result<()> {
        let run = |more: &[&str], program: &str| -> anyhow::Result<Finished> {
            let root = self.root.to_str().context("the root's path")?;
            let kind = ["run", "--zone-kind", "microvm", "--rootfs", root, "--tenant", "acme"];
            let program = ["--memory", "64Mi", "--", program];
            let words = kind.iter().chain(more).chain(&program);
            Ok(Running::start(self.node.cli(words)?)?.finish(LIMIT)?)
        };
        // On the host it is, and not in the root.
        let absent = run(&[], "/bin/ls")?;
        ensure!(
            absent.code() == Some(127) && absent.text().contains("no lease"),
            "{}",
            absent.text()
        );
        for (program, code) in [("./folder", 126), ("./lost", 127)] {
            let refused = run(&[], program)?;
            let text = refused.text();
            ensure!(refused.code() == Some(code) && text.contains("cannot start"), "{text}");
        }
        let large = run(&["--host-memory", "40Mi"], "/bin/sh")?;
        ensure!(large.code() == Some(70), "{}", large.text());
        ensure!(large.text().contains("--host-memory gives it more"), "{}", large.text());
        self.nothing_is_left()
    }

    fn signals(&self) -> anyhow::Result<()> {
        let script = "trap 'echo caught; exit 5' TERM; echo waits; while :; do sleep 0.1; done";
        let mut waits = self.start("acme", &[], script)?;
        waits.wait_for("waits", LIMIT)?;
        let pid =
            rustix::process::Pid::from_raw(waits.pid().cast_signed()).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let finished = waits.finish(LIMIT)?;
        ensure!(finished.code() == Some(5), "{}", finished.text());
        ensure!(finished.text().contains("caught"), "{}", finished.text());
        let endless = "while :; do echo line; done";
        let mut command = self.command("acme", &[], endless)?;
        let mut program = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut reader = BufReader::new(program.stdout.take().context("no output")?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        drop(reader);
        ensure!(line == "line\n", "{line}");
        self.nothing_is_left()?;
        let status = program.wait()?;
        // By SIGPIPE.
        ensure!(status.code() == Some(141), "{status}");
        Ok(())
    }

    /// Memory is the machine's; processes are counted in it.
    fn limits(&self) -> anyhow::Result<()> {
        // All of it would have to be kept to find its last line.
        let eats = self.start(
            "acme",
            &["--host-memory", "320Mi"],
            "head -c 600000000 /dev/zero | tail -n 1; echo end=$?",
        )?;
        let forks = "head -c 20000000 /dev/zero >/tmp/file; echo full=$?; for n in 1 2 3 4 5 6 7 8 9 10; do sleep 60 & done; echo started";
        let forks = self.start("globex", &["--pids", "6", "--scratch", "8Mi"], forks)?;
        let eaten = eats.finish(LIMIT)?;
        ensure!(eaten.text().contains("end=137"), "{}", eaten.text());
        let forked = forks.finish(LIMIT)?;
        let text = forked.text();
        ensure!(!text.contains("started") && text.contains("fork"), "{text}");
        ensure!(forked.number("full")? == 1 && text.contains("No space left"), "{text}");
        Ok(())
    }

    fn kills(&self) -> anyhow::Result<()> {
        let mut cli = self.computing("acme")?;
        kill(cli.pid())?;
        self.nothing_is_left()?;
        ensure!(!cli.runs()?, "the command is left");
        for words in ["guest=workload", "gpu-zone-vm "] {
            let running = self.computing("acme")?;
            let victims = self.processes(words);
            ensure!(!victims.is_empty(), "nobody is called '{words}'");
            for pid in victims {
                let _ = kill(pid);
            }
            let finished = running.finish(LIMIT)?;
            ensure!(finished.code().is_some_and(|code| code != 0), "{}", finished.text());
            self.nothing_is_left()?;
        }
        Ok(())
    }

    /// A program outlives the agent; of its worker's end it is told.
    fn agent_and_worker(&mut self) -> anyhow::Result<()> {
        let running = self.computing("acme")?;
        self.node.kill_agent()?;
        self.node.start_agent_within(LIMIT)?;
        let before = self.node.leases()?.into_iter().next().context("the lease is gone")?;
        kill(before.worker().context("there is no worker")?)?;
        let finished = running.finish(LIMIT)?;
        ensure!(finished.code() == Some(1), "{}", finished.text());
        self.nothing_is_left()
    }
}

/// A file in the root, at the place that it has on the host.
fn put(root: &Path, at: &Path, from: &Path) -> anyhow::Result<()> {
    let to = root.join(at.strip_prefix("/")?);
    std::fs::create_dir_all(to.parent().context("a file's folder")?)?;
    if !to.exists() {
        let from = std::fs::canonicalize(from)?;
        std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
    }
    Ok(())
}
