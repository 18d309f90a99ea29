use std::collections::BTreeMap;

use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes};
use proptest::prelude::*;

use super::*;

fn given(gpus: u8) -> Placement {
    let grant = |n| Grant {
        gpu: GpuUuid::from_bytes([n; 16]),
        memory: MemoryBytes::gib(8),
        share: ComputeShare::new(50).unwrap(),
    };
    Placement::of((0..gpus).map(grant).collect()).unwrap()
}

fn placement(node: &str, pod: &str, containers: &[(&str, u8)]) -> String {
    let containers: BTreeMap<ContainerName, Placement> =
        containers.iter().map(|(name, gpus)| (name.parse().unwrap(), given(*gpus))).collect();
    PodPlacement::new(node.parse().unwrap(), pod.parse().unwrap(), containers).unwrap().to_string()
}

fn container(name: &str, kind: ContainerKind, slots: usize) -> ContainerView {
    ContainerView { name: name.into(), kind, slots, running: false }
}

fn pod(placement: Option<String>) -> PodView {
    PodView {
        name: PodName { namespace: "team".into(), name: "train-0".into() },
        uid: "uid-1".parse().unwrap(),
        node: Some("gpu-1".into()),
        ended: false,
        placement,
        containers: vec![
            container("fetch", ContainerKind::Init { done: false }, 2),
            container("train", ContainerKind::Lasting, 1),
        ],
    }
}

fn ask(pod: &PodView, container: Option<&str>, slots: usize) -> Result<Claim, ClaimError> {
    claim(pod, None, &"gpu-1".parse().unwrap(), container, slots)
}

#[test]
fn a_placement_for_this_pod_on_this_node_is_a_claim() {
    let pod = pod(Some(placement("gpu-1", "uid-1", &[("train", 1), ("fetch", 2)])));
    let claim = ask(&pod, Some("train"), 1).unwrap();
    assert_eq!((claim.tenant.as_str(), claim.container.as_str()), ("team", "train"));
    assert_eq!(claim.placement, given(1));
    // Listed with no container of its own: an init container.
    assert_eq!(ask(&pod, None, 2).unwrap().container.as_str(), "fetch");
    let labelled = super::claim(&pod, Some("acme"), &"gpu-1".parse().unwrap(), Some("train"), 1);
    assert_eq!(labelled.unwrap().tenant.as_str(), "acme");
}

#[test]
fn every_refusal_says_what_to_do() {
    let good = || pod(Some(placement("gpu-1", "uid-1", &[("train", 1)])));
    let with = |text: &str| pod(Some(text.to_owned()));
    let mut over = good();
    over.ended = true;
    let elsewhere = PodView { node: Some("gpu-2".into()), ..good() };
    let cases = [
        (elsewhere, Some("train"), 1, "not on this node"),
        (pod(None), Some("train"), 1, "leave spec.nodeName out"),
        (with("{}"), Some("train"), 1, "not what the scheduler extender writes"),
        (with(r#"{"version":9}"#), Some("train"), 1, "to the same release"),
        (
            with(&placement("gpu-1", "uid-2", &[("train", 1)])),
            Some("train"),
            1,
            "made for another pod (uid-2)",
        ),
        (with(&placement("gpu-2", "uid-1", &[("train", 1)])), Some("train"), 1, "node gpu-2"),
        (good(), Some("other"), 1, "nothing for container other"),
        (good(), Some("../x"), 1, "nothing for container ../x"),
        (good(), None, 2, "any init container"),
        (good(), Some("train"), 3, "asks for 3 GPU(s) and its placement names 1"),
        (over, Some("train"), 1, "is over"),
    ];
    for (pod, container, slots, part) in cases {
        let error = ask(&pod, container, slots).unwrap_err().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
        assert!(error.contains("team/train-0"), "{error}");
    }
    let label = super::claim(&good(), Some(""), &"gpu-1".parse().unwrap(), Some("train"), 1);
    assert!(label.unwrap_err().to_string().contains("correct the namespace's label"));
}

/// A pod's own labels and annotations say nothing about its tenant.
#[test]
fn the_tenant_is_the_namespaces() {
    let text = placement("gpu-1", "uid-1", &[("train", 1)]);
    let forged = text.replacen('{', r#"{"tenant":"victim","#, 1);
    assert!(matches!(
        ask(&pod(Some(forged)), Some("train"), 1),
        Err(ClaimError::Unreadable { .. })
    ));
}

#[test]
fn init_containers_go_one_after_the_other() {
    let mut pod = pod(Some(placement("gpu-1", "uid-1", &[("a", 2), ("b", 2), ("train", 1)])));
    let init = |name, done| container(name, ContainerKind::Init { done }, 2);
    pod.containers = vec![init("a", true), init("b", false)];
    assert_eq!(ask(&pod, None, 2).unwrap().container.as_str(), "b");
    pod.containers = vec![init("a", false), init("b", false)];
    assert_eq!(ask(&pod, None, 2).unwrap().container.as_str(), "a");
}

proptest! {
    #[test]
    fn a_holders_name_reads_back(
        pod in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        container in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
    ) {
        let holder = PodHolder { pod: pod.parse().unwrap(), container: container.parse().unwrap() };
        let name: HolderName = holder.to_string().parse().unwrap();
        prop_assert_eq!(PodHolder::parse(&name), Some(holder));
    }

    #[test]
    fn any_annotation_is_answered(text in ".{0,100}") {
        prop_assert!(ask(&pod(Some(text)), Some("train"), 1).is_err());
    }
}
