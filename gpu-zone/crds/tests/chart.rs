//! What the chart renders: `cargo xtask chart` renders it and runs these.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Debug;
    use std::path::{Path, PathBuf};

    use k8s_openapi::api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
    };
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
    use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret, Service, ServiceAccount};
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use k8s_openapi::api::node::v1::RuntimeClass;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::Value;

    /// Each file, by case and template.
    fn rendered() -> Vec<(PathBuf, String)> {
        let folder = std::env::var("GPUZONE_RENDERED_CHART").expect("run `cargo xtask chart`");
        let entries = |folder: &Path| {
            let entries = std::fs::read_dir(folder).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>()
        };
        let files = entries(folder.as_ref()).into_iter().flat_map(|case| entries(&case));
        files.map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect()
    }

    fn objects() -> Vec<(PathBuf, Value)> {
        let documents = |(file, text): (PathBuf, String)| {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            let real = documents.into_iter().filter(|document| !document.is_null());
            real.map(move |document| (file.clone(), document)).collect::<Vec<_>>()
        };
        rendered().into_iter().flat_map(documents).collect()
    }

    /// Reads it as a `T`, and fails when a `T` has no place for a part of it.
    fn read<T: DeserializeOwned + Serialize + Debug>(file: &Path, object: &Value) -> T {
        let read: T = serde_json::from_value(object.clone())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let lost = lost(object, &serde_json::to_value(&read).unwrap());
        assert!(lost.is_empty(), "{}: the API knows no {lost:?}", file.display());
        read
    }

    /// Paths of `before` that are not in `after`.
    fn lost(before: &Value, after: &Value) -> Vec<String> {
        let below = |key: &str, lost: Vec<String>| {
            lost.into_iter().map(|path| format!("{key}/{path}")).collect::<Vec<_>>()
        };
        match (before, after) {
            (Value::Object(before), after) => before
                .iter()
                .filter(|(_, value)| !is_nothing(value))
                .flat_map(|(key, value)| below(key, lost(value, &after[key])))
                .collect(),
            (Value::Array(before), after) => {
                let each = before.iter().enumerate();
                each.flat_map(|(n, value)| below(&n.to_string(), lost(value, &after[n]))).collect()
            }
            (before, after) if before == after => Vec::new(),
            (before, after) => vec![format!("{before} (became {after})")],
        }
    }

    /// What is left out again when it is written.
    fn is_nothing(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    fn kind(object: &Value) -> (&str, &str) {
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        (text("apiVersion"), text("kind"))
    }

    /// The pods that it makes.
    fn pods(file: &Path, object: &Value) -> Option<PodSpec> {
        match kind(object) {
            (_, "DaemonSet") => read::<DaemonSet>(file, object).spec?.template.spec,
            (_, "Deployment") => read::<Deployment>(file, object).spec?.template.spec,
            _ => None,
        }
    }

    #[test]
    #[ignore = "reads what `cargo xtask chart` renders"]
    fn each_object_is_what_the_api_knows() {
        let objects = objects();
        assert!(objects.len() > 20, "{} objects are too few", objects.len());
        for (file, object) in &objects {
            match kind(object) {
                ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration") => {
                    drop(read::<ValidatingWebhookConfiguration>(file, object));
                }
                ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
                    drop(read::<MutatingWebhookConfiguration>(file, object));
                }
                ("apps/v1", "DaemonSet") => drop(read::<DaemonSet>(file, object)),
                ("apps/v1", "Deployment") => drop(read::<Deployment>(file, object)),
                ("v1", "ConfigMap") => drop(read::<ConfigMap>(file, object)),
                ("v1", "Secret") => drop(read::<Secret>(file, object)),
                ("v1", "Service") => drop(read::<Service>(file, object)),
                ("v1", "ServiceAccount") => drop(read::<ServiceAccount>(file, object)),
                ("networking.k8s.io/v1", "NetworkPolicy") => {
                    drop(read::<NetworkPolicy>(file, object));
                }
                ("node.k8s.io/v1", "RuntimeClass") => drop(read::<RuntimeClass>(file, object)),
                ("policy/v1", "PodDisruptionBudget") => {
                    drop(read::<PodDisruptionBudget>(file, object));
                }
                ("rbac.authorization.k8s.io/v1", "ClusterRole") => {
                    drop(read::<ClusterRole>(file, object));
                }
                ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
                    drop(read::<ClusterRoleBinding>(file, object));
                }
                ("rbac.authorization.k8s.io/v1", "Role") => drop(read::<Role>(file, object)),
                ("rbac.authorization.k8s.io/v1", "RoleBinding") => {
                    drop(read::<RoleBinding>(file, object));
                }
                // Of the Prometheus operator, whose types are not Kubernetes' own.
                ("monitoring.coreos.com/v1", "ServiceMonitor") => {}
                other => panic!("{}: what is {other:?}?", file.display()),
            }
        }
    }

    /// Each ServiceMonitor finds a Service of its labels that has its port.
    #[test]
    #[ignore = "reads what `cargo xtask chart` renders"]
    fn what_is_monitored_is_served() {
        let objects = objects();
        let of = |kind_of: &'static str| objects.iter().filter(move |(_, o)| kind(o).1 == kind_of);
        let mut monitored = BTreeSet::new();
        for (file, monitor) in of("ServiceMonitor") {
            let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
            let port = &monitor["spec"]["endpoints"][0]["port"];
            let case = file.parent().unwrap();
            let served =
                of("Service").filter(|(other, _)| other.starts_with(case)).any(|(_, s)| {
                    let labels = &s["metadata"]["labels"];
                    let selected = wanted.iter().all(|(name, value)| labels[name] == *value);
                    let ports = s["spec"]["ports"].as_array().unwrap();
                    selected && ports.iter().any(|own| own["name"] == *port)
                });
            let name = monitor["metadata"]["name"].as_str().unwrap();
            assert!(served, "{}: nothing serves {name}", file.display());
            monitored
                .extend(["agent", "scheduler-ext"].into_iter().filter(|part| name.ends_with(part)));
        }
        assert_eq!(monitored, BTreeSet::from(["agent", "scheduler-ext"]));
    }

    #[test]
    #[ignore = "reads what `cargo xtask chart` renders"]
    fn only_the_agent_is_privileged() {
        for (file, object) in &objects() {
            let Some(pod) = pods(file, object) else { continue };
            let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
            for container in containers {
                let context = container.security_context.clone().unwrap_or_default();
                let place = format!("{}: {}", file.display(), container.name);
                if container.name == "agent" {
                    assert_eq!(context.privileged, Some(true), "{place}");
                    continue;
                }
                assert_ne!(context.privileged, Some(true), "{place}");
                assert_eq!(context.allow_privilege_escalation, Some(false), "{place}");
                assert_eq!(context.read_only_root_filesystem, Some(true), "{place}");
                let drop = context.capabilities.and_then(|capabilities| capabilities.drop);
                assert_eq!(drop, Some(vec!["ALL".to_owned()]), "{place}");
            }
        }
    }

    #[test]
    #[ignore = "reads what `cargo xtask chart` renders"]
    fn volumes_and_service_accounts_are_there() {
        let objects = objects();
        let accounts: BTreeSet<&str> = objects
            .iter()
            .filter(|(_, object)| kind(object).1 == "ServiceAccount")
            .filter_map(|(_, object)| object["metadata"]["name"].as_str())
            .collect();
        for (file, object) in &objects {
            let Some(pod) = pods(file, object) else { continue };
            let place = file.display();
            let account = pod.service_account_name.clone().unwrap_or_default();
            assert!(accounts.contains(account.as_str()), "{place}: no account {account}");
            let volumes: BTreeSet<&String> =
                pod.volumes.iter().flatten().map(|volume| &volume.name).collect();
            let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
            let mounted: BTreeSet<&String> = containers
                .flat_map(|container| container.volume_mounts.iter().flatten())
                .map(|mount| &mount.name)
                .collect();
            assert_eq!(volumes, mounted, "{place}: volumes, and what is mounted");
        }
    }
}
