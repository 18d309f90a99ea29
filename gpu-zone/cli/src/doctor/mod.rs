//! `gpu-zone doctor`: what this machine can do, what is missing, and how to fix it.

mod machine;
mod parts;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::arguments::{self, Driver, Format};
use crate::commands::{Context, up};
use crate::error::{CliError, Kind};
use crate::output;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Not there, and not needed for the driver; or there with a flaw.
    Warning,
    /// Not there, and nothing runs without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What to do; empty when there is nothing to do.
    fix: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), fix: String::new() }
    }

    fn not_ok(
        name: &'static str,
        needed: bool,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let status = if needed { Status::Missing } else { Status::Warning };
        Self { name, status, found: found.into(), fix: fix.into() }
    }
}

/// What is looked at: the machine below `root`, for one driver.
pub(crate) struct Scope {
    root: PathBuf,
    driver: Driver,
}

impl Scope {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn nvidia(&self) -> bool {
        self.driver == Driver::Nvidia
    }
}

pub(crate) async fn doctor(
    context: &Context,
    arguments: &arguments::Doctor,
) -> Result<u8, CliError> {
    let root = PathBuf::from("/");
    let driver = arguments.driver.unwrap_or_else(|| up::present(Path::new("/")));
    let scope = Scope { root, driver };
    let mut checks = machine::checks(&scope);
    checks.extend(parts::checks(&scope, &context.directories));
    checks.push(parts::agent(context).await);
    let missing = checks.iter().filter(|check| check.status == Status::Missing).count();
    let driver = match driver {
        Driver::Simulated => "simulated",
        Driver::Nvidia => "nvidia",
    };
    match context.format {
        Format::Table | Format::Csv => output::print(&table(&checks, driver, missing))?,
        Format::Json => {
            let ready = missing == 0;
            output::print_json(
                &serde_json::json!({ "driver": driver, "ready": ready, "checks": checks }),
            )?;
        }
    }
    Ok(if missing == 0 { 0 } else { Kind::Configuration.exit_code() })
}

fn table(checks: &[Check], driver: &str, missing: usize) -> String {
    let mut table = output::table(&["CHECK", "STATUS", "FOUND"]);
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Missing => "MISSING",
        };
        table.add_row([check.name, status, &check.found]);
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    for check in checks.iter().filter(|check| !check.fix.is_empty()) {
        text += &format!("{}: {}\n", check.name, check.fix);
    }
    text += &match (missing, driver) {
        (0, "simulated") => {
            "Ready for the simulated driver: its GPUs are computed on the CPU.\n".to_owned()
        }
        (0, _) => format!("Ready for the {driver} driver.\n"),
        (1, _) => format!("Not ready for the {driver} driver: one thing is missing.\n"),
        (n, _) => format!("Not ready for the {driver} driver: {n} things are missing.\n"),
    };
    text
}
