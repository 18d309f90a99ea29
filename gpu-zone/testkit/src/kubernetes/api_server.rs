mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures::StreamExt;
use gpuzone_api::kubernetes::Access;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::BroadcastStream;

use super::access::{self, Gate};
use super::{ContainerKind, ContainerState, Pod, Used};
use crate::HarnessError;

/// A small API server: pods and namespaces, by name, as a list, and as a watch. Dropping it ends
/// it.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    server: JoinHandle<()>,
    port: u16,
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    objects: Mutex<Objects>,
    events: broadcast::Sender<Value>,
}

#[derive(Debug, Default)]
struct Objects {
    version: u64,
    pods: BTreeMap<(String, String), Value>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    patched: BTreeMap<String, Value>,
    quotas: BTreeMap<String, Value>,
    patches: u64,
    node: node::NodeObjects,
    away: bool,
    holds_namespaces: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}

fn object(pod: &Pod, node: &str, phase: &str, states: &BTreeMap<String, ContainerState>) -> Value {
    let state = |name: &str| match states.get(name) {
        None => json!({}),
        Some(ContainerState::Running) => json!({ "running": {} }),
        Some(ContainerState::Done) => json!({ "terminated": { "exitCode": 0 } }),
    };
    let containers = |app: bool| {
        let of_kind = pod.containers.iter().filter(|c| (c.kind == ContainerKind::App) == app);
        let spec = of_kind.clone().map(|c| {
            let restart = (c.kind == ContainerKind::Sidecar).then_some("Always");
            let mut limits = json!({ "gpuzone.dev/gpu": c.devices.to_string() });
            for (resource, count) in &c.others {
                limits[resource] = json!(count.to_string());
            }
            json!({ "name": c.name, "restartPolicy": restart, "resources": { "limits": limits } })
        });
        let status = of_kind.map(|c| {
            let state = state(&c.name);
            let ready = state.get("running").is_some();
            json!({ "name": c.name, "state": state, "image": "", "imageID": "",
                "ready": ready, "restartCount": 0 })
        });
        (spec.collect::<Vec<Value>>(), status.collect::<Vec<Value>>())
    };
    let ((apps, app_statuses), (inits, init_statuses)) = (containers(true), containers(false));
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
            "annotations": pod.annotations,
        },
        "spec": { "nodeName": node, "containers": apps, "initContainers": inits },
        "status": { "phase": phase, "containerStatuses": app_statuses,
            "initContainerStatuses": init_statuses },
    })
}

