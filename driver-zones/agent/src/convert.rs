//! Messages to the domain's types, and back.

use gpuzone_api::agent::v1 as proto;
use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{
    ComputeShare, Exposure, Gpu, GpuCount, GpuHealth, GpuUuid, Inventory, LeaseId, MemoryBytes,
    MigInstance, Noted, Priority, Request, TimeTerms, Timestamp, Vgpu, Xid, ZoneName,
};
use gpuzone_hw::{GpuUse, NotReady, VfioFunction};
use gpuzone_wire::control::LeaseStatus;
use gpuzone_zone::sandbox::{Limits, UserRanges};

use crate::book::GpuRoom;
use crate::journal::HeldLease;

/// What a listing shows of a program's name is not longer.
const PROGRAM_LENGTH: usize = 256;

/// The domain's errors name what they are about.
fn invalid(error: impl std::fmt::Display) -> AgentError {
    AgentError { kind: ErrorKind::InvalidRequest, message: error.to_string() }
}

/// The request in a message, and the program's name for listings.
pub(crate) fn request(message: proto::CreateLeaseRequest) -> Result<(Request, String), AgentError> {
    let proto::CreateLeaseRequest {
        tenant,
        gpus,
        memory_bytes,
        share_percent,
        model,
        program,
        zone_name: _,
        priority,
        cap_percent,
        exposure,
    } = message;
    let memory = |bytes: u64| {
        let error = || invalid(format!("memory size '{bytes}' is larger than any GPU's memory"));
        MemoryBytes::new(bytes).ok_or_else(error)
    };
    let share = |percent| ComputeShare::new(percent).map_err(invalid);
    let priority = match priority.as_str() {
        "" => Priority::default(),
        named => named.parse().map_err(invalid)?,
    };
    let cap = |percent| {
        let error = |_| invalid(format!("cap '{percent}' is no per cent from 1 to 100"));
        ComputeShare::new(percent).map_err(error)
    };
    let time = TimeTerms { priority, cap: cap_percent.map(cap).transpose()? };
    let share = share_percent.map(share).transpose()?;
    share.map_or(Ok(()), |share| time.allow(share)).map_err(invalid)?;
    let exposure = match exposure.as_str() {
        "" => Exposure::Mediated,
        named => named.parse().map_err(invalid)?,
    };
    if matches!(exposure, Exposure::Mig | Exposure::Vgpu) {
        return Err(invalid(format!(
            "a program does not get a part of a GPU as {exposure} by itself; MIG instances and vGPUs are for pods"
        )));
    }
    let request = Request {
        tenant: tenant.parse().map_err(invalid)?,
        gpus: GpuCount::new(gpus).map_err(invalid)?,
        memory: memory_bytes.map(memory).transpose()?,
        share,
        time,
        exposure,
        model,
    };
    // It is the caller's own text and goes to terminals.
    let plain = program.chars().filter(|c| !gpuzone_ledger::steers(*c));
    let program = plain.take(PROGRAM_LENGTH).collect();
    Ok((request, program))
}

/// The zone that a request names.
pub(crate) fn zone_name(
    message: &proto::CreateLeaseRequest,
) -> Result<Option<ZoneName>, AgentError> {
    message.zone_name.as_deref().map(str::parse).transpose().map_err(invalid)
}

pub(crate) fn lease_id(text: &str) -> Result<LeaseId, AgentError> {
    text.parse().map_err(invalid)
}

/// The GPU that a text names, by UUID or index.
pub(crate) fn gpu_of(text: &str, inventory: &Inventory) -> Result<GpuUuid, AgentError> {
    let named = inventory
        .gpus()
        .iter()
        .find(|gpu| gpu.uuid.to_string() == text || gpu.index.to_string() == text)
        .map(|gpu| gpu.uuid)
        .or_else(|| inventory.units().find(|unit| unit.to_string() == text));
    let unknown = || AgentError {
        kind: ErrorKind::NotFound,
        // It is the caller's own text and goes to terminals.
        message: format!("there is no GPU {text:?}; `gpu-zone gpus` lists them by index and UUID"),
    };
    named.ok_or_else(unknown)
}

