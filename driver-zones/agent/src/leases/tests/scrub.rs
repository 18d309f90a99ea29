//! What an end means for the GPU: cleared, shown to be clear, and kept from others otherwise.

use gpuzone_core::{Cause, GpuHealth, GpuUuid};

use super::*;

const GPU: GpuUuid = GpuUuid::from_bytes([1; 16]);

async fn health(node: &Node) -> GpuHealth {
    node.leases.book.with(|book| book.room(GPU)).await.unwrap().unwrap().health
}

fn kinds(node: &Node) -> Vec<AuditKind> {
    node.audited().into_iter().map(|(kind, _)| kind).collect()
}

#[tokio::test]
async fn what_a_lease_had_is_cleared_before_it_is_released() {
    let node = node().await;
    let other = node.create(6).await.unwrap();
    let held = node.create(4).await.unwrap();
    let id = held.lease.id;
    node.leases.end(id, "it was stopped").await.unwrap();
    let order = node.broker.told().scrubs[0].clone();
    assert_eq!(order.lease, id);
    let [gpu] = order.gpus[..] else { panic!("{order:?}") };
    assert_eq!((gpu.gpu, gpu.at_least), (GPU, MemoryBytes::gib(4)));
    // All but what the other lease may ask for.
    assert_eq!(gpu.at_most, MemoryBytes::gib(10));
    let told = [
        (AuditKind::Grant, other.lease.id),
        (AuditKind::Grant, id),
        (AuditKind::Scrub, id),
        (AuditKind::Release, id),
    ];
    let told = told.map(|(kind, lease)| (kind, lease.to_string()));
    let zone = |kind: &AuditKind| matches!(kind, AuditKind::ZoneStart | AuditKind::ZoneEnd);
    let after_start = node.audited().into_iter().skip(2);
    let heard: Vec<_> = after_start.filter(|(kind, _)| !zone(kind)).collect();
    assert_eq!(heard, told);
    let starts = [AuditKind::AgentStart, AuditKind::Limits];
    assert_eq!(kinds(&node)[..2], starts);
    let zones = kinds(&node).iter().filter(|kind| zone(kind)).count();
    assert_eq!(zones, 6, "two workers and two workload zones began, and one of each ended");
}

#[tokio::test]
async fn a_failed_scrub_keeps_the_gpu_from_others_until_it_is_cleared() {
    let node = node().await;
    let goes_on = node.create(1).await.unwrap();
    let held = node.create(4).await.unwrap();
    let id = held.lease.id;
    node.broker.told().residue = Some("byte 7 is 0xa5".into());
    let error = node.leases.end(id, "it was stopped").await.unwrap_err();
    assert!(error.message.contains("is in quarantine"), "{}", error.message);
    assert!(error.message.contains("byte 7 is 0xa5"), "{}", error.message);
    let reason = "byte 7 is 0xa5".to_owned();
    assert_eq!(health(&node).await, GpuHealth::Quarantined { cause: Cause::Scrub, reason });
    assert_eq!(node.states().await, [LeaseState::Active, LeaseState::Failed]);
    let refused = node.create(1).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NoRoom);
    assert!(refused.message.contains("in quarantine"), "{}", refused.message);
    // It waits for an operator, also when the agent is a new one.
    let node = node.restarted().await;
    node.leases.recover(vec![]).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(node.broker.told().scrubs.len(), 1);
    assert_eq!(node.states().await, [LeaseState::Active, LeaseState::Failed]);
    let operator = || "process 7".to_owned();
    let error = node.leases.clear_quarantine(GPU, operator()).await.unwrap_err();
    assert!(error.message.contains("stays in quarantine: byte 7"), "{}", error.message);
    node.broker.told().residue = None;
    node.leases.clear_quarantine(GPU, operator()).await.unwrap();
    assert_eq!(health(&node).await, GpuHealth::Healthy);
    assert_eq!(node.states().await, [LeaseState::Active]);
    let error = node.leases.clear_quarantine(GPU, operator()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    node.create(4).await.unwrap();
    node.leases.end(goes_on.lease.id, "").await.unwrap();
    let kinds = kinds(&node);
    let count = |wanted| kinds.iter().filter(|kind| **kind == wanted).count();
    assert_eq!(count(AuditKind::Quarantine), 1);
    assert_eq!(count(AuditKind::QuarantineCleared), 1);
    assert_eq!(count(AuditKind::Failure), 1);
    assert_eq!(count(AuditKind::Refusal), 1);
    assert_eq!(count(AuditKind::Limits), 1, "they did not change");
}

