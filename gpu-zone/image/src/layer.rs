//! One layer on top of those before it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use tar::{Archive, Entry, EntryType};

use crate::ImageError;
use crate::blob::Summed;
use crate::layout::{Layer, Layout};
use crate::tree::{Place, Rights, Tree};

const WHITEOUT: &[u8] = b".wh.";
/// The rest of a last block, and two blocks.
const PADDING: u64 = 512 + 1024;
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How much an image may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers, unpacked.
    pub bytes: u64,
    /// Entries of all layers.
    pub entries: u64,
}

impl Default for Limits {
    /// Room for any image with a whole CUDA toolkit in it.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

/// Puts layers on top of one another.
pub(crate) struct Unpacking<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) tree: &'a Tree,
    /// What is left of them.
    pub(crate) limits: Limits,
}

impl Unpacking<'_> {
    /// What a layer removes is removed first, for that is about the layers below it only.
    pub(crate) fn apply(&mut self, number: usize, layer: &Layer) -> Result<(), ImageError> {
        let limits = self.limits;
        self.pass(number, layer, Self::take_away)?;
        // Both passes read the same.
        self.limits = limits;
        self.pass(number, layer, Self::put)
    }

    fn pass(
        &mut self,
        number: usize,
        layer: &Layer,
        each: impl Fn(&mut Self, &mut Entry<'_, &mut dyn Read>) -> Result<(), String>,
    ) -> Result<(), ImageError> {
        let unreadable = |source| ImageError::Layer { number, source };
        let blob = Rc::new(RefCell::new(Summed::new(layer.blob.open(&self.layout.folder)?)));
        let stored = BufReader::with_capacity(1 << 16, Shared(Rc::clone(&blob)));
        let mut content = Summed::new(decompressed(stored, &layer.media_type).map_err(unreadable)?);
        // Some programs (umoci) leave out the blocks of zeros that end an archive. That nothing
        // else is left out is what the sums are for.
        let mut padded = (&mut content).chain(io::repeat(0).take(PADDING));
        let mut archive = Archive::new(&mut padded as &mut dyn Read);
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path().map(|path| path.into_owned()).map_err(unreadable)?;
            let done = self.count(&entry).and_then(|()| each(self, &mut entry));
            done.map_err(|reason| ImageError::Entry { number, entry: path, reason })?;
        }
        // In this order: what is behind the end of the archive is part of both sums.
        drop(content.finish(&layer.content).map_err(unreadable)??);
        let blob = Rc::into_inner(blob).map(RefCell::into_inner);
        let lost = || unreadable(io::Error::other("its blob is still being read"));
        blob.ok_or_else(lost)?.finish(&layer.blob).map_err(unreadable)??;
        Ok(())
    }

    fn count(&mut self, entry: &Entry<'_, &mut dyn Read>) -> Result<(), String> {
        let fewer = |left: u64, by: u64| left.checked_sub(by);
        let bytes = fewer(self.limits.bytes, entry.size()).ok_or("the image is too large")?;
        let entries = fewer(self.limits.entries, 1).ok_or("the image has too many files")?;
        self.limits = Limits { bytes, entries };
        Ok(())
    }

    fn take_away(&mut self, entry: &mut Entry<'_, &mut dyn Read>) -> Result<(), String> {
        let Some(place) = place_of(entry)? else { return Ok(()) };
        let name = place.name.as_bytes();
        let done = if name == OPAQUE {
            self.tree.empty(&place.parent)
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            let name = std::ffi::OsStr::from_bytes(name).to_owned();
            // `..` and the like would be somebody else.
            let whole = place.parent.join(&name);
            match Place::parse(&whole)? {
                Some(gone) if gone.name == name => self.tree.remove(&gone),
                Some(_) | None => return Err("it removes nothing that has a name".to_owned()),
            }
        } else {
            return Ok(());
        };
        done.map_err(|error| error.to_string())
    }

    fn put(&mut self, entry: &mut Entry<'_, &mut dyn Read>) -> Result<(), String> {
        let kind = entry.header().entry_type();
        let rights = rights(entry)?;
        let Some(place) = place_of(entry)? else {
            return match kind {
                EntryType::Directory => {
                    self.tree.set_root(rights).map_err(|error| error.to_string())
                }
                _ => Err("it stands where the image's root is".to_owned()),
            };
        };
        if place.name.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        let target = |entry: &Entry<'_, &mut dyn Read>| -> Result<PathBuf, String> {
            let name = entry.link_name().map_err(|error| error.to_string())?;
            Ok(name.ok_or("it links to nothing")?.into_owned())
        };
        let done = match kind {
            EntryType::Directory => self.tree.make_folder(&place, rights),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                self.tree.make_file(&place, rights, &mut entry.take(size))
            }
            EntryType::Symlink => self.tree.make_link(&place, &target(entry)?, rights),
            EntryType::Link => {
                let to = Place::parse(&target(entry)?)?.ok_or("it links to the image's root")?;
                self.tree.make_hard_link(&place, &to)
            }
            // The zone has a /dev of its own.
            EntryType::Char | EntryType::Block | EntryType::Fifo
                if place.parent.starts_with("dev") =>
            {
                Ok(())
            }
            EntryType::Char | EntryType::Block => {
                return Err("a device outside of /dev has no place in an image".to_owned());
            }
            EntryType::XGlobalHeader => Ok(()),
            other => return Err(format!("entries of the kind {other:?} are not known")),
        };
        done.map_err(|error| error.to_string())
    }
}

