//! `gpu-zoned`, the node agent's program.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use gpuzone_agent::RunError;
use gpuzone_agent::config::{Config, ConfigError, DriverKind, Overrides, SIM_CONFIG_VARIABLE};
use gpuzone_agent::supervise::supervise;
use tracing_subscriber::EnvFilter;

/// The gpu-zone node agent. SIGINT ends all leases and everything that serves them; SIGTERM and
/// SIGHUP end only the agent, and the next one takes over.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration, a TOML file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The GPUs' driver: nvidia or simulated.
    #[arg(long, value_parser = driver)]
    driver: Option<DriverKind>,
    /// For what outlives a reboot: journal and ledger.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// For what does not: sockets and slots.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Let every tenant without a quota have whatever is free.
    #[arg(long)]
    open: bool,
    /// Log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
    /// Run the agent as a child and start it again when it crashes: for containers, whose end
    /// would be every lease's.
    #[arg(long)]
    supervise: bool,
}

const SUPERVISE: &str = "--supervise";

fn driver(text: &str) -> Result<DriverKind, String> {
    let kinds = [DriverKind::Nvidia, DriverKind::Simulated];
    let found = kinds.into_iter().find(|kind| kind.as_str() == text);
    found.ok_or_else(|| "write nvidia or simulated".to_owned())
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A sentence for the operator; a backtrace would only hide it.
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Of a configuration that nobody can start with.
const CONFIGURATION: u8 = 78;

/// As the command's, see docs/errors.md.
fn exit_code(error: &anyhow::Error) -> u8 {
    const INTERNAL: u8 = 70;
    match error.downcast_ref::<RunError>() {
        Some(error) => error.exit_code(),
        None if error.is::<ConfigError>() => CONFIGURATION,
        None => INTERNAL,
    }
}

fn start(arguments: Arguments) -> anyhow::Result<u8> {
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    if arguments.log_json {
        log.json().init()
    } else {
        log.init()
    }
    if arguments.supervise {
        let agents = std::env::args_os().skip(1).filter(|argument| argument != SUPERVISE);
        let runtime = threads()?;
        return Ok(runtime.block_on(supervise(agents.collect(), &[CONFIGURATION]))?);
    }
    let Arguments { config, driver, state_dir, run_dir, open, .. } = arguments;
    let overrides = Overrides { driver, state_dir, run_dir, open };
    let config = Config::load(config.as_deref(), &overrides)?;
    if let Some(path) = &config.simulated_config {
        gpuzone_zone::set_variable(SIM_CONFIG_VARIABLE.as_ref(), path.as_os_str())?;
    }
    threads()?.block_on(gpuzone_agent::run(config))?;
    Ok(0)
}

fn threads() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().context("cannot start the agent's threads")
}
