//! Zones of one program whose owner is killed at any moment. Alone in its file: it kills launchers.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_zone::sandbox::Feature;
    use gpuzone_zone::{Process, settle};

    use crate::support::written::{is_gone, kill, nothing_is_left, written};
    use crate::support::{descendants, eventually, host_has, start};

    /// Killed at any moment on the way from nothing to a running program.
    #[tokio::test]
    async fn no_moment_is_a_bad_one_for_the_owners_death() {
        if !host_has("no_moment_is_a_bad_one_for_the_owners_death", &[Feature::Pid, Feature::Proc])
        {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for step in 0..30_u64 {
            let out = tempfile::tempfile().unwrap();
            let spec = written(folder.path(), &format!("zone-{step}"));
            let killer = std::thread::spawn({
                let own = std::process::id();
                move || {
                    let fresh = || launchers(own);
                    assert!(eventually(|| !fresh().is_empty()));
                    std::thread::sleep(Duration::from_micros(step * 300));
                    let row: Vec<u32> = fresh().into_iter().flat_map(descendants).collect();
                    // Sometimes with all that it has started by then, janitor included.
                    let count = if step % 3 == 0 { row.len() } else { 1 };
                    row.iter().take(count).for_each(|pid| kill(*pid));
                    row
                }
            });
            let started: Option<Process> =
                start(spec, "/bin/sleep", &["600"], &out).ok().map(|(process, _)| process);
            let row = killer.join().unwrap();
            drop(started);
            assert!(eventually(|| row.iter().all(|pid| is_gone(*pid))), "{step}: {row:?}");
            settle(folder.path()).unwrap();
            nothing_is_left(folder.path(), row[0], &row, &step.to_string());
        }
    }

    /// The launcher that process `of` has started, if it has become one.
    fn launchers(of: u32) -> Vec<u32> {
        let is_launcher = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|file| file.ends_with("gpu-zone-sandbox"))
        };
        // Its janitor and its process 1 are behind it.
        descendants(of).into_iter().filter(is_launcher).take(1).collect()
    }
}
