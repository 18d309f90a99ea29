//! Messages that are not a tenant's calls: greetings, orders, answers, turns. Each once, well made,
//! is the corpus of the target `messages`; here they are changed at random.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuzone_core::{ComputeShare, GpuUuid, Grant, LeaseId, MemoryBytes, UsageCounters};
use gpuzone_wire::control::{
    Caps, Driver, LeaseStatus, Reply, Request, SlotAccess, WorkerEnd, WorkerOrder,
};
use gpuzone_wire::handover::WorkerSpec;
use gpuzone_wire::hello::{DeviceInfo, Hello, Welcome};
use gpuzone_wire::ring::{RecordBytes, RingSizes};
use gpuzone_wire::scrub::{ScrubGpu, ScrubOrder, ScrubReport};
use gpuzone_wire::turn::{FromArbiter, FromWorker, Priority};
use gpuzone_wire::untrusted::all;
use gpuzone_wire::view::{GpuView, Look, ProcessView, Seen, View};
use proptest::prelude::*;

macro_rules! text {
    ($message:expr) => {
        serde_json::to_vec($message).expect("text")
    };
}

const MIB: MemoryBytes = MemoryBytes::mib(1);

fn lease() -> LeaseId {
    "lease-0192f0c1222273338444555555555555".parse().expect("an id")
}

fn greetings() -> Vec<(&'static str, Vec<u8>)> {
    let sizes = RingSizes::default();
    let hello = Hello { version: 3, pid: 7, window: None, apart: false };
    let device = DeviceInfo {
        name: "Simulated".to_owned(),
        uuid: [1; 16],
        memory: 1 << 30,
        attributes: vec![(10, 32), (16, -1)],
    };
    let welcome = Welcome::Accepted {
        sizes,
        record_bytes: RecordBytes::MOST,
        driver_version: 13_000,
        devices: vec![device],
    };
    let gpu = GpuView {
        name: "Simulated".to_owned(),
        memory: 1 << 30,
        busy: Some(40),
        capability: Some((9, 0)),
        pci: Some((0, 1, 0)),
        ..GpuView::default()
    };
    let process = ProcessView { pid: 7, used: vec![5], busy: vec![Some(3), None] };
    let view = View { gpus: vec![gpu], processes: vec![process], cuda: 13_000, ..View::default() };
    let reason = || "a \"reason\"".to_owned();
    vec![
        ("hello", text!(&hello)),
        ("hello-window", text!(&Hello { window: Some(sizes), apart: true, ..hello })),
        ("look", text!(&Look { look: 2 })),
        ("welcome", text!(&welcome)),
        ("welcome-refused", text!(&Welcome::Refused { reason: reason() })),
        ("seen", text!(&Seen::Lease(view))),
    ]
}

fn orders() -> Vec<(&'static str, Vec<u8>)> {
    let gpu = GpuUuid::from_bytes([1; 16]);
    let grants = vec![Grant { gpu, memory: MIB, share: ComputeShare::WHOLE }];
    let order = WorkerOrder {
        lease: lease(),
        slot_dir: "/run/slot".into(),
        grants: grants.clone(),
        priority: Priority::LatencyCritical,
        time_cap: Some(ComputeShare::WHOLE),
        access: SlotAccess::Mounted,
    };
    let of_gpu = ScrubGpu { gpu, memory: MIB, at_least: MIB, at_most: MIB };
    let scrub = ScrubOrder { lease: lease(), gpus: vec![of_gpu], sample: MIB, limit_ms: 5 };
    let driver = Driver {
        cuda_library: "/lib/libcuda.so.1".into(),
        nvml_library: "/lib/libnvidia-ml.so.1".into(),
        environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
    };
    let caps = Caps::default();
    let spec =
        WorkerSpec { lease: lease(), grants, driver, caps, arbitrated: true, windows: false };
    vec![
        ("request-hello", text!(&Request::Hello { version: 1 })),
        ("request-start", text!(&Request::Start(order))),
        ("request-stop", text!(&Request::Stop { lease: lease() })),
        ("request-ended", text!(&Request::Ended)),
        ("request-settle", text!(&Request::Settle { lease: lease() })),
        ("request-scrub", text!(&Request::Scrub(scrub.clone()))),
        ("request-status", text!(&Request::Status)),
        ("request-acknowledge", text!(&Request::Acknowledge { lease: lease(), through: 8 })),
        ("request-shutdown", text!(&Request::Shutdown)),
        ("worker-spec", text!(&spec)),
        ("scrub-order", text!(&scrub)),
    ]
}

