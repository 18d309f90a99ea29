//! What a pod asks of GPUs: its containers' limits and its terms, as one demand.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::{
    ContainerName, ContainerRequest, Handed, InvalidName, PodTerms, RequestError, ResourceNames,
    TermsError,
};
use gpuzone_core::engine::{
    Amount, Demand, HostDemand, MemoryAsk, ModelSet, ModelTable, PodDemand, ShareMilli,
};
use gpuzone_core::{ComputeShare, GpuCount, mig_share};

/// What kind of container it is, as far as its GPUs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// It runs as long as the pod: an app container.
    App,
    /// An init container that runs on.
    Sidecar,
    /// An init container that ends before the app containers begin.
    Init,
}

/// A container's limits, as its spec has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLimits {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: ContainerKind,
    /// Its limits, as quantities.
    pub limits: BTreeMap<String, String>,
}

/// What one container gets an entry of the placement for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerAsk {
    /// Its name.
    pub container: ContainerName,
    /// In which way.
    pub handed: Handed,
    /// How many GPUs.
    pub gpus: GpuCount,
    /// How much of each.
    pub amount: Amount,
}

/// What a pod asks of GPUs. At least one container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// For each container that gets an entry.
    pub containers: Vec<ContainerAsk>,
    /// What holds for all of them.
    pub terms: PodTerms,
    /// What the pod asks of its host.
    pub host: HostDemand,
}

/// Why a pod's limits or annotations ask for nothing that can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// A container's limits.
    #[error("container {container}: {source}")]
    Request {
        /// Which.
        container: String,
        /// Why.
        source: RequestError,
    },
    /// A container's name, which no API server lets pass.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An annotation or label.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// An init container and the app container that takes over its slots cannot be compared.
    #[error(
        "init container {init} and container {app} use the same GPUs one after the other, so both have to ask in the same units: memory in MiB or in per cent, and a share in both or in neither"
    )]
    Units {
        /// The init container.
        init: ContainerName,
        /// The app container.
        app: ContainerName,
    },
}

impl Ask {
    /// What these containers ask for; `None` when none of them mentions a GPU.
    ///
    /// A plain init container ends before the app containers begin, and the kubelet gives its
    /// slots to the first of them that asks for any. Where both ask for as many GPUs, one entry
    /// serves both, as large as the larger of the two. Another init container has an entry of its
    /// own, and the node holds it as long as the pod.
    ///
    /// # Errors
    /// When something cannot be read or makes no sense; the error says what and where.
    pub fn read(
        names: &ResourceNames,
        containers: &[ContainerLimits],
        host: HostDemand,
        terms: impl FnOnce() -> Result<PodTerms, TermsError>,
    ) -> Result<Option<Self>, AskError> {
        let (mut lasting, mut inits): (Vec<ContainerAsk>, Vec<ContainerAsk>) = Default::default();
        let mut apps = Vec::new();
        for container in containers {
            let request =
                ContainerRequest::from_limits(names, &container.limits).map_err(|source| {
                    AskError::Request { container: container.name.clone(), source }
                })?;
            let Some(request) = request else { continue };
            let ask = ContainerAsk {
                container: container.name.parse()?,
                gpus: request.gpus,
                amount: amount(&request),
                handed: request.handed,
            };
            match container.kind {
                ContainerKind::Init => inits.push(ask),
                ContainerKind::Sidecar => lasting.push(ask),
                ContainerKind::App => {
                    apps.push(lasting.len());
                    lasting.push(ask);
                }
            }
        }
        if lasting.is_empty() && inits.is_empty() {
            return Ok(None);
        }
        // The kubelet counts each way by a resource of its own.
        let largest = |handed: &Handed| {
            inits.iter().filter(|init| init.handed == *handed).map(|init| init.gpus).max()
        };
        let largest: Vec<Option<GpuCount>> = inits.iter().map(|i| largest(&i.handed)).collect();
        for (init, largest_init) in inits.into_iter().zip(largest) {
            let same = |at: &&usize| lasting.get(**at).is_some_and(|a| a.handed == init.handed);
            let first_app = apps.iter().find(same).copied();
            let app = first_app.and_then(|at| lasting.get_mut(at));
            match app.filter(|app| app.gpus == init.gpus && largest_init == Some(init.gpus)) {
                Some(app) => {
                    app.amount = larger(app.amount, init.amount).ok_or_else(|| {
                        AskError::Units { init: init.container, app: app.container.clone() }
                    })?;
                }
                None => lasting.push(init),
            }
        }
        Ok(Some(Self { containers: lasting, terms: terms()?, host }))
    }

