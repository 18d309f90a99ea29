//! Limits, as what is written to which file of a control group.

use crate::sandbox::spec::{Feature, Limits};

/// A write to a file of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether it is left out by a kernel that does not have the file.
    pub(super) optional: bool,
}

fn must(file: &'static str, value: impl ToString) -> Setting {
    Setting { file, value: value.to_string(), optional: false }
}

fn may(file: &'static str, value: impl ToString) -> Setting {
    Setting { optional: true, ..must(file, value) }
}

/// A limit, and what sets it in each version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) feature: Feature,
    pub(super) controller: &'static str,
    pub(super) v2: Vec<Setting>,
    /// Empty where version 1 has no such limit.
    pub(super) v1: Vec<Setting>,
}

/// All that `limits` asks of control groups.
pub(super) fn wanted(limits: &Limits) -> Vec<Limit> {
    let memory = limits.memory.map(|bytes| Limit {
        feature: Feature::Memory,
        controller: "memory",
        // Swapped out is not gone, and a zone that has lost a process has lost its sense.
        v2: vec![must("memory.max", bytes), may("memory.swap.max", 0), may("memory.oom.group", 1)],
        // In this order: memory and swap together may not be less than memory.
        v1: vec![must("memory.limit_in_bytes", bytes), may("memory.memsw.limit_in_bytes", bytes)],
    });
    let pids = limits.pids.map(|count| Limit {
        feature: Feature::Pids,
        controller: "pids",
        v2: vec![must("pids.max", count)],
        v1: vec![must("pids.max", count)],
    });
    let (mut v2, mut v1) = (Vec::new(), Vec::new());
    if let Some(weight) = limits.cpu_weight {
        v2.push(must("cpu.weight", weight));
        // 100 is 1024 in version 1, where 2 is the least.
        v1.push(must("cpu.shares", (weight.saturating_mul(1024) / 100).max(2)));
    }
    // Per cent of one processor, as microseconds of each 100 ms.
    const PERIOD: u64 = 100_000;
    if let Some(percent) = limits.cpu {
        let quota = percent.saturating_mul(PERIOD / 100);
        v2.push(must("cpu.max", format!("{quota} {PERIOD}")));
        v1.extend([must("cpu.cfs_period_us", PERIOD), must("cpu.cfs_quota_us", quota)]);
    }
    let cpu =
        (!v2.is_empty()).then_some(Limit { feature: Feature::Cpu, controller: "cpu", v2, v1 });
    let regions = limits.device_memory.iter();
    let regions: Vec<Setting> =
        regions.map(|(region, bytes)| must("dmem.max", format!("{region} {bytes}"))).collect();
    let dmem = (!regions.is_empty()).then(|| Limit {
        feature: Feature::Dmem,
        controller: "dmem",
        v2: regions,
        v1: Vec::new(),
    });
    [memory, pids, cpu, dmem].into_iter().flatten().collect()
}
