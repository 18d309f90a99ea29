//! The page, from what was seen and counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;

use gpuzone_core::{Gpu, GpuBacking, LeaseState, MemoryBytes, UsageCounters, XidClass};
use gpuzone_hw::GpuUse;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::counts::Counts;
use super::reason::Reason;
use crate::book::GpuRoom;

/// What every metric of ours begins with; those of DCGM keep their names.
const PREFIX: &str = "gpuzone";
/// DCGM counts memory in these.
const MEBIBYTE: f64 = 1024.0 * 1024.0;

const STATES: [LeaseState; 6] = [
    LeaseState::Reserved,
    LeaseState::Active,
    LeaseState::Draining,
    LeaseState::Scrubbing,
    LeaseState::Released,
    LeaseState::Failed,
];

type Labels = Vec<(&'static str, String)>;
type Number = Gauge<f64, AtomicU64>;
type Sum = Counter<f64, AtomicU64>;

/// A GPU at one moment.
#[derive(Clone, Debug)]
pub(crate) struct GpuSeen {
    pub(crate) gpu: Gpu,
    pub(crate) room: GpuRoom,
    /// As NVML says it, if it does.
    pub(crate) used: Option<GpuUse>,
}

/// What a tenant holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holds {
    pub(crate) leases: u32,
    pub(crate) reserved: u64,
    pub(crate) used: u64,
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) host: String,
    pub(crate) driver_version: String,
    pub(crate) gpus: Vec<GpuSeen>,
    pub(crate) states: BTreeMap<LeaseState, u32>,
    /// By label.
    pub(crate) tenants: BTreeMap<String, Holds>,
    /// Whether the driver zone's broker answered.
    pub(crate) broker_answers: bool,
    /// Whether NVML answered.
    pub(crate) driver_answers: bool,
    /// Whether NVML tells of events of all GPUs.
    pub(crate) events_heard: bool,
}

