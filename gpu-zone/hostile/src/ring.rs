//! Attacks at the shared memory of the rings.

use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};
use gpuzone_wire::ring::places::RecordPlace;
use gpuzone_wire::spec::{DevicePtr, Opcode};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::arena::{Arena, Dice};
use crate::line::{ALIGN, HALF_WORDS, HEADER, Line, WANTS_REPLY, Word, header, record};
use crate::spec::{CONTEXT, Shop, example};

pub(crate) fn reseal(arena: &Arena) -> anyhow::Result<String> {
    let mut rounds = 0;
    while rounds == 0 || arena.goes_on() {
        rounds += 1;
        let line = Line::open(&arena.slot)?;
        let file = &line.file;
        for bytes in [0, 4096, 1 << 30, u64::MAX >> 1] {
            ensure!(ftruncate(file, bytes).is_err(), "the rings' file took a size of {bytes}");
        }
        for seals in [SealFlags::WRITE, SealFlags::FUTURE_WRITE, SealFlags::SHRINK] {
            ensure!(fcntl_add_seals(file, seals).is_err(), "the rings' file took {seals:?}");
        }
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        if let Ok(again) = std::fs::File::options().write(true).open(&own) {
            ensure!(again.set_len(0).is_err(), "the rings' file took a size when opened anew");
        }
        // Holes are zeros, to be read and written as before.
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(file, hole, 0, line.memory.len() as u64);
        let _ = fallocate(file, FallocateFlags::KEEP_SIZE, 0, 1 << 40);
        let grown = fallocate(file, FallocateFlags::empty(), 0, 1 << 30);
        ensure!(grown.is_err(), "the rings' file grew");
        map_executable(&line)?;
        line.put(&record(u16::MAX, WANTS_REPLY, 0, &[]), ALIGN);
        line.ends().context("after holes were punched into the rings")?;
    }
    Ok(format!("rounds={rounds}"))
}

/// Whatever it may map of its own rings is its own affair; that the file is no larger than it
/// was is the worker's.
fn map_executable(line: &Line) -> anyhow::Result<()> {
    let everything = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    let length = line.memory.len();
    // SAFETY: a new mapping at an address of the kernel's choice, which nothing touches.
    unsafe {
        if let Ok(base) =
            mmap(std::ptr::null_mut(), length, everything, MapFlags::SHARED, &line.file, 0)
        {
            munmap(base, length)?;
        }
    }
    Ok(())
}

/// Of positions, the worker reads the one that says how much of its answers was read, when there
/// seems to be no room for more: so much is asked that this comes to be.
pub(crate) fn positions(arena: &Arena) -> anyhow::Result<String> {
    let mut dice = Dice::new(0x706f_7369);
    let (mut sessions, mut ended, mut answered) = (0_u64, 0_u64, 0_u64);
    let edges = [0, 1, 31, 32, 33, 4096, 4 << 20, (4 << 20) + 64, 1 << 40, u64::MAX, u64::MAX - 63];
    let question = record(Opcode::MemoryInfo as u16, WANTS_REPLY, 0, &[]);
    while sessions < 8 || arena.goes_on() {
        sessions += 1;
        let line = Line::open(&arena.slot)?;
        // More than there is room for answers to, or a few.
        let all = if sessions.is_multiple_of(4) { 5 << 20 } else { 64 * dice.below(6) };
        let (mut asked, half) = (0, all / 2);
        while asked < all && !line.was_ended() {
            if asked == half {
                spoil(&line, &mut dice, &edges)?;
            }
            let read = line.memory.word(Word::RequestHead).load(Ordering::Acquire);
            if asked.saturating_sub(read) < 1 << 20 {
                line.put(&question, ALIGN);
                asked += ALIGN as u64;
            }
        }
        // A record, at last, that is none, which has to be seen if nothing was before.
        line.put(&header([1, 2, 3], 0, 0, 0), ALIGN);
        line.ends()?;
        ended += 1;
        answered += u64::from(asked == all);
    }
    ensure!(answered < sessions, "no session was ended for its positions");
    Ok(format!("sessions={sessions} ended={ended}"))
}

