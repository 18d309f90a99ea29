//! The broker's place on the host: requests of the agent's, slots of tenants', one microVM.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use gpuzone_core::LeaseId;
use gpuzone_wire::control::{Reply, Request, SlotAccess, VERSION, WorkerOrder};
use gpuzone_wire::zone_link::ToGuest;
use gpuzone_zone::maker::MadeZone;
use gpuzone_zone::microvm::{STALLED, Windows};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::SocketFlags;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{sleep, timeout};

use super::book::Book;
use super::keeper::{KeepError, Keeper};
use super::link::Link;
use super::session::{self, ANSWER_LIMIT};
use crate::serve::Answers;
use crate::slot::{self, Slot};

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the guest is asked what was used: what a microVM's sudden end can lose.
const LOOK: Duration = Duration::from_secs(1);
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// So many looks without an answer in a row, three seconds each, and it is taken for dead.
const MOST_MISSING: u32 = 60;
const OFF_LIMIT: Duration = Duration::from_secs(10);

/// A slot's folder in the guest.
pub(super) fn slot_in_guest(lease: LeaseId) -> PathBuf {
    PathBuf::from(format!("/run/gpu-zone/slots/{lease}"))
}

/// A microVM whose broker answers.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) link: Arc<Link>,
    pub(super) windows: Arc<Windows>,
    /// Among those that this process had.
    number: u64,
}

impl Machine {
    pub(super) fn prepare_another(&self) {
        let windows = Arc::clone(&self.windows);
        std::thread::spawn(move || windows.prepare());
    }
}

pub(super) struct Relay {
    keeper: Keeper,
    book: Book,
    machine: watch::Sender<Option<Machine>>,
    slots: Mutex<BTreeMap<LeaseId, Door>>,
    /// Starts, ends and arming again, one after the other.
    turn: AsyncMutex<()>,
    failed: watch::Sender<Option<String>>,
    /// The machine is to end, and no other to come.
    closing: AtomicBool,
}

/// A slot's socket, and who came in by it.
struct Door {
    slot: Slot,
    closing: Arc<OwnedFd>,
    inside: Arc<Mutex<Vec<Weak<OwnedFd>>>>,
}

impl Relay {
    pub(super) fn new(keeper: Keeper, book: Book) -> Arc<Self> {
        let (machine, failed) = (watch::Sender::new(None), watch::Sender::new(None));
        let (slots, turn) = (Mutex::default(), AsyncMutex::default());
        let closing = AtomicBool::new(false);
        Arc::new(Self { keeper, book, machine, slots, turn, failed, closing })
    }

    /// Waits until the microVM serves; an error when the first one cannot be made.
    pub(super) async fn serves(&self) -> io::Result<()> {
        let (mut machine, mut failed) = (self.machine.subscribe(), self.failed.subscribe());
        tokio::select! {
            served = machine.wait_for(Option::is_some) => drop(served),
            failed = failed.wait_for(Option::is_some) => {
                let reason = failed.ok().and_then(|reason| reason.clone()).unwrap_or_default();
                return Err(io::Error::other(reason));
            }
        }
        Ok(())
    }

