use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Device, Mode, PartKind, PartMode, Portion, Room};
use crate::{ComputeShare, LeaseId, MemoryBytes, PciAddress};

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A device, all of it.
    Whole,
    /// So much of one, through a worker.
    Mediated {
        /// Of its memory.
        memory: MemoryBytes,
        /// Of its time.
        share: ComputeShare,
    },
    /// A part.
    Part {
        /// What it is.
        mode: PartMode,
        /// Its kind's name.
        kind: String,
    },
}

impl Want {
    const fn mode(&self) -> Mode {
        match self {
            Self::Whole => Mode::Whole,
            Self::Mediated { .. } => Mode::Mediated,
            Self::Part { mode, .. } => Mode::Parts(*mode),
        }
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => f.write_str("a whole device"),
            Self::Mediated { memory, share } => write!(f, "{memory} and {share} of a device"),
            Self::Part { mode, kind } => write!(f, "{mode} '{kind}'"),
        }
    }
}

/// What a lease holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Of which device.
    pub device: PciAddress,
    /// What of it.
    pub portion: Portion,
}

/// Why one device does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It serves nobody new.
    #[error("it is out of service: {0}")]
    Out(String),
    /// It has no such thing.
    #[error("it does not offer that; `gpu-zone gpus --all` says what it does")]
    NotOffered,
    /// It is in use in a way that the hardware does not have beside this one.
    #[error(
        "it is in use as {0}, and its hardware cannot be both; wait until the leases that use it so have ended"
    )]
    Excluded(Mode),
    /// Parts of another kind are on it.
    #[error(
        "it has parts of the kind '{0}', and its hardware takes one kind at a time; ask for that kind, or wait until they are gone"
    )]
    OtherKind(String),
    /// All places are taken.
    #[error("every place for it is taken or overlapped; wait until a lease of it has ended")]
    NoPlace,
    /// Less is free.
    #[error("{memory} and {share}% of its time are free; ask for no more, or wait")]
    Less {
        /// Of its memory.
        memory: MemoryBytes,
        /// Of its time, in per cent.
        share: u32,
    },
}

/// Nothing serves what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no device gives {asked}: {}", reasons(.why))]
pub struct AllocationRefusal {
    /// What was asked for.
    pub asked: String,
    /// Why each device does not serve.
    pub why: Vec<(PciAddress, Why)>,
}

/// What a journal says cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreRefusal {
    /// The device is gone.
    #[error(
        "device {0} is not on this node, so what a lease had there is over; put it back, or name its new address in its [[gpu]], and restart the agent"
    )]
    Unknown(PciAddress),
    /// It does not go together with what others hold.
    #[error(
        "device {device} cannot give {portion:?} back to its lease: {why}; end one of the two leases, or undo the last change of the configuration"
    )]
    Contradiction {
        /// Which device.
        device: PciAddress,
        /// What was held.
        portion: Portion,
        /// What is in its way.
        why: Why,
    },
}

fn reasons(why: &[(PciAddress, Why)]) -> String {
    /// More than these would only be scrolled past.
    const SHOWN: usize = 8;
    if why.is_empty() {
        return "this node has none that may be asked".to_owned();
    }
    let shown = why.iter().take(SHOWN).map(|(device, why)| format!("{device}: {why}"));
    let shown = shown.collect::<Vec<_>>().join("; ");
    match why.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Who holds what of which device.
///
/// Invariants, whatever is called in whatever order: a device is only in modes that its hardware
/// has at once; no two parts share a slice; no more is given than there is.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    devices: BTreeMap<PciAddress, Device>,
    held: Vec<(LeaseId, Held)>,
    out: BTreeMap<PciAddress, String>,
}

/// How good a choice is: the smaller the better. First a device that is in that mode already, so
/// that the others stay free for any; then the one that is left with the least.
type Rank = (bool, u64, PciAddress);

impl Allocator {
    /// Nobody holds anything of these.
    pub fn new(devices: impl IntoIterator<Item = Device>) -> Self {
        let devices = devices.into_iter().map(|device| (device.address, device)).collect();
        Self { devices, held: Vec::new(), out: BTreeMap::new() }
    }

    /// What is held, in the order in which it was taken.
    pub fn held(&self) -> impl Iterator<Item = (LeaseId, &Held)> {
        self.held.iter().map(|(lease, held)| (*lease, held))
    }

    /// The modes that a device is in.
    pub fn modes(&self, device: PciAddress) -> impl Iterator<Item = Mode> {
        self.portions(device).map(Portion::mode)
    }

