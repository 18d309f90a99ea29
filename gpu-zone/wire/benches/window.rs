//! What a call costs over a window: memory that a guest's kernel shows its programs as a PCI device (ivshmem). One end
//! is a program on the host, the other one the first process of a guest. Beside it the same two pass a bare word to and
//! fro over the same memory, and two threads do both on the host alone and in the guest alone.
//!
//! `cargo xtask microvm-bench` builds it for the guest, too, and starts all of it. What two threads take here alone:
//! `cargo bench -p gpuzone-wire --bench window`

mod launch;

use std::fs::File;
use std::hint::{black_box, spin_loop};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gpuzone_wire::ring::{
    Always, Bells, Direction, Header, Payload, Reader, Region, RingSizes, Side, Spin, Writer, flag,
};
use gpuzone_wire::spec::Opcode;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

use launch::launch;

const STOP: u16 = u16::MAX;
/// Both sides are awake all the time.
const AWAKE: Spin = Spin { time: Duration::from_secs(600) };
const SAMPLES: usize = 31;
const SAMPLE: Duration = Duration::from_millis(20);
const PAGE: u64 = 4096;
/// How long a guest may take to its first word.
const LIMIT: Duration = Duration::from_secs(120);

/// The word's values.
const PING: u32 = 1;
const PONG: u32 = 2;
const OVER: u32 = 3;
/// The other end serves.
const READY: u32 = 1;

#[repr(C, align(128))]
struct Line(AtomicU32);

/// What is passed to and fro beside the rings: in a page of its own.
#[repr(C)]
struct Words {
    ball: Line,
    phase: Line,
}

/// Of the page at `offset`, which is never unmapped.
fn words(file: impl AsFd, offset: u64) -> &'static Words {
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { mmap(std::ptr::null_mut(), 4096, both, MapFlags::SHARED, file, offset) };
    let at = NonNull::new(at.expect("a page").cast::<Words>()).expect("not at 0");
    // SAFETY: the page is never unmapped, is larger than the structure and aligned to more; of atomics any bits are
    // valid.
    unsafe { at.as_ref() }
}

/// Nanoseconds to and fro, medians.
struct Figures {
    bare: f64,
    /// A record of one line each way.
    small: f64,
    /// A launch's record.
    launch: f64,
}

impl Figures {
    #[allow(clippy::print_stdout, reason = "a benchmark tells what it measured")]
    fn say(&self, whose: &str) {
        let Self { bare, small, launch } = self;
        println!("{whose} bare={bare:.0} small={small:.0} launch={launch:.0} ns");
    }
}

/// The median of what a turn takes, in nanoseconds.
#[allow(clippy::cast_precision_loss, reason = "counts of turns are far from that")]
fn median(mut turn: impl FnMut()) -> f64 {
    let (began, mut turns) = (Instant::now(), 0u64);
    while began.elapsed() < SAMPLE {
        turn();
        turns += 1;
    }
    // So many in a row that looking at the clock does not count.
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let began = Instant::now();
            (0..turns).for_each(|_| turn());
            began.elapsed().as_nanos() as f64 / turns as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

/// The worker's end: passes the word back, and then answers with nothing.
fn answer(words: &Words, region: Region) {
    let region = std::sync::Arc::new(region);
    let mut requests = Reader::new(region.clone(), Direction::Request, AWAKE);
    let mut replies = Writer::new(region, Direction::Reply, AWAKE);
    words.phase.0.store(READY, Ordering::Release);
    loop {
        match words.ball.0.load(Ordering::Acquire) {
            PING => words.ball.0.store(PONG, Ordering::Release),
            OVER => break,
            _ => spin_loop(),
        }
    }
    loop {
        let got = requests.receive(None, &Always).expect("healthy").expect("a record");
        if got.header.opcode == STOP {
            return;
        }
        let header =
            Header::new(got.header.opcode, got.header.flags & flag::REUSED, 0, got.header.sequence);
        replies.send(header, &[0; 4], Payload::NONE, &Always).expect("sent");
    }
}

/// The tenant's end, which measures. `region` is opened once the worker's is there.
fn ask(words: &Words, region: impl FnOnce() -> Region) -> Figures {
    let began = Instant::now();
    while words.phase.0.load(Ordering::Acquire) != READY {
        assert!(began.elapsed() < LIMIT, "the other end does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    let ball = &words.ball.0;
    let bare = median(|| {
        ball.store(PING, Ordering::Release);
        while ball.load(Ordering::Acquire) != PONG {
            spin_loop();
        }
    });
    ball.store(OVER, Ordering::Release);
    let region = std::sync::Arc::new(region());
    let mut requests = Writer::new(region.clone(), Direction::Request, AWAKE);
    let mut replies = Reader::new(region, Direction::Reply, AWAKE);
    let mut call = |control: &[u8]| {
        let header = Header::new(Opcode::Launch as u16, flag::WANTS_REPLY | flag::REUSED, 1, 1);
        requests.send(header, control, Payload::NONE, &Always).expect("sent");
        black_box(replies.receive(None, &Always).expect("healthy"));
    };
    let small = median(|| call(&[]));
    let control = launch();
    let launch = median(|| call(&control));
    requests.send(Header::new(STOP, 0, 0, 0), &[], Payload::NONE, &Always).expect("sent");
    Figures { bare, small, launch }
}

/// Two threads of this machine, on rings as a worker makes them for a program beside it.
fn two_threads() -> Figures {
    let file = memfd_create(c"words", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&file, PAGE).expect("a page");
    let words = words(&file, 0);
    let (rings, ours) = Region::create(RingSizes::default()).expect("a region");
    let worker = std::thread::spawn(move || answer(words, ours));
    let figures = ask(words, || Region::open(&rings, RingSizes::default()).expect("the region"));
    worker.join().expect("ended");
    figures
}

fn window(file: &File, side: Side) -> Region {
    let bell = || -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
    };
    let bells = Bells { ours: bell(), theirs: bell() };
    Region::window(file, RingSizes::default(), bells, side).expect("a window")
}

/// The words behind the rings: the window's last page.
fn beside_rings(file: &File) -> &'static Words {
    let bytes = file.metadata().expect("its size").len();
    words(file, bytes - PAGE)
}

/// The memory of the one window that this guest has.
fn plugged() -> PathBuf {
    let devices = std::fs::read_dir("/sys/bus/pci/devices").expect("PCI devices");
    let id = |device: &Path, file| std::fs::read_to_string(device.join(file)).unwrap_or_default();
    let mut devices = devices.filter_map(|device| Some(device.ok()?.path()));
    let found = devices.find(|path| {
        id(path, "vendor").trim() == "0x1af4" && id(path, "device").trim() == "0x1110"
    });
    let device = found.expect("a window");
    std::fs::write(device.join("enable"), "1").expect("enabled");
    device.join("resource2")
}

/// As a guest's first process.
fn guest() {
    for (kind, at) in [("sysfs", "/sys"), ("proc", "/proc")] {
        mount(kind, at, kind, MountFlags::empty(), None).expect("mounted");
    }
    two_threads().say("guest");
    let file = File::options().read(true).write(true).open(plugged()).expect("the window");
    answer(beside_rings(&file), window(&file, Side::Worker));
    let _ = reboot(RebootCommand::PowerOff);
}

fn main() {
    if std::process::id() == 1 {
        return guest();
    }
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|word| word == "ask").and_then(|at| arguments.get(at + 1)) {
        Some(path) => {
            let file = File::options().read(true).write(true).open(path).expect("the window");
            ask(beside_rings(&file), || window(&file, Side::Tenant)).say("window");
        }
        None => two_threads().say("host"),
    }
}
