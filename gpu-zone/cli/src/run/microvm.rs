//! A workload zone that is a microVM: `gpu-zone-vm` and QEMU in an ordinary sandbox, which shows them
//! the program's root, its slot and the shim, and nothing else.
//!
//! What `gpu-zone-vm` is told is a contract between programs, as the launcher's orders are
//! (docs/driver-zones.md).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use gpuzone_api::Directories;
use gpuzone_api::agent::v1::{CreateLeaseReply, MicroVm, PassedFunction};
use gpuzone_core::{Exposure, MemoryBytes, ZoneName};
use gpuzone_image::find_program;
use serde_json::{Value, json};

use crate::arguments::{Run, Sandboxing, ZoneKind};
use crate::error::{CliError, Kind};
use crate::locate;
use crate::run::child::in_memory;
use crate::run::image;
use crate::run::program::Program;
use crate::run::sandbox::{Options, Root, Zone, demand, limits, users, zone_name};
use crate::run::view;

/// In the program's root, as `gpu-zone-vm` lays it out.
const LIBRARIES_SEEN: &str = "/run/gpu-zone/lib";
const SLOT_SEEN: &str = "/run/gpu-zone/slot";
const SLOT: &str = "GPUZONE_SLOT";
/// In the sandbox around it.
const ROOT: &str = "/guest/root";
const LIBRARIES: &str = "/guest/lib";
const SLOT_INSIDE: &str = "/guest/slot";
/// Where distributions have what QEMU and its libraries are made of.
const HOSTS: [&str; 11] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib32",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/lib32",
    "/etc/ld.so.cache",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-kvm",
];
/// The hypervisor that hands over no tokens, as the agent calls it.
const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";
/// Where sysfs has functions by address.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// QEMU's own memory beside the guest's, and some.
const OVERHEAD: u64 = 512 << 20;
/// The guest's image, beside the program's files.
const IMAGE: u64 = 256 << 20;
/// QEMU's threads, and two for each process that is connected.
const MOST_THREADS: u64 = 512;

/// The program in the folder that is to be the root, looked for there as it will be: in the variables
/// that it gets.
pub(crate) fn program(run: &Run) -> Result<Program, CliError> {
    let Some((name, arguments)) = run.command.split_first() else {
        return Err(CliError::new(Kind::Usage, "there is no program to run"));
    };
    // Without one, it is refused later, with the reason.
    let root = run.rootfs.as_deref().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    let text = name.to_string_lossy();
    let Some(file) = find_program(root, Path::new("/"), &path, &text) else {
        let (shown, root) = (gpuzone_ledger::printable(&text), root.display());
        let message = format!(
            "there is no program '{shown}' in {root}; nothing was started and no lease made"
        );
        let hint =
            "it is looked for in PATH, or from the root's first folder, and has to be executable";
        return Err(CliError::new(Kind::NoProgram, message).hint(hint));
    };
    Ok(Program { file, name: name.clone(), arguments: arguments.to_vec() })
}

/// Fails where a microVM cannot be what `run` asks for, or has to be and is not.
pub(crate) fn check(run: &Run, zone: Option<&ZoneName>) -> Result<(), CliError> {
    let refused = |message: &str, hint: &str| Err(CliError::new(Kind::Usage, message).hint(hint));
    if run.zone_kind != ZoneKind::Microvm {
        return match run.exposure {
            Exposure::Mediated => Ok(()),
            other => refused(
                &format!(
                    "a GPU by {other} goes to a machine of the program's own, and a sandbox is none"
                ),
                "give it one with --zone-kind microvm",
            ),
        };
    }
    if zone.is_some() {
        let hint = "leave --zone out; where the agent has all of a tenant's programs share one, they can be none";
        return refused("programs cannot share a zone that is a microVM", hint);
    }
    if run.sandbox == Sandboxing::Off {
        let message =
            "a microVM's own process runs in a sandbox only, and --sandbox off asks for none";
        return refused(message, "leave --sandbox out");
    }
    if !run.volumes.is_empty() {
        let hint = "put what the program reads into its root, and have it write to its output";
        return refused(
            "nothing of the host's is shown in a microVM, so it takes no --volume",
            hint,
        );
    }
    if run.rootfs.as_deref().is_none_or(|root| root == Path::new("host")) {
        let hint = "give it a folder or an OCI image layout with --rootfs";
        return refused("a microVM has a root of its own, and none is named", hint);
    }
    Ok(())
}

