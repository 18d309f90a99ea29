//! A node on which anything can happen at any time: a kubelet, an API server and an agent, each of
//! which comes and goes, the real plugin, and pods.

mod agent;
mod plugin;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::DEVICE_PLUGIN_ACCESS;
use gpuzone_core::GpuUuid;
use gpuzone_testkit::kubernetes::{ApiServer, ContainerKind, ContainerState, Kubelet, Pod};
use tempfile::TempDir;

pub(crate) use agent::Agent;
use plugin::{Moment, Plugin};
use pods::Next;
pub(crate) use pods::PodRun;

use crate::agent_model::AgentModel;

pub(crate) const NODE: &str = "n";

/// xorshift64*: the same sequence for the same seed, everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % bound
    }
}

/// A container that the kubelet started: where it looks for its lease.
pub(crate) struct Running {
    pub(crate) uid: String,
    pub(crate) folder: PathBuf,
    kind: ContainerKind,
    placed: bool,
    /// Whether its lease was seen: it must not go again while the container is there.
    pub(crate) served: bool,
}

pub(crate) struct World {
    seed: u64,
    pub(crate) folder: TempDir,
    pub(crate) api: ApiServer,
    pub(crate) agent: Agent,
    gpus: Vec<GpuUuid>,
    pub(crate) kubelet: Option<Kubelet>,
    plugin: Option<Plugin>,
    pub(crate) pods: Vec<PodRun>,
    /// By the pod's UID and the container's name.
    pub(crate) running: BTreeMap<(String, String), Running>,
    gone: Vec<Running>,
    /// Kept for the kubelet's next start.
    active: Vec<Pod>,
    pub(crate) made: u32,
    /// Few, so that slots are used again and again.
    pub(crate) slots: u16,
}

impl World {
    /// With a model of an agent.
    pub(crate) async fn new(seed: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let (start, scrub) = (seed % 3 * 5, seed % 4 * 10);
        let (start, scrub) = (Duration::from_millis(start), Duration::from_millis(scrub));
        let agent = Agent::Model(AgentModel::new(folder.path(), start, scrub));
        Self::of(seed, folder, agent).await
    }

    /// With the real agent, which is built first, and the plugin's own program.
    pub(crate) async fn real(seed: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        Self::of(seed, folder, Agent::real()).await
    }

    async fn of(seed: u64, folder: TempDir, agent: Agent) -> Self {
        for library in ["lib.so", "libgpuzone_nvml.so"] {
            std::fs::write(folder.path().join(library), "").unwrap();
        }
        let api = ApiServer::start().await.unwrap();
        api.allow_only(DEVICE_PLUGIN_ACCESS);
        api.put_quota("all", Some(serde_json::json!({ "namespaceSelector": {} })));
        Self {
            seed,
            folder,
            api,
            gpus: agent.gpus(),
            agent,
            kubelet: None,
            plugin: None,
            pods: Vec::new(),
            running: BTreeMap::new(),
            gone: Vec::new(),
            active: Vec::new(),
            made: 0,
            slots: 8,
        }
    }

    /// The agent's run directory and its state directory.
    fn folders(&self) -> (PathBuf, PathBuf) {
        let own = || (self.folder.path().join("run"), self.folder.path().join("state"));
        self.agent.folders().unwrap_or_else(own)
    }

    fn plugin_log(&self) -> PathBuf {
        self.folder.path().join("plugin.log")
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let kubeconfig = self.api.kubeconfig(self.folder.path()).unwrap();
        let (run, state) = self.folders();
        vec![
            format!("--node={NODE}"),
            format!("--slots={}", self.slots),
            format!("--library={}", path("lib.so")),
            format!("--run-dir={}", run.display()),
            format!("--state-dir={}", state.display()),
            format!("--kubelet-dir={}", path("kubelet/device-plugins")),
            format!("--pod-resources={}", path("kubelet/pod-resources/kubelet.sock")),
            format!("--kubeconfig={}", kubeconfig.display()),
        ]
    }

    pub(crate) fn start_kubelet(&mut self) {
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

    pub(crate) fn start_plugin(&mut self) {
        if self.plugin.is_none() {
            let arguments = self.arguments();
            self.plugin = Some(match self.agent {
                Agent::Model(_) => Plugin::task(&arguments),
                Agent::Real(..) => Plugin::program(&arguments, &self.plugin_log()),
            });
        }
    }

    pub(crate) async fn kill_plugin(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            plugin.kill().await;
        }
    }

    /// Brings a pod on, and kills the plugin while it makes its lease.
    async fn kill_while_starting(&mut self, uid: &str, random: &mut Random) {
        let (run, state) = self.folders();
        let moment = match random.below(4) {
            0 => Moment::After(Duration::from_millis(random.below(20) as u64)),
            1 => Moment::Placed { run },
            _ => Moment::Claimed { state },
        };
        let Some(plugin) = self.plugin.take() else { return };
        let mut bringing = std::pin::pin!(self.bring_on(uid, 0));
        let over = tokio::select! {
            () = &mut bringing => true,
            () = moment.come(uid) => false,
        };
        plugin.kill().await;
        if !over {
            bringing.await;
        }
    }

