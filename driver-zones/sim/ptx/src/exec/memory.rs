//! Loads and stores of a warp, in every state space.

use super::Fault;
use super::convert::extend;
use super::host::{Host, HostBytes};
use super::registers::{FULL, LANES, Registers};
use super::windows;
use crate::ir::{Access, Address, AddressBase, Space, StageCopy, Type};

/// The memory that a lane can reach.
pub(crate) struct Memory<'a> {
    pub(crate) host: Host<'a>,
    /// The block's shared memory.
    pub(crate) shared: Vec<u8>,
    /// The launch's parameter buffer.
    pub(crate) params: &'a [u8],
    /// Bytes of local memory per lane.
    pub(crate) local_bytes: usize,
}

/// Where an access was found to lie.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Host(HostBytes),
    Shared(usize),
    /// Offset in the warp's local memory.
    Local(usize),
    Param(usize),
}

/// The active lanes of a mask, lowest first.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

#[inline(always)]
pub(crate) fn addresses(registers: &Registers, address: Address) -> [u64; LANES] {
    let offset = address.offset.cast_unsigned();
    match address.base {
        AddressBase::Absolute => [offset; LANES],
        AddressBase::Wide(slot) => {
            let base = registers.get64(slot);
            let mut all = [0; LANES];
            for lane in 0..LANES {
                all[lane] = base[lane].wrapping_add(offset);
            }
            all
        }
        AddressBase::Narrow(slot) => {
            let base = registers.get32(slot);
            #[expect(clippy::cast_possible_truncation, reason = "addresses wrap at 32 bits")]
            let offset = offset as u32;
            let mut all = [0; LANES];
            for lane in 0..LANES {
                all[lane] = u64::from(base[lane].wrapping_add(offset));
            }
            all
        }
    }
}

fn read_bytes(memory: &[u8], offset: usize, bytes: u8) -> u64 {
    let mut value = [0; 8];
    let bytes = usize::from(bytes);
    if let Some(found) = memory.get(offset..offset + bytes) {
        value[..bytes].copy_from_slice(found);
    }
    u64::from_le_bytes(value)
}

fn write_bytes(memory: &mut [u8], offset: usize, bytes: u8, value: u64) {
    let bytes = usize::from(bytes);
    if let Some(found) = memory.get_mut(offset..offset + bytes) {
        found.copy_from_slice(&value.to_le_bytes()[..bytes]);
    }
}

