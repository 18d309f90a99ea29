//! Checks of the kernel, its isolation features and the vendor's driver.

use std::path::Path;

use crate::doctor::{Check, Scope};
use crate::locate;

/// Landlock came with 5.13 (landlock(7)); all else that is used is older.
const KERNEL: (u32, u32) = (5, 13);

pub(crate) fn checks(scope: &Scope) -> Vec<Check> {
    vec![
        kernel(scope),
        user_namespaces(scope),
        cgroups(scope),
        seccomp(scope),
        landlock(scope),
        kvm(scope),
        iommu(scope),
        shared_memory(scope),
        device_nodes(scope),
        library(scope, "CUDA library", "libcuda.so.1"),
        library(scope, "NVML library", "libnvidia-ml.so.1"),
    ]
}

fn kernel(scope: &Scope) -> Check {
    let release = scope.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    if version >= KERNEL {
        Check::ok("kernel", found)
    } else {
        Check::not_ok("kernel", false, found, "use Linux 5.13 or later for the whole sandbox")
    }
}

fn user_namespaces(scope: &Scope) -> Check {
    const NAME: &str = "user namespaces";
    let number = |path| scope.read(path).and_then(|text| text.parse::<u64>().ok());
    if number("proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        let fix = "allow them with `sysctl user.max_user_namespaces=10000`";
        return Check::not_ok(NAME, false, "none are allowed", fix);
    }
    if number("proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let fix = "allow them with `sysctl kernel.unprivileged_userns_clone=1`, or run as root";
        return Check::not_ok(NAME, false, "only root may make them", fix);
    }
    if number("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        let fix = "give gpu-zone-broker an AppArmor profile with `userns,`, or run as root";
        return Check::not_ok(NAME, false, "AppArmor restricts them", fix);
    }
    Check::ok(NAME, "allowed")
}

fn cgroups(scope: &Scope) -> Check {
    match scope.read("sys/fs/cgroup/cgroup.controllers") {
        Some(controllers) => Check::ok("cgroup v2", controllers),
        None => {
            let fix = "boot with systemd.unified_cgroup_hierarchy=1";
            Check::not_ok("cgroup v2", false, "not mounted at /sys/fs/cgroup", fix)
        }
    }
}

fn seccomp(scope: &Scope) -> Check {
    match scope.read("proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) => Check::ok("seccomp", actions),
        None => {
            let fix = "use a kernel with CONFIG_SECCOMP_FILTER";
            Check::not_ok("seccomp", false, "the kernel has no filters", fix)
        }
    }
}

fn landlock(scope: &Scope) -> Check {
    const NAME: &str = "Landlock";
    let fix = "add landlock to the kernel's lsm= parameter";
    match scope.read("sys/kernel/security/lsm") {
        Some(modules) if modules.split(',').any(|module| module == "landlock") => {
            Check::ok(NAME, "enabled")
        }
        Some(modules) => Check::not_ok(NAME, false, format!("not among {modules}"), fix),
        None => Check::not_ok(NAME, false, "cannot tell: securityfs is not mounted", fix),
    }
}

fn kvm(scope: &Scope) -> Check {
    let device = scope.root.join("dev/kvm");
    if !device.exists() {
        let fix = "turn on virtualisation in the firmware, or nested virtualisation in the host; \
                   without it driver zones are sandboxes, not microVMs";
        return Check::not_ok("KVM", false, "no /dev/kvm", fix);
    }
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Check::ok("KVM", "/dev/kvm opens"),
        Err(error) => {
            let fix = "add the user to the group kvm";
            Check::not_ok("KVM", false, format!("/dev/kvm: {error}"), fix)
        }
    }
}

fn iommu(scope: &Scope) -> Check {
    let groups = std::fs::read_dir(scope.root.join("sys/kernel/iommu_groups"));
    match groups.map_or(0, Iterator::count) {
        0 => {
            let fix = "turn on VT-d or AMD-Vi in the firmware and boot with intel_iommu=on or \
                       amd_iommu=on; only passing whole GPUs through needs it";
            Check::not_ok("IOMMU", false, "no groups", fix)
        }
        count => Check::ok("IOMMU", format!("{count} groups")),
    }
}

