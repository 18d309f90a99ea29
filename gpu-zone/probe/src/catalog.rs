//! Every kind of finding: its code, how bad it is, why, and what to do.

use crate::finding::{Code, Severity};

/// One kind of finding.
#[derive(Debug)]
pub struct Entry {
    /// Stable name.
    pub code: Code,
    /// How bad it is, unless the circumstances say otherwise.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub fix: &'static str,
}

macro_rules! catalog {
    ($($name:ident = $number:literal $severity:ident $title:literal $why:literal $fix:literal)*) => {
        $(
            #[doc = $title]
            pub const $name: Entry = Entry {
                code: Code::new($number),
                severity: Severity::$severity,
                title: $title,
                why: $why,
                fix: $fix,
            };
        )*

        /// All entries, by code.
        pub const CATALOG: &[Entry] = &[$($name),*];
    };
}

catalog! {
    NVIDIA_NODES = 1 High "NVIDIA's driver nodes can be opened"
        "Every tenant that opens them talks to the same kernel driver: one of its bugs is a way to all others, and a limit in a library is not in the way of an ioctl."
        "Do not mount /dev/nvidia* into workloads. Run them in a mediated lease, or give a MIG instance or a whole GPU behind a VM's boundary."
    DRI_NODES = 2 High "GPU nodes in /dev/dri can be opened"
        "The same kernel driver is reachable through the graphics interface."
        "Do not mount /dev/dri into workloads that compute."
    VFIO_NODES = 3 High "VFIO nodes can be opened"
        "Who opens a VFIO group drives the device's DMA. That is right for a virtual machine monitor and for nobody else."
        "Keep /dev/vfio and /dev/iommu in the zone of the machine monitor."
    KFD_NODE = 4 High "AMD's compute node can be opened"
        "/dev/kfd is one interface to the kernel driver for all tenants."
        "Do not mount /dev/kfd into workloads that share a GPU."
    RAW_IOCTL = 5 High "the kernel driver answers raw ioctls"
        "A program without any library, a static one too, talks to the driver. No limit that lives in a library holds against it."
        "Take the driver nodes away, or filter ioctls in the zone's seccomp policy."
    NODES_CAN_BE_MADE = 6 Critical "driver nodes can be made and opened"
        "With mknod and no device filter a tenant makes the node that was not mounted."
        "Drop CAP_MKNOD and keep the device cgroup's filter."
    MEMORY_NODES = 7 Critical "the machine's memory can be opened"
        "/dev/mem, /dev/port and /proc/kcore reach memory of everyone, a GPU's registers too."
        "Keep them out of workloads; drop CAP_SYS_RAWIO."
    DRIVER_LIBRARY = 20 Medium "a second driver library can be opened by its path"
        "A limit that lives in one library is avoided by opening the other."
        "Have no other driver library in the workload's file system than the one that limits."
    CAPABILITIES = 101 Critical "capabilities that reach the driver or other tenants"
        "These capabilities of the machine's user namespace undo what keeps tenants apart, or open the driver's administrative calls."
        "Drop all capabilities; a program that uses a GPU needs none."
    NO_SECCOMP = 102 Medium "no seccomp filter"
        "Every system call of the kernel and every ioctl of a driver can be tried."
        "Use the runtime's default seccomp profile, or a stricter one."
    NEW_PRIVILEGES = 103 Low "no_new_privs is not set"
        "A program with the set-user-id bit gives rights back that were taken."
        "Set no_new_privs (allowPrivilegeEscalation: false)."
    HOST_PIDS = 104 High "the machine's process namespace"
        "The processes of all tenants can be listed and, with the same user, signalled, traced and read."
        "Give workloads a pid namespace of their own (hostPID: false)."
    HOST_IPC = 105 Medium "the machine's IPC namespace"
        "Shared memory that programs of other tenants made can be attached."
        "Give workloads an IPC namespace of their own (hostIPC: false)."
    HOST_USER = 106 Medium "root of the machine's user namespace"
        "A way out of the container is at once root on the machine."
        "Run as another user, or in a user namespace (hostUsers: false)."
    HOST_NETWORK = 107 Medium "the machine's network namespace"
        "Abstract sockets and services of the machine (metrics, MPS, schedulers) can be reached."
        "Give workloads a network namespace of their own (hostNetwork: false)."
    NEIGHBOURS = 201 Medium "other processes are visible through NVML"
        "Who computes, with how much memory and when, tells much about a neighbour's work."
        "Show a workload its own lease only: a mediated lease has no NVML of the machine."
    WHOLE_GPU_STATE = 202 Low "memory use and load of the whole GPU are visible"
        "A curve of a neighbour's memory and load is a side channel."
        "As for GZP201."
    NO_LIMIT = 301 Medium "no memory limit"
        "The workload is offered all memory of the GPU: it can starve whoever shares it."
        "Give a limit that is enforced outside the workload: a mediated lease or a MIG instance."
    PAST_ALLOC = 302 High "cuMemAlloc gets more than the limit"
        "The announced limit is not enforced where it is tested most."
        "Use a limit that is enforced outside the workload."
    PAST_PITCH = 303 High "cuMemAllocPitch gets more than the limit"
        "One path of allocation is not counted." "As for GZP302."
    PAST_ASYNC = 304 High "cuMemAllocAsync gets more than the limit"
        "What memory pools take is not counted." "As for GZP302."
    PAST_VMM = 305 High "cuMemCreate gets more than the limit"
        "Memory of the virtual memory management calls is not counted." "As for GZP302."
    PAST_MANAGED = 306 Medium "cuMemAllocManaged gets more than the limit"
        "Managed memory may go beyond a GPU's memory by design, but pages that a kernel touches come to the GPU and push others' out."
        "Count managed memory, or refuse it."
    PAST_GLOBALS = 307 High "variables of modules get more than the limit"
        "Memory that a module's loading takes is not counted." "As for GZP302."
    PAST_ARRAY = 308 High "cuArrayCreate gets more than the limit"
        "Memory of arrays is not counted." "As for GZP302."
    PAST_SECOND_PROCESS = 309 High "two processes together get more than the limit"
        "The limit is of each process and not of the workload: it is avoided by a fork."
        "Count over all processes of a workload."
    UNDONE_BY_VARIABLE = 310 High "a limit vanishes with an environment variable"
        "The workload can change its own environment; what depends on it is a request and not a limit."
        "Use a limit that is enforced outside the workload."
    LIMIT_IN_VARIABLE = 311 Low "the limit stands in a variable of the workload"
        "A limit that is read from the workload's environment is the workload's to change."
        "As for GZP310."
    PRELOAD = 312 High "a limit depends on a preloaded library"
        "The loader preloads it. A static program, or one that opens the driver's nodes itself, has no loader."
        "As for GZP310."
    MPS = 313 Medium "MPS is in use"
        "All clients of an MPS server are one fault domain: a fault of one ends the kernels of all."
        "Use MPS inside one tenant only."
    RESIDUE = 401 Critical "fresh memory holds old data"
        "Memory that was another process's reaches the next one unchanged."
        "Clear memory before it is handed out, outside the workload; gpu-zone's workers do."
    ADMINISTRATION = 501 High "NVML's administrative calls are permitted"
        "Modes, clocks and power of a GPU that others share can be changed."
        "Drop CAP_SYS_ADMIN; do not run as the machine's root."
    PROFILING = 502 Medium "profiling counters are open to everyone"
        "Counters of the hardware see what neighbours do."
        "Load the driver with NVreg_RestrictProfilingToAdminUsers=1."
    DEVICE_FILES = 503 Critical "the GPU's files in sysfs can be written"
        "Reset, removal, the configuration space and the GPU's registers are in the workload's hands."
        "Mount /sys read-only, without the machine's root."
    MIG_CAPABILITY = 504 High "MIG's configuration capability can be opened"
        "The partition of a GPU that others share can be changed."
        "Give a workload its own instance's nodes in /dev/nvidia-caps and not nvidia-cap1."
    PEERS = 601 Low "GPUs can reach each other's memory"
        "Where the GPUs of two tenants are visible to one process, peer access crosses the border."
        "Let a workload see its own GPUs only."
    IPC_HANDLES = 602 Low "memory can be exported to other processes"
        "A handle that leaks gives another process the memory. Limiters often do not count what is imported."
        "Refuse IPC handles between tenants."
    NO_IOMMU = 603 Medium "a GPU is in no IOMMU group"
        "Nothing keeps the GPU's DMA from the machine's memory; passthrough is not safe."
        "Switch the IOMMU on (firmware and kernel command line)."
    IMPURE_GROUP = 604 Medium "a GPU shares its IOMMU group"
        "Devices of one group reach each other's memory; they must not go to two tenants."
        "Put the GPU behind a port with ACS, or give the whole group to one tenant."
    NO_ACS = 605 Low "a port above a GPU does not isolate its devices"
        "Without ACS a switch forwards requests between devices without asking the IOMMU."
        "Enable ACS on the port, or use one whose devices are in groups of their own."
    UNSAFE_INTERRUPTS = 606 High "VFIO accepts a machine without interrupt remapping"
        "A device of a tenant can raise any interrupt of the machine."
        "Set vfio_iommu_type1.allow_unsafe_interrupts=0 and switch interrupt remapping on."
    NO_RESET = 607 Low "a GPU cannot be reset on its own"
        "State of the last tenant stays in the device."
        "Give such a GPU to one tenant for good, or reset the machine in between."
    HOST_SOCKETS = 701 Critical "sockets that control the machine can be reached"
        "Who speaks to the container runtime or the kubelet starts programs with any rights."
        "Do not mount them into workloads."
    SERVICE_SOCKETS = 702 Medium "GPU services can be reached"
        "MPS, the fabric manager, the persistence daemon or DCGM's host engine take orders there; exporters tell what every tenant does."
        "Do not mount them into workloads, and give workloads a network namespace of their own or services a port that asks who comes."
    OTHER_SLOTS = 703 High "other slots of gpu-zone can be reached"
        "A slot's socket is a lease's GPU: who connects computes on another tenant's lease, though its worker shares no memory between sessions."
        "Run workloads in sandboxed zones: they see their own slot only."
    AGENT_SOCKETS = 704 High "gpu-zone's control sockets can be reached"
        "Who speaks to the agent or to the broker makes and ends leases."
        "Run workloads in sandboxed zones, or as a user that may not open the run directory."
    PTRACE_OPEN = 801 Medium "processes of the same user can be traced"
        "A process of another tenant with the same user id can be read and changed."
        "Set kernel.yama.ptrace_scope to 1 or more; give each tenant a user id."
    OTHERS_MEMORY = 802 Critical "memory of other processes can be opened"
        "Data that another tenant has on the CPU's side of its GPU work can be read."
        "Use a pid namespace and a user id for each workload; drop CAP_SYS_PTRACE."
    DEBUGFS = 803 High "debugfs or tracefs can be read"
        "They show the kernel's and the drivers' inner state, other tenants' included."
        "Do not mount /sys/kernel/debug and /sys/kernel/tracing into workloads."
    SHARED_MEMORY = 804 Medium "shared memory of others can be read"
        "Frameworks put tensors into /dev/shm; whoever sees the folder reads them."
        "Give each workload a /dev/shm of its own."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_sorted_and_read_back() {
        let codes: Vec<Code> = CATALOG.iter().map(|entry| entry.code).collect();
        let mut sorted = codes.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(codes, sorted);
        for code in codes {
            assert_eq!(code.to_string().parse(), Ok(code));
        }
        assert!("GZP999".parse::<Code>().is_err());
        assert!("1".parse::<Code>().is_err());
    }
}
