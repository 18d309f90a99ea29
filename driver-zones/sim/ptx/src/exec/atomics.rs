//! Atomic operations of a warp: lane after lane, each of them atomic.

use super::Fault;
use super::memory::{Memory, Place, addresses, lanes};
use super::registers::Registers;
use super::scalar_float::{bits32, bits64, flush};
use crate::ir::{Atomic, AtomicOp, Slot};

impl Memory<'_> {
    #[inline(never)]
    pub(crate) fn atomic(
        &mut self,
        registers: &mut Registers,
        atomic: &Atomic,
        mask: u32,
    ) -> Result<(), Fault> {
        let at = addresses(registers, atomic.address);
        let bytes = if atomic.wide { 8 } else { 4 };
        let value = |registers: &Registers, slot: Slot, lane: usize| {
            if atomic.wide {
                registers.get64(slot)[lane]
            } else {
                u64::from(registers.get32(slot)[lane])
            }
        };
        for lane in lanes(mask) {
            let place = self.locate(atomic.space, at[lane], bytes, true, lane)?;
            let (b, c) = (value(registers, atomic.b, lane), value(registers, atomic.c, lane));
            // Atomic float addition flushes subnormals in global memory only.
            let ftz = matches!(place, Place::Host(_));
            let old = self.update(place, atomic.wide, |old| {
                if atomic.wide {
                    apply64(atomic.op, old, b, c)
                } else {
                    #[expect(clippy::cast_possible_truncation, reason = "32-bit operands")]
                    let (old, b, c) = (old as u32, b as u32, c as u32);
                    u64::from(apply32(atomic.op, old, b, c, ftz))
                }
            });
            let Some(old) = old else {
                let address = at[lane];
                return Err(Fault::IllegalAddress { address, bytes, write: true });
            };
            match atomic.d {
                Some(d) if atomic.wide => registers.row64(d)[lane] = old,
                #[expect(clippy::cast_possible_truncation, reason = "a 32-bit value")]
                Some(d) => registers.row32(d)[lane] = old as u32,
                None => {}
            }
        }
        Ok(())
    }
}

fn apply32(op: AtomicOp, old: u32, b: u32, c: u32, ftz: bool) -> u32 {
    match op {
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::AddFloat => {
            let part = |bits| f32::from_bits(if ftz { flush(bits) } else { bits });
            let sum = bits32(part(old) + part(b));
            if ftz { flush(sum) } else { sum }
        }
        AtomicOp::MinU => old.min(b),
        AtomicOp::MinS => old.cast_signed().min(b.cast_signed()).cast_unsigned(),
        AtomicOp::MaxU => old.max(b),
        AtomicOp::MaxS => old.cast_signed().max(b.cast_signed()).cast_unsigned(),
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

fn apply64(op: AtomicOp, old: u64, b: u64, c: u64) -> u64 {
    match op {
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::AddFloat => bits64(f64::from_bits(old) + f64::from_bits(b)),
        AtomicOp::MinU => old.min(b),
        AtomicOp::MinS => old.cast_signed().min(b.cast_signed()).cast_unsigned(),
        AtomicOp::MaxU => old.max(b),
        AtomicOp::MaxS => old.cast_signed().max(b.cast_signed()).cast_unsigned(),
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
        // PTX has neither for 64 bits; the parser refuses them.
        AtomicOp::Increment | AtomicOp::Decrement => old,
    }
}
