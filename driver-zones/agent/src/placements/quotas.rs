//! Quotas of the cluster, as they come with a placed lease.

use std::collections::BTreeSet;

use gpuzone_api::placements::v1 as proto;
use gpuzone_api::{AgentError, HolderName};
use gpuzone_core::{ClusterQuota, ClusterTerms, Exposure, Limits, MemoryBytes};

use super::invalid;

/// More quotas do not hold for one lease.
const MOST: usize = 256;

/// What a lease is placed under; `None` where no quota of the cluster holds for it.
///
/// # Errors
/// When a quota cannot be read: then the lease is not made.
pub(super) fn terms(
    quotas: Vec<proto::ClusterQuota>,
    group: &str,
) -> Result<Option<ClusterTerms>, AgentError> {
    if quotas.is_empty() {
        return Ok(None);
    }
    if quotas.len() > MOST {
        return Err(invalid(format!(
            "{} quotas hold for one lease; {MOST} is the most",
            quotas.len()
        )));
    }
    let group: HolderName = group.parse().map_err(invalid)?;
    let quotas = quotas.into_iter().map(quota).collect::<Result<Vec<_>, _>>()?;
    let names: BTreeSet<&str> = quotas.iter().map(|quota| quota.name.as_str()).collect();
    if names.len() != quotas.len() {
        return Err(invalid("two quotas that hold for a lease bear one name"));
    }
    Ok(Some(ClusterTerms { group: group.to_string(), quotas }))
}

fn quota(message: proto::ClusterQuota) -> Result<ClusterQuota, AgentError> {
    let proto::ClusterQuota { name, limits: all, per_group, models, exposures } = message;
    if name.is_empty() || name.len() > 253 || name.chars().any(char::is_control) {
        return Err(invalid(format!("'{}' is no quota's name", super::shown(&name))));
    }
    let models = models.into_iter().map(|model| Ok((model.name, limits(model.limits)?)));
    let exposures = exposures.into_iter().map(|of| {
        let exposure: Exposure = of.name.parse().map_err(invalid)?;
        Ok((exposure, limits(of.limits)?))
    });
    Ok(ClusterQuota {
        limits: limits(all)?,
        per_group: limits(per_group)?,
        models: models.collect::<Result<_, AgentError>>()?,
        exposures: exposures.collect::<Result<_, AgentError>>()?,
        name,
    })
}

fn limits(message: Option<proto::Limits>) -> Result<Limits, AgentError> {
    let Some(proto::Limits { memory_bytes, gpus, share_percent, groups }) = message else {
        return Ok(Limits::default());
    };
    let memory = memory_bytes.map(|bytes| {
        MemoryBytes::new(bytes).ok_or_else(|| invalid("a quota of more memory than there can be"))
    });
    Ok(Limits { memory: memory.transpose()?, gpus, share: share_percent, groups })
}
