//! The plugin: its code in a task, or its own program. Either is killed without a word.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use gpuzone_device_plugin::config::Config;
use tokio::task::JoinHandle;

use super::agent::leases_at;

pub(crate) enum Plugin {
    Task(JoinHandle<()>),
    Program(Child),
}

impl Plugin {
    pub(crate) fn task(arguments: &[String]) -> Self {
        let config =
            Config::parse_from(std::iter::once("plugin").chain(arguments.iter().map(|a| &**a)));
        Self::Task(tokio::spawn(async move {
            // A killed one's lock goes when its last thread has let go of it.
            while gpuzone_device_plugin::run(config.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }))
    }

    pub(crate) fn program(arguments: &[String], log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-device-plugin"));
        command.args(arguments).stdin(Stdio::null()).stderr(log);
        Self::Program(command.spawn().unwrap())
    }

    /// The program by SIGKILL: nothing of it is tidied up.
    pub(crate) async fn kill(self) {
        match self {
            Self::Task(task) => {
                task.abort();
                assert!(task.await.is_err(), "it was killed");
            }
            Self::Program(mut child) => {
                child.kill().unwrap();
                let ended = child.wait().unwrap();
                assert_eq!(ended.code(), None, "it did not end by itself: {ended}");
            }
        }
    }
}

/// When, while a container is started, the plugin is killed.
pub(crate) enum Moment {
    After(Duration),
    /// The pod's UID stands beside a folder: it was claimed, and nothing was placed.
    Claimed {
        state: PathBuf,
    },
    /// The agent has the lease and has not answered, or just so.
    Placed {
        run: PathBuf,
    },
}

impl Moment {
    /// Waits for it, or a moment more than most containers take.
    pub(crate) async fn come(self, uid: &str) {
        let end = Instant::now() + Duration::from_millis(200);
        match self {
            Self::After(pause) => tokio::time::sleep(pause).await,
            Self::Claimed { state } => {
                while !claimed(&state, uid) && Instant::now() < end {
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            }
            Self::Placed { run } => {
                let holder = format!("pod/{uid}/");
                let placed = async || {
                    let leases = leases_at(&run).await.unwrap_or_default();
                    leases.iter().any(|lease| lease.holder.starts_with(&holder))
                };
                while !placed().await && Instant::now() < end {
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            }
        }
    }
}

fn claimed(state: &Path, uid: &str) -> bool {
    let below = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let files = below(&state.join("slots")).flat_map(|slot| below(&slot.path()));
    let mut owners = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pod"));
    owners.any(|path| std::fs::read_to_string(path).is_ok_and(|owner| owner == uid))
}
