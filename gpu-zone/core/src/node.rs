use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::devices::{Allocator, Mode};
use crate::judge;
use crate::{
    Admission, ComputeShare, Exposure, Gpu, GpuHealth, GpuUuid, GpuWatch, Grant, Holdings,
    IllegalTransition, Inventory, LeaseEvent, LeaseId, LeaseState, MemoryBytes, Placement,
    PlacementRefusal, Request, TenantId, TimeTerms, Unit, ZoneId,
};

/// A placement made real.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its identifier.
    pub id: LeaseId,
    /// Who pays.
    pub tenant: TenantId,
    /// The workload zone that uses it.
    pub zone: ZoneId,
    /// What it holds.
    pub placement: Placement,
    /// How its time is given.
    #[serde(default, skip_serializing_if = "TimeTerms::is_usual")]
    pub time: TimeTerms,
    /// Where it is in its life.
    pub state: LeaseState,
}

/// The GPUs of one node and the leases on them.
///
/// Invariant, whatever is called in whatever order: over the leases that hold something, the
/// memory of a GPU sums up to no more than it has, and its shares to no more than 100 %.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    inventory: Inventory,
    leases: BTreeMap<LeaseId, Lease>,
    /// Judges what may be given beside what.
    allocator: Allocator,
    /// What is known of each GPU's health; of the others there is nothing to know.
    watches: BTreeMap<GpuUuid, GpuWatch>,
}

/// Why an admitted placement cannot be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// The identifier is taken.
    #[error("{0} exists already")]
    DuplicateLease(LeaseId),
    /// The GPU is not there, or not any more.
    #[error(
        "GPU {0} is not on this node; it may have been removed since the lease was placed: ask again, or delete the pod and let it be scheduled again; `gpu-zone gpus` lists what there is"
    )]
    UnknownGpu(GpuUuid),
    /// It was put into quarantine since the placement was made.
    #[error("GPU {0} is in quarantine; `gpu-zone gpus` says why")]
    Quarantined(GpuUuid),
    /// Something was wrong with it since the placement was made, and may be over by itself.
    #[error("GPU {0} serves no new lease for now; `gpu-zone gpus` says why, try again later")]
    Suspended(GpuUuid),
    /// It is handed over in another way, as the configuration says now.
    #[error(
        "GPU {gpu} is handed over as {exposure} on this node, and {asked} is asked for; `gpu-zone gpus` lists how each is"
    )]
    Exposed {
        /// Which GPU.
        gpu: GpuUuid,
        /// How it is handed over.
        exposure: Exposure,
        /// How it would have to be.
        asked: Exposure,
    },
    /// A part of a GPU that is handed over whole.
    #[error("GPU {gpu} is handed over whole: {memory} and {share} of a GPU's time, not a part")]
    NotWhole {
        /// Which GPU.
        gpu: GpuUuid,
        /// All of its memory.
        memory: MemoryBytes,
        /// All of its compute.
        share: ComputeShare,
    },
    /// A whole GPU of which instances are handed over.
    #[error("GPU {0} is in MIG mode: its instances are handed over, and it is not")]
    InMigMode(GpuUuid),
    /// A whole GPU of which vGPUs are handed over.
    #[error("GPU {0} is cut into vGPUs: those are handed over, and it is not")]
    CutIntoVgpus(GpuUuid),
    /// It is in use in a way that its hardware does not have beside this one.
    #[error(
        "GPU {gpu} is in use as {mode} by a lease of before, and its hardware cannot be that and {asked} at once; `gpu-zone ps` lists it, end it first"
    )]
    Excluded {
        /// Which.
        gpu: GpuUuid,
        /// How it is used.
        mode: Mode,
        /// How it would have to be.
        asked: Exposure,
    },
    /// Somebody else took the room since the placement was made.
    #[error("GPU {gpu} has {free} and {free_share}% free, less than the placement needs")]
    Taken {
        /// Which GPU.
        gpu: GpuUuid,
        /// What is free of its memory.
        free: MemoryBytes,
        /// What is free of its time, in per cent.
        free_share: u32,
    },
}

