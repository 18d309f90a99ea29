//! Instructions in which lanes of a warp work together. Each names the lanes it
//! needs; lanes whose partners are elsewhere wait for them.

use super::Fault;
use super::block::{Arrivals, Surroundings};
use super::memory::lanes;
use super::registers::{LANES, Registers};
use super::warp::{State, Warp};
use crate::ir::{
    Barrier, BarrierReduce, BarrierVote, Code, IntOp, Op, Shuffle, ShuffleMode, Slot, VoteMode,
};

/// Of the lanes in `mask`, those whose partners are all here.
fn complete(warp: &Warp, mask: u32, members: Slot) -> u32 {
    let absent = warp.live & !mask;
    if absent == 0 {
        return mask;
    }
    let named = warp.registers.get32(members);
    lanes(mask).filter(|lane| named[*lane] & absent == 0).fold(0, |all, lane| all | 1 << lane)
}

/// Executes a collective instruction for the lanes that are complete, and leaves
/// the others at it.
pub(crate) fn collective(warp: &mut Warp, code: &Code, op: Op, mask: u32) {
    let members = match op {
        Op::Shuffle { shuffle } => code.shuffles[shuffle as usize].members,
        Op::Vote { members, .. }
        | Op::Ballot { members, .. }
        | Op::MatchAny { members, .. }
        | Op::MatchAll { members, .. }
        | Op::Elect { members, .. }
        | Op::Reduce { members, .. }
        | Op::WarpBarrier { members } => members,
        _ => return,
    };
    let ready = complete(warp, mask, members);
    let registers = &mut warp.registers;
    match op {
        Op::Shuffle { shuffle } => shuffled(registers, &code.shuffles[shuffle as usize], ready),
        Op::Vote { mode, d, p, .. } => vote(registers, mode, [d, p, members], ready),
        Op::Ballot { d, p, .. } => {
            let (votes, named) = (registers.predicate(p), *registers.get32(members));
            registers.put32(d, ready, &named.map(|named| votes & named & ready));
        }
        Op::MatchAny { wide, d, a, .. } => match_any(registers, wide, [d, a, members], ready),
        Op::MatchAll { wide, d, p, a, .. } => {
            match_all(registers, wide, [d, p, a, members], ready);
        }
        Op::Elect { d, p, .. } => {
            let named = *registers.get32(members);
            let leaders = named.map(|named| (named & ready).trailing_zeros());
            let leads = lanes(ready)
                .filter(|lane| leaders[*lane] as usize == *lane)
                .fold(0, |all, lane| all | 1 << lane);
            registers.put32(d, ready, &leaders);
            registers.put_predicate(p, ready, leads);
        }
        Op::Reduce { op, d, a, .. } => reduce(registers, op, [d, a, members], ready),
        _ => {}
    }
    let waiting = mask & !ready;
    warp.wait(waiting, warp.pc, State::Collective);
    if waiting != 0 && matches!(op, Op::WarpBarrier { .. }) {
        meet_elsewhere(warp, code);
    }
}

/// Lanes may meet at different `bar.warp.sync` instructions of the same mask.
fn meet_elsewhere(warp: &mut Warp, code: &Code) {
    let at_barrier = |pc: u32| match code.instructions[pc as usize].op {
        Op::WarpBarrier { members } => Some(members),
        _ => None,
    };
    let mut here = 0;
    for group in &warp.others {
        if group.state == State::Collective && at_barrier(group.pc).is_some() {
            here |= group.mask;
        }
    }
    let absent = warp.live & !here;
    for group in &mut warp.others {
        let Some(members) = at_barrier(group.pc) else { continue };
        let named = warp.registers.get32(members);
        if group.state == State::Collective
            && lanes(group.mask).all(|lane| named[lane] & absent == 0)
        {
            group.state = State::Ready;
            group.pc += 1;
        }
    }
    warp.release(u8::MAX);
}

fn shuffled(registers: &mut Registers, shuffle: &Shuffle, ready: u32) {
    let values = *registers.get32(shuffle.a);
    let (amounts, clamps) = (*registers.get32(shuffle.b), *registers.get32(shuffle.c));
    let mut result = values;
    let mut in_range = 0;
    for (lane, result) in result.iter_mut().enumerate() {
        let own = u32::try_from(lane).unwrap_or(0);
        let amount = amounts[lane] & 31;
        let (clamp, segment) = (clamps[lane] & 31, (clamps[lane] >> 8) & 31);
        let (last, first) = ((own & segment) | (clamp & !segment), own & segment);
        let (source, valid) = match shuffle.mode {
            ShuffleMode::Up => {
                let source = own.wrapping_sub(amount);
                (source, source.cast_signed() >= last.cast_signed())
            }
            ShuffleMode::Down => (own + amount, own + amount <= last),
            ShuffleMode::Butterfly => (own ^ amount, own ^ amount <= last),
            ShuffleMode::Index => {
                let source = first | (amount & !segment);
                (source, source <= last)
            }
        };
        in_range |= u32::from(valid) << lane;
        // A lane that takes no part has no value to give: the own one stays.
        if valid && source < 32 && (ready >> source) & 1 == 1 {
            *result = values[source as usize];
        }
    }
    registers.put32(shuffle.d, ready, &result);
    if let Some(p) = shuffle.p {
        registers.put_predicate(p, ready, in_range);
    }
}