    /// Keeps a microVM running for ever.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let began = Instant::now();
            let ran = self.run_one().await;
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            match ran {
                Ok(reason) => {
                    tracing::error!(%reason, "the driver zone's microVM ended; a new one takes over");
                    self.book.machine_gone(&format!("the driver zone's microVM ended: {reason}"));
                }
                Err(error) => {
                    tracing::error!(%error, "there is no microVM for the driver zone");
                    self.failed.send_replace(Some(error.to_string()));
                }
            }
            if began.elapsed() > Duration::from_secs(60) {
                pause = SHORTEST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One microVM, from its start to its end; how it ended.
    async fn run_one(&self) -> Result<String, KeepError> {
        let began = Instant::now();
        let (zone, adopted) = self.keeper.machine().await?;
        if !adopted {
            self.book.machine_gone("the driver zone's microVM ended while nobody watched it");
        }
        let served = self.serve_one(&zone, adopted, began).await;
        let machine = self.machine.send_replace(None);
        if let Some(machine) = &machine {
            machine.link.close();
        }
        let exit = self.keeper.end(&zone).await?;
        let (who, said) = (self.keeper.hypervisor(), self.keeper.last_word());
        served.map(|reason| format!("{reason}; {who} ended with {exit}; its last word: {said}"))
    }

    async fn serve_one(
        &self,
        zone: &MadeZone,
        adopted: bool,
        began: Instant,
    ) -> Result<String, KeepError> {
        let number = self.keeper.vm.windows;
        let windows = Arc::new(self.keeper.windows());
        let link = tokio::select! {
            link = self.connect() => link?,
            exit = zone.ended() => {
                let who = self.keeper.hypervisor();
                return Err(KeepError::Zone(format!("its {who} ended with {exit} before the guest said anything")));
            }
        };
        if adopted {
            let windows = Arc::clone(&windows);
            // Those of sessions that ended with whoever carried them.
            let swept = tokio::task::spawn_blocking(move || windows.sweep(number)).await;
            swept.map_err(io::Error::other)?;
        }
        let begun = link.begin(self.keeper.begin_broker(), self.keeper.patience()).await;
        begun.map_err(KeepError::Zone)?;
        let machine = Machine { link: Arc::clone(&link), windows, number: self.book.machine() };
        {
            let _turn = self.turn.lock().await;
            for order in self.book.orders() {
                if let Reply::Refused { reason } = self.arm(&machine, &order).await {
                    tracing::error!(lease = %order.lease, %reason, "it cannot be served now");
                }
            }
            self.machine.send_replace(Some(machine.clone()));
        }
        machine.prepare_another();
        self.say_how_it_is(&machine, adopted, began.elapsed()).await;
        tokio::select! {
            _ = zone.ended() => Ok("it went".to_owned()),
            () = link.broken.notified() => Ok("it says no more".to_owned()),
            () = self.look(&machine) => Ok("it does not answer".to_owned()),
        }
    }

    async fn connect(&self) -> Result<Arc<Link>, KeepError> {
        let (port, patience) = (self.keeper.channel(), self.keeper.patience());
        let open = move || Link::open(port()?, patience, STALLED);
        let opened = tokio::task::spawn_blocking(open).await;
        Ok(opened.map_err(io::Error::other)??)
    }

    async fn say_how_it_is(&self, machine: &Machine, adopted: bool, took: Duration) {
        let health = timeout(STATUS_LIMIT, machine.link.health()).await;
        let health = health.ok().and_then(Result::ok).unwrap_or_default();
        let used = health.memory.saturating_sub(health.available) >> 20;
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            adopted,
            milliseconds,
            guest_uptime = health.uptime_ms,
            guest_used_mib = used,
            broker = health.broker,
            "the driver zone's microVM serves"
        );
    }

    /// Asks again and again what was used, until too many answers in a row are missing.
    async fn look(&self, machine: &Machine) {
        let mut missing = 0;
        while missing < MOST_MISSING {
            sleep(LOOK).await;
            let answered = if self.book.orders().is_empty() {
                matches!(timeout(STATUS_LIMIT, machine.link.health()).await, Ok(Ok(_)))
            } else {
                self.ask_status(machine).await
            };
            missing = if answered { 0 } else { missing + 1 };
        }
    }

    /// Whether it answered.
    async fn ask_status(&self, machine: &Machine) -> bool {
        let asked = timeout(STATUS_LIMIT, machine.link.ask(Request::Status)).await;
        let Ok(Ok(Reply::Leases { leases })) = asked else { return false };
        self.book.heard(machine.number, leases);
        true
    }

    fn machine(&self) -> Option<Machine> {
        self.machine.borrow().clone()
    }

