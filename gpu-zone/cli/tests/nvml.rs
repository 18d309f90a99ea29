//! NVML inside a workload zone shows the lease: its memory as the card's, its own processes, and
//! nothing of the neighbour's.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use gpuzone_testkit::{Node, Options, Running};
    use serde_json::Value;

    const LIMIT: Duration = Duration::from_secs(60);
    const MIB: u64 = 1 << 20;

    /// What a program in a lease of its own says, as JSON.
    fn listing(node: &Node, tenant: &str, memory: &str, arguments: &[&str]) -> Value {
        let workload = [&["smi"], arguments].concat();
        let finished = node.run(tenant, memory, "20", &workload).unwrap();
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
        serde_json::from_str(&finished.stdout).unwrap()
    }

    #[test]
    fn a_listing_in_a_zone_is_of_the_lease() {
        let gpus = ["16Gi", "4Gi"].map(String::from).to_vec();
        let mut node = Node::start(&Options { gpus, ..Options::default() }).unwrap();
        let hold = ["hold", "--memory", "1Gi", "--seconds", "50"];
        let mut neighbour = node.spawn("globex", "2Gi", "20", &hold).unwrap();
        neighbour.wait_for("holding", LIMIT).unwrap();

        let only_looks = listing(&node, "acme", "1Gi", &[]);
        let gpus = only_looks["gpus"].as_array().unwrap();
        assert_eq!(gpus.len(), 1, "{only_looks}");
        let total = gpus[0]["total"].as_u64();
        assert_eq!((total, gpus[0]["used"].as_u64()), (Some(1024 * MIB), Some(0)), "{only_looks}");
        assert_eq!(gpus[0]["processes"], serde_json::json!([]));
        assert!(gpus[0]["temperature"]["error"].is_string() && only_looks["driver"].is_string());
        assert!(gpus[0]["set_persistent"]["error"].as_str().unwrap().contains("ermission"));
        assert!(gpus[0]["name"].as_str().unwrap().contains("Simulated"));

        let works = listing(&node, "acme", "1Gi", &["--memory", "64Mi"]);
        let gpu = &works["gpus"][0];
        let used = gpu["used"].as_u64().unwrap();
        // The context takes some, too.
        assert!((64 * MIB..512 * MIB).contains(&used), "{works}");
        assert_eq!(gpu["free"].as_u64(), Some(1024 * MIB - used));
        let processes = gpu["processes"].as_array().unwrap();
        assert_eq!(processes.len(), 1, "its own alone: {works}");
        assert_eq!(processes[0]["pid"], works["pid"], "as it sees itself");
        assert_eq!(processes[0]["used"].as_u64(), Some(used));

        let script = "from pynvml import *; nvmlInit(); \
             h = nvmlDeviceGetHandleByIndex(0); m = nvmlDeviceGetMemoryInfo(h); \
             p = nvmlDeviceGetComputeRunningProcesses(h); \
             print(nvmlDeviceGetCount(), m.total >> 20, m.used, len(p), nvmlDeviceGetUUID(h))";
        if let Some(said) = python(&node, script) {
            let uuid = gpu["uuid"].as_str().unwrap();
            assert!(said.starts_with("1 1024 0 0 GPU-"), "{said}");
            assert_eq!(said.trim().len(), "1 1024 0 0 ".len() + uuid.len());
        }
        drop(neighbour);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }

    /// An interpreter with `nvidia-ml-py`: named, or what `cargo xtask clients` makes.
    fn interpreter(root: &Path) -> Option<PathBuf> {
        let made = || root.join("target/clients/bin/python");
        let python = std::env::var_os("GPUZONE_CLIENTS_PYTHON").map_or_else(made, PathBuf::from);
        let mut has = std::process::Command::new(&python);
        has.args(["-c", "import pynvml"]).stderr(std::process::Stdio::null());
        has.status().is_ok_and(|status| status.success()).then_some(python)
    }

    fn python(node: &Node, script: &str) -> Option<String> {
        let Some(python) = interpreter(node.artifacts().root()) else {
            println!(
                "skipped: nvidia-ml-py: no interpreter has it; `cargo xtask clients` makes one, \
                 and GPUZONE_CLIENTS_PYTHON names another"
            );
            return None;
        };
        let mut command = node.cli(["run", "--tenant", "acme", "--memory", "1Gi"]).unwrap();
        // A zone shows the system's interpreters, and others when they are handed in.
        let prefix = std::process::Command::new(&python)
            .args(["-c", "import sys; print(sys.base_prefix)"])
            .output()
            .unwrap();
        let prefix = String::from_utf8(prefix.stdout).unwrap().trim().to_owned();
        if !prefix.starts_with("/usr") {
            command.arg("--volume").arg(format!("{prefix}:ro"));
        }
        command.arg("--").arg(python).args(["-B", "-c", script]);
        let finished = Running::start(command).unwrap().finish(LIMIT).unwrap();
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
        Some(finished.stdout)
    }
}
