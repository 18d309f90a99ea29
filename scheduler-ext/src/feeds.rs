//! The API server's watches, into the index.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, future};
use gpuzone_crds::{GpuNode, GpuQuota};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};

use crate::host;
use crate::index::{Index, Kind, Moment};
use crate::pod_group;
use crate::shared::Shared;
use crate::view::PodView;

/// Pages are small: what is read is forgotten at once, and memory is not.
const PAGE: u32 = 250;

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// Keeps the index as the API server is, for ever. Where that has no `PodGroup`s, it is asked for them
/// `again` after so long.
pub(crate) async fn feed(shared: Arc<Shared>, client: Client, again: Duration) {
    let gpu_nodes = watcher(Api::<GpuNode>::all(client.clone()), config());
    let nodes = watcher(Api::<Node>::all(client.clone()), config());
    let namespaces = watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), config());
    let quotas = watcher(Api::<GpuQuota>::all(client.clone()), config());
    tokio::join!(
        objects(
            &shared,
            Kind::GpuNodes,
            gpu_nodes,
            apply_gpu_node,
            remove_gpu_node,
            |index, names| { index.keep_gpu_nodes(names) }
        ),
        objects(
            &shared,
            Kind::Nodes,
            nodes,
            |index, node| {
                if let Ok(name) = node.name_any().parse() {
                    index.apply_node(&name, host::allocatable(&node));
                }
            },
            |index, name| index.remove_node(name),
            |index, names| index.keep_nodes(names),
        ),
        objects(
            &shared,
            Kind::Namespaces,
            namespaces,
            |index, namespace| index.apply_namespace(&namespace.name_any(), namespace.labels()),
            |index, name| index.remove_namespace(name),
            |index, names| index.keep_namespaces(names),
        ),
        objects(
            &shared,
            Kind::Quotas,
            quotas,
            |index, quota| {
                let (uid, generation) = (quota.uid(), quota.metadata.generation);
                index.apply_quota(&quota.name_any(), uid.as_deref(), generation, &quota.spec);
            },
            |index, name| index.remove_quota(name),
            |index, names| index.keep_quotas(names),
        ),
        pod_groups(&shared, client.clone(), again),
        pods(&shared, client),
    );
}

fn apply_gpu_node(index: &mut Index, node: GpuNode) {
    match node.name_any().parse() {
        Ok(name) => index.apply_gpu_node(&name, node.status.as_ref()),
        Err(error) => tracing::warn!(%error, "a GpuNode is not called like a node"),
    }
}

fn remove_gpu_node(index: &mut Index, name: &str) {
    if let Ok(name) = name.parse() {
        index.remove_gpu_node(&name);
    }
}

/// Coscheduling's groups, which few clusters have.
async fn pod_groups(shared: &Shared, client: Client, again: Duration) {
    let resource = pod_group::resource();
    loop {
        let groups = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let events = watcher(groups, config());
        let events = events.take_while(|event| future::ready(!is_no_kind(event)));
        objects(
            shared,
            Kind::PodGroups,
            events,
            |index, group| {
                let (namespace, said) = (group.namespace(), pod_group::read(&group));
                index.apply_pod_group(&namespace.unwrap_or_default(), &group.name_any(), said);
            },
            |index, key| {
                let (namespace, name) = key.split_once('/').unwrap_or_default();
                index.remove_pod_group(namespace, name);
            },
            |index, keys| index.keep_pod_groups(keys),
        )
        .await;
        {
            let mut index = shared.index();
            index.keep_pod_groups(&BTreeSet::new());
            index.complete(Kind::PodGroups);
        }
        tracing::debug!("the API server has no PodGroups; it is asked again in {again:?}");
        tokio::time::sleep(again).await;
    }
}

/// Whether the API server knows no such kind of objects.
fn is_no_kind<K>(event: &Result<Event<K>, watcher::Error>) -> bool {
    match event {
        Err(
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status),
        ) => status.code == 404,
        Ok(_) | Err(_) => false,
    }
}

/// `namespace/name`, or the name of an object that is in no namespace.
fn key_of<K: Resource>(object: &K) -> String {
    let name = object.name_any();
    object.namespace().map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"))
}

/// Objects that are told apart by their names.
async fn objects<K: Resource + Debug>(
    shared: &Shared,
    kind: Kind,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    apply: impl Fn(&mut Index, K),
    remove: impl Fn(&mut Index, &str),
    keep: impl Fn(&mut Index, &BTreeSet<String>),
) {
    let mut events = std::pin::pin!(events.default_backoff());
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                listed.insert(key_of(&object));
                apply(&mut shared.index(), object);
            }
            Ok(Event::InitDone) => {
                let mut index = shared.index();
                keep(&mut index, &listed);
                index.complete(kind);
                tracing::info!(kind = kind.plural(), count = listed.len(), "read");
                listed = BTreeSet::new();
            }
            Ok(Event::Apply(object)) => apply(&mut shared.index(), object),
            Ok(Event::Delete(object)) => remove(&mut shared.index(), &key_of(&object)),
            Err(error) => broke(kind, &error),
        }
    }
}

fn broke(kind: Kind, error: &watcher::Error) {
    tracing::warn!(kind = kind.plural(), %error, "a watch broke; it is begun again");
}

async fn pods(shared: &Shared, client: Client) {
    let names = shared.index().settings().names.clone();
    let mut lists = shared.lists.subscribe();
    loop {
        let wanted = lists.borrow_and_update().wanted;
        let mut events: BoxStream<'_, Result<Event<Pod>, watcher::Error>> =
            watcher(Api::<Pod>::all(client.clone()), config()).default_backoff().boxed();
        let mut began = Moment::ZERO;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                changed = lists.wait_for(|lists| lists.wanted > wanted) => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
            };
            let view = |pod: &Pod| PodView::of(pod, &names);
            match event {
                Some(Ok(Event::Init)) => {
                    began = shared.now();
                    shared.index().begin_pods();
                }
                Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => {
                    if let Some(view) = view(&pod) {
                        shared.index().apply_pod(view);
                    }
                    shared.stirred.notify_waiters();
                }
                Some(Ok(Event::InitDone)) => {
                    shared.index().end_pods(began);
                    shared.lists.send_modify(|lists| lists.come = lists.come.max(wanted));
                    tracing::info!(kind = "pods", "read");
                }
                Some(Ok(Event::Delete(pod))) => {
                    if let Some(view) = view(&pod) {
                        shared.index().remove_pod(&view.uid);
                    }
                    shared.stirred.notify_waiters();
                }
                Some(Err(error)) => broke(Kind::Pods, &error),
                None => break,
            }
        }
    }
}
