//! What the host asks for.

use std::time::Duration;

use gpuzone_wire::control::{Reply, Request};
use gpuzone_wire::view::{self, Seen};
use gpuzone_wire::zone_link::{MAX_LINE, ToGuest, ToHost, VERSION};

use crate::broker::Broker;
use crate::port::{Heard, Port};
use crate::session::{Opening, Sessions, socket_of};

/// How long a worker may take to tell of its lease.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long the host's end is left alone after nonsense.
const PAUSE: Duration = Duration::from_millis(50);

/// Listens to the host, on a thread of its own: the first one takes ends of processes.
pub(crate) fn serve_in_the_background(port: Port, broker: Broker) {
    std::thread::spawn(move || {
        let (mut reader, sessions) = (port.reader(MAX_LINE), Sessions::default());
        let mut interrupted = false;
        loop {
            match reader.next::<ToGuest>() {
                Heard::Message(message) => {
                    interrupted = false;
                    act(*message, &port, &broker, &sessions);
                }
                Heard::Interrupted if interrupted => {}
                Heard::Interrupted => {
                    // Whoever carried wakes on the other side is gone, and tenants with it.
                    sessions.close_all();
                    interrupted = true;
                }
                Heard::Nonsense(reason) => {
                    eprintln!("gpu-zone-guest: the host said something else: {reason}");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    });
}

fn act(message: ToGuest, port: &Port, broker: &Broker, sessions: &Sessions) {
    let (port, broker, sessions) = (port.clone(), broker.clone(), sessions.clone());
    match message {
        ToGuest::Hello { version: _, nonce } => {
            sessions.close_all();
            port.send(&ToHost::Hello { version: VERSION, nonce, begun: broker.begun() });
        }
        ToGuest::Begin { config, files } => {
            std::thread::spawn(move || match broker.begin(*config, &files) {
                Ok(()) => port.send(&ToHost::Began),
                Err(reason) => port.send(&ToHost::Failed { reason }),
            });
        }
        ToGuest::Ask { id, request } => {
            std::thread::spawn(move || {
                let reply = broker.ask(&request).unwrap_or_else(|error| Reply::Refused {
                    reason: format!("the broker in the driver zone does not answer: {error}"),
                });
                port.send(&ToHost::Answer { id, reply: Box::new(reply) });
            });
        }
        ToGuest::Open { session, slot, bridge, sizes, version, pid } => {
            let socket = socket_of(&slot);
            let opening = Opening { session, socket, bridge, sizes, version, pid };
            // Before the next message is read, which may close it.
            sessions.begin(session);
            std::thread::spawn(move || sessions.serve(&opening, &port));
        }
        ToGuest::Look { session, slot, look } => {
            std::thread::spawn(move || {
                let seen = view::ask(&slot, look, LOOK_LIMIT).unwrap_or_else(Seen::refused);
                port.send(&ToHost::Seen { session, seen: Box::new(seen) });
            });
        }
        ToGuest::Bell { session } => sessions.bell(session),
        ToGuest::Close { session } => sessions.close(session),
        ToGuest::Health => port.send(&ToHost::Health(broker.health())),
        ToGuest::PowerOff => power_off(&broker),
    }
}

/// Ends all that runs, and the machine with it.
fn power_off(broker: &Broker) {
    // Whether it said goodbye or not, nothing outlives the machine.
    let _ = broker.ask(&Request::Shutdown);
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}