/// Writes anything into any words of the control page.
fn spoil(line: &Line, dice: &mut Dice, edges: &[u64]) -> anyhow::Result<()> {
    for _ in 0..dice.below(40) {
        let pick = usize::try_from(dice.below(Word::ALL.len() as u64))?;
        let at = usize::try_from(dice.below(edges.len() as u64))?;
        let value = if dice.below(2) == 0 { edges[at] } else { dice.next() };
        // The attack itself goes by how much was read.
        if !matches!(Word::ALL[pick], Word::RequestHead) {
            line.memory.word(Word::ALL[pick]).store(value, Ordering::SeqCst);
        }
        let half = usize::try_from(dice.below(HALF_WORDS.len() as u64))?;
        line.memory.half(HALF_WORDS[half]).store(u32::try_from(value >> 32)?, Ordering::SeqCst);
    }
    // Further than anything was written.
    line.memory.word(Word::ReplyHead).store(1 << 62 | dice.next(), Ordering::SeqCst);
    Ok(())
}

pub(crate) fn lengths(arena: &Arena) -> anyhow::Result<String> {
    let edges = [
        0,
        1,
        16,
        31,
        32,
        33,
        64,
        4096,
        128 << 10,
        (128 << 10) + 1,
        512 << 10,
        (512 << 10) + 1,
        655_424,
        4 << 20,
        (4 << 20) + 32,
        i32::MAX as u32,
        u32::MAX - 31,
        u32::MAX,
    ];
    let mut bad = Vec::new();
    for total in edges {
        for control in edges {
            for bulk in edges {
                if !is_honest(total, control, bulk) {
                    bad.push(header([total, control, bulk], Opcode::Launch as u16, 0, 1));
                }
            }
        }
    }
    for opcode in Opcode::ALL {
        let whole = example(*opcode, DevicePtr(0));
        for cut in 0..whole.len() {
            bad.push(record(*opcode as u16, WANTS_REPLY, 1, &whole[..cut]));
        }
        let more = [&whole[..], &[0]].concat();
        bad.push(record(*opcode as u16, WANTS_REPLY, 1, &more));
    }
    for number in [Opcode::ALL.len(), 1000, u16::MAX.into()] {
        bad.push(record(u16::try_from(number)?, WANTS_REPLY, 1, &[]));
    }
    let all = bad.len();
    // In another order each time, so that a short time sees some of each kind.
    let mut dice = Dice::new(0x6c65_6e67);
    let mut sent = 0;
    while sent < 20 || (arena.goes_on() && !bad.is_empty()) {
        let bytes = bad.swap_remove(usize::try_from(dice.below(bad.len() as u64))?);
        let line = Line::open(&arena.slot)?;
        line.put(&bytes, bytes.len());
        line.ends()
            .with_context(|| format!("after a record that begins {:?}", &bytes[..HEADER]))?;
        sent += 1;
    }
    Ok(format!("sent={sent} of={all}"))
}

fn is_honest(total: u32, control: u32, bulk: u32) -> bool {
    let (control, bulk) = (u64::from(control), u64::from(bulk));
    let honest =
        (HEADER as u64 + control.next_multiple_of(16) + bulk).next_multiple_of(ALIGN as u64);
    control <= 128 << 10 && bulk <= 512 << 10 && honest == u64::from(total)
}

