//! The workload zone that a program runs in: what of the host it sees, as orders for the
//! launcher `gpu-zone-sandbox`.
//!
//! The orders are a contract between programs (docs/zones.md): this one links nothing of the
//! driver zones' side.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gpuzone_api::Directories;
use gpuzone_api::agent::v1::{self as proto, CreateLeaseReply};
use gpuzone_core::MemoryBytes;
use gpuzone_image::Image;
use serde_json::{Value, json};

use crate::arguments::{Run, Sandboxing, ZoneLimits};
use crate::error::{CliError, Kind};
use crate::locate;
use crate::run::child::in_memory;
use crate::run::image;
use crate::run::view::{self, Volume};

/// `--rootfs` of a zone that shows all of the host's files.
const WHOLE_HOST: &str = "host";

/// A zone that a program is about to be started in.
#[derive(Debug)]
pub(crate) struct Zone {
    pub(crate) launcher: PathBuf,
    pub(crate) orders: OwnedFd,
    pub(crate) report: OwnedFd,
    /// What its program has beside the usual, under the number that it has here.
    pub(crate) secrets: Option<OwnedFd>,
    heard: io::PipeReader,
}

impl Zone {
    /// The zone that `run` asks for; `None` when it asks for none, or for what is not installed
    /// and not required.
    pub(crate) fn prepare(
        run: &Options,
        directories: &Directories,
        granted: &CreateLeaseReply,
        program: &Path,
    ) -> Result<Option<Self>, CliError> {
        if run.demand == Sandboxing::Off {
            return Ok(None);
        }
        let Some(launcher) = locate::own("gpu-zone-sandbox") else {
            let message = "gpu-zone-sandbox is not there, so the program has no sandbox";
            // Its program is not the host's, and must not be taken for it.
            if run.demand == Sandboxing::Require || run.root.image().is_some() {
                let hint = "install it beside gpu-zone (`gpu-zone doctor` says where)";
                return Err(CliError::new(Kind::Configuration, message).hint(hint));
            }
            eprintln!("gpu-zone: {message}; --sandbox off says that this is meant");
            return Ok(None);
        };
        let directory = std::env::current_dir();
        let directory = directory.map_err(|error| CliError::caused(Kind::Internal, &error))?;
        let orders = orders(run, directories, granted, program, &directory);
        Self::ordered(launcher, directories, orders).map(Some)
    }

    /// The zone that `orders` describe.
    pub(crate) fn ordered(
        launcher: PathBuf,
        directories: &Directories,
        mut orders: Value,
    ) -> Result<Self, CliError> {
        let made = move || -> io::Result<Self> {
            // No other process owns this zone than its launcher.
            orders["record"] = json!(std::path::absolute(directories.programs_dir())?);
            let (heard, report) = io::pipe()?;
            let orders = in_memory("orders", orders.to_string().as_bytes())?;
            let report = report.into();
            Ok(Self { launcher, orders, report, secrets: None, heard })
        };
        let failed = |error: io::Error| {
            CliError::new(Kind::Internal, format!("cannot prepare the program's sandbox: {error}"))
        };
        made().map_err(failed)
    }

    /// Waits until the program begins, or is known not to.
    pub(crate) fn begun(self) -> Result<(), CliError> {
        let Self { orders, report, mut heard, launcher: _, secrets: _ } = self;
        // The launcher has its own; the end of what it says is the end of its.
        drop((orders, report));
        let mut said = String::new();
        let read = heard.read_to_string(&mut said);
        read.map_err(|error| CliError::caused(Kind::Internal, &error))?;
        for line in said.lines() {
            let report: Value = serde_json::from_str(line).unwrap_or_default();
            if let Some(reason) = report["failed"].as_str() {
                let message = format!("the program has no sandbox and was not started: {reason}");
                let hint = "`gpu-zone doctor` shows what this machine lacks; --sandbox off does \
                            without";
                return Err(CliError::new(Kind::Configuration, message).hint(hint));
            }
            if let Some(reason) = report["unrunnable"]["reason"].as_str() {
                // As it would be without a sandbox: the interpreter is missing, or something
                // else about the file.
                let kind = match report["unrunnable"]["errno"].as_i64() {
                    Some(errno) if errno == i64::from(libc::ENOENT) => Kind::NoProgram,
                    _ => Kind::NotExecutable,
                };
                let hint = "a script's first line names its interpreter; the sandbox shows the \
                            system's folders, the working directory, and what --volume names";
                return Err(CliError::new(kind, reason).hint(hint));
            }
            say_missing(report["ready"].as_array().map_or(&[], Vec::as_slice));
        }
        Ok(())
    }
}

/// Says what of the sandbox this machine lacks.
pub(crate) fn say_missing(missing: &[Value]) {
    let names: Vec<String> = missing
        .iter()
        .map(|missing| gpuzone_ledger::printable(missing["feature"].as_str().unwrap_or("?")))
        .collect();
    if !names.is_empty() {
        let names = names.join(", ");
        eprintln!("gpu-zone: the sandbox is without {names}; `gpu-zone doctor` says why");
    }
}

