//! From what stands in the file to what can be trusted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gpuzone_core::{ComputeCapability, GpuUuid, MemoryBytes, PciAddress};
use serde::Deserialize;

use super::error::Problem;
use super::mig::{RawInstance, instances};
use super::{
    Config, ConfigError, GpuConfig, MAX_GPUS, MemsetFault, default_state_dir, derived_uuid, marked,
};

const PAGE: u64 = 4096;
/// Each GPU has this much room for addresses.
const MAX_MEMORY: MemoryBytes = MemoryBytes::gib(1024);
/// NVML's name field has 96 bytes, one of them for the end, ten for the mark.
const MAX_NAME: usize = 85;

#[derive(Deserialize)]
struct RawNode {
    state_dir: Option<PathBuf>,
    driver_version: Option<String>,
    #[serde(default)]
    gpu: Vec<RawGpu>,
    #[serde(default)]
    fault: RawFault,
}

#[derive(Default, Deserialize)]
struct RawFault {
    memset: Option<MemsetFault>,
    events: Option<NoEvents>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum NoEvents {
    Unsupported,
}

#[derive(Deserialize)]
struct RawGpu {
    name: String,
    uuid: Option<String>,
    memory: String,
    compute_capability: Option<String>,
    pci: Option<String>,
    numa_node: Option<u32>,
    #[serde(default)]
    nvlink_peers: Vec<RawPeer>,
    #[serde(default)]
    mig_capable: bool,
    mig: Option<Vec<RawInstance>>,
    multiprocessors: Option<u32>,
    clock_mhz: Option<u32>,
    context_overhead: Option<String>,
    #[serde(default)]
    hmm: bool,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum RawPeer {
    Index(usize),
    Uuid(String),
}

pub(super) fn read(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let raw: RawNode = toml::from_str(text)
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
    node(raw).map_err(|(place, problem)| ConfigError::Value {
        path: path.to_owned(),
        place,
        problem,
    })
}

type Refusal = (String, Problem);

fn node(raw: RawNode) -> Result<Config, Refusal> {
    let at = |key: &str| key.to_owned();
    if raw.gpu.is_empty() {
        return Err((at("gpu"), Problem::NoGpu));
    }
    if raw.gpu.len() > MAX_GPUS {
        return Err((at("gpu"), Problem::TooManyGpus(raw.gpu.len())));
    }
    let state_dir = raw.state_dir.unwrap_or_else(default_state_dir);
    if !state_dir.is_absolute() {
        return Err((at("state_dir"), Problem::RelativePath(state_dir)));
    }
    let driver_version = raw.driver_version.unwrap_or_else(|| "580.95.05".to_owned());
    checked_text(&driver_version, 60).map_err(|problem| (at("driver_version"), problem))?;

    let mut gpus = Vec::new();
    for (index, raw) in raw.gpu.iter().enumerate() {
        let gpu = gpu(index, raw).map_err(|(key, problem)| (place(index, key), problem))?;
        check_unique(&gpus, &gpu).map_err(|(key, problem)| (place(index, key), problem))?;
        gpus.push(gpu);
    }
    for (index, raw) in raw.gpu.iter().enumerate() {
        for peer in &raw.nvlink_peers {
            let peer = resolve(&gpus, index, peer)
                .map_err(|problem| (place(index, "nvlink_peers"), problem))?;
            gpus[index].nvlink_peers.insert(peer);
            gpus[peer].nvlink_peers.insert(index);
        }
    }
    let RawFault { memset: memset_fault, events } = raw.fault;
    Ok(Config { state_dir, driver_version, gpus, memset_fault, events: events.is_none() })
}

fn place(index: usize, key: &str) -> String {
    format!("{key} of [[gpu]] {index}")
}

fn gpu(index: usize, raw: &RawGpu) -> Result<GpuConfig, (&'static str, Problem)> {
    checked_text(&raw.name, MAX_NAME).map_err(|problem| ("name", problem))?;
    let name = marked(&raw.name);
    let memory = memory(&raw.memory).map_err(|problem| ("memory", problem))?;
    let context_overhead = match &raw.context_overhead {
        Some(text) => text.parse().map_err(|e| ("context_overhead", Problem::Memory(e)))?,
        None => MemoryBytes::ZERO,
    };
    if context_overhead > memory {
        return Err(("context_overhead", Problem::OverheadAboveMemory));
    }
    let mut gpu = GpuConfig {
        uuid: match &raw.uuid {
            Some(text) => text.parse().map_err(|e| ("uuid", Problem::Id(e)))?,
            None => derived_uuid(index, &name),
        },
        pci: match &raw.pci {
            Some(text) => text.parse().map_err(|e| ("pci", Problem::Id(e)))?,
            None => default_pci(index),
        },
        compute_capability: match &raw.compute_capability {
            Some(text) => compute_capability(text).map_err(|p| ("compute_capability", p))?,
            None => ComputeCapability { major: 9, minor: 0 },
        },
        multiprocessors: above_zero(raw.multiprocessors, 16)
            .map_err(|problem| ("multiprocessors", problem))?,
        clock_mhz: above_zero(raw.clock_mhz, 1500).map_err(|problem| ("clock_mhz", problem))?,
        numa_node: raw.numa_node,
        nvlink_peers: BTreeSet::new(),
        mig_capable: raw.mig_capable,
        mig: None,
        name,
        memory,
        context_overhead,
        hmm: raw.hmm,
    };
    gpu.mig = raw.mig.as_ref().map(|raw| instances(&gpu, raw)).transpose()?;
    Ok(gpu)
}

pub(super) fn memory(text: &str) -> Result<MemoryBytes, Problem> {
    let memory: MemoryBytes = text.parse()?;
    if memory.is_zero() {
        return Err(Problem::Zero);
    }
    if memory > MAX_MEMORY {
        return Err(Problem::TooMuchMemory);
    }
    if memory.get().is_multiple_of(PAGE) { Ok(memory) } else { Err(Problem::Unaligned) }
}

fn above_zero(value: Option<u32>, default: u32) -> Result<u32, Problem> {
    match value {
        Some(0) => Err(Problem::Zero),
        Some(value) => Ok(value),
        None => Ok(default),
    }
}

fn compute_capability(text: &str) -> Result<ComputeCapability, Problem> {
    let parsed = text.split_once('.').and_then(|(major, minor)| {
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let number = |part: &str| if digits(part) { part.parse::<u32>().ok() } else { None };
        Some(ComputeCapability { major: number(major)?, minor: number(minor)? })
    });
    let possible = |c: &ComputeCapability| (1..=99).contains(&c.major) && c.minor <= 9;
    parsed.filter(possible).ok_or_else(|| Problem::ComputeCapability(text.to_owned()))
}

fn default_pci(index: usize) -> PciAddress {
    let bus = u8::try_from(index + 1).unwrap_or(u8::MAX);
    // Device and function 0 are always valid, so there is an address; the other arm is unused.
    match PciAddress::new(0, bus, 0, 0) {
        Some(address) => address,
        None => unreachable!("device 0, function 0 is a valid place"),
    }
}

fn check_unique(earlier: &[GpuConfig], gpu: &GpuConfig) -> Result<(), (&'static str, Problem)> {
    if earlier.iter().any(|other| other.pci == gpu.pci) {
        return Err(("pci", Problem::DuplicatePci(gpu.pci)));
    }
    if earlier.iter().any(|other| other.uuid == gpu.uuid) {
        return Err(("uuid", Problem::DuplicateUuid));
    }
    Ok(())
}

fn resolve(gpus: &[GpuConfig], own: usize, peer: &RawPeer) -> Result<usize, Problem> {
    let found = match peer {
        RawPeer::Index(index) => Some(*index).filter(|index| *index < gpus.len()),
        RawPeer::Uuid(text) => {
            let uuid: GpuUuid = text.parse()?;
            gpus.iter().position(|gpu| gpu.uuid == uuid)
        }
    };
    match found {
        Some(index) if index == own => Err(Problem::OwnPeer),
        Some(index) => Ok(index),
        None => Err(Problem::UnknownPeer(match peer {
            RawPeer::Index(index) => index.to_string(),
            RawPeer::Uuid(text) => text.clone(),
        })),
    }
}

fn checked_text(text: &str, longest: usize) -> Result<(), Problem> {
    let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    let fits = (1..=longest).contains(&text.len()) && !text.trim().is_empty();
    if printable && fits { Ok(()) } else { Err(Problem::Text(longest)) }
}
