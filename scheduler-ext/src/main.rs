//! `gpu-zone-scheduler-ext`, the scheduler extender's program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use gpuzone_scheduler_ext::config::Config;
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
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = threads.map_err(anyhow::Error::from).and_then(|runtime| {
        // On a thread that reads sockets itself: the program's first thread would have to be woken for each event.
        let running = runtime.spawn(gpuzone_scheduler_ext::run(config));
        Ok(runtime.block_on(running)??)
    });
    ended.map_or_else(
        |error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
