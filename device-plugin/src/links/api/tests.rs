use super::*;

fn pod(spec: serde_json::Value, status: serde_json::Value) -> Pod {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "train-0", "namespace": "team", "uid": "uid-1",
            "labels": { TENANT_LABEL: "victim" },
            "annotations": { PLACEMENT_ANNOTATION: "text" },
        },
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn seen(spec: serde_json::Value, status: serde_json::Value) -> PodView {
    view(&pod(spec, status), &"gpuzone.dev/gpu".parse().unwrap()).unwrap()
}

#[test]
fn containers_are_told_by_what_becomes_of_their_slots() {
    let limits = |n: &str| serde_json::json!({ "limits": { "gpuzone.dev/gpu": n, "cpu": "1" } });
    let spec = serde_json::json!({
        "nodeName": "gpu-1",
        "initContainers": [
            { "name": "fetch", "resources": limits("2") },
            { "name": "side", "restartPolicy": "Always", "resources": limits("1") },
        ],
        "containers": [{ "name": "train", "resources": limits("1") }, { "name": "log" }],
    });
    let status = serde_json::json!({
        "phase": "Pending",
        "initContainerStatuses": [
            { "name": "fetch", "state": { "terminated": { "exitCode": 0 } },
              "image": "", "imageID": "", "ready": true, "restartCount": 0 },
            { "name": "side", "state": { "running": {} },
              "image": "", "imageID": "", "ready": true, "restartCount": 0 },
        ],
    });
    let view = seen(spec, status);
    let told: Vec<_> =
        view.containers.iter().map(|c| (c.name.as_str(), c.kind, c.slots, c.running)).collect();
    let lasting = ContainerKind::Lasting;
    assert_eq!(
        told,
        [
            ("fetch", ContainerKind::Init { done: true }, 2, false),
            ("side", lasting, 1, true),
            ("train", lasting, 1, false),
            ("log", lasting, 0, false),
        ]
    );
    assert_eq!((view.node.as_deref(), view.placement.as_deref()), (Some("gpu-1"), Some("text")));
    assert!(!view.ended);
}

/// A controller may declare a pod of an unreachable node failed while its containers run on.
#[test]
fn a_pod_is_over_when_none_of_its_containers_runs() {
    let spec = || serde_json::json!({ "containers": [{ "name": "train" }] });
    let container = |state: serde_json::Value| {
        serde_json::json!({ "name": "train", "state": state,
            "image": "", "imageID": "", "ready": false, "restartCount": 0 })
    };
    let ended = |phase: &str, state: serde_json::Value| {
        let status = serde_json::json!({ "phase": phase, "containerStatuses": [container(state)] });
        seen(spec(), status).ended
    };
    let (running, done) = (
        serde_json::json!({ "running": {} }),
        serde_json::json!({ "terminated": { "exitCode": 1 } }),
    );
    assert!(ended("Failed", done.clone()));
    assert!(!ended("Failed", running.clone()));
    assert!(!ended("Running", done));
    assert!(!ended("Running", running));
    assert!(seen(spec(), serde_json::json!({ "phase": "Failed" })).ended, "refused at admission");
}
