use gpuzone_api::agent::v1::{
    ClearQuarantineReply, ClearQuarantineRequest, Gpu, ListGpusRequest, Partition, SeenXid,
};
use gpuzone_core::Exposure;
use gpuzone_ledger::printable;
use serde::Serialize;

use crate::arguments::{self, Format};
use crate::commands::{Context, answer, devices};
use crate::error::CliError;
use crate::output;

/// A GPU in the JSON listing.
#[derive(Serialize)]
struct Entry<'a> {
    index: u32,
    uuid: &'a str,
    name: &'a str,
    backing: &'a str,
    pci_address: &'a str,
    compute_capability: &'a str,
    numa_node: Option<u32>,
    nvlink_peers: &'a [String],
    mig_capable: bool,
    exposure: &'a str,
    memory_bytes: u64,
    free_memory_bytes: u64,
    free_share_percent: u32,
    used_memory_bytes: Option<u64>,
    utilization_percent: Option<u32>,
    leases: u32,
    /// `healthy`, `suspended` (it comes back by itself) or `quarantined` (until it is cleared).
    health: &'static str,
    /// Why it serves no new lease until an operator clears it.
    quarantine: Option<&'a str>,
    /// Why it serves no new lease, whatever ends that.
    out_of_service: Option<&'a str>,
    /// One word for what is wrong.
    cause: Option<&'a str>,
    /// Why a GPU that is not mediated cannot be handed over now.
    not_ready: Option<&'a str>,
    /// Why no pod gets it, where a program of this node's may.
    kept_from_pods: Option<&'a str>,
    out_since_unix_ns: Option<u64>,
    recovered_unix_ns: Option<u64>,
    recovered_from: Option<&'a str>,
    /// Errors that the driver reported since the agent began.
    xids: Vec<Xid<'a>>,
    /// What of it is handed over one by one.
    partitions: Vec<Part<'a>>,
}

/// A MIG instance, or a vGPU.
#[derive(Serialize)]
struct Part<'a> {
    id: &'a str,
    profile: &'a str,
    memory_bytes: u64,
    share_percent: u32,
    leases: u32,
    out_of_service: Option<&'a str>,
    not_ready: Option<&'a str>,
}

impl<'a> From<&'a Partition> for Part<'a> {
    fn from(part: &'a Partition) -> Self {
        Self {
            id: &part.id,
            profile: &part.profile,
            memory_bytes: part.memory_bytes,
            share_percent: part.share_percent,
            leases: part.leases,
            out_of_service: part.out_of_service.as_deref(),
            not_ready: part.not_ready.as_deref(),
        }
    }
}

/// An error that the driver reported.
#[derive(Serialize)]
struct Xid<'a> {
    number: u64,
    class: &'a str,
    what: &'a str,
    count: u64,
    last_unix_ns: u64,
}

impl<'a> From<&'a SeenXid> for Xid<'a> {
    fn from(xid: &'a SeenXid) -> Self {
        let SeenXid { number, class, what, count, last_unix_ns } = xid;
        let (number, count, last_unix_ns) = (*number, *count, *last_unix_ns);
        Self { number, class, what, count, last_unix_ns }
    }
}

/// What a listing shows of a GPU's health, and what JSON calls it.
fn health(gpu: &Gpu) -> (&'static str, &'static str) {
    match (&gpu.quarantine, &gpu.out_of_service, &gpu.not_ready) {
        (Some(_), _, _) => ("quarantine", "quarantined"),
        (None, Some(_), _) => ("suspended", "suspended"),
        (None, None, Some(_)) => ("not ready", "healthy"),
        (None, None, None) => ("ok", "healthy"),
    }
}

impl<'a> From<&'a Gpu> for Entry<'a> {
    fn from(gpu: &'a Gpu) -> Self {
        Self {
            index: gpu.index,
            uuid: &gpu.uuid,
            name: &gpu.name,
            backing: &gpu.backing,
            pci_address: &gpu.pci_address,
            compute_capability: &gpu.compute_capability,
            numa_node: gpu.numa_node,
            nvlink_peers: &gpu.nvlink_peers,
            mig_capable: gpu.mig_capable,
            exposure: &gpu.exposure,
            memory_bytes: gpu.memory_bytes,
            free_memory_bytes: gpu.free_memory_bytes,
            free_share_percent: gpu.free_share_percent,
            used_memory_bytes: gpu.used_memory_bytes,
            utilization_percent: gpu.utilization_percent,
            leases: gpu.leases,
            health: health(gpu).1,
            quarantine: gpu.quarantine.as_deref(),
            out_of_service: gpu.out_of_service.as_deref(),
            cause: Some(gpu.cause.as_str()).filter(|cause| !cause.is_empty()),
            not_ready: gpu.not_ready.as_deref(),
            kept_from_pods: gpu.kept_from_pods.as_deref(),
            out_since_unix_ns: gpu.out_since_unix_ns,
            recovered_unix_ns: gpu.recovered_unix_ns,
            recovered_from: Some(gpu.recovered_from.as_str()).filter(|from| !from.is_empty()),
            xids: gpu.xids.iter().map(Xid::from).collect(),
            partitions: gpu.partitions.iter().map(Part::from).collect(),
        }
    }
}