/// What the zone of a lease with one program is called.
pub(crate) fn zone_name(lease: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    lease.chars().map(letter).take(64).collect()
}

/// The zones that have one program each, as `gpu-zone-sandbox --list` shows them.
pub(crate) async fn of_one_program(directories: &Directories) -> Result<Vec<Value>, CliError> {
    let folder = directories.programs_dir();
    // Without the launcher there are no zones, and without the folder there has been none.
    let Some(launcher) = locate::own("gpu-zone-sandbox").filter(|_| folder.is_dir()) else {
        return Ok(Vec::new());
    };
    let mut list = tokio::process::Command::new(launcher);
    let output = list.arg("--list").arg(&folder).output().await;
    let output = output.map_err(|error| CliError::caused(Kind::Internal, &error))?;
    if !output.status.success() {
        let said = gpuzone_ledger::printable(String::from_utf8_lossy(&output.stderr).trim());
        return Err(CliError::new(Kind::Internal, format!("cannot list the zones: {said}")));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| CliError::caused(Kind::Internal, &error))
}

/// What a zone has for its root.
#[derive(Clone, Debug)]
pub(crate) enum Root {
    /// The system's folders of the host, and what the program needs.
    System,
    /// All of the host's files.
    WholeHost,
    /// The files in this folder.
    Folder(PathBuf),
    /// The files of this image.
    Image(Image),
}

/// The same for the launcher, with what is put into it.
struct Rooted<'a> {
    root: Value,
    mounts: Vec<Value>,
    /// A home that is empty.
    home: Option<PathBuf>,
    directory: &'a Path,
}

impl Root {
    fn of(rootfs: Option<&Path>, image: Option<Image>) -> Self {
        match (image, rootfs) {
            (Some(image), _) => Self::Image(image),
            (None, None) => Self::System,
            (None, Some(folder)) if folder == Path::new(WHOLE_HOST) => Self::WholeHost,
            (None, Some(folder)) => Self::Folder(folder.to_owned()),
        }
    }

    pub(crate) fn image(&self) -> Option<&Image> {
        match self {
            Self::Image(image) => Some(image),
            Self::System | Self::WholeHost | Self::Folder(_) => None,
        }
    }

    /// Its files, where they are not the host's at their own places.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Image(image) => Some(&image.root),
            Self::System | Self::WholeHost => None,
        }
    }

    /// For `program`, which is started in `directory`.
    fn rooted<'a>(&'a self, program: &Path, directory: &'a Path) -> Rooted<'a> {
        let own = |folder: &Path, directory| {
            let root = json!({ "folder": folder });
            Rooted { root, mounts: Vec::new(), home: None, directory }
        };
        match self {
            Self::System => {
                let mounts = view::of_system(program, directory);
                Rooted { root: json!("empty"), mounts, home: view::home(), directory }
            }
            Self::WholeHost => {
                let mounts = view::of_whole_host(program, directory);
                Rooted { root: json!("host"), mounts, home: None, directory }
            }
            Self::Folder(folder) => own(folder, Path::new("/")),
            Self::Image(image) => own(&image.root, &image.directory),
        }
    }
}

/// What the command line says about the zone.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) demand: Sandboxing,
    pub(crate) root: Root,
    pub(crate) network: bool,
    pub(crate) limits: ZoneLimits,
    pub(crate) volumes: Vec<Volume>,
}

impl Options {
    pub(crate) fn of(run: &Run, image: Option<Image>) -> Self {
        Self {
            demand: run.sandbox,
            root: Root::of(run.rootfs.as_deref(), image),
            network: !run.no_network,
            limits: run.limits.clone(),
            volumes: run.volumes.clone(),
        }
    }
}

pub(crate) fn orders(
    run: &Options,
    directories: &Directories,
    granted: &CreateLeaseReply,
    program: &Path,
    directory: &Path,
) -> Value {
    let zone = zone_name(granted.lease.as_ref().map_or("zone", |lease| lease.id.as_str()));
    let Rooted { root, mut mounts, home, directory } = run.root.rooted(program, directory);
    let private: Vec<PathBuf> = view::PRIVATE.iter().map(PathBuf::from).chain(home).collect();
    mounts.extend(of_lease(granted, run.root.folder().is_some()));
    mounts.extend(view::handed(&run.volumes));
    let demand = demand(run.demand);
    // With the host's root in its place, the program would be another.
    let features = match run.root.folder() {
        Some(_) => json!({ "mount": "require" }),
        None => json!({}),
    };
    json!({
        "zone": zone,
        "root": root,
        "mounts": mounts,
        "private": private,
        "hidden": [directories.run, directories.state],
        "directory": directory,
        "network": run.network,
        "own_pids": true,
        "users": users(granted),
        "limits": limits(&run.limits, &granted.zone_limits.unwrap_or_default()),
        "filter": "workload",
        "policy": { "default": demand, "features": features },
    })
}

