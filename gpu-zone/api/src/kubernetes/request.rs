//! What a container asks for, in the limits of its spec.

use std::collections::BTreeMap;

use gpuzone_core::engine::MemoryAsk;
use gpuzone_core::{
    ComputeShare, Exposure, GpuCount, InvalidMigProfile, InvalidVgpuType, MemoryBytes, MigProfile,
    VgpuType,
};

use super::names::shorten;
use super::{
    DEFAULT_GPU_RESOURCE, DEFAULT_MEMORY_PERCENT_RESOURCE, DEFAULT_MEMORY_RESOURCE,
    DEFAULT_MIG_PREFIX, DEFAULT_PASSTHROUGH_RESOURCE, DEFAULT_SHARE_RESOURCE, DEFAULT_VGPU_PREFIX,
    InvalidName, ResourceName, ResourcePrefix,
};

/// The names by which containers ask. A cluster may keep the ones its manifests have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceNames {
    /// For a number of GPUs.
    pub gpu: ResourceName,
    /// For MiB on each.
    pub memory_mib: ResourceName,
    /// For per cent of each one's memory.
    pub memory_percent: ResourceName,
    /// For per cent of each one's time.
    pub share: ResourceName,
    /// For a number of whole GPUs by passthrough.
    pub passthrough: ResourceName,
    /// Before a MIG profile: for one instance of it.
    pub mig: ResourcePrefix,
    /// Before a type of vGPUs: for one of it.
    pub vgpu: ResourcePrefix,
}

/// In which way a container wants its GPUs, and with it by which resource the kubelet counts them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Handed {
    /// Mediated, in slots.
    Mediated,
    /// Whole, by passthrough.
    Passthrough,
    /// One MIG instance of this profile.
    Mig(MigProfile),
    /// One vGPU of this type.
    Vgpu(VgpuType),
}

impl Handed {
    /// The exposure that this is of.
    pub const fn exposure(&self) -> Exposure {
        match self {
            Self::Mediated => Exposure::Mediated,
            Self::Passthrough => Exposure::Passthrough,
            Self::Mig(_) => Exposure::Mig,
            Self::Vgpu(_) => Exposure::Vgpu,
        }
    }
}

/// What one container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// In which way.
    pub handed: Handed,
    /// How many GPUs.
    pub gpus: GpuCount,
    /// Memory on each; `None` is whole GPUs.
    pub memory: Option<MemoryAsk>,
    /// Share of each one's time; `None` is in proportion to the memory.
    pub share: Option<ComputeShare>,
}

/// Why limits ask for nothing that can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a whole number.
    #[error("{resource}: '{}' is not a whole number; write one like 1 or 8192", shorten(.text))]
    NotWhole {
        /// Which limit.
        resource: ResourceName,
        /// What stands there.
        text: String,
    },
    /// A number that makes no sense there.
    #[error("{resource}: {reason}")]
    Value {
        /// Which limit.
        resource: ResourceName,
        /// What is wrong with it.
        reason: String,
    },
    /// Memory in two ways.
    #[error("{mib} and {percent} both say how much memory; keep one of them")]
    Twice {
        /// One.
        mib: ResourceName,
        /// The other.
        percent: ResourceName,
    },
    /// GPUs in two ways.
    #[error("{one} and {other} are both asked for; one container gets GPUs in one way")]
    TwoWays {
        /// One.
        one: ResourceName,
        /// The other.
        other: ResourceName,
    },
    /// Memory or share of what is only had whole.
    #[error("{asked} is asked for beside {whole}, of which there are no parts; leave it out")]
    NoParts {
        /// What is asked for.
        asked: ResourceName,
        /// Of what.
        whole: ResourceName,
    },
    /// Memory or share, and no GPU to have it of.
    #[error("{asked} is asked for without {gpu}; add {gpu}: 1")]
    NoGpu {
        /// What is asked for.
        asked: ResourceName,
        /// What is missing.
        gpu: ResourceName,
    },
}

impl ResourceNames {
    /// The names when nobody chose others.
    ///
    /// # Errors
    /// Never; the names are checked like any others.
    pub fn defaults() -> Result<Self, InvalidName> {
        Ok(Self {
            gpu: DEFAULT_GPU_RESOURCE.parse()?,
            memory_mib: DEFAULT_MEMORY_RESOURCE.parse()?,
            memory_percent: DEFAULT_MEMORY_PERCENT_RESOURCE.parse()?,
            share: DEFAULT_SHARE_RESOURCE.parse()?,
            passthrough: DEFAULT_PASSTHROUGH_RESOURCE.parse()?,
            mig: DEFAULT_MIG_PREFIX.parse()?,
            vgpu: DEFAULT_VGPU_PREFIX.parse()?,
        })
    }
}

