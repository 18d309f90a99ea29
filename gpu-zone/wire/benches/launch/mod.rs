//! What the benchmarks of a ring send.

use gpuzone_wire::codec::Field;
use gpuzone_wire::spec::{FunctionId, Launch, StreamId};

/// The record of a launch with 40 bytes of arguments.
pub(crate) fn launch() -> Vec<u8> {
    let mut control = Vec::new();
    Launch {
        function: FunctionId(1),
        stream: StreamId::DEFAULT,
        grid: [1, 1, 1],
        block: [256, 1, 1],
        shared: 0,
        settings: Vec::new(),
        arguments: vec![0; 40],
    }
    .put(&mut control);
    control
}