/// What the launcher does where the machine lacks something.
pub(super) const fn demand(demand: Sandboxing) -> &'static str {
    match demand {
        Sandboxing::Require => "require",
        Sandboxing::Warn | Sandboxing::Off => "warn",
    }
}

/// From where the zone gets users of its own.
pub(super) fn users(granted: &CreateLeaseReply) -> Value {
    json!(
        granted.zone_users.map(|users| {
            json!({ "first": users.first, "each": users.each, "zones": users.zones })
        })
    )
}

/// The shim and the slot; `own` says that the zone's files are not the host's.
fn of_lease(granted: &CreateLeaseReply, own: bool) -> Vec<Value> {
    let shim = Path::new(&granted.library_dir);
    let mut mounts: Vec<Value> = if own {
        let libraries = image::libraries(shim).into_iter();
        libraries.map(|(from, to)| json!({ "source": from, "target": to })).collect()
    } else {
        // Links to where the libraries are installed, which may be hidden.
        let libraries: BTreeSet<PathBuf> =
            image::libraries(shim).into_iter().map(|(file, _)| file).collect();
        [shim.to_owned()].into_iter().chain(libraries).map(view::read).collect()
    };
    mounts.extend(granted.environment.get("GPUZONE_SLOT").map(view::read));
    mounts
}

/// What the command line says, or else what the agent does.
pub(super) fn limits(asked: &ZoneLimits, usual: &proto::ZoneLimits) -> Value {
    let bytes = |asked: Option<MemoryBytes>| asked.map(MemoryBytes::get);
    json!({
        "memory": bytes(asked.host_memory).or(usual.memory_bytes),
        "pids": asked.pids.or(usual.pids),
        "cpu": asked.cpus.or(usual.cpu_percent),
        // As much as any other zone has, however many processes are in it.
        "cpu_weight": 100,
        "scratch": bytes(asked.scratch).or(usual.scratch_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            demand: Sandboxing::Warn,
            root: Root::System,
            network: true,
            limits: ZoneLimits::default(),
            volumes: Vec::new(),
        }
    }

    fn order(demand: Sandboxing, rootfs: Option<PathBuf>) -> Value {
        let limits = ZoneLimits { pids: Some(7), ..ZoneLimits::default() };
        let root = Root::of(rootfs.as_deref(), None);
        let run = Options { demand, root, limits, ..options() };
        let directories = Directories { run: "/run/gz".into(), state: "/var/lib/gz".into() };
        let mut granted =
            CreateLeaseReply { library_dir: "/run/gz/shim".into(), ..Default::default() };
        granted.zone_limits = Some(proto::ZoneLimits {
            pids: Some(4096),
            scratch_bytes: Some(1 << 20),
            ..Default::default()
        });
        granted.zone_users = Some(proto::UserRanges { first: 70_000, each: 10, zones: 2 });
        granted.environment.insert("GPUZONE_SLOT".into(), "/run/gz/slots/a".into());
        orders(&run, &directories, &granted, Path::new("/bin/sh"), Path::new("/home/me"))
    }

    fn sources(order: &Value) -> Vec<&str> {
        let mounts = order["mounts"].as_array().unwrap().iter();
        mounts.filter_map(|mount| mount["source"].as_str()).collect()
    }

    #[test]
    fn a_program_sees_its_slot_and_not_the_others() {
        let order = order(Sandboxing::Warn, None);
        let sources = sources(&order);
        assert!(sources.contains(&"/run/gz/slots/a") && sources.contains(&"/run/gz/shim"));
        assert!(!sources.contains(&"/run/gz") && !sources.contains(&"/run/gz/slots"));
        assert_eq!(order["hidden"], json!(["/run/gz", "/var/lib/gz"]));
        let writable = order["mounts"].as_array().unwrap().iter().filter(|m| m["write"] == true);
        let writable: Vec<_> = writable.map(|mount| mount["source"].clone()).collect();
        assert_eq!(writable, ["/home/me"]);
        assert_eq!(order["policy"]["default"], "warn");
    }

    #[test]
    fn what_the_command_line_leaves_out_is_as_the_agent_says() {
        let order = order(Sandboxing::Warn, None);
        let limits = json!({
            "memory": null, "pids": 7, "cpu": null, "cpu_weight": 100, "scratch": 1 << 20
        });
        assert_eq!(order["limits"], limits);
        assert_eq!(order["users"], json!({ "first": 70_000, "each": 10, "zones": 2 }));
    }

    #[test]
    fn a_root_of_its_own_has_nothing_of_the_hosts() {
        let order = order(Sandboxing::Require, Some("/images/debian".into()));
        assert_eq!(order["root"], json!({ "folder": "/images/debian" }));
        assert!(sources(&order).iter().all(|source| source.starts_with("/run/gz")));
        assert_eq!(order["policy"]["default"], "require");
        assert_eq!(order["directory"], "/");
    }
}
