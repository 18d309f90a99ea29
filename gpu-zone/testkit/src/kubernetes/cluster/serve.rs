use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use futures::stream;
use serde_json::{Value, json};

use super::store::{Event, Refused};
use super::{BindFault, Shared};

/// What an address names.
struct Target {
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

impl Target {
    fn key(&self) -> Option<String> {
        let name = self.name.as_ref()?;
        Some(match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.clone(),
        })
    }
}

/// `/api/v1/pods`, `/api/v1/namespaces/team/pods/a/binding`, `/apis/gpuzone.dev/v1alpha1/gpunodes`.
fn target(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let skip = match *parts.first()? {
        "api" => 2,
        "apis" => 3,
        _ => return None,
    };
    parts = parts.get(skip..)?.to_vec();
    let namespace = (parts.first() == Some(&"namespaces") && parts.len() > 2).then(|| {
        let namespace = parts.remove(1);
        parts.remove(0);
        namespace.to_owned()
    });
    let text = |at: usize| parts.get(at).map(|part| (*part).to_owned());
    Some(Target { plural: text(0)?, namespace, name: text(1), sub: text(2) })
}

fn refuse((code, message): Refused) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code });
    (StatusCode::from_u16(code).unwrap_or_default(), Json(body)).into_response()
}

pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let delay = shared.lock().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if shared.lock().away {
        return refuse((503, "etcd is away".into()));
    }
    let Some(target) = target(uri.path()) else {
        return refuse((404, "no such address".into()));
    };
    if shared.lock().withheld.contains(&target.plural) {
        return refuse((404, "the server could not find the requested resource".into()));
    }
    let written: Value = serde_json::from_slice(&body).unwrap_or_default();
    match (method, target.key()) {
        (Method::GET, None) if query.get("watch").is_some_and(|watch| watch != "false") => {
            watch(shared, target, &query)
        }
        (Method::GET, None) => list(&shared, &target, &query),
        (Method::GET, Some(key)) => {
            let found = shared.lock().get(&target.plural, &key).cloned();
            let missing = || (404, format!("{} \"{key}\" not found", target.plural));
            found.map_or_else(|| refuse(missing()), |object| Json(&*object).into_response())
        }
        (Method::POST, Some(key)) if target.sub.as_deref() == Some("binding") => {
            bind(&shared, &key, &written, deadline(&query)).await
        }
        (Method::POST, Some(key)) if target.sub.as_deref() == Some("eviction") => {
            evict(&shared, &key, &written, query.contains_key("dryRun"))
        }
        (Method::POST, _) => {
            let mut object = written;
            if let Some(namespace) = &target.namespace {
                object["metadata"]["namespace"] = json!(namespace);
            }
            write(&shared, "create", &target, |store| store.create(&target.plural, object))
        }
        (Method::PUT, Some(_)) => {
            write(&shared, "update", &target, |store| store.replace(&target.plural, written))
        }
        (Method::PATCH, Some(key)) => {
            let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
            let apply = kind.is_some_and(|kind| kind.contains("apply-patch"));
            let status = target.sub.as_deref() == Some("status");
            // Whoever applies what is not there creates it, and has to have the right to.
            let there = shared.lock().get(&target.plural, &key).is_some();
            if apply && !status && !there && !shared.gate.admits_of(&Method::POST, uri.path()) {
                return refuse((403, format!("cannot create {}", target.plural)));
            }
            let refused =
                shared.lock().unpatched.get_mut(&target.plural).and_then(VecDeque::pop_front);
            if let Some(code) = refused {
                return refuse((code, key));
            }
            write(&shared, "patch", &target, |store| {
                store.patch(&target.plural, &key, status, apply, &written)
            })
        }
        (Method::DELETE, Some(key)) => {
            let gone = shared.change(|store| store.delete(&target.plural, &key));
            gone.map_or_else(|| refuse((404, key)), |object| Json(&*object).into_response())
        }
        _ => refuse((405, "not served here".into())),
    }
}

fn write(
    shared: &Shared,
    verb: &str,
    target: &Target,
    change: impl FnOnce(&mut super::store::Store) -> Result<Arc<Value>, Refused>,
) -> Response {
    let written = shared.change(|store| {
        store.wrote(verb, &target.plural);
        change(store)
    });
    written.map_or_else(refuse, |object| Json(&*object).into_response())
}

/// When a request is given up, as whoever sent it says; a real API server's own word is 34 s.
fn deadline(query: &BTreeMap<String, String>) -> Duration {
    let said = query.get("timeout").and_then(|text| text.strip_suffix('s')?.parse().ok());
    Duration::from_secs(said.unwrap_or(34))
}

