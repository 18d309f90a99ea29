#![allow(unreachable_pub, reason = "KubeSchema repeats each type inside a function")]

use gpuzone_core::{Exposure, Gpu, GpuBacking, GpuHealth};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// More GPUs than that, a node does not have.
pub const MOST_GPUS: usize = 64;

/// More profiles than that, the partitions of one GPU do not have.
pub const MOST_PROFILES: usize = 16;

/// The GPUs of one node, for the scheduler extender. Written by the node, never by people: it
/// says what is there, and what is used follows from the pods that run.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "gpuzone.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    shortname = "gn",
    category = "gpu-zone",
    status = "GpuNodeStatus",
    derive = "PartialEq",
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.total"),
    printcolumn(name = "Healthy", type_ = "integer", json_path = ".status.healthy"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.driver"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.inventoryVersion"),
    validation = Rule::new("self.metadata.name == self.spec.node")
        .message("a GpuNode is called like its node")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuNodeSpec {
    /// The node, which this object is called like.
    #[x_kube(validation = Rule::new("self == oldSelf").message("a GpuNode does not change its node"))]
    pub node: String,
}

/// What the node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.total == size(self.gpus)").message("total is the number of GPUs"))]
#[x_kube(validation = Rule::new("self.healthy <= self.total").message("no more GPUs are healthy than there are"))]
pub struct GpuNodeStatus {
    /// Changes with anything below, and with nothing else.
    #[schemars(length(min = 1, max = 32))]
    pub inventory_version: String,
    /// `simulated` or `nvidia`.
    #[x_kube(validation = Rule::new("self in ['simulated', 'nvidia']").message("a driver is simulated or nvidia"))]
    pub driver: String,
    /// How many GPUs there are.
    #[schemars(range(min = 0, max = 64))]
    pub total: u32,
    /// How many of them take new leases.
    #[schemars(range(min = 0, max = 64))]
    pub healthy: u32,
    /// Each GPU.
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uuid"]))]
    pub gpus: Vec<GpuEntry>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.healthy || has(self.reason)").message("an unhealthy GPU has a reason"))]
#[x_kube(validation = Rule::new("self.exposure in ['mig', 'vgpu'] || !has(self.partitions) || size(self.partitions) == 0").message("only a GPU whose exposure is mig or vgpu has partitions"))]
pub struct GpuEntry {
    /// The driver's identifier.
    #[schemars(regex(pattern = "^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub uuid: String,
    /// NVML's index.
    #[schemars(range(min = 0))]
    pub index: u32,
    /// Product name.
    #[schemars(length(max = 128))]
    pub model: String,
    /// All of its memory, in bytes.
    #[schemars(range(min = 1, max = 1_125_899_906_842_624_u64))]
    pub memory_bytes: u64,
    /// Like `9.0`.
    #[schemars(regex(pattern = "^[0-9]{1,3}\\.[0-9]{1,3}$"))]
    pub compute_capability: String,
    /// The NUMA node it is near to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub numa_node: Option<u32>,
    /// GPUs that NVLink joins it with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub nvlink_peers: Vec<String>,
    /// Whether it can be cut into MIG instances.
    pub mig_capable: bool,
    /// Whether it is the simulator's.
    pub simulated: bool,
    /// How it is handed to containers: `mediated` (shared, by memory and share), `passthrough`
    /// (whole, to a VM), `mig` or `vgpu` (partition by partition).
    #[serde(default)]
    #[schemars(with = "String")]
    #[x_kube(validation = Rule::new("self in ['mediated', 'passthrough', 'mig', 'vgpu']").message("an exposure is mediated, passthrough, mig or vgpu"))]
    pub exposure: Exposure,
    /// What of it is handed out one by one, where its exposure is `mig` or `vgpu`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["profile"]))]
    pub partitions: Vec<PartitionEntry>,
    /// Whether it takes new leases.
    pub healthy: bool,
    /// Why not, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub reason: Option<String>,
    /// One word for why not, like `zone` or `xid-79`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z0-9-]{1,32}$"))]
    pub cause: Option<String>,
    /// Whether it takes none until an operator clears it. If not, it does again when what is wrong
    /// has been away for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub needs_operator: bool,
}

/// The partitions of one profile that a GPU has. How many are free follows from the pods that
/// run.
#[derive(Clone, Debug, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.healthy <= self.count").message("no more partitions are healthy than there are"))]
pub struct PartitionEntry {
    /// As the vendor calls it, like `1g.10gb` or `nvidia-592`.
    #[schemars(regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"))]
    pub profile: String,
    /// How many there are.
    #[schemars(range(min = 1, max = 256))]
    pub count: u32,
    /// How many of them take new leases.
    #[schemars(range(min = 0, max = 256))]
    pub healthy: u32,
    /// Memory of each, in bytes.
    #[schemars(range(min = 1, max = 1_125_899_906_842_624_u64))]
    pub memory_bytes: u64,
    /// The part of its GPU's compute that each is, in per cent: what a quota counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub share_percent: Option<u32>,
}

/// At most `most` bytes of a text, cut between characters.
fn bounded(text: &str, most: usize) -> String {
    let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
    let end = ends.take_while(|end| *end <= most).last().unwrap_or(0);
    text[..end].to_owned()
}

impl GpuEntry {
    /// The same with texts no longer than the schema lets them be.
    #[must_use]
    pub fn bounded(self) -> Self {
        let (model, reason) = (bounded(&self.model, 128), self.reason);
        let reason = reason.map(|reason| bounded(&reason, 512));
        Self { model, reason, ..self }
    }

