//! Programs in a zone that they share, and with it a lease.
//!
//! Its keeper is a process of its own (`gpu-zone-sandbox --keep`), which holds the lease and
//! lives as long as the zone. Whoever runs a program there hands it over with its terminal,
//! passes signals on, and gets its exit code.

mod door;
pub(crate) mod keeper;
pub(crate) mod line;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use gpuzone_core::ZoneName;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::arguments::{Exec, Run};
use crate::commands::Context;
use crate::error::{CliError, Kind};
use crate::run::child::{code_of_signal, in_memory};
use crate::run::program::Program;
use crate::run::sandbox::Options;
use crate::run::signals::{self, Mask, Received};
use crate::run::{LIBRARY_PATH, ending, of_lease};
pub(crate) use door::Door;
use line::Line;

/// How often a zone may end while it is joined.
const ATTEMPTS: usize = 100;

/// How an attempt to run a program in a zone went.
enum Went {
    /// It ran, and this is its exit code.
    Code(u8),
    /// The zone was ending: nothing was started.
    Ending,
}

/// Runs a program in the zone `name`, which is made if it is not there.
pub(crate) async fn run(
    context: &Context,
    run: &Run,
    name: &ZoneName,
    program: &Program,
    signals: UnboundedReceiver<Received>,
    mask: Mask,
) -> Result<u8, CliError> {
    let door = Door::of(name, &context.directories)?;
    let wish = json!({ "run": terms(run) });
    let mut signals = signals;
    for _ in 0..ATTEMPTS {
        let line = tokio::select! {
            line = enter(&door, mask) => line?,
            signal = ending(&mut signals) => return Ok(code_of_signal(signal)),
        };
        match converse(&door, &line, &wish, program, &mut signals).await? {
            Went::Code(code) => return Ok(code),
            Went::Ending => context.say(|| format!("zone '{name}' was ending; another is made")),
        }
    }
    Err(door.ending())
}

/// Runs a program in a zone that is there.
pub(crate) async fn exec(context: &Context, exec: &Exec) -> Result<u8, CliError> {
    let program = Program::find(&exec.command)?;
    let (mut signals, _mask) =
        signals::receive().map_err(|error| CliError::caused(Kind::Internal, &error))?;
    let door = Door::of(&exec.zone, &context.directories)?;
    let line = tokio::select! {
        line = knock(&door) => line?.ok_or_else(|| door.closed())?,
        signal = ending(&mut signals) => return Ok(code_of_signal(signal)),
    };
    match converse(&door, &line, &json!("exec"), &program, &mut signals).await? {
        Went::Code(code) => Ok(code),
        Went::Ending => Err(door.ending()),
    }
}

/// What the zone's keeper says of it; `None` when it has none.
pub(crate) async fn look(context: &Context, name: &ZoneName) -> Result<Option<Value>, CliError> {
    let door = Door::of(name, &context.directories)?;
    let Some(line) = door.knock()? else { return Ok(None) };
    let asked = async {
        line.say(json!("look").to_string().as_bytes(), &[]).await?;
        line.hear().await
    };
    // One that ends meanwhile is not there.
    Ok(asked.await.unwrap_or_default().map(|mut said| said["zone"].take()))
}

/// Ends the zone, and answers when it is gone; whether it had a keeper.
pub(crate) async fn stop(context: &Context, name: &ZoneName) -> Result<bool, CliError> {
    let door = Door::of(name, &context.directories)?;
    let Some(line) = knock(&door).await? else { return Ok(false) };
    let failed = |error: io::Error| door.failed("cannot end", &error);
    line.say(json!("stop").to_string().as_bytes(), &[]).await.map_err(failed)?;
    line.hear().await.map_err(failed)?;
    Ok(true)
}

/// A connection to a zone that is there, or is just being started by another.
async fn knock(door: &Door) -> Result<Option<Line>, CliError> {
    if let Some(line) = door.knock()? {
        return Ok(Some(line));
    }
    match door.starter(false).await? {
        Some(_starter) => door.knock(),
        None => Ok(None),
    }
}

/// A connection to the zone, which is started if need be.
async fn enter(door: &Door, mask: Mask) -> Result<Line, CliError> {
    if let Some(line) = door.knock()? {
        return Ok(line);
    }
    let _starter = door.starter(true).await?;
    // Another may have started it meanwhile.
    match door.knock()? {
        Some(line) => Ok(line),
        None => keeper::start(door, mask).await,
    }
}

async fn converse(
    door: &Door,
    line: &Line,
    wish: &Value,
    program: &Program,
    signals: &mut UnboundedReceiver<Received>,
) -> Result<Went, CliError> {
    // A keeper that is gone has taken nothing.
    let Ok(()) = line.say(wish.to_string().as_bytes(), &[]).await else { return Ok(Went::Ending) };
    let failed = |error: io::Error| door.failed("cannot speak to the keeper of", &error);
    let welcome = tokio::select! {
        said = line.hear() => said.map_err(failed)?,
        signal = ending(signals) => return Ok(Went::Code(code_of_signal(signal))),
    };
    let Some(mut welcome) = welcome else { return Ok(Went::Ending) };
    refused(&welcome)?;
    let files = handed_over(&welcome["welcome"].take(), program).map_err(failed)?;
    let Ok(()) = line.say(b"run", &files).await else { return Ok(Went::Ending) };
    drop(files);
    wait(door, line, signals).await
}