impl ApiServer {
    /// Starts one without any object.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> Result<Self, HarnessError> {
        let (events, _) = broadcast::channel(1024);
        let shared = Arc::new(Shared { gate: Arc::default(), objects: Mutex::default(), events });
        let router = Router::new()
            .route("/api/v1/pods", get(list_pods))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(get_pod))
            .route("/api/v1/namespaces/{namespace}", get(get_namespace))
            .route("/apis/gpuzone.dev/v1alpha1/{*rest}", get(get_custom).patch(patch))
            .merge(node::routes())
            .with_state(Arc::clone(&shared));
        let gate = Arc::clone(&shared.gate);
        let check = axum::middleware::from_fn_with_state(gate, access::check);
        let router = router.layer(check);
        let failed = || HarnessError::io("cannot serve an API server's stand-in");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(failed())?;
        let port = listener.local_addr().map_err(failed())?.port();
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { shared, server, port })
    }

    /// Writes a kubeconfig for it into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf, HarnessError> {
        let path = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test",
                "cluster": { "server": format!("http://127.0.0.1:{}", self.port) } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": {} }],
        });
        std::fs::write(&path, config.to_string())
            .map_err(HarnessError::io(format!("cannot write {}", path.display())))?;
        Ok(path)
    }

    /// Refuses, from now on, what these tables do not allow.
    pub fn allow_only(&self, role: &[Access]) {
        self.shared.gate.allow_only(role);
    }

    /// What was done so far, refused or not.
    pub fn used(&self) -> BTreeSet<Used> {
        self.shared.gate.used()
    }

    /// Creates a pod, or changes it. If it is running, all its lasting containers are.
    pub fn put(&self, pod: &Pod, node: &str, phase: &str, running: bool) {
        let lasting = pod.containers.iter().filter(|c| running && c.kind != ContainerKind::Init);
        let states = lasting.map(|c| (c.name.clone(), ContainerState::Running)).collect();
        self.put_states(pod, node, phase, &states);
    }

    /// The same with the state of each container that has one.
    pub fn put_states(
        &self,
        pod: &Pod,
        node: &str,
        phase: &str,
        states: &BTreeMap<String, ContainerState>,
    ) {
        let mut objects = self.shared.lock();
        objects.namespaces.entry(pod.namespace.clone()).or_default();
        objects.version += 1;
        let mut object = object(pod, node, phase, states);
        object["metadata"]["resourceVersion"] = json!(objects.version.to_string());
        let key = (pod.namespace.clone(), pod.name.clone());
        let known = objects.pods.insert(key, object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        // Nobody may be watching.
        let _ = self.shared.events.send(json!({ "type": kind, "object": object }));
    }

    /// Deletes a pod, if it is the one of that name.
    pub fn delete(&self, pod: &Pod) {
        let mut objects = self.shared.lock();
        let key = (pod.namespace.clone(), pod.name.clone());
        if objects.pods.get(&key).is_some_and(|found| found["metadata"]["uid"] == pod.uid) {
            objects.version += 1;
            if let Some(object) = objects.pods.remove(&key) {
                let _ = self.shared.events.send(json!({ "type": "DELETED", "object": object }));
            }
        }
    }

    /// Labels a namespace.
    pub fn label(&self, namespace: &str, key: &str, value: &str) {
        let mut objects = self.shared.lock();
        let labels = objects.namespaces.entry(namespace.into()).or_default();
        labels.insert(key.into(), value.into());
    }

    /// Puts a `GpuQuota` of that name and spec in its place; `None` removes it.
    pub fn put_quota(&self, name: &str, spec: Option<Value>) {
        let mut objects = self.shared.lock();
        match spec {
            Some(spec) => {
                let object = json!({ "apiVersion": "gpuzone.dev/v1alpha1", "kind": "GpuQuota",
                    "metadata": { "name": name }, "spec": spec });
                objects.quotas.insert(name.to_owned(), object)
            }
            None => objects.quotas.remove(name),
        };
    }

    /// Whether it answers nobody, from now on.
    pub fn set_away(&self, away: bool) {
        self.shared.lock().away = away;
        if away {
            // Watches end with it.
            let _ = self.shared.events.send(Value::Null);
        }
    }

    /// Whether it answers nobody about namespaces until this is taken back, from now on.
    pub fn hold_namespaces(&self, held: bool) {
        self.shared.lock().holds_namespaces = held;
    }

    /// How often anything was written by server-side apply.
    pub fn patches(&self) -> u64 {
        self.shared.lock().patches
    }

    /// What was last written to a path by server-side apply.
    pub fn patched(&self, path: &str) -> Option<Value> {
        self.shared.lock().patched.get(path).cloned()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Asked = State<Arc<Shared>>;

fn away(shared: &Shared) -> Option<Response> {
    let away = shared.lock().away;
    away.then(|| status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "etcd is away"))
}

async fn get_pod(
    State(shared): Asked,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
) -> Response {
    if let Some(away) = away(&shared) {
        return away;
    }
    let pod = shared.lock().pods.get(&(namespace, name.clone())).cloned();
    match pod {
        Some(pod) => Json(pod).into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound", &format!("pods {name:?} not found")),
    }
}

async fn get_namespace(State(shared): Asked, UrlPath(name): UrlPath<String>) -> Response {
    if let Some(away) = away(&shared) {
        return away;
    }
    while shared.lock().holds_namespaces {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let labels = shared.lock().namespaces.get(&name).cloned();
    match labels {
        Some(labels) => Json(json!({ "kind": "Namespace", "apiVersion": "v1",
            "metadata": { "name": name, "labels": labels } }))
        .into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound", "no such namespace"),
    }
}

async fn list_pods(
    State(shared): Asked,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    if let Some(away) = away(&shared) {
        return away;
    }
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    let Some(node) = selector.strip_prefix("spec.nodeName=").map(str::to_owned) else {
        return status(StatusCode::FORBIDDEN, "Forbidden", "only pods of one node may be listed");
    };
    let on_node = move |pod: &Value| pod["spec"]["nodeName"] == node;
    if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let events = BroadcastStream::new(shared.events.subscribe());
        let events = events.take_while(|event| {
            let goes_on = event.as_ref().is_ok_and(|event| !event.is_null());
            async move { goes_on }
        });
        let lines = events.filter_map(move |event| {
            let event = event.ok().filter(|event| on_node(&event["object"]));
            async move { event.map(|event| Ok::<_, Infallible>(format!("{event}\n"))) }
        });
        return Body::from_stream(lines).into_response();
    }
    let objects = shared.lock();
    let items: Vec<Value> = objects.pods.values().filter(|pod| on_node(pod)).cloned().collect();
    let version = objects.version.to_string();
    Json(json!({ "kind": "PodList", "apiVersion": "v1",
        "metadata": { "resourceVersion": version }, "items": items }))
    .into_response()
}

async fn get_custom(State(shared): Asked, UrlPath(path): UrlPath<String>) -> Response {
    if let Some(away) = away(&shared) {
        return away;
    }
    let objects = shared.lock();
    if path == "gpuquotas" {
        let items: Vec<&Value> = objects.quotas.values().collect();
        return Json(json!({ "kind": "GpuQuotaList", "apiVersion": "gpuzone.dev/v1alpha1",
            "metadata": {}, "items": items }))
        .into_response();
    }
    // With its status, if that was written.
    let written = objects.patched.get(&format!("{path}/status")).or(objects.patched.get(&path));
    match written {
        Some(object) => Json(object).into_response(),
        None => status(StatusCode::NOT_FOUND, "NotFound", "no such object"),
    }
}

async fn patch(
    State(shared): Asked,
    UrlPath(path): UrlPath<String>,
    body: axum::body::Bytes,
) -> Response {
    if let Some(away) = away(&shared) {
        return away;
    }
    // Server-side apply's type is YAML's, of which JSON is a part.
    let Ok(object) = serde_json::from_slice::<Value>(&body) else {
        return status(StatusCode::BAD_REQUEST, "BadRequest", "only JSON is read here");
    };
    let mut objects = shared.lock();
    // Whoever applies what is not there creates it, and has to have the right to.
    if !path.ends_with("/status") && !objects.patched.contains_key(&path) {
        let address = format!("/apis/gpuzone.dev/v1alpha1/{path}");
        if !shared.gate.admits_of(&axum::http::Method::POST, &address) {
            return status(StatusCode::FORBIDDEN, "Forbidden", "cannot create it");
        }
    }
    objects.patches += 1;
    objects.patched.insert(path, object.clone());
    Json(object).into_response()
}
