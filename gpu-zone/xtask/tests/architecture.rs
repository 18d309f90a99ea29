//! The rules of `docs/architecture.md` that a machine can check.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Each crate and the crates of this workspace that it may use. An arrow that is not here
/// points up or sideways; a crate that is not here has no place in the architecture yet.
const ARROWS: &[(&str, &[&str])] = &[
    ("gpuzone-core", &[]),
    ("gpuzone-cuda-abi", &[]),
    ("gpuzone-api", &["gpuzone-core"]),
    ("gpuzone-crds", &["gpuzone-api", "gpuzone-core"]),
    ("gpuzone-wire", &["gpuzone-core", "gpuzone-cuda-abi"]),
    ("gpuzone-cuda", &["gpuzone-wire", "gpuzone-cuda-abi", "gpuzone-core"]),
    ("gpuzone-nvml-abi", &[]),
    ("gpuzone-nvml", &["gpuzone-wire", "gpuzone-nvml-abi", "gpuzone-core"]),
    ("gpuzone-ledger", &["gpuzone-core"]),
    ("gpuzone-replay", &["gpuzone-core"]),
    ("gpuzone-bench-placement", &["gpuzone-replay", "gpuzone-core"]),
    ("gpuzone-image", &[]),
    (
        "gpuzone-cli",
        &["gpuzone-api", "gpuzone-image", "gpuzone-ledger", "gpuzone-replay", "gpuzone-core"],
    ),
    ("gpuzone-probe", &["gpuzone-cuda-abi", "gpuzone-core"]),
    ("gpuzone-workloads", &["gpuzone-core"]),
    ("gpuzone-hostile", &["gpuzone-wire", "gpuzone-cuda-abi"]),
    ("gpuzone-testkit", &["gpuzone-api", "gpuzone-ledger", "gpuzone-core"]),
    ("gpuzone-xtask", &["gpuzone-testkit", "gpuzone-image", "gpuzone-ledger", "gpuzone-core"]),
    ("gpuzone-device-plugin", &["gpuzone-api", "gpuzone-crds", "gpuzone-core"]),
    ("gpuzone-scheduler-ext", &["gpuzone-api", "gpuzone-crds", "gpuzone-core"]),
    ("gpuzone-hw", &["gpuzone-core"]),
    ("gpuzone-zone", &["gpuzone-core"]),
    ("gpuzone-broker", &["gpuzone-zone", "gpuzone-wire", "gpuzone-core"]),
    ("gpuzone-worker", &["gpuzone-wire", "gpuzone-cuda-abi", "gpuzone-core"]),
    ("gpuzone-guest", &["gpuzone-wire"]),
    ("gpuzone-vm", &["gpuzone-zone", "gpuzone-wire", "gpuzone-image", "gpuzone-core"]),
    (
        "gpuzone-agent",
        &[
            "gpuzone-hw",
            "gpuzone-image",
            "gpuzone-broker",
            "gpuzone-zone",
            "gpuzone-wire",
            "gpuzone-ledger",
            "gpuzone-api",
            "gpuzone-core",
        ],
    ),
    ("gpuzone-sim-ptx", &[]),
    ("gpuzone-sim-device", &["gpuzone-core"]),
    (
        "gpuzone-sim-cuda",
        &["gpuzone-sim-device", "gpuzone-sim-ptx", "gpuzone-cuda-abi", "gpuzone-core"],
    ),
    ("gpuzone-sim-nvml", &["gpuzone-sim-device", "gpuzone-nvml-abi", "gpuzone-core"]),
    ("gpuzone-sim-vfio", &[]),
];

/// The only crates in which `unsafe` may stand.
const UNSAFE: &[&str] = &[
    "gpuzone-wire",
    "gpuzone-cuda",
    "gpuzone-nvml-abi",
    "gpuzone-nvml",
    "gpuzone-worker",
    "gpuzone-zone",
    // VFIO's calls, and NVML's about MIG: two modules.
    "gpuzone-hw",
    "gpuzone-sim-ptx",
    "gpuzone-sim-device",
    "gpuzone-sim-cuda",
    "gpuzone-sim-nvml",
    // A program's death with its holder, and signals with their sender: two modules.
    "gpuzone-cli",
    // The workload's own driver libraries and nodes, asked as a hostile program would.
    "gpuzone-probe",
    // Kernel launches of a CUDA client.
    "gpuzone-workloads",
    // A hostile tenant's view of its rings: all of it mapped, writable.
    "gpuzone-hostile",
];

/// What `core` may use from outside: nothing that does I/O, tells the time or runs tasks.
const CORE_MAY_USE: &[&str] = &["serde", "thiserror", "uuid"];

const LONGEST_FILE: usize = 500;

fn packages() -> Vec<Package> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    metadata.packages
}

fn sources(of: &Package) -> Vec<PathBuf> {
    let folder = of.manifest_path.parent().unwrap().as_std_path();
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "build.rs"].map(|part| folder.join(part)).into();
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            folders.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
            found.push(path);
        }
    }
    found
}

#[test]
fn arrows_point_down() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let packages = packages();
    let own: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(own, allowed.keys().copied().collect(), "crates of the workspace and of the table");
    for package in &packages {
        for dependency in &package.dependencies {
            let (from, to) = (package.name.as_str(), dependency.name.as_str());
            let in_tests = dependency.kind == DependencyKind::Development;
            let for_tests = to == "gpuzone-testkit" || to.starts_with("gpuzone-sim-");
            let known = allowed[from].contains(&to) || (in_tests && for_tests);
            assert!(!own.contains(to) || known, "{from} must not depend on {to}");
        }
    }
}

#[test]
fn the_table_itself_has_no_circle() {
    let mut left: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    while !left.is_empty() {
        let ground: Vec<&str> = left
            .iter()
            .filter(|(_, below)| below.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        assert!(!ground.is_empty(), "a circle among {:?}", left.keys());
        left.retain(|name, _| !ground.contains(name));
    }
}

#[test]
fn gpu_zone_never_uses_driver_zones() {
    let packages = packages();
    let folder = |name: &str| {
        let package = packages.iter().find(|package| package.name.as_str() == name).unwrap();
        package.manifest_path.as_str().contains("/driver-zones/")
    };
    for (from, below) in ARROWS {
        for to in *below {
            assert!(folder(from) || !folder(to), "{from} in gpu-zone uses {to} in driver-zones");
        }
    }
}

#[test]
fn core_is_pure() {
    let packages = packages();
    let core = packages.iter().find(|package| package.name.as_str() == "gpuzone-core").unwrap();
    for dependency in &core.dependencies {
        let allowed = CORE_MAY_USE.contains(&dependency.name.as_str());
        assert!(
            allowed || dependency.kind != DependencyKind::Normal,
            "core uses {}",
            dependency.name
        );
    }
}

#[test]
fn unsafe_lives_where_it_may() {
    for package in packages().iter().filter(|package| !UNSAFE.contains(&package.name.as_str())) {
        let product = package
            .targets
            .iter()
            .filter(|target| target.is_lib() || target.is_bin() || target.is_cdylib());
        for target in product {
            let root = fs::read_to_string(&target.src_path).unwrap();
            let forbids = root.contains("#![forbid(unsafe_code)]");
            assert!(forbids, "{} lacks #![forbid(unsafe_code)]", target.src_path);
        }
    }
}

#[test]
fn no_file_is_too_long() {
    for package in packages() {
        for path in sources(&package) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
        }
    }
}