/// No lease bears the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {0}; `gpu-zone ps` lists the leases")]
pub struct UnknownLease(pub LeaseId);

/// What one GPU can still give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    memory: MemoryBytes,
    share: u32,
}

impl NodeState {
    /// A node with these GPUs and no lease.
    pub fn new(inventory: Inventory) -> Self {
        let allocator = judge::allocator(&inventory);
        Self { inventory, allocator, leases: BTreeMap::new(), watches: BTreeMap::new() }
    }

    /// The GPUs.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// All leases that are not released, oldest first where identifiers are version 7.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// What `tenant` holds on this node.
    pub fn holdings(&self, tenant: &TenantId) -> Holdings {
        let own = self.leases.values().filter(|lease| lease.tenant == *tenant);
        own.fold(Holdings::default(), |held, lease| held.with(&lease.placement))
    }

    /// What the leases leave of a GPU's memory; `None` for a GPU that is not here.
    pub fn free_memory(&self, gpu: GpuUuid) -> Option<MemoryBytes> {
        self.inventory.unit(gpu).map(|unit| self.free(unit).memory)
    }

    /// What the leases leave of a GPU's time, in per cent; `None` for a GPU that is not here.
    pub fn free_share(&self, gpu: GpuUuid) -> Option<u32> {
        self.inventory.unit(gpu).map(|unit| self.free(unit).share)
    }

    /// Whether a GPU serves new leases; `None` for a GPU that is not here. A part of one does while
    /// nothing is wrong with it nor with its GPU.
    pub fn health(&self, gpu: GpuUuid) -> Option<GpuHealth> {
        let unit = self.inventory.unit(gpu)?;
        let of = |uuid| self.watches.get(&uuid).map_or(GpuHealth::Healthy, GpuWatch::health);
        let (own, whole) = (of(gpu), of(unit.gpu.uuid));
        Some(if own.serves() { whole } else { own })
    }

    /// What is known of a GPU's health.
    pub fn watch(&self, gpu: GpuUuid) -> GpuWatch {
        self.watches.get(&gpu).cloned().unwrap_or_default()
    }

    /// Puts what is known of a GPU's health in the place of what was known. A GPU that is not
    /// here may come back, so it is remembered, too.
    pub fn set_watch(&mut self, gpu: GpuUuid, watch: GpuWatch) {
        if watch == GpuWatch::default() {
            self.watches.remove(&gpu);
        } else {
            self.watches.insert(gpu, watch);
        }
    }

    /// What is known of the health of each GPU of which something is.
    pub fn watches(&self) -> impl Iterator<Item = (GpuUuid, &GpuWatch)> {
        self.watches.iter().map(|(gpu, watch)| (*gpu, watch))
    }

    fn serves(&self, gpu: GpuUuid) -> bool {
        self.watches.get(&gpu).is_none_or(|watch| watch.health().serves())
    }

    /// What is left of a GPU, or of a part of one; of a GPU that is cut, what its parts have left.
    fn free(&self, unit: Unit<'_>) -> Free {
        let uuid = unit.part.map_or(unit.gpu.uuid, |part| part.uuid);
        let cut = matches!(self.inventory.exposure(uuid), Exposure::Mig | Exposure::Vgpu);
        if unit.part.is_none() && cut {
            let nothing = Free { memory: MemoryBytes::ZERO, share: 0 };
            return self.inventory.parts_of(uuid).fold(nothing, |sum, part| {
                let free = self.free(Unit { part: Some(part), ..unit });
                let memory = sum.memory.get().saturating_add(free.memory.get());
                Free { memory: MemoryBytes::saturating(memory), share: sum.share + free.share }
            });
        }
        let grants = self.leases.values().flat_map(|lease| lease.placement.grants());
        let full = Free { memory: unit.memory(), share: unit.share().percent() };
        grants.filter(|grant| grant.gpu == uuid).fold(full, |free, grant| Free {
            memory: free.memory.checked_sub(grant.memory).unwrap_or(MemoryBytes::ZERO),
            share: free.share.saturating_sub(grant.share.percent()),
        })
    }

