//! Unknown keys are refused before anything else is looked at, with the nearest known one.

use std::path::Path;

use super::ConfigError;

const NODE_KEYS: [&str; 4] = ["state_dir", "driver_version", "gpu", "fault"];
const FAULT_KEYS: [&str; 2] = ["memset", "events"];
const MIG_KEYS: [&str; 4] = ["profile", "memory", "uuid", "compute_slices"];
const GPU_KEYS: [&str; 13] = [
    "name",
    "uuid",
    "memory",
    "compute_capability",
    "pci",
    "numa_node",
    "nvlink_peers",
    "mig_capable",
    "mig",
    "multiprocessors",
    "clock_mhz",
    "context_overhead",
    "hmm",
];

pub(super) fn check(path: &Path, text: &str) -> Result<(), ConfigError> {
    let table: toml::Table = toml::from_str(text)
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
    check_table(path, &table, &NODE_KEYS, "the node's table")?;
    if let Some(fault) = table.get("fault").and_then(toml::Value::as_table) {
        check_table(path, fault, &FAULT_KEYS, "[fault]")?;
    }
    let gpus = table.get("gpu").and_then(toml::Value::as_array);
    for (index, gpu) in gpus.into_iter().flatten().enumerate() {
        if let Some(gpu) = gpu.as_table() {
            check_table(path, gpu, &GPU_KEYS, &format!("[[gpu]] {index}"))?;
            let instances = gpu.get("mig").and_then(toml::Value::as_array);
            for instance in instances.into_iter().flatten().filter_map(toml::Value::as_table) {
                check_table(path, instance, &MIG_KEYS, &format!("mig of [[gpu]] {index}"))?;
            }
        }
    }
    Ok(())
}

fn check_table(
    path: &Path,
    table: &toml::Table,
    known: &[&'static str],
    place: &str,
) -> Result<(), ConfigError> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            place: place.to_owned(),
            nearest: nearest(key, known),
        }),
    }
}

fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(key, candidate);
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.7).then_some(*best)
}
