//! Leases over a broker that does as it is told: the book, the ledger and the files are real.

use std::time::Duration;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use gpuzone_core::{Exposure, GpuCount, MemoryBytes, TenantQuota, UsageCounters};
use gpuzone_ledger::{AuditEntry, Expected, Filter, LeaseRow, Ledger, verify};
use gpuzone_wire::control::{Reply, Request as Ask, VERSION, WorkerEnd};
use gpuzone_wire::scrub::{ScrubGpu, ScrubOrder, ScrubReport};
use gpuzone_zone::BootId;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::*;
use crate::book::Book;
use crate::config::Quotas;

/// What the broker does and has.
#[derive(Default)]
struct Told {
    served: BTreeMap<LeaseId, WorkerOrder>,
    /// Ended, and not settled.
    ended: BTreeMap<LeaseId, LeaseStatus>,
    refuse_starts: bool,
    /// Closes every connection, as one that just died does.
    dead: bool,
    start_takes: Duration,
    launches: u64,
    /// What every lease's workers have gone through.
    ends: Vec<WorkerEnd>,
    worker: u32,
    scrubs: Vec<ScrubOrder>,
    scrub_takes: Duration,
    /// What every scrub finds wrong.
    residue: Option<String>,
    /// Says that no scrub can be done.
    refuse_scrubs: bool,
}

#[derive(Clone, Default)]
struct FakeBroker(Arc<Mutex<Told>>);

impl FakeBroker {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }

    fn serve(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let broker = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let broker = broker.clone();
                tokio::spawn(async move { broker.converse(stream).await });
            }
        });
    }

    async fn converse(&self, stream: UnixStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let ask = serde_json::from_str(&line).ok()?;
            if self.told().dead {
                return None;
            }
            if matches!(ask, Ask::Start(_)) {
                let takes = self.told().start_takes;
                sleep(takes).await;
            }
            if matches!(ask, Ask::Scrub(_)) {
                let takes = self.told().scrub_takes;
                sleep(takes).await;
            }
            let reply = serde_json::to_string(&self.reply(ask)).unwrap();
            stream.write_all(format!("{reply}\n").as_bytes()).await.ok()?;
        }
    }

    fn reply(&self, ask: Ask) -> Reply {
        let mut told = self.told();
        let (launches, worker) = (told.launches, 1 + told.worker);
        let ends = told.ends.clone();
        let status = |lease| LeaseStatus {
            lease,
            worker_pid: Some(worker),
            restarts: 0,
            sessions: 0,
            used: MemoryBytes::ZERO,
            counters: UsageCounters { launches, ..Default::default() },
            refused_by_name: BTreeMap::new(),
            trouble: String::new(),
            ends: ends.clone(),
        };
        let leases = match ask {
            Ask::Hello { .. } => return Reply::Hello { version: VERSION, pid: std::process::id() },
            Ask::Start(_) if told.refuse_starts => {
                return Reply::Refused { reason: "the worker cannot use its driver".into() };
            }
            Ask::Start(order) => {
                let lease = order.lease;
                told.served.insert(lease, order);
                vec![status(lease)]
            }
            Ask::Stop { lease } => {
                if told.served.remove(&lease).is_some() {
                    told.ended.insert(lease, status(lease));
                }
                told.ended.get(&lease).cloned().into_iter().collect()
            }
            Ask::Ended => told.ended.values().cloned().collect(),
            Ask::Settle { lease } => {
                told.ended.remove(&lease);
                Vec::new()
            }
            Ask::Scrub(_) if told.refuse_scrubs => {
                return Reply::Refused { reason: "the scrub worker ended".into() };
            }
            Ask::Scrub(order) => {
                let failure = told.residue.clone();
                let report = |gpu: &ScrubGpu| ScrubReport {
                    gpu: gpu.gpu,
                    overwritten: gpu.at_most,
                    compared: gpu.at_most,
                    left: MemoryBytes::ZERO,
                    method: "looked away".into(),
                    nanoseconds: 1,
                    failure: failure.clone(),
                };
                let reports = order.gpus.iter().map(report).collect();
                told.scrubs.push(order);
                return Reply::Scrubbed { reports };
            }
            Ask::Acknowledge { through, .. } => {
                told.ends.retain(|end| end.number > through);
                Vec::new()
            }
            Ask::Status => told.served.keys().copied().map(status).collect(),
            Ask::Shutdown => return Reply::Bye,
        };
        Reply::Leases { leases }
    }
}

struct Node {
    dir: tempfile::TempDir,
    broker: FakeBroker,
    leases: Arc<Leases>,
}

fn directories(dir: &Path) -> Directories {
    Directories { state: dir.join("state"), run: dir.join("run") }
}

