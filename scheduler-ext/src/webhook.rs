//! The API server's door: what it asks before it stores a pod.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Json;
use axum::routing::post;
use kube::core::DynamicObject;
use kube::core::admission::AdmissionReview;

use crate::admission::{Rules, mutate, validate};
use crate::http::{AT_ONCE, Bad, body, bounded, parse};
use crate::shared::Shared;

/// The API server takes no object of more than 3 MiB, and sends two of them at most.
const LARGEST: usize = 8 << 20;

type Review = AdmissionReview<DynamicObject>;

#[derive(Clone)]
struct Door {
    rules: Rules,
    /// For what quotas say that is filled in.
    shared: Arc<Shared>,
}

/// `/validate` refuses and changes nothing; `/mutate` changes and refuses nothing.
pub(crate) fn router(rules: Rules, shared: Arc<Shared>) -> Router {
    let router = Router::new()
        .route("/validate", post(validating))
        .route("/mutate", post(mutating))
        .with_state(Door { rules, shared });
    bounded(router, AT_ONCE, LARGEST)
}

async fn read(request: Request) -> Result<Review, Bad> {
    let wrong = |error| format!("not an AdmissionReview of admission.k8s.io/v1: {error}");
    parse(&body(request).await?, wrong)
}

async fn validating(State(door): State<Door>, request: Request) -> Result<Json<Review>, Bad> {
    Ok(Json(validate(&door.rules, read(request).await?)))
}

async fn mutating(State(door): State<Door>, request: Request) -> Result<Json<Review>, Bad> {
    let review = read(request).await?;
    let defaults = |namespace: &str| door.shared.index().defaults_of(namespace);
    Ok(Json(mutate(&door.rules, review, defaults)))
}
