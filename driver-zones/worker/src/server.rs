//! The main thread: accepts tenants at the slot's socket, sees them go, and ends the process
//! when another should take its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gpuzone_wire::handover::EXIT_REPLACE;
use gpuzone_wire::hello::{self, Hello, HelloError, WINDOW_FILES, Welcome};
use gpuzone_wire::ring::{Bells, Region, RegionError, RingSizes, Side, Spin};
use gpuzone_wire::spec;
use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::view::{self, Look, Opening, Seen};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::account::Account;
use crate::busy::BusyClock;
use crate::greetings::Greetings;
use crate::log;
use crate::roster::Roster;
use crate::session::{Ended, Lease, LinePlace, Session, SessionPeer, serve};

/// How long a process that connected may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the busy time of work under way is published.
const TICK: Duration = Duration::from_millis(200);

/// Why the worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The slot's socket failed.
    #[error("the slot's socket failed: {0}")]
    Listener(Errno),
    /// The kernel would not wait.
    #[error("cannot wait for tenants: {0}")]
    Wait(Errno),
}

struct Tenant {
    socket: Arc<OwnedFd>,
    peer: Arc<SessionPeer>,
    clock: Arc<BusyClock>,
    region: Arc<OnceLock<Arc<Region>>>,
    /// It only looks, and holds nothing.
    looks: Arc<AtomicBool>,
    line: LinePlace,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Serves tenants until the process has to be replaced; answers the exit code.
///
/// # Errors
/// When the slot's socket fails.
pub fn run(lease: &Arc<Lease>, listener: &OwnedFd) -> Result<i32, ServeError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let ended = Arc::new(eventfd(0, flags).map_err(ServeError::Wait)?);
    let mut tenants: Vec<Tenant> = Vec::new();
    let roster = Arc::new(Roster::default());
    let (began, mut greetings) = (Instant::now(), Greetings::new());
    loop {
        let pause = greetings.wait(began.elapsed());
        let accepted = wait(listener, pause, &ended, &tenants)?;
        if accepted && let Some(socket) = accept(listener)? {
            greetings.greeted(began.elapsed());
            admit(lease, socket, &ended, &roster, &mut tenants);
        }
        reap(&mut tenants);
        let working = tenants.iter().filter(|tenant| !tenant.looks.load(Ordering::SeqCst)).count();
        lease.stats.set_sessions(u32::try_from(working).unwrap_or(u32::MAX));
        let now = Monotonic::now();
        for tenant in &tenants {
            tenant.clock.tick(now);
        }
        roster.note(now, &lease.worked.of_each());
        if tenants.is_empty() && lease.poisoned.load(Ordering::SeqCst) {
            return Ok(EXIT_REPLACE);
        }
    }
}

/// Waits for something to happen; whether somebody wants in, which is not looked at while there
/// is a `pause`. Tells sessions whose tenant went.
fn wait(
    listener: &OwnedFd,
    pause: Duration,
    ended: &OwnedFd,
    tenants: &[Tenant],
) -> Result<bool, ServeError> {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let watched: Vec<&Tenant> =
        tenants.iter().filter(|tenant| !tenant.peer.gone.load(Ordering::SeqCst)).collect();
    let wanted = if pause.is_zero() { PollFlags::IN } else { PollFlags::empty() };
    let mut fds = vec![PollFd::new(listener, wanted), PollFd::new(ended, PollFlags::IN)];
    fds.extend(watched.iter().map(|tenant| PollFd::new(&*tenant.socket, PollFlags::RDHUP)));
    match poll(&mut fds, until(pause, tenants).as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(ServeError::Wait(error)),
    }
    let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
    for (tenant, events) in watched.iter().zip(events.iter().skip(2)) {
        if events.intersects(gone) {
            tenant.peer.gone.store(true, Ordering::SeqCst);
            if let Some(line) = tenant.line.get() {
                line.close();
            }
            if let Some(region) = tenant.region.get() {
                region.wake_all();
            }
        }
    }
    if events.get(1).is_some_and(|events| events.contains(PollFlags::IN)) {
        let mut count = [0u8; 8];
        // Empties the counter; nothing depends on its value.
        let _ = rustix::io::read(ended, &mut count);
    }
    let first = events.first().copied().unwrap_or(PollFlags::empty());
    if first.intersects(PollFlags::ERR | PollFlags::NVAL) {
        return Err(ServeError::Listener(Errno::BADF));
    }
    Ok(first.contains(PollFlags::IN))
}

