//! Workers that ended before their lease: each one's start, end and reason is in the audit log,
//! once, whoever asks first.

use super::*;

fn end(number: u32, pid: u32) -> WorkerEnd {
    WorkerEnd { number, pid, reason: format!("worker {pid} ended with signal 9") }
}

/// Starts and ends of workers' zones, with the reason of an end that has one.
fn told(node: &Node) -> Vec<String> {
    let mut told = Vec::new();
    let log = directories(node.dir.path()).audit_log();
    verify(&log, &Expected::default(), |entry: AuditEntry| {
        // The tenant's own zone begins and ends with its lease.
        if entry.detail["kind"] == "workload" {
            return;
        }
        let reason = entry.detail["reason"].as_str().is_some_and(|text| text.contains("signal 9"));
        let what = match entry.kind {
            AuditKind::ZoneStart => "began",
            AuditKind::ZoneEnd if reason => "was killed",
            AuditKind::ZoneEnd => "ended",
            _ => return,
        };
        if entry.subject.starts_with("worker ") {
            told.push(format!("{} {what}", entry.subject));
        }
    })
    .unwrap();
    told
}

#[tokio::test]
async fn a_lease_that_ends_before_the_flush_keeps_the_reason() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    {
        let mut broker = node.broker.told();
        broker.ends = vec![end(1, 1), end(2, 2)];
        broker.worker = 2;
    }
    node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    let expected =
        ["worker 1 began", "worker 1 was killed", "worker 2 began", "worker 2 was killed"];
    assert_eq!(told(&node), expected);
}

#[tokio::test]
async fn an_end_is_told_once_and_acknowledged() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    {
        let mut broker = node.broker.told();
        broker.ends = vec![end(1, 1)];
        broker.worker = 1;
    }
    node.leases.flush().await.unwrap();
    assert!(node.broker.told().ends.is_empty());
    // A broker that lost the acknowledgement tells it again.
    node.broker.told().ends = vec![end(1, 1)];
    node.leases.flush().await.unwrap();
    node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    let expected = ["worker 1 began", "worker 1 was killed", "worker 2 began", "worker 2 ended"];
    assert_eq!(told(&node), expected);
}

#[tokio::test]
async fn what_ended_while_the_agent_was_away_is_told_by_the_next() {
    let node = node().await;
    node.create(1).await.unwrap();
    let node = node.restarted().await;
    {
        let mut broker = node.broker.told();
        broker.ends = vec![end(1, 1), end(2, 2)];
        broker.worker = 2;
    }
    node.leases.recover(vec![]).await.unwrap();
    let expected = [
        "worker 1 began",
        "worker 1 was killed",
        "worker 2 began",
        "worker 2 was killed",
        "worker 3 began",
    ];
    assert_eq!(told(&node), expected);
}

#[tokio::test]
async fn those_that_nobody_could_keep_are_counted() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    node.broker.told().ends = vec![end(40, 40)];
    node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    let mut untold = 0;
    let log = directories(node.dir.path()).audit_log();
    verify(&log, &Expected::default(), |entry: AuditEntry| {
        untold += entry.detail["untold_before"].as_u64().unwrap_or_default();
    })
    .unwrap();
    assert_eq!(untold, 39);
}
