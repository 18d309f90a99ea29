//! Nodes: their GPUs, and what their pods leave of them.

use std::collections::BTreeSet;

use gpuzone_api::kubernetes::{NodeName, PodUid};
use gpuzone_core::engine::{GpuKind, GpuRoom, HostRoom, ModelClass, NodeRoom, ShareMilli};
use gpuzone_core::{GpuUuid, MemoryBytes};
use gpuzone_crds::{GpuEntry, GpuNodeStatus};

use super::Index;
use super::rooms::RoomId;

/// A node.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    /// Whether the API server has a Node of that name.
    pub(super) exists: bool,
    /// Whether the node says which GPUs it has.
    pub(super) reported: bool,
    pub(super) gpus: Vec<(GpuUuid, GpuKind)>,
    /// What is free of each, in the same order; `None` without GPUs.
    pub(super) room: Option<RoomId>,
    /// Those that hold something of it, or will once it reports its GPUs.
    pub(super) pods: BTreeSet<PodUid>,
}

impl Node {
    pub(super) fn model(&self, gpu: GpuUuid) -> Option<ModelClass> {
        let found = self.gpus.iter().find(|(uuid, _)| *uuid == gpu);
        found.map(|(_, kind)| kind.model)
    }

    fn is_nothing(&self) -> bool {
        !self.exists && !self.reported && self.pods.is_empty()
    }
}

impl Index {
    /// A node that the API server has.
    pub fn apply_node(&mut self, name: &NodeName) {
        self.nodes.entry(name.as_str().into()).or_default().exists = true;
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
        let better = gpus.iter().any(|(uuid, kind)| {
            let before = node.gpus.iter().find(|(known, _)| known == uuid).map(|(_, kind)| kind);
            before.is_none_or(|before| {
                (kind.healthy && !before.healthy)
                    || kind.memory > before.memory
                    || kind.exposure != before.exposure
            })
        });
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

    fn read_gpus(&mut self, name: &NodeName, entries: &[GpuEntry]) -> Vec<(GpuUuid, GpuKind)> {
        let groups = nvlink_groups(entries);
        let mut gpus: Vec<(GpuUuid, GpuKind)> = Vec::new();
        for (entry, nvlink) in entries.iter().zip(groups).take(NodeRoom::MOST_GPUS) {
            let memory = MemoryBytes::new(entry.memory_bytes).filter(|memory| !memory.is_zero());
            let (Ok(uuid), Some(memory), Ok(model)) =
                (entry.uuid.parse(), memory, self.models.class_of(&entry.model))
            else {
                tracing::warn!(node = %name, gpu = entry.uuid, "a GPU cannot be read and is not used");
                continue;
            };
            if gpus.iter().any(|(known, _)| *known == uuid) {
                tracing::warn!(node = %name, gpu = %uuid, "a node reports a GPU twice");
                continue;
            }
            let numa = entry.numa_node.and_then(|numa| u16::try_from(numa).ok());
            let (exposure, healthy) = (entry.exposure, entry.healthy);
            gpus.push((uuid, GpuKind { memory, model, exposure, healthy, numa, nvlink }));
        }
        gpus
    }

    /// Computes what is free of a node's GPUs from what its pods hold.
    pub(super) fn refresh(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let mut held = vec![(0_u64, 0_u64); node.gpus.len()];
        for pod in &node.pods {
            let holds = self.pods.get(pod).and_then(|entry| entry.held()).map(|held| &held.holds);
            for hold in holds.into_iter().flatten() {
                let at = node.gpus.iter().position(|(uuid, _)| *uuid == hold.gpu);
                if let Some((memory, share)) = at.and_then(|at| held.get_mut(at)) {
                    *memory = memory.saturating_add(hold.memory.get());
                    *share = share.saturating_add(hold.share.percent().into());
                }
            }
        }
        let rooms = node.gpus.iter().zip(held).map(|((_, kind), (memory, share))| {
            let memory = kind.memory.checked_sub(MemoryBytes::saturating(memory));
            let share = 1000_u64.saturating_sub(share.saturating_mul(10));
            let share = u16::try_from(share).ok().and_then(ShareMilli::new);
            let memory = memory.unwrap_or(MemoryBytes::ZERO);
            GpuRoom::with_free(*kind, memory, share.unwrap_or(ShareMilli::NONE))
        });
        // No more GPUs are read than a room has.
        let room = NodeRoom::new(HostRoom::default(), rooms.collect()).unwrap_or_default();
        node.room = self.rooms.replace(node.room, room);
    }
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
