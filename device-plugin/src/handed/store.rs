//! Marks on disk: a file for each device that was handed out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::GpuUuid;
use tokio::sync::watch;

use super::{Mark, handed_out};

const DIRECTORY: &str = "handed-out";
/// The containers of a pod are admitted within milliseconds. No VM is made, its pod gone and the
/// next one admitted within this.
const AT_ONCE: Duration = Duration::from_millis(200);
/// What was handed out longer ago is in the kubelet's listing, or was never taken.
const ON_ITS_WAY: Duration = Duration::from_secs(5);
/// What was handed out so long ago, and is not settled, waits for somebody who is away.
const LONG_AGO: Duration = Duration::from_secs(60);

/// The marks cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}, where the plugin has to write; check its permissions and its disk, or choose another --state-dir", .path.display())]
pub struct HandedError {
    path: PathBuf,
    source: io::Error,
}

/// A mark, and when its device was last handed out, if this process did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandOut {
    pub(crate) mark: Mark,
    at: Option<Instant>,
}

impl HandOut {
    /// Whether whoever looks again soon may know more.
    pub(crate) fn is_unsettled(&self) -> bool {
        let recent = self.at.is_some_and(|at| at.elapsed() < LONG_AGO);
        self.is_on_its_way() || (self.mark.again && recent)
    }

    /// Whether a hand-out of it may be on its way yet: the kubelet lists it only afterwards.
    pub(crate) fn is_on_its_way(&self) -> bool {
        let unlisted = self.mark.pod.is_none() || self.mark.again;
        unlisted && self.at.is_some_and(|at| at.elapsed() < ON_ITS_WAY)
    }
}

/// What is known of the devices that were handed out.
pub(crate) struct Handed {
    directory: PathBuf,
    /// Whether containers may open their devices without a lease, as long as we are registered.
    pub(crate) early: bool,
    marks: Mutex<BTreeMap<GpuUuid, HandOut>>,
    /// Grows when something is blocked, or is not any more.
    changes: watch::Sender<u64>,
    /// Whoever writes CDI's files.
    writing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handed {
    /// What an earlier plugin left. While it was away nobody called PreStartContainer, so all of it
    /// may be open.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(crate) fn open(state: &Path, early: bool) -> Result<Self, HandedError> {
        let directory = state.join(DIRECTORY);
        let failed = |source| HandedError { path: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let mut marks = BTreeMap::new();
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(gpu) = entry.file_name().to_string_lossy().parse::<GpuUuid>() else { continue };
            let text = std::fs::read(entry.path()).map_err(failed)?;
            let read: Option<Mark> = serde_json::from_slice(&text).ok();
            let mark = read.map_or_else(Mark::unknown, |mark| Mark { may_be_open: true, ..mark });
            marks.insert(gpu, HandOut { mark, at: None });
        }
        let (changes, writing) = (watch::Sender::new(0), Mutex::default());
        Ok(Self { directory, early, marks: Mutex::new(marks), changes, writing })
    }

    /// Notes that devices are handed out; answers those of them that nobody may open now. A mark
    /// that cannot be written blocks.
    pub(crate) fn hand_out(&self, gpus: &[GpuUuid]) -> BTreeSet<GpuUuid> {
        let mut marks = lock(&self.marks);
        for gpu in gpus {
            let before = marks.get(gpu);
            let at_once = before.and_then(|b| b.at).is_some_and(|at| at.elapsed() < AT_ONCE);
            let mark = handed_out(before.map(|b| b.mark.clone()), self.early, at_once);
            let mark = self.written(*gpu, mark);
            marks.insert(*gpu, HandOut { mark, at: Some(Instant::now()) });
        }
        let blocked = |gpu: &&GpuUuid| marks.get(*gpu).is_some_and(|handed| handed.mark.again);
        let blocked: BTreeSet<GpuUuid> = gpus.iter().filter(blocked).copied().collect();
        if !blocked.is_empty() {
            self.changed();
        }
        blocked
    }

    /// PreStartContainer may have been skipped: what was handed out may be open.
    pub(crate) fn registering(&self, gpus: &[GpuUuid]) {
        let mut marks = lock(&self.marks);
        for gpu in gpus {
            if let Some(handed) = marks.get_mut(gpu) {
                handed.mark.may_be_open = true;
                handed.mark = self.written(*gpu, handed.mark.clone());
            }
        }
    }

    /// Notes that this pod has a lease of these.
    pub(crate) fn leased(&self, gpus: &[GpuUuid], pod: &PodUid) {
        let mut marks = lock(&self.marks);
        for gpu in gpus {
            let mark =
                Mark { pod: Some(pod.clone()), may_be_open: true, leased: true, again: false };
            let mark = self.written(*gpu, mark);
            marks.insert(*gpu, HandOut { mark, at: None });
        }
    }

    /// All marks, as they are now.
    pub(crate) fn all(&self) -> BTreeMap<GpuUuid, HandOut> {
        lock(&self.marks).clone()
    }

