//! An OCI image layout of a folder's files, as an image's build leaves it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Writes it; the digest of its manifest, like `sha256:…`.
///
/// # Errors
/// When a program that it takes is not there, or a file cannot be written.
pub(super) fn write(root: &Path, layout: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    std::fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    let tar = layout.join("layer.tar");
    let status = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&tar).arg(".").status();
    ensure!(status.context("cannot run tar")?.success(), "tar did not pack the root");
    let layer = blob(layout, "application/vnd.oci.image.layer.v1.tar", &tar)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = text(layout, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
    let manifest = text(layout, MANIFEST, &manifest)?;
    let digest = manifest["digest"].as_str().context("a digest")?.to_owned();
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), index.to_string())?;
    Ok(digest)
}

fn text(layout: &Path, kind: &str, what: &Value) -> anyhow::Result<Value> {
    let file = layout.join("text.json");
    std::fs::write(&file, what.to_string())?;
    blob(layout, kind, &file)
}

/// Makes a file a blob of the layout.
fn blob(layout: &Path, kind: &str, file: &Path) -> anyhow::Result<Value> {
    let output = Command::new("sha256sum").arg(file).output().context("cannot run sha256sum")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split_whitespace().next().context("sha256sum says nothing")?;
    let size = std::fs::metadata(file)?.len();
    std::fs::rename(file, layout.join("blobs/sha256").join(digest))?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size }))
}
