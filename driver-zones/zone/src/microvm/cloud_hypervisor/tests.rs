//! Against a stand-in that answers as version 53 did when it was asked the same (docs/driver-zones.md), over
//! the sockets that the process would inherit.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::Api;
use super::*;
use crate::microvm::{Accelerator, Hypervisor, Machine, MicroVmError, Passthrough, Windows};

const PING: &str = r#"{"build_version":"v53.0-246-gae44c2971-dirty","version":"54.0.0","pid":23884,"features":["io_uring","kvm","ivshmem"]}"#;
const CREATED: &str = r#"{"config":{},"state":"Created","memory_actual_size":268435456}"#;
const RUNNING: &str = r#"{"config":{},"state":"Running","memory_actual_size":268435456,"device_tree":{"__serial":{"id":"__serial","resources":[],"parent":null,"children":[],"pci_bdf":null},"memory0-1-1":{"id":"memory0-1-1","resources":[],"parent":null,"children":[],"pci_bdf":"0000:00:10.0"}}}"#;
const NOT_CREATED: &str =
    r#"["Error from API","The VM info is not available","VM is not created"]"#;
const NO_IMAGE: &str = r#"["Error from API","The VM could not boot","Cannot open initramfs file","No such file or directory (os error 2)"]"#;
const WRONG: &str =
    r#"["Failed to deserialize JSON","missing field `max_vcpus` at line 1 column 24"]"#;

/// An answer as it was recorded: without a reason behind its status, and with a length where it has a body.
fn answer(status: u16, body: &str) -> Vec<u8> {
    let head = "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n";
    let length = body.len();
    let rest = match (status, length) {
        (204, _) => String::new(),
        (_, _) => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    format!("HTTP/1.1 {status} \r\n{head}{rest}\r\n{body}").into_bytes()
}

fn vm() -> VmSpec {
    VmSpec {
        program: "/usr/bin/cloud-hypervisor".into(),
        kernel: "/k/vmlinux".into(),
        image: "/k/zone.cpio".into(),
        append: "gpuzone.mode=workload".into(),
        accelerator: Accelerator::Kvm,
        machine: Machine::Q35 { windows: 4, iommu: false },
        memory: 256 << 20,
        processors: 2,
        devices: Vec::new(),
        ports: vec!["gpuzone.input".into()],
    }
}

/// A machine's files, and the socket that its process would inherit.
struct Zone {
    _folder: TempDir,
    vms: MicroVms,
    listener: UnixListener,
}

fn zone() -> Zone {
    let folder = tempfile::tempdir().unwrap();
    let vms = MicroVms::new(folder.path().join("machine"), Hypervisor::CloudHypervisor);
    let mut files = vms.files("z", &[]).unwrap();
    let api: OwnedFd = files.inherit.remove(0);
    assert!(files.inherit.is_empty());
    writeln!(std::fs::File::from(files.stderr), "Error: it went").unwrap();
    Zone { _folder: folder, vms, listener: api.into() }
}

type Asked = Vec<(String, Value)>;

/// Reads one request.
fn read(stream: &UnixStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    let call = format!("{} {}", words[0], words[1].strip_prefix("/api/v1/").unwrap());
    (call, serde_json::from_slice(&body).unwrap_or_default())
}

/// A process that gives these answers, one a connection, and is gone then.
fn answering(listener: UnixListener, answers: Vec<Vec<u8>>) -> JoinHandle<Asked> {
    std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            asked.push(read(&stream));
            // Whoever asked may have had enough before the end.
            let _ = stream.write_all(&answer);
        }
        asked
    })
}

fn begin(answers: Vec<Vec<u8>>) -> (Result<(), String>, Asked) {
    let Zone { _folder, vms, listener } = zone();
    let process = answering(listener, answers);
    let begun = vms.begin("z", &vm()).map_err(|error| error.to_string());
    (begun, process.join().unwrap())
}

fn names(asked: &Asked) -> Vec<&str> {
    asked.iter().map(|(call, _)| call.as_str()).collect()
}

#[test]
fn a_machine_is_told_of_and_booted_and_nothing_is_said_that_was_not_asked() {
    let ok = || answer(204, "");
    let (begun, asked) = begin(vec![answer(200, PING), answer(404, NOT_CREATED), ok(), ok()]);
    begun.unwrap();
    assert_eq!(names(&asked), ["GET vmm.ping", "GET vm.info", "PUT vm.create", "PUT vm.boot"]);
    let mut told = asked[2].1.clone();
    let socket = told["vsock"]["socket"].take();
    assert!(socket.as_str().unwrap().ends_with("/machine/cloud-hypervisor/vsock"), "{socket}");
    let words = "quiet panic=-1 reboot=t cryptomgr.notests rdinit=/init gpuzone.ports=vsock gpuzone.mode=workload";
    let wanted = json!({
        "cpus": { "boot_vcpus": 2, "max_vcpus": 2, "nested": false },
        "memory": { "size": 256 << 20, "shared": true },
        "payload": { "kernel": "/k/vmlinux", "initramfs": "/k/zone.cpio", "cmdline": words },
        "serial": { "mode": "Off" },
        "console": { "mode": "Off" },
        "vsock": { "cid": 3, "socket": null },
    });
    assert_eq!(told, wanted);
}

