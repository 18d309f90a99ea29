//! Takes the program that a static probe carries, which is the probe linked dynamically: see
//! `driver/carrier.rs` for why, and `docs/isolation.md` for how to build it.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-env-changed=GPUZONE_PROBE_CARRIES");
    let carried = PathBuf::from(std::env::var("OUT_DIR")?).join("carried");
    match std::env::var_os("GPUZONE_PROBE_CARRIES").filter(|path| !path.is_empty()) {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", PathBuf::from(&path).display());
            std::fs::copy(&path, carried)?;
        }
        None => std::fs::write(carried, [])?,
    }
    Ok(())
}
