use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::BindFault;

/// A kind of objects, as it stands in an address: `pods`, `leases`.
pub(super) type Plural = String;
/// `namespace/name`, or the name alone.
pub(super) type Key = String;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) plural: Plural,
    pub(super) kind: &'static str,
    pub(super) object: Arc<Value>,
}

/// All objects, and what happened to them.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: u64,
    pub(super) objects: BTreeMap<(Plural, Key), Arc<Value>>,
    pub(super) log: Vec<Event>,
    pub(super) away: bool,
    /// How long each answer takes.
    pub(super) delay: Duration,
    /// Kinds that it does not know.
    pub(super) withheld: BTreeSet<Plural>,
    pub(super) faults: VecDeque<BindFault>,
    /// Kinds whose next patches are refused, and with which codes.
    pub(super) unpatched: BTreeMap<Plural, VecDeque<u16>>,
    pub(super) bound: Vec<(String, String)>,
    /// The longest time that any Binding was to take.
    pub(super) longest: Duration,
    /// Pods that a disruption budget keeps.
    pub(super) protected: BTreeSet<Key>,
    pub(super) writes: BTreeMap<(String, Plural), u64>,
}

/// Why a write is refused: an HTTP code and a message.
pub(super) type Refused = (u16, String);

pub(super) fn key_of(object: &Value) -> Key {
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// RFC 7396; for server-side apply, too, where one writer owns all that it writes.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            into.as_object_mut().map(|object| object.remove(name));
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

impl Store {
    pub(super) fn wrote(&mut self, verb: &str, plural: &str) {
        *self.writes.entry((verb.to_owned(), plural.to_owned())).or_default() += 1;
    }

    /// Puts an object in its place, whatever was there.
    pub(super) fn put(&mut self, plural: &str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        let key = (plural.to_owned(), key_of(&object));
        let known = self.objects.get(&key);
        let generation = known.and_then(|known| known["metadata"]["generation"].as_i64());
        let same = known.is_some_and(|known| known["spec"] == object["spec"]);
        let generation = generation.unwrap_or(0) + i64::from(!same);
        let uid = known.map(|known| known["metadata"]["uid"].clone());
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(self.version.to_string());
        meta["generation"] = json!(generation);
        if meta["uid"].is_null() {
            meta["uid"] = uid.unwrap_or_else(|| json!(format!("uid-{}", self.version)));
        }
        let object = Arc::new(object);
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key, Arc::clone(&object));
        self.happened(plural, kind, Arc::clone(&object));
        object
    }

    fn happened(&mut self, plural: &str, kind: &'static str, object: Arc<Value>) {
        let (version, plural) = (self.version, plural.to_owned());
        self.log.push(Event { version, plural, kind, object });
    }

    pub(super) fn delete(&mut self, plural: &str, key: &str) -> Option<Arc<Value>> {
        let object = self.objects.remove(&(plural.to_owned(), key.to_owned()))?;
        self.version += 1;
        let mut last = (*object).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.happened(plural, "DELETED", Arc::new(last));
        Some(object)
    }

    pub(super) fn get(&self, plural: &str, key: &str) -> Option<&Arc<Value>> {
        self.objects.get(&(plural.to_owned(), key.to_owned()))
    }

    pub(super) fn create(&mut self, plural: &str, object: Value) -> Result<Arc<Value>, Refused> {
        let key = key_of(&object);
        if self.get(plural, &key).is_some() {
            return Err((409, format!("{plural} \"{key}\" already exists")));
        }
        Ok(self.put(plural, object))
    }

    pub(super) fn replace(&mut self, plural: &str, object: Value) -> Result<Arc<Value>, Refused> {
        let key = key_of(&object);
        let found = self.get(plural, &key);
        let found = found.ok_or_else(|| (404, format!("{plural} \"{key}\" not found")))?;
        let version = &object["metadata"]["resourceVersion"];
        if !version.is_null() && *version != found["metadata"]["resourceVersion"] {
            let text = "the object has been modified; please apply your changes to the latest";
            return Err((409, text.to_owned()));
        }
        Ok(self.put(plural, object))
    }

    pub(super) fn patch(
        &mut self,
        plural: &str,
        key: &str,
        status: bool,
        apply: bool,
        patch: &Value,
    ) -> Result<Arc<Value>, Refused> {
        let found = self.get(plural, key).map(|found| (**found).clone());
        let mut object = match found {
            Some(found) => found,
            None if apply && !status => json!({}),
            None => return Err((404, format!("{plural} \"{key}\" not found"))),
        };
        if status {
            // What is applied to the status replaces all of it that this writer owns.
            object["status"] = patch["status"].clone();
        } else {
            let mut patch = patch.clone();
            patch.as_object_mut().map(|patch| patch.remove("status"));
            merge(&mut object, &patch);
        }
        Ok(self.put(plural, object))
    }

    /// What the real one does with a Binding, as it was seen to: node and annotations in one
    /// write, 409 for the second and for another UID, and nothing else is looked at.
    pub(super) fn bind(&mut self, key: &str, binding: &Value) -> Result<(), Refused> {
        let found = self.get("pods", key);
        let found = found.ok_or_else(|| (404, format!("pods \"{key}\" not found")))?;
        let mut pod = (**found).clone();
        let (wanted, uid) = (&binding["metadata"]["uid"], &pod["metadata"]["uid"]);
        if !wanted.is_null() && wanted != uid {
            let text = "Precondition failed: UID in precondition, UID in object meta";
            return Err((409, format!("{text}: {wanted}, {uid}")));
        }
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            return Err((409, format!("pod {key} is already assigned to node \"{node}\"")));
        }
        let node = binding["target"]["name"].clone();
        self.bound.push((key.to_owned(), node.as_str().unwrap_or_default().to_owned()));
        pod["spec"]["nodeName"] = node;
        merge(&mut pod["metadata"]["annotations"], &binding["metadata"]["annotations"]);
        pod["status"]["conditions"] = json!([{ "type": "PodScheduled", "status": "True" }]);
        self.put("pods", pod);
        Ok(())
    }
}
