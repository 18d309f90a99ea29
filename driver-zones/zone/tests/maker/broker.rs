//! A broker that was taken over: a hostile program in its sandbox, with its line to the maker.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use gpuzone_zone::maker::{Maker, inherited};
use gpuzone_zone::sandbox::{BrokerSandbox, Launch, MadeBy, Sandboxed, confine_broker};
use gpuzone_zone::{Exit, Process};

use crate::support::{host_has, launcher, null, spec, status};
use crate::zone::{DriverZone, NEEDED, files};

/// Where the hostile program finds what its test says.
const SECRET: &str = "GZ_SECRET";
const OTHER: &str = "GZ_OTHER";
const FOLDER: &str = "GZ_FOLDER";

/// Runs this test's program as a broker, up to the test of that name; what it said.
async fn run(zone: &DriverZone, test: &str, environment: BTreeMap<String, String>) -> String {
    let (process, line) = zone.maker();
    let program = std::env::current_exe().unwrap();
    let view = BrokerSandbox {
        zone: "driver-zone".to_owned(),
        program: program.clone(),
        write: vec![zone.folder.path().to_owned()],
        closed: vec![zone.records()],
        users: spec().users,
        ..BrokerSandbox::default()
    };
    let mut out = tempfile::tempfile().unwrap();
    let arguments = ["--ignored", "--exact", "--nocapture", test];
    let launch = Launch {
        program,
        arguments: arguments.iter().map(Into::into).collect(),
        environment: environment
            .into_iter()
            .chain([("RUST_TEST_THREADS".into(), "1".into())])
            .collect(),
        stdin: null(),
        stdout: out.try_clone().unwrap().into(),
        stderr: out.try_clone().unwrap().into(),
        inherit: vec![line],
    };
    let (broker, _) =
        Sandboxed { launcher: launcher(), spec: view.spec(), launch }.start().unwrap();
    let exit = broker.exited().await.unwrap();
    let mut said = String::new();
    out.rewind().unwrap();
    out.read_to_string(&mut said).unwrap();
    assert_eq!(exit, Exit::Code(0), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(ended(&process).await, Exit::Code(0), "{}", zone.log());
    assert_eq!(zone.listing(), Vec::<String>::new());
    said
}

async fn ended(process: &Process) -> Exit {
    process.exited().await.unwrap()
}

fn environment(of: &[(&str, &Path)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, path)| ((*name).to_owned(), path.display().to_string())).collect()
}

fn named(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap().into()
}

/// A system call with small arguments: what the kernel says to it.
fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> Result<libc::c_long, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: arguments are numbers and null pointers, and strings that outlive the call; none lets
    // the kernel write to this process's memory.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        done => Ok(done),
    }
}

