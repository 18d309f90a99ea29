//! The real plugin and the real agent with simulated GPUs, under a kubelet and an API server that
//! are stand-ins: pods really run kernels through their slots.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;

    use gpuzone_api::kubelet::v1beta1::device_plugin_client::DevicePluginClient;
    use gpuzone_api::kubelet::v1beta1::{
        AllocateRequest, ContainerAllocateRequest, PreStartContainerRequest,
    };
    use gpuzone_api::kubernetes::TENANT_LABEL;
    use gpuzone_testkit::kubernetes::{ContainerKind, Pod};
    use serde_json::json;

    use super::support::{Cluster, NODE};

    const NOBODY: u32 = 65_534;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pod_runs_a_kernel_through_its_slot() {
        let cluster = Cluster::start().await;
        cluster.api.label("team", TENANT_LABEL, "acme");
        // Two GPUs for one container, and a part of one of them for another.
        let pod = Pod::new("team", "train-0", "uid-1", 2).with("side", ContainerKind::App, 1);
        let both = [cluster.grant(0, 2), cluster.grant(1, 2)];
        let pod = cluster.placed(pod, &[("app", &both), ("side", &[cluster.grant(0, 1)])]);
        cluster.admit(&pod).await;
        assert_eq!(cluster.kubelet().devices(&pod, "app").len(), 2);
        assert!(cluster.node.leases().unwrap().is_empty(), "nothing is held before it starts");
        let app = cluster.start_container(&pod, "app").await;
        let side = cluster.start_container(&pod, "side").await;
        cluster.works(&app);
        cluster.works(&side);
        let leases = cluster.node.leases().unwrap();
        assert_eq!(leases.len(), 2);
        assert!(leases.iter().all(|lease| lease.tenant() == "acme"));
        assert_eq!(leases[0].0["grants"].as_array().unwrap().len(), 2);
        assert_eq!(leases[0].0["program"], "team/train-0/app");
        // It crashes and starts again, in its lease.
        let again = cluster.start_container(&pod, "app").await;
        cluster.works(&again);
        assert_eq!(cluster.node.leases().unwrap()[0].id(), leases[0].id());

        cluster.delete(&pod);
        cluster.leases(0).await;
        cluster.fails(&app);
        // The next pod gets the same slot, and another folder.
        let next = cluster.small_pod("next");
        cluster.admit(&next).await;
        let container = cluster.start_container(&next, "app").await;
        let folder = |c: &gpuzone_testkit::kubernetes::Container| c.on_node("/run/gpu-zone/slot");
        assert_ne!(folder(&container), folder(&app));
        cluster.works(&container);
        cluster.fails(&app);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_has_no_right_does_not_start_and_is_told_why() {
        let cluster = Cluster::start().await;
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        let copied = Pod { annotations: cluster.small_pod("a").annotations, ..bare.clone() };
        let greedy = Pod::new("small", "greedy", "uid-greedy", 1);
        let greedy = cluster.placed(greedy, &[("app", &[cluster.grant(0, 2)])]);
        let other = Pod { name: "copied".into(), uid: "uid-copied".into(), ..copied };
        let cases = [
            (bare.clone(), "leave spec.nodeName out"),
            (other, "made for another pod (uid-a)"),
            (greedy, "small"),
        ];
        for (pod, part) in &cases {
            cluster.admit(pod).await;
            let said = cluster.refusal(pod).await;
            assert!(said.contains(part), "{said} lacks {part}");
        }
        assert!(cluster.node.leases().unwrap().is_empty());
        // The kubelet asks again, and it is right by then.
        let placed = cluster.placed(bare, &[("app", &[cluster.grant(0, 1)])]);
        cluster.api.put(&placed, NODE, "Pending", false);
        let container = cluster.start_container(&placed, "app").await;
        cluster.works(&container);
        // Nobody knows the pod; the slot is held by two.
        let ghost = cluster.small_pod("ghost");
        cluster.kubelet().admit(&ghost).await.unwrap();
        let said = cluster.refusal(&ghost).await;
        assert!(said.contains("has no pod team/ghost"), "{said}");
        let slot = cluster.kubelet().devices(&placed, "app").pop_first().unwrap();
        cluster.kubelet().forge(&ghost, "app", &[&slot]);
        let said = cluster.refusal(&ghost).await;
        assert!(said.contains("neither gets a GPU"), "{said}");
        cluster.works(&container);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn running_pods_go_on_whoever_restarts() {
        let mut cluster = Cluster::start().await;
        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        let container = cluster.start_container(&pod, "app").await;
        let lease = cluster.node.leases().unwrap()[0].id().to_owned();

        cluster.kill_plugin();
        cluster.works(&container);
        cluster.until("the plugin's end", async |c| c.kubelet().allocatable() == 0).await;
        cluster.start_plugin();
        cluster.registered().await;

        cluster.restart_kubelet();
        cluster.registered().await;
        cluster.works(&container);

        cluster.node.kill_agent().unwrap();
        cluster.works(&container);
        // A pod that comes while the agent is away is admitted, and starts when it is back.
        let next = cluster.small_pod("b");
        cluster.admit(&next).await;
        let said = cluster.refusal(&next).await;
        assert!(said.contains("the node's agent does not answer"), "{said}");
        cluster.node.start_agent().unwrap();
        let second = cluster.start_container(&next, "app").await;
        cluster.works(&second);
        cluster.works(&container);

        // The pod goes while nobody looks.
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        cluster.delete(&next);
        cluster.node.start_agent().unwrap();
        cluster.start_plugin();
        cluster.leases(1).await;
        assert_eq!(cluster.node.leases().unwrap()[0].id(), lease);
        cluster.works(&container);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn silence_ends_nothing_and_a_skipped_call_gives_nothing_away() {
        let mut cluster = Cluster::start().await;
        let old = cluster.small_pod("old");
        cluster.admit(&old).await;
        let running = cluster.start_container(&old, "app").await;
        let next = cluster.small_pod("next");
        cluster.admit(&next).await;

        // The API server is away, the kubelet restarts, the plugin is away.
        cluster.api.set_away(true);
        let said = cluster.refusal(&next).await;
        assert!(said.contains("the API server does not answer"), "{said}");
        cluster.kill_plugin();
        cluster.restart_kubelet();
        // PreStartContainer is skipped, and the slot answers nobody.
        let early = cluster.kubelet().start_container(&next, "app").await.unwrap();
        cluster.fails(&early);
        cluster.works(&running);
        cluster.start_plugin();
        cluster.registered().await;
        cluster.fails(&early);
        cluster.works(&running);

        // All are back: the container that started without a lease gets it where it looks.
        cluster.api.put(&next, NODE, "Running", true);
        cluster.api.set_away(false);
        cluster.leases(2).await;
        cluster.works(&early);
        cluster.works(&running);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_clusters_quotas_are_asked_again_when_a_container_starts() {
        let mut cluster = Cluster::start().await;
        cluster.api.label("team", "team", "research");
        let selector = json!({ "matchLabels": { "team": "research" } });
        let quota = |rest: serde_json::Value| {
            let mut spec = json!({ "namespaceSelector": selector });
            spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            Some(spec)
        };
        // A placement of more than one pod may have, as who can write annotations writes it.
        cluster.api.put_quota("research", quota(json!({ "perPod": { "memory": "1Gi" } })));
        let greedy = cluster.placed(
            Pod::new("team", "greedy", "uid-greedy", 1),
            &[("app", &[cluster.grant(0, 2)])],
        );
        cluster.admit(&greedy).await;
        let said = cluster.refusal(&greedy).await;
        assert!(said.contains("'research' of the cluster for one pod: memory 0 held"), "{said}");
        // What is held here counts, over an agent that starts anew, too.
        cluster.api.put_quota("research", quota(json!({ "limits": { "pods": 1, "gpus": 2 } })));
        let (a, b) = (cluster.small_pod("a"), cluster.small_pod("b"));
        cluster.admit(&a).await;
        cluster.start_container(&a, "app").await;
        cluster.node.kill_agent().unwrap();
        cluster.node.start_agent().unwrap();
        cluster.admit(&b).await;
        let said = cluster.refusal(&b).await;
        assert!(said.contains("pods 1 held on this node + 1 asked is more than the 1"), "{said}");
        cluster.delete(&a);
        cluster.leases(0).await;
        // Unreadable, or none at all: nothing starts.
        cluster.api.put_quota("all", None);
        cluster.api.put_quota("research", quota(json!({ "limits": { "memory": "much" } })));
        let said = cluster.refusal(&b).await;
        assert!(said.contains("GpuQuota 'research' cannot be read"), "{said}");
        cluster.api.put_quota("research", None);
        let said = cluster.refusal(&b).await;
        assert!(said.contains("no GpuQuota holds for the namespace 'team'"), "{said}");
        assert!(cluster.node.leases().unwrap().is_empty());
        let model = json!([{ "model": "gpu-zone Simulated GPU", "limits": { "gpus": 1 } }]);
        cluster.api.put_quota("research", quota(json!({ "models": model })));
        cluster.start_container(&b, "app").await;
        let said = cluster.refusal(&greedy).await;
        assert!(said.contains("for 'gpu-zone Simulated GPU': GPUs 1 held"), "{said}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn init_containers_and_sidecars_have_their_leases() {
        let cluster = Cluster::start().await;
        let pod = Pod::new("team", "p", "uid-p", 1).with("fetch", ContainerKind::Init, 1).with(
            "proxy",
            ContainerKind::Sidecar,
            1,
        );
        let entries = [cluster.grant(0, 2)];
        let side = [cluster.grant(1, 1)];
        let pod = cluster.placed(pod, &[("app", &entries), ("proxy", &side)]);
        cluster.admit(&pod).await;
        let slots = |name: &str| cluster.kubelet().devices(&pod, name);
        assert_eq!(slots("fetch"), slots("app"), "taken over");
        assert!(slots("proxy").is_disjoint(&slots("app")));
        let fetch = cluster.start_container(&pod, "fetch").await;
        cluster.works(&fetch);
        let proxy = cluster.start_container(&pod, "proxy").await;
        let app = cluster.start_container(&pod, "app").await;
        cluster.works(&proxy);
        cluster.works(&app);
        assert_eq!(cluster.node.leases().unwrap().len(), 2, "one lease serves both");
        cluster.delete(&pod);
        cluster.leases(0).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_nodes_gpus_are_published_when_they_change() {
        let mut cluster = Cluster::start().await;
        let path = format!("gpunodes/{NODE}/status");
        cluster.until("the object", async |c| c.api.patched(&path).is_some()).await;
        let written = cluster.api.patched(&path).unwrap();
        assert_eq!(written["spec"]["node"], NODE);
        assert_eq!(
            (&written["status"]["total"], &written["status"]["healthy"]),
            (&2.into(), &2.into())
        );
        assert_eq!(written["status"]["gpus"][0]["uuid"], cluster.gpus[0].to_string());
        assert_eq!(written["status"]["gpus"][0]["simulated"], true);
        // Neither a lease nor a plugin that starts anew changes it.
        let patches = cluster.api.patches();
        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        cluster.start_container(&pod, "app").await;
        cluster.kill_plugin();
        cluster.start_plugin();
        cluster.registered().await;
        cluster.until("a comparison", async |c| c.log().contains("are published already")).await;
        cluster.kill_plugin();
        assert_eq!(cluster.api.patches(), patches);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_wrong_around_it_is_said() {
        let mut cluster = Cluster::start().await;
        // Another plugin of this node.
        let second = cluster.plugin_command().output().unwrap();
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(!second.status.success() && said.contains("another device plugin"), "{said}");

        // Devices that were never listed.
        let socket = cluster.kubelet().folder().join("gpuzone.dev_gpu.sock");
        let channel = gpuzone_api::connect_channel(&socket).await.unwrap();
        let mut direct = DevicePluginClient::new(channel);
        for id in ["nvidia0", "slot-64", "slot-1/../../x", ""] {
            let devices_ids = vec![id.to_owned()];
            let asked = ContainerAllocateRequest { devices_ids: devices_ids.clone() };
            let asked = AllocateRequest { container_requests: vec![asked] };
            let error = direct.allocate(asked).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
            let asked = PreStartContainerRequest { devices_ids };
            assert!(direct.pre_start_container(asked).await.is_err());
        }
        let empty = AllocateRequest { container_requests: vec![Default::default()] };
        assert!(direct.allocate(empty).await.is_err());

        // A kubelet of another API; then one that fits.
        cluster.start_kubelet_of("v1alpha1", Vec::new());
        cluster
            .until("a refusal", async |c| c.log().contains("unsupported device plugin API version"))
            .await;
        cluster.restart_kubelet();
        cluster.registered().await;

        // Something in the place of its socket that it cannot remove.
        cluster.kill_plugin();
        std::fs::remove_file(&socket).unwrap();
        std::fs::create_dir(&socket).unwrap();
        cluster.start_plugin();
        cluster
            .until("an error", async |c| {
                c.log().contains("the plugin needs to write in that folder")
            })
            .await;
        std::fs::remove_dir(&socket).unwrap();
        cluster.registered().await;

        // A stale socket of its own, after a kill.
        cluster.kill_plugin();
        cluster.allocatable(0).await;
        cluster.start_plugin();
        cluster.registered().await;
        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        let container = cluster.start_container(&pod, "app").await;
        cluster.works(&container);
    }

    /// The kubelet runs them by itself: what the API server has is a mirror with another UID, if it
    /// has one, and nobody placed it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_static_pod_gets_nothing_and_disturbs_nobody() {
        let mut cluster = Cluster::start().await;
        let other = cluster.small_pod("other");
        cluster.admit(&other).await;
        let works = cluster.start_container(&other, "app").await;
        let own = Pod::new("kube-system", "static-n", "0123456789abcdef0123456789abcdef", 1);
        cluster.kubelet().admit(&own).await.unwrap();
        let said = cluster.refusal(&own).await;
        assert!(said.contains("has no pod kube-system/static-n"), "{said}");
        let mirror = Pod { uid: "uid-of-the-mirror".into(), ..own.clone() };
        cluster.api.put(&mirror, NODE, "Pending", false);
        let said = cluster.refusal(&own).await;
        assert!(said.contains("leave spec.nodeName out"), "{said}");
        // Somebody writes a placement for the kubelet's pod into the mirror: it is another's.
        let forged = cluster.placed(own.clone(), &[("app", &[cluster.grant(0, 1)])]);
        let forged = Pod { uid: mirror.uid.clone(), ..forged };
        cluster.api.put(&forged, NODE, "Pending", false);
        let said = cluster.refusal(&own).await;
        assert!(said.contains("made for another pod"), "{said}");
        // It starts without PreStartContainer, and nobody answers in its slot.
        cluster.api.put(&mirror, NODE, "Pending", false);
        cluster.kill_plugin();
        cluster.until("the plugin's end", async |c| c.kubelet().allocatable() == 0).await;
        let container = cluster.start_container(&own, "app").await;
        cluster.api.put(&mirror, NODE, "Running", true);
        cluster.start_plugin();
        cluster.registered().await;
        cluster.until("a word", async |c| c.log().contains("it runs without a lease")).await;
        cluster.fails(&container);
        cluster.works(&works);
        assert_eq!(cluster.node.leases().unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn folders_that_it_may_not_use_are_named_as_root() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can start a plugin as somebody else");
            return;
        }
        let cluster = Cluster::without_plugin().await;
        // The state folder is the agent's user's.
        let mut command = cluster.plugin_command();
        let output = match command.uid(NOBODY).gid(NOBODY).output() {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                println!("skipped: this checkout is not for everybody's eyes");
                return;
            }
            other => other.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("where the plugin has to write"),
            "{said}"
        );
        assert!(said.contains(&cluster.node.state_dir().display().to_string()), "{said}");

        // Folders of its own, and a kubelet's that it cannot look into.
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
        let kubeconfig = cluster.api.kubeconfig(folder.path()).unwrap();
        std::fs::set_permissions(&kubeconfig, PermissionsExt::from_mode(0o644)).unwrap();
        let kubelet = cluster.node.folder().join("kubelet");
        std::fs::set_permissions(&kubelet, PermissionsExt::from_mode(0o700)).unwrap();
        let log = folder.path().join("log");
        let mut command = cluster.plugin_over(&state, &kubeconfig);
        command.uid(NOBODY).gid(NOBODY);
        let mut plugin = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let said = async |_: &Cluster| {
            let said = std::fs::read_to_string(&log).unwrap();
            said.contains("cannot look into the kubelet's folder")
        };
        cluster.until("a word of the kubelet's folder", said).await;
        // It may look, and not write.
        for path in [cluster.node.folder(), &kubelet, &kubelet.join("device-plugins")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let said = async |_: &Cluster| {
            let said = std::fs::read_to_string(&log).unwrap();
            said.contains("the plugin needs to write in that folder")
        };
        cluster.until("a word of what it may not write", said).await;
        plugin.kill().unwrap();
        plugin.wait().unwrap();
    }

    /// `cargo test -p gpuzone-device-plugin --test end_to_end how_soon -- --ignored --nocapture`
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "a measurement: prints how soon a new pod works after each restart"]
    async fn how_soon_a_new_pod_works_after_a_restart() {
        let mut cluster = Cluster::start().await;
        for round in 0..5 {
            for what in ["kubelet", "plugin", "agent"] {
                match what {
                    "plugin" => cluster.kill_plugin(),
                    "agent" => cluster.node.kill_agent().unwrap(),
                    _ => {}
                }
                let began = std::time::Instant::now();
                match what {
                    "kubelet" => cluster.restart_kubelet(),
                    "plugin" => cluster.start_plugin(),
                    _ => cluster.node.start_agent().unwrap(),
                }
                cluster.registered().await;
                let pod = cluster.small_pod(&format!("{what}-{round}"));
                cluster.admit(&pod).await;
                let container = cluster.start_container(&pod, "app").await;
                let took = began.elapsed();
                cluster.works(&container);
                println!("after a restart of the {what}: {} ms", took.as_millis());
                cluster.delete(&pod);
                cluster.leases(0).await;
            }
        }
    }
}