/// How long to wait if nothing happens.
fn until(pause: Duration, tenants: &[Tenant]) -> Option<Timespec> {
    let tick = (!tenants.is_empty()).then_some(TICK);
    let pause = (!pause.is_zero()).then_some(pause);
    let shorter = tick.into_iter().chain(pause).min()?;
    Timespec::try_from(shorter).ok()
}

fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, ServeError> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
            log::say(&format!("cannot accept a tenant's process now: {error}"));
            std::thread::sleep(Duration::from_millis(50));
            Ok(None)
        }
        Err(error) => Err(ServeError::Listener(error)),
    }
}

fn admit(
    lease: &Arc<Lease>,
    socket: OwnedFd,
    ended: &Arc<OwnedFd>,
    roster: &Arc<Roster>,
    tenants: &mut Vec<Tenant>,
) {
    if tenants.len() >= lease.caps.sessions as usize {
        let reason = format!(
            "the lease has {} processes connected already, as many as it may; end one first",
            tenants.len()
        );
        refuse_unheard(&socket, reason);
        return;
    }
    let socket = Arc::new(socket);
    let mut tenant = Tenant {
        socket: socket.clone(),
        peer: Arc::default(),
        clock: Arc::new(BusyClock::new(lease.worked.clone())),
        region: Arc::default(),
        looks: Arc::default(),
        line: LinePlace::default(),
        done: Arc::default(),
        thread: None,
    };
    let (peer, clock) = (tenant.peer.clone(), tenant.clock.clone());
    let (region, done, looks) = (tenant.region.clone(), tenant.done.clone(), tenant.looks.clone());
    let line = tenant.line.clone();
    let (lease, ended, roster) = (lease.clone(), ended.clone(), roster.clone());
    let body = move || {
        let attended = AssertUnwindSafe(|| {
            let visit = Visit { lease: &lease, roster: &roster, socket: socket.as_fd(), line };
            visit.attend(&peer, clock, &region, &looks);
        });
        if std::panic::catch_unwind(attended).is_err() {
            log::say("a session ended by a fault of the worker's own; others go on");
            lease.poisoned.store(true, Ordering::SeqCst);
        }
        // The tenant sees the end of its session here, however it came about.
        let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
        done.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&*ended, &1u64.to_ne_bytes());
    };
    match std::thread::Builder::new().name("session".to_owned()).spawn(body) {
        Ok(thread) => {
            tenant.thread = Some(thread);
            tenants.push(tenant);
        }
        Err(error) => {
            let reason = format!("the worker cannot start another thread: {error}");
            refuse_unheard(&tenant.socket, reason);
        }
    }
}

/// Refuses before the greeting. It is read all the same, but not waited for long: a socket that
/// is closed with something unread is reset, and the reason with it.
fn refuse_unheard(socket: impl AsFd, reason: String) {
    let _ = hello::limit_waiting(&socket, Duration::from_millis(50));
    let _ = hello::receive::<Opening>(&socket);
    refuse(socket, reason);
}

fn refuse(socket: impl AsFd, reason: String) {
    log::say(&format!("refused a tenant's process: {reason}"));
    // Whether it hears the reason is up to it.
    let _ = hello::limit_waiting(&socket, Duration::from_millis(100));
    let _ = hello::send(&socket, &Welcome::Refused { reason }, None);
}

#[derive(Debug, thiserror::Error)]
enum AttendError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// A process that connected.
struct Visit<'a> {
    lease: &'a Arc<Lease>,
    roster: &'a Roster,
    socket: BorrowedFd<'a>,
    line: LinePlace,
}

