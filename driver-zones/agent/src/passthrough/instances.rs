//! MIG instances that the agent makes at its start, at the places that the configuration names, and
//! ends at the first start without them.

use std::collections::BTreeMap;

use gpuzone_core::{GpuUuid, MigProfile};
use gpuzone_hw::actions::{Change, Devices, Writes};

use crate::config::WantedInstance;
use crate::errors::sentence;

/// For whom one is made: of another size it is another.
fn owner(profile: &MigProfile) -> String {
    format!("the configuration's {profile}")
}

/// Those of each GPU.
type Wanted = BTreeMap<GpuUuid, Vec<WantedInstance>>;

/// Ends what was made here and is not to be any more. What somebody uses stays.
pub(super) fn give_back<W: Writes>(devices: &mut Devices<W>, wanted: &Wanted) {
    for action in devices.kept().to_vec() {
        let Some(Change::GpuInstance { place, .. }) = action.changes.first() else { continue };
        let mut of_gpu = wanted.get(&place.gpu).into_iter().flatten();
        let made_for = action.owner.as_deref().unwrap_or_default();
        if of_gpu.any(|of| of.start == place.at.start && owner(&of.profile) == made_for) {
            continue;
        }
        match devices.end_instance(place.gpu, place.at.start, made_for) {
            Ok(()) => {
                tracing::info!(what = action.what, "undone: the configuration has it no more");
            }
            Err(error) => {
                let reason = sentence(&error);
                tracing::error!(what = action.what, reason, "it cannot be undone");
            }
        }
    }
}

/// Makes all of them. One that cannot be made is not there, and the others serve.
pub(super) fn make_all<W: Writes>(devices: &mut Devices<W>, wanted: &Wanted) {
    for (gpu, instances) in wanted {
        for WantedInstance { profile, start } in instances {
            match devices.make_instance(*gpu, profile, *start, &owner(profile)) {
                Ok(made) => {
                    let device = made.computes.iter().find_map(|compute| compute.uuid);
                    let device = device.map(|uuid| uuid.to_string());
                    tracing::info!(%gpu, %profile, start, device, "a MIG instance is there");
                }
                Err(error) => {
                    let reason = sentence(&error);
                    tracing::error!(%gpu, %profile, start, reason, "a MIG instance is not made");
                }
            }
        }
    }
}
