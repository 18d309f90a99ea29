//! What the extender is told, all of it on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use gpuzone_api::kubernetes::{
    DEFAULT_GPU_RESOURCE, DEFAULT_MEMORY_PERCENT_RESOURCE, DEFAULT_MEMORY_RESOURCE,
    DEFAULT_MIG_PREFIX, DEFAULT_PASSTHROUGH_RESOURCE, DEFAULT_SHARE_RESOURCE, DEFAULT_VGPU_PREFIX,
    ResourceName, ResourceNames, ResourcePrefix, SchedulerName,
};
use gpuzone_core::engine::Policy;

use crate::admission::Rules;
use crate::follow::Follower;
use crate::index::{Named, Settings, WithoutQuota};
use crate::leader::Identity;
use crate::tls::Files;

/// What a namespace may have that no quota holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unquoted {
    /// Nothing.
    Refuse,
    /// Whatever there is.
    Admit,
}

/// The scheduler extender of gpu-zone: which node and which GPUs a pod gets, under its quotas.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpu-zone-scheduler-ext", version)]
pub struct Config {
    /// Where kube-scheduler's requests come in.
    #[arg(long, default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where probes and metrics are answered, without TLS.
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// The server's certificate (PEM). With its key: TLS.
    #[arg(long, requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Who signs the scheduler's certificate (PEM): nobody else is answered then.
    #[arg(long, requires = "tls_certificate")]
    pub client_ca: Option<PathBuf>,
    /// Lets anybody who reaches the port ask, without TLS: for tests, and behind a policy of the
    /// network that lets nobody but the scheduler.
    #[arg(long)]
    pub insecure: bool,
    /// Where the API server asks about pods that are created; without it, nobody is asked. It shows
    /// the same certificate, and asks for none.
    #[arg(long)]
    pub webhook_listen: Option<SocketAddr>,
    /// The scheduler that pods with GPUs get when they are created and name no other than the
    /// cluster's first; without it, a pod's schedulerName stays as it is.
    #[arg(long, value_name = "NAME", requires = "webhook_listen")]
    pub set_scheduler_name: Option<SchedulerName>,
    /// The largest request, in MiB. Without nodeCacheCapable, requests carry whole nodes.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub largest_request_mib: u16,
    /// The resource by which pods ask for GPUs.
    #[arg(long, default_value = DEFAULT_GPU_RESOURCE)]
    pub gpu_resource: ResourceName,
    /// The resource by which they ask for memory, in MiB.
    #[arg(long, default_value = DEFAULT_MEMORY_RESOURCE)]
    pub memory_resource: ResourceName,
    /// The resource by which they ask for memory, in per cent.
    #[arg(long, default_value = DEFAULT_MEMORY_PERCENT_RESOURCE)]
    pub memory_percent_resource: ResourceName,
    /// The resource by which they ask for a share of the time, in per cent.
    #[arg(long, default_value = DEFAULT_SHARE_RESOURCE)]
    pub share_resource: ResourceName,
    /// The resource by which they ask for whole GPUs by passthrough.
    #[arg(long, default_value = DEFAULT_PASSTHROUGH_RESOURCE)]
    pub passthrough_resource: ResourceName,
    /// What stands before a MIG profile in the resource by which they ask for an instance of it.
    #[arg(long, default_value = DEFAULT_MIG_PREFIX)]
    pub mig_prefix: ResourcePrefix,
    /// What stands before a vGPU type in the resource by which they ask for one of it.
    #[arg(long, default_value = DEFAULT_VGPU_PREFIX)]
    pub vgpu_prefix: ResourcePrefix,
    /// What placements are to be good for, where a pod does not say: pack, spread or fragmentation.
    #[arg(long, default_value_t = Policy::default())]
    pub policy: Policy,
    /// Which of the nodes that serve a pod are named to the scheduler.
    #[arg(long, value_enum, default_value = "best")]
    pub named_nodes: Named,
    /// What a namespace may have that no GpuQuota holds for.
    #[arg(long, value_enum, default_value = "refuse")]
    pub without_quota: Unquoted,
    /// How long the pods of a group wait for each other at most, in seconds; less than the scheduler's
    /// httpTimeout. A PodGroup's scheduleTimeoutSeconds can make it shorter.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub group_seconds: u64,
    /// How long the place of a pod of a group that is deleted or fails stays for the pod that replaces it, at
    /// most, in seconds; 0: not at all.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub replacement_seconds: u64,
    /// How often a cluster without PodGroups is asked whether it has them now, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub pod_group_look_seconds: u64,
    /// How long a pod that asks for no more than is guaranteed to its quota waits for room before pods
    /// that borrow it are evicted, in seconds; without it, none is.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub reclaim_seconds: Option<u64>,
    /// How often at most a Node is touched so that waiting pods are looked at, in milliseconds.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub wake_milliseconds: u64,
    /// The namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "gpu-zone")]
    pub lease_namespace: String,
    /// The Lease's name.
    #[arg(long, default_value = "gpu-zone-scheduler-ext")]
    pub lease: String,
    /// What this replica is called in it.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// How long a leader that is gone keeps others from binding, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(10..=600))]
    pub lease_seconds: u64,
    /// A Service without selector, in the Lease's namespace, whose endpoints are the replica that
    /// leads: the scheduler's extender.
    #[arg(long, requires = "advertise")]
    pub service: Option<String>,
    /// The address at which the Service reaches this replica; the port is that of --listen.
    #[arg(long, env = "POD_IP")]
    pub advertise: Option<IpAddr>,
    /// How to reach the API server; without it, as a pod does.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Log as JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

impl Config {
    fn names(&self) -> ResourceNames {
        ResourceNames {
            gpu: self.gpu_resource.clone(),
            memory_mib: self.memory_resource.clone(),
            memory_percent: self.memory_percent_resource.clone(),
            share: self.share_resource.clone(),
            passthrough: self.passthrough_resource.clone(),
            mig: self.mig_prefix.clone(),
            vgpu: self.vgpu_prefix.clone(),
        }
    }

