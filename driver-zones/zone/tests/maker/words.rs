//! What a maker answers a broker that was taken over.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gpuzone_zone::maker::MakerError;
use gpuzone_zone::{Exit, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};

use crate::support::{descendants, eventually, groups_of, host_has, null, status};
use crate::zone::{DriverZone, NEEDED, files};

/// Sends a message with that many files, without waiting for room.
fn say(line: impl AsFd, text: &[u8], files: usize) -> rustix::io::Result<usize> {
    let files: Vec<OwnedFd> = (0..files).map(|_| null()).collect();
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); 4096];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(&files)));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(line, &[IoSlice::new(text)], &mut control, flags)
}

/// The maker's next word; `None` when it has closed the line.
fn hear(line: impl AsFd) -> Option<String> {
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    let mut word = [PollFd::new(&line, PollFlags::IN)];
    assert!(poll(&mut word, Some(&limit)).unwrap() > 0, "it says nothing");
    let mut text = vec![0; 1 << 17];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut text)];
    let length = match recvmsg(&line, &mut slices, &mut control, RecvFlags::empty()) {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => panic!("{error}"),
    };
    text.truncate(length);
    (length > 0).then(|| String::from_utf8(text).unwrap())
}

/// Zones' processes below the maker, those of its own threads and janitors left out.
fn workers(maker: &Process) -> Vec<u32> {
    let of = descendants(maker.pid());
    let sleeps = |pid: &u32| status(*pid, "Name").as_deref() == Some("sleep");
    of.into_iter().filter(sleeps).collect()
}

