//! A device between two tenants: marked, reset, looked at. What it comes to is
//! [`gpuzone_core::devices::Turnover`]'s to say; here it is done, and nobody waits for ever.

mod over_vfio;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gpuzone_core::devices::{
    Canary, CanaryPlace as Place, Condemned, Reset, Step, Turnover, TurnoverTerms,
};
use gpuzone_core::{PciAddress, Timestamp};
use serde::Serialize;

pub use over_vfio::{Between, BetweenError, between_tenants};

/// How often a device is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Of a device's memory, so many places are marked and looked at.
const PLACES: u32 = 256;

/// A device that can be turned over. VFIO's are; a test's may be another.
pub trait Target: Send + 'static {
    /// How many bytes of its memory can be seen.
    fn length(&self) -> u64;
    /// Reads a word of it.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, at: u64) -> io::Result<u64>;
    /// Writes one.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, at: u64, word: u64) -> io::Result<()>;
    /// Resets it; ends when the reset does.
    ///
    /// # Errors
    /// When it cannot be reset so.
    fn reset(&mut self, reset: Reset) -> io::Result<()>;
    /// Whether it is there again.
    ///
    /// # Errors
    /// When that cannot be asked.
    fn answers(&mut self) -> io::Result<bool>;
}

/// What is on record about a device's way from one tenant to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TurnoverRecord {
    /// Which device.
    pub device: PciAddress,
    /// How it was reset.
    pub reset: Reset,
    /// How much of its memory could be seen.
    pub seen_bytes: u64,
    /// At how many places it was looked at.
    pub places: usize,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Why it serves nobody; none when it may serve the next.
    pub condemned: Option<Condemned>,
}

impl TurnoverRecord {
    /// A line for people.
    pub fn sentence(&self) -> String {
        let Self { device, reset, places, seen_bytes, .. } = self;
        match &self.condemned {
            None => format!(
                "{device} was reset ({reset}) and showed at none of {places} places, over {seen_bytes} bytes, what had been written there before"
            ),
            Some(why) => format!("{device} is in quarantine: {why}"),
        }
    }
}

/// What the thread that has the device is asked for.
enum Ask {
    Mark(Vec<(Place, u64)>),
    Reset(Reset),
    Answers,
    Check(Vec<Place>),
}

enum Told {
    Words(Vec<u64>),
    Done,
    Answers(bool),
}

fn perform(target: &mut dyn Target, ask: Ask) -> io::Result<Told> {
    match ask {
        Ask::Mark(marks) => {
            for (place, word) in &marks {
                target.write(place.0, *word)?;
            }
            let read = marks.iter().map(|(place, _)| target.read(place.0));
            read.collect::<io::Result<_>>().map(Told::Words)
        }
        Ask::Reset(reset) => target.reset(reset).map(|()| Told::Done),
        Ask::Answers => target.answers().map(Told::Answers),
        Ask::Check(places) => {
            let read = places.iter().map(|place| target.read(place.0));
            read.collect::<io::Result<_>>().map(Told::Words)
        }
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = since.unwrap_or_default().as_nanos();
    Timestamp::from_nanoseconds(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// The device's own thread: a reset that does not end keeps it, and nobody else.
struct Hands {
    ask: Sender<Ask>,
    told: Receiver<io::Result<Told>>,
    thread: JoinHandle<()>,
}

impl Hands {
    fn new(mut target: impl Target) -> Self {
        let (ask, asked) = channel();
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            while let Ok(ask) = asked.recv() {
                if tell.send(perform(&mut target, ask)).is_err() {
                    break;
                }
            }
        });
        Self { ask, told, thread }
    }

    /// Has the device let go of, so that whoever comes next can have it. Closing it may take the
    /// kernel a while; a device that hangs is not let go of.
    fn let_go(self, within: Duration) {
        drop(self.ask);
        let began = Instant::now();
        while !self.thread.is_finished() && began.elapsed() < within {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it is done, or `over` says that it was waited for long enough.
    fn ask(&self, ask: Ask, mut over: impl FnMut() -> bool) -> Option<io::Result<Told>> {
        if self.ask.send(ask).is_err() {
            return Some(Err(io::Error::other("the thread that has the device is gone")));
        }
        loop {
            match self.told.recv_timeout(ASK_EVERY) {
                Ok(told) => return Some(told),
                Err(RecvTimeoutError::Timeout) if over() => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Err(io::Error::other("the thread that has the device is gone")));
                }
            }
        }
    }
}

/// Turns a device over: resets it, and looks whether what was in its memory is gone. `seed` is
/// known to nobody who had the device.
pub fn turn_over(
    device: PciAddress,
    target: impl Target,
    reset: Reset,
    terms: TurnoverTerms,
    seed: u64,
) -> TurnoverRecord {
    let (seen_bytes, began, started) = (target.length(), now(), Instant::now());
    // The clock of the waiting does not jump when somebody sets the time.
    let clock = || {
        let passed = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Timestamp::from_nanoseconds(passed)
    };
    let canary = Canary::new(seed);
    let places = canary.places(seen_bytes, PLACES);
    let count = places.len();
    let mut turnover = Turnover::begin(terms, reset, canary, places, clock());
    let (hands, mut hung) = (Hands::new(target), false);
    loop {
        let ask = match turnover.next() {
            Step::Mark => Ask::Mark(turnover.marks().collect()),
            Step::Reset(reset) => Ask::Reset(reset),
            Step::Ask => Ask::Answers,
            Step::Check => Ask::Check(turnover.marks().map(|(place, _)| place).collect()),
            Step::Clear | Step::Condemned => break,
        };
        let step = turnover.next();
        let told = hands.ask(ask, || {
            turnover.tick(clock());
            turnover.next() != step
        });
        match (step, told) {
            // It took too long, and is condemned.
            (_, None) => hung = true,
            (_, Some(Err(error))) => turnover.failed(&error.to_string(), clock()),
            (Step::Mark, Some(Ok(Told::Words(words)))) => turnover.marked(&words, clock()),
            (Step::Check, Some(Ok(Told::Words(words)))) => turnover.checked(&words, clock()),
            (Step::Ask, Some(Ok(Told::Answers(answers)))) => {
                turnover.answered(answers, clock());
                turnover.tick(clock());
                if !answers {
                    thread::sleep(ASK_EVERY);
                }
            }
            (Step::Reset(_), Some(Ok(Told::Done))) => turnover.reset_done(clock()),
            (_, Some(Ok(Told::Words(_) | Told::Done | Told::Answers(_)))) => {
                turnover.failed("an answer to another question", clock());
            }
        }
    }
    let condemned = turnover.condemned().cloned();
    if !hung {
        hands.let_go(Duration::from_nanos(terms.answer_within));
    }
    TurnoverRecord { device, reset, seen_bytes, places: count, began, ended: now(), condemned }
}