    async fn arm(&self, machine: &Machine, order: &WorkerOrder) -> Reply {
        let inside = WorkerOrder {
            slot_dir: slot_in_guest(order.lease),
            access: SlotAccess::Private,
            ..order.clone()
        };
        match machine.link.ask(Request::Start(inside)).await {
            Ok(Reply::Leases { leases }) => {
                Reply::Leases { leases: self.book.heard(machine.number, leases) }
            }
            Ok(Reply::Refused { reason }) => Reply::Refused { reason: printable(&reason) },
            Ok(Reply::Hello { .. } | Reply::Scrubbed { .. } | Reply::Bye) => refused("nonsense"),
            Err(error) => refused(&error.to_string()),
        }
    }

    async fn start(self: &Arc<Self>, order: WorkerOrder) -> Reply {
        let _turn = self.turn.lock().await;
        let Some(machine) = self.machine() else { return refused("it is being started") };
        if let Err(reason) = self.book.begin(&order) {
            return Reply::Refused { reason };
        }
        let reply = self.arm(&machine, &order).await;
        let opened = match &reply {
            Reply::Leases { .. } => self.open_door(&order).map_err(|error| error.to_string()),
            Reply::Refused { reason } => Err(reason.clone()),
            Reply::Hello { .. } | Reply::Scrubbed { .. } | Reply::Bye => Err("nonsense".to_owned()),
        };
        let Err(reason) = opened else { return reply };
        // It may serve all the same, where only the answer was late.
        let _ = machine.link.ask(Request::Stop { lease: order.lease }).await;
        self.book.end(order.lease, None);
        Reply::Refused { reason }
    }

    async fn stop(&self, lease: LeaseId) -> Reply {
        let _turn = self.turn.lock().await;
        self.close_door(lease);
        let asked = match self.machine() {
            Some(machine) => machine.link.ask(Request::Stop { lease }).await,
            // No worker outlives the machine.
            None => Ok(Reply::Leases { leases: Vec::new() }),
        };
        let last = match asked {
            Ok(Reply::Leases { leases }) => leases.into_iter().find(|last| last.lease == lease),
            Ok(Reply::Refused { reason }) => {
                return Reply::Refused { reason: printable(&reason) };
            }
            Ok(Reply::Hello { .. } | Reply::Scrubbed { .. } | Reply::Bye) | Err(_) => None,
        };
        Reply::Leases { leases: self.book.end(lease, last).into_iter().collect() }
    }

    async fn forward(&self, request: Request) -> Reply {
        let Some(machine) = self.machine() else { return refused("it is being started") };
        match machine.link.ask(request).await {
            Ok(Reply::Refused { reason }) => Reply::Refused { reason: printable(&reason) },
            Ok(reply) => reply,
            Err(error) => refused(&error.to_string()),
        }
    }

    /// Opens the slots of leases that were there before this process.
    pub(super) fn resume_slots(self: &Arc<Self>) -> io::Result<()> {
        for order in self.book.orders() {
            self.open_door(&order)?;
        }
        Ok(())
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Door>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_door(self: &Arc<Self>, order: &WorkerOrder) -> io::Result<()> {
        let lease = order.lease;
        let mut doors = self.doors();
        if doors.contains_key(&lease) {
            return Ok(());
        }
        let slot = Slot::of(order);
        let listener = slot::serve(&slot).map_err(io::Error::other)?;
        let closing = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let inside = Arc::default();
        let door = Door { slot, closing: Arc::clone(&closing), inside: Arc::clone(&inside) };
        let relay = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("slot".to_owned())
            .spawn(move || receive(lease, &listener, &closing, &inside, &relay))?;
        doors.insert(lease, door);
        Ok(())
    }

    fn close_door(&self, lease: LeaseId) {
        let Some(door) = self.doors().remove(&lease) else { return };
        let _ = rustix::io::write(&*door.closing, &1u64.to_ne_bytes());
        for socket in door.inside.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(socket) = socket.upgrade() {
                let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
            }
        }
        if let Err(error) = slot::close(&door.slot) {
            tracing::error!(%lease, %error, "an ended lease's slot is still there");
        }
    }

