use std::path::Path;

use gpuzone_core::MemoryBytes;

use super::file::{File, parse};
use super::*;

fn read(text: &str) -> Result<File, String> {
    parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn reads_what_the_manual_shows() {
    let file = read(
        r#"
        [node]
        state_dir = "state"
        [driver]
        kind = "simulated"
        simulated_config = "node.toml"
        [usage]
        flush_seconds = 0.5
        [tenants.acme]
        memory = "24Gi"
        share = 150
        latency_critical = true
        [tenants.default]
        leases = 1
        memory = 1073741824
        [worker]
        sessions = 3
        "#,
    )
    .unwrap();
    assert_eq!(file.driver.kind, Some(DriverKind::Simulated));
    assert_eq!(file.usage.flush, Duration::from_millis(500));
    assert_eq!(file.worker, Caps { sessions: 3, ..Caps::default() });
    let quotas = Quotas { default: file.default, tenants: file.tenants };
    let acme = quotas.of(&"acme".parse().unwrap()).unwrap();
    assert_eq!((acme.memory, acme.share), (Some(MemoryBytes::gib(24)), Some(150)));
    let other = quotas.of(&"other".parse().unwrap()).unwrap();
    assert!(acme.latency_critical && !other.latency_critical);
    assert_eq!((other.memory, other.leases), (Some(MemoryBytes::gib(1)), Some(1)));
}

#[test]
fn metrics_are_served_where_the_file_says_and_nowhere_else() {
    let listen = |text: &str| read(text).map(|file| file.metrics.listen);
    assert_eq!(listen(""), Ok(None));
    assert_eq!(listen("[metrics]"), Ok(None));
    let tcp = Some("127.0.0.1:9400".parse().unwrap());
    assert_eq!(listen("[metrics]\nlisten = \"127.0.0.1:9400\""), Ok(tcp));
    let wrong = listen("[metrics]\nlisten = \"9400\"").unwrap_err();
    assert!(wrong.contains("line 2") && wrong.contains("nowhere to listen"), "{wrong}");
}

#[test]
fn the_example_is_a_configuration() {
    let file = read(include_str!("../../agent.example.toml")).unwrap();
    assert_eq!(file.driver.kind, Some(DriverKind::Nvidia));
    assert_eq!((file.worker, file.usage.flush), (Caps::default(), Duration::from_secs(5)));
    assert_eq!(file.tenants.len(), 1);
}

#[test]
fn an_empty_file_grants_nobody_anything() {
    let file = read("").unwrap();
    assert_eq!(file, File::default());
    let quotas = Quotas { default: file.default, tenants: file.tenants };
    assert_eq!(quotas.of(&"acme".parse().unwrap()), None);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    let cases = [
        ("[nodes]\n", "agent.toml, line 1: there is no key 'nodes'; did you mean 'node'?"),
        (
            "[driver]\nkind = \"nvidia\"\ncuda_libary = \"x\"\n",
            "agent.toml, line 3: there is no key 'cuda_libary'; did you mean 'cuda_library'?",
        ),
        (
            "[shim]\nlib = \"x\"\n",
            "agent.toml, line 2: there is no key 'lib'; did you mean 'library'?",
        ),
        (
            "\n[tenants.acme]\nmemroy = 1\n",
            "agent.toml, line 3: there is no key 'memroy'; did you mean 'memory'?",
        ),
        (
            "[worker]\nmodule_byte = 1\n",
            "agent.toml, line 2: there is no key 'module_byte'; did you mean 'module_bytes'?",
        ),
    ];
    for (text, said) in cases {
        assert_eq!(read(text).unwrap_err(), said);
    }
}

#[test]
fn a_wrong_value_is_named_with_its_line() {
    let cases = [
        ("[driver]\nkind = \"amd\"\n", "line 2"),
        ("[usage]\nflush_seconds = 0\n", "from 0.05 to 3600"),
        ("[usage]\nflush_seconds = nan\n", "from 0.05 to 3600"),
        ("[tenants.\"A/B\"]\n", "use only a-z, 0-9 and '-'"),
        ("[tenants.acme]\nmemory = \"8GB\"\n", "unknown unit 'GB'"),
        ("[tenants.acme]\nmemory = -1\n", "negative"),
        ("[tenants.acme]\nmemory = \"9Ei\"\n", "line 2"),
        ("[tenants.acme]\nshare = -1\n", "line 2"),
        ("[tenants]\ndefault = 3\n", "line 2"),
        ("[node\n", "line 1"),
    ];
    for (text, part) in cases {
        let said = read(text).unwrap_err();
        assert!(said.contains(part) && said.starts_with("agent.toml"), "{text}: {said}");
    }
}

#[test]
fn a_driver_must_be_chosen() {
    let error = Config::load(None, &Overrides { open: true, ..Overrides::default() });
    assert!(matches!(error, Err(ConfigError::NoDriver)));
}

#[test]
fn what_is_missing_says_where_it_was_looked_for() {
    let search = libraries::Search::beside(Path::new("/opt/bin"), vec!["/nowhere".into()]);
    let missing = search.cuda(DriverKind::Nvidia, None).unwrap_err().to_string();
    assert!(missing.contains("looked for /nowhere/libcuda.so.1; name it"), "{missing}");
    let missing = search.worker(None).unwrap_err().to_string();
    assert!(missing.contains("/opt/lib/gpu-zone/gpu-zone-worker"), "{missing}");
    let named = search.shim(Some("/else/where.so".into())).unwrap_err().to_string();
    assert!(named.contains("looked for /else/where.so;"), "{named}");
}

#[test]
fn a_missing_file_is_an_error() {
    let error = Config::load(Some(Path::new("/nowhere/agent.toml")), &Overrides::default());
    assert!(matches!(error, Err(ConfigError::Read { .. })));
}
