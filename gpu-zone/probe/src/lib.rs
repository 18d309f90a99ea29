//! `gpu-zone-probe`: asks from inside a workload whether its GPU is shared safely.
//!
//! Each check reads what the workload can read, opens what it can open, and asks the driver
//! libraries that it would use, in processes of their own. It runs in anybody's workload, so it
//! depends on nothing of gpu-zone but its words, and it holds no right that the workload lacks.
//!
//! Architecture invariant: `unsafe` stands in `driver` only; the checks are safe code over a
//! [`Host`], whose files lie below a root that tests choose.
#![deny(unsafe_code)]

mod baseline;
pub mod catalog;
mod checks;
#[allow(unsafe_code, reason = "libraries and nodes of drivers are asked in C")]
mod driver;
mod finding;
mod host;
mod options;
mod report;

use std::io;

pub use baseline::{Baseline, BaselineError};
pub use finding::{Code, Finding, Severity, UnknownCode};
pub use host::Host;
pub use options::Options;
pub use report::{Checked, Explanation, Report};

use checks::{CHECKS, Context, Outcome, Seen};
use driver::launch::Launcher;

/// Makes all checks. `announce` hears what is about to be touched, before it is.
///
/// The program that calls this, or [`Options::child`], is started again to open driver
/// libraries, so its `main` has to begin with [`serve_as_child`].
pub fn run(options: &Options, host: &Host, announce: &mut dyn FnMut(&str)) -> Report {
    let launcher = Launcher::new(options.child.as_deref(), host);
    announce("opening the driver libraries and a context on each device");
    let seen = Seen::ask(&launcher);
    let mut context = Context { host, options, launcher: &launcher, announce, seen };
    let (mut findings, mut checked) = (Vec::new(), Vec::new());
    for check in CHECKS {
        let mut outcome = Outcome::default();
        (check.run)(&mut context, &mut outcome);
        let Outcome { findings: found, untested } = outcome;
        checked.push(Checked { name: check.name, findings: found.len(), untested });
        findings.extend(found);
    }
    findings.iter_mut().for_each(|finding| options.baseline.mark(finding));
    Report::new(findings, checked)
}

/// Does a child's work when this process is one, and says so; nothing otherwise.
///
/// # Errors
/// When the order makes no sense, or the answer cannot be written.
pub fn serve_as_child() -> Option<io::Result<()>> {
    let mut arguments = std::env::args();
    let is_child = arguments.nth(1).as_deref() == Some(driver::launch::CHILD);
    is_child.then(|| {
        let order = arguments.next().unwrap_or_default();
        driver::child::serve(&order, io::stdout())
    })
}