    /// Lets a device serve nobody new; what is held of it stays.
    pub fn take_out(&mut self, device: PciAddress, reason: String) {
        self.out.insert(device, reason);
    }

    /// Lets it serve again.
    pub fn put_back(&mut self, device: PciAddress) {
        self.out.remove(&device);
    }

    /// Takes what is wanted, of `on` or of whichever device serves best.
    ///
    /// # Errors
    /// When none serves; nothing changes then.
    pub fn take(
        &mut self,
        lease: LeaseId,
        want: &Want,
        on: Option<PciAddress>,
    ) -> Result<Held, AllocationRefusal> {
        let mut why = Vec::new();
        let mut best: Option<(Rank, Portion)> = None;
        for device in self.devices.values() {
            if on.is_some_and(|on| on != device.address) {
                continue;
            }
            match self.offer(device, want) {
                Ok((left, portion)) => {
                    let fresh = self.portions(device.address).next().is_none();
                    let rank = (fresh, left, device.address);
                    if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                        best = Some((rank, portion));
                    }
                }
                Err(reason) => why.push((device.address, reason)),
            }
        }
        let Some(((_, _, device), portion)) = best else {
            return Err(AllocationRefusal { asked: want.to_string(), why });
        };
        let held = Held { device, portion };
        self.held.push((lease, held.clone()));
        Ok(held)
    }

    /// Takes back what a journal says that a lease holds. A device that is out of service keeps
    /// no old lease out.
    ///
    /// # Errors
    /// When it cannot be beside what others hold; nothing changes then.
    pub fn restore(&mut self, lease: LeaseId, held: Held) -> Result<(), RestoreRefusal> {
        let device = self.devices.get(&held.device).ok_or(RestoreRefusal::Unknown(held.device))?;
        if let Err(why) = self.fits(device, &held.portion) {
            let Held { device, portion } = held;
            return Err(RestoreRefusal::Contradiction { device, portion, why });
        }
        self.held.push((lease, held));
        Ok(())
    }

    /// Frees all that a lease holds, and says what that was.
    pub fn release(&mut self, lease: LeaseId) -> Vec<Held> {
        let (gone, kept) = std::mem::take(&mut self.held)
            .into_iter()
            .partition::<Vec<_>, _>(|(holder, _)| *holder == lease);
        self.held = kept;
        gone.into_iter().map(|(_, held)| held).collect()
    }

    fn portions(&self, device: PciAddress) -> impl Iterator<Item = &Portion> {
        let of = move |(_, held): &&(LeaseId, Held)| held.device == device;
        self.held.iter().filter(of).map(|(_, held)| &held.portion)
    }

    /// What of `device` serves, and how much is left of it then.
    fn offer(&self, device: &Device, want: &Want) -> Result<(u64, Portion), Why> {
        if let Some(reason) = self.out.get(&device.address) {
            return Err(Why::Out(reason.clone()));
        }
        match want {
            Want::Whole => {
                self.fits(device, &Portion::Whole)?;
                Ok((0, Portion::Whole))
            }
            Want::Mediated { memory, share } => {
                let portion = Portion::Mediated { memory: *memory, share: *share };
                self.fits(device, &portion)?;
                let (free, _) = self.free(device).ok_or(Why::NotOffered)?;
                Ok((free.get() - memory.get(), portion))
            }
            Want::Part { mode, kind } => {
                let kind = device.kind(*mode, kind).ok_or(Why::NotOffered)?;
                self.check_modes(device, want.mode())?;
                self.place(device, kind)
            }
        }
    }

    /// The place that keeps the most others open, and how many those are.
    fn place(&self, device: &Device, kind: &PartKind) -> Result<(u64, Portion), Why> {
        let places = match &kind.room {
            Room::Alike(most) => *most,
            Room::At(places) => u32::try_from(places.len()).unwrap_or(u32::MAX),
        };
        let portion = |place| Portion::Part { mode: kind.mode, kind: kind.name.clone(), place };
        let (mut best, mut why): (Option<(u64, u32)>, Why) = (None, Why::NoPlace);
        for place in 0..places {
            match self.fits(device, &portion(place)) {
                Ok(()) => {
                    let open = self.open_beside(device, kind, place);
                    if best.is_none_or(|(known, _)| open > known) {
                        best = Some((open, place));
                    }
                }
                Err(reason) => why = reason,
            }
        }
        best.map(|(open, place)| (open, portion(place))).ok_or(why)
    }

    /// How many places of all kinds would be open beside a part at `place`.
    fn open_beside(&self, device: &Device, kind: &PartKind, place: u32) -> u64 {
        let taken = self.slices(device) | mask(kind, place);
        let open = |kind: &PartKind| match &kind.room {
            Room::Alike(most) => u64::from(most.saturating_sub(self.count(device, kind))),
            Room::At(places) => {
                places.iter().filter(|place| place.mask() & taken == 0).count() as u64
            }
        };
        device.kinds.iter().filter(|other| other.mode == kind.mode).map(open).sum()
    }

    /// The slices of a device that parts of it have.
    fn slices(&self, device: &Device) -> u64 {
        let mask = |portion: &Portion| match portion {
            Portion::Part { mode, kind, place } => {
                device.kind(*mode, kind).map_or(0, |kind| mask(kind, *place))
            }
            Portion::Whole | Portion::Mediated { .. } => 0,
        };
        self.portions(device.address).map(mask).fold(0, |all, part| all | part)
    }

    fn count(&self, device: &Device, kind: &PartKind) -> u32 {
        let of_kind = |portion: &&Portion| {
            matches!(portion, Portion::Part { mode, kind: name, .. }
                if *mode == kind.mode && *name == kind.name)
        };
        u32::try_from(self.portions(device.address).filter(of_kind).count()).unwrap_or(u32::MAX)
    }

    fn check_modes(&self, device: &Device, mode: Mode) -> Result<(), Why> {
        match self.modes(device.address).find(|other| !device.has_both(mode, *other)) {
            Some(other) => Err(Why::Excluded(other)),
            None => Ok(()),
        }
    }

    /// What is free of a device that leases share.
    fn free(&self, device: &Device) -> Option<(MemoryBytes, u32)> {
        let full = (device.mediated?, 100_u32);
        Some(self.portions(device.address).fold(full, |(free, time), portion| match portion {
            Portion::Mediated { memory, share } => (
                free.checked_sub(*memory).unwrap_or(MemoryBytes::ZERO),
                time.saturating_sub(share.percent()),
            ),
            Portion::Whole | Portion::Part { .. } => (free, time),
        }))
    }

    /// Whether a portion can be given beside what is held.
    fn fits(&self, device: &Device, portion: &Portion) -> Result<(), Why> {
        let offered = match portion {
            Portion::Whole => device.whole,
            Portion::Mediated { .. } => device.mediated.is_some(),
            Portion::Part { mode, kind, .. } => device.kind(*mode, kind).is_some(),
        };
        if !offered {
            return Err(Why::NotOffered);
        }
        self.check_modes(device, portion.mode())?;
        match portion {
            Portion::Whole => Ok(()),
            Portion::Mediated { memory, share } => {
                let (free, time) = self.free(device).ok_or(Why::NotOffered)?;
                if *memory > free || share.percent() > time {
                    return Err(Why::Less { memory: free, share: time });
                }
                Ok(())
            }
            Portion::Part { mode, kind, place } => {
                let kind = device.kind(*mode, kind).ok_or(Why::NotOffered)?;
                self.fits_part(device, kind, *place)
            }
        }
    }

    fn fits_part(&self, device: &Device, kind: &PartKind, place: u32) -> Result<(), Why> {
        for portion in self.portions(device.address) {
            let Portion::Part { mode, kind: name, place: taken } = portion else { continue };
            if *mode != kind.mode {
                continue;
            }
            let other = device.kind(*mode, name).ok_or(Why::NoPlace)?;
            let alike = matches!(kind.room, Room::Alike(_)) || matches!(other.room, Room::Alike(_));
            if alike && *name != kind.name {
                return Err(Why::OtherKind(name.clone()));
            }
            if alike && *taken == place || mask(kind, place) & mask(other, *taken) != 0 {
                return Err(Why::NoPlace);
            }
        }
        match &kind.room {
            Room::Alike(most) if place < *most => Ok(()),
            Room::At(places) if (place as usize) < places.len() => Ok(()),
            Room::Alike(_) | Room::At(_) => Err(Why::NoPlace),
        }
    }
}

/// The slices of a place; what stands where there is none takes none.
fn mask(kind: &PartKind, place: u32) -> u64 {
    match &kind.room {
        Room::Alike(_) => 0,
        Room::At(places) => places.get(place as usize).map_or(0, |place| place.mask()),
    }
}

#[cfg(test)]
mod tests;