pub(crate) fn lease(
    held: HeldLease,
    status: Option<LeaseStatus>,
    inventory: &Inventory,
) -> proto::Lease {
    let HeldLease { lease, holder } = held;
    let grant = |grant: &gpuzone_core::Grant| {
        let gpu = inventory.unit(grant.gpu).map(|unit| unit.gpu);
        proto::Grant {
            gpu_uuid: grant.gpu.to_string(),
            gpu_index: gpu.map_or(0, |gpu| gpu.index),
            gpu_name: gpu.map_or_else(String::new, |gpu| gpu.name.clone()),
            backing: gpu.map_or_else(String::new, |gpu| gpu.backing.to_string()),
            memory_bytes: grant.memory.get(),
            share_percent: grant.share.percent(),
        }
    };
    let troubles =
        [holder.trouble.clone(), status.as_ref().map_or(String::new(), |s| s.trouble.clone())];
    proto::Lease {
        id: lease.id.to_string(),
        tenant: lease.tenant.to_string(),
        zone: lease.zone.to_string(),
        state: lease.state.to_string(),
        grants: lease.placement.grants().iter().map(grant).collect(),
        // No process has number 0.
        holder_pid: holder.process().map_or(0, |process| process.pid),
        program: holder.program,
        created_unix_ns: holder.created.nanoseconds(),
        sessions: status.as_ref().map_or(0, |status| status.sessions),
        used_memory_bytes: status.as_ref().map_or(0, |status| status.used.get()),
        worker_pid: status.as_ref().and_then(|status| status.worker_pid),
        counters: Some(status.map(counters).unwrap_or_default()),
        zone_name: holder.zone.map(|zone| zone.to_string()),
        priority: lease.time.priority.to_string(),
        cap_percent: lease.time.cap.map(ComputeShare::percent),
        trouble: troubles.into_iter().find(|trouble| !trouble.is_empty()).unwrap_or_default(),
    }
}

fn counters(status: LeaseStatus) -> proto::Counters {
    let LeaseStatus { counters, refused_by_name, .. } = status;
    proto::Counters {
        busy_nanoseconds: counters.busy_nanoseconds,
        launches: counters.launches,
        bytes_to_device: counters.bytes_to_device,
        bytes_from_device: counters.bytes_from_device,
        bytes_on_device: counters.bytes_on_device,
        refused_memory: counters.refused_memory,
        refused_calls: counters.refused_calls,
        peak_used_bytes: counters.peak_used.get(),
        refused_by_name: refused_by_name.into_iter().collect(),
    }
}

/// How a GPU is handed over, and whether it can be now; the second is about devices only.
pub(crate) struct Handover<'a> {
    pub(crate) exposure: Exposure,
    pub(crate) vfio: Option<&'a Result<VfioFunction, NotReady>>,
    /// Why no pod gets it.
    pub(crate) kept_from_pods: Option<String>,
    /// What of it is handed over one by one.
    pub(crate) partitions: Vec<proto::Partition>,
}

/// A MIG instance, and what is left of it.
pub(crate) fn partition(instance: &MigInstance, room: &GpuRoom) -> proto::Partition {
    proto::Partition {
        id: instance.uuid.to_string(),
        profile: instance.profile.to_string(),
        memory_bytes: instance.memory.get(),
        share_percent: instance.share.percent(),
        leases: room.leases,
        out_of_service: room.health.why().map(|(_, reason)| reason.to_owned()),
        vfio: None,
        not_ready: None,
        uuid: instance.uuid.to_string(),
    }
}

/// A vGPU, what is left of it, and whether it can be handed over now.
pub(crate) fn vgpu(
    vgpu: &Vgpu,
    id: String,
    room: &GpuRoom,
    vfio: Option<&Result<VfioFunction, NotReady>>,
) -> proto::Partition {
    let (vfio, not_ready) = handed(vfio);
    proto::Partition {
        id,
        profile: vgpu.kind.to_string(),
        memory_bytes: vgpu.memory.get(),
        share_percent: vgpu.share.percent(),
        leases: room.leases,
        out_of_service: room.health.why().map(|(_, reason)| reason.to_owned()),
        vfio,
        not_ready,
        uuid: vgpu.uuid.to_string(),
    }
}

