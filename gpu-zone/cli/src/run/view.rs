//! What of the host a zone shows that has no root of its own: the system's programs and
//! libraries, the program, its working directory, and what the command line names. Homes, other
//! programs' data and mounted disks are not there, unless all of the host's files are asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::locate;

/// Folders that are empty in every zone: other programs' files and sockets are in the host's.
pub(crate) const PRIVATE: [&str; 3] = ["/tmp", "/var/tmp", "/run"];
/// What a resolver's configuration links to, in one of those.
const RESOLVER: &str = "/run/systemd/resolve";
/// Programs, libraries and settings of the system, as far as everybody may read them.
const SYSTEM: [&str; 14] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/etc",
    "/nix/store",
    "/gnu/store",
    RESOLVER,
    // Numbers of processors and memory nodes; no devices.
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];

/// A file or folder of the host's that the command line hands to a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    source: PathBuf,
    target: PathBuf,
    write: bool,
}

impl FromStr for Volume {
    type Err = String;

    /// As container programs have it: `SOURCE[:TARGET][:ro|rw]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, mode) = match parts[..] {
            [source] => (source, source, "rw"),
            [source, mode @ ("ro" | "rw")] => (source, source, mode),
            [source, target] => (source, target, "rw"),
            [source, target, mode @ ("ro" | "rw")] => (source, target, mode),
            _ => return Err("it is SOURCE[:TARGET][:ro|rw]".to_owned()),
        };
        let whole =
            |path: &str| std::path::absolute(path).map_err(|_| "a path is empty".to_owned());
        let target = match target == source {
            true => whole(source)?,
            false if Path::new(target).is_absolute() => target.into(),
            false => return Err(format!("'{target}' is no whole path of the zone's")),
        };
        if target.components().any(|part| part == Component::ParentDir) || target == Path::new("/")
        {
            return Err(format!("'{}' is no place for it in the zone", target.display()));
        }
        Ok(Self { source: whole(source)?, target, write: mode == "rw" })
    }
}

impl std::fmt::Display for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = if self.write { "rw" } else { "ro" };
        write!(f, "{}:{}:{mode}", self.source.display(), self.target.display())
    }
}

/// What `volumes` are to the launcher. They are mounted in this order, after all else.
pub(crate) fn handed(volumes: &[Volume]) -> impl Iterator<Item = Value> {
    let mount = |volume: &Volume| {
        let Volume { source, target, write } = volume;
        json!({ "source": source, "target": target, "write": write })
    };
    volumes.iter().map(mount)
}

/// Something of the host's, if it is there, to be read at its own place.
pub(crate) fn read(path: impl AsRef<Path>) -> Value {
    json!({ "source": path.as_ref(), "optional": true })
}

/// The working directory, which is written to.
fn working(directory: &Path) -> Option<Value> {
    (directory != Path::new("/")).then(|| json!({ "source": directory, "write": true }))
}

/// The program by its own name and by what that is a link to.
fn names(program: &Path) -> impl Iterator<Item = PathBuf> {
    std::path::absolute(program).into_iter().chain(std::fs::canonicalize(program))
}

/// What `program`, started in `directory`, sees of the host.
pub(crate) fn of_system(program: &Path, directory: &Path) -> Vec<Value> {
    let is_link = |path: &&str| Path::new(path).is_symlink();
    let system = SYSTEM.iter().filter(|path| !is_link(path));
    let system = system.map(|path| json!({ "source": path, "optional": true, "unmapped": true }));
    let own = locate::own_folders().into_iter().chain(around(program, home().as_deref()));
    // The working directory last, for a folder of a program that lies in it is written to as well.
    system.chain(own.map(read)).chain(working(directory)).collect()
}

/// The same where all of the host's files are shown: what would be covered or closed.
pub(crate) fn of_whole_host(program: &Path, directory: &Path) -> Vec<Value> {
    let covered = |path: &Path| PRIVATE.iter().any(|folder| path.starts_with(folder));
    let own = locate::own_folders().into_iter().chain(names(program));
    let again = own.filter(|path| covered(path) || is_closed(path));
    let mounts = working(directory).into_iter().chain(again.map(read));
    mounts.chain([read(RESOLVER)]).collect()
}

