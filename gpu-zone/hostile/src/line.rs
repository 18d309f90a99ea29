//! A connection to the lease's worker, and the memory of its rings without anything that keeps
//! one from writing what one likes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gpuzone_wire::client::Client;
use gpuzone_wire::hello::{self, Hello, SOCKET, Welcome};
pub(crate) use gpuzone_wire::ring::places::{ALIGN, HEADER};
use gpuzone_wire::ring::places::{
    CONTROL, DEFERRED, KEY, REPLY, REQUEST, RecordPlace, TENANT_WAKES, WORKER_WAKES,
};
use gpuzone_wire::ring::{Region, RingSizes, Spin};
use gpuzone_wire::spec;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// How long a worker that is being replaced is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Set in a header's flags: the sender waits for an answer.
pub(crate) const WANTS_REPLY: u16 = 1;

/// Words of the control page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    RequestHead,
    RequestWanted,
    ReplyHead,
    ReplyWanted,
    Key,
}

impl Word {
    pub(crate) const ALL: [Self; 5] =
        [Self::RequestHead, Self::RequestWanted, Self::ReplyHead, Self::ReplyWanted, Self::Key];

    const fn place(self) -> usize {
        match self {
            Self::RequestHead => REQUEST.head,
            Self::RequestWanted => REQUEST.wanted,
            Self::ReplyHead => REPLY.head,
            Self::ReplyWanted => REPLY.wanted,
            Self::Key => KEY,
        }
    }
}

/// Where somebody sleeps, and where deferred errors are.
pub(crate) const HALF_WORDS: [usize; 7] = [
    REQUEST.reader_parked,
    REQUEST.writer_parked,
    REPLY.reader_parked,
    REPLY.writer_parked,
    DEFERRED,
    WORKER_WAKES,
    TENANT_WAKES,
];

/// A connection.
pub(crate) struct Line {
    pub(crate) socket: OwnedFd,
    pub(crate) file: OwnedFd,
    pub(crate) sizes: RingSizes,
    pub(crate) memory: Memory,
    /// Where the next request goes.
    pub(crate) tail: AtomicU64,
    /// Which one that is.
    number: AtomicU64,
}

impl Line {
    /// Connects as a program does, patiently.
    pub(crate) fn open(slot: &Path) -> anyhow::Result<Self> {
        let began = Instant::now();
        loop {
            match Self::try_open(slot) {
                Err(_) if began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => return opened,
            }
        }
    }

    /// Connects, or learns why not.
    pub(crate) fn try_open(slot: &Path) -> anyhow::Result<Self> {
        let socket = hello::connect(&slot.join(SOCKET), PATIENCE)?;
        hello::send(
            &socket,
            &Hello { version: spec::VERSION, pid: 1, window: None, apart: false },
            None,
        )?;
        let (welcome, file) = hello::receive::<Welcome>(&socket)?;
        let sizes = match welcome {
            Welcome::Accepted { sizes, .. } => sizes,
            Welcome::Refused { reason } => bail!("{reason}"),
        };
        let file = file.context("no file came")?;
        let memory = Memory::of(&file, sizes)?;
        Ok(Self { socket, file, sizes, memory, tail: AtomicU64::new(0), number: AtomicU64::new(0) })
    }

    /// Whether the worker has closed it.
    pub(crate) fn was_ended(&self) -> bool {
        hello::is_closed(&self.socket)
    }