#[test]
fn one_that_an_earlier_owner_made_is_booted_and_one_that_runs_is_left_alone() {
    let (begun, asked) = begin(vec![answer(200, PING), answer(200, CREATED), answer(204, "")]);
    begun.unwrap();
    assert_eq!(names(&asked), ["GET vmm.ping", "GET vm.info", "PUT vm.boot"]);
    let (begun, asked) = begin(vec![answer(200, PING), answer(200, RUNNING)]);
    begun.unwrap();
    assert_eq!(asked.len(), 2);
    let odd = CREATED.replace("Created", "Dreaming");
    let (begun, _) = begin(vec![answer(200, PING), answer(200, &odd)]);
    assert!(begun.unwrap_err().contains("state Unknown"));
}

#[test]
fn a_refusal_has_its_reasons_and_the_last_word_of_the_log() {
    let before = || vec![answer(200, PING), answer(404, NOT_CREATED)];
    let (begun, _) = begin([before(), vec![answer(204, ""), answer(500, NO_IMAGE)]].concat());
    assert_eq!(
        begun.unwrap_err(),
        "Cloud Hypervisor refused 'vm.boot' (500): Error from API: The VM could not boot: Cannot open initramfs file: No such file or directory (os error 2); Cloud Hypervisor's last word: Error: it went"
    );
    let (begun, _) = begin([before(), vec![answer(400, WRONG)]].concat());
    assert!(begun.unwrap_err().contains("'vm.create' (400): Failed to deserialize JSON: missing"));
    let (begun, _) = begin([before(), vec![answer(500, "plain\u{1b}[31m text")]].concat());
    assert!(begun.unwrap_err().contains("(500): plain[31m text;"));
    let (begun, _) = begin([before(), vec![answer(503, "")]].concat());
    assert!(begun.unwrap_err().contains("(503): no reason;"));
}

#[test]
fn what_the_one_before_said_is_kept_when_the_next_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let vms = MicroVms::new(folder.path().into(), Hypervisor::CloudHypervisor);
    vms.files("z", &[]).unwrap();
    std::fs::write(vms.path("z", "hypervisor.log"), "si_syscall=47\n").unwrap();
    assert_eq!(vms.last_word("z"), "si_syscall=47");
    vms.files("z", &[]).unwrap();
    assert_eq!(vms.last_word("z"), "none");
    let kept = std::fs::read_to_string(vms.path("z", "hypervisor.before.log")).unwrap();
    assert_eq!(kept, "si_syscall=47\n");
}

#[test]
fn one_that_dies_in_any_phase_is_an_error_that_says_in_which() {
    let all = [answer(200, PING), answer(404, NOT_CREATED), answer(204, ""), answer(204, "")];
    for (alive, call) in ["vmm.ping", "vm.info", "vm.create", "vm.boot"].into_iter().enumerate() {
        let mut answers: Vec<Vec<u8>> = all[..alive].to_vec();
        let (begun, _) = begin(answers.clone());
        let error = begun.unwrap_err();
        assert!(error.contains(&format!("does not answer '{call}'")), "{error}");
        // In the middle of its answer.
        answers.push(all[alive][..20].to_vec());
        let (begun, _) = begin(answers);
        let error = begun.unwrap_err();
        assert!(error.contains(&format!("does not answer '{call}'")), "{error}");
        assert!(error.ends_with("last word: Error: it went"), "{error}");
    }
}

#[test]
fn a_socket_that_never_appears_and_one_at_which_nobody_answers_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let vms = MicroVms::new(folder.path().into(), Hypervisor::CloudHypervisor);
    let error = vms.begin("z", &vm()).unwrap_err();
    assert!(error.to_string().contains("does not answer 'vmm.ping'"), "{error}");
    assert!(matches!(error, MicroVmError::Control { .. }));

    let limit = Duration::from_millis(100);
    let silent = folder.path().join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let timed_out = |error: ApiError| match error {
        ApiError::Broken { source, .. } => source.kind() == io::ErrorKind::TimedOut,
        _ => false,
    };
    assert!(timed_out(Api::within(silent, limit).state().unwrap_err()));
    // Whoever says a byte now and then does not keep anybody longer.
    let slow = folder.path().join("slow");
    let listener = UnixListener::bind(&slow).unwrap();
    let process = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 \r\nX: ");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(timed_out(Api::within(slow, limit).state().unwrap_err()));
    process.join().unwrap();
}

