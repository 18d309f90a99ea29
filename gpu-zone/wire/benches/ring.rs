//! What a call costs on the ring, against the bare means of two threads to meet, in one run.
//!
//! `cargo bench -p gpuzone-wire --bench ring`

mod launch;

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gpuzone_wire::ring::{
    Always, Direction, Header, MAX_BULK, Payload, Reader, Region, RingSizes, Spin, Writer,
    copy_bytes, flag,
};
use gpuzone_wire::spec::Opcode;
use rustix::thread::futex;

use launch::launch;

const STOP: u16 = u16::MAX;

struct Ends {
    requests: Writer,
    replies: Reader,
    worker: std::thread::JoinHandle<()>,
}

/// A worker thread that answers what wants an answer, with nothing.
fn ends(spin: Spin) -> Ends {
    let (_file, region) = Region::create(RingSizes::default()).expect("a region");
    let region = Arc::new(region);
    let mut requests = Reader::new(region.clone(), Direction::Request, spin);
    let mut replies = Writer::new(region.clone(), Direction::Reply, spin);
    let worker = std::thread::spawn(move || {
        loop {
            let got = requests.receive(None, &Always).expect("healthy").expect("a record");
            if got.header.opcode == STOP {
                break;
            }
            if got.header.flags & flag::WANTS_REPLY != 0 {
                let reused = got.header.flags & flag::REUSED;
                let header = Header::new(got.header.opcode, reused, 0, got.header.sequence);
                replies.send(header, &[0; 4], Payload::NONE, &Always).expect("sent");
            }
        }
    });
    Ends {
        requests: Writer::new(region.clone(), Direction::Request, spin),
        replies: Reader::new(region, Direction::Reply, spin),
        worker,
    }
}

impl Ends {
    fn post(&mut self, control: &[u8], flags: u16) {
        let header = Header::new(Opcode::Launch as u16, flags, 1, 1);
        self.requests.send(header, control, Payload::NONE, &Always).expect("sent");
    }

    fn call(&mut self, control: &[u8]) {
        self.post(control, flag::WANTS_REPLY | flag::REUSED);
        black_box(self.replies.receive(None, &Always).expect("healthy"));
    }

    fn stop(mut self) {
        let header = Header::new(STOP, 0, 0, 0);
        self.requests.send(header, &[], Payload::NONE, &Always).expect("sent");
        self.worker.join().expect("ended");
    }
}

fn ring(criterion: &mut Criterion) {
    let control = launch();
    let mut group = criterion.benchmark_group("ring");
    let awake = Spin { time: Duration::from_secs(1) };
    let asleep = Spin { time: Duration::ZERO };
    let mut posts = ends(awake);
    group.bench_function("post of a launch", |b| b.iter(|| posts.post(&control, 0)));
    posts.stop();
    let cases = [
        ("round trip, both awake", awake),
        ("round trip, default spinning", Spin::default()),
        ("round trip, both asleep", asleep),
    ];
    for (name, spin) in cases {
        let mut calls = ends(spin);
        group.bench_function(name, |b| b.iter(|| calls.call(&control)));
        calls.stop();
    }
    // A record of one line each way, as most calls that are answered have.
    let mut calls = ends(awake);
    group.bench_function("round trip of a small call, both awake", |b| b.iter(|| calls.call(&[])));
    calls.stop();
    // What of it is instructions: no line of memory goes anywhere.
    let (_file, region) = Region::create(RingSizes::default()).expect("a region");
    let region = Arc::new(region);
    let mut reader = Reader::new(region.clone(), Direction::Request, awake);
    let mut writer = Writer::new(region, Direction::Request, awake);
    group.bench_function("one way of a small call, by one thread", |b| {
        b.iter(|| {
            let header = Header::new(Opcode::Launch as u16, flag::REUSED, 1, 1);
            writer.send(header, &[0; 4], Payload::NONE, &Always).expect("sent");
            black_box(reader.receive(None, &Always).expect("healthy"));
        });
    });
    group.finish();
}

