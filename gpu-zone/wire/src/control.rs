//! What the agent and a driver zone's broker say to each other: JSON, one message a line,
//! over a stream socket. One request, one reply, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gpuzone_core::{ComputeShare, Grant, LeaseId, MemoryBytes, UsageCounters};
use serde::{Deserialize, Serialize};

use crate::ring::{RecordBytes, RingBytes};
use crate::scrub::{ScrubOrder, ScrubReport};
use crate::turn::{FairTime, Priority};

/// Version of this protocol; a broker of another version is refused.
pub const VERSION: u32 = 1;

/// Longest line either side reads, in bytes.
pub const MAX_LINE: usize = 4 << 20;

/// Which driver a driver zone opens, by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// `libcuda.so.1`, of the real driver or of the simulated GPU.
    pub cuda_library: PathBuf,
    /// `libnvidia-ml.so.1` of the same.
    pub nvml_library: PathBuf,
    /// The whole environment of a worker.
    pub environment: BTreeMap<String, String>,
}

/// How a broker is set up; the agent writes it to a file that the broker is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerConfig {
    /// The broker's own directory.
    pub zone_dir: PathBuf,
    /// The worker's executable.
    pub worker: PathBuf,
    /// What workers open.
    pub driver: Driver,
    /// Caps on what one session may hold.
    pub caps: Caps,
    /// How time is shared.
    #[serde(default)]
    pub fair_time: FairTime,
    /// How workers are kept apart from the host; `None`: not at all.
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
    /// Whether tenants are in another machine than workers, with windows between them
    /// ([`crate::hello::Hello::window`]): in a driver zone that is a microVM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub windows: bool,
    /// The microVM that is the driver zone: this broker makes it, and has its leases served by
    /// the broker in there. `None`: this one makes workers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microvm: Option<Box<MicroVm>>,
}

/// A driver zone's microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicroVm {
    /// Who runs it.
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// The hypervisor's program.
    pub program: PathBuf,
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial file system: what `cargo xtask guest-image` builds.
    pub image: PathBuf,
    /// Which files those two have to be, by path; checked before each start.
    #[serde(default)]
    pub digests: BTreeMap<PathBuf, String>,
    /// How its processors are made.
    pub accelerator: Accelerator,
    /// Bytes of its memory.
    pub memory: u64,
    /// Its processors.
    pub processors: u32,
    /// Most processes of tenants that are connected at once.
    pub windows: u16,
    /// Functions that it gets by passthrough, like `0000:3b:00.0`; bound to VFIO already.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Files that it is given, by name, as [`crate::zone_link::CONFIG_DIR`] has them.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// What confines the hypervisor itself.
    pub confinement: Option<Sandbox>,
}

/// Who runs a microVM. None is taken in another's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// QEMU.
    #[default]
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
}

/// How a microVM's processors are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor where a guest was seen to run so, else by emulation.
    #[default]
    Auto,
    /// By the processor, or not at all.
    Kvm,
    /// By emulation.
    Tcg,
}

/// What workers get of the host, and what the host must have for it. The maker of their zones is told
/// this, and the broker, that there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The executable that makes workers' zones, and starts what makes them.
    pub maker: PathBuf,
    /// Files and folders that workers read, beside the libraries of [`Driver`].
    pub read: Vec<PathBuf>,
    /// Folders that workers write to, beside the descriptors that they inherit.
    pub write: Vec<PathBuf>,
    /// Device nodes that workers open.
    pub devices: Vec<PathBuf>,
    /// Names of the features without which no worker starts; a worker that lacks another starts,
    /// and the log says so.
    pub require: BTreeSet<String>,
    /// From where each worker gets users of its own, and the broker; `None`: they run as the agent's.
    #[serde(default)]
    pub users: Option<UserRanges>,
    /// Bytes that the worker of a lease may have at most of each region of device memory, by control
    /// group. Not a scrub worker, which takes all that is free.
    #[serde(default)]
    pub device_memory: BTreeMap<String, u64>,
}

