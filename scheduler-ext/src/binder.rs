//! Posts Bindings, one for each pod, and finds out what became of those whose answer was lost.

use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::kubernetes::{InvalidName, NodeName, PLACEMENT_ANNOTATION, PodUid};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{PostParams, Request};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::index::{BindOrder, Concluded, Doubt, Gate, Look, ReserveError, Settled, Ticket};
use crate::shared::{Role, Shared};
use crate::view::{PodName, PodView};
use crate::wire::BindArgs;

/// How long the API server has for one answer. It is told so with each Binding: it gives it up then, also when whoever
/// sent it was killed meanwhile, and so before another replica leads ([`crate::election`]). Left out, it may be
/// carried out half a minute later.
const PATIENCE: Duration = Duration::from_secs(4);
/// Bindings on their way at a time. The API server carries them out no faster for more of them, and each has a
/// connection of its own, whose TLS costs it more than the Binding.
const POSTS: usize = 64;
/// A pod of a group whose Binding has no answer is tried again after these: others of the group are
/// bound already. Afterwards it is the scheduler that tries again.
static AGAIN: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// Why a pod is not bound. Each is the text of an event of the pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another replica binds.
    #[error("this replica of the extender does not lead{0}; it is tried again")]
    Standby(String),
    /// A name that no API server gives.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// It has no place.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// Its group did not come together.
    #[error(
        "the pods of its group did not all come in time, so none of them is bound; it is tried again"
    )]
    Group,
    /// There is no such pod.
    #[error("there is no such pod any more")]
    Gone,
    /// Somebody bound it.
    #[error("the pod was bound to {0} by somebody else")]
    Elsewhere(String),
    /// The API server will not.
    #[error("the API server refuses the Binding: {0}")]
    Refused(String),
    /// The same, and others of its group are bound or on their way.
    #[error(
        "the API server refuses the Binding, and others of the pod's group are bound: {0}; its place is kept for the group's time, and it is tried again"
    )]
    Kept(String),
    /// Nobody knows yet.
    #[error(
        "the API server's answer was lost ({0}); the pod's place is kept until it is known whether it was bound"
    )]
    Unsure(String),
    /// It was asked about the pod.
    #[error("the API server does not answer: {0}; it is tried again")]
    Api(String),
}

/// Binds pods.
#[derive(Clone)]
pub(crate) struct Binder {
    shared: Arc<Shared>,
    client: Client,
    posts: Arc<Semaphore>,
}

/// Counts a bind for as long as it is on its way.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.binds.send_modify(|binds| *binds += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.binds.send_modify(|binds| *binds = binds.saturating_sub(1));
    }
}

/// A place that was set aside for a bind. However that ends, in a panic, too, it is known afterwards what
/// becomes of the place.
struct Place {
    shared: Arc<Shared>,
    uid: PodUid,
    ticket: Ticket,
}

impl Place {
    fn of(shared: &Arc<Shared>, order: &BindOrder) -> Self {
        Self { shared: Arc::clone(shared), uid: order.uid.clone(), ticket: order.ticket }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.shared.now();
        self.shared.index().abandoned(&self.uid, self.ticket, now);
    }
}

impl Binder {
    /// Binds with this client what the index says.
    pub(crate) fn new(shared: Arc<Shared>, client: Client) -> Self {
        Self { shared, client, posts: Arc::new(Semaphore::new(POSTS)) }
    }

    /// Binds one pod. Goes on when whoever asked does not wait any more: half of a bind is none.
    ///
    /// # Errors
    /// When it is not bound, or nobody knows.
    pub(crate) async fn bind(&self, args: BindArgs) -> Result<(), BindError> {
        let binder = self.clone();
        let flight = InFlight::new(&self.shared);
        let bound = tokio::spawn(async move {
            let _flight = flight;
            binder.bind_to_the_end(args).await
        });
        bound.await.unwrap_or_else(|error| Err(BindError::Unsure(error.to_string())))
    }

