//! The verbs over HTTP, and what people and probes ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::binder::Binder;
use crate::index::{FilterError, Named, Refusal};
use crate::metrics::{Metrics, Verb};
use crate::offers::Offers;
use crate::shared::{Role, Shared};
use crate::view::{PodName, PodView};
use crate::wire::{
    Args, BindArgs, BindResult, FilterResult, HostPriority, MetaPod, MetaVictims, Nodes,
    PreemptArgs, PreemptResult, Text,
};

/// A request's body comes within this time.
const BODY: Duration = Duration::from_secs(10);
/// More requests are not served at a time, by one door.
pub(crate) const AT_ONCE: usize = 256;
/// And no more binds. Those wait, for the API server and for the rest of their group, while other pods are filtered;
/// whoever refuses a filter for them sends its pod to the end of the scheduler's patience.
const BINDS_AT_ONCE: usize = 4096;
/// Bytes of a bind's question: four names.
const BIND: usize = 64 << 10;
/// Bytes of a short answer.
const SMALL: usize = 512;

/// What the handlers have.
#[derive(Clone)]
pub(crate) struct App {
    /// The index.
    pub(crate) shared: Arc<Shared>,
    /// Who posts Bindings.
    pub(crate) binder: Binder,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// What it was told to take away.
    pub(crate) offers: Arc<Offers>,
    /// Which nodes are named to a scheduler.
    pub(crate) named: Named,
}

