//! The agent with the real broker, worker and simulated GPUs: what it answers, survives, refuses
//! and leaves behind.
#[cfg(test)]
mod disk;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod rootless;
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use gpuzone_api::agent::v1 as proto;
    use gpuzone_api::{AgentError, ErrorKind};
    use gpuzone_ledger::{Filter, Ledger};
    use gpuzone_testkit::Role;
    use rustix::process::Signal;

    use super::support::{Node, is_alive, listing, request, send};

    #[tokio::test]
    async fn answers_its_clients() {
        let mut node = Node::start().await;
        let mut client = node.client().await;
        let about = client.describe(proto::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(about.driver, "simulated");
        assert_eq!(about.pid, node.agent.as_ref().unwrap().id());
        assert!(!about.driver_version.is_empty());

        let created = node.lease(4).await.unwrap();
        let lease = created.lease.unwrap();
        assert_eq!((lease.state.as_str(), lease.holder_pid), ("active", std::process::id()));
        assert_eq!(lease.grants[0].backing, "simulated");
        let slot = PathBuf::from(&created.environment["GPUZONE_SLOT"]);
        assert!(slot.join("cuda.sock").exists());
        let shim = PathBuf::from(&created.library_dir).join("libcuda.so.1");
        assert!(shim.canonicalize().unwrap().ends_with("libgpuzone_cuda.so"));

        let gpus = client.list_gpus(proto::ListGpusRequest {}).await.unwrap().into_inner().gpus;
        assert_eq!(gpus.len(), 1);
        assert_eq!(gpus[0].memory_bytes, 16 << 30);
        assert_eq!((gpus[0].free_memory_bytes, gpus[0].free_share_percent), (12 << 30, 90));
        assert_eq!((gpus[0].backing.as_str(), gpus[0].leases), ("simulated", 1));
        assert!(gpus[0].used_memory_bytes.is_some());
        let flushed = client.flush_usage(proto::FlushUsageRequest {}).await.unwrap().into_inner();
        assert_eq!(flushed.leases, 1);

        let worker = node.worker().await.unwrap();
        let end = proto::EndLeaseRequest { lease_id: lease.id.clone() };
        let ended = client.end_lease(end.clone()).await.unwrap().into_inner().lease.unwrap();
        assert_eq!(ended.state, "released");
        assert!(!is_alive(worker) && !slot.exists());
        client.end_lease(end).await.unwrap();
        assert!(node.leases().await.is_empty());
        let ledger = Ledger::open_read_only(about.ledger_path.as_ref()).unwrap();
        let report = ledger.report(&Filter::default()).unwrap();
        assert_eq!(report.leases[0].end_reason.as_deref(), Some("its program ended"));
        assert!(node.signal_agent(Signal::INT).success());
    }

    #[tokio::test]
    async fn bad_requests_are_refused_and_leave_nothing() {
        let node = Node::start().await;
        let mut client = node.client().await;
        let cases = [
            (request("a/b", 1), ErrorKind::InvalidRequest, "tenant 'a/b' is not valid"),
            (request(&"x".repeat(300), 1), ErrorKind::InvalidRequest, "1 to 63 characters"),
            (request("acme", 0), ErrorKind::InvalidRequest, "0 bytes"),
            (request("acme", 17), ErrorKind::NoRoom, "the largest of 1 has 16Gi"),
            (request("small", 2), ErrorKind::Quota, "more than the 1Gi granted"),
        ];
        for (request, kind, part) in cases {
            let error = AgentError::from(client.create_lease(request).await.unwrap_err());
            assert_eq!(error.kind, kind);
            assert!(error.message.contains(part), "{}", error.message);
        }
        let mut request = request("acme", 1);
        request.memory_bytes = Some(u64::MAX);
        assert!(client.create_lease(request).await.is_err());
        let end = proto::EndLeaseRequest { lease_id: "../../etc".into() };
        let error = AgentError::from(client.end_lease(end).await.unwrap_err());
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(node.leases().await.is_empty());
        assert!(listing(&node.path("run/slots")).is_empty());
        // Of those whose tenant is one: three, and the one beyond any GPU's memory is not parsed.
        let ledger = Ledger::open_read_only(&node.directories().ledger()).unwrap();
        let report = ledger.report(&Filter::default()).unwrap();
        assert_eq!(report.total().usage.refused_leases, 3);
    }

    #[tokio::test]
    async fn a_killed_agent_loses_nothing() {
        let mut node = Node::start().await;
        let lease = node.lease(4).await.unwrap().lease.unwrap();
        let (worker, broker) = (node.worker().await, node.broker().await);
        assert!(worker.is_some());
        node.signal_agent(Signal::KILL);
        node.start_agent().await;
        assert_eq!(node.worker().await, worker);
        assert_eq!(node.broker().await, broker);
        assert_eq!(node.leases().await[0].id, lease.id);
        assert_eq!(node.lease(13).await.unwrap_err().kind, ErrorKind::NoRoom);
        // And with its broker at the same time.
        node.signal_agent(Signal::KILL);
        send(broker, Signal::KILL);
        node.start_agent().await;
        assert_eq!(node.worker().await, worker);
        assert_ne!(node.broker().await, broker);
    }

    #[tokio::test]
    async fn usage_is_counted_once_whoever_is_killed() {
        let mut node = Node::start().await;
        let created = node.lease(4).await.unwrap();
        let lease = created.lease.as_ref().unwrap().id.clone();
        let ledger = node.directories().ledger();
        let billed = || {
            let report = Ledger::open_read_only(&ledger).unwrap().report(&Filter::default());
            let usage = report.unwrap().total().usage;
            (usage.launches, usage.bytes_to_device)
        };
        node.run_in(&created, "saxpy");
        node.eventually("a flush", async |_| billed().0 > 0).await;
        let once = billed();
        node.signal_agent(Signal::KILL);
        // What is used while no agent runs is counted by the next.
        node.run_in(&created, "saxpy");
        send(node.broker().await, Signal::KILL);
        node.start_agent().await;
        node.run_in(&created, "saxpy");
        let worker = node.worker().await;
        send(worker.unwrap(), Signal::KILL);
        node.eventually("a new worker", async |node| {
            let now = node.worker().await;
            now.is_some() && now != worker
        })
        .await;
        node.run_in(&created, "saxpy");
        let mut client = node.client().await;
        client.end_lease(proto::EndLeaseRequest { lease_id: lease }).await.unwrap();
        assert_eq!(billed(), (4 * once.0, 4 * once.1));
    }

    #[tokio::test]
    async fn a_crash_of_one_program_is_not_the_next_ones() {
        let node = Node::start().await;
        let created = node.lease(4).await.unwrap();
        assert!(!node.run_to_end(&created, "crash").status.success());
        node.run_in(&created, "saxpy");
    }

    #[tokio::test]
    async fn a_killed_broker_is_replaced_and_its_workers_stay() {
        let node = Node::start().await;
        node.lease(4).await.unwrap();
        let (worker, broker) = (node.worker().await, node.broker().await);
        send(broker, Signal::KILL);
        node.eventually("a new broker", async |node| {
            node.worker().await == worker && node.broker().await != broker
        })
        .await;
        node.lease(4).await.unwrap();
    }

    /// A broker and the one after it.
    #[tokio::test]
    async fn a_broker_sees_nothing_of_the_host_but_what_it_needs_as_root() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may look at a broker's root");
            return;
        }
        let node = Node::start().await;
        let missing = "the broker runs without a part of its sandbox";
        for _ in 0..2 {
            let broker = node.broker().await;
            if node.log().contains(missing) {
                println!("skipped: this host lacks a part of the sandbox: {}", node.log());
                return;
            }
            let root = PathBuf::from(format!("/proc/{broker}/root"));
            let names = |folder: &Path| -> Vec<String> {
                let entries = std::fs::read_dir(root.join(folder)).unwrap();
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            };
            for absent in ["home", "root", "var", "opt", "boot", "proc", "sys"] {
                assert!(!names(Path::new("")).contains(&absent.to_owned()), "{absent}");
            }
            assert_eq!(names(Path::new("etc")), ["ld.so.cache"]);
            for name in ["net", "mnt", "ipc", "uts"] {
                let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                assert_ne!(of(&broker.to_string()), of("self"), "{name}");
            }
            let status = std::fs::read_to_string(format!("/proc/{broker}/status")).unwrap();
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.split_whitespace().next()).unwrap().to_owned()
            };
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(of(set), "0000000000000000", "{set}");
            }
            assert_eq!((of("NoNewPrivs:").as_str(), of("Seccomp:").as_str()), ("1", "2"));
            assert_ne!(of("Uid:"), "0", "a user of its own");
            // Workers are started and ended for it, and for the next broker.
            let lease = node.lease(4).await.unwrap();
            node.run_in(&lease, "matmul");
            send(broker, Signal::KILL);
            node.eventually("a new broker", async |node| {
                node.broker_that_answers().await.is_some_and(|pid| pid != broker)
            })
            .await;
        }
    }

    #[tokio::test]
    async fn a_killed_maker_is_replaced_with_its_broker_and_workers_stay() {
        let mut node = Node::start().await;
        let lease = node.lease(4).await.unwrap();
        let worker = node.worker().await;
        for _ in 0..2 {
            let broker = node.broker().await;
            let maker = node.process(Role::Maker).pid;
            send(maker, Signal::KILL);
            node.eventually("another pair", async |node| {
                node.broker_that_answers().await.is_some_and(|pid| pid != broker)
            })
            .await;
            assert_ne!(node.process(Role::Maker).pid, maker);
            assert_eq!(node.worker().await, worker);
            node.run_in(&lease, "saxpy");
        }
        // And with no agent beside it, at the same time as its broker.
        node.signal_agent(Signal::KILL);
        let pair = [Role::Maker, Role::Broker].map(|role| node.process(role));
        for process in pair {
            // Either ends with the other.
            process.send(Signal::KILL);
        }
        node.start_agent().await;
        assert_eq!(node.worker().await, worker);
        node.run_in(&lease, "saxpy");
        send(worker.unwrap(), Signal::KILL);
        node.eventually("a new worker", async |node| {
            let now = node.worker().await;
            now.is_some() && now != worker
        })
        .await;
        node.run_in(&lease, "saxpy");
        node.signal_agent(Signal::INT);
        node.eventually("nothing is left", async |node| {
            gpuzone_testkit::Process::of(node.folder.path()).is_empty()
        })
        .await;
    }

    #[tokio::test]
    async fn a_killed_worker_is_replaced() {
        let node = Node::start().await;
        node.lease(4).await.unwrap();
        let worker = node.worker().await;
        send(worker.unwrap(), Signal::KILL);
        node.eventually("a new worker", async |node| {
            let now = node.worker().await;
            now.is_some() && now != worker
        })
        .await;
        assert!(node.leases().await[0].trouble.contains("signal 9"));
    }

    #[tokio::test]
    async fn sigterm_ends_the_agent_only_and_shutdown_ends_all() {
        let mut node = Node::start().await;
        node.lease(4).await.unwrap();
        let worker = node.worker().await.unwrap();
        let broker = node.broker().await;
        assert!(node.signal_agent(Signal::TERM).success());
        assert!(is_alive(worker) && is_alive(broker));
        assert!(!node.directories().agent_socket().exists());
        node.start_agent().await;
        assert_eq!(node.worker().await, Some(worker));
        let reply = node.client().await.shutdown(proto::ShutdownRequest {}).await.unwrap();
        assert_eq!(reply.into_inner().ended_leases, 1);
        assert!(node.agent.take().unwrap().wait().unwrap().success());
        assert!(!is_alive(worker) && !is_alive(broker));
        assert_eq!(listing(&node.path("run")), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn sigint_ends_all() {
        let mut node = Node::start().await;
        node.lease(4).await.unwrap();
        let worker = node.worker().await.unwrap();
        assert!(node.signal_agent(Signal::INT).success());
        assert!(!is_alive(worker));
        assert_eq!(listing(&node.path("run")), Vec::<PathBuf>::new());
        let ledger = Ledger::open_read_only(&node.directories().ledger()).unwrap();
        let report = ledger.report(&Filter::default()).unwrap();
        assert!(report.leases[0].end.is_some());
    }

    #[tokio::test]
    async fn two_agents_do_not_share_a_folder() {
        let node = Node::start().await;
        let said = node.refused();
        let pid = node.agent.as_ref().unwrap().id();
        assert!(said.contains("another agent uses"), "{said}");
        assert!(said.contains(&format!("locked by process {pid}")), "{said}");
        // One of the two is enough.
        node.configure("run_dir = \"run\"", "run_dir = \"other\"");
        let said = node.refused();
        assert!(said.contains(&format!("uses {};", node.path("state").display())), "{said}");
        node.configure("run_dir = \"other\"", "run_dir = \"run\"");
        node.configure("state_dir = \"state\"", "state_dir = \"other\"");
        let said = node.refused();
        assert!(said.contains(&format!("uses {};", node.path("run").display())), "{said}");
        node.lease(1).await.unwrap();
    }

    #[tokio::test]
    async fn a_driver_that_is_none_is_refused() {
        let node = Node::prepare();
        let library = gpuzone_testkit::Artifacts::build().unwrap();
        let library = library.file("libgpuzone_sim_nvml.so").unwrap().display().to_string();
        node.write("text.so", "this is no library");
        node.configure(&library, "text.so");
        let said = node.refused();
        assert!(said.contains("text.so") && said.contains("simulated driver"), "{said}");
        node.configure("text.so", "missing.so");
        let said = node.refused();
        assert!(said.contains("missing.so") && said.contains("nvml_library"), "{said}");
        // The CUDA library is opened by the worker, so that it is a lease that fails.
        node.configure("missing.so", &library);
        let cuda = library.replace("sim_nvml", "sim_cuda");
        node.configure(&cuda, "text.so");
        let mut node = node;
        node.start_agent().await;
        let error = node.lease(1).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Driver);
        assert!(error.message.contains("text.so"), "{}", error.message);
        assert!(node.leases().await.is_empty());
    }

    #[tokio::test]
    async fn a_long_run_folder_is_refused() {
        let node = Node::prepare();
        node.configure("run_dir = \"run\"", &format!("run_dir = {:?}", "r".repeat(80)));
        let said = node.refused();
        assert!(said.contains("at most 107") && said.contains("shorter run directory"), "{said}");
    }

    #[tokio::test]
    async fn a_damaged_journal_stops_the_agent_and_stays_as_it_is() {
        let mut node = Node::start().await;
        node.lease(1).await.unwrap();
        node.signal_agent(Signal::KILL);
        let journal = node.directories().journal();
        let damaged = std::fs::read_to_string(&journal).unwrap().replacen("acme", "acne", 1);
        std::fs::write(&journal, &damaged).unwrap();
        let said = node.refused();
        assert!(said.contains("damaged in line 1") && said.contains("checksum"), "{said}");
        assert_eq!(std::fs::read_to_string(&journal).unwrap(), damaged);
    }
}