    /// Whether nothing was noted of a device since it was looked at.
    pub(crate) fn is_still(&self, gpu: GpuUuid, seen: &HandOut) -> bool {
        lock(&self.marks).get(&gpu) == Some(seen)
    }

    /// Notes what came of a look at a device, unless it was handed out meanwhile.
    pub(crate) fn settle(&self, gpu: GpuUuid, seen: &HandOut, next: Option<Mark>) {
        let mut marks = lock(&self.marks);
        if marks.get(&gpu) != Some(seen) {
            return;
        }
        let was = seen.mark.again;
        let now = match next {
            Some(mark) if mark == seen.mark => return,
            Some(mark) => {
                let mark = self.written(gpu, mark);
                let now = mark.again;
                marks.insert(gpu, HandOut { mark, at: seen.at });
                now
            }
            None => {
                // One that stays is looked at again by the next plugin.
                if let Err(error) = std::fs::remove_file(self.file(gpu)) {
                    tracing::warn!(%gpu, %error, "its mark stays on disk");
                }
                marks.remove(&gpu);
                false
            }
        };
        if was != now {
            self.changed();
        }
    }

    /// Whether nobody may open it now.
    pub(crate) fn is_blocked(&self, gpu: GpuUuid) -> bool {
        lock(&self.marks).get(&gpu).is_some_and(|handed| handed.mark.again)
    }

    /// Tells of each change of what is blocked.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// To be held while CDI's files are written: what is blocked goes out of them before Allocate
    /// answers, and nobody puts it back.
    pub(crate) fn writing(&self) -> MutexGuard<'_, ()> {
        lock(&self.writing)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn file(&self, gpu: GpuUuid) -> PathBuf {
        self.directory.join(gpu.to_string())
    }

    /// The mark as it is then on disk. It outlives this process, and not a machine that loses its
    /// power: Allocate does not wait for the disk.
    fn written(&self, gpu: GpuUuid, mark: Mark) -> Mark {
        let path = self.file(gpu);
        let new = path.with_extension("new");
        let written = serde_json::to_vec(&mark).map_err(io::Error::other).and_then(|text| {
            std::fs::write(&new, text)?;
            std::fs::rename(&new, &path)
        });
        match written {
            Ok(()) => mark,
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "nobody gets this device until it can be written; free space on its disk");
                Mark { again: true, ..mark }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: u8) -> GpuUuid {
        GpuUuid::from_bytes([number; 16])
    }

    #[test]
    fn a_mark_outlives_the_plugin_and_what_cannot_be_read_is_blocked() {
        let state = tempfile::tempdir().unwrap();
        let handed = Handed::open(state.path(), false).unwrap();
        assert!(handed.hand_out(&[gpu(1), gpu(2)]).is_empty());
        let pod: PodUid = "uid-1".parse().unwrap();
        handed.leased(&[gpu(2)], &pod);
        assert_eq!(handed.hand_out(&[gpu(2)]), [gpu(2)].into());
        std::fs::write(state.path().join(DIRECTORY).join(gpu(3).to_string()), "{").unwrap();
        let again = Handed::open(state.path(), false).unwrap();
        let marks = again.all();
        // Nobody called PreStartContainer meanwhile.
        assert!(marks[&gpu(1)].mark.may_be_open && !marks[&gpu(1)].mark.again);
        assert_eq!(marks[&gpu(2)].mark.pod, Some(pod));
        assert_eq!(marks[&gpu(3)].mark, Mark::unknown());
        for (number, blocked) in [(1, false), (2, true), (3, true), (4, false)] {
            assert_eq!(again.is_blocked(gpu(number)), blocked, "{number}");
        }
        let changes = again.changes();
        again.settle(gpu(3), &marks[&gpu(3)], None);
        assert!(changes.has_changed().unwrap() && !again.is_blocked(gpu(3)));
        // What was handed out since it was looked at stays.
        again.hand_out(&[gpu(1)]);
        again.settle(gpu(1), &marks[&gpu(1)], None);
        assert!(again.is_blocked(gpu(1)));
    }

    #[test]
    fn what_cannot_be_written_down_is_blocked() {
        let state = tempfile::tempdir().unwrap();
        let handed = Handed::open(state.path(), false).unwrap();
        std::fs::remove_dir(state.path().join(DIRECTORY)).unwrap();
        assert_eq!(handed.hand_out(&[gpu(1)]), [gpu(1)].into());
    }

    #[test]
    fn containers_of_one_pod_are_admitted_at_once() {
        let state = tempfile::tempdir().unwrap();
        let handed = Handed::open(state.path(), true).unwrap();
        assert!(handed.hand_out(&[gpu(1)]).is_empty());
        assert!(handed.all()[&gpu(1)].is_on_its_way());
        if handed.all()[&gpu(1)].at.unwrap().elapsed() < AT_ONCE / 2 {
            assert!(handed.hand_out(&[gpu(1)]).is_empty());
        }
    }
}
