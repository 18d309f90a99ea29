//! The least that an extender can be: it says yes to every node, has no opinion, and sends the
//! Binding. What a scheduler does less of with it than without any is the protocol's price.

use std::path::Path;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

/// One that serves. Dropping it ends it.
pub(crate) struct Bare {
    pub(crate) port: u16,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Dropping it would wait, which a task of another one may not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bare {
    /// Serves with threads of its own.
    pub(crate) async fn start(kubeconfig: &Path) -> Self {
        let mut own = tokio::runtime::Builder::new_multi_thread();
        let runtime = own.worker_threads(1).enable_all().build().unwrap();
        let kubeconfig = kubeconfig.to_owned();
        let (told, port) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let routes = Router::new()
                .route("/filter", post(filter))
                .route("/prioritize", post(prioritize))
                .route("/bind", post(bind))
                .with_state(super::suite::client(&kubeconfig).await);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap().port()).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        Self { port: port.await.unwrap(), runtime: Some(runtime) }
    }
}

async fn filter(Json(asked): Json<Value>) -> Json<Value> {
    Json(json!({ "NodeNames": asked["NodeNames"], "FailedNodes": {}, "Error": "" }))
}

async fn prioritize(Json(_): Json<Value>) -> Json<Value> {
    Json(json!([]))
}

async fn bind(State(client): State<Client>, Json(asked): Json<Value>) -> Json<Value> {
    let text = |field: &str| asked[field].as_str().unwrap().to_owned();
    let (namespace, name) = (text("PodNamespace"), text("PodName"));
    let binding = json!({ "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": name, "namespace": namespace, "uid": text("PodUID") },
        "target": { "apiVersion": "v1", "kind": "Node", "name": text("Node") } });
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, &namespace);
    let params = PostParams::default();
    let bound = pods.create_subresource::<Value, Value>("binding", &name, &params, &binding);
    let error = bound.await.err().map(|error| error.to_string()).unwrap_or_default();
    Json(json!({ "Error": error }))
}
