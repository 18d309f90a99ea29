use std::fmt;
use std::str::FromStr;

use gpuzone_core::{InvalidId, TenantId};
use serde::{Deserialize, Serialize};

/// Resource by which a container asks for GPUs, unless it is configured otherwise.
pub const DEFAULT_GPU_RESOURCE: &str = "gpuzone.dev/gpu";
/// Resource by which a container asks for memory on each GPU, in MiB.
pub const DEFAULT_MEMORY_RESOURCE: &str = "gpuzone.dev/memory-mib";
/// Resource by which a container asks for memory on each GPU, in per cent of what that has.
pub const DEFAULT_MEMORY_PERCENT_RESOURCE: &str = "gpuzone.dev/memory-percent";
/// Resource by which a container asks for a part of each GPU's time, in per cent.
pub const DEFAULT_SHARE_RESOURCE: &str = "gpuzone.dev/share";
/// Resource by which a container asks for whole GPUs by passthrough. How many it is, and nothing
/// of memory or share: each is all of its GPU.
pub const DEFAULT_PASSTHROUGH_RESOURCE: &str = "gpuzone.dev/passthrough";
/// What stands before a MIG profile in the resource by which a container asks for one of its
/// instances: `gpuzone.dev/mig-1g.10gb`.
pub const DEFAULT_MIG_PREFIX: &str = "gpuzone.dev/mig-";
/// What stands before a vendor's vGPU type in the resource by which a container asks for one:
/// `gpuzone.dev/vgpu-nvidia-592`.
pub const DEFAULT_VGPU_PREFIX: &str = "gpuzone.dev/vgpu-";
/// Annotation of a pod that says which GPUs it gets. Written with the Binding, never by a user.
pub const PLACEMENT_ANNOTATION: &str = "gpuzone.dev/placement";
/// Annotation: as what is taken what a pod's author left out, written for people when it is created.
pub const DEFAULTS_ANNOTATION: &str = "gpuzone.dev/defaults";
/// Annotation of a Node, written by the scheduler extender, that wakes pods which wait for room.
pub const WAKE_ANNOTATION: &str = "gpuzone.dev/room-changed";
/// Label of a *namespace* that names the tenant its pods belong to. On a pod it means nothing.
pub const TENANT_LABEL: &str = "gpuzone.dev/tenant";

/// A text that Kubernetes would not take as the name it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{}' is not valid: {rule}", shorten(.text))]
pub struct InvalidName {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

/// An error never repeats more than 80 characters of what a stranger wrote, nor what would move
/// a terminal's cursor.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    if text.chars().count() > 80 {
        short.push('…');
    }
    short
}

fn alphanumeric_ends(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().next_back()];
    ends.into_iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

/// RFC 1123: lower case letters, digits and '-', with a letter or digit at both ends.
fn is_dns_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= 63 && text.bytes().all(allowed) && alphanumeric_ends(text)
}

/// Labels joined by dots, at most 253 bytes.
fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        label.bytes().all(allowed) && alphanumeric_ends(label)
    };
    text.len() <= 253 && text.split('.').all(label)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(InvalidName { kind: $kind, text: text.to_owned(), rule: $rule })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// A node's name: a DNS subdomain.
    NodeName,
    "node name",
    "write it as the node is called, in lower case letters, digits, '-' and '.'",
    is_dns_subdomain
);
name!(
    /// The name by which pods choose their scheduler, in their `schedulerName`.
    SchedulerName,
    "scheduler name",
    "write lower case letters, digits, '-' and '.', with a letter or digit at both ends",
    is_dns_subdomain
);
name!(
    /// A container's name: a DNS label.
    ContainerName,
    "container name",
    "a container's name has 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends",
    is_dns_label
);
name!(
    /// What the API server tells one pod from all others by. Not always a UUID: a static pod's is
    /// a hash.
    PodUid,
    "pod UID",
    "it has 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends",
    is_dns_label
);
name!(
    /// An extended resource, as a container's limits name it: `gpuzone.dev/gpu`.
    ResourceName,
    "resource name",
    "write domain/name, with a domain of your own (none of kubernetes.io), and a name of at most 63 letters, digits, '-', '_' and '.'",
    is_extended_resource
);

