//! Random sequences of what can happen on a node, against the real plugin: no lease for the wrong
//! pod, none lost, none leaked, none doubled. Pods have several containers, init containers and
//! sidecars, of one slot or two; some are static, some are deleted while they start. The kubelet and
//! the API server are testkit's; the agent is a model here, which keeps its leases through its own
//! restarts, as the real one does, or the real one. Beside a model the plugin is a task of this
//! program; beside the real agent it is its own program, and is killed by SIGKILL.
//!
//! `GPUZONE_MODEL_SEEDS` says how many sequences; a failure names its seed, and
//! `GPUZONE_MODEL_FIRST` repeats it.
#[cfg(test)]
mod agent_model;
#[cfg(test)]
mod world;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use gpuzone_testkit::kubernetes::{Pod, Used};

    use super::agent_model::AgentModel;
    use super::world::{Agent, NODE, World, sequence};

    const STEPS: usize = 40;

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
            let mut pod = world.simple_pod().pod;
            pod.name = format!("pod-{number}");
            world.api.put(&pod, NODE, "Pending", false);
            kubelet.admit(&pod).await.unwrap();
            let kubelet = std::sync::Arc::clone(&kubelet);
            starts.spawn(async move {
                let started = kubelet.start_container(&pod, "app").await.unwrap();
                (pod.uid, started.on_node("/run/gpu-zone/slot").unwrap())
            });
        }
        let started = starts.join_all().await;
        let leases = world.agent.leases().await.unwrap();
        for (uid, folder) in started {
            assert_eq!(leases.serves(&folder), Some((uid, "app".to_owned())));
        }
        leases.check(0);
        assert_eq!(leases.holders().len(), 100);
        world.kill_plugin().await;
    }

    /// Scrubs take their time, and what a sweep knew of the pods when it began is old by then.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_pod_that_starts_while_anothers_lease_ends_keeps_its_folder() {
        let mut world = World::new(0).await;
        let slow = AgentModel::new(world.folder.path(), Duration::ZERO, Duration::from_millis(300));
        world.agent = Agent::Model(slow);
        let ending = |world: &World| match &world.agent {
            Agent::Model(model) => model.ending(),
            Agent::Real(..) => panic!("it is a model"),
        };
        world.start_kubelet();
        world.start_plugin();
        let end = Instant::now() + Duration::from_secs(30);
        while world.running.is_empty() {
            let pod = world.simple_pod();
            world.add(pod).await;
            if let Some(uid) = world.pods.first().map(|run| run.pod.uid.clone()) {
                world.bring_on(&uid, 0).await;
            }
            assert!(Instant::now() < end, "no pod starts");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for run in world.pods.clone() {
            world.delete(&run.pod.uid);
        }
        while ending(&world) == 0 {
            assert!(Instant::now() < end, "no lease is ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let pod = world.simple_pod();
        let uid = pod.pod.uid.clone();
        world.add(pod).await;
        world.bring_on(&uid, 0).await;
        loop {
            let holders = world.check().await.unwrap();
            if ending(&world) == 0 && holders.len() == 1 {
                break;
            }
            assert!(Instant::now() < end, "leases {holders:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The sweep's last work comes after the last lease's end.
        for _ in 0..50 {
            world.check().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        world.kill_plugin().await;
    }

    /// The kubelet names pods and says no UID. What it says twice of one name may be of two pods.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_pod_made_anew_while_it_starts_gets_nothing_of_the_older_ones() {
        let mut world = World::new(0).await;
        world.slots = 1;
        world.start_kubelet();
        world.start_plugin();
        let end = Instant::now() + Duration::from_secs(30);
        while world.kubelet.as_ref().unwrap().allocatable() != 1 {
            assert!(Instant::now() < end, "not registered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kubelet = world.kubelet.take().unwrap();
        let (older, newer) = (world.simple_pod().pod, world.simple_pod().pod);
        let newer = Pod { name: older.name.clone(), ..newer };
        world.api.put(&older, NODE, "Pending", false);
        kubelet.admit(&older).await.unwrap();
        // The plugin has asked about the older one, and goes on when the newer has its slot.
        world.api.hold_namespaces(true);
        let anew = async {
            let asked = |used: &Used| used.resource == "namespaces";
            while !world.api.used().iter().any(asked) {
                assert!(Instant::now() < end, "the plugin does not ask");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            kubelet.remove(&older);
            world.api.delete(&older);
            world.api.put(&newer, NODE, "Pending", false);
            kubelet.admit(&newer).await.unwrap();
            world.api.hold_namespaces(false);
        };
        let (starting, ()) = tokio::join!(kubelet.start_container(&older, "app"), anew);
        let said = starting.unwrap_err().to_string();
        assert!(said.contains("went to another pod meanwhile"), "{said}");
        let started = kubelet.start_container(&newer, "app").await.unwrap();
        let folder = started.on_node("/run/gpu-zone/slot").unwrap();
        let leases = world.agent.leases().await.unwrap();
        assert_eq!(leases.serves(&folder), Some((newer.uid, "app".to_owned())));
        assert_eq!(leases.holders().len(), 1);
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
        let end = Instant::now() + Duration::from_secs(30);
        while world.pods.is_empty() {
            let pod = world.simple_pod();
            world.add(pod).await;
            assert!(Instant::now() < end, "no pod is admitted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let kubelet = world.kubelet.as_ref().unwrap();
        let pod = &world.pods[0].pod;
        let error = kubelet.start_container(pod, "app").await.unwrap_err().to_string();
        assert!(error.contains("the node's agent does not answer"), "{error}");
        // And nothing else waits for it.
        let pod = world.simple_pod();
        world.add(pod).await;
        assert_eq!(world.pods.len(), 2);
        world.kill_plugin().await;
    }

    fn number(variable: &str, default: u64) -> u64 {
        std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    async fn sequences(count: u64) {
        let first = number("GPUZONE_MODEL_FIRST", 1);
        let seeds = first..first + number("GPUZONE_MODEL_SEEDS", count);
        let mut running = tokio::task::JoinSet::new();
        for seed in seeds {
            if running.len() >= 6 {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(async move { sequence(World::new(seed).await, STEPS).await });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_lease_is_wrong_lost_leaked_or_doubled() {
        sequences(30).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "the long set of the test above: some minutes"]
    async fn no_lease_is_wrong_lost_leaked_or_doubled_in_hundreds_of_sequences() {
        sequences(400).await;
    }

    /// The same with the plugin's own program and the agent's with simulated GPUs, both killed as
    /// often.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nor_is_one_of_the_real_agents() {
        let first = number("GPUZONE_MODEL_FIRST", 1);
        let mut running = tokio::task::JoinSet::new();
        for seed in first..first + number("GPUZONE_MODEL_REAL_SEEDS", 3) {
            if running.len() >= 2 {
                running.join_next().await.unwrap().unwrap();
            }
            running.spawn(async move { sequence(World::real(seed).await, 25).await });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }
}
