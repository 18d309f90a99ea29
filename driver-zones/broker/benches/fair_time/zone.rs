//! A driver zone with a simulated GPU: a real broker, real workers, real tenants' processes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuzone_broker::ZonePaths;
use gpuzone_core::{ComputeShare, Grant, LeaseId, MemoryBytes};
use gpuzone_wire::control::{
    BrokerConfig, Caps, Driver, LeaseStatus, Reply, Request, VERSION, WorkerOrder,
};
use gpuzone_wire::turn::{FairTime, Priority};
use uuid::Uuid;

use crate::keeper;
use crate::tenant::{Kernel, Tenant};

const PROGRAMS: &str = "FAIR_TIME_PROGRAMS";
const GPU: &str = "GPU-11111111-2222-3333-4444-555555555555";

pub(crate) struct Zone {
    dir: tempfile::TempDir,
    /// Ends the broker and all else when it is dropped.
    keeper: Child,
    agent: BufReader<UnixStream>,
    leases: u128,
}

pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    slot: PathBuf,
}

/// The programs and libraries that a driver zone and its tenants need: those of a folder, where
/// one is named, or built if they are not.
fn built() -> Vec<PathBuf> {
    if let Some(dir) = std::env::var_os(PROGRAMS) {
        let files = std::fs::read_dir(dir).expect("a folder");
        return files.flatten().map(|file| file.path()).collect();
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--message-format=json"]);
    for package in ["broker", "worker", "cuda", "sim-cuda", "sim-nvml"] {
        cargo.args(["-p", &format!("gpuzone-{package}")]);
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "the programs do not build");
    let messages = output.stdout.lines().map_while(Result::ok);
    let messages = messages.filter_map(|line| serde_json::from_str(&line).ok());
    let files = messages.flat_map(|message: serde_json::Value| {
        let libraries = message["filenames"].as_array().cloned().unwrap_or_default();
        let all = libraries.into_iter().chain([message["executable"].clone()]);
        all.filter_map(|file| file.as_str().map(PathBuf::from)).collect::<Vec<_>>()
    });
    files.collect()
}

impl Zone {
    pub(crate) fn new() -> Self {
        let built = built();
        let file =
            |name: &str| built.iter().find(|file| file.ends_with(name)).expect(name).to_owned();
        let dir = tempfile::Builder::new().prefix("gz").tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let simulated = format!(
            "state_dir = \"{}\"\n[[gpu]]\nname = \"Simulated\"\nuuid = \"{GPU}\"\nmemory = \"4Gi\"\ncompute_capability = \"9.0\"\npci = \"0000:01:00.0\"\n",
            at("state").display()
        );
        std::fs::write(at("sim.toml"), simulated).expect("written");
        std::os::unix::fs::symlink(file("libgpuzone_cuda.so"), at("libcuda.so.1")).expect("linked");
        std::os::unix::fs::symlink("libcuda.so.1", at("libcuda.so")).expect("linked");
        let environment = [("GPUZONE_SIM_CONFIG".to_owned(), at("sim.toml").display().to_string())];
        let config = BrokerConfig {
            zone_dir: at("zone"),
            worker: file("gpu-zone-worker"),
            driver: Driver {
                cuda_library: file("libgpuzone_sim_cuda.so"),
                nvml_library: file("libgpuzone_sim_nvml.so"),
                environment: BTreeMap::from(environment),
            },
            caps: Caps::default(),
            fair_time: FairTime::default(),
            sandbox: None,
            windows: false,
            microvm: None,
        };
        let json = serde_json::to_vec(&config).expect("a configuration");
        std::fs::write(at("broker.json"), json).expect("written");
        let keeper = keeper::start(&file("gpu-zone-broker"), &at("broker.json"), dir.path());
        let socket = ZonePaths::new(at("zone")).control_socket();
        let began = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if began.elapsed() > Duration::from_secs(10) => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut zone = Self { dir, keeper, agent: BufReader::new(stream), leases: 0 };
        zone.ask(&Request::Hello { version: VERSION });
        zone
    }

    fn ask(&mut self, request: &Request) -> Reply {
        let line = serde_json::to_string(request).expect("a request");
        writeln!(self.agent.get_mut(), "{line}").expect("sent");
        let mut reply = String::new();
        self.agent.read_line(&mut reply).expect("answered");
        match serde_json::from_str(&reply).expect("a reply") {
            Reply::Refused { reason } => panic!("{reason}"),
            reply => reply,
        }
    }

    pub(crate) fn lease(&mut self, percent: u32, priority: Priority) -> Lease {
        self.capped(percent, priority, None)
    }

    pub(crate) fn capped(&mut self, percent: u32, priority: Priority, cap: Option<u32>) -> Lease {
        self.leases += 1;
        let id = LeaseId::from_uuid(Uuid::from_u128(self.leases));
        let slot_dir = self.dir.path().join(format!("slot{}", self.leases));
        let share = ComputeShare::new(percent).expect("a share");
        let gpu = GPU.parse().expect("a UUID");
        let order = WorkerOrder {
            lease: id,
            slot_dir: slot_dir.clone(),
            grants: vec![Grant { gpu, memory: MemoryBytes::mib(256), share }],
            priority,
            time_cap: cap.map(|cap| ComputeShare::new(cap).expect("a cap")),
            access: Default::default(),
        };
        self.ask(&Request::Start(order));
        Lease { id, slot: slot_dir }
    }

    pub(crate) fn tenant(&self, lease: &Lease, kernel: Kernel) -> Tenant {
        Tenant::start(&lease.slot, self.dir.path(), kernel)
    }

    pub(crate) fn status(&mut self, lease: &Lease) -> LeaseStatus {
        let Reply::Leases { leases } = self.ask(&Request::Status) else { panic!("no leases") };
        let found = leases.into_iter().find(|status| status.lease == lease.id).expect("served");
        assert_eq!(found.restarts, 0, "{}", found.trouble);
        found
    }

    pub(crate) fn end(&mut self, lease: &Lease) {
        self.ask(&Request::Stop { lease: lease.id });
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ask(&Request::Shutdown);
        }
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
