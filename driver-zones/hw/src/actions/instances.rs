use gpuzone_core::{GpuUuid, MigProfile};

use super::{Action, ActionError, Change, Devices, Subject, Writes};
use crate::holders::Holder;
use crate::mig::{GpuInstance, MigError, MigKind, MigLayout, MigPlace, MigPlacement};

impl<W: Writes> Devices<W> {
    /// Makes a MIG instance for `owner` at a place: a GPU instance, and in it one compute instance
    /// that is all of it. The same again is no error.
    ///
    /// # Errors
    /// When the GPU is not in MIG mode, has no such profile or not there, something else is there,
    /// or the driver refuses; all is as before then.
    pub fn make_instance(
        &mut self,
        gpu: GpuUuid,
        profile: &MigProfile,
        start: u32,
        owner: &str,
    ) -> Result<GpuInstance, ActionError> {
        self.check_finished(&Subject::Gpu(gpu))?;
        let layout = self.writer.layout(gpu)?;
        if !layout.enabled {
            return Err(MigError::ModeOff(gpu).into());
        }
        let (kind, at) = fit(gpu, &layout, profile, start)?;
        let (id, name) = (kind.id, kind.name.clone());
        let place = MigPlace { gpu, kind: id, at };
        let kept = self.kept_with(at_place(gpu, start)).cloned();
        let same = |kept: &Action| {
            let here = kept.changes.iter().filter_map(Change::place).any(|of| *of == place);
            here && kept.owner.as_deref() == Some(owner)
        };
        if let (Some(found), true) = (layout.at(&place), kept.as_ref().is_some_and(same)) {
            if found.is_whole() {
                return Ok(found.clone());
            }
            self.check_ours(&layout, &place)?;
        }
        // What was ours and is gone, or is a half of it, by somebody else's hand.
        if let Some(kept) = kept.filter(same) {
            self.take_back(&kept)?;
        }
        let layout = self.writer.layout(gpu)?;
        if let Some(other) = layout.instances.iter().find(|of| of.placement.overlaps(at)) {
            return Err(self.overlaps(gpu, at, other, &layout).into());
        }
        let change = |compute| match compute {
            false => Change::GpuInstance { place, from: false, to: true },
            true => Change::ComputeInstance { place, from: false, to: true },
        };
        let what = format!("make the MIG instance {name} at {at} of GPU {gpu}");
        let (owner, changes) = (Some(owner.to_owned()), vec![change(false), change(true)]);
        self.run(Action { what, owner, changes, ..Action::default() })?;
        let made = self.writer.layout(gpu)?.at(&place).cloned();
        Ok(made.ok_or(MigError::UnknownGpu(gpu))?)
    }

    /// Ends the MIG instance of `owner` that begins at a memory slice. One that is gone is no error.
    ///
    /// # Errors
    /// When it is another's or was not made here, somebody uses it, or the driver refuses: it is
    /// there as before then.
    pub fn end_instance(
        &mut self,
        gpu: GpuUuid,
        start: u32,
        owner: &str,
    ) -> Result<(), ActionError> {
        self.check_finished(&Subject::Gpu(gpu))?;
        let layout = self.writer.layout(gpu)?;
        let kept = self.kept_with(at_place(gpu, start)).cloned();
        let place = kept.as_ref().and_then(|kept| kept.changes.iter().find_map(Change::place));
        let ours = kept.as_ref().is_some_and(|kept| kept.owner.as_deref() == Some(owner));
        let (true, Some(kept), Some(place)) = (ours, &kept, place) else {
            let there = layout.instances.iter().find(|of| of.placement.start == start);
            let Some(there) = there else {
                return Ok(());
            };
            let owner_of_it = self.instance_owner(gpu, there.placement);
            return Err(MigError::Foreign {
                gpu,
                place: there.placement,
                asked: owner.to_owned(),
                owner: owner_of_it,
            }
            .into());
        };
        self.check_ours(&layout, place)?;
        if let Some(found) = layout.at(place) {
            self.check_instance_free(gpu, found)?;
        }
        self.take_back(kept)
    }

    /// For whom the MIG instance at a place was made here.
    pub fn instance_owner(&self, gpu: GpuUuid, at: MigPlacement) -> Option<String> {
        let here = |change: &Change| {
            change.place().is_some_and(|place| place.gpu == gpu && place.at == at)
        };
        self.kept_with(here).and_then(|kept| kept.owner.clone())
    }

    fn overlaps(
        &self,
        gpu: GpuUuid,
        asked: MigPlacement,
        other: &GpuInstance,
        layout: &MigLayout,
    ) -> MigError {
        let name = layout.kind(other.kind).map_or("?", |kind| kind.name.as_str()).to_owned();
        let (number, taken) = (other.number, other.placement);
        let owner = self.instance_owner(gpu, taken);
        MigError::Overlaps { gpu, asked, number, name, taken, owner }
    }

    /// No compute instance in it is somebody else's.
    fn check_ours(&self, layout: &MigLayout, place: &MigPlace) -> Result<(), MigError> {
        let Some(found) = layout.at(place) else { return Ok(()) };
        match found.computes.len() {
            others if others > 0 && !found.is_whole() => {
                let (gpu, number) = (place.gpu, found.number);
                Err(MigError::Others { gpu, number, found: others })
            }
            _ => Ok(()),
        }
    }

    fn check_instance_free(&self, gpu: GpuUuid, found: &GpuInstance) -> Result<(), ActionError> {
        let device = found.computes.iter().find_map(|of| of.uuid);
        let node =
            device.map_or_else(|| format!("GPU instance {}", found.number), |of| of.to_string());
        let holder = |pid: &u32| {
            let name = self.places.proc.name(*pid);
            Holder { pid: *pid, name, node: node.clone().into() }
        };
        let holders: Vec<Holder> = found.users.iter().map(holder).collect();
        match holders.is_empty() {
            true => Ok(()),
            false => Err(ActionError::Held { subject: Subject::Gpu(gpu), holders }),
        }
    }
}

fn at_place(gpu: GpuUuid, start: u32) -> impl Fn(&Change) -> bool {
    move |change| change.place().is_some_and(|of| of.gpu == gpu && of.at.start == start)
}

/// The kind that is called so, and its place that begins there.
fn fit<'a>(
    gpu: GpuUuid,
    layout: &'a MigLayout,
    profile: &MigProfile,
    start: u32,
) -> Result<(&'a MigKind, MigPlacement), MigError> {
    let called = |kind: &&MigKind| kind.name.parse().is_ok_and(|of: MigProfile| of == *profile);
    let kind = layout.kinds.iter().find(called).ok_or_else(|| MigError::NoKind {
        gpu,
        profile: profile.to_string(),
        offers: layout.kinds.clone(),
    })?;
    let place = kind.placements.iter().find(|place| place.start == start);
    let kind_of = || Box::new(kind.clone());
    let place = place.ok_or_else(|| MigError::NoPlace { gpu, kind: kind_of(), start })?;
    Ok((kind, *place))
}
