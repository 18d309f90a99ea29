//! MIG instances that the agent makes, with the real agent and the simulated driver.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use gpuzone_api::agent::v1 as agent;
    use gpuzone_api::placements::v1::placements_client::PlacementsClient;
    use gpuzone_api::placements::v1::{self as proto, PlacedGpu};
    use rustix::process::Signal;

    use super::support::{Node, connect};

    const GPU: &str = "GPU-00000000-0000-0000-0000-00000000abcd";
    const SMALL: &str = "{ profile = \"1g.2gb\", start = 0 }";
    const BOTH: &str = "{ profile = \"1g.2gb\", start = 0 }, { profile = \"3g.8gb\", start = 4 }";

    /// A GPU in MIG mode without an instance, of which the agent is to make `instances`.
    fn prepare(instances: &str) -> Node {
        let node = Node::prepare();
        let simulated = std::fs::read_to_string(node.path("simulated.toml")).unwrap();
        let capable = format!("memory = \"16Gi\"\nuuid = \"{GPU}\"\nmig_capable = true\nmig = []");
        node.write("simulated.toml", &simulated.replace("memory = \"16Gi\"", &capable));
        let table = format!("[[gpu]]\nuuid = \"{GPU}\"\nexposure = \"mig\"\n");
        let cut = format!("[gpu.mig]\ninstances = [{instances}]\n[usage]");
        node.configure("[usage]", &(table + &cut));
        node
    }

    async fn parts(node: &Node) -> Vec<agent::Partition> {
        let asked = agent::ListGpusRequest {};
        let gpus = node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus;
        let mut parts = gpus[0].partitions.clone();
        parts.sort_by_key(|part| part.memory_bytes);
        parts
    }

    fn profiles(parts: &[agent::Partition]) -> Vec<(&str, u64)> {
        parts.iter().map(|part| (part.profile.as_str(), part.memory_bytes >> 30)).collect()
    }

    fn wanted(part: &agent::Partition) -> proto::PlaceRequest {
        proto::PlaceRequest {
            holder: "pod/1/app".into(),
            tenant: "acme".into(),
            gpus: vec![PlacedGpu {
                gpu_uuid: part.uuid.clone(),
                memory_bytes: part.memory_bytes,
                share_percent: part.share_percent,
                node: String::new(),
            }],
            slot: part.id.clone(),
            folder: format!("{:016x}", 1),
            program: "team/app".into(),
            exposure: "mig".into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn instances_are_made_at_their_places_leased_kept_and_ended_with_their_lines() {
        let mut node = prepare(BOTH);
        node.start_agent().await;
        let made = parts(&node).await;
        assert_eq!(profiles(&made), [("1g.2gb", 2), ("3g.8gb", 8)], "{}", node.log());

        let asked = agent::ListDevicesRequest {};
        let listed = node.client().await.list_devices(asked).await.unwrap().into_inner().gpus;
        let mig = listed[0].mig.as_ref().unwrap();
        let places: Vec<(u32, u32, &str)> = mig
            .instances
            .iter()
            .map(|of| (of.placement.as_ref().unwrap().start, of.slices, of.profile.as_str()))
            .collect();
        assert_eq!((listed[0].uuid.as_str(), mig.enabled), (GPU, true));
        assert_eq!(places, [(0, 1, "1g.2gb"), (4, 3, "3g.8gb")]);
        assert_eq!(mig.instances[1].computes[0].uuid.as_ref(), Some(&made[1].uuid));
        let three = mig.kinds.iter().find(|kind| kind.name == "3g.8gb").unwrap();
        let starts: Vec<u32> = three.placements.iter().map(|place| place.start).collect();
        assert_eq!((starts, three.memory_bytes >> 30), (vec![0, 4], 8));

        // A program computes on one; the next agent makes nothing twice, and the lease goes on.
        let socket = node.directories().agent_socket();
        let mut placements = PlacementsClient::new(connect(&socket).await.unwrap());
        let placed = placements.place(wanted(&made[1])).await.unwrap().into_inner();
        let lease = placed.lease.unwrap();
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let again = parts(&node).await;
        assert_eq!(
            again.iter().map(|part| &part.uuid).collect::<Vec<_>>(),
            [&made[0].uuid, &made[1].uuid]
        );
        assert_eq!(node.leases().await[0].id, lease.id);
        let folder = node.path("state").join("slots").join(&made[1].id).join(format!("{:016x}", 1));
        let created = agent::CreateLeaseReply {
            environment: [("GPUZONE_SLOT".to_owned(), folder.display().to_string())].into(),
            library_dir: node.directories().shim_dir().display().to_string(),
            ..Default::default()
        };
        let output = node.run_arguments(&created, &["info"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(" MIG 3g.8gb"), "{said}");

        // Its line is gone while it is leased: its worker has it, so it stays.
        node.configure(BOTH, SMALL);
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let kept = profiles(&parts(&node).await).len();
        let log = node.log();
        assert!(kept == 2 && log.contains("it cannot be undone"), "{kept}: {log}");
        assert!(log.contains("is in use"), "{log}");
        let mut placements = PlacementsClient::new(connect(&socket).await.unwrap());
        let end = proto::EndRequest { lease_id: lease.id, reason: "over".into() };
        placements.end(end).await.unwrap();
        drop(placements);
        node.signal_agent(Signal::INT);
        node.start_agent().await;
        assert_eq!(profiles(&parts(&node).await), [("1g.2gb", 2)], "{}", node.log());
    }

    #[tokio::test]
    async fn what_cannot_be_made_is_said_and_the_others_serve() {
        let mut node = prepare(&format!("{SMALL}, {{ profile = \"3g.8gb\", start = 2 }}"));
        node.start_agent().await;
        assert_eq!(profiles(&parts(&node).await), [("1g.2gb", 2)]);
        let log = node.log();
        assert!(log.contains("cannot begin at memory slice 2; it can at 0, 4"), "{log}");
    }
}