/// Whether the zone's own users would not reach it.
fn is_closed(path: &Path) -> bool {
    let found = path.ancestors().skip(1).filter_map(|above| std::fs::metadata(above).ok());
    found.into_iter().any(|folder| folder.permissions().mode() & 0o001 == 0)
}

/// The user's home, which is empty in the zone but for what is handed over in it.
pub(crate) fn home() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let is_own = home.is_absolute() && home.parent().is_some();
    (is_own && !SYSTEM.iter().any(|system| home.starts_with(system))).then_some(home)
}

/// What a program needs that lies outside of the system's folders: itself and, where it is
/// installed as `PREFIX/bin/NAME` like an interpreter in an environment of its own, the prefix.
fn around(program: &Path, home: Option<&Path>) -> Vec<PathBuf> {
    let outside =
        names(program).filter(|path| !SYSTEM.iter().any(|system| path.starts_with(system)));
    let around = outside.map(|path| {
        let folder = path.parent().filter(|folder| folder.ends_with("bin"));
        let prefix = folder.and_then(Path::parent);
        // A home is not an installation, and neither is a folder like /srv.
        let prefix = prefix.filter(|prefix| {
            Some(*prefix) != home && prefix.parent().is_some_and(|above| above != Path::new("/"))
        });
        prefix.map_or(path.clone(), Path::to_owned)
    });
    let mut around: Vec<PathBuf> = around.collect();
    around.dedup();
    around
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<String, String> {
        text.parse::<Volume>().map(|volume| volume.to_string())
    }

    #[test]
    fn volumes_are_written_as_containers_are() {
        assert_eq!(volume("/data").unwrap(), "/data:/data:rw");
        assert_eq!(volume("/data:ro").unwrap(), "/data:/data:ro");
        assert_eq!(volume("/data:/in").unwrap(), "/data:/in:rw");
        assert_eq!(volume("/data:/in:ro").unwrap(), "/data:/in:ro");
        let here = std::env::current_dir().unwrap();
        assert_eq!(volume("x:/in").unwrap(), format!("{}:/in:rw", here.join("x").display()));
        for wrong in ["", ":/in", "/data:in", "/data:/in:rx", "a:/b:ro:c", "/data:/", "/a:/../b"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn homes_and_data_are_not_shown() {
        let shown = of_system(Path::new("/usr/bin/env"), Path::new("/home/me/project"));
        let shown: Vec<&str> = shown.iter().filter_map(|mount| mount["source"].as_str()).collect();
        for absent in ["/", "/home", "/home/me", "/root", "/var", "/srv", "/mnt", "/sys", "/run"] {
            assert!(!shown.contains(&absent), "{absent}");
        }
        assert!(shown.contains(&"/usr") && shown.contains(&"/home/me/project"));
    }

    #[test]
    fn only_the_working_directory_is_written_to() {
        let shown = of_system(Path::new("/usr/bin/env"), Path::new("/home/me"));
        let written: Vec<_> = shown.iter().filter(|mount| mount["write"] == true).collect();
        assert_eq!(written, [&json!({ "source": "/home/me", "write": true })]);
        assert!(of_system(Path::new("/bin/sh"), Path::new("/")).iter().all(|m| m["write"] != true));
    }

    #[test]
    fn an_interpreter_brings_what_it_is_installed_with_and_a_home_stays_away() {
        let home = Some(Path::new("/home/me"));
        let shown = |program: &str| around(Path::new(program), home);
        assert_eq!(shown("/home/me/venv/bin/python"), [PathBuf::from("/home/me/venv")]);
        assert_eq!(shown("/home/me/bin/tool"), [PathBuf::from("/home/me/bin/tool")]);
        assert_eq!(shown("/srv/bin/tool"), [PathBuf::from("/srv/bin/tool")]);
        assert_eq!(shown("/home/me/a/tool"), [PathBuf::from("/home/me/a/tool")]);
        assert_eq!(shown("/usr/bin/python3"), Vec::<PathBuf>::new());
    }
}
