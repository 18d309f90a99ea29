//! Programs that die, or stop, in the middle of a call.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use gpuzone_wire::spec::Opcode;
use rustix::process::{Signal, getpid, kill_process};

use crate::arena::{Arena, Dice, slot};
use crate::line::{WANTS_REPLY, Word, record};
use crate::spec::{CONTEXT, Shop, example};

/// Places in a call to die at.
const POINTS: u32 = 6;

/// Starts this program anew.
fn again(arguments: &[String]) -> anyhow::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).stdout(Stdio::piped());
    command.spawn().context("cannot start this program again")
}

/// Dies within a call: before it is published, with a part of it written and published, with all of it,
/// and while it is being answered.
pub(crate) fn die(opcode: u16, point: u32) -> anyhow::Result<String> {
    let opcode = Opcode::of(opcode)?;
    let mut shop = Shop::open(&slot()?)?;
    // Something is under way.
    let _ = shop.launch([4, 1, 1], 1000);
    let bytes = record(opcode as u16, WANTS_REPLY, CONTEXT.0, &example(opcode, shop.pointer));
    let (place, _) = shop.client.places();
    let half = bytes.len() / 2;
    match point {
        0 => shop.memory.write_request(place.position, &bytes[..half]),
        1 => {
            shop.memory.write_request(place.position, &bytes[..half]);
            shop.memory.publish(place);
        }
        _ => {
            shop.memory.write_request(place.position, &bytes);
            shop.memory.publish(place);
        }
    }
    let mut dice = Dice::new(u64::from(point) << 16 | u64::from(opcode as u16));
    match point {
        0..=2 => {}
        3 => std::thread::sleep(Duration::from_micros(dice.below(300))),
        _ => std::thread::sleep(Duration::from_millis(dice.below(4))),
    }
    kill_process(getpid(), Signal::KILL)?;
    std::thread::sleep(Duration::from_secs(10));
    anyhow::bail!("this program should be dead")
}

pub(crate) fn die_everywhere(arena: &Arena) -> anyhow::Result<String> {
    let places = Opcode::ALL.iter().flat_map(|opcode| (0..POINTS).map(|at| (*opcode as u16, at)));
    let mut places: Vec<(u16, u32)> = places.collect();
    let (all, mut dice, mut died) = (places.len(), Dice::new(0x6469_6565), 0);
    while died < 4 || (arena.goes_on() && !places.is_empty()) {
        let (opcode, at) = places.swap_remove(usize::try_from(dice.below(places.len() as u64))?);
        let mut child = again(&["die".to_owned(), opcode.to_string(), at.to_string()])?;
        let status = child.wait()?;
        ensure!(status.code().is_none(), "it did not die but ended with {status}");
        died += 1;
    }
    Shop::open(&arena.slot).context("an honest greeting is not heard any more")?;
    Ok(format!("died={died} of={all}"))
}

/// Has work under way and stops.
pub(crate) fn stop(unread: bool) -> anyhow::Result<String> {
    let mut shop = Shop::open(&slot()?)?;
    for _ in 0..64 {
        let _ = shop.launch([16, 1, 1], 200);
    }
    let (mut place, _) = shop.client.places();
    loop {
        let head = shop.memory.word(Word::RequestHead).load(Ordering::Acquire);
        if !unread || place.position.wrapping_sub(head) > 1 << 20 {
            break;
        }
        let control = example(Opcode::CopyToHost, shop.pointer);
        let bytes = record(Opcode::CopyToHost as u16, WANTS_REPLY, CONTEXT.0, &control);
        shop.memory.append(&mut place, &bytes);
    }
    crate::say("stopped");
    kill_process(getpid(), Signal::STOP)?;
    Ok("was woken".to_owned())
}

pub(crate) fn stop_everywhere(arena: &Arena) -> anyhow::Result<String> {
    let mut children = Vec::new();
    for unread in [0, 1, 0, 1] {
        let mut child = again(&["stop".to_owned(), unread.to_string()])?;
        let said = child.stdout.take().map(BufReader::new);
        let line =
            said.and_then(|said| said.lines().next()).context("it did not come so far")??;
        ensure!(line == "stopped", "it said '{line}'");
        children.push(child);
    }
    arena.wait();
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    Ok(format!("stopped={}", children.len()))
}
