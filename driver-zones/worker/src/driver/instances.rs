use gpuzone_core::GpuUuid;

/// Has the driver show this process the MIG instances among `gpus`: CUDA shows a process no more
/// than one, and of itself not the one that is meant.
///
/// # Safety
/// The process has no other thread, and has not opened the driver.
pub unsafe fn show_instances(gpus: impl Iterator<Item = GpuUuid>) {
    let instances: Vec<String> =
        gpus.filter(|gpu| gpu.is_mig()).map(|instance| instance.to_string()).collect();
    if !instances.is_empty() {
        // SAFETY: nobody else reads the environment meanwhile, as the caller says.
        unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", instances.join(",")) };
    }
}