fn answers() -> Vec<(&'static str, Vec<u8>)> {
    let report = ScrubReport {
        gpu: GpuUuid::from_bytes([1; 16]),
        overwritten: MIB,
        compared: MIB,
        left: MemoryBytes::ZERO,
        method: "fill".to_owned(),
        nanoseconds: 1,
        failure: Some("a byte".to_owned()),
    };
    let status = LeaseStatus {
        lease: lease(),
        worker_pid: Some(9),
        restarts: 1,
        sessions: 2,
        used: MIB,
        counters: UsageCounters { launches: 4, ..UsageCounters::default() },
        refused_by_name: BTreeMap::from([("cuMemAllocManaged".to_owned(), 5)]),
        trouble: "a\nline".to_owned(),
        ends: vec![WorkerEnd { number: 1, pid: 6, reason: "signal 9".to_owned() }],
    };
    vec![
        ("reply-hello", text!(&Reply::Hello { version: 1, pid: 1 })),
        ("reply-leases", text!(&Reply::Leases { leases: vec![status] })),
        ("reply-scrubbed", text!(&Reply::Scrubbed { reports: vec![report.clone()] })),
        ("reply-bye", text!(&Reply::Bye)),
        ("reply-refused", text!(&Reply::Refused { reason: "no".to_owned() })),
        ("scrub-report", text!(&report)),
    ]
}

fn turns() -> Vec<(&'static str, Vec<u8>)> {
    let device = 1;
    vec![
        ("turn-want", FromWorker::Want { device }.encode().into()),
        ("turn-yield", FromWorker::Yield { device, wants: true, used: 5 }.encode().into()),
        (
            "turn-grant",
            FromArbiter::Grant { device, contended: true, brief: false }.encode().into(),
        ),
        ("turn-contended", FromArbiter::Contended { device }.encode().into()),
        ("turn-brief", FromArbiter::Brief { device }.encode().into()),
        ("turn-recall", FromArbiter::Recall { device }.encode().into()),
    ]
}

/// Each message once, by the name of its file.
fn each() -> Vec<(&'static str, Vec<u8>)> {
    [greetings(), orders(), answers(), turns()].concat()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/messages")
}

#[test]
fn each_message_is_understood_and_is_in_the_corpus() {
    for (name, message) in each() {
        assert!(all(&message) > 0, "{name} is no message");
        let file = std::fs::read(corpus().join(name)).unwrap_or_default();
        assert!(file == message, "{name}: run the ignored test `write_the_messages_anew`");
    }
}

#[test]
fn what_fuzzing_found_or_began_with_is_read() {
    for file in std::fs::read_dir(corpus()).expect("the corpus is checked in") {
        all(&std::fs::read(file.expect("an entry").path()).expect("readable"));
    }
}

/// Bytes that say much in these messages.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![2 => prop::sample::select(&b"{}[]:,\"\\-0919eE.ntf"[..]), 1 => any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One message with a part of another in the place of one of its own, and some bytes changed.
    #[test]
    fn messages_that_were_changed_are_messages_or_are_refused(
        (one, other) in (prop::sample::select(each()), prop::sample::select(each())),
        cuts in any::<[prop::sample::Index; 4]>(),
        spliced in any::<bool>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), byte()), 0..4),
    ) {
        let (mut message, other) = (one.1, other.1);
        if spliced {
            let part = |length: usize, a: usize, b: usize| {
                let (a, b) = (cuts[a].index(length + 1), cuts[b].index(length + 1));
                a.min(b)..a.max(b)
            };
            let (to, from) = (part(message.len(), 0, 1), part(other.len(), 2, 3));
            message.splice(to, other[from].iter().copied());
        }
        for (at, with) in flips {
            if !message.is_empty() {
                let at = at.index(message.len());
                message[at] = with;
            }
        }
        all(&message);
    }
}

#[test]
#[ignore = "writes the corpus that is checked in"]
fn write_the_messages_anew() {
    std::fs::create_dir_all(corpus()).expect("made");
    for (name, message) in each() {
        std::fs::write(corpus().join(name), message).expect("written");
    }
}
