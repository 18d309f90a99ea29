use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gpuzone_core::engine::Policy;
use gpuzone_core::{
    ComputeShare, Exposure, GpuCount, LeaseId, MemoryBytes, Priority, TenantId, ZoneName,
};
use gpuzone_ledger::Head;

use crate::run::Volume;

/// Share GPUs between tenants that never touch the driver.
#[derive(Debug, Parser)]
#[command(name = "gpu-zone", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Folder of the agent's socket and of the slots.
    #[arg(long, global = true, env = "GPUZONE_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Folder of the journal and of the ledger.
    #[arg(long, global = true, env = "GPUZONE_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Tables for people, JSON for programs (also for errors), CSV for `report` and `audit export` only.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Say more on standard error.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// This process is the keeper of a zone, started by `run` with two descriptors.
    #[arg(long, hide = true, value_delimiter = ',', num_args = 1, value_name = "FDS")]
    pub(crate) keeper: Vec<std::os::fd::RawFd>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node's agent in the foreground, until Ctrl-C.
    Up(Up),
    /// List the GPUs and what is free of them, or let one serve again.
    Gpus(Gpus),
    /// Run a program in a lease of its own, or in a zone that it shares with others.
    Run(Run),
    /// Run a program in a zone that is there.
    Exec(Exec),
    /// List the leases.
    Ps,
    /// End leases, or the agent with all of them.
    Stop(Stop),
    /// Show what tenants held and used.
    Report(Report),
    /// Look at the log of all that was granted, refused and done to GPUs.
    #[command(subcommand)]
    Audit(Audit),
    /// Check what this machine can do, and say how to fix what is missing.
    Doctor(Doctor),
    /// Inside any workload: is this GPU shared safely? `gpu-zone probe --help` says more.
    #[command(disable_help_flag = true)]
    Probe {
        /// What `gpu-zone-probe` is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        options: Vec<OsString>,
    },
    /// Replay a trace of a cluster through the placement engine, and show what would be placed.
    Simulate(Simulate),
    /// Why a pod is where it is in the cluster, or waits, and what would have to change.
    Explain(Explain),
    /// Show what tenants hold of the cluster's quotas.
    Quota(Quota),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// GPUs computed on the CPU, for trying things out.
    Simulated,
    /// NVIDIA's driver.
    Nvidia,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Which driver; without it and without --config: NVIDIA's if it is there.
    #[arg(long, value_enum)]
    pub(crate) driver: Option<Driver>,
    /// The agent's configuration. Left out: every tenant may have what is free.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The GPUs of the simulated node, unless the configuration names them.
    #[arg(long, value_name = "FILE")]
    pub(crate) simulated_config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandboxing {
    /// A whole sandbox, or the program does not run.
    Require,
    /// As much of one as the machine can do, and a line for what it cannot.
    Warn,
    /// None: the program has all that its user has.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ZoneKind {
    /// A process group that the host's kernel keeps apart.
    Sandbox,
    /// A machine of the program's own, with a kernel of its own, in such a sandbox.
    Microvm,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Who pays: 1 to 63 of a-z, 0-9 and '-'.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) tenant: TenantId,
    /// Memory on each GPU, like 8Gi. Left out: whole GPUs.
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    pub(crate) memory: Option<MemoryBytes>,
    /// Guaranteed share of each GPU's time in per cent. Left out: in proportion to the memory.
    #[arg(long, allow_hyphen_values = true, value_name = "PERCENT")]
    pub(crate) share: Option<ComputeShare>,
    /// Most of each GPU's time in per cent, even when nobody else wants it. Left out: no limit.
    #[arg(long, visible_alias = "time-cap", allow_hyphen_values = true, value_name = "PERCENT")]
    pub(crate) cap: Option<ComputeShare>,
    /// How urgent its work is: batch, or latency-critical, which goes before batch work for as
    /// long as it uses no more than its share.
    #[arg(long, allow_hyphen_values = true, default_value = "batch", value_name = "PRIORITY")]
    pub(crate) priority: Priority,
    /// Number of GPUs.
    #[arg(long, allow_hyphen_values = true, default_value = "1", value_name = "N")]
    pub(crate) gpus: GpuCount,
    /// How its GPUs are handed over: mediated, or passthrough, by which it has whole GPUs itself, in
    /// a microVM whose image has their driver.
    #[arg(long, default_value = "mediated", value_name = "WAY")]
    pub(crate) exposure: Exposure,
    /// Only GPUs of this product name.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// What listings and reports call the program. Left out: its name and first word.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The zone that the program shares with others, and its lease; made if it is not there. Who
    /// joins asks for the same.
    #[arg(long, allow_hyphen_values = true, value_name = "NAME")]
    pub(crate) zone: Option<ZoneName>,
    /// Whether the program runs in a sandbox: only in a whole one, in what the machine can do
    /// with a warning for the rest, or in none.
    #[arg(long, value_enum, env = "GPUZONE_SANDBOX", default_value_t = Sandboxing::Warn)]
    pub(crate) sandbox: Sandboxing,
    /// What the program's zone is. A microVM needs --rootfs, whose files lie in its memory, and has
    /// no network.
    #[arg(long, value_enum, default_value_t = ZoneKind::Sandbox)]
    pub(crate) zone_kind: ZoneKind,
    /// What the sandbox has for its root, read-only: a folder, or an OCI image layout, where
    /// DIR:tag or DIR@sha256:... chooses an image; `host` is all of the host's files. Left out:
    /// the system's folders (/usr, /etc, /opt and the like), with the working directory writable.
    #[arg(long, value_name = "DIR")]
    pub(crate) rootfs: Option<PathBuf>,
    /// A file or folder of the host's that the sandbox shows too, and where: SRC[:DST][:ro|rw].
    #[arg(long = "volume", value_name = "SRC[:DST][:ro|rw]")]
    pub(crate) volumes: Vec<Volume>,
    /// Leave the sandbox without the host's network.
    #[arg(long)]
    pub(crate) no_network: bool,
    #[command(flatten)]
    pub(crate) limits: ZoneLimits,
    /// The program and its arguments.
    #[arg(
        required_unless_present = "rootfs",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<OsString>,
}

