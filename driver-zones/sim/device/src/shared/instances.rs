//! The MIG instances of a simulated GPU once one was made or ended. Until then they are those of the
//! configuration, and so they are again when that says others: a file of another one says nothing.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gpuzone_core::MemoryBytes;

use super::file::{StateFile, open_private};
use super::{SimulatedGpu, SimulatedNode, StateError};
use crate::{GpuConfig, MigConfig, MigKind};

/// Between those of the configuration and those that there are.
const NOW: &str = "now";
/// Numbers of GPU instances are below this one.
const NUMBERS: u32 = 16;
/// The compute slices of a GPU.
const SLICES: u32 = 7;

/// Why no instance is made, or none ended.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The shared state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// It is not in MIG mode.
    #[error("the simulated GPU is not in MIG mode")]
    Whole,
    /// No such instance.
    #[error("the simulated GPU has no such instance")]
    Missing,
    /// It may not begin there.
    #[error("no instance of that kind begins there")]
    Place,
    /// Others are there, or there are enough of the kind.
    #[error("there is no room for it")]
    NoRoom,
    /// A process has a context on it, or it has a compute instance still.
    #[error("it is in use")]
    InUse,
}

/// Where the instances of one GPU are written down.
pub(super) struct InstanceTable {
    path: PathBuf,
    configured: Vec<MigConfig>,
    seen: Stamp,
}

/// What changes whenever a table is replaced.
type Stamp = Option<(u64, i64, u64)>;

impl InstanceTable {
    /// The table of GPU `index`, where it is in MIG mode, and the instances that it has now.
    pub(super) fn open(
        folder: &Path,
        index: usize,
        gpu: &GpuConfig,
    ) -> Result<Option<(Self, Vec<MigConfig>)>, StateError> {
        let Some(configured) = gpu.mig.clone() else { return Ok(None) };
        let path = folder.join(format!("gpu-{index}.instances"));
        // Before it is read: a change in between makes it stale, and nothing more.
        let seen = stamp(&path);
        let table = Self { path, configured, seen };
        let now = table.read()?;
        Ok(Some((table, now)))
    }

    pub(super) fn is_stale(&self) -> bool {
        stamp(&self.path) != self.seen
    }

    pub(super) fn configured(&self) -> &[MigConfig] {
        &self.configured
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), source }
    }

    fn read(&self) -> Result<Vec<MigConfig>, StateError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(self.configured.clone());
            }
            Err(error) => return Err(self.io(error)),
        };
        let Some(lines) = text.strip_prefix(&format!("{}{NOW}\n", lines(&self.configured))) else {
            return Ok(self.configured.clone());
        };
        let read: Option<Vec<MigConfig>> = lines.lines().map(parse).collect();
        read.ok_or_else(|| StateError::Corrupt {
            path: self.path.clone(),
            reason: "a line names no instance",
        })
    }

    /// Changes what there is, alone.
    fn change<T>(
        &self,
        how: impl FnOnce(&mut Vec<MigConfig>) -> Result<T, CutError>,
    ) -> Result<T, CutError> {
        let lock = StateFile::open(&self.path.with_extension("instances.lock"))?;
        let _locked = lock.lock()?;
        let mut now = self.read()?;
        let done = how(&mut now)?;
        let text = format!("{}{NOW}\n{}", lines(&self.configured), lines(&now));
        let new = self.path.with_extension("instances.new");
        drop(open_private(&new)?);
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|e| self.io(e))?;
        Ok(done)
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.mtime_nsec() ^ found.mtime(), found.len()))
}

fn lines(instances: &[MigConfig]) -> String {
    let mut text = String::new();
    for of in instances {
        let (start, size) = of.placement;
        let (number, memory) = (of.gpu_instance, of.memory.get());
        let MigConfig { kind, profile, slices, compute_slices, uuid, .. } = of;
        let _ = writeln!(
            text,
            "{number} {kind} {profile} {start} {size} {memory} {slices} {compute_slices} {uuid}"
        );
    }
    text
}

fn parse(line: &str) -> Option<MigConfig> {
    let mut words = line.split(' ');
    let mut word = || words.next();
    let number = |text: &str| text.parse::<u32>().ok();
    Some(MigConfig {
        gpu_instance: number(word()?)?,
        kind: number(word()?)?,
        profile: word()?.parse().ok()?,
        placement: (number(word()?)?, number(word()?)?),
        memory: MemoryBytes::saturating(word()?.parse().ok()?),
        slices: number(word()?)?,
        compute_slices: number(word()?)?,
        uuid: word()?.parse().ok()?,
    })
}

const fn overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    one.0 < other.0 + other.1 && other.0 < one.0 + one.1
}