/// The zone, what runs in it, and the lease as that program sees it.
pub(crate) fn prepare(
    run: &Options,
    directories: &Directories,
    granted: &CreateLeaseReply,
    program: &Program,
) -> Result<(Program, CreateLeaseReply, Option<Zone>), CliError> {
    let missing =
        |message: &str, hint: &str| CliError::new(Kind::Configuration, message).hint(hint);
    let installed = |name: &str| {
        let message = format!("{name} is not there, so there is no microVM");
        let hint = "install it beside gpu-zone (`gpu-zone doctor` says where)";
        locate::own(name).ok_or_else(|| missing(&message, hint))
    };
    let (launcher, relay) = (installed("gpu-zone-sandbox")?, installed("gpu-zone-vm")?);
    let Some(vm) = &granted.microvm else {
        let hint =
            "the agent's configuration says what they are made of, under [zone.workload_microvm]";
        return Err(missing("this node has no microVMs for workload zones", hint));
    };
    let wrong = |message| CliError::new(Kind::Internal, message);
    let root = run.root.folder().ok_or_else(|| wrong("a microVM without a root of its own"))?;
    let root = std::path::absolute(root).map_err(|error| CliError::caused(Kind::Usage, &error))?;
    let mediated = granted.functions.is_empty();
    let slot = granted.environment.get(SLOT).map(Path::new).filter(|_| mediated);
    if mediated && slot.is_none() {
        return Err(wrong("the agent made a lease without a slot"));
    }
    let shim = mediated.then_some(Path::new(&granted.library_dir));
    let machine = Machine::of(run, granted, vm);
    let mut mounts = mounts(vm, &relay, &root, shim, slot);
    mounts.extend(granted.functions.iter().map(function));
    let orders = json!({
        "zone": zone_name(granted.lease.as_ref().map_or("zone", |lease| lease.id.as_str())),
        "root": "empty",
        "mounts": mounts,
        "devices": devices(vm, &granted.functions),
        "private": ["/tmp"],
        "directory": "/",
        "network": false,
        "own_pids": true,
        "users": users(granted),
        "limits": machine.limits_of_host(run, granted),
        "filter": "workload",
        "policy": { "default": demand(run.demand), "features": { "mount": "require" } },
    });
    let mut zone = Zone::ordered(launcher, directories, orders)?;
    zone.secrets = tokens(vm, &granted.functions)?;
    let secrets = zone.secrets.as_ref().map(AsRawFd::as_raw_fd);
    let mut words: Vec<OsString> = vec![
        machine.orders(run, granted, vm, secrets).to_string().into(),
        "--".into(),
        program.file.clone().into(),
    ];
    words.push(program.name.clone());
    words.extend(program.arguments.iter().cloned());
    let program = Program { file: relay, name: "gpu-zone-vm".into(), arguments: words };
    let mut seen = granted.clone();
    if mediated {
        seen.environment.insert(SLOT.to_owned(), SLOT_SEEN.to_owned());
        seen.library_dir = LIBRARIES_SEEN.to_owned();
    } else {
        // Its driver is its own, and so are that one's libraries.
        seen.environment.remove(SLOT);
        seen.library_dir.clear();
    }
    Ok((program, seen, Some(zone)))
}

