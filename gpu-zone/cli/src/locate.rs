//! Where gpu-zone's own parts and the vendor's libraries are.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where gpu-zone's programs and libraries may be: next to this program, and in
/// `../lib/gpu-zone` of it.
pub(crate) fn own_folders() -> Vec<PathBuf> {
    let Ok(executable) = std::env::current_exe() else { return Vec::new() };
    let Some(folder) = executable.parent() else { return Vec::new() };
    let mut folders = vec![folder.to_owned()];
    folders.extend(folder.parent().map(|prefix| prefix.join("lib/gpu-zone")));
    folders
}

/// One of gpu-zone's own files.
pub(crate) fn own(name: &str) -> Option<PathBuf> {
    own_folders().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A shared library, where the dynamic linker would find it: the library path, then the
/// linker's cache, then the folders that distributions use. Nothing is opened as a library.
pub(crate) fn library(root: &Path, name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&folders).map(|folder| folder.join(name));
    const USUAL: [&str; 5] = [
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
        "usr/lib64",
        "usr/lib",
        "usr/lib/wsl/lib",
    ];
    let usual = USUAL.iter().map(|folder| root.join(folder).join(name));
    on_path.chain(in_cache(root, name)).chain(usual).find(|path| path.is_file())
}

/// `name` in `ld.so.cache`, whose strings end with a zero byte.
fn in_cache(root: &Path, name: &str) -> Option<PathBuf> {
    let cache = std::fs::read(root.join("etc/ld.so.cache")).ok()?;
    let wanted = format!("/{name}");
    let texts = cache.split(|byte| *byte == 0);
    let found =
        texts.filter(|text| text.starts_with(b"/")).find(|t| t.ends_with(wanted.as_bytes()));
    found.map(|text| root.join(std::ffi::OsStr::from_bytes(&text[1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_through_the_linkers_cache() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(library(root.path(), "libgpuzone_test.so.1"), None);
        let place = root.path().join("opt/driver/libgpuzone_test.so.1");
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        let cache = b"header\0libgpuzone_test.so.1\0/opt/driver/libgpuzone_test.so.1\0";
        std::fs::write(root.path().join("etc/ld.so.cache"), cache).unwrap();
        assert_eq!(library(root.path(), "libgpuzone_test.so.1"), None);
        std::fs::write(&place, "").unwrap();
        assert_eq!(library(root.path(), "libgpuzone_test.so.1"), Some(place));
    }
}
