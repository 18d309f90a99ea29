//! What a sandbox is to be: the launcher's orders, and what it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing of the kernel's that keeps a zone apart, and that a host may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// A user namespace: privileges inside are none outside.
    User,
    /// A mount namespace, and with it a root of its own.
    Mount,
    /// A pid namespace: other processes are neither seen nor signalled.
    Pid,
    /// A network namespace.
    Net,
    /// A namespace of System V and POSIX message queues.
    Ipc,
    /// A namespace of host names.
    Uts,
    /// A namespace of control groups' paths.
    CgroupNamespace,
    /// A namespace of clocks.
    Time,
    /// A `/proc` that shows the zone's own processes only.
    Proc,
    /// A filter of system calls.
    Seccomp,
    /// Access to files, ports, signals and abstract sockets by rule (landlock(7)).
    Landlock,
    /// A limit on memory by control group.
    Memory,
    /// A limit on processes by control group.
    Pids,
    /// A limit on processor time by control group.
    Cpu,
    /// Limits on device memory by control group, where the GPU's driver books it there.
    Dmem,
    /// Users of the zone's own, who are nobody on the host.
    Users,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::User,
        Self::Mount,
        Self::Pid,
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::CgroupNamespace,
        Self::Time,
        Self::Proc,
        Self::Seccomp,
        Self::Landlock,
        Self::Memory,
        Self::Pids,
        Self::Cpu,
        Self::Dmem,
        Self::Users,
    ];

    /// Its name in configurations and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::CgroupNamespace => "cgroup-namespace",
            Self::Time => "time",
            Self::Proc => "proc",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Dmem => "dmem",
            Self::Users => "users",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens where the host lacks a feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Demand {
    /// The zone does not start.
    Require,
    /// It starts without the feature, and the report says so.
    #[default]
    Warn,
}

/// [`Demand`] of each feature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Of those that are not named.
    pub default: Demand,
    /// Of those that are.
    pub features: BTreeMap<Feature, Demand>,
}

impl Policy {
    /// Warns of all features but those with these names, which it requires.
    ///
    /// # Errors
    /// The first name that no feature has.
    pub fn requiring<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<Self, String> {
        let mut policy = Self { default: Demand::Warn, ..Self::default() };
        for name in names {
            let known = Feature::ALL.into_iter().find(|feature| feature.as_str() == name);
            policy.features.insert(known.ok_or_else(|| name.clone())?, Demand::Require);
        }
        Ok(policy)
    }

    /// What is demanded of `feature`.
    pub fn of(&self, feature: Feature) -> Demand {
        self.features.get(&feature).copied().unwrap_or(self.default)
    }
}

/// A feature that the host lacks, and what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub feature: Feature,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.feature, self.reason)
    }
}

/// What a zone has for its root. Never writable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    /// Nothing but what is mounted.
    Empty,
    /// The host's files.
    Host,
    /// The files in this folder.
    Folder(PathBuf),
}

/// A file or folder of the host's that a zone gets, at the same path unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// In the zone.
    #[serde(default)]
    pub target: Option<PathBuf>,
    /// Whether it may be written to.
    #[serde(default)]
    pub write: bool,
    /// Whether it is left out where the host does not have it.
    #[serde(default)]
    pub optional: bool,
    /// Whether its files stay the host's users': a zone with users of its own reads what
    /// everybody may. Otherwise they are mapped, and the host's root's are the zone's root's.
    #[serde(default)]
    pub unmapped: bool,
}

impl Mount {
    /// To be read, and there for sure.
    pub fn read(source: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: None, write: false, optional: false, unmapped: false }
    }

    /// To be read and written.
    pub fn write(source: impl Into<PathBuf>) -> Self {
        Self { write: true, ..Self::read(source) }
    }

    /// To be read, if it is there.
    pub fn read_if_there(source: impl Into<PathBuf>) -> Self {
        Self { optional: true, ..Self::read(source) }
    }
}

/// Where the libraries are that programs and drivers' libraries need; the others they name by
/// path.
pub const LIBRARIES: [&str; 8] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib32",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/lib32",
    "/etc/ld.so.cache",
];