/// What of the host the sandbox shows.
fn mounts(
    vm: &MicroVm,
    relay: &Path,
    root: &Path,
    shim: Option<&Path>,
    slot: Option<&Path>,
) -> Vec<Value> {
    let hosts = HOSTS.iter().filter(|path| !Path::new(path).is_symlink());
    let mut mounts: Vec<Value> = hosts.map(view::read).collect();
    let named = [&vm.program, &vm.kernel, &vm.image].map(|path| json!({ "source": path }));
    mounts.extend(named);
    mounts.push(json!({ "source": relay }));
    mounts.push(json!({ "source": root, "target": ROOT }));
    mounts.extend(slot.map(|slot| json!({ "source": slot, "target": SLOT_INSIDE })));
    let libraries =
        shim.map(image::libraries).unwrap_or_default().into_iter().filter_map(|(from, to)| {
            Some(json!({ "source": from, "target": Path::new(LIBRARIES).join(to.file_name()?) }))
        });
    mounts.extend(libraries);
    mounts
}

/// What QEMU reads of a function in sysfs: its own folder and no other's.
fn function(function: &PassedFunction) -> Value {
    json!({ "source": Path::new(FUNCTIONS).join(&function.address), "unmapped": true })
}

fn devices(vm: &MicroVm, functions: &[PassedFunction]) -> Vec<PathBuf> {
    let kvm = PathBuf::from("/dev/kvm");
    let kvm = (vm.accelerator != "tcg" && kvm.exists()).then_some(kvm);
    let vfio = Path::new("/dev/vfio");
    let groups: BTreeSet<u32> = functions.iter().map(|function| function.group).collect();
    let container = (!groups.is_empty()).then(|| vfio.join("vfio"));
    let groups = groups.into_iter().map(|group| vfio.join(group.to_string()));
    kvm.into_iter().chain(container).chain(groups).collect()
}

/// The tokens of functions that need one, in a file that has no name.
fn tokens(vm: &MicroVm, functions: &[PassedFunction]) -> Result<Option<OwnedFd>, CliError> {
    let with = functions.iter().filter_map(|function| {
        Some((function.address.as_str(), function.vf_token.as_ref()?.uuid.as_str()))
    });
    let tokens: BTreeMap<&str, &str> = with.collect();
    let Some(address) = tokens.keys().next() else { return Ok(None) };
    if vm.hypervisor == CLOUD_HYPERVISOR {
        let message =
            format!("{address} is opened with a token, which Cloud Hypervisor does not hand over");
        let hint = "have QEMU run workload zones: hypervisor = \"qemu\" in [zone.workload_microvm]";
        return Err(CliError::new(Kind::Configuration, message).hint(hint));
    }
    let file = serde_json::to_vec(&tokens).map_err(io::Error::from);
    let file = file.and_then(|tokens| in_memory("tokens", &tokens));
    file.map(Some).map_err(|error| CliError::caused(Kind::Internal, &error))
}

/// The machine's size.
struct Machine {
    memory: u64,
    processors: u64,
    pids: Option<u64>,
    scratch: Option<u64>,
}

impl Machine {
    /// As the command line says, or else the agent.
    fn of(run: &Options, granted: &CreateLeaseReply, vm: &MicroVm) -> Self {
        let usual = granted.zone_limits.unwrap_or_default();
        let memory = run.limits.host_memory.map_or(vm.memory_bytes, MemoryBytes::get);
        // No more processors than there is time for.
        let cpu = run.limits.cpus.or(usual.cpu_percent);
        let most = cpu.map_or(u64::MAX, |percent| percent.div_ceil(100));
        let scratch = run.limits.scratch.map(MemoryBytes::get).or(usual.scratch_bytes);
        Self {
            memory,
            processors: u64::from(vm.processors).min(most).max(1),
            pids: run.limits.pids.or(usual.pids),
            scratch: Some(scratch.unwrap_or(u64::MAX).min(memory / 2)),
        }
    }

