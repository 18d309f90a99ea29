use gpuzone_core::engine::{
    Board, HostDemand, HostRoom, Mix, NodeRoom, PodDemand, Policy, Reason, Score,
};

/// Who looks at processors and host memory, and who places pods without GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// The engine does both.
    #[default]
    Engine,
    /// The engine is asked about pods with GPUs, and knows the host, as in a cluster with the extender.
    Told(Plain),
    /// As before, but the engine knows GPUs alone: nodes without enough of the host are no candidates,
    /// and it neither learns from it nor scores by it.
    Untold(Plain),
}

/// Who says which node is best for pods without GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// The engine, which learns nothing of them: the scheduler asks the extender to prioritize them, too.
    Engine,
    /// kube-scheduler's `NodeResourcesFit`: where most is free, if nothing else is configured.
    LeastAllocated,
    /// The same: where least is free.
    MostAllocated,
}

/// The nodes, as the engine and as the scheduler see them.
#[derive(Debug)]
pub(crate) struct Cluster {
    host: Host,
    board: Board,
    nodes: Vec<NodeRoom>,
    /// What they had when they were empty.
    hosts: Vec<HostRoom>,
}

impl Cluster {
    pub(crate) fn new(policy: Policy, host: Host, nodes: Vec<NodeRoom>) -> Self {
        let hosts = nodes.iter().map(NodeRoom::host).collect();
        let known = match host {
            Host::Engine | Host::Told(_) => nodes.clone(),
            Host::Untold(_) => {
                nodes.iter().map(|node| with_host(HostRoom::default(), node)).collect()
            }
        };
        Self { host, board: Board::new(policy, known), nodes, hosts }
    }

    /// What is free of each node.
    pub(crate) fn nodes(&self) -> &[NodeRoom] {
        &self.nodes
    }

    /// The same, as far as the engine knows it.
    pub(crate) fn of_engine(&self) -> &[NodeRoom] {
        self.board.nodes()
    }

    pub(crate) fn set_mix(&mut self, mix: Mix) {
        self.board.set_mix(mix);
    }

    /// What the engine is told that a pod asks for; `None` where it is not asked about it.
    pub(crate) fn asked(&self, pod: &PodDemand) -> Option<PodDemand> {
        match self.host {
            Host::Engine => Some(pod.clone()),
            Host::Told(_) | Host::Untold(_) if pod.containers.is_empty() => None,
            Host::Told(_) => Some(pod.clone()),
            Host::Untold(_) => {
                Some(PodDemand { host: HostDemand::default(), containers: pod.containers.clone() })
            }
        }
    }

    /// Nodes that serve `pod`, with their scores.
    pub(crate) fn scores(&mut self, pod: &PodDemand) -> std::vec::IntoIter<(usize, Score)> {
        let found: Vec<(usize, Score)> = match (self.asked(pod), self.host) {
            (None, Host::Told(plain) | Host::Untold(plain)) if plain != Plain::Engine => {
                let of = (0..self.nodes.len()).filter_map(|at| {
                    let (left, all) = (left(&self.nodes, at, pod.host)?, self.hosts.get(at)?);
                    Some((at, plain.score(left, *all)?))
                });
                of.collect()
            }
            (asked, _) => {
                let verdicts = self.board.verdicts(asked.as_ref().unwrap_or(pod)).enumerate();
                let found = verdicts.filter_map(|(at, verdict)| Some((at, verdict.ok()?)));
                found.filter(|(at, _)| left(&self.nodes, *at, pod.host).is_some()).collect()
            }
        };
        found.into_iter()
    }

    /// Puts `pod` on node `at`.
    ///
    /// # Errors
    /// When it has no room there.
    pub(crate) fn place(&mut self, at: usize, pod: &PodDemand) -> Result<(), Reason> {
        let left = left(&self.nodes, at, pod.host).ok_or(Reason::HostCpu)?;
        if let Some(asked) = self.asked(pod) {
            self.board.place(at, &asked)?;
        }
        if let (Some(node), Some(known)) = (self.nodes.get_mut(at), self.board.nodes().get(at)) {
            *node = with_host(left, known);
            if !matches!(self.host, Host::Untold(_)) && known.host() != left {
                self.board.set_node(at, node.clone());
            }
        }
        Ok(())
    }
}