fn vote(registers: &mut Registers, mode: VoteMode, [d, p, members]: [Slot; 3], ready: u32) {
    let votes = registers.predicate(p);
    let named = registers.get32(members);
    let mut result = 0;
    for lane in lanes(ready) {
        let group = named[lane] & ready;
        let (yes, no) = (votes & group != 0, !votes & group != 0);
        let answer = match mode {
            VoteMode::All => !no,
            VoteMode::Any => yes,
            VoteMode::Uni => !(yes && no),
        };
        result |= u32::from(answer) << lane;
    }
    registers.put_predicate(d, ready, result);
}

fn values(registers: &Registers, wide: bool, slot: Slot) -> [u64; LANES] {
    if wide { *registers.get64(slot) } else { registers.get32(slot).map(u64::from) }
}

fn match_all(registers: &mut Registers, wide: bool, [d, p, a, members]: [Slot; 4], ready: u32) {
    let values = values(registers, wide, a);
    let named = *registers.get32(members);
    let (mut result, mut all_same) = ([0; LANES], 0);
    for lane in lanes(ready) {
        let group = named[lane] & ready;
        if lanes(group).all(|other| values[other] == values[lane]) {
            result[lane] = group;
            all_same |= 1 << lane;
        }
    }
    registers.put32(d, ready, &result);
    registers.put_predicate(p, ready, all_same);
}

fn match_any(registers: &mut Registers, wide: bool, [d, a, members]: [Slot; 3], ready: u32) {
    let values = values(registers, wide, a);
    let named = registers.get32(members);
    let mut result = [0; LANES];
    for lane in lanes(ready) {
        result[lane] = lanes(named[lane] & ready)
            .filter(|other| values[*other] == values[lane])
            .fold(0, |all, other| all | 1 << other);
    }
    registers.put32(d, ready, &result);
}

fn reduce(registers: &mut Registers, op: IntOp, [d, a, members]: [Slot; 3], ready: u32) {
    let values = *registers.get32(a);
    let named = registers.get32(members);
    let signed = |pick: fn(i32, i32) -> i32, x: u32, y: u32| {
        pick(x.cast_signed(), y.cast_signed()).cast_unsigned()
    };
    let combine = |x: u32, y: u32| match op {
        IntOp::MinU => x.min(y),
        IntOp::MinS => signed(i32::min, x, y),
        IntOp::MaxU => x.max(y),
        IntOp::MaxS => signed(i32::max, x, y),
        IntOp::And => x & y,
        IntOp::Or => x | y,
        IntOp::Xor => x ^ y,
        // The parser gives no other but the sum.
        _ => x.wrapping_add(y),
    };
    let mut result = [0; LANES];
    for lane in lanes(ready) {
        let group = lanes(named[lane] & ready).map(|other| values[other]);
        result[lane] = group.reduce(combine).unwrap_or(values[lane]);
    }
    registers.put32(d, ready, &result);
}

/// Lanes reach a barrier of their block.
pub(crate) fn barrier(
    warp: &mut Warp,
    around: &mut Surroundings<'_>,
    barrier: &Barrier,
    mask: u32,
) -> Result<(), Fault> {
    let Some(first) = lanes(mask).next() else {
        warp.pc += 1;
        return Ok(());
    };
    let uniform = |slot: Slot| {
        let row = warp.registers.get32(slot);
        lanes(mask).all(|lane| row[lane] == row[first]).then_some(row[first])
    };
    let Some(id) = uniform(barrier.id).and_then(|id| u8::try_from(id).ok()) else {
        return Err(Fault::InvalidProgram("a barrier's number is not one of 0 to 15"));
    };
    let Some(arrivals) = around.barriers.get_mut(usize::from(id)) else {
        return Err(Fault::InvalidProgram("a barrier's number is not one of 0 to 15"));
    };
    if let Some(threads) = barrier.threads {
        match uniform(threads) {
            Some(threads) if threads != 0 && threads % 32 == 0 => {
                arrivals.expected = Some(threads);
            }
            _ => {
                return Err(Fault::InvalidProgram("a barrier's threads are not whole warps"));
            }
        }
    }
    arrivals.arrived = arrivals.arrived.saturating_add(mask.count_ones());
    if let Some(reduce) = barrier.reduce {
        let votes = warp.registers.predicate(reduce.p) & mask;
        arrivals.votes = arrivals.votes.saturating_add(votes.count_ones());
    }
    if barrier.wait {
        warp.wait(mask, warp.pc + 1, State::Barrier(id));
    } else {
        warp.pc += 1;
    }
    Ok(())
}

/// Tells the lanes of a warp that wait at a barrier how its threads voted.
pub(crate) fn announce(warp: &mut Warp, code: &Code, id: u8, arrivals: Arrivals) {
    for group in &warp.others {
        if group.state != State::Barrier(id) {
            continue;
        }
        // The group waits behind the instruction that brought it here.
        let Op::Barrier { barrier } = code.instructions[group.pc as usize - 1].op else { continue };
        let Some(BarrierReduce { mode, d, .. }) = code.barriers[barrier as usize].reduce else {
            continue;
        };
        let answer = match mode {
            BarrierVote::Count => {
                warp.registers.put32(d, group.mask, &[arrivals.votes; LANES]);
                continue;
            }
            BarrierVote::All => arrivals.votes == arrivals.arrived,
            BarrierVote::Any => arrivals.votes != 0,
        };
        warp.registers.put_predicate(d, group.mask, if answer { u32::MAX } else { 0 });
    }
}
