//! The check that is carried to machines with GPUs, against the simulated one: it passes there,
//! and fails when what it looks at is wrong.

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use gpuzone_testkit::{Artifacts, Finished, Running};

    fn check(more: &[&str]) -> Finished {
        let artifacts = Artifacts::build().unwrap();
        let programs = artifacts.file("gpu-zone").unwrap().parent().unwrap();
        let mut command = Command::new(artifacts.file("gpuzone-gpu-check").unwrap());
        command.arg("--folder").arg(artifacts.root()).arg("--programs").arg(programs);
        command.arg("--kernels").arg(artifacts.kernels());
        command.args(["--driver", "simulated", "--quick", "--memory", "128Mi"]).args(more);
        Running::start(command).unwrap().finish(Duration::from_secs(120)).unwrap()
    }

    #[test]
    fn all_checks_are_passed_on_simulated_gpus() {
        let finished = check(&[]);
        assert_eq!(finished.code(), Some(0), "{}", finished.text());
        let oks = finished.stdout.lines().filter(|line| line.starts_with("ok ")).count();
        assert_eq!(oks, 5, "{}", finished.text());
        assert!(
            finished.stdout.contains("SIMULATED") && finished.stdout.contains("| many launches")
        );
    }
}