    /// Chooses GPUs for `request`: of those with room, the ones that would be left with the
    /// least memory, so that large requests find room later.
    ///
    /// # Errors
    /// When no GPUs serve the request; the refusal says what the best have.
    pub fn place(&self, request: &Request) -> Result<Placement, PlacementRefusal> {
        let candidates = self.candidates(request)?;
        let wanted = request.gpus.get();
        let mut fitting: Vec<(Free, Grant)> = candidates
            .iter()
            .map(|gpu| (self.free(whole(gpu)), grant_of(request, gpu)))
            .filter(|(free, grant)| fits(*free, grant))
            .collect();
        // The sort is stable: equal GPUs stay in the order of their index.
        fitting.sort_by_key(|(free, grant)| (free.memory.get() - grant.memory.get(), free.share));
        if (fitting.len() as u64) < u64::from(wanted) {
            return Err(self.no_room(request, &candidates, fitting.len()));
        }
        let chosen = fitting.into_iter().take(wanted as usize);
        Ok(Placement::new(chosen.map(|(_, grant)| grant).collect()))
    }

    /// The GPUs that an empty node would give the request.
    fn candidates(&self, request: &Request) -> Result<Vec<&Gpu>, PlacementRefusal> {
        let all = self.inventory.gpus();
        if all.is_empty() {
            return Err(PlacementRefusal::NoGpu);
        }
        if request.memory.is_some_and(MemoryBytes::is_zero) {
            return Err(PlacementRefusal::NoMemory);
        }
        let exposed = |gpu: &&Gpu| self.inventory.exposure(gpu.uuid) == request.exposure;
        let (gpus, all): (_, Vec<&Gpu>) = (all.len(), all.iter().filter(exposed).collect());
        if all.is_empty() {
            return Err(PlacementRefusal::NotExposed { asked: request.exposure, gpus });
        }
        let of_model = |gpu: &&Gpu| request.model.as_ref().is_none_or(|model| gpu.name == *model);
        let matching: Vec<&Gpu> = all.iter().copied().filter(of_model).collect();
        if let (true, Some(model)) = (matching.is_empty(), &request.model) {
            let names: BTreeSet<&str> = all.iter().map(|gpu| gpu.name.as_str()).collect();
            let present = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(PlacementRefusal::NoSuchModel { model: model.clone(), present });
        }
        let largest = matching.iter().map(|gpu| gpu.memory).max().unwrap_or_default();
        if let Some(asked) = request.memory.filter(|asked| *asked > largest) {
            let gpus = matching.len();
            return Err(PlacementRefusal::LargerThanAnyGpu { asked, largest, gpus });
        }
        let large_enough = |gpu: &&Gpu| request.memory.is_none_or(|asked| asked <= gpu.memory);
        let candidates: Vec<&Gpu> = matching.into_iter().filter(large_enough).collect();
        if (candidates.len() as u64) < u64::from(request.gpus.get()) {
            let (asked, present) = (request.gpus.get(), candidates.len());
            return Err(PlacementRefusal::TooFewGpus { asked, present });
        }
        let healthy = |gpu: &&Gpu| self.serves(gpu.uuid);
        let gpus = candidates.len();
        let candidates: Vec<&Gpu> = candidates.into_iter().filter(healthy).collect();
        if (candidates.len() as u64) < u64::from(request.gpus.get()) {
            let (asked, unhealthy) = (request.gpus.get(), gpus - candidates.len());
            return Err(PlacementRefusal::Unhealthy { asked, gpus, unhealthy });
        }
        Ok(candidates)
    }

