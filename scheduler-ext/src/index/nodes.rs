//! Nodes: their GPUs, and what their pods leave of them.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::{NodeName, PodUid};
use gpuzone_core::engine::{GpuKind, GpuRoom, HostDemand, HostRoom, NodeRoom, ShareMilli};
use gpuzone_core::{ComputeShare, Exposure, GpuUuid, Grant, MemoryBytes};
use gpuzone_crds::{GpuEntry, GpuNodeStatus};

use super::Index;
use super::pods::PodEntry;
use super::rooms::RoomId;
use super::usage::Sort;
use crate::ask::instance_class;

/// Of one GPU and profile no more are read.
const MOST_INSTANCES: u32 = 16;

/// What a pod can be given: a GPU or a part of it, or one MIG instance or vGPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// The GPU, or that which the instance is a part of.
    pub(super) gpu: GpuUuid,
    /// What it is. Of an instance its own memory, and a model of its own.
    pub(super) kind: GpuKind,
    /// What there is to be given of its time: of an instance its part of its GPU's.
    pub(super) share: ShareMilli,
}

impl Unit {
    /// Whether a hold is of it.
    fn bears(&self, hold: &Grant) -> bool {
        match self.kind.exposure {
            // Which instance of a profile it is, the kubelet chooses: all that is said is how large.
            Exposure::Mig | Exposure::Vgpu => {
                hold.memory == self.kind.memory && ShareMilli::from(hold.share) == self.share
            }
            Exposure::Mediated | Exposure::Passthrough => true,
        }
    }
}

/// A node.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    /// Whether the API server has a Node of that name.
    pub(super) exists: bool,
    /// Whether the node says which GPUs it has.
    pub(super) reported: bool,
    pub(super) gpus: Vec<Unit>,
    /// What is free of each, in the same order; `None` without GPUs.
    pub(super) room: Option<RoomId>,
    /// What there is beside them for pods.
    pub(super) host: HostRoom,
    /// Those that hold something of it, or will once it reports its GPUs.
    pub(super) pods: BTreeSet<PodUid>,
    /// Pods without GPUs there, and what they take of the host.
    pub(super) others: BTreeMap<PodUid, HostDemand>,
}

impl Node {
    /// What quotas tell a GPU that is held by.
    pub(super) fn sort(&self, hold: &Grant) -> Option<Sort> {
        let found = self.gpus.iter().find(|unit| unit.gpu == hold.gpu && unit.bears(hold));
        found.map(|unit| (unit.kind.model, unit.kind.exposure))
    }

    fn is_nothing(&self) -> bool {
        !self.exists && !self.reported && self.pods.is_empty() && self.others.is_empty()
    }
}

impl Index {
    /// A node that the API server has.
    pub fn apply_node(&mut self, name: &NodeName, host: HostRoom) {
        let node = self.nodes.entry(name.as_str().into()).or_default();
        node.exists = true;
        if node.host != host {
            node.host = host;
            self.refresh(name.as_str());
        }
    }

