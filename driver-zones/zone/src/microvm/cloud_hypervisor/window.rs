//! A window as a device of ours: `ivshmem`'s memory, served to Cloud Hypervisor over vfio-user.
//!
//! Its own ivshmem is one for a machine, from its start on, and releases are built without it; what else
//! takes memory takes it by a path. A vfio-user device is plugged in while the guest runs, and hands its
//! memory over as a file, which the guest has mapped. What is left to be asked here is a configuration
//! space: no register, no interrupt, no DMA. Files that come with a message, which would be the guest's
//! memory, are not received: the kernel closes them.
//!
//! Who asks may have been taken over by its guest: a message has a longest length, and what is not
//! understood ends the device and nothing else.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::Timespec;

use crate::microvm::WINDOW_BYTES;

/// How long Cloud Hypervisor may take to come.
const COMING: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// How long it may take to read an answer.
const READING: Duration = Duration::from_secs(20);
/// Longest message, with its header.
const LONGEST: usize = 8192;

const HEADER: usize = 16;
const IS_REPLY: u32 = 1;
const IS_ERROR: u32 = 1 << 5;
const WANTS_NO_REPLY: u32 = 1 << 4;
const NOT_SUPPORTED: u32 = 95;

/// Commands.
mod command {
    pub(super) const VERSION: u16 = 1;
    pub(super) const DMA_MAP: u16 = 2;
    pub(super) const DMA_UNMAP: u16 = 3;
    pub(super) const DEVICE_INFO: u16 = 4;
    pub(super) const REGION_INFO: u16 = 5;
    pub(super) const INTERRUPT_INFO: u16 = 7;
    pub(super) const SET_INTERRUPTS: u16 = 8;
    pub(super) const READ: u16 = 9;
    pub(super) const WRITE: u16 = 10;
    pub(super) const RESET: u16 = 13;
}

/// What this side can do: as much as is usual.
const CAPABILITIES: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":4096,\"migration\":{\"pgsize\":4096}}}\0";

/// VFIO's numbers: regions and interrupts that a PCI function can have, and its flags.
const REGIONS: u32 = 9;
const INTERRUPTS: u32 = 5;
const MEMORY: u32 = 2;
const CONFIGURATION: u32 = 7;
const IS_PCI_AND_RESETS: u32 = 3;
const READ_AND_WRITE: u32 = 3;
const MAPPED: u32 = 4;

/// Serves a window on `file` at `socket`, to the first who comes within half a minute and as long as it
/// stays, on a thread of its own. [`Served::came`], or dropping what is answered, ends the waiting for it.
///
/// # Errors
/// When there is no socket to be had, or no thread.
pub(super) fn serve(socket: &Path, file: BorrowedFd<'_>) -> io::Result<Served> {
    crate::files::remove(socket)?;
    let listener = UnixListener::bind(socket)?;
    let (file, bell) = (file.try_clone_to_owned()?, io::pipe()?);
    let serving = Serving(Arc::default());
    let let_go = Arc::clone(&serving.0);
    std::thread::Builder::new().name("window".to_owned()).spawn(move || {
        let Ok(Some(stream)) = first(&listener, &bell.0) else { return };
        drop((listener, bell.0));
        let mut device = Server { stream, file, space: Space::default() };
        // It ends when the hypervisor has taken the device out, or is gone.
        match device.run() {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                tracing::warn!(%error, "a window's device is not served any more");
            }
            Ok(()) | Err(_) => let_go.store(true, Ordering::Release),
        }
    })?;
    Ok(Served { _bell: bell.1, serving })
}

/// A window that is served to whoever comes.
#[derive(Debug)]
pub(super) struct Served {
    _bell: io::PipeWriter,
    serving: Serving,
}

impl Served {
    /// Whoever was to come has come, or does not.
    pub(super) fn came(self) -> Serving {
        self.serving
    }
}

/// A window's device; its thread holds the same, and sets it when whoever had it has let go.
#[derive(Debug)]
pub(super) struct Serving(Arc<AtomicBool>);