    fn no_room(&self, request: &Request, candidates: &[&Gpu], fitting: usize) -> PlacementRefusal {
        let free = candidates.iter().map(|gpu| self.free(whole(gpu)));
        let best = free.max_by_key(|free| (free.memory, free.share));
        let best = best.unwrap_or(Free { memory: MemoryBytes::ZERO, share: 0 });
        PlacementRefusal::NoRoom {
            asked: request.memory.map_or("a whole GPU".to_owned(), |memory| memory.to_string()),
            share: match (request.share, request.memory) {
                (Some(share), _) => share.to_string(),
                (None, Some(_)) => "as much".to_owned(),
                (None, None) => "100%".to_owned(),
            },
            count: request.gpus.get(),
            fitting,
            gpus: candidates.len(),
            free: best.memory,
            free_share: best.share,
        }
    }

    /// Sets aside what was admitted, for a new lease in state [`LeaseState::Reserved`] whose GPUs
    /// are handed over mediated.
    ///
    /// # Errors
    /// When the identifier is taken, a GPU serves nobody new or is handed over otherwise, or the
    /// room is gone. Nothing changes then.
    pub fn reserve(
        &mut self,
        id: LeaseId,
        zone: ZoneId,
        admission: Admission,
    ) -> Result<&Lease, ReserveError> {
        self.reserve_as(id, zone, Exposure::Mediated, admission)
    }

    /// The same for GPUs that are handed over in this way.
    ///
    /// # Errors
    /// As for [`Self::reserve`], and when a part is asked for of what is only handed over whole.
    pub fn reserve_as(
        &mut self,
        id: LeaseId,
        zone: ZoneId,
        asked: Exposure,
        admission: Admission,
    ) -> Result<&Lease, ReserveError> {
        let demand = admission.into_demand();
        for grant in demand.placement.grants() {
            self.check_serves(asked, grant)?;
        }
        let lease = Lease {
            id,
            tenant: demand.tenant,
            zone,
            placement: demand.placement,
            time: demand.time,
            state: LeaseState::Reserved,
        };
        self.restore(lease, asked)
    }

    fn check_serves(&self, asked: Exposure, grant: &Grant) -> Result<(), ReserveError> {
        let gpu = grant.gpu;
        let unit = self.inventory.unit(gpu).ok_or(ReserveError::UnknownGpu(gpu))?;
        match self.health(gpu).unwrap_or(GpuHealth::Healthy) {
            GpuHealth::Healthy => {}
            GpuHealth::Suspended { .. } => return Err(ReserveError::Suspended(gpu)),
            GpuHealth::Quarantined { .. } => return Err(ReserveError::Quarantined(gpu)),
        }
        let exposure = self.inventory.exposure(gpu);
        if exposure != asked {
            return Err(ReserveError::Exposed { gpu, exposure, asked });
        }
        match asked {
            Exposure::Mig if unit.part.is_none() => return Err(ReserveError::InMigMode(gpu)),
            Exposure::Vgpu if unit.part.is_none() => return Err(ReserveError::CutIntoVgpus(gpu)),
            Exposure::Mediated | Exposure::Passthrough | Exposure::Mig | Exposure::Vgpu => {}
        }
        let (memory, share) = (unit.memory(), unit.share());
        match asked.is_shared() || (grant.memory == memory && grant.share == share) {
            true => Ok(()),
            false => Err(ReserveError::NotWhole { gpu, memory, share }),
        }
    }