    /// A GPU as discovery saw it, which is handed over mediated.
    pub fn new(gpu: &Gpu, health: &GpuHealth) -> Self {
        let why = health.why();
        Self {
            uuid: gpu.uuid.to_string(),
            index: gpu.index,
            model: gpu.name.clone(),
            memory_bytes: gpu.memory.get(),
            compute_capability: gpu.compute_capability.to_string(),
            numa_node: gpu.numa_node,
            nvlink_peers: gpu.nvlink_peers.iter().map(ToString::to_string).collect(),
            mig_capable: gpu.mig_capable,
            simulated: gpu.backing == GpuBacking::Simulated,
            exposure: Exposure::Mediated,
            partitions: Vec::new(),
            healthy: health.serves(),
            reason: why.map(|(_, reason)| reason.to_owned()),
            cause: why.map(|(cause, _)| cause.to_string()),
            needs_operator: matches!(health, GpuHealth::Quarantined { .. }),
        }
        .bounded()
    }
}

impl GpuNodeStatus {
    /// The status of a node with these GPUs; none beyond the first [`MOST_GPUS`].
    pub fn new(driver: &str, mut gpus: Vec<GpuEntry>) -> Self {
        gpus.truncate(MOST_GPUS);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let total = count(gpus.len());
        let healthy = count(gpus.iter().filter(|gpu| gpu.healthy).count());
        let inventory_version = inventory_version(driver, &gpus);
        Self { inventory_version, driver: driver.to_owned(), total, healthy, gpus }
    }
}

/// A short text that is the same exactly as long as the inventory is (FNV-1a, 64 bits, over its
/// JSON). Nothing secret depends on it: a collision delays an update until the next change.
pub fn inventory_version(driver: &str, gpus: &[GpuEntry]) -> String {
    let text = serde_json::json!([driver, gpus]).to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_core::{Cause, ComputeCapability, GpuUuid, MemoryBytes, PciAddress};

    fn gpu(n: u8) -> Gpu {
        Gpu {
            uuid: GpuUuid::from_bytes([n; 16]),
            index: n.into(),
            name: "x".repeat(200),
            pci: PciAddress::new(0, n, 0, 0).unwrap(),
            memory: MemoryBytes::gib(80),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            numa_node: Some(1),
            nvlink_peers: (0..63).map(|peer| GpuUuid::from_bytes([peer; 16])).collect(),
            mig_capable: true,
            backing: GpuBacking::Physical,
        }
    }

    #[test]
    fn the_largest_status_is_small() {
        let sick = GpuHealth::Quarantined { cause: Cause::Scrub, reason: "ä".repeat(2000) };
        let gpus = (0..70).map(|n| GpuEntry::new(&gpu(n), &sick)).collect();
        let status = GpuNodeStatus::new("nvidia", gpus);
        assert_eq!((status.total, status.healthy), (64, 0));
        assert!(status.gpus[0].reason.as_ref().is_some_and(|reason| reason.len() <= 512));
        // etcd takes 1.5 MiB.
        assert!(serde_json::to_string(&status).unwrap().len() < 300_000);
    }

    #[test]
    fn a_gpu_of_an_older_node_is_mediated() {
        let entry = GpuEntry::new(&gpu(1), &GpuHealth::Healthy);
        let mut json = serde_json::to_value(&entry).unwrap();
        assert_eq!(json["exposure"], "mediated");
        json.as_object_mut().unwrap().remove("exposure");
        assert_eq!(serde_json::from_value::<GpuEntry>(json).unwrap(), entry);
    }

    #[test]
    fn the_version_follows_the_inventory() {
        let entry = |health| vec![GpuEntry::new(&gpu(1), &health)];
        let well = GpuNodeStatus::new("nvidia", entry(GpuHealth::Healthy));
        assert_eq!(well, GpuNodeStatus::new("nvidia", entry(GpuHealth::Healthy)));
        let sick = entry(GpuHealth::Quarantined { cause: Cause::Scrub, reason: "scrub".into() });
        let sick = GpuNodeStatus::new("nvidia", sick);
        assert_ne!(well.inventory_version, sick.inventory_version);
        assert_eq!((well.healthy, sick.healthy), (1, 0));
    }
}
