//! Limits by control group: version 2 where it is, version 1 where that is all there is.
//!
//! A zone's group lies beside or in the group that its starter is in; whoever delegates that to
//! the starter (systemd's `Delegate=yes`) bounds what all zones have together. Its name ends in
//! the launcher's number, so that no two zones share one. It is made and held from outside, the
//! zone's first process joins it, and the zone's janitor removes it (`inside/janitor.rs`).

mod group;
mod limit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use self::group::{Create, PREFIX};
use self::limit::{Limit, Setting, wanted};
use super::spec::{Feature, Limits};

pub(crate) use self::group::Group;

/// Where control groups are mounted on every distribution (file-hierarchy(7)).
const MOUNTED: &str = "/sys/fs/cgroup";
/// Where version 2 is beside version 1 (systemd's hybrid layout); it has no limits then.
const HYBRID: &str = "unified";
/// Ends every process of a group at once, Linux 5.14 (version 2).
pub(crate) const KILL: &str = "cgroup.kill";

/// The control groups of one zone.
#[derive(Debug, Default)]
pub(crate) struct Groups(Vec<(Group, Vec<Feature>)>);

/// A limit that could not be set, and why.
pub(crate) type Unset = (Feature, String);

/// Whether a zone may be called that.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// What the groups of a zone are made of.
struct Site<'a> {
    mounted: &'a Path,
    /// `/proc/self/cgroup`.
    own: &'a str,
    name: String,
    create: Create<'a>,
}

impl Groups {
    /// Makes the groups of a zone; this process does not join them.
    pub(crate) fn make(zone: &str, limits: &Limits) -> (Self, Vec<Unset>) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let name = format!("{PREFIX}{zone}-{}", std::process::id());
        let create = |path: &Path| fs::create_dir(path);
        Site { mounted: Path::new(MOUNTED), own: &own, name, create: &create }.make(limits)
    }

    /// Puts the calling process into them; the limits of those that would not have it.
    pub(crate) fn join(&self) -> Vec<Unset> {
        let mut unset = Vec::new();
        for (group, features) in &self.0 {
            if let Err(error) = group.join() {
                unset.extend(features.iter().map(|feature| (*feature, reason(&error))));
            }
        }
        unset
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter().map(|(group, _)| group)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Ends what is left in the groups of a zone whose launcher had this number and is gone, and
/// removes them, wherever they are.
pub(crate) fn end_groups(zone: &str, launcher: u32) {
    let mut folders = vec![PathBuf::from(MOUNTED)];
    let wanted = format!("{PREFIX}{zone}-{launcher}");
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == wanted.as_str() {
                group::end(&entry.path());
            } else {
                folders.push(entry.path());
            }
        }
    }
}

fn reason(error: &io::Error) -> String {
    format!("no control group: {error}")
}

