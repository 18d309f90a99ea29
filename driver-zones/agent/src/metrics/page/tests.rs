use gpuzone_core::{Cause, GpuHealth, GpuWatch, HealthTerms, Level, Signal, Timestamp, Xid};

use super::super::classic::classic;
use super::*;

fn seen(name: &str, health: GpuHealth) -> Seen {
    let gpu = Gpu { name: name.into(), ..crate::fixtures::gpu(1) };
    let mut watch = GpuWatch::condemned("x", Timestamp::from_nanoseconds(1));
    watch.clear(Timestamp::from_nanoseconds(3_000_000_000));
    let xid = Signal::Xid(Xid::new(31), 7);
    watch.observe(&xid, Timestamp::from_nanoseconds(9), &HealthTerms::default());
    let room = GpuRoom { memory: MemoryBytes::gib(12), share: 25, leases: 2, health, watch };
    let used =
        GpuUse { used: MemoryBytes::gib(3), utilization_percent: Some(40), processes: Vec::new() };
    Seen {
        host: "node-1".into(),
        driver_version: "580.95.05".into(),
        gpus: vec![GpuSeen { gpu, room, used: Some(used) }],
        states: BTreeMap::from([(LeaseState::Active, 2)]),
        tenants: BTreeMap::from([("acme".into(), Holds { leases: 2, reserved: 7, used: 5 })]),
        broker_answers: true,
        driver_answers: true,
        events_heard: true,
    }
}

fn healthy() -> Seen {
    seen("gpu-zone Simulated GPU", GpuHealth::Healthy)
}

/// The value of the one sample that begins with `name` and has all of `labels`.
fn value(page: &str, name: &str, labels: &[&str]) -> f64 {
    let found: Vec<&str> = page
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?} in\n{page}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_page_tells_what_was_seen() {
    let page = page(&healthy(), &Counts::default()).unwrap();
    let gib = f64::from(1 << 30);
    let simulated = "backing=\"simulated\"";
    assert_eq!(value(&page, "gpuzone_gpu_memory_bytes", &[simulated]), 16.0 * gib);
    assert_eq!(value(&page, "gpuzone_gpu_memory_reserved_bytes", &[simulated]), 4.0 * gib);
    assert_eq!(value(&page, "gpuzone_gpu_memory_used_bytes", &[simulated]), 3.0 * gib);
    assert_eq!(value(&page, "gpuzone_gpu_share_reserved_ratio", &[simulated]), 0.75);
    assert_eq!(value(&page, "gpuzone_leases", &["state=\"active\""]), 2.0);
    assert_eq!(value(&page, "gpuzone_leases", &["state=\"failed\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_tenant_memory_used_bytes", &["tenant=\"acme\""]), 5.0);
    let dcgm = ["gpu=\"0\"", "UUID=\"GPU-", "Hostname=\"node-1\"", simulated];
    assert_eq!(value(&page, "DCGM_FI_DEV_FB_USED", &dcgm), 3072.0);
    assert_eq!(value(&page, "DCGM_FI_DEV_FB_FREE", &dcgm), 13312.0);
    assert_eq!(value(&page, "DCGM_FI_DEV_GPU_UTIL", &dcgm), 40.0);
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn a_driver_that_is_silent_makes_no_number_up() {
    let mut seen = healthy();
    seen.gpus[0].used = None;
    seen.driver_answers = false;
    let page = page(&seen, &Counts::default()).unwrap();
    for name in ["gpuzone_gpu_memory_used_bytes{", "DCGM_FI_DEV_FB_USED{", "GPU_UTIL{"] {
        assert!(!page.contains(name), "{name}");
    }
    assert_eq!(value(&page, "gpuzone_answers", &["of=\"driver\""]), 0.0);
}

#[test]
fn a_quarantine_has_the_class_of_its_reason() {
    let reason = "byte 0x7 is 0xa5 after it was overwritten with zeros".to_owned();
    let health = GpuHealth::Quarantined { cause: Cause::Scrub, reason };
    let page = page(&seen("x", health), &Counts::default()).unwrap();
    assert_eq!(value(&page, "gpuzone_gpu_quarantined", &["reason=\"residue\""]), 1.0);
    assert_eq!(value(&page, "gpuzone_gpu_quarantined", &["reason=\"late\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_gpu_suspended", &["reason=\"residue\""]), 0.0);
    assert!(!page.contains("0xa5"));
}

#[test]
fn what_the_driver_reported_and_what_is_over_is_told() {
    let (cause, reason) = (Cause::Level(Level::Zone), "silent".to_owned());
    let page = page(&seen("x", GpuHealth::Suspended { cause, reason }), &Counts::default());
    let page = page.unwrap();
    assert_eq!(value(&page, "gpuzone_gpu_suspended", &["reason=\"zone\""]), 1.0);
    assert_eq!(value(&page, "gpuzone_gpu_quarantined", &["reason=\"zone\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_gpu_xids_total", &["class=\"application\""]), 7.0);
    assert_eq!(value(&page, "gpuzone_gpu_xids_total", &["class=\"device\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_gpu_recovered_timestamp_seconds", &[]), 3.0);
}

#[test]
fn counters_are_there_before_anything_happened() {
    let page = page(&healthy(), &Counts::default()).unwrap();
    assert_eq!(value(&page, "gpuzone_scrubs_total", &["result=\"failed\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_lease_refusals_total", &["kind=\"quota\""]), 0.0);
    assert_eq!(value(&page, "gpuzone_audit_write_failures_total", &[]), 0.0);
    assert_eq!(value(&page, "gpuzone_scrubbed_bytes_total", &[]), 0.0);
}

#[test]
fn no_text_breaks_out_of_its_label() {
    let hostile = "a\"} 1\nevil_total{x=\"\\";
    let text = page(&seen(hostile, GpuHealth::Healthy), &Counts::default()).unwrap();
    for page in [text.clone(), classic(&text)] {
        assert!(!page.lines().any(|line| line.starts_with("evil")), "{page}");
        assert!(page.contains(r#"modelName="a\"} 1\nevil_total{x=\"\\","#), "{page}");
    }
}

/// The manual lists what a page has, and nothing else.
#[test]
fn the_manual_lists_all_of_it() {
    let manual = include_str!("../../../../../docs/metrics.md");
    let listed: std::collections::BTreeSet<&str> =
        manual.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let acme = "acme".parse().unwrap();
    let counts = Counts::default();
    counts.name_tenants([acme].iter());
    let text = classic(&page(&healthy(), &counts).unwrap());
    let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert_eq!(told.collect::<std::collections::BTreeSet<_>>(), listed);
}
