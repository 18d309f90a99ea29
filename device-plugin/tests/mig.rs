//! MIG instances, from the pod to the lease: the real plugin and the real agent over a simulated
//! GPU that is cut, and a kubelet and an API server that are stand-ins.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use gpuzone_core::{Grant, MemoryBytes, mig_share};
    use gpuzone_testkit::kubernetes::{Container, Pod};
    use gpuzone_testkit::{Node, Options};

    use super::support::{Cluster, NODE};

    const SMALL: &str = "gpuzone.dev/mig-1g.2gb";

    /// A GPU that is cut into two small instances and a larger one, and one that is not.
    async fn start() -> Cluster {
        let options = Cluster::options("");
        let gpus = vec!["16Gi mig 1g.2gb 1g.2gb 3g.6gb".to_owned(), "16Gi".to_owned()];
        let node = Node::start(&Options { gpus, ..options }).unwrap();
        let mut cluster = Cluster::of(node).await;
        cluster.start_kubelet_for(SMALL, Vec::new());
        cluster.start_plugin();
        cluster.allocatable(2).await;
        cluster
    }

    /// What the extender places: of the GPU, as much as an instance of the profile is.
    fn slice(cluster: &Cluster, gib: u64, slices: u32) -> Grant {
        let (memory, share) = (MemoryBytes::gib(gib), mig_share(slices));
        Grant { gpu: cluster.gpus[0], memory, share }
    }

    fn small_pod(cluster: &Cluster, namespace: &str, name: &str) -> Pod {
        let pod = Pod::new(namespace, name, &format!("uid-{name}"), 1);
        cluster.placed(pod, &[("app", &[slice(cluster, 2, 1)])])
    }

    fn memory_of(cluster: &Cluster, container: &Container) -> String {
        let artifacts = cluster.node.artifacts();
        let mut command = container.command(artifacts.file("gpuzone-workload").unwrap());
        let output = command.arg("info").env("GPUZONE_KERNELS", artifacts.kernels()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pod_gets_an_instance_and_keeps_it() {
        let mut cluster = start().await;
        let folder = cluster.kubelet().folder().to_owned();
        for socket in ["gpuzone.dev_gpu", "gpuzone.dev_mig-1g.2gb", "gpuzone.dev_mig-3g.6gb"] {
            assert!(folder.join(format!("{socket}.sock")).exists(), "{socket}");
        }
        let first = small_pod(&cluster, "team", "a");
        cluster.admit(&first).await;
        let device = cluster.kubelet().devices(&first, "app").pop_first().unwrap();
        assert!(device.starts_with("MIG-"), "{device}");
        assert!(cluster.node.leases().unwrap().is_empty(), "nothing is held before it starts");
        let app = cluster.start_container(&first, "app").await;
        assert!(app.nodes().is_empty(), "no device is the container's");
        cluster.works(&app);
        let said = memory_of(&cluster, &app);
        let sees = ["devices=1 ", " MIG 1g.2gb", "total_bytes=2147483648 "];
        assert!(sees.iter().all(|part| said.contains(part)), "{said}");
        let lease = cluster.node.leases().unwrap().remove(0);
        assert_eq!(
            (lease.tenant(), lease.0["grants"][0]["gpu_uuid"].as_str()),
            ("team", Some(&*device))
        );

        // The second gets the other, and there is no third.
        let second = small_pod(&cluster, "team", "b");
        cluster.admit(&second).await;
        let other = cluster.start_container(&second, "app").await;
        cluster.works(&other);
        assert_ne!(cluster.kubelet().devices(&second, "app").pop_first().unwrap(), device);
        let third = small_pod(&cluster, "team", "c");
        cluster.api.put(&third, NODE, "Pending", false);
        let refused = cluster.kubelet().admit(&third).await.unwrap_err().to_string();
        assert!(refused.contains("devices unavailable"), "{refused}");
        cluster.api.delete(&third);

        // All restart, and the leases are the same.
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        cluster.works(&app);
        let active = cluster.kubelet().active();
        cluster.node.start_agent().unwrap();
        cluster.start_kubelet_for(SMALL, active);
        cluster.start_plugin();
        cluster.allocatable(2).await;
        let again = cluster.start_container(&first, "app").await;
        cluster.works(&again);
        let leases = cluster.node.leases().unwrap();
        assert!(leases.len() == 2 && leases.iter().any(|l| l.id() == lease.id()));

        // It goes, is cleared, and the next one has it; what the first had mounted serves nobody.
        cluster.delete(&first);
        cluster.leases(1).await;
        cluster.fails(&again);
        cluster.admit(&third).await;
        assert_eq!(cluster.kubelet().devices(&third, "app").pop_first().unwrap(), device);
        let next = cluster.start_container(&third, "app").await;
        cluster.works(&next);
        cluster.fails(&again);
        cluster.works(&other);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_node_says_what_it_is_cut_into_and_a_fault_is_all_instances() {
        let cluster = start().await;
        let path = format!("gpunodes/{NODE}/status");
        let gpu = |cluster: &Cluster| {
            let status = cluster.api.patched(&path).unwrap_or_default();
            status["status"]["gpus"][0].clone()
        };
        cluster.until("the GpuNode", async |c| gpu(c)["exposure"] == "mig").await;
        let small = serde_json::json!({
            "profile": "1g.2gb", "count": 2, "healthy": 2, "memoryBytes": 2_u64 << 30,
            "sharePercent": 14,
        });
        assert_eq!(gpu(&cluster)["partitions"][0], small);
        assert_eq!(gpu(&cluster)["partitions"][1]["profile"], "3g.6gb");
        // A device fault of the GPU is one of each of its instances.
        let faults = cluster.node.simulated_state().join("gpu-0.faults");
        let mut faults = std::fs::File::options().append(true).open(faults).unwrap();
        faults.write_all(b"xid 79\n").unwrap();
        cluster.allocatable(0).await;
        cluster.until("the GpuNode", async |c| gpu(c)["partitions"][0]["healthy"] == 0).await;
        let pod = small_pod(&cluster, "team", "late");
        cluster.kubelet().forge(&pod, "app", &["MIG-00000000-0000-0000-0000-000000000000"]);
        cluster.api.put(&pod, NODE, "Pending", false);
        let said = cluster.refusal(&pod).await;
        assert!(said.contains("no MIG instance of this node"), "{said}");
        assert!(cluster.node.leases().unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_has_no_right_to_an_instance_does_not_start() {
        let cluster = start().await;
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        let poor = small_pod(&cluster, "small", "poor");
        let large = Pod::new("team", "large", "uid-large", 1);
        let large = cluster.placed(large, &[("app", &[slice(&cluster, 6, 3)])]);
        let mediated = Pod::new("team", "m", "uid-m", 1);
        let mediated = cluster.placed(mediated, &[("app", &[cluster.grant(1, 2)])]);
        cluster
            .refuses(&[
                (&bare, "leave spec.nodeName out"),
                (&poor, "quota of tenant 'small'"),
                (&large, "a 1g.2gb of 2Gi"),
                (&mediated, "has no MIG instances"),
            ])
            .await;
        // CUDA shows a program one.
        let two = Pod::new("team", "two", "uid-two", 2);
        let grants =
            [slice(&cluster, 2, 1), Grant { gpu: cluster.gpus[1], ..slice(&cluster, 2, 1) }];
        let two = cluster.placed(two, &[("app", &grants)]);
        cluster.admit(&two).await;
        let said = cluster.refusal(&two).await;
        assert!(said.contains("ask for one in each container"), "{said}");
        assert!(cluster.node.leases().unwrap().is_empty());
    }
}
