//! The probe inside a lease of ours, and with the simulated driver handed in directly.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

mod support;

use std::process::Command;

use gpuzone_testkit::{Node, Options};
use serde_json::Value;

use support::{LIMIT, PROBE, codes, direct, finish, hold, workload};

fn untested(report: &Value, check: &str) -> Vec<String> {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|found| found["name"] == check).unwrap();
    let reasons = check["untested"].as_array().unwrap();
    reasons.iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
}

#[test]
fn in_a_lease_nothing_of_the_gpu_is_found() {
    let node = Node::start(&Options::default()).unwrap();
    let mut neighbour = node.spawn("globex", "1Gi", "20", &hold("64Mi", "60")).unwrap();
    neighbour.wait_for("holding", LIMIT).unwrap();
    // The tenant before left its data where this lease's memory will be.
    node.run("globex", "256Mi", "20", &hold("128Mi", "0")).unwrap().ok().unwrap();

    let (code, report) = in_a_lease(&node, &[]);
    let found = codes(&report);
    // Driver libraries, neighbours, limits, residue, administration, peers.
    let of_the_gpu = ["GZP02", "GZP2", "GZP3", "GZP4", "GZP501", "GZP601", "GZP602"];
    for code in found.keys() {
        assert!(!of_the_gpu.iter().any(|start| code.starts_with(start)), "{report:#}");
    }
    // It was tested, and not just left out.
    for check in ["memory residue", "allocation past the limit", "allocation by two processes"] {
        assert_eq!(untested(&report, check), Vec::<String>::new(), "{report:#}");
    }
    if found.contains_key("GZP104") {
        // Workload zones are plain processes of one user here: the probe has to say so.
        assert!(found.contains_key("GZP703") && found.contains_key("GZP704"), "{report:#}");
    } else {
        let above: Vec<_> = found.iter().filter(|(_, severity)| *severity != "info").collect();
        // A zone shares the machine's network unless it is told not to: a service of GPUs that
        // runs on this machine is to be found, and nothing else.
        let here = |port| std::net::TcpStream::connect(("localhost", port)).is_ok();
        let services = [5555, 9394, 9400].into_iter().any(here);
        let expected = |code: &str| services && code == "GZP702";
        assert!(above.iter().all(|(code, _)| expected(code)), "{above:?}: {report:#}");
        assert_eq!((services, code), (!above.is_empty(), code), "{report:#}");
        let (code, report) = in_a_lease(&node, &["--no-network"]);
        let worst = report["worst"].as_str().unwrap_or("info");
        assert_eq!((worst, code), ("info", Some(0)), "{report:#}");
    }
}

/// Runs the probe in a lease; its exit code and report.
fn in_a_lease(node: &Node, options: &[&str]) -> (Option<i32>, Value) {
    let lease = ["run", "--tenant", "acme", "--memory", "128Mi", "--share", "20"];
    let arguments = lease.iter().chain(options).chain(&["--", PROBE]);
    let finished = finish(node.cli(arguments).unwrap());
    (finished.code(), finished.json().unwrap())
}

#[test]
fn with_the_driver_handed_in_the_expected_is_found() {
    let node = Node::prepare(&Options::default()).unwrap();
    // Somebody was there before, and somebody still is.
    workload(&node, &hold("256Mi", "0")).finish(LIMIT).unwrap().ok().unwrap();
    let mut now = workload(&node, &hold("64Mi", "60"));
    now.wait_for("holding", LIMIT).unwrap();

    let plain = finish(direct(&node, PROBE, &[]));
    let report = plain.json().unwrap();
    let found = codes(&report);
    for code in ["GZP201", "GZP202", "GZP301", "GZP401"] {
        assert!(found.contains_key(code), "{code}: {report:#}");
    }
    assert_eq!((report["worst"].as_str(), plain.code()), (Some("critical"), Some(3)));
    let no_limit = untested(&report, "allocation past the limit");
    assert!(no_limit.iter().any(|why| why.contains("--limit")), "{report:#}");
    assert!(plain.stderr.contains("fresh memory"), "it says what it touches: {}", plain.stderr);

    // A limit that is announced and that nothing enforces.
    let limited = finish(direct(&node, PROBE, &["--limit", "128Mi"])).json().unwrap();
    let found = codes(&limited);
    for code in ["GZP302", "GZP303", "GZP304", "GZP305", "GZP307", "GZP309"] {
        assert!(found.contains_key(code), "{code}: {limited:#}");
    }
    // The simulated driver has neither, so they get nothing.
    for code in ["GZP306", "GZP308"] {
        assert!(!found.contains_key(code), "{code}: {limited:#}");
    }
    // The memory it took is back.
    let again = codes(&finish(direct(&node, PROBE, &["--limit", "16Gi"])).json().unwrap());
    assert!(!again.contains_key("GZP302"), "16 GiB and more are not there: {again:?}");
}

#[test]
fn a_baseline_leaves_what_is_new() {
    let node = Node::prepare(&Options::default()).unwrap();
    let first = finish(direct(&node, PROBE, &["--quiet"]));
    assert_ne!(first.code(), Some(0));
    let file = node.folder().join("baseline.json");
    std::fs::write(&file, &first.stdout).unwrap();
    let path = file.to_str().unwrap();
    let accepted = finish(direct(&node, PROBE, &["--quiet", "--baseline", path]));
    assert_eq!(accepted.code(), Some(0), "{}", accepted.text());
    let news = ["--quiet", "--baseline", path, "--limit", "128Mi"];
    let worse = finish(direct(&node, PROBE, &news));
    assert_eq!(worse.code(), Some(2), "{}", worse.text());
}

#[test]
fn wrong_usage_is_64() {
    for arguments in [&["--limit", "many"][..], &["--baseline", "/nowhere"], &["--wrong"]] {
        let status = Command::new(PROBE).args(arguments).output().unwrap().status;
        assert_eq!(status.code(), Some(64), "{arguments:?}");
    }
    let help = Command::new(PROBE).arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for argument in ["--list", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let finished = Command::new(PROBE).arg(argument).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&finished.stderr), "", "{argument}");
        assert_eq!(finished.status.code(), Some(0), "{argument}");
    }
}
