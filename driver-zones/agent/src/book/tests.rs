use std::path::PathBuf;

use gpuzone_core::{ComputeShare, Exposure, Gpu, GpuCount, TenantQuota, Timestamp};
use gpuzone_zone::ProcessId;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::journal::HeldBy;

fn inventory() -> Inventory {
    let gpu = |index: u8| Gpu { index: index.into(), ..crate::fixtures::gpu(index) };
    Inventory::new(vec![gpu(0), gpu(1)]).unwrap()
}

fn quotas() -> Quotas {
    let acme = TenantQuota { memory: Some(MemoryBytes::gib(20)), ..Default::default() };
    let open = TenantQuota { leases: Some(5), ..Default::default() };
    let tenants = [("acme", acme), ("open", open)];
    let tenants = tenants.map(|(name, quota)| (name.parse().unwrap(), quota));
    Quotas { default: None, tenants: tenants.into_iter().collect() }
}

fn request(tenant: &str, gib: u64) -> Request {
    Request {
        tenant: tenant.parse().unwrap(),
        gpus: GpuCount::ONE,
        memory: Some(MemoryBytes::gib(gib)),
        share: Some(ComputeShare::new(10).unwrap()),
        exposure: Exposure::Mediated,
        time: Default::default(),
        model: None,
    }
}

fn holder() -> Holder {
    Holder {
        by: HeldBy::Process(ProcessId::own().unwrap()),
        program: "./train".into(),
        created: Timestamp::from_nanoseconds(1),
        trouble: String::new(),
        zone: None,
    }
}

fn id(n: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(n))
}

struct Node {
    _dir: tempfile::TempDir,
    journal: PathBuf,
    book: Book,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let (book, lost) = Book::open(&journal, inventory(), quotas()).unwrap();
    assert!(lost.is_empty());
    Node { _dir: dir, journal, book }
}

impl Node {
    fn reserve(&mut self, n: u128, tenant: &str, gib: u64) -> Result<HeldLease, Refusal> {
        let zone = ZoneId::from_uuid(Uuid::from_u128(n));
        self.book.reserve(id(n), zone, &request(tenant, gib), holder())
    }

    fn reopened(&self) -> Book {
        Book::open(&self.journal, inventory(), quotas()).unwrap().0
    }
}

#[test]
fn refuses_by_kind() {
    let mut node = node();
    let kind = |refused: Result<HeldLease, Refusal>| refused.unwrap_err().kind();
    assert_eq!(kind(node.reserve(1, "stranger", 1)), ErrorKind::Quota);
    assert_eq!(kind(node.reserve(1, "acme", 0)), ErrorKind::InvalidRequest);
    assert_eq!(kind(node.reserve(1, "acme", 17)), ErrorKind::NoRoom);
    node.reserve(1, "acme", 16).unwrap();
    assert_eq!(kind(node.reserve(2, "acme", 5)), ErrorKind::Quota);
    node.reserve(2, "open", 16).unwrap();
    assert_eq!(kind(node.reserve(3, "open", 1)), ErrorKind::NoRoom);
    assert_eq!(node.book.leases(), node.reopened().leases());
}

#[test]
fn a_released_lease_is_remembered_and_its_room_is_free() {
    let mut node = node();
    node.reserve(1, "open", 16).unwrap();
    let gpu = node.book.leases()[0].lease.placement.grants()[0].gpu;
    assert_eq!(node.book.room(gpu).unwrap().leases, 1);
    for event in [LeaseEvent::Drain, LeaseEvent::Drained, LeaseEvent::Scrubbed] {
        assert_eq!(node.book.room(gpu).unwrap().memory, MemoryBytes::ZERO);
        node.book.advance(id(1), event, "").unwrap();
    }
    assert_eq!(node.book.room(gpu).unwrap().memory, MemoryBytes::gib(16));
    assert_eq!(node.book.lease(id(1)), None);
    assert_eq!(node.book.ended(id(1)).unwrap().lease.state, LeaseState::Released);
    assert!(node.book.advance(id(1), LeaseEvent::Drain, "").is_err());
    assert!(node.reopened().leases().is_empty());
}

#[test]
fn a_failure_says_why_until_it_is_tried_again() {
    let mut node = node();
    node.reserve(1, "open", 1).unwrap();
    node.book.advance(id(1), LeaseEvent::Fail, "no worker").unwrap();
    assert_eq!(node.reopened().leases()[0].holder.trouble, "no worker");
    assert!(node.book.advance(id(1), LeaseEvent::Activate, "").is_err());
}