    /// A node that it has no more.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.exists = false;
        }
        self.drop_nothing(name);
    }

    /// Only these nodes are there.
    pub fn keep_nodes(&mut self, names: &BTreeSet<String>) {
        let gone =
            self.nodes.iter().filter(|(name, node)| node.exists && !names.contains(&***name));
        for name in gone.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.remove_node(&name);
        }
    }

    /// What a node says of its GPUs. One that cannot be read is not used.
    pub fn apply_gpu_node(&mut self, name: &NodeName, status: Option<&GpuNodeStatus>) {
        let entries = status.map(|status| status.gpus.as_slice()).unwrap_or_default();
        let gpus = self.read_gpus(name, entries);
        let node = self.nodes.entry(name.as_str().into()).or_default();
        let count = |units: &[Unit], of: &Unit| units.iter().filter(|unit| *unit == of).count();
        let more = |unit: &&Unit| count(&gpus, unit) > count(&node.gpus, unit);
        let better = gpus.iter().filter(|unit| unit.kind.healthy).any(|unit| more(&unit));
        let same = node.gpus == gpus;
        node.reported = status.is_some();
        node.gpus = gpus;
        if better {
            self.favours.insert(name.clone());
        }
        if !same {
            self.recharge(name);
            self.refresh(name.as_str());
        }
    }

    /// A node that does not say any more which GPUs it has.
    pub fn remove_gpu_node(&mut self, name: &NodeName) {
        self.apply_gpu_node(name, None);
        self.drop_nothing(name.as_str());
    }

    /// Only these nodes say which GPUs they have.
    pub fn keep_gpu_nodes(&mut self, names: &BTreeSet<String>) {
        let gone = self.nodes.iter().filter(|(name, n)| n.reported && !names.contains(&***name));
        let gone: Vec<NodeName> = gone.filter_map(|(name, _)| name.parse().ok()).collect();
        gone.iter().for_each(|name| self.remove_gpu_node(name));
    }

    pub(super) fn drop_nothing(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(Node::is_nothing) {
            self.nodes.remove(name);
        }
    }

    fn read_gpus(&mut self, name: &NodeName, entries: &[GpuEntry]) -> Vec<Unit> {
        let groups = nvlink_groups(entries);
        let mut units: Vec<Unit> = Vec::new();
        for (entry, nvlink) in entries.iter().zip(groups) {
            let memory = MemoryBytes::new(entry.memory_bytes).filter(|memory| !memory.is_zero());
            let (Ok(gpu), Some(memory), Ok(model)) =
                (entry.uuid.parse(), memory, self.models.class_of(&entry.model))
            else {
                tracing::warn!(node = %name, gpu = entry.uuid, "a GPU cannot be read and is not used");
                continue;
            };
            if units.iter().any(|known| known.gpu == gpu) {
                tracing::warn!(node = %name, gpu = %gpu, "a node reports a GPU twice");
                continue;
            }
            let numa = entry.numa_node.and_then(|numa| u16::try_from(numa).ok());
            let (exposure, healthy) = (entry.exposure, entry.healthy);
            let kind = GpuKind { memory, model, exposure, healthy, numa, nvlink };
            match exposure {
                Exposure::Mediated | Exposure::Passthrough => {
                    units.push(Unit { gpu, kind, share: ShareMilli::WHOLE });
                }
                Exposure::Mig if !can_be_together(entry) => {
                    tracing::warn!(node = %name, %gpu, "a GPU reports more MIG instances than can be on one, and none of them is used");
                }
                Exposure::Mig | Exposure::Vgpu => {
                    self.read_instances(entry, gpu, kind, &mut units);
                }
            }
        }
        if units.len() > NodeRoom::MOST_GPUS {
            tracing::warn!(node = %name, most = NodeRoom::MOST_GPUS, "it has more GPUs and instances; the rest is not used");
            units.truncate(NodeRoom::MOST_GPUS);
        }
        units
    }

    fn read_instances(
        &mut self,
        entry: &GpuEntry,
        gpu: GpuUuid,
        kind: GpuKind,
        units: &mut Vec<Unit>,
    ) {
        for part in &entry.partitions {
            let memory = MemoryBytes::new(part.memory_bytes).filter(|memory| !memory.is_zero());
            let class = self.models.class_of(&instance_class(&entry.model, &part.profile));
            let share = part.share_percent.and_then(|share| ComputeShare::new(share).ok());
            let (Some(memory), Ok(model), Some(share)) = (memory, class, share) else {
                tracing::warn!(%gpu, profile = part.profile, "instances cannot be read and are not used");
                continue;
            };
            for number in 0..part.count.min(MOST_INSTANCES) {
                let healthy = kind.healthy && number < part.healthy;
                let kind = GpuKind { memory, model, healthy, ..kind };
                units.push(Unit { gpu, kind, share: share.into() });
            }
        }
    }

    /// Computes what is free of a node from what its pods hold.
    pub(super) fn refresh(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let pods = node.pods.iter().filter_map(|pod| self.pods.get(pod));
        let host = free_of(node.host, pods.clone().map(|entry| entry.host), &node.others);
        let holds = pods.filter_map(PodEntry::held).flat_map(|held| &held.holds);
        let room = room_of(host, &node.gpus, holds);
        node.room = self.rooms.replace(node.room, room);
    }
}

/// Whether a GPU can have all of its MIG instances at once. Which of them are where is the hardware's
/// and the node's to say: they are there before anybody asks for one, and a request takes one of just
/// its profile, so none takes the place of a larger one.
fn can_be_together(entry: &GpuEntry) -> bool {
    let sum = |of: fn(&gpuzone_crds::PartitionEntry) -> u64| {
        let each = entry.partitions.iter().map(|part| of(part).saturating_mul(part.count.into()));
        each.fold(0, u64::saturating_add)
    };
    sum(|part| part.memory_bytes) <= entry.memory_bytes
        && sum(|part| part.share_percent.unwrap_or_default().into()) <= 100
}

