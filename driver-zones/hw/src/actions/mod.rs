//! What is done to devices: bound, cut up, reset, and put back.
//!
//! ```text
//! Devices::bind & co. ── refuse, or an Action: changes, each from a state to another
//!      │ Begin, on disk
//!      ▼
//! for each change: At, on disk ─▶ write, look, write … until it is so ─▶ Done
//!      │                          (or call NVML, for MIG instances)       │
//!      │ a write fails                                                    │
//!      ▼                                                                  ▼
//! backwards, until each is as before ─▶ Undone                  kept until it is taken back
//! ```
//!
//! A process that dies on the way leaves an open action: the next one undoes it, and finishes it
//! if it was on its way back already. What can be neither is stuck: its device serves nobody.

mod binding;
mod change;
mod instances;
mod journal;
mod partitions;
mod refusal;
mod reset;
mod simulated;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use gpuzone_core::{GpuUuid, PciAddress};

use crate::alias::ModuleAliases;
use crate::holders::ProcRoot;
use crate::mig::{MigError, MigLayout, MigStep};
use crate::pci::PciFunction;
use crate::{SysfsRoot, ready};

pub use binding::Bound;
pub use change::{Binding, Change, Functions, InvalidParent, MdevParent, Subject, Write};
pub use journal::{Action, JournalError};
pub use refusal::ActionError;
pub use simulated::SimulatedKernel;

use change::{End, Step};
use journal::{Journal, Open};

/// A change takes four writes at most; more would go round in a circle.
const MOST_WRITES: usize = 8;

/// Who writes the kernel's files, and has the driver cut GPUs. Tests put themselves in between, to
/// record and to fail.
pub trait Writes {
    /// Writes all of it, at once.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&mut self, write: &Write) -> io::Result<()>;

    /// How a GPU is cut now.
    ///
    /// # Errors
    /// When its driver does not say; always, of who has nothing to do with drivers.
    fn layout(&mut self, gpu: GpuUuid) -> Result<MigLayout, MigError> {
        Err(MigError::NoLibrary(gpu))
    }

    /// Makes or ends an instance.
    ///
    /// # Errors
    /// The driver's.
    fn cut(&mut self, step: &MigStep) -> Result<(), MigError> {
        Err(MigError::NoLibrary(step.place().gpu))
    }
}

/// The kernel's files as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelFiles;

impl Writes for KernelFiles {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        OpenOptions::new().write(true).open(&write.path)?.write_all(write.text.as_bytes())
    }
}

/// What became of an action that another process left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// What was being done.
    pub what: String,
    /// To what.
    pub subject: Option<Subject>,
    /// How it is now.
    pub now: Recovery,
}

/// How an action ended that was left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// All is as it was before.
    Undone,
    /// All is as it was to be.
    Finished,
    /// Neither can be had, for this reason.
    Stuck(String),
}

/// Where the kernel shows what there is.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// sysfs.
    pub sysfs: SysfsRoot,
    /// proc.
    pub proc: ProcRoot,
    /// Which drivers there are for VFIO.
    pub aliases: ModuleAliases,
}

/// The devices of a node, and what was done to them. One process at a time has them.
#[derive(Debug)]
pub struct Devices<W = KernelFiles> {
    places: Places,
    journal: Journal,
    writer: W,
    boot: String,
    /// What could not be brought to an end.
    stuck: BTreeMap<Subject, (String, String)>,
}

