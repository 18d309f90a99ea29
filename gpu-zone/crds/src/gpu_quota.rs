#![allow(unreachable_pub, reason = "KubeSchema repeats each type inside a function")]

use std::collections::BTreeMap;

use gpuzone_core::{
    ClusterQuota, ComputeShare, Exposure, InvalidExposure, InvalidMemory, InvalidShare, Limits,
    MemoryBytes,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A budget of GPUs for some namespaces, together.
///
/// Every quota whose selector matches a namespace holds for its pods: what one refuses, no other
/// allows. A quota counts for itself, so removing one widens nothing that another allows: what its
/// pods hold of a cohort counts there until they are gone.
#[derive(Clone, Debug, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "gpuzone.dev",
    version = "v1alpha1",
    kind = "GpuQuota",
    plural = "gpuquotas",
    shortname = "gq",
    category = "gpu-zone",
    status = "GpuQuotaStatus",
    derive = "PartialEq",
    printcolumn(name = "Cohort", type_ = "string", json_path = ".spec.cohort"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.used.pods"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.used.gpus"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.used.memory"),
    printcolumn(name = "Max memory", type_ = "string", json_path = ".spec.limits.memory"),
    validation = Rule::new("has(self.spec.cohort) == has(self.spec.guaranteed)")
        .message("guaranteed and cohort belong together: what is guaranteed is what the others of the cohort may borrow")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.guaranteed) || !has(self.guaranteed.gpus) || !has(self.limits) || !has(self.limits.gpus) || self.guaranteed.gpus <= self.limits.gpus").message("no more GPUs are guaranteed than the limit lets be held"))]
#[x_kube(validation = Rule::new("!has(self.guaranteed) || !has(self.guaranteed.share) || !has(self.limits) || !has(self.limits.share) || self.guaranteed.share <= self.limits.share").message("no more share is guaranteed than the limit lets be held"))]
#[x_kube(validation = Rule::new("!has(self.guaranteed) || !has(self.guaranteed.memory) || !has(self.limits) || !has(self.limits.memory) || quantity(self.guaranteed.memory).compareTo(quantity(self.limits.memory)) <= 0").message("no more memory is guaranteed than the limit lets be held"))]
pub struct GpuQuotaSpec {
    /// Namespaces that it holds for, by their labels. An empty selector is all of them.
    pub namespace_selector: LabelSelector,
    /// What their pods may hold together. What is left out has no limit here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
    /// What one pod may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_pod: Option<Amounts>,
    /// Limits on GPUs of one model, together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["model"]))]
    pub models: Vec<ModelLimit>,
    /// Limits on GPUs that are handed over in one way, together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["exposure"]))]
    pub exposures: Vec<ExposureLimit>,
    /// Quotas of one cohort lend each other what they do not use of what is guaranteed to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub cohort: Option<String>,
    /// What it can always have back from its cohort. Left out of it means none of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guaranteed: Option<Amounts>,
    /// What a container gets of each GPU that asks for GPUs and does not say how much: written into its
    /// limits when its pod is created. Of several quotas that match a namespace the least holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<PodDefaults>,
}

/// What a container gets of each GPU where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodDefaults {
    /// Memory of each, like `8Gi`; left out, whole GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub memory: Option<String>,
    /// Per cent of each one's time; left out, the same part as of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub share: Option<u32>,
}

/// Amounts of what pods hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Amounts {
    /// GPU memory, like `640Gi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub memory: Option<String>,
    /// GPUs; one that is held in part counts as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub gpus: Option<u32>,
    /// Per cent of a GPU's time; 250 is two and a half GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000_000))]
    pub share: Option<u32>,
    /// Pods that hold GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub pods: Option<u32>,
}

/// A limit on GPUs of one model.
#[derive(Clone, Debug, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelLimit {
    /// Its product name, as `GpuNode` objects have it.
    #[schemars(length(min = 1, max = 128))]
    pub model: String,
    /// What may be held of it.
    pub limits: Amounts,
}

