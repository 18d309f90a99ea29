//! Leases of vGPUs, with the real agent and the simulated kernel of a folder that stands for sysfs.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_api::agent::v1 as agent;
    use gpuzone_api::placements::v1::placements_client::PlacementsClient;
    use gpuzone_api::placements::v1::{self as proto, PlacedGpu};
    use gpuzone_api::{AgentError, ErrorKind};
    use gpuzone_core::GpuUuid;
    use gpuzone_testkit::Sysfs;
    use rustix::process::Signal;

    use super::support::{Node, connect};

    const GPU: &str = "GPU-00000000-0000-0000-0000-00000000abcd";
    const ADDRESS: &str = "0000:3b:00.0";

    /// A simulated GPU, and beside it one that is cut by `by` into two of a type; nothing runs yet.
    fn prepare(by: &str, more: &str) -> (Node, Sysfs) {
        let node = Node::prepare();
        let sysfs = Sysfs::new(&node.path("sys")).unwrap();
        sysfs.function(ADDRESS, "0x030200").unwrap();
        sysfs.bind(ADDRESS, Some("nvidia")).unwrap();
        sysfs.group(ADDRESS, 12).unwrap();
        node.configure("run_dir = \"run\"", "run_dir = \"run\"\nsysfs = \"sys\"");
        let table = format!(
            "[[gpu]]\nuuid = \"{GPU}\"\nexposure = \"vgpu\"\naddress = \"{ADDRESS}\"\n\
             model = \"A16\"\nmemory = \"16Gi\"\n{more}\n[gpu.vgpu]\nby = \"{by}\"\n\
             type = \"nvidia-592\"\ncount = 2\nmemory = \"4Gi\"\n[usage]"
        );
        node.configure("[usage]", &table);
        (node, sysfs)
    }

    async fn with_mdevs(more: &str) -> (Node, Sysfs) {
        let (mut node, sysfs) = prepare("mdev", more);
        sysfs.mdev_type(ADDRESS, "nvidia-592", 4).unwrap();
        node.start_agent().await;
        (node, sysfs)
    }

    fn wanted(holder: &str, part: &agent::Partition) -> proto::PlaceRequest {
        let node = part.vfio.as_ref().map(|vfio| format!("/dev/vfio/{}", vfio.group));
        proto::PlaceRequest {
            holder: holder.into(),
            tenant: "acme".into(),
            gpus: vec![PlacedGpu {
                gpu_uuid: part.uuid.clone(),
                memory_bytes: part.memory_bytes,
                share_percent: part.share_percent,
                node: node.unwrap_or_default(),
            }],
            program: "team/app".into(),
            exposure: "vgpu".into(),
            ..Default::default()
        }
    }

    async fn client(node: &Node) -> PlacementsClient<tonic::transport::Channel> {
        let socket = node.directories().agent_socket();
        PlacementsClient::new(connect(&socket).await.unwrap())
    }

    async fn place(node: &Node, asked: proto::PlaceRequest) -> Result<String, AgentError> {
        let placed = client(node).await.place(asked).await.map_err(AgentError::from)?;
        Ok(placed.into_inner().lease.unwrap().id)
    }

    async fn end(node: &Node, lease: &str) -> Result<(), AgentError> {
        let asked = proto::EndRequest { lease_id: lease.into(), reason: "over".into() };
        client(node).await.end(asked).await.map(drop).map_err(AgentError::from)
    }

    async fn parts(node: &Node) -> Vec<agent::Partition> {
        let asked = agent::ListGpusRequest {};
        let gpus = node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus;
        assert_eq!(gpus[1].exposure, "vgpu");
        let mut parts = gpus[1].partitions.clone();
        parts.sort_by(|one, other| one.id.cmp(&other.id));
        parts
    }

    async fn until_no_lease(node: &Node) {
        for _ in 0..6000 {
            if node.leases().await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a lease stays:\n{}", node.log());
    }

    #[tokio::test]
    async fn a_mediated_device_is_leased_and_made_anew_for_the_next() {
        let (mut node, sysfs) = with_mdevs("reset = true").await;
        let both = parts(&node).await;
        let [one, other] = both.as_slice() else { panic!("{both:?}") };
        assert_eq!((one.profile.as_str(), one.memory_bytes >> 30), ("nvidia-592", 4));
        let ids =
            both.iter().map(|part| part.id.clone()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sysfs.mdevs(), ids.into_iter().collect::<Vec<_>>());
        assert!(one.vfio.is_some() && one.vfio != other.vfio && one.not_ready.is_none());

        // The GPU itself is not to be had, nor a part of a vGPU, nor one in a slot.
        let whole = agent::Partition { uuid: GPU.into(), ..one.clone() };
        let said = place(&node, wanted("pod/1/a", &whole)).await.unwrap_err().message;
        assert!(said.contains("named by their VGPU-"), "{said}");
        let half = agent::Partition { memory_bytes: 1 << 30, ..one.clone() };
        let said = place(&node, wanted("pod/1/a", &half)).await.unwrap_err().message;
        assert!(said.contains("handed over whole: 4Gi and 50%"), "{said}");
        let in_slot = proto::PlaceRequest {
            slot: "slot-1".into(),
            folder: format!("{:016x}", 1),
            ..wanted("pod/1/a", one)
        };
        assert!(place(&node, in_slot).await.unwrap_err().message.contains("appears in no slot"));
        // Who was told of another group does not get this one.
        let mut elsewhere = wanted("pod/1/a", one);
        elsewhere.gpus[0].node = "/dev/vfio/7".into();
        let said = place(&node, elsewhere).await.unwrap_err().message;
        assert!(said.contains("was told to open /dev/vfio/7"), "{said}");
        assert!(node.leases().await.is_empty());

        let lease = place(&node, wanted("pod/1/a", one)).await.unwrap();
        assert_eq!(place(&node, wanted("pod/1/a", one)).await.unwrap(), lease);
        let twice = place(&node, wanted("pod/2/b", one)).await.unwrap_err();
        assert_eq!(twice.kind, ErrorKind::NoRoom, "{}", twice.message);
        place(&node, wanted("pod/2/b", other)).await.unwrap();

        // It goes on through the agent's death, and nothing is made twice.
        let made = sysfs.mdevs();
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(sysfs.mdevs(), made);
        assert_eq!(place(&node, wanted("pod/1/a", one)).await.unwrap(), lease);
        end(&node, &lease).await.unwrap();
        assert_eq!(sysfs.mdevs(), made);
        let audit = std::fs::read_to_string(node.directories().audit_log()).unwrap();
        assert!(audit.contains("taken away and made anew"), "{audit}");
        let next = parts(&node).await.remove(0);
        assert_eq!((next.out_of_service.as_ref(), next.leases), (None, 0));
        place(&node, wanted("pod/3/c", &next)).await.unwrap();
    }

    #[tokio::test]
    async fn whatever_cannot_be_made_anew_serves_nobody() {
        let (mut node, sysfs) = with_mdevs("reset = true").await;
        let one = parts(&node).await.remove(0);
        let lease = place(&node, wanted("pod/1/a", &one)).await.unwrap();
        sysfs.faults("refuse remove\n").unwrap();
        end(&node, &lease).await.unwrap();
        let reason = parts(&node).await[0].out_of_service.clone().unwrap();
        assert!(reason.contains("tenant acme had it by vgpu"), "{reason}");
        let next = place(&node, wanted("pod/2/b", &one)).await.unwrap_err();
        assert!(next.message.contains("is in quarantine"), "{}", next.message);
        // Its neighbour serves, and an operator has it made anew.
        let other = parts(&node).await.remove(1);
        place(&node, wanted("pod/2/b", &other)).await.unwrap();
        let clear = || agent::ClearQuarantineRequest { gpu: one.uuid.clone() };
        let refused = node.client().await.clear_quarantine(clear()).await.unwrap_err();
        assert!(refused.message().contains("stays in quarantine"), "{refused}");
        sysfs.faults("").unwrap();
        node.client().await.clear_quarantine(clear()).await.unwrap();
        let again = parts(&node).await.remove(0);
        place(&node, wanted("pod/3/c", &again)).await.unwrap();

        // What the configuration has no more is taken away.
        node.signal_agent(Signal::KILL);
        let text = std::fs::read_to_string(node.path("agent.toml")).unwrap();
        node.write("agent.toml", &text.replace("count = 2", "count = 1"));
        node.start_agent().await;
        let first = GPU.parse::<GpuUuid>().unwrap().vgpu(0).to_string();
        assert_eq!(sysfs.mdevs(), [first.trim_start_matches("VGPU-")]);
    }

    #[tokio::test]
    async fn without_leave_to_clear_it_a_vgpu_waits_for_an_operator() {
        let (node, sysfs) = with_mdevs("").await;
        let one = parts(&node).await.remove(0);
        let lease = place(&node, wanted("pod/1/a", &one)).await.unwrap();
        end(&node, &lease).await.unwrap();
        let reason = parts(&node).await[0].out_of_service.clone().unwrap();
        assert!(reason.contains("nothing shows that its memory is clear"), "{reason}");
        assert_eq!(sysfs.mdevs().len(), 2);
    }

    #[tokio::test]
    async fn an_agent_that_dies_at_any_write_leaves_as_many_as_there_are_to_be() {
        let (mut node, sysfs) = prepare("mdev", "reset = true");
        sysfs.mdev_type(ADDRESS, "nvidia-592", 4).unwrap();
        for moment in ["kill before create", "kill after create"] {
            sysfs.faults(moment).unwrap();
            node.refused();
        }
        node.start_agent().await;
        let made = sysfs.mdevs();
        assert_eq!(made.len(), 2);
        for moment in
            ["kill before remove", "kill after remove", "kill before create", "kill after create"]
        {
            let one = parts(&node).await.remove(0);
            let lease = place(&node, wanted("pod/1/a", &one)).await.unwrap();
            sysfs.faults(moment).unwrap();
            end(&node, &lease).await.unwrap_err();
            node.agent.take().unwrap().wait().unwrap();
            node.start_agent().await;
            until_no_lease(&node).await;
            assert_eq!(sysfs.mdevs(), made, "{moment}");
            let all = parts(&node).await;
            assert!(all.iter().all(|part| part.not_ready.is_none()), "{moment}: {all:?}");
            assert!(all.iter().all(|part| part.out_of_service.is_none()), "{moment}: {all:?}");
        }
    }

    #[tokio::test]
    async fn a_vendors_vgpu_is_made_on_its_function() {
        let (mut node, sysfs) = prepare("vendor", "reset = true");
        sysfs.vendor_functions(ADDRESS, 3, 592).unwrap();
        node.start_agent().await;
        let both = parts(&node).await;
        assert_eq!(both[1].id, "0000:86:00.5");
        assert_eq!(both[1].vfio.as_ref().unwrap().group, 61);
        let kind = |vf: &str| {
            let file = sysfs.device(vf).join("nvidia/current_vgpu_type");
            std::fs::read_to_string(file).unwrap().trim().to_owned()
        };
        assert_eq!((kind("0000:86:00.4").as_str(), kind("0000:86:00.6").as_str()), ("592", "0"));
        let lease = place(&node, wanted("pod/1/a", &both[1])).await.unwrap();
        end(&node, &lease).await.unwrap();
        assert_eq!(parts(&node).await[1].out_of_service, None);
        assert_eq!(kind("0000:86:00.5"), "592");
    }

    #[tokio::test]
    async fn virtual_functions_are_made_bound_and_reset_or_kept() {
        let (mut node, sysfs) = prepare("vf", "reset = true");
        sysfs.virtual_functions(ADDRESS, 4).unwrap();
        node.start_agent().await;
        let both = parts(&node).await;
        assert_eq!(both[1].id, "0000:3b:10.1", "{both:?}\n{}", node.log());
        assert!(both.iter().all(|part| part.not_ready.is_none()), "{both:?}\n{}", node.log());
        let lease = place(&node, wanted("pod/1/a", &both[0])).await.unwrap();
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(place(&node, wanted("pod/1/a", &both[0])).await.unwrap(), lease);
        end(&node, &lease).await.unwrap();
        // This machine has no such device: what opens it says so, and nothing took it for clear.
        let reason = parts(&node).await[0].out_of_service.clone().unwrap();
        assert!(reason.contains("had it by vgpu") && reason.contains("VFIO"), "{reason}");
        // Nothing of it is kept when the configuration has it no more.
        node.signal_agent(Signal::KILL);
        let text = std::fs::read_to_string(node.path("agent.toml")).unwrap();
        let (before, rest) = text.split_once("[[gpu]]").unwrap();
        let (_, usage) = rest.split_once("[usage]").unwrap();
        node.write("agent.toml", &format!("{before}[usage]{usage}"));
        node.start_agent().await;
        assert!(!sysfs.device("0000:3b:10.0").exists(), "{}", node.log());
    }

    #[tokio::test]
    async fn virtual_functions_that_open_with_a_token_are_refused_and_it_is_said_why() {
        let (mut node, sysfs) = prepare("vf", "");
        sysfs.virtual_functions(ADDRESS, 4).unwrap();
        sysfs.bind(ADDRESS, Some("vfio-pci")).unwrap();
        let parameters = sysfs.root().join("module/vfio_pci/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        std::fs::write(parameters.join("enable_sriov"), "Y\n").unwrap();
        node.start_agent().await;
        let both = parts(&node).await;
        let why = both[0].not_ready.clone().unwrap_or_default();
        let whose = format!("0000:3b:10.0 is a virtual function of {ADDRESS}, which is on VFIO");
        assert!(why.contains(&whose), "{why}\n{}", node.log());
        assert!(why.contains("bind the physical one to its own driver"), "{why}");
        let said = place(&node, wanted("pod/1/a", &both[0])).await.unwrap_err().message;
        assert!(said.contains(&whose), "{said}");
        assert!(node.leases().await.is_empty());
        node.signal_agent(Signal::INT);
    }
}