impl ContainerRequest {
    /// What `limits` ask for; `None` when they do not mention a GPU. A count of 0 is no mention.
    ///
    /// # Errors
    /// When a number cannot be read or makes no sense.
    pub fn from_limits(
        names: &ResourceNames,
        limits: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, RequestError> {
        let limit = |name: &ResourceName| count(name, limits.get(name.as_str()));
        let (gpus, share) = (limit(&names.gpu)?, limit(&names.share)?);
        let (memory, part) = (limit(&names.memory_mib)?, limit(&names.memory_percent)?);
        let parts =
            [(&names.memory_mib, memory), (&names.memory_percent, part), (&names.share, share)];
        let part_of = parts.into_iter().find(|(_, number)| number.is_some());
        let whole = whole_devices(names, limits)?;
        if let Some((_, resource, _)) = &whole
            && gpus.is_some()
        {
            let (one, other) = (names.gpu.clone(), resource.clone());
            return Err(RequestError::TwoWays { one, other });
        }
        if let Some((handed, resource, number)) = whole {
            if let Some((asked, _)) = part_of {
                return Err(RequestError::NoParts { asked: asked.clone(), whole: resource });
            }
            return Self::of_devices(handed, &resource, number).map(Some);
        }
        let Some(gpus) = gpus else {
            return match part_of {
                None => Ok(None),
                Some((asked, _)) => {
                    Err(RequestError::NoGpu { asked: asked.clone(), gpu: names.gpu.clone() })
                }
            };
        };
        // Above what a number holds, it is above what is allowed, which the sentence says.
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let gpus = GpuCount::new(narrow(gpus)).map_err(|e| value(&names.gpu, e.to_string()))?;
        let mib = |number: u64| {
            let bytes = number.checked_mul(1 << 20).and_then(MemoryBytes::new);
            let reason = format!("{number} MiB is more than any GPU's memory can be");
            bytes.ok_or_else(|| value(&names.memory_mib, reason))
        };
        let percent = |name: &ResourceName, number| {
            ComputeShare::new(narrow(number)).map_err(|e| value(name, e.to_string()))
        };
        let memory = match (memory, part) {
            (None, None) => None,
            (Some(number), None) => Some(MemoryAsk::Bytes(mib(number)?)),
            (None, Some(number)) => {
                Some(MemoryAsk::Percent(percent(&names.memory_percent, number)?))
            }
            (Some(_), Some(_)) => {
                let (mib, percent) = (names.memory_mib.clone(), names.memory_percent.clone());
                return Err(RequestError::Twice { mib, percent });
            }
        };
        let share = share.map(|number| percent(&names.share, number)).transpose()?;
        Ok(Some(Self { handed: Handed::Mediated, gpus, memory, share }))
    }

    /// Of devices that nobody else has a part of.
    fn of_devices(
        handed: Handed,
        resource: &ResourceName,
        number: u64,
    ) -> Result<Self, RequestError> {
        let gpus = GpuCount::new(u32::try_from(number).unwrap_or(u32::MAX));
        let gpus = gpus.map_err(|error| value(resource, error.to_string()))?;
        match handed {
            Handed::Mig(_) if gpus != GpuCount::ONE => {
                let reason = "CUDA shows a program one instance; ask for one in each container";
                Err(value(resource, reason.to_owned()))
            }
            Handed::Vgpu(_) if gpus != GpuCount::ONE => {
                Err(value(resource, "a container gets one vGPU".to_owned()))
            }
            handed => Ok(Self { handed, gpus, memory: None, share: None }),
        }
    }
}

fn value(resource: &ResourceName, reason: String) -> RequestError {
    RequestError::Value { resource: resource.clone(), reason }
}

/// A limit's number; 0 is none.
fn count(name: &ResourceName, limit: Option<&String>) -> Result<Option<u64>, RequestError> {
    let Some(text) = limit else { return Ok(None) };
    match whole(text) {
        Some(0) => Ok(None),
        Some(number) => Ok(Some(number)),
        None => Err(RequestError::NotWhole { resource: name.clone(), text: text.clone() }),
    }
}

/// What is asked for of GPUs that are handed over whole, in MIG instances, or as vGPUs.
fn whole_devices(
    names: &ResourceNames,
    limits: &BTreeMap<String, String>,
) -> Result<Option<(Handed, ResourceName, u64)>, RequestError> {
    let mut found: Option<(Handed, ResourceName, u64)> = None;
    for (name, text) in limits {
        let Ok(resource) = name.parse::<ResourceName>() else { continue };
        let handed = match (names.mig.profile(&resource), names.vgpu.profile(&resource)) {
            (None, Some(kind)) => {
                let kind = kind
                    .parse()
                    .map_err(|error: InvalidVgpuType| value(&resource, error.to_string()))?;
                Handed::Vgpu(kind)
            }
            (Some(profile), _) => {
                let profile = profile
                    .parse()
                    .map_err(|error: InvalidMigProfile| value(&resource, error.to_string()))?;
                Handed::Mig(profile)
            }
            (None, None) if resource == names.passthrough => Handed::Passthrough,
            (None, None) => continue,
        };
        let Some(number) = count(&resource, Some(text))? else { continue };
        if let Some((_, one, _)) = found {
            return Err(RequestError::TwoWays { one, other: resource });
        }
        found = Some((handed, resource, number));
    }
    Ok(found)
}

/// A whole number in Kubernetes' notation of quantities: digits, with a suffix or an exponent.
fn whole(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let power = |base: u64, exponent: &str| base.checked_pow(exponent.parse().ok()?);
    let factor = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        other => match other.strip_prefix(['e', 'E']) {
            Some(exponent) if exponent.bytes().all(|b| b.is_ascii_digit()) => power(10, exponent)?,
            Some(_) | None => return None,
        },
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(limits: &[(&str, &str)]) -> Result<Option<ContainerRequest>, RequestError> {
        let limits = limits.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ContainerRequest::from_limits(&ResourceNames::defaults().unwrap(), &limits)
    }

    #[test]
    fn reads_what_manifests_say() {
        assert_eq!(read(&[("cpu", "500m"), ("memory", "1Gi")]), Ok(None));
        assert_eq!(read(&[("gpuzone.dev/gpu", "0")]), Ok(None));
        let whole = read(&[("gpuzone.dev/gpu", "1")]).unwrap().unwrap();
        assert_eq!((whole.gpus, whole.memory, whole.share), (GpuCount::ONE, None, None));
        let part = read(&[
            ("gpuzone.dev/gpu", "2"),
            ("gpuzone.dev/memory-mib", "8Ki"),
            ("gpuzone.dev/share", "50"),
        ]);
        let part = part.unwrap().unwrap();
        assert_eq!(part.memory, Some(MemoryAsk::Bytes(MemoryBytes::gib(8))));
        let half = read(&[("gpuzone.dev/gpu", "1"), ("gpuzone.dev/memory-percent", "50")]);
        let half_of = ComputeShare::new(50).unwrap();
        assert_eq!(half.unwrap().unwrap().memory, Some(MemoryAsk::Percent(half_of)));
        assert_eq!(part.share.map(ComputeShare::percent), Some(50));
    }

    #[test]
    fn whole_gpus_and_instances_are_counted_and_nothing_else() {
        let whole = read(&[("gpuzone.dev/passthrough", "2")]).unwrap().unwrap();
        assert_eq!((whole.handed, whole.gpus.get()), (Handed::Passthrough, 2));
        let mig = read(&[("gpuzone.dev/mig-1g.10gb", "1")]).unwrap().unwrap();
        assert_eq!(mig.handed, Handed::Mig("1g.10gb".parse().unwrap()));
        let vgpu = read(&[("gpuzone.dev/vgpu-nvidia-592", "1")]).unwrap().unwrap();
        assert_eq!(vgpu.handed, Handed::Vgpu("nvidia-592".parse().unwrap()));
        assert_eq!(vgpu.handed.exposure(), Exposure::Vgpu);
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[("gpuzone.dev/vgpu-a", "2")], "a container gets one vGPU"),
            (&[("gpuzone.dev/vgpu-a", "1"), ("gpuzone.dev/gpu", "1")], "in one way"),
            (&[("gpuzone.dev/passthrough", "1"), ("gpuzone.dev/gpu", "1")], "in one way"),
            (&[("gpuzone.dev/mig-1g.10gb", "1"), ("gpuzone.dev/mig-2g.20gb", "1")], "in one way"),
            (&[("gpuzone.dev/passthrough", "1"), ("gpuzone.dev/share", "5")], "no parts"),
            (&[("gpuzone.dev/mig-1g.10gb", "2")], "one in each container"),
            (&[("gpuzone.dev/mig-huge", "1")], "'huge' is no MIG profile"),
            (&[("gpuzone.dev/passthrough", "all")], "not a whole number"),
        ];
        for (limits, part) in cases {
            let error = read(limits).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let (gpu, memory, share) =
            (DEFAULT_GPU_RESOURCE, DEFAULT_MEMORY_RESOURCE, DEFAULT_SHARE_RESOURCE);
        let percent = DEFAULT_MEMORY_PERCENT_RESOURCE;
        let cases: [(&[(&str, &str)], &str); 10] = [
            (&[(gpu, "1"), (memory, "1"), (percent, "1")], "keep one of them"),
            (&[(gpu, "1"), (percent, "101")], "memory-percent: "),
            (&[(percent, "50")], "add gpuzone.dev/gpu: 1"),
            (&[(gpu, "half")], "not a whole number"),
            (&[(gpu, "500m")], "not a whole number"),
            (&[(gpu, "65")], "not a number of GPUs"),
            (&[(gpu, "1"), (share, "101")], "share '101'"),
            (&[(gpu, "1"), (memory, "9e15")], "more than any GPU"),
            (&[(memory, "1024")], "add gpuzone.dev/gpu: 1"),
            (&[(gpu, "99999999999999999999")], "not a whole number"),
        ];
        for (limits, part) in cases {
            let error = read(limits).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = read(&[(DEFAULT_GPU_RESOURCE, &text), (DEFAULT_SHARE_RESOURCE, &text)]);
        }

        #[test]
        fn a_plain_number_is_itself(number: u64) {
            prop_assert_eq!(whole(&number.to_string()), Some(number));
        }
    }
}
