//! The launcher: makes the process that it runs in a zone's, then becomes the program.
//!
//! One thread, and no memory of its starter's: what is done here is done to this process alone.
//! The order is forced: privileges that a new user namespace gives build the root, then all of
//! them go, then Landlock and seccomp take what is left.

mod files;
mod init;
mod janitor;
mod namespaces;
mod own;
mod programs;
mod restrict;
mod root;
mod system_calls;
mod users;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sandbox::cgroup::{self, Groups};
use crate::sandbox::spec::{Demand, Feature, Filter, Missing, Report, Spec};
use crate::zones::single::Single;

/// Exit code where the zone could not be made; the reason is in the report.
pub const EXIT_FAILED: u8 = 125;

/// Why a zone could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{what}: {source}")]
    Step { what: String, source: io::Error },
    #[error(
        "this host lacks '{feature}' ({reason}), which the policy requires; provide it, or set {feature} = \"warn\" under [zone.features] in the agent's configuration"
    )]
    Required { feature: Feature, reason: String },
    #[error("{0}")]
    Spec(String),
}

/// Names the step that failed.
pub(crate) fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> SetupError {
    let what = what.into();
    move |source| SetupError::Step { what, source: source.into() }
}

/// A zone in the making.
pub(crate) struct Setup {
    spec: Spec,
    groups: Groups,
    /// Where the zone has users of its own.
    users: Option<users::Users>,
    /// What it is handed, where that had to be taken beforehand.
    handed: Option<root::Parts>,
    missing: Vec<Missing>,
}

impl Setup {
    /// Notes that the host lacks `feature`.
    pub(crate) fn lacks(
        &mut self,
        feature: Feature,
        reason: impl ToString,
    ) -> Result<(), SetupError> {
        let reason = reason.to_string();
        match self.spec.policy.of(feature) {
            Demand::Require => Err(SetupError::Required { feature, reason }),
            Demand::Warn => {
                self.missing.push(Missing { feature, reason });
                Ok(())
            }
        }
    }

    /// Whether its program makes zones: it is neither ended nor cleaned up behind with its group,
    /// in which theirs may be, and sees the paths of the host's groups.
    fn makes_zones(&self) -> bool {
        match self.spec.filter {
            Filter::Maker | Filter::Machines => true,
            Filter::Worker | Filter::Workload | Filter::Broker => false,
        }
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.missing.iter().all(|missing| missing.feature != feature)
    }
}

/// What runs in a zone.
#[derive(Debug)]
pub enum Runs {
    /// A program: the file to run, its first argument (its name), and the rest.
    Program(Vec<OsString>),
    /// Programs that are asked for over this socket, which the zone's keeper holds.
    Requests(OwnedFd),
}

/// As [`Runs`], ready to run.
enum Inner {
    Program(Command),
    Requests(OwnedFd),
}

/// Reads the orders, makes the zone and runs what is to run in it; the exit code where this
/// process is not the program itself.
pub fn run(orders: File, report: OwnedFd, runs: Runs) -> u8 {
    let mut report = File::from(report);
    let mut owned = None;
    let began = prepare(orders).and_then(|setup| begin(setup, &mut owned, &mut report, runs));
    // Only the first process gets here, and nothing of the zone is left then.
    if let Some(single) = owned {
        single.gone();
    }
    match began {
        Ok(code) => code,
        Err(error) => {
            say(&mut report, &Report::Failed(error.to_string()));
            EXIT_FAILED
        }
    }
}

fn say(report: &mut File, what: &Report) {
    // Whoever does not listen any more is gone, and will not be missed.
    if let Ok(mut json) = serde_json::to_vec(what) {
        json.push(b'\n');
        let _ = report.write_all(&json);
    }
}