pub(crate) async fn gpus(context: &Context, arguments: &arguments::Gpus) -> Result<(), CliError> {
    let mut agent = context.connect().await?;
    if arguments.all {
        return devices::all(context, &mut agent).await;
    }
    if let Some(gpu) = &arguments.clear_quarantine {
        let request = ClearQuarantineRequest { gpu: gpu.clone() };
        return cleared(context, answer(agent.clear_quarantine(request).await)?);
    }
    let gpus = answer(agent.list_gpus(ListGpusRequest {}).await)?.gpus;
    match context.format {
        Format::Table | Format::Csv => output::print(&table(&gpus)),
        Format::Json => {
            let gpus: Vec<Entry<'_>> = gpus.iter().map(Entry::from).collect();
            output::print_json(&serde_json::json!({ "gpus": gpus }))
        }
    }
}

fn cleared(context: &Context, reply: ClearQuarantineReply) -> Result<(), CliError> {
    let ClearQuarantineReply { gpu, overwritten_bytes, compared_bytes, method } = reply;
    let gpu = gpu.unwrap_or_default();
    match context.format {
        Format::Table | Format::Csv => output::print(&format!(
            "GPU {} is clear and serves new leases again: {} overwritten, {} compared ({}).\n",
            gpu.index,
            output::gib(overwritten_bytes),
            output::gib(compared_bytes),
            printable(&method),
        )),
        Format::Json => output::print_json(&serde_json::json!({
            "cleared": Entry::from(&gpu),
            "overwritten_bytes": overwritten_bytes,
            "compared_bytes": compared_bytes,
            "method": method,
        })),
    }
}

fn table(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "This node has no GPU; `gpu-zone doctor` says what is missing.\n".to_owned();
    }
    let mut table = output::table(&[
        "GPU",
        "NAME",
        "KIND",
        ">MEMORY",
        ">FREE",
        ">FREE TIME",
        ">IN USE",
        ">BUSY",
        ">LEASES",
        "EXPOSURE",
        "HEALTH",
        "PCI",
        "UUID",
    ]);
    for gpu in gpus {
        table.add_row([
            gpu.index.to_string(),
            printable(&gpu.name),
            gpu.backing.clone(),
            output::gib(gpu.memory_bytes),
            output::gib(gpu.free_memory_bytes),
            format!("{} %", gpu.free_share_percent),
            gpu.used_memory_bytes.map_or_else(|| "?".to_owned(), output::gib),
            gpu.utilization_percent.map_or_else(|| "?".to_owned(), |busy| format!("{busy} %")),
            gpu.leases.to_string(),
            printable(&gpu.exposure),
            health(gpu).0.to_owned(),
            gpu.pci_address.clone(),
            gpu.uuid.clone(),
        ]);
        for part in &gpu.partitions {
            table.add_row(part_row(gpu, part));
        }
    }
    let simulated = gpus.iter().any(|gpu| gpu.backing == "simulated");
    let note = if simulated { format!("\n{}", output::SIMULATED) } else { String::new() };
    let parts = gpus.iter().flat_map(|gpu| &gpu.partitions).filter_map(part_trouble);
    let reasons: String = gpus.iter().filter_map(trouble).chain(parts).collect();
    format!("{}{reasons}{note}\n", table.trim_fmt())
}

/// The row of a part of a GPU, below the GPU's.
fn part_row(gpu: &Gpu, part: &Partition) -> [String; 13] {
    let free = if part.leases == 0 { part.memory_bytes } else { 0 };
    let share = if part.leases == 0 { part.share_percent } else { 0 };
    let health = match (&part.out_of_service, &part.not_ready) {
        (Some(_), _) => "out",
        (None, Some(_)) => "not ready",
        (None, None) => "ok",
    };
    [
        gpu.index.to_string(),
        format!("- {}", printable(&part.profile)),
        gpu.backing.clone(),
        output::gib(part.memory_bytes),
        output::gib(free),
        format!("{share} %"),
        "?".to_owned(),
        "?".to_owned(),
        part.leases.to_string(),
        printable(&gpu.exposure),
        health.to_owned(),
        // A virtual function has an address of its own.
        printable(if part.id.contains(':') { &part.id } else { &gpu.pci_address }),
        printable(name_of(part)),
    ]
}

