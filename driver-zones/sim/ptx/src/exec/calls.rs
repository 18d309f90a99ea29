//! Calls of device functions, and of what the driver provides.

use super::Fault;
use super::block::Surroundings;
use super::memory::{Memory, lanes};
use super::print::{self, Arguments};
use super::registers::LANES;
use super::warp::Warp;
use super::windows;
use crate::Dim3;
use crate::ir::{Code, CopyPlace, FrameCopy, Op, Print, Report, Slot, Space};

/// Longest text that a kernel may have formatted or reported.
const LONGEST_TEXT: usize = 4096;

#[inline(never)]
pub(super) fn call(
    warp: &mut Warp,
    around: &mut Surroundings<'_>,
    op: Op,
    mask: u32,
) -> Result<(), Fault> {
    let code = &around.kernel.code;
    match op {
        Op::Call { target, link } => {
            warp.registers.put32(link, mask, &[warp.pc + 1; LANES]);
            warp.scatter(mask, |_| target);
            return Ok(());
        }
        Op::CallIndirect { a, link } => return call_indirect(warp, code, [a, link], mask),
        Op::Return { a } => {
            let targets = *warp.registers.get32(a);
            warp.registers.put32(a, mask, &[0; LANES]);
            warp.scatter(mask, |lane| targets[lane]);
            return Ok(());
        }
        Op::Enter { d, link } => {
            // An address that is still there is that of a call that has not returned.
            let own = warp.registers.get32(d);
            if lanes(mask).any(|lane| own[lane] != 0) {
                return Err(Fault::InvalidProgram("a function calls itself through a pointer"));
            }
            let link = *warp.registers.get32(link);
            warp.registers.put32(d, mask, &link);
        }
        Op::CopyFrame { copy } => {
            copy_frame(warp, &around.memory, code.copies[copy as usize], mask)
        }
        Op::Print { print } => {
            for lane in lanes(mask) {
                print_lane(warp, around, code.prints[print as usize], lane)?;
            }
        }
        Op::AssertFail { report } => {
            if let Some(lane) = lanes(mask).next() {
                return Err(failed_assert(warp, around, code.reports[report as usize], lane));
            }
        }
        _ => {}
    }
    warp.pc += 1;
    Ok(())
}

fn call_indirect(
    warp: &mut Warp,
    code: &Code,
    [a, link]: [Slot; 2],
    mask: u32,
) -> Result<(), Fault> {
    let pointers = *warp.registers.get64(a);
    let target = |lane: usize| code.functions.get(&windows::function_at(pointers[lane])?).copied();
    if lanes(mask).any(|lane| target(lane).is_none()) {
        return Err(Fault::InvalidProgram("a call through a pointer that is no function's"));
    }
    warp.registers.put32(link, mask, &[warp.pc + 1; LANES]);
    warp.scatter(mask, |lane| target(lane).unwrap_or(0));
    Ok(())
}

fn copy_frame(warp: &mut Warp, memory: &Memory<'_>, copy: FrameCopy, mask: u32) {
    let (CopyPlace::Local(from), CopyPlace::Local(to)) = (copy.from, copy.to) else { return };
    for lane in lanes(mask) {
        let base = lane * memory.local_bytes;
        let from = base + from as usize;
        // Both lie in the lane's memory, whose size the kernel was given for them.
        warp.local.copy_within(from..from + copy.bytes as usize, base + to as usize);
    }
}

/// What a lane's service call reads of its memory.
struct Reader<'r, 'a> {
    memory: &'r mut Memory<'a>,
    local: &'r [u8],
    lane: usize,
}

impl Reader<'_, '_> {
    fn read(&mut self, space: Space, address: u64, bytes: u8) -> Result<u64, Fault> {
        let place = self.memory.locate(space, address, u32::from(bytes), false, self.lane)?;
        Ok(self.memory.read(place, self.local, 0, bytes))
    }

    fn local(&mut self, offset: u32, bytes: u8) -> Result<u64, Fault> {
        self.read(Space::Local, u64::from(offset), bytes)
    }

    /// The bytes at a generic address up to a zero, or as many as are looked at.
    fn text(&mut self, address: u64) -> Result<Vec<u8>, Fault> {
        let mut text = Vec::new();
        while text.len() < LONGEST_TEXT {
            let at = address.wrapping_add(text.len() as u64);
            match self.read(Space::Generic, at, 1)?.to_le_bytes()[0] {
                0 => break,
                byte => text.push(byte),
            }
        }
        Ok(text)
    }
}

/// Arguments of `vprintf`: in the order of the format, each at a multiple of its size.
struct Values<'r, 'm, 'a> {
    reader: &'r mut Reader<'m, 'a>,
    at: u64,
}

impl Arguments for Values<'_, '_, '_> {
    type Error = Fault;

    fn next(&mut self, bytes: u8) -> Result<u64, Fault> {
        let at = self.at.next_multiple_of(u64::from(bytes));
        self.at = at.wrapping_add(u64::from(bytes));
        self.reader.read(Space::Generic, at, bytes)
    }

    fn text(&mut self, address: u64) -> Result<Vec<u8>, Fault> {
        if address == 0 {
            return Ok(b"(null)".to_vec());
        }
        self.reader.text(address)
    }
}

fn print_lane(
    warp: &mut Warp,
    around: &mut Surroundings<'_>,
    print: Print,
    lane: usize,
) -> Result<(), Fault> {
    let mut reader = Reader { memory: &mut around.memory, local: &warp.local, lane };
    let format = reader.local(print.format, 8)?;
    let at = reader.local(print.values, 8)?;
    let format = reader.text(format)?;
    let mut values = Values { reader: &mut reader, at };
    let (text, count) = print::format(&format, LONGEST_TEXT, &mut values)?;
    around.prints.add(text);
    let result = lane * around.memory.local_bytes + print.result as usize;
    warp.local[result..result + 4].copy_from_slice(&count.to_le_bytes());
    Ok(())
}

fn failed_assert(warp: &Warp, around: &mut Surroundings<'_>, report: Report, lane: usize) -> Fault {
    let Dim3 { x, y, z } = around.block;
    let extent = around.extent;
    let thread = warp.first + u32::try_from(lane).unwrap_or(0);
    let (tx, ty) = (thread % extent.x, thread / extent.x % extent.y);
    let tz = thread / extent.x / extent.y;
    let mut reader = Reader { memory: &mut around.memory, local: &warp.local, lane };
    let mut text = |offset: u32| -> Result<String, Fault> {
        let address = reader.local(offset, 8)?;
        Ok(String::from_utf8_lossy(&reader.text(address)?).into_owned())
    };
    let parts = (text(report.file), text(report.function), text(report.message));
    let (Ok(file), Ok(function), Ok(message)) = parts else { return Fault::Trap };
    let line = reader.local(report.line, 4).unwrap_or(0);
    Fault::Assert(format!(
        "{file}:{line}: {function}: block: [{x},{y},{z}], thread: [{tx},{ty},{tz}] \
         Assertion `{message}` failed."
    ))
}
