//! Leases that somebody else placed, with the real broker, worker and simulated GPUs.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use gpuzone_api::agent::v1 as agent;
    use gpuzone_api::placements::v1::placements_client::PlacementsClient;
    use gpuzone_api::placements::v1::{self as proto, PlacedGpu};
    use gpuzone_api::{AgentError, ErrorKind};
    use rustix::process::Signal;
    use tonic::transport::Channel;

    use super::support::{Node, connect, is_alive};

    async fn placements(node: &Node) -> PlacementsClient<Channel> {
        let socket = node.directories().agent_socket();
        PlacementsClient::new(connect(&socket).await.unwrap())
    }

    async fn wanted(node: &Node, holder: &str, folder: u64, gib: u64) -> proto::PlaceRequest {
        let asked = agent::ListGpusRequest {};
        let gpus = node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus;
        proto::PlaceRequest {
            holder: holder.into(),
            tenant: "acme".into(),
            gpus: vec![PlacedGpu {
                gpu_uuid: gpus[0].uuid.clone(),
                memory_bytes: gib << 30,
                share_percent: 10,
                node: String::new(),
            }],
            slot: "slot-3".into(),
            folder: format!("{folder:016x}"),
            program: "team/app".into(),
            exposure: String::new(),
            quotas: Vec::new(),
            group: String::new(),
        }
    }

    async fn place(
        node: &Node,
        asked: proto::PlaceRequest,
    ) -> Result<proto::PlacedLease, AgentError> {
        let placed = placements(node).await.place(asked).await.map_err(AgentError::from)?;
        Ok(placed.into_inner().lease.unwrap())
    }

    fn folder(node: &Node, folder: u64) -> PathBuf {
        node.path("state").join("slots/slot-3").join(format!("{folder:016x}"))
    }

    /// A program that has the folder, as a container has it mounted.
    fn run_in(node: &Node, number: u64) -> bool {
        let created = agent::CreateLeaseReply {
            environment: [("GPUZONE_SLOT".to_owned(), folder(node, number).display().to_string())]
                .into(),
            library_dir: node.directories().shim_dir().display().to_string(),
            ..Default::default()
        };
        node.run_to_end(&created, "saxpy").status.success()
    }

    #[tokio::test]
    async fn one_lease_however_often_it_is_asked_for() {
        let mut node = Node::start().await;
        let asked = wanted(&node, "pod/1/app", 1, 2).await;
        // Many at once, and again after that.
        let many = futures_of(&node, &asked, 8).await;
        let first = place(&node, asked.clone()).await.unwrap();
        assert_eq!(first.state, "active");
        for placed in many {
            assert_eq!(placed.unwrap().id, first.id);
        }
        assert!(run_in(&node, 1), "{}", node.log());
        let inode = std::fs::metadata(folder(&node, 1)).unwrap().ino();

        // A killed worker is replaced in the folder that the container has mounted.
        let worker = node.worker().await.unwrap();
        super::support::send(worker, Signal::KILL);
        node.eventually("a fresh worker", async |node| {
            node.worker().await.is_some_and(|fresh| fresh != worker)
        })
        .await;
        assert!(run_in(&node, 1));
        assert_eq!(std::fs::metadata(folder(&node, 1)).unwrap().ino(), inode);

        // The agent's death is not the holder's.
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(place(&node, asked.clone()).await.unwrap(), first);
        assert!(run_in(&node, 1));

        let listed = node.leases().await;
        assert_eq!((listed.len(), listed[0].holder_pid), (1, 0));
        let end =
            proto::EndRequest { lease_id: first.id.clone(), reason: "its pod is gone".into() };
        let worker = node.worker().await.unwrap();
        placements(&node).await.end(end.clone()).await.unwrap();
        placements(&node).await.end(end).await.unwrap();
        assert!(!is_alive(worker) && folder(&node, 1).is_dir());
        assert!(!run_in(&node, 1), "nobody answers in a slot without a lease");
        assert!(node.leases().await.is_empty());
    }

    async fn futures_of(
        node: &Node,
        asked: &proto::PlaceRequest,
        count: usize,
    ) -> Vec<Result<proto::PlacedLease, AgentError>> {
        let client = placements(node).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (mut client, asked) = (client.clone(), asked.clone());
            tasks.spawn(async move {
                let placed = client.place(asked).await.map_err(AgentError::from)?;
                Ok(placed.into_inner().lease.unwrap())
            });
        }
        tasks.join_all().await
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_and_leaves_nothing() {
        let node = Node::start().await;
        let first = place(&node, wanted(&node, "pod/1/app", 1, 4).await).await.unwrap();
        let mut cases = vec![
            // The folder is another's, the holder has another lease, the memory is taken.
            (
                wanted(&node, "pod/2/app", 1, 1).await,
                ErrorKind::InvalidRequest,
                "appears in slot-3",
            ),
            (
                wanted(&node, "pod/1/app", 2, 4).await,
                ErrorKind::InvalidRequest,
                "end that one first",
            ),
            (wanted(&node, "pod/2/app", 2, 13).await, ErrorKind::NoRoom, "12Gi"),
        ];
        let mut elsewhere = wanted(&node, "pod/2/app", 2, 1).await;
        elsewhere.gpus[0].gpu_uuid = "GPU-00000000-0000-0000-0000-00000000abcd".into();
        cases.push((elsewhere, ErrorKind::NoRoom, "not on this node"));
        let mut poor = wanted(&node, "pod/2/app", 2, 2).await;
        poor.tenant = "small".into();
        cases.push((poor, ErrorKind::Quota, "small"));
        for (asked, kind, part) in cases {
            let error = place(&node, asked).await.unwrap_err();
            assert_eq!(error.kind, kind, "{}", error.message);
            assert!(error.message.contains(part), "{} lacks {part}", error.message);
        }
        let listed = placements(&node).await.list(proto::ListRequest {}).await.unwrap();
        assert_eq!(listed.into_inner().leases, [first]);
        // A process's lease is not listed there, and not ended there.
        let own = node.lease(1).await.unwrap().lease.unwrap();
        let end = proto::EndRequest { lease_id: own.id, reason: String::new() };
        assert!(placements(&node).await.end(end).await.is_err());
        assert_eq!(node.leases().await.len(), 2);
    }

    /// A node whose GPU is cut into two small MIG instances and a larger one.
    async fn start_cut() -> Node {
        let mut node = Node::prepare();
        let cut = "memory = \"16Gi\"\nmig_capable = true\nmig = [{ profile = \"1g.2gb\" }, \
                   { profile = \"1g.2gb\" }, { profile = \"3g.6gb\" }]";
        let simulated = std::fs::read_to_string(node.path("simulated.toml")).unwrap();
        node.write("simulated.toml", &simulated.replace("memory = \"16Gi\"", cut));
        node.start_agent().await;
        node
    }

    async fn partitions(node: &Node) -> Vec<agent::Partition> {
        let asked = agent::ListGpusRequest {};
        let gpus = node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus;
        gpus.into_iter().flat_map(|gpu| gpu.partitions).collect()
    }

    /// A request for one of the instances.
    fn instance(part: &agent::Partition, holder: &str) -> proto::PlaceRequest {
        let (memory_bytes, share_percent) = (part.memory_bytes, part.share_percent);
        proto::PlaceRequest {
            holder: holder.into(),
            tenant: "acme".into(),
            gpus: vec![PlacedGpu {
                gpu_uuid: part.uuid.clone(),
                memory_bytes,
                share_percent,
                node: String::new(),
            }],
            slot: part.id.clone(),
            folder: format!("{:016x}", 1),
            program: "team/app".into(),
            exposure: "mig".into(),
            quotas: Vec::new(),
            group: String::new(),
        }
    }

    fn run_on(node: &Node, part: &agent::Partition, arguments: &[&str]) -> (bool, String) {
        let folder = node.path("state").join("slots").join(&part.id).join(format!("{:016x}", 1));
        let created = agent::CreateLeaseReply {
            environment: [("GPUZONE_SLOT".to_owned(), folder.display().to_string())].into(),
            library_dir: node.directories().shim_dir().display().to_string(),
            ..Default::default()
        };
        let output = node.run_arguments(&created, arguments);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[tokio::test]
    async fn a_mig_instance_is_one_leases_and_its_programs_see_it_alone() {
        let mut node = start_cut().await;
        let parts = partitions(&node).await;
        let told: Vec<_> = parts.iter().map(|p| (p.profile.as_str(), p.share_percent)).collect();
        assert_eq!(told, [("1g.2gb", 14), ("1g.2gb", 14), ("3g.6gb", 42)]);
        let first = place(&node, instance(&parts[0], "pod/1/app")).await.unwrap();
        let second = place(&node, instance(&parts[2], "pod/2/app")).await.unwrap();
        assert_eq!((first.state.as_str(), first.exposure.as_str()), ("active", "mig"));
        for (part, gib) in [(&parts[0], 2_u64), (&parts[2], 6)] {
            let (well, said) = run_on(&node, part, &["info"]);
            let expected = [
                "devices=1 ".to_owned(),
                format!(" MIG {}", part.profile),
                format!("total_bytes={} ", gib << 30),
            ];
            let sees = expected.iter().all(|part| said.contains(part));
            assert!(well && sees, "{said} lacks one of {expected:?}\n{}", node.log());
            assert!(run_on(&node, part, &["saxpy"]).0, "{}", node.log());
        }
        // Neither twice, nor in part, nor the GPU that it is of.
        let whole = wanted(&node, "pod/3/app", 1, 16).await;
        let mut part = instance(&parts[1], "pod/3/app");
        part.gpus[0].memory_bytes /= 2;
        for (asked, said) in [
            (instance(&parts[0], "pod/3/app"), "appears in MIG-"),
            (part, "handed over whole: 2Gi and 14%"),
            (whole, "is handed over as mig"),
        ] {
            let error = place(&node, asked).await.unwrap_err();
            assert!(error.message.contains(said), "{} lacks {said}", error.message);
        }
        let mut elsewhere = instance(&parts[0], "pod/3/app");
        elsewhere.folder = format!("{:016x}", 2);
        let error = place(&node, elsewhere).await.unwrap_err();
        assert!(error.kind == ErrorKind::NoRoom, "{}", error.message);
        assert_eq!(partitions(&node).await[0].leases, 1);

        // The agent's death is not theirs, and the next one knows whose the instances are.
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(place(&node, instance(&parts[0], "pod/1/app")).await.unwrap(), first);
        assert!(run_on(&node, &parts[0], &["saxpy"]).0, "{}", node.log());

        // What it leaves is cleared before the next one has it; the other is not disturbed.
        let fill = ["hold", "--memory", "1Gi", "--seconds", "0"];
        assert!(run_on(&node, &parts[0], &fill).0, "{}", node.log());
        let end = proto::EndRequest { lease_id: first.id, reason: "its pod is gone".into() };
        placements(&node).await.end(end).await.unwrap();
        assert!(!run_on(&node, &parts[0], &["info"]).0);
        let third = place(&node, instance(&parts[0], "pod/3/app")).await.unwrap();
        assert_eq!(third.state, "active");
        let (clear, said) = run_on(&node, &parts[0], &["leak-check"]);
        assert!(clear, "{said}\n{}", node.log());
        assert!(run_on(&node, &parts[2], &["saxpy"]).0);
        let audit = std::fs::read_to_string(node.directories().audit_log()).unwrap();
        let scrubbed = |line: &&str| line.contains("\"scrub\"") && line.contains(&parts[0].uuid);
        let cleared = audit.lines().filter(scrubbed).filter(|line| line.contains("clear")).count();
        assert_eq!(cleared, 1, "{audit}");
        assert!(audit.contains(&second.id) && !audit.contains("\"result\":\"failed"));
    }

    #[tokio::test]
    async fn a_gpu_that_is_not_cut_is_not_handed_over_as_if_it_were() {
        let node = Node::prepare();
        let uuid = "GPU-00000000-0000-0000-0000-000000000001";
        let config = std::fs::read_to_string(node.path("agent.toml")).unwrap();
        node.write(
            "agent.toml",
            &format!("{config}[[gpu]]\nuuid = \"{uuid}\"\nexposure = \"mig\"\n"),
        );
        let said = node.refused();
        assert!(said.contains("not in MIG mode") && said.contains("nvidia-smi mig"), "{said}");
    }
}