fn is_extended_resource(text: &str) -> bool {
    let Some((domain, name)) = text.split_once('/') else { return false };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let own = domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io");
    // A ResourceQuota puts "requests." in front, and that has to be a domain, too.
    let room = domain.len() <= 253 - "requests.".len();
    let reserved = domain.starts_with("requests.");
    is_dns_subdomain(domain)
        && own
        && room
        && !reserved
        && name.len() <= 63
        && alphanumeric_ends(name)
        && name.bytes().all(allowed)
}

/// What stands before a partition's profile in the names of a family of resources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourcePrefix(String);

impl ResourcePrefix {
    /// The resource of one profile; `None` where that and the prefix make no name.
    pub fn of(&self, profile: &str) -> Option<ResourceName> {
        format!("{}{profile}", self.0).parse().ok()
    }

    /// The profile in a name of this family.
    pub fn profile<'a>(&self, resource: &'a ResourceName) -> Option<&'a str> {
        resource.as_str().strip_prefix(&self.0).filter(|profile| !profile.is_empty())
    }
}

impl FromStr for ResourcePrefix {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let prefix = Self(text.to_owned());
        match prefix.of("1g.10gb") {
            Some(_) if text.split_once('/').is_some_and(|(_, name)| !name.is_empty()) => Ok(prefix),
            Some(_) | None => Err(InvalidName {
                kind: "resource prefix",
                text: text.to_owned(),
                rule: "write domain/ and what stands before the profile, like gpuzone.dev/mig-",
            }),
        }
    }
}

