//! `gpu-zone`, the command: starts the agent, runs programs in leases, shows what is there.
//!
//! Architecture invariant: it speaks to the agent over its socket and reads the ledger and the
//! audit log; it holds no state of its own and enforces nothing.
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
    match dispatch(&context, arguments.command) {
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
        Command::Ps => context.block_on(commands::ps::ps(context)).map(|()| 0),
        Command::Stop(stop) => context.block_on(commands::stop::stop(context, stop)).map(|()| 0),
        Command::Report(report) => {
            context.block_on(commands::report::report(context, report)).map(|()| 0)
        }
        Command::Audit(audit) => context.block_on(commands::audit::audit(context, audit)),
        Command::Doctor(doctor) => context.block_on(doctor::doctor(context, &doctor)),
        Command::Probe { options } => commands::probe::probe(&options).map(|never| match never {}),
        Command::Completions { shell } => commands::completions(shell).map(|()| 0),
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
