use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::HarnessError;

const PACKAGES: [&str; 12] = [
    "gpuzone-cli",
    "gpuzone-agent",
    "gpuzone-broker",
    "gpuzone-worker",
    "gpuzone-cuda",
    "gpuzone-nvml",
    "gpuzone-sim-cuda",
    "gpuzone-sim-nvml",
    "gpuzone-workloads",
    "gpuzone-hostile",
    "gpuzone-vm",
    "gpuzone-zone",
];

/// The profile of whoever asks.
const OWN_PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "release" };

/// The programs and libraries of this workspace, built in the profile of whoever asks.
#[derive(Debug)]
pub struct Artifacts {
    files: BTreeMap<String, PathBuf>,
    root: PathBuf,
}

impl Artifacts {
    /// Builds what a node needs, once per process.
    ///
    /// # Errors
    /// When cargo cannot be run, or the build fails.
    pub fn build() -> Result<&'static Self, HarnessError> {
        static BUILT: OnceLock<Result<Artifacts, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| {
            Self::run_cargo(&PACKAGES, OWN_PROFILE).map_err(|error| error.to_string())
        });
        built.as_ref().map_err(|error| HarnessError::Build(error.clone()))
    }

    /// Builds a package that not every node needs; its files alone.
    ///
    /// # Errors
    /// When cargo cannot be run, or the build fails.
    pub fn of_package(package: &str) -> Result<Self, HarnessError> {
        Self::run_cargo(&[package], OWN_PROFILE)
    }

    /// Builds packages in a profile of cargo's; their files alone.
    ///
    /// # Errors
    /// When cargo cannot be run, or the build fails.
    pub fn of_packages(packages: &[&str], profile: &str) -> Result<Self, HarnessError> {
        Self::run_cargo(packages, profile)
    }

    fn run_cargo(packages: &[&str], profile: &str) -> Result<Self, HarnessError> {
        // This file is in gpu-zone/testkit.
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).unwrap_or(manifest).to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        command.current_dir(&root).args(["build", "--message-format=json-render-diagnostics"]);
        command.args(["--profile", profile]);
        for package in packages {
            command.args(["--package", package]);
        }
        let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output();
        let output = output.map_err(HarnessError::io("cannot run cargo"))?;
        if !output.status.success() {
            return Err(HarnessError::Build(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        // A build leaves gigabytes to be written; what is started next would wait for its own few bytes behind them,
        // longer than it waits for anything.
        rustix::fs::sync();
        let messages = String::from_utf8_lossy(&output.stdout);
        let files = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
        let files = files.flat_map(|message| files_of(&message)).collect();
        Ok(Self { files, root })
    }

    /// The file with this name, like `gpu-zone` or `libgpuzone_cuda.so`.
    ///
    /// # Errors
    /// When the build did not make it.
    pub fn file(&self, name: &str) -> Result<&Path, HarnessError> {
        let file = self.files.get(name).map(PathBuf::as_path);
        file.ok_or_else(|| HarnessError::NoArtifact(name.to_owned()))
    }

    /// Folder of the kernels' PTX.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("driver-zones/sim/kernels/ptx")
    }

    /// The workspace.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Programs and shared libraries in one of cargo's messages, by file name.
fn files_of(message: &serde_json::Value) -> Vec<(String, PathBuf)> {
    let executable = message["executable"].as_str().into_iter();
    let libraries = message["filenames"].as_array().into_iter().flatten();
    let libraries = libraries.filter_map(|file| file.as_str()).filter(|file| file.ends_with(".so"));
    let files = executable.chain(libraries).map(PathBuf::from);
    files.filter_map(|file| Some((file.file_name()?.to_str()?.to_owned(), file))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_from_cargos_messages() {
        let program =
            serde_json::json!({"executable": "/t/gpu-zone", "filenames": ["/t/gpu-zone"]});
        assert_eq!(files_of(&program), [("gpu-zone".to_owned(), PathBuf::from("/t/gpu-zone"))]);
        let library =
            serde_json::json!({"executable": null, "filenames": ["/t/libx.so", "/t/libx.rlib"]});
        assert_eq!(files_of(&library), [("libx.so".to_owned(), PathBuf::from("/t/libx.so"))]);
    }
}