#[test]
fn nonsense_and_answers_without_end_are_errors() {
    let head = |more: &str| format!("HTTP/1.1 200 \r\n{more}\r\n").into_bytes();
    let endless = [b"HTTP/1.1 200 \r\nX: ".to_vec(), vec![b'x'; 40 << 10]].concat();
    let wrong: [(Vec<u8>, &str); 11] = [
        (b"nonsense\r\n\r\n".to_vec(), "makes no sense"),
        (b"{\"QMP\":{}}\n".to_vec(), "makes no sense"),
        (endless, "a head of more than 16384 bytes"),
        (head(&"A: b\r\n".repeat(40)), "makes no sense"),
        (head("Content-Length: 2000000\r\n"), "an answer of 2000000 bytes"),
        (head("Content-Length: 18446744073709551616\r\n"), "no number"),
        (head("Content-Length: 2\r\nContent-Length: 3\r\n"), "two lengths"),
        (head("Transfer-Encoding: chunked\r\n"), "in pieces"),
        ([answer(200, PING), answer(200, PING)].concat(), "more than one answer"),
        (answer(200, "[1,2"), "makes no sense"),
        (answer(200, "{}"), "missing field `version`"),
    ];
    for (said, expected) in wrong {
        let (begun, _) = begin(vec![said]);
        let error = begun.unwrap_err();
        assert!(error.contains("'vmm.ping'") && error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn one_that_is_too_old_or_hides_its_age_is_not_taken() {
    for (version, good) in
        [("v51.1", false), ("52.0.0", true), ("v52.0", true), ("", false), ("next", false)]
    {
        let answers = [answer(200, &PING.replace("54.0.0", version)), answer(200, RUNNING)];
        let (begun, _) = begin(answers[..if good { 2 } else { 1 }].to_vec());
        assert_eq!(begun.is_ok(), good, "{version}");
        assert!(good || begun.unwrap_err().contains("install that or a younger one"));
    }
}

#[test]
fn it_is_asked_to_end_and_a_refusal_holds_nobody_up() {
    let Zone { _folder, vms, listener } = zone();
    let process = answering(listener, vec![answer(200, "")]);
    vms.ask_to_end("z");
    assert_eq!(names(&process.join().unwrap()), ["PUT vmm.shutdown"]);
    // It is gone.
    vms.ask_to_end("z");
    vms.clear("z").unwrap();
}

/// Does with a window's socket what Cloud Hypervisor does, by the crate that it does it with.
fn plugging(
    listener: UnixListener,
    bdf: &'static str,
) -> JoinHandle<(Value, vfio_user::Client, UnixListener)> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (call, body) = read(&stream);
        assert_eq!(call, "PUT vm.add-user-device");
        let client = vfio_user::Client::new(Path::new(body["socket"].as_str().unwrap())).unwrap();
        let added = json!({ "id": body["id"], "bdf": bdf }).to_string();
        stream.write_all(&answer(200, &added)).unwrap();
        (body, client, listener)
    })
}

#[test]
fn a_window_is_plugged_in_seen_from_both_sides_and_taken_out() {
    let Zone { _folder, vms, listener } = zone();
    let process = plugging(listener, "0000:00:10.0");
    let windows = Windows::new(&vms, "z", 4);
    let window = windows.take().unwrap();
    assert_eq!(window.bridge(), "10.0");
    let (told, client, listener) = process.join().unwrap();
    assert_eq!(told["pci_device_id"], 16);
    assert!(!Path::new(told["socket"].as_str().unwrap()).exists());
    // What the guest writes into the region is in the file that the other side has.
    let region = client.region(2).unwrap();
    assert_eq!(region.size, crate::microvm::WINDOW_BYTES);
    let theirs = region.file_offset.as_ref().unwrap().file();
    std::os::unix::fs::FileExt::write_all_at(theirs, b"from the guest", 100).unwrap();
    let mut seen = [0; 14];
    rustix::io::pread(&window.file, &mut seen, 100).unwrap();
    assert_eq!(&seen, b"from the guest");

    let id = told["id"].as_str().unwrap().to_owned();
    let process = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let asked = read(&stream);
        stream.write_all(&answer(204, "")).unwrap();
        // The guest takes its time.
        std::thread::sleep(Duration::from_millis(200));
        client.shutdown().unwrap();
        (asked, listener)
    });
    windows.unplug(window);
    let (asked, listener) = process.join().unwrap();
    assert_eq!(asked, ("PUT vm.remove-device".to_owned(), json!({ "id": id })));
    // Nothing more was asked, and the place is free.
    let process = plugging(listener, "0000:00:10.0");
    assert_eq!(windows.take().unwrap().bridge(), "10.0");
    let (told, _client, listener) = process.join().unwrap();
    assert_ne!(told["id"], id);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn what_an_earlier_owner_plugged_in_is_asked_for_when_it_should_be_gone() {
    let Zone { _folder, vms, listener } = zone();
    let process = std::thread::spawn(move || {
        let without = RUNNING.replace("memory0-1-1", "memory3-other");
        let answers = [answer(200, RUNNING), answer(204, ""), answer(200, &without)];
        answers.map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let (call, _) = read(&stream);
            stream.write_all(&answer).unwrap();
            (call, Instant::now())
        })
    });
    Windows::new(&vms, "z", 4).sweep(4);
    let asked = process.join().unwrap();
    let calls = asked.each_ref().map(|(call, _)| call.as_str());
    assert_eq!(calls, ["GET vm.info", "PUT vm.remove-device", "GET vm.info"]);
    assert!(asked[2].1 - asked[1].1 > QUIET - Duration::from_millis(100));
}

