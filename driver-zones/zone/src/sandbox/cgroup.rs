//! Limits by control group: version 2 where it is, version 1 where that is all there is.
//!
//! A zone's group lies beside or in the group that its starter is in; whoever delegates that to
//! the starter (systemd's `Delegate=yes`) bounds what all zones have together.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::spec::{Feature, Limits};

/// Where control groups are mounted on every distribution (file-hierarchy(7)).
const MOUNTED: &str = "/sys/fs/cgroup";
/// In front of a zone's name.
const PREFIX: &str = "gpu-zone-";
/// Another launcher may remove a group between its making and its use.
const ATTEMPTS: usize = 5;

/// A limit, and the file of each version that sets it.
struct Limit {
    feature: Feature,
    controller: &'static str,
    v2: (&'static str, String),
    v1: (&'static str, String),
}

/// Whether a zone may be called that.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

fn wanted(limits: &Limits) -> Vec<Limit> {
    // Per cent of one processor, as microseconds of each 100 ms.
    const PERIOD: u64 = 100_000;
    let mut wanted = Vec::new();
    if let Some(bytes) = limits.memory {
        let bytes = bytes.to_string();
        let (v2, v1) = (("memory.max", bytes.clone()), ("memory.limit_in_bytes", bytes));
        wanted.push(Limit { feature: Feature::Memory, controller: "memory", v2, v1 });
    }
    if let Some(count) = limits.pids {
        let count = count.to_string();
        let (v2, v1) = (("pids.max", count.clone()), ("pids.max", count));
        wanted.push(Limit { feature: Feature::Pids, controller: "pids", v2, v1 });
    }
    if let Some(percent) = limits.cpu {
        let quota = percent.saturating_mul(PERIOD / 100);
        let (v2, v1) =
            (("cpu.max", format!("{quota} {PERIOD}")), ("cpu.cfs_quota_us", quota.to_string()));
        wanted.push(Limit { feature: Feature::Cpu, controller: "cpu", v2, v1 });
    }
    wanted
}

/// Puts this process under the limits; what could not be set, and why.
pub(crate) fn enter(zone: &str, limits: &Limits) -> Vec<(Feature, String)> {
    enter_below(Path::new(MOUNTED), zone, limits)
}

fn enter_below(mounted: &Path, zone: &str, limits: &Limits) -> Vec<(Feature, String)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let unified = mounted.join("cgroup.controllers").is_file();
    let mut missing = Vec::new();
    for limit in wanted(limits) {
        let set = if unified {
            group_v2(mounted, &own, limit.controller, zone)
                .and_then(|group| join(&group, limit.v2.0, &limit.v2.1))
        } else {
            group_v1(mounted, &own, limit.controller)
                .and_then(|parent| join(&parent.join(group(zone)), limit.v1.0, &limit.v1.1))
        };
        if let Err(error) = set {
            missing.push((
                limit.feature,
                format!("no control group of {}: {error}", limit.controller),
            ));
        }
    }
    missing
}

fn group(zone: &str) -> String {
    format!("{PREFIX}{zone}")
}

/// The path of this process's group in the hierarchy with `controller` (cgroups(7)).
fn path_of<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

fn group_v1(mounted: &Path, own: &str, controller: &str) -> io::Result<PathBuf> {
    let path = path_of(own, controller).ok_or(io::ErrorKind::NotFound)?;
    // Of a zone's group, no other zone's group is a part.
    let path = Path::new(path.trim_start_matches('/'));
    Ok(outside_of_zones(&mounted.join(controller).join(path)))
}

fn group_v2(mounted: &Path, own: &str, controller: &str, zone: &str) -> io::Result<PathBuf> {
    let path = path_of(own, "").ok_or(io::ErrorKind::NotFound)?;
    let inside = outside_of_zones(&mounted.join(path.trim_start_matches('/')));
    // A group with processes in it passes no controllers down, but the one above it does.
    let beside = inside.parent().filter(|above| above.starts_with(mounted)).map(Path::to_owned);
    let has = |parent: &PathBuf| {
        let control = parent.join("cgroup.subtree_control");
        let on = || {
            fs::read_to_string(&control)
                .is_ok_and(|on| on.split_whitespace().any(|c| c == controller))
        };
        on() || (fs::write(&control, format!("+{controller}")).is_ok() && on())
    };
    let parent = beside.into_iter().chain([inside]).find(has);
    let refused =
        || io::Error::new(io::ErrorKind::PermissionDenied, "it is not delegated to this user");
    Ok(parent.ok_or_else(refused)?.join(group(zone)))
}

fn outside_of_zones(path: &Path) -> PathBuf {
    let of_zone = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(PREFIX);
    let parts = path.components().take_while(|part| !of_zone(part.as_os_str()));
    parts.collect()
}

/// Makes the group, sets its limit, and enters it.
fn join(group: &Path, file: &str, value: &str) -> io::Result<()> {
    if let Some(parent) = group.parent() {
        sweep(parent);
    }
    let attempt = || {
        match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        write(&group.join(file), value)?;
        write(&group.join("cgroup.procs"), "0")
    };
    let mut last = attempt();
    for _ in 1..ATTEMPTS {
        match last {
            Err(ref error) if error.kind() == io::ErrorKind::NotFound => last = attempt(),
            other => return other,
        }
    }
    last
}

/// Writes to a file that is there; nothing is made where it is not.
fn write(file: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::File::options().write(true).open(file)?.write_all(value.as_bytes())
}

/// Removes the groups of zones that have ended: only an empty one can be removed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_name_and_a_host_name() {
        for good in ["a", "lease-0193", "A_b"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "../x", "a/b", "a.b", "ü", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_own_group_is_found_in_both_versions() {
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n";
        assert_eq!(path_of(own, "memory"), Some("/a/b"));
        assert_eq!(path_of(own, "cpu"), Some("/c"));
        assert_eq!(path_of(own, ""), Some("/d"));
        assert_eq!(path_of(own, "pids"), None);
        let inside = Path::new("/sys/fs/cgroup/x/gpu-zone-a/y");
        assert_eq!(outside_of_zones(inside), Path::new("/sys/fs/cgroup/x"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let nowhere = tempfile::tempdir().unwrap();
        let limits = Limits { memory: Some(1), pids: Some(1), cpu: Some(50), open_files: None };
        let missing = enter_below(nowhere.path(), "test", &limits);
        let features: Vec<_> = missing.iter().map(|(feature, _)| *feature).collect();
        assert_eq!(features, [Feature::Memory, Feature::Pids, Feature::Cpu]);
        assert!(enter_below(nowhere.path(), "test", &Limits::default()).is_empty());
    }
}