fn refused(said: &Value) -> Result<(), CliError> {
    match said["refused"].as_str() {
        Some(reason) => Err(CliError::new(Kind::Usage, gpuzone_ledger::printable(reason))),
        None => Ok(()),
    }
}

/// The program's words in a file, and this process's standard streams.
fn handed_over(welcome: &Value, program: &Program) -> io::Result<[OwnedFd; 4]> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let granted = welcome["environment"].as_object().into_iter().flatten();
    let granted: BTreeMap<String, String> =
        granted.map(|(name, value)| (name.clone(), text(value))).collect();
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let before = variables.get(std::ffi::OsStr::new(LIBRARY_PATH)).cloned();
    variables.extend(of_lease(&granted, Path::new(&text(&welcome["library_dir"])), before));
    let mut body = Vec::new();
    let mut word = |word: &[u8]| {
        body.extend_from_slice(word);
        body.push(0);
    };
    word(std::path::absolute(&program.file)?.as_os_str().as_bytes());
    word(std::env::current_dir()?.as_os_str().as_bytes());
    word(program.arguments.len().saturating_add(1).to_string().as_bytes());
    word(program.name.as_bytes());
    program.arguments.iter().for_each(|argument| word(argument.as_bytes()));
    for (name, value) in variables {
        word(&[name.as_bytes(), b"=", value.as_bytes()].concat());
    }
    let words = in_memory("words", &body)?;
    let stream = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    use std::os::fd::AsFd;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    Ok([words, stream(stdin.as_fd())?, stream(stdout.as_fd())?, stream(stderr.as_fd())?])
}

/// Waits for the program, passing signals on. It is in no foreground of this terminal's, so it
/// gets those of the keyboard from here, too.
async fn wait(
    door: &Door,
    line: &Line,
    signals: &mut UnboundedReceiver<Received>,
) -> Result<Went, CliError> {
    let mut begun = false;
    loop {
        tokio::select! {
            said = line.hear() => {
                let said = said.map_err(|error| door.failed("lost the program in", &error))?;
                match said {
                    Some(said) => match understand(&said)? {
                        Some(code) => return Ok(Went::Code(code)),
                        None => begun = true,
                    },
                    None if begun => {
                        eprintln!("gpu-zone: zone '{}' ended, and its programs with it", door.name);
                        return Ok(Went::Code(code_of_signal(libc::SIGKILL)));
                    }
                    None => return Ok(Went::Ending),
                }
            }
            Some(received) = signals.recv() => pass_on(line, received).await,
        }
    }
}

/// The exit code, if it is one.
fn understand(said: &Value) -> Result<Option<u8>, CliError> {
    refused(said)?;
    if let Some(reason) = said["unrunnable"]["reason"].as_str() {
        let kind = match said["unrunnable"]["errno"].as_i64() {
            Some(errno) if errno == i64::from(libc::ENOENT) => Kind::NoProgram,
            _ => Kind::NotExecutable,
        };
        let hint = "the zone shows the host's files as they were for its first program; folders \
                    like /tmp are its own";
        return Err(CliError::new(kind, gpuzone_ledger::printable(reason)).hint(hint));
    }
    let code = said["exited"].as_u64();
    Ok(code.map(|code| u8::try_from(code).unwrap_or(u8::MAX)))
}

async fn pass_on(line: &Line, received: Received) {
    // A process that no shell looks after is not stopped by a key's signal.
    let number = match received.number {
        libc::SIGTSTP => libc::SIGSTOP,
        other => other,
    };
    if let Ok(byte) = u8::try_from(number) {
        // It may just have ended; then there is nobody left to tell.
        let _ = line.say(&[byte], &[]).await;
    }
    if received.number == libc::SIGTSTP {
        // So that the shell sees a stopped job, this process stops, too.
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

/// What whoever joins has to ask for, too.
fn terms(run: &Run) -> BTreeMap<&'static str, String> {
    let mut terms = BTreeMap::from([
        ("tenant", run.tenant.to_string()),
        ("number of GPUs", run.gpus.to_string()),
        ("memory", run.memory.map_or_else(|| "all".to_owned(), |memory| memory.to_string())),
    ]);
    if let Some(share) = run.share {
        terms.insert("share", share.to_string());
    }
    if let Some(model) = &run.model {
        terms.insert("model", model.clone());
    }
    terms.insert("priority", run.priority.to_string());
    if let Some(cap) = run.cap {
        terms.insert("cap", cap.to_string());
    }
    let Options { demand, root: _, network, limits, volumes } = Options::of(run, None);
    let bytes = |bytes: gpuzone_core::MemoryBytes| bytes.to_string();
    for (name, limit) in [
        ("host memory", limits.host_memory.map(bytes)),
        ("processes", limits.pids.map(|pids| pids.to_string())),
        ("per cent of a processor", limits.cpus.map(|percent| percent.to_string())),
        ("scratch", limits.scratch.map(bytes)),
    ] {
        terms.extend(limit.map(|limit| (name, limit)));
    }
    let network = if network { "the host's" } else { "none" };
    terms.insert("network", network.to_owned());
    terms.insert("sandbox", format!("{demand:?}").to_lowercase());
    if let Some(rootfs) = &run.rootfs {
        terms.insert("rootfs", rootfs.display().to_string());
    }
    if !volumes.is_empty() {
        let volumes: Vec<String> = volumes.iter().map(ToString::to_string).collect();
        terms.insert("volumes", volumes.join(" "));
    }
    terms
}
