//! vGPUs, from the pod to the lease: the real plugin and the real agent, with the simulated kernel of
//! a folder that stands for sysfs, and a kubelet and an API server that are stand-ins.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes};
    use gpuzone_testkit::kubernetes::Pod;
    use gpuzone_testkit::{Node, Sysfs};

    use super::support::{Cluster, NODE};

    const RESOURCE: &str = "gpuzone.dev/vgpu-nvidia-592";
    const ADDRESS: &str = "0000:3b:00.0";
    /// What the audit log says of a vGPU that was cleared.
    const ANEW: &str = "taken away and made anew";

    fn gpu() -> GpuUuid {
        GpuUuid::from_bytes([1; 16])
    }

    /// Two simulated GPUs, and beside them one that is cut into two mediated devices.
    async fn start() -> (Cluster, Sysfs) {
        let (mut cluster, sysfs) = without_plugin().await;
        cluster.start_plugin_with_cdi();
        cluster.allocatable(2).await;
        (cluster, sysfs)
    }

    async fn without_plugin() -> (Cluster, Sysfs) {
        let tables = format!(
            "[node]\nsysfs = \"sys\"\n[[gpu]]\nuuid = \"{}\"\nexposure = \"vgpu\"\n\
             address = \"{ADDRESS}\"\nmodel = \"A16\"\nmemory = \"16Gi\"\nreset = true\n\
             [gpu.vgpu]\nby = \"mdev\"\ntype = \"nvidia-592\"\ncount = 2\nmemory = \"4Gi\"\n",
            gpu()
        );
        let mut node = Node::prepare(&Cluster::options(&tables)).unwrap();
        let sysfs = Sysfs::new(&node.folder().join("sys")).unwrap();
        sysfs.function(ADDRESS, "0x030200").unwrap();
        sysfs.bind(ADDRESS, Some("nvidia")).unwrap();
        sysfs.mdev_type(ADDRESS, "nvidia-592", 4).unwrap();
        node.start_agent().unwrap();
        let mut cluster = Cluster::of(node).await;
        cluster.start_kubelet_for(RESOURCE, Vec::new());
        (cluster, sysfs)
    }

    /// What the extender places: of the GPU, as much as a vGPU of the type is.
    fn vgpu_pod(cluster: &Cluster, namespace: &str, name: &str, gib: u64) -> Pod {
        let share = ComputeShare::new(50).unwrap();
        let grant = Grant { gpu: gpu(), memory: MemoryBytes::gib(gib), share };
        let pod = Pod::new(namespace, name, &format!("uid-{name}"), 1);
        cluster.placed(pod, &[("app", &[grant])])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pod_gets_a_vgpu_and_the_next_one_that_is_made_anew() {
        let (mut cluster, sysfs) = start().await;
        let made = sysfs.mdevs();
        assert_eq!(made.len(), 2);
        let folder = cluster.kubelet().folder().to_owned();
        assert!(folder.join("gpuzone.dev_vgpu-nvidia-592.sock").exists());
        let path = format!("gpunodes/{NODE}/status");
        let published = async |cluster: &Cluster| {
            let status = cluster.api.patched(&path).unwrap_or_default();
            let gpu = &status["status"]["gpus"][2];
            let part = &gpu["partitions"][0];
            gpu["exposure"] == "vgpu" && part["profile"] == "nvidia-592" && part["count"] == 2
        };
        cluster.until("the GpuNode", published).await;

        let first = vgpu_pod(&cluster, "team", "a", 4);
        cluster.admit(&first).await;
        assert!(cluster.node.leases().unwrap().is_empty(), "nothing is held before it starts");
        let device = cluster.kubelet().devices(&first, "app").pop_first().unwrap();
        let (name, group) = device.split_once('.').unwrap();
        assert!(name.starts_with("VGPU-"), "{device}");
        let container = cluster.start_container(&first, "app").await;
        let file = cluster.node.folder().join("cdi/gpuzone.dev-vgpu-nvidia-592.json");
        let spec: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(
            (&spec["kind"], spec["devices"].as_array().unwrap().len()),
            (&RESOURCE.into(), 2)
        );
        let named = format!("{RESOURCE}={device}");
        let nodes: BTreeSet<&str> = container.nodes().iter().map(String::as_str).collect();
        let own = format!("/dev/vfio/{group}");
        assert_eq!(nodes, BTreeSet::from(["/dev/vfio/vfio", own.as_str(), named.as_str()]));
        let lease = cluster.node.leases().unwrap().remove(0);
        assert_eq!(
            (lease.tenant(), lease.0["grants"][0]["gpu_uuid"].as_str()),
            ("team", Some(name))
        );

        // The second gets the other, and there is no third.
        let second = vgpu_pod(&cluster, "team", "b", 4);
        cluster.admit(&second).await;
        let other = cluster.start_container(&second, "app").await;
        assert!(!other.nodes().contains(&own), "{:?}", other.nodes());
        let third = vgpu_pod(&cluster, "team", "c", 4);
        cluster.api.put(&third, NODE, "Pending", false);
        let refused = cluster.kubelet().admit(&third).await.unwrap_err().to_string();
        assert!(refused.contains("devices unavailable"), "{refused}");
        cluster.api.delete(&third);

        // All restart, and the leases are the same; nothing is made twice.
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        let active = cluster.kubelet().active();
        cluster.node.start_agent().unwrap();
        cluster.start_kubelet_for(RESOURCE, active);
        cluster.start_plugin();
        cluster.allocatable(2).await;
        cluster.start_container(&first, "app").await;
        let leases = cluster.node.leases().unwrap();
        assert!(leases.len() == 2 && leases.iter().any(|other| other.id() == lease.id()));
        assert_eq!(sysfs.mdevs(), made);

        // It goes, is made anew, and the next one has it.
        cluster.delete(&first);
        cluster.leases(1).await;
        assert_eq!(sysfs.mdevs(), made);
        cluster.admit(&third).await;
        cluster.start_container(&third, "app").await;
        cluster.leases(2).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_has_no_right_to_a_vgpu_does_not_start() {
        let (mut cluster, sysfs) = without_plugin().await;
        cluster.start_plugin();
        cluster.allocatable(2).await;
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        let poor = vgpu_pod(&cluster, "small", "poor", 4);
        let large = vgpu_pod(&cluster, "team", "large", 8);
        let mediated = Pod::new("team", "m", "uid-m", 1);
        let mediated = cluster.placed(mediated, &[("app", &[cluster.grant(0, 1)])]);
        cluster
            .refuses(&[
                (&bare, "leave spec.nodeName out"),
                (&poor, "quota of tenant 'small'"),
                (&mediated, "does not hand over whole"),
                (&large, "is of 8Gi and 50%"),
            ])
            .await;
        // One that was told of a place where another is now.
        let late = vgpu_pod(&cluster, "team", "late", 4);
        let device = format!("{}.7", gpu().vgpu(0));
        cluster.kubelet().forge(&late, "app", &[&device]);
        cluster.api.put(&late, NODE, "Pending", false);
        let said = cluster.refusal(&late).await;
        assert!(said.contains("no GPU or vGPU that this node hands over"), "{said}");
        assert!(cluster.node.leases().unwrap().is_empty());
        assert_eq!(sysfs.mdevs().len(), 2);
        // None was ever opened: without CDI a VM gets nothing before PreStartContainer.
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;
        assert_eq!(cluster.audited(ANEW), 0);
    }

    fn listed(cluster: &Cluster) -> BTreeSet<String> {
        let file = cluster.node.folder().join("cdi/gpuzone.dev-vgpu-nvidia-592.json");
        let Ok(text) = std::fs::read(file) else { return BTreeSet::new() };
        let spec: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let devices = spec["devices"].as_array().unwrap().iter();
        devices.map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    }

    /// A VM that is made with its devices has them before anybody asks for a lease.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_refused_pods_vm_may_have_had_is_made_anew_before_the_next_ones() {
        let (mut cluster, _sysfs) = start().await;
        let bare = Pod::new("team", "bare", "uid-bare", 1);
        cluster.admit(&bare).await;
        let device = cluster.kubelet().devices(&bare, "app").pop_first().unwrap();
        cluster.refusal(&bare).await;
        cluster.knows(&bare).await;
        assert_eq!(listed(&cluster).len(), 2);
        // The kubelet has given it to the next pod before anybody knows that the first is gone.
        cluster.kubelet().remove(&bare);
        let next = vgpu_pod(&cluster, "team", "next", 4);
        cluster.admit(&next).await;
        assert_eq!(cluster.kubelet().devices(&next, "app"), [device.clone()].into());
        assert!(!listed(&cluster).contains(&device), "the next VM is made with it");
        cluster.until("two that may be had", async |c| listed(c).len() == 2).await;
        assert_eq!(cluster.audited(ANEW), 1, "{}", cluster.log());
        cluster.delete(&bare);
        cluster.delete(&next);
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;

        // Nobody comes after it, and the plugin is killed meanwhile.
        let anew = cluster.audited(ANEW);
        cluster.allocatable(2).await;
        let other = Pod::new("team", "other", "uid-other", 1);
        cluster.admit(&other).await;
        cluster.knows(&other).await;
        cluster.kill_plugin();
        cluster.delete(&other);
        cluster.start_plugin_with_cdi();
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;
        assert_eq!(cluster.audited(ANEW), anew + 1);

        // One that has a lease is cleared by its end, and the next one waits for that.
        cluster.allocatable(2).await;
        let last = vgpu_pod(&cluster, "team", "last", 4);
        cluster.admit(&last).await;
        cluster.start_container(&last, "app").await;
        let anew = cluster.audited(ANEW);
        cluster.delete(&last);
        cluster.leases(0).await;
        cluster.until("no marks", async |c| c.handed_out().is_empty()).await;
        assert_eq!(cluster.audited(ANEW), anew + 1);
    }

    /// The kubelet gives a vGPU on as soon as its pod is gone, and the end of that pod's lease may take
    /// its time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_given_on_before_its_lease_has_ended_is_nobodys_until_then() {
        let (mut cluster, sysfs) = start().await;
        let first = vgpu_pod(&cluster, "team", "first", 4);
        cluster.admit(&first).await;
        cluster.start_container(&first, "app").await;
        let device = cluster.kubelet().devices(&first, "app").pop_first().unwrap();
        let (before, made) = (cluster.node.leases().unwrap().remove(0), sysfs.mdevs());
        let anew = cluster.audited(ANEW);

        // Nobody can end the lease now.
        cluster.node.kill_agent().unwrap();
        cluster.delete(&first);
        let next = vgpu_pod(&cluster, "team", "next", 4);
        cluster.admit(&next).await;
        assert_eq!(cluster.kubelet().devices(&next, "app"), [device.clone()].into());
        assert!(!listed(&cluster).contains(&device), "the next VM is made with it");
        let said = cluster.refusal(&next).await;
        assert!(said.contains("may hold what another pod left"), "{said}");
        // Nor is it forgotten by a plugin that starts anew.
        cluster.kill_plugin();
        cluster.start_plugin_with_cdi();
        assert!(!listed(&cluster).contains(&device), "the next VM is made with it");

        cluster.node.start_agent().unwrap();
        cluster.allocatable(2).await;
        cluster.until("two that may be had", async |c| listed(c).len() == 2).await;
        assert_eq!((cluster.audited(ANEW), sysfs.mdevs()), (anew + 1, made), "{}", cluster.log());
        cluster.start_container(&next, "app").await;
        let leases = cluster.node.leases().unwrap();
        assert_eq!((leases.len(), leases[0].0["program"].as_str()), (1, Some("team/next/app")));
        assert_ne!(leases[0].id(), before.id());
    }
}
