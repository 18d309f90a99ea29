//! GPUs that go wrong, with the real broker, worker and simulated GPUs: what a tester appends to a
//! GPU's file of faults is what its driver reports.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use gpuzone_agent::broker::BrokerLink;
    use gpuzone_api::agent::v1 as proto;
    use gpuzone_api::{AgentError, ErrorKind};
    use rustix::process::Signal;

    use super::support::{Node, send};

    fn goes_wrong(node: &Node, what: &str) {
        let path = node.path("gpus/gpu-0.faults");
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        file.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    /// With short times, and with more configuration of the simulated node.
    async fn start(simulated: &str) -> Node {
        let mut node = Node::prepare();
        let text = std::fs::read_to_string(node.path("simulated.toml")).unwrap();
        node.write("simulated.toml", &format!("{text}{simulated}"));
        let health = "[health]\ngrace_seconds = 0.5\nsettle_seconds = 1\nunknown_xid_seconds = 1\n\
                      [tenants.default]\n";
        node.configure("[tenants.default]\n", health);
        node.start_agent().await;
        node
    }

    async fn gpu(node: &Node) -> proto::Gpu {
        let asked = proto::ListGpusRequest {};
        let gpus = node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus;
        gpus.into_iter().next().unwrap()
    }

    async fn clear(node: &Node) -> Result<proto::Gpu, AgentError> {
        let asked = proto::ClearQuarantineRequest { gpu: "0".into() };
        let cleared = node.client().await.clear_quarantine(asked).await?;
        Ok(cleared.into_inner().gpu.unwrap())
    }

    async fn until_out(node: &Node, cause: &str) {
        node.eventually(cause, async |node| gpu(node).await.cause == cause).await;
    }

    async fn until_well(node: &Node) {
        let well = async |node: &Node| gpu(node).await.out_of_service.is_none();
        node.eventually("it serves again", well).await;
    }

    /// The broker that answers, if one does.
    async fn answering(node: &Node) -> Option<u32> {
        let socket = node.directories().driver_zone_dir().join("control.sock");
        BrokerLink::new(socket).hello().await.ok()
    }

    fn audited(node: &Node) -> Vec<String> {
        let log = std::fs::read_to_string(node.path("state/audit.log")).unwrap();
        let event = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        log.lines().map(|line| event(line)["event"]["kind"].as_str().unwrap().into()).collect()
    }

    #[tokio::test]
    async fn a_devices_fault_takes_a_gpu_out_until_it_is_cleared_whoever_dies() {
        let mut node = start("").await;
        let held = node.lease(1).await.unwrap();
        goes_wrong(&node, "xid 31\nxid 31");
        node.eventually("it is noted", async |node| {
            gpu(node).await.xids.iter().any(|xid| (xid.number, xid.count) == (31, 2))
        })
        .await;
        let noted = gpu(&node).await;
        assert_eq!((noted.out_of_service, noted.xids[0].class.as_str()), (None, "application"));
        node.lease(1).await.unwrap();

        goes_wrong(&node, "xid 79");
        until_out(&node, "xid-79").await;
        let out = gpu(&node).await;
        let reason = out.quarantine.unwrap();
        assert!(reason.starts_with("Xid 79: the GPU has fallen off the bus"), "{reason}");
        assert!(out.out_since_unix_ns.is_some());
        let refused = node.lease(1).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::NoRoom);
        assert!(refused.message.contains("in quarantine"), "{}", refused.message);
        node.run_in(&held, "saxpy");

        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert!(gpu(&node).await.quarantine.unwrap().starts_with("Xid 79"));
        assert!(node.lease(1).await.is_err());
        node.run_in(&held, "saxpy");

        let cleared = clear(&node).await.unwrap();
        assert_eq!(cleared.out_of_service, None);
        assert!(cleared.recovered_from.starts_with("Xid 79"));
        assert!(clear(&node).await.unwrap_err().message.contains("not in quarantine"));
        node.lease(1).await.unwrap();
        let kinds = audited(&node);
        for kind in ["quarantine", "quarantine_cleared"] {
            assert_eq!(kinds.iter().filter(|k| *k == kind).count(), 1, "{kind}: {kinds:?}");
        }
    }

    #[tokio::test]
    async fn a_program_that_touches_what_is_not_its_own_condemns_nothing() {
        let node = start("").await;
        let lease = node.lease(1).await.unwrap();
        for _ in 0..3 {
            assert!(!node.run_to_end(&lease, "crash").status.success());
        }
        node.eventually("it is noted", async |node| {
            gpu(node).await.xids.iter().any(|xid| xid.number == 31 && xid.count >= 1)
        })
        .await;
        assert_eq!(gpu(&node).await.out_of_service, None);
        node.run_in(&node.lease(1).await.unwrap(), "saxpy");
    }

    #[tokio::test]
    async fn a_lost_driver_zone_suspends_its_gpus_until_it_has_answered_for_a_while() {
        let mut node = start("").await;
        let broker = node.broker().await;
        send(broker, Signal::STOP);
        until_out(&node, "zone").await;
        let out = gpu(&node).await;
        assert_eq!(out.quarantine, None);
        let reason = out.out_of_service.unwrap();
        assert!(reason.starts_with("its driver zone does not answer"), "{reason}");
        let refused = node.lease(1).await.unwrap_err();
        assert!(refused.message.contains("suspended"), "{}", refused.message);
        send(broker, Signal::CONT);
        until_well(&node).await;
        assert!(gpu(&node).await.recovered_from.starts_with("its driver zone"));
        // A broker that dies is replaced before anybody notices.
        send(broker, Signal::KILL);
        node.eventually("another broker", async |node| {
            answering(node).await.is_some_and(|other| other != broker)
        })
        .await;
        let kinds = audited(&node);
        let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
        assert_eq!((count("suspension"), count("recovery")), (1, 1), "{kinds:?}");
        node.run_in(&node.lease(1).await.unwrap(), "saxpy");

        // Again, and the agent dies while it settles: the next one waits as long.
        let broker = node.broker().await;
        send(broker, Signal::STOP);
        until_out(&node, "zone").await;
        send(broker, Signal::CONT);
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(gpu(&node).await.cause, "zone");
        until_well(&node).await;
    }

    #[tokio::test]
    async fn what_the_driver_asks_for_counts_as_long_as_it_does() {
        let node = start("").await;
        goes_wrong(&node, "action 1");
        until_out(&node, "action").await;
        let reason = gpu(&node).await.out_of_service.unwrap();
        assert!(reason.contains("reset the GPU"), "{reason}");
        goes_wrong(&node, "action 0");
        until_well(&node).await;
        // An error that nobody knows: out for a while, and for good when it comes too often.
        goes_wrong(&node, "xid 4711");
        until_out(&node, "unknown-xid").await;
        assert_eq!(gpu(&node).await.quarantine, None);
        until_well(&node).await;
    }

    #[tokio::test]
    async fn a_driver_without_events_is_asked_and_a_lost_gpu_is_found_out() {
        let mut node = start("[fault]\nevents = \"unsupported\"\n").await;
        assert!(node.log().contains("tells of no events"), "{}", node.log());
        goes_wrong(&node, "xid 79\nlost");
        until_out(&node, "lost").await;
        // The next agent serves without it, and remembers it when it is there again.
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        let asked = proto::ListGpusRequest {};
        assert!(node.client().await.list_gpus(asked).await.unwrap().into_inner().gpus.is_empty());
        goes_wrong(&node, "found");
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(gpu(&node).await.cause, "lost");
        clear(&node).await.unwrap();
    }

    #[tokio::test]
    async fn a_gpu_that_went_with_a_lease_on_it_comes_back_into_quarantine() {
        let mut node = start("").await;
        node.lease(1).await.unwrap();
        node.signal_agent(Signal::KILL);
        goes_wrong(&node, "lost");
        node.start_agent().await;
        assert!(node.leases().await.is_empty());
        node.signal_agent(Signal::KILL);
        goes_wrong(&node, "found");
        node.start_agent().await;
        let back = gpu(&node).await;
        assert_eq!(back.cause, "scrub");
        assert!(back.quarantine.unwrap().contains("had there was not cleared"));
        clear(&node).await.unwrap();
        node.run_in(&node.lease(1).await.unwrap(), "saxpy");
    }

    #[tokio::test]
    async fn a_driver_that_goes_silent_is_opened_anew_and_heard_again() {
        let node = start("").await;
        // So many rows in a GPU's table cannot be: its driver answers nothing any more.
        let state =
            std::fs::File::options().read(true).write(true).open(node.path("gpus/gpu-0.state"));
        let (state, rows) = (state.unwrap(), 64 + 8);
        state.write_all_at(&[0xff; 8], rows).unwrap();
        until_out(&node, "driver").await;
        assert_eq!(gpu(&node).await.quarantine, None);
        let anew = "its library is opened anew";
        node.eventually(anew, async |node| node.log().contains(anew)).await;
        // No worker has allocated anything.
        state.write_all_at(&[0; 8], rows).unwrap();
        until_well(&node).await;
        goes_wrong(&node, "xid 79");
        until_out(&node, "xid-79").await;
    }

    #[tokio::test]
    async fn a_flood_of_errors_hides_none() {
        let node = start("").await;
        for _ in 0..20 {
            goes_wrong(&node, "xid 13\n".repeat(1000).trim_end());
        }
        goes_wrong(&node, "xid 48");
        until_out(&node, "xid-48").await;
        let seen = gpu(&node).await;
        assert!(seen.quarantine.unwrap().starts_with("Xid 48"));
        assert!(seen.xids.iter().any(|xid| (xid.number, xid.count) == (13, 20_000)));
        let lines = std::fs::read_to_string(node.path("state/journal")).unwrap().lines().count();
        assert!(lines < 10, "{lines} lines of a journal for one change");
    }

    async fn watch(node: &Node) -> Result<tonic::Streaming<proto::WatchGpusReply>, AgentError> {
        let mut client = node.client().await;
        Ok(client.watch_gpus(proto::WatchGpusRequest {}).await?.into_inner())
    }

    #[tokio::test]
    async fn who_watches_gets_the_state_and_then_each_newest() {
        let mut node = start("").await;
        let mut quick = watch(&node).await.unwrap();
        let mut slow = watch(&node).await.unwrap();
        let first = quick.message().await.unwrap().unwrap();
        assert_eq!((first.gpus.len(), first.driver.as_str()), (1, "simulated"));
        assert!(first.gpus[0].out_of_service.is_none() && first.silence_limit_ms > 1000);
        goes_wrong(&node, "xid 79");
        let next = quick.message().await.unwrap().unwrap();
        assert!(next.version > first.version);
        assert!(next.gpus[0].quarantine.as_ref().is_some_and(|why| why.starts_with("Xid 79")));
        clear(&node).await.unwrap();
        let last = quick.message().await.unwrap().unwrap();
        assert!(last.gpus[0].out_of_service.is_none() && last.version > next.version);
        // Who reads late gets the state as it is, after at most what was on its way.
        let mut read = slow.message().await.unwrap().unwrap();
        for _ in 0..3 {
            read = slow.message().await.unwrap().unwrap();
        }
        assert_eq!((read.version, &read.gpus), (last.version, &last.gpus));

        // Not more than can be.
        let mut others = Vec::new();
        let refused = loop {
            match watch(&node).await {
                Ok(stream) => others.push(stream),
                Err(error) => break error,
            }
            assert!(others.len() < 100);
        };
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        drop(others);
        node.eventually("a place", async |node| watch(node).await.is_ok()).await;
        // An agent that ends does not wait for those who watch.
        let status = node.signal_agent(Signal::TERM);
        assert!(status.success());
        while let Ok(Some(_)) = quick.message().await {}
    }
}
