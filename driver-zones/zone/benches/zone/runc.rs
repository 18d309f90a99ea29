//! The same programs with the same files in containers with runc's own default configuration.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that runc makes containers of.
pub(crate) struct Bundle {
    folder: tempfile::TempDir,
    started: AtomicU32,
}

impl Bundle {
    /// `None` where there is no runc, or nobody who may use it.
    pub(crate) fn make() -> Result<Option<Self>, Box<dyn Error>> {
        let version = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
        let root = rustix::process::getuid().is_root();
        if !version.is_ok_and(|status| status.success()) || !root {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let spec = Command::new("runc").arg("spec").current_dir(folder.path()).status()?;
        if !spec.success() {
            return Err("`runc spec` failed".into());
        }
        let rootfs = folder.path().join("rootfs");
        for name in ["proc", "dev", "sys", "usr"] {
            std::fs::create_dir_all(rootfs.join(name))?;
        }
        for link in ["lib", "lib64"] {
            let host = Path::new("/").join(link);
            if !host.is_symlink() {
                return Err("this host's /lib is no link into /usr, as the comparison needs".into());
            }
            std::os::unix::fs::symlink(std::fs::read_link(host)?, rootfs.join(link))?;
        }
        Ok(Some(Self { folder, started: AtomicU32::new(0) }))
    }

    fn command(&self, program: &[&str]) -> Result<Command, Box<dyn Error>> {
        let path = self.folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        config["process"]["args"] = serde_json::json!(program);
        config["process"]["terminal"] = false.into();
        // Our zones have no such mount either, and not every host can give one.
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "cgroup" && mount["destination"] != "/usr");
            mounts.push(serde_json::json!({
                "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]
            }));
        }
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("gpu-zone-bench-{}-{number}", std::process::id());
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(self.folder.path()).arg(name).stdin(Stdio::null());
        Ok(command)
    }

    pub(crate) fn run(&self, program: &str) -> Result<(), Box<dyn Error>> {
        let output = self.command(&[program])?.output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
    }

    pub(crate) fn start(&self, program: &[&str]) -> Result<Child, Box<dyn Error>> {
        Ok(self.command(program)?.stdout(Stdio::null()).spawn()?)
    }
}
