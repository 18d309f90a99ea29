//! The cluster's quotas that hold for a pod, read anew each time: what is not known lets nothing
//! start.

use std::collections::BTreeMap;

use gpuzone_core::ClusterQuota;
use gpuzone_crds::{GpuQuota, InvalidQuota};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::core::{Selector, SelectorExt};

use super::{ApiLink, LinkError, within};
use crate::config::WithoutQuota;

/// Why quotas let a container not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuotaError {
    /// They are not known.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// One cannot be read.
    #[error(
        "GpuQuota '{quota}' cannot be read and lets nothing start: {reason}; an administrator corrects it"
    )]
    Unreadable {
        /// Which.
        quota: String,
        /// Why.
        reason: String,
    },
    /// There is none.
    #[error(
        "no GpuQuota holds for the namespace '{0}'; an administrator creates one whose namespaceSelector matches its labels"
    )]
    None(String),
}

impl ApiLink {
    /// The quotas that hold for a namespace with these labels.
    ///
    /// # Errors
    /// When they cannot be read, or there is none and there has to be one.
    pub(crate) async fn quotas(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<ClusterQuota>, QuotaError> {
        let quotas: Api<GpuQuota> = Api::all(self.client.clone());
        let listed = within("list gpuquotas", quotas.list(&ListParams::default())).await?;
        let holding = holding(&listed.items, labels)?;
        match (holding.is_empty(), self.without_quota) {
            (true, WithoutQuota::Refuse) => Err(QuotaError::None(namespace.to_owned())),
            (true, WithoutQuota::Admit) | (false, _) => Ok(holding),
        }
    }
}

fn holding(
    quotas: &[GpuQuota],
    labels: &BTreeMap<String, String>,
) -> Result<Vec<ClusterQuota>, QuotaError> {
    let mut holding = Vec::new();
    for quota in quotas {
        let name = quota.name_any();
        let unreadable = |reason: String| QuotaError::Unreadable { quota: name.clone(), reason };
        // One whose selector cannot be read may be meant for anybody.
        let selector = Selector::try_from(quota.spec.namespace_selector.clone())
            .map_err(|error| unreadable(format!("namespaceSelector: {error}")))?;
        if selector.matches(labels) {
            let read = quota.spec.quota(&name);
            holding.push(read.map_err(|error: InvalidQuota| unreadable(error.to_string()))?);
        }
    }
    Ok(holding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn quota(name: &str, spec: serde_json::Value) -> GpuQuota {
        serde_json::from_value(json!({ "apiVersion": "gpuzone.dev/v1alpha1", "kind": "GpuQuota",
            "metadata": { "name": name }, "spec": spec }))
        .unwrap()
    }

    #[test]
    fn those_that_match_hold_and_one_that_cannot_be_read_lets_nothing_start() {
        let team = json!({ "matchLabels": { "team": "a" } });
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let all = [
            quota("mine", json!({ "namespaceSelector": team, "perPod": { "memory": "8Gi" } })),
            quota(
                "other",
                json!({ "namespaceSelector": { "matchLabels": { "team": "b" } },
                "limits": { "memory": "many" } }),
            ),
        ];
        let held = holding(&all, &labels).unwrap();
        assert_eq!(held.iter().map(|quota| quota.name.as_str()).collect::<Vec<_>>(), ["mine"]);
        let wrong =
            [quota("bad", json!({ "namespaceSelector": team, "limits": { "memory": "many" } }))];
        let error = holding(&wrong, &labels).unwrap_err().to_string();
        assert!(error.contains("'bad' cannot be read") && error.contains("many"), "{error}");
        let selector = json!({ "matchExpressions": [{ "key": "a", "operator": "Near" }] });
        let wrong = [quota("odd", json!({ "namespaceSelector": selector }))];
        assert!(holding(&wrong, &BTreeMap::new()).is_err());
    }
}
