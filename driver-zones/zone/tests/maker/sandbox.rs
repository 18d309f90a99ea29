//! What a driver zone's maker of zones could do if it were taken over: what a hostile program tries in
//! its sandbox, and that it can make zones for workers there.
use std::path::Path;

use gpuzone_zone::Exit;
use gpuzone_zone::sandbox::{
    Demand, Feature, Filter, Limits, MakerSandbox, Mount, Policy, Spec, probe,
};

use crate::support::{denied, host_has, launcher, shell, spec, start};

const NEEDED: [Feature; 3] = [Feature::User, Feature::Mount, Feature::Seccomp];

/// A maker's sandbox, and a shell's programs, which a maker's has not.
fn view(write: &[&Path]) -> Spec {
    let maker = MakerSandbox {
        zone: "driver-zone-maker".to_owned(),
        read: vec![launcher()],
        write: write.iter().map(|folder| (*folder).to_owned()).collect(),
        users: true,
        ..MakerSandbox::default()
    };
    let view = maker.spec().unwrap();
    let programs = spec().mounts.into_iter().filter(|mount| {
        let place = mount.target.as_ref().unwrap_or(&mount.source);
        !place.starts_with("/usr") && !place.starts_with("/lib")
    });
    let bin = Mount::read("/usr/bin");
    Spec { mounts: view.mounts.iter().cloned().chain([bin]).chain(programs).collect(), ..view }
}

/// As [`denied`], for a system call by its number on x86_64 with small arguments.
fn call(number: u32, arguments: &str) -> String {
    format!("perl -e 'exit(syscall({number}, {arguments}) == -1 && $!{{EPERM}} ? 1 : 0)'")
}

