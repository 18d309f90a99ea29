//! `gpu-zone-device-plugin`, the device plugin's program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use gpuzone_device_plugin::config::Config;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
    if config.log_json {
        log.json().init()
    } else {
        log.init()
    }
    // One thread: a call of the kubelet's is answered without waking another, and there is little
    // else to do.
    let thread = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = thread
        .map_err(anyhow::Error::from)
        .and_then(|runtime| Ok(runtime.block_on(gpuzone_device_plugin::run(config))?));
    ended.map_or_else(
        |error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