    /// What QEMU and its relay may have of the host.
    fn limits_of_host(&self, run: &Options, granted: &CreateLeaseReply) -> Value {
        let mut limits = limits(&run.limits, &granted.zone_limits.unwrap_or_default());
        let files = self.memory / 3 + IMAGE;
        limits["scratch"] = json!(files);
        limits["memory"] = json!(self.memory.saturating_add(files).saturating_add(OVERHEAD));
        limits["pids"] = json!(MOST_THREADS);
        if !granted.functions.is_empty() {
            // A device writes to memory by its address, so none of the machine's may move.
            limits["locked"] = json!(self.memory.saturating_add(OVERHEAD));
        }
        limits
    }

    /// `tokens` is the descriptor of the file with those, which everybody could read in here.
    fn orders(
        &self,
        run: &Options,
        granted: &CreateLeaseReply,
        vm: &MicroVm,
        tokens: Option<RawFd>,
    ) -> Value {
        let directory = match &run.root {
            Root::Image(image) => image.directory.as_path(),
            Root::System | Root::WholeHost | Root::Folder(_) => Path::new("/"),
        };
        let mediated = granted.functions.is_empty();
        let addresses: Vec<&str> = granted.functions.iter().map(|it| it.address.as_str()).collect();
        json!({
            "hypervisor": vm.hypervisor,
            "program": vm.program,
            "kernel": vm.kernel,
            "image": vm.image,
            "digests": vm.digests,
            "accelerator": vm.accelerator,
            "memory": self.memory,
            "processors": self.processors,
            "windows": if mediated { vm.windows } else { 0 },
            "devices": addresses,
            "tokens": tokens,
            "root": ROOT,
            "libraries": mediated.then_some(LIBRARIES),
            "slot": mediated.then_some(SLOT_INSIDE),
            "directory": directory,
            "pids": self.pids,
            "scratch": self.scratch,
        })
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_api::agent::v1::{VfToken, ZoneLimits as Usual};

    use std::fs::File;

    use super::*;
    use crate::arguments::ZoneLimits;

    fn options(limits: ZoneLimits) -> Options {
        let (root, volumes) = (Root::Folder("/images/debian".into()), Vec::new());
        Options { demand: Sandboxing::Require, root, network: true, limits, volumes }
    }

    fn vm() -> MicroVm {
        MicroVm {
            hypervisor: "qemu".into(),
            program: "/usr/bin/qemu".into(),
            kernel: "/k/vmlinuz".into(),
            image: "/k/workload.cpio".into(),
            accelerator: "tcg".into(),
            memory_bytes: 512 << 20,
            processors: 2,
            windows: 16,
            ..MicroVm::default()
        }
    }

    #[test]
    fn its_sandbox_shows_the_root_and_the_slot_and_no_folder_of_the_hosts() {
        let path = Path::new;
        let (slot, shim) = (path("/run/gz/slots/a"), path("/run/gz/shim"));
        let (relay, root) = (path("/opt/gpu-zone-vm"), path("/images/debian"));
        let mounts = mounts(&vm(), relay, root, Some(shim), Some(slot));
        let sources: Vec<&str> = mounts.iter().filter_map(|m| m["source"].as_str()).collect();
        assert!(sources.contains(&"/run/gz/slots/a") && sources.contains(&"/images/debian"));
        for absent in ["/", "/usr", "/etc", "/home", "/run", "/run/gz", "/run/gz/slots", "/dev"] {
            assert!(!sources.contains(&absent), "{absent}");
        }
        assert!(mounts.iter().all(|mount| mount["write"] != true));
        assert!(devices(&vm(), &[]).is_empty());
    }

    #[test]
    fn a_whole_gpu_comes_with_its_own_folder_and_node_and_no_slot() {
        let functions =
            vec![PassedFunction { address: "0000:3b:00.0".into(), group: 12, vf_token: None }];
        let nodes = [PathBuf::from("/dev/vfio/vfio"), PathBuf::from("/dev/vfio/12")];
        assert_eq!(devices(&vm(), &functions), nodes);
        let shown = function(&functions[0]);
        assert_eq!(shown["source"], "/sys/bus/pci/devices/0000:3b:00.0");
        let granted = CreateLeaseReply { functions, ..CreateLeaseReply::default() };
        let run = options(ZoneLimits::default());
        let machine = Machine::of(&run, &granted, &vm());
        let orders = machine.orders(&run, &granted, &vm(), None);
        assert_eq!(orders["devices"], json!(["0000:3b:00.0"]));
        assert_eq!((&orders["slot"], &orders["libraries"]), (&Value::Null, &Value::Null));
        assert_eq!(orders["windows"], 0);
        let host = machine.limits_of_host(&run, &granted);
        assert_eq!(host["locked"], (512 << 20) + OVERHEAD);
        assert!(machine.limits_of_host(&run, &CreateLeaseReply::default())["locked"].is_null());
    }

    #[test]
    fn a_token_is_in_a_file_and_in_no_orders() {
        const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
        let function = |address: &str, token: Option<&str>| PassedFunction {
            address: address.into(),
            group: 12,
            vf_token: token.map(|uuid| VfToken { uuid: uuid.into() }),
        };
        let functions = vec![function("0000:3b:00.1", Some(TOKEN)), function("0000:3b:00.2", None)];
        let file = tokens(&vm(), &functions).unwrap().unwrap();
        let granted = CreateLeaseReply { functions, ..CreateLeaseReply::default() };
        assert!(!format!("{granted:?}").contains(TOKEN), "{granted:?}");
        let run = options(ZoneLimits::default());
        let orders = Machine::of(&run, &granted, &vm()).orders(
            &run,
            &granted,
            &vm(),
            Some(file.as_raw_fd()),
        );
        assert_eq!(orders["tokens"], file.as_raw_fd());
        assert!(!orders.to_string().contains(TOKEN), "{orders}");
        let said: Value = serde_json::from_reader(File::from(file)).unwrap();
        assert_eq!(said, json!({ "0000:3b:00.1": TOKEN }));
        assert!(tokens(&vm(), &granted.functions[1..]).unwrap().is_none());
        let other = MicroVm { hypervisor: CLOUD_HYPERVISOR.into(), ..vm() };
        let refused = tokens(&other, &granted.functions).unwrap_err().to_string();
        assert!(refused.contains("0000:3b:00.1") && !refused.contains(TOKEN), "{refused}");
    }

    #[test]
    fn the_command_lines_limits_are_the_machines_and_the_hosts_hold_all_of_it() {
        let granted = CreateLeaseReply {
            zone_limits: Some(Usual { pids: Some(4096), ..Usual::default() }),
            ..CreateLeaseReply::default()
        };
        let limits = ZoneLimits {
            host_memory: Some(MemoryBytes::gib(1)),
            cpus: Some(150),
            pids: Some(7),
            ..ZoneLimits::default()
        };
        let run = options(limits);
        let machine = Machine::of(&run, &granted, &vm());
        let orders = machine.orders(&run, &granted, &vm(), None);
        assert_eq!((&orders["memory"], &orders["processors"]), (&json!(1 << 30), &json!(2)));
        assert_eq!((&orders["pids"], &orders["scratch"]), (&json!(7), &json!(512 << 20)));
        let host = machine.limits_of_host(&run, &granted);
        assert_eq!(host["cpu"], 150);
        assert_eq!(host["memory"].as_u64().unwrap(), (1 << 30) + (1 << 30) / 3 + IMAGE + OVERHEAD);
        let one = options(ZoneLimits { cpus: Some(50), ..ZoneLimits::default() });
        assert_eq!(Machine::of(&one, &granted, &vm()).processors, 1);
    }
}
