//! Prints the table of docs/isolation.md: the probe in a lease of ours, and with the driver
//! handed in directly.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    clippy::print_stdout,
    reason = "this file is a test crate"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_probe::Code;
use gpuzone_testkit::{Node, Options};

use support::{LIMIT, PROBE, codes, direct, finish, hold, workload};

type Codes = BTreeMap<String, String>;

/// The probe in a lease as it is, and in one without the machine's network.
fn in_a_lease() -> (Codes, Codes) {
    let node = Node::start(&Options::default()).unwrap();
    let mut neighbour = node.spawn("globex", "1Gi", "20", &hold("64Mi", "60")).unwrap();
    neighbour.wait_for("holding", LIMIT).unwrap();
    node.run("globex", "256Mi", "20", &hold("128Mi", "0")).unwrap().ok().unwrap();
    let probe = |options: &[&str]| {
        let lease = ["run", "--tenant", "acme", "--memory", "128Mi", "--share", "20"];
        let arguments = lease.iter().chain(options).chain(&["--", PROBE]);
        codes(&finish(node.cli(arguments).unwrap()).json().unwrap())
    };
    let lease = probe(&[]);
    // Where the host has no namespaces there is no network to leave.
    let alone = if lease.contains_key("GZP104") { lease.clone() } else { probe(&["--no-network"]) };
    (lease, alone)
}

fn handed_in() -> Codes {
    let node = Node::prepare(&Options::default()).unwrap();
    workload(&node, &hold("256Mi", "0")).finish(LIMIT).unwrap().ok().unwrap();
    let mut neighbour = workload(&node, &hold("64Mi", "60"));
    neighbour.wait_for("holding", LIMIT).unwrap();
    let mut found = codes(&finish(direct(&node, PROBE, &[])).json().unwrap());
    // A limit that is announced, as others do, and not enforced.
    found.extend(codes(&finish(direct(&node, PROBE, &["--limit", "128Mi"])).json().unwrap()));
    found
}

#[test]
fn the_driver_handed_in_shows_what_a_lease_hides() {
    let ((lease, alone), direct) = (in_a_lease(), handed_in());
    println!("| code | finding | in a lease | in a lease, `--no-network` | driver handed in |");
    println!("| --- | --- | --- | --- | --- |");
    let all: BTreeSet<&String> = lease.keys().chain(alone.keys()).chain(direct.keys()).collect();
    let shown =
        |found: &Codes, code: &String| found.get(code).cloned().unwrap_or_else(|| "–".to_owned());
    for code in all {
        let title = code.parse::<Code>().unwrap().entry().unwrap().title;
        let [lease, alone, direct] = [&lease, &alone, &direct].map(|found| shown(found, code));
        println!("| {code} | {title} | {lease} | {alone} | {direct} |");
    }
    for code in ["GZP201", "GZP301", "GZP302", "GZP309", "GZP401"] {
        assert!(direct.contains_key(code) && !lease.contains_key(code), "{code}");
    }
}