/// What a part is called where it is leased and cleared.
fn name_of(part: &Partition) -> &str {
    if part.uuid.is_empty() { &part.id } else { &part.uuid }
}

/// A line below the table about a part of a GPU that serves nobody new.
fn part_trouble(part: &Partition) -> Option<String> {
    let (id, reason) = (printable(name_of(part)), part.out_of_service.as_ref());
    let reason = reason.or(part.not_ready.as_ref())?;
    Some(format!("\n{id} serves no new lease: {}", printable(reason)))
}

/// A line below the table about a GPU that serves nobody new, or did not for a while.
fn trouble(gpu: &Gpu) -> Option<String> {
    let index = gpu.index;
    if let Some(reason) = &gpu.quarantine {
        let reason = printable(reason);
        let clear = format!("`gpu-zone gpus --clear-quarantine {index}`");
        let clear = match gpu.exposure.parse().is_ok_and(Exposure::has_worker) {
            true => format!("{clear} scrubs it again and lets it serve."),
            false => format!("Nothing here can scrub it as it is; {clear} says what to do."),
        };
        return Some(format!(
            "\nGPU {index} is in quarantine and serves no new lease: {reason}\n{clear}"
        ));
    }
    if let Some(reason) = &gpu.out_of_service {
        let reason = printable(reason);
        return Some(format!(
            "\nGPU {index} is suspended and serves no new lease for now: {reason}"
        ));
    }
    if let Some(reason) = &gpu.not_ready {
        let reason = printable(reason);
        return Some(format!("\nGPU {index} cannot be handed over now: {reason}"));
    }
    if let Some(reason) = &gpu.kept_from_pods {
        let reason = printable(reason);
        return Some(format!("\nGPU {index} is kept from pods: {reason}"));
    }
    let at = output::time(gpu.recovered_unix_ns?);
    let from = printable(&gpu.recovered_from);
    Some(format!("\nGPU {index} serves again since {at}. It was out because of: {from}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_how_a_gpu_is_and_what_to_do() {
        let (recovered_from, exposure) = ("Xid 79\u{1b}[2J".into(), "mediated".into());
        let well = Gpu { recovered_from, exposure, ..Gpu::default() };
        let again = Gpu { recovered_unix_ns: Some(1_700_000_000_000_000_000), ..well.clone() };
        let why = Some("Xid 79: it is lost".to_owned());
        let suspended = Gpu { out_of_service: why.clone(), ..again.clone() };
        let condemned = Gpu { quarantine: why, ..suspended.clone() };
        let whole = Gpu { exposure: "passthrough".into(), ..condemned.clone() };
        let bound = Gpu { not_ready: Some("it is on nvidia\u{1b}[2J".into()), ..well.clone() };
        let token = Some("it opens with a token\u{1b}[2J".into());
        let token = Gpu { kept_from_pods: token, ..well.clone() };
        let cases = [
            (&well, "ok", None),
            (&again, "ok", Some("serves again since 2023-11-14T22:13:20Z. It was out")),
            (&suspended, "suspended", Some("is suspended and serves no new lease for now: Xid 79")),
            (&condemned, "quarantine", Some("--clear-quarantine 0` scrubs it again")),
            (&whole, "quarantine", Some("--clear-quarantine 0` says what to do")),
            (&bound, "not ready", Some("cannot be handed over now: it is on nvidia")),
            (&token, "ok", Some("is kept from pods: it opens with a token")),
        ];
        for (gpu, word, part) in cases {
            assert_eq!(health(gpu).0, word);
            let said = trouble(gpu);
            assert_eq!(said.is_some(), part.is_some(), "{said:?}");
            assert!(said.as_ref().is_none_or(|said| said.contains(part.unwrap())), "{said:?}");
            assert!(!table(std::slice::from_ref(gpu)).contains('\u{1b}'));
        }
        let part = |id: &str, out: Option<&str>| Partition {
            id: id.into(),
            profile: "1g.10gb\u{1b}".into(),
            out_of_service: out.map(Into::into),
            ..Default::default()
        };
        let vgpu = Partition { uuid: "VGPU-7".into(), ..part("0000:3b:10.1", Some("open")) };
        let parts = vec![part("MIG-1", None), part("MIG-2", Some("residue\u{1b}[2J")), vgpu];
        let cut = Gpu { partitions: parts, ..well };
        let said = table(&[cut]);
        assert!(said.contains("- 1g.10gb") && !said.contains('\u{1b}'), "{said}");
        assert!(said.contains("MIG-2 serves no new lease: residue"), "{said}");
        let named = ["VGPU-7 serves no new lease: open", "0000:3b:10.1"];
        assert!(named.iter().all(|part| said.contains(part)), "{said}");
    }
}
