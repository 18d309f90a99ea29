//! What the documents say of codes and tests is there.
#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this file is a test crate"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gpuzone_probe::Code;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// Names of functions in the sources of a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let names = text.split("fn ").skip(1).map(|rest| {
                rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
            });
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn each_test_that_the_threat_model_names_is_there() {
    let mut there = BTreeSet::new();
    for folder in ["gpu-zone", "driver-zones", "device-plugin", "scheduler-ext"] {
        functions(&root().join(folder), &mut there);
    }
    let text = document("threat-model.md");
    let claims = text.split("## Claims").nth(1).unwrap();
    let quoted = claims.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted
        .filter(|name| name.contains('_'))
        .filter(|name| {
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(there.contains(name), "there is no test '{name}' any more");
    }
}

#[test]
fn each_code_in_the_documents_is_in_the_catalog() {
    for name in ["isolation.md", "threat-model.md"] {
        let text = document(name);
        for rest in text.split("GZP").skip(1) {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            // GZP1xx stands for all that begin so.
            if digits.len() == 3 {
                assert!(format!("GZP{digits}").parse::<Code>().is_ok(), "{name}: GZP{digits}");
            }
        }
    }
}
