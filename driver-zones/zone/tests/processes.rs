//! Processes are started with exactly what they are handed, watched, and ended.
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use gpuzone_zone::sandbox::{Launch, LaunchError};
    use gpuzone_zone::{Exit, Process, ProcessId};
    use rustix::process::Signal;

    fn null() -> OwnedFd {
        File::options().read(true).write(true).open("/dev/null").unwrap().into()
    }

    fn shell(script: &str, stdout: OwnedFd, inherit: Vec<OwnedFd>) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::from([("ONLY".to_owned(), "this".to_owned())]),
            stdin: null(),
            stdout,
            stderr: null(),
            inherit,
        }
    }

    fn text(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    #[tokio::test]
    async fn gets_exactly_what_it_is_handed() {
        let mut out = tempfile::tempfile().unwrap();
        // An inheritable descriptor that it must not get.
        let leak = rustix::io::fcntl_dupfd_cloexec(null(), 40).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let script = "read a <&3; read b <&4; echo $a $b $ONLY $HOME; pwd; umask; \
                      for fd in /proc/$$/fd/*; do echo ${fd##*/}; done | sort -n | tr '\\n' ' '";
        let inherit = vec![text("three\n").into(), text("four\n").into()];
        let process = shell(script, out.try_clone().unwrap().into(), inherit).start().unwrap();
        assert_eq!(process.exited().await.unwrap(), Exit::Code(0));
        let mut said = String::new();
        out.rewind().unwrap();
        out.read_to_string(&mut said).unwrap();
        // Shells keep one more descriptor of their own, at 10 or above.
        assert!(said.starts_with("three four this\n/\n0077\n0 1 2 3 4"), "{said}");
        assert!(!said.contains("40"), "{said}");
    }

    #[tokio::test]
    async fn ends_a_process_that_ignores_sigterm() {
        let (mut ready, ready_fd) = std::io::pipe().unwrap();
        let script = "trap '' TERM; echo; while :; do sleep 1; done";
        let process = shell(script, ready_fd.into(), vec![]).start().unwrap();
        ready.read_exact(&mut [0]).unwrap();
        assert!(!process.is_gone().unwrap());
        let id = process.id();
        let found = Process::find(id).unwrap().unwrap();
        let grace = Duration::from_millis(50);
        assert_eq!(process.end(Some(grace)).await.unwrap(), Exit::Signal(9));
        assert_eq!(process.exited().await.unwrap(), Exit::Signal(9), "asked again");
        assert!(found.is_gone().unwrap());
        found.signal(Signal::TERM).unwrap();
        assert!(!id.is_alive().unwrap());
        assert!(Process::find(id).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stranger_is_watched_to_its_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap().unwrap();
        let stranger = Process::find(id).unwrap().unwrap();
        let wrong = ProcessId { start_time: id.start_time + 1, ..id };
        assert!(Process::find(wrong).unwrap().is_none());
        let waiting = tokio::time::timeout(Duration::from_millis(20), stranger.exited()).await;
        assert!(waiting.is_err(), "it runs");
        child.kill().unwrap();
        stranger.exited().await.unwrap();
        // A zombie is as gone as one that was waited for.
        assert!(!id.is_alive().unwrap());
        let _ = child.wait();
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let mut launch = shell("", null(), vec![null()]);
        launch.program = "/nowhere/worker".into();
        let error = launch.start().unwrap_err();
        assert!(matches!(error, LaunchError::Program { .. }), "{error:?}");
        assert!(error.to_string().contains("/nowhere/worker"));
    }
}