#[tokio::test]
async fn a_scrub_that_cannot_be_done_is_a_failed_one() {
    let node = node().await;
    let held = node.create(4).await.unwrap();
    node.broker.told().refuse_scrubs = true;
    node.leases.end(held.lease.id, "").await.unwrap_err();
    let reason = "the scrub worker ended".to_owned();
    assert_eq!(health(&node).await, GpuHealth::Quarantined { cause: Cause::Scrub, reason });
}

#[tokio::test]
async fn a_new_lease_waits_for_the_scrub_of_its_gpu_and_an_old_one_does_not() {
    let node = node().await;
    let other = node.create(1).await.unwrap();
    let held = node.create(4).await.unwrap();
    node.broker.told().scrub_takes = Duration::from_millis(300);
    let ending = tokio::spawn({
        let (leases, id) = (Arc::clone(&node.leases), held.lease.id);
        async move { leases.end(id, "").await }
    });
    node.eventually("its scrub", async |node| node.states().await.contains(&LeaseState::Scrubbing))
        .await;
    let status = node.leases.list().await.unwrap();
    assert_eq!(status[0].0.lease.id, other.lease.id);
    let began = std::time::Instant::now();
    node.create(1).await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(100), "{:?}", began.elapsed());
    ending.await.unwrap().unwrap();
}

/// Of two that end together, each scrub leaves alone what the other may ask for; but the last one may not, or
/// something would be left that nobody clears any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_those_that_end_together_clears_all() {
    let node = node().await;
    node.broker.told().scrub_takes = Duration::from_millis(2);
    for _ in 0..30 {
        let pair = [node.create(6).await.unwrap(), node.create(4).await.unwrap()];
        let ends = pair.map(|held| {
            let leases = Arc::clone(&node.leases);
            tokio::spawn(async move { leases.end(held.lease.id, "its program ended").await })
        });
        for end in ends {
            end.await.unwrap().unwrap();
        }
        let orders = std::mem::take(&mut node.broker.told().scrubs);
        assert_eq!(orders.len(), 2);
        assert_eq!(orders[1].gpus[0].at_most, MemoryBytes::gib(16), "the last one's");
    }
}

/// The machine was switched off while a lease's memory was being cleared: it is cleared first.
#[tokio::test]
async fn a_scrub_that_a_reboot_cut_off_is_done_before_anybody_gets_the_memory() {
    let node = node().await;
    let held = node.create(16).await.unwrap();
    let id = held.lease.id;
    let other: BootId = serde_json::from_str("\"00000000-0000-0000-0000-000000000000\"").unwrap();
    let mut old = held.clone();
    let process = held.holder.process().unwrap();
    old.holder.by = HeldBy::Process(ProcessId { boot: other, ..process });
    old.lease.state = LeaseState::Scrubbing;
    let journal = directories(node.dir.path()).journal();
    crate::journal::Journal::rewrite(&journal, [old].iter(), std::iter::empty()).unwrap();
    node.broker.told().served.clear();
    node.broker.told().scrub_takes = Duration::from_millis(200);
    let node = node.restarted().await;
    assert_eq!(node.states().await, [LeaseState::Scrubbing]);
    node.leases.recover(vec![]).await.unwrap();
    // Not a byte of it, however the scrub is doing.
    assert_eq!(node.create(1).await.unwrap_err().kind, ErrorKind::NoRoom);
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    let orders = node.broker.told().scrubs.clone();
    assert_eq!(orders.len(), 1);
    assert_eq!((orders[0].lease, orders[0].gpus[0].at_least), (id, MemoryBytes::gib(16)));
    node.create(16).await.unwrap();
}
