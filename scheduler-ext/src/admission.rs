//! What is said to a pod before it is stored: early and to whoever creates it, where the
//! scheduler's word would stand in an event.
//!
//! Architecture invariant: nothing relies on it. The scheduler's verbs read the same limits again,
//! and the node reads the placement again; an API server that asks nobody opens no door.

use gpuzone_api::kubernetes::{
    ContainerRequest, DEFAULTS_ANNOTATION, Handed, PLACEMENT_ANNOTATION, POLICY_ANNOTATION,
    ResourceNames, SchedulerName, TOPOLOGY_ANNOTATION,
};
use gpuzone_core::engine::Policy;
use gpuzone_crds::Defaults;
use k8s_openapi::api::core::v1::Pod;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::{DynamicObject, Status};
use serde_json::{Value, json};

use crate::ask::AskError;
use crate::fill::{Filled, fill};
use crate::view::{ask_of, limits};

type Review = AdmissionReview<DynamicObject>;
type Request = AdmissionRequest<DynamicObject>;

const VERSION: &str = "admission.k8s.io/v1";
/// What the API server writes into pods that name no scheduler.
const FIRST_SCHEDULER: &str = "default-scheduler";
/// A status' code for an object that is readable and cannot be.
const UNPROCESSABLE: u16 = 422;

/// What pods are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// By what they ask.
    pub names: ResourceNames,
    /// The scheduler that pods with GPUs get, where they name none.
    pub scheduler: Option<SchedulerName>,
    /// What placements are to be good for, where a pod does not say.
    pub policy: Policy,
}

/// Why a pod is not stored.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "the review is of {0}, and this webhook knows {VERSION}; set admissionReviewVersions: [v1]"
    )]
    Version(String),
    #[error("the review is of a {0}, and this webhook knows pods; its rules name others, too")]
    Kind(String),
    #[error("the pod cannot be read: {0}")]
    Pod(String),
    #[error(
        "the annotation {PLACEMENT_ANNOTATION} is written by the scheduler when it gives the pod its GPUs, and by nobody else; leave it out"
    )]
    Placement,
    #[error(
        "the annotation {PLACEMENT_ANNOTATION} says which GPUs the pod holds, and stays as it is as long as the pod"
    )]
    PlacementChanged,
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Refuses pods that could never get what they ask for, and placements that nobody gave.
pub fn validate(rules: &Rules, review: Review) -> Review {
    answer(review, |request| {
        check(rules, request)?;
        Ok(Vec::new())
    })
}

/// Names the scheduler of pods that ask for GPUs and name none. Also of those whose limits cannot
/// be read: that scheduler says what is wrong, and another would start them without GPUs. Fills in what
/// their authors left out of limits, `defaults` by namespace, and writes down as what the rest is taken.
pub fn mutate(rules: &Rules, review: Review, defaults: impl Fn(&str) -> Defaults) -> Review {
    // What cannot be read stays as it is here, for `validate` refuses it.
    answer(review, |request| {
        let defaults = defaults(request.namespace.as_deref().unwrap_or_default());
        Ok(changes(rules, request, defaults).unwrap_or_default())
    })
}

/// The answer to a review. One without a request is answered, too, though no API server sends it.
fn answer(
    mut review: Review,
    decide: impl FnOnce(&Request) -> Result<Vec<Value>, Refusal>,
) -> Review {
    let Some(mut request) = review.request.take() else {
        return AdmissionResponse::invalid("the review has no request").into_review();
    };
    let version = review.types.api_version.clone();
    request.types = review.types;
    let decided = match version.as_str() {
        VERSION => decide(&request),
        _ => Err(Refusal::Version(version.chars().take(80).collect())),
    };
    let mut response = AdmissionResponse::from(&request);
    match decided {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) => match with_changes(response.clone(), changes) {
            Ok(changed) => response = changed,
            // The pod stays as it was; a scheduler that cannot place it says so.
            Err(error) => tracing::error!(%error, "a pod could not be changed"),
        },
        Err(refusal) => {
            let refusal = refusal.to_string();
            tracing::info!(namespace = request.namespace, name = request.name, refusal, "refused");
            response.allowed = false;
            response.result = Status::failure(&refusal, "Invalid").with_code(UNPROCESSABLE);
        }
    }
    response.into_review()
}