impl Site<'_> {
    fn make(&self, limits: &Limits) -> (Groups, Vec<Unset>) {
        let limits = wanted(limits);
        if self.mounted.join("cgroup.controllers").is_file() {
            return self.unified(self.mounted, limits);
        }
        let (mut groups, mut unset) = (Groups::default(), Vec::new());
        for limit in limits {
            // Writing to `tasks` moves a thread, which costs the kernel no grace period.
            let made = if limit.v1.is_empty() {
                Err(io::Error::other("control groups of version 1 have no such limit"))
            } else {
                let parent = self.parent_v1(limit.controller);
                parent.and_then(|parent| self.group(&parent, &limit.v1, "tasks"))
            };
            match made {
                Ok(group) => groups.0.push((group, vec![limit.feature])),
                Err(error) => unset.push((limit.feature, reason(&error))),
            }
        }
        let hybrid = self.mounted.join(HYBRID);
        if hybrid.join("cgroup.procs").is_file() {
            groups.0.append(&mut self.unified(&hybrid, Vec::new()).0.0);
        }
        (groups, unset)
    }

    /// One group with as many of the limits as the kernel and the delegation have.
    fn unified(&self, mounted: &Path, limits: Vec<Limit>) -> (Groups, Vec<Unset>) {
        let (parent, on) = match self.parent_v2(mounted, &limits) {
            Ok(found) => found,
            Err(error) => {
                let unset = limits.iter().map(|limit| (limit.feature, reason(&error)));
                return (Groups::default(), unset.collect());
            }
        };
        let (on, off): (Vec<Limit>, Vec<Limit>) =
            limits.into_iter().partition(|limit| on.contains(&limit.controller));
        let refused = "no control group: it is not delegated to this user, or not in this kernel";
        let mut unset: Vec<Unset> =
            off.iter().map(|limit| (limit.feature, refused.to_owned())).collect();
        let settings: Vec<Setting> = on.iter().flat_map(|limit| limit.v2.clone()).collect();
        let features: Vec<Feature> = on.iter().map(|limit| limit.feature).collect();
        match self.group(&parent, &settings, "cgroup.procs") {
            Ok(group) => (Groups(vec![(group, features)]), unset),
            Err(error) => {
                unset.extend(features.iter().map(|feature| (*feature, reason(&error))));
                (Groups::default(), unset)
            }
        }
    }

    fn group(&self, parent: &Path, settings: &[Setting], members: &str) -> io::Result<Group> {
        Group::make(&parent.join(&self.name), settings, members, self.create)
    }

    fn parent_v1(&self, controller: &str) -> io::Result<PathBuf> {
        let path = path_of(self.own, controller).ok_or(io::ErrorKind::NotFound)?;
        // Of a zone's group, no other zone's group is a part.
        let path = Path::new(path.trim_start_matches('/'));
        Ok(outside_of_zones(&self.mounted.join(controller).join(path)))
    }

    /// Where a zone's group can be, and which of the controllers it has there.
    fn parent_v2(
        &self,
        mounted: &Path,
        limits: &[Limit],
    ) -> io::Result<(PathBuf, Vec<&'static str>)> {
        let path = path_of(self.own, "").ok_or(io::ErrorKind::NotFound)?;
        let inside = outside_of_zones(&mounted.join(path.trim_start_matches('/')));
        // A group with processes in it passes no controllers down, but the one above it does.
        let beside = inside.parent().filter(|above| above.starts_with(mounted)).map(Path::to_owned);
        let mut best: Option<(PathBuf, Vec<&'static str>)> = None;
        for parent in beside.into_iter().chain([inside]) {
            let on: Vec<&'static str> = limits
                .iter()
                .map(|limit| limit.controller)
                .filter(|controller| passes_down(&parent, controller))
                .collect();
            if on.len() == limits.len() && rustix::fs::access(&parent, WRITABLE).is_ok() {
                return Ok((parent, on));
            }
            if best.as_ref().is_none_or(|(_, most)| most.len() < on.len()) {
                best = Some((parent, on));
            }
        }
        best.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

const WRITABLE: rustix::fs::Access = rustix::fs::Access::WRITE_OK;

/// Whether the groups in `parent` have the controller; it is turned on where that is allowed.
fn passes_down(parent: &Path, controller: &str) -> bool {
    let control = parent.join("cgroup.subtree_control");
    let on = || {
        let on = fs::read_to_string(&control).unwrap_or_default();
        on.split_whitespace().any(|word| word.trim_start_matches('+') == controller)
    };
    on() || (group::write(&control, &format!("+{controller}")).is_ok() && on())
}

/// The path of this process's group in the hierarchy with `controller` (cgroups(7)).
fn path_of<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

fn outside_of_zones(path: &Path) -> PathBuf {
    let of_zone = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(PREFIX);
    let parts = path.components().take_while(|part| !of_zone(part.as_os_str()));
    parts.collect()
}

/// The regions of device memory that this kernel can limit, with their sizes (version 2 only).
pub(crate) fn device_memory() -> Vec<(String, u64)> {
    let text = fs::read_to_string(Path::new(MOUNTED).join("dmem.capacity")).unwrap_or_default();
    let region = |line: &str| {
        let (region, bytes) = line.rsplit_once(' ')?;
        Some((region.to_owned(), bytes.parse().ok()?))
    };
    text.lines().filter_map(region).collect()
}

#[cfg(test)]
mod tests;