    async fn bind_to_the_end(&self, args: BindArgs) -> Result<(), BindError> {
        match &*self.shared.role.borrow() {
            Role::Leading if self.shared.leads() => {}
            Role::Leading => return Err(BindError::Standby(" at the moment".into())),
            Role::Settling => return Err(BindError::Standby(" yet".into())),
            Role::Standby(Some(who)) => return Err(BindError::Standby(format!(", {who} does"))),
            Role::Standby(None) | Role::Ending => return Err(BindError::Standby(String::new())),
        }
        let (uid, node): (PodUid, NodeName) = (args.pod_uid.parse()?, args.node.parse()?);
        let pod = PodName { namespace: args.pod_namespace, name: args.pod_name };
        // They become a part of an address.
        pod.namespace.parse::<NodeName>()?;
        pod.name.parse::<NodeName>()?;
        let reserved = self.shared.index().reserve(&uid, &node);
        let order = match reserved {
            Err(ReserveError::Unknown) => {
                // The scheduler's watch is ahead of ours.
                match self.look(&pod, &uid).await? {
                    Look::Gone => return Err(BindError::Gone),
                    Look::OnNode(view) => return bound_already(&view, &node),
                    Look::Unbound => {}
                }
                let again = self.shared.index().reserve(&uid, &node);
                match again {
                    // What asks for no GPU is not kept.
                    Err(ReserveError::Unknown | ReserveError::NoGpu) => {
                        return self.bind_plain(&pod, &uid, &node).await;
                    }
                    other => other?,
                }
            }
            other => other?,
        };
        self.post_with_group(order).await
    }

    async fn post_with_group(&self, mut order: BindOrder) -> Result<(), BindError> {
        let mut pauses = if order.grouped { AGAIN.as_slice() } else { &[] }.iter();
        loop {
            let _place = Place::of(&self.shared, &order);
            if order.grouped {
                self.wait_for_group(&order).await?;
            }
            let posted = self.post(&order).await;
            let (Err(BindError::Unsure(_)), Some(pause)) = (&posted, pauses.next()) else {
                return posted;
            };
            tokio::time::sleep(*pause).await;
            let again = self.shared.index().reserve(&order.uid, &order.node);
            order = match again {
                // It was seen there meanwhile.
                Err(ReserveError::Bound(on)) if on == order.node => return Ok(()),
                other => other?,
            };
        }
    }

    async fn wait_for_group(&self, order: &BindOrder) -> Result<(), BindError> {
        loop {
            let stirred = self.shared.stirred.notified();
            let gate = self.shared.index().gate(&order.uid, order.ticket);
            match gate {
                Gate::Open => {
                    self.shared.stirred.notify_waiters();
                    return Ok(());
                }
                Gate::Closed => return Err(BindError::Group),
                Gate::Wait => {
                    // The index gives a plan up by itself; this only bounds one look at it.
                    let _ = tokio::time::timeout(Duration::from_millis(250), stirred).await;
                }
            }
        }
    }

    fn settle(&self, order: &BindOrder, settled: Settled) -> Concluded {
        let now = self.shared.now();
        self.shared.index().settle(&order.uid, order.ticket, settled, now)
    }

    async fn post(&self, order: &BindOrder) -> Result<(), BindError> {
        let turn = self.posts.acquire().await;
        if !self.shared.leads() {
            // It waited, for its group and for its turn.
            self.settle(order, Settled::Refused);
            return Err(BindError::Standby(" any more".into()));
        }
        let annotations = json!({ PLACEMENT_ANNOTATION: order.placement.to_string() });
        let binding = binding(&order.pod, &order.uid, &order.node, annotations);
        let answer = self.send(&order.pod, &binding).await;
        drop(turn);
        let (doubt, reason) = match answer {
            Ok(()) => {
                self.settle(order, Settled::Written);
                return Ok(());
            }
            Err(Lost::Refused(reason)) => {
                return concluded(self.settle(order, Settled::Refused), reason);
            }
            Err(Lost::Conflict(reason)) => (Doubt::Conflict, reason),
            Err(Lost::Unsure(reason)) => (Doubt::Lost, reason),
        };
        let look = self.look(&order.pod, &order.uid).await.ok();
        let now = self.shared.now();
        concluded(self.shared.index().conclude(order, doubt, look, now), reason)
    }

