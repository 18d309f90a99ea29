//! A worker's turns, with the test for an arbiter.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, socket_with};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const BRIEFLY: Duration = Duration::from_millis(1);

struct Arbiter {
    dir: tempfile::TempDir,
    line: OwnedFd,
}

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a socket")
}

fn connected(dir: &tempfile::TempDir) -> OwnedFd {
    let line = socket();
    let address = SocketAddrUnix::new(dir.path().join("turns")).expect("short");
    connect(&line, &address).expect("connected");
    line
}

/// Turns on one GPU, and their arbiter.
fn turns() -> (Arc<Turns>, Arbiter) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = socket();
    let address = SocketAddrUnix::new(dir.path().join("turns")).expect("short");
    bind(&listener, &address).expect("bound");
    listen(&listener, 4).expect("listening");
    let line = connected(&dir);
    let turns = Turns::new(1);
    turns.listen(listener).expect("a thread");
    (turns, Arbiter { dir, line })
}

impl Arbiter {
    fn say(&self, message: FromArbiter) {
        send(&self.line, &message.encode(), SendFlags::NOSIGNAL).expect("sent");
    }

    fn hears(&self) -> FromWorker {
        let mut packet = [0; MESSAGE];
        let (length, _) = recv(&self.line, &mut packet, RecvFlags::empty()).expect("heard");
        FromWorker::decode(&packet[..length]).expect("a message")
    }
}

const GRANT: FromArbiter = FromArbiter::Grant { device: 0, contended: false, brief: false };
const RECALL: FromArbiter = FromArbiter::Recall { device: 0 };

#[test]
fn work_waits_for_a_turn_and_keeps_it_while_alone() {
    let (turns, arbiter) = turns();
    assert_eq!(turns.pressure(0), Pressure::Recalled);
    assert!(!turns.begin(0, BRIEFLY));
    assert_eq!(arbiter.hears(), FromWorker::Want { device: 0 });
    arbiter.say(GRANT);
    assert!(turns.begin(0, PATIENCE));
    turns.end(0, None);
    // Nobody is asked again.
    for _ in 0..3 {
        assert!(turns.begin(0, Duration::ZERO));
        turns.end(0, None);
    }
    assert_eq!(turns.pressure(0), Pressure::Alone);
    arbiter.say(RECALL);
    assert!(matches!(arbiter.hears(), FromWorker::Yield { device: 0, wants: false, .. }));
    assert!(!turns.begin(0, Duration::ZERO));
}

#[test]
fn a_recalled_turn_goes_back_when_all_work_is_done() {
    let (turns, arbiter) = turns();
    assert!(!turns.begin(0, BRIEFLY));
    assert_eq!(arbiter.hears(), FromWorker::Want { device: 0 });
    arbiter.say(GRANT);
    assert!(turns.begin(0, PATIENCE));
    assert!(turns.begin(0, PATIENCE), "a second context of the lease");
    arbiter.say(RECALL);
    while turns.pressure(0) != Pressure::Recalled {
        std::thread::yield_now();
    }
    assert!(!turns.begin(0, BRIEFLY));
    turns.end(0, Some(7));
    turns.end(0, Some(7));
    let FromWorker::Yield { device: 0, wants: false, used } = arbiter.hears() else {
        panic!("no turn came back")
    };
    // Two at once: the clock counts, and not the events of one of them.
    assert!(used >= 1_000_000, "{used}");
}

#[test]
fn a_turn_that_others_wait_for_goes_back_when_there_is_nothing_to_do() {
    let (turns, arbiter) = turns();
    assert!(!turns.begin(0, BRIEFLY));
    assert_eq!(arbiter.hears(), FromWorker::Want { device: 0 });
    arbiter.say(GRANT);
    assert!(turns.begin(0, PATIENCE));
    turns.end(0, Some(5));
    arbiter.say(FromArbiter::Contended { device: 0 });
    let back = arbiter.hears();
    assert!(matches!(back, FromWorker::Yield { device: 0, wants: false, used: 0..=5 }), "{back:?}");
}

#[test]
fn beside_an_urgent_lease_little_is_ahead() {
    let (turns, arbiter) = turns();
    let room = || (turns.room(0).time, (turns.room(0).least, turns.room(0).most));
    assert!(!turns.begin(0, BRIEFLY));
    assert_eq!(arbiter.hears(), FromWorker::Want { device: 0 });
    arbiter.say(GRANT);
    assert!(turns.begin(0, PATIENCE));
    assert_eq!(room(), (AHEAD, (2, MOST_ALONE)));
    arbiter.say(FromArbiter::Brief { device: 0 });
    arbiter.say(RECALL);
    while turns.pressure(0) != Pressure::Recalled {
        std::thread::yield_now();
    }
    assert_eq!(room(), (AHEAD_BRIEF, (1, MOST)));
    turns.end(0, None);
    assert!(matches!(arbiter.hears(), FromWorker::Yield { device: 0, wants: false, .. }));
    arbiter.say(FromArbiter::Grant { device: 0, contended: true, brief: false });
    assert!(turns.begin(0, PATIENCE));
    assert_eq!(room(), (AHEAD, (1, MOST)));
}

#[test]
fn without_an_arbiter_work_goes_on_and_the_next_one_is_asked() {
    let (turns, arbiter) = turns();
    assert!(!turns.begin(0, BRIEFLY));
    let Arbiter { dir, line } = arbiter;
    drop(line);
    assert!(turns.begin(0, PATIENCE));
    let next = Arbiter { line: connected(&dir), dir };
    // What is under way counts as work that there is no turn for.
    assert_eq!(next.hears(), FromWorker::Want { device: 0 });
    assert!(!turns.begin(0, BRIEFLY));
    next.say(GRANT);
    assert!(turns.begin(0, PATIENCE));
    drop(next.dir);
}

#[test]
fn nonsense_from_an_arbiter_is_none() {
    let (turns, arbiter) = turns();
    arbiter.say(FromArbiter::Grant { device: 9, contended: true, brief: false });
    // It is not listened to any more.
    assert!(turns.begin(0, PATIENCE));
}
