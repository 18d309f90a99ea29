//! Images that are as they should be, and images that are meant to do harm.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use gpuzone_image::{Image, ImageError, Layout, Limits};
    use serde_json::json;
    use sha2::{Digest, Sha256};
    use tar::{Builder, EntryType, Header};

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

    fn sum(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A layout in a folder, and a cache beside it.
    struct Maker(tempfile::TempDir);

    impl Maker {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("layout/blobs/sha256")).unwrap();
            let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
            fs::write(folder.path().join("layout/oci-layout"), version).unwrap();
            Self(folder)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("layout")
        }

        fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
            let digest = sum(bytes);
            fs::write(self.path().join("blobs/sha256").join(&digest), bytes).unwrap();
            json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() })
        }

        /// An image of layers, each as a tar file and as what is stored of it.
        fn image(&self, layers: &[(Vec<u8>, Vec<u8>, &str)], tag: &str) -> serde_json::Value {
            let contents: Vec<String> =
                layers.iter().map(|(tar, _, _)| format!("sha256:{}", sum(tar))).collect();
            let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
            let config = json!({
                "architecture": architecture, "os": "linux",
                "config": {
                    "Env": ["PATH=/opt/bin:/bin", "A=b=c"], "WorkingDir": "/work",
                    "Entrypoint": ["/bin/start"], "Cmd": ["-x"], "User": "1000:1000"
                },
                "rootfs": { "type": "layers", "diff_ids": contents }
            });
            let config = serde_json::to_vec(&config).unwrap();
            let config = self.blob("application/vnd.oci.image.config.v1+json", &config);
            let layers: Vec<_> = layers
                .iter()
                .map(|(_, stored, kind)| self.blob(&format!("{LAYER}{kind}"), stored))
                .collect();
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let manifest = json!({
                "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers
            });
            let mut manifest = self.blob(kind, &serde_json::to_vec(&manifest).unwrap());
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            manifest
        }

        fn index(&self, manifests: &[serde_json::Value]) {
            let index = json!({ "schemaVersion": 2, "manifests": manifests });
            fs::write(self.path().join("index.json"), index.to_string()).unwrap();
        }

        fn unpack(&self, named: &str) -> Result<Image, ImageError> {
            let layout = Layout::find(Path::new(&format!("{}{named}", self.path().display())));
            Image::unpack(&layout.unwrap(), &self.cache(), Limits::default())
        }

        fn cache(&self) -> PathBuf {
            self.0.path().join("cache")
        }
    }

    /// A tar file of entries: their kinds, names, and contents or targets.
    fn tar(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if *kind == EntryType::Directory { 0o755 } else { 0o4755 });
            header.set_uid(0);
            header.set_gid(0);
            // Written as they are: the library would refuse to make what is hostile.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                let link = &mut header.as_gnu_mut().unwrap().linkname;
                link[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, std::io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn plain(entries: &[(EntryType, &str, &str)]) -> (Vec<u8>, Vec<u8>, &'static str) {
        let tar = tar(entries);
        (tar.clone(), tar, "")
    }

    fn gzip(entries: &[(EntryType, &str, &str)]) -> (Vec<u8>, Vec<u8>, &'static str) {
        let tar = tar(entries);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).unwrap();
        let stored = encoder.finish().unwrap();
        (tar, stored, "+gzip")
    }

    /// As some programs write it: the content of the last entry is the end of the file.
    fn cut(entries: &[(EntryType, &str, &str)]) -> (Vec<u8>, Vec<u8>, &'static str) {
        let mut tar = tar(entries);
        let end = tar.iter().rposition(|byte| *byte != 0).unwrap();
        tar.truncate(end + 1);
        (tar.clone(), tar, "")
    }

    /// Two frames with one that is to be skipped between them.
    fn zstd(entries: &[(EntryType, &str, &str)]) -> (Vec<u8>, Vec<u8>, &'static str) {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let tar = tar(entries);
        let (one, two) = tar.split_at(700);
        let mut stored = compress_to_vec(one, CompressionLevel::Fastest);
        stored.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        stored.extend(compress_to_vec(two, CompressionLevel::Fastest));
        (tar, stored, "+zstd")
    }

    use EntryType::{Block, Char, Directory, Link, Regular, Symlink};

    #[test]
    fn layers_lie_on_one_another_whatever_they_are_compressed_with() {
        let maker = Maker::new();
        let image = maker.image(
            &[
                plain(&[
                    (Directory, "bin/", ""),
                    (Regular, "bin/start", "one"),
                    (Regular, "gone", "x"),
                    (Directory, "full/", ""),
                    (Regular, "full/old", "x"),
                    (Directory, "folder/deep", ""),
                    (Regular, "became-folder", "x"),
                ]),
                gzip(&[
                    (Regular, "./bin/start", "two"),
                    (Regular, ".wh.gone", ""),
                    (Regular, "full/new", "kept"),
                    (Regular, "full/.wh..wh..opq", ""),
                    (Regular, "folder/.wh.deep", ""),
                ]),
                zstd(&[
                    (Link, "bin/again", "bin/start"),
                    (Symlink, "sbin", "/bin"),
                    (Regular, "sbin/tool", "three"),
                    (Directory, "became-folder", ""),
                    (Char, "dev/null", ""),
                ]),
                cut(&[(Regular, "last", "four")]),
            ],
            "v1",
        );
        maker.index(std::slice::from_ref(&image));
        let image = maker.unpack("").unwrap();
        let read = |path: &str| fs::read_to_string(image.root.join(path)).unwrap();
        assert_eq!((read("bin/start"), read("bin/again")), ("two".to_owned(), "two".to_owned()));
        assert_eq!((read("full/new"), read("bin/tool")), ("kept".to_owned(), "three".to_owned()));
        assert_eq!(read("last"), "four");
        for gone in ["gone", "full/old", "folder/deep", "full/.wh..wh..opq", "dev/null"] {
            assert!(!image.root.join(gone).exists(), "{gone}");
        }
        assert!(image.root.join("became-folder").is_dir());
        assert!(image.root.join("proc").is_dir() && image.root.join("var/tmp").is_dir());
        // Nobody gets another user's rights from a file in an image.
        let mode = fs::metadata(image.root.join("bin/start")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn what_it_says_about_running_it_is_passed_on() {
        let maker = Maker::new();
        let layer = plain(&[(Directory, "bin", ""), (Regular, "bin/start", "")]);
        maker.index(&[maker.image(&[layer], "v1")]);
        let image = maker.unpack(":v1").unwrap();
        assert_eq!(image.entrypoint, ["/bin/start"]);
        assert_eq!(image.arguments, ["-x"]);
        assert_eq!(image.directory, Path::new("/work"));
        assert_eq!(image.user.as_deref(), Some("1000:1000"));
        assert_eq!(image.variable("A"), Some("b=c"));
        assert_eq!(image.variable("PATH"), Some("/opt/bin:/bin"));
        assert_eq!(image.find("start"), Some("/bin/start".into()));
        assert_eq!((image.find("sh"), image.find("/bin/sh")), (None, None));
    }

    #[test]
    fn an_image_is_unpacked_once_and_found_by_tag_and_digest() {
        let maker = Maker::new();
        let one = maker.image(&[plain(&[(Regular, "one", "")])], "one");
        let two = maker.image(&[plain(&[(Regular, "two", "")])], "two");
        maker.index(&[one.clone(), two]);
        let first = maker.unpack(":one").unwrap();
        assert!(first.root.join("one").exists());
        // Unpacked again, the mark would be gone.
        fs::write(first.root.join("mark"), "").unwrap();
        let digest = one["digest"].as_str().unwrap();
        let again = maker.unpack(&format!("@{digest}")).unwrap();
        assert_eq!(again, first);
        assert!(again.root.join("mark").exists());
        assert!(maker.unpack(":two").unwrap().root.join("two").exists());
        for wrong in ["", ":three", &format!("@sha256:{}", "0".repeat(64))] {
            let error = maker.unpack(wrong).unwrap_err();
            assert!(matches!(error, ImageError::NoImage { .. }), "{wrong}: {error}");
        }
        assert!(Layout::find(maker.0.path()).is_none());
    }

    #[test]
    fn a_half_unpacked_image_is_unpacked_anew() {
        let maker = Maker::new();
        let image = maker.image(&[plain(&[(Regular, "one", "")])], "one");
        maker.index(std::slice::from_ref(&image));
        let digits = image["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let partial = maker.cache().join(format!("{digits}.partial"));
        fs::create_dir_all(partial.join("left/over")).unwrap();
        let unpacked = maker.unpack("").unwrap();
        assert!(!partial.exists() && !unpacked.root.join("left").exists());
    }

    #[test]
    fn a_blob_that_was_changed_is_refused_and_nothing_is_left() {
        let changes: [fn(&Maker, &str); 3] = [
            |maker, blob| {
                let path = maker.path().join("blobs/sha256").join(blob);
                let mut bytes = fs::read(&path).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            |maker, blob| {
                let path = maker.path().join("blobs/sha256").join(blob);
                fs::File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
            },
            |maker, blob| {
                let path = maker.path().join("blobs/sha256").join(blob);
                fs::rename(&path, maker.0.path().join("elsewhere")).unwrap();
                std::os::unix::fs::symlink(maker.0.path().join("elsewhere"), path).unwrap();
            },
        ];
        for change in changes {
            let maker = Maker::new();
            let layer = plain(&[(Regular, "one", "x")]);
            let blob = sum(&layer.1);
            maker.index(&[maker.image(&[layer], "v1")]);
            change(&maker, &blob);
            maker.unpack("").unwrap_err();
            let left = fs::read_dir(maker.cache()).unwrap().flatten();
            assert!(left.into_iter().all(|entry| !entry.file_type().unwrap().is_dir()));
        }
    }

    #[test]
    fn nothing_is_written_or_removed_outside_of_the_image() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let away = outside.path().to_str().unwrap();
        let file = victim.to_str().unwrap();
        let up = "../../../../../../../../../..";
        let climbing = format!("{up}{file}");
        let attempts: Vec<Vec<(EntryType, &str, &str)>> = vec![
            vec![(Regular, &climbing, "hostile")],
            vec![(Regular, file, "hostile")],
            vec![(Symlink, "away", away), (Regular, "away/victim", "hostile")],
            vec![(Symlink, "away", away), (Regular, "away/new", "hostile")],
            vec![(Symlink, "away", away), (Regular, "away/.wh.victim", "")],
            vec![(Symlink, "away", away), (Regular, "away/.wh..wh..opq", "")],
            vec![(Symlink, "file", file), (Regular, "file", "hostile")],
            vec![(Link, "file", file), (Regular, "file", "hostile")],
            vec![(Link, "file", &climbing)],
            vec![(Symlink, "away", away), (Link, "file", "away/victim"), (Regular, "file", "h")],
            vec![(Symlink, "up", up), (Regular, "up/tmp/x", "inside")],
            vec![(Regular, ".wh...", "")],
            vec![(Regular, ".wh..", "")],
            vec![(Regular, ".wh.", "")],
            vec![(Char, "null", "")],
            vec![(Block, "etc/disk", "")],
            vec![(Regular, ".", "hostile")],
            vec![(Symlink, "loop", "loop"), (Regular, "loop/x", "")],
            vec![(Symlink, "away", away), (Directory, "away", ""), (Regular, "away/new", "inside")],
        ];
        for attempt in attempts {
            let maker = Maker::new();
            // In a layer of their own, too, for links are followed across layers.
            let (links, rest): (Vec<_>, Vec<_>) =
                attempt.iter().copied().partition(|(kind, ..)| *kind == Symlink);
            maker.index(&[maker.image(&[plain(&links), plain(&rest)], "v1")]);
            let apart = maker.unpack("");
            let maker = Maker::new();
            maker.index(&[maker.image(&[plain(&attempt)], "v1")]);
            let together = maker.unpack("");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "{attempt:?}");
            let names = fs::read_dir(outside.path()).unwrap().count();
            assert_eq!(names, 1, "{attempt:?}: {apart:?} {together:?}");
        }
    }

    #[test]
    fn an_image_that_is_larger_than_it_may_be_is_refused() {
        let maker = Maker::new();
        let many = "x".repeat(5000);
        maker.index(&[maker.image(&[gzip(&[(Regular, "a", &many), (Regular, "b", &many)])], "v1")]);
        let unpack = |limits| {
            Image::unpack(&Layout::find(&maker.path()).unwrap(), &maker.cache(), limits).map(drop)
        };
        let few = Limits { bytes: 9999, ..Limits::default() };
        assert!(unpack(few).unwrap_err().to_string().contains("too large"));
        let few = Limits { entries: 1, ..Limits::default() };
        assert!(unpack(few).unwrap_err().to_string().contains("too many"));
        unpack(Limits { bytes: 10_000, entries: 2 }).unwrap();
    }
}