    /// A pod of one container with one slot.
    pub(crate) fn simple_pod(&mut self) -> PodRun {
        self.made += 1;
        PodRun::simple(self.made, &self.gpus)
    }

    fn random_pod(&mut self, random: &mut Random) -> PodRun {
        self.made += 1;
        PodRun::random(self.made, random, &self.gpus)
    }

    pub(crate) async fn add(&mut self, run: PodRun) {
        let taken = self.pods.iter().any(|other| other.pod.name == run.pod.name);
        let Some(kubelet) = self.kubelet.as_ref().filter(|_| !taken) else { return };
        self.api.put(&run.mirror, NODE, "Pending", false);
        match kubelet.admit(&run.pod).await {
            Ok(()) => self.pods.push(run),
            // No slot, or no plugin: failed for good.
            Err(_) => self.api.delete(&run.mirror),
        }
    }

    fn at(&self, uid: &str) -> Option<usize> {
        self.pods.iter().position(|run| run.pod.uid == uid)
    }

    /// Brings a pod on: starts a container of it, for the first time or again, or ends its init
    /// container.
    pub(crate) async fn bring_on(&mut self, uid: &str, choice: usize) {
        let Some(at) = self.at(uid) else { return };
        let run = self.pods[at].clone();
        match run.next() {
            Next::Finish(name) => {
                self.running.remove(&(uid.to_owned(), name.clone()));
                self.pods[at].states.insert(name, ContainerState::Done);
            }
            Next::Start(startable) => {
                let Some(kubelet) = &self.kubelet else { return };
                let container = &startable[choice % startable.len()];
                let Ok(started) = kubelet.start_container(&run.pod, &container.name).await else {
                    return;
                };
                let folder = started.on_node("/run/gpu-zone/slot").unwrap();
                let (key, kind) = ((uid.to_owned(), container.name.clone()), container.kind);
                let served = self.running.get(&key).is_some_and(|before| before.served);
                let (uid, placed) = (uid.to_owned(), run.placed);
                self.running.insert(key, Running { uid, folder, kind, placed, served });
                self.pods[at].states.insert(container.name.clone(), ContainerState::Running);
            }
        }
        let run = &self.pods[at];
        self.api.put_states(&run.mirror, NODE, run.phase(), &run.states);
    }

    pub(crate) fn delete(&mut self, uid: &str) {
        let (Some(kubelet), Some(at)) = (&self.kubelet, self.at(uid)) else { return };
        let run = self.pods.remove(at);
        kubelet.remove(&run.pod);
        self.api.delete(&run.mirror);
        self.forget(uid);
    }

    fn forget(&mut self, uid: &str) {
        let own = |key: &(String, String)| key.0 == uid;
        let keys: Vec<_> = self.running.keys().filter(|key| own(key)).cloned().collect();
        self.gone.extend(keys.iter().filter_map(|key| self.running.remove(key)));
    }

    /// Deletes a pod while one of its containers is being started.
    async fn delete_while_starting(&mut self, uid: &str, pause: Duration) {
        let (Some(kubelet), Some(at)) = (&self.kubelet, self.at(uid)) else { return };
        let run = self.pods.remove(at);
        let (Next::Start(startable), Some(_)) = (run.next(), Some(())) else {
            kubelet.remove(&run.pod);
            self.api.delete(&run.mirror);
            return self.forget(uid);
        };
        let container = &startable[0];
        let starting = kubelet.start_container(&run.pod, &container.name);
        let deleting = async {
            tokio::time::sleep(pause).await;
            self.api.delete(&run.mirror);
        };
        let (started, ()) = tokio::join!(starting, deleting);
        // It ends what it had begun.
        kubelet.remove(&run.pod);
        if let Ok(started) = started {
            let folder = started.on_node("/run/gpu-zone/slot").unwrap();
            let (uid, kind, placed) = (uid.to_owned(), container.kind, run.placed);
            self.gone.push(Running { uid, folder, kind, placed, served: false });
        }
        self.forget(uid);
    }