/// The places at which one more of a kind fits.
fn room<'a>(kind: &'a MigKind, now: &'a [MigConfig]) -> impl Iterator<Item = u32> + 'a {
    let taken: u32 = now.iter().map(|of| of.slices).sum();
    let alike = now.iter().filter(|of| of.kind == kind.id).count();
    let more = taken + kind.slices <= SLICES && u32::try_from(alike).is_ok_and(|n| n < kind.most);
    let free =
        move |start: &u32| more && !now.iter().any(|of| overlap(of.placement, (*start, kind.size)));
    kind.starts.iter().copied().filter(free)
}

impl SimulatedNode {
    fn table(&self, gpu: usize) -> Result<&InstanceTable, CutError> {
        self.tables.get(gpu).and_then(Option::as_ref).ok_or(CutError::Whole)
    }

    /// Whether another process has made or ended an instance since this node was opened.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.tables.iter().flatten().any(InstanceTable::is_stale)
    }

    /// The node as it is now.
    ///
    /// # Errors
    /// As [`SimulatedNode::open`].
    pub fn opened_anew(&self) -> Result<Self, StateError> {
        let mut config = self.config().clone();
        for (gpu, table) in config.gpus.iter_mut().zip(&self.tables) {
            gpu.mig = table.as_ref().map(|table| table.configured().to_vec());
        }
        Self::open(config)
    }

    /// How many more of a kind fit into a GPU.
    ///
    /// # Errors
    /// When it is not in MIG mode.
    pub fn remaining(&self, gpu: usize, kind: &MigKind) -> Result<u32, CutError> {
        let mut now = self.table(gpu)?.read()?;
        let mut more = 0;
        loop {
            let start = room(kind, &now).next();
            let made = |start| MigConfig::made(self.gpus()[gpu].config(), kind, start, 1);
            let Some(of) = start.and_then(made) else { return Ok(more) };
            now.push(of);
            more += 1;
        }
    }

    /// Makes a GPU instance, and says its number.
    ///
    /// # Errors
    /// When it cannot begin there, or there is no room for it.
    pub fn make_instance(
        &self,
        gpu: usize,
        kind: &MigKind,
        start: Option<u32>,
    ) -> Result<u32, CutError> {
        if start.is_some_and(|start| !kind.starts.contains(&start)) {
            return Err(CutError::Place);
        }
        self.table(gpu)?.change(|now| {
            let mut free = room(kind, now).filter(|place| start.is_none_or(|of| of == *place));
            let place = free.next().ok_or(CutError::NoRoom)?;
            drop(free);
            let is_free = |number: &u32| now.iter().all(|of| of.gpu_instance != *number);
            let number = (1..NUMBERS).find(is_free).ok_or(CutError::NoRoom)?;
            let made = MigConfig::made(self.gpus()[gpu].config(), kind, place, number);
            now.push(made.ok_or(CutError::NoRoom)?);
            Ok(number)
        })
    }

    /// Makes the compute instance of a GPU instance, with so many slices.
    ///
    /// # Errors
    /// When it has one, or fewer slices.
    pub fn make_compute(&self, gpu: usize, number: u32, slices: u32) -> Result<(), CutError> {
        self.of_number(gpu, number, |of| {
            if of.compute_slices > 0 || slices > of.slices {
                return Err(CutError::NoRoom);
            }
            of.compute_slices = slices;
            Ok(())
        })
    }

    /// Ends the compute instance of a GPU instance.
    ///
    /// # Errors
    /// When a process uses it.
    pub fn end_compute(&self, gpu: usize, number: u32) -> Result<(), CutError> {
        self.of_number(gpu, number, |of| {
            if of.compute_slices == 0 {
                return Err(CutError::Missing);
            }
            let whole = &self.gpus()[gpu];
            let part = SimulatedGpu::instance(&self.config().state_dir, gpu, whole.config(), of)?;
            if !part.processes()?.is_empty() {
                return Err(CutError::InUse);
            }
            of.compute_slices = 0;
            Ok(())
        })
    }

    /// Ends a GPU instance.
    ///
    /// # Errors
    /// When it has a compute instance.
    pub fn end_instance(&self, gpu: usize, number: u32) -> Result<(), CutError> {
        self.table(gpu)?.change(|now| {
            let position = now.iter().position(|of| of.gpu_instance == number);
            let position = position.ok_or(CutError::Missing)?;
            if now[position].compute_slices > 0 {
                return Err(CutError::InUse);
            }
            now.remove(position);
            Ok(())
        })
    }

    fn of_number(
        &self,
        gpu: usize,
        number: u32,
        how: impl FnOnce(&mut MigConfig) -> Result<(), CutError>,
    ) -> Result<(), CutError> {
        self.table(gpu)?.change(|now| {
            let found = now.iter_mut().find(|of| of.gpu_instance == number);
            how(found.ok_or(CutError::Missing)?)
        })
    }
}
