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
/// Label: pods of one namespace with equal values start together or not at all.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";
/// Annotation: how many pods a group has.
pub const POD_GROUP_SIZE_ANNOTATION: &str = "gpuzone.dev/pod-group-size";

/// More pods than that, a group does not have.
const MOST_PODS: u32 = 1024;
/// And no more product names will do.
const MOST_MODELS: usize = 16;

/// Pods that start together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodGroup {
    /// What they are called together, within a namespace.
    pub name: String,
    /// How many they are.
    pub size: u32,
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
    pub group: Option<PodGroup>,
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
    /// A group without a size, or with one that cannot be.
    #[error(
        "{POD_GROUP_LABEL} says that the pod is one of a group, so {POD_GROUP_SIZE_ANNOTATION} has to say how many those are, 1 to {MOST_PODS}"
    )]
    Group,
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
            let size = size.and_then(|size| size.trim().parse().ok());
            let size = size.filter(|size| (1..=MOST_PODS).contains(size));
            Ok(PodGroup { name: name.clone(), size: size.ok_or(TermsError::Group)? })
        });
        let (models, group) = (models.unwrap_or_default(), group.transpose()?);
        Ok(Self { models, topology, policy, group })
    }
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
        assert_eq!(said.group, Some(PodGroup { name: "train".into(), size: 8 }));
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
        for size in ["", "0", "1025", "many"] {
            let said = read(&[(POD_GROUP_SIZE_ANNOTATION, size)], Some("g"));
            assert_eq!(said, Err(TermsError::Group), "{size}");
        }
        assert_eq!(read(&[], Some("g")), Err(TermsError::Group));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}") {
            for key in [TOPOLOGY_ANNOTATION, POLICY_ANNOTATION, MODEL_ANNOTATION] {
                if let Err(error) = read(&[(key, &text)], Some(&text)) {
                    prop_assert!(error.to_string().len() < 600);
                }
            }
        }
    }
}
