//! What gpu-zone's programs do at the API server, and may do there.
//!
//! The chart's roles are made of these tables (`cargo xtask crds`), and the tests' API server
//! refuses what is not in them.

/// Verbs on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The API group; empty is the core group.
    pub group: &'static str,
    /// The resource in plural, with its subresource, like `gpunodes/status`.
    pub resource: &'static str,
    /// What is done to it.
    pub verbs: &'static [&'static str],
}

/// Of the device plugin. Without the last three it does the rest, and says what is missing.
///
/// Whoever applies an object that is not there needs `create` as well as `patch`.
pub const DEVICE_PLUGIN_ACCESS: &[Access] = &[
    Access { group: "", resource: "pods", verbs: &["get", "list", "watch"] },
    Access { group: "", resource: "namespaces", verbs: &["get"] },
    Access { group: "gpuzone.dev", resource: "gpuquotas", verbs: &["list"] },
    Access { group: "gpuzone.dev", resource: "gpunodes", verbs: &["get", "create", "patch"] },
    Access { group: "gpuzone.dev", resource: "gpunodes/status", verbs: &["patch"] },
    Access { group: "events.k8s.io", resource: "events", verbs: &["create", "patch"] },
    Access { group: "", resource: "nodes", verbs: &["get"] },
    Access { group: "", resource: "nodes/status", verbs: &["patch"] },
];

/// Of the scheduler extender, in the whole cluster.
pub const SCHEDULER_EXT_ACCESS: &[Access] = &[
    Access { group: "", resource: "pods", verbs: &["get", "list", "watch"] },
    Access { group: "", resource: "pods/binding", verbs: &["create"] },
    // Of each node one annotation, to wake pods that wait.
    Access { group: "", resource: "nodes", verbs: &["list", "watch", "patch"] },
    Access { group: "", resource: "namespaces", verbs: &["list", "watch"] },
    Access { group: "gpuzone.dev", resource: "gpunodes", verbs: &["list", "watch"] },
    Access { group: "gpuzone.dev", resource: "gpuquotas", verbs: &["list", "watch"] },
    Access { group: "gpuzone.dev", resource: "gpuquotas/status", verbs: &["patch"] },
    // Coscheduling's. Clusters that do not have it answer that there is none.
    Access { group: "scheduling.x-k8s.io", resource: "podgroups", verbs: &["list", "watch"] },
];

/// Of the scheduler extender, in its own namespace: who leads, and where that one is reached.
pub const SCHEDULER_EXT_OWN_ACCESS: &[Access] = &[
    Access {
        group: "coordination.k8s.io",
        resource: "leases",
        verbs: &["get", "create", "update"],
    },
    Access { group: "discovery.k8s.io", resource: "endpointslices", verbs: &["create", "patch"] },
];

/// Of the scheduler extender, in the whole cluster, where it takes back what is guaranteed.
pub const SCHEDULER_EXT_RECLAIM_ACCESS: &[Access] =
    &[Access { group: "", resource: "pods/eviction", verbs: &["create"] }];
