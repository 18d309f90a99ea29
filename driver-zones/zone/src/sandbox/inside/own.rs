//! The launcher as the owner of its zone: it writes down how the start goes, and ends what is late.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::init::let_go;
use super::{SetupError, say, step};
use crate::ZoneEvent;
use crate::sandbox::spec::{Report, Spec};
use crate::zones::single::{LIMIT, Single};

/// Writes down that the zone is being started, where it is this process's to own.
pub(super) fn start(spec: &Spec) -> Result<Option<Single>, SetupError> {
    let Some(folder) = &spec.record else { return Ok(None) };
    if !spec.own_pids {
        let message = "a launcher that owns its zone numbers the zone's processes on their own";
        return Err(SetupError::Spec(message.to_owned()));
    }
    let started = Single::start(folder, &spec.zone);
    started.map(Some).map_err(|error| SetupError::Spec(error.to_string()))
}

/// In the processes inside: what tells the owner that the start has failed. When the last of them
/// has let go of it and nothing was said, the program has begun.
#[derive(Debug)]
pub(super) struct Starts(PipeWriter);

impl Starts {
    pub(super) fn have_failed(&mut self) {
        // An owner that is gone takes the zone with it.
        let _ = self.0.write_all(b"f");
    }
}

/// In the launcher.
#[derive(Debug)]
pub(super) struct Owner<'a> {
    single: &'a mut Single,
    heard: PipeReader,
}

impl<'a> Owner<'a> {
    pub(super) fn new(single: &'a mut Single) -> Result<(Self, Starts), SetupError> {
        let (heard, told) = io::pipe().map_err(step("cannot make a pipe"))?;
        Ok((Self { single, heard }, Starts(told)))
    }

    /// Follows the start of the zone whose process 1 is `first`, until its program begins or the
    /// zone is on its way out.
    pub(super) fn follow(mut self, first: Pid, report: &mut File) {
        let event = match self.how_it_went() {
            Ok(Went::Begun) => ZoneEvent::Begun,
            Ok(Went::Failed) => ZoneEvent::Failed,
            Ok(Went::Late) => {
                let limit = LIMIT.as_secs();
                let reason = format!("its program did not begin within {limit} s");
                say(report, &Report::Failed(reason));
                end(first);
                ZoneEvent::Failed
            }
            Err(error) => {
                say(report, &Report::Failed(format!("cannot follow the zone's start: {error}")));
                end(first);
                ZoneEvent::Failed
            }
        };
        let_go(report);
        if let Err(error) = self.single.enter(event) {
            eprintln!("gpu-zone-sandbox: {error}; the zone is ended");
            end(first);
        }
    }

    fn how_it_went(&mut self) -> io::Result<Went> {
        let limit = Timespec::try_from(LIMIT).map_err(io::Error::other)?;
        let mut word = [PollFd::new(&self.heard, PollFlags::IN)];
        if poll(&mut word, Some(&limit))? == 0 {
            return Ok(Went::Late);
        }
        Ok(if self.heard.read(&mut [0])? == 0 { Went::Begun } else { Went::Failed })
    }
}

enum Went {
    Begun,
    Failed,
    Late,
}

/// With process 1, all others of the zone go.
fn end(first: Pid) {
    // It may be gone already.
    let _ = kill_process(first, Signal::KILL);
}
