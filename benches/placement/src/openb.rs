use std::fs::{File, read_to_string};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use gpuzone_core::engine::NodeRoom;
use gpuzone_replay::Trace;

use crate::{Cell, Need};

/// The trace openb, from a folder.
#[derive(Debug)]
pub struct Openb {
    folder: PathBuf,
    /// Nodes and pods, in the order of their tables.
    pub trace: Trace,
    /// The pods as plain numbers.
    pub needs: Vec<Need>,
}

/// In which order pods come, and which node wins a tie.
#[derive(Debug)]
pub struct Arrivals {
    /// Pods, by row.
    pub pods: Vec<usize>,
    /// Nodes, by row, first the one of lowest rank.
    pub nodes: Vec<usize>,
}

impl Openb {
    /// Reads the tables in `folder`.
    ///
    /// # Errors
    /// When one is missing or is none.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let open = |name: &str| {
            let path = folder.join(name);
            File::open(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let nodes = open("openb_node_list_gpu_node.csv")?;
        let trace = Trace::read(nodes, open("openb_pod_list_default.csv")?)?;
        let needs = trace.pods.iter().map(|pod| {
            let gpus = pod.demand.containers.first().map_or(0, |demand| demand.gpus.get());
            let each = pod.gpu_milli.checked_div(u64::from(gpus)).unwrap_or(0);
            let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            Need {
                cpu: whole(pod.demand.host.cpu_milli),
                memory: whole(pod.demand.host.memory.get() >> 20),
                gpus: gpus as usize,
                milli: whole(each),
            }
        });
        Ok(Self { folder: folder.to_owned(), needs: needs.collect(), trace })
    }

    /// The order of one seed.
    ///
    /// # Errors
    /// When its files are missing or are no list of rows.
    pub fn arrivals(&self, seed: u64) -> anyhow::Result<Arrivals> {
        let read = |what: &str| -> anyhow::Result<Vec<usize>> {
            let path = self.folder.join(format!("arrivals/default_s{seed}_{what}.txt"));
            let text =
                read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            text.lines()
                .map(|line| line.parse().with_context(|| path.display().to_string()))
                .collect()
        };
        let (pods, ranks) = (read("arrivals")?, read("noderank")?);
        ensure!(pods.iter().all(|pod| *pod < self.trace.pods.len()), "a pod that is not there");
        ensure!(ranks.len() == self.trace.nodes.len(), "a rank for each node");
        let mut nodes: Vec<usize> = (0..ranks.len()).collect();
        nodes.sort_by_key(|at| ranks.get(*at).copied());
        Ok(Arrivals { pods, nodes })
    }
}

impl From<&NodeRoom> for Cell {
    fn from(room: &NodeRoom) -> Self {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let host = room.host();
        let gpus = room.gpus().iter().map(|gpu| i64::from(gpu.free_milli())).collect();
        Self { cpu: whole(host.cpu_milli), memory: whole(host.memory.get() >> 20), gpus }
    }
}