impl<W: Writes> Devices<W> {
    /// Opens the journal at `path`, and brings to an end what another process left open.
    ///
    /// # Errors
    /// When the journal cannot be used: then nothing was done.
    pub fn open(
        places: Places,
        path: &Path,
        writer: W,
    ) -> Result<(Self, Vec<Recovered>), JournalError> {
        let mut journal = Journal::open(path)?;
        let boot = places.proc.boot();
        // Nothing of what is done to devices outlives the kernel that it was done to.
        journal.forget_others(&boot)?;
        let mut devices = Self { places, journal, writer, boot, stuck: BTreeMap::new() };
        let open = devices.journal.state.open.clone();
        let mut recovered = Vec::new();
        for open in open.into_iter().rev() {
            recovered.push(devices.recover(&open)?);
        }
        let passing = devices.journal.state.kept.iter().filter(|action| action.passing);
        for action in passing.cloned().collect::<Vec<_>>() {
            let (what, subject) = (action.what.clone(), subject(&action));
            let now = match devices.take_back(&action) {
                Ok(()) => Recovery::Undone,
                Err(error) => Recovery::Stuck(error.to_string()),
            };
            recovered.push(Recovered { what, subject, now });
        }
        Ok((devices, recovered))
    }

    /// What was done and not given back, oldest first.
    pub fn kept(&self) -> &[Action] {
        &self.journal.state.kept
    }

    /// Where the kernel shows what there is.
    pub const fn places(&self) -> &Places {
        &self.places
    }

    fn recover(&mut self, open: &Open) -> Result<Recovered, JournalError> {
        let action = &open.action;
        let forward = action.takes_back.is_some();
        let mut now = None;
        if forward && self.bring(&action.changes, End::To).is_ok() {
            self.journal.done(action.id)?;
            now = Some(Recovery::Finished);
        }
        let now = match now {
            Some(now) => now,
            None => match self.undo(action, open.at) {
                Ok(()) => {
                    self.journal.undone(action.id)?;
                    Recovery::Undone
                }
                Err(error) => {
                    self.is_stuck(action, &error);
                    Recovery::Stuck(error.to_string())
                }
            },
        };
        Ok(Recovered { what: action.what.clone(), subject: subject(action), now })
    }

    fn is_stuck(&mut self, action: &Action, why: &ActionError) {
        for change in &action.changes {
            self.stuck.insert(change.subject(), (action.what.clone(), why.to_string()));
        }
    }

    /// Does all of an action, or nothing.
    fn run(&mut self, action: Action) -> Result<(), ActionError> {
        let action = self.journal.begin(Action { boot: self.boot.clone(), ..action })?;
        for (index, change) in action.changes.iter().enumerate() {
            let noted = self.journal.at(action.id, index).map_err(ActionError::from);
            if let Err(error) = noted.and_then(|()| self.converge(change, End::To)) {
                return Err(self.back_out(&action, begun(index, &error), error));
            }
        }
        if let Err(error) = self.journal.done(action.id) {
            let last = action.changes.len().saturating_sub(1);
            return Err(self.back_out(&action, Some(last), error.into()));
        }
        Ok(())
    }

    /// Undoes all of a kept action, or nothing of it.
    fn take_back(&mut self, kept: &Action) -> Result<(), ActionError> {
        self.run(Action {
            what: format!("give back: {}", kept.what),
            takes_back: Some(kept.id),
            changes: kept.changes.iter().rev().cloned().map(Change::reversed).collect(),
            ..Action::default()
        })
    }

    fn back_out(&mut self, action: &Action, at: Option<usize>, first: ActionError) -> ActionError {
        match self.undo(action, at) {
            Ok(()) => match self.journal.undone(action.id) {
                Ok(()) => ActionError::AsBefore(Box::new(first)),
                // All is as before, and the next process will see that.
                Err(error) => error.into(),
            },
            Err(second) => {
                self.is_stuck(action, &second);
                let what = action.what.clone();
                match subject(action) {
                    Some(subject) => ActionError::Stuck {
                        subject,
                        what,
                        first: Box::new(first),
                        second: Box::new(second),
                    },
                    None => second,
                }
            }
        }
    }

    /// Brings the changes that may have been made back to where they were, the last one first.
    fn undo(&mut self, action: &Action, at: Option<usize>) -> Result<(), ActionError> {
        let Some(at) = at else { return Ok(()) };
        let begun = action.changes.iter().take(at + 1).rev().cloned().collect::<Vec<_>>();
        self.bring(&begun, End::From)
    }