/// Two threads that pass a number to and fro.
fn ping_pong(
    criterion: &mut Criterion,
    name: &str,
    pass: fn(&AtomicU32, u32),
    wait: fn(&AtomicU32, u32),
) {
    let ball = Arc::new(AtomicU32::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let partner = {
        let (ball, over) = (ball.clone(), over.clone());
        std::thread::spawn(move || {
            loop {
                wait(&ball, 1);
                pass(&ball, 0);
                if over.load(Ordering::Acquire) {
                    break;
                }
            }
        })
    };
    let mut turn = || {
        pass(&ball, 1);
        wait(&ball, 0);
    };
    criterion.benchmark_group("bare").bench_function(name, |b| b.iter(&mut turn));
    over.store(true, Ordering::Release);
    turn();
    partner.join().expect("ended");
}

fn bare(criterion: &mut Criterion) {
    let set = |ball: &AtomicU32, value| ball.store(value, Ordering::Release);
    ping_pong(criterion, "atomics, spinning", set, |ball, value| {
        while ball.load(Ordering::Acquire) != value {
            spin_loop();
        }
    });
    let wake = |ball: &AtomicU32, value| {
        ball.store(value, Ordering::Release);
        let _ = futex::wake(ball, futex::Flags::empty(), 1);
    };
    ping_pong(criterion, "futex", wake, |ball, value| {
        while ball.load(Ordering::Acquire) != value {
            let _ = futex::wait(ball, futex::Flags::empty(), 1 - value, None);
        }
    });
    seqpacket(criterion);
}

fn seqpacket(criterion: &mut Criterion) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (unix, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (here, there) = socketpair(unix, kind, SocketFlags::CLOEXEC, None).expect("a pair");
    let partner = std::thread::spawn(move || {
        let mut message = [0u8; 128];
        while rustix::io::read(&there, &mut message).is_ok_and(|read| read > 0) {
            rustix::io::write(&there, &message).expect("written");
        }
    });
    criterion.benchmark_group("bare").bench_function("seqpacket socket", |b| {
        let mut message = [0u8; 128];
        b.iter(|| {
            rustix::io::write(&here, &message).expect("written");
            rustix::io::read(&here, &mut message).expect("read")
        });
    });
    drop(here);
    partner.join().expect("ended");
}

/// What one thread copies alone, and what two do through a window, one into it and one out of it at the
/// same time, as the library and a driver's copy engine that is a thread have to: by one means of
/// copying, past the caches.
fn copies(criterion: &mut Criterion) {
    const BYTES: usize = 64 << 20;
    const PLACES: usize = 8;
    let (source, mut target) = (vec![0x17_u8; BYTES], vec![0_u8; BYTES]);
    let mut group = criterion.benchmark_group("copies");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let copy = |from: &[u8], to: &mut [u8]| {
        assert_eq!(from.len(), to.len());
        // SAFETY: both are so long, and one of the two is only ours.
        unsafe { copy_bytes(from.as_ptr(), to.as_mut_ptr(), from.len()) };
    };
    group.bench_function("one thread", |b| b.iter(|| copy(&source, &mut target)));
    target.fill(0);
    let window: Vec<Mutex<Vec<u8>>> = (0..PLACES).map(|_| vec![0; MAX_BULK].into()).collect();
    let place = |piece: usize| window[piece % PLACES].lock().expect("nobody panics");
    let pass = |target: &mut [u8]| {
        let (written, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (number, piece) in source.chunks(MAX_BULK).enumerate() {
                    while number - read.load(Ordering::Acquire) >= PLACES {
                        spin_loop();
                    }
                    copy(piece, &mut place(number));
                    written.store(number + 1, Ordering::Release);
                }
            });
            for (number, piece) in target.chunks_mut(MAX_BULK).enumerate() {
                while written.load(Ordering::Acquire) <= number {
                    spin_loop();
                }
                copy(&place(number), piece);
                read.store(number + 1, Ordering::Release);
            }
        });
    };
    pass(&mut target);
    assert!(source == target, "every byte goes through");
    group.bench_function("two threads through a window", |b| b.iter(|| pass(&mut target)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = ring, bare, copies
}
criterion_main!(benches);
