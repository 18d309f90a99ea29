use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What a container would see: mounts and variables as the plugin gave them. No namespace is
/// made: a program is started on the node, and what it would find at a path in its container it
/// is shown at a path of the node.
#[derive(Debug)]
pub struct Container {
    mounts: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    libraries: TempDir,
    nodes: BTreeSet<String>,
}

impl Container {
    pub(super) fn new(
        mounts: BTreeMap<String, String>,
        environment: BTreeMap<String, String>,
        nodes: BTreeSet<String>,
    ) -> io::Result<Self> {
        let libraries = tempfile::Builder::new().prefix("gz-lib-").tempdir_in("/tmp")?;
        for (inside, outside) in &mounts {
            let name = Path::new(inside).file_name().unwrap_or_default();
            if name.to_string_lossy().contains(".so") {
                symlink(outside, libraries.path().join(name))?;
            }
        }
        Ok(Self { mounts, environment, libraries, nodes })
    }

    /// Where on the node the folder or file is that the container sees at `inside`.
    pub fn on_node(&self, inside: &str) -> Option<PathBuf> {
        self.mounts.get(inside).map(PathBuf::from)
    }

    /// The device nodes that it has, and the names of its CDI devices.
    pub fn nodes(&self) -> &BTreeSet<String> {
        &self.nodes
    }

    /// `program`, started as in the container.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, value) in &self.environment {
            match self.mounts.get(value) {
                Some(outside) => command.env(name, outside),
                None => command.env(name, value),
            };
        }
        command.env("LD_LIBRARY_PATH", self.libraries.path());
        command
    }
}
