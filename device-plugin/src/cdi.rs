//! The CDI specifications of this plugin, in a folder that runtimes read.
//!
//! A resource is a kind of CDI, called as the resource is, and a file. So whoever knows what a pod
//! holds, as podresources says it, knows its CDI devices: `<resource>=<device>`. Kata asks so when
//! it makes a VM with all its devices.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use gpuzone_api::kubernetes::ResourceName;

use crate::answer::{VfioDevice, VfioInterface, cdi_vfio_spec};

/// A CDI specification cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}; --cdi-dir names a folder in which the plugin may write", .path.display())]
pub struct CdiError {
    path: PathBuf,
    source: io::Error,
}

/// Whether CDI takes a resource's name as a kind: both parts of that begin with a letter.
pub(crate) fn is_kind(resource: &ResourceName) -> bool {
    let letter = |part: &str| part.starts_with(|first: char| first.is_ascii_alphabetic());
    resource.as_str().split('/').all(letter)
}

fn file(folder: &Path, kind: &str) -> PathBuf {
    folder.join(format!("{}.json", kind.replace('/', "-")))
}

/// Writes the specification of one kind, replaced as a whole: a runtime may read it at any time.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write(folder: &Path, kind: &str, spec: &serde_json::Value) -> Result<(), CdiError> {
    let path = file(folder, kind);
    let written = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // Runtimes read what ends in .json and .yaml.
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{spec:#}\n"))?;
        std::fs::rename(new, &path)
    };
    written().map_err(|source| CdiError { path: path.clone(), source })
}

/// Has the folder say of the resources that are `ours` what there is of each now. There is no file
/// of one without devices, for runtimes take no empty one, nor what an earlier plugin left.
///
/// # Errors
/// When the folder cannot be read or written.
pub(crate) fn keep(
    folder: &Path,
    interface: VfioInterface,
    now: &BTreeMap<ResourceName, Vec<VfioDevice>>,
    ours: impl Fn(&ResourceName) -> bool,
) -> Result<(), CdiError> {
    for (resource, devices) in now {
        write(folder, resource.as_str(), &cdi_vfio_spec(resource.as_str(), interface, devices))?;
    }
    let over = |path: &Path| {
        let kind = kind_of(path);
        kind.is_some_and(|kind| {
            ours(&kind) && !now.contains_key(&kind) && path == file(folder, kind.as_str())
        })
    };
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| CdiError { path, source }
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(cannot(folder))?.path();
        if over(&path) {
            std::fs::remove_file(&path).map_err(cannot(&path))?;
        }
    }
    Ok(())
}

/// Takes devices out of the specification of one kind, which may not be there. One that cannot be
/// written anew, on a full disk, is removed.
///
/// # Errors
/// When that cannot be done either: runtimes may find the devices there.
pub(crate) fn without(folder: &Path, kind: &str, names: &BTreeSet<&str>) -> Result<(), CdiError> {
    let path = file(folder, kind);
    let cannot = |source| CdiError { path: path.clone(), source };
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(cannot)?,
    };
    let read = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let devices = read.as_ref().and_then(|spec| spec["devices"].as_array());
    let named = |device: &&serde_json::Value| {
        device["name"].as_str().is_none_or(|name| names.contains(name))
    };
    let left: Vec<_> = devices.into_iter().flatten().filter(|d| !named(d)).cloned().collect();
    match read {
        Some(mut spec) if !left.is_empty() => {
            spec["devices"] = left.into();
            write(folder, kind, &spec).or_else(|_| std::fs::remove_file(&path).map_err(cannot))
        }
        // Runtimes take no empty one, and what cannot be read names nothing.
        Some(_) | None => std::fs::remove_file(&path).map_err(cannot),
    }
}

/// The kind that a file has the devices of, if it is one that may be ours.
fn kind_of(path: &Path) -> Option<ResourceName> {
    path.extension().filter(|extension| *extension == "json")?;
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    spec["kind"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use gpuzone_api::kubernetes::ResourcePrefix;

    use super::*;

    #[test]
    fn what_is_not_there_any_more_has_no_file_and_others_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let prefix: ResourcePrefix = "a.dev/vgpu-".parse().unwrap();
        let name = |text: &str| -> ResourceName { text.parse().unwrap() };
        let (one, two) = (name("a.dev/vgpu-1"), name("a.dev/vgpu-2"));
        let device = VfioDevice { name: "VGPU-0.4".into(), node: "/dev/vfio/4".into() };
        let keep = |there: &[&ResourceName]| {
            let now = there.iter().map(|name| ((*name).clone(), vec![device.clone()])).collect();
            let ours = |name: &ResourceName| prefix.profile(name).is_some();
            keep(dir.path(), VfioInterface::Group, &now, ours).unwrap();
            let entries = std::fs::read_dir(dir.path()).unwrap().flatten();
            let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let kind = |kind: &str| format!(r#"{{"kind": "{kind}"}}"#);
        let others = [
            ("a.dev-vgpu-9", kind("a.dev/vgpu-9")),
            ("a.dev-vgpu-strange.json", "[".to_owned()),
            ("a.dev-whole.json", kind("a.dev/whole")),
            ("somebodys.json", kind("a.dev/vgpu-8")),
        ];
        for (file, text) in &others {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let stay = others.map(|(file, _)| file.to_owned());
        let with = |files: &[&str]| {
            let mut all: Vec<_> =
                stay.iter().cloned().chain(files.iter().map(|f| (*f).to_owned())).collect();
            all.sort();
            all
        };
        let both = ["a.dev-vgpu-1.json", "a.dev-vgpu-2.json"];
        assert_eq!(keep(&[&one, &two]), with(&both));
        assert_eq!(keep(&[&two]), with(&both[1..]));
        assert_eq!(keep(&[]), with(&[]));
    }

    #[test]
    fn a_device_is_taken_out_and_its_neighbours_stay() {
        let dir = tempfile::tempdir().unwrap();
        let device = |n: u8| VfioDevice { name: format!("d{n}"), node: format!("/dev/vfio/{n}") };
        let spec = cdi_vfio_spec("a.dev/x", VfioInterface::Group, &[device(1), device(2)]);
        write(dir.path(), "a.dev/x", &spec).unwrap();
        let without = |name: &str| without(dir.path(), "a.dev/x", &[name].into()).unwrap();
        without("d1");
        let left: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("a.dev-x.json")).unwrap())
                .unwrap();
        let expected = cdi_vfio_spec("a.dev/x", VfioInterface::Group, &[device(2)]);
        assert_eq!(left, expected);
        without("d2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        without("d2");
    }

    #[test]
    fn a_kind_of_cdi_begins_with_letters() {
        for (text, may) in [("a.dev/gpu", true), ("3m.com/gpu", false), ("a.dev/2g", false)] {
            assert_eq!(is_kind(&text.parse().unwrap()), may, "{text}");
        }
    }
}