impl fmt::Display for ResourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The tenant of a namespace: its label [`TENANT_LABEL`], and without one its own name.
///
/// # Errors
/// When the label is no tenant's name. The namespace's own name does not stand in for it then:
/// somebody meant something else.
pub fn tenant_of(namespace: &str, label: Option<&str>) -> Result<TenantId, InvalidId> {
    label.unwrap_or(namespace).parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_defaults_are_names() {
        for name in [
            DEFAULT_GPU_RESOURCE,
            DEFAULT_MEMORY_RESOURCE,
            DEFAULT_SHARE_RESOURCE,
            DEFAULT_PASSTHROUGH_RESOURCE,
        ] {
            assert_eq!(name.parse::<ResourceName>().map(String::from).as_deref(), Ok(name));
        }
        assert!("nvidia.com/gpu".parse::<ResourceName>().is_ok());
        assert!("nvidia.com/mig-1g.10gb".parse::<ResourceName>().is_ok());
    }

    #[test]
    fn a_prefix_and_a_profile_make_a_resource() {
        for (prefix, name) in [
            (DEFAULT_MIG_PREFIX, "gpuzone.dev/mig-1g.10gb.me"),
            (DEFAULT_VGPU_PREFIX, "gpuzone.dev/vgpu-1g.10gb.me"),
            ("nvidia.com/mig-", "nvidia.com/mig-1g.10gb.me"),
        ] {
            let prefix: ResourcePrefix = prefix.parse().unwrap();
            let resource = prefix.of("1g.10gb.me").unwrap();
            assert_eq!((resource.as_str(), prefix.profile(&resource)), (name, Some("1g.10gb.me")));
            assert_eq!(prefix.of("a b"), None);
            assert_eq!(prefix.profile(&"other.dev/mig-1g.10gb".parse().unwrap()), None);
        }
        for text in ["", "mig-", "kubernetes.io/mig-", "a.dev/-", "a.dev/ä", "a.dev/"] {
            assert!(text.parse::<ResourcePrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_kubernetes_refuses_is_refused() {
        let long = "a".repeat(64);
        let domain = format!("{}.dev/gpu", vec!["a".repeat(60); 4].join("."));
        for text in [
            "gpu",
            "/gpu",
            "a.dev/",
            "A.dev/gpu",
            "a..dev/gpu",
            "-a.dev/gpu",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
            "requests.a.dev/gpu",
            "a.dev/g/u",
            "a.dev/-gpu",
            "a.dev/ä",
            &format!("a.dev/{long}"),
            &domain,
            "",
        ] {
            assert!(text.parse::<ResourceName>().is_err(), "{text}");
        }
        for text in ["", "Node", "a_b", ".a", "a.", "a b", "ä", &"a.".repeat(130)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
        for text in ["", "a.b", "A", "-a", "a-", "a/../b", &long] {
            assert!(text.parse::<ContainerName>().is_err(), "{text}");
            assert!(text.parse::<PodUid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tenant_is_the_namespace_or_its_label_and_never_a_guess() {
        assert_eq!(tenant_of("team-a", None).unwrap().as_str(), "team-a");
        assert_eq!(tenant_of("team-a", Some("acme")).unwrap().as_str(), "acme");
        assert!(tenant_of("team-a", Some("")).is_err());
        assert!(tenant_of("team-a", Some("../acme")).is_err());
    }

    #[test]
    fn an_error_repeats_little_of_a_strangers_text() {
        let hostile = "\u{1b}[2J".repeat(1000);
        let error = hostile.parse::<NodeName>().unwrap_err().to_string();
        assert!(error.len() < 300 && !error.contains('\u{1b}'), "{error}");
    }

    /// It is read, shown and read again.
    fn check_name<T>(text: &str, shown: fn(&T) -> &str) -> Result<(), TestCaseError>
    where
        T: FromStr<Err = InvalidName> + fmt::Debug + PartialEq + fmt::Display,
    {
        let name = text.parse::<T>().map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(shown(&name), text);
        prop_assert_eq!(name.to_string().parse::<T>(), Ok(name));
        Ok(())
    }

    proptest! {
        #[test]
        fn a_name_reads_back(text in "[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?/[A-Za-z0-9._-]{1,12}") {
            if let Ok(name) = text.parse::<ResourceName>() {
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
        }

        #[test]
        fn names_of_nodes_containers_and_pods_read_back(
            label in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            others in prop::collection::vec("[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", 0..4),
        ) {
            let node = others.iter().fold(label.clone(), |name, label| format!("{name}.{label}"));
            check_name::<NodeName>(&node, NodeName::as_str)?;
            check_name::<ContainerName>(&label, ContainerName::as_str)?;
            check_name::<PodUid>(&label, PodUid::as_str)?;
        }

        /// Whatever a prefix takes, it finds again, and nothing else.
        #[test]
        fn a_prefix_reads_back(
            text in "[a-z0-9]([-a-z0-9.]{0,12}[a-z0-9])?/[A-Za-z0-9._-]{0,12}",
            profile in "[A-Za-z0-9._+-]{0,16}",
            other in "[a-z]{1,8}[.]dev/[a-z0-9][a-z0-9-]{0,12}[a-z0-9]",
        ) {
            if let Ok(prefix) = text.parse::<ResourcePrefix>() {
                prop_assert_eq!(prefix.to_string(), text.clone());
                if let Some(resource) = prefix.of(&profile) {
                    prop_assert_eq!(resource.as_str(), format!("{text}{profile}"));
                    let found = prefix.profile(&resource);
                    prop_assert_eq!(found, Some(profile.as_str()).filter(|found| !found.is_empty()));
                }
                let other: ResourceName = other.parse().unwrap();
                if let Some(profile) = prefix.profile(&other) {
                    prop_assert_eq!(prefix.of(profile), Some(other.clone()));
                }
            }
        }

        /// What is taken is what was written, and nothing that could leave a folder or a line.
        #[test]
        fn any_text_is_answered(
            text in prop_oneof![".{0,80}", "[a-z0-9./ -]{0,80}", "\\PC{250,260}", "[a-z.-]{250,260}"],
        ) {
            for taken in [
                text.parse::<ResourceName>().map(String::from),
                text.parse::<ResourcePrefix>().map(|prefix| prefix.to_string()),
                text.parse::<NodeName>().map(String::from),
                text.parse::<ContainerName>().map(String::from),
                text.parse::<PodUid>().map(String::from),
            ] {
                match taken {
                    Ok(taken) => {
                        prop_assert_eq!(&taken, &text);
                        prop_assert!(taken.len() <= 253 + 1 + 63 && !taken.contains(".."));
                        prop_assert!(taken.bytes().all(|b| b.is_ascii_graphic()));
                    }
                    Err(error) => prop_assert!(error.to_string().chars().count() < 400),
                }
            }
            let _ = tenant_of(&text, Some(&text));
        }
    }
}