fn make(zone: &str, kind: &str) -> Vec<u8> {
    format!(r#"{{"make":{{"zone":"{zone}","kind":"{kind}"}}}}"#).into_bytes()
}

#[tokio::test]
async fn a_worker_is_made_started_and_ended_and_nothing_of_it_is_left() {
    if !host_has("a_worker_is_made_started_and_ended_and_nothing_of_it_is_left", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (process, maker) = zone.made().await;
    let worker = maker.make("lease-1", "worker", files()).await.unwrap();
    assert_eq!(zone.written("lease-1", "made"), Some(worker.process()));
    assert!(matches!(
        maker.make("lease-1", "worker", files()).await,
        Err(MakerError::Exists(name)) if name == "lease-1"
    ));
    worker.start().await.unwrap();
    let pid = worker.process().pid;
    assert_eq!(zone.written("lease-1", "running"), Some(worker.process()));
    assert_eq!(status(pid, "Name").as_deref(), Some("sleep"));
    assert_eq!(status(pid, "CapEff").as_deref(), Some("0000000000000000"));
    assert_eq!(status(pid, "Seccomp").as_deref(), Some("2"));
    assert!(!worker.is_gone().unwrap());
    assert_eq!(maker.list().len(), 1);
    assert_eq!(worker.end().await.unwrap(), Exit::Signal(9));
    assert!(worker.is_gone().unwrap());
    assert_eq!((maker.list().len(), zone.listing()), (0, Vec::new()));
    assert!(eventually(|| groups_of(pid).is_empty()), "{:?}", groups_of(pid));
    // The same name once more, and by itself this time.
    let again = DriverZone::new(&["0"]);
    let (other, short) = again.made().await;
    for _ in 0..2 {
        let worker = short.make("lease-1", "worker", files()).await.unwrap();
        worker.start().await.unwrap();
        assert_eq!(worker.ended().await, Exit::Code(0));
    }
    for (maker, process) in [(maker, process), (short, other)] {
        maker.close().await;
        assert_eq!(process.exited().await.unwrap(), Exit::Code(0), "{}", zone.log());
    }
}

#[tokio::test]
async fn nothing_can_be_had_but_what_the_template_says() {
    if !host_has("nothing_can_be_had_but_what_the_template_says", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (process, line) = zone.maker();
    assert_eq!(hear(&line).as_deref(), Some("\"serving\""), "{}", zone.log());
    let long = "x".repeat(65);
    for (text, files, expected) in [
        (make("lease-1", "shell"), 6, "no such kind"),
        (make("lease-1", "worker"), 5, "6 files come with it"),
        (make("lease-1", "worker"), 0, "6 files come with it"),
        (make("lease-1", "scrub"), 6, "4 files come with it"),
        (make("../lease", "worker"), 6, "1 to 64 letters"),
        (make("a/b", "worker"), 6, "1 to 64 letters"),
        (make("", "worker"), 6, "1 to 64 letters"),
        (make(&long, "worker"), 6, "1 to 64 letters"),
        (make("a\\u0000b", "worker"), 6, "1 to 64 letters"),
    ] {
        say(&line, &text, files).unwrap();
        let said = hear(&line).unwrap();
        assert!(said.starts_with("{\"refused\"") && said.contains(expected), "{said}");
    }
    // Of others' zones there is nothing to be had: these are not the maker's.
    for what in ["start", "end"] {
        for name in ["1", "driver-zone", "lease-of-another"] {
            let text = format!(r#"{{"{what}":{{"zone":"{name}"}}}}"#);
            say(&line, text.as_bytes(), 0).unwrap();
        }
    }
    say(&line, &make("lease-1", "worker"), 6).unwrap();
    assert!(hear(&line).unwrap().starts_with("{\"made\""));
    say(&line, &make("lease-1", "worker"), 6).unwrap();
    assert!(hear(&line).unwrap().contains("there is a zone 'lease-1' already"));
    // Told a hundred times, it is started once.
    for _ in 0..100 {
        say(&line, br#"{"start":{"zone":"lease-1"}}"#, 0).unwrap();
    }
    assert!(hear(&line).unwrap().starts_with("{\"begun\""));
    assert_eq!(workers(&process).len(), 1);
    for _ in 0..100 {
        say(&line, br#"{"end":{"zone":"lease-1"}}"#, 0).unwrap();
    }
    assert!(hear(&line).unwrap().starts_with("{\"ended\""));
    drop(line);
    assert_eq!(process.exited().await.unwrap(), Exit::Code(0), "{}", zone.log());
    assert_eq!(zone.listing(), Vec::<String>::new());
}

#[tokio::test]
async fn who_talks_nonsense_gets_nothing_any_more_and_workers_go_on() {
    if !host_has("who_talks_nonsense_gets_nothing_any_more_and_workers_go_on", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (first, maker) = zone.made().await;
    let worker = maker.make("lease-1", "worker", files()).await.unwrap();
    worker.start().await.unwrap();
    let worker = worker.process();
    maker.close().await;
    assert_eq!(first.exited().await.unwrap(), Exit::Code(0));
    let program = br#"{"make":{"zone":"a","kind":"worker","program":"/bin/sh"}}"#;
    let environment = br#"{"make":{"zone":"a","kind":"worker","environment":{"LD_PRELOAD":"x"}}}"#;
    let half = &make("lease-2", "worker")[..20];
    let long = vec![b' '; (64 << 10) + 1];
    let nonsense: [(&[u8], usize); 9] = [
        (b"\0", 0),
        (b"garbage", 0),
        (b"{}", 0),
        (b"[[[[[[[[", 0),
        (b"\xff\xfe", 0),
        (half, 6),
        (program, 6),
        (environment, 6),
        (&long, 0),
    ];
    // More files than any zone takes.
    let flood = (&make("lease-2", "worker")[..], 250);
    for (text, files) in nonsense.into_iter().chain([flood]) {
        let (process, line) = zone.maker();
        assert!(hear(&line).unwrap().starts_with("{\"found\""), "{}", zone.log());
        assert_eq!(hear(&line).as_deref(), Some("\"serving\""));
        say(&line, text, files).unwrap();
        let what = String::from_utf8_lossy(&text[..text.len().min(40)]);
        assert_eq!(hear(&line), None, "{what}");
        assert_eq!(process.exited().await.unwrap(), Exit::Code(125), "{what}");
        assert!(worker.is_alive().unwrap());
        assert_eq!(zone.listing(), ["lease-1.zone"], "{what}");
    }
    assert!(zone.log().contains("nothing is made for who asked any more"), "{}", zone.log());
    let (process, maker) = zone.made().await;
    assert_eq!(maker.get("lease-1").unwrap().end().await.unwrap(), Exit::Unknown);
    assert!(!worker.is_alive().unwrap());
    maker.close().await;
    assert_eq!(process.exited().await.unwrap(), Exit::Code(0));
}

#[tokio::test]
async fn a_flood_from_who_never_listens_ends_with_it() {
    if !host_has("a_flood_from_who_never_listens_ends_with_it", &NEEDED) {
        return;
    }
    let zone = DriverZone::new(&["1000"]);
    let (process, line) = zone.maker();
    assert!(hear(&line).is_some(), "{}", zone.log());
    // Nothing is read, so the maker stops reading, too, and the line fills up.
    let mut sent = 0;
    let full = |number: usize| {
        let text = make(&format!("no/{number}"), "worker");
        say(&line, &text, 6) == Err(rustix::io::Errno::AGAIN)
    };
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 30 {
        if full(sent) && {
            std::thread::sleep(std::time::Duration::from_millis(100));
            full(sent)
        } {
            break;
        }
        sent += 1;
    }
    assert!(begun.elapsed().as_secs() < 30, "{sent} messages, and room for more");
    let memory = status(process.pid(), "VmRSS").unwrap();
    let kibibytes: u64 = memory.trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kibibytes < 64 << 10, "{memory}");
    drop(line);
    process.exited().await.unwrap();
    assert_eq!(zone.listing(), Vec::<String>::new());
}