impl Memory<'_> {
    /// Checks one lane's access of `bytes` bytes.
    pub(crate) fn locate(
        &mut self,
        space: Space,
        address: u64,
        bytes: u32,
        write: bool,
        lane: usize,
    ) -> Result<Place, Fault> {
        let (space, offset) = match (space, address >> windows::SHIFT) {
            (Space::Generic, 0) => (Space::Global, address),
            (Space::Generic, window) => {
                let space = match window << windows::SHIFT {
                    windows::SHARED => Space::Shared,
                    windows::LOCAL => Space::Local,
                    windows::PARAM if !write => Space::Param,
                    _ => return Err(Fault::IllegalAddress { address, bytes, write }),
                };
                (space, address & ((1 << windows::SHIFT) - 1))
            }
            (space, _) => (space, address),
        };
        let (length, window) = match space {
            Space::Global | Space::Constant if offset >> windows::SHIFT != 0 => {
                return Err(Fault::IllegalAddress { address, bytes, write });
            }
            Space::Global | Space::Constant | Space::Generic => {
                return self.host.find(offset, bytes, write).map(Place::Host);
            }
            Space::Shared => (self.shared.len(), windows::SHARED),
            Space::Local => (self.local_bytes, windows::LOCAL),
            Space::Param => (self.params.len(), windows::PARAM),
        };
        let inside = usize::try_from(offset)
            .ok()
            .filter(|at| at.checked_add(bytes as usize).is_some_and(|end| end <= length));
        let Some(at) = inside else {
            let address = window.wrapping_add(offset);
            return Err(Fault::IllegalAddress { address, bytes, write });
        };
        if offset & u64::from(bytes - 1) != 0 {
            let address = window.wrapping_add(offset);
            return Err(Fault::MisalignedAddress { address, bytes });
        }
        Ok(match space {
            Space::Shared => Place::Shared(at),
            Space::Local => Place::Local(lane * self.local_bytes + at),
            _ => Place::Param(at),
        })
    }

    /// Executes a load for the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn load(
        &mut self,
        registers: &mut Registers,
        local: &[u8],
        access: &Access,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, access.address);
        if mask == FULL && access.bytes == 4 && access.count == 1 && !access.wide[0] {
            let row = registers.row32(access.slots[0]);
            if self.load_words(access.space, &at, row) {
                return Ok(());
            }
        }
        self.load_lanes(registers, local, access, &at, mask)
    }

    /// The common case: all lanes load an aligned word of one region or of shared
    /// memory. Returns false, with nothing done, when that is not so.
    #[inline(always)]
    fn load_words(&mut self, space: Space, at: &[u64; LANES], row: &mut [u32; LANES]) -> bool {
        match space {
            Space::Global | Space::Constant | Space::Generic => {
                match self.host.find_words(at, false) {
                    Some(words) => {
                        words.read(row);
                        true
                    }
                    None => false,
                }
            }
            Space::Shared => {
                if !self.shared_words(at) {
                    return false;
                }
                let (words, _) = self.shared.as_chunks::<4>();
                for lane in 0..LANES {
                    row[lane] = u32::from_le_bytes(words[(at[lane] >> 2) as usize]);
                }
                true
            }
            Space::Local | Space::Param => false,
        }
    }

    #[inline(never)]
    fn load_lanes(
        &mut self,
        registers: &mut Registers,
        local: &[u8],
        access: &Access,
        at: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Fault> {
        let total = u32::from(access.bytes) * u32::from(access.count);
        let uniform = matches!(access.address.base, AddressBase::Absolute);
        if uniform && matches!(access.space, Space::Param | Space::Shared) {
            return self.load_uniform(registers, local, access, at[0], mask);
        }
        for lane in lanes(mask) {
            let place = self.locate(access.space, at[lane], total, false, lane)?;
            for index in 0..usize::from(access.count) {
                let value = self.read(place, local, index, access.bytes);
                let value = widened(access, index, value);
                let slot = access.slots[index];
                if access.wide[index] {
                    registers.row64(slot)[lane] = value;
                } else {
                    #[expect(clippy::cast_possible_truncation, reason = "a narrow register")]
                    let value = value as u32;
                    registers.row32(slot)[lane] = value;
                }
            }
        }
        Ok(())
    }

    /// All lanes load from the same place: once for all.
    fn load_uniform(
        &mut self,
        registers: &mut Registers,
        local: &[u8],
        access: &Access,
        address: u64,
        mask: u32,
    ) -> Result<(), Fault> {
        if mask == 0 {
            return Ok(());
        }
        let total = u32::from(access.bytes) * u32::from(access.count);
        let place = self.locate(access.space, address, total, false, 0)?;
        for index in 0..usize::from(access.count) {
            let value = widened(access, index, self.read(place, local, index, access.bytes));
            let slot = access.slots[index];
            if access.wide[index] {
                registers.put64(slot, mask, &[value; LANES]);
            } else {
                #[expect(clippy::cast_possible_truncation, reason = "a narrow register")]
                let value = value as u32;
                registers.put32(slot, mask, &[value; LANES]);
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, place: Place, local: &[u8], index: usize, bytes: u8) -> u64 {
        let step = index * usize::from(bytes);
        match place {
            Place::Host(host) => host.read(index, bytes),
            Place::Shared(at) => read_bytes(&self.shared, at + step, bytes),
            Place::Local(at) => read_bytes(local, at + step, bytes),
            Place::Param(at) => read_bytes(self.params, at + step, bytes),
        }
    }

    /// Executes a store for the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        registers: &Registers,
        local: &mut [u8],
        access: &Access,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, access.address);
        let words = mask == FULL && access.bytes == 4 && access.count == 1 && !access.wide[0];
        if words && self.store_words(access.space, &at, registers.get32(access.slots[0])) {
            return Ok(());
        }
        self.store_lanes(registers, local, access, &at, mask)
    }

    /// As `load_words`, for a store. Of lanes that store to the same word, the
    /// last one wins.
    #[inline(always)]
    fn store_words(&mut self, space: Space, at: &[u64; LANES], row: &[u32; LANES]) -> bool {
        match space {
            Space::Global | Space::Generic => match self.host.find_words(at, true) {
                Some(words) => {
                    words.write(row);
                    true
                }
                None => false,
            },
            Space::Shared if self.shared_words(at) => {
                let (words, _) = self.shared.as_chunks_mut::<4>();
                for lane in 0..LANES {
                    words[(at[lane] >> 2) as usize] = row[lane].to_le_bytes();
                }
                true
            }
            Space::Shared | Space::Constant | Space::Local | Space::Param => false,
        }
    }

    /// Whether every address is that of an aligned word of shared memory, whose
    /// length is a multiple of a word's.
    #[inline(always)]
    fn shared_words(&self, at: &[u64; LANES]) -> bool {
        let length = self.shared.len() as u64;
        let mut bad = length & 3;
        for address in at {
            bad |= u64::from(*address >= length) | (address & 3);
        }
        bad == 0
    }

    #[inline(never)]
    fn store_lanes(
        &mut self,
        registers: &Registers,
        local: &mut [u8],
        access: &Access,
        at: &[u64; LANES],
        mask: u32,
    ) -> Result<(), Fault> {
        let total = u32::from(access.bytes) * u32::from(access.count);
        for lane in lanes(mask) {
            let place = self.locate(access.space, at[lane], total, true, lane)?;
            for index in 0..usize::from(access.count) {
                let slot = access.slots[index];
                let value = if access.wide[index] {
                    registers.get64(slot)[lane]
                } else {
                    u64::from(registers.get32(slot)[lane])
                };
                let step = index * usize::from(access.bytes);
                match place {
                    Place::Host(host) => host.write(index, access.bytes, value),
                    Place::Shared(at) => {
                        write_bytes(&mut self.shared, at + step, access.bytes, value);
                    }
                    Place::Local(at) => write_bytes(local, at + step, access.bytes, value),
                    // `locate` gives no parameter to write to.
                    Place::Param(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Copies from global to shared memory.
    #[inline(never)]
    pub(crate) fn stage(
        &mut self,
        registers: &Registers,
        stage: &StageCopy,
        mask: u32,
    ) -> Result<(), Fault> {
        let (to, from) = (addresses(registers, stage.to), addresses(registers, stage.from));
        let bytes = u32::from(stage.bytes);
        for lane in lanes(mask) {
            let place = self.locate(Space::Shared, to[lane], bytes, true, lane)?;
            let wanted = stage.read.map_or(bytes, |slot| registers.get32(slot)[lane]);
            if wanted > bytes {
                return Err(Fault::InvalidProgram("cp.async reads more than it writes"));
            }
            let source = match wanted {
                0 => None,
                _ => Some(self.locate(Space::Global, from[lane], bytes, false, lane)?),
            };
            for index in 0..usize::from(stage.bytes) {
                let taken = source.filter(|_| index < wanted as usize);
                let value = taken.map_or(0, |source| self.read(source, &[], index, 1));
                if let Place::Shared(at) = place {
                    write_bytes(&mut self.shared, at + index, 1, value);
                }
            }
        }
        Ok(())
    }

    /// Replaces 16 bytes that `locate` found at an address, if they are those of `compare`; returns
    /// the old ones.
    pub(crate) fn exchange(
        &mut self,
        (place, address): (Place, u64),
        compare: Option<u128>,
        new: u128,
    ) -> Result<u128, Fault> {
        let at = match place {
            Place::Host(host) => return host.exchange(compare, new),
            Place::Shared(at) => at,
            Place::Local(_) | Place::Param(_) => {
                return Err(Fault::IllegalAddress { address, bytes: 16, write: true });
            }
        };
        let mut old = [0; 16];
        old.copy_from_slice(&self.shared[at..at + 16]);
        let old = u128::from_le_bytes(old);
        if compare.is_none_or(|compare| compare == old) {
            self.shared[at..at + 16].copy_from_slice(&new.to_le_bytes());
        }
        Ok(old)
    }

    /// Replaces a value that `locate` found; returns the old one.
    pub(crate) fn update(
        &mut self,
        place: Place,
        bytes: u8,
        change: impl Fn(u64) -> u64,
    ) -> Option<u64> {
        match place {
            Place::Host(host) => Some(host.update(change)),
            Place::Shared(at) => {
                let old = read_bytes(&self.shared, at, bytes);
                write_bytes(&mut self.shared, at, bytes, change(old));
                Some(old)
            }
            Place::Local(_) | Place::Param(_) => None,
        }
    }
}

/// A loaded element as its register holds it.
fn widened(access: &Access, index: usize, value: u64) -> u64 {
    let ty = match (access.signed, access.bytes) {
        (true, 1) => Type::S8,
        (true, 2) => Type::S16,
        (true, 4) => Type::S32,
        _ => return value,
    };
    extend(value, ty, u32::from(access.register_bits[index]))
}
