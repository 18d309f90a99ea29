//! The page of what is supported, from the table.

use std::fmt::Write;

use gpuzone_cuda_abi::FUNCTIONS;

use super::{Kind, SUPPORT, support, variant_of};

/// What no tenant gets, by the words in its functions' names, and why.
const NEVER: &[(&str, &[&str], &str)] = &[
    (
        "managed memory",
        &["Managed", "cuMemAdvise", "cuMemPrefetch", "cuMemRange", "cuStreamAttachMem", "Discard"],
        "its pages move between the host and the device behind everybody's back, uncharged; modules with managed variables are refused, too",
    ),
    (
        "memory of other processes",
        &["cuIpc", "Shareable", "cuMemPoolExport", "cuMemPoolImport", "HandleForAddressRange"],
        "a handle would leave the lease",
    ),
    (
        "peers",
        &["Peer", "P2PAtomic", "cuMulticast", "Fabric"],
        "leases do not reach each other's memory, nor do GPUs of one lease",
    ),
    (
        "memory and semaphores of others",
        &["External", "RDMA"],
        "they are made by drivers that are not behind the worker",
    ),
    (
        "what OpenGL, EGL and VDPAU draw or play",
        &["cuGL", "EGL", "VDPAU", "cuGraphics"],
        "the screen's drivers are not behind the worker, and their buffers are no lease's",
    ),
    (
        "profilers, debuggers and dumps",
        &["Profiler", "Coredump", "cuLogs", "AsyncNotification"],
        "they see the whole driver, not the lease",
    ),
    ("tables for the CUDA runtime", &["cuGetExportTable"], "see below"),
    (
        "a part of the GPU",
        &["GreenCtx", "DevResource", "SmResource", "cuCtxFromGreen"],
        "the lease says how much of the GPU there is",
    ),
];

/// What is not supported so far, by the words in its functions' names; the first that fits counts.
const LATER: &[(&str, &[&str])] = &[
    (
        "arrays, textures and surfaces",
        &["Array", "Tex", "Surf", "Mipmapped", "AtoA", "AtoD", "AtoH", "DtoA", "HtoA"],
    ),
    (
        "launches as before CUDA 4, and on several GPUs at once",
        &["cuParam", "cuLaunchGrid", "cuLaunch", "SetBlockShape", "cuFuncSetSharedSize"],
    ),
    ("values in memory that streams wait for and write", &["Value32", "Value64", "MemOp"]),
    (
        "graphs: memory that they allocate, objects that they keep, nodes that decide",
        &["GraphMem", "MemAllocNode", "MemFreeNode", "UserObject", "Conditional"],
    ),
    ("graphs: all else", &["cuGraph"]),
    ("maps of tensors", &["cuTensorMap"]),
    ("many copies by one call, and unpacking by the GPU", &["BatchAsync", "BatchDecompress"]),
    ("contexts", &["cuCtx"]),
    ("devices", &["cuDevice"]),
    ("clusters of blocks", &["Cluster"]),
];

const RUNTIME: &str = "## Programs of the CUDA runtime

**They do not run in a mediated lease**: PyTorch, CuPy, what `nvcc` links by default, and all else that
has `libcudart` in it, as a file of its own or not. Before its first call the runtime asks the driver by
`cuGetExportTable` for tables of functions that are documented nowhere, and has one of them prove, by
a secret of NVIDIA's, that the driver is NVIDIA's; cudart 13.0 ends with
`cudaErrorSoftwareValidityNotEstablished` where that fails. gpu-zone's library is not NVIDIA's driver and
does not pretend to be it. Such programs get a MIG instance, a vGPU or a whole GPU. In a mediated lease
they say `operation not supported` (801), and one line on standard error says why: seen with PyTorch
2.11 and CuPy 14.2 (26 November 2026).

Programs of the driver API run: cudarc, cuda-python's `cuda.bindings` and `cuda.core` with NVRTC, Numba.
";