/// Which reviewed policy of system calls applies (`policies/*.json`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// `worker.json`: what is not listed is denied.
    Worker,
    /// `workload.json`: what is listed is denied.
    Workload,
    /// `broker.json`: what is not listed is denied.
    Broker,
    /// `maker.json`: what is not listed is denied. The program makes zones itself, and has what
    /// that takes (`maker.rs`).
    Maker,
    /// `machines.json`: what is listed is denied. As [`Filter::Maker`], but what runs in the zones is
    /// QEMU, which has the filters of whoever started it, too.
    Machines,
}

/// Limits; those that are left out do not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of host memory, swapped out or not.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Per cent of one processor's time.
    pub cpu: Option<u64>,
    /// How much of the processors it gets while others want them, however many processes it has:
    /// 1 to 10000, where 100 is as much as another zone.
    pub cpu_weight: Option<u64>,
    /// Bytes of each region of device memory that the kernel can limit (`dmem.capacity` at the
    /// root of control groups lists them).
    pub device_memory: BTreeMap<String, u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// Bytes of each process's memory that are kept where they are, for devices that write to it. More than
    /// the usual few is root's to give.
    pub locked: Option<u64>,
    /// Bytes in all private folders together, which are memory. Left out: a quarter of the
    /// host's.
    pub scratch: Option<u64>,
}

/// Numbers of users and groups from which zones get a range each, that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRanges {
    /// The first number of the first range.
    pub first: u32,
    /// Numbers in each range: the zone's users 0 and up.
    pub each: u32,
    /// How many ranges there are.
    pub zones: u32,
}

impl Default for UserRanges {
    /// 2048 times 65,536, between what systemd gives to containers and where numbers begin
    /// that some programs take for negative ones.
    fn default() -> Self {
        Self { first: 0x7000_0000, each: 0x1_0000, zones: 2048 }
    }
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The zone's name: letters, digits, `-` and `_`; its host name, and its control group's.
    pub zone: String,
    /// Its root.
    pub root: Root,
    /// What it gets of the host's, in this order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Device nodes beside null, zero, full, random and urandom.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// Folders that are empty, writable, and gone with the zone.
    #[serde(default)]
    pub private: Vec<PathBuf>,
    /// Folders of [`Root::Host`] that are not shown.
    #[serde(default)]
    pub hidden: Vec<PathBuf>,
    /// The working directory.
    pub directory: PathBuf,
    /// Whether the host's network is shared.
    #[serde(default)]
    pub network: bool,
    /// Whether its processes are numbered on their own. The launcher then stays, as the
    /// process that is waited for and signalled.
    #[serde(default)]
    pub own_pids: bool,
    /// Whom its processes are on the host: users of a range of its own. Left out: the one who
    /// starts it.
    #[serde(default)]
    pub users: Option<UserRanges>,
    /// The folder in which the launcher writes the zone down, which it owns then. Left out:
    /// whoever started the launcher owns the zone, and writes it down.
    #[serde(default)]
    pub record: Option<PathBuf>,
    /// System calls.
    pub filter: Filter,
    /// Limits.
    #[serde(default)]
    pub limits: Limits,
    /// What happens where something is missing.
    #[serde(default)]
    pub policy: Policy,
}

/// What the launcher says before the program begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// The program is about to begin, without these features.
    Ready(Vec<Missing>),
    /// The zone could not be made: why, and what to do.
    Failed(String),
    /// The zone was made, but the program did not begin in it.
    Unrunnable {
        /// The kernel's number for it (errno(3)).
        errno: i32,
        /// The same in words.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_files_and_messages() {
        for feature in Feature::ALL {
            let json = serde_json::to_string(&feature).unwrap();
            assert_eq!(json, format!("\"{feature}\""));
        }
    }

    #[test]
    fn a_feature_that_is_named_wins_over_the_default() {
        let policy: Policy =
            serde_json::from_str(r#"{"default":"require","features":{"pids":"warn"}}"#).unwrap();
        assert_eq!(policy.of(Feature::Pids), Demand::Warn);
        assert_eq!(policy.of(Feature::Seccomp), Demand::Require);
        assert_eq!(Policy::default().of(Feature::Seccomp), Demand::Warn);
    }
}
