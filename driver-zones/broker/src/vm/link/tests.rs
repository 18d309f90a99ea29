//! A guest that does what it likes.

use std::io::Write;
use std::sync::atomic::AtomicU32;

use gpuzone_core::LeaseId;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// What a session heard.
#[derive(Default)]
struct Heard {
    bells: AtomicU32,
    told: Mutex<Vec<Told>>,
}

impl Session for Heard {
    fn bell(&self) {
        self.bells.fetch_add(1, Ordering::SeqCst);
    }

    fn told(&self, what: Told) {
        self.told.lock().unwrap().push(what);
    }
}

/// A guest that has said hello, and the way to it.
fn guest(stalled: Duration) -> (BufReader<UnixStream>, Arc<Link>) {
    let (guest, host) = UnixStream::pair().unwrap();
    let opening = std::thread::spawn(move || Link::open(host.into(), LONG, stalled).unwrap());
    let mut guest = BufReader::new(guest);
    let ToGuest::Hello { nonce, .. } = hears(&mut guest) else { panic!("no hello") };
    // To somebody before this host.
    say(&guest, &ToHost::Hello { version: 99, nonce: nonce.wrapping_add(1), begun: true });
    say(&guest, &ToHost::Hello { version: VERSION, nonce, begun: false });
    (guest, opening.join().unwrap())
}

fn hears(guest: &mut BufReader<UnixStream>) -> ToGuest {
    let mut line = String::new();
    guest.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn say(guest: &BufReader<UnixStream>, message: &ToHost) {
    let line = serde_json::to_string(message).unwrap() + "\n";
    guest.get_ref().write_all(line.as_bytes()).unwrap();
}

fn until(is: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "it does not come to be");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_over(link: &Link) -> bool {
    link.send(&ToGuest::Health).is_err()
}

#[test]
fn what_is_no_message_and_a_line_without_end_end_the_machine_and_its_sessions_alone() {
    let endless = vec![b'x'; MAX_LINE + 10];
    for said in [&b"nonsense\n"[..], b"{\"to_host\":\"own\"}\n", b"\xff\xfe\n", b"[1]\n", &endless]
    {
        let ((guest, link), (other, kept)) = (guest(LONG), guest(LONG));
        let session = Arc::new(Heard::default());
        link.open_session(Arc::<Heard>::clone(&session)).unwrap();
        // It may be shut in the middle.
        let _ = guest.get_ref().write_all(said);
        until(|| is_over(&link));
        assert!(matches!(session.told.lock().unwrap()[..], [Told::Closed(Some(_))]));
        assert!(link.open_session(session).is_err());
        say(&other, &ToHost::Began);
        assert!(!is_over(&kept));
    }
}

#[tokio::test]
async fn answers_that_nobody_asked_for_replays_and_floods_change_nothing() {
    let (mut guest, link) = guest(LONG);
    let session = Arc::new(Heard::default());
    let id = link.open_session(Arc::<Heard>::clone(&session)).unwrap();
    let asking = Arc::clone(&link);
    let asked = tokio::spawn(async move { asking.ask(Request::Status).await });
    let number = tokio::task::spawn_blocking(move || {
        let ToGuest::Ask { id, .. } = hears(&mut guest) else { panic!("no question") };
        for other in 0..2000 {
            let reply = Box::new(Reply::Bye);
            // Its number is told last.
            let wrong = if other == id { id + 5000 } else { other };
            say(&guest, &ToHost::Answer { id: wrong, reply });
            say(&guest, &ToHost::Bell { session: id + other });
            say(
                &guest,
                &ToHost::Closed { session: id + 1 + other, reason: Some("\x1b[2J".into()) },
            );
            say(&guest, &ToHost::Began);
            say(&guest, &ToHost::Hello { version: 0, nonce: other, begun: true });
        }
        let reply = || Box::new(Reply::Leases { leases: Vec::new() });
        say(&guest, &ToHost::Answer { id, reply: reply() });
        // And once more, which is nobody's.
        say(&guest, &ToHost::Answer { id, reply: Box::new(Reply::Bye) });
        guest
    });
    assert_eq!(asked.await.unwrap().unwrap(), Reply::Leases { leases: Vec::new() });
    let guest = number.await.unwrap();
    assert!(!is_over(&link));
    {
        let waiting = link.waiting();
        assert_eq!((waiting.answers.len(), waiting.sessions.len()), (0, 1));
    }
    // Its own session is as it was; its end is told once, whatever the guest says.
    for _ in 0..3 {
        say(&guest, &ToHost::Closed { session: id, reason: Some("\x1b[2Jover".into()) });
    }
    until(|| !session.told.lock().unwrap().is_empty());
    say(&guest, &ToHost::Health(Health::default()));
    until(|| link.waiting().sessions.is_empty());
    let told = session.told.lock().unwrap();
    assert!(matches!(&told[..], [Told::Closed(Some(why))] if why == "[2Jover"), "{told:?}");
}

#[tokio::test]
async fn a_guest_that_stops_reading_holds_nobody_up_and_its_machine_is_over() {
    let (_guest, link) = guest(Duration::from_millis(100));
    let session = Arc::new(Heard::default());
    let id = link.open_session(Arc::<Heard>::clone(&session)).unwrap();
    let lease = LeaseId::from_uuid(uuid::Uuid::from_u128(7));
    let end = Instant::now() + LONG;
    while link.bell(id).is_ok() && link.send(&ToGuest::Health).is_ok() {
        assert!(Instant::now() < end, "it is sent to without end");
    }
    assert!(link.ask(Request::Stop { lease }).await.is_err());
    until(|| !session.told.lock().unwrap().is_empty());
    tokio::time::timeout(LONG, link.broken.notified()).await.unwrap();
}
