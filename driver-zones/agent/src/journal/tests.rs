use std::path::PathBuf;

use gpuzone_core::{
    Cause, Gpu, GpuUuid, Inventory, MemoryBytes, NodeState, Request, TenantQuota, Under,
};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn gpu() -> Gpu {
    Gpu { memory: MemoryBytes::gib(1024), ..crate::fixtures::gpu(1) }
}

fn lease(n: u128) -> HeldLease {
    let mut node = NodeState::new(Inventory::new(vec![gpu()]).unwrap());
    let request = Request {
        tenant: "acme".parse().unwrap(),
        gpus: gpuzone_core::GpuCount::ONE,
        memory: Some(MemoryBytes::gib(1)),
        share: None,
        exposure: Default::default(),
        time: Default::default(),
        model: None,
    };
    let placement = node.place(&request).unwrap();
    let demand = gpuzone_core::Demand { tenant: request.tenant, placement, time: request.time };
    let quota = TenantQuota::default();
    let admission = gpuzone_core::admit(Some(&quota), Default::default(), demand).unwrap();
    let id = LeaseId::from_uuid(Uuid::from_u128(n));
    let zone = gpuzone_core::ZoneId::from_uuid(Uuid::from_u128(n + 1));
    let lease = node.reserve(id, zone, admission).unwrap().clone();
    let holder = Holder {
        by: HeldBy::Process(ProcessId::own().unwrap()),
        program: format!("./train \"{n}\"\n"),
        created: Timestamp::from_nanoseconds(7),
        trouble: String::new(),
        zone: None,
    };
    HeldLease { lease, holder }
}

fn moved(n: u128, state: LeaseState) -> Record {
    let lease = LeaseId::from_uuid(Uuid::from_u128(n));
    Record::Moved { lease, state, trouble: String::new() }
}

struct Scratch {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn scratch() -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    Scratch { _dir: dir, path }
}

/// Writes the records and returns the file.
fn written(path: &Path, records: &[Record]) -> Vec<u8> {
    let mut journal = Journal::rewrite(path, std::iter::empty(), std::iter::empty()).unwrap();
    for record in records {
        journal.append(record).unwrap();
    }
    std::fs::read(path).unwrap()
}

/// What the records come to, without a file.
fn truth(records: &[Record]) -> Vec<HeldLease> {
    let mut leases = Leases::default();
    for record in records {
        leases.take(record.clone()).unwrap();
    }
    leases.in_order().leases
}

fn story() -> Vec<Record> {
    vec![
        Record::Lease(lease(2)),
        moved(2, LeaseState::Active),
        Record::Lease(lease(1)),
        moved(1, LeaseState::Active),
        moved(2, LeaseState::Draining),
        moved(2, LeaseState::Scrubbing),
        moved(2, LeaseState::Released),
        Record::Lease(lease(3)),
    ]
}

/// As versions before placed leases wrote it.
#[test]
fn an_old_line_is_read() {
    let old = r#"{"lease":{"id":"lease-00000000000000000000000000000001","tenant":"acme","zone":"zone-00000000000000000000000000000002","placement":[{"gpu":"GPU-01010101-0101-0101-0101-010101010101","memory":1073741824,"share":6}],"state":"active"},"holder":{"process":{"pid":7,"start_time":9,"boot":"00000000-0000-0000-0000-000000000003"},"program":"app","created":5,"trouble":""}}"#;
    let held: HeldLease = serde_json::from_str(old).unwrap();
    assert_eq!(held.holder.process().map(|process| process.pid), Some(7));
    assert_eq!(serde_json::to_string(&held).unwrap(), old);
}

#[test]
fn a_placed_lease_is_read_back() {
    let placed = PlacedHolder {
        name: "pod/6f1/train".parse().unwrap(),
        at: At::Slot { slot: "slot-3".parse().unwrap(), folder: SlotFolder::new(u64::MAX) },
        boot: BootId::current().unwrap(),
        under: None,
    };
    // As versions before devices wrote it.
    let old = format!(
        r#"{{"name":"pod/6f1/train","slot":"slot-3","folder":"ffffffffffffffff","boot":{}}}"#,
        serde_json::to_string(&placed.boot).unwrap()
    );
    assert_eq!(serde_json::from_str::<PlacedHolder>(&old).unwrap(), placed);
    let at = At::Device { exposure: Exposure::Passthrough };
    let mut leases = [lease(1), lease(2)];
    leases[0].holder.by = HeldBy::Placed(placed.clone());
    let under = Under { group: "6f1".into(), quotas: ["team".to_owned()].into() };
    leases[1].holder.by = HeldBy::Placed(PlacedHolder { at, under: Some(under), ..placed });
    let Scratch { _dir, path } = scratch();
    written(&path, &leases.clone().map(Record::Lease));
    assert_eq!(replay(&path).unwrap().leases, leases);
    assert_eq!(leases[1].exposure(), Exposure::Passthrough);
}

#[test]
fn what_was_written_is_read_in_its_order() {
    let Scratch { _dir, path } = scratch();
    assert_eq!(replay(&path).unwrap().leases, vec![]);
    written(&path, &story());
    let leases = replay(&path).unwrap().leases;
    assert_eq!(leases, truth(&story()));
    let states: Vec<_> = leases.iter().map(|lease| lease.lease.state).collect();
    assert_eq!(states, [LeaseState::Active, LeaseState::Reserved]);
    let mut journal = Journal::rewrite(&path, leases.iter(), std::iter::empty()).unwrap();
    assert_eq!(replay(&path).unwrap().leases, leases);
    journal.append(&moved(1, LeaseState::Failed)).unwrap();
    assert_eq!(replay(&path).unwrap().leases[0].lease.state, LeaseState::Failed);
}

