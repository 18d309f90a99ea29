//! What a configuration may say, and what is answered when it says something else.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

use std::path::Path;

use gpuzone_sim_device::{Config, ConfigError, MemsetFault};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("node.toml"), text)
}

/// The message with all its sources, as a program shows it.
fn message(text: &str) -> String {
    let error = parse(text).expect_err(text);
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

fn gpu_with(line: &str) -> String {
    format!("[[gpu]]\nname = \"Simulated A\"\nmemory = \"1Gi\"\n{line}\n")
}

#[test]
fn the_built_in_node_has_two_gpus_that_say_what_they_are() {
    let config = Config::built_in().unwrap();
    assert_eq!(config.gpus.len(), 2);
    for gpu in &config.gpus {
        assert_eq!(gpu.name, "gpu-zone Simulated GPU");
        assert_eq!(gpu.memory.to_string(), "16Gi");
        assert!(!gpu.mig_capable);
    }
    assert!(config.gpus[0].nvlink_peers.contains(&1));
    assert!(config.shown_driver_version().contains("simulated"));
    assert!(config.state_dir.starts_with("/dev/shm"));
}

#[test]
fn an_identifier_stays_the_same_and_is_nobody_elses() {
    let first = Config::built_in().unwrap();
    let second = Config::built_in().unwrap();
    assert_eq!(first.gpus[0].uuid, second.gpus[0].uuid);
    assert_ne!(first.gpus[0].uuid, first.gpus[1].uuid);
    assert_eq!(first.gpus[0].uuid.to_string().as_bytes()[18], b'8');
}

#[test]
fn a_name_that_does_not_say_simulated_is_made_to() {
    let config = parse("[[gpu]]\nname = \"NVIDIA H100\"\nmemory = \"1Gi\"\n").unwrap();
    assert_eq!(config.gpus[0].name, "Simulated NVIDIA H100");
}

#[test]
fn every_setting_is_read() {
    let config = parse(
        r#"
        state_dir = "/run/sim"
        driver_version = "999.1"
        [[gpu]]
        name = "Simulated A"
        uuid = "GPU-00112233-4455-6677-8899-aabbccddeeff"
        memory = "24Gi"
        compute_capability = "8.6"
        pci = "0001:3b:00.0"
        numa_node = 1
        mig_capable = true
        multiprocessors = 4
        clock_mhz = 900
        context_overhead = "300Mi"
        hmm = true
        [[gpu]]
        name = "Simulated B"
        memory = "4Ki"
        nvlink_peers = ["GPU-00112233-4455-6677-8899-aabbccddeeff"]
        "#,
    )
    .unwrap();
    let gpu = &config.gpus[0];
    assert_eq!(gpu.compute_capability.to_string(), "8.6");
    assert_eq!(gpu.pci.to_string(), "0001:3b:00.0");
    assert_eq!((gpu.numa_node, gpu.mig_capable), (Some(1), true));
    assert_eq!((gpu.multiprocessors, gpu.clock_mhz), (4, 900));
    assert_eq!(gpu.context_overhead.to_string(), "300Mi");
    assert_eq!((gpu.hmm, config.gpus[1].hmm), (true, false));
    assert!(gpu.nvlink_peers.contains(&1), "links hold in both directions");
    assert_eq!(config.state_dir, Path::new("/run/sim"));
}

#[test]
fn wrong_configurations_are_refused_with_what_to_do() {
    let cases: Vec<(String, &str)> = vec![
        ("driver_verson = \"1\"".into(), "did you mean 'driver_version'?"),
        (gpu_with("memroy = \"1Gi\""), "unknown key 'memroy' in [[gpu]] 0; did you mean 'memory'?"),
        (gpu_with("xyzzy = 1"), "unknown key 'xyzzy' in [[gpu]] 0"),
        (String::new(), "add a [[gpu]] table"),
        ("[[gpu]]\nname = \"A\"".into(), "missing field `memory`"),
        ("[[gpu]\n".into(), "not a valid configuration"),
        ("[[gpu]]\nname = \"A\"\nmemory = \"0\"".into(), "it is zero"),
        ("[[gpu]]\nname = \"A\"\nmemory = \"-1Gi\"".into(), "negative"),
        ("[[gpu]]\nname = \"A\"\nmemory = \"2Ti\"".into(), "more than a simulated GPU's memory"),
        ("[[gpu]]\nname = \"A\"\nmemory = \"99999999999Ti\"".into(), "larger than"),
        ("[[gpu]]\nname = \"A\"\nmemory = \"5000\"".into(), "multiple of 4Ki"),
        ("[[gpu]]\nname = \"\"\nmemory = \"1Gi\"".into(), "printable ASCII"),
        (gpu_with("compute_capability = \"9\""), "write it like \"9.0\""),
        (gpu_with("multiprocessors = 0"), "it is zero"),
        (gpu_with("context_overhead = \"2Gi\""), "more than the GPU's memory"),
        (gpu_with("pci = \"1:2\""), "PCI address '1:2'"),
        (gpu_with("uuid = \"GPU-1\""), "write it as 'GPU-'"),
        (gpu_with("nvlink_peers = [7]"), "there is no GPU '7'"),
        (gpu_with("nvlink_peers = [0]"), "not its own peer"),
        (format!("state_dir = \"here\"\n{}", gpu_with("")), "not an absolute path"),
    ];
    for (text, expected) in cases {
        let message = message(&text);
        assert!(message.contains(expected), "{text}\n-> {message}");
        assert!(message.contains("node.toml"), "{message}");
    }
}

#[test]
fn two_gpus_in_one_place_and_too_many_gpus_are_refused() {
    let pci = "pci = \"0000:01:00.0\"";
    let twice = format!("{}{}", gpu_with(pci), gpu_with(pci));
    assert!(message(&twice).contains("0000:01:00.0 is the address of an earlier GPU too"));
    assert!(message(&gpu_with("").repeat(65)).contains("65 GPUs"));
    assert_eq!(parse(&gpu_with("").repeat(64)).unwrap().gpus.len(), 64);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::from_file(Path::new("/nonexistent/node.toml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/node.toml"), "{error}");
}

#[test]
fn a_fault_is_only_there_when_it_is_asked_for() {
    assert_eq!(parse(&gpu_with("")).unwrap().memset_fault, None);
    let text = format!("{}\n[fault]\nmemset = \"ignored\"\n", gpu_with(""));
    assert_eq!(parse(&text).unwrap().memset_fault, Some(MemsetFault::Ignored));
    let wrong = format!("{}\n[fault]\nmemsed = \"half\"\n", gpu_with(""));
    assert!(message(&wrong).contains("unknown key 'memsed' in [fault]; did you mean 'memset'?"));
}

#[test]
fn a_gpu_is_cut_into_instances_that_fit() {
    let config = parse(&gpu_with(
        "mig_capable = true\nmig = [{ profile = \"1g.10gb\" }, { profile = \"2g.20gb+me\" }]",
    ));
    let config = config.unwrap();
    let mig = config.gpus[0].mig.as_ref().unwrap();
    assert_eq!((mig[0].memory.to_string().as_str(), mig[0].placement), ("128Mi", (0, 1)));
    assert_eq!((mig[1].profile.as_str(), mig[1].placement), ("2g.20gb.me", (1, 2)));
    assert!(mig[0].uuid.is_mig() && mig[0].uuid != mig[1].uuid);
    let empty = parse(&gpu_with("mig_capable = true\nmig = []")).unwrap();
    assert_eq!(empty.gpus[0].mig.as_deref(), Some(&[][..]));

    let capable = |line: &str| gpu_with(&format!("mig_capable = true\n{line}"));
    let eight = ["{ profile = \"1g.10gb\" }"; 8].join(",");
    for (text, part) in [
        (gpu_with("mig = []"), "write mig_capable = true"),
        (capable("mig = [{ profile = \"huge\" }]"), "'huge' is no MIG profile"),
        (capable("mig = [{ profil = \"1g.10gb\" }]"), "did you mean 'profile'"),
        (capable(&format!("mig = [{eight}]")), "more than the GPU's 8 slices"),
        (capable("mig = [{ profile = \"1g.1gb\", memory = \"2Gi\" }]"), "more than the GPU's 8"),
        (capable("mig = [{ profile = \"1g.1gb\", compute_slices = 2 }]"), "has 1 to 1 of its"),
        (
            capable(
                "mig = [{ profile = \"1g.1gb\", uuid = \"GPU-00000000-0000-0000-0000-000000000001\" }]",
            ),
            "begins with MIG-",
        ),
    ] {
        let said = message(&text);
        assert!(said.contains(part), "{said} lacks {part}");
    }
}