async fn bind(shared: &Arc<Shared>, key: &str, binding: &Value, deadline: Duration) -> Response {
    let fault = {
        let mut store = shared.lock();
        store.wrote("bind", "pods");
        store.longest = store.longest.max(deadline);
        store.faults.pop_front().unwrap_or(BindFault::None)
    };
    let lost = || refuse((500, "etcdserver: request timed out".into()));
    match fault {
        BindFault::Late(after) if after > deadline => lost(),
        BindFault::Slow(after) if after > deadline => {
            tokio::time::sleep(deadline).await;
            refuse((504, "request did not complete within requested timeout".into()))
        }
        BindFault::None => bound(shared, key, binding),
        BindFault::Refuse => lost(),
        BindFault::Forbid => {
            let said = "admission webhook \"policy.example.com\" denied the request";
            refuse((403, said.into()))
        }
        BindFault::LoseAnswer => {
            bound(shared, key, binding);
            lost()
        }
        BindFault::Late(after) => {
            let (shared, key, binding) = (Arc::clone(shared), key.to_owned(), binding.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                bound(&shared, &key, &binding);
            });
            lost()
        }
        BindFault::Slow(after) => {
            tokio::time::sleep(after).await;
            bound(shared, key, binding)
        }
    }
}

fn bound(shared: &Shared, key: &str, binding: &Value) -> Response {
    match shared.change(|store| store.bind(key, binding)) {
        Err(refused) => refuse(refused),
        Ok(()) => {
            let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
            (StatusCode::CREATED, Json(body)).into_response()
        }
    }
}

/// As the real one answers: 404, 409 for another UID, 429 where a budget keeps it. A pod that may
/// go is gone at once.
fn evict(shared: &Shared, key: &str, eviction: &Value, dry: bool) -> Response {
    let wanted = &eviction["deleteOptions"]["preconditions"]["uid"];
    let found = shared.lock().get("pods", key).cloned();
    let Some(found) = found else { return refuse((404, format!("pods \"{key}\" not found"))) };
    if !wanted.is_null() && found["metadata"]["uid"] != *wanted {
        return refuse((409, "Precondition failed: UID in precondition".into()));
    }
    if shared.lock().protected.contains(key) {
        return refuse((
            429,
            "Cannot evict pod as it would violate the pod's disruption budget.".into(),
        ));
    }
    if !dry {
        shared.change(|store| {
            store.wrote("evict", "pods");
            store.delete("pods", key);
        });
    }
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    (StatusCode::CREATED, Json(body)).into_response()
}

/// What a selector of fields lets through; only that by a pod's node is known.
fn selected(object: &Value, target: &Target, query: &BTreeMap<String, String>) -> bool {
    let of_namespace = target
        .namespace
        .as_ref()
        .is_none_or(|namespace| object["metadata"]["namespace"] == namespace.as_str());
    let node = query.get("fieldSelector").and_then(|text| text.strip_prefix("spec.nodeName="));
    of_namespace && node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

fn list(shared: &Shared, target: &Target, query: &BTreeMap<String, String>) -> Response {
    let store = shared.lock();
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let after = query.get("continue").cloned().unwrap_or_default();
    let (version, after) = after.split_once(' ').unwrap_or_default();
    let version = if version.is_empty() { store.version.to_string() } else { version.to_owned() };
    let from = (target.plural.clone(), after.to_owned());
    let all = store.objects.range(from..).take_while(|((plural, _), _)| *plural == target.plural);
    let all = all.filter(|((_, key), object)| {
        (after.is_empty() || key.as_str() > after) && selected(object, target, query)
    });
    let mut page: Vec<_> = all.take(limit.saturating_add(1)).collect();
    let more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| more).map(|((_, key), _)| format!("{version} {key}"));
    let items: Vec<&Value> = page.iter().map(|(_, object)| &***object).collect();
    Json(json!({ "kind": "List", "apiVersion": "v1",
        "metadata": { "resourceVersion": version, "continue": next.unwrap_or_default() },
        "items": items }))
    .into_response()
}

fn watch(shared: Arc<Shared>, target: Target, query: &BTreeMap<String, String>) -> Response {
    let from = query.get("resourceVersion").and_then(|version| version.parse().ok());
    let from: u64 = from.unwrap_or_else(|| shared.lock().version);
    let (query, changes) = (query.clone(), shared.changes.subscribe());
    let state = (shared, target, query, changes, from);
    let lines = stream::unfold(state, |(shared, target, query, mut changes, from)| async move {
        loop {
            let (lines, version, away) = {
                let store = shared.lock();
                let start = store.log.partition_point(|event| event.version <= from);
                let new = store.log.get(start..).unwrap_or_default().iter();
                let new = new.filter(|event| event.plural == target.plural);
                let new = new.filter(|event| selected(&event.object, &target, &query));
                let away = store.away || store.withheld.contains(&target.plural);
                (new.map(line).collect::<String>(), store.version, away)
            };
            if away {
                return None;
            }
            if !lines.is_empty() {
                let state = (shared, target, query, changes, version);
                return Some((Ok::<_, Infallible>(lines), state));
            }
            // Nobody changes anything any more when the server is gone.
            changes.changed().await.ok()?;
        }
    });
    Body::from_stream(lines).into_response()
}

/// The type first, as the real one writes it: who reads it knows then what the object is.
fn line(event: &Event) -> String {
    format!("{{\"type\":\"{}\",\"object\":{}}}\n", event.kind, event.object)
}
