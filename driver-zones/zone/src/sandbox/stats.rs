//! What a zone's processes use, as `/proc` shows it (proc(5)).

use std::fs;
use std::io;
use std::time::Duration;

use crate::backend::ZoneStats;

/// Of `pid` and all its descendants. What ends meanwhile is left out.
pub(crate) fn of(pid: u32) -> io::Result<ZoneStats> {
    let mut total = ZoneStats::default();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        let Some((cpu, pages)) = stat.ok().as_deref().and_then(parse) else { continue };
        total.processes += 1;
        total.cpu += cpu;
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        total.memory = total.memory.saturating_add(pages.saturating_mul(page));
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(total)
}

/// Processor time (fields 14 and 15) and resident pages (field 24).
fn parse(stat: &str) -> Option<(Duration, u64)> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = behind_name.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)?.saturating_add(number(15)?);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let cpu = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    Some((cpu, number(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_process_with_its_children() {
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let pid = child.id();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while of(pid).unwrap().processes < 2 && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        let used = of(pid).unwrap();
        // The shell's child is the test's to end, too.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for inner in children.split_whitespace() {
            let inner = rustix::process::Pid::from_raw(inner.parse().unwrap()).unwrap();
            rustix::process::kill_process(inner, rustix::process::Signal::KILL).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(used.processes, 2);
        assert!(used.memory > 0);
        assert_eq!(of(pid).unwrap(), ZoneStats::default(), "it is gone");
    }
}