/// How it is with a window's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// Somebody has it.
    Held,
    /// Whoever had it has closed it, or is gone.
    LetGo,
    /// It is not served any more, whoever has it.
    Lost,
}

impl Serving {
    pub(super) fn device(&self) -> Device {
        // In this order: a thread that is over has said before how.
        let over = Arc::strong_count(&self.0) == 1;
        match (self.0.load(Ordering::Acquire), over) {
            (true, _) => Device::LetGo,
            (false, false) => Device::Held,
            (false, true) => Device::Lost,
        }
    }
}

/// Who comes first, unless nobody does or none is waited for any more.
fn first(listener: &UnixListener, bell: &io::PipeReader) -> io::Result<Option<UnixStream>> {
    let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
    poll(&mut fds, Some(&COMING))?;
    if !fds[0].revents().contains(PollFlags::IN) || !fds[1].revents().is_empty() {
        return Ok(None);
    }
    let (stream, _) = listener.accept()?;
    stream.set_write_timeout(Some(READING))?;
    Ok(Some(stream))
}

struct Server {
    stream: UnixStream,
    file: OwnedFd,
    space: Space,
}

/// One message: who asks, for what, and the rest.
struct Message {
    id: u16,
    command: u16,
    flags: u32,
    body: Vec<u8>,
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("vfio-user: {what}"))
}