    fn bring(&mut self, changes: &[Change], end: End) -> Result<(), ActionError> {
        changes.iter().try_for_each(|change| self.converge(change, end))
    }

    /// Writes until a change is at its end.
    fn converge(&mut self, change: &Change, end: End) -> Result<(), ActionError> {
        let mut last: Option<Step> = None;
        for _ in 0..MOST_WRITES {
            let Some(step) = self.next(change, end)? else { return Ok(()) };
            if last.as_ref() == Some(&step) {
                break;
            }
            match &step {
                Step::File(write) => self.put(write)?,
                Step::Cut(step) => self.writer.cut(step)?,
            }
            last = Some(step);
        }
        Err(match last {
            Some(Step::Cut(step)) => MigError::Ignored { step }.into(),
            Some(Step::File(write)) => {
                ActionError::Ignored { path: write.path, text: write.text.trim().to_owned() }
            }
            None => ActionError::Ignored { path: PathBuf::new(), text: String::new() },
        })
    }

    fn next(&mut self, change: &Change, end: End) -> Result<Option<Step>, ActionError> {
        let Some(place) = change.place() else {
            return Ok(change.next(&self.places.sysfs, end)?.map(Step::File));
        };
        let layout = self.writer.layout(place.gpu)?;
        Ok(change.next_cut(&layout, end).map(Step::Cut))
    }

    fn put(&mut self, write: &Write) -> Result<(), ActionError> {
        self.writer.write(write).map_err(|source| ActionError::Refused {
            path: write.path.clone(),
            text: write.text.trim().to_owned(),
            source,
        })
    }

    /// A function on which nothing is unfinished.
    fn usable(&self, address: PciAddress) -> Result<PciFunction, ActionError> {
        self.check_finished(&address.into())?;
        let found = self.places.sysfs.pci_function(address)?;
        found.ok_or(ActionError::Missing(address))
    }

    fn check_finished(&self, subject: &Subject) -> Result<(), ActionError> {
        let Some((what, reason)) = self.stuck.get(subject) else { return Ok(()) };
        let (subject, what, reason) = (subject.clone(), what.clone(), reason.clone());
        Err(ActionError::Unfinished { subject, what, reason })
    }

    fn check_free(&self, function: &PciFunction) -> Result<(), ActionError> {
        let nodes = self.places.proc.nodes(&self.places.sysfs, function)?;
        let holders = self.places.proc.holders(&nodes)?;
        match holders.is_empty() {
            true => Ok(()),
            false => Err(ActionError::Held { subject: function.address.into(), holders }),
        }
    }

    /// The last kept action of which a change is as `of` says.
    fn kept_with(&self, of: impl Fn(&Change) -> bool) -> Option<&Action> {
        self.kept().iter().rev().find(|action| action.changes.iter().any(&of))
    }
}

/// Whether these bytes are a journal; what of them is not the half of a last line.
pub(crate) fn journal_length(bytes: &[u8]) -> Option<u64> {
    journal::replay(Path::new("journal"), bytes).ok().map(|read| read.length)
}

/// How far an action came whose change at `index` failed. A driver that refuses has done nothing: what
/// is at that place is somebody else's, and not to be undone.
fn begun(index: usize, error: &ActionError) -> Option<usize> {
    match error {
        ActionError::Mig(MigError::Refused { .. }) => index.checked_sub(1),
        _ => Some(index),
    }
}

fn subject(action: &Action) -> Option<Subject> {
    action.changes.first().map(Change::subject)
}

/// Whether a driver is one for VFIO.
fn for_vfio(driver: Option<&str>) -> bool {
    driver.is_some_and(ready::is_vfio)
}

/// Whether the kernel has a file for a function.
fn exists(sysfs: &SysfsRoot, address: PciAddress, file: &str) -> bool {
    sysfs.function(address).join(file).exists()
}