    /// The machine that serves, waited for as long as a process waits for an answer.
    fn wait_for_machine(&self) -> Option<Machine> {
        let end = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.machine() {
                Some(machine) => return Some(machine),
                None if Instant::now() > end => return None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Ends the microVM for good; nothing of it is left.
    async fn power_off(&self) -> io::Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        let machine = self.machine.send_replace(None);
        let Some(zone) = self.keeper.there() else { return Ok(()) };
        if let Some(machine) = machine
            && machine.link.send(&ToGuest::PowerOff).is_ok()
        {
            // Whether it does so or not, it is gone after this.
            let _ = timeout(OFF_LIMIT, zone.ended()).await;
        }
        self.keeper.end(&zone).await.map(drop)
    }
}

/// Receives processes at a slot until it is closed.
fn receive(
    lease: LeaseId,
    listener: &OwnedFd,
    closing: &OwnedFd,
    inside: &Mutex<Vec<Weak<OwnedFd>>>,
    relay: &Weak<Relay>,
) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(closing, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else {
            // Out of descriptors, most likely: those that are served go on.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let socket = Arc::new(socket);
        let most = {
            let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
            inside.retain(|other| other.strong_count() > 0);
            inside.push(Arc::downgrade(&socket));
            relay.upgrade().map_or(0, |relay| usize::from(relay.keeper.vm.windows)) < inside.len()
        };
        if most {
            session::refuse(&socket, &gpuzone_zone::microvm::WindowError::None.into());
            continue;
        }
        let relay = relay.clone();
        let serve = move || {
            let machine = || relay.upgrade()?.wait_for_machine();
            if let Err(error) = session::serve(lease, &socket, machine) {
                tracing::warn!(%lease, %error, "a tenant's process was not connected");
                session::refuse(&socket, &error);
            }
        };
        // When there is no thread to be had, the process sees its socket closed.
        let _ = std::thread::Builder::new().name("session".to_owned()).spawn(serve);
    }
}

fn refused(why: &str) -> Reply {
    Reply::Refused { reason: format!("the driver zone's microVM does not answer: {why}") }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}

impl Answers for Relay {
    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        match request {
            Request::Hello { version: _ } => {
                Reply::Hello { version: VERSION, pid: std::process::id() }
            }
            Request::Start(order) => self.start(order).await,
            Request::Stop { lease } => self.stop(lease).await,
            Request::Scrub(order) => self.forward(Request::Scrub(order)).await,
            Request::Ended => Reply::Leases { leases: self.book.ended() },
            Request::Settle { lease } => {
                self.book.settle(lease);
                // Where the machine is gone, so is what it kept.
                self.forward(Request::Settle { lease }).await;
                Reply::Leases { leases: Vec::new() }
            }
            Request::Status => {
                if let Some(machine) = self.machine() {
                    self.ask_status(&machine).await;
                }
                Reply::Leases { leases: self.book.statuses() }
            }
            Request::Acknowledge { lease, through } => {
                let inside = self.book.acknowledge(lease, through).filter(|through| *through > 0);
                if let Some(through) = inside {
                    self.forward(Request::Acknowledge { lease, through }).await;
                }
                Reply::Leases { leases: Vec::new() }
            }
            Request::Shutdown => {
                for order in self.book.orders() {
                    self.stop(order.lease).await;
                }
                // Whoever hears the answer believes that nothing is left.
                match self.power_off().await {
                    Ok(()) => Reply::Bye,
                    Err(error) => {
                        let reason = format!("the driver zone's microVM cannot be ended: {error}");
                        Reply::Refused { reason }
                    }
                }
            }
        }
    }
}