/// The number at `at`, in as many bytes as it has.
fn number<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let found = bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    found.ok_or_else(|| nonsense("a message is too short"))
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    Ok(u32::from_le_bytes(number(bytes, at)?))
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let message = self.receive()?;
            self.act(&message)?;
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header)?;
        let length = usize::try_from(word(&header, 4)?).unwrap_or(usize::MAX);
        if !(HEADER..=LONGEST).contains(&length) {
            return Err(nonsense("a message has no length that one can have"));
        }
        let mut body = vec![0; length - HEADER];
        self.stream.read_exact(&mut body)?;
        let id = u16::from_le_bytes(number(&header, 0)?);
        let command = u16::from_le_bytes(number(&header, 2)?);
        Ok(Message { id, command, flags: word(&header, 8)?, body })
    }

    fn act(&mut self, message: &Message) -> io::Result<()> {
        let body = &message.body;
        match message.command {
            command::VERSION => {
                let version = body.get(..4).ok_or_else(|| nonsense("a version without one"))?;
                self.reply(message, &[version, CAPABILITIES].concat())
            }
            // Nothing here reads or writes the guest's memory.
            command::DMA_MAP | command::SET_INTERRUPTS | command::RESET => self.reply(message, &[]),
            command::DMA_UNMAP => self.reply(message, body),
            command::DEVICE_INFO => {
                self.reply(message, &words(&[16, IS_PCI_AND_RESETS, REGIONS, INTERRUPTS]))
            }
            command::REGION_INFO => self.region(message, word(body, 8)?),
            command::INTERRUPT_INFO => self.reply(message, &words(&[16, 0, word(body, 8)?, 0])),
            command::READ => {
                let (offset, length) = access(body)?;
                let bytes = self.space.read(offset, length)?;
                self.reply(message, &[body.get(..16).unwrap_or_default(), &bytes].concat())
            }
            command::WRITE => {
                let (offset, length) = access(body)?;
                let bytes = body.get(16..16 + length);
                self.space
                    .write(offset, bytes.ok_or_else(|| nonsense("a write without bytes"))?)?;
                self.reply(message, body.get(..16).unwrap_or_default())
            }
            _ => self.send(message, IS_REPLY | IS_ERROR, NOT_SUPPORTED, &[], None),
        }
    }

    /// What a region is; that of the memory comes with its file.
    fn region(&self, message: &Message, index: u32) -> io::Result<()> {
        let (flags, size) = match index {
            MEMORY => (READ_AND_WRITE | MAPPED, WINDOW_BYTES),
            CONFIGURATION => (READ_AND_WRITE, SPACE as u64),
            0..REGIONS => (0, 0),
            _ => return Err(nonsense("a region that there is not")),
        };
        let mut body = words(&[32, flags, index, 0]);
        body.extend_from_slice(&size.to_le_bytes());
        body.extend_from_slice(&0u64.to_le_bytes());
        let file = (index == MEMORY).then(|| self.file.as_fd());
        self.send(message, IS_REPLY, 0, &body, file)
    }

    fn reply(&self, message: &Message, body: &[u8]) -> io::Result<()> {
        if message.flags & WANTS_NO_REPLY != 0 {
            return Ok(());
        }
        self.send(message, IS_REPLY, 0, body, None)
    }

    fn send(
        &self,
        to: &Message,
        flags: u32,
        error: u32,
        body: &[u8],
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut bytes = [to.id.to_le_bytes(), to.command.to_le_bytes()].concat();
        bytes.extend(words(&[length, flags, error]));
        bytes.extend_from_slice(body);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let parts = [io::IoSlice::new(&bytes)];
        let sent = sendmsg(&self.stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
        // The rest of an answer that did not fit needs no file.
        (&self.stream).write_all(bytes.get(sent..).unwrap_or_default())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Where in the configuration space, and how much. There is nothing else to be read or written.
fn access(body: &[u8]) -> io::Result<(usize, usize)> {
    let offset = u64::from_le_bytes(number(body, 0)?);
    let (region, length) = (word(body, 8)?, word(body, 12)?);
    if region != CONFIGURATION {
        return Err(nonsense("an access to what is mapped, or not there"));
    }
    let offset = usize::try_from(offset).ok().filter(|offset| *offset < SPACE);
    let length = usize::try_from(length).ok().filter(|length| *length <= SPACE);
    match (offset, length) {
        (Some(offset), Some(length)) if offset + length <= SPACE => Ok((offset, length)),
        _ => Err(nonsense("an access beyond the configuration space")),
    }
}

/// Bytes of a configuration space.
const SPACE: usize = 256;
/// The command register's, of what a guest may turn on.
const COMMAND: usize = 0x04;
/// The memory's address, in two halves.
const LOW: usize = 0x18;
const HIGH: usize = 0x1c;
/// 64 bits, prefetchable.
const KIND: u32 = 0xc;

/// The configuration space, of which a guest can change little.
struct Space([u8; SPACE]);

impl Default for Space {
    fn default() -> Self {
        let mut space = Self([0; SPACE]);
        // As QEMU has it: vendor and device, memory of no kind, who the vendor's vendor is.
        space.put(0x00, 0x1110_1af4);
        space.put(0x08, 0x0500_0001);
        space.put(LOW, KIND);
        space.put(0x2c, 0x1100_1af4);
        space
    }
}

impl Space {
    fn put(&mut self, at: usize, value: u32) {
        if let Some(to) = self.0.get_mut(at..at + 4) {
            to.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn read(&self, at: usize, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.0.get(at..at + length);
        Ok(bytes.ok_or_else(|| nonsense("an access beyond the configuration space"))?.to_vec())
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let whole = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes);
        match (at, whole, bytes) {
            // An address is as far from the next as the memory is long, so all ones tell how long it is.
            (LOW, Ok(value), _) => {
                let own = u32::try_from(WINDOW_BYTES - 1).map_err(io::Error::other)?;
                self.put(LOW, (value & !own) | KIND);
            }
            (HIGH, Ok(value), _) => self.put(HIGH, value),
            (COMMAND, _, &[low, ..]) => {
                // Memory, and being a master of the bus.
                if let Some(register) = self.0.get_mut(COMMAND) {
                    *register = low & 0x06;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vfio_user::Client;

    use super::*;

    fn file() -> OwnedFd {
        let file = rustix::fs::memfd_create(c"w", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, WINDOW_BYTES).unwrap();
        file
    }

    #[test]
    fn it_is_found_and_sized_as_memory_and_a_guest_changes_nothing_else_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w");
        let _served = serve(&socket, file().as_fd()).unwrap();
        let mut client = Client::new(&socket).unwrap();
        let mut read = |at: u64| {
            let mut word = [0; 4];
            client.region_read(CONFIGURATION, at, &mut word).unwrap();
            u32::from_le_bytes(word)
        };
        assert_eq!((read(0), read(8), read(0x10), read(0x18)), (0x1110_1af4, 0x0500_0001, 0, 0xc));
        for at in [0, 8, 0x10, LOW as u64, HIGH as u64] {
            client.region_write(CONFIGURATION, at, &[0xff; 4]).unwrap();
        }
        client.region_write(CONFIGURATION, 4, &[0xff, 0xff]).unwrap();
        let mut space = [0; 0x40];
        client.region_read(CONFIGURATION, 0, &mut space).unwrap();
        assert_eq!(space[..8], [0xf4, 0x1a, 0x10, 0x11, 6, 0, 0, 0]);
        assert_eq!(space[0x10..0x20], [0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0xff, 255, 255, 255, 255]);
        assert_eq!(client.get_irq_info(1).unwrap().count, 0);
        client.reset().unwrap();
        client.dma_unmap(0, 4096).unwrap();
    }

    #[test]
    fn the_guests_memory_is_not_kept_when_it_is_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w");
        let _served = serve(&socket, file().as_fd()).unwrap();
        let mut client = Client::new(&socket).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let raw = std::os::fd::AsRawFd::as_raw_fd(&writer);
        client.dma_map(0, 0, 4096, raw).unwrap();
        drop(writer);
        // Whoever had the other end would keep this open.
        assert_eq!(io::BufReader::new(reader).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn nonsense_ends_the_device_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let message = |command: u16, length: u32, body: &[u8]| {
            let head = [1u16.to_le_bytes(), command.to_le_bytes()].concat();
            [head, words(&[length, 0, 0]), body.to_vec()].concat()
        };
        let read = |offset: u64, region, count| {
            [offset.to_le_bytes().to_vec(), words(&[region, count])].concat()
        };
        let wrong = [
            message(command::VERSION, 3, b""),
            message(command::VERSION, u32::MAX, b""),
            message(command::VERSION, 17, b"x"),
            message(command::READ, 32, &read(0, CONFIGURATION, u32::MAX)),
            message(command::READ, 32, &read(u64::MAX, CONFIGURATION, 4)),
            message(command::READ, 32, &read(254, CONFIGURATION, 4)),
            message(command::READ, 32, &read(0, MEMORY, 4)),
            message(command::WRITE, 32, &read(0, CONFIGURATION, 4)),
            message(command::REGION_INFO, 48, &words(&[32, 0, 9, 0, 0, 0, 0, 0])),
        ];
        for (number, wrong) in wrong.iter().enumerate() {
            let socket = folder.path().join(number.to_string());
            let served = serve(&socket, file().as_fd()).unwrap();
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(wrong).unwrap();
            let mut answer = Vec::new();
            // It may be told that what it wrote was not read.
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{number}: {answer:?}");
            assert_eq!(over(&served.came()), Device::Lost);
        }
        let socket = folder.path().join("odd");
        let _served = serve(&socket, file().as_fd()).unwrap();
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&message(11, 16, b"")).unwrap();
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[8..], words(&[IS_REPLY | IS_ERROR, NOT_SUPPORTED]));
    }

    /// How it is with a device once nobody serves it.
    fn over(serving: &Serving) -> Device {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while serving.device() == Device::Held && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        serving.device()
    }

    #[test]
    fn whoever_closes_it_has_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w");
        let served = serve(&socket, file().as_fd()).unwrap();
        let client = Client::new(&socket).unwrap();
        let serving = served.came();
        assert_eq!(serving.device(), Device::Held);
        client.shutdown().unwrap();
        assert_eq!(over(&serving), Device::LetGo);
    }

    #[test]
    fn nobody_is_waited_for_once_nobody_is_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("w");
        drop(serve(&socket, file().as_fd()).unwrap());
        let mut stream = UnixStream::connect(&socket);
        let closed = stream.as_mut().map_or(Ok(0), |stream| stream.read(&mut [0]));
        assert!(matches!(closed, Ok(0) | Err(_)));
    }
}
