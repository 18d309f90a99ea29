//! Generates the gRPC clients and servers from `proto/`, without a protoc on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut protos = vec!["proto/agent.proto", "proto/placements.proto"];
    if std::env::var_os("CARGO_FEATURE_KUBELET").is_some() {
        protos.push("proto/kubelet-deviceplugin.proto");
        protos.push("proto/kubelet-podresources.proto");
    }
    // One by one: their packages have nothing in common.
    for proto in protos {
        let descriptors = protox::compile([proto], ["proto"])?;
        let builder = tonic_prost_build::configure().skip_debug(["gpuzone.agent.v1.VfToken"]);
        builder.compile_fds(descriptors)?;
        println!("cargo::rerun-if-changed={proto}");
    }
    Ok(())
}
