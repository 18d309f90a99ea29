//! The main job on a simulated node: programs compute, limits hold, reports tell.

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_testkit::{Node, Options, Running};

    const LEASE: u64 = 2 << 30;
    const LIMIT: Duration = Duration::from_secs(60);

    fn right(node: &Node, tenant: &str, workload: &[&str]) {
        let finished = node.run(tenant, "2Gi", "25", workload).unwrap();
        assert_eq!(finished.code(), Some(0), "{workload:?}: {}", finished.text());
        assert!(finished.stdout.contains(": ok"), "{workload:?}: {}", finished.text());
    }

    /// `gpu-zone run` of two test programs in one lease, through a shell.
    fn pair(node: &Node, tenant: &str, workload: &str) -> Running {
        let program = node.artifacts().file("gpuzone-workload").unwrap().display().to_string();
        let one = format!("'{program}' {workload} &");
        let script = format!("{one} a=$!; {one} b=$!; wait $a && wait $b");
        let lease = ["run", "--tenant", tenant, "--memory", "2Gi", "--share", "25", "--"];
        let command = lease.iter().copied().chain(["bash", "-c", &script]);
        Running::start(node.cli(command).unwrap()).unwrap()
    }

    fn kernels_compute_what_the_cpu_computes(node: &Node) {
        for workload in ["vector-add", "saxpy", "matmul", "softmax", "reduce", "histogram"] {
            right(node, "acme", &[workload]);
        }
        // Sizes that fill no block.
        right(node, "acme", &["matmul", "-n", "37"]);
        right(node, "acme", &["softmax", "--rows", "3", "--columns", "1000"]);
        right(node, "acme", &["reduce", "-n", "1"]);
    }

    fn a_program_sees_its_lease_and_not_the_gpu(node: &Node) {
        let seen = node.run("acme", "2Gi", "25", &["info"]).unwrap().ok().unwrap();
        assert_eq!(seen.number("devices").unwrap(), 1);
        for what in ["total_bytes", "of_bytes", "free_bytes"] {
            assert_eq!(seen.number(what).unwrap(), LEASE, "{what}: {}", seen.stdout);
        }
    }

    fn memory_ends_at_the_exact_byte(node: &Node) {
        // Four times: what was freed, and what a dead process had, comes back.
        let hog = ["hog", "--expect", "2Gi", "--rounds", "2"];
        for _ in 0..2 {
            let finished = node.run("acme", "2Gi", "25", &hog).unwrap().ok().unwrap();
            assert!(finished.stdout.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{}", finished.stdout);
        }
        let more = ["hog", "--expect", "2097153Ki"];
        let refused = node.run("acme", "2Gi", "25", &more).unwrap();
        assert_eq!(refused.code(), Some(1), "a wrong expectation has to fail");
        let both = pair(node, "acme", "hog --step 16Mi --seconds 8").finish(LIMIT).unwrap();
        let both = both.ok().unwrap();
        let ends = both.stdout.lines().filter(|line| line.contains("refused="));
        let got = ends.filter_map(|line| line.split("got_bytes=").nth(1)?.split(' ').next());
        let got: Vec<u64> = got.map(|number| number.parse().unwrap()).collect();
        assert_eq!((got.len(), got.iter().sum::<u64>()), (2, LEASE), "{}", both.text());
    }

    fn one_tenants_data_is_not_there_for_the_next(node: &Node) {
        let secret =
            node.run("acme", "2Gi", "25", &["hold", "--memory", "512Mi", "--seconds", "0"]);
        secret.unwrap().ok().unwrap();
        right(node, "globex", &["leak-check", "--memory", "768Mi"]);
    }

    fn several_processes_of_a_lease_compute_at_once(node: &Node) {
        let finished = pair(node, "globex", "matmul -n 64").finish(LIMIT).unwrap().ok().unwrap();
        assert_eq!(finished.stdout.matches(": ok").count(), 2, "{}", finished.text());
    }

    fn a_crash_is_over_with_its_process(node: &Node) {
        let program = node.artifacts().file("gpuzone-workload").unwrap().display().to_string();
        let script =
            format!("'{program}' crash; echo code=$?; '{program}' matmul; '{program}' info");
        let lease = ["run", "--tenant", "acme", "--memory", "2Gi", "--share", "25", "--"];
        let command = lease.iter().copied().chain(["bash", "-c", &script]);
        let mut globex = node.spawn("globex", "2Gi", "25", &["loop"]).unwrap();
        globex.wait_for("loop: running", LIMIT).unwrap();
        let acme = Running::start(node.cli(command).unwrap()).unwrap();
        let acme = acme.finish(LIMIT).unwrap().ok().unwrap();
        assert_eq!(acme.number("code").unwrap(), 42, "{}", acme.text());
        assert!(acme.stdout.contains("matmul n=128: ok"), "{}", acme.text());
        assert_eq!(acme.number("free_bytes").unwrap(), LEASE, "{}", acme.text());
        globex.finish(LIMIT).unwrap().ok().unwrap();
    }

    fn listings_show_leases_and_gpus(node: &Node) {
        let mut running = node.spawn("acme", "2Gi", "25", &["loop"]).unwrap();
        running.wait_for("loop: running", LIMIT).unwrap();
        let leases = node.leases().unwrap();
        assert_eq!(leases.len(), 1, "{leases:?}");
        let lease = &leases[0];
        assert_eq!((lease.tenant(), lease.state(), lease.gpu()), ("acme", "active", Some(0)));
        assert_eq!(lease.0["grants"][0]["memory_bytes"], LEASE);
        assert_eq!(lease.0["grants"][0]["backing"], "simulated");
        assert_eq!(lease.0["program"], "gpuzone-workload loop");
        let gpu = &node.json(&["gpus"]).unwrap()["gpus"][0];
        assert_eq!(gpu["free_memory_bytes"], (16_u64 << 30) - LEASE);
        assert_eq!((&gpu["free_share_percent"], &gpu["leases"]), (&75.into(), &1.into()));
        for listing in ["ps", "gpus"] {
            let table = node.command([listing]).unwrap().ok().unwrap().stdout;
            assert!(table.contains("simulated"), "{table}");
        }
        // What the machine itself has, whatever that is, and below it what the driver has.
        let all = node.json(&["gpus", "--all"]).unwrap();
        assert!(all["devices"].is_array() && all["vfio_interfaces"].is_array(), "{all}");
        let seen = &all["gpus"][0];
        assert_eq!((&seen["uuid"], &seen["mig"]), (&gpu["uuid"], &serde_json::Value::Null));
        assert!(seen["nvlinks"].is_array(), "{seen}");
        let tree = node.command(["gpus", "--all"]).unwrap().ok().unwrap().stdout;
        assert!(tree.contains("VFIO"), "{tree}");
        assert!(tree.contains(&format!("simulated, {}", gpu["uuid"].as_str().unwrap())), "{tree}");
        let ended = node.command(["stop", lease.id()]).unwrap().ok().unwrap();
        assert!(ended.stdout.contains(lease.id()), "{}", ended.stdout);
        // Its program's next call fails; the program says so and ends.
        let program = running.finish(LIMIT).unwrap();
        assert_eq!(program.code(), Some(1), "{}", program.text());
        assert_eq!(node.leases().unwrap().len(), 0);
        let unknown = format!("lease-{}", "0".repeat(32));
        assert_eq!(node.command(["stop", &unknown]).unwrap().code(), Some(66));
    }

    fn reports_add_up(node: &Node) {
        let report = node.json(&["report"]).unwrap();
        assert_eq!(report["includes_simulated"], true);
        let tenants: Vec<&str> = report["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|row| row["tenant"].as_str())
            .collect();
        assert_eq!(tenants, ["acme", "globex"]);
        let leases = node.json(&["report", "--by", "lease"]).unwrap();
        for key in ["launches", "busy_nanoseconds", "reserved_byte_seconds", "refused_allocations"]
        {
            let sum = |report: &serde_json::Value| -> u64 {
                let rows = report["rows"].as_array().unwrap();
                rows.iter().map(|row| row[key].as_u64().unwrap()).sum()
            };
            assert!(sum(&report) > 0, "{key}");
            assert_eq!(sum(&report), report["total"][key].as_u64().unwrap(), "{key}");
            assert_eq!(sum(&report), sum(&leases), "{key}");
        }
        assert_eq!(report["rows"][0]["peak_used_bytes"], LEASE);
        let csv = node.command(["report", "--format", "csv"]).unwrap().ok().unwrap().stdout;
        assert!(csv.starts_with("tenant,backing,leases,"), "{csv}");
        assert_eq!(csv.lines().count(), 3, "{csv}");
        let table = node.command(["report", "--tenant", "globex"]).unwrap().ok().unwrap().stdout;
        assert!(table.contains("globex") && !table.contains("acme"), "{table}");
        assert!(table.contains("Simulated GPUs"), "{table}");
        let past = node.json(&["report", "--to", "2001-01-01"]).unwrap();
        assert_eq!(past["rows"].as_array().unwrap().len(), 0);
        let wrong = node.command(["report", "--from", "sometime"]).unwrap();
        assert_eq!(wrong.code(), Some(64), "{}", wrong.text());
    }

    #[test]
    fn the_main_job() {
        let mut node = Node::start(&Options::default()).unwrap();
        a_program_sees_its_lease_and_not_the_gpu(&node);
        kernels_compute_what_the_cpu_computes(&node);
        memory_ends_at_the_exact_byte(&node);
        one_tenants_data_is_not_there_for_the_next(&node);
        several_processes_of_a_lease_compute_at_once(&node);
        a_crash_is_over_with_its_process(&node);
        listings_show_leases_and_gpus(&node);
        reports_add_up(&node);

        let agent = node.stop_agent().unwrap().unwrap();
        assert_eq!(agent.code(), Some(0), "{}", agent.text());
        assert_eq!(node.leftovers(), Vec::<String>::new());
        // With no agent, what was recorded is still there to be read.
        let report = node.command(["report", "--format", "json"]).unwrap().ok().unwrap();
        assert!(report.stderr.contains("no agent"), "{}", report.stderr);
        assert_eq!(report.json().unwrap()["rows"].as_array().unwrap().len(), 2);
        assert_eq!(node.command(["ps"]).unwrap().code(), Some(69));
        node.remove().unwrap();
    }
}
