//! Who may do what: an API server's authorisation, by roles' tables.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use gpuzone_api::kubernetes::Access;

use super::api_server::status;

/// One kind of request, as a role names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Used {
    /// The API group; empty is the core group.
    pub group: String,
    /// The resource, with its subresource.
    pub resource: String,
    /// What was done to it.
    pub verb: &'static str,
}

impl Used {
    /// Each verb of these tables for itself.
    pub fn all(role: &[Access]) -> BTreeSet<Self> {
        let each = |access: &Access| {
            let (group, resource) = (access.group, access.resource);
            access.verbs.iter().map(move |verb| Self {
                group: group.to_owned(),
                resource: resource.to_owned(),
                verb,
            })
        };
        role.iter().flat_map(each).collect()
    }
}

/// What was asked, and what may be.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<(BTreeSet<Used>, Option<BTreeSet<Used>>)>,
}

impl Gate {
    pub(super) fn allow_only(&self, role: &[Access]) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Used::all(role));
    }

    pub(super) fn used(&self) -> BTreeSet<Used> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Notes it and says whether it may be.
    fn admits(&self, used: Used) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = state.1.as_ref().is_none_or(|allowed| allowed.contains(&used));
        state.0.insert(used);
        admitted
    }

    /// Notes what such a request would be and says whether it may be.
    pub(super) fn admits_of(&self, method: &Method, path: &str) -> bool {
        used(method, path, "").is_none_or(|used| self.admits(used))
    }
}

pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let uri = request.uri();
    let Some(used) = used(request.method(), uri.path(), uri.query().unwrap_or_default()) else {
        return next.run(request).await;
    };
    let told = format!("cannot {} {} in group {:?}", used.verb, used.resource, used.group);
    if gate.admits(used) {
        next.run(request).await
    } else {
        status(StatusCode::FORBIDDEN, "Forbidden", &told)
    }
}

/// The kind of request; `None` for one of no resource, like `/version`.
fn used(method: &Method, path: &str, query: &str) -> Option<Used> {
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next()? {
        "api" => "",
        "apis" => parts.next()?,
        _ => return None,
    };
    parts.next().filter(|version| !version.is_empty())?;
    let parts: Vec<&str> = parts.collect();
    // Namespaces are a resource, too, and what stands before those that are in one.
    let parts = match parts.as_slice() {
        ["namespaces", _, sub @ ("status" | "finalize")] => vec!["namespaces", "", *sub],
        ["namespaces", _, inside, ..] if !inside.is_empty() => parts.get(2..)?.to_vec(),
        _ => parts,
    };
    let (resource, name, sub) = match parts.as_slice() {
        [resource] => (*resource, None, None),
        [resource, name] => (*resource, Some(name), None),
        [resource, name, sub, ..] => (*resource, Some(name), Some(sub)),
        [] => return None,
    };
    let watch = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    let verb = match (method.as_str(), name) {
        ("GET", Some(_)) => "get",
        ("GET", None) if watch => "watch",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => return None,
    };
    let resource = sub.map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}"));
    Some(Used { group: group.to_owned(), resource, verb })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_roles_name_them() {
        let cases = [
            (Method::GET, "/api/v1/pods?fieldSelector=a&watch=1", "", "pods", "watch"),
            (Method::GET, "/api/v1/pods", "", "pods", "list"),
            (Method::GET, "/api/v1/namespaces/a/pods/b", "", "pods", "get"),
            (Method::GET, "/api/v1/namespaces/a", "", "namespaces", "get"),
            (Method::PATCH, "/api/v1/namespaces/a/status", "", "namespaces/status", "patch"),
            (Method::POST, "/api/v1/namespaces/a/pods/b/binding", "", "pods/binding", "create"),
            (
                Method::PATCH,
                "/apis/gpuzone.dev/v1alpha1/gpunodes/n/status",
                "gpuzone.dev",
                "gpunodes/status",
                "patch",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
                "coordination.k8s.io",
                "leases",
                "update",
            ),
        ];
        for (method, target, group, resource, verb) in cases {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let expected = Used { group: group.into(), resource: resource.into(), verb };
            assert_eq!(used(&method, path, query), Some(expected), "{target}");
        }
        assert_eq!(used(&Method::GET, "/version", ""), None);
    }

    #[test]
    fn what_a_role_lacks_is_refused() {
        const ROLE: &[Access] = &[Access { group: "", resource: "pods", verbs: &["get", "list"] }];
        let gate = Gate::default();
        let watch = used(&Method::GET, "/api/v1/pods", "watch=true").unwrap();
        assert!(gate.admits(watch.clone()));
        gate.allow_only(ROLE);
        assert!(!gate.admits(watch.clone()));
        assert!(gate.admits(used(&Method::GET, "/api/v1/pods", "").unwrap()));
        assert_eq!(gate.used().len(), 2);
    }
}
