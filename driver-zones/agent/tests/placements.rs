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
    use gpuzone_api::{AgentError, ErrorKind, connect_channel};
    use rustix::process::Signal;
    use tonic::transport::Channel;

    use super::support::{Node, is_alive};

    async fn placements(node: &Node) -> PlacementsClient<Channel> {
        let socket = node.directories().agent_socket();
        PlacementsClient::new(connect_channel(&socket).await.unwrap())
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
            }],
            slot: "slot-3".into(),
            folder: format!("{folder:016x}"),
            program: "team/app".into(),
            exposure: String::new(),
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
}