#[test]
fn a_lease_from_before_there_were_priorities_is_batch_and_has_no_cap() {
    let usual = lease(1);
    let step = serde_json::to_string(&Record::Lease(usual.clone())).unwrap();
    assert!(!step.contains("\"time\""), "older agents read it, too: {step}");
    assert_eq!(serde_json::from_str::<Record>(&step).unwrap(), Record::Lease(usual.clone()));
    let cap = gpuzone_core::ComputeShare::new(40).ok();
    let time = gpuzone_core::TimeTerms { priority: gpuzone_core::Priority::LatencyCritical, cap };
    let urgent =
        HeldLease { lease: Lease { time, ..usual.lease.clone() }, holder: usual.holder.clone() };
    let Scratch { _dir, path } = scratch();
    written(&path, &[Record::Lease(urgent.clone())]);
    assert_eq!(replay(&path).unwrap().leases, [urgent]);
}

#[test]
fn cut_anywhere_it_is_a_beginning_of_the_truth() {
    let Scratch { _dir, path } = scratch();
    let whole = written(&path, &story());
    for length in 0..=whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let lines = whole[..length].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(replay(&path).unwrap().leases, truth(&story()[..lines]), "at {length}");
    }
}

#[test]
fn zeros_at_the_end_are_a_line_that_was_never_written() {
    let Scratch { _dir, path } = scratch();
    let mut whole = written(&path, &story());
    whole.extend([0; 100]);
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(replay(&path).unwrap().leases, truth(&story()));
}

#[test]
fn a_lost_line_is_damage() {
    let Scratch { _dir, path } = scratch();
    let whole = written(&path, &story());
    let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    std::fs::write(&path, [&lines[..3], &lines[4..]].concat().concat()).unwrap();
    let error = replay(&path).unwrap_err().to_string();
    assert!(error.contains("damaged in line 4") && error.contains("out of order"), "{error}");
    assert!(error.contains("move the journal away"), "{error}");
}

#[test]
fn an_append_that_fails_leaves_no_half_line() {
    let Scratch { _dir, path } = scratch();
    let mut journal = Journal::rewrite(&path, std::iter::empty(), std::iter::empty()).unwrap();
    journal.append(&story()[0]).unwrap();
    let writable = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
    let error = journal.append(&story()[1]).unwrap_err().to_string();
    assert!(error.contains("free space"), "{error}");
    journal.file = writable;
    journal.append(&story()[1]).unwrap();
    assert_eq!(replay(&path).unwrap().leases, truth(&story()[..2]));
}

proptest! {
    #[test]
    fn a_changed_byte_is_never_believed(at: prop::sample::Index, change in 1u8..) {
        let Scratch { _dir, path } = scratch();
        let mut whole = written(&path, &story());
        let at = at.index(whole.len());
        whole[at] ^= change;
        std::fs::write(&path, &whole).unwrap();
        match replay(&path) {
            Err(ReplayError::Damaged { .. }) => {}
            // The last line's end or a zero in it: it counts as never written.
            Ok(read) => prop_assert_eq!(read.leases, truth(&story()[..story().len() - 1])),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
}

#[test]
fn what_is_known_of_a_gpu_outlives_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let [one, two] = [1, 2].map(|byte| GpuUuid::from_bytes([byte; 16]));
    let mut journal = Journal::rewrite(&path, std::iter::empty(), std::iter::empty()).unwrap();
    let now = Timestamp::from_nanoseconds(7);
    let mut watch = GpuWatch::condemned("residue", now);
    journal.append(&Record::Health { gpu: one, watch: watch.clone() }).unwrap();
    journal.append(&Record::Health { gpu: two, watch: watch.clone() }).unwrap();
    watch.clear(now);
    journal.append(&Record::Health { gpu: two, watch: watch.clone() }).unwrap();
    let watches = replay(&path).unwrap().watches;
    assert_eq!(watches[&one].health().why().unwrap().1, "residue");
    assert_eq!(watches[&two], watch);
    let kept = watches.iter().map(|(gpu, watch)| (*gpu, watch));
    drop(Journal::rewrite(&path, std::iter::empty(), kept).unwrap());
    assert_eq!(replay(&path).unwrap().watches, watches);
}

#[test]
fn a_quarantine_of_an_earlier_version_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let [one, two] = [1, 2].map(|byte| GpuUuid::from_bytes([byte; 16]));
    let mut journal = Journal::rewrite(&path, std::iter::empty(), std::iter::empty()).unwrap();
    for (gpu, reason) in [(one, "first"), (two, "second"), (two, "third")] {
        journal.append(&Record::Quarantined { gpu, reason: reason.into() }).unwrap();
    }
    journal.append(&Record::QuarantineCleared { gpu: one }).unwrap();
    let watches = replay(&path).unwrap().watches;
    assert_eq!(watches.len(), 1);
    assert_eq!(watches[&two].health().why().unwrap(), (Cause::Scrub, "second"));
    journal.append(&Record::QuarantineCleared { gpu: one }).unwrap();
    assert!(replay(&path).unwrap_err().to_string().contains("is not in quarantine"));
}
