//! A maker as an agent starts it, whose workers sleep.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use gpuzone_zone::maker::{Files, Kind, Maker, Sandbox, Template, line};
use gpuzone_zone::sandbox::{
    Feature, Filter, Launch, Limits, MakerSandbox, Mount, Sandboxed, Spec,
};
use gpuzone_zone::{Process, ProcessId};

use crate::support::{launcher, null, spec};

pub(crate) const NEEDED: [Feature; 3] = [Feature::User, Feature::Mount, Feature::Seccomp];

pub(crate) struct DriverZone {
    pub(crate) folder: tempfile::TempDir,
    records: PathBuf,
    pub(crate) template: Template,
}

impl DriverZone {
    /// Workers run `/usr/bin/sleep` with these arguments.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = folder.path().join("zones");
        std::fs::create_dir(&records).unwrap();
        let kind = |arguments: &[&str], files| Kind {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            files,
            device_memory: BTreeMap::new(),
        };
        let spec = Spec {
            zone: String::new(),
            own_pids: false,
            filter: Filter::Worker,
            private: Vec::new(),
            limits: Limits { pids: Some(64), cpu_weight: Some(100), ..Limits::default() },
            ..spec()
        };
        let template = Template {
            program: "/usr/bin/sleep".into(),
            environment: BTreeMap::new(),
            kinds: BTreeMap::from([
                ("worker".to_owned(), kind(arguments, 3)),
                ("scrub".to_owned(), kind(arguments, 1)),
            ]),
            sandbox: Some(Sandbox { launcher: launcher(), spec }),
        };
        Self { folder, records, template }
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.records.clone()
    }

    /// Names in the folder of records.
    pub(crate) fn listing(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.records()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The process that is written down for a zone in this state.
    pub(crate) fn written(&self, zone: &str, state: &str) -> Option<ProcessId> {
        let json = std::fs::read(self.records().join(format!("{zone}.zone"))).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let is = record["state"] == state;
        is.then(|| serde_json::from_value(record["process"].clone()).unwrap())
    }

    /// A maker, and the end of its line that a broker has.
    pub(crate) fn maker(&self) -> (Process, OwnedFd) {
        let (ours, theirs) = line().unwrap();
        let view = MakerSandbox {
            zone: "driver-zone-maker".to_owned(),
            read: vec![launcher()],
            write: vec![self.records()],
            users: true,
            ..MakerSandbox::default()
        };
        let view = view.spec().unwrap();
        // The workers' program.
        let mounts: Vec<Mount> = view.mounts.iter().cloned().chain([Mount::read("/usr")]).collect();
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"));
        let launch = Launch {
            program: launcher(),
            arguments: vec!["--make".into(), self.records().into()],
            environment: BTreeMap::new(),
            stdin: self.template.to_file().unwrap(),
            stdout: null(),
            stderr: log.unwrap().into(),
            inherit: vec![theirs],
        };
        let spec = Spec { mounts, ..view };
        let (process, _) = Sandboxed { launcher: launcher(), spec, launch }.start().unwrap();
        (process, ours)
    }

    /// The same, asked as a broker does.
    pub(crate) async fn made(&self) -> (Process, Maker) {
        let (process, line) = self.maker();
        let maker = Maker::connect(line).await;
        (process, maker.unwrap_or_else(|error| panic!("{error}: {}", self.log())))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// What a worker is handed.
pub(crate) fn files() -> Files {
    let inherit = vec![null(), null(), null()];
    Files { stdin: null(), stdout: null(), stderr: null(), inherit }
}
