//! The agent under the plugin: a model of one, or the real one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gpuzone_api::connect_channel;
use gpuzone_api::placements::v1::placements_client::PlacementsClient;
use gpuzone_api::placements::v1::{ListRequest, PlacedLease};
use gpuzone_core::GpuUuid;
use gpuzone_testkit::{Node, Options};

use crate::agent_model::AgentModel;

pub(crate) enum Agent {
    Model(AgentModel),
    /// Whether it runs now.
    Real(Box<Node>, bool),
}

impl Agent {
    /// The real one, with two small simulated GPUs.
    pub(crate) fn real() -> Self {
        let gpus = vec!["64Mi".into(), "64Mi".into()];
        Self::Real(Box::new(Node::start(&Options { gpus, ..Options::default() }).unwrap()), true)
    }

    /// Where its sockets and its slots are.
    pub(crate) fn folders(&self) -> Option<(PathBuf, PathBuf)> {
        match self {
            Self::Model(_) => None,
            Self::Real(node, _) => Some((node.run_dir(), node.state_dir())),
        }
    }

    /// Its GPUs.
    pub(crate) fn gpus(&self) -> Vec<GpuUuid> {
        match self {
            Self::Model(_) => [1, 2].map(|number| GpuUuid::from_bytes([number; 16])).to_vec(),
            Self::Real(node, _) => {
                let listed = node.json(&["gpus"]).unwrap();
                let gpus = listed["gpus"].as_array().unwrap().iter();
                gpus.map(|gpu| gpu["uuid"].as_str().unwrap().parse().unwrap()).collect()
            }
        }
    }

    pub(crate) async fn set_away(&mut self, away: bool) {
        match self {
            Self::Model(model) => model.set_away(away).await,
            Self::Real(node, runs) if away && *runs => {
                node.kill_agent().unwrap();
                *runs = false;
            }
            Self::Real(node, runs) if !away && !*runs => {
                node.start_agent().unwrap();
                *runs = true;
            }
            Self::Real(_, _) => {}
        }
    }

    /// The leases that there are; `None` where nobody can tell.
    pub(crate) async fn leases(&self) -> Option<Leases> {
        match self {
            Self::Model(model) => Some(Leases { state: model.state(), all: model.leases() }),
            Self::Real(_, false) => None,
            Self::Real(node, true) => {
                let all = leases_at(&node.run_dir()).await?;
                Some(Leases { state: node.state_dir(), all })
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        match self {
            Self::Model(_) => String::new(),
            Self::Real(node, _) => node.agent_log(),
        }
    }
}

/// What the agent of a run directory lists, if it answers.
pub(crate) async fn leases_at(run: &Path) -> Option<Vec<PlacedLease>> {
    let channel = connect_channel(&run.join("agent.sock")).await.ok()?;
    let listed = PlacementsClient::new(channel).list(ListRequest {}).await.ok()?;
    Some(listed.into_inner().leases)
}

/// All leases at a moment.
#[derive(Debug)]
pub(crate) struct Leases {
    state: PathBuf,
    all: Vec<PlacedLease>,
}

impl Leases {
    fn folder(&self, lease: &PlacedLease) -> PathBuf {
        self.state.join("slots").join(&lease.slot).join(&lease.folder)
    }

    /// Whose lease answers in a folder: its pod, and the container.
    pub(crate) fn serves(&self, folder: &std::path::Path) -> Option<(String, String)> {
        let mut active = self.all.iter().filter(|lease| lease.state == "active");
        let lease = active.find(|lease| self.folder(lease) == folder)?;
        let mut parts = lease.holder.split('/').skip(1).map(str::to_owned);
        Some((parts.next().unwrap(), parts.next().unwrap()))
    }

    pub(crate) fn holders(&self) -> BTreeSet<String> {
        self.all.iter().map(|lease| lease.holder.clone()).collect()
    }

    /// No holder has two leases, and no folder.
    pub(crate) fn check(&self, seed: u64) {
        let folders: BTreeSet<PathBuf> = self.all.iter().map(|lease| self.folder(lease)).collect();
        let count = self.all.len();
        assert_eq!(self.holders().len(), count, "seed {seed}: two leases of one holder");
        assert_eq!(folders.len(), count, "seed {seed}: two leases in one folder");
    }
}
