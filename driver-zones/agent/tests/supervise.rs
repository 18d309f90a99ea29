//! The agent under `gpu-zoned --supervise`, as it is in a container.

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use gpuzone_testkit::{Node, Options, Process, Role, Running};
    use rustix::process::Signal;

    const LIMIT: Duration = Duration::from_secs(30);

    fn start(node: &Node) -> Running {
        let mut command = Command::new(node.artifacts().file("gpu-zoned").unwrap());
        command.arg("--supervise").arg("--config").arg(node.configuration());
        command.arg("--state-dir").arg(node.state_dir()).arg("--run-dir").arg(node.run_dir());
        Running::start(command).unwrap()
    }

    fn answers(node: &Node) {
        node.until("an answer", LIMIT, |node| Ok(node.command(["ps"])?.status.success())).unwrap();
    }

    fn of(node: &Node, role: Role) -> Vec<Process> {
        node.processes().into_iter().filter(|process| process.role == role).collect()
    }

    #[test]
    fn an_agent_that_crashes_is_started_again_and_one_that_is_stopped_is_not() {
        let node = Node::prepare(&Options::default()).unwrap();
        let supervisor = start(&node);
        answers(&node);
        let worked = node.run("acme", "1Gi", "10", &["vector-add"]).unwrap();
        worked.ok().unwrap();
        let broker = of(&node, Role::Broker);
        let own = |process: &Process| process.pid == supervisor.pid();
        let agent = of(&node, Role::Agent).into_iter().find(|process| !own(process)).unwrap();
        assert!(agent.send(Signal::KILL));
        node.until("another agent", LIMIT, |node| {
            let agents = of(node, Role::Agent);
            Ok(agents.iter().any(|process| !own(process) && process.pid != agent.pid))
        })
        .unwrap();
        answers(&node);
        assert_eq!(of(&node, Role::Broker), broker, "what served the leases goes on");

        node.command(["stop", "--agent"]).unwrap().ok().unwrap();
        assert_eq!(supervisor.finish(LIMIT).unwrap().code(), Some(0));
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }

    #[test]
    fn a_configuration_that_is_wrong_is_not_tried_again() {
        let node = Node::prepare(&Options {
            configuration: "[tenants.default]\nmemoryy = 1\n".into(),
            ..Options::default()
        });
        let finished = start(&node.unwrap()).finish(LIMIT).unwrap();
        assert_eq!(finished.code(), Some(78));
    }
}
