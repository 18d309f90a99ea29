//! The reviewed policies of system calls, compiled.
//!
//! A policy file holds several filters by name, as seccompiler reads them; the kernel applies
//! all of them and takes the strictest answer. A rule whose comment begins with `x86_64:` is
//! about a call that other processors do not have.

use seccompiler::{BpfProgram, TargetArch, sock_filter};
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
/// Set in the numbers of x86_64's second table of system calls, "x32" (asm/unistd.h). The kernel
/// reports both tables as one architecture, so a list of numbers to deny would miss these.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// One filter that policies cannot express, which denies calls by x32's numbers, and those of
/// the policy in the order of their names. To be applied in this order.
///
/// # Errors
/// When the file is wrong.
pub fn programs(filter: Filter) -> Result<Vec<BpfProgram>, FilterError> {
    let text = match filter {
        Filter::Worker => include_str!("../../policies/worker.json"),
        Filter::Workload => include_str!("../../policies/workload.json"),
        Filter::Broker => include_str!("../../policies/broker.json"),
        Filter::Maker => include_str!("../../policies/maker.json"),
        Filter::Machines => include_str!("../../policies/machines.json"),
    };
    compile(text)
}

/// What a broker gives up when it has begun, on top of `broker.json`.
pub(super) fn begun() -> Result<Vec<BpfProgram>, FilterError> {
    compile(include_str!("../../policies/broker-begun.json"))
}

/// The filters of a policy's text, in the order of their names.
fn compile(text: &str) -> Result<Vec<BpfProgram>, FilterError> {
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
    // A policy that denies by default denies further filters, too, and so comes last.
    Ok(other_numbers().into_iter().chain(named.into_iter().map(|(_, program)| program)).collect())
}

#[cfg(target_arch = "x86_64")]
fn other_numbers() -> Option<BpfProgram> {
    let (load, jump_from, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let step =
        |code: u32, jt, jf, k| Some(sock_filter { code: u16::try_from(code).ok()?, jt, jf, k });
    let denied = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).ok()?;
    // `seccomp_data` begins with the call's number (seccomp(2)).
    [
        step(load, 0, 0, 0),
        step(jump_from, 0, 1, X32),
        step(answer, 0, 0, denied),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .into_iter()
    .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn other_numbers() -> Option<BpfProgram> {
    None
}

fn comment(rule: &Value) -> &str {
    rule.get("comment").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_compiles_to_what_the_kernel_takes() {
        let all =
            [Filter::Worker, Filter::Workload, Filter::Broker, Filter::Maker, Filter::Machines];
        for filter in all {
            let programs = programs(filter).unwrap();
            let named = if filter == Filter::Worker { 3 } else { 2 };
            assert_eq!(programs.len(), named + usize::from(cfg!(target_arch = "x86_64")));
            // BPF_MAXINSNS, seccomp(2).
            assert!(programs.iter().all(|program| program.len() <= 4096));
        }
    }

    /// What `attempt` answers in a thread of its own under a policy: 0, or an error's number.
    fn under(filter: Filter, attempt: impl FnOnce() -> libc::c_long + Send + 'static) -> i32 {
        let programs = programs(filter).unwrap();
        let confined = std::thread::spawn(move || {
            for program in &programs {
                seccompiler::apply_filter(program).unwrap();
            }
            let failed = attempt() < 0;
            if failed { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
        });
        confined.join().unwrap()
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_call_by_its_other_number_is_denied() {
        // SAFETY: asks for nothing new, by a number that only some kernels know.
        let attempt = || unsafe { libc::syscall(libc::SYS_unshare | i64::from(X32), 0) };
        for filter in [Filter::Worker, Filter::Workload, Filter::Broker, Filter::Maker] {
            assert_eq!(under(filter, attempt), libc::EPERM);
        }
    }

    #[test]
    fn a_worker_finds_no_service_and_makes_no_sockets_for_networks() {
        let address = libc::sockaddr_un { sun_family: 1, sun_path: [0; 108] };
        // SAFETY: the address is one, and lives as long as the call.
        let connect = move || unsafe { libc::syscall(libc::SYS_connect, 0, &raw const address, 2) };
        assert_eq!(under(Filter::Worker, connect), libc::ENOENT);
        // SAFETY: makes a socket, which ends with the test.
        let socket = |family: i32| unsafe {
            libc::syscall(libc::SYS_socket, family, libc::SOCK_SEQPACKET, 0)
        };
        assert_eq!(under(Filter::Worker, move || socket(libc::AF_UNIX)), 0);
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET] {
            assert_eq!(under(Filter::Worker, move || socket(family)), libc::EPERM);
        }
    }

    #[test]
    fn what_a_worker_may_call_its_maker_may_too() {
        // A worker is its maker's child, and so has both policies.
        let named = |text: &str, name: &str| -> std::collections::BTreeSet<String> {
            let policy: Value = serde_json::from_str(text).unwrap();
            let rules = policy[name]["filter"].as_array().unwrap().clone();
            rules.iter().map(|rule| rule["syscall"].as_str().unwrap().to_owned()).collect()
        };
        let worker = named(include_str!("../../policies/worker.json"), "worker");
        let maker = named(include_str!("../../policies/maker.json"), "maker");
        assert_eq!(worker.difference(&maker).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn a_worker_asks_where_its_memory_is() {
        use std::ptr::null_mut;
        // SAFETY: null pointers: nothing is answered but whether it may be asked.
        let policy = || unsafe {
            libc::syscall(libc::SYS_get_mempolicy, null_mut::<i32>(), null_mut::<u8>(), 0, 0, 0)
        };
        assert_eq!(under(Filter::Worker, policy), 0);
    }

    #[test]
    fn a_worker_limits_and_places_nobody_but_itself() {
        use std::ptr::null_mut;
        // SAFETY: a null pointer sets nothing, and says that the old limit is not wanted.
        let limit = |pid: libc::pid_t| unsafe {
            libc::syscall(libc::SYS_prlimit64, pid, 0, null_mut::<u8>(), null_mut::<u8>())
        };
        assert_eq!(under(Filter::Worker, move || limit(0)), 0);
        assert_eq!(under(Filter::Worker, move || limit(1)), libc::EPERM);
        // SAFETY: a set without processors is refused by the kernel, whoever asks.
        let place = |pid: libc::pid_t| unsafe {
            libc::syscall(libc::SYS_sched_setaffinity, pid, 0, null_mut::<u8>())
        };
        assert_eq!(under(Filter::Worker, move || place(0)), libc::EINVAL);
        assert_eq!(under(Filter::Worker, move || place(1)), libc::EPERM);
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