fn place_of(entry: &Entry<'_, &mut dyn Read>) -> Result<Option<Place>, String> {
    let path = entry.path().map_err(|error| error.to_string())?;
    Place::parse(&path)
}

fn rights(entry: &Entry<'_, &mut dyn Read>) -> Result<Rights, String> {
    let header = entry.header();
    let number = |number: io::Result<u64>| {
        let number = number.map_err(|error| error.to_string())?;
        u32::try_from(number).map_err(|_| format!("there is no user or group {number}"))
    };
    let mode = header.mode().map_err(|error| error.to_string())?;
    Ok(Rights { user: number(header.uid())?, group: number(header.gid())?, mode })
}

/// A layer as a tar file. What it is compressed with is in its first bytes, which cannot be
/// wrong about it; its media type must agree.
fn decompressed<'a>(
    mut stored: BufReader<Shared>,
    media_type: &str,
) -> io::Result<Box<dyn Read + 'a>> {
    let first = stored.fill_buf()?;
    let (name, content): (&str, Box<dyn Read>) = if first.starts_with(&[0x1f, 0x8b]) {
        ("gzip", Box::new(flate2::bufread::MultiGzDecoder::new(stored)))
    } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(first) {
        ("zstd", Box::new(Frames::new(stored)))
    } else {
        ("tar", Box::new(stored))
    };
    if !media_type.ends_with(name) {
        return Err(io::Error::other(format!("it is {name}, and its kind is {media_type:?}")));
    }
    Ok(content)
}

/// The beginning of a frame of Zstandard that holds nothing (RFC 8878, 3.1.2).
fn is_skippable(first: &[u8]) -> bool {
    first.len() >= 4 && (0x50..=0x5f).contains(&first[0]) && first[1..4] == [0x2a, 0x4d, 0x18]
}

/// A reader that two can hold.
struct Shared(Rc<RefCell<Summed<File>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

type Stored = Rc<RefCell<BufReader<Shared>>>;

struct Frame(Stored);

impl Read for Frame {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// All frames of a file of Zstandard, one after another.
struct Frames {
    stored: Stored,
    frame: Option<StreamingDecoder<Frame, ruzstd::decoding::FrameDecoder>>,
}

impl Frames {
    fn new(stored: BufReader<Shared>) -> Self {
        Self { stored: Rc::new(RefCell::new(stored)), frame: None }
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                match frame.read(buffer)? {
                    0 if !buffer.is_empty() => self.frame = None,
                    count => return Ok(count),
                }
            }
            if self.stored.borrow_mut().fill_buf()?.is_empty() {
                return Ok(0);
            }
            match StreamingDecoder::new(Frame(Rc::clone(&self.stored))) {
                Ok(frame) => self.frame = Some(frame),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = Frame(Rc::clone(&self.stored)).take(u64::from(length));
                    io::copy(&mut skipped, &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
    }
}

/// Folders that a zone mounts on, made where an image has none.
pub(crate) fn furnish(tree: &Tree) -> io::Result<()> {
    for name in ["dev", "proc", "sys", "run", "tmp", "var/tmp"] {
        let Ok(Some(place)) = Place::parse(Path::new(name)) else { continue };
        match tree.folder(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tree.make_folder(&place, Rights { user: 0, group: 0, mode: 0o755 })?;
            }
            other => drop(other?),
        }
    }
    Ok(())
}
