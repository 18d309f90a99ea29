//! The annotation that says which GPUs a pod gets.
//!
//! JSON, so that `kubectl describe` shows it to people and every tool reads it:
//!
//! ```json
//! {"version":1,"node":"gpu-7","pod":"6f1…","containers":{"train":[{"gpu":"GPU-…","memory":"8Gi","share":50}]}}
//! ```
//!
//! Of a partition (a MIG instance, a vGPU) it names the GPU, with the memory and the share of one of
//! the profile, as the GpuNode has them: which one of a profile it is, the kubelet chooses.
//!
//! It names the pod that it was made for: a manifest that somebody copied with its annotations
//! gets nothing. What is not known to version 1 is refused, for half an understanding of a
//! placement would be a wrong lease.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use gpuzone_core::{ComputeShare, Grant, InvalidPlacement, MemoryBytes, Placement};
use serde::{Deserialize, Serialize};

use super::names::shorten;
use super::{ContainerName, NodeName, PLACEMENT_ANNOTATION, PodUid};

/// A placement's text is not longer. All annotations of a pod together may have 256 KiB.
pub const MAX_PLACEMENT_BYTES: usize = 32 * 1024;
/// More grants than that, over all containers, might not fit.
const MOST_GRANTS: usize = 128;
/// And more containers.
const MOST_CONTAINERS: usize = 64;
const VERSION: u32 = 1;

/// Which GPUs of which node the containers of one pod get. Never empty.
///
/// A plain init container whose slots an app container takes over has no entry of its own: one
/// lease serves both, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlacement {
    node: NodeName,
    pod: PodUid,
    containers: BTreeMap<ContainerName, Placement>,
}

/// Why a text, or a set of grants, is no pod's placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Longer than any that is written.
    #[error(
        "the annotation {PLACEMENT_ANNOTATION} has {0} bytes; at most {MAX_PLACEMENT_BYTES} are read"
    )]
    TooLong(usize),
    /// A version that is not known here.
    #[error(
        "the annotation {PLACEMENT_ANNOTATION} has version {0} and this node reads version {VERSION}; bring the scheduler extender and the node to the same release"
    )]
    Version(u64),
    /// No JSON of this form.
    #[error("the annotation {PLACEMENT_ANNOTATION} is not what the scheduler extender writes: {0}")]
    Form(String),
    /// No containers.
    #[error("a placement names at least one container")]
    Empty,
    /// More than fit into an annotation.
    #[error(
        "a placement has at most {MOST_CONTAINERS} containers and {MOST_GRANTS} GPUs; split the pod"
    )]
    TooMany,
    /// A container's grants are wrong.
    #[error("for container {container}: {source}")]
    Container {
        /// Whose.
        container: ContainerName,
        /// Why.
        source: InvalidPlacement,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    node: NodeName,
    pod: PodUid,
    containers: BTreeMap<ContainerName, Vec<GrantText>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantText {
    gpu: gpuzone_core::GpuUuid,
    memory: String,
    share: ComputeShare,
}

/// Read first: a later version need not have the same form.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

impl PodPlacement {
    /// The placement of these containers.
    ///
    /// # Errors
    /// When there is none, or more than an annotation holds.
    pub fn new(
        node: NodeName,
        pod: PodUid,
        containers: BTreeMap<ContainerName, Placement>,
    ) -> Result<Self, PlacementError> {
        if containers.is_empty() {
            return Err(PlacementError::Empty);
        }
        let grants: usize = containers.values().map(|placement| placement.grants().len()).sum();
        if grants > MOST_GRANTS || containers.len() > MOST_CONTAINERS {
            return Err(PlacementError::TooMany);
        }
        Ok(Self { node, pod, containers })
    }

    /// The node whose GPUs these are.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The pod that they are for.
    pub fn pod(&self) -> &PodUid {
        &self.pod
    }

    /// What one container gets.
    pub fn container(&self, name: &ContainerName) -> Option<&Placement> {
        self.containers.get(name)
    }

    /// What each container gets.
    pub fn containers(&self) -> impl Iterator<Item = (&ContainerName, &Placement)> {
        self.containers.iter()
    }
}

impl FromStr for PodPlacement {
    type Err = PlacementError;

    fn from_str(text: &str) -> Result<Self, PlacementError> {
        if text.len() > MAX_PLACEMENT_BYTES {
            return Err(PlacementError::TooLong(text.len()));
        }
        let form = |error: serde_json::Error| PlacementError::Form(shorten(&error.to_string()));
        let Version { version } = serde_json::from_str(text).map_err(form)?;
        if version != u64::from(VERSION) {
            return Err(PlacementError::Version(version));
        }
        let Text { version: _, node, pod, containers } =
            serde_json::from_str(text).map_err(form)?;
        let read = |(container, grants): (ContainerName, Vec<GrantText>)| {
            let grants = grants.into_iter().map(GrantText::read).collect::<Result<_, _>>()?;
            match Placement::of(grants) {
                Ok(placement) => Ok((container, placement)),
                Err(source) => Err(PlacementError::Container { container, source }),
            }
        };
        Self::new(node, pod, containers.into_iter().map(read).collect::<Result<_, _>>()?)
    }
}

impl GrantText {
    fn read(self) -> Result<Grant, PlacementError> {
        let memory: MemoryBytes = self
            .memory
            .parse()
            .map_err(|error| PlacementError::Form(shorten(&format!("{error}"))))?;
        Ok(Grant { gpu: self.gpu, memory, share: self.share })
    }
}

impl fmt::Display for PodPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grant = |grant: &Grant| GrantText {
            gpu: grant.gpu,
            memory: grant.memory.to_string(),
            share: grant.share,
        };
        let grants = |placement: &Placement| placement.grants().iter().map(grant).collect();
        let containers = self.containers.iter();
        let text = Text {
            version: VERSION,
            node: self.node.clone(),
            pod: self.pod.clone(),
            containers: containers.map(|(name, given)| (name.clone(), grants(given))).collect(),
        };
        // Names, numbers and texts: nothing in it that JSON has no form for.
        f.write_str(&serde_json::to_string(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests;
