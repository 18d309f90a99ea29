//! GPUs that go wrong, from their driver to the API server: the real plugin and the real agent
//! with simulated GPUs, under stand-ins of kubelet and API server.
#[cfg(test)]
#[allow(dead_code, reason = "it serves several test programs")]
mod support;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use gpuzone_api::kubernetes::DEVICE_PLUGIN_ACCESS;
    use gpuzone_testkit::kubernetes::Used;
    use gpuzone_testkit::{Node, Role};
    use rustix::process::Signal;
    use serde_json::Value;

    use super::support::{Cluster, NODE};

    const CONDITION: &str = "GpuZoneGpusHealthy";

    fn goes_wrong(cluster: &Cluster, gpu: usize, what: &str) {
        let path = cluster.node.simulated_state().join(format!("gpu-{gpu}.faults"));
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        file.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    fn published(cluster: &Cluster) -> Option<Value> {
        Some(cluster.api.patched(&format!("gpunodes/{NODE}/status"))?["status"].clone())
    }

    async fn until_healthy(cluster: &Cluster, count: u64) {
        cluster
            .until(&format!("{count} healthy GPUs"), async |c| {
                published(c).is_some_and(|status| status["healthy"] == count)
            })
            .await;
    }

    async fn until_condition(cluster: &Cluster, status: &str) -> Value {
        cluster
            .until(&format!("a condition that is {status}"), async |c| {
                c.api.condition(CONDITION).is_some_and(|condition| condition["status"] == status)
            })
            .await;
        cluster.api.condition(CONDITION).unwrap()
    }

    fn events(cluster: &Cluster, reason: &str) -> Vec<Value> {
        let all = cluster.api.events();
        all.into_iter().filter(|event| event["reason"] == reason).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gpu_that_fails_is_out_for_the_scheduler_and_for_people() {
        let mut cluster = Cluster::start().await;
        until_healthy(&cluster, 2).await;
        let well = until_condition(&cluster, "True").await;
        assert_eq!(well["message"], "all 2 GPUs take new leases");
        assert!(cluster.api.events().is_empty());
        let writes = cluster.api.condition_writes();

        // What a program does says nothing about the GPU.
        goes_wrong(&cluster, 1, "xid 31");
        let injected = Instant::now();
        goes_wrong(&cluster, 0, "xid 79");
        until_healthy(&cluster, 1).await;
        println!("from the driver's report to the GpuNode: {:?}", injected.elapsed());
        let status = published(&cluster).unwrap();
        let (sick, other) = (&status["gpus"][0], &status["gpus"][1]);
        assert_eq!((&sick["cause"], &sick["needsOperator"]), (&"xid-79".into(), &true.into()));
        assert!(sick["reason"].as_str().unwrap().starts_with("Xid 79"), "{sick}");
        assert_eq!(other["healthy"], true);
        let condition = until_condition(&cluster, "False").await;
        let expected =
            "1 of 2 GPUs take no new leases: GPU 0 quarantined (xid-79); the GpuNode says why";
        assert_eq!(
            (&condition["reason"], &condition["message"]),
            (&"SomeServe".into(), &expected.into())
        );
        cluster.until("an event", async |c| events(c, "GpuXid79").len() == 1).await;
        let event = &events(&cluster, "GpuXid79")[0];
        assert_eq!((&event["type"], &event["action"]), (&"Warning".into(), &"Quarantine".into()));
        assert_eq!(
            (&event["regarding"]["kind"], &event["regarding"]["name"]),
            (&"Node".into(), &NODE.into())
        );
        assert!(event["note"].as_str().unwrap().contains("until it is cleared: Xid 79"), "{event}");

        // One GPU serves, so every slot does: a pod of the other GPU runs, one of this does not.
        assert_eq!(cluster.kubelet().allocatable(), 64);
        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        let said = cluster.refusal(&pod).await;
        assert!(said.contains("is in quarantine"), "{said}");

        // A plugin and an agent that start anew tell nothing twice.
        cluster.kill_plugin();
        cluster.node.kill_agent().unwrap();
        cluster.node.start_agent().unwrap();
        cluster.start_plugin();
        cluster.registered().await;
        cluster.until("a comparison", async |c| c.log().contains("are published already")).await;

        // The last one fails, too: there is nothing left to be had in a slot.
        goes_wrong(&cluster, 1, "ecc");
        until_healthy(&cluster, 0).await;
        cluster.until("no slots", async |c| c.kubelet().allocatable() == 0).await;
        let both = cluster.node.json(&["gpus"]).unwrap();
        assert_eq!(both["gpus"][1]["health"], "quarantined");

        // An operator sees to both.
        for gpu in ["0", "1"] {
            cluster.node.json(&["gpus", "--clear-quarantine", gpu]).unwrap();
        }
        until_healthy(&cluster, 2).await;
        cluster.registered().await;
        until_condition(&cluster, "True").await;
        cluster
            .until("two events", async |c| {
                let again = events(c, "GpuServesAgain");
                let related = |event: &Value| event["related"]["fieldPath"].clone();
                again.len() == 2 && related(&again[0]) != related(&again[1])
            })
            .await;
        assert_eq!((events(&cluster, "GpuXid79").len(), events(&cluster, "GpuEcc").len()), (1, 1));
        let writes = cluster.api.condition_writes() - writes;
        assert!((3..=4).contains(&writes), "{writes} writes for as many changes");
        let container = cluster.start_container(&pod, "app").await;
        cluster.works(&container);

        // What this plugin told before is counted, and now each right of its role was of use; what
        // the role lacks was refused all along.
        goes_wrong(&cluster, 0, "xid 79");
        until_healthy(&cluster, 1).await;
        cluster.node.json(&["gpus", "--clear-quarantine", "0"]).unwrap();
        let role = Used::all(DEVICE_PLUGIN_ACCESS);
        cluster.until("all rights used", async |c| c.api.used() == role).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_outage_of_the_api_server_or_a_missing_right_loses_no_word() {
        let mut cluster = Cluster::start().await;
        until_healthy(&cluster, 2).await;
        until_condition(&cluster, "True").await;
        cluster.api.set_away(true);
        goes_wrong(&cluster, 0, "xid 48");
        cluster.until("an error", async |c| c.log().contains("GPUs is not written")).await;
        // The kubelet is told all the same, once all are out.
        goes_wrong(&cluster, 1, "remap-failed");
        cluster.until("no slots", async |c| c.kubelet().allocatable() == 0).await;
        cluster.api.set_away(false);
        until_healthy(&cluster, 0).await;
        // What was being written as the API server came back may be of the first of them only.
        cluster
            .until("a condition of both", async |c| {
                c.api.condition(CONDITION).is_some_and(|said| said["reason"] == "NoneServes")
            })
            .await;
        let condition = until_condition(&cluster, "False").await;
        cluster
            .until("events", async |c| {
                events(c, "GpuXid48").len() == 1 && events(c, "GpuRemap").len() == 1
            })
            .await;

        // Without the right to write of nodes, the scheduler's half works.
        cluster.api.deny_nodes(true);
        cluster.node.json(&["gpus", "--clear-quarantine", "0"]).unwrap();
        until_healthy(&cluster, 1).await;
        cluster.registered().await;
        cluster
            .until("what is missing", async |c| {
                c.log().contains("give its service account that right")
            })
            .await;
        assert_eq!(cluster.api.condition(CONDITION).unwrap(), condition);
        cluster.api.deny_nodes(false);
        let condition = until_condition(&cluster, "False").await;
        assert!(condition["message"].as_str().is_some());
        cluster.kill_plugin();
    }

    /// What comes back by itself does so after a while, and both are told; what has to be cleared waits.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lost_zone_comes_back_by_itself_and_a_failed_scrub_does_not() {
        let terms = "[health]\ngrace_seconds = 0.5\nsettle_seconds = 1\n";
        let node = Node::start(&Cluster::options(terms)).unwrap();
        let mut cluster = Cluster::of(node).await;
        cluster.start_plugin();
        cluster.registered().await;
        until_healthy(&cluster, 2).await;
        let all = cluster.node.processes();
        let broker = all.iter().find(|process| process.role == Role::Broker).unwrap();
        assert!(broker.send(Signal::STOP));
        until_healthy(&cluster, 0).await;
        let sick = &published(&cluster).unwrap()["gpus"][0];
        assert_eq!(sick["cause"], "zone");
        assert_ne!(sick["needsOperator"], true);
        cluster.until("no slots", async |c| c.kubelet().allocatable() == 0).await;
        let condition = until_condition(&cluster, "False").await;
        let said = condition["message"].as_str().unwrap();
        assert!(said.contains("GPU 0 suspended (zone)"), "{said}");
        cluster.until("an event of each", async |c| events(c, "GpuZone").len() == 2).await;
        assert_eq!(events(&cluster, "GpuZone")[0]["type"], "Warning");
        assert!(broker.send(Signal::CONT));
        until_healthy(&cluster, 2).await;
        until_condition(&cluster, "True").await;
        cluster.until("both again", async |c| events(c, "GpuServesAgain").len() == 2).await;
        cluster.registered().await;

        let pod = cluster.small_pod("a");
        cluster.admit(&pod).await;
        let container = cluster.start_container(&pod, "app").await;
        cluster.works(&container);
        let simulated = cluster.node.folder().join("simulated.toml");
        let honest = std::fs::read_to_string(&simulated).unwrap();
        std::fs::write(&simulated, format!("{honest}\n[fault]\nmemset = \"ignored\"\n")).unwrap();
        cluster.delete(&pod);
        until_healthy(&cluster, 1).await;
        let sick = &published(&cluster).unwrap()["gpus"][0];
        assert_eq!((&sick["cause"], &sick["needsOperator"]), (&"scrub".into(), &true.into()));
        cluster.until("an event", async |c| events(c, "GpuScrub").len() == 1).await;
        let condition = until_condition(&cluster, "False").await;
        let said = condition["message"].as_str().unwrap();
        assert!(said.contains("GPU 0 quarantined (scrub)"), "{said}");
        std::fs::write(&simulated, honest).unwrap();
        cluster.node.json(&["gpus", "--clear-quarantine", "0"]).unwrap();
        until_healthy(&cluster, 2).await;
        until_condition(&cluster, "True").await;
    }
}
