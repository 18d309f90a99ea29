//! The program `gpu-zone-probe`. Exit codes: 0 nothing above low, 1 medium, 2 high, 3 critical,
//! 64 wrong usage.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use gpuzone_core::MemoryBytes;
use gpuzone_probe::{Baseline, Host, Options, catalog};

const USAGE: u8 = 64;

/// Checks from inside a workload whether its GPU is shared safely.
///
/// It changes nothing: it reads files, opens and closes nodes and sockets, and takes GPU memory
/// for moments. What it is about to touch is said on standard error.
#[derive(Debug, Parser)]
#[command(name = "gpu-zone-probe", version)]
struct Arguments {
    /// How to write the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// A JSON list of accepted codes, or an earlier report as JSON; only other findings count.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// The memory limit of each device, when neither CUDA nor the environment tell it.
    #[arg(long, value_name = "SIZE")]
    limit: Option<MemoryBytes>,
    /// Do not try limits above this: trying takes as much memory for a moment.
    #[arg(long, value_name = "SIZE", default_value = "32Gi")]
    most: MemoryBytes,
    /// How much fresh memory to read on each device, looking for others' data.
    #[arg(long, value_name = "SIZE", default_value = "64Mi")]
    residue: MemoryBytes,
    /// Also make calls that change something: end locked clocks, set the MIG mode again.
    #[arg(long)]
    destructive: bool,
    /// Say nothing of what is about to be touched.
    #[arg(long)]
    quiet: bool,
    /// List all codes and what they mean, and check nothing.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    match gpuzone_probe::serve_as_child() {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(_)) => return ExitCode::from(USAGE),
        None => {}
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match probe(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`--list | head`) is no error.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn probe(arguments: &Arguments) -> Result<u8, Box<dyn std::error::Error>> {
    if arguments.list {
        let line = |entry: &catalog::Entry| {
            format!("{}  {:<8}  {}\n", entry.code, entry.severity, entry.title)
        };
        print(&catalog::CATALOG.iter().map(line).collect::<String>())?;
        return Ok(0);
    }
    let baseline = arguments.baseline.as_deref().map(Baseline::read).transpose()?;
    let options = Options {
        limit: arguments.limit,
        most: arguments.most,
        residue: arguments.residue,
        destructive: arguments.destructive,
        child: None,
        baseline: baseline.unwrap_or_default(),
    };
    let mut announce = |what: &str| {
        if !arguments.quiet {
            eprintln!("probe: {what}");
        }
    };
    let report = gpuzone_probe::run(&options, &Host::here(), &mut announce);
    match arguments.format {
        Format::Text => print(&report.text())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
    }
    Ok(report.exit_code())
}
