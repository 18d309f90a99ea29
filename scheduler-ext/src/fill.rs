//! What a pod's author left out of its limits, filled in when the pod is created: one GPU where only a
//! part of one is asked for, and what the namespace's quotas say that a container gets by default.
//!
//! It goes into the limits themselves, so that all who count them count the same. What the author wrote
//! stays, also a 0.

use gpuzone_api::kubernetes::{
    ContainerRequest, Handed, RequestError, ResourceName, ResourceNames,
};
use gpuzone_crds::Defaults;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// One limit that was filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Where it stands in the pod, as a JSON pointer.
    pub(crate) path: String,
    /// The container's name.
    pub(crate) container: String,
    /// Of what.
    pub(crate) resource: ResourceName,
    /// How much.
    pub(crate) number: u64,
}

/// Fills in what is left out, in the pod, too.
pub(crate) fn fill(pod: &mut Pod, names: &ResourceNames, defaults: Defaults) -> Vec<Filled> {
    let Some(spec) = pod.spec.as_mut() else { return Vec::new() };
    let inits = spec.init_containers.iter_mut().flatten().enumerate();
    let inits = inits.map(|(at, container)| (format!("/spec/initContainers/{at}"), container));
    let apps = spec.containers.iter_mut().enumerate();
    let apps = apps.map(|(at, container)| (format!("/spec/containers/{at}"), container));
    let each = inits.chain(apps);
    each.flat_map(|(path, container)| fill_one(&path, container, names, defaults)).collect()
}

fn fill_one(
    path: &str,
    container: &mut Container,
    names: &ResourceNames,
    defaults: Defaults,
) -> Vec<Filled> {
    let name = container.name.clone();
    let Some(limits) = container.resources.as_mut().and_then(|of| of.limits.as_mut()) else {
        return Vec::new();
    };
    let mut filled = Vec::new();
    // At most a count, memory and a share.
    for _ in 0..3 {
        let plain = limits.iter().map(|(name, limit)| (name.clone(), limit.0.clone())).collect();
        let read = ContainerRequest::from_limits(names, &plain);
        let Some((resource, number)) = left_out(&read, names, defaults) else { break };
        if limits.contains_key(resource.as_str()) {
            break;
        }
        limits.insert(resource.as_str().to_owned(), Quantity(number.to_string()));
        let key = resource.as_str().replace('~', "~0").replace('/', "~1");
        let path = format!("{path}/resources/limits/{key}");
        filled.push(Filled { path, container: name.clone(), resource: resource.clone(), number });
    }
    filled
}

/// The next thing that these limits leave out, and what it is taken to be.
fn left_out<'a>(
    read: &Result<Option<ContainerRequest>, RequestError>,
    names: &'a ResourceNames,
    defaults: Defaults,
) -> Option<(&'a ResourceName, u64)> {
    match read {
        Err(RequestError::NoGpu { .. }) => Some((&names.gpu, 1)),
        Ok(Some(request)) if request.handed == Handed::Mediated => {
            match (request.memory, request.share) {
                (None, _) => {
                    let memory = defaults.memory?;
                    Some((&names.memory_mib, memory.get().div_ceil(1 << 20)))
                }
                (Some(_), None) => Some((&names.share, defaults.share?.percent().into())),
                (Some(_), Some(_)) => None,
            }
        }
        Ok(_) | Err(_) => None,
    }
}