#[tokio::test]
async fn nothing_of_the_hosts_or_of_tenants_is_there() {
    if !host_has("nothing_of_the_hosts_or_of_tenants_is_there", &NEEDED) {
        return;
    }
    let (tenants, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = tenants.path().join("weights");
    std::fs::write(&secret, "secret").unwrap();
    let secret = secret.display();
    let parent = std::process::id();
    let attempts = [
        format!("cat {secret}"),
        format!("cat {}/../../../{secret}", own.path().display()),
        format!("cat /proc/1/root{secret}"),
        format!("cat /proc/{parent}/root{secret}"),
        format!("cat /proc/{parent}/cwd/Cargo.toml"),
        format!("head -c1 /proc/{parent}/mem"),
        format!("readlink /proc/{parent}/fd/0"),
    ];
    let attempts: Vec<&str> = attempts.iter().map(String::as_str).collect();
    denied(view(&[own.path()]), &attempts).await;
    if !rustix::process::getuid().is_root() {
        // Root's CAP_SYS_ADMIN is enough for this one, whatever else there is.
        denied(view(&[]), &[&format!("cat /proc/{parent}/environ")]).await;
    }
    let fixed = [
        "ls /home",
        "ls /root",
        "ls /var",
        "cat /etc/shadow",
        "cat /etc/passwd",
        "echo x > /x",
        "echo x > /usr/lib/x",
        "cat /dev/kmsg",
        "cat /dev/mem",
        "ls /dev/sda /dev/vda",
        // Opened and not written to.
        "(: >> /proc/sysrq-trigger)",
        "(: >> /proc/sys/kernel/core_pattern)",
        "(: >> /proc/sys/kernel/modprobe)",
    ];
    denied(view(&[own.path()]), &fixed).await;
    let script = format!("echo x > {}/x && ls / | tr '\\n' ' '", own.path().display());
    let (exit, said) = shell(view(&[own.path()]), &script).await;
    assert_eq!(exit, Exit::Code(0), "{said}");
    assert!(own.path().join("x").exists());
    for absent in ["home", "root", "var", "opt", "srv", "boot", "mnt"] {
        assert!(!said.split(' ').any(|name| name == absent), "{absent}: {said}");
    }
}

#[tokio::test]
async fn there_is_no_network_and_nobody_to_speak_to() {
    if !host_has("there_is_no_network_and_nobody_to_speak_to", &NEEDED) {
        return;
    }
    let name = format!("gpu-zone-test-{}", std::process::id());
    let address = abstract_name(&name);
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let abstract_socket = format!(
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or exit 1; \
         exit(connect(S, pack(\"S a*\", AF_UNIX, \"\\0{name}\")) ? 0 : 1)'"
    );
    // AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK.
    let families = [2, 10, 16, 17, 38, 40].map(|family| {
        format!("perl -e 'exit(socket(S, {family}, 1, 0) || socket(S, {family}, 3, 0) ? 0 : 1)'")
    });
    let attempts: Vec<&str> =
        families.iter().map(String::as_str).chain([abstract_socket.as_str()]).collect();
    denied(view(&[]), &attempts).await;
    let (_, devices) = shell(view(&[]), "tail -n +3 /proc/self/net/dev | wc -l").await;
    assert_eq!(devices.trim(), "1", "the loopback device only");
}

fn abstract_name(name: &str) -> std::os::unix::net::SocketAddr {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap()
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_that_making_zones_does_not_take_are_denied() {
    if !host_has("calls_that_making_zones_does_not_take_are_denied", &NEEDED) {
        return;
    }
    let calls = [
        call(101, "16, 1, 0, 0"),      // ptrace
        call(310, "1, 0, 0, 0, 0, 0"), // process_vm_readv
        call(438, "0, 0, 0"),          // pidfd_getfd
        call(175, "0, 0, 0"),          // init_module
        call(313, "0, 0, 0"),          // finit_module
        call(246, "0, 0, 0, 0"),       // kexec_load
        call(321, "0, 0, 0"),          // bpf
        call(298, "0, 0, 0, 0, 0"),    // perf_event_open
        call(323, "0"),                // userfaultfd
        call(425, "1, 0"),             // io_uring_setup
        call(248, "0, 0, 0, 0, 0"),    // add_key
        call(250, "0, 0, 0, 0, 0"),    // keyctl
        call(304, "0, 0, 0"),          // open_by_handle_at
        call(259, "-100, 0, 8192, 0"), // mknodat
        call(161, "0"),                // chroot
        call(272, "0x20000000"),       // unshare(CLONE_NEWPID)
        call(308, "0, 0x20000"),       // setns(CLONE_NEWNS)
        call(165, "0, 0, 0, 0, 0"),    // mount, of anything
        call(166, "0, 0"),             // umount2, of anything
        call(227, "0, 0"),             // clock_settime
        call(103, "0, 0, 0"),          // syslog
        call(1000, "0"),               // one that there is not: the policy lists what is allowed
    ];
    let attempts: Vec<&str> = calls.iter().map(String::as_str).collect();
    denied(view(&[]), &attempts).await;
    denied(view(&[]), &["nsenter -t 1 -m true", "mount -t tmpfs none /usr"]).await;
}

#[tokio::test]
async fn it_has_no_privileges_but_those_that_zones_take() {
    if !host_has("it_has_no_privileges_but_those_that_zones_take", &NEEDED) {
        return;
    }
    let (_, said) = shell(view(&[]), "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status").await;
    let field = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {said}")).trim().to_owned()
    };
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    // CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP, SYS_ADMIN, SETFCAP.
    let most = if rustix::process::getuid().is_root() { 0x8020_01e3 } else { 0 };
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let has = u64::from_str_radix(&field(set), 16).unwrap();
        assert_eq!(has & !most, 0, "{set} {said}");
    }
}

/// What a launcher reports that makes a worker's zone by these orders, in `zone`.
async fn worker_in(zone: Spec, folder: &Path) -> String {
    let orders = Spec {
        zone: "worker".to_owned(),
        own_pids: false,
        filter: Filter::Worker,
        private: Vec::new(),
        limits: Limits { pids: Some(64), cpu_weight: Some(100), ..Limits::default() },
        ..spec()
    };
    std::fs::write(folder.join("orders"), serde_json::to_vec(&orders).unwrap()).unwrap();
    let (launcher, folder) = (launcher(), folder.display());
    let script = format!(
        "{} --orders 3 --report 4 -- /usr/bin/true true 3<{folder}/orders 4>{folder}/report; \
         echo exit $?; cat {folder}/report",
        launcher.display()
    );
    let (_, said) = shell(zone, &script).await;
    said
}

#[tokio::test]
async fn workers_zones_can_be_made_in_it() {
    if !host_has("workers_zones_can_be_made_in_it", &NEEDED) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let said = worker_in(view(&[folder.path()]), folder.path()).await;
    assert!(said.starts_with("exit 0\n{\"ready\":["), "{said}");
    // A worker has there what it has without a maker's sandbox around it.
    let missing = probe(&launcher()).unwrap();
    for feature in [Feature::Users, Feature::Pids, Feature::Cpu, Feature::Landlock] {
        let outside = missing.iter().any(|missing| missing.feature == feature);
        assert_eq!(said.contains(&format!("\"{feature}\"")), outside, "{feature}: {said}");
    }
}

#[test]
fn what_is_required_and_missing_is_refused_and_a_makers_zone_has_no_numbers_of_its_own() {
    let out = tempfile::tempfile().unwrap();
    let numbered = Spec { own_pids: true, ..view(&[]) };
    let refused = start(numbered, "/bin/true", &[], &out).unwrap_err().to_string();
    assert!(refused.contains("a program that makes zones"), "{refused}");
    let missing = match probe(&launcher()) {
        Ok(missing) => missing,
        Err(error) => return println!("skipped: nothing can be required here: {error}"),
    };
    let own = [Feature::Mount, Feature::Net, Feature::Ipc, Feature::Uts, Feature::Landlock];
    let policy = Policy { default: Demand::Require, ..Policy::default() };
    let required = start(Spec { policy, ..view(&[]) }, "/bin/true", &[], &out);
    let lacks = missing.iter().find(|missing| own.contains(&missing.feature));
    match (required, lacks) {
        (Ok((_, missing)), None) => assert_eq!(missing, []),
        (Err(error), Some(lacks)) => {
            assert!(error.to_string().contains(lacks.feature.as_str()), "{error}");
        }
        (required, lacks) => panic!("{required:?} {lacks:?}"),
    }
}
