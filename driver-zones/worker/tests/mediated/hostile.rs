//! Tenants that do not use the shim and write what they like into the ring.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::image::FAT_BINARY_WRAPPER;
use gpuzone_wire::client::Client;
use gpuzone_wire::codec::Field;
use gpuzone_wire::hello::{self, Hello, SOCKET, Welcome};
use gpuzone_wire::ring::{Always, Direction, Header, Payload, Region, Spin, Writer, flag};
use gpuzone_wire::spec::{
    self, ContextCreate, ContextId, ModuleData, ModuleId, ModuleLoad, Opcode,
};

use crate::harness::PATIENCE;

/// A connection, bare.
pub(crate) struct Line {
    socket: OwnedFd,
    requests: Writer,
}

/// Connects as a program would.
pub(crate) fn connect(slot: &Path) -> Line {
    let (socket, region) = greet(slot);
    let requests = Writer::new(Arc::new(region), Direction::Request, Spin::default());
    Line { socket, requests }
}

fn greet(slot: &Path) -> (OwnedFd, Region) {
    let socket = hello::connect(&slot.join(SOCKET), PATIENCE).expect("connected");
    hello::send(
        &socket,
        &Hello { version: spec::VERSION, pid: 1, window: None, apart: false },
        None,
    )
    .expect("sent");
    let (welcome, file) = hello::receive::<Welcome>(&socket).expect("welcome");
    let Welcome::Accepted { sizes, .. } = welcome else { panic!("refused: {welcome:?}") };
    (socket, Region::open(file.expect("the rings"), sizes).expect("mapped"))
}

/// What is answered to images that lead the driver to where the tenant says, and to a good one.
pub(crate) fn loads(slot: &Path) -> (Vec<Result<(), CuResult>>, Result<(), CuResult>) {
    let (socket, region) = greet(slot);
    let mut client = Client::new(region, socket, Spin::default());
    let context = ContextId(1);
    let create = ContextCreate { context, device: 0, flags: 0 };
    client.call(ContextId(0), &create, Payload::NONE).expect("a context");
    let mut number = 0;
    let mut load = |image: &[u8]| {
        number += 1;
        let settings = Vec::new();
        let load = ModuleLoad { module: ModuleId(number), settings, info_log: 0, error_log: 0 };
        client.post(context, &ModuleData {}, Payload::of(image))?;
        CuResult(client.call(context, &load, Payload::NONE)?.loaded).ok()
    };
    // A wrapper: a number, a version, where the fat binary is.
    let wrapper = |at: u64| [u64::from(FAT_BINARY_WRAPPER) | 1 << 32, at, 0].map(u64::to_le_bytes);
    // Machine code whose sections lie far behind its end.
    let mut code = [0u8; 64];
    code[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    code[44] = 1;
    code[58] = 64;
    code[60] = 1;
    let bad = [wrapper(0x10).concat(), wrapper(u64::MAX).concat(), code.to_vec()];
    let answers = bad.iter().map(|image| load(image)).collect();
    (answers, load(b".version 8.0\n.target sm_75\n.address_size 64\n"))
}

impl Line {
    fn send(&mut self, opcode: u16, control: &[u8]) {
        let header = Header::new(opcode, flag::WANTS_REPLY, 0, 1);
        self.requests.send(header, control, Payload::NONE, &Always).expect("room");
    }

    /// Sends so many bytes of code in one record.
    pub(crate) fn send_code(&mut self, bytes: usize) {
        let header = Header::new(Opcode::ModuleData as u16, 0, 0, 1);
        let code = vec![b' '; bytes];
        self.requests.send(header, &[], Payload::of(&code), &Always).expect("room");
    }

    /// Whether the worker closed the connection, in time.
    pub(crate) fn was_ended(&self) -> bool {
        let began = Instant::now();
        while !hello::is_closed(&self.socket) {
            if began.elapsed() > PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// Ways to break the protocol.
pub(crate) const ALL: [fn(&mut Line); 5] = [
    |line| line.send(u16::MAX, &[]),
    |line| {
        // One that the next is written over, with bytes that are to stay.
        let header = Header::new(Opcode::ModuleData as u16, flag::REUSED, 0, 1);
        line.requests.send(header, &[], Payload::of(b"code"), &Always).expect("room");
    },
    |line| line.send(Opcode::Launch as u16, &[1, 2, 3]),
    |line| line.send(Opcode::ModuleGlobal as u16, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
    |line| {
        let mut good = Vec::new();
        ContextCreate { context: ContextId(1), device: 0, flags: 0 }.put(&mut good);
        line.send(Opcode::ContextCreate as u16, &good);
        good.push(0);
        line.send(Opcode::ContextCreate as u16, &good);
    },
];
