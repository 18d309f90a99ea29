//! The checks, each over the same [`Context`].

mod admin;
mod confinement;
mod debugging;
mod devices;
mod environment;
mod libraries;
mod limits;
mod neighbours;
mod nodes;
mod pci;
mod residue;
mod sockets;

use crate::driver::launch::Launcher;
use crate::finding::Finding;
use crate::host::Host;
use crate::options::Options;

pub(crate) use devices::Seen;

/// What a check works with.
pub(crate) struct Context<'a> {
    pub(crate) host: &'a Host,
    pub(crate) options: &'a Options,
    pub(crate) launcher: &'a Launcher,
    /// Says what is about to be touched.
    pub(crate) announce: &'a mut dyn FnMut(&str),
    /// What CUDA and NVML show before anything was changed.
    pub(crate) seen: Seen,
}

/// What a check found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) findings: Vec<Finding>,
    /// What could not be tested, and why.
    pub(crate) untested: Vec<String>,
}

impl Outcome {
    pub(crate) fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(crate) fn untested(&mut self, why: impl Into<String>) {
        self.untested.push(why.into());
    }
}

/// A check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Context<'_>, &mut Outcome),
}

/// All checks. What reads fresh memory comes before what takes memory.
pub(crate) const CHECKS: &[Check] = &[
    Check { name: "driver nodes", run: nodes::nodes },
    Check { name: "raw ioctls", run: nodes::ioctls },
    Check { name: "nodes of its own making", run: nodes::make_nodes },
    Check { name: "driver libraries", run: libraries::check },
    Check { name: "capabilities and system calls", run: confinement::privileges },
    Check { name: "namespaces", run: confinement::namespaces },
    Check { name: "neighbours in NVML", run: neighbours::check },
    Check { name: "memory residue", run: residue::check },
    Check { name: "announced limit", run: limits::announced },
    Check { name: "allocation past the limit", run: limits::every_path },
    Check { name: "allocation by two processes", run: limits::two_processes },
    Check { name: "limits and the environment", run: environment::check },
    Check { name: "administrative calls", run: admin::calls },
    Check { name: "profiling counters", run: admin::profiling },
    Check { name: "peer access and exports", run: devices::peers },
    Check { name: "GPU files in sysfs", run: pci::files },
    Check { name: "IOMMU groups and ACS", run: pci::groups },
    Check { name: "interrupt remapping", run: pci::interrupts },
    Check { name: "GPU reset", run: pci::reset },
    Check { name: "host sockets", run: sockets::host },
    Check { name: "GPU services on the loopback", run: sockets::loopback },
    Check { name: "gpu-zone's slots and sockets", run: sockets::slots },
    Check { name: "debug interfaces", run: debugging::interfaces },
    Check { name: "memory of other processes", run: debugging::processes },
    Check { name: "shared memory of others", run: debugging::shared_memory },
];