pub(crate) fn race(arena: &Arena) -> anyhow::Result<String> {
    let mut sessions = 0_u64;
    while sessions < 4 || arena.goes_on() {
        sessions += 1;
        let line = Line::open(&arena.slot)?;
        let good = record(Opcode::Unsupported as u16, 0, 0, &[1, 0, 0, 0]);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // One changes lengths and fields of the records around the tail all the time…
            scope.spawn(|| {
                let mut dice = Dice::new(sessions);
                while !stop.load(Ordering::Relaxed) {
                    let tail = line.tail.load(Ordering::Relaxed);
                    let at = tail.saturating_sub(dice.below(4) * ALIGN as u64);
                    // But for the stamp: without it nothing would be read any more.
                    let field = 8 + dice.below(40);
                    let byte = if dice.below(8) == 0 {
                        dice.next().to_le_bytes()[0]
                    } else {
                        good.get(usize::try_from(field).unwrap_or(0)).copied().unwrap_or(0)
                    };
                    line.memory.write_request(at + field, &[byte]);
                }
            });
            // … while another sends.
            for _ in 0..20_000 {
                let tail = line.tail.load(Ordering::Relaxed);
                let head = line.memory.word(Word::RequestHead).load(Ordering::Acquire);
                if line.was_ended() || !arena.goes_on() {
                    break;
                }
                if tail.wrapping_sub(head) < 1 << 20 {
                    line.put(&good, good.len());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
    Line::open(&arena.slot).context("an honest greeting is not heard any more")?;
    Ok(format!("sessions={sessions}"))
}

pub(crate) fn replies(arena: &Arena) -> anyhow::Result<String> {
    let mut dice = Dice::new(0x7265_706c);
    let (mut sessions, mut refused) = (0_u64, 0_u64);
    while sessions < 4 || arena.goes_on() {
        // Its worker may be ending what this broke; it is waited for, but not for ever.
        let mut shop = match Shop::open(&arena.slot) {
            Ok(shop) => shop,
            Err(error) if refused > 1000 => return Err(error),
            Err(_) => {
                refused += 1;
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            }
        };
        sessions += 1;
        let _ = shop.launch([4, 1, 1], 100);
        let copy = record(
            Opcode::CopyToHost as u16,
            WANTS_REPLY,
            CONTEXT.0,
            &example(Opcode::CopyToHost, shop.pointer),
        );
        let (mut ask, mut read) = shop.client.places();
        for _ in 0..200 {
            let head = shop.memory.word(Word::RequestHead).load(Ordering::Acquire);
            if ask.position.wrapping_sub(head) > 1 << 20 {
                break;
            }
            shop.memory.append(&mut ask, &copy);
            for _ in 0..50 {
                let place = usize::try_from(dice.below(shop.memory.len() as u64))?;
                // Not how the request ring stands: that is another attack's.
                if place >= 512 {
                    shop.memory.write(place, dice.next().to_le_bytes()[1]);
                }
            }
            // "All of it was read": there is always room for the next.
            read = shop.memory.replies_end(read);
            let jump = if dice.below(30) == 0 { dice.next() } else { read.position };
            shop.memory.word(Word::ReplyHead).store(jump, Ordering::SeqCst);
        }
    }
    Ok(format!("sessions={sessions} refused={refused}"))
}

pub(crate) fn unread(arena: &Arena) -> anyhow::Result<String> {
    let shops: Vec<Shop> =
        (0..arena.pick(4, 32)).map(|_| Shop::open(&arena.slot)).collect::<anyhow::Result<_>>()?;
    let mut places: Vec<RecordPlace> = shops.iter().map(|shop| shop.client.places().0).collect();
    let mut asked = 0_u64;
    while arena.goes_on() {
        for (shop, place) in shops.iter().zip(&mut places) {
            let head = shop.memory.word(Word::RequestHead).load(Ordering::Acquire);
            if place.position.wrapping_sub(head) > 2 << 20 {
                continue;
            }
            for opcode in [Opcode::Launch, Opcode::CopyToHost] {
                let control = example(opcode, shop.pointer);
                let bytes = record(opcode as u16, WANTS_REPLY, CONTEXT.0, &control);
                shop.memory.append(place, &bytes);
                asked += 1;
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    Ok(format!("asked={asked}"))
}
