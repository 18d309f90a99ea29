//! Whoever is killed in the middle of a scrub: it is done again before anybody gets the memory, or
//! the GPU serves nobody until an operator clears it. And a failed scrub can be seen by whoever
//! watches.

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use gpuzone_testkit::{Node, Options, Process, Role};
    use rustix::process::Signal;

    const LIMIT: Duration = Duration::from_secs(60);

    /// All of the GPU is compared, so that a scrub takes long enough to be met.
    fn options() -> Options {
        let configuration = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n\
                             [scrub]\nsample = \"512Mi\"\n\
                             [metrics]\nlisten = \"unix:metrics.sock\"\n";
        Options { gpus: vec!["512Mi".into()], configuration: configuration.into() }
    }

    fn scrub_worker(node: &Node) -> Option<Process> {
        let workers = node.processes().into_iter();
        let mut workers = workers.filter(|process| process.role == Role::Worker);
        workers.find(|process| process.command.ends_with(" --scrub"))
    }

    /// A lease that filled its memory and ended, and its scrub, which is stopped in the middle.
    fn stopped_scrub(node: &Node) -> Process {
        for _ in 0..20 {
            let mut running = node
                .spawn("acme", "256Mi", "20", &["hold", "--memory", "200Mi", "--seconds", "60"])
                .unwrap();
            running.wait_for("hold: holding", LIMIT).unwrap();
            assert_eq!(node.kill(Role::Program), 1);
            while !node.leases().unwrap().is_empty() {
                let Some(worker) = scrub_worker(node) else { continue };
                worker.send(Signal::STOP);
                // It may have been done just before.
                if scrub_worker(node).as_ref() == Some(&worker) {
                    return worker;
                }
            }
        }
        panic!("no scrub was met in 20 attempts");
    }

    fn nothing_is_found_by_another_tenant(node: &Node) {
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
        node.run("globex", "512Mi", "100", &["leak-check"]).unwrap().ok().unwrap();
    }

    fn not_served_yet(node: &Node) {
        assert_eq!(node.leases().unwrap()[0].state(), "scrubbing");
        let refused = node.run("globex", "512Mi", "50", &["info"]).unwrap();
        assert_eq!(refused.code(), Some(75), "{}", refused.text());
    }

    #[test]
    fn an_agent_that_is_killed_in_the_middle_has_it_done_again() {
        let mut node = Node::start(&options()).unwrap();
        let worker = stopped_scrub(&node);
        not_served_yet(&node);
        node.kill_agent().unwrap();
        node.start_agent().unwrap();
        // The first one still holds the memory; it is ended for the second.
        node.until("another scrub", LIMIT, |node| {
            Ok(node.processes().iter().all(|process| process.pid != worker.pid))
        })
        .unwrap();
        nothing_is_found_by_another_tenant(&node);
        assert!(node.json(&["gpus"]).unwrap()["gpus"][0]["quarantine"].is_null());
    }

    #[test]
    fn a_broker_that_is_killed_in_the_middle_has_it_done_again() {
        let node = Node::start(&options()).unwrap();
        let worker = stopped_scrub(&node);
        assert_eq!(node.kill(Role::Broker), 1);
        worker.send(Signal::CONT);
        nothing_is_found_by_another_tenant(&node);
        assert!(node.json(&["gpus"]).unwrap()["gpus"][0]["quarantine"].is_null());
    }

    #[test]
    fn all_killed_at_once_leave_nothing_either() {
        let mut node = Node::start(&options()).unwrap();
        stopped_scrub(&node);
        node.kill_agent().unwrap();
        node.sweeper().kill_all();
        node.start_agent().unwrap();
        nothing_is_found_by_another_tenant(&node);
    }

    fn scrape(node: &Node) -> String {
        let mut stream = UnixStream::connect(node.folder().join("metrics.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }

    /// The value of the sample with these labels.
    fn sample(node: &Node, name: &str, label: &str) -> f64 {
        let page = scrape(node);
        let begins = format!("{name}{{");
        let line = page.lines().find(|line| line.starts_with(&begins) && line.contains(label));
        let line = line.unwrap_or_else(|| panic!("no {name} with {label} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_killed_scrub_worker_is_a_failed_scrub_that_everybody_sees_until_it_is_cleared() {
        let node = Node::start(&options()).unwrap();
        let (gauge, unverified) = ("gpuzone_gpu_quarantined", "reason=\"unverified\"");
        assert_eq!(sample(&node, gauge, unverified), 0.0);
        let before = sample(&node, "gpuzone_scrubs_total", "failed");
        stopped_scrub(&node).send(Signal::KILL);
        node.until("quarantine", LIMIT, |node| {
            Ok(node.json(&["gpus"])?["gpus"][0]["quarantine"].is_string())
        })
        .unwrap();
        assert_eq!(sample(&node, gauge, unverified), 1.0);
        assert_eq!(sample(&node, "gpuzone_scrubs_total", "failed"), before + 1.0);
        let refused = node.run("globex", "64Mi", "50", &["info"]).unwrap();
        assert!(refused.text().contains("in quarantine"), "{}", refused.text());
        node.json(&["gpus", "--clear-quarantine", "0"]).unwrap();
        assert_eq!(sample(&node, gauge, unverified), 0.0);
        nothing_is_found_by_another_tenant(&node);
    }
}