async fn open(dir: &Path, link: BrokerLink) -> Arc<Leases> {
    let inventory = Inventory::new(vec![crate::fixtures::gpu(1)]).unwrap();
    let directories = directories(dir);
    private_dir(&directories.state).unwrap();
    private_dir(&directories.run).unwrap();
    let quotas = Quotas { default: Some(TenantQuota::default()), tenants: BTreeMap::new() };
    let usage = UsageBook::open(&directories.ledger()).unwrap();
    let audit = Audit::open(&directories.audit_log(), usage.clone(), &quotas).await.unwrap();
    let (book, _) = Book::open(&directories.journal(), inventory.clone(), quotas).unwrap();
    let book = BookHandle::open(book).unwrap();
    let scrubs = ScrubSettings::default();
    Arc::new(Leases::new(book, link, usage, audit, directories, inventory, scrubs))
}

async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::default();
    let socket = dir.path().join("control.sock");
    broker.serve(&socket);
    let leases = open(dir.path(), BrokerLink::new(socket)).await;
    Node { dir, broker, leases }
}

fn request(gib: u64) -> Request {
    Request {
        tenant: "acme".parse().unwrap(),
        gpus: GpuCount::ONE,
        memory: Some(MemoryBytes::gib(gib)),
        share: None,
        exposure: Exposure::Mediated,
        time: Default::default(),
        model: None,
    }
}

impl Node {
    async fn create(&self, gib: u64) -> Result<HeldLease, AgentError> {
        self.leases.create(request(gib), ProcessId::own().unwrap(), "./train".into(), None).await
    }

    async fn states(&self) -> Vec<LeaseState> {
        let leases = self.leases.book.with(|book| book.leases()).await.unwrap();
        leases.iter().map(|held| held.lease.state).collect()
    }

    fn slots(&self) -> usize {
        std::fs::read_dir(directories(self.dir.path()).slots_dir()).map_or(0, Iterator::count)
    }

    fn billed(&self) -> Vec<LeaseRow> {
        let ledger = Ledger::open_read_only(&directories(self.dir.path()).ledger()).unwrap();
        ledger.report(&Filter::default()).unwrap().leases
    }

    /// The same node after its agent was killed.
    async fn restarted(self) -> Self {
        let leases = open(self.dir.path(), self.leases.link.clone()).await;
        Self { leases, ..self }
    }

