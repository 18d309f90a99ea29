//! The node's inventory, for the scheduler: written when it changes, and not otherwise.

use gpuzone_api::agent::v1::Gpu;
use gpuzone_api::kubernetes::NodeName;
use gpuzone_core::Exposure;
use gpuzone_crds::{GpuEntry, GpuNode, GpuNodeSpec, GpuNodeStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};

use crate::links::{LinkError, within};

/// Who writes these fields, for server-side apply.
const MANAGER: &str = "gpu-zone-device-plugin";

/// The node's [`GpuNode`].
pub(crate) struct Publisher {
    objects: Api<GpuNode>,
    node: NodeName,
    /// What the API server has, as far as we know.
    written: Option<String>,
}

/// What the agent says of its GPUs, as the scheduler reads it.
fn status(driver: &str, gpus: &[Gpu]) -> GpuNodeStatus {
    GpuNodeStatus::new(driver, gpus.iter().map(entry).collect())
}

fn entry(gpu: &Gpu) -> GpuEntry {
    // An exposure that only a later release knows is nothing that can be asked for by this one.
    let exposure: Result<Exposure, _> = gpu.exposure.parse();
    let unknown = exposure.as_ref().err().map(ToString::to_string);
    let reason = gpu.quarantine.clone().or(gpu.not_ready.clone()).or(unknown);
    GpuEntry {
        uuid: gpu.uuid.clone(),
        index: gpu.index,
        model: gpu.name.clone(),
        memory_bytes: gpu.memory_bytes,
        compute_capability: gpu.compute_capability.clone(),
        numa_node: gpu.numa_node,
        nvlink_peers: gpu.nvlink_peers.clone(),
        mig_capable: gpu.mig_capable,
        simulated: gpu.backing == "simulated",
        exposure: exposure.unwrap_or_default(),
        partitions: Vec::new(),
        healthy: reason.is_none(),
        reason,
    }
    .bounded()
}

impl Publisher {
    pub(crate) fn new(client: Client, node: NodeName) -> Self {
        Self { objects: Api::all(client), node, written: None }
    }

    /// Writes what is new; whether there was anything to write.
    pub(crate) async fn publish(&mut self, driver: &str, gpus: &[Gpu]) -> Result<bool, LinkError> {
        let status = status(driver, gpus);
        if self.written.as_ref() == Some(&status.inventory_version) {
            return Ok(false);
        }
        let name = self.node.as_str();
        let found = within("get gpunodes", self.objects.get_opt(name)).await?;
        let known = found.and_then(|found| found.status).map(|status| status.inventory_version);
        let same = known.as_ref() == Some(&status.inventory_version);
        if !same {
            let mut object = GpuNode::new(name, GpuNodeSpec { node: name.to_owned() });
            let apply = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&object);
            within("patch gpunodes", self.objects.patch(name, &apply, &patch)).await?;
            object.status = Some(status.clone());
            let patch = Patch::Apply(&object);
            let patched = self.objects.patch_status(name, &apply, &patch);
            within("patch gpunodes/status", patched).await?;
            tracing::info!(object = object.name_any(), "the node's GPUs are published");
        }
        if same {
            tracing::debug!("the node's GPUs are published already");
        }
        self.written = Some(status.inventory_version);
        Ok(!same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_says_is_what_is_written() {
        let well = Gpu {
            uuid: "GPU-00000000-0000-0000-0000-000000000001".into(),
            name: "x".repeat(500),
            backing: "simulated".into(),
            memory_bytes: 1 << 30,
            exposure: "mediated".into(),
            ..Default::default()
        };
        let sick = Gpu { quarantine: Some("ä".repeat(1000)), ..well.clone() };
        let written = status("simulated", &[well.clone(), sick]);
        assert_eq!((written.total, written.healthy), (2, 1));
        assert!(written.gpus[0].simulated && written.gpus[0].model.len() == 128);
        assert!(written.gpus[1].reason.as_ref().is_some_and(|reason| reason.len() <= 512));
        let whole = Gpu { exposure: "passthrough".into(), ..well.clone() };
        let later = Gpu { exposure: "borrowed".into(), ..well.clone() };
        let written = status("simulated", &[whole, later]);
        assert_eq!(written.gpus[0].exposure, Exposure::Passthrough);
        assert!(written.gpus[1].reason.as_ref().is_some_and(|why| why.contains("'borrowed'")));
        // What changes from second to second is not in it.
        let busy = Gpu { utilization_percent: Some(99), leases: 7, ..Default::default() };
        let idle = Gpu::default();
        let version = |gpu: Gpu| status("simulated", &[gpu]).inventory_version;
        assert_eq!(version(busy), version(idle));
    }
}
