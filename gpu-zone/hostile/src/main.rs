//! A hostile tenant. It runs in a lease, as any program does, and speaks to its slot's socket
//! and rings without the shim in between, so that it can send what no shim would.
//!
//! Each attack says at its end what it found, and exits with 1 when something was open to it
//! that must be closed. What its neighbours notice of it is for whoever starts it to see.

mod arena;
mod attacks;
mod calls;
mod death;
mod line;
mod ring;
mod slot;
mod spec;
mod zone;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};

use crate::arena::{Arena, Scale};

/// What a hostile tenant would run.
#[derive(Debug, Parser)]
#[command(name = "gpuzone-hostile", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the attacks, a JSON object a line.
    List,
    /// Make one.
    Attack {
        /// Its name.
        name: String,
        /// For how long, if it is one that goes on.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// As much of it as a machine bears.
        #[arg(long)]
        long: bool,
    },
    /// Die within a call; for the attack that starts this.
    #[command(hide = true)]
    Die {
        /// Which call.
        opcode: u16,
        /// Where in it.
        point: u32,
    },
    /// Launch something and stop in the middle; for the attack that starts this.
    #[command(hide = true)]
    Stop {
        /// Whether its answers are left unread.
        unread: u32,
    },
    /// Wait until killed; for the attack that starts this.
    #[command(hide = true)]
    Sleep,
}

fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(line) => {
            say(&line);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> anyhow::Result<String> {
    match what {
        What::List => {
            let lines = attacks::ALL.iter().map(attacks::Attack::described);
            Ok(lines.collect::<Vec<_>>().join("\n"))
        }
        What::Attack { name, seconds, long } => {
            let found = attacks::ALL.iter().find(|attack| attack.name == name);
            let attack = found.ok_or_else(|| anyhow::anyhow!("there is no attack '{name}'"))?;
            let length = Duration::try_from_secs_f64(seconds)?;
            let scale = if long { Scale::Long } else { Scale::Short };
            let arena = Arena::here(length, scale)?;
            let from = now()?;
            let found = (attack.run)(&arena)?;
            // For whoever looks at what others got done meanwhile.
            say(&format!("{name}: from={from} to={}", now()?));
            Ok(format!("{name}: ended, {found}"))
        }
        What::Die { opcode, point } => death::die(opcode, point),
        What::Stop { unread } => death::stop(unread != 0),
        What::Sleep => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
    }
}

/// Microseconds of the wall clock, which all processes share.
fn now() -> anyhow::Result<u128> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros())
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn say(line: &str) {
    println!("{line}");
}