    /// What the audit log tells: kind and subject.
    fn audited(&self) -> Vec<(AuditKind, String)> {
        let mut events = Vec::new();
        let log = directories(self.dir.path()).audit_log();
        let each = |entry: AuditEntry| events.push((entry.kind, entry.subject));
        let found = verify(&log, &Expected::default(), each).unwrap();
        assert_eq!(found.damage, None);
        events
    }

    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..500 {
            if holds(self).await {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("not within 5 s: {what}");
    }
}

#[tokio::test]
async fn a_lease_from_its_making_to_its_end() {
    let node = node().await;
    let held = node.create(4).await.unwrap();
    assert_eq!(held.lease.state, LeaseState::Active);
    let order = node.broker.told().served[&held.lease.id].clone();
    assert_eq!(order.grants, held.lease.placement.grants());
    assert!(order.slot_dir.is_dir());
    node.broker.told().launches = 3;
    assert_eq!(node.leases.flush().await.unwrap(), 1);
    node.broker.told().launches = 5;
    let ended = node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    assert_eq!(ended.lease.state, LeaseState::Released);
    let again = node.leases.end(held.lease.id, "it was stopped").await.unwrap();
    assert_eq!(again, ended);
    assert!(node.broker.told().served.is_empty());
    assert_eq!((node.states().await.len(), node.slots()), (0, 0));
    let billed = node.billed();
    assert_eq!(billed[0].usage.launches, 5);
    let unknown = LeaseId::from_uuid(Uuid::nil());
    let error = node.leases.end(unknown, "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_lease_that_cannot_be_served_leaves_nothing() {
    let node = node().await;
    node.broker.told().refuse_starts = true;
    let error = node.create(4).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Driver);
    assert!(error.message.contains("the worker cannot use its driver"), "{}", error.message);
    assert_eq!((node.states().await.len(), node.slots()), (0, 0));
    assert_eq!(node.billed().len(), 0);
    node.broker.told().refuse_starts = false;
    node.create(16).await.unwrap();
    assert_eq!(node.create(1).await.unwrap_err().kind, ErrorKind::NoRoom);
}

#[tokio::test]
async fn a_caller_that_goes_away_gets_no_lease() {
    let node = node().await;
    node.broker.told().start_takes = Duration::from_millis(100);
    let create = node.create(4);
    assert!(tokio::time::timeout(Duration::from_millis(20), create).await.is_err());
    assert_eq!(node.states().await, [LeaseState::Reserved]);
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    assert!(node.broker.told().served.is_empty());
}

#[tokio::test]
async fn a_slow_lease_keeps_no_other_waiting() {
    let node = node().await;
    node.broker.told().start_takes = Duration::from_secs(5);
    let slow = tokio::spawn({
        let leases = Arc::clone(&node.leases);
        async move { leases.create(request(1), ProcessId::own().unwrap(), String::new(), None).await }
    });
    node.eventually("the slow one waits", async |node| node.states().await.len() == 1).await;
    node.broker.told().start_takes = Duration::ZERO;
    let quick = tokio::time::timeout(Duration::from_secs(2), node.create(1)).await;
    let quick = quick.unwrap().unwrap();
    node.leases.end(quick.lease.id, "").await.unwrap();
    slow.abort();
}

#[tokio::test]
async fn a_lease_ends_with_its_holder() {
    let node = node().await;
    let mut holder = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = ProcessId::of(holder.id()).unwrap().unwrap();
    node.leases.create(request(1), process, String::new(), None).await.unwrap();
    assert_eq!(node.states().await, [LeaseState::Active]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    // A holder that is gone before its lease is there.
    node.leases.create(request(1), process, String::new(), None).await.unwrap();
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
}

#[tokio::test]
async fn book_and_broker_are_made_alike() {
    let node = node().await;
    let lost = node.create(1).await.unwrap();
    node.create(1).await.unwrap();
    let order = node.broker.told().served.remove(&lost.lease.id).unwrap();
    let stranger = LeaseId::from_uuid(Uuid::nil());
    node.broker.told().served.insert(stranger, WorkerOrder { lease: stranger, ..order.clone() });
    node.leases.reconcile().await.unwrap();
    assert!(!node.broker.told().served.contains_key(&stranger));
    node.eventually("its worker", async |node| {
        node.broker.told().served.get(&lost.lease.id) == Some(&order)
    })
    .await;
    assert_eq!(node.broker.told().served.len(), 2);
}

#[tokio::test]
async fn what_an_agent_left_half_done_is_brought_to_its_end() {
    let node = node().await;
    let [kept, half] = [node.create(1).await.unwrap(), node.create(1).await.unwrap()];
    let id = half.lease.id;
    node.leases.advance(id, LeaseEvent::Drain, "").await.unwrap();
    let node = node.restarted().await;
    assert_eq!(node.states().await, [LeaseState::Active, LeaseState::Draining]);
    node.leases.recover(vec![]).await.unwrap();
    node.eventually("its end", async |node| node.states().await == [LeaseState::Active]).await;
    let served: Vec<LeaseId> = node.broker.told().served.keys().copied().collect();
    assert_eq!(served, [kept.lease.id]);
}

#[tokio::test]
async fn a_lease_of_an_earlier_boot_is_billed_to_its_last_record() {
    let node = node().await;
    let held = node.create(1).await.unwrap();
    node.leases.flush().await.unwrap();
    let recorded = node.billed()[0].usage.lease_nanoseconds;
    // The journal of a machine that was switched off.
    let other: BootId = serde_json::from_str("\"00000000-0000-0000-0000-000000000000\"").unwrap();
    let mut old = held.clone();
    let process = held.holder.process().unwrap();
    old.holder.by = HeldBy::Process(ProcessId { boot: other, ..process });
    let journal = directories(node.dir.path()).journal();
    crate::journal::Journal::rewrite(&journal, [old].iter(), std::iter::empty()).unwrap();
    node.broker.told().served.clear();
    sleep(Duration::from_millis(20)).await;
    let node = node.restarted().await;
    node.leases.recover(vec![]).await.unwrap();
    node.eventually("its end", async |node| node.states().await.is_empty()).await;
    let billed = &node.billed()[0];
    assert_eq!(billed.usage.lease_nanoseconds, recorded);
    assert_eq!(billed.end_reason.as_deref(), Some("the node restarted"));
}

#[tokio::test]
async fn shutting_down_ends_all_and_takes_no_more() {
    let node = node().await;
    node.create(1).await.unwrap();
    node.create(1).await.unwrap();
    assert_eq!(node.leases.end_all("shut down").await.unwrap(), 2);
    assert!(node.broker.told().served.is_empty());
    assert_eq!(node.create(1).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_listing_says_when_the_broker_is_silent() {
    let node = node().await;
    node.create(1).await.unwrap();
    node.broker.told().dead = true;
    let listed = node.leases.list().await.unwrap();
    assert!(listed[0].0.holder.trouble.contains("does not answer"), "{listed:?}");
    assert!(listed[0].1.is_none());
}

mod bill;
mod ends;
mod placed;
mod scrub;