    /// Waits until the worker has closed it.
    pub(crate) fn ends(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.was_ended() {
            if began.elapsed() > PATIENCE {
                bail!("the worker did not end a session that had to be ended");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// An honest client of the same rings, to be made before anything was written.
    pub(crate) fn client(self) -> anyhow::Result<(Client, Memory)> {
        let region = Region::open(&self.file, self.sizes)?;
        Ok((Client::new(region, self.socket, Spin::default()), self.memory))
    }

    /// Writes bytes where the next request goes, and publishes them; the one after them goes behind
    /// so many of them.
    pub(crate) fn put(&self, bytes: &[u8], length: usize) {
        let position = self.tail.fetch_add(length as u64, Ordering::Relaxed);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.memory.write_request(position, bytes);
        self.memory.publish(RecordPlace { position, number });
    }
}

/// A record with honest lengths.
pub(crate) fn record(opcode: u16, flags: u16, context: u32, control: &[u8]) -> Vec<u8> {
    let bulk_at = HEADER + control.len().next_multiple_of(16);
    let total = bulk_at.next_multiple_of(ALIGN);
    let lengths = [total, control.len(), 0].map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
    let mut bytes = header(lengths, opcode, flags, context);
    bytes.extend_from_slice(control);
    bytes.resize(total, 0);
    bytes
}

/// A header: lengths of all, of the control part and of the bulk part.
pub(crate) fn header(lengths: [u32; 3], opcode: u16, flags: u16, context: u32) -> Vec<u8> {
    // The stamp comes when it is published.
    let mut bytes = vec![0; 8];
    bytes.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(context.to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes
}

/// The rings' memory, all of it, writable.
pub(crate) struct Memory {
    base: NonNull<u8>,
    length: usize,
    request: u64,
    reply: u64,
    key: u64,
}

// SAFETY: shared memory that another process changes all the time; it is touched only as atomics
// and by volatile writes.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn of(file: &OwnedFd, sizes: RingSizes) -> anyhow::Result<Self> {
        let length = CONTROL + sizes.request as usize + sizes.reply as usize;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).context("nothing is mapped at 0")?;
        let (request, reply) = (sizes.request.into(), sizes.reply.into());
        let mut memory = Self { base, length, request, reply, key: 0 };
        memory.key = memory.word(Word::Key).load(Ordering::Acquire);
        Ok(memory)
    }

    /// A position.
    pub(crate) fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: within the first page of the mapping, aligned to 128 bytes.
        unsafe { self.base.add(word.place()).cast::<AtomicU64>().as_ref() }
    }

    /// A smaller word, at a place of [`HALF_WORDS`].
    pub(crate) fn half(&self, place: usize) -> &AtomicU32 {
        assert!(place < CONTROL && place.is_multiple_of(4));
        // SAFETY: within the first page of the mapping, and aligned.
        unsafe { self.base.add(place).cast::<AtomicU32>().as_ref() }
    }

    /// Writes into the request ring at a position.
    pub(crate) fn write_request(&self, position: u64, bytes: &[u8]) {
        for (at, byte) in (position..).zip(bytes) {
            let place = CONTROL as u64 + at % self.request;
            self.write(usize::try_from(place).unwrap_or(0), *byte);
        }
    }

    /// Writes a byte anywhere.
    pub(crate) fn write(&self, place: usize, byte: u8) {
        assert!(place < self.length);
        // SAFETY: within the mapping.
        unsafe { self.base.add(place).write_volatile(byte) };
    }

    /// Bytes of all of it.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// A word in the request ring's memory, or the reply ring's.
    fn in_ring(&self, start: u64, size: u64, position: u64) -> &AtomicU64 {
        let place = CONTROL as u64 + start + position % size;
        let place = usize::try_from(place).unwrap_or(0);
        assert!(place.is_multiple_of(8) && place < self.length);
        // SAFETY: within the mapping, and aligned.
        unsafe { self.base.add(place).cast::<AtomicU64>().as_ref() }
    }

    /// Where the replies end that were published from a place on, if they are honest.
    pub(crate) fn replies_end(&self, mut place: RecordPlace) -> RecordPlace {
        let word = |at: u64| self.in_ring(self.request, self.reply, at).load(Ordering::Acquire);
        while word(place.position) == self.key.wrapping_add(place.number) {
            // The length of the whole is the header's next field.
            let length = word(place.position + 8) & u64::from(u32::MAX);
            place.position += length.next_multiple_of(ALIGN as u64).max(ALIGN as u64);
            place.number += 1;
        }
        place
    }

    /// Writes a record at a place of the request ring and publishes it; the next one goes behind it.
    pub(crate) fn append(&self, place: &mut RecordPlace, bytes: &[u8]) {
        self.write_request(place.position, bytes);
        self.publish(*place);
        place.position += bytes.len() as u64;
        place.number += 1;
    }

    /// Publishes a record of the request ring, and wakes its reader.
    pub(crate) fn publish(&self, place: RecordPlace) {
        let stamp = self.in_ring(0, self.request, place.position);
        stamp.store(self.key.wrapping_add(place.number), Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the worker, whatever for.
    pub(crate) fn wake(&self) {
        self.half(REQUEST.reader_parked).store(0, Ordering::SeqCst);
        let wakes = self.half(WORKER_WAKES);
        wakes.fetch_add(1, Ordering::SeqCst);
        // Whoever sleeps there looks again; if nobody does, nothing is lost.
        let _ = rustix::thread::futex::wake(wakes, rustix::thread::futex::Flags::empty(), 1);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, to which nothing refers any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
