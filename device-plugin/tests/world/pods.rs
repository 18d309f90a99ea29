//! Pods of the model: what they have, and how far they are.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::{PLACEMENT_ANNOTATION, PodPlacement};
use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes, Placement};
use gpuzone_testkit::kubernetes::{ContainerKind, ContainerSpec, ContainerState, Pod};

use super::{NODE, Random};

/// A pod, and what has become of its containers.
#[derive(Clone)]
pub(crate) struct PodRun {
    /// As the kubelet has it.
    pub(crate) pod: Pod,
    /// As the API server has it: of a static pod, its mirror, which has another UID.
    pub(crate) mirror: Pod,
    /// Whether it came by the extender. If not, nothing of it may ever have a lease.
    pub(crate) placed: bool,
    pub(crate) states: BTreeMap<String, ContainerState>,
}

/// What a pod's next step is.
pub(crate) enum Next {
    /// To start one of these, for the first time or again.
    Start(Vec<ContainerSpec>),
    /// Its init container comes to its end.
    Finish(String),
}

impl PodRun {
    /// A pod of one container with one slot.
    pub(crate) fn simple(number: u32, gpus: &[GpuUuid]) -> Self {
        let (name, uid) = (format!("p{}", number % 5), format!("uid-{number}"));
        Self::placed(Pod::new("team", &name, &uid, 1), gpus)
    }

    /// Names come again, as a StatefulSet's do; UIDs never.
    pub(crate) fn random(number: u32, random: &mut Random, gpus: &[GpuUuid]) -> Self {
        let (name, uid) = (format!("p{}", number % 5), format!("uid-{number}"));
        let mut slots = || 1 + usize::from(random.below(4) == 0);
        let mut pod = Pod::new("team", &name, &uid, slots());
        let (second, inits, sidecar) = (slots(), [slots(), slots()], slots());
        if random.below(3) == 0 {
            pod = pod.with("other", ContainerKind::App, second);
        }
        for (number, slots) in inits.into_iter().enumerate().take(random.below(6).saturating_sub(3))
        {
            pod = pod.with(&format!("init-{number}"), ContainerKind::Init, slots);
        }
        if random.below(4) == 0 {
            pod = pod.with("sidecar", ContainerKind::Sidecar, sidecar);
        }
        if random.below(8) > 0 {
            return Self::placed(pod, gpus);
        }
        // A static pod: the kubelet's own, and a mirror of it in the API server.
        let mirror = Pod { uid: format!("mirror-{number}"), ..pod.clone() };
        Self { pod, mirror, placed: false, states: BTreeMap::new() }
    }

    fn placed(pod: Pod, gpus: &[GpuUuid]) -> Self {
        let grant = |gpu: &GpuUuid| Grant {
            gpu: *gpu,
            memory: MemoryBytes::mib(2),
            share: ComputeShare::new(1).unwrap(),
        };
        let given = pod.containers.iter().map(|container| {
            let grants = gpus.iter().take(container.devices).map(grant).collect();
            (container.name.parse().unwrap(), Placement::of(grants).unwrap())
        });
        let (node, uid) = (NODE.parse().unwrap(), pod.uid.parse().unwrap());
        let placement = PodPlacement::new(node, uid, given.collect()).unwrap();
        let pod = pod.annotated(PLACEMENT_ANNOTATION, placement);
        Self { mirror: pod.clone(), pod, placed: true, states: BTreeMap::new() }
    }

    /// Init containers one after the other, those that last before those behind them, and then all
    /// others.
    pub(crate) fn next(&self) -> Next {
        let mut startable = Vec::new();
        for container in &self.pod.containers {
            let state = self.states.get(&container.name);
            match (container.kind, state) {
                (ContainerKind::Init, Some(ContainerState::Done)) => continue,
                (ContainerKind::Init, Some(ContainerState::Running)) => {
                    return Next::Finish(container.name.clone());
                }
                (ContainerKind::Init, None) => return Next::Start(vec![container.clone()]),
                (ContainerKind::Sidecar, None) => {
                    startable.push(container.clone());
                    return Next::Start(startable);
                }
                (ContainerKind::Sidecar | ContainerKind::App, _) => {
                    startable.push(container.clone());
                }
            }
        }
        Next::Start(startable)
    }

    /// The containers that last.
    pub(crate) fn lasting(&self) -> impl Iterator<Item = &ContainerSpec> {
        self.pod.containers.iter().filter(|c| c.kind != ContainerKind::Init)
    }

    pub(crate) fn phase(&self) -> &'static str {
        let runs = |c: &ContainerSpec| self.states.contains_key(&c.name);
        if self.lasting().all(runs) { "Running" } else { "Pending" }
    }
}
