//! Stand-ins of a node's kubelet and of an API server, for a device plugin's tests.
//!
//! The kubelet does what the real one does where a plugin can tell the difference: it allocates
//! at admission, one container after the other, lets app containers take over what init
//! containers held, keeps a checkpoint, forgets its plugins when it restarts and empties its
//! folder, and calls PreStartContainer only for a plugin that is registered. It has any number of
//! resources, each with its plugin.

mod access;
mod api_server;
mod cluster;
mod container;
mod devices;
mod kubelet;
mod services;

use std::collections::BTreeMap;

pub use access::Used;
pub use api_server::ApiServer;
pub use cluster::{BindFault, ClusterApi};
pub use container::Container;
pub use kubelet::{AdmitError, Kubelet, StartError};

/// A container of a test's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// How many devices it asks for, of the resource that the kubelet was started for.
    pub devices: usize,
    /// How many of others.
    pub others: BTreeMap<String, usize>,
    /// What kind it is.
    pub kind: ContainerKind,
}

/// What kind of container it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// An app container.
    App,
    /// An init container that ends before the others begin.
    Init,
    /// An init container that runs on.
    Sidecar,
}

/// What has become of a container that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs.
    Running,
    /// It has ended well.
    Done,
}

/// A test's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerSpec>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Pod {
    /// A pod with one app container, `app`, that asks for `devices`.
    pub fn new(namespace: &str, name: &str, uid: &str, devices: usize) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            containers: Vec::new(),
            annotations: Default::default(),
        }
        .with("app", ContainerKind::App, devices)
    }

    /// The same with one container more.
    #[must_use]
    pub fn with(mut self, name: &str, kind: ContainerKind, devices: usize) -> Self {
        let others = BTreeMap::new();
        let spec = ContainerSpec { name: name.into(), devices, others, kind };
        match kind {
            ContainerKind::App => self.containers.push(spec),
            // In front of the app containers, behind the other init containers.
            ContainerKind::Init | ContainerKind::Sidecar => {
                let app = |c: &ContainerSpec| c.kind == ContainerKind::App;
                let at = self.containers.iter().position(app).unwrap_or(self.containers.len());
                self.containers.insert(at, spec);
            }
        }
        self
    }

    /// The same, whose container of that name asks for so many of another resource, too.
    #[must_use]
    pub fn asking(mut self, container: &str, resource: &str, count: usize) -> Self {
        for spec in self.containers.iter_mut().filter(|spec| spec.name == container) {
            spec.others.insert(resource.into(), count);
        }
        self
    }

    /// The same with an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: impl ToString) -> Self {
        self.annotations.insert(key.into(), value.to_string());
        self
    }
}
