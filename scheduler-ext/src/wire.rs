//! What kube-scheduler and an extender say to each other: JSON whose keys are Go's field names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// What `/filter` and `/prioritize` are asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Args<'a> {
    /// The pod.
    pub pod: Pod,
    /// With `nodeCacheCapable: false`, the nodes themselves.
    #[serde(borrow, default)]
    pub nodes: Option<Nodes<'a>>,
    /// With `nodeCacheCapable: true`, their names.
    #[serde(borrow, default)]
    pub node_names: Option<Vec<Text<'a>>>,
}

/// A text that stays where it was received, unless it is written with escapes: thousands of names
/// come with each question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// A list of nodes. They go back as they came, so nothing of them but their names is read.
#[derive(Debug, Deserialize, Serialize)]
pub struct Nodes<'a> {
    /// Its own metadata.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<&'a RawValue>,
    /// The nodes.
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    metadata: Name<'a>,
}

#[derive(Deserialize)]
struct Name<'a> {
    #[serde(borrow)]
    name: Text<'a>,
}

impl<'a> Nodes<'a> {
    /// The nodes' names, in their order.
    ///
    /// # Errors
    /// When a node has none.
    pub fn names(&self) -> Result<Vec<Text<'a>>, serde_json::Error> {
        let name = |item: &'a RawValue| {
            let named: Named<'a> = serde_json::from_str(item.get())?;
            Ok(named.metadata.name)
        };
        self.items.iter().flatten().map(|item| name(item)).collect()
    }
}

/// Nodes and why they do not serve a pod: a map, written in the order of the nodes.
#[derive(Debug, Default)]
pub struct Failed<'a>(pub Vec<(&'a str, &'a str)>);

impl Serialize for Failed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// What `/filter` answers.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FilterResult<'a> {
    /// The nodes that serve the pod, if nodes were given.
    pub nodes: Option<Nodes<'a>>,
    /// Their names, if names were given.
    pub node_names: Option<Vec<&'a str>>,
    /// Why the others do not, where taking pods away could help.
    pub failed_nodes: Failed<'a>,
    /// And where it could not.
    pub failed_and_unresolvable_nodes: Failed<'a>,
    /// Why there is no answer.
    pub error: String,
}

/// One node's rank.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority<'a> {
    /// The node.
    pub host: &'a str,
    /// 0 to 10.
    pub score: u8,
}

/// What `/bind` is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindArgs {
    /// The pod's name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Which one of that name.
    #[serde(rename = "PodUID")]
    pub pod_uid: String,
    /// Where to.
    pub node: String,
}

/// What `/bind` answers.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BindResult {
    /// Why it is not bound.
    pub error: String,
}

/// What `/preempt` is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptArgs {
    /// The pod that needs room.
    pub pod: Pod,
    /// With `nodeCacheCapable: false`: for each node the pods that would go.
    #[serde(default)]
    pub node_name_to_victims: Option<BTreeMap<String, VictimPods>>,
    /// With `nodeCacheCapable: true`: their UIDs.
    #[serde(default)]
    pub node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims>>,
}

/// Pods that would go from a node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VictimPods {
    /// Which.
    #[serde(default)]
    pub pods: Option<Vec<Pod>>,
    /// How many of them a disruption budget protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub violations: i64,
}

/// The same by their UIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MetaVictims {
    /// Which.
    #[serde(default)]
    pub pods: Option<Vec<MetaPod>>,
    /// How many of them a disruption budget protects.
    #[serde(default, rename = "NumPDBViolations")]
    pub violations: i64,
}

/// A pod by its UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPod {
    /// It.
    #[serde(rename = "UID")]
    pub uid: String,
}

/// What `/preempt` answers, in either way of asking.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptResult {
    /// For each node on which it helps, the pods that have to go.
    pub node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}
