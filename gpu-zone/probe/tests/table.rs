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
    let mut rows = Vec::new();
    for code in all {
        let title = code.parse::<Code>().unwrap().entry().unwrap().title;
        let [lease, alone, direct] = [&lease, &alone, &direct].map(|found| shown(found, code));
        rows.push(format!("| {code} | {title} | {lease} | {alone} | {direct} |"));
    }
    let manual = include_str!("../../../docs/isolation.md");
    for row in &rows {
        println!("{row}");
    }
    // What a host adds in the right column is its own; of a lease the manual has to be right.
    if !lease.contains_key("GZP104") {
        let in_lease = |line: &&str| {
            let cells: Vec<&str> = line.split(" | ").collect();
            line.starts_with("| GZP") && cells.len() == 5 && cells[2..4] != ["–", "–"]
        };
        let found: Vec<&str> = rows.iter().map(String::as_str).filter(in_lease).collect();
        let told: Vec<&str> = manual.lines().filter(in_lease).collect();
        let columns = |lines: Vec<&str>| -> Vec<String> {
            let four = |line: &str| line.split(" | ").take(4).collect::<Vec<_>>().join(" | ");
            lines.into_iter().map(four).collect()
        };
        let (found, told) = (columns(found), columns(told));
        // Services that run here, and what other kernels do not show, are the host's own.
        let own = |row: &&String| row.contains("GZP702");
        for row in found.iter().filter(|row| !own(row)) {
            assert!(told.contains(row), "docs/isolation.md does not say {row}");
        }
        for row in told.iter().filter(|row| !found.contains(row)) {
            let host = row.contains("GZP107") || row.contains("GZP801");
            assert!(host, "docs/isolation.md says {row}, which was not found");
        }
    }
    for code in manual.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()) {
        let of_the_gpu = ["GZP2", "GZP3", "GZP4"].iter().any(|start| code.starts_with(start));
        assert!(
            !of_the_gpu || code.len() != 6 || direct.contains_key(code),
            "{code} was not found"
        );
    }
    for code in ["GZP201", "GZP301", "GZP302", "GZP309", "GZP401"] {
        assert!(direct.contains_key(code) && !lease.contains_key(code), "{code}");
    }
}