#[test]
fn a_lease_on_a_gpu_that_is_gone_is_lost_and_nothing_else() {
    let mut node = node();
    node.reserve(1, "open", 16).unwrap();
    node.reserve(2, "open", 16).unwrap();
    let left = Inventory::new(inventory().gpus()[1..].to_vec()).unwrap();
    let (book, lost) = Book::open(&node.journal, left, quotas()).unwrap();
    assert_eq!(lost.len(), 1);
    assert!(matches!(lost[0].reason, ReserveError::UnknownGpu(_)));
    assert_eq!(book.leases().len(), 1);
}

#[test]
fn what_the_journal_does_not_take_does_not_happen() {
    let mut node = node();
    node.reserve(1, "open", 1).unwrap();
    let before = node.book.leases();
    // A device that is always full stands for the disk.
    node.book.journal =
        Journal::on(std::fs::File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(node.reserve(2, "open", 1).unwrap_err().kind(), ErrorKind::Internal);
    assert!(node.book.advance(id(1), LeaseEvent::Activate, "").is_err());
    assert_eq!(node.book.leases(), before);
}

/// What is known of GPUs' health on a full disk: what gets worse is taken in and said not to be
/// written, what gets better is not; and what was written last is what the next agent knows.
#[test]
fn health_that_cannot_be_written_down_only_gets_worse() {
    let mut node = node();
    let (sick, well) = (inventory().gpus()[0].uuid, inventory().gpus()[1].uuid);
    let at = Timestamp::from_nanoseconds;
    let failed = [Signal::ScrubFailed("residue".into())];
    assert!(node.book.observe(sick, &failed, at(1)).written.is_ok());
    let disk = std::mem::replace(
        &mut node.book.journal,
        Journal::on(std::fs::File::options().write(true).open("/dev/full").unwrap()),
    );
    let worse = node.book.observe(well, &failed, at(2));
    assert!(worse.is_change() && !node.book.serves(well), "it serves nobody until the agent ends");
    assert!(worse.written.unwrap_err().to_string().contains("/dev/full"));
    let better = node.book.clear(sick, at(3));
    assert!(better.written.is_err() && better.before == better.after);
    assert!(!node.book.serves(sick), "what is not written down clears nothing");
    let reopened = node.reopened();
    assert_eq!((reopened.serves(sick), reopened.serves(well)), (false, true));
    // There is room again.
    node.book.journal = disk;
    assert!(node.book.clear(sick, at(4)).written.is_ok() && node.book.serves(sick));
}

#[tokio::test]
async fn work_is_done_even_if_nobody_waits_for_it() {
    let node = node();
    let handle = BookHandle::open(node.book).unwrap();
    let zone = ZoneId::from_uuid(Uuid::from_u128(1));
    let work = handle.with(move |book| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        book.reserve(id(1), zone, &request("open", 1), holder()).is_ok()
    });
    let short = std::time::Duration::from_millis(5);
    assert!(tokio::time::timeout(short, work).await.is_err());
    assert_eq!(handle.with(|book| book.leases().len()).await.unwrap(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(&'static str, u64),
    Advance(usize, LeaseEvent),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let tenant = prop::sample::select(vec!["acme", "open", "stranger"]);
    let event = prop::sample::select(LeaseEvent::ALL.to_vec());
    prop_oneof![
        3 => (tenant, 0u64..18).prop_map(|(tenant, gib)| Step::Reserve(tenant, gib)),
        6 => (0usize..8, event).prop_map(|(at, event)| Step::Advance(at, event)),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_journal_always_has_what_the_book_says(steps in prop::collection::vec(step(), 1..30)) {
        let mut node = node();
        for (n, step) in (1u128..).zip(steps) {
            match step {
                Step::Reserve(tenant, gib) => drop(node.reserve(n, tenant, gib)),
                Step::Advance(at, event) => {
                    let leases = node.book.leases();
                    if let Some(held) = leases.get(at) {
                        drop(node.book.advance(held.lease.id, event, "t"));
                    }
                }
                Step::Reopen => node.book = node.reopened(),
            }
            let mut on_disk = replay(&node.journal).unwrap().leases;
            on_disk.sort_by_key(|held| held.lease.id);
            prop_assert_eq!(&on_disk, &node.book.leases());
            for gpu in inventory().gpus() {
                let grants = on_disk.iter().flat_map(|held| held.lease.placement.grants());
                let held: u64 =
                    grants.filter(|grant| grant.gpu == gpu.uuid).map(|g| g.memory.get()).sum();
                prop_assert!(held <= gpu.memory.get());
                prop_assert_eq!(node.book.room(gpu.uuid).unwrap().memory.get(), gpu.memory.get() - held);
            }
        }
    }
}
