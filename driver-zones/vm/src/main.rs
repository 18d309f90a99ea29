//! `gpu-zone-vm ORDERS -- FILE NAME [ARG]...`: a workload zone that is a microVM.
//!
//! ```text
//! gpu-zone run ─▶ gpu-zone-sandbox ─▶ this ─▶ QEMU ─▶ guest's first process ─▶ program
//!                  (the zone)          │ ◀── virtio-serial: messages, input, output ──▶ │
//!       worker ◀── cuda.sock, once ──  │                                               │
//!       worker ◀═══════════════ rings (one memfd, one PCI device) ════════════════════▶ │
//! ```
//!
//! This process and QEMU are the program of an ordinary workload zone: its sandbox, its limits and its
//! end are theirs. It reads what the guest says as from a stranger, and never what is in the rings.
#![forbid(unsafe_code)]

mod boot;
mod orders;
mod relay;
mod session;
mod streams;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_wire::workload_link::{End, FromWorkload, ToWorkload};
use gpuzone_zone::Exit;
use gpuzone_zone::microvm::STALLED;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use boot::{Booted, Machine};
use orders::Command;
use relay::Relay;

/// sysexits(3): something of ours, not the program's.
const BROKEN: u8 = 70;
/// As shells have it: a file that cannot be run, and one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_THERE: u8 = 127;
const ENOENT: i32 = 2;
/// How long a machine whose guest is silent may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// Signals that are the program's to have.
const SIGNALS: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(async { run(Command::read(words)?).await }));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("gpu-zone-vm: {error}");
            ExitCode::from(BROKEN)
        }
    }
}

async fn run(command: Command) -> Result<u8, Box<dyn std::error::Error>> {
    let (tell, mut signals) = mpsc::unbounded_channel();
    for kind in SIGNALS {
        let (mut received, tell) = (signal(kind)?, tell.clone());
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                // Nobody hears it when all is over.
                let _ = tell.send(kind.as_raw_value());
            }
        });
    }
    let booted = tokio::task::spawn_blocking(move || boot::boot(&command)).await??;
    let Booted { machine, control, streams, windows, slot } = booted;
    let (over, mut outcome) = mpsc::unbounded_channel();
    let relay = Relay::start(control, windows, slot, over, STALLED)?;
    let outputs = streams::carry(streams, Arc::clone(&relay))?;
    let told = loop {
        tokio::select! {
            biased;
            told = outcome.recv() => match told {
                Some(Ok(told)) => break told,
                Some(Err(error)) => return Err(lost(&machine, &error).await),
                None => return Err("nobody says how the program ended".into()),
            },
            Some(number) = signals.recv() => relay.send(&ToWorkload::Signal { number })?,
            exit = machine.process.exited() => return Err(ended(&machine, exit?).into()),
        }
    };
    let code = match told {
        FromWorkload::Exited { end, written } => {
            // The program has ended; its last words may still be on their way.
            tokio::select! {
                () = outputs.reached(written) => {}
                exit = machine.process.exited() => drop(exit?),
            }
            code_of(end)
        }
        FromWorkload::Unrunnable { errno, reason } => {
            eprintln!("gpu-zone-vm: {}", relay::printable(&reason));
            if errno == ENOENT { NOT_THERE } else { NOT_EXECUTABLE }
        }
        FromWorkload::Failed { reason } => {
            return Err(format!("the microVM: {}", relay::printable(&reason)).into());
        }
        other => return Err(format!("the guest ended with {other:?}").into()),
    };
    machine.process.end(None).await?;
    Ok(code)
}

fn ended(machine: &Machine, exit: Exit) -> String {
    let (who, said) = (machine.hypervisor(), machine.last_word());
    format!("the microVM ended: {exit}; {who}'s last word: {said}")
}

/// Why the guest is not heard any more: most often because its machine is just ending.
async fn lost(machine: &Machine, error: &io::Error) -> Box<dyn std::error::Error> {
    match tokio::time::timeout(ENDING, machine.process.exited()).await {
        Ok(Ok(exit)) => ended(machine, exit).into(),
        Ok(Err(error)) => error.into(),
        Err(_) => error.to_string().into(),
    }
}

/// 128 and the number of the signal that ended it, as shells have it.
fn code_of(end: End) -> u8 {
    match end {
        End::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        End::Signal(number) => u8::try_from(number).unwrap_or(0).saturating_add(128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(code_of(End::Code(3)), 3);
        assert_eq!(code_of(End::Code(256 + 4)), 4);
        assert_eq!(code_of(End::Signal(15)), 143);
        // A guest may say anything.
        assert_eq!((code_of(End::Signal(-1)), code_of(End::Signal(500))), (128, 128));
        assert_eq!(code_of(End::Code(-1)), 255);
    }
}