fn with_host(host: HostRoom, node: &NodeRoom) -> NodeRoom {
    // As many GPUs as there were.
    NodeRoom::new(host, node.gpus().to_vec()).unwrap_or_default()
}

/// What `asked` leaves of the host of node `at`; `None` when that much is not free.
fn left(nodes: &[NodeRoom], at: usize, asked: HostDemand) -> Option<HostRoom> {
    let free = nodes.get(at)?.host();
    let cpu_milli = free.cpu_milli.checked_sub(asked.cpu_milli)?;
    Some(HostRoom { cpu_milli, memory: free.memory.checked_sub(asked.memory)? })
}

impl Plain {
    /// The mean of what is left, or not left, of processors and memory, as whole numbers of 0 to 100.
    /// `None` where the engine says it.
    fn score(self, left: HostRoom, all: HostRoom) -> Option<Score> {
        let least = match self {
            Self::Engine => return None,
            Self::LeastAllocated => true,
            Self::MostAllocated => false,
        };
        let part = |left: u64, all: u64| {
            let of = if least { left } else { all.saturating_sub(left) };
            of.saturating_mul(100).checked_div(all).unwrap_or(0)
        };
        let both = part(left.cpu_milli, all.cpu_milli) + part(left.memory.get(), all.memory.get());
        Some(Score::new((both / 2) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trace;

    /// Whoever looks at the host, nothing of it is given twice; what the engine does not see, it
    /// does not prefer by.
    #[test]
    fn the_scheduler_keeps_pods_from_nodes_without_processors() {
        let nodes = "cpu_milli,memory_mib,gpu,model\n8000,8192,2,a\n16000,8192,2,a\n";
        let pods =
            "cpu_milli,memory_mib,num_gpu,gpu_milli\n6000,1024,1,500\n9000,1024,0,0\n1000,0,0,0\n";
        let trace = Trace::read(nodes.as_bytes(), pods.as_bytes()).unwrap();
        let (gpu, plain) = (&trace.pods[0].demand, &trace.pods[1].demand);
        let plain_by = Plain::LeastAllocated;
        for host in [Host::Engine, Host::Told(plain_by), Host::Untold(plain_by)] {
            let mut cluster = Cluster::new(Policy::Pack, host, trace.nodes.clone());
            let fitting = |cluster: &mut Cluster, pod: &PodDemand| -> Vec<usize> {
                cluster.scores(pod).map(|(at, _)| at).collect()
            };
            assert_eq!(fitting(&mut cluster, gpu), [0, 1]);
            cluster.place(0, gpu).unwrap();
            assert_eq!(fitting(&mut cluster, gpu), [1], "{host:?}");
            cluster.place(1, plain).unwrap();
            cluster.place(1, gpu).unwrap();
            assert_eq!(fitting(&mut cluster, gpu), Vec::<usize>::new(), "{host:?}");
            assert!(cluster.place(1, gpu).is_err());
            assert_eq!(cluster.nodes()[1].host().cpu_milli, 1000);
            assert_eq!(cluster.nodes()[1].gpus()[0].free_milli(), 500);
        }
        let cluster = |host| Cluster::new(Policy::Pack, host, trace.nodes.clone());
        let untold = cluster(Host::Untold(plain_by));
        assert_eq!((untold.asked(plain), untold.asked(gpu).unwrap().host.cpu_milli), (None, 0));
        assert_eq!(cluster(Host::Told(plain_by)).asked(gpu).as_ref(), Some(gpu));
        // Pods without GPUs: the larger node has more left, and less in use.
        let best = |plain| {
            let small = &trace.pods[2].demand;
            let mut cluster = cluster(Host::Told(plain));
            cluster.scores(small).max_by_key(|(_, score)| *score).map(|(at, _)| at)
        };
        assert_eq!([Plain::LeastAllocated, Plain::MostAllocated].map(best), [Some(1), Some(0)]);
    }
}
