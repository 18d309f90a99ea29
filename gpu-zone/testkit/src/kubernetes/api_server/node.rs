//! Nodes, with the conditions that somebody applied, and the events that somebody told.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, patch, post};
use serde_json::{Value, json};

use super::{ApiServer, Asked, Shared, away, status};

/// What it knows of its one node.
#[derive(Debug, Default)]
pub(super) struct NodeObjects {
    conditions: Vec<Value>,
    writes: u64,
    events: Vec<Value>,
    denied: bool,
}

impl ApiServer {
    /// A condition of the node, as it was last applied.
    pub fn condition(&self, kind: &str) -> Option<Value> {
        let objects = self.shared.lock();
        objects.node.conditions.iter().find(|condition| condition["type"] == kind).cloned()
    }

    /// How often conditions were applied.
    pub fn condition_writes(&self) -> u64 {
        self.shared.lock().node.writes
    }

    /// All events, in the order in which they were first told.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().node.events.clone()
    }

    /// Whether whoever asks may write nothing about nodes and tell no events, from now on.
    pub fn deny_nodes(&self, denied: bool) {
        self.shared.lock().node.denied = denied;
    }
}

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/v1/nodes/{name}", get(get_node))
        .route("/api/v1/nodes/{name}/status", patch(apply_status))
        .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(create_event))
        .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}", patch(merge_event))
}

/// Why somebody gets no answer.
fn refusal(shared: &Shared) -> Option<Response> {
    let denied = shared.lock().node.denied;
    away(shared).or_else(|| {
        denied.then(|| status(StatusCode::FORBIDDEN, "Forbidden", "you may not do that"))
    })
}

async fn get_node(State(shared): Asked, UrlPath(name): UrlPath<String>) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let mut conditions = shared.lock().node.conditions.clone();
    conditions.push(json!({ "type": "Ready", "status": "True" }));
    Json(json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": name },
        "status": { "conditions": conditions } }))
    .into_response()
}

/// Server-side apply of conditions: of each type there is one.
async fn apply_status(
    State(shared): Asked,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
    body: axum::body::Bytes,
) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let object = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let applied = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let right = object["metadata"]["name"] == name && query.contains_key("fieldManager");
    if applied.is_empty() || !right {
        return status(StatusCode::BAD_REQUEST, "BadRequest", "no conditions of this node");
    }
    let mut objects = shared.lock();
    let node = &mut objects.node;
    node.writes += 1;
    for condition in applied {
        node.conditions.retain(|known| known["type"] != condition["type"]);
        node.conditions.push(condition);
    }
    Json(object).into_response()
}

async fn create_event(
    State(shared): Asked,
    UrlPath(namespace): UrlPath<String>,
    body: axum::body::Bytes,
) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let event = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    // What the real one asks of an event.
    let needed = ["action", "reason", "reportingController", "reportingInstance", "eventTime"];
    let lacks = needed.iter().find(|key| event[**key].as_str().is_none_or(str::is_empty));
    let long = event["note"].as_str().is_some_and(|note| note.len() > 1024);
    // Events of what is in no namespace are in this one.
    if lacks.is_some() || long || namespace != "default" {
        return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &format!("lacks {lacks:?}"));
    }
    shared.lock().node.events.push(event.clone());
    (StatusCode::CREATED, Json(event)).into_response()
}

async fn merge_event(
    State(shared): Asked,
    UrlPath((_, name)): UrlPath<(String, String)>,
    body: axum::body::Bytes,
) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let event = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let mut objects = shared.lock();
    let known = objects.node.events.iter_mut().find(|known| known["metadata"]["name"] == name);
    match known {
        Some(known) => {
            known["series"] = event["series"].clone();
            Json(known.clone()).into_response()
        }
        None => status(StatusCode::NOT_FOUND, "NotFound", "no such event"),
    }
}