/// Limits of the sandbox. What is left out is as the agent's configuration says.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ZoneLimits {
    /// Host memory of the sandbox, like 16Gi; what is in its private folders counts.
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    pub(crate) host_memory: Option<MemoryBytes>,
    /// Processes and threads in the sandbox.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pids: Option<u64>,
    /// Processors' time of the sandbox, like 1.5.
    #[arg(long, value_name = "N", value_parser = cpu_percent)]
    pub(crate) cpus: Option<u64>,
    /// Size of the sandbox's private folders (/tmp and the like) together, which are memory.
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    pub(crate) scratch: Option<MemoryBytes>,
}

/// Per cent of one processor.
fn cpu_percent(text: &str) -> Result<u64, String> {
    const MOST: f64 = 1e6;
    let cpus: f64 = text.parse().map_err(|_| "a number of processors like 1.5".to_owned())?;
    if !(0.01..=MOST).contains(&cpus) {
        return Err("a number of processors from 0.01 up, like 1.5".to_owned());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range")]
    Ok((cpus * 100.0).round() as u64)
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The zone, as `ps` shows it.
    #[arg(value_name = "NAME")]
    pub(crate) zone: ZoneName,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false)]
pub(crate) struct Stop {
    /// Leases, as `ps` shows them.
    #[arg(value_name = "LEASE", group = "what")]
    pub(crate) leases: Vec<LeaseId>,
    /// The zone of this name, with all its programs and its lease.
    #[arg(long, group = "what", value_name = "NAME")]
    pub(crate) zone: Option<ZoneName>,
    /// All leases.
    #[arg(long, group = "what")]
    pub(crate) all: bool,
    /// All leases, the driver zone and the agent.
    #[arg(long, group = "what")]
    pub(crate) agent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Only this tenant.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) tenant: Option<TenantId>,
    /// From this moment: 2026-11-20, 2026-11-20T08:00, an RFC 3339 time, or '2h' for two hours
    /// ago.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) from: Option<String>,
    /// To this moment, exclusive.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) to: Option<String>,
    /// One row for each tenant or each lease.
    #[arg(long, value_enum, default_value_t = By::Tenant)]
    pub(crate) by: By,
}