/// The whole page, as OpenMetrics.
///
/// # Errors
/// Never in practice: a string takes everything.
pub(crate) fn page(seen: &Seen, counts: &Counts) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    counts.register(&mut registry);
    usage(&mut registry, &counts.totals());
    node(&mut registry, seen);
    gpus(&mut registry, &seen.gpus);
    tenants(&mut registry, &seen.tenants);
    let mut dashboards = Registry::default();
    dcgm(&mut dashboards, seen);
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    encode_registry(&mut text, &dashboards)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// A family of gauges, filled as it is made.
fn gauges(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl Iterator<Item = (Labels, f64)>,
) {
    let family: Family<Labels, Number> = Family::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn sums(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl Iterator<Item = (Labels, f64)>,
) {
    let family: Family<Labels, Sum> = Family::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn flag(up: bool) -> f64 {
    if up { 1.0 } else { 0.0 }
}

fn bytes(memory: MemoryBytes) -> f64 {
    memory.get() as f64
}

fn tenant(name: &str) -> Labels {
    vec![("tenant", name.to_owned())]
}

/// What tenants used, of the counters that only grow.
fn usage(registry: &mut Registry, totals: &BTreeMap<String, UsageCounters>) {
    type Read = fn(&UsageCounters) -> f64;
    let plain: [(&str, &str, Option<Unit>, Read); 4] = [
        ("tenant_busy", "Time in which GPUs worked for a tenant", Some(Unit::Seconds), |used| {
            used.busy_nanoseconds as f64 / 1e9
        }),
        ("tenant_launches", "Kernels launched", None, |used| used.launches as f64),
        ("tenant_memory_refusals", "Allocations beyond a lease's memory", None, |used| {
            used.refused_memory as f64
        }),
        ("tenant_unsupported_calls", "Calls that are not supported", None, |used| {
            used.refused_calls as f64
        }),
    ];
    for (name, help, unit, read) in plain {
        sums(registry, name, help, unit, totals.iter().map(|(of, used)| (tenant(of), read(used))));
    }
    let copies = totals.iter().flat_map(|(of, used)| {
        let ways = [
            ("to_device", used.bytes_to_device),
            ("from_device", used.bytes_from_device),
            ("on_device", used.bytes_on_device),
        ];
        ways.map(|(way, bytes)| {
            (vec![("tenant", of.clone()), ("direction", way.to_owned())], bytes as f64)
        })
    });
    sums(registry, "tenant_copied", "Memory copied", Some(Unit::Bytes), copies);
}

fn node(registry: &mut Registry, seen: &Seen) {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let about = vec![("version", version), ("driver_version", seen.driver_version.clone())];
    let about = [(about, 1.0)].into_iter();
    gauges(registry, "agent_info", "This agent, always 1", None, about);
    let answers = [
        ("broker", seen.broker_answers),
        ("driver", seen.driver_answers),
        ("events", seen.events_heard),
    ];
    let answers = answers.into_iter().map(|(what, up)| (vec![("of", what.to_owned())], flag(up)));
    gauges(
        registry,
        "answers",
        "Whether the broker and the driver answer, and events are heard",
        None,
        answers,
    );
    let states = STATES.into_iter().map(|state| {
        let count = seen.states.get(&state).copied().unwrap_or_default();
        (vec![("state", state.to_string())], f64::from(count))
    });
    gauges(registry, "leases", "Leases that hold something, by state", None, states);
}

fn gpu_labels(gpu: &Gpu) -> Labels {
    vec![
        ("gpu", gpu.index.to_string()),
        ("uuid", gpu.uuid.to_string()),
        ("backing", gpu.backing.to_string()),
    ]
}

fn gpus(registry: &mut Registry, gpus: &[GpuSeen]) {
    let each = || gpus.iter().map(|seen| (gpu_labels(&seen.gpu), seen));
    let memory = each().map(|(labels, seen)| (labels, bytes(seen.gpu.memory)));
    gauges(registry, "gpu_memory", "Memory of a GPU", Some(Unit::Bytes), memory);
    let reserved =
        each().map(|(labels, seen)| (labels, bytes(seen.gpu.memory) - bytes(seen.room.memory)));
    gauges(registry, "gpu_memory_reserved", "Memory kept for leases", Some(Unit::Bytes), reserved);
    let used = each().filter_map(|(labels, seen)| Some((labels, bytes(seen.used.as_ref()?.used))));
    gauges(registry, "gpu_memory_used", "Memory in use, by whomever", Some(Unit::Bytes), used);
    let share = each()
        .map(|(labels, seen)| (labels, f64::from(100_u32.saturating_sub(seen.room.share)) / 100.0));
    gauges(
        registry,
        "gpu_share_reserved",
        "Time kept for leases",
        Some(Unit::Other("ratio".to_owned())),
        share,
    );
    let leases = each().map(|(labels, seen)| (labels, f64::from(seen.room.leases)));
    gauges(registry, "gpu_leases", "Leases that hold some of a GPU", None, leases);
    health(registry, gpus);
}

/// Whether GPUs serve, and what the driver reported of them.
fn health(registry: &mut Registry, gpus: &[GpuSeen]) {
    let each = || gpus.iter().map(|seen| (gpu_labels(&seen.gpu), seen));
    let labelled = |mut labels: Labels, key, value: &str| {
        labels.push((key, value.to_owned()));
        labels
    };
    let out = |wanted: &'static str| {
        each().flat_map(move |(labels, seen)| {
            let health = &seen.room.health;
            let why = health.why().filter(|_| health.as_str() == wanted);
            let class = why.map(|(cause, text)| Reason::of(cause, text));
            Reason::ALL.map(|reason| {
                let labels = labelled(labels.clone(), "reason", reason.as_str());
                (labels, flag(class == Some(reason)))
            })
        })
    };
    let help = "Whether a GPU serves nobody new until it is cleared, by the class of the reason";
    gauges(registry, "gpu_quarantined", help, None, out("quarantined"));
    let help = "Whether a GPU serves nobody new for a while, by the class of the reason";
    gauges(registry, "gpu_suspended", help, None, out("suspended"));
    let recovered = each().filter_map(|(labels, seen)| {
        let recovered = seen.room.watch.recovered()?;
        Some((labels, recovered.at.nanoseconds() as f64 / 1e9))
    });
    let help = "When a GPU last began to serve again";
    gauges(registry, "gpu_recovered_timestamp", help, Some(Unit::Seconds), recovered);
    let xids = each().flat_map(|(labels, seen)| {
        let noted = seen.room.watch.noted();
        XidClass::ALL.map(|class| {
            let of_class = noted.iter().filter(|(xid, _)| xid.class() == class);
            let count: u64 = of_class.map(|(_, noted)| noted.count).sum();
            (labelled(labels.clone(), "class", class.as_str()), count as f64)
        })
    });
    sums(registry, "gpu_xids", "Errors that the driver reported, by class", None, xids);
}

fn tenants(registry: &mut Registry, tenants: &BTreeMap<String, Holds>) {
    let each = || tenants.iter().map(|(name, holds)| (tenant(name), holds));
    let leases = each().map(|(labels, holds)| (labels, f64::from(holds.leases)));
    gauges(registry, "tenant_leases", "Leases that a tenant holds", None, leases);
    let reserved = each().map(|(labels, holds)| (labels, holds.reserved as f64));
    let help = "Memory kept for a tenant";
    gauges(registry, "tenant_memory_reserved", help, Some(Unit::Bytes), reserved);
    let used = each().map(|(labels, holds)| (labels, holds.used as f64));
    let help = "Memory that a tenant's programs use";
    gauges(registry, "tenant_memory_used", help, Some(Unit::Bytes), used);
}

/// Names, labels and units of NVIDIA's exporter, for dashboards that exist; a simulated GPU says
/// that it is one.
fn dcgm(registry: &mut Registry, seen: &Seen) {
    let each = || seen.gpus.iter().map(|gpu| (dcgm_labels(&gpu.gpu, seen), gpu));
    let used = |gpu: &GpuSeen| gpu.used.as_ref().map(|used| bytes(used.used) / MEBIBYTE);
    let total = |gpu: &GpuSeen| bytes(gpu.gpu.memory) / MEBIBYTE;
    let taken = each().filter_map(|(labels, gpu)| Some((labels, used(gpu)?)));
    gauges(registry, "DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB)", None, taken);
    let free = each().filter_map(|(labels, gpu)| Some((labels, total(gpu) - used(gpu)?)));
    gauges(registry, "DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB)", None, free);
    let all = each().map(|(labels, gpu)| (labels, total(gpu)));
    gauges(registry, "DCGM_FI_DEV_FB_TOTAL", "Framebuffer memory (in MiB)", None, all);
    let load = each().filter_map(|(labels, gpu)| {
        Some((labels, f64::from(gpu.used.as_ref()?.utilization_percent?)))
    });
    gauges(registry, "DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %)", None, load);
}

fn dcgm_labels(gpu: &Gpu, seen: &Seen) -> Labels {
    let device = match gpu.backing {
        GpuBacking::Physical => format!("nvidia{}", gpu.index),
        GpuBacking::Simulated => format!("simulated{}", gpu.index),
    };
    vec![
        ("gpu", gpu.index.to_string()),
        ("UUID", gpu.uuid.to_string()),
        ("pci_bus_id", gpu.pci.to_string()),
        ("device", device),
        ("modelName", gpu.name.clone()),
        ("Hostname", seen.host.clone()),
        ("DCGM_FI_DRIVER_VERSION", seen.driver_version.clone()),
        ("backing", gpu.backing.to_string()),
    ]
}

#[cfg(test)]
mod tests;
