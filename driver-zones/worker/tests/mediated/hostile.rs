//! Tenants that do not use the shim and write what they like into the ring.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_wire::codec::Field;
use gpuzone_wire::hello::{self, Hello, SOCKET, Welcome};
use gpuzone_wire::ring::{Always, Direction, Header, Payload, Region, Spin, Writer, flag};
use gpuzone_wire::spec::{self, ContextCreate, ContextId, Opcode};

use crate::harness::PATIENCE;

/// A connection, bare.
pub(crate) struct Line {
    socket: OwnedFd,
    requests: Writer,
}

/// Connects as a program would.
pub(crate) fn connect(slot: &Path) -> Line {
    let socket = hello::connect(&slot.join(SOCKET), PATIENCE).expect("connected");
    hello::send(
        &socket,
        &Hello { version: spec::VERSION, pid: 1, window: None, apart: false },
        None,
    )
    .expect("sent");
    let (welcome, file) = hello::receive::<Welcome>(&socket).expect("welcome");
    let Welcome::Accepted { sizes, .. } = welcome else { panic!("refused: {welcome:?}") };
    let region = Region::open(file.expect("the rings"), sizes).expect("mapped");
    let requests = Writer::new(Arc::new(region), Direction::Request, Spin::default());
    Line { socket, requests }
}

impl Line {
    fn send(&mut self, opcode: u16, control: &[u8]) {
        let header = Header::new(opcode, flag::WANTS_REPLY, 0, 1);
        self.requests.send(header, control, Payload::NONE, &Always).expect("room");
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
pub(crate) const ALL: [fn(&mut Line); 4] = [
    |line| line.send(u16::MAX, &[]),
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
