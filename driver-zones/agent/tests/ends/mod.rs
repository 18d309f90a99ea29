//! The reason of a worker's end is in the audit log, however soon its lease ends after it.

use gpuzone_api::agent::v1 as proto;
use gpuzone_ledger::{AuditKind, Expected, verify};
use rustix::process::Signal;

use super::support::{Node, send};

#[tokio::test]
async fn a_worker_that_is_killed_just_before_its_lease_ends_keeps_its_reason() {
    let mut node = Node::prepare();
    // No flush comes between.
    node.configure("flush_seconds = 0.1", "flush_seconds = 3600");
    node.start_agent().await;
    let mut killed = Vec::new();
    for round in 0..4 {
        let lease = node.lease(1).await.unwrap().lease.unwrap();
        let worker = node.worker().await.unwrap();
        send(worker, Signal::KILL);
        if round % 2 == 0 {
            // Replaced before the end, or not: both have to be told.
            node.eventually("another worker", async |node| {
                node.worker().await.is_some_and(|now| now != worker)
            })
            .await;
        } else {
            node.eventually("its end", async |_| is_dead(worker)).await;
        }
        let end = proto::EndLeaseRequest { lease_id: lease.id };
        node.client().await.end_lease(end).await.unwrap();
        killed.push(format!("worker {worker}"));
    }
    let mut told = Vec::new();
    let log = node.directories().audit_log();
    let found = verify(&log, &Expected::default(), |entry| {
        let reason = entry.detail["reason"].as_str().unwrap_or_default();
        if entry.kind == AuditKind::ZoneEnd && reason.contains("signal 9") {
            told.push(entry.subject);
        }
    });
    assert_eq!(found.unwrap().damage, None);
    assert_eq!(told, killed);
}

/// A zombie at most, and so are all of its threads: the first of them may be one before the others.
fn is_dead(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default()).all(
        |stat| {
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
            state.is_none_or(|state| state == 'Z' || state == 'X')
        },
    )
}
