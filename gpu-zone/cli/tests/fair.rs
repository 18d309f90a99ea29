//! GPU time between tenants: a kernel that does not end, a broker that dies under load, and what
//! a lease's priority and cap go through.

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_testkit::{Lease, Node, Options, Role, Running};

    const LIMIT: Duration = Duration::from_secs(60);

    fn options(more: &str) -> Options {
        let configuration = format!("[usage]\nflush_seconds = 0.2\n[tenants.default]\n{more}");
        Options { configuration, ..Options::default() }
    }

    /// A worker that is well may have no processor for most of a second, where so many compute.
    fn impatient() -> Options {
        options("[fair_time]\nwatchdog_milliseconds = 1500\n")
    }

    fn lease(node: &Node, tenant: &str) -> Lease {
        let leases = node.leases().unwrap();
        leases.into_iter().find(|lease| lease.tenant() == tenant).unwrap()
    }

    /// Until it is told to end, which [`ends_well`] does.
    fn computing(node: &Node, tenant: &str) -> Running {
        let mut running = node.spawn(tenant, "1Gi", "20", &["loop"]).unwrap();
        running.wait_for("loop: running", LIMIT).unwrap();
        running
    }

    /// Test programs one after the other, in one lease and with one input; each says how it ended.
    fn sequence(node: &Node, tenant: &str, workloads: &[&str]) -> Running {
        let program = node.artifacts().file("gpuzone-workload").unwrap().display().to_string();
        let each = workloads.iter().zip(["first", "second"]);
        let script = each.map(|(workload, name)| format!("'{program}' {workload}; echo {name}=$?"));
        let script = script.collect::<Vec<_>>().join("; ");
        let lease = ["run", "--tenant", tenant, "--memory", "1Gi", "--share", "20", "--"];
        let command = lease.iter().copied().chain(["bash", "-c", &script]);
        Running::start_fed(node.cli(command).unwrap()).unwrap()
    }

    /// It checks each of its results.
    fn ends_well(running: Running) {
        let finished = running.finish(LIMIT).unwrap();
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
    }

    #[test]
    fn a_kernel_past_the_watchdogs_limit_ends_its_own_leases_work_only() {
        let node = Node::start(&impatient()).unwrap();
        let globex = computing(&node, "globex");
        let neighbour = lease(&node, "globex").worker();
        let mut acme = sequence(&node, "acme", &["spin", "matmul"]);
        acme.wait_for("spin: launched", LIMIT).unwrap();
        let acme = acme.finish(LIMIT).unwrap();
        // The program was told, and the next one of the same lease has a fresh worker.
        assert_eq!(acme.number("first").unwrap(), 1, "{}", acme.text());
        assert_eq!(acme.number("second").unwrap(), 0, "{}", acme.text());
        assert!(acme.text().contains("the kernel did not end"), "{}", acme.text());
        assert_eq!(lease(&node, "globex").worker(), neighbour, "the neighbour's is the same");
        ends_well(globex);
    }

    /// The GPU's time is shared by turns: were a grid stopped halfway for a neighbour's, blocks that
    /// wait for each other would wait for ever.
    #[test]
    fn grids_whose_blocks_wait_for_each_other_run_beside_those_of_other_leases() {
        let node = Node::start(&impatient()).unwrap();
        let together = |tenant: &str| {
            let words = ["together", "--seconds", "3"];
            let mut running = node.spawn(tenant, "1Gi", "20", &words).unwrap();
            running.wait_for("together: running", LIMIT).unwrap();
            running
        };
        let (acme, globex) = (together("acme"), together("globex"));
        let initech = computing(&node, "initech");
        for running in [acme, globex, initech] {
            ends_well(running);
        }
    }

    #[test]
    fn the_trouble_of_a_lease_says_that_its_kernel_was_too_long() {
        let node = Node::start(&impatient()).unwrap();
        let globex = computing(&node, "globex");
        let mut acme = sequence(&node, "acme", &["spin", "hold --memory 1Mi --seconds 30"]);
        acme.wait_for("spin: launched", LIMIT).unwrap();
        node.until("the lease's trouble", LIMIT, |node| {
            let trouble = lease(node, "acme").0["trouble"].as_str().unwrap().to_owned();
            Ok(trouble.contains("it kept a GPU for more than 1500 ms"))
        })
        .unwrap();
        assert_eq!(lease(&node, "globex").0["trouble"], "");
        drop((acme, globex));
    }

    #[test]
    fn a_broker_that_dies_under_load_is_followed_by_one_that_goes_on_with_turns() {
        let node = Node::start(&impatient()).unwrap();
        let acme = computing(&node, "acme");
        let globex = computing(&node, "globex");
        let mut initech = sequence(&node, "initech", &["loop", "spin"]);
        initech.wait_for("loop: running", LIMIT).unwrap();
        let workers = |node: &Node| ["acme", "globex"].map(|tenant| lease(node, tenant).worker());
        let (before, first) = (workers(&node), lease(&node, "initech").worker());
        assert_eq!(node.kill(Role::Broker), 1);
        // A new lease needs a broker, so this waits for the new one.
        node.run("hooli", "1Gi", "20", &["matmul"]).unwrap().ok().unwrap();
        assert_eq!((workers(&node), lease(&node, "initech").worker()), (before, first));
        ends_well(acme);
        // Only who has to give its turn back is ended for keeping it: turns are taken again.
        let initech = initech.finish(LIMIT).unwrap();
        assert_eq!(initech.number("first").unwrap(), 0, "{}", initech.text());
        assert_eq!(initech.number("second").unwrap(), 1, "{}", initech.text());
        ends_well(globex);
    }

    #[test]
    fn a_scrub_beside_a_kernel_without_end_costs_neither_the_gpu_nor_the_kernel() {
        let node = Node::start(&options("[scrub]\nlimit_seconds = 4\n")).unwrap();
        let hold = ["hold", "--memory", "8Mi", "--seconds", "600"];
        let mut acme = node.spawn("acme", "1Gi", "20", &hold).unwrap();
        acme.wait_for("hold: holding", LIMIT).unwrap();
        let mut globex = node.spawn("globex", "1Gi", "20", &["spin"]).unwrap();
        globex.wait_for("spin: launched", LIMIT).unwrap();
        let worker = lease(&node, "globex").worker();
        drop(acme);
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.len() == 1)).unwrap();
        let gpu = &node.json(&["gpus"]).unwrap()["gpus"][0];
        assert!(gpu["quarantine"].is_null(), "{gpu}");
        let Lease(neighbour) = lease(&node, "globex");
        assert_eq!(neighbour["worker_pid"].as_u64(), worker.map(u64::from), "{neighbour}");
        assert_eq!(neighbour["trouble"], "");
        assert!(globex.runs().unwrap());
        let audit = node.command(["audit", "export", "--format", "json"]).unwrap();
        let audit = audit.ok().unwrap().stdout;
        assert!(audit.contains("in part without turns"), "{audit}");
    }

    fn refused(node: &Node, options: &[&str], code: i32, says: &str) {
        let words = ["run", "--memory", "1Gi"].iter().chain(options).chain(&["--", "true"]);
        let refused = node.command(words).unwrap();
        assert_eq!(refused.code(), Some(code), "{}", refused.text());
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    }

    #[test]
    fn priority_and_cap_are_granted_listed_audited_and_kept() {
        let mut node = Node::start(&options("[tenants.acme]\nlatency_critical = true\n")).unwrap();
        let urgent = ["--priority", "latency-critical"];
        refused(
            &node,
            &[&["--tenant", "globex"][..], &urgent].concat(),
            77,
            "latency_critical = true",
        );
        let low = ["--tenant", "acme", "--share", "50", "--cap", "40"];
        refused(&node, &low, 64, "a cap of 40% is below the share of 50%");

        let program = node.artifacts().file("gpuzone-workload").unwrap().display().to_string();
        let words = ["run", "--tenant", "acme", "--memory", "1Gi", "--share", "20", "--cap", "40"];
        let words = words.iter().chain(&urgent).copied();
        let workload = ["--", &program, "loop"];
        let mut acme = Running::start_fed(node.cli(words.chain(workload)).unwrap()).unwrap();
        acme.wait_for("loop: running", LIMIT).unwrap();
        let globex = computing(&node, "globex");
        let shown = |node: &Node, tenant: &str| {
            let Lease(lease) = lease(node, tenant);
            (lease["priority"].as_str().unwrap().to_owned(), lease["cap_percent"].as_u64())
        };
        assert_eq!(shown(&node, "acme"), ("latency-critical".into(), Some(40)));
        assert_eq!(shown(&node, "globex"), ("batch".into(), None));
        let table = node.command(["ps"]).unwrap().ok().unwrap().stdout;
        assert!(table.contains("latency-critical") && table.contains("40 %"), "{table}");
        ends_well(globex);

        let worker = lease(&node, "acme").worker();
        node.kill_agent().unwrap();
        node.start_agent().unwrap();
        assert_eq!(shown(&node, "acme"), ("latency-critical".into(), Some(40)));
        assert_eq!(lease(&node, "acme").worker(), worker, "the order is the same");
        ends_well(acme);

        node.stop_agent().unwrap();
        let export = node.command(["audit", "export", "--format", "json"]).unwrap();
        let audit = export.ok().unwrap().stdout.replace(' ', "");
        let events = audit.matches("\"priority\":\"latency-critical\"").count();
        assert_eq!(events, 2, "a refusal and a grant: {audit}");
    }
}
