//! What a lease used at last is in the ledger, once, whoever dies on the way there.

use super::*;

impl Node {
    fn owed(&self) -> usize {
        self.broker.told().ended.len()
    }

    fn rename(&self, from: &str, to: &str) {
        let path = directories(self.dir.path()).ledger();
        let database = rusqlite::Connection::open(path).unwrap();
        database.execute_batch(&format!("ALTER TABLE {from} RENAME TO {to}")).unwrap();
    }
}

#[tokio::test]
async fn an_end_is_settled_when_it_is_in_the_ledger_and_not_before() {
    let node = node().await;
    let [first, second] = [node.create(1).await.unwrap(), node.create(1).await.unwrap()];
    node.leases.end(first.lease.id, "it was stopped").await.unwrap();
    assert_eq!(node.owed(), 0);
    node.rename("intervals", "gone");
    node.leases.end(second.lease.id, "it was stopped").await.unwrap();
    assert!(node.leases.flush().await.is_err());
    assert_eq!(node.owed(), 1);
    node.rename("gone", "intervals");
    node.leases.flush().await.unwrap();
    assert_eq!(node.owed(), 0);
}

#[tokio::test]
async fn what_the_ledger_did_not_take_is_written_by_the_next_agent() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    node.broker.told().launches = 3;
    node.leases.flush().await.unwrap();
    node.rename("intervals", "gone");
    node.broker.told().launches = 5;
    node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    let node = node.restarted().await;
    node.rename("gone", "intervals");
    node.leases.recover(vec![]).await.unwrap();
    let billed = node.billed().remove(0);
    assert_eq!((billed.usage.launches, node.owed()), (5, 0));
    assert!(billed.end_reason.is_some());
}

#[tokio::test]
async fn what_was_written_and_not_settled_is_counted_once() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    node.broker.told().launches = 5;
    let last = node.leases.link.stop(held.lease.id).await.unwrap();
    let used = last.map(used_by);
    node.leases.usage.close(held.lease.id, used, "it was stopped").await;
    node.leases.advance(held.lease.id, LeaseEvent::Drain, "").await.unwrap();
    let node = node.restarted().await;
    node.leases.recover(vec![]).await.unwrap();
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    assert_eq!(node.owed(), 0);
    let billed = node.billed().remove(0);
    assert_eq!(billed.usage.launches, 5);
    assert_eq!(billed.end_reason.as_deref(), Some("it was stopped"));
}
