//! Random sequences of what can happen on a node, against the real plugin: no lease for the wrong
//! pod, none lost, none leaked, none doubled. The kubelet and the API server are testkit's; the
//! agent is a model here, which keeps its leases through its own restarts, as the real one does.
//!
//! `GPUZONE_MODEL_SEEDS` says how many sequences; a failure names its seed, and
//! `GPUZONE_MODEL_FIRST` repeats it.
#[cfg(test)]
mod agent_model;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use clap::Parser;
    use gpuzone_api::kubernetes::{PLACEMENT_ANNOTATION, PodPlacement};
    use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes, Placement};
    use gpuzone_device_plugin::config::Config;
    use gpuzone_testkit::kubernetes::{ApiServer, Kubelet, Pod};
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::agent_model::AgentModel;

    const NODE: &str = "n";
    const STEPS: usize = 40;

    /// xorshift64*: the same sequence for the same seed, everywhere.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            usize::try_from(high).unwrap() % bound
        }
    }

    /// A container that the kubelet started: where it looks for its lease.
    struct Running {
        pod: Pod,
        folder: PathBuf,
        /// Whether its lease was seen: it must not go again while the pod is there.
        served: bool,
    }

    struct World {
        seed: u64,
        folder: TempDir,
        api: ApiServer,
        agent: AgentModel,
        kubelet: Option<Kubelet>,
        plugin: Option<JoinHandle<()>>,
        pods: Vec<Pod>,
        running: BTreeMap<String, Running>,
        gone: Vec<Running>,
        /// Kept for the kubelet's next start.
        active: Vec<Pod>,
        made: u32,
        /// Few, so that slots are used again and again.
        slots: u16,
    }

    impl World {
        async fn new(seed: u64) -> Self {
            let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
            std::fs::create_dir(folder.path().join("run")).unwrap();
            std::fs::write(folder.path().join("lib.so"), "").unwrap();
            let agent = AgentModel::new(folder.path(), Duration::from_millis(seed % 4 * 10));
            let api = ApiServer::start().await.unwrap();
            Self {
                seed,
                folder,
                api,
                agent,
                kubelet: None,
                plugin: None,
                pods: Vec::new(),
                running: BTreeMap::new(),
                gone: Vec::new(),
                active: Vec::new(),
                made: 0,
                slots: 4,
            }
        }

        fn config(&self) -> Config {
            let path = |name: &str| self.folder.path().join(name).display().to_string();
            let kubeconfig = self.api.kubeconfig(self.folder.path()).unwrap();
            Config::parse_from([
                "plugin".to_owned(),
                "--node".to_owned(),
                NODE.to_owned(),
                format!("--slots={}", self.slots),
                format!("--library={}", path("lib.so")),
                format!("--run-dir={}", path("run")),
                format!("--state-dir={}", path("state")),
                format!("--kubelet-dir={}", path("kubelet/device-plugins")),
                format!("--pod-resources={}", path("kubelet/pod-resources/kubelet.sock")),
                format!("--kubeconfig={}", kubeconfig.display()),
            ])
        }

        fn start_kubelet(&mut self) {
            if self.kubelet.is_none() {
                let folder = self.folder.path().join("kubelet");
                let active = std::mem::take(&mut self.active);
                let started = Kubelet::start(&folder, "gpuzone.dev/gpu", active, "v1beta1");
                self.kubelet = Some(started.unwrap());
            }
        }

        fn stop_kubelet(&mut self) {
            if let Some(kubelet) = self.kubelet.take() {
                self.active = kubelet.active();
            }
        }

        fn start_plugin(&mut self) {
            if self.plugin.is_none() {
                let config = self.config();
                self.plugin = Some(tokio::spawn(async move {
                    // A killed one's lock goes when its last thread has let go of it.
                    while gpuzone_device_plugin::run(config.clone()).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }));
            }
        }

        async fn kill_plugin(&mut self) {
            if let Some(plugin) = self.plugin.take() {
                plugin.abort();
                assert!(plugin.await.is_err(), "it was killed");
            }
        }

        fn new_pod(&mut self) -> Pod {
            self.made += 1;
            // Names come again, as a StatefulSet's do; UIDs never.
            let uid = format!("uid-{}", self.made);
            let pod = Pod::new("team", &format!("p{}", self.made % 5), &uid, 1);
            let grant = Grant {
                gpu: GpuUuid::from_bytes([1; 16]),
                memory: MemoryBytes::gib(1),
                share: ComputeShare::new(1).unwrap(),
            };
            let given = Placement::of(vec![grant]).unwrap();
            let containers = BTreeMap::from([("app".parse().unwrap(), given)]);
            let (node, uid) = (NODE.parse().unwrap(), uid.parse().unwrap());
            let placement = PodPlacement::new(node, uid, containers).unwrap();
            pod.annotated(PLACEMENT_ANNOTATION, placement)
        }

        async fn add(&mut self) {
            let pod = self.new_pod();
            let taken = self.pods.iter().any(|other| other.name == pod.name);
            let Some(kubelet) = self.kubelet.as_ref().filter(|_| !taken) else { return };
            self.api.put(&pod, NODE, "Pending", false);
            match kubelet.admit(&pod).await {
                Ok(()) => self.pods.push(pod),
                // No slot, or no plugin: failed for good.
                Err(_) => self.api.delete(&pod),
            }
        }

        async fn start(&mut self, pod: &Pod) {
            let Some(kubelet) = &self.kubelet else { return };
            if let Ok(container) = kubelet.start_container(pod, "app").await {
                let folder = container.on_node("/run/gpu-zone/slot").unwrap();
                let served = self.running.get(&pod.uid).is_some_and(|before| before.served);
                let running = Running { pod: pod.clone(), folder, served };
                self.running.insert(pod.uid.clone(), running);
                self.api.put(pod, NODE, "Running", true);
            }
        }

        fn delete(&mut self, pod: &Pod) {
            if let Some(kubelet) = &self.kubelet {
                kubelet.remove(pod);
                self.api.delete(pod);
                self.pods.retain(|other| other.uid != pod.uid);
                self.gone.extend(self.running.remove(&pod.uid));
            }
        }

        async fn step(&mut self, random: &mut Random) {
            let pod = match self.pods.len() {
                0 => None,
                count => Some(self.pods[random.below(count)].clone()),
            };
            match (random.below(16), pod) {
                (0..=3, _) | (_, None) => self.add().await,
                (4..=7, Some(pod)) => self.start(&pod).await,
                (8 | 9, Some(pod)) => self.delete(&pod),
                (10, _) => {
                    self.stop_kubelet();
                    if random.below(2) == 0 {
                        self.start_kubelet();
                    }
                }
                (11, _) => self.kill_plugin().await,
                (12, _) => self.agent.set_away(random.below(2) == 0).await,
                (13, _) => self.api.set_away(random.below(2) == 0),
                (_, _) => {
                    self.start_kubelet();
                    self.start_plugin();
                }
            }
            if random.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(random.below(8) as u64)).await;
            }
            self.check();
        }

        /// Holds at all times.
        fn check(&mut self) {
            let seed = self.seed;
            self.agent.check(seed);
            for running in self.running.values_mut() {
                match self.agent.serves(&running.folder) {
                    Some(uid) => {
                        assert_eq!(uid, running.pod.uid, "seed {seed}: another pod's lease");
                        let there = running.folder.is_dir();
                        assert!(there, "seed {seed}: {uid} cannot look where its lease is");
                        running.served = true;
                    }
                    None => {
                        assert!(!running.served, "seed {seed}: {} lost its lease", running.pod.uid)
                    }
                }
            }
            for gone in &self.gone {
                if let Some(uid) = self.agent.serves(&gone.folder) {
                    assert_eq!(
                        uid, gone.pod.uid,
                        "seed {seed}: a dead pod's folder serves another"
                    );
                }
            }
        }

        /// All are back, and every running container has its lease, and no other is there.
        async fn settle(&mut self) {
            self.kill_plugin().await;
            self.agent.set_away(false).await;
            self.api.set_away(false);
            self.start_kubelet();
            self.start_plugin();
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                self.check();
                for pod in self.pods.clone() {
                    if !self.running.contains_key(&pod.uid) {
                        self.start(&pod).await;
                    }
                }
                let holders = self.agent.holders();
                let all = self
                    .pods
                    .iter()
                    .all(|pod| self.running.get(&pod.uid).is_some_and(|running| running.served));
                if all && holders.len() == self.pods.len() {
                    return;
                }
                let pods: Vec<&str> = self.pods.iter().map(|pod| pod.uid.as_str()).collect();
                let seed = self.seed;
                assert!(Instant::now() < end, "seed {seed}: leases {holders:?}, pods {pods:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn sequence(seed: u64) {
        let mut world = World::new(seed).await;
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        world.start_kubelet();
        world.start_plugin();
        for _ in 0..STEPS {
            world.step(&mut random).await;
        }
        world.settle().await;
        world.kill_plugin().await;
    }

    /// The kubelet admits them one after the other and starts them all at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_hundred_pods_at_once() {
        let mut world = World::new(0).await;
        world.slots = 128;
        world.start_kubelet();
        world.start_plugin();
        let end = Instant::now() + Duration::from_secs(30);
        while world.kubelet.as_ref().unwrap().allocatable() != 128 {
            assert!(Instant::now() < end, "not registered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kubelet = std::sync::Arc::new(world.kubelet.take().unwrap());
        let mut starts = tokio::task::JoinSet::new();
        for number in 0..100 {
            let pod = world.new_pod();
            let pod = Pod { name: format!("pod-{number}"), ..pod };
            world.api.put(&pod, NODE, "Pending", false);
            kubelet.admit(&pod).await.unwrap();
            let kubelet = std::sync::Arc::clone(&kubelet);
            starts.spawn(async move {
                let started = kubelet.start_container(&pod, "app").await.unwrap();
                (pod.uid, started.on_node("/run/gpu-zone/slot").unwrap())
            });
        }
        for (uid, folder) in starts.join_all().await {
            assert_eq!(world.agent.serves(&folder), Some(uid));
        }
        world.agent.check(0);
        assert_eq!(world.agent.holders().len(), 100);
        world.kill_plugin().await;
    }

    /// Scrubs take their time, and what a sweep knew of the pods when it began is old by then.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_pod_that_starts_while_anothers_lease_ends_keeps_its_folder() {
        let mut world = World::new(0).await;
        world.agent = AgentModel::new(world.folder.path(), Duration::from_millis(300));
        world.start_kubelet();
        world.start_plugin();
        let end = Instant::now() + Duration::from_secs(30);
        while world.running.is_empty() {
            world.add().await;
            if let Some(pod) = world.pods.first().cloned() {
                world.start(&pod).await;
            }
            assert!(Instant::now() < end, "no pod starts");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for pod in world.pods.clone() {
            world.delete(&pod);
        }
        while world.agent.ending() == 0 {
            assert!(Instant::now() < end, "no lease is ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.add().await;
        let pod = world.pods[0].clone();
        world.start(&pod).await;
        while world.agent.ending() > 0 || world.agent.holders().len() != 1 {
            assert!(Instant::now() < end, "leases {:?}", world.agent.holders());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The sweep's last work comes after the last lease's end.
        for _ in 0..50 {
            world.check();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        world.kill_plugin().await;
    }

    /// It takes calls and never answers.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn an_agent_that_hangs_is_an_error_in_time() {
        let mut world = World::new(0).await;
        world.start_kubelet();
        world.start_plugin();
        world.agent.set_away(true).await;
        let socket = world.folder.path().join("run/agent.sock");
        let _ = std::fs::remove_file(&socket);
        let _hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        while world.pods.is_empty() {
            world.add().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kubelet = world.kubelet.as_ref().unwrap();
        let error = kubelet.start_container(&world.pods[0], "app").await.unwrap_err().to_string();
        assert!(error.contains("the node's agent does not answer"), "{error}");
        // And nothing else waits for it.
        world.add().await;
        assert_eq!(world.pods.len(), 2);
        world.kill_plugin().await;
    }

    fn number(variable: &str, default: u64) -> u64 {
        std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_lease_is_wrong_lost_leaked_or_doubled() {
        let first = number("GPUZONE_MODEL_FIRST", 1);
        let seeds = first..first + number("GPUZONE_MODEL_SEEDS", 60);
        let mut running = tokio::task::JoinSet::new();
        for seed in seeds {
            if running.len() >= 6 {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(sequence(seed));
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }
}
