//! The slots' folders, on disk.
//!
//! A container that gets slots has one folder mounted, that of its first slot; what its lease
//! needs appears there. A folder belongs to one pod for all time:
//!
//! ```text
//!   hand_out (Allocate)            claim (the pod that holds the slot is known)
//!   ──────────────────▶ nobody's ────────────────────▶ of pod P ──▶ removed (P is gone)
//!        ▲                 │ hand_out in the same                     │
//!        └─ a fresh folder │ registration: the same (an app container │ hand_out: a fresh one
//!                          ▼ takes over an init container's slot)     ▼
//! ```
//!
//! As long as we are registered, no container starts without PreStartContainer, so a folder that
//! is nobody's has never been seen from inside. After a registration anew that is not known any
//! more, and a slot that is handed out gets a fresh folder.
//!
//! So a lease can only appear where its own pod looks, even when the kubelet skips
//! PreStartContainer, and whatever of plugin, agent and kubelet was away: another pod that gets
//! the slot gets another folder. The folder's owner stands in a file beside it, on disk before
//! anything appears in the folder.
//!
//! Allocate may not wait for others, and a claim waits for the disk. So `hand_out` takes no lock
//! that is held while a file is written: it may hand out a folder that is being claimed just then.
//! Whoever claims asks kubelet and API server once more afterwards and takes such a claim back, as
//! one that comes a moment after the hand-out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_api::{PLACED_SLOTS_DIR, SlotFolder, SlotId, slot_folder};
use rustix::fs::{FlockOperation, flock};

const OWNER: &str = "pod";
const LOCK: &str = "lock";

/// The slots' folders. One process has them at a time.
#[derive(Debug)]
pub struct Slots {
    state: PathBuf,
    /// The folders that were handed out since the last registration. Allocate takes it, so nobody
    /// else holds it while anything is done on disk.
    handed_out: Mutex<BTreeSet<(SlotId, SlotFolder)>>,
    /// One change of whose a slot's folders are at a time.
    changes: Mutex<BTreeMap<SlotId, Arc<Mutex<()>>>>,
    _lock: File,
}

/// Whose a folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It was handed out and no pod is known to have it.
    Nobody,
    /// One pod's.
    Pod(PodUid),
    /// What stands there names no pod; nothing appears in such a folder.
    Unreadable,
}

