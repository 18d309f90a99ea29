//! Which GPUs a process sees, as CUDA has it.

use super::{SimulatedGpu, SimulatedNode};

impl SimulatedNode {
    /// What CUDA shows a process whose `CUDA_VISIBLE_DEVICES` is `variable`: the GPUs or the one
    /// MIG instance that it names, up to the first name that is none. Without the variable, the
    /// GPUs that are not in MIG mode, and if there is none, the first MIG instance.
    #[must_use]
    pub fn visible(&self, variable: Option<&str>) -> Vec<&SimulatedGpu> {
        let whole: Vec<&SimulatedGpu> =
            self.gpus().iter().filter(|gpu| gpu.config().mig.is_none()).collect();
        let mut instances = self.gpus().iter().flat_map(SimulatedGpu::mig_devices);
        let Some(variable) = variable else {
            return if whole.is_empty() { instances.next().into_iter().collect() } else { whole };
        };
        let mut seen: Vec<&SimulatedGpu> = Vec::new();
        for name in variable.split(',').map(str::trim) {
            if name.starts_with("MIG-") {
                // One instance, and no GPU beside it.
                let named = instances.find(|gpu| gpu.config().uuid.to_string() == name);
                return if seen.is_empty() { named.into_iter().collect() } else { seen };
            }
            let by_number = || whole.get(name.parse::<usize>().ok()?).copied();
            let by_uuid = || {
                let mut of_name =
                    whole.iter().filter(|gpu| gpu.config().uuid.to_string().starts_with(name));
                let named = of_name.next().copied().filter(|_| name.starts_with("GPU-"));
                // A beginning that two share names neither.
                named.filter(|_| of_name.next().is_none())
            };
            let Some(named) = by_number().or_else(by_uuid) else { break };
            if seen.iter().any(|gpu| gpu.config().uuid == named.config().uuid) {
                break;
            }
            seen.push(named);
        }
        seen
    }
}