#[derive(Debug, Args)]
pub(crate) struct Gpus {
    /// Show every GPU, switch and part of one that the machine has, as a tree, whatever driver it
    /// is on: IOMMU groups, BARs, virtual functions, mediated devices, vGPU types, resets; and what its
    /// driver says of NVLink and MIG: profiles, places, instances.
    #[arg(long, conflicts_with = "clear_quarantine")]
    pub(crate) all: bool,
    /// Scrub this GPU, by index or UUID, and let it serve new leases again if that succeeds.
    #[arg(long, value_name = "GPU")]
    pub(crate) clear_quarantine: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Check that nothing in the log was altered, cut out, moved or cut off; exit code 65 and
    /// the first line that is wrong if something was.
    Verify {
        /// A head that an earlier `verify` printed: the log must still lead through it.
        #[arg(long, value_name = "HEAD")]
        head: Option<Head>,
    },
    /// Write events out: as a table, or with --format json or csv.
    Export {
        /// Only this tenant's.
        #[arg(long, allow_hyphen_values = true)]
        tenant: Option<TenantId>,
        /// From this moment, as for `report`.
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        from: Option<String>,
        /// To this moment, exclusive.
        #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
        to: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    Tenant,
    Lease,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Check for this driver. Left out: NVIDIA's if it is there.
    #[arg(long, value_enum)]
    pub(crate) driver: Option<Driver>,
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// The nodes, as CSV with the columns cpu_milli, memory_mib, gpu and model.
    #[arg(long, value_name = "FILE")]
    pub(crate) nodes: PathBuf,
    /// The pods in the order of arrival, as CSV with the columns cpu_milli, memory_mib, num_gpu,
    /// gpu_milli and, where there are some, gpu_spec and tenant.
    #[arg(long, value_name = "FILE")]
    pub(crate) pods: PathBuf,
    /// pack, spread or fragmentation.
    #[arg(long, default_value = "fragmentation", value_name = "POLICY")]
    pub(crate) policy: Policy,
    /// What the coin among equal nodes starts from.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// Also draw allocated against requested GPUs.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// How the scheduler extender is reached.
#[derive(Clone, Debug, Args)]
pub(crate) struct Extender {
    /// The scheduler extender, like https://gpu-zone-scheduler-ext.gpu-zone.svc:8443, or
    /// https://localhost:8443 with a port that is forwarded to one.
    #[arg(long, env = "GPUZONE_EXTENDER", value_name = "URL")]
    pub(crate) extender: hyper::Uri,
    /// Who signed the extender's certificate (PEM).
    #[arg(long, env = "GPUZONE_EXTENDER_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// The certificate by which the extender knows the one who asks (PEM).
    #[arg(long, env = "GPUZONE_EXTENDER_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, env = "GPUZONE_EXTENDER_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

/// A pod as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPath {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::str::FromStr for PodPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        let fine = |part: &str| {
            !matches!(part, "" | "." | "..") && part.len() <= 253 && part.bytes().all(allowed)
        };
        if !fine(namespace) || !fine(name) {
            return Err("write NAMESPACE/POD, each as the pod is called".to_owned());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The pod; without a namespace, of the namespace 'default'.
    #[arg(value_name = "[NAMESPACE/]POD")]
    pub(crate) pod: PodPath,
    #[command(flatten)]
    pub(crate) extender: Extender,
}

#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// Only this quota.
    #[arg(value_name = "QUOTA")]
    pub(crate) quota: Option<String>,
    #[command(flatten)]
    pub(crate) extender: Extender,
}

/// Whether a command line that cannot be read asks for JSON, so that its error can be JSON too.
/// What comes behind `--` is the program's.
pub(crate) fn asks_for_json(words: impl Iterator<Item = OsString>) -> bool {
    let own: Vec<OsString> = words.take_while(|word| word != "--").collect();
    let pair = |pair: &[OsString]| pair[0] == "--format" && pair[1] == "json";
    own.iter().any(|word| word == "--format=json") || own.windows(2).any(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_checked_before_anything_happens() {
        let parse = |words: &[&str]| {
            let line = ["gpu-zone", "run"].iter().chain(words).chain(&["--", "true"]);
            Arguments::try_parse_from(line).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&["--tenant", "acme", "--memory", "8Gi", "--share", "50"]), Ok(()));
        let timed = ["--tenant", "acme", "--priority", "latency-critical", "--cap", "40"];
        assert_eq!(parse(&timed), Ok(()));
        for (words, said) in [
            (&["--tenant", "acme", "--memory", "-1Gi"][..], "negative"),
            (&["--tenant", "acme", "--memory", "99999999Ti"], "larger than any GPU"),
            (&["--tenant", "acme", "--memory", "8GB"], "unknown unit"),
            (&["--tenant", "acme", "--share", "0"], "1 to 100"),
            (&["--tenant", "acme", "--share", "-5"], "1 to 100"),
            (&["--tenant", "acme", "--cap", "0"], "1 to 100"),
            (&["--tenant", "acme", "--time-cap", "101"], "1 to 100"),
            (&["--tenant", "acme", "--priority", "urgent"], "'latency-critical'"),
            (&["--tenant", "acme", "--gpus", "0"], "1 to 64"),
            (&["--tenant", "a/../b"], "a-z, 0-9"),
            (&["--tenant", &"x".repeat(300)], "1 to 63"),
            (&[], "--tenant"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_pod_is_named_as_kubernetes_does() {
        let pod = |text: &str| text.parse::<PodPath>();
        let of = |namespace: &str, name: &str| {
            Ok(PodPath { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        assert_eq!(pod("team/train-0"), of("team", "train-0"));
        assert_eq!(pod("train.a"), of("default", "train.a"));
        for text in ["", "/", "team/", "/train", "a/b/c", "../quotas", "a/..", "a?b", "a b", "A/b"]
        {
            assert!(pod(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_programs_own_words_are_its_own() {
        let line = ["gpu-zone", "run", "--tenant", "a", "--", "x", "--format", "json", "-v"];
        let arguments = Arguments::try_parse_from(line).unwrap();
        assert_eq!(arguments.format, Format::Table);
        assert!(!asks_for_json(line.iter().map(OsString::from)));
        assert!(asks_for_json(["ps", "--format", "json"].iter().map(OsString::from)));
    }
}
