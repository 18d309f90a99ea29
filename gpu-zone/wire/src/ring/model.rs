//! The ends of a ring in every order that memory and scheduler allow, with loom: no wake-up is
//! lost, no record is torn, and when one side dies at any step the other ends.
//!
//! What stands for the kernel: a futex is a lock and a condition variable, without the time
//! limit that sleepers have in truth, so a wake-up that is lost is a deadlock here. A side that
//! died is noticed as it is in truth, by whoever watches its socket, who then wakes the other.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::RingError;
use super::ends::{Consumer, Position, Producer, Shared};
use super::park::{Parking, Peer, Spin, wake_to_look};
use super::record::ALIGN;

/// Records are as small as can be, and the ring holds two.
const RECORD: u64 = ALIGN as u64;
const SLOTS: u64 = 2;
const SPIN: Spin = Spin { time: Duration::ZERO };
/// More steps than any life of three records has.
const LONGEST: u32 = 40;

/// What a side that dies unwinds with.
struct Died;

loom::thread_local! {
    /// Steps that the side has left; `None`: it lives.
    static LEFT: Cell<Option<u32>> = Cell::new(None);
}

/// To be called before everything that the other side can see.
fn step() {
    LEFT.with(|left| match left.get() {
        Some(0) => {
            left.set(None);
            resume_unwind(Box::new(Died));
        }
        Some(some) => left.set(Some(some - 1)),
        None => {}
    });
}

struct Futex<const FENCED: bool> {
    parked: AtomicU32,
    wakes: AtomicU32,
    bucket: Mutex<()>,
    sleepers: Condvar,
}

impl<const FENCED: bool> Futex<FENCED> {
    fn new() -> Self {
        Self {
            parked: AtomicU32::new(0),
            wakes: AtomicU32::new(0),
            bucket: Mutex::new(()),
            sleepers: Condvar::new(),
        }
    }
}

impl<const FENCED: bool> Parking for Futex<FENCED> {
    fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed) != 0
    }

    fn set_parked(&self, parked: bool) {
        step();
        self.parked.store(parked.into(), Ordering::Relaxed);
    }

    fn wakes(&self) -> u32 {
        self.wakes.load(Ordering::Acquire)
    }

    fn fence() {
        if FENCED {
            fence(Ordering::SeqCst);
        }
    }

    fn sleep(&self, seen: u32, _time: Duration) -> bool {
        let bucket = self.bucket.lock().unwrap();
        // As the kernel does: it looks once more, under the lock that wakers take.
        if self.wakes.load(Ordering::Relaxed) == seen {
            drop(self.sleepers.wait(bucket).unwrap());
        }
        false
    }

    fn wake(&self) {
        step();
        self.wakes.fetch_add(1, Ordering::SeqCst);
        step();
        let _bucket = self.bucket.lock().unwrap();
        self.sleepers.notify_all();
    }
}

impl Position for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        step();
        Self::store(self, value, order);
    }
}

struct Ring<const FENCED: bool> {
    stamps: Vec<AtomicU64>,
    head: AtomicU64,
    wanted: AtomicU64,
    reader: Futex<FENCED>,
    writer: Futex<FENCED>,
    /// Two halves each: a record that is torn has two numbers. Whoever touches one while the
    /// other side does fails the model.
    slots: Vec<UnsafeCell<[u64; 2]>>,
    gone: AtomicBool,
}

// SAFETY: slots are touched by the side whose turn it is; that this holds is what is tested.
unsafe impl<const FENCED: bool> Sync for Ring<FENCED> {}
// SAFETY: as above.
unsafe impl<const FENCED: bool> Send for Ring<FENCED> {}

impl<const FENCED: bool> Shared for Ring<FENCED> {
    type Position = AtomicU64;
    type Parking = Futex<FENCED>;

    fn stamp(&self, position: u64) -> &AtomicU64 {
        &self.stamps[place(position)]
    }

    fn published(&self, number: u64) -> u64 {
        number + 1
    }

    fn head(&self) -> &AtomicU64 {
        &self.head
    }

    fn wanted(&self) -> &AtomicU64 {
        &self.wanted
    }

    fn reader(&self) -> &Futex<FENCED> {
        &self.reader
    }

    fn writer(&self) -> &Futex<FENCED> {
        &self.writer
    }
}

