//! Several resources of one plugin at once, in the containers of one pod: the real plugin and the real
//! agent with simulated GPUs, one of them cut, and a folder that stands for sysfs.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpuzone_api::kubelet::v1beta1::device_plugin_client::DevicePluginClient;
    use gpuzone_api::kubelet::v1beta1::{
        AllocateRequest, ContainerAllocateRequest, PreStartContainerRequest,
    };
    use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes, mig_share};
    use gpuzone_testkit::kubernetes::{ContainerKind, Pod};
    use gpuzone_testkit::{Node, Options, Sysfs};

    use super::support::{Cluster, NODE};

    const MIG: &str = "gpuzone.dev/mig-1g.2gb";
    const WHOLE: &str = "gpuzone.dev/passthrough";
    const ADDRESS: &str = "0000:3b:00.0";

    fn whole() -> Grant {
        let (gpu, memory) = (GpuUuid::from_bytes([1; 16]), MemoryBytes::gib(80));
        Grant { gpu, memory, share: ComputeShare::WHOLE }
    }

    fn instance(cluster: &Cluster) -> Grant {
        Grant { gpu: cluster.gpus[0], memory: MemoryBytes::gib(2), share: mig_share(1) }
    }

    /// A GPU that is cut, one that is shared, and one on vfio-pci.
    async fn start() -> Cluster {
        let tables = format!(
            "[node]\nsysfs = \"sys\"\n[[gpu]]\nuuid = \"{}\"\nexposure = \"passthrough\"\n\
             address = \"{ADDRESS}\"\nmodel = \"gpu-zone Simulated GPU\"\nmemory = \"80Gi\"\n",
            whole().gpu
        );
        let gpus = vec!["16Gi mig 1g.2gb 1g.2gb 3g.6gb".to_owned(), "16Gi".to_owned()];
        let mut node = Node::prepare(&Options { gpus, ..Cluster::options(&tables) }).unwrap();
        Sysfs::new(&node.folder().join("sys")).unwrap().gpu(ADDRESS, 12).unwrap();
        node.start_agent().unwrap();
        let mut cluster = Cluster::of(node).await;
        cluster.start_plugin();
        all_registered(&cluster).await;
        cluster
    }

    async fn all_registered(cluster: &Cluster) {
        cluster.registered().await;
        let all = async |cluster: &Cluster| {
            let of = |resource| cluster.kubelet().allocatable_of(resource);
            (of(MIG), of("gpuzone.dev/mig-3g.6gb"), of(WHOLE)) == (2, 1, 1)
        };
        cluster.until("all resources", all).await;
    }

    fn ids(cluster: &Cluster) -> BTreeSet<String> {
        cluster.node.leases().unwrap().iter().map(|lease| lease.id().to_owned()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_pods_containers_have_leases_of_each_kind() {
        let mut cluster = start().await;
        let kinds = [("cut", MIG), ("vm", WHOLE)];
        let pod = kinds.iter().fold(Pod::new("team", "p", "uid-p", 1), |pod, (name, resource)| {
            pod.with(name, ContainerKind::App, 0).asking(name, resource, 1)
        });
        let (slot, cut, vm) = ([cluster.grant(1, 1)], [instance(&cluster)], [whole()]);
        let pod = cluster.placed(pod, &[("app", &slot), ("cut", &cut), ("vm", &vm)]);
        cluster.admit(&pod).await;
        let device = |name: &str, resource: &str| {
            cluster.kubelet().devices_of(&pod, name, resource).pop_first()
        };
        assert_eq!(device("app", "gpuzone.dev/gpu").as_deref(), Some("slot-0"));
        assert_eq!(device("vm", WHOLE).as_deref(), Some(ADDRESS));
        let held = device("cut", MIG).unwrap();
        assert_eq!(device("app", MIG), None);

        let app = cluster.start_container(&pod, "app").await;
        let cut = cluster.start_container(&pod, "cut").await;
        let vm = cluster.start_container(&pod, "vm").await;
        cluster.works(&app);
        cluster.works(&cut);
        assert!(vm.nodes().contains("/dev/vfio/12"), "{:?}", vm.nodes());
        let leases = cluster.node.leases().unwrap();
        let programs: BTreeSet<_> =
            leases.iter().map(|lease| lease.0["program"].as_str().unwrap()).collect();
        assert_eq!(programs, ["team/p/app", "team/p/cut", "team/p/vm"].into());
        let of = |gpu: &str| leases.iter().any(|l| l.0["grants"][0]["gpu_uuid"] == gpu);
        assert!(of(&held) && of(&cluster.gpus[1].to_string()) && of(&whole().gpu.to_string()));

        // All restart, and each keeper knows its own leases.
        let before = ids(&cluster);
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        cluster.node.start_agent().unwrap();
        cluster.restart_kubelet();
        cluster.start_plugin();
        all_registered(&cluster).await;
        for name in ["vm", "app", "cut"] {
            cluster.start_container(&pod, name).await;
        }
        cluster.works(&app);
        cluster.works(&cut);
        assert_eq!(ids(&cluster), before);

        // It goes, and nobody else loses anything.
        let other = cluster.placed(
            Pod::new("team", "other", "uid-other", 0).asking("app", MIG, 1),
            &[("app", &[instance(&cluster)])],
        );
        cluster.admit(&other).await;
        let neighbour = cluster.start_container(&other, "app").await;
        cluster.delete(&pod);
        cluster.leases(1).await;
        cluster.works(&neighbour);
        cluster.fails(&cut);
    }

    /// A placement has one kind of GPU for a container, so the other is refused, and nothing starts.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_container_that_asks_for_two_kinds_does_not_start() {
        let cluster = start().await;
        for (resource, part) in [(MIG, "has no MIG instances"), (WHOLE, "does not hand over whole")]
        {
            let pod = Pod::new("team", "two", &format!("uid-{}", part.len()), 1);
            let pod = pod.asking("app", resource, 1);
            let pod = cluster.placed(pod, &[("app", &[cluster.grant(1, 1)])]);
            cluster.admit(&pod).await;
            let said = cluster.refusal(&pod).await;
            assert!(said.contains(part), "{said}");
            assert!(cluster.node.leases().unwrap().len() <= 1);
            cluster.delete(&pod);
            cluster.leases(0).await;
        }
    }

    /// What the scheduler reads of such a node.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_node_has_gpus_of_each_kind() {
        let cluster = start().await;
        let path = format!("gpunodes/{NODE}/status");
        let published = async |cluster: &Cluster| {
            let status = cluster.api.patched(&path).unwrap_or_default();
            let gpus = status["status"]["gpus"].as_array().cloned().unwrap_or_default();
            let kinds = gpus.iter().map(|gpu| gpu["exposure"].as_str().unwrap_or("").to_owned());
            kinds.collect::<Vec<_>>() == ["mig", "mediated", "passthrough"]
        };
        cluster.until("the GpuNode", published).await;
    }

    /// By whoever calls: the kubelet asks for what it was told.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_resource_takes_ids_that_it_never_listed() {
        let cluster = start().await;
        let none = "0".repeat(8) + "-0000-0000-0000-000000000000";
        let (cut, whole) = (format!("MIG-{none}"), format!("GPU-{none}"));
        let wrong: [(&str, [&str; 4]); 2] =
            [(MIG, ["slot-0", "", &whole, "MIG-1"]), (WHOLE, ["slot-0", "", &cut, "0000:3B:00.0"])];
        for (resource, ids) in wrong {
            let socket = format!("{}.sock", resource.replace('/', "_"));
            let socket = cluster.kubelet().folder().join(socket);
            let channel = gpuzone_api::connect_channel(&socket).await.unwrap();
            let mut direct = DevicePluginClient::new(channel);
            for id in ids {
                let devices_ids = vec![id.to_owned()];
                let asked = ContainerAllocateRequest { devices_ids: devices_ids.clone() };
                let asked = AllocateRequest { container_requests: vec![asked] };
                let error = direct.allocate(asked).await.unwrap_err();
                assert_eq!(error.code(), tonic::Code::InvalidArgument, "{resource} {id}");
                let asked = PreStartContainerRequest { devices_ids };
                let error = direct.pre_start_container(asked).await.unwrap_err();
                assert!(error.message().contains("restart the kubelet"), "{error}");
            }
            // As it would be called, and nobody's: what has it would be told nothing.
            let devices_ids =
                vec![if resource == MIG { cut.clone() } else { "0000:ff:00.0".into() }];
            let asked = ContainerAllocateRequest { devices_ids: devices_ids.clone() };
            let asked = AllocateRequest { container_requests: vec![asked] };
            let answer = direct.allocate(asked).await.unwrap().into_inner();
            assert!(answer.container_responses[0].devices.is_empty());
            let asked = PreStartContainerRequest { devices_ids };
            let error = direct.pre_start_container(asked).await.unwrap_err();
            assert!(error.message().contains("lists no pod"), "{error}");
        }
        assert!(cluster.handed_out().is_empty() && cluster.node.leases().unwrap().is_empty());
    }
}