    /// A pod without GPUs, where the scheduler sends those, too.
    async fn bind_plain(
        &self,
        pod: &PodName,
        uid: &PodUid,
        node: &NodeName,
    ) -> Result<(), BindError> {
        let binding = binding(pod, uid, node, json!({}));
        let turn = self.posts.acquire().await;
        let answer = self.send(pod, &binding).await;
        drop(turn);
        match answer {
            Ok(()) => Ok(()),
            Err(Lost::Refused(reason)) => Err(BindError::Refused(reason)),
            Err(Lost::Conflict(reason) | Lost::Unsure(reason)) => {
                match self.look(pod, uid).await? {
                    Look::OnNode(view) => bound_already(&view, node),
                    Look::Gone => Err(BindError::Gone),
                    Look::Unbound => Err(BindError::Refused(reason)),
                }
            }
        }
    }

    async fn send(&self, pod: &PodName, binding: &Value) -> Result<(), Lost> {
        let posted = post_binding(&self.client, pod, binding);
        match tokio::time::timeout(PATIENCE, posted).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => match status.code {
                409 => Err(Lost::Conflict(status.message.clone())),
                400..=428 | 431 => Err(Lost::Refused(status.message.clone())),
                _ => Err(Lost::Unsure(status.message.clone())),
            },
            Ok(Err(error)) => Err(Lost::Unsure(error.to_string())),
            Err(_) => Err(Lost::Unsure(format!("nothing within {PATIENCE:?}"))),
        }
    }

    /// How a pod stands, as the API server has it now. One that is new here becomes known.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn look(&self, pod: &PodName, uid: &PodUid) -> Result<Look, BindError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let got = tokio::time::timeout(PATIENCE, pods.get_opt(&pod.name)).await;
        let got = got.map_err(|_| BindError::Api(format!("nothing within {PATIENCE:?}")))?;
        let found = got.map_err(|error| BindError::Api(error.to_string()))?;
        let names = self.shared.index().settings().names.clone();
        let view = found.and_then(|pod| PodView::of(&pod, &names));
        let Some(view) = view.filter(|view| view.uid == *uid) else { return Ok(Look::Gone) };
        if view.ended {
            return Ok(Look::Gone);
        }
        if view.node.is_some() {
            return Ok(Look::OnNode(Box::new(view)));
        }
        if !self.shared.index().knows(uid) {
            self.shared.index().apply_pod(view);
        }
        Ok(Look::Unbound)
    }
}

/// What the scheduler is told.
fn concluded(concluded: Concluded, reason: String) -> Result<(), BindError> {
    match concluded {
        Concluded::Bound => Ok(()),
        Concluded::Elsewhere(on) => Err(BindError::Elsewhere(shown(on.as_ref()))),
        Concluded::Gone => Err(BindError::Gone),
        Concluded::Refused => Err(BindError::Refused(reason)),
        Concluded::Kept => Err(BindError::Kept(reason)),
        Concluded::Unsure => Err(BindError::Unsure(reason)),
    }
}

enum Lost {
    Refused(String),
    Conflict(String),
    Unsure(String),
}

fn bound_already(view: &PodView, node: &NodeName) -> Result<(), BindError> {
    match &view.node {
        Some(on) if on == node => Ok(()),
        on => Err(BindError::Elsewhere(shown(on.as_ref()))),
    }
}

fn shown(node: Option<&NodeName>) -> String {
    node.map(ToString::to_string).unwrap_or_default()
}

/// Posts a Binding, which is not carried out later than [`PATIENCE`] after it came.
async fn post_binding(client: &Client, pod: &PodName, binding: &Value) -> Result<(), kube::Error> {
    let pods = Request::new(Pod::url_path(&(), Some(&pod.namespace)));
    let body = serde_json::to_vec(binding).map_err(kube::Error::SerdeError)?;
    let request = pods.create_subresource("binding", &pod.name, &PostParams::default(), body);
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    let target = format!("{}?timeout={}s", request.uri().path(), PATIENCE.as_secs());
    // A path with a query is an address as before.
    if let Ok(target) = target.parse() {
        *request.uri_mut() = target;
    }
    client.request::<Value>(request).await.map(drop)
}

