//! A program of an image uses its lease like any other, and sees nothing of the host's.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use gpuzone_testkit::{Node, Options, Running};
    use serde_json::json;
    use sha2::{Digest, Sha256};

    fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> serde_json::Value {
        let digest: String =
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(layout.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    /// A program with the libraries that it needs, at the paths where it looks for them.
    fn copy(program: &Path, to: &Path, root: &Path) {
        let place = |path: &Path| root.join(path.strip_prefix("/").unwrap());
        let put = |from: &Path, to: &Path| {
            fs::create_dir_all(place(to).parent().unwrap()).unwrap();
            fs::copy(from, place(to)).unwrap();
        };
        put(program, to);
        let said = Command::new("ldd").arg(program).output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        for path in said.split_whitespace().filter(|word| word.starts_with('/')) {
            put(Path::new(path), Path::new(path));
        }
    }

    /// An image with the tests' workload and a shell.
    fn layout(node: &Node) -> PathBuf {
        let root = node.folder().join("image-root");
        copy(node.artifacts().file("gpuzone-workload").unwrap(), "/opt/workload".as_ref(), &root);
        copy("/bin/sh".as_ref(), "/bin/sh".as_ref(), &root);
        copy("/bin/ls".as_ref(), "/bin/ls".as_ref(), &root);
        // Not where the checkout has them: that may be in /tmp, which each zone has its own of.
        let kernel = node.artifacts().kernels().join("vector_add.ptx");
        fs::copy(kernel, root.join("opt/vector_add.ptx")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/only-here"), "").unwrap();
        let tar = node.folder().join("layer.tar");
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.unwrap().success());
        let layout = node.folder().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layer = fs::read(tar).unwrap();
        let layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &layer);
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Env": ["PATH=/opt:/bin", "FROM_IMAGE=yes"], "Cmd": ["sh", "-c", "ls /etc; echo $FROM_IMAGE"] },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] }
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = blob(&layout, kind, &serde_json::to_vec(&config).unwrap());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]
        });
        let mut manifest = blob(&layout, kind, &serde_json::to_vec(&manifest).unwrap());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        layout
    }

    #[test]
    fn a_program_of_an_image_runs_where_zones_can_be_made() {
        if !gpuzone_testkit::hostile::host_has_zones().unwrap() {
            println!("skipped: a_program_of_an_image_runs_where_zones_can_be_made: no zones here");
            return;
        }
        let node = Node::start(&Options::default()).unwrap();
        let layout = layout(&node);
        let run = |named: &str, command: &[&str]| {
            let rootfs = format!("{}{named}", layout.display());
            let lease = ["run", "--tenant", "acme", "--memory", "1Gi", "--rootfs", &rootfs];
            let words = lease.iter().chain(command);
            let mut command = node.cli(words).unwrap();
            command.env("GPUZONE_KERNELS", "/opt");
            let running = Running::start(command).unwrap();
            running.finish(std::time::Duration::from_secs(60)).unwrap()
        };
        let usual = run(":v1", &[]);
        assert_eq!(usual.code(), Some(0), "{}", usual.text());
        assert_eq!(usual.stdout, "only-here\nyes\n");
        let computed = run("", &["--", "workload", "vector-add"]);
        assert_eq!(computed.code(), Some(0), "{}", computed.text());
        assert!(computed.stdout.contains(": ok"), "{}", computed.text());
        let absent = run("", &["--", "no-such-program"]);
        assert!(absent.text().contains("in the image"), "{}", absent.text());
        let unknown = run(":v2", &[]);
        assert!(unknown.text().contains("holds no image 'v2'"), "{}", unknown.text());
        node.remove().unwrap();
    }
}
