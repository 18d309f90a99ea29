//! Whole GPUs by passthrough, from the pod to the lease: the real plugin and the real agent, with
//! a folder that stands for sysfs, and a kubelet and an API server that are stand-ins.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes};
    use gpuzone_testkit::kubernetes::{ContainerKind, Pod};
    use gpuzone_testkit::{Node, Sysfs};

    use super::support::{Cluster, NODE};

    const RESOURCE: &str = "gpuzone.dev/passthrough";
    const ADDRESSES: [&str; 2] = ["0000:3b:00.0", "0000:af:00.0"];

    fn uuid(number: u8) -> GpuUuid {
        GpuUuid::from_bytes([number; 16])
    }

    /// Two simulated GPUs, and two on vfio-pci beside them.
    async fn start() -> (Cluster, Sysfs) {
        let (mut cluster, sysfs) = without_plugin().await;
        cluster.start_kubelet_for(RESOURCE, Vec::new());
        cluster.start_plugin();
        cluster.allocatable(2).await;
        (cluster, sysfs)
    }

    async fn without_plugin() -> (Cluster, Sysfs) {
        let mut tables = String::from("[node]\nsysfs = \"sys\"\n");
        for (number, address) in (1..).zip(ADDRESSES) {
            tables += &format!(
                "[[gpu]]\nuuid = \"{}\"\nexposure = \"passthrough\"\naddress = \"{address}\"\n\
                 model = \"gpu-zone Simulated GPU\"\nmemory = \"80Gi\"\n",
                uuid(number)
            );
        }
        let mut node = Node::prepare(&Cluster::options(&tables)).unwrap();
        let sysfs = Sysfs::new(&node.folder().join("sys")).unwrap();
        for (group, address) in (12..).zip(ADDRESSES) {
            sysfs.gpu(address, group).unwrap();
        }
        node.start_agent().unwrap();
        (Cluster::of(node).await, sysfs)
    }

    /// A pod whose placement is of the first whole GPU.
    fn whole_pod(cluster: &Cluster, namespace: &str, name: &str) -> Pod {
        let memory = MemoryBytes::gib(80);
        let grant = Grant { gpu: uuid(1), memory, share: ComputeShare::WHOLE };
        let pod = Pod::new(namespace, name, &format!("uid-{name}"), 1);
        cluster.placed(pod, &[("app", &[grant])])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pod_gets_a_whole_gpu_and_the_next_not_what_it_left() {
        let (mut cluster, sysfs) = start().await;
        // Both resources are there, each at a socket of its own.
        let folder = cluster.kubelet().folder().to_owned();
        assert!(folder.join("gpuzone.dev_gpu.sock").exists());
        assert!(folder.join("gpuzone.dev_passthrough.sock").exists());

        let first = whole_pod(&cluster, "team", "a");
        cluster.admit(&first).await;
        let container = cluster.start_container(&first, "app").await;
        let nodes: BTreeSet<&str> = container.nodes().iter().map(String::as_str).collect();
        assert_eq!(nodes, BTreeSet::from(["/dev/vfio/12", "/dev/vfio/vfio"]));
        let leases = cluster.node.leases().unwrap();
        assert_eq!((leases.len(), leases[0].tenant()), (1, "team"));
        let lease = leases[0].id().to_owned();

        // The second pod was placed on the first GPU, too: the kubelet chose the other.
        let second = whole_pod(&cluster, "team", "b");
        cluster.admit(&second).await;
        let container = cluster.start_container(&second, "app").await;
        assert!(container.nodes().contains("/dev/vfio/13"), "{:?}", container.nodes());
        cluster.leases(2).await;

        // All restart, and the leases are the same.
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        let active = cluster.kubelet().active();
        cluster.node.start_agent().unwrap();
        cluster.start_kubelet_for(RESOURCE, active);
        cluster.start_plugin();
        cluster.allocatable(2).await;
        cluster.start_container(&first, "app").await;
        let leases = cluster.node.leases().unwrap();
        assert!(leases.len() == 2 && leases.iter().any(|other| other.id() == lease));

        // A pod that goes leaves a GPU that nobody can show to be clear.
        cluster.delete(&first);
        cluster.leases(1).await;
        cluster.allocatable(1).await;
        let path = format!("gpunodes/{NODE}/status");
        let published = async |cluster: &Cluster| {
            let status = cluster.api.patched(&path).unwrap_or_default();
            let gpu = &status["status"]["gpus"][2];
            gpu["exposure"] == "passthrough" && gpu["healthy"] == false
        };
        cluster.until("the GpuNode", published).await;
        // And one that is bound to something else is not to be had either.
        sysfs.bind(ADDRESSES[1], Some("nvidia")).unwrap();
        cluster.allocatable(0).await;
        assert!(cluster.log().contains("is bound to nvidia"), "{}", cluster.log());
    }

    /// As Kata's cold plug asks CDI: for the resource and the device that podresources names.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_resource_is_the_kind_of_cdi_and_its_file_says_what_there_is() {
        let (mut cluster, sysfs) = without_plugin().await;
        cluster.start_kubelet_for("example.com/whole", Vec::new());
        let cdi = cluster.node.folder().join("cdi");
        let file = cdi.join("example.com-whole.json");
        let listed = |file: &std::path::Path| -> Option<(String, Vec<String>)> {
            let spec: serde_json::Value =
                serde_json::from_slice(&std::fs::read(file).ok()?).unwrap();
            let names = spec["devices"].as_array().unwrap().iter();
            let names = names.map(|device| device["name"].as_str().unwrap().to_owned());
            Some((spec["kind"].as_str().unwrap().to_owned(), names.collect()))
        };
        // What an earlier plugin left.
        std::fs::create_dir(&cdi).unwrap();
        std::fs::write(&file, r#"{"kind": "example.com/whole", "devices": []}"#).unwrap();
        let start = |cluster: &mut Cluster| {
            let mut command = cluster.plugin_command();
            command.args(["--passthrough-resource", "example.com/whole"]);
            let log = std::fs::File::options().create(true).append(true).open(cluster.log_path());
            command.arg("--cdi-dir").arg(&cdi).stderr(log.unwrap());
            cluster.plugin = Some(command.spawn().unwrap());
        };
        start(&mut cluster);
        cluster.allocatable(2).await;
        assert!(cdi.join("gpuzone.dev-library.json").exists());
        let there = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Some(("example.com/whole".to_owned(), names))
        };
        assert_eq!(listed(&file), there(&ADDRESSES));
        let pod = whole_pod(&cluster, "team", "a");
        cluster.admit(&pod).await;
        let device = cluster.kubelet().devices(&pod, "app").pop_first().unwrap();
        let container = cluster.start_container(&pod, "app").await;
        assert!(container.nodes().contains(&format!("example.com/whole={device}")));

        sysfs.bind(ADDRESSES[1], Some("nvidia")).unwrap();
        let replaced = async |_: &Cluster| listed(&file) == there(&ADDRESSES[..1]);
        cluster.until("the file of one device", replaced).await;
        sysfs.bind(ADDRESSES[0], Some("nvidia")).unwrap();
        let removed = async |_: &Cluster| !file.exists();
        cluster.until("the file's removal", removed).await;
        // And while no plugin looks.
        cluster.kill_plugin();
        std::fs::write(&file, r#"{"kind": "example.com/whole", "devices": []}"#).unwrap();
        start(&mut cluster);
        cluster.until("the file's removal", removed).await;
    }

    /// A pod with an init container `first` and the container `app`, each with so many of the GPUs.
    fn pod_of_two(cluster: &Cluster, name: &str, first: usize, app: usize) -> Pod {
        let memory = MemoryBytes::gib(80);
        let grant = |number| Grant { gpu: uuid(number), memory, share: ComputeShare::WHOLE };
        let both = [grant(1), grant(2)];
        let pod = Pod::new("team", name, &format!("uid-{name}"), 0);
        let pod = pod.with("first", ContainerKind::Init, 0);
        let pod = pod.asking("first", RESOURCE, first).asking("app", RESOURCE, app);
        cluster.placed(pod, &[("first", &both[..first]), ("app", &both[..app])])
    }

    /// The containers of a pod share one VM, which keeps all that it was given.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_init_container_may_have_more_or_fewer_gpus_than_the_one_after_it() {
        for (first, app) in [(2, 1), (1, 2)] {
            let (mut cluster, _sysfs) = start().await;
            let pod = pod_of_two(&cluster, "a", first, app);
            cluster.admit(&pod).await;
            cluster.start_container(&pod, "first").await;
            let leases = cluster.node.leases().unwrap();
            let grants = leases[0].0["grants"].as_array().unwrap();
            assert_eq!((leases.len(), grants.len()), (1, 2), "{first} and {app}: {leases:?}");
            let id = leases[0].id().to_owned();
            cluster.start_container(&pod, "app").await;
            // The next plugin sees no container without a lease either.
            cluster.kill_plugin();
            cluster.start_plugin();
            cluster.allocatable(2).await;
            cluster.start_container(&pod, "app").await;
            let leases = cluster.node.leases().unwrap();
            assert_eq!((leases.len(), leases[0].id()), (1, id.as_str()), "{first} and {app}");
            assert!(!cluster.log().contains("without a lease"), "{}", cluster.log());
            cluster.delete(&pod);
            cluster.leases(0).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_init_container_has_gpus_that_a_lease_of_its_pod_lacks() {
        let (cluster, _sysfs) = start().await;
        let pod = pod_of_two(&cluster, "a", 1, 1).with("second", ContainerKind::Init, 0);
        let pod = pod.asking("second", RESOURCE, 2);
        let memory = MemoryBytes::gib(80);
        let grant = |number| Grant { gpu: uuid(number), memory, share: ComputeShare::WHOLE };
        let (one, two) = ([grant(1)], [grant(1), grant(2)]);
        let pod = cluster.placed(pod, &[("first", &one), ("second", &two), ("app", &one)]);
        cluster.admit(&pod).await;
        cluster.start_container(&pod, "first").await;
        let refused = cluster.kubelet().start_container(&pod, "second").await;
        let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains("as many GPUs in the first init container"), "{said}");
        cluster.leases(1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_has_no_right_to_a_whole_gpu_does_not_start() {
        let (cluster, sysfs) = start().await;
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        let poor = whole_pod(&cluster, "small", "poor");
        // A placement of a mediated GPU is none of a whole one.
        let mediated = Pod::new("team", "m", "uid-m", 1);
        let mediated = cluster.placed(mediated, &[("app", &[cluster.grant(0, 1)])]);
        cluster
            .refuses(&[
                (&bare, "leave spec.nodeName out"),
                (&poor, "quota of tenant 'small'"),
                (&mediated, "does not hand over whole"),
            ])
            .await;
        // Its IOMMU group is shared after the kubelet gave it.
        let late = whole_pod(&cluster, "team", "late");
        cluster.admit(&late).await;
        sysfs.function("0000:3b:00.1", "0x040300").unwrap();
        sysfs.bind("0000:3b:00.1", Some("snd_hda_intel")).unwrap();
        sysfs.group("0000:3b:00.1", 12).unwrap();
        let said = cluster.refusal(&late).await;
        assert!(said.contains("cannot be handed over now"), "{said}");
        assert!(cluster.node.leases().unwrap().is_empty());
    }

    /// A VM that is made with its devices has one although no container of its pod ever starts.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gpu_that_a_vm_had_without_a_lease_is_out_when_nothing_clears_it() {
        let (mut cluster, _sysfs) = without_plugin().await;
        cluster.start_kubelet_for(RESOURCE, Vec::new());
        cluster.start_plugin_with_cdi();
        cluster.allocatable(2).await;
        // Its image cannot be pulled, so nobody asks for a lease.
        let pod = whole_pod(&cluster, "team", "a");
        cluster.admit(&pod).await;
        cluster.knows(&pod).await;
        assert_eq!(cluster.kubelet().allocatable(), 2);
        cluster.delete(&pod);
        cluster.allocatable(1).await;
        let listed = cluster.node.json(&["gpus"]).unwrap().to_string();
        assert!(listed.contains("the pod uid-a may have had it without a lease"), "{listed}");
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;
        // The next pod gets the other one.
        let next = whole_pod(&cluster, "team", "b");
        cluster.admit(&next).await;
        cluster.start_container(&next, "app").await;
    }

    /// What no CDI specification names, no VM is made with, so what was only handed out is as it was.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_cold_plug_a_gpu_that_was_only_handed_out_serves_on() {
        let (mut cluster, _sysfs) = without_plugin().await;
        let cdi = cluster.node.folder().join("cdi");
        let file = cdi.join("gpuzone.dev-passthrough.json");
        // What a plugin with another configuration left.
        std::fs::create_dir(&cdi).unwrap();
        std::fs::write(&file, r#"{"kind": "gpuzone.dev/passthrough", "devices": []}"#).unwrap();
        cluster.start_kubelet_for(RESOURCE, Vec::new());
        cluster.start_plugin_with(&["--cdi-dir", cdi.to_str().unwrap(), "--hot-plug-only"]);
        cluster.allocatable(2).await;
        assert!(cdi.join("gpuzone.dev-library.json").exists() && !file.exists());
        let pod = whole_pod(&cluster, "team", "a");
        cluster.admit(&pod).await;
        cluster.knows(&pod).await;
        cluster.delete(&pod);
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;
        let listed = cluster.node.json(&["gpus"]).unwrap().to_string();
        assert!(!listed.contains("without a lease"), "{listed}");
        cluster.allocatable(2).await;
        // The next one has it, by its nodes alone.
        let next = whole_pod(&cluster, "team", "b");
        cluster.admit(&next).await;
        let container = cluster.start_container(&next, "app").await;
        let nodes: BTreeSet<&str> = container.nodes().iter().map(String::as_str).collect();
        assert_eq!(nodes, BTreeSet::from(["/dev/vfio/12", "/dev/vfio/vfio"]));
        assert!(!file.exists());
    }

    /// The device nodes are the container's from Allocate on, and the kubelet may skip
    /// PreStartContainer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_has_a_gpu_without_a_lease_keeps_it_from_all_others() {
        let (mut cluster, _sysfs) = start().await;
        let rightful = whole_pod(&cluster, "team", "late");
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        for pod in [&rightful, &bare] {
            cluster.admit(pod).await;
        }
        cluster.kill_plugin();
        cluster.allocatable(0).await;
        for pod in [&rightful, &bare] {
            let container = cluster.start_container(pod, "app").await;
            assert!(container.nodes().contains("/dev/vfio/vfio"), "{:?}", container.nodes());
        }
        cluster.start_plugin();
        // One has a right to a lease, and gets it; what the other has is nobody's after it.
        cluster.leases(1).await;
        let held = cluster.kubelet().devices(&bare, "app").pop_first().unwrap();
        let condemned = async |cluster: &Cluster| {
            let listed = cluster.node.json(&["gpus"]).unwrap();
            let gpus = listed["gpus"].as_array().unwrap().iter();
            let mut out = gpus.filter(|gpu| gpu["health"] == "quarantined");
            out.next().is_some_and(|gpu| {
                let why = gpu["quarantine"].as_str().unwrap();
                assert_eq!(gpu["pci_address"], held.as_str());
                assert!(why.contains("team/bare/app has it without a lease"), "{why}");
                out.next().is_none()
            })
        };
        cluster.until("the quarantine", condemned).await;
        cluster.allocatable(1).await;
        let audit = std::fs::read_to_string(cluster.node.state_dir().join("audit.log"));
        assert!(audit.unwrap_or_default().contains("without a lease"), "{}", cluster.log());
        let leases = cluster.node.leases().unwrap();
        assert_eq!((leases.len(), leases[0].0["program"].as_str()), (1, Some("team/late/app")));
    }
}
