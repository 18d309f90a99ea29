//! The reviewed policies of system calls, compiled.
//!
//! A policy file holds several filters by name, as seccompiler reads them; the kernel applies
//! all of them and takes the strictest answer. A rule whose comment begins with `x86_64:` is
//! about a call that other processors do not have.

use seccompiler::{BpfProgram, TargetArch};
use serde_json::Value;

use crate::sandbox::spec::Filter;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It names something that does not exist.
    #[error("{0}")]
    Compile(String),
    /// There are no policies for this processor.
    #[error("there is none for processors of the kind {}", std::env::consts::ARCH)]
    Processor,
}

const ONLY: &str = "x86_64:";

/// The filters of a policy, in the order of their names.
///
/// # Errors
/// When the file is wrong.
pub fn programs(filter: Filter) -> Result<Vec<BpfProgram>, FilterError> {
    let text = match filter {
        Filter::Worker => include_str!("../../policies/worker.json"),
        Filter::Workload => include_str!("../../policies/workload.json"),
    };
    compile(text)
}

/// The filters of a policy's text, in the order of their names.
pub(super) fn compile(text: &str) -> Result<Vec<BpfProgram>, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| FilterError::Processor)?;
    let mut policy: Value = serde_json::from_str(text)?;
    if !matches!(arch, TargetArch::x86_64) {
        for filter in policy.as_object_mut().into_iter().flat_map(|filters| filters.values_mut()) {
            if let Some(rules) = filter.get_mut("filter").and_then(Value::as_array_mut) {
                rules.retain(|rule| !comment(rule).starts_with(ONLY));
            }
        }
    }
    let text = serde_json::to_vec(&policy)?;
    let compiled = seccompiler::compile_from_json(text.as_slice(), arch)
        .map_err(|error| FilterError::Compile(error.to_string()))?;
    let mut named: Vec<(String, BpfProgram)> = compiled.into_iter().collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(named.into_iter().map(|(_, program)| program).collect())
}

fn comment(rule: &Value) -> &str {
    rule.get("comment").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_compiles_to_what_the_kernel_takes() {
        for filter in [Filter::Worker, Filter::Workload] {
            let programs = programs(filter).unwrap();
            assert_eq!(programs.len(), 2);
            // BPF_MAXINSNS, seccomp(2).
            assert!(programs.iter().all(|program| program.len() <= 4096));
        }
    }

    #[test]
    fn the_workers_policy_denies_by_default_and_the_workloads_names_what_it_denies() {
        let read = |text| serde_json::from_str::<Value>(text).unwrap();
        let worker = read(include_str!("../../policies/worker.json"));
        assert_eq!(worker["worker"]["mismatch_action"]["errno"], libc::EPERM);
        let names = |policy: &Value, filter: &str| -> Vec<String> {
            let rules = policy[filter]["filter"].as_array().unwrap().iter();
            rules.map(|rule| rule["syscall"].as_str().unwrap().to_owned()).collect()
        };
        let allowed = names(&worker, "worker");
        let denied = names(&read(include_str!("../../policies/workload.json")), "denied");
        for call in ["ptrace", "mount", "unshare", "setns", "bpf", "open_by_handle_at"] {
            assert!(!allowed.iter().any(|name| name == call), "{call}");
            assert!(denied.iter().any(|name| name == call), "{call}");
        }
    }
}
