//! A Service that follows the leader: its endpoints are the replica that binds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::keeper::MANAGER;
use crate::shared::{Role, Shared};

/// Written again after so long, should somebody have removed it.
const AGAIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(3);

/// Which Service, and where it is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Follower {
    /// The Service's namespace.
    pub(crate) namespace: String,
    /// The Service, which has no selector.
    pub(crate) service: String,
    /// Where this replica is reached.
    pub(crate) address: SocketAddr,
}

/// The endpoints of the Service when this replica leads. One object for all replicas, so there is
/// never more than one endpoint.
fn slice(follower: &Follower) -> Value {
    let Follower { namespace, service, address } = follower;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": format!("{service}-leader"),
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
            },
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [address.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "extender", "protocol": "TCP", "port": address.port() }],
    })
}

/// Has the Service lead to this replica whenever it leads.
pub(crate) async fn follow(shared: Arc<Shared>, client: Client, follower: Follower) {
    let slices: Api<EndpointSlice> = Api::namespaced(client, &follower.namespace);
    let (name, object) = (format!("{}-leader", follower.service), slice(&follower));
    let mut role = shared.role.subscribe();
    while role.wait_for(|role| *role == Role::Leading).await.is_ok() {
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched = tokio::time::timeout(PATIENCE, slices.patch(&name, &params, &patch)).await;
        let pause = match patched {
            Ok(Ok(_)) => AGAIN,
            Ok(Err(error)) => {
                tracing::warn!(service = follower.service, %error, "its endpoints cannot be written");
                Duration::from_secs(1)
            }
            Err(_) => Duration::from_secs(1),
        };
        // Another one may lead by then, and writes its own.
        let _ = tokio::time::timeout(pause, role.wait_for(|role| *role != Role::Leading)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoints_are_an_object_that_kubernetes_has() {
        for address in ["10.1.2.3:8443", "[fd00::1]:8443"] {
            let follower = Follower {
                namespace: "gpu-zone".into(),
                service: "ext".into(),
                address: address.parse().unwrap(),
            };
            let read: EndpointSlice = serde_json::from_value(slice(&follower)).unwrap();
            assert_eq!(read.endpoints.len(), 1);
            assert_eq!(serde_json::to_value(&read).unwrap(), slice(&follower), "nothing is lost");
        }
    }
}