/// Numbers of users from which each zone gets a range that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRanges {
    /// The first number of the first range.
    pub first: u32,
    /// Numbers in each range.
    pub each: u32,
    /// How many ranges there are.
    pub zones: u32,
}

/// Caps on what tenants' processes may make a worker hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Bytes of each of the two rings of a process; no record has more than half of it.
    pub ring_bytes: RingBytes,
    /// Bulk bytes of one record of a process.
    pub record_bytes: RecordBytes,
    /// Processes of one lease that are connected at once.
    pub sessions: u32,
    /// Contexts of a process.
    pub contexts: u32,
    /// Loaded modules of a process.
    pub modules: u32,
    /// Kernels that a process has looked up, and that one module may name.
    pub functions: u32,
    /// Bytes of one module's image.
    pub module_bytes: u64,
    /// Bytes of the images of all modules that the processes of a lease have loaded.
    pub image_bytes: u64,
    /// Bytes that one image has when it is unpacked.
    pub unpacked_bytes: u64,
    /// Streams of a process.
    pub streams: u32,
    /// Events of a process.
    pub events: u32,
    /// Live allocations of a process.
    pub allocations: u32,
    /// Pools of device memory of a process.
    pub pools: u32,
    /// Bytes of host memory that all processes of a lease share with their worker.
    pub pinned_bytes: u64,
    /// Pieces of such memory of a process; each is a file and a mapping of the worker's.
    pub pinned_pieces: u32,
    /// Bytes that kernels of all processes of a lease may have printed and nobody has taken yet.
    pub print_bytes: u64,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            ring_bytes: RingBytes::default(),
            record_bytes: RecordBytes::default(),
            sessions: 64,
            contexts: 16,
            modules: 1024,
            functions: 65_536,
            module_bytes: 64 << 20,
            image_bytes: 1 << 30,
            unpacked_bytes: 256 << 20,
            streams: 1024,
            events: 65_536,
            allocations: 1 << 20,
            pools: 64,
            pinned_bytes: 4 << 30,
            pinned_pieces: 1024,
            print_bytes: 16 << 20,
        }
    }
}

/// A lease, as the broker needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerOrder {
    /// Whose worker.
    pub lease: LeaseId,
    /// Where the slot's socket is to be: `<slot_dir>/cuda.sock`.
    pub slot_dir: PathBuf,
    /// The GPUs, in the order in which the program sees them, and the limits on each.
    pub grants: Vec<Grant>,
    /// How urgent its work is.
    #[serde(default)]
    pub priority: Priority,
    /// The part of each GPU's time that it gets at most, if there is such a limit.
    #[serde(default)]
    pub time_cap: Option<ComputeShare>,
    /// Who can reach the slot.
    #[serde(default)]
    pub access: SlotAccess,
}

/// Who can reach a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotAccess {
    /// The user who runs the node, and nobody else; the folder comes and goes with the lease.
    #[default]
    Private,
    /// Whoever sees the folder: it is mounted into one container, whose user may be anybody, and
    /// lies where nobody else gets to. It is there before the lease and stays after it.
    Mounted,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// First of all.
    Hello {
        /// The agent's [`VERSION`].
        version: u32,
    },
    /// Serve this lease from now on; answers once its first worker accepts connections.
    /// Asking again for a lease that is served is no error.
    Start(WorkerOrder),
    /// End the lease's worker and close its slot; answers with its last counters when the process
    /// is gone, and again until they are settled: an agent or a broker may have died before they
    /// were written down. A lease that is not known is no error.
    Stop {
        /// Which.
        lease: LeaseId,
    },
    /// How all leases did that were stopped and are not settled.
    Ended,
    /// What this lease used, and that it ended, is written down: forget it. One that is not known
    /// is no error.
    Settle {
        /// Which.
        lease: LeaseId,
    },
    /// Clear memory that an ended lease gave back; answers when it is known whether it is clear.
    Scrub(ScrubOrder),
    /// How all leases are doing.
    Status,
    /// These ends of workers are written down; they need not be told again.
    Acknowledge {
        /// Whose workers.
        lease: LeaseId,
        /// All up to this [`WorkerEnd::number`].
        through: u32,
    },
    /// Stop all workers, then exit.
    Shutdown,
}

