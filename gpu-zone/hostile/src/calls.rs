//! Attacks by calls that are well formed.

use anyhow::{Context, ensure};
use gpuzone_wire::ring::Payload;
use gpuzone_wire::spec::{
    ContextCreate, ContextId, DevicePtr, EventCreate, EventId, EventRecord, Launch, MemoryAllocate,
    MemoryFree, MemoryInfo, ModuleId, StreamCreate, StreamId, Unsupported,
};

use crate::arena::{Arena, Dice};
use crate::spec::{CONTEXT, SPIN, STREAM, Shop, cuda, spin};

/// What honest programs do.
pub(crate) fn work(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let mut launched = 0_u64;
    while arena.goes_on() {
        for _ in 0..16 {
            shop.launch([4, 1, 1], 200).map_err(cuda)?;
            launched += 1;
        }
        shop.synchronize().map_err(cuda)?;
    }
    Ok(format!("launched={launched}"))
}

pub(crate) fn flood(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let mut posted = 0_u64;
    let record = EventRecord { event: EventId(1), stream: STREAM };
    while arena.goes_on() {
        for _ in 0..1000 {
            let _ = shop.client.post(CONTEXT, &record, Payload::NONE);
            let _ = shop.client.post(ContextId(0), &Unsupported { function: 3 }, Payload::NONE);
            let _ = shop.client.post(CONTEXT, &MemoryFree { pointer: DevicePtr(1) }, Payload::NONE);
            posted += 3;
        }
        ensure!(shop.client.trouble().is_none(), "the worker is gone: {:?}", shop.client.trouble());
    }
    Ok(format!("posted={posted}"))
}

pub(crate) fn caps(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let client = &mut shop.client;
    let mut contexts = 1;
    while contexts < 10_000 {
        let more = ContextCreate { context: ContextId(contexts + 1), device: 0, flags: 0 };
        if client.call(ContextId(0), &more, Payload::NONE).is_err() {
            break;
        }
        contexts += 1;
    }
    let most = arena.pick(5_000, 200_000);
    let streams = (17..most).take_while(|number| {
        let stream = StreamCreate { stream: StreamId(*number), flags: 0, priority: 0 };
        client.post(CONTEXT, &stream, Payload::NONE).is_ok()
            && (number % 64 != 0 || client.call(CONTEXT, &MemoryInfo {}, Payload::NONE).is_ok())
    });
    let streams = streams.count();
    let events = (2..most).take_while(|number| {
        let event = EventCreate { event: EventId(*number), flags: 0 };
        client.post(CONTEXT, &event, Payload::NONE).is_ok()
    });
    let events = events.count();
    let _ = client.call(CONTEXT, &MemoryInfo {}, Payload::NONE);
    let mut allocations = 0;
    while allocations < most {
        if client.call(CONTEXT, &MemoryAllocate { bytes: 1 }, Payload::NONE).is_err() {
            break;
        }
        allocations += 1;
    }
    let modules = (2..most.min(5_000))
        .take_while(|number| shop.load(ModuleId(*number), SPIN.as_bytes()).is_ok());
    let modules = modules.count();
    ensure!(contexts < 10_000, "there is no cap on contexts");
    arena.wait();
    // Nothing is given back: that is for the worker to do.
    Ok(format!(
        "contexts={contexts} streams={streams} events={events} allocations={allocations} \
         modules={modules}"
    ))
}

pub(crate) fn churn(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let mut dice = Dice::new(0x6368_7572);
    let (mut held, mut made, mut refused) = (Vec::new(), 0_u64, 0_u64);
    while arena.goes_on() {
        let bytes = 1_u64 << dice.below(31);
        let bytes = bytes + dice.below(bytes);
        match shop.client.call(CONTEXT, &MemoryAllocate { bytes }, Payload::NONE) {
            Ok(allocated) => {
                made += 1;
                held.push(allocated.pointer);
            }
            Err(_) => refused += 1,
        }
        while held.len() > 16 {
            let pointer = held.swap_remove(usize::try_from(dice.below(held.len() as u64))?);
            let _ = shop.client.post(CONTEXT, &MemoryFree { pointer }, Payload::NONE);
        }
    }
    Ok(format!("made={made} refused={refused}"))
}

