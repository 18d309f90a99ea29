use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, sys};
use cudarc::nvrtc::Ptx;
use gpuzone_core::MemoryBytes;

/// An opened device with the stream that everything here runs on.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    kernels: Option<PathBuf>,
}

impl Device {
    pub(crate) fn open(ordinal: u16, kernels: Option<PathBuf>) -> anyhow::Result<Self> {
        // SAFETY: opening the driver library runs its initialisers, as every CUDA program does.
        let present = unsafe { sys::is_culib_present() };
        ensure!(present, "there is no libcuda.so.1 here; run this with `gpu-zone run`");
        let context = CudaContext::new(usize::from(ordinal))
            .map_err(named)
            .with_context(|| format!("cannot open device {ordinal}"))?;
        let stream = context.new_stream().map_err(named)?;
        Ok(Self { context, stream, kernels })
    }

    pub(crate) fn describe(&self) -> anyhow::Result<String> {
        let count = CudaContext::device_count().map_err(named)?;
        let name = self.context.name().map_err(named)?;
        let (major, minor) = self.context.compute_capability().map_err(named)?;
        let total = self.context.total_mem().map_err(named)?;
        let (free, of) = self.context.mem_get_info().map_err(named)?;
        Ok(format!(
            "devices={count} name=\"{name}\" compute_capability={major}.{minor} \
             total_bytes={total} free_bytes={free} of_bytes={of}"
        ))
    }

    /// The kernel `name` of the PTX file `file`.
    pub(crate) fn kernel(&self, file: &str, name: &str) -> anyhow::Result<CudaFunction> {
        let folder = self.kernels.as_ref().context(
            "where are the kernels? Name the folder of their PTX with --kernels or GPUZONE_KERNELS",
        )?;
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the kernel '{}'", path.display()))?;
        let module = self.context.load_module(Ptx::from_src(text)).map_err(named);
        let module = module.with_context(|| format!("cannot load '{}'", path.display()))?;
        module.load_function(name).map_err(named).with_context(|| format!("no kernel '{name}'"))
    }

    pub(crate) fn upload<T: cudarc::driver::DeviceRepr>(
        &self,
        data: &[T],
    ) -> anyhow::Result<CudaSlice<T>> {
        self.stream.clone_htod(data).map_err(named).context("cannot copy to the device")
    }

    pub(crate) fn download<T: cudarc::driver::DeviceRepr>(
        &self,
        data: &CudaSlice<T>,
    ) -> anyhow::Result<Vec<T>> {
        let host = self.stream.clone_dtoh(data).map_err(named).context("cannot copy back")?;
        self.stream.synchronize().map_err(named)?;
        Ok(host)
    }

    /// Memory as it comes from the driver, nothing written to it.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>, DriverError> {
        // SAFETY: bytes of any value are valid `u8`, and they are read on purpose or not at all.
        let memory = unsafe { self.stream.alloc::<u8>(bytes) }?;
        // An allocation in stream order may fail only here.
        self.stream.synchronize()?;
        Ok(memory)
    }

    pub(crate) fn free_memory(&self) -> anyhow::Result<MemoryBytes> {
        let (free, _) = self.context.mem_get_info().map_err(named)?;
        Ok(MemoryBytes::saturating(u64::try_from(free)?))
    }
}

/// CUDA's name for an error.
pub(crate) fn name(error: DriverError) -> String {
    format!("{:?}", error.0)
}

/// The error as a sentence's end.
pub(crate) fn named(error: DriverError) -> anyhow::Error {
    anyhow::anyhow!("{} ({error})", name(error))
}
