use super::{Mix, MixClass, NodeRoom};

/// Thousandths of GPUs of `node` that are free and that the next pod, as `mix` expects it, could
/// not use: of a pod that the node cannot serve all that is free, of another what is free on GPUs
/// that have too little for it.
pub(super) fn fragmentation(node: &NodeRoom, mix: &Mix) -> f64 {
    mix.classes().iter().map(|class| class.weight * unusable(node, class)).sum()
}

fn unusable(node: &NodeRoom, class: &MixClass) -> f64 {
    let free: f64 = node.gpus().iter().map(|gpu| f64::from(gpu.free_milli())).sum();
    let Some(demand) = class.gpu() else { return free };
    let host = node.host();
    if class.pod.host.cpu_milli > host.cpu_milli || class.pod.host.memory > host.memory {
        return free;
    }
    let usable = node.gpus().iter().filter(|gpu| {
        let (memory, share) = demand.amount.on(gpu);
        demand.suits(gpu) && gpu.kind().healthy && gpu.has(memory, share)
    });
    let (count, usable) =
        usable.fold((0, 0.0), |(count, sum), gpu| (count + 1, sum + f64::from(gpu.free_milli())));
    if count < demand.gpus.get() { free } else { free - usable }
}