pub(crate) fn modules(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let large = arena.pick(4 << 20, 80 << 20);
    let header = ".version 8.0\n.target sm_75\n.address_size 64\n";
    let entry = |body: &str| format!("{header}.visible .entry spin()\n{{\n{body}\nret;\n}}\n");
    let wrapper = [0x4662_43b1_0000_0001_u64.rotate_left(32), 0x7000, 0].map(u64::to_le_bytes);
    let bombs: [Vec<u8>; 11] = [
        wrapper.concat(),
        format!("{header}.global .attribute(.managed) .align 8 .b8 all[1099511627776];\n").into(),
        format!("{header}#include \"/proc/self/environ\"\n").into(),
        entry(&"{".repeat(200_000)).into(),
        entry(&"{}".repeat(200_000)).into(),
        entry(&"bar.sync 0;\n".repeat(large / 12)).into(),
        entry(".reg .b64 %rd<2000000000>;").into(),
        entry(".local .align 1 .b8 q[18446744073709551615];").into(),
        format!("{header}.global .align 1 .b8 all[1099511627776];\n").into(),
        format!("{header}// {}", "x".repeat(large)).into(),
        vec![0xff; large],
    ];
    let (mut loaded, mut refused, mut number) = (0, 0, 100);
    for bomb in bombs.iter().cycle() {
        if number >= 111 && !arena.goes_on() {
            break;
        }
        number += 1;
        // Each in a session of its own, should one be ended for it.
        if shop.client.trouble().is_some() {
            shop = Shop::open(&arena.slot)?;
        }
        match shop.load(ModuleId(number), bomb) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    let mut honest = Shop::open(&arena.slot).context("nothing can be loaded any more")?;
    honest.launch([1, 1, 1], 10).and_then(|()| honest.synchronize()).map_err(cuda)?;
    Ok(format!("loaded={loaded} refused={refused}"))
}

pub(crate) fn launches(arena: &Arena) -> anyhow::Result<String> {
    let mut shop = Shop::open(&arena.slot)?;
    let mut dice = Dice::new(0x6c61_756e);
    let mut sent = 0_u64;
    let edges = [0, 1, 1025, 65_536, i32::MAX as u32, u32::MAX];
    while arena.goes_on() {
        let mut edge = || edges[usize::try_from(dice.below(6)).unwrap_or(0)];
        let (grid, block, shared) = ([0; 3].map(|_| edge()), [0; 3].map(|_| edge()), edge());
        // What could really run is another attack's.
        let runs = block.iter().all(|size| (1..=1024).contains(size));
        let arguments = match dice.below(4) {
            0 => vec![0; 8],
            1 => vec![0; 100_000],
            2 => Vec::new(),
            _ => vec![0xff; 7],
        };
        let block = if runs { [0, 1, 1] } else { block };
        let launch = Launch { grid, block, shared, arguments, ..spin([1; 3], 0) };
        let _ = shop.client.post(CONTEXT, &launch, Payload::NONE);
        let _ = shop.synchronize();
        sent += 1;
        if shop.client.trouble().is_some() {
            shop = Shop::open(&arena.slot)?;
        }
    }
    let mut honest = Shop::open(&arena.slot)?;
    honest.launch([1, 1, 1], 10).and_then(|()| honest.synchronize()).map_err(cuda)?;
    Ok(format!("sent={sent}"))
}

pub(crate) fn endless(arena: &Arena) -> anyhow::Result<String> {
    let (mut kernels, mut last) = (0, 0);
    while kernels == 0 || arena.goes_on() {
        let mut shop = Shop::open(&arena.slot)?;
        shop.launch([u32::MAX >> 1, 1, 1], u64::MAX).map_err(cuda)?;
        // The watchdog ends it, and the worker with it.
        let waited = shop.synchronize();
        ensure!(waited.is_err(), "a kernel without an end came to an end");
        last = waited.err().map_or(0, |error| error.0);
        kernels += 1;
        // With the next worker, what was used is still owed: this waits until it is worked off.
        drop(Shop::open(&arena.slot)?);
    }
    Ok(format!("kernels={kernels} answer={last}"))
}

pub(crate) fn poison(arena: &Arena) -> anyhow::Result<String> {
    let mut workers = 0;
    while workers < 3 || arena.goes_on() {
        // Waits for the next worker, if need be.
        let mut shop = Shop::open(&arena.slot)?;
        ensure!(shop.hurt().is_err(), "nothing was allocated there");
        workers += 1;
        drop(shop);
        // So that its worker sees that nobody is left, and goes.
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(format!("workers={workers}"))
}