/// A request that cannot be answered.
pub(crate) struct Bad(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Bad {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The scheduler's door. A request has at most `largest_body` bytes.
pub(crate) fn verbs(app: App, largest_body: usize) -> Router {
    let binds = Router::new().route("/bind", post(bind)).with_state(app.clone());
    let others = Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .route("/preempt", post(preempt))
        .route("/explain/{namespace}/{name}", get(explain))
        .route("/quotas", get(quotas))
        .with_state(app);
    bounded(others, AT_ONCE, largest_body).merge(bounded(binds, BINDS_AT_ONCE, BIND))
}

/// With bounds: so many requests at a time, and so many bytes in each.
pub(crate) fn bounded(router: Router, at_once: usize, largest_body: usize) -> Router {
    let places = Arc::new(Semaphore::new(at_once));
    let take_place = move |request: Request, next: Next| {
        let places = Arc::clone(&places);
        async move {
            match places.try_acquire_owned() {
                Ok(_place) => next.run(request).await,
                Err(_) => Bad(StatusCode::TOO_MANY_REQUESTS, "too many requests at once".into())
                    .into_response(),
            }
        }
    };
    router.layer(DefaultBodyLimit::max(largest_body)).layer(middleware::from_fn(take_place))
}

/// The door of probes and of whoever collects metrics.
pub(crate) fn health(app: App) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(app)
}

async fn readyz(State(app): State<App>) -> Result<String, Bad> {
    let ready = app.shared.index().ready();
    ready.map_err(|error| Bad(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let role = app.shared.role.borrow().clone();
    match role {
        Role::Leading => Ok("leading".into()),
        Role::Settling => Ok("leading; reads all pods once more before it binds any".into()),
        Role::Standby(Some(who)) => Ok(format!("standing by; {who} leads")),
        Role::Standby(None) => Ok("standing by".into()),
        Role::Ending => Err(Bad(StatusCode::SERVICE_UNAVAILABLE, "ending".into())),
    }
}

async fn metrics(State(app): State<App>) -> Result<Response, Bad> {
    let (counts, in_part) = {
        let index = app.shared.index();
        (index.counts(), index.groups_in_part())
    };
    let text = app.metrics.text(counts, in_part, app.shared.leads());
    let text = text.map_err(|error| Bad(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// What a verb is asked with.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8], verb: Verb) -> Result<T, Bad> {
    parse(body, |error| format!("not what {} is asked with: {error}", verb.as_str()))
}

/// A body as what it should be; `wrong` says what it is not.
pub(crate) fn parse<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    wrong: impl FnOnce(serde_json::Error) -> String,
) -> Result<T, Bad> {
    serde_json::from_slice(body).map_err(|error| Bad(StatusCode::BAD_REQUEST, wrong(error)))
}

/// A body in the time that it has. Kubernetes sends `application/json`; whoever does not is not
/// refused for that.
pub(crate) async fn body(request: Request) -> Result<Bytes, Bad> {
    let bytes = axum::RequestExt::extract::<Bytes, _>(request);
    let bytes = tokio::time::timeout(BODY, bytes).await;
    let bytes =
        bytes.map_err(|_| Bad(StatusCode::REQUEST_TIMEOUT, "the body did not come".into()))?;
    bytes.map_err(|error| Bad(error.status(), error.body_text()))
}

/// An answer of about so many bytes.
fn json<T: Serialize>(answer: &T, about: usize) -> Response {
    let mut text = Vec::with_capacity(about);
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Bad(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn view(app: &App, pod: &k8s_openapi::api::core::v1::Pod) -> Result<PodView, Bad> {
    let names = app.shared.index().settings().names.clone();
    let nameless = || Bad(StatusCode::BAD_REQUEST, "the pod has no namespace, name or UID".into());
    PodView::of(pod, &names).ok_or_else(nameless)
}

/// The names of nodes that came whole.
fn names<'a>(nodes: Option<&Nodes<'a>>) -> Result<Vec<Text<'a>>, Bad> {
    let names = nodes.map_or(Ok(Vec::new()), Nodes::names);
    names.map_err(|error| Bad(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn filter(State(app): State<App>, request: Request) -> Result<Response, Bad> {
    let began = Instant::now();
    let body = body(request).await?;
    let Args { pod, nodes, node_names } = read(&body, Verb::Filter)?;
    let (pod, whole) = (view(&app, &pod)?, names(nodes.as_ref())?);
    let names = node_names.as_ref().unwrap_or(&whole);
    let names: Vec<&str> = names.iter().map(Text::as_str).collect();
    let mut answered = serving(&app, &pod, &names);
    if answered.as_ref().is_ok_and(|serving| serving.fits.is_empty())
        && app.offers.carried_out(&app.shared, &pod.uid).await
    {
        answered = serving(&app, &pod, &names);
    }
    app.metrics.count(Verb::Filter, answered.is_ok(), began.elapsed());
    let Serving { fits, refused } = match answered {
        Ok(serving) => serving,
        Err(error) => {
            let error = error.to_string();
            return Ok(json(&FilterResult { error, ..FilterResult::default() }, SMALL));
        }
    };
    let mut result = FilterResult::default();
    for (at, refusal) in &refused {
        let failed = match refusal.hopeless {
            true => &mut result.failed_and_unresolvable_nodes,
            false => &mut result.failed_nodes,
        };
        failed.0.extend(names.get(*at).map(|name| (*name, &*refusal.reason)));
    }
    if node_names.is_some() {
        result.node_names = Some(fits.iter().filter_map(|at| names.get(*at).copied()).collect());
    } else {
        result.nodes = nodes.map(|nodes| {
            let items = nodes.items.unwrap_or_default();
            let kept = fits.iter().filter_map(|at| items.get(*at).copied()).collect();
            Nodes { metadata: nodes.metadata, items: Some(kept) }
        });
    }
    Ok(json(&result, body.len()))
}

/// By their places among the nodes that a scheduler asks about.
struct Serving {
    fits: Vec<usize>,
    refused: Vec<(usize, Refusal)>,
}

/// Which nodes a scheduler is told of. It reads the names one by one, asks about all of them once more, and its own
/// plugins score each, so it is told of no more than it needs. Why others do not serve, it shows only of a pod that
/// none serves.
fn serving(app: &App, pod: &PodView, names: &[&str]) -> Result<Serving, FilterError> {
    let now = app.shared.now();
    let mut index = app.shared.index();
    let filtered = index.filter(pod, names, now)?;
    let (mut fits, mut refused) = (Vec::new(), Vec::new());
    for (at, answer) in filtered.0.into_iter().enumerate() {
        match answer {
            Ok(()) => fits.push(at),
            Err(refusal) => refused.push((at, refusal)),
        }
    }
    if app.named != Named::All && !fits.is_empty() {
        let serve: Vec<&str> = fits.iter().filter_map(|at| names.get(*at).copied()).collect();
        let named = index.named(pod, &serve, app.named);
        fits = named.into_iter().filter_map(|place| fits.get(place).copied()).collect();
        refused.clear();
    }
    Ok(Serving { fits, refused })
}

async fn prioritize(State(app): State<App>, request: Request) -> Result<Response, Bad> {
    let began = Instant::now();
    let body = body(request).await?;
    let Args { pod, nodes, node_names } = read(&body, Verb::Prioritize)?;
    let (pod, whole) = (view(&app, &pod)?, names(nodes.as_ref())?);
    let names = node_names.as_ref().unwrap_or(&whole);
    let names: Vec<&str> = names.iter().map(Text::as_str).collect();
    let ranks = app.shared.index().prioritize(&pod, &names);
    app.metrics.count(Verb::Prioritize, ranks.is_ok(), began.elapsed());
    let ranks = ranks.map_err(|error| Bad(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let above = above_the_least(&names, &ranks);
    let about = above.iter().map(|rank| rank.host.len() + 24).sum::<usize>() + 2;
    Ok(json(&above, about))
}

/// Only what one node's rank is above another's counts, and a node that is not named has 0: so the least
/// ranks, which most nodes of a large cluster have, are left out. The scheduler reads them one pod after the other.
fn above_the_least<'a>(names: &[&'a str], ranks: &[u8]) -> Vec<HostPriority<'a>> {
    let least = ranks.iter().copied().min().unwrap_or_default();
    let ranked = names.iter().zip(ranks).map(|(host, rank)| (*host, rank.saturating_sub(least)));
    ranked
        .filter(|(_, score)| *score > 0)
        .map(|(host, score)| HostPriority { host, score })
        .collect()
}

async fn bind(State(app): State<App>, request: Request) -> Result<Response, Bad> {
    let began = Instant::now();
    let args: BindArgs = read(&body(request).await?, Verb::Bind)?;
    let pod = format!("{}/{}", args.pod_namespace, args.pod_name);
    let bound = app.binder.bind(args).await;
    app.metrics.count(Verb::Bind, bound.is_ok(), began.elapsed());
    let error = bound.err().map(|error| {
        tracing::info!(pod, %error, "not bound");
        error.to_string()
    });
    Ok(json(&BindResult { error: error.unwrap_or_default() }, SMALL))
}

async fn preempt(State(app): State<App>, request: Request) -> Result<Response, Bad> {
    let began = Instant::now();
    let body = body(request).await?;
    let args: PreemptArgs = read(&body, Verb::Preempt)?;
    let pod = view(&app, &args.pod)?;
    let meta = args.node_name_to_meta_victims.unwrap_or_default();
    let whole = args.node_name_to_victims.unwrap_or_default().into_iter().map(|(node, victims)| {
        let uids = victims.pods.into_iter().flatten().filter_map(|pod| pod.metadata.uid);
        let pods = Some(uids.map(|uid| MetaPod { uid }).collect());
        (node, MetaVictims { pods, violations: victims.violations })
    });
    let mut result = PreemptResult::default();
    let asked: BTreeMap<String, MetaVictims> = meta.into_iter().chain(whole).collect();
    let named = asked.iter().map(|(node, victims)| {
        let pods = victims.pods.iter().flatten().filter_map(|pod| pod.uid.parse().ok());
        (node.clone(), pods.collect())
    });
    let named = named.collect();
    let chosen = app.shared.index().preempt(&pod, &named);
    let plans = chosen.values().map(|chosen| chosen.pods.iter().cloned().collect()).collect();
    app.offers.make(pod.uid, plans);
    for (node, chosen) in chosen {
        let violations = asked.get(&node).map_or(0, |victims| victims.violations);
        let pods = chosen.pods.iter().map(|uid| MetaPod { uid: uid.to_string() }).collect();
        let victims = MetaVictims { pods: Some(pods), violations };
        result.node_name_to_meta_victims.insert(node, victims);
    }
    app.metrics.count(Verb::Preempt, true, began.elapsed());
    Ok(json(&result, body.len()))
}

async fn explain(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Response, Bad> {
    let why = app.shared.index().explain(&PodName { namespace, name });
    let unknown = "no such pod that asks for GPUs is known here";
    why.map(|why| json(&why, SMALL)).ok_or_else(|| Bad(StatusCode::NOT_FOUND, unknown.into()))
}

async fn quotas(State(app): State<App>) -> Response {
    let reports = app.shared.index().quota_reports();
    let reports = reports.into_iter().map(|report| (report.name.clone(), report));
    json(&reports.collect::<BTreeMap<_, _>>(), SMALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_least_and_no_difference_is_lost() {
        let said = |ranks: &[u8]| -> Vec<(&str, u8)> {
            let above = above_the_least(&["a", "b", "c"], ranks);
            above.into_iter().map(|rank| (rank.host, rank.score)).collect()
        };
        assert_eq!(said(&[10, 9, 8]), [("a", 2), ("b", 1)]);
        assert_eq!(said(&[10, 0, 10]), [("a", 10), ("c", 10)], "b serves it no more");
        assert_eq!(said(&[10, 10, 10]), []);
        assert_eq!(said(&[]), []);
    }
}
