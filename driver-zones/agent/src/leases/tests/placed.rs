//! Leases that somebody else placed.

use gpuzone_core::{ComputeShare, Grant, Placement};

use super::*;
use crate::journal::{At, PlacedHolder};
use crate::placements::Wanted;

fn wanted(node: &Node, holder: &str, folder: u64) -> Wanted {
    let gpu = node.leases.inventory.gpus()[0].uuid;
    let share = ComputeShare::new(10).unwrap();
    let placement = Placement::of(vec![Grant { gpu, memory: MemoryBytes::gib(1), share }]).unwrap();
    Wanted {
        nodes: Default::default(),
        holder: holder.parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        placement,
        at: At::Slot {
            slot: "slot-1".parse().unwrap(),
            folder: gpuzone_api::SlotFolder::new(folder),
        },
        program: "team/app".into(),
        cluster: None,
    }
}

#[tokio::test]
async fn an_agent_that_restarts_keeps_it_and_a_node_that_restarts_does_not() {
    let node = node().await;
    let held = node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap();
    let node = node.restarted().await;
    node.leases.recover(vec![]).await.unwrap();
    assert_eq!(node.states().await, [LeaseState::Active]);
    let again = node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap();
    assert_eq!(again.lease.id, held.lease.id);

    let other: BootId = serde_json::from_str("\"00000000-0000-0000-0000-000000000000\"").unwrap();
    let mut old = held.clone();
    let placed = held.holder.placed().unwrap().clone();
    old.holder.by = HeldBy::Placed(PlacedHolder { boot: other, ..placed });
    let journal = directories(node.dir.path()).journal();
    crate::journal::Journal::rewrite(&journal, [old].iter(), std::iter::empty()).unwrap();
    node.broker.told().served.clear();
    let node = node.restarted().await;
    node.leases.recover(vec![]).await.unwrap();
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    // Its pod starts again, and asks again.
    let fresh = node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap();
    assert_ne!(fresh.lease.id, held.lease.id);
}

#[tokio::test]
async fn one_that_cannot_be_served_holds_nothing_and_is_tried_again() {
    let node = node().await;
    node.broker.told().refuse_starts = true;
    assert!(node.leases.place(wanted(&node, "pod/1/app", 1)).await.is_err());
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    node.broker.told().refuse_starts = false;
    let held = node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap();
    let order = node.broker.told().served[&held.lease.id].clone();
    assert_eq!(order.access, SlotAccess::Mounted);
    assert!(order.slot_dir.ends_with("slots/slot-1/0000000000000001"));
    assert!(order.slot_dir.is_dir());
    node.leases.end(held.lease.id, "its pod is gone").await.unwrap();
    assert!(order.slot_dir.is_dir(), "it is whoever made it who removes it");
}

/// Whoever asks for it while it ends waits for that, and gets it anew.
#[tokio::test]
async fn one_that_is_on_its_way_to_its_end_is_made_anew() {
    let node = node().await;
    let held = node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap();
    node.broker.told().scrub_takes = Duration::from_millis(300);
    let ending = async { node.leases.end(held.lease.id, "its pod is gone").await.unwrap() };
    let again = async {
        node.eventually("its end", async |node| node.states().await != [LeaseState::Active]).await;
        node.leases.place(wanted(&node, "pod/1/app", 1)).await.unwrap()
    };
    let (_, again) = tokio::join!(ending, again);
    assert_ne!(again.lease.id, held.lease.id);
    assert_eq!(node.states().await, [LeaseState::Active]);
}
