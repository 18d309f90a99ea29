//! Generates the gRPC client and server from `proto/`, without a protoc on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = "proto/agent.proto";
    let descriptors = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed={proto}");
    Ok(())
}
