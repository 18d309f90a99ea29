//! Any process may be killed at any moment: only its own lease notices, and nothing that was
//! recorded is lost.

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_testkit::{Lease, Node, Options, Role, Running};

    const LIMIT: Duration = Duration::from_secs(60);

    /// Until it is told to end, which [`ends_well`] does.
    fn computing(node: &Node, tenant: &str) -> Running {
        let mut running = node.spawn(tenant, "1Gi", "20", &["loop"]).unwrap();
        running.wait_for("loop: running", LIMIT).unwrap();
        running
    }

    fn lease(node: &Node, tenant: &str) -> Lease {
        let leases = node.leases().unwrap();
        leases.into_iter().find(|lease| lease.tenant() == tenant).unwrap()
    }

    fn ends_well(running: Running) {
        let finished = running.finish(LIMIT).unwrap();
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
    }

    fn launches(node: &Node, tenant: &str) -> u64 {
        let report = node.json(&["report", "--tenant", tenant]).unwrap();
        report["total"]["launches"].as_u64().unwrap()
    }

    fn a_killed_worker_hurts_its_own_lease(node: &Node) {
        let program = node.artifacts().file("gpuzone-workload").unwrap().display().to_string();
        // The second process of the same lease works again.
        let script = format!("'{program}' loop; echo first=$?; exec '{program}' matmul");
        let lease_of = ["run", "--tenant", "acme", "--memory", "1Gi", "--share", "20", "--"];
        let command = lease_of.iter().copied().chain(["bash", "-c", &script]);
        let mut acme = Running::start_fed(node.cli(command).unwrap()).unwrap();
        acme.wait_for("loop: running", LIMIT).unwrap();
        let globex = computing(node, "globex");
        let worker = lease(node, "acme").worker().unwrap();
        let process = node.processes().into_iter().find(|process| process.pid == worker).unwrap();
        assert_eq!(process.role, Role::Worker);
        process.send(rustix::process::Signal::KILL);
        let acme = acme.finish(LIMIT).unwrap();
        assert_eq!(acme.code(), Some(0), "{}", acme.text());
        assert_eq!(acme.number("first").unwrap(), 1, "{}", acme.text());
        ends_well(globex);
    }

    fn a_killed_program_gives_its_memory_back(node: &Node) {
        let mut hog = node.spawn("acme", "1Gi", "20", &["hog", "--seconds", "60"]).unwrap();
        hog.wait_for("full", LIMIT).unwrap();
        assert_eq!(node.kill(Role::Program), 1);
        assert_eq!(hog.finish(LIMIT).unwrap().code(), Some(137));
        let again = node.run("acme", "1Gi", "20", &["hog", "--expect", "1Gi"]).unwrap();
        again.ok().unwrap();
    }

    fn a_killed_broker_is_replaced_and_workers_go_on(node: &Node) {
        let acme = computing(node, "acme");
        let worker = lease(node, "acme").worker();
        assert_eq!(node.kill(Role::Broker), 1);
        // A new lease needs a broker, so this waits for the new one.
        node.run("globex", "1Gi", "20", &["matmul"]).unwrap().ok().unwrap();
        assert_eq!(lease(node, "acme").worker(), worker, "the worker is the same");
        ends_well(acme);
    }

    fn a_killed_agent_finds_its_leases_again(node: &mut Node) {
        let acme = computing(node, "acme");
        let before = lease(node, "acme");
        let recorded = launches(node, "acme");
        node.kill_agent().unwrap();
        assert_eq!(node.command(["ps"]).unwrap().code(), Some(69));
        let offline = launches(node, "acme");
        assert!(offline >= recorded, "{offline} {recorded}");
        node.start_agent().unwrap();
        let after = lease(node, "acme");
        assert_eq!((after.id(), after.state()), (before.id(), "active"));
        assert_eq!(after.worker(), before.worker(), "the worker is the same");
        let counted = |lease: &Lease| lease.0["counters"]["launches"].as_u64().unwrap();
        assert!(counted(&after) >= counted(&before));
        ends_well(acme);
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
    }

    fn a_holder_that_ends_without_an_agent_is_noticed_later(node: &mut Node) {
        let acme = computing(node, "acme");
        node.kill_agent().unwrap();
        drop(acme);
        node.start_agent().unwrap();
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
        // What it held is free, all of it.
        node.run("acme", "16Gi", "100", &["info"]).unwrap().ok().unwrap();
    }

    fn a_killed_holder_takes_its_program_and_lease_along(node: &Node) {
        let mut acme = computing(node, "acme");
        let holder =
            node.processes().into_iter().find(|process| process.pid == acme.pid()).unwrap();
        assert_eq!(holder.role, Role::Cli);
        holder.send(rustix::process::Signal::KILL);
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
        assert!(!acme.runs().unwrap());
        let programs = node.processes().into_iter().filter(|process| process.role == Role::Program);
        assert_eq!(programs.count(), 0);
    }

    /// Each launch is a matrix product that was checked, so programs and ledger can be compared.
    fn nothing_is_counted_twice(node: &Node) {
        let rows = node.json(&["report", "--by", "lease"]).unwrap();
        for row in rows["rows"].as_array().unwrap() {
            let seconds = row["lease_nanoseconds"].as_u64().unwrap() / 1_000_000_000;
            assert!(seconds < 120, "{row}");
            assert!(row["end"].is_string(), "{row}");
            let reserved = u128::from(row["reserved_byte_seconds"].as_u64().unwrap());
            let lasted = u128::from(row["lease_nanoseconds"].as_u64().unwrap());
            let memory =
                if row["program"] == "gpuzone-workload info" { 16_u128 << 30 } else { 1 << 30 };
            assert_eq!(reserved, memory * lasted / 1_000_000_000, "{row}");
        }
        let finished = node.run("initech", "1Gi", "20", &["loop", "--seconds", "1"]).unwrap();
        let finished = finished.ok().unwrap();
        assert_eq!(launches(node, "initech"), finished.number("iterations").unwrap());
    }

    #[test]
    fn kills_are_survived() {
        let mut node = Node::start(&Options::default()).unwrap();
        a_killed_worker_hurts_its_own_lease(&node);
        a_killed_program_gives_its_memory_back(&node);
        a_killed_broker_is_replaced_and_workers_go_on(&node);
        a_killed_agent_finds_its_leases_again(&mut node);
        a_holder_that_ends_without_an_agent_is_noticed_later(&mut node);
        a_killed_holder_takes_its_program_and_lease_along(&node);
        nothing_is_counted_twice(&node);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}
