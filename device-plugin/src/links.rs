//! Those who are asked: the kubelet's pod resources, the API server, the agent.

mod agent;
mod api;
mod pods;
mod quotas;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use gpuzone_api::kubelet::podresources::v1::ListPodResourcesRequest;
use gpuzone_api::kubelet::podresources::v1::pod_resources_lister_client::PodResourcesListerClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

pub(crate) use agent::{AgentLink, PlacedLease, WholeLease, numa_nodes};
pub(crate) use api::{ApiLink, sentence, within};
pub(crate) use quotas::QuotaError;

use crate::holders::{Holders, Resources};

/// What the kubelet answers is at most this long; it has the same limit.
const LARGEST_LIST: usize = 16 << 20;
/// The kubelet answers within milliseconds; one that does not is about to restart.
const KUBELET_PATIENCE: Duration = Duration::from_secs(5);

/// Why somebody who was asked did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The kubelet.
    #[error("the kubelet does not say which pod holds what, at {}: {reason}; it is tried again", .socket.display())]
    Kubelet {
        /// Where.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The API server.
    #[error("the API server does not answer: {0}; it is tried again")]
    Api(String),
    /// It refuses.
    #[error(
        "the API server does not let the device plugin {what}: {reason}; give its service account that right"
    )]
    Denied {
        /// What was tried.
        what: &'static str,
        /// Its words.
        reason: String,
    },
    /// It refuses what it was asked, whoever asks.
    #[error(
        "the API server refuses to {what} (code {code}): {reason}; it is tried again, and if that goes on, see that the cluster has this release's definitions (`kubectl apply --server-side -f charts/gpu-zone/crds`)"
    )]
    NotTaken {
        /// What was tried.
        what: &'static str,
        /// Its status code.
        code: u16,
        /// Its words.
        reason: String,
    },
    /// The agent.
    #[error("the node's agent does not answer: {0}; it is tried again")]
    Agent(String),
    /// It has refused.
    #[error(transparent)]
    Refused(gpuzone_api::AgentError),
}

/// A channel to a Unix socket that connects when it is used, again and again.
pub(crate) fn channel(socket: &Path) -> Channel {
    let path = socket.to_owned();
    // The address is a placeholder that HTTP wants; the connector below never looks at it.
    let endpoint = Endpoint::from_static("http://unix").connect_timeout(Duration::from_secs(5));
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// The kubelet's pod resources. Every question is a connection of its own: what answers is the
/// kubelet that is there now.
#[derive(Clone, Debug)]
pub(crate) struct KubeletLink {
    socket: PathBuf,
    resources: Resources,
}

impl KubeletLink {
    pub(crate) fn new(socket: &Path, resources: Resources) -> Self {
        Self { socket: socket.to_owned(), resources }
    }

    /// Who holds what, now.
    pub(crate) async fn holders<D>(&self) -> Result<Holders<D>, LinkError>
    where
        D: Ord + FromStr + fmt::Display,
    {
        let client = PodResourcesListerClient::new(channel(&self.socket));
        let mut client = client.max_decoding_message_size(LARGEST_LIST);
        let failed = |reason: String| LinkError::Kubelet { socket: self.socket.clone(), reason };
        let asked = client.list(ListPodResourcesRequest {});
        match tokio::time::timeout(KUBELET_PATIENCE, asked).await {
            Ok(Ok(list)) => Ok(Holders::read(&list.into_inner(), &self.resources)),
            Ok(Err(status)) => Err(failed(status.message().to_owned())),
            Err(_) => Err(failed(format!("no answer within {KUBELET_PATIENCE:?}"))),
        }
    }
}
