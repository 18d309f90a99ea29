//! A kernel or an image of a microVM: a file of the host's, or one in an OCI image that is named by its
//! digest, `oci:DIR@sha256:…#/path`.

use std::io;
use std::path::{Path, PathBuf};

use gpuzone_image::{Image, ImageError, Layout, Limits};
use gpuzone_zone::microvm::{DigestError, digest_of};

const OCI: &str = "oci:";

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    /// It is not written as it should be.
    #[error(
        "'{0}' names no file of an image: write oci:DIR@sha256:…#/path, where an image is named by its digest and by nothing else"
    )]
    Form(String),
    /// There is no layout.
    #[error("{} is no OCI image layout; name a folder with a file oci-layout in it", .0.display())]
    NoLayout(PathBuf),
    /// The image is not what its digest says, or cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image has no such file.
    #[error("the image {image} has no file {}; correct the path behind the #, or name another image", .file.display())]
    NoFile {
        /// Its digest.
        image: String,
        /// Which.
        file: PathBuf,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A path that cannot be made whole.
    #[error("cannot tell the whole path of {}; write it from / on", .0.display())]
    Path(PathBuf, #[source] io::Error),
}

/// The file that `written` means beside the configuration at `base`, and its digest where it comes from
/// an image, which is unpacked below `cache`.
pub(super) fn find(
    written: &Path,
    base: &Path,
    cache: &Path,
) -> Result<(PathBuf, Option<String>), BootFileError> {
    let Some(reference) = written.to_str().and_then(|text| text.strip_prefix(OCI)) else {
        let whole = std::path::absolute(base.join(written));
        let whole = whole.map_err(|source| BootFileError::Path(written.to_owned(), source))?;
        return Ok((whole, None));
    };
    let form = || BootFileError::Form(written.display().to_string());
    let (image, file) = reference.split_once('#').ok_or_else(form)?;
    let (folder, digest) = image.rsplit_once("@sha256:").ok_or_else(form)?;
    let hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    if folder.is_empty() || !hex || !file.starts_with('/') {
        return Err(form());
    }
    let layout = Layout::find(&base.join(image));
    let layout = layout.ok_or_else(|| BootFileError::NoLayout(base.join(folder)))?;
    let image = Image::unpack(&layout, cache, Limits::default())?;
    let missing = || BootFileError::NoFile { image: image.digest.clone(), file: file.into() };
    // A link in it may lead anywhere: what is meant is in the image.
    let root = std::fs::canonicalize(&image.root).map_err(|_| missing())?;
    let found = std::fs::canonicalize(root.join(file.trim_start_matches('/')));
    let found = found.ok().filter(|found| found.starts_with(&root) && found.is_file());
    let found = found.ok_or_else(missing)?;
    let digest = digest_of(&found)?;
    Ok((found, Some(digest)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A layout with an image that has a kernel, and a link that leads out of it; its digest.
    fn layout(folder: &Path) -> String {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let new = folder.join("new");
            fs::write(&new, bytes).unwrap();
            let digest = digest_of(&new).unwrap();
            fs::rename(&new, blobs.join(digest.strip_prefix("sha256:").unwrap())).unwrap();
            (digest, bytes.len())
        };
        let mut tar = tar::Builder::new(Vec::new());
        let header = |size| {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        tar.append_data(&mut header(6), "boot/vmlinuz", &b"kernel"[..]).unwrap();
        let mut link = header(0);
        link.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut link, "out", "/etc/hostname").unwrap();
        let (layer, layer_size) = put(&tar.into_inner().unwrap());
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [layer] }
        });
        let (config, config_size) = put(config.to_string().as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config, "size": config_size
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer, "size": layer_size
            }]
        });
        let (manifest, size) = put(manifest.to_string().as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest, "size": size
            }]
        });
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
        fs::write(folder.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        manifest
    }

    #[test]
    fn a_file_of_an_image_is_the_one_that_its_digest_means() {
        let (base, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let digest = layout(&base.path().join("guests"));
        let find = |written: &str| find(Path::new(written), base.path(), cache.path());
        let (file, sum) = find(&format!("oci:guests@{digest}#/boot/vmlinuz")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"kernel");
        assert_eq!(sum, Some(digest_of(&file).unwrap()));
        for absent in ["/boot/other", "/out", "/boot", "/../../index.json"] {
            let error = find(&format!("oci:guests@{digest}#{absent}")).unwrap_err();
            assert!(matches!(error, BootFileError::NoFile { .. }), "{absent}: {error}");
        }
        // One that is not named by a digest could be another tomorrow.
        for wrong in
            ["oci:guests#/boot/vmlinuz", "oci:guests:tag#/x", &format!("oci:guests@{digest}")]
        {
            assert!(matches!(find(wrong), Err(BootFileError::Form(_))), "{wrong}");
        }
        let (plain, none) = find("vmlinuz").unwrap();
        assert_eq!((plain, none), (base.path().join("vmlinuz"), None));
    }

    #[test]
    fn another_image_than_the_digest_says_is_refused() {
        let (base, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let guests = base.path().join("guests");
        let digest = layout(&guests);
        let find = |digest: &str| {
            find(
                Path::new(&format!("oci:guests@{digest}#/boot/vmlinuz")),
                base.path(),
                cache.path(),
            )
        };
        let other = format!("sha256:{}", "0a".repeat(32));
        assert!(matches!(find(&other), Err(BootFileError::Image(ImageError::NoImage { .. }))));
        let blob = guests.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
        let mut bytes = fs::read(&blob).unwrap();
        bytes.push(b' ');
        fs::write(&blob, bytes).unwrap();
        assert!(matches!(find(&digest), Err(BootFileError::Image(ImageError::Digest { .. }))));
    }
}
