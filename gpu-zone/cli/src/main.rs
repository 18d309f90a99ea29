//! `gpu-zone`, the command: starts the agent, runs programs in leases, shows what is there.
//!
//! Architecture invariant: it speaks to the agent over its socket and reads the ledger and the
//! audit log, and asks the scheduler extender over HTTP; it holds no state of its own and enforces
//! nothing.
//!
//! `unsafe` is only in `run::signals` and `run::child`: signals with their sender, and the tie
//! of a program's life to this process's.

#![deny(unsafe_code)]

mod arguments;
mod commands;
mod doctor;
mod error;
mod locate;
mod output;
mod run;

use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::commands::Context;
use crate::error::{CliError, Kind};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse_arguments(&error),
    };
    let context = Context::new(&arguments);
    let done = match arguments.keeper[..] {
        [] => dispatch(&context, arguments.command),
        [report, first] => keep(&context, arguments.command, [report, first]),
        _ => Err(CliError::new(Kind::Usage, "a keeper has two descriptors")),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.show(context.format);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn dispatch(context: &Context, command: Command) -> Result<u8, CliError> {
    context.check_format(&command)?;
    match command {
        Command::Up(up) => commands::up::up(context, &up).map(|never| match never {}),
        Command::Gpus(gpus) => context.block_on(commands::gpus::gpus(context, &gpus)).map(|()| 0),
        Command::Run(run) => context.block_on(run::run(context, run)),
        Command::Exec(exec) => context.block_on(run::shared::exec(context, &exec)),
        Command::Ps => context.block_on(commands::ps::ps(context)).map(|()| 0),
        Command::Stop(stop) => context.block_on(commands::stop::stop(context, stop)).map(|()| 0),
        Command::Report(report) => {
            context.block_on(commands::report::report(context, report)).map(|()| 0)
        }
        Command::Audit(audit) => context.block_on(commands::audit::audit(context, audit)),
        Command::Doctor(doctor) => context.block_on(doctor::doctor(context, &doctor)),
        Command::Probe { options } => commands::probe::probe(&options).map(|never| match never {}),
        Command::Simulate(simulate) => commands::simulate::simulate(context, &simulate).map(|()| 0),
        Command::Explain(explain) => {
            context.block_on(commands::explain::explain(context, &explain)).map(|()| 0)
        }
        Command::Quota(quota) => {
            context.block_on(commands::quota::quota(context, &quota)).map(|()| 0)
        }
        Command::Completions { shell } => commands::completions(shell).map(|()| 0),
    }
}

/// This process was started by `gpu-zone run` to keep the zone that it names.
fn keep(context: &Context, command: Command, numbers: [RawFd; 2]) -> Result<u8, CliError> {
    match command {
        Command::Run(run) => run::keep(context, run, numbers),
        Command::Up(_)
        | Command::Gpus(_)
        | Command::Exec(_)
        | Command::Ps
        | Command::Stop(_)
        | Command::Report(_)
        | Command::Audit(_)
        | Command::Doctor(_)
        | Command::Probe { .. }
        | Command::Simulate(_)
        | Command::Explain(_)
        | Command::Quota(_)
        | Command::Completions { .. } => {
            Err(CliError::new(Kind::Usage, "only `run` starts a zone's keeper"))
        }
    }
}

/// What clap has to say: help and version are no errors, all else is one of usage.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if arguments::asks_for_json(std::env::args_os()) {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ");
        CliError::new(Kind::Usage, text).show(arguments::Format::Json);
    } else if error.print().is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::from(Kind::Usage.exit_code())
}
