//! The node's inventory, for the scheduler: written when it changes, and not otherwise.

use gpuzone_api::kubernetes::NodeName;
use gpuzone_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus};
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
    written: Option<GpuNodeStatus>,
}

/// What came of publishing.
pub(crate) struct Published {
    /// What was published before, if this is something else; the inner one is none when nothing
    /// was.
    pub(crate) before: Option<Option<GpuNodeStatus>>,
}

impl Publisher {
    pub(crate) fn new(client: Client, node: NodeName) -> Self {
        Self { objects: Api::all(client), node, written: None }
    }

    /// Writes what is new.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub(crate) async fn publish(&mut self, status: &GpuNodeStatus) -> Result<Published, LinkError> {
        let same = |known: &GpuNodeStatus| known.inventory_version == status.inventory_version;
        if self.written.as_ref().is_some_and(same) {
            return Ok(Published { before: None });
        }
        let name = self.node.as_str();
        let found = within("get gpunodes", self.objects.get_opt(name)).await?;
        let known = found.and_then(|found| found.status);
        if known.as_ref().is_some_and(same) {
            tracing::debug!("the node's GPUs are published already");
            self.written = known;
            return Ok(Published { before: None });
        }
        let mut object = GpuNode::new(name, GpuNodeSpec { node: name.to_owned() });
        let apply = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        within("patch gpunodes", self.objects.patch(name, &apply, &patch)).await?;
        object.status = Some(status.clone());
        let patch = Patch::Apply(&object);
        let patched = self.objects.patch_status(name, &apply, &patch);
        within("patch gpunodes/status", patched).await?;
        tracing::info!(object = object.name_any(), "the node's GPUs are published");
        self.written = Some(status.clone());
        Ok(Published { before: Some(known) })
    }
}
