//! The loop that executes a warp's instructions.
//!
//! It is compiled twice on x86-64: as it is, and for hosts with AVX2 and fused
//! multiply-add, where each loop over lanes becomes a few vector instructions.
//! Both give the same results.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Fault;
use super::block::Surroundings;
use super::calls::call;
use super::collective::{barrier, collective};
use super::compute::compute;
use super::convert::convert;
use super::registers::{LANES, Registers};
use super::warp::Warp;
use crate::ir::{Op, Slot, SpecialClock};

/// Executes up to `turn` instructions; stops early when all lanes wait or have
/// ended. Returns how many were executed.
pub(crate) fn run(warp: &mut Warp, around: &mut Surroundings<'_>, turn: u32) -> Result<u32, Fault> {
    #[cfg(target_arch = "x86_64")]
    if around.wide_vectors {
        // SAFETY: `wide_vectors` says that the host has the features.
        return unsafe { run_wide(warp, around, turn) };
    }
    interpret(warp, around, turn)
}

/// Whether the host has what `run_wide` is compiled for.
#[cfg(target_arch = "x86_64")]
pub(crate) fn wide_vectors() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn run_wide(warp: &mut Warp, around: &mut Surroundings<'_>, turn: u32) -> Result<u32, Fault> {
    interpret(warp, around, turn)
}

#[inline(always)]
fn interpret(warp: &mut Warp, around: &mut Surroundings<'_>, turn: u32) -> Result<u32, Fault> {
    let code = &around.kernel.code;
    let mut executed = 0;
    while executed < turn {
        if (warp.mask == 0 || warp.pc >= warp.limit) && !warp.schedule() {
            break;
        }
        let Some(instruction) = code.instructions.get(warp.pc as usize) else {
            return Err(Fault::InvalidProgram("it ran past its end"));
        };
        executed += 1;
        let mut mask = warp.mask;
        if let Some((slot, negated)) = instruction.guard.condition() {
            let condition = warp.registers.predicate(slot);
            mask &= if negated { !condition } else { condition };
        }
        match instruction.op {
            Op::Bra { target } => {
                if mask == warp.mask {
                    warp.jump(target);
                } else if mask == 0 {
                    warp.pc += 1;
                } else {
                    warp.diverge(mask, target);
                }
                continue;
            }
            _ if mask == 0 => {}
            Op::BraIndexed { index, table } => {
                branch_indexed(warp, &code.tables[table as usize], index, mask)?;
                continue;
            }
            Op::Exit => {
                warp.exit(mask);
                continue;
            }
            Op::Trap => return Err(Fault::Trap),
            Op::Call { .. }
            | Op::CallIndirect { .. }
            | Op::Enter { .. }
            | Op::Return { .. }
            | Op::CopyFrame { .. }
            | Op::Print { .. }
            | Op::AssertFail { .. } => {
                call(warp, around, instruction.op, mask)?;
                continue;
            }
            Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Ballot { .. }
            | Op::MatchAny { .. }
            | Op::MatchAll { .. }
            | Op::Elect { .. }
            | Op::Reduce { .. }
            | Op::WarpBarrier { .. } => {
                collective(warp, code, instruction.op, mask);
                continue;
            }
            Op::Barrier { barrier: index } => {
                barrier(warp, around, &code.barriers[index as usize], mask)?;
                continue;
            }
            Op::Load { access } => {
                let access = &code.accesses[access as usize];
                around.memory.load(&mut warp.registers, &warp.local, access, mask)?;
            }
            Op::Store { access } => {
                let access = &code.accesses[access as usize];
                around.memory.store(&warp.registers, &mut warp.local, access, mask)?;
            }
            Op::Atomic { atomic } => {
                let atomic = &code.atomics[atomic as usize];
                around.memory.atomic(&mut warp.registers, atomic, mask)?;
            }
            Op::AtomicVector(atomic) => {
                let atomic = &code.vector_atomics[atomic as usize];
                around.memory.atomic_vector(&mut warp.registers, atomic, mask)?;
            }
            Op::AtomicWide(atomic) => {
                let atomic = &code.wide_atomics[atomic as usize];
                around.memory.atomic_wide(&mut warp.registers, atomic, mask)?;
            }
            Op::Stage { stage } => {
                let stage = &code.stages[stage as usize];
                around.memory.stage(&warp.registers, stage, mask)?;
            }
            Op::Fence => fence(Ordering::SeqCst),
            Op::ActiveMask { d } => {
                let value = [warp.mask; LANES];
                warp.registers.put32(d, mask, &value);
            }
            Op::Clock { clock, d } => read_clock(warp, around, clock, d, mask),
            Op::Sleep { time } => {
                sleep(warp, time, mask);
                // Others have their say, and so has who wants the launch to end.
                warp.pc += 1;
                break;
            }
            Op::Convert { conversion, d, a, wide_d, wide_a } => {
                let conversion = &code.conversions[conversion as usize];
                convert_lanes(&mut warp.registers, mask, conversion, ([d, a], [wide_d, wide_a]));
            }
            op => compute(&mut warp.registers, mask, op),
        }
        warp.pc += 1;
    }
    Ok(executed)
}

