//! `gpu-zone-broker`: started by the agent, one for each driver zone.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The supervisor of a driver zone; the agent starts it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The file that the agent wrote for it.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = std::io::stderr;
    let colours = stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(level).with_writer(stderr).with_ansi(colours).init();
    let config = gpuzone_broker::configuration(&arguments.config)?;
    let handed = gpuzone_broker::handed(&config)?;
    // Before anything is read that a worker or a guest wrote, and before there are threads. What makes a
    // microVM without sandboxes starts QEMU itself, which would have this process's filter for its own.
    if let Some(workers) = gpuzone_broker::made_by(&config)
        && let Some(missing) = gpuzone_zone::sandbox::confine_broker(workers)?
    {
        tracing::warn!(%missing, "this broker runs without a part of its confinement");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(gpuzone_broker::run(config, handed))?)
}