/// `docs/cuda-support.md`.
pub fn support_page() -> String {
    let mut page = String::from(
        "# What of the CUDA driver API is supported

This page is written by `cargo xtask cuda-support` from the table of calls in
`gpu-zone/wire/src/spec`; a test fails when it is not.

A function is answered in the tenant's process (*local*), sent to the worker without waiting
(*posted*: an error of it comes with a later call), or sent and answered (*replied*). Some are
local most of the time and ask the worker now and then; they stand where their work is done.
Every other function that the driver's library exports is there, answers
`CUDA_ERROR_NOT_SUPPORTED` and is counted by its name, so that a report shows what a program
missed. Functions whose default stream is the thread's own (`_ptds`, `_ptsz`) are supported where
the plain ones are, and `cuGetProcAddress` finds them.

",
    );
    let variants =
        FUNCTIONS.iter().filter(|name| variant_of(name).is_some() && support(name).is_some());
    let plain = SUPPORT.len();
    let all = FUNCTIONS.len();
    let variants = variants.count();
    let _ = writeln!(
        page,
        "Of the {all} names that the library exports, {plain} are supported, and {variants} of the variants for threads.\n"
    );
    for (kind, title) in
        [(Kind::Local, "Local"), (Kind::Posted, "Posted"), (Kind::Replied, "Replied")]
    {
        let mut names: Vec<&str> =
            SUPPORT.iter().filter(|known| known.kind == kind).map(|known| known.symbol).collect();
        names.sort_unstable();
        let _ = writeln!(page, "## {title}: {}\n", names.len());
        list(&mut page, &names);
    }
    let _ =
        writeln!(page, "## What no tenant gets\n\n| what | why | functions |\n| --- | --- | --- |");
    let mut refused: Vec<&str> =
        FUNCTIONS.iter().copied().filter(|name| support(name).is_none()).collect();
    for (what, words, why) in NEVER {
        let is_of = |name: &&str| words.iter().any(|word| name.contains(word));
        let names: Vec<&str> = refused.iter().copied().filter(is_of).collect();
        refused.retain(|name| !is_of(name));
        let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(page, "| {what} | {why} | {names} |");
    }
    let _ = write!(page, "\n{RUNTIME}");
    let _ = write!(page, "\n{}", later(refused));
    page
}

/// What is not supported so far.
fn later(mut left: Vec<&str>) -> String {
    let mut page =
        format!("## Not supported so far: {}\n\n| what | functions |\n| --- | --- |\n", left.len());
    let mut row = |what: &str, names: &[&str]| {
        let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(page, "| {what} | {names} |");
    };
    // Their second versions are what programs mean.
    let is_old = |name: &&str| support(&format!("{name}_v2")).is_some();
    let old: Vec<&str> = left.iter().copied().filter(is_old).collect();
    left.retain(|name| !is_old(name));
    for (what, words) in LATER {
        let is_of = |name: &&str| words.iter().any(|word| name.contains(word));
        let names: Vec<&str> = left.iter().copied().filter(is_of).collect();
        left.retain(|name| !is_of(name));
        row(what, &names);
    }
    row("all else", &left);
    row("as before CUDA 3.2, by addresses of 32 bits; the versions since then are supported", &old);
    page
}

fn list(page: &mut String, names: &[&str]) {
    for name in names {
        let _ = writeln!(page, "* `{name}`");
    }
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cuda-support.md");
        let written = std::fs::read_to_string(path).expect("the page is there");
        assert!(
            written == support_page(),
            "docs/cuda-support.md is not current; run `cargo xtask cuda-support`"
        );
    }

    #[test]
    fn what_no_tenant_gets_is_not_supported() {
        for name in [
            "cuMemAllocManaged",
            "cuIpcGetMemHandle",
            "cuCtxEnablePeerAccess",
            "cuMemcpyPeer",
            "cuMulticastCreate",
            "cuImportExternalMemory",
            "cuGraphicsMapResources",
            "cuGraphicsGLRegisterBuffer",
            "cuGLMapBufferObject_v2_ptds",
            "cuEGLStreamConsumerConnect",
            "cuEventCreateFromEGLSync",
            "cuVDPAUGetDevice",
            "cuProfilerStart",
            "cuCoredumpGetAttribute",
            "cuMemExportToShareableHandle",
            "cuGreenCtxCreate",
        ] {
            assert_eq!(support(name), None, "{name}");
            let listed = NEVER.iter().any(|(_, words, _)| words.iter().any(|w| name.contains(w)));
            assert!(listed, "{name} has no reason");
        }
    }
}
