//! Writes the chart's generated files into its folder: `cargo xtask crds` calls it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("error: name the chart's folder");
        return ExitCode::FAILURE;
    };
    let written = || -> Result<(), Box<dyn std::error::Error>> {
        for manifest in gpuzone_crds::manifests()? {
            let file = folder.join(manifest.file);
            std::fs::create_dir_all(file.parent().unwrap_or(&folder))?;
            std::fs::write(file, manifest.text)?;
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