/// What a VM opens, or why it cannot.
fn handed(
    vfio: Option<&Result<VfioFunction, NotReady>>,
) -> (Option<proto::VfioFunction>, Option<String>) {
    match vfio {
        Some(Ok(function)) => (Some(vfio_function(function)), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (None, None),
    }
}

pub(crate) fn gpu(
    gpu: &Gpu,
    handover: Handover<'_>,
    room: GpuRoom,
    used: Option<&GpuUse>,
) -> proto::Gpu {
    let why = room.health.why();
    let recovered = room.watch.recovered();
    let waits = matches!(room.health, GpuHealth::Quarantined { .. });
    let reason = why.map(|(_, reason)| reason.to_owned());
    let (vfio, not_ready) = handed(handover.vfio);
    proto::Gpu {
        uuid: gpu.uuid.to_string(),
        index: gpu.index,
        name: gpu.name.clone(),
        pci_address: gpu.pci.to_string(),
        compute_capability: gpu.compute_capability.to_string(),
        numa_node: gpu.numa_node,
        nvlink_peers: gpu.nvlink_peers.iter().map(ToString::to_string).collect(),
        mig_capable: gpu.mig_capable,
        backing: gpu.backing.to_string(),
        memory_bytes: gpu.memory.get(),
        free_memory_bytes: room.memory.get(),
        free_share_percent: room.share,
        used_memory_bytes: used.map(|used| used.used.get()),
        utilization_percent: used.and_then(|used| used.utilization_percent),
        leases: room.leases,
        quarantine: reason.clone().filter(|_| waits),
        out_of_service: reason,
        cause: why.map_or_else(String::new, |(cause, _)| cause.to_string()),
        out_since_unix_ns: room.watch.since().map(Timestamp::nanoseconds),
        recovered_unix_ns: recovered.map(|recovered| recovered.at.nanoseconds()),
        recovered_from: recovered.map_or_else(String::new, |recovered| recovered.from.clone()),
        xids: room.watch.noted().iter().map(xid).collect(),
        exposure: handover.exposure.to_string(),
        vfio,
        not_ready,
        partitions: handover.partitions,
        kept_from_pods: handover.kept_from_pods,
    }
}

fn vfio_function(VfioFunction { group, device }: &VfioFunction) -> proto::VfioFunction {
    proto::VfioFunction { group: *group, device: device.clone().unwrap_or_default() }
}

fn xid((xid, noted): (&Xid, &Noted)) -> proto::SeenXid {
    let entry = xid.entry();
    proto::SeenXid {
        number: xid.number(),
        class: entry.class.as_str().to_owned(),
        what: entry.what.to_owned(),
        count: noted.count,
        last_unix_ns: noted.last.nanoseconds(),
    }
}

/// Limits of a program's zone.
pub(crate) fn zone_limits(limits: &Limits) -> proto::ZoneLimits {
    proto::ZoneLimits {
        memory_bytes: limits.memory,
        pids: limits.pids,
        cpu_percent: limits.cpu,
        scratch_bytes: limits.scratch,
    }
}

/// From where a program's zone gets its users.
pub(crate) fn zone_users(ranges: UserRanges) -> proto::UserRanges {
    let UserRanges { first, each, zones } = ranges;
    proto::UserRanges { first, each, zones }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> proto::CreateLeaseRequest {
        proto::CreateLeaseRequest {
            tenant: "acme".into(),
            gpus: 1,
            memory_bytes: Some(1 << 30),
            share_percent: Some(50),
            model: None,
            program: "./train\x1b[2J\u{202e}\n".into(),
            zone_name: None,
            priority: String::new(),
            cap_percent: Some(60),
            exposure: String::new(),
        }
    }

    #[test]
    fn reads_a_request() {
        let (request, program) = request(asked()).unwrap();
        assert_eq!(request.memory, Some(MemoryBytes::gib(1)));
        assert_eq!(request.share.map(ComputeShare::percent), Some(50));
        let cap = ComputeShare::new(60).ok();
        assert_eq!(request.time, TimeTerms { priority: Priority::Batch, cap });
        assert_eq!(program, "./train[2J");
    }

    #[test]
    fn an_error_names_the_field() {
        type Change = fn(&mut proto::CreateLeaseRequest);
        let cases: [(Change, &str); 13] = [
            (|r| r.tenant = "a/b".into(), "tenant 'a/b'"),
            (|r| r.tenant = "x".repeat(300), "tenant 'xxx"),
            (|r| r.gpus = 0, "'0' is not a number of GPUs"),
            (|r| r.gpus = 65, "'65' is not a number of GPUs"),
            (|r| r.memory_bytes = Some(u64::MAX), "memory size '18446744073709551615'"),
            (|r| r.share_percent = Some(0), "share '0'"),
            (|r| r.share_percent = Some(101), "share '101'"),
            (|r| r.priority = "urgent".into(), "priority 'urgent'"),
            (|r| r.cap_percent = Some(0), "cap '0'"),
            (|r| r.cap_percent = Some(101), "cap '101'"),
            (|r| r.exposure = "whole".into(), "exposure 'whole'"),
            (|r| r.exposure = "vgpu".into(), "a program does not get a part"),
            (|r| r.cap_percent = Some(49), "a cap of 49% is below the share of 50%"),
        ];
        for (change, beginning) in cases {
            let mut message = asked();
            change(&mut message);
            let error = request(message).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(error.message.starts_with(beginning), "{}", error.message);
            assert!(error.message.len() < 300);
        }
        assert!(lease_id("lease-1").unwrap_err().message.starts_with("lease 'lease-1'"));
    }
}
