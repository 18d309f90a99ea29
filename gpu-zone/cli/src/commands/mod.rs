//! The commands that speak to the agent or the scheduler extender, and what they share.

pub(crate) mod audit;
mod cut;
pub(crate) mod devices;
pub(crate) mod explain;
mod extender;
pub(crate) mod gpus;
pub(crate) mod probe;
pub(crate) mod ps;
pub(crate) mod quota;
pub(crate) mod report;
pub(crate) mod simulate;
pub(crate) mod stop;
pub(crate) mod up;

use std::future::Future;
use std::path::PathBuf;

use clap::CommandFactory;
use gpuzone_api::{AgentClient, AgentError, Directories, ERROR_KEY};

use crate::arguments::{self, Arguments, Command, Format};
use crate::error::{CliError, Kind};
use crate::output;

/// What every command needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) directories: Directories,
    /// The folders that were named by the user, rather than derived.
    pub(crate) named_run_dir: Option<PathBuf>,
    pub(crate) named_state_dir: Option<PathBuf>,
    pub(crate) format: Format,
    pub(crate) verbose: bool,
}

impl Context {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let mut directories = Directories::for_user();
        if let Some(run) = &arguments.run_dir {
            directories.run.clone_from(run);
        }
        if let Some(state) = &arguments.state_dir {
            directories.state.clone_from(state);
        }
        Self {
            directories,
            named_run_dir: arguments.run_dir.clone(),
            named_state_dir: arguments.state_dir.clone(),
            format: arguments.format,
            verbose: arguments.verbose,
        }
    }

    pub(crate) fn check_format(&self, command: &Command) -> Result<(), CliError> {
        match (self.format, command) {
            (Format::Csv, Command::Report(_) | Command::Audit(arguments::Audit::Export { .. }))
            | (Format::Table | Format::Json, _) => Ok(()),
            (Format::Csv, _) => {
                let message =
                    "'csv' is a format of `report` and `audit export` only; use table or json";
                Err(CliError::new(Kind::Usage, message))
            }
        }
    }

    pub(crate) async fn connect(&self) -> Result<AgentClient, CliError> {
        let socket = self.directories.agent_socket();
        self.say(|| format!("connecting to {}", socket.display()));
        Ok(gpuzone_api::connect(&socket).await?)
    }

    /// One line on standard error, with `-v` only.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("gpu-zone: {}", line());
        }
    }

    /// Runs a command on this thread: a program that is started ends with the thread that
    /// started it, so that has to be the main one.
    pub(crate) fn block_on<T>(
        &self,
        command: impl Future<Output = Result<T, CliError>>,
    ) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| CliError::caused(Kind::Internal, &error))?.block_on(command)
    }
}

/// The agent's answer, or its error as one of ours.
pub(crate) fn answer<T>(reply: Result<tonic::Response<T>, tonic::Status>) -> Result<T, CliError> {
    let status = match reply {
        Ok(response) => return Ok(response.into_inner()),
        Err(status) => status,
    };
    if status.metadata().contains_key(ERROR_KEY) {
        return Err(AgentError::from(status).into());
    }
    // The agent names the kind of each of its errors, so this one is the connection's.
    let message = format!("the agent gave no answer: {}", status.message());
    Err(CliError::new(Kind::Unavailable, message)
        .hint("it may just have ended: look at its log, and start it again with `gpu-zone up`"))
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "gpu-zone", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use gpuzone_api::ErrorKind;
    use tonic::{Response, Status};

    use super::*;

    #[test]
    fn an_agents_error_is_not_a_lost_connection() {
        let refused = AgentError { kind: ErrorKind::Quota, message: "no more".into() };
        let error = answer::<()>(Err(Status::from(refused))).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::Quota, "no more"));
        let error = answer::<()>(Err(Status::unknown("transport error"))).unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert_eq!(answer(Ok(Response::new(7))).unwrap(), 7);
    }
}
