//! A workload zone: this machine runs one program, whose lease's worker is on the host. The machine
//! ends with the program.

mod devices;
mod root;
mod slot;
pub(crate) mod start;
mod streams;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_wire::workload_link::{
    End, FromWorkload, MAX_LINE_OF_HOST, ORDER, Order, OutputName, PORT, STREAMS, ToWorkload,
    VERSION, WHOLE,
};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use crate::port::{self, Heard, Port};
use slot::Slot;
use streams::{Input, Output, Unwanted};

/// The control group of all that the program starts.
pub(crate) const GROUP: &str = "/sys/fs/cgroup/workload";

/// How long the host may take to end a machine that said it failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the program, and powers off.
pub(crate) fn run() -> ExitCode {
    let failed = Port::find(PORT).and_then(|port| {
        let Err(error) = serve(&port) else { return Ok(()) };
        port.send(&FromWorkload::Failed { reason: error.to_string() });
        // The host ends the machine.
        std::thread::sleep(PATIENCE);
        Err(error)
    });
    if let Err(error) = failed {
        eprintln!("gpu-zone-guest: {error}");
    }
    // A process 1 that ends takes its kernel with it; this is the same, in order.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn serve(port: &Port) -> io::Result<()> {
    port.send(&FromWorkload::Hello { version: VERSION });
    if !Path::new(WHOLE).exists() {
        let reason = "its memory does not hold the files of its root; --host-memory gives it more";
        return Err(io::Error::other(reason));
    }
    let order = order()?;
    root::lay_out(&order)?;
    limit(&order)?;
    devices::show(&order.devices)?;
    let slot = order.devices.is_empty().then(|| Slot::open(port)).transpose()?;
    let mut child = Command::new("/proc/self/exe")
        .arg(start::FLAG)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let missing = || io::Error::other("a pipe is missing");
    let [input, output, error] = STREAMS;
    let input = Input::carry(port::find(input)?, child.stdin.take().ok_or_else(missing)?)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let outputs = [
        Output::carry(stdout.into(), port::find(output)?),
        Output::carry(stderr.into(), port::find(error)?),
    ];
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(missing)?;
    let unwanted = outputs.each_ref().map(Output::unwanted);
    hear(port, Host { slot, input, unwanted, program: pid });
    let end = ended(pid)?;
    // All that it started ends with it, so its output has an end.
    fs::write(Path::new(GROUP).join("cgroup.kill"), "1")?;
    let written = outputs.map(Output::finish);
    port.send(&match start::failure() {
        Some((errno, reason)) => FromWorkload::Unrunnable { errno, reason },
        None => FromWorkload::Exited { end, written },
    });
    // The host ends the machine when it has all that was written.
    loop {
        std::thread::park();
    }
}

/// Most processes of the program's.
fn limit(order: &Order) -> io::Result<()> {
    fs::create_dir_all(GROUP)?;
    let most = order.pids.map_or_else(|| "max".to_owned(), |pids| pids.to_string());
    fs::write(Path::new(GROUP).join("pids.max"), most)
}

/// Takes ends of processes from the kernel until the program's comes.
fn ended(program: Pid) -> io::Result<End> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => return Ok(end_of(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn end_of(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Code(code),
        (None, signal) => End::Signal(signal.unwrap_or(Signal::KILL.as_raw())),
    }
}

/// What the host says something of.
struct Host {
    /// Where a worker serves it.
    slot: Option<Arc<Slot>>,
    input: Input,
    unwanted: [Unwanted; 2],
    program: Pid,
}

impl Host {
    fn act(&self, message: ToWorkload) {
        let [output, error] = &self.unwanted;
        match message {
            ToWorkload::Signal { number } => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    // It may just have ended; then there is nobody left to tell.
                    let _ = kill_process(self.program, signal);
                }
            }
            ToWorkload::InputEnds { bytes } => self.input.ends(bytes),
            ToWorkload::Unwanted { output: OutputName::Output } => output.say(),
            ToWorkload::Unwanted { output: OutputName::Error } => error.say(),
            ToWorkload::Opened { .. }
            | ToWorkload::Refused { .. }
            | ToWorkload::Seen { .. }
            | ToWorkload::Bell { .. }
            | ToWorkload::Closed { .. } => {
                if let Some(slot) = &self.slot {
                    slot.hear(message);
                }
            }
        }
    }
}

/// Does what the host says, on a thread of its own.
fn hear(port: &Port, host: Host) {
    let mut reader = port.reader(MAX_LINE_OF_HOST);
    std::thread::spawn(move || {
        loop {
            match reader.next::<ToWorkload>() {
                Heard::Message(message) => host.act(*message),
                // Without its host the machine has no purpose, and it is ended from there.
                Heard::Interrupted => {}
                Heard::Nonsense(reason) => {
                    eprintln!("gpu-zone-guest: the host said something else: {reason}");
                }
            }
        }
    });
}

/// What the order says.
pub(crate) fn order() -> io::Result<Order> {
    Ok(serde_json::from_reader(File::open(ORDER)?)?)
}
