//! How a GPU is joined with others and how it is cut, in `gpu-zone gpus --all`.

use std::collections::BTreeMap;

use gpuzone_api::agent::v1::{
    ComputeInstance, DriverGpu, GpuInstance, MigKind, MigLayout, MigPlacement, NvLink,
};
use serde_json::{Value, json};

use crate::commands::devices::{Branch, leaf};
use crate::output;

pub(super) fn value(gpu: &DriverGpu) -> Value {
    let link = |of: &NvLink| json!({ "number": of.number, "remote": of.remote });
    json!({
        "uuid": gpu.uuid,
        "address": gpu.address,
        "name": gpu.name,
        "backing": gpu.backing,
        "nvlinks": gpu.links.iter().map(link).collect::<Vec<_>>(),
        "mig": gpu.mig.as_ref().map(layout),
        "mig_unknown": Some(&gpu.mig_unknown).filter(|why| !why.is_empty()),
    })
}

fn layout(of: &MigLayout) -> Value {
    let place = |of: &MigPlacement| json!({ "start": of.start, "size": of.size });
    let kind = |of: &MigKind| {
        json!({
            "id": of.id,
            "name": of.name,
            "slices": of.slices,
            "memory_bytes": of.memory_bytes,
            "most": of.most,
            "placements": of.placements.iter().map(place).collect::<Vec<_>>(),
        })
    };
    let compute =
        |of: &ComputeInstance| json!({ "number": of.number, "slices": of.slices, "uuid": of.uuid });
    let instance = |of: &GpuInstance| {
        json!({
            "number": of.number,
            "profile_id": of.kind,
            "profile": of.profile,
            "placement": of.placement.as_ref().map(place),
            "slices": of.slices,
            "compute_instances": of.computes.iter().map(compute).collect::<Vec<_>>(),
            "processes": of.users,
        })
    };
    json!({
        "enabled": of.enabled,
        "profiles": of.kinds.iter().map(kind).collect::<Vec<_>>(),
        "instances": of.instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

/// What stands below a GPU. `kinds` are what is at which address.
pub(super) fn branches(gpu: &DriverGpu, kinds: &BTreeMap<&str, &str>) -> Vec<Branch> {
    let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for link in &gpu.links {
        let remote = link.remote.as_deref().unwrap_or_default();
        by.entry(remote).or_default().push(link.number.to_string());
    }
    let mut found: Vec<Branch> = by
        .into_iter()
        .map(|(remote, links)| {
            let links = links.join(", ");
            leaf(match (remote, kinds.get(remote)) {
                ("", _) => format!("NVLink {links} to what the driver does not know"),
                (remote, Some(kind)) => format!("NVLink {links} to {remote} ({kind})"),
                (remote, None) => format!("NVLink {links} to {remote}"),
            })
        })
        .collect();
    match &gpu.mig {
        Some(mig) => found.push(mig_branch(mig)),
        None if gpu.mig_unknown.is_empty() => {}
        None => found.push(leaf(format!("MIG: {}", gpu.mig_unknown))),
    }
    found
}

fn mig_branch(mig: &MigLayout) -> Branch {
    let mode = if mig.enabled { "MIG: on" } else { "MIG: off" };
    let kinds = mig.kinds.iter().map(|kind| leaf(can_be(kind)));
    let all = mig.instances.iter().map(made).chain(kinds);
    Branch(mode.to_owned(), all.collect())
}

fn can_be(kind: &MigKind) -> String {
    let starts = kind.placements.iter().map(|place| place.start.to_string());
    let starts = starts.collect::<Vec<_>>().join(", ");
    let size = kind.placements.first().map_or(0, |place| place.size);
    format!(
        "can be {} {}: {}, {} of 7 slices, {size} memory slices from {starts}, at most {}",
        kind.id,
        kind.name,
        output::gib(kind.memory_bytes),
        kind.slices,
        kind.most,
    )
}

fn made(of: &GpuInstance) -> Branch {
    let MigPlacement { start, size } = of.placement.unwrap_or_default();
    let last = (start + size).saturating_sub(1);
    let place = if size == 1 { format!("slice {start}") } else { format!("slices {start}-{last}") };
    let text = format!("instance {}: {} in memory {place}", of.number, of.profile);
    let device = |compute: &ComputeInstance| {
        let name = compute.uuid.as_deref().unwrap_or("a device without a name");
        let part = match compute.slices == of.slices {
            true => "all of it".to_owned(),
            false => format!("{} of its {} slices", compute.slices, of.slices),
        };
        leaf(format!("{name}: {part}"))
    };
    let mut below: Vec<Branch> = of.computes.iter().map(device).collect();
    if below.is_empty() {
        below.push(leaf("no compute instance, so no device".to_owned()));
    }
    if !of.users.is_empty() {
        let users: Vec<String> = of.users.iter().map(u32::to_string).collect();
        below.push(leaf(format!("used by the processes {}", users.join(", "))));
    }
    Branch(gpuzone_ledger::printable(&text), below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::devices::branches as lines;

    #[test]
    fn a_gpu_shows_its_links_and_what_it_is_and_can_be_cut_into() {
        let place = |start, size| MigPlacement { start, size };
        let kind = MigKind {
            id: 9,
            name: "3g.40gb".into(),
            slices: 3,
            memory_bytes: 40 << 30,
            most: 2,
            placements: vec![place(0, 4), place(4, 4)],
        };
        let compute = ComputeInstance { number: 0, slices: 3, uuid: Some("MIG-7".into()) };
        let cut = GpuInstance {
            number: 2,
            kind: 9,
            profile: "3g.40gb\u{1b}".into(),
            placement: Some(place(4, 4)),
            slices: 3,
            computes: vec![compute],
            users: vec![41],
        };
        let empty = GpuInstance { number: 1, placement: Some(place(0, 1)), ..Default::default() };
        let link = |number, remote: &str| NvLink { number, remote: Some(remote.into()) };
        let gpu = DriverGpu {
            links: vec![link(0, "0000:a0:00.0"), link(3, "0000:a0:00.0"), link(1, "0000:b0:00.0")],
            mig: Some(MigLayout { enabled: true, kinds: vec![kind], instances: vec![empty, cut] }),
            ..DriverGpu::default()
        };
        let shown = lines("", &branches(&gpu, &[("0000:a0:00.0", "nvswitch")].into()));
        let expected = "\
├─ NVLink 0, 3 to 0000:a0:00.0 (nvswitch)
├─ NVLink 1 to 0000:b0:00.0
└─ MIG: on
   ├─ instance 1:  in memory slice 0
   │  └─ no compute instance, so no device
   ├─ instance 2: 3g.40gb\\u{1b} in memory slices 4-7
   │  ├─ MIG-7: all of it
   │  └─ used by the processes 41
   └─ can be 9 3g.40gb: 40.0 GiB, 3 of 7 slices, 4 memory slices from 0, 4, at most 2
";
        assert_eq!(shown, expected, "{shown}");
        let json = value(&gpu);
        assert_eq!(json["mig"]["instances"][1]["compute_instances"][0]["uuid"], "MIG-7");
        assert_eq!(json["mig"]["profiles"][0]["placements"][1]["start"], 4);
        assert_eq!(json["nvlinks"][2]["remote"], "0000:b0:00.0");
        let silent = DriverGpu { mig_unknown: "no\u{1b}".into(), ..DriverGpu::default() };
        assert_eq!(lines("", &branches(&silent, &BTreeMap::new())), "└─ MIG: no\\u{1b}\n");
    }
}
