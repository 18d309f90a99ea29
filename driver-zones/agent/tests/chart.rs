//! The agent's configuration as the chart writes it: `cargo xtask chart` renders it and runs this.

#[cfg(test)]
mod tests {
    use gpuzone_agent::config::{Config, Overrides};
    use gpuzone_testkit::Artifacts;
    use serde_json::Value;

    #[test]
    #[ignore = "reads what `cargo xtask chart` renders"]
    fn is_one_that_it_starts_with() {
        let artifacts = Artifacts::build().unwrap();
        // Which lie beside the agent in its image, and here do not.
        let file = |name: &str| artifacts.file(name).unwrap().display().to_string();
        let beside = format!(
            "\n[shim]\nlibrary = {:?}\n[binaries]\nbroker = {:?}\nworker = {:?}\n",
            file("libgpuzone_cuda.so"),
            file("gpu-zone-broker"),
            file("gpu-zone-worker"),
        );
        let folder = std::env::var("GPUZONE_RENDERED_CHART").expect("run `cargo xtask chart`");
        let cases = std::fs::read_dir(folder).unwrap().map(|case| case.unwrap().path());
        let mut read = 0;
        for case in cases {
            let text = std::fs::read_to_string(case.join("agent-configmap.yaml")).unwrap();
            let map: Value = serde_saphyr::from_str(&text).unwrap();
            let files = tempfile::tempdir().unwrap();
            for (name, content) in map["data"].as_object().unwrap() {
                // The node's root, which is mounted there, has a driver.
                let content = content.as_str().unwrap();
                let content = content.replace("/driver/", &format!("{}/", files.path().display()));
                std::fs::write(files.path().join(name), content).unwrap();
            }
            let libraries = files.path().join("usr/lib/x86_64-linux-gnu");
            std::fs::create_dir_all(&libraries).unwrap();
            for library in ["libcuda.so.1", "libnvidia-ml.so.1"] {
                std::fs::write(libraries.join(library), "").unwrap();
            }
            let config = files.path().join("gpu-zone.toml");
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&config, text + &beside).unwrap();
            if let Err(error) = Config::load(Some(&config), &Overrides::default()) {
                panic!("{}: {error:#}", case.display());
            }
            read += 1;
        }
        assert!(read > 1, "nothing was rendered");
    }
}