impl Visit<'_> {
    /// Its thread, from the greeting to the end.
    fn attend(
        &self,
        peer: &SessionPeer,
        clock: Arc<BusyClock>,
        place: &OnceLock<Arc<Region>>,
        looks: &AtomicBool,
    ) {
        let welcomed = match self.opening() {
            Ok((Opening::Look(look), _)) => {
                looks.store(true, Ordering::SeqCst);
                self.show(look).map(|()| None)
            }
            Ok((Opening::Work(hello), files)) => self.welcome(hello, files),
            Err(error) => Err(error),
        };
        let (hello, region) = match welcomed {
            Ok(Some((hello, region))) => (hello, place.get_or_init(|| region).clone()),
            Ok(None) => return,
            Err(error) => {
                log::say(&format!("a tenant's process could not be welcomed: {error}"));
                return;
            }
        };
        let account = Account::new(self.lease.devices.len());
        account.open();
        let _listed = self.roster.enter(hello.pid, account, clock.clone());
        let mut session = Session::new(self.lease.clone(), clock, self.line.clone());
        let files = (!hello.apart).then_some(self.socket);
        match serve(&mut session, region, spin(hello.apart), peer, files) {
            Ended::Gone => {}
            ended @ (Ended::Ring(_) | Ended::Call(_)) => {
                log::say(&format!("a session was ended: {ended}"))
            }
        }
    }

    fn opening(&self) -> Result<(Opening, Vec<OwnedFd>), AttendError> {
        hello::limit_waiting(self.socket, HELLO_TIMEOUT)?;
        Ok(hello::receive_with::<Opening>(self.socket)?)
    }

    fn show(&self, look: Look) -> Result<(), AttendError> {
        if look.look == view::VERSION {
            let seen = Seen::Lease(self.roster.view(self.lease, Monotonic::now()));
            hello::send(self.socket, &seen, None)?;
        } else {
            let (theirs, ours) = (look.look, view::VERSION);
            refuse(
                self.socket,
                format!(
                    "the program's libnvidia-ml.so.1 asks by version {theirs} and the worker answers {ours}; start the program anew with the installed one"
                ),
            );
        }
        Ok(())
    }

    fn welcome(
        &self,
        hello: Hello,
        files: Vec<OwnedFd>,
    ) -> Result<Option<(Hello, Arc<Region>)>, AttendError> {
        if hello.version != spec::VERSION {
            let reason = format!(
                "the program's libcuda.so.1 speaks version {} of the protocol and the worker version {}; start the program anew with the installed one",
                hello.version,
                spec::VERSION
            );
            refuse(self.socket, reason);
            return Ok(None);
        }
        let (sizes, file, region) = match (hello.window, self.lease.windows) {
            (None, false) => {
                let sizes = RingSizes::from(self.lease.caps.ring_bytes);
                let (file, region) = Region::create(sizes)?;
                (sizes, Some(file), region)
            }
            (Some(sizes), true) => (sizes, None, window(sizes, files)?),
            (Some(_), false) | (None, true) => {
                let reason = "rings are made by the worker, or lie in a window of the driver zone's; this is the other kind of zone";
                refuse(self.socket, reason.to_owned());
                return Ok(None);
            }
        };
        let devices = self.lease.devices.iter().map(|device| device.info.clone()).collect();
        let driver_version = self.lease.driver_version;
        let record_bytes = self.lease.caps.record_bytes;
        let welcome = Welcome::Accepted { sizes, record_bytes, driver_version, devices };
        hello::send(self.socket, &welcome, file.as_ref().map(AsFd::as_fd))?;
        Ok(Some((hello, Arc::new(region))))
    }
}

/// The rings in a window that the zone's first process handed over.
fn window(sizes: RingSizes, files: Vec<OwnedFd>) -> Result<Region, AttendError> {
    let Ok([file, ours, theirs]) = <[OwnedFd; WINDOW_FILES]>::try_from(files) else {
        return Err(HelloError::NotUnderstood.into());
    };
    Ok(Region::window(file, sizes, Bells { ours, theirs }, Side::Worker)?)
}

/// How long a session looks for more before it sleeps. Where the tenant is in another machine, the
/// end of a sleep costs both machines' attention.
fn spin(apart: bool) -> Spin {
    let usual = Spin::default();
    match apart && !usual.time.is_zero() {
        true => Spin { time: Duration::from_micros(50) },
        false => usual,
    }
}

fn reap(tenants: &mut Vec<Tenant>) {
    for tenant in tenants.iter_mut().filter(|tenant| tenant.done.load(Ordering::SeqCst)) {
        if let Some(thread) = tenant.thread.take() {
            // It has said that it is done, and it catches its panics.
            let _ = thread.join();
        }
    }
    tenants.retain(|tenant| tenant.thread.is_some());
}