    /// What pods are held to when they are created.
    pub(crate) fn rules(&self) -> Rules {
        let (names, scheduler) = (self.names(), self.set_scheduler_name.clone());
        Rules { names, scheduler, policy: self.policy }
    }

    /// What the index is told.
    pub fn settings(&self) -> Settings {
        Settings {
            names: self.names(),
            policy: self.policy,
            without_quota: match self.without_quota {
                Unquoted::Refuse => WithoutQuota::Refuse,
                Unquoted::Admit => WithoutQuota::Admit,
            },
            group_patience: Duration::from_secs(self.group_seconds),
            replacement: Duration::from_secs(self.replacement_seconds),
        }
    }

    /// Who this replica is. A name that is used again is not the same replica.
    pub(crate) fn identity(&self) -> Identity {
        let began = k8s_openapi::jiff::Timestamp::now().as_nanosecond();
        Identity {
            namespace: self.lease_namespace.clone(),
            lease: self.lease.clone(),
            me: format!("{}_{began:x}", self.identity),
            duration: Duration::from_secs(self.lease_seconds),
        }
    }

    /// The Service that follows the leader, if there is one.
    pub(crate) fn follower(&self) -> Option<Follower> {
        let (service, address) = (self.service.clone()?, self.advertise?);
        let address = SocketAddr::new(address, self.listen.port());
        Some(Follower { namespace: self.lease_namespace.clone(), service, address })
    }

    /// Where the certificates are, if there are any.
    pub(crate) fn tls(&self) -> Option<Files> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        Some(Files { certificate, key, clients: self.client_ca.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(["ext", "--identity", "a"].iter().chain(arguments))
    }

    #[test]
    fn defaults_and_mistakes() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.settings().names, ResourceNames::defaults().unwrap());
        assert_eq!(config.settings().without_quota, WithoutQuota::Refuse);
        assert!(config.tls().is_none());
        assert_ne!(config.identity().me, config.identity().me, "a name is not a replica");
        for wrong in [
            ["--tls-key", "/k"],
            ["--client-ca", "/c"],
            ["--policy", "best"],
            ["--lease-seconds", "9"],
            ["--gpu-resource", "gpu"],
            ["--set-scheduler-name", "gpu-zone"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
        let webhook =
            |name| parse(&["--webhook-listen", "[::]:9443", "--set-scheduler-name", name]);
        assert!(webhook("gpu-zone").is_ok() && webhook("GPU zone").is_err());
    }
}