/// What pods leave of a node's host. One that has more than there is, as after its node has shrunk, leaves
/// nothing.
fn free_of(
    all: HostRoom,
    pods: impl Iterator<Item = HostDemand>,
    others: &BTreeMap<PodUid, HostDemand>,
) -> HostRoom {
    pods.chain(others.values().copied()).fold(all, |free, taken| HostRoom {
        cpu_milli: free.cpu_milli.saturating_sub(taken.cpu_milli),
        memory: free.memory.checked_sub(taken.memory).unwrap_or(MemoryBytes::ZERO),
    })
}

/// What `holds` leave of a node's GPUs, beside `host`.
pub(super) fn room_of<'a>(
    host: HostRoom,
    units: &[Unit],
    holds: impl Iterator<Item = &'a Grant>,
) -> NodeRoom {
    let mut held = vec![(0_u64, 0_u64); units.len()];
    for hold in holds {
        let at = place_of(units, &held, hold);
        if let Some((memory, share)) = at.and_then(|at| held.get_mut(at)) {
            *memory = memory.saturating_add(hold.memory.get());
            *share = share.saturating_add(hold.share.percent().into());
        }
    }
    let rooms = units.iter().zip(held).map(|(unit, (memory, share))| {
        let memory = unit.kind.memory.checked_sub(MemoryBytes::saturating(memory));
        let share = u64::from(unit.share.get()).saturating_sub(share.saturating_mul(10));
        let share = u16::try_from(share).ok().and_then(ShareMilli::new);
        let memory = memory.unwrap_or(MemoryBytes::ZERO);
        GpuRoom::with_free(unit.kind, memory, share.unwrap_or(ShareMilli::NONE))
    });
    // No more are read than a room has.
    NodeRoom::new(host, rooms.collect()).unwrap_or_default()
}

/// Which unit a hold is of. Of a GPU that is shared the one that it names. Of whole GPUs and instances
/// the kubelet hands out one that is alike, so one that nobody has: a healthy one before others, as the
/// scheduler itself counts, and then that which is named.
fn place_of(units: &[Unit], held: &[(u64, u64)], hold: &Grant) -> Option<usize> {
    let named = units.iter().find(|unit| unit.gpu == hold.gpu && unit.bears(hold));
    let alike = |unit: &Unit| match named.map(|named| named.kind) {
        // Of an instance or a vGPU all that is said is how large it is.
        Some(GpuKind { exposure: part @ (Exposure::Mig | Exposure::Vgpu), .. }) => {
            unit.kind.exposure == part && unit.bears(hold)
        }
        None => matches!(unit.kind.exposure, Exposure::Mig | Exposure::Vgpu) && unit.bears(hold),
        Some(GpuKind { exposure: Exposure::Passthrough, model, memory, .. }) => {
            (unit.kind.exposure, unit.kind.model, unit.kind.memory)
                == (Exposure::Passthrough, model, memory)
        }
        Some(GpuKind { exposure: Exposure::Mediated, .. }) => unit.gpu == hold.gpu,
    };
    let of = units.iter().zip(held).enumerate().filter(|(_, (unit, _))| alike(unit));
    let order = |(unit, (memory, _)): (&Unit, &(u64, u64))| {
        (*memory > 0, !unit.kind.healthy, unit.gpu != hold.gpu)
    };
    of.min_by_key(|(_, at)| order(*at)).map(|(at, _)| at)
}

/// For each GPU the number of its group that NVLink joins, if it joins it with any.
fn nvlink_groups(entries: &[GpuEntry]) -> Vec<Option<u16>> {
    let mut group: Vec<usize> = (0..entries.len()).collect();
    for (at, entry) in entries.iter().enumerate() {
        for peer in &entry.nvlink_peers {
            let Some(other) = entries.iter().position(|entry| entry.uuid == *peer) else {
                continue;
            };
            let both = (group.get(at).copied(), group.get(other).copied());
            let (Some(one), Some(two)) = both else { continue };
            group.iter_mut().filter(|group| **group == two).for_each(|group| *group = one);
        }
    }
    let alone = |of: &usize| group.iter().filter(|group| *group == of).count() < 2;
    group.iter().map(|of| if alone(of) { None } else { u16::try_from(*of).ok() }).collect()
}