/// A limit on GPUs that are handed over in one way.
#[derive(Clone, Debug, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExposureLimit {
    /// How they are handed over.
    #[x_kube(validation = Rule::new("self in ['mediated', 'passthrough', 'mig', 'vgpu']").message("an exposure that a quota limits is mediated, passthrough, mig or vgpu"))]
    pub exposure: String,
    /// What may be held so.
    pub limits: Amounts,
}

/// What is held of a quota. Written by the extender that leads, never by people.
#[derive(Clone, Debug, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuQuotaStatus {
    /// What its pods hold together.
    pub used: Amounts,
    /// What of that is borrowed from its cohort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<Amounts>,
    /// What each tenant holds of it, the largest holders first, 64 at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, Amounts>,
    /// The generation of the spec that this was counted by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Why it cannot be read, and so lets nothing through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub problem: Option<String>,
}

/// Why a quota cannot be read, and so lets nothing through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuota {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] InvalidMemory),
    /// A way of handing over that is not there.
    #[error("exposures: {0}")]
    Exposure(#[from] InvalidExposure),
    /// No part of a GPU's time.
    #[error("defaults: {0}")]
    Share(#[from] InvalidShare),
}

/// The same, read: what is left out of limits is taken to be this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Memory of each GPU.
    pub memory: Option<MemoryBytes>,
    /// Of each one's time.
    pub share: Option<ComputeShare>,
}

impl Defaults {
    /// The lesser of each.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self { memory: least(self.memory, other.memory), share: least(self.share, other.share) }
    }
}

fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

impl Amounts {
    /// As limits.
    ///
    /// # Errors
    /// When the memory is no quantity of it.
    pub fn limits(&self) -> Result<Limits, InvalidMemory> {
        let memory = self.memory.as_deref().map(str::parse::<MemoryBytes>).transpose()?;
        Ok(Limits { memory, gpus: self.gpus, share: self.share, groups: self.pods })
    }
}

impl GpuQuotaSpec {
    /// What its pods get where they do not say.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pod_defaults(&self) -> Result<Defaults, InvalidQuota> {
        let Some(said) = &self.defaults else { return Ok(Defaults::default()) };
        let memory = said.memory.as_deref().map(str::parse::<MemoryBytes>).transpose()?;
        let share = said.share.map(ComputeShare::new).transpose()?;
        Ok(Defaults { memory: memory.filter(|memory| !memory.is_zero()), share })
    }

    /// What it lets be held, as the quota of that name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn quota(&self, name: &str) -> Result<ClusterQuota, InvalidQuota> {
        let limits = |amounts: &Option<Amounts>| {
            amounts.as_ref().map_or(Ok(Limits::default()), Amounts::limits)
        };
        let models = self.models.iter().map(|of| Ok((of.model.clone(), of.limits.limits()?)));
        let exposures = self.exposures.iter().map(|of| {
            let exposure: Exposure = of.exposure.parse()?;
            Ok((exposure, of.limits.limits()?))
        });
        Ok(ClusterQuota {
            name: name.to_owned(),
            limits: limits(&self.limits)?,
            per_group: limits(&self.per_pod)?,
            models: models.collect::<Result<_, InvalidMemory>>()?,
            exposures: exposures.collect::<Result<_, InvalidQuota>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::CustomResourceExt;

    /// What a pod can ask for can be limited: the API server's rule knows each way.
    #[test]
    fn each_exposure_can_be_limited() {
        let definition = serde_json::to_value(GpuQuota::crd()).unwrap();
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/exposures\
                    /items/properties/exposure/x-kubernetes-validations/0/rule";
        let rule = definition.pointer(path).unwrap().as_str().unwrap();
        let all = Exposure::ALL.map(|exposure| format!("'{exposure}'")).join(", ");
        assert_eq!(rule, format!("self in [{all}]"));
    }
}
