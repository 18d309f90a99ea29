use gpuzone_api::kubernetes::{PLACEMENT_ANNOTATION, TENANT_LABEL};
use http::{Request, Response, StatusCode};
use kube::client::Body;
use tower_test::mock;

use super::*;
use crate::claim::ContainerKind;

type Server = mock::Handle<Request<Body>, Response<Body>>;

/// An API server that does what the test says, one answer after the other.
fn scripted() -> (ApiLink, Server) {
    let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let resources = Resources::One("gpuzone.dev/gpu".parse().unwrap());
    (ApiLink::new(client, "gpu-1".parse().unwrap(), resources, WithoutQuota::Refuse), server)
}

async fn answer(server: &mut Server, code: u16, body: serde_json::Value) -> String {
    let (request, send) = server.next_request().await.expect("a request");
    let response = Response::builder().status(StatusCode::from_u16(code).unwrap());
    send.send_response(response.body(Body::from(body.to_string().into_bytes())).unwrap());
    request.uri().to_string()
}

fn failure(code: u16, reason: &str) -> serde_json::Value {
    serde_json::json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": format!("{reason} it is"), "code": code })
}

#[tokio::test]
async fn a_pod_that_is_not_there_is_none_and_no_answer_is_an_error() {
    let (api, mut server) = scripted();
    let name = PodName { namespace: "team".into(), name: "train-0".into() };
    let (found, asked) =
        tokio::join!(api.pod(&name), answer(&mut server, 404, failure(404, "NotFound")));
    assert_eq!(found.unwrap(), None);
    assert_eq!(asked, "/api/v1/namespaces/team/pods/train-0");

    let (found, _) =
        tokio::join!(api.pod(&name), answer(&mut server, 403, failure(403, "Forbidden")));
    let said = found.unwrap_err().to_string();
    assert!(said.contains("does not let the device plugin get pods"), "{said}");
    assert!(said.contains("Forbidden it is"), "{said}");

    let (found, _) =
        tokio::join!(api.pod(&name), answer(&mut server, 500, failure(500, "InternalError")));
    assert!(found.unwrap_err().to_string().contains("it is tried again"));
}

#[tokio::test]
async fn a_broken_list_is_no_list() {
    let (api, mut server) = scripted();
    let list = serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {},
        "items": [{ "metadata": { "name": "a", "namespace": "n", "uid": "u" }, "spec": null }] });
    let (pods, asked) = tokio::join!(api.pods(), answer(&mut server, 200, list));
    assert_eq!(pods.unwrap().len(), 1);
    assert!(asked.contains("fieldSelector=spec.nodeName%3Dgpu-1"), "{asked}");
    assert!(!asked.contains("resourceVersion"), "what is, not what is remembered: {asked}");
    let half = serde_json::json!({ "kind": "PodList", "items": 7 });
    let (pods, _) = tokio::join!(api.pods(), answer(&mut server, 200, half));
    assert!(pods.is_err());
    let (pods, _) =
        tokio::join!(api.pods(), answer(&mut server, 503, failure(503, "ServiceUnavailable")));
    assert!(pods.is_err());
}

#[tokio::test]
async fn the_tenant_is_read_from_the_namespace() {
    let (api, mut server) = scripted();
    let labelled = serde_json::json!({ "kind": "Namespace", "apiVersion": "v1",
        "metadata": { "name": "team", "labels": { TENANT_LABEL: "acme" } } });
    let (labels, asked) = tokio::join!(api.labels("team"), answer(&mut server, 200, labelled));
    assert_eq!(labels.unwrap().get(TENANT_LABEL).map(String::as_str), Some("acme"));
    assert_eq!(asked, "/api/v1/namespaces/team");
    let (labels, _) =
        tokio::join!(api.labels("team"), answer(&mut server, 404, failure(404, "NotFound")));
    assert!(labels.is_err(), "no namespace is no tenant");
}

#[tokio::test]
async fn without_quotas_that_are_known_and_hold_nothing_starts() {
    let (api, mut server) = scripted();
    let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    let quotas = |selector: serde_json::Value| {
        serde_json::json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": [
            { "apiVersion": "gpuzone.dev/v1alpha1", "kind": "GpuQuota", "metadata": { "name": "q" },
              "spec": { "namespaceSelector": selector, "limits": { "gpus": 1 } } }] })
    };
    let (held, asked) = tokio::join!(
        api.quotas("team", &labels),
        answer(&mut server, 200, quotas(serde_json::json!({})))
    );
    assert_eq!(held.unwrap()[0].limits.gpus, Some(1));
    assert!(asked.starts_with("/apis/gpuzone.dev/v1alpha1/gpuquotas"), "{asked}");
    let other = serde_json::json!({ "matchLabels": { "team": "b" } });
    for (code, body, said) in [
        (200, quotas(other), "no GpuQuota holds for the namespace 'team'"),
        (403, failure(403, "Forbidden"), "does not let the device plugin list gpuquotas"),
        (404, failure(404, "NotFound"), "refuses to list gpuquotas (code 404): NotFound it is"),
        (422, failure(422, "Invalid"), "refuses to list gpuquotas (code 422): Invalid it is"),
        (429, failure(429, "TooManyRequests"), "does not answer"),
        (503, failure(503, "ServiceUnavailable"), "does not answer"),
    ] {
        let (held, _) = tokio::join!(api.quotas("team", &labels), answer(&mut server, code, body));
        let error = held.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

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
    view(&pod(spec, status), &Resources::One("gpuzone.dev/gpu".parse().unwrap())).unwrap()
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