#[test]
fn a_window_somewhere_else_and_one_that_is_refused_are_none() {
    let Zone { _folder, vms, listener } = zone();
    let process = plugging(listener, "0000:00:11.0");
    let windows = Windows::new(&vms, "z", 4);
    let error = windows.take().unwrap_err().to_string();
    assert!(error.contains("at 0000:00:11.0, and was told 10.0"), "{error}");
    let (_, _, listener) = process.join().unwrap();
    let process = answering(listener, vec![answer(409, r#"["it is there"]"#)]);
    assert!(windows.take().unwrap_err().to_string().contains("it is there"));
    process.join().unwrap();
    let left = std::fs::read_dir(_folder.path().join("machine/cloud-hypervisor")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_port_is_connected_to_when_the_guest_listens_there() {
    let Zone { _folder, vms, listener: _ } = zone();
    let socket = _folder.path().join("machine/cloud-hypervisor/vsock");
    let listener = UnixListener::bind(socket).unwrap();
    let guest = std::thread::spawn(move || {
        // Nobody listens yet: it is closed.
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(b"OK 1073741824\nand its first words").unwrap();
        drop(stream);
        let (mut other, _) = listener.accept().unwrap();
        // What nobody reads resets the connection.
        BufReader::new(&other).read_line(&mut String::new()).unwrap();
        other.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        line
    });
    let long = Duration::from_secs(60);
    let mut stream = vms.connect("z", "gpuzone.output", long).unwrap();
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    assert_eq!(words, "and its first words");
    let error = vms.connect("z", CONTROL, long).unwrap_err().to_string();
    assert!(error.contains("is no Cloud Hypervisor"), "{error}");
    assert_eq!(guest.join().unwrap(), "CONNECT 1026\n");
    let error = vms.connect("z", CONTROL, Duration::ZERO).unwrap_err().to_string();
    assert_eq!(error, "the guest does not listen at port 1024");
    assert!(vms.connect("z", "other", long).is_err());
}

#[test]
fn what_it_cannot_do_is_refused_before_it_is_started() {
    let arguments = |vm: &VmSpec| Hypervisor::CloudHypervisor.arguments("z", vm);
    assert_eq!(arguments(&vm()).unwrap().join(" "), "--api-socket fd=3 --seccomp true");
    let device = |vf_token: Option<&str>| Passthrough {
        address: "0000:3b:00.0".to_owned(),
        vf_token: vf_token.map(|token| token.parse().unwrap()),
    };
    let q35 = |windows, iommu| Machine::Q35 { windows, iommu };
    let wrong = [
        (VmSpec { accelerator: Accelerator::Tcg, ..vm() }, "accelerator = \"kvm\""),
        (VmSpec { machine: q35(17, false), ..vm() }, "at most 16 windows, not 17"),
        (VmSpec { machine: q35(4, true), ..vm() }, "without a virtual IOMMU"),
        (VmSpec { machine: Machine::MicroVm, ..vm() }, "one kind of machine"),
        (VmSpec { devices: vec![device(None); 9], ..vm() }, "at most 8 devices"),
        (
            VmSpec { devices: vec![device(Some("00112233-4455-6677-8899-aabbccddeeff"))], ..vm() },
            "needs a token",
        ),
        (VmSpec { ports: vec!["other".into()], ..vm() }, "no port called 'other'"),
    ];
    for (vm, expected) in wrong {
        let error = arguments(&vm).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let with = VmSpec { devices: vec![device(None); 2], ..vm() };
    let told = serde_json::to_value(machine::describe(&with, Path::new("/v")).unwrap()).unwrap();
    let path = "/sys/bus/pci/devices/0000:3b:00.0";
    let at = |slot| json!({ "path": path, "pci_device_id": slot });
    assert_eq!(told["devices"], json!([at(8), at(9)]));
    assert_eq!(Hypervisor::CloudHypervisor.device_place(1), "09.0");
}
