//! Names the library as the driver's, and writes the functions that it does not have: those that
//! would change the device are not permitted, all others are not supported.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use gpuzone_nvml_abi::{FUNCTIONS, changes_the_device};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/api");
    let mut own = BTreeSet::new();
    for file in std::fs::read_dir("src/api")? {
        let text = std::fs::read_to_string(file?.path())?;
        let names = text.split("fn nvml").skip(1).filter_map(|rest| rest.split('(').next());
        own.extend(names.map(|name| format!("nvml{name}")));
    }
    let mut stubs = String::new();
    for name in FUNCTIONS.iter().filter(|name| !own.contains(**name)) {
        let answer = if changes_the_device(name) { "NO_PERMISSION" } else { "NOT_SUPPORTED" };
        writeln!(
            stubs,
            "// SAFETY: the name is NVML's, and the answer fits any caller.\n#[unsafe(no_mangle)]\nextern \"C\" fn {name}() -> u32 {{\n    crate::state::refuse(gpuzone_nvml_abi::{answer})\n}}"
        )?;
    }
    let out = std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    std::fs::write(Path::new(&out).join("stubs.rs"), stubs)?;
    Ok(())
}
