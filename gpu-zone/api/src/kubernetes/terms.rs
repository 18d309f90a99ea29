//! What a pod says of all its containers' GPUs, in its annotations and labels.

use std::collections::BTreeMap;

use gpuzone_core::engine::{Policy, Topology};

use super::names::shorten;

/// Annotation: product names of GPUs that will do, as `GpuNode` objects have them, with commas
/// between.
pub const MODEL_ANNOTATION: &str = "gpuzone.dev/model";
/// Annotation: how near to each other the GPUs of a container must be.
pub const TOPOLOGY_ANNOTATION: &str = "gpuzone.dev/topology";
/// Annotation: what its placement is to be good for, where that is not the cluster's choice.
pub const POLICY_ANNOTATION: &str = "gpuzone.dev/policy";
/// Label: pods of one namespace with equal values start together or not at all. It is Coscheduling's,
/// whose `PodGroup` of that name says how many those are.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";
/// Annotation: how many pods a group has, where no `PodGroup` says so.
pub const POD_GROUP_SIZE_ANNOTATION: &str = "gpuzone.dev/pod-group-size";

/// More pods than that, a group does not have.
const MOST_PODS: u32 = 1024;
/// And no more product names will do.
const MOST_MODELS: usize = 16;

/// How many pods start together: 1 to 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSize(u32);

impl GroupSize {
    /// The size, if it can be one.
    pub fn new(pods: i64) -> Option<Self> {
        u32::try_from(pods).ok().filter(|pods| (1..=MOST_PODS).contains(pods)).map(Self)
    }

    /// As a number of pods.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for GroupSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a pod says of those that it starts together with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupTerms {
    /// What they are called together, within a namespace.
    pub name: String,
    /// How many they are, if the pod says that.
    pub size: Option<GroupSize>,
}

/// What a pod says of all its containers' GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTerms {
    /// Product names that will do; empty is any.
    pub models: Vec<String>,
    /// How near to each other.
    pub topology: Topology,
    /// What the placement is to be good for.
    pub policy: Option<Policy>,
    /// Those that it starts together with.
    pub group: Option<GroupTerms>,
}

/// An annotation that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Neither near nor far.
    #[error("{TOPOLOGY_ANNOTATION}: '{}' is none of any, same-numa and nvlink", shorten(.0))]
    Topology(String),
    /// No such policy.
    #[error("{POLICY_ANNOTATION}: '{}' is none of pack, spread and fragmentation", shorten(.0))]
    Policy(String),
    /// No name of a product, or too many.
    #[error(
        "{MODEL_ANNOTATION}: '{}' is not 1 to {MOST_MODELS} product names with commas between", shorten(.0)
    )]
    Models(String),
    /// No size that a group can have.
    #[error("{POD_GROUP_SIZE_ANNOTATION}: '{}' is not a number of pods, 1 to {MOST_PODS}", shorten(.0))]
    GroupSize(String),
}

impl PodTerms {
    /// What annotations and labels say.
    ///
    /// # Errors
    /// When one of ours means nothing: somebody meant something else.
    pub fn read(
        annotations: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, TermsError> {
        let topology = match annotations.get(TOPOLOGY_ANNOTATION).map(|text| text.trim()) {
            None | Some("any") => Topology::Any,
            Some("same-numa") => Topology::SameNuma,
            Some("nvlink") => Topology::NvLink,
            Some(other) => return Err(TermsError::Topology(other.to_owned())),
        };
        let policy = annotations.get(POLICY_ANNOTATION);
        let policy = policy
            .map(|text| text.parse().map_err(|_| TermsError::Policy(text.clone())))
            .transpose()?;
        let models = annotations.get(MODEL_ANNOTATION).map(|text| models(text)).transpose()?;
        let group = labels.get(POD_GROUP_LABEL).map(|name| {
            let size = annotations.get(POD_GROUP_SIZE_ANNOTATION);
            Ok(GroupTerms { name: name.clone(), size: size.map(|text| size_of(text)).transpose()? })
        });
        let (models, group) = (models.unwrap_or_default(), group.transpose()?);
        Ok(Self { models, topology, policy, group })
    }
}

fn size_of(text: &str) -> Result<GroupSize, TermsError> {
    let size = text.trim().parse().ok().and_then(GroupSize::new);
    size.ok_or_else(|| TermsError::GroupSize(text.to_owned()))
}

fn models(text: &str) -> Result<Vec<String>, TermsError> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let fine = |name: &String| !name.is_empty() && name.len() <= 128;
    if names.len() > MOST_MODELS || !names.iter().all(fine) {
        return Err(TermsError::Models(text.to_owned()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(annotations: &[(&str, &str)], group: Option<&str>) -> Result<PodTerms, TermsError> {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let labels: Vec<_> = group.iter().map(|group| (POD_GROUP_LABEL, *group)).collect();
        PodTerms::read(&map(annotations), &map(&labels))
    }

    #[test]
    fn reads_what_pods_say() {
        assert_eq!(read(&[], None), Ok(PodTerms::default()));
        let said = read(
            &[
                (MODEL_ANNOTATION, "NVIDIA H100 80GB HBM3, NVIDIA A100"),
                (TOPOLOGY_ANNOTATION, "nvlink"),
                (POLICY_ANNOTATION, "pack"),
                (POD_GROUP_SIZE_ANNOTATION, "8"),
            ],
            Some("train"),
        )
        .unwrap();
        assert_eq!(said.models, ["NVIDIA H100 80GB HBM3", "NVIDIA A100"]);
        assert_eq!((said.topology, said.policy), (Topology::NvLink, Some(Policy::Pack)));
        let size = GroupSize::new(8);
        assert_eq!(said.group, Some(GroupTerms { name: "train".into(), size }));
        let said = read(&[], Some("train")).unwrap();
        assert_eq!(said.group, Some(GroupTerms { name: "train".into(), size: None }));
    }

    #[test]
    fn says_what_is_wrong() {
        for (key, value) in [
            (TOPOLOGY_ANNOTATION, "near"),
            (POLICY_ANNOTATION, "best"),
            (MODEL_ANNOTATION, ""),
            (MODEL_ANNOTATION, "a,,b"),
        ] {
            let error = read(&[(key, value)], None).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
        for size in ["", "0", "-1", "1025", "many"] {
            let said = read(&[(POD_GROUP_SIZE_ANNOTATION, size)], Some("g"));
            assert_eq!(said, Err(TermsError::GroupSize(size.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            for key in [
                TOPOLOGY_ANNOTATION,
                POLICY_ANNOTATION,
                MODEL_ANNOTATION,
                POD_GROUP_SIZE_ANNOTATION,
            ] {
                if let Err(error) = read(&[(key, &text)], Some(&text)) {
                    prop_assert!(error.to_string().len() < 600);
                }
            }
        }
    }
}