fn shared_memory(scope: &Scope) -> Check {
    const NAME: &str = "shared memory";
    const ENOUGH: u64 = 256 << 20;
    let Ok(found) = rustix::fs::statvfs(scope.root.join("dev/shm")) else {
        let fix = "mount it with `mount -t tmpfs tmpfs /dev/shm`";
        return Check::not_ok(NAME, !scope.nvidia(), "no /dev/shm", fix);
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} MiB free in /dev/shm", free >> 20);
    if free >= ENOUGH || scope.nvidia() {
        return Check::ok(NAME, text);
    }
    let fix = "simulated GPU memory lives there; `mount -o remount,size=4G /dev/shm`";
    Check::not_ok(NAME, false, text, fix)
}

fn device_nodes(scope: &Scope) -> Check {
    const NAME: &str = "NVIDIA devices";
    let control = scope.root.join("dev/nvidiactl").exists();
    let is_gpu = |name: &str| {
        name.strip_prefix("nvidia")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(scope.root.join("dev")).into_iter().flatten().flatten();
    let gpus = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count();
    if control && gpus > 0 {
        return Check::ok(NAME, format!("/dev/nvidiactl and {gpus} GPU(s)"));
    }
    let found = if control { "/dev/nvidiactl, but no GPU" } else { "no /dev/nvidiactl" };
    let fix = "install NVIDIA's driver and load it with `modprobe nvidia`; without a GPU use \
               `gpu-zone up --driver simulated`";
    Check::not_ok(NAME, scope.nvidia(), found, if scope.nvidia() { fix } else { "" })
}

fn library(scope: &Scope, name: &'static str, file: &str) -> Check {
    match locate::library(&scope.root, file) {
        Some(path) => Check::ok(name, shown(&path)),
        None => {
            let fix = "install NVIDIA's driver, or name the library in the agent's configuration";
            let fix = if scope.nvidia() { fix } else { "" };
            Check::not_ok(name, scope.nvidia(), format!("no {file}"), fix)
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Driver;
    use crate::doctor::Status;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn status(&self, driver: Driver, name: &str) -> Status {
            let scope = Scope { root: self.0.path().to_owned(), driver };
            checks(&scope).into_iter().find(|check| check.name == name).unwrap().status
        }
    }

    #[test]
    fn a_bare_machine_lacks_nothing_for_the_simulated_driver_but_shared_memory() {
        let machine = Machine::with(&[]);
        let scope = Scope { root: machine.0.path().to_owned(), driver: Driver::Simulated };
        let missing = |check: &Check| check.status == Status::Missing;
        let names: Vec<_> = checks(&scope).into_iter().filter(missing).map(|c| c.name).collect();
        assert_eq!(names, ["shared memory"]);
        assert!(checks(&scope).iter().all(|check| check.status != Status::Ok));
    }

    #[test]
    fn nvidias_driver_needs_its_devices() {
        let machine = Machine::with(&[("dev/nvidiactl", ""), ("dev/nvidia-uvm", "")]);
        assert_eq!(machine.status(Driver::Nvidia, "NVIDIA devices"), Status::Missing);
        assert_eq!(machine.status(Driver::Simulated, "NVIDIA devices"), Status::Warning);
        let machine = Machine::with(&[("dev/nvidiactl", ""), ("dev/nvidia0", "")]);
        assert_eq!(machine.status(Driver::Nvidia, "NVIDIA devices"), Status::Ok);
    }

    #[test]
    fn the_sandboxs_needs_are_looked_for() {
        let machine = Machine::with(&[
            ("proc/sys/kernel/osrelease", "6.8.0-45-generic\n"),
            ("proc/sys/user/max_user_namespaces", "100\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("sys/kernel/security/lsm", "capability,landlock,yama\n"),
            ("proc/sys/kernel/seccomp/actions_avail", "kill_process errno allow\n"),
        ]);
        for name in ["kernel", "user namespaces", "cgroup v2", "Landlock", "seccomp"] {
            assert_eq!(machine.status(Driver::Simulated, name), Status::Ok, "{name}");
        }
        let restricted = Machine::with(&[
            ("proc/sys/kernel/osrelease", "5.4.0"),
            ("proc/sys/user/max_user_namespaces", "100"),
            ("proc/sys/kernel/unprivileged_userns_clone", "0"),
        ]);
        for name in ["kernel", "user namespaces"] {
            assert_eq!(restricted.status(Driver::Simulated, name), Status::Warning, "{name}");
        }
    }
}