/// What is to be denied by the list of calls: EPERM, whatever the arguments.
#[rustfmt::skip]
fn unlisted() -> Vec<(&'static str, libc::c_long, [libc::c_long; 6])> {
    let (user, all) = (libc::c_long::from(libc::CLONE_NEWUSER), libc::c_long::from(libc::CLONE_NEWNS));
    let child = libc::c_long::from(libc::SIGCHLD);
    vec![
        ("mount", libc::SYS_mount, [0; 6]),
        ("umount2", libc::SYS_umount2, [0; 6]),
        ("fsopen", libc::SYS_fsopen, [0; 6]),
        ("fsmount", libc::SYS_fsmount, [0; 6]),
        ("move_mount", libc::SYS_move_mount, [0; 6]),
        ("open_tree", libc::SYS_open_tree, [-100, 0, 0, 0, 0, 0]),
        ("mount_setattr", libc::SYS_mount_setattr, [0; 6]),
        ("pivot_root", libc::SYS_pivot_root, [0; 6]),
        ("chroot", libc::SYS_chroot, [0; 6]),
        ("unshare users", libc::SYS_unshare, [user, 0, 0, 0, 0, 0]),
        ("unshare mounts", libc::SYS_unshare, [all, 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [3, 0, 0, 0, 0, 0]),
        ("fork", libc::SYS_clone, [child, 0, 0, 0, 0, 0]),
        ("clone users", libc::SYS_clone, [user | child, 0, 0, 0, 0, 0]),
        ("setresuid", libc::SYS_setresuid, [0; 6]),
        ("setresgid", libc::SYS_setresgid, [0; 6]),
        ("setgroups", libc::SYS_setgroups, [0; 6]),
        ("capset", libc::SYS_capset, [0; 6]),
        ("ptrace", libc::SYS_ptrace, [16, 1, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [1, 1, 0, 0, 0, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [3, 0, 0, 0, 0, 0]),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [3, 9, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("execveat", libc::SYS_execveat, [0; 6]),
        ("seccomp", libc::SYS_seccomp, [1, 0, 0, 0, 0, 0]),
        ("prctl dumpable", libc::SYS_prctl, [4, 1, 0, 0, 0, 0]),
        ("prctl ambient", libc::SYS_prctl, [47, 2, 21, 0, 0, 0]),
        ("prctl keepcaps", libc::SYS_prctl, [8, 1, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        ("keyctl", libc::SYS_keyctl, [0; 6]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 6]),
        ("mknodat", libc::SYS_mknodat, [-100, 0, 0o20_600, 0, 0, 0]),
        ("symlinkat", libc::SYS_symlinkat, [0, -100, 0, 0, 0, 0]),
        ("linkat", libc::SYS_linkat, [-100, 0, -100, 0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0; 6]),
        ("kexec_load", libc::SYS_kexec_load, [0; 6]),
        ("clock_settime", libc::SYS_clock_settime, [0; 6]),
        ("sethostname", libc::SYS_sethostname, [0; 6]),
        ("prlimit64 of another", libc::SYS_prlimit64, [1, 7, 0, 0, 0, 0]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]),
        ("a call that there is not", 1000, [0; 6]),
        ("socket INET", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
        ("socket INET6", libc::SYS_socket, [10, 2, 0, 0, 0, 0]),
        ("socket NETLINK", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("socket PACKET", libc::SYS_socket, [17, 3, 0, 0, 0, 0]),
        ("socket ALG", libc::SYS_socket, [38, 5, 0, 0, 0, 0]),
        ("socket VSOCK", libc::SYS_socket, [40, 1, 0, 0, 0, 0]),
    ]
}

/// Runs in a broker's sandbox.
#[test]
#[ignore = "started by a_broker_that_was_taken_over_can_do_nothing"]
fn hostile_calls() {
    // As a broker does when it begins.
    assert_eq!(confine_broker(MadeBy::Maker).unwrap(), None);
    for (name, number, arguments) in unlisted() {
        assert_eq!(call(number, arguments), Err(libc::EPERM), "{name}");
    }
    let path = |path: &str| CString::new(path).unwrap();
    let shell = path("/bin/sh");
    let execve = [shell.as_ptr() as libc::c_long, 0, 0, 0, 0, 0];
    assert_eq!(call(libc::SYS_execve, execve), Err(libc::EPERM), "execve of something");
    let name = CString::new(named(OTHER).to_str().unwrap()).unwrap();
    assert!(connect_abstract(name.as_bytes()).is_err(), "an abstract socket of the host's");
}

fn connect_abstract(name: &[u8]) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?).map(drop)
}

/// Runs in a broker's sandbox.
#[test]
#[ignore = "started by a_broker_that_was_taken_over_sees_its_own_files_only"]
fn hostile_files() {
    assert_eq!(confine_broker(MadeBy::Maker).unwrap(), None);
    let folder = named(FOLDER);
    let secret = named(SECRET);
    let mut closed: Vec<PathBuf> = vec![secret.clone()];
    closed.push(folder.join("../../../..").join(secret.strip_prefix("/").unwrap()));
    for path in [
        "/etc/passwd",
        "/etc/shadow",
        "/home",
        "/root",
        "/var",
        "/run",
        "/sys",
        "/proc/self",
        "/proc/1/environ",
        "/proc/sysrq-trigger",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/sda",
        "/dev/nvidia0",
        "/usr/bin/sleep",
        "/sys/fs/cgroup/cgroup.procs",
    ] {
        closed.push(path.into());
    }
    for path in closed {
        assert!(File::open(&path).is_err(), "{} is read", path.display());
    }
    std::fs::write(folder.join("own"), "x").unwrap();
    assert_eq!(std::fs::read(folder.join("own")).unwrap(), b"x");
    let records = folder.join("zones");
    assert!(std::fs::read_dir(&records).is_ok(), "to be read");
    for attempt in [
        std::fs::write(records.join("forged.zone"), "{}"),
        std::fs::rename(&records, folder.join("elsewhere")),
        std::fs::remove_dir(&records),
        std::fs::hard_link(folder.join("own"), records.join("linked.zone")),
        std::fs::rename(folder.join("own"), records.join("moved.zone")),
        std::os::unix::fs::symlink("/", folder.join("link")),
        std::fs::write("/x", "x"),
        std::fs::write("/usr/lib/x", "x"),
        std::fs::write("/dev/shm/../x", "x"),
    ] {
        assert!(attempt.is_err());
    }
}

/// Runs in a broker's sandbox.
#[test]
#[ignore = "started by a_broker_without_rights_has_workers_made_and_ended"]
fn makes_workers() {
    let line = inherited().unwrap();
    assert_eq!(confine_broker(MadeBy::Maker).unwrap(), None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let maker = Maker::connect(line).await.unwrap();
        let worker = maker.make("lease-1", "worker", files()).await.unwrap();
        worker.start().await.unwrap();
        assert!(!worker.is_gone().unwrap());
        // By its number, for there is nothing else here to signal it by.
        let pid = libc::c_long::from(worker.process().pid);
        assert_eq!(call(libc::SYS_kill, [pid, 9, 0, 0, 0, 0]), Err(libc::EPERM));
        assert_eq!(worker.end().await.unwrap(), Exit::Signal(9));
        maker.close().await;
    });
}

#[tokio::test]
async fn a_broker_that_was_taken_over_can_do_nothing() {
    if !host_has("a_broker_that_was_taken_over_can_do_nothing", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let name = format!("gpu-zone-test-{}", std::process::id());
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    run(&zone, "broker::hostile_calls", environment(&[(OTHER, Path::new(&name))])).await;
}

#[tokio::test]
async fn a_broker_that_was_taken_over_sees_its_own_files_only() {
    if !host_has("a_broker_that_was_taken_over_sees_its_own_files_only", &NEEDED) {
        return;
    }
    let (zone, tenants) = (DriverZone::new(&["1000"]), tempfile::tempdir().unwrap());
    let secret = tenants.path().join("weights");
    std::fs::write(&secret, "secret").unwrap();
    let environment = environment(&[(SECRET, &secret), (FOLDER, zone.folder.path())]);
    run(&zone, "broker::hostile_files", environment).await;
    assert!(zone.folder.path().join("own").exists());
}

#[tokio::test]
async fn a_broker_without_rights_has_workers_made_and_ended() {
    if !host_has("a_broker_without_rights_has_workers_made_and_ended", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    run(&zone, "broker::makes_workers", BTreeMap::new()).await;
}

#[tokio::test]
async fn it_has_no_capability_and_a_user_of_its_own() {
    if !host_has("it_has_no_capability_and_a_user_of_its_own", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let view = BrokerSandbox {
        zone: "driver-zone".to_owned(),
        program: "/usr/bin/sleep".into(),
        write: vec![zone.folder.path().to_owned()],
        users: spec().users,
        ..BrokerSandbox::default()
    };
    let launch = Launch {
        program: "/usr/bin/sleep".into(),
        arguments: vec!["1000".into()],
        environment: BTreeMap::new(),
        stdin: null(),
        stdout: null(),
        stderr: null(),
        inherit: Vec::new(),
    };
    let sandboxed = Sandboxed { launcher: launcher(), spec: view.spec(), launch };
    let (broker, missing) = sandboxed.start().unwrap();
    let of = |field: &str| status(broker.pid(), field).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        // Where there is no user namespace to be had, the bounding set may be this user's; new
        // privileges are not.
        assert_eq!(of(set), "0000000000000000", "{set}");
    }
    assert_eq!((of("NoNewPrivs").as_str(), of("Seccomp").as_str()), ("1", "2"));
    let has_users = !missing.iter().any(|missing| missing.feature.as_str() == "users");
    let user = of("Uid").split_whitespace().next().unwrap().to_owned();
    if rustix::process::getuid().is_root() && has_users {
        assert!(user.parse::<u32>().unwrap() >= spec().users.unwrap().first, "{user}");
    }
    for name in ["user", "mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&broker.pid().to_string()), of("self"), "{name}");
    }
    broker.end(None).await.unwrap();
}