fn prepare(mut orders: File) -> Result<Setup, SetupError> {
    let mut text = String::new();
    orders.read_to_string(&mut text).map_err(step("cannot read the zone's orders"))?;
    let spec: Spec = serde_json::from_str(&text)
        .map_err(|error| SetupError::Spec(format!("the zone's orders are none: {error}")))?;
    if !cgroup::is_name(&spec.zone) {
        let message = "a zone's name has 1 to 64 letters, digits, '-' and '_'";
        return Err(SetupError::Spec(format!("{message}; {:?} has not", spec.zone)));
    }
    Ok(Setup { spec, groups: Groups::default(), users: None, handed: None, missing: Vec::new() })
}

fn begin(
    mut setup: Setup,
    owned: &mut Option<Single>,
    report: &mut File,
    runs: Runs,
) -> Result<u8, SetupError> {
    let runs = match runs {
        Runs::Program(_) | Runs::Requests(_)
            if setup.makes_zones() && (setup.spec.own_pids || setup.spec.users.is_some()) =>
        {
            let message =
                "a program that makes zones has the host's users and numbers of processes";
            return Err(SetupError::Spec(message.to_owned()));
        }
        Runs::Requests(_) if !setup.spec.own_pids => {
            let message = "a zone for several programs numbers its processes on its own";
            return Err(SetupError::Spec(message.to_owned()));
        }
        Runs::Program(command) => Inner::Program(program(command)?),
        Runs::Requests(requests) => Inner::Requests(requests),
    };
    *owned = own::start(&setup.spec)?;
    if !setup.makes_zones() {
        hold(&mut setup, owned.as_ref())?;
    }
    restrict::allow_locked(&setup.spec.limits)?;
    users::prepare(&mut setup)?;
    namespaces::enter(&mut setup)?;
    let mut program = match (setup.spec.own_pids, runs) {
        (false, Inner::Program(program)) => program,
        (_, runs) => return init::supervise(setup, owned, report, runs),
    };
    finish(&mut setup)?;
    say(report, &Report::Ready(std::mem::take(&mut setup.missing)));
    say(report, &unrunnable(&program.exec(), program.get_program()));
    Ok(EXIT_FAILED)
}

fn program(mut command: Vec<OsString>) -> Result<Command, SetupError> {
    if command.len() < 2 {
        return Err(SetupError::Spec("there is no program to run".to_owned()));
    }
    let arguments = command.split_off(2);
    let mut program = Command::new(&command[0]);
    program.arg0(&command[1]).args(arguments);
    Ok(program)
}

/// Why the program did not begin in a zone that was made.
fn unrunnable(error: &io::Error, program: &OsStr) -> Report {
    let errno = error.raw_os_error().unwrap_or_default();
    Report::Unrunnable { errno, reason: format!("cannot run {program:?} in the zone: {error}") }
}

/// The last steps, in the process that becomes the program or its init.
fn finish(setup: &mut Setup) -> Result<(), SetupError> {
    for (feature, reason) in setup.groups.join() {
        setup.lacks(feature, reason)?;
    }
    users::become_own(setup)?;
    if !setup.makes_zones() {
        namespaces::enter_inner(setup)?;
    }
    if setup.has(Feature::Mount) {
        root::enter(setup)?;
    }
    let directory = &setup.spec.directory;
    std::env::set_current_dir(directory)
        .map_err(step(format!("cannot make {} the working directory", directory.display())))?;
    restrict::drop_privileges(setup)?;
    restrict::landlock(setup)?;
    restrict::seccomp(setup)
}

/// Takes what a zone has of the host's for as long as it lives: numbers of users, and control
/// groups, which its first process joins later. The janitor gives both back.
fn hold(setup: &mut Setup, owned: Option<&Single>) -> Result<(), SetupError> {
    users::claim(setup)?;
    let (groups, unset) = Groups::make(&setup.spec.zone, &setup.spec.limits);
    // Before anything can fail: whatever was made is removed.
    let claim = setup.users.as_ref().map(users::Users::claim);
    let record = owned.map(Single::files);
    let record = record.as_ref().map_or(&[][..], |files| &files[..]);
    janitor::start(&groups, claim, record).map_err(step("cannot start the zone's janitor"))?;
    setup.groups = groups;
    for (feature, reason) in unset {
        setup.lacks(feature, reason)?;
    }
    Ok(())
}