    pub(crate) async fn step(&mut self, random: &mut Random) {
        let uid = match self.pods.len() {
            0 => None,
            count => Some(self.pods[random.below(count)].pod.uid.clone()),
        };
        let pause = Duration::from_millis(random.below(6) as u64);
        match (random.below(20), uid) {
            (0..=3, _) | (_, None) => {
                let run = self.random_pod(random);
                self.add(run).await;
            }
            (4..=10, Some(uid)) => self.bring_on(&uid, random.below(4)).await,
            (11 | 12, Some(uid)) => self.delete(&uid),
            (13, Some(uid)) => self.delete_while_starting(&uid, pause).await,
            (14, _) => {
                self.stop_kubelet();
                if random.below(2) == 0 {
                    self.start_kubelet();
                }
            }
            (15, Some(uid)) if random.below(3) > 0 => self.kill_while_starting(&uid, random).await,
            (15, _) => self.kill_plugin().await,
            (16, _) => self.agent.set_away(random.below(2) == 0).await,
            (17, _) => self.api.set_away(random.below(2) == 0),
            (_, _) => {
                self.start_kubelet();
                self.start_plugin();
            }
        }
        if random.below(3) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(8) as u64)).await;
        }
        self.check().await;
    }

    /// What the real programs wrote.
    fn log(&self) -> String {
        let plugin = std::fs::read_to_string(self.plugin_log()).unwrap_or_default();
        format!("plugin:\n{plugin}\nagent:\n{}", self.agent.log())
    }

    /// Holds at all times. What there is, where somebody can tell.
    pub(crate) async fn check(&mut self) -> Option<BTreeSet<String>> {
        let seed = self.seed;
        let leases = self.agent.leases().await?;
        leases.check(seed);
        let mut lost = Vec::new();
        for ((_, name), running) in &mut self.running {
            let uid = &running.uid;
            match leases.serves(&running.folder) {
                Some((of, container)) => {
                    assert_eq!(of, *uid, "seed {seed}: another pod's lease");
                    assert!(running.placed, "seed {seed}: {uid} has no right to a lease");
                    let there = running.folder.is_dir();
                    assert!(there, "seed {seed}: {uid} cannot look where its lease is");
                    // What an init container had, the next one takes over; one that started
                    // without PreStartContainer, a moment later.
                    running.served |= running.kind != ContainerKind::Init && container == *name;
                }
                None if running.served => {
                    lost.push(format!("{name} of {uid} in {}", running.folder.display()))
                }
                None => {}
            }
        }
        let log = if lost.is_empty() { String::new() } else { self.log() };
        assert!(
            lost.is_empty(),
            "seed {seed}: these lost their leases: {lost:?} of {leases:?}\n{log}"
        );
        for gone in &self.gone {
            if let Some((of, _)) = leases.serves(&gone.folder) {
                assert_eq!(of, gone.uid, "seed {seed}: a dead pod's folder serves another");
            }
        }
        Some(leases.holders())
    }

    /// Who is to have a lease when all is well: each container that lasts.
    fn rightful(&self) -> BTreeSet<String> {
        let placed = self.pods.iter().filter(|run| run.placed);
        let of = |run: &PodRun| {
            let uid = run.pod.uid.clone();
            run.lasting().map(move |c| format!("pod/{uid}/{}", c.name)).collect::<Vec<_>>()
        };
        placed.flat_map(of).collect()
    }

    /// All are back, and every running container has its lease, and no other is there.
    pub(crate) async fn settle(&mut self) {
        self.kill_plugin().await;
        self.agent.set_away(false).await;
        self.api.set_away(false);
        self.start_kubelet();
        self.start_plugin();
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let holders = self.check().await;
            let mut waiting = false;
            for run in self.pods.clone() {
                let uid = run.pod.uid.clone();
                match run.next() {
                    Next::Finish(_) => {
                        waiting = true;
                        self.bring_on(&uid, 0).await;
                    }
                    Next::Start(startable) => {
                        let missing = |c: &gpuzone_testkit::kubernetes::ContainerSpec| {
                            !run.states.contains_key(&c.name)
                        };
                        if let Some(at) = startable.iter().position(missing) {
                            waiting |= run.placed;
                            self.bring_on(&uid, at).await;
                        }
                    }
                }
            }
            // Without a plugin nothing is wrong, nor right.
            let kubelet = self.kubelet.as_ref();
            waiting |= kubelet.is_none_or(|k| k.allocatable() == 0) && self.pods.is_empty();
            let lasting = |r: &&Running| r.placed && r.kind != ContainerKind::Init;
            let all = self.running.values().filter(lasting).all(|running| running.served);
            let rightful = self.rightful();
            if all && !waiting && holders.as_ref() == Some(&rightful) {
                return;
            }
            let seed = self.seed;
            let log = if Instant::now() < end { String::new() } else { self.log() };
            assert!(
                Instant::now() < end,
                "seed {seed}: leases {holders:?}, and these are to be there: {rightful:?}\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A random sequence, and the peace after it.
pub(crate) async fn sequence(mut world: World, steps: usize) {
    let mut random = Random::new(world.seed);
    world.start_kubelet();
    world.start_plugin();
    for _ in 0..steps {
        world.step(&mut random).await;
    }
    world.settle().await;
    world.kill_plugin().await;
}