fn check(rules: &Rules, request: &Request) -> Result<(), Refusal> {
    match request.operation {
        Operation::Delete | Operation::Connect => Ok(()),
        Operation::Create => {
            let pod = pod(request)?;
            if placement(&pod.metadata).is_some() {
                return Err(Refusal::Placement);
            }
            ask_of(&pod, &rules.names)?;
            Ok(())
        }
        Operation::Update => {
            let now = pod(request)?;
            let before = request.old_object.as_ref();
            match before.and_then(|old| placement(&old.metadata)) == placement(&now.metadata) {
                true => Ok(()),
                false => Err(Refusal::PlacementChanged),
            }
        }
    }
}

/// What is changed of a pod, as JSON patch.
fn changes(rules: &Rules, request: &Request, given: Defaults) -> Result<Vec<Value>, Refusal> {
    match request.operation {
        Operation::Update | Operation::Delete | Operation::Connect => return Ok(Vec::new()),
        Operation::Create => {}
    }
    let mut pod = pod(request)?;
    let filled = fill(&mut pod, &rules.names, given);
    let ask = ask_of(&pod, &rules.names);
    if ask == Ok(None) {
        return Ok(Vec::new());
    }
    let add = |path: &str, value: Value| json!({ "op": "add", "path": path, "value": value });
    let mut changes = Vec::new();
    let named = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    if let (Some(scheduler), None | Some("" | FIRST_SCHEDULER)) = (&rules.scheduler, named) {
        changes.push(add("/spec/schedulerName", json!(scheduler.as_str())));
    }
    if ask.is_err() {
        return Ok(changes);
    }
    changes.extend(filled.iter().map(|of| add(&of.path, json!(of.number.to_string()))));
    let taken = defaults(rules, &pod, &filled);
    if !taken.is_empty() {
        if pod.metadata.annotations.is_none() {
            changes.push(add("/metadata/annotations", json!({})));
        }
        let path = format!("/metadata/annotations/{}", DEFAULTS_ANNOTATION.replace('/', "~1"));
        changes.push(add(&path, json!(taken)));
    }
    Ok(changes)
}

/// What was filled in, and as what is taken what a pod still leaves out. That is written beside the
/// limits and not into them: a share depends on the GPU.
fn defaults(rules: &Rules, pod: &Pod, filled: &[Filled]) -> String {
    let filled = filled.iter().map(|Filled { container, resource, number, .. }| {
        format!("container {container}: {resource}: {number} is filled in")
    });
    let mut taken: Vec<String> = filled.collect();
    for container in limits(pod) {
        let request = ContainerRequest::from_limits(&rules.names, &container.limits);
        let Ok(Some(request)) = request else { continue };
        let what = match (&request.handed, request.memory, request.share) {
            (Handed::Mediated, None, _) => "all of the memory and time of each GPU",
            (Handed::Mediated, Some(_), None) => "of the time the same part as of the memory",
            (Handed::Mediated | Handed::Passthrough | Handed::Mig(_) | Handed::Vgpu(_), _, _) => {
                continue;
            }
        };
        taken.push(format!("container {}: {what}, {}", container.name, request.handed.exposure()));
    }
    let says = |annotation: &str| {
        pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(annotation))
    };
    if !says(TOPOLOGY_ANNOTATION) {
        taken.push("topology: any".to_owned());
    }
    if !says(POLICY_ANNOTATION) {
        taken.push(format!("policy: {}", rules.policy));
    }
    taken.join("; ")
}

fn placement(meta: &kube::core::ObjectMeta) -> Option<&String> {
    meta.annotations.as_ref()?.get(PLACEMENT_ANNOTATION)
}

fn pod(request: &Request) -> Result<Pod, Refusal> {
    let kind = &request.kind;
    if (kind.group.as_str(), kind.version.as_str(), kind.kind.as_str()) != ("", "v1", "Pod") {
        return Err(Refusal::Kind(kind.kind.chars().take(80).collect()));
    }
    let object = request.object.clone().ok_or_else(|| Refusal::Pod("it is not there".into()))?;
    object.try_parse().map_err(|error| Refusal::Pod(error.to_string().chars().take(200).collect()))
}

fn with_changes(
    response: AdmissionResponse,
    changes: Vec<Value>,
) -> Result<AdmissionResponse, String> {
    let patch = serde_json::from_value(Value::Array(changes)).map_err(|error| error.to_string())?;
    response.with_patch(patch).map_err(|error| error.to_string())
}
