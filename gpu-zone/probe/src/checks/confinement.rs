use super::{Context, Outcome, sockets};
use crate::Severity;
use crate::catalog as c;
use crate::finding::Finding;
use crate::host::Host;

/// Capabilities that bear on GPUs and neighbours, by number, and how bad each is.
const CAPABILITIES: [(u32, &str, Severity); 9] = [
    (1, "DAC_OVERRIDE", Severity::Medium),
    (2, "DAC_READ_SEARCH", Severity::High),
    (16, "SYS_MODULE", Severity::Critical),
    (17, "SYS_RAWIO", Severity::Critical),
    (19, "SYS_PTRACE", Severity::High),
    (21, "SYS_ADMIN", Severity::Critical),
    (27, "MKNOD", Severity::Low),
    (38, "PERFMON", Severity::Medium),
    (39, "BPF", Severity::High),
];

/// The kernel's numbers of its first namespaces (include/linux/proc_ns.h), which it never gives
/// to another. Mount and network namespaces have none before Linux 6.18.
const FIRST_IPC: &str = "ipc:[4026531839]";
const FIRST_USER: &str = "user:[4026531837]";
const FIRST_PID: &str = "pid:[4026531836]";
const FIRST_NETWORK: &str = "net:[4026531833]";

fn field(status: &str, name: &str) -> Option<String> {
    let line = status.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').nth(1)?.trim().to_owned())
}

/// Whether the processes of the machine are what `/proc` shows.
pub(super) fn sees_all_processes(host: &Host) -> bool {
    is_in(host, FIRST_PID)
}

/// Whether shared memory is the machine's.
pub(super) fn shares_memory(host: &Host) -> bool {
    is_in(host, FIRST_IPC)
}

fn is_in(host: &Host, namespace: &str) -> bool {
    let kind = namespace.split(':').next().unwrap_or_default();
    let link = std::fs::read_link(host.path(&format!("/proc/self/ns/{kind}")));
    link.is_ok_and(|link| link.as_os_str() == namespace)
}

pub(super) fn privileges(context: &mut Context<'_>, outcome: &mut Outcome) {
    let Some(status) = context.host.text("/proc/self/status") else {
        return outcome.untested("/proc/self/status cannot be read");
    };
    let held = field(&status, "CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok());
    let held = held.unwrap_or(0);
    let of_machine = is_in(context.host, FIRST_USER);
    let found: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| held & (1 << bit) != 0).collect();
    if let Some(worst) = found.iter().map(|(.., severity)| *severity).max() {
        let names: Vec<&str> = found.iter().map(|(_, name, _)| *name).collect();
        let whose = if of_machine { "the machine's" } else { "its own" };
        let seen = format!("{} in {whose} user namespace", names.join(", "));
        // In a namespace of its own they reach what the workload owns anyway.
        let severity = if of_machine { worst } else { Severity::Low };
        outcome.found(Finding::new(&c::CAPABILITIES, seen).at(severity));
    }
    if field(&status, "Seccomp").as_deref() != Some("2") {
        outcome.found(Finding::new(&c::NO_SECCOMP, "/proc/self/status says Seccomp: not 2"));
    }
    if field(&status, "NoNewPrivs").as_deref() != Some("1") {
        outcome.found(Finding::new(&c::NEW_PRIVILEGES, "/proc/self/status says NoNewPrivs: not 1"));
    }
}

pub(super) fn namespaces(context: &mut Context<'_>, outcome: &mut Outcome) {
    let host = context.host;
    for (entry, first) in [(&c::HOST_PIDS, FIRST_PID), (&c::HOST_IPC, FIRST_IPC)] {
        if is_in(host, first) {
            outcome.found(Finding::new(entry, first));
        }
    }
    if is_in(host, FIRST_NETWORK) {
        outcome.found(network(host));
    }
    let status = host.text("/proc/self/status").unwrap_or_default();
    let user =
        field(&status, "Uid").and_then(|ids| ids.split_whitespace().nth(1).map(str::to_owned));
    if is_in(host, FIRST_USER) && user.as_deref() == Some("0") {
        outcome.found(Finding::new(&c::HOST_USER, "effective user id 0"));
    }
}

/// The machine's network is most often meant, and what a program may ask of other machines it may
/// ask of this one. Its sockets without a file hardly are: those are judged here, and services
/// that have to do with GPUs by [`sockets::loopback`].
fn network(host: &Host) -> Finding {
    let open = sockets::abstract_ones(host);
    // Such a socket starts programs as the machine's root (CVE-2020-15257).
    let runtime = open.iter().find(|name| name.contains("containerd-shim"));
    if let Some(name) = runtime {
        return Finding::new(&c::HOST_NETWORK, format!("the container runtime's socket @{name}"))
            .at(Severity::Critical);
    }
    match open.first() {
        Some(name) => {
            let seen = format!("{} socket(s) without a file, @{name} among them", open.len());
            Finding::new(&c::HOST_NETWORK, seen)
        }
        None => {
            let seen = "its ports; no socket without a file could be reached";
            Finding::new(&c::HOST_NETWORK, seen).at(Severity::Info)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_by_whole_names() {
        let status =
            "CapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(field(status, "Seccomp").as_deref(), Some("2"));
        assert_eq!(field(status, "CapEff").as_deref(), Some("00000000a80425fb"));
        assert_eq!(field(status, "Cap"), None);
    }
}
