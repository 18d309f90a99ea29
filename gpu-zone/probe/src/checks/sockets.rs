use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Context, Outcome};
use crate::catalog as c;
use crate::finding::{Finding, Severity};
use crate::host::{self, Host};

const RUNTIMES: [&str; 9] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
    "/var/run/cri-dockerd.sock",
    "/var/lib/kubelet/device-plugins/kubelet.sock",
    "/var/lib/kubelet/pod-resources/kubelet.sock",
    "/run/systemd/private",
];

const SERVICES: [&str; 5] = [
    "/run/nvidia-persistenced/socket",
    "/run/nvidia-fabricmanager/fm_sm_ipc.socket",
    "/run/nvidia-topologyd/socket",
    "/tmp/nvidia-mps/control",
    "/tmp/nv-hostengine",
];

/// A service that has to do with GPUs, and its usual port on the loopback.
type Service = (u16, &'static str, Severity);

/// Who speaks to the first sets clocks, power and MIG; the others tell of all tenants.
const PORTS: [Service; 3] = [
    (5555, "DCGM's host engine", Severity::High),
    (9394, "HAMi's monitor", Severity::Medium),
    (9400, "an exporter of GPU metrics", Severity::Medium),
];

/// How long a connection may take; it is closed without a word.
const PATIENCE: Duration = Duration::from_millis(50);

/// The services whose port on the loopback takes connections; nothing is said to them.
fn listening(services: &[Service]) -> Vec<&Service> {
    let takes = |(port, ..): &&Service| {
        let addresses: [SocketAddr; 2] =
            [(Ipv4Addr::LOCALHOST, *port).into(), (Ipv6Addr::LOCALHOST, *port).into()];
        addresses.iter().any(|address| TcpStream::connect_timeout(address, PATIENCE).is_ok())
    };
    services.iter().filter(takes).collect()
}

/// Services of GPUs that are reached over the network, whoever's it is.
pub(super) fn loopback(context: &mut Context<'_>, outcome: &mut Outcome) {
    let ports = PORTS.map(|(port, ..)| port.to_string()).join(", ");
    (context.announce)(&format!("connects to ports {ports} of the loopback, and hangs up"));
    for (port, what, severity) in listening(&PORTS) {
        let seen = format!("port {port} of the loopback takes connections, as {what} does");
        outcome.found(Finding::new(&c::SERVICE_SOCKETS, seen).at(*severity));
    }
}

/// Connects, and hangs up at once.
fn connects(path: &Path) -> bool {
    SocketAddrUnix::new(path).is_ok_and(|address| answers(&address))
}

fn answers(address: &SocketAddrUnix) -> bool {
    [SocketType::STREAM, SocketType::SEQPACKET].into_iter().any(|kind| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = socket_with(AddressFamily::UNIX, kind, flags, None) else { return false };
        match connect(&socket, address) {
            Ok(()) => true,
            // Its queue is full: it may be spoken to, later.
            Err(rustix::io::Errno::AGAIN) => {
                std::thread::sleep(PATIENCE);
                true
            }
            Err(_) => false,
        }
    })
}

/// Sockets without a file, whose names count in the whole network namespace, and that take
/// connections.
pub(super) fn abstract_ones(host: &Host) -> Vec<String> {
    let listed = host.text("/proc/net/unix").unwrap_or_default();
    let names = listed.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, flags, .., name] = fields[..] else { return None };
        // __SO_ACCEPTCON: somebody listens.
        (flags == "00010000").then(|| name.strip_prefix('@').map(str::to_owned)).flatten()
    });
    let takes = |name: &String| {
        SocketAddrUnix::new_abstract_name(name.as_bytes()).is_ok_and(|address| answers(&address))
    };
    names.filter(takes).collect()
}

fn reachable(host: &Host, paths: &[&str]) -> Vec<String> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for path in paths {
        // /var/run is /run on most machines.
        let Ok(file) = host.path(path).canonicalize() else { continue };
        if !seen.contains(&file) && connects(&file) {
            seen.push(file);
        }
    }
    seen.iter().map(|path| host.shown(path)).collect()
}

pub(super) fn host(context: &mut Context<'_>, outcome: &mut Outcome) {
    for (entry, paths) in [(&c::HOST_SOCKETS, &RUNTIMES[..]), (&c::SERVICE_SOCKETS, &SERVICES[..])]
    {
        let found = reachable(context.host, paths);
        if !found.is_empty() {
            outcome.found(Finding::new(entry, found.join(", ")));
        }
    }
    // Another plugin's socket answers like the kubelet would be asked.
    let plugins = context.host.entries("/var/lib/kubelet/device-plugins");
    let plugins = plugins.iter().filter(|path| host::name(path) != "kubelet.sock");
    let open: Vec<String> = plugins
        .filter(|path| is_socket(path) && connects(path))
        .map(|path| context.host.shown(path))
        .collect();
    if !open.is_empty() {
        outcome.found(Finding::new(&c::HOST_SOCKETS, open.join(", ")));
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// gpu-zone's run folders that this workload could guess or learn.
fn run_folders(host: &Host) -> Vec<PathBuf> {
    let mut found = vec![host.path("/run/gpu-zone")];
    if let Some(folder) = host.variable("XDG_RUNTIME_DIR") {
        found.push(host.path(&folder).join("gpu-zone"));
    }
    if let Some(slot) = host.variable("GPUZONE_SLOT") {
        // <run folder>/slots/<lease>
        found.extend(host.path(&slot).ancestors().nth(2).map(Path::to_owned));
    }
    found.extend(
        host.entries("/tmp").into_iter().filter(|path| host::name(path).starts_with("gpu-zone-")),
    );
    let mut unique: Vec<PathBuf> = Vec::new();
    for folder in found.into_iter().filter_map(|folder| folder.canonicalize().ok()) {
        if folder.is_dir() && !unique.contains(&folder) {
            unique.push(folder);
        }
    }
    unique
}

pub(super) fn slots(context: &mut Context<'_>, outcome: &mut Outcome) {
    let host = context.host;
    let own = host.variable("GPUZONE_SLOT").and_then(|slot| host.path(&slot).canonicalize().ok());
    for folder in run_folders(host) {
        for slot in std::fs::read_dir(folder.join("slots")).into_iter().flatten().flatten() {
            let (path, socket) = (slot.path(), slot.path().join("cuda.sock"));
            if Some(&path) != own.as_ref() && connects(&socket) {
                outcome.found(Finding::new(&c::OTHER_SLOTS, host.shown(&path)));
            }
        }
        for control in ["agent.sock", "driver-zone/control.sock"] {
            let path = folder.join(control);
            if connects(&path) {
                outcome.found(Finding::new(&c::AGENT_SOCKETS, host.shown(&path)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_service_is_found_by_its_port_while_it_listens() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine without IPv6 has nobody who listens there either.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let services = [(listener.local_addr().unwrap().port(), "it", Severity::High)];
            assert_eq!(listening(&services), services.iter().collect::<Vec<_>>(), "{address}");
            drop(listener);
            assert_eq!(listening(&services), Vec::<&Service>::new(), "{address}");
        }
    }
}