/// Why the folders cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another plugin has them.
    #[error("another device plugin uses {}; only one may run on a node", .0.display())]
    Locked(PathBuf),
    /// Others may get into the directory, or have it.
    #[error(
        "{} belongs to user {owner} and has mode {mode:04o}, and only the plugin's own user (here {user}) may get into it, for it says whose leases are whose; look at what lies in it, then `chown {user}` and `chmod 700` it, or choose another --state-dir", .path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// Whom the plugin runs as.
        user: u32,
    },
    /// The directory cannot be used.
    #[error("cannot use {}, where the plugin has to write; check its permissions and its disk, or choose another --state-dir", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a slot has no folder for a pod.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It was never handed out, or what was is gone.
    #[error(
        "{0} was never handed to a container by this node's plugin; delete the pod and let it be created again"
    )]
    NotHandedOut(SlotId),
    /// Its newest folder is another pod's.
    #[error("{slot} was last handed to the pod {pod}; delete this pod and let it be created again")]
    AnotherPods {
        /// Which.
        slot: SlotId,
        /// Whose it is.
        pod: PodUid,
    },
    /// Nobody can say whose its newest folder is.
    #[error("whose {0} is cannot be read from {path}; delete the pod and let it be created again", path = .1.display())]
    Unreadable(SlotId, PathBuf),
    /// The disk.
    #[error("cannot write {}; free space on its disk", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What is not there is removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// The slots below a state directory.
    ///
    /// # Errors
    /// When another process has them, or the directory is open to others or cannot be used.
    pub fn open(state: &Path) -> Result<Self, OpenError> {
        let root = state.join(PLACED_SLOTS_DIR);
        let io = |source| OpenError::Io { path: root.clone(), source };
        private(&root).map_err(io)?;
        let found = std::fs::metadata(&root).map_err(io)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        let user = rustix::process::geteuid().as_raw();
        if owner != user || mode & 0o077 != 0 {
            return Err(OpenError::Open { path: root, owner, mode, user });
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(root.join(LOCK)).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let (handed_out, changes) = Default::default();
                Ok(Self { state: state.to_owned(), handed_out, changes, _lock: lock })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(root)),
            Err(error) => Err(io(error.into())),
        }
    }

    fn changes_of(&self, slot: SlotId) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.changes).entry(slot).or_default())
    }

    /// Where a folder is.
    pub fn path(&self, slot: SlotId, folder: SlotFolder) -> PathBuf {
        slot_folder(&self.state, slot, folder)
    }

    fn slot_dir(&self, slot: SlotId) -> PathBuf {
        self.state.join(PLACED_SLOTS_DIR).join(slot.to_string())
    }

    fn owner_file(&self, slot: SlotId, folder: SlotFolder) -> PathBuf {
        self.path(slot, folder).with_extension(OWNER)
    }

    /// The folders of a slot, and those of which only the owner is left.
    fn folders(&self, slot: SlotId) -> io::Result<Vec<SlotFolder>> {
        let entries = match std::fs::read_dir(self.slot_dir(slot)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_suffix(".pod").unwrap_or(&name);
            found.extend(number.parse::<SlotFolder>());
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn owner(&self, slot: SlotId, folder: SlotFolder) -> io::Result<Owner> {
        match std::fs::read_to_string(self.owner_file(slot, folder)) {
            Ok(text) => Ok(text.parse().map_or(Owner::Unreadable, Owner::Pod)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Nobody),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Owner::Unreadable),
            Err(error) => Err(error),
        }
    }

    /// To be called before every registration, with the slots that are registered.
    pub fn registering(&self, registered: impl Fn(SlotId) -> bool) {
        lock(&self.handed_out).retain(|(slot, _)| !registered(*slot));
    }

    /// The folder for a container that gets `slot`: a fresh one, unless the newest is nobody's
    /// and was handed out since the last registration.
    /// `now` is any clock that goes on, in nanoseconds: numbers are not given twice even when all
    /// folders of a slot are gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn hand_out(&self, slot: SlotId, now: u64) -> io::Result<SlotFolder> {
        let mut handed_out = lock(&self.handed_out);
        let folders = self.folders(slot)?;
        let newest = folders.last().copied();
        for folder in folders {
            if self.owner(slot, folder)? != Owner::Nobody {
                continue;
            }
            if Some(folder) == newest && handed_out.contains(&(slot, folder)) {
                return Ok(folder);
            }
            // The kubelet gives the slot to another: whoever had this one is gone.
            gone(std::fs::remove_dir_all(self.path(slot, folder)))?;
        }
        let next = newest.map_or(Some(SlotFolder::new(now)), |newest| newest.next(now));
        let next = next.ok_or_else(|| io::Error::other("the slot's folders are numbered out"))?;
        private(&self.slot_dir(slot))?;
        let path = self.path(slot, next);
        std::fs::create_dir(&path)?;
        // Whoever has it mounted looks into it; on the way to it, nobody gets in.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        handed_out.insert((slot, next));
        Ok(next)
    }

    /// The newest folder of `slot`, which is `pod`'s from now on. The flag says that it was
    /// nobody's until now: then the kubelet has to be asked once more whether the pod still holds
    /// the slot, and the API server whether it is still that pod. If so, whatever is handed out to
    /// others is handed out later, and is not this folder.
    ///
    /// # Errors
    /// When the newest is another pod's, or the disk refuses.
    pub fn claim(&self, slot: SlotId, pod: &PodUid) -> Result<(SlotFolder, bool), FolderError> {
        let turn = self.changes_of(slot);
        let _turn = lock(&turn);
        let dir = self.slot_dir(slot);
        let io = |source| FolderError::Io { path: dir.clone(), source };
        let newest = self.folders(slot).map_err(io)?.pop();
        let newest = newest.ok_or(FolderError::NotHandedOut(slot))?;
        match self.owner(slot, newest).map_err(io)? {
            Owner::Pod(owner) if owner == *pod => Ok((newest, false)),
            Owner::Pod(pod) => Err(FolderError::AnotherPods { slot, pod }),
            Owner::Unreadable => Err(FolderError::Unreadable(slot, self.owner_file(slot, newest))),
            Owner::Nobody => {
                self.write_owner(slot, newest, pod).map_err(io)?;
                Ok((newest, true))
            }
        }
    }

    fn write_owner(&self, slot: SlotId, folder: SlotFolder, pod: &PodUid) -> io::Result<()> {
        let owner = self.owner_file(slot, folder);
        let new = owner.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(pod.as_str().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &owner)?;
        File::open(self.slot_dir(slot))?.sync_all()
    }

    /// Takes a claim back that turned out to be wrong before anything appeared in the folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn unclaim(&self, slot: SlotId, folder: SlotFolder) -> io::Result<()> {
        let turn = self.changes_of(slot);
        let _turn = lock(&turn);
        std::fs::remove_file(self.owner_file(slot, folder))
    }

    /// All folders that are a pod's.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn owned(&self) -> io::Result<Vec<(SlotId, SlotFolder, PodUid)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.state.join(PLACED_SLOTS_DIR))? {
            let Ok(slot) = entry?.file_name().to_string_lossy().parse::<SlotId>() else { continue };
            for folder in self.folders(slot)? {
                if let Owner::Pod(pod) = self.owner(slot, folder)? {
                    found.push((slot, folder, pod));
                }
            }
        }
        Ok(found)
    }

    /// Removes the folder of a pod that is gone. Its number stays behind the next one's.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, slot: SlotId, folder: SlotFolder) -> io::Result<()> {
        let turn = self.changes_of(slot);
        let _turn = lock(&turn);
        // Before anything else: what goes now is not handed out a moment later.
        lock(&self.handed_out).remove(&(slot, folder));
        // The owner last: a folder without one could be handed out.
        gone(std::fs::remove_dir_all(self.path(slot, folder)))?;
        gone(std::fs::remove_file(self.owner_file(slot, folder)))
    }
}

#[cfg(test)]
mod tests;
