//! The zone's broker: started once it is known what to tell it, and started again when it ends.
//! Workers outlive it; they become this process's, which takes their ends from the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_wire::control::{BrokerConfig, MAX_LINE, Reply, Request, VERSION};
use gpuzone_wire::zone_link::{CONFIG_DIR, Health};
use rustix::process::{WaitOptions, wait};

const PROGRAM: &str = "/usr/bin/gpu-zone-broker";
/// How long a new broker may take until it answers: an emulated machine is slow.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// As long as any request of the agent's may take.
const ASK_LIMIT: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Default)]
pub(crate) struct Broker(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    config: Option<BrokerConfig>,
    pid: Option<u32>,
}

impl Broker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begun(&self) -> bool {
        self.state().config.is_some()
    }

    /// Starts it, unless it was; answers when it answers.
    pub(crate) fn begin(
        &self,
        config: BrokerConfig,
        files: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        if !self.begun() {
            let files = lay_out(&config, files);
            files.map_err(|error| format!("cannot write the zone's configuration: {error}"))?;
            let mut state = self.state();
            state.pid = Some(start().map_err(|error| format!("cannot start the broker: {error}"))?);
            state.config = Some(config);
        }
        let end = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.ask(&Request::Status) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(format!("the zone's broker does not come up: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Asks it, over a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> io::Result<Reply> {
        let missing = || io::Error::new(io::ErrorKind::NotConnected, "there is no broker yet");
        let socket =
            self.state().config.as_ref().map(|config| config.zone_dir.join("control.sock"));
        let stream = UnixStream::connect(socket.ok_or_else(missing)?)?;
        stream.set_read_timeout(Some(ASK_LIMIT))?;
        let mut reader = BufReader::new(stream);
        converse(&mut reader, &Request::Hello { version: VERSION })?;
        converse(&mut reader, request)
    }

    pub(crate) fn health(&self) -> Health {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the kernel's own seconds, not below zero"
        )]
        let uptime_ms = (uptime.unwrap_or_default() * 1000.0) as u64;
        let (memory, available) = (field(&memory, "MemTotal:"), field(&memory, "MemAvailable:"));
        Health { memory, available, uptime_ms, broker: self.state().pid.is_some() }
    }

    /// Takes the ends of processes from the kernel, and starts the broker again when it was its.
    pub(crate) fn reap_for_ever(&self) -> ExitCode {
        loop {
            let ended = match wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) => pid.as_raw_nonzero().get().cast_unsigned(),
                Ok(None) | Err(_) => {
                    // There is no child at all.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            if self.state().pid != Some(ended) {
                continue;
            }
            eprintln!("gpu-zone-guest: the broker ended; a new one takes over");
            std::thread::sleep(AGAIN);
            let started = start();
            if let Err(error) = &started {
                eprintln!("gpu-zone-guest: cannot start the broker: {error}");
            }
            self.state().pid = started.ok();
        }
    }
}

/// A line of `/proc/meminfo`, in bytes.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or_default().saturating_mul(1024)
}

fn converse(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line)?;
    let mut answer = Vec::new();
    Read::by_ref(stream).take(MAX_LINE as u64).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

fn config_path() -> PathBuf {
    Path::new(CONFIG_DIR).join("broker.json")
}

fn lay_out(config: &BrokerConfig, files: &BTreeMap<String, String>) -> io::Result<()> {
    fs::create_dir_all(CONFIG_DIR)?;
    for (name, text) in files {
        let plain = !name.is_empty() && !name.contains('/') && name != "..";
        if !plain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name '{name}'")));
        }
        fs::write(Path::new(CONFIG_DIR).join(name), text)?;
    }
    for folder in config.sandbox.iter().flat_map(|sandbox| &sandbox.write) {
        fs::create_dir_all(folder)?;
    }
    fs::write(config_path(), serde_json::to_vec(config)?)
}

fn start() -> io::Result<u32> {
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(config_path()).env_clear().env("RUST_LOG", "warn");
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    // Its log is the console, of which the host keeps the last.
    Ok(command.stderr(Stdio::inherit()).spawn()?.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:         217364 kB\nMemFree: 1 kB\nMemAvailable:  10 kB\n";
        assert_eq!((field(text, "MemTotal:"), field(text, "MemAvailable:")), (222_580_736, 10_240));
        assert_eq!(field(text, "Nothing:"), 0);
    }
}