/// From the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The broker's [`VERSION`].
        version: u32,
        /// Its process.
        pid: u32,
    },
    /// To [`Request::Start`], with the lease's state; to [`Request::Stop`], with its last, or
    /// with nothing for a lease that is not known; to [`Request::Status`] and [`Request::Ended`],
    /// with all; to [`Request::Acknowledge`] and [`Request::Settle`], with nothing.
    Leases {
        /// How they are doing.
        leases: Vec<LeaseStatus>,
    },
    /// To [`Request::Scrub`], one for each GPU of it.
    Scrubbed {
        /// What was done and found.
        reports: Vec<ScrubReport>,
    },
    /// To [`Request::Shutdown`], before the broker exits.
    Bye,
    /// The request could not be done; nothing of it is left behind.
    Refused {
        /// What was wrong and what to do.
        reason: String,
    },
}

/// How a lease is doing in its driver zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Which.
    pub lease: LeaseId,
    /// Its worker's process, while there is one.
    pub worker_pid: Option<u32>,
    /// How often a worker had to be replaced.
    pub restarts: u32,
    /// Tenant processes that are connected.
    pub sessions: u32,
    /// Memory in use now, over all GPUs.
    pub used: MemoryBytes,
    /// What was used since the lease began, over all its workers.
    pub counters: UsageCounters,
    /// Unsupported calls by name.
    pub refused_by_name: BTreeMap<String, u64>,
    /// What last went wrong, empty if nothing did.
    pub trouble: String,
    /// The last workers that ended before the lease did, as far as that was not acknowledged.
    #[serde(default)]
    pub ends: Vec<WorkerEnd>,
}

/// A worker that ended before its lease did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEnd {
    /// The how manieth of its lease it was, from 1.
    pub number: u32,
    /// Its process.
    pub pid: u32,
    /// How it ended.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> LeaseId {
        LeaseId::from_uuid(uuid::Uuid::from_u128(7))
    }

    fn crosses<T: PartialEq + std::fmt::Debug + Serialize + for<'de> Deserialize<'de>>(message: T) {
        let line = serde_json::to_string(&message).expect("it can be written");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<T>(&line).expect("it can be read"), message);
    }

    #[test]
    fn every_message_crosses_the_line_unchanged() {
        let order = WorkerOrder {
            lease: lease(),
            slot_dir: "/run/slot".into(),
            grants: Vec::new(),
            priority: Priority::LatencyCritical,
            time_cap: Some(ComputeShare::WHOLE),
            access: SlotAccess::Mounted,
        };
        crosses(Request::Hello { version: VERSION });
        crosses(Request::Start(order));
        crosses(Request::Stop { lease: lease() });
        crosses(Request::Scrub(ScrubOrder {
            lease: lease(),
            gpus: Vec::new(),
            sample: MemoryBytes::mib(1),
            limit_ms: 5,
        }));
        crosses(Request::Ended);
        crosses(Request::Settle { lease: lease() });
        crosses(Request::Status);
        crosses(Request::Acknowledge { lease: lease(), through: 8 });
        crosses(Request::Shutdown);
        let status = LeaseStatus {
            lease: lease(),
            worker_pid: None,
            restarts: 1,
            sessions: 2,
            used: MemoryBytes::mib(3),
            counters: UsageCounters { launches: 4, ..UsageCounters::default() },
            refused_by_name: BTreeMap::from([("cuMemAllocManaged".to_owned(), 5)]),
            trouble: "a\nline".to_owned(),
            ends: vec![WorkerEnd { number: 1, pid: 6, reason: "signal 9".to_owned() }],
        };
        crosses(Reply::Hello { version: VERSION, pid: 1 });
        crosses(Reply::Leases { leases: vec![status] });
        crosses(Reply::Scrubbed { reports: Vec::new() });
        crosses(Reply::Bye);
        crosses(Reply::Refused { reason: "no".to_owned() });
    }
}