impl<const FENCED: bool> Peer for Ring<FENCED> {
    fn is_there(&self, _slept: bool) -> bool {
        !self.gone.load(Ordering::SeqCst)
    }

    fn slice(&self) -> Duration {
        Duration::MAX
    }
}

impl<const FENCED: bool> Ring<FENCED> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            stamps: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            head: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            reader: Futex::new(),
            writer: Futex::new(),
            slots: (0..SLOTS).map(|_| UnsafeCell::new([0; 2])).collect(),
            gone: AtomicBool::new(false),
        })
    }

    fn slot(&self, position: u64) -> &UnsafeCell<[u64; 2]> {
        &self.slots[place(position)]
    }

    fn write(&self, records: u64, batch: u64) -> Result<(), RingError> {
        let mut own = Producer::default();
        for number in 1..=records {
            own.make_room(self, SLOTS * RECORD, (RECORD, batch), SPIN, self)?;
            self.write_one(&mut own, number, RECORD);
        }
        Ok(())
    }

    /// Writes a record, which is followed by the next one so many bytes further on.
    fn write_one(&self, own: &mut Producer, number: u64, advance: u64) {
        for half in 0..2 {
            step();
            // SAFETY: there is room, so the slot is the writer's; loom checks it.
            self.slot(own.tail).with_mut(|slot| unsafe { (*slot)[half] = number });
        }
        own.publish(self, advance);
    }

    /// Waits for a record and reads it.
    fn read_one(&self, own: &mut Consumer, number: u64, advance: u64) -> Result<(), RingError> {
        assert!(own.wait(self, SPIN, None, self)?, "nothing limits the wait");
        step();
        // SAFETY: it is published, so the slot is the reader's; loom checks it.
        let record = self.slot(own.next).with(|slot| unsafe { *slot });
        assert_eq!(record, [number; 2], "whole, and in its turn");
        own.advance(advance);
        Ok(())
    }

    /// Reads until there were so many, or the other side is gone; how many there were. Gives them
    /// back when they are at least so many bytes.
    fn read(&self, records: u64, least: u64) -> Result<u64, RingError> {
        let mut own = Consumer::default();
        for number in 1..=records {
            own.release_if(self, least);
            match self.read_one(&mut own, number, RECORD) {
                Ok(()) => {}
                Err(RingError::PeerGone) => return Ok(number - 1),
                Err(other) => return Err(other),
            }
        }
        own.release_if(self, least);
        Ok(records)
    }

    /// Tells the other side that this one is gone, as whoever watches its socket does.
    fn goes(&self) {
        self.gone.store(true, Ordering::SeqCst);
        wake_to_look(&self.reader);
        wake_to_look(&self.writer);
    }

    /// Does one side's work, of which it does so many steps if it is to die; whether it lived.
    fn side<T>(&self, steps: Option<u32>, work: impl FnOnce() -> T) -> Option<T> {
        LEFT.with(|left| left.set(steps));
        let done = catch_unwind(AssertUnwindSafe(work));
        LEFT.with(|left| left.set(None));
        match done {
            Ok(done) => Some(done),
            Err(panic) if panic.is::<Died>() => {
                self.goes();
                None
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

fn place(position: u64) -> usize {
    usize::try_from(position / RECORD % SLOTS).unwrap()
}

fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(run);
}

/// Two threads, one at each end, of which either may die after some steps.
fn both<const FENCED: bool>(
    records: u64,
    (batch, least): (u64, u64),
    writer: Option<u32>,
    reader: Option<u32>,
) {
    let ring = Ring::<FENCED>::new();
    let other = ring.clone();
    let writing = thread::spawn(move || {
        let wrote = other.side(writer, || other.write(records, batch));
        assert!(matches!(wrote, None | Some(Ok(()) | Err(RingError::PeerGone))), "{wrote:?}");
        assert!(wrote.is_some() || writer.is_some_and(|steps| steps < LONGEST));
        wrote == Some(Ok(()))
    });
    let read = ring.side(reader, || ring.read(records, least));
    let wrote = writing.join().unwrap();
    match read {
        // What was published is read, whatever became of the writer.
        Some(read) => {
            let stamps = ring.stamps.iter().map(|stamp| stamp.load(Ordering::SeqCst));
            let published = stamps.max().unwrap();
            assert_eq!(read, Ok(published));
            assert!(published == records || writer.is_some());
        }
        None => assert!(reader.is_some_and(|steps| steps < LONGEST) && (wrote || records > 0)),
    }
}

/// Asks and waits for the answer, so many times, in two rings in which all lies in one place; either side
/// may die after some steps.
fn calls(calls: u64, asking: Option<u32>, answering: Option<u32>) {
    let (questions, answers) = (Ring::<true>::new(), Ring::<true>::new());
    let (theirs_in, theirs_out) = (questions.clone(), answers.clone());
    let done = |done: Result<(), RingError>| {
        assert!(matches!(done, Ok(()) | Err(RingError::PeerGone)), "{done:?}");
    };
    let answerer = thread::spawn(move || {
        let (mut read, mut written) = (Consumer::default(), Producer::default());
        let lived = theirs_in.side(answering, || {
            (1..=calls).try_for_each(|number| {
                theirs_in.read_one(&mut read, number, 0)?;
                theirs_out.write_one(&mut written, number, 0);
                Ok(())
            })
        });
        lived.map(done);
        if answering.is_some() && lived.is_none() {
            theirs_out.goes();
        }
    });
    let (mut written, mut read) = (Producer::default(), Consumer::default());
    let lived = answers.side(asking, || {
        (1..=calls).try_for_each(|number| {
            questions.write_one(&mut written, number, 0);
            answers.read_one(&mut read, number, 0)
        })
    });
    lived.map(done);
    if lived.is_none() {
        questions.goes();
    }
    answerer.join().unwrap();
}

#[test]
fn questions_and_answers_in_one_place_are_whole_and_wake_whoever_waits() {
    explore(3, || calls(3, None, None));
    for steps in 0..=LONGEST {
        explore(2, move || calls(2, Some(steps), None));
        explore(2, move || calls(2, None, Some(steps)));
    }
}

#[test]
fn no_wake_up_is_lost_and_no_record_is_torn() {
    explore(3, || both::<true>(3, (RECORD, RECORD), None, None));
}

/// A writer that waits until the ring is empty is woken then, and at no record before it.
#[test]
fn no_wake_up_is_lost_of_a_writer_that_waits_for_more() {
    explore(3, || both::<true>(3, (SLOTS * RECORD, RECORD), None, None));
    for steps in 0..20 {
        explore(2, move || both::<true>(3, (SLOTS * RECORD, RECORD), None, Some(steps)));
    }
}

/// A reader that gives back two records at once, and keeps one while nothing comes.
#[test]
fn no_wake_up_is_lost_of_a_writer_whose_reader_keeps_records() {
    explore(3, || both::<true>(4, (RECORD, SLOTS * RECORD), None, None));
    for steps in (0..=LONGEST).step_by(3) {
        explore(2, move || both::<true>(3, (RECORD, SLOTS * RECORD), Some(steps), None));
        explore(2, move || both::<true>(3, (RECORD, SLOTS * RECORD), None, Some(steps)));
    }
}

#[test]
fn a_reader_ends_wherever_the_writer_dies() {
    for steps in 0..=LONGEST {
        explore(2, move || both::<true>(3, (RECORD, RECORD), Some(steps), None));
    }
}

#[test]
fn a_writer_ends_wherever_the_reader_dies() {
    for steps in 0..=LONGEST {
        explore(2, move || both::<true>(3, (RECORD, RECORD), None, Some(steps)));
    }
}

#[test]
fn both_end_wherever_both_die() {
    for writer in (0..24).step_by(3) {
        for reader in (0..24).step_by(3) {
            explore(1, move || both::<true>(3, (RECORD, RECORD), Some(writer), Some(reader)));
        }
    }
}

/// Shows that the model can fail: it finds the wake-up that is lost without the fences. A model
/// that fails takes its process along.
#[test]
fn without_the_fences_a_wake_up_is_lost() {
    let mut model = std::process::Command::new(std::env::current_exe().unwrap());
    model.args(["--exact", "ring::model::unfenced", "--ignored", "--nocapture"]);
    let failed = model.env("RUST_BACKTRACE", "0").output().unwrap();
    assert!(!failed.status.success());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("deadlock"), "{said}");
}

#[test]
#[ignore = "fails, for another test to see"]
fn unfenced() {
    explore(3, || both::<false>(1, (RECORD, RECORD), None, None));
}