/// The UID makes the API server refuse it for another pod of that name.
fn binding(pod: &PodName, uid: &PodUid, node: &NodeName, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {
            "namespace": pod.namespace, "name": pod.name, "uid": uid.as_str(),
            "annotations": annotations,
        },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node.as_str() },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_api::kubernetes::ResourceNames;
    use gpuzone_core::engine::{HostRoom, Policy};
    use gpuzone_crds::{GpuEntry, GpuNodeStatus};

    use super::*;
    use crate::index::{Kind, Settings, WithoutQuota};

    fn shared() -> Arc<Shared> {
        let shared = Arc::new(Shared::new(Settings {
            names: ResourceNames::defaults().unwrap(),
            policy: Policy::Pack,
            without_quota: WithoutQuota::Admit,
            group_patience: Duration::from_secs(20),
            replacement: Duration::from_secs(60),
        }));
        let gpu: GpuEntry = serde_json::from_value(json!({
            "uuid": "GPU-00000001-0000-0000-0000-000000000001", "index": 0, "model": "H100",
            "memoryBytes": 1_u64 << 34, "computeCapability": "9.0", "migCapable": false,
            "simulated": true, "healthy": true,
        }))
        .unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "team", "name": "a", "uid": "uid-a" },
            "spec": { "containers": [
                { "name": "app", "resources": { "limits": { "gpuzone.dev/gpu": "1" } } }] },
        }))
        .unwrap();
        let mut index = shared.index();
        let node = "n1".parse().unwrap();
        index.apply_node(&node, HostRoom::default());
        index.apply_gpu_node(&node, Some(&GpuNodeStatus::new("simulated", vec![gpu])));
        index.apply_namespace("team", &Default::default());
        let names = ResourceNames::defaults().unwrap();
        index.apply_pod(PodView::of(&pod, &names).unwrap());
        use Kind::{GpuNodes, Namespaces, Nodes, Pods, Quotas};
        [GpuNodes, Nodes, Namespaces, Quotas, Pods].into_iter().for_each(|k| index.complete(k));
        drop(index);
        shared
    }

    /// A place is never held for a bind that nobody sees to: it is looked at, and given back or kept.
    #[tokio::test]
    async fn a_bind_that_panics_leaves_a_place_that_is_looked_at() {
        let shared = shared();
        let uid: PodUid = "uid-a".parse().unwrap();
        let order = shared.index().reserve(&uid, &"n1".parse().unwrap()).unwrap();
        assert!(shared.index().overdue(shared.now()).is_empty(), "it is on its way");
        let place = Place::of(&shared, &order);
        let task = tokio::spawn(async move {
            let _place = place;
            tokio::task::yield_now().await;
            panic!("as a bug would");
        });
        assert!(task.await.unwrap_err().is_panic());
        let mut index = shared.index();
        let late = index.overdue(shared.now()).remove(0);
        assert_eq!((&late.uid, late.ticket), (&uid, order.ticket));
        // It may have gone out; once it cannot be carried out any more, the place is free.
        let now = shared.now();
        index.looked(&uid, late.ticket, Look::Unbound, now);
        assert_eq!(index.usage_of("team").total.gpus, 1);
        index.looked(&uid, late.ticket, Look::Unbound, now + Duration::from_secs(80));
        assert_eq!(index.usage_of("team").total.gpus, 0);
    }

    /// Whose answer came is not in doubt afterwards.
    #[test]
    fn a_bind_that_ended_is_not_abandoned() {
        let shared = shared();
        let uid: PodUid = "uid-a".parse().unwrap();
        let order = shared.index().reserve(&uid, &"n1".parse().unwrap()).unwrap();
        let place = Place::of(&shared, &order);
        let now = shared.now();
        shared.index().settle(&uid, order.ticket, Settled::Written, now);
        drop(place);
        assert!(shared.index().overdue(shared.now()).is_empty());
        assert_eq!(shared.index().usage_of("team").total.gpus, 1);
    }
}