    /// Takes back a lease that a journal recorded, in the state it had and handed over as it was.
    /// It was admitted once: no quota is asked again and a quarantine keeps no old lease out, but
    /// the GPUs must have the room, and not be in use in a way that excludes it.
    ///
    /// # Errors
    /// When the identifier is taken, or the room is not there. Nothing changes then.
    pub fn restore(&mut self, lease: Lease, as_what: Exposure) -> Result<&Lease, ReserveError> {
        if self.leases.contains_key(&lease.id) {
            return Err(ReserveError::DuplicateLease(lease.id));
        }
        let mut seen = BTreeSet::new();
        for grant in lease.placement.grants() {
            let given = match seen.insert(grant.gpu) {
                true => self.give(lease.id, as_what, grant),
                false => Err(self.taken(grant.gpu)),
            };
            if let Err(refused) = given {
                self.allocator.release(lease.id);
                return Err(refused);
            }
        }
        Ok(self.leases.entry(lease.id).or_insert(lease))
    }

    /// Has the allocator judge whether a grant can stand beside all others.
    fn give(&mut self, id: LeaseId, asked: Exposure, grant: &Grant) -> Result<(), ReserveError> {
        let gpu = grant.gpu;
        if self.inventory.unit(gpu).is_none() {
            return Err(ReserveError::UnknownGpu(gpu));
        }
        if !gpu.is_mig() && self.inventory.exposure(gpu) == Exposure::Mig {
            return Err(ReserveError::InMigMode(gpu));
        }
        let wanted = judge::portion(&self.inventory, asked, grant);
        let wanted = wanted.ok_or(ReserveError::UnknownGpu(gpu))?;
        let mode = wanted.portion.mode();
        self.allocator.restore(id, wanted).map_err(|refused| match judge::other_mode(&refused) {
            Some(other) if other != mode => ReserveError::Excluded { gpu, mode: other, asked },
            Some(_) | None => self.taken(gpu),
        })
    }

    fn taken(&self, gpu: GpuUuid) -> ReserveError {
        let free = self.inventory.unit(gpu).map(|unit| self.free(unit));
        let free = free.unwrap_or(Free { memory: MemoryBytes::ZERO, share: 0 });
        ReserveError::Taken { gpu, free: free.memory, free_share: free.share }
    }

    /// Moves a lease on. A lease that comes to [`LeaseState::Released`] is forgotten, and what
    /// it held is free.
    ///
    /// # Errors
    /// When there is no such lease, or the event has no meaning in its state.
    pub fn apply(&mut self, id: LeaseId, event: LeaseEvent) -> Result<LeaseState, ApplyError> {
        let lease = self.leases.get_mut(&id).ok_or(UnknownLease(id))?;
        lease.state = lease.state.after(event)?;
        let state = lease.state;
        if !state.holds() {
            self.leases.remove(&id);
            self.allocator.release(id);
        }
        Ok(state)
    }
}

/// Why a lease did not move on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No such lease.
    #[error(transparent)]
    Unknown(#[from] UnknownLease),
    /// Not in this state.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
}

fn whole(gpu: &Gpu) -> Unit<'_> {
    Unit { gpu, part: None }
}

fn fits(free: Free, grant: &Grant) -> bool {
    grant.memory <= free.memory && grant.share.percent() <= free.share
}

/// What `request` comes to on `gpu`.
fn grant_of(request: &Request, gpu: &Gpu) -> Grant {
    let memory = request.memory.unwrap_or(gpu.memory);
    let share = match (request.memory, request.share) {
        // A whole GPU is whole: whatever share was asked for, nobody else gets in.
        (None, _) => request.time.limit(ComputeShare::WHOLE),
        (Some(_), Some(share)) => share,
        (Some(memory), None) => request.time.limit(proportional_share(memory, gpu.memory)),
    };
    Grant { gpu: gpu.uuid, memory, share }
}

fn proportional_share(part: MemoryBytes, whole: MemoryBytes) -> ComputeShare {
    let percent = u128::from(part.get()) * 100 / u128::from(whole.get().max(1));
    let percent = u32::try_from(percent).unwrap_or(100).clamp(1, 100);
    ComputeShare::new(percent).unwrap_or(ComputeShare::WHOLE)
}
