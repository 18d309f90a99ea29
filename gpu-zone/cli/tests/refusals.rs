//! Bad input: a clear error each, an exit code by kind, and no half-made lease.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use gpuzone_testkit::{Finished, Node, Options, Running};

    const QUOTA: &str = "[usage]\nflush_seconds = 0.2\n\
        [tenants.acme]\nmemory = \"4Gi\"\nleases = 1\n[tenants.globex]\n";

    fn run(node: &Node, options: &[&str]) -> Finished {
        let words = ["run"].iter().chain(options).chain(&["--", "true"]);
        node.command(words).unwrap()
    }

    #[track_caller]
    fn refused(finished: &Finished, code: i32, says: &[&str]) {
        assert_eq!(finished.code(), Some(code), "{}: {}", finished.command, finished.text());
        for part in says {
            assert!(finished.stderr.contains(part), "no '{part}' in: {}", finished.stderr);
        }
    }

    fn what_cannot_be_right_is_refused_at_once(node: &Node) {
        let long = "x".repeat(300);
        for (options, says) in [
            (&["--tenant", "acme", "--memory", "-1Gi"][..], "negative"),
            (&["--tenant", "acme", "--memory", "99999999999Ti"], "larger than any GPU"),
            (&["--tenant", "acme", "--memory", "18446744073709551616"], "larger than any GPU"),
            (&["--tenant", "acme", "--memory", "much"], "not a whole number"),
            (&["--tenant", "acme", "--share", "0"], "1 to 100"),
            (&["--tenant", "acme", "--gpus", "-1"], "1 to 64"),
            (&["--tenant", "../../etc"], "a-z, 0-9"),
            (&["--tenant", &long], "1 to 63"),
            (&["--tenant", ""], "1 to 63"),
        ] {
            refused(&run(node, options), 64, &[says]);
        }
        refused(&run(node, &["--tenant", "globex", "--memory", "0"]), 64, &["0 bytes"]);
        let json = run(node, &["--format", "json", "--tenant", "a/b"]);
        let error: serde_json::Value = serde_json::from_str(&json.stderr).unwrap();
        assert_eq!(
            (&error["error"]["kind"], &error["error"]["exit_code"]),
            (&"usage".into(), &64.into())
        );
    }

    fn quota_and_room_are_told_apart(node: &Node) {
        refused(&run(node, &["--tenant", "acme", "--memory", "5Gi"]), 77, &["4Gi granted"]);
        refused(&run(node, &["--tenant", "nobody", "--memory", "1Gi"]), 77, &["no quota"]);
        refused(&run(node, &["--tenant", "globex", "--memory", "17Gi"]), 75, &["largest"]);
        refused(&run(node, &["--tenant", "globex", "--gpus", "3"]), 75, &["needs 3 GPUs"]);
        let model = ["--tenant", "globex", "--memory", "1Gi", "--model", "H900"];
        refused(&run(node, &model), 75, &["H900", "it has:"]);

        let mut holder = node
            .spawn("acme", "1Gi", "10", &["hold", "--memory", "1Mi", "--seconds", "60"])
            .unwrap();
        holder.wait_for("holding", std::time::Duration::from_secs(60)).unwrap();
        refused(&run(node, &["--tenant", "acme", "--memory", "1Gi"]), 77, &["leases"]);
        refused(
            &run(node, &["--tenant", "globex", "--memory", "16Gi", "--gpus", "2"]),
            75,
            &["free"],
        );
        node.command(["stop", "--all"]).unwrap().ok().unwrap();
        drop(holder);
        assert_eq!(run(node, &["--tenant", "acme", "--memory", "1Gi"]).code(), Some(0));

        let report = node.json(&["report"]).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let of = |tenant: &str| rows.iter().find(|row| row["tenant"] == tenant).unwrap();
        assert_eq!(of("acme")["refused_leases"], 2);
        assert_eq!(of("nobody")["refused_leases"], 1);
    }

    /// An agent that must not start.
    fn agent(node: &Node, run: &Path, state: &Path, config: &Path) -> Finished {
        let mut command: Command = node.cli(["up", "--config"]).unwrap();
        command.arg(config).env("GPUZONE_RUN_DIR", run).env("GPUZONE_STATE_DIR", state);
        Running::start(command).unwrap().finish(std::time::Duration::from_secs(60)).unwrap()
    }

    fn agents_that_cannot_work_say_why(node: &Node) {
        let other = node.folder().join("other");
        let config = node.configuration();
        let second = agent(node, &other, &node.state_dir(), &config);
        assert!(!second.status.success(), "two agents on one state folder");
        assert!(second.stderr.contains(node.state_dir().to_str().unwrap()), "{}", second.stderr);
        assert_eq!(node.command(["ps"]).unwrap().code(), Some(0), "the first one goes on");

        let long = node.folder().join("r".repeat(100));
        let finished = agent(node, &long, &node.folder().join("s"), &config);
        refused(&finished, 78, &["107", "shorter"]);

        let write = |name: &str, text: &str| {
            let path = node.folder().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let wrong = write("wrong.so", "no library");
        let library = |name: &str, key: &str, path: &Path| {
            let text = format!(
                "[driver]\nkind = \"simulated\"\n{key} = {:?}\n",
                path.display().to_string()
            );
            write(name, &text)
        };
        for (what, config) in [
            ("wrong.so", library("1.toml", "nvml_library", &wrong)),
            (
                "no-such-library",
                library("2.toml", "nvml_library", Path::new("/no-such-library.so")),
            ),
            (
                "no-such-library",
                library("3.toml", "cuda_library", Path::new("/no-such-library.so")),
            ),
            (
                "did you mean",
                write("key.toml", "[driver]\nkind = \"simulated\"\ncuda_libary = \"x\"\n"),
            ),
            ("missing.toml", node.folder().join("missing.toml")),
        ] {
            let finished = agent(node, &other, &node.folder().join("s"), &config);
            assert!(!finished.status.success(), "{what}");
            assert!(finished.stderr.contains(what), "{what}: {}", finished.stderr);
        }
    }

    #[test]
    fn bad_input_costs_nothing() {
        let configuration = QUOTA.to_owned();
        let gpus = vec!["16Gi".to_owned(), "16Gi".to_owned()];
        let mut node = Node::start(&Options { gpus, configuration }).unwrap();
        what_cannot_be_right_is_refused_at_once(&node);
        quota_and_room_are_told_apart(&node);
        agents_that_cannot_work_say_why(&node);
        assert_eq!(node.leases().unwrap().len(), 0);
        let gpus = node.json(&["gpus"]).unwrap();
        for gpu in gpus["gpus"].as_array().unwrap() {
            assert_eq!(gpu["free_memory_bytes"], 16_u64 << 30);
        }
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }

    #[test]
    fn a_wrong_cuda_library_is_the_drivers_fault_and_leaves_no_lease() {
        let mut node = Node::prepare(&Options::default()).unwrap();
        let wrong = node.folder().join("wrong.so");
        std::fs::write(&wrong, "no library").unwrap();
        let text = std::fs::read_to_string(node.configuration()).unwrap();
        let library = format!("[driver]\ncuda_library = {:?}\n", wrong.display().to_string());
        std::fs::write(node.configuration(), text.replace("[driver]\n", &library)).unwrap();
        node.start_agent().unwrap();
        refused(&run(&node, &["--tenant", "acme", "--memory", "1Gi"]), 76, &["wrong.so"]);
        assert_eq!(node.leases().unwrap().len(), 0);
        assert_eq!(node.json(&["gpus"]).unwrap()["gpus"][0]["free_memory_bytes"], 16_u64 << 30);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}
