//! A node's GPUs as the allocator of devices sees them. It alone judges what can be given beside
//! what: leases of whole GPUs, shares of them, MIG instances and vGPUs all ask it.
//!
//! What a GPU is handed over as is the configuration's word and may change while leases go on, so a
//! device offers all that its hardware can be, and the allocator says what excludes what.

use std::collections::{BTreeMap, BTreeSet};

use crate::devices::{
    Allocator, Device, Held, Mode, PartKind, PartMode, Portion, RestoreRefusal, Room, Slices, Why,
};
use crate::{Exposure, Gpu, GpuUuid, Grant, Inventory};

/// A part of a GPU that is made already, by kind.
struct Made {
    uuid: GpuUuid,
    mode: PartMode,
    kind: String,
}

fn made(inventory: &Inventory, gpu: GpuUuid) -> impl Iterator<Item = Made> {
    let instances = inventory.instances(gpu).map(|instance| Made {
        uuid: instance.uuid,
        mode: PartMode::Mig,
        kind: instance.profile.to_string(),
    });
    let vgpus = inventory.vgpus(gpu).map(|vgpu| Made {
        uuid: vgpu.uuid,
        mode: vgpu.mode,
        kind: vgpu.kind.to_string(),
    });
    instances.chain(vgpus)
}

/// An allocator of which nobody holds anything.
pub(crate) fn allocator(inventory: &Inventory) -> Allocator {
    Allocator::new(inventory.gpus().iter().map(|gpu| device(inventory, gpu)))
}

fn device(inventory: &Inventory, gpu: &Gpu) -> Device {
    let mut kinds: BTreeMap<(PartMode, String), Vec<Slices>> = BTreeMap::new();
    // Each part that was made is a place of its own: what the hardware had to say of places was
    // said when it was made.
    for (at, part) in (0..).zip(made(inventory, gpu.uuid)) {
        kinds.entry((part.mode, part.kind)).or_default().extend(Slices::new(at, 1));
    }
    let kind =
        |((mode, name), places)| PartKind { mode, name, memory: None, room: Room::At(places) };
    let in_mig_mode = inventory.exposure(gpu.uuid) == Exposure::Mig;
    Device {
        address: gpu.pci,
        mediated: (!in_mig_mode).then_some(gpu.memory),
        whole: !in_mig_mode,
        kinds: kinds.into_iter().map(kind).collect(),
        beside: BTreeSet::new(),
    }
}

/// What a grant is of its device, handed over as `exposure` says.
pub(crate) fn portion(inventory: &Inventory, exposure: Exposure, grant: &Grant) -> Option<Held> {
    let unit = inventory.unit(grant.gpu)?;
    let portion = match exposure {
        Exposure::Mediated => Portion::Mediated { memory: grant.memory, share: grant.share },
        Exposure::Passthrough => Portion::Whole,
        Exposure::Mig | Exposure::Vgpu => {
            let part = made(inventory, unit.gpu.uuid).find(|part| part.uuid == grant.gpu)?;
            let alike = made(inventory, unit.gpu.uuid)
                .filter(|other| other.mode == part.mode && other.kind == part.kind);
            let place = alike.take_while(|other| other.uuid != part.uuid).count();
            Portion::Part { mode: part.mode, kind: part.kind, place: u32::try_from(place).ok()? }
        }
    };
    Some(Held { device: unit.gpu.pci, portion })
}

/// The mode that stands in the way, if one does.
pub(crate) fn other_mode(refused: &RestoreRefusal) -> Option<Mode> {
    match refused {
        RestoreRefusal::Contradiction { why: Why::Excluded(mode), .. } => Some(*mode),
        RestoreRefusal::Contradiction {
            why: Why::Out(_) | Why::NotOffered | Why::OtherKind(_) | Why::NoPlace | Why::Less { .. },
            ..
        }
        | RestoreRefusal::Unknown(_) => None,
    }
}
