//! Writes the custom resources' definitions into a folder: `cargo xtask crds` calls it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("error: name the folder to write to");
        return ExitCode::FAILURE;
    };
    let written = || -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(&folder)?;
        for manifest in gpuzone_crds::manifests()? {
            std::fs::write(folder.join(manifest.file), manifest.text)?;
        }
        Ok(())
    };
    match written() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
