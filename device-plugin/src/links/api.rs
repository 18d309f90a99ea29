use std::collections::BTreeMap;
use std::time::Duration;

use futures::{Stream, StreamExt};
use gpuzone_api::kubernetes::NodeName;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use super::LinkError;
use super::pods::{Pod, view};
use crate::claim::PodView;
use crate::config::WithoutQuota;
use crate::holders::{PodName, Resources};
use crate::keep::Pods;

const PATIENCE: Duration = Duration::from_secs(5);

/// The API server.
#[derive(Clone)]
pub(crate) struct ApiLink {
    pub(super) client: Client,
    node: NodeName,
    resources: Resources,
    pub(super) without_quota: WithoutQuota,
}

fn failed(what: &'static str, error: &kube::Error) -> LinkError {
    match error {
        kube::Error::Api(status) if status.code == 401 || status.code == 403 => {
            LinkError::Denied { what, reason: status.message.clone() }
        }
        // Too many requests, and one that took too long, are no matter of what was asked.
        kube::Error::Api(status)
            if (400..500).contains(&status.code) && ![408, 429].contains(&status.code) =>
        {
            LinkError::NotTaken { what, code: status.code, reason: status.message.clone() }
        }
        other => LinkError::Api(sentence(other)),
    }
}

/// An error with its reasons, in one line.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

/// An answer of the API server, if it comes in time.
pub(crate) async fn within<T>(
    what: &'static str,
    asked: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| failed(what, &error)),
        Err(_) => Err(LinkError::Api(format!("nothing within {PATIENCE:?}"))),
    }
}

impl ApiLink {
    pub(crate) fn new(
        client: Client,
        node: NodeName,
        resources: Resources,
        without_quota: WithoutQuota,
    ) -> Self {
        Self { client, node, resources, without_quota }
    }

    /// One pod, as it is now.
    pub(crate) async fn pod(&self, name: &PodName) -> Result<Option<PodView>, LinkError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let pod = within("get pods", pods.get_opt(&name.name)).await?;
        Ok(pod.and_then(|pod| view(&pod, &self.resources)))
    }

    /// The labels of a namespace.
    pub(crate) async fn labels(
        &self,
        namespace: &str,
    ) -> Result<BTreeMap<String, String>, LinkError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let found = within("get namespaces", namespaces.get(namespace)).await?;
        Ok(found.metadata.labels.unwrap_or_default())
    }

    fn on_this_node(&self) -> String {
        format!("spec.nodeName={}", self.node)
    }

    /// All pods of this node, as they are now: without a resource version, the API server answers
    /// what is, not what it remembers.
    pub(crate) async fn pods(&self) -> Result<Pods, LinkError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let of_node = ListParams::default().fields(&self.on_this_node());
        let listed = within("list pods", pods.list(&of_node)).await?;
        let views = listed.items.iter().filter_map(|pod| view(pod, &self.resources));
        Ok(views.map(|view| (view.uid.clone(), view)).collect())
    }

    /// Something each time that a pod of this node went, or came to its end. It goes on through
    /// outages.
    pub(crate) fn ends(&self) -> impl Stream<Item = ()> + Send + use<> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let of_node = watcher::Config::default().fields(&self.on_this_node());
        let resources = self.resources.clone();
        watcher(pods, of_node).default_backoff().filter_map(move |event| {
            let ended = match event {
                Ok(watcher::Event::Delete(_) | watcher::Event::InitDone) => true,
                Ok(watcher::Event::Apply(pod)) => {
                    view(&pod, &resources).is_some_and(|view| view.ended)
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => false,
                Err(error) => {
                    tracing::debug!(%error, "the watch of pods broke; it is begun again");
                    false
                }
            };
            async move { ended.then_some(()) }
        })
    }
}

#[cfg(test)]
mod tests;
