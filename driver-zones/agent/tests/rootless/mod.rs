//! A node whose agent somebody else than root runs. Where the tests are not run by root, all others
//! show the same.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;

use gpuzone_testkit::Role;
use rustix::process::Signal;

use super::support::{Node, listing, send};

/// "nobody", on every distribution.
const NOBODY: u32 = 65_534;

fn give(folder: &Path) {
    let everything = listing(folder).into_iter().map(|path| folder.join(path));
    for path in everything.chain([folder.to_owned()]) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).unwrap().to_owned()
}

/// Started as root, which gives up to be root for its agent.
#[tokio::test]
async fn a_driver_zone_serves_without_any_right_of_roots_as_root() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can start an agent as somebody else");
        return;
    }
    let mut node = Node::prepare();
    give(node.folder.path());
    node.start_agent_as(|command| {
        command.uid(NOBODY).gid(NOBODY);
    })
    .await;
    let lease = node.lease(4).await.unwrap();
    node.run_in(&lease, "matmul");
    let worker = node.worker().await;
    let processes = [Role::Agent, Role::Broker, Role::Maker].map(|role| node.process(role).pid);
    for pid in processes.into_iter().chain(worker) {
        assert_eq!(field(pid, "Uid:"), NOBODY.to_string());
        assert_eq!(field(pid, "CapEff:"), "0000000000000000");
        assert_eq!(field(pid, "CapPrm:"), "0000000000000000");
    }
    let [_, broker, maker] = processes;
    if node.log().contains("runs without a part of its sandbox") {
        println!("this host lacks a part of the sandbox: {}", node.log());
    } else {
        for absent in ["home", "root", "var", "proc", "sys"] {
            assert!(!Path::new(&format!("/proc/{broker}/root/{absent}")).exists(), "{absent}");
        }
    }
    // Each of the three in turn; the lease goes on.
    for killed in [broker, maker] {
        let before = node.broker().await;
        // The second pair has another maker than the first had.
        send(if killed == maker { node.process(Role::Maker).pid } else { before }, Signal::KILL);
        node.eventually("another pair", async |node| {
            node.broker_that_answers().await.is_some_and(|pid| pid != before)
        })
        .await;
        assert_eq!(node.worker().await, worker);
        node.run_in(&lease, "saxpy");
    }
    send(worker.unwrap(), Signal::KILL);
    node.eventually("a new worker", async |node| {
        let now = node.worker().await;
        now.is_some() && now != worker
    })
    .await;
    node.run_in(&lease, "saxpy");
    assert!(node.signal_agent(Signal::INT).success());
    node.eventually("nothing is left", async |node| {
        gpuzone_testkit::Process::of(node.folder.path()).is_empty()
    })
    .await;
    assert_eq!(listing(&node.path("run")), Vec::<std::path::PathBuf>::new());
}
