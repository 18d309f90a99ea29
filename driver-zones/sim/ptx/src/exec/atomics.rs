//! Atomic operations of a warp: lane after lane, each of them atomic.

use super::Fault;
use super::half;
use super::memory::{Memory, Place, addresses, lanes};
use super::registers::Registers;
use super::scalar_float::{bits32, bits64, flush};
use crate::ir::{Atomic, AtomicOp, Slot, Space, VectorAtomic, WideAtomic};

impl Memory<'_> {
    #[inline(never)]
    pub(crate) fn atomic(
        &mut self,
        registers: &mut Registers,
        atomic: &Atomic,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, atomic.address);
        let bytes = u32::from(atomic.bytes);
        let wide = bytes == 8;
        let value = |registers: &Registers, slot: Slot, lane: usize| {
            if wide { registers.get64(slot)[lane] } else { u64::from(registers.get32(slot)[lane]) }
        };
        for lane in lanes(mask) {
            let place = self.locate(atomic.space, at[lane], bytes, true, lane)?;
            let (b, c) = (value(registers, atomic.b, lane), value(registers, atomic.c, lane));
            // Atomic addition of singles flushes subnormals in global memory only.
            let ftz = matches!(place, Place::Host(_));
            let old = self
                .update(place, atomic.bytes, |old| apply(atomic.op, (8 * bytes, ftz), old, [b, c]));
            let Some(old) = old else {
                let address = at[lane];
                return Err(Fault::IllegalAddress { address, bytes, write: true });
            };
            match atomic.d {
                Some(d) if wide => registers.row64(d)[lane] = old,
                #[expect(clippy::cast_possible_truncation, reason = "a narrow value")]
                Some(d) => registers.row32(d)[lane] = old as u32,
                None => {}
            }
        }
        Ok(())
    }

    /// Elements are taken one after the other; all operands are read before the first result is
    /// written.
    #[inline(never)]
    pub(crate) fn atomic_vector(
        &mut self,
        registers: &mut Registers,
        atomic: &VectorAtomic,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, atomic.address);
        let (bytes, count) = (u32::from(atomic.bytes), atomic.elements.len());
        let total = bytes * u32::try_from(count).unwrap_or(u32::MAX);
        for lane in lanes(mask) {
            let place = self.locate(Space::Global, at[lane], total, true, lane)?;
            let Place::Host(host) = place else { continue };
            let mut values = [0; 8];
            for (value, (_, b)) in values.iter_mut().zip(&atomic.elements) {
                *value = registers.get32(*b)[lane];
            }
            for (index, (value, (d, _))) in values.iter().zip(&atomic.elements).enumerate() {
                let operands = [u64::from(*value), 0];
                let change = |old| apply(atomic.op, (8 * bytes, true), old, operands);
                let old = host.part(index, atomic.bytes).update(change);
                if let Some(d) = d {
                    #[expect(clippy::cast_possible_truncation, reason = "a narrow value")]
                    let old = old as u32;
                    registers.row32(*d)[lane] = old;
                }
            }
        }
        Ok(())
    }

    #[inline(never)]
    pub(crate) fn atomic_wide(
        &mut self,
        registers: &mut Registers,
        atomic: &WideAtomic,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, atomic.address);
        let whole = |registers: &Registers, slot: Slot, lane: usize| {
            let half = |slot: Slot| u128::from(registers.get64(slot)[lane]);
            half(slot) | half(slot + 1) << 64
        };
        for lane in lanes(mask) {
            let place = self.locate(atomic.space, at[lane], 16, true, lane)?;
            let new = whole(registers, atomic.new, lane);
            let compare = atomic.compare.map(|slot| whole(registers, slot, lane));
            let old = self.exchange((place, at[lane]), compare, new)?;
            if let Some(d) = atomic.d {
                #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
                let low = old as u64;
                let high = (old >> 64) as u64;
                registers.row64(d)[lane] = low;
                registers.row64(d + 1)[lane] = high;
            }
        }
        Ok(())
    }
}

/// The new value of `bits` bits; bits above them are cut off by who stores it.
#[expect(clippy::cast_possible_truncation, reason = "operations of 32 bits")]
fn apply(op: AtomicOp, (bits, ftz): (u32, bool), old: u64, [b, c]: [u64; 2]) -> u64 {
    let unused = 64 - bits;
    let b = b << unused >> unused;
    let signed = |value: u64| (value << unused).cast_signed();
    let pick = |first: bool| if first { old } else { b };
    match op {
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::AddSingle => {
            let part =
                |bits: u64| f32::from_bits(if ftz { flush(bits as u32) } else { bits as u32 });
            let sum = bits32(part(old) + part(b));
            u64::from(if ftz { flush(sum) } else { sum })
        }
        AtomicOp::AddDouble => bits64(f64::from_bits(old) + f64::from_bits(b)),
        AtomicOp::Half(op, mode) => u64::from(half::scalar((op, mode), [old as u32, b as u32, 0])),
        AtomicOp::MinU => old.min(b),
        AtomicOp::MinS => pick(signed(old) <= signed(b)),
        AtomicOp::MaxU => old.max(b),
        AtomicOp::MaxS => pick(signed(old) >= signed(b)),
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::Exchange => b,
        AtomicOp::CompareSwap => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomicOp::Increment => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
