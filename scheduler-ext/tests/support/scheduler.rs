//! The real program kube-scheduler, which runs here for a cluster of one's own.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::extender::free_port;
use super::suite::NAME;

const KUBECONFIG: &str = "GPU_ZONE_E2E_KUBECONFIG";
const SCHEDULER: &str = "GPU_ZONE_E2E_KUBE_SCHEDULER";

/// What a run against a cluster is told; without it, a line says that it was skipped.
pub(crate) fn told() -> Option<(PathBuf, KubeScheduler)> {
    let told = (std::env::var_os(KUBECONFIG), std::env::var_os(SCHEDULER));
    let (Some(kubeconfig), Some(program)) = told else {
        say(&format!(
            "SKIPPED: {KUBECONFIG} names the kubeconfig of a cluster of one's own, and {SCHEDULER} the program kube-scheduler"
        ));
        return None;
    };
    let kubeconfig = PathBuf::from(kubeconfig);
    Some((kubeconfig.clone(), KubeScheduler::new(program.into(), kubeconfig)))
}

/// Not by a macro: what those print is shown of a test that fails only.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Where the extender is, and how it is asked.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) url: String,
    /// `ca.crt`, `tls.crt` and `tls.key`.
    pub(crate) tls: Option<[String; 3]>,
    pub(crate) node_cache_capable: bool,
}

impl Asked {
    pub(crate) fn plainly(port: u16) -> Self {
        Self { url: format!("http://127.0.0.1:{port}"), tls: None, node_cache_capable: true }
    }

    fn entry(&self) -> Value {
        let managed = |name: &str, ignored: bool| json!({ "name": format!("gpuzone.dev/{name}"), "ignoredByScheduler": ignored });
        let mut entry = json!({ "urlPrefix": self.url, "filterVerb": "filter",
            "prioritizeVerb": "prioritize", "bindVerb": "bind", "preemptVerb": "preempt",
            "weight": 10, "nodeCacheCapable": self.node_cache_capable, "ignorable": false,
            "httpTimeout": "30s",
            "managedResources": [managed("gpu", false), managed("memory-mib", true),
                managed("memory-percent", true), managed("share", true)] });
        if let Some([ca, certificate, key]) = &self.tls {
            entry["enableHTTPS"] = json!(true);
            entry["tlsConfig"] = json!({ "caFile": ca, "certFile": certificate, "keyFile": key });
        }
        entry
    }
}

/// A program of some version of Kubernetes.
pub(crate) struct KubeScheduler {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// The 20 of `v1.20.2`.
    minor: u32,
}

/// One that runs. Dropping it kills it.
pub(crate) struct Scheduling(Child);

impl Drop for Scheduling {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl KubeScheduler {
    fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        let said = Command::new(&program).arg("--version").output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        let minor = said.split('.').nth(1).and_then(|minor| minor.parse().ok());
        let minor = minor.unwrap_or_else(|| panic!("{} has no version: {said}", program.display()));
        say(&format!("kube-scheduler: {said}"));
        Self { program, kubeconfig, minor }
    }

    /// A configuration as `docs/scheduler.md` has it, in the words of this version.
    fn configuration(&self, extender: Option<&Asked>) -> Value {
        let version = match self.minor {
            ..=22 => "v1beta1",
            23..=24 => "v1beta3",
            25.. => "v1",
        };
        let mut said = json!({ "apiVersion": format!("kubescheduler.config.k8s.io/{version}"),
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": { "kubeconfig": self.kubeconfig, "qps": 2000, "burst": 4000 },
            "leaderElection": { "leaderElect": false },
            "profiles": [{ "schedulerName": NAME }],
            "extenders": extender.map(Asked::entry).into_iter().collect::<Vec<_>>() });
        // All nodes, not a sample of them.
        match version {
            "v1" => said["profiles"][0]["percentageOfNodesToScore"] = json!(100),
            _ => said["percentageOfNodesToScore"] = json!(100),
        }
        if version == "v1beta1" {
            // It would answer probes without TLS, at all of the machine's addresses.
            let here = format!("127.0.0.1:{}", free_port());
            (said["healthzBindAddress"], said["metricsBindAddress"]) = (json!(here), json!(here));
        }
        said
    }

    /// Whether it shows why nodes that are of no use for a pod are not (`FailedAndUnresolvableNodes`).
    pub(crate) fn shows_all_reasons(&self) -> bool {
        self.minor >= 21
    }

    /// Whether it looks at waiting pods anew when a Node's annotation changes.
    pub(crate) fn is_woken_by_annotations(&self) -> bool {
        self.minor >= 30
    }

    pub(crate) fn start(&self, folder: &Path, extender: Option<&Asked>) -> Scheduling {
        self.start_with(folder, extender, &[])
    }

    /// One that looks at the nodes for each pod. Since 1.35 it may place pods that are alike by one look, where no
    /// extender is.
    pub(crate) fn start_unbatched(&self, folder: &Path) -> Scheduling {
        let gate: &[&str] = match self.minor {
            35.. => &["--feature-gates=OpportunisticBatching=false"],
            ..35 => &[],
        };
        self.start_with(folder, None, gate)
    }

    fn start_with(&self, folder: &Path, extender: Option<&Asked>, more: &[&str]) -> Scheduling {
        let file = folder.join("scheduler.json");
        std::fs::write(&file, self.configuration(extender).to_string()).unwrap();
        let log = folder.join("scheduler.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(file).arg("--secure-port=0").args(more).stderr(log);
        Scheduling(command.stdin(Stdio::null()).spawn().unwrap())
    }
}
