//! What the plugin is told, all of it on the command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use gpuzone_api::kubernetes::{
    DEFAULT_GPU_RESOURCE, DEFAULT_MIG_PREFIX, DEFAULT_PASSTHROUGH_RESOURCE, DEFAULT_VGPU_PREFIX,
    NodeName, ResourceName, ResourcePrefix,
};
use gpuzone_api::{Directories, SlotId};

use crate::answer::{Handover, VfioInterface};

/// What containers of a namespace get that no quota holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WithoutQuota {
    /// Nothing.
    Refuse,
    /// What the agent has.
    Admit,
}

/// The kubelet's device plugin of gpu-zone: slots for pods, and the leases that appear in them.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpu-zone-device-plugin", version)]
pub struct Config {
    /// The resource by which pods ask for GPUs.
    #[arg(long, default_value = DEFAULT_GPU_RESOURCE)]
    pub resource: ResourceName,
    /// The resource by which pods ask for whole GPUs by passthrough, where the agent has any.
    #[arg(long, default_value = DEFAULT_PASSTHROUGH_RESOURCE)]
    pub passthrough_resource: ResourceName,
    /// What stands before a MIG profile in the resource by which pods ask for one of its instances,
    /// where the agent has any.
    #[arg(long, default_value = DEFAULT_MIG_PREFIX)]
    pub mig_prefix: ResourcePrefix,
    /// What stands before a vGPU type in the resource by which pods ask for one of its vGPUs, where
    /// the agent has any.
    #[arg(long, default_value = DEFAULT_VGPU_PREFIX)]
    pub vgpu_prefix: ResourcePrefix,
    /// By which of the kernel's interfaces this node's VMs open whole GPUs and vGPUs.
    #[arg(long, value_enum, default_value = "group")]
    pub vfio: VfioInterface,
    /// How many slots the node has: how many containers can hold a GPU, or a part of one, at a
    /// time.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=i64::from(SlotId::MOST)))]
    pub slots: u16,
    /// This node's name.
    #[arg(long, env = "NODE_NAME")]
    pub node: NodeName,
    /// The kubelet's folder of plugins.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    pub kubelet_dir: PathBuf,
    /// The kubelet's socket that says which pod holds what.
    #[arg(long, default_value = "/var/lib/kubelet/pod-resources/kubelet.sock")]
    pub pod_resources: PathBuf,
    /// The agent's run directory, where its socket is.
    #[arg(long, default_value_os_t = Directories::for_user().run)]
    pub run_dir: PathBuf,
    /// The agent's state directory, where the slots' folders are.
    #[arg(long, default_value_os_t = Directories::for_user().state)]
    pub state_dir: PathBuf,
    /// The library that containers get as their libcuda.so.1, as the node sees it.
    #[arg(long)]
    pub library: PathBuf,
    /// The library that they get as their libnvidia-ml.so.1; without it, libgpuzone_nvml.so beside
    /// the other.
    #[arg(long)]
    pub nvml_library: Option<PathBuf>,
    /// Folder for a CDI specification, like /var/run/cdi, if the container runtime reads one;
    /// without it, containers get mounts.
    #[arg(long)]
    pub cdi_dir: Option<PathBuf>,
    /// Leave whole GPUs and vGPUs out of the CDI specifications, so that no VM can be made with them
    /// before its container has a lease; containers get their device nodes.
    #[arg(long)]
    pub hot_plug_only: bool,
    /// What containers of a namespace get that no GpuQuota holds for; as the scheduler extender is
    /// told.
    #[arg(long, value_enum, default_value = "refuse")]
    pub without_quota: WithoutQuota,
    /// How to reach the API server; without it, as a pod does.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Log as JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

impl Config {
    /// How containers get the library.
    pub fn handover(&self) -> Handover {
        match self.cdi_dir {
            Some(_) => Handover::Cdi,
            None => Handover::Mounts,
        }
    }

    /// Where runtimes read of whole GPUs and vGPUs, if they do.
    pub fn device_cdi_dir(&self) -> Option<&PathBuf> {
        self.cdi_dir.as_ref().filter(|_| !self.hot_plug_only)
    }

    /// How containers get whole GPUs and vGPUs.
    pub fn device_handover(&self) -> Handover {
        match self.device_cdi_dir() {
            Some(_) => Handover::Cdi,
            None => Handover::Mounts,
        }
    }

    /// The library that containers get as their libnvidia-ml.so.1.
    pub fn nvml_library(&self) -> PathBuf {
        let beside = || self.library.with_file_name("libgpuzone_nvml.so");
        self.nvml_library.clone().unwrap_or_else(beside)
    }

    /// The agent's and this plugin's directories.
    pub fn directories(&self) -> Directories {
        Directories { state: self.state_dir.clone(), run: self.run_dir.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, clap::Error> {
        let always = ["plugin", "--node", "gpu-1", "--library", "/l.so"];
        Config::try_parse_from(always.iter().chain(arguments))
    }

    #[test]
    fn defaults_and_mistakes() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.resource.as_str(), "gpuzone.dev/gpu");
        assert_eq!(config.handover(), Handover::Mounts);
        assert_eq!(config.nvml_library(), PathBuf::from("/libgpuzone_nvml.so"));
        let other = parse(&["--resource", "nvidia.com/gpu", "--cdi-dir", "/c"]).unwrap();
        assert_eq!((other.handover(), other.device_handover()), (Handover::Cdi, Handover::Cdi));
        let hot = parse(&["--cdi-dir", "/c", "--hot-plug-only"]).unwrap();
        assert_eq!((hot.handover(), hot.device_handover()), (Handover::Cdi, Handover::Mounts));
        for wrong in
            [["--resource", "gpu"], ["--slots", "0"], ["--slots", "1025"], ["--slots", "many"]]
        {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