#[inline(never)]
fn branch_indexed(warp: &mut Warp, table: &[u32], index: Slot, mask: u32) -> Result<(), Fault> {
    let indices = *warp.registers.get32(index);
    let target = |lane: usize| table.get(indices[lane] as usize).copied();
    if super::memory::lanes(mask).any(|lane| target(lane).is_none()) {
        return Err(Fault::InvalidProgram("a branch is outside its table"));
    }
    warp.scatter(mask, |lane| target(lane).unwrap_or(0));
    Ok(())
}

#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "clocks are read in halves, and wrap")]
fn read_clock(warp: &mut Warp, around: &Surroundings<'_>, clock: SpecialClock, d: Slot, mask: u32) {
    let nanoseconds = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    };
    let ticks = || {
        let elapsed = around.started.elapsed().as_nanos();
        (elapsed * u128::from(around.clock_hz) / 1_000_000_000) as u64
    };
    let registers = &mut warp.registers;
    match clock {
        SpecialClock::Clock64 => registers.put64(d, mask, &[ticks(); LANES]),
        SpecialClock::GlobalTimer => registers.put64(d, mask, &[nanoseconds(); LANES]),
        SpecialClock::Clock => registers.put32(d, mask, &[ticks() as u32; LANES]),
        SpecialClock::ClockHigh => registers.put32(d, mask, &[(ticks() >> 32) as u32; LANES]),
        SpecialClock::GlobalTimerLow => {
            registers.put32(d, mask, &[nanoseconds() as u32; LANES]);
        }
        SpecialClock::GlobalTimerHigh => {
            registers.put32(d, mask, &[(nanoseconds() >> 32) as u32; LANES]);
        }
    }
}

/// Sleeps as long as the lane that wants it shortest; a millisecond at most, as on real GPUs.
#[inline(never)]
fn sleep(warp: &Warp, time: Slot, mask: u32) {
    const MOST: u32 = 1_000_000;
    let times = warp.registers.get32(time);
    let shortest = super::memory::lanes(mask).map(|lane| times[lane]).min().unwrap_or(0);
    if shortest > 0 {
        std::thread::sleep(Duration::from_nanos(shortest.min(MOST).into()));
    }
}

#[inline(never)]
fn convert_lanes(
    registers: &mut Registers,
    mask: u32,
    conversion: &crate::ir::Conversion,
    ([d, a], [wide_d, wide_a]): ([Slot; 2], [bool; 2]),
) {
    for lane in super::memory::lanes(mask) {
        let bits =
            if wide_a { registers.get64(a)[lane] } else { u64::from(registers.get32(a)[lane]) };
        let value = convert(conversion, bits);
        if wide_d {
            registers.row64(d)[lane] = value;
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "a narrow register")]
            let value = value as u32;
            registers.row32(d)[lane] = value;
        }
    }
}
