//! What gpu-zone reads and writes in Kubernetes' objects: names, and the grammar of their values.
//!
//! | where | key | value |
//! | --- | --- | --- |
//! | container, `resources.limits` | [`DEFAULT_GPU_RESOURCE`] | number of GPUs |
//! | container, `resources.limits` | [`DEFAULT_MEMORY_RESOURCE`] | MiB on each GPU; left out: whole GPUs |
//! | container, `resources.limits` | [`DEFAULT_SHARE_RESOURCE`] | per cent of each GPU's time |
//! | container, `resources.limits` | [`DEFAULT_PASSTHROUGH_RESOURCE`] | number of whole GPUs, by passthrough |
//! | container, `resources.limits` | [`DEFAULT_MIG_PREFIX`] and a profile | 1: an instance of that profile |
//! | container, `resources.limits` | [`DEFAULT_VGPU_PREFIX`] and a type | number of vGPUs of that type |
//! | container, `resources.limits` | [`DEFAULT_MEMORY_PERCENT_RESOURCE`] | the same in per cent of the GPU's |
//! | pod, annotation | [`MODEL_ANNOTATION`] | product names of GPUs that will do, with commas between |
//! | pod, annotation | [`TOPOLOGY_ANNOTATION`] | `any`, `same-numa` or `nvlink` |
//! | pod, annotation | [`POLICY_ANNOTATION`] | `pack`, `spread` or `fragmentation` |
//! | pod, label | [`POD_GROUP_LABEL`] | pods that start together or not at all |
//! | pod, annotation | [`POD_GROUP_SIZE_ANNOTATION`] | how many those are, where no `PodGroup` says so |
//! | pod, annotation | [`DEFAULTS_ANNOTATION`] | what is taken where the pod says nothing, for people |
//! | pod, annotation | [`PLACEMENT_ANNOTATION`] | [`PodPlacement`], written with the Binding |
//! | node, annotation | [`WAKE_ANNOTATION`] | that room may have come, written by the extender |
//! | namespace, label | [`TENANT_LABEL`] | the tenant, where it is not the namespace's name |
//!
//! Every text is parsed once, here, into a type that cannot be wrong. All of them come from
//! strangers: what is not right is an error with a sentence, and nothing panics.

mod access;
mod names;
mod placement;
mod request;
mod terms;

pub use access::{
    Access, DEVICE_PLUGIN_ACCESS, SCHEDULER_EXT_ACCESS, SCHEDULER_EXT_OWN_ACCESS,
    SCHEDULER_EXT_RECLAIM_ACCESS,
};
pub(crate) use names::shorten;
pub use names::{
    ContainerName, DEFAULT_GPU_RESOURCE, DEFAULT_MEMORY_PERCENT_RESOURCE, DEFAULT_MEMORY_RESOURCE,
    DEFAULT_MIG_PREFIX, DEFAULT_PASSTHROUGH_RESOURCE, DEFAULT_SHARE_RESOURCE, DEFAULT_VGPU_PREFIX,
    DEFAULTS_ANNOTATION, InvalidName, NodeName, PLACEMENT_ANNOTATION, PodUid, ResourceName,
    ResourcePrefix, SchedulerName, TENANT_LABEL, WAKE_ANNOTATION, tenant_of,
};
pub use placement::{MAX_PLACEMENT_BYTES, PlacementError, PodPlacement};
pub use request::{ContainerRequest, Handed, RequestError, ResourceNames};
pub use terms::{
    GroupSize, GroupTerms, MODEL_ANNOTATION, POD_GROUP_LABEL, POD_GROUP_SIZE_ANNOTATION,
    POLICY_ANNOTATION, PodTerms, TOPOLOGY_ANNOTATION, TermsError,
};