    /// The demand that it is for the placement engine, to choose and to prefer by.
    pub fn demand(&self, models: &ModelTable) -> PodDemand {
        PodDemand { host: self.host, ..self.gpu_demand(models) }
    }

    /// The same of GPUs alone, to refuse by: the host is kube-scheduler's to refuse.
    pub fn gpu_demand(&self, models: &ModelTable) -> PodDemand {
        let wanted = &self.terms.models;
        let demand = |ask: &ContainerAsk| Demand {
            models: match &ask.handed {
                Handed::Mig(profile) => instances_of(models, profile.as_str(), wanted),
                Handed::Vgpu(kind) => instances_of(models, kind.as_str(), wanted),
                Handed::Mediated | Handed::Passthrough if wanted.is_empty() => ModelSet::ANY,
                Handed::Mediated | Handed::Passthrough => {
                    models.set_of(wanted.iter().map(String::as_str))
                }
            },
            topology: self.terms.topology,
            exposure: ask.handed.exposure(),
            ..Demand::new(ask.gpus, ask.amount)
        };
        let containers = self.containers.iter().map(demand).collect();
        PodDemand { host: HostDemand::default(), containers }
    }

    /// How it is said in a sentence: `1 GPU with 24Gi`.
    pub fn sentence(&self) -> String {
        let each = self.containers.iter().map(|ask| {
            let gpus = if ask.gpus == GpuCount::ONE { "GPU" } else { "GPUs" };
            match &ask.handed {
                Handed::Mediated => {}
                Handed::Passthrough => return format!("{} {gpus} by passthrough", ask.gpus),
                Handed::Mig(profile) => return format!("a MIG instance {profile}"),
                Handed::Vgpu(kind) => return format!("a vGPU {kind}"),
            }
            match ask.amount {
                Amount::Whole => format!("{} whole {gpus}", ask.gpus),
                Amount::Part { memory, share } => {
                    let memory = match memory {
                        MemoryAsk::Bytes(bytes) => bytes.to_string(),
                        MemoryAsk::Percent(part) => format!("{part} of the memory"),
                    };
                    let share = share.map_or(String::new(), |share| {
                        format!(" and {}% of the time", share.get() / 10)
                    });
                    format!("{} {gpus} with {memory}{share}", ask.gpus)
                }
            }
        });
        each.collect::<Vec<_>>().join(", and ")
    }
}

/// What GPUs of a model are called in the engine's table as far as they are cut into instances of a
/// profile: those are devices of their own there. No product's name has such a character.
pub(crate) fn instance_class(model: &str, profile: &str) -> String {
    format!("{model}\u{1f}{profile}")
}

/// The instances of a profile, of these models or, without any, of all.
fn instances_of(models: &ModelTable, profile: &str, wanted: &[String]) -> ModelSet {
    let of = models.names().filter(|(name, _)| {
        name.split_once('\u{1f}').is_some_and(|(model, of)| {
            of == profile && (wanted.is_empty() || wanted.iter().any(|w| w == model))
        })
    });
    of.fold(ModelSet::NONE, |set, (_, class)| set.with(class))
}

/// The GPUs of a model, whole and in instances: what a quota on the model counts.
pub(crate) fn all_of(models: &ModelTable, model: &str) -> ModelSet {
    let of = models
        .names()
        .filter(|(name, _)| name.split_once('\u{1f}').map_or(*name, |(parent, _)| parent) == model);
    of.fold(ModelSet::NONE, |set, (_, class)| set.with(class))
}

fn amount(request: &ContainerRequest) -> Amount {
    if let Handed::Mig(profile) = &request.handed {
        let (memory, share) = (ComputeShare::WHOLE, mig_share(profile.slices()));
        return Amount::Part { memory: MemoryAsk::Percent(memory), share: Some(share.into()) };
    }
    match request.memory {
        // A whole GPU is whole: whatever share was asked for, nobody else gets in.
        None => Amount::Whole,
        Some(memory) => Amount::Part { memory, share: request.share.map(ShareMilli::from) },
    }
}

