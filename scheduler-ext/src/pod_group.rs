//! Coscheduling's `PodGroup` objects, as far as they matter here: how many pods start together, and
//! how long they wait for each other.
//!
//! Their definition is another project's. So they are read as what they are, fields that may be
//! missing or mean nothing; one that cannot be read lets none of its pods start, and is no hindrance
//! to others.

use std::time::Duration;

use gpuzone_api::kubernetes::GroupSize;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;

/// How the pods of a group start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GangTerms {
    /// So many together, or none.
    pub size: GroupSize,
    /// How long they wait for each other, if that is said.
    pub patience: Option<Duration>,
}

/// Why a `PodGroup` says nothing that can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodGroupError {
    /// No size that a group can have. Without one, it is 0.
    #[error("minMember: {0} is not a number of pods, 1 to 1024")]
    MinMember(i64),
    /// No time.
    #[error("scheduleTimeoutSeconds: {0} is not a number of seconds, 1 or more")]
    Timeout(i64),
    /// Not what the definition has.
    #[error("its spec is none of a PodGroup")]
    Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    min_member: i64,
    schedule_timeout_seconds: Option<i64>,
}

/// Where the API server has them.
pub fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("scheduling.x-k8s.io", "v1alpha1", "PodGroup");
    ApiResource::from_gvk_with_plural(&kind, "podgroups")
}

/// What a `PodGroup` says.
///
/// # Errors
/// When nothing can be done that it says.
pub fn read(object: &DynamicObject) -> Result<GangTerms, PodGroupError> {
    let spec = object.data.get("spec").map_or_else(|| Ok(Spec::default()), Spec::deserialize);
    let spec = spec.map_err(|_| PodGroupError::Spec)?;
    let size = GroupSize::new(spec.min_member);
    let patience = |seconds: i64| match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => Err(PodGroupError::Timeout(seconds)),
    };
    Ok(GangTerms {
        size: size.ok_or(PodGroupError::MinMember(spec.min_member))?,
        patience: spec.schedule_timeout_seconds.map(patience).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value) -> Result<GangTerms, PodGroupError> {
        let object = json!({ "apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
            "metadata": { "namespace": "team", "name": "train" }, "spec": spec });
        read(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_group_has_a_size_and_perhaps_a_time() {
        let spec = json!({ "minMember": 8, "minResources": { "cpu": "3" } });
        let said = of(spec).unwrap();
        assert_eq!((said.size.get(), said.patience), (8, None));
        let said = of(json!({ "minMember": 1, "scheduleTimeoutSeconds": 10 })).unwrap();
        assert_eq!(said.patience, Some(Duration::from_secs(10)));
    }

    #[test]
    fn what_means_nothing_is_said() {
        for (spec, error) in [
            (json!({}), PodGroupError::MinMember(0)),
            (json!({ "minMember": -1 }), PodGroupError::MinMember(-1)),
            (json!({ "minMember": 1025 }), PodGroupError::MinMember(1025)),
            (json!({ "minMember": "8" }), PodGroupError::Spec),
            (json!({ "minMember": 2, "scheduleTimeoutSeconds": 0 }), PodGroupError::Timeout(0)),
        ] {
            assert_eq!(of(spec), Err(error));
        }
        let bare = json!({ "metadata": { "name": "train" } });
        let bare = read(&serde_json::from_value(bare).unwrap());
        assert_eq!(bare, Err(PodGroupError::MinMember(0)), "the definition needs no spec");
    }
}
