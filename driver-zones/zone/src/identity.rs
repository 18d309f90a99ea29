use std::fmt;
use std::io;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One run of the kernel, from boot to halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(Uuid);

impl BootId {
    /// This one, from `/proc/sys/kernel/random/boot_id` (random(4)).
    ///
    /// # Errors
    /// When the file cannot be read, or holds no UUID.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let uuid = Uuid::parse_str(text.trim());
        uuid.map(Self).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A process for all time: its number, when it started, and in which boot. A number alone is
/// given to another process sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (field 22 of `/proc/<pid>/stat`, proc(5)).
    pub start_time: u64,
    /// In which boot.
    pub boot: BootId,
}

impl ProcessId {
    /// The process that has this number now; `None` when no process has it, or the one that has
    /// it ended and only waits for its parent.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            // A process that ends between open and read gives ESRCH.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((state, start_time)) = parse_stat(&stat) else {
            let message = format!("/proc/{pid}/stat is not as proc(5) says");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        };
        if matches!(state, 'Z' | 'X' | 'x') {
            return Ok(None);
        }
        Ok(Some(Self { pid, start_time, boot: BootId::current()? }))
    }

    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "/proc does not show this process");
        Self::of(std::process::id())?.ok_or_else(gone)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)? == Some(*self))
    }

    pub(crate) fn raw(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

/// State (field 3) and start time (field 22). The name in field 2 may hold anything, brackets
/// and spaces too, so counting begins behind its last bracket.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields() {
        let zeros = "0 ".repeat(18);
        let stat = format!("7 (a) S 1 ) (b) R {zeros}4242 0 0");
        assert_eq!(parse_stat(&stat), Some(('R', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn knows_itself_and_not_who_had_its_number_before() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive().unwrap());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_alive().unwrap());
        let other_boot = BootId(Uuid::nil());
        assert!(!ProcessId { boot: other_boot, ..own }.is_alive().unwrap());
        assert_eq!(ProcessId::of(u32::MAX).unwrap(), None);
        let json = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<ProcessId>(&json).unwrap(), own);
    }
}