/// What is enough for both, one after the other; `None` where that depends on the GPU.
fn larger(a: Amount, b: Amount) -> Option<Amount> {
    let (a, b) = match (a, b) {
        (Amount::Whole, _) | (_, Amount::Whole) => return Some(Amount::Whole),
        (
            Amount::Part { memory, share },
            Amount::Part { memory: other_memory, share: other_share },
        ) => ((memory, share), (other_memory, other_share)),
    };
    let memory = match (a.0, b.0) {
        (MemoryAsk::Bytes(a), MemoryAsk::Bytes(b)) => MemoryAsk::Bytes(a.max(b)),
        (MemoryAsk::Percent(a), MemoryAsk::Percent(b)) => MemoryAsk::Percent(a.max(b)),
        (MemoryAsk::Bytes(_), MemoryAsk::Percent(_))
        | (MemoryAsk::Percent(_), MemoryAsk::Bytes(_)) => return None,
    };
    let share = match (a.1, b.1) {
        (None, None) => None,
        (Some(a), Some(b)) => Some(a.max(b)),
        (Some(_), None) | (None, Some(_)) => return None,
    };
    Some(Amount::Part { memory, share })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_core::MemoryBytes;

    fn container(
        name: &str,
        kind: ContainerKind,
        gpus: u32,
        memory: Option<u64>,
    ) -> ContainerLimits {
        let mut limits = BTreeMap::from([("gpuzone.dev/gpu".to_owned(), gpus.to_string())]);
        if let Some(mib) = memory {
            limits.insert("gpuzone.dev/memory-mib".into(), mib.to_string());
        }
        ContainerLimits { name: name.into(), kind, limits }
    }

    fn read(containers: &[ContainerLimits]) -> Result<Option<Ask>, AskError> {
        let terms = || Ok(PodTerms::default());
        Ask::read(&ResourceNames::defaults().unwrap(), containers, HostDemand::default(), terms)
    }

    #[test]
    fn an_init_container_counts_by_its_peak_where_an_app_takes_over_its_slots() {
        use ContainerKind::{App, Init, Sidecar};
        let ask = read(&[
            container("fetch", Init, 1, Some(4096)),
            container("proxy", Sidecar, 1, Some(512)),
            container("train", App, 1, Some(1024)),
        ]);
        let ask = ask.unwrap().unwrap();
        assert_eq!(ask.sentence(), "1 GPU with 512Mi, and 1 GPU with 4Gi");
        assert_eq!(ask.containers[1].container.as_str(), "train");
        // Another number of GPUs: an entry of its own.
        let ask = read(&[container("fetch", Init, 2, Some(64)), container("train", App, 1, None)]);
        assert_eq!(ask.unwrap().unwrap().sentence(), "1 whole GPU, and 2 GPUs with 64Mi");
        // The slots of the larger one are what the app takes over some of: both have entries.
        let ask = read(&[
            container("a", Init, 1, Some(64)),
            container("b", Init, 2, Some(64)),
            container("train", App, 1, Some(32)),
        ]);
        assert_eq!(ask.unwrap().unwrap().containers.len(), 3);
    }

    #[test]
    fn what_asks_for_nothing_is_none_and_what_makes_no_sense_is_said() {
        let plain = ContainerLimits {
            name: "web".into(),
            kind: ContainerKind::App,
            limits: BTreeMap::from([("cpu".into(), "1".into())]),
        };
        assert_eq!(read(&[plain]), Ok(None));
        let wrong = container("train", ContainerKind::App, 99, None);
        assert!(read(&[wrong]).unwrap_err().to_string().starts_with("container train: "));
        let mut percent = container("fetch", ContainerKind::Init, 1, None);
        percent.limits.insert("gpuzone.dev/memory-percent".into(), "50".into());
        let mixed = read(&[percent, container("train", ContainerKind::App, 1, Some(1))]);
        assert!(mixed.unwrap_err().to_string().contains("same units"));
    }

    #[test]
    fn whole_is_larger_than_any_part() {
        let share = ComputeShare::new(10).unwrap();
        let part =
            |gib, share| Amount::Part { memory: MemoryAsk::Bytes(MemoryBytes::gib(gib)), share };
        assert_eq!(larger(part(1, None), Amount::Whole), Some(Amount::Whole));
        assert_eq!(larger(part(1, None), part(2, None)), Some(part(2, None)));
        assert_eq!(larger(part(1, Some(share.into())), part(2, None)), None);
    }
}
