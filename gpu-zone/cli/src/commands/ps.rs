use std::collections::BTreeMap;

use gpuzone_api::agent::v1::{Counters, Grant, Lease, ListLeasesRequest};
use gpuzone_ledger::printable;
use serde::Serialize;
use serde_json::Value;

use crate::arguments::Format;
use crate::commands::{Context, answer};
use crate::error::CliError;
use crate::output;
use crate::run::{sandbox, shared};

/// A lease in the JSON listing.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    lease: &'a str,
    tenant: &'a str,
    zone: &'a str,
    zone_name: Option<&'a str>,
    state: &'a str,
    program: &'a str,
    /// None when no process holds it.
    holder_pid: Option<u32>,
    worker_pid: Option<u32>,
    sessions: u32,
    created_unix_ns: u64,
    priority: &'a str,
    cap_percent: Option<u32>,
    used_memory_bytes: u64,
    grants: Vec<GrantEntry<'a>>,
    counters: CountersEntry,
    trouble: &'a str,
}

#[derive(Serialize)]
struct GrantEntry<'a> {
    gpu_uuid: &'a str,
    gpu_index: u32,
    gpu_name: &'a str,
    backing: &'a str,
    memory_bytes: u64,
    share_percent: u32,
}

#[derive(Serialize)]
struct CountersEntry {
    busy_nanoseconds: u64,
    launches: u64,
    bytes_to_device: u64,
    bytes_from_device: u64,
    bytes_on_device: u64,
    refused_allocations: u64,
    refused_calls: u64,
    refused_calls_by_name: BTreeMap<String, u64>,
    peak_used_bytes: u64,
}

impl<'a> From<&'a Grant> for GrantEntry<'a> {
    fn from(grant: &'a Grant) -> Self {
        Self {
            gpu_uuid: &grant.gpu_uuid,
            gpu_index: grant.gpu_index,
            gpu_name: &grant.gpu_name,
            backing: &grant.backing,
            memory_bytes: grant.memory_bytes,
            share_percent: grant.share_percent,
        }
    }
}

impl From<&Counters> for CountersEntry {
    fn from(counters: &Counters) -> Self {
        Self {
            busy_nanoseconds: counters.busy_nanoseconds,
            launches: counters.launches,
            bytes_to_device: counters.bytes_to_device,
            bytes_from_device: counters.bytes_from_device,
            bytes_on_device: counters.bytes_on_device,
            refused_allocations: counters.refused_memory,
            refused_calls: counters.refused_calls,
            refused_calls_by_name: counters.refused_by_name.clone().into_iter().collect(),
            peak_used_bytes: counters.peak_used_bytes,
        }
    }
}

impl<'a> From<&'a Lease> for Entry<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            lease: &lease.id,
            tenant: &lease.tenant,
            zone: &lease.zone,
            zone_name: lease.zone_name.as_deref(),
            state: &lease.state,
            program: &lease.program,
            holder_pid: Some(lease.holder_pid).filter(|pid| *pid != 0),
            worker_pid: lease.worker_pid,
            sessions: lease.sessions,
            created_unix_ns: lease.created_unix_ns,
            priority: &lease.priority,
            cap_percent: lease.cap_percent,
            used_memory_bytes: lease.used_memory_bytes,
            grants: lease.grants.iter().map(GrantEntry::from).collect(),
            counters: CountersEntry::from(&lease.counters.clone().unwrap_or_default()),
            trouble: &lease.trouble,
        }
    }
}

pub(crate) async fn ps(context: &Context) -> Result<(), CliError> {
    let mut agent = context.connect().await?;
    let leases = answer(agent.list_leases(ListLeasesRequest {}).await)?.leases;
    let zones = zones(context, &leases).await?;
    match context.format {
        Format::Table | Format::Csv => output::print(&(table(&leases) + &zone_table(&zones))),
        Format::Json => {
            let leases: Vec<Entry<'_>> = leases.iter().map(Entry::from).collect();
            output::print_json(&serde_json::json!({ "leases": leases, "zones": zones }))
        }
    }
}

/// What their keepers say of the zones that programs share, and the launcher of those that have
/// one program each.
async fn zones(context: &Context, leases: &[Lease]) -> Result<Vec<Value>, CliError> {
    let mut zones = Vec::new();
    let names = leases.iter().filter_map(|lease| lease.zone_name.as_deref());
    for name in names.filter_map(|name| name.parse().ok()) {
        zones.extend(shared::look(context, &name).await?);
    }
    for mut zone in sandbox::of_one_program(&context.directories).await? {
        // One whose lease is not listed was just made, or has just ended.
        let lease = leases.iter().find(|lease| zone["name"] == sandbox::zone_name(&lease.id));
        if let Some(lease) = lease {
            zone["lease"] = lease.id.as_str().into();
            zone["programs"] = 1.into();
            zone["terms"] = serde_json::json!({ "tenant": lease.tenant });
            zones.push(zone);
        }
    }
    Ok(zones)
}

fn zone_table(zones: &[Value]) -> String {
    if zones.is_empty() {
        return String::new();
    }
    let mut table =
        output::table(&["ZONE", "TENANT", "STATE", ">PROGRAMS", ">PROCESSES", ">MEMORY"]);
    for zone in zones {
        let text = |value: &Value| printable(value.as_str().unwrap_or("?"));
        let number = |key: &str| zone[key].as_u64().unwrap_or_default();
        table.add_row(vec![
            text(&zone["name"]),
            text(&zone["terms"]["tenant"]),
            text(&zone["state"]),
            number("programs").to_string(),
            number("processes").to_string(),
            format!("{} MiB", number("memory_bytes") >> 20),
        ]);
    }
    format!("\n{}\n", table.trim_fmt())
}

fn table(leases: &[Lease]) -> String {
    if leases.is_empty() {
        return "No leases.\n".to_owned();
    }
    let mut table = output::table(&[
        "LEASE",
        "TENANT",
        "STATE",
        "GPU",
        ">MEMORY",
        ">USED",
        ">SHARE",
        ">CAP",
        "PRIORITY",
        ">LAUNCHES",
        ">BUSY",
        ">PROCESSES",
        "PROGRAM",
    ]);
    for lease in leases {
        table.add_row(row(lease));
    }
    let mut text = table.trim_fmt();
    for lease in leases.iter().filter(|lease| !lease.trouble.is_empty()) {
        text += &format!("\n{}: {}", lease.id, printable(&lease.trouble));
    }
    let simulated = leases.iter().flat_map(|lease| &lease.grants).any(|g| g.backing == "simulated");
    if simulated {
        text += &format!("\n{}", output::SIMULATED);
    }
    text + "\n"
}

fn row(lease: &Lease) -> Vec<String> {
    let each = |show: fn(&Grant) -> String| -> String {
        lease.grants.iter().map(show).collect::<Vec<_>>().join("\n")
    };
    let counters = lease.counters.clone().unwrap_or_default();
    vec![
        lease.id.clone(),
        lease.tenant.clone(),
        lease.state.clone(),
        each(|grant| format!("{} ({})", grant.gpu_index, grant.backing)),
        each(|grant| output::gib(grant.memory_bytes)),
        output::gib(lease.used_memory_bytes),
        each(|grant| format!("{} %", grant.share_percent)),
        lease.cap_percent.map_or_else(|| "-".to_owned(), |cap| format!("{cap} %")),
        printable(&lease.priority),
        counters.launches.to_string(),
        output::seconds(counters.busy_nanoseconds),
        lease.sessions.to_string(),
        printable(&lease.program),
    ]
}
