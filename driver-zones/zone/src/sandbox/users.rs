//! Ranges of users' numbers, of which no two zones of a host have the same at one time.
//!
//! A claim is a file named for the range, locked by the zone's janitor and naming the launcher's
//! process. It is void when nobody holds the lock and that process is gone, so that neither
//! `kill -9` nor a janitor's own end frees a range that is in use.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::spec::UserRanges;
use crate::ProcessId;
use crate::files::private_dir;

/// One for the whole host, whatever folders an agent has.
const FOLDER: &str = "/run/gpu-zone-users";
/// Held while claims are looked at and changed.
const LOCK: &str = "lock";
/// The range that was given last. The next zone gets another, so that what an ended zone left
/// behind, wherever that may be, is nobody's for long.
const LAST: &str = "last";

/// A range that a zone has.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) range: Range<u32>,
    path: PathBuf,
    file: File,
}

/// Claims a range for the zone that this process makes.
pub(crate) fn claim(ranges: UserRanges) -> io::Result<Claim> {
    claim_in(Path::new(FOLDER), ranges)
}

/// The folder with the claims, which is made if it is not there.
pub(crate) fn folder() -> io::Result<&'static Path> {
    private_dir(Path::new(FOLDER))?;
    Ok(Path::new(FOLDER))
}

/// Removes the claims of zones that have ended and whose janitors were killed, as the next claim
/// would.
pub(crate) fn sweep() {
    let swept = || -> io::Result<()> {
        let lock = File::options().append(true).open(Path::new(FOLDER).join(LOCK))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        taken(Path::new(FOLDER)).map(drop)
    };
    // Without a folder there are no claims, and only root has any.
    let _ = swept();
}

fn claim_in(folder: &Path, ranges: UserRanges) -> io::Result<Claim> {
    private_dir(folder)?;
    let lock = File::options().create(true).append(true).open(folder.join(LOCK))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let taken = taken(folder)?;
    let last = folder.join(LAST);
    let after = fs::read_to_string(&last).ok().and_then(|text| text.trim().parse().ok());
    let range = choose(ranges, after, &taken).ok_or_else(|| {
        io::Error::other("all ranges are taken; [zone.users] in the agent's configuration has more")
    })?;
    let path = folder.join(name(&range));
    let mut file = File::options().create(true).write(true).truncate(true).open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockShared)?;
    file.write_all(&serde_json::to_vec(&ProcessId::own()?)?)?;
    fs::write(&last, range.start.to_string())?;
    Ok(Claim { range, path, file })
}

impl Claim {
    pub(crate) fn held(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// To be called when no process of the zone is left.
    pub(crate) fn give_back(&self) {
        // The next claim would do the same.
        let _ = fs::remove_file(&self.path);
    }
}

fn name(range: &Range<u32>) -> String {
    format!("{}-{}", range.start, range.end)
}

fn parse(name: &str) -> Option<Range<u32>> {
    let (start, end) = name.split_once('-')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

/// The ranges of living zones; the claims of others are removed.
fn taken(folder: &Path) -> io::Result<Vec<Range<u32>>> {
    let mut taken = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(range) = entry.file_name().to_str().and_then(parse) else { continue };
        if is_void(&entry.path()) {
            fs::remove_file(entry.path())?;
        } else {
            taken.push(range);
        }
    }
    Ok(taken)
}

/// What cannot be read is somebody's.
fn is_void(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    match fs::read(path).map(|text| serde_json::from_slice::<ProcessId>(&text)) {
        Ok(Ok(process)) => process.is_alive().is_ok_and(|alive| !alive),
        // Its maker ended in the middle of writing, or it would hold the lock.
        Ok(Err(_)) => true,
        Err(_) => false,
    }
}

/// The first free range behind `after`, and from the beginning again.
fn choose(ranges: UserRanges, after: Option<u32>, taken: &[Range<u32>]) -> Option<Range<u32>> {
    let UserRanges { first, each, zones } = ranges;
    if each == 0 || first == 0 {
        return None;
    }
    let range = |number: u32| {
        let start = first.checked_add(number.checked_mul(each)?)?;
        Some(start..start.checked_add(each)?)
    };
    let next = after.and_then(|after| after.checked_sub(first)).map_or(0, |past| past / each + 1);
    let next = if next < zones { next } else { 0 };
    let free = |range: &Range<u32>| {
        taken.iter().all(|other| range.end <= other.start || other.end <= range.start)
    };
    (next..zones).chain(0..next).filter_map(range).find(free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::at_last;

    const FEW: UserRanges = UserRanges { first: 1000, each: 10, zones: 3 };

    #[test]
    fn a_range_is_never_given_twice_and_the_last_one_not_at_once() {
        assert_eq!(choose(FEW, None, &[]), Some(1000..1010));
        assert_eq!(choose(FEW, Some(1000), &[]), Some(1010..1020));
        assert_eq!(choose(FEW, Some(1020), &[]), Some(1000..1010));
        assert_eq!(choose(FEW, Some(1000), std::slice::from_ref(&(1010..1020))), Some(1020..1030));
        assert_eq!(choose(FEW, Some(9), &[1000..1010, 1010..1020, 1020..1030]), None);
        // Of a configuration with other sizes.
        assert_eq!(choose(FEW, None, &[0..1001, 1019..1021]), None);
        assert_eq!(choose(FEW, None, std::slice::from_ref(&(1015..1016))), Some(1000..1010));
    }

    #[test]
    fn numbers_that_do_not_exist_are_not_given() {
        let end = UserRanges { first: u32::MAX - 15, each: 10, zones: 9 };
        assert_eq!(choose(end, Some(u32::MAX - 15), &[]), Some(u32::MAX - 15..u32::MAX - 5));
        assert_eq!(choose(UserRanges { each: 0, ..FEW }, None, &[]), None);
        assert_eq!(choose(UserRanges { first: 0, ..FEW }, None, &[]), None);
    }

    #[test]
    fn a_claim_lasts_as_long_as_its_holder_or_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim_in(folder.path(), FEW).unwrap();
        let second = claim_in(folder.path(), FEW).unwrap();
        let third = claim_in(folder.path(), FEW).unwrap();
        assert_eq!(first.range, 1000..1010);
        assert_eq!((second.range.start, third.range.start), (1010, 1020));
        assert!(claim_in(folder.path(), FEW).is_err());
        // The janitor is gone, but the process is not.
        let path = first.path.clone();
        drop(first);
        assert!(claim_in(folder.path(), FEW).is_err());
        let gone = ProcessId { start_time: 0, ..ProcessId::own().unwrap() };
        fs::write(&path, serde_json::to_vec(&gone).unwrap()).unwrap();
        let claimed = || claim_in(folder.path(), FEW).ok();
        let again = at_last(claimed);
        assert_eq!(again.range, 1000..1010);
        // The process is gone, but the janitor is not.
        fs::write(&second.path, serde_json::to_vec(&gone).unwrap()).unwrap();
        assert!(claim_in(folder.path(), FEW).is_err());
        second.give_back();
        assert_eq!(at_last(claimed).range, 1010..1020);
        // Half written when the power failed, or by a maker that was killed.
        drop(third);
        fs::write(folder.path().join("1020-1030"), "{\"pid\":").unwrap();
        assert_eq!(at_last(claimed).range, 1020..1030);
    }
}
